// Which launches have a kernel of their own for sm_90a, conv_wgmma.cu or gemm_wgmma.cu: those whose
// operands are bf16 or f16 and lie so that TMA can read them, 16 bytes dense, and whose sizes do
// not leave its tiles mostly empty. All others keep the kernel for every GPU; `refuses_*` say why.
#include <stddef.h>
#include <string.h>

#include "codegen/cuda/select.h"
#include "codegen/cuda/tile_plan.h"
#include "codegen/cuda/tile_select.h"
#include "codegen/cuda/wgmma_plan.h"

#define CONV(field) (offsetof(ConvArgs, field) / sizeof(int64_t))
#define GEMM(field) (offsetof(GemmArgs, field) / sizeof(int64_t))
enum { CONV_Y, CONV_X, CONV_W, CONV_BIAS, CONV_RESIDUAL };       // in `types`
enum { GEMM_C, GEMM_A, GEMM_B, GEMM_BIAS, GEMM_RESIDUAL };
enum { FEW = 4 }; // segments: parameters of a launch stay within 4 KB, which all drivers take
enum { MULTIPROCESSORS = 132, LARGEST = 1 << 30 };
enum { MOST_STRIDE = 8 };        // of a tensor map

typedef struct {
    int m, n, groups, stages;
    double cost;                         // of a sum, predicted: small tiles read more than L2 gives
} WgmmaTile;

static const WgmmaTile tiles[] = {
    {256, 128, 2, 4, 1.0}, {128, 256, 2, 4, 1.0}, {128, 128, 2, 5, 1.2},
    {256, 64, 2, 4, 1.35}, {128, 64, 2, 6, 1.6},  {64, 128, 1, 3, 1.6},
};

// The tile of `rows` and `columns` or more with the lowest predicted cost for m x n sums of
// `batches` products of `steps` steps. A grid that does not fill the machine can be cut into parts,
// down to a few steps.
static const WgmmaTile *tile_of(int64_t m, int64_t n, int64_t batches, int64_t steps, int rows,
                                int columns)
{
    const WgmmaTile *best = NULL;
    double least = 0;
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
        const WgmmaTile *tile = &tiles[i];
        if (tile->m < rows || tile->n < columns)
            continue;
        int64_t count = tile_count(m, tile->m) * tile_count(n, tile->n) * batches;
        double turns = (double)tile_count(count, MULTIPROCESSORS);
        if (count < MULTIPROCESSORS)
            turns = 1. / (double)(steps >= 8 ? steps / 4 < MULTIPROCESSORS / count
                                                   ? steps / 4 : MULTIPROCESSORS / count : 1);
        double cost = turns * tile->m * tile->n * tile->cost;
        if (!best || cost < least) {
            best = tile;
            least = cost;
        }
    }
    return best;
}

// Padding to `tile` adds at most a half.
static bool fills(int64_t size, int64_t tile)
{
    return 2 * tile * tile_count(size, tile) <= 3 * size;
}

// Bytes of shared memory of wgmma_product.h.
static uint32_t tile_shared(const WgmmaTile *tile)
{
    int chunk = tile->n < 128 ? tile->n : 128;
    return (uint32_t)(tile->stages * (tile->m + tile->n) * 128 +
                      tile->groups * 4 * 8 * (chunk + 8) * (int)sizeof(float) + 16 * tile->stages);
}

// half: PvStorage of the operands.
static const char *choose_tile(const CudaLaunch *launch, CudaChoice *choice, const WgmmaTile *tile,
                               int half, bool a_mn, bool b_mn)
{
    choice->phases = 2;
    choice->threads[0] = (uint32_t)(128 * (tile->groups + 1));
    choice->threads[1] = 256;
    choice->shared[0] = tile_shared(tile);
    choice->baked[TILE_BAKED_M] = tile->m;
    choice->baked[TILE_BAKED_N] = tile->n;
    choice->segments = launch->segments > FEW ? PV_MAX_SEGMENTS : FEW;
    choice->maps = PV_CUDA_MAPS;
    choice->resident[0] = tile->groups == 1 ? 2 : 1;
    return arena_printf(launch->arena,
                        "TILE_HALF=%d TILE_M=%d TILE_N=%d WG_GROUPS=%d WG_STAGES=%d WG_SEGMENTS=%d "
                        "WG_A_MN=%d WG_B_MN=%d",
                        half, tile->m, tile->n, tile->groups, tile->stages, (int)choice->segments,
                        a_mn, b_mn);
}

// One kind of half precision, in which both operands are stored.
static const char *refuses_types(int64_t types, int first, int second)
{
    if (tile_half(types) < 0)
        return "bf16 beside f16";
    return tile_storage(types, first) == PV_STORE_REAL ||
                   tile_storage(types, second) == PV_STORE_REAL
               ? "an operand in f32"
               : NULL;
}

// An address that elements of a storage can be accessed at, four at a time; none is fine.
static bool takes_fours(const CudaLaunch *launch, size_t address, int64_t types, int number)
{
    return cuda_is_aligned(launch, address, tile_storage(types, number) ? 8 : 16);
}

// A segment wants a norm table, or moments, of its result.
static bool has_any_stats(const CudaLaunch *launch, size_t stats)
{
    return cuda_is_there(launch, stats + offsetof(NormStats, table) / sizeof(int64_t)) ||
           cuda_is_there(launch, stats + offsetof(NormStats, moments) / sizeof(int64_t));
}

// Of a kernel that makes tables: its second phase has rows in shared memory. The definition.
static const char *choose_stats(CudaChoice *choice, bool has_stats)
{
    if (!has_stats)
        return "";
    int n = choice->baked[TILE_BAKED_N];
    choice->shared[1] = (uint32_t)(4 * 256 / n * (n + 4)) * 4;
    choice->counts = true;
    return " TILE_STATS=2";
}

// ---- convolutions ----

static int64_t volume(const int64_t *size)
{
    return size[0] * size[1] * size[2];
}

// Positions of the smallest box of powers of two that has a whole image.
static int64_t boxed(const int64_t *size)
{
    int64_t box = 1;
    for (int axis = 0; axis < 3; axis++)
        for (int64_t extent = 1; extent < size[axis]; extent *= 2)
            box *= 2;
    return box;
}

// Of positions, where x is up-sampled: each has a box of WGMMA_PIECE rows or more in a tile.
static int classes(const ConvArgs *args)
{
    return 1 << (args->x_shift[0] + args->x_shift[1] + args->x_shift[2]);
}

// What must hold of the numbers of every segment.
static const char *refuses_sizes(const ConvArgs *args, const ConvArgs *first)
{
    if (args->types != first->types || args->act != first->act)
        return "segments that differ";
    if (args->groups != 1)
        return "groups";
    for (int axis = 0; axis < 3; axis++) {
        if (args->stride[axis] > MOST_STRIDE)
            return "a large stride";
        if (args->x_shift[axis] && args->stride[axis] != 1)
            return "up-sampled with a stride";
    }
    if (args->c_in % 8 || args->c_out % 8)
        return "channels not in eights";
    if (!args->w_last && volume(args->kernel) > 1)
        return "a filter whose channels are not last";
    if (volume(args->in) >= LARGEST || volume(args->out) >= LARGEST ||
        volume(args->kernel) >= 1 << 16)
        return "too large";
    if (classes(args) * WGMMA_PIECE > tiles[0].m)
        return "up-sampled by much";
    if (tile_has_stats(&args->stats) && boxed(args->out) < WGMMA_PIECE * classes(args))
        return "few positions";
    return fills(args->c_out, 64) && fills(args->c_in, 64) ? NULL : "few channels";
}

// Images [.., channels] that TMA reads, or that are written four channels at a time.
static bool takes_images(const CudaLaunch *launch, size_t channel, size_t position, size_t image)
{
    return tile_is_one(launch, channel) && tile_multiple(launch, position, 8) &&
           tile_multiple(launch, image, 8);
}

static const char *refuses_conv(const CudaLaunch *launch, const ConvArgs *one, int mode)
{
    int first = mode == CONV_DGRAD ? CONV_Y : CONV_X;    // operands
    int second = mode == CONV_WGRAD ? CONV_Y : CONV_W;
    static const size_t address[] = {CONV(y), CONV(x), CONV(w)};
    int result = mode == CONV_FPROP ? CONV_Y : mode == CONV_DGRAD ? CONV_X : CONV_W;
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        const char *refused = refuses_sizes(&args, one);
        if (refused)
            return refused;
    }
    const char *refused = refuses_types(one->types, first, second);
    if (refused)
        return refused;
    if (cuda_is_there(launch, CONV(norm.table)))
        return "a norm taken apart";
    if (!cuda_is_aligned(launch, address[first], 16) ||
        !cuda_is_aligned(launch, address[second], 16) ||
        !takes_images(launch, CONV(x_channel), CONV(x_position), CONV(x_image)) ||
        !takes_images(launch, CONV(y_channel), CONV(y_position), CONV(y_image)))
        return "images not of 16 dense bytes";
    if (!takes_fours(launch, address[result], one->types, result) ||
        !takes_fours(launch, CONV(residual), one->types, CONV_RESIDUAL))
        return "a result or residual not in fours";
    if (mode != CONV_WGRAD && cuda_is_there(launch, CONV(residual)) &&
        !(tile_is_one(launch, CONV(residual_channel)) &&
          tile_multiple(launch, CONV(residual_position), 4) &&
          tile_multiple(launch, CONV(residual_image), 4)))
        return "a result or residual not in fours";
    return NULL;
}

// Whether a segment has strides, or anything up-sampled; the classes of positions, at most.
typedef struct {
    bool strided, resampled;
    int classes;
} Traits;

static Traits traits_of(const CudaLaunch *launch)
{
    Traits traits = {.classes = 1};
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        traits.strided |= volume(args.stride) != 1;
        for (int axis = 0; axis < 3; axis++)
            traits.resampled |= args.x_shift[axis] || args.residual_shift[axis];
        traits.classes = traits.classes > classes(&args) ? traits.classes : classes(&args);
    }
    return traits;
}

static const char *select_conv(const CudaLaunch *launch, CudaChoice *choice, int mode)
{
    static const char *const names[] = {"conv", "conv_dgrad", "conv_wgrad"};
    ConvArgs one, usual;
    tile_numbers(launch, 0, 1, (int64_t *)&one);
    tile_numbers(launch, 0, TILE_USUAL_BATCH, (int64_t *)&usual);
    const char *refused = refuses_conv(launch, &one, mode);
    if (refused)
        return refused;
    int64_t positions = volume(mode == CONV_DGRAD ? one.in : one.out) * usual.images;
    Traits traits = traits_of(launch);
    int64_t taps = volume(one.kernel), n = mode == CONV_FPROP ? one.c_out : one.c_in;
    int64_t channels = mode == CONV_DGRAD ? one.c_out : one.c_in;
    positions *= launch->segments > 1 ? launch->segments : 1;
    const WgmmaTile *tile =
        mode == CONV_WGRAD
            ? tile_of(one.c_out, n, taps, tile_count(positions, WGMMA_TILE_K), 0, 0)
            : tile_of(positions, n, 1,
                      tile_count(taps, mode == CONV_DGRAD ? volume(one.stride) : 1) *
                          tile_count(channels, WGMMA_TILE_K), WGMMA_PIECE * traits.classes, 0);
    int result = mode == CONV_FPROP ? CONV_Y : mode == CONV_DGRAD ? CONV_X : CONV_W;
    const char *product = choose_tile(launch, choice, tile, tile_half(one.types),
                                      mode == CONV_WGRAD, mode != CONV_FPROP);
    choice->baked[TILE_BAKED_MODE] = mode;
    choice->file = "conv_wgmma.cu";
    choice->shape = "pv_shape_conv_wgmma";
    bool has_stats = has_any_stats(launch, CONV(stats));
    choice->name = arena_printf(launch->arena, "%s_wgmma_%s%dx%d%s%s%s%s", names[mode],
                                tile_half_name(one.types), tile->m, tile->n, tile_act_name(one.act),
                                tile_norm_name(0, has_stats), traits.strided ? "_stride" : "",
                                traits.resampled ? "_up" : "");
    choice->definitions = arena_printf(
        launch->arena,
        "%s%s CONV_MODE=%d CONV_STRIDED=%d%s CONV_ACT=%d CONV_RESULT=%d CONV_RESIDUAL=%d "
        "CONV_BIAS=%d",
        product, choose_stats(choice, has_stats), mode, traits.strided,
        traits.resampled ? " CONV_RESAMPLED=1" : "", (int)one.act, tile_storage(one.types, result),
        tile_storage(one.types, CONV_RESIDUAL), tile_storage(one.types, CONV_BIAS));
    return NULL;
}

// ---- products ----

// An operand that TMA reads: where it begins, what lies between its rows and matrices.
static bool takes_operand(const CudaLaunch *launch, size_t address, size_t stride, size_t batch0,
                          size_t batch1)
{
    return cuda_is_aligned(launch, address, 16) && tile_multiple(launch, stride, 8) &&
           tile_multiple(launch, batch0, 8) && tile_multiple(launch, batch1, 8);
}

static const char *refuses_gemm(const CudaLaunch *launch, const GemmArgs *one, bool a_k, bool b_k)
{
    bool has_stats = has_any_stats(launch, GEMM(stats));
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        GemmArgs args;
        tile_numbers(launch, i, TILE_USUAL_BATCH, (int64_t *)&args);
        int64_t outer_a = a_k ? args.a_m : args.a_k, outer_b = b_k ? args.b_n : args.b_k;
        if (args.types != one->types || args.act != one->act || args.sum_batch != one->sum_batch ||
            (args.gate != 0) != (one->gate != 0))
            return "segments that differ";
        if (outer_a <= 0 || outer_b <= 0 || args.a0 < 0 || args.a1 < 0 || args.b0 < 0 ||
            args.b1 < 0)
            return "rows that are not apart";
        if (args.m >= LARGEST || args.n >= LARGEST || args.k >= LARGEST)
            return "too large";
        if (!fills(args.n, 64) || !fills(args.k, 64) || !fills(args.m, 64))
            return !fills(args.m, 64) ? "few rows" : !fills(args.n, 64) ? "few columns" : "short";
        if (has_stats && (args.image_rows <= 0 || args.image_rows % WGMMA_PIECE ||
                          args.sum_batch || args.batch1 != 1))
            return "a table of other rows";
    }
    const char *refused = refuses_types(one->types, GEMM_A, GEMM_B);
    if (refused)
        return refused;
    bool residual = cuda_is_there(launch, GEMM(residual));
    if (cuda_is_there(launch, GEMM(norm.table)))
        return "a norm taken apart";
    if ((!a_k && !tile_is_one(launch, GEMM(a_m))) || (!b_k && !tile_is_one(launch, GEMM(b_n))) ||
        !takes_operand(launch, GEMM(a), a_k ? GEMM(a_m) : GEMM(a_k), GEMM(a0), GEMM(a1)) ||
        !takes_operand(launch, GEMM(b), b_k ? GEMM(b_n) : GEMM(b_k), GEMM(b0), GEMM(b1)) ||
        (!b_k && !tile_multiple(launch, GEMM(gate), 8)))
        return "operands not of 16 dense bytes";
    if (!takes_fours(launch, GEMM(c), one->types, GEMM_C) || !tile_multiple(launch, GEMM(c_m), 4) ||
        !tile_multiple(launch, GEMM(c0), 4) || !tile_multiple(launch, GEMM(c1), 4) ||
        !tile_multiple(launch, GEMM(n), 4))
        return "a result or residual not in fours";
    return residual && (!takes_fours(launch, GEMM(residual), one->types, GEMM_RESIDUAL) ||
                        !tile_multiple(launch, GEMM(r_m), 4) ||
                        !tile_multiple(launch, GEMM(r0), 4) || !tile_multiple(launch, GEMM(r1), 4))
               ? "a result or residual not in fours" : NULL;
}

static const char *select_gemm(const CudaLaunch *launch, CudaChoice *choice)
{
    GemmArgs one, usual;
    tile_numbers(launch, 0, 1, (int64_t *)&one);
    tile_numbers(launch, 0, TILE_USUAL_BATCH, (int64_t *)&usual);
    bool a_k = tile_is_one(launch, GEMM(a_k)), b_k = tile_is_one(launch, GEMM(b_k));
    const char *refused = refuses_gemm(launch, &one, a_k, b_k);
    if (refused)
        return refused;
    int64_t batches = usual.batch0 * usual.batch1, steps = tile_count(usual.k, WGMMA_TILE_K);
    if (one.sum_batch) {
        steps *= batches;
        batches = 1;
    }
    batches *= launch->segments > 1 ? launch->segments : 1;
    // values and gates; 64 of either, or more
    const WgmmaTile *tile = one.gate ? tile_of(usual.m, 2 * usual.n, batches, steps, 0, 128)
                                     : tile_of(usual.m, usual.n, batches, steps, 0, 0);
    const char *product = choose_tile(launch, choice, tile, tile_half(one.types), !a_k, !b_k);
    choice->baked[WGMMA_BAKED_A_MN] = !a_k;
    choice->baked[WGMMA_BAKED_B_MN] = !b_k;
    choice->file = "gemm_wgmma.cu";
    choice->shape = "pv_shape_gemm_wgmma";
    bool has_stats = has_any_stats(launch, GEMM(stats));
    choice->name =
        arena_printf(launch->arena, "gemm_wgmma_%s%dx%d%s%s%s%s", tile_half_name(one.types),
                     tile->m, tile->n, tile_act_name(one.act), one.gate ? "_gate" : "",
                     one.sum_batch ? "_sum" : "", tile_norm_name(0, has_stats));
    choice->definitions = arena_printf(
        launch->arena,
        "%s%s GEMM_C_4=1 GEMM_ACT=%d GEMM_SUM=%d%s GEMM_C=%d GEMM_RESIDUAL=%d GEMM_BIAS=%d",
        product, choose_stats(choice, has_stats), (int)one.act, one.sum_batch != 0,
        one.gate ? " GEMM_GATE=1" : "", tile_storage(one.types, GEMM_C),
        tile_storage(one.types, GEMM_RESIDUAL), tile_storage(one.types, GEMM_BIAS));
    return NULL;
}

const char *cuda_select_90a(const CudaLaunch *launch, CudaChoice *choice)
{
    static const char *const convolutions[] = {"pv_conv", "pv_conv_dgrad", "pv_conv_wgrad"};
    *choice = (CudaChoice){.definitions = "", .phases = 1};
    for (int mode = CONV_FPROP; mode <= CONV_WGRAD; mode++)
        if (strcmp(launch->symbol, convolutions[mode]) == 0)
            return select_conv(launch, choice, mode);
    return strcmp(launch->symbol, "pv_gemm") == 0 ? select_gemm(launch, choice) : "";
}
