// Sums of runs of numbers: four vectors of partial sums over blocks of SUM_BLOCK elements, blocks
// added in f64, so the error does not grow with the length.
#ifndef PV_SUMS_H
#define PV_SUMS_H

#include "codegen/cpu/tile.h"

enum { SUM_BLOCK = 4096 };

static inline __attribute__((unused)) double lanes_sum(PvVec x)
{
    double part[PV_WIDTH];
    for (int i = 0; i < PV_WIDTH; i++)
        part[i] = (double)x[i];
    for (int half = PV_WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    return part[0];
}

// The first `count` < PV_WIDTH elements, zeros behind.
PV_INLINE PvVec vec_load_part(const PvReal *from, int64_t count)
{
    PvVec x = {0};
    memcpy(&x, from, (size_t)count * sizeof *from);
    return x;
}

static inline __attribute__((unused)) double sum_of(const PvReal *x, int64_t count)
{
    double sum = 0;
    for (int64_t first = 0; first < count; first += SUM_BLOCK) {
        int64_t end = pv_least(first + SUM_BLOCK, count), i = first;
        PvVec part[4] = {{0}};
        for (; i + 4 * PV_WIDTH <= end; i += 4 * PV_WIDTH) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                part[j] += vec_load(x + i + j * PV_WIDTH);
        }
        for (; i + PV_WIDTH <= end; i += PV_WIDTH)
            part[0] += vec_load(x + i);
        if (i < end)
            part[1] += vec_load_part(x + i, end - i);
        sum += lanes_sum((part[0] + part[1]) + (part[2] + part[3]));
    }
    return sum;
}

#endif
