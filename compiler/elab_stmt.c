// Statements of functions and module bodies. Blocks open no scope: a name belongs to the function
// or body, and `=` binds it anew. What only train and sample blocks may hold is refused here.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

// ---- taking apart ----

// Elements that a loop or several names take from a value.
uint32_t sequence_count(Elab *e, Value value, Span span)
{
    if (value.kind == V_LIST)
        return value.list->count;
    if (value.kind == V_RANGE) {
        if (value.range->limit_val) {
            elab_error(e, span, "the end of this range is known only when the step starts");
            elab_help(e, (Span){0}, "only 'for' statements of a sample block loop over it");
            elab_stop(e);
        }
        int64_t count = value.range->limit - value.range->first;
        if (count > ELAB_MAX_STEPS)
            elab_fail(e, span, "a range of %" PRId64 " elements is too long", count);
        return (uint32_t)count;
    }
    if (value_is_tensor(value)) {
        const Type *type = val_type(e->graph, value_val(e, value, span));
        if (type->rank && !type->dim[0].batch)
            return (uint32_t)type->dim[0].n;
    }
    elab_fail(e, span, "a list, a range or a tensor's first axis is needed here; this is %s",
              value_describe(e, value));
}

Value sequence_at(Elab *e, Value value, uint32_t index, Span span)
{
    if (value.kind == V_RANGE)
        return value_int(value.range->reversed ? value.range->limit - 1 - index
                                               : value.range->first + index);
    if (value.kind == V_LIST) {
        Value part = value.list->at[index];
        if (part.kind == V_LIST || part.kind == V_INSTANCE)
            part.mode = mode_within(part.mode, value.mode);
        return part;
    }
    return tensor_first(e, value_val(e, value, span), index, span);
}

void destructure(Elab *e, Value value, uint32_t count, Value *out, Span span)
{
    uint32_t have = sequence_count(e, value, span);
    if (have != count)
        elab_fail(e, span, "%" PRIu32 " names cannot take apart %s", count,
                  value.kind == V_RANGE ? "this range" : value_describe(e, value));
    for (uint32_t i = 0; i < count; i++)
        out[i] = sequence_at(e, value, i, span);
}

// ---- binding ----

// A local name may hide one of the file, never a field or a parameter of its module.
void refuse_hiding(Elab *e, const Frame *frame, const char *name, Span span)
{
    if (!frame->instance || frame->kind == FRAME_MODULE || !frame->instance->frame)
        return;
    const Binding *hidden = frame_find(frame->instance->frame, name);
    if (!hidden || (hidden->kind != BIND_PARAM && !value_is_module(hidden->value)))
        return;
    elab_error(e, span, "'%s' is a %s of this module, and may not be hidden", name,
               hidden->kind == BIND_PARAM ? "parameter" : "field");
    elab_note(e, hidden->span, "bound here");
    elab_stop(e);
}

// name = value in a function or a module body.
void bind_local(Elab *e, Frame *frame, const char *name, Value value, Span span)
{
    Binding *binding = frame_find(frame, name);
    if (!binding) {
        refuse_hiding(e, frame, name, span);
        frame_bind(e, frame, name, value, span,
                   frame->kind == FRAME_MODULE ? BIND_FIELD : BIND_LOCAL);
    } else if (binding->kind == BIND_AXIS) {
        elab_error(e, span, "'%s' is an axis here, and stays what it is", name);
        elab_note(e, binding->span, "bound here");
        elab_stop(e);
    } else {
        binding->value = value;
        binding->span = span;
        if (frame->kind == FRAME_MODULE)
            binding->kind = BIND_FIELD;
    }
    if (e->run && frame->label)
        elab_tap(e, frame->label, name, value);
}

static void exec_assign(Elab *e, Frame *frame, const Ast *ast)
{
    Value value = eval(e, frame, ast->a);
    uint32_t count = ast->list.count;
    Value *parts = &value;
    if (count > 1) {
        parts = arena_alloc(e->arena, count * sizeof *parts);
        destructure(e, value, count, parts, ast->a->span);
    }
    for (uint32_t i = 0; i < count; i++) {
        const Ast *target = ast->list.at[i];
        if (target->b)
            type_check(e, frame, target->b, &parts[i], ast->a->span, target->text);
        if (frame->kind == FRAME_MODULE)
            parts[i] = implied_instance(e, parts[i], ast->a->span);
        if (strcmp(target->text, "_") != 0)
            bind_local(e, frame, target->text, parts[i], target->span2);
    }
}

static void exec_update(Elab *e, Frame *frame, const Ast *ast)
{
    Binding *binding = frame_find(frame, ast->text);
    Value old;
    if (!binding && !elab_lookup(e, frame, ast->text, &old, NULL))
        elab_unknown_name(e, frame, ast->text, ast->span2);
    if (!binding)
        elab_fail(e, ast->span2, "'%s' is not a name of this function; bind it with '=' first",
                  ast->text);
    old = binding->value;
    Value value = eval(e, frame, ast->a);
    value = eval_operator(e, frame, ast->op, old, value, ast->span, NULL, ast->a);
    bind_local(e, frame, ast->text, value, ast->span2);
}

static void exec_return(Elab *e, Frame *frame, const Ast *ast)
{
    if (frame->kind != FRAME_FUNCTION)
        elab_fail(e, ast->span, "'return' stands only in a function");
    if (ast->list.count == 1) {
        frame->result = eval(e, frame, ast->list.at[0]);
        return;
    }
    List *list = list_new(e, ast->list.count);
    for (uint32_t i = 0; i < ast->list.count; i++)
        list->at[i] = eval(e, frame, ast->list.at[i]);
    frame->result = (Value){.kind = V_LIST, .list = list};
}

// ---- control ----

// The names of a loop end with it, unless they were bound before.
static void forget_names(Frame *frame, const Ast *ast, const bool *known)
{
    for (uint32_t i = 0; i < ast->name_count; i++) {
        Binding *binding = known[i] ? NULL : frame_find(frame, ast->names[i]);
        if (binding)
            binding->name = NULL;
    }
    while (frame->count && !frame->at[frame->count - 1].name)
        frame->count--;
}

static Flow exec_for(Elab *e, Frame *frame, const Ast *ast)
{
    Value over = eval(e, frame, ast->a);
    uint32_t count = sequence_count(e, over, ast->a->span);
    Value *parts = arena_alloc(e->arena, ast->name_count * sizeof *parts);
    bool *known = arena_alloc(e->arena, ast->name_count);
    for (uint32_t i = 0; i < ast->name_count; i++)
        known[i] = frame_find(frame, ast->names[i]) != NULL;
    for (uint32_t i = 0; i < count; i++) {
        elab_step(e, ast->span, 1);
        parts[0] = sequence_at(e, over, i, ast->a->span);
        if (ast->name_count > 1)
            destructure(e, parts[0], ast->name_count, parts, ast->a->span);
        for (uint32_t j = 0; j < ast->name_count; j++)
            if (strcmp(ast->names[j], "_") != 0)
                bind_local(e, frame, ast->names[j], parts[j], ast->name_spans[j]);
        if (exec_block(e, frame, ast->b) == FLOW_RETURN)
            return FLOW_RETURN;
    }
    forget_names(frame, ast, known);
    return FLOW_NEXT;
}

static Flow exec_if(Elab *e, Frame *frame, const Ast *ast)
{
    while (ast && ast->kind == AST_IF) {
        if (elab_truth(e, eval(e, frame, ast->a), ast->a->span))
            return exec_block(e, frame, ast->b);
        ast = ast->c;
    }
    return ast ? exec_block(e, frame, ast) : FLOW_NEXT;
}

// ---- the rest ----

static void exec_def(Elab *e, Frame *frame, const Ast *ast)
{
    Function *function = arena_alloc(e->arena, sizeof *function);
    *function = (Function){ast, frame, frame->file, ast->text, NULL};
    Value value = {.kind = V_FUNCTION, .function = function};
    bind_local(e, frame, ast->text, value, ast->span2);
}

static void exec_ignore(Elab *e, Frame *frame, const Ast *ast)
{
    ModuleInstance *self = frame->kind == FRAME_MODULE ? frame->instance : NULL;
    if (!self)
        elab_fail(e, ast->span, "'ignore' stands only in the body of a module");
    const char **names =
        arena_alloc(e->arena, (self->ignored_count + ast->list.count) * sizeof *names);
    if (self->ignored_count)
        memcpy(names, self->ignored, self->ignored_count * sizeof *names);
    for (uint32_t i = 0; i < ast->list.count; i++) {
        Value name = eval(e, frame, ast->list.at[i]);
        if (name.kind != V_STRING)
            elab_fail(e, ast->list.at[i]->span, "what is ignored is named by a string");
        names[self->ignored_count++] = name.text;
    }
    self->ignored = names;
}

// Reports count in a minimize only; a program computes the same without them.
static void exec_report(Elab *e, Frame *frame, const Ast *ast)
{
    if (!e->run || e->run->kind != ENTRY_MINIMIZE)
        return;
    for (uint32_t i = 0; i < ast->list.count; i++) {
        const Ast *item = ast->list.at[i];
        Val val = value_val(e, eval(e, frame, item), item->span);
        const Type *type = val_type(e->graph, val);
        if (type->rank)
            elab_fail(e, item->span, "a report is a number; this is %s",
                      value_describe(e, value_tensor(val)));
        if (type->dtype != e->real)
            val = g_cast(e->graph, val, e->real);
        const char *name = item->kind == AST_NAME || item->kind == AST_FIELD
                               ? item->text
                               : intern(arena_printf(e->arena, "report%" PRIu32, i));
        run_output(e, e->run, OUT_REPORT, name, val);
    }
}

static void exec_assert(Elab *e, Frame *frame, const Ast *ast)
{
    Value value = eval(e, frame, ast->a);
    if (value.kind != V_BOOL)
        elab_fail(e, ast->a->span, "an assertion is about what the compiler knows; this is %s",
                  value_describe(e, value));
    if (value.integer)
        return;
    elab_error(e, ast->a->span, "%s", ast->text ? ast->text : "this does not hold");
    note_defines(e, frame->file, ast->a);
    elab_stop(e);
}

static _Noreturn void misplaced(Elab *e, const Ast *ast, const char *word, const char *place)
{
    elab_fail(e, ast->span, "'%s' stands only in a %s block", word, place);
}

Flow exec_statement(Elab *e, Frame *frame, const Ast *ast)
{
    elab_step(e, ast->span, 1);
    switch ((int)ast->kind) {
    case AST_ASSIGN:
        exec_assign(e, frame, ast);
        return FLOW_NEXT;
    case AST_UPDATE:
        exec_update(e, frame, ast);
        return FLOW_NEXT;
    case AST_RETURN:
        exec_return(e, frame, ast);
        return FLOW_RETURN;
    case AST_FOR:
        return exec_for(e, frame, ast);
    case AST_IF:
        return exec_if(e, frame, ast);
    case AST_BLOCK:
        return exec_block(e, frame, ast);
    case AST_DEF:
        exec_def(e, frame, ast);
        return FLOW_NEXT;
    case AST_IGNORE:
        exec_ignore(e, frame, ast);
        return FLOW_NEXT;
    case AST_REPORT:
        if (frame->kind == FRAME_MODULE)
            elab_fail(e, ast->span, "'report' stands in functions, train and sample blocks");
        exec_report(e, frame, ast);
        return FLOW_NEXT;
    case AST_ASSERT:
        exec_assert(e, frame, ast);
        return FLOW_NEXT;
    case AST_MINIMIZE:
        misplaced(e, ast, "minimize", "train");
    case AST_DATA:
        misplaced(e, ast, "data", "train");
    case AST_YIELD:
        misplaced(e, ast, "yield", "sample");
    case AST_OPTION:
        elab_fail(e, ast->span, "an option stands in a file, or in a train or sample block");
    default:
        e->quiet = true; // the parser told it
        elab_stop(e);
    }
}

Flow exec_block(Elab *e, Frame *frame, const Ast *block)
{
    for (uint32_t i = 0; i < block->list.count; i++)
        if (exec_statement(e, frame, block->list.at[i]) == FLOW_RETURN)
            return FLOW_RETURN;
    return FLOW_NEXT;
}
