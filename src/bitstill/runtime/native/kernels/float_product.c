/* Float products, for layers without quantized inputs and for attention. */
#include "epilogue.h"

#define MAX_ROWS 8 /* rows whose sums are held in registers */

/* Multiplies m rows by one or two registers of columns, in one loop: compilers split a loop over the registers. */
INLINE void multiply_columns(const float_gemm *gemm, const int m, int64_t column, const int two) {
    const float *a = gemm->a, *b = gemm->b + column;
    float *result = gemm->result + column;
    vfloat first[MAX_ROWS], second[MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) first[r] = second[r] = splat(0.0f);
    for (int64_t k = 0; k < gemm->inner; k++, b += gemm->b_stride) {
        vfloat b_first = load(b), b_second = load(b + (two ? LANES : 0));
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) {
            vfloat x = splat(a[r * gemm->a_stride + k]);
            first[r] += x * b_first;
            if (two) second[r] += x * b_second;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < m; r++, result += gemm->result_stride) {
        store(result, first[r]);
        if (two) store(result + LANES, second[r]);
    }
}

/* Multiplies the first m rows, and returns the rest of the product. */
INLINE float_gemm multiply_some(float_gemm gemm, const int m) {
    int64_t column = 0;
    for (; column + 2 * LANES <= gemm.columns; column += 2 * LANES) multiply_columns(&gemm, m, column, 1);
    for (; column < gemm.columns; column += LANES) multiply_columns(&gemm, m, column, 0);
    gemm.m -= m, gemm.a += m * gemm.a_stride, gemm.result += m * gemm.result_stride;
    return gemm;
}

void multiply_floats(float_gemm gemm) {
#if LANES == 16 /* twice as many registers */
    while (gemm.m >= 8) gemm = multiply_some(gemm, 8);
#endif
    while (gemm.m >= 4) gemm = multiply_some(gemm, 4);
    while (gemm.m >= 2) gemm = multiply_some(gemm, 2);
    if (gemm.m == 1) multiply_some(gemm, 1);
}

/* Codes of one input and a register of outputs, starting at bit `bit` of a byte per output. */
INLINE vint line_codes(const uint8_t *line, int part, int64_t input, int bit, int bits) {
    vint words; /* one quad of inputs each */
    memcpy(&words, line + BS_QUAD * LANES * part, sizeof words);
    return words >> (int)(input % BS_QUAD * 8 + bit) & splat_int((1 << bits) - 1);
}

/* Codes of input k and a register of a panel's outputs, from one slice. */
INLINE vint slice_codes(const bs_matrix *matrix, const uint8_t *lines, int bits, int64_t panel, int64_t k, int part) {
    int log_inputs = 5 - bits / 2; /* inputs in a line: 32, 16 or 8 for 1, 2 or 4 bits */
    const uint8_t *line = lines + ((panel * matrix->padded + k) >> log_inputs) * BS_LINE;
    int quad = (int)((k & ((1 << log_inputs) - 1)) / BS_QUAD);
    return line_codes(line, part, k, quad * bits, bits);
}

/* Levels of codes: evenly spaced, or learned. */
INLINE vfloat levels_of(const bs_plane *plane, vint codes) {
    if (plane->step) return to_float(codes * splat_int(plane->step) + splat_int(plane->first));
    vfloat levels;
    for (int n = 0; n < LANES; n++) levels[n] = plane->levels[codes[n]];
    return levels;
}

INLINE vfloat plane_weights(const bs_matrix *matrix, const bs_plane *plane, int64_t panel, int64_t group, int64_t k,
                            int part) {
    vint codes = splat_int(0);
    for (int s = 0; s < plane->slices; s++)
        codes |= slice_codes(matrix, plane->lines[s], plane->bits[s], panel, k, part) << plane->shift[s];
    int64_t at = (panel * matrix->groups + group) * BS_PANEL + LANES * part;
    vfloat weights = levels_of(plane, codes) * load(plane->scale + at);
    return plane->offset ? weights + load(plane->offset + at) : weights;
}

const float *dense_panel(const bs_matrix *matrix, int64_t panel, float *to) {
    if (matrix->dense) return matrix->dense + panel * matrix->inputs * BS_PANEL;
    for (int64_t k = 0, group = 0, end = matrix->group; k < matrix->inputs; k++) {
        if (k == end) group++, end += matrix->group;
        for (int part = 0; part < PANEL_REGISTERS; part++) {
            vfloat weights = splat(0.0f);
            for (int p = 0; p < matrix->planes; p++)
                weights += plane_weights(matrix, &matrix->plane[p], panel, group, k, part);
            if (matrix->mask) {
                vint unpruned = slice_codes(matrix, matrix->mask, 1, panel, k, part) != splat_int(0);
                weights = select_lanes(unpruned, weights, splat(0.0f));
            }
            store(to + k * BS_PANEL + LANES * part, weights);
        }
    }
    return to;
}

void finish_floats(const bs_run *run, const bs_step *step, const float *rows, int64_t row, int m, const float *weights,
                   int64_t panel) {
    const bs_matrix *matrix = step->matrix;
    float tile[BS_TILE];
    int channels = (int)BS_MIN(BS_PANEL, matrix->outputs - panel * BS_PANEL);
    multiply_floats((float_gemm){
        .a = rows, .a_stride = matrix->inputs, .m = m, .inner = matrix->inputs, .b = weights, .b_stride = BS_PANEL,
        .columns = BS_PANEL, .result = tile, .result_stride = BS_PANEL,
    });
    for (int i = 0; i < m; i += FEW_ROWS) {
        int valid = BS_MIN(FEW_ROWS, m - i);
        panel_row y[FEW_ROWS] = {{{0}}};
        memcpy(y, tile + BS_PANEL * i, sizeof(float) * BS_PANEL * valid);
        store_outputs(run, step, y, (output_block){row + i, panel * BS_PANEL, valid, channels});
    }
}
