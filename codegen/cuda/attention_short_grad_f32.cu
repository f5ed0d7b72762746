/* T4, backward: the gradient of attention of short sequences, computed in exact f32, deterministic,
 * any strides.
 *
 * As attention_short_f32.cu, with do beside q, k and v. A lane is first a query: it makes its
 * weights P = exp(S - lse) and their gradients dS = P (do v' - D), D being the sum of P (do v')
 * over keys, and leaves both in shared memory; with dS it sums dq = scale dS k. Then it is a key
 * and sums dv = P' do and dk = scale dS' q. Results take the places of what is not needed any more.
 *
 * Definitions: as there, and ATT_GRAD_TYPES. Shared memory: 4 ATT_WARPS 32 rows and twice the
 * scores, at most 80 KB.
 */
#include "storage.h"
#include "attention_parts.h"

enum {
    WIDTH = ATT_D > ATT_E ? ATT_D : ATT_E,
    STRIDE = WIDTH / 4 % 2 ? WIDTH : WIDTH + 4, // 8 rows in different banks
    PART = ATT_LANES * STRIDE,                  // floats of a matrix of one problem
    S_STRIDE = ATT_LANES + 1,
    SCORES = ATT_LANES * S_STRIDE,
    TOGETHER = 32 / ATT_LANES,                  // problems of a warp
    // q, k, v, do, P, dS; a multiple of 4, and problems' scores in different banks
    WHOLE = 4 * PART + 2 * SCORES + (TOGETHER > 1 ? ATT_LANES : 0)
};

// sums[row, .. width) times scale: over i of weight[i] times row i of `rows`.
template <int width>
CX_FN void sum_rows(float *sums, const float (&weight)[ATT_LANES], const float *rows, float scale)
{
    CX_NO_UNROLL
    for (int d = 0; d < width; d += 4) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        CX_UNROLL
        for (int i = 0; i < ATT_LANES; i++) {
            float4 value = *(const float4 *)(rows + i * STRIDE + d);
            sum.x = fmaf(weight[i], value.x, sum.x);
            sum.y = fmaf(weight[i], value.y, sum.y);
            sum.z = fmaf(weight[i], value.z, sum.z);
            sum.w = fmaf(weight[i], value.w, sum.w);
        }
        *(float4 *)(sums + d) =
            make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale);
    }
}

// Products of row `row` of a with all rows of b.
template <int width>
CX_FN void dot_rows(float (&c)[ATT_LANES], const float *a, const float *b, int row)
{
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++)
        c[j] = 0.f;
    CX_NO_UNROLL
    for (int d = 0; d < width; d += 4) {
        float4 mine = *(const float4 *)(a + row * STRIDE + d);
        CX_UNROLL
        for (int j = 0; j < ATT_LANES; j++)
            c[j] = dot4(mine, *(const float4 *)(b + j * STRIDE + d), c[j]);
    }
}

// Weights and their gradients of query `row`; the first go to shared memory, the second as well.
CX_FN void find_grads(const AttentionArgs &a, const Problem &problem, float *tiles,
                      float (&grad)[ATT_LANES], int row)
{
    float weight[ATT_LANES], delta = 0.f, scale = cx_real(a.scale);
    dot_rows<ATT_D>(weight, tiles, tiles + PART, row);
    dot_rows<ATT_E>(grad, tiles + 3 * PART, tiles + 2 * PART, row);
    float lse = row < (int)a.n ? ((const float *)a.lse)[problem.number * a.n + row] : 0.f;
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++) {
        float offset = score_offset(a, problem, row, j);
        weight[j] = offset == -INFINITY ? 0.f : expf(fmaf(weight[j], scale, offset) - lse);
        delta = fmaf(weight[j], grad[j], delta);
    }
    float *to = tiles + 4 * PART + row * S_STRIDE;
    CX_UNROLL
    for (int j = 0; j < ATT_LANES; j++) {
        grad[j] = weight[j] * (grad[j] - delta);
        to[j] = weight[j];
        to[SCORES + j] = grad[j];
    }
}

// Column `row` of a matrix of scores.
CX_FN void read_column(float (&column)[ATT_LANES], const float *scores, int row)
{
    CX_UNROLL
    for (int i = 0; i < ATT_LANES; i++)
        column[i] = scores[i * S_STRIDE + row];
}

#if ATT_ROTARY
// Turns a matrix of each of the warp's first `count` problems; `tile` is the first one's.
template <bool back>
CX_FN void turn_all(float *tile, const RotaryLoad &rotary, int count, int length, int lane)
{
    CX_NO_UNROLL
    for (int i = 0; i < count; i++)
        turn_tile<ATT_LANES, ATT_D, STRIDE, 32, back>(tile + i * WHOLE, rotary, 0, length, lane);
}
#endif

extern "C" __global__ void __launch_bounds__(ATT_WARPS * 32, 8 / ATT_WARPS)
    CX_NAME(const __grid_constant__ CxLaunch<AttentionGradArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    const AttentionGradArgs &a = p.args[cx_segment(p.head, &block)];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = lane % ATT_LANES;
    float *all = (float *)shared + warp * TOGETHER * WHOLE, *tiles = all + lane / ATT_LANES * WHOLE;
    int64_t first = ((int64_t)block * ATT_WARPS + warp) * TOGETHER;
    int count = min((int)(a.f.batch0 * a.f.batch1 * a.f.batch2 - first), (int)TOGETHER);
    int mine = lane / ATT_LANES < count ? lane / ATT_LANES : 0; // whose masks and sums are read
    float scale = cx_real(a.f.scale), weight[ATT_LANES];
    CX_NO_UNROLL
    for (int i = 0; i < TOGETHER; i++) { // zeros where there is no problem
        Problem problem = problem_of(a.f, i < count ? first + i : 0);
        Matrix<StoredQ> q = empty_unless(i < count, matrix_q(a.f, problem));
        Matrix<StoredK> k = empty_unless(i < count, matrix_k(a.f, problem));
        Matrix<StoredV> v = empty_unless(i < count, matrix_v(a.f, problem));
        Matrix<StoredDo> d_o = empty_unless(i < count, matrix_do(a, problem));
        float *to = all + i * WHOLE;
        load_tile<ATT_LANES, ATT_D, STRIDE, 32>(to, q, 0, lane);
        load_tile<ATT_LANES, ATT_D, STRIDE, 32>(to + PART, k, 0, lane);
        load_tile<ATT_LANES, ATT_E, STRIDE, 32>(to + 2 * PART, v, 0, lane);
        load_tile<ATT_LANES, ATT_E, STRIDE, 32>(to + 3 * PART, d_o, 0, lane);
    }
    cx_copy_commit();
    cx_copy_wait(0);
    __syncwarp();
#if ATT_ROTARY
    turn_all<false>(all, a.f.q_rotary, TOGETHER, (int)a.f.n, lane);
    turn_all<false>(all + PART, a.f.k_rotary, TOGETHER, (int)a.f.m, lane);
    __syncwarp();
#endif
    find_grads(a.f, problem_of(a.f, count > 0 ? first + mine : 0), tiles, weight, row);
    __syncwarp(); // v is not needed any more
    sum_rows<ATT_D>(tiles + 2 * PART + row * STRIDE, weight, tiles + PART, scale);
    __syncwarp(); // k is not needed any more
#if ATT_ROTARY
    turn_all<true>(all + 2 * PART, a.f.q_rotary, count, (int)a.f.n, lane);
    __syncwarp();
#endif
    CX_NO_UNROLL
    for (int i = 0; i < count; i++) {
        Problem at = problem_of(a.f, first + i);
        store_tile<ATT_LANES, ATT_D, STRIDE, 32>(matrix_dq(a, at), all + i * WHOLE + 2 * PART, 0,
                                                 lane);
    }
    read_column(weight, tiles + 4 * PART + SCORES, row);
    sum_rows<ATT_D>(tiles + PART + row * STRIDE, weight, tiles, scale);
    read_column(weight, tiles + 4 * PART, row);
#ifndef FAULT_REUSE
    __syncwarp(); // dq has been read
#endif
    sum_rows<ATT_E>(tiles + 2 * PART + row * STRIDE, weight, tiles + 3 * PART, 1.f);
    __syncwarp();
#if ATT_ROTARY
    turn_all<true>(all + PART, a.f.k_rotary, count, (int)a.f.m, lane);
    __syncwarp();
#endif
    CX_NO_UNROLL
    for (int i = 0; i < count; i++) {
        Problem at = problem_of(a.f, first + i);
        store_tile<ATT_LANES, ATT_D, STRIDE, 32>(matrix_dk(a, at), all + i * WHOLE + PART, 0, lane);
        store_tile<ATT_LANES, ATT_E, STRIDE, 32>(matrix_dv(a, at), all + i * WHOLE + 2 * PART, 0,
                                                 lane);
    }
}
