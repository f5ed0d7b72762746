/* T5: GroupNorm with scale and shift and an activation, computed in f32, any strides.
 *
 * A group of an image is walked along its denser axis, a run of 16 bytes at a time. Statistics take
 * two passes (the mean, then squares about it) over what one read left in shared memory. A group
 * that fits there, NORM_RESIDENT elements, is normalised by one block in phase 1 alone. A larger
 * one, or one of so few that multiprocessors would idle, is cut into chunks: phase 0 leaves the
 * mean and the squares of each in the workspace, and the blocks of phase 1 put them together, all
 * in the same order (Chan, Golub and LeVeque 1979). The decision is chunk_of, here and in
 * shape_norm.c. Where a norm table is asked for instead of y, or moments of channels (each a group
 * of its own), phase 1 has a block a group, which writes its part of it.
 *
 * Definitions: NORM_ACT, NORM_TYPES, NORM_RESIDENT (4096 with 256 threads, 16384 with 512).
 * Shared memory: NORM_RESIDENT * 4 + 64 bytes. Registers at most 64, so 1024 threads a
 * multiprocessor. Global accesses of aligned groups are LDG.128 and STG.128.
 */
#include "storage.h"
#include "norm_parts.h"

enum { THREADS = NORM_RESIDENT <= 4096 ? 256 : 512, CHUNK = 4096, BUSY = 128 };

typedef NORM_STORED(0) StoredY;
typedef NORM_STORED(3) StoredX;
typedef NORM_STORED(4) StoredGamma;
typedef NORM_STORED(5) StoredBeta;
typedef NORM_STORED(6) StoredScale;
typedef NORM_STORED(7) StoredShift;

// One group of one image, as outer x inner elements.
struct Group {
    const StoredX *x;
    StoredY *y;
    u32 count;
    Divider inner;
    int64_t x_outer, x_inner, y_outer, y_inner; // strides
    u32 image, channel;                         // its first channel
    bool by_channel, wide;                      // inner: channels; runs are aligned
};

CX_FN Group group_of(const GroupNormArgs &a, u32 number)
{
    u32 channels = (u32)(a.c / a.groups), positions = (u32)a.positions;
    Group g;
    g.image = number / (u32)a.groups;
    g.channel = number % (u32)a.groups * channels;
    g.x = (const StoredX *)a.x + g.image * a.x_image + g.channel * a.x_channel;
    g.y = (StoredY *)a.y + g.image * a.y_image + g.channel * a.y_channel;
    g.count = channels * positions;
    g.by_channel = a.x_channel == 1 && (a.x_position != 1 || positions == 1);
    g.inner = divider(g.by_channel ? channels : positions);
    g.x_outer = g.by_channel ? a.x_position : a.x_channel;
    g.x_inner = g.by_channel ? a.x_channel : a.x_position;
    g.y_outer = g.by_channel ? a.y_position : a.y_channel;
    g.y_inner = g.by_channel ? a.y_channel : a.y_position;
    if (!a.y) // then it may lie as x does
        g.y = nullptr, g.y_outer = g.x_outer, g.y_inner = g.x_inner;
    g.wide = g.x_inner == 1 && g.y_inner == 1 && g.inner.by % RUN == 0 &&
             ((g.x_outer | g.y_outer) & (RUN - 1)) == 0 && is_aligned(g.x) && is_aligned(g.y);
    return g;
}

// Elements that a block takes at once.
CX_FN u32 chunk_of(const GroupNormArgs &a)
{
    int64_t count = a.c / a.groups * a.positions;
    bool cut = count > NORM_RESIDENT || (count > CHUNK && a.images * a.groups < BUSY);
    return cut ? CHUNK : NORM_RESIDENT;
}

// Elements i .. i + RUN - 1; those behind the group's end are 0.
CX_FN Run load_group(const Group &g, u32 i)
{
    Run q = {};
    CX_UNROLL
    for (int j = 0; j < RUN; j++) {
        if (i + j >= g.count || (g.wide && j > 0))
            break;
        u32 outer = divide(i + j, g.inner), inner = i + j - outer * g.inner.by;
        const StoredX *from = g.x + outer * g.x_outer + inner * g.x_inner;
        if (g.wide)
            read_wide(q.at, from);
        else
            q.at[j] = cx_read(*from);
    }
    return q;
}

struct Moments {
    float mean, squares; // sum of (x - mean)^2
};

// Run `number` as it is kept in shared memory: [RUN / 4, NORM_RESIDENT / RUN] fours of elements, so
// that neighbours meet different banks.
CX_FN float *kept_four(float *kept, u32 number, int four)
{
    return kept + (four * (NORM_RESIDENT / RUN) + (int)number) * 4;
}
CX_FN void keep_group(float *kept, u32 number, const Run &run)
{
    CX_UNROLL
    for (int j = 0; j < RUN / 4; j++)
        cx_write4(kept_four(kept, number, j), run.at + 4 * j);
}
CX_FN Run kept_group(float *kept, u32 number)
{
    Run run;
    CX_UNROLL
    for (int j = 0; j < RUN / 4; j++)
        cx_read4(run.at + 4 * j, kept_four(kept, number, j));
    return run;
}

// Loads elements [first, end) and finds their moments. Each thread reads in `kept` what it has
// written.
CX_FN Moments find_moments(const Group &g, u32 first, u32 end, float *kept, float *partial)
{
    float sum = 0.f, squares = 0.f;
    CX_NO_UNROLL
    for (u32 i = first + threadIdx.x * RUN; i < end; i += THREADS * RUN) {
        Run q = load_group(g, i);
        keep_group(kept, (i - first) / RUN, q);
        sum += run_sum(q);
    }
    float mean = block_sum<THREADS>(sum, partial) / (float)(end - first);
    CX_NO_UNROLL
    for (u32 i = first + threadIdx.x * RUN; i < end; i += THREADS * RUN) {
        Run q = kept_group(kept, (i - first) / RUN);
        CX_UNROLL
        for (int k = 0; k < RUN; k++) {
            float away = i + k < end ? q.at[k] - mean : 0.f;
            squares += away * away;
        }
    }
    return {mean, block_sum<THREADS>(squares, partial)};
}

// Moments of a whole group from those of its chunks.
CX_FN Moments join_moments(const Group &g, const float2 *parts, u32 chunks, float *partial)
{
    float sum = 0.f, squares = 0.f;
    for (u32 i = threadIdx.x; i < chunks; i += THREADS)
        sum += parts[i].x * (float)min((int)(g.count - i * CHUNK), (int)CHUNK);
    float mean = block_sum<THREADS>(sum, partial) / (float)g.count;
    for (u32 i = threadIdx.x; i < chunks; i += THREADS) {
        float away = parts[i].x - mean;
        float count = (float)min((int)(g.count - i * CHUNK), (int)CHUNK);
        squares += fmaf(away * away, count, parts[i].y);
    }
    return {mean, block_sum<THREADS>(squares, partial)};
}

// (x - mean) factor + offset
struct Affine {
    float factor, offset;
};
CX_FN Affine affine_of(const GroupNormArgs &a, const Group &g, u32 channel, float rstd)
{
    u32 c = g.channel + channel;
    Affine affine = {rstd, 0.f};
    if (a.gamma)
        affine.factor *= cx_read(((const StoredGamma *)a.gamma)[c]);
    if (a.beta)
        affine.offset = cx_read(((const StoredBeta *)a.beta)[c]);
    if (a.scale) {
        float more = 1.f + cx_read(((const StoredScale *)a.scale)[g.image * a.mod_image + c]);
        affine.factor *= more;
        affine.offset *= more;
    }
    if (a.shift)
        affine.offset += cx_read(((const StoredShift *)a.shift)[g.image * a.mod_image + c]);
    return affine;
}

CX_FN void store_group(const GroupNormArgs &a, const Group &g, u32 i, Run q, float mean, float rstd)
{
    u32 first = divide(i, g.inner), inside = i - first * g.inner.by;
    Affine affine = {0.f, 0.f};
    CX_UNROLL
    for (int j = 0; j < RUN; j++) {
        if (i + j >= g.count)
            return;
        u32 outer = g.wide ? first : divide(i + j, g.inner), inner = i + j - outer * g.inner.by;
        if (j == 0 || !g.wide || g.by_channel)
            affine = affine_of(a, g, g.by_channel ? inner : outer, rstd);
        q.at[j] = activate(fmaf(q.at[j] - mean, affine.factor, affine.offset));
        if (!g.wide)
            cx_write(g.y + outer * g.y_outer + inner * g.y_inner, q.at[j]);
    }
    if (g.wide)
        write_wide(g.y + first * g.y_outer + inside, q.at);
}

// The group's channels in the norm table.
CX_FN void store_table(const GroupNormArgs &a, const Group &g, float mean, float rstd)
{
    float *table = (float *)a.table + g.image * 2 * a.c + g.channel;
    CX_NO_UNROLL
    for (u32 i = threadIdx.x; i < (u32)(a.c / a.groups); i += THREADS) {
        Affine affine = affine_of(a, g, i, rstd);
        table[i] = affine.factor;
        table[a.c + i] = affine.offset - mean * affine.factor;
    }
}

// Phase 0: a block a chunk; its moments into the workspace, float2 [images, groups, chunks].
extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<GroupNormArgs> p)
{
    CX_SHARED(shared);
    u32 number;
    u32 segment = cx_segment(p.head, &number);
    const GroupNormArgs &a = p.args[segment];
    u32 chunks = ((u32)(a.c / a.groups * a.positions) + CHUNK - 1) / CHUNK;
    Group g = group_of(a, number / chunks);
    u32 first = number % chunks * CHUNK, end = (u32)min((int)(first + CHUNK), (int)g.count);
    Moments moments = find_moments(g, first, end, (float *)(shared + 64), (float *)shared);
    if (threadIdx.x == 0)
        ((float2 *)p.head.work[segment])[number] = make_float2(moments.mean, moments.squares);
}

// Phase 1: a block a chunk; that of a group's first chunk tells its statistics.
extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<GroupNormArgs> p)
{
    CX_SHARED(shared);
    u32 block;
    u32 segment = cx_segment(p.head, &block);
    const GroupNormArgs &a = p.args[segment];
    u32 chunk = chunk_of(a), chunks = ((u32)(a.c / a.groups * a.positions) + chunk - 1) / chunk;
    u32 number = a.y ? block / chunks : block, first = a.y ? block % chunks * chunk : 0;
    Group g = group_of(a, number);
    u32 end = (u32)min((int)(first + chunk), (int)g.count);
    float *kept = (float *)(shared + 64);
    const float2 *parts = (const float2 *)p.head.work[segment] + number * chunks;
    Moments moments = chunks == 1 ? find_moments(g, first, end, kept, (float *)shared)
                                  : join_moments(g, parts, chunks, (float *)shared);
    float rstd = 1.f / sqrtf(moments.squares / (float)g.count + cx_real(a.eps));
    if (first == 0 && threadIdx.x == 0 && a.mean)
        ((float *)a.mean)[number] = moments.mean;
    if (first == 0 && threadIdx.x == 0 && a.rstd)
        ((float *)a.rstd)[number] = rstd;
    if (a.table)
        store_table(a, g, moments.mean, rstd);
    if (a.moments && threadIdx.x == 0) {
        float *at = (float *)a.moments + g.image * a.moments_image + g.channel;
        at[0] = moments.mean;
        at[a.moments_shift] = moments.squares;
    }
    if (!a.y)
        return;
    CX_NO_UNROLL
    for (u32 i = first + threadIdx.x * RUN; i < end; i += THREADS * RUN)
        store_group(a, g, i, chunks == 1 ? kept_group(kept, i / RUN) : load_group(g, i),
                    moments.mean, rstd);
}
