// Parts of attention and its gradient that know nothing of their loops: powers of two, rows of
// rotary operands, panels, problems.
#ifndef PV_ATTENTION_PARTS_H
#define PV_ATTENTION_PARTS_H

#include "codegen/cpu/tile.h"
#include "codegen/cpu/pv_math.h"
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
static inline void turn_rows(const RotaryLoad *rotary, PvReal *x, int64_t d, int64_t first,
                             int64_t count, bool back)
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
static inline Rows load_rows(const RotaryLoad *rotary, PvReal *room, const PvReal *matrix,
                             int64_t step_n, int64_t step_d, int64_t d, int64_t first,
                             int64_t count)
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

enum { SPLIT_LEAST_KEYS = 128 }; // and queries, from which split.h pays
enum { TASKS_A_THREAD = 32 };    // pieces in which a thread takes its work, about

#define LOG2_E ((PvReal)1.4426950408889634)
#define LOG_2  ((PvReal)0.6931471805599453)

static inline int64_t round_rows(int64_t count)
{
    return pv_ceil_div(count, PV_ROWS) * PV_ROWS;
}

static inline int64_t round_lanes(int64_t count)
{
    return pv_ceil_div(count, PV_LANES) * PV_LANES;
}

// Rows of a panel: even panels, in thirds of PV_ROWS, since a tile of few rows waits for itself.
static inline int64_t panel_rows(int64_t rows)
{
    int64_t panels = pv_most(1, pv_ceil_div(rows, PV_ROWS)), third = PV_ROWS / 3;
    return pv_ceil_div(pv_ceil_div(rows, panels), third) * third;
}

// Panels of panel_rows rows out of `rows`: to[panel][k][PV_ROWS].
static inline void pack_row_panels(PvReal *to, const PvReal *from, int64_t row_step, int64_t k_step,
                                   int64_t rows, int64_t k)
{
    int64_t step = panel_rows(rows);
    for (int64_t i = 0; i < rows; i += step, to += PV_ROWS * k)
        pack_panel(to, PV_ROWS, from + i * row_step, row_step, k_step, pv_least(rows - i, step), k);
}

// Panels of PV_LANES columns out of `columns`, times scale: to[panel][k][PV_LANES].
static inline void pack_lane_panels(PvReal *to, const PvReal *from, int64_t column_step,
                                    int64_t k_step, int64_t columns, int64_t k, PvReal scale)
{
    for (int64_t i = 0; i < columns; i += PV_LANES)
        pack_panel(to + i * k, PV_LANES, from + i * column_step, column_step, k_step,
                   pv_least(columns - i, PV_LANES), k);
    if (scale == 1)
        return;
    for (int64_t i = 0; i < round_lanes(columns) * k; i++)
        to[i] *= scale;
}

// c[rows][lanes] (+)= row panels times one lane panel
static inline void panels_multiply(PvReal *c, int64_t c_step, const PvReal *row_panels,
                                   int64_t rows, const PvReal *lane_panel, int64_t lane_step,
                                   int64_t lanes, int64_t k, bool add)
{
    int64_t step = panel_rows(rows);
    for (int64_t i = 0; i < rows; i += step, row_panels += PV_ROWS * k)
        tile_multiply(pv_least(rows - i, step), lanes, k, row_panels, lane_panel, lane_step,
                      c + i * c_step, c_step, add);
}

// One problem of the batch.
typedef struct {
    const AttentionArgs *args;
    const PvReal *q, *k, *v, *mask;
    PvReal *o, *lse;
    PvReal scale, unit; // of q k; with log2(e)
} Problem;

static inline void problem_axes(const AttentionArgs *args, int64_t number, int64_t *i0, int64_t *i1,
                                int64_t *i2)
{
    *i2 = number % args->batch2;
    number /= args->batch2;
    *i1 = number % args->batch1;
    *i0 = number / args->batch1;
}

static inline Problem problem_of(const AttentionArgs *args, int64_t number)
{
    int64_t i0, i1, i2;
    problem_axes(args, number, &i0, &i1, &i2);
    return (Problem){
        .args = args,
        .q = (const PvReal *)args->q + i0 * args->q0 + i1 * args->q1 + i2 * args->q2,
        .k = (const PvReal *)args->k + i0 * args->k0 + i1 * args->k1 + i2 * args->k2,
        .v = (const PvReal *)args->v + i0 * args->v0 + i1 * args->v1 + i2 * args->v2,
        .mask = args->mask ? (const PvReal *)args->mask + i0 * args->mask0 + i1 * args->mask1 +
                                 i2 * args->mask2
                           : NULL,
        .o = (PvReal *)args->o + i0 * args->o0 + i1 * args->o1 + i2 * args->o2,
        .lse = args->lse ? (PvReal *)args->lse + number * args->n : NULL,
        .scale = pv_real(args->scale),
        .unit = pv_real(args->scale) * LOG2_E,
    };
}

// Adds the mask to scores [keys][step] of queries n0 .. and keys m0 .., and cuts off what causal
// order forbids.
static inline void mask_scores(const Problem *problem, PvReal *scores, int64_t step, int64_t n0,
                               int64_t queries, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->args;
    if (problem->mask) {
        for (int64_t j = 0; j < keys; j++) {
            const PvReal *mask = problem->mask + (m0 + j) * args->mask_m + n0 * args->mask_n;
            for (int64_t i = 0; i < queries; i++)
                scores[j * step + i] += mask[i * args->mask_n] * LOG2_E;
        }
    }
    for (int64_t j = 0; args->causal && j < keys; j++) {
        for (int64_t i = 0; i < pv_least(queries, m0 + j - n0); i++)
            scores[j * step + i] = -(PvReal)INFINITY;
    }
}

// Blocks of keys: length of all but the last.
static inline int64_t key_block(int64_t keys, int64_t most)
{
    return pv_most(PV_ROWS, round_rows(pv_ceil_div(keys, pv_most(1, pv_ceil_div(keys, most)))));
}

#endif
