// A graph in which every operation of ops.def occurs at least once, and a small random generator:
// what the tests of the graph share.
#ifndef EVERY_OP_H
#define EVERY_OP_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "compiler/program.h"

static inline Type shape(DType dtype, uint32_t rank, ...)   // sizes as int; negative: times b
{
    Dim dim[MAX_RANK];
    va_list args;
    va_start(args, rank);
    for (uint32_t i = 0; i < rank; i++) {
        int n = va_arg(args, int);
        dim[i] = n < 0 ? dim_batch(-n) : dim_fixed(n);
    }
    va_end(args);
    return type_make(dtype, rank, dim);
}

static inline Val make(Graph *graph, Op op, const Val *in, uint32_t nin, Attr attr,
                       const Type *type)
{
    Val val = graph_make(graph, op, in, nin, &attr, type);
    if (!val)
        fail_msg("%s: %s", op_info[op].name, graph_error(graph));
    return val;
}

static inline Val input(Graph *graph, int64_t index, Type type)
{
    return make(graph, OP_INPUT, NULL, 0, (Attr){.n = {0, index}, .count = 2, .text = "x"}, &type);
}

typedef struct {
    Val at[2 * OP_COUNT];
    uint32_t count;
} Vals;

static inline Val keep(Vals *vals, Val val)
{
    assert_true(val != 0 && vals->count < 2 * OP_COUNT);
    return vals->at[vals->count++] = val;
}

static inline void every_source(Graph *graph, Vals *vals)
{
    Type matrix = shape(DT_F32, 2, -1, 6), number = type_scalar(DT_F32);
    Type ints = shape(DT_I64, 1, -1), table = shape(DT_F32, 2, 2, 2), weight = shape(DT_F32, 1, 6);
    keep(vals, g_full(graph, &matrix, 0.1));
    keep(vals, g_table(graph, &table, (float[]){1, 2, 3, 4}));
    keep(vals, input(graph, 0, matrix));
    keep(vals, make(graph, OP_PARAM, NULL, 0, (Attr){.count = 1}, &weight));
    keep(vals, make(graph, OP_LOSS_SCALE, NULL, 0, (Attr){.count = 0}, &number));
    keep(vals, make(graph, OP_OPTION, NULL, 0, (Attr){.n = {0, 1}, .count = 2}, &number));
    keep(vals, make(graph, OP_BATCH, NULL, 0, (Attr){0}, NULL));
    keep(vals, make(graph, OP_GIVEN, NULL, 0, (Attr){.n = {0, 0}, .count = 2}, NULL));
    keep(vals, make(graph, OP_VAR, NULL, 0, (Attr){.n = {0}, .count = 1}, &number));
    keep(vals, make(graph, OP_RANDOM, NULL, 0,
                    (Attr){.n = {2, 0, 9}, .count = 3, .text = "stream \"one\"\n"}, &ints));
}

static inline void every_elementwise(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 6)), y = g_const(graph, DT_F32, 2);
    Val c = keep(vals, g_binary(graph, OP_LT, x, y));
    static const Op unary[] = {OP_NEG, OP_ABS, OP_SIGN, OP_SQRT, OP_RSQRT, OP_EXP, OP_LOG, OP_SIN,
                               OP_COS, OP_TANH, OP_ERF, OP_SIGMOID, OP_SOFTPLUS, OP_RELU, OP_SILU,
                               OP_GELU, OP_GELU_TANH, OP_FLOOR, OP_STOP_GRADIENT};
    static const Op binary[] = {OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_MOD, OP_POW, OP_MIN, OP_MAX,
                                OP_EQ, OP_NE, OP_LE};
    for (size_t i = 0; i < sizeof unary / sizeof unary[0]; i++)
        keep(vals, g_unary(graph, unary[i], x));
    for (size_t i = 0; i < sizeof binary / sizeof binary[0]; i++)
        keep(vals, g_binary(graph, binary[i], x, y));
    keep(vals, g_unary(graph, OP_NOT, c));
    keep(vals, g_binary(graph, OP_AND, c, c));
    keep(vals, g_binary(graph, OP_OR, c, c));
    keep(vals, g_where(graph, c, x, y));
    keep(vals, g_cast(graph, x, DT_I64));
}

static inline void every_movement(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 6)), k = input(graph, 1, shape(DT_I64, 1, -1));
    Val start = input(graph, 2, type_scalar(DT_I64)), row = g_slice(graph, x, 1, 0, 1);
    Val table = input(graph, 3, shape(DT_F32, 2, 9, 3));
    keep(vals, g_reshape(graph, x, 3, (Dim[]){dim_batch(1), dim_fixed(2), dim_fixed(3)}));
    keep(vals, g_transpose(graph, x, (uint32_t[]){1, 0}));
    keep(vals, g_expand(graph, row, (Dim[]){dim_batch(1), dim_fixed(4)}));
    keep(vals, g_slice(graph, x, 1, 2, 3));
    keep(vals, g_pad(graph, x, 1, 1, 2, -1.5));
    SegId seg = graph_add_segments(graph, &(Segments){.count = 2, .rank = {2, 1},
                                                      .extent = {{2, 3}, {6}}});
    Val joint = keep(vals, make(graph, OP_CONCAT, (Val[]){x, x}, 2,
                                (Attr){.n = {1, seg}, .count = 2}, NULL));
    assert_int_equal(val_type(graph, g_unary(graph, OP_NEG, joint))->seg, seg);
    keep(vals, make(graph, OP_FLIP, &x, 1, (Attr){.n = {1}, .count = 1}, NULL));
    keep(vals, make(graph, OP_SWAP_PAIRS, &x, 1, (Attr){0}, NULL));
    keep(vals, make(graph, OP_WINDOW, (Val[]){x, start}, 2, (Attr){.n = {1, 4}, .count = 2}, NULL));
    keep(vals, make(graph, OP_WINDOW_GRAD, (Val[]){x, start}, 2, (Attr){.n = {1, 8}, .count = 2},
                    NULL));
    keep(vals, make(graph, OP_PICK, (Val[]){x, k}, 2, (Attr){.n = {1}, .count = 1}, NULL));
    keep(vals, make(graph, OP_PICK_GRAD, (Val[]){x, k}, 2, (Attr){.n = {2, 5}, .count = 2}, NULL));
    Val rows = keep(vals, make(graph, OP_GATHER, (Val[]){table, k}, 2, (Attr){0}, NULL));
    keep(vals, make(graph, OP_GATHER_GRAD, (Val[]){rows, k}, 2, (Attr){.n = {9}, .count = 1},
                    NULL));
}

static inline void every_contraction(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 6)), w = input(graph, 4, shape(DT_F32, 2, 3, 6));
    keep(vals, g_reduce(graph, OP_REDUCE_SUM, x, 1));
    keep(vals, g_reduce(graph, OP_REDUCE_MAX, x, 2));
    keep(vals, g_reduce(graph, OP_REDUCE_MIN, x, 3));
    keep(vals, g_contract(graph, x, w, "bi", "oi", "bo"));
    Type image = shape(DT_F32, 4, -1, 4, 6, 5), kernel = shape(DT_F32, 4, 6, 2, 3, 3);
    Val pixels = input(graph, 5, image), weights = input(graph, 6, kernel);
    Attr attr = {.n = {2, 2, 2, 1, 0, 1, 1, 0}, .count = 8};
    Val y = keep(vals, make(graph, OP_CONV, (Val[]){pixels, weights}, 2, attr, NULL));
    keep(vals, make(graph, OP_CONV_DGRAD, (Val[]){y, weights}, 2, attr, &image));
    keep(vals, make(graph, OP_CONV_WGRAD, (Val[]){pixels, y}, 2, attr, &kernel));
}

static inline void every_composite(Graph *graph, Vals *vals)
{
    Type rows = shape(DT_F32, 2, -1, 6), channels = shape(DT_F32, 1, 6);
    Val x = input(graph, 0, rows), g = input(graph, 7, channels);
    keep(vals, g_unary(graph, OP_SOFTMAX, x));
    Val y = keep(vals, make(graph, OP_LAYER_NORM, (Val[]){x, g, g}, 3, (Attr){.real = 1e-5}, NULL));
    keep(vals, make(graph, OP_LAYER_NORM_GRAD, (Val[]){y, x, y + 1, y + 2, g}, 5, (Attr){0}, NULL));
    Val z = keep(vals, make(graph, OP_LAYER_NORM, &x, 1, (Attr){.real = 1e-5}, NULL));
    keep(vals, make(graph, OP_LAYER_NORM_GRAD, (Val[]){z, x, z + 1, z + 2}, 4, (Attr){0}, NULL));
    Attr groups = {.n = {3}, .count = 1, .real = 1e-6}, groups_grad = {.n = {3}, .count = 1};
    y = keep(vals, make(graph, OP_GROUP_NORM, (Val[]){x, g, g}, 3, groups, NULL));
    keep(vals, make(graph, OP_GROUP_NORM_GRAD, (Val[]){y, x, y + 1, y + 2, g}, 5, groups_grad,
                    NULL));
    keep(vals, make(graph, OP_GROUP_NORM_TABLE, (Val[]){x, g, g}, 3, groups, NULL));
    Val rate = input(graph, 12, shape(DT_F32, 2, 1, 6));
    keep(vals, make(graph, OP_GROUP_NORM_TABLE, (Val[]){x, g, g, rate, rate}, 5, groups, NULL));
    Val cube = g_reshape(graph, x, 3, (Dim[]){dim_batch(1), dim_fixed(6), dim_fixed(1)});
    Val moments = keep(vals, make(graph, OP_CHANNEL_MOMENTS, &cube, 1, (Attr){0}, NULL));
    moments = g_concat(graph, (Val[]){moments, moments}, 2, 1);
    Attr parts = {.n = {3, 2, 5}, .count = 3, .real = 1e-6};
    keep(vals, make(graph, OP_GROUP_NORM_TABLE, (Val[]){moments, g, g}, 3, parts, NULL));
    Val q = input(graph, 8, shape(DT_F32, 3, -1, 5, 4));
    Val k = input(graph, 9, shape(DT_F32, 3, -1, 7, 4));
    Val v = input(graph, 10, shape(DT_F32, 3, -1, 7, 2));
    Val mask = input(graph, 11, shape(DT_F32, 3, 1, 5, 7));
    Attr scale = {.n = {0}, .count = 1, .real = 0.5};
    Val o = keep(vals, make(graph, OP_ATTENTION, (Val[]){q, k, v, mask}, 4, scale, NULL));
    keep(vals, make(graph, OP_ATTENTION_GRAD, (Val[]){o, q, k, v, o, o + 1, mask}, 7, scale, NULL));
}

// Every operation; checks that it is every one.
static inline void every_op(Graph *graph, Vals *vals)
{
    every_source(graph, vals);
    every_elementwise(graph, vals);
    every_movement(graph, vals);
    every_contraction(graph, vals);
    every_composite(graph, vals);
    bool seen[OP_COUNT] = {false};
    for (uint32_t i = 0; i < vals->count; i++)
        seen[val_get(graph, vals->at[i])->op] = true;
    for (int i = 0; i < OP_COUNT; i++)
        if (!seen[i])
            fail_msg("no test makes %s", op_info[i].name);
}

static inline uint32_t random_below(uint64_t *state, uint32_t count)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % count);
}

#endif
