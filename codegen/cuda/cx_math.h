/* What emitted elementwise kernels are written in: the functions of cpu/pv_math.h under the same
 * names, so that one expression serves both targets, and loads and stores of four elements.
 *
 * In f32 every function is within a few units in the last place of the CPU's (the gates: absolute,
 * of numbers up to 1). CUDA's own functions are taken where they need no local memory; sin and cos
 * reduce their angle in f64, as the CPU's do.
 */
#pragma once
#include "storage.h"

typedef float PvReal;
#if CX_GPU
typedef unsigned char uint8_t;
#define INT64_C(value) value##LL
#endif

CX_FN PvReal pv_real(int64_t bits) // of a double
{
    union {
        int64_t bits;
        double value;
    } number = {bits};
    return (PvReal)number.value;
}

/* ---- functions ---- */

CX_FN float pv_exp(float x)
{
    return expf(x);
}
CX_FN float pv_log(float x)
{
    return logf(x);
}
CX_FN float pv_sqrt(float x)
{
    return sqrtf(x);
}
CX_FN float pv_rsqrt(float x)
{
    return rsqrtf(x);
}
CX_FN float pv_tanh(float x)
{
    return tanhf(x);
}
CX_FN float pv_erf(float x)
{
    return erff(x);
}
CX_FN float pv_abs(float x)
{
    return fabsf(x);
}
CX_FN float pv_floor(float x)
{
    return floorf(x);
}
CX_FN float pv_pow(float x, float y)
{
    return powf(x, y);
}
CX_FN float pv_sigmoid(float x)
{
    return cx_reciprocal(1.0f + expf(-x));
}
CX_FN float pv_silu(float x)
{
    return x * pv_sigmoid(x);
}
CX_FN float pv_softplus(float x)
{
    return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}
CX_FN float pv_gelu(float x)
{
    return 0.5f * x * erfcf(-x * 0.707106781f);
}
// x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
CX_FN float pv_gelu_tanh(float x)
{
    return x * pv_sigmoid(1.59576912f * x * fmaf(0.044715f * x, x, 1.0f));
}
CX_FN float pv_relu(float x)
{
    return x < 0.0f ? 0.0f : x;
}
CX_FN float pv_sign(float x) // -1, 0, 1
{
    return (float)((x > 0.0f) - (x < 0.0f));
}
CX_FN float pv_min(float x, float y)
{
    return y < x ? y : x;
}
CX_FN float pv_max(float x, float y)
{
    return y > x ? y : x;
}

// sin(x + quarter pi / 2), good to |x| about 1e9
CX_FN float pv_sin_quarter(float x, int quarter)
{
    double n = rint((double)x * 0.63661977236758134);
    double r = fma(n, -1.5707963267948966, (double)x);
    r = fma(n, -6.123233995736766e-17, r);
    double z = r * r, s = 2.717366874e-6, c = -2.720330693e-7;
    s = fma(s, z, -0.0001983923268);
    s = fma(s, z, 0.008333329056);
    s = fma(s, z, -0.1666666664);
    s = fma(s * z, r, r);
    c = fma(c, z, 2.479943645e-5);
    c = fma(c, z, -0.001388888344);
    c = fma(c, z, 0.04166666662);
    c = fma(c * z, z, fma(z, -0.5, 1.0));
    int64_t turn = (int64_t)n + quarter;
    double y = turn & 1 ? c : s;
    return (float)(turn & 2 ? -y : y);
}
CX_FN float pv_sin(float x)
{
    return pv_sin_quarter(x, 0);
}
CX_FN float pv_cos(float x)
{
    return pv_sin_quarter(x, 1);
}

// remainder with the sign of the divisor
CX_FN float pv_mod(float x, float y)
{
    float r = fmodf(x, y);
    return r != 0.0f && (r < 0.0f) != (y < 0.0f) ? r + y : r;
}

// floor(x / y); y = 0 gives 0
CX_FN int64_t pv_div_int(int64_t x, int64_t y)
{
    if (y == 0)
        return 0;
    if (y == -1)
        return (int64_t)(0 - (u64)x);
    return x / y - (x % y != 0 && (x < 0) != (y < 0));
}
CX_FN int64_t pv_mod_int(int64_t x, int64_t y)
{
    if (y == 0 || y == -1)
        return 0;
    int64_t r = x % y;
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

/* ---- four elements at once: 16 bytes of PvReal, 2 x 16 of int64, 4 of bytes ---- */

struct __align__(16) CxPair {
    int64_t first, second;
};
CX_FN void cx_load4(PvReal *x, const PvReal *from)
{
    float4 all = *(const float4 *)from;
    x[0] = all.x;
    x[1] = all.y;
    x[2] = all.z;
    x[3] = all.w;
}
CX_FN void cx_load4(int64_t *x, const int64_t *from)
{
    CxPair low = ((const CxPair *)from)[0], high = ((const CxPair *)from)[1];
    x[0] = low.first;
    x[1] = low.second;
    x[2] = high.first;
    x[3] = high.second;
}
CX_FN void cx_load4(u8 *x, const u8 *from)
{
    u32 all = *(const u32 *)from;
    x[0] = (u8)all;
    x[1] = (u8)(all >> 8);
    x[2] = (u8)(all >> 16);
    x[3] = (u8)(all >> 24);
}
// As PTX: the compiler takes some of these stores apart where it has computed the
// address at length.
CX_FN void cx_store4(PvReal *to, const PvReal *x)
{
#if CX_GPU
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
#else
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
#endif
}
CX_FN void cx_store4(int64_t *to, const int64_t *x)
{
#if CX_GPU
    asm volatile("st.global.v2.s64 [%0], {%1, %2};\n\tst.global.v2.s64 [%0 + 16], {%3, %4};" ::"l"(
                     __cvta_generic_to_global(to)),
                 "l"(x[0]), "l"(x[1]), "l"(x[2]), "l"(x[3])
                 : "memory");
#else
    CxPair low = {x[0], x[1]}, high = {x[2], x[3]};
    ((CxPair *)to)[0] = low;
    ((CxPair *)to)[1] = high;
#endif
}
CX_FN void cx_store4(u8 *to, const u8 *x)
{
    *(u32 *)to = (u32)x[0] | (u32)x[1] << 8 | (u32)x[2] << 16 | (u32)x[3] << 24;
}

/* ---- one element, and four, of tensors stored as they are or in half ---- */

template <typename Value> CX_FN Value cx_value(Value stored)
{
    return stored;
}
CX_FN float cx_value(CxBf16 stored)
{
    return cx_read(stored);
}
CX_FN float cx_value(CxF16 stored)
{
    return cx_read(stored);
}
template <typename Value> CX_FN void cx_set(Value *to, Value value)
{
    *to = value;
}
template <typename Half> CX_FN void cx_set(Half *to, PvReal value)
{
    cx_write(to, value);
}
CX_FN void cx_set(PvReal *to, PvReal value)
{
    *to = value;
}
template <typename Half> CX_FN void cx_load4(PvReal *x, const Half *from)
{
    cx_read4(x, from);
}
template <typename Half> CX_FN void cx_store4(Half *to, const PvReal *x)
{
    cx_write4(to, x);
}
