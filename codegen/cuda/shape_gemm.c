// Grids of gemm_f32.cu and conv_f32.cu: tiles, cut into parts where they are few.
#include "codegen/cuda/tile_plan.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_gemm, pv_shape_conv;    // named by select_gemm.c and select_conv.c

// sum: as in kernel_args.h; the second phase of a sum is that of its first segment.
static void tile_grid(const PvCudaKernel *kernel, TileWork work, int64_t sum, PvCudaGrid *grid)
{
    const int32_t *baked = kernel->baked;
    int64_t parts = tile_parts(work, baked);
    *grid = (PvCudaGrid){.blocks = {(uint32_t)(work.tiles * parts)}};
    if (parts > 1 || sum != 0) {
        grid->blocks[1] = sum < 0 ? 0 : (uint32_t)(work.tiles * baked[TILE_BAKED_BLOCKS]);
        grid->workspace = 256 + work.tiles * parts * baked[TILE_BAKED_M] * baked[TILE_BAKED_N] *
                                    (int64_t)sizeof(float);
    }
}

void pv_shape_gemm(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const GemmArgs *gemm = (const GemmArgs *)args;
    tile_grid(kernel, tile_gemm_work(gemm, kernel->baked), gemm->sum, grid);
    grid->workspace += tile_gemm_stats(gemm, kernel->baked, grid->blocks[1] > 0);
}

void pv_shape_conv(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const ConvArgs *conv = (const ConvArgs *)args;
    tile_grid(kernel, tile_conv_work(conv, kernel->baked), conv->sum, grid);
    grid->workspace += tile_conv_stats(conv, kernel->baked, grid->blocks[1] > 0);
}
