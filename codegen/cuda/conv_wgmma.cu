/* T1: convolutions of one to three axes, and their gradients, in bf16 or f16 with f32 sums
 * (ConvArgs), on the tile product of wgmma_product.h. Channels last, in eights; any sizes,
 * strides up to 8.
 *
 * It needs no im2col map. The positions of a tile are a box of the images, a tensor {channels, w,
 * h, d, images}: read at (channel, w + s - pad, h + r - pad, ...) the box is the tile as tap (r, s)
 * sees it, and TMA fills what lies outside with zeros, which is the padding, the end of the
 * channels and the end of the images alike. fprop sums over (tap, channel); dgrad is fprop on y at
 * (pad - s, pad - r) with w read MN-major; wgrad has a tile for every tap and sums over boxes of 64
 * positions, both operands MN-major.
 *
 * Where x or the residual is up-sampled on the way (fprop), positions fall into classes by their
 * remainders modulo the factors. A tile has a box of positions of the smaller image in each class:
 * at a tap each is such a box of x, and the map is that of the smaller image.
 *
 * With strides the boxes of x take every stride-th element, as its tensor map says. The gradient
 * of x falls into phases, by the remainders of its positions modulo the strides: each is a
 * convolution of y with stride 1 and the taps that meet it, so its tiles have steps of their own.
 *
 * Definitions: those of wgmma_product.h, and
 *   CONV_MODE     0 fprop, 1 dgrad, 2 wgrad
 *   CONV_STRIDED  1: a segment has strides other than 1
 *   CONV_RESAMPLED  1: a segment has shifts other than 0 (x_shift, residual_shift; fprop), up to 16
 *                 classes, and stride 1 where x is up-sampled; where this is not defined, none has
 *   CONV_ACT      PvAct
 *   CONV_RESULT CONV_RESIDUAL CONV_BIAS   PvStorage of each
 *   TILE_STATS    2: norm tables of y, as it is stored, are made, of segments that want one (fprop)
 */
typedef CxStored<CONV_RESULT>::Element Result;
typedef CxStored<CONV_RESIDUAL>::Element Residual;
typedef CxStored<CONV_BIAS>::Element Bias;
typedef CxMapLaunch<ConvArgs, WG_SEGMENTS> Launch;
#include "wgmma_product.h"

// Axis 0 of the arguments is d.
CX_FN int axis_of(int axis)
{
    return 2 - axis;
}

CX_FN int stride_of(const ConvArgs &args, int axis)
{
    return CONV_STRIDED ? (int)args.stride[axis_of(axis)] : 1;
}

#if CONV_RESAMPLED
// Logarithms of the factor by which x is up-sampled along an axis, and of the number of classes.
CX_FN int up_of(const ConvArgs &args, int axis)
{
    return (int)args.x_shift[axis_of(axis)];
}
CX_FN int log_classes(const ConvArgs &args)
{
    return up_of(args, WGMMA_W) + up_of(args, WGMMA_H) + up_of(args, WGMMA_D);
}

// Positions of a box, as a logarithm.
CX_FN int log_box(const WgmmaPlan &plan)
{
    return (int)(plan.box[WGMMA_W] + plan.box[WGMMA_H] + plan.box[WGMMA_D] + plan.box[WGMMA_IMAGE]);
}
#endif

// Along an axis, of the positions of the gradient of x that are `phase` modulo the stride: the
// first tap, how many there are (each a stride from the last), and where y is at the first tap of
// position `phase`; it is one less at each further one.
struct PhaseTaps {
    int first, count, at;

    CX_FN PhaseTaps of(const ConvArgs &args, int axis, int phase)
    {
        int stride = stride_of(args, axis), kernel = (int)args.kernel[axis_of(axis)];
        int reach = phase + (int)args.pad[axis_of(axis)], first = reach % stride;
        return {first, first < kernel ? (kernel - 1 - first) / stride + 1 : 0, reach / stride};
    }
};

// First position of box `number`, by axis; returns how often all boxes fit in front of
// it: the phase.
CX_FN int set_box(const WgmmaPlan &plan, int number, int *at)
{
    CX_UNROLL
    for (int axis = 0; axis < WGMMA_AXES; axis++) {
        at[axis] = number % (int)plan.boxes[axis] << plan.box[axis];
        number /= (int)plan.boxes[axis];
    }
    return number;
}

CX_FN void set_tap(const ConvArgs &args, int tap, int *at)
{
    CX_UNROLL
    for (int axis = 0; axis < WGMMA_IMAGE; axis++) {
        int size = (int)args.kernel[axis_of(axis)];
        at[axis] = tap % size;
        tap /= size;
    }
}

// Where a tile lies: the box or the tap, and its first row and column.
struct TilePlace {
    int at[WGMMA_AXES];     // fprop, dgrad: the box, of positions of a phase; wgrad: the tap
    int phase[WGMMA_IMAGE]; // dgrad: see above
    int tap, m0, n0;        // wgrad: the tap's number, first row; first column

    CX_FN TilePlace of(const ConvArgs &args, const WgmmaPlan &plan, int tile)
    {
        TilePlace place;
        place.n0 = tile % (int)plan.n_tiles * TILE_N;
        tile /= (int)plan.n_tiles;
        place.tap = tile / (int)plan.m_tiles;
        place.m0 = tile % (int)plan.m_tiles * TILE_M;
        if (CONV_MODE == 2) {
            set_tap(args, place.tap, place.at);
        } else {
            int phase = set_box(plan, tile, place.at);
            CX_UNROLL
            for (int axis = 0; CONV_MODE == 1 && CONV_STRIDED && axis < WGMMA_IMAGE; axis++) {
                place.phase[axis] = phase % stride_of(args, axis);
                phase /= stride_of(args, axis);
            }
        }
        return place;
    }
};

CX_FN int steps_of(const Launch &p, u32 segment, int tile)
{
    const WgmmaPlan &plan = plan_of(p, segment);
    if (CONV_MODE != 1 || !CONV_STRIDED)
        return (int)plan.steps;
    TilePlace place = TilePlace::of(p.args[segment], plan, tile);
    int steps = (int)plan.chunks;
    CX_UNROLL
    for (int axis = 0; axis < WGMMA_IMAGE; axis++)
        steps *= PhaseTaps::of(p.args[segment], axis, place.phase[axis]).count;
    return steps;
}

struct Loads {
    const cx_tmap *a, *b;
    const ConvArgs *args;
    const WgmmaPlan *plan;
    TilePlace place;

    __device__ void tile(const Launch &p, const Turn &turn)
    {
        a = &p.maps[turn.segment].map[0];
        b = &p.maps[turn.segment].map[1];
        args = &p.args[turn.segment];
        plan = &plan_of(p, turn.segment);
        place = TilePlace::of(*args, *plan, turn.tile);
    }
    // Panels of 64 channels of a box, of wgrad.
    __device__ void panels(u32 to, const cx_tmap *map, u32 full, int channel, const int *at,
                           int count)
    {
        CX_UNROLL
        for (int i = 0; i < count; i++)
            cx_tma_load5(to + (u32)(i * PANEL), map, full, channel + i * 64, at[WGMMA_W],
                         at[WGMMA_H], at[WGMMA_D], at[WGMMA_IMAGE]);
    }
#if CONV_RESAMPLED
    // The box of each class at a tap.
    __device__ void classes(u32 stage, u32 full, int channel, int tap)
    {
        int at[WGMMA_AXES], first[WGMMA_IMAGE];
        set_tap(*args, tap, first);
        CX_NO_UNROLL
        for (int number = 0; number < 1 << log_classes(*args); number++) {
            int rest = number;
            CX_UNROLL
            for (int axis = 0; axis < WGMMA_IMAGE; axis++) {
                int up = up_of(*args, axis), by = first[axis] - (int)args->pad[axis_of(axis)];
#ifndef FAULT_CONV_CLASS // without it all positions are taken for the first class
                by += rest & ((1 << up) - 1);
#endif
                at[axis] = place.at[axis] * stride_of(*args, axis) + (by >> up);
                rest >>= up;
            }
            cx_tma_load5(stage + (u32)(number << log_box(*plan)) * 128, a, full, channel,
                         at[WGMMA_W], at[WGMMA_H], at[WGMMA_D], place.at[WGMMA_IMAGE]);
        }
    }
#endif
    __device__ void step(u32 stage, u32 full, int step)
    {
        u32 to_b = stage + STAGE_A;
#if CONV_MODE == 2
        int at[WGMMA_AXES];
        set_box(*plan, step, at);
        panels(stage, a, full, place.m0, at, TILE_M / 64);
        CX_UNROLL
        for (int axis = 0; axis < WGMMA_IMAGE; axis++)
            at[axis] = at[axis] * stride_of(*args, axis) + place.at[axis] -
                       (int)args->pad[axis_of(axis)];
        panels(to_b, b, full, place.n0, at, TILE_N / 64);
#else
        int tap = step / (int)plan->chunks, channel = step % (int)plan->chunks * WGMMA_TILE_K;
        int at[WGMMA_AXES];
#if CONV_MODE == 1 && CONV_STRIDED
        int rest = tap, scale = 1;
        tap = 0;
        CX_UNROLL
        for (int axis = 0; axis < WGMMA_IMAGE; axis++) {
            PhaseTaps taps = PhaseTaps::of(*args, axis, place.phase[axis]);
            int number = rest % taps.count;
            rest /= taps.count;
            at[axis] = place.at[axis] + taps.at - number;
            tap += (taps.first + number * stride_of(*args, axis)) * scale;
            scale *= (int)args->kernel[axis_of(axis)];
        }
#else
        set_tap(*args, tap, at);
        CX_UNROLL
        for (int axis = 0; axis < WGMMA_IMAGE; axis++) {
            int by = at[axis] - (int)args->pad[axis_of(axis)];
            at[axis] = CONV_MODE == 0 ? place.at[axis] * stride_of(*args, axis) + by
                                      : place.at[axis] - by;
        }
#endif
#if CONV_RESAMPLED
        classes(stage, full, channel, tap);
#else
        cx_tma_load5(stage, a, full, channel, at[WGMMA_W], at[WGMMA_H], at[WGMMA_D],
                     place.at[WGMMA_IMAGE]);
#endif
#if CONV_MODE == 0
        cx_tma_load3(to_b, b, full, channel, tap, place.n0);
#else
        CX_UNROLL
        for (int i = 0; i < TILE_N / 64; i++)
            cx_tma_load3(to_b + (u32)(i * PANEL), b, full, place.n0 + i * 64, tap, channel);
#endif
#endif
    }
};

// Rows of a tile by their number in it, columns by their number in the result.
struct Out {
#if TILE_STATS
    enum { BY_COLUMN = 1, GATED = 0 };
    PieceStats stats;
    bool in_parts;
#else
    enum { BY_COLUMN = 0, GATED = 0 };
#endif
    Result *to;
    const Residual *residual;
    const Bias *bias;
    const ConvArgs *args;
    const WgmmaPlan *plan;
    TilePlace place;
    int n, row_length;
    float added[4]; // bias of the columns at hand

    CX_FN Out of(const ConvArgs &args, const WgmmaPlan &plan, int tile)
    {
        Out out;
        out.args = &args;
        out.plan = &plan;
        out.place = TilePlace::of(args, plan, tile);
        out.to = (Result *)(CONV_MODE == 0 ? args.y : CONV_MODE == 1 ? args.x : args.w);
        out.residual = (const Residual *)args.residual;
        out.bias = CONV_MODE == 2 ? nullptr : (const Bias *)args.bias;
        out.row_length = (int)(CONV_MODE == 0 ? args.c_out : args.c_in);
        return out;
    }
    __device__ void column(int n_)
    {
        n = n_;
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            added[e] = bias && n < row_length ? cx_read(bias[n + e]) : 0.f;
    }
    // Element of row m, column n; *from: of the residual. false: there is no such row.
    __device__ bool find(int m, long long *at, long long *from)
    {
#if CONV_MODE == 2
        int taps = (int)args->kernel[0] * (int)args->kernel[1] * (int)args->kernel[2];
        m += place.m0;
        *at = *from = ((long long)m * taps + place.tap) * row_length + n;
        return m < (int)args->c_out;
#else
        const int64_t *size = CONV_MODE == 0 ? args->out : args->in;
        bool inside = true;
        int position = 0, scale = 1;
#if CONV_RESAMPLED
        int number = m >> log_box(*plan), shrunk = 0, shrunk_scale = 1; // class; in the residual
        m &= (1 << log_box(*plan)) - 1;
#endif
        CX_UNROLL
        for (int axis = 0; axis < WGMMA_IMAGE; axis++) {
            int extent = (int)size[axis_of(axis)];
            int index = place.at[axis] + (m & ((1 << plan->box[axis]) - 1));
            if (CONV_MODE == 1 && CONV_STRIDED)
                index = index * stride_of(*args, axis) + place.phase[axis];
            m >>= plan->box[axis];
#if CONV_RESAMPLED
            int up = up_of(*args, axis), shift = (int)args->residual_shift[axis_of(axis)];
            index = index << up | (number & ((1 << up) - 1));
            number >>= up;
            shrunk += (index >> shift) * shrunk_scale;
            shrunk_scale *= extent >> shift;
#endif
#ifdef FAULT_CONV_OUTSIDE // positions of the box behind the image are written too
            inside = inside && (axis != WGMMA_H || index < extent);
#else
            inside = inside && index < extent;
#endif
            position += index * scale;
            scale *= extent;
        }
        int image = place.at[WGMMA_IMAGE] + m;
        *at = image * (CONV_MODE == 0 ? args->y_image : args->x_image) +
              position * (CONV_MODE == 0 ? args->y_position : args->x_position) + n;
#if CONV_RESAMPLED
        position = shrunk;
#endif
#ifdef FAULT_CONV_RESIDUAL // positions are as far apart as the result's
        *from = image * args->residual_image + n +
                position * (CONV_MODE == 0 ? args->y_position : args->x_position);
#else
        *from = image * args->residual_image + position * args->residual_position + n;
#endif
        return inside && image < (int)args->images;
#endif
    }
    __device__ void put(int m, float *value)
    {
        long long at, from;
        if (n >= row_length || !find(m, &at, &from))
            return;
        float more[4];
        load_four<true>(more, residual + from, residual ? 4 : 0);
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            value[e] = activate<CONV_ACT>(value[e] + added[e]) + more[e];
        store_four<true>(to + at, value, 4);
#if TILE_STATS
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            value[e] = as_stored<Result>(value[e]);
        if (!in_parts)
            stats.add(value);
#endif
    }
#if TILE_STATS
    // Rows of an image in a box, as a logarithm.
    __device__ int log_rows() const
    {
        return (int)(plan->box[WGMMA_W] + plan->box[WGMMA_H] + plan->box[WGMMA_D]);
    }
    __device__ int boxes() const // of an image
    {
        return (int)(plan->boxes[WGMMA_W] * plan->boxes[WGMMA_H] * plan->boxes[WGMMA_D]);
    }
    __device__ void set_stats(const Launch &p, u32 segment, bool in_parts_)
    {
        in_parts = in_parts_;
        int piece = in_parts ? (int)PIECE_1 : (int)PIECE;
        int slots = (boxes() << log_rows()) / piece;
#if CONV_RESAMPLED
        slots <<= log_classes(*args);
#endif
        stats.set(args->stats, p.head, segment, (int)args->images, row_length, slots,
                  (int)(args->out[0] * args->out[1] * args->out[2]));
        stats.set_work(p.head, segment, before_moments(*plan, in_parts));
        stats.first = place.at[WGMMA_IMAGE];
        stats.last = stats.first + (1 << plan->box[WGMMA_IMAGE]) - 1;
    }
    __device__ int tiles_of(int from, int end) const
    {
        int box = (int)plan->box[WGMMA_IMAGE];
        return (((end - 1) >> box) - (from >> box) + 1) * boxes() * (int)plan->n_tiles;
    }
    // A piece begins at row m.
    __device__ void begin(int m)
    {
        int log = log_rows(), box = place.at[WGMMA_D] >> plan->box[WGMMA_D];
        box = box * (int)plan->boxes[WGMMA_H] + (place.at[WGMMA_H] >> plan->box[WGMMA_H]);
        box = box * (int)plan->boxes[WGMMA_W] + (place.at[WGMMA_W] >> plan->box[WGMMA_W]);
#if CONV_RESAMPLED
        box = (box << log_classes(*args)) + (m >> log_box(*plan));
        m &= (1 << log_box(*plan)) - 1;
#endif
        int row = (box << log) + (m & ((1 << log) - 1));
        stats.begin(place.at[WGMMA_IMAGE] + (m >> log),
                    row / (in_parts ? (int)PIECE_1 : (int)PIECE), n);
    }
    __device__ bool is_row(int m)
    {
        long long at, from;
        return find(m, &at, &from);
    }
    __device__ void columns(const float *results, int stride, int m, int n0)
    {
        add_piece(*this, results, stride, m, n0);
    }
#endif
};

// The results of a tile, its first row and column.
struct Tile {
    Out out;
    int m0, n0;

    CX_FN Tile of(const Launch &p, u32 segment, int number)
    {
        Out out = Out::of(p.args[segment], plan_of(p, segment), number);
        return {out, 0, out.place.n0};
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, WG_GROUPS == 1 ? 2 : 1)
    CX_NAME(const __grid_constant__ Launch p)
{
    CX_SHARED(shared);
    run_turns<Loads, Tile>(p, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    CX_NAME_1(const __grid_constant__ Launch p)
{
    CX_SHARED(shared);
    add_parts<Tile>(p, shared);
}
