// Grids of the norms' kernels: blocks of each phase and workspace of one segment. The numbers here
// are those of the templates' enums.
#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_group_norm, pv_shape_group_norm_grad, pv_shape_rows, pv_shape_layer_norm_grad;
PvCudaShape pv_shape_group_norm_last, pv_shape_group_norm_last_grad, pv_shape_norm_join;

enum { CHUNK = 4096, BUSY = 128 };                 // group_norm.cu
enum { LAST_CHUNK = 16384 };                       // group_norm_last*.cu
enum { JOIN_WARPS = 4 };                           // norm_join.cu
enum { PIECE = 256, PART = 4096, WARPS = 8 };      // group_norm_grad.cu
enum { PARTS = 512, COLUMNS = 32, THREADS = 256 }; // layer_norm_grad.cu

static int64_t ceil_div(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

// baked: elements of a group that one block takes.
void pv_shape_group_norm(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const GroupNormArgs *a = (const GroupNormArgs *)args;
    int64_t groups = a->images * a->groups, count = a->c / a->groups * a->positions;
    bool cut = count > kernel->baked[0] || (count > CHUNK && groups < BUSY);
    int64_t blocks = groups * (cut ? ceil_div(count, CHUNK) : 1);
    *grid = (PvCudaGrid){.blocks = {cut ? (uint32_t)blocks : 0, (uint32_t)blocks},
                         .workspace = cut ? blocks * 8 : 0};
    if (!a->y)
        grid->blocks[1] = (uint32_t)groups;
}

// A warp a group of an image.
void pv_shape_norm_join(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    (void)kernel;
    const GroupNormArgs *a = (const GroupNormArgs *)args;
    *grid = (PvCudaGrid){.blocks = {(uint32_t)ceil_div(a->images * a->groups, JOIN_WARPS)}};
}

void pv_shape_group_norm_grad(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    (void)kernel;
    const GroupNormGradArgs *a = (const GroupNormGradArgs *)args;
    *grid = (PvCudaGrid){.workspace = 0};
    if (a->c == 0)
        return;
    int64_t pieces = ceil_div(a->positions, PIECE), parts = a->c / a->groups * a->positions;
    int64_t rows = a->images * a->c;
    // as sizes_of: a warp 32 channels, or one
    if (a->x_channel == 1 && (a->x_position != 1 || a->positions == 1))
        rows = a->images * ceil_div(a->c, 32);
    parts = ceil_div(parts, PART);
    grid->blocks[0] = (uint32_t)ceil_div(rows * pieces, WARPS);
    grid->blocks[1] = (uint32_t)(a->images * a->groups * parts);
    if (a->dgamma || a->dbeta)
        grid->blocks[1] += (uint32_t)ceil_div(a->c, WARPS);
    grid->workspace = a->images * a->c * pieces * 8;
}

// Where channels are dense. baked: channels of a bundle.
void pv_shape_group_norm_last(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const GroupNormArgs *a = (const GroupNormArgs *)args;
    int64_t longest = LAST_CHUNK / kernel->baked[0], chunk = longest;
    int64_t blocks = a->images * ceil_div(a->c, kernel->baked[0]);
    if (blocks * ceil_div(a->positions, longest) < BUSY)
        chunk = longest / 4;
    int64_t chunks = ceil_div(a->positions, chunk);
    *grid = (PvCudaGrid){
        .blocks = {chunks > 1 ? (uint32_t)(blocks * chunks) : 0, (uint32_t)(blocks * chunks)},
        .workspace = chunks > 1 ? a->images * a->groups * chunks * 8 : 0};
}

// baked: channels of a bundle.
void pv_shape_group_norm_last_grad(const PvCudaKernel *kernel, const int64_t *args,
                                   PvCudaGrid *grid)
{
    const GroupNormGradArgs *a = (const GroupNormGradArgs *)args;
    int64_t pieces = ceil_div(a->positions, LAST_CHUNK / kernel->baked[0] / 2);
    uint32_t blocks = (uint32_t)(a->images * ceil_div(a->c, kernel->baked[0]) * pieces);
    uint32_t finish = a->dgamma || a->dbeta ? (uint32_t)ceil_div(a->c, WARPS) : 0;
    *grid = (PvCudaGrid){.blocks = {blocks, blocks + finish},
                         .workspace = a->images * a->c * pieces * 8};
}

// LayerNorm and softmax. baked: rows of a block, field of the struct that counts rows.
void pv_shape_rows(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    *grid = (PvCudaGrid){.blocks = {(uint32_t)ceil_div(args[kernel->baked[1]], kernel->baked[0])}};
}

// baked: rows of a block, 1: any number of columns.
void pv_shape_layer_norm_grad(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const LayerNormGradArgs *a = (const LayerNormGradArgs *)args;
    int64_t rows = kernel->baked[0], each = ceil_div(ceil_div(a->rows, PARTS), rows) * rows;
    uint32_t parts = each ? (uint32_t)ceil_div(a->rows, each) : 0;
    uint32_t columns = a->dgamma || a->dbeta ? (uint32_t)ceil_div(a->c, COLUMNS) : 0;
    *grid = (PvCudaGrid){.blocks = {parts, columns}, .workspace = (int64_t)parts * 2 * a->c * 4};
    if (rows == 1) {
        uint32_t blocks = columns ? (uint32_t)ceil_div(a->c, THREADS) * parts : 0;
        *grid = (PvCudaGrid){.blocks = {blocks, (uint32_t)a->rows, columns},
                             .workspace = grid->workspace};
    }
}
