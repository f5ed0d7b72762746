/* T6, movement between storages: y[i...] = x[i...] where the sides are stored unlike, any strides.
 *
 * One thread an element, in the order of y, so that stores are coalesced. Axes are in descending
 * strides of y and joined where both sides are one run.
 *
 * Definitions: COPY_Y, COPY_X (PvStorage); COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES
 * (move_layout.h).
 */
#include "move_layout.h"

enum { COPY_THREADS = 256 };

extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<CopyArgs> p)
{
    u32 block;
    const CopyArgs &a = p.args[cx_segment(p.head, &block)];
    typedef Walk<COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES> Axes;
    const Axes y_axes(a.size, a.y_stride, a.axes), x_axes(a.size, a.x_stride, a.axes);
    u32 item = block * COPY_THREADS + threadIdx.x;
#ifndef FAULT_CONVERT_END // the last block reads and writes beyond its tensors
    if (item >= y_axes.elements())
        return;
#endif
    CxStored<COPY_Y>::Element *y = (CxStored<COPY_Y>::Element *)a.y;
    const CxStored<COPY_X>::Element *x = (const CxStored<COPY_X>::Element *)a.x;
    cx_write(y + y_axes.offset(item), cx_read(x[x_axes.offset(item)]));
}
