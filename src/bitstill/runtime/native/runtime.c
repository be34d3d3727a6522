/* What Python calls. */
#include <stdlib.h>
#include <string.h>

#include "tier.h"

#define DECLARE(name) extern const bs_tier bs_tier_##name
DECLARE(portable);
#if defined(BS_AVX2)
DECLARE(avx2);
#endif
#if defined(BS_AVXVNNI)
DECLARE(avxvnni);
#endif
#if defined(BS_AVX512)
DECLARE(avx512);
#endif
#if defined(BS_AMX)
DECLARE(amx);
#endif
#if defined(BS_NEON)
DECLARE(neon);
#endif

const bs_tier *const bs_tiers[] = {
#if defined(BS_AMX)
    &bs_tier_amx,
#endif
#if defined(BS_AVX512)
    &bs_tier_avx512,
#endif
#if defined(BS_AVXVNNI)
    &bs_tier_avxvnni,
#endif
#if defined(BS_AVX2)
    &bs_tier_avx2,
#endif
#if defined(BS_NEON)
    &bs_tier_neon,
#endif
    &bs_tier_portable, NULL};

static const bs_tier *_Atomic chosen;

static int best_form(const bs_tier *of, int bits) { return bits == 1 && of->nibbles ? BS_NIBBLES : bits; }

/* Whether a tier multiplies as plain C does, in the form that it likes best, from the first input and from a later one. */
static int multiplies(const bs_tier *tried) {
    enum { ROWS = 21, PADDED = 384, USED = 352, PANELS = BS_TOGETHER };
    int8_t rows[ROWS * PADDED], *copy = malloc(BS_BLOCK * PADDED * BS_ROOM);
    uint8_t codes[PANELS * BS_PANEL * PADDED], lines[2][PANELS * BS_PANEL * PADDED];
    uint32_t state = 1;
    int same = copy != NULL;
    if (!same) return 0;
    tried->enter();
    for (int i = 0; i < ROWS * PADDED; i++) rows[i] = (int8_t)((state = state * 1664525 + 1013904223) >> 24);
    for (int bits = 1; bits <= 4 && same; bits *= 2) {
        for (int i = 0; i < PANELS * BS_PANEL * PADDED; i++) codes[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> (32 - bits));
        int form = best_form(tried, bits), per_line = 4 * (8 / bits);
        bs_pack_lines(codes, PANELS * BS_PANEL, PADDED, PADDED, form, 0, lines[0]);
        bs_pack_lines(codes, PANELS * BS_PANEL, PADDED, PADDED, bits, 0, lines[1]);
        for (int first = 0; first <= 32; first += 32)
            for (int m = 1; m <= ROWS; m += 5) {
                int32_t sums[2][PANELS * BS_TILE] = {{0}}, begins = m % 2;
                int64_t skip = first / per_line * BS_LINE, count = (USED - first) / per_line, apart = PADDED / per_line * BS_LINE;
                bs_factors of = {tried->arrange(rows, PADDED, m, form, copy), PADDED, first, lines[0] + skip, count, apart, m, PANELS, form, !begins, begins};
                bs_factors plainly = {rows, PADDED, first, lines[1] + skip, count, apart, m, PANELS, bits, !begins, begins};
                tried->multiply(&of, sums[0]);
                bs_tier_portable.multiply(&plainly, sums[1]);
                same = same && memcmp(sums[0], sums[1], sizeof sums[0]) == 0;
            }
    }
    tried->leave();
    free(copy);
    return same;
}

/* Tried once, because nobody has every processor to try it on beforehand. */
static int usable(int index) {
    enum { UNKNOWN, YES, NO };
    static _Atomic int found[8];
    const bs_tier *tried = bs_tiers[index];
    if (found[index] == UNKNOWN) found[index] = tried->runs_here() && (tried == &bs_tier_portable || multiplies(tried)) ? YES : NO;
    return found[index] == YES;
}

static const bs_tier *tier(void) {
    for (int i = 0; !chosen; i++)
        if (usable(i)) chosen = bs_tiers[i]; /* plain C, the last, always is */
    return chosen;
}

const char *bs_tier_name(int index) {
    for (int i = 0; bs_tiers[i]; i++)
        if (usable(i) && index-- == 0) return bs_tiers[i]->name;
    return NULL;
}

int bs_use_tier(const char *name) {
    for (int i = 0; bs_tiers[i]; i++)
        if (strcmp(bs_tiers[i]->name, name) == 0 && usable(i)) {
            chosen = bs_tiers[i];
            return 0;
        }
    return -1;
}

const bs_tier *bs_tier_in_use(void) { return tier(); }

const char *bs_name_of(const bs_tier *of) { return of->name; }

int bs_best_form(const bs_tier *of, int bits) { return best_form(of ? of : tier(), bits); }

int bs_interface(void) { return BS_INTERFACE; }

int64_t bs_sizeof(int which) {
    static const int64_t sizes[] = {sizeof(bs_table), sizeof(bs_matrix), sizeof(bs_step), sizeof(bs_run)};
    return which >= 0 && which < 4 ? sizes[which] : -1;
}

/* Four codes of a bit each: the first in the lowest bit. */
static inline uint8_t nibble_of(const uint8_t *codes) {
    return (uint8_t)(codes[0] | codes[1] << 1 | codes[2] << 2 | codes[3] << 3);
}

void bs_pack_lines(const uint8_t *codes, int64_t outputs, int64_t inputs, int64_t padded, int form, int shift, uint8_t *lines) {
    int bits = form == BS_NIBBLES ? 1 : form;
    int64_t panels = UP(outputs, BS_PANEL) / BS_PANEL, quads = 8 / bits, count = padded / (4 * quads);
    memset(lines, 0, (size_t)(panels * count * BS_LINE));
    for (int64_t n = 0; n < outputs; n++) {
        const uint8_t *row = codes + n * inputs;
        uint8_t *panel = lines + n / BS_PANEL * count * BS_LINE;
        int64_t k = 0;
        if (form == BS_NIBBLES && shift == 0)
            for (; k + 32 <= inputs; k += 32) { /* a whole line: four codes of a bit, in bytes, to a nibble by one product */
                uint8_t *line = panel + k / 32 * BS_LINE + n % BS_PANEL;
                for (int v = 0; v < 2; v++)
                    for (int h = 0; h < 2; h++) {
                        uint8_t low = nibble_of(row + k + 16 * v + 4 * h), high = nibble_of(row + k + 16 * v + 8 + 4 * h);
                        line[32 * v + 16 * h] = (uint8_t)(low | high << 4);
                    }
            }
        for (; k < inputs; k++) {
            int64_t quad = k / 4, of_line = quad % quads;
            uint8_t *line = panel + quad / quads * BS_LINE, code = row[k] >> shift & ((1 << bits) - 1);
            if (form == BS_NIBBLES) line[of_line / 4 * 32 + of_line % 2 * 16 + n % BS_PANEL] |= (uint8_t)(code << (of_line / 2 % 2 * 4 + k % 4));
            else line[4 * (n % BS_PANEL) + k % 4] |= (uint8_t)(code << (of_line * bits));
        }
    }
}

void bs_unpack_rows(const uint8_t *packed, int64_t rows, int64_t length, int64_t bytes, int layout, int bits, uint8_t *codes) {
    static const int powers[5] = {1, 3, 9, 27, 81};
    for (int64_t row = 0; row < rows; row++, packed += bytes, codes += length) {
        if (layout == 2) memcpy(codes, packed, (size_t)length);
        else if (layout == 1)
            for (int64_t k = 0; k < length; k++) codes[k] = packed[k / 5] / powers[k % 5] % 3;
        else if (bits == 1) {
            for (int64_t k = 0; k < length / 8; k++)
                for (int i = 0; i < 8; i++) codes[8 * k + i] = packed[k] >> i & 1;
            for (int64_t k = length / 8 * 8; k < length; k++) codes[k] = packed[k / 8] >> (k % 8) & 1;
        } else
            for (int64_t k = 0; k < length; k++) codes[k] = (uint8_t)bits_at(packed, k * bits, bits);
    }
}

typedef struct {
    const int8_t *codes;
    int64_t m;
    const bs_matrix *matrix;
    int plane;
    int32_t *result;
} product;

static void multiply_all(void *what, bs_work *work) {
    const product *given = what;
    const bs_matrix *matrix = given->matrix;
    const bs_plane *plane = &matrix->plane[given->plane];
    int64_t panels = UP(matrix->outputs, BS_PANEL) / BS_PANEL, from, to;
    int8_t *copy = malloc((size_t)(BS_BLOCK * matrix->padded * BS_ROOM));
    if (!copy) return;
    bs_share(work, panels, &from, &to);
    int64_t block = bs_rows_at_once(matrix);
    tier()->enter();
    for (int64_t row = 0; row < given->m; row += block) {
        int m = (int)(given->m - row < block ? given->m - row : block);
        const int8_t *arranged = tier()->arrange(given->codes + row * matrix->padded, matrix->padded, m, plane->form[0], copy);
        for (int64_t panel = from; panel < to; panel += BS_TOGETHER) {
            int together = (int)(to - panel < BS_TOGETHER ? to - panel : BS_TOGETHER);
            _Alignas(64) int32_t acc[BS_TOGETHER * BS_TILE];
            for (int s = 0; s < plane->slices; s++) {
                int64_t lines = matrix->padded / (4 * (8 / plane->bits[s]));
                bs_factors of = {arranged, matrix->padded, 0, plane->lines[s] + panel * lines * BS_LINE, lines, lines * BS_LINE, m,
                                 together, plane->form[s], plane->shift[s], s == 0};
                tier()->multiply(&of, acc);
            }
            for (int j = 0; j < together; j++)
                for (int i = 0; i < m; i++)
                    memcpy(given->result + ((row + i) * panels + panel + j) * BS_PANEL, acc + j * BS_TILE + i * BS_PANEL, sizeof(int32_t) * BS_PANEL);
        }
    }
    tier()->leave();
    free(copy);
}

void bs_product(const int8_t *codes, int64_t m, const bs_matrix *matrix, int plane, int32_t *result, int threads) {
    product given = {codes, m, matrix, plane, result};
    tier();
    bs_together(multiply_all, &given, threads);
}

int64_t bs_scratch_bytes(const bs_step *steps, int64_t n, int64_t longest) {
    int64_t most = 64;
    for (int64_t i = 0; i < n; i++) {
        const bs_step *step = &steps[i];
        int64_t bytes = 0;
        const bs_matrix *matrix = step->matrix;
        int64_t coded = matrix ? BS_BLOCK * 4 * matrix->groups + bs_rows_at_once(matrix) * matrix->padded * BS_ROOM : 0;
        if (step->op == BS_LINEAR) bytes = step->coded ? coded : 4 * BS_PANEL * matrix->inputs;
        if (step->op == BS_CONVOLVE) bytes = step->coded ? coded + BS_BLOCK * matrix->padded : 4 * (BS_BLOCK + BS_PANEL) * step->matrix->inputs;
        /* keys, values, scores of a few queries, and one query's as codes */
        if (step->op == BS_ATTEND || step->op == BS_ATTEND_RANGES)
            bytes = UP(longest, BS_PANEL) * (4 * (step->head_width + UP(step->head_width, BS_PANEL) + BS_QUERIES) + 1);
        if (bytes > most) most = bytes;
    }
    return UP(most, 64);
}

static void execute(void *what, bs_work *work) {
    bs_run *run = what;
    const bs_tier *with = run->tier;
    with->enter();
    for (int64_t i = 0; i < run->n_steps; i++) {
        const bs_step *step = &run->steps[i];
        if (!own_rows(run, step, work->threads)) bs_wait(work);
        with->steps[step->op](run, step, work);
    }
    with->leave();
}

void bs_execute(bs_run *run, int threads) {
    if (!run->tier) run->tier = tier();
    bs_together(execute, run, threads);
}
