/* T5: LayerNorm over the last axis and an activation, f32. Rows are dense.
 *
 * The mean, then squares about it, then the result: three passes over a row that lies in registers
 * (row_parts.h).
 *
 * Definitions: NORM_ACT, ROW_VECTORS. Registers at 4 quads at most 64: 4 blocks a multiprocessor.
 */
#include "norm_parts.h"
#include "row_parts.h"

CX_FN float row_squares(const Row &row, float mean)
{
    float squares = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_quads(row.c); j++) {
        Quad q = row_quad(row, j);
        CX_UNROLL
        for (int k = 0; k < 4; k++) {
            float away = row_begin(j) + k < row.c ? q.at[k] - mean : 0.f;
            squares += away * away;
        }
    }
    return squares;
}

CX_FN void store_row(const LayerNormArgs &a, const Row &row, float *y, float mean, float rstd)
{
    const float *gamma = (const float *)a.gamma, *beta = (const float *)a.beta;
    bool wide = row.wide && is_aligned(gamma) && is_aligned(beta);
    CX_UNROLL
    for (int j = 0; j < row_quads(row.c); j++) {
        int i = row_begin(j), left = row.c - i;
        Quad q = row_quad(row, j), factor = {{1.f, 1.f, 1.f, 1.f}}, offset = {{0.f, 0.f, 0.f, 0.f}};
        if (gamma)
            factor = load_quad(gamma + i, left, wide);
        if (beta)
            offset = load_quad(beta + i, left, wide);
        CX_UNROLL
        for (int k = 0; k < 4; k++)
            q.at[k] = activate(fmaf((q.at[k] - mean) * rstd, factor.at[k], offset.at[k]));
        store_quad(y + i, q, left, row.wide);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<LayerNormArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    const LayerNormArgs &a = p.args[cx_segment(p.head, &block)];
    int64_t number = (int64_t)block * ROWS + threadIdx.x / TEAM;
    if (number >= a.rows)
        return;
    float *partial = (float *)shared, *y = (float *)a.y + number * a.c;
    const float *x = (const float *)a.x + number * a.c;
    Row row;
    row_open(row, x, (int)a.c, a.c % 4 == 0 && is_aligned(x) && is_aligned(y));
    float sum = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_quads(row.c); j++) {
        Quad q = row_quad(row, j);
        sum += (q.at[0] + q.at[1]) + (q.at[2] + q.at[3]);
    }
    float mean = row_sum(sum, partial) / (float)row.c;
    float squares = row_sum(row_squares(row, mean), partial);
    float rstd = 1.f / sqrtf(squares / (float)row.c + cx_real(a.eps));
    if (threadIdx.x % TEAM == 0 && a.mean)
        ((float *)a.mean)[number] = mean;
    if (threadIdx.x % TEAM == 0 && a.rstd)
        ((float *)a.rstd)[number] = rstd;
    store_row(a, row, y, mean, rstd);
}
