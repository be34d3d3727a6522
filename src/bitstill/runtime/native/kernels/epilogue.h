/* Elementwise operations on a step's outputs, sixteen outputs of a few rows at a time, and their storage. */
#ifndef BITSTILL_EPILOGUE_H
#define BITSTILL_EPILOGUE_H

#include "kernels.h"

typedef vfloat panel_row[PANEL_REGISTERS];

/* Position of outputs in a step's result, and their number without padding. */
typedef struct {
    int64_t row, channel; /* of the first output */
    int rows, channels;   /* extra rows repeat the last one, extra channels pad a panel */
} output_block;

/* Loop over the registers of a few rows, unrolled so that they stay in registers. */
#define EACH_OF(rows)                                        \
    _Pragma("GCC unroll 4") for (int r = 0; r < (rows); r++) \
        _Pragma("GCC unroll 2") for (int h = 0; h < PANEL_REGISTERS; h++)

INLINE void apply_function(enum bs_function function, panel_row *y, const int rows) {
    switch (function) { /* outside the loop */
    case BS_RELU: EACH_OF(rows) y[r][h] = activation(BS_RELU, y[r][h]); break;
    case BS_GELU: EACH_OF(rows) y[r][h] = activation(BS_GELU, y[r][h]); break;
    case BS_GELU_TANH: EACH_OF(rows) y[r][h] = activation(BS_GELU_TANH, y[r][h]); break;
    case BS_TANH: EACH_OF(rows) y[r][h] = activation(BS_TANH, y[r][h]); break;
    case BS_NONE: break;
    }
}

INLINE void add_value(const bs_run *run, int value, panel_row *y, const int rows, output_block at) {
    int64_t width = run->width[value];
    const float *addend = value_of(run, value) + at.row * width + at.channel;
    if (at.channels == BS_PANEL) {
        EACH_OF(rows) y[r][h] += load(addend + BS_MIN(r, at.rows - 1) * width + h * LANES);
        return;
    }
    float padded[FEW_ROWS][BS_PANEL] = {{0}};
    for (int r = 0; r < at.rows; r++) memcpy(padded[r], addend + r * width, sizeof(float) * at.channels);
    EACH_OF(rows) y[r][h] += load(padded[r] + h * LANES);
}

INLINE void apply_epilogue(const bs_run *run, const bs_step *step, panel_row *y, const int rows, output_block at) {
    for (const bs_epilogue *epilogue = step->epilogue; epilogue->kind != BS_END; epilogue++) {
        switch (epilogue->kind) {
        case BS_AFFINE:
            if (epilogue->scale) EACH_OF(rows) y[r][h] *= load(epilogue->scale + at.channel + h * LANES);
            EACH_OF(rows) y[r][h] += load(epilogue->shift + at.channel + h * LANES);
            break;
        case BS_FUNCTION: apply_function(epilogue->function, y, rows); break;
        case BS_ADD: add_value(run, epilogue->value, y, rows, at); break;
        }
    }
}

/* Applies the epilogue to outputs of a few rows, and stores them. */
INLINE void store_outputs(const bs_run *run, const bs_step *step, panel_row *y, output_block at) {
    int64_t width = run->width[step->output];
    float *to = value_of(run, step->output) + at.row * width + at.channel;
    apply_epilogue(run, step, y, FEW_ROWS, at);
    if (at.channels == BS_PANEL) {
        EACH_OF(FEW_ROWS) if (r < at.rows) store(to + r * width + h * LANES, y[r][h]);
        return;
    }
    float padded[FEW_ROWS][BS_PANEL];
    EACH_OF(FEW_ROWS) store(padded[r] + h * LANES, y[r][h]);
    for (int r = 0; r < at.rows; r++, to += width) memcpy(to, padded[r], sizeof(float) * at.channels);
}

/* Applies the epilogue to a whole row of the result, in place. */
static inline void finish_row(const bs_run *run, const bs_step *step, int64_t row) {
    int64_t width = run->width[step->output];
    float *outputs = value_of(run, step->output) + row * width;
    if (step->epilogue[0].kind == BS_END) return;
    for (int64_t n = 0; n < width; n += BS_PANEL) {
        panel_row y[1] = {{{0}}};
        int channels = (int)BS_MIN(BS_PANEL, width - n);
        memcpy(y, outputs + n, sizeof(float) * channels);
        apply_epilogue(run, step, y, 1, (output_block){row, n, 1, channels});
        memcpy(outputs + n, y, sizeof(float) * channels);
    }
}

#endif
