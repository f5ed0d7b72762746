// link: pvdm_compiler
// Composites against numbers worked out by hand or by plain loops, and what they say about
// operands that do not fit. Their gradients are in test_grad.c.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compiler/compose.h"
#include "compiler/program.h"

static Arena *arena;
static Graph *graph;

static int set_up(void **state)
{
    (void)state;
    arena = arena_new();
    graph = graph_new(arena);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    arena_free(arena);
    return 0;
}

static Val table(const double *values, uint32_t rank, const int64_t *dims)
{
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++)
        dim[i] = dim_fixed(dims[i]);
    Type type = type_make(DT_F64, rank, dim);
    return g_table(graph, &type, values);
}
#define DIMS(...)                                                                                  \
    sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[])                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

// 0, 1, 2, ... in that shape
static Val count_up(uint32_t rank, const int64_t *dims)
{
    double values[1024];
    for (int i = 0; i < 1024; i++)
        values[i] = i;
    return table(values, rank, dims);
}

static Val irregular(uint32_t rank, const int64_t *dims, double phase)
{
    double values[1024];
    for (int i = 0; i < 1024; i++)
        values[i] = sin(phase + 1.7 * i);
    return table(values, rank, dims);
}

static double *evaluate(Val val)
{
    InterpOptions options = {.batch = 2, .real = DT_F64};
    void *result;
    if (!val || interp_run(graph, &options, &val, 1, &result) != 0)
        fail_msg("%s", graph_error(graph));
    return result;
}

static void expect(Val val, const char *type, const double *want)
{
    if (!val)
        fail_msg("%s", graph_error(graph));
    assert_string_equal(type_text(val_type(graph, val)), type);
    double *have = evaluate(val);
    Dim count;
    type_count(val_type(graph, val), &count);
    for (int64_t i = 0; i < count.n; i++)
        if (!(fabs(have[i] - want[i]) <= 1e-12 * fmax(1, fabs(want[i]))))
            fail_msg("element %lld is %.15g, not %.15g", (long long)i, have[i], want[i]);
    free(have);
}

static void expect_equal(Val x, Val y)
{
    double *want = evaluate(y);
    expect(x, type_text(val_type(graph, y)), want);
    free(want);
}

static void expect_error(Val val, const char *message)
{
    assert_int_equal(val, 0);
    assert_string_equal(graph_error(graph), message);
}

static void test_pooling(void **state)
{
    (void)state;
    Val x = count_up(DIMS(1, 1, 2, 5)); // the fifth column is dropped
    expect(compose_avg_pool(graph, x, 2), "f64[1, 1, 1, 2]", (double[]){3, 5});
    expect(compose_max_pool(graph, x, 2), "f64[1, 1, 1, 2]", (double[]){6, 8});
    Val cube = count_up(DIMS(1, 1, 2, 2, 2));
    expect(compose_avg_pool(graph, cube, 2), "f64[1, 1, 1, 1, 1]", (double[]){3.5});
    expect(compose_resize_nearest(graph, count_up(DIMS(1, 2, 2)), 3), "f64[1, 2, 6]",
           (double[]){0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3});
    expect(compose_resize_nearest(graph, count_up(DIMS(1, 1, 2, 2)), 2), "f64[1, 1, 4, 4]",
           (double[]){0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3});
    expect_error(compose_avg_pool(graph, count_up(DIMS(2, 2)), 2),
                 "pooling by 2 does not fit f64[2, 2]");
}

// As torch.nn.functional.interpolate(..., mode="linear", align_corners=False).
static void test_resize_linear(void **state)
{
    (void)state;
    Val x = count_up(DIMS(1, 1, 4));
    expect(compose_resize_linear(graph, x, (int64_t[]){2}, 1), "f64[1, 1, 2]",
           (double[]){0.5, 2.5});
    expect(compose_resize_linear(graph, x, (int64_t[]){8}, 1), "f64[1, 1, 8]",
           (double[]){0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3});
    expect(compose_resize_linear(graph, count_up(DIMS(1, 1, 2, 2)), (int64_t[]){1, 3}, 2),
           "f64[1, 1, 1, 3]", (double[]){1, 1.5, 2});
}

static void test_rotary(void **state)
{
    (void)state;
    double angles[4] = {0.3, 0.5, 1.1, 2}, x[8], want[8];
    for (int i = 0; i < 8; i++)
        x[i] = i - 2.5;
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 4; i += 2) {
            const double *p = x + h * 4 + i, *a = angles + i;
            want[h * 4 + i] = p[0] * cos(a[0]) - p[1] * sin(a[0]);
            want[h * 4 + i + 1] = p[1] * cos(a[1]) + p[0] * sin(a[1]);
        }
    Val y = compose_rotary(graph, table(x, DIMS(2, 1, 4)), table(angles, DIMS(1, 4)));
    expect(y, "f64[2, 1, 4]", want);
    expect_error(compose_rotary(graph, count_up(DIMS(2, 3, 4)), table(angles, DIMS(1, 4))),
                 "rotary: angles f64[1, 4] do not fit f64[2, 3, 4]");
}

static void test_batch_norm(void **state)
{
    (void)state;
    Val x = table((double[]){1, 2, 10, 20, 3, 6, 30, 40}, DIMS(2, 2, 2));
    Val one = table((double[]){1, 2}, DIMS(2)), zero = table((double[]){0, 5}, DIMS(2));
    // channel 0: 1 2 3 6, mean 3, variance 3.5; channel 1: 10 20 30 40, mean 25, variance 125
    BatchNorm out = compose_batch_norm(graph, x, one, zero, zero, one, 0.5, 0.1, true);
    double r = 1 / sqrt(4), s = 2 / sqrt(125.5);
    expect(out.y, "f64[2, 2, 2]",
           (double[]){-2 * r, -1 * r, -15 * s + 5, -5 * s + 5, 0, 3 * r, 5 * s + 5, 15 * s + 5});
    expect(out.mean, "f64[2]", (double[]){0.3, 0.9 * 5 + 2.5});
    expect(out.var, "f64[2]", (double[]){0.9 + 0.1 * 3.5 * 4 / 3, 1.8 + 0.1 * 125 * 4 / 3});
    out = compose_batch_norm(graph, x, one, zero, zero, one, 0, 0.1, false);
    assert_int_equal(out.mean, 0);
    s = 2 / sqrt(2);
    expect(out.y, "f64[2, 2, 2]",
           (double[]){1, 2, 5 * s + 5, 15 * s + 5, 3, 6, 25 * s + 5, 35 * s + 5});
}

static void test_convolutions(void **state)
{
    (void)state;
    // kernel 1 is a contraction, and the same numbers
    Val x = irregular(DIMS(2, 3, 4, 5), 0), w = irregular(DIMS(6, 3, 1, 1), 1);
    Val y = compose_conv(graph, x, w, 0, NULL, NULL, 1);
    assert_int_equal(val_get(graph, y)->op, OP_CONTRACT);
    Attr attr = {.n = {2, 1, 1, 1, 1, 0, 0, 0}, .count = 8};
    expect_equal(y, graph_make(graph, OP_CONV, (Val[]){x, w}, 2, &attr, NULL));
    // stride 2: no contraction
    y = compose_conv(graph, x, w, 0, (int64_t[]){2, 2}, NULL, 1);
    assert_int_equal(val_get(graph, y)->op, OP_CONV);
    // transposed: each element of x puts the kernel at stride * its place - pad
    Val v = count_up(DIMS(1, 1, 3)), k = table((double[]){1, 10, 100}, DIMS(1, 1, 3));
    expect(compose_conv_transpose(graph, v, k, 0, (int64_t[]){2}, (int64_t[]){0}), "f64[1, 1, 7]",
           (double[]){0, 0, 1, 10, 102, 20, 200});
    Val bias = table((double[]){0.5}, DIMS(1));
    expect(compose_conv_transpose(graph, v, k, bias, (int64_t[]){2}, (int64_t[]){1}),
           "f64[1, 1, 5]", (double[]){0.5, 1.5, 10.5, 102.5, 20.5});
    expect_error(compose_conv(graph, count_up(DIMS(2, 2)), w, 0, NULL, NULL, 1),
                 "a convolution with weight f64[6, 3, 1, 1] does not fit f64[2, 2]");
    expect_error(compose_linear(graph, count_up(DIMS(2, 2)), count_up(DIMS(4, 3)), 0),
                 "a linear layer with weight f64[4, 3] does not fit f64[2, 2]");
}

static void test_attention_masks(void **state)
{
    (void)state;
    Val q = irregular(DIMS(2, 3, 4), 0), k = irregular(DIMS(2, 5, 4), 1),
        v = irregular(DIMS(2, 5, 2), 2);
    // a mask that hides the last two keys is an attention over the first three
    Type type = type_make(DT_BOOL, 2, (Dim[]){dim_fixed(1), dim_fixed(5)});
    Val mask = g_table(graph, &type, (bool[]){true, true, true, false, false});
    Val part = compose_attention(graph, q, g_slice(graph, k, 1, 0, 3), g_slice(graph, v, 1, 0, 3),
                                 0, 0.5, false);
    expect_equal(compose_attention(graph, q, k, v, mask, 0.5, false), part);
    // by hand: softmax over keys
    Val scores = g_contract(graph, q, k, "bnd", "bmd", "bnm");
    Val p =
        compose_softmax(graph, g_binary(graph, OP_MUL, scores, g_const(graph, DT_F64, 0.5)), -1);
    expect_equal(compose_attention(graph, q, k, v, 0, 0.5, false),
                 g_contract(graph, p, v, "bnm", "bme", "bne"));
    // more than four axes
    Val wide = irregular(DIMS(2, 1, 2, 2, 3), 3);
    Val flat = g_reshape(graph, wide, 3, (Dim[]){dim_fixed(4), dim_fixed(2), dim_fixed(3)});
    expect_equal(g_reshape(graph, compose_attention(graph, wide, wide, wide, 0, 1, true), 3,
                           val_type(graph, flat)->dim),
                 compose_attention(graph, flat, flat, flat, 0, 1, true));
}

static void test_movement(void **state)
{
    (void)state;
    Val x = count_up(DIMS(2, 3)), parts[3];
    expect(compose_index(graph, x, -1, -1), "f64[2]", (double[]){2, 5});
    expect(compose_index(graph, x, 0, 1), "f64[3]", (double[]){3, 4, 5});
    expect(compose_range(graph, x, 1, 1, -1), "f64[2, 1]", (double[]){1, 4});
    expect(compose_flip(graph, x, -1), "f64[2, 3]", (double[]){2, 1, 0, 5, 4, 3});
    expect(compose_pad(graph, x, (int64_t[]){1, 0}, (int64_t[]){0, 1}, 2, 9), "f64[3, 4]",
           (double[]){9, 9, 9, 9, 0, 1, 2, 9, 3, 4, 5, 9});
    assert_true(compose_split(graph, x, 3, -1, parts));
    expect(parts[1], "f64[2, 1]", (double[]){1, 4});
    assert_true(compose_split_sizes(graph, x, (int64_t[]){1, 2}, 2, 1, parts));
    expect(parts[1], "f64[2, 2]", (double[]){1, 2, 4, 5});
    assert_false(compose_split(graph, x, 2, 1, parts));
    assert_string_equal(graph_error(graph),
                        "axis 1 of f64[2, 3] does not split into 2 equal parts");
    assert_false(compose_split_sizes(graph, x, (int64_t[]){1, 1}, 2, 1, parts));
    assert_string_equal(graph_error(graph),
                        "split: the parts add up to 2, and axis 1 of f64[2, 3] does not");
    expect_error(compose_index(graph, x, 1, 3), "there is no element 3 on axis 1 of f64[2, 3]");
    expect_error(compose_range(graph, x, 1, 2, 4), "2..4 is not within axis 1 of f64[2, 3]");
    expect_error(compose_flip(graph, x, 2), "there is no axis 2 in f64[2, 3]");
    // a window that would leave the tensor is moved inside
    Val start = g_const(graph, DT_I64, 7);
    expect(compose_window(graph, x, start, 2, 1), "f64[2, 2]", (double[]){1, 2, 4, 5});
}

static void test_numbers(void **state)
{
    (void)state;
    Val x = table((double[]){-2, -0.5, 0, 0.5, 2}, DIMS(5));
    Val lo = g_const(graph, DT_I64, -1), hi = g_const(graph, DT_F32, 1);
    expect(compose_clamp(graph, x, lo, hi), "f64[5]", (double[]){-1, -0.5, 0, 0.5, 1});
    expect(compose_leaky_relu(graph, x, 0.2), "f64[5]", (double[]){-0.4, -0.1, 0, 0.5, 2});
    expect(compose_pow(graph, x, g_const(graph, DT_I64, 3)), "f64[5]",
           (double[]){-8, -0.125, 0, 0.125, 8});
    expect(compose_pow(graph, x, g_const(graph, DT_F64, 0)), "f64[5]", (double[]){1, 1, 1, 1, 1});
    expect(compose_mean(graph, x), "f64", (double[]){0});
    expect(compose_var(graph, x), "f64", (double[]){1.7});
    expect(compose_max(graph, x), "f64", (double[]){2});
    expect(compose_min(graph, x), "f64", (double[]){-2});
    expect(compose_sum(graph, g_unary(graph, OP_ABS, x)), "f64", (double[]){5});
    expect(compose_log2(graph, g_const(graph, DT_F64, 8)), "f64", (double[]){3});
    expect(compose_rms_norm(graph, x, 0, 0.3), "f64[5]",
           (double[]){-2 / sqrt(2), -0.5 / sqrt(2), 0, 0.5 / sqrt(2), 2 / sqrt(2)});
    // numbers take the tensor's precision; truth values do not mix
    Val half = g_cast(graph, x, DT_F32);
    Val sum = compose_binary(graph, OP_ADD, half, g_const(graph, DT_F64, 1));
    assert_string_equal(type_text(val_type(graph, sum)), "f32[5]");
    sum = compose_binary(graph, OP_ADD, g_const(graph, DT_I64, 1), x);
    assert_string_equal(type_text(val_type(graph, sum)), "f64[5]");
    Val flag = g_binary(graph, OP_LT, x, g_const(graph, DT_F64, 0));
    expect_error(compose_binary(graph, OP_ADD, x, flag),
                 "a truth value does not mix with a number: f64[5] and bool[5]");
    expect_error(compose_mean(graph, flag), "a mean wants real numbers, not bool[5]");
    assert_int_equal(compose_dropout(graph, x, 0, "d"), x);
    expect_error(compose_dropout(graph, x, 1, "d"), "dropout wants a probability below 1, not 1");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_pooling),    TEST(test_resize_linear), TEST(test_rotary),
        TEST(test_batch_norm), TEST(test_convolutions),  TEST(test_attention_masks),
        TEST(test_movement),   TEST(test_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
