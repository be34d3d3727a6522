/* ARM with dot products of bytes. */
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

enum { ONE_BIT_FORM = BS_LINES_1, MIN_ROWS_PER_THREAD = 8 };

#define HWCAP_BIT_ASIMDDP 20 /* Linux: dot products */

static int runs_here(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> HWCAP_BIT_ASIMDDP & 1) != 0;
#else
    return 1; /* Apple's 64-bit processors all have them */
#endif
}

#define MAX_FEW 4
#define REGISTERS 4 /* per line, of 16 bytes; per panel, of four outputs */

INLINE void multiply_few(row_tile tile, const int m, const int bits) {
    const int quads = 8 / bits;
    const int8_t *codes = tile.codes + tile.first;
    const uint8x16_t mask = vdupq_n_u8((uint8_t)((1 << bits) - 1));
    int32x4_t sums[MAX_FEW][REGISTERS];
    for (int r = 0; r < m; r++)
        for (int q = 0; q < REGISTERS; q++) sums[r][q] = vdupq_n_s32(0);
    for (int64_t line = 0; line < tile.n_lines; line++, codes += BS_QUAD * quads) {
        uint8x16_t packed[REGISTERS];
        for (int q = 0; q < REGISTERS; q++) packed[q] = vld1q_u8(tile.lines + line * BS_LINE + 16 * q);
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            const int8x16_t down = vdupq_n_s8((int8_t)(-i * bits));
            int8x16_t weights[REGISTERS];
            for (int q = 0; q < REGISTERS; q++)
                weights[q] = vreinterpretq_s8_u8(vandq_u8(vshlq_u8(packed[q], down), mask));
            for (int r = 0; r < m; r++) {
                int32_t quad;
                memcpy(&quad, codes + r * tile.stride + BS_QUAD * i, sizeof quad);
                int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                for (int q = 0; q < REGISTERS; q++) sums[r][q] = vdotq_s32(sums[r][q], weights[q], a);
            }
        }
    }
    const int32x4_t shift = vdupq_n_s32(tile.shift);
    for (int r = 0; r < m; r++)
        for (int q = 0; q < REGISTERS; q++) {
            int32_t *to = tile.acc + r * BS_PANEL + 4 * q;
            vst1q_s32(to, vaddq_s32(vld1q_s32(to), vshlq_s32(sums[r][q], shift)));
        }
}

INLINE void multiply_rows(row_tile tile, int m, const int bits) {
    for (; m >= MAX_FEW; m -= MAX_FEW, tile.codes += MAX_FEW * tile.stride, tile.acc += MAX_FEW * BS_PANEL)
        multiply_few(tile, MAX_FEW, bits);
    for (; m >= 1; m--, tile.codes += tile.stride, tile.acc += BS_PANEL) multiply_few(tile, 1, bits);
}
