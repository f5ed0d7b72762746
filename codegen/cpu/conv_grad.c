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

// ---- gradient of the kernel: k runs over boxes of positions ----

static int64_t wgrad_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    ConvProduct *product = (ConvProduct *)base;
    Unfold *unfold = &product->unfold;
    const int64_t zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
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

static void wgrad_task(const ConvProduct *shape, const ConvArgs *args, int64_t group, int64_t m0,
                       int64_t m1, int64_t n0, int64_t n1, char *scratch)
{
    ConvProduct product = *shape;
    Unfold *unfold = &product.unfold;
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    unfold->offset = (int32_t *)scratch;
    scratch += pv_align(PV_K_BLOCK * 4);
    product.out_offset = (int32_t *)scratch;
    scratch += pv_align(PV_K_BLOCK * 4);
    unfold->tap_offset = (int32_t *)scratch;
    scratch += pv_align(unfold->tap_count * 4);
    product.rows = (PvReal *)scratch;
    scratch += PV_WIDTH * PV_K_BLOCK * (int64_t)sizeof(PvReal);
    int64_t columns = pv_ceil_div(n1 - n0, PV_LANES) * PV_LANES;
    unfold->patch = (PvReal *)(scratch + pv_product_bytes(columns * (int64_t)sizeof(PvReal),
                                                          sizeof(PvReal), true));
    unfold->source = (const PvReal *)args->x + group * channels * args->x_channel;
    if (unfold->norm)
        unfold->norm += group * channels;
    product.w = (const PvReal *)args->y + group * rows * args->y_channel;
    product.out = (PvReal *)args->w + group * rows * product.out_row;
    product.residual =
        args->residual ? (const PvReal *)args->residual + group * rows * product.out_row : NULL;
    pv_product_block(&product.base, m0, m1, n0, n1, scratch);
}

static void wgrad_one(const PvRun *run, const ConvArgs *args)
{
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    int64_t outside = volume(args->out), taps = volume(args->kernel);
    if (is_pointwise(args) && !args->norm.table) {
        GemmArgs gemm = {
            .c = args->w,
            .a = args->y,
            .b = args->x,
            .m = rows,
            .n = channels,
            .k = outside,
            .batch0 = args->images,
            .batch1 = 1,
            .a0 = args->y_image,
            .a_m = args->y_channel,
            .a_k = 1,
            .b0 = args->x_image,
            .b_k = 1,
            .b_n = args->x_channel,
            .c_m = channels,
            .r_m = channels,
            .residual = args->residual,
            .sum_batch = 1,
        };
        pv_gemm_one(run, &gemm);
        return;
    }
    ConvProduct product = {
        .kind = CONV_WGRAD,
        .w_row = args->y_channel,
        .w_channel = args->y_image,
        .out_row = channels * taps,
        .unfold = {.image_step = args->x_image,
                   .channel_step = args->x_channel,
                   .images = args->images,
                   .norm = (const PvReal *)args->norm.table,
                   .norm_image = args->norm.image,
                   .norm_shift = args->norm.shift,
                   .norm_act = (PvAct)args->norm.act},
    };
    for (int axis = 0; axis < 3; axis++) {
        product.unfold.in[axis] = args->in[axis];
        product.unfold.out[axis] = args->out[axis];
        product.unfold.taps[axis] = args->kernel[axis];
        product.unfold.step[axis] = args->stride[axis];
        product.unfold.low[axis] = args->pad[axis];
    }
    unfold_init(&product.unfold, PV_K_BLOCK);
    product.base = (Product){product.unfold.box_count, wgrad_begin, wgrad_pack_rows,
                             wgrad_pack_columns,       wgrad_store, NULL};
    ProductCut cut = pv_product_cut(rows, channels * taps, 2, args->groups, run->threads);
    int64_t blocks = cut.row_blocks * cut.column_blocks, tasks = args->groups * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(run->threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t m0 = task % blocks % cut.row_blocks * cut.rows;
        int64_t n0 = task % blocks / cut.row_blocks * cut.columns;
        wgrad_task(&product, args, task / blocks, m0, pv_least(m0 + cut.rows, rows), n0,
                   pv_least(n0 + cut.columns, channels * taps), pv_thread_scratch(run));
    }
}

void pv_conv_wgrad(const PvRun *run, const int64_t *raw)
{
    const ConvArgs *args = (const ConvArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        wgrad_one(run, &args[i]);
}
