/* All steps, once for each instruction set: compiled with TIER and the flags of that tier, and with its own integer product. */
#include <math.h>

#ifdef __SSE__
#include <immintrin.h>
#endif

#include "lanes.h"
#include "tier.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#define SMALLEST_NORMAL 1.17549435e-38f
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define MOST(a, b) ((a) > (b) ? (a) : (b))

#define PARTS (BS_PANEL / LANES) /* registers of sixteen outputs */
#define FEW (LANES / 4)         /* that are finished together, to have something to do while one waits for itself */

static void panel_by_panel(const bs_factors *of, int32_t *acc); /* by the tier's `multiply_panel` */
#include TIER_FILE

#ifndef ARRANGES /* most tiers read rows of codes as they are, and all weights in lines */
static const int nibbles = 0, rows_each = 8;

static const int8_t *arrange(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy) {
    (void)padded, (void)m, (void)form, (void)copy;
    return codes;
}
#endif

static void panel_by_panel(const bs_factors *of, int32_t *acc) {
    for (int p = 0; p < of->panels; p++) {
        if (of->begins) memset(acc + p * BS_TILE, 0, sizeof(int32_t) * BS_PANEL * UP(of->m, FEW));
        multiply_panel(of->codes, of->padded, of->first, of->m, of->lines + p * of->apart, of->n_lines, of->form, of->shift, acc + p * BS_TILE);
    }
}

#ifndef MULTIPLIES /* most tiers multiply one panel at a time, and need nothing before */
static void enter(void) {}
static void leave(void) {}
static void multiply(const bs_factors *of, int32_t *acc) { panel_by_panel(of, acc); }
#endif

static float *value_of(const bs_run *run, int value) { return (float *)(run->arena + run->offset[value]); }
static char *scratch_of(const bs_run *run, const bs_work *work) { return run->scratch + work->thread * run->scratch_bytes; }

/* A quantized value's parts; there may be as many scales as rows. */
static bs_codes codes_of(const bs_run *run, int value) {
    char *at = run->arena + run->offset[value];
    int64_t numbers = UP(4 * run->rows[value], 64);
    return (bs_codes){(float *)at, (int32_t *)(at + numbers), (float *)(at + 2 * numbers), (int8_t *)(at + 3 * numbers)};
}

/* For each register of a few rows: unrolled, so that they are registers. */
#define EACH_OF(rows)                                             \
    _Pragma("GCC unroll 4") for (int r = 0; r < (rows); r++)      \
        _Pragma("GCC unroll 2") for (int h = 0; h < PARTS; h++)

/* What is done to sixteen outputs of a few rows before they are written; `channels` outputs of `valid` rows count. */
INLINE void finish(const bs_run *run, const bs_step *step, floats (*y)[PARTS], const int rows, int valid, int64_t row, int64_t channel, int channels) {
#define EACH EACH_OF(rows)
    for (const bs_tail *tail = step->tail; tail->kind != BS_END; tail++) {
        switch (tail->kind) {
        case BS_AFFINE:
            if (tail->by) EACH y[r][h] *= load(tail->by + channel + h * LANES);
            EACH y[r][h] += load(tail->plus + channel + h * LANES);
            break;
        case BS_FUNCTION:
            switch (tail->function) {
            case BS_RELU: EACH y[r][h] = applied(BS_RELU, y[r][h]); break;
            case BS_GELU: EACH y[r][h] = applied(BS_GELU, y[r][h]); break;
            case BS_GELU_TANH: EACH y[r][h] = applied(BS_GELU_TANH, y[r][h]); break;
            case BS_TANH: EACH y[r][h] = applied(BS_TANH, y[r][h]); break;
            }
            break;
        case BS_ADD: {
            const float *others = value_of(run, tail->value) + row * run->width[tail->value] + channel;
            if (channels == BS_PANEL) {
                EACH y[r][h] += load(others + LEAST(r, valid - 1) * run->width[tail->value] + h * LANES);
                break;
            }
            float some[FEW][BS_PANEL] = {{0}};
            for (int r = 0; r < valid; r++) memcpy(some[r], others + r * run->width[tail->value], sizeof(float) * channels);
            EACH y[r][h] += load(some[r] + h * LANES);
            break;
        }
        }
    }
}

/* Sixteen outputs of a few rows, finished, to where they belong. */
INLINE void put(const bs_run *run, const bs_step *step, floats (*y)[PARTS], int valid, int64_t row, int64_t channel, int channels) {
    float *to = value_of(run, step->output) + row * run->width[step->output] + channel;
    finish(run, step, y, FEW, valid, row, channel, channels);
    if (channels == BS_PANEL) {
        EACH_OF(FEW) if (r < valid) store(to + r * run->width[step->output] + h * LANES, y[r][h]);
        return;
    }
    float some[FEW][BS_PANEL];
    EACH_OF(FEW) store(some[r] + h * LANES, y[r][h]);
    for (int r = 0; r < valid; r++, to += run->width[step->output]) memcpy(to, some[r], sizeof(float) * channels);
}

/* Row by row ---------------------------------------------------------------------------------------------------------------- */

static void table_row(const bs_table *table, int64_t row, float *to) {
    if (table->dense) {
        memcpy(to, table->dense + row * table->length, sizeof(float) * table->length);
        return;
    }
    memset(to, 0, sizeof(float) * table->length);
    for (int p = 0; p < table->planes; p++) {
        const bs_rows_plane *plane = &table->plane[p];
        const uint8_t *packed = plane->codes + row * plane->bytes;
        const float *scale = plane->scale + (table->scale_rows > 1 ? row : 0) * table->groups;
        const float *offset = plane->offset ? plane->offset + (table->scale_rows > 1 ? row : 0) * table->groups : NULL;
        for (int64_t g = 0, k = 0; g < table->groups; g++) {
            int64_t end = LEAST(k + table->group, table->length);
            float s = scale[g], o = offset ? offset[g] : 0.0f;
            if (plane->trits) {
                static const int powers[5] = {1, 3, 9, 27, 81};
                for (; k < end; k++) to[k] += plane->levels[packed[k / 5] / powers[k % 5] % 3] * s + o;
            } else if (plane->bits == 1) {
                float low = plane->levels[0] * s + o, high = plane->levels[1] * s + o;
                for (; k < end; k++) to[k] += packed[k >> 3] >> (k & 7) & 1 ? high : low;
            } else {
                for (; k < end; k++) to[k] += plane->levels[bits_at(packed, k * plane->bits, (int)plane->bits)] * s + o;
            }
        }
    }
    if (table->mask)
        for (int64_t k = 0; k < table->length; k++)
            if (!(table->mask[row * table->mask_bytes + (k >> 3)] >> (k & 7) & 1)) to[k] = 0.0f;
}

/* Elementwise steps over a whole row. */
static void finish_row(const bs_run *run, const bs_step *step, float *row_at, int64_t row) {
    int64_t width = run->width[step->output];
    if (step->tail[0].kind == BS_END) return;
    for (int64_t n = 0; n < width; n += BS_PANEL) {
        floats y[1][PARTS] = {{{0}}};
        int channels = (int)LEAST(BS_PANEL, width - n);
        memcpy(y, row_at + n, sizeof(float) * channels);
        finish(run, step, y, 1, 1, row, n, channels);
        memcpy(row_at + n, y, sizeof(float) * channels);
    }
}

static void do_gather(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t from, to, width = run->width[step->output];
    bs_share(work, run->rows[step->output], &from, &to);
    for (int64_t row = from; row < to; row++) {
        float *at = value_of(run, step->output) + row * width;
        table_row(step->table, run->indices[step->index][row], at);
        finish_row(run, step, at, row);
    }
}

static void do_map(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t from, to, width = run->width[step->output];
    bs_share(work, run->rows[step->output], &from, &to);
    for (int64_t row = from; row < to; row++) {
        float *at = value_of(run, step->output) + row * width;
        if (step->coded) {
            bs_codes codes = codes_of(run, step->input);
            const int8_t *x = codes.codes + row * run->width[step->input];
            for (int64_t k = 0; k < width; k++) at[k] = (float)(x[k] - codes.zero[row]) * codes.scale[row] + codes.shift[row];
        } else {
            memcpy(at, value_of(run, step->input) + row * width, sizeof(float) * width);
        }
        finish_row(run, step, at, row);
    }
}

static void do_norm(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t from, to, width = run->width[step->output], whole = width / LANES * LANES;
    bs_share(work, run->rows[step->output], &from, &to);
    for (int64_t row = from; row < to; row++) {
        const float *x = value_of(run, step->input) + row * width;
        float *y = value_of(run, step->output) + row * width;
        floats sums = all(0.0f), squares = all(0.0f);
        float sum = 0, square = 0;
        for (int64_t k = 0; k < whole; k += LANES) sums += load(x + k);
        for (int64_t k = whole; k < width; k++) sum += x[k];
        float mean = (sum + sum_of(sums)) / width;
        for (int64_t k = 0; k < whole; k += LANES) {
            floats d = load(x + k) - all(mean);
            squares += d * d;
        }
        for (int64_t k = whole; k < width; k++) square += (x[k] - mean) * (x[k] - mean);
        float by = 1.0f / sqrtf((square + sum_of(squares)) / width + step->epsilon);
        for (int64_t k = 0; k < whole; k += LANES) store(y + k, (load(x + k) - all(mean)) * all(by) * load(step->by + k) + load(step->plus + k));
        for (int64_t k = whole; k < width; k++) y[k] = (x[k] - mean) * by * step->by[k] + step->plus[k];
        finish_row(run, step, y, row);
    }
}

/* The first token's row of each text. */
static void do_take(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t from, to, width = run->width[step->output];
    bs_share(work, run->rows[step->output], &from, &to);
    for (int64_t row = from; row < to; row++)
        memcpy(value_of(run, step->output) + row * width, value_of(run, step->input) + run->first[row] * width, sizeof(float) * width);
}

/* Quantization: `ops.inputs` has the rule ------------------------------------------------------------------------------------ */

static void extremes(const float *x, int64_t n, float *least, float *most) {
    int64_t k = 0;
    if (n >= LANES) {
        floats low = load(x), high = low;
        for (k = LANES; k + LANES <= n; k += LANES) low = smallest(load(x + k), low), high = largest(load(x + k), high);
        *least = smallest_of(low) < *least ? smallest_of(low) : *least;
        *most = largest_of(high) > *most ? largest_of(high) : *most;
    }
    for (; k < n; k++) *least = x[k] < *least ? x[k] : *least, *most = x[k] > *most ? x[k] : *most;
}

/* Whether codes depend on the extremes of the values. */
static int moves(const bs_rule *rule) { return rule->range != BS_STEP || !rule->symmetric; }

/* The scale, zero point and shift for values between least and most. Codes are kept signed: unsigned ones less 128. */
static void scale_for(const bs_rule *rule, float least, float most, float *scale, int32_t *zero, float *shift) {
    *shift = 0.0f, *zero = 0;
    if (rule->range == BS_STEP) {
        *scale = rule->step;
        if (!rule->symmetric) *shift = least, *zero = -128;
        return;
    }
    if (rule->range == BS_CLIP) {
        least = least < rule->low ? rule->low : least > rule->high ? rule->high : least;
        most = most < rule->low ? rule->low : most > rule->high ? rule->high : most;
    }
    if (rule->symmetric) {
        *scale = (most > -least ? most : -least) / (float)((1 << (rule->bits - 1)) - 1);
        if (*scale < SMALLEST_NORMAL) *scale = 1.0f;
        return;
    }
    float top = (float)((1 << rule->bits) - 1);
    least = least < 0 ? least : 0, most = most > 0 ? most : 0;
    *scale = (most - least) / top;
    if (*scale < SMALLEST_NORMAL) *scale = 1.0f;
    float at = nearbyintf(-least / *scale);
    *zero = (int32_t)(at > 0 ? LEAST(at, top) : 0.0f) - 128; /* 0, too, where it is not a number */
}

#define CHUNK 64

/* The lowest bytes of some numbers. */
INLINE void narrowed(const int32_t *from, int64_t n, int8_t *to) {
    for (int64_t i = 0; i < n; i++) to[i] = (int8_t)from[i];
}

/* Codes by a rule under which none is beyond its range: CHUNK at a time, and returns how many. */
static int64_t quantize_chunks(const float *x, int64_t n, float scale, int8_t *to) {
    /* Below 128, x times 1 / scale is within 3e-5 of x / scale: only where that is as near to a tie must it be divided. */
    const floats by = all(1.0f / scale), tie = all(0.5f - 3e-5f);
    int64_t k = 0;
    for (; k + CHUNK <= n; k += CHUNK) {
        int32_t codes[CHUNK];
        ints near = all_ints(0);
        for (int i = 0; i < CHUNK; i += LANES) {
            floats y = load(x + k + i) * by;
            near |= magnitude(y - nearest(y)) > tie;
            ints code = in_lowest_byte(y);
            memcpy(codes + i, &code, sizeof code);
        }
        if (any(near))
            for (int i = 0; i < CHUNK; i += LANES) {
                ints code = in_lowest_byte(load(x + k + i) / all(scale));
                memcpy(codes + i, &code, sizeof code);
            }
        narrowed(codes, CHUNK, to + k);
    }
    return k;
}

static void quantize(const bs_rule *rule, const float *x, int64_t n, float scale, int32_t zero, float shift, int8_t *to) {
    float low, high, moved;
    if (rule->symmetric) {
        high = (float)((1 << (rule->bits - 1)) - 1), low = -high - 1, moved = 0.0f;
    } else {
        moved = rule->range == BS_STEP ? 0.0f : (float)(zero + 128), low = 0.0f, high = (float)((1 << rule->bits) - 1);
    }
    float least = rule->range == BS_CLIP ? rule->low : -INFINITY, most = rule->range == BS_CLIP ? rule->high : INFINITY;
    int32_t down = rule->symmetric ? 0 : 128;
    int64_t k = rule->symmetric && rule->range == BS_DYNAMIC ? quantize_chunks(x, n, scale, to) : 0;
    /* Beyond these, rounding by addition fails; and the code is at the edge anyway. */
    const floats far = all(1e6f);
#define CODES(x)                                                                                              \
    in_lowest_byte(smallest(largest(nearest(smallest(largest((smallest(largest(x, all(least)), all(most)) - all(shift)) / all(scale), -far), far)) + all(moved), all(low)), all(high))) - all_ints(down)
    for (; k < n; k += CHUNK) {
        int32_t codes[CHUNK];
        int64_t here = LEAST(CHUNK, n - k);
        for (int64_t i = 0; i < here; i += LANES) {
            float some[LANES] = {0};
            const float *from = x + k + i;
            if (here - i < LANES) from = memcpy(some, from, sizeof(float) * (here - i));
            ints code = CODES(load(from));
            memcpy(codes + i, &code, sizeof code);
        }
        narrowed(codes, here, to + k);
    }
}

static void do_quantize(const bs_run *run, const bs_step *step, bs_work *work) {
    const bs_rule *rule = &step->rule;
    bs_codes codes = codes_of(run, step->output);
    const float *x = value_of(run, step->input);
    int64_t rows = run->rows[step->output], padded = run->width[step->output], from, to;
    int64_t width = run->rows[step->input] * run->width[step->input] / MOST(rows, 1); /* of the pieces that rows are cut into */
    bs_share(work, rows, &from, &to);
    int64_t span = rule->span ? rule->span : MOST(rows, 1), known = -1;
    float scale = 1.0f, shift = 0.0f;
    int32_t zero = 0;
    for (int64_t row = from; row < to; row++) {
        int64_t set = row / span;
        if (set != known) {
            /* A range over rows of several threads is taken by each of them. */
            int64_t end = LEAST((set + 1) * span, rows);
            float least = INFINITY, most = -INFINITY;
            if (moves(rule)) extremes(x + set * span * width, (end - set * span) * width, &least, &most);
            scale_for(rule, least, most, &scale, &zero, &shift);
            known = set;
        }
        codes.scale[row] = scale, codes.zero[row] = zero, codes.shift[row] = shift;
        int8_t *to_row = codes.codes + row * padded;
        quantize(rule, x + row * width, width, scale, zero, shift, to_row);
        memset(to_row + width, 0, (size_t)(padded - width));
    }
}

/* Products -------------------------------------------------------------------------------------------------------------------- */

/* Sums of codes of each row and group of inputs, less the zero point: (m, groups). */
static void sums_of_codes(const bs_matrix *matrix, const int8_t *codes, int m, const int32_t *zero, int32_t *sums) {
    for (int i = 0; i < m; i++)
        for (int64_t g = 0; g < matrix->groups; g++) {
            int64_t first = g * matrix->group, size = LEAST(matrix->group, matrix->inputs - first);
            const int8_t *row = codes + i * matrix->padded + first;
            int32_t total = 0;
            for (int64_t k = 0; k < size; k++) total += row[k];
            sums[i * matrix->groups + g] = total - zero[i] * (int32_t)size;
        }
}

/* Rows `row`, `row + 1`, ... of a layer that reads codes, for some panels: the codes are arranged, and have a sum, scale, zero point
   and shift for each row. */
static void product_of_codes(const bs_run *run, const bs_step *step, int64_t panel, int panels, const int8_t *codes, const int32_t *sums, int64_t row,
                             int m, const float *scale, const int32_t *zero, const float *shift) {
    const bs_matrix *matrix = step->matrix;
    float tile[BS_TOGETHER * BS_TILE]; /* where there are more products than one to be added up */
    float scales[BS_BLOCK], shifts[BS_BLOCK];
    int32_t zeros[BS_BLOCK], totals[BS_BLOCK], any_zero = 0;
    for (int i = 0; i < (int)UP(m, FEW); i++) { /* the last row again, up to a few */
        int one = LEAST(i, m - 1);
        scales[i] = scale[one], shifts[i] = shift[one], zeros[i] = zero[one], any_zero |= zero[one];
    }
    for (int64_t g = 0; g < matrix->groups; g++) {
        int64_t first = g * matrix->group, size = LEAST(matrix->group, matrix->inputs - first);
        for (int i = 0; i < (int)UP(m, FEW); i++) totals[i] = sums[LEAST(i, m - 1) * matrix->groups + g];
        for (int p = 0; p < matrix->planes; p++) {
            const bs_plane *plane = &matrix->plane[p];
            const int begins = p == 0 && g == 0, ends = p == matrix->planes - 1 && g == matrix->groups - 1;
            _Alignas(64) int32_t acc[BS_TOGETHER * BS_TILE];
            for (int s = 0; s < plane->slices; s++) {
                int64_t inputs = 4 * (8 / plane->bits[s]), lines = matrix->padded / inputs;
                int64_t skip = first / inputs, count = g == matrix->groups - 1 ? lines - skip : (first + size) / inputs - skip;
                bs_factors of = {codes, matrix->padded, first, plane->lines[s] + (panel * lines + skip) * BS_LINE, count, lines * BS_LINE, m,
                                 panels, plane->form[s], plane->shift[s], s == 0};
                multiply(&of, acc);
            }
            const ints level_step = all_ints(plane->step);
            const int32_t level_first = plane->first;
            for (int j = 0; j < panels; j++) {
                const int64_t at = ((panel + j) * matrix->groups + g) * BS_PANEL, channel = (panel + j) * BS_PANEL;
                const int channels = (int)LEAST(BS_PANEL, matrix->outputs - channel);
                const float *offset = plane->offset ? plane->offset + at : NULL, *weights = matrix->weights ? matrix->weights + channel : NULL;
                floats scale_of[PARTS];
                memcpy(scale_of, plane->scale + at, sizeof scale_of);
                for (int i = 0; i < m; i += FEW) {
                    const int32_t *from = acc + j * BS_TILE + BS_PANEL * i;
                    float *to = tile + j * BS_TILE + BS_PANEL * i;
                    ints whole[FEW][PARTS];
                    floats y[FEW][PARTS];
                    EACH_OF(FEW) whole[r][h] = load_ints(from + BS_PANEL * r + h * LANES);
                    if (any_zero) EACH_OF(FEW) whole[r][h] -= all_ints(zeros[i + r]) * load_ints(plane->sums + at + h * LANES);
                    EACH_OF(FEW) y[r][h] = as_floats(whole[r][h] * level_step + all_ints(level_first * totals[i + r])) * (scale_of[h] * all(scales[i + r]));
                    if (offset) EACH_OF(FEW) y[r][h] += load(offset + h * LANES) * all((float)totals[i + r] * scales[i + r]);
                    if (!begins) EACH_OF(FEW) y[r][h] += load(to + BS_PANEL * r + h * LANES);
                    if (!ends) {
                        EACH_OF(FEW) store(to + BS_PANEL * r + h * LANES, y[r][h]);
                        continue;
                    }
                    if (weights) EACH_OF(FEW) y[r][h] += load(weights + h * LANES) * all(shifts[i + r]);
                    put(run, step, y, LEAST(FEW, m - i), row + i, channel, channels);
                }
            }
        }
    }
}

/* Bits `down` to `down + bits - 1` of one byte of each output of a part of a line, the byte of input `k`. */
INLINE ints codes_in(const uint8_t *line, int part, int64_t k, int down, int bits) {
    ints words;
    memcpy(&words, line + 4 * LANES * part, sizeof words);
    return words >> (int)(k % 4 * 8 + down) & all_ints((1 << bits) - 1);
}

/* Levels of codes: consecutive, or learned. */
INLINE floats levels_of(const bs_plane *plane, ints codes) {
    if (plane->step) return as_floats(codes * all_ints(plane->step) + all_ints(plane->first));
    floats found;
    for (int n = 0; n < LANES; n++) found[n] = plane->levels[codes[n]];
    return found;
}

/* The weights of one panel as floats, (inputs, 16). */
static const float *dense_panel(const bs_matrix *matrix, int64_t panel, float *to) {
    if (matrix->dense) return matrix->dense + panel * matrix->inputs * BS_PANEL;
    for (int64_t k = 0, group = 0, end = matrix->group; k < matrix->inputs; k++) {
        if (k == end) group++, end += matrix->group;
        for (int part = 0; part < PARTS; part++) {
            floats total = all(0.0f);
            for (int p = 0; p < matrix->planes; p++) {
                const bs_plane *plane = &matrix->plane[p];
                ints codes = all_ints(0);
                for (int s = 0; s < plane->slices; s++) {
                    int bits = plane->bits[s], of_line = 5 - bits / 2; /* 32, 16 or 8 inputs, as a power of two */
                    const uint8_t *line = plane->lines[s] + ((panel * matrix->padded + k) >> of_line) * BS_LINE;
                    codes |= codes_in(line, part, k, (int)((k >> 2) & ((1 << (of_line - 2)) - 1)) * bits, bits) << plane->shift[s];
                }
                int64_t at = (panel * matrix->groups + group) * BS_PANEL + LANES * part;
                floats w = levels_of(plane, codes) * load(plane->scale + at);
                total += plane->offset ? w + load(plane->offset + at) : w;
            }
            if (matrix->mask) {
                const uint8_t *line = matrix->mask + (panel * (matrix->padded / 32) + k / 32) * BS_LINE;
                total = choose(codes_in(line, part, k, (int)(k % 32 / 4), 1) != all_ints(0), total, all(0.0f));
            }
            store(to + k * BS_PANEL + LANES * part, total);
        }
    }
    return to;
}

/* (m, inner) times (inner, LANES or twice as many). Both halves in one loop: compilers make two of a loop over them. */
INLINE void some_floats(const float *a, int64_t a_stride, const int m, int64_t inner, const float *b, int64_t b_stride, const int both, float *to, int64_t to_stride) {
    floats first[8], second[8];
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) first[r] = second[r] = all(0.0f);
    for (int64_t k = 0; k < inner; k++, b += b_stride) {
        floats one = load(b), other = load(b + (both ? LANES : 0));
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) {
            floats x = all(a[r * a_stride + k]);
            first[r] += x * one;
            if (both) second[r] += x * other;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) {
        store(to + r * to_stride, first[r]);
        if (both) store(to + r * to_stride + LANES, second[r]);
    }
}

/* (m, inner) times (inner, columns), a multiple of 16; b has `b_stride` floats in a row. As many sums at once as there are
   registers for. */
static void product_of_floats(const float *a, int64_t a_stride, int m, int64_t inner, const float *b, int64_t b_stride, int64_t columns, float *to, int64_t to_stride) {
#define AT_ONCE(n)                                                                                                       \
    for (; m >= n; m -= n, a += n * a_stride, to += n * to_stride) {                                                     \
        int64_t j = 0;                                                                                                   \
        for (; j + 2 * LANES <= columns; j += 2 * LANES) some_floats(a, a_stride, n, inner, b + j, b_stride, 1, to + j, to_stride); \
        for (; j < columns; j += LANES) some_floats(a, a_stride, n, inner, b + j, b_stride, 0, to + j, to_stride);       \
    }
#if LANES == 16
    AT_ONCE(8)
#endif
    AT_ONCE(4)
    AT_ONCE(2)
    AT_ONCE(1)
#undef AT_ONCE
}

/* The same for some rows of a layer that reads floats, and one panel whose weights are unpacked. */
static void panel_of_floats(const bs_run *run, const bs_step *step, const float *x, int64_t row, int m, const float *weights, int64_t panel) {
    const bs_matrix *matrix = step->matrix;
    float tile[BS_TILE];
    int channels = (int)LEAST(BS_PANEL, matrix->outputs - panel * BS_PANEL);
    product_of_floats(x, matrix->inputs, m, matrix->inputs, weights, BS_PANEL, BS_PANEL, tile, BS_PANEL);
    for (int i = 0; i < m; i += FEW) {
        int valid = LEAST(FEW, m - i);
        floats y[FEW][PARTS] = {{{0}}};
        memcpy(y, tile + BS_PANEL * i, sizeof(float) * BS_PANEL * valid);
        put(run, step, y, valid, row + i, panel * BS_PANEL, channels);
    }
}

static void do_linear(const bs_run *run, const bs_step *step, bs_work *work) {
    const bs_matrix *matrix = step->matrix;
    int64_t panels = UP(matrix->outputs, BS_PANEL) / BS_PANEL, rows = run->rows[step->output], from, to;
    if (step->coded) {
        bs_codes codes = codes_of(run, step->input);
        int32_t *sums = (int32_t *)scratch_of(run, work);
        const int8_t *arranged = NULL;
        int64_t block = bs_rows_at_once(matrix), first = 0, last = rows;
        if (own_rows(run, step, work->threads)) {
            bs_share(work, rows, &first, &last);
            from = 0, to = panels * (UP(last - first, block) / block);
        } else {
            bs_share(work, panels * (UP(rows, block) / block), &from, &to);
        }
        for (int64_t piece = from, together; piece < to; piece += together) {
            int64_t row = first + piece / panels * block, panel = piece % panels;
            int m = (int)LEAST(block, last - row);
            together = LEAST(BS_TOGETHER, LEAST(panels - panel, to - piece));
            if (piece == from || panel == 0) {
                const int8_t *of_rows = codes.codes + row * matrix->padded;
                sums_of_codes(matrix, of_rows, m, codes.zero + row, sums);
                arranged = arrange(of_rows, matrix->padded, m, matrix->plane[0].form[0], (int8_t *)(sums + BS_BLOCK * matrix->groups));
            }
            product_of_codes(run, step, panel, (int)together, arranged, sums, row, m, codes.scale + row, codes.zero + row, codes.shift + row);
        }
        return;
    }
    const float *x = value_of(run, step->input);
    bs_share(work, panels, &from, &to); /* a panel is unpacked once for all rows */
    for (int64_t panel = from; panel < to; panel++) {
        const float *weights = dense_panel(matrix, panel, (float *)scratch_of(run, work));
        for (int64_t row = 0; row < rows; row += BS_BLOCK) {
            panel_of_floats(run, step, x + row * matrix->inputs, row, (int)LEAST(BS_BLOCK, rows - row), weights, panel);
        }
    }
}

/* Attention ------------------------------------------------------------------------------------------------------------------- */

/* softmax of `n` scores, in place; the rest up to a whole panel becomes 0. */
static void softmax(float *scores, int64_t n, float by, const uint8_t *hidden) {
    int64_t padded = UP(n, BS_PANEL);
    for (int64_t j = n; j < padded; j++) scores[j] = -INFINITY;
    if (hidden)
        for (int64_t j = 0; j < n; j++)
            if (hidden[j]) scores[j] = -INFINITY;
    floats most = all(-INFINITY), sums = all(0.0f);
    for (int64_t j = 0; j < padded; j += LANES) most = largest(load(scores + j), most);
    float top = largest_of(most) * by;
    for (int64_t j = 0; j < padded; j += LANES) {
        floats score = load(scores + j);
        floats y = choose(score == all(-INFINITY), all(0.0f), exponential(score * all(by) - all(top)));
        sums += y;
        store(scores + j, y);
    }
    float share = 1.0f / sum_of(sums);
    for (int64_t j = 0; j < padded; j += LANES) store(scores + j, load(scores + j) * all(share));
}

/* Of all texts and heads, whose least and greatest probabilities stand by turns. */
static void extremes_of_all(const bs_run *run, int value, float *least, float *most) {
    const float *found = value_of(run, value);
    for (int64_t i = 0; i < run->rows[value] * run->width[value]; i += 2) *least = LEAST(*least, found[i]), *most = MOST(*most, found[i + 1]);
}

/* Probabilities as what their codes stand for, in place; with a range of their own where the rule has one for each row. */
static void quantize_probabilities(const bs_rule *rule, float *row, int64_t n, float least, float most, int8_t *codes) {
    float scale, shift;
    int32_t zero;
    if (rule->span) extremes(row, n, &least, &most);
    scale_for(rule, least, most, &scale, &zero, &shift);
    quantize(rule, row, n, scale, zero, shift, codes);
    for (int64_t j = 0; j < n; j++) row[j] = (float)(codes[j] - zero) * scale + shift;
}

/* (rows, columns) to (columns, rows of `to_stride`). */
static void transpose(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to, int64_t to_stride) {
    int64_t done = 0;
#ifdef __SSE__ /* four by four */
    for (; done + 4 <= rows && columns % 4 == 0; done += 4)
        for (int64_t j = 0; j < columns; j += 4) {
            const float *x = from + done * stride + j;
            float *y = to + j * to_stride + done;
            __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + stride), c = _mm_loadu_ps(x + 2 * stride), d = _mm_loadu_ps(x + 3 * stride);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(y, a), _mm_storeu_ps(y + to_stride, b), _mm_storeu_ps(y + 2 * to_stride, c), _mm_storeu_ps(y + 3 * to_stride, d);
        }
#endif
    for (; done < rows; done++)
        for (int64_t j = 0; j < columns; j++) to[j * to_stride + done] = from[done * stride + j];
}

/* Also the ranges of probabilities, for a rule that has one range for all: its own step, before the products with values. */
static void do_attend(const bs_run *run, const bs_step *step, bs_work *work) {
    int heads = step->heads, width = step->head_width, ranges = step->op == BS_ATTEND_RANGES;
    int64_t stride = (int64_t)heads * width, v_padded = UP(width, BS_PANEL), from, to;
    float by = 1.0f / sqrtf((float)width), of_all[2] = {INFINITY, -INFINITY};
    if (step->coded && !ranges && !step->rule.span && moves(&step->rule)) extremes_of_all(run, step->input_4, of_all, of_all + 1);
    bs_share(work, run->texts * heads, &from, &to);
    for (int64_t piece = from; piece < to; piece++) {
        int64_t text = piece / heads, head = piece % heads, start = run->starts[text], n = run->starts[text + 1] - start, padded = UP(n, BS_PANEL);
        const float *query = value_of(run, step->input) + start * stride + head * width;
        const float *key = value_of(run, step->input_2) + start * stride + head * width;
        const float *value = value_of(run, step->input_3) + start * stride + head * width;
        float *keys = (float *)scratch_of(run, work), *values = keys + width * padded, *scores = values + v_padded * padded;
        float least = INFINITY, most = -INFINITY;
        memset(keys, 0, sizeof(float) * width * padded);
        transpose(key, stride, n, width, keys, padded);
        if (!ranges) memset(values, 0, sizeof(float) * v_padded * padded);
        for (int64_t j = 0; j < n && !ranges; j++) memcpy(values + j * v_padded, value + j * stride, sizeof(float) * width);
        for (int64_t i = 0; i < n; i += BS_QUERIES) {
            int m = (int)LEAST(BS_QUERIES, n - i);
            product_of_floats(query + i * stride, stride, m, width, keys, padded, padded, scores, padded);
            for (int r = 0; r < m; r++) {
                softmax(scores + r * padded, n, by, run->hidden ? run->hidden + start : NULL);
                if (ranges) extremes(scores + r * padded, n, &least, &most);
                else if (step->coded) quantize_probabilities(&step->rule, scores + r * padded, n, of_all[0], of_all[1], (int8_t *)(scores + BS_QUERIES * padded));
            }
            if (ranges) continue;
            float *out = value_of(run, step->output) + (start + i) * stride + head * width;
            int64_t whole = width / BS_PANEL * BS_PANEL;
            product_of_floats(scores, padded, m, n, values, v_padded, whole, out, stride);
            if (whole == width) continue;
            float tile[BS_QUERIES * BS_PANEL]; /* of columns that fill no panel */
            product_of_floats(scores, padded, m, n, values + whole, v_padded, BS_PANEL, tile, BS_PANEL);
            for (int r = 0; r < m; r++) memcpy(out + r * stride + whole, tile + BS_PANEL * r, sizeof(float) * (width - whole));
        }
        if (ranges) {
            float *found = value_of(run, step->output) + 2 * piece;
            found[0] = least, found[1] = most;
        }
    }
}

/* Pictures: (samples x height x across, channels) ------------------------------------------------------------------------------- */

static void do_input(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t pixels = (int64_t)step->height * step->across, from, to;
    bs_share(work, run->samples * pixels, &from, &to);
    for (int64_t row = from; row < to; row++) {
        const float *x = run->given[step->index] + row / pixels * pixels * step->channels + row % pixels;
        float *y = value_of(run, step->output) + row * step->channels;
        for (int c = 0; c < step->channels; c++) y[c] = x[c * pixels];
    }
}

/* Back to channels, height, width, as layers behind expect them: (samples, channels x height x across). */
static void do_flatten(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t pixels = (int64_t)step->height * step->across, from, to;
    bs_share(work, run->samples, &from, &to);
    for (int64_t sample = from; sample < to; sample++) {
        const float *x = value_of(run, step->input) + sample * pixels * step->channels;
        float *y = value_of(run, step->output) + sample * pixels * step->channels;
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int c = 0; c < step->channels; c++) y[c * pixels + pixel] = x[pixel * step->channels + c];
    }
}

static void do_pool(const bs_run *run, const bs_step *step, bs_work *work) {
    int64_t from, to;
    int channels = step->channels;
    bs_share(work, run->rows[step->output], &from, &to);
    for (int64_t row = from; row < to; row++) {
        int64_t pixel = row % (step->out_height * step->out_across), sample = row / (step->out_height * step->out_across);
        int64_t top = pixel / step->out_across * step->kernel_y, left = pixel % step->out_across * step->kernel_x;
        float *y = value_of(run, step->output) + row * channels;
        for (int c = 0; c < channels; c++) y[c] = step->mean ? 0.0f : -INFINITY;
        for (int i = 0; i < step->kernel_y; i++)
            for (int j = 0; j < step->kernel_x; j++) {
                const float *x = value_of(run, step->input) + ((sample * step->height + top + i) * step->across + left + j) * channels;
                if (step->mean)
                    for (int c = 0; c < channels; c++) y[c] += x[c];
                else
                    for (int c = 0; c < channels; c++) y[c] = x[c] > y[c] ? x[c] : y[c];
            }
        if (step->mean)
            for (int c = 0; c < channels; c++) y[c] /= (float)(step->kernel_y * step->kernel_x);
        finish_row(run, step, y, row);
    }
}

/* Windows of the picture as rows, (m, padded): kernel_y, kernel_x, channels. `size` is that of a code or a float. */
static void windows(const bs_step *step, const char *picture, int64_t row, int m, int size, char *to, int64_t padded, const int32_t *zero) {
    int64_t pixels = (int64_t)step->out_height * step->out_across, run_of = (int64_t)step->channels * size;
    for (int i = 0; i < m; i++) {
        int64_t sample = (row + i) / pixels, pixel = (row + i) % pixels;
        int64_t top = pixel / step->out_across * step->stride - step->padding, left = pixel % step->out_across * step->stride - step->padding;
        char *at = to + i * padded * size;
        int outside = size == 1 ? zero[i] : 0;
        for (int y = 0; y < step->kernel_y; y++)
            for (int x = 0; x < step->kernel_x; x++, at += run_of) {
                int64_t py = top + y, px = left + x;
                if (py < 0 || py >= step->height || px < 0 || px >= step->across) memset(at, outside, (size_t)run_of);
                else memcpy(at, picture + ((sample * step->height + py) * step->across + px) * run_of, (size_t)run_of);
            }
        memset(at, 0, (size_t)(to + (i + 1) * padded * size - at));
    }
}

static void do_convolve(const bs_run *run, const bs_step *step, bs_work *work) {
    const bs_matrix *matrix = step->matrix;
    int64_t rows = run->rows[step->output], panels = UP(matrix->outputs, BS_PANEL) / BS_PANEL, from, to;
    int64_t in_pixels = (int64_t)step->height * step->across, out_pixels = (int64_t)step->out_height * step->out_across;
    char *gathered = scratch_of(run, work);
    int64_t at_once = step->coded ? bs_rows_at_once(matrix) : BS_BLOCK;
    bs_share(work, UP(rows, at_once) / at_once, &from, &to);
    if (step->coded) {
        bs_codes codes = codes_of(run, step->input);
        for (int64_t block = from; block < to; block++) {
            int64_t row = block * at_once;
            int m = (int)LEAST(at_once, rows - row);
            float scale[BS_BLOCK], shift[BS_BLOCK];
            int32_t zero[BS_BLOCK];
            for (int i = 0; i < m; i++) {
                int64_t sample = (row + i) / out_pixels * in_pixels; /* all pixels of a sample have one scale */
                scale[i] = codes.scale[sample], zero[i] = codes.zero[sample], shift[i] = codes.shift[sample];
            }
            windows(step, (const char *)codes.codes, row, m, 1, gathered, matrix->padded, zero);
            int32_t *sums = (int32_t *)(gathered + BS_BLOCK * matrix->padded);
            sums_of_codes(matrix, (const int8_t *)gathered, m, zero, sums);
            const int8_t *arranged = arrange((const int8_t *)gathered, matrix->padded, m, matrix->plane[0].form[0], (int8_t *)(sums + BS_BLOCK * matrix->groups));
            for (int64_t panel = 0; panel < panels; panel += BS_TOGETHER)
                product_of_codes(run, step, panel, (int)LEAST(BS_TOGETHER, panels - panel), arranged, sums, row, m, scale, zero, shift);
        }
        return;
    }
    float *weights = (float *)(gathered + sizeof(float) * BS_BLOCK * matrix->inputs);
    for (int64_t panel = 0; panel < panels && from < to; panel++) {
        const float *dense = dense_panel(matrix, panel, weights);
        for (int64_t block = from; block < to; block++) {
            int64_t row = block * BS_BLOCK;
            int m = (int)LEAST(BS_BLOCK, rows - row);
            windows(step, (const char *)value_of(run, step->input), row, m, sizeof(float), gathered, matrix->inputs, NULL);
            panel_of_floats(run, step, (const float *)gathered, row, m, dense, panel);
        }
    }
}

extern const bs_tier JOIN(bs_tier_, TIER);
const bs_tier JOIN(bs_tier_, TIER) = {
    TEXT(TIER), runs_here, nibbles, rows_each, enter, leave, arrange, multiply,
    {do_gather, do_map, do_quantize, do_linear, do_convolve, do_norm, do_attend, do_take, do_pool, do_input, do_flatten, do_attend},
};
