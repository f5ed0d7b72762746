// Built-in functions on tensors: elementwise, reductions, patterns, movement, attention.
//
// Elementwise functions of numbers known to the compiler stay numbers. The names of a pattern are
// those of the caller's scope; pattern_scope gives them to pattern.h.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "compiler/elab.h"

#define UNUSED(x) ((void)(x))

bool arg_given(Value value)
{
    return value.kind != V_ABSENT && value.kind != V_NONE;
}

Value tensor_or_fail(Elab *e, Val val, Span span)
{
    if (!val)
        elab_fail_graph(e, span);
    return value_tensor(val);
}

// ---- arguments ----

Span arg_span(const Args *call, uint32_t index)
{
    return index < call->count ? call->at[index].span : call->span;
}

Val tensor_arg(Elab *e, Value *arg, uint32_t index, const Args *call)
{
    return value_val(e, arg[index], arg_span(call, index));
}

int64_t whole_arg(Elab *e, Value value, const Args *call, const char *what)
{
    return value_whole(e, value, call->span, what);
}

// ---- elementwise ----

static double sigmoid_number(double x)
{
    return 1 / (1 + exp(-x));
}
static double softplus_number(double x)
{
    return x > 30 ? x : log1p(exp(x));
}
static double relu_number(double x)
{
    return x > 0 ? x : 0;
}
static double silu_number(double x)
{
    return x / (1 + exp(-x));
}
static double gelu_number(double x)
{
    return x * (1 + erf(x * M_SQRT1_2)) / 2;
}
static double gelu_tanh_number(double x)
{
    return x * (1 + tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x))) / 2;
}

static Value call_unary(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame);
    if (arg[0].kind == V_INT && !arg[0].batch && self->op == OP_ABS)
        return arg[0].integer < 0 ? eval_negative(e, arg[0], call->span) : arg[0];
    if (value_is_number(arg[0]) && !arg[0].batch) {
        double x = arg[0].kind == V_REAL ? arg[0].real : (double)arg[0].integer;
        if ((self->op == OP_SQRT && x < 0) || (self->op == OP_LOG && x <= 0))
            elab_fail(e, call->span, "%s of %g", self->name, x);
        return value_real(self->number(x));
    }
    Val x = tensor_arg(e, arg, 0, call);
    if (val_type(e->graph, x)->dtype == DT_I64 && self->op != OP_ABS)
        x = g_cast(e->graph, x, e->real);
    return tensor_or_fail(e, g_unary(e->graph, self->op, x), call->span);
}

static Value call_log2(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    if (value_is_number(arg[0]) && !arg[0].batch)
        return call_unary(e, frame, self, arg, call);
    Val x = tensor_arg(e, arg, 0, call);
    if (val_type(e->graph, x)->dtype == DT_I64)
        x = g_cast(e->graph, x, e->real);
    return tensor_or_fail(e, compose_log2(e->graph, x), call->span);
}

static Value call_identity(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(e), UNUSED(frame), UNUSED(self), UNUSED(call);
    return arg[0];
}

static Value call_leaky_relu(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                             const Args *call)
{
    UNUSED(frame), UNUSED(self);
    double slope = value_number(e, arg[1], arg_span(call, 1), "the slope");
    if (value_is_number(arg[0]) && !arg[0].batch) {
        double x = value_number(e, arg[0], call->span, "x");
        return value_real(x > 0 ? x : x * slope);
    }
    return tensor_or_fail(e, compose_leaky_relu(e->graph, tensor_arg(e, arg, 0, call), slope),
                          call->span);
}

static DType dtype_of(Elab *e, Value value)
{
    return value.kind == V_TENSOR ? val_type(e->graph, value.val)->dtype : DT_NONE;
}

// A number takes the dtype of what it stands beside.
static Val operand(Elab *e, Value value, Value beside, Span span)
{
    return value_is_number(value) ? number_val(e, value, dtype_of(e, beside))
                                  : value_val(e, value, span);
}

static Value call_clamp(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    if (value_is_number(arg[0]) && value_is_number(arg[1]) && value_is_number(arg[2])) {
        double x = value_number(e, arg[0], call->span, "x");
        double lo = value_number(e, arg[1], call->span, "lo");
        double hi = value_number(e, arg[2], call->span, "hi");
        bool real = arg[0].kind == V_REAL || arg[1].kind == V_REAL || arg[2].kind == V_REAL;
        Value value = x < lo ? arg[1] : x > hi ? arg[2] : arg[0];
        return real ? value_real(x < lo ? lo : x > hi ? hi : x) : value;
    }
    Val x = tensor_arg(e, arg, 0, call);
    Value like = value_tensor(x);
    Val lo = operand(e, arg[1], like, arg_span(call, 1));
    Val hi = operand(e, arg[2], like, arg_span(call, 2));
    return tensor_or_fail(e, compose_clamp(e->graph, x, lo, hi), call->span);
}

static Value call_where(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    if (arg[0].kind == V_BOOL)
        return arg[0].integer ? arg[1] : arg[2];
    Val cond = tensor_arg(e, arg, 0, call);
    Val x = operand(e, arg[1], arg[2], arg_span(call, 1));
    Val y = operand(e, arg[2], arg[1], arg_span(call, 2));
    return tensor_or_fail(e, compose_where(e->graph, cond, x, y), call->span);
}

static Value call_softmax(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    int64_t axis = arg_given(arg[1]) ? whole_arg(e, arg[1], call, "the axis") : -1;
    return tensor_or_fail(e, compose_softmax(e->graph, tensor_arg(e, arg, 0, call), axis),
                          call->span);
}

static Value each(Elab *e, Value value, Span span, Val (*fn)(Graph *graph, Val x))
{
    if (value.kind != V_LIST)
        return tensor_or_fail(e, fn(e->graph, value_val(e, value, span)), span);
    Value list = value_list(e, value.list->at, value.list->count);
    for (uint32_t i = 0; i < list.list->count; i++)
        list.list->at[i] = each(e, list.list->at[i], span, fn);
    return list;
}

static Val stop_gradient(Graph *graph, Val x)
{
    return g_unary(graph, OP_STOP_GRADIENT, x);
}

static Value call_stop_gradient(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                                const Args *call)
{
    UNUSED(frame), UNUSED(self);
    return value_is_number(arg[0]) ? arg[0] : each(e, arg[0], call->span, stop_gradient);
}

// ---- patterns ----

typedef struct {
    Elab *e;
    const Frame *frame;
} PatternContext;

static bool pattern_lookup(void *context, const char *name, Dim *size)
{
    PatternContext *at = context;
    Value value;
    return elab_lookup(at->e, at->frame, name, &value, NULL) && dim_of_value(value, size);
}

static bool is_own_param(const char *name)
{
    return strcmp(name, "like") == 0 || strcmp(name, "pattern") == 0;
}

// What a pattern sees: names of the caller's scope, named arguments, and the caller's `...`.
PatternScope pattern_scope(Elab *e, Frame *frame, const Args *call, PatternAxis *given)
{
    PatternContext *context = arena_alloc(e->arena, sizeof *context);
    *context = (PatternContext){e, frame};
    PatternScope scope = {
        .context = context, .lookup = pattern_lookup, .given = given, .real = e->real};
    for (uint32_t i = 0; i < call->count; i++) {
        const Arg *arg = &call->at[i];
        if (!arg->name || is_own_param(arg->name))
            continue;
        Dim size;
        if (scope.given_count == MAX_BUILTIN_PARAMS || !dim_of_value(arg->value, &size))
            elab_fail(e, arg->span, "the size of axis '%s' is an integer; this is %s", arg->name,
                      value_describe(e, arg->value));
        given[scope.given_count++] = (PatternAxis){arg->name, size};
    }
    for (; frame; frame = frame->parent)
        if (frame->has_rest) {
            scope.has_rest = true;
            scope.rest_rank = frame->rest_rank;
            scope.rest = frame->rest;
            break;
        }
    return scope;
}

// The error of a pattern, at the bytes it is about if the pattern stands in the text.
static _Noreturn void pattern_fail(Elab *e, const Frame *frame, const Args *call, uint32_t index,
                                   const PatternError *error)
{
    Span span = arg_span(call, index);
    const SourceFile *file = sources_get(e->sources, span.file);
    if (span.file && file && span.begin < file->size && file->text[span.begin] == '"' &&
        error->end > error->begin) {
        uint32_t begin = span.begin + 1 + error->begin;
        span.end = span.begin + 1 + error->end;
        span.begin = begin;
    }
    elab_error(e, span, "%s", graph_error(e->graph));
    Value value;
    Span bound = {0};
    if (error->in_scope && error->axis &&
        elab_lookup(e, frame, intern(error->axis), &value, &bound)) {
        if (bound.file)
            elab_note(e, bound, "bound here");
        char other = error->axis[0];
        if (other >= 'a' && other <= 'z')
            elab_help(e, (Span){0}, "give the axis another name, for example '%c%s'",
                      other - 'a' + 'A', error->axis + 1);
    }
    elab_stop(e);
}

static const char *pattern_arg(Elab *e, Value value, const Args *call, uint32_t index)
{
    if (value.kind != V_STRING)
        elab_fail(e, arg_span(call, index), "a pattern is a string; this is %s",
                  value_describe(e, value));
    return value.text;
}

static Value call_rearrange(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                            const Args *call)
{
    PatternAxis given[MAX_BUILTIN_PARAMS];
    PatternError error = {0};
    Val x = tensor_arg(e, arg, 0, call);
    const char *pattern = pattern_arg(e, arg[1], call, 1);
    PatternScope scope = pattern_scope(e, frame, call, given);
    Val val = self->op == OP_EXPAND ? pattern_repeat(e->graph, &scope, x, pattern, &error)
                                    : pattern_rearrange(e->graph, &scope, x, pattern, &error);
    if (!val)
        pattern_fail(e, frame, call, 1, &error);
    return value_tensor(val);
}

static Value call_einsum(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    PatternAxis given[MAX_BUILTIN_PARAMS];
    PatternError error = {0};
    Val xs[8];
    uint32_t count = 0;
    for (uint32_t i = 1; i < call->count; i++) {
        if (call->at[i].name)
            continue;
        if (count == 8)
            elab_fail(e, call->span, "einsum takes at most 8 tensors");
        xs[count++] = value_val(e, call->at[i].value, call->at[i].span);
    }
    const char *pattern = pattern_arg(e, arg[0], call, 0);
    PatternScope scope = pattern_scope(e, frame, call, given);
    Val val = pattern_einsum(e->graph, &scope, xs, count, pattern, &error);
    if (!val)
        pattern_fail(e, frame, call, 0, &error);
    return value_tensor(val);
}

// The tensors of a list argument.
static Val *tensors_arg(Elab *e, Value value, const Args *call, uint32_t *count)
{
    Span span = arg_span(call, 0);
    if (value.kind != V_LIST)
        elab_fail(e, span, "a list of tensors is needed here; this is %s",
                  value_describe(e, value));
    *count = value.list->count;
    if (!*count)
        elab_fail(e, span, "this list is empty");
    Val *vals = arena_alloc(e->arena, *count * sizeof *vals);
    for (uint32_t i = 0; i < *count; i++)
        vals[i] = value_val(e, value.list->at[i], span);
    return vals;
}

static Value call_pack(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    PatternAxis given[MAX_BUILTIN_PARAMS];
    PatternError error = {0};
    uint32_t count;
    Val *xs = tensors_arg(e, arg[0], call, &count);
    const char *pattern = pattern_arg(e, arg[1], call, 1);
    PatternScope scope = pattern_scope(e, frame, call, given);
    Val val = pattern_pack(e->graph, &scope, xs, count, pattern, &error);
    if (!val)
        pattern_fail(e, frame, call, 1, &error);
    return value_tensor(val);
}

// What `*` stands for in one element of `like`: a tensor, or a list of sizes.
static PatternShape like_shape(Elab *e, Frame *frame, const char *pattern, Value like,
                               const Args *call)
{
    PatternShape shape = {0};
    PatternError error = {0};
    if (value_is_tensor(like)) {
        const Type *type = val_type(e->graph, value_val(e, like, call->span));
        if (!pattern_star(e->graph, pattern, type, &shape, &error))
            pattern_fail(e, frame, call, 1, &error);
        return shape;
    }
    Value sizes = like.kind == V_LIST ? like : value_list(e, &like, 1);
    if (sizes.list->count > MAX_RANK)
        elab_fail(e, call->span, "a tensor has at most %d axes", MAX_RANK);
    for (uint32_t i = 0; i < sizes.list->count; i++)
        if (!dim_of_value(sizes.list->at[i], &shape.dim[shape.rank++]))
            elab_fail(e, call->span,
                      "'like' is a list of tensors or of lists of sizes; this "
                      "holds %s",
                      value_describe(e, sizes.list->at[i]));
    return shape;
}

static Value call_unpack(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    PatternAxis given[MAX_BUILTIN_PARAMS];
    PatternError error = {0};
    Val x = tensor_arg(e, arg, 0, call);
    const char *pattern = pattern_arg(e, arg[1], call, 1);
    if (arg[2].kind != V_LIST)
        elab_fail(e, call->span, "'like' is a list of tensors or of lists of sizes; this is %s",
                  value_describe(e, arg[2]));
    uint32_t count = arg[2].list->count;
    PatternShape *shapes = arena_alloc(e->arena, (count + 1) * sizeof *shapes);
    for (uint32_t i = 0; i < count; i++)
        shapes[i] = like_shape(e, frame, pattern, arg[2].list->at[i], call);
    PatternScope scope = pattern_scope(e, frame, call, given);
    Val *vals = arena_alloc(e->arena, (count + 1) * sizeof *vals);
    if (!pattern_unpack(e->graph, &scope, x, pattern, shapes, count, vals, &error))
        pattern_fail(e, frame, call, 1, &error);
    List *list = list_new(e, count);
    for (uint32_t i = 0; i < count; i++)
        list->at[i] = value_tensor(vals[i]);
    return (Value){.kind = V_LIST, .list = list};
}

// ---- reductions: of a tensor with a pattern, of a tensor to one number, of a list ----

static const struct {
    const char *name;
    PatternReduce reduce;
    Operator fold; // of a list; OPR_NONE: not of lists
} reductions[] = {
    {"sum", PATTERN_SUM, OPR_ADD}, {"mean", PATTERN_MEAN, OPR_ADD}, {"max", PATTERN_MAX, OPR_GT},
    {"min", PATTERN_MIN, OPR_LT},  {"var", PATTERN_VAR, OPR_NONE},  {"any", PATTERN_ANY, OPR_OR},
    {"all", PATTERN_ALL, OPR_AND},
};

static Val reduce_whole(Elab *e, PatternReduce reduce, Val x)
{
    switch (reduce) {
    case PATTERN_SUM:
        return compose_sum(e->graph, x);
    case PATTERN_MEAN:
        return compose_mean(e->graph, x);
    case PATTERN_MAX:
        return compose_max(e->graph, x);
    case PATTERN_MIN:
        return compose_min(e->graph, x);
    case PATTERN_VAR:
        return compose_var(e->graph, x);
    case PATTERN_ANY:
        return compose_any(e->graph, x, e->real);
    case PATTERN_ALL:
        return compose_all(e->graph, x, e->real);
    }
    return 0;
}

static _Noreturn void want_pattern(Elab *e, const Builtin *self)
{
    elab_help(e, (Span){0}, "%s(x, \"b c n -> b c\") says which axes go", self->name);
    elab_stop(e);
}

// Names give sizes to the axes of a pattern; without one they mean nothing: mean(x, axis: 1).
static void refuse_names(Elab *e, const Builtin *self, const Args *call)
{
    for (uint32_t i = 0; i < call->count; i++)
        if (call->at[i].name && strcmp(call->at[i].name, "x") != 0) {
            elab_error(e, call->at[i].name_span, "'%s' takes a pattern, and no '%s'", self->name,
                       call->at[i].name);
            want_pattern(e, self);
        }
}

// max(x, y), min(x, y) of numbers and tensors.
static Value two_of(Elab *e, Frame *frame, bool max, Value x, Value y, const Args *call)
{
    if (value_is_number(x) && value_is_number(y)) {
        Value first = eval_operator(e, frame, max ? OPR_GE : OPR_LE, x, y, call->span, NULL, NULL);
        if (first.kind == V_BOOL) {
            Value chosen = first.integer ? x : y;
            if (x.kind != y.kind && chosen.kind == V_INT)
                chosen = value_real((double)chosen.integer);
            return chosen;
        }
    }
    Val a = operand(e, x, y, arg_span(call, 0)), b = operand(e, y, x, arg_span(call, 1));
    return tensor_or_fail(e, compose_binary(e->graph, max ? OP_MAX : OP_MIN, a, b), call->span);
}

static Value fold_list(Elab *e, Frame *frame, Operator fold, Value list, const Args *call)
{
    uint32_t count = sequence_count(e, list, arg_span(call, 0));
    if (!count && fold == OPR_ADD)
        return value_int(0);
    if (!count && (fold == OPR_AND || fold == OPR_OR))
        return value_bool(fold == OPR_AND);
    if (!count)
        elab_fail(e, call->span, "this list is empty");
    Value result = sequence_at(e, list, 0, call->span);
    for (uint32_t i = 1; i < count; i++) {
        Value next = sequence_at(e, list, i, call->span);
        if (fold == OPR_GT || fold == OPR_LT)
            result = two_of(e, frame, fold == OPR_GT, result, next, call);
        else if (fold != OPR_ADD && result.kind == V_BOOL && next.kind == V_BOOL)
            result = value_bool(fold == OPR_AND ? result.integer && next.integer
                                                : result.integer || next.integer);
        else if (fold != OPR_ADD)
            result = tensor_or_fail(e,
                                    g_binary(e->graph, fold == OPR_AND ? OP_AND : OP_OR,
                                             value_val(e, result, call->span),
                                             value_val(e, next, call->span)),
                                    call->span);
        else
            result = eval_operator(e, frame, fold, result, next, call->span, NULL, NULL);
    }
    return result;
}

static Value reduce_list(Elab *e, Frame *frame, uint32_t which, Value list, const Args *call)
{
    if (reductions[which].fold == OPR_NONE) {
        Val table = list_table(e, list, arg_span(call, 0));
        return tensor_or_fail(e, reduce_whole(e, reductions[which].reduce, table), call->span);
    }
    Value result = fold_list(e, frame, reductions[which].fold, list, call);
    if (reductions[which].reduce != PATTERN_MEAN)
        return result;
    uint32_t count = sequence_count(e, list, call->span);
    return eval_operator(e, frame, OPR_DIV, result, value_real(count), call->span, NULL, NULL);
}

static Value call_reduce(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    uint32_t which = 0;
    while (strcmp(reductions[which].name, self->name) != 0)
        which++;
    PatternReduce reduce = reductions[which].reduce;
    bool extreme = reduce == PATTERN_MAX || reduce == PATTERN_MIN;
    if (extreme && arg_given(arg[1]) && arg[1].kind != V_STRING)
        return two_of(e, frame, reduce == PATTERN_MAX, arg[0], arg[1], call);
    if (!arg_given(arg[1]))
        refuse_names(e, self, call);
    if (arg[0].kind == V_LIST || arg[0].kind == V_RANGE)
        return reduce_list(e, frame, which, arg[0], call);
    Val x = tensor_arg(e, arg, 0, call);
    if (!arg_given(arg[1]))
        return tensor_or_fail(e, reduce_whole(e, reduce, x), call->span);
    if (arg[1].kind != V_STRING) {
        elab_error(e, arg_span(call, 1), "a pattern is a string; this is %s",
                   value_describe(e, arg[1]));
        want_pattern(e, self);
    }
    PatternAxis given[MAX_BUILTIN_PARAMS];
    PatternError error = {0};
    const char *pattern = arg[1].text;
    PatternScope scope = pattern_scope(e, frame, call, given);
    Val val = pattern_reduce(e->graph, &scope, reduce, x, pattern, &error);
    if (!val)
        pattern_fail(e, frame, call, 1, &error);
    return value_tensor(val);
}

// ---- attention ----

static Value call_attention(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                            const Args *call)
{
    UNUSED(frame), UNUSED(self);
    Val q = tensor_arg(e, arg, 0, call), k = tensor_arg(e, arg, 1, call);
    Val v = tensor_arg(e, arg, 2, call);
    const Type *type = val_type(e->graph, q);
    double scale = 1;
    if (arg_given(arg[3]))
        scale = value_number(e, arg[3], call->span, "the scale");
    else if (type->rank && !type->dim[type->rank - 1].batch)
        scale = 1 / sqrt((double)type->dim[type->rank - 1].n);
    Val mask = arg_given(arg[4]) ? value_val(e, arg[4], call->span) : 0;
    bool causal = false;
    if (arg_given(arg[5])) {
        if (arg[5].kind != V_BOOL)
            elab_fail(e, call->span, "'causal' is true or false");
        causal = arg[5].integer != 0;
    }
    return tensor_or_fail(e, compose_attention(e->graph, q, k, v, mask, scale, causal), call->span);
}

static Value call_rotary(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    Val angles = arg[1].kind == V_LIST ? list_table(e, arg[1], arg_span(call, 1))
                                       : tensor_arg(e, arg, 1, call);
    return tensor_or_fail(e, compose_rotary(e->graph, tensor_arg(e, arg, 0, call), angles),
                          call->span);
}

// ---- modes ----

static Value with_mode(Elab *e, Value value, Mode mode, const Args *call)
{
    if (!value_is_module(value) && value.kind != V_LIST)
        elab_fail(e, arg_span(call, 0), "a mode is that of a module; this is %s",
                  value_describe(e, value));
    value.mode = (uint8_t)((value.mode & ~(unsigned)MODE_FORCED) | mode);
    return value;
}

static Value call_training(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    return with_mode(e, arg[0], MODE_TRAINING, call);
}

static Value call_evaluating(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                             const Args *call)
{
    UNUSED(frame), UNUSED(self);
    return with_mode(e, arg[0], MODE_EVALUATING, call);
}

// recompute(m): what m computes need not wait for the backward pass (recompute.c).
static Value call_recompute(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                            const Args *call)
{
    UNUSED(frame), UNUSED(self);
    if (!value_is_module(arg[0]) && arg[0].kind != V_LIST)
        elab_fail(e, arg_span(call, 0), "what is computed anew is a module; this is %s",
                  value_describe(e, arg[0]));
    arg[0].mode |= MODE_RECOMPUTE;
    return arg[0];
}

// Param(shape, init: ...): a parameter.
static Value call_param(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(self);
    Type type;
    if (!type_of_value(e, frame, arg[0], arg_span(call, 0), &type) || type.dtype != e->real)
        elab_fail(e, arg_span(call, 0), "the shape of a parameter is a list of integers");
    int64_t dim[MAX_RANK];
    for (uint32_t i = 0; i < type.rank; i++) {
        if (type.dim[i].batch)
            elab_fail(e, arg_span(call, 0), "a parameter does not grow with the batch");
        dim[i] = type.dim[i].n;
    }
    ParamObject *param = param_new(e, "Param", type.rank, dim, call->span);
    param->init = INIT_NORMAL;
    param->init_b = 1;
    if (arg_given(arg[1]))
        param_init(e, param, arg[1], call->span);
    return (Value){.kind = V_PARAM, .param = param};
}

const Builtin elab_builtins[] = {
    {"abs", "x", call_unary, OP_ABS, fabs},
    {"sqrt", "x", call_unary, OP_SQRT, sqrt},
    {"exp", "x", call_unary, OP_EXP, exp},
    {"log", "x", call_unary, OP_LOG, log},
    {"log2", "x", call_log2, OP_LOG, log2},
    {"sin", "x", call_unary, OP_SIN, sin},
    {"cos", "x", call_unary, OP_COS, cos},
    {"tanh", "x", call_unary, OP_TANH, tanh},
    {"sigmoid", "x", call_unary, OP_SIGMOID, sigmoid_number},
    {"softplus", "x", call_unary, OP_SOFTPLUS, softplus_number},
    {"relu", "x", call_unary, OP_RELU, relu_number},
    {"silu", "x", call_unary, OP_SILU, silu_number},
    {"gelu", "x", call_unary, OP_GELU, gelu_number},
    {"gelu_tanh", "x", call_unary, OP_GELU_TANH, gelu_tanh_number},
    {"identity", "x", call_identity, OP_COUNT, NULL},
    {"leaky_relu", "x slope", call_leaky_relu, OP_COUNT, NULL},
    {"clamp", "x lo hi", call_clamp, OP_COUNT, NULL},
    {"where", "condition x y", call_where, OP_COUNT, NULL},
    {"softmax", "x axis=", call_softmax, OP_COUNT, NULL},
    {"stop_gradient", "x", call_stop_gradient, OP_COUNT, NULL},
    {"recompute", "module", call_recompute, OP_COUNT, NULL},
    {"training", "module", call_training, OP_COUNT, NULL},
    {"evaluating", "module", call_evaluating, OP_COUNT, NULL},
    {"rearrange", "x pattern **", call_rearrange, OP_TRANSPOSE, NULL},
    {"repeat", "x pattern **", call_rearrange, OP_EXPAND, NULL},
    {"einsum", "pattern *xs **", call_einsum, OP_COUNT, NULL},
    {"pack", "xs pattern **", call_pack, OP_COUNT, NULL},
    {"unpack", "x pattern like **", call_unpack, OP_COUNT, NULL},
    {"sum", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"mean", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"max", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"min", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"var", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"any", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"all", "x pattern= **", call_reduce, OP_COUNT, NULL},
    {"attention", "q k v scale= mask= causal=", call_attention, OP_COUNT, NULL},
    {"rotary", "x angles", call_rotary, OP_COUNT, NULL},
    {"Param", "shape init=", call_param, OP_COUNT, NULL},
};
const uint32_t elab_builtin_count = sizeof elab_builtins / sizeof *elab_builtins;
