/* T5, backward: the gradient of GroupNorm, computed in f32, any strides.
 *
 * With xhat = (x - mean) rstd and N elements a group,
 *   dx = rstd (gamma dy - (sum(gamma dy) + xhat sum(gamma dy xhat)) / N),
 *   dgamma = sum(dy xhat), dbeta = sum(dy).
 * Phase 0: each warp sums dy and dy xhat over a piece of positions: of one channel where positions
 * are dense, of 32 channels, a lane each, where channels are. The sums of all pieces lie in the
 * workspace. Phase 1: a first kind of block puts those of its group together and writes dx of a
 * part of it, a second kind those of a channel over all images. Orders are fixed. All sums come
 * before any dx, which may take the place of dy or x.
 *
 * Definitions: NORM_TYPES. Registers at most 64: 4 blocks a multiprocessor; LDG.128 in aligned
 * paths.
 */
#include "storage.h"
#include "norm_parts.h"
#include "group_norm_grad_parts.h"

enum { THREADS = 256, WARPS = THREADS / 32, PIECE = 256, PART = 4096 }; // positions, elements

struct Sizes {
    u32 channels, positions, pieces, parts; // of a group; of an image; of positions; of a group
    bool by_channel;                        // channels are the denser axis
};
CX_FN Sizes sizes_of(const GroupNormGradArgs &a)
{
    Sizes s;
    s.channels = (u32)(a.c / a.groups);
    s.positions = (u32)a.positions;
    s.pieces = (s.positions + PIECE - 1) / PIECE;
    s.parts = (s.channels * s.positions + PART - 1) / PART;
    s.by_channel = a.x_channel == 1 && (a.x_position != 1 || s.positions == 1);
    return s;
}

// ---- phase 0 ----

// Sums over `count` positions of one channel; lanes hold parts.
CX_FN float2 sum_positions(const GroupNormGradArgs &a, const StoredDy *dy, const StoredX *x,
                           int count, float mean, int lane)
{
    float plain = 0.f, product = 0.f;
    bool wide = a.x_position == 1 && a.dy_position == 1 && count % RUN == 0 && is_aligned(dy) &&
                is_aligned(x);
    if (wide) {
        CX_UNROLL
        for (int j = 0; j < PIECE; j += 32 * RUN) {
            Run up = load_run(dy + j + lane * RUN, count - j - lane * RUN, true);
            Run from = load_run(x + j + lane * RUN, count - j - lane * RUN, true);
            CX_UNROLL
            for (int k = 0; k < RUN; k++) {
                plain += up.at[k];
                product += up.at[k] * (from.at[k] - mean);
            }
        }
    } else {
        CX_NO_UNROLL
        for (int i = lane; i < count; i += 32) {
            float up = cx_read(dy[i * a.dy_position]);
            plain += up;
            product += up * (cx_read(x[i * a.x_position]) - mean);
        }
    }
    return make_float2(plain, product);
}

// The whole piece of one channel of one image, by a warp.
CX_FN void channel_piece(const GroupNormGradArgs &a, const Sizes &s, float2 *sums, u32 task)
{
    int lane = threadIdx.x & 31;
    u32 piece = task % s.pieces, image = task / s.pieces / (u32)a.c;
    u32 channel = task / s.pieces % (u32)a.c, first = piece * PIECE;
    u32 stat = image * (u32)a.groups + channel / s.channels;
    float2 sum = sum_positions(
        a,
        (const StoredDy *)a.dy + image * a.dy_image + channel * a.dy_channel +
            first * a.dy_position,
        (const StoredX *)a.x + image * a.x_image + channel * a.x_channel + first * a.x_position,
        min((int)(s.positions - first), (int)PIECE), ((const float *)a.mean)[stat], lane);
    sum.x = warp_sum(sum.x);
    sum.y = warp_sum(sum.y);
    if (lane == 0)
        sums[task] = make_float2(sum.x, sum.y * ((const float *)a.rstd)[stat]);
}

// A piece of 32 channels of one image, by a warp.
CX_FN void channels_piece(const GroupNormGradArgs &a, const Sizes &s, float2 *sums, u32 task)
{
    u32 blocks = ((u32)a.c + 31) / 32, piece = task % s.pieces, image = task / s.pieces / blocks;
    u32 channel = task / s.pieces % blocks * 32 + (threadIdx.x & 31), first = piece * PIECE;
    if (channel >= (u32)a.c || image >= (u32)a.images)
        return;
    u32 stat = image * (u32)a.groups + channel / s.channels;
    u32 count = (u32)min((int)(s.positions - first), (int)PIECE);
    float mean = ((const float *)a.mean)[stat], plain = 0.f, product = 0.f;
    const StoredDy *dy = (const StoredDy *)a.dy + image * a.dy_image + channel * a.dy_channel;
    const StoredX *x = (const StoredX *)a.x + image * a.x_image + channel * a.x_channel;
    for (u32 i = first; i < first + count; i++) {
        float up = cx_read(dy[i * a.dy_position]);
        plain += up;
        product += up * (cx_read(x[i * a.x_position]) - mean);
    }
    sums[((u64)image * (u32)a.c + channel) * s.pieces + piece] =
        make_float2(plain, product * ((const float *)a.rstd)[stat]);
}

// Workspace: float2 [images, c, pieces], sums of dy and of dy xhat.
extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<GroupNormGradArgs> p)
{
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormGradArgs &a = p.args[segment];
    Sizes s = sizes_of(a);
    float2 *sums = (float2 *)p.head.work[segment];
    u32 task = block * WARPS + (threadIdx.x >> 5);
    if (s.by_channel)
        channels_piece(a, s, sums, task);
    else if (task < (u32)a.images * (u32)a.c * s.pieces)
        channel_piece(a, s, sums, task);
}

// ---- phase 1 ----

// One group of one image, as outer x inner elements.
struct GradGroup {
    const StoredX *x;
    const StoredDy *dy;
    const StoredGamma *gamma; // of the group's first channel, or null
    StoredDx *dx;
    u32 count;
    Divider inner;
    int64_t x_outer, x_inner, dy_outer, dy_inner, dx_outer, dx_inner;
    float mean, rstd, along, level; // dx = dy rstd gamma + (x - mean) along + level
    bool by_channel, wide;
};

CX_FN GradGroup grad_group(const GroupNormGradArgs &a, const Sizes &s, u32 number)
{
    u32 image = number / (u32)a.groups, channel = number % (u32)a.groups * s.channels;
    bool turn = s.by_channel;
    GradGroup g;
    g.x = (const StoredX *)a.x + image * a.x_image + channel * a.x_channel;
    g.dy = (const StoredDy *)a.dy + image * a.dy_image + channel * a.dy_channel;
    g.dx = (StoredDx *)a.dx + image * a.dx_image + channel * a.dx_channel;
    g.gamma = a.gamma ? (const StoredGamma *)a.gamma + channel : nullptr;
    g.count = s.channels * s.positions;
    g.by_channel = turn;
    g.inner = divider(turn ? s.channels : s.positions);
    g.x_outer = turn ? a.x_position : a.x_channel, g.x_inner = turn ? a.x_channel : a.x_position;
    g.dy_outer = turn ? a.dy_position : a.dy_channel;
    g.dy_inner = turn ? a.dy_channel : a.dy_position;
    g.dx_outer = turn ? a.dx_position : a.dx_channel;
    g.dx_inner = turn ? a.dx_channel : a.dx_position;
    g.wide = g.x_inner == 1 && g.dy_inner == 1 && g.dx_inner == 1 && g.inner.by % RUN == 0 &&
             ((g.x_outer | g.dy_outer | g.dx_outer) & (RUN - 1)) == 0 && is_aligned(g.x) &&
             is_aligned(g.dy) && is_aligned(g.dx);
    g.mean = ((const float *)a.mean)[number];
    g.rstd = ((const float *)a.rstd)[number];
    return g;
}

// What all elements of the group have in common, from the sums of its channels.
CX_FN void join_sums(GradGroup &g, const Sizes &s, const float2 *sums, float *partial)
{
    float plain = 0.f, product = 0.f;
    CX_NO_UNROLL
    for (u32 i = threadIdx.x; i < s.channels * s.pieces; i += THREADS) {
        float weight = g.gamma ? cx_read(g.gamma[i / s.pieces]) : 1.f;
        plain += weight * sums[i].x;
        product += weight * sums[i].y;
    }
    plain = block_sum<THREADS>(plain, partial);
    product = block_sum<THREADS>(product, partial);
    g.level = -plain / (float)g.count * g.rstd;
    g.along = -product / (float)g.count * g.rstd * g.rstd;
}

CX_FN float grad_element(const GradGroup &g, u32 channel, float dy, float x)
{
    float up = g.gamma ? g.rstd * cx_read(g.gamma[channel]) : g.rstd;
    return fmaf(dy, up, fmaf(x - g.mean, g.along, g.level));
}

// dx of elements i .. i + RUN - 1.
CX_FN void grad_run(const GradGroup &g, u32 i)
{
    if (g.wide) {
        u32 outer = divide(i, g.inner), inner = i - outer * g.inner.by;
        Run dy, x, dx;
        read_wide(dy.at, g.dy + outer * g.dy_outer + inner);
        read_wide(x.at, g.x + outer * g.x_outer + inner);
        CX_UNROLL
        for (int j = 0; j < RUN; j++)
            dx.at[j] = grad_element(g, g.by_channel ? inner + j : outer, dy.at[j], x.at[j]);
        write_wide(g.dx + outer * g.dx_outer + inner, dx.at);
        return;
    }
    CX_NO_UNROLL
    for (u32 end = (u32)min((int)(i + RUN), (int)g.count); i < end; i++) {
        u32 outer = divide(i, g.inner), inner = i - outer * g.inner.by;
        float up = cx_read(g.dy[outer * g.dy_outer + inner * g.dy_inner]);
        float x = cx_read(g.x[outer * g.x_outer + inner * g.x_inner]);
        cx_write(g.dx + outer * g.dx_outer + inner * g.dx_inner,
                 grad_element(g, g.by_channel ? inner : outer, up, x));
    }
}

// Blocks: [images, groups, parts], then one for every WARPS channels.
extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<GroupNormGradArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormGradArgs &a = p.args[segment];
    Sizes s = sizes_of(a);
    const float2 *sums = (const float2 *)p.head.work[segment];
    u32 blocks = (u32)a.images * (u32)a.groups * s.parts;
    if (block >= blocks) {
        u32 channel = (block - blocks) * WARPS + (threadIdx.x >> 5);
        if (channel < (u32)a.c)
            finish_channel(a, s.pieces, sums, channel);
        return;
    }
    u32 number = block / s.parts, first = block % s.parts * PART;
    GradGroup g = grad_group(a, s, number);
    join_sums(g, s, sums + (u64)number * s.channels * s.pieces, (float *)shared);
    u32 end = (u32)min((int)(first + PART), (int)g.count);
    CX_NO_UNROLL
    for (u32 i = first + threadIdx.x * RUN; i < end; i += THREADS * RUN)
        grad_run(g, i);
}
