/* T5, backward: the gradient of GroupNorm where channels are dense, computed in f32.
 *
 * As group_norm_grad.cu, with bundles of groups (norm_last_parts.h): phase 0 sums dy and dy xhat of
 * every channel over pieces of positions; phase 1 puts those of a bundle's groups together and
 * writes dx of a piece, a thread keeping the factors of its channels; further blocks add up
 * channels over images. All sums come before any dx, which may take the place of dy or x.
 *
 * Definitions: NORM_TYPES, LAST_CHANNELS. Shared memory: 8 KB and 4 LAST_CHANNELS floats. All
 * accesses of images have 16 bytes. Registers at most 80: 3 blocks a multiprocessor.
 */
#include "storage.h"
#include "norm_parts.h"
#include "norm_last_parts.h"
#include "group_norm_grad_parts.h"

enum { WARPS = THREADS / 32, PIECE = 16384 / LAST_CHANNELS / 2 }; // positions

struct Shared {
    float scratch[LANES * LAST_CHANNELS];
    float plain[LAST_CHANNELS], product[LAST_CHANNELS]; // of channels, then of groups
};

// What a thread reads and writes, from position 0 on.
struct Channels {
    const StoredDy *dy;
    const StoredX *x;
    StoredDx *dx;
};
CX_FN Channels channels_of(const GroupNormGradArgs &a, const Bundle &b, const Place &place)
{
    u32 channel = b.channel + place.run * RUN;
    return {(const StoredDy *)a.dy + b.image * a.dy_image + channel,
            (const StoredX *)a.x + b.image * a.x_image + channel,
            (StoredDx *)a.dx + b.image * a.dx_image + channel};
}

// mean or rstd of the groups of this thread's channels
CX_FN Run stats_of(int64_t address, const GroupNormGradArgs &a, const Bundle &b, const Place &place)
{
    const float *stats = (const float *)address + b.image * (u32)a.groups + b.group;
    Run run = {};
    for (int j = 0; place.busy && j < RUN; j++)
        run.at[j] = stats[(place.run * RUN + j) / (u32)(a.c / a.groups)];
    return run;
}

// Phase 0: a block a piece of a bundle.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    CX_NAME(const __grid_constant__ CxLaunch<GroupNormGradArgs> p)
{
    CX_SHARED(memory);
    Shared &shared = *(Shared *)memory;
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormGradArgs &a = p.args[segment];
    u32 pieces = ((u32)a.positions + PIECE - 1) / PIECE, piece = block % pieces;
    Bundle b = bundle_of(block / pieces, (u32)a.c, (u32)(a.c / a.groups));
    Place place = place_of(b);
    Channels at = channels_of(a, b, place);
    Run mean = stats_of(a.mean, a, b, place), plain = {}, product = {};
    u32 end = (u32)min((int)((piece + 1) * PIECE), (int)a.positions);
    CX_NO_UNROLL
    for (u32 i = piece * PIECE + place.position; place.busy && i < end; i += LANES) {
        Run dy, x;
        read_wide(dy.at, at.dy + i * a.dy_position);
        read_wide(x.at, at.x + i * a.x_position);
        CX_UNROLL
        for (int j = 0; j < RUN; j++) {
            plain.at[j] += dy.at[j];
            product.at[j] += dy.at[j] * (x.at[j] - mean.at[j]);
        }
    }
    sum_channels(shared.plain, plain, b, shared.scratch);
    sum_channels(shared.product, product, b, shared.scratch);
    if (threadIdx.x < b.channels) {
        u32 channel = b.channel + threadIdx.x;
        float rstd =
            ((const float *)a.rstd)[b.image * (u32)a.groups + channel / (u32)(a.c / a.groups)];
        ((float2 *)p.head.work[segment])[((u64)b.image * (u32)a.c + channel) * pieces + piece] =
            make_float2(shared.plain[threadIdx.x], shared.product[threadIdx.x] * rstd);
    }
}

// Sums of the bundle's groups, weighted by gamma, a warp a group.
CX_FN void join_sums(const GroupNormGradArgs &a, const Bundle &b, const float2 *sums, u32 pieces,
                     Shared &shared)
{
    u32 members = (u32)(a.c / a.groups);
    int lane = threadIdx.x & 31;
    for (u32 group = threadIdx.x / 32; group < b.groups; group += WARPS) {
        u32 channel = b.channel + group * members;
        const float2 *part = sums + ((u64)b.image * (u32)a.c + channel) * pieces;
        float plain = 0.f, product = 0.f;
        for (u32 i = lane; i < members * pieces; i += 32) {
            float weight = 1.f;
            if (a.gamma)
                weight = cx_read(((const StoredGamma *)a.gamma)[channel + i / pieces]);
            plain += weight * part[i].x;
            product += weight * part[i].y;
        }
        plain = warp_sum(plain);
        product = warp_sum(product);
        if (lane == 0) {
            shared.plain[group] = plain;
            shared.product[group] = product;
        }
    }
    __syncthreads();
}

// dx = dy up + (x - mean) along + level, of the channels of a thread
CX_FN void write_dx(const GroupNormGradArgs &a, const Bundle &b, u32 first, u32 end,
                    const Shared &shared)
{
    Place place = place_of(b);
    Channels at = channels_of(a, b, place);
    u32 members = (u32)(a.c / a.groups);
    float total = (float)members * (float)a.positions;
    Run mean = stats_of(a.mean, a, b, place), up = stats_of(a.rstd, a, b, place), along, level;
    for (int j = 0; place.busy && j < RUN; j++) {
        u32 group = (place.run * RUN + j) / members, channel = b.channel + place.run * RUN + j;
        level.at[j] = -shared.plain[group] / total * up.at[j];
        along.at[j] = -shared.product[group] / total * up.at[j] * up.at[j];
        if (a.gamma)
            up.at[j] *= cx_read(((const StoredGamma *)a.gamma)[channel]);
    }
    CX_NO_UNROLL
    for (u32 i = first + place.position; place.busy && i < end; i += LANES) {
        Run dy, x;
        read_wide(dy.at, at.dy + i * a.dy_position);
        read_wide(x.at, at.x + i * a.x_position);
        CX_UNROLL
        for (int j = 0; j < RUN; j++)
            dy.at[j] =
                fmaf(dy.at[j], up.at[j], fmaf(x.at[j] - mean.at[j], along.at[j], level.at[j]));
        write_wide(at.dx + i * a.dx_position, dy.at);
    }
}

// Phase 1: a block a piece of a bundle, then one for every WARPS channels.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    CX_NAME_1(const __grid_constant__ CxLaunch<GroupNormGradArgs> p)
{
    CX_SHARED(memory);
    Shared &shared = *(Shared *)memory;
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormGradArgs &a = p.args[segment];
    const float2 *sums = (const float2 *)p.head.work[segment];
    u32 pieces = ((u32)a.positions + PIECE - 1) / PIECE, piece = block % pieces;
    u32 bundles = ((u32)a.c + LAST_CHANNELS - 1) / LAST_CHANNELS;
    u32 blocks = (u32)a.images * bundles * pieces;
    if (block >= blocks) {
        u32 channel = (block - blocks) * WARPS + (threadIdx.x >> 5);
        if (channel < (u32)a.c)
            finish_channel(a, pieces, sums, channel);
        return;
    }
    Bundle b = bundle_of(block / pieces, (u32)a.c, (u32)(a.c / a.groups));
    join_sums(a, b, sums, pieces, shared);
    write_dx(a, b, piece * PIECE, (u32)min((int)((piece + 1) * PIECE), (int)a.positions), shared);
}
