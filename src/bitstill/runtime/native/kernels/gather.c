/* Lookup of rows in tables, and of the first token of each text. */
#include "epilogue.h"

/* Adds the weights of one plane, group by group, to a row of floats. */
static void add_plane_row(const bs_table *table, const bs_rows_plane *plane, int64_t row, float *to) {
    const uint8_t *packed = plane->codes + row * plane->bytes;
    int64_t first_scale = (table->scale_rows > 1 ? row : 0) * table->groups;
    for (int64_t g = 0, k = 0; g < table->groups; g++) {
        int64_t end = BS_MIN(k + table->group, table->length);
        float scale = plane->scale[first_scale + g], offset = plane->offset ? plane->offset[first_scale + g] : 0.0f;
        if (plane->trits) {
            for (; k < end; k++) to[k] += plane->levels[bs_trit_at(packed, k)] * scale + offset;
        } else if (plane->bits == 1) {
            float low = plane->levels[0] * scale + offset, high = plane->levels[1] * scale + offset;
            for (; k < end; k++) to[k] += packed[k >> 3] >> (k & 7) & 1 ? high : low;
        } else {
            int bits = (int)plane->bits;
            for (; k < end; k++) to[k] += plane->levels[bs_bits_at(packed, k * bits, bits)] * scale + offset;
        }
    }
}

static void unpack_row(const bs_table *table, int64_t row, float *to) {
    if (table->dense) {
        memcpy(to, table->dense + row * table->length, sizeof(float) * table->length);
        return;
    }
    memset(to, 0, sizeof(float) * table->length);
    for (int p = 0; p < table->planes; p++) add_plane_row(table, &table->plane[p], row, to);
    if (!table->mask) return;
    const uint8_t *mask = table->mask + row * table->mask_bytes;
    for (int64_t k = 0; k < table->length; k++)
        if (!(mask[k >> 3] >> (k & 7) & 1)) to[k] = 0.0f;
}

KERNEL(gather) {
    bs_part part = bs_share(member, run->rows[step->output]);
    for (int64_t row = part.from; row < part.to; row++) {
        float *to = value_of(run, step->output) + row * run->width[step->output];
        unpack_row(step->table, run->indices[step->index][row], to);
        finish_row(run, step, row);
    }
}

KERNEL(first_token) {
    int64_t width = run->width[step->output];
    bs_part part = bs_share(member, run->rows[step->output]);
    const float *tokens = value_of(run, step->input);
    float *to = value_of(run, step->output);
    for (int64_t text = part.from; text < part.to; text++)
        memcpy(to + text * width, tokens + run->first_rows[text] * width, sizeof(float) * width);
}
