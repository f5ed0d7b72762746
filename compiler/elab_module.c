// Models: instances, their fields, and the names of their parameters.
//
// A parameter has no name when it is made; it gets one when the `model` that holds it is walked:
// fields in the order they were first bound, list elements by index or element name. The first
// path wins, so a parameter that two paths reach is one. Parameters of a model are contiguous.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

bool needs_no_arguments(Value class)
{
    if (class.kind != V_CLASS)
        return false;
    const AstList *params = &class.class->ast->list;
    for (uint32_t i = 0; i < params->count; i++)
        if (!params->at[i]->a)
            return false;
    return true;
}

// Where an instance is wanted, a class whose parameters all have defaults stands for one.
Value implied_instance(Elab *e, Value value, Span span)
{
    return needs_no_arguments(value) ? construct(e, value, args_new(e, 0, span)) : value;
}

static _Noreturn void unknown_field(Elab *e, Value object, const char *name, Span span)
{
    const char *names[64];
    size_t count = 0;
    if (object.kind == V_INSTANCE)
        for (uint32_t i = 0; i < object.instance->frame->count && count < 64; i++)
            if (object.instance->frame->at[i].name)
                names[count++] = object.instance->frame->at[i].name;
    if (object.kind == V_LIST && object.list->names)
        for (uint32_t i = 0; i < object.list->count && count < 64; i++)
            if (object.list->names[i])
                names[count++] = object.list->names[i];
    const char *near = nearest_name(name, names, count);
    elab_error(e, span, "there is no field '%s' in %s", name, value_describe(e, object));
    if (near)
        elab_help(e, (Span){0}, "did you mean '%s'?", near);
    elab_stop(e);
}

// object.name: a field or method of a module, a named element of a list.
Value instance_field(Elab *e, Value object, const char *name, Span span, Span name_span)
{
    Value part = value_none();
    if (object.kind == V_INSTANCE) {
        Binding *binding = frame_find(object.instance->frame, name);
        if (!binding)
            unknown_field(e, object, name, name_span);
        part = binding->value;
    } else if (object.kind == V_LIST) {
        uint32_t at = 0, count = object.list->names ? object.list->count : 0;
        while (at < count && object.list->names[at] != name)
            at++;
        if (at == count)
            unknown_field(e, object, name, name_span);
        part = object.list->at[at];
    } else {
        elab_fail(e, span, "'.%s' asks for a field, and this is %s", name,
                  value_describe(e, object));
    }
    bool carries = part.kind == V_INSTANCE || part.kind == V_LIST || part.kind == V_FUNCTION;
    if (carries)
        part.mode = mode_within(part.mode, object.mode);
    return part;
}

// ---- names ----

static void name_value(Elab *e, Value value, const char *path, uint32_t root);

static void name_param(Elab *e, ParamObject *param, const char *path, uint32_t root)
{
    if (param->named)
        return;
    Module *module = e->module;
    if (map_get(&e->param_names, path))
        elab_fail(e, param->span, "two parameters are called '%s'", path);
    map_set(&e->param_names, path, 1);
    param->named = true;
    param->index = module->param_count;
    module->params =
        grow_array(module->params, &e->param_capacity, module->param_count, sizeof *module->params);
    module->params[module->param_count++] = (Param){.name = path,
                                                    .instance = root,
                                                    .type = param->type,
                                                    .buffer = param->buffer,
                                                    .init = param->init,
                                                    .init_a = param->init_a,
                                                    .init_b = param->init_b,
                                                    .span = param->span};
}

static void add_ignored(Elab *e, const ModuleInstance *self, const char *path, uint32_t root)
{
    Instance *instance = &e->module->instances[root];
    uint32_t count = instance->ignored_count + self->ignored_count;
    const char **names = arena_alloc(e->arena, count * sizeof *names);
    if (instance->ignored_count)
        memcpy(names, instance->ignored, instance->ignored_count * sizeof *names);
    const char *dot = strchr(path, '.');
    for (uint32_t i = 0; i < self->ignored_count; i++)
        names[instance->ignored_count + i] =
            dot ? intern(arena_printf(e->arena, "%s.%s", dot + 1, self->ignored[i]))
                : self->ignored[i];
    instance->ignored = names;
    instance->ignored_count = count;
}

static void name_instance(Elab *e, ModuleInstance *self, const char *path, uint32_t root)
{
    if (self->named)
        return;
    self->named = true;
    self->path = path;
    self->root = root;
    if (self->ignored_count)
        add_ignored(e, self, path, root);
    for (uint32_t i = 0; i < self->frame->count; i++) {
        const Binding *binding = &self->frame->at[i];
        if (binding->name && binding->kind == BIND_FIELD &&
            (value_is_module(binding->value) || binding->value.kind == V_LIST))
            name_value(e, binding->value,
                       intern(arena_printf(e->arena, "%s.%s", path, binding->name)), root);
    }
}

static void name_list(Elab *e, List *list, const char *path, uint32_t root)
{
    if (list->path)
        return;
    list->path = path;
    list->root = root;
    for (uint32_t i = 0; i < list->count; i++) {
        Value item = list->at[i];
        if (item.kind != V_PARAM && item.kind != V_INSTANCE && item.kind != V_LIST)
            continue;
        const char *key =
            list->names && list->names[i] ? list->names[i] : arena_printf(e->arena, "%" PRIu32, i);
        name_value(e, item, intern(arena_printf(e->arena, "%s.%s", path, key)), root);
    }
}

static void name_value(Elab *e, Value value, const char *path, uint32_t root)
{
    if (value.kind == V_PARAM)
        name_param(e, value.param, path, root);
    else if (value.kind == V_INSTANCE)
        name_instance(e, value.instance, path, root);
    else if (value.kind == V_LIST && value_is_module(value))
        name_list(e, value.list, path, root);
}

static void name_model(Elab *e, Decl *decl)
{
    Module *module = e->module;
    decl->index = module->instance_count;
    module->instances = grow_array(module->instances, &e->instance_capacity, module->instance_count,
                                   sizeof *module->instances);
    module->instances[module->instance_count++] =
        (Instance){.name = decl->name, .first = module->param_count, .span = decl->ast->span2};
    name_value(e, decl->value, decl->name, decl->index);
    Instance *instance = &module->instances[decl->index];
    instance->count = module->param_count - instance->first;
}

static void make_model(Elab *e, void *context)
{
    decl_value(e, context);
    name_model(e, context);
}

// Constructs every model of all files and names its parameters; a replaced one stands where the
// first of its chain stood.
void elab_models(Elab *e)
{
    for (size_t i = 0; i < e->file_count; i++) {
        const FileScope *file = e->files[i];
        for (uint32_t j = 0; j < file->decl_count; j++) {
            Decl *decl = decl_final(file->decls[j]);
            if (decl->ast->kind != AST_MODEL || decl->index != UINT32_MAX)
                continue;
            elab_try(e, make_model, decl);
        }
    }
}
