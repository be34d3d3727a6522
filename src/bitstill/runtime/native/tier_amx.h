/* x86 with tiles of bytes: 16 rows times 64 inputs times 16 outputs at once. A few lines, unpacked, are a tile of weights; what is
   too little for tiles is left to AVX-512. */
#define AMX
#include "tier_avx512.h"

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define ARRANGES
#define MULTIPLIES
static const int nibbles = 0, rows_each = 32;

#define FEWEST 3 /* rows that are worth a tile */
#define SIDE 16  /* rows and outputs of a tile, and quads of inputs */

/* Tiles are a state so large that the kernel gives it only to processes that ask. */
static int runs_here(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vnni")) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return 0; /* AMX-TILE and AMX-INT8 */
#if defined(__linux__)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0;
#else
    return 0;
#endif
}

/* Registers: four tiles of sums, codes of rows 0 to 15 and 16 to 31, weights of two panels by turns. All are full: rows and inputs
   that there are not are zeros. Macros, because what uses them makes text of them. */
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
} settings;

#define MEMORY() __asm__ __volatile__("" ::: "memory") /* the compiler does not know what tiles read and write */

/* A tile's settings take longer than a small product. */
static void enter(void) {
    settings how = {.palette = 1};
    for (int t = 0; t < 8; t++) how.rows[t] = SIDE, how.bytes[t] = 64;
    MEMORY();
    _tile_loadconfig(&how);
}
static void leave(void) { _tile_release(); }

/* From one row to the next: more than the codes, so that a tile of the last inputs does not end behind them, and so that sixteen
   rows do not fall into the same places of the cache. */
static inline int64_t stride_of(int64_t padded) { return padded + 64; }

static const int8_t *arrange(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy) {
    (void)form;
    int64_t stride = stride_of(padded);
    for (int r = 0; r < m; r++) {
        memcpy(copy + r * stride, codes + r * padded, (size_t)padded);
        memset(copy + r * stride + padded, 0, (size_t)(stride - padded));
    }
    memset(copy + m * stride, 0, (size_t)((UP(m, SIDE) - m) * stride));
    return copy;
}

/* A tile of weights: 64 inputs, of which `quads` times four are there. */
INLINE void unpack_tile(const uint8_t *lines, int quads, const int bits, uint8_t *to) {
    const int of_line = 8 / bits;
    if (quads == SIDE) {
#pragma GCC unroll 16
        for (int q = 0; q < SIDE; q++) _mm512_store_si512(to + q * BS_LINE, unpacked(lines + q / of_line * BS_LINE, bits, q % of_line));
        return;
    }
    for (int q = 0; q < quads; q++) _mm512_store_si512(to + q * BS_LINE, unpacked(lines + q / of_line * BS_LINE, bits, q % of_line));
    memset(to + quads * BS_LINE, 0, (size_t)((SIDE - quads) * BS_LINE));
}

static void add_sums(const int32_t *sums, int m, const bs_factors *of, int32_t *acc) {
    const __m128i by = _mm_cvtsi32_si128(of->shift);
    if (of->begins) memset(acc, 0, sizeof(int32_t) * BS_PANEL * UP(m, FEW));
    for (int i = 0; i < m * BS_PANEL; i += BS_PANEL)
        _mm512_storeu_si512(acc + i, _mm512_add_epi32(_mm512_loadu_si512(acc + i), _mm512_sll_epi32(_mm512_load_si512(sums + i), by)));
}

#define STORE_SUMS(its_sums, row, panel)                                              \
    do {                                                                              \
        int32_t *its_acc = acc + (panel) * BS_TILE + (row) * BS_PANEL;                \
        if (of->begins && of->shift == 0) {                                           \
            _tile_stored(its_sums, its_acc, 4 * BS_PANEL);                            \
        } else {                                                                      \
            _tile_stored(its_sums, sums, 4 * BS_PANEL);                               \
            MEMORY();                                                                 \
            add_sums(sums, LEAST(SIDE, of->m - (row)), of, its_acc);                  \
        }                                                                             \
        MEMORY();                                                                     \
    } while (0)

/* Up to four panels and sixteen rows, or two panels and more rows: four sums, because each takes a while to be added to. Weights
   are unpacked two tiles ahead, because a tile cannot be loaded before what it is loaded from has left the processor. */
#define AHEAD 2
#define KEPT_TILES 4

INLINE void tiles_of(const bs_factors *of, int first_panel, int panels, const int bits, int32_t *acc) {
    const int more = of->m > SIDE, lines_of_tile = SIDE / (8 / bits);
    int64_t stride = stride_of(of->padded), count = UP(of->n_lines, lines_of_tile) / lines_of_tile;
    const uint8_t *lines = of->lines + first_panel * of->apart;
    const int8_t *codes = of->codes + of->first;
    _Alignas(64) uint8_t weights[KEPT_TILES][BS_TOGETHER][SIDE * BS_LINE];
    _tile_zero(SUMS_0);
    _tile_zero(SUMS_1);
    _tile_zero(SUMS_2);
    _tile_zero(SUMS_3);
    for (int64_t unpacked_tile = 0, tile = -AHEAD; tile < count; tile++, unpacked_tile++) {
        if (unpacked_tile < count) {
            int quads = (int)LEAST(SIDE, (of->n_lines - unpacked_tile * lines_of_tile) * (8 / bits));
            for (int p = 0; p < panels; p++)
                unpack_tile(lines + p * of->apart + unpacked_tile * lines_of_tile * BS_LINE, quads, bits, weights[unpacked_tile % KEPT_TILES][p]);
            MEMORY();
        }
        if (tile < 0) continue;
        const int8_t *from = codes + tile * 4 * SIDE;
        uint8_t(*its)[SIDE * BS_LINE] = weights[tile % KEPT_TILES];
        _tile_loadd(CODES_0, from, stride);
        _tile_loadd(WEIGHTS_0, its[0], BS_LINE);
        _tile_dpbsud(SUMS_0, CODES_0, WEIGHTS_0);
        if (more) {
            _tile_loadd(CODES_1, from + SIDE * stride, stride);
            _tile_dpbsud(SUMS_1, CODES_1, WEIGHTS_0);
            if (panels > 1) {
                _tile_loadd(WEIGHTS_1, its[1], BS_LINE);
                _tile_dpbsud(SUMS_2, CODES_0, WEIGHTS_1);
                _tile_dpbsud(SUMS_3, CODES_1, WEIGHTS_1);
            }
        } else {
            if (panels > 1) {
                _tile_loadd(WEIGHTS_1, its[1], BS_LINE);
                _tile_dpbsud(SUMS_1, CODES_0, WEIGHTS_1);
            }
            if (panels > 2) {
                _tile_loadd(WEIGHTS_0, its[2], BS_LINE);
                _tile_dpbsud(SUMS_2, CODES_0, WEIGHTS_0);
            }
            if (panels > 3) {
                _tile_loadd(WEIGHTS_1, its[3], BS_LINE);
                _tile_dpbsud(SUMS_3, CODES_0, WEIGHTS_1);
            }
        }
    }
    _Alignas(64) int32_t sums[SIDE * BS_PANEL];
    acc += first_panel * BS_TILE;
    STORE_SUMS(SUMS_0, 0, 0);
    if (more) {
        STORE_SUMS(SUMS_1, SIDE, 0);
        if (panels > 1) {
            STORE_SUMS(SUMS_2, 0, 1);
            STORE_SUMS(SUMS_3, SIDE, 1);
        }
        return;
    }
    if (panels > 1) STORE_SUMS(SUMS_1, 0, 1);
    if (panels > 2) STORE_SUMS(SUMS_2, 0, 2);
    if (panels > 3) STORE_SUMS(SUMS_3, 0, 3);
}

static void multiply(const bs_factors *of, int32_t *acc) {
    if (of->m < FEWEST) {
        bs_factors as_arranged = *of;
        as_arranged.padded = stride_of(of->padded);
        panel_by_panel(&as_arranged, acc);
        return;
    }
    int at_once = of->m > SIDE ? 2 : 4;
    for (int p = 0; p < of->panels; p += at_once) {
        int panels = LEAST(at_once, of->panels - p);
        switch (of->form) {
        case BS_LINES_1: tiles_of(of, p, panels, 1, acc); break;
        case BS_LINES_2: tiles_of(of, p, panels, 2, acc); break;
        default: tiles_of(of, p, panels, 4, acc);
        }
    }
}
