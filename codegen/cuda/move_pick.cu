/* Movement by an index: pick and its gradient, gather.
 *
 * Rows of `inner` elements; a thread moves 16 bytes where rows are aligned (a block finds out),
 * else an element. pick: y[o] = x[o, k[o / per]].  pick_grad: x[o, i] = i == k[o / per] ? y[o] : 0.
 * gather: y[i] = x[k[i]].  Indices out of range are clamped.
 *
 * Definitions: PICK_OP 0 pick, 1 its gradient, 2 gather.
 */
enum { PICK_THREADS = 256, PICK_ITEMS = 4 };
template <int op> struct ArgsOf {
    typedef PickArgs Args;
};
template <> struct ArgsOf<2> {
    typedef GatherArgs Args;
};
typedef ArgsOf<PICK_OP>::Args Args;

// Row that goes to row `row` of what is written; -1: zeros.
CX_FN int64_t source_row(const PickArgs &a, u32 row)
{
    const int64_t *k = (const int64_t *)a.k;
    u32 outer = PICK_OP == 1 ? row / (u32)a.axis : row;
    int64_t index = k[outer / (u32)a.per];
    index = index < 0 ? 0 : index < a.axis ? index : a.axis - 1;
    if (PICK_OP == 1)
        return row - outer * (u32)a.axis == index ? (int64_t)outer : -1;
    return (int64_t)outer * a.axis + index;
}
CX_FN int64_t source_row(const GatherArgs &a, u32 row)
{
    int64_t index = ((const int64_t *)a.k)[row];
    return index < 0 ? 0 : index < a.rows ? index : a.rows - 1;
}
CX_FN int64_t rows_of(const PickArgs &a)
{
    return PICK_OP == 1 ? a.outer * a.axis : a.outer;
}
CX_FN int64_t rows_of(const GatherArgs &a)
{
    return a.count;
}

CX_FN u32 zero(u32)
{
    return 0;
}
CX_FN uint4 zero(uint4)
{
    return make_uint4(0, 0, 0, 0);
}

// Units of 4 or 16 bytes; `units` in a row.
template <typename Unit>
CX_FN void move_rows(const Args &a, Unit *to, const Unit *from, u32 units, u32 block)
{
    u32 items = (u32)rows_of(a) * units;
    CX_UNROLL
    for (u32 i = 0; i < PICK_ITEMS; i++) {
        u32 item = (block * PICK_ITEMS + i) * PICK_THREADS + threadIdx.x;
        if (item >= items)
            return;
        u32 row = item / units;
        int64_t source = source_row(a, row);
#ifdef FAULT_INDEX // the index is that of the row before
        source = source_row(a, row > 0 ? row - 1 : 0);
#endif
        to[item] = source < 0 ? zero(Unit()) : from[source * units + (item - row * units)];
    }
}

extern "C" __global__ void __launch_bounds__(PICK_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<Args> p)
{
    u32 block;
    const Args &a = p.args[cx_segment(p.head, &block)];
    int64_t to = PICK_OP == 1 ? a.x : a.y, from = PICK_OP == 1 ? a.y : a.x;
    if ((to | from) % 16 == 0 && a.inner % 4 == 0)
        move_rows(a, (uint4 *)to, (const uint4 *)from, (u32)a.inner / 4, block);
    else
        move_rows(a, (u32 *)to, (const u32 *)from, (u32)a.inner, block);
}
