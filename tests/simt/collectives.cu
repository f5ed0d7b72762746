/* The collectives that the templates do not all reach, one after another; and loops of one of them.
 */
#include "cx_hopper.h"

// One warp. out: [8, 32], a row a collective.
extern "C" __global__ void collectives(u32 *out)
{
    u32 t = threadIdx.x, row = 0;
    out[row++ * 32 + t] = __shfl_sync(CX_ALL_LANES, t, 7);
    out[row++ * 32 + t] = __shfl_xor_sync(CX_ALL_LANES, t, 5);
    out[row++ * 32 + t] = __shfl_down_sync(CX_ALL_LANES, t, 3);
    out[row++ * 32 + t] = __shfl_up_sync(CX_ALL_LANES, t, 3);
    out[row++ * 32 + t] = __ballot_sync(CX_ALL_LANES, t % 3 == 0);
    u32 any = __any_sync(CX_ALL_LANES, t == 31);
    u32 all = __all_sync(CX_ALL_LANES, t < 31);
    out[row++ * 32 + t] = any * 2 + all;
    CX_SHARED(shared);
    u32 *word = (u32 *)shared;
    word[t] = t;
    __syncwarp();
    out[row++ * 32 + t] = word[31 - t];
    __syncwarp();
    if (t == 0)
        word[32] = 0;
    __syncthreads();
    atomicAdd(word + 32, t);
    __syncthreads();
    out[row * 32 + t] = word[32];
}
CX_ENTRY(collectives)

// A 64 x n product on wgmma with A in shared memory, K-major: n of 64 or 256, one warpgroup.
// in: [64 + n, 64] bf16 in 128-byte rows, swizzled by the host; out: [64, n].
extern "C" __global__ void wgmma_product(const uint4 *in, float *out, int n)
{
    CX_SHARED(shared);
    u32 base = cx_shared_address(shared);
    int t = threadIdx.x, lane = t & 31, row = (t >> 5) * 16 + (lane >> 2);
    for (int i = t; i < (64 + n) * 8; i += 128)
        ((uint4 *)shared)[i] = in[i];
    cx_fence_async();
    __syncthreads();
    float d[128];
    for (int i = 0; i < n / 2; i++)
        d[i] = 7.f; // to be overwritten
    cx_wgmma_fence();
    for (int j = 0; j < 4; j++) {
        u64 a = cx_operand128(base + j * 32, 16, 1024);
        u64 b = cx_operand128(base + 64 * 128 + j * 32, 16, 1024);
        if (n == 64)
            cx_wgmma64(1, d, a, b, j > 0, 0, 0);
        else
            cx_wgmma256(1, d, a, b, j > 0, 0, 0);
    }
    cx_wgmma_commit();
    cx_wgmma_wait(0);
    for (int i = 0; i < n / 2; i++)
        out[(row + (i >> 1 & 1) * 8) * n + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = d[i];
}
CX_ENTRY(wgmma_product)

#if !CX_GPU // stmatrix has no wrapper yet
// in, out: [8, 8, 4] 16-bit; what stmatrix writes ldmatrix reads back, plain and transposed.
extern "C" __global__ void matrices(const u32 *in, u32 *out)
{
    CX_SHARED(shared);
    u32 address = cx_shared_address(shared) + threadIdx.x * 16, r[4];
    for (int i = 0; i < 4; i++)
        r[i] = in[threadIdx.x * 4 + i];
    simt_stmatrix(r, 4, 1, address, SIMT_SITE);
    __syncwarp();
    cx_ldmatrix4_transposed(r, address);
    for (int i = 0; i < 4; i++)
        out[threadIdx.x * 4 + i] = r[i];
}
CX_ENTRY(matrices)
#endif

// What a collective costs the emulator: kind 0 __syncthreads, 1 a shuffle, 2 mma.sync.
extern "C" __global__ void loop(float *out, int count, int kind)
{
    float d[4] = {(float)threadIdx.x, 0, 0, 0};
    u32 a[4] = {1, 2, 3, 4}, b[2] = {5, 6};
    for (int i = 0; i < count; i++) {
        if (kind == 0)
            __syncthreads();
        if (kind == 1)
            d[0] = __shfl_xor_sync(CX_ALL_LANES, d[0], 1);
        if (kind == 2)
            cx_mma(d, a, b);
    }
    out[threadIdx.x] = d[0];
}
CX_ENTRY(loop)
