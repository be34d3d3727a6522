/* Vectors of eight floats, or sixteen if registers are that wide, in the compiler's generic vector types. */
#ifndef BITSTILL_SIMD_H
#define BITSTILL_SIMD_H

#include <stdint.h>
#include <string.h>

#include "bitstill.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif
typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

INLINE vfloat load(const float *from) { vfloat x; memcpy(&x, from, sizeof x); return x; }
INLINE vint load_ints(const int32_t *from) { vint x; memcpy(&x, from, sizeof x); return x; }
INLINE void store(float *to, vfloat x) { memcpy(to, &x, sizeof x); }
INLINE vfloat splat(float x) { return x - (vfloat){0}; }
INLINE vint splat_int(int32_t x) { return x - (vint){0}; }
INLINE vfloat to_float(vint x) { return __builtin_convertvector(x, vfloat); }
INLINE vint to_int(vfloat x) { return __builtin_convertvector(x, vint); } /* towards zero */
INLINE vfloat select_lanes(vint where, vfloat yes, vfloat no) {
    return (vfloat)((where & (vint)yes) | (~where & (vint)no));
}
#if LANES == 16 /* one instruction, which compilers do not generate from a > b ? a : b */
INLINE vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
INLINE vfloat vmax(vfloat a, vfloat b) { return (vfloat)__builtin_ia32_maxps256(a, b); }
INLINE vfloat vmin(vfloat a, vfloat b) { return (vfloat)__builtin_ia32_minps256(a, b); }
#else
INLINE vfloat vmax(vfloat a, vfloat b) { return select_lanes(a > b, a, b); }
INLINE vfloat vmin(vfloat a, vfloat b) { return select_lanes(a < b, a, b); }
#endif
#define ALL_BUT_SIGN 0x7fffffff
INLINE vfloat vabs(vfloat x) { return (vfloat)((vint)x & splat_int(ALL_BUT_SIGN)); }

/* Rounds to the nearest integer, ties to even, as torch and ONNX do, for |x| < 2^22. Under IEEE rules, compilers may
   not simplify it. After the addition, the lowest byte of the float is that of the integer. */
#define ROUNDING 12582912.0f /* 1.5 * 2^23 */
INLINE vfloat round_even(vfloat x) { return (x + splat(ROUNDING)) - splat(ROUNDING); }
INLINE vint rounded_in_low_byte(vfloat x) { return (vint)(x + splat(ROUNDING)); }

INLINE int any_lane(vint where) {
    int64_t parts[LANES / 2], bits = 0;
    memcpy(parts, &where, sizeof parts);
    for (int i = 0; i < LANES / 2; i++) bits |= parts[i];
    return bits != 0;
}
#if LANES == 16
INLINE float reduce_sum(vfloat x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float reduce_max(vfloat x) { return _mm512_reduce_max_ps((__m512)x); }
INLINE float reduce_min(vfloat x) { return _mm512_reduce_min_ps((__m512)x); }
/* a / b to within the last bit, faster than a division; b must be far from 0 and infinity. */
INLINE vfloat divide(vfloat a, vfloat b) {
    vfloat reciprocal = (vfloat)_mm512_rcp14_ps((__m512)b);
    reciprocal = reciprocal * (splat(2.0f) - b * reciprocal);
    vfloat y = a * reciprocal;
    return y + (a - y * b) * reciprocal;
}
#else
INLINE float reduce_sum(vfloat x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
INLINE float reduce_max(vfloat x) {
    float largest = x[0];
    for (int i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}
INLINE float reduce_min(vfloat x) {
    float smallest = x[0];
    for (int i = 1; i < LANES; i++) smallest = x[i] < smallest ? x[i] : smallest;
    return smallest;
}
INLINE vfloat divide(vfloat a, vfloat b) { return a / b; }
#endif

/* Evaluates a polynomial by Horner's rule; the coefficient of the highest power comes first. */
INLINE vfloat polynomial(vfloat x, const float *coefficients, const int n) {
    vfloat y = splat(coefficients[0]);
#pragma GCC unroll 8
    for (int i = 1; i < n; i++) y = y * x + splat(coefficients[i]);
    return y;
}
#define POLYNOMIAL(x, coefficients) polynomial(x, coefficients, sizeof coefficients / sizeof coefficients[0])

#define LOWEST_EXPONENT -87.3f /* lowest x for which e^x is a normal number */
#define HIGHEST_EXPONENT 88.3f /* highest x for which e^x is finite */
#define LOG2_E 1.44269504f
#define LN_2_HIGH 0.693359375f /* ln(2) in two parts; n times the first is exact */
#define LN_2_LOW -2.12194440e-4f
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23

/* e^x as 2^n * e^r, |r| <= ln(2) / 2, with the Taylor series of e^r to r^7: relative error 2e-7. */
INLINE vfloat vexp(vfloat x) {
    static const float taylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    x = vmin(vmax(x, splat(LOWEST_EXPONENT)), splat(HIGHEST_EXPONENT));
    vfloat n = round_even(x * splat(LOG2_E));
    vfloat r = x - n * splat(LN_2_HIGH) - n * splat(LN_2_LOW);
    return POLYNOMIAL(r, taylor) * (vfloat)((to_int(n) + splat_int(EXPONENT_BIAS)) << MANTISSA_BITS);
}

#define TANH_SMALL 0.6f  /* below, 1 - 2 / (e^2x + 1) cancels, and a continued fraction is exact */
#define TANH_LARGE 30.0f /* above half of this, tanh is 1 in single precision */

INLINE vfloat vtanh(vfloat x) {
    static const float over[] = {1.0f, 105.0f, 945.0f}, under[] = {15.0f, 420.0f, 945.0f};
    vfloat square = x * x;
    vfloat small = divide(x * POLYNOMIAL(square, over), POLYNOMIAL(square, under));
    vfloat large = splat(1.0f) - divide(splat(2.0f), vexp(vmin(x + x, splat(TANH_LARGE))) + splat(1.0f));
    return select_lanes(vabs(x) < splat(TANH_SMALL), small, large);
}

#define ERF_LARGE 4.0f /* above, erf is 1 in single precision */

/* The error function as x P(x^2) / Q(x^2); the coefficients are those of Eigen and XLA. */
INLINE vfloat verf(vfloat x) {
    static const float over[] = {-2.72614225801306e-10f, 2.77068142495902e-08f,  -2.10102402082508e-06f,
                                 -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                                 -1.60960333262415e-02f};
    static const float under[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                                  -7.37332916720468e-03f, -1.42647390514189e-02f};
    x = vmin(vmax(x, splat(-ERF_LARGE)), splat(ERF_LARGE));
    vfloat square = x * x;
    return divide(x * POLYNOMIAL(square, over), POLYNOMIAL(square, under));
}

#define SQRT_HALF 0.70710678f
#define SQRT_2_OVER_PI 0.79788456f
#define GELU_CUBIC 0.044715f

INLINE vfloat activation(enum bs_function function, vfloat x) {
    const vfloat half = splat(0.5f), one = splat(1.0f);
    switch (function) {
    case BS_RELU: return vmax(x, splat(0.0f));
    case BS_GELU: return x * half * (one + verf(x * splat(SQRT_HALF)));
    case BS_GELU_TANH: return x * half * (one + vtanh(splat(SQRT_2_OVER_PI) * (x + splat(GELU_CUBIC) * x * x * x)));
    case BS_TANH: return vtanh(x);
    case BS_NONE: break;
    }
    return x;
}

#endif
