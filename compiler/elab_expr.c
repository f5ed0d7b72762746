// Expressions: names, literals, lists, comprehensions, conditions, pipes; the dispatch of eval.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

// ---- numbers asked for ----

// The integer that `what` must be.
int64_t value_whole(Elab *e, Value value, Span span, const char *what)
{
    if (value.kind != V_INT || value.batch) {
        elab_error(e, span, "%s must be an integer; this is %s", what, value_describe(e, value));
        if (value.kind == V_INT)
            elab_help(e, (Span){0}, "the batch b is open until the program runs");
        elab_stop(e);
    }
    return value.integer;
}

double value_number(Elab *e, Value value, Span span, const char *what)
{
    if (!value_is_number(value) || value.batch)
        elab_fail(e, span, "%s must be a number known to the compiler; this is %s", what,
                  value_describe(e, value));
    return value.kind == V_REAL ? value.real : (double)value.integer;
}

// The outcome of a condition: known, or a decision of the variant at hand.
bool elab_truth(Elab *e, Value value, Span span)
{
    if (value.kind == V_BOOL)
        return value.integer != 0;
    if (value.kind == V_TENSOR) {
        const Type *type = val_type(e->graph, value.val);
        if (type->rank == 0 && type->dtype == DT_BOOL && graph_is_step(e->graph, value.val))
            return elab_decide(e, value.val, span);
        if (type->dtype == DT_BOOL) {
            elab_error(e, span,
                       "'if' needs a value that is known when the step starts; this is "
                       "%s",
                       value_describe(e, value));
            elab_help(e, (Span){0}, "where(condition, a, b) chooses element by element");
            elab_stop(e);
        }
    }
    elab_fail(e, span, "a condition is true or false; this is %s", value_describe(e, value));
}

// ---- strings ----

// Replaces every {name} by the value of that name.
static Value eval_string(Elab *e, Frame *frame, const Ast *ast)
{
    const char *text = ast->text;
    const char *open = strchr(text, '{');
    if (!open)
        return value_string(text);
    const char *out = "";
    while (open) {
        const char *close = strchr(open, '}');
        if (!close)
            break;
        const char *name = intern_n(open + 1, (size_t)(close - open - 1));
        Value value;
        if (!elab_lookup(e, frame, name, &value, NULL))
            elab_unknown_name(e, frame, name, ast->span);
        if (value.kind > V_STRING)
            elab_fail(e, ast->span, "'%s' is %s; a string holds numbers, strings and bools", name,
                      value_describe(e, value));
        out =
            arena_printf(e->arena, "%s%.*s%s", out, (int)(open - text), text, value_text(e, value));
        text = close + 1;
        open = strchr(text, '{');
    }
    return value_string(intern(arena_printf(e->arena, "%s%s", out, text)));
}

// ---- lists ----

typedef struct {
    Value *at;
    const char **names;
    uint32_t count, capacity;
    bool named;
} ListBuilder;

static void add_element(Elab *e, ListBuilder *list, const char *name, Value value)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 8;
        Value *at = arena_alloc(e->arena, capacity * sizeof *at);
        const char **names = arena_alloc(e->arena, capacity * sizeof *names);
        if (list->count) {
            memcpy(at, list->at, list->count * sizeof *at);
            memcpy(names, list->names, list->count * sizeof *names);
        }
        list->at = at;
        list->names = names;
        list->capacity = capacity;
    }
    list->at[list->count] = value;
    list->names[list->count++] = name;
    list->named = list->named || name;
}

static Value finish_list(Elab *e, const ListBuilder *builder)
{
    Value value = value_list(e, builder->at, builder->count);
    if (builder->named)
        value.list->names = builder->names;
    return value;
}

static void eval_element(Elab *e, Frame *frame, ListBuilder *list, const Ast *ast)
{
    const char *name = NULL;
    if (ast->kind == AST_WHEN) {
        if (!elab_truth(e, eval(e, frame, ast->a), ast->a->span))
            return;
        ast = ast->b;
    }
    if (ast->kind == AST_KEYED) {
        name = ast->b ? eval(e, frame, ast->b).text : ast->text;
        if (!*name || strchr(name, '.'))
            elab_fail(e, ast->b ? ast->b->span : ast->span2,
                      "the name of an element is not empty, and has no '.'");
        ast = ast->a;
    }
    add_element(e, list, name, implied_instance(e, eval(e, frame, ast), ast->span));
}

static Value eval_list(Elab *e, Frame *frame, const Ast *ast)
{
    ListBuilder list = {0};
    for (uint32_t i = 0; i < ast->list.count; i++)
        eval_element(e, frame, &list, ast->list.at[i]);
    return finish_list(e, &list);
}

// Binds the names of a loop to the parts of an element; `_` binds nothing.
static void bind_loop(Elab *e, Frame *frame, const Ast *loop, Value element)
{
    Value parts[MAX_RANK * 8];
    uint32_t count = loop->name_count;
    if (count > sizeof parts / sizeof *parts)
        elab_fail(e, loop->span, "too many names");
    if (count == 1)
        parts[0] = element;
    else
        destructure(e, element, count, parts, loop->a->span);
    for (uint32_t i = 0; i < count; i++) {
        const char *name = loop->names[i];
        if (strcmp(name, "_") == 0)
            continue;
        Binding *binding = frame_find(frame, name);
        if (binding) {
            binding->value = parts[i];
            continue;
        }
        refuse_hiding(e, frame, name, loop->name_spans[i]);
        frame_bind(e, frame, name, parts[i], loop->name_spans[i], BIND_LOCAL);
    }
}

static void run_loops(Elab *e, Frame *frame, ListBuilder *list, const Ast *ast, uint32_t level)
{
    if (level == ast->list.count) {
        eval_element(e, frame, list, ast->a);
        return;
    }
    const Ast *loop = ast->list.at[level];
    Value over = eval(e, frame, loop->a);
    uint32_t count = sequence_count(e, over, loop->a->span);
    for (uint32_t i = 0; i < count; i++) {
        elab_step(e, loop->span, 1);
        bind_loop(e, frame, loop, sequence_at(e, over, i, loop->a->span));
        if (!loop->b || elab_truth(e, eval(e, frame, loop->b), loop->b->span))
            run_loops(e, frame, list, ast, level + 1);
    }
}

// [f(x) for x in xs for y in ys if p(x, y)]: one frame for all loops, its names bound anew.
static Value eval_comprehension(Elab *e, Frame *frame, const Ast *ast)
{
    ListBuilder list = {0};
    Frame *inner = frame_new(e, frame, frame->file, FRAME_LOOP);
    run_loops(e, inner, &list, ast, 0);
    return finish_list(e, &list);
}

static bool range_end(Elab *e, Frame *frame, const Ast *ast, int64_t *number, Val *val)
{
    Value value = eval(e, frame, ast);
    if (e->host && value.kind == V_TENSOR) {
        const Type *type = val_type(e->graph, value.val);
        if (type->rank == 0 && type->dtype == DT_I64) {
            *val = value.val;
            return true;
        }
    }
    if (value.kind == V_TENSOR && val_type(e->graph, value.val)->rank == 0) {
        elab_error(e, ast->span, "the end of a range must be known to the compiler; this is %s",
                   value_describe(e, value));
        elab_help(e, (Span){0}, "only 'sample' blocks loop over numbers of the step");
        elab_stop(e);
    }
    *number = value_whole(e, value, ast->span, "the end of a range");
    return false;
}

static Value eval_range(Elab *e, Frame *frame, const Ast *ast)
{
    if (!ast->a || !ast->b)
        elab_fail(e, ast->span, "an open range stands only in an index");
    Range *range = arena_alloc(e->arena, sizeof *range);
    bool step = range_end(e, frame, ast->a, &range->first, &range->first_val);
    step |= range_end(e, frame, ast->b, &range->limit, &range->limit_val);
    if (!step && range->limit < range->first)
        elab_fail(e, ast->span, "the range %" PRId64 "..%" PRId64 " runs backwards", range->first,
                  range->limit);
    if (step && !range->first_val)
        range->first_val = g_const(e->graph, DT_I64, (double)range->first);
    if (step && !range->limit_val)
        range->limit_val = g_const(e->graph, DT_I64, (double)range->limit);
    return (Value){.kind = V_RANGE, .range = range};
}

// ---- conditions ----

// An operand of `and`, `or`: a bool, or a tensor of them (an optional input must be there).
static Value eval_truth(Elab *e, Frame *frame, const Ast *ast)
{
    Value value = eval(e, frame, ast);
    if (value_is_tensor(value))
        value = value_tensor(value_val(e, value, ast->span));
    if (value.kind != V_BOOL &&
        (value.kind != V_TENSOR || val_type(e->graph, value.val)->dtype != DT_BOOL))
        elab_fail(e, ast->span, "'and' and 'or' join conditions; this is %s",
                  value_describe(e, value));
    return value;
}

// The right side is looked at only if the left one leaves the question open.
static Value eval_logic(Elab *e, Frame *frame, const Ast *ast)
{
    bool is_or = ast->op == OPR_OR;
    Value x = eval_truth(e, frame, ast->a);
    if (x.kind == V_BOOL && (x.integer != 0) == is_or)
        return x;
    Value y = eval_truth(e, frame, ast->b);
    if (x.kind == V_BOOL)
        return y;
    if (y.kind == V_BOOL)
        return (y.integer != 0) == is_or ? y : x;
    elab_at(e, ast->span);
    Val val = g_binary(e->graph, is_or ? OP_OR : OP_AND, x.val, y.val);
    if (!val)
        elab_fail_graph(e, ast->span);
    return value_tensor(val);
}

static Value eval_ifelse(Elab *e, Frame *frame, const Ast *ast)
{
    Value condition = eval(e, frame, ast->a);
    if (e->host && condition.kind == V_TENSOR)
        return host_if(e, frame, ast, condition);
    return eval(e, frame, elab_truth(e, condition, ast->a->span) ? ast->b : ast->c);
}

// ---- fields, pipes ----

static Value eval_field(Elab *e, Frame *frame, const Ast *ast)
{
    Value object = eval(e, frame, ast->a);
    if (object.kind == V_NAMESPACE) {
        FileScope *space;
        Decl *decl = file_lookup(e, object.file, ast->text, &space);
        if (!decl)
            elab_fail(e, ast->span2, "%s declares no '%s'", file_of(object.file->path), ast->text);
        return decl_value(e, decl);
    }
    return instance_field(e, object, ast->text, ast->span, ast->span2);
}

// x |> f is f(x), x |> f(a) is f(x, a).
static Value eval_pipe(Elab *e, Frame *frame, const Ast *ast)
{
    if (ast->b->kind == AST_CALL)
        return eval_call(e, frame, ast->b, ast->a);
    Value x = eval(e, frame, ast->a);
    Value callee = eval(e, frame, ast->b);
    Args *args = args_new(e, 1, ast->span);
    args->callee_span = ast->b->span;
    args->at[0] = (Arg){.value = x, .span = ast->a->span};
    return elab_call(e, frame, callee, args);
}

static Value eval_name(Elab *e, Frame *frame, const Ast *ast)
{
    Value value;
    if (elab_lookup(e, frame, ast->text, &value, NULL))
        return value;
    if (strcmp(ast->text, "_") == 0)
        elab_fail(e, ast->span, "'_' leaves a hole among the arguments of a call; it is no value");
    elab_unknown_name(e, frame, ast->text, ast->span);
}

static Value eval_binary(Elab *e, Frame *frame, const Ast *ast)
{
    if (ast->op == OPR_PIPE)
        return eval_pipe(e, frame, ast);
    if (ast->op == OPR_AND || ast->op == OPR_OR)
        return eval_logic(e, frame, ast);
    Value x = eval(e, frame, ast->a);
    Value y = eval(e, frame, ast->b);
    return eval_operator(e, frame, ast->op, x, y, ast->span, ast->a, ast->b);
}

static Value eval_kind(Elab *e, Frame *frame, const Ast *ast)
{
    switch ((int)ast->kind) {
    case AST_NAME:
        return eval_name(e, frame, ast);
    case AST_INT:
        return value_int(ast->integer);
    case AST_REAL:
        return value_real(ast->real);
    case AST_STRING:
        return eval_string(e, frame, ast);
    case AST_BOOL:
        return value_bool(ast->integer != 0);
    case AST_NONE:
        return value_none();
    case AST_LIST:
        return eval_list(e, frame, ast);
    case AST_COMPREHENSION:
        return eval_comprehension(e, frame, ast);
    case AST_CALL:
        return eval_call(e, frame, ast, NULL);
    case AST_INDEX:
        return eval_index(e, frame, ast);
    case AST_FIELD:
        return eval_field(e, frame, ast);
    case AST_UNARY:
        return ast->op == OPR_NOT ? eval_not(e, eval(e, frame, ast->a), ast->span)
                                  : eval_negative(e, eval(e, frame, ast->a), ast->span);
    case AST_BINARY:
        return eval_binary(e, frame, ast);
    case AST_IFELSE:
        return eval_ifelse(e, frame, ast);
    case AST_RANGE:
        return eval_range(e, frame, ast);
    case AST_ERROR:
        e->quiet = true; // the parser told it
        elab_stop(e);
    default:
        elab_fail(e, ast->span, "this is no value");
    }
}

// The value of an expression. Counts steps and depth, so that no model can run for ever.
Value eval(Elab *e, Frame *frame, const Ast *ast)
{
    elab_step(e, ast->span, 1);
    if (++e->depth > ELAB_MAX_DEPTH)
        elab_fail(e, ast->span, "calls and brackets are nested too deeply: more than %d",
                  ELAB_MAX_DEPTH);
    Value value = eval_kind(e, frame, ast);
    e->depth--;
    return value;
}
