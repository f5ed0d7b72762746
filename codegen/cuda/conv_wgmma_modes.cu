/* T1, three convolutions from one text: 3 x 3, padding 1, stride 1, channels last, bf16, sm_90a.
 *
 * CONV_MODE 0 is fprop (y from x and w), 1 dgrad (dx from dy and w), 2 wgrad (dw from dy and x).
 * Ring, consumers and epilogue are the same; the modes differ in what the producer loads and in
 * which operands wgmma reads MN-major, so nothing is transposed or unrolled in memory. wgrad has a
 * tile for every tap and reduces over pixels, 64 a step, which must be whole rows. Empty barriers
 * count one arrival a warp.
 */
#include "cx_hopper.h"
#define FPROP 0
#define DGRAD 1
#define WGRAD 2
#ifndef CONV_MODE
#define CONV_MODE FPROP
#endif
#ifndef CONV_H
#define CONV_H 32
#define CONV_W 32
#define CONV_C 128
#define CONV_K 128
#endif
#define STAGES   4
#define PANEL    8192        // bytes: 64 rows of 128, the unit of the swizzle
#define STAGE    (4 * PANEL) // A: 2 panels, B: 2 panels
#define EPILOGUE (STAGES * STAGE)
#define BARRIERS (EPILOGUE + 4 * PANEL)
#define PIXELS   (CONV_H * CONV_W)
#define CHANNELS (CONV_MODE == FPROP ? CONV_C : CONV_K) // of the reduction, in fprop and dgrad
#define FULL(i)  (barriers + (i)*8)
#define EMPTY(i) (barriers + (STAGES + (i)) * 8)
CX_CONSTANT(conv3x3_modes__shared, BARRIERS + 128)

// Starts the loads of one step of a tile.
CX_FN void load_step(const cx_tmap *ta, const cx_tmap *tb, u32 stage, u32 full, int tile,
                     int m_tiles, int n_tiles, int step)
{
    int nt = tile % n_tiles, mt = tile / n_tiles % m_tiles;
    u32 a = stage, b = stage + 2 * PANEL;
#if CONV_MODE == WGRAD // A = dY', B = X shifted
    int tap = tile / (n_tiles * m_tiles), r = tap / 3 - 1, s = tap % 3 - 1;
    int image = step * 64 / PIXELS, h = step * 64 % PIXELS / CONV_W;
    cx_tma_load4(a, ta, full, mt * 128, 0, h, image);
    cx_tma_load4(a + PANEL, ta, full, mt * 128 + 64, 0, h, image);
    cx_tma_load4(b, tb, full, nt * 128, s, h + r, image);
    cx_tma_load4(b + PANEL, tb, full, nt * 128 + 64, s, h + r, image);
#else
    int tap = step / (CHANNELS / 64), channel = step % (CHANNELS / 64) * 64;
    int r = tap / 3 - 1, s = tap % 3 - 1;
    int image = mt * 128 / PIXELS, h = mt * 128 % PIXELS / CONV_W;
#if CONV_MODE == FPROP // A = X shifted, B = rows of W
    cx_tma_load4(a, ta, full, channel, s, h + r, image);
    cx_tma_load2(b, tb, full, tap * CONV_C + channel, nt * 128);
#else                  // A = dY shifted the other way, B = W read MN-major
    cx_tma_load4(a, ta, full, channel, -s, h - r, image);
    cx_tma_load2(b, tb, full, tap * CONV_C + nt * 128, channel);
    cx_tma_load2(b + PANEL, tb, full, tap * CONV_C + nt * 128 + 64, channel);
#endif
#endif
}

CX_FN void produce(const cx_tmap *ta, const cx_tmap *tb, u32 ring, u32 barriers, int tiles,
                   int m_tiles, int n_tiles, int steps)
{
    int turn = 0;
    CX_NO_UNROLL
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        CX_NO_UNROLL
        for (int step = 0; step < steps; step++, turn++) {
            int s = turn % STAGES;
            if (turn >= STAGES)
                cx_mbar_wait(EMPTY(s), (turn / STAGES - 1) & 1);
            cx_mbar_expect(FULL(s), STAGE);
            load_step(ta, tb, ring + s * STAGE, FULL(s), tile, m_tiles, n_tiles, step);
        }
    }
}

// d += the 64 x 128 product of a stage; a and b are shared addresses.
CX_FN void multiply(float *d, u32 a, u32 b)
{
    cx_wgmma_fence();
    CX_UNROLL
    for (int j = 0; j < 4; j++) {
#if CONV_MODE == FPROP
        cx_wgmma128(d, cx_operand128(a + j * 32, 16, 1024), cx_operand128(b + j * 32, 16, 1024), 1,
                    0, 0);
#elif CONV_MODE == DGRAD
        cx_wgmma128(d, cx_operand128(a + j * 32, 16, 1024),
                    cx_operand128(b + j * 2048, PANEL, 1024), 1, 0, 1);
#elif defined FAULT_MAJOR // A read as if it were K-major
        cx_wgmma128(d, cx_operand128(a + j * 32, 16, 1024),
                    cx_operand128(b + j * 2048, PANEL, 1024), 1, 0, 1);
#else
        cx_wgmma128(d, cx_operand128(a + j * 2048, PANEL, 1024),
                    cx_operand128(b + j * 2048, PANEL, 1024), 1, 1, 1);
#endif
    }
    cx_wgmma_commit();
}

CX_FN void store_tile(const cx_tmap *to, const float *d, u8 *tile, u32 tile_address, int row0,
                      int column0)
{
    int t = threadIdx.x & 127, lane = t & 31, row = (t >> 5) * 16 + (lane >> 2);
    if (t == 0)
        cx_tma_store_wait();
    if (threadIdx.x < 128)
        cx_barrier(1, 128);
    else
        cx_barrier(2, 128);
    CX_UNROLL
    for (int j = 0; j < 16; j++) {
        u8 *at =
            tile + (j >> 3) * PANEL + row * 128 + (((j & 7) ^ (row & 7)) << 4) + (lane & 3) * 4;
        *(u32 *)at = cx_pack(d[4 * j], d[4 * j + 1]);
        *(u32 *)(at + 1024) = cx_pack(d[4 * j + 2], d[4 * j + 3]);
    }
    cx_fence_async();
    if (threadIdx.x < 128)
        cx_barrier(1, 128);
    else
        cx_barrier(2, 128);
    if (t == 0) {
        CX_UNROLL
        for (int h = 0; h < 2; h++)
            cx_tma_store2(to, tile_address + h * PANEL, column0 + h * 64, row0);
        cx_tma_store_commit();
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
    conv3x3_modes(const __grid_constant__ cx_tmap ta, // x, dy, dy: [N, H, W, channels]
                  const __grid_constant__ cx_tmap tb, // w, w: [K, 9 C]; x: [N, H, W, C]
                  const __grid_constant__ cx_tmap to, // y: [N H W, K]; dx: [N H W, C]; dw: [K, 9 C]
                  int m_tiles, int n_tiles, int images)
{
    CX_SHARED(shared);
    u32 ring = cx_shared_address(shared), barriers = ring + BARRIERS;
    int t = threadIdx.x, group = t >> 7;
    int tiles = m_tiles * n_tiles * (CONV_MODE == WGRAD ? 9 : 1);
    int steps = CONV_MODE == WGRAD ? images * (PIXELS / 64) : 9 * (CHANNELS / 64);
    if (t == 0) {
        for (int i = 0; i < STAGES; i++) {
            cx_mbar_init(FULL(i), 1);
            cx_mbar_init(EMPTY(i), 8);
        }
        cx_fence_mbar_init();
    }
    __syncthreads();
    if (group == 2) {
        cx_registers_fewer(40);
        if (t == 256)
            produce(&ta, &tb, ring, barriers, tiles, m_tiles, n_tiles, steps);
        return;
    }
    cx_registers_more(232);
    u32 tile_offset = EPILOGUE + group * 2 * PANEL;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float d[64];
        CX_UNROLL
        for (int i = 0; i < 64; i++)
            d[i] = 0.f;
        for (int step = 0; step < steps; step++, turn++) {
            u32 stage = ring + turn % STAGES * STAGE;
            cx_mbar_wait(FULL(turn % STAGES), (turn / STAGES) & 1);
            multiply(d, stage + group * PANEL, stage + 2 * PANEL);
            cx_wgmma_wait(1);
            if (step > 0 && (t & 31) == 0)
                cx_mbar_arrive(EMPTY((turn - 1) % STAGES));
        }
        cx_wgmma_wait(0);
        if ((t & 31) == 0)
            cx_mbar_arrive(EMPTY((turn - 1) % STAGES));
        int column = tile % n_tiles * 128;
        if (CONV_MODE == WGRAD)
            column += tile / (n_tiles * m_tiles) * CONV_C;
        store_tile(&to, d, shared + tile_offset, ring + tile_offset,
                   tile / n_tiles % m_tiles * 128 + group * 64, column);
    }
    if ((t & 127) == 0)
        cx_tma_store_wait();
}
CX_ENTRY(conv3x3_modes)
