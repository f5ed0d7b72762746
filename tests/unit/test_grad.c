// link: pvdm_compiler
// Gradients against central differences, in f64 through the reference evaluator.
//
// For every operation of ops.def there is either a row in `rows`, which builds a graph around it,
// or an entry in `no_gradient`; the last test fails when an operation has neither. Each row is
// checked element by element: loss = sum(y * weights), so that no two elements of y are alike.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/gradient_bench.h"

typedef struct Row {
    Op op;
    const char *name;
    Val (*build)(Bench *bench, const struct Row *row);
    double lo, hi;
    int64_t form[8];
} Row;

static Val integers(Bench *bench, uint32_t rank, const int64_t *dims, const int64_t *values)
{
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++)
        dim[i] = dim_fixed(dims[i]);
    Type type = type_make(DT_I64, rank, dim);
    return g_table(bench->graph, &type, values);
}

static bool uses(const Graph *graph, NodeId id, Op op)
{
    for (NodeId at = id; at > 0; at--)
        if (graph_node(graph, at)->op == op)
            return true;
    return false;
}

static void check_row(const Row *row)
{
    Arena *arena = arena_new();
    Bench bench = {.graph = graph_new(arena), .seed = 7 + (uint64_t)row->op};
    Val y = row->build(&bench, row);
    if (!y)
        fail_msg("%s: %s", row->name, graph_error(bench.graph));
    if (row->op < OP_COUNT && !uses(bench.graph, val_node(y), row->op))
        fail_msg("the row '%s' does not use its operation", row->name);
    check_gradients(&bench, row->name, weigh(&bench, y));
    for (uint32_t v = 0; v < bench.count; v++)
        free(bench.data[v]);
    arena_free(arena);
}

// ---- builders ----

static Val build_unary(Bench *bench, const Row *row)
{
    Val x = variable(bench, row->lo, row->hi, DIMS(-1, 3, 2));
    if (row->op == OP_CAST)
        return g_cast(bench->graph, g_cast(bench->graph, x, DT_F32), DT_F64);
    return g_unary(bench->graph, row->op, x);
}

// form 0: equal shapes; 1: both stretch; 2: x is a number; 3: y is; 4: y constant
static Val build_binary(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    double lo = row->lo, hi = row->hi;
    Val x, y;
    switch (row->form[0]) {
    case 0:
        x = variable(bench, lo, hi, DIMS(-1, 3));
        y = variable(bench, lo, hi, DIMS(-1, 3));
        break;
    case 1:
        x = variable(bench, lo, hi, DIMS(-1, 1, 2));
        y = variable(bench, lo, hi, DIMS(1, 3, 2));
        break;
    case 2:
        x = variable(bench, lo, hi, 0, NULL);
        y = variable(bench, lo, hi, DIMS(3, -1));
        break;
    case 3:
        x = variable(bench, lo, hi, DIMS(3, -1));
        y = variable(bench, lo, hi, 0, NULL);
        break;
    default:
        x = variable(bench, lo, hi, DIMS(3, 2));
        y = g_const(graph, DT_F64, 2.5);
        break;
    }
    return g_binary(graph, row->op, x, y);
}

static Val build_where(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    Val x = variable(bench, row->lo, row->hi, DIMS(-1, 3));
    Val y = row->form[0] ? variable(bench, row->lo, row->hi, 0, NULL)
                         : variable(bench, row->lo, row->hi, DIMS(1, 3));
    bool flags[3] = {true, false, true};
    Type type = type_make(DT_BOOL, 2, (Dim[]){dim_fixed(1), dim_fixed(3)});
    return g_where(graph, g_table(graph, &type, flags), x, y);
}

// Of x * x, so that the gradient of the movement is not the only factor.
static Val square(Bench *bench, Val x)
{
    return g_binary(bench->graph, OP_MUL, x, x);
}

static Val build_movement(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    const int64_t *form = row->form;
    Val x = variable(bench, row->lo, row->hi, DIMS(-2, 3, 4));
    Dim dim[3] = {dim_batch(3), dim_fixed(2), dim_fixed(4)};
    Dim wide[4] = {dim_batch(2), dim_fixed(3), dim_fixed(5), dim_fixed(4)};
    Dim narrow[4] = {dim_batch(2), dim_fixed(3), dim_fixed(1), dim_fixed(4)};
    Val start = g_const(graph, DT_I64, 1);
    switch ((int)row->op) {
    case OP_RESHAPE:
        return square(bench, g_reshape(graph, x, 3, dim));
    case OP_TRANSPOSE:
        return square(bench, g_transpose(graph, x, (uint32_t[]){2, 0, 1}));
    case OP_EXPAND:
        return g_expand(graph, g_reshape(graph, square(bench, x), 4, narrow), wide);
    case OP_SLICE:
        return square(bench, g_slice(graph, x, (uint32_t)form[0], form[1], form[2]));
    case OP_PAD:
        return square(bench, g_pad(graph, x, 1, form[0], form[1], 0.5));
    case OP_FLIP:
        return graph_make(graph, OP_FLIP, (Val[]){square(bench, x)}, 1,
                          &(Attr){.n = {form[0]}, .count = 1}, NULL);
    case OP_SWAP_PAIRS:
        return g_unary(graph, OP_SWAP_PAIRS, square(bench, x));
    case OP_WINDOW:
        return square(bench, compose_window(graph, x, start, 2, form[0]));
    case OP_WINDOW_GRAD:
        return square(bench, graph_make(graph, OP_WINDOW_GRAD, (Val[]){x, start}, 2,
                                        &(Attr){.n = {1, 5}, .count = 2}, NULL));
    default:
        return 0;
    }
}

// All of x by overlapping and touching slices, some of them twice.
static Val build_slices(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 6));
    Val parts[5] = {
        g_slice(graph, x, 1, 0, 2),
        g_slice(graph, x, 1, 2, 2),
        g_slice(graph, x, 1, 3, 3),
        g_slice(graph, x, 1, 1, 4),
        square(bench, g_slice(graph, x, 1, 2, 2)),
    };
    return g_binary(graph, OP_ADD, square(bench, g_concat(graph, parts, 5, 1)),
                    g_const(graph, DT_F64, 1));
}

static Val build_concat(Bench *bench, const Row *row)
{
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 2)), y = variable(bench, -1, 1, DIMS(-1, 3));
    return square(bench, g_concat(bench->graph, (Val[]){x, y, x}, 3, 1));
}

static Val build_pick(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    Val k = integers(bench, DIMS(3), (int64_t[]){1, 0, 3});
    if (row->op == OP_PICK_GRAD) {
        Val dy = variable(bench, -1, 1, DIMS(3, 2));
        return square(bench, graph_make(graph, OP_PICK_GRAD, (Val[]){dy, k}, 2,
                                        &(Attr){.n = {1, 4}, .count = 2}, NULL));
    }
    Val x = row->form[0] == 1 ? variable(bench, -1, 1, DIMS(3, 4, 2))
                              : variable(bench, -1, 1, DIMS(3, 2, 4));
    return square(bench, compose_pick(graph, x, k, row->form[0]));
}

static Val build_gather(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    Val k = integers(bench, DIMS(2, 2), (int64_t[]){1, 0, 1, 3});
    if (row->op == OP_GATHER) {
        Val x = variable(bench, -1, 1, DIMS(4, 3));
        return square(bench, compose_embedding(graph, x, k));
    }
    Val dy = variable(bench, -1, 1, DIMS(2, 2, 3));
    return square(bench, graph_make(graph, OP_GATHER_GRAD, (Val[]){dy, k}, 2,
                                    &(Attr){.n = {4}, .count = 1}, NULL));
}

static Val build_reduce(Bench *bench, const Row *row)
{
    Val x = variable(bench, -1, 1, DIMS(-1, 3, 2));
    return square(bench, g_reduce(bench->graph, row->op, x, (uint32_t)row->form[0]));
}

static Val build_contract(Bench *bench, const Row *row)
{
    static const struct {
        int64_t x[4], y[4];
        uint32_t rank_x, rank_y;
        const char *labels[3];
    } forms[] = {
        {{-1, 2, 3}, {3, 4}, 3, 2, {"bik", "kj", "bij"}},
        {{-1, 2, 3}, {-1, 4, 3}, 3, 3, {"bik", "bjk", "bji"}},
        {{2, 3}, {3, 2}, 2, 2, {"ik", "ki", ""}},
        {{2, 3}, {4}, 2, 1, {"ik", "j", "ij"}}, // k is summed alone
        {{-1, 3}, {-1, 4}, 2, 2, {"bi", "bj", "ij"}},
    };
    int64_t form = row->form[0];
    Val x = variable(bench, -1, 1, forms[form].rank_x, forms[form].x);
    Val y = variable(bench, -1, 1, forms[form].rank_y, forms[form].y);
    return g_contract(bench->graph, x, y, forms[form].labels[0], forms[form].labels[1],
                      forms[form].labels[2]);
}

// form: axes, groups, stride, pad, size
static Val build_conv(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    const int64_t *form = row->form;
    uint32_t axes = (uint32_t)form[0];
    int64_t groups = form[1], n = form[4], k = axes == 3 ? 2 : 3;
    int64_t out = (n + 2 * form[3] - k) / form[2] + 1;
    int64_t x[5] = {-1, 2 * groups, n, n, n}, w[5] = {2 * groups, 2, k, k, k};
    int64_t y[5] = {-1, 2 * groups, out, out, out};
    if (axes == 2)
        x[3] = n, y[3] = out;
    Attr attr = {.n = {axes, groups, 1, 1, 1, 0, 0, 0}, .count = 8};
    for (uint32_t i = 0; i < axes; i++) {
        attr.n[2 + i] = form[2];
        attr.n[5 + i] = form[3];
    }
    Type type = type_make(
        DT_F64, axes + 2,
        (Dim[]){dim_batch(1), dim_fixed(2 * groups), dim_fixed(n), dim_fixed(n), dim_fixed(n)});
    Type type_w = type_make(
        DT_F64, axes + 2,
        (Dim[]){dim_fixed(2 * groups), dim_fixed(2), dim_fixed(k), dim_fixed(k), dim_fixed(k)});
    Val first = variable(bench, -1, 1, axes + 2, row->op == OP_CONV_DGRAD ? y : x);
    Val second = variable(bench, -1, 1, axes + 2, row->op == OP_CONV_WGRAD ? y : w);
    const Type *given = row->op == OP_CONV_DGRAD   ? &type
                        : row->op == OP_CONV_WGRAD ? &type_w
                                                   : NULL;
    return graph_make(graph, row->op, (Val[]){first, second}, 2, &attr, given);
}

static Val build_softmax(Bench *bench, const Row *row)
{
    Val x = variable(bench, -2, 2, DIMS(-1, 2, 4));
    return compose_softmax(bench->graph, x, row->form[0]);
}

static Val build_norm(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    if (row->op == OP_GROUP_NORM) {
        Val x = row->form[1] ? variable(bench, -1, 1, DIMS(-1, 4, 2, 3))
                             : variable(bench, -1, 1, DIMS(-1, 4, 3));
        Val gamma = variable(bench, 0.5, 2, DIMS(4)), beta = variable(bench, -1, 1, DIMS(4));
        return compose_group_norm(graph, x, gamma, beta, row->form[0], 1e-5);
    }
    Val x = variable(bench, -1, 1, DIMS(-1, 2, 5));
    if (!row->form[0])
        return compose_layer_norm(graph, x, 0, 0, 1e-5);
    Val gamma = variable(bench, 0.5, 2, DIMS(5)), beta = variable(bench, -1, 1, DIMS(5));
    return compose_layer_norm(graph, x, gamma, beta, 1e-5);
}

// form: causal, mask (0 none, 1 bool, 2 learned)
static Val build_attention(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    Val q = variable(bench, -1, 1, DIMS(-1, 2, 3, 2)),
        k = variable(bench, -1, 1, DIMS(-1, 2, 4, 2));
    Val v = variable(bench, -1, 1, DIMS(-1, 2, 4, 3)), mask = 0;
    bool flags[12] = {1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1};
    Type type = type_make(DT_BOOL, 2, (Dim[]){dim_fixed(3), dim_fixed(4)});
    if (row->form[1] == 1)
        mask = g_table(graph, &type, flags);
    if (row->form[1] == 2)
        mask = variable(bench, -1, 1, DIMS(1, 2, 3, 4));
    return compose_attention(graph, q, k, v, mask, 0.7, row->form[0]);
}

static Val build_attention_rank5(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    (void)row;
    Val q = variable(bench, -1, 1, DIMS(2, 1, 2, 2, 2)),
        k = variable(bench, -1, 1, DIMS(2, 1, 2, 3, 2));
    Val mask = variable(bench, -1, 1, DIMS(1, 2, 2, 3));
    return compose_attention(graph, q, k, k, mask, 1, false);
}

// ---- composites that have no operation of their own ----

static Val build_linear(Bench *bench, const Row *row)
{
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 2, 3)), w = variable(bench, -1, 1, DIMS(4, 3));
    return compose_linear(bench->graph, x, w, variable(bench, -1, 1, DIMS(4)));
}

static Val build_pointwise(Bench *bench, const Row *row)
{
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 2, 3, 2)), w = variable(bench, -1, 1, DIMS(3, 2, 1, 1));
    return compose_conv(bench->graph, x, w, variable(bench, -1, 1, DIMS(3)), NULL, NULL, 1);
}

static Val build_conv_transpose(Bench *bench, const Row *row)
{
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 2, 2, 3)), w = variable(bench, -1, 1, DIMS(2, 3, 3, 3));
    return compose_conv_transpose(bench->graph, x, w, variable(bench, -1, 1, DIMS(3)),
                                  (int64_t[]){2, 2}, (int64_t[]){1, 1});
}

static Val build_rms_norm(Bench *bench, const Row *row)
{
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 4));
    return compose_rms_norm(bench->graph, x, variable(bench, 0.5, 2, DIMS(4)), 1e-5);
}

static Val build_batch_norm(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    Val x = variable(bench, -1, 1, DIMS(-2, 3, 2)), gamma = variable(bench, 0.5, 2, DIMS(3));
    Val beta = variable(bench, -1, 1, DIMS(3));
    Type type = type_make(DT_F64, 1, (Dim[]){dim_fixed(3)});
    Val mean = g_table(graph, &type, (double[]){0.1, -0.2, 0.3});
    Val var = g_table(graph, &type, (double[]){0.5, 1.2, 2});
    return compose_batch_norm(graph, x, gamma, beta, mean, var, 1e-5, 0.1, row->form[0]).y;
}

static Val build_rotary(Bench *bench, const Row *row)
{
    (void)row;
    Val x = variable(bench, -1, 1, DIMS(-1, 2, 3, 4));
    return compose_rotary(bench->graph, x, variable(bench, -2, 2, DIMS(3, 4)));
}

static Val build_simple(Bench *bench, const Row *row)
{
    Graph *graph = bench->graph;
    Val x = variable(bench, row->lo, row->hi, DIMS(-1, 2, 5, 4));
    switch (row->form[0]) {
    case 0:
        return compose_avg_pool(graph, x, 2);
    case 1:
        return compose_max_pool(graph, x, 2);
    case 2:
        return compose_resize_nearest(graph, x, 2);
    case 3:
        return compose_resize_linear(graph, x, (int64_t[]){3, 7}, 2);
    case 4:
        return compose_clamp(graph, x, g_const(graph, DT_F64, -0.5), g_const(graph, DT_F64, 0.25));
    case 5:
        return compose_leaky_relu(graph, x, 0.2);
    case 6:
        return square(bench, compose_mean(graph, x));
    case 7:
        return compose_var(graph, x);
    case 8:
        return square(bench, compose_max(graph, x));
    case 9:
        return compose_pow(graph, x, g_const(graph, DT_F64, 3));
    case 10:
        return compose_pow(graph, x, g_const(graph, DT_F64, -0.5));
    case 11:
        return compose_log2(graph, x);
    case 12:
        return square(
            bench, compose_pad(graph, x, (int64_t[]){0, 1, 0, 2}, (int64_t[]){0, 0, 1, 1}, 4, 0));
    case 13:
        return square(bench, compose_index(graph, x, -1, -2));
    default:
        return 0;
    }
}

// ---- rows ----

// clang-format off
#define UNARY(op, lo, hi) {OP_##op, #op, build_unary, lo, hi, {0}}
#define BINARY(op, form, lo, hi) {OP_##op, #op " " #form, build_binary, lo, hi, {form}}
#define ROW(op, build, lo, hi, ...) \
    {OP_##op, #op " {" #__VA_ARGS__ "}", build, lo, hi, {__VA_ARGS__}}
#define COMPOSITE(name, build, lo, hi, ...) {OP_COUNT, name, build, lo, hi, {__VA_ARGS__}}
// clang-format on

static const Row rows[] = {
    UNARY(NEG, -1, 1),
    UNARY(ABS, 0.1, 1),
    UNARY(ABS, -1, -0.1),
    UNARY(SQRT, 0.5, 2),
    UNARY(RSQRT, 0.5, 2),
    UNARY(EXP, -1, 1),
    UNARY(LOG, 0.5, 2),
    UNARY(SIN, -3, 3),
    UNARY(COS, -3, 3),
    UNARY(TANH, -2, 2),
    UNARY(ERF, -2, 2),
    UNARY(SIGMOID, -3, 3),
    UNARY(SOFTPLUS, -3, 3),
    UNARY(RELU, 0.1, 1),
    UNARY(RELU, -1, -0.1),
    UNARY(SILU, -3, 3),
    UNARY(GELU, -3, 3),
    UNARY(GELU_TANH, -3, 3),
    BINARY(ADD, 0, -1, 1),
    BINARY(ADD, 1, -1, 1),
    BINARY(ADD, 2, -1, 1),
    BINARY(SUB, 0, -1, 1),
    BINARY(SUB, 1, -1, 1),
    BINARY(SUB, 3, -1, 1),
    BINARY(MUL, 0, -1, 1),
    BINARY(MUL, 1, -1, 1),
    BINARY(MUL, 2, -1, 1),
    BINARY(DIV, 0, 0.5, 2),
    BINARY(DIV, 1, 0.5, 2),
    BINARY(DIV, 3, 0.5, 2),
    BINARY(MOD, 0, 1.1, 1.9),
    BINARY(MOD, 1, 1.1, 1.9),
    BINARY(POW, 0, 0.5, 2),
    BINARY(POW, 1, 0.5, 2),
    BINARY(POW, 4, 0.5, 2),
    BINARY(MIN, 0, -1, 1),
    BINARY(MIN, 1, -1, 1),
    BINARY(MAX, 0, -1, 1),
    BINARY(MAX, 3, -1, 1),
    ROW(WHERE, build_where, -1, 1, 0),
    ROW(WHERE, build_where, -1, 1, 1),
    ROW(RESHAPE, build_movement, -1, 1, 0),
    ROW(TRANSPOSE, build_movement, -1, 1, 0),
    ROW(EXPAND, build_movement, -1, 1, 0),
    ROW(SLICE, build_movement, -1, 1, 1, 1, 2),
    ROW(SLICE, build_movement, -1, 1, 0, 1, 1),
    ROW(SLICE, build_slices, -1, 1, 0),
    ROW(PAD, build_movement, -1, 1, 1, 2),
    ROW(CONCAT, build_concat, -1, 1, 0),
    ROW(FLIP, build_movement, -1, 1, 1),
    ROW(FLIP, build_movement, -1, 1, 2),
    ROW(SWAP_PAIRS, build_movement, -1, 1, 0),
    ROW(WINDOW, build_movement, -1, 1, 1),
    ROW(WINDOW, build_movement, -1, 1, 2),
    ROW(WINDOW_GRAD, build_movement, -1, 1, 1),
    ROW(PICK, build_pick, -1, 1, 1),
    ROW(PICK, build_pick, -1, 1, 2),
    ROW(PICK_GRAD, build_pick, -1, 1, 1),
    ROW(GATHER, build_gather, -1, 1, 0),
    ROW(GATHER_GRAD, build_gather, -1, 1, 0),
    ROW(REDUCE_SUM, build_reduce, -1, 1, 1),
    ROW(REDUCE_SUM, build_reduce, -1, 1, 6),
    ROW(REDUCE_MAX, build_reduce, -1, 1, 2),
    ROW(REDUCE_MAX, build_reduce, -1, 1, 5),
    ROW(REDUCE_MIN, build_reduce, -1, 1, 4),
    ROW(CONTRACT, build_contract, -1, 1, 0),
    ROW(CONTRACT, build_contract, -1, 1, 1),
    ROW(CONTRACT, build_contract, -1, 1, 2),
    ROW(CONTRACT, build_contract, -1, 1, 3),
    ROW(CONTRACT, build_contract, -1, 1, 4),
    ROW(CONV, build_conv, -1, 1, 1, 1, 1, 1, 5),
    ROW(CONV, build_conv, -1, 1, 1, 2, 2, 0, 6),
    ROW(CONV, build_conv, -1, 1, 2, 1, 2, 1, 4),
    ROW(CONV, build_conv, -1, 1, 2, 2, 1, 0, 4),
    ROW(CONV, build_conv, -1, 1, 3, 1, 1, 1, 2),
    ROW(CONV_DGRAD, build_conv, -1, 1, 1, 1, 2, 1, 6),
    ROW(CONV_DGRAD, build_conv, -1, 1, 2, 2, 1, 1, 3),
    ROW(CONV_DGRAD, build_conv, -1, 1, 3, 1, 2, 0, 3),
    ROW(CONV_WGRAD, build_conv, -1, 1, 1, 2, 1, 0, 4),
    ROW(CONV_WGRAD, build_conv, -1, 1, 2, 1, 2, 1, 4),
    ROW(CONV_WGRAD, build_conv, -1, 1, 3, 1, 1, 0, 2),
    ROW(SOFTMAX, build_softmax, -1, 1, -1),
    ROW(SOFTMAX, build_softmax, -1, 1, 1),
    ROW(LAYER_NORM, build_norm, -1, 1, 0),
    ROW(LAYER_NORM, build_norm, -1, 1, 1),
    ROW(GROUP_NORM, build_norm, -1, 1, 2, 0),
    ROW(GROUP_NORM, build_norm, -1, 1, 4, 1),
    ROW(GROUP_NORM, build_norm, -1, 1, 1, 1),
    ROW(ATTENTION, build_attention, -1, 1, 0, 0),
    ROW(ATTENTION, build_attention, -1, 1, 1, 0),
    ROW(ATTENTION, build_attention, -1, 1, 0, 1),
    ROW(ATTENTION, build_attention, -1, 1, 0, 2),
    ROW(ATTENTION, build_attention, -1, 1, 1, 2),
    ROW(ATTENTION, build_attention_rank5, -1, 1, 0),
    COMPOSITE("linear", build_linear, -1, 1, 0),
    COMPOSITE("pointwise", build_pointwise, -1, 1, 0),
    COMPOSITE("conv_transpose", build_conv_transpose, -1, 1, 0),
    COMPOSITE("rms_norm", build_rms_norm, -1, 1, 0),
    COMPOSITE("batch_norm training", build_batch_norm, -1, 1, 1),
    COMPOSITE("batch_norm evaluating", build_batch_norm, -1, 1, 0),
    COMPOSITE("rotary", build_rotary, -1, 1, 0),
    COMPOSITE("avg_pool", build_simple, -1, 1, 0),
    COMPOSITE("max_pool", build_simple, -1, 1, 1),
    COMPOSITE("resize_nearest", build_simple, -1, 1, 2),
    COMPOSITE("resize_linear", build_simple, -1, 1, 3),
    COMPOSITE("clamp", build_simple, -1, 1, 4),
    COMPOSITE("leaky_relu", build_simple, -1, 1, 5),
    COMPOSITE("mean", build_simple, -1, 1, 6),
    COMPOSITE("var", build_simple, -1, 1, 7),
    COMPOSITE("max", build_simple, -1, 1, 8),
    COMPOSITE("cube", build_simple, -1, 1, 9),
    COMPOSITE("power -0.5", build_simple, 0.5, 2, 10),
    COMPOSITE("log2", build_simple, 0.5, 2, 11),
    COMPOSITE("pad", build_simple, -1, 1, 12),
    COMPOSITE("index", build_simple, -1, 1, 13),
};

// Operations through which no gradient passes, or that only a gradient makes.
static const Op no_gradient[] = {
    OP_CONST,
    OP_TABLE,
    OP_INPUT,
    OP_PARAM,
    OP_OPTION,
    OP_BATCH,
    OP_GIVEN,
    OP_VAR,
    OP_LOSS_SCALE,
    OP_RANDOM,
    OP_SIGN,
    OP_FLOOR,
    OP_NOT,
    OP_STOP_GRADIENT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_AND,
    OP_OR,
    OP_LAYER_NORM_GRAD,
    OP_GROUP_NORM_TABLE,
    OP_CHANNEL_MOMENTS,
    OP_GROUP_NORM_GRAD,
    OP_ATTENTION_GRAD,
    OP_CAST, // differences in f32 are too coarse: test_cast
};

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_row(&rows[i]);
}

static void test_every_op_has_a_row(void **state)
{
    (void)state;
    for (Op op = 0; op < OP_COUNT; op++) {
        bool found = false;
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            found |= rows[i].op == op;
        for (size_t i = 0; i < sizeof no_gradient / sizeof *no_gradient; i++)
            found |= no_gradient[i] == op;
        if (!found)
            fail_msg("operation '%s' has no gradient test", op_info[op].name);
    }
}

// The gradient of the sum of one operation on x is 1 through cast, nothing through the others.
static void test_cast(void **state)
{
    (void)state;
    static const Op ops[] = {OP_CAST, OP_SIGN, OP_FLOOR, OP_STOP_GRADIENT};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        Arena *arena = arena_new();
        Bench bench = {.graph = graph_new(arena)};
        Row row = {.op = ops[i], .lo = -1, .hi = 1};
        Val loss = compose_sum(bench.graph, build_unary(&bench, &row)), grad;
        grad_build(bench.graph, loss, 0, bench.var, 1, &grad);
        assert_int_equal(grad != 0, ops[i] == OP_CAST);
        if (grad) {
            double *result;
            run(&bench, &grad, 1, (void **)&result);
            for (size_t k = 0; k < bench.size[0]; k++)
                assert_true(result[k] == 1);
            free(result);
        }
        free(bench.data[0]);
        arena_free(arena);
    }
}

// Equal elements share the gradient of max; max(x, x) gives each half.
static void test_ties(void **state)
{
    (void)state;
    Arena *arena = arena_new();
    Bench bench = {.graph = graph_new(arena)};
    Graph *graph = bench.graph;
    Val x = variable(&bench, 1, 1, DIMS(4)), y = variable(&bench, 1, 1, DIMS(4));
    Val grads[2];
    double *result[2];
    grad_build(graph, compose_max(graph, x), 0, &x, 1, grads);
    run(&bench, grads, 1, (void **)result);
    for (int i = 0; i < 4; i++)
        assert_true(result[0][i] == 0.25);
    free(result[0]);
    grad_build(graph, compose_sum(graph, g_binary(graph, OP_MAX, x, y)), 0, bench.var, 2, grads);
    run(&bench, grads, 2, (void **)result);
    for (int i = 0; i < 4; i++)
        assert_true(result[0][i] == 0.5 && result[1][i] == 0.5);
    free(result[0]);
    free(result[1]);
    free(bench.data[0]);
    free(bench.data[1]);
    arena_free(arena);
}

// The backward pass of a split is one concat, not a sum of padded parts.
static void test_split_is_concat(void **state)
{
    (void)state;
    Arena *arena = arena_new();
    Bench bench = {.graph = graph_new(arena)};
    Graph *graph = bench.graph;
    Val x = variable(&bench, -1, 1, DIMS(-1, 6)), parts[3], grad;
    assert_true(compose_split(graph, x, 3, -1, parts));
    Val y = g_binary(graph, OP_MUL, g_binary(graph, OP_MUL, parts[0], parts[1]), parts[2]);
    grad_build(graph, compose_sum(graph, y), 0, &x, 1, &grad);
    assert_int_equal(val_get(graph, grad)->op, OP_CONCAT);
    assert_int_equal(val_get(graph, grad)->nin, 3);
    free(bench.data[0]);
    arena_free(arena);
}

// Two entries over one parameter and two inputs: what becomes an output, and under which name.
static void test_module(void **state)
{
    (void)state;
    Arena *arena = arena_new();
    Graph *graph = graph_new(arena);
    Type type = type_make(DT_F32, 1, (Dim[]){dim_fixed(3)});
    Param params[3] = {
        {.name = "net.w", .instance = 0, .type = type},
        {.name = "net.mean", .instance = 0, .type = type, .buffer = true},
        {.name = "other.w", .instance = 1, .type = type},
    };
    Val param[3];
    for (int64_t i = 0; i < 3; i++)
        param[i] = graph_make(graph, OP_PARAM, NULL, 0, &(Attr){.n = {i}, .count = 1}, &type);
    Input inputs[2] = {{.name = "k", .type = type_scalar(DT_I64)}, {.name = "x", .type = type}};
    Attr attr = {.n = {0, 1}, .count = 2, .text = "x"};
    Val x = graph_make(graph, OP_INPUT, NULL, 0, &attr, &type);
    Val sum = g_binary(graph, OP_ADD, g_binary(graph, OP_MUL, param[0], x), param[1]);
    Val loss = compose_sum(graph, g_binary(graph, OP_MUL, sum, param[2]));
    Output outputs[2] = {{OUT_NAMED, "loss", 0, loss}, {OUT_NAMED, "loss", 0, loss}};
    Variant variants[2] = {{.outputs = &outputs[0], .output_count = 1},
                           {.outputs = &outputs[1], .output_count = 1}};
    Entry entries[2] = {
        {.kind = ENTRY_GRAD,
         .name = "grad.f",
         .inputs = inputs,
         .input_count = 2,
         .variants = &variants[0],
         .variant_count = 1},
        {.kind = ENTRY_MINIMIZE,
         .name = "s.0",
         .inputs = inputs,
         .input_count = 2,
         .variants = &variants[1],
         .variant_count = 1},
    };
    uint32_t moving = 1;
    Minimize minimize = {.entry = 1, .instances = &moving, .instance_count = 1};
    Stage stage = {.name = "s", .minimize = &minimize, .minimize_count = 1};
    Module module = {.arena = arena,
                     .graph = graph,
                     .real = DT_F32,
                     .params = params,
                     .param_count = 3,
                     .entries = entries,
                     .entry_count = 2,
                     .stages = &stage,
                     .stage_count = 1};
    grad_module(&module);

    assert_int_equal(variants[0].output_count, 4);
    const Output *out = variants[0].outputs;
    assert_string_equal(out[1].name, "grad.net.w");
    assert_string_equal(out[2].name, "grad.other.w");
    assert_string_equal(out[3].name, "grad.x");
    assert_true(out[1].kind == OUT_GRAD && out[1].param == 0 && out[2].param == 2);
    assert_true(out[3].kind == OUT_GRAD_INPUT && out[3].param == 1);
    assert_int_equal(variants[1].output_count, 2);
    assert_string_equal(variants[1].outputs[1].name, "grad.other.w");
    arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_every_op_has_a_row),
        cmocka_unit_test(test_cast),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_split_is_concat),
        cmocka_unit_test(test_module),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
