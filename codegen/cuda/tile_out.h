/* What becomes of a tile of sums, whatever made it: results with their epilogue, four at a time, or
 * the parts of a reduction that a second phase adds in their order. Included in a kernel's
 * namespace by the headers of tile products, which define TILE_M, TILE_N and THREADS before.
 *
 * An `out` has
 *     void column(int n)                         four columns from n follow
 *     void put(int m, float *value)              four sums of row m, to be made results
 *     BY_COLUMN                                  1: when some rows are put,
 *     void columns(const float *results, int stride, int m, int n)   has them in shared memory
 *     GATED                                      n > 0: a tile's columns are n values, the n gates
 *     void put(int m, float *value, const float *gate)    of these, n values...; put together
 * A product passes its sums by tile_rows, a few rows at a time out of shared memory, so that the
 * code of the epilogue is there once, in a loop, and neighbouring threads write whole rows.
 */

#include "tile_walk.h"

/* ---- fours of elements of any storage ---- */

// Those from `count` on are 0. VECTOR: at is a multiple of four elements, and count 0
// or at least 4.
template <bool VECTOR, class Element>
CX_FN void load_four(float *r, const Element *at, int count)
{
    if (VECTOR) {
        r[0] = r[1] = r[2] = r[3] = 0.f;
        if (count > 0)
            cx_read4(r, at);
    } else {
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            r[e] = e < count ? cx_read(at[e]) : 0.f;
    }
}

template <bool VECTOR, class Element>
CX_FN void store_four(Element *at, const float *value, int count)
{
    if (VECTOR) {
        cx_write4(at, value);
    } else {
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            if (e < count)
                cx_write(at + e, value[e]);
    }
}

// The value that is stored as `Element`: what readers find, and statistics are of.
template <class Element> CX_FN float as_stored(float value)
{
    if constexpr (sizeof(Element) == sizeof(float)) {
        return value;
    } else {
        Element stored;
        cx_write(&stored, value);
        return cx_read(stored);
    }
}

// act: a PvAct.
template <int ACT> CX_FN float activate(float x)
{
    if (ACT == PV_ACT_SILU)
        return x / (1.f + expf(-x));
    if (ACT == PV_ACT_GELU)
        return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
    if (ACT == PV_ACT_RELU)
        return x > 0.f ? x : 0.f;
    return x;
}

/* ---- rows out of shared memory ---- */

// Whether a tile's column is a gate, and which column of the result one that is not is.
template <class Out> CX_FN bool is_gate(int column)
{
    if constexpr (Out::GATED > 0)
        return column / Out::GATED % 2 == 1;
    return false;
}
template <class Out> CX_FN int result_column(int column)
{
    if constexpr (Out::GATED > 0)
        return column - column / (2 * Out::GATED) * Out::GATED;
    return column;
}

// `rows` rows of sums, `stride` floats apart, that begin at row m of the result; column() was
// called for the thread's column, tile_column4().
CX_FN int tile_column4()
{
    return (int)threadIdx.x % (TILE_N / 4) * 4;
}
template <class Out>
CX_FN void tile_rows(float *shared, int rows, int stride, Out &out, int m)
{
    if (is_gate<Out>(tile_column4()))
        return;
    CX_NO_UNROLL
    for (int i = (int)threadIdx.x / (TILE_N / 4); i < rows; i += THREADS / (TILE_N / 4)) {
        int row = row_in_turn<TILE_N / 4, TILE_N / 4 + 1>(i);
        const float *at = shared + row * stride + tile_column4();
        float value[4];
        cx_read4(value, at);
        if constexpr (Out::GATED > 0) {
            float gate[4];
            cx_read4(gate, at + Out::GATED);
            out.put(m + row, value, gate);
        } else {
            out.put(m + row, value);
        }
        if constexpr (Out::BY_COLUMN)
            cx_write4(shared + row * stride + tile_column4(), value);
    }
}

/* ---- the reduction in parts ---- */

// Parts of the result of a segment are kept if there are several, or if it is a part of a sum of
// segments (`sum` in kernel_args.h). A workspace is a line of 256 bytes, whose first word is the
// number of parts, and the sums of every tile and part, row-major.
struct Keep {
    enum { BY_COLUMN = 0, GATED = 0 };
    float *tile;
    int n;

    CX_FN Keep of(u8 *work, int parts, int tile, int part)
    {
        Keep keep;
        keep.tile =
            (float *)(work + 256) + ((long long)tile * parts + part) * (TILE_M * TILE_N);
        if (tile == 0 && part == 0 && threadIdx.x == 0)
            *(u32 *)work = (u32)parts;
        return keep;
    }
    __device__ void column(int n_)
    {
        n = n_;
    }
    __device__ void put(int m, const float *sum)
    {
        *(float4 *)(tile + m * TILE_N + n) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
};

// Of the second phase: blocks of a tile, and rows of a block.
enum { TILE_BLOCKS = TILE_M * TILE_N / 4 / THREADS, COLLECT_ROWS = TILE_M / TILE_BLOCKS };

// Four sums of a tile from element `four` on, over all parts of `segment` and of the `more` behind
// it, which have the same tiles.
CX_FN void collect_four(const CxHead &head, u32 segment, int64_t more, int tile, int four,
                        float *sum)
{
    sum[0] = sum[1] = sum[2] = sum[3] = 0.f;
#ifdef FAULT_TILE_SUM // the last segment is forgotten
    more--;
#endif
    CX_NO_UNROLL
    for (int s = 0; s == 0 || s <= more; s++) {
        const u8 *work = head.work[segment + s];
        int parts = (int)*(const u32 *)work;
        const float *from =
            (const float *)(work + 256) + (long long)tile * parts * (TILE_M * TILE_N) + four;
        CX_UNROLL_BY(4)
        for (int part = 0; part < parts; part++) {
            float4 next = *(const float4 *)(from + (long long)part * (TILE_M * TILE_N));
#ifdef FAULT_TILE_PARTS // the last part is forgotten
            if (part == parts - 1)
                break;
#endif
            sum[0] += next.x, sum[1] += next.y, sum[2] += next.z, sum[3] += next.w;
        }
    }
}

// Block `block` of a tile: four sums of each thread over all parts; then out. shared: rows of
// results for one by column.
template <class Out>
CX_FN void tile_collect(const CxHead &head, u32 segment, int64_t more, int tile, int block,
                        Out &out, int m0, int n0, float *shared = nullptr)
{
    int four = (block * THREADS + (int)threadIdx.x) * 4;
    if (is_gate<Out>(four % TILE_N))
        return;
    float sum[4];
    collect_four(head, segment, more, tile, four, sum);
    out.column(n0 + result_column<Out>(four % TILE_N));
    if constexpr (Out::GATED > 0) {
        float gate[4];
        collect_four(head, segment, more, tile, four + Out::GATED, gate);
        out.put(m0 + four / TILE_N, sum, gate);
    } else {
        out.put(m0 + four / TILE_N, sum);
    }
    if constexpr (Out::BY_COLUMN) {
        const int stride = TILE_N + 4;
        cx_write4(shared + four / TILE_N % COLLECT_ROWS * stride + four % TILE_N, sum);
        __syncthreads();
        out.columns(shared, stride, m0 + block * COLLECT_ROWS, n0);
    }
}
