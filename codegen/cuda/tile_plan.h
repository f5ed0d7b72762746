// What select_gemm.c, select_conv.c and their shape functions share: tiles of gemm_tile.h, and into
// how many parts a reduction is cut so that a small grid fills the machine. Parts depend on sizes
// alone, never on the machine: the same bits everywhere.
#ifndef PVDMC_TILE_PLAN_H
#define PVDMC_TILE_PLAN_H

#include <stdint.h>

enum { TILE_BLOCKS = 264, TILE_FEW_BLOCKS = 132, TILE_PART_K = 256, TILE_MOST_PARTS = 32 };

// baked[0 .. 3] of kernels of this family
enum { TILE_BAKED_M, TILE_BAKED_N, TILE_BAKED_K, TILE_BAKED_QUADS };

static inline int64_t tile_count(int64_t size, int64_t tile)
{
    return (size + tile - 1) / tile;
}

// tiles: blocks without a cut; steps: of the reduction, `k` long each.
static inline int64_t tile_parts(int64_t tiles, int64_t steps, int64_t k)
{
    if (tiles == 0 || tiles >= TILE_FEW_BLOCKS)
        return 1;
    int64_t parts = TILE_BLOCKS / tiles, most = steps * k / TILE_PART_K;
    parts = parts < most ? parts : most;
    parts = parts < TILE_MOST_PARTS ? parts : TILE_MOST_PARTS;
    return parts > 1 ? parts : 1;
}

#endif
