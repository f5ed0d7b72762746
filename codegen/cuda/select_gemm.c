// Which matrix product: gemm_f32.cu with a tile that suits the sizes.
#include <stddef.h>

#include "codegen/cuda/select.h"
#include "codegen/cuda/tile_plan.h"
#include "codegen/cuda/tile_select.h"

#define AT(field) (offsetof(GemmArgs, field) / sizeof(int64_t))

static bool is_multiple(const CudaLaunch *launch, size_t index)    // of 4, at any batch
{
    return launch->args[index].a % 4 == 0 && launch->args[index].c % 4 == 0;
}

static bool is_one(const CudaLaunch *launch, size_t index)
{
    return cuda_is_number(launch, index) && launch->args[index].a == 1;
}

// Rows of an operand (or of c) are read 16 bytes at a time: where it begins, what lies between
// rows and matrices, how long a row is.
static bool takes_fours(const CudaLaunch *launch, size_t address, size_t stride, size_t batch0,
                        size_t batch1, size_t length)
{
    return cuda_is_aligned(launch, address, 16) && is_multiple(launch, stride) &&
           is_multiple(launch, batch0) && is_multiple(launch, batch1) &&
           is_multiple(launch, length);
}

// A size at the batch for which tiles are chosen.
static int64_t usual(const CudaLaunch *launch, size_t index)
{
    return launch->args[index].a + launch->args[index].c * TILE_USUAL_BATCH;
}

bool cuda_select_gemm(const CudaLaunch *launch, CudaChoice *choice)
{
    bool a_k = is_one(launch, AT(a_k)), b_k = is_one(launch, AT(b_k));
    bool sum = cuda_number(launch, AT(sum_batch)) != 0;
    bool a_4 = takes_fours(launch, AT(a), a_k ? AT(a_m) : AT(a_k), AT(a0), AT(a1),
                           a_k ? AT(k) : AT(m));
    bool b_4 = takes_fours(launch, AT(b), b_k ? AT(b_n) : AT(b_k), AT(b0), AT(b1),
                           b_k ? AT(k) : AT(n));
    bool c_4 = takes_fours(launch, AT(c), AT(c_m), AT(c0), AT(c1), AT(n));
    if (cuda_is_there(launch, AT(residual)))
        c_4 = c_4 && takes_fours(launch, AT(residual), AT(r_m), AT(r0), AT(r1), AT(n));
    if ((!a_k && !is_one(launch, AT(a_m))) || (!b_k && !is_one(launch, AT(b_n))))
        return false;
    int64_t batches = usual(launch, AT(batch0)) * usual(launch, AT(batch1));
    const Tile *tile = tile_for(usual(launch, AT(m)), usual(launch, AT(n)), sum ? 1 : batches);
    int64_t tiles = tile_count(cuda_number(launch, AT(m)), tile->m) *
                    tile_count(cuda_number(launch, AT(n)), tile->n);
    int64_t steps = tile_count(cuda_number(launch, AT(k)), tile->k);
    *(sum ? &steps : &tiles) *=
        cuda_number(launch, AT(batch0)) * cuda_number(launch, AT(batch1));
    bool parts = tile_parts(tiles, steps, tile->k) > 1;
    int64_t act = cuda_number(launch, AT(act));
    tile_choose(choice, tile, parts ? 2 : 1);
    choice->file = "gemm_f32.cu";
    choice->shape = "pv_shape_gemm";
    choice->name = arena_printf(launch->arena, "gemm_%dx%d%s%s", tile->m, tile->n,
                                tile_act_name(act), sum ? "_sum" : "");
    choice->definitions = arena_printf(
        launch->arena,
        "%s GEMM_A_K=%d GEMM_A_4=%d GEMM_B_K=%d GEMM_B_4=%d GEMM_C_4=%d GEMM_ACT=%d GEMM_SUM=%d "
        "GEMM_PARTS=%d",
        tile_definitions(launch->arena, tile), a_k, a_4, b_k, b_4, c_4, (int)act, sum, parts);
    return true;
}
