// link: pvdm_kernels32
// Norms taken apart: products and convolutions whose operand is normalized as it is packed, and
// which make the table of what they store, against the same kernels on an operand that plain loops
// have normalized, and plain loops over what they gave.
#include "tests/unit/kernel_check.h"

static double activate(double x, int64_t act)
{
    return act == PV_ACT_SILU   ? x / (1 + exp(-x))
           : act == PV_ACT_GELU ? x * erfc(-x / sqrt(2)) / 2
           : act == PV_ACT_RELU ? (x > 0 ? x : 0)
                                : x;
}

// A table of random numbers for x [images, c, positions], in two parts that are apart, and x as it
// makes it.
static PvReal *normalized(const PvReal *x, int64_t images, int64_t c, int64_t image_step,
                          int64_t channel_step, int64_t position_step, int64_t positions,
                          PvAct act, NormLoad *norm)
{
    PvReal *y = hold((size_t)(images * image_step) * sizeof *y);
    memcpy(y, x, (size_t)(images * image_step) * sizeof *y);
    norm->shift = c + 3;
    norm->image = 2 * c + 7;
    norm->act = act;
    const PvReal *table = random_array(images * norm->image);
    norm->table = (int64_t)table;
    for (int64_t i = 0; i < images; i++)
        for (int64_t k = 0; k < c; k++)
            for (int64_t p = 0; p < positions; p++) {
                int64_t at = i * image_step + k * channel_step + p * position_step;
                const PvReal *a = table + i * norm->image + k;
                y[at] = (PvReal)activate((double)x[at] * (double)*a + (double)a[norm->shift], act);
            }
    return y;
}

// The outputs of a table of y [images, c, positions], what they should be, and what it is given.
static void expect_table(const Output *y, int64_t images, int64_t c, int64_t image_step,
                         int64_t channel_step, int64_t positions, int64_t groups, bool modulated,
                         NormStats *stats, Output *outs)
{
    int64_t per = c / groups, apart = c + 5;
    const PvReal *gamma = random_array(c), *beta = random_array(c);
    const PvReal *scale = random_array(images * apart), *shift = random_array(images * apart);
    outs[0] = output(images * 2 * c);
    outs[1] = output(images * groups);
    outs[2] = output(images * groups);
    *stats = (NormStats){.table = (int64_t)outs[0].data,
                         .mean = (int64_t)outs[1].data,
                         .rstd = (int64_t)outs[2].data,
                         .gamma = (int64_t)gamma,
                         .beta = (int64_t)beta,
                         .scale = modulated ? (int64_t)scale : 0,
                         .shift = modulated ? (int64_t)shift : 0,
                         .mod_image = apart,
                         .groups = groups,
                         .eps = real_bits(1e-3)};
    for (int64_t i = 0; i < images * groups; i++) {
        int64_t image = i / groups, first = i % groups * per;
        double sum = 0, squares = 0, count = (double)(per * positions);
        for (int turn = 0; turn < 2; turn++)
            for (int64_t k = 0; k < per * positions; k++) {
                double value = y->expected[image * image_step +
                                           (first + k / positions) * channel_step + k % positions];
                *(turn ? &squares : &sum) +=
                    turn ? (value - sum / count) * (value - sum / count) : value;
            }
        double mean = sum / count, rstd = 1 / sqrt(squares / count + 1e-3);
        outs[1].expected[i] = mean;
        outs[2].expected[i] = rstd;
        for (int64_t k = first; k < first + per; k++) {
            int64_t at = image * apart + k;
            double s = modulated ? 1 + (double)scale[at] : 1;
            outs[0].expected[image * 2 * c + k] = rstd * (double)gamma[k] * s;
            outs[0].expected[(image * 2 + 1) * c + k] =
                ((double)beta[k] - mean * rstd * (double)gamma[k]) * s +
                (modulated ? (double)shift[at] : 0);
        }
    }
}

static void take_expected(Output *out)         // what a kernel has stored
{
    for (int64_t i = 0; i < out->count; i++) {
        out->expected[i] = (double)out->data[i];
        out->data[i] = MARK;
    }
}

// ---- products ----

static void check_gemm(int64_t m, int64_t n, int64_t k, int64_t images, bool b_turned, PvAct act,
                       int64_t groups)
{
    GemmArgs args = {.m = m, .n = n, .k = k, .batch0 = images, .batch1 = 1, .act = PV_ACT_SILU};
    args.a_m = k;
    args.a_k = 1;
    args.b_n = b_turned ? k + 1 : 1;
    args.b_k = b_turned ? 1 : n + 5;
    args.b0 = (n + 5) * (k + 5);
    args.c_m = n + 4;
    args.c0 = args.c_m * m + 2;
    args.a = (int64_t)random_array(m * k);
    args.bias = (int64_t)random_array(m);
    args.bias_axis = 1;
    PvReal *b = random_array(args.b0 * images);
    PvReal *normed = normalized(b, images, k, args.b0, args.b_k, args.b_n, n, act, &args.norm);
    Output outs[4] = {output(args.c0 * images)};
    int64_t scratch = pv_gemm_scratch(&args, sizeof(PvReal));
    GemmArgs plain = args;
    plain.norm = (NormLoad){0};
    plain.b = (int64_t)normed;
    plain.c = args.c = (int64_t)outs[0].data;
    launch(pv_gemm, &plain, scratch, 1);
    take_expected(&outs[0]);
    expect_table(&outs[0], images, m, args.c0, args.c_m, n, groups, n % 2 == 1, &args.stats,
                 outs + 1);
    args.b = (int64_t)b;
    char name[100];
    snprintf(name, sizeof name, "gemm %lld x %lld x %lld, %lld images, turned %d, act %d",
             (long long)m, (long long)n, (long long)k, (long long)images, b_turned, (int)act);
    check(name, pv_gemm, &args, scratch, outs, 4, 400);
    release();
}

static void test_gemm(void **state)
{
    (void)state;
    check_gemm(12, 33, 20, 3, false, PV_ACT_NONE, 3);
    check_gemm(6, 50, 17, 2, true, PV_ACT_SILU, 1);
    check_gemm(260, 70, 800, 2, false, PV_ACT_GELU, 4);
    check_gemm(40, 600, 390, 1, true, PV_ACT_RELU, 8);
    check_gemm(500, 530, 64, 1, false, PV_ACT_SILU, 2);
}

// ---- convolutions ----

typedef struct {
    int64_t images, c_in, c_out, groups;
    int64_t in[3], kernel[3], stride[3], pad[3];
    int64_t norm_groups;
} ConvCase;

static ConvArgs conv_args(const ConvCase *test)
{
    ConvArgs args = {.images = test->images, .c_in = test->c_in, .c_out = test->c_out,
                     .groups = test->groups, .x_position = 1, .y_position = 1};
    args.x_channel = args.y_channel = 1;
    for (int i = 0; i < 3; i++) {
        args.in[i] = test->in[i];
        args.kernel[i] = test->kernel[i];
        args.stride[i] = test->stride[i];
        args.pad[i] = test->pad[i];
        args.out[i] = (args.in[i] + 2 * args.pad[i] - args.kernel[i]) / args.stride[i] + 1;
        args.x_channel *= args.in[i];
        args.y_channel *= args.out[i];
    }
    args.x_channel += 2;
    args.y_channel += 4;
    args.x_image = test->c_in * args.x_channel + 5;
    args.y_image = test->c_out * args.y_channel + 3;
    return args;
}

static int64_t volume(const int64_t *size)
{
    return size[0] * size[1] * size[2];
}

static int64_t conv_scratch(const ConvArgs *args, bool wgrad)
{
    ConvArgs sizes = *args;    // as the compiler asks: without the batch
    sizes.images = 0;
    return wgrad ? pv_conv_wgrad_scratch(&sizes, sizeof(PvReal))
                 : pv_conv_scratch(&sizes, sizeof(PvReal));
}

static void check_conv(ConvCase test, PvAct act)
{
    ConvArgs args = conv_args(&test);
    int64_t weights = test.c_out * (test.c_in / test.groups) * volume(args.kernel);
    PvReal *x = random_array(args.x_image * test.images), *y, *w = random_array(weights);
    PvReal *normed = normalized(x, test.images, test.c_in, args.x_image, args.x_channel, 1,
                                volume(args.in), act, &args.norm);
    char name[100];
    y = random_array(args.y_image * test.images);
    for (int wgrad = 0; wgrad < 2; wgrad++) {
        Output outs[4] = {output(wgrad ? weights : args.y_image * test.images)};
        PvKernelFn *kernel = wgrad ? pv_conv_wgrad : pv_conv;
        ConvArgs now = args, plain;
        now.x = (int64_t)x;
        now.y = (int64_t)(wgrad ? y : outs[0].data);
        now.w = (int64_t)(wgrad ? outs[0].data : w);
        plain = now;
        plain.norm = (NormLoad){0};
        plain.x = (int64_t)normed;
        launch(kernel, &plain, conv_scratch(&now, wgrad), 1);
        take_expected(&outs[0]);
        if (!wgrad)
            expect_table(&outs[0], test.images, test.c_out, args.y_image, args.y_channel,
                         volume(args.out), test.norm_groups, act == PV_ACT_SILU, &now.stats,
                         outs + 1);
        snprintf(name, sizeof name, "conv%s %lld x %lld -> %lld, %lld %lld %lld, act %d",
                 wgrad ? " wgrad" : "", (long long)test.images, (long long)test.c_in,
                 (long long)test.c_out, (long long)test.in[0], (long long)test.in[1],
                 (long long)test.in[2], (int)act);
        check(name, kernel, &now, conv_scratch(&now, wgrad), outs, wgrad ? 1 : 4, 600);
    }
    release();
}

static void test_conv(void **state)
{
    (void)state;
    const ConvCase cases[] = {
        {2, 8, 12, 1, {1, 9, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 4},
        {3, 6, 4, 2, {1, 4, 4}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, 2},
        {1, 70, 30, 1, {1, 32, 32}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 3},
        {2, 5, 6, 1, {1, 1, 40}, {1, 1, 5}, {1, 1, 1}, {0, 0, 2}, 6},
        {2, 4, 4, 1, {3, 5, 6}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, 1},
        {1, 3, 2, 1, {1, 3, 1300}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 1},
        {2, 20, 16, 1, {1, 16, 20}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 4},
        {2, 20, 16, 1, {1, 4, 5}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, 4},
        {1, 6, 9, 1, {1, 10, 12}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (PvAct act = PV_ACT_NONE; act <= PV_ACT_RELU; act++)
            check_conv(cases[i], act);
}

// Planes under one kernel, each with a table of its own to read and one to make: the same bits as
// each by itself.
static void test_siblings(void **state)
{
    (void)state;
    enum { PLANES = 3 };
    static const int64_t heights[PLANES] = {8, 4, 4};
    ConvArgs args[PLANES];
    Output y[PLANES], table[PLANES];
    PvReal *kept[PLANES];
    PvReal *w = random_array(48 * 40 * 9);
    int64_t scratch = 0;
    for (int i = 0; i < PLANES; i++) {
        ConvCase test = {2, 40, 48, 1, {1, heights[i], 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, 8};
        Output outs[3];
        args[i] = conv_args(&test);
        y[i] = output(args[i].y_image * 2);
        PvReal *x = random_array(args[i].x_image * 2);
        normalized(x, 2, 40, args[i].x_image, args[i].x_channel, 1, heights[i] * 8, PV_ACT_SILU,
                   &args[i].norm);
        expect_table(&y[i], 2, 48, args[i].y_image, args[i].y_channel, heights[i] * 8, 8, false,
                     &args[i].stats, outs);
        table[i] = outs[0];
        args[i].x = (int64_t)x;
        args[i].w = (int64_t)w;
        args[i].y = (int64_t)y[i].data;
        int64_t need = conv_scratch(&args[i], false);
        scratch = need > scratch ? need : scratch;
        launch(pv_conv, &args[i], need, 1);
        take_expected(&y[i]);
        kept[i] = hold((size_t)table[i].count * sizeof(PvReal));
        memcpy(kept[i], table[i].data, (size_t)table[i].count * sizeof(PvReal));
    }
    for (int threads = 1; threads <= 3; threads++) {
        launch_segments(pv_conv, args, PLANES, scratch, threads);
        for (int i = 0; i < PLANES; i++) {
            for (int64_t k = 0; k < y[i].count; k++)
                assert_true((double)y[i].data[k] == y[i].expected[k]);
            assert_memory_equal(table[i].data, kept[i], (size_t)table[i].count * sizeof(PvReal));
        }
    }
    release();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_conv),
        cmocka_unit_test(test_siblings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
