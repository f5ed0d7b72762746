/* T4, forward: attention of short sequences, computed in exact f32, any strides.
 *
 * ATT_LANES lanes take one problem of at most that many queries and keys, so a warp has 1, 2 or 4
 * problems, and a block several (images and heads). Queries, keys and values lie in shared memory;
 * a lane is a query, whose scores stay in registers, and reads keys and values that the others read
 * too. Warps do not wait for one another.
 *
 * Definitions: ATT_D, ATT_E (head dims, rounded up to 4), ATT_LANES (8, 16 or 32), ATT_WARPS (of a
 * block), ATT_MASK, ATT_CAUSAL, ATT_ROTARY, ATT_TYPES. Shared memory: 3 ATT_WARPS 32 rows, at most
 * 80 KB. Registers at most 128.
 */
#include "storage.h"
#include "attention_parts.h"

enum {
    WIDTH = ATT_D > ATT_E ? ATT_D : ATT_E,
    STRIDE = WIDTH / 4 % 2 ? WIDTH : WIDTH + 4, // 8 rows in different banks
    PART = ATT_LANES * STRIDE,                  // floats of a matrix of one problem
    TOGETHER = 32 / ATT_LANES                   // problems of a warp
};

// Scores of query `row` times scale, masked, to weights; returns the logarithm of their sum.
CX_FN float find_weights(const AttentionArgs &a, const Problem &problem, const float *q,
                         const float *k, float (&weight)[ATT_LANES], int row)
{
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++)
        weight[j] = 0.f;
    CX_NO_UNROLL
    for (int d = 0; d < ATT_D; d += 4) {
        float4 mine = *(const float4 *)(q + row * STRIDE + d);
        CX_UNROLL
        for (int j = 0; j < ATT_LANES; j++)
            weight[j] = dot4(mine, *(const float4 *)(k + j * STRIDE + d), weight[j]);
    }
    float scale = cx_real(a.scale), most = -INFINITY, sum = 0.f;
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++) {
        weight[j] = fmaf(weight[j], scale, score_offset(a, problem, row, j));
        most = fmaxf(most, weight[j]);
    }
    float level = most == -INFINITY ? 0.f : most;
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++) {
        weight[j] = expf(weight[j] - level);
        sum += weight[j];
    }
    float factor = 1.f / sum;
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++)
        weight[j] *= factor;
    return most + logf(sum);
}

extern "C" __global__ void __launch_bounds__(ATT_WARPS * 32, 8 / ATT_WARPS)
    CX_NAME(const __grid_constant__ CxLaunch<AttentionArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    const AttentionArgs &a = p.args[cx_segment(p.head, &block)];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = lane % ATT_LANES;
    float *tiles = (float *)shared + (warp * TOGETHER) * 3 * PART;
    int64_t problems = a.batch0 * a.batch1 * a.batch2;
    int64_t first = ((int64_t)block * ATT_WARPS + warp) * TOGETHER;
    CX_NO_UNROLL
    for (int i = 0; i < TOGETHER; i++) { // zeros where there is no problem
        bool there = first + i < problems;
        Problem problem = problem_of(a, there ? first + i : 0);
        Matrix<StoredQ> q = empty_unless(there, matrix_q(a, problem));
        Matrix<StoredK> k = empty_unless(there, matrix_k(a, problem));
        Matrix<StoredV> v = empty_unless(there, matrix_v(a, problem));
        float *to = tiles + i * 3 * PART;
        load_tile<ATT_LANES, ATT_D, STRIDE, 32>(to, q, 0, lane);
        load_tile<ATT_LANES, ATT_D, STRIDE, 32>(to + PART, k, 0, lane);
        load_tile<ATT_LANES, ATT_E, STRIDE, 32>(to + 2 * PART, v, 0, lane);
    }
    cx_copy_commit();
    cx_copy_wait(0);
#ifndef FAULT_ARRIVAL
    __syncwarp();
#endif
#if ATT_ROTARY
    CX_NO_UNROLL
    for (int i = 0; i < TOGETHER; i++) {
        float *to = tiles + i * 3 * PART;
        turn_tile<ATT_LANES, ATT_D, STRIDE, 32, false>(to, a.q_rotary, 0, (int)a.n, lane);
        turn_tile<ATT_LANES, ATT_D, STRIDE, 32, false>(to + PART, a.k_rotary, 0, (int)a.m, lane);
    }
    __syncwarp();
#endif
    int64_t number = first + lane / ATT_LANES;
    Problem problem = problem_of(a, number < problems ? number : 0);
    float *q = tiles + lane / ATT_LANES * 3 * PART, *v = q + 2 * PART, weight[ATT_LANES];
    float lse = find_weights(a, problem, q, q + PART, weight, row);
    if (a.lse && row < (int)a.n && number < problems)
        ((float *)a.lse)[number * a.n + row] = lse;
    CX_NO_UNROLL
    for (int e = 0; e < ATT_E; e += 4) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        CX_UNROLL
        for (int j = 0; j < ATT_LANES; j++) {
            float4 value = *(const float4 *)(v + j * STRIDE + e);
            sum.x = fmaf(weight[j], value.x, sum.x);
            sum.y = fmaf(weight[j], value.y, sum.y);
            sum.z = fmaf(weight[j], value.z, sum.z);
            sum.w = fmaf(weight[j], value.w, sum.w);
        }
        *(float4 *)(q + row * STRIDE + e) = sum; // of this query, which is not needed any more
    }
    __syncwarp();
    CX_NO_UNROLL
    for (int i = 0; i < TOGETHER && first + i < problems; i++) {
        Problem at = problem_of(a, first + i);
        store_tile<ATT_LANES, ATT_E, STRIDE, 32>(matrix_o(a, at), tiles + i * 3 * PART, 0, lane);
    }
}
