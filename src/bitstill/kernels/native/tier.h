/* What a tier is: the same steps, compiled for one instruction set. Not for Python. */
#ifndef BITSTILL_TIER_H
#define BITSTILL_TIER_H

#include "bitstill.h"
#include "team.h"

typedef void (*bs_do)(const bs_run *run, const bs_step *step, bs_work *work);

/* Rows of codes (m, padded), m <= BS_BLOCK, in the order in which `multiply` reads them: as they are, or copied. */
typedef const int8_t *(*bs_arrange)(const int8_t *codes, int64_t padded, int m, int8_t *copy);
/* Adds to acc (m, 16) the product, shifted left, of arranged codes from input `first` on and some lines of one panel. */
typedef void (*bs_multiply)(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int bits, int shift, int32_t *acc);

typedef struct {
    const char *name;
    int (*runs_here)(void);
    bs_arrange arrange;
    bs_multiply multiply;
    bs_do steps[BS_OPS];
} bs_tier;

extern const bs_tier *const bs_tiers[]; /* from the best, NULL at the end */

#endif
