/* All tiers of a build against the plainest possible code: for processors and sanitizers that Python does not run under.
   Prints what it has tried; exits with 1 at the first difference. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitstill.h"

#define UP(n, to) (((n) + (to)-1) / (to) * (to))

static uint64_t state = 88172645463325252u;
static uint32_t draw(uint32_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 33) % below;
}
static float normal(void) {
    float x = 0;
    for (int i = 0; i < 12; i++) x += (float)draw(1 << 20) / (1 << 20);
    return x - 6;
}

static void fail(const char *tier, const char *what) {
    printf("%s: %s differs\n", tier, what);
    exit(1);
}

/* Memory of exactly that size, so that reading beyond it is seen. */
static void *room(size_t size) {
    void *at = aligned_alloc(64, UP(size, 64));
    if (!at) exit(2);
    memset(at, 0, UP(size, 64));
    return at;
}

static void products(const char *tier, int bits, int form) {
    int64_t n = 1 + draw(draw(4) ? 40 : 150), k = 1 + draw(draw(10) ? 300 : 2600), m = 1 + draw(70), padded = UP(k, BS_ALIGN), panels = UP(n, BS_PANEL) / BS_PANEL;
    uint8_t *codes = room(n * k), *lines = room(panels * padded * bits / 32 * BS_LINE);
    int8_t *rows = room(m * padded);
    int32_t *found = room(4 * m * panels * BS_PANEL);
    for (int64_t i = 0; i < n * k; i++) codes[i] = (uint8_t)draw(1 << bits);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++) rows[i * padded + j] = (int8_t)draw(256);
    bs_pack_lines(codes, n, k, padded, form, 0, lines);
    bs_matrix matrix = {.outputs = n, .inputs = k, .padded = padded, .groups = 1, .group = k, .planes = 1};
    matrix.plane[0] = (bs_plane){.lines = {lines}, .bits = {bits}, .form = {form}, .slices = 1};
    bs_product(rows, m, &matrix, 0, found, 1 + (int)draw(3));
    for (int64_t i = 0; i < m; i++)
        for (int64_t o = 0; o < n; o++) {
            int32_t sum = 0;
            for (int64_t j = 0; j < k; j++) sum += codes[o * k + j] * rows[i * padded + j];
            if (sum != found[i * panels * BS_PANEL + o]) fail(tier, "an integer product");
        }
    free(codes), free(lines), free(rows), free(found);
}

/* Look up rows, normalize, quantize, multiply with bias and GELU, attend, with probabilities as codes where texts have an odd
   length: (tokens, width). Weights are of one bit. */
static void network(float *to, int64_t texts, int64_t length, int64_t width) {
    enum { WORDS = 50 };
    int64_t tokens = texts * length, padded = UP(width, BS_ALIGN), panels = UP(width, BS_PANEL) / BS_PANEL;
    state = 1234567 + (uint64_t)(texts * 1000 + length);
    float *words = room(4 * WORDS * width), *by = room(4 * UP(width, 16)), *plus = room(4 * UP(width, 16)), *scale = room(4 * panels * 16);
    uint8_t *codes = room(width * width), *lines = room(panels * padded / 32 * BS_LINE);
    int32_t *ids = room(4 * tokens);
    int64_t *starts = room(8 * (texts + 1));
    for (int64_t i = 0; i < WORDS * width; i++) words[i] = normal();
    for (int64_t i = 0; i < width; i++) by[i] = 1 + 0.1f * normal(), plus[i] = 0.1f * normal(), scale[i] = 0.1f + 0.01f * (float)draw(5);
    for (int64_t i = 0; i < width * width; i++) codes[i] = (uint8_t)draw(2);
    for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)draw(WORDS);
    for (int64_t i = 0; i <= texts; i++) starts[i] = i * length;
    int form = bs_best_form(NULL, 1);
    bs_pack_lines(codes, width, width, padded, form, 0, lines);
    float levels[] = {-1, 1};
    bs_matrix matrix = {.outputs = width, .inputs = width, .padded = padded, .groups = 1, .group = width, .planes = 1};
    matrix.plane[0] = (bs_plane){.lines = {lines}, .bits = {1}, .form = {form}, .slices = 1, .first = -1, .step = 2, .levels = levels, .scale = scale};
    bs_table table = {.rows = WORDS, .length = width, .dense = words};
    bs_step steps[] = {
        {.op = BS_GATHER, .output = 0, .table = &table},
        {.op = BS_NORM, .input = 0, .output = 1, .by_rows = BS_OWN_ROWS, .by = by, .plus = plus, .epsilon = 1e-6f},
        {.op = BS_QUANTIZE, .input = 1, .output = 2, .by_rows = BS_OWN_ROWS, .rule = {.bits = 8, .symmetric = 1, .span = 1}},
        {.op = BS_LINEAR, .input = 2, .output = 3, .by_rows = BS_OWN_ROWS_IF_MANY, .coded = 1, .matrix = &matrix,
         .tail = {{.kind = BS_AFFINE, .plus = plus}, {.kind = BS_FUNCTION, .function = BS_GELU}, {.kind = BS_ADD, .value = 1}}},
        {.op = BS_ATTEND_RANGES, .input = 3, .input_2 = 1, .input_3 = 3, .output = 5, .heads = 3, .head_width = (int32_t)(width / 3)},
        {.op = BS_ATTEND, .input = 3, .input_2 = 1, .input_3 = 3, .input_4 = 5, .output = 4, .heads = 3, .head_width = (int32_t)(width / 3),
         .coded = length % 2, .rule = {.bits = 8}},
    };
    int64_t bytes = UP(4 * tokens * width, 64) + UP(tokens * padded, 64) + 3 * UP(4 * tokens, 64), offset[6], rows[6], widths[6];
    for (int i = 0; i < 6; i++) offset[i] = i * bytes, rows[i] = i == 5 ? texts : tokens, widths[i] = i == 5 ? 6 : i == 2 ? padded : width;
    const int32_t *indices[] = {ids};
    int64_t scratch = bs_scratch_bytes(steps, 6, length);
    char *arena = room(6 * bytes), *scratches = room(3 * scratch);
    bs_run run = {.steps = steps, .n_steps = 6, .arena = arena, .offset = offset, .rows = rows, .width = widths, .indices = indices,
                  .starts = starts, .first = starts, .texts = texts, .longest = length, .samples = texts, .scratch = scratches, .scratch_bytes = scratch};
    bs_execute(&run, 3);
    memcpy(to, arena + offset[4], sizeof(float) * tokens * width);
    free(words), free(by), free(plus), free(scale), free(codes), free(lines), free(ids), free(starts), free(arena), free(scratches);
}

int main(void) {
    enum { MOST = 5 * 37 * 48 };
    static float wanted[4][MOST], found[MOST];
    static const int64_t sizes[4][3] = {{1, 1, 48}, {2, 37, 48}, {5, 16, 30}, {1, 71, 96}};
    if (bs_use_tier("portable") != 0) return 2;
    for (int i = 0; i < 4; i++) network(wanted[i], sizes[i][0], sizes[i][1], sizes[i][2]);
    for (int number = 0; bs_tier_name(number); number++) {
        const char *tier = bs_tier_name(number);
        bs_use_tier(tier);
        for (int bits = 1; bits <= 4; bits *= 2)
            for (int i = 0; i < 40; i++) products(tier, bits, i % 2 ? bits : bs_best_form(NULL, bits));
        for (int i = 0; i < 4; i++) {
            network(found, sizes[i][0], sizes[i][1], sizes[i][2]);
            for (int64_t j = 0; j < sizes[i][0] * sizes[i][1] * sizes[i][2]; j++)
                if (!(fabsf(found[j] - wanted[i][j]) <= 0.05f)) fail(tier, "a network"); /* a code may round to the other side */
        }
        printf("%s: as it should be\n", tier);
    }
    return 0;
}
