/* All tiers of a build against the plainest possible code: for processors and sanitizers that Python does not run
   under. Prints each tier that passes; exits with 1 at the first difference. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitstill.h"

#define UP(n, to) (((n) + (to)-1) / (to) * (to))
#define FLOATS(n) ((float *)zeroed(sizeof(float) * (size_t)(n)))

static uint64_t state = 88172645463325252u; /* Marsaglia's xorshift */
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

/* Memory of exactly that size, so that sanitizers see reads beyond it. */
static void *zeroed(size_t size) {
    void *at = aligned_alloc(BS_ALIGN, UP(size, BS_ALIGN));
    if (!at) exit(2);
    memset(at, 0, UP(size, BS_ALIGN));
    return at;
}

static uint8_t *packed_lines(const uint8_t *codes, int64_t outputs, int64_t inputs, int bits, int form) {
    int64_t padded = UP(inputs, BS_ALIGN), panels = UP(outputs, BS_PANEL) / BS_PANEL;
    uint8_t *lines = zeroed((size_t)(panels * padded * bits / 32 * BS_LINE));
    bs_pack_lines(codes, outputs, inputs, padded, form, 0, lines);
    return lines;
}

static void check_product(const char *tier, int bits, int form) {
    int64_t n = 1 + draw(draw(4) ? 40 : 150), k = 1 + draw(draw(10) ? 300 : 2600), m = 1 + draw(70);
    int64_t padded = UP(k, BS_ALIGN), panels = UP(n, BS_PANEL) / BS_PANEL;
    uint8_t *codes = zeroed(n * k);
    int8_t *rows = zeroed(m * padded);
    int32_t *result = zeroed(sizeof(int32_t) * m * panels * BS_PANEL);
    for (int64_t i = 0; i < n * k; i++) codes[i] = (uint8_t)draw(1 << bits);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++) rows[i * padded + j] = (int8_t)draw(256);
    uint8_t *lines = packed_lines(codes, n, k, bits, form);
    bs_matrix matrix = {.outputs = n, .inputs = k, .padded = padded, .groups = 1, .group = k, .planes = 1};
    matrix.plane[0] = (bs_plane){.lines = {lines}, .bits = {bits}, .form = {form}, .slices = 1};
    bs_product(rows, m, &matrix, 0, result, 1 + (int)draw(3));
    for (int64_t i = 0; i < m; i++)
        for (int64_t o = 0; o < n; o++) {
            int32_t sum = 0;
            for (int64_t j = 0; j < k; j++) sum += codes[o * k + j] * rows[i * padded + j];
            if (sum != result[i * panels * BS_PANEL + o]) fail(tier, "an integer product");
        }
    free(codes), free(lines), free(rows), free(result);
}

enum { WORDS = 50, HEADS = 3, VALUES = 6, THREADS = 3 };

/* Weights of the network below: a table, a norm, and a matrix of one bit. */
typedef struct {
    float *words, *weight, *bias, *scale;
    uint8_t *lines;
} parameters;

static parameters random_parameters(int64_t width) {
    int64_t channels = UP(width, BS_PANEL);
    parameters p = {FLOATS(WORDS * width), FLOATS(channels), FLOATS(channels), FLOATS(channels), NULL};
    uint8_t *codes = zeroed(width * width);
    for (int64_t i = 0; i < WORDS * width; i++) p.words[i] = normal();
    for (int64_t i = 0; i < width; i++) {
        p.weight[i] = 1 + 0.1f * normal(), p.bias[i] = 0.1f * normal();
        p.scale[i] = 0.1f + 0.01f * (float)draw(5);
    }
    for (int64_t i = 0; i < width * width; i++) codes[i] = (uint8_t)draw(2);
    p.lines = packed_lines(codes, width, width, 1, bs_best_form(NULL, 1));
    free(codes);
    return p;
}

typedef struct {
    int64_t texts, length, width;
} batch;

/* Runs steps whose last value but one is the result, (tokens, width). */
static void run_steps(const bs_step *steps, batch b, int64_t padded, float *to) {
    int64_t tokens = b.texts * b.length, offset[VALUES], rows[VALUES], widths[VALUES];
    int64_t bytes = UP(4 * tokens * b.width, BS_ALIGN) + UP(tokens * padded, BS_ALIGN) + 3 * UP(4 * tokens, BS_ALIGN);
    int64_t scratch = bs_scratch_bytes(steps, VALUES, b.length), *starts = zeroed(sizeof(int64_t) * (b.texts + 1));
    char *arena = zeroed(VALUES * bytes), *scratches = zeroed(THREADS * scratch);
    int32_t *ids = zeroed(sizeof(int32_t) * tokens);
    for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)draw(WORDS);
    for (int64_t i = 0; i <= b.texts; i++) starts[i] = i * b.length;
    for (int i = 0; i < VALUES; i++) offset[i] = i * bytes, rows[i] = tokens, widths[i] = b.width;
    widths[2] = padded, rows[5] = b.texts, widths[5] = 2 * HEADS;
    const int32_t *indices[] = {ids};
    bs_run run = {
        .steps = steps, .n_steps = VALUES, .arena = arena, .offset = offset, .rows = rows, .width = widths,
        .indices = indices, .starts = starts, .first_rows = starts, .texts = b.texts, .longest = b.length,
        .samples = b.texts, .scratch = scratches, .scratch_bytes = scratch,
    };
    bs_execute(&run, THREADS);
    memcpy(to, arena + offset[4], sizeof(float) * tokens * b.width);
    free(ids), free(starts), free(arena), free(scratches);
}

/* Look up rows, normalize, quantize, multiply with bias and GELU, attend, with probabilities as codes where texts have
   an odd length: (tokens, width). */
static void run_network(batch b, float *to) {
    int64_t padded = UP(b.width, BS_ALIGN);
    int32_t head_width = (int32_t)(b.width / HEADS);
    state = 1234567 + (uint64_t)(b.texts * 1000 + b.length);
    parameters p = random_parameters(b.width);
    float levels[] = {-1, 1};
    bs_matrix matrix = {
        .outputs = b.width, .inputs = b.width, .padded = padded, .groups = 1, .group = b.width, .planes = 1,
    };
    matrix.plane[0] = (bs_plane){
        .lines = {p.lines}, .bits = {1}, .form = {bs_best_form(NULL, 1)}, .slices = 1, .first = -1, .step = 2,
        .levels = levels, .scale = p.scale,
    };
    bs_table table = {.rows = WORDS, .length = b.width, .dense = p.words};
    bs_step steps[] = {
        {.op = BS_GATHER, .output = 0, .table = &table},
        {.op = BS_NORM, .input = 0, .output = 1, .sync = BS_SYNC_NEVER, .weight = p.weight, .bias = p.bias,
         .epsilon = 1e-6f},
        {.op = BS_QUANTIZE, .input = 1, .output = 2, .sync = BS_SYNC_NEVER,
         .rule = {.bits = 8, .symmetric = 1, .rows_per_range = 1}},
        {.op = BS_LINEAR, .input = 2, .output = 3, .sync = BS_SYNC_FEW_ROWS, .quantized = 1, .matrix = &matrix,
         .epilogue = {{.kind = BS_AFFINE, .shift = p.bias},
                      {.kind = BS_FUNCTION, .function = BS_GELU},
                      {.kind = BS_ADD, .value = 1}}},
        {.op = BS_ATTEND_RANGES, .input = 3, .input_2 = 1, .input_3 = 3, .output = 5, .heads = HEADS,
         .head_width = head_width},
        {.op = BS_ATTEND, .input = 3, .input_2 = 1, .input_3 = 3, .input_4 = 5, .output = 4, .heads = HEADS,
         .head_width = head_width, .quantized = b.length % 2, .rule = {.bits = 8}},
    };
    run_steps(steps, b, padded, to);
    free(p.words), free(p.weight), free(p.bias), free(p.scale), free(p.lines);
}

int main(void) {
    enum { LARGEST = 1 * 71 * 96, BATCHES = 4, PRODUCTS = 40 };
    static float expected[BATCHES][LARGEST], result[LARGEST];
    static const batch batches[BATCHES] = {{1, 1, 48}, {2, 37, 48}, {5, 16, 30}, {1, 71, 96}};
    static const float tolerance = 0.05f; /* a code may round to the other side */
    if (bs_use_tier("portable") != 0) return 2;
    for (int i = 0; i < BATCHES; i++) run_network(batches[i], expected[i]);
    for (int number = 0; bs_tier_name(number); number++) {
        const char *tier = bs_tier_name(number);
        bs_use_tier(tier);
        for (int bits = 1; bits <= 4; bits *= 2)
            for (int i = 0; i < PRODUCTS; i++) check_product(tier, bits, i % 2 ? bits : bs_best_form(NULL, bits));
        for (int i = 0; i < BATCHES; i++) {
            run_network(batches[i], result);
            for (int64_t j = 0; j < batches[i].texts * batches[i].length * batches[i].width; j++)
                if (!(fabsf(result[j] - expected[i][j]) <= tolerance)) fail(tier, "a network");
        }
        printf("%s: correct\n", tier);
    }
    return 0;
}
