/* Products of quantized inputs with packed weights: integers, then scales, zero points and offsets, then the epilogue.

   For inputs (q - z) a + s and weights (first + step c) b + o, summed over the inputs of a group:

       sum = ((c . q - z sum(c)) step + first sum(q - z)) a b + o a sum(q - z) + s sum(weights) */
#include "epilogue.h"

/* Sums of codes minus zero points, for each row and group of inputs: (m, groups). */
static void sum_codes(const bs_matrix *matrix, const int8_t *codes, int m, const int32_t *zero, int32_t *sums) {
    for (int i = 0; i < m; i++)
        for (int64_t g = 0; g < matrix->groups; g++) {
            int64_t first = g * matrix->group, size = BS_MIN(matrix->group, matrix->inputs - first);
            const int8_t *row = codes + i * matrix->padded + first;
            int32_t total = 0;
            for (int64_t k = 0; k < size; k++) total += row[k];
            sums[i * matrix->groups + g] = total - zero[i] * (int32_t)size;
        }
}

void prepare_rows(const bs_matrix *matrix, const int8_t *codes, coded_rows *rows, char *scratch) {
    int32_t *sums = (int32_t *)scratch;
    sum_codes(matrix, codes, rows->m, rows->zero, sums);
    rows->sums = sums;
    int8_t *copy = (int8_t *)(sums + BS_BLOCK * matrix->groups);
    rows->packed = tier_pack_rows(codes, matrix->padded, rows->m, matrix->plane[0].form[0], copy);
}

/* Numbers of each row; the last row is repeated up to a multiple of FEW_ROWS. */
typedef struct {
    int64_t row; /* index of the first row in the result */
    int m;
    float scale[BS_BLOCK], shift[BS_BLOCK];
    int32_t zero[BS_BLOCK], sum[BS_BLOCK];
    int32_t any_zero; /* whether any zero point is not 0 */
} row_numbers;

INLINE void set_numbers(row_numbers *numbers, const coded_rows *rows) {
    numbers->row = rows->row, numbers->m = rows->m, numbers->any_zero = 0;
    for (int i = 0; i < (int)BS_UP(rows->m, FEW_ROWS); i++) {
        int row = BS_MIN(i, rows->m - 1);
        numbers->scale[i] = rows->scale[row], numbers->shift[i] = rows->shift[row], numbers->zero[i] = rows->zero[row];
        numbers->any_zero |= rows->zero[row];
    }
}

INLINE void set_sums(row_numbers *numbers, const coded_rows *rows, const bs_matrix *matrix, int64_t group) {
    for (int i = 0; i < (int)BS_UP(rows->m, FEW_ROWS); i++)
        numbers->sum[i] = rows->sums[BS_MIN(i, rows->m - 1) * matrix->groups + group];
}

/* Part of a product: one plane of a matrix, one group of inputs, a few panels. */
typedef struct {
    const bs_matrix *matrix;
    const bs_plane *plane;
    int64_t group, panel;
    int panels;
    int begins, ends; /* whether it is the first and the last term over groups and planes */
} term;

INLINE void multiply_slices(const term *t, const coded_rows *rows, int32_t *acc) {
    const bs_matrix *matrix = t->matrix;
    int64_t first = t->group * matrix->group, end = BS_MIN(first + matrix->group, matrix->inputs);
    for (int s = 0; s < t->plane->slices; s++) {
        int64_t inputs = bs_line_inputs(t->plane->bits[s]), skipped = first / inputs;
        int64_t panel_lines = matrix->padded / inputs;
        int64_t end_line = t->group == matrix->groups - 1 ? panel_lines : end / inputs;
        bs_gemm gemm = {
            .codes = rows->packed, .padded = matrix->padded, .first = first,
            .lines = t->plane->lines[s] + (t->panel * panel_lines + skipped) * BS_LINE, .n_lines = end_line - skipped,
            .panel_bytes = panel_lines * BS_LINE, .m = rows->m, .panels = t->panels, .form = t->plane->form[s],
            .shift = t->plane->shift[s], .result = s == 0 ? BS_OVERWRITE : BS_ACCUMULATE,
        };
        tier_multiply(&gemm, acc);
    }
}

/* Converts integer sums of one panel to floats: outputs if the term is the last one, else partial sums in `tile`.
   Inputs of the loop are copied to variables, because the compiler cannot rule out that outputs overwrite them. */
INLINE void scale_panel(const bs_run *run, const bs_step *step, const term *t, const row_numbers *numbers,
                        int64_t panel, const int32_t *acc, float *tile) {
    const bs_matrix *matrix = t->matrix;
    const bs_plane *plane = t->plane;
    const int64_t channel = panel * BS_PANEL, at = (panel * matrix->groups + t->group) * BS_PANEL;
    const int64_t first_row = numbers->row;
    const int channels = (int)BS_MIN(BS_PANEL, matrix->outputs - channel), m = numbers->m;
    const int begins = t->begins, ends = t->ends, any_zero = numbers->any_zero;
    const float *offset = plane->offset ? plane->offset + at : NULL;
    const float *weight_sums = matrix->weight_sums ? matrix->weight_sums + channel : NULL;
    const float *row_scale = numbers->scale, *row_shift = numbers->shift;
    const int32_t *row_zero = numbers->zero, *row_sum = numbers->sum, *code_sums = any_zero ? plane->sums + at : NULL;
    const int32_t first_level = plane->first;
    const vint level_step = splat_int(plane->step);
    panel_row scale;
    memcpy(scale, plane->scale + at, sizeof scale);
    for (int i = 0; i < m; i += FEW_ROWS, acc += BS_PANEL * FEW_ROWS, tile += BS_PANEL * FEW_ROWS) {
        vint product[FEW_ROWS][PANEL_REGISTERS];
        panel_row y[FEW_ROWS];
        EACH_OF(FEW_ROWS) product[r][h] = load_ints(acc + BS_PANEL * r + h * LANES);
        if (any_zero)
            EACH_OF(FEW_ROWS) product[r][h] -= splat_int(row_zero[i + r]) * load_ints(code_sums + h * LANES);
        EACH_OF(FEW_ROWS) {
            vint levels = product[r][h] * level_step + splat_int(first_level * row_sum[i + r]);
            y[r][h] = to_float(levels) * (scale[h] * splat(row_scale[i + r]));
        }
        if (offset)
            EACH_OF(FEW_ROWS) y[r][h] += load(offset + h * LANES) * splat((float)row_sum[i + r] * row_scale[i + r]);
        if (!begins) EACH_OF(FEW_ROWS) y[r][h] += load(tile + BS_PANEL * r + h * LANES);
        if (!ends) {
            EACH_OF(FEW_ROWS) store(tile + BS_PANEL * r + h * LANES, y[r][h]);
            continue;
        }
        if (weight_sums) EACH_OF(FEW_ROWS) y[r][h] += load(weight_sums + h * LANES) * splat(row_shift[i + r]);
        store_outputs(run, step, y, (output_block){first_row + i, channel, BS_MIN(FEW_ROWS, m - i), channels});
    }
}

void finish_codes(const bs_run *run, const bs_step *step, const coded_rows *rows, int64_t panel, int panels) {
    const bs_matrix *matrix = step->matrix;
    float tile[BS_PANELS_AT_ONCE * BS_TILE]; /* accumulates products */
    row_numbers numbers;
    set_numbers(&numbers, rows);
    for (int64_t group = 0; group < matrix->groups; group++) {
        set_sums(&numbers, rows, matrix, group);
        for (int p = 0; p < matrix->planes; p++) {
            const int begins = p == 0 && group == 0, ends = p == matrix->planes - 1 && group == matrix->groups - 1;
            const term t = {matrix, &matrix->plane[p], group, panel, panels, begins, ends};
            _Alignas(BS_ALIGN) int32_t acc[BS_PANELS_AT_ONCE * BS_TILE];
            multiply_slices(&t, rows, acc);
            for (int j = 0; j < panels; j++)
                scale_panel(run, step, &t, &numbers, panel + j, acc + j * BS_TILE, tile + j * BS_TILE);
        }
    }
}
