/* T2: convolutions of one to three axes and their gradients in bf16 or f16 with f32 sums
 * (ConvArgs), on the tile product of mma_product.h.
 *
 * As conv_f32.cu with CONV_LAST: positions are the rows of fprop and dgrad and their reduction runs
 * over (tap, channel); columns of wgrad are (tap, channel), and its reduction runs over the
 * positions of all images. Where channels are dense and come in eights, and w lies channels last,
 * everything is gathered by cp.async, 16 bytes at a time, and a position outside the image is a
 * copy of no bytes, which writes zeros. Other layouts and storages go element by element.
 *
 * Definitions: those of mma_product.h, and
 *   CONV_MODE CONV_AXES CONV_STRIDED CONV_OUT_4 CONV_ACT CONV_RESAMPLED   as in conv_f32.cu
 *   CONV_LAST     1
 *   CONV_X_8      1: images that are summed over are copied in chunks; wgrad: x
 *   CONV_W_8      1: w is; wgrad: y
 *   CONV_W_LAST   1: w lies channels last
 *   TILE_STATS    fprop: 1: norm tables of y, as it is stored, are made (norm_stats.h)
 *   CONV_SOURCE CONV_WEIGHT CONV_RESULT CONV_RESIDUAL CONV_BIAS   PvStorage of each;
 *   wgrad: of x, y, w
 */
#include "mma_product.h"
typedef CxStored<CONV_SOURCE>::Element Source;
typedef CxStored<CONV_WEIGHT>::Element Weight;
typedef CxStored<CONV_RESULT>::Element Result;
typedef CxStored<CONV_RESIDUAL>::Element Residual;
typedef CxStored<CONV_BIAS>::Element Bias;
enum { BY_TAP = 1 };
#include "conv_problem.h"
#include "tile_phases.h"

#if CONV_MODE != 2

// Rows: positions; the reduction: (tap, channel). The element of an image that is up-sampled is
// found for each chunk, from the coordinates that tell whether it is there.
struct Images {
    const Source *base;
    int size, in[3];
    long long channel_step;
    const uint4 *table;
    Divider channels;
    const Problem *problem;
    struct Row {
        const Source *from;
        int at[3];
    };
    struct Step {
        long long offset;
        u32 tap;
        bool there;
    };

    __device__ void set(const Problem &problem_, const uint4 *table_)
    {
        problem = &problem_;
        base = problem_.source;
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++)
            in[axis] = problem_.in[axis];
        size = problem_.channels * problem_.taps;
        channel_step = problem_.source_channel;
        table = table_;
        channels.set(problem_.channels);
    }
    __device__ Row row(int position)
    {
        Row row;
        row.from = source_of(*problem, position, row.at);
#if CONV_RESAMPLED // its image
        int image = position < problem->columns ? position / problem->positions : 0;
        row.from = base + image * problem->source_image;
#endif
        return row;
    }
    __device__ Step step(int first, int within)
    {
        int k = first + within;
        int channel, tap = channels.split(min(k, size - 1), &channel);
        uint4 entry = table[tap];
        long long offset = channel * channel_step;
#if !CONV_RESAMPLED
        offset += (int)entry.y;
#endif
        return {offset, entry.x, k < size};
    }
    __device__ const Source *at(const Row &row, const Step &step, bool *inside)
    {
        *inside = step.there && tap_inside(row.at, step.tap, in);
#if CONV_RESAMPLED
        int at[3] = {tap_at(row.at, step.tap, 0), tap_at(row.at, step.tap, 1),
                     tap_at(row.at, step.tap, 2)};
#ifdef FAULT_CONV_CLASS // all positions are taken for the first class
        for (int axis = 0; axis < 3; axis++)
            at[axis] = (row.at[axis] & -(1 << problem->up(axis))) + at[axis] - row.at[axis];
#endif
        long long element = source_element(*problem, at) * problem->source_position;
        return *inside ? row.from + element + step.offset : base;
#else
        return *inside ? row.from + step.offset : base;
#endif
    }
};

// Rows: channels of the result; the reduction: (tap, channel).
struct Weights {
    const Weight *base;
    int rows, size;
    long long row_step, channel_step, tap_step;
    const uint4 *table;
    Divider channels;
    struct Row {
        long long offset;
        bool there;
    };
    typedef Row Step;

    __device__ void set(const Problem &problem, const ConvArgs &args, const uint4 *table_)
    {
        long long taps = product3(args.kernel);
        int inner = CONV_MODE == 1 ? problem.rows : problem.channels;   // c_in of the group
        long long of_inner = CONV_W_LAST ? 1 : taps, of_outer = inner * taps;
        base = problem.w;
        rows = problem.rows;
        size = problem.channels * problem.taps;
        row_step = CONV_MODE == 1 ? of_inner : of_outer;
        channel_step = CONV_MODE == 1 ? of_outer : of_inner;
        tap_step = CONV_W_LAST ? inner : 1;
        table = table_;
        channels.set(problem.channels);
    }
    __device__ Row row(int number)
    {
        return {number * row_step, number < rows};
    }
    __device__ Step step(int first, int within)
    {
        int k = first + within;
        int channel, tap = channels.split(min(k, size - 1), &channel);
        return {channel * channel_step + (int)table[tap].z * tap_step, k < size};
    }
    __device__ const Weight *at(const Row &row, const Step &step, bool *inside)
    {
        *inside = row.there && step.there;
        return base + (*inside ? row.offset + step.offset : 0);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 64 ? 4 : 1)
    CX_NAME(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    Problem &problem = *(Problem *)(shared + STAGES * STAGE);
    uint4 *table = (uint4 *)(shared + STAGES * STAGE + PROBLEM_BYTES);
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    begin_problem(problem, p.head, segment, args, block);
    if (is_empty(problem))
        return;
    make_taps(problem, args, table);
    int steps = cut(problem.channels * problem.taps, TILE_K);
    Steps own = Steps::of(steps, problem.part, problem.parts);
    Operand<Images, TILE_M, true, CONV_X_8> x;
    Operand<Weights, TILE_N, CONV_MODE == 0, CONV_W_8> w;
    x.source.set(problem, table);
    w.source.set(problem, args, table);
    x.set(problem.m0);
    w.set(problem.n0);
    TileSums sums;
    tile_product<true, CONV_MODE == 0>(sums, x, w, shared, own.first, own.end);
    finish_tile(sums, p, segment, problem, problem, problem.parts > 1, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 64 ? 4 : 1)
    CX_NAME_1(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    Problem problem;
    set_problem(problem, p.args[segment], (int)block / TILE_BLOCKS);
    if (!is_empty(problem))
        finish_parts(p, segment, 0, block, problem, shared);
}
#else

// Rows: output channels; the reduction: positions of all images.
struct Gradients {
    const Weight *base;
    int rows, size;
    long long row_step, image_step, position_step;
    Divider positions;
    struct Row {
        long long offset;
        bool there;
    };
    typedef Row Step;

    __device__ void set(const Problem &problem, const ConvArgs &args)
    {
        base = (const Weight *)args.y +
               (long long)problem.group * problem.rows * args.y_channel;
        rows = problem.rows;
        size = problem.columns;
        row_step = args.y_channel;
        image_step = args.y_image;
        position_step = args.y_position;
        positions.set(problem.positions);
    }
    __device__ Row row(int number)
    {
        return {number * row_step, number < rows};
    }
    __device__ Step step(int first, int within)
    {
        int k = first + within;
        int position, image = positions.split(k, &position);
        return {image * image_step + position * position_step, k < size};
    }
    __device__ const Weight *at(const Row &row, const Step &step, bool *inside)
    {
        *inside = row.there && step.there;
        return base + (*inside ? row.offset + step.offset : 0);
    }
};

// Rows: (tap, channel); the reduction: positions of all images.
struct Columns {
    const Problem *problem;
    int rows, in[3], kernel[2];
    struct Row {
        long long offset;
        u32 tap;
        bool there;
    };
    struct Step {
        const Source *from;
        int at[3];
    };

    __device__ void set(const Problem &problem_, const ConvArgs &args)
    {
        problem = &problem_;
        rows = problem_.channels * problem_.taps;
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++)
            in[axis] = problem_.in[axis];
        kernel[0] = (int)args.kernel[1];
        kernel[1] = (int)args.kernel[2];
    }
    __device__ Row row(int number)
    {
        int tap = number / problem->channels, channel = number % problem->channels;
        int w = tap % kernel[1], h = tap / kernel[1] % kernel[0], d = tap / kernel[1] / kernel[0];
        long long element = (d * in[1] + h) * in[2] + w;
        return {channel * problem->source_channel + element * problem->source_position,
                pack_tap(d, h, w), number < rows};
    }
    __device__ Step step(int first, int within)
    {
        int k = first + within;
        Step step;
        step.from = source_of(*problem, k, step.at);
        return step;
    }
    __device__ const Source *at(const Row &row, const Step &step, bool *inside)
    {
        *inside = row.there && tap_inside(step.at, row.tap, in);
        return *inside ? step.from + row.offset : problem->source;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 64 ? 4 : 1)
    CX_NAME(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    Problem &problem = *(Problem *)(shared + STAGES * STAGE);
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    begin_problem(problem, p.head, segment, args, block);
    int steps = cut(problem.columns, TILE_K);
    Steps own = Steps::of(steps, problem.part, problem.parts);
    Operand<Gradients, TILE_M, false, CONV_W_8> y;
    Operand<Columns, TILE_N, false, CONV_X_8> x;
    y.source.set(problem, args);
    x.source.set(problem, args);
    y.set(problem.m0);
    x.set(problem.n0);
    TileSums sums;
    tile_product<false, false>(sums, y, x, shared, own.first, own.end);
    bool is_part = problem.parts > 1 || args.sum != 0;
    finish_tile(sums, p, segment, problem, problem, is_part, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 64 ? 4 : 1)
    CX_NAME_1(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    Problem problem;
    set_wgrad(problem, args, (int)block / TILE_BLOCKS);
    finish_parts(p, segment, args.sum, block, problem, nullptr);
}
#endif
