// Which matrix product: gemm_f32.cu where everything is f32, else gemm_bf16.cu, with a tile that
// suits the sizes.
#include <stddef.h>

#include "codegen/cuda/select.h"
#include "codegen/cuda/tile_plan.h"
#include "codegen/cuda/tile_select.h"

#define AT(field) (offsetof(GemmArgs, field) / sizeof(int64_t))
enum { STORE_C, STORE_A, STORE_B, STORE_BIAS, STORE_RESIDUAL }; // in `types`

// Rows of an operand (or of c) are accessed `by` elements at a time, which are `bytes`: where it
// begins, what lies between rows and matrices, how long a row is.
static bool takes(const CudaLaunch *launch, int64_t by, int64_t bytes, size_t address,
                  size_t stride, size_t batch0, size_t batch1, size_t length)
{
    return cuda_is_aligned(launch, address, bytes) && tile_multiple(launch, stride, by) &&
           tile_multiple(launch, batch0, by) && tile_multiple(launch, batch1, by) &&
           tile_multiple(launch, length, by);
}

typedef struct {
    bool a_k, b_k;         // dense along k
    bool a, b, c;          // 16 bytes of an operand, and 4 elements of c, at a time
} Access;

// Which operands take what; false: neither of an operand's strides is 1.
static bool find_access(const CudaLaunch *launch, const GemmArgs *args, Access *access)
{
    bool a_k = tile_is_one(launch, AT(a_k)), b_k = tile_is_one(launch, AT(b_k));
    int64_t by = args->types ? 8 : 4;
    access->a_k = a_k;
    access->b_k = b_k;
    access->a = takes(launch, by, 16, AT(a), a_k ? AT(a_m) : AT(a_k), AT(a0), AT(a1),
                      a_k ? AT(k) : AT(m));
    access->b = takes(launch, by, 16, AT(b), b_k ? AT(b_n) : AT(b_k), AT(b0), AT(b1),
                      b_k ? AT(k) : AT(n));
    if (args->types) {     // chunks are of bf16 or f16
        access->a = access->a && tile_storage(args->types, STORE_A) != PV_STORE_REAL;
        access->b = access->b && tile_storage(args->types, STORE_B) != PV_STORE_REAL;
    }
    if (!b_k)
        access->b = access->b && tile_multiple(launch, AT(gate), by);
    access->c = takes(launch, 4, tile_storage(args->types, STORE_C) ? 8 : 16, AT(c), AT(c_m),
                      AT(c0), AT(c1), AT(n));
    if (cuda_is_there(launch, AT(residual)))
        access->c =
            access->c && takes(launch, 4, tile_storage(args->types, STORE_RESIDUAL) ? 8 : 16,
                               AT(residual), AT(r_m), AT(r0), AT(r1), AT(n));
    bool of_a = args->image_rows > 0;          // factors of four channels at a time
    if (args->norm.table && of_a)
        access->a = access->a && takes(launch, 4, 16, AT(norm.table), AT(norm.image),
                                       AT(norm.shift), AT(norm.shift), AT(k));
    if (args->norm.table && b_k && !of_a)
        access->b = access->b && takes(launch, 4, 16, AT(norm.table), AT(norm.image),
                                       AT(norm.shift), AT(norm.shift), AT(k));
    return (a_k || tile_is_one(launch, AT(a_m))) && (b_k || tile_is_one(launch, AT(b_n)));
}

// Every segment has gates (1), or none has (0); else -1.
static int has_gates(const CudaLaunch *launch)
{
    uint32_t gates = 0, segments = launch->segments > 1 ? launch->segments : 1;
    for (uint32_t i = 0; i < segments; i++) {
        const PlanArg *args = i > 0 ? launch->all + i * launch->arg_count : launch->args;
        gates += args[AT(gate)].a != 0;
    }
    return gates == segments ? 1 : gates == 0 ? 0 : -1;
}

// What both templates are told; the tile is chosen.
static const char *common_definitions(const CudaLaunch *launch, CudaChoice *choice,
                                      const GemmArgs *one, const Access *access)
{
    choice->phases = 2;
    choice->shared[0] += TILE_TASK_BYTES;
    choice->shape = "pv_shape_gemm";
    choice->name = arena_printf(launch->arena, "gemm_%s%dx%d%s%s%s%s", tile_half_name(one->types),
                                choice->baked[TILE_BAKED_M], choice->baked[TILE_BAKED_N],
                                tile_act_name(one->act), one->gate ? "_gate" : "",
                                one->sum_batch ? "_sum" : "",
                                tile_norm_name(one->norm.table, tile_has_stats(&one->stats)));
    if (tile_has_stats(&one->stats))
        tile_choose_stats(choice);
    return arena_printf(launch->arena,
                        "GEMM_A_K=%d GEMM_B_K=%d GEMM_C_4=%d GEMM_ACT=%d GEMM_SUM=%d%s%s",
                        access->a_k, access->b_k, access->c, (int)one->act, one->sum_batch != 0,
                        one->gate ? " GEMM_GATE=1" : "",
                        tile_norm_definitions(launch->arena, one->norm.table, one->norm.act,
                                              tile_has_stats(&one->stats)));
}

// The sum over batch elements is baked in, so all segments have it or none.
static bool sums_agree(const CudaLaunch *launch)
{
    for (uint32_t i = 1; i < launch->segments; i++)
        if ((launch->all[i * launch->arg_count + AT(sum_batch)].a != 0) !=
            (launch->args[AT(sum_batch)].a != 0))
            return false;
    return true;
}

// Norms and their tables: in f32 where channels are rows, in mixed precision where they are dense.
static bool takes_norms(const CudaLaunch *launch, const GemmArgs *args, const Access *access)
{
    for (uint32_t i = 1; i < launch->segments; i++)
        if ((launch->all[i * launch->arg_count + AT(image_rows)].a != 0) != (args->image_rows != 0))
            return false;
    return !args->sum_batch && args->batch1 == 1 &&
           (args->types ? args->image_rows > 0 && access->a_k : args->image_rows == 0);
}

bool cuda_select_gemm(const CudaLaunch *launch, CudaChoice *choice)
{
    GemmArgs one, usual;
    Access access;
    Arena *arena = launch->arena;
    tile_numbers(launch, 0, 1, (int64_t *)&one);
    tile_numbers(launch, 0, TILE_USUAL_BATCH, (int64_t *)&usual);
    if (!find_access(launch, &one, &access) || tile_half(one.types) < 0 || !sums_agree(launch))
        return false;
    bool taken_apart = one.norm.table || tile_has_stats(&one.stats);
    if ((taken_apart && !takes_norms(launch, &one, &access)) ||
        !tile_norm_act(launch, AT(norm.table), AT(norm.act), &one.norm.act))
        return false;
    int gates = has_gates(launch);
    if (gates < 0 || (gates > 0 && (taken_apart || one.sum_batch || one.sum)))
        return false;
    usual.n *= gates > 0 ? 2 : 1;
    int64_t batches = one.sum_batch ? 1 : usual.batch0 * usual.batch1;
    batches *= launch->segments > 1 ? launch->segments : 1;
    if (one.types) {
        const MmaTile *tile = mma_tile_for(usual.m, usual.n, batches);
        mma_choose(choice, tile);
        choice->file = "gemm_bf16.cu";
        const char *common = common_definitions(launch, choice, &one, &access);
        choice->definitions = arena_printf(
            arena,
            "%s %s%s GEMM_A_8=%d GEMM_B_8=%d GEMM_A=%d GEMM_B=%d GEMM_C=%d GEMM_RESIDUAL=%d "
            "GEMM_BIAS=%d",
            mma_definitions(arena, tile, tile_half(one.types)), common,
            taken_apart ? " GEMM_IMAGE_ROWS=1" : "", access.a, access.b,
            tile_storage(one.types, STORE_A), tile_storage(one.types, STORE_B),
            tile_storage(one.types, STORE_C), tile_storage(one.types, STORE_RESIDUAL),
            tile_storage(one.types, STORE_BIAS));
        return true;
    }
    const Tile *tile = tile_for(usual.m, usual.n, batches);
    tile_choose(choice, tile);
    choice->file = "gemm_f32.cu";
    const char *common = common_definitions(launch, choice, &one, &access);
    choice->definitions = arena_printf(arena, "%s %s GEMM_A_4=%d GEMM_B_4=%d",
                                       tile_definitions(arena, tile), common, access.a, access.b);
    return true;
}
