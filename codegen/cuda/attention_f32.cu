/* T3, forward: attention with one pass over keys, computed in exact f32, any strides and lengths.
 *
 * One block is 64 queries of one problem. Keys and values come in tiles; every row of queries keeps
 * its running maximum and sum (Milakov and Gimelshein 2018), and its part of the output is scaled
 * when the maximum rises. Keys of the next tile are copied while the present one's values are used,
 * and values while scores are made. A row's weights are written and read by one warp.
 *
 * Definitions: ATT_D, ATT_E (head dims, rounded up to 16), ATT_MASK, ATT_CAUSAL, ATT_ROTARY,
 * ATT_TYPES. Rotary operands are turned in their tiles, keys by each block of queries: 2
 * instructions beside the 64 multiply-adds that an element of a key takes part in.
 * Head dims up to 64: 128 threads, at most 200 registers, shared memory at most 73 KB: 2 blocks a
 * multiprocessor, 3 up to 32; up to 128: 256 threads, 80 KB, 2 blocks. 16 FFMA or more for every
 * LDS.128 of a tile's own.
 */
#include "storage.h"
#include "attention_parts.h"

enum {
    LARGE = ATT_D > 64 || ATT_E > 64,
    THREADS = LARGE ? 256 : 128,
    STEP = THREADS / 16,
    QUERIES = 64,
    KEYS = LARGE ? 32 : 64,
    ROWS = QUERIES / STEP, // of a thread
    COLUMNS = KEYS / 16,   // of its scores
    P_STRIDE = KEYS + 4,   // two rows of a warp, 4 apart, in different banks
    Q_AT = 0,              // floats of shared memory
    K_AT = QUERIES * (ATT_D + 4),
    V_AT = K_AT + KEYS * (ATT_D + 4),
    P_AT = V_AT + KEYS * (ATT_E + 4)
};

struct Rows {
    float out[ROWS][ATT_E / 16];
    float most[ROWS], sum[ROWS];
};

// Scores of a tile to weights, exp(score - running maximum), which go to shared memory.
CX_FN void soften(Rows &rows, float (&score)[ROWS][COLUMNS], float *weights, int ty, int tx)
{
    CX_UNROLL
    for (int i = 0; i < ROWS; i++) {
        float most = rows.most[i], sum = 0.f;
        CX_UNROLL
        for (int j = 0; j < COLUMNS; j++)
            most = fmaxf(most, score[i][j]);
        CX_UNROLL
        for (int by = 8; by > 0; by >>= 1)
            most = fmaxf(most, __shfl_xor_sync(CX_ALL_LANES, most, by));
        float level = most == -INFINITY ? 0.f : most; // all forbidden so far: any number will do
        CX_UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            float weight = expf(score[i][j] - level);
            sum += weight;
            weights[(ty + i * STEP) * P_STRIDE + tx + 16 * j] = weight;
        }
        float factor = expf(rows.most[i] - level);
        rows.most[i] = most;
        rows.sum[i] = rows.sum[i] * factor + sum;
        CX_UNROLL
        for (int j = 0; j < ATT_E / 16; j++)
            rows.out[i][j] *= factor;
    }
}

// out / sum into a tile, and the logarithms of sums.
CX_FN void finish(Rows &rows, float *tile, float *lse, int first, int length, int ty, int tx)
{
    CX_UNROLL
    for (int i = 0; i < ROWS; i++) {
        int row = ty + i * STEP;
        float sum = rows.sum[i]; // of the columns of this thread
        CX_UNROLL
        for (int by = 8; by > 0; by >>= 1)
            sum += __shfl_xor_sync(CX_ALL_LANES, sum, by);
        put_row<ATT_E>(tile + row * (ATT_E + 4), rows.out[i], 1.f / sum, tx);
        if (lse && tx == 0 && first + row < length)
            lse[first + row] = rows.most[i] + logf(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<AttentionArgs> p)
{
    CX_SHARED(shared);
    float *tiles = (float *)shared;
    u32 block;
    const AttentionArgs &a = p.args[cx_segment(p.head, &block)];
    u32 blocks = ((u32)a.n + QUERIES - 1) / QUERIES;
    Problem problem = problem_of(a, block / blocks);
    int first = block % blocks * QUERIES, end = (int)a.m, thread = threadIdx.x;
    int tx = thread & 15, ty = row_of_thread(thread);
    if (ATT_CAUSAL)
        end = min(end, first + QUERIES);
    Matrix<StoredK> k = matrix_k(a, problem);
    Matrix<StoredV> v = matrix_v(a, problem);
    float scale = cx_real(a.scale);
    load_tile<QUERIES, ATT_D, ATT_D + 4, THREADS>(tiles + Q_AT, matrix_q(a, problem), first,
                                                  thread);
    load_tile<KEYS, ATT_D, ATT_D + 4, THREADS>(tiles + K_AT, k, 0, thread);
    cx_copy_commit();
    Rows rows = {};
    CX_UNROLL
    for (int i = 0; i < ROWS; i++)
        rows.most[i] = -INFINITY;
    CX_NO_UNROLL
    for (int m0 = 0; m0 < end; m0 += KEYS) {
        float score[ROWS][COLUMNS];
        cx_copy_wait(0);
        __syncthreads(); // keys are there, and nobody reads the values before
        load_tile<KEYS, ATT_E, ATT_E + 4, THREADS>(tiles + V_AT, v, m0, thread);
        cx_copy_commit();
#if ATT_ROTARY
        if (m0 == 0)
            turn_tile<QUERIES, ATT_D, ATT_D + 4, THREADS, false>(tiles + Q_AT, a.q_rotary, first,
                                                                 (int)a.n, thread);
        turn_tile<KEYS, ATT_D, ATT_D + 4, THREADS, false>(tiles + K_AT, a.k_rotary, m0, (int)a.m,
                                                          thread);
#ifndef FAULT_TURN
        __syncthreads(); // all are turned
#endif
#endif
        multiply_rows<ROWS, COLUMNS, ATT_D, STEP>(score, tiles + Q_AT, tiles + K_AT, ty, tx);
        CX_UNROLL
        for (int i = 0; i < ROWS; i++) {
            CX_UNROLL
            for (int j = 0; j < COLUMNS; j++)
                score[i][j] =
                    fmaf(score[i][j], scale,
                         score_offset(a, problem, first + ty + i * STEP, m0 + tx + 16 * j));
        }
        soften(rows, score, tiles + P_AT, ty, tx);
        cx_copy_wait(0);
#ifndef FAULT_VALUES
        __syncthreads(); // values are there, and nobody reads the keys any more
#endif
        if (m0 + KEYS < end)
            load_tile<KEYS, ATT_D, ATT_D + 4, THREADS>(tiles + K_AT, k, m0 + KEYS, thread);
        cx_copy_commit();
        multiply_columns<ROWS, ATT_E, KEYS, P_STRIDE, STEP>(rows.out, tiles + P_AT, tiles + V_AT,
                                                            ty, tx);
    }
    cx_copy_wait(0);
    __syncthreads();
    float *lse = a.lse ? (float *)a.lse + problem.number * a.n : nullptr;
    finish(rows, tiles, lse, first, (int)a.n, ty, tx);
    __syncthreads();
    store_tile<QUERIES, ATT_E, ATT_E + 4, THREADS>(matrix_o(a, problem), tiles, first, thread);
}
