/* T5: GroupNorm with scale and shift and an activation where channels are dense, computed in f32.
 *
 * A block takes a bundle of groups (norm_last_parts.h) of one image, over a chunk of positions,
 * which it reads once and keeps in shared memory as it is stored; statistics take two passes over
 * that. An image of one chunk is normalised in phase 1 alone. Else phase 0 leaves the mean and the
 * squares of each group's chunks in the workspace, and phase 1 puts them together in a fixed order.
 * A thread keeps its channels, so their factors stay in registers. The length of a chunk is
 * chunk_of, here and in shape_norm.c.
 *
 * Definitions: NORM_ACT, NORM_TYPES, LAST_CHANNELS. Shared memory: 8 KB, 4 LAST_CHANNELS floats and
 * a chunk, at most 78 KB. All accesses of images have 16 bytes. Registers at most 80.
 */
#include "storage.h"
#include "norm_parts.h"
#include "norm_last_parts.h"

enum { LONG = 16384 / LAST_CHANNELS, SHORT = LONG / 4, BUSY = 128 }; // positions of a chunk
typedef NORM_STORED(0) StoredY;
typedef NORM_STORED(3) StoredX;
typedef NORM_STORED(4) StoredGamma;
typedef NORM_STORED(5) StoredBeta;
typedef NORM_STORED(6) StoredScale;
typedef NORM_STORED(7) StoredShift;
typedef KeptAs<StoredX>::Type Kept;

struct Shared {
    float scratch[LANES * LAST_CHANNELS];
    float sums[LAST_CHANNELS], mean[LAST_CHANNELS], squares[LAST_CHANNELS]; // of channels, groups
};

CX_FN u32 chunk_of(const GroupNormArgs &a)
{
    u32 bundles = ((u32)a.c + LAST_CHANNELS - 1) / LAST_CHANNELS;
    u32 blocks = (u32)a.images * bundles * (((u32)a.positions + LONG - 1) / LONG);
    return blocks < BUSY ? SHORT : LONG;
}

// Group `group` of the bundle, from the sums of its channels.
CX_FN float sum_group(const float *sums, u32 group, u32 members)
{
    float sum = 0.f;
    u32 first = group * members, at = first / 32 % members; // so that neighbours meet other banks
    for (u32 i = 0; i < members; i++) {
        sum += sums[first + at];
        at = at + 1 < members ? at + 1 : 0;
    }
    return sum;
}

// Loads positions [first, end) of a bundle and finds the mean and the squares of its groups.
CX_FN void find_moments(const GroupNormArgs &a, const Bundle &b, u32 first, u32 end, Kept *kept,
                        Shared &shared)
{
    Place place = place_of(b);
    u32 members = (u32)(a.c / a.groups);
    const StoredX *x = (const StoredX *)a.x + b.image * a.x_image + b.channel + place.run * RUN;
    Run sum = {}, squares = {};
    CX_NO_UNROLL
    for (u32 i = first + place.position; place.busy && i < end; i += LANES) {
        Kept run;
        keep_run(run, x + i * a.x_position, RUN, true);
        kept[(i - first) * RUNS + place.run] = run;
        Run values = expand<StoredX>(run);
        CX_UNROLL
        for (int j = 0; j < RUN; j++)
            sum.at[j] += values.at[j];
    }
    sum_channels(shared.sums, sum, b, shared.scratch);
    float count = (float)(end - first) * (float)members;
    if (threadIdx.x < b.groups)
        shared.mean[threadIdx.x] = sum_group(shared.sums, threadIdx.x, members) / count;
    __syncthreads();
    Run mean;
    CX_UNROLL
    for (int j = 0; j < RUN; j++)
        mean.at[j] = place.busy ? shared.mean[(place.run * RUN + j) / members] : 0.f;
    CX_NO_UNROLL
    for (u32 i = place.position; place.busy && i < end - first; i += LANES) {
        Kept run = kept[i * RUNS + place.run];
        Run values = expand<StoredX>(run);
        CX_UNROLL
        for (int j = 0; j < RUN; j++) {
            float away = values.at[j] - mean.at[j];
            squares.at[j] += away * away;
        }
    }
    sum_channels(shared.sums, squares, b, shared.scratch);
    if (threadIdx.x < b.groups)
        shared.squares[threadIdx.x] = sum_group(shared.sums, threadIdx.x, members);
    __syncthreads();
}

// Phase 0: a block a chunk of a bundle. Workspace: float2 [images, groups, chunks].
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    CX_NAME(const __grid_constant__ CxLaunch<GroupNormArgs> p)
{
    CX_SHARED(memory);
    Shared &shared = *(Shared *)memory;
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormArgs &a = p.args[segment];
    u32 chunk = chunk_of(a), chunks = ((u32)a.positions + chunk - 1) / chunk;
    Bundle b = bundle_of(block / chunks, (u32)a.c, (u32)(a.c / a.groups));
    u32 first = block % chunks * chunk, end = (u32)min((int)(first + chunk), (int)a.positions);
    find_moments(a, b, first, end, (Kept *)(memory + sizeof(Shared)), shared);
    float2 *parts = (float2 *)p.head.work[segment];
    if (threadIdx.x < b.groups)
        parts[(b.image * (u32)a.groups + b.group + threadIdx.x) * chunks + block % chunks] =
            make_float2(shared.mean[threadIdx.x], shared.squares[threadIdx.x]);
}

// Moments of the bundle's groups from those of their chunks, a warp a group.
CX_FN void join_moments(const GroupNormArgs &a, const Bundle &b, const float2 *parts, u32 chunk,
                        u32 chunks, Shared &shared)
{
    float members = (float)(a.c / a.groups), total = members * (float)a.positions;
    int lane = threadIdx.x & 31;
    for (u32 group = threadIdx.x / 32; group < b.groups; group += THREADS / 32) {
        const float2 *part = parts + (b.image * (u32)a.groups + b.group + group) * chunks;
        float sum = 0.f, squares = 0.f;
        for (u32 i = lane; i < chunks; i += 32)
            sum += part[i].x * members * (float)min((int)(a.positions - i * chunk), (int)chunk);
        float mean = warp_sum(sum) / total;
        for (u32 i = lane; i < chunks; i += 32) {
            float away = part[i].x - mean;
            float count = members * (float)min((int)(a.positions - i * chunk), (int)chunk);
            squares += fmaf(away * away, count, part[i].y);
        }
        squares = warp_sum(squares);
        if (lane == 0) {
            shared.mean[group] = mean;
            shared.squares[group] = squares;
        }
    }
    __syncthreads();
}

// (x - mean) factor + offset, of the channels of a thread
struct Affine {
    Run mean, factor, offset;
};
CX_FN Affine affine_of(const GroupNormArgs &a, const Bundle &b, const Place &place,
                       const Shared &shared)
{
    u32 members = (u32)(a.c / a.groups);
    float total = (float)members * (float)a.positions, eps = cx_real(a.eps);
    Affine affine = {};
    for (int j = 0; place.busy && j < RUN; j++) {
        u32 group = (place.run * RUN + j) / members, c = b.channel + place.run * RUN + j;
        float factor = 1.f / sqrtf(shared.squares[group] / total + eps), offset = 0.f;
        if (a.gamma)
            factor *= cx_read(((const StoredGamma *)a.gamma)[c]);
        if (a.beta)
            offset = cx_read(((const StoredBeta *)a.beta)[c]);
        if (a.scale) {
            float more = 1.f + cx_read(((const StoredScale *)a.scale)[b.image * a.mod_image + c]);
            factor *= more;
            offset *= more;
        }
        if (a.shift)
            offset += cx_read(((const StoredShift *)a.shift)[b.image * a.mod_image + c]);
        affine.mean.at[j] = shared.mean[group];
        affine.factor.at[j] = factor;
        affine.offset.at[j] = offset;
    }
    return affine;
}

CX_FN void tell_stats(const GroupNormArgs &a, const Bundle &b, const Shared &shared)
{
    if (threadIdx.x >= b.groups)
        return;
    u32 at = b.image * (u32)a.groups + b.group + threadIdx.x;
    float total = (float)(a.c / a.groups) * (float)a.positions;
    if (a.mean)
        ((float *)a.mean)[at] = shared.mean[threadIdx.x];
    if (a.rstd)
        ((float *)a.rstd)[at] = 1.f / sqrtf(shared.squares[threadIdx.x] / total + cx_real(a.eps));
}

// Phase 1: a block a chunk of a bundle; that of the first chunk tells the groups' statistics.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    CX_NAME_1(const __grid_constant__ CxLaunch<GroupNormArgs> p)
{
    CX_SHARED(memory);
    Shared &shared = *(Shared *)memory;
    Kept *kept = (Kept *)(memory + sizeof(Shared));
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormArgs &a = p.args[segment];
    u32 chunk = chunk_of(a), chunks = ((u32)a.positions + chunk - 1) / chunk;
    Bundle b = bundle_of(block / chunks, (u32)a.c, (u32)(a.c / a.groups));
    u32 first = block % chunks * chunk, end = (u32)min((int)(first + chunk), (int)a.positions);
    if (chunks == 1)
        find_moments(a, b, first, end, kept, shared);
    else
        join_moments(a, b, (const float2 *)p.head.work[segment], chunk, chunks, shared);
    if (first == 0)
        tell_stats(a, b, shared);
    Place place = place_of(b);
    Affine affine = affine_of(a, b, place, shared);
    u32 channel = b.channel + place.run * RUN;
    const StoredX *x = (const StoredX *)a.x + b.image * a.x_image + channel;
    StoredY *y = (StoredY *)a.y + b.image * a.y_image + channel;
    CX_NO_UNROLL
    for (u32 i = first + place.position; place.busy && i < end; i += LANES) {
        Kept run;
        if (chunks == 1)
            run = kept[i * RUNS + place.run];
        else
            keep_run(run, x + i * a.x_position, RUN, true);
        Run values = expand<StoredX>(run);
        CX_UNROLL
        for (int j = 0; j < RUN; j++)
            values.at[j] = activate(
                fmaf(values.at[j] - affine.mean.at[j], affine.factor.at[j], affine.offset.at[j]));
        write_wide(y + i * a.y_position, values.at);
    }
}
