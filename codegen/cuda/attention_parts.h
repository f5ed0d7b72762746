/* What the templates of attention in f32 share: matrices in memory, tiles in shared memory, and
 * products of tiles by 16 x (threads / 16) threads.
 *
 * A template includes this inside its namespace; there is no include guard. Thread (ty, tx) holds
 * the rows ty + i threads / 16 of a product's result; of columns tx + 16 j where both factors are
 * walked along their rows, else vectors of `lanes_of` columns. Rows of a tile are 4 floats longer
 * than its width, a multiple of 16, so that 8 rows lie in different banks for 16-byte loads, and
 * the two rows of a warp are 4 apart, in different banks for 4-byte stores.
 */
#include "tile_walk.h"

// How the struct's tensors are stored: f32, bf16 or f16; they are f32 in shared memory.
#define ATT_STORED(types, index) CxStored<((types) >> 4 * (index)) & 15>::Element
typedef ATT_STORED(ATT_TYPES, 0) StoredO;
typedef ATT_STORED(ATT_TYPES, 2) StoredQ;
typedef ATT_STORED(ATT_TYPES, 3) StoredK;
typedef ATT_STORED(ATT_TYPES, 4) StoredV;
typedef ATT_STORED(ATT_TYPES, 5) StoredMask;

// A matrix [length, width] of one problem.
template <typename Element> struct Matrix {
    Element *at;
    int64_t n, d; // strides
    int length, width;
    bool wide; // runs along d of 16-byte accesses
};
template <typename Element>
CX_FN Matrix<Element> matrix_of(int64_t address, int64_t offset, int64_t n, int64_t d,
                                int64_t length, int64_t width)
{
    Matrix<Element> x = {(Element *)address + offset, n, d, (int)length, (int)width, false};
    x.wide = d == 1 && ((n | width) & (16 / sizeof(Element) - 1)) == 0 && ((u64)x.at & 15) == 0;
    return x;
}

CX_FN int row_of_thread(int thread)
{
    int number = thread >> 4;
    return (number & 8) | (number & 1) << 2 | (number >> 1 & 3);
}

// Copies 16 bytes of elements into a tile, zeros if they are not `inside`. Copies of f32 are
// asynchronous: cx_copy_commit and cx_copy_wait follow. Of eight halves lanes that are `late` move
// the last four first, for other banks.
CX_FN void load_run(float *to, const float *from, bool inside, bool)
{
    cx_copy16(cx_shared_address(to), from, inside ? 16 : 0);
}
template <typename Half> CX_FN void load_run(float *to, const Half *from, bool inside, bool late)
{
    float x[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}, first[4], second[4];
    if (inside)
        cx_read8(x, from);
    CX_UNROLL
    for (int e = 0; e < 4; e++)
        first[e] = late ? x[4 + e] : x[e], second[e] = late ? x[e] : x[4 + e];
    cx_write4(to + (late ? 4 : 0), first);
    cx_write4(to + (late ? 0 : 4), second);
}
CX_FN void store_run(float *to, const float *from, bool)
{
    *(float4 *)to = *(const float4 *)from;
}
template <typename Half> CX_FN void store_run(Half *to, const float *from, bool late)
{
    float x[8], first[4], second[4];
    cx_read4(first, from + (late ? 4 : 0));
    cx_read4(second, from + (late ? 0 : 4));
    CX_UNROLL
    for (int e = 0; e < 4; e++)
        x[e] = late ? second[e] : first[e], x[4 + e] = late ? first[e] : second[e];
    cx_write8(to, x);
}

// Copies rows [first, first + rows) to a tile [rows, stride], zero outside of the matrix; by
// `threads` of which this is number `thread`.
template <int rows, int width, int stride, int threads, typename Element>
CX_FN void load_tile(float *tile, const Matrix<Element> &from, int first, int thread)
{
    enum { RUN = 16 / sizeof(Element), RUNS = (width + RUN - 1) / RUN };
    CX_NO_UNROLL
    for (int i = thread; from.wide && i < rows * RUNS; i += threads) {
        int row = row_in_turn<RUNS * RUN / 4, stride / 4>(i / RUNS), column = i % RUNS * RUN;
        bool inside = first + row < from.length && column < from.width;
        load_run(tile + row * stride + column,
                 inside ? from.at + (first + row) * from.n + column : from.at, inside,
                 ((i >> 2) ^ row) & 1);
    }
    CX_NO_UNROLL
    for (int i = thread; !from.wide && i < rows * width; i += threads) {
        int row = row_in_turn<width / 4, stride / 4>(i / width), column = i % width;
        if (from.d != 1) // lanes along the denser axis
            turned_element<rows>(i, &row, &column);
        bool inside = first + row < from.length && column < from.width;
        tile[row * stride + column] =
            inside ? cx_read(from.at[(first + row) * from.n + column * from.d]) : 0.f;
    }
}

#if ATT_ROTARY
// Turns four neighbours, of columns below `half` with those half the width behind them; half 0: two
// pairs. cosine, sine: of these columns. `back`: transposed.
template <bool back>
CX_FN void turn_some(float *at, const float *cosine, const float *sine, int half, float sign)
{
    float4 x = *(const float4 *)at, c = *(const float4 *)cosine, s = *(const float4 *)sine;
    if (half == 0) {
        if (back)
            s = make_float4(s.y, s.x, s.w, s.z);
        *(float4 *)at = make_float4(fmaf(s.x, x.y, c.x * x.x), fmaf(s.y, x.x, c.y * x.y),
                                    fmaf(s.z, x.w, c.z * x.z), fmaf(s.w, x.z, c.w * x.w));
        return;
    }
    float4 y = *(const float4 *)(at + half), far = *(const float4 *)(sine + half);
    s = make_float4(s.x * sign, s.y * sign, s.z * sign, s.w * sign);
    float4 low = back ? far : s, high = back ? s : far;
    *(float4 *)at = make_float4(fmaf(low.x, y.x, c.x * x.x), fmaf(low.y, y.y, c.y * x.y),
                                fmaf(low.z, y.z, c.z * x.z), fmaf(low.w, y.w, c.w * x.w));
    c = *(const float4 *)(cosine + half);
    *(float4 *)(at + half) =
        make_float4(fmaf(high.x, x.x, c.x * y.x), fmaf(high.y, x.y, c.y * y.y),
                    fmaf(high.z, x.z, c.z * y.z), fmaf(high.w, x.w, c.w * y.w));
}

// Turns rows [first, first + rows) of a matrix in their tile; 8 neighbouring threads have 8 rows,
// which lie in different banks. What others wrote to the tile is there, and nobody reads it yet.
template <int rows, int width, int stride, int threads, bool back>
CX_FN void turn_tile(float *tile, const RotaryLoad &rotary, int first, int length, int thread)
{
    enum { UNITS = width / 4 };
    int turned = (int)rotary.width, half = rotary.partner == PV_ROTARY_PAIRS ? 0 : turned / 2;
    float sign = rotary.partner == PV_ROTARY_NEGATED ? -1.f : 1.f;
    CX_NO_UNROLL
    for (int i = thread; rotary.cos && i < rows * UNITS; i += threads) {
        int row = i / (8 * UNITS) * 8 + i % 8, column = i / 8 % UNITS * 4;
        if (first + row >= length || column >= (half ? half : turned))
            continue;
        int64_t at = (int64_t)(first + row) * turned + column;
        turn_some<back>(tile + row * stride + column, (const float *)rotary.cos + at,
                        (const float *)rotary.sin + at, half, sign);
    }
}
#endif

// Rows [first, first + rows) of a matrix from a tile.
template <int rows, int width, int stride, int threads, typename Element>
CX_FN void store_tile(const Matrix<Element> &to, const float *tile, int first, int thread)
{
    enum { RUN = 16 / sizeof(Element), RUNS = (width + RUN - 1) / RUN };
    CX_NO_UNROLL
    for (int i = thread; to.wide && i < rows * RUNS; i += threads) {
        int row = row_in_turn<RUNS * RUN / 4, stride / 4>(i / RUNS), column = i % RUNS * RUN;
        if (first + row < to.length && column < to.width)
            store_run(to.at + (first + row) * to.n + column, tile + row * stride + column,
                      ((i >> 2) ^ row) & 1);
    }
    CX_NO_UNROLL
    for (int i = thread; !to.wide && i < rows * width; i += threads) {
        int row = row_in_turn<width / 4, stride / 4>(i / width), column = i % width;
        if (to.d != 1)
            turned_element<rows>(i, &row, &column);
        float value = tile[row * stride + column];
        if (first + row < to.length && column < to.width)
            cx_write(to.at + (first + row) * to.n + column * to.d, value);
    }
}

CX_FN float dot4(float4 a, float4 b, float sum)
{
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// c[i][j] = the product of row ty + i step of a and row tx + 16 j of b, tiles of `width`.
template <int rows, int columns, int width, int step>
CX_FN void multiply_rows(float (&c)[rows][columns], const float *a, const float *b, int ty, int tx)
{
    enum { STRIDE = width + 4 };
    CX_UNROLL
    for (int i = 0; i < rows; i++) {
        CX_UNROLL
        for (int j = 0; j < columns; j++)
            c[i][j] = 0.f;
    }
    CX_NO_UNROLL
    for (int k = 0; k < width; k += 4) {
        float4 left[rows];
        CX_UNROLL
        for (int i = 0; i < rows; i++)
            left[i] = *(const float4 *)(a + (ty + i * step) * STRIDE + k);
        CX_UNROLL
        for (int j = 0; j < columns; j++) {
            float4 right = *(const float4 *)(b + (tx + 16 * j) * STRIDE + k);
            CX_UNROLL
            for (int i = 0; i < rows; i++)
                c[i][j] = dot4(left[i], right, c[i][j]);
        }
    }
}

CX_FN constexpr int lanes_of(int width) // columns of a thread that follow one another
{
    return width % 64 == 0 ? 4 : width % 32 == 0 ? 2 : 1;
}
// Column of element j of a thread's row.
template <int width> CX_FN int column_of(int tx, int j)
{
    return (j / lanes_of(width) * 16 + tx) * lanes_of(width) + j % lanes_of(width);
}

// c[i] += row ty + i step of a [.., stride], `depth` long, times the tile b [depth, width].
template <int rows, int width, int depth, int stride, int step>
CX_FN void multiply_columns(float (&c)[rows][width / 16], const float *a, const float *b, int ty,
                            int tx)
{
    enum { LANES = lanes_of(width) };
    CX_NO_UNROLL
    for (int k = 0; k < depth; k += 4) {
        float4 left[rows];
        CX_UNROLL
        for (int i = 0; i < rows; i++)
            left[i] = *(const float4 *)(a + (ty + i * step) * stride + k);
        CX_UNROLL
        for (int l = 0; l < 4; l++) {
            const float *from = b + (k + l) * (width + 4) + tx * LANES;
            CX_UNROLL
            for (int j = 0; j < width / 16; j += LANES) {
                float right[4];
                if (LANES == 4) {
                    float4 q = *(const float4 *)(from + j * 16);
                    right[0] = q.x, right[1] = q.y, right[2] = q.z, right[3] = q.w;
                } else if (LANES == 2) {
                    float2 q = *(const float2 *)(from + j * 16);
                    right[0] = q.x, right[1] = q.y;
                } else {
                    right[0] = from[j * 16];
                }
                CX_UNROLL
                for (int i = 0; i < rows; i++) {
                    float weight = l == 0   ? left[i].x
                                   : l == 1 ? left[i].y
                                   : l == 2 ? left[i].z
                                            : left[i].w;
                    CX_UNROLL
                    for (int v = 0; v < LANES; v++)
                        c[i][j + v] = fmaf(weight, right[v], c[i][j + v]);
                }
            }
        }
    }
}

// A thread's elements of a row, times factor, into a row of a tile.
template <int width>
CX_FN void put_row(float *row, const float (&c)[width / 16], float factor, int tx)
{
    enum { LANES = lanes_of(width) };
    CX_UNROLL
    for (int j = 0; j < width / 16; j += LANES) {
        float *to = row + column_of<width>(tx, j);
        if constexpr (LANES == 4)
            *(float4 *)to = make_float4(c[j] * factor, c[j + 1] * factor, c[j + 2] * factor,
                                        c[j + 3] * factor);
        else if constexpr (LANES == 2)
            *(float2 *)to = make_float2(c[j] * factor, c[j + 1] * factor);
        else
            *to = c[j] * factor;
    }
}

// Results of multiply_columns, times factor, into a tile.
template <int rows, int width, int step>
CX_FN void spread(float *tile, const float (&c)[rows][width / 16], float factor, int ty, int tx)
{
    CX_UNROLL
    for (int i = 0; i < rows; i++)
        put_row<width>(tile + (ty + i * step) * (width + 4), c[i], factor, tx);
}

template <typename Element>
CX_FN Matrix<Element> empty_unless(bool there, Matrix<Element> x) // no row where it is not there
{
    x.length = there ? x.length : 0;
    return x;
}

// One problem of the batch.
struct Problem {
    int64_t i0, i1, i2, number;
};
CX_FN Problem problem_of(const AttentionArgs &a, int64_t number)
{
    int64_t outer = number / a.batch2;
    return {outer / a.batch1, outer % a.batch1, number % a.batch2, number};
}
// Where a tensor with such strides has its matrix of the problem.
CX_FN int64_t offset_of(const Problem &p, int64_t stride0, int64_t stride1, int64_t stride2)
{
    return p.i0 * stride0 + p.i1 * stride1 + p.i2 * stride2;
}
CX_FN Matrix<StoredQ> matrix_q(const AttentionArgs &a, const Problem &p)
{
    return matrix_of<StoredQ>(a.q, offset_of(p, a.q0, a.q1, a.q2), a.q_n, a.q_d, a.n, a.d);
}
CX_FN Matrix<StoredK> matrix_k(const AttentionArgs &a, const Problem &p)
{
    return matrix_of<StoredK>(a.k, offset_of(p, a.k0, a.k1, a.k2), a.k_n, a.k_d, a.m, a.d);
}
CX_FN Matrix<StoredV> matrix_v(const AttentionArgs &a, const Problem &p)
{
    return matrix_of<StoredV>(a.v, offset_of(p, a.v0, a.v1, a.v2), a.v_n, a.v_d, a.m, a.e);
}
CX_FN Matrix<StoredO> matrix_o(const AttentionArgs &a, const Problem &p)
{
    return matrix_of<StoredO>(a.o, offset_of(p, a.o0, a.o1, a.o2), a.o_n, a.o_d, a.n, a.e);
}

// What a score is raised by; -inf: key j does not count for query i.
CX_FN float score_offset(const AttentionArgs &a, const Problem &p, int i, int j)
{
    if (j >= (int)a.m || i >= (int)a.n || (ATT_CAUSAL && j > i))
        return -INFINITY;
    if (ATT_MASK)
        return ((const float *)a.mask)[offset_of(p, a.mask0, a.mask1, a.mask2) + i * a.mask_n +
                                       j * a.mask_m];
    return 0.f;
}

#ifdef ATT_GRAD_TYPES
typedef ATT_STORED(ATT_GRAD_TYPES, 0) StoredDo;
typedef ATT_STORED(ATT_GRAD_TYPES, 1) StoredDq;
typedef ATT_STORED(ATT_GRAD_TYPES, 2) StoredDk;
typedef ATT_STORED(ATT_GRAD_TYPES, 3) StoredDv;
CX_FN Matrix<StoredDo> matrix_do(const AttentionGradArgs &a, const Problem &p)
{
    int64_t offset = offset_of(p, a.f.o0, a.f.o1, a.f.o2);
    return matrix_of<StoredDo>(a.d_o, offset, a.f.o_n, a.f.o_d, a.f.n, a.f.e);
}
CX_FN Matrix<StoredDq> matrix_dq(const AttentionGradArgs &a, const Problem &p)
{
    int64_t offset = offset_of(p, a.dq0, a.dq1, a.dq2);
    return matrix_of<StoredDq>(a.dq, offset, a.dq_n, a.dq_d, a.f.n, a.f.d);
}
CX_FN Matrix<StoredDk> matrix_dk(const AttentionGradArgs &a, const Problem &p)
{
    int64_t offset = offset_of(p, a.dk0, a.dk1, a.dk2);
    return matrix_of<StoredDk>(a.dk, offset, a.dk_n, a.dk_d, a.f.m, a.f.d);
}
CX_FN Matrix<StoredDv> matrix_dv(const AttentionGradArgs &a, const Problem &p)
{
    int64_t offset = offset_of(p, a.dv0, a.dv1, a.dv2);
    return matrix_of<StoredDv>(a.dv, offset, a.dv_n, a.dv_d, a.f.m, a.f.e);
}
#endif
