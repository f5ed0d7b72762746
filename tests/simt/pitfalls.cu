/* Kernels that are wrong, each in a way that a GPU may forgive; the last one is right. */
#include "cx_hopper.h"

// Relies on lanes that run in lockstep.
extern "C" __global__ void warp_synchronous(float *out)
{
    CX_SHARED(shared);
    volatile float *s = (volatile float *)shared;
    int t = threadIdx.x;
    s[t] = (float)t;
    for (int by = 16; by > 0; by /= 2)
        if (t < by)
            s[t] = s[t] + s[t + by];
    if (t == 0)
        out[0] = s[0];
}
CX_ENTRY(warp_synchronous)

extern "C" __global__ void divergent_barrier(float *out)
{
    if (threadIdx.x & 1)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1.f;
}
CX_ENTRY(divergent_barrier)

extern "C" __global__ void missing_arrival(float *out)
{
    if (threadIdx.x < 40)
        cx_barrier(1, 64);
    out[threadIdx.x] = 1.f;
}
CX_ENTRY(missing_arrival)

extern "C" __global__ void divergent_shuffle(float *out)
{
    float v = (float)threadIdx.x;
    if (threadIdx.x & 1)
        v = __shfl_xor_sync(CX_ALL_LANES, v, 1);
    else
        v = __shfl_xor_sync(CX_ALL_LANES, v, 2);
    out[threadIdx.x] = v;
}
CX_ENTRY(divergent_shuffle)

extern "C" __global__ void exited_lane(float *out)
{
    if (threadIdx.x == 3)
        return;
    out[threadIdx.x] = __shfl_xor_sync(CX_ALL_LANES, 1.f, 1);
}
CX_ENTRY(exited_lane)

extern "C" __global__ void overlapping_blocks(float *out)
{
    out[blockIdx.x * 31 + threadIdx.x] = 1.f;
}
CX_ENTRY(overlapping_blocks)

// Each block writes a row, and the last one adds them: out[0 .. 63]; out[1023] counts.
enum { NO_FENCE = 1, NO_BARRIER, NO_ACQUIRE, NO_WAIT };
template <int wrong> CX_FN void last_adds(float *out)
{
    CX_SHARED(shared);
    u32 *last = (u32 *)shared, t = threadIdx.x;
    out[64 * (blockIdx.x + 1) + t] = 1.f;
    if (wrong != NO_BARRIER)
        __syncthreads();
    if (t == 0) {
        if (wrong != NO_FENCE)
            __threadfence();
        *last = atomicInc((u32 *)out + 1023, gridDim.x - 1) == gridDim.x - 1;
        if (wrong != NO_ACQUIRE)
            __threadfence();
    }
    __syncthreads();
    if (wrong != NO_WAIT && !*last)
        return;
    float sum = 23.f;
    for (u32 i = 0; i < gridDim.x; i++)
        sum += out[64 * (i + 1) + t];
    if (*last)
        out[t] = sum;
}
extern "C" __global__ void last_block(float *out)
{
    last_adds<0>(out);
}
CX_ENTRY(last_block)
extern "C" __global__ void last_without_fence(float *out)
{
    last_adds<NO_FENCE>(out);
}
CX_ENTRY(last_without_fence)
extern "C" __global__ void last_without_barrier(float *out)
{
    last_adds<NO_BARRIER>(out);
}
CX_ENTRY(last_without_barrier)
extern "C" __global__ void last_without_acquire(float *out)
{
    last_adds<NO_ACQUIRE>(out);
}
CX_ENTRY(last_without_acquire)
extern "C" __global__ void not_last(float *out)
{
    last_adds<NO_WAIT>(out);
}
CX_ENTRY(not_last)

// A box of 4 rows comes by TMA, is changed, and goes back.
template <bool fenced> CX_FN void by_tma(const cx_tmap *map, int row)
{
    CX_SHARED(shared);
    u32 at = cx_shared_address(shared), bar = at + 512, t = threadIdx.x;
    if (t == 0) {
        cx_mbar_init(bar, 1);
        cx_fence_mbar_init();
        cx_mbar_expect(bar, 512);
        cx_tma_load2(at, map, bar, 0, row);
    }
    __syncthreads();
    cx_mbar_wait(bar, 0);
    ((float *)shared)[t] += 26.f;
    if (fenced)
        cx_fence_async();
    __syncthreads();
    if (t == 0) {
        cx_tma_store2(map, at, 0, row);
        cx_tma_store_commit();
        cx_tma_store_wait();
    }
}
extern "C" __global__ void box_there_and_back(float *, const __grid_constant__ cx_tmap map)
{
    by_tma<true>(&map, 0);
}
CX_ENTRY(box_there_and_back)
extern "C" __global__ void box_without_fence(float *, const __grid_constant__ cx_tmap map)
{
    by_tma<false>(&map, 0);
}
CX_ENTRY(box_without_fence)
extern "C" __global__ void box_beyond_memory(float *, const __grid_constant__ cx_tmap map)
{
    by_tma<true>(&map, 30);
}
CX_ENTRY(box_beyond_memory)

extern "C" __global__ void uninitialised(float *out)
{
    CX_SHARED(shared);
    float *s = (float *)shared;
    if (threadIdx.x < 31)
        s[threadIdx.x] = 1.f;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
CX_ENTRY(uninitialised)

extern "C" __global__ void beyond_shared(float *out)
{
    CX_SHARED(shared);
    float *s = (float *)shared;
    s[threadIdx.x + 1] = 1.f;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x + 1];
}
CX_ENTRY(beyond_shared)

extern "C" __global__ void misaligned(float *out)
{
    CX_SHARED(shared);
    cx_copy16(cx_shared_address((float *)shared + threadIdx.x), out, 16);
    cx_copy_commit();
    cx_copy_wait(0);
}
CX_ENTRY(misaligned)

extern "C" __global__ void unwaited_copy(float *out)
{
    CX_SHARED(shared);
    cx_copy16(cx_shared_address((float *)shared + threadIdx.x * 4), out, 16);
    cx_copy_commit();
}
CX_ENTRY(unwaited_copy)

extern "C" __global__ void beyond_global(float *out)
{
    out[threadIdx.x + 1000] = 1.f; // of 1024
}
CX_ENTRY(beyond_global)

// Right: static shared memory.
extern "C" __global__ void reverse(float *out)
{
    __shared__ float s[32];
    s[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[31 - threadIdx.x];
}
CX_ENTRY(reverse)
