// Which convolution: conv_f32.cu, by direction, by how images and w can be read, and a tile that
// suits the sizes.
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

// Fours of positions, or with `last` of channels, begin at multiples of 16 bytes; how many there
// are is looked at elsewhere.
static bool takes_fours(const CudaLaunch *launch, const Images *images, bool last)
{
    return tile_is_one(launch, last ? images->channel : images->position) &&
           cuda_is_aligned(launch, images->address, 16) && tile_fours(launch, images->image) &&
           tile_fours(launch, last ? images->position : images->channel);
}

// The product of three sizes is a multiple of 4 in every segment.
static bool volume_fours(const CudaLaunch *launch, size_t first)
{
    bool fours = true;
    for (uint32_t i = 0; fours && (i == 0 || i < launch->segments); i++) {
        ConvArgs args;
        tile_numbers(launch, i, 1, (int64_t *)&args);
        const int64_t *size = (const int64_t *)&args + first;
        fours = size[0] * size[1] * size[2] % 4 == 0;
    }
    return fours;
}

static int64_t volume(const int64_t *size)
{
    return size[0] * size[1] * size[2];
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
    access.w = grad ? (taps == 1 ? 2 : 0) : (taps == 1 || !last);
    access.w_4 = access.w != 0 && (access.w == 1 ? channels * taps : rows) % 4 == 0 &&
                 cuda_is_aligned(launch, AT(w), 16);
    Images residual = *to;       // at the distances of its own
    residual.address = AT(residual);
    residual.image = AT(residual_image);
    residual.channel = AT(residual_channel);
    access.out_4 = (last || !grad || volume(args->stride) == 1) &&
                   (last ? rows % 4 == 0 : volume_fours(launch, grad ? AT(in) : AT(out))) &&
                   takes_fours(launch, to, last);
    if (access.out_4 && cuda_is_there(launch, AT(residual)))
        access.out_4 = takes_fours(launch, &residual, last);
    return access;
}

bool cuda_select_conv(const CudaLaunch *launch, CudaChoice *choice)
{
    static const char *const name[] = {"conv", "conv_dgrad", "conv_wgrad"};
    ConvArgs one, usual;
    tile_numbers(launch, 0, 1, (int64_t *)&one);
    tile_numbers(launch, 0, TILE_USUAL_BATCH, (int64_t *)&usual);
    int mode = CONV_FPROP;
    while (strcmp(launch->symbol + 3, name[mode]) != 0)    // "pv_conv_dgrad"
        mode++;
    bool last = mode != CONV_WGRAD && tile_is_one(launch, AT(x_channel)) &&
                tile_is_one(launch, AT(y_channel));
    bool plain = volume(one.kernel) == 1 && volume(one.stride) == 1 &&
                 one.pad[0] + one.pad[1] + one.pad[2] == 0;
    Access access = mode == CONV_WGRAD ? wgrad_access(launch, &one, plain)
                                       : image_access(launch, &one, mode, last, plain);
    if (mode == CONV_WGRAD && access.w == 2 && !tile_is_one(launch, AT(y_channel)))
        return false;
    bool flat =
        tile_is_one(launch, AT(in)) && tile_is_one(launch, AT(out)) && one.kernel[0] == 1;
    const Tile *tile = conv_tile(&usual, mode, last);
    tile_choose(choice, tile);
    choice->baked[TILE_BAKED_MODE] = mode;
    choice->baked[TILE_BAKED_LAST] = last;
    choice->shared[0] += mode == CONV_WGRAD ? 0 : (uint32_t)volume(one.kernel) * 16;
    bool parts = tile_parts(tile_conv_work(&one, choice->baked), choice->baked) > 1;
    choice->phases = parts ? 2 : 1;
    choice->file = "conv_f32.cu";
    choice->shape = "pv_shape_conv";
    choice->name = arena_printf(launch->arena, "%s_%s%dx%d%s", name[mode], plain ? "1x1_" : "",
                                tile->m, tile->n, tile_act_name(one.act));
    choice->definitions = arena_printf(
        launch->arena,
        "%s CONV_MODE=%d CONV_LAST=%d CONV_AXES=%d CONV_STRIDED=%d CONV_X=%d CONV_X_4=%d CONV_W=%d CONV_W_4=%d CONV_OUT_4=%d "
        "CONV_ACT=%d CONV_PARTS=%d",
        tile_definitions(launch->arena, tile), mode, last, flat ? 2 : 3,
        mode == CONV_DGRAD && volume(one.stride) > 1, access.x, access.x_4, access.w,
        access.w_4, access.out_4, (int)one.act, parts);
    return true;
}
