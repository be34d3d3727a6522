/* Linear layers, over codes or floats. */
#include "kernels.h"

/* Pieces are blocks of rows times panels. Each thread takes its own rows, or some panels of all rows. */
static void linear_codes(const bs_run *run, const bs_step *step, bs_member *member) {
    const bs_matrix *matrix = step->matrix;
    int64_t panels = bs_panels(matrix), rows = run->rows[step->output], block = bs_rows_at_once(matrix);
    coded_value codes = codes_of(run, step->input);
    bs_part of_rows = {0, rows}, pieces;
    if (bs_own_rows(run, step, member->threads)) {
        of_rows = bs_share(member, rows);
        pieces = (bs_part){0, panels * (BS_UP(of_rows.to - of_rows.from, block) / block)};
    } else {
        pieces = bs_share(member, panels * (BS_UP(rows, block) / block));
    }
    coded_rows current = {0};
    for (int64_t piece = pieces.from, few; piece < pieces.to; piece += few) {
        int64_t row = of_rows.from + piece / panels * block, panel = piece % panels;
        few = BS_MIN(BS_PANELS_AT_ONCE, BS_MIN(panels - panel, pieces.to - piece));
        if (piece == pieces.from || panel == 0) {
            current = (coded_rows){.row = row, .m = (int)BS_MIN(block, of_rows.to - row), .scale = codes.scale + row,
                                   .zero = codes.zero + row, .shift = codes.shift + row};
            prepare_rows(matrix, codes.codes + row * matrix->padded, &current, scratch_of(run, member));
        }
        finish_codes(run, step, &current, panel, (int)few);
    }
}

/* Each thread takes some panels and unpacks them once for all rows. */
static void linear_floats(const bs_run *run, const bs_step *step, bs_member *member) {
    const bs_matrix *matrix = step->matrix;
    const float *x = value_of(run, step->input);
    int64_t rows = run->rows[step->output];
    bs_part part = bs_share(member, bs_panels(matrix));
    for (int64_t panel = part.from; panel < part.to; panel++) {
        const float *weights = dense_panel(matrix, panel, (float *)scratch_of(run, member));
        for (int64_t row = 0; row < rows; row += BS_BLOCK) {
            int m = (int)BS_MIN(BS_BLOCK, rows - row);
            finish_floats(run, step, x + row * matrix->inputs, row, m, weights, panel);
        }
    }
}

KERNEL(linear) {
    if (step->quantized) linear_codes(run, step, member);
    else linear_floats(run, step, member);
}
