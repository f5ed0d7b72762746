// Gradients of convolutions of one to three axes (conv.c) by their inputs and by their kernels.
//
//   dgrad    the positions of x fall into stride^axes phases; in each phase only some taps reach y,
//            and dx[c, p] = sum over (o, tap) of w[o, c, tap] dy[o, p - tap + shift] is a forward
//            convolution of stride 1. Where no two taps meet (kernel <= stride, no padding) it is
//            instead one product with rows (c, tap), whose results are scattered.
//   wgrad    dw[o, (c, tap)] = sum over positions p of dy[o, p] x[c, p stride + tap - pad]
#include "codegen/cpu/conv.h"

// What all forms of dgrad share.
static ConvLaunch dgrad_launch(const ConvArgs *args)
{
    int64_t rows = args->c_in / args->groups, channels = args->c_out / args->groups;
    int64_t taps = volume(args->kernel);
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
    ConvLaunch launch = dgrad_launch(args);
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
static ConvLaunch phase_launch(const ConvArgs *args, const int64_t *phase)
{
    ConvLaunch launch = dgrad_launch(args);
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
                ConvLaunch launch = phase_launch(args, phase);
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
            launch[count++] = phase_launch(&args[i], (const int64_t[3]){0, 0, 0});
        else
            dgrad_one(run, &args[i]);
    }
    pv_conv_launches(run, launch, count);
}

// ---- gradient of the kernel: k runs over boxes of positions, segment by segment of a sum ----

typedef struct {
    ConvProduct conv;      // of the segment at hand; its result is that of the sum
    const ConvArgs *args;  // of the first segment
    const Unfold *unfolds; // of each segment, sizes only
    int64_t group;
} WgradProduct;

static void wgrad_open(WgradProduct *product, int64_t segment)
{
    const ConvArgs *args = product->args + segment;
    ConvProduct *conv = &product->conv;
    Unfold at = product->unfolds[segment];
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    at.patch = conv->unfold.patch;
    at.offset = conv->unfold.offset;
    at.tap_offset = conv->unfold.tap_offset;
    at.source = (const PvReal *)args->x + product->group * channels * args->x_channel;
    if (at.norm)
        at.norm += product->group * channels;
    conv->unfold = at;
    conv->w = (const PvReal *)args->y + product->group * rows * args->y_channel;
    conv->w_row = args->y_channel;
    conv->w_channel = args->y_image;
}

static int64_t wgrad_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    WgradProduct *sum = (WgradProduct *)base;
    ConvProduct *product = &sum->conv;
    Unfold *unfold = &product->unfold;
    const int64_t zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
    int64_t segment = 0;
    for (; block >= sum->unfolds[segment].box_count; segment++)
        block -= sum->unfolds[segment].box_count;
    wgrad_open(sum, segment);
    unfold_open(unfold, block);
    unfold_fill(unfold, n0 / unfold->tap_count, (n1 - 1) / unfold->tap_count + 1);
    out_offsets(product->out_offset, &unfold->at, unfold->out, zero, one, product->w_channel);
    product->k = unfold->at.columns;
    return product->k;
}

// dy of the box's positions, in runs of neighbours
static Ahead wgrad_pack_rows(Product *base, int64_t m0, int64_t rows, PvReal *panel)
{
    ConvProduct *product = (ConvProduct *)base;
    const int32_t *offset = product->out_offset;
    const PvReal *from =
        product->w + product->unfold.at.image * product->w_channel + m0 * product->w_row;
    for (int64_t k = 0; k < product->k;) {
        int64_t end = k + 1;
        while (end < product->k && offset[end] == offset[end - 1] + 1)
            end++;
        pack_transposed(panel + k * PV_ROWS, PV_ROWS, from + offset[k], product->w_row, rows,
                        end - k);
        k = end;
    }
    return (Ahead){0}; // dy is small enough to be near
}

static void wgrad_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    ConvProduct *product = (ConvProduct *)base;
    Unfold *unfold = &product->unfold;
    int grain = offsets_grain(unfold->offset, product->k);
    for (int64_t first = 0; first < PV_LANES; first += PV_WIDTH) {
        int64_t rows = pv_most(0, pv_least(columns - first, PV_WIDTH));
        for (int64_t i = 0; i < rows; i++) {
            int64_t n = n0 + first + i;
            collect_any(product->rows + i * PV_K_BLOCK,
                        unfold_at(unfold, n / unfold->tap_count, n % unfold->tap_count),
                        unfold->offset, product->k, grain);
        }
        pack_square(panel + first, PV_LANES, product->rows, PV_K_BLOCK, rows, product->k);
    }
}

static void wgrad_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                        const PvReal *tile)
{
    ConvProduct *product = (ConvProduct *)base;
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = (m0 + i) * product->out_row + n0;
        pv_product_finish(product->out + at, tile + i * PV_LANES, columns, 0, NULL,
                          product->residual ? product->residual + at : NULL, PV_ACT_NONE);
    }
}

static void wgrad_task(const WgradProduct *shape, int64_t group, int64_t m0, int64_t m1, int64_t n0,
                       int64_t n1, char *scratch)
{
    WgradProduct product = *shape;
    ConvProduct *conv = &product.conv;
    const ConvArgs *args = product.args;
    int64_t first = group * (args->c_out / args->groups) * conv->out_row;
    product.group = group;
    conv->unfold.offset = (int32_t *)scratch;
    scratch += pv_align(PV_K_BLOCK * 4);
    conv->out_offset = (int32_t *)scratch;
    scratch += pv_align(PV_K_BLOCK * 4);
    conv->unfold.tap_offset = (int32_t *)scratch;
    scratch += pv_align(product.unfolds->tap_count * 4);
    conv->rows = (PvReal *)scratch;
    scratch += PV_WIDTH * PV_K_BLOCK * (int64_t)sizeof(PvReal);
    int64_t columns = pv_ceil_div(n1 - n0, PV_LANES) * PV_LANES;
    conv->unfold.patch = (PvReal *)(scratch + pv_product_bytes(columns * (int64_t)sizeof(PvReal),
                                                               sizeof(PvReal), true));
    conv->out = (PvReal *)args->w + first;
    conv->residual = args->residual ? (const PvReal *)args->residual + first : NULL;
    pv_product_block(&conv->base, m0, m1, n0, n1, scratch);
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

// `count` segments, one sum.
static void wgrad_sum(const PvRun *run, const ConvArgs *args, int64_t count)
{
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    int64_t columns = channels * volume(args->kernel), boxes = 0;
    Unfold unfolds[PV_MAX_SEGMENTS];
    for (int64_t i = 0; i < count; i++) {
        unfolds[i] = wgrad_unfold(&args[i]);
        boxes += unfolds[i].box_count;
    }
    WgradProduct product = {.args = args, .unfolds = unfolds};
    product.conv.kind = CONV_WGRAD;
    product.conv.out_row = columns;
    product.conv.base =
        (Product){boxes, wgrad_begin, wgrad_pack_rows, wgrad_pack_columns, wgrad_store, NULL};
    ProductCut cut = pv_product_cut(rows, columns, 2, args->groups, run->threads);
    int64_t blocks = cut.row_blocks * cut.column_blocks, tasks = args->groups * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(run->threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t m0 = task % blocks % cut.row_blocks * cut.rows;
        int64_t n0 = task % blocks / cut.row_blocks * cut.columns;
        wgrad_task(&product, task / blocks, m0, pv_least(m0 + cut.rows, rows), n0,
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
