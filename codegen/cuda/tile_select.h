// The tiles that gemm_tile.h is instantiated with, and which one suits a product.
#ifndef PVDMC_TILE_SELECT_H
#define PVDMC_TILE_SELECT_H

#include "codegen/cuda/select.h"
#include "codegen/cuda/tile_plan.h"

enum { TILE_USUAL_BATCH = 4 };   // sizes that grow with the batch are looked at there

typedef struct {
    int m, n, k, thread_m, thread_n, lanes_m;
} Tile;

// Of mma_product.h: of a block, and of a warp.
typedef struct {
    int m, n, warp_m, warp_n;
} MmaTile;

static const MmaTile tiles_mma[] = {
    {128, 128, 64, 32},          // 256 threads
    {64, 64, 64, 32},            // 64 threads
};
enum { MMA_TILE_K = 32, MMA_STAGES = 3 };
enum { TILE_TASK_BYTES = 64, TILE_PROBLEM_BYTES = 256 };   // in gemm_out.h, conv_problem.h

static const Tile tiles_f32[] = {
    {128, 128, 8, 8, 8, 4},      // 256 threads
    {64, 64, 16, 8, 4, 4},       // 128 threads
    {16, 128, 16, 4, 4, 4},      // 128 threads: few rows
    {128, 16, 16, 4, 4, 8},      // 128 threads: few columns
};

// m x n sums of `batches` products.
static inline const Tile *tile_for(int64_t m, int64_t n, int64_t batches)
{
    if (m <= 16)
        return &tiles_f32[2];
    if (n <= 16)
        return &tiles_f32[3];
    int64_t large = tile_count(m, 128) * tile_count(n, 128) * batches;
    int64_t small = tile_count(m, 64) * tile_count(n, 64) * batches;
    // large ones where they fill the machine and are not mostly empty
    return &tiles_f32[large >= TILE_FEW_BLOCKS && large * 3 <= small ? 0 : 1];
}

static inline const MmaTile *mma_tile_for(int64_t m, int64_t n, int64_t batches)
{
    int64_t large = tile_count(m, 128) * tile_count(n, 128) * batches;
    int64_t small = tile_count(m, 64) * tile_count(n, 64) * batches;
    return &tiles_mma[large >= TILE_FEW_BLOCKS && large * 3 <= small ? 0 : 1];
}

static inline const char *tile_act_name(int64_t act)
{
    static const char *const name[] = {"", "_silu", "_gelu", "_relu"};
    return name[act];
}

static inline const char *tile_definitions(Arena *arena, const Tile *tile)
{
    return arena_printf(arena, "TILE_M=%d TILE_N=%d TILE_K=%d TILE_TM=%d TILE_TN=%d TILE_LM=%d",
                        tile->m, tile->n, tile->k, tile->thread_m, tile->thread_n, tile->lanes_m);
}

// A number is a multiple of `by` at any batch, in every segment.
static inline bool tile_multiple(const CudaLaunch *launch, size_t index, int64_t by)
{
    bool multiple = launch->args[index].a % by == 0 && launch->args[index].c % by == 0;
    for (uint32_t i = 1; multiple && i < launch->segments; i++) {
        const PlanArg *arg = &launch->all[i * launch->arg_count + index];
        multiple = arg->a % by == 0 && arg->c % by == 0;
    }
    return multiple;
}

// A number is 1 at any batch, in every segment.
static inline bool tile_is_one(const CudaLaunch *launch, size_t index)
{
    bool one = cuda_is_number(launch, index) && launch->args[index].a == 1;
    for (uint32_t i = 1; one && i < launch->segments; i++) {
        const PlanArg *arg = &launch->all[i * launch->arg_count + index];
        one = arg->a == 1 && arg->c == 0;
    }
    return one;
}

// The numbers of one segment at a batch; addresses are 0 or not.
static inline void tile_numbers(const CudaLaunch *launch, uint32_t segment, int64_t batch,
                                int64_t *numbers)
{
    const PlanArg *args =
        segment > 0 ? launch->all + segment * launch->arg_count : launch->args;
    for (size_t i = 0; i < launch->arg_count; i++)
        numbers[i] = args[i].space != PV_VALUE ? 1 : args[i].a + args[i].c * batch;
}

// The activation of segments that normalize, those whose argument number `table` is an address:
// it is baked in. false: they have several.
static inline bool tile_norm_act(const CudaLaunch *launch, size_t table, size_t act, int64_t *found)
{
    bool there = false;
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        const PlanArg *args = launch->segments > 1 ? launch->all + (size_t)i * launch->arg_count
                                                   : launch->args;
        if (args[table].space == PV_VALUE)
            continue;
        if (there && args[act].a != *found)
            return false;
        *found = args[act].a;
        there = true;
    }
    return true;
}

// Threads, shared memory and what shape functions read.
static inline void tile_choose(CudaChoice *choice, const Tile *tile)
{
    choice->threads[0] = choice->threads[1] =
        (uint32_t)(tile->m * tile->n / (tile->thread_m * tile->thread_n));
    choice->shared[0] = (uint32_t)(2 * tile->k * (tile->m + tile->n + 8) * (int)sizeof(float));
    choice->baked[TILE_BAKED_M] = tile->m;
    choice->baked[TILE_BAKED_N] = tile->n;
    choice->baked[TILE_BAKED_K] = tile->k;
    choice->baked[TILE_BAKED_BLOCKS] = tile->thread_m * tile->thread_n / 4;
}

static inline void mma_choose(CudaChoice *choice, const MmaTile *tile)
{
    uint32_t threads = (uint32_t)(32 * tile->m * tile->n / (tile->warp_m * tile->warp_n));
    choice->threads[0] = choice->threads[1] = threads;
    choice->shared[0] = (uint32_t)(MMA_STAGES * MMA_TILE_K * 2 * (tile->m + tile->n));
    choice->baked[TILE_BAKED_M] = tile->m;
    choice->baked[TILE_BAKED_N] = tile->n;
    choice->baked[TILE_BAKED_K] = MMA_TILE_K;
    choice->baked[TILE_BAKED_BLOCKS] = tile->m * tile->n / 4 / (int32_t)threads;
    choice->baked[TILE_BAKED_LAST] = tile->warp_m;
}

// half: PvStorage of the operands.
static inline const char *mma_definitions(Arena *arena, const MmaTile *tile, int half)
{
    return arena_printf(arena, "TILE_M=%d TILE_N=%d WARP_M=%d WARP_N=%d TILE_HALF=%d", tile->m,
                        tile->n, tile->warp_m, tile->warp_n, half);
}

// Shared memory of phase 1 for norm_stats.h: the rows of a block, which a flag a
// position fits in too.
static inline void tile_choose_stats(CudaChoice *choice)
{
    int n = choice->baked[TILE_BAKED_N], rows = choice->baked[TILE_BAKED_M];
    choice->shared[1] = (uint32_t)(rows / choice->baked[TILE_BAKED_BLOCKS] * (n + 4)) * 4;
    choice->counts = true;
}

// Definitions of operands that are normalized and results whose statistics are taken, each with a
// blank in front; "" where there is neither.
static inline const char *tile_norm_definitions(Arena *arena, int64_t norm, int64_t act,
                                                int64_t stats)
{
    const char *first = norm ? arena_printf(arena, " TILE_NORM=%d", (int)act + 1) : "";
    return stats ? arena_printf(arena, "%s TILE_STATS=1", first) : first;
}
static inline const char *tile_norm_name(int64_t norm, int64_t stats)
{
    return norm && stats ? "_norm_stats" : norm ? "_norm" : stats ? "_stats" : "";
}

// PvStorage of address `number` of a struct.
static inline int tile_storage(int64_t types, int number)
{
    return (int)(types >> 4 * number & 15);
}
// The half-precision storage that a launch has beside f32: what tensor cores multiply; -1: both.
static inline int tile_half(int64_t types)
{
    int half = PV_STORE_REAL;
    for (int i = 0; i < 8; i++) {
        int storage = tile_storage(types, i);
        if (storage != PV_STORE_REAL && half != PV_STORE_REAL && half != storage)
            return -1;
        half = storage != PV_STORE_REAL ? storage : half;
    }
    return half;
}
static inline const char *tile_half_name(int64_t types)
{
    static const char *const name[] = {"", "bf16_", "f16_"};
    return name[tile_half(types)];
}

#endif
