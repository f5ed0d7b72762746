/* How a block of a convolution (ConvArgs) finds its product, its positions and its taps, and where
 * results go, whatever makes the sums. Included in a kernel's namespace behind the header of a tile
 * product. Definitions: CONV_MODE, CONV_LAST, CONV_AXES, CONV_STRIDED, CONV_OUT_4, CONV_ACT,
 * CONV_RESAMPLED, TILE_STATS as in conv_f32.cu; Source, Weight, Result, Residual and Bias are types
 * of elements (storage.h); BY_TAP: columns of wgrad are (tap, channel), not (channel, tap), and
 * there are no classes of taps.
 */

#if TILE_STATS
enum { ROWS_ARE_POSITIONS = CONV_LAST };
#include "norm_stats.h"
#endif

enum { FIRST_AXIS = 3 - CONV_AXES };

// Sizes of the product of one block, and how positions, taps and sources hang together, by axis.
struct Problem {
    const Source *source; // of this group
    const Weight *w;
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
    int tile, part, parts; // of the reduction
#if CONV_RESAMPLED
    int shift[3];
    __device__ int up(int axis) const // the source is up-sampled by 2^up
    {
        return shift[axis];
    }
#else
    __device__ int up(int) const
    {
        return 0;
    }
#endif
};
enum { PROBLEM_BYTES = 256 }; // room for it in shared memory, where a block keeps it
static_assert(sizeof(Problem) <= PROBLEM_BYTES, "a problem has more fields");

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
#if CONV_RESAMPLED
        problem.shift[axis] = axis < FIRST_AXIS ? 0 : (int)args.x_shift[axis];
#endif
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

// Tile number `tile` over phases, groups, and the tiles of a product, rows of w fastest. Every
// phase has as many as the largest one: some have no columns.
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
    problem.source = (const Source *)(grad ? args.y : args.x) +
                     (long long)problem.group * problem.channels * problem.source_channel;
    problem.w = (const Weight *)args.w +
                (long long)problem.group * problem.rows * problem.channels * product3(args.kernel);
}

/* ---- taps and positions ---- */

// Coordinates of a tap, 10 bits each, and its steps in the source and in w.
CX_FN u32 pack_tap(int d, int h, int w)
{
    return (u32)(d + 512) << 20 | (u32)(h + 512) << 10 | (u32)(w + 512);
}

// Where the source element is along an axis, of a position whose first is `at`, at a packed tap.
CX_FN int tap_at(const int *at, u32 tap, int axis)
{
    return at[axis] + (int)(tap >> (20 - 10 * axis) & 1023) - 512;
}

// Is that element there?
CX_FN bool tap_inside(const int *at, u32 tap, const int *in)
{
    int d = tap_at(at, tap, 0), h = tap_at(at, tap, 1), w = tap_at(at, tap, 2);
    bool inside = (u32)h < (u32)in[1] && (CONV_AXES == 2 || (u32)d < (u32)in[0]);
#ifdef FAULT_CONV_BORDER // the right border is not looked at
    return inside && w >= 0;
#else
    return inside && (u32)w < (u32)in[2];
#endif
}

// Which element of the source has these coordinates: where it is up-sampled, of the smaller image.
CX_FN long long source_element(const Problem &problem, const int *at)
{
    const int *in = problem.in;
    int rows = in[1] >> problem.up(1), columns = in[2] >> problem.up(2);
    long long row = (long long)(at[0] >> problem.up(0)) * rows + (at[1] >> problem.up(1));
    return row * columns + (at[2] >> problem.up(2));
}

CX_FN int taps_apart(int taps) // from class to class
{
    return taps + ((3 - taps) & 7);
}

// Positions fall into classes by their first source coordinates modulo the factors of up-sampling:
// how far it is from the first element to that of a tap depends on these alone. Each class has its
// taps in the table, 3 entries apart modulo 8 where there are several: neighbours of two classes,
// each at two taps, meet different banks. Here is the number of the first.
CX_FN int taps_of(const Problem &problem, const int *at)
{
    int number = 0;
    CX_UNROLL
    for (int axis = FIRST_AXIS; axis < 3; axis++)
        number = number << problem.up(axis) | (at[axis] & ((1 << problem.up(axis)) - 1));
#ifdef FAULT_CONV_CLASS // all positions are taken for the first class
    number = 0;
#endif
    return number * taps_apart(problem.taps);
}

// The table of taps, class by class: packed coordinates, step in the source, step in w. BY_TAP:
// those of the first class.
CX_FN void make_taps(const Problem &problem, const ConvArgs &args, uint4 *table)
{
    int classes = BY_TAP ? 1 : 1 << (problem.up(0) + problem.up(1) + problem.up(2));
    int apart = taps_apart(problem.taps), count = (classes - 1) * apart + problem.taps;
    for (int entry = (int)threadIdx.x; entry < count; entry += THREADS) {
        int at[3] = {0, 0, 0}, place[3] = {0, 0, 0}, rest = entry % apart;
        if (rest >= problem.taps)
            continue;
        CX_UNROLL
        for (int axis = 2; axis >= FIRST_AXIS; axis--) {
            int number = rest % problem.tap_count[axis];
            rest /= problem.tap_count[axis];
            at[axis] = CONV_MODE == 1 ? -number : number;
            place[axis] = problem.tap_first[axis] + number * problem.tap_step[axis];
        }
        u32 packed = pack_tap(at[0], at[1], at[2]);
        rest = entry / apart; // the class
        CX_UNROLL
        for (int axis = 2; axis >= FIRST_AXIS; axis--) {
            at[axis] += rest & ((1 << problem.up(axis)) - 1);
            rest >>= problem.up(axis);
        }
        int step = (int)source_element(problem, at);
        int in_w = (place[0] * (int)args.kernel[1] + place[1]) * (int)args.kernel[2] + place[2];
        table[entry] = make_uint4(packed, (u32)(step * (int)problem.source_position), (u32)in_w, 0);
    }
    __syncthreads();
}

// First source coordinates of a position (of all images), and the element there (which need not
// be one). Of a position that does not exist nothing is inside.
CX_FN const Source *source_of(const Problem &problem, int position, int *at)
{
    bool there = position < problem.columns;
    at[0] = 0;
    int image = there ? position / problem.positions : 0, rest = position % problem.positions;
    CX_UNROLL
    for (int axis = 2; axis >= FIRST_AXIS; axis--) {
        at[axis] = rest % problem.size[axis] * problem.step[axis] + problem.origin[axis];
        rest /= problem.size[axis];
    }
    long long element = source_element(problem, at);
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

enum { W_ROWS = CONV_LAST ? TILE_N : TILE_M }; // of a tile: channels of the result

#if CONV_MODE != 2
// Tiles of all phases and groups.
CX_FN int tiles_of(const ConvArgs &args)
{
    int rows = (int)(CONV_MODE == 1 ? args.c_in : args.c_out) / (int)args.groups, phases;
    int columns = column_tiles(args, &phases);
    return phases * columns * (int)args.groups * cut(rows, W_ROWS);
}

#endif

/* ---- results ---- */

#if CONV_MODE != 2
// Images: rows are channels and columns positions, or with CONV_LAST the other way round.
struct Out {
#if TILE_STATS && CONV_LAST
    enum { BY_COLUMN = 1, GATED = 0 };
#else
    enum { BY_COLUMN = 0, GATED = 0 };
#endif
#if CONV_RESAMPLED && !CONV_LAST
    enum { FOURS_OF_RESIDUAL = 0 };
#else
    enum { FOURS_OF_RESIDUAL = CONV_OUT_4 };
#endif
    Result *out;
    const Residual *residual;
    const Bias *bias;
    long long image, channel, position;
    long long residual_image, residual_channel, residual_position;
    const Problem *problem;
    const ConvArgs *args;
    int n;
    long long to[4], from[4]; // of the four columns, in the result and in the residual
    float added[4];           // CONV_LAST: bias of the columns
#if TILE_STATS
    Statistics stats;

    // in_parts: phase 1 makes the results.
    CX_FN Statistics statistics_of(const ConvArgs &args, const CxHead &head, u32 segment,
                                   const Problem &problem, bool in_parts)
    {
        int across = cut(problem.rows, W_ROWS) * (int)args.groups;
        int rows = in_parts ? (int)COLLECT_ROWS : (int)WARP_M;
        Statistics stats = {&args.stats, moments_of(head, segment, in_parts),
                            head.counters + segment * CX_COUNTERS, (int)args.images,
                            (int)args.c_out, problem.positions, problem.positions,
                            CONV_LAST ? rows : TILE_N,
                            across * (in_parts ? (int)TILE_BLOCKS : 1),
                            CONV_LAST ? problem.m0 : problem.n0, 0};
        stats.first_image = stats.start / problem.positions;
        return stats;
    }
    __device__ void columns(const float *results, int stride, int m, int n0)
    {
        stats.add_columns(results, stride, m, problem->group * problem->rows + n0,
                          problem->rows - n0);
    }
#endif

    CX_FN Out of(const ConvArgs &args, const Problem &problem)
    {
        Out out;
        bool grad = CONV_MODE == 1;
        out.channel = grad ? args.x_channel : args.y_channel;
        out.image = grad ? args.x_image : args.y_image;
        out.position = grad ? args.x_position : args.y_position;
        out.residual_image = args.residual_image;
        out.residual_channel = args.residual_channel;
        out.residual_position = args.residual_position;
#ifdef FAULT_CONV_RESIDUAL // positions are as far apart as the result's
        out.residual_position = out.position;
#endif
        long long first = (long long)problem.group * problem.rows;
        out.out = (Result *)(grad ? args.x : args.y) + first * out.channel;
        out.residual = (const Residual *)args.residual;
        if (out.residual)
            out.residual += first * out.residual_channel;
        out.bias = (const Bias *)args.bias;
        if (out.bias)
            out.bias += first;
        out.problem = &problem;
        out.args = &args;
        return out;
    }
    // Offset of a position, without its image's, in the result, and *other in the residual; *which:
    // the image.
    __device__ long long position_of(int column, int *which, long long *other)
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
        *other = number * residual_position;
#if CONV_RESAMPLED
        *other = shrunk(rest) * residual_position;
#endif
        return number * position;
    }
#if CONV_RESAMPLED
    // Which element of a residual that is up-sampled belongs to a position.
    __device__ int shrunk(int number) const
    {
        int at[3] = {0, 0, 0}, extent[3] = {1, 1, 1};
        CX_UNROLL
        for (int axis = 2; axis >= FIRST_AXIS; axis--) {
            int shift = (int)args->residual_shift[axis];
            at[axis] = number % problem->size[axis] >> shift;
            extent[axis] = problem->size[axis] >> shift;
            number /= problem->size[axis];
        }
        return (at[0] * extent[1] + at[1]) * extent[2] + at[2];
    }
#endif
    __device__ void column(int n_)
    {
        n = n_;
        CX_UNROLL
        for (int e = 0; e < 4; e++) {
            if (CONV_LAST) {
                to[e] = (n + e) * channel;
                from[e] = (n + e) * residual_channel;
                added[e] = bias && n + e < problem->rows ? cx_read(bias[n + e]) : 0.f;
            } else if (!FOURS_OF_RESIDUAL || e == 0) {
                int which;
                long long other, at = position_of(n + e, &which, &other);
                to[e] = which * image + at;
                from[e] = which * residual_image + other;
            }
        }
    }
    __device__ void put(int m, float *value)
    {
        int rows = CONV_LAST ? problem->columns : problem->rows;
        int there = (CONV_LAST ? problem->rows : problem->columns) - n;
        if (m < rows && there > 0)
            finish(m, there, value);
#if TILE_STATS && !CONV_LAST
        stats.add_row(problem->group * problem->rows + m, m < rows, value);
#endif
    }
    // Results of row m, of which `there` are in the image.
    __device__ void finish(int m, int there, float *value)
    {
        long long to_row = m * channel, from_row = m * residual_channel;
        float of_row = 0.f, more[4] = {0.f, 0.f, 0.f, 0.f};
        if (CONV_LAST) {
            int which;
            long long other, at = position_of(m, &which, &other);
            to_row = which * image + at;
            from_row = which * residual_image + other;
        } else if (bias) {
            of_row = cx_read(bias[m]);
        }
        if (residual && FOURS_OF_RESIDUAL)
            load_four<true>(more, residual + from_row + from[0], 4);
        CX_UNROLL
        for (int e = 0; e < 4; e++) {
            if (!FOURS_OF_RESIDUAL && residual && e < there)
                more[e] = cx_read(residual[from_row + from[e]]);
            value[e] = activate<CONV_ACT>(value[e] + (CONV_LAST ? added[e] : of_row)) + more[e];
#if TILE_STATS
            value[e] = as_stored<Result>(value[e]);
#endif
        }
        if (CONV_OUT_4) {
            store_four<true>(out + to_row + to[0], value, 4);
        } else {
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                if (e < there)
                    cx_write(out + to_row + to[e], value[e]);
        }
    }
};
#else
// w of one group: [rows][channel, tap], or where BY_TAP sums of [tap, channel]; it lies so as
// well if w_last.
struct Out {
    enum { BY_COLUMN = 0, GATED = 0 };
    Result *w;
    const Residual *residual;
    int rows, columns, channels, taps, n;
    bool turned; // it does not lie as its sums do

    CX_FN Out of(const ConvArgs &args, const Problem &problem)
    {
        Out out;
        out.rows = problem.rows;
        out.channels = problem.channels;
        out.taps = problem.taps;
        out.columns = problem.channels * problem.taps;
        out.turned = BY_TAP && args.w_last == 0;
        long long first = (long long)problem.group * out.rows * out.columns;
        out.w = (Result *)args.w + first;
        out.residual = args.residual ? (const Residual *)args.residual + first : nullptr;
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
        long long row = (long long)m * columns;
        if (CONV_OUT_4) {
            float value[4], more[4];
            load_four<true>(more, residual + row + n, residual ? 4 : 0);
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                value[e] = activate<CONV_ACT>(sum[e]) + more[e];
            store_four<true>(w + row + n, value, 4);
        } else {
            CX_UNROLL
            for (int e = 0; e < 4; e++) {
                int tap = (n + e) / channels, channel = (n + e) % channels;
                long long to = row + (turned ? channel * taps + tap : n + e);
                if (n + e < columns)
                    cx_write(w + to, activate<CONV_ACT>(sum[e]) +
                                         (residual ? cx_read(residual[to]) : 0.f));
            }
        }
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
    problem.source = (const Source *)args.x +
                     (long long)problem.group * problem.channels * problem.source_channel;
    return row_tiles * column_tiles * (int)args.groups;
}
#endif

/* ---- the problem of a block ---- */

#if CONV_MODE != 2
// A phase smaller than the largest: the tile has no columns.
CX_FN bool is_empty(const Problem &problem)
{
    return CONV_STRIDED && (CONV_LAST ? problem.m0 : problem.n0) >= problem.columns;
}
#endif

// Its tile and part, which the block's first thread finds.
CX_FN void begin_problem(Problem &problem, const CxHead &head, u32 segment, const ConvArgs &args,
                         u32 block)
{
    if (threadIdx.x == 0) {
        int blocks = (int)(head.first[segment + 1] - head.first[segment]);
#if CONV_MODE == 2
        int tiles = set_wgrad(problem, args, 0);
#else
        int tiles = tiles_of(args);
#endif
        problem.tile = (int)block % tiles;
        problem.part = (int)block / tiles;
        problem.parts = blocks / tiles;
#if CONV_MODE == 2
        set_wgrad(problem, args, problem.tile);
#else
        set_problem(problem, args, problem.tile);
#endif
    }
    __syncthreads();
}
