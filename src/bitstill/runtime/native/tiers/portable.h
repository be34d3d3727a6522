/* Any processor: plain C. */
enum { ONE_BIT_FORM = BS_LINES_1, MIN_ROWS_PER_THREAD = 8 };

static int runs_here(void) { return 1; }

INLINE void multiply_rows(row_tile tile, int m, const int bits) {
    const int quads = 8 / bits, mask = (1 << bits) - 1;
    for (int64_t line = 0; line < tile.n_lines; line++, tile.lines += BS_LINE)
        for (int i = 0; i < quads; i++) {
            int16_t weights[BS_LINE];
            for (int b = 0; b < BS_LINE; b++) weights[b] = (int16_t)(tile.lines[b] >> (i * bits) & mask);
            for (int r = 0; r < m; r++) {
                const int8_t *a = tile.codes + r * tile.stride + tile.first + (line * quads + i) * BS_QUAD;
                int32_t *to = tile.acc + r * BS_PANEL;
                for (int n = 0; n < BS_PANEL; n++) {
                    const int16_t *w = weights + BS_QUAD * n;
                    int32_t sum = w[0] * a[0] + w[1] * a[1] + w[2] * a[2] + w[3] * a[3];
                    to[n] += (int32_t)((uint32_t)sum << tile.shift);
                }
            }
        }
}
