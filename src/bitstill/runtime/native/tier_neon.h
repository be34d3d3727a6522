/* ARM with dot products of bytes. */
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

static int runs_here(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0; /* HWCAP_ASIMDDP */
#else
    return 1; /* every 64-bit ARM of Apple's */
#endif
}

INLINE void tile_of(const int8_t *codes, int64_t stride, const int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
    const int quads = 8 / bits;
    const uint8x16_t mask = vdupq_n_u8((uint8_t)((1 << bits) - 1));
    int32x4_t sums[4][4];
    for (int r = 0; r < m; r++)
        for (int q = 0; q < 4; q++) sums[r][q] = vdupq_n_s32(0);
    for (int64_t line = 0; line < n_lines; line++) {
        uint8x16_t packed[4];
        for (int q = 0; q < 4; q++) packed[q] = vld1q_u8(lines + line * BS_LINE + 16 * q);
        const int8_t *at = codes + line * quads * 4;
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++) {
            int8x16_t weights[4];
            for (int q = 0; q < 4; q++) weights[q] = vreinterpretq_s8_u8(vandq_u8(vshlq_u8(packed[q], vdupq_n_s8((int8_t)(-i * bits))), mask));
            for (int r = 0; r < m; r++) {
                int32_t quad;
                memcpy(&quad, at + r * stride + 4 * i, 4);
                int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                for (int q = 0; q < 4; q++) sums[r][q] = vdotq_s32(sums[r][q], weights[q], a);
            }
        }
    }
    const int32x4_t by = vdupq_n_s32(shift);
    for (int r = 0; r < m; r++)
        for (int q = 0; q < 4; q++) {
            int32_t *to = acc + r * BS_PANEL + 4 * q;
            vst1q_s32(to, vaddq_s32(vld1q_s32(to), vshlq_s32(sums[r][q], by)));
        }
}

INLINE void rows_of(const int8_t *codes, int64_t stride, int m, const uint8_t *lines, int64_t n_lines, const int bits, int shift, int32_t *acc) {
    int r = 0;
    for (; r + 4 <= m; r += 4) tile_of(codes + r * stride, stride, 4, lines, n_lines, bits, shift, acc + r * BS_PANEL);
    for (; r < m; r++) tile_of(codes + r * stride, stride, 1, lines, n_lines, bits, shift, acc + r * BS_PANEL);
}

static void multiply_panel(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int form, int shift, int32_t *acc) {
    switch (form) {
    case 1: rows_of(codes + first, padded, m, lines, n_lines, 1, shift, acc); break;
    case 2: rows_of(codes + first, padded, m, lines, n_lines, 2, shift, acc); break;
    default: rows_of(codes + first, padded, m, lines, n_lines, 4, shift, acc);
    }
}
