/* Execution of steps, and the bare integer product. */
#include <stdlib.h>
#include <string.h>

#include "tier.h"

int bs_interface(void) { return BS_INTERFACE; }

int64_t bs_sizeof(int which) {
    static const int64_t sizes[] = {sizeof(bs_table), sizeof(bs_matrix), sizeof(bs_step), sizeof(bs_run)};
    return which >= 0 && which < (int)(sizeof sizes / sizeof sizes[0]) ? sizes[which] : -1;
}

typedef struct {
    const int8_t *codes;
    int64_t m;
    const bs_matrix *matrix;
    int plane;
    int32_t *result;
    const bs_tier *tier;
} product;

/* Multiplies all slices of a block of rows and a few panels into acc. */
static void multiply_slices(const product *p, const int8_t *packed, int m, int64_t panel, int panels, int32_t *acc) {
    const bs_plane *plane = &p->matrix->plane[p->plane];
    for (int s = 0; s < plane->slices; s++) {
        int64_t n_lines = p->matrix->padded / bs_line_inputs(plane->bits[s]), panel_bytes = n_lines * BS_LINE;
        bs_gemm gemm = {
            .codes = packed, .padded = p->matrix->padded,
            .lines = plane->lines[s] + panel * panel_bytes, .n_lines = n_lines,
            .panel_bytes = panel_bytes, .m = m, .panels = panels, .form = plane->form[s], .shift = plane->shift[s],
            .result = s == 0 ? BS_OVERWRITE : BS_ACCUMULATE,
        };
        p->tier->multiply(&gemm, acc);
    }
}

static void multiply_all(void *argument, bs_member *member) {
    const product *p = argument;
    const bs_matrix *matrix = p->matrix;
    int64_t panels = bs_panels(matrix), block = bs_rows_at_once(matrix);
    bs_part part = bs_share(member, panels);
    int8_t *copy = malloc((size_t)(BS_BLOCK * matrix->padded * BS_PACKED_BYTES));
    if (!copy) return;
    p->tier->begin();
    for (int64_t row = 0; row < p->m; row += block) {
        int m = (int)BS_MIN(block, p->m - row), form = matrix->plane[p->plane].form[0];
        const int8_t *packed = p->tier->pack_rows(p->codes + row * matrix->padded, matrix->padded, m, form, copy);
        for (int64_t panel = part.from; panel < part.to; panel += BS_PANELS_AT_ONCE) {
            int few = (int)BS_MIN(part.to - panel, BS_PANELS_AT_ONCE);
            _Alignas(BS_ALIGN) int32_t acc[BS_PANELS_AT_ONCE * BS_TILE];
            multiply_slices(p, packed, m, panel, few, acc);
            for (int j = 0; j < few; j++)
                for (int i = 0; i < m; i++) {
                    int32_t *to = p->result + ((row + i) * panels + panel + j) * BS_PANEL;
                    memcpy(to, acc + j * BS_TILE + i * BS_PANEL, sizeof(int32_t) * BS_PANEL);
                }
        }
    }
    p->tier->end();
    free(copy);
}

void bs_product(const int8_t *codes, int64_t m, const bs_matrix *matrix, int plane, int32_t *result, int threads) {
    product p = {codes, m, matrix, plane, result, bs_tier_in_use()};
    bs_parallel(multiply_all, &p, threads);
}

/* Bytes for the packed codes of a block of rows and their sums; for a convolution, preceded by the windows as rows;
   floats instead of codes if inputs are not quantized. */
static int64_t product_scratch(const bs_step *step) {
    const bs_matrix *matrix = step->matrix;
    int64_t windows = step->op == BS_CONVOLVE ? BS_BLOCK : 0;
    if (!step->quantized) return (int64_t)sizeof(float) * (windows + BS_PANEL) * matrix->inputs;
    int64_t sums = BS_BLOCK * (int64_t)sizeof(int32_t) * matrix->groups;
    return sums + (bs_rows_at_once(matrix) * BS_PACKED_BYTES + windows) * matrix->padded;
}

/* Bytes for keys, values, scores of a few queries, and codes of one query. */
static int64_t attention_scratch(const bs_step *step, int64_t longest) {
    int64_t floats = step->head_width + BS_UP(step->head_width, BS_PANEL) + BS_QUERIES;
    return BS_UP(longest, BS_PANEL) * ((int64_t)sizeof(float) * floats + 1);
}

int64_t bs_scratch_bytes(const bs_step *steps, int64_t n, int64_t longest) {
    int64_t most = BS_ALIGN;
    for (int64_t i = 0; i < n; i++) {
        const bs_step *step = &steps[i];
        int64_t bytes = 0;
        if (step->op == BS_LINEAR || step->op == BS_CONVOLVE) bytes = product_scratch(step);
        if (step->op == BS_ATTEND || step->op == BS_ATTEND_RANGES) bytes = attention_scratch(step, longest);
        most = BS_MAX(most, bytes);
    }
    return BS_UP(most, BS_ALIGN);
}

static void execute(void *argument, bs_member *member) {
    bs_run *run = argument;
    const bs_tier *tier = run->tier;
    tier->begin();
    for (int64_t i = 0; i < run->n_steps; i++) {
        const bs_step *step = &run->steps[i];
        if (!bs_own_rows(run, step, member->threads)) bs_barrier(member);
        tier->kernels[step->op](run, step, member);
    }
    tier->end();
}

void bs_execute(bs_run *run, int threads) {
    if (!run->tier) run->tier = bs_tier_in_use();
    bs_parallel(execute, run, threads);
}
