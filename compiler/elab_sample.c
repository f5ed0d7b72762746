// Sample blocks: host programs. Statements are evaluated in order; what the compiler knows is
// folded away, the rest is emitted. A loop is evaluated until what its variables hold at its end
// is what they hold at its beginning; what an unfinished round emitted is dropped.
//
// A name that is bound once to something the compiler knows stays that; any other is a variable.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

static void exec_host_block(Elab *e, const Ast *block);

// ---- who is a variable ----

static void count_name(Map *assigned, const char *name, uint64_t times)
{
    map_set(assigned, name, map_get(assigned, name) + times);
}

static bool yields(const Ast *ast)
{
    if (!ast)
        return false;
    bool found = ast->kind == AST_YIELD;
    if (ast->kind == AST_BLOCK)
        for (uint32_t i = 0; i < ast->list.count && !found; i++)
            found = yields(ast->list.at[i]);
    if (ast->kind == AST_FOR || ast->kind == AST_IF)
        found = yields(ast->b) || yields(ast->c);
    return found;
}

static void count_assignments(Map *assigned, const Ast *ast)
{
    if (!ast)
        return;
    if (ast->kind == AST_ASSIGN)
        for (uint32_t i = 0; i < ast->list.count; i++)
            count_name(assigned, ast->list.at[i]->text, 1);
    if (ast->kind == AST_UPDATE)
        count_name(assigned, ast->text, 2);
    if (ast->kind == AST_FOR)
        for (uint32_t i = 0; i < ast->name_count; i++)
            count_name(assigned, ast->names[i], 2);
    if (ast->kind == AST_BLOCK)
        for (uint32_t i = 0; i < ast->list.count; i++)
            count_assignments(assigned, ast->list.at[i]);
    if (ast->kind == AST_FOR || ast->kind == AST_IF)
        count_assignments(assigned, ast->b);
    if (ast->kind == AST_IF)
        count_assignments(assigned, ast->c);
}

// Known to the compiler, and worth keeping so.
static bool is_known(Value value)
{
    return value.kind != V_NONE && value.kind != V_TENSOR && value.kind != V_HOST;
}

static void bind_known(Elab *e, const char *name, Value value, Span span)
{
    Binding *binding = frame_find(e->host->frame, name);
    if (binding)
        binding->value = value;
    else
        frame_bind(e, e->host->frame, name, value, span, BIND_LOCAL);
}

static void assign(Elab *e, const char *name, Value value, Span span, Span at)
{
    if (strcmp(name, "_") == 0)
        return;
    if (is_known(value) && map_get(&e->host->assigned, name) == 1)
        bind_known(e, name, value, span);
    else
        host_store(e, host_variable(e, name, name, span), value, at);
}

// ---- statements ----

// name = expression
static void assign_one(Elab *e, const char *name, Span span, const Ast *ast)
{
    Frame *frame = e->host->frame;
    while (ast->kind == AST_IFELSE) {
        Value condition = eval(e, frame, ast->a);
        if (condition.kind != V_BOOL) {
            host_choose(e, frame, ast, condition, host_variable(e, name, name, span));
            return;
        }
        ast = condition.integer ? ast->b : ast->c;
    }
    Value value = eval(e, frame, ast);
    if (is_known(value) && map_get(&e->host->assigned, name) == 1)
        bind_known(e, name, value, span);
    else
        host_store_new(e, host_variable(e, name, name, span), value, ast);
}

static void exec_assignment(Elab *e, const Ast *ast)
{
    Frame *frame = e->host->frame;
    uint32_t count = ast->list.count;
    if (count == 1 && strcmp(ast->list.at[0]->text, "_") != 0) {
        assign_one(e, ast->list.at[0]->text, ast->list.at[0]->span2, ast->a);
        return;
    }
    Value value = eval(e, frame, ast->a);
    Value *parts = &value;
    if (count > 1) {
        parts = arena_alloc(e->arena, count * sizeof *parts);
        destructure(e, value, count, parts, ast->a->span);
    }
    for (uint32_t i = 0; i < count; i++)
        assign(e, ast->list.at[i]->text, parts[i], ast->list.at[i]->span2, ast->a->span);
}

static void exec_host_update(Elab *e, const Ast *ast)
{
    Frame *frame = e->host->frame;
    Binding *binding = frame_find(frame, ast->text);
    if (!binding)
        elab_unknown_name(e, frame, ast->text, ast->span2);
    Value old = binding->value;
    Value value = eval(e, frame, ast->a);
    value = eval_operator(e, frame, ast->op, old, value, ast->span, NULL, ast->a);
    assign(e, ast->text, value, ast->span2, ast->span);
}

static HostBlock nested(Elab *e, const Ast *block)
{
    Host *host = e->host;
    HostBuilder *outer = host->block, own = {0};
    host->block = &own;
    if (block)
        exec_host_block(e, block);
    host->block = outer;
    return host_finish(e, &own);
}

// `x == none`, `x != none` of a variable that may hold nothing: the branches know which.
static const Ast *asked_variable(Elab *e, const Ast *condition, Value *variable)
{
    if (condition->kind != AST_BINARY || (condition->op != OPR_EQ && condition->op != OPR_NE))
        return NULL;
    const Ast *name = condition->b->kind == AST_NONE   ? condition->a
                      : condition->a->kind == AST_NONE ? condition->b
                                                       : NULL;
    Binding *binding =
        name && name->kind == AST_NAME ? frame_find(e->host->frame, name->text) : NULL;
    if (!binding || binding->value.kind != V_HOST ||
        e->host->vars[binding->value.input].held != HELD_MAYBE)
        return NULL;
    *variable = binding->value;
    return name;
}

static void exec_host_if(Elab *e, const Ast *ast)
{
    Host *host = e->host;
    Value variable, condition = value_none();
    bool asked = asked_variable(e, ast->a, &variable) != NULL;
    bool negate = asked && ast->a->op == OPR_EQ;
    if (!asked)
        condition = eval(e, host->frame, ast->a);
    if (condition.kind == V_BOOL) {
        if (condition.integer)
            exec_host_block(e, ast->b);
        else if (ast->c)
            exec_host_block(e, ast->c);
        return;
    }
    Val val = asked ? 0 : value_val(e, condition, ast->a->span);
    if (val && (val_type(e->graph, val)->rank || val_type(e->graph, val)->dtype != DT_BOOL))
        elab_fail(e, ast->a->span, "a condition is true or false; this is %s",
                  value_describe(e, condition));
    size_t count = host->var_count;
    Held *before = host_snapshot(e);
    if (asked)
        host_hold(e, variable.input, negate ? HELD_NONE : HELD_TENSOR);
    HostBlock body = nested(e, ast->b);
    size_t after_count = host->var_count;
    Held *after = host_snapshot(e);
    host_restore(e, before, count);
    if (asked)
        host_hold(e, variable.input, negate ? HELD_TENSOR : HELD_NONE);
    HostBlock other = nested(e, ast->c);
    host_join(e, after, after_count);
    HostStmt *stmt = host_emit(host, HOST_IF);
    stmt->value = val;
    stmt->source = asked ? variable.input : 0;
    stmt->negate = negate;
    stmt->body = body;
    stmt->other = other;
}

static bool same_state(const Held *x, size_t x_count, const Held *y, size_t y_count)
{
    for (size_t i = 0; i < y_count; i++)
        if ((i < x_count ? x[i] : HELD_UNSET) != y[i])
            return false;
    return true;
}

static void exec_range(Elab *e, const Ast *ast, const Range *range)
{
    Host *host = e->host;
    Val first = range->first_val, limit = range->limit_val;
    if (!limit) {
        first = g_const(e->graph, DT_I64, (double)range->first);
        limit = g_const(e->graph, DT_I64, (double)range->limit);
    }
    if (ast->name_count != 1)
        elab_fail(e, ast->span, "a range gives one number at a time");
    uint32_t counter = host_variable(e, ast->names[0], ast->names[0], ast->name_spans[0]);
    host->vars[counter].dtype = DT_I64;
    uint32_t calls = host->calls, entries = e->module->entry_count;
    HostBlock body;
    size_t start = host->var_count;
    for (int round = 0;; round++) {
        size_t count = host->var_count;
        Held *before = host_snapshot(e);
        host->calls = calls;
        e->module->entry_count = entries;
        host_free_since(e, start);
        host_hold(e, counter, HELD_NUMBER);
        body = nested(e, ast->b);
        host_join(e, before, count);
        size_t after_count = host->var_count;
        Held *after = host_snapshot(e);
        if (same_state(before, count, after, after_count) || round == 8)
            break;
    }
    HostStmt *stmt = host_emit(host, HOST_FOR);
    stmt->var = counter;
    stmt->value = first;
    stmt->limit = limit;
    stmt->reverse = range->reversed;
    stmt->body = body;
}

static void exec_host_for(Elab *e, const Ast *ast)
{
    Frame *frame = e->host->frame;
    Value over = eval(e, frame, ast->a);
    if (over.kind == V_RANGE) {
        exec_range(e, ast, over.range);
        return;
    }
    uint32_t count = sequence_count(e, over, ast->a->span);
    Value *parts = arena_alloc(e->arena, ast->name_count * sizeof *parts);
    for (uint32_t i = 0; i < count; i++) {
        parts[0] = sequence_at(e, over, i, ast->a->span);
        if (ast->name_count > 1)
            destructure(e, parts[0], ast->name_count, parts, ast->a->span);
        for (uint32_t j = 0; j < ast->name_count; j++)
            bind_known(e, ast->names[j], parts[j], ast->name_spans[j]);
        exec_host_block(e, ast->b);
    }
}

static uint32_t tensor_variable(Elab *e, Value value, Span span, const char *what)
{
    if (value.kind != V_HOST)
        elab_fail(e, span, "%s is a tensor; this is %s", what, value_describe(e, value));
    if (e->host->vars[value.input].held == HELD_MAYBE)
        elab_fail(e, span, "this may be nothing here");
    return value.input;
}

static void exec_yield(Elab *e, const Ast *ast)
{
    Value value = eval(e, e->host->frame, ast->a);
    uint32_t variable = tensor_variable(e, value, ast->a->span, "what is yielded");
    const Type *type = &e->host->vars[variable].type;
    if (type->rank != 5 || !dtype_is_float(type->dtype) || !dim_equal(type->dim[1], dim_fixed(3)))
        elab_fail(e, ast->a->span, "a clip is [b, 3, frames, height, width]; this is %s",
                  shape_text(e, NULL, type));
    host_emit(e->host, HOST_YIELD)->source = variable;
}

static void exec_host_report(Elab *e, const Ast *ast)
{
    for (uint32_t i = 0; i < ast->list.count; i++) {
        const Ast *item = ast->list.at[i];
        Value value = eval(e, e->host->frame, item);
        uint32_t variable = tensor_variable(e, value, item->span, "what a sample block reports");
        HostStmt *stmt = host_emit(e->host, HOST_REPORT);
        stmt->source = variable;
        stmt->name = item->kind == AST_NAME ? item->text
                                            : intern(arena_printf(e->arena, "report%" PRIu32, i));
    }
}

// Options are made once, however often the block is evaluated.
static uint32_t find_option(Elab *e, const Ast *ast)
{
    Host *host = e->host;
    for (uint32_t i = 0; i < e->module->option_count; i++) {
        const Option *option = &e->module->options[i];
        if (option->name == ast->text && option->stage == host->decl->name &&
            memcmp(&option->span, &ast->span2, sizeof option->span) == 0)
            return i;
    }
    return option_new(e, ast->text, host->decl->name, ast, host->frame);
}

static void exec_host_option(Elab *e, const Ast *ast)
{
    Host *host = e->host;
    uint32_t option = find_option(e, ast);
    if (e->module->options[option].dtype != DT_NONE) {
        Value value = option_value(e, option);
        if (map_get(&host->assigned, ast->text))
            host_store(e, host_variable(e, ast->text, ast->text, ast->span2), value, ast->span);
        else
            bind_known(e, ast->text, value, ast->span2);
        return;
    }
    uint32_t variable = host_variable(e, ast->text, ast->text, ast->span2);
    host->vars[variable].type = e->module->options[option].type;
    HostStmt *stmt = host_emit(host, HOST_OPTION);
    stmt->var = variable;
    stmt->source = option;
    host_hold(e, variable, HELD_MAYBE);
}

static void exec_host_statement(Elab *e, const Ast *ast)
{
    elab_step(e, ast->span, 1);
    switch ((int)ast->kind) {
    case AST_ASSIGN:
        exec_assignment(e, ast);
        break;
    case AST_UPDATE:
        exec_host_update(e, ast);
        break;
    case AST_IF:
        exec_host_if(e, ast);
        break;
    case AST_FOR:
        exec_host_for(e, ast);
        break;
    case AST_YIELD:
        exec_yield(e, ast);
        break;
    case AST_REPORT:
        exec_host_report(e, ast);
        break;
    case AST_OPTION:
        exec_host_option(e, ast);
        break;
    case AST_RETURN:
        elab_fail(e, ast->span, "a sample block yields clips; it returns nothing");
    default:
        exec_statement(e, e->host->frame, ast);
    }
}

static void exec_host_block(Elab *e, const Ast *block)
{
    if (block->kind == AST_IF) {
        exec_host_statement(e, block);
        return;
    }
    for (uint32_t i = 0; i < block->list.count; i++)
        exec_host_statement(e, block->list.at[i]);
}

// ---- the block ----

static void sample_once(Elab *e, void *context)
{
    Host *host = context;
    HostBuilder block = {0};
    e->host = host;
    host->again = false;
    host->var_count = 0;
    host->calls = 0;
    host->block = &block;
    host->frame = frame_new(e, NULL, host->decl->file, FRAME_FUNCTION);
    frame_bind(e, host->frame, intern("b"), value_dim(dim_batch(1)), (Span){0}, BIND_AXIS);
    exec_host_block(e, host->decl->ast->b);
    HostBlock body = host_finish(e, &block);
    e->host = NULL;
    if (host->again)
        return;
    Sampler sampler = {.name = host->decl->name,
                       .body = body,
                       .span = host->decl->ast->span2,
                       .var_count = (uint32_t)host->var_count};
    sampler.vars = arena_alloc(e->arena, (host->var_count + 1) * sizeof *sampler.vars);
    for (size_t i = 0; i < host->var_count; i++) {
        const HostVariable *var = &host->vars[i];
        const char *name = var->name ? var->name : intern(arena_printf(e->arena, "t%zu", i));
        sampler.vars[i] = (HostVar){name, var->dtype, var->type};
    }
    Module *module = e->module;
    module->samplers = grow_array(module->samplers, &e->sampler_capacity, module->sampler_count,
                                  sizeof *module->samplers);
    module->samplers[module->sampler_count++] = sampler;
}

// A sample block as a host program, with the entries it calls.
void elab_sample(Elab *e, Decl *decl)
{
    Host host = {.decl = decl};
    bool done;
    uint32_t entries = e->module->entry_count;
    count_assignments(&host.assigned, decl->ast->b);
    do {
        e->module->entry_count = entries;
        done = elab_try(e, sample_once, &host);
    } while (done && host.again);
    if (done && !yields(decl->ast->b))
        diag_warning(decl->ast->span2, "sample block '%s' yields no clip", decl->name);
    free(host.assigned.at);
    free(host.reals.at);
    free(host.vars);
}
