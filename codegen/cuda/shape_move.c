// Grids of the kernels that move, reduce and draw. Elements are counted in 32 bits there: a grid
// for more of them becomes one that the driver refuses.
#include "codegen/cuda/reduce_plan.h"
#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_copy, pv_shape_fill, pv_shape_pick, pv_shape_gather_grad, pv_shape_random,
    pv_shape_reduce;

enum { BLOCK = 1024, TILE = 32, JOINED = 32 }; // items of a block; move_turn.cu; reduce.cu, phase 1

static int64_t ceil_div(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

// Blocks of `each` of `count` items.
static uint32_t blocks_for(int64_t count, int64_t each)
{
    return count / (each < BLOCK ? 1 : each / BLOCK) < UINT32_MAX - BLOCK
               ? (uint32_t)ceil_div(count, each)
               : UINT32_MAX;
}

static int64_t elements(const int64_t *size, int64_t axes, int32_t mask)
{
    int64_t all = 1;
    for (int64_t i = 0; i < axes; i++)
        if (mask >> i & 1)
            all *= size[i];
    return all;
}

// baked: elements of a block, or 0 and the axes that turn, and those of the last one.
void pv_shape_copy(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    const CopyArgs *args = (const CopyArgs *)raw;
    int64_t all = elements(args->size, args->axes, -1);
    *grid = (PvCudaGrid){.workspace = 0};
    if (kernel->baked[0]) {
        grid->blocks[0] = blocks_for(all, kernel->baked[0]);
        return;
    }
    int64_t turned = elements(args->size, args->axes, kernel->baked[1]);
    int64_t last = elements(args->size, args->axes, kernel->baked[2]);
    if (all > 0)
        grid->blocks[0] = blocks_for(
            all / turned / last * ceil_div(turned, TILE) * ceil_div(last, TILE) * BLOCK, BLOCK);
}

void pv_shape_fill(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    (void)kernel;
    const FillArgs *args = (const FillArgs *)raw;
    *grid = (PvCudaGrid){.blocks = {(uint32_t)ceil_div(args->count * args->bytes, 16 * BLOCK)}};
}

// baked: 0 pick, 1 its gradient, 2 gather.
void pv_shape_pick(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    const PickArgs *pick = (const PickArgs *)raw;
    const GatherArgs *gather = (const GatherArgs *)raw;   // y and x are where those of a pick are
    bool gathers = kernel->baked[0] == 2;
    int64_t rows = gathers ? gather->count
                           : pick->outer * (kernel->baked[0] == 1 ? pick->axis : 1);
    int64_t inner = gathers ? gather->inner : pick->inner;
    bool wide = (pick->y | pick->x) % 16 == 0 && inner % 4 == 0; // as the kernel decides
    *grid = (PvCudaGrid){.blocks = {blocks_for(rows * inner / (wide ? 4 : 1), BLOCK)}};
}

void pv_shape_gather_grad(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    const GatherArgs *args = (const GatherArgs *)raw;
    int64_t parts = ceil_div(args->inner, kernel->threads[0]);
    *grid = (PvCudaGrid){.blocks = {blocks_for(args->rows * parts * BLOCK, BLOCK)}};
}

void pv_shape_random(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    const RandomArgs *args = (const RandomArgs *)raw;
    *grid = (PvCudaGrid){.blocks = {(uint32_t)ceil_div(args->count, 4 * kernel->threads[0])}};
}

// baked: units of results of a block, threads of a unit, results of a unit, elements of a step.
void pv_shape_reduce(const PvCudaKernel *kernel, const int64_t *raw, PvCudaGrid *grid)
{
    const ReduceArgs *args = (const ReduceArgs *)raw;
    const int32_t *baked = kernel->baked;
    int64_t results = elements(args->size, args->kept, -1);
    int64_t count = elements(args->size + args->kept, args->reduced, -1);
    int64_t units = results / baked[2], steps = count / baked[3],
            across = ceil_div(units, baked[0]);
    *grid = (PvCudaGrid){.workspace = 0};
    if (units >= UINT32_MAX - BLOCK || steps >= UINT32_MAX / 2) {
        grid->blocks[0] = UINT32_MAX;
        return;
    }
    int64_t parts = reduce_parts((uint32_t)across, (uint32_t)steps, (uint32_t)baked[1]);
    grid->blocks[0] = (uint32_t)(across * parts);
    if (parts > 1 || args->sum != 0) {
        int64_t bytes = kernel->shared[1] / 256 / (uint32_t)baked[2]; // of a result
        grid->blocks[1] = args->sum < 0 ? 0 : (uint32_t)ceil_div(units, JOINED);
        grid->workspace = parts * results * bytes;
    }
}
