// link: pvdm_codegen pvdm_kernels32 pvdm32 z dl
// Graphs through the back end: plans of all levels and of each rung alone are compiled by the C
// compiler, run, and compared with the reference. One graph has every operation of ops.def (a new
// one is tested because every_op.h has to make it), one has planes that go the same way side by
// side.
#include "tests/unit/emit_check.h"

static void test_every_op(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, level_rungs(1), 0};
    check_graph(every_op, rungs, 3);
}

// ---- planes ----

enum { PLANES = 3 };
static const int heights[PLANES] = {4, 2, 2}, starts[PLANES] = {0, 24, 36};

// A plane of what lies packed: [b, c, 48] to [b, c, h, 6].
static Val plane_of(Graph *graph, Val packed, int i)
{
    Dim channels = val_type(graph, packed)->dim[1];
    Dim dim[] = {dim_batch(1), channels, dim_fixed(heights[i]), dim_fixed(6)};
    return g_reshape(graph, g_slice(graph, packed, 2, starts[i], heights[i] * 6), 4, dim);
}

static Val pack_planes(Graph *graph, const Val *planes)
{
    Val flat[PLANES];
    for (int i = 0; i < PLANES; i++) {
        const Type *type = val_type(graph, planes[i]);
        Dim dim[] = {type->dim[0], type->dim[1], dim_fixed(heights[i] * 6)};
        flat[i] = g_reshape(graph, planes[i], 3, dim);
    }
    return g_concat(graph, flat, PLANES, 2);
}

static Val conv3(Graph *graph, Val x, Val w)
{
    Attr attr = {.n = {2, 1, 1, 1, 0, 1, 1, 0}, .count = 8};
    return make(graph, OP_CONV, (Val[]){x, w}, 2, attr, NULL);
}

static Val norm2(Graph *graph, Val x, Val gamma)
{
    Attr attr = {.n = {2}, .count = 1, .real = 1e-5};
    return make(graph, OP_GROUP_NORM, (Val[]){x, gamma, gamma}, 3, attr, NULL);
}

// x + w norm(x) over all positions of a packed value.
static Val jointly(Graph *graph, Val x, Val w, Val gamma)
{
    Val y = g_contract(graph, norm2(graph, x, gamma), w, "bcn", "oc", "bon");
    return g_binary(graph, OP_ADD, x, y);
}

// Planes go through convolutions with the same weights, are joined, cut, joined with skips by
// channels, pooled; the outputs are the last values and the gradients of all weights.
static void planes(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 3, -1, 8, 48));
    Val w[] = {input(graph, 1, shape(DT_F32, 4, 8, 8, 3, 3)),
               input(graph, 2, shape(DT_F32, 4, 8, 16, 3, 3)),
               input(graph, 3, shape(DT_F32, 2, 8, 8)), input(graph, 4, shape(DT_F32, 2, 8, 16))};
    Val g8 = input(graph, 5, shape(DT_F32, 1, 8)), g16 = input(graph, 6, shape(DT_F32, 1, 16));
    Val first[PLANES], at[PLANES], joint[3];
    for (int i = 0; i < PLANES; i++) {
        first[i] = conv3(graph, plane_of(graph, x, i), w[0]);
        Val y = conv3(graph, g_unary(graph, OP_SILU, norm2(graph, first[i], g8)), w[0]);
        at[i] = g_binary(graph, OP_ADD, first[i], y);
    }
    joint[0] = jointly(graph, pack_planes(graph, at), w[2], g8);
    for (int i = 0; i < PLANES; i++)
        at[i] = conv3(graph, norm2(graph, plane_of(graph, joint[0], i), g8), w[0]);
    joint[1] = jointly(graph, pack_planes(graph, at), w[2], g8);
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < PLANES; i++) {
            Val parts[] = {plane_of(graph, joint[1], i),
                           turn ? first[i] : plane_of(graph, joint[0], i)};
            Val both = g_concat(graph, parts, 2, 1);
            Val y = conv3(graph, norm2(graph, both, g16), w[1]);
            at[i] = g_binary(graph, OP_ADD, g_contract(graph, both, w[3], "bchw", "oc", "bohw"), y);
        }
        joint[1] = jointly(graph, pack_planes(graph, at), w[2], g8);
    }
    Val sum = 0;
    for (int i = 0; i < PLANES; i++) {
        Dim cells[] = {dim_batch(1), dim_fixed(8), dim_fixed(heights[i] / 2), dim_fixed(2),
                       dim_fixed(3), dim_fixed(2)};
        Val cut = g_reshape(graph, plane_of(graph, joint[1], i), 6, cells);
        Val pooled = g_reduce(graph, OP_REDUCE_SUM, cut, 1 << 3 | 1 << 5);
        pooled = g_unary(graph, OP_TANH, pooled);
        keep(vals, simplify_val(graph, pooled));
        Val total = g_reduce(graph, OP_REDUCE_SUM, pooled, (1 << 6) - 1);
        total = g_reshape(graph, total, 0, NULL);
        sum = sum ? g_binary(graph, OP_ADD, sum, total) : total;
    }
    keep(vals, simplify_val(graph, joint[1]));
    Val grads[7], wrt[] = {x, w[0], w[1], w[2], w[3], g8, g16};
    grad_build(graph, sum, 0, wrt, 7, grads);
    for (int i = 0; i < 7; i++)
        keep(vals, simplify_val(graph, grads[i]));
}

static void test_planes(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, level_rungs(1), RUNG_ELEMENTWISE, RUNG_NORMS,
                              RUNG_EPILOGUES, RUNG_ATTENTION, RUNG_PLACEMENT, RUNG_BATCHING,
                              RUNG_MEMORY, RUNG_PLACEMENT | RUNG_BATCHING, 0};
    enum { COUNT = sizeof rungs / sizeof *rungs };
    Codegen *cg = check_graph(planes, rungs, COUNT);
    const Work *all = cg->plans[0], *none = cg->plans[COUNT - 1];
    uint32_t segments, single, convs = count_launches(cg, none, "pv_conv", &single);
    assert_int_equal(convs, single);
    convs = count_launches(cg, all, "pv_conv", &segments);
    assert_true(all->launch_count * 3 < none->launch_count);
    assert_true(convs * 3 <= segments);
    // what pooling spreads is written out, and put together; nothing else is copied
    assert_true(count_launches(cg, all, "pv_copy", &segments) <= 3);
}

// ---- norms taken apart ----

static Val modulated(Graph *graph, Val x, Val gamma, Val scale, Val shift)
{
    Val one = g_const(graph, DT_F32, 1);
    Val y = g_binary(graph, OP_MUL, norm2(graph, x, gamma), g_binary(graph, OP_ADD, one, scale));
    return g_binary(graph, OP_ADD, y, shift);
}

// Norms before convolutions and products: with scale and shift, which may come of what is
// normalized; through reshapes; with several readers; of a concat; of what is itself stored; and
// some whose value has to be stored.
static void norms(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 4, -1, 8, 4, 6));
    Val w8 = input(graph, 1, shape(DT_F32, 4, 8, 8, 3, 3));
    Val w16 = input(graph, 2, shape(DT_F32, 4, 8, 16, 3, 3));
    Val wide = input(graph, 3, shape(DT_F32, 2, 8, 8));
    Val rates = input(graph, 4, shape(DT_F32, 4, -1, 16, 1, 1));
    Val g8 = input(graph, 5, shape(DT_F32, 1, 8)), g16 = input(graph, 6, shape(DT_F32, 1, 16));
    Val scale = g_slice(graph, rates, 1, 0, 8), shift = g_slice(graph, rates, 1, 8, 8);
    Val first = conv3(graph, x, w8);
    Val y = g_unary(graph, OP_SILU, modulated(graph, first, g8, scale, shift));
    Val second = conv3(graph, y, w8);
    Val third = g_binary(graph, OP_ADD, first, g_contract(graph, y, wide, "bchw", "oc", "bohw"));
    Val flat = g_reshape(graph, norm2(graph, second, g8), 3,
                         (Dim[]){dim_batch(1), dim_fixed(8), dim_fixed(24)});
    Val product = g_contract(graph, flat, wide, "bcn", "oc", "bon");
    Dim one[] = {dim_fixed(1), dim_fixed(8), dim_fixed(1)};
    product = g_binary(graph, OP_ADD, product, g_reshape(graph, g8, 3, one));
    Dim image[] = {dim_batch(1), dim_fixed(8), dim_fixed(4), dim_fixed(6)};
    product = g_binary(graph, OP_ADD, g_reshape(graph, product, 4, image), third);
    Val fourth = conv3(graph, g_unary(graph, OP_RELU, norm2(graph, product, g8)), w8);
    Val both = g_concat(graph, (Val[]){fourth, third}, 2, 1);
    Val fifth = conv3(graph, g_unary(graph, OP_GELU, norm2(graph, both, g16)), w16);
    // its scale comes of what it normalizes
    Val own = g_reduce(graph, OP_REDUCE_MAX, fifth, 1 << 2 | 1 << 3);
    Val sixth = conv3(graph, modulated(graph, fifth, g8, own, shift), w8);
    // these are stored: an output, and what is no product reads
    Val kept = norm2(graph, sixth, g8);
    Val seventh = conv3(graph, kept, w8), spread = norm2(graph, seventh, g8);
    keep(vals, simplify_val(graph, kept));
    keep(vals, simplify_val(graph, g_binary(graph, OP_ADD, conv3(graph, spread, w8),
                                            g_unary(graph, OP_TANH, spread))));
    keep(vals, simplify_val(graph, product));
}

static void test_norms(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, level_rungs(1), RUNG_NORMS, RUNG_NORMS | RUNG_EPILOGUES,
                              RUNG_EPILOGUES, RUNG_NORMS | RUNG_PLACEMENT | RUNG_BATCHING, 0};
    enum { COUNT = sizeof rungs / sizeof *rungs };
    Codegen *cg = check_graph(norms, rungs, COUNT);
    const uint32_t loads[] = {6, 6, 6, 6, 0, 6, 0}, tables[] = {3, 3, 0, 3, 0, 0, 0};
    const uint32_t launches[] = {4, 4, 7, 4, 7, 7, 7};     // of pv_group_norm
    for (uint32_t i = 0; i < COUNT; i++) {
        const Work *work = cg->plans[i];
        uint32_t loaded = 0, made = 0, segments;
        for (uint32_t g = 0; g < work->group_count; g++) {
            const Group *group = &work->groups[work->schedule[g]];
            loaded += group->norm.x != 0;
            made += group->table != 0;
        }
        assert_int_equal(loaded, loads[i]);
        assert_int_equal(made, tables[i]);
        assert_int_equal(count_launches(cg, work, "pv_group_norm", &segments), launches[i]);
    }
}

// ---- up-sampling and pooling beside convolutions ----

static Val pool2(Graph *graph, Val x)
{
    Val y = compose_avg_pool(graph, x, 2);
    if (!y)
        fail_msg("%s", graph_error(graph));
    return y;
}

static Val grown(Graph *graph, Val x)
{
    return compose_resize_nearest(graph, x, 2);
}

// Blocks that halve and double the positions, on both ways; up-sampled values that convolutions
// read normalized and as they are, that are added, and that something else reads, too.
static void resamples(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 4, -1, 8, 12, 8));
    Val w = input(graph, 1, shape(DT_F32, 4, 8, 8, 3, 3));
    Val g8 = input(graph, 2, shape(DT_F32, 1, 8)), g64 = input(graph, 5, shape(DT_F32, 1, 64));
    Val wide = input(graph, 6, shape(DT_F32, 4, 64, 8, 3, 3));
    Val narrow = input(graph, 7, shape(DT_F32, 4, 8, 64, 3, 3));
    Val first = conv3(graph, x, w);
    Val y = pool2(graph, g_unary(graph, OP_SILU, norm2(graph, first, g8)));
    Val second = g_binary(graph, OP_ADD, conv3(graph, conv3(graph, y, w), w), pool2(graph, first));
    y = grown(graph, g_unary(graph, OP_SILU, norm2(graph, second, g8)));
    y = g_unary(graph, OP_RELU, norm2(graph, conv3(graph, y, wide), g64));
    y = conv3(graph, y, narrow);
    Val third = g_binary(graph, OP_ADD, y, grown(graph, second));
    Val fourth = conv3(graph, grown(graph, third), w);
    keep(vals, simplify_val(graph, fourth));
    Val stored = grown(graph, first);
    keep(vals, simplify_val(graph, g_binary(graph, OP_ADD, conv3(graph, stored, w),
                                            g_unary(graph, OP_TANH, stored))));
    // positions of three axes, one of them as it is
    Val cube = input(graph, 3, shape(DT_F32, 5, -1, 8, 3, 2, 4));
    Val kernel = input(graph, 4, shape(DT_F32, 5, 8, 8, 3, 3, 3));
    Attr attr = {.n = {3, 1, 1, 1, 1, 1, 1, 1}, .count = 8};
    cube = grown(graph, cube);
    Val fifth = make(graph, OP_CONV, (Val[]){cube, kernel}, 2, attr, NULL);
    keep(vals, simplify_val(graph, g_binary(graph, OP_ADD, fifth, cube)));
}

static void test_resamples(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, level_rungs(1), RUNG_NORMS, RUNG_EPILOGUES,
                              RUNG_NORMS | RUNG_EPILOGUES, RUNG_PLACEMENT | RUNG_EPILOGUES, 0};
    enum { COUNT = sizeof rungs / sizeof *rungs };
    Codegen *cg = check_graph(resamples, rungs, COUNT);
    uint32_t segments;
    // one is stored for what is no convolution, and for the one beside it
    assert_int_equal(count_launches(cg, cg->plans[0], "pv_copy", &segments), 1);
    assert_int_equal(count_launches(cg, cg->plans[0], "pv_group_norm", &segments), 0);
    assert_int_equal(count_launches(cg, cg->plans[COUNT - 1], "pv_copy", &segments), 5);
    const Work *all = cg->plans[0];
    uint32_t elementwise = 0;
    for (uint32_t g = 0; g < all->group_count; g++)
        elementwise += all->groups[all->schedule[g]].kind == GROUP_ELEMENTWISE;
    assert_int_equal(elementwise, 2);       // both means in one kernel; the tanh
}

// ---- attention over one axis of a grid, then over the other ----

enum { ROWS = 4, COLUMNS = 6, WIDTH = 16, HEADS = 2, HEAD = WIDTH / HEADS };

static Val turn_pairs(Graph *graph, Val x, Val cosines, Val sines)
{
    Val turned = g_binary(graph, OP_MUL, g_unary(graph, OP_SWAP_PAIRS, x), sines);
    return g_binary(graph, OP_ADD, g_binary(graph, OP_MUL, x, cosines), turned);
}

// One of q, k, v: [sequences, heads, n, d] of [sequences, n, 3 heads d].
static Val head_of(Graph *graph, Val all, int which)
{
    const Type *type = val_type(graph, all);
    Dim dim[] = {type->dim[0], type->dim[1], dim_fixed(3), dim_fixed(HEADS), dim_fixed(HEAD)};
    Val x = g_transpose(graph, g_reshape(graph, all, 5, dim), (uint32_t[]){2, 0, 3, 1, 4});
    Dim one[] = {dim[0], dim[3], dim[1], dim[4]};
    return g_reshape(graph, g_slice(graph, x, 0, which, 1), 4, one);
}

// Rows of x [sequences, n, width] attend to one another.
static Val attend(Graph *graph, Val x, Val w, Val gamma, Val cosines, Val sines)
{
    const Type *type = val_type(graph, x);
    Val norm = make(graph, OP_LAYER_NORM, (Val[]){x, gamma, gamma}, 3, (Attr){.real = 1e-5}, NULL);
    Val all = g_contract(graph, norm, w, "snc", "oc", "sno");
    Val q = turn_pairs(graph, head_of(graph, all, 0), cosines, sines);
    Val k = turn_pairs(graph, head_of(graph, all, 1), cosines, sines);
    Attr attr = {.n = {0}, .count = 1, .real = 0.5};
    Val o = make(graph, OP_ATTENTION, (Val[]){q, k, head_of(graph, all, 2)}, 3, attr, NULL);
    o = g_transpose(graph, o, (uint32_t[]){0, 2, 1, 3});
    o = g_reshape(graph, o, 3, type->dim);
    Val bias = g_reshape(graph, gamma, 3, (Dim[]){dim_fixed(1), dim_fixed(1), dim_fixed(WIDTH)});
    Val back = g_slice(graph, w, 0, 0, WIDTH);
    return g_binary(graph, OP_ADD, g_contract(graph, o, back, "snc", "co", "sno"), bias);
}

// Tokens [b, rows columns, width]: over rows, whose sequences lie apart, and over columns.
static void grid(Graph *graph, Vals *vals)
{
    Val first = input(graph, 0, shape(DT_F32, 3, -1, ROWS * COLUMNS, WIDTH)), x = first;
    Val w = input(graph, 1, shape(DT_F32, 2, 3 * WIDTH, WIDTH));
    Val gamma = input(graph, 2, shape(DT_F32, 1, WIDTH));
    Val tables[2][2] = {{input(graph, 3, shape(DT_F32, 4, 1, 1, ROWS, HEAD)),
                         input(graph, 4, shape(DT_F32, 4, 1, 1, ROWS, HEAD))},
                        {input(graph, 5, shape(DT_F32, 4, 1, 1, COLUMNS, HEAD)),
                         input(graph, 6, shape(DT_F32, 4, 1, 1, COLUMNS, HEAD))}};
    const Dim flat[] = {dim_batch(1), dim_fixed(ROWS * COLUMNS), dim_fixed(WIDTH)};
    const Dim cells[] = {dim_batch(1), dim_fixed(ROWS), dim_fixed(COLUMNS), dim_fixed(WIDTH)};
    const Dim turned[] = {cells[0], cells[2], cells[1], cells[3]};
    const Dim over[2][3] = {{dim_batch(COLUMNS), dim_fixed(ROWS), dim_fixed(WIDTH)},
                            {dim_batch(ROWS), dim_fixed(COLUMNS), dim_fixed(WIDTH)}};
    const uint32_t turn[] = {0, 2, 1, 3};
    for (int layer = 0; layer < 2; layer++) {
        Val y = g_transpose(graph, g_reshape(graph, x, 4, cells), turn);
        y = attend(graph, g_reshape(graph, y, 3, over[0]), w, gamma, tables[0][0], tables[0][1]);
        y = g_transpose(graph, g_reshape(graph, y, 4, turned), turn);
        x = g_binary(graph, OP_ADD, x, g_reshape(graph, y, 3, flat));
        y = attend(graph, g_reshape(graph, x, 3, over[1]), w, gamma, tables[1][0], tables[1][1]);
        x = g_binary(graph, OP_ADD, x, g_reshape(graph, y, 3, flat));
    }
    keep(vals, simplify_val(graph, x));
    Val total = g_reduce(graph, OP_REDUCE_SUM, g_unary(graph, OP_TANH, x), 7), grads[3];
    Val wrt[] = {first, w, gamma};
    grad_build(graph, g_reshape(graph, total, 0, NULL), 0, wrt, 3, grads);
    for (int i = 0; i < 3; i++)
        keep(vals, simplify_val(graph, grads[i]));
}

// Turning the grid and back costs nothing, forward and backward.
static void test_axes(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, level_rungs(1), RUNG_EPILOGUES, RUNG_ATTENTION,
                              RUNG_ATTENTION | RUNG_NORMS, RUNG_PLACEMENT,
                              RUNG_PLACEMENT | RUNG_ATTENTION, RUNG_BATCHING, 0};
    enum { COUNT = sizeof rungs / sizeof *rungs };
    Codegen *cg = check_graph(grid, rungs, COUNT);
    uint32_t segments;
    uint32_t turning = 0;                   // queries and keys, forward and backward
    for (uint32_t g = 0; g < cg->plans[0]->group_count; g++)
        for (int i = 0; i < 2; i++)
            turning += cg->plans[0]->groups[g].rotary[i].x != 0;
    assert_int_equal(turning, 16);
    // the gradient of the slice of w goes between zeros
    assert_int_equal(count_launches(cg, cg->plans[0], "pv_copy", &segments), 1);
    assert_true(count_launches(cg, cg->plans[COUNT - 1], "pv_copy", &segments) > 8);
}

// ---- one network twice ----

enum { LAYERS = 6, CHANNELS = 16 };

static Val network(Graph *graph, Val x, Val gamma)
{
    Type filter = shape(DT_F32, 4, CHANNELS, CHANNELS, 3, 3);
    for (int i = 0; i < LAYERS; i++) {
        Val w = make(graph, OP_PARAM, NULL, 0, (Attr){.n = {i}, .count = 1}, &filter);
        Val y = conv3(graph, g_unary(graph, OP_SILU, norm2(graph, x, gamma)), w);
        x = g_binary(graph, OP_ADD, x, y);
    }
    return x;
}

// The network on x with a condition, and without: the first layers differ.
static void guided(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 4, -1, 8, 4, 6));
    Val parts[] = {x, input(graph, 1, shape(DT_F32, 4, -1, 4, 4, 6))};
    Val gamma = input(graph, 2, shape(DT_F32, 1, CHANNELS));
    Val with = input(graph, 3, shape(DT_F32, 4, CHANNELS, 12, 3, 3));
    Val without = input(graph, 4, shape(DT_F32, 4, CHANNELS, 8, 3, 3));
    Val one = network(graph, conv3(graph, g_concat(graph, parts, 2, 1), with), gamma);
    Val other = network(graph, conv3(graph, x, without), gamma);
    Val apart = g_binary(graph, OP_SUB, one, other);
    keep(vals, simplify_val(graph, g_binary(graph, OP_ADD, other, apart)));
}

// Both calls are one launch a layer, behind the first, which reads its filter once.
static void test_guided(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, RUNG_BATCHING, RUNG_ALL & ~RUNG_BATCHING, 0};
    Codegen *cg = check_graph(guided, rungs, 4);
    uint32_t segments;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(count_launches(cg, cg->plans[i], "pv_conv", &segments), LAYERS + 2);
        assert_int_equal(segments, 2 * LAYERS + 2);
    }
    assert_int_equal(count_launches(cg, cg->plans[2], "pv_conv", &segments), 2 * LAYERS + 2);
    double fixed[2] = {0, 0};
    for (int i = 0; i < 2; i++)
        for (uint32_t l = 0; l < cg->plans[2 * i]->launch_count; l++)
            fixed[i] += cg->plans[2 * i]->launches[l].bytes_fixed;
    assert_true(fixed[0] < 0.6 * fixed[1]);
}

// ---- gates ----

// Linears whose halves are multiplied: which half is the gate, with and without an activation, over
// sequences and images; and halves that are read again, which have to be stored.
static void gates(Graph *graph, Vals *vals)
{
    Val x = input(graph, 0, shape(DT_F32, 3, -1, 6, 12));
    Val bias = input(graph, 1, shape(DT_F32, 3, 1, 1, 40));
    Val out = input(graph, 6, shape(DT_F32, 2, 5, 20));
    for (uint32_t i = 0; i < 4; i++) {
        Val w = input(graph, 2 + i, shape(DT_F32, 2, 40, 12)), halves[2];
        Val y = g_contract(graph, x, w, "bnc", "oc", "bno");
        y = i == 1 ? y : g_binary(graph, OP_ADD, y, bias);
        for (int half = 0; half < 2; half++)
            halves[half] = g_slice(graph, y, 2, half * 20, 20);
        Val gate = halves[i != 1];
        gate = i == 2 ? gate : g_unary(graph, i == 1 ? OP_SILU : OP_GELU, gate);
        Val product = g_binary(graph, OP_MUL, halves[i == 1], gate);
        keep(vals, simplify_val(graph, g_contract(graph, product, out, "bnc", "oc", "bno")));
        if (i == 3)
            keep(vals, simplify_val(graph, g_unary(graph, OP_TANH, halves[0])));
    }
}

static void test_gates(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, level_rungs(1), RUNG_EPILOGUES, RUNG_ELEMENTWISE, 0};
    Codegen *cg = check_graph(gates, rungs, 5);
    for (int i = 0; i < 3; i++) {
        uint32_t gated = 0;
        for (uint32_t g = 0; g < cg->plans[i]->group_count; g++)
            gated += cg->plans[i]->groups[cg->plans[i]->schedule[g]].gate != 0;
        assert_int_equal(gated, 3);
    }
}

// ---- attention, whole and taken apart ----

// Plain, with a mask, causal, both; with and without a scale; lse read beside the gradient.
static void attentions(Graph *graph, Vals *vals)
{
    Val q = input(graph, 0, shape(DT_F32, 4, -1, 2, 5, 4)),
        k = input(graph, 1, shape(DT_F32, 4, -1, 2, 7, 4)),
        v = input(graph, 2, shape(DT_F32, 4, -1, 2, 7, 3)),
        mask = input(graph, 3, shape(DT_F32, 4, 1, 2, 5, 7)),
        d_out = input(graph, 4, shape(DT_F32, 4, -1, 2, 5, 3));
    for (int form = 0; form < 4; form++) {
        uint32_t masked = form >> 1;
        Attr attr = {.n = {form & 1}, .count = 1, .real = form ? 0.7 : 1};
        Val o = make(graph, OP_ATTENTION, (Val[]){q, k, v, mask}, 3 + masked, attr, NULL);
        keep(vals, o);
        keep(vals, make(graph, OP_ATTENTION_GRAD, (Val[]){d_out, q, k, v, o, o + 1, mask},
                        6 + masked, attr, NULL));
    }
}

static void test_attentions(void **unused)
{
    (void)unused;
    const uint32_t rungs[] = {RUNG_ALL, RUNG_ATTENTION, RUNG_ALL & ~RUNG_ATTENTION, 0};
    enum { COUNT = sizeof rungs / sizeof *rungs };
    Codegen *cg = check_graph(attentions, rungs, COUNT);
    for (int i = 0; i < COUNT; i++) {
        bool whole = rungs[i] & RUNG_ATTENTION;
        const Work *work = cg->plans[i];
        uint32_t segments, count = count_launches(cg, work, "pv_attention", &segments);
        assert_int_equal(segments, whole ? 4 : 0);
        count += count_launches(cg, work, "pv_attention_grad", &segments);
        assert_int_equal(segments, whole ? 4 : 0);
        // a softmax for each form, which its gradient reads: it is not computed twice
        assert_int_equal(count_launches(cg, work, "pv_softmax", &segments) > 0, !whole);
        assert_int_equal(segments, whole ? 0 : 4);
        assert_true(whole == (count > 0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_op),
                                       cmocka_unit_test(test_attentions),
                                       cmocka_unit_test(test_planes), cmocka_unit_test(test_norms),
                                       cmocka_unit_test(test_resamples),
                                       cmocka_unit_test(test_axes), cmocka_unit_test(test_guided),
                                       cmocka_unit_test(test_gates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
