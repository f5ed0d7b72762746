// Built-in functions on lists and numbers, and those that move or make tensors.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "compiler/elab.h"

#define UNUSED(x) ((void)(x))

// ---- lists ----

static Value call_len(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    return value_int(sequence_count(e, arg[0], arg_span(call, 0)));
}

// New list; its elements count as steps, so that no list grows without end.
static List *counted_list(Elab *e, int64_t count, const Args *call)
{
    if (count < 0 || count > ELAB_MAX_STEPS)
        elab_fail(e, call->span, "a list of %" PRId64 " elements is too long", count);
    elab_step(e, call->span, (uint64_t)count);
    return list_new(e, (uint32_t)count);
}

static Value call_enumerate(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                            const Args *call)
{
    UNUSED(frame), UNUSED(self);
    List *list = counted_list(e, sequence_count(e, arg[0], arg_span(call, 0)), call);
    for (uint32_t i = 0; i < list->count; i++) {
        Value pair[2] = {value_int(i), sequence_at(e, arg[0], i, call->span)};
        list->at[i] = value_list(e, pair, 2);
    }
    return (Value){.kind = V_LIST, .list = list};
}

static Value call_zip(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self), UNUSED(arg);
    if (!call->count)
        elab_fail(e, call->span, "zip needs lists");
    uint32_t count = sequence_count(e, call->at[0].value, call->at[0].span);
    for (uint32_t i = 1; i < call->count; i++) {
        uint32_t other = sequence_count(e, call->at[i].value, call->at[i].span);
        if (other != count)
            elab_fail(e, call->at[i].span,
                      "zip joins lists of one length; here are %" PRIu32 " and %" PRIu32
                      " elements",
                      count, other);
    }
    List *list = counted_list(e, count, call);
    for (uint32_t i = 0; i < count; i++) {
        List *row = list_new(e, call->count);
        for (uint32_t j = 0; j < call->count; j++)
            row->at[j] = sequence_at(e, call->at[j].value, i, call->at[j].span);
        list->at[i] = (Value){.kind = V_LIST, .list = row};
    }
    return (Value){.kind = V_LIST, .list = list};
}

static Value call_reverse(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    if (arg[0].kind == V_RANGE) {
        Range *range = arena_copy(e->arena, arg[0].range, sizeof *range);
        range->reversed = !range->reversed;
        return (Value){.kind = V_RANGE, .range = range};
    }
    List *list = counted_list(e, sequence_count(e, arg[0], arg_span(call, 0)), call);
    for (uint32_t i = 0; i < list->count; i++)
        list->at[i] = sequence_at(e, arg[0], list->count - 1 - i, call->span);
    return (Value){.kind = V_LIST, .list = list};
}

static Value call_cumprod(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    List *list = counted_list(e, sequence_count(e, arg[0], arg_span(call, 0)), call);
    for (uint32_t i = 0; i < list->count; i++) {
        Value next = sequence_at(e, arg[0], i, call->span);
        list->at[i] =
            i ? eval_operator(e, frame, OPR_MUL, list->at[i - 1], next, call->span, NULL, NULL)
              : next;
    }
    return (Value){.kind = V_LIST, .list = list};
}

// n numbers from a to b, both included; one number is a.
static Value call_linspace(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    double a = value_number(e, arg[0], arg_span(call, 0), "the first number");
    double b = value_number(e, arg[1], arg_span(call, 1), "the last number");
    List *list = counted_list(e, whole_arg(e, arg[2], call, "the number of numbers"), call);
    for (uint32_t i = 0; i < list->count; i++)
        list->at[i] = value_real(i + 1 == list->count && i
                                     ? b
                                     : a + (list->count > 1 ? i * (b - a) / (list->count - 1) : 0));
    return (Value){.kind = V_LIST, .list = list};
}

// ---- numbers ----

static int64_t floor_divide(Elab *e, int64_t a, int64_t b, Span span)
{
    if (b == 0)
        elab_fail(e, span, "division by zero");
    if (b == -1)
        return a == INT64_MIN ? INT64_MAX : -a;
    int64_t quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

static Value call_div(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    Value x = arg[0], y = arg[1];
    if (x.kind == V_INT && y.kind == V_INT && !x.batch && !y.batch)
        return value_int(floor_divide(e, x.integer, y.integer, call->span));
    if (x.kind == V_INT && y.kind == V_INT && y.integer != 0 && x.integer % y.integer == 0 &&
        x.batch)
        return eval_operator(e, frame, OPR_DIV, x, y, call->span, NULL, NULL);
    if (value_is_number(x) && value_is_number(y) && !x.batch && !y.batch) {
        double a = value_number(e, x, call->span, "x"), b = value_number(e, y, call->span, "y");
        if (b == 0)
            elab_fail(e, call->span, "division by zero");
        return value_real(floor(a / b));
    }
    Val a = tensor_arg(e, arg, 0, call), b = tensor_arg(e, arg, 1, call);
    bool whole = val_type(e->graph, a)->dtype == DT_I64 && val_type(e->graph, b)->dtype == DT_I64;
    Val val = compose_binary(e->graph, OP_DIV, a, b);
    return tensor_or_fail(e, whole || !val ? val : g_unary(e->graph, OP_FLOOR, val), call->span);
}

static Value call_floor(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame);
    bool round = self->op == OP_COUNT;
    if (arg[0].kind == V_INT)
        return arg[0];
    if (arg[0].kind == V_REAL) {
        double result = round ? nearbyint(arg[0].real) : floor(arg[0].real);
        if (!(fabs(result) < 9e18))
            elab_fail(e, call->span, "%g is too large for an integer", result);
        return value_int((int64_t)result);
    }
    Val x = tensor_arg(e, arg, 0, call);
    if (val_type(e->graph, x)->dtype == DT_I64)
        return value_tensor(x);
    Val val = round ? compose_round(e->graph, x) : g_unary(e->graph, OP_FLOOR, x);
    return tensor_or_fail(e, val, call->span);
}

static Value call_f32(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    if (arg[0].kind == V_LIST || arg[0].kind == V_RANGE)
        return value_tensor(list_table(e, arg[0], arg_span(call, 0)));
    if (value_is_number(arg[0]) && !arg[0].batch)
        return value_real(value_number(e, arg[0], call->span, "x"));
    return tensor_or_fail(e, g_cast(e->graph, tensor_arg(e, arg, 0, call), e->real), call->span);
}

static Value call_int(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    if (arg[0].kind == V_INT)
        return arg[0];
    if (arg[0].kind == V_BOOL)
        return value_int(arg[0].integer);
    if (arg[0].kind == V_REAL) {
        if (!(fabs(arg[0].real) < 9e18))
            elab_fail(e, call->span, "%g is too large for an integer", arg[0].real);
        return value_int((int64_t)arg[0].real);
    }
    Val x = arg[0].kind == V_LIST ? list_table(e, arg[0], arg_span(call, 0))
                                  : tensor_arg(e, arg, 0, call);
    return tensor_or_fail(e, g_cast(e->graph, x, DT_I64), call->span);
}

// ---- movement ----

static Value list_of(Elab *e, const Val *vals, uint32_t count)
{
    List *list = list_new(e, count);
    for (uint32_t i = 0; i < count; i++)
        list->at[i] = value_tensor(vals[i]);
    return (Value){.kind = V_LIST, .list = list};
}

static Value call_concat(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    uint32_t count = sequence_count(e, arg[0], arg_span(call, 0));
    if (arg[0].kind != V_LIST || !count)
        elab_fail(e, arg_span(call, 0), "concat joins a list of tensors; this is %s",
                  value_describe(e, arg[0]));
    Val *vals = arena_alloc(e->arena, count * sizeof *vals);
    for (uint32_t i = 0; i < count; i++)
        vals[i] = value_val(e, arg[0].list->at[i], arg_span(call, 0));
    int64_t axis = whole_arg(e, arg[1], call, "the axis");
    return tensor_or_fail(e, compose_concat(e->graph, vals, count, axis), call->span);
}

static Value call_split(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    Val x = tensor_arg(e, arg, 0, call);
    int64_t axis = whole_arg(e, arg[2], call, "the axis");
    uint32_t count;
    bool done;
    Val *vals;
    if (arg[1].kind == V_LIST) {
        count = arg[1].list->count;
        vals = arena_alloc(e->arena, (count + 1) * sizeof *vals);
        int64_t *sizes = arena_alloc(e->arena, (count + 1) * sizeof *sizes);
        for (uint32_t i = 0; i < count; i++)
            sizes[i] = whole_arg(e, arg[1].list->at[i], call, "a size");
        done = compose_split_sizes(e->graph, x, sizes, count, axis, vals);
    } else {
        int64_t parts = whole_arg(e, arg[1], call, "the number of parts");
        if (parts < 1 || parts > 65536)
            elab_fail(e, call->span, "%" PRId64 " parts", parts);
        count = (uint32_t)parts;
        vals = arena_alloc(e->arena, count * sizeof *vals);
        done = compose_split(e->graph, x, count, axis, vals);
    }
    if (!done)
        elab_fail_graph(e, call->span);
    return list_of(e, vals, count);
}

static Value call_pad(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    Val x = tensor_arg(e, arg, 0, call);
    int64_t before[MAX_RANK], after[MAX_RANK];
    uint32_t count = arg[1].kind == V_LIST ? arg[1].list->count : MAX_RANK + 1;
    if (count > MAX_RANK)
        elab_fail(e, arg_span(call, 1), "the padding is a list of [before, after], one an axis");
    for (uint32_t i = 0; i < count; i++) {
        Value pair = arg[1].list->at[i];
        if (pair.kind != V_LIST || pair.list->count != 2)
            elab_fail(e, arg_span(call, 1), "the padding of an axis is [before, after]");
        before[i] = whole_arg(e, pair.list->at[0], call, "the padding");
        after[i] = whole_arg(e, pair.list->at[1], call, "the padding");
    }
    double value = arg_given(arg[2]) ? value_number(e, arg[2], call->span, "the value") : 0;
    return tensor_or_fail(e, compose_pad(e->graph, x, before, after, count, value), call->span);
}

static Value call_flip(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    int64_t axis = whole_arg(e, arg[1], call, "the axis");
    return tensor_or_fail(e, compose_flip(e->graph, tensor_arg(e, arg, 0, call), axis), call->span);
}

static Value call_pick(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    int64_t axis = whole_arg(e, arg[2], call, "the axis");
    return tensor_or_fail(
        e, compose_pick(e->graph, tensor_arg(e, arg, 0, call), tensor_arg(e, arg, 1, call), axis),
        call->span);
}

static Value call_window(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    int64_t size = whole_arg(e, arg[2], call, "the size");
    int64_t axis = whole_arg(e, arg[3], call, "the axis");
    if (arg[1].kind == V_INT && !arg[1].batch) { // known already: a part as x[first..last]
        int64_t first = arg[1].integer, last;
        if (first < 0 || size < 1 || __builtin_add_overflow(first, size, &last))
            elab_fail(e, call->span, "a window of %" PRId64 " from %" PRId64, size, first);
        return tensor_or_fail(
            e, compose_range(e->graph, tensor_arg(e, arg, 0, call), axis, first, last), call->span);
    }
    return tensor_or_fail(e,
                          compose_window(e->graph, tensor_arg(e, arg, 0, call),
                                         tensor_arg(e, arg, 1, call), size, axis),
                          call->span);
}

static Value call_pool(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame);
    Val x = tensor_arg(e, arg, 0, call);
    int64_t k = whole_arg(e, arg[1], call, self->name[0] == 'r' ? "the factor" : "the window");
    Val val = self->name[0] == 'a'   ? compose_avg_pool(e->graph, x, k)
              : self->name[0] == 'm' ? compose_max_pool(e->graph, x, k)
                                     : compose_resize_nearest(e->graph, x, k);
    return tensor_or_fail(e, val, call->span);
}

static Value call_resize_linear(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                                const Args *call)
{
    UNUSED(frame), UNUSED(self);
    Val x = tensor_arg(e, arg, 0, call);
    uint32_t rank = val_type(e->graph, x)->rank, count = rank > 2 ? rank - 2 : 0;
    int64_t size[MAX_RANK];
    if (arg[1].kind == V_LIST && arg[1].list->count != count)
        elab_fail(e, arg_span(call, 1), "%" PRIu32 " sizes for %" PRIu32 " axes",
                  arg[1].list->count, count);
    for (uint32_t i = 0; i < count; i++)
        size[i] =
            whole_arg(e, arg[1].kind == V_LIST ? arg[1].list->at[i] : arg[1], call, "the size");
    return tensor_or_fail(e, compose_resize_linear(e->graph, x, size, count), call->span);
}

// ---- new tensors ----

static Type shape_arg(Elab *e, Frame *frame, Value value, const Args *call)
{
    Type type;
    if (!type_of_value(e, frame, value, arg_span(call, 0), &type))
        elab_fail(e, arg_span(call, 0), "a shape is a list of integers or a type; this is %s",
                  value_describe(e, value));
    return type;
}

static Value call_zeros(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    Type type = shape_arg(e, frame, arg[0], call);
    return tensor_or_fail(e, g_full(e->graph, &type, self->name[0] == 'o'), call->span);
}

// full(shape, v): v may be known only when the step starts.
static Value call_full(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    Type type = shape_arg(e, frame, arg[0], call);
    Val v = value_val(e, arg[1], arg_span(call, 1));
    const Type *number = val_type(e->graph, v);
    if (number->rank)
        elab_fail(e, arg_span(call, 1), "the value is a number; this is %s",
                  value_describe(e, arg[1]));
    type.dtype = number->dtype;
    if (value_is_number(arg[1]) && !arg[1].batch)
        return tensor_or_fail(e, g_full(e->graph, &type, value_number(e, arg[1], call->span, "v")),
                              call->span);
    Dim ones[MAX_RANK];
    for (uint32_t i = 0; i < type.rank; i++)
        ones[i] = dim_fixed(1);
    Val spread = type.rank ? g_reshape(e->graph, v, type.rank, ones) : v;
    return tensor_or_fail(e, type.rank ? g_expand(e->graph, spread, type.dim) : v, call->span);
}

const Builtin elab_list_builtins[] = {
    {"len", "list", call_len, OP_COUNT, NULL},
    {"enumerate", "list", call_enumerate, OP_COUNT, NULL},
    {"zip", "*lists", call_zip, OP_COUNT, NULL},
    {"reverse", "list", call_reverse, OP_COUNT, NULL},
    {"cumprod", "list", call_cumprod, OP_COUNT, NULL},
    {"linspace", "a b n", call_linspace, OP_COUNT, NULL},
    {"div", "a b", call_div, OP_COUNT, NULL},
    {"floor", "x", call_floor, OP_FLOOR, NULL},
    {"round", "x", call_floor, OP_COUNT, NULL},
    {"pi", "", NULL, OP_COUNT, NULL},
    {"f32", "x", call_f32, OP_COUNT, NULL},
    {"int", "x", call_int, OP_COUNT, NULL},
    {"concat", "xs axis", call_concat, OP_COUNT, NULL},
    {"split", "x parts axis", call_split, OP_COUNT, NULL},
    {"pad", "x sizes value=", call_pad, OP_COUNT, NULL},
    {"flip", "x axis", call_flip, OP_COUNT, NULL},
    {"pick", "x k axis", call_pick, OP_COUNT, NULL},
    {"window", "x start size axis", call_window, OP_COUNT, NULL},
    {"avg_pool", "x k", call_pool, OP_COUNT, NULL},
    {"max_pool", "x k", call_pool, OP_COUNT, NULL},
    {"resize_nearest", "x factor", call_pool, OP_COUNT, NULL},
    {"resize_linear", "x size", call_resize_linear, OP_COUNT, NULL},
    {"zeros", "shape", call_zeros, OP_COUNT, NULL},
    {"ones", "shape", call_zeros, OP_COUNT, NULL},
    {"full", "shape v", call_full, OP_COUNT, NULL},
};
const uint32_t elab_list_builtin_count = sizeof elab_list_builtins / sizeof *elab_list_builtins;
