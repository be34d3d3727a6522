/* x86 with tiles of bytes: 16 rows times 64 inputs times 16 outputs at once. A few lines, unpacked, are a tile of weights; what is
   too little for tiles is left to AVX-512. */
#define AMX
#include "tier_avx512.h"

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define FEWEST 4 /* rows that are worth a tile */
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

/* Registers: sums of rows 0 to 15 and 16 to 31, their codes, weights; codes and weights of the inputs that fill no whole tile.
   Macros, because what uses them makes text of them. */
#define TMM_SUMS 0
#define TMM_SUMS_2 1
#define TMM_CODES 2
#define TMM_CODES_2 3
#define TMM_WEIGHTS 4
#define TMM_REST 5
#define TMM_REST_2 6
#define TMM_REST_WEIGHTS 7

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} settings;

#define MEMORY() __asm__ __volatile__("" ::: "memory") /* the compiler does not know what tiles read and write */

/* Adds a tile of weights, which lie in memory, times the codes `from` a place on. */
#define ADD_TILE(its_weights, its_codes, its_codes_2)                    \
    do {                                                                 \
        _tile_loadd(its_weights, weights, BS_LINE);                      \
        _tile_loadd(its_codes, from, padded);                            \
        _tile_dpbsud(TMM_SUMS, its_codes, its_weights);                  \
        if (more) {                                                      \
            _tile_loadd(its_codes_2, from + SIDE * padded, padded);      \
            _tile_dpbsud(TMM_SUMS_2, its_codes_2, its_weights);          \
        }                                                                \
    } while (0)

static void multiply(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int form, int shift, int32_t *acc) {
    codes += first;
    if (m < FEWEST) {
        multiply_rows(codes, padded, m, lines, n_lines, form, shift, acc);
        return;
    }
    const int bits = form, of_line = 8 / bits, more = m > SIDE;
    int64_t quads = n_lines * of_line, whole = quads / SIDE;
    int rest = (int)(quads % SIDE);
    settings how = {.palette = 1};
    uint8_t rows = (uint8_t)(more ? SIDE : m), rows_2 = (uint8_t)(more ? m - SIDE : 1);
    how.rows[TMM_SUMS] = how.rows[TMM_CODES] = how.rows[TMM_REST] = rows;
    how.rows[TMM_SUMS_2] = how.rows[TMM_CODES_2] = how.rows[TMM_REST_2] = rows_2;
    how.rows[TMM_WEIGHTS] = SIDE, how.rows[TMM_REST_WEIGHTS] = (uint8_t)(rest ? rest : 1);
    for (int t = TMM_SUMS; t <= TMM_REST_WEIGHTS; t++) how.bytes[t] = 64;
    how.bytes[TMM_REST] = how.bytes[TMM_REST_2] = (uint16_t)(rest ? 4 * rest : 4);
    _Alignas(64) uint8_t weights[SIDE * BS_LINE];
    MEMORY();
    _tile_loadconfig(&how);
    _tile_zero(TMM_SUMS);
    _tile_zero(TMM_SUMS_2);
    for (int64_t tile = 0; tile < whole + (rest > 0); tile++) {
        const int8_t *from = codes + tile * 4 * SIDE;
        int count = tile < whole ? SIDE : rest;
        const uint8_t *packed = lines + tile * SIDE / of_line * BS_LINE;
        for (int q = 0; q < count; q++) _mm512_store_si512(weights + q * BS_LINE, unpacked(packed + q / of_line * BS_LINE, bits, q % of_line));
        MEMORY();
        if (tile < whole) ADD_TILE(TMM_WEIGHTS, TMM_CODES, TMM_CODES_2);
        else ADD_TILE(TMM_REST_WEIGHTS, TMM_REST, TMM_REST_2);
        MEMORY();
    }
    _Alignas(64) int32_t sums[BS_BLOCK * BS_PANEL];
    _tile_stored(TMM_SUMS, sums, 4 * BS_PANEL);
    if (more) _tile_stored(TMM_SUMS_2, sums + SIDE * BS_PANEL, 4 * BS_PANEL);
    _tile_release();
    MEMORY();
    const __m128i by = _mm_cvtsi32_si128(shift);
    for (int r = 0; r < m; r++) {
        int32_t *to = acc + r * BS_PANEL;
        _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_sll_epi32(_mm512_load_si512(sums + r * BS_PANEL), by)));
    }
}
