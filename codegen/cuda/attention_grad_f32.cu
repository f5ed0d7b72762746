/* T3, backward: the gradient of attention, computed in exact f32, deterministic, any strides and
 * lengths.
 *
 * The weights P = exp(S - lse) are made again; with D = rowsum(do o), dS = P (do v' - D):
 *   dv = P' do,  dk = scale dS' q,  dq = scale dS k.
 * Phase 0 leaves D in the workspace, float [problems, n]. Phase 1 is a block 64 keys, which goes
 * over tiles of queries; phase 2 a block 64 queries, over tiles of keys (32 where heads are large).
 * Both are the same text with the sides exchanged: a block's own rows of two matrices (k and v; q
 * and do) against tiles of 32 rows of the others, S and dP being rows times rows. A row's weights
 * are written and read by one warp. No sum is shared by blocks.
 *
 * Definitions: ATT_D, ATT_E (head dims, rounded up to 16), ATT_MASK, ATT_CAUSAL, ATT_ROTARY,
 * ATT_TYPES, ATT_GRAD_TYPES. Rotary operands are turned in their tiles, their gradients turned back
 * in theirs.
 * Head dims up to 64: 128 threads, at most 208 registers, shared memory at most 65 KB: 2 blocks a
 * multiprocessor; up to 128: 256 threads and 32 rows, 72 KB, so that GPUs with 99 KB a block
 * run it too.
 */
#include "storage.h"
#include "attention_parts.h"

enum {
    LARGE = ATT_D > 64 || ATT_E > 64,
    THREADS = LARGE ? 256 : 128,
    STEP = THREADS / 16,
    OWN = LARGE ? 32 : 64,    // rows of a block
    TILE = 32,                // of the other side
    ROWS = OWN / STEP,        // of a thread
    COLUMNS = TILE / 16,      // of its scores
    P_STRIDE = TILE + 4,      // two rows of a warp, 4 apart, in different banks
    D_AT = 0,                 // floats of shared memory: own rows of width ATT_D
    E_AT = OWN * (ATT_D + 4), // and of width ATT_E
    D_TILE = E_AT + OWN * (ATT_E + 4),
    E_TILE = D_TILE + TILE * (ATT_D + 4),
    P_AT = E_TILE + TILE * (ATT_E + 4)
};
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
    Matrix<StoredO> o = matrix_o(a.f, problem);
    Matrix<StoredDo> d_o = matrix_do(a, problem);
    float *delta = (float *)p.head.work[segment] + problem.number * a.f.n;
    make_delta(o, d_o, first, delta, (float *)shared);
}

// ---- phases 1 and 2 ----

struct Tile {
    float weight[ROWS][COLUMNS], grad[ROWS][COLUMNS]; // P and dS
};

// P and dS of own rows and a tile. `turned`: own rows are keys, first `own`; those of the tile,
// first `other`, are queries; else the other way.
template <bool turned>
CX_FN void make_weights(Tile &tile, const float *tiles, const AttentionArgs &a,
                        const Problem &problem, const float *delta, int own, int other, int ty,
                        int tx)
{
    multiply_rows<ROWS, COLUMNS, ATT_D, STEP>(tile.weight, tiles + D_AT, tiles + D_TILE, ty, tx);
    multiply_rows<ROWS, COLUMNS, ATT_E, STEP>(tile.grad, tiles + E_AT, tiles + E_TILE, ty, tx);
    const float *lse = (const float *)a.lse + problem.number * a.n;
    float scale = cx_real(a.scale);
    CX_UNROLL
    for (int i = 0; i < ROWS; i++) {
        CX_UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            int row = own + ty + i * STEP, column = other + tx + 16 * j;
            int query = turned ? column : row, key = turned ? row : column;
            float offset = score_offset(a, problem, query, key), weight = 0.f, grad = 0.f;
            if (offset != -INFINITY) {
                weight = expf(fmaf(tile.weight[i][j], scale, offset) - lse[query]);
                grad = weight * (tile.grad[i][j] - delta[query]);
            }
            tile.weight[i][j] = weight;
            tile.grad[i][j] = grad;
        }
    }
}

CX_FN void put_weights(float *to, const float (&from)[ROWS][COLUMNS], int ty, int tx)
{
#ifndef FAULT_WEIGHTS // without it a fast lane overwrites what the other half warp still reads
    __syncwarp();
#endif
    CX_UNROLL
    for (int i = 0; i < ROWS; i++) {
        CX_UNROLL
        for (int j = 0; j < COLUMNS; j++)
            to[(ty + i * STEP) * P_STRIDE + tx + 16 * j] = from[i][j];
    }
    __syncwarp();
}

// Phase 1: dk and dv of a block's keys.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_1(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    float *tiles = (float *)shared;
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.m + OWN - 1) / OWN;
    Problem problem = problem_of(a.f, block / blocks);
    int first = block % blocks * OWN, thread = threadIdx.x;
    int tx = thread & 15, ty = row_of_thread(thread);
    const float *delta = (const float *)p.head.work[segment] + problem.number * a.f.n;
    load_tile<OWN, ATT_D, ATT_D + 4, THREADS>(tiles + D_AT, matrix_k(a.f, problem), first, thread);
    load_tile<OWN, ATT_E, ATT_E + 4, THREADS>(tiles + E_AT, matrix_v(a.f, problem), first, thread);
    Matrix<StoredQ> q = matrix_q(a.f, problem);
    Matrix<StoredDo> d_o = matrix_do(a, problem);
    float dk[ROWS][ATT_D / 16] = {}, dv[ROWS][ATT_E / 16] = {};
    CX_NO_UNROLL
    for (int n0 = ATT_CAUSAL ? first : 0; n0 < (int)a.f.n; n0 += TILE) {
        Tile tile;
        load_tile<TILE, ATT_D, ATT_D + 4, THREADS>(tiles + D_TILE, q, n0, thread);
        load_tile<TILE, ATT_E, ATT_E + 4, THREADS>(tiles + E_TILE, d_o, n0, thread);
        cx_copy_commit();
        cx_copy_wait(0);
        __syncthreads();
#if ATT_ROTARY
        if (n0 == (ATT_CAUSAL ? first : 0))
            turn_tile<OWN, ATT_D, ATT_D + 4, THREADS, false>(tiles + D_AT, a.f.k_rotary, first,
                                                             (int)a.f.m, thread);
        turn_tile<TILE, ATT_D, ATT_D + 4, THREADS, false>(tiles + D_TILE, a.f.q_rotary, n0,
                                                          (int)a.f.n, thread);
        __syncthreads(); // all are turned
#endif
        make_weights<true>(tile, tiles, a.f, problem, delta, first, n0, ty, tx);
        put_weights(tiles + P_AT, tile.weight, ty, tx);
        multiply_columns<ROWS, ATT_E, TILE, P_STRIDE, STEP>(dv, tiles + P_AT, tiles + E_TILE, ty,
                                                            tx);
        put_weights(tiles + P_AT, tile.grad, ty, tx);
        multiply_columns<ROWS, ATT_D, TILE, P_STRIDE, STEP>(dk, tiles + P_AT, tiles + D_TILE, ty,
                                                            tx);
        __syncthreads(); // nobody reads the tiles any more
    }
    cx_copy_commit();
    cx_copy_wait(0); // of own rows, where there was no tile
    __syncthreads();
    spread<ROWS, ATT_D, STEP>(tiles + D_AT, dk, cx_real(a.f.scale), ty, tx);
    spread<ROWS, ATT_E, STEP>(tiles + E_AT, dv, 1.f, ty, tx);
    __syncthreads();
#if ATT_ROTARY
    turn_tile<OWN, ATT_D, ATT_D + 4, THREADS, true>(tiles + D_AT, a.f.k_rotary, first, (int)a.f.m,
                                                    thread);
#ifndef FAULT_TURN_BACK
    __syncthreads();
#endif
#endif
    store_tile<OWN, ATT_D, ATT_D + 4, THREADS>(matrix_dk(a, problem), tiles + D_AT, first, thread);
    store_tile<OWN, ATT_E, ATT_E + 4, THREADS>(matrix_dv(a, problem), tiles + E_AT, first, thread);
}

// Phase 2: dq of a block's queries.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME_2(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    float *tiles = (float *)shared;
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const AttentionGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.f.n + OWN - 1) / OWN;
    Problem problem = problem_of(a.f, block / blocks);
    int first = block % blocks * OWN, thread = threadIdx.x;
    int tx = thread & 15, ty = row_of_thread(thread);
    int end = ATT_CAUSAL ? min((int)a.f.m, first + OWN) : (int)a.f.m;
    const float *delta = (const float *)p.head.work[segment] + problem.number * a.f.n;
    Matrix<StoredDo> d_o = matrix_do(a, problem);
    load_tile<OWN, ATT_D, ATT_D + 4, THREADS>(tiles + D_AT, matrix_q(a.f, problem), first, thread);
    load_tile<OWN, ATT_E, ATT_E + 4, THREADS>(tiles + E_AT, d_o, first, thread);
    Matrix<StoredK> k = matrix_k(a.f, problem);
    Matrix<StoredV> v = matrix_v(a.f, problem);
    float dq[ROWS][ATT_D / 16] = {};
    CX_NO_UNROLL
    for (int m0 = 0; m0 < end; m0 += TILE) {
        Tile tile;
        load_tile<TILE, ATT_D, ATT_D + 4, THREADS>(tiles + D_TILE, k, m0, thread);
        load_tile<TILE, ATT_E, ATT_E + 4, THREADS>(tiles + E_TILE, v, m0, thread);
        cx_copy_commit();
        cx_copy_wait(0);
        __syncthreads();
#if ATT_ROTARY
        if (m0 == 0)
            turn_tile<OWN, ATT_D, ATT_D + 4, THREADS, false>(tiles + D_AT, a.f.q_rotary, first,
                                                             (int)a.f.n, thread);
        turn_tile<TILE, ATT_D, ATT_D + 4, THREADS, false>(tiles + D_TILE, a.f.k_rotary, m0,
                                                          (int)a.f.m, thread);
        __syncthreads(); // all are turned
#endif
        make_weights<false>(tile, tiles, a.f, problem, delta, first, m0, ty, tx);
        put_weights(tiles + P_AT, tile.grad, ty, tx);
        multiply_columns<ROWS, ATT_D, TILE, P_STRIDE, STEP>(dq, tiles + P_AT, tiles + D_TILE, ty,
                                                            tx);
        __syncthreads(); // nobody reads the tiles any more
    }
    spread<ROWS, ATT_D, STEP>(tiles + D_AT, dq, cx_real(a.f.scale), ty, tx);
    __syncthreads();
#if ATT_ROTARY
    turn_tile<OWN, ATT_D, ATT_D + 4, THREADS, true>(tiles + D_AT, a.f.q_rotary, first, (int)a.f.n,
                                                    thread);
    __syncthreads();
#endif
    store_tile<OWN, ATT_D, ATT_D + 4, THREADS>(matrix_dq(a, problem), tiles + D_AT, first, thread);
}
