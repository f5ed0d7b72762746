/* T3, backward: the gradient of attention, mma.sync, bf16 or f16, sm_80, deterministic.
 *
 * The weights P = exp(S - lse) are made again; with D = rowsum(do o), dS = P (do v' - D):
 *   dv = P' do,  dk = scale dS' q,  dq = scale dS k.
 * Phase 0 leaves D in the workspace, float [problems, n]. Phase 1 is a block of keys, which goes
 * over tiles of queries; phase 2 a block of queries, over tiles of keys. Both are the same text
 * with the sides exchanged: a block's own rows of two matrices (k and v; q and do) are left
 * operands against tiles of 32 rows of the others; what comes out of the first products is, in
 * registers, the left operand of the second ones. The next tiles are copied while the present ones
 * are used.
 *
 * Definitions: as attention_mma.cu. Head dims up to 64: 128 own rows, 32 a warp, shared memory at
 * most 56 KB, at most 255 registers: 2 blocks a multiprocessor; HMMA:LDSM 2.7 and 2.4. Up to 128,
 * or with a mask: 64 own rows, 16 a warp, at most 71 KB: 2 blocks; HMMA:LDSM 1.2 to 1.6.
 */
#include "storage.h"

enum {
    LARGE = ATT_D > 64 || ATT_E > 64,
    THREADS = 128,
    BLOCKS = LARGE || ATT_MASK ? 1 : 2, // of 16 rows, a warp; a mask takes registers
    OWN = 4 * 16 * BLOCKS,
    TILE = LARGE && ATT_MASK ? 16 : 32, // rows of the other side
    E_AT = OWN * (ATT_D * 2 + 16),      // bytes of shared memory: own rows of width ATT_E
    TILES_AT = E_AT + OWN * (ATT_E * 2 + 16),
    E_TILE = TILE * (ATT_D * 2 + 16), // within a stage
    STATS_TILE = E_TILE + TILE * (ATT_E * 2 + 16),
    STAGE = STATS_TILE + 2 * TILE * 4,
    DELTA_ROWS = 32 // of a block of phase 0
};
#include "attention_mma_parts.h"

// ---- phase 0 ----

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    enum { WARPS = THREADS / 32 };
    float *sums = (float *)shared; // [WARPS, 32]
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.n + DELTA_ROWS - 1) / DELTA_ROWS;
    int first = block % blocks * DELTA_ROWS, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    Problem problem = problem_of(a.f, block / blocks);
    Matrix o = matrix_o(a.f, problem, a.f.o), d_o = matrix_o(a.f, problem, a.d_o);
    float *delta = (float *)p.head.work[segment] + problem.number * a.f.n;
    if (o.d == 1) { // a warp a row
        for (int row = first + warp; row < min(first + DELTA_ROWS, o.length); row += WARPS) {
            float sum = 0.f;
            for (int i = lane; i < o.width; i += 32)
                sum += cx_read(o.at[row * o.n + i]) * cx_read(d_o.at[row * o.n + i]);
            CX_UNROLL
            for (int by = 16; by > 0; by >>= 1)
                sum += __shfl_xor_sync(CX_ALL_LANES, sum, by);
            if (lane == 0)
                delta[row] = sum;
        }
        return;
    }
    float sum = 0.f; // a lane a row, a warp every WARPS-th column
    for (int i = warp; first + lane < o.length && i < o.width; i += WARPS) {
        int64_t at = (first + lane) * o.n + i * o.d;
        sum += cx_read(o.at[at]) * cx_read(d_o.at[at]);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || first + lane >= o.length)
        return;
    for (int i = 1; i < WARPS; i++)
        sum += sums[i * 32 + lane];
    delta[first + lane] = sum;
}

// ---- phases 1 and 2 ----

typedef float Scores[BLOCKS][TILE / 8][4];

// Logarithms of sums, in units of log2, and D of a problem's queries.
struct Stats {
    const float *lse, *delta;
    int count;
};
CX_FN Stats stats_of(const AttentionGradArgs &a, const Problem &problem, const u8 *work)
{
    int64_t first = problem.number * a.f.n;
    return {(const float *)a.f.lse + first, (const float *)work + first, (int)a.f.n};
}
CX_FN float lse_of(const Stats &stats, int query)
{
    return query < stats.count ? stats.lse[query] * CX_LOG2E : 0.f;
}
CX_FN float delta_of(const Stats &stats, int query)
{
    return query < stats.count ? stats.delta[query] : 0.f;
}
// Those of a tile of queries: [2, TILE] in shared memory.
CX_FN void load_stats(float *to, const Stats &stats, int first)
{
    if (threadIdx.x < TILE) {
        to[threadIdx.x] = lse_of(stats, first + threadIdx.x);
        to[TILE + threadIdx.x] = delta_of(stats, first + threadIdx.x);
    }
}

// Scores to weights P. `turned`: own rows are keys, those of the tile, from `other`, queries; else
// the other way. row: this thread's first. lse: of the tile's queries, or of own rows.
template <bool turned>
CX_FN void find_weights(Scores &score, const AttentionArgs &a, const Problem &problem, int row,
                        int other, const float *lse)
{
    int lane = threadIdx.x & 31;
    float scale = cx_real(a.scale) * CX_LOG2E;
    CX_UNROLL
    for (int i = 0; i < BLOCKS * TILE / 2; i++) {
        int block = i / (TILE / 2), j = i / 4 % (TILE / 8), e = i % 4;
        int own = row + block * 16 + e / 2 * 8, column = (lane & 3) * 2 + j * 8 + e % 2;
        float offset =
            score_offset(a, problem, turned ? other + column : own, turned ? own : other + column);
        float level = lse[turned ? column : block * 2 + e / 2];
        float power = fmaf(score[block][j][e], scale, offset - level);
        score[block][j][e] = offset == -INFINITY ? 0.f : cx_exp2(power);
    }
}

// grad = P (grad - D)
template <bool turned>
CX_FN void find_grads(Scores &grad, const Packed<TILE> &weight, const float *delta)
{
    int lane = threadIdx.x & 31;
    CX_UNROLL
    for (int i = 0; i < BLOCKS * TILE / 2; i++) {
        int block = i / (TILE / 2), j = i / 4 % (TILE / 8), e = i % 4;
        float level = delta[turned ? (lane & 3) * 2 + j * 8 + e % 2 : block * 2 + e / 2];
        u32 pair = weight.at[block][j][e / 2];
        float p = e % 2 ? cx_high_half<ATT_HALF>(pair) : cx_low_half<ATT_HALF>(pair);
        grad[block][j][e] = p * (grad[block][j][e] - level);
    }
}

// Phase 1: dk and dv of OWN keys.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_1(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.m + OWN - 1) / OWN;
    Problem problem = problem_of(a.f, block / blocks);
    int first = block % blocks * OWN, begin = ATT_CAUSAL ? first : 0;
    int own = (threadIdx.x >> 5) * 16 * BLOCKS, row = first + own + ((threadIdx.x & 31) >> 2);
    Stats stats = stats_of(a, problem, p.head.work[segment]);
    Matrix q = matrix_q(a.f, problem), d_o = matrix_o(a.f, problem, a.d_o);
    load_tile<OWN, ATT_D>(shared, matrix_k(a.f, problem), first);
    load_tile<OWN, ATT_E>(shared + E_AT, matrix_v(a.f, problem), first);
    load_tile<TILE, ATT_D>(shared + TILES_AT, q, begin);
    load_tile<TILE, ATT_E>(shared + TILES_AT + E_TILE, d_o, begin);
    load_stats((float *)(shared + TILES_AT + STATS_TILE), stats, begin);
    cx_copy_commit();
    u32 own_k = cx_shared_address(shared), own_v = own_k + E_AT;
    float dk[BLOCKS][ATT_D / 8][4] = {}, dv[BLOCKS][ATT_E / 8][4] = {};
    CX_NO_UNROLL
    for (int n0 = begin; n0 < (int)a.f.n; n0 += TILE) {
        Scores score;
        Packed<TILE> weight, grad;
        u32 stage = (n0 / TILE & 1) * STAGE;
        u8 *present = shared + TILES_AT + stage, *next = shared + TILES_AT + STAGE - stage;
        u32 tile = cx_shared_address(present);
        const float *lse = (const float *)(present + STATS_TILE);
        cx_copy_wait(0);
        __syncthreads(); // all copies are there, and nobody reads the tile before
        if (n0 + TILE < (int)a.f.n) {
            load_tile<TILE, ATT_D>(next, q, n0 + TILE);
            load_tile<TILE, ATT_E>(next + E_TILE, d_o, n0 + TILE);
            load_stats((float *)(next + STATS_TILE), stats, n0 + TILE);
        }
        cx_copy_commit();
        multiply_rows<TILE, ATT_D>(score, own_k, tile, own);
        find_weights<true>(score, a.f, problem, row, n0, lse);
        pack(weight, score);
        add_product<TILE, ATT_E>(dv, weight, tile + E_TILE);
        multiply_rows<TILE, ATT_E>(score, own_v, tile + E_TILE, own);
        find_grads<true>(score, weight, lse + TILE);
        pack(grad, score);
        add_product<TILE, ATT_D>(dk, grad, tile);
    }
    cx_copy_wait(0);
    __syncthreads(); // own rows are not needed any more
    spread<ATT_D>(shared, dk, cx_real(a.f.scale), own);
    spread<ATT_E>(shared + E_AT, dv, 1.f, own);
#ifndef FAULT_SPREAD
    __syncthreads();
#endif
    store_tile<OWN, ATT_D>(
        matrix_of(a.dk, offset_of(problem, a.dk0, a.dk1, a.dk2), a.dk_n, a.dk_d, a.f.m, a.f.d),
        shared, first);
    store_tile<OWN, ATT_E>(
        matrix_of(a.dv, offset_of(problem, a.dv0, a.dv1, a.dv2), a.dv_n, a.dv_d, a.f.m, a.f.e),
        shared + E_AT, first);
}

// Phase 2: dq of OWN queries.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_2(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.n + OWN - 1) / OWN;
    Problem problem = problem_of(a.f, block / blocks);
    int first = block % blocks * OWN;
    int end = ATT_CAUSAL ? min((int)a.f.m, first + OWN) : (int)a.f.m;
    int own = (threadIdx.x >> 5) * 16 * BLOCKS, row = first + own + ((threadIdx.x & 31) >> 2);
    Stats stats = stats_of(a, problem, p.head.work[segment]);
    float lse[2 * BLOCKS], delta[2 * BLOCKS];
    CX_UNROLL
    for (int i = 0; i < 2 * BLOCKS; i++) {
        lse[i] = lse_of(stats, row + i * 8);
        delta[i] = delta_of(stats, row + i * 8);
    }
    Matrix k = matrix_k(a.f, problem), v = matrix_v(a.f, problem);
    load_tile<OWN, ATT_D>(shared, matrix_q(a.f, problem), first);
    load_tile<OWN, ATT_E>(shared + E_AT, matrix_o(a.f, problem, a.d_o), first);
    load_tile<TILE, ATT_D>(shared + TILES_AT, k, 0);
    load_tile<TILE, ATT_E>(shared + TILES_AT + E_TILE, v, 0);
    cx_copy_commit();
    u32 own_q = cx_shared_address(shared), own_do = own_q + E_AT;
    float dq[BLOCKS][ATT_D / 8][4] = {};
    CX_NO_UNROLL
    for (int m0 = 0; m0 < end; m0 += TILE) {
        Scores score;
        Packed<TILE> weight, grad;
        u32 stage = (m0 / TILE & 1) * STAGE;
        u8 *present = shared + TILES_AT + stage, *next = shared + TILES_AT + STAGE - stage;
        u32 tile = cx_shared_address(present);
        cx_copy_wait(0);
        __syncthreads(); // all copies are there, and nobody reads the tile before
        if (m0 + TILE < end) {
            load_tile<TILE, ATT_D>(next, k, m0 + TILE);
            load_tile<TILE, ATT_E>(next + E_TILE, v, m0 + TILE);
        }
        cx_copy_commit();
        multiply_rows<TILE, ATT_D>(score, own_q, tile, own);
        find_weights<false>(score, a.f, problem, row, m0, lse);
        pack(weight, score);
        multiply_rows<TILE, ATT_E>(score, own_do, tile + E_TILE, own);
        find_grads<false>(score, weight, delta);
        pack(grad, score);
        add_product<TILE, ATT_D>(dq, grad, tile);
    }
    cx_copy_wait(0);
    __syncthreads(); // own rows are not needed any more
    spread<ATT_D>(shared, dq, cx_real(a.f.scale), own);
    __syncthreads();
    store_tile<OWN, ATT_D>(
        matrix_of(a.dq, offset_of(problem, a.dq0, a.dq1, a.dq2), a.dq_n, a.dq_d, a.f.n, a.f.d),
        shared, first);
}
