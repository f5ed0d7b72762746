// Random numbers: named streams, drawn once a step. normal(0, 1), uniform [0, 1) and integers are
// nodes of the graph; mean, deviation and bounds are ordinary arithmetic behind them.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

#define UNUSED(x) ((void)(x))

enum { RANDOM_NORMAL, RANDOM_UNIFORM, RANDOM_INTEGERS };

static void register_stream(Elab *e, const char *name)
{
    Module *module = e->module;
    for (uint32_t i = 0; i < module->stream_count; i++)
        if (module->streams[i] == name)
            return;
    module->streams = grow_array(module->streams, &e->stream_capacity, module->stream_count,
                                 sizeof *module->streams);
    module->streams[module->stream_count++] = name;
}

// A stream is drawn once in a step; a sample block draws as often as it likes.
static void note_draw(Elab *e, const char *name, Span span)
{
    if (!e->run && !e->host)
        elab_fail(e, span, "random numbers are drawn when a step runs, not while compiling");
    register_stream(e, name);
    Run *run = e->run;
    if (!run)
        return;
    for (size_t i = 0; i < run->draw_count; i++)
        if (run->draws[i].name == name) {
            elab_error(e, span, "stream \"%s\" is drawn twice in one step", name);
            elab_note(e, run->draws[i].span, "first drawn here");
            elab_help(e, (Span){0}, "give this draw a stream of its own");
            elab_stop(e);
        }
    run->draws = grow_array(run->draws, &run->draw_capacity, run->draw_count, sizeof *run->draws);
    run->draws[run->draw_count++] = (Drawn){name, span};
}

static Val draw(Elab *e, int kind, int64_t lo, int64_t hi, const Type *type, const char *stream,
                Span span)
{
    if (e->host && !e->run && !type->rank)
        elab_fail(e, span, "a sample block draws tensors; a program draws numbers");
    note_draw(e, stream, span);
    Attr attr = {.n = {kind, lo, hi}, .count = 3, .text = stream};
    Val val = graph_make(e->graph, OP_RANDOM, NULL, 0, &attr, type);
    if (!val)
        elab_fail_graph(e, span);
    return val;
}

static const char *stream_arg(Elab *e, const Builtin *self, Value value, const Args *call)
{
    if (value.kind == V_STRING)
        return value.text;
    elab_error(e, call->span, "a draw names its stream");
    elab_help(e, (Span){0}, "%s(..., stream: \"noise\")", self->name);
    elab_stop(e);
}

static Type shape_arg(Elab *e, Frame *frame, Value value, const Args *call, DType dtype)
{
    Type type = type_scalar(dtype);
    if (!arg_given(value))
        return type;
    if (!type_of_value(e, frame, value, call->span, &type))
        elab_fail(e, call->span, "a shape is a list of integers or a type; this is %s",
                  value_describe(e, value));
    type.dtype = dtype;
    return type;
}

static bool is_number(Value value, double number)
{
    return (value.kind == V_REAL && value.real == number) ||
           (value.kind == V_INT && !value.batch && (double)value.integer == number);
}

// x * by + plus, left out where they change nothing.
static Value scale(Elab *e, Frame *frame, Val x, Value by, Value plus, const Args *call)
{
    bool plain = (!arg_given(by) || is_number(by, 1)) && (!arg_given(plus) || is_number(plus, 0));
    if (e->host && !e->run && val_type(e->graph, x)->rank) {
        if (!plain)
            elab_fail(e, call->span, "a sample block draws plain tensors; scale them in a program");
        return host_random(e, x);
    }
    Value value = value_tensor(x);
    if (arg_given(by) && !is_number(by, 1))
        value = eval_operator(e, frame, OPR_MUL, value, by, call->span, NULL, NULL);
    if (arg_given(plus) && !is_number(plus, 0))
        value = eval_operator(e, frame, OPR_ADD, value, plus, call->span, NULL, NULL);
    return value;
}

static Value call_normal(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    Type type = shape_arg(e, frame, arg[0], call, e->real);
    const char *stream = stream_arg(e, self, arg[3], call);
    Val x = draw(e, RANDOM_NORMAL, 0, 0, &type, stream, call->span);
    return scale(e, frame, x, arg[2], arg[1], call);
}

static Value call_uniform(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    Type type = shape_arg(e, frame, arg[0], call, e->real);
    const char *stream = stream_arg(e, self, arg[3], call);
    Value lo = arg_given(arg[1]) ? arg[1] : value_real(0);
    Value hi = arg_given(arg[2]) ? arg[2] : value_real(1);
    Value width = eval_operator(e, frame, OPR_SUB, hi, lo, call->span, NULL, NULL);
    Val x = draw(e, RANDOM_UNIFORM, 0, 0, &type, stream, call->span);
    return scale(e, frame, x, width, lo, call);
}

static Value call_randint(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    int64_t lo = value_whole(e, arg[0], call->span, "the lower bound");
    int64_t hi = value_whole(e, arg[1], call->span, "the upper bound");
    if (hi <= lo)
        elab_fail(e, call->span, "there is no integer in %" PRId64 "..%" PRId64, lo, hi);
    Type type = shape_arg(e, frame, arg[2], call, DT_I64);
    const char *stream = stream_arg(e, self, arg[3], call);
    Val x = draw(e, RANDOM_INTEGERS, lo, hi, &type, stream, call->span);
    return scale(e, frame, x, value_none(), value_none(), call);
}

// True with probability p: uniform < p.
static Value call_bernoulli(Elab *e, Frame *frame, const Builtin *self, Value *arg,
                            const Args *call)
{
    Type type = shape_arg(e, frame, arg[1], call, e->real);
    const char *stream = stream_arg(e, self, arg[2], call);
    if (e->host && !e->run && type.rank)
        elab_fail(e, call->span, "a sample block draws numbers and real tensors only");
    Val x = draw(e, RANDOM_UNIFORM, 0, 0, &type, stream, call->span);
    return eval_operator(e, frame, OPR_LT, value_tensor(x), arg[0], call->span, NULL, NULL);
}

// In training mode each call draws from a stream of its own, numbered in order.
static Value call_dropout(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call)
{
    UNUSED(frame), UNUSED(self);
    double p = value_number(e, arg[1], call->span, "the probability");
    if (!(p >= 0 && p < 1))
        elab_fail(e, call->span, "a probability to drop is at least 0 and less than 1");
    Val x = value_val(e, arg[0], call->span);
    if (p == 0 || !e->run || !elab_training(e, NULL))
        return value_tensor(x);
    const char *stream = intern(arena_printf(e->arena, "dropout.%" PRIu32, e->run->dropouts++));
    note_draw(e, stream, call->span);
    return tensor_or_fail(e, compose_dropout(e->graph, x, p, stream), call->span);
}

const Builtin elab_random_builtins[] = {
    {"normal", "shape mean= std= stream=", call_normal, OP_COUNT, NULL},
    {"uniform", "shape lo= hi= stream=", call_uniform, OP_COUNT, NULL},
    {"randint", "lo hi shape= stream=", call_randint, OP_COUNT, NULL},
    {"bernoulli", "p shape= stream=", call_bernoulli, OP_COUNT, NULL},
    {"dropout", "x p", call_dropout, OP_COUNT, NULL},
};
const uint32_t elab_random_builtin_count =
    sizeof elab_random_builtins / sizeof *elab_random_builtins;
