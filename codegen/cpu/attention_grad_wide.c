// The gradient of attention on a processor's unit for matrices of bf16 (split.h), for heads wider
// than 16.
//
// 32 keys and 32 queries are an item. It passes three stages: the products of its scores,
//   S = K Q^T and dP = V dO^T;
// its powers P = 2^S and dS = P dP, split as they are computed; and the products that add it to
//   dV += P dO, dK += dS Q, dQ^T += K^T dS.
// Keys are the rows of scores, queries their lanes. So P and dS are rows of tiles if a word is two
// queries of one key, 16 apart, and dS is columns of tiles if it is two keys of one query. All
// other operands are split once a block of keys, or once a panel of queries in each such block.
//
// One line of an item holds what keys `row` and `row` + 16 have: their scores at first, then the
// parts of P, of dS, and of dS again as columns. Products and vectors are units of their own, but
// running them side by side gained nothing: both want the same port.
#include "codegen/cpu/attention_grad.h"
#include "codegen/cpu/attention_split.h"

#if PV_SPLIT

enum {
    ITEM = SPLIT_DEPTH,         // keys and queries of an item
    ITEM_LINE = 3 * SPLIT_LINE, // words of a line
    GRADIENTS = SPLIT_LINE,     // where dP and the parts of dS begin there
    TURNED = 2 * SPLIT_LINE,    // where dS as columns begins
    ITEM_BYTES = 4 * ITEM_LINE,
};

typedef struct {
    int64_t d_words, e_words;     // of a panel of 32 rows
    PvReal *k, *k_turned, *v;     // panels of 32 keys: rows for S, rows for dQ^T, rows for dP
    PvReal *q, *d_o;              // of 32 queries: columns for S and dP,
    PvReal *q_turned, *do_turned; // columns for dK and dV
    PvReal *high, *delta;         // [PV_LANES]: what is added to S and dP
    PvReal *item;                 // [16][ITEM_LINE]
    PvReal *lanes;                // [d, e or 32][PV_LANES]
} WideGrad;

// ---- products ----

// Scores of an item, [16][keys row and row + 16][PV_LANES].
static void wide_scores(const PvReal *a, const PvReal *b, int64_t steps, PvReal *c)
{
    split_zero();
    split_add_steps(true, true, steps, a, SPLIT_LINE_BYTES, b, SPLIT_LINE_BYTES, c, ITEM_BYTES,
                    NULL);
    _tile_stored(0, c, ITEM_BYTES);
    _tile_stored(1, c + PV_WIDTH, ITEM_BYTES);
    _tile_stored(2, c + PV_LANES, ITEM_BYTES);
    _tile_stored(3, c + PV_LANES + PV_WIDTH, ITEM_BYTES);
}

// c[32][PV_LANES] += rows times columns, over 32 queries or keys
PV_INLINE void wide_sums(const PvReal *a, int64_t a_bytes, const PvReal *b, int64_t b_bytes,
                         PvReal *c)
{
    split_load_sums(true, true, c, PV_LANES);
    split_add_steps(true, true, 1, a, a_bytes, b, b_bytes, c, PV_LANES * (int64_t)sizeof *c,
                    NULL);
    split_store(true, true, c, PV_LANES);
}

// ---- items ----

// Scores of the keys behind the last: those of which the power is 0.
static void forbid_keys(PvReal *item, int64_t keys)
{
    for (int64_t i = keys; i < ITEM; i++) {
        for (int64_t j = 0; j < PV_LANES; j++)
            item[i % 16 * ITEM_LINE + i / 16 * PV_LANES + j] = -(PvReal)INFINITY;
    }
}

// Scores to parts of P and dS.
static void item_powers(const WideGrad *at)
{
    for (int64_t row = 0; row < 16; row++) {
        PvReal *line = at->item + row * ITEM_LINE, *gradient = line + GRADIENTS;
        PvVec p[2][2], ds[2][2]; // [key][half of the queries]
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            int64_t half = i % 2 * PV_WIDTH;
            power_of(line + i * PV_WIDTH, gradient + i * PV_WIDTH, at->high + half,
                     at->delta + half, &p[i / 2][i % 2], &ds[i / 2][i % 2]);
        }
#pragma GCC unroll 3
        for (int part = 0; part < 3; part++) {
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                PvReal *to = line + i * SPLIT_TILE + part * SPLIT_PART;
                vec_store(to, pack_halves(p[i][0], p[i][1]));
                vec_store(to + GRADIENTS, pack_halves(ds[i][0], ds[i][1]));
                vec_store(to + TURNED, pack_halves(ds[0][i], ds[1][i]));
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                p[i / 2][i % 2] = lower_part(p[i / 2][i % 2]);
                ds[i / 2][i % 2] = lower_part(ds[i / 2][i % 2]);
            }
        }
    }
}

// The queries of the present panel, number `panel`, against `keys` keys, number `strip` of 32 in
// the block.
static void wide_item(const WideGrad *at, const GradProblem *problem, int64_t panel, int64_t strip,
                      int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    const PvReal *turned = at->k_turned + strip * at->d_words;
    int64_t columns = problem->block * PV_LANES; // from a panel of sums to the next
    PvReal *dv = problem->dv_sums + strip * ITEM * PV_LANES;
    PvReal *dk = problem->dk_sums + strip * ITEM * PV_LANES;
    PvReal *dq = problem->dq_sums + panel * ITEM * problem->dq_rows;
    wide_scores(at->k + strip * at->d_words, at->q, at->d_words / SPLIT_STEP, at->item);
    wide_scores(at->v + strip * at->e_words, at->d_o, at->e_words / SPLIT_STEP,
                at->item + GRADIENTS);
    forbid_keys(at->item, keys);
    item_powers(at);
    for (int64_t i = 0; i * PV_LANES < args->e; i++)
        wide_sums(at->item, ITEM_BYTES, at->do_turned + i * SPLIT_STEP, SPLIT_LINE_BYTES,
                  dv + i * columns);
    for (int64_t i = 0; i * PV_LANES < args->d; i++) {
        wide_sums(at->item + GRADIENTS, ITEM_BYTES, at->q_turned + i * SPLIT_STEP, SPLIT_LINE_BYTES,
                  dk + i * columns);
        wide_sums(turned + i * SPLIT_STEP, SPLIT_LINE_BYTES, at->item + TURNED, ITEM_BYTES,
                  dq + i * ITEM * PV_LANES);
    }
}

// ---- panels ----

// Panels of `queries` rows of x, times scale, of which products over queries have columns.
static void pack_over_queries(const WideGrad *at, PvReal *to, Rows x, int64_t queries, int64_t d,
                              PvReal scale)
{
    for (int64_t i = 0; i < d; i += PV_LANES, to += SPLIT_STEP) {
        pack_panel(at->lanes, PV_LANES, x.at + i * x.d, x.d, x.n, pv_least(d - i, PV_LANES),
                   queries);
        for (int64_t j = 0; j < queries * PV_LANES; j++)
            at->lanes[j] *= scale;
        split_columns(to, at->lanes, PV_LANES, queries);
    }
}

// The panels of queries n0 ..
static void query_panel(const WideGrad *at, const GradProblem *problem, int64_t n0)
{
    const AttentionArgs *args = problem->f.args;
    int64_t queries = pv_least(ITEM, args->n - n0);
    Rows q, d_o;
    grad_queries(problem, n0, queries, &q, &d_o, at->high, at->delta);
    pack_panel(at->lanes, PV_LANES, q.at, q.n, q.d, queries, args->d);
    for (int64_t i = 0; i < args->d * PV_LANES; i++)
        at->lanes[i] *= problem->f.unit;
    split_columns(at->q, at->lanes, PV_LANES, args->d);
    pack_panel(at->lanes, PV_LANES, d_o.at, d_o.n, d_o.d, queries, args->e);
    split_columns(at->d_o, at->lanes, PV_LANES, args->e);
    pack_over_queries(at, at->q_turned, q, queries, args->d, problem->f.scale);
    pack_over_queries(at, at->do_turned, d_o, queries, args->e, 1);
}

// The panels of keys m0 .. m0 + keys - 1.
static void key_panels(const WideGrad *at, const GradProblem *problem, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    Rows v = {problem->f.v + m0 * args->v_n, args->v_n, args->v_d};
    Rows k = load_rows(&args->k_rotary, problem->room, problem->f.k, args->k_n, args->k_d, args->d,
                       m0, keys);
    for (int64_t first = 0; first < keys; first += ITEM) {
        int64_t strip = first / ITEM, count = pv_least(ITEM, keys - first);
        PvReal *turned = at->k_turned + strip * at->d_words;
        pack_panel(at->lanes, PV_LANES, k.at + first * k.n, k.n, k.d, count, args->d);
        split_turned(at->k + strip * at->d_words, at->lanes, PV_LANES, args->d);
        for (int64_t i = 0; i < args->d; i += SPLIT_ROWS, turned += SPLIT_STEP)
            split_rows(turned, at->lanes + i * PV_LANES, PV_LANES,
                       pv_least(args->d - i, SPLIT_ROWS), ITEM);
        pack_panel(at->lanes, PV_LANES, v.at + first * v.n, v.n, v.d, count, args->e);
        split_turned(at->v + strip * at->e_words, at->lanes, PV_LANES, args->e);
    }
}

// ---- a problem ----

// Lays out the scratch of a task.
static WideGrad wide_scratch(GradProblem *problem, PvReal *next)
{
    const AttentionArgs *args = problem->f.args;
    WideGrad at = {.d_words = split_words(args->d), .e_words = split_words(args->e)};
    next = grad_sums(problem, next);
    int64_t strips = problem->block / ITEM;
    at.item = next, next += 16 * ITEM_LINE;
    at.k = next, next += strips * at.d_words;
    at.k_turned = next, next += strips * at.d_words;
    at.v = next, next += strips * at.e_words;
    at.q = next, next += at.d_words;
    at.q_turned = next, next += at.d_words;
    at.d_o = next, next += at.e_words;
    at.do_turned = next, next += at.e_words;
    at.high = next, next += PV_LANES;
    at.delta = next, next += PV_LANES;
    at.lanes = next, next += pv_most(ITEM, pv_most(args->d, args->e)) * PV_LANES;
    problem->room = next, next += problem->block * args->d;
    problem->q_room = next;
    return at;
}

void pv_grad_wide(GradProblem *problem, PvReal *scratch)
{
    const AttentionArgs *args = problem->f.args;
    WideGrad at = wide_scratch(problem, scratch);
    grad_delta(problem);
    split_begin();
    for (int64_t m0 = 0; m0 < args->m; m0 += problem->block) {
        int64_t keys = pv_least(problem->block, args->m - m0);
        key_panels(&at, problem, m0, keys);
        grad_clear(problem, m0);
        for (int64_t n0 = 0; n0 < args->n; n0 += ITEM) {
            query_panel(&at, problem, n0);
            for (int64_t first = 0; first < keys; first += ITEM)
                wide_item(&at, problem, n0 / ITEM, first / ITEM, pv_least(ITEM, keys - first));
        }
        grad_store_block(problem, m0, keys);
    }
    split_end();
    grad_store_queries(problem);
}

#endif
