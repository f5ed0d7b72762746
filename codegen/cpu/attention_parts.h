// Parts of attention.c that know nothing of its loops: powers of two, rows of rotary operands.
#ifndef PV_ATTENTION_PARTS_H
#define PV_ATTENTION_PARTS_H

#include "codegen/cpu/tile.h"
#if defined __AVX512DQ__ && !defined PV_REAL64
#include <immintrin.h>
#endif

// 2^x for x up to about 1; 0 or nearly so below the smallest normal number. AVX-512 splits x into
// whole and fraction, and scales, in an instruction each.
PV_INLINE PvVec vec_exp2(PvVec x)
{
#ifdef PV_REAL64
    for (int i = 0; i < PV_WIDTH; i++)
        x[i] = __builtin_exp2(x[i]);
    return x;
#elif defined __AVX512DQ__
    PvVec r = (PvVec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    // of degree 5, relative error at most 7.5e-8
    PvVec p = r * 0.001877576695f + 0.008989339694f;
    p = p * r + 0.05582631752f;
    p = p * r + 0.2401536107f;
    p = p * r + 0.6931530833f;
    p = p * r + 0.9999999404f;
    return (PvVec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    PvMask keep = ~(x <= -126.0f);
    PvVec shifted = x + 12582912.0f;
    PvVec r = x - (shifted - 12582912.0f);
    PvVec p = r * 0.001326472712f + 0.009671512645f;
    p = p * r + 0.05550733743f;
    p = p * r + 0.2402224209f;
    p = p * r + 0.6931469776f;
    p = p * r + 1.0f;
    PvMask scale = ((PvMask)shifted - 0x4b400000 + 127) << 23;
    return (PvVec)(keep & (PvMask)(p * (PvVec)scale));
#endif
}

// The larger, element by element.
PV_INLINE PvVec vec_larger(PvVec x, PvVec y)
{
#if defined __AVX512DQ__ && !defined PV_REAL64
    return (PvVec)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return vec_max(x, y);
#endif
}

enum { CHAINS = 4 }; // maxima and sums side by side, so that none waits for the one before it

// Takes one vector of scores [keys][PV_LANES] to 2^(scores - zero), to 2^scores if `plain`, and
// returns their sum.
PV_INLINE PvVec take_powers(PvReal *scores, int64_t keys, PvVec zero, bool plain)
{
    PvVec total[CHAINS] = {0};
    int64_t whole = keys - keys % CHAINS;
    for (int64_t i = 0; i < whole; i += CHAINS) {
#pragma GCC unroll 4
        for (int k = 0; k < CHAINS; k++) {
            PvVec score = vec_load(scores + (i + k) * PV_LANES);
            PvVec p = vec_exp2(plain ? score : score - zero);
            total[k] += p;
            vec_store(scores + (i + k) * PV_LANES, p);
        }
    }
    for (int64_t i = whole; i < keys; i++) {
        PvVec score = vec_load(scores + i * PV_LANES);
        PvVec p = vec_exp2(plain ? score : score - zero);
        total[0] += p;
        vec_store(scores + i * PV_LANES, p);
    }
    for (int k = 1; k < CHAINS; k++)
        total[0] += total[k];
    return total[0];
}

// Rows of a matrix.
typedef struct {
    const PvReal *at;
    int64_t n, d; // strides
} Rows;

// The partners of neighbours, or of halves, turned, row by row; `back`: transposed.
static void turn_rows(const RotaryLoad *rotary, PvReal *x, int64_t d, int64_t first, int64_t count,
                      bool back)
{
    int64_t width = rotary->width, half = width / 2;
    PvReal sign = rotary->partner == PV_ROTARY_NEGATED ? -1 : 1;
    for (int64_t i = 0; i < count; i++, x += d) {
        const PvReal *restrict cosine = (const PvReal *)rotary->cos + (first + i) * width;
        const PvReal *restrict sine = (const PvReal *)rotary->sin + (first + i) * width;
        if (rotary->partner == PV_ROTARY_PAIRS) {
            for (int64_t j = 0; j < width; j += 2) {
                PvReal even = x[j], odd = x[j + 1];
                x[j] = cosine[j] * even + sine[j + back] * odd;
                x[j + 1] = cosine[j + 1] * odd + sine[j + !back] * even;
            }
            continue;
        }
        PvReal *restrict low = x, *restrict high = x + half;
        const PvReal *low_sine = back ? sine + half : sine, *high_sine = back ? sine : sine + half;
        PvReal low_sign = back ? 1 : sign, high_sign = back ? sign : 1;
        for (int64_t j = 0; j < half; j++) {
            PvReal one = low[j], other = high[j];
            low[j] = cosine[j] * one + low_sign * low_sine[j] * other;
            high[j] = cosine[half + j] * other + high_sign * high_sine[j] * one;
        }
    }
}

// Rows first .. first + count of a matrix of width d, those before them not looked at, as attention
// wants them: where they lie, or turned, in `room` [count][d].
static Rows load_rows(const RotaryLoad *rotary, PvReal *room, const PvReal *matrix, int64_t step_n,
                      int64_t step_d, int64_t d, int64_t first, int64_t count)
{
    const PvReal *from = matrix + first * step_n;
    if (!rotary->cos)
        return (Rows){from, step_n, step_d};
    for (int64_t i = 0; i < count; i++) {
        if (step_d == 1) {
            memcpy(room + i * d, from + i * step_n, (size_t)d * sizeof *room);
            continue;
        }
        for (int64_t j = 0; j < d; j++)
            room[i * d + j] = from[i * step_n + j * step_d];
    }
    turn_rows(rotary, room, d, first, count, false);
    return (Rows){room, d, 1};
}

#endif
