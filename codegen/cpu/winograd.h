// Minimal filtering: what 3 x 3 convolutions of stride 1 (winograd.c) and the gradients of their
// kernels (winograd_grad.c) have in common.
//
// F(4 x 4, 3 x 3): 4 x 4 neighbouring results see 6 x 6 elements of x. With
//
//   y = A^T [ sum over channels of (G w G^T) . (B^T x B) ] A        (. element by element)
//
// they take 36 multiplications a pair of channels instead of 144. The 36 elements are values at
// products of the points 0, 5/8, -5/8, 3/2, -3/2 and infinity: as polynomials x and w are evaluated
// there, multiplied and interpolated. The usual points 0, 1, -1, 2, -2 lose twice as much accuracy:
// with these the error of a sum over 128 channels is 1.1e-6 of the result, of the plain sum in the
// same order 0.6e-6. All coefficients but those of G are exact. The gradient by w is the adjoint,
//
//   dw = G^T [ sum over tiles of (A dy A^T) . (B^T x B) ] G
//
// and the gradient by x a forward convolution. For each of the 36 elements the sum is a product of
// matrices; sums over channels and tiles run in the same order as ever, so results have the same
// bits for any cut into tasks. See Lavin and Gray, "Fast algorithms for convolutional neural
// networks" (2016); Winograd, "Arithmetic complexity of computations" (1980); on points: Barabasz
// et al., "Error analysis and improving the accuracy of Winograd convolution" (2020).
//
// Tiles are taken from unfold.h as the columns of a convolution of 6 x 6 and stride 4, so operands
// are padded, normalized and up-sampled there. Tiles of several boxes, images, and of siblings with
// one kernel make a batch, for which the kernel is transformed once.
#ifndef PV_WINOGRAD_H
#define PV_WINOGRAD_H

#include "codegen/cpu/conv.h"

enum {
    WINO_OUT = 4,                   // results of a tile along each axis
    WINO_IN = 6,                    // elements of x that they see
    WINO_POINTS = WINO_IN * WINO_IN,
    WINO_HALF = PV_WIDTH / 2,       // tiles of a row that are transformed together
};

// The boxes that are transformed together.
typedef struct {
    int which;                      // of the launches
    int64_t box;
    int64_t first, count;           // tiles of the batch
} TilePart;

typedef struct {
    int count;
    int64_t tiles, room;            // tiles; with zeros behind them
    TilePart part[PV_MAX_SEGMENTS];
} TileBatch;

// All boxes of `count` images of tiles, batch by batch of at most `most` tiles.
typedef struct {
    int count, which;
    int64_t box, most;
    bool split;                     // for products by split.h: whole panels of tiles
    Unfold unfold[PV_MAX_SEGMENTS]; // of tiles; sizes only
} TileWalk;

// Tables and patch of one channel in a thread's scratch.
typedef struct {
    int32_t *offset, *tap_offset;
    PvReal *rows, *patch;
} TileScratch;

static Unfold tile_unfold(const Unfold *plain, const PvReal *source, int64_t most)
{
    Unfold unfold = *plain;
    unfold.source = source;
    for (int axis = 1; axis < 3; axis++) {
        unfold.taps[axis] = WINO_IN;
        unfold.step[axis] = WINO_OUT;
        unfold.out[axis] = pv_ceil_div(plain->out[axis], WINO_OUT);
    }
    unfold_init(&unfold, most);
    unfold.padded = true;
    unfold.whole = false;
    return unfold;
}

// Tiles of a row that are stored together: a power of two.
PV_INLINE int64_t tile_run(int64_t tiles)
{
    int64_t run = 1;
    while (run < WINO_HALF && run < tiles)
        run *= 2;
    return run;
}

PV_INLINE int64_t tile_pitch(int64_t tiles)
{
    return WINO_HALF * (pv_ceil_div(tiles, WINO_HALF) | 1);
}

// Room for so many tiles of a channel.
PV_INLINE int64_t tile_room(const TileWalk *walk, int64_t tiles)
{
    return walk->split ? pv_ceil_div(tiles, SPLIT_DEPTH) * SPLIT_DEPTH : tile_pitch(tiles);
}

// The next batch; false: there is none.
static bool tile_batch(TileWalk *walk, TileBatch *batch)
{
    int64_t behind = 0; // elements that are written behind a row of tiles
    batch->count = 0;
    batch->tiles = 0;
    while (walk->which < walk->count && batch->count < PV_MAX_SEGMENTS) {
        const Unfold *unfold = &walk->unfold[walk->which];
        if (walk->box == unfold->box_count) {
            walk->box = 0;
            walk->which++;
            continue;
        }
        Box box = unfold_box(unfold, walk->box);
        int64_t tiles = box.columns, run = tile_run(box.size[2]);
        behind = pv_most(behind, pv_ceil_div(box.size[2], run) * run - box.size[2]);
        if (batch->count > 0 && batch->tiles + tiles > walk->most)
            break;
        batch->part[batch->count++] = (TilePart){walk->which, walk->box, batch->tiles, tiles};
        batch->tiles += tiles;
        walk->box++;
    }
    batch->room = tile_room(walk, batch->tiles + behind);
    return batch->count > 0;
}

// ---- transforms of one axis ----

#define WINO_A ((PvReal)0.625)
#define WINO_B ((PvReal)1.5)
#define WINO_A2 ((PvReal)0.390625)  // squares
#define WINO_B2 ((PvReal)2.25)
#define WINO_SUM ((PvReal)2.640625) // a a + b b
#define WINO_ALL ((PvReal)0.87890625) // a a b b

// B^T: values of x, a polynomial of degree 5 modulo all points
PV_INLINE void wino_input(PvVec *to, int64_t step, const PvVec x[WINO_IN])
{
    PvVec even_a = x[4] - WINO_B2 * x[2], odd_a = x[3] - WINO_B2 * x[1];
    PvVec even_b = x[4] - WINO_A2 * x[2], odd_b = x[3] - WINO_A2 * x[1];
    to[0] = x[4] - WINO_SUM * x[2] + WINO_ALL * x[0];
    to[step] = even_a + WINO_A * odd_a;
    to[2 * step] = even_a - WINO_A * odd_a;
    to[3 * step] = even_b + WINO_B * odd_b;
    to[4 * step] = even_b - WINO_B * odd_b;
    to[5 * step] = x[5] - WINO_SUM * x[3] + WINO_ALL * x[1];
}

// 1 / the product of a point's distances from the others
#define WINO_N0 ((PvReal)(1 / 0.87890625))
#define WINO_NA ((PvReal)(1 / (2 * 0.390625 * (0.390625 - 2.25))))
#define WINO_NB ((PvReal)(1 / (2 * 2.25 * (2.25 - 0.390625))))

// G: values of w over the distances
PV_INLINE void wino_filter(PvVec *to, int64_t step, PvVec w0, PvVec w1, PvVec w2)
{
    PvVec even_a = w0 * WINO_NA + w2 * (WINO_NA * WINO_A2);
    PvVec even_b = w0 * WINO_NB + w2 * (WINO_NB * WINO_B2);
    to[0] = w0 * WINO_N0;
    to[step] = even_a + w1 * (WINO_NA * WINO_A);
    to[2 * step] = even_a - w1 * (WINO_NA * WINO_A);
    to[3 * step] = even_b + w1 * (WINO_NB * WINO_B);
    to[4 * step] = even_b - w1 * (WINO_NB * WINO_B);
    to[5 * step] = w2;
}

// A^T
PV_INLINE void wino_output(PvVec *to, int64_t step, const PvVec m[WINO_IN])
{
    PvVec even_a = m[1] + m[2], odd_a = WINO_A * (m[1] - m[2]);
    PvVec even_b = m[3] + m[4], odd_b = WINO_B * (m[3] - m[4]);
    to[0] = m[0] + even_a + even_b;
    to[step] = odd_a + odd_b;
    to[2 * step] = WINO_A2 * even_a + WINO_B2 * even_b;
    to[3 * step] = WINO_A2 * odd_a + WINO_B2 * odd_b + m[5];
}

// A: what becomes of a gradient of four results
PV_INLINE void wino_output_adjoint(PvVec *to, int64_t step, const PvVec y[WINO_OUT])
{
    PvVec even_a = y[0] + WINO_A2 * y[2], odd_a = WINO_A * (y[1] + WINO_A2 * y[3]);
    PvVec even_b = y[0] + WINO_B2 * y[2], odd_b = WINO_B * (y[1] + WINO_B2 * y[3]);
    to[0] = y[0];
    to[step] = even_a + odd_a;
    to[2 * step] = even_a - odd_a;
    to[3 * step] = even_b + odd_b;
    to[4 * step] = even_b - odd_b;
    to[5 * step] = y[3];
}

// G^T
PV_INLINE void wino_filter_adjoint(PvVec *to, int64_t step, const PvVec u[WINO_IN])
{
    PvVec even_a = WINO_NA * (u[1] + u[2]), even_b = WINO_NB * (u[3] + u[4]);
    to[0] = WINO_N0 * u[0] + even_a + even_b;
    to[step] = (WINO_NA * WINO_A) * (u[1] - u[2]) + (WINO_NB * WINO_B) * (u[3] - u[4]);
    to[2 * step] = WINO_A2 * even_a + WINO_B2 * even_b + u[5];
}

// ---- tiles of x ----

// at[0], at[4], at[8], ...: WINO_HALF of them, in the lower half
PV_INLINE PvVec vec_fourths(const PvReal *at)
{
    PvVec x = vec_load(at), y = vec_load(at + PV_WIDTH);
#ifdef __clang__
    PvVec z = x;
#pragma clang loop unroll(full)
    for (int i = 0; i < WINO_HALF; i++)
        z[i] = 4 * i < PV_WIDTH ? x[4 * i] : y[4 * i - PV_WIDTH];
    return z;
#else
    PvMask mask = {0};
    for (int i = 0; i < PV_WIDTH; i++)
        mask[i] = 4 * i % (2 * PV_WIDTH);
    return __builtin_shuffle(x, y, mask);
#endif
}

// Six rows of a patch, `step` apart, each `size` wide: to[point of the vertical axis][column]
PV_INLINE void wino_rows(PvReal *to, int64_t to_step, const PvReal *from, int64_t step,
                         int64_t size)
{
    for (int64_t i = 0; i < size; i += PV_WIDTH) {
        PvVec x[WINO_IN], y[WINO_IN];
#pragma GCC unroll 6
        for (int row = 0; row < WINO_IN; row++)
            x[row] = vec_load(from + row * step + i);
        wino_input(y, 1, x);
#pragma GCC unroll 6
        for (int row = 0; row < WINO_IN; row++)
            vec_store(to + row * to_step + i, y[row]);
    }
}

// Width of the buffer of wino_rows: vectors are read from anywhere in a row, twice as wide.
PV_INLINE int64_t wino_rows_width(int64_t size)
{
    return pv_ceil_div(size, PV_WIDTH) * PV_WIDTH + 3 * PV_WIDTH;
}

// Where transformed tiles of a batch go: point, channel and tile are at
// point * point_step + channel * channel_step + tile / PV_LANES * panel_step + tile % PV_LANES.
typedef struct {
    PvReal *to;
    int64_t point_step, channel_step, panel_step;
} TilePlace;

PV_INLINE int64_t tile_at(const TilePlace *place, int64_t tile)
{
    return tile / PV_LANES * place->panel_step + tile % PV_LANES;
}

// Transformed tiles of the channel in the patch, in runs of `run`, from tile `first` of the batch
// on. May write behind a row of tiles until the run is full.
PV_INLINE void wino_tiles_by(const Unfold *unfold, PvReal *rows, const TilePlace *place, PvReal *to,
                             int64_t first, int run)
{
    int64_t size[3], tiles = unfold->at.size[2], point_step = place->point_step;
    patch_size(unfold, size);
    int64_t planes = unfold->at.count * size[0], width = wino_rows_width(size[2]);
    int64_t gap = place->panel_step - PV_LANES; // between panels
    for (int64_t plane = 0; plane < planes; plane++) {
        const PvReal *from = unfold->patch + plane * size[1] * size[2];
        for (int64_t h = 0; h < unfold->at.size[1]; h++, first += tiles) {
            wino_rows(rows, width, from + h * WINO_OUT * size[2], size[2], size[2]);
            for (int64_t tile = 0; tile < tiles; tile += run) {
                PvReal *out = to + tile_at(place, first + tile);
                // elements of the run in its first panel, if it goes on in another
                int64_t here = gap == 0 ? run : PV_LANES - (first + tile) % PV_LANES;
                for (int row = 0; row < WINO_IN; row++) {
                    const PvReal *at = rows + row * width + tile * WINO_OUT;
                    PvVec x[WINO_IN], y[WINO_IN];
#pragma GCC unroll 6
                    for (int i = 0; i < WINO_IN; i++)
                        x[i] = vec_fourths(at + i);
                    wino_input(y, 1, x);
                    if (here < run) {
                        for (int i = 0; i < WINO_IN; i++, out += point_step)
                            for (int64_t k = 0; k < run; k++)
                                out[k < here ? k : k + gap] = y[i][k];
                        continue;
                    }
#pragma GCC unroll 6
                    for (int i = 0; i < WINO_IN; i++, out += point_step)
                        memcpy(out, &y[i], (size_t)run * sizeof *out);
                }
            }
        }
    }
}

static void wino_tiles(const Unfold *unfold, PvReal *rows, const TilePlace *place, PvReal *to,
                       int64_t first)
{
    int64_t run = tile_run(unfold->at.size[2]);
    if (run == WINO_HALF)
        wino_tiles_by(unfold, rows, place, to, first, WINO_HALF);
    else if (run == 4)
        wino_tiles_by(unfold, rows, place, to, first, 4);
    else if (run == 2)
        wino_tiles_by(unfold, rows, place, to, first, 2);
    else
        wino_tiles_by(unfold, rows, place, to, first, 1);
}

// Bytes of the tables and buffers of a thread that transforms tiles.
PV_INLINE int64_t tile_scratch_bytes(const TileWalk *walk)
{
    int64_t patch = 0, width = 0;
    for (int i = 0; i < walk->count; i++) {
        patch = pv_most(patch, unfold_patch_bytes(&walk->unfold[i], 1));
        width = pv_most(width, (walk->unfold[i].box[2] - 1) * WINO_OUT + WINO_IN);
    }
    return pv_align(walk->most * 4) + pv_align(WINO_POINTS * 4) +
           pv_align(WINO_IN * wino_rows_width(width) * (int64_t)sizeof(PvReal)) + patch;
}

static TileScratch tile_scratch(const TileWalk *walk, char *scratch)
{
    TileScratch at = {.offset = (int32_t *)scratch};
    scratch += pv_align(walk->most * 4);
    at.tap_offset = (int32_t *)scratch;
    scratch += pv_align(WINO_POINTS * 4);
    at.rows = (PvReal *)scratch;
    int64_t width = 0;
    for (int i = 0; i < walk->count; i++)
        width = pv_most(width, (walk->unfold[i].box[2] - 1) * WINO_OUT + WINO_IN);
    at.patch = (PvReal *)(scratch +
                          pv_align(WINO_IN * wino_rows_width(width) * (int64_t)sizeof(PvReal)));
    return at;
}

// Channels c0 .. c1 - 1 of all tiles of a batch, zeros behind the last tile.
static void wino_channels(const TileWalk *walk, const TileBatch *batch, int64_t c0, int64_t c1,
                          const TileScratch *scratch, const TilePlace *place)
{
    for (int i = 0; i < batch->count; i++) {
        const TilePart *part = &batch->part[i];
        Unfold unfold = walk->unfold[part->which];
        unfold.offset = scratch->offset;
        unfold.tap_offset = scratch->tap_offset;
        unfold.patch = scratch->patch;
        unfold_open(&unfold, part->box);
        for (int64_t c = c0; c < c1; c++) {
            unfold_fill(&unfold, c, c + 1);
            wino_tiles(&unfold, scratch->rows, place, place->to + c * place->channel_step,
                       part->first);
        }
    }
    for (int64_t c = c0; c < c1; c++) {
        PvReal *to = place->to + c * place->channel_step;
        for (int point = 0; point < WINO_POINTS; point++)
            for (int64_t i = batch->tiles, end; i < batch->room; i = end) {
                end = pv_least(batch->room, (i / PV_LANES + 1) * PV_LANES);
                memset(to + point * place->point_step + tile_at(place, i), 0,
                       (size_t)(end - i) * sizeof *to);
            }
    }
}

#endif
