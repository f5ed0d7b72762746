// link: pvdm_compiler
// Patterns against expectations written by hand: types, elements, what is bound, and every error
// with its text and the bytes that it underlines.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compiler/pattern.h"
#include "compiler/program.h"

enum { BATCH = 2 };

// Names that the scope knows, and a record of what was bound.
typedef struct {
    PatternAxis known[8];
    uint32_t known_count;
    char bound[256];
} Names;

static bool lookup(void *context, const char *name, Dim *size)
{
    Names *names = context;
    for (uint32_t i = 0; i < names->known_count; i++)
        if (strcmp(names->known[i].name, name) == 0) {
            *size = names->known[i].size;
            return true;
        }
    return false;
}

static void bind(void *context, const char *name, Dim size)
{
    Names *names = context;
    size_t used = strlen(names->bound);
    snprintf(names->bound + used, sizeof names->bound - used, "%s%s=%lld%s", used ? " " : "", name,
             (long long)size.n, size.batch ? "b" : "");
}

typedef struct {
    Arena *arena;
    Graph *graph;
    Names names;
    PatternScope scope;
    PatternError error;
} Bench;

static void set_up(Bench *bench)
{
    memset(bench, 0, sizeof *bench);
    bench->arena = arena_new();
    bench->graph = graph_new(bench->arena);
    bench->scope =
        (PatternScope){.context = &bench->names, .lookup = lookup, .bind = bind, .real = DT_F64};
}

// "b" and one more known name.
static void know(Bench *bench, const char *name, Dim size)
{
    bench->names.known[bench->names.known_count++] = (PatternAxis){name, size};
}

// An input; a negative size -n is n * b.
static Val input(Bench *bench, int64_t index, DType dtype, uint32_t rank, const int64_t *dims)
{
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++)
        dim[i] = dims[i] < 0 ? dim_batch(-dims[i]) : dim_fixed(dims[i]);
    Type type = type_make(dtype, rank, dim);
    return graph_make(bench->graph, OP_INPUT, NULL, 0,
                      &(Attr){.n = {0, index}, .count = 2, .text = "x"}, &type);
}
#define DIMS(...)                                                                                  \
    sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[])                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

// Element i of input k is 1000 k + i (a truth value: i is odd).
static void *give(void *context, const Node *node, const Type *type)
{
    (void)context;
    if (node->op != OP_INPUT)
        return NULL;
    Dim count;
    type_count(type, &count);
    size_t n = (size_t)(count.n * (count.batch ? BATCH : 1));
    char *data = malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        if (type->dtype == DT_BOOL)
            data[i] = i % 2;
        else
            ((double *)data)[i] = 1000 * (double)node->attr->n[1] + (double)i;
    }
    return data;
}

static void *elements(Bench *bench, Val val)
{
    InterpOptions options = {.batch = BATCH, .real = DT_F64, .source = give};
    void *result;
    if (!val)
        fail_msg("%s", graph_error(bench->graph));
    if (interp_run(bench->graph, &options, &val, 1, &result) != 0)
        fail_msg("%s", graph_error(bench->graph));
    return result;
}

static void expect_type(Bench *bench, Val val, const char *text)
{
    if (!val)
        fail_msg("%s", graph_error(bench->graph));
    assert_string_equal(type_text(val_type(bench->graph, val)), text);
}

// ---- rearrange ----

static void test_split_and_join(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    know(&bench, "b", dim_batch(1));
    know(&bench, "n", dim_fixed(3));
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 12, 2));
    Val y = pattern_rearrange(bench.graph, &bench.scope, x, "b (f n) d -> (b n) f d", &bench.error);
    expect_type(&bench, y, "f64[3b, 4, 2]");
    assert_string_equal(bench.names.bound, "f=4 d=2");
    double *have = elements(&bench, y);
    for (int b = 0; b < BATCH; b++)
        for (int f = 0; f < 4; f++)
            for (int n = 0; n < 3; n++)
                for (int d = 0; d < 2; d++)
                    assert_true(have[((b * 3 + n) * 4 + f) * 2 + d] ==
                                ((b * 12 + f * 3 + n) * 2 + d));
    free(have);
    arena_free(bench.arena);
}

static void test_numbers(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    know(&bench, "heads", dim_fixed(2));
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 5, 24));
    Val y = pattern_rearrange(bench.graph, &bench.scope, x, "b n (3 heads d) -> 3 b heads n d",
                              &bench.error);
    expect_type(&bench, y, "f64[3, b, 2, 5, 4]");
    double *have = elements(&bench, y);
    for (int k = 0; k < 3; k++)
        for (int b = 0; b < BATCH; b++)
            for (int h = 0; h < 2; h++)
                for (int n = 0; n < 5; n++)
                    for (int d = 0; d < 4; d++)
                        assert_true(have[(((k * BATCH + b) * 2 + h) * 5 + n) * 4 + d] ==
                                    ((b * 5 + n) * 24 + (k * 2 + h) * 4 + d));
    free(have);
    // the first 2 is the first 2 of the other side, the second the second
    x = input(&bench, 1, DT_F64, DIMS(2, 3, 2));
    expect_type(&bench,
                pattern_rearrange(bench.graph, &bench.scope, x, "2 a 2 -> (2 2) a", &bench.error),
                "f64[4, 3]");
    arena_free(bench.arena);
}

static void test_batch_and_ones(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    know(&bench, "t", dim_fixed(16));
    Val x = input(&bench, 0, DT_F64, DIMS(-16, 3, 2));
    Val y = pattern_rearrange(bench.graph, &bench.scope, x, "(b t) c h -> b c t h", &bench.error);
    expect_type(&bench, y, "f64[b, 3, 16, 2]");
    assert_string_equal(bench.names.bound, "b=1b c=3 h=2");

    PatternAxis given[1] = {{"t", dim_fixed(4)}};
    bench.scope.given = given;
    bench.scope.given_count = 1;
    y = pattern_rearrange(bench.graph, &bench.scope, x, "(s t) c h -> s (t c) 1 h 1", &bench.error);
    expect_type(&bench, y, "f64[4b, 12, 1, 2, 1]");
    bench.scope.given_count = 0;

    Val v = input(&bench, 1, DT_F64, DIMS(1, 3, 1));
    y = pattern_rearrange(bench.graph, &bench.scope, v, "1 k 1 -> k", &bench.error);
    expect_type(&bench, y, "f64[3]");
    y = pattern_rearrange(bench.graph, &bench.scope, x, "a c d -> a c d", &bench.error);
    assert_int_equal(y, x);
    y = pattern_rearrange(bench.graph, &bench.scope, v, "1 k () -> k ()", &bench.error);
    expect_type(&bench, y, "f64[3, 1]");
    arena_free(bench.arena);
}

static void test_rest(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 4, 5, 6));
    Val y = pattern_rearrange(bench.graph, &bench.scope, x, "b c ... -> b c (...)", &bench.error);
    expect_type(&bench, y, "f64[b, 4, 30]");
    assert_string_equal(bench.names.bound, "b=1b c=4");

    Dim rest[2] = {dim_fixed(5), dim_fixed(6)};
    bench.scope.has_rest = true;
    bench.scope.rest_rank = 2;
    bench.scope.rest = rest;
    y = pattern_rearrange(bench.graph, &bench.scope, y, "b c (...) -> b c ...", &bench.error);
    assert_string_equal(type_text(val_type(bench.graph, y)), "f64[b, 4, 5, 6]");
    bench.scope.rest_rank = 0;
    Val flat = input(&bench, 1, DT_F64, DIMS(-1, 4));
    y = pattern_rearrange(bench.graph, &bench.scope, flat, "b c ... -> ... c b", &bench.error);
    expect_type(&bench, y, "f64[4, b]");
    arena_free(bench.arena);
}

// ---- repeat, reduce, einsum ----

static void test_repeat(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    know(&bench, "t", dim_fixed(3));
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 2, 4));
    Val y = pattern_repeat(bench.graph, &bench.scope, x, "b c h -> b h t (c 2)", &bench.error);
    expect_type(&bench, y, "f64[b, 4, 3, 4]");
    double *have = elements(&bench, y);
    for (int b = 0; b < BATCH; b++)
        for (int h = 0; h < 4; h++)
            for (int t = 0; t < 3; t++)
                for (int k = 0; k < 4; k++)
                    assert_true(have[((b * 4 + h) * 3 + t) * 4 + k] == (b * 2 + k / 2) * 4 + h);
    free(have);
    know(&bench, "s", dim_batch(6));
    Val token = input(&bench, 1, DT_F64, DIMS(1, 1, 5));
    expect_type(&bench,
                pattern_repeat(bench.graph, &bench.scope, token, "1 1 d -> s 1 d", &bench.error),
                "f64[6b, 1, 5]");
    arena_free(bench.arena);
}

static void test_reduce(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 2, 3));
    static const struct {
        PatternReduce op;
        double want[2];
    } whole[] = {
        {PATTERN_SUM, {15, 51}},
        {PATTERN_MEAN, {2.5, 8.5}},
        {PATTERN_MAX, {5, 11}},
        {PATTERN_MIN, {0, 6}},
        {PATTERN_VAR, {35.0 / 12, 35.0 / 12}},
    };
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        Val y =
            pattern_reduce(bench.graph, &bench.scope, whole[i].op, x, "b c n -> b 1", &bench.error);
        expect_type(&bench, y, "f64[b, 1]");
        double *have = elements(&bench, y);
        for (int b = 0; b < BATCH; b++)
            assert_float_equal(have[b], whole[i].want[b], 1e-12);
        free(have);
    }
    // over the batch, with axes that change places; the count depends on b
    Val y =
        pattern_reduce(bench.graph, &bench.scope, PATTERN_MEAN, x, "b c n -> n c", &bench.error);
    expect_type(&bench, y, "f64[3, 2]");
    double *have = elements(&bench, y);
    for (int c = 0; c < 2; c++)
        for (int n = 0; n < 3; n++)
            assert_float_equal(have[n * 2 + c], c * 3 + n + 3, 1e-12);
    free(have);
    // part of a group
    y = pattern_reduce(bench.graph, &bench.scope, PATTERN_MAX, x, "b c (n 3) -> b c n",
                       &bench.error);
    expect_type(&bench, y, "f64[b, 2, 1]");

    Val flags = input(&bench, 1, DT_BOOL, DIMS(3, 2));
    y = pattern_reduce(bench.graph, &bench.scope, PATTERN_ANY, flags, "a c -> c", &bench.error);
    expect_type(&bench, y, "bool[2]");
    unsigned char *bits = elements(&bench, y);
    assert_true(!bits[0] && bits[1]);
    free(bits);
    y = pattern_reduce(bench.graph, &bench.scope, PATTERN_ALL, flags, "a c -> a 1", &bench.error);
    bits = elements(&bench, y);
    assert_true(!bits[0] && !bits[1] && !bits[2]);
    free(bits);
    arena_free(bench.arena);
}

static void test_einsum(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 2, 3)), y = input(&bench, 1, DT_F64, DIMS(-1, 4, 3));
    Val z = pattern_einsum(bench.graph, &bench.scope, (Val[]){x, y}, 2, "b i d, b j d -> b j i",
                           &bench.error);
    expect_type(&bench, z, "f64[b, 4, 2]");
    assert_int_equal(val_get(bench.graph, z)->op, OP_CONTRACT);
    double *have = elements(&bench, z);
    for (int b = 0; b < BATCH; b++)
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++) {
                double want = 0;
                for (int d = 0; d < 3; d++)
                    want += ((b * 2 + i) * 3 + d) * (1000.0 + (b * 4 + j) * 3 + d);
                assert_float_equal(have[(b * 4 + j) * 2 + i], want, 1e-9);
            }
    free(have);
    // nothing is summed: elementwise
    Val u = input(&bench, 2, DT_F64, DIMS(-1)), v = input(&bench, 3, DT_F64, DIMS(5));
    z = pattern_einsum(bench.graph, &bench.scope, (Val[]){u, v}, 2, "b, f -> b f", &bench.error);
    expect_type(&bench, z, "f64[b, 5]");
    assert_int_equal(val_get(bench.graph, z)->op, OP_MUL);
    // three operands, an axis of one summed alone, groups on both sides
    Val w = input(&bench, 4, DT_F64, DIMS(6, 2));
    z = pattern_einsum(bench.graph, &bench.scope, (Val[]){x, w, v}, 3,
                       "b i d, (d k) j, f -> (i b) k", &bench.error);
    expect_type(&bench, z, "f64[2b, 2]");
    have = elements(&bench, z);
    double sum_v = 3000 * 5 + 10;
    for (int b = 0; b < BATCH; b++)
        for (int i = 0; i < 2; i++)
            for (int k = 0; k < 2; k++) {
                double want = 0;
                for (int d = 0; d < 3; d++)
                    for (int j = 0; j < 2; j++)
                        want += ((b * 2 + i) * 3 + d) * (4000.0 + (d * 2 + k) * 2 + j) * sum_v;
                assert_float_equal(have[(i * BATCH + b) * 2 + k] / want, 1, 1e-12);
            }
    free(have);
    arena_free(bench.arena);
}

// ---- pack and unpack ----

static void test_pack(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 4, 2, 3)),
        y = input(&bench, 1, DT_F64, DIMS(-1, 4, 5));
    Val z = input(&bench, 2, DT_F64, DIMS(-1, 4));
    Val packed =
        pattern_pack(bench.graph, &bench.scope, (Val[]){x, y, z}, 3, "b c *", &bench.error);
    expect_type(&bench, packed, "f64[b, 4, 12]");
    const Type *type = val_type(bench.graph, packed);
    const Segments *segments = graph_segments(bench.graph, type->seg);
    assert_int_equal(type->seg_axis, 2);
    assert_int_equal(segments->count, 3);
    assert_int_equal(segments->rank[0], 2);
    assert_int_equal(segments->extent[0][1], 3);
    assert_int_equal(segments->extent[2][0], 1);

    PatternShape like[3];
    Val inputs[3] = {x, y, z}, out[3];
    for (int i = 0; i < 3; i++)
        assert_true(pattern_star(bench.graph, "b c *", val_type(bench.graph, inputs[i]), &like[i],
                                 &bench.error));
    assert_int_equal(like[0].rank, 2);
    assert_int_equal(like[2].rank, 0);
    assert_true(
        pattern_unpack(bench.graph, &bench.scope, packed, "b c *", like, 3, out, &bench.error));
    for (int i = 0; i < 3; i++) {
        assert_true(shape_equal(val_type(bench.graph, out[i]), val_type(bench.graph, inputs[i])));
        double *have = elements(&bench, out[i]), *want = elements(&bench, inputs[i]);
        Dim count;
        type_count(val_type(bench.graph, out[i]), &count);
        assert_memory_equal(have, want, (size_t)(count.n * BATCH) * sizeof *have);
        free(have);
        free(want);
        assert_int_equal(simplify_val(bench.graph, out[i]), inputs[i]);
    }
    // in the middle of the pattern, and one tensor alone
    Val middle = pattern_pack(bench.graph, &bench.scope, &x, 1, "b * h", &bench.error);
    expect_type(&bench, middle, "f64[b, 8, 3]");
    arena_free(bench.arena);
}

// ---- errors ----

typedef enum { REARRANGE, REPEAT, REDUCE, EINSUM, PACK, UNPACK } Call;

typedef struct {
    Call call;
    const char *pattern;
    const char *message;
    const char *underlined; // the first place of this text in the pattern; NULL: all of it
    bool in_scope;
} ErrorCase;

// x is [b, 4, 6]; the scope has h = 32, n = 4; einsum has x twice.
static const ErrorCase error_cases[] = {
    {REARRANGE, "b c h -> b h c", "axis 'h' is 6 in the tensor, and 32 in this scope", "h", true},
    {REARRANGE, "b n t -> t n b", "axis 't' is 6 in the tensor, and 3 in the call", "t", false},
    {REARRANGE, "b 3 d -> d 3 b", "the axis is 4 in the tensor, and 3 in the pattern", "3", false},
    {REARRANGE, "b 1 d -> d b", "'1' is 4 in the tensor, which does not go with 1", "1", false},
    {REARRANGE, "b n (h w) -> b n h w",
     "'(h w)' is 6 in the tensor, which does not go with 'h' = 32, 'w' unknown", "(h w)", false},
    {REARRANGE, "b n (p q) -> b n p q",
     "the size of axis 'p' does not follow; give it, for example 'p: 4'", "p", false},
    {REARRANGE, "(b d) n e -> b d n e",
     "the size of axis 'b' does not follow; give it, for example 'b: 4'", "b", false},
    {REARRANGE, "b n -> n b", "the pattern has 2 axes, and the tensor 3: f64[b, 4, 6]", "b n",
     false},
    {REARRANGE, "b n d ... e -> b", "the pattern has 4 axes, and the tensor 3", "b n d ... e",
     false},
    {REARRANGE, "b n d -> b n d e", "axis 'e' stands only on the right; repeat makes new axes", "e",
     false},
    {REARRANGE, "b n d -> b n", "axis 'd' stands only on the left; sum, mean and max remove axes",
     "d", false},
    {REARRANGE, "b n n -> b n", "'n' stands twice on one side", "n ->", false},
    {REARRANGE, "b n d", "the pattern has no '->'", NULL, false},
    {REARRANGE, "b n d - b", "'-' means nothing in a pattern", "-", false},
    {REARRANGE, "b n d -> d n b -> n", "'-' on the right side of the pattern", "-> n", false},
    {REARRANGE, "b (n d -> b n d", "'-' means nothing in a pattern", "->", false},
    {REARRANGE, "b (n d", "'(' is not closed", "(", false},
    {REARRANGE, "b ((n) d) -> b n d", "parentheses in parentheses", "(n", false},
    {REARRANGE, "b n) d -> b n d", "')' means nothing in a pattern", ")", false},
    {REARRANGE, "b 2x d -> b d", "'2x' is not an axis", "2x", false},
    {REARRANGE, "b 0 d -> b d", "'0' is not an axis", "0", false},
    {REARRANGE, "b n * -> b n *", "'*' stands only in patterns of pack and unpack", "*", false},
    {REARRANGE, "b n d, b -> b n d", "',' stands only in patterns of einsum", ",", false},
    {REARRANGE, "b n (...) -> b n ...", "'...' is not known here: the function does not declare it",
     "...", false},
    {REARRANGE, "b n d -> (b n d) u", "axis 'u' stands only on the right; repeat makes new axes",
     "u", false},
    {REPEAT, "b n d -> b n u d",
     "the size of the new axis 'u' is not known; give it, for example 'u: 4'", "u", false},
    {REPEAT, "b n d -> b d", "axis 'n' stands only on the left; sum, mean and max remove axes", "n",
     false},
    {REDUCE, "b n d -> b e", "axis 'e' stands only on the right", "e", false},
    {EINSUM, "b n d -> b", "the pattern has 1 operands, and the call 2", NULL, false},
    {EINSUM, "b n d, b m n -> b m", "axis 'n' is 6 in the tensor, and 4 in this scope", "n -> b m",
     true},
    {EINSUM, "b p d, b m p -> b m", "axis 'p' is 6 in the tensor, and 4 before", "p ->", false},
    {PACK, "b n", "the pattern has no '*'", NULL, false},
    {PACK, "b n * -> b", "pack and unpack take one side: \"b c *\"", NULL, false},
    {PACK, "b h *", "axis 'h' is 4 in the tensor, and 32 in this scope", "h", true},
    {PACK, "b (n h) *", "parentheses in a pattern of pack or unpack", "(n h)", false},
    {UNPACK, "b n *", "'*' is 6 in the tensor, and the shapes of 'like' add up to 5", "*", false},
};

static Val call(Bench *bench, Call kind, Val x, const char *pattern)
{
    PatternShape like = {1, {dim_fixed(5)}};
    Val out, xs[2] = {x, x};
    switch (kind) {
    case REARRANGE:
        return pattern_rearrange(bench->graph, &bench->scope, x, pattern, &bench->error);
    case REPEAT:
        return pattern_repeat(bench->graph, &bench->scope, x, pattern, &bench->error);
    case REDUCE:
        return pattern_reduce(bench->graph, &bench->scope, PATTERN_SUM, x, pattern, &bench->error);
    case EINSUM:
        return pattern_einsum(bench->graph, &bench->scope, xs, 2, pattern, &bench->error);
    case PACK:
        return pattern_pack(bench->graph, &bench->scope, xs, 2, pattern, &bench->error);
    case UNPACK:
        return pattern_unpack(bench->graph, &bench->scope, x, pattern, &like, 1, &out,
                              &bench->error);
    }
    return 0;
}

static void test_errors(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof error_cases / sizeof *error_cases; i++) {
        const ErrorCase *want = &error_cases[i];
        Bench bench;
        set_up(&bench);
        know(&bench, "h", dim_fixed(32));
        know(&bench, "n", dim_fixed(4));
        PatternAxis given[1] = {{"t", dim_fixed(3)}};
        bench.scope.given = given;
        bench.scope.given_count = strchr(want->pattern, 't') != NULL;
        Val x = input(&bench, 0, DT_F64, DIMS(-1, 4, 6));
        if (call(&bench, want->call, x, want->pattern))
            fail_msg("'%s' was taken", want->pattern);
        if (strcmp(graph_error(bench.graph), want->message) != 0)
            fail_msg("'%s': '%s', not '%s'", want->pattern, graph_error(bench.graph),
                     want->message);
        assert_string_equal(bench.names.bound, "");
        assert_int_equal(bench.error.in_scope, want->in_scope);
        const char *place =
            want->underlined ? strstr(want->pattern, want->underlined) : want->pattern;
        if (bench.error.begin != (uint32_t)(place - want->pattern) ||
            bench.error.end <= bench.error.begin || bench.error.end > strlen(want->pattern))
            fail_msg("'%s' is underlined at %u..%u", want->pattern, bench.error.begin,
                     bench.error.end);
        arena_free(bench.arena);
    }
}

static void test_given_without_axis(void **state)
{
    (void)state;
    Bench bench;
    set_up(&bench);
    PatternAxis given[1] = {{"t", dim_fixed(3)}};
    bench.scope.given = given;
    bench.scope.given_count = 1;
    Val x = input(&bench, 0, DT_F64, DIMS(-1, 4));
    assert_int_equal(call(&bench, REARRANGE, x, "b n -> n b"), 0);
    assert_string_equal(graph_error(bench.graph), "the pattern has no axis 't'");
    arena_free(bench.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_and_join), cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_batch_and_ones), cmocka_unit_test(test_rest),
        cmocka_unit_test(test_repeat),         cmocka_unit_test(test_reduce),
        cmocka_unit_test(test_einsum),         cmocka_unit_test(test_pack),
        cmocka_unit_test(test_errors),         cmocka_unit_test(test_given_without_axis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
