/* Instructions that few processors have, in plain C as their manuals define them: included before a tier, they let it
   be tested anywhere. Of each intrinsic, only what the tiers use. */
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define __builtin_cpu_supports(feature) 1
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(b) = *(c) = 0, *(a) = *(d) = ~0u, 1)
#define syscall(...) 0

typedef struct { uint8_t at[64]; } line_of_64;

static inline __m512i line_from(const void *bytes) { __m512i x; memcpy(&x, bytes, 64); return x; }
static inline line_of_64 bytes_of(__m512i x) { line_of_64 y; memcpy(&y, &x, 64); return y; }

#define EACH_WORD(type, expression)                                                       \
    type x[64 / sizeof(type)];                                                            \
    line_of_64 bytes = bytes_of(a);                                                       \
    memcpy(x, &bytes, 64);                                                                \
    for (unsigned i = 0; i < 64 / sizeof(type); i++) x[i] = (type)(expression);           \
    return line_from(x)

static inline __m512i e_set1_8(int8_t v) { int8_t x[64]; memset(x, v, 64); return line_from(x); }
static inline __m512i e_set1_32(int32_t v) {
    int32_t x[16];
    for (int i = 0; i < 16; i++) x[i] = v;
    return line_from(x);
}
static inline __m512i e_and(__m512i a, __m512i b) { line_of_64 y = bytes_of(b); EACH_WORD(uint8_t, x[i] & y.at[i]); }
static inline __m512i e_srl_16(__m512i a, int n) { EACH_WORD(uint16_t, x[i] >> n); }
static inline __m512i e_sll_32(__m512i a, __m128i by) { int n = _mm_cvtsi128_si32(by); EACH_WORD(uint32_t, x[i] << n); }
static inline __m512i e_add_32(__m512i a, __m512i b) {
    line_of_64 y = bytes_of(b);
    uint32_t z[16];
    memcpy(z, &y, 64);
    EACH_WORD(uint32_t, x[i] + z[i]);
}

/* VPDPBUSD: to each sum of 32 bits, four products of an unsigned by a signed byte. */
static inline void dot(int32_t *sums, const uint8_t *u, const int8_t *s, int count) {
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 4; j++) sums[i] += u[4 * i + j] * s[4 * i + j];
}
static inline __m512i e_dot(__m512i sums, __m512i u, __m512i s) {
    int32_t x[16];
    line_of_64 a = bytes_of(sums), b = bytes_of(u), c = bytes_of(s);
    memcpy(x, &a, 64);
    dot(x, b.at, (const int8_t *)c.at, 16);
    return line_from(x);
}
static inline __m256i e_dot_256(__m256i sums, __m256i u, __m256i s) {
    int32_t x[8];
    memcpy(x, &sums, 32);
    dot(x, (const uint8_t *)&u, (const int8_t *)&s, 8);
    memcpy(&sums, x, 32);
    return sums;
}

#define _mm512_setzero_si512() e_set1_8(0)
#define _mm512_set1_epi8 e_set1_8
#define _mm512_set1_epi32 e_set1_32
#define _mm512_loadu_si512(p) line_from(p)
#define _mm512_load_si512(p) line_from(p)
#define _mm512_storeu_si512(p, v) do { __m512i stored = v; memcpy(p, &stored, 64); } while (0)
#define _mm512_store_si512 _mm512_storeu_si512
#define _mm512_and_si512 e_and
#define _mm512_srli_epi16 e_srl_16
#define _mm512_sll_epi32 e_sll_32
#define _mm512_add_epi32 e_add_32
#define _mm512_dpbusd_epi32 e_dot
#define _mm256_dpbusd_avx_epi32 e_dot_256

/* Tiles: what is outside of their settings is zero when they are loaded, and a fault when settings do not
   fit each other. */
typedef struct { uint8_t row[16][64]; } tile;
static __thread tile tiles[8];
static __thread struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } tile_settings;
static inline void check_tile(int fits) { if (!fits || tile_settings.palette != 1) __builtin_trap(); }

static inline void e_config(const void *from) {
    memcpy(&tile_settings, from, 64);
    for (int t = 0; t < 8; t++) {
        int rows = tile_settings.rows[t], bytes = tile_settings.bytes[t];
        check_tile(rows <= 16 && bytes <= 64 && !rows == !bytes);
    }
    for (int t = 8; t < 16; t++) check_tile(!tile_settings.rows[t] && !tile_settings.bytes[t]);
    memset(tiles, 0, sizeof tiles);
}
static inline void e_tile_load(int t, const void *from, int64_t stride) {
    check_tile(tile_settings.rows[t]);
    memset(&tiles[t], 0, sizeof(tile));
    for (int r = 0; r < tile_settings.rows[t]; r++)
        memcpy(tiles[t].row[r], (const char *)from + r * stride, tile_settings.bytes[t]);
}
static inline void e_tile_store(int t, void *to, int64_t stride) {
    check_tile(tile_settings.rows[t]);
    for (int r = 0; r < tile_settings.rows[t]; r++)
        memcpy((char *)to + r * stride, tiles[t].row[r], tile_settings.bytes[t]);
}
/* TDPBSUD: signed bytes of the first, by rows, times unsigned bytes of the second, whose rows are quads of the inner
   dimension. */
static inline void e_tile_dot(int t, int a, int b) {
    int inner = tile_settings.bytes[a] / 4, outputs = tile_settings.bytes[t] / 4;
    check_tile(tile_settings.rows[t] == tile_settings.rows[a] && inner == tile_settings.rows[b]);
    check_tile(tile_settings.bytes[b] == tile_settings.bytes[t]);
    for (int r = 0; r < tile_settings.rows[t]; r++) {
        int32_t sums[16];
        memcpy(sums, tiles[t].row[r], 64);
        for (int k = 0; k < inner; k++)
            for (int n = 0; n < outputs; n++)
                for (int j = 0; j < 4; j++)
                    sums[n] += (int8_t)tiles[a].row[r][4 * k + j] * tiles[b].row[k][4 * n + j];
        memcpy(tiles[t].row[r], sums, 64);
    }
}
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_zero
#define _tile_loadconfig e_config
#define _tile_release() memset(&tile_settings, 0, 64)
#define _tile_zero(t) memset(&tiles[t], 0, sizeof(tile))
#define _tile_loadd(t, from, stride) e_tile_load(t, from, stride)
#define _tile_stored(t, to, stride) e_tile_store(t, to, stride)
#define _tile_dpbsud(t, a, b) e_tile_dot(t, a, b)
