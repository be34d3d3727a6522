/* Attention: softmax(q k^T / sqrt(head width)) v of each text and head, with the softmax quantized if the step has a
   rule for it. */
#include <math.h>

#include "kernels.h"

/* softmax(scores * scale) of n scores, in place; padding up to a whole panel is set to 0. */
static void softmax(float *scores, int64_t n, float scale, const uint8_t *masked) {
    int64_t padded = BS_UP(n, BS_PANEL);
    for (int64_t j = n; j < padded; j++) scores[j] = -INFINITY;
    if (masked)
        for (int64_t j = 0; j < n; j++)
            if (masked[j]) scores[j] = -INFINITY;
    vfloat largest = splat(-INFINITY), sums = splat(0.0f);
    for (int64_t j = 0; j < padded; j += LANES) largest = vmax(load(scores + j), largest);
    float top = reduce_max(largest) * scale;
    for (int64_t j = 0; j < padded; j += LANES) {
        vfloat score = load(scores + j);
        vfloat y = select_lanes(score == splat(-INFINITY), splat(0.0f), vexp(score * splat(scale) - splat(top)));
        sums += y;
        store(scores + j, y);
    }
    float total = 1.0f / reduce_sum(sums);
    for (int64_t j = 0; j < padded; j += LANES) store(scores + j, load(scores + j) * splat(total));
}

/* Range over all texts and heads, from the min and max of each, interleaved. */
static value_range overall_range(const bs_run *run, int value) {
    const float *ranges = value_of(run, value);
    value_range all = EMPTY_RANGE;
    for (int64_t i = 0; i < run->rows[value] * run->width[value]; i += 2)
        all = (value_range){BS_MIN(all.min, ranges[i]), BS_MAX(all.max, ranges[i + 1])};
    return all;
}

/* Quantizes and dequantizes n probabilities in place; with their own range if the rule has one per row. */
static void requantize(const bs_rule *rule, float *row, int64_t n, value_range range, int8_t *codes) {
    if (rule->rows_per_range) range = widen_range(range, row, n);
    affine a = affine_for(rule, range);
    quantize_row(rule, a, row, n, codes);
    for (int64_t j = 0; j < n; j++) row[j] = (float)(codes[j] - a.zero) * a.scale + a.shift;
}

/* Transposes (rows, columns) with rows `stride` apart to (columns, rows) with rows `to_stride` apart. */
static void transpose(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to, int64_t to_stride) {
    int64_t row = 0;
#ifdef __SSE__ /* four by four */
    for (; row + 4 <= rows && columns % 4 == 0; row += 4)
        for (int64_t j = 0; j < columns; j += 4) {
            const float *x = from + row * stride + j;
            float *y = to + j * to_stride + row;
            __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + stride);
            __m128 c = _mm_loadu_ps(x + 2 * stride), d = _mm_loadu_ps(x + 3 * stride);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(y, a), _mm_storeu_ps(y + to_stride, b);
            _mm_storeu_ps(y + 2 * to_stride, c), _mm_storeu_ps(y + 3 * to_stride, d);
        }
#endif
    for (; row < rows; row++)
        for (int64_t j = 0; j < columns; j++) to[j * to_stride + row] = from[row * stride + j];
}

/* One text and head: rows of its tokens, and buffers for intermediate results. */
typedef struct {
    const float *query, *key, *value; /* (n, width), rows `stride` apart */
    int64_t n, padded, stride;
    int width, padded_width;
    const uint8_t *masked;       /* (n,), or NULL */
    float *keys, *values;        /* copies: (width, padded), (n, padded_width) */
    float *scores;               /* (queries, padded) */
    int8_t *codes;               /* (padded,) */
} head;

static head head_of(const bs_run *run, const bs_step *step, int64_t text, int64_t number, float *scratch) {
    int64_t start = run->starts[text], n = run->starts[text + 1] - start, padded = BS_UP(n, BS_PANEL);
    int64_t stride = (int64_t)step->heads * step->head_width, at = start * stride + number * step->head_width;
    int padded_width = BS_UP(step->head_width, BS_PANEL);
    float *values = scratch + step->head_width * padded, *scores = values + padded_width * padded;
    return (head){
        .query = value_of(run, step->input) + at, .key = value_of(run, step->input_2) + at,
        .value = value_of(run, step->input_3) + at, .masked = run->masked ? run->masked + start : NULL,
        .n = n, .padded = padded, .stride = stride, .width = step->head_width, .padded_width = padded_width,
        .keys = scratch, .values = values, .scores = scores, .codes = (int8_t *)(scores + BS_QUERIES * padded),
    };
}

static void copy_keys(const head *h) {
    memset(h->keys, 0, sizeof(float) * h->width * h->padded);
    transpose(h->key, h->stride, h->n, h->width, h->keys, h->padded);
}

static void copy_values(const head *h) {
    memset(h->values, 0, sizeof(float) * h->padded_width * h->padded);
    for (int64_t j = 0; j < h->n; j++)
        memcpy(h->values + j * h->padded_width, h->value + j * h->stride, sizeof(float) * h->width);
}

/* Computes the probabilities of m queries, starting at query i, in h->scores. */
static void attention_probabilities(const head *h, int64_t i, int m) {
    float scale = 1.0f / sqrtf((float)h->width);
    multiply_floats((float_gemm){
        .a = h->query + i * h->stride, .a_stride = h->stride, .m = m, .inner = h->width,
        .b = h->keys, .b_stride = h->padded, .columns = h->padded, .result = h->scores, .result_stride = h->padded,
    });
    for (int r = 0; r < m; r++) softmax(h->scores + r * h->padded, h->n, scale, h->masked);
}

/* Multiplies the probabilities of m queries by the values, into rows `stride` apart. */
static void weighted_values(const head *h, int m, float *to) {
    float tile[BS_QUERIES * BS_PANEL]; /* columns that do not fill a panel */
    int64_t whole = h->width / BS_PANEL * BS_PANEL;
    float_gemm gemm = {
        .a = h->scores, .a_stride = h->padded, .m = m, .inner = h->n, .b = h->values, .b_stride = h->padded_width,
        .columns = whole, .result = to, .result_stride = h->stride,
    };
    multiply_floats(gemm);
    if (whole == h->width) return;
    gemm.b += whole, gemm.columns = BS_PANEL, gemm.result = tile, gemm.result_stride = BS_PANEL;
    multiply_floats(gemm);
    for (int r = 0; r < m; r++)
        memcpy(to + r * h->stride + whole, tile + BS_PANEL * r, sizeof(float) * (h->width - whole));
}

KERNEL(attend) {
    const bs_rule *rule = &step->rule;
    bs_part part = bs_share(member, run->texts * step->heads);
    value_range range = EMPTY_RANGE;
    if (step->quantized && !rule->rows_per_range && needs_range(rule)) range = overall_range(run, step->input_4);
    for (int64_t piece = part.from; piece < part.to; piece++) {
        int64_t text = piece / step->heads, number = piece % step->heads;
        const head h = head_of(run, step, text, number, (float *)scratch_of(run, member));
        float *output = value_of(run, step->output) + run->starts[text] * h.stride + number * h.width;
        copy_keys(&h);
        copy_values(&h);
        for (int64_t i = 0; i < h.n; i += BS_QUERIES) {
            int m = (int)BS_MIN(BS_QUERIES, h.n - i);
            attention_probabilities(&h, i, m);
            for (int r = 0; r < m && step->quantized; r++)
                requantize(rule, h.scores + r * h.padded, h.n, range, h.codes);
            weighted_values(&h, m, output + i * h.stride);
        }
    }
}

/* Min and max of the probabilities of each text and head, as a separate step before attention, for rules with one
   range for all. */
KERNEL(attend_ranges) {
    bs_part part = bs_share(member, run->texts * step->heads);
    for (int64_t piece = part.from; piece < part.to; piece++) {
        const head h = head_of(run, step, piece / step->heads, piece % step->heads, (float *)scratch_of(run, member));
        value_range range = EMPTY_RANGE;
        copy_keys(&h);
        for (int64_t i = 0; i < h.n; i += BS_QUERIES) {
            int m = (int)BS_MIN(BS_QUERIES, h.n - i);
            attention_probabilities(&h, i, m);
            for (int r = 0; r < m; r++) range = widen_range(range, h.scores + r * h.padded, h.n);
        }
        float *output = value_of(run, step->output) + 2 * piece;
        output[0] = range.min, output[1] = range.max;
    }
}
