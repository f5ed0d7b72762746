// Elementary functions of PvReal that a compiler turns into vector code.
//
// libm's functions are calls, one number at a time; these are straight code without branches, so
// a loop over them becomes vectors under -O3 with no relaxed arithmetic. They do not depend on
// contraction: where a multiply-add is meant, it says so (pv_fma). In f32 the error is at most 2
// or 3 units in the last place (pv_erf, pv_sin, pv_cos and the gates: absolute, of numbers up to
// 1); infinities and NaN come out as they should. The polynomials are near-minimax fits, made with
// Remez's exchange in 40 digits. In f64 (gradient checks) the same names lead to libm.
//
// Also here: the operations of ops.def that C has no operator for.
#ifndef PV_MATH_H
#define PV_MATH_H

// Compilers tuned for older AVX-512 processors prefer vectors of half the width; for the functions
// below the full width is up to twice as fast.
#if defined __AVX512F__ && !defined __clang__
#pragma GCC target("prefer-vector-width=512")
#endif

#include <math.h>
#include <string.h>

#include "runtime/pvdm.h"

#define PV_FN static inline __attribute__((always_inline, unused))

#ifndef PV_REAL64

PV_FN float pv_fma(float x, float y, float z)
{
    return __builtin_fmaf(x, y, z);
}

PV_FN int32_t pv_bits(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

PV_FN float pv_from_bits(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#define pv_exp_magic 12582912.0f // 1.5 2^23: rounds to an integer

// e^r of e^x = 2^n e^r, |r| <= ln 2 / 2; n is in the lowest bits of shifted = pv_exp_magic + n.
PV_FN float pv_exp_rest(float x, float *shifted)
{
    *shifted = pv_fma(x, 1.44269504f, pv_exp_magic);
    float n = *shifted - pv_exp_magic;
    float r = pv_fma(n, -0.693145752f, x); // ln 2, 17 bits
    r = pv_fma(n, -1.42860677e-6f, r);     // and the rest
    float p = 0.001381165373f;
    p = pv_fma(p, r, 0.008370134457f);
    p = pv_fma(p, r, 0.04166852845f);
    p = pv_fma(p, r, 0.1666650872f);
    p = pv_fma(p, r, 0.4999999263f);
    return pv_fma(p, r * r, r) + 1.0f;
}

// e^x; the power of two in two factors, for results below 2^-126.
PV_FN float pv_exp(float x)
{
    float shifted;
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float p = pv_exp_rest(x, &shifted);
    int32_t whole = pv_bits(shifted) - pv_bits(pv_exp_magic), half = whole >> 1;
    float scale = pv_from_bits((int32_t)((uint32_t)(half + 127) << 23));
    float rest = pv_from_bits((int32_t)((uint32_t)(whole - half + 127) << 23));
    return p * scale * rest;
}

// e^x, -87 <= x <= 88. For functions that are made of pieces: a compiler evaluates all of them for
// every lane, and pv_exp of what it puts in place of lanes that it does not need may be a number
// below 2^-126, for which processors take many times as long (README.md).
PV_FN float pv_exp_normal(float x)
{
    float shifted, p = pv_exp_rest(x, &shifted);
    return p * pv_from_bits((int32_t)(((uint32_t)pv_bits(shifted) + 127) << 23));
}

// log x = e ln 2 + 2 atanh s, s = (m - 1) / (m + 1), m in [sqrt 1/2, sqrt 2)
PV_FN float pv_log(float x)
{
    float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
    float less = x < 1.17549435e-38f ? -23.0f : 0.0f;
    int32_t bits = pv_bits(scaled);
    int32_t exponent = (bits - 0x3f3504f3) >> 23;
    float m = pv_from_bits((int32_t)((uint32_t)bits - ((uint32_t)exponent << 23)));
    float e = (float)exponent + less;
    float s = (m - 1.0f) / (m + 1.0f), z = s * s;
    float p = 0.298979575f;
    p = pv_fma(p, z, 0.3997664245f);
    p = pv_fma(p, z, 0.6666678293f);
    float y = pv_fma(e, -2.12194440e-4f, pv_fma(p * z, s, 2.0f * s));
    y = pv_fma(e, 0.693359375f, y);
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x == INFINITY || x != x ? x : y;
}

// log(1 + e), 0 <= e <= 1
PV_FN float pv_log1p_unit(float e)
{
    float s = e / (2.0f + e), z = s * s;
    float p = 0.2801200148f;
    p = pv_fma(p, z, 0.2800180087f);
    p = pv_fma(p, z, 0.4002152763f);
    p = pv_fma(p, z, 0.6666641628f);
    return pv_fma(p * z, s, 2.0f * s);
}

// erf a, 0 <= a < 1
PV_FN float pv_erf_small(float a)
{
    float z = a * a;
    float p = 7.853853129e-5f;
    p = pv_fma(p, z, -0.0008010190999f);
    p = pv_fma(p, z, 0.005188327358f);
    p = pv_fma(p, z, -0.02685381173f);
    p = pv_fma(p, z, 0.1128358514f);
    p = pv_fma(p, z, -0.3761262582f);
    p = pv_fma(p, z, 1.128379166f);
    return p * a;
}

// 1 - erf a, a >= 1: e to a polynomial; constant from 9.1 on, where it is below 1e-37
PV_FN float pv_erfc_large(float a)
{
    a = a > 9.1f ? 9.1f : a;
    float p = 3.652438922e-8f;
    p = pv_fma(p, a, -1.82102847e-6f);
    p = pv_fma(p, a, 3.985900816e-5f);
    p = pv_fma(p, a, -0.0005079496128f);
    p = pv_fma(p, a, 0.004232212712f);
    p = pv_fma(p, a, -0.02470295833f);
    p = pv_fma(p, a, 0.1068016166f);
    p = pv_fma(p, a, 0.6354624525f);
    p = pv_fma(p, a, 1.128068629f);
    p = pv_fma(p, a, 0.0002134497187f);
    return pv_exp_normal(-p);
}

PV_FN float pv_erf(float x)
{
    float a = __builtin_fabsf(x);
    float y = a < 1.0f ? pv_erf_small(a) : 1.0f - pv_erfc_large(a);
    return __builtin_copysignf(y, x);
}

PV_FN float pv_tanh(float x)
{
    float a = __builtin_fabsf(x), z = x * x;
    float p = -0.005704993268f;
    p = pv_fma(p, z, 0.02063909259f);
    p = pv_fma(p, z, -0.0537397166f);
    p = pv_fma(p, z, 0.1333144221f);
    p = pv_fma(p, z, -0.3333328194f);
    float small = pv_fma(p * z, x, x);
    float large = 1.0f - 2.0f / (pv_exp_normal(a > 10.0f ? 20.0f : 2.0f * a) + 1.0f);
    return a < 0.625f ? small : __builtin_copysignf(large, x);
}

PV_FN float pv_sigmoid(float x)
{
    float e = pv_exp(-__builtin_fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

PV_FN float pv_softplus(float x)
{
    float y = pv_log1p_unit(pv_exp(-__builtin_fabsf(x)));
    return (x < 0.0f ? 0.0f : x) + y;
}

PV_FN float pv_gelu(float x)
{
    float a = __builtin_fabsf(x) * 0.707106781f;
    float tail = a < 1.0f ? 1.0f - pv_erf_small(a) : pv_erfc_large(a); // erfc a
    return 0.5f * x * (x < 0.0f ? tail : 2.0f - tail);
}

// sin(x + quarter pi / 2): the angle is reduced, and the polynomials are evaluated, in f64, good
// to |x| about 1e9
PV_FN float pv_sin_quarter(float x, int64_t quarter)
{
    const double magic = 6755399441055744.0; // 1.5 2^52
    double shifted = __builtin_fma((double)x, 0.63661977236758134, magic);
    double n = shifted - magic;
    double r = __builtin_fma(n, -1.5707963267948966, (double)x);
    r = __builtin_fma(n, -6.123233995736766e-17, r);
    double z = r * r;
    double s = 2.717366874e-6;
    s = __builtin_fma(s, z, -0.0001983923268);
    s = __builtin_fma(s, z, 0.008333329056);
    s = __builtin_fma(s, z, -0.1666666664);
    s = __builtin_fma(s * z, r, r);
    double c = -2.720330693e-7;
    c = __builtin_fma(c, z, 2.479943645e-5);
    c = __builtin_fma(c, z, -0.001388888344);
    c = __builtin_fma(c, z, 0.04166666662);
    c = __builtin_fma(c * z, z, __builtin_fma(z, -0.5, 1.0));
    int64_t turn;
    memcpy(&turn, &shifted, sizeof turn);
    turn += quarter;
    double y = turn & 1 ? c : s;
    return (float)(turn & 2 ? -y : y);
}

PV_FN float pv_sin(float x)
{
    return pv_sin_quarter(x, 0);
}

PV_FN float pv_cos(float x)
{
    return pv_sin_quarter(x, 1);
}

PV_FN float pv_sqrt(float x)
{
    return __builtin_sqrtf(x);
}

PV_FN float pv_abs(float x)
{
    return __builtin_fabsf(x);
}

PV_FN float pv_floor(float x)
{
    return __builtin_floorf(x);
}

PV_FN float pv_pow(float x, float y)
{
    return __builtin_powf(x, y);
}

PV_FN float pv_fmod(float x, float y)
{
    return __builtin_fmodf(x, y);
}

#else

PV_FN double pv_fma(double x, double y, double z)
{
    return __builtin_fma(x, y, z);
}

PV_FN double pv_exp(double x)
{
    return exp(x);
}

PV_FN double pv_log(double x)
{
    return log(x);
}

PV_FN double pv_erf(double x)
{
    return erf(x);
}

PV_FN double pv_tanh(double x)
{
    return tanh(x);
}

PV_FN double pv_sigmoid(double x)
{
    double e = exp(-fabs(x));
    return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

PV_FN double pv_softplus(double x)
{
    return (x < 0.0 ? 0.0 : x) + log1p(exp(-fabs(x)));
}

PV_FN double pv_gelu(double x)
{
    return 0.5 * x * erfc(-x * 0.70710678118654752);
}

PV_FN double pv_sin(double x)
{
    return sin(x);
}

PV_FN double pv_cos(double x)
{
    return cos(x);
}

PV_FN double pv_sqrt(double x)
{
    return __builtin_sqrt(x);
}

PV_FN double pv_abs(double x)
{
    return __builtin_fabs(x);
}

PV_FN double pv_floor(double x)
{
    return __builtin_floor(x);
}

PV_FN double pv_pow(double x, double y)
{
    return pow(x, y);
}

PV_FN double pv_fmod(double x, double y)
{
    return fmod(x, y);
}

#endif

// ---- the same text for both precisions ----

PV_FN PvReal pv_rsqrt(PvReal x)
{
    return 1 / pv_sqrt(x);
}

PV_FN PvReal pv_silu(PvReal x)
{
    return x * pv_sigmoid(x);
}

// x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
PV_FN PvReal pv_gelu_tanh(PvReal x)
{
    PvReal u = (PvReal)1.5957691216057308 * x * pv_fma((PvReal)0.044715 * x, x, 1);
    return x * pv_sigmoid(u);
}

PV_FN PvReal pv_relu(PvReal x)
{
    return x < 0 ? 0 : x;
}

// -1, 0, 1
PV_FN PvReal pv_sign(PvReal x)
{
    return (PvReal)((x > 0) - (x < 0));
}

PV_FN PvReal pv_min(PvReal x, PvReal y)
{
    return y < x ? y : x;
}

PV_FN PvReal pv_max(PvReal x, PvReal y)
{
    return y > x ? y : x;
}

// remainder with the sign of the divisor
PV_FN PvReal pv_mod(PvReal x, PvReal y)
{
    PvReal r = pv_fmod(x, y);
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

// floor(x / y); y = 0 gives 0
PV_FN int64_t pv_div_int(int64_t x, int64_t y)
{
    if (y == 0)
        return 0;
    if (y == -1)
        return (int64_t)(0 - (uint64_t)x);
    return x / y - (x % y != 0 && (x < 0) != (y < 0));
}

PV_FN int64_t pv_mod_int(int64_t x, int64_t y)
{
    if (y == 0 || y == -1)
        return 0;
    int64_t r = x % y;
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

#endif
