/* Softmax over the last axis, f32. Rows are dense; y may be x.
 *
 * The maximum, the sum of exponentials, the result: passes over a row in registers (row_parts.h).
 *
 * Definitions: ROW_VECTORS. Registers at 4 quads at most 40: 6 blocks a multiprocessor.
 */
#include "norm_parts.h"
#include "row_parts.h"

// exp(x - most); elements beyond the row are 0
CX_FN Quad quad_weights(const Row &row, int j, float most)
{
    Quad q = row_quad(row, j);
    CX_UNROLL
    for (int k = 0; k < 4; k++)
        q.at[k] = row_begin(j) + k < row.c ? expf(q.at[k] - most) : 0.f;
    return q;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<SoftmaxArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    const SoftmaxArgs &a = p.args[cx_segment(p.head, &block)];
    int64_t number = (int64_t)block * ROWS + threadIdx.x / TEAM;
    if (number >= a.rows)
        return;
    float *partial = (float *)shared, *y = (float *)a.y + number * a.c;
    const float *x = (const float *)a.x + number * a.c;
    Row row;
    row_open(row, x, (int)a.c, a.c % 4 == 0 && is_aligned(x) && is_aligned(y));
    float most = -INFINITY, sum = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_quads(row.c); j++) {
        Quad q = row_quad(row, j);
        CX_UNROLL
        for (int k = 0; k < 4; k++)
            if (row_begin(j) + k < row.c)
                most = fmaxf(most, q.at[k]);
    }
    most = row_max(most, partial);
    CX_UNROLL
    for (int j = 0; j < row_quads(row.c); j++) {
        Quad q = quad_weights(row, j, most);
        if (ROW_VECTORS)
            row.kept[ROW_VECTORS ? j : 0] = q;
        sum += (q.at[0] + q.at[1]) + (q.at[2] + q.at[3]);
    }
    float factor = 1.f / row_sum(sum, partial);
    CX_UNROLL
    for (int j = 0; j < row_quads(row.c); j++) {
        Quad q = ROW_VECTORS ? row_quad(row, j) : quad_weights(row, j, most);
        CX_UNROLL
        for (int k = 0; k < 4; k++)
            q.at[k] *= factor;
        store_quad(y + row_begin(j), q, row.c - row_begin(j), row.wide);
    }
}
