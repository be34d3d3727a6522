/* Steps that work on one row at a time: dequantization, elementwise operations, layer norm. */
#include <math.h>

#include "epilogue.h"

static void dequantize_row(const coded_value *codes, int64_t row, int64_t padded, float *to, int64_t width) {
    const int8_t *x = codes->codes + row * padded;
    int32_t zero = codes->zero[row];
    float scale = codes->scale[row], shift = codes->shift[row];
    for (int64_t k = 0; k < width; k++) to[k] = (float)(x[k] - zero) * scale + shift;
}

KERNEL(map) {
    int64_t width = run->width[step->output];
    bs_part part = bs_share(member, run->rows[step->output]);
    coded_value codes = codes_of(run, step->input);
    for (int64_t row = part.from; row < part.to; row++) {
        float *y = value_of(run, step->output) + row * width;
        if (step->quantized) dequantize_row(&codes, row, run->width[step->input], y, width);
        else memcpy(y, value_of(run, step->input) + row * width, sizeof(float) * width);
        finish_row(run, step, row);
    }
}

static float mean_of(const float *x, int64_t n) {
    int64_t whole = n / LANES * LANES;
    vfloat sums = splat(0.0f);
    float rest = 0.0f;
    for (int64_t k = 0; k < whole; k += LANES) sums += load(x + k);
    for (int64_t k = whole; k < n; k++) rest += x[k];
    return (rest + reduce_sum(sums)) / n;
}

static float variance_of(const float *x, int64_t n, float mean) {
    int64_t whole = n / LANES * LANES;
    vfloat squares = splat(0.0f);
    float rest = 0.0f;
    for (int64_t k = 0; k < whole; k += LANES) {
        vfloat difference = load(x + k) - splat(mean);
        squares += difference * difference;
    }
    for (int64_t k = whole; k < n; k++) rest += (x[k] - mean) * (x[k] - mean);
    return (rest + reduce_sum(squares)) / n;
}

KERNEL(norm) {
    int64_t width = run->width[step->output], whole = width / LANES * LANES;
    const float *weight = step->weight, *bias = step->bias;
    bs_part part = bs_share(member, run->rows[step->output]);
    for (int64_t row = part.from; row < part.to; row++) {
        const float *x = value_of(run, step->input) + row * width;
        float *y = value_of(run, step->output) + row * width, mean = mean_of(x, width);
        float scale = 1.0f / sqrtf(variance_of(x, width, mean) + step->epsilon);
        for (int64_t k = 0; k < whole; k += LANES)
            store(y + k, (load(x + k) - splat(mean)) * splat(scale) * load(weight + k) + load(bias + k));
        for (int64_t k = whole; k < width; k++) y[k] = (x[k] - mean) * scale * weight[k] + bias[k];
        finish_row(run, step, row);
    }
}
