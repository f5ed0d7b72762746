/* T6, movement between storages: y[i...] = x[i...] where one side is stored as bf16, any strides.
 *
 * One thread an element, in the order of y, so that stores are coalesced. Axes are in descending
 * strides of y and joined where both sides are one run.
 *
 * Definitions: COPY_Y, COPY_X (PvStorage); COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES
 * (move_layout.h).
 */
#include "move_layout.h"

enum { COPY_THREADS = 256 };

template <int storage> struct Stored {
    typedef float Element;
};
template <> struct Stored<PV_STORE_BF16> {
    typedef bf16 Element;
};
CX_FN float value_of(float stored)
{
    return stored;
}
CX_FN float value_of(bf16 stored)
{
    return cx_from_bf16(stored);
}
CX_FN void set(float *to, float value)
{
    *to = value;
}
CX_FN void set(bf16 *to, float value)
{
    *to = cx_to_bf16(value);
}

extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<CopyArgs> p)
{
    u32 block;
    const CopyArgs &a = p.args[cx_segment(p.head, &block)];
    typedef Walk<COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES> Axes;
    const Axes y_axes(a.size, a.y_stride, a.axes), x_axes(a.size, a.x_stride, a.axes);
    u32 item = block * COPY_THREADS + threadIdx.x;
    if (item >= y_axes.elements())
        return;
    Stored<COPY_Y>::Element *y = (Stored<COPY_Y>::Element *)a.y;
    const Stored<COPY_X>::Element *x = (const Stored<COPY_X>::Element *)a.x;
    set(y + y_axes.offset(item), value_of(x[x_axes.offset(item)]));
}
