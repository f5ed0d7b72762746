// link: pvdm_kernels32
// Segments that are one sum (`sum` of GemmArgs, ConvArgs, ReduceArgs) against the same segments one
// after the other, each adding what the one before it left.
#include "tests/unit/kernel_check.h"

enum { PARTS = 3 };

// parts[i]: arguments of the chain, `each` numbers apart; result and sum: places in them. The last
// launch is of all parts, as one sum.
static void check_sum(PvKernelFn *kernel, int64_t *parts, size_t each, size_t result,
                      size_t residual, size_t sum, int64_t count, int64_t scratch)
{
    Output out = output(count);
    PvReal *chain = random_array(count), *first = random_array(count);
    for (size_t i = 0; i < PARTS; i++) {
        int64_t *args = parts + i * each;
        args[result] = (int64_t)chain;
        args[residual] = (int64_t)(i == 0 ? first : chain);
        launch(kernel, args, scratch, 1);
    }
    for (size_t i = 0; i < PARTS; i++) {
        int64_t *args = parts + i * each;
        args[result] = (int64_t)out.data;
        args[residual] = i == 0 ? (int64_t)first : 0;
        args[sum] = i == 0 ? PARTS - 1 : -1;
    }
    for (int threads = 1; threads <= 3; threads++) {
        launch_segments(kernel, parts, PARTS, scratch, threads);
        for (int64_t i = 0; i < count; i++) {
            double want = (double)chain[i], got = (double)out.data[i];
            if (fabs(got - want) > (sizeof(PvReal) == 4 ? 2e-5 : 1e-13) * (1 + fabs(want)))
                fail_msg("[%lld] is %.9g, not %.9g", (long long)i, got, want);
            if (threads > 1 && got != out.expected[i])
                fail_msg("[%lld] depends on the number of threads", (long long)i);
            out.expected[i] = got;
            out.data[i] = MARK;
        }
    }
    release();
}

static void test_products(void **state)
{
    (void)state;
    static const int64_t m = 37, n = 45, k[2][PARTS] = {{40, 7, 500}, {1, 384, 9}};
    for (int turn = 0; turn < 4; turn++) {
        GemmArgs parts[PARTS];
        int64_t scratch = 0;
        for (int i = 0; i < PARTS; i++) {
            int64_t images = turn & 1 ? i + 1 : 1, size = k[turn / 2][i];
            parts[i] = (GemmArgs){
                .a = (int64_t)random_array(images * m * size + 64),
                .b = (int64_t)random_array(images * n * size + 64),
                .m = m, .n = n, .k = size, .batch0 = images, .batch1 = 1,
                .a0 = m * size, .a_m = size, .a_k = 1, .b0 = n * size, .b_k = n, .b_n = 1,
                .c_m = n, .r_m = n, .sum_batch = turn & 1, .sum = 1,
            };
            int64_t need = pv_gemm_scratch(&parts[i], sizeof(PvReal));
            scratch = need > scratch ? need : scratch;
            parts[i].sum = 0;
        }
        check_sum(pv_gemm, (int64_t *)parts, sizeof *parts / 8, offsetof(GemmArgs, c) / 8,
                  offsetof(GemmArgs, residual) / 8, offsetof(GemmArgs, sum) / 8, m * n, scratch);
    }
}

// Planes of a network, with one kernel; where they are small and the kernel is 1, two forms meet.
static void test_kernel_gradients(void **state)
{
    (void)state;
    static const int64_t planes[][PARTS][2] = {
        {{16, 16}, {8, 16}, {8, 16}}, {{4, 4}, {2, 4}, {2, 4}}, {{20, 20}, {3, 7}, {1, 1}}};
    for (int turn = 0; turn < 12; turn++) {
        int64_t kernel = turn & 1 ? 3 : 1, groups = turn & 2 ? 2 : 1, c_in = 10, c_out = 14;
        ConvArgs parts[PARTS];
        int64_t scratch = 0;
        for (int i = 0; i < PARTS; i++) {
            const int64_t *plane = planes[turn / 4][i];
            int64_t positions = plane[0] * plane[1], images = 1 + i % 2;
            parts[i] = (ConvArgs){
                .x = (int64_t)random_array(images * c_in * positions + 64),
                .y = (int64_t)random_array(images * c_out * positions + 64),
                .images = images, .c_in = c_in, .c_out = c_out, .groups = groups,
                .x_image = c_in * positions, .y_image = c_out * positions,
                .x_channel = positions, .y_channel = positions,
                .x_position = 1, .y_position = 1,
                .in = {1, plane[0], plane[1]}, .out = {1, plane[0], plane[1]},
                .kernel = {1, kernel, kernel}, .stride = {1, 1, 1},
                .pad = {0, kernel / 2, kernel / 2},
            };
            int64_t need = pv_conv_wgrad_scratch(&parts[i], sizeof(PvReal));
            scratch = need > scratch ? need : scratch;
        }
        check_sum(pv_conv_wgrad, (int64_t *)parts, sizeof *parts / 8, offsetof(ConvArgs, w) / 8,
                  offsetof(ConvArgs, residual) / 8, offsetof(ConvArgs, sum) / 8,
                  c_out * (c_in / groups) * kernel * kernel, scratch);
    }
}

static void test_reductions(void **state)
{
    (void)state;
    static const int64_t positions[PARTS] = {300, 20, 7};
    ReduceArgs parts[PARTS];
    int64_t scratch = 0, channels = 50, images = 3;
    for (int i = 0; i < PARTS; i++) {
        parts[i] = (ReduceArgs){
            .x = (int64_t)random_array(images * channels * positions[i]),
            .kept = 1, .reduced = 2,
            .size = {channels, images, positions[i]},
            .stride = {positions[i], channels * positions[i], 1},
        };
        int64_t need = pv_reduce_scratch(&parts[i], sizeof(PvReal));
        scratch = need > scratch ? need : scratch;
    }
    check_sum(pv_reduce, (int64_t *)parts, sizeof *parts / 8, offsetof(ReduceArgs, out) / 8,
              offsetof(ReduceArgs, residual) / 8, offsetof(ReduceArgs, sum) / 8, channels, scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_kernel_gradients),
        cmocka_unit_test(test_reductions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
