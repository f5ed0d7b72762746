/* How elements of tensors are stored: f32, bf16 or f16, told by a number that is baked in.
 *
 * A nibble of an argument struct's `types` says it for each address, in the order of the struct: 0
 * the working precision, 1 bf16, 2 f16. Kernels compute in f32.
 */
#pragma once
#include "cx.h"

#if CX_GPU
CX_FN float cx_from_f16(u16 bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
CX_FN u16 cx_to_f16(float value)
{
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
CX_FN u32 cx_pack_f16(float low, float high)
{
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#else
CX_FN float cx_from_f16(u16 bits)
{
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return (float)value;
}
CX_FN u16 cx_to_f16(float value)
{
    _Float16 half = (_Float16)value;
    u16 bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}
CX_FN u32 cx_pack_f16(float low, float high)
{
    return (u32)cx_to_f16(low) | (u32)cx_to_f16(high) << 16;
}
#endif

struct CxBf16 {
    u16 bits;
};
struct CxF16 {
    u16 bits;
};
template <int type> struct CxStored {
    typedef float Element;
};
template <> struct CxStored<1> {
    typedef CxBf16 Element;
};
template <> struct CxStored<2> {
    typedef CxF16 Element;
};

// What templates of tensor-core products need of their operands' type, 1 bf16 or 2 f16: the product
// of 16 x 8 x 16, and two numbers as a word.
template <int type> CX_FN void cx_mma_half(float *d, const u32 *a, const u32 *b)
{
    if (type == 2)
        cx_mma_f16(d, a, b);
    else
        cx_mma(d, a, b);
}
template <int type> CX_FN u32 cx_pack_half(float low, float high)
{
    return type == 2 ? cx_pack_f16(low, high) : cx_pack(low, high);
}
template <int type> CX_FN float cx_low_half(u32 pair)
{
    return type == 2 ? cx_from_f16((u16)pair) : cx_low(pair);
}
template <int type> CX_FN float cx_high_half(u32 pair)
{
    return type == 2 ? cx_from_f16((u16)(pair >> 16)) : cx_high(pair);
}

CX_FN float cx_read(float x)
{
    return x;
}
CX_FN float cx_read(CxBf16 x)
{
    return cx_from_bf16(x.bits);
}
CX_FN float cx_read(CxF16 x)
{
    return cx_from_f16(x.bits);
}
CX_FN void cx_write(float *to, float x)
{
    *to = x;
}
CX_FN void cx_write(CxBf16 *to, float x)
{
    to->bits = cx_to_bf16(x);
}
CX_FN void cx_write(CxF16 *to, float x)
{
    to->bits = cx_to_f16(x);
}

// Two elements as a word, and of a word.
CX_FN u32 cx_pair(CxBf16, float low, float high)
{
    return cx_pack(low, high);
}
CX_FN u32 cx_pair(CxF16, float low, float high)
{
    return cx_pack_f16(low, high);
}
CX_FN void cx_unpair(CxBf16, float *x, u32 pair)
{
    x[0] = cx_low(pair), x[1] = cx_high(pair);
}
CX_FN void cx_unpair(CxF16, float *x, u32 pair)
{
    x[0] = cx_from_f16((u16)pair), x[1] = cx_from_f16((u16)(pair >> 16));
}

// Four elements at an address that is a multiple of them.
CX_FN void cx_read4(float *x, const float *from)
{
    float4 q = *(const float4 *)from;
    x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
}
template <typename Half> CX_FN void cx_read4(float *x, const Half *from)
{
    uint2 q = *(const uint2 *)from;
    cx_unpair(Half(), x, q.x);
    cx_unpair(Half(), x + 2, q.y);
}
CX_FN void cx_write4(float *to, const float *x)
{
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
}
template <typename Half> CX_FN void cx_write4(Half *to, const float *x)
{
    uint2 q;
    q.x = cx_pair(Half(), x[0], x[1]);
    q.y = cx_pair(Half(), x[2], x[3]);
    *(uint2 *)to = q;
}

// Eight elements at an address of 16 bytes.
CX_FN void cx_read8(float *x, const float *from)
{
    float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
template <typename Half> CX_FN void cx_read8(float *x, const Half *from)
{
    uint4 q = *(const uint4 *)from;
    u32 words[4] = {q.x, q.y, q.z, q.w};
    CX_UNROLL
    for (int i = 0; i < 4; i++)
        cx_unpair(Half(), x + 2 * i, words[i]);
}
CX_FN void cx_write8(float *to, const float *x)
{
    ((float4 *)to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4 *)to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
template <typename Half> CX_FN void cx_write8(Half *to, const float *x)
{
    u32 words[4];
    CX_UNROLL
    for (int i = 0; i < 4; i++)
        words[i] = cx_pair(Half(), x[2 * i], x[2 * i + 1]);
    *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
}
