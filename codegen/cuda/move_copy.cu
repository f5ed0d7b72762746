/* T6, movement: y[i...] = x[i...] for any strides; runs are moved 16 bytes at a time.
 *
 * Axes are in descending strides of y and joined where both sides are one run. A thread moves
 * COPY_ITEMS units, each 16 bytes (COPY_WIDE) or an element; neighbouring threads neighbouring
 * units of y, so stores are coalesced, and loads where x is dense along y's last axis or is
 * repeated. With COPY_OFFSET one side begins at an index in device memory, clamped (windows).
 *
 * Definitions: COPY_BYTES 1, 4, 8; COPY_WIDE; COPY_OFFSET 0, 1 (x), 2 (y); COPY_COUNT, COPY_ORDER,
 * COPY_BEGINS, COPY_AXES (move_layout.h).
 */
#include "move_layout.h"

enum { COPY_THREADS = 256, COPY_ITEMS = 4, UNIT = COPY_WIDE ? 16 / COPY_BYTES : 1 };

template <int bytes, bool wide> struct Kind;
template <int bytes> struct Kind<bytes, true> {
    typedef uint4 Unit;
};
template <> struct Kind<1, false> {
    typedef u8 Unit;
};
template <> struct Kind<2, false> {
    typedef u16 Unit;
};
template <> struct Kind<4, false> {
    typedef u32 Unit;
};
template <> struct Kind<8, false> {
    typedef u64 Unit;
};
typedef Kind<COPY_BYTES, COPY_WIDE != 0>::Unit Unit;

CX_FN int64_t displacement(const CopyArgs &a)
{
    int64_t offset = *(const int64_t *)a.offset;
    offset = offset < a.offset_max ? offset : a.offset_max;
    return (offset > 0 ? offset : 0) * a.offset_stride * COPY_BYTES;
}

extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<CopyArgs> p)
{
    u32 block;
    const CopyArgs &a = p.args[cx_segment(p.head, &block)];
    typedef Walk<COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES> Axes;
    Axes y_axes(a.size, a.y_stride, a.axes), x_axes(a.size, a.x_stride, a.axes);
    y_axes.cut(UNIT);
    x_axes.cut(UNIT);
    u32 items = y_axes.elements();
    u8 *y = (u8 *)a.y + (COPY_OFFSET == 2 ? displacement(a) : 0);
    const u8 *x = (const u8 *)a.x + (COPY_OFFSET == 1 ? displacement(a) : 0);
    u32 first = block * (COPY_THREADS * COPY_ITEMS) + threadIdx.x;
    Unit unit[COPY_ITEMS];
    u8 *to[COPY_ITEMS];
    CX_UNROLL
    for (int i = 0; i < COPY_ITEMS; i++) {
        u32 item = first + (u32)i * COPY_THREADS;
#ifdef FAULT_END // the last block writes beyond y
        items = item + 1;
#endif
        to[i] = nullptr;
        if (item >= items)
            continue;
        to[i] = y + y_axes.offset(item) * COPY_BYTES;
        unit[i] = *(const Unit *)(x + x_axes.offset(item) * COPY_BYTES);
    }
    CX_UNROLL
    for (int i = 0; i < COPY_ITEMS; i++)
        if (to[i])
            *(Unit *)to[i] = unit[i];
}
