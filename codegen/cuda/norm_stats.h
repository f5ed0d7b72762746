/* Norm tables of what a product or a convolution makes (NormStats of kernel_args.h), in the same
 * launch. Included in a kernel's namespace behind tile_out.h by templates with the definition
 * TILE_STATS 1; ROWS_ARE_POSITIONS says which way a tile lies.
 *
 * Results are positions of images, one image after another, by channels. Their positions are cut
 * into chunks, and the epilogue leaves the mean of every channel of every image in each chunk, and
 * the squares about it, in the workspace: float2 [chunk + image][channel] (going on by a chunk or
 * an image, or both, never meets a row twice). Where positions lie along rows a chunk is a tile,
 * whose rows neighbouring lanes add; else it is as many rows as lie in shared memory at a time.
 *
 * Then each block of a tile counts itself at the counters of the tile's images. The one that is the
 * last of an image puts the means and squares of each group together, in a fixed order (Chan, Golub
 * and LeVeque 1979), and writes the table. Everything that a block wrote is before its barrier,
 * which is before the fence and the count; the count and a fence of the last are before what it
 * reads. A counter goes from its end back to 0 by itself.
 */

#include "norm_factors.h"

enum { STATS_TILE = ROWS_ARE_POSITIONS ? TILE_M : TILE_N }; // positions

// Where moments lie: behind the sums of parts, which phase 1 reads.
CX_FN float2 *moments_of(const CxHead &head, u32 segment, bool in_parts)
{
    u8 *work = head.work[segment];
    if (in_parts) {
        u32 tiles = (head.first[segment + 1] - head.first[segment]) / TILE_BLOCKS;
        work += 256 + (u64)tiles * *(const u32 *)work * (TILE_M * TILE_N * 4);
    }
    return (float2 *)work;
}

struct Statistics {
    const NormStats *to;
    float2 *moments;
    u32 *counters;
    int images, channels;
    int positions, apart; // of an image; from the first of an image to that of the next
    int chunk;            // positions
    int blocks;           // that fill a tile of positions, with all channels
    int start;            // of the tile
    int first_image;      // there

    __device__ int end() const // of all positions
    {
        return (images - 1) * apart + positions;
    }
    // How many positions of an image lie in [from, from + count).
    __device__ int shared_positions(int image, int from, int count) const
    {
        return min(image * apart + positions, from + count) - max(image * apart, from);
    }
    __device__ void leave(int number, int image, int channel, float mean, float squares)
    {
        moments[(long long)(number + image) * channels + channel] = make_float2(mean, squares);
    }

    // A segment may want neither table nor moments; then nothing is left and nothing is counted.
    __device__ bool wanted() const
    {
        return to->table != 0 || to->moments != 0;
    }

    // Four values of a channel, at the thread's columns; neighbouring lanes have the rest of its
    // row. All lanes of a warp take part. there: the channel is one.
    __device__ void add_row(int channel, bool there, const float *value)
    {
        int at = start + tile_column4(), limit = min(start + STATS_TILE, end());
        if (!wanted())
            return;
        CX_NO_UNROLL
        for (int image = first_image; image * apart < limit; image++) {
            int first = image * apart - at, last = first + positions;
            float sum = 0.f, squares = 0.f;
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                sum += e >= first && e < last ? value[e] : 0.f;
            float mean = lanes_sum<TILE_N / 4>(sum) *
                         cx_reciprocal((float)shared_positions(image, start, STATS_TILE));
            CX_UNROLL
            for (int e = 0; e < 4; e++) {
                float away = e >= first && e < last ? value[e] - mean : 0.f;
                squares += away * away;
            }
            squares = lanes_sum<TILE_N / 4>(squares);
            if (there && tile_column4() == 0)
                leave(start / STATS_TILE, image, channel, mean, squares);
        }
    }

    // Row i of a column, where two lanes have a column's rows: 16 banks apart.
    CX_FN int row_of(int i, int stride)
    {
        int half = stride % 8 == 4 ? 4 : 2;
        return THREADS / TILE_N == 2 ? i / (2 * half) * (2 * half) + i % 2 * half + i / 2 % half
                                     : i;
    }

    // `chunk` rows of positions from `at`, in shared memory, and the columns of channels from
    // `channel`, `there` of them.
    __device__ void add_columns(const float *values, int stride, int at, int channel, int there)
    {
        const int each = THREADS / TILE_N;
        int column = (int)threadIdx.x / each, limit = min(at + chunk, end());
        if (!wanted())
            return;
        CX_NO_UNROLL
        for (int image = at / apart; image * apart < limit; image++) {
            int first = max(image * apart - at, 0), count = shared_positions(image, at, chunk);
            float sum = 0.f, squares = 0.f;
            CX_NO_UNROLL
            for (int i = (int)threadIdx.x % each, row; (row = row_of(i, stride)) < count; i += each)
                sum += values[(first + row) * stride + column];
            float mean = lanes_sum<each>(sum) * cx_reciprocal((float)count);
            CX_NO_UNROLL
            for (int i = (int)threadIdx.x % each, row;
                 (row = row_of(i, stride)) < count; i += each) {
                float away = values[(first + row) * stride + column] - mean;
                squares += away * away;
            }
            squares = lanes_sum<each>(squares);
            if (column < there && (int)threadIdx.x % each == 0)
                leave(at / chunk, image, channel + column, mean, squares);
        }
    }

    // Walks the moments of a group of an image: lane by lane, a chunk's channels before the next's.
    struct Walk {
        const float2 *from;
        int row, rest; // which chunk, and which channel of the group
        int row_step, rest_step, in_group;

        __device__ void next()
        {
            row += row_step;
            rest += rest_step;
            if (rest >= in_group) {
                rest -= in_group;
                row++;
            }
        }
    };
    // Sums over it: of what the chunks' means tell of the whole, or of squares about `mean`.
    template <bool squares>
    __device__ float sum_over(Walk at, int image, int chunks, float mean) const
    {
        float sum = 0.f;
        CX_UNROLL_BY(4)
        for (; at.row < chunks; at.next()) {
            float2 part = at.from[(long long)at.row * channels + at.rest];
            int number = image * apart / chunk + at.row;
            float count = (float)shared_positions(image, number * chunk, chunk);
            float away = part.x - mean;
            sum += squares ? fmaf(away * away, count, part.y) : part.x * count;
        }
        return lanes_sum<32>(sum);
    }

    // The mean of `in_group` channels of an image from number `channel` on, and the squares about
    // it, by a warp.
    __device__ float2 join(int image, int channel, int in_group) const
    {
        int lane = threadIdx.x & 31, first = image * apart, number = first / chunk;
        int chunks = (first + positions - 1) / chunk - number + 1;
        Walk walk = {moments + (long long)(number + image) * channels + channel,
                     lane / in_group, lane % in_group, 32 / in_group, 32 % in_group, in_group};
        float mean = sum_over<false>(walk, image, chunks, 0.f) *
                     cx_reciprocal((float)in_group * (float)positions);
        return make_float2(mean, sum_over<true>(walk, image, chunks, mean));
    }
    // Task `number` of an image by a warp: the table of a group, or behind those of all groups the
    // moments of a channel.
    __device__ void make(int image, int number) const
    {
        int groups = to->table ? (int)to->groups : 0, lane = threadIdx.x & 31;
        bool is_group = number < groups;
        int in_group = is_group ? channels / (int)to->groups : 1;
        int channel = is_group ? number * in_group : number - groups;
        float2 joined = join(image, channel, in_group);
        if (is_group) {
            float share = cx_reciprocal((float)in_group * (float)positions);
            put_table(*to, channels, image, number, joined.x, rsqrtf(joined.y * share +
                                                                     cx_real(to->eps)));
        } else if (lane == 0) {
            float *at = (float *)to->moments + image * to->moments_image + channel;
            at[0] = joined.x;
            at[to->moments_shift] = joined.y;
        }
    }
    __device__ int tasks() const // of an image
    {
        return (to->table ? (int)to->groups : 0) + (to->moments ? channels : 0);
    }

    // The block has left all its moments. flags: STATS_TILE words of shared memory.
    __device__ void finish(u32 *flags)
    {
        int per = (images + CX_COUNTERS - 1) / CX_COUNTERS, span = per * apart;
        int first = start / span, limit = min(start + (int)STATS_TILE, end());
        int count = (limit - 1) / span - first + 1, i = (int)threadIdx.x;
        if (!wanted())
            return;
#ifndef FAULT_STATS_BARRIER // some warps are still at work
        __syncthreads();
#endif
        if (i < count) {
            int from = (first + i) * span, last = min(from + span, end()) - 1;
            u32 most = (u32)((last / STATS_TILE - from / STATS_TILE + 1) * blocks - 1);
#ifndef FAULT_STATS_FENCE // what was written is on its way when the block is counted
            __threadfence();
#endif
            flags[i] = atomicInc(counters + first + i, most) == most;
            __threadfence();
        }
        __syncthreads();
        CX_NO_UNROLL
        for (i = 0; i < count; i++) {
            int image = (first + i) * per, each = tasks();
            int count_of_tasks = flags[i] ? min(per, images - image) * each : 0;
            CX_NO_UNROLL
            for (int task = (int)threadIdx.x / 32; task < count_of_tasks; task += THREADS / 32)
                make(image + task / each, task % each);
        }
    }
};
