/* Quantization by the rules of bitstill.quant.inputs. Codes are stored signed: unsigned ones minus 128. */
#include <math.h>

#include "kernels.h"

#define SMALLEST_NORMAL 1.17549435e-38f
#define MIDDLE 128 /* middle of unsigned codes */
#define CHUNK 64   /* values quantized between two stores */

value_range widen_range(value_range range, const float *x, int64_t n) {
    int64_t k = 0;
    if (n >= LANES) {
        vfloat low = load(x), high = low;
        for (k = LANES; k + LANES <= n; k += LANES) low = vmin(load(x + k), low), high = vmax(load(x + k), high);
        float min = reduce_min(low), max = reduce_max(high);
        range = (value_range){BS_MIN(min, range.min), BS_MAX(max, range.max)};
    }
    for (; k < n; k++) range.min = BS_MIN(x[k], range.min), range.max = BS_MAX(x[k], range.max);
    return range;
}

static inline int32_t signed_top(const bs_rule *rule) { return (1 << (rule->bits - 1)) - 1; }
static inline int32_t unsigned_top(const bs_rule *rule) { return (1 << rule->bits) - 1; }
static inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

static affine step_affine(const bs_rule *rule, value_range range) {
    if (rule->symmetric) return (affine){.scale = rule->step};
    return (affine){.scale = rule->step, .shift = range.min, .zero = -MIDDLE};
}

static inline float usable(float scale) { return scale < SMALLEST_NORMAL ? 1.0f : scale; }

affine affine_for(const bs_rule *rule, value_range range) {
    if (rule->range == BS_STEP) return step_affine(rule, range);
    if (rule->range == BS_CLIP)
        range = (value_range){clamp(range.min, rule->low, rule->high), clamp(range.max, rule->low, rule->high)};
    if (rule->symmetric) return (affine){.scale = usable(BS_MAX(range.max, -range.min) / (float)signed_top(rule))};
    float top = (float)unsigned_top(rule), min = BS_MIN(range.min, 0), max = BS_MAX(range.max, 0);
    float scale = usable((max - min) / top), zero = nearbyintf(-min / scale);
    int32_t code_of_zero = (int32_t)(zero > 0 ? BS_MIN(zero, top) : 0.0f); /* NaN becomes 0 */
    return (affine){.scale = scale, .zero = code_of_zero - MIDDLE};
}

/* Stores the lowest byte of each number. */
INLINE void narrow(const int32_t *from, int64_t n, int8_t *to) {
    for (int64_t i = 0; i < n; i++) to[i] = (int8_t)from[i];
}

INLINE void store_codes(int32_t *to, vint codes) { memcpy(to, &codes, sizeof codes); }

/* Below 128, x times 1 / scale is within 3e-5 of x / scale: x has to be divided only if it is this close to a tie. */
#define RECIPROCAL_ERROR 3e-5f

/* Symmetric codes with a dynamic range, so that nothing is clipped: CHUNK at a time. Returns the number processed. */
static int64_t quantize_chunks(const float *x, int64_t n, float scale, int8_t *to) {
    const vfloat reciprocal = splat(1.0f / scale), tie = splat(0.5f - RECIPROCAL_ERROR);
    int64_t k = 0;
    for (; k + CHUNK <= n; k += CHUNK) {
        int32_t codes[CHUNK];
        vint near = splat_int(0);
        for (int i = 0; i < CHUNK; i += LANES) {
            vfloat y = load(x + k + i) * reciprocal;
            near |= vabs(y - round_even(y)) > tie;
            store_codes(codes + i, rounded_in_low_byte(y));
        }
        if (any_lane(near))
            for (int i = 0; i < CHUNK; i += LANES)
                store_codes(codes + i, rounded_in_low_byte(load(x + k + i) / splat(scale)));
        narrow(codes, CHUNK, to + k);
    }
    return k;
}

/* Rule in registers: clip, subtract shift, divide, round, add zero, clamp, subtract middle. */
typedef struct {
    vfloat clip_low, clip_high, shift, scale, zero, low, high;
    vint middle;
} vector_rule;

static inline vector_rule vectors_of(const bs_rule *rule, affine a) {
    int clips = rule->range == BS_CLIP, symmetric = rule->symmetric, step = rule->range == BS_STEP;
    return (vector_rule){
        .clip_low = splat(clips ? rule->low : -INFINITY), .clip_high = splat(clips ? rule->high : INFINITY),
        .shift = splat(a.shift), .scale = splat(a.scale),
        .zero = splat(symmetric || step ? 0.0f : (float)(a.zero + MIDDLE)),
        .low = splat(symmetric ? (float)(-signed_top(rule) - 1) : 0.0f),
        .high = splat((float)(symmetric ? signed_top(rule) : unsigned_top(rule))),
        .middle = splat_int(symmetric ? 0 : MIDDLE),
    };
}

#define FAR 1e6f /* above, rounding by addition fails, and the code is at an end of its range anyway */

INLINE vint vector_codes(const vector_rule *v, vfloat x) {
    vfloat scaled = (vmin(vmax(x, v->clip_low), v->clip_high) - v->shift) / v->scale;
    vfloat code = round_even(vmin(vmax(scaled, splat(-FAR)), splat(FAR))) + v->zero;
    return rounded_in_low_byte(vmin(vmax(code, v->low), v->high)) - v->middle;
}

void quantize_row(const bs_rule *rule, affine a, const float *x, int64_t n, int8_t *to) {
    const vector_rule v = vectors_of(rule, a);
    int64_t k = rule->symmetric && rule->range == BS_DYNAMIC ? quantize_chunks(x, n, a.scale, to) : 0;
    for (; k < n; k += CHUNK) {
        int32_t codes[CHUNK];
        int64_t rest = BS_MIN(CHUNK, n - k);
        for (int64_t i = 0; i < rest; i += LANES) {
            float padded[LANES] = {0};
            const float *from = x + k + i;
            if (rest - i < LANES) from = memcpy(padded, from, sizeof(float) * (rest - i));
            store_codes(codes + i, vector_codes(&v, load(from)));
        }
        narrow(codes, rest, to + k);
    }
}

KERNEL(quantize) {
    const bs_rule *rule = &step->rule;
    coded_value codes = codes_of(run, step->output);
    const float *x = value_of(run, step->input);
    int64_t rows = run->rows[step->output], padded = run->width[step->output];
    /* Rows may be split into shorter ones. */
    int64_t width = run->rows[step->input] * run->width[step->input] / BS_MAX(rows, 1);
    int64_t together = rule->rows_per_range ? rule->rows_per_range : BS_MAX(rows, 1), current = -1;
    bs_part part = bs_share(member, rows);
    affine a = {.scale = 1.0f};
    for (int64_t row = part.from; row < part.to; row++) {
        int64_t set = row / together;
        if (set != current) { /* several threads may share a range: each computes it */
            int64_t first = set * together, end = BS_MIN(first + together, rows);
            value_range range = EMPTY_RANGE;
            if (needs_range(rule)) range = widen_range(range, x + first * width, (end - first) * width);
            a = affine_for(rule, range);
            current = set;
        }
        codes.scale[row] = a.scale, codes.zero[row] = a.zero, codes.shift[row] = a.shift;
        int8_t *to = codes.codes + row * padded;
        quantize_row(rule, a, x + row * width, width, to);
        memset(to + width, 0, (size_t)(padded - width));
    }
}
