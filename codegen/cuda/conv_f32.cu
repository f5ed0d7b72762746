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
 *   CONV_PARTS    1: there is a phase 1
 */
#include "gemm_tile.h"

enum { FIRST_AXIS = 3 - CONV_AXES };

// Sizes of the product of one block, and how positions, taps and sources hang together, by axis.
struct Problem {
    const float *source, *w; // of this group
    long long source_image, source_channel, source_position;
    int channels;            // that are summed over
    int rows;                // channels of the result
    int taps, positions, columns;
    int size[3];             // positions of the result (of its phase)
    int in[3];               // extents of the source
    int step[3], origin[3];  // source coordinate: position * step + origin + (tap)
    int tap_first[3], tap_step[3], tap_count[3];
    int out_first[3], out_step[3]; // coordinate in the result
    int m0, n0, group;
};

CX_FN int cut(int size, int tile)
{
    return (size + tile - 1) / tile;
}

CX_FN int product3(const int64_t *size)
{
    return (int)size[0] * (int)size[1] * (int)size[2];
}

/* ---- which product a block belongs to ---- */

// Axis sizes of phase number `phase` of dgrad, or of fprop.
CX_FN void set_axes(Problem &problem, const ConvArgs &args, int phase)
{
    problem.taps = problem.positions = 1;
    problem.columns = (int)args.images;
    CX_UNROLL
    for (int axis = 2; axis >= 0; axis--) {
        int stride = axis < FIRST_AXIS ? 1 : (int)args.stride[axis];
        int kernel = axis < FIRST_AXIS ? 1 : (int)args.kernel[axis];
        int pad = axis < FIRST_AXIS ? 0 : (int)args.pad[axis];
        int in = axis < FIRST_AXIS ? 1 : (int)args.in[axis];
        int out = axis < FIRST_AXIS ? 1 : (int)args.out[axis];
        problem.in[axis] = in;
        problem.size[axis] = out;
        problem.step[axis] = stride;
        problem.origin[axis] = -pad;
        problem.tap_first[axis] = problem.out_first[axis] = 0;
        problem.tap_step[axis] = problem.out_step[axis] = 1;
        problem.tap_count[axis] = kernel;
        if (CONV_MODE == 1) {
            problem.in[axis] = out;
            problem.size[axis] = in;
            problem.step[axis] = 1;
            problem.origin[axis] = pad;
        }
        if (CONV_STRIDED && axis >= FIRST_AXIS) {
            int phases = min(stride, in), at = phase % phases, reach = at + pad;
            phase /= phases;
            problem.size[axis] = (in - at + stride - 1) / stride;
            problem.origin[axis] = reach / stride;
            problem.tap_first[axis] = reach % stride;
            problem.tap_step[axis] = stride;
            problem.tap_count[axis] =
                reach % stride < kernel ? (kernel - 1 - reach % stride) / stride + 1 : 0;
            problem.out_first[axis] = at;
            problem.out_step[axis] = stride;
        }
        problem.taps *= problem.tap_count[axis];
        problem.positions *= problem.size[axis];
    }
    problem.columns *= problem.positions;
}

// Tiles of columns of the largest phase, number 0; *phases: how many there are.
CX_FN int column_tiles(const ConvArgs &args, int *phases)
{
    int columns = (int)args.images;
    *phases = 1;
    CX_UNROLL
    for (int axis = FIRST_AXIS; axis < 3; axis++) {
        int in = (int)args.in[axis], stride = CONV_STRIDED ? (int)args.stride[axis] : 1;
        columns *= CONV_MODE == 1 ? (in + stride - 1) / stride : (int)args.out[axis];
        *phases *= min(stride, in);
    }
    if (!CONV_STRIDED)
        *phases = 1;
    return cut(columns, CONV_LAST ? TILE_M : TILE_N);
}

// Tile number `tile` over phases, groups, and the tiles of a product, rows of w fastest. Every phase
// has as many as the largest one: some have no columns.
CX_FN void set_problem(Problem &problem, const ConvArgs &args, int tile)
{
    bool grad = CONV_MODE == 1;
    int groups = (int)args.groups, phases;
    problem.channels = (int)(grad ? args.c_out : args.c_in) / groups;
    problem.rows = (int)(grad ? args.c_in : args.c_out) / groups;
    int row_tiles = cut(problem.rows, CONV_LAST ? TILE_N : TILE_M);
    int columns = column_tiles(args, &phases);
    int row = tile % row_tiles, rest = tile / row_tiles;
    problem.m0 = (CONV_LAST ? rest % columns : row) * TILE_M;
    problem.n0 = (CONV_LAST ? row : rest % columns) * TILE_N;
    rest /= columns;
    problem.group = rest % groups;
    set_axes(problem, args, CONV_STRIDED ? rest / groups : 0);
    problem.source_image = grad ? args.y_image : args.x_image;
    problem.source_channel = grad ? args.y_channel : args.x_channel;
    problem.source_position = grad ? args.y_position : args.x_position;
    problem.source = (const float *)(grad ? args.y : args.x) +
                     (long long)problem.group * problem.channels * problem.source_channel;
    problem.w = (const float *)args.w +
                (long long)problem.group * problem.rows * problem.channels * product3(args.kernel);
}

/* ---- taps and positions ---- */

// Coordinates of a tap, 10 bits each, and its steps in the source and in w.
CX_FN u32 pack_tap(int d, int h, int w)
{
    return (u32)(d + 512) << 20 | (u32)(h + 512) << 10 | (u32)(w + 512);
}

// Is the source element there, of a position whose first is `at`, at a packed tap?
CX_FN bool tap_inside(const int *at, u32 tap, const int *in)
{
    int d = at[0] + (int)(tap >> 20) - 512, h = at[1] + (int)(tap >> 10 & 1023) - 512;
    int w = at[2] + (int)(tap & 1023) - 512;
    bool inside = (u32)h < (u32)in[1] && (CONV_AXES == 2 || (u32)d < (u32)in[0]);
#ifdef FAULT_CONV_BORDER // the right border is not looked at
    return inside && w >= 0;
#else
    return inside && (u32)w < (u32)in[2];
#endif
}

// The table of taps: packed coordinates, step in the source, step in w.
CX_FN void make_taps(const Problem &problem, const ConvArgs &args, uint4 *table)
{
    for (int tap = (int)threadIdx.x; tap < problem.taps; tap += THREADS) {
        int at[3] = {0, 0, 0}, place[3] = {0, 0, 0}, rest = tap;
        CX_UNROLL
        for (int axis = 2; axis >= FIRST_AXIS; axis--) {
            int number = rest % problem.tap_count[axis];
            rest /= problem.tap_count[axis];
            at[axis] = CONV_MODE == 1 ? -number : number;
            place[axis] = problem.tap_first[axis] + number * problem.tap_step[axis];
        }
        int step = (at[0] * problem.in[1] + at[1]) * problem.in[2] + at[2];
        int in_w = (place[0] * (int)args.kernel[1] + place[1]) * (int)args.kernel[2] + place[2];
        table[tap] = make_uint4(pack_tap(at[0], at[1], at[2]),
                                (u32)(step * (int)problem.source_position), (u32)in_w, 0);
    }
    __syncthreads();
}

// First source coordinates of a position (of all images), and the element there (which need not
// be one). false: there is no such position; then nothing is inside.
CX_FN const float *source_of(const Problem &problem, int position, int *at)
{
    bool there = position < problem.columns;
    at[0] = 0;
    int image = there ? position / problem.positions : 0, rest = position % problem.positions;
    CX_UNROLL
    for (int axis = 2; axis >= FIRST_AXIS; axis--) {
        at[axis] = rest % problem.size[axis] * problem.step[axis] + problem.origin[axis];
        rest /= problem.size[axis];
    }
    long long element = ((long long)at[0] * problem.in[1] + at[1]) * problem.in[2] + at[2];
    if (!there)
        at[2] = 1 << 20;
    return problem.source + image * problem.source_image + element * problem.source_position;
}

// k / by and k % by for k < 2^31.
struct Divider {
    int by;
    u32 magic; // 2^32 / by, rounded up

    __device__ void set(int by_)
    {
        by = by_;
        magic = by_ > 1 ? 0xffffffffu / (u32)by_ + 1 : 0;
    }
    __device__ int split(int k, int *rest) const
    {
        int quotient = by > 1 ? (int)(((u64)(u32)k * magic) >> 32) : k;
        *rest = k - quotient * by;
        if (*rest < 0) {
            *rest += by;
            quotient--;
        }
        return quotient;
    }
};

/* ---- loaders of images ---- */

// Positions in neighbouring lanes; a thread has one, and every THREADS / ROWS-th k, (channel, tap).
template <int ROWS, int STRIDE> struct GatherRows {
    enum {
        COUNT = ROWS * TILE_K / THREADS,
        APART = THREADS / ROWS,
    };
    const float *from;
    int at[3], in[3], size;
    long long channel_step;
    const uint4 *table;
    Divider taps;

    __device__ void set(const Problem &problem, int first, const uint4 *table_)
    {
        from = source_of(problem, first + (int)threadIdx.x % ROWS, at);
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++)
            in[axis] = problem.in[axis];
        size = problem.channels * problem.taps;
        channel_step = problem.source_channel;
        table = table_;
        taps.set(problem.taps);
    }
    __device__ void load(float *r, int step)
    {
        int k0 = step * TILE_K + (int)threadIdx.x / ROWS;
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            int k = k0 + i * APART, tap, channel = taps.split(k, &tap);
            uint4 entry = table[tap];
            bool inside = k < size && tap_inside(at, entry.x, in);
            r[i] = inside ? from[channel * channel_step + (int)entry.y] : 0.f;
        }
    }
    __device__ void put(const float *r, float *to)
    {
        CX_UNROLL
        for (int i = 0; i < COUNT; i++)
            to[((int)threadIdx.x / ROWS + i * APART) * STRIDE + (int)threadIdx.x % ROWS] = r[i];
    }
};

// Fours of positions of one image, one matrix: element (position, channel) dense along positions.
template <int ROWS, int STRIDE> struct Pointwise : DenseRows<ROWS, STRIDE, true> {
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
template <int ROWS, int STRIDE, bool VECTOR> struct GatherLast : DenseK<ROWS, STRIDE, VECTOR> {
    typedef DenseK<ROWS, STRIDE, VECTOR> Dense;
    const float *from[Dense::LOADS];
    int at[Dense::LOADS][3], in[3];
    const uint4 *table;
    Divider channels;

    __device__ void set(const Problem &problem, int first, const uint4 *table_)
    {
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++)
            from[i] = source_of(problem, first + this->row_of(i), at[i]);
        CX_UNROLL
        for (int axis = 0; axis < 3; axis++)
            in[axis] = problem.in[axis];
        this->size = problem.channels * problem.taps;
        table = table_;
        channels.set(problem.channels);
    }
    __device__ void load(float *r, int step)
    {
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++) {
            CX_UNROLL
            for (int e = 0; e < 4; e += VECTOR ? 4 : 1) {
                int k = step * TILE_K + this->k_of(i) + e, channel;
                int tap = channels.split(k, &channel);
                bool inside = k < this->size;
                uint4 entry = table[inside ? tap : 0];
                inside = inside && tap_inside(at[i], entry.x, in);
                const float *address = from[i] + (int)entry.y + channel;
                if (VECTOR)
                    load_four<true>(r + 4 * i, address, inside ? 4 : 0);
                else
                    r[4 * i + e] = inside ? *address : 0.f;
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
        int k0 = step * TILE_K + (int)threadIdx.x / ROWS;
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            int k = k0 + i * APART, rest, quotient = divider.split(k, &rest);
            bool inside = there && k < size;
            int tap = CONV_LAST ? quotient : rest, channel = CONV_LAST ? rest : quotient;
            u32 in_w = table[inside ? tap : 0].z;
            r[i] = inside ? from[channel * channel_step + (int)in_w] : 0.f;
        }
    }
    __device__ void put(const float *r, float *to)
    {
        CX_UNROLL
        for (int i = 0; i < COUNT; i++)
            to[((int)threadIdx.x / ROWS + i * APART) * STRIDE + (int)threadIdx.x % ROWS] = r[i];
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

/* ---- results ---- */

#if CONV_MODE != 2
// Images: rows are channels and columns positions, or with CONV_LAST the other way round.
struct Out {
    float *out;
    const float *residual, *bias;
    long long image, channel, position, residual_image, residual_channel;
    const Problem *problem;
    const ConvArgs *args;
    int n;
    long long to[4], from[4]; // of the four columns, in the result and in the residual
    float added[4];           // CONV_LAST: bias of the columns

    CX_FN Out of(const ConvArgs &args, const Problem &problem)
    {
        Out out;
        bool grad = CONV_MODE == 1;
        out.channel = grad ? args.x_channel : args.y_channel;
        out.image = grad ? args.x_image : args.y_image;
        out.position = grad ? args.x_position : args.y_position;
        out.residual_image = args.residual_image;
        out.residual_channel = args.residual_channel;
        long long first = (long long)problem.group * problem.rows;
        out.out = (float *)(grad ? args.x : args.y) + first * out.channel;
        out.residual = (const float *)args.residual;
        if (out.residual)
            out.residual += first * out.residual_channel;
        out.bias = (const float *)args.bias;
        if (out.bias)
            out.bias += first;
        out.problem = &problem;
        out.args = &args;
        return out;
    }
    // Offset of a position, without its image's; *which: the image.
    __device__ long long position_of(int column, int *which)
    {
        int rest = column % problem->positions, number = rest;
        *which = column / problem->positions;
        if (CONV_STRIDED) {
            int at[3] = {0, 0, 0};
            CX_UNROLL
            for (int axis = 2; axis >= FIRST_AXIS; axis--) {
                at[axis] = rest % problem->size[axis] * problem->out_step[axis] +
                           problem->out_first[axis];
                rest /= problem->size[axis];
            }
            number = (at[0] * (int)args->in[1] + at[1]) * (int)args->in[2] + at[2];
        }
        return number * position;
    }
    __device__ void column(int n_)
    {
        n = n_;
        CX_UNROLL
        for (int e = 0; e < 4; e++) {
            if (CONV_LAST) {
                to[e] = (n + e) * channel;
                from[e] = (n + e) * residual_channel;
                added[e] = bias && n + e < problem->rows ? bias[n + e] : 0.f;
            } else if (!CONV_OUT_4 || e == 0) {
                int which;
                long long at = position_of(n + e, &which);
                to[e] = which * image + at;
                from[e] = which * residual_image + at;
            }
        }
    }
    __device__ void put(int m, const float *sum)
    {
        int rows = CONV_LAST ? problem->columns : problem->rows;
        int there = (CONV_LAST ? problem->rows : problem->columns) - n;
        if (m >= rows || there <= 0)
            return;
        long long to_row = m * channel, from_row = m * residual_channel;
        float of_row = 0.f, more[4] = {0.f, 0.f, 0.f, 0.f}, value[4];
        if (CONV_LAST) {
            int which;
            long long at = position_of(m, &which);
            to_row = which * image + at;
            from_row = which * residual_image + at;
        } else if (bias) {
            of_row = bias[m];
        }
        if (residual && CONV_OUT_4)
            load_four<true>(more, residual + from_row + from[0], 4);
        CX_UNROLL
        for (int e = 0; e < 4; e++) {
            if (!CONV_OUT_4 && residual && e < there)
                more[e] = residual[from_row + from[e]];
            value[e] = activate<CONV_ACT>(sum[e] + (CONV_LAST ? added[e] : of_row)) + more[e];
        }
        if (CONV_OUT_4) {
            store_four<true>(out + to_row + to[0], value, 4);
        } else {
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                if (e < there)
                    out[to_row + to[e]] = value[e];
        }
    }
};
#endif

/* ---- fprop and dgrad ---- */

enum { W_ROWS = CONV_LAST ? TILE_N : TILE_M, W_STRIDE = CONV_LAST ? ROW_B : ROW_A };
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

CX_FN int tiles_of(const ConvArgs &args)
{
    int rows = (int)(CONV_MODE == 1 ? args.c_in : args.c_out) / (int)args.groups, phases;
    int columns = column_tiles(args, &phases);
    return phases * columns * (int)args.groups * cut(rows, W_ROWS);
}

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    float *buffers = (float *)shared;
    uint4 *table = (uint4 *)(buffers + 2 * BUFFER);
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    int tile = (int)block, part = 0, parts = 1;
    if (CONV_PARTS) {
        int tiles = tiles_of(args);
        parts = (int)(p.head.first[segment + 1] - p.head.first[segment]) / tiles;
        tile = (int)block % tiles;
        part = (int)block / tiles;
    }
    Problem problem;
    set_problem(problem, args, tile);
    if (CONV_STRIDED && (CONV_LAST ? problem.m0 : problem.n0) >= problem.columns)
        return;
    make_taps(problem, args, table);
    int steps = cut(problem.channels * problem.taps, TILE_K);
    int first = CONV_PARTS ? steps * part / parts : 0;
    int end = CONV_PARTS ? steps * (part + 1) / parts : steps;
    TileSums sums;
    LoadW w;
    LoadX x;
    w.set(problem, args, CONV_LAST ? problem.n0 : problem.m0, table);
    x.set(problem, CONV_LAST ? problem.m0 : problem.n0, table);
#if CONV_LAST
    tile_product(sums, x, w, buffers, first, end);
#else
    tile_product(sums, w, x, buffers, first, end);
#endif
    if (CONV_PARTS && parts > 1) {
        tile_keep(sums, p.head.work[segment], parts, tile, part);
        return;
    }
    Out out = Out::of(args, problem);
    tile_store(sums, out, problem.m0, problem.n0, (float *)shared);
}

#if CONV_PARTS
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    Problem problem;
    set_problem(problem, args, (int)block / QUADS);
    if (CONV_STRIDED && (CONV_LAST ? problem.m0 : problem.n0) >= problem.columns)
        return;
    Out out = Out::of(args, problem);
    tile_collect(p.head.work[segment], (int)block / QUADS, (int)block % QUADS, out, problem.m0,
                 problem.n0);
}
#endif
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

// Positions in TILE_K neighbouring lanes; a thread has every THREADS / TILE_K-th (channel, tap).
struct GatherK {
    enum {
        COUNT = TILE_N * TILE_K / THREADS,
        APART = THREADS / TILE_K,
    };
    const float *source;
    long long image_step, position_step;
    int per, positions, size[3], in[3], step_of[3], origin[3];
    int offset[COUNT];
    u32 tap[COUNT]; // packed; ~0: there is no such column

    __device__ void set(const Problem &problem, const ConvArgs &args)
    {
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
            int column = problem.n0 + (int)threadIdx.x / TILE_K + i * APART;
            int number = column % problem.taps, channel = column / problem.taps;
            int w = number % (int)args.kernel[2], rest = number / (int)args.kernel[2];
            int h = rest % (int)args.kernel[1], d = rest / (int)args.kernel[1];
            tap[i] = column < columns ? pack_tap(d, h, w) : ~0u;
            offset[i] = channel * (int)problem.source_channel +
                        ((d * in[1] + h) * in[2] + w) * (int)position_step;
        }
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
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            bool inside = position < positions && tap[i] != ~0u && tap_inside(at, tap[i], in);
            r[i] = inside ? from[offset[i]] : 0.f;
        }
    }
    __device__ void put(const float *r, float *to)
    {
        CX_UNROLL
        for (int i = 0; i < COUNT; i++)
            to[(int)threadIdx.x % TILE_K * ROW_B + (int)threadIdx.x / TILE_K + i * APART] = r[i];
    }
};

#if CONV_W == 1
typedef ByImage<DenseK<TILE_M, ROW_A, CONV_W_4>> LoadY;
#else
typedef ByImage<DenseRows<TILE_M, ROW_A, CONV_W_4>> LoadY;
#endif
#if CONV_X == 1
typedef ByImage<DenseK<TILE_N, ROW_B, true>> LoadX;
#else
typedef GatherK LoadX;
#endif

// w of one group, row-major.
struct Out {
    float *w;
    const float *residual;
    int rows, columns, n;

    CX_FN Out of(const ConvArgs &args, const Problem &problem)
    {
        Out out;
        out.rows = problem.rows;
        out.columns = problem.channels * problem.taps;
        long long first = (long long)problem.group * out.rows * out.columns;
        out.w = (float *)args.w + first;
        out.residual = args.residual ? (const float *)args.residual + first : nullptr;
        return out;
    }
    __device__ void column(int n_)
    {
        n = n_;
    }
    __device__ void put(int m, const float *sum)
    {
        if (m >= rows || n >= columns)
            return;
        float value[4], more[4];
        long long at = (long long)m * columns + n;
        load_four<CONV_OUT_4>(more, residual + at, residual ? columns - n : 0);
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            value[e] = activate<CONV_ACT>(sum[e]) + more[e];
        store_four<CONV_OUT_4>(w + at, value, columns - n);
    }
};

// The tile over groups, columns and rows (fastest).
CX_FN int set_wgrad(Problem &problem, const ConvArgs &args, int tile)
{
    set_axes(problem, args, 0);
    problem.channels = (int)(args.c_in / args.groups);
    problem.rows = (int)(args.c_out / args.groups);
    int row_tiles = cut(problem.rows, TILE_M);
    int column_tiles = cut(problem.channels * problem.taps, TILE_N);
    problem.group = tile / row_tiles / column_tiles;
    problem.m0 = tile % row_tiles * TILE_M;
    problem.n0 = tile / row_tiles % column_tiles * TILE_N;
    problem.source_image = args.x_image;
    problem.source_channel = args.x_channel;
    problem.source_position = args.x_position;
    problem.source = (const float *)args.x +
                     (long long)problem.group * problem.channels * problem.source_channel;
    return row_tiles * column_tiles * (int)args.groups;
}

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 128 ? 3 : 2)
    CX_NAME(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    Problem problem;
    int tiles = set_wgrad(problem, args, 0), tile = (int)block % tiles, part = (int)block / tiles;
    int parts = (int)(p.head.first[segment + 1] - p.head.first[segment]) / tiles;
    set_wgrad(problem, args, tile);
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
#else
    x.set(problem, args);
#endif
    int first = CONV_PARTS ? steps * part / parts : 0;
    int end = CONV_PARTS ? steps * (part + 1) / parts : steps;
    tile_product(sums, y, x, (float *)shared, first, end);
    if (CONV_PARTS && parts > 1) {
        tile_keep(sums, p.head.work[segment], parts, tile, part);
        return;
    }
    Out out = Out::of(args, problem);
    tile_store(sums, out, problem.m0, problem.n0, (float *)shared);
}

#if CONV_PARTS
extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 128 ? 3 : 2)
    CX_NAME_1(const __grid_constant__ CxLaunch<ConvArgs> p)
{
    u32 block, segment = cx_segment(p.head, &block);
    const ConvArgs &args = p.args[segment];
    Problem problem;
    set_wgrad(problem, args, (int)block / QUADS);
    Out out = Out::of(args, problem);
    tile_collect(p.head.work[segment], (int)block / QUADS, (int)block % QUADS, out, problem.m0,
                 problem.n0);
}
#endif
#endif
