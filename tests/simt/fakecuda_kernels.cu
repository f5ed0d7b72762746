/* Kernels that test_fakecuda.cc loads: one that adds, one with barriers, one with a fault. */
#include "cx.h"

extern "C" __global__ void add(float *y, const float *x, float scale, int count)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count)
        y[i] += scale * x[i];
}
CX_ENTRY(add)

// y[block] = sum of the block's part of x
extern "C" __global__ void sum(float *y, const float *x)
{
    CX_SHARED(memory);
    float *values = (float *)memory;
    u32 thread = threadIdx.x;
    values[thread] = x[blockIdx.x * blockDim.x + thread];
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half)
            values[thread] += values[thread + half];
    }
    if (thread == 0)
        y[blockIdx.x] = values[0];
}
CX_ENTRY(sum)

extern "C" __global__ void write_at(float *y, int i)
{
    if (threadIdx.x == 0)
        y[i] = 1;
}
CX_ENTRY(write_at)
