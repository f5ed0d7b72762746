// The gradient of attention; see attention.c.
//
// A task is one problem: for each block of keys, blocks of queries; P is made again from the
// log-sum-exp, dS = P (dP - D) with D = rowsum(do o), and
//   dV += P^T dO,  dK += dS^T Q,  dQ += dS K.
// Scores are in units of q k scale log2(e): q is scaled when it is packed, and e^x is 2^score. The
// sums of a tile of scores begin with what would be subtracted from them. Queries lie along the
// lanes of vectors, as forward. Long problems without a mask are made by split.h, where there is
// such a unit: attention_grad_narrow.c, attention_grad_wide.c.
#include "codegen/cpu/attention_grad.h"
#include "codegen/cpu/split.h"
#include "codegen/cpu/tile.h"

static __attribute__((noinline)) void scores_tile(int64_t rows, int64_t lanes, int64_t k,
                                                  const PvReal *a, const PvReal *b,
                                                  const PvReal *start, PvReal *c, int64_t c_step)
{
    tile_choose(rows, lanes, k, a, 1, PV_ROWS, b, PV_LANES, start, c, c_step, false);
}

// c[rows][lanes] = start[lanes] + row panels times one packed lane panel
static void panels_scores(PvReal *c, int64_t c_step, const PvReal *row_panels, int64_t rows,
                          const PvReal *lane_panel, int64_t lanes, int64_t k, const PvReal *start)
{
    int64_t step = panel_rows(rows);
    for (int64_t i = 0; i < rows; i += step, row_panels += PV_ROWS * k)
        scores_tile(pv_least(rows - i, step), lanes, k, row_panels, lane_panel, start,
                    c + i * c_step, c_step);
}

typedef struct {
    // of the block of keys: row panels of K over keys and over d, of V over keys
    PvReal *k, *k_turned, *v;
    // of the block of queries: lane panels over queries, and over d and e
    PvReal *q, *d_o;              // [d][PV_LANES], [e][PV_LANES] of one panel
    PvReal *q_turned, *do_turned; // [d panel][queries][PV_LANES], [e panel][queries][PV_LANES]
    PvReal *p, *ds;               // [keys][PV_GRAD_QUERIES]
} GradPanels;

// Lays out the scratch of a task.
static GradPanels grad_scratch(GradProblem *problem, PvReal *next)
{
    const AttentionArgs *args = problem->f.args;
    GradPanels at;
    int64_t keys = problem->block, d_lanes = round_lanes(args->d), e_lanes = round_lanes(args->e);
    problem->dk_sums = next, next += keys * d_lanes;
    problem->dv_sums = next, next += keys * e_lanes;
    at.q = next, next += args->d * PV_LANES;
    at.d_o = next, next += args->e * PV_LANES;
    at.q_turned = next, next += PV_GRAD_QUERIES * d_lanes;
    at.do_turned = next, next += PV_GRAD_QUERIES * e_lanes;
    at.p = next, next += keys * PV_GRAD_QUERIES;
    at.ds = next, next += keys * PV_GRAD_QUERIES;
    problem->dq_sums = next, next += round_lanes(args->n) * problem->dq_rows;
    problem->delta = next, next += round_lanes(args->n);
    at.k = next, next += keys * args->d + PV_LANES;
    at.k_turned = next, next += keys * round_rows(args->d) + PV_LANES;
    at.v = next, next += keys * args->e + PV_LANES;
    problem->room = next, next += keys * args->d;
    problem->q_room = next;
    return at;
}

// P and dS of one panel of queries, n0 .., in column `column` of the block, whose rows are
// q; adds to dQ.
static void grad_panel(const GradProblem *problem, const GradPanels *at, Rows q, int64_t n0,
                       int64_t column, int64_t queries, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    PvReal *p = at->p + column, *ds = at->ds + column;
    PvReal high[PV_LANES], delta[PV_LANES]; // negative
    pack_lane_panels(at->q, q.at + column * q.n, q.n, q.d, queries, args->d, problem->f.unit);
    pack_lane_panels(at->d_o, problem->d_o + n0 * args->o_n, args->o_n, args->o_d, queries, args->e,
                     1);
    for (int64_t i = 0; i < PV_LANES; i++) {
        high[i] = i < queries ? problem->f.lse[n0 + i] * -LOG2_E : -(PvReal)INFINITY;
        delta[i] = -problem->delta[n0 + i];
    }
    panels_scores(p, PV_GRAD_QUERIES, at->k, keys, at->q, queries, args->d, high);
    panels_scores(ds, PV_GRAD_QUERIES, at->v, keys, at->d_o, queries, args->e, delta);
    if (problem->f.mask || args->causal)
        mask_scores(&problem->f, p, PV_GRAD_QUERIES, n0, queries, m0, keys);
    for (int64_t i = 0; i < keys; i++) {
        for (int64_t j = 0; j < pv_ceil_div(queries, PV_WIDTH) * PV_WIDTH; j += PV_WIDTH) {
            int64_t place = i * PV_GRAD_QUERIES + j;
            PvVec prob = vec_exp2(vec_load(p + place));
            vec_store(p + place, prob);
            vec_store(ds + place, prob * vec_load(ds + place));
        }
    }
    panels_multiply(problem->dq_sums + n0 * problem->dq_rows, PV_LANES, at->k_turned, args->d, ds,
                    PV_GRAD_QUERIES, queries, keys, m0 > 0);
}

static __attribute__((noinline)) void keys_tile(int64_t rows, int64_t lanes, int64_t k,
                                                const PvReal *a, const PvReal *b, PvReal *c,
                                                bool add)
{
    tile_choose(rows, lanes, k, a, PV_GRAD_QUERIES, 1, b, PV_LANES, NULL, c, PV_LANES, add);
}

// sums[panel][keys][PV_LANES] += weights[keys][queries] right[panel][queries][PV_LANES]. The
// weights are read as they lie, a number at a time; rows behind `keys` are read and make nothing.
static void grad_keys(const GradProblem *problem, PvReal *sums, const PvReal *weights,
                      const PvReal *right, int64_t columns, int64_t keys, int64_t queries, bool add)
{
    for (int64_t i = 0; i < keys; i += PV_ROWS) {
        for (int64_t j = 0; j < columns; j += PV_LANES)
            keys_tile(pv_least(keys - i, PV_ROWS), pv_least(columns - j, PV_LANES), queries,
                      weights + i * PV_GRAD_QUERIES, right + j * queries,
                      sums + j * problem->block + i * PV_LANES, add);
    }
}

// Sums of a block of keys, m0 .., to where they go; adds to those of queries.
static void grad_block(const GradProblem *problem, const GradPanels *at, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    const PvReal *v = problem->f.v + m0 * args->v_n;
    Rows k = load_rows(&args->k_rotary, problem->room, problem->f.k, args->k_n, args->k_d, args->d,
                       m0, keys);
    pack_row_panels(at->k, k.at, k.n, k.d, keys, args->d);
    pack_row_panels(at->k_turned, k.at, k.d, k.n, args->d, keys);
    pack_row_panels(at->v, v, args->v_n, args->v_d, keys, args->e);
    bool add = false;
    for (int64_t n0 = 0; n0 < args->n; n0 += PV_GRAD_QUERIES) {
        int64_t queries = pv_least(args->n - n0, PV_GRAD_QUERIES);
        if (args->causal && m0 > n0 + queries - 1)
            continue;
        Rows q = load_rows(&args->q_rotary, problem->q_room, problem->f.q, args->q_n, args->q_d,
                           args->d, n0, queries);
        for (int64_t i = 0; i < queries; i += PV_LANES)
            grad_panel(problem, at, q, n0 + i, i, pv_least(queries - i, PV_LANES), m0, keys);
        pack_lane_panels(at->q_turned, q.at, q.d, q.n, args->d, queries, problem->f.scale);
        pack_lane_panels(at->do_turned, problem->d_o + n0 * args->o_n, args->o_d, args->o_n,
                         args->e, queries, 1);
        grad_keys(problem, problem->dv_sums, at->p, at->do_turned, args->e, keys, queries, add);
        grad_keys(problem, problem->dk_sums, at->ds, at->q_turned, args->d, keys, queries, add);
        add = true;
    }
    if (!add) {
        memset(problem->dk_sums, 0,
               (size_t)(problem->block * round_lanes(args->d)) * sizeof(PvReal));
        memset(problem->dv_sums, 0,
               (size_t)(problem->block * round_lanes(args->e)) * sizeof(PvReal));
    }
    grad_store_block(problem, m0, keys);
}

#if PV_SPLIT

// Whether problems of these sizes are made by split.h.
static bool grad_splits(const PvRun *run, const AttentionArgs *args)
{
    return run->split && !args->mask && !args->causal &&
           pv_least(args->m, args->n) >= SPLIT_LEAST_KEYS &&
           pv_least(args->d, args->e) >= PV_SPLIT_NARROW / 2 && pv_split_ready();
}

#endif

static void attention_grad_one(const PvRun *run, const AttentionGradArgs *grad)
{
    const AttentionArgs *args = &grad->f;
    int64_t problems = args->batch0 * args->batch1 * args->batch2;
    int64_t together = pv_most(1, problems / (TASKS_A_THREAD * run->threads));
#if PV_SPLIT
    bool splits = grad_splits(run, args);
#endif
#pragma omp parallel for schedule(dynamic, together) num_threads(run->threads) if (problems > 1)
    for (int64_t task = 0; task < problems; task++) {
        int64_t i0, i1, i2;
        problem_axes(args, task, &i0, &i1, &i2);
        GradProblem problem = {
            .f = problem_of(args, task),
            .args = grad,
            .d_o = (const PvReal *)grad->d_o + i0 * args->o0 + i1 * args->o1 + i2 * args->o2,
            .dq = (PvReal *)grad->dq + i0 * grad->dq0 + i1 * grad->dq1 + i2 * grad->dq2,
            .dk = (PvReal *)grad->dk + i0 * grad->dk0 + i1 * grad->dk1 + i2 * grad->dk2,
            .dv = (PvReal *)grad->dv + i0 * grad->dv0 + i1 * grad->dv1 + i2 * grad->dv2,
        };
        PvReal *scratch = (PvReal *)pv_thread_scratch(run);
#if PV_SPLIT
        if (splits) {
            if (pv_most(args->d, args->e) <= PV_SPLIT_NARROW)
                pv_grad_narrow(&problem, scratch);
            else
                pv_grad_wide(&problem, scratch);
            continue;
        }
#endif
        problem.block = key_block(args->m, PV_GRAD_KEYS);
        problem.dq_rows = round_rows(args->d);
        GradPanels at = grad_scratch(&problem, scratch);
        grad_delta(&problem);
        for (int64_t m0 = 0; m0 < args->m; m0 += problem.block)
            grad_block(&problem, &at, m0, pv_least(problem.block, args->m - m0));
        grad_store_queries(&problem);
    }
}

void pv_attention_grad(const PvRun *run, const int64_t *raw)
{
    const AttentionGradArgs *grad = (const AttentionGradArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        attention_grad_one(run, &grad[i]);
}
