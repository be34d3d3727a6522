/* Any processor: plain C. */
static int runs_here(void) { return 1; }

static void multiply_panel(const int8_t *codes, int64_t padded, int64_t first, int m, const uint8_t *lines, int64_t n_lines, int bits, int shift, int32_t *acc) {
    int quads = 8 / bits, mask = (1 << bits) - 1;
    for (int64_t line = 0; line < n_lines; line++)
        for (int i = 0; i < quads; i++) {
            int16_t weights[BS_LINE];
            for (int b = 0; b < BS_LINE; b++) weights[b] = (int16_t)(lines[line * BS_LINE + b] >> (i * bits) & mask);
            for (int r = 0; r < m; r++) {
                const int8_t *a = codes + r * padded + first + (line * quads + i) * 4;
                int32_t *to = acc + r * BS_PANEL;
                for (int n = 0; n < BS_PANEL; n++) {
                    int32_t sum = weights[4 * n] * a[0] + weights[4 * n + 1] * a[1] + weights[4 * n + 2] * a[2] + weights[4 * n + 3] * a[3];
                    to[n] += (int32_t)((uint32_t)sum << shift);
                }
            }
        }
}
