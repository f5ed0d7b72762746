/* T5: LayerNorm over the last axis and an activation, computed in f32. Rows are dense.
 *
 * The mean, then squares about it, then the result: three passes over a row that lies in registers
 * (row_parts.h).
 *
 * Definitions: NORM_ACT, NORM_TYPES, ROW_VECTORS. Registers at 16 elements at most 80: 3 blocks a
 * multiprocessor.
 */
#include "storage.h"
#include "norm_parts.h"
#include "row_parts.h"

typedef NORM_STORED(0) StoredY;
typedef NORM_STORED(3) StoredX;
typedef NORM_STORED(4) StoredGamma;
typedef NORM_STORED(5) StoredBeta;

CX_FN float row_squares(const Row<StoredX> &row, float mean)
{
    float squares = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_runs(row.c); j++) {
        Run q = row_run(row, j);
        CX_UNROLL
        for (int k = 0; k < RUN; k++) {
            float away = row_begin(j) + k < row.c ? q.at[k] - mean : 0.f;
            squares += away * away;
        }
    }
    return squares;
}

CX_FN void store_row(const LayerNormArgs &a, const Row<StoredX> &row, StoredY *y, float mean,
                     float rstd)
{
    const StoredGamma *gamma = (const StoredGamma *)a.gamma;
    const StoredBeta *beta = (const StoredBeta *)a.beta;
    bool wide = row.wide && is_aligned(gamma) && is_aligned(beta);
    CX_UNROLL
    for (int j = 0; j < row_runs(row.c); j++) {
        int i = row_begin(j), left = row.c - i;
        Run q = row_run(row, j), factor, offset = {};
        CX_UNROLL
        for (int k = 0; k < RUN; k++)
            factor.at[k] = 1.f;
        if (gamma)
            factor = load_run(gamma + i, left, wide);
        if (beta)
            offset = load_run(beta + i, left, wide);
        CX_UNROLL
        for (int k = 0; k < RUN; k++)
            q.at[k] = activate(fmaf((q.at[k] - mean) * rstd, factor.at[k], offset.at[k]));
        store_run(y + i, q, left, row.wide);
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
    float *partial = (float *)shared;
    StoredY *y = (StoredY *)a.y + number * a.c;
    const StoredX *x = (const StoredX *)a.x + number * a.c;
    Row<StoredX> row;
    row_open(row, x, (int)a.c, a.c % RUN == 0 && is_aligned(x) && is_aligned(y));
    float sum = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_runs(row.c); j++) {
        Run q = row_run(row, j);
        sum += run_sum(q);
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
