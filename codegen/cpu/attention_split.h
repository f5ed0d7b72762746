// Numbers as bf16 parts in the upper halves of words: what attention makes of P, and its gradient
// of dS and operands, for split.h.
#ifndef PV_ATTENTION_SPLIT_H
#define PV_ATTENTION_SPLIT_H

#include "codegen/cpu/attention_parts.h"
#include "codegen/cpu/split.h"

#if PV_SPLIT

// Words of the upper halves of `low`, with those of `high` in their upper half.
PV_INLINE PvVec pack_halves(PvVec low, PvVec high)
{
    const __m512i upper = _mm512_set_epi8(
        63, 62, 63, 62, 59, 58, 59, 58, 55, 54, 55, 54, 51, 50, 51, 50, 47, 46, 47, 46, 43, 42, 43,
        42, 39, 38, 39, 38, 35, 34, 35, 34, 31, 30, 31, 30, 27, 26, 27, 26, 23, 22, 23, 22, 19, 18,
        19, 18, 15, 14, 15, 14, 11, 10, 11, 10, 7, 6, 7, 6, 3, 2, 3, 2);
    return (PvVec)_mm512_mask_shuffle_epi8((__m512i)high, 0x3333333333333333, (__m512i)low, upper);
}

// What is left of x without the part that its upper half holds.
PV_INLINE PvVec lower_part(PvVec x)
{
    return x - (PvVec)_mm512_and_epi32((__m512i)x, _mm512_set1_epi32(-0x10000));
}

// The power and its gradient, of scores and their gradients, and what is added to either.
PV_INLINE void power_of(const PvReal *s, const PvReal *dp, const PvReal *high, const PvReal *delta,
                        PvVec *p, PvVec *ds)
{
    *p = vec_exp2(vec_load(s) + vec_load(high));
    *ds = *p * (vec_load(dp) + vec_load(delta));
}

#endif
#endif
