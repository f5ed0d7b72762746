// link: pvdm_codegen
// Which axis of a stored value is dense in mixed precision, and where its parameters lie.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "codegen/codegen.h"

// A program of one image [b, 16, 4, 4], a filter and a vector; plans of it in mixed precision.
typedef struct {
    Module module;
    Entry entry;
    Variant variant;
    Output outputs[4];
    Param params[2];
    Arena *arena;
    Graph *graph;
    Val image, filter, gamma;
    Work work;
} Sample;

static Val source(Sample *sample, Op op, int64_t index, const Type *type)
{
    Attr attr = {.n = {index, index}, .count = op == OP_PARAM ? 1 : 2, .text = intern("x")};
    return graph_make(sample->graph, op, NULL, 0, &attr, type);
}

static Sample *start(void)
{
    Arena *arena = arena_new();
    Sample *sample = arena_alloc(arena, sizeof *sample);
    Dim image[] = {dim_batch(1), dim_fixed(16), dim_fixed(4), dim_fixed(4)};
    Dim filter[] = {dim_fixed(16), dim_fixed(16), dim_fixed(3), dim_fixed(3)};
    Type types[3] = {type_make(DT_F32, 4, image), type_make(DT_F32, 4, filter),
                     type_make(DT_F32, 1, filter)};
    sample->arena = arena;
    sample->graph = graph_new(arena);
    sample->params[0] = (Param){.name = "w", .type = types[1]};
    sample->params[1] = (Param){.name = "g", .type = types[2]};
    sample->image = source(sample, OP_INPUT, 0, &types[0]);
    sample->filter = source(sample, OP_PARAM, 0, &types[1]);
    sample->gamma = source(sample, OP_PARAM, 1, &types[2]);
    static Input inputs[] = {{.name = "x"}};
    sample->variant = (Variant){.outputs = sample->outputs};
    sample->entry = (Entry){.kind = ENTRY_PROGRAM, .name = "sample", .inputs = inputs,
                            .input_count = 1, .variants = &sample->variant, .variant_count = 1};
    sample->module = (Module){.path = "", .name = "sample", .arena = arena, .graph = sample->graph,
                              .real = DT_F32, .storage = DT_BF16, .entries = &sample->entry,
                              .entry_count = 1, .params = sample->params, .param_count = 2};
    return sample;
}

static void output(Sample *sample, Val val)
{
    uint32_t index = sample->variant.output_count++;
    sample->outputs[index] = (Output){OUT_NAMED, "y", 0, val};
}

static void lay_out(Sample *sample, bool taps)
{
    order_params(&sample->module);
    sample->work = (Work){.module = &sample->module, .entry = &sample->entry,
                          .variant = &sample->variant, .level = taps ? 0 : 2,
                          .rungs = taps ? 0 : RUNG_ALL, .taps = taps, .arena = sample->arena};
    find_layout(&sample->work);
}

static Val conv(Sample *sample, Val x)
{
    Attr attr = {.n = {2, 1, 1, 1, 1, 1, 1, 0}, .count = 8};
    return graph_make(sample->graph, OP_CONV, (Val[]){x, sample->filter}, 2, &attr, NULL);
}

static Val norm(Sample *sample, Val x)
{
    Attr attr = {.n = {4}, .count = 1, .real = 1e-5};
    return graph_make(sample->graph, OP_GROUP_NORM, (Val[]){x, sample->gamma, sample->gamma}, 3,
                      &attr, NULL);
}

static Val tanh_of(Sample *sample, Val x)
{
    return g_unary(sample->graph, OP_TANH, x);
}

// The axis that is dense where `val` is stored.
static uint32_t dense_axis(const Sample *sample, Val val)
{
    View view = view_of(&sample->work, val);
    uint32_t axis = 0;
    while (axis < MAX_RANK && !dim_equal(view.stride[axis], dim_fixed(1)))
        axis++;
    return axis;
}

static void convolutions_want_channels(void **state)
{
    (void)state;
    Sample *sample = start();
    Val first = conv(sample, sample->image), middle = tanh_of(sample, first);
    Val normed = norm(sample, middle), last = conv(sample, normed);
    output(sample, last);
    lay_out(sample, false);
    assert_int_equal(dense_axis(sample, first), 1);
    assert_int_equal(dense_axis(sample, middle), 1);
    assert_int_equal(dense_axis(sample, normed), 1);
    assert_int_equal(dense_axis(sample, last), 3);                 // as it is wanted
    assert_true(stored_dtype(&sample->work, middle) == DT_BF16);
    assert_int_equal(dense_axis(sample, sample->image), 3);        // as it was given
    lay_out(sample, true);
    assert_int_equal(dense_axis(sample, middle), 3);
    sample->module.storage = DT_NONE;
    lay_out(sample, false);
    assert_int_equal(dense_axis(sample, middle), 3);
    arena_free(sample->arena);
}

// Rows as the type has them outvote one convolution of a smaller value.
static void the_larger_wish_wins(void **state)
{
    (void)state;
    Sample *sample = start();
    Val x = tanh_of(sample, sample->image), rows[6];
    for (int i = 0; i < 6; i++)        // softmax reads rows
        rows[i] = graph_make(sample->graph, OP_SOFTMAX, (Val[]){tanh_of(sample, x)}, 1,
                             &(Attr){.count = 0}, NULL);
    Val sum = rows[0];
    for (int i = 1; i < 6; i++)
        sum = g_binary(sample->graph, OP_ADD, sum, rows[i]);
    Val other = conv(sample, tanh_of(sample, sample->image));
    output(sample, sum);
    output(sample, g_reduce(sample->graph, OP_REDUCE_SUM, other, 14));
    lay_out(sample, false);
    assert_int_equal(dense_axis(sample, x), 3);
    assert_int_equal(dense_axis(sample, other), 1);
    arena_free(sample->arena);
}

// Reshaped and turned, attention's width is the inner part of the channels.
static void wishes_pass_through_views(void **state)
{
    (void)state;
    Sample *sample = start();
    Graph *graph = sample->graph;
    Dim heads[] = {dim_batch(1), dim_fixed(2), dim_fixed(8), dim_fixed(16)};
    const uint32_t perm[] = {0, 1, 3, 2};
    Val x = tanh_of(sample, sample->image);
    Val q = g_transpose(graph, g_reshape(graph, x, 4, heads), perm);
    Attr attr = {.n = {0}, .count = 1, .real = 1};
    Val o = graph_make(graph, OP_ATTENTION, (Val[]){q, q, q}, 3, &attr, NULL);
    output(sample, o);
    lay_out(sample, false);
    assert_int_equal(dense_axis(sample, x), 1);
    assert_int_equal(dense_axis(sample, q), 3);
    arena_free(sample->arena);
}

// Parts of a concat of channels lie where it lies, with its channels between theirs.
static void parts_stay_placed(void **state)
{
    (void)state;
    Sample *sample = start();
    Val parts[2] = {conv(sample, sample->image)};
    parts[1] = tanh_of(sample, norm(sample, parts[0]));
    Val all = g_concat(sample->graph, parts, 2, 1), y = norm(sample, parts[1]);
    output(sample, g_reduce(sample->graph, OP_REDUCE_SUM, tanh_of(sample, all), 14));
    output(sample, g_reduce(sample->graph, OP_REDUCE_SUM, y, 14));
    lay_out(sample, false);
    assert_int_equal(dense_axis(sample, all), 1);
    for (int i = 0; i < 2; i++) {
        const View *within = within_of(&sample->work, parts[i]);
        assert_true(within && within->base == all);
        assert_int_equal(within->stride[1].n, 1);
        assert_int_equal(within->stride[3].n, 32);
        assert_int_equal(within->offset.fixed, 16 * i);
    }
    arena_free(sample->arena);
}

static void filters_have_one_order(void **state)
{
    (void)state;
    Sample *sample = start();
    Val y = conv(sample, tanh_of(sample, sample->image));
    output(sample, norm(sample, y));
    lay_out(sample, false);
    assert_true(sample->params[0].last && !sample->params[1].last);
    Dim stride[MAX_RANK];
    param_strides(&sample->module, 0, stride);
    const int64_t want[] = {144, 1, 48, 16};
    View view = view_of(&sample->work, sample->filter);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(stride[i].n, want[i]);
        assert_int_equal(view.stride[i].n, want[i]);
    }
    assert_true(stored_dtype(&sample->work, sample->filter) == DT_BF16);
    assert_true(stored_dtype(&sample->work, sample->gamma) == DT_F32);
    lay_out(sample, true);             // f32, but of the same parameters
    assert_int_equal(view_of(&sample->work, sample->filter).stride[1].n, 1);
    assert_true(stored_dtype(&sample->work, sample->filter) == DT_F32);
    arena_free(sample->arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions_want_channels), cmocka_unit_test(the_larger_wish_wins),
        cmocka_unit_test(wishes_pass_through_views),  cmocka_unit_test(parts_stay_placed),
        cmocka_unit_test(filters_have_one_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
