/* x86 with AVX2: products of unsigned by signed bytes are added in pairs to 16 bits, and there for as long as they fit. */
#include <immintrin.h>

#define ARRANGES
static const int nibbles = 1, rows_each = 8;

static int runs_here(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define TILE 8

static inline int tile_rows(int left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* Rows in tiles of 8, 4, 2 and 1, each by quads of inputs: (quads, rows of the tile, 4). */
static const int8_t *tiled(const int8_t *codes, int64_t padded, int m, int8_t *copy) {
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

/* Single bits by tables. A code is lo + 16 hi, 0 <= lo < 16, -8 <= hi < 8. For each quad of inputs there are two tables of the
   sums of lo, and of hi + 32, over each of the 16 subsets of four: bytes from 0 to 60, of which four can be added up in a byte.
   For each pair of quads (pairs, 64): lo of both, hi of both. */
static const int8_t *tabulated(const int8_t *codes, int64_t padded, int m, int8_t *copy) {
    /* Where the subset has the b-th of four inputs: that input, else 128, which a shuffle makes 0. */
#define SUBSETS(b, at)                                                                                                           \
    0 >> b & 1 ? at + b : -128, 1 >> b & 1 ? at + b : -128, 2 >> b & 1 ? at + b : -128, 3 >> b & 1 ? at + b : -128,              \
        4 >> b & 1 ? at + b : -128, 5 >> b & 1 ? at + b : -128, 6 >> b & 1 ? at + b : -128, 7 >> b & 1 ? at + b : -128,          \
        8 >> b & 1 ? at + b : -128, 9 >> b & 1 ? at + b : -128, 10 >> b & 1 ? at + b : -128, 11 >> b & 1 ? at + b : -128,        \
        12 >> b & 1 ? at + b : -128, 13 >> b & 1 ? at + b : -128, 14 >> b & 1 ? at + b : -128, 15 >> b & 1 ? at + b : -128
#define BOTH(b) _mm256_setr_epi8(SUBSETS(b, 0), SUBSETS(b, 4))
    const __m256i subsets[4] = {BOTH(0), BOTH(1), BOTH(2), BOTH(3)};
    const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    const __m256i raised = _mm256_set1_epi8(32);
    for (int r = 0; r < m; r++)
        for (int64_t pair = 0; pair < padded / 8; pair++) {
            __m128i eight_codes = _mm_loadl_epi64((const __m128i *)(codes + r * padded + 8 * pair));
            __m128i lo = _mm_and_si128(eight_codes, low);
            /* An arithmetic shift of bytes, by way of unsigned ones. */
            __m128i hi = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(_mm_srli_epi16(eight_codes, 4), low), eight), eight);
            __m256i lows = _mm256_broadcastsi128_si256(lo), highs = _mm256_broadcastsi128_si256(hi);
            __m256i sum_lo = _mm256_setzero_si256(), sum_hi = raised;
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) {
                sum_lo = _mm256_add_epi8(sum_lo, _mm256_shuffle_epi8(lows, subsets[b]));
                sum_hi = _mm256_add_epi8(sum_hi, _mm256_shuffle_epi8(highs, subsets[b]));
            }
            int8_t *to = copy + r * padded * BS_ROOM + 64 * pair;
            _mm256_storeu_si256((__m256i *)to, sum_lo);
            _mm256_storeu_si256((__m256i *)(to + 32), sum_hi);
        }
    return copy;
}

static const int8_t *arrange(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy) {
    return form == BS_NIBBLES ? tabulated(codes, padded, m, copy) : tiled(codes, padded, m, copy);
}

/* For as many lines as the sums of eight bytes, at most 480 each, fit into 15 bits. */
#define TOGETHER 64

/* Of two rows, x[0] and x[1]: sums of words over both halves of each, x[0]'s in the lower half. */
INLINE __m256i halves_added(const __m256i *x, int m) {
    __m256i other = x[m - 1];
    return _mm256_add_epi16(_mm256_permute2x128_si256(x[0], other, 0x20), _mm256_permute2x128_si256(x[0], other, 0x31));
}

INLINE void looked_up(const int8_t *tables, int64_t stride, const int m, const uint8_t *lines, int64_t n_lines, int shift, int32_t *acc) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t line = 0; line < n_lines;) {
        int64_t from = line, stop = line + TOGETHER < n_lines ? line + TOGETHER : n_lines;
        /* Both bytes of a word, and the upper one alone: the lower is their difference. */
        __m256i lo_both[2], lo_upper[2], hi_both[2], hi_upper[2];
#pragma GCC unroll 2
        for (int r = 0; r < m; r++) lo_both[r] = lo_upper[r] = hi_both[r] = hi_upper[r] = _mm256_setzero_si256();
        for (; line < stop; line++) {
            __m256i first = _mm256_loadu_si256((const __m256i *)(lines + line * BS_LINE));
            __m256i second = _mm256_loadu_si256((const __m256i *)(lines + line * BS_LINE + 32));
            const __m256i at[4] = {_mm256_and_si256(first, low), _mm256_and_si256(_mm256_srli_epi16(first, 4), low),
                                   _mm256_and_si256(second, low), _mm256_and_si256(_mm256_srli_epi16(second, 4), low)};
#pragma GCC unroll 2
            for (int r = 0; r < m; r++) {
                const __m256i *table = (const __m256i *)(tables + r * stride + 256 * line);
                __m256i lo = _mm256_shuffle_epi8(_mm256_loadu_si256(table), at[0]), hi = _mm256_shuffle_epi8(_mm256_loadu_si256(table + 1), at[0]);
#pragma GCC unroll 3
                for (int i = 1; i < 4; i++) {
                    lo = _mm256_add_epi8(lo, _mm256_shuffle_epi8(_mm256_loadu_si256(table + 2 * i), at[i]));
                    hi = _mm256_add_epi8(hi, _mm256_shuffle_epi8(_mm256_loadu_si256(table + 2 * i + 1), at[i]));
                }
                lo_both[r] = _mm256_add_epi16(lo_both[r], lo);
                lo_upper[r] = _mm256_add_epi16(lo_upper[r], _mm256_srli_epi16(lo, 8));
                hi_both[r] = _mm256_add_epi16(hi_both[r], hi);
                hi_upper[r] = _mm256_add_epi16(hi_upper[r], _mm256_srli_epi16(hi, 8));
            }
        }
        /* Both rows together from here on, one in each half: lo + 16 hi for even outputs, whose bytes are the lower ones, and for
           odd ones; first for those of words 0 to 3, then for those of 4 to 7. */
        const __m256i raised = _mm256_set1_epi16((int16_t)(32 * 8 * (stop - from))), lo_and_hi = _mm256_set1_epi32(16 << 16 | 1);
        __m256i lo_odd = halves_added(lo_upper, m), lo_even = _mm256_sub_epi16(halves_added(lo_both, m), _mm256_slli_epi16(lo_odd, 8));
        __m256i hi_odd = halves_added(hi_upper, m), hi_even = _mm256_sub_epi16(halves_added(hi_both, m), _mm256_slli_epi16(hi_odd, 8));
        hi_odd = _mm256_sub_epi16(hi_odd, raised), hi_even = _mm256_sub_epi16(hi_even, raised);
        __m256i even[2] = {_mm256_madd_epi16(_mm256_unpacklo_epi16(lo_even, hi_even), lo_and_hi),
                           _mm256_madd_epi16(_mm256_unpackhi_epi16(lo_even, hi_even), lo_and_hi)};
        __m256i odd[2] = {_mm256_madd_epi16(_mm256_unpacklo_epi16(lo_odd, hi_odd), lo_and_hi),
                          _mm256_madd_epi16(_mm256_unpackhi_epi16(lo_odd, hi_odd), lo_and_hi)};
        const __m128i by = _mm_cvtsi32_si128(shift);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m256i a = _mm256_sll_epi32(_mm256_unpacklo_epi32(even[h], odd[h]), by), b = _mm256_sll_epi32(_mm256_unpackhi_epi32(even[h], odd[h]), by);
            __m256i outputs[2] = {_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
#pragma GCC unroll 2
            for (int r = 0; r < m; r++) {
                __m256i *to = (__m256i *)(acc + r * BS_PANEL) + h;
                _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), outputs[r]));
            }
        }
    }
}

static void multiply_panel(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int form, int shift, int32_t *acc) {
    int row = 0;
    switch (form) {
    case BS_NIBBLES:
        for (; row + 2 <= m; row += 2)
            looked_up(codes + (row * padded + first) * BS_ROOM, padded * BS_ROOM, 2, lines, n_lines, shift, acc + row * BS_PANEL);
        if (row < m) looked_up(codes + (row * padded + first) * BS_ROOM, padded * BS_ROOM, 1, lines, n_lines, shift, acc + row * BS_PANEL);
        break;
    case BS_LINES_1: rows_of(codes, padded, first, m, lines, n_lines, 1, shift, acc); break;
    case BS_LINES_2: rows_of(codes, padded, first, m, lines, n_lines, 2, shift, acc); break;
    default: rows_of(codes, padded, first, m, lines, n_lines, 4, shift, acc);
    }
}
