// link: pvdm_kernels32
// Products of matrices and convolutions of the CPU kernel library against plain loops in double.
#include <fenv.h>

#include "tests/unit/kernel_check.h"

static double activate(double x, int64_t act)
{
    switch ((PvAct)act) {
    case PV_ACT_NONE:
        return x;
    case PV_ACT_SILU:
        return x / (1 + exp(-x));
    case PV_ACT_GELU:
        return x * erfc(-x / sqrt(2)) / 2;
    case PV_ACT_RELU:
        return x > 0 ? x : 0;
    }
    return x;
}

// ---- pv_gemm ----

typedef struct {
    int64_t m, n, k, batch0, batch1;
    bool a_turned, b_turned, sum_batch;
    int bias; // 0 none, 1 over n, 2 over m
    bool residual, in_place;
    PvAct act;
} GemmCase;

static void gemm_expect(const GemmArgs *args, const PvReal *residual, Output *out)
{
    const PvReal *a = (const PvReal *)args->a, *b = (const PvReal *)args->b;
    const PvReal *bias = (const PvReal *)args->bias;
    int64_t batches = args->batch0 * args->batch1;
    for (int64_t batch = 0; batch < (args->sum_batch ? 1 : batches); batch++) {
        for (int64_t i = 0; i < args->m; i++) {
            for (int64_t j = 0; j < args->n; j++) {
                double sum = 0;
                for (int64_t s = batch; s < (args->sum_batch ? batches : batch + 1); s++) {
                    int64_t i0 = s / args->batch1, i1 = s % args->batch1;
                    for (int64_t k = 0; k < args->k; k++)
                        sum +=
                            (double)
                                a[i0 * args->a0 + i1 * args->a1 + i * args->a_m + k * args->a_k] *
                            (double)
                                b[i0 * args->b0 + i1 * args->b1 + k * args->b_k + j * args->b_n];
                }
                if (bias)
                    sum += (double)bias[args->bias_axis ? i : j];
                int64_t at = batch / args->batch1 * args->c0 + batch % args->batch1 * args->c1 +
                             i * args->c_m + j;
                int64_t added = batch / args->batch1 * args->r0 + batch % args->batch1 * args->r1 +
                                i * args->r_m + j;
                sum = activate(sum, args->act);
                out->expected[at] = residual ? sum + (double)residual[added] : sum;
            }
        }
    }
}

static void check_gemm(GemmCase test)
{
    GemmArgs args = {.m = test.m,
                     .n = test.n,
                     .k = test.k,
                     .batch0 = test.batch0,
                     .batch1 = test.batch1,
                     .act = test.act,
                     .sum_batch = test.sum_batch};
    // rows are apart by more than their length, batch elements by more than a matrix
    args.a_m = test.a_turned ? 1 : test.k + 3;
    args.a_k = test.a_turned ? test.m + 2 : 1;
    args.b_n = test.b_turned ? test.k + 1 : 1;
    args.b_k = test.b_turned ? 1 : test.n + 5;
    args.a1 = (test.m + 3) * (test.k + 4);
    args.a0 = args.a1 * test.batch1 + 7;
    args.b1 = (test.n + 5) * (test.k + 4);
    args.b0 = args.b1 * test.batch1;
    args.c_m = test.n + 4;
    args.c1 = args.c_m * test.m;
    args.c0 = args.c1 * test.batch1;
    if (test.sum_batch)
        args.c0 = args.c1 = 0;
    Output out = output(args.c_m * test.m * test.batch0 * test.batch1);
    args.a = (int64_t)random_array(args.a0 * test.batch0);
    args.b = (int64_t)random_array(args.b0 * test.batch0);
    args.c = (int64_t)out.data;
    args.bias = test.bias ? (int64_t)random_array(test.bias == 1 ? test.n : test.m) : 0;
    args.bias_axis = test.bias == 2;
    PvReal *residual = test.residual ? random_array(out.count + 3 * test.m * test.batch0 *
                                                    test.batch1) : NULL;
    args.residual = (int64_t)residual;
    args.r_m = args.c_m + (test.in_place ? 0 : 3);
    args.r1 = test.sum_batch ? 0 : args.r_m * test.m;
    args.r0 = args.r1 * test.batch1;
    gemm_expect(&args, residual, &out);
    if (test.in_place) {
        for (int64_t i = 0; i < out.count; i++) {
            out.data[i] = residual[i];
            if (out.expected[i] == MARK)
                out.expected[i] = (double)residual[i];
        }
        args.residual = args.c;
    }
    char name[100];
    snprintf(name, sizeof name, "gemm %lld x %lld x %lld, %lld x %lld batches, turned %d %d",
             (long long)test.m, (long long)test.n, (long long)test.k, (long long)test.batch0,
             (long long)test.batch1, test.a_turned, test.b_turned);
    check(name, pv_gemm, &args, pv_gemm_scratch(&args, sizeof(PvReal)), &out, 1, 300);
    release();
}

// Values times activated gates, which lie `gate` columns behind them, or before.
static void check_gate(int64_t m, int64_t n, int64_t k, bool turned, bool first, PvAct act)
{
    int64_t apart = first ? -n : n;
    GemmArgs args = {.m = m, .n = 2 * n, .k = k, .batch0 = 2, .batch1 = 1};
    args.a_m = k + 1;
    args.a_k = 1;
    args.a0 = m * args.a_m;
    args.b_n = turned ? k : 1;
    args.b_k = turned ? 1 : 2 * n;
    args.c_m = 2 * n;
    args.c0 = m * args.c_m;
    Output wide = output(2 * args.c0), out = output(2 * m * (n + 3));
    args.a = (int64_t)random_array(2 * args.a0);
    args.b = (int64_t)random_array(2 * n * k);
    args.bias = (int64_t)random_array(2 * n);
    gemm_expect(&args, NULL, &wide);
    for (int64_t i = 0; i < 2 * m; i++)
        for (int64_t j = 0; j < n; j++) {
            const double *value = &wide.expected[i * 2 * n + j + (first ? n : 0)];
            out.expected[i * (n + 3) + j] = value[0] * activate(value[apart], act);
        }
    args.c = (int64_t)out.data;
    args.c_m = n + 3;
    args.c0 = m * args.c_m;
    args.n = n;
    args.gate = apart;
    args.act = act;
    if (first) {
        args.b = (int64_t)((PvReal *)args.b + n * args.b_n);
        args.bias = (int64_t)((PvReal *)args.bias + n);
    }
    char name[100];            // an error of one factor counts as often as the other is large
    snprintf(name, sizeof name, "gated gemm %lld x %lld x %lld, turned %d, gate first %d",
             (long long)m, (long long)n, (long long)k, turned, first);
    check(name, pv_gemm, &args, pv_gemm_scratch(&args, sizeof(PvReal)), &out, 1, 4000);
    release();
}

// A number below the normal ones takes many times as long, so none may arise in lanes that are not
// wanted either: GELU is made of pieces, each of which is computed for every lane.
static void test_gelu_stays_normal(void **state)
{
    (void)state;
    enum { ROWS = 96, COLUMNS = 128, DEPTH = 16 };
    for (int gated = 0; gated < 2; gated++) {
        GemmArgs args = {.m = ROWS,
                         .n = COLUMNS,
                         .k = DEPTH,
                         .batch0 = 1,
                         .batch1 = 1,
                         .a_m = DEPTH,
                         .a_k = 1,
                         .b_n = DEPTH,
                         .b_k = 1,
                         .c_m = COLUMNS,
                         .act = PV_ACT_GELU,
                         .gate = gated ? COLUMNS : 0};
        args.a = (int64_t)random_array(ROWS * DEPTH);
        args.b = (int64_t)random_array(2 * COLUMNS * DEPTH);
        args.c = (int64_t)random_array(ROWS * COLUMNS);
        feclearexcept(FE_ALL_EXCEPT);
        launch_segments(pv_gemm, &args, 1, pv_gemm_scratch(&args, sizeof(PvReal)), 1);
        assert_int_equal(fetestexcept(FE_UNDERFLOW), 0);
        release();
    }
}

static void test_gemm_gates(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 7, 16, 17, 40, 300};
    for (int i = 0; i < 6; i++)
        for (int way = 0; way < 4; way++)
            check_gate(sizes[(i + way) % 6], sizes[i], i == 3 ? 900 : 20 + i, way & 1, way & 2,
                       (PvAct)((i + way) % 4));
}

static void test_gemm_sizes(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 2, 5, 11, 12, 13, 16, 17, 31, 32, 33, 48, 65};
    const int count = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < count; j++) {
            for (int turned = 0; turned < 4; turned++)
                check_gemm((GemmCase){.m = sizes[i],
                                      .n = sizes[j],
                                      .k = sizes[(i + j) % count],
                                      .batch0 = 1,
                                      .batch1 = 1,
                                      .a_turned = turned & 1,
                                      .b_turned = turned & 2});
        }
    }
}

static void test_gemm_blocks(void **state)
{
    (void)state;
    check_gemm((GemmCase){
        .m = 260, .n = 530, .k = 400, .batch0 = 1, .batch1 = 1, .bias = 1, .act = PV_ACT_GELU});
    check_gemm((GemmCase){.m = 500,
                          .n = 70,
                          .k = 1000,
                          .batch0 = 1,
                          .batch1 = 1,
                          .bias = 2,
                          .a_turned = true,
                          .act = PV_ACT_SILU,
                          .residual = true});
    check_gemm((GemmCase){.m = 30,
                          .n = 600,
                          .k = 800,
                          .batch0 = 1,
                          .batch1 = 1,
                          .bias = 1,
                          .b_turned = true,
                          .act = PV_ACT_SILU,
                          .residual = true,
                          .in_place = true});
    check_gemm((GemmCase){.m = 1, .n = 700, .k = 900, .batch0 = 1, .batch1 = 1, .b_turned = true});
    check_gemm((GemmCase){.m = 3, .n = 700, .k = 900, .batch0 = 1, .batch1 = 1});
    check_gemm((GemmCase){.m = 700, .n = 1, .k = 900, .batch0 = 1, .batch1 = 1});
}

// More rows than a block has whose sums are kept between blocks of k.
static void test_gemm_rows(void **state)
{
    (void)state;
    check_gemm((GemmCase){.m = 1000, .n = 600, .k = 400, .batch0 = 1, .batch1 = 1});
}

static void test_gemm_batches(void **state)
{
    (void)state;
    for (int turned = 0; turned < 4; turned++) {
        GemmCase test = {.m = 17,
                         .n = 33,
                         .k = 20,
                         .batch0 = 3,
                         .batch1 = 5,
                         .bias = 1,
                         .a_turned = turned & 1,
                         .b_turned = turned & 2,
                         .residual = true,
                         .act = PV_ACT_RELU};
        check_gemm(test);
        test.residual = false;
        test.bias = 0;
        test.act = PV_ACT_NONE;
        test.sum_batch = true;
        check_gemm(test);
        test.k = 131;
        check_gemm(test);
    }
}

// ---- convolutions ----

typedef struct {
    int64_t images, c_in, c_out, groups;
    int64_t in[3], kernel[3], stride[3], pad[3];
    int64_t apart;             // elements between the channels of x, y and the residual
} ConvCase;

static bool winograd; // ConvArgs.winograd of all cases

static ConvArgs conv_args(const ConvCase *test)
{
    ConvArgs args = {
        .images = test->images, .c_in = test->c_in, .c_out = test->c_out, .groups = test->groups};
    args.x_channel = args.y_channel = 1;
    args.x_position = args.y_position = 1;
    for (int i = 0; i < 3; i++) {
        args.in[i] = test->in[i];
        args.kernel[i] = test->kernel[i];
        args.stride[i] = test->stride[i];
        args.pad[i] = test->pad[i];
        args.out[i] = (args.in[i] + 2 * args.pad[i] - args.kernel[i]) / args.stride[i] + 1;
        args.x_channel *= args.in[i];
        args.y_channel *= args.out[i];
    }
    args.x_channel += test->apart;
    args.y_channel += 2 * test->apart;
    args.winograd = winograd;
    args.x_image = test->c_in * args.x_channel + 5;
    args.y_image = test->c_out * args.y_channel + 3;
    return args;
}

// Calls `visit` for every triple of offsets (y, x, w) that belong together.
static void conv_each(const ConvArgs *args, void (*visit)(void *, int64_t, int64_t, int64_t),
                      void *context)
{
    int64_t rows = args->c_out / args->groups, channels = args->c_in / args->groups;
    int64_t y[3], t[3], x[3];
    for (int64_t image = 0; image < args->images; image++) {
        for (int64_t o = 0; o < args->c_out; o++) {
            for (int64_t c = 0; c < channels; c++) {
                int64_t y_plane = o, w_plane = o * channels + c, x_plane = o / rows * channels + c;
                for (y[0] = 0; y[0] < args->out[0]; y[0]++)
                    for (y[1] = 0; y[1] < args->out[1]; y[1]++)
                        for (y[2] = 0; y[2] < args->out[2]; y[2]++)
                            for (t[0] = 0; t[0] < args->kernel[0]; t[0]++)
                                for (t[1] = 0; t[1] < args->kernel[1]; t[1]++)
                                    for (t[2] = 0; t[2] < args->kernel[2]; t[2]++) {
                                        int64_t y_at = 0, x_at = 0, w_at = w_plane;
                                        bool inside = true;
                                        for (int i = 0; i < 3; i++) {
                                            x[i] = y[i] * args->stride[i] + t[i] - args->pad[i];
                                            inside = inside && x[i] >= 0 && x[i] < args->in[i];
                                            y_at = y_at * args->out[i] + y[i];
                                            x_at = x_at * args->in[i] + x[i];
                                            w_at = w_at * args->kernel[i] + t[i];
                                        }
                                        if (inside)
                                            visit(context,
                                                  image * args->y_image +
                                                      y_plane * args->y_channel + y_at,
                                                  image * args->x_image +
                                                      x_plane * args->x_channel + x_at,
                                                  w_at);
                                    }
            }
        }
    }
}

typedef struct {
    double *sum;
    const PvReal *left, *right;
    int which; // 0 forward, 1 dgrad, 2 wgrad
} ConvSum;

static void conv_visit(void *context, int64_t y, int64_t x, int64_t w)
{
    ConvSum *sum = context;
    if (sum->which == 0)
        sum->sum[y] += (double)sum->left[x] * (double)sum->right[w];
    else if (sum->which == 1)
        sum->sum[x] += (double)sum->left[y] * (double)sum->right[w];
    else
        sum->sum[w] += (double)sum->left[x] * (double)sum->right[y];
}

// Sums in `out` from zero, then bias, activation and residual, on the planes of each image.
static void conv_finish(const ConvArgs *args, Output *out, int64_t channels, const int64_t *size,
                        int64_t image_step, int64_t channel_step, ConvSum *sum,
                        const PvReal *residual)
{
    int64_t plane = size[0] * size[1] * size[2];
    const PvReal *bias = (const PvReal *)args->bias;
    for (int64_t image = 0; image < args->images; image++) {
        for (int64_t i = 0; i < channels * plane; i++)
            out->expected[image * image_step + i / plane * channel_step + i % plane] = 0;
    }
    sum->sum = out->expected;
    conv_each(args, conv_visit, sum);
    for (int64_t image = 0; image < args->images; image++) {
        for (int64_t i = 0; i < channels * plane; i++) {
            int64_t at = image * image_step + i / plane * channel_step + i % plane;
            int64_t added = image * args->residual_image + i / plane * args->residual_channel +
                            i % plane;
            double value = out->expected[at] + (bias ? (double)bias[i / plane] : 0);
            value = activate(value, args->act);
            out->expected[at] = residual ? value + (double)residual[added] : value;
        }
    }
}

// The tolerance of sums in the minimal filtering's order: its error grows with the root of their
// number of terms.
static double winograd_tolerance(const ConvCase *test, const ConvArgs *args, int which)
{
    int64_t channels = which == 1 ? test->c_out : test->c_in;
    int64_t positions = test->images * args->out[0] * args->out[1] * args->out[2];
    return 60 * sqrt((double)(which == 2 ? positions : 9 * channels / test->groups));
}

static void check_conv(ConvCase test)
{
    ConvArgs args = conv_args(&test);
    int64_t taps = test.kernel[0] * test.kernel[1] * test.kernel[2];
    int64_t weights = test.c_out * (test.c_in / test.groups) * taps;
    PvReal *x = random_array(args.x_image * test.images), *w = random_array(weights);
    PvReal *y = random_array(args.y_image * test.images);
    char name[120];
    for (int which = 0; which < 3; which++) {
        for (int extra = 0; extra < 2; extra++) {
            snprintf(name, sizeof name,
                     "conv %s %lld x %lld -> %lld, %lld %lld %lld, kernel %lld, "
                     "stride %lld, pad %lld",
                     which == 0   ? "forward"
                     : which == 1 ? "dgrad"
                                  : "wgrad",
                     (long long)test.images, (long long)test.c_in, (long long)test.c_out,
                     (long long)test.in[0], (long long)test.in[1], (long long)test.in[2],
                     (long long)test.kernel[2], (long long)test.stride[2], (long long)test.pad[2]);
            Output out = output(which == 0   ? args.y_image * test.images
                                : which == 1 ? args.x_image * test.images
                                             : weights);
            ConvArgs now = args;
            now.x = (int64_t)(which == 1 ? out.data : x);
            now.y = (int64_t)(which == 0 ? out.data : y);
            now.w = (int64_t)(which == 2 ? out.data : w);
            int64_t channels = which == 1 ? test.c_in : test.c_out;
            if (which != 2) {
                now.residual_channel = (which == 1 ? args.x_channel : args.y_channel) + test.apart;
                now.residual_image = now.residual_channel * channels + 1;
            }
            PvReal *residual =
                extra ? random_array(which == 2 ? out.count : now.residual_image * test.images)
                      : NULL;
            now.bias = extra && which != 2 ? (int64_t)random_array(channels) : 0;
            now.residual = (int64_t)residual;
            now.act = extra && which != 2 ? PV_ACT_SILU : PV_ACT_NONE;
            ConvSum sum = {.left = which == 1 ? y : x, .right = which == 2 ? y : w, .which = which};
            ConvArgs whole = now;
            if (which == 2) {
                memset(out.expected, 0, (size_t)weights * sizeof(double));
                sum.sum = out.expected;
                conv_each(&whole, conv_visit, &sum);
                for (int64_t i = 0; residual && i < weights; i++)
                    out.expected[i] += (double)residual[i];
            } else {
                conv_finish(&whole, &out, channels, which == 1 ? args.in : args.out,
                            which == 1 ? args.x_image : args.y_image,
                            which == 1 ? args.x_channel : args.y_channel, &sum, residual);
            }
            ConvArgs sizes = now; // as the compiler asks: without the batch
            sizes.images = 0;
            int64_t scratch = which == 0   ? pv_conv_scratch(&sizes, sizeof(PvReal))
                              : which == 1 ? pv_conv_dgrad_scratch(&sizes, sizeof(PvReal))
                                           : pv_conv_wgrad_scratch(&sizes, sizeof(PvReal));
            check(name,
                  which == 0   ? pv_conv
                  : which == 1 ? pv_conv_dgrad
                               : pv_conv_wgrad,
                  &now, scratch, &out, 1, winograd ? winograd_tolerance(&test, &args, which) : 400);
        }
    }
    release();
}

// Planes of several sizes under one kernel: the same bits as each by itself.
static void check_siblings(const ConvCase *tests, uint32_t count, bool dgrad)
{
    ConvArgs args[PV_MAX_SEGMENTS];
    Output joint[PV_MAX_SEGMENTS], single[PV_MAX_SEGMENTS];
    int64_t taps = tests->kernel[0] * tests->kernel[1] * tests->kernel[2], scratch = 0;
    PvReal *w = random_array(tests->c_out * tests->c_in * taps);
    PvReal *bias = random_array(dgrad ? tests->c_in : tests->c_out);
    PvKernelFn *kernel = dgrad ? pv_conv_dgrad : pv_conv;
    for (uint32_t i = 0; i < count; i++) {
        ConvArgs *now = &args[i];
        *now = conv_args(&tests[i]);
        int64_t in = now->x_image * tests[i].images, out = now->y_image * tests[i].images;
        single[i] = output(dgrad ? in : out);
        joint[i] = output(dgrad ? in : out);
        PvReal *given = random_array(dgrad ? out : in);
        now->x = (int64_t)(dgrad ? single[i].data : given);
        now->y = (int64_t)(dgrad ? given : single[i].data);
        now->w = (int64_t)w;
        now->bias = (int64_t)bias;
        now->residual_channel = dgrad ? now->x_channel : now->y_channel;
        now->residual_image = dgrad ? now->x_image : now->y_image;
        now->residual = i == 1 ? 0 : (int64_t)random_array(single[i].count);
        now->act = PV_ACT_SILU;
        ConvArgs sizes = *now;
        sizes.images = 0;
        int64_t need = dgrad ? pv_conv_dgrad_scratch(&sizes, sizeof(PvReal))
                             : pv_conv_scratch(&sizes, sizeof(PvReal));
        scratch = need > scratch ? need : scratch;
        launch(kernel, now, need, 2);
        *(dgrad ? &now->x : &now->y) = (int64_t)joint[i].data;
    }
    for (int threads = 1; threads <= 3; threads++) {
        launch_segments(kernel, args, count, scratch, threads);
        for (uint32_t i = 0; i < count; i++) {
            assert_memory_equal(joint[i].data, single[i].data,
                                (size_t)single[i].count * sizeof(PvReal));
            for (int64_t k = 0; k < joint[i].count; k++)
                joint[i].data[k] = MARK;
        }
    }
    release();
}

static void test_conv_siblings(void **state)
{
    (void)state;
    const int64_t sizes[][3][2] = {{{4, 4}, {2, 4}, {2, 4}}, {{16, 16}, {8, 16}, {8, 16}},
                                   {{5, 7}, {1, 1}, {3, 2}}, {{32, 32}, {16, 32}, {16, 32}}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int64_t images = 1; images <= 2; images++)
            for (int64_t kernel = 1; kernel <= 3; kernel += 2) {
                ConvCase tests[3];
                for (int i = 0; i < 3; i++)
                    tests[i] = (ConvCase){images, 50, 30, 1,
                                          {1, sizes[s][i][0], sizes[s][i][1]},
                                          {1, kernel, kernel}, {1, 1, 1},
                                          {0, kernel / 2, kernel / 2}, 0};
                check_siblings(tests, 3, false);
                check_siblings(tests, 3, true);
            }
}

static void test_conv_planes(void **state)
{
    (void)state;
    // the U-Net's shapes with few channels, from whole planes to a few positions
    const int64_t sizes[][2] = {{32, 32}, {16, 32}, {16, 16}, {8, 16},  {8, 8}, {4, 8},
                                {4, 4},   {2, 4},   {5, 7},   {20, 20}, {1, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_conv((ConvCase){
            2, 5, 14, 1, {1, sizes[i][0], sizes[i][1]}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
    }
    check_conv((ConvCase){1, 50, 30, 1, {1, 16, 16}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
    check_conv((ConvCase){9, 30, 13, 1, {1, 4, 4}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
}

// By minimal filtering: enough channels that it pays; sizes that are no multiples of a tile,
// planes that are cut into boxes, more tiles than a batch has, any padding.
static void test_conv_winograd(void **state)
{
    (void)state;
    winograd = true;
    const int64_t sizes[][3] = {{1, 4, 4}, {1, 2, 4}, {1, 8, 8}, {1, 7, 11}, {2, 5, 6},
                                {1, 16, 16}, {1, 30, 33}};
    const int64_t channels[][2] = {{40, 70}, {33, 32}, {150, 29}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t k = 0; k < sizeof channels / sizeof *channels; k++) {
            ConvCase test = {1, channels[k][0], channels[k][1], 1, {0}, {1, 3, 3}, {1, 1, 1},
                             {0, 1, 1}, k == 0 ? 3 : 0};
            memcpy(test.in, sizes[i], sizeof test.in);
            test.images = i < 3 ? 3 : 1;
            if (k != 1 && i == 6)
                continue;
            check_conv(test);
        }
    }
    check_conv((ConvCase){1, 32, 32, 1, {1, 9, 10}, {1, 3, 3}, {1, 1, 1}, {0, 0, 2}, 0});
    check_conv((ConvCase){2, 32, 32, 1, {1, 8, 9}, {1, 3, 3}, {1, 1, 1}, {0, 2, 0}, 5});
    check_conv((ConvCase){66, 16, 16, 1, {1, 8, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
    check_conv((ConvCase){1, 16, 16, 1, {1, 4, 1100}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
    ConvCase planes[] = {{2, 40, 50, 1, {1, 16, 16}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0},
                         {2, 40, 50, 1, {1, 8, 16}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0},
                         {2, 40, 50, 1, {1, 4, 5}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0}};
    check_siblings(planes, 3, false);
    check_siblings(planes, 3, true);
    // enough tiles that products may be split (split.h): more than a batch has; planes of both
    // kinds, in rows that go from panel to panel
    check_conv((ConvCase){2, 40, 33, 1, {1, 30, 33}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
    ConvCase split[] = {{2, 100, 70, 1, {1, 32, 32}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 3},
                        {2, 100, 70, 1, {1, 16, 16}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0},
                        {2, 100, 70, 1, {1, 19, 41}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0}};
    check_siblings(split, 3, false);
    check_siblings(split, 3, true);
    winograd = false;
}

static void test_conv_within(void **state)
{
    (void)state;
    check_conv((ConvCase){2, 5, 14, 1, {1, 6, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 7});
    check_conv((ConvCase){2, 5, 14, 1, {1, 16, 32}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 100});
    check_conv((ConvCase){2, 7, 5, 1, {1, 16, 18}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, 12});
    check_conv((ConvCase){2, 4, 6, 1, {1, 12, 16}, {1, 4, 4}, {1, 4, 4}, {0, 0, 0}, 3});
    check_conv((ConvCase){2, 4, 6, 2, {1, 9, 9}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 5});
    check_conv((ConvCase){2, 6, 8, 1, {1, 1, 700}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 4});
    check_conv((ConvCase){2, 6, 8, 1, {1, 1, 40}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 24});
}

static void test_conv_strides(void **state)
{
    (void)state;
    check_conv((ConvCase){2, 3, 14, 1, {1, 16, 16}, {1, 8, 8}, {1, 8, 8}, {0, 0, 0}, 0});
    check_conv((ConvCase){2, 7, 5, 1, {1, 16, 18}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, 0});
    check_conv((ConvCase){1, 7, 5, 1, {1, 17, 15}, {1, 4, 4}, {1, 2, 2}, {0, 1, 1}, 0});
    check_conv((ConvCase){2, 4, 6, 1, {1, 13, 16}, {1, 3, 2}, {1, 3, 2}, {0, 0, 0}, 0});
    check_conv((ConvCase){2, 4, 6, 1, {1, 9, 11}, {1, 2, 2}, {1, 3, 3}, {0, 0, 0}, 0});
    check_conv((ConvCase){2, 4, 6, 1, {1, 9, 11}, {1, 1, 1}, {1, 2, 2}, {0, 0, 0}, 0});
    check_conv((ConvCase){3, 6, 4, 1, {1, 6, 6}, {1, 5, 5}, {1, 1, 1}, {0, 4, 4}, 0});
}

static void test_conv_axes(void **state)
{
    (void)state;
    check_conv((ConvCase){2, 6, 8, 1, {1, 1, 700}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 0});
    check_conv((ConvCase){2, 6, 8, 1, {1, 1, 40}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 0});
    check_conv((ConvCase){2, 3, 5, 1, {1, 1, 1100}, {1, 1, 5}, {1, 1, 2}, {0, 0, 2}, 0});
    check_conv((ConvCase){1, 3, 5, 1, {4, 6, 7}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, 0});
    check_conv((ConvCase){2, 3, 5, 1, {6, 8, 10}, {4, 4, 4}, {2, 2, 2}, {1, 1, 1}, 0});
    check_conv((ConvCase){1, 2, 3, 1, {3, 20, 20}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
}

static void test_conv_groups(void **state)
{
    (void)state;
    check_conv((ConvCase){2, 6, 9, 3, {1, 8, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 0});
    check_conv((ConvCase){2, 5, 5, 5, {1, 9, 9}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, 0});
    check_conv((ConvCase){2, 4, 6, 2, {1, 17, 16}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_gates),   cmocka_unit_test(test_gemm_sizes),
        cmocka_unit_test(test_gemm_blocks),  cmocka_unit_test(test_gelu_stays_normal),
        cmocka_unit_test(test_gemm_batches), cmocka_unit_test(test_conv_planes),
        cmocka_unit_test(test_conv_strides), cmocka_unit_test(test_conv_axes),
        cmocka_unit_test(test_conv_groups),  cmocka_unit_test(test_conv_within),
        cmocka_unit_test(test_conv_siblings), cmocka_unit_test(test_conv_winograd),
        cmocka_unit_test(test_gemm_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
