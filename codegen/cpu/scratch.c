// How much scratch a thread of each kernel needs: part of the compiler, which puts the largest of
// a plan's launches into its tables. The formulas bound what the kernels lay out, on any vector
// width and number of threads; sizes that depend on the batch are given as 0 and count as endless.
#include "codegen/cpu/blocks.h"
#include "codegen/cpu/kernels.h"

static int64_t volume(const int64_t *size)
{
    return size[0] * size[1] * size[2];
}

// Bytes of a row of a block of a product with `n` columns.
static int64_t row_bytes(int64_t n, int64_t real)
{
    int64_t most = PV_PANELS * PV_MAX_TILE;
    return n == 0 ? most : pv_least(most, pv_ceil_div(n * real, PV_MAX_TILE) * PV_MAX_TILE);
}

int64_t pv_gemm_scratch(const GemmArgs *args, int64_t real)
{
    bool cut = args->sum_batch || args->k == 0 || args->k > PV_K_BLOCK || args->sum != 0;
    int64_t columns = args->gate ? 2 * args->n : args->n;
    return pv_align(
        pv_product_bytes(row_bytes(columns, real), real, cut ? pv_sum_rows(args->m) : 0));
}

// Elements of the patch of one channel that boxes of up to `columns` positions see, all images.
static int64_t patch_bound(int64_t columns, const int64_t *out, const int64_t *step,
                           const int64_t *taps)
{
    int64_t patch = 1, room = columns;
    bool whole = true;
    for (int axis = 2; axis >= 0; axis--) {
        int64_t most = whole ? pv_most(1, pv_least(out[axis], room)) : 1;
        whole = whole && most == out[axis];
        room /= most;
        patch *= (most - 1) * step[axis] + taps[axis];
    }
    return whole ? patch * pv_most(1, room) : patch;
}

// Channels that a run of `length` pairs (channel, tap) touches.
static int64_t channel_bound(int64_t length, int64_t taps, int64_t channels)
{
    return pv_least(channels, (length - 1) / pv_most(1, taps) + 2);
}

static bool is_pointwise(const ConvArgs *args)
{
    for (int axis = 0; axis < 3; axis++) {
        if (args->kernel[axis] != 1 || args->stride[axis] != 1 || args->pad[axis] != 0)
            return false;
    }
    return args->groups == 1;
}

// The general form: boxes of positions as columns, (channel, tap) as k. `normed`: there should be
// room for a patch of all channels, if that is not too much, so that they are normalized once.
static int64_t conv_bytes(const int64_t *out, const int64_t *step, const int64_t *taps,
                          int64_t channels, int64_t table, bool normed, int64_t real)
{
    int64_t row = PV_PANELS * PV_MAX_TILE, columns = row / real, count = volume(taps);
    int64_t plane = patch_bound(columns, out, step, taps);
    int64_t patch = plane * channel_bound(PV_K_BLOCK, count, channels);
    if (normed)
        patch = pv_most(patch, pv_least(plane * channels, PV_WHOLE_PATCH / real));
    return 3 * pv_align(columns * 4) + pv_align(count * 4) + pv_align(table * 4) +
           pv_product_bytes(row, real, PV_SUM_ROWS) + pv_align(patch * real) + PV_SLACK;
}

// Minimal filtering, on any width of vectors: tables and patch of one channel of `tiles` tiles of
// 4 x 4 positions of `out`, with a row of them.
static int64_t tile_bytes(const ConvArgs *args, const int64_t *out, int64_t tiles, int64_t real)
{
    const int64_t step[3] = {1, 4, 4}, taps[3] = {args->kernel[0], 6, 6};
    int64_t size[3] = {out[0], pv_ceil_div(out[1], 4), pv_ceil_div(out[2], 4)};
    int64_t wide = pv_least(size[2], tiles), line = PV_MAX_TILE / 2 / real;
    return patch_bound(tiles, size, step, taps) * real + (tiles + 36) * 4 +
           6 * (4 * wide + 2 + 4 * line) * real + PV_SLACK + 4 * 64;
}

// Transformed tiles of so many channels; 16: lines between panels.
static int64_t tiles_bytes(int64_t channels, int64_t tiles, int64_t real)
{
    int64_t line = PV_MAX_TILE / 2 / real;
    return 36 * (channels * (tiles + 3 * line) + 16 * line) * real + 64;
}

// Forward by split.h, if the machine can: a task of two panels of rows.
static int64_t winograd_split_bytes(const ConvArgs *args, int64_t channels, const int64_t *out,
                                    int64_t real)
{
    int64_t tiles = pv_split_tiles(channels), panel = split_words(PV_SPLIT_CHANNELS) * 4;
    int64_t task = 36 * (2 * panel + 64) + 36 * (tiles * 2 * PV_MAX_TILE + 64) + panel +
                   tiles * (16 * 4 + 128 + 8) + 5 * PV_SLACK;
    return tiles_bytes(channels, tiles, real) + pv_most(task, tile_bytes(args, out, tiles, real));
}

// Forward, from `channels` channels to a result of extents `out`.
static int64_t winograd_bytes(const ConvArgs *args, int64_t channels, const int64_t *out,
                              int64_t real)
{
    if (!args->winograd || args->groups != 1)
        return 0;
    int64_t tiles = pv_winograd_tiles(channels, real);
    int64_t wide = pv_least(pv_ceil_div(out[2], 4), tiles);
    int64_t products = 36 * ((PV_WINOGRAD_CHANNELS + tiles + PV_MAX_ROWS) * PV_MAX_TILE + 2 * 64);
    int64_t task = products + 16 * 9 * 64 + wide * 16 * PV_MAX_TILE + PV_SLACK;
    int64_t plain = tiles_bytes(channels, tiles, real) +
                    pv_most(task, tile_bytes(args, out, tiles, real));
    return pv_most(plain, winograd_split_bytes(args, channels, out, real));
}

// The gradient of a kernel from `tiles` tiles at once, with so many bytes for each task.
static int64_t winograd_grad_bytes_of(const ConvArgs *args, int64_t tiles, int64_t task,
                                      int64_t real)
{
    int64_t results = 36 * (tiles * (args->c_out * real + PV_MAX_TILE) + 64) + 64;
    return tiles_bytes(args->c_in, tiles, real) + results +
           pv_most(task + PV_SLACK, tile_bytes(args, args->out, tiles, real));
}

static int64_t winograd_grad_bytes(const ConvArgs *args, int64_t real)
{
    if (!args->winograd || args->groups != 1)
        return 0;
    // rows are whole panels
    int64_t lanes = PV_MAX_TILE / real, rows = pv_ceil_div(args->c_out, lanes) * lanes;
    int64_t tiles = pv_winograd_tiles(args->c_in + args->c_out, real);
    int64_t task = (36 + 9) * PV_MAX_ROWS * PV_MAX_TILE + 36 * 64;
    int64_t plain = winograd_grad_bytes_of(args, tiles, task, real);
    tiles = pv_split_tiles(args->c_in + rows);
    int64_t sums = PV_SPLIT_SUMS * PV_SPLIT_SUMS * PV_MAX_SPLIT_ROWS * PV_MAX_TILE;
    task = 36 * (sums + 64) + 9 * PV_MAX_SPLIT_ROWS * PV_MAX_TILE +
           (PV_SPLIT_SUMS + 1) * split_words(tiles + SPLIT_DEPTH) * 4;
    return pv_most(plain, winograd_grad_bytes_of(args, tiles, task, real));
}

int64_t pv_conv_scratch(const ConvArgs *args, int64_t real)
{
    GemmArgs gemm = {.m = args->c_out, .n = volume(args->out), .k = args->c_in};
    int64_t plain = is_pointwise(args) ? pv_gemm_scratch(&gemm, real) : 0;
    plain = pv_most(plain, pv_align(winograd_bytes(args, args->c_in, args->out, real)));
    return pv_most(plain, conv_bytes(args->out, args->stride, args->kernel,
                                     args->c_in / args->groups, 0, args->norm.table != 0, real));
}

int64_t pv_conv_dgrad_scratch(const ConvArgs *args, int64_t real)
{
    const int64_t one[3] = {1, 1, 1};
    int64_t taps[3], out[3], channels = args->c_out / args->groups;
    for (int axis = 0; axis < 3; axis++) {
        taps[axis] = pv_ceil_div(args->kernel[axis], args->stride[axis]);
        out[axis] = pv_ceil_div(args->in[axis], args->stride[axis]);
    }
    GemmArgs gemm = {.m = args->c_in, .n = volume(args->in), .k = args->c_out};
    int64_t plain = is_pointwise(args) ? pv_gemm_scratch(&gemm, real) : 0;
    plain = pv_most(plain, pv_align(winograd_bytes(args, args->c_out, args->in, real)));
    int64_t phase = conv_bytes(out, one, taps, channels, volume(args->kernel), false, real);
    int64_t scatter = conv_bytes(args->out, one, one, channels, volume(args->kernel), false, real);
    return pv_most(plain, pv_most(phase, scatter));
}

int64_t pv_conv_wgrad_scratch(const ConvArgs *args, int64_t real)
{
    GemmArgs gemm = {.m = args->c_out, .n = args->c_in, .sum_batch = 1};
    int64_t plain = is_pointwise(args) ? pv_gemm_scratch(&gemm, real) : 0;
    plain = pv_most(plain, pv_align(winograd_grad_bytes(args, real)));
    int64_t taps = volume(args->kernel), channels = args->c_in / args->groups;
    int64_t row = row_bytes(channels * taps, real);
    int64_t patch = patch_bound(PV_K_BLOCK, args->out, args->stride, args->kernel) *
                    channel_bound(row / real, taps, channels);
    int64_t tables = 2 * pv_align(PV_K_BLOCK * 4) + pv_align(PV_MAX_SEGMENTS * taps * 4);
    return pv_most(plain, tables + PV_MAX_TILE / 2 * PV_K_BLOCK +
                              pv_product_bytes(row, real, PV_SUM_ROWS) + pv_align(patch * real) +
                              PV_SLACK);
}

static int64_t round_up(int64_t count, int64_t step)
{
    return pv_ceil_div(count, step) * step;
}

enum { MAX_LANES = PV_MAX_TILE / 4 };

// Numbers of a task by split.h, in f32, but for turned rows.
static int64_t split_attention(const AttentionArgs *args, int64_t queries)
{
    int64_t e = pv_ceil_div(args->e, PV_MAX_SPLIT_ROWS), d = split_words(args->d);
    int64_t panels = queries / MAX_LANES * d + PV_SPLIT_KEYS / PV_MAX_SPLIT_ROWS * d +
                     (e + 1) * split_words(PV_SPLIT_KEYS);
    return queries * (args->d + e * PV_MAX_SPLIT_ROWS + 3) + PV_SPLIT_KEYS * MAX_LANES + panels +
           pv_most(PV_SPLIT_KEYS, args->d) * MAX_LANES;
}

int64_t pv_attention_scratch(const AttentionArgs *args, int64_t real)
{
    int64_t queries = args->n == 0 ? PV_QUERIES : round_up(args->n, MAX_LANES);
    queries = pv_least(queries, PV_QUERIES);
    int64_t keys = args->m == 0 ? PV_KEYS : pv_least(round_up(args->m, PV_MAX_ROWS), PV_KEYS);
    int64_t rows = round_up(args->e, PV_MAX_ROWS);
    int64_t count = queries * (args->d + rows + 3) + keys * (MAX_LANES + args->d + rows);
    count = pv_most(count, split_attention(args, queries));
    if (args->q_rotary.cos || args->k_rotary.cos)
        count += (queries > keys ? queries : keys) * args->d;
    return pv_align(count * real + 4 * PV_SLACK);
}

// Numbers of a task of the gradient by split.h, in f32: panels of keys and of two times 32 queries,
// lanes of these, scores, sums, turned rows.
static int64_t split_attention_grad(const AttentionArgs *args)
{
    int64_t d = args->d, e = args->e;
    int64_t keys = split_grad_keys(args->m == 0 ? PV_SPLIT_GRAD_WORDS : args->m, d, e);
    int64_t lanes = (pv_most(SPLIT_DEPTH, pv_most(d, e)) + 4) * SPLIT_DEPTH;
    return (keys / SPLIT_DEPTH + 2) * split_grad_words(d, e) + lanes + PV_SPLIT_ITEM +
           round_up(args->n, SPLIT_DEPTH) * (round_up(d, SPLIT_DEPTH) + 1) +
           (keys + SPLIT_DEPTH) * d;
}

int64_t pv_attention_grad_scratch(const AttentionGradArgs *grad, int64_t real)
{
    const AttentionArgs *args = &grad->f;
    int64_t keys =
        args->m == 0 ? PV_GRAD_KEYS : pv_least(round_up(args->m, PV_MAX_ROWS), PV_GRAD_KEYS);
    int64_t d_lanes = round_up(args->d, MAX_LANES), e_lanes = round_up(args->e, MAX_LANES);
    int64_t d_rows = round_up(args->d, PV_MAX_ROWS);
    int64_t count = keys * (d_lanes + e_lanes + 2 * PV_GRAD_QUERIES + args->d + d_rows + args->e) +
                    MAX_LANES * (args->d + args->e) + PV_GRAD_QUERIES * (d_lanes + e_lanes) +
                    round_up(args->n, MAX_LANES) * (d_rows + 1);
    if (args->q_rotary.cos || args->k_rotary.cos)
        count += (keys + PV_GRAD_QUERIES) * args->d;
    count = pv_most(count, split_attention_grad(args));
    return pv_align(count * real + 8 * PV_SLACK);
}

int64_t pv_norm_scratch(int64_t c, int64_t real)
{
    return pv_align(PV_NORM_PARTS * 2 * c * real);
}

int64_t pv_reduce_scratch(const ReduceArgs *args, int64_t real)
{
    (void)args;
    return PV_REDUCE_PARTIALS * real;
}
