// link: pvdm_compiler
// The graph: hash-consing, type rules and what they say, step values, the textual form.
#include "tests/unit/every_op.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct {
    Arena *arena;
    Graph *graph;
} Fixture;

static int set_up(void **state)
{
    Fixture *fixture = calloc(1, sizeof *fixture);
    fixture->arena = arena_new();
    fixture->graph = graph_new(fixture->arena);
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    arena_free(((Fixture *)*state)->arena);
    free(*state);
    return 0;
}

static Graph *graph_of(void **state)
{
    return ((Fixture *)*state)->graph;
}

// ---- nodes ----

static void equal_nodes_are_one(void **state)
{
    Graph *graph = graph_of(state);
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 4)), y = input(graph, 1, shape(DT_F32, 2, -1, 4));
    assert_int_not_equal(x, y);
    Val sum = g_binary(graph, OP_ADD, x, y);
    uint32_t count = graph_count(graph);
    assert_int_equal(sum, g_binary(graph, OP_ADD, x, y));
    assert_int_equal(count, graph_count(graph));
    assert_int_not_equal(sum, g_binary(graph, OP_ADD, y, x));
    assert_int_not_equal(g_slice(graph, x, 1, 0, 2), g_slice(graph, x, 1, 1, 2));
    assert_int_not_equal(g_cast(graph, x, DT_F64), g_cast(graph, x, DT_I64));
    assert_int_equal(g_const(graph, DT_F32, 0.1), g_const(graph, DT_F32, (double)0.1f));
    assert_int_not_equal(g_const(graph, DT_F64, 0.1), g_const(graph, DT_F64, (double)0.1f));
    assert_int_not_equal(g_const(graph, DT_F32, 0.0), g_const(graph, DT_F32, -0.0));
    assert_int_equal(g_contract(graph, x, x, "bi", "bj", "bij"),
                     g_contract(graph, x, x, "nc", "nd", "ncd"));
    assert_ptr_equal(val_type(graph, x), val_type(graph, y));
}

static void many_nodes(void **state)
{
    Graph *graph = graph_of(state);
    Val first = g_const(graph, DT_F32, -1);
    const Node *node = val_get(graph, first);
    enum { COUNT = 100000 };
    for (int i = 0; i < COUNT; i++)
        g_const(graph, DT_F32, i);
    uint32_t count = graph_count(graph);
    assert_int_equal(count, COUNT + 2);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(val_node(g_const(graph, DT_F32, i)), val_node(first) + 1 + (uint32_t)i);
    assert_int_equal(count, graph_count(graph));
    assert_ptr_equal(node, val_get(graph, first));
}

static void blobs_and_segments_are_interned(void **state)
{
    Graph *graph = graph_of(state);
    uint32_t blob = graph_add_blob(graph, "abcd", 4);
    assert_int_equal(blob, graph_add_blob(graph, "abcd", 4));
    assert_int_not_equal(blob, graph_add_blob(graph, "abcd", 3));
    size_t size;
    assert_memory_equal(graph_blob(graph, blob, &size), "abcd", 4);
    assert_int_equal(size, 4);
    Segments segments = {.count = 2, .rank = {1, 1}, .extent = {{3}, {4}}};
    SegId seg = graph_add_segments(graph, &segments);
    segments.extent[1][1] = 99;              // beyond the rank: not looked at
    assert_int_equal(seg, graph_add_segments(graph, &segments));
}

static void first_origin_is_kept(void **state)
{
    Graph *graph = graph_of(state);
    graph_at(graph, (Origin){.path = "first"});
    Val x = g_const(graph, DT_F32, 3);
    graph_at(graph, (Origin){.path = "second"});
    assert_int_equal(x, g_const(graph, DT_F32, 3));
    assert_string_equal(graph_origin(graph, val_node(x))->path, "first");
}

static void step_values(void **state)
{
    Graph *graph = graph_of(state);
    Type number = type_scalar(DT_F32), ints = shape(DT_I64, 1, -1), list = shape(DT_F32, 1, 3);
    Val step = input(graph, 0, type_scalar(DT_I64));
    Val option = make(graph, OP_OPTION, NULL, 0, (Attr){.count = 2}, &number);
    Val param = make(graph, OP_PARAM, NULL, 0, (Attr){.count = 1}, &number);
    Val sum = g_binary(graph, OP_ADD, g_cast(graph, step, DT_F32), option);
    assert_true(graph_is_step(graph, sum));
    assert_false(graph_is_step(graph, param));
    assert_false(graph_is_step(graph, g_binary(graph, OP_ADD, param, option)));
    assert_false(graph_is_step(graph, input(graph, 1, ints)));
    Val table = g_table(graph, &list, (float[]){1, 2, 3});
    Val row = make(graph, OP_GATHER, (Val[]){table, step}, 2, (Attr){0}, NULL);
    assert_true(graph_is_step(graph, row));
    Val given = make(graph, OP_GATHER, (Val[]){input(graph, 2, list), step}, 2, (Attr){0}, NULL);
    assert_false(graph_is_step(graph, given));
    assert_true(graph_is_step(graph, g_dim(graph, dim_batch(3), DT_F32)));
}

// ---- types ----

static void results(void **state)
{
    Graph *graph = graph_of(state);
    Val x = input(graph, 0, shape(DT_F32, 3, -1, 6, 4));
    Val c = input(graph, 1, shape(DT_F32, 3, 1, 6, 1));
    Val n = g_const(graph, DT_F32, 2);
    struct { Val val; const char *type; } rows[] = {
        {g_binary(graph, OP_MUL, c, x), "f32[b, 6, 4]"},
        {g_binary(graph, OP_LT, n, x), "bool[b, 6, 4]"},
        {g_reduce(graph, OP_REDUCE_SUM, x, 5), "f32[1, 6, 1]"},
        {g_concat(graph, (Val[]){x, x, x}, 3, 0), "f32[3b, 6, 4]"},
        {g_slice(graph, g_concat(graph, (Val[]){x, x, x}, 3, 0), 0, 1, 2), "f32[2b, 6, 4]"},
        {g_reshape(graph, x, 2, (Dim[]){dim_batch(6), dim_fixed(4)}), "f32[6b, 4]"},
        {g_contract(graph, x, x, "bij", "bkj", "bik"), "f32[b, 6, 6]"},
        {g_contract(graph, x, x, "bij", "bij", ""), "f32"},
        {g_unbroadcast(graph, x, val_type(graph, c)), "f32[1, 6, 1]"},
        {g_unbroadcast(graph, x, val_type(graph, n)), "f32"},
        {g_dim(graph, dim_batch(3), DT_I64), "int"},
        {g_cast(graph, x, DT_F64), "f64[b, 6, 4]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_not_equal(rows[i].val, 0);
        assert_string_equal(type_text(val_type(graph, rows[i].val)), rows[i].type);
    }
}

static void refuse(Graph *graph, Val val, const char *message)
{
    assert_int_equal(val, 0);
    assert_string_equal(graph_error(graph), message);
    graph_set_error(graph, "stale");
}

static void refused_elementwise(void **state)
{
    Graph *graph = graph_of(state);
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 512));
    Val y = input(graph, 1, shape(DT_F32, 4, -1, 512, 32, 32));
    Val z = input(graph, 2, shape(DT_F32, 2, -1, 16));
    Val k = input(graph, 3, shape(DT_I64, 2, -1, 16));
    Val c = g_binary(graph, OP_LT, z, z), f = input(graph, 4, shape(DT_F32, 2, 7, 16));
    refuse(graph, g_binary(graph, OP_ADD, x, y),
           "ranks differ: f32[b, 512] + f32[b, 512, 32, 32]");
    refuse(graph, g_binary(graph, OP_MUL, x, z),
           "axis 1 is 512 and 16: f32[b, 512] * f32[b, 16]");
    refuse(graph, g_binary(graph, OP_MAX, z, f), "axis 0 is b and 7: max(f32[b, 16], f32[7, 16])");
    refuse(graph, g_binary(graph, OP_SUB, z, k),
           "kinds of numbers differ: f32[b, 16] - int[b, 16]");
    refuse(graph, g_binary(graph, OP_ADD, c, c), "add wants numbers: bool[b, 16] + bool[b, 16]");
    refuse(graph, g_unary(graph, OP_EXP, k), "exp wants real numbers: exp(int[b, 16])");
    refuse(graph, g_unary(graph, OP_NOT, z), "not wants truth values: not(f32[b, 16])");
    refuse(graph, g_where(graph, z, z, z), "where wants a truth value first, not f32[b, 16]");
    refuse(graph, g_where(graph, c, z, y),
           "ranks differ: where(bool[b, 16], f32[b, 16], f32[b, 512, 32, 32])");
    refuse(graph, g_const(graph, DT_I64, 0.5), "0.5 is not a whole number");
    assert_int_equal(g_binary(graph, OP_ADD, 0, x), 0);
    assert_string_equal(graph_error(graph), "stale");     // 0 in: the first error stays
}

static void refused_movement(void **state)
{
    Graph *graph = graph_of(state);
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 15)), k = input(graph, 1, shape(DT_I64, 1, 4));
    refuse(graph, g_reshape(graph, x, 2, (Dim[]){dim_batch(1), dim_fixed(16)}),
           "f32[b, 15] has 15b elements, and f32[b, 16] another number");
    refuse(graph, g_reshape(graph, x, 2, (Dim[]){dim_batch(3), dim_batch(5)}),
           "the batch is in two axes: f32[3b, 5b]");
    refuse(graph, g_reshape(graph, x, 1, (Dim[]){dim_fixed(15)}),
           "f32[b, 15] has 15b elements, and f32[15] another number");
    refuse(graph, g_reshape(graph, x, 9, NULL), "9 axes are more than 8");
    refuse(graph, g_expand(graph, x, (Dim[]){dim_batch(1), dim_fixed(30)}),
           "f32[b, 15] does not stretch to f32[b, 30]");
    refuse(graph, g_slice(graph, x, 1, 10, 6), "10..16 is not within axis 1 of f32[b, 15]");
    refuse(graph, g_slice(graph, x, 2, 0, 1), "slice: there is no axis 2 in f32[b, 15]");
    refuse(graph, g_pad(graph, x, 0, 1, 1, 0), "pad does not go with the batch axis of f32[b, 15]");
    refuse(graph, g_concat(graph, (Val[]){x, g_slice(graph, x, 1, 0, 2)}, 2, 0),
           "concat on axis 0: axis 1 is 15 and 2: f32[b, 15] and f32[b, 2]");
    refuse(graph, graph_make(graph, OP_SWAP_PAIRS, &x, 1, NULL, NULL),
           "pairs want a last axis of even size: f32[b, 15]");
    refuse(graph, graph_make(graph, OP_PICK, (Val[]){x, k}, 2, &(Attr){.n = {1}, .count = 1}, NULL),
           "pick from f32[b, 15] wants int[b], not int[4]");
    refuse(graph, graph_make(graph, OP_GATHER, (Val[]){x, k}, 2, NULL, NULL),
           "there are no rows to choose in f32[b, 15]");
    Type huge = shape(DT_F32, 4, 1 << 30, 1 << 30, 1 << 30, 1 << 30), none = shape(DT_F32, 1, 0);
    refuse(graph, g_full(graph, &huge, 0),
           "too many elements: f32[1073741824, 1073741824, 1073741824, 1073741824]");
    refuse(graph, g_full(graph, &none, 0), "axis 0 has the size 0: f32[0]");
    Type twice = shape(DT_F32, 2, -1, -1);
    refuse(graph, g_full(graph, &twice, 0), "the batch is in two axes: f32[b, b]");
}

static void refused_composites(void **state)
{
    Graph *graph = graph_of(state);
    Val x = input(graph, 0, shape(DT_F32, 4, -1, 6, 8, 8));
    Val w = input(graph, 1, shape(DT_F32, 4, 4, 3, 3, 3));
    Val c = input(graph, 2, shape(DT_F32, 1, 8)), q = input(graph, 3, shape(DT_F32, 3, -1, 5, 4));
    Val k = input(graph, 4, shape(DT_F32, 3, -1, 5, 3));
    Attr plain = {.n = {2, 1, 1, 1, 0, 0, 0, 0}, .count = 8};
    refuse(graph, graph_make(graph, OP_CONV, (Val[]){x, w}, 2, &plain, NULL),
           "weights f32[4, 3, 3, 3] want 3 channels, and f32[b, 6, 8, 8] has 6");
    refuse(graph, graph_make(graph, OP_CONV, (Val[]){q, w}, 2, &plain, NULL),
           "a convolution over 2 axes wants [b, c, h, w], not f32[b, 5, 4], weights "
           "f32[4, 3, 3, 3]");
    refuse(graph, graph_make(graph, OP_LAYER_NORM, (Val[]){q, c, c}, 3, NULL, NULL),
           "layer_norm: f32[b, 5, 4] has 4 channels, and the weights are f32[8]");
    refuse(graph, graph_make(graph, OP_GROUP_NORM, (Val[]){x, c, c}, 3,
                             &(Attr){.n = {4}, .count = 1}, NULL),
           "6 channels do not make 4 groups: f32[b, 6, 8, 8]");
    refuse(graph, graph_make(graph, OP_ATTENTION, (Val[]){q, k, k}, 3, &(Attr){.count = 1}, NULL),
           "attention wants [..., n, d], [..., m, d] and [..., m, e], not f32[b, 5, 4], "
           "f32[b, 5, 3] and f32[b, 5, 3]");
    refuse(graph, g_contract(graph, q, k, "bnd", "bmd", "bnm"),
           "axis 2 of f32[b, 5, 3] should be 4: f32[b, 5, 4] with f32[b, 5, 3]");
    refuse(graph, g_contract(graph, q, k, "bii", "bij", "b"),
           "an axis twice in one operand of a contraction: f32[b, 5, 4]");
    refuse(graph, g_reduce(graph, OP_REDUCE_SUM, q, 16),
           "reduce_sum: no such axes in f32[b, 5, 4]");
}

static void identities_make_no_node(void **state)
{
    Graph *graph = graph_of(state);
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 4));
    uint32_t count = graph_count(graph);
    Dim dim[] = {dim_batch(1), dim_fixed(4)};
    assert_int_equal(g_reshape(graph, x, 2, dim), x);
    assert_int_equal(g_expand(graph, x, dim), x);
    assert_int_equal(g_transpose(graph, x, (uint32_t[]){0, 1}), x);
    assert_int_equal(g_slice(graph, x, 1, 0, 4), x);
    assert_int_equal(g_pad(graph, x, 1, 0, 0, 9), x);
    assert_int_equal(g_concat(graph, &x, 1, 1), x);
    assert_int_equal(g_cast(graph, x, DT_F32), x);
    assert_int_equal(g_reduce(graph, OP_REDUCE_SUM, x, 0), x);
    assert_int_equal(g_unbroadcast(graph, x, val_type(graph, x)), x);
    assert_int_equal(graph_count(graph), count);
}

// ---- textual form ----

static char *module_text(const Module *module)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    print_module(out, module);
    fclose(out);
    return text;
}

static void round_trip(const Module *module)
{
    char error[256] = "", *text = module_text(module);
    Arena *arena = arena_new();
    Module *copy = read_module(arena, text, error, sizeof error);
    if (!copy)
        fail_msg("%s", error);
    char *again = module_text(copy);
    assert_string_equal(text, again);
    graph_verify(copy->graph);
    free(text);
    free(again);
    arena_free(arena);
}

// One entry of one variant whose outputs are `vals`.
static Module module_of(Fixture *fixture, const Val *vals, uint32_t count)
{
    Module module = {.path = "a.model", .name = "a", .arena = fixture->arena,
                     .graph = fixture->graph, .real = DT_F32, .entry_count = 1};
    module.entries = arena_alloc(fixture->arena, sizeof *module.entries);
    Variant *variant = arena_alloc(fixture->arena, sizeof *variant);
    variant->outputs = arena_alloc(fixture->arena, count * sizeof *variant->outputs);
    variant->output_count = count;
    for (uint32_t i = 0; i < count; i++)
        variant->outputs[i] = (Output){OUT_NAMED, "y", 0, vals[i]};
    module.entries[0] = (Entry){.kind = ENTRY_PROGRAM, .name = "e", .variants = variant,
                                .variant_count = 1};
    return module;
}

static void every_op_is_printed_and_read(void **state)
{
    Vals vals = {.count = 0};
    graph_at(graph_of(state), (Origin){.span = {1, 20, 33}, .path = "unet.out"});
    every_op(graph_of(state), &vals);
    graph_verify(graph_of(state));
    Module module = module_of(*state, vals.at, vals.count);
    round_trip(&module);
}

// A sampler with nested blocks, and one of everything else that a module has.
static void fill_module(Module *module, Val number)
{
    static HostStmt inner[] = {{.kind = HOST_SET_NONE, .var = 2}}, other[2];
    other[0] = (HostStmt){.kind = HOST_COPY, .var = 1, .source = 2};
    other[1] = (HostStmt){.kind = HOST_SET, .var = 0, .value = number};
    static HostStmt choice[] = {{.kind = HOST_IF, .source = 1, .negate = true,
                                 .body = {inner, 1}, .other = {other, 2}}};
    static HostArg args[2] = {{.is_var = true, .index = 1}};
    args[1].value = number;
    static uint32_t result[] = {2};
    static HostStmt body[7];
    body[0] = (HostStmt){.kind = HOST_OPTION, .var = 1, .source = 1};
    body[1] = (HostStmt){.kind = HOST_RANDOM, .var = 2, .value = number};
    body[2] = (HostStmt){.kind = HOST_FOR, .value = number, .limit = number, .reverse = true,
                         .body = {choice, 1}};
    body[3] = (HostStmt){.kind = HOST_CALL, .args = args, .arg_count = 2, .results = result,
                         .result_count = 1};
    body[4] = (HostStmt){.kind = HOST_YIELD, .source = 1};
    body[5] = (HostStmt){.kind = HOST_REPORT, .source = 2, .name = "x_after"};
    body[6] = (HostStmt){.kind = HOST_FOR, .value = number, .limit = number};
    static HostVar vars[] = {{.name = "i", .dtype = DT_I64}, {.name = "x"}, {.name = "y"}};
    vars[1].type = vars[2].type = shape(DT_F32, 2, -1, 4);
    static Sampler samplers[2];
    samplers[0] = (Sampler){"ddim", vars, 3, {body, 7}, {1, 2, 3}};
    samplers[1] = (Sampler){.name = "empty"};
    module->samplers = samplers;
    module->sampler_count = 2;

    static uint32_t moves[] = {0, 1};
    static Minimize minimize[] = {
        {.entry = 1, .optimizer = "adamw", .instances = moves, .instance_count = 2,
         .accumulate = 3, .ema_every = 25, .clip = true, .replay = UINT32_MAX},
        {.entry = 2, .optimizer = "sgd", .instances = moves, .instance_count = 1, .replay = 0},
    };
    static Stage stages[1];
    stages[0] = (Stage){.name = "train", .source = "clips", .pad = true, .frames = 16,
                        .height = 8, .width = 9, .data_name = "x", .minimize = minimize,
                        .minimize_count = 2, .has_data = true};
    stages[0].data_type = shape(DT_F32, 2, -1, 3);
    module->stages = stages;
    module->stage_count = 1;
}

static void whole_module_is_printed_and_read(void **state)
{
    Fixture *fixture = *state;
    Val number = g_const(fixture->graph, DT_I64, 7);
    Module module = module_of(fixture, &number, 1);
    static Decision path[1];
    path[0] = (Decision){g_binary(fixture->graph, OP_LT, number, number), true};
    static Input inputs[2] = {{.name = "x"}, {.name = "cond", .optional = true}};
    inputs[0].type = inputs[1].type = shape(DT_F32, 2, -1, 4);
    static Tap taps[] = {{"unet.out", 0}};
    taps[0].val = number;
    Entry *entry = &module.entries[0];
    entry->inputs = inputs;
    entry->input_count = 2;
    entry->variants[0].path = path;
    entry->variants[0].path_count = 1;
    entry->variants[0].taps = taps;
    entry->variants[0].tap_count = 1;
    entry->variants[0].given = UINT64_C(1) << 63 | 1;
    entry->program = UINT32_MAX;
    static Param params[] = {
        {.name = "ae.weight", .init = INIT_UNIFORM, .init_a = -1.0 / 3, .init_b = 1e-300},
        {.name = "ae.mean", .buffer = true, .init = INIT_ZEROS, .span = {1, 2, 9}}};
    params[0].type = params[1].type = shape(DT_F32, 2, 4, 8);
    static const char *ignored[] = {"a.b", "quote \" back \\"};
    static Instance instances[] = {{"ae", 0, 2, ignored, 2, {0}}, {.name = "empty", .first = 2}};
    static Option options[] = {
        {.name = "eta", .stage = "ddim", .dtype = DT_F32, .count = 2, .is_list = true,
         .value = {0.1, 2}},
        {.name = "cond", .count = 1}};
    options[1].type = inputs[0].type;
    static const char *constants[] = {"resolution=256"}, *streams[] = {"noise", "t"};
    module.params = params;
    module.param_count = 2;
    module.instances = instances;
    module.instance_count = 2;
    module.options = options;
    module.option_count = 2;
    module.constants = constants;
    module.constant_count = 1;
    module.streams = streams;
    module.stream_count = 2;
    fill_module(&module, number);
    round_trip(&module);
}

static void broken_text_is_refused(void **state)
{
    (void)state;
    static const struct { const char *text, *error; } rows[] = {
        {"nonsense", "line 1: expected 'pvdmc-graph'"},
        {"pvdmc-graph 2\n", "line 1: not a graph of this version"},
        {"pvdmc-graph 1\nmodule \"a", "line 2: a text without its end"},
        {"pvdmc-graph 1\nmodule \"a\" - f32\n%1 = add( %1, %1) : f32\n",
         "line 3: there is no value %1:0"},
        {"pvdmc-graph 1\nmodule \"a\" - f32\n%1 = const() real 1 : f32\n%2 = neg(%1) : f32[2]\n",
         "line 4: output 0 is f32"},
        {"pvdmc-graph 1\nmodule \"a\" - f32\n%1 = table() blob 1 : f32[2]\n",
         "line 3: there is no blob 1"},
        {"pvdmc-graph 1\nmodule \"a\" - f32\n  variant 0\n", "line 3: unknown line"},
        {"pvdmc-graph 1\nmodule \"a\" - f32\n%1 = const() real 1 : f32\n%2 = add(%1) : f32\n",
         "line 4: add with 1 operands"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Arena *arena = arena_new();
        char error[128] = "";
        assert_null(read_module(arena, rows[i].text, error, sizeof error));
        assert_string_equal(error, rows[i].error);
        arena_free(arena);
    }
}

// One small program in both textual forms, in full.
static void text_of_a_small_program(void **state)
{
    Fixture *fixture = *state;
    Graph *graph = fixture->graph;
    graph_at(graph, (Origin){.span = {1, 4, 9}, .path = "net"});
    Val x = input(graph, 0, shape(DT_F32, 2, -1, 4));
    g_const(graph, DT_F32, 99);                            // nothing needs it
    Val part = g_slice(graph, x, 1, 1, 2);
    Val y = g_binary(graph, OP_MUL, part, g_const(graph, DT_F32, 0.1));
    Module module = module_of(fixture, &y, 1);
    static const struct { bool dot; const char *want; } rows[] = {
        {false,
         "entry program \"e\" 0\n"
         "%1 = input() entry 0 index 0 text \"x\" : f32[b, 4] in \"net\" @1:4:9\n"
         "%2 = slice(%1) axis 1 start 1 size 2 : f32[b, 2] in \"net\" @1:4:9\n"
         "%3 = const() real 0.1 : f32 in \"net\" @1:4:9\n"
         "%4 = mul(%2, %3) : f32[b, 2] in \"net\" @1:4:9\n"
         "  variant 0\n"
         "    output named \"y\" 0 %4\n"},
        {true,
         "digraph \"a\" {\n"
         "  node [shape=box, style=filled, fontname=\"sans-serif\"];\n"
         "  subgraph cluster_0 {\n"
         "    label=\"e (variant 0)\";\n"
         "    n0_5 [fillcolor=\"#dff0d8\", label=\"mul 0.1\\nf32[b, 2]\\nnet\"];\n"
         "    n0_3 -> n0_5;\n"
         "    n0_3 [fillcolor=\"#fdf3d0\", label=\"slice\\nf32[b, 2]\\nnet\"];\n"
         "    n0_1 -> n0_3;\n"
         "    n0_1 [fillcolor=\"#e8e8e8\", label=\"input x\\nf32[b, 4]\\nnet\"];\n"
         "    o0_0 [shape=ellipse, label=\"y\"];\n"
         "    n0_5 -> o0_0;\n"
         "  }\n"
         "}\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text;
        size_t size;
        FILE *out = open_memstream(&text, &size);
        if (rows[i].dot)
            print_dot(out, &module, "e");
        else
            print_variant(out, &module, &module.entries[0], &module.entries[0].variants[0]);
        fclose(out);
        assert_string_equal(text, rows[i].want);
        free(text);
    }
}

// A dump with a few characters changed is refused with a message, or is another module that can be
// printed; nothing else happens.
static void damaged_text_does_no_harm(void **state)
{
    Vals vals = {.count = 0};
    every_op(graph_of(state), &vals);
    Module module = module_of(*state, vals.at, vals.count);
    static Sampler sampler[1] = {{.name = "s"}};
    module.samplers = sampler;
    module.sampler_count = 1;
    char *text = module_text(&module), *copy = strdup(text);
    size_t length = strlen(text);
    static const char letters[] = "0123456789-%:,()[]/|*bfx \n\"";
    uint64_t random = 7;
    uint32_t accepted = 0;
    for (int round = 0; round < 3000; round++) {
        memcpy(copy, text, length + 1);
        for (uint32_t i = 0; i <= random_below(&random, 3); i++)
            copy[random_below(&random, (uint32_t)length)] =
                letters[random_below(&random, sizeof letters - 1)];
        char error[256] = "";
        Arena *arena = arena_new();
        const Module *read = read_module(arena, copy, error, sizeof error);
        assert_true(!read == (error[0] != 0));
        if (read) {
            free(module_text(read));
            accepted++;
        }
        arena_free(arena);
    }
    assert_in_range(accepted, 1, 1500);
    free(text);
    free(copy);
}

// ---- random graphs ----

static Val random_node(Graph *graph, uint64_t *random, const Val *vals, uint32_t count)
{
    static const Op unary[] = {OP_NEG, OP_EXP, OP_SILU, OP_SOFTMAX, OP_SWAP_PAIRS};
    static const Op binary[] = {OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_MIN, OP_MAX, OP_LT};
    Val x = vals[random_below(random, count)], y = vals[random_below(random, count)];
    const Type *type = val_type(graph, x);
    uint32_t axis = random_below(random, 4);
    switch (random_below(random, 7)) {
    case 0: return g_unary(graph, unary[random_below(random, 5)], x);
    case 1: return g_binary(graph, binary[random_below(random, 7)], x, y);
    case 2: return g_slice(graph, x, axis, random_below(random, 3), 1 + random_below(random, 3));
    case 3: return g_concat(graph, (Val[]){x, y}, 2, axis);
    case 4: return g_reduce(graph, OP_REDUCE_SUM, x, 1u << axis);
    case 5: {
        uint32_t perm[MAX_RANK];
        for (uint32_t i = 0; i < type->rank; i++)
            perm[i] = (i + axis) % type->rank;
        return g_transpose(graph, x, perm);
    }
    default: {
        Dim count_of;
        type_count(type, &count_of);
        return g_reshape(graph, x, 1, &count_of);
    }
    }
}

static void random_graphs_verify(void **state)
{
    Graph *graph = graph_of(state);
    uint64_t random = 1;
    enum { COUNT = 400 };
    for (int round = 0; round < 20; round++) {
        Val vals[COUNT] = {input(graph, round, shape(DT_F32, 3, -1, 4, 6)),
                           input(graph, 1, shape(DT_F32, 3, -1, 4, 1)),
                           g_const(graph, DT_F32, round)};
        uint32_t count = 3;
        for (int i = 3; i < COUNT; i++) {
            Val val = random_node(graph, &random, vals, count);
            if (val)
                vals[count++] = val;
            for (uint32_t j = 0; val && j < val_get(graph, val)->nin; j++)
                assert_true(val_get(graph, val)->in[j] < val);
        }
        assert_true(count > COUNT / 4);
        Module module = module_of(*state, vals, count);
        round_trip(&module);
    }
    graph_verify(graph);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(equal_nodes_are_one), TEST(many_nodes), TEST(blobs_and_segments_are_interned),
        TEST(first_origin_is_kept), TEST(step_values), TEST(results), TEST(refused_elementwise),
        TEST(refused_movement), TEST(refused_composites), TEST(identities_make_no_node),
        TEST(every_op_is_printed_and_read), TEST(whole_module_is_printed_and_read),
        TEST(text_of_a_small_program), TEST(broken_text_is_refused),
        TEST(damaged_text_does_no_harm), TEST(random_graphs_verify),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
