// Blocks of an emitted elementwise kernel: a thread for each unit of baked[2] elements; sizes of
// the baked[1] axes stand in the arguments from baked[0] on. A grid that is too large for index
// arithmetic in 32 bits becomes one that the driver refuses.
#include "runtime/pvdm.h"

void pv_shape_elementwise(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    const int64_t *size = args + kernel->baked[0], threads = kernel->threads[0];
    int64_t units = 1;
    for (int32_t axis = 0; axis < kernel->baked[1]; axis++)
        units *= size[axis];
    units /= kernel->baked[2];
    int64_t blocks = (units + threads - 1) / threads;
    grid->blocks[0] = units < UINT32_MAX - threads ? (uint32_t)blocks : UINT32_MAX;
    grid->workspace = 0;
}
