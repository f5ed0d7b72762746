// Grids of gemm_f32.cu.
#include "codegen/cuda/tile_plan.h"
#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_gemm;     // called by the executor, by way of PvCudaKernel.shape

void pv_shape_gemm(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    const GemmArgs *args = (const GemmArgs *)raw;
    const int32_t *baked = kernel->baked;
    int64_t tile_m = baked[TILE_BAKED_M], tile_n = baked[TILE_BAKED_N];
    int64_t tiles = tile_count(args->m, tile_m) * tile_count(args->n, tile_n);
    int64_t steps = tile_count(args->k, baked[TILE_BAKED_K]), batches = args->batch0 * args->batch1;
    if (args->sum_batch)
        steps *= batches;
    else
        tiles *= batches;
    int64_t parts = kernel->phases > 1 ? tile_parts(tiles, steps, baked[TILE_BAKED_K]) : 1;
    *grid = (PvCudaGrid){.blocks = {(uint32_t)(tiles * parts)}};
    if (parts > 1) {
        grid->blocks[1] = (uint32_t)(tiles * baked[TILE_BAKED_QUADS]);
        grid->workspace = 256 + tiles * parts * tile_m * tile_n * (int64_t)sizeof(float);
    }
}
