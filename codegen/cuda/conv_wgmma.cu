/* T1, fprop with bias: a 3 x 3 convolution, padding 1, stride 1, as an implicit product on wgmma,
 * sm_90a.
 *
 * Persistent and warp-specialised: one TMA thread fills a ring of stages, two consumer warpgroups
 * multiply 64 x 128 outputs each. It needs no im2col map: a tile of 128 pixels is whole rows of the
 * image, so a tiled map {C, W, H, N} with the box {64, W, rows, images} at (c, s - 1, h + r - 1, n)
 * reads exactly the shifted tile, and TMA fills the halo with zeros. Full barriers are released by
 * bytes, empty ones by one thread a warpgroup. The result leaves by TMA from a swizzled tile.
 */
#include "cx_hopper.h"
#ifndef CONV_H
#define CONV_H 32
#define CONV_W 32
#define CONV_C 128
#define CONV_K 128
#endif
#define TILE_M   128
#define TILE_N   128
#define TILE_K   64
#define STAGES   4
#define PIXELS   (CONV_W * CONV_H)
#define ROWS     (PIXELS >= TILE_M ? TILE_M / CONV_W : CONV_H) // of a box
#define IMAGES   (PIXELS >= TILE_M ? 1 : TILE_M / PIXELS)      // of a box
#define STEPS    (9 * (CONV_C / TILE_K))
#define A_BYTES  (TILE_M * TILE_K * 2)
#define STAGE    (A_BYTES + TILE_N * TILE_K * 2)
#define EPILOGUE (STAGES * STAGE)
#define PANEL    (64 * 128) // bytes: 64 rows of 128, the unit of the swizzle
#define BARRIERS (EPILOGUE + TILE_M * TILE_N * 2)
#define FULL(i)  (barriers + (i)*8)
#define EMPTY(i) (barriers + (STAGES + (i)) * 8)
CX_CONSTANT(conv3x3_wgmma__shared, BARRIERS + 1024)
CX_CONSTANT(conv3x3_wgmma__rows, ROWS)
CX_CONSTANT(conv3x3_wgmma__images, IMAGES)

CX_FN void produce(const cx_tmap *x, const cx_tmap *w, u32 ring, u32 barriers, int tiles,
                   int n_tiles)
{
    int turn = 0;
    CX_NO_UNROLL
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int pixel = tile / n_tiles * TILE_M, k0 = tile % n_tiles * TILE_N;
        int image = pixel / PIXELS, h = pixel % PIXELS / CONV_W;
        CX_NO_UNROLL
        for (int step = 0; step < STEPS; step++, turn++) {
            int s = turn % STAGES, tap = step / (CONV_C / TILE_K);
            int channel = step % (CONV_C / TILE_K) * TILE_K;
            u32 stage = ring + s * STAGE;
#ifndef FAULT_EMPTY // without it stages are overwritten while they are multiplied
            if (turn >= STAGES)
                cx_mbar_wait(EMPTY(s), (turn / STAGES - 1) & 1);
#endif
            cx_mbar_expect(FULL(s), STAGE);
            cx_tma_load4(stage, x, FULL(s), channel, tap % 3 - 1, h + tap / 3 - 1, image);
            cx_tma_load2(stage + A_BYTES, w, FULL(s), tap * CONV_C + channel, k0);
        }
    }
}

// Registers -> swizzled tile -> memory, for the 64 x 128 outputs of a warpgroup at (pixel, k0).
CX_FN void store_tile(const cx_tmap *y, const float *bias, const float *d, u8 *tile,
                      u32 tile_address, int pixel, int k0)
{
    int t = threadIdx.x & 127, lane = t & 31, row = (t >> 5) * 16 + (lane >> 2);
    if (t == 0)
        cx_tma_store_wait(); // the store of the tile before has read this buffer
    if (threadIdx.x < 128)
        cx_barrier(1, 128);
    else
        cx_barrier(2, 128);
    CX_UNROLL
    for (int j = 0; j < TILE_N / 8; j++) {
        int column = k0 + j * 8 + (lane & 3) * 2;
        float b0 = bias[column], b1 = bias[column + 1];
        u8 *to =
            tile + (j >> 3) * PANEL + row * 128 + (((j & 7) ^ (row & 7)) << 4) + (lane & 3) * 4;
        *(u32 *)to = cx_pack(d[4 * j] + b0, d[4 * j + 1] + b1);
        *(u32 *)(to + 8 * 128) = cx_pack(d[4 * j + 2] + b0, d[4 * j + 3] + b1);
    }
#ifndef FAULT_FENCE
    cx_fence_async();
#endif
    if (threadIdx.x < 128)
        cx_barrier(1, 128);
    else
        cx_barrier(2, 128);
    if (t == 0) {
        CX_UNROLL
        for (int h = 0; h < TILE_N / 64; h++)
            cx_tma_store2(y, tile_address + h * PANEL, k0 + h * 64, pixel);
        cx_tma_store_commit();
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
    conv3x3_wgmma(const __grid_constant__ cx_tmap x, // [N, H, W, C], box {64, W, ROWS, IMAGES}
                  const __grid_constant__ cx_tmap w, // [K, 9 C], box {64, 128}
                  const __grid_constant__ cx_tmap y, // [N H W, K], box {64, 64}
                  const float *__restrict__ bias,    // [K]
                  int m_tiles, int n_tiles)
{
    CX_SHARED(shared);
    u32 ring = cx_shared_address(shared), barriers = ring + BARRIERS;
    int t = threadIdx.x, group = t >> 7, tiles = m_tiles * n_tiles;
    if (t == 0) {
        for (int i = 0; i < STAGES; i++) {
            cx_mbar_init(FULL(i), 1);
            cx_mbar_init(EMPTY(i), 2);
        }
        cx_fence_mbar_init();
    }
    __syncthreads();
    if (group == 2) {
        cx_registers_fewer(40);
        if (t == 256)
            produce(&x, &w, ring, barriers, tiles, n_tiles);
        return;
    }
    cx_registers_more(232);
    u32 tile_offset = EPILOGUE + group * 2 * PANEL;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float d[TILE_N / 2];
        CX_UNROLL
        for (int i = 0; i < TILE_N / 2; i++)
            d[i] = 0.f;
        for (int step = 0; step < STEPS; step++, turn++) {
            int s = turn % STAGES;
            u32 a = ring + s * STAGE + group * PANEL, b = ring + s * STAGE + A_BYTES;
            cx_mbar_wait(FULL(s), (turn / STAGES) & 1);
            cx_wgmma_fence();
            CX_UNROLL
            for (int j = 0; j < TILE_K / 16; j++)
                cx_wgmma128(d, cx_operand128(a + j * 32, 16, 1024),
                            cx_operand128(b + j * 32, 16, 1024), 1, 0, 0);
            cx_wgmma_commit();
#ifdef FAULT_EARLY // frees the stage while wgmma still reads it
            if ((t & 127) == 0)
                cx_mbar_arrive(EMPTY(s));
            cx_wgmma_wait(0);
#else
            cx_wgmma_wait(1); // the step before is done: its stage is free
            if (step > 0 && (t & 127) == 0)
                cx_mbar_arrive(EMPTY((turn - 1) % STAGES));
#endif
        }
        cx_wgmma_wait(0);
#ifndef FAULT_EARLY
        if ((t & 127) == 0)
            cx_mbar_arrive(EMPTY((turn - 1) % STAGES));
#endif
        store_tile(&y, bias, d, shared + tile_offset, ring + tile_offset,
                   tile / n_tiles * TILE_M + group * 64, tile % n_tiles * TILE_N);
    }
    if ((t & 127) == 0)
        cx_tma_store_wait();
}
CX_ENTRY(conv3x3_wgmma)
