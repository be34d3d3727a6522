/* A tier: all steps, compiled for one instruction set. Not part of the interface for Python. */
#ifndef BITSTILL_TIER_H
#define BITSTILL_TIER_H

#include "bitstill.h"
#include "threads.h"

#define BS_PANELS_AT_ONCE 4     /* maximum number of panels multiplied at once */
#define BS_TILE (BS_BLOCK * BS_PANEL)
#define BS_PACKED_BYTES 8       /* maximum size of a packed code in bytes */
#define BS_QUERIES 8            /* queries processed at once */
#define BS_TABLE_BYTES (24 << 10) /* tables that are read repeatedly: with the weights they fit into the L1 cache */
#define BS_TRITS 5              /* trits in a byte */

#define BS_UP(n, to) (((n) + (to)-1) / (to) * (to))
#define BS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define BS_MAX(a, b) ((a) > (b) ? (a) : (b))

typedef void (*bs_kernel)(const bs_run *run, const bs_step *step, bs_member *member);

/* Rows of codes (m, padded), m <= BS_BLOCK, in the layout that `multiply` reads for weights in `form`: the rows
   themselves, or a copy of BS_BLOCK rows with up to BS_PACKED_BYTES per code. */
typedef const int8_t *(*bs_pack_rows)(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy);

enum bs_store { BS_OVERWRITE, BS_ACCUMULATE };

/* A product: packed codes of m rows, starting at input `first`, times `n_lines` lines of each of `panels` panels. */
typedef struct {
    const int8_t *codes;
    int64_t padded, first;
    const uint8_t *lines;         /* lines of the first panel */
    int64_t n_lines, panel_bytes; /* lines to multiply in a panel, and bytes from one panel to the next */
    int m, panels, form;
    int shift;            /* left shift of the product */
    enum bs_store result; /* whether the product overwrites `acc` or is added to it */
} bs_gemm;

/* Stores the product in acc (panels, BS_BLOCK, 16), or adds it. */
typedef void (*bs_multiply)(const bs_gemm *gemm, int32_t *acc);

typedef struct bs_tier {
    const char *name;
    int (*runs_here)(void);
    int one_bit_form;                /* the fastest bs_form for single bits */
    int min_rows_per_thread;         /* minimum for which threads split rows instead of outputs */
    void (*begin)(void), (*end)(void); /* called before and after a thread multiplies */
    bs_pack_rows pack_rows;
    bs_multiply multiply;
    bs_kernel kernels[BS_OPS];
} bs_tier;

extern const bs_tier *const bs_tiers[]; /* best first, NULL at the end; the last is plain C */
extern const bs_tier bs_portable_tier;

/* Inputs in a line of slices of `bits` bits. */
static inline int bs_line_inputs(int bits) { return BS_QUAD * (8 / bits); }

static inline int64_t bs_panels(const bs_matrix *matrix) { return BS_UP(matrix->outputs, BS_PANEL) / BS_PANEL; }

/* Rows multiplied at once; with tables, an even number that fits into the L1 cache. */
static inline int bs_rows_at_once(const bs_matrix *matrix) {
    if (matrix->planes == 0 || matrix->plane[0].form[0] != BS_NIBBLES) return BS_BLOCK;
    int64_t fit = BS_TABLE_BYTES / (BS_PACKED_BYTES * matrix->padded);
    return fit < 2 ? 2 : fit > BS_BLOCK ? BS_BLOCK : (int)(fit / 2 * 2);
}

/* Code that starts at bit `first` of a packed row. */
static inline int bs_bits_at(const uint8_t *packed, int64_t first, int bits) {
    int64_t byte = first >> 3;
    int code = packed[byte] >> (first & 7);
    if ((first & 7) + bits > 8) code |= packed[byte + 1] << (8 - (first & 7));
    return code & ((1 << bits) - 1);
}

/* Trit k of a packed row (0, 1 or 2); five per byte, lowest digit first. */
static inline int bs_trit_at(const uint8_t *packed, int64_t k) {
    static const int powers[BS_TRITS] = {1, 3, 9, 27, 81};
    return packed[k / BS_TRITS] / powers[k % BS_TRITS] % 3;
}

/* Whether each thread computes its own rows from its own rows. A product does so, for all outputs, if there are many
   rows; if there are few, each thread computes all rows of some outputs. */
static inline int bs_own_rows(const bs_run *run, const bs_step *step, int threads) {
    if (step->sync == BS_SYNC_NEVER) return 1;
    int64_t enough = (int64_t)run->tier->min_rows_per_thread * threads;
    return step->sync == BS_SYNC_FEW_ROWS && run->rows[step->output] >= enough;
}

#endif
