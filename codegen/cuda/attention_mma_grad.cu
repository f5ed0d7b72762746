/* T3, backward: the gradient of attention, mma.sync, bf16 or f16, sm_80, deterministic.
 *
 * The weights P = exp(S - lse) are made again; with D = rowsum(do o), dS = P (do v' - D):
 *   dv = P' do,  dk = scale dS' q,  dq = scale dS k.
 * Phase 0 leaves D in the workspace, float [problems, n]. Phase 1 is a block of keys, which goes
 * over tiles of queries: dv and dk. Phase 2 is a block of queries, over tiles of keys: dq. Where a
 * head dim is above 64 registers do not hold both sums of phase 1: it leaves dk to phase 3, the
 * text of phase 2 with the sides exchanged. A block's own rows of two matrices (k and v; q and do)
 * are left operands against the tiles of the others; what comes out of the first products is, in
 * registers, the left operand of the second ones.
 *
 * Definitions: as attention_mma.cu. A warp has 32 rows in each phase. Head dims up to 64: 128 own
 * rows, tiles of 32 (phase 1) or 64 rows, the next ones copied while the present ones are used;
 * shared memory at most 75 KB. Up to 128: 64 own rows, and in phases 2 and 3 tiles of 64 rows that
 * nothing is copied beside, so that 71 KB suffice: other blocks compute then. 2 blocks a
 * multiprocessor or more. HMMA:LDSM 2.67 in phase 1, 2.86 in phases 2 and 3.
 */
#include "storage.h"

#define LARGE (ATT_D > 64 || ATT_E > 64)
enum {
    THREADS = LARGE ? 64 : 128,
    OWN = THREADS, // rows of a block: 32 a warp
    E_AT = OWN * (ATT_D * 2 + 16) // bytes of shared memory: own rows of width ATT_E
};
#include "attention_mma_parts.h"
#include "attention_delta.h"

// ---- phase 0 ----

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.n + DELTA_ROWS - 1) / DELTA_ROWS;
    int first = block % blocks * DELTA_ROWS;
    Problem problem = problem_of(a.f, block / blocks);
    Matrix o = matrix_o(a.f, problem, a.f.o), d_o = matrix_o(a.f, problem, a.d_o);
    float *delta = (float *)p.head.work[segment] + (int64_t)problem.number * a.f.n;
    make_delta(o, d_o, first, delta, (float *)shared);
}

// ---- what phases 1 to 3 share ----

// Tiles of the other side: `rows` of width ATT_D, as many of ATT_E, two numbers of each row; in
// `stages` places in turn.
template <int rows_, int stages_, int at_> struct Tiles {
    enum {
        rows = rows_,
        stages = stages_,
        at = at_, // bytes of shared memory
        e = rows * (ATT_D * 2 + 16), // bytes in a stage
        stats = e + rows * (ATT_E * 2 + 16),
        stage = stats + 2 * rows * 4,
        others = at + stages * stage, // what tiles are read from
        own_stats = others + 128      // two numbers of each own row
    };
};
// Phase 1 of large head dims has no rows of v.
typedef Tiles<32, 2, LARGE ? (int)E_AT : E_AT + OWN * (ATT_E * 2 + 16)> QueryTiles;
typedef Tiles<64, LARGE ? 1 : 2, E_AT + OWN * (ATT_E * 2 + 16)> LongTiles;

// Logarithms of sums, in units of log2, and D of a problem's queries.
struct Stats {
    const float *lse, *delta;
    int count;
};
CX_FN Stats stats_of(const AttentionGradArgs &a, const Problem &problem, const u8 *work)
{
    int64_t first = (int64_t)problem.number * a.f.n;
    return {(const float *)a.f.lse + first, (const float *)work + first, (int)a.f.n};
}
// Those of `rows` queries from `first` on, at most a thread each: to [2, rows].
template <int rows> CX_FN void load_stats(float *to, const Stats &stats, int first)
{
    int query = first + (int)threadIdx.x;
    if (threadIdx.x >= rows)
        return;
    float lse = query < stats.count ? stats.lse[query] * CX_LOG2E : 0.f;
    to[threadIdx.x] = lse == -INFINITY ? 0.f : lse; // no key counts: any number will do
    to[rows + threadIdx.x] = query < stats.count ? stats.delta[query] : 0.f;
}

// The other side. It lies in shared memory, as registers are few.
struct Others {
    Matrix x, y;
    Stats stats;
};
static_assert(sizeof(Others) <= 128, "Tiles::own_stats");
// Starts the copies of a tile: rows from `first` of x and y, and of queries their numbers.
template <class T, bool queries> CX_FN void load_others(u8 *shared, u32 stage, int first)
{
    const Others &others = *(const Others *)(shared + T::others);
    load_tile<T::rows, ATT_D>(shared + stage, others.x, first);
    load_tile<T::rows, ATT_E>(shared + stage + T::e, others.y, first);
    if (queries)
        load_stats<T::rows>((float *)(shared + stage + T::stats), others.stats, first);
    cx_copy_commit();
}

// Scores to weights P: see mask_scores.
template <bool turned, int columns>
CX_FN void find_weights(float (&score)[BLOCKS][columns / 8][4], const AttentionArgs &a,
                        const Problem &problem, int row, int other, const float *lse)
{
    mask_scores<turned, columns>(score, a, problem, row, other + (threadIdx.x & 3) * 2, lse);
    CX_UNROLL
    for (int i = 0; i < BLOCKS * columns / 2; i++) {
        float &to = score[i / (columns / 2)][i / 4 % (columns / 8)][i % 4];
        to = cx_exp2(to);
    }
}

// Weights of the first `columns` columns to dS = P (dP - D). delta: of this thread's first row on,
// or, turned, of the first column.
template <bool turned, int columns, int rows>
CX_FN void find_grads(Packed<rows> &weight, const float (&dp)[BLOCKS][columns / 8][4],
                      const float *delta)
{
    float deltas[turned ? columns / 4 : 2 * BLOCKS];
    CX_UNROLL
    for (int i = 0; i < (turned ? columns / 4 : 2 * BLOCKS); i++)
        deltas[i] = delta[turned ? (threadIdx.x & 3) * 2 + i / 2 * 8 + i % 2 : i * 8];
    CX_UNROLL
    for (int i = 0; i < BLOCKS * columns / 4; i++) {
        int block = i / (columns / 4), j = i / 2 % (columns / 8), half = i % 2;
        const float *pair = dp[block][j] + half * 2,
                    *by = deltas + (turned ? j * 2 : i % 2 + block * 2);
        u32 &p = weight.at[block][j][half];
        float low = cx_low_half<ATT_HALF>(p) * (pair[0] - by[0]);
        float high = cx_high_half<ATT_HALF>(p) * (pair[1] - by[turned ? 1 : 0]);
        p = cx_pack_half<ATT_HALF>(low, high);
    }
}

// Exchanges the halves of the columns, so that a loop can go over them in registers.
template <int rows> CX_FN void exchange_halves(Packed<rows> &weight)
{
    CX_UNROLL
    for (int i = 0; i < BLOCKS * rows / 8; i++) {
        u32 &low = weight.at[i / (rows / 8)][i / 2 % (rows / 16)][i % 2];
        u32 &high = weight.at[i / (rows / 8)][i / 2 % (rows / 16) + rows / 16][i % 2], kept = low;
        low = high;
        high = kept;
    }
}

// ---- phase 1 ----

// dv, and dk unless head dims are large, of OWN keys.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_1(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    typedef QueryTiles T;
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.m + OWN - 1) / OWN;
    Problem problem = problem_of(a.f, block / blocks);
    int first = block % blocks * OWN, begin = ATT_CAUSAL ? first : 0;
    int own = (threadIdx.x >> 5) * WARP_ROWS, row = first + own + ((threadIdx.x & 31) >> 2);
    if (threadIdx.x == 0)
        *(Others *)(shared + T::others) = {matrix_q(a.f, problem), matrix_o(a.f, problem, a.d_o),
                                           stats_of(a, problem, p.head.work[segment])};
    load_tile<OWN, ATT_D>(shared, matrix_k(a.f, problem), first);
    if (!LARGE)
        load_tile<OWN, ATT_E>(shared + E_AT, matrix_v(a.f, problem), first);
    u32 own_k = cx_shared_address(shared), next = T::at;
    float dv[BLOCKS][ATT_E / 8][4] = {};
#if !LARGE
    float dk[BLOCKS][ATT_D / 8][4] = {};
#endif
    CX_NO_UNROLL
    for (int n0 = begin - T::rows; n0 < (int)a.f.n; n0 += T::rows) {
        float score[BLOCKS][T::rows / 8][4];
        Packed<T::rows> weight;
        cx_copy_wait(0);
        __syncthreads(); // all copies are there, and nobody reads the tile before
        if (n0 + T::rows < (int)a.f.n)
            load_others<T, true>(shared, next, n0 + T::rows);
        next = 2 * T::at + T::stage - next;
        if (n0 < begin)
            continue; // there is nothing yet
#if ATT_ROTARY
        if (n0 == begin)
            turn_tile<OWN, ATT_D, false>(shared, a.f.k_rotary, first, (int)a.f.m);
        turn_tile<T::rows, ATT_D, false>(shared + next, a.f.q_rotary, n0, (int)a.f.n);
        __syncthreads(); // all are turned
#endif
        u32 tile = own_k + next;
        const float *lse = (const float *)(shared + next + T::stats);
        multiply_rows<T::rows, ATT_D>(score, own_k, tile, own);
        find_weights<true, T::rows>(score, a.f, problem, row, n0, lse);
        pack(weight, score);
        add_product<T::rows, ATT_E>(dv, weight, tile + T::e);
#if !LARGE
        multiply_rows<T::rows, ATT_E>(score, own_k + E_AT, tile + T::e, own);
        find_grads<true, T::rows>(weight, score, lse + T::rows);
        add_product<T::rows, ATT_D>(dk, weight, tile);
#endif
    }
    cx_copy_commit();
    cx_copy_wait(0); // of own rows, where there was no tile
    __syncthreads(); // own rows are not needed any more
    cx_keep(block);
    problem = problem_of(a.f, block / blocks), first = block % blocks * OWN;
#if !LARGE
    spread<ATT_D>(shared, dk, cx_real(a.f.scale), own);
#endif
    u8 *spread_dv = shared + (LARGE ? 0 : E_AT);
    spread<ATT_E>(spread_dv, dv, 1.f, own);
#ifndef FAULT_SPREAD
    __syncthreads();
#endif
#if ATT_ROTARY && !LARGE
    turn_tile<OWN, ATT_D, true>(shared, a.f.k_rotary, first, (int)a.f.m);
#ifndef FAULT_TURN_BACK
    __syncthreads();
#endif
#endif
    if (!LARGE)
        store_tile<OWN, ATT_D>(
            matrix_of(a.dk, offset_of(problem, a.dk0, a.dk1, a.dk2), a.dk_n, a.dk_d, a.f.m, a.f.d),
            shared, first);
    store_tile<OWN, ATT_E>(
        matrix_of(a.dv, offset_of(problem, a.dv0, a.dv1, a.dv2), a.dv_n, a.dv_d, a.f.m, a.f.e),
        spread_dv, first);
}

// ---- phases 2 and 3 ----

// scale dS times the tiles, of OWN rows: dq, or, `turned`, dk.
template <bool turned>
CX_FN void sum_grads(const AttentionGradArgs &a, u32 block, const u8 *work, u8 *shared)
{
    typedef LongTiles T;
    enum { HALF = T::rows / 2 };
    const AttentionArgs &f = a.f;
    int length = (int)(turned ? f.m : f.n), others = (int)(turned ? f.n : f.m);
    u32 blocks = ((u32)length + OWN - 1) / OWN;
    Problem problem = problem_of(f, block / blocks);
    int first = block % blocks * OWN, begin = ATT_CAUSAL && turned ? first : 0;
    int own = (threadIdx.x >> 5) * WARP_ROWS, row = first + own + ((threadIdx.x & 31) >> 2);
    int end = ATT_CAUSAL && !turned ? min(others, first + OWN) : others;
    Stats stats = stats_of(a, problem, work);
    float *own_stats = (float *)(shared + T::own_stats);
    if (!turned)
        load_stats<OWN>(own_stats, stats, first);
    Matrix q = matrix_q(f, problem), d_o = matrix_o(f, problem, a.d_o);
    Matrix k = matrix_k(f, problem), v = matrix_v(f, problem);
    if (threadIdx.x == 0)
        *(Others *)(shared + T::others) = {turned ? q : k, turned ? d_o : v, stats};
    load_tile<OWN, ATT_D>(shared, turned ? k : q, first);
    load_tile<OWN, ATT_E>(shared + E_AT, turned ? v : d_o, first);
    u32 own_x = cx_shared_address(shared), own_y = own_x + E_AT, next = T::at;
    float sums[BLOCKS][ATT_D / 8][4] = {};
    CX_NO_UNROLL
    for (int tile0 = T::stages == 2 ? begin - T::rows : begin; tile0 < end; tile0 += T::rows) {
        float score[BLOCKS][T::rows / 8][4];
        Packed<T::rows> weight;
        int load = T::stages == 2 ? tile0 + T::rows : tile0;
        cx_copy_wait(0);
        __syncthreads(); // with two stages: all copies are there; nobody reads the tile before
        if (load < end)
            load_others<T, turned>(shared, next, load);
        if (T::stages == 2) {
            next = 2 * T::at + T::stage - next;
            if (tile0 < begin)
                continue; // there is nothing yet
        } else {
            cx_copy_wait(0);
            __syncthreads();
        }
#if ATT_ROTARY
        if (tile0 == begin)
            turn_tile<OWN, ATT_D, false>(shared, turned ? f.k_rotary : f.q_rotary, first, length);
        turn_tile<T::rows, ATT_D, false>(shared + next, turned ? f.q_rotary : f.k_rotary, tile0,
                                         others);
        __syncthreads(); // all are turned
#endif
        u32 tile = own_x + next;
        const float *lse = (const float *)(shared + next + T::stats), *delta = lse + T::rows;
        if (!turned)
            lse = own_stats + (row - first), delta = lse + OWN;
        multiply_rows<T::rows, ATT_D>(score, own_x, tile, own);
        find_weights<turned, T::rows>(score, f, problem, row, tile0, lse);
        pack(weight, score);
        CX_NO_UNROLL // two halves at a time would take too many registers
        for (u32 half = 0; half < 2; half++) {
            float dp[BLOCKS][HALF / 8][4];
            u32 y = tile + T::e + half * HALF * row_bytes(ATT_E);
            multiply_rows<HALF, ATT_E>(dp, own_y, y, own);
            find_grads<turned, HALF>(weight, dp, delta + (turned ? half * HALF : 0));
            exchange_halves(weight);
        }
        add_product<T::rows, ATT_D>(sums, weight, tile);
    }
    cx_copy_commit();
    cx_copy_wait(0); // of own rows, where there was no tile
    __syncthreads(); // own rows are not needed any more
    cx_keep(block);
    problem = problem_of(f, block / blocks), first = block % blocks * OWN;
    spread<ATT_D>(shared, sums, cx_real(f.scale), own);
    __syncthreads();
#if ATT_ROTARY
    turn_tile<OWN, ATT_D, true>(shared, turned ? f.k_rotary : f.q_rotary, first,
                                (int)(turned ? f.m : f.n));
    __syncthreads();
#endif
    Matrix to =
        turned ? matrix_of(a.dk, offset_of(problem, a.dk0, a.dk1, a.dk2), a.dk_n, a.dk_d, f.m, f.d)
               : matrix_of(a.dq, offset_of(problem, a.dq0, a.dq1, a.dq2), a.dq_n, a.dq_d, f.n, f.d);
    store_tile<OWN, ATT_D>(to, shared, first);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_2(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    sum_grads<false>(p.args[segment], block, p.head.work[segment], shared);
}

#if LARGE
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_3(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    sum_grads<true>(p.args[segment], block, p.head.work[segment], shared);
}
#endif
#undef LARGE
