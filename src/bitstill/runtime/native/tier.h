/* A tier: the same steps, compiled for one instruction set. Not for Python. */
#ifndef BITSTILL_TIER_H
#define BITSTILL_TIER_H

#include "bitstill.h"
#include "threads.h"

#define BS_PANELS_AT_ONCE 4     /* panels that are multiplied at once, at most */
#define BS_TILE (BS_BLOCK * BS_PANEL)
#define BS_PACKED_BYTES 8       /* bytes that a packed code may take, at most */
#define BS_QUERIES 8            /* that attend at once */
#define BS_TABLE_BYTES (24 << 10) /* of tables that are read repeatedly: with the weights they fit the first cache */
#define BS_TRITS 5              /* in a byte */

#define BS_UP(n, to) (((n) + (to)-1) / (to) * (to))
#define BS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define BS_MAX(a, b) ((a) > (b) ? (a) : (b))

typedef void (*bs_kernel)(const bs_run *run, const bs_step *step, bs_member *member);

/* Rows of codes (m, padded), m <= BS_BLOCK, in the layout that `multiply` reads for weights of that form: the rows
   themselves, or a copy of them with up to BS_PACKED_BYTES for each code of BS_BLOCK rows. */
typedef const int8_t *(*bs_pack_rows)(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy);

enum bs_store { BS_OVERWRITE, BS_ACCUMULATE };

/* A product: packed codes of m rows, from input `first` on, times as many lines of each of some panels. */
typedef struct {
    const int8_t *codes;
    int64_t padded, first;
    const uint8_t *lines;         /* of the first panel */
    int64_t n_lines, panel_bytes; /* lines of a panel that are multiplied, and bytes from one panel to the next */
    int m, panels, form;
    int shift;            /* by which the product is shifted left */
    enum bs_store result; /* the product replaces what is in `acc`, or is added to it */
} bs_gemm;

/* The product in, or added to, acc (panels, BS_BLOCK, 16). */
typedef void (*bs_multiply)(const bs_gemm *gemm, int32_t *acc);

typedef struct bs_tier {
    const char *name;
    int (*runs_here)(void);
    int one_bit_form;                /* the bs_form that is fastest for single bits */
    int min_rows_per_thread;         /* from which on it pays that each thread multiplies rows of its own */
    void (*begin)(void), (*end)(void); /* before a thread multiplies, and after */
    bs_pack_rows pack_rows;
    bs_multiply multiply;
    bs_kernel kernels[BS_OPS];
} bs_tier;

extern const bs_tier *const bs_tiers[]; /* from the best, NULL at the end; the last is plain C */
extern const bs_tier bs_portable_tier;

/* Inputs in a line of slices of so many bits. */
static inline int bs_line_inputs(int bits) { return BS_QUAD * (8 / bits); }

static inline int64_t bs_panels(const bs_matrix *matrix) { return BS_UP(matrix->outputs, BS_PANEL) / BS_PANEL; }

/* Rows that are multiplied at once: of tables, an even number that fits the first cache. */
static inline int bs_rows_at_once(const bs_matrix *matrix) {
    if (matrix->planes == 0 || matrix->plane[0].form[0] != BS_NIBBLES) return BS_BLOCK;
    int64_t fit = BS_TABLE_BYTES / (BS_PACKED_BYTES * matrix->padded);
    return fit < 2 ? 2 : fit > BS_BLOCK ? BS_BLOCK : (int)(fit / 2 * 2);
}

/* The code whose bits begin at bit `first` of a packed row. */
static inline int bs_bits_at(const uint8_t *packed, int64_t first, int bits) {
    int64_t byte = first >> 3;
    int code = packed[byte] >> (first & 7);
    if ((first & 7) + bits > 8) code |= packed[byte + 1] << (8 - (first & 7));
    return code & ((1 << bits) - 1);
}

/* Trit k of a packed row, five to a byte from the lowest digit up: 0, 1 or 2. */
static inline int bs_trit_at(const uint8_t *packed, int64_t k) {
    static const int powers[BS_TRITS] = {1, 3, 9, 27, 81};
    return packed[k / BS_TRITS] / powers[k % BS_TRITS] % 3;
}

/* Whether each thread computes rows of its own from rows of its own. A product does so, for all outputs, where rows
   are many; where they are few, each thread computes all rows of some outputs. */
static inline int bs_own_rows(const bs_run *run, const bs_step *step, int threads) {
    if (step->sync == BS_SYNC_NEVER) return 1;
    int64_t enough = (int64_t)run->tier->min_rows_per_thread * threads;
    return step->sync == BS_SYNC_FEW_ROWS && run->rows[step->output] >= enough;
}

#endif
