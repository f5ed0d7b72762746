// What forward convolutions (conv.c) and their gradients (conv_grad.c) have in common: a product
// whose columns come from unfold.h, and a launch of it over all boxes and groups.
#ifndef PV_CONV_H
#define PV_CONV_H

#include "codegen/cpu/product.h"
#include "codegen/cpu/split.h"
#include "codegen/cpu/unfold.h"

// Forward, phases of dgrad and its scattered form differ in the rows.
typedef enum { CONV_FORWARD, CONV_PHASE, CONV_SCATTER } ConvKind;

typedef struct {
    Product base;
    ConvKind kind;
    Unfold unfold;
    const PvReal *w;          // of this group
    int64_t w_row, w_channel; // steps of row and of channel of k in w
    int32_t *table;           // CONV_PHASE: place of a tap in the kernel; CONV_SCATTER: where
                              // a tap's results go
    int64_t k_total, k_step, k0, k;
    // where results go: row * out_row + out_offset[column] of `out`
    PvReal *out;
    const PvReal *residual, *bias; // bias[row]
    int64_t out_row, residual_row;
    int32_t *out_offset, *residual_offset; // [columns]; the residual lies as the result but for
                                           // the steps from row to row and image to image
    int64_t scatter_taps;                  // CONV_SCATTER: rows are (channel, tap)
    PvAct act;
} ConvProduct;

// A product over all boxes and blocks of rows of all groups.
typedef struct {
    ConvProduct product;  // without what depends on group and box
    int64_t groups, rows; // rows of each group
    bool winograd;        // 3 x 3 of stride 1 that may be computed by minimal filtering
    bool split;           // with split products (split.h)
    const PvReal *source, *w, *bias, *residual;
    PvReal *out;
    // steps
    int64_t source_group, norm_group, w_group, bias_group, out_group, out_image;
    int64_t residual_group, residual_image, residual_shift[3];
    int64_t extent[3], first[3], step[3]; // of positions in the result
    // the table: (first + index * step) of each axis, in a grid of `table_extent`
    int64_t table_size[3], table_first[3], table_step[3], table_extent[3];
} ConvLaunch;

// One product, in tasks.
void pv_conv_launch(const PvRun *run, ConvLaunch *launch);
// Those with one kernel as one product where that is possible, the others one by one.
void pv_conv_launches(const PvRun *run, const ConvLaunch *launches, int count);

// Those with one kernel by minimal filtering (winograd.c); all have `winograd`, some have images.
void pv_winograd_launches(const PvRun *run, const ConvLaunch *launches, int count);
// `count` segments that are one sum (winograd_grad.c). unfolds: of each, sizes only.
void pv_winograd_wgrad(const PvRun *run, const ConvArgs *args, const Unfold *unfolds, int count);

// Offsets in the result of the columns of a box: positions first + step * p of images `image_step`
// apart and of extents `extent`.
PV_INLINE void out_offsets(int32_t *offset, const Box *box, const int64_t *extent,
                           const int64_t *first, const int64_t *step, int64_t image_step)
{
    int64_t column = 0;
    for (int64_t image = 0; image < box->count; image++) {
        for (int64_t d = 0; d < box->size[0]; d++) {
            for (int64_t h = 0; h < box->size[1]; h++) {
                int64_t at = ((box->first[0] + d) * step[0] + first[0]) * extent[1] +
                             (box->first[1] + h) * step[1] + first[1];
                at = image * image_step + at * extent[2] + box->first[2] * step[2] + first[2];
                for (int64_t w = 0; w < box->size[2]; w++)
                    offset[column++] = (int32_t)(at + w * step[2]);
            }
        }
    }
}

PV_INLINE int64_t volume(const int64_t *size)
{
    return size[0] * size[1] * size[2];
}

// A convolution that minimal filtering can compute, and its plan permits that.
PV_INLINE bool is_winograd(const ConvArgs *args)
{
    return args->winograd && args->groups == 1 && args->kernel[0] == 1 && args->kernel[1] == 3 &&
           args->kernel[2] == 3 && volume(args->stride) == 1;
}

PV_INLINE int64_t tiles_of(const int64_t *out)
{
    return out[0] * pv_ceil_div(out[1], 4) * pv_ceil_div(out[2], 4);
}

// Whether it takes less time so, in units of a product's multiply-adds; `pair`: what a pair of
// channels costs in addition. Tiles are those of one image, so that its results do not depend on
// what else is computed with them.
PV_INLINE bool winograd_pays(int64_t rows, int64_t channels, int64_t positions, int64_t tiles,
                             int64_t pair)
{
    return rows * channels * (40 * tiles + pair) + tiles * (440 * channels + 600 * rows) <
           rows * channels * 9 * positions;
}

// A forward convolution that is better computed so, from `channels` channels to `rows` of
// extents `out`.
PV_INLINE bool takes_winograd(const ConvArgs *args, int64_t rows, int64_t channels,
                              const int64_t *out)
{
    return is_winograd(args) && winograd_pays(rows, channels, volume(out), tiles_of(out), 150);
}

// Whether the products of minimal filtering are better split (split.h): with fewer tiles of one
// image (of each segment that is summed), operands take longer to split than to multiply.
PV_INLINE bool splits_winograd(const PvRun *run, int64_t rows, int64_t channels, int64_t tiles)
{
    return run->split && rows >= SPLIT_DEPTH && channels >= SPLIT_DEPTH &&
           tiles >= PV_SPLIT_LEAST_TILES && pv_split_ready();
}

// The same in images of extents `extent` >> `shift`, for the positions >> shift.
PV_INLINE void shifted_offsets(int32_t *offset, const Box *box, const int64_t *extent,
                               const int64_t *shift, int64_t image_step)
{
    int64_t column = 0, rows = extent[1] >> shift[1], width = extent[2] >> shift[2];
    for (int64_t image = 0; image < box->count; image++)
        for (int64_t d = box->first[0]; d < box->first[0] + box->size[0]; d++)
            for (int64_t h = box->first[1]; h < box->first[1] + box->size[1]; h++)
                for (int64_t w = box->first[2]; w < box->first[2] + box->size[2]; w++)
                    offset[column++] =
                        (int32_t)(image * image_step + (w >> shift[2]) +
                                  ((d >> shift[0]) * rows + (h >> shift[1])) * width);
}

// Something that the convolution reads is up-sampled on the way.
PV_INLINE bool is_resampled(const ConvArgs *args)
{
    int64_t all = 0;
    for (int axis = 0; axis < 3; axis++)
        all |= args->x_shift[axis] | args->residual_shift[axis];
    return all != 0;
}

// A convolution that is a plain product for each image.
PV_INLINE bool is_pointwise(const ConvArgs *args)
{
    for (int axis = 0; axis < 3; axis++) {
        if (args->kernel[axis] != 1 || args->stride[axis] != 1 || args->pad[axis] != 0)
            return false;
    }
    return args->groups == 1 && !is_resampled(args) && volume(args->in) >= PV_POINTWISE;
}

#endif
