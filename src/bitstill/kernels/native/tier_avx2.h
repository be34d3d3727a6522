/* x86 with AVX2: products of unsigned by signed bytes are added in pairs to 16 bits, and there for as long as they fit. */
#include <immintrin.h>

static int runs_here(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define TILE 8

static inline int tile_rows(int left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* Rows in tiles of 8, 4, 2 and 1, each by quads of inputs: (quads, rows of the tile, 4). */
static const int8_t *arrange(const int8_t *codes, int64_t padded, int m, int8_t *copy) {
    for (int row = 0; row < m;) {
        int rows = tile_rows(m - row);
        if (rows == 1) {
            memcpy(copy + row * padded, codes + row * padded, (size_t)padded);
        } else {
            int8_t *to = copy + row * padded;
            for (int r = 0; r < rows; r++) {
                const int8_t *from = codes + (row + r) * padded;
                for (int64_t quad = 0; quad < padded / 4; quad++) memcpy(to + (quad * rows + r) * 4, from + 4 * quad, 4);
            }
        }
        row += rows;
    }
    return copy;
}

/* Pairs of codes of b bits times signed bytes are at most (2^b - 1) * 256 in size, and 16 bits hold 32767. */
INLINE void tile_of(const int8_t *codes, const int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
    const int quads = 8 / bits;
    const int64_t together = bits == 1 ? 15 : bits == 2 ? 10 : 4; /* lines: 120, 40, 8 quads */
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1)), ones = _mm256_set1_epi16(1);
    __m256i wide[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) wide[r] = _mm256_setzero_si256();
    for (int64_t line = 0; line < n_lines;) {
        int64_t stop = line + together < n_lines ? line + together : n_lines;
        __m256i narrow[TILE];
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) narrow[r] = _mm256_setzero_si256();
        for (; line < stop; line++, codes += 4 * quads * m) {
            __m256i packed = _mm256_loadu_si256((const __m256i *)(lines + line * BS_LINE));
#pragma GCC unroll 1
            for (int i = 0; i < quads; i++, packed = _mm256_srli_epi16(packed, bits)) {
                __m256i weights = _mm256_and_si256(packed, mask);
#pragma GCC unroll 8
                for (int r = 0; r < m; r++) {
                    int32_t quad;
                    memcpy(&quad, codes + (i * m + r) * 4, 4);
                    narrow[r] = _mm256_add_epi16(narrow[r], _mm256_maddubs_epi16(weights, _mm256_set1_epi32(quad)));
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) wide[r] = _mm256_add_epi32(wide[r], _mm256_madd_epi16(narrow[r], ones));
    }
    const __m128i by = _mm_cvtsi32_si128(shift);
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) {
        __m256i *to = (__m256i *)(acc + r * BS_PANEL);
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_sll_epi32(wide[r], by)));
    }
}

INLINE void rows_of(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, const int bits,
                    int shift, int32_t *acc) {
    for (int half = 0; half < 2; half++) {
#define ROWS(n) tile_of(codes + row * padded + first * n, n, lines + 32 * half, n_lines, bits, shift, acc + row * BS_PANEL + 8 * half)
        for (int row = 0; row < m;) {
            int rows = tile_rows(m - row);
            switch (rows) {
            case 8: ROWS(8); break;
            case 4: ROWS(4); break;
            case 2: ROWS(2); break;
            default: ROWS(1);
            }
            row += rows;
        }
#undef ROWS
    }
}

static void multiply(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int bits, int shift, int32_t *acc) {
    switch (bits) {
    case 1: rows_of(codes, padded, first, m, lines, n_lines, 1, shift, acc); break;
    case 2: rows_of(codes, padded, first, m, lines, n_lines, 2, shift, acc); break;
    default: rows_of(codes, padded, first, m, lines, n_lines, 4, shift, acc);
    }
}
