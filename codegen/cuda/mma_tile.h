/* The tile product of T2, shared by its loaders: 128 x 128 outputs a block, 32 of the reduction a
 * stage.
 *
 * Eight warps, 2 x 4, each 64 x 32 outputs: HMMA to LDSM is 16 : 6. A stage is 128 rows of A and
 * 128 rows of B, 64 bytes each, chunks of 16 bytes exchanged so that ldmatrix meets no bank twice.
 * A loader fills stages by cp.async: chunk i of a thread is TILE_ROW, TILE_CHUNK of A (rows < 128)
 * or B.
 */
#pragma once
#include "cx.h"
#define TILE_M       128
#define TILE_N       128
#define TILE_K       32
#define TILE_STAGES  3
#define TILE_THREADS 256
#define TILE_COPIES  ((TILE_M + TILE_N) * 4 / TILE_THREADS) // 16-byte copies of a thread a stage
#define TILE_STAGE   ((TILE_M + TILE_N) * 64)               // bytes
#define TILE_WARP_M  64
#define TILE_WARP_N  32

// Byte offset of chunk 0..3 of a row.
CX_FN u32 tile_offset(int row, int chunk)
{
    return row * 64 + (((chunk ^ (row >> 1)) & 3) << 4);
}

struct TileSums {
    float at[TILE_WARP_M / 16][TILE_WARP_N / 8][4];
};

CX_FN void tile_clear(TileSums &sums)
{
    CX_UNROLL
    for (int i = 0; i < TILE_WARP_M / 16; i++) {
        CX_UNROLL
        for (int j = 0; j < TILE_WARP_N / 8; j++) {
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                sums.at[i][j][e] = 0.f;
        }
    }
}

// sums += A B' of the stage that lies at a shared address.
CX_FN void tile_multiply(TileSums &sums, u32 stage)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int m = (warp >> 2) * TILE_WARP_M, n = (warp & 3) * TILE_WARP_N;
    u32 b_rows = stage + TILE_M * 64;
    CX_UNROLL
    for (int k = 0; k < TILE_K / 16; k++) {
        u32 a[TILE_WARP_M / 16][4], b[TILE_WARP_N / 16][4];
        CX_UNROLL
        for (int i = 0; i < TILE_WARP_M / 16; i++)
            cx_ldmatrix4(a[i], stage + tile_offset(m + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
        CX_UNROLL
        for (int j = 0; j < TILE_WARP_N / 16; j++) {
            int row = n + j * 16 + (lane & 7) + ((lane >> 4) << 3);
            cx_ldmatrix4(b[j], b_rows + tile_offset(row, k * 2 + ((lane >> 3) & 1)));
        }
        CX_UNROLL
        for (int i = 0; i < TILE_WARP_M / 16; i++) {
            CX_UNROLL
            for (int j = 0; j < TILE_WARP_N / 8; j++)
                cx_mma(sums.at[i][j], a[i], b[j / 2] + j % 2 * 2);
        }
    }
}

// out[row, column] = sums + bias for the tile at (m0, n0) of out[M, N]; N even, bias [N] or null.
CX_FN void tile_store(const TileSums &sums, bf16 *out, const float *bias, int m0, int n0, int M,
                      int N)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int m = m0 + (warp >> 2) * TILE_WARP_M + (lane >> 2);
    int n = n0 + (warp & 3) * TILE_WARP_N + (lane & 3) * 2;
    CX_UNROLL
    for (int j = 0; j < TILE_WARP_N / 8; j++) {
        int column = n + j * 8;
        if (column >= N)
            break;
        float b0 = bias ? bias[column] : 0.f, b1 = bias ? bias[column + 1] : 0.f;
        CX_UNROLL
        for (int i = 0; i < TILE_WARP_M / 16; i++) {
            int row = m + i * 16;
            const float *d = sums.at[i][j];
            if (row < M)
                *(u32 *)(out + (long long)row * N + column) = cx_pack(d[0] + b0, d[1] + b1);
#ifdef FAULT_BOUNDS // the second row is not compared with M
            *(u32 *)(out + (long long)(row + 8) * N + column) = cx_pack(d[2] + b0, d[3] + b1);
#else
            if (row + 8 < M)
                *(u32 *)(out + (long long)(row + 8) * N + column) = cx_pack(d[2] + b0, d[3] + b1);
#endif
        }
    }
}
