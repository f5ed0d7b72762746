/* What both phases of a kernel of matrix products or convolutions do around the tile product: which
 * part of a reduction a block has, and what becomes of its sums. Included in a kernel's namespace
 * behind Out (gemm_out.h, conv_problem.h).
 *
 * `place` is what Out::of takes: the batch element or the convolution, and m0, n0, the tile's first
 * row and column. `task` has tile, part and parts.
 */

// Steps first .. end - 1 of a reduction.
struct Steps {
    int first, end;

    CX_FN Steps of(int steps, int part, int parts)
    {
        return {steps * part / parts, steps * (part + 1) / parts};
    }
};

// Phase 0: the sums of a tile become results, or are kept, since phase 1 adds them to others.
template <class Args, class Task, class Place>
CX_FN void finish_tile(const TileSums &sums, const CxLaunch<Args> &p, u32 segment, const Task &task,
                       const Place &place, bool is_part, u8 *shared)
{
    if (is_part) {
        Keep keep = Keep::of(p.head.work[segment], task.parts, task.tile, task.part);
        tile_store(sums, keep, 0, 0, (float *)shared);
        return;
    }
    Out out = Out::of(p.args[segment], place);
#if TILE_STATS
    out.stats = Out::statistics_of(p.args[segment], p.head, segment, place, false);
#endif
    tile_store(sums, out, place.m0, place.n0, (float *)shared);
#if TILE_STATS
    out.stats.finish((u32 *)shared);
#endif
}

// Phase 1: the parts of a tile become results, a block TILE_BLOCKS-th of it. `more` segments behind
// this one are summed with it.
template <class Args, class Place>
CX_FN void finish_parts(const CxLaunch<Args> &p, u32 segment, int64_t more, u32 block,
                        const Place &place, u8 *shared)
{
    Out out = Out::of(p.args[segment], place);
#if TILE_STATS
    out.stats = Out::statistics_of(p.args[segment], p.head, segment, place, true);
#endif
    tile_collect(p.head, segment, more, (int)block / TILE_BLOCKS, (int)block % TILE_BLOCKS, out,
                 place.m0, place.n0, (float *)shared);
#if TILE_STATS
    out.stats.finish((u32 *)shared);
#endif
}
