/* Images: order of dimensions, and pooling. Inside a network they are (samples x height x width, channels). */
#include <math.h>

#include "epilogue.h"

/* Converts from the layout of callers, (samples, channels, height, width). */
KERNEL(input) {
    int64_t pixels = (int64_t)step->height * step->width;
    bs_part part = bs_share(member, run->samples * pixels);
    for (int64_t row = part.from; row < part.to; row++) {
        const float *x = run->inputs[step->index] + row / pixels * pixels * step->channels + row % pixels;
        float *y = value_of(run, step->output) + row * step->channels;
        for (int c = 0; c < step->channels; c++) y[c] = x[c * pixels];
    }
}

/* Converts to (samples, channels x height x width), the layout that the next layers expect. */
KERNEL(flatten) {
    int64_t pixels = (int64_t)step->height * step->width;
    bs_part part = bs_share(member, run->samples);
    for (int64_t sample = part.from; sample < part.to; sample++) {
        const float *x = value_of(run, step->input) + sample * pixels * step->channels;
        float *y = value_of(run, step->output) + sample * pixels * step->channels;
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int c = 0; c < step->channels; c++) y[c * pixels + pixel] = x[pixel * step->channels + c];
    }
}

static void pool_window(const bs_step *step, const float *top_left, float *y) {
    int channels = step->channels, mean = step->pooling == BS_POOL_MEAN;
    for (int c = 0; c < channels; c++) y[c] = mean ? 0.0f : -INFINITY;
    for (int i = 0; i < step->kernel_height; i++)
        for (int j = 0; j < step->kernel_width; j++) {
            const float *x = top_left + ((int64_t)i * step->width + j) * channels;
            if (mean)
                for (int c = 0; c < channels; c++) y[c] += x[c];
            else
                for (int c = 0; c < channels; c++) y[c] = BS_MAX(x[c], y[c]);
        }
    if (!mean) return;
    for (int c = 0; c < channels; c++) y[c] /= (float)(step->kernel_height * step->kernel_width);
}

KERNEL(pool) {
    int64_t pixels = (int64_t)step->out_height * step->out_width;
    bs_part part = bs_share(member, run->rows[step->output]);
    for (int64_t row = part.from; row < part.to; row++) {
        int64_t pixel = row % pixels, sample = row / pixels;
        int64_t top = pixel / step->out_width * step->kernel_height;
        int64_t left = pixel % step->out_width * step->kernel_width;
        int64_t at = (sample * step->height + top) * step->width + left;
        const float *x = value_of(run, step->input) + at * step->channels;
        pool_window(step, x, value_of(run, step->output) + row * step->channels);
        finish_row(run, step, row);
    }
}
