/* What a tier is: the same steps, compiled for one instruction set. Not for Python. */
#ifndef BITSTILL_TIER_H
#define BITSTILL_TIER_H

#include "bitstill.h"
#include "team.h"

typedef void (*bs_do)(const bs_run *run, const bs_step *step, bs_work *work);

/* Rows of codes (m, padded), m <= BS_BLOCK, as `multiply` reads them for weights of that form: as they are, or as a copy with
   BS_ROOM bytes for each code of BS_BLOCK rows. */
typedef const int8_t *(*bs_arrange)(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy);

/* What is multiplied: arranged codes of m rows, from input `first` on, and as many lines of each of some panels. */
typedef struct {
    const int8_t *codes;
    int64_t padded, first;
    const uint8_t *lines;   /* of the first panel */
    int64_t n_lines, apart; /* lines of a panel that are multiplied, and bytes from one panel to the next */
    int m, panels, form, shift;
    int begins; /* whether there is nothing yet to be added to */
} bs_factors;

/* Adds to acc (panels, BS_BLOCK, 16), where the product does not begin, the product, shifted left. */
typedef void (*bs_multiply)(const bs_factors *of, int32_t *acc);

#define BS_TOGETHER 4 /* panels that are multiplied at once, at most */
#define BS_TILE (BS_BLOCK * BS_PANEL)
#define BS_ROOM 8
#define BS_QUERIES 8    /* that attend at once */
#define BS_TABLES 24576 /* bytes of tables that are read again and again: they and the weights stay in the first cache */

/* Rows that are multiplied at once. */
static inline int bs_rows_at_once(const bs_matrix *matrix) {
    if (matrix->planes == 0 || matrix->plane[0].form[0] != BS_NIBBLES) return BS_BLOCK;
    int64_t fit = BS_TABLES / (BS_ROOM * matrix->padded);
    return fit < 2 ? 2 : fit > BS_BLOCK ? BS_BLOCK : (int)(fit / 2 * 2);
}

typedef struct bs_tier {
    const char *name;
    int (*runs_here)(void);
    int nibbles;   /* whether tables are faster for single bits */
    int rows_each; /* rows for each thread, from which on it is worth their while to multiply rows of their own */
    void (*enter)(void), (*leave)(void); /* before a thread multiplies, and after */
    bs_arrange arrange;
    bs_multiply multiply;
    bs_do steps[BS_OPS];
} bs_tier;

#define UP(n, to) (((n) + (to)-1) / (to) * (to))

/* The code whose bits begin at bit `first` of a packed row. */
static inline int bits_at(const uint8_t *packed, int64_t first, int bits) {
    int64_t at = first >> 3;
    int found = packed[at] >> (first & 7);
    if ((first & 7) + bits > 8) found |= packed[at + 1] << (8 - (first & 7));
    return found & ((1 << bits) - 1);
}

/* Whether each thread computes rows of its own from rows of its own; a product does, for all outputs, where rows are many, and
   otherwise all rows for some outputs. */
static inline int own_rows(const bs_run *run, const bs_step *step, int threads) {
    return step->by_rows == BS_OWN_ROWS || (step->by_rows == BS_OWN_ROWS_IF_MANY && run->rows[step->output] >= (int64_t)run->tier->rows_each * threads);
}

extern const bs_tier *const bs_tiers[]; /* from the best, NULL at the end */

#endif
