/* Tiers that this processor can run, and the one in use. */
#include <stdlib.h>
#include <string.h>

#include "tier.h"

extern const bs_tier bs_amx_tier, bs_avx512_tier, bs_avxvnni_tier, bs_avx2_tier, bs_neon_tier;

const bs_tier *const bs_tiers[] = {
#if defined(BS_AMX)
    &bs_amx_tier,
#endif
#if defined(BS_AVX512)
    &bs_avx512_tier,
#endif
#if defined(BS_AVXVNNI)
    &bs_avxvnni_tier,
#endif
#if defined(BS_AVX2)
    &bs_avx2_tier,
#endif
#if defined(BS_NEON)
    &bs_neon_tier,
#endif
    &bs_portable_tier, NULL};

enum { MAX_TIERS = 8 };

static const bs_tier *_Atomic selected;

/* Sizes of a trial product: more rows than a tile of any tier, and lines skipped at both ends. */
enum { ROWS = 21, PADDED = 384, END = 352, LATER = 32, PANELS = BS_PANELS_AT_ONCE, OUTPUTS = PANELS * BS_PANEL };

typedef struct {
    int8_t rows[ROWS * PADDED], packed[BS_BLOCK * PADDED * BS_PACKED_BYTES];
    uint8_t codes[OUTPUTS * PADDED];
    struct {
        const bs_tier *tier;
        uint8_t lines[OUTPUTS * PADDED];
        int32_t sums[PANELS * BS_TILE];
    } side[2]; /* the tier under test, and plain C */
    uint32_t random;
} trial;

/* The linear congruential generator of Numerical Recipes. */
static uint32_t next_random(trial *t) { return t->random = t->random * 1664525 + 1013904223; }

/* Product of the first m rows, starting at input `first`. */
static void multiply_trial(trial *t, int side, int bits, int first, int m) {
    const bs_tier *tier = t->side[side].tier;
    int form = bs_best_form(tier, bits), inputs = bs_line_inputs(bits);
    bs_gemm gemm = {
        .codes = tier->pack_rows(t->rows, PADDED, m, form, t->packed), .padded = PADDED, .first = first,
        .lines = t->side[side].lines + first / inputs * BS_LINE, .n_lines = (END - first) / inputs,
        .panel_bytes = PADDED / inputs * BS_LINE, .m = m, .panels = PANELS, .form = form, .shift = m % 2 ? 0 : 1,
        .result = m % 2 ? BS_OVERWRITE : BS_ACCUMULATE,
    };
    memset(t->side[side].sums, 0, sizeof t->side[side].sums);
    tier->multiply(&gemm, t->side[side].sums);
}

/* Whether a tier agrees with plain C on slices of `bits` bits, from the first input and from a later one. */
static int multiplies_slices(trial *t, int bits) {
    for (int i = 0; i < OUTPUTS * PADDED; i++) t->codes[i] = (uint8_t)(next_random(t) >> (32 - bits));
    for (int side = 0; side < 2; side++) {
        int form = bs_best_form(t->side[side].tier, bits);
        bs_pack_lines(t->codes, OUTPUTS, PADDED, PADDED, form, 0, t->side[side].lines);
    }
    for (int first = 0; first <= LATER; first += LATER)
        for (int m = 1; m <= ROWS; m += 5) {
            for (int side = 0; side < 2; side++) multiply_trial(t, side, bits, first, m);
            if (memcmp(t->side[0].sums, t->side[1].sums, sizeof t->side[0].sums) != 0) return 0;
        }
    return 1;
}

static int multiplies(const bs_tier *tier) {
    trial *t = malloc(sizeof *t);
    if (!t) return 0;
    t->random = 1;
    t->side[0].tier = tier, t->side[1].tier = &bs_portable_tier;
    for (int i = 0; i < ROWS * PADDED; i++) t->rows[i] = (int8_t)(next_random(t) >> 24);
    tier->begin();
    int equal = multiplies_slices(t, 1) && multiplies_slices(t, 2) && multiplies_slices(t, 4);
    tier->end();
    free(t);
    return equal;
}

/* Tests each tier once at run time, because no test machine has every processor. */
static int usable(int index) {
    enum { UNKNOWN, YES, NO };
    static _Atomic int verdict[MAX_TIERS];
    const bs_tier *tier = bs_tiers[index];
    if (verdict[index] == UNKNOWN)
        verdict[index] = tier == &bs_portable_tier || (tier->runs_here() && multiplies(tier)) ? YES : NO;
    return verdict[index] == YES;
}

const bs_tier *bs_tier_in_use(void) {
    for (int i = 0; !selected; i++)
        if (usable(i)) selected = bs_tiers[i]; /* the last one, plain C, always is */
    return selected;
}

const char *bs_tier_name(int index) {
    for (int i = 0; bs_tiers[i]; i++)
        if (usable(i) && index-- == 0) return bs_tiers[i]->name;
    return NULL;
}

int bs_use_tier(const char *name) {
    for (int i = 0; bs_tiers[i]; i++)
        if (strcmp(bs_tiers[i]->name, name) == 0 && usable(i)) {
            selected = bs_tiers[i];
            return 0;
        }
    return -1;
}

const char *bs_name_of(const bs_tier *tier) { return tier->name; }

int bs_best_form(const bs_tier *tier, int bits) {
    return bits == 1 ? (tier ? tier : bs_tier_in_use())->one_bit_form : bits;
}
