// The columns of a convolution's implicit matrix.
//
// Positions are cut into boxes (images, depth, height, width). For a box and the channels at hand
// the part of x that it sees is copied once, with its zero border, into a patch in scratch; a
// column of the implicit matrix is then one offset into the patch, a row another, and panels are
// packed by adding the two. Without padding x itself serves as the patch. An operand that is to be
// normalized (norm_load.h) is normalized as the patch is filled, and its border stays 0. One that
// is to be up-sampled is read at (position >> shift).
#ifndef PV_UNFOLD_H
#define PV_UNFOLD_H

#include "codegen/cpu/norm_load.h"

typedef struct {
    int64_t image, count;      // images
    int64_t first[3], size[3]; // positions
    int64_t columns;           // images x positions
} Box;

// The implicit matrix: element (channel, tap; position) of a source [image][channel][in...] is at
// position * step + tap - low, zero outside; it lies at that >> shift in the source.
typedef struct {
    const PvReal *source;
    int64_t image_step, channel_step;
    int64_t in[3], out[3], taps[3], step[3], low[3], shift[3];
    int64_t images, tap_count;
    int64_t box[3], box_images, boxes[3], box_count; // size and number of boxes
    bool padded;                                     // there is a patch
    const PvReal *norm;                              // a of the first image, NULL: none
    int64_t norm_image, norm_shift;                  // from image to image, from a to d
    PvAct norm_act;
    // of the box at hand; all of them in scratch
    Box at;
    PvReal *patch;
    bool whole;           // the patch holds all channels, so that it serves several blocks of rows
    int64_t filled;       // channels that it holds already, if it is whole
    const PvReal *base;   // the patch, or the source
    int64_t base_channel; // from channel to channel of base
    int64_t base_first;   // channel that base starts with
    int32_t *tap_offset;  // [tap_count]
    int32_t *offset;      // [columns] into base
} Unfold;

static void unfold_cut(Unfold *unfold, int64_t columns)
{
    int64_t room = columns;
    bool whole = true;
    for (int axis = 2; axis >= 0; axis--) {
        int64_t most = whole ? pv_most(1, pv_least(unfold->out[axis], room)) : 1;
        unfold->boxes[axis] = pv_ceil_div(unfold->out[axis], most);
        unfold->box[axis] = pv_ceil_div(unfold->out[axis], unfold->boxes[axis]);
        whole = whole && most == unfold->out[axis];
        room /= most;
    }
    unfold->box_images = whole ? pv_most(1, pv_least(unfold->images, room)) : 1;
    unfold->box_count = pv_ceil_div(unfold->images, unfold->box_images) * unfold->boxes[0] *
                        unfold->boxes[1] * unfold->boxes[2];
}

static void unfold_init(Unfold *unfold, int64_t columns)
{
    unfold->tap_count = unfold->taps[0] * unfold->taps[1] * unfold->taps[2];
    unfold->padded = unfold->norm != NULL;
    for (int axis = 0; axis < 3; axis++) {
        int64_t last = (unfold->out[axis] - 1) * unfold->step[axis] + unfold->taps[axis] - 1;
        if (unfold->low[axis] > 0 || unfold->shift[axis] > 0 ||
            last - unfold->low[axis] >= unfold->in[axis])
            unfold->padded = true;
    }
    unfold_cut(unfold, columns);
}

static Box unfold_box(const Unfold *unfold, int64_t number)
{
    Box box;
    box.columns = 1;
    for (int axis = 2; axis >= 0; axis--) {
        box.first[axis] = number % unfold->boxes[axis] * unfold->box[axis];
        box.size[axis] = pv_least(unfold->box[axis], unfold->out[axis] - box.first[axis]);
        number /= unfold->boxes[axis];
        box.columns *= box.size[axis];
    }
    box.image = number * unfold->box_images;
    box.count = pv_least(unfold->box_images, unfold->images - box.image);
    box.columns *= box.count;
    return box;
}

// Sizes of the patch of one channel and image.
static void patch_size(const Unfold *unfold, int64_t size[3])
{
    for (int axis = 0; axis < 3; axis++)
        size[axis] = (unfold->at.size[axis] - 1) * unfold->step[axis] + unfold->taps[axis];
}

// Takes box `number`: its tables, not yet the patch. *scratch moves on.
static void unfold_open(Unfold *unfold, int64_t number)
{
    unfold->at = unfold_box(unfold, number);
    const Box *box = &unfold->at;
    int64_t size[3], image_step = unfold->image_step;
    patch_size(unfold, size);
    const int64_t *extent = unfold->padded ? size : unfold->in;
    int64_t plane = extent[0] * extent[1] * extent[2];
    if (unfold->padded) {
        unfold->base_channel = plane * box->count;
        image_step = plane;
    } else {
        unfold->base_channel = unfold->channel_step;
        unfold->base_first = 0;
        unfold->base = unfold->source + box->image * unfold->image_step;
        int64_t start = 0;
        for (int axis = 0; axis < 3; axis++)
            start = start * unfold->in[axis] + box->first[axis] * unfold->step[axis] -
                    unfold->low[axis];
        unfold->base += start;
    }
    int64_t column = 0;
    for (int64_t image = 0; image < box->count; image++) {
        for (int64_t d = 0; d < box->size[0]; d++) {
            for (int64_t h = 0; h < box->size[1]; h++) {
                int64_t at = image * image_step +
                             (d * unfold->step[0] * extent[1] + h * unfold->step[1]) * extent[2];
                for (int64_t w = 0; w < box->size[2]; w++)
                    unfold->offset[column++] = (int32_t)(at + w * unfold->step[2]);
            }
        }
    }
    int64_t tap = 0;
    for (int64_t d = 0; d < unfold->taps[0]; d++) {
        for (int64_t h = 0; h < unfold->taps[1]; h++) {
            for (int64_t w = 0; w < unfold->taps[2]; w++)
                unfold->tap_offset[tap++] = (int32_t)((d * extent[1] + h) * extent[2] + w);
        }
    }
}

// to[i] = from[i], i < count, without a call for each short row.
PV_INLINE void copy_run(PvReal *to, const PvReal *from, int64_t count)
{
    for (; count >= PV_WIDTH; count -= PV_WIDTH, to += PV_WIDTH, from += PV_WIDTH)
        vec_store(to, vec_load(from));
#pragma GCC unroll 4
    for (int part = PV_WIDTH / 2; part > 0; part /= 2) {
        if (count & part) {
            memcpy(to, from, (size_t)part * sizeof *to);
            to += part;
            from += part;
        }
    }
}

// One row of the patch: `size` elements from position `first` of a row of `in`, zero outside. Zeros
// are whole vectors: what comes behind the row is written later, or lies in the slack.
static void patch_row(PvReal *to, const PvReal *row, int64_t first, int64_t size, int64_t in,
                      int64_t shift)
{
    int64_t low = pv_least(size, pv_most(0, -first));
    int64_t high = pv_most(low, pv_least(size, in - first));
    for (int64_t i = 0; i < low; i += PV_WIDTH)
        vec_store(to + i, (PvVec){0});
    for (int64_t i = high; i < size; i += PV_WIDTH)
        vec_store(to + i, (PvVec){0});
    if (!shift && high > low)
        copy_run(to + low, row + first + low, high - low);
    for (int64_t i = low; shift && i < high; i++)
        to[i] = row[(first + i) >> shift];
}

enum { NORM_RUN = 1024 };

// Rows h0 .. h1 - 1 of a plane that is normalized on the way; all of them lie inside it. Narrow
// rows are normalized together, since they follow one another in x.
static void patch_rows_normed(const Unfold *unfold, PvReal *to, const PvReal *plane, int64_t h0,
                              int64_t h1, int64_t first, int64_t size, PvReal a, PvReal d)
{
    PvReal run[NORM_RUN];
    int64_t width = unfold->in[2], together = pv_least(h1 - h0, NORM_RUN / width);
    if (together <= 1 || width >= 4 * PV_WIDTH) {
        for (int64_t h = h0; h < h1; h++, to += size) {
            patch_row(to, plane + h * width, first, size, width, 0);
            int64_t low = pv_most(0, -first), high = pv_least(size, width - first);
            if (high > low)
                normalize_run(to + low, to + low, high - low, a, d, unfold->norm_act);
        }
        return;
    }
    for (int64_t h = h0; h < h1; h += together) {
        int64_t rows = pv_least(together, h1 - h);
        normalize_run(run, plane + h * width, rows * width, a, d, unfold->norm_act);
        for (int64_t i = 0; i < rows; i++, to += size)
            patch_row(to, run + i * width, first, size, width, 0);
    }
}

// The same where the plane is up-sampled: each row of the source is normalized once.
static void patch_rows_shifted(const Unfold *unfold, PvReal *to, const PvReal *plane, int64_t h0,
                               int64_t h1, int64_t first, int64_t size, const PvReal *norm)
{
    PvReal run[NORM_RUN];
    int64_t in = unfold->in[2], shift = unfold->shift[2], width = in >> shift, before = -1;
    for (int64_t h = h0; h < h1; h++, to += size) {
        int64_t row = h >> unfold->shift[1];
        const PvReal *from = plane + row * width;
        if (row == before) {
            memcpy(to, to - size, (size_t)size * sizeof *to);
            continue;
        }
        before = row;
        if (norm && width <= NORM_RUN) {
            normalize_run(run, from, width, norm[0], norm[unfold->norm_shift], unfold->norm_act);
            from = run;
        }
        patch_row(to, from, first, size, in, shift);
        int64_t low = pv_most(0, -first), high = pv_least(size, in - first);
        if (norm && width > NORM_RUN && high > low)
            normalize_run(to + low, to + low, high - low, norm[0], norm[unfold->norm_shift],
                          unfold->norm_act);
    }
}

// One channel of one image of the patch, which begins at position `first`.
static PvReal *patch_channel(const Unfold *unfold, PvReal *to, int64_t image, int64_t c,
                             const int64_t *first, const int64_t *size)
{
    const PvReal *from = unfold->source + image * unfold->image_step + c * unfold->channel_step;
    const PvReal *norm =
        unfold->norm ? unfold->norm + image * unfold->norm_image + c : NULL;
    const int64_t *shift = unfold->shift;
    int64_t step = (unfold->in[1] >> shift[1]) * (unfold->in[2] >> shift[2]);
    for (int64_t d = first[0]; d < first[0] + size[0]; d++) {
        bool there = d >= 0 && d < unfold->in[0];
        const PvReal *plane = there ? from + (d >> shift[0]) * step : NULL;
        int64_t h = first[1], end = first[1] + size[1];
        int64_t low = there ? pv_least(end, pv_most(h, 0)) : end;
        int64_t high = pv_most(low, pv_least(end, unfold->in[1]));
        for (; h < low; h++, to += size[2])
            patch_row(to, NULL, first[2], size[2], 0, 0);
        if ((shift[1] || shift[2]) && high > low) {
            patch_rows_shifted(unfold, to, plane, low, high, first[2], size[2], norm);
            to += (high - low) * size[2];
            h = high;
        } else if (norm && high > low) {
            patch_rows_normed(unfold, to, plane, low, high, first[2], size[2], norm[0],
                              norm[unfold->norm_shift]);
            to += (high - low) * size[2];
            h = high;
        }
        for (; h < high; h++, to += size[2])
            patch_row(to, plane + h * unfold->in[2], first[2], size[2], unfold->in[2], 0);
        for (; h < end; h++, to += size[2])
            patch_row(to, NULL, first[2], size[2], 0, 0);
    }
    return to;
}

// Bytes of a patch of `channels` channels of any box.
PV_INLINE int64_t unfold_patch_bytes(const Unfold *unfold, int64_t channels)
{
    int64_t plane = unfold->box_images;
    for (int axis = 0; axis < 3; axis++)
        plane *= (unfold->box[axis] - 1) * unfold->step[axis] + unfold->taps[axis];
    return pv_align(plane * channels * (int64_t)sizeof(PvReal)) + PV_SLACK;
}

// Makes channels c0 .. c1 - 1 of the box ready; a whole patch is filled from channel 0 on.
static void unfold_fill(Unfold *unfold, int64_t c0, int64_t c1)
{
    if (!unfold->padded)
        return;
    const Box *box = &unfold->at;
    int64_t size[3], first[3];
    patch_size(unfold, size);
    for (int axis = 0; axis < 3; axis++)
        first[axis] = box->first[axis] * unfold->step[axis] - unfold->low[axis];
    unfold->base = unfold->patch;
    unfold->base_first = unfold->whole ? 0 : c0;
    int64_t begin = unfold->whole ? unfold->filled : c0;
    PvReal *to = unfold->patch + (begin - unfold->base_first) * unfold->base_channel;
    for (int64_t c = begin; c < c1; c++)
        for (int64_t image = 0; image < box->count; image++)
            to = patch_channel(unfold, to, box->image + image, c, first, size);
    unfold->filled = pv_most(begin, c1);
}

// Where the elements of (channel, tap) start; add Unfold.offset.
PV_INLINE const PvReal *unfold_at(const Unfold *unfold, int64_t channel, int64_t tap)
{
    return unfold->base + (channel - unfold->base_first) * unfold->base_channel +
           unfold->tap_offset[tap];
}

// How many neighbours of `offset` lie next to each other everywhere: a power of two.
static __attribute__((unused)) int offsets_grain(const int32_t *offset, int64_t count)
{
    for (int grain = PV_WIDTH; grain > 1; grain /= 2) {
        bool even = count % grain == 0;
        for (int64_t i = 0; even && i < count; i++)
            even = i % grain == 0 || offset[i] == offset[i - 1] + 1;
        if (even)
            return grain;
    }
    return 1;
}

// to[i] = from[offset[i]], i < count, which is a multiple of grain
PV_INLINE void collect(PvReal *to, const PvReal *from, const int32_t *offset, int64_t count,
                       int grain)
{
    for (int64_t i = 0; i < count; i += grain)
        memcpy(to + i, from + offset[i], (size_t)grain * sizeof *to);
}

static __attribute__((unused)) void collect_any(PvReal *to, const PvReal *from,
                                                const int32_t *offset, int64_t count, int grain)
{
    switch (grain) {
    case 16:
        collect(to, from, offset, count, 16);
        break;
    case 8:
        collect(to, from, offset, count, 8);
        break;
    case 4:
        collect(to, from, offset, count, 4);
        break;
    default:
        collect(to, from, offset, count, 1);
    }
}

#endif
