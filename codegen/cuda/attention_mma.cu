/* T3, forward: attention with one pass over keys (FlashAttention-2), mma.sync, bf16 or f16, sm_80.
 *
 * One block is 128 queries of one problem, four warps of 32 rows. Keys and values come in tiles,
 * the next one while the present one is used. Every row keeps its running maximum and sum; weights
 * go from the registers of the first product straight into the second. Any lengths and strides.
 *
 * Definitions: ATT_D, ATT_E (head dims, rounded up to 16), ATT_MASK (0, or 1 + how it is stored),
 * ATT_CAUSAL, ATT_ROTARY, ATT_HALF (PvStorage of q, k, v, o). Head dims up to 64: tiles of 64 keys,
 * shared memory at most 56 KB; up to 128: of 32 keys, 70 KB. 2 blocks a multiprocessor. HMMA:LDSM
 * 3.2, and 2.67 for large head dims.
 */
#include "storage.h"

enum {
    LARGE = ATT_D > 64 || ATT_E > 64,
    THREADS = 128,
    QUERIES = 128,
    KEYS = LARGE ? 32 : 64,
    WIDER = ATT_D > ATT_E ? ATT_D : ATT_E,
    K_AT = QUERIES * (WIDER * 2 + 16), // bytes of shared memory
    V_AT = KEYS * (ATT_D * 2 + 16),    // within a stage
    STAGE = V_AT + KEYS * (ATT_E * 2 + 16),
    OTHERS_AT = K_AT + 2 * STAGE
};
#include "attention_mma_parts.h"

// What a thread knows of its rows, lane / 4 and lane / 4 + 8 of each block.
struct Rows {
    float out[BLOCKS][ATT_E / 8][4];
    float most[2 * BLOCKS], sum[2 * BLOCKS];
};
typedef float Scores[BLOCKS][KEYS / 8][4];

// Raises the running maxima to those of the new scores, scales what was summed so far, and turns
// scores to weights.
CX_FN void soften(Rows &rows, Scores &score)
{
    CX_UNROLL
    for (int i = 0; i < 2 * BLOCKS; i++) {
        float most = rows.most[i], sum = 0.f;
        CX_UNROLL
        for (int j = 0; j < KEYS / 4; j++)
            most = fmaxf(most, score[i / 2][j / 2][i % 2 * 2 + j % 2]);
        most = fmaxf(most, __shfl_xor_sync(CX_ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(CX_ALL_LANES, most, 2));
        float level = most == -INFINITY ? 0.f : most; // all forbidden so far: any number will do
        CX_UNROLL
        for (int j = 0; j < KEYS / 4; j++) {
            float &weight = score[i / 2][j / 2][i % 2 * 2 + j % 2];
            weight = cx_exp2(weight - level);
            sum += weight;
        }
        float factor = cx_exp2(rows.most[i] - level);
        rows.most[i] = most;
        rows.sum[i] = rows.sum[i] * factor + sum;
        CX_UNROLL
        for (int d = 0; d < ATT_E / 4; d++)
            rows.out[i / 2][d / 2][i % 2 * 2 + d % 2] *= factor;
    }
}

// out / sum, and the logarithms of sums. row: the first of this thread.
CX_FN void finish(Rows &rows, float *lse, int row, int length)
{
    CX_UNROLL
    for (int i = 0; i < 2 * BLOCKS; i++) {
        float sum = rows.sum[i];
        sum += __shfl_xor_sync(CX_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(CX_ALL_LANES, sum, 2);
        float factor = 1.f / sum;
        CX_UNROLL
        for (int d = 0; d < ATT_E / 4; d++)
            rows.out[i / 2][d / 2][i % 2 * 2 + d % 2] *= factor;
        if (lse && row + i * 8 < length && (threadIdx.x & 3) == 0)
            lse[row + i * 8] = (rows.most[i] + log2f(sum)) * 0.693147181f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    CX_NAME(const __grid_constant__ CxLaunch<AttentionArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    const AttentionArgs &a = p.args[cx_segment(p.head, &block)];
    u32 blocks = ((u32)a.n + QUERIES - 1) / QUERIES, queries = cx_shared_address(shared);
    Problem problem = problem_of(a, block / blocks);
    int first = block % blocks * QUERIES, lane = threadIdx.x & 31, end = (int)a.m;
    int own = (threadIdx.x >> 5) * WARP_ROWS, row = first + own + (lane >> 2);
    if (ATT_CAUSAL)
        end = min(end, first + QUERIES);
    Matrix *others = (Matrix *)(shared + OTHERS_AT); // here, as registers are few
    if (threadIdx.x == 0)
        others[0] = matrix_k(a, problem), others[1] = matrix_v(a, problem);
    u32 next = K_AT;
    load_tile<QUERIES, ATT_D>(shared, matrix_q(a, problem), first);
    Rows rows = {};
    CX_UNROLL
    for (int i = 0; i < 2 * BLOCKS; i++)
        rows.most[i] = -INFINITY;
    CX_NO_UNROLL
    for (int m0 = -KEYS; m0 < end; m0 += KEYS) {
        Scores score;
        cx_copy_wait(0);
#ifndef FAULT_TILE
        __syncthreads(); // all copies are there, and nobody reads the tile before
#endif
        if (m0 + KEYS < end) {
            load_tile<KEYS, ATT_D>(shared + next, others[0], m0 + KEYS);
            load_tile<KEYS, ATT_E>(shared + next + V_AT, others[1], m0 + KEYS);
        }
        cx_copy_commit();
        next = 2 * K_AT + STAGE - next;
        if (m0 < 0)
            continue; // there is nothing yet
#if ATT_ROTARY
        if (m0 == 0)
            turn_tile<QUERIES, ATT_D, false>(shared, a.q_rotary, first, (int)a.n);
        turn_tile<KEYS, ATT_D, false>(shared + next, a.k_rotary, m0, (int)a.m);
#ifndef FAULT_TURN
        __syncthreads(); // all are turned
#endif
#endif
        u32 present = queries + next; // the other stage
        multiply_rows<KEYS, ATT_D>(score, queries, present, own);
        mask_scores<false, KEYS>(score, a, problem, row, m0 + (lane & 3) * 2, nullptr);
        soften(rows, score);
        Packed<KEYS> weight;
        pack(weight, score);
        add_product<KEYS, ATT_E>(rows.out, weight, present + V_AT);
    }
    cx_copy_wait(0);
    cx_keep(block); // what follows from it is found again, and takes no registers until then
    problem = problem_of(a, block / blocks), first = block % blocks * QUERIES;
    row = first + own + (lane >> 2);
    finish(rows, a.lse ? (float *)a.lse + (int64_t)problem.number * a.n : nullptr, row, (int)a.n);
    __syncthreads(); // the queries are not needed any more
    spread<ATT_E>(shared, rows.out, 1.f, own);
    __syncthreads();
    store_tile<QUERIES, ATT_E>(matrix_o(a, problem, a.o), shared, first);
}
