// What the two ways of attention's gradient share: a problem, its sums, where those go.
#ifndef PV_ATTENTION_GRAD_H
#define PV_ATTENTION_GRAD_H

#include "codegen/cpu/attention_parts.h"

// One problem of the batch, a task.
typedef struct {
    Problem f;
    const AttentionGradArgs *args;
    const PvReal *d_o;
    PvReal *dq, *dk, *dv;
    int64_t block;             // keys of a block
    PvReal *dk_sums, *dv_sums; // of a block of keys: [d panel][block][PV_LANES], [e panel]...
    PvReal *dq_sums;           // of all queries: [query panel][dq_rows][PV_LANES]
    int64_t dq_rows;           // d or more
    PvReal *delta;             // [n]: rowsum(do o)
    PvReal *room, *q_room;     // turned rows: [block][d], [queries of a block][d]
} GradProblem;

// A problem by split.h: heads of up to PV_SPLIT_NARROW numbers, and wider ones. Neither looks at a
// mask, nor at causal order.
void pv_grad_narrow(GradProblem *problem, PvReal *scratch);
void pv_grad_wide(GradProblem *problem, PvReal *scratch);

// delta[i] = sum over e of do[i, e] o[i, e]
static inline void grad_delta(const GradProblem *problem)
{
    const AttentionArgs *args = problem->f.args;
    PvReal *delta = problem->delta;
    memset(delta, 0, (size_t)round_lanes(args->n) * sizeof *delta);
    if (args->o_n == 1) {
        for (int64_t j = 0; j < args->e; j++) {
            const PvReal *o = problem->f.o + j * args->o_d, *d_o = problem->d_o + j * args->o_d;
            for (int64_t i = 0; i < args->n; i++)
                delta[i] = pv_fma(o[i], d_o[i], delta[i]);
        }
        return;
    }
    for (int64_t i = 0; i < args->n; i++) {
        const PvReal *o = problem->f.o + i * args->o_n, *d_o = problem->d_o + i * args->o_n;
        PvReal sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < args->e; j++)
            sum += o[j * args->o_d] * d_o[j * args->o_d];
        delta[i] = sum;
    }
}

// to[i * step_n + j * step_d] = sums[panel][i][j in panel]
static inline void grad_store_keys(PvReal *to, int64_t step_n, int64_t step_d, const PvReal *sums,
                                   int64_t block, int64_t keys, int64_t columns)
{
    for (int64_t j = 0; j < columns; j += PV_LANES, sums += block * PV_LANES) {
        int64_t count = pv_least(columns - j, PV_LANES);
        PvReal *at = to + j * step_d;
        if (step_n == 1) {
            store_transposed(at, step_d, sums, PV_LANES, keys, count);
            continue;
        }
        for (int64_t i = 0; i < keys; i++) {
            for (int64_t l = 0; l < count; l++)
                at[i * step_n + l * step_d] = sums[i * PV_LANES + l];
        }
    }
}

static inline void copy_rows(PvReal *to, int64_t step_n, int64_t step_d, const PvReal *from,
                             int64_t count, int64_t d)
{
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < d; j++)
            to[i * step_n + j * step_d] = from[i * d + j];
    }
}

static inline void grad_store_queries(const GradProblem *problem)
{
    const AttentionArgs *args = problem->f.args;
    const AttentionGradArgs *grad = problem->args;
    for (int64_t n0 = 0; n0 < args->n; n0 += PV_LANES) {
        PvReal *dq = problem->dq_sums + n0 * problem->dq_rows;
        int64_t queries = pv_least(args->n - n0, PV_LANES);
        PvReal *to = problem->dq + n0 * grad->dq_n;
        for (int64_t i = 0; i < args->d * PV_LANES; i++)
            dq[i] *= problem->f.scale;
        if (args->q_rotary.cos) {
            PvReal *room = problem->q_room;
            store_transposed(room, args->d, dq, PV_LANES, args->d, queries);
            turn_rows(&args->q_rotary, room, args->d, n0, queries, true);
            copy_rows(to, grad->dq_n, grad->dq_d, room, queries, args->d);
            continue;
        }
        if (grad->dq_d == 1) {
            store_transposed(to, grad->dq_n, dq, PV_LANES, args->d, queries);
            continue;
        }
        for (int64_t i = 0; i < args->d; i++) {
            for (int64_t j = 0; j < queries; j++)
                to[i * grad->dq_d + j * grad->dq_n] = dq[i * PV_LANES + j];
        }
    }
}

// Stores dk and dv of a block of keys, m0 ...
static inline void grad_store_block(const GradProblem *problem, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    const AttentionGradArgs *grad = problem->args;
    PvReal *dk = problem->dk + m0 * grad->dk_n;
    if (args->k_rotary.cos) {
        grad_store_keys(problem->room, args->d, 1, problem->dk_sums, problem->block, keys, args->d);
        turn_rows(&args->k_rotary, problem->room, args->d, m0, keys, true);
        copy_rows(dk, grad->dk_n, grad->dk_d, problem->room, keys, args->d);
    } else {
        grad_store_keys(dk, grad->dk_n, grad->dk_d, problem->dk_sums, problem->block, keys,
                        args->d);
    }
    grad_store_keys(problem->dv + m0 * grad->dv_n, grad->dv_n, grad->dv_d, problem->dv_sums,
                    problem->block, keys, args->e);
}

// ---- by split.h ----

// Lays out sums; returns what is behind them. Blocks of keys are of whole tiles.
static inline PvReal *grad_sums(GradProblem *problem, PvReal *next)
{
    const AttentionArgs *args = problem->f.args;
    problem->block = split_grad_keys(args->m, args->d, args->e);
    problem->dq_rows = pv_ceil_div(args->d, PV_MAX_SPLIT_ROWS) * PV_MAX_SPLIT_ROWS;
    problem->dk_sums = next, next += problem->block * round_lanes(args->d);
    problem->dv_sums = next, next += problem->block * round_lanes(args->e);
    problem->dq_sums = next, next += round_lanes(args->n) * problem->dq_rows;
    problem->delta = next, next += round_lanes(args->n);
    return next;
}

// Sums of a block of keys, m0 .., to 0, and before the first those of queries.
static inline void grad_clear(const GradProblem *problem, int64_t m0)
{
    const AttentionArgs *args = problem->f.args;
    size_t block = (size_t)problem->block * sizeof(PvReal);
    memset(problem->dk_sums, 0, block * (size_t)round_lanes(args->d));
    memset(problem->dv_sums, 0, block * (size_t)round_lanes(args->e));
    if (m0 == 0)
        memset(problem->dq_sums, 0,
               (size_t)(round_lanes(args->n) * problem->dq_rows) * sizeof(PvReal));
}

// Rows n0 .. of q, turned, and of do; what is added to their scores, PV_LANES numbers each: those
// behind the last query get powers of 0.
static inline void grad_queries(const GradProblem *problem, int64_t n0, int64_t queries, Rows *q,
                                Rows *d_o, PvReal *high, PvReal *delta)
{
    const AttentionArgs *args = problem->f.args;
    *q = load_rows(&args->q_rotary, problem->q_room, problem->f.q, args->q_n, args->q_d, args->d,
                   n0, queries);
    *d_o = (Rows){problem->d_o + n0 * args->o_n, args->o_n, args->o_d};
    for (int64_t i = 0; i < PV_LANES; i++) {
        high[i] = i < queries ? problem->f.lse[n0 + i] * -LOG2_E : -(PvReal)INFINITY;
        delta[i] = -problem->delta[n0 + i];
    }
}

#endif
