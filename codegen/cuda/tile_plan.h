// What select_gemm.c, select_conv.c and their shape functions share: tiles of gemm_tile.h, and into
// how many parts a reduction is cut so that a small grid fills the machine. Parts depend on sizes
// alone, never on the machine: the same bits everywhere.
#ifndef PVDMC_TILE_PLAN_H
#define PVDMC_TILE_PLAN_H

#include <stdbool.h>

#include "codegen/kernel_args.h"

enum { TILE_MANY_BLOCKS = 264, TILE_FEW_BLOCKS = 132, TILE_PART_K = 256, TILE_MOST_PARTS = 32 };

// baked[] of kernels of this family; the last two of convolutions only. LAST: 0, or where channels
// are dense the rows of sums that come at a time.
enum {
    TILE_BAKED_M, TILE_BAKED_N, TILE_BAKED_K, TILE_BAKED_BLOCKS, TILE_BAKED_MODE, TILE_BAKED_LAST
};
enum { CONV_FPROP, CONV_DGRAD, CONV_WGRAD };

static inline int64_t tile_count(int64_t size, int64_t tile)
{
    return (size + tile - 1) / tile;
}

typedef struct {
    int64_t tiles, steps;      // blocks without a cut, and steps of the reduction of the longest
} TileWork;

static inline TileWork tile_gemm_work(const GemmArgs *args, const int32_t *baked)
{
    int64_t batches = args->batch0 * args->batch1;
    int64_t columns = args->gate ? 2 * args->n : args->n;      // values and gates
    int64_t tiles = tile_count(args->m, baked[TILE_BAKED_M]) *
                    tile_count(columns, baked[TILE_BAKED_N]);
    int64_t steps = tile_count(args->k, baked[TILE_BAKED_K]);
    return args->sum_batch ? (TileWork){tiles, steps * batches}
                           : (TileWork){tiles * batches, steps};
}

// dgrad: the positions of each phase (remainder modulo the strides) are tiled by themselves, all as
// many times as the largest.
static inline TileWork tile_conv_work(const ConvArgs *args, const int32_t *baked)
{
    int64_t tile_m = baked[TILE_BAKED_M], tile_n = baked[TILE_BAKED_N],
            tile_k = baked[TILE_BAKED_K];
    int64_t c_in = args->c_in / args->groups, c_out = args->c_out / args->groups;
    int64_t taps = args->kernel[0] * args->kernel[1] * args->kernel[2];
    if (baked[TILE_BAKED_MODE] == CONV_WGRAD) {
        int64_t positions = args->out[0] * args->out[1] * args->out[2];
        return (TileWork){
            args->groups * tile_count(c_out, tile_m) * tile_count(c_in * taps, tile_n),
            args->images * tile_count(positions, tile_k)};
    }
    bool grad = baked[TILE_BAKED_MODE] == CONV_DGRAD, last = baked[TILE_BAKED_LAST] != 0;
    int64_t columns = args->images, phases = 1, most_taps = 1;
    for (int axis = 0; axis < 3; axis++) {
        int64_t stride = grad ? args->stride[axis] : 1;
        columns *= grad ? tile_count(args->in[axis], stride) : args->out[axis];
        phases *= !grad ? 1 : stride < args->in[axis] ? stride : args->in[axis];
        most_taps *= tile_count(args->kernel[axis], stride);
    }
    int64_t tiles = phases * tile_count(columns, last ? tile_m : tile_n) * args->groups *
                    tile_count(grad ? c_in : c_out, last ? tile_n : tile_m);
    return (TileWork){tiles, tile_count((grad ? c_out : c_in) * most_taps, tile_k)};
}

// Bytes of the moments of norm_stats.h: chunks of `chunk` of these positions, image after image.
static inline int64_t tile_stats_bytes(int64_t images, int64_t apart, int64_t channels,
                                       int64_t chunk)
{
    return ((tile_count(images * apart, chunk) + images) * channels * 8 + 255) / 256 * 256;
}

static inline bool tile_has_stats(const NormStats *stats)
{
    return stats->table || stats->moments;
}

static inline int64_t tile_gemm_stats(const GemmArgs *args, const int32_t *baked, bool in_parts)
{
    int64_t tile = baked[TILE_BAKED_N], rows = baked[TILE_BAKED_M];
    if (!tile_has_stats(&args->stats))
        return 0;
    if (args->image_rows) {
        int64_t chunk = in_parts ? rows / baked[TILE_BAKED_BLOCKS] : baked[TILE_BAKED_LAST];
        bool one = args->batch0 == 1;
        return tile_stats_bytes(one ? args->m / args->image_rows : args->batch0,
                                one ? args->image_rows : tile_count(args->m, rows) * rows, args->n,
                                chunk);
    }
    return tile_stats_bytes(args->batch0, tile_count(args->n, tile) * tile, args->m, tile);
}

static inline int64_t tile_conv_stats(const ConvArgs *args, const int32_t *baked, bool in_parts)
{
    int64_t chunk = baked[TILE_BAKED_N];
    if (!tile_has_stats(&args->stats) || baked[TILE_BAKED_MODE] != CONV_FPROP)
        return 0;
    if (baked[TILE_BAKED_LAST])
        chunk = in_parts ? baked[TILE_BAKED_M] / baked[TILE_BAKED_BLOCKS] : baked[TILE_BAKED_LAST];
    return tile_stats_bytes(args->images, args->out[0] * args->out[1] * args->out[2], args->c_out,
                            chunk);
}

// tiles: blocks without a cut; steps: of the reduction, `k` long each.
static inline int64_t tile_parts(TileWork work, const int32_t *baked)
{
    if (work.tiles == 0 || work.tiles >= TILE_FEW_BLOCKS)
        return 1;
    int64_t parts = TILE_MANY_BLOCKS / work.tiles;
    int64_t most = work.steps * baked[TILE_BAKED_K] / TILE_PART_K;
    parts = parts < most ? parts : most;
    parts = parts < TILE_MOST_PARTS ? parts : TILE_MOST_PARTS;
    return parts > 1 ? parts : 1;
}

#endif
