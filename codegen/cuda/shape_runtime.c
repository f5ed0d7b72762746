// Grids of the optimizer's kernels (runtime.cu): a block a piece. The structs of all of them begin
// with the pieces' address and their number.
#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_optimizer;

void pv_shape_optimizer(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    uint32_t chunks = (uint32_t)args[1];
    *grid = (PvCudaGrid){.blocks = {chunks}};
    if (kernel->phases > 1) {
        grid->blocks[1] = 1;
        grid->workspace = (int64_t)chunks * (int64_t)sizeof(double);
    }
}
