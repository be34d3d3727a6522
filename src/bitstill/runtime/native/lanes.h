/* Eight floats at a time, or sixteen where registers are that wide, in the compiler's own vector types: it makes of them what the
   instruction set has. */
#ifndef BITSTILL_LANES_H
#define BITSTILL_LANES_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

INLINE floats load(const float *from) { floats x; memcpy(&x, from, sizeof x); return x; }
INLINE ints load_ints(const int32_t *from) { ints x; memcpy(&x, from, sizeof x); return x; }
INLINE void store(float *to, floats x) { memcpy(to, &x, sizeof x); }
INLINE floats all(float x) { return x - (floats){0}; }
INLINE ints all_ints(int32_t x) { return x - (ints){0}; }
INLINE floats as_floats(ints x) { return __builtin_convertvector(x, floats); }
INLINE ints as_ints(floats x) { return __builtin_convertvector(x, ints); } /* towards zero */
INLINE floats choose(ints where, floats yes, floats no) { return (floats)((where & (ints)yes) | (~where & (ints)no)); }
#if LANES == 16 /* one instruction, which compilers do not find: a > b ? a : b */
INLINE floats largest(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE floats smallest(floats a, floats b) { return (floats)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
INLINE floats largest(floats a, floats b) { return (floats)__builtin_ia32_maxps256(a, b); }
INLINE floats smallest(floats a, floats b) { return (floats)__builtin_ia32_minps256(a, b); }
#else
INLINE floats largest(floats a, floats b) { return choose(a > b, a, b); }
INLINE floats smallest(floats a, floats b) { return choose(a < b, a, b); }
#endif
INLINE floats magnitude(floats x) { return (floats)((ints)x & all_ints(0x7fffffff)); }

/* To the nearest whole number, ties to even, as torch and ONNX round: for |x| < 2^22, and no compiler that keeps to IEEE
   arithmetic may simplify it. Between the two steps the float's lowest byte is that of the number. */
#define BIG 12582912.0f /* 1.5 * 2^23 */
INLINE floats nearest(floats x) { return (x + all(BIG)) - all(BIG); }
INLINE ints in_lowest_byte(floats x) { return (ints)(x + all(BIG)); }

INLINE int any(ints where) {
    int64_t parts[LANES / 2], found = 0;
    memcpy(parts, &where, sizeof parts);
    for (int i = 0; i < LANES / 2; i++) found |= parts[i];
    return found != 0;
}
#if LANES == 16
INLINE float sum_of(floats x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float largest_of(floats x) { return _mm512_reduce_max_ps((__m512)x); }
INLINE float smallest_of(floats x) { return _mm512_reduce_min_ps((__m512)x); }
/* a / b to the last bit or the one before it, sooner than by dividing; b is far from 0 and from infinity. */
INLINE floats quotient(floats a, floats b) {
    floats by = (floats)_mm512_rcp14_ps((__m512)b);
    by = by * (all(2.0f) - b * by);
    floats y = a * by;
    return y + (a - y * b) * by;
}
#else
INLINE float sum_of(floats x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
INLINE float largest_of(floats x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}
INLINE float smallest_of(floats x) {
    float least = x[0];
    for (int i = 1; i < LANES; i++) least = x[i] < least ? x[i] : least;
    return least;
}
INLINE floats quotient(floats a, floats b) { return a / b; }
#endif

/* e^x by 2^n * e^r, |r| <= ln(2) / 2, and the Taylor series of e^r to r^7: 2e-7 relative. */
INLINE floats exponential(floats x) {
    x = smallest(largest(x, all(-87.3f)), all(88.3f));
    floats n = nearest(x * all(1.44269504f));
    floats r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    floats y = all(1.0f / 5040);
    y = y * r + all(1.0f / 720);
    y = y * r + all(1.0f / 120);
    y = y * r + all(1.0f / 24);
    y = y * r + all(1.0f / 6);
    y = y * r + all(0.5f);
    y = y * r + all(1.0f);
    y = y * r + all(1.0f);
    return y * (floats)((as_ints(n) + all_ints(127)) << 23);
}

INLINE floats hyperbolic_tangent(floats x) {
    /* Near zero, where 1 - 2 / (e^2x + 1) cancels, by its continued fraction. */
    floats square = x * x;
    floats small = quotient(x * (all(945.0f) + square * (all(105.0f) + square)), all(945.0f) + square * (all(420.0f) + square * all(15.0f)));
    floats far = all(1.0f) - quotient(all(2.0f), exponential(smallest(x + x, all(30.0f))) + all(1.0f));
    return choose(magnitude(x) < all(0.6f), small, far);
}

/* The error function as x P(x^2) / Q(x^2) on [-4, 4], beyond which it is 1 in single precision; the coefficients are those of
   Eigen and XLA. */
INLINE floats error_function(floats x) {
    x = smallest(largest(x, all(-4.0f)), all(4.0f));
    floats y = x * x;
    floats p = all(-2.72614225801306e-10f);
    p = p * y + all(2.77068142495902e-08f);
    p = p * y + all(-2.10102402082508e-06f);
    p = p * y + all(-5.69250639462346e-05f);
    p = p * y + all(-7.34990630326855e-04f);
    p = p * y + all(-2.95459980854025e-03f);
    p = p * y + all(-1.60960333262415e-02f);
    floats q = all(-1.45660718464996e-05f);
    q = q * y + all(-2.13374055278905e-04f);
    q = q * y + all(-1.68282697438203e-03f);
    q = q * y + all(-7.37332916720468e-03f);
    q = q * y + all(-1.42647390514189e-02f);
    return quotient(x * p, q);
}

INLINE floats applied(int function, floats x) {
    switch (function) {
    case 1: return largest(x, all(0.0f));
    case 2: return x * all(0.5f) * (all(1.0f) + error_function(x * all(0.70710678f)));
    case 3: return x * all(0.5f) * (all(1.0f) + hyperbolic_tangent(all(0.79788456f) * (x + all(0.044715f) * x * x * x)));
    case 4: return hyperbolic_tangent(x);
    }
    return x;
}

#endif
