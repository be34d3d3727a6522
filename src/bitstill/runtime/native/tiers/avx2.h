/* x86 with AVX2: products of unsigned and signed bytes are added in pairs to 16-bit sums, for as long as they fit. */
#include <immintrin.h>

#define TIER_PACKS_ROWS
#define TIER_HAS_TABLES
enum { ONE_BIT_FORM = BS_NIBBLES, MIN_ROWS_PER_THREAD = 8 };

static int runs_here(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define HALF_LINE (BS_LINE / 2)
#define HALF_PANEL (BS_PANEL / 2)
#define MAX_FEW 8

static inline int few_of(int rows) { return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

/* Copies rows into tiles of 8, 4, 2 and 1, each ordered by quads of inputs: (quads, rows of the tile, 4). */
static const int8_t *interleave_rows(const int8_t *codes, int64_t padded, int m, int8_t *copy) {
    for (int row = 0, few; row < m; row += few) {
        few = few_of(m - row);
        int8_t *to = copy + row * padded;
        for (int r = 0; r < few; r++) {
            const int8_t *from = codes + (row + r) * padded;
            for (int64_t quad = 0; quad < padded / BS_QUAD; quad++)
                memcpy(to + (quad * few + r) * BS_QUAD, from + BS_QUAD * quad, BS_QUAD);
        }
    }
    return copy;
}

/* Number of lines, of 8, 4 or 2 quads, whose sums fit into 16 bits: pairs of b-bit codes times signed bytes are at
   most (2^b - 1) * 256 in magnitude, and 16 bits hold 32767. */
INLINE int64_t lines_in_words(const int bits) { return bits == 1 ? 15 : bits == 2 ? 10 : 4; }

/* Adds the products of one line to words. */
INLINE void multiply_line(const int8_t *codes, const int m, __m256i packed, const int bits, __m256i *words) {
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
    const int quads = 8 / bits;
#pragma GCC unroll 1
    for (int i = 0; i < quads; i++, packed = _mm256_srli_epi16(packed, bits)) {
        __m256i weights = _mm256_and_si256(packed, mask);
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) {
            int32_t quad;
            memcpy(&quad, codes + (i * m + r) * BS_QUAD, sizeof quad);
            words[r] = _mm256_add_epi16(words[r], _mm256_maddubs_epi16(weights, _mm256_set1_epi32(quad)));
        }
    }
}

/* Multiplies a tile of rows by half a panel. */
INLINE void multiply_few(row_tile tile, const int m, const int bits) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t *codes = tile.codes + tile.first * m;
    __m256i sums[MAX_FEW];
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) sums[r] = _mm256_setzero_si256();
    for (int64_t line = 0; line < tile.n_lines;) {
        int64_t stop = BS_MIN(line + lines_in_words(bits), tile.n_lines);
        __m256i words[MAX_FEW];
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) words[r] = _mm256_setzero_si256();
        for (; line < stop; line++, codes += bs_line_inputs(bits) * m)
            multiply_line(codes, m, _mm256_loadu_si256((const __m256i *)(tile.lines + line * BS_LINE)), bits, words);
#pragma GCC unroll 8
        for (int r = 0; r < m; r++) sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(words[r], ones));
    }
    const __m128i shift = _mm_cvtsi32_si128(tile.shift);
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) {
        __m256i *to = (__m256i *)(tile.acc + r * BS_PANEL);
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_sll_epi32(sums[r], shift)));
    }
}

INLINE void multiply_half(row_tile tile, int m, const int bits) {
    for (int few; m > 0; m -= few, tile.codes += few * tile.stride, tile.acc += few * BS_PANEL) {
        few = few_of(m);
        switch (few) {
        case 8: multiply_few(tile, 8, bits); break;
        case 4: multiply_few(tile, 4, bits); break;
        case 2: multiply_few(tile, 2, bits); break;
        default: multiply_few(tile, 1, bits);
        }
    }
}

INLINE void multiply_rows(row_tile tile, int m, const int bits) {
    multiply_half(tile, m, bits);
    tile.lines += HALF_LINE, tile.acc += HALF_PANEL;
    multiply_half(tile, m, bits);
}

/* Single bits by lookup tables. A code is lo + 16 hi, 0 <= lo < 16, -8 <= hi < 8. For each quad of inputs there are
   two tables of sums over the 16 subsets of the four inputs: of lo, and of hi plus 32. Entries are from 0 to 60, so
   that four of them add up in a byte. Layout by pairs of quads (pairs, 64): lo of both, hi of both. */

/* Shuffle index for the b-th of four inputs, which start at byte `at`: its byte if the subset contains it, else 128,
   which yields 0. */
#define MEMBER(subset, b, at) ((subset) >> (b) & 1 ? (at) + (b) : -128)
#define SUBSETS_OF_4(n, b, at) MEMBER(n, b, at), MEMBER(n + 1, b, at), MEMBER(n + 2, b, at), MEMBER(n + 3, b, at)
#define SUBSETS(b, at) SUBSETS_OF_4(0, b, at), SUBSETS_OF_4(4, b, at), SUBSETS_OF_4(8, b, at), SUBSETS_OF_4(12, b, at)
#define SUBSETS_OF_PAIR(b) _mm256_setr_epi8(SUBSETS(b, 0), SUBSETS(b, BS_QUAD))

#define PAIR 8        /* inputs of two quads */
#define PAIR_BYTES 64 /* bytes of their tables */
#define HIGH_BIAS 32  /* added to sums of hi, whose terms are at least -8 */

/* Computes the tables of one pair of quads. */
INLINE void tabulate_pair(const int8_t *codes, int8_t *to) {
    const __m256i subsets[BS_QUAD] = {SUBSETS_OF_PAIR(0), SUBSETS_OF_PAIR(1), SUBSETS_OF_PAIR(2), SUBSETS_OF_PAIR(3)};
    const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    __m128i pair = _mm_loadl_epi64((const __m128i *)codes), lo = _mm_and_si128(pair, low);
    /* Arithmetic shift of bytes, by way of an unsigned one. */
    __m128i hi = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(_mm_srli_epi16(pair, 4), low), eight), eight);
    __m256i lows = _mm256_broadcastsi128_si256(lo), highs = _mm256_broadcastsi128_si256(hi);
    __m256i sum_lo = _mm256_setzero_si256(), sum_hi = _mm256_set1_epi8(HIGH_BIAS);
#pragma GCC unroll 4
    for (int b = 0; b < BS_QUAD; b++) {
        sum_lo = _mm256_add_epi8(sum_lo, _mm256_shuffle_epi8(lows, subsets[b]));
        sum_hi = _mm256_add_epi8(sum_hi, _mm256_shuffle_epi8(highs, subsets[b]));
    }
    _mm256_storeu_si256((__m256i *)to, sum_lo);
    _mm256_storeu_si256((__m256i *)(to + PAIR_BYTES / 2), sum_hi);
}

static const int8_t *tabulate_rows(const int8_t *codes, int64_t padded, int m, int8_t *copy) {
    for (int64_t pair = 0; pair < m * padded / PAIR; pair++)
        tabulate_pair(codes + PAIR * pair, copy + PAIR_BYTES * pair);
    return copy;
}

const int8_t *tier_pack_rows(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy) {
    return form == BS_NIBBLES ? tabulate_rows(codes, padded, m, copy) : interleave_rows(codes, padded, m, copy);
}

/* Lines whose sums of eight bytes, at most 480 each, fit into 15 bits. */
#define LINES_IN_WORDS 64
#define PAIRS_IN_LINE 4

/* Sums of table entries, for lo and hi: of whole words, and of their upper bytes. The sums of the lower bytes follow by
   subtraction. */
typedef struct {
    __m256i lo_both, lo_upper, hi_both, hi_upper;
} table_sums;

INLINE void look_up_line(const __m256i *table, const __m256i *at, table_sums *sums) {
    __m256i lo = _mm256_shuffle_epi8(_mm256_loadu_si256(table), at[0]);
    __m256i hi = _mm256_shuffle_epi8(_mm256_loadu_si256(table + 1), at[0]);
#pragma GCC unroll 3
    for (int i = 1; i < PAIRS_IN_LINE; i++) {
        lo = _mm256_add_epi8(lo, _mm256_shuffle_epi8(_mm256_loadu_si256(table + 2 * i), at[i]));
        hi = _mm256_add_epi8(hi, _mm256_shuffle_epi8(_mm256_loadu_si256(table + 2 * i + 1), at[i]));
    }
    sums->lo_both = _mm256_add_epi16(sums->lo_both, lo);
    sums->lo_upper = _mm256_add_epi16(sums->lo_upper, _mm256_srli_epi16(lo, 8));
    sums->hi_both = _mm256_add_epi16(sums->hi_both, hi);
    sums->hi_upper = _mm256_add_epi16(sums->hi_upper, _mm256_srli_epi16(hi, 8));
}

/* Adds the halves of each of two rows of words; the first row's sum is in the lower half. */
#define LOWER_HALVES 0x20
#define UPPER_HALVES 0x31
INLINE __m256i add_halves(__m256i first, __m256i second) {
    __m256i lower = _mm256_permute2x128_si256(first, second, LOWER_HALVES);
    return _mm256_add_epi16(lower, _mm256_permute2x128_si256(first, second, UPPER_HALVES));
}

/* Sums of two rows, for even outputs (the lower bytes) and odd ones. */
typedef struct {
    __m256i even, odd;
} output_sums;

/* Separates the sums of two rows, given those of whole words and of upper bytes. */
INLINE output_sums split_bytes(const __m256i both[2], const __m256i upper[2]) {
    __m256i odd = add_halves(upper[0], upper[1]);
    return (output_sums){_mm256_sub_epi16(add_halves(both[0], both[1]), _mm256_slli_epi16(odd, 8)), odd};
}

/* lo + 16 hi in 32 bits, for outputs 0 to 7 or 8 to 15 of two rows. */
INLINE __m256i weigh_low(__m256i lo, __m256i hi) {
    return _mm256_madd_epi16(_mm256_unpacklo_epi16(lo, hi), _mm256_set1_epi32(16 << 16 | 1));
}
INLINE __m256i weigh_high(__m256i lo, __m256i hi) {
    return _mm256_madd_epi16(_mm256_unpackhi_epi16(lo, hi), _mm256_set1_epi32(16 << 16 | 1));
}

/* Adds outputs 8 * half to 8 * half + 7 of m rows to the tile. */
INLINE void add_outputs(__m256i even, __m256i odd, const int m, const int half, row_tile tile) {
    const __m128i shift = _mm_cvtsi32_si128(tile.shift);
    __m256i a = _mm256_sll_epi32(_mm256_unpacklo_epi32(even, odd), shift);
    __m256i b = _mm256_sll_epi32(_mm256_unpackhi_epi32(even, odd), shift);
    __m256i outputs[2] = {_mm256_permute2x128_si256(a, b, LOWER_HALVES),
                          _mm256_permute2x128_si256(a, b, UPPER_HALVES)};
#pragma GCC unroll 2
    for (int r = 0; r < m; r++) {
        __m256i *to = (__m256i *)(tile.acc + r * BS_PANEL) + half;
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), outputs[r]));
    }
}

INLINE void add_table_sums(const table_sums *sums, const int m, int64_t n_lines, row_tile tile) {
    const table_sums *first = &sums[0], *second = &sums[m - 1];
    const __m256i bias = _mm256_set1_epi16((int16_t)(HIGH_BIAS * 2 * PAIRS_IN_LINE * n_lines));
    const __m256i lo_both[2] = {first->lo_both, second->lo_both}, lo_upper[2] = {first->lo_upper, second->lo_upper};
    const __m256i hi_both[2] = {first->hi_both, second->hi_both}, hi_upper[2] = {first->hi_upper, second->hi_upper};
    output_sums lo = split_bytes(lo_both, lo_upper), hi = split_bytes(hi_both, hi_upper);
    hi.even = _mm256_sub_epi16(hi.even, bias), hi.odd = _mm256_sub_epi16(hi.odd, bias);
    add_outputs(weigh_low(lo.even, hi.even), weigh_low(lo.odd, hi.odd), m, 0, tile);
    add_outputs(weigh_high(lo.even, hi.even), weigh_high(lo.odd, hi.odd), m, 1, tile);
}

/* Multiplies one or two rows by table lookup. */
INLINE void look_up(row_tile tile, const int m) {
    const __m256i low = _mm256_set1_epi8(15);
    const int8_t *tables = tile.codes + tile.first * BS_PACKED_BYTES;
    for (int64_t line = 0, stop; line < tile.n_lines; line = stop) {
        stop = BS_MIN(line + LINES_IN_WORDS, tile.n_lines);
        table_sums sums[2];
#pragma GCC unroll 2
        for (int r = 0; r < m; r++)
            sums[r].lo_both = sums[r].lo_upper = sums[r].hi_both = sums[r].hi_upper = _mm256_setzero_si256();
        for (int64_t i = line; i < stop; i++) {
            __m256i first = _mm256_loadu_si256((const __m256i *)(tile.lines + i * BS_LINE));
            __m256i second = _mm256_loadu_si256((const __m256i *)(tile.lines + i * BS_LINE + HALF_LINE));
            const __m256i at[PAIRS_IN_LINE] = {
                _mm256_and_si256(first, low), _mm256_and_si256(_mm256_srli_epi16(first, 4), low),
                _mm256_and_si256(second, low), _mm256_and_si256(_mm256_srli_epi16(second, 4), low)};
#pragma GCC unroll 2
            for (int r = 0; r < m; r++) {
                const int8_t *table = tables + r * tile.stride * BS_PACKED_BYTES + PAIRS_IN_LINE * PAIR_BYTES * i;
                look_up_line((const __m256i *)table, at, &sums[r]);
            }
        }
        add_table_sums(sums, m, stop - line, tile);
    }
}

INLINE void multiply_nibbles(row_tile tile, int m) {
    for (; m >= 2; m -= 2, tile.codes += 2 * tile.stride * BS_PACKED_BYTES, tile.acc += 2 * BS_PANEL) look_up(tile, 2);
    if (m) look_up(tile, 1);
}
