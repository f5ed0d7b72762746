// Which matrix product: gemm_f32.cu with a tile that suits the sizes.
#include <stddef.h>

#include "codegen/cuda/select.h"
#include "codegen/cuda/tile_plan.h"
#include "codegen/cuda/tile_select.h"

#define AT(field) (offsetof(GemmArgs, field) / sizeof(int64_t))

// Rows of an operand (or of c) are read 16 bytes at a time: where it begins, what lies between
// rows and matrices, how long a row is.
static bool takes_fours(const CudaLaunch *launch, size_t address, size_t stride, size_t batch0,
                        size_t batch1, size_t length)
{
    return cuda_is_aligned(launch, address, 16) && tile_fours(launch, stride) &&
           tile_fours(launch, batch0) && tile_fours(launch, batch1) && tile_fours(launch, length);
}

bool cuda_select_gemm(const CudaLaunch *launch, CudaChoice *choice)
{
    bool a_k = tile_is_one(launch, AT(a_k)), b_k = tile_is_one(launch, AT(b_k));
    bool a_4 = takes_fours(launch, AT(a), a_k ? AT(a_m) : AT(a_k), AT(a0), AT(a1),
                           a_k ? AT(k) : AT(m));
    bool b_4 = takes_fours(launch, AT(b), b_k ? AT(b_n) : AT(b_k), AT(b0), AT(b1),
                           b_k ? AT(k) : AT(n));
    bool c_4 = takes_fours(launch, AT(c), AT(c_m), AT(c0), AT(c1), AT(n));
    if (cuda_is_there(launch, AT(residual)))
        c_4 = c_4 && takes_fours(launch, AT(residual), AT(r_m), AT(r0), AT(r1), AT(n));
    if ((!a_k && !tile_is_one(launch, AT(a_m))) || (!b_k && !tile_is_one(launch, AT(b_n))))
        return false;
    GemmArgs one, usual;
    tile_numbers(launch, 0, 1, (int64_t *)&one);
    tile_numbers(launch, 0, TILE_USUAL_BATCH, (int64_t *)&usual);
    int64_t batches = one.sum_batch ? 1 : usual.batch0 * usual.batch1;
    batches *= launch->segments > 1 ? launch->segments : 1;
    const Tile *tile = tile_for(usual.m, usual.n, batches);
    tile_choose(choice, tile);
    bool parts = tile_parts(tile_gemm_work(&one, choice->baked), choice->baked) > 1;
    choice->phases = parts ? 2 : 1;
    choice->file = "gemm_f32.cu";
    choice->shape = "pv_shape_gemm";
    choice->name = arena_printf(launch->arena, "gemm_%dx%d%s%s", tile->m, tile->n,
                                tile_act_name(one.act), one.sum_batch ? "_sum" : "");
    choice->definitions = arena_printf(
        launch->arena,
        "%s GEMM_A_K=%d GEMM_A_4=%d GEMM_B_K=%d GEMM_B_4=%d GEMM_C_4=%d GEMM_ACT=%d GEMM_SUM=%d "
        "GEMM_PARTS=%d",
        tile_definitions(launch->arena, tile), a_k, a_4, b_k, b_4, c_4, (int)one.act,
        one.sum_batch != 0, parts);
    return true;
}
