/* x86 with AVX-512 and its dot products of bytes: a line is one register, four products and their sum for each of 16 outputs. */
#include <immintrin.h>

#ifndef AMX
static int runs_here(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("fma");
}
#endif

#define TILE 8

/* The i-th quad of sixteen outputs. */
INLINE __m512i unpacked(const uint8_t *line, const int bits, const int i) {
    const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(line), i * bits), mask);
}

INLINE void tile_of(const int8_t *codes, int64_t stride, const int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
    const int quads = 8 / bits, chains = LEAST(quads, TILE / m); /* of few rows several sums each, because adding takes a while */
    __m512i sums[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < m * chains; i++) sums[i] = _mm512_setzero_si512();
    for (int64_t line = 0; line < n_lines; line++, codes += 4 * quads) {
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            __m512i weights = unpacked(lines + line * BS_LINE, bits, i);
#pragma GCC unroll 8
            for (int r = 0; r < m; r++) {
                int32_t quad;
                memcpy(&quad, codes + r * stride + 4 * i, 4);
                sums[i % chains * m + r] = _mm512_dpbusd_epi32(sums[i % chains * m + r], weights, _mm512_set1_epi32(quad));
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) {
        int32_t *to = acc + r * BS_PANEL;
#pragma GCC unroll 8
        for (int i = 1; i < chains; i++) sums[r] = _mm512_add_epi32(sums[r], sums[i * m + r]);
        _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_sll_epi32(sums[r], _mm_cvtsi32_si128(shift))));
    }
}

INLINE void rows_of(const int8_t *codes, int64_t stride, int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
#define ROWS(n) for (; m >= n; m -= n, codes += n * stride, acc += n * BS_PANEL) tile_of(codes, stride, n, lines, n_lines, bits, shift, acc)
    ROWS(8);
    ROWS(4);
    ROWS(2);
    ROWS(1);
#undef ROWS
}

static void multiply_panel(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int form, int shift, int32_t *acc) {
    switch (form) {
    case BS_LINES_1: rows_of(codes + first, padded, m, lines, n_lines, 1, shift, acc); break;
    case BS_LINES_2: rows_of(codes + first, padded, m, lines, n_lines, 2, shift, acc); break;
    default: rows_of(codes + first, padded, m, lines, n_lines, 4, shift, acc);
    }
}
