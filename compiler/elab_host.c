// Variables and calls of sample blocks.
//
// A block is evaluated once; what depends on the step becomes host statements over variables, one
// for each name. A name means, at each place, a number (a VAR node), a tensor, nothing, or one of
// the last two (`held`); branches and loops join what their ends hold. A call with tensors becomes
// the launch of an entry: the program itself, or one that is made for the call.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

HostStmt *host_emit(Host *host, HostKind kind)
{
    HostBuilder *block = host->block;
    block->at = grow_array(block->at, &block->capacity, block->count, sizeof *block->at);
    block->at[block->count] = (HostStmt){.kind = kind};
    return &block->at[block->count++];
}

HostBlock host_finish(Elab *e, HostBuilder *block)
{
    HostBlock done = {.count = (uint32_t)block->count};
    if (block->count)
        done.at = arena_copy(e->arena, block->at, block->count * sizeof *block->at);
    free(block->at);
    *block = (HostBuilder){0};
    return done;
}

// ---- variables ----

// The variable of a name (one for each), or a new temporary. key: what tells it from others when
// the block is evaluated anew.
uint32_t host_variable(Elab *e, const char *name, const void *key, Span span)
{
    Host *host = e->host;
    for (size_t i = 0; name && i < host->var_count; i++)
        if (host->vars[i].name == name)
            return (uint32_t)i;
    host->vars = grow_array(host->vars, &host->var_capacity, host->var_count, sizeof *host->vars);
    host->vars[host->var_count] = (HostVariable){.name = name, .key = key, .span = span};
    return (uint32_t)host->var_count++;
}

Value host_read(Elab *e, uint32_t variable)
{
    const HostVariable *var = &e->host->vars[variable];
    if (var->held == HELD_NONE)
        return value_none();
    if (var->held != HELD_NUMBER)
        return (Value){.kind = V_HOST, .input = variable};
    Attr attr = {.n = {variable}, .count = 1};
    Type type = type_scalar(var->dtype);
    Val val = graph_make(e->graph, OP_VAR, NULL, 0, &attr, &type);
    if (!val)
        bug("variable: %s", graph_error(e->graph));
    return value_tensor(val);
}

void host_hold(Elab *e, uint32_t variable, Held held)
{
    Host *host = e->host;
    HostVariable *var = &host->vars[variable];
    var->held = held;
    if (!var->name || held == HELD_UNSET)
        return;
    Binding *binding = frame_find(host->frame, var->name);
    Value value = host_read(e, variable);
    if (binding)
        binding->value = value;
    else
        frame_bind(e, host->frame, var->name, value, var->span, BIND_LOCAL);
}

static _Noreturn void mixed(Elab *e, const HostVariable *var, Span span)
{
    elab_error(e, span, "'%s' is a number at one place and a tensor at another",
               var->name ? var->name : "this");
    elab_note(e, var->span, "first bound here");
    elab_stop(e);
}

static void store_number(Elab *e, uint32_t variable, Value value, Span span)
{
    Host *host = e->host;
    HostVariable *var = &host->vars[variable];
    Val val = value_val(e, value, span);
    DType dtype = val_type(e->graph, val)->dtype;
    if (var->type.dtype != DT_NONE)
        mixed(e, var, span);
    if (map_get(&host->reals, var->key) && dtype == DT_I64) {
        val = g_cast(e->graph, val, e->real);
        dtype = e->real;
    }
    if (var->dtype == DT_NONE)
        var->dtype = dtype;
    if (var->dtype != dtype) {
        if (var->dtype == DT_BOOL || dtype == DT_BOOL)
            elab_fail(e, span, "'%s' is a bool at one place and a number at another",
                      var->name ? var->name : "this");
        map_set(&host->reals, var->key, 1);
        host->again = true;
        val = g_cast(e->graph, val, var->dtype);
    }
    HostStmt *stmt = host_emit(host, HOST_SET);
    stmt->var = variable;
    stmt->value = val;
    host_hold(e, variable, HELD_NUMBER);
}

static void adopt_type(Elab *e, HostVariable *var, const Type *type, Span span)
{
    if (var->dtype != DT_NONE)
        mixed(e, var, span);
    if (var->type.dtype == DT_NONE)
        var->type = *type;
    if (shape_equal(&var->type, type) && var->type.dtype == type->dtype)
        return;
    elab_error(e, span, "'%s' is %s at one place and %s at another", var->name ? var->name : "this",
               shape_text(e, NULL, &var->type), shape_text(e, NULL, type));
    elab_note(e, var->span, "first bound here");
    elab_stop(e);
}

// variable = value
void host_store(Elab *e, uint32_t variable, Value value, Span span)
{
    Host *host = e->host;
    if (value.kind == V_NONE) {
        if (host->vars[variable].dtype != DT_NONE)
            mixed(e, &host->vars[variable], span);
        host_emit(host, HOST_SET_NONE)->var = variable;
        host_hold(e, variable, HELD_NONE);
    } else if (value.kind == V_HOST) {
        Type type = host->vars[value.input].type;
        Held held = host->vars[value.input].held;
        adopt_type(e, &host->vars[variable], &type, span);
        HostStmt *stmt = host_emit(host, HOST_COPY);
        stmt->var = variable;
        stmt->source = value.input;
        host_hold(e, variable, held);
    } else if (value_is_step(e, value)) {
        store_number(e, variable, value, span);
    } else {
        elab_fail(e, span,
                  "a name that a sample block binds again holds a number or a tensor; "
                  "this is %s",
                  value_describe(e, value));
    }
}

// ---- states ----

Held *host_snapshot(Elab *e)
{
    Host *host = e->host;
    Held *held = arena_alloc(e->arena, (host->var_count + 1) * sizeof *held);
    for (size_t i = 0; i < host->var_count; i++)
        held[i] = host->vars[i].held;
    return held;
}

// Variables that are newer than the snapshot hold nothing yet.
void host_restore(Elab *e, const Held *held, size_t count)
{
    for (size_t i = 0; i < e->host->var_count; i++)
        host_hold(e, (uint32_t)i, i < count ? held[i] : HELD_UNSET);
}

static Held join(Held x, Held y)
{
    if (x == y)
        return x;
    if (x == HELD_NUMBER || y == HELD_NUMBER)
        return HELD_NUMBER; // a tensor beside it was refused when it was stored
    return HELD_MAYBE;
}

void host_join(Elab *e, const Held *other, size_t count)
{
    for (size_t i = 0; i < e->host->var_count; i++)
        host_hold(e, (uint32_t)i, join(e->host->vars[i].held, i < count ? other[i] : HELD_UNSET));
}

// ---- conditions and draws ----

static uint32_t temporary(Elab *e, const void *key, Span span)
{
    Host *host = e->host;
    for (size_t i = 0; i < host->var_count; i++)
        if (host->vars[i].free) {
            host->vars[i] = (HostVariable){.key = key, .span = span};
            return (uint32_t)i;
        }
    return host_variable(e, NULL, key, span);
}

// Temporaries made since there were `count` variables are free: what used them was dropped.
void host_free_since(Elab *e, size_t count)
{
    for (size_t i = count; i < e->host->var_count; i++)
        e->host->vars[i].free = e->host->vars[i].free || !e->host->vars[i].name;
}

static void set_flag(Elab *e, uint32_t variable, bool flag)
{
    HostStmt *stmt = host_emit(e->host, HOST_SET);
    stmt->var = variable;
    stmt->value = g_const(e->graph, DT_BOOL, flag);
}

// Whether a variable holds nothing, as a step value (or known).
Value host_is_none(Elab *e, Value value)
{
    Host *host = e->host;
    if (host->vars[value.input].held == HELD_TENSOR)
        return value_bool(false);
    uint32_t flag = temporary(e, &host->vars, (Span){0});
    host->vars[flag].dtype = DT_BOOL;
    HostBuilder *outer = host->block, yes = {0}, no = {0};
    host->block = &yes;
    set_flag(e, flag, false);
    host->block = &no;
    set_flag(e, flag, true);
    host->block = outer;
    HostStmt *stmt = host_emit(host, HOST_IF);
    stmt->source = value.input;
    stmt->body = host_finish(e, &yes);
    stmt->other = host_finish(e, &no);
    host_hold(e, flag, HELD_NUMBER);
    return host_read(e, flag);
}

// The temporary that the last statement made, if `value` is just that: its place, to be another.
static uint32_t *fresh_result(const Host *host, Value value)
{
    if (value.kind != V_HOST || host->vars[value.input].name || !host->block->count)
        return NULL;
    HostStmt *last = &host->block->at[host->block->count - 1];
    if (last->kind == HOST_RANDOM && last->var == value.input)
        return &last->var;
    if (last->kind == HOST_CALL && last->result_count == 1 && last->results[0] == value.input)
        return &last->results[0];
    return NULL;
}

// variable = the value of ast, which was just evaluated.
void host_store_new(Elab *e, uint32_t variable, Value value, const Ast *ast)
{
    Host *host = e->host;
    bool call = ast->kind == AST_CALL || (ast->kind == AST_BINARY && ast->op == OPR_PIPE);
    uint32_t *result = call ? fresh_result(host, value) : NULL;
    if (!result) {
        host_store(e, variable, value, ast->span);
        return;
    }
    Type type = host->vars[value.input].type;
    adopt_type(e, &host->vars[variable], &type, ast->span);
    host->vars[value.input].free = true;
    *result = variable;
    host_hold(e, variable, HELD_TENSOR);
}

static HostBlock branch(Elab *e, Frame *frame, const Ast *ast, uint32_t variable)
{
    Host *host = e->host;
    HostBuilder *outer = host->block, block = {0};
    host->block = &block;
    host_assign(e, frame, variable, ast);
    host->block = outer;
    return host_finish(e, &block);
}

// variable = if c then x else y, where c is known only when the block runs.
void host_choose(Elab *e, Frame *frame, const Ast *ast, Value condition, uint32_t variable)
{
    Host *host = e->host;
    Val val = value_val(e, condition, ast->a->span);
    const Type *type = val_type(e->graph, val);
    if (type->rank || type->dtype != DT_BOOL)
        elab_fail(e, ast->a->span, "a condition is true or false; this is %s",
                  value_describe(e, condition));
    size_t count = host->var_count;
    Held *before = host_snapshot(e);
    HostBlock body = branch(e, frame, ast->b, variable);
    Held *after = host_snapshot(e);
    size_t after_count = host->var_count;
    host_restore(e, before, count);
    HostBlock other = branch(e, frame, ast->c, variable);
    host_join(e, after, after_count);
    HostStmt *stmt = host_emit(host, HOST_IF);
    stmt->value = val;
    stmt->body = body;
    stmt->other = other;
}

// variable = the value of an expression.
void host_assign(Elab *e, Frame *frame, uint32_t variable, const Ast *ast)
{
    while (ast->kind == AST_IFELSE) {
        Value condition = eval(e, frame, ast->a);
        if (condition.kind != V_BOOL) {
            host_choose(e, frame, ast, condition, variable);
            return;
        }
        ast = condition.integer ? ast->b : ast->c;
    }
    host_store_new(e, variable, eval(e, frame, ast), ast);
}

Value host_if(Elab *e, Frame *frame, const Ast *ast, Value condition)
{
    uint32_t variable = temporary(e, ast, ast->span);
    host_choose(e, frame, ast, condition, variable);
    return host_read(e, variable);
}

Value host_random(Elab *e, Val random)
{
    uint32_t variable = temporary(e, &e->host->vars, (Span){0});
    e->host->vars[variable].type = *val_type(e->graph, random);
    HostStmt *stmt = host_emit(e->host, HOST_RANDOM);
    stmt->var = variable;
    stmt->value = random;
    host_hold(e, variable, HELD_TENSOR);
    return host_read(e, variable);
}

// ---- calls ----

static bool holds_tensor(Value value)
{
    if (value.kind == V_HOST)
        return true;
    if (value.kind == V_LIST)
        for (uint32_t i = 0; i < value.list->count; i++)
            if (holds_tensor(value.list->at[i]))
                return true;
    return false;
}

bool host_wants(Elab *e, Value callee, const Args *args)
{
    (void)e;
    if (callee.kind == V_BUILTIN && strstr(callee.builtin->params, "list"))
        return false; // len, zip, enumerate, reverse look at lists only
    if (callee.kind == V_INSTANCE || (callee.kind == V_LIST && value_is_module(callee)))
        return true;
    if (callee.kind == V_FUNCTION && (callee.function->ast->kind == AST_PROGRAM ||
                                      (callee.function->env && callee.function->env->instance)))
        return true;
    if (callee.kind == V_PARTIAL)
        return host_wants(e, callee.partial->callee, args);
    for (uint32_t i = 0; i < args->count; i++)
        if (holds_tensor(args->at[i].value))
            return true;
    return false;
}

// An absent argument: a variable that never holds anything.
static HostArg nothing(Elab *e)
{
    const char *name = intern("(nothing)");
    return (HostArg){.is_var = true, .index = host_variable(e, name, name, (Span){0})};
}

static HostArg host_argument(Elab *e, const Input *input, Value value, Span span)
{
    const HostVariable *var = value.kind == V_HOST ? &e->host->vars[value.input] : NULL;
    if (value.kind == V_NONE || (var && var->held == HELD_MAYBE)) {
        if (!input->optional)
            elab_fail(e, span, "'%s' %s nothing here, and is needed", input->name,
                      var ? "may be" : "is");
        if (value.kind == V_NONE)
            return nothing(e);
    }
    if (var) {
        if (!shape_equal(&var->type, &input->type) || var->type.dtype != input->type.dtype)
            elab_fail(e, span, "'%s' is %s, and %s is given", input->name,
                      shape_text(e, NULL, &input->type), shape_text(e, NULL, &var->type));
        return (HostArg){.is_var = true, .index = value.input};
    }
    if (input->type.rank || !value_is_step(e, value))
        elab_fail(e, span, "'%s' is %s, and %s is given", input->name,
                  input->type.rank ? shape_text(e, NULL, &input->type) : "a number",
                  value_describe(e, value));
    Val val = value_val(e, value, span);
    DType dtype = val_type(e->graph, val)->dtype;
    if (dtype == DT_I64 && dtype_is_float(input->type.dtype))
        val = g_cast(e->graph, val, input->type.dtype);
    else if (dtype != input->type.dtype)
        elab_fail(e, span, "'%s' is %s, not %s", input->name,
                  input->type.dtype == DT_I64    ? "an integer"
                  : input->type.dtype == DT_BOOL ? "true or false"
                                                 : "a number",
                  value_describe(e, value));
    return (HostArg){.value = val};
}

// The launch of an entry; its results are new variables, a list if there are several.
static Value launch(Elab *e, uint32_t index, HostArg *args, Span span)
{
    const Entry *entry = &e->module->entries[index];
    const Variant *variant = entry->variant_count ? &entry->variants[0] : NULL;
    if (!variant) {
        e->quiet = true; // the entry's own errors were told
        elab_stop(e);
    }
    HostStmt stmt = {
        .kind = HOST_CALL, .entry = index, .args = args, .arg_count = entry->input_count};
    stmt.results = arena_alloc(e->arena, (variant->output_count + 1) * sizeof *stmt.results);
    for (uint32_t i = 0; i < variant->output_count; i++) {
        if (variant->outputs[i].kind != OUT_NAMED)
            continue;
        uint32_t variable = temporary(e, &e->host->calls, span);
        e->host->vars[variable].type = *val_type(e->graph, variant->outputs[i].val);
        e->host->vars[variable].type.seg = 0;
        stmt.results[stmt.result_count++] = variable;
    }
    *host_emit(e->host, HOST_CALL) = stmt;
    List *list = list_new(e, stmt.result_count);
    for (uint32_t i = 0; i < stmt.result_count; i++) {
        host_hold(e, stmt.results[i], HELD_TENSOR);
        list->at[i] = host_read(e, stmt.results[i]);
    }
    return list->count == 1 ? list->at[0] : (Value){.kind = V_LIST, .list = list};
}

static Value call_program(Elab *e, Value callee, Args *args)
{
    Decl *decl = callee.function->decl;
    const Ast *ast = decl->ast;
    const Arg **match = match_arguments(e, ast, args);
    const Entry *entry = &e->module->entries[decl->index];
    HostArg *out = arena_alloc(e->arena, (entry->input_count + 1) * sizeof *out);
    if (!entry->variant_count) {
        e->quiet = true;
        elab_stop(e);
    }
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const Ast *param = ast->list.at[i];
        if (!match[i] && !param->a)
            elab_fail(e, args->span, "program '%s' needs '%s'", decl->name, param->text);
        Value value = match[i] ? match[i]->value
                               : eval(e, frame_new(e, NULL, decl->file, FRAME_FUNCTION), param->a);
        out[i] = host_argument(e, &entry->inputs[i], value, match[i] ? match[i]->span : args->span);
    }
    return launch(e, decl->index, out, args->span);
}

// ---- entries made for a call ----

typedef struct {
    Value callee;
    Args *args;
    Frame *frame;
    Input inputs[64];
    Value from[64]; // what the host passes
    uint32_t count;
} CallContext;

static const char *input_name(Elab *e, const CallContext *call, const Arg *arg, uint32_t position)
{
    const char *name = arg->name;
    Value callee = call->callee;
    const Ast *ast = callee.kind == V_FUNCTION ? callee.function->ast : NULL;
    if (!name && ast && position < ast->list.count)
        name = ast->list.at[position]->text;
    if (!name)
        name = intern("x");
    for (uint32_t i = 0; i < call->count; i++)
        if (call->inputs[i].name == name)
            return intern(arena_printf(e->arena, "%s%" PRIu32, name, call->count));
    return name;
}

// Replaces what only the host knows by inputs of the entry. Returns a stand-in: an input by its
// number, which call_body turns into a node.
static Value replace(Elab *e, CallContext *call, const Arg *arg, Value value, uint32_t position)
{
    if (value.kind == V_LIST && holds_tensor(value)) {
        Value list = value_list(e, value.list->at, value.list->count);
        list.list->names = value.list->names;
        for (uint32_t i = 0; i < list.list->count; i++)
            list.list->at[i] = replace(e, call, arg, list.list->at[i], position);
        return list;
    }
    if (value.kind != V_HOST && value.kind != V_TENSOR)
        return value;
    if (call->count == 64)
        elab_fail(e, arg->span, "a call of a sample block passes at most 64 values");
    Input *input = &call->inputs[call->count];
    input->name = input_name(e, call, arg, position);
    if (value.kind == V_HOST) {
        input->type = e->host->vars[value.input].type;
        input->optional = e->host->vars[value.input].held == HELD_MAYBE;
    } else {
        input->type = *val_type(e->graph, value.val);
    }
    call->from[call->count] = value;
    return (Value){.kind = V_MAYBE, .input = call->count++};
}

static Value resolve(Elab *e, const CallContext *call, Value value)
{
    if (value.kind == V_MAYBE && !call->inputs[value.input].optional)
        return value_tensor(input_val(e, value.input));
    if (value.kind != V_LIST)
        return value;
    Value list = value_list(e, value.list->at, value.list->count);
    *list.list = *value.list;
    list.list->at =
        arena_copy(e->arena, value.list->at, (value.list->count + 1) * sizeof *value.list->at);
    bool changed = false;
    for (uint32_t i = 0; i < list.list->count; i++) {
        list.list->at[i] = resolve(e, call, value.list->at[i]);
        changed |= value.list->at[i].kind == V_MAYBE;
    }
    return changed ? list : value;
}

static void call_body(Elab *e, Run *run, void *context)
{
    CallContext *call = context;
    Args *args = args_new(e, call->args->count, call->args->span);
    args->callee_span = call->args->callee_span;
    for (uint32_t i = 0; i < args->count; i++) {
        args->at[i] = call->args->at[i];
        args->at[i].value = resolve(e, call, call->args->at[i].value);
    }
    Value result = elab_call(e, call->frame, call->callee, args);
    uint32_t count = result.kind == V_LIST ? result.list->count : 1;
    for (uint32_t i = 0; i < count; i++) {
        Value part = result.kind == V_LIST ? result.list->at[i] : result;
        const char *name = count > 1 ? arena_printf(e->arena, "y%" PRIu32, i) : "y";
        run_output(e, run, OUT_NAMED, intern(name), value_val(e, part, args->span));
    }
}

static Value call_anything(Elab *e, Value callee, Args *args)
{
    Host *host = e->host;
    CallContext *call = arena_alloc(e->arena, sizeof *call);
    call->callee = callee;
    call->frame = host->frame;
    call->args = args_new(e, args->count, args->span);
    call->args->callee_span = args->callee_span;
    for (uint32_t i = 0; i < args->count; i++) {
        call->args->at[i] = args->at[i];
        call->args->at[i].value = replace(e, call, &args->at[i], args->at[i].value, i);
    }
    const char *name =
        intern(arena_printf(e->arena, "%s.call%" PRIu32, host->decl->name, host->calls++));
    uint32_t index = entry_new(e, ENTRY_CALL, name, args->span);
    e->module->entries[index].inputs =
        arena_copy(e->arena, call->inputs, (call->count + 1) * sizeof *call->inputs);
    e->module->entries[index].input_count = call->count;
    if (!entry_elaborate(e, index, NULL, call_body, call)) {
        e->quiet = true;
        elab_stop(e);
    }
    HostArg *out = arena_alloc(e->arena, (call->count + 1) * sizeof *out);
    for (uint32_t i = 0; i < call->count; i++)
        out[i] = host_argument(e, &call->inputs[i], call->from[i], args->span);
    return launch(e, index, out, args->span);
}

Value host_call(Elab *e, Value callee, Args *args)
{
    bool program = callee.kind == V_FUNCTION && callee.function->ast->kind == AST_PROGRAM;
    return program ? call_program(e, callee, args) : call_anything(e, callee, args);
}
