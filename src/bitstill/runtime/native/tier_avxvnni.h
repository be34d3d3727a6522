/* x86 with dot products of bytes in registers of 32, and without AVX-512: half a line at once. */
#include <cpuid.h>
#include <immintrin.h>

/* Not every compiler's list of features has this one; that the system keeps such registers follows from AVX2. */
static int runs_here(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

#define TILE 4

INLINE void tile_of(const int8_t *codes, int64_t stride, const int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
    const int quads = 8 / bits;
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
    __m256i sums[TILE][2];
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int64_t line = 0; line < n_lines; line++, codes += 4 * quads) {
        __m256i first = _mm256_loadu_si256((const __m256i *)(lines + line * BS_LINE));
        __m256i second = _mm256_loadu_si256((const __m256i *)(lines + line * BS_LINE + 32));
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const __m128i down = _mm_cvtsi32_si128(i * bits);
            __m256i weights[2] = {_mm256_and_si256(_mm256_srl_epi16(first, down), mask), _mm256_and_si256(_mm256_srl_epi16(second, down), mask)};
#pragma GCC unroll 4
            for (int r = 0; r < m; r++) {
                int32_t quad;
                memcpy(&quad, codes + r * stride + 4 * i, 4);
                __m256i four = _mm256_set1_epi32(quad);
                sums[r][0] = _mm256_dpbusd_avx_epi32(sums[r][0], weights[0], four);
                sums[r][1] = _mm256_dpbusd_avx_epi32(sums[r][1], weights[1], four);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
        for (int half = 0; half < 2; half++) {
            __m256i *to = (__m256i *)(acc + r * BS_PANEL + 8 * half);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_sll_epi32(sums[r][half], _mm_cvtsi32_si128(shift))));
        }
}

INLINE void rows_of(const int8_t *codes, int64_t stride, int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
    for (; m >= 4; m -= 4, codes += 4 * stride, acc += 4 * BS_PANEL) tile_of(codes, stride, 4, lines, n_lines, bits, shift, acc);
    for (; m >= 1; m--, codes += stride, acc += BS_PANEL) tile_of(codes, stride, 1, lines, n_lines, bits, shift, acc);
}

static void multiply_panel(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int form, int shift, int32_t *acc) {
    switch (form) {
    case BS_LINES_1: rows_of(codes + first, padded, m, lines, n_lines, 1, shift, acc); break;
    case BS_LINES_2: rows_of(codes + first, padded, m, lines, n_lines, 2, shift, acc); break;
    default: rows_of(codes + first, padded, m, lines, n_lines, 4, shift, acc);
    }
}
