// Types: checking values against them, binding axes.
//
// In a shape, a name that is an integer in scope must agree with the size; any other lone name is
// bound to the size, in the frame of the function, as an axis. Names in a named type are those of
// the file that declares the type, then those of the place that uses it: so `b` in
// `type latent = [b, 4, n]` is the user's b.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

bool dim_of_value(Value value, Dim *dim)
{
    if (value.kind != V_INT)
        return false;
    *dim = (Dim){value.integer, value.batch};
    return true;
}

// A name that has this size around here and is not among `used`, for messages; axes before other
// integers.
const char *axis_name(const Frame *frame, Dim dim, const char *const *used, uint32_t used_count)
{
    const char *found = NULL;
    for (; frame; frame = frame->parent)
        for (uint32_t i = 0; i < frame->count; i++) {
            Dim other;
            const Binding *binding = &frame->at[i];
            bool taken =
                !binding->name || !dim_of_value(binding->value, &other) || !dim_equal(other, dim);
            for (uint32_t k = 0; k < used_count; k++)
                taken |= used[k] == binding->name;
            if (taken)
                continue;
            if (binding->kind == BIND_AXIS)
                return binding->name;
            if (!found)
                found = binding->name;
        }
    return found;
}

// ---- named types ----

typedef enum {
    WORD_NONE,
    WORD_INT,
    WORD_REAL,
    WORD_BOOL,
    WORD_STRING,
    WORD_LIST,
    WORD_MODULE
} Word;

static Word type_word(const char *text)
{
    static const struct {
        const char *text;
        Word word;
    } words[] = {
        {"int", WORD_INT},       {"real", WORD_REAL}, {"f32", WORD_REAL},      {"bool", WORD_BOOL},
        {"string", WORD_STRING}, {"list", WORD_LIST}, {"module", WORD_MODULE},
    };
    for (size_t i = 0; text && i < sizeof words / sizeof *words; i++)
        if (strcmp(text, words[i].text) == 0)
            return words[i].word;
    return WORD_NONE;
}

// Follows named types to the shape or word behind them; *frame becomes the scope of its names.
static const Ast *follow(Elab *e, Frame **frame, const Ast *ast)
{
    for (int i = 0; ast->text && !type_word(ast->text); i++) {
        Value value;
        if (!elab_lookup(e, *frame, ast->text, &value, NULL))
            elab_unknown_name(e, *frame, ast->text, ast->span);
        if (value.kind != V_TYPE || ast->integer)
            elab_fail(e, ast->span, "'%s' is %s, not a type", ast->text, value_describe(e, value));
        if (i == 32)
            elab_fail(e, ast->span, "type '%s' is defined by itself", ast->text);
        Frame *inner = frame_new(e, *frame, value.type->file, FRAME_TYPE);
        *frame = inner;
        ast = value.type->ast;
    }
    return ast;
}

static DType word_dtype(Elab *e, Word word)
{
    return word == WORD_INT ? DT_I64 : word == WORD_BOOL ? DT_BOOL : e->real;
}

// ---- matching a shape ----

static Frame *function_frame(Frame *frame)
{
    while (frame->parent && (frame->kind == FRAME_TYPE || frame->kind == FRAME_LOOP))
        frame = frame->parent;
    return frame;
}

static const char *shape_source(Elab *e, const Ast *type)
{
    const SourceFile *file = sources_get(e->sources, type->span.file);
    if (!file)
        return "another shape";
    return arena_printf(e->arena, "%.*s", (int)(type->span.end - type->span.begin),
                        file->text + type->span.begin);
}

// A name in quotes; "the result" as it is.
static const char *quoted(Elab *e, const char *what)
{
    return strchr(what, ' ') ? what : arena_printf(e->arena, "'%s'", what);
}

static void match_dim(Elab *e, Frame *frame, const Ast *ast, Dim dim, Span span, const char *what)
{
    Value value;
    Span bound = {0};
    if (ast->kind == AST_NAME) {
        bool known = elab_lookup(e, frame, ast->text, &value, &bound);
        if (!known || value.kind != V_INT) {
            Frame *function = function_frame(frame);
            if (frame_find(function, ast->text))
                elab_fail(e, ast->span, "'%s' is %s here, not a size", ast->text,
                          value_describe(e, value));
            frame_bind(e, function, ast->text, value_dim(dim), ast->span, BIND_AXIS);
            return;
        }
    } else {
        value = eval(e, frame, ast);
    }
    Dim want;
    if (!dim_of_value(value, &want))
        elab_fail(e, ast->span, "a size is an integer; this is %s", value_describe(e, value));
    if (dim_equal(want, dim))
        return;
    const char *name = ast->kind == AST_NAME ? ast->text : shape_source(e, ast);
    if (ast->kind == AST_INT)
        elab_error(e, span, "an axis of %s is %s, and %s is asked for", quoted(e, what),
                   size_text(e, dim), name);
    else
        elab_error(e, span, "axis '%s' of %s is %s in the tensor, and %s in this scope", name,
                   quoted(e, what), size_text(e, dim), size_text(e, want));
    elab_note(e, ast->span, "asked for here");
    if (bound.file)
        elab_note(e, bound, "bound here");
    elab_stop(e);
}

static void match_shape(Elab *e, Frame *frame, const Ast *ast, const Type *type, Span span,
                        const char *what)
{
    uint32_t count = ast->list.count, rest = UINT32_MAX;
    for (uint32_t i = 0; i < count; i++)
        if (ast->list.at[i]->kind == AST_ELLIPSIS)
            rest = i;
    uint32_t fixed = count - (rest != UINT32_MAX);
    if (rest == UINT32_MAX ? type->rank != fixed : type->rank < fixed) {
        elab_error(e, span, "%s is %s, and %s is asked for", quoted(e, what),
                   shape_text(e, frame, type), shape_source(e, ast));
        elab_note(e, ast->span, "asked for here");
        elab_stop(e);
    }
    uint32_t run = type->rank - fixed;
    for (uint32_t i = 0, axis = 0; i < count; i++) {
        if (i != rest) {
            match_dim(e, frame, ast->list.at[i], type->dim[axis++], span, what);
            continue;
        }
        Frame *function = function_frame(frame);
        if (!function->has_rest) {
            function->has_rest = true;
            function->rest_rank = run;
            function->rest =
                arena_copy(e->arena, type->dim + axis, (run ? run : 1) * sizeof *function->rest);
        }
        axis += run;
    }
}

// ---- checking ----

static _Noreturn void wrong_kind(Elab *e, const Ast *type, Value value, Span span, const char *what)
{
    elab_error(e, span, "%s is %s, and %s is asked for", quoted(e, what), value_describe(e, value),
               shape_source(e, type));
    elab_note(e, type->span, "asked for here");
    elab_stop(e);
}

static const Type *tensor_type(Elab *e, Value value)
{
    if (value.kind == V_TENSOR)
        return val_type(e->graph, value.val);
    if (value.kind == V_PARAM)
        return &value.param->type;
    if (value.kind == V_MAYBE && e->run)
        return &e->run->inputs[value.input];
    return NULL;
}

static void check_number(Elab *e, const Ast *type, Word word, Value *value, Span span,
                         const char *what)
{
    const Type *tensor = tensor_type(e, *value);
    bool scalar = tensor && tensor->rank == 0;
    bool fits = false;
    if (word == WORD_INT)
        fits = value->kind == V_INT || (scalar && tensor->dtype == DT_I64);
    if (word == WORD_BOOL)
        fits = value->kind == V_BOOL || (scalar && tensor->dtype == DT_BOOL);
    if (word == WORD_REAL && value->kind == V_INT && !value->batch) {
        *value = value_real((double)value->integer);
        fits = true;
    } else if (word == WORD_REAL) {
        fits = value->kind == V_REAL || (scalar && tensor->dtype != DT_BOOL);
        if (scalar && tensor->dtype == DT_I64 && value->kind == V_TENSOR)
            value->val = g_cast(e->graph, value->val, e->real);
    }
    if (!fits)
        wrong_kind(e, type, *value, span, what);
}

// The value of parameter, result or name `what` must be of that type; binds what is new in it. An
// int may become a real. `span` is the value's place.
void type_check(Elab *e, Frame *frame, const Ast *type, Value *value, Span span, const char *what)
{
    Frame *scope = frame;
    const Ast *ast = follow(e, &scope, type);
    Word word = type_word(ast->text);
    if (ast->integer || ast->list.count) {
        const Type *tensor = tensor_type(e, *value);
        if (!tensor || (tensor->rank == 0 && value->kind == V_TENSOR))
            wrong_kind(e, type, *value, span, what);
        if (tensor->dtype != word_dtype(e, word))
            wrong_kind(e, type, *value, span, what);
        match_shape(e, scope, ast, tensor, span, what);
        return;
    }
    if (word == WORD_STRING && value->kind != V_STRING)
        wrong_kind(e, type, *value, span, what);
    if (word == WORD_LIST && value->kind != V_LIST && value->kind != V_RANGE)
        wrong_kind(e, type, *value, span, what);
    if (word == WORD_MODULE && !value_is_module(*value) && value->kind != V_CLASS &&
        value->kind != V_LAYER && value->kind != V_LIST)
        wrong_kind(e, type, *value, span, what);
    if (word == WORD_INT || word == WORD_REAL || word == WORD_BOOL)
        check_number(e, type, word, value, span, what);
}

static void add_dim(Elab *e, Type *type, Value value, Span span)
{
    Dim dim;
    if (!dim_of_value(value, &dim))
        elab_fail(e, span, "a size is an integer; this is %s", value_describe(e, value));
    if (dim.n < 1 || dim.n > INT32_MAX)
        elab_fail(e, span, "%s is no size", size_text(e, dim));
    if (type->rank == MAX_RANK)
        elab_fail(e, span, "a tensor has at most %d axes", MAX_RANK);
    for (uint32_t i = 0; i < type->rank; i++)
        if (type->dim[i].batch && dim.batch)
            elab_fail(e, span, "the batch is in this shape twice");
    type->dim[type->rank++] = dim;
}

// A type all of whose sizes are known. False: it is none of a tensor or a number.
bool type_resolve(Elab *e, Frame *frame, const Ast *type, Type *out)
{
    Frame *scope = frame;
    const Ast *ast = follow(e, &scope, type);
    Word word = type_word(ast->text);
    if (word > WORD_BOOL)
        return false;
    *out = type_scalar(word_dtype(e, word));
    for (uint32_t i = 0; i < ast->list.count; i++) {
        const Ast *dim = ast->list.at[i];
        if (dim->kind == AST_ELLIPSIS)
            elab_fail(e, dim->span, "'...' leaves the shape open, which must be known here");
        add_dim(e, out, eval(e, scope, dim), dim->span);
    }
    return true;
}

// The type of a shape given as a value: a list of integers, or a named type.
bool type_of_value(Elab *e, Frame *frame, Value shape, Span span, Type *type)
{
    if (shape.kind == V_TYPE) {
        Frame *scope = frame_new(e, frame, shape.type->file, FRAME_TYPE);
        return type_resolve(e, scope, shape.type->ast, type);
    }
    if (shape.kind != V_LIST)
        return false;
    *type = type_scalar(e->real);
    for (uint32_t i = 0; i < shape.list->count; i++)
        add_dim(e, type, shape.list->at[i], span);
    return true;
}
