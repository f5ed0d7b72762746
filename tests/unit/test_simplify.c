// link: pvdm_compiler
// Simplification: rules by expectation (equal graphs are equal numbers, so each is one
// comparison), and random graphs, which must compute the same before and after.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compiler/compose.h"
#include "compiler/pattern.h"
#include "compiler/program.h"

enum { BATCH = 3 };

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

// A negative size -n is n * b.
static Type make_type(DType dtype, uint32_t rank, const int64_t *dims)
{
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++)
        dim[i] = dims[i] < 0 ? dim_batch(-dims[i]) : dim_fixed(dims[i]);
    return type_make(dtype, rank, dim);
}
#define DIMS(...)                                                                                  \
    sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[])                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static Val input(int64_t index, DType dtype, uint32_t rank, const int64_t *dims)
{
    Type type = make_type(dtype, rank, dims);
    return graph_make(graph, OP_INPUT, NULL, 0, &(Attr){.n = {0, index}, .count = 2, .text = "x"},
                      &type);
}

static Val constant(double value, uint32_t rank, const int64_t *dims)
{
    Type type = make_type(DT_F32, rank, dims);
    return g_full(graph, &type, value);
}

static Val number(double value)
{
    return g_const(graph, DT_F32, value);
}

static Val flip(Val x, int64_t axis)
{
    return compose_flip(graph, x, axis);
}

static void expect(Val from, Val to)
{
    if (!from || !to)
        fail_msg("%s", graph_error(graph));
    Val have = simplify_val(graph, from);
    if (have != to)
        fail_msg("%s of %s, not %s", op_info[val_get(graph, have)->op].name,
                 type_text(val_type(graph, have)), op_info[val_get(graph, to)->op].name);
}

// ---- rules ----

static void test_algebra(void **state)
{
    (void)state;
    Val x = input(0, DT_F32, DIMS(-1, 4)), y = input(1, DT_F32, DIMS(-1, 4));
    Val row = input(2, DT_F32, DIMS(1, 4)), c = input(3, DT_BOOL, DIMS(-1, 4));
    Val zero = number(0), one = number(1), zeros = constant(0, DIMS(-1, 4));
    Dim wide[2] = {dim_batch(1), dim_fixed(4)};
    expect(g_binary(graph, OP_ADD, x, zero), x);
    expect(g_binary(graph, OP_ADD, zeros, x), x);
    expect(g_binary(graph, OP_SUB, x, zeros), x);
    expect(g_binary(graph, OP_ADD, row, zeros), g_expand(graph, row, wide));
    expect(g_binary(graph, OP_MUL, one, x), x);
    expect(g_binary(graph, OP_DIV, x, one), x);
    expect(g_binary(graph, OP_DIV, x, number(4)), g_binary(graph, OP_MUL, x, number(0.25)));
    Val third = g_binary(graph, OP_DIV, x, number(3));
    expect(third, third);
    Val nothing = g_binary(graph, OP_MUL, x, zero); // x may be infinite
    expect(nothing, nothing);
    Val minus = g_unary(graph, OP_NEG, y);
    expect(g_unary(graph, OP_NEG, minus), y);
    expect(g_binary(graph, OP_ADD, x, minus), g_binary(graph, OP_SUB, x, y));
    expect(g_binary(graph, OP_ADD, minus, x), g_binary(graph, OP_SUB, x, y));
    expect(g_binary(graph, OP_SUB, x, minus), g_binary(graph, OP_ADD, x, y));
    expect(g_binary(graph, OP_MUL, y, number(-1)), minus);
    expect(g_unary(graph, OP_STOP_GRADIENT, x), x);
    expect(g_cast(graph, g_cast(graph, x, DT_F64), DT_F32), x);
    Val coarse = g_cast(graph, g_cast(graph, x, DT_I64), DT_F32);
    expect(coarse, coarse);
    Val yes = g_const(graph, DT_BOOL, 1);
    expect(g_where(graph, yes, x, y), x);
    expect(g_where(graph, g_unary(graph, OP_NOT, yes), x, row), g_expand(graph, row, wide));
    expect(g_where(graph, c, x, x), x);
    expect(g_where(graph, g_unary(graph, OP_NOT, c), x, y), g_where(graph, c, y, x));
    expect(g_binary(graph, OP_AND, c, yes), c);
    expect(g_binary(graph, OP_OR, c, yes), g_full(graph, val_type(graph, c), 1));
}

static void test_stretching(void **state)
{
    (void)state;
    Val x = input(0, DT_F32, DIMS(-1, 4)), row = input(1, DT_F32, DIMS(1, 4));
    Dim wide[2] = {dim_batch(1), dim_fixed(4)};
    Val repeated = g_expand(graph, row, wide);
    expect(g_binary(graph, OP_MUL, x, repeated), g_binary(graph, OP_MUL, x, row));
    expect(g_unary(graph, OP_EXP, repeated), g_expand(graph, g_unary(graph, OP_EXP, row), wide));
    expect(g_binary(graph, OP_MUL, x, constant(3, DIMS(-1, 4))),
           g_binary(graph, OP_MUL, x, number(3)));
    expect(g_reduce(graph, OP_REDUCE_MAX, repeated, 1), row);
    expect(g_reduce(graph, OP_REDUCE_SUM, repeated, 1),
           g_binary(graph, OP_MUL, row, g_dim(graph, dim_batch(1), DT_F32)));
    expect(g_reduce(graph, OP_REDUCE_SUM, constant(0.5, DIMS(8, 4)), 1), constant(4, DIMS(1, 4)));
    expect(g_slice(graph, repeated, 1, 1, 2),
           g_expand(graph, g_slice(graph, row, 1, 1, 2), (Dim[]){dim_batch(1), dim_fixed(2)}));
}

// What holds for every row of a batch is computed for one.
static void test_equal_rows(void **state)
{
    (void)state;
    Val row = input(0, DT_F32, DIMS(1, 4)), weight = input(1, DT_F32, DIMS(4, 4));
    Val x = input(2, DT_F32, DIMS(-1, 4));
    Dim wide[4] = {dim_batch(1), dim_fixed(4), dim_fixed(1), dim_fixed(1)};
    Dim one[4] = {dim_fixed(1), dim_fixed(4), dim_fixed(1), dim_fixed(1)};
    Val repeated = g_expand(graph, row, wide);
    Val product = g_contract(graph, row, weight, "bi", "ij", "bj");
    expect(g_contract(graph, repeated, weight, "bi", "ij", "bj"), g_expand(graph, product, wide));
    Val differs = g_contract(graph, x, weight, "bi", "ij", "bj");
    expect(differs, differs);
    Val summed = g_contract(graph, repeated, x, "bi", "bj", "ij");
    expect(summed, summed);
    expect(g_reshape(graph, repeated, 4, wide),
           g_expand(graph, g_reshape(graph, row, 4, one), wide));
    Val both[2] = {repeated, g_unary(graph, OP_EXP, repeated)};
    Val rows[2] = {row, g_unary(graph, OP_EXP, row)};
    Dim eight[2] = {dim_batch(1), dim_fixed(8)};
    expect(g_concat(graph, both, 2, 1), g_expand(graph, g_concat(graph, rows, 2, 1), eight));
    both[1] = x;
    Val mixed = g_concat(graph, both, 2, 1);
    expect(mixed, mixed);
}

// Channels that are constant zeros take no part in convolutions and contractions.
static void test_zero_channels(void **state)
{
    (void)state;
    Val x = input(0, DT_F32, DIMS(-1, 4, 36)), weight = input(1, DT_F32, DIMS(8, 6, 3, 3));
    Val matrix = input(2, DT_F32, DIMS(6, 5));
    Val both[2] = {x, constant(0, DIMS(-1, 2, 36))}, ones[2] = {x, constant(1, DIMS(-1, 2, 36))};
    Dim plane[4] = {dim_batch(1), dim_fixed(6), dim_fixed(6), dim_fixed(6)};
    Dim less[4] = {dim_batch(1), dim_fixed(4), dim_fixed(6), dim_fixed(6)};
    Attr attr = {.n = {2, 1, 1, 1, 1, 1, 1, 0}, .count = 8};
    Val wide[2] = {g_reshape(graph, g_concat(graph, both, 2, 1), 4, plane), weight};
    Val narrow[2] = {g_reshape(graph, x, 4, less), g_slice(graph, weight, 1, 0, 4)};
    expect(graph_make(graph, OP_CONV, wide, 2, &attr, NULL),
           graph_make(graph, OP_CONV, narrow, 2, &attr, NULL));
    wide[0] = g_reshape(graph, g_concat(graph, ones, 2, 1), 4, plane);
    Val all = graph_make(graph, OP_CONV, wide, 2, &attr, NULL);
    expect(all, all);
    expect(g_contract(graph, g_concat(graph, both, 2, 1), matrix, "bcn", "co", "bon"),
           g_contract(graph, x, g_slice(graph, matrix, 0, 0, 4), "bcn", "co", "bon"));
}

static void test_movement(void **state)
{
    (void)state;
    Val x = input(0, DT_F32, DIMS(-1, 4, 6)), y = input(1, DT_F32, DIMS(-1, 4, 6));
    Dim flat[2] = {dim_batch(1), dim_fixed(24)};
    const Dim *dim = val_type(graph, x)->dim;
    uint32_t turn[3] = {2, 0, 1}, back[3] = {1, 2, 0};
    expect(g_reshape(graph, g_reshape(graph, x, 2, flat), 3, dim), x);
    expect(g_transpose(graph, g_transpose(graph, x, turn), back), x);
    Val column = input(2, DT_F32, DIMS(1, 4, 1));
    expect(g_transpose(graph, column, turn),
           g_reshape(graph, column, 3, (Dim[]){dim_fixed(1), dim_fixed(1), dim_fixed(4)}));
    expect(g_slice(graph, g_slice(graph, x, 2, 1, 4), 2, 2, 2), g_slice(graph, x, 2, 3, 2));
    Val pair = g_concat(graph, (Val[]){x, y, x}, 3, 1);
    expect(g_slice(graph, pair, 1, 4, 4), y);
    expect(g_slice(graph, pair, 1, 5, 2), g_slice(graph, y, 1, 1, 2));
    expect(g_slice(graph, pair, 1, 4, 8), g_concat(graph, (Val[]){y, x}, 2, 1));
    Val across = g_slice(graph, pair, 1, 3, 2);
    expect(across, across);
    Val padded = g_pad(graph, x, 2, 3, 2, 0);
    expect(g_slice(graph, padded, 2, 4, 3), g_slice(graph, x, 2, 1, 3));
    expect(g_slice(graph, padded, 2, 0, 3), constant(0, DIMS(-1, 4, 3)));
    expect(g_pad(graph, padded, 2, 1, 0, 0), g_pad(graph, x, 2, 4, 2, 0));
    expect(g_concat(graph,
                    (Val[]){g_slice(graph, x, 1, 0, 1), g_slice(graph, x, 1, 1, 2),
                            g_slice(graph, x, 1, 3, 1)},
                    3, 1),
           x);
    expect(
        g_concat(graph, (Val[]){g_slice(graph, x, 1, 2, 1), g_slice(graph, x, 1, 3, 1), y}, 3, 1),
        g_concat(graph, (Val[]){g_slice(graph, x, 1, 2, 2), y}, 2, 1));
    expect(flip(flip(x, 2), 2), x);
    expect(g_unary(graph, OP_SWAP_PAIRS, g_unary(graph, OP_SWAP_PAIRS, x)), x);
    expect(compose_window(graph, x, g_const(graph, DT_I64, 9), 4, 2), g_slice(graph, x, 2, 2, 4));
    expect(g_transpose(graph, constant(2, DIMS(-1, 4, 6)), turn), constant(2, DIMS(6, -1, 4)));
    // joined and turned in one step; a turn alone stays a view
    Val turned = g_transpose(graph, pair, turn);
    expect(turned, turned);
    Val part = g_transpose(graph, x, turn), other = g_transpose(graph, y, turn);
    Dim joined[2] = {dim_batch(6), dim_fixed(12)};
    expect(g_reshape(graph, turned, 2, joined),
           g_reshape(graph, g_concat(graph, (Val[]){part, other, part}, 3, 2), 2, joined));
}

// unpack(pack(xs)) is xs, and pack(unpack(x)) is x.
static void test_pack(void **state)
{
    (void)state;
    static const PatternScope scope;
    Val xs[2] = {input(0, DT_F32, DIMS(-1, 4, 2, 3)), input(1, DT_F32, DIMS(-1, 4, 5))};
    PatternShape like[2] = {{2, {dim_fixed(2), dim_fixed(3)}}, {1, {dim_fixed(5)}}};
    Val out[2], whole = input(2, DT_F32, DIMS(-1, 4, 11));
    Val packed = pattern_pack(graph, &scope, xs, 2, "b c *", NULL);
    assert_true(pattern_unpack(graph, &scope, packed, "b c *", like, 2, out, NULL));
    expect(out[0], xs[0]);
    expect(out[1], xs[1]);
    assert_true(pattern_unpack(graph, &scope, whole, "b c *", like, 2, out, NULL));
    expect(pattern_pack(graph, &scope, out, 2, "b c *", NULL), whole);
}

static void test_folding(void **state)
{
    (void)state;
    // rounded after every operation, in working precision
    Val third = g_binary(graph, OP_DIV, number(1), number(3));
    expect(third, number((double)(1.0f / 3.0f)));
    expect(g_binary(graph, OP_MUL, third, number(3)), number((double)(1.0f / 3.0f * 3.0f)));
    Type type = make_type(DT_F32, DIMS(2, 2));
    float values[4] = {1, 2, 3, 4}, doubled[4] = {2, 4, 6, 8}, turned[4] = {1, 3, 2, 4};
    Val table = g_table(graph, &type, values);
    expect(g_binary(graph, OP_MUL, table, number(2)), g_table(graph, &type, doubled));
    expect(g_transpose(graph, table, (uint32_t[]){1, 0}), g_table(graph, &type, turned));
    expect(g_binary(graph, OP_SUB, table, table), constant(0, DIMS(2, 2)));
    expect(g_binary(graph, OP_ADD, constant(2, DIMS(-1, 2)), number(3)), constant(5, DIMS(-1, 2)));
    Val rows = g_expand(graph, g_slice(graph, table, 0, 0, 1), (Dim[]){dim_fixed(9), dim_fixed(2)});
    assert_int_equal(val_get(graph, simplify_val(graph, rows))->op, OP_EXPAND);
    // what depends on the step stays
    Val step = g_binary(graph, OP_ADD, input(0, DT_I64, 0, NULL), g_const(graph, DT_I64, 1));
    expect(step, step);
    Val rounded = g_unary(graph, OP_FLOOR, number(-0.5));
    expect(rounded, number(-1));
}

static void test_module(void **state)
{
    (void)state;
    Val x = input(0, DT_F32, DIMS(-1, 4)), cond = input(1, DT_BOOL, 0, NULL);
    Val dressed = g_binary(graph, OP_ADD, g_unary(graph, OP_STOP_GRADIENT, x), number(0));
    Decision decision = {g_unary(graph, OP_NOT, g_unary(graph, OP_NOT, cond)), true};
    Output output = {OUT_NAMED, "y", 0, dressed};
    Tap tap = {"f.x", g_unary(graph, OP_STOP_GRADIENT, x)};
    Variant variant = {.path = &decision,
                       .path_count = 1,
                       .outputs = &output,
                       .output_count = 1,
                       .taps = &tap,
                       .tap_count = 1};
    Entry entry = {.name = "f", .variants = &variant, .variant_count = 1};
    HostStmt stmt = {.kind = HOST_SET, .value = g_binary(graph, OP_ADD, number(1), number(2))};
    Sampler sampler = {.name = "s", .body = {&stmt, 1}};
    Module module = {.arena = arena,
                     .graph = graph,
                     .entries = &entry,
                     .entry_count = 1,
                     .samplers = &sampler,
                     .sampler_count = 1};
    simplify_module(&module);
    // the graph is made anew: x, cond, 3
    assert_true(module.graph != graph);
    assert_int_equal(graph_count(module.graph), 4);
    assert_int_equal(output.val, val_of(1, 0));
    assert_int_equal(tap.val, output.val);
    assert_int_equal(val_get(module.graph, output.val)->op, OP_INPUT);
    assert_int_equal(decision.cond, val_of(2, 0));
    assert_true(val_get(module.graph, stmt.value)->attr->real == 3);
    graph_verify(module.graph);
}

// The order of the text stays, though rewriting makes some nodes anew and others not.
static void test_order(void **state)
{
    (void)state;
    Val x = input(0, DT_F32, DIMS(-1, 4)), y = input(1, DT_F32, DIMS(-1, 4));
    Val first = g_unary(graph, OP_EXP, g_binary(graph, OP_ADD, x, number(0)));
    Val second = g_unary(graph, OP_SIN, y);
    Val third = g_unary(graph, OP_COS, g_binary(graph, OP_MUL, first, number(1)));
    float values[4] = {1, 2, 3, 4};
    Type type = make_type(DT_F32, DIMS(1, 4));
    Val fourth = g_binary(graph, OP_MUL, second, g_table(graph, &type, values));
    Output outputs[2] = {{OUT_NAMED, "a", 0, third}, {OUT_NAMED, "b", 0, fourth}};
    Variant variant = {.outputs = outputs, .output_count = 2};
    Entry entry = {.name = "f", .variants = &variant, .variant_count = 1};
    Module module = {.arena = arena, .graph = graph, .entries = &entry, .entry_count = 1};
    simplify_module(&module);
    static const Op want[] = {OP_INPUT, OP_INPUT, OP_EXP, OP_SIN, OP_COS, OP_TABLE, OP_MUL};
    assert_int_equal(graph_count(module.graph), 8);
    for (NodeId id = 1; id < 8; id++)
        assert_int_equal(graph_node(module.graph, id)->op, want[id - 1]);
    assert_memory_equal(graph_blob(module.graph, 1, NULL), values, sizeof values);
}

// ---- random graphs ----

static uint64_t seed;

static uint32_t pick(uint32_t count)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33) % count;
}

static void *give(void *context, const Node *node, const Type *type)
{
    (void)context;
    Dim count;
    type_count(type, &count);
    size_t n = (size_t)(count.n * (count.batch ? BATCH : 1));
    double *data = malloc(n * sizeof *data);
    for (size_t i = 0; i < n; i++)
        data[i] = sin((double)(node->attr->n[1] * 100) + (double)i);
    return data;
}

// Some value made from earlier ones; 0 when the choice does not fit.
static Val random_value(const Val *pool, uint32_t count)
{
    static const Op unary[] = {OP_NEG,  OP_ABS,   OP_TANH,          OP_SIN,
                               OP_RELU, OP_FLOOR, OP_STOP_GRADIENT, OP_SIGMOID};
    static const Op binary[] = {OP_ADD, OP_SUB, OP_MUL, OP_MIN, OP_MAX};
    static const double numbers[] = {0, 1, -1, 2, 0.5, 3};
    Val x = pool[pick(count)], y = pool[pick(count)];
    const Type *type = val_type(graph, x);
    uint32_t rank = type->rank, axis = rank ? pick(rank) : 0;
    uint32_t perm[MAX_RANK];
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++) {
        perm[i] = (i + 1 + axis) % rank;
        dim[i] = dim_is_one(type->dim[i]) ? dim_fixed(1 + pick(3)) : type->dim[i];
    }
    switch (pick(16)) {
    case 0:
        return g_unary(graph, unary[pick(8)], x);
    case 1:
    case 2:
        return g_binary(graph, binary[pick(5)], x, y);
    case 3:
        return g_binary(graph, binary[pick(5)], x, g_const(graph, DT_F64, numbers[pick(6)]));
    case 4:
        return g_binary(graph, binary[pick(5)], g_full(graph, type, numbers[pick(6)]), x);
    case 5:
        return g_binary(graph, OP_DIV, x, g_const(graph, DT_F64, 1 + pick(5)));
    case 6:
        return rank ? g_transpose(graph, x, perm) : 0;
    case 7:
        return rank ? g_expand(graph, x, dim) : 0;
    case 8:
    case 9: {
        int64_t n = rank ? type->dim[axis].n : 1, start = pick((uint32_t)n);
        return rank ? g_slice(graph, x, axis, start, 1 + pick((uint32_t)(n - start))) : 0;
    }
    case 10:
        return rank && !type->dim[axis].batch ? g_pad(graph, x, axis, pick(2), pick(3), 0) : 0;
    case 11:
    case 12:
        return rank ? g_concat(graph, (Val[]){x, y, x}, 2 + pick(2), axis) : 0;
    case 13:
        if (rank < 2 || type->dim[0].batch)
            return rank ? flip(x, axis) : 0;
        dim[0] = (Dim){type->dim[0].n * type->dim[1].n, type->dim[1].batch};
        memcpy(dim + 1, type->dim + 2, (rank - 2) * sizeof *dim);
        return g_reshape(graph, x, rank - 1, dim);
    case 14:
        return rank ? g_reduce(graph, OP_REDUCE_SUM + pick(3), x, 1u << axis) : 0;
    default:
        return g_where(graph, g_binary(graph, OP_LT, x, y), x, y);
    }
}

static size_t elements(const Type *type)
{
    Dim count;
    type_count(type, &count);
    return (size_t)(count.n * (count.batch ? BATCH : 1));
}

static uint32_t reachable(Val val)
{
    bool *seen = calloc(graph_count(graph), sizeof *seen);
    uint32_t count = 0;
    seen[val_node(val)] = true;
    for (NodeId id = val_node(val); id > 0; id--)
        if (seen[id]) {
            count++;
            for (uint32_t i = 0; i < graph_node(graph, id)->nin; i++)
                seen[val_node(graph_node(graph, id)->in[i])] = true;
        }
    free(seen);
    return count;
}

static void test_random_graphs(void **state)
{
    (void)state;
    uint32_t changed = 0;
    for (seed = 1; seed < 400; seed++) {
        uint64_t kept = seed;
        Val pool[48];
        uint32_t count = 0;
        pool[count++] = input(0, DT_F64, DIMS(-1, 4, 6));
        pool[count++] = input(1, DT_F64, DIMS(-1, 1, 6));
        pool[count++] = input(2, DT_F64, DIMS(4, 6));
        pool[count++] = input(3, DT_F64, DIMS(1, 6));
        pool[count++] = input(4, DT_F64, 0, NULL);
        Type small = make_type(DT_F64, DIMS(4, 1));
        pool[count++] = g_table(graph, &small, (double[]){0.5, -1, 2, 0});
        while (count < 48) {
            Val made = random_value(pool, count);
            if (made && elements(val_type(graph, made)) < 4000)
                pool[count++] = made;
        }
        for (uint32_t i = 40; i < 48; i++) {
            Val before = pool[i], after = simplify_val(graph, before), both[2] = {before, after};
            double *result[2];
            InterpOptions options = {.batch = BATCH, .real = DT_F64, .source = give};
            assert_true(shape_equal(val_type(graph, before), val_type(graph, after)));
            if (interp_run(graph, &options, both, 2, (void **)result) != 0)
                fail_msg("%s", graph_error(graph));
            for (size_t k = 0; k < elements(val_type(graph, before)); k++) {
                double want = result[0][k], have = result[1][k];
                if (!(fabs(have - want) <= 1e-9 * fmax(1, fabs(want)) ||
                      (isnan(have) && isnan(want)) || have == want))
                    fail_msg("seed %u, value %u, element %zu: %.17g, not %.17g", (unsigned)kept, i,
                             k, have, want);
            }
            assert_int_equal(simplify_val(graph, after), after);
            assert_true(reachable(after) <= reachable(before) + 2);
            changed += after != before;
            free(result[0]);
            free(result[1]);
        }
        seed = kept;
    }
    assert_true(changed > 1000);
    graph_verify(graph);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_algebra), TEST(test_stretching), TEST(test_equal_rows), TEST(test_zero_channels),
        TEST(test_movement),
        TEST(test_pack),    TEST(test_folding),    TEST(test_module),     TEST(test_order),
        TEST(test_random_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
