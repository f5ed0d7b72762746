/* Movement, transposed: y is dense along its last axis, x along another one, TURN_AXIS.
 *
 * A block moves a square of TILE x TILE elements of these two axes through shared memory, so that
 * loads and stores are both coalesced; rows of the tile are one element longer, so that its columns
 * lie in different banks. The other axes are the outer part of the block's number.
 *
 * Definitions: COPY_BYTES 1, 2, 4, 8; COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES
 * (move_layout.h), of which the last axis is y's dense one; TURN_AXIS.
 */
#include "move_layout.h"

enum { TURN_THREADS = 256, TILE = 32, TILE_ROWS = TURN_THREADS / TILE, LAST = COPY_AXES - 1 };

template <int bytes> struct Kind;
template <> struct Kind<1> {
    typedef u8 Unit;
    typedef u32 Cell; // neighbours of a word are other threads'
};
template <> struct Kind<2> {
    typedef u16 Unit;
    typedef u32 Cell;
};
template <> struct Kind<4> {
    typedef u32 Unit;
    typedef u32 Cell;
};
template <> struct Kind<8> {
    typedef u64 Unit;
    typedef u64 Cell;
};
typedef Kind<COPY_BYTES>::Unit Unit;
typedef Kind<COPY_BYTES>::Cell Cell; // of the tile

extern "C" __global__ void __launch_bounds__(TURN_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<CopyArgs> p)
{
    CX_SHARED(shared);
    Cell *tile = (Cell *)shared;
    u32 block;
    const CopyArgs &a = p.args[cx_segment(p.head, &block)];
    typedef Walk<COPY_COUNT, COPY_ORDER, COPY_BEGINS, COPY_AXES> Axes;
    const Axes y_axes(a.size, a.y_stride, a.axes), x_axes(a.size, a.x_stride, a.axes);
    const u32 *size = y_axes.size;
    const int64_t *y_step = y_axes.step, *x_step = x_axes.step;
    u32 turns = (size[TURN_AXIS] + TILE - 1) / TILE, lasts = (size[LAST] + TILE - 1) / TILE;
    u32 outer = block / lasts, last = (block - outer * lasts) * TILE;
    u32 rest = outer / turns, turn = (outer - rest * turns) * TILE;
    Unit *y = (Unit *)a.y;
    const Unit *x = (const Unit *)a.x;
    CX_UNROLL
    for (int j = LAST - 1; j >= 0; j--) {
        if (j == TURN_AXIS)
            continue;
        u32 index = rest % size[j];
        rest /= size[j];
        y += (int64_t)index * y_step[j];
        x += (int64_t)index * x_step[j];
    }
    u32 lane = threadIdx.x % TILE, row = threadIdx.x / TILE;
    CX_UNROLL
    for (u32 i = row; i < TILE; i += TILE_ROWS)
        if (turn + lane < size[TURN_AXIS] && last + i < size[LAST])
            tile[i * (TILE + 1) + lane] =
                x[(int64_t)(last + i) * x_step[LAST] + (int64_t)(turn + lane) * x_step[TURN_AXIS]];
#ifndef FAULT_TILE // without it elements are stored before they are loaded
    __syncthreads();
#endif
    CX_UNROLL
    for (u32 i = row; i < TILE; i += TILE_ROWS)
        if (turn + i < size[TURN_AXIS] && last + lane < size[LAST])
            y[(int64_t)(turn + i) * y_step[TURN_AXIS] + (int64_t)(last + lane) * y_step[LAST]] =
                (Unit)tile[lane * (TILE + 1) + i];
}
