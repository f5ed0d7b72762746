/* What the templates of attention in bf16 or f16 on mma.sync share: matrices in memory, tiles in
 * shared memory, and products of 16-row blocks of a warp with tiles.
 *
 * A template includes this inside its namespace, with THREADS set; there is no include guard. A
 * tile is [rows, width] Half, width a multiple of 16, its rows 16 bytes longer, so that ldmatrix
 * meets no bank twice. A warp has BLOCKS blocks of 16 rows; a fragment of a tile serves all of
 * them. The result of one product, packed, is the left operand of the next where it lies: rows lane
 * / 4 and lane / 4 + 8, columns lane % 4 * 2 of each 8. With 32 rows a warp, a product with R x 16
 * rows of a tile has 4 R / (2 + R) HMMA a LDSM, one whose left operand is in registers 4.
 */
#include "tile_walk.h"

enum { BLOCKS = 2, WARP_ROWS = 16 * BLOCKS };

typedef CxStored<ATT_HALF>::Element Half;

// A matrix [length, width] of one problem.
struct Matrix {
    Half *at;
    int n, d; // strides
    int length, width;
    bool wide; // runs along d of 16-byte accesses
};
CX_FN Matrix matrix_of(int64_t address, int64_t offset, int64_t n, int64_t d, int64_t length,
                       int64_t width)
{
    Matrix x = {(Half *)address + offset, (int)n, (int)d, (int)length, (int)width, false};
    x.wide = d == 1 && ((n | width) & 7) == 0 && ((u64)x.at & 15) == 0;
    return x;
}

CX_FN Half *at_row(const Matrix &x, int row)
{
    return x.at + (int64_t)row * x.n;
}

CX_FN constexpr int row_bytes(int width)
{
    return width * 2 + 16;
}

// Copies rows [first, first + rows) to a tile, zero outside of the matrix. Aligned ones are
// asynchronous: cx_copy_commit and cx_copy_wait follow.
template <int rows, int width> CX_FN void load_tile(u8 *tile, const Matrix &from, int first)
{
    enum { CHUNKS = width / 8 };
    if (from.wide) {
        u32 to = cx_shared_address(tile);
        CX_NO_UNROLL
        for (int i = threadIdx.x; i < rows * CHUNKS; i += THREADS) {
            int row = row_in_turn<CHUNKS, CHUNKS + 1>(i / CHUNKS), chunk = i % CHUNKS;
            bool inside = first + row < from.length && chunk * 8 < from.width;
            const Half *source = inside ? at_row(from, first + row) + chunk * 8 : from.at;
            cx_copy16(to + row * row_bytes(width) + chunk * 16, source, inside ? 16 : 0);
        }
        return;
    }
    CX_NO_UNROLL
    for (int i = threadIdx.x; i < rows * width; i += THREADS) {
        int row = i / width, column = i % width;
        if (from.d != 1) // lanes along the denser axis
            turned_element<rows>(i, &row, &column);
        bool inside = first + row < from.length && column < from.width;
        u16 bits = inside ? at_row(from, first + row)[(int64_t)column * from.d].bits : (u16)0;
        ((Half *)(tile + row * row_bytes(width)))[column].bits = bits;
    }
}

#if ATT_ROTARY
CX_FN float4 read_some(const u8 *at)
{
    uint2 x = *(const uint2 *)at;
    return make_float4(cx_low_half<ATT_HALF>(x.x), cx_high_half<ATT_HALF>(x.x),
                       cx_low_half<ATT_HALF>(x.y), cx_high_half<ATT_HALF>(x.y));
}
CX_FN void write_some(u8 *at, float x, float y, float z, float w)
{
    uint2 pairs;
    pairs.x = cx_pack_half<ATT_HALF>(x, y);
    pairs.y = cx_pack_half<ATT_HALF>(z, w);
    *(uint2 *)at = pairs;
}

// Turns four neighbours, of columns below `half` with those half the width behind them; half 0: two
// pairs. cosine, sine: of these columns. `back`: transposed.
template <bool back>
CX_FN void turn_some(u8 *at, const float *cosine, const float *sine, int half, float sign)
{
    float4 x = read_some(at), c = *(const float4 *)cosine, s = *(const float4 *)sine;
    if (half == 0) {
        if (back)
            s = make_float4(s.y, s.x, s.w, s.z);
        write_some(at, fmaf(s.x, x.y, c.x * x.x), fmaf(s.y, x.x, c.y * x.y),
                   fmaf(s.z, x.w, c.z * x.z), fmaf(s.w, x.z, c.w * x.w));
        return;
    }
    float4 y = read_some(at + half * 2), far = *(const float4 *)(sine + half);
    s = make_float4(s.x * sign, s.y * sign, s.z * sign, s.w * sign);
    float4 low = back ? far : s, high = back ? s : far;
    write_some(at, fmaf(low.x, y.x, c.x * x.x), fmaf(low.y, y.y, c.y * x.y),
               fmaf(low.z, y.z, c.z * x.z), fmaf(low.w, y.w, c.w * x.w));
    c = *(const float4 *)(cosine + half);
    write_some(at + half * 2, fmaf(high.x, x.x, c.x * y.x), fmaf(high.y, x.y, c.y * y.y),
               fmaf(high.z, x.z, c.z * y.z), fmaf(high.w, x.w, c.w * y.w));
}

// Turns rows [first, first + rows) of a matrix in their tile; 8 neighbouring threads have 8 rows,
// which lie in different banks. What others wrote to the tile is there, and nobody reads it yet.
template <int rows, int width, bool back>
CX_FN void turn_tile(u8 *tile, const RotaryLoad &rotary, int first, int length)
{
    enum { UNITS = width / 4 };
    int turned = (int)rotary.width, half = rotary.partner == PV_ROTARY_PAIRS ? 0 : turned / 2;
    float sign = rotary.partner == PV_ROTARY_NEGATED ? -1.f : 1.f;
    CX_NO_UNROLL
    for (int i = threadIdx.x; rotary.cos && i < rows * UNITS; i += THREADS) {
        int row = i / (8 * UNITS) * 8 + i % 8, column = i / 8 % UNITS * 4;
        if (first + row >= length || column >= (half ? half : turned))
            continue;
        int64_t at = (int64_t)(first + row) * turned + column;
        turn_some<back>(tile + row * row_bytes(width) + column * 2, (const float *)rotary.cos + at,
                        (const float *)rotary.sin + at, half, sign);
    }
}
#endif

// Rows [first, first + rows) of a matrix from a tile.
template <int rows, int width> CX_FN void store_tile(const Matrix &to, const u8 *tile, int first)
{
    enum { CHUNKS = width / 8 };
    CX_NO_UNROLL
    for (int i = threadIdx.x; to.wide && i < rows * CHUNKS; i += THREADS) {
        int row = row_in_turn<CHUNKS, CHUNKS + 1>(i / CHUNKS), chunk = i % CHUNKS;
        if (first + row < to.length && chunk * 8 < to.width)
            *(uint4 *)(at_row(to, first + row) + chunk * 8) =
                *(const uint4 *)(tile + row * row_bytes(width) + chunk * 16);
    }
    CX_NO_UNROLL
    for (int i = threadIdx.x; !to.wide && i < rows * width; i += THREADS) {
        int row = i / width, column = i % width;
        if (to.d != 1)
            turned_element<rows>(i, &row, &column);
        Half value = ((const Half *)(tile + row * row_bytes(width)))[column];
        if (first + row < to.length && column < to.width)
            at_row(to, first + row)[(int64_t)column * to.d] = value;
    }
}

// The left operand's 16 x 16 part: rows from `row`, columns from 16 step.
template <int width> CX_FN void load_left(u32 *a, u32 tile, int row, int step)
{
    int lane = threadIdx.x & 31;
    cx_ldmatrix4(a, tile + (row + (lane & 15)) * row_bytes(width) + step * 32 + (lane >> 4) * 16);
}

// c[block][j] = own rows times rows of a tile: [16, rows] each, over `width`. `row`: the warp's
// first.
template <int rows, int width>
CX_FN void multiply_rows(float (&c)[BLOCKS][rows / 8][4], u32 own, u32 tile, int row)
{
    int lane = threadIdx.x & 31;
    u32 from = tile + ((lane & 7) + (lane >> 4) * 8) * row_bytes(width) + (lane >> 3 & 1) * 16;
    CX_UNROLL
    for (int block = 0; block < BLOCKS; block++) {
        CX_UNROLL
        for (int j = 0; j < rows / 2; j++)
            c[block][j / 4][j % 4] = 0.f;
    }
    CX_UNROLL
    for (int step = 0; step < width / 16; step++) {
        u32 a[BLOCKS][4];
        CX_UNROLL
        for (int block = 0; block < BLOCKS; block++)
            load_left<width>(a[block], own, row + block * 16, step);
        CX_UNROLL
        for (int j = 0; j < rows / 16; j++) {
            u32 b[4];
            cx_ldmatrix4(b, from + j * 16 * row_bytes(width) + step * 32);
            CX_UNROLL
            for (int block = 0; block < BLOCKS; block++) {
                cx_mma_half<ATT_HALF>(c[block][2 * j], a[block], b);
                cx_mma_half<ATT_HALF>(c[block][2 * j + 1], a[block], b + 2);
            }
        }
    }
}

// Results of multiply_rows as left operands: two neighbours a word.
template <int rows> struct Packed {
    u32 at[BLOCKS][rows / 8][2];
};
template <int rows> CX_FN void pack(Packed<rows> &packed, const float (&from)[BLOCKS][rows / 8][4])
{
    CX_UNROLL
    for (int i = 0; i < BLOCKS * rows / 4; i++) {
        const float *pair = from[i / (rows / 4)][i / 2 % (rows / 8)] + i % 2 * 2;
        packed.at[i / (rows / 4)][i / 2 % (rows / 8)][i % 2] =
            cx_pack_half<ATT_HALF>(pair[0], pair[1]);
    }
}

// sums[block] += weights [16, rows] times a tile [rows, width].
template <int rows, int width>
CX_FN void add_product(float (&sums)[BLOCKS][width / 8][4], const Packed<rows> &weight, u32 tile)
{
    int lane = threadIdx.x & 31;
    u32 from = tile + (lane & 15) * row_bytes(width) + (lane >> 4) * 16;
    CX_UNROLL
    for (int j = 0; j < rows / 16; j++) {
        CX_UNROLL
        for (int d = 0; d < width / 16; d++) {
            u32 b[4];
            cx_ldmatrix4_transposed(b, from + j * 16 * row_bytes(width) + d * 32);
            CX_UNROLL
            for (int block = 0; block < BLOCKS; block++) {
                const u32 *a = weight.at[block][2 * j]; // columns + 0, then + 8
                cx_mma_half<ATT_HALF>(sums[block][2 * d], a, b);
                cx_mma_half<ATT_HALF>(sums[block][2 * d + 1], a, b + 2);
            }
        }
    }
}

// Own rows of sums, times factor, into a tile. `row`: the warp's first.
template <int width>
CX_FN void spread(u8 *tile, const float (&sums)[BLOCKS][width / 8][4], float factor, int row)
{
    int lane = threadIdx.x & 31;
    CX_UNROLL
    for (int i = 0; i < 2 * BLOCKS; i++) {
        u8 *to = tile + (row + i * 8 + (lane >> 2)) * row_bytes(width) + (lane & 3) * 4;
        CX_UNROLL
        for (int d = 0; d < width / 8; d++) {
            const float *pair = sums[i / 2][d] + i % 2 * 2;
            *(u32 *)(to + d * 16) = cx_pack_half<ATT_HALF>(pair[0] * factor, pair[1] * factor);
        }
    }
}

// One problem of the batch.
struct Problem {
    u32 i0, i1, i2, number;
};
CX_FN Problem problem_of(const AttentionArgs &a, u32 number)
{
    u32 outer = number / (u32)a.batch2;
    return {outer / (u32)a.batch1, outer % (u32)a.batch1, number % (u32)a.batch2, number};
}
// Where a tensor with such strides has its matrix of the problem.
CX_FN int64_t offset_of(const Problem &p, int64_t stride0, int64_t stride1, int64_t stride2)
{
    return p.i0 * stride0 + p.i1 * stride1 + p.i2 * stride2;
}
CX_FN Matrix matrix_q(const AttentionArgs &a, const Problem &p)
{
    return matrix_of(a.q, offset_of(p, a.q0, a.q1, a.q2), a.q_n, a.q_d, a.n, a.d);
}
CX_FN Matrix matrix_k(const AttentionArgs &a, const Problem &p)
{
    return matrix_of(a.k, offset_of(p, a.k0, a.k1, a.k2), a.k_n, a.k_d, a.m, a.d);
}
CX_FN Matrix matrix_v(const AttentionArgs &a, const Problem &p)
{
    return matrix_of(a.v, offset_of(p, a.v0, a.v1, a.v2), a.v_n, a.v_d, a.m, a.e);
}
CX_FN Matrix matrix_o(const AttentionArgs &a, const Problem &p, int64_t address) // o or do
{
    return matrix_of(address, offset_of(p, a.o0, a.o1, a.o2), a.o_n, a.o_d, a.n, a.e);
}

#if ATT_MASK
// Adds the mask, times log2(e), where it is. The branches keep few loads on their way, and so
// registers free.
template <bool turned, int columns>
CX_FN void add_mask(float (&score)[BLOCKS][columns / 8][4], const AttentionArgs &a,
                    const Problem &p, int row, int column)
{
    typedef CxStored<ATT_MASK - 1>::Element Mask;
    const Mask *mask = (const Mask *)a.mask + offset_of(p, a.mask0, a.mask1, a.mask2);
    int64_t own_stride = turned ? a.mask_m : a.mask_n, stride = turned ? a.mask_n : a.mask_m;
    int rows = (int)(turned ? a.m : a.n), others = (int)(turned ? a.n : a.m);
    CX_UNROLL
    for (int i = 0; i < 4 * BLOCKS; i++) {
        int own = row + i / 2 * 8, other = column + i % 2 * (columns / 2);
        if (own >= rows || other >= others)
            continue;
        const Mask *at = mask + own * own_stride;
        CX_UNROLL
        for (int j = 0; j < columns / 8; j++) {
            float &to = score[i / 4][i % 2 * (columns / 16) + j / 2][i / 2 % 2 * 2 + j % 2];
            float offset = cx_read(at[min(other + j / 2 * 8 + j % 2, others - 1) * stride]);
            to = offset == -INFINITY ? offset : fmaf(offset, CX_LOG2E, to);
        }
    }
}
#endif

// Scores times the scale, in units of log2, minus `level`, plus the mask; -inf where a key does not
// count for a query. Rows are queries and columns keys, or, `turned`, the other way. row, column:
// the first ones of this thread; level: of its first row on, turned: of the warp's first column on;
// null: 0.
template <bool turned, int columns>
CX_FN void mask_scores(float (&score)[BLOCKS][columns / 8][4], const AttentionArgs &a,
                       const Problem &p, int row, int column, const float *level)
{
    int lane = threadIdx.x & 31, first = column - (lane & 3) * 2, own = row - (lane >> 2);
    float scale = cx_real(a.scale) * CX_LOG2E;
    float levels[turned ? columns / 4 : 2 * BLOCKS] = {};
    CX_UNROLL
    for (int i = 0; level && i < (turned ? columns / 4 : 2 * BLOCKS); i++)
        levels[i] = level[turned ? (lane & 3) * 2 + i / 2 * 8 + i % 2 : i * 8];
    CX_UNROLL
    for (int i = 0; i < BLOCKS * columns / 2; i++) {
        int block = i / (columns / 2), j = i / 4 % (columns / 8), e = i % 4;
        float by = levels[turned ? j * 2 + e % 2 : block * 2 + e / 2];
        score[block][j][e] = fmaf(score[block][j][e], scale, -by);
    }
#if ATT_MASK
    add_mask<turned, columns>(score, a, p, row, column);
#else
    (void)p;
#endif
    // Queries beyond the last have no gradient, so where rows are keys all columns count.
    bool whole = turned || first + columns <= (int)a.m;
    if (ATT_CAUSAL)
        whole &= turned ? first >= own + WARP_ROWS - 1 : first + columns - 1 <= own;
    if (whole)
        return;
    CX_UNROLL
    for (int i = 0; i < BLOCKS * columns / 2; i++) {
        int block = i / (columns / 2), j = i / 4 % (columns / 8), e = i % 4;
        int own_row = row + block * 16 + e / 2 * 8, other = column + j * 8 + e % 2;
        int query = turned ? other : own_row, key = turned ? own_row : other;
        if (key > (ATT_CAUSAL ? min(query, (int)a.m - 1) : (int)a.m - 1))
            score[block][j][e] = -INFINITY;
    }
}
