/* Softmax over the last axis, computed in f32. Rows are dense; y may be x.
 *
 * The maximum, the sum of exponentials, the result: passes over a row in registers (row_parts.h).
 *
 * Definitions: NORM_TYPES, ROW_VECTORS. Registers at 16 elements at most 80: 3 blocks a
 * multiprocessor.
 */
#include "storage.h"
#include "norm_parts.h"
#include "row_parts.h"

typedef NORM_STORED(0) StoredY;
typedef NORM_STORED(1) StoredX;

// exp(x - most); elements beyond the row are 0
CX_FN Run run_weights(const Row<StoredX> &row, int j, float most)
{
    Run q = row_run(row, j);
    CX_UNROLL
    for (int k = 0; k < RUN; k++)
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
    float *partial = (float *)shared;
    StoredY *y = (StoredY *)a.y + number * a.c;
    const StoredX *x = (const StoredX *)a.x + number * a.c;
    Row<StoredX> row;
    row_open(row, x, (int)a.c, a.c % RUN == 0 && is_aligned(x) && is_aligned(y));
    float most = -INFINITY, sum = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_runs(row.c); j++) {
        Run q = row_run(row, j);
        CX_UNROLL
        for (int k = 0; k < RUN; k++)
            if (row_begin(j) + k < row.c)
                most = fmaxf(most, q.at[k]);
    }
    most = row_max(most, partial);
    CX_UNROLL
    for (int j = 0; j < row_runs(row.c); j++) {
        Run q = run_weights(row, j, most);
        sum += run_sum(q);
    }
    float factor = 1.f / row_sum(sum, partial);
    CX_UNROLL
    for (int j = 0; j < row_runs(row.c); j++) {
        Run q = run_weights(row, j, most);
        CX_UNROLL
        for (int k = 0; k < RUN; k++)
            q.at[k] *= factor;
        store_run(y + row_begin(j), q, row.c - row_begin(j), row.wide);
    }
}
