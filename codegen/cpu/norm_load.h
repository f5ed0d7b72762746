// Norms taken apart: operands that are normalized while they are packed, and tables of what a
// kernel has just stored (norm.c). A table's a and d turn x into act(x a + d), channel by channel.
#ifndef PV_NORM_LOAD_H
#define PV_NORM_LOAD_H

#include "codegen/cpu/pv_math.h"
#include "codegen/cpu/tile.h"

// What a table is made of: x [images, c, positions], positions dense.
typedef struct {
    const PvReal *at;
    int64_t images, c, positions, image, channel; // strides
} NormSource;

// The table of x, its statistics, and the moments of its channels, where they are wanted. Parallel
// over groups of images.
void pv_norm_stats(const PvRun *run, const NormStats *stats, const NormSource *x);

// to[i] = act(from[i] a + d), i < count; the two may be the same.
PV_INLINE void normalize_run(PvReal *to, const PvReal *from, int64_t count, PvReal a, PvReal d,
                             PvAct act)
{
    switch (act) {
    case PV_ACT_NONE:
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++)
            to[i] = pv_fma(from[i], a, d);
        break;
    case PV_ACT_SILU:
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++)
            to[i] = pv_silu(pv_fma(from[i], a, d));
        break;
    case PV_ACT_GELU:
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++)
            to[i] = pv_gelu(pv_fma(from[i], a, d));
        break;
    case PV_ACT_RELU:
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++)
            to[i] = pv_relu(pv_fma(from[i], a, d));
        break;
    }
}

// A packed panel [k][PV_LANES], channel by channel of `a` and `d`.
static __attribute__((noinline, unused)) void normalize_panel(PvReal *panel, int64_t k,
                                                              const PvReal *a, const PvReal *d,
                                                              PvAct act)
{
    for (int64_t i = 0; i < k; i++)
        normalize_run(panel + i * PV_LANES, panel + i * PV_LANES, PV_LANES, a[i], d[i], act);
}

#endif
