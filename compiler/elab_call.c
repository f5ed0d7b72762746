// Calls: arguments with names, defaults and holes; functions, sequences, functions with holes.
//
// A list is a sequence: x goes through its elements. Named arguments of a sequence go to those
// elements, at any depth, whose function or module declares a parameter of that name.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

Args *args_new(Elab *e, uint32_t count, Span span)
{
    Args *args = arena_alloc(e->arena, sizeof *args);
    args->at = arena_alloc(e->arena, (count ? count : 1) * sizeof *args->at);
    args->count = count;
    args->span = args->callee_span = span;
    return args;
}

static void eval_argument(Elab *e, Frame *frame, Arg *arg, const Ast *ast)
{
    arg->span = ast->span;
    if (ast->kind == AST_KEYED) {
        arg->name = ast->text;
        arg->name_span = ast->span2;
        ast = ast->a;
    }
    arg->hole = ast->kind == AST_NAME && strcmp(ast->text, "_") == 0;
    arg->value = arg->hole ? value_none() : eval(e, frame, ast);
}

static uint32_t count_holes(const AstList *list)
{
    uint32_t holes = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        const Ast *ast = list->at[i]->kind == AST_KEYED ? list->at[i]->a : list->at[i];
        holes += ast->kind == AST_NAME && strcmp(ast->text, "_") == 0;
    }
    return holes;
}

// f(a, k: b), or piped |> f(a, k: b). With holes the call waits: it is a function of them, and
// what is piped into it fills the hole.
Value eval_call(Elab *e, Frame *frame, const Ast *ast, const Ast *piped)
{
    Arg first = {.value = value_none()};
    if (piped)
        first = (Arg){.value = eval(e, frame, piped), .span = piped->span};
    Value callee = eval(e, frame, ast->a);
    uint32_t holes = count_holes(&ast->list), extra = piped && !holes;
    Args *args = args_new(e, ast->list.count + extra, ast->span);
    args->callee_span = ast->a->span;
    if (extra)
        args->at[0] = first;
    for (uint32_t i = 0; i < ast->list.count; i++)
        eval_argument(e, frame, &args->at[i + extra], ast->list.at[i]);
    if (!holes)
        return elab_call(e, frame, callee, args);
    Partial *partial = arena_alloc(e->arena, sizeof *partial);
    *partial = (Partial){callee, *args, holes};
    Value function = {.kind = V_PARTIAL, .partial = partial};
    if (!piped)
        return function;
    Args *filling = args_new(e, 1, ast->span);
    filling->callee_span = ast->a->span;
    filling->at[0] = first;
    return elab_call(e, frame, function, filling);
}

// ---- parameters ----

static const char *signature(Elab *e, const Ast *ast)
{
    const char *text = arena_printf(e->arena, "%s(", ast->text);
    for (uint32_t i = 0; i < ast->list.count; i++)
        text = arena_printf(e->arena, "%s%s%s", text, i ? ", " : "", ast->list.at[i]->text);
    return arena_printf(e->arena, "%s)", text);
}

static const char *declaration_word(const Ast *ast)
{
    return ast->kind == AST_MODULE ? "module" : ast->kind == AST_PROGRAM ? "program" : "function";
}

static void note_signature(Elab *e, const Ast *ast)
{
    elab_note(e, ast->span2, "%s %s", declaration_word(ast), signature(e, ast));
}

// Takes the next parameter of a text like "shape mean= stream=" off it; false: there is none.
static bool next_param(const char **params, const char **name, size_t *length, bool *optional)
{
    const char *at = *params;
    while (*at == ' ')
        at++;
    if (!*at)
        return false;
    *name = at;
    while (*at && *at != ' ' && *at != '=')
        at++;
    *length = (size_t)(at - *name);
    *optional = *at == '=';
    *params = at + *optional;
    return true;
}

// "normal(shape, mean:, std:, stream:)": what may be left out has a colon.
static void help_signature(Elab *e, const char *what, const char *params)
{
    const char *text = arena_printf(e->arena, "%s(", what), *name;
    size_t length;
    bool optional;
    for (uint32_t i = 0; next_param(&params, &name, &length, &optional); i++) {
        if (strncmp(name, "**", 2) == 0)
            continue;
        bool rest = *name == '*';
        text = arena_printf(e->arena, "%s%s%.*s%s", text, i ? ", " : "", (int)length - rest,
                            name + rest,
                            optional ? ":"
                            : rest   ? "..."
                                     : "");
    }
    elab_help(e, (Span){0}, "%s)", text);
}

static _Noreturn void unknown_parameter(Elab *e, const char *word, const char *owner,
                                        const char *const *names, size_t count, const Arg *arg,
                                        const Ast *declared, const char *params)
{
    const char *near = nearest_name(arg->name, names, count);
    if (near)
        elab_error(e, arg->name_span, "%s '%s' has no parameter '%s'; did you mean '%s'?", word,
                   owner, arg->name, near);
    else
        elab_error(e, arg->name_span, "%s '%s' has no parameter '%s'", word, owner, arg->name);
    if (declared)
        note_signature(e, declared);
    if (params)
        help_signature(e, owner, params);
    elab_stop(e);
}

static uint32_t find_parameter(Elab *e, const Ast *ast, const Arg *arg)
{
    for (uint32_t i = 0; i < ast->list.count; i++)
        if (ast->list.at[i]->text == arg->name)
            return i;
    const char **names = arena_alloc(e->arena, (ast->list.count + 1) * sizeof *names);
    for (uint32_t i = 0; i < ast->list.count; i++)
        names[i] = ast->list.at[i]->text;
    unknown_parameter(e, declaration_word(ast), ast->text, names, ast->list.count, arg, ast, NULL);
}

// Which argument belongs to which parameter; NULL: its default.
const Arg **match_arguments(Elab *e, const Ast *ast, const Args *args)
{
    uint32_t count = ast->list.count, next = 0;
    const Arg **match = arena_alloc(e->arena, (count + 1) * sizeof *match);
    for (uint32_t i = 0; i < args->count; i++) {
        const Arg *arg = &args->at[i];
        uint32_t at = arg->name ? find_parameter(e, ast, arg) : next++;
        if (at >= count) {
            elab_error(e, arg->span, "%s '%s' takes %" PRIu32 " argument%s, not %" PRIu32,
                       declaration_word(ast), ast->text, count, count == 1 ? "" : "s", args->count);
            note_signature(e, ast);
            elab_stop(e);
        }
        if (match[at])
            elab_fail(e, arg->span, "'%s' is given twice", ast->list.at[at]->text);
        match[at] = arg;
    }
    return match;
}

// Binds arguments first, so that shapes see all of them, then defaults and types in order.
static void bind_parameters(Elab *e, Frame *frame, const Ast *ast, const Args *args, BindKind kind)
{
    const Arg **match = match_arguments(e, ast, args);
    uint32_t count = ast->list.count;
    uint32_t *slot = arena_alloc(e->arena, (count + 1) * sizeof *slot);
    for (uint32_t i = 0; i < count; i++) {
        const Ast *param = ast->list.at[i];
        refuse_hiding(e, frame, param->text, param->span2);
        if (!match[i])
            continue;
        slot[i] = frame->count;
        frame_bind(e, frame, param->text, match[i]->value, param->span2, kind);
    }
    for (uint32_t i = 0; i < count; i++) {
        const Ast *param = ast->list.at[i];
        if (!match[i]) {
            if (!param->a) {
                elab_error(e, args->span, "%s '%s' needs '%s'", declaration_word(ast), ast->text,
                           param->text);
                note_signature(e, ast);
                elab_stop(e);
            }
            Value value = eval(e, frame, param->a);
            slot[i] = frame->count;
            frame_bind(e, frame, param->text, value, param->span2, kind);
        }
        Value value = frame->at[slot[i]].value;
        bool may_be_none = param->a && param->a->kind == AST_NONE;
        if (!param->b || (may_be_none && value.kind == V_NONE))
            continue;
        Span span = match[i] ? match[i]->span : param->span;
        if (!may_be_none)
            value = elab_pin(e, value, span);
        type_check(e, frame, param->b, &value, span, param->text);
        frame->at[slot[i]].value = value;
    }
}

// ---- functions ----

static bool names_type(Elab *e, Frame *frame, const char *name)
{
    Value value;
    return elab_lookup(e, frame, name, &value, NULL) && value.kind == V_TYPE;
}

// `-> latent`, `-> [b, n]`, `-> y: [b, n], z`: what a function promises.
static Value check_results(Elab *e, Frame *frame, const Ast *ast, Value result, Span span)
{
    uint32_t count = ast->list2.count;
    if (!count)
        return result;
    Value *parts = &result;
    if (count > 1) {
        parts = arena_alloc(e->arena, count * sizeof *parts);
        destructure(e, result, count, parts, span);
    }
    for (uint32_t i = 0; i < count; i++) {
        const Ast *promise = ast->list2.at[i];
        Ast named = {.kind = AST_TYPE, .span = promise->span, .text = promise->text};
        const Ast *type = promise->b;
        if (!type && promise->text && ast->kind == AST_DEF && names_type(e, frame, promise->text))
            type = arena_copy(e->arena, &named, sizeof named);
        if (type)
            type_check(e, frame, type, &parts[i], span, "the result");
    }
    return count > 1 ? value_list(e, parts, count) : result;
}

static Value run_body(Elab *e, Frame *frame, const Ast *ast)
{
    if (ast->a)
        return check_results(e, frame, ast, eval(e, frame, ast->a), ast->a->span);
    if (exec_block(e, frame, ast->b) != FLOW_RETURN)
        elab_fail(e, ast->span2, "'%s' ends without 'return'", ast->text);
    return check_results(e, frame, ast, frame->result, ast->b->span);
}

// ---- tables are computed once ----
//
// A function of a file that makes a constant tensor from numbers (rotary angles) gives the same
// one each time: its results are kept, found by function and arguments.

typedef struct Kept {
    struct Kept *next;
    const Args *args;
    Value result;
} Kept;

static bool only_numbers(const Args *args)
{
    for (uint32_t i = 0; i < args->count; i++)
        if (args->at[i].value.kind > V_STRING || args->at[i].name)
            return false;
    return args->count > 0;
}

static bool find_kept(Elab *e, const Function *function, const Args *args, Value *result)
{
    if (function->env || !only_numbers(args))
        return false;
    for (const Kept *kept = (Kept *)(uintptr_t)map_get(&e->kept, function->ast); kept;
         kept = kept->next) {
        bool same = kept->args->count == args->count;
        for (uint32_t i = 0; same && i < args->count; i++)
            same = kept->args->at[i].value.kind == args->at[i].value.kind &&
                   value_equal(e, kept->args->at[i].value, args->at[i].value);
        if (same) {
            *result = kept->result;
            return true;
        }
    }
    return false;
}

static void keep(Elab *e, const Function *function, const Args *args, Value result)
{
    if (function->env || !only_numbers(args) || result.kind != V_TENSOR ||
        val_get(e->graph, result.val)->op != OP_TABLE)
        return;
    Kept *kept = arena_alloc(e->arena, sizeof *kept);
    kept->next = (Kept *)(uintptr_t)map_get(&e->kept, function->ast);
    Args *copy = args_new(e, args->count, args->span);
    memcpy(copy->at, args->at, args->count * sizeof *copy->at);
    kept->args = copy;
    kept->result = result;
    map_set(&e->kept, function->ast, (uint64_t)(uintptr_t)kept);
}

// Calls a def, a method or a program. entry: a program run alone, where b is the batch.
Value call_function(Elab *e, Value callee, Args *args, bool entry, Frame **used)
{
    const Function *function = callee.function;
    const Ast *ast = function->ast;
    Value result;
    if (!e->run && find_kept(e, function, args, &result))
        return result;
    Frame *frame = frame_new(e, function->env, function->file, FRAME_FUNCTION);
    const ModuleInstance *self = frame->instance;
    bool method = self && self->named && function->env == self->frame;
    if (!self || self->named)
        frame->label = self ? self->path : function->name;
    const char *path = e->path;
    uint8_t mode = e->mode;
    CallSite site = {e->calls, args->span, function->name, self};
    e->calls = &site;
    int64_t root = e->root;
    if (self && self->named) {
        e->path = self->path;
        e->root = self->root;
    }
    e->mode = mode_within(callee.mode, e->mode);
    if (++e->depth > ELAB_MAX_DEPTH)
        elab_fail(e, args->span, "calls are nested too deeply: more than %d", ELAB_MAX_DEPTH);
    if (entry)
        frame_bind(e, frame, intern("b"), value_dim(dim_batch(1)), (Span){0}, BIND_AXIS);
    bind_parameters(e, frame, ast, args, BIND_LOCAL);
    result = run_body(e, frame, ast);
    if (!e->run)
        keep(e, function, args, result);
    if (!entry && method && strcmp(function->name, "forward") != 0)
        elab_tap(e, self->path, function->name, result);
    else if (!entry && !self)
        elab_tap(e, function->name, NULL, result);
    e->depth--;
    e->mode = mode;
    e->path = path;
    e->root = root;
    e->calls = site.outer;
    if (used)
        *used = frame;
    return result;
}

// ---- built-in functions and layers ----

static uint32_t named_param(const char *params, const char *wanted)
{
    const char *name;
    size_t length;
    bool optional;
    for (uint32_t i = 0; next_param(&params, &name, &length, &optional); i++)
        if (*name != '*' && strlen(wanted) == length && strncmp(wanted, name, length) == 0)
            return i;
    return UINT32_MAX;
}

static _Noreturn void wrong_arguments(Elab *e, const char *what, const char *params)
{
    help_signature(e, what, params);
    elab_stop(e);
}

static _Noreturn void unknown_builtin_param(Elab *e, const char *what, const char *params,
                                            const Arg *arg)
{
    const char *names[MAX_BUILTIN_PARAMS];
    size_t count = 0, length;
    const char *name, *rest = params;
    bool optional;
    while (count < MAX_BUILTIN_PARAMS && next_param(&rest, &name, &length, &optional))
        if (*name != '*')
            names[count++] = intern_n(name, length);
    unknown_parameter(e, "the built-in", what, names, count, arg, NULL, params);
}

// Sorts arguments into the parameters of a built-in: V_ABSENT where one was not given. A `*xs`
// parameter leaves the arguments from its place on to the built-in; `**` takes any name.
void bind_builtin(Elab *e, const char *what, const char *params, Args *args, Value *out,
                  Span *spans)
{
    const char *rest = params, *name;
    size_t length;
    bool optional, open = strstr(params, "**") != NULL;
    uint32_t count = 0, variadic = UINT32_MAX, next = 0;
    while (next_param(&rest, &name, &length, &optional)) {
        if (*name == '*' && length > 1 && name[1] != '*')
            variadic = count;
        out[count] = (Value){.kind = V_ABSENT};
        spans[count++] = args->span;
    }
    uint32_t fixed = count - open;
    for (uint32_t i = 0; i < args->count; i++) {
        const Arg *arg = &args->at[i];
        uint32_t at = arg->name ? named_param(params, arg->name) : next++;
        if (arg->name && at == UINT32_MAX && open)
            continue;
        if (arg->name && at == UINT32_MAX)
            unknown_builtin_param(e, what, params, arg);
        if (!arg->name && variadic != UINT32_MAX && at >= variadic)
            continue;
        if (at >= fixed) {
            elab_error(e, arg->span, "'%s' takes %" PRIu32 " argument%s", what, fixed,
                       fixed == 1 ? "" : "s");
            wrong_arguments(e, what, params);
        }
        if (out[at].kind != V_ABSENT) {
            elab_error(e, arg->span, "this argument of '%s' is given twice", what);
            wrong_arguments(e, what, params);
        }
        out[at] = arg->value;
        spans[at] = arg->span;
    }
    rest = params;
    for (uint32_t i = 0; next_param(&rest, &name, &length, &optional); i++)
        if (*name != '*' && !optional && out[i].kind == V_ABSENT) {
            elab_error(e, args->span, "'%s' needs '%.*s'", what, (int)length, name);
            wrong_arguments(e, what, params);
        }
}

static Value call_builtin(Elab *e, Frame *frame, const Builtin *builtin, Args *args)
{
    Value arg[MAX_BUILTIN_PARAMS];
    Span spans[MAX_BUILTIN_PARAMS];
    bind_builtin(e, builtin->name, builtin->params, args, arg, spans);
    elab_at(e, args->span);
    return builtin->call(e, frame, builtin, arg, args);
}

// ---- modules and sequences ----

static Value call_instance(Elab *e, Value callee, Args *args)
{
    ModuleInstance *self = callee.instance;
    Value result;
    if (self->layer) {
        if (args->count != 1 || args->at[0].name)
            elab_fail(e, args->span, "%s takes one tensor", self->layer->name);
        const char *path = e->path;
        uint8_t mode = e->mode;
        e->path = self->path;
        e->mode = mode_within(callee.mode, e->mode);
        elab_at(e, args->span);
        Value x = value_tensor(value_val(e, args->at[0].value, args->at[0].span));
        result = self->layer->forward(e, self, x, args);
        e->path = path;
        e->mode = mode;
    } else {
        Binding *forward = frame_find(self->frame, intern("forward"));
        if (!forward || forward->value.kind != V_FUNCTION) {
            elab_error(e, args->callee_span, "module %s has no 'forward', so it cannot be called",
                       self->class->name);
            elab_note(e, self->class->ast->span2, "declared here");
            elab_stop(e);
        }
        Value function = forward->value;
        function.mode = callee.mode;
        result = call_function(e, function, args, false, NULL);
    }
    if (self->named)
        elab_tap(e, self->path, NULL, result);
    return result;
}

static bool params_declare(const Ast *ast, const char *name)
{
    for (uint32_t i = 0; i < ast->list.count; i++)
        if (ast->list.at[i]->text == name)
            return true;
    return false;
}

// Would this callee, or a part of it, take an argument of that name?
bool callee_declares(Elab *e, Value callee, const char *name)
{
    if (callee.kind == V_FUNCTION)
        return params_declare(callee.function->ast, name);
    if (callee.kind == V_PARTIAL)
        return callee_declares(e, callee.partial->callee, name);
    if (callee.kind == V_INSTANCE && !callee.instance->layer) {
        Binding *forward = frame_find(callee.instance->frame, intern("forward"));
        return forward && forward->value.kind == V_FUNCTION &&
               params_declare(forward->value.function->ast, name);
    }
    if (callee.kind == V_LIST)
        for (uint32_t i = 0; i < callee.list->count; i++)
            if (callee_declares(e, callee.list->at[i], name))
                return true;
    return false;
}

void elab_at(Elab *e, Span span)
{
    graph_at(e->graph, (Origin){span, e->path, (e->mode & MODE_RECOMPUTE) != 0});
}

static const char *element_path(Elab *e, const List *list, uint32_t index)
{
    const char *path = list->whole->path;
    if (!path)
        return NULL;
    if (list->names && list->names[index])
        return path_join(e, path, list->names[index], 0, '.');
    return path_join(e, path, NULL, list->offset + index, '.');
}

static void collect_parameters(Elab *e, const AstList *list)
{
    for (uint32_t i = 0; i < list->count; i++) {
        const Ast *ast = list->at[i];
        if (ast->kind == AST_MODULE && ast->b)
            collect_parameters(e, &ast->b->list);
        if (ast->kind != AST_DEF)
            continue;
        for (uint32_t j = 0; j < ast->list.count; j++)
            map_set(&e->parameters, ast->list.at[j]->text, 1);
    }
}

// A sequence may lack the element that wants an argument (blocks of one stage differ); a name
// that no function or module of any file declares is a slip.
static bool declared_anywhere(Elab *e, const char *name)
{
    if (!e->parameters.count)
        for (size_t i = 0; i < e->file_count; i++)
            collect_parameters(e, &e->files[i]->ast->list);
    return map_get(&e->parameters, name) != 0;
}

static void check_sequence_names(Elab *e, Value sequence, const Args *args)
{
    uint32_t positional = 0;
    for (uint32_t i = 0; i < args->count; i++) {
        const Arg *arg = &args->at[i];
        positional += arg->name == NULL;
        if (arg->name && !callee_declares(e, sequence, arg->name) &&
            !declared_anywhere(e, arg->name))
            elab_fail(e, arg->name_span, "no module declares '%s'", arg->name);
        if (positional > 1)
            elab_fail(e, arg->span,
                      "a sequence takes one value, and named arguments for those "
                      "elements that declare them");
    }
    if (!positional)
        elab_fail(e, args->span, "a sequence needs a value to start with");
}

static Value call_element(Elab *e, Frame *frame, Value element, Value x, const Args *args)
{
    Args *own = args_new(e, args->count, args->span);
    own->count = 0;
    for (uint32_t i = 0; i < args->count; i++) {
        if (!args->at[i].name) {
            own->at[own->count] = args->at[i];
            own->at[own->count++].value = x;
        } else if (callee_declares(e, element, args->at[i].name)) {
            own->at[own->count++] = args->at[i];
        }
    }
    return elab_call(e, frame, element, own);
}

// x |> list[0] |> list[1] ...
static Value call_sequence(Elab *e, Frame *frame, Value sequence, Args *args)
{
    List *list = sequence.list;
    check_sequence_names(e, sequence, args);
    uint8_t mode = e->mode;
    int64_t root = e->root;
    e->mode = mode_within(sequence.mode, e->mode);
    if (list->whole->path)
        e->root = list->whole->root;
    Value x = value_none();
    for (uint32_t i = 0; i < args->count; i++)
        if (!args->at[i].name)
            x = args->at[i].value;
    for (uint32_t i = 0; i < list->count; i++) {
        x = call_element(e, frame, list->at[i], x, args);
        if (e->run && e->run->kind == ENTRY_PROGRAM && list->at[i].kind != V_INSTANCE &&
            list->at[i].kind != V_LIST)
            elab_tap(e, element_path(e, list, i), NULL, x);
    }
    e->mode = mode;
    e->root = root;
    if (list->path)
        elab_tap(e, list->path, NULL, x);
    return x;
}

static Value call_partial(Elab *e, Frame *frame, const Partial *partial, Args *args)
{
    Args *all = args_new(e, partial->args.count + args->count, args->span);
    all->callee_span = args->callee_span;
    memcpy(all->at, partial->args.at, partial->args.count * sizeof *all->at);
    all->count = partial->args.count;
    uint32_t hole = 0;
    for (uint32_t i = 0; i < args->count; i++) {
        if (args->at[i].name) {
            all->at[all->count++] = args->at[i];
            continue;
        }
        while (hole < partial->args.count && !all->at[hole].hole)
            hole++;
        if (hole == partial->args.count)
            elab_fail(e, args->at[i].span, "this function has %" PRIu32 " hole%s", partial->holes,
                      partial->holes == 1 ? "" : "s");
        all->at[hole].value = args->at[i].value;
        all->at[hole].span = args->at[i].span;
        all->at[hole].hole = false;
    }
    for (uint32_t i = 0; i < partial->args.count; i++)
        if (all->at[i].hole)
            elab_fail(e, args->span, "this function has %" PRIu32 " holes to fill", partial->holes);
    return elab_call(e, frame, partial->callee, all);
}

// Calls anything that can be called; frame is the caller's (patterns read its names).
Value elab_call(Elab *e, Frame *frame, Value callee, Args *args)
{
    if (e->host && host_wants(e, callee, args))
        return host_call(e, callee, args);
    switch ((int)callee.kind) {
    case V_FUNCTION:
        return call_function(e, callee, args, false, NULL);
    case V_BUILTIN:
        return call_builtin(e, frame, callee.builtin, args);
    case V_PARTIAL:
        return call_partial(e, frame, callee.partial, args);
    case V_CLASS:
    case V_LAYER:
        return construct(e, callee, args);
    case V_INSTANCE:
        return call_instance(e, callee, args);
    case V_LIST:
        return call_sequence(e, frame, callee, args);
    default:
        elab_fail(e, args->callee_span,
                  "only functions, modules and sequences can be called; "
                  "this is %s",
                  value_describe(e, callee));
    }
}

// ---- constructing ----

static void construct_layer(Elab *e, Args *args, Value class, ModuleInstance *self)
{
    Value arg[MAX_BUILTIN_PARAMS];
    Span spans[MAX_BUILTIN_PARAMS];
    bind_builtin(e, class.layer->name, class.layer->params, args, arg, spans);
    self->layer = class.layer;
    self->frame = frame_new(e, NULL, NULL, FRAME_MODULE);
    class.layer->construct(e, self, arg, args);
}

// An instance: its body runs top to bottom; what it binds to modules are its fields.
Value construct(Elab *e, Value class, Args *args)
{
    ModuleInstance *self = arena_alloc(e->arena, sizeof *self);
    Value value = {.kind = V_INSTANCE, .instance = self};
    Run *run = e->run;
    bool constructing = e->constructing;
    if (++e->depth > ELAB_MAX_DEPTH)
        elab_fail(e, args->span, "modules are nested too deeply: more than %d", ELAB_MAX_DEPTH);
    e->run = NULL; // a body draws, decides and reports nothing
    e->constructing = true;
    if (class.kind == V_LAYER) {
        construct_layer(e, args, class, self);
    } else {
        CallSite site = {e->calls, args->span, class.class->name, NULL};
        e->calls = &site;
        self->class = class.class;
        self->frame = frame_new(e, NULL, class.class->file, FRAME_MODULE);
        self->frame->instance = self;
        bind_parameters(e, self->frame, class.class->ast, args, BIND_PARAM);
        exec_block(e, self->frame, class.class->ast->b);
        e->calls = site.outer;
    }
    e->constructing = constructing;
    e->run = run;
    e->depth--;
    return value;
}
