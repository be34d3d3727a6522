/* Shared declarations of the kernels of one tier. Each file of this folder is compiled once per instruction set, with
   TIER and the flags of that tier; TIERED gives each compiled function a unique name. */
#ifndef BITSTILL_KERNELS_H
#define BITSTILL_KERNELS_H

#ifdef __SSE__
#include <immintrin.h>
#endif

#include "simd.h"
#include "tier.h"

#define JOIN_(tier, name) bs_##tier##_##name
#define JOIN(tier, name) JOIN_(tier, name)
#define TIERED(name) JOIN(TIER, name)

#define PANEL_REGISTERS (BS_PANEL / LANES) /* registers for sixteen outputs */
#define FEW_ROWS (LANES / 4) /* rows processed together, so that their latencies overlap */

/* The integer product: see tier.h. */
#define tier_pack_rows TIERED(pack_rows)
#define tier_multiply TIERED(multiply)
const int8_t *tier_pack_rows(const int8_t *codes, int64_t padded, int m, int form, int8_t *copy);
void tier_multiply(const bs_gemm *gemm, int32_t *acc);

/* Product of a (m, inner) and b (inner, columns), with columns a multiple of 16; strides are floats from one row to
   the next. */
typedef struct {
    const float *a, *b;
    float *result;
    int64_t a_stride, b_stride, result_stride;
    int64_t inner, columns;
    int m;
} float_gemm;
#define multiply_floats TIERED(multiply_floats)
void multiply_floats(float_gemm gemm);

/* Weights of one panel as floats (inputs, 16): unpacked into `to`, or in place if not packed. */
#define dense_panel TIERED(dense_panel)
const float *dense_panel(const bs_matrix *matrix, int64_t panel, float *to);
/* Computes the outputs of one panel for m rows of floats (m, inputs), starting at row `row` of the result. */
#define finish_floats TIERED(finish_floats)
void finish_floats(const bs_run *run, const bs_step *step, const float *rows, int64_t row, int m, const float *weights,
                   int64_t panel);

/* Rows of codes, ready to be multiplied. */
typedef struct {
    const int8_t *packed;
    const int32_t *sums; /* sums of codes minus zero points, (m, groups) */
    int64_t row;         /* index of the first row in the result */
    int m;
    const float *scale, *shift; /* of each row */
    const int32_t *zero;        /* of each row */
} coded_rows;
/* Packs and sums rows of codes (m, padded) in `scratch`, setting these two fields; the others are already set. */
#define prepare_rows TIERED(prepare_rows)
void prepare_rows(const bs_matrix *matrix, const int8_t *codes, coded_rows *rows, char *scratch);
/* Computes the outputs of a few panels, starting at `panel`. */
#define finish_codes TIERED(finish_codes)
void finish_codes(const bs_run *run, const bs_step *step, const coded_rows *rows, int64_t panel, int panels);

/* Values of codes: (code - zero) * scale + shift. */
typedef struct {
    float scale, shift;
    int32_t zero;
} affine;
typedef struct {
    float min, max;
} value_range;
#define EMPTY_RANGE ((value_range){INFINITY, -INFINITY})
#define widen_range TIERED(widen_range)
value_range widen_range(value_range range, const float *x, int64_t n);
#define affine_for TIERED(affine_for)
affine affine_for(const bs_rule *rule, value_range range);
#define quantize_row TIERED(quantize_row)
void quantize_row(const bs_rule *rule, affine a, const float *x, int64_t n, int8_t *to);
/* Whether quantization depends on the range of the values. */
static inline int needs_range(const bs_rule *rule) { return rule->range != BS_STEP || !rule->symmetric; }

/* A quantized value in the arena. */
typedef struct {
    float *scale;  /* of each row */
    int32_t *zero; /* of each row */
    float *shift;  /* of each row */
    int8_t *codes; /* (rows, padded) */
} coded_value;

static inline float *value_of(const bs_run *run, int value) { return (float *)(run->arena + run->offset[value]); }
static inline char *scratch_of(const bs_run *run, const bs_member *member) {
    return run->scratch + member->thread * run->scratch_bytes;
}
static inline coded_value codes_of(const bs_run *run, int value) {
    int64_t bytes = BS_UP((int64_t)sizeof(float) * run->rows[value], BS_ALIGN);
    char *scale = run->arena + run->offset[value], *zero = scale + bytes, *shift = zero + bytes, *codes = shift + bytes;
    return (coded_value){(float *)scale, (int32_t *)zero, (float *)shift, (int8_t *)codes};
}

/* Kernels by operation. */
#define KERNEL(name) void TIERED(name)(const bs_run *run, const bs_step *step, bs_member *member)
KERNEL(gather);
KERNEL(map);
KERNEL(quantize);
KERNEL(linear);
KERNEL(convolve);
KERNEL(norm);
KERNEL(attend);
KERNEL(attend_ranges);
KERNEL(first_token);
KERNEL(pool);
KERNEL(input);
KERNEL(flatten);

#endif
