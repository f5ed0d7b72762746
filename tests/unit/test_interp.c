// link: pvdm_compiler
// The reference evaluator: every operation against values worked out by hand or by a loop that
// states the definition, gradients against differences of the forward operation. All in f64,
// batch 2; what float arithmetic adds is tested apart.
#include "tests/unit/every_op.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 2, INPUTS = 8, ROOM = 512 };

typedef struct {
    Arena *arena;
    Graph *graph;
    double data[INPUTS][ROOM];       // of the inputs, by index
} Fixture;

static bool tested[OP_COUNT];

static int set_up(void **state)
{
    Fixture *fixture = calloc(1, sizeof *fixture);
    fixture->arena = arena_new();
    fixture->graph = graph_new(fixture->arena);
    for (int i = 0; i < INPUTS; i++)
        for (int j = 0; j < ROOM; j++)
            fixture->data[i][j] = ((7 * j + 5 * i + j * j / 11) % 13 - 6) / 4.0;
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    arena_free(((Fixture *)*state)->arena);
    free(*state);
    return 0;
}

static int64_t elements(const Type *type)
{
    Dim count;
    assert_true(type_count(type, &count));
    return count.batch ? count.n * BATCH : count.n;
}

static void *give(void *context, const Node *node, const Type *type)
{
    Fixture *fixture = context;
    if (node->op != OP_INPUT)
        return NULL;
    int64_t count = elements(type);
    assert_true(count <= ROOM);
    double *data = malloc((size_t)count * sizeof *data);
    memcpy(data, fixture->data[node->attr->n[1]], (size_t)count * sizeof *data);
    return data;
}

// The elements of val as stored; freed by the caller.
static void *run_raw(Fixture *fixture, Val val, DType real)
{
    void *result = NULL;
    InterpOptions options = {.batch = BATCH, .real = real, .source = give, .context = fixture};
    if (!val)
        fail_msg("%s", graph_error(fixture->graph));
    if (interp_run(fixture->graph, &options, &val, 1, &result))
        fail_msg("%s", graph_error(fixture->graph));
    tested[val_get(fixture->graph, val)->op] = true;
    return result;
}

static double near_to(double x, double y, double tolerance)
{
    return x == y || fabs(x - y) <= tolerance * (1 + fabs(y)) || (isnan(x) && isnan(y));
}

// val, of any dtype, has these elements.
static void expect(Fixture *fixture, Val val, int64_t count, const double *want)
{
    void *data = run_raw(fixture, val, DT_F64);
    const Type *type = val_type(fixture->graph, val);
    assert_int_equal(elements(type), count);
    for (int64_t i = 0; i < count; i++) {
        double have = type->dtype == DT_F64   ? ((double *)data)[i]
                      : type->dtype == DT_F32 ? (double)((float *)data)[i]
                      : type->dtype == DT_I64 ? (double)((int64_t *)data)[i]
                                              : (double)((uint8_t *)data)[i];
        if (!near_to(have, want[i], 1e-12))
            fail_msg("%s: element %lld is %.17g, not %.17g",
                     op_info[val_get(fixture->graph, val)->op].name, (long long)i, have, want[i]);
    }
    free(data);
}

#define VALUES(...) sizeof((double[]){__VA_ARGS__}) / sizeof(double), (double[]){__VA_ARGS__}

static Val reals(Graph *graph, Type type, const double *data)
{
    return g_table(graph, &type, data);
}

static Val ints(Graph *graph, Type type, const int64_t *data)
{
    return g_table(graph, &type, data);
}

// ---- sources ----

static void sources(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Type row = shape(DT_F64, 2, -1, 2), bits = shape(DT_BOOL, 1, 3), number = type_scalar(DT_F64);
    expect(fixture, g_full(graph, &row, 0.5), VALUES(0.5, 0.5, 0.5, 0.5));
    expect(fixture, g_const(graph, DT_I64, -3), VALUES(-3));
    expect(fixture, g_table(graph, &bits, (uint8_t[]){1, 0, 1}), VALUES(1, 0, 1));
    expect(fixture, make(graph, OP_BATCH, NULL, 0, (Attr){0}, NULL), VALUES(BATCH));
    expect(fixture, g_dim(graph, dim_batch(3), DT_F64), VALUES(6));
    expect(fixture, input(graph, 0, shape(DT_F64, 1, 3)), 3, fixture->data[0]);

    Val missing = make(graph, OP_PARAM, NULL, 0, (Attr){.count = 1}, &number);
    Val sum = g_binary(graph, OP_ADD, input(graph, 0, row), missing);
    InterpOptions options = {.batch = BATCH, .real = DT_F64, .source = give, .context = fixture};
    void *result = NULL;
    assert_int_equal(interp_run(graph, &options, &sum, 1, &result), -1);
    assert_string_equal(graph_error(graph), "param has no value");
    assert_null(result);
}

// ---- elementwise ----

static double sign(double x) { return (x > 0) - (x < 0); }
static double rsqrt(double x) { return pow(x, -0.5); }
static double sigmoid(double x) { return 0.5 + 0.5 * tanh(x / 2); }
static double softplus(double x) { return log1p(exp(x)); }
static double relu(double x) { return fmax(x, 0); }
static double silu(double x) { return x * sigmoid(x); }
static double gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }
static double same(double x) { return x; }
static double negative(double x) { return -x; }

static double gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * pow(x, 3))));
}

static void real_functions(void **state)
{
    static const struct { Op op; double (*f)(double); bool positive; } rows[] = {
        {OP_NEG, negative, false}, {OP_ABS, fabs, false}, {OP_SIGN, sign, false},
        {OP_SQRT, sqrt, true}, {OP_RSQRT, rsqrt, true}, {OP_EXP, exp, false}, {OP_LOG, log, true},
        {OP_SIN, sin, false}, {OP_COS, cos, false}, {OP_TANH, tanh, false}, {OP_ERF, erf, false},
        {OP_SIGMOID, sigmoid, false}, {OP_SOFTPLUS, softplus, false}, {OP_RELU, relu, false},
        {OP_SILU, silu, false}, {OP_GELU, gelu, false}, {OP_GELU_TANH, gelu_tanh, false},
        {OP_FLOOR, floor, false}, {OP_STOP_GRADIENT, same, false},
    };
    Fixture *fixture = *state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double x[7] = {-2.5, -1, -0.25, 0, 0.5, 1, 3.75}, want[7];
        for (int j = 0; j < 7; j++) {
            x[j] = rows[i].positive ? fabs(x[j]) + 0.125 : x[j];
            want[j] = rows[i].f(x[j]);
        }
        Val operand = reals(fixture->graph, shape(DT_F64, 1, 7), x);
        expect(fixture, g_unary(fixture->graph, rows[i].op, operand), 7, want);
    }
}

static void real_pairs(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 1, 4), (double[]){-7, 7, -7, 2});
    Val y = reals(graph, shape(DT_F64, 1, 4), (double[]){4, -4, -4, 2});
    expect(fixture, g_binary(graph, OP_ADD, x, y), VALUES(-3, 3, -11, 4));
    expect(fixture, g_binary(graph, OP_SUB, x, y), VALUES(-11, 11, -3, 0));
    expect(fixture, g_binary(graph, OP_MUL, x, y), VALUES(-28, -28, 28, 4));
    expect(fixture, g_binary(graph, OP_DIV, x, y), VALUES(-1.75, -1.75, 1.75, 1));
    expect(fixture, g_binary(graph, OP_MOD, x, y), VALUES(1, -1, -3, 0));
    expect(fixture, g_binary(graph, OP_POW, x, y), VALUES(2401, 1.0 / 2401, 1.0 / 2401, 4));
    expect(fixture, g_binary(graph, OP_MIN, x, y), VALUES(-7, -4, -7, 2));
    expect(fixture, g_binary(graph, OP_MAX, x, y), VALUES(4, 7, -4, 2));
    expect(fixture, g_binary(graph, OP_EQ, x, y), VALUES(0, 0, 0, 1));
    expect(fixture, g_binary(graph, OP_NE, x, y), VALUES(1, 1, 1, 0));
    expect(fixture, g_binary(graph, OP_LT, x, y), VALUES(1, 0, 1, 0));
    expect(fixture, g_binary(graph, OP_LE, x, y), VALUES(1, 0, 1, 1));
}

static void integers(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = ints(graph, shape(DT_I64, 1, 5), (int64_t[]){-7, 7, -7, 2, 9});
    Val y = ints(graph, shape(DT_I64, 1, 5), (int64_t[]){4, -4, -4, 2, 0});
    expect(fixture, g_binary(graph, OP_DIV, x, y), VALUES(-2, -2, 1, 1, 0));
    expect(fixture, g_binary(graph, OP_MOD, x, y), VALUES(1, -1, -3, 0, 0));
    expect(fixture, g_binary(graph, OP_MUL, x, y), VALUES(-28, -28, 28, 4, 0));
    expect(fixture, g_binary(graph, OP_MAX, x, y), VALUES(4, 7, -4, 2, 9));
    expect(fixture, g_unary(graph, OP_ABS, x), VALUES(7, 7, 7, 2, 9));
    Val less = g_binary(graph, OP_LT, x, y), even = g_binary(graph, OP_EQ, x, y);
    expect(fixture, less, VALUES(1, 0, 1, 0, 0));
    expect(fixture, g_unary(graph, OP_NOT, less), VALUES(0, 1, 0, 1, 1));
    expect(fixture, g_binary(graph, OP_AND, less, even), VALUES(0, 0, 0, 0, 0));
    expect(fixture, g_binary(graph, OP_OR, less, even), VALUES(1, 0, 1, 1, 0));
    expect(fixture, g_where(graph, less, x, y), VALUES(-7, -4, -7, 2, 0));
    expect(fixture, g_cast(graph, x, DT_F64), VALUES(-7, 7, -7, 2, 9));
    expect(fixture, g_cast(graph, less, DT_I64), VALUES(1, 0, 1, 0, 0));
    Val z = reals(graph, shape(DT_F64, 1, 4), (double[]){-1.75, 1.75, NAN, 1e300});
    expect(fixture, g_cast(graph, z, DT_I64), VALUES(-1, 1, 0, 0x1p63));
    expect(fixture, g_cast(graph, z, DT_BOOL), VALUES(1, 1, 1, 1));
    expect(fixture, g_reduce(graph, OP_REDUCE_SUM, x, 1), VALUES(4));
    expect(fixture, g_reduce(graph, OP_REDUCE_MIN, x, 1), VALUES(-7));
}

static void stretching(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 2, 2, 1), (double[]){10, 20});
    Val y = reals(graph, shape(DT_F64, 2, 1, 3), (double[]){1, 2, 3});
    expect(fixture, g_binary(graph, OP_ADD, x, y), VALUES(11, 12, 13, 21, 22, 23));
    Val n = g_const(graph, DT_F64, 100);
    expect(fixture, g_binary(graph, OP_SUB, n, y), VALUES(99, 98, 97));
    expect(fixture, g_where(graph, g_binary(graph, OP_LT, x, n), y, n), VALUES(1, 2, 3, 1, 2, 3));
}

// ---- movement ----

static void views(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 2, 2, 4), (double[]){1, 2, 3, 4, 5, 6, 7, 8});
    expect(fixture, g_reshape(graph, x, 1, (Dim[]){dim_fixed(8)}), VALUES(1, 2, 3, 4, 5, 6, 7, 8));
    expect(fixture, g_transpose(graph, x, (uint32_t[]){1, 0}), VALUES(1, 5, 2, 6, 3, 7, 4, 8));
    Val part = g_slice(graph, x, 1, 1, 2), column = g_slice(graph, x, 1, 2, 1);
    expect(fixture, part, VALUES(2, 3, 6, 7));
    expect(fixture, g_expand(graph, column, (Dim[]){dim_fixed(2), dim_fixed(3)}),
           VALUES(3, 3, 3, 7, 7, 7));
    expect(fixture, g_pad(graph, part, 1, 1, 0, -1), VALUES(-1, 2, 3, -1, 6, 7));
    expect(fixture, g_concat(graph, (Val[]){part, x}, 2, 1),
           VALUES(2, 3, 1, 2, 3, 4, 6, 7, 5, 6, 7, 8));
    expect(fixture, g_concat(graph, (Val[]){part, part}, 2, 0), VALUES(2, 3, 6, 7, 2, 3, 6, 7));
    expect(fixture, make(graph, OP_FLIP, &x, 1, (Attr){.n = {1}, .count = 1}, NULL),
           VALUES(4, 3, 2, 1, 8, 7, 6, 5));
    expect(fixture, make(graph, OP_SWAP_PAIRS, &x, 1, (Attr){0}, NULL),
           VALUES(2, 1, 4, 3, 6, 5, 8, 7));
    Val y = input(graph, 0, shape(DT_F64, 2, -1, 2));      // batch 2: parts of it are multiples
    Val three = g_concat(graph, (Val[]){y, g_unary(graph, OP_NEG, y), y}, 3, 0);
    const double *d = fixture->data[0];
    expect(fixture, g_slice(graph, three, 0, 1, 1), VALUES(-d[0], -d[1], -d[2], -d[3]));
}

static void windows(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 2, 2, 4), (double[]){1, 2, 3, 4, 5, 6, 7, 8});
    static const struct { int start; double want[4], grad[8]; } rows[] = {
        {1, {2, 3, 6, 7}, {0, 2, 3, 0, 0, 6, 7, 0}},
        {2, {3, 4, 7, 8}, {0, 0, 3, 4, 0, 0, 7, 8}},
        {9, {3, 4, 7, 8}, {0, 0, 3, 4, 0, 0, 7, 8}},       // as far as there is room
        {-1, {1, 2, 5, 6}, {1, 2, 0, 0, 5, 6, 0, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Val start = g_const(graph, DT_I64, rows[i].start);
        Val window = make(graph, OP_WINDOW, (Val[]){x, start}, 2,
                          (Attr){.n = {1, 2}, .count = 2}, NULL);
        expect(fixture, window, 4, rows[i].want);
        expect(fixture, make(graph, OP_WINDOW_GRAD, (Val[]){window, start}, 2,
                             (Attr){.n = {1, 4}, .count = 2}, NULL),
               8, rows[i].grad);
    }
}

static void choosing(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 3, 2, 3, 2),
                  (double[]){1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
    Val k = ints(graph, shape(DT_I64, 1, 2), (int64_t[]){2, 0});
    Val picked = make(graph, OP_PICK, (Val[]){x, k}, 2, (Attr){.n = {1}, .count = 1}, NULL);
    expect(fixture, picked, VALUES(5, 6, 7, 8));
    expect(fixture, make(graph, OP_PICK_GRAD, (Val[]){picked, k}, 2,
                         (Attr){.n = {1, 3}, .count = 2}, NULL),
           VALUES(0, 0, 0, 0, 5, 6, 7, 8, 0, 0, 0, 0));
    expect(fixture, make(graph, OP_PICK, (Val[]){x, g_unary(graph, OP_SIGN, k)}, 2,
                         (Attr){.n = {2}, .count = 1}, NULL),
           VALUES(2, 4, 6, 7, 9, 11));
    Val table = reals(graph, shape(DT_F64, 2, 3, 2), (double[]){1, 2, 3, 4, 5, 6});
    Val index = ints(graph, shape(DT_I64, 2, 2, 2), (int64_t[]){2, 0, 2, -5});
    Val rows = make(graph, OP_GATHER, (Val[]){table, index}, 2, (Attr){0}, NULL);
    expect(fixture, rows, VALUES(5, 6, 1, 2, 5, 6, 1, 2));
    expect(fixture, make(graph, OP_GATHER_GRAD, (Val[]){rows, index}, 2,
                         (Attr){.n = {4}, .count = 1}, NULL),
           VALUES(2, 4, 0, 0, 10, 12, 0, 0));
}

// ---- reductions and contractions ----

static void reductions(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 3, 2, 1, 3), (double[]){1, -2, 3, 4, 5, -6});
    expect(fixture, g_reduce(graph, OP_REDUCE_SUM, x, 4), VALUES(2, 3));
    expect(fixture, g_reduce(graph, OP_REDUCE_SUM, x, 1), VALUES(5, 3, -3));
    expect(fixture, g_reduce(graph, OP_REDUCE_MAX, x, 5), VALUES(5));
    expect(fixture, g_reduce(graph, OP_REDUCE_MIN, x, 1), VALUES(1, -2, -6));
}

static void contractions(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    const double *x = fixture->data[0], *y = fixture->data[1];
    Val a = input(graph, 0, shape(DT_F64, 3, -1, 3, 5));
    Val b = input(graph, 1, shape(DT_F64, 3, -1, 4, 5));
    double want[24] = {0}, alone[4] = {0}, all = 0;
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 4; j++)
                for (int k = 0; k < 5; k++) {
                    double product = x[(n * 3 + i) * 5 + k] * y[(n * 4 + j) * 5 + k];
                    want[(j * 2 + n) * 3 + i] += product;
                    alone[j] += product;
                    all += product;
                }
    expect(fixture, g_contract(graph, a, b, "bik", "bjk", "jbi"), 24, want);
    expect(fixture, g_contract(graph, a, b, "bik", "bjk", "j"), 4, alone);
    expect(fixture, g_contract(graph, a, b, "bik", "bjk", ""), 1, &all);
    Val n = g_const(graph, DT_F64, 2), row = reals(graph, shape(DT_F64, 1, 2), (double[]){3, 4});
    expect(fixture, g_contract(graph, n, row, "", "i", "i"), VALUES(6, 8));
    expect(fixture, g_contract(graph, row, row, "i", "j", "ij"), VALUES(9, 12, 12, 16));
}

// ---- gradients against differences ----

static double weighted_sum(Fixture *fixture, Val y, Val dy)
{
    double *a = run_raw(fixture, y, DT_F64), *b = run_raw(fixture, dy, DT_F64), sum = 0;
    for (int64_t i = 0; i < elements(val_type(fixture->graph, y)); i++)
        sum += a[i] * b[i];
    free(a);
    free(b);
    return sum;
}

// grad is d sum(y dy) / d input `index`, whose value is x.
static void expect_gradient(Fixture *fixture, Val y, Val dy, Val x, int index, Val grad)
{
    double *have = run_raw(fixture, grad, DT_F64), *data = fixture->data[index];
    for (int64_t i = 0; i < elements(val_type(fixture->graph, x)); i++) {
        double keep_value = data[i], h = 1e-3, difference[2];
        for (int j = 0; j < 2; j++) {                     // two step widths: error h^4
            double step = h * (1 + j);
            data[i] = keep_value + step;
            double up = weighted_sum(fixture, y, dy);
            data[i] = keep_value - step;
            difference[j] = (up - weighted_sum(fixture, y, dy)) / (2 * step);
            data[i] = keep_value;
        }
        double want = (4 * difference[0] - difference[1]) / 3;
        if (!near_to(have[i], want, 1e-7))
            fail_msg("%s: element %lld is %.12g, by differences %.12g",
                     op_info[val_get(fixture->graph, grad)->op].name, (long long)i, have[i], want);
    }
    free(have);
}

// y [b, o, oh, ow] of x [b, c, h, w], w [o, c / groups, kh, kw], by the definition.
static void define_conv(const double *x, const int *xs, const double *w, const int *ws,
                        const int *attr, double *y, const int *ys)
{
    int groups = attr[0], per = ws[0] / groups;
    for (int at = 0; at < ys[0] * ys[1] * ys[2] * ys[3]; at++) {
        int ow = at % ys[3], oh = at / ys[3] % ys[2], o = at / ys[3] / ys[2] % ys[1];
        int n = at / ys[3] / ys[2] / ys[1];
        y[at] = 0;
        for (int k = 0; k < ws[1] * ws[2] * ws[3]; k++) {
            int kw = k % ws[3], kh = k / ws[3] % ws[2], i = k / ws[3] / ws[2];
            int h = oh * attr[1] + kh - attr[3], v = ow * attr[2] + kw - attr[4];
            if (h >= 0 && h < xs[2] && v >= 0 && v < xs[3])
                y[at] += x[((n * xs[1] + o / per * ws[1] + i) * xs[2] + h) * xs[3] + v] *
                         w[o * ws[1] * ws[2] * ws[3] + k];
        }
    }
}

static void convolutions(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Type xt = shape(DT_F64, 4, -1, 4, 5, 6), wt = shape(DT_F64, 4, 6, 2, 3, 2);
    Val x = input(graph, 0, xt), w = input(graph, 1, wt);
    Attr attr = {.n = {2, 2, 2, 3, 0, 1, 2, 0}, .count = 8};
    Val y = make(graph, OP_CONV, (Val[]){x, w}, 2, attr, NULL);
    double want[ROOM];
    define_conv(fixture->data[0], (int[]){2, 4, 5, 6}, fixture->data[1], (int[]){6, 2, 3, 2},
                (int[]){2, 2, 3, 1, 2}, want, (int[]){2, 6, 3, 3});
    expect(fixture, y, 2 * 6 * 3 * 3, want);
    Val dy = input(graph, 2, *val_type(graph, y));
    expect_gradient(fixture, y, dy, x, 0, make(graph, OP_CONV_DGRAD, (Val[]){dy, w}, 2, attr, &xt));
    expect_gradient(fixture, y, dy, w, 1, make(graph, OP_CONV_WGRAD, (Val[]){x, dy}, 2, attr, &wt));
}

static void convolutions_of_one_and_three_axes(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 3, 1, 1, 4), (double[]){1, 2, 3, 4});
    Val w = reals(graph, shape(DT_F64, 3, 1, 1, 3), (double[]){1, 0, -1});
    Attr line = {.n = {1, 1, 1, 0, 0, 1, 0, 0}, .count = 8};
    expect(fixture, make(graph, OP_CONV, (Val[]){x, w}, 2, line, NULL), VALUES(-2, -2, -2, 3));
    Type xt = shape(DT_F64, 5, -1, 2, 3, 2, 3), wt = shape(DT_F64, 5, 2, 2, 2, 1, 2);
    Val a = input(graph, 0, xt), b = input(graph, 1, wt);
    Attr space = {.n = {3, 1, 1, 1, 2, 1, 0, 1}, .count = 8};
    Val y = make(graph, OP_CONV, (Val[]){a, b}, 2, space, NULL);
    assert_string_equal(type_text(val_type(graph, y)), "f64[b, 2, 4, 2, 2]");
    Val dy = input(graph, 2, *val_type(graph, y));
    expect_gradient(fixture, y, dy, a, 0,
                    make(graph, OP_CONV_DGRAD, (Val[]){dy, b}, 2, space, &xt));
    expect_gradient(fixture, y, dy, b, 1,
                    make(graph, OP_CONV_WGRAD, (Val[]){a, dy}, 2, space, &wt));
}

// ---- composites ----

static void softmax(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = reals(graph, shape(DT_F64, 2, 2, 3), (double[]){1, 2, 3, 1000, 1000, -INFINITY});
    double e = exp(1), sum = 1 + e + e * e;
    expect(fixture, g_unary(graph, OP_SOFTMAX, x),
           VALUES(1 / sum, e / sum, e * e / sum, 0.5, 0.5, 0));
}

// Mean and 1 / sqrt(variance + 0.01) of x[0], x[stride] ...
static void moments(const double *x, int count, double *mean, double *rstd)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) {
        sum += x[i];
        squares += x[i] * x[i];
    }
    *mean = sum / count;
    *rstd = 1 / sqrt(squares / count - *mean * *mean + 0.01);
}

static void layer_norm(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = input(graph, 0, shape(DT_F64, 3, -1, 3, 5)), dy = input(graph, 3, *val_type(graph, x));
    Val gamma = input(graph, 1, shape(DT_F64, 1, 5)), beta = input(graph, 2, shape(DT_F64, 1, 5));
    double y[30], plain[30], mean[6], rstd[6];
    for (int i = 0; i < 30; i++) {
        moments(fixture->data[0] + i / 5 * 5, 5, &mean[i / 5], &rstd[i / 5]);
        plain[i] = (fixture->data[0][i] - mean[i / 5]) * rstd[i / 5];
        y[i] = plain[i] * fixture->data[1][i % 5] + fixture->data[2][i % 5];
    }
    Attr eps = {.real = 0.01};
    Val full = make(graph, OP_LAYER_NORM, (Val[]){x, gamma, beta}, 3, eps, NULL);
    Val bare = make(graph, OP_LAYER_NORM, &x, 1, eps, NULL);
    expect(fixture, full, 30, y);
    expect(fixture, full + 1, 6, mean);
    expect(fixture, full + 2, 6, rstd);
    expect(fixture, bare, 30, plain);
    Val grad = make(graph, OP_LAYER_NORM_GRAD, (Val[]){dy, x, full + 1, full + 2, gamma}, 5,
                    (Attr){0}, NULL);
    expect_gradient(fixture, full, dy, x, 0, grad);
    expect_gradient(fixture, full, dy, gamma, 1, grad + 1);
    expect_gradient(fixture, full, dy, beta, 2, grad + 2);
    grad = make(graph, OP_LAYER_NORM_GRAD, (Val[]){dy, x, bare + 1, bare + 2}, 4, (Attr){0}, NULL);
    expect_gradient(fixture, bare, dy, x, 0, grad);
}

static void group_norm(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Type type = shape(DT_F64, 4, -1, 6, 2, 2);
    Val x = input(graph, 0, type), gamma = input(graph, 1, shape(DT_F64, 1, 6));
    Val beta = input(graph, 2, shape(DT_F64, 1, 6)), dy = input(graph, 3, type);
    double y[48], mean[6], rstd[6];
    for (int i = 0; i < 48; i++) {
        int group = i / 8, c = i / 4 % 6;
        moments(fixture->data[0] + group * 8, 8, &mean[group], &rstd[group]);
        y[i] = (fixture->data[0][i] - mean[group]) * rstd[group] * fixture->data[1][c] +
               fixture->data[2][c];
    }
    Val norm = make(graph, OP_GROUP_NORM, (Val[]){x, gamma, beta}, 3,
                    (Attr){.n = {3}, .count = 1, .real = 0.01}, NULL);
    expect(fixture, norm, 48, y);
    expect(fixture, norm + 1, 6, mean);
    expect(fixture, norm + 2, 6, rstd);
    Val grad = make(graph, OP_GROUP_NORM_GRAD, (Val[]){dy, x, norm + 1, norm + 2, gamma}, 5,
                    (Attr){.n = {3}, .count = 1}, NULL);
    expect_gradient(fixture, norm, dy, x, 0, grad);
    expect_gradient(fixture, norm, dy, gamma, 1, grad + 1);
    expect_gradient(fixture, norm, dy, beta, 2, grad + 2);
}

// The table by its formula; with scale and shift, that of the norm that they follow.
static void group_norm_table(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = input(graph, 0, shape(DT_F64, 4, -1, 6, 2, 2)),
        gamma = input(graph, 1, shape(DT_F64, 1, 6));
    Val beta = input(graph, 2, shape(DT_F64, 1, 6));
    Val scale = input(graph, 3, shape(DT_F64, 4, -1, 6, 1, 1));
    Val shift = input(graph, 4, shape(DT_F64, 4, -1, 6, 1, 1));
    double plain[24], modulated[24], mean[6], rstd[6];
    for (int i = 0; i < 12; i++) {
        int image = i / 6, c = i % 6, group = i / 2, at = image * 12 + c;
        moments(fixture->data[0] + group * 8, 8, &mean[group], &rstd[group]);
        plain[at] = rstd[group] * fixture->data[1][c];
        plain[at + 6] = fixture->data[2][c] - mean[group] * plain[at];
        modulated[at] = plain[at] * (1 + fixture->data[3][i]);
        modulated[at + 6] = plain[at + 6] * (1 + fixture->data[3][i]) + fixture->data[4][i];
    }
    Attr attr = {.n = {3}, .count = 1, .real = 0.01};
    Val table = make(graph, OP_GROUP_NORM_TABLE, (Val[]){x, gamma, beta}, 3, attr, NULL);
    expect(fixture, table, 24, plain);
    expect(fixture, table + 1, 6, mean);
    expect(fixture, table + 2, 6, rstd);
    Val in[] = {x, gamma, beta, scale, shift};
    table = make(graph, OP_GROUP_NORM_TABLE, in, 5, attr, NULL);
    expect(fixture, table, 24, modulated);
}

// Of the moments of two halves of the positions, the table of all of them.
static void tables_of_parts(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = input(graph, 0, shape(DT_F64, 4, -1, 6, 2, 2)),
        gamma = input(graph, 1, shape(DT_F64, 1, 6));
    Val beta = input(graph, 2, shape(DT_F64, 1, 6)), parts[2];
    double of_half[24], plain[24];
    for (int i = 0; i < 12; i++) {
        const double *first = fixture->data[0] + i * 4;
        of_half[i / 6 * 12 + i % 6] = (first[0] + first[1]) / 2;
        of_half[i / 6 * 12 + 6 + i % 6] = (first[0] - first[1]) * (first[0] - first[1]) / 2;
        double mean, rstd;
        moments(fixture->data[0] + i / 2 * 8, 8, &mean, &rstd);
        plain[i / 6 * 12 + i % 6] = rstd * fixture->data[1][i % 6];
        plain[i / 6 * 12 + 6 + i % 6] =
            fixture->data[2][i % 6] - mean * rstd * fixture->data[1][i % 6];
    }
    for (int i = 0; i < 2; i++) {
        Val half = g_slice(graph, x, 2, i, 1);
        parts[i] = make(graph, OP_CHANNEL_MOMENTS, &half, 1, (Attr){0}, NULL);
    }
    expect(fixture, parts[0], 24, of_half);
    Attr attr = {.n = {3, 2, 2}, .count = 3, .real = 0.01};
    Val in[] = {g_concat(graph, parts, 2, 1), gamma, beta};
    expect(fixture, make(graph, OP_GROUP_NORM_TABLE, in, 3, attr, NULL), 24, plain);
}

// o and lse of q [2, 3, 2], k [2, 4, 2], v [2, 4, 3] by the definition.
static void define_attention(double data[][ROOM], bool causal, bool masked, double *o, double *lse)
{
    for (int row = 0; row < 6; row++) {
        int n = row / 3, i = row % 3;
        double p[4], sum = 0;
        for (int j = 0; j < 4; j++) {
            double s = 0;
            for (int d = 0; d < 2; d++)
                s += data[0][row * 2 + d] * data[1][(n * 4 + j) * 2 + d];
            sum += p[j] = causal && j > i ? 0 : exp(0.5 * s + (masked ? data[3][i * 4 + j] : 0));
        }
        for (int l = 0; l < 3; l++) {
            o[row * 3 + l] = 0;
            for (int j = 0; j < 4; j++)
                o[row * 3 + l] += p[j] / sum * data[2][(n * 4 + j) * 3 + l];
        }
        lse[row] = log(sum);
    }
}

static void attention(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val in[4] = {input(graph, 0, shape(DT_F64, 3, -1, 3, 2)),
                 input(graph, 1, shape(DT_F64, 3, -1, 4, 2)),
                 input(graph, 2, shape(DT_F64, 3, -1, 4, 3)),
                 input(graph, 3, shape(DT_F64, 3, 1, 3, 4))};
    Val d_o = input(graph, 4, shape(DT_F64, 3, -1, 3, 3));
    for (int form = 0; form < 4; form++) {
        bool causal = form & 1, masked = form & 2;
        Attr attr = {.n = {causal}, .count = 1, .real = 0.5};
        Val o = make(graph, OP_ATTENTION, in, masked ? 4 : 3, attr, NULL);
        double want[18], lse[6];
        define_attention(fixture->data, causal, masked, want, lse);
        expect(fixture, o, 18, want);
        expect(fixture, o + 1, 6, lse);
        Val operands[] = {d_o, in[0], in[1], in[2], o, o + 1, in[3]};
        Val grad = make(graph, OP_ATTENTION_GRAD, operands, masked ? 7 : 6, attr, NULL);
        for (unsigned i = 0; i < 3; i++)
            expect_gradient(fixture, o, d_o, in[i], (int)i, grad + i);
    }
}

// ---- float arithmetic ----

static void floats_round_at_every_operation(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = g_const(graph, DT_F32, 0.1), y = g_const(graph, DT_F32, 0.7);
    Val z = g_binary(graph, OP_SUB, g_binary(graph, OP_MUL, x, y), g_const(graph, DT_F32, 0.07));
    volatile float product = 0.1f * 0.7f, want = product - 0.07f;
    float *single = run_raw(fixture, z, DT_F32), *wide = run_raw(fixture, z, DT_F64);
    assert_true(*single == want);
    assert_true(*wide == (float)((double)0.1f * (double)0.7f - (double)0.07f));
    assert_true(*single != *wide);
    free(single);
    free(wide);
    float *e = run_raw(fixture, g_unary(graph, OP_EXP, x), DT_F32);
    assert_true(fabs((double)*e - exp((double)0.1f)) < 2e-7);
    free(e);
}

static void several_results_at_once(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    Val x = g_const(graph, DT_F64, 3), y = g_unary(graph, OP_NEG, x);
    Val vals[] = {y, x, y};
    void *results[3];
    InterpOptions options = {.batch = 1, .real = DT_F64};
    assert_int_equal(interp_run(graph, &options, vals, 3, results), 0);
    static const double want[] = {-3, 3, -3};
    for (int i = 0; i < 3; i++) {
        assert_true(*(double *)results[i] == want[i]);
        free(results[i]);
    }
}

// Runs last: sources that only the caller knows are all that may be left.
static void every_operation_was_tested(void **state)
{
    (void)state;
    for (int i = 0; i < OP_COUNT; i++)
        if (!tested[i] && i != OP_PARAM && i != OP_OPTION && i != OP_GIVEN && i != OP_VAR &&
            i != OP_LOSS_SCALE && i != OP_RANDOM)
            fail_msg("no test runs %s", op_info[i].name);
}

// ---- operation counts ----

static void operation_counts(void **state)
{
    Graph *graph = ((Fixture *)*state)->graph;
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 64));
    Val w = input(graph, 1, shape(DT_F32, 2, 32, 64));
    Val image = input(graph, 2, shape(DT_F32, 4, -1, 8, 16, 16));
    Val kernel = input(graph, 3, shape(DT_F32, 4, 4, 8, 3, 3));
    Type image_type = *val_type(graph, image), kernel_type = *val_type(graph, kernel);
    Attr attr = {.n = {2, 1, 1, 1, 0, 1, 1, 0}, .count = 8};
    Val y = make(graph, OP_CONV, (Val[]){image, kernel}, 2, attr, NULL);
    Val q = input(graph, 4, shape(DT_F32, 3, -1, 10, 8));
    double conv = 2.0 * 4 * 16 * 16 * 8 * 9, pairs = 10 * 10;
    struct { Val val; double fixed, per_batch; } rows[] = {
        {g_contract(graph, x, w, "bi", "oi", "bo"), 0, 2 * 32 * 64},
        {g_contract(graph, w, w, "oi", "oj", "ij"), 2.0 * 32 * 64 * 64, 0},
        {y, 0, conv},
        {make(graph, OP_CONV_DGRAD, (Val[]){y, kernel}, 2, attr, &image_type), 0, conv},
        {make(graph, OP_CONV_WGRAD, (Val[]){image, y}, 2, attr, &kernel_type), 0, conv},
        {make(graph, OP_ATTENTION, (Val[]){q, q, q}, 3, (Attr){.n = {0}, .count = 1}, NULL), 0,
         2 * pairs * 16},
        {g_unary(graph, OP_NEG, x), 0, 64},
        {g_transpose(graph, x, (uint32_t[]){1, 0}), 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double fixed, per_batch;
        node_flops(graph, val_node(rows[i].val), &fixed, &per_batch);
        assert_true(fixed == rows[i].fixed && per_batch == rows[i].per_batch);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(sources), TEST(real_functions), TEST(real_pairs), TEST(integers), TEST(stretching),
        TEST(views), TEST(windows), TEST(choosing), TEST(reductions), TEST(contractions),
        TEST(convolutions), TEST(convolutions_of_one_and_three_axes), TEST(softmax),
        TEST(layer_norm), TEST(group_norm), TEST(group_norm_table), TEST(tables_of_parts),
        TEST(attention),
        TEST(floats_round_at_every_operation), TEST(several_results_at_once),
        TEST(operation_counts), TEST(every_operation_was_tested),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
