/* Norm tables of what T1 makes (NormStats of kernel_args.h): the counterpart of norm_stats.h for
 * tiles whose rows are boxes of positions. Included in a kernel's namespace behind norm_factors.h
 * by templates with the definition TILE_STATS 2.
 *
 * Rows come in pieces, 16 that a warp stores, or in phase 1 those of a block; a piece belongs to
 * one image (shape_wgmma.c sees to that), of which it is number `slot`. A lane follows its four
 * columns through a piece by Welford's updates while it stores them, and leaves mean and squares in
 * the workspace: float2 [image][slot][channel], and behind all of those how many rows each piece
 * has, float [image][slot].
 *
 * Then each warpgroup (of phase 1: block) counts itself at the counters of its tile's images, as in
 * norm_stats.h, and the last of an image puts its pieces together in a fixed order.
 */

struct PieceStats {
    const NormStats *to;
    float2 *moments;
    float *counts;
    u32 *counters;
    int images, channels, slots;
    int positions;   // of an image
    int first, last; // images of the tile, the last one included
    // the piece at hand, and the lane's columns
    int image, slot, channel;
    float count, mean[4], squares[4];

    // Phase 1 adds `tiles` tiles of `parts` parts, which lie in front.
    __device__ void set(const NormStats &stats, const CxHead &head, u32 segment, int images_,
                        int channels_, int slots_, int positions_)
    {
        to = &stats;
        images = images_;
        channels = channels_;
        slots = slots_;
        positions = positions_;
        counters = head.counters + segment * CX_COUNTERS;
    }
    __device__ void set_work(const CxHead &head, u32 segment, long long before)
    {
        moments = (float2 *)(head.work[segment] + before);
        counts = (float *)(moments + (long long)images * slots * channels);
    }
    __device__ bool wanted() const // a segment may want neither
    {
        return to->table != 0 || to->moments != 0;
    }
    __device__ void begin(int image_, int slot_, int channel_)
    {
        image = image_;
        slot = slot_;
        channel = channel_;
        count = 0.f;
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            mean[e] = squares[e] = 0.f;
    }
    __device__ void add(const float *value)
    {
        count += 1.f;
        float share = cx_reciprocal(count);
        CX_UNROLL
        for (int e = 0; e < 4; e++) {
            float away = value[e] - mean[e];
            mean[e] = fmaf(away, share, mean[e]);
            squares[e] = fmaf(away, value[e] - mean[e], squares[e]);
        }
    }
    // Takes the rows of the lane that is `by` away, which has the same columns. All
    // lanes take part.
    __device__ void join_lanes(int by)
    {
        float other = __shfl_xor_sync(CX_ALL_LANES, count, by), both = count + other;
        float share = both > 0.f ? other * cx_reciprocal(both) : 0.f;
        CX_UNROLL
        for (int e = 0; e < 4; e++) {
            float its = __shfl_xor_sync(CX_ALL_LANES, mean[e], by);
            float more = __shfl_xor_sync(CX_ALL_LANES, squares[e], by);
            float away = its - mean[e];
            squares[e] += more + away * away * count * share;
            mean[e] = fmaf(away, share, mean[e]);
        }
        count = both;
    }
    __device__ void leave()
    {
        if (!wanted() || image >= images || channel >= channels || slot >= slots)
            return;
        long long at = (long long)image * slots + slot;
        if (channel == 0)
            counts[at] = count;
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            moments[at * channels + channel + e] = make_float2(mean[e], squares[e]);
    }

    // Sums over the pieces of `in_group` channels of an image, by a warp: of what their means tell
    // of the whole, or of squares about `about`.
    template <bool of_squares>
    __device__ float sum_over(int image_, int from, int in_group, float about) const
    {
        int lane = (int)threadIdx.x & 31, at = lane / in_group, rest = lane % in_group;
        float sum = 0.f;
        CX_UNROLL_BY(4)
        while (at < slots) {
            long long piece = (long long)image_ * slots + at;
            float2 part = moments[piece * channels + from + rest];
            float rows = counts[piece], away = part.x - about;
            sum += of_squares ? fmaf(away * away, rows, part.y) : part.x * rows;
            rest += 32 % in_group;
            at += 32 / in_group + (rest >= in_group);
            rest -= rest >= in_group ? in_group : 0;
        }
        return lanes_sum<32>(sum);
    }
    // As in norm_stats.h: task `number` of an image is a group's table, or a channel's moments.
    __device__ void make(int image_, int number) const
    {
        int groups = to->table ? (int)to->groups : 0;
        bool is_group = number < groups;
        int in_group = is_group ? channels / groups : 1;
        int from = is_group ? number * in_group : number - groups;
        float share = cx_reciprocal((float)in_group * (float)positions);
        float middle = sum_over<false>(image_, from, in_group, 0.f) * share;
        float away = sum_over<true>(image_, from, in_group, middle);
        if (is_group) {
            put_table(*to, channels, image_, number, middle,
                      rsqrtf(away * share + cx_real(to->eps)));
        } else if ((threadIdx.x & 31) == 0) {
            float *at = (float *)to->moments + image_ * to->moments_image + from;
            at[0] = middle;
            at[to->moments_shift] = away;
        }
    }

    // All threads of the warpgroup, or of the block in phase 1, wait for one another.
    template <bool group> CX_FN void wait()
    {
        if (!group) {
            __syncthreads();
        } else if (threadIdx.x < 128) {
            cx_barrier(1, 128);
        } else {
            cx_barrier(2, 128);
        }
    }
    // Everything of the tile is left. out.tiles_of(from, end): tiles of the images from .. end - 1;
    // `each`: how often a tile is counted. flags: of each warp a word for each of the tile's
    // images, `apart` words apart.
    template <bool group, class Out>
    __device__ void finish(const Out &out, int each, u32 *flags, int apart)
    {
        const int threads = group ? 128 : THREADS;
        int per = (images + CX_COUNTERS - 1) / CX_COUNTERS, from = first / per;
        int number = min(last, images - 1) / per - from + 1, i = (int)threadIdx.x % threads;
        if (!wanted())
            return;
#ifndef FAULT_STATS_BARRIER // some warps are still at work
        wait<group>();
#endif
        if (i < number) {
            int begin = (from + i) * per, end = min(begin + per, images);
            u32 most = (u32)(out.tiles_of(begin, end) * each - 1);
#ifndef FAULT_STATS_FENCE // what was written is on its way when the warpgroup is counted
            __threadfence();
#endif
            u32 flag = atomicInc(counters + from + i, most) == most;
            __threadfence();
            CX_NO_UNROLL
            for (int warp = 0; warp < threads / 32; warp++)
                flags[warp * apart + i] = flag;
        }
        wait<group>();
        flags += i / 32 * apart;
        int tasks = (to->table ? (int)to->groups : 0) + (to->moments ? channels : 0);
        CX_NO_UNROLL
        for (int k = 0; k < number; k++) {
            int begin = (from + k) * per, count_of_tasks = min(per, images - begin) * tasks;
            u32 is_last = i % 32 == 0 ? flags[k] : 0;
            is_last = __shfl_sync(CX_ALL_LANES, is_last, 0);
            CX_NO_UNROLL
            for (int task = is_last ? i / 32 : count_of_tasks; task < count_of_tasks;
                 task += threads / 32)
                make(begin + task / tasks, task % tasks);
        }
        wait<group>(); // flags are free again
    }
};
