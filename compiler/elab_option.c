// Options: numbers (or short lists of them) that are known when a step starts.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

static DType option_dtype(Elab *e, Value value)
{
    return value.kind == V_INT && !value.batch ? DT_I64
           : value.kind == V_BOOL              ? DT_BOOL
           : value.kind == V_REAL              ? e->real
                                               : DT_NONE;
}

static void set_default(Elab *e, Option *option, uint32_t index, Value value, Span span)
{
    DType dtype = option_dtype(e, value);
    if (dtype == DT_NONE)
        elab_fail(e, span, "an option is a number, true or false, or a list of these; this is %s",
                  value_describe(e, value));
    if (index && dtype != option->dtype && option->dtype != DT_BOOL && dtype != DT_BOOL)
        dtype = e->real;
    option->dtype = dtype;
    option->value[index] = value.kind == V_REAL ? value.real : (double)value.integer;
}

// Adds an option; stage: the train or sample block it belongs to, or NULL. With the type of a
// tensor, and `none` for its default, it is an optional tensor (of a sample block).
uint32_t option_new(Elab *e, const char *name, const char *stage, const Ast *ast, Frame *frame)
{
    Option option = {.name = name, .stage = stage, .count = 1, .span = ast->span2};
    Value value = eval(e, frame, ast->a);
    Type type;
    bool typed = ast->b && type_resolve(e, frame, ast->b, &type);
    if (value.kind == V_NONE && typed && type.rank && e->host) {
        option.dtype = DT_NONE;
        option.type = type;
    } else if (value.kind == V_LIST) {
        option.is_list = true;
        option.count = value.list->count;
        if (!option.count || option.count > sizeof option.value / sizeof *option.value)
            elab_fail(e, ast->a->span, "a list option has 1 to 8 numbers; this has %" PRIu32,
                      option.count);
        for (uint32_t i = 0; i < option.count; i++)
            set_default(e, &option, i, value.list->at[i], ast->a->span);
    } else {
        if (ast->b)
            type_check(e, frame, ast->b, &value, ast->a->span, "the default");
        set_default(e, &option, 0, value, ast->a->span);
    }
    Module *module = e->module;
    module->options = grow_array(module->options, &e->option_capacity, module->option_count,
                                 sizeof *module->options);
    module->options[module->option_count] = option;
    return module->option_count++;
}

// The option as a step value, or a list of these.
Value option_value(Elab *e, uint32_t index)
{
    const Option *option = &e->module->options[index];
    Type type = type_scalar(option->dtype);
    List *list = list_new(e, option->count);
    for (uint32_t i = 0; i < option->count; i++) {
        Attr attr = {.n = {index, i}, .count = 2};
        Val val = graph_make(e->graph, OP_OPTION, NULL, 0, &attr, &type);
        if (!val)
            bug("option %s: %s", option->name, graph_error(e->graph));
        list->at[i] = value_tensor(val);
    }
    return option->is_list ? (Value){.kind = V_LIST, .list = list} : list->at[0];
}
