/* T5, backward: the gradient of LayerNorm, computed in f32. Rows are dense; dx may take the place
 * of dy or x.
 *
 *   dx = rstd (gamma dy - (sum(gamma dy) + xhat sum(gamma dy xhat)) / c),
 *   dgamma = sum(dy xhat), dbeta = sum(dy) over rows.
 * The sums of columns are made in parts, each of PARTS at most a run of rows, which lie in the
 * workspace, float [parts, 2, c], and are added in the order of the parts by the last phase.
 * ROW_VECTORS > 0: a block a part; a warp takes a row at a time, keeps it and its columns' sums in
 * registers, and the warps' sums are added in their order. ROW_VECTORS 0: the parts are a phase of
 * their own, a thread a column, before the one that makes dx, a block a row.
 *
 * Definitions: NORM_TYPES, ROW_VECTORS. Registers at 16 elements at most 128: 2 blocks a
 * multiprocessor.
 */
#include "storage.h"
#include "norm_parts.h"
#include "row_parts.h"

enum { PARTS = 512, COLUMNS = 32 }; // COLUMNS: of a block of the last phase

CX_FN int64_t part_rows(int64_t rows) // rows of every part but the last
{
    int64_t each = (rows + PARTS - 1) / PARTS;
    return (each + ROWS - 1) / ROWS * ROWS;
}

typedef NORM_STORED(0) StoredDx;
typedef NORM_STORED(1) StoredDgamma;
typedef NORM_STORED(2) StoredDbeta;
typedef NORM_STORED(3) StoredDy;
typedef NORM_STORED(4) StoredX;
typedef NORM_STORED(7) StoredGamma;
typedef NORM_STORED(8) StoredDgammaAdded;
typedef NORM_STORED(9) StoredDbetaAdded;

struct GradRow {
    Row<StoredDy> dy;
    Row<StoredX> x;
    float mean, rstd;
};

CX_FN void open_rows(GradRow &row, const LayerNormGradArgs &a, int64_t number)
{
    const StoredDy *dy = (const StoredDy *)a.dy + number * a.c;
    const StoredX *x = (const StoredX *)a.x + number * a.c;
    bool wide = a.c % RUN == 0 && is_aligned(dy) && is_aligned(x) &&
                is_aligned((const void *)a.dx) && is_aligned((const void *)a.gamma);
    row_open(row.dy, dy, (int)a.c, wide);
    row_open(row.x, x, (int)a.c, wide);
    row.mean = ((const float *)a.mean)[number];
    row.rstd = ((const float *)a.rstd)[number];
}

CX_FN Run gamma_run(const LayerNormGradArgs &a, const Row<StoredX> &row, int j)
{
    Run one;
    CX_UNROLL
    for (int k = 0; k < RUN; k++)
        one.at[k] = 1.f;
    int i = row_begin(j);
    return a.gamma ? load_run((const StoredGamma *)a.gamma + i, row.c - i, row.wide) : one;
}

CX_FN void grad_row(const LayerNormGradArgs &a, const GradRow &row, int64_t number, float *partial)
{
    float plain = 0.f, product = 0.f;
    CX_UNROLL
    for (int j = 0; j < row_runs(row.x.c); j++) {
        Run dy = row_run(row.dy, j), x = row_run(row.x, j), gamma = gamma_run(a, row.x, j);
        CX_UNROLL
        for (int k = 0; k < RUN; k++) {
            float up = dy.at[k] * gamma.at[k]; // 0 beyond the row
            plain += up;
            product += up * ((x.at[k] - row.mean) * row.rstd);
        }
    }
    float level = -row_sum(plain, partial) / (float)row.x.c * row.rstd;
    float along = -row_sum(product, partial) / (float)row.x.c * row.rstd * row.rstd;
    CX_UNROLL
    for (int j = 0; j < row_runs(row.x.c); j++) {
        Run dy = row_run(row.dy, j), x = row_run(row.x, j), gamma = gamma_run(a, row.x, j), dx;
        CX_UNROLL
        for (int k = 0; k < RUN; k++)
            dx.at[k] =
                fmaf(dy.at[k] * gamma.at[k], row.rstd, fmaf(x.at[k] - row.mean, along, level));
        int i = row_begin(j);
        store_run((StoredDx *)a.dx + number * a.c + i, dx, row.x.c - i, row.x.wide);
    }
}

#if ROW_VECTORS
// What the rows of a warp add to the sums of its columns.
struct ColumnSums {
    Run gamma[KEPT], beta[KEPT];
};

CX_FN void add_row(ColumnSums &sums, const GradRow &row)
{
    CX_UNROLL
    for (int j = 0; j < KEPT; j++) {
        Run dy = row_run(row.dy, j), x = row_run(row.x, j);
        CX_UNROLL
        for (int k = 0; k < RUN; k++) {
            sums.gamma[j].at[k] += dy.at[k] * ((x.at[k] - row.mean) * row.rstd);
            sums.beta[j].at[k] += dy.at[k];
        }
    }
}

// Where sum i lies in shared memory: fours of a warp's runs side by side, and where a run has two
// of them those 16 banks apart.
CX_FN int place_of(int i)
{
    int four = i % RUN / 4;
    return i / (32 * RUN) * (32 * RUN) + four * 128 + ((i / RUN * 4 + four * 16) & 127) + i % 4;
}

// The sums of all warps, in their order; shared: [2, 32 RUN KEPT].
CX_FN void store_sums(const ColumnSums &sums, float *to, int c, float *shared)
{
    CX_NO_UNROLL
    for (int warp = 0; warp < ROWS; warp++) {
        if (warp == (int)threadIdx.x / 32) {
            CX_UNROLL
            for (int j = 0; j < RUN * KEPT; j += 4) {
                float *at = shared + place_of(row_begin(j / RUN) + j % RUN);
                float gamma[4] = {0.f, 0.f, 0.f, 0.f}, beta[4] = {0.f, 0.f, 0.f, 0.f};
                if (warp) {
                    cx_read4(gamma, at);
                    cx_read4(beta, at + 32 * RUN * KEPT);
                }
                CX_UNROLL
                for (int e = 0; e < 4; e++) {
                    gamma[e] += sums.gamma[j / RUN].at[j % RUN + e];
                    beta[e] += sums.beta[j / RUN].at[j % RUN + e];
                }
                cx_write4(at, gamma);
                cx_write4(at + 32 * RUN * KEPT, beta);
            }
        }
#ifndef FAULT_WARP_ORDER
        __syncthreads();
#endif
    }
    for (int i = threadIdx.x; i < c; i += THREADS) {
        to[i] = shared[place_of(i)];
        to[c + i] = shared[32 * RUN * KEPT + place_of(i)];
    }
}

// Phase 0: a block a part.
extern "C" __global__ void __launch_bounds__(THREADS, KEPT * RUN <= 16 ? 2 : 1)
    CX_NAME(const __grid_constant__ CxLaunch<LayerNormGradArgs> p)
{
    CX_SHARED(shared);
    u32 part;
    u32 segment = cx_segment(p.head, &part);
    const LayerNormGradArgs &a = p.args[segment];
    int64_t each = part_rows(a.rows), end = (part + 1) * each;
    if (end > a.rows)
        end = a.rows;
    ColumnSums sums = {};
    CX_NO_UNROLL
    for (int64_t number = part * each + threadIdx.x / 32; number < end; number += ROWS) {
        GradRow row;
        open_rows(row, a, number);
        add_row(sums, row);
        grad_row(a, row, number, nullptr);
    }
    if (a.dgamma || a.dbeta)
        store_sums(sums, (float *)p.head.work[segment] + (int64_t)part * 2 * a.c, (int)a.c,
                   (float *)shared);
}
#define FINISH CX_NAME_1
#else

// Phase 0: a block THREADS columns of a part.
extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<LayerNormGradArgs> p)
{
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const LayerNormGradArgs &a = p.args[segment];
    u32 blocks = ((u32)a.c + THREADS - 1) / THREADS, part = block / blocks;
    int64_t column = block % blocks * THREADS + threadIdx.x;
    int64_t each = part_rows(a.rows), end = (part + 1) * each;
    if (column >= a.c)
        return;
    float gamma = 0.f, beta = 0.f;
    for (int64_t row = part * each; row < (end < a.rows ? end : a.rows); row++) {
        float up = cx_read(((const StoredDy *)a.dy)[row * a.c + column]);
        float away =
            cx_read(((const StoredX *)a.x)[row * a.c + column]) - ((const float *)a.mean)[row];
        gamma += up * (away * ((const float *)a.rstd)[row]);
        beta += up;
    }
    float *to = (float *)p.head.work[segment] + (int64_t)part * 2 * a.c + column;
    to[0] = gamma;
    to[a.c] = beta;
}

// Phase 1: a block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<LayerNormGradArgs> p)
{
    CX_SHARED(shared);
    u32 number;
    const LayerNormGradArgs &a = p.args[cx_segment(p.head, &number)];
    GradRow row;
    open_rows(row, a, number);
    grad_row(a, row, number, (float *)shared);
}
#define FINISH CX_NAME_2
#endif

// Last phase: a block 32 columns; its warps take every eighth part, then their sums are added.
extern "C" __global__ void __launch_bounds__(THREADS)
    FINISH(const __grid_constant__ CxLaunch<LayerNormGradArgs> p)
{
    CX_SHARED(shared);
    float *sums = (float *)shared; // [2, THREADS]
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const LayerNormGradArgs &a = p.args[segment];
    int64_t column = (int64_t)block * COLUMNS + threadIdx.x % COLUMNS, each = part_rows(a.rows);
    const float *from = (const float *)p.head.work[segment] + column;
    float gamma = 0.f, beta = 0.f;
    for (int64_t part = threadIdx.x / COLUMNS; column < a.c && part * each < a.rows;
         part += THREADS / COLUMNS) {
        gamma += from[part * 2 * a.c];
        beta += from[part * 2 * a.c + a.c];
    }
    sums[threadIdx.x] = gamma;
    sums[THREADS + threadIdx.x] = beta;
    __syncthreads();
    if (threadIdx.x >= COLUMNS || column >= a.c)
        return;
    gamma = a.dgamma_added ? cx_read(((const StoredDgammaAdded *)a.dgamma_added)[column]) : 0.f;
    beta = a.dbeta_added ? cx_read(((const StoredDbetaAdded *)a.dbeta_added)[column]) : 0.f;
    for (int i = threadIdx.x; i < THREADS; i += COLUMNS) {
        gamma += sums[i];
        beta += sums[THREADS + i];
    }
    if (a.dgamma)
        cx_write((StoredDgamma *)a.dgamma + column, gamma);
    if (a.dbeta)
        cx_write((StoredDbeta *)a.dbeta + column, beta);
}
#undef FINISH
