/* The integer product with a tier's own instructions, and the tier itself. */
#include <math.h>

#include "kernels.h"

#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

/* A few rows of codes, and lines of one panel. */
typedef struct {
    const int8_t *codes;
    int64_t stride; /* distance from one row to the next */
    int64_t first;  /* first input */
    const uint8_t *lines;
    int64_t n_lines;
    int shift;
    int32_t *acc;
} row_tile;

static void panel_by_panel(const bs_gemm *gemm, int32_t *acc);
#include TIER_FILE
/* A tier defines runs_here, ONE_BIT_FORM and MIN_ROWS_PER_THREAD, and

       INLINE void multiply_rows(row_tile tile, int m, const int bits)    adds a product of lines to tile.acc

   and, optionally, each with a macro that announces it:
       TIER_PACKS_ROWS       tier_pack_rows: rows of codes are read in a special layout
       TIER_HAS_TABLES       multiply_nibbles, as multiply_rows
       TIER_MULTIPLIES       tier_multiply, and begin and end: more than one panel is multiplied at a time */

#ifndef TIER_PACKS_ROWS
const int8_t *tier_pack_rows(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy) {
    (void)padded, (void)m, (void)form, (void)copy;
    return codes;
}
#endif

static void multiply_panel(const bs_gemm *gemm, const uint8_t *lines, int32_t *acc) {
    row_tile tile = {gemm->codes, gemm->padded, gemm->first, lines, gemm->n_lines, gemm->shift, acc};
    switch (gemm->form) {
#ifdef TIER_HAS_TABLES
    case BS_NIBBLES: multiply_nibbles(tile, gemm->m); break;
#endif
    case BS_LINES_1: multiply_rows(tile, gemm->m, BS_LINES_1); break;
    case BS_LINES_2: multiply_rows(tile, gemm->m, BS_LINES_2); break;
    default: multiply_rows(tile, gemm->m, BS_LINES_4);
    }
}

static void panel_by_panel(const bs_gemm *gemm, int32_t *acc) {
    for (int p = 0; p < gemm->panels; p++, acc += BS_TILE) {
        if (gemm->result == BS_OVERWRITE) memset(acc, 0, sizeof(int32_t) * BS_PANEL * BS_UP(gemm->m, FEW_ROWS));
        multiply_panel(gemm, gemm->lines + p * gemm->panel_bytes, acc);
    }
}

#ifndef TIER_MULTIPLIES
static void begin(void) {}
static void end(void) {}
void tier_multiply(const bs_gemm *gemm, int32_t *acc) { panel_by_panel(gemm, acc); }
#endif

const bs_tier TIERED(tier) = {
    .name = TEXT(TIER),
    .runs_here = runs_here,
    .one_bit_form = ONE_BIT_FORM,
    .min_rows_per_thread = MIN_ROWS_PER_THREAD,
    .begin = begin,
    .end = end,
    .pack_rows = tier_pack_rows,
    .multiply = tier_multiply,
    .kernels =
        {
            [BS_GATHER] = TIERED(gather),
            [BS_MAP] = TIERED(map),
            [BS_QUANTIZE] = TIERED(quantize),
            [BS_LINEAR] = TIERED(linear),
            [BS_CONVOLVE] = TIERED(convolve),
            [BS_NORM] = TIERED(norm),
            [BS_ATTEND] = TIERED(attend),
            [BS_FIRST_TOKEN] = TIERED(first_token),
            [BS_POOL] = TIERED(pool),
            [BS_INPUT] = TIERED(input),
            [BS_FLATTEN] = TIERED(flatten),
            [BS_ATTEND_RANGES] = TIERED(attend_ranges),
        },
};
