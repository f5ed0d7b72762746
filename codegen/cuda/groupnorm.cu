/* T5, resident: GroupNorm + scale and shift + SiLU, channels last, bf16.
 *
 * One block an (image, group); the group is kept in shared memory: one global read and one write,
 * 16 bytes a thread. Mean first, then the sum of squared differences (two passes over shared
 * memory, no cancellation). Sizes are literals: GN_C / GN_G must be a multiple of 8, GN_T of GN_V.
 */
#include "cx.h"
#ifndef GN_HW
#define GN_HW 1024 // pixels of an image
#define GN_C  256
#define GN_G  32
#define GN_T  256 // threads
#endif
#define GN_CG (GN_C / GN_G)  // channels of a group
#define GN_V  (GN_CG / 8)    // 16-byte vectors of a pixel
#define GN_NV (GN_HW * GN_V) // vectors of a group
CX_CONSTANT(groupnorm_silu__shared, GN_NV * 16 + GN_T / 32 * 4)

// The sum over the block, the same in every thread. partial: [GN_T / 32] in shared memory.
CX_FN float block_sum(float value, float *partial)
{
    CX_UNROLL
    for (int by = 16; by > 0; by >>= 1)
        value += __shfl_xor_sync(CX_ALL_LANES, value, by);
    if ((threadIdx.x & 31) == 0)
        partial[threadIdx.x >> 5] = value;
    __syncthreads();
    float sum = 0.f;
    CX_UNROLL
    for (int i = 0; i < GN_T / 32; i++)
        sum += partial[i];
#ifndef FAULT_REDUCTION // without it a fast warp overwrites partial[]
    __syncthreads();
#endif
    return sum;
}

extern "C" __global__ void __launch_bounds__(GN_T)
    groupnorm_silu(const bf16 *__restrict__ x,          // [N, HW, C]
                   const float *__restrict__ gamma,     // [C]
                   const float *__restrict__ beta,      // [C]
                   const bf16 *__restrict__ modulation, // [N, 2, C] scale and shift, or null
                   bf16 *__restrict__ y,                // [N, HW, C]
                   float eps)
{
    CX_SHARED(shared);
    uint4 *group = (uint4 *)shared; // [GN_NV]
    float *partial = (float *)(shared + GN_NV * 16);
    int n = blockIdx.y, t = threadIdx.x, channel = blockIdx.x * GN_CG;
    const bf16 *from = x + (long long)n * GN_HW * GN_C + channel;
    float sum = 0.f;
    for (int i = t; i < GN_NV; i += GN_T) {
        uint4 q = *(const uint4 *)(from + i / GN_V * GN_C + i % GN_V * 8);
        group[i] = q;
        sum += cx_low(q.x) + cx_high(q.x) + cx_low(q.y) + cx_high(q.y) + cx_low(q.z) +
               cx_high(q.z) + cx_low(q.w) + cx_high(q.w);
    }
    float mean = block_sum(sum, partial) * (1.f / (GN_HW * GN_CG));
    float squares = 0.f;
    for (int i = t; i < GN_NV; i += GN_T) {
        uint4 q = group[i];
        u32 words[4] = {q.x, q.y, q.z, q.w};
        CX_UNROLL
        for (int j = 0; j < 4; j++) {
            float low = cx_low(words[j]) - mean, high = cx_high(words[j]) - mean;
            squares += low * low + high * high;
        }
    }
    float scale = rsqrtf(block_sum(squares, partial) * (1.f / (GN_HW * GN_CG)) + eps);
    int v = t % GN_V; // a thread keeps its channels
    float a[8], b[8];
    CX_UNROLL
    for (int j = 0; j < 8; j++) {
        int c = channel + v * 8 + j;
        a[j] = gamma[c] * scale;
        b[j] = beta[c] - mean * a[j];
        if (modulation) {
            float factor = 1.f + cx_from_bf16(modulation[n * 2 * GN_C + c]);
            a[j] *= factor;
            b[j] = b[j] * factor + cx_from_bf16(modulation[n * 2 * GN_C + GN_C + c]);
        }
    }
    bf16 *to = y + (long long)n * GN_HW * GN_C + channel;
    for (int i = t; i < GN_NV; i += GN_T) {
        uint4 q = group[i];
        u32 words[4] = {q.x, q.y, q.z, q.w};
        CX_UNROLL
        for (int j = 0; j < 4; j++)
            words[j] = cx_pack(cx_silu(cx_low(words[j]) * a[2 * j] + b[2 * j]),
                               cx_silu(cx_high(words[j]) * a[2 * j + 1] + b[2 * j + 1]));
        *(uint4 *)(to + i / GN_V * GN_C + v * 8) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
}
CX_ENTRY(groupnorm_silu)
