// Grids of attention's kernels: blocks of each phase and workspace of one segment. The numbers here
// are those of the templates' enums.
#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_attention, pv_shape_attention_grad, pv_shape_attention_short;

enum { DELTA_ROWS = 32 };

static uint32_t blocks_of(const AttentionArgs *a, int64_t length, int64_t rows)
{
    return (uint32_t)(a->batch0 * a->batch1 * a->batch2 * ((length + rows - 1) / rows));
}

// baked: queries of a block; of the backward pass, queries or keys. A fourth phase is of keys too.
void pv_shape_attention(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const AttentionArgs *a = (const AttentionArgs *)args;
    *grid = (PvCudaGrid){.blocks = {blocks_of(a, a->n, kernel->baked[0])}};
}

void pv_shape_attention_grad(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const AttentionArgs *a = &((const AttentionGradArgs *)args)->f;
    int64_t own = kernel->baked[0];
    *grid = (PvCudaGrid){.blocks = {blocks_of(a, a->n, DELTA_ROWS), blocks_of(a, a->m, own),
                                    blocks_of(a, a->n, own),
                                    kernel->phases > 3 ? blocks_of(a, a->m, own) : 0},
                         .workspace = a->batch0 * a->batch1 * a->batch2 * a->n * 4};
}

// Forward and backward, whose structs begin alike. baked: problems of a block.
void pv_shape_attention_short(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const AttentionArgs *a = (const AttentionArgs *)args;
    int64_t problems = a->batch0 * a->batch1 * a->batch2, each = kernel->baked[0];
    *grid = (PvCudaGrid){.blocks = {(uint32_t)((problems + each - 1) / each)}};
}
