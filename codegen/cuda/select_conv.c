// Which convolution: conv_f32.cu where everything is f32, else conv_bf16.cu, by direction, by how
// images and w can be read, and with a tile that suits the sizes.
#include <stddef.h>
#include <string.h>

#include "codegen/cuda/select.h"
#include "codegen/cuda/tile_select.h"

#define AT(field) (offsetof(ConvArgs, field) / sizeof(int64_t))

// Fields of one tensor of images.
typedef struct {
    size_t address, image, channel, position;
} Images;

static const Images x_images = {AT(x), AT(x_image), AT(x_channel), AT(x_position)};
static const Images y_images = {AT(y), AT(y_image), AT(y_channel), AT(y_position)};
static const Images residual_images = {AT(residual), AT(residual_image), AT(residual_channel),
                                       AT(residual_position)};

// Runs of positions, or with `last` of channels, begin at multiples of `by` elements, which are
// `bytes`; how many there are is looked at elsewhere.
static bool takes(const CudaLaunch *launch, const Images *images, bool last, int64_t by,
                  int64_t bytes)
{
    return tile_is_one(launch, last ? images->channel : images->position) &&
           cuda_is_aligned(launch, images->address, bytes) &&
           tile_multiple(launch, images->image, by) &&
           tile_multiple(launch, last ? images->position : images->channel, by);
}

static bool takes_fours(const CudaLaunch *launch, const Images *images, bool last)
{
    return takes(launch, images, last, 4, 16);
}

static int64_t volume(const int64_t *size)
{
    return size[0] * size[1] * size[2];
}

// The product of three sizes is a multiple of 4 in every segment.
static bool volume_fours(const CudaLaunch *launch, size_t first)
{
    bool fours = true;
    for (uint32_t i = 0; fours && (i == 0 || i < launch->segments); i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        fours = volume((const int64_t *)&args + first) % 4 == 0;
    }
    return fours;
}

// What a segment reads is up-sampled on the way.
static bool is_resampled(const CudaLaunch *launch)
{
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        for (int axis = 0; axis < 3; axis++)
            if (args.x_shift[axis] || args.residual_shift[axis])
                return true;
    }
    return false;
}

// Every segment is a product of matrices: kernel and stride 1, no padding, nothing up-sampled.
static bool is_plain(const CudaLaunch *launch)
{
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        if (volume(args.kernel) != 1 || volume(args.stride) != 1)
            return false;
        for (int axis = 0; axis < 3; axis++)
            if (args.pad[axis] || args.x_shift[axis])
                return false;
    }
    return true;
}

// Entries of the table of taps, at most: taps, or with `classes` those of each class of positions
// (taps_of).
static int64_t table_entries(const CudaLaunch *launch, bool classes)
{
    int64_t most = 1;
    for (uint32_t i = 0; i == 0 || i < launch->segments; i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        int64_t taps = volume(args.kernel),
                up = args.x_shift[0] + args.x_shift[1] + args.x_shift[2];
        taps = classes && up > 0 ? (taps + ((3 - taps) & 7)) << up : taps;
        most = taps > most ? taps : most;
    }
    return most;
}

// The tile of a product of these sizes at the usual batch.
static const Tile *conv_tile(const ConvArgs *args, int mode, bool last)
{
    int64_t c_in = args->c_in / args->groups, c_out = args->c_out / args->groups;
    if (mode == CONV_WGRAD)
        return tile_for(c_out, c_in * volume(args->kernel), args->groups);
    int64_t rows = mode == CONV_DGRAD ? c_in : c_out, phases = 1;
    int64_t positions = volume(mode == CONV_DGRAD ? args->in : args->out) * args->images;
    if (mode == CONV_DGRAD)
        phases = volume(args->stride);
    positions = tile_count(positions, phases);
    return last ? tile_for(positions, rows, args->groups * phases)
                : tile_for(rows, positions, args->groups * phases);
}

typedef struct {
    int x, x_4, w, w_4, out_4;   // the definitions of conv_f32.cu
} Access;

static Access wgrad_access(const CudaLaunch *launch, const ConvArgs *args, bool plain)
{
    bool positions = volume_fours(launch, AT(out));
    Access access = {.w = tile_is_one(launch, AT(y_position)) ? 1 : 2};
    access.x = plain && positions && takes_fours(launch, &x_images, false);
    access.w_4 = (access.w == 1 ? positions : args->c_out / args->groups % 4 == 0) &&
                 takes_fours(launch, &y_images, access.w != 1);
    access.out_4 = args->c_in / args->groups * volume(args->kernel) % 4 == 0 &&
                   cuda_is_aligned(launch, AT(w), 16) && cuda_is_aligned(launch, AT(residual), 16);
    return access;
}

static Access image_access(const CudaLaunch *launch, const ConvArgs *args, int mode, bool last,
                           bool plain)
{
    bool grad = mode == CONV_DGRAD;
    int64_t rows = (grad ? args->c_in : args->c_out) / args->groups;
    int64_t channels = (grad ? args->c_out : args->c_in) / args->groups;
    int64_t taps = volume(args->kernel);
    const Images *from = grad ? &y_images : &x_images, *to = grad ? &x_images : &y_images;
    Access access = {.x = 0};
    access.x =
        !last && plain && volume_fours(launch, AT(out)) && takes_fours(launch, from, false);
    access.x_4 = last && channels % 4 == 0 && takes_fours(launch, from, true);
    if (args->norm.table)          // factors of four channels at a time
        access.x_4 = access.x_4 && cuda_is_aligned(launch, AT(norm.table), 16) &&
                     tile_multiple(launch, AT(norm.image), 4) &&
                     tile_multiple(launch, AT(norm.shift), 4);
    access.w = grad ? (taps == 1 ? 2 : 0) : (taps == 1 || !last);
    access.w_4 = access.w != 0 && (access.w == 1 ? channels * taps : rows) % 4 == 0 &&
                 cuda_is_aligned(launch, AT(w), 16);
    access.out_4 = (last || !grad || volume(args->stride) == 1) &&
                   (last ? rows % 4 == 0 : volume_fours(launch, grad ? AT(in) : AT(out))) &&
                   takes_fours(launch, to, last);
    bool by_element = !last && is_resampled(launch);       // the residual, then
    if (access.out_4 && cuda_is_there(launch, AT(residual)) && !by_element)
        access.out_4 = takes_fours(launch, &residual_images, last);
    return access;
}

// What both templates are told of a launch; the tile is chosen. `last`: positions are rows.
// `alone`: there shall be a kernel without the first axis.
static const char *common_definitions(const CudaLaunch *launch, CudaChoice *choice,
                                      const ConvArgs *one, int mode, bool last, bool alone)
{
    static const char *const name[] = {"conv", "conv_dgrad", "conv_wgrad"};
    bool flat = alone && tile_is_one(launch, AT(in)) && tile_is_one(launch, AT(out)) &&
                one->kernel[0] == 1;
    choice->baked[TILE_BAKED_MODE] = mode;
    choice->shared[0] += TILE_PROBLEM_BYTES;
    if (mode != CONV_WGRAD)
        choice->shared[0] += (uint32_t)table_entries(launch, one->types == 0) * 16;
    choice->phases = 2;
    choice->shape = "pv_shape_conv";
    choice->name = arena_printf(launch->arena, "%s_%s%s%dx%d%s%s%s", name[mode],
                                tile_half_name(one->types), volume(one->kernel) == 1 ? "1x1_" : "",
                                choice->baked[TILE_BAKED_M], choice->baked[TILE_BAKED_N],
                                tile_act_name(one->act),
                                tile_norm_name(one->norm.table, tile_has_stats(&one->stats)),
                                is_resampled(launch) ? "_up" : "");
    if (tile_has_stats(&one->stats))
        tile_choose_stats(choice);
    return arena_printf(launch->arena,
                        "CONV_MODE=%d CONV_LAST=%d CONV_AXES=%d CONV_STRIDED=%d CONV_ACT=%d%s%s",
                        mode, last, flat ? 2 : 3, mode == CONV_DGRAD && volume(one->stride) > 1,
                        (int)one->act, is_resampled(launch) ? " CONV_RESAMPLED=1" : "",
                        tile_norm_definitions(launch->arena, one->norm.table, one->norm.act,
                                              tile_has_stats(&one->stats)));
}

enum { STORE_Y, STORE_X, STORE_W, STORE_BIAS, STORE_RESIDUAL }; // in `types`

// 4 elements of a result, and of its residual, at a time.
static bool bf16_out_fours(const CudaLaunch *launch, const ConvArgs *one, int mode)
{
    int residual_bytes = tile_storage(one->types, STORE_RESIDUAL) ? 8 : 16;
    if (mode == CONV_WGRAD)
        return (one->w_last || volume(one->kernel) == 1) &&
               one->c_in / one->groups * volume(one->kernel) % 4 == 0 &&
               cuda_is_aligned(launch, AT(w), tile_storage(one->types, STORE_W) ? 8 : 16) &&
               cuda_is_aligned(launch, AT(residual), residual_bytes);
    const Images *to = mode == CONV_DGRAD ? &x_images : &y_images;
    int store = mode == CONV_DGRAD ? STORE_X : STORE_Y;
    return (mode == CONV_DGRAD ? one->c_in : one->c_out) / one->groups % 4 == 0 &&
           takes(launch, to, true, 4, tile_storage(one->types, store) ? 8 : 16) &&
           (!cuda_is_there(launch, AT(residual)) ||
            takes(launch, &residual_images, true, 4, residual_bytes));
}

static void choose_bf16(const CudaLaunch *launch, CudaChoice *choice, const ConvArgs *one,
                        const ConvArgs *usual, int mode)
{
    int64_t c_in = one->c_in / one->groups, c_out = one->c_out / one->groups;
    int64_t taps = volume(one->kernel), phases = mode == CONV_DGRAD ? volume(one->stride) : 1;
    int64_t positions = volume(mode == CONV_DGRAD ? usual->in : usual->out) * usual->images;
    const MmaTile *tile =
        mode == CONV_WGRAD ? mma_tile_for(c_out, c_in * taps, one->groups)
                           : mma_tile_for(tile_count(positions, phases),
                                          mode == CONV_DGRAD ? c_in : c_out, one->groups * phases);
    // operands in the template's words: the source and w, or of wgrad x and y
    int source = mode == CONV_DGRAD ? STORE_Y : STORE_X,
        weight = mode == CONV_WGRAD ? STORE_Y : STORE_W;
    int result = mode == CONV_FPROP ? STORE_Y : mode == CONV_DGRAD ? STORE_X : STORE_W;
    bool x_8 = (mode == CONV_DGRAD ? c_out : c_in) % 8 == 0 &&
               tile_storage(one->types, source) != PV_STORE_REAL &&
               takes(launch, mode == CONV_DGRAD ? &y_images : &x_images, true, 8, 16);
    bool w_8 = tile_storage(one->types, weight) != PV_STORE_REAL;
    if (mode == CONV_WGRAD)
        w_8 = w_8 && c_out % 8 == 0 && takes(launch, &y_images, true, 8, 16);
    else
        w_8 = w_8 && one->w_last != 0 && c_in % 8 == 0 && cuda_is_aligned(launch, AT(w), 16);
    mma_choose(choice, tile);
    choice->file = "conv_bf16.cu";
    const char *common = common_definitions(launch, choice, one, mode, true, true);
    choice->definitions = arena_printf(
        launch->arena,
        "%s %s CONV_X_8=%d CONV_W_8=%d CONV_W_LAST=%d CONV_OUT_4=%d CONV_SOURCE=%d CONV_WEIGHT=%d "
        "CONV_RESULT=%d CONV_RESIDUAL=%d CONV_BIAS=%d",
        mma_definitions(launch->arena, tile, tile_half(one->types)), common, x_8, w_8,
        one->w_last != 0, bf16_out_fours(launch, one, mode), tile_storage(one->types, source),
        tile_storage(one->types, weight), tile_storage(one->types, result),
        tile_storage(one->types, STORE_RESIDUAL), tile_storage(one->types, STORE_BIAS));
}

bool cuda_select_conv(const CudaLaunch *launch, CudaChoice *choice)
{
    ConvArgs one, usual;
    tile_numbers(launch, 0, 1, (int64_t *)&one);
    tile_numbers(launch, 0, TILE_USUAL_BATCH, (int64_t *)&usual);
    int mode = strcmp(launch->symbol, "pv_conv") == 0         ? CONV_FPROP
               : strcmp(launch->symbol, "pv_conv_dgrad") == 0 ? CONV_DGRAD
                                                              : CONV_WGRAD;
    if ((one.norm.table && (one.types || mode == CONV_DGRAD)) ||
        (tile_has_stats(&one.stats) && mode != CONV_FPROP) ||
        !tile_norm_act(launch, AT(norm.table), AT(norm.act), &one.norm.act))
        return false;
    if (is_resampled(launch) && mode != CONV_FPROP)
        return false;
    if (tile_half(one.types) < 0 || (one.w_last && !one.types && volume(one.kernel) > 1))
        return false;
    if (one.types) {
        choose_bf16(launch, choice, &one, &usual, mode);
        return true;
    }
    bool last = mode != CONV_WGRAD && tile_is_one(launch, AT(x_channel)) &&
                tile_is_one(launch, AT(y_channel));
    bool plain = is_plain(launch);
    Access access = mode == CONV_WGRAD ? wgrad_access(launch, &one, plain)
                                       : image_access(launch, &one, mode, last, plain);
    if (mode == CONV_WGRAD && access.w == 2 && !tile_is_one(launch, AT(y_channel)))
        return false;
    const Tile *tile = conv_tile(&usual, mode, last);
    tile_choose(choice, tile);
    choice->baked[TILE_BAKED_LAST] = last ? tile->lanes_m * tile->thread_m : 0;
    choice->file = "conv_f32.cu";
    // images of odd sizes, and what is written by phases: one kernel for any number of axes
    bool alone = mode == CONV_WGRAD || last || access.out_4;
    const char *common = common_definitions(launch, choice, &one, mode, last, alone);
    choice->definitions = arena_printf(
        launch->arena, "%s %s CONV_X=%d CONV_X_4=%d CONV_W=%d CONV_W_4=%d CONV_OUT_4=%d",
        tile_definitions(launch->arena, tile), common, access.x, access.x_4, access.w, access.w_4,
        access.out_4);
    return true;
}
