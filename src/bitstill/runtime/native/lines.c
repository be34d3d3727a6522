/* Packing of codes into lines, and unpacking of rows of a file into codes. */
#include <string.h>

#include "tier.h"

#define NIBBLE_LINE 32 /* inputs in a line of nibbles */

/* Packs four 1-bit codes, the first into the lowest bit. */
static inline uint8_t nibble_of(const uint8_t *codes) {
    return (uint8_t)(codes[0] | codes[1] << 1 | codes[2] << 2 | codes[3] << 3);
}

/* Packs codes of one output (bytes 0 or 1) into as many whole lines of nibbles as they fill. Returns the number of
   codes packed. */
static int64_t pack_whole_nibble_lines(const uint8_t *codes, int64_t inputs, uint8_t *lines) {
    int64_t k = 0;
    for (; k + NIBBLE_LINE <= inputs; k += NIBBLE_LINE, lines += BS_LINE)
        for (int v = 0; v < 2; v++)
            for (int h = 0; h < 2; h++) {
                const uint8_t *low = codes + k + 16 * v + 4 * h, *high = low + 8;
                lines[32 * v + 16 * h] = (uint8_t)(nibble_of(low) | nibble_of(high) << 4);
            }
    return k;
}

/* Byte and bit of the code of one output and input in a line of nibbles. */
static inline int nibble_byte(int64_t quad) { return (int)(quad / 4 * 32 + quad % 2 * 16); }
static inline int nibble_bit(int64_t quad, int64_t input) { return (int)(quad / 2 % 2 * 4 + input % BS_QUAD); }

void bs_pack_lines(const uint8_t *codes, int64_t outputs, int64_t inputs, int64_t padded, int form, int shift,
                   uint8_t *lines) {
    int bits = form == BS_NIBBLES ? 1 : form, mask = (1 << bits) - 1;
    int64_t quads = 8 / bits, panel_bytes = padded / bs_line_inputs(bits) * BS_LINE;
    memset(lines, 0, (size_t)(BS_UP(outputs, BS_PANEL) / BS_PANEL * panel_bytes));
    for (int64_t output = 0; output < outputs; output++, codes += inputs) {
        uint8_t *panel = lines + output / BS_PANEL * panel_bytes;
        int64_t n = output % BS_PANEL, k = 0;
        if (form == BS_NIBBLES && shift == 0) k = pack_whole_nibble_lines(codes, inputs, panel + n);
        for (; k < inputs; k++) {
            int64_t quad = k / BS_QUAD % quads;
            uint8_t *line = panel + k / bs_line_inputs(bits) * BS_LINE, code = codes[k] >> shift & mask;
            if (form == BS_NIBBLES) line[nibble_byte(quad) + n] |= (uint8_t)(code << nibble_bit(quad, k));
            else line[BS_QUAD * n + k % BS_QUAD] |= (uint8_t)(code << (quad * bits));
        }
    }
}

static void unpack_single_bits(const uint8_t *packed, int64_t length, uint8_t *codes) {
    for (int64_t byte = 0; byte < length / 8; byte++)
        for (int i = 0; i < 8; i++) codes[8 * byte + i] = packed[byte] >> i & 1;
    for (int64_t k = length / 8 * 8; k < length; k++) codes[k] = packed[k / 8] >> (k % 8) & 1;
}

void bs_unpack_rows(const uint8_t *packed, int64_t rows, int64_t length, int64_t bytes, int layout, int bits,
                    uint8_t *codes) {
    for (int64_t row = 0; row < rows; row++, packed += bytes, codes += length) {
        if (layout == BS_LAYOUT_BYTES) memcpy(codes, packed, (size_t)length);
        else if (layout == BS_LAYOUT_TRITS)
            for (int64_t k = 0; k < length; k++) codes[k] = (uint8_t)bs_trit_at(packed, k);
        else if (bits == 1) unpack_single_bits(packed, length, codes);
        else
            for (int64_t k = 0; k < length; k++) codes[k] = (uint8_t)bs_bits_at(packed, k * bits, bits);
    }
}
