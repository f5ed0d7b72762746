/* T7: out[o...] = sum, maximum or minimum of x[o..., r...] over r..., any strides of x.
 *
 * A block is REDUCE_X units of results by REDUCE_Y threads that share the elements of each. Where x
 * is dense along a reduced axis (REDUCE_ALONG) the threads of a result are neighbours and are added
 * by shuffles; else results are neighbours, and threads are added through shared memory. REDUCE_W
 * 4: a thread reads 16 bytes, along the reduced axis or of a unit of four results. Where results
 * are few, the elements are cut into parts, which phase 1 adds (reduce_plan.h), as it adds segments
 * that are one sum. The order of sums depends on the sizes alone. A NaN wins against maxima and
 * minima.
 *
 * Definitions: REDUCE_OP 0 sum, 1 max, 2 min; REDUCE_INT; REDUCE_STORE, REDUCE_OUT, REDUCE_ADDED
 * (PvStorage of x, the result, the residual); REDUCE_X, REDUCE_Y, REDUCE_W,
 * REDUCE_ALONG; KEPT_COUNT, KEPT_ORDER, KEPT_BEGINS, KEPT_AXES; REDUCED_COUNT, REDUCED_ORDER,
 * REDUCED_BEGINS, REDUCED_AXES (move_layout.h).
 */
#include "move_layout.h"
#include "reduce_plan.h"

enum {
    REDUCE_THREADS = 256,
    ALONG = REDUCE_ALONG ? REDUCE_W : 1,   // elements of a step
    COLUMNS = REDUCE_ALONG ? 1 : REDUCE_W, // results of a unit
    JOIN_X = 32                            // units of a block of phase 1
};
template <bool integer> struct ValueOf {
    typedef float Value;
};
template <> struct ValueOf<true> {
    typedef int64_t Value;
};
typedef ValueOf<REDUCE_INT != 0>::Value Value;
template <int store> struct ElementOf {
    typedef typename CxStored<store>::Element Element;
};
template <> struct ElementOf<PV_STORE_REAL> {
    typedef Value Element;
};
typedef ElementOf<REDUCE_STORE>::Element Element; // of x
typedef ElementOf<REDUCE_OUT>::Element Result;
typedef ElementOf<REDUCE_ADDED>::Element Added;   // of the residual
template <int width> struct Pack {
    Value at[width];
};

CX_FN float neutral(float)
{
    return REDUCE_OP == 0 ? 0.f : REDUCE_OP == 1 ? -INFINITY : INFINITY;
}
CX_FN int64_t neutral(int64_t)
{
    const u64 most = 0x7fffffffffffffffull;
    return REDUCE_OP == 0 ? 0 : (int64_t)(REDUCE_OP == 1 ? most + 1 : most);
}
CX_FN float combine(float x, float y)
{
    if (REDUCE_OP == 0)
        return x + y;
    bool takes = REDUCE_OP == 1 ? y > x : y < x;
    return takes || y != y ? y : x;
}
CX_FN int64_t combine(int64_t x, int64_t y)
{
    if (REDUCE_OP == 0)
        return (int64_t)((u64)x + (u64)y);
    return (REDUCE_OP == 1) == (x > y) ? x : y;
}
CX_FN float shuffled(float value, int by)
{
    return __shfl_xor_sync(CX_ALL_LANES, value, by);
}
CX_FN int64_t shuffled(int64_t value, int by)
{
    u32 low = __shfl_xor_sync(CX_ALL_LANES, (u32)(u64)value, by);
    u32 high = __shfl_xor_sync(CX_ALL_LANES, (u32)((u64)value >> 32), by);
    return (int64_t)((u64)high << 32 | low);
}

CX_FN void load(Pack<1> &pack, const Value *from)
{
    pack.at[0] = from[0];
}
CX_FN void load(Pack<4> &pack, const Value *from)
{
    float4 all = *(const float4 *)from;
    pack.at[0] = (Value)all.x;
    pack.at[1] = (Value)all.y;
    pack.at[2] = (Value)all.z;
    pack.at[3] = (Value)all.w;
}
template <typename Half> CX_FN void load(Pack<1> &pack, const Half *from)
{
    pack.at[0] = (Value)cx_read(from[0]);
}
template <typename Half> CX_FN void load(Pack<4> &pack, const Half *from)
{
    float x[4];
    cx_read4(x, from);
    CX_UNROLL
    for (int i = 0; i < 4; i++)
        pack.at[i] = (Value)x[i];
}
CX_FN void store(Value *to, const Pack<1> &pack)
{
    to[0] = pack.at[0];
}
CX_FN void store(Value *to, const Pack<4> &pack)
{
    *(float4 *)to =
        make_float4((float)pack.at[0], (float)pack.at[1], (float)pack.at[2], (float)pack.at[3]);
}
template <typename Half> CX_FN void store(Half *to, const Pack<1> &pack)
{
    cx_write(to, (float)pack.at[0]);
}
template <typename Half> CX_FN void store(Half *to, const Pack<4> &pack)
{
    const float x[4] = {(float)pack.at[0], (float)pack.at[1], (float)pack.at[2], (float)pack.at[3]};
    cx_write4(to, x);
}
template <int width> CX_FN void clear(Pack<width> &pack)
{
    CX_UNROLL
    for (int w = 0; w < width; w++)
        pack.at[w] = neutral(Value());
}
template <int width> CX_FN void add(Pack<width> &to, const Pack<width> &from)
{
    CX_UNROLL
    for (int w = 0; w < width; w++)
        to.at[w] = combine(to.at[w], from.at[w]);
}

CX_FN u32 product(const int64_t *size, int64_t count)
{
    u32 all = 1;
    for (int64_t i = 0; i < count; i++)
        all *= (u32)size[i];
    return all;
}

// A launch in numbers.
struct Cut {
    u32 units, steps, across, parts;
};
CX_FN Cut cut_of(const ReduceArgs &a)
{
    Cut cut;
    cut.units = product(a.size, a.kept) / COLUMNS;
    cut.steps = product(a.size + a.kept, a.reduced) / ALONG;
    cut.across = (cut.units + REDUCE_X - 1) / REDUCE_X;
    cut.parts = reduce_parts(cut.across, cut.steps, REDUCE_Y);
    return cut;
}

// Steps first, first + by, ... below `end` of a unit, four loads at a time.
CX_FN void reduce_own(Pack<REDUCE_W> &sum, const ReduceArgs &a, const Element *x, u32 first,
                      u32 end, u32 by)
{
    Walk<REDUCED_COUNT, REDUCED_ORDER, REDUCED_BEGINS, REDUCED_AXES> axes(
        a.size + a.kept, a.stride + a.kept, a.reduced);
    axes.cut(ALONG);
    Pack<REDUCE_W> pack[4];
    clear(sum);
    u32 i = first;
    for (; i < end && end - i > 3 * by; i += 4 * by) {
        CX_UNROLL
        for (u32 k = 0; k < 4; k++)
            load(pack[k], x + axes.offset(i + k * by));
        add(pack[0], pack[1]);
        add(pack[2], pack[3]);
        add(pack[0], pack[2]);
        add(sum, pack[0]);
    }
    for (; i < end; i += by) {
        load(pack[0], x + axes.offset(i));
        add(sum, pack[0]);
    }
}

// The sum over y of all threads with the same x, in those with y = 0. shared: a pack a thread.
template <int width, int across, int deep>
CX_FN void add_threads(Pack<width> &sum, Value *shared, u32 x, u32 y)
{
    store(shared + (y * across + x) * width, sum);
#ifndef FAULT_COLUMNS // without it threads are added before they are done
    __syncthreads();
#endif
    if (y != 0)
        return;
    CX_UNROLL
    for (u32 other = 1; other < deep; other++) {
        Pack<width> more;
        load(more, shared + (other * across + x) * width);
        add(sum, more);
    }
}

// The same where the threads of a result are a warp or the block.
CX_FN Value add_neighbours(Value value, Value *shared)
{
    CX_UNROLL
    for (int by = 16; by > 0; by >>= 1)
        value = combine(value, shuffled(value, by));
    if (REDUCE_Y == 32)
        return value;
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
    CX_UNROLL
    for (int i = 1; i < REDUCE_THREADS / 32; i++)
        value = combine(value, shared[i]);
    return value;
}

CX_FN void store_result(const ReduceArgs &a, int64_t at, Pack<COLUMNS> &sum)
{
    if (REDUCE_OP == 0 && !REDUCE_INT && a.residual) {
        Pack<COLUMNS> residual;
        load(residual, (const Added *)a.residual + at);
        add(sum, residual);
    }
    store((Result *)a.out + at, sum);
}

extern "C" __global__ void __launch_bounds__(REDUCE_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<ReduceArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const ReduceArgs &a = p.args[segment];
    const Cut cut = cut_of(a);
    u32 part = block / cut.across;
    u32 x = REDUCE_ALONG ? threadIdx.x / REDUCE_Y : threadIdx.x % REDUCE_X;
    u32 y = REDUCE_ALONG ? threadIdx.x % REDUCE_Y : threadIdx.x / REDUCE_X;
    u32 unit = (block - part * cut.across) * REDUCE_X + x;
    bool valid = unit < cut.units;
    const Element *from = (const Element *)a.x;
    Walk<KEPT_COUNT, KEPT_ORDER, KEPT_BEGINS, KEPT_AXES> axes(a.size, a.stride, a.kept);
    axes.cut(COLUMNS);
    if (valid)
        from += axes.offset(unit);
    u32 first = (u32)((u64)cut.steps * part / cut.parts);
    u32 end = valid ? (u32)((u64)cut.steps * (part + 1) / cut.parts) : 0;
    Pack<REDUCE_W> own;
    reduce_own(own, a, from, first + y, end, REDUCE_Y);
    Pack<COLUMNS> sum;
    CX_UNROLL
    for (int w = 0; w < COLUMNS; w++)
        sum.at[w] = own.at[w];
    CX_UNROLL
    for (int w = 1; w < ALONG; w++)
        sum.at[0] = combine(sum.at[0], own.at[w]);
    if (REDUCE_ALONG && REDUCE_Y > 1)
        sum.at[0] = add_neighbours(sum.at[0], (Value *)shared);
    else if (REDUCE_Y > 1)
        add_threads<COLUMNS, REDUCE_X, REDUCE_Y>(sum, (Value *)shared, x, y);
    if (!valid || y != 0)
        return;
    if (cut.parts == 1 && a.sum == 0)
        store_result(a, (int64_t)unit * COLUMNS, sum);
    else
        store((Value *)p.head.work[segment] + ((int64_t)part * cut.units + unit) * COLUMNS, sum);
}

#ifdef CX_NAME_1 // adds the parts, in order, of a segment and of those behind it in its sum
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<ReduceArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const ReduceArgs &a = p.args[segment];
    const u32 units = product(a.size, a.kept) / COLUMNS;
    u32 x = threadIdx.x % JOIN_X, y = threadIdx.x / JOIN_X, unit = block * JOIN_X + x;
    Pack<COLUMNS> sum, pack;
    clear(sum);
    u32 segments = 1 + (u32)a.sum;
#ifdef FAULT_REDUCE_SUM // the last segment is forgotten
    segments -= a.sum > 0;
#endif
    for (u32 s = 0; s < segments; s++) {
        const Cut cut = cut_of(p.args[segment + s]);
        const Value *from = (const Value *)p.head.work[segment + s];
        for (u32 part = y; unit < units && part < cut.parts; part += REDUCE_THREADS / JOIN_X) {
            load(pack, from + ((int64_t)part * units + unit) * COLUMNS);
            add(sum, pack);
        }
    }
    add_threads<COLUMNS, JOIN_X, REDUCE_THREADS / JOIN_X>(sum, (Value *)shared, x, y);
    if (unit < units && y == 0)
        store_result(a, (int64_t)unit * COLUMNS, sum);
}
#endif
