// Convolutions of one to three axes as products of matrices whose columns are never laid out whole.
//
//   y[o, p] = sum over (c, tap) of w[o, (c, tap)] x[c, p stride + tap - pad]
//
// The gradient by x is of the same form (conv_grad.c): a forward convolution for each phase of the
// stride, or one product with rows (c, tap), whose results are scattered; so the products here
// pack rows and store results in their ways, too.
//
// The columns come from unfold.h. Convolutions that share their kernel (sibling segments, such as
// planes of several sizes) are one product where all their columns fit into one block: rows of w
// are packed once, and each panel of columns belongs to one of them. Sums are the same ones.
#include "codegen/cpu/conv.h"

static int64_t conv_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    ConvProduct *product = (ConvProduct *)base;
    Unfold *unfold = &product->unfold;
    (void)n0, (void)n1;
    product->k0 = block * product->k_step;
    product->k = pv_least(product->k_step, product->k_total - product->k0);
    if (product->k > 0)
        unfold_fill(unfold, product->k0 / unfold->tap_count,
                    (product->k0 + product->k - 1) / unfold->tap_count + 1);
    return product->k;
}

static void conv_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    ConvProduct *product = (ConvProduct *)base;
    Unfold *unfold = &product->unfold;
    if (product->k == 0)
        return;
    const int32_t *offset = unfold->offset + n0;
    int grain = offsets_grain(offset, columns);
    int64_t channel = product->k0 / unfold->tap_count, tap = product->k0 % unfold->tap_count;
    for (int64_t k = 0; k < product->k; k++) {
        collect_any(panel + k * PV_LANES, unfold_at(unfold, channel, tap), offset, columns, grain);
        if (++tap == unfold->tap_count) {
            tap = 0;
            channel++;
        }
    }
}

// Taps of one channel, all of them and in reverse: panel[k][i] = from[i * taps + taps - 1 - k].
// Reads up to a vector from every row.
static void pack_reversed(PvReal *panel, const PvReal *from, int64_t taps)
{
    PvVec x[PV_WIDTH];
#pragma GCC unroll 16
    for (int i = 0; i < PV_WIDTH; i++)
        x[i] = i < PV_ROWS ? vec_load(from + i * taps) : (PvVec){0};
    vec_transpose(x);
    for (int64_t k = 0; k < taps; k++)
        vec_store(panel + k * PV_ROWS, x[taps - 1 - k]);
}

// Rows of a phase of dgrad: (channel, tap) by way of the table.
static void phase_pack_rows(const ConvProduct *product, int64_t m0, int64_t rows, PvReal *panel)
{
    int64_t taps = product->unfold.tap_count, step = product->w_row;
    // whole vectors may be read where another channel follows
    bool whole = (int)PV_WIDTH >= (int)PV_ROWS && rows == PV_ROWS && taps == step &&
                 taps <= PV_WIDTH && product->w_channel >= PV_WIDTH;
    for (int64_t k = 0; k < product->k;) {
        int64_t channel = (product->k0 + k) / taps, tap = (product->k0 + k) % taps;
        int64_t count = pv_least(taps - tap, product->k - k);
        const PvReal *from = product->w + channel * product->w_channel + m0 * step;
        PvReal *to = panel + k * PV_ROWS;
        k += count;
        if (whole && count == taps && channel + 1 < product->k_total / taps) {
            pack_reversed(to, from, taps);
            continue;
        }
        for (int64_t i = 0; i < PV_ROWS; i++) {
            for (int64_t j = 0; j < count; j++)
                to[j * PV_ROWS + i] = i < rows ? from[i * step + product->table[tap + j]] : 0;
        }
    }
}

static Ahead conv_pack_rows(Product *base, int64_t m0, int64_t rows, PvReal *panel)
{
    ConvProduct *product = (ConvProduct *)base;
    if (product->kind == CONV_PHASE) {
        phase_pack_rows(product, m0, rows, panel);
        int64_t taps = pv_most(1, product->unfold.tap_count), channel = product->k0 / taps;
        return (Ahead){product->w + channel * product->w_channel + (m0 + PV_ROWS) * product->w_row,
                       product->w_channel, product->k / taps + 1};
    }
    const PvReal *from = product->w + m0 * product->w_row + product->k0 * product->w_channel;
    pack_panel(panel, PV_ROWS, from, product->w_row, product->w_channel, rows, product->k);
    from += PV_ROWS * product->w_row;
    return product->w_channel == 1 ? (Ahead){from, product->w_row, PV_ROWS}
                                   : (Ahead){from, product->w_channel, product->k};
}

static const PvReal *conv_rows_at(Product *base, int64_t m0, int64_t *step)
{
    const ConvProduct *product = (const ConvProduct *)base;
    *step = product->w_row;
    return product->kind == CONV_FORWARD && product->w_channel == 1
               ? product->w + m0 * product->w_row + product->k0
               : NULL;
}

static void conv_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                       const PvReal *tile)
{
    ConvProduct *product = (ConvProduct *)base;
    const int32_t *offset = product->out_offset + n0;
    const int32_t *residual_offset = product->residual_offset + n0;
    bool dense =
        offset[columns - 1] - offset[0] == columns - 1 &&
        (!product->residual || residual_offset[columns - 1] - residual_offset[0] == columns - 1);
    for (int64_t i = 0; i < rows; i++) {
        int64_t row = m0 + i, tap = 0;
        if (product->kind == CONV_SCATTER) {
            row = row / product->scatter_taps;
            tap = product->table[(m0 + i) % product->scatter_taps];
        }
        PvReal bias = product->bias ? product->bias[row] : 0;
        PvReal *out = product->out + row * product->out_row + tap;
        const PvReal *residual =
            product->residual ? product->residual + row * product->residual_row + tap : NULL;
        if (dense) {
            pv_product_finish(out + offset[0], tile + i * PV_LANES, columns, bias, NULL,
                              residual ? residual + residual_offset[0] : NULL, product->act);
            continue;
        }
        PvReal value[PV_LANES], added[PV_LANES];
        for (int64_t j = 0; residual && j < columns; j++)
            added[j] = residual[residual_offset[j]];
        pv_product_finish(value, tile + i * PV_LANES, columns, bias, NULL, residual ? added : NULL,
                          product->act);
        for (int64_t j = 0; j < columns; j++)
            out[offset[j]] = value[j];
    }
}

static Product conv_product(int64_t k_blocks)
{
    return (Product){k_blocks,          conv_begin, conv_pack_rows,
                     conv_pack_columns, conv_store, conv_rows_at};
}

static void table_fill(const ConvLaunch *launch, int32_t *table)
{
    const int64_t *size = launch->table_size, *first = launch->table_first;
    const int64_t *step = launch->table_step, *extent = launch->table_extent;
    for (int64_t d = 0; d < size[0]; d++) {
        for (int64_t h = 0; h < size[1]; h++) {
            int64_t at =
                ((first[0] + d * step[0]) * extent[1] + first[1] + h * step[1]) * extent[2] +
                first[2];
            for (int64_t w = 0; w < size[2]; w++)
                *table++ = (int32_t)(at + w * step[2]);
        }
    }
}

// Numbers that go into a product's tables, but for its patch and its blocks.
static int64_t table_bytes(const ConvLaunch *launch, int64_t room)
{
    int64_t table = launch->table_size[0] * launch->table_size[1] * launch->table_size[2];
    return 3 * pv_align(room * 4) + pv_align(launch->product.unfold.tap_count * 4) +
           pv_align(table * 4);
}

static int64_t launch_channels(const ConvLaunch *launch)
{
    return launch->product.k_total / pv_most(1, launch->product.unfold.tap_count);
}

// The product of one box of a group, its tables in scratch. `again`: the scratch is as the product
// of the same box left it, so a whole patch is there.
static void conv_open(const ConvLaunch *launch, ConvProduct *product, int64_t group, int64_t box,
                      int64_t room, char *scratch, bool again)
{
    *product = launch->product;
    Unfold *unfold = &product->unfold;
    unfold->filled = again ? launch_channels(launch) : 0;
    unfold->offset = (int32_t *)scratch;
    scratch += pv_align(room * 4);
    product->out_offset = (int32_t *)scratch;
    scratch += pv_align(room * 4);
    product->residual_offset = (int32_t *)scratch;
    scratch += pv_align(room * 4);
    unfold->tap_offset = (int32_t *)scratch;
    scratch += pv_align(unfold->tap_count * 4);
    product->table = (int32_t *)scratch;
    table_fill(launch, product->table);
    unfold->source = launch->source + group * launch->source_group;
    if (unfold->norm)
        unfold->norm += group * launch->norm_group;
    unfold_open(unfold, box);
    product->w = launch->w + group * launch->w_group;
    product->bias = launch->bias ? launch->bias + group * launch->bias_group : NULL;
    int64_t out = group * launch->out_group + unfold->at.image * launch->out_image;
    product->out = launch->out + out;
    out_offsets(product->out_offset, &unfold->at, launch->extent, launch->first, launch->step,
                launch->out_image);
    if (launch->residual) {
        product->residual = launch->residual + group * launch->residual_group +
                            unfold->at.image * launch->residual_image;
        const int64_t *shift = launch->residual_shift;
        if (shift[0] | shift[1] | shift[2])
            shifted_offsets(product->residual_offset, &unfold->at, launch->extent, shift,
                            launch->residual_image);
        else
            out_offsets(product->residual_offset, &unfold->at, launch->extent, launch->first,
                        launch->step, launch->residual_image);
    }
}

// Bytes of scratch before the patch.
static int64_t bytes_before_patch(const ConvLaunch *launch, int64_t room)
{
    int64_t real = sizeof(PvReal);
    return table_bytes(launch, room) +
           pv_product_bytes(room * real, real,
                            launch->product.base.k_blocks > 1 ? PV_SUM_ROWS : 0);
}

// One task: rows m0 .. m1 - 1, box number `box`, of a group.
static void conv_task(const ConvLaunch *launch, int64_t group, int64_t box, int64_t m0, int64_t m1,
                      int64_t room, char *scratch, bool again)
{
    ConvProduct product;
    conv_open(launch, &product, group, box, room, scratch, again);
    product.unfold.patch = (PvReal *)(scratch + bytes_before_patch(launch, room));
    pv_product_block(&product.base, m0, m1, 0, product.unfold.at.columns,
                     scratch + table_bytes(launch, room));
}

void pv_conv_launch(const PvRun *run, ConvLaunch *launch)
{
    ConvProduct *product = &launch->product;
    Unfold *unfold = &product->unfold;
    int64_t positions = unfold->out[0] * unfold->out[1] * unfold->out[2] * unfold->images;
    if (positions == 0 || launch->rows == 0)
        return;
    int64_t k_blocks = pv_most(1, pv_ceil_div(product->k_total, PV_K_BLOCK));
    ProductCut cut =
        pv_product_cut(launch->rows, positions, k_blocks, launch->groups, run->threads);
    unfold_init(unfold, cut.columns);
    product->base = conv_product(k_blocks);
    product->k_step = pv_ceil_div(product->k_total, k_blocks);
    unfold->whole = cut.row_blocks > 1 &&
                    bytes_before_patch(launch, cut.columns) +
                            unfold_patch_bytes(unfold, launch_channels(launch)) <=
                        run->scratch_size;
    int64_t tasks = launch->groups * unfold->box_count * cut.row_blocks;
#pragma omp parallel num_threads(run->threads) if (tasks > 1)
    {
        int64_t before = -1;   // what this thread's scratch is about: group and box
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t m0 = task % cut.row_blocks * cut.rows, now = task / cut.row_blocks;
            conv_task(launch, now / unfold->box_count, now % unfold->box_count, m0,
                      pv_least(m0 + cut.rows, launch->rows), cut.columns, pv_thread_scratch(run),
                      now == before);
            before = now;
        }
    }
}

// ---- several convolutions with one kernel ----

typedef struct {
    Product base;
    ConvProduct part[PV_MAX_SEGMENTS];
    int64_t start[PV_MAX_SEGMENTS + 1]; // first column of each, and the end
    int count;
} JointProduct;

// Columns `first` and on of a part.
typedef struct {
    ConvProduct *part;
    int64_t first, count;
} Piece;

// What starts at column n and belongs to one part, before column `end`.
static Piece joint_piece(JointProduct *product, int64_t n, int64_t end)
{
    int part = 0;
    while (n >= product->start[part + 1])
        part++;
    return (Piece){&product->part[part], n - product->start[part],
                   pv_least(end, product->start[part + 1]) - n};
}

static int64_t joint_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    JointProduct *product = (JointProduct *)base;
    int64_t k = 0;
    for (int i = 0; i < product->count; i++)
        k = conv_begin(&product->part[i].base, block, n0, n1);
    return k;
}

static Ahead joint_pack_rows(Product *base, int64_t m0, int64_t rows, PvReal *panel)
{
    return conv_pack_rows(&((JointProduct *)base)->part[0].base, m0, rows, panel);
}

static const PvReal *joint_rows_at(Product *base, int64_t m0, int64_t *step)
{
    return conv_rows_at(&((JointProduct *)base)->part[0].base, m0, step);
}

static void joint_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    for (int64_t n = n0; n < n0 + columns;) {
        Piece piece = joint_piece((JointProduct *)base, n, n0 + columns);
        conv_pack_columns(&piece.part->base, piece.first, piece.count, panel + n - n0);
        n += piece.count;
    }
}

static void joint_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                        const PvReal *tile)
{
    for (int64_t n = n0; n < n0 + columns;) {
        Piece piece = joint_piece((JointProduct *)base, n, n0 + columns);
        conv_store(&piece.part->base, m0, rows, piece.first, piece.count, tile + n - n0);
        n += piece.count;
    }
}

static int64_t launch_positions(const ConvLaunch *launch)
{
    const Unfold *unfold = &launch->product.unfold;
    return unfold->out[0] * unfold->out[1] * unfold->out[2] * unfold->images;
}

// Bytes of the patch of one box with all positions, for a block of k or all of it.
static int64_t patch_bytes(const ConvLaunch *launch, bool whole)
{
    const ConvProduct *product = &launch->product;
    int64_t channels = (product->k_step - 1) / product->unfold.tap_count + 2;
    return unfold_patch_bytes(&product->unfold, whole ? launch_channels(launch) : channels);
}

static bool same_kernel(const ConvLaunch *x, const ConvLaunch *y)
{
    const Unfold *left = &x->product.unfold, *right = &y->product.unfold;
    return x->w == y->w && x->rows == y->rows && x->groups == 1 && y->groups == 1 &&
           x->winograd == y->winograd && x->split == y->split &&
           x->product.kind == y->product.kind &&
           x->product.k_total == y->product.k_total && x->product.w_row == y->product.w_row &&
           x->product.w_channel == y->product.w_channel &&
           memcmp(left->taps, right->taps, sizeof left->taps) == 0 &&
           memcmp(x->table_first, y->table_first, sizeof x->table_first) == 0;
}

// All in one product, if they share the kernel, their columns fit into one block, and what each
// needs fits into the scratch. Their columns follow one another, in panels of several if they are
// few. false: they do not; nothing was computed.
static bool conv_launch_joint(const PvRun *run, ConvLaunch *launches, int count)
{
    JointProduct joint = {.count = count};
    int64_t k_total = launches->product.k_total, bytes = 0, whole_bytes = 0;
    int64_t k_blocks = pv_most(1, pv_ceil_div(k_total, PV_K_BLOCK)), real = sizeof(PvReal);
    if (count < 2 || count > PV_MAX_SEGMENTS || launches->rows == 0)
        return false;
    for (int i = 0; i < count; i++) {
        ConvLaunch *launch = &launches[i];
        int64_t positions = launch_positions(launch), from = joint.start[i];
        if (positions == 0 || !same_kernel(launches, launch) ||
            from + positions > PV_PANELS * PV_LANES)
            return false;
        joint.start[i + 1] = from + positions;
        launch->product.base = conv_product(k_blocks);
        launch->product.k_step = pv_ceil_div(k_total, k_blocks);
        unfold_init(&launch->product.unfold, positions);
        bytes += table_bytes(launch, positions) + patch_bytes(launch, false);
        whole_bytes += table_bytes(launch, positions) + patch_bytes(launch, true);
    }
    int64_t columns = joint.start[count];
    int64_t room = pv_ceil_div(columns, PV_LANES) * PV_LANES * real;
    int64_t blocks = pv_product_bytes(room, real, k_blocks > 1 ? PV_SUM_ROWS : 0);
    if (bytes + blocks > run->scratch_size)
        return false;
    bool whole = whole_bytes + blocks <= run->scratch_size;
    for (int i = 0; i < count; i++)
        launches[i].product.unfold.whole = whole;
    // every task packs the columns anew: fewer tasks than elsewhere
    ProductCut cut = pv_product_cut(launches->rows, PV_LANES, k_blocks, 2, run->threads);
    joint.base = (Product){k_blocks,           joint_begin, joint_pack_rows,
                           joint_pack_columns, joint_store, joint_rows_at};
#pragma omp parallel num_threads(run->threads) if (cut.row_blocks > 1)
    {
        bool again = false;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < cut.row_blocks; task++) {
            JointProduct product = joint;
            char *scratch = pv_thread_scratch(run);
            for (int i = 0; i < count; i++) {
                int64_t positions = launch_positions(&launches[i]);
                conv_open(&launches[i], &product.part[i], 0, 0, positions, scratch, again);
                scratch += table_bytes(&launches[i], positions);
                product.part[i].unfold.patch = (PvReal *)scratch;
                scratch += patch_bytes(&launches[i], whole);
            }
            again = true;
            pv_product_block(&product.base, task * cut.rows,
                             pv_least((task + 1) * cut.rows, launches->rows), 0, columns, scratch);
        }
    }
    return true;
}

void pv_conv_launches(const PvRun *run, const ConvLaunch *launches, int count)
{
    bool done[PV_MAX_SEGMENTS] = {false};
    for (int i = 0; i < count; i++) {
        ConvLaunch same[PV_MAX_SEGMENTS];
        int members = 0;
        for (int k = i; k < count && !done[i]; k++)
            if (!done[k] && (k == i || same_kernel(&launches[i], &launches[k])))
                same[members++] = launches[k];
        bool joint = members > 0 && same->winograd;
        if (joint)
            pv_winograd_launches(run, same, members);
        else
            joint = conv_launch_joint(run, same, members);
        for (int k = i; k < count && joint; k++)
            done[k] |= k == i || same_kernel(&launches[i], &launches[k]);
        if (!done[i])
            pv_conv_launch(run, &same[0]);
    }
}

// A pointwise convolution.
static void conv_plain(const PvRun *run, const ConvArgs *args)
{
    GemmArgs gemm = {
        .c = args->y,
        .a = args->w,
        .b = args->x,
        .m = args->c_out,
        .n = volume(args->out),
        .k = args->c_in,
        .batch0 = args->images,
        .batch1 = 1,
        .a_m = args->c_in,
        .a_k = 1,
        .b0 = args->x_image,
        .b_k = args->x_channel,
        .b_n = 1,
        .c0 = args->y_image,
        .c_m = args->y_channel,
        .r0 = args->residual_image,
        .r_m = args->residual_channel,
        .bias = args->bias,
        .bias_axis = 1,
        .residual = args->residual,
        .act = args->act,
        .norm = args->norm,
    };
    pv_gemm_one(run, &gemm);
}

static ConvLaunch forward_launch(const PvRun *run, const ConvArgs *args)
{
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    int64_t taps = volume(args->kernel);
    bool winograd = takes_winograd(args, rows, channels, args->out);
    ConvLaunch launch = {
        .product = {.kind = CONV_FORWARD,
                    .w_row = channels * taps,
                    .w_channel = 1,
                    .k_total = channels * taps,
                    .out_row = args->y_channel,
                    .residual_row = args->residual_channel,
                    .act = (PvAct)args->act,
                    .unfold = {.image_step = args->x_image,
                               .channel_step = args->x_channel,
                               .images = args->images,
                               .norm = (const PvReal *)args->norm.table,
                               .norm_image = args->norm.image,
                               .norm_shift = args->norm.shift,
                               .norm_act = (PvAct)args->norm.act}},
        .groups = args->groups,
        .rows = rows,
        .winograd = winograd,
        .split = winograd && splits_winograd(run, rows, channels, tiles_of(args->out)),
        .source = (const PvReal *)args->x,
        .w = (const PvReal *)args->w,
        .bias = (const PvReal *)args->bias,
        .residual = (const PvReal *)args->residual,
        .out = (PvReal *)args->y,
        .source_group = channels * args->x_channel,
        .norm_group = channels,
        .w_group = rows * channels * taps,
        .bias_group = rows,
        .out_group = rows * args->y_channel,
        .out_image = args->y_image,
        .residual_group = rows * args->residual_channel,
        .residual_image = args->residual_image,
    };
    for (int axis = 0; axis < 3; axis++) {
        Unfold *unfold = &launch.product.unfold;
        unfold->in[axis] = args->in[axis];
        unfold->out[axis] = launch.extent[axis] = args->out[axis];
        unfold->taps[axis] = args->kernel[axis];
        unfold->step[axis] = args->stride[axis];
        unfold->low[axis] = args->pad[axis];
        unfold->shift[axis] = args->x_shift[axis];
        launch.residual_shift[axis] = args->residual_shift[axis];
        launch.step[axis] = 1;
    }
    return launch;
}

void pv_conv(const PvRun *run, const int64_t *raw)
{
    const ConvArgs *args = (const ConvArgs *)raw;
    ConvLaunch launch[PV_MAX_SEGMENTS];
    int count = 0;
    for (uint32_t i = 0; i < run->segments; i++) {
        if (is_pointwise(&args[i]))
            conv_plain(run, &args[i]);
        else
            launch[count++] = forward_launch(run, &args[i]);
    }
    pv_conv_launches(run, launch, count);
    for (uint32_t i = 0; i < run->segments; i++) {
        NormSource y = {(const PvReal *)args[i].y, args[i].images,  args[i].c_out,
                        volume(args[i].out),       args[i].y_image, args[i].y_channel};
        pv_norm_stats(run, &args[i].stats, &y);
    }
}
