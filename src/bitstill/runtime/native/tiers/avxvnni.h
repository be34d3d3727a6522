/* x86 with dot products of bytes in 32-byte registers, without AVX-512: half a line at once. */
#include <cpuid.h>
#include <immintrin.h>

enum { ONE_BIT_FORM = BS_LINES_1, MIN_ROWS_PER_THREAD = 8 };

/* Intel's manual: CPUID leaf 7, subleaf 1, EAX bit 4. */
#define CPUID_FEATURES 7
#define CPUID_AVX_VNNI 4

/* Not every compiler knows this feature by name; AVX2 implies that the system saves these registers. */
static int runs_here(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __get_cpuid_count(CPUID_FEATURES, 1, &a, &b, &c, &d) && (a >> CPUID_AVX_VNNI & 1);
}

#define MAX_FEW 4
#define HALF_LINE (BS_LINE / 2)
#define HALF_PANEL (BS_PANEL / 2)

INLINE void multiply_few(row_tile tile, const int m, const int bits) {
    const int quads = 8 / bits;
    const int8_t *codes = tile.codes + tile.first;
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
    __m256i sums[MAX_FEW][2];
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int64_t line = 0; line < tile.n_lines; line++, codes += BS_QUAD * quads) {
        __m256i first = _mm256_loadu_si256((const __m256i *)(tile.lines + line * BS_LINE));
        __m256i second = _mm256_loadu_si256((const __m256i *)(tile.lines + line * BS_LINE + HALF_LINE));
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const __m128i down = _mm_cvtsi32_si128(i * bits);
            __m256i low = _mm256_and_si256(_mm256_srl_epi16(first, down), mask);
            __m256i high = _mm256_and_si256(_mm256_srl_epi16(second, down), mask);
#pragma GCC unroll 4
            for (int r = 0; r < m; r++) {
                int32_t quad;
                memcpy(&quad, codes + r * tile.stride + BS_QUAD * i, sizeof quad);
                __m256i four = _mm256_set1_epi32(quad);
                sums[r][0] = _mm256_dpbusd_avx_epi32(sums[r][0], low, four);
                sums[r][1] = _mm256_dpbusd_avx_epi32(sums[r][1], high, four);
            }
        }
    }
    const __m128i shift = _mm_cvtsi32_si128(tile.shift);
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
        for (int half = 0; half < 2; half++) {
            __m256i *to = (__m256i *)(tile.acc + r * BS_PANEL + HALF_PANEL * half);
            __m256i product = _mm256_sll_epi32(sums[r][half], shift);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), product));
        }
}

INLINE void multiply_rows(row_tile tile, int m, const int bits) {
    for (; m >= MAX_FEW; m -= MAX_FEW, tile.codes += MAX_FEW * tile.stride, tile.acc += MAX_FEW * BS_PANEL)
        multiply_few(tile, MAX_FEW, bits);
    for (; m >= 1; m--, tile.codes += tile.stride, tile.acc += BS_PANEL) multiply_few(tile, 1, bits);
}
