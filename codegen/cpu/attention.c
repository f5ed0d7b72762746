// Attention without a matrix of scores, forward and backward.
//
// Everything is turned so that queries lie along the lanes of vectors: scores^T [keys, queries] =
// K Q^T is a tile with keys as rows, its maximum, sum and exponential need no sums across lanes,
// and it is, where it lies, the right operand of O^T += V^T P^T. A task takes a range of queries
// of one problem, and goes over blocks of keys with a running maximum and sum (Milakov and
// Gimelshein 2018; Dao et al., "FlashAttention", 2022). Blocks of keys are fixed by their number.
// Long problems of heads wider than 16 are made by split.h, where there is such a unit: 2^scores
// are split as they are computed. In narrower ones that takes what the products save.
// Where the lengths of queries and keys bound all scores of a panel (Cauchy and Schwarz), no
// maximum is looked for: 2^score is in range as it is, and as exact.
//
// Backward, a task is one problem: for each block of keys, blocks of queries; P is made again from
// the log-sum-exp, dS = P (dP - D) with D = rowsum(do o), and
//   dV += P^T dO,  dK += dS^T Q,  dQ += dS K.
// Scores are in units of q k scale log2(e): q is scaled when it is packed, and e^x is 2^score. The
// sums of a tile of scores begin with what would be subtracted from them.
//
// Rotary operands (RotaryLoad) are turned row by row before they are packed, keys once a block of
// queries, which is 3 operations an element beside 2 for each query; gradients before
// they are stored.
#include "codegen/cpu/attention_parts.h"
#include "codegen/cpu/pv_math.h"
#include "codegen/cpu/split.h"
#include "codegen/cpu/tile.h"

enum { SPLIT_LEAST_KEYS = 128 }; // and queries, from which split.h pays
enum { TASKS_A_THREAD = 32 };     // pieces in which a thread takes its work, about

#define LOG2_E ((PvReal)1.4426950408889634)
#define LOG_2 ((PvReal)0.6931471805599453)

static int64_t round_rows(int64_t count)
{
    return pv_ceil_div(count, PV_ROWS) * PV_ROWS;
}

static int64_t round_lanes(int64_t count)
{
    return pv_ceil_div(count, PV_LANES) * PV_LANES;
}

// Rows of a panel: even panels, in thirds of PV_ROWS, since a tile of few rows waits for itself.
static int64_t panel_rows(int64_t rows)
{
    int64_t panels = pv_most(1, pv_ceil_div(rows, PV_ROWS)), third = PV_ROWS / 3;
    return pv_ceil_div(pv_ceil_div(rows, panels), third) * third;
}

// Panels of panel_rows rows out of `rows`: to[panel][k][PV_ROWS].
static void pack_row_panels(PvReal *to, const PvReal *from, int64_t row_step, int64_t k_step,
                            int64_t rows, int64_t k)
{
    int64_t step = panel_rows(rows);
    for (int64_t i = 0; i < rows; i += step, to += PV_ROWS * k)
        pack_panel(to, PV_ROWS, from + i * row_step, row_step, k_step, pv_least(rows - i, step), k);
}

// Panels of PV_LANES columns out of `columns`, times scale: to[panel][k][PV_LANES].
static void pack_lane_panels(PvReal *to, const PvReal *from, int64_t column_step, int64_t k_step,
                             int64_t columns, int64_t k, PvReal scale)
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
static void panels_multiply(PvReal *c, int64_t c_step, const PvReal *row_panels, int64_t rows,
                            const PvReal *lane_panel, int64_t lane_step, int64_t lanes, int64_t k,
                            bool add)
{
    int64_t step = panel_rows(rows);
    for (int64_t i = 0; i < rows; i += step, row_panels += PV_ROWS * k)
        tile_multiply(pv_least(rows - i, step), lanes, k, row_panels, lane_panel, lane_step,
                      c + i * c_step, c_step, add);
}

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

// One problem of the batch.
typedef struct {
    const AttentionArgs *args;
    const PvReal *q, *k, *v, *mask;
    PvReal *o, *lse;
    PvReal scale, unit; // of q k; with log2(e)
} Problem;

static void problem_axes(const AttentionArgs *args, int64_t number, int64_t *i0, int64_t *i1,
                         int64_t *i2)
{
    *i2 = number % args->batch2;
    number /= args->batch2;
    *i1 = number % args->batch1;
    *i0 = number / args->batch1;
}

static Problem problem_of(const AttentionArgs *args, int64_t number)
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
static void mask_scores(const Problem *problem, PvReal *scores, int64_t step, int64_t n0,
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
static int64_t key_block(int64_t keys, int64_t most)
{
    return pv_most(PV_ROWS, round_rows(pv_ceil_div(keys, pv_most(1, pv_ceil_div(keys, most)))));
}

typedef struct {
    PvReal *k, *v;      // row panels: [key panel][d][PV_ROWS], [e panel][keys][PV_ROWS]
    PvReal *q;          // lane panels [query panel][d][PV_LANES]
    PvReal *scores;     // [keys][PV_LANES]
    PvReal *o;          // [query panel][e, whole row panels][PV_LANES]
    PvReal *most, *sum; // [queries]: running maximum and sum
    PvReal *bound;      // [query panel]: no score is larger, nor smaller than its negative
    PvReal *room;       // [queries or keys][d]: turned rows
    int64_t o_rows;     // rows of a panel of o
    // by split.h: panels of q, k and v in its form; 2^scores; [keys][PV_LANES]
    bool split;
    PvReal *split_q, *split_k, *split_v, *split_p, *lanes;
} ForwardScratch;

enum {
    BOUNDED = 40,        // scores of which 2^score and its sums are far from the ends of f32
    BOUNDED_SIZE = 256,  // queries and keys from which it pays to look for a bound
};

// The largest of `count` sums of squares, each of d numbers.
static double largest_square(Rows x, int64_t count, int64_t d)
{
    double most = 0;
    for (int64_t first = 0; first < count; first += PV_LANES) {
        PvReal sums[PV_LANES] = {0};
        int64_t lanes = pv_least(PV_LANES, count - first);
        for (int64_t i = 0; x.n != 1 && i < lanes; i++) {
            const PvReal *at = x.at + (first + i) * x.n;
            PvReal sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < d; j++)
                sum += at[j * x.d] * at[j * x.d];
            sums[i] = sum;
        }
        for (int64_t j = 0; x.n == 1 && j < d; j++) {
            const PvReal *at = x.at + first + j * x.d;
            for (int64_t i = 0; i < lanes; i++)
                sums[i] += at[i] * at[i];
        }
        for (int64_t i = 0; i < lanes; i++)
            most = (double)sums[i] > most ? (double)sums[i] : most;
    }
    return most;
}

// For each panel of packed queries the product of its longest and the longest of all keys, so that
// which way a panel goes does not depend on the cut into tasks; infinite where nobody looks.
static void find_bounds(const Problem *problem, const ForwardScratch *at, int64_t queries)
{
    const AttentionArgs *args = problem->args;
    bool look = !problem->mask && !args->causal && !args->k_rotary.cos &&
                pv_least(args->n, args->m) >= BOUNDED_SIZE;
    Rows keys = {problem->k, args->k_n, args->k_d};
    double longest = look ? largest_square(keys, args->m, args->d) : INFINITY;
    for (int64_t i = 0; i < queries; i += PV_LANES) {
        Rows panel = {at->q + i * args->d, 1, PV_LANES};
        double square = look ? longest * largest_square(panel, PV_LANES, args->d) : INFINITY;
        at->bound[i / PV_LANES] = (PvReal)__builtin_sqrt(square);
    }
}

// ---- by split.h ----

// Whether attention over problems of these sizes is.
static bool attention_splits(const AttentionArgs *args)
{
    return args->m >= SPLIT_LEAST_KEYS && args->n >= SPLIT_LEAST_KEYS &&
           pv_least(args->d, args->e) > SPLIT_DEPTH / 2 && pv_split_ready();
}

// Keys of a block: even blocks of whole tiles.
static int64_t split_keys(int64_t keys)
{
    int64_t blocks = pv_ceil_div(keys, PV_SPLIT_KEYS);
    return pv_ceil_div(pv_ceil_div(keys, blocks), SPLIT_DEPTH) * SPLIT_DEPTH;
}

#if PV_SPLIT

// take_powers of one vector of scores, which go to a panel of columns of split.h.
PV_INLINE PvVec split_powers(PvReal *to, const PvReal *scores, int64_t keys, PvVec zero, bool plain)
{
    PvVec sum[2] = {0};
    for (int64_t i = 0; i < keys; i += SPLIT_DEPTH, to += SPLIT_STEP) {
        for (int64_t word = 0; word < 16; word++) {
            const PvReal *at = scores + (i + word) * PV_LANES;
            PvVec low = vec_load(at), high = vec_load(at + 16 * PV_LANES), part[3];
            low = vec_exp2(plain ? low : low - zero);
            high = vec_exp2(plain ? high : high - zero);
            sum[0] += low;
            sum[1] += high;
            split_pair(low, high, false, part);
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                vec_store(to + k * SPLIT_PART + word * SPLIT_LINE, part[k]);
        }
    }
    return sum[0] + sum[1];
}

// Scores behind `keys`, to a whole tile: those of which the power is 0.
static void split_forbid(PvReal *scores, int64_t keys)
{
    for (int64_t i = keys * PV_LANES; i < pv_ceil_div(keys, SPLIT_DEPTH) * SPLIT_DEPTH * PV_LANES;
         i++)
        scores[i] = -(PvReal)INFINITY;
}

// Panels of split.h of a block of keys.
static void split_block(const Problem *problem, const ForwardScratch *at, Rows k, int64_t m0,
                        int64_t keys)
{
    const AttentionArgs *args = problem->args;
    const PvReal *v = problem->v + m0 * args->v_n;
    for (int64_t i = 0; i < keys; i += SPLIT_ROWS) {
        pack_panel(at->lanes, PV_LANES, k.at + i * k.n, k.n, k.d, pv_least(keys - i, SPLIT_ROWS),
                   args->d);
        split_turned(at->split_k + i / SPLIT_ROWS * split_words(args->d), at->lanes, PV_LANES,
                     args->d);
    }
    for (int64_t i = 0; i < args->e; i += SPLIT_ROWS) {
        PvReal *to = at->split_v + i / SPLIT_ROWS * split_words(PV_SPLIT_KEYS);
        int64_t rows = pv_least(args->e - i, SPLIT_ROWS);
        if (args->v_n == 1) {
            split_rows(to, v + i * args->v_d, args->v_d, rows, keys);
            continue;
        }
        pack_panel(at->lanes, PV_LANES, v + i * args->v_d, args->v_d, args->v_n, rows, keys);
        split_turned(to, at->lanes, PV_LANES, keys);
    }
}

#endif

// Panels of a block of keys, whose rows are k, and of its values.
static void forward_keys(const Problem *problem, const ForwardScratch *at, Rows k, int64_t m0,
                         int64_t keys)
{
    const AttentionArgs *args = problem->args;
#if PV_SPLIT
    if (at->split) {
        split_block(problem, at, k, m0, keys);
        return;
    }
#endif
    pack_row_panels(at->k, k.at, k.n, k.d, keys, args->d);
    pack_row_panels(at->v, problem->v + m0 * args->v_n, args->v_d, args->v_n, args->e, keys);
}

// scores[keys][PV_LANES] of one panel of queries, number `panel`.
static void forward_scores(const ForwardScratch *at, int64_t panel, int64_t queries, int64_t keys,
                           int64_t d)
{
#if PV_SPLIT
    if (at->split) {
        int64_t words = split_words(d);
        for (int64_t i = 0; i < keys; i += SPLIT_ROWS)
            split_multiply(SPLIT_ROWS, PV_LANES, d, at->split_k + i / SPLIT_ROWS * words,
                           at->split_q + panel * words, at->scores + i * PV_LANES, PV_LANES, false);
        split_forbid(at->scores, keys);
        return;
    }
#endif
    panels_multiply(at->scores, PV_LANES, at->k, keys, at->q + panel * PV_LANES * d, PV_LANES,
                    queries, d, false);
}

// Takes one vector of scores to its powers of two, as take_powers.
PV_INLINE PvVec forward_powers(const ForwardScratch *at, int64_t vector, int64_t keys, PvVec zero,
                               bool plain)
{
    PvReal *scores = at->scores + vector * PV_WIDTH;
#if PV_SPLIT
    if (at->split)
        return split_powers(at->split_p + vector * SPLIT_TILE, scores, keys, zero, plain);
#endif
    return take_powers(scores, keys, zero, plain);
}

// o (+)= V^T P^T of one panel of queries.
static void forward_values(const ForwardScratch *at, PvReal *o, int64_t queries, int64_t keys,
                           int64_t e, bool add)
{
#if PV_SPLIT
    for (int64_t i = 0; at->split && i < e; i += SPLIT_ROWS)
        split_multiply(pv_least(e - i, SPLIT_ROWS), queries, keys,
                       at->split_v + i / SPLIT_ROWS * split_words(PV_SPLIT_KEYS), at->split_p,
                       o + i * PV_LANES, PV_LANES, add);
    if (at->split)
        return;
#endif
    panels_multiply(o, PV_LANES, at->v, e, at->scores, PV_LANES, queries, keys, add);
}

// Takes scores [keys][PV_LANES] to 2^(scores - maximum), and brings most and sum up to date;
// correction gets what the former sums are to be multiplied by.
static void soften(const ForwardScratch *at, int64_t keys, int64_t vectors, PvReal *most,
                   PvReal *sum, PvReal *correction)
{
    const PvReal *scores = at->scores;
    for (int64_t j = 0; j < vectors; j++, scores += PV_WIDTH) {
        PvVec former = vec_load(most + j * PV_WIDTH), high[CHAINS];
        for (int k = 0; k < CHAINS; k++)
            high[k] = former;
        int64_t whole = keys - keys % CHAINS;
        for (int64_t i = 0; i < whole; i += CHAINS) {
#pragma GCC unroll 4
            for (int k = 0; k < CHAINS; k++)
                high[k] = vec_larger(high[k], vec_load(scores + (i + k) * PV_LANES));
        }
        for (int64_t i = whole; i < keys; i++)
            high[0] = vec_larger(high[0], vec_load(scores + i * PV_LANES));
        for (int k = 1; k < CHAINS; k++)
            high[0] = vec_larger(high[0], high[k]);
        vec_store(most + j * PV_WIDTH, high[0]);
        // all forbidden so far: any finite number will do
        PvVec zero = vec_choose(high[0] == vec_all(-(PvReal)INFINITY), (PvVec){0}, high[0]);
        PvVec total = forward_powers(at, j, keys, zero, false);
        PvVec factor = vec_exp2(former - zero);
        vec_store(correction + j * PV_WIDTH, factor);
        vec_store(sum + j * PV_WIDTH, vec_load(sum + j * PV_WIDTH) * factor + total);
    }
}

// The same of bounded scores: 2^score as it is, so that 0 stands in place of a maximum.
static void soften_bounded(const ForwardScratch *at, int64_t keys, int64_t vectors, PvReal *sum)
{
    for (int64_t j = 0; j < vectors; j++, sum += PV_WIDTH)
        vec_store(sum, vec_load(sum) + forward_powers(at, j, keys, (PvVec){0}, true));
}

// One panel of queries against one block of keys, m0 .. m0 + keys - 1.
static void forward_panel(const Problem *problem, const ForwardScratch *at, int64_t first,
                          int64_t n0, int64_t queries, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->args;
    PvReal correction[PV_LANES] __attribute__((aligned(64)));
    PvReal *o = at->o + (n0 - first) * at->o_rows;
    if (args->causal && m0 > n0 + queries - 1)
        return;
    bool bounded = at->bound[(n0 - first) / PV_LANES] <= BOUNDED;
    forward_scores(at, (n0 - first) / PV_LANES, queries, keys, args->d);
    if (problem->mask || args->causal)
        mask_scores(problem, at->scores, PV_LANES, n0, queries, m0, keys);
    int64_t vectors = pv_ceil_div(queries, PV_WIDTH);
    if (bounded)
        soften_bounded(at, keys, vectors, at->sum + n0 - first);
    else
        soften(at, keys, vectors, at->most + n0 - first, at->sum + n0 - first, correction);
    for (int64_t i = 0; !bounded && m0 > 0 && i < args->e; i++) {
        for (int64_t j = 0; j < vectors * PV_WIDTH; j += PV_WIDTH)
            vec_store(o + i * PV_LANES + j,
                      vec_load(o + i * PV_LANES + j) * vec_load(correction + j));
    }
    forward_values(at, o, queries, keys, args->e, m0 > 0);
}

// o = O / sum and lse of queries n0 .. n0 + queries - 1.
static void forward_finish(const Problem *problem, const ForwardScratch *at, int64_t first,
                           int64_t n0, int64_t queries)
{
    const AttentionArgs *args = problem->args;
    PvReal *o = at->o + (n0 - first) * at->o_rows;
    const PvReal *sum = at->sum + n0 - first, *most = at->most + n0 - first;
    PvReal inverse[PV_LANES];
    for (int64_t i = 0; i < PV_LANES; i++)
        inverse[i] = i < queries ? 1 / sum[i] : 0;
    for (int64_t i = 0; i < args->e; i++) {
        for (int64_t j = 0; j < PV_LANES; j++)
            o[i * PV_LANES + j] *= inverse[j];
    }
    for (int64_t i = 0; problem->lse && i < queries; i++)
        problem->lse[n0 + i] = most[i] * LOG_2 + pv_log(sum[i]);
    if (args->o_d == 1) {
        store_transposed(problem->o + n0 * args->o_n, args->o_n, o, PV_LANES, args->e, queries);
        return;
    }
    for (int64_t i = 0; i < args->e; i++) {
        PvReal *to = problem->o + i * args->o_d + n0 * args->o_n;
        for (int64_t j = 0; j < queries; j++)
            to[j * args->o_n] = o[i * PV_LANES + j];
    }
}

// Lays out the scratch of a task; blocks of so many keys.
static void forward_scratch(const AttentionArgs *args, ForwardScratch *at, int64_t queries,
                            int64_t block, PvReal *next)
{
    at->o_rows = at->split ? pv_ceil_div(args->e, SPLIT_ROWS) * SPLIT_ROWS : round_rows(args->e);
    at->q = next, next += queries * args->d;
    at->o = next, next += queries * at->o_rows;
    at->most = next, next += queries;
    at->sum = next, next += queries;
    at->bound = next, next += queries;
    if (at->split) {
#if PV_SPLIT
        int64_t values = pv_ceil_div(args->e, SPLIT_ROWS) * split_words(PV_SPLIT_KEYS);
        at->scores = next, next += PV_SPLIT_KEYS * PV_LANES;
        at->split_q = next, next += queries / PV_LANES * split_words(args->d);
        at->split_k = next, next += PV_SPLIT_KEYS / SPLIT_ROWS * split_words(args->d);
        at->split_v = next, next += values;
        at->split_p = next, next += split_words(PV_SPLIT_KEYS);
        at->lanes = next, next += pv_most(PV_SPLIT_KEYS, args->d) * PV_LANES;
#endif
    } else {
        at->scores = next, next += block * PV_LANES;
        at->k = next, next += block * args->d + PV_LANES;
        at->v = next, next += block * round_rows(args->e) + PV_LANES;
    }
    at->room = next;
}

// Queries n0 .. n1 - 1 of one problem.
static void forward_task(const Problem *problem, int64_t n0, int64_t n1, char *scratch)
{
    const AttentionArgs *args = problem->args;
    int64_t queries = round_lanes(n1 - n0);
    ForwardScratch at = {.split = attention_splits(args)};
    int64_t block = at.split ? split_keys(args->m) : key_block(args->m, PV_KEYS);
    forward_scratch(args, &at, queries, block, (PvReal *)scratch);
    Rows rows = load_rows(&args->q_rotary, at.room, problem->q, args->q_n, args->q_d, args->d, n0,
                          n1 - n0);
    pack_lane_panels(at.q, rows.at, rows.n, rows.d, n1 - n0, args->d, problem->unit);
    find_bounds(problem, &at, queries);
#if PV_SPLIT
    for (int64_t i = 0; at.split && i < queries; i += PV_LANES)
        split_columns(at.split_q + i / PV_LANES * split_words(args->d), at.q + i * args->d,
                      PV_LANES, args->d);
    if (at.split)
        split_begin();
#endif
    for (int64_t i = 0; i < queries; i++) {
        at.most[i] = at.bound[i / PV_LANES] <= BOUNDED ? 0 : -(PvReal)INFINITY;
        at.sum[i] = 0;
    }
    for (int64_t m0 = 0; m0 < args->m; m0 += block) {
        int64_t keys = pv_least(block, args->m - m0);
        if (args->causal && m0 > n1 - 1)
            break;
        rows = load_rows(&args->k_rotary, at.room, problem->k, args->k_n, args->k_d, args->d, m0,
                         keys);
        forward_keys(problem, &at, rows, m0, keys);
        for (int64_t n = n0; n < n1; n += PV_LANES)
            forward_panel(problem, &at, n0, n, pv_least(n1 - n, PV_LANES), m0, keys);
    }
#if PV_SPLIT
    if (at.split)
        split_end();
#endif
    for (int64_t n = n0; n < n1; n += PV_LANES)
        forward_finish(problem, &at, n0, n, pv_least(n1 - n, PV_LANES));
}

static void attention_one(const PvRun *run, const AttentionArgs *args)
{
    int64_t problems = args->batch0 * args->batch1 * args->batch2;
    if (problems == 0 || args->n == 0)
        return;
    int64_t blocks = pv_ceil_div(args->n, PV_QUERIES);
    if (run->threads > 1 && problems * blocks < 4 * run->threads)
        blocks =
            pv_least(pv_ceil_div(4 * run->threads, problems), pv_ceil_div(args->n, 4 * PV_LANES));
    blocks = pv_most(blocks, pv_ceil_div(args->n, PV_QUERIES));
    int64_t size = round_lanes(pv_ceil_div(args->n, blocks)), tasks = problems * blocks;
    int64_t together = pv_most(1, tasks / (TASKS_A_THREAD * run->threads));
#pragma omp parallel for schedule(dynamic, together) num_threads(run->threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        Problem problem = problem_of(args, task / blocks);
        int64_t n0 = task % blocks * size, n1 = pv_least(n0 + size, args->n);
        if (n0 < n1)
            forward_task(&problem, n0, n1, pv_thread_scratch(run));
    }
}

void pv_attention(const PvRun *run, const int64_t *raw)
{
    const AttentionArgs *args = (const AttentionArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        attention_one(run, &args[i]);
}

// ---- backward ----

typedef struct {
    // of the block of keys: row panels of K over keys and over d, of V over keys
    PvReal *k, *k_turned, *v;
    PvReal *dk, *dv; // [d panel][keys][PV_LANES], [e panel][keys][PV_LANES]
    // of the block of queries: lane panels over queries, and over d and e
    PvReal *q, *d_o;              // [d][PV_LANES], [e][PV_LANES] of one panel
    PvReal *q_turned, *do_turned; // [d panel][queries][PV_LANES], [e panel][queries][PV_LANES]
    PvReal *p, *ds;               // [keys][PV_GRAD_QUERIES]
    PvReal *dq;                   // of all queries: [query panel][d, whole row panels][PV_LANES]
    PvReal *delta;                // [n]: rowsum(do o)
    PvReal *room, *q_room;        // [keys][d], [queries of a block][d]: turned rows
} GradScratch;

typedef struct {
    Problem f;
    const AttentionGradArgs *args;
    const PvReal *d_o;
    PvReal *dq, *dk, *dv;
    int64_t block; // keys of a block
    GradScratch at;
} GradProblem;

static void grad_scratch(GradProblem *problem, char *scratch)
{
    const AttentionArgs *args = problem->f.args;
    GradScratch *at = &problem->at;
    PvReal *next = (PvReal *)scratch;
    int64_t keys = problem->block, d_lanes = round_lanes(args->d), e_lanes = round_lanes(args->e);
    at->dk = next, next += keys * d_lanes;
    at->dv = next, next += keys * e_lanes;
    at->q = next, next += args->d * PV_LANES;
    at->d_o = next, next += args->e * PV_LANES;
    at->q_turned = next, next += PV_GRAD_QUERIES * d_lanes;
    at->do_turned = next, next += PV_GRAD_QUERIES * e_lanes;
    at->p = next, next += keys * PV_GRAD_QUERIES;
    at->ds = next, next += keys * PV_GRAD_QUERIES;
    at->dq = next, next += round_lanes(args->n) * round_rows(args->d);
    at->delta = next, next += round_lanes(args->n);
    at->k = next, next += keys * args->d + PV_LANES;
    at->k_turned = next, next += keys * round_rows(args->d) + PV_LANES;
    at->v = next, next += keys * args->e + PV_LANES;
    at->room = next, next += keys * args->d;
    at->q_room = next;
}

// delta[i] = sum over e of do[i, e] o[i, e]
static void grad_delta(const GradProblem *problem)
{
    const AttentionArgs *args = problem->f.args;
    PvReal *delta = problem->at.delta;
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

// P and dS of one panel of queries, n0 .., in column `column` of the block, whose rows are
// q; adds to dQ.
static void grad_panel(const GradProblem *problem, Rows q, int64_t n0, int64_t column,
                       int64_t queries, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    const GradScratch *at = &problem->at;
    PvReal *p = at->p + column, *ds = at->ds + column;
    PvReal high[PV_LANES], delta[PV_LANES]; // negative
    pack_lane_panels(at->q, q.at + column * q.n, q.n, q.d, queries, args->d, problem->f.unit);
    pack_lane_panels(at->d_o, problem->d_o + n0 * args->o_n, args->o_n, args->o_d, queries, args->e,
                     1);
    for (int64_t i = 0; i < PV_LANES; i++) {
        high[i] = i < queries ? problem->f.lse[n0 + i] * -LOG2_E : -(PvReal)INFINITY;
        delta[i] = -at->delta[n0 + i];
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
    panels_multiply(at->dq + n0 * round_rows(args->d), PV_LANES, at->k_turned, args->d, ds,
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

// to[i * step_n + j * step_d] = sums[panel][i][j in panel]
static void grad_store_keys(PvReal *to, int64_t step_n, int64_t step_d, const PvReal *sums,
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

static void copy_rows(PvReal *to, int64_t step_n, int64_t step_d, const PvReal *from, int64_t count,
                      int64_t d)
{
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < d; j++)
            to[i * step_n + j * step_d] = from[i * d + j];
    }
}

static void grad_block(const GradProblem *problem, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    const AttentionGradArgs *grad = problem->args;
    const GradScratch *at = &problem->at;
    const PvReal *v = problem->f.v + m0 * args->v_n;
    Rows k = load_rows(&args->k_rotary, at->room, problem->f.k, args->k_n, args->k_d, args->d, m0,
                       keys);
    pack_row_panels(at->k, k.at, k.n, k.d, keys, args->d);
    pack_row_panels(at->k_turned, k.at, k.d, k.n, args->d, keys);
    pack_row_panels(at->v, v, args->v_n, args->v_d, keys, args->e);
    bool add = false;
    for (int64_t n0 = 0; n0 < args->n; n0 += PV_GRAD_QUERIES) {
        int64_t queries = pv_least(args->n - n0, PV_GRAD_QUERIES);
        if (args->causal && m0 > n0 + queries - 1)
            continue;
        Rows q = load_rows(&args->q_rotary, at->q_room, problem->f.q, args->q_n, args->q_d, args->d,
                           n0, queries);
        for (int64_t i = 0; i < queries; i += PV_LANES)
            grad_panel(problem, q, n0 + i, i, pv_least(queries - i, PV_LANES), m0, keys);
        pack_lane_panels(at->q_turned, q.at, q.d, q.n, args->d, queries, problem->f.scale);
        pack_lane_panels(at->do_turned, problem->d_o + n0 * args->o_n, args->o_d, args->o_n,
                         args->e, queries, 1);
        grad_keys(problem, at->dv, at->p, at->do_turned, args->e, keys, queries, add);
        grad_keys(problem, at->dk, at->ds, at->q_turned, args->d, keys, queries, add);
        add = true;
    }
    if (!add) {
        memset(at->dk, 0, (size_t)(problem->block * round_lanes(args->d)) * sizeof(PvReal));
        memset(at->dv, 0, (size_t)(problem->block * round_lanes(args->e)) * sizeof(PvReal));
    }
    PvReal *dk = problem->dk + m0 * grad->dk_n;
    if (args->k_rotary.cos) {
        grad_store_keys(at->room, args->d, 1, at->dk, problem->block, keys, args->d);
        turn_rows(&args->k_rotary, at->room, args->d, m0, keys, true);
        copy_rows(dk, grad->dk_n, grad->dk_d, at->room, keys, args->d);
    } else {
        grad_store_keys(dk, grad->dk_n, grad->dk_d, at->dk, problem->block, keys, args->d);
    }
    grad_store_keys(problem->dv + m0 * grad->dv_n, grad->dv_n, grad->dv_d, at->dv, problem->block,
                    keys, args->e);
}

static void grad_store_queries(const GradProblem *problem)
{
    const AttentionArgs *args = problem->f.args;
    const AttentionGradArgs *grad = problem->args;
    for (int64_t n0 = 0; n0 < args->n; n0 += PV_LANES) {
        PvReal *dq = problem->at.dq + n0 * round_rows(args->d);
        int64_t queries = pv_least(args->n - n0, PV_LANES);
        PvReal *to = problem->dq + n0 * grad->dq_n;
        for (int64_t i = 0; i < args->d * PV_LANES; i++)
            dq[i] *= problem->f.scale;
        if (args->q_rotary.cos) {
            PvReal *room = problem->at.q_room;
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

static void attention_grad_one(const PvRun *run, const AttentionGradArgs *grad)
{
    const AttentionArgs *args = &grad->f;
    int64_t problems = args->batch0 * args->batch1 * args->batch2;
    int64_t together = pv_most(1, problems / (TASKS_A_THREAD * run->threads));
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
            .block = key_block(args->m, PV_GRAD_KEYS),
        };
        grad_scratch(&problem, pv_thread_scratch(run));
        grad_delta(&problem);
        for (int64_t m0 = 0; m0 < args->m; m0 += problem.block)
            grad_block(&problem, m0, pv_least(problem.block, args->m - m0));
        grad_store_queries(&problem);
    }
}

void pv_attention_grad(const PvRun *run, const int64_t *raw)
{
    const AttentionGradArgs *grad = (const AttentionGradArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        attention_grad_one(run, &grad[i]);
}
