// Attention without a matrix of scores; its gradient is in attention_grad.c.
//
// Everything is turned so that queries lie along the lanes of vectors: scores^T [keys, queries] =
// K Q^T is a tile with keys as rows, its maximum, sum and exponential need no sums across lanes,
// and it is, where it lies, the right operand of O^T += V^T P^T. A task takes a range of queries
// of one problem, and goes over blocks of keys with a running maximum and sum (Milakov and
// Gimelshein 2018; Dao et al., "FlashAttention", 2022). Blocks of keys are fixed by their number.
// Long problems of heads of 16 and wider are made by split.h, where there is such a unit: 2^scores
// are split as they are computed, in blocks of so few keys that the first cache holds them.
// Where the lengths of queries and keys bound all scores of a panel (Cauchy and Schwarz), no
// maximum is looked for: 2^score is in range as it is, and as exact.
//
// Scores are in units of q k scale log2(e): q is scaled when it is packed, and e^x is 2^score.
//
// Rotary operands (RotaryLoad) are turned row by row before they are packed, keys once a block of
// queries, which is 3 operations an element beside 2 for each query; gradients before
// they are stored.
#include "codegen/cpu/attention_split.h"
#include "codegen/cpu/pv_math.h"
#include "codegen/cpu/split.h"
#include "codegen/cpu/tile.h"

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
    BOUNDED = 40,       // scores of which 2^score and its sums are far from the ends of f32
    BOUNDED_SIZE = 256, // queries and keys from which it pays to look for a bound
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
static bool attention_splits(const PvRun *run, const AttentionArgs *args)
{
    return run->split && args->m >= SPLIT_LEAST_KEYS && args->n >= SPLIT_LEAST_KEYS &&
           pv_least(args->d, args->e) >= SPLIT_DEPTH / 2 && pv_split_ready();
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
            PvVec low = vec_load(at), high = vec_load(at + 16 * PV_LANES);
            low = vec_exp2(plain ? low : low - zero);
            high = vec_exp2(plain ? high : high - zero);
            sum[0] += low;
            sum[1] += high;
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++) {
                vec_store(to + k * SPLIT_PART + word * SPLIT_LINE, pack_halves(low, high));
                low = lower_part(low);
                high = lower_part(high);
            }
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
                           at->split_q + panel * words, at->scores + i * PV_LANES, PV_LANES, false,
                           NULL);
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
                       o + i * PV_LANES, PV_LANES, add, NULL);
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
static void forward_task(const PvRun *run, const Problem *problem, int64_t n0, int64_t n1)
{
    const AttentionArgs *args = problem->args;
    int64_t queries = round_lanes(n1 - n0);
    ForwardScratch at = {.split = attention_splits(run, args)};
    int64_t block = at.split ? split_keys(args->m) : key_block(args->m, PV_KEYS);
    forward_scratch(args, &at, queries, block, (PvReal *)pv_thread_scratch(run));
    Rows rows =
        load_rows(&args->q_rotary, at.room, problem->q, args->q_n, args->q_d, args->d, n0, n1 - n0);
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
            forward_task(run, &problem, n0, n1);
    }
}

void pv_attention(const PvRun *run, const int64_t *raw)
{
    const AttentionArgs *args = (const AttentionArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        attention_one(run, &args[i]);
}
