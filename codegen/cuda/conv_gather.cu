/* T2 as a convolution: an implicit matrix product whose A rows are gathered by cp.async, sm_80.
 *
 * y[n, p, q, k] = bias[k] + sum over r, s, c of x[n, p * stride + r - pad, q * stride + s - pad, c]
 * * w[k, r, s, c]; channels last, bf16, f32 sums. A row of the product is an output pixel, its
 * reduction runs over (r, s, c), and pixels outside the image are copies of zero bytes: cp.async
 * writes zeros. C must be a multiple of 32 (a step stays within one tap), K of 8; any size, stride,
 * padding.
 */
#include "mma_tile.h"
CX_CONSTANT(conv_gather__shared, TILE_STAGES *TILE_STAGE)

struct ConvShape {
    int N, H, W, C; // input [N, H, W, C]
    int K, R, S;    // weights [K, R, S, C]
    int P, Q;       // output [N, P, Q, K]
    int stride, pad;
};

// The output pixel that a row of A stands for: its image, -1 where there is none, and its first
// tap.
struct Pixel {
    int n, h, w;
};

CX_FN Pixel pixel_of(const ConvShape &shape, int row)
{
    Pixel pixel;
    pixel.n = row < shape.N * shape.P * shape.Q ? row / (shape.P * shape.Q) : -1;
    pixel.h = row / shape.Q % shape.P * shape.stride - shape.pad;
    pixel.w = row % shape.Q * shape.stride - shape.pad;
    return pixel;
}

CX_FN void load_stage(u32 stage, const bf16 *x, const bf16 *w, const ConvShape &shape,
                      const Pixel *pixels, int n0, int step)
{
    int tap = step * TILE_K / shape.C, channel = step * TILE_K % shape.C;
    int r = tap / shape.S, s = tap % shape.S, chunk = threadIdx.x & 3;
    CX_UNROLL
    for (int i = 0; i < TILE_COPIES / 2; i++) {
        int row = (threadIdx.x >> 2) + i * (TILE_THREADS / 4);
        int h = pixels[i].h + r, v = pixels[i].w + s;
        bool inside = pixels[i].n >= 0 && h >= 0 && h < shape.H && v >= 0 && v < shape.W;
        long long at = inside ? ((long long)pixels[i].n * shape.H + h) * shape.W + v : 0;
        cx_copy16(stage + tile_offset(row, chunk), x + at * shape.C + channel + chunk * 8,
                  inside ? 16 : 0);
    }
    CX_UNROLL
    for (int i = 0; i < TILE_COPIES / 2; i++) {
        int row = (threadIdx.x >> 2) + i * (TILE_THREADS / 4), k = n0 + row;
        bool inside = k < shape.K;
        long long at = (long long)(inside ? k : 0) * shape.R * shape.S + tap;
        cx_copy16(stage + TILE_M * 64 + tile_offset(row, chunk),
                  w + at * shape.C + channel + chunk * 8, inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    conv_gather(const bf16 *__restrict__ x,     // [N, H, W, C]
                const bf16 *__restrict__ w,     // [K, R, S, C]
                const float *__restrict__ bias, // [K] or null
                bf16 *__restrict__ y,           // [N, P, Q, K]
                ConvShape shape)
{
    CX_SHARED(shared);
    u32 ring = cx_shared_address(shared);
    int m0 = blockIdx.y * TILE_M, n0 = blockIdx.x * TILE_N;
    int steps = shape.R * shape.S * shape.C / TILE_K;
    Pixel pixels[TILE_COPIES / 2];
    CX_UNROLL
    for (int i = 0; i < TILE_COPIES / 2; i++)
        pixels[i] = pixel_of(shape, m0 + (threadIdx.x >> 2) + i * (TILE_THREADS / 4));
    TileSums sums;
    tile_clear(sums);
    CX_UNROLL
    for (int s = 0; s < TILE_STAGES - 1; s++) {
        if (s < steps)
            load_stage(ring + s * TILE_STAGE, x, w, shape, pixels, n0, s);
        cx_copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        cx_copy_wait(TILE_STAGES - 2);
        __syncthreads();
        int next = step + TILE_STAGES - 1;
#ifdef FAULT_STAGE // overwrites the stage that is multiplied next
        if (next < steps)
            load_stage(ring + (step + 1) % TILE_STAGES * TILE_STAGE, x, w, shape, pixels, n0, next);
#else
        if (next < steps)
            load_stage(ring + next % TILE_STAGES * TILE_STAGE, x, w, shape, pixels, n0, next);
#endif
        cx_copy_commit();
        tile_multiply(sums, ring + step % TILE_STAGES * TILE_STAGE);
    }
    cx_copy_wait(0);
    tile_store(sums, y, bias, m0, n0, shape.N * shape.P * shape.Q, shape.K);
}
CX_ENTRY(conv_gather)
