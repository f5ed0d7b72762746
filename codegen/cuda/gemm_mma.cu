/* T2 as a matrix product: C[M, N] = A[M, K] B[N, K]' + bias, bf16, f32 sums, sm_80.
 *
 * A ring of three stages: while one is multiplied two are on their way. K must be a multiple of 32,
 * N of 8; any M. Rows beyond the matrices are read as zero.
 */
#include "mma_tile.h"
CX_CONSTANT(gemm_bf16__shared, TILE_STAGES *TILE_STAGE)

// Starts the copies of reduction step `step` into a stage.
CX_FN void load_stage(u32 stage, const bf16 *A, const bf16 *B, int m0, int n0, int M, int N, int K,
                      int step)
{
    CX_UNROLL
    for (int i = 0; i < TILE_COPIES; i++) {
        int copy = threadIdx.x + i * TILE_THREADS, row = copy >> 2, chunk = copy & 3;
        bool of_b = row >= TILE_M;
        int local = of_b ? row - TILE_M : row, global = (of_b ? n0 : m0) + local;
        bool inside = global < (of_b ? N : M);
        const bf16 *from =
            (of_b ? B : A) + (long long)(inside ? global : 0) * K + step * TILE_K + chunk * 8;
        cx_copy16(stage + (of_b ? TILE_M * 64 : 0) + tile_offset(local, chunk), from,
                  inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    gemm_bf16(const bf16 *__restrict__ A,     // [M, K]
              const bf16 *__restrict__ B,     // [N, K]
              const float *__restrict__ bias, // [N] or null
              bf16 *__restrict__ C,           // [M, N]
              int M, int N, int K)
{
    CX_SHARED(shared);
    u32 ring = cx_shared_address(shared);
    int m0 = blockIdx.y * TILE_M, n0 = blockIdx.x * TILE_N, steps = K / TILE_K;
    TileSums sums;
    tile_clear(sums);
    CX_UNROLL
    for (int s = 0; s < TILE_STAGES - 1; s++) {
        if (s < steps)
            load_stage(ring + s * TILE_STAGE, A, B, m0, n0, M, N, K, s);
        cx_copy_commit();
    }
    for (int step = 0; step < steps; step++) {
#ifdef FAULT_WAIT // waits for one group too few
        cx_copy_wait(TILE_STAGES - 1);
#else
        cx_copy_wait(TILE_STAGES - 2);
#endif
#ifndef FAULT_SYNC
        __syncthreads();
#endif
        int next = step + TILE_STAGES - 1;
        if (next < steps)
            load_stage(ring + next % TILE_STAGES * TILE_STAGE, A, B, m0, n0, M, N, K, next);
        cx_copy_commit();
        tile_multiply(sums, ring + step % TILE_STAGES * TILE_STAGE);
    }
    cx_copy_wait(0);
    tile_store(sums, C, bias, m0, n0, M, N);
}
CX_ENTRY(gemm_bf16)
