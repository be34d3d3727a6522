/* x86 with tiles of bytes: 16 rows times 64 inputs times 16 outputs at once. A few unpacked lines form a tile of
   weights; products too small for tiles are left to AVX-512. */
#define AMX
#include "tiers/avx512.h"

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TIER_PACKS_ROWS
#define TIER_MULTIPLIES
enum { ONE_BIT_FORM = BS_LINES_1, MIN_ROWS_PER_THREAD = 32 };

#define MIN_TILE_ROWS 3 /* minimum number of rows for which a tile is faster */
#define SIDE 16         /* rows and outputs of a tile, and quads of inputs */
#define TILES 8         /* tile registers */

/* Intel's manual: CPUID leaf 7, EDX bits 24 and 25. */
#define CPUID_FEATURES 7
#define CPUID_AMX 24
#define AMX_TILE_AND_INT8 3
#ifndef ARCH_REQ_XCOMP_PERM /* Linux; missing from the headers of some compilers */
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
#define XFEATURE_XTILEDATA 18

/* Tile state is so large that the kernel provides it only on request. */
static int runs_here(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vnni")) return 0;
    if (!__get_cpuid_count(CPUID_FEATURES, 0, &a, &b, &c, &d)) return 0;
    if ((d >> CPUID_AMX & AMX_TILE_AND_INT8) != AMX_TILE_AND_INT8) return 0;
#if defined(__linux__)
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

/* Registers: four tiles of sums, codes of rows 0 to 15 and 16 to 31, alternating weights of two panels. All are full:
   missing rows and inputs are zeros. These are macros because the tile intrinsics stringify their arguments. */
#define SUMS_0 0
#define SUMS_1 1
#define SUMS_2 2
#define SUMS_3 3
#define CODES_0 4
#define CODES_1 5
#define WEIGHTS_0 6
#define WEIGHTS_1 7

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_configuration;

#define MEMORY() __asm__ __volatile__("" ::: "memory") /* the compiler cannot see what tiles read and write */

/* Called once for all products: configuring tiles takes longer than a small product. */
static void begin(void) {
    tile_configuration configuration = {.palette = 1};
    for (int t = 0; t < TILES; t++) configuration.rows[t] = SIDE, configuration.bytes[t] = SIDE * BS_QUAD;
    MEMORY();
    _tile_loadconfig(&configuration);
}
static void end(void) { _tile_release(); }

/* Stride of rows: longer than the codes, so that a tile of the last inputs stays within its row, and so that sixteen
   rows do not map to the same cache sets. */
static inline int64_t stride_of(int64_t padded) { return padded + BS_LINE; }

const int8_t *tier_pack_rows(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy) {
    (void)form;
    int64_t stride = stride_of(padded);
    for (int r = 0; r < m; r++) {
        memcpy(copy + r * stride, codes + r * padded, (size_t)padded);
        memset(copy + r * stride + padded, 0, (size_t)(stride - padded));
    }
    memset(copy + m * stride, 0, (size_t)((BS_UP(m, SIDE) - m) * stride));
    return copy;
}

/* Unpacks a tile of weights: 64 inputs, of which the first 4 * `quads` exist. */
INLINE void unpack_tile(const uint8_t *lines, int quads, const int bits, uint8_t *to) {
    const int of_line = 8 / bits;
#define UNPACK(q) \
    _mm512_store_si512(to + (q) * BS_LINE, unpack_quad(lines + (q) / of_line * BS_LINE, bits, (q) % of_line))
    if (quads == SIDE) {
#pragma GCC unroll 16
        for (int q = 0; q < SIDE; q++) UNPACK(q);
        return;
    }
    for (int q = 0; q < quads; q++) UNPACK(q);
#undef UNPACK
    memset(to + quads * BS_LINE, 0, (size_t)((SIDE - quads) * BS_LINE));
}

/* Adds the sums of a tile that cannot be stored directly. */
static void add_sums(const int32_t *sums, int m, const bs_gemm *gemm, int32_t *acc) {
    const __m128i shift = _mm_cvtsi32_si128(gemm->shift);
    if (gemm->result == BS_OVERWRITE) memset(acc, 0, sizeof(int32_t) * BS_PANEL * BS_UP(m, FEW_ROWS));
    for (int i = 0; i < m * BS_PANEL; i += BS_PANEL) {
        __m512i product = _mm512_sll_epi32(_mm512_load_si512(sums + i), shift);
        _mm512_storeu_si512(acc + i, _mm512_add_epi32(_mm512_loadu_si512(acc + i), product));
    }
}

#define STORE_SUMS(register_of_sums, row, panel)                                     \
    do {                                                                             \
        int32_t *to = acc + (panel) * BS_TILE + (row) * BS_PANEL;                    \
        if (gemm->result == BS_OVERWRITE && gemm->shift == 0) {                      \
            _tile_stored(register_of_sums, to, sizeof(int32_t) * BS_PANEL);          \
        } else {                                                                     \
            _Alignas(BS_ALIGN) int32_t sums[SIDE * BS_PANEL];                        \
            _tile_stored(register_of_sums, sums, sizeof(int32_t) * BS_PANEL);        \
            MEMORY();                                                                \
            add_sums(sums, BS_MIN(SIDE, gemm->m - (row)), gemm, to);                 \
        }                                                                            \
        MEMORY();                                                                    \
    } while (0)

typedef uint8_t unpacked_tile[SIDE * BS_LINE];

/* Adds the products of one tile of inputs, for up to sixteen rows and four panels. */
INLINE void dot_few_rows(const int8_t *codes, int64_t stride, unpacked_tile *weights, int panels) {
    _tile_loadd(CODES_0, codes, stride);
    _tile_loadd(WEIGHTS_0, weights[0], BS_LINE);
    _tile_dpbsud(SUMS_0, CODES_0, WEIGHTS_0);
    if (panels > 1) {
        _tile_loadd(WEIGHTS_1, weights[1], BS_LINE);
        _tile_dpbsud(SUMS_1, CODES_0, WEIGHTS_1);
    }
    if (panels > 2) {
        _tile_loadd(WEIGHTS_0, weights[2], BS_LINE);
        _tile_dpbsud(SUMS_2, CODES_0, WEIGHTS_0);
    }
    if (panels > 3) {
        _tile_loadd(WEIGHTS_1, weights[3], BS_LINE);
        _tile_dpbsud(SUMS_3, CODES_0, WEIGHTS_1);
    }
}

/* The same for more rows, and one or two panels. */
INLINE void dot_many_rows(const int8_t *codes, int64_t stride, unpacked_tile *weights, int panels) {
    _tile_loadd(CODES_0, codes, stride);
    _tile_loadd(WEIGHTS_0, weights[0], BS_LINE);
    _tile_dpbsud(SUMS_0, CODES_0, WEIGHTS_0);
    _tile_loadd(CODES_1, codes + SIDE * stride, stride);
    _tile_dpbsud(SUMS_1, CODES_1, WEIGHTS_0);
    if (panels > 1) {
        _tile_loadd(WEIGHTS_1, weights[1], BS_LINE);
        _tile_dpbsud(SUMS_2, CODES_0, WEIGHTS_1);
        _tile_dpbsud(SUMS_3, CODES_1, WEIGHTS_1);
    }
}

INLINE void store_few_rows(const bs_gemm *gemm, int panels, int32_t *acc) {
    STORE_SUMS(SUMS_0, 0, 0);
    if (panels > 1) STORE_SUMS(SUMS_1, 0, 1);
    if (panels > 2) STORE_SUMS(SUMS_2, 0, 2);
    if (panels > 3) STORE_SUMS(SUMS_3, 0, 3);
}

INLINE void store_many_rows(const bs_gemm *gemm, int panels, int32_t *acc) {
    STORE_SUMS(SUMS_0, 0, 0);
    STORE_SUMS(SUMS_1, SIDE, 0);
    if (panels > 1) {
        STORE_SUMS(SUMS_2, 0, 1);
        STORE_SUMS(SUMS_3, SIDE, 1);
    }
}

/* Weights are unpacked some tiles ahead, because a tile cannot be loaded before the stores to it have left the
   processor. */
#define AHEAD 2
#define UNPACKED_TILES 4

/* Multiplies up to four panels by sixteen rows, or two panels by more rows: four independent sums, because each
   addition waits for the previous one. */
INLINE void multiply_tiles(const bs_gemm *gemm, int first_panel, int panels, const int bits, int32_t *acc) {
    const int many = gemm->m > SIDE, quads = 8 / bits, lines = SIDE / quads;
    int64_t stride = stride_of(gemm->padded), count = BS_UP(gemm->n_lines, lines) / lines;
    const uint8_t *first_lines = gemm->lines + first_panel * gemm->panel_bytes;
    _Alignas(BS_ALIGN) unpacked_tile weights[UNPACKED_TILES][BS_PANELS_AT_ONCE];
    _tile_zero(SUMS_0);
    _tile_zero(SUMS_1);
    _tile_zero(SUMS_2);
    _tile_zero(SUMS_3);
    for (int64_t next = 0, tile = -AHEAD; tile < count; tile++, next++) {
        if (next < count) {
            const uint8_t *from = first_lines + next * lines * BS_LINE;
            int present = (int)BS_MIN(SIDE, (gemm->n_lines - next * lines) * quads);
            for (int p = 0; p < panels; p++)
                unpack_tile(from + p * gemm->panel_bytes, present, bits, weights[next % UNPACKED_TILES][p]);
            MEMORY();
        }
        if (tile < 0) continue;
        const int8_t *codes = gemm->codes + gemm->first + tile * BS_QUAD * SIDE;
        if (many) dot_many_rows(codes, stride, weights[tile % UNPACKED_TILES], panels);
        else dot_few_rows(codes, stride, weights[tile % UNPACKED_TILES], panels);
    }
    acc += first_panel * BS_TILE;
    if (many) store_many_rows(gemm, panels, acc);
    else store_few_rows(gemm, panels, acc);
}

void tier_multiply(const bs_gemm *gemm, int32_t *acc) {
    if (gemm->m < MIN_TILE_ROWS) {
        bs_gemm packed = *gemm;
        packed.padded = stride_of(gemm->padded);
        panel_by_panel(&packed, acc);
        return;
    }
    int at_once = gemm->m > SIDE ? 2 : 4;
    for (int p = 0; p < gemm->panels; p += at_once) {
        int panels = BS_MIN(at_once, gemm->panels - p);
        switch (gemm->form) {
        case BS_LINES_1: multiply_tiles(gemm, p, panels, BS_LINES_1, acc); break;
        case BS_LINES_2: multiply_tiles(gemm, p, panels, BS_LINES_2, acc); break;
        default: multiply_tiles(gemm, p, panels, BS_LINES_4, acc);
        }
    }
}
