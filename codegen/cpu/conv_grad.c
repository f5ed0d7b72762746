// Gradients of convolutions of one to three axes (conv.c) by their inputs and by their kernels.
//
//   dgrad    the positions of x fall into stride^axes phases; in each phase only some taps reach y,
//            and dx[c, p] = sum over (o, tap) of w[o, c, tap] dy[o, p - tap + shift] is a forward
//            convolution of stride 1. Where no two taps meet (kernel <= stride, no padding) it is
//            instead one product with rows (c, tap), whose results are scattered.
//   wgrad    dw[o, (c, tap)] = sum over positions p of dy[o, p] x[c, p stride + tap - pad]
#include "codegen/cpu/conv.h"

// What all forms of dgrad share.
static ConvLaunch dgrad_launch(const PvRun *run, const ConvArgs *args)
{
    int64_t rows = args->c_in / args->groups, channels = args->c_out / args->groups;
    int64_t taps = volume(args->kernel);
    bool winograd = takes_winograd(args, rows, channels, args->in);
    ConvLaunch launch = {
        .product = {.w_row = taps,
                    .w_channel = rows * taps,
                    .out_row = args->x_channel,
                    .residual_row = args->residual_channel,
                    .act = (PvAct)args->act,
                    .unfold = {.image_step = args->y_image,
                               .channel_step = args->y_channel,
                               .images = args->images}},
        .groups = args->groups,
        .rows = rows,
        .winograd = winograd,
        .split = winograd && splits_winograd(run, rows, channels, tiles_of(args->in)),
        .source = (const PvReal *)args->y,
        .w = (const PvReal *)args->w,
        .bias = (const PvReal *)args->bias,
        .residual = (const PvReal *)args->residual,
        .out = (PvReal *)args->x,
        .source_group = channels * args->y_channel,
        .w_group = rows * channels * taps,
        .bias_group = rows,
        .out_group = rows * args->x_channel,
        .out_image = args->x_image,
        .residual_group = rows * args->residual_channel,
        .residual_image = args->residual_image,
    };
    for (int axis = 0; axis < 3; axis++) {
        launch.product.unfold.in[axis] = args->out[axis];
        launch.product.unfold.step[axis] = 1;
        launch.extent[axis] = args->in[axis];
        launch.step[axis] = args->stride[axis];
        launch.table_extent[axis] = args->kernel[axis];
    }
    return launch;
}

// Taps side by side (kernel = stride, no padding): one product with rows (channel, tap).
static void dgrad_scatter(const PvRun *run, const ConvArgs *args)
{
    ConvLaunch launch = dgrad_launch(run, args);
    ConvProduct *product = &launch.product;
    product->kind = CONV_SCATTER;
    product->scatter_taps = volume(args->kernel);
    product->w_row = 1;
    product->k_total = args->c_out / args->groups;
    launch.rows *= product->scatter_taps;
    for (int axis = 0; axis < 3; axis++) {
        product->unfold.out[axis] = args->out[axis];
        product->unfold.taps[axis] = 1;
        launch.table_size[axis] = args->kernel[axis];
        launch.table_step[axis] = 1;
        launch.table_extent[axis] = args->in[axis];
    }
    pv_conv_launch(run, &launch);
}

// The positions of x that are phase[axis] modulo the strides.
static ConvLaunch phase_launch(const PvRun *run, const ConvArgs *args, const int64_t *phase)
{
    ConvLaunch launch = dgrad_launch(run, args);
    ConvProduct *product = &launch.product;
    Unfold *unfold = &product->unfold;
    product->kind = CONV_PHASE;
    for (int axis = 0; axis < 3; axis++) {
        int64_t stride = args->stride[axis], reach = phase[axis] + args->pad[axis];
        int64_t tap = reach % stride; // the first that lands on a position of y
        int64_t taps = tap < args->kernel[axis] ? (args->kernel[axis] - tap - 1) / stride + 1 : 0;
        unfold->out[axis] = (args->in[axis] - phase[axis] - 1 + stride) / stride;
        unfold->taps[axis] = taps;
        unfold->low[axis] = taps - 1 - reach / stride;
        launch.first[axis] = phase[axis];
        launch.table_size[axis] = taps; // in reverse
        launch.table_first[axis] = tap + (taps - 1) * stride;
        launch.table_step[axis] = -stride;
    }
    product->k_total = args->c_out / args->groups * volume(unfold->taps);
    return launch;
}

static void dgrad_one(const PvRun *run, const ConvArgs *args)
{
    if (is_pointwise(args)) {
        int64_t positions = volume(args->in);
        GemmArgs gemm = {
            .c = args->x,
            .a = args->w,
            .b = args->y,
            .m = args->c_in,
            .n = positions,
            .k = args->c_out,
            .batch0 = args->images,
            .batch1 = 1,
            .a_m = 1,
            .a_k = args->c_in,
            .b0 = args->y_image,
            .b_k = args->y_channel,
            .b_n = 1,
            .c0 = args->x_image,
            .c_m = args->x_channel,
            .r0 = args->residual_image,
            .r_m = args->residual_channel,
            .bias = args->bias,
            .bias_axis = 1,
            .residual = args->residual,
            .act = args->act,
        };
        pv_gemm_one(run, &gemm);
        return;
    }
    bool apart = volume(args->stride) > 1;
    for (int axis = 0; axis < 3; axis++)
        apart = apart && args->kernel[axis] == args->stride[axis] && args->pad[axis] == 0 &&
                args->in[axis] == args->out[axis] * args->stride[axis];
    if (apart) {
        dgrad_scatter(run, args);
        return;
    }
    int64_t phase[3];
    for (phase[0] = 0; phase[0] < pv_least(args->stride[0], args->in[0]); phase[0]++) {
        for (phase[1] = 0; phase[1] < pv_least(args->stride[1], args->in[1]); phase[1]++) {
            for (phase[2] = 0; phase[2] < pv_least(args->stride[2], args->in[2]); phase[2]++) {
                ConvLaunch launch = phase_launch(run, args, phase);
                pv_conv_launch(run, &launch);
            }
        }
    }
}

void pv_conv_dgrad(const PvRun *run, const int64_t *raw)
{
    const ConvArgs *args = (const ConvArgs *)raw;
    ConvLaunch launch[PV_MAX_SEGMENTS];
    int count = 0;
    for (uint32_t i = 0; i < run->segments; i++) {
        if (!is_pointwise(&args[i]) && volume(args[i].stride) == 1 && volume(args[i].kernel) > 1)
            launch[count++] = phase_launch(run, &args[i], (const int64_t[3]){0, 0, 0});
        else
            dgrad_one(run, &args[i]);
    }
    pv_conv_launches(run, launch, count);
}

// ---- gradient of the kernel: k runs over boxes of positions, segment by segment of a sum ----

// Segments of one box each are one block of k while they are few positions: a tile that ends soon
// is mostly begun and stored. A block is otherwise one box.
typedef struct {
    int64_t segment, count; // the first one; how many segments are in each of the blocks
    int64_t blocks;
} WgradRun;

typedef struct {
    Product base;
    const ConvArgs *args;  // of the first segment
    const Unfold *unfolds; // of each segment, sizes only
    const WgradRun *runs;  // of blocks of k, in their order
    int64_t group;
    PvReal *out;
    const PvReal *residual;
    PvReal *rows;          // [PV_WIDTH][PV_K_BLOCK]
    PvReal *patch;
    int32_t *offset, *out_offset, *tap_offset; // room for all boxes of a block
    // the boxes of the present block of k
    int64_t k, count;
    struct {
        Unfold unfold;
        const PvReal *y;     // of its group and image
        int64_t y_channel;
        int32_t *out_offset; // [columns of the box] into y
    } box[PV_MAX_SEGMENTS];
} WgradProduct;

// Opens box `number` of a segment behind `k` positions of others; channels c0 .. c1 - 1.
static void wgrad_open(WgradProduct *product, int64_t number, int64_t segment, int64_t box,
                       int64_t c0, int64_t c1)
{
    const ConvArgs *args = product->args + segment;
    const int64_t zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    Unfold at = product->unfolds[segment];
    at.patch = product->patch;
    for (int64_t i = 0; i < number; i++)
        at.patch += unfold_patch_bytes(&product->box[i].unfold, c1 - c0) / (int64_t)sizeof(PvReal);
    at.offset = product->offset + product->k;
    at.tap_offset = product->tap_offset + number * at.tap_count;
    at.source = (const PvReal *)args->x + product->group * channels * args->x_channel;
    if (at.norm)
        at.norm += product->group * channels;
    unfold_open(&at, box);
    unfold_fill(&at, c0, c1);
    int32_t *out = product->out_offset + product->k;
    out_offsets(out, &at.at, at.out, zero, one, args->y_image);
    product->box[number].y = (const PvReal *)args->y + product->group * rows * args->y_channel +
                             at.at.image * args->y_image;
    product->box[number].y_channel = args->y_channel;
    product->box[number].out_offset = out;
    product->box[number].unfold = at;
    product->k += at.at.columns;
}

static int64_t wgrad_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    WgradProduct *product = (WgradProduct *)base;
    const WgradRun *run = product->runs;
    int64_t taps = product->unfolds->tap_count;
    for (; block >= run->blocks; run++)
        block -= run->blocks;
    product->k = 0;
    product->count = run->count;
    for (int64_t i = 0; i < run->count; i++)
        wgrad_open(product, i, run->segment + i, block, n0 / taps, (n1 - 1) / taps + 1);
    return product->k;
}

// dy of the boxes' positions, in runs of neighbours
static Ahead wgrad_pack_rows(Product *base, int64_t m0, int64_t rows, PvReal *panel)
{
    WgradProduct *product = (WgradProduct *)base;
    for (int64_t i = 0; i < product->count; i++) {
        const int32_t *offset = product->box[i].out_offset;
        int64_t step = product->box[i].y_channel, count = product->box[i].unfold.at.columns;
        const PvReal *from = product->box[i].y + m0 * step;
        for (int64_t k = 0; k < count;) {
            int64_t end = k + 1;
            while (end < count && offset[end] == offset[end - 1] + 1)
                end++;
            pack_transposed(panel, PV_ROWS, from + offset[k], step, rows, end - k);
            panel += (end - k) * PV_ROWS;
            k = end;
        }
    }
    return (Ahead){0}; // dy is small enough to be near
}

static void wgrad_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    WgradProduct *product = (WgradProduct *)base;
    int64_t taps = product->unfolds->tap_count;
    for (int64_t first = 0; first < PV_LANES; first += PV_WIDTH) {
        int64_t rows = pv_most(0, pv_least(columns - first, PV_WIDTH));
        PvReal *to = product->rows;
        for (int64_t b = 0; b < product->count; b++) {
            Unfold *unfold = &product->box[b].unfold;
            int64_t count = unfold->at.columns;
            int grain = offsets_grain(unfold->offset, count);
            for (int64_t i = 0; i < rows; i++) {
                int64_t n = n0 + first + i;
                collect_any(to + i * PV_K_BLOCK, unfold_at(unfold, n / taps, n % taps),
                            unfold->offset, count, grain);
            }
            to += count;
        }
        pack_square(panel + first, PV_LANES, product->rows, PV_K_BLOCK, rows, product->k);
    }
}

static void wgrad_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                        const PvReal *tile)
{
    WgradProduct *product = (WgradProduct *)base;
    int64_t step = product->args->c_in / product->args->groups * product->unfolds->tap_count;
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = (m0 + i) * step + n0;
        if (!product->residual && columns == PV_LANES)
            memcpy(product->out + at, tile + i * PV_LANES, PV_LANES * sizeof *tile);
        else
            pv_product_finish(product->out + at, tile + i * PV_LANES, columns, 0, NULL,
                              product->residual ? product->residual + at : NULL, PV_ACT_NONE);
    }
}

// Bytes of scratch before the patches, for a task of so many columns.
static int64_t wgrad_bytes(int64_t taps, int64_t columns)
{
    int64_t real = sizeof(PvReal), room = pv_ceil_div(columns, PV_LANES) * PV_LANES;
    return 2 * pv_align(PV_K_BLOCK * 4) + pv_align(PV_MAX_SEGMENTS * taps * 4) +
           PV_WIDTH * PV_K_BLOCK * real + pv_product_bytes(room * real, real, PV_SUM_ROWS);
}

static void wgrad_task(const WgradProduct *shape, int64_t group, int64_t m0, int64_t m1, int64_t n0,
                       int64_t n1, char *scratch)
{
    WgradProduct product = *shape;
    const ConvArgs *args = product.args;
    int64_t taps = product.unfolds->tap_count;
    int64_t first = group * (args->c_out / args->groups) * (args->c_in / args->groups) * taps;
    product.group = group;
    product.patch = (PvReal *)(scratch + wgrad_bytes(taps, n1 - n0));
    product.offset = (int32_t *)scratch;
    scratch += pv_align(PV_K_BLOCK * 4);
    product.out_offset = (int32_t *)scratch;
    scratch += pv_align(PV_K_BLOCK * 4);
    product.tap_offset = (int32_t *)scratch;
    scratch += pv_align(PV_MAX_SEGMENTS * taps * 4);
    product.rows = (PvReal *)scratch;
    scratch += PV_WIDTH * PV_K_BLOCK * (int64_t)sizeof(PvReal);
    product.out = (PvReal *)args->w + first;
    product.residual = args->residual ? (const PvReal *)args->residual + first : NULL;
    pv_product_block(&product.base, m0, m1, n0, n1, scratch);
}

static Unfold wgrad_unfold(const ConvArgs *args)
{
    Unfold unfold = {.image_step = args->x_image,
                     .channel_step = args->x_channel,
                     .images = args->images,
                     .norm = (const PvReal *)args->norm.table,
                     .norm_image = args->norm.image,
                     .norm_shift = args->norm.shift,
                     .norm_act = (PvAct)args->norm.act};
    for (int axis = 0; axis < 3; axis++) {
        unfold.in[axis] = args->in[axis];
        unfold.out[axis] = args->out[axis];
        unfold.taps[axis] = args->kernel[axis];
        unfold.step[axis] = args->stride[axis];
        unfold.low[axis] = args->pad[axis];
    }
    unfold_init(&unfold, PV_K_BLOCK);
    return unfold;
}

// Takes `count` segments together where the patches of a block, of `channels` channels, fit into
// `room` bytes. Returns the number of blocks of k.
static int64_t wgrad_runs(const Unfold *unfolds, int64_t count, int64_t channels, int64_t room,
                          WgradRun *runs)
{
    int64_t blocks = 0, k = 0, bytes = 0;
    WgradRun *run = NULL;
    for (int64_t i = 0; i < count; i++) {
        int64_t patch = unfold_patch_bytes(&unfolds[i], channels);
        bool one = unfolds[i].box_count == 1;
        int64_t columns = one ? unfold_box(&unfolds[i], 0).columns : PV_K_BLOCK;
        if (run && one && run->blocks == 1 && k + columns <= PV_K_BLOCK && bytes + patch <= room) {
            run->count++;
        } else {
            run = run ? run + 1 : runs;
            *run = (WgradRun){i, 1, unfolds[i].box_count};
            blocks += run->blocks;
            k = bytes = 0;
        }
        k += columns;
        bytes += patch;
    }
    return blocks;
}

// Decided by one image of each segment, as forward.
static bool wgrad_takes_winograd(const ConvArgs *args, int64_t count)
{
    int64_t positions = 0, tiles = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!is_winograd(&args[i]))
            return false;
        positions += volume(args[i].out);
        tiles += tiles_of(args[i].out);
    }
    return winograd_pays(args->c_out, args->c_in, positions, tiles, 450);
}

// `count` segments, one sum.
static void wgrad_sum(const PvRun *run, const ConvArgs *args, int64_t count)
{
    int64_t rows = args->c_out / args->groups, taps = volume(args->kernel);
    int64_t channels = args->c_in / args->groups, columns = channels * taps;
    Unfold unfolds[PV_MAX_SEGMENTS];
    WgradRun runs[PV_MAX_SEGMENTS];
    for (int64_t i = 0; i < count; i++)
        unfolds[i] = wgrad_unfold(&args[i]);
    if (wgrad_takes_winograd(args, count)) {
        pv_winograd_wgrad(run, args, unfolds, (int)count);
        return;
    }
    int64_t widest = pv_least(columns, PV_PANELS * PV_LANES);
    int64_t blocks = wgrad_runs(unfolds, count, pv_least(channels, (widest - 1) / taps + 2),
                                run->scratch_size - wgrad_bytes(taps, widest), runs);
    WgradProduct product = {.args = args, .unfolds = unfolds, .runs = runs};
    product.base =
        (Product){blocks, wgrad_begin, wgrad_pack_rows, wgrad_pack_columns, wgrad_store, NULL};
    ProductCut cut = pv_product_cut(rows, columns, blocks, args->groups, run->threads);
    int64_t each = cut.row_blocks * cut.column_blocks, tasks = args->groups * each;
#pragma omp parallel for schedule(dynamic) num_threads(run->threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t m0 = task % each % cut.row_blocks * cut.rows;
        int64_t n0 = task % each / cut.row_blocks * cut.columns;
        wgrad_task(&product, task / each, m0, pv_least(m0 + cut.rows, rows), n0,
                   pv_least(n0 + cut.columns, columns), pv_thread_scratch(run));
    }
}

// Pointwise ones: plain products.
static void wgrad_plain(const PvRun *run, const ConvArgs *args, int64_t count)
{
    GemmArgs gemm[PV_MAX_SEGMENTS];
    for (int64_t i = 0; i < count; i++)
        gemm[i] = (GemmArgs){
            .c = args->w,
            .a = args[i].y,
            .b = args[i].x,
            .m = args->c_out,
            .n = args->c_in,
            .k = volume(args[i].out),
            .batch0 = args[i].images,
            .batch1 = 1,
            .a0 = args[i].y_image,
            .a_m = args[i].y_channel,
            .a_k = 1,
            .b0 = args[i].x_image,
            .b_k = 1,
            .b_n = args[i].x_channel,
            .c_m = args->c_in,
            .r_m = args->c_in,
            .residual = args->residual,
            .sum_batch = 1,
            .sum = i > 0 ? -1 : count - 1,
        };
    pv_gemm_one(run, gemm);
}

void pv_conv_wgrad(const PvRun *run, const int64_t *raw)
{
    const ConvArgs *args = (const ConvArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++) {
        int64_t count = args[i].sum + 1;
        bool pointwise = true;
        for (int64_t k = 0; k < count; k++)
            pointwise &= is_pointwise(&args[i + k]) && !args[i + k].norm.table;
        if (count > 0 && pointwise)
            wgrad_plain(run, &args[i], count);
        else if (count > 0)
            wgrad_sum(run, &args[i], count);
    }
}
