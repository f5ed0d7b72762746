/* Convolutions of one to three axes, and their gradients, in exact f32 (ConvArgs): implicit matrix
 * products on the tiles of gemm_tile.h.
 *
 *   fprop    y[o, p]     = sum over (c, tap) of w[o, c, tap] x[c, p stride + tap - pad]
 *   dgrad    x[c, p]     = sum over (o, tap) of w[o, c, tap] y[o, (p + pad - tap) / stride]
 *   wgrad    w[o, c tap] = sum over p of y[o, p] x[c, p stride + tap - pad]
 *
 * The positions of dgrad fall into phases, one for each remainder modulo the strides, which meet
 * different taps: a tile belongs to one phase and its reduction has just the taps of that phase.
 * Columns of the matrix of images are never laid out: a table in shared memory has, for each tap,
 * its step in the source and its place in w, and a thread knows the first source element of its
 * position. With CONV_LAST, where channels are dense, positions are the rows of the product and the
 * reduction runs over (tap, channel); else positions are the columns, and it runs over (channel,
 * tap). Products of groups and parts of the reduction (phase 1 of the launch adds them) are blocks.
 *
 * Definitions: those of gemm_tile.h, and
 *   CONV_MODE     0 fprop, 1 dgrad, 2 wgrad
 *   CONV_LAST     1: channels dense (not for wgrad)
 *   CONV_AXES     2: the first axis has size, kernel and stride 1; or 3
 *   CONV_STRIDED  dgrad: 1: strides are not all 1
 *   CONV_X        how the images that are summed over are read; 0: gathered; 1: kernel 1, stride 1,
 *                 no padding: as a matrix, 16 bytes at a time
 *   CONV_X_4      1: 4 channels at a time (CONV_LAST)
 *   CONV_W        0: w is gathered, 1: dense along the reduction, 2: along the rows of the result;
 *                 wgrad: the same of y
 *   CONV_W_4      1: 16 bytes at a time
 *   CONV_OUT_4    1: the result is written, and the residual read, so
 *   CONV_ACT      PvAct
 *   CONV_RESAMPLED  1: x and the residual may be up-sampled on the way (x_shift, residual_shift);
 *                 where this is not defined, all shifts are 0
 *   TILE_NORM     x is normalized (norm_load.h) in segments with a table; where this is not
 *                 defined, none has one
 *   TILE_STATS    1: norm tables of y are made (norm_stats.h), of segments that want one
 */
#include "gemm_tile.h"
typedef float Source, Weight, Result, Residual, Bias;
enum { BY_TAP = 0 };
#include "conv_problem.h"
#include "tile_phases.h"
#if TILE_NORM
#include "norm_load.h"

// Of the image of a position of the result, from the group's first channel on.
CX_FN NormSource norm_of(const Problem &problem, const ConvArgs &args, int position)
{
    int image = position < problem.columns ? position / problem.positions : 0;
    return NormSource::of(args.norm, image, (long long)problem.group * problem.channels);
}
#endif

/* ---- loaders of images ---- */

// Positions in neighbouring lanes; a thread has one, and every THREADS / ROWS-th k, (channel, tap).
template <int ROWS, int STRIDE> struct GatherRows {
    enum {
        ELEMENTS = ROWS * TILE_K / THREADS,
        APART = THREADS / ROWS,
#if TILE_NORM
        COUNT = 3 * ELEMENTS,
#else
        COUNT = ELEMENTS,
#endif
    };
    const float *from;
    int at[3], in[3], size;
    long long channel_step;
    const uint4 *table;
    Divider taps;
#if TILE_NORM
    NormSource norm;

    __device__ void set_norm(const Problem &problem, const ConvArgs &args, int first)
    {
        norm = norm_of(problem, args, first + (int)threadIdx.x % ROWS);
    }
#endif

    __device__ void set(const Problem &problem, int first, const uint4 *table_)
    {
        from = source_of(problem, first + (int)threadIdx.x % ROWS, at);
        table = table_ + taps_of(problem, at);
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++)
            in[axis] = problem.in[axis];
        size = problem.channels * problem.taps;
        channel_step = problem.source_channel;
        taps.set(problem.taps);
    }
    __device__ void load(float *r, int step)
    {
        int k0 = step * TILE_K + in_turn<ROWS>((int)threadIdx.x / ROWS);
        CX_UNROLL
        for (int i = 0; i < ELEMENTS; i++) {
            int k = k0 + i * APART, tap, channel = taps.split(k, &tap);
            uint4 entry = table[tap];
            bool inside = k < size && tap_inside(at, entry.x, in);
            r[i] = inside ? from[channel * channel_step + (int)entry.y] : 0.f;
#if TILE_NORM
            norm.get(r + ELEMENTS + i, r + 2 * ELEMENTS + i, channel, inside);
#endif
        }
    }
    __device__ void put(const float *r, float *to)
    {
        int k0 = in_turn<ROWS>((int)threadIdx.x / ROWS);
#if TILE_NORM
        bool normed = norm.is_there();
#endif
        CX_UNROLL
        for (int i = 0; i < ELEMENTS; i++) {
            float value = r[i];
#if TILE_NORM
            value = normed ? normalize(value, r[ELEMENTS + i], r[2 * ELEMENTS + i]) : value;
#endif
            to[(k0 + i * APART) * STRIDE + (int)threadIdx.x % ROWS] = value;
        }
    }
};

// Fours of positions of one image, one matrix: element (position, channel) dense along positions.
#if TILE_NORM
template <int ROWS, int STRIDE> using FourRows = NormedRows<DenseRows<ROWS, STRIDE, true>>;
#else
template <int ROWS, int STRIDE> using FourRows = DenseRows<ROWS, STRIDE, true>;
#endif
template <int ROWS, int STRIDE> struct Pointwise : FourRows<ROWS, STRIDE> {
#if TILE_NORM
    __device__ void set_norm(const Problem &problem, const ConvArgs &args, int first)
    {
        this->norm = norm_of(problem, args, first + this->row_of(0));
    }
#endif
    __device__ void set(const Problem &problem, int first, const uint4 *)
    {
        int at[3], row = this->row_of(0);
        this->base = source_of(problem, first + row, at) - row;
        this->stride = problem.source_channel;
        this->rows = problem.columns - first;
        this->size = problem.channels;
    }
};

// Channels dense: fours of k, (tap, channel), that two neighbouring lanes share a position of.
#if TILE_NORM
template <class Dense> using FourChannels = NormedK<Dense>;
#else
template <class Dense> using FourChannels = Dense;
#endif
template <int ROWS, int STRIDE, bool VECTOR>
struct GatherLast : FourChannels<DenseK<ROWS, STRIDE, VECTOR>> {
    typedef DenseK<ROWS, STRIDE, VECTOR> Dense;
    const float *from[Dense::LOADS];
    int at[Dense::LOADS][3], in[3];
    const uint4 *table[Dense::LOADS];
    Divider channels;
#if TILE_NORM
    NormSource norms[Dense::LOADS];

    __device__ void set_norm(const Problem &problem, const ConvArgs &args, int first)
    {
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++)
            norms[i] = norm_of(problem, args, first + this->row_of(i));
        this->norm = norms[0];
    }
#endif

    __device__ void set(const Problem &problem, int first, const uint4 *table_)
    {
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++) {
            from[i] = source_of(problem, first + this->row_of(i), at[i]);
            table[i] = table_ + taps_of(problem, at[i]);
        }
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++)
            in[axis] = problem.in[axis];
        this->size = problem.channels * problem.taps;
        channels.set(problem.channels);
    }
    __device__ void load(float *r, int step)
    {
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++) {
            CX_UNROLL
            for (int e = 0; e < 4; e += VECTOR ? 4 : 1) {
                int k = step * TILE_K + this->k_of(i) + e, channel;
                int tap = channels.split(min(k, this->size - 1), &channel);
                uint4 entry = table[i][tap];
                bool inside = k < this->size && tap_inside(at[i], entry.x, in);
                const float *address = from[i] + (int)entry.y + channel;
                if (VECTOR)
                    load_four<true>(r + 4 * i, address, inside ? 4 : 0);
                else
                    r[4 * i + e] = inside ? *address : 0.f;
#if TILE_NORM
                const float *scale = norms[i].scale + channel, *shift = scale + norms[i].shift;
                float *a = r + Dense::COUNT + 4 * i, *d = a + Dense::COUNT;
                if (VECTOR) {
                    int there = inside && norms[i].shift != 0 ? 4 : 0;
                    load_four<true>(a, scale, there);
                    load_four<true>(d, shift, there);
                } else {
                    norms[i].get(a + e, d + e, channel, inside);
                }
#endif
            }
        }
    }
};

/* ---- loaders of w ---- */

// Rows of the result in neighbouring lanes.
template <int ROWS, int STRIDE> struct GatherW {
    enum {
        COUNT = ROWS * TILE_K / THREADS,
        APART = THREADS / ROWS,
    };
    const float *from;
    int size;
    long long channel_step;
    bool there;
    const uint4 *table;
    Divider divider;

    __device__ void set(const Problem &problem, const ConvArgs &args, int first,
                        const uint4 *table_)
    {
        int volume = product3(args.kernel), row = first + (int)threadIdx.x % ROWS;
        there = row < problem.rows;
        from = problem.w +
               (long long)(there ? row : 0) * volume * (CONV_MODE == 1 ? 1 : problem.channels);
        channel_step = (long long)volume * (CONV_MODE == 1 ? problem.rows : 1);
        size = problem.channels * problem.taps;
        table = table_;
        divider.set(CONV_LAST ? problem.channels : problem.taps);
    }
    __device__ void load(float *r, int step)
    {
        int k0 = step * TILE_K + in_turn<ROWS>((int)threadIdx.x / ROWS);
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            int k = k0 + i * APART, rest, quotient = divider.split(min(k, size - 1), &rest);
            int tap = CONV_LAST ? quotient : rest, channel = CONV_LAST ? rest : quotient;
            u32 in_w = table[tap].z;
            r[i] = there && k < size ? from[channel * channel_step + (int)in_w] : 0.f;
        }
    }
    __device__ void put(const float *r, float *to)
    {
        int k0 = in_turn<ROWS>((int)threadIdx.x / ROWS);
        CX_UNROLL
        for (int i = 0; i < COUNT; i++)
            to[(k0 + i * APART) * STRIDE + (int)threadIdx.x % ROWS] = r[i];
    }
};

// w as a matrix [rows, channels taps], or with one tap [channels, rows].
template <class Dense> struct PlainW : Dense {
    __device__ void set(const Problem &problem, const ConvArgs &args, int first, const uint4 *)
    {
        this->stride = CONV_W == 1 ? (long long)problem.channels * product3(args.kernel)
                                   : (long long)problem.rows;
        this->base = problem.w + first * (CONV_W == 1 ? this->stride : 1);
        this->rows = problem.rows - first;
        this->size = problem.channels * problem.taps;
    }
};

/* ---- fprop and dgrad ---- */

enum { W_STRIDE = CONV_LAST ? ROW_B : ROW_A };
enum { X_ROWS = CONV_LAST ? TILE_M : TILE_N, X_STRIDE = CONV_LAST ? ROW_A : ROW_B };

#if CONV_MODE != 2
#if CONV_W == 0
typedef GatherW<W_ROWS, W_STRIDE> LoadW;
#elif CONV_W == 1
typedef PlainW<DenseK<W_ROWS, W_STRIDE, CONV_W_4>> LoadW;
#else
typedef PlainW<DenseRows<W_ROWS, W_STRIDE, CONV_W_4>> LoadW;
#endif
#if CONV_LAST
typedef GatherLast<X_ROWS, X_STRIDE, CONV_X_4> LoadX;
#elif CONV_X == 1
typedef Pointwise<X_ROWS, X_STRIDE> LoadX;
#else
typedef GatherRows<X_ROWS, X_STRIDE> LoadX;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    Problem &problem = *(Problem *)(shared + 2 * BUFFER * 4);
    uint4 *table = (uint4 *)(shared + 2 * BUFFER * 4 + PROBLEM_BYTES);
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    begin_problem(problem, p.head, segment, args, block);
    if (is_empty(problem))
        return;
    make_taps(problem, args, table);
    int steps = cut(problem.channels * problem.taps, TILE_K);
    Steps own = Steps::of(steps, problem.part, problem.parts);
    TileSums sums;
    LoadW w;
    LoadX x;
    w.set(problem, args, CONV_LAST ? problem.n0 : problem.m0, table);
    x.set(problem, CONV_LAST ? problem.m0 : problem.n0, table);
#if TILE_NORM
    x.set_norm(problem, args, CONV_LAST ? problem.m0 : problem.n0);
#endif
#if CONV_LAST
    tile_product(sums, x, w, (float *)shared, own.first, own.end);
#else
    tile_product(sums, w, x, (float *)shared, own.first, own.end);
#endif
    finish_tile(sums, p, segment, problem, problem, problem.parts > 1, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    Problem problem;
    set_problem(problem, p.args[segment], (int)block / TILE_BLOCKS);
    if (!is_empty(problem))
        finish_parts(p, segment, 0, block, problem, shared);
}
#endif

/* ---- wgrad: rows are output channels, columns (channel, tap), the reduction runs over positions,
 * image by image ---- */

#if CONV_MODE == 2

// A loader of matrices whose images have `per` steps each.
template <class Dense> struct ByImage : Dense {
    const float *first;
    long long image_step;
    int per;

    __device__ void set(const float *base_, long long stride_, long long image, int rows_,
                        int positions)
    {
        this->base = first = base_;
        this->stride = stride_;
        this->rows = rows_;
        this->size = positions;
        image_step = image;
        per = cut(positions, TILE_K);
    }
    __device__ void load(float *r, int step)
    {
        int image = step / per;
        this->load_at(r, first + image * image_step, (step - image * per) * TILE_K);
    }
};

#if TILE_NORM
// One whose rows are channels of images that are normalized: a and d are fetched once an image.
template <class Dense> struct NormedChannels : Dense {
    const NormLoad *norm;
    int channel; // of row 0
    int image;   // that a and d are of; -1: none yet
    float a[Dense::LOADS], d[Dense::LOADS];

    __device__ void load(float *r, int step)
    {
        Dense::load(r, step);
        if (step / this->per == image)
            return;
        image = step / this->per;
        NormSource source = NormSource::of(*norm, image, channel);
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++)
            source.get(&a[i], &d[i], this->row_of(i), this->row_of(i) < this->rows);
    }
    __device__ void put(const float *r, float *to)
    {
        float y[Dense::COUNT];
        CX_UNROLL
        for (int i = 0; i < Dense::COUNT; i++)
            y[i] = norm->table ? normalize(r[i], a[i / 4], d[i / 4]) : r[i];
        Dense::put(y, to);
    }
};
#endif

// Positions in TILE_K neighbouring lanes; a thread has every THREADS / TILE_K-th (channel, tap). Of
// 16 positions the last eight have columns two further, or before, so that their banks are others.
struct GatherK {
    enum {
        COUNT = TILE_N * TILE_K / THREADS,
        APART = THREADS / TILE_K,
    };
    const float *source;
    long long image_step, position_step;
    int per, positions, size[3], in[3], step_of[3], origin[3];
    int own_column;
    int offset[COUNT];
    u32 tap[COUNT]; // packed; ~0: there is no such column
#if TILE_NORM
    NormedColumns<COUNT, APART> norm;
#endif

    __device__ void set(const Problem &problem, const ConvArgs &args)
    {
        own_column = (int)threadIdx.x / TILE_K ^ (int)threadIdx.x % TILE_K / 8 * 2;
        source = problem.source;
        image_step = problem.source_image;
        position_step = problem.source_position;
        positions = problem.positions;
        per = cut(positions, TILE_K);
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++) {
            size[axis] = problem.size[axis];
            in[axis] = problem.in[axis];
            step_of[axis] = problem.step[axis];
            origin[axis] = problem.origin[axis];
        }
        int columns = problem.channels * problem.taps;
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            int column = problem.n0 + own_column + i * APART;
            int number = column % problem.taps, channel = column / problem.taps;
            int w = number % (int)args.kernel[2], rest = number / (int)args.kernel[2];
            int h = rest % (int)args.kernel[1], d = rest / (int)args.kernel[1];
            tap[i] = column < columns ? pack_tap(d, h, w) : ~0u;
            offset[i] = channel * (int)problem.source_channel +
                        ((d * in[1] + h) * in[2] + w) * (int)position_step;
        }
#if TILE_NORM
        int first = problem.n0 + own_column;
        norm.set(args.norm, problem.group * columns + first, columns - first, problem.taps);
#endif
    }
    __device__ void load(float *r, int step)
    {
        int image = step / per, at[3] = {0, 0, 0};
        int position = (step - image * per) * TILE_K + (int)threadIdx.x % TILE_K, rest = position;
        CX_UNROLL
        for (int axis = 2; axis >= FIRST_AXIS; axis--) {
            at[axis] = rest % size[axis] * step_of[axis] + origin[axis];
            rest /= size[axis];
        }
        long long element = ((long long)at[0] * in[1] + at[1]) * in[2] + at[2];
        const float *from = source + image * image_step + element * position_step;
#if TILE_NORM
        norm.begin(image);
#endif
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            bool inside = position < positions && tap[i] != ~0u && tap_inside(at, tap[i], in);
            r[i] = inside ? from[offset[i]] : 0.f;
#if TILE_NORM
            norm.inside |= (u32)inside << i;
#endif
        }
    }
    __device__ void put(const float *r, float *to)
    {
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
#if TILE_NORM
            float value = norm.value(r[i], i);
#else
            float value = r[i];
#endif
            to[(int)threadIdx.x % TILE_K * ROW_B + own_column + i * APART] = value;
        }
    }
};

#if CONV_W == 1
typedef ByImage<DenseK<TILE_M, ROW_A, CONV_W_4>> LoadY;
#else
typedef ByImage<DenseRows<TILE_M, ROW_A, CONV_W_4>> LoadY;
#endif
#if CONV_X == 1 && TILE_NORM
typedef NormedChannels<ByImage<DenseK<TILE_N, ROW_B, true>>> LoadX;
#elif CONV_X == 1
typedef ByImage<DenseK<TILE_N, ROW_B, true>> LoadX;
#else
typedef GatherK LoadX;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    Problem &problem = *(Problem *)(shared + 2 * BUFFER * 4);
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    begin_problem(problem, p.head, segment, args, block);
    int steps = (int)args.images * cut(problem.positions, TILE_K);
    TileSums sums;
    LoadY y;
    LoadX x;
    int row = problem.group * problem.rows + problem.m0;
    y.set((const float *)args.y + row * args.y_channel,
          CONV_W == 1 ? args.y_channel : args.y_position, args.y_image, problem.rows - problem.m0,
          problem.positions);
#if CONV_X == 1
    x.set(problem.source + problem.n0 * args.x_channel, args.x_channel, args.x_image,
          problem.channels - problem.n0, problem.positions);
#if TILE_NORM
    x.norm = &args.norm;
    x.channel = problem.group * problem.channels + problem.n0;
    x.image = -1;
#endif
#else
    x.set(problem, args);
#endif
    Steps own = Steps::of(steps, problem.part, problem.parts);
    tile_product(sums, y, x, (float *)shared, own.first, own.end);
    bool is_part = problem.parts > 1 || args.sum != 0;
    finish_tile(sums, p, segment, problem, problem, is_part, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    Problem problem;
    set_wgrad(problem, args, (int)block / TILE_BLOCKS);
    finish_parts(p, segment, args.sum, block, problem, nullptr);
}
#endif
