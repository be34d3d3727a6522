/* Convolutions: windows of an image, gathered as rows, times the kernels. Images are (samples x height x width,
   channels). */
#include "kernels.h"

/* Source of windows, gathered as rows (m, padded) of (kernel height, kernel width, channels) codes or floats. */
typedef struct {
    const char *image;
    int64_t element; /* bytes of an element */
    int64_t padded;  /* elements in a row */
} window_source;

static void gather_window(const bs_step *step, window_source from, int64_t row, int outside, char *to) {
    int64_t pixels = (int64_t)step->out_height * step->out_width, sample = row / pixels, pixel = row % pixels;
    int64_t top = pixel / step->out_width * step->stride - step->padding;
    int64_t left = pixel % step->out_width * step->stride - step->padding;
    int64_t pixel_bytes = step->channels * from.element;
    char *end = to + from.padded * from.element;
    for (int64_t y = top; y < top + step->kernel_height; y++)
        for (int64_t x = left; x < left + step->kernel_width; x++, to += pixel_bytes) {
            int inside = y >= 0 && y < step->height && x >= 0 && x < step->width;
            int64_t at = (sample * step->height + y) * step->width + x;
            if (inside) memcpy(to, from.image + at * pixel_bytes, (size_t)pixel_bytes);
            else memset(to, outside, (size_t)pixel_bytes);
        }
    memset(to, 0, (size_t)(end - to));
}

/* Scale, zero point and shift of each row, equal for all pixels of a sample. */
typedef struct {
    float scale[BS_BLOCK], shift[BS_BLOCK];
    int32_t zero[BS_BLOCK];
} sample_numbers;

static void convolve_block(const bs_run *run, const bs_step *step, int64_t row, int m, char *gathered) {
    const bs_matrix *matrix = step->matrix;
    coded_value codes = codes_of(run, step->input);
    window_source from = {(const char *)codes.codes, sizeof(int8_t), matrix->padded};
    int64_t in_pixels = (int64_t)step->height * step->width, out_pixels = (int64_t)step->out_height * step->out_width;
    sample_numbers numbers;
    for (int i = 0; i < m; i++) {
        int64_t pixel = (row + i) / out_pixels * in_pixels; /* first pixel of the sample */
        numbers.scale[i] = codes.scale[pixel], numbers.shift[i] = codes.shift[pixel];
        numbers.zero[i] = codes.zero[pixel];
        gather_window(step, from, row + i, numbers.zero[i], gathered + i * matrix->padded);
    }
    coded_rows rows = {.row = row, .m = m, .scale = numbers.scale, .zero = numbers.zero, .shift = numbers.shift};
    prepare_rows(matrix, (const int8_t *)gathered, &rows, gathered + BS_BLOCK * matrix->padded);
    int64_t panels = bs_panels(matrix);
    for (int64_t panel = 0; panel < panels; panel += BS_PANELS_AT_ONCE)
        finish_codes(run, step, &rows, panel, (int)BS_MIN(BS_PANELS_AT_ONCE, panels - panel));
}

static void convolve_codes(const bs_run *run, const bs_step *step, bs_member *member) {
    int64_t rows = run->rows[step->output], at_once = bs_rows_at_once(step->matrix);
    bs_part part = bs_share(member, BS_UP(rows, at_once) / at_once);
    for (int64_t row = part.from * at_once; row < BS_MIN(part.to * at_once, rows); row += at_once)
        convolve_block(run, step, row, (int)BS_MIN(at_once, rows - row), scratch_of(run, member));
}

static void convolve_floats(const bs_run *run, const bs_step *step, bs_member *member) {
    const bs_matrix *matrix = step->matrix;
    int64_t rows = run->rows[step->output], panels = bs_panels(matrix);
    window_source from = {(const char *)value_of(run, step->input), sizeof(float), matrix->inputs};
    float *gathered = (float *)scratch_of(run, member), *unpacked = gathered + BS_BLOCK * matrix->inputs;
    bs_part part = bs_share(member, BS_UP(rows, BS_BLOCK) / BS_BLOCK);
    for (int64_t panel = 0; panel < panels && part.from < part.to; panel++) {
        const float *weights = dense_panel(matrix, panel, unpacked);
        for (int64_t row = part.from * BS_BLOCK; row < BS_MIN(part.to * BS_BLOCK, rows); row += BS_BLOCK) {
            int m = (int)BS_MIN(BS_BLOCK, rows - row);
            for (int i = 0; i < m; i++) gather_window(step, from, row + i, 0, (char *)(gathered + i * matrix->inputs));
            finish_floats(run, step, gathered, row, m, weights, panel);
        }
    }
}

KERNEL(convolve) {
    if (step->quantized) convolve_codes(run, step, member);
    else convolve_floats(run, step, member);
}
