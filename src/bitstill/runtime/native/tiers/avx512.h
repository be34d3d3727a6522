/* x86 with AVX-512 and its dot products of bytes: a line is one register, and an instruction adds four products to
   each of 16 outputs. */
#include <immintrin.h>

#ifndef AMX
enum { ONE_BIT_FORM = BS_LINES_1, MIN_ROWS_PER_THREAD = 8 };

static int runs_here(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}
#endif

#define ACCUMULATORS 8 /* registers for sums */

/* Unpacks the i-th quad of sixteen outputs. */
INLINE __m512i unpack_quad(const uint8_t *line, const int bits, const int i) {
    const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(line), i * bits), mask);
}

/* With few rows, several independent sums each, because each addition waits for the previous one. */
INLINE void multiply_few(row_tile tile, const int m, const int bits) {
    const int quads = 8 / bits, chains = BS_MIN(quads, ACCUMULATORS / m);
    const int8_t *codes = tile.codes + tile.first;
    const uint8_t *lines = tile.lines;
    const int64_t stride = tile.stride, n_lines = tile.n_lines;
    __m512i sums[ACCUMULATORS];
#pragma GCC unroll 8
    for (int i = 0; i < m * chains; i++) sums[i] = _mm512_setzero_si512();
    for (int64_t line = 0; line < n_lines; line++, codes += BS_QUAD * quads) {
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            __m512i weights = unpack_quad(lines + line * BS_LINE, bits, i);
#pragma GCC unroll 8
            for (int r = 0; r < m; r++) {
                const int s = i % chains * m + r;
                int32_t quad;
                memcpy(&quad, codes + r * stride + BS_QUAD * i, sizeof quad);
                sums[s] = _mm512_dpbusd_epi32(sums[s], weights, _mm512_set1_epi32(quad));
            }
        }
    }
    const __m128i shift = _mm_cvtsi32_si128(tile.shift);
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) {
        int32_t *to = tile.acc + r * BS_PANEL;
#pragma GCC unroll 8
        for (int i = 1; i < chains; i++) sums[r] = _mm512_add_epi32(sums[r], sums[i * m + r]);
        _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_sll_epi32(sums[r], shift)));
    }
}

INLINE void multiply_rows(row_tile tile, int m, const int bits) {
#define WHILE_ROWS(n) \
    for (; m >= n; m -= n, tile.codes += n * tile.stride, tile.acc += n * BS_PANEL) multiply_few(tile, n, bits)
    WHILE_ROWS(8);
    WHILE_ROWS(4);
    WHILE_ROWS(2);
    WHILE_ROWS(1);
#undef WHILE_ROWS
}
