// Values of the elaborator: lists, texts for messages, pointer maps; and how a message ends the
// evaluation of what it is about.
//
// A slice of a list remembers the list it is a run of, so that its elements keep their field
// paths, and the paths of taps stay the same whether a sequence is called whole or in parts.
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

// ---- lists ----

// A list of `count` absent elements, not counting names.
List *list_new(Elab *e, uint32_t count)
{
    List *list = arena_alloc(e->arena, sizeof *list);
    list->at = arena_alloc(e->arena, (count ? count : 1) * sizeof *list->at);
    list->count = count;
    list->whole = list;
    return list;
}

Value value_list(Elab *e, const Value *at, uint32_t count)
{
    List *list = list_new(e, count);
    if (count)
        memcpy(list->at, at, count * sizeof *at);
    return (Value){.kind = V_LIST, .list = list};
}

// Elements first .. limit - 1, which must be in range; shares the elements.
Value value_slice(Elab *e, List *list, int64_t first, int64_t limit)
{
    List *part = arena_alloc(e->arena, sizeof *part);
    part->at = list->at + first;
    part->names = list->names ? list->names + first : NULL;
    part->count = (uint32_t)(limit - first);
    part->offset = list->offset + (uint32_t)first;
    part->whole = list->whole;
    return (Value){.kind = V_LIST, .list = part};
}

// Parameters, instances, and lists that hold one at any depth: what makes a name a field.
bool value_is_module(Value value)
{
    if (value.kind == V_PARAM || value.kind == V_INSTANCE)
        return true;
    if (value.kind != V_LIST)
        return false;
    for (uint32_t i = 0; i < value.list->count; i++)
        if (value_is_module(value.list->at[i]))
            return true;
    return false;
}

bool value_is_number(Value value)
{
    return value.kind == V_INT || value.kind == V_REAL;
}

// `==` on what is known while compiling.
bool value_equal(Elab *e, Value x, Value y)
{
    if (x.kind == V_REAL || y.kind == V_REAL) {
        if (!value_is_number(x) || !value_is_number(y) || x.batch || y.batch)
            return false;
        double a = x.kind == V_REAL ? x.real : (double)x.integer;
        double b = y.kind == V_REAL ? y.real : (double)y.integer;
        return a == b;
    }
    if (x.kind != y.kind)
        return false;
    switch ((ValueKind)x.kind) {
    case V_NONE:
        return true;
    case V_BOOL:
        return x.integer == y.integer;
    case V_INT:
        return x.integer == y.integer && x.batch == y.batch;
    case V_STRING:
        return x.text == y.text;
    case V_RANGE:
        return x.range->first == y.range->first && x.range->limit == y.range->limit;
    case V_LIST:
        if (x.list->count != y.list->count)
            return false;
        for (uint32_t i = 0; i < x.list->count; i++)
            if (!value_equal(e, x.list->at[i], y.list->at[i]))
                return false;
        return true;
    case V_ABSENT:
    case V_REAL:
    case V_TENSOR:
    case V_MAYBE:
    case V_HOST:
    case V_TYPE:
    case V_PARAM:
    case V_INSTANCE:
    case V_CLASS:
    case V_LAYER:
    case V_FUNCTION:
    case V_BUILTIN:
    case V_PARTIAL:
    case V_NAMESPACE:
        return x.integer == y.integer;
    }
    return false;
}

// ---- texts ----

const char *size_text(Elab *e, Dim dim)
{
    if (!dim.batch)
        return arena_printf(e->arena, "%" PRId64, dim.n);
    return dim.n == 1 ? "b" : arena_printf(e->arena, "%" PRId64 " b", dim.n);
}

// A shape with the names its sizes have in `frame` (may be NULL): "[b, c_out=512, h=32]".
const char *shape_text(Elab *e, const Frame *frame, const Type *type)
{
    const char *text = "[", *used[MAX_RANK];
    for (uint32_t i = 0; i < type->rank; i++) {
        Dim dim = type->dim[i];
        const char *name = frame && !dim_is_one(dim) ? axis_name(frame, dim, used, i) : NULL;
        used[i] = name;
        const char *size = size_text(e, dim);
        const char *item = size;
        if (name && strcmp(name, size) != 0)
            item = arena_printf(e->arena, "%s=%s", name, size);
        text = arena_printf(e->arena, "%s%s%s", text, i ? ", " : "", item);
    }
    const char *dtype = type->dtype == e->real   ? ""
                        : type->dtype == DT_I64  ? "int"
                        : type->dtype == DT_BOOL ? "bool"
                                                 : dtype_name(type->dtype);
    return arena_printf(e->arena, "%s%s]", dtype, text);
}

static const char *real_text(Elab *e, double real)
{
    const char *text = "";
    for (int digits = 6; digits <= 17; digits++) {
        text = arena_printf(e->arena, "%.*g", digits, real);
        double back = 0;
        if (sscanf(text, "%lf", &back) == 1 && back == real)
            break;
    }
    return strpbrk(text, ".en") ? text : arena_printf(e->arena, "%s.0", text);
}

// As it would be written in a model file; long lists end in "...".
const char *value_text(Elab *e, Value value)
{
    switch ((ValueKind)value.kind) {
    case V_NONE:
        return "none";
    case V_BOOL:
        return value.integer ? "true" : "false";
    case V_INT:
        return size_text(e, (Dim){value.integer, value.batch});
    case V_REAL:
        return real_text(e, value.real);
    case V_STRING:
        return value.text;
    case V_RANGE:
        return arena_printf(e->arena, "%" PRId64 "..%" PRId64, value.range->first,
                            value.range->limit);
    case V_LIST: {
        const char *text = "[";
        for (uint32_t i = 0; i < value.list->count; i++) {
            if (i == 16) {
                text = arena_printf(e->arena, "%s, ...", text);
                break;
            }
            Value item = value.list->at[i];
            const char *quote = item.kind == V_STRING ? "\"" : "";
            text = arena_printf(e->arena, "%s%s%s%s%s", text, i ? ", " : "", quote,
                                value_text(e, item), quote);
        }
        return arena_printf(e->arena, "%s]", text);
    }
    case V_ABSENT:
    case V_TENSOR:
    case V_MAYBE:
    case V_HOST:
    case V_TYPE:
    case V_PARAM:
    case V_INSTANCE:
    case V_CLASS:
    case V_LAYER:
    case V_FUNCTION:
    case V_BUILTIN:
    case V_PARTIAL:
    case V_NAMESPACE:
        break;
    }
    return value_describe(e, value);
}

// What kind of thing a value is, for messages: "a tensor, [b, 4]", "the integer 3".
const char *value_describe(Elab *e, Value value)
{
    switch ((ValueKind)value.kind) {
    case V_ABSENT:
        return "nothing";
    case V_NONE:
        return "none";
    case V_BOOL:
        return value.integer ? "true" : "false";
    case V_INT:
        return arena_printf(e->arena, "the integer %s", value_text(e, value));
    case V_REAL:
        return arena_printf(e->arena, "the number %s", real_text(e, value.real));
    case V_STRING:
        return arena_printf(e->arena, "the string \"%s\"", value.text);
    case V_RANGE:
        return "a range";
    case V_LIST:
        return arena_printf(e->arena, "a list of %" PRIu32, value.list->count);
    case V_TENSOR: {
        const Type *type = val_type(e->graph, value.val);
        if (type->rank)
            return arena_printf(e->arena, "a tensor, %s", shape_text(e, NULL, type));
        if (!graph_is_step(e->graph, value.val))
            return type->dtype == DT_BOOL  ? "a tensor of one bool"
                   : type->dtype == DT_I64 ? "a tensor of one integer"
                                           : "a tensor of one number";
        return type->dtype == DT_BOOL  ? "a bool of the step"
               : type->dtype == DT_I64 ? "an integer of the step"
                                       : "a number of the step";
    }
    case V_MAYBE:
        return "an optional tensor";
    case V_HOST:
        return "a tensor";
    case V_TYPE:
        return "a type";
    case V_PARAM:
        return arena_printf(e->arena, "a parameter, %s", shape_text(e, NULL, &value.param->type));
    case V_INSTANCE:
        return "a module";
    case V_CLASS:
        return arena_printf(e->arena, "the module class %s", value.class->name);
    case V_LAYER:
        return arena_printf(e->arena, "the module class %s", value.layer->name);
    case V_FUNCTION:
        return arena_printf(e->arena, "the function '%s'", value.function->name);
    case V_BUILTIN:
        return arena_printf(e->arena, "the function '%s'", value.builtin->name);
    case V_PARTIAL:
        return "a function with holes";
    case V_NAMESPACE:
        return "an imported file";
    }
    return "a value";
}

// "prefix.name", interned; "prefix.7" where name is NULL. Called for every tap of every program.
const char *path_join(Elab *e, const char *prefix, const char *name, uint64_t number, char mark)
{
    char digits[24], text[256];
    size_t at = sizeof digits;
    if (!name) {
        do
            digits[--at] = (char)('0' + number % 10);
        while (number /= 10);
    }
    size_t before = strlen(prefix), after = name ? strlen(name) : sizeof digits - at;
    char *out =
        before + after + 1 <= sizeof text ? text : arena_alloc(e->arena, before + after + 1);
    memcpy(out, prefix, before);
    out[before] = mark;
    memcpy(out + before + 1, name ? name : digits + at, after);
    return intern_n(out, before + 1 + after);
}

// ---- maps from pointers ----

static size_t map_slot(const Map *map, const void *key)
{
    uint64_t hash = (uint64_t)(uintptr_t)key * 0x9E3779B97F4A7C15u;
    size_t i = (size_t)(hash >> 20) & (map->capacity - 1);
    while (map->at[i].key && map->at[i].key != key)
        i = (i + 1) & (map->capacity - 1);
    return i;
}

uint64_t map_get(const Map *map, const void *key)
{
    return map->capacity ? map->at[map_slot(map, key)].value : 0;
}

// Sets, or replaces. The table doubles when it is half full.
void map_set(Map *map, const void *key, uint64_t value)
{
    if (map->count * 2 >= map->capacity) {
        Map old = *map;
        map->capacity = old.capacity ? old.capacity * 2 : 32;
        map->at = calloc(map->capacity, sizeof *map->at);
        if (!map->at)
            bug("out of memory");
        for (size_t i = 0; i < old.capacity; i++)
            if (old.at[i].key)
                map->at[map_slot(map, old.at[i].key)] = old.at[i];
        free(old.at);
    }
    size_t i = map_slot(map, key);
    map->count += map->at[i].key == NULL;
    map->at[i] = (MapSlot){key, value};
}

// ---- messages ----

static void report(Elab *e, Span span, const char *text)
{
    e->quiet = false;
    for (size_t i = 0; i < e->reported_count && span.file; i++)
        if (memcmp(&e->reported[i], &span, sizeof span) == 0)
            e->quiet = true; // another entry came to the same place
    if (e->quiet)
        return;
    e->reported = grow_array(e->reported, &e->reported_capacity, e->reported_count, sizeof span);
    e->reported[e->reported_count++] = span;
    diag_error(span, "%s", text);
}

static const char *format_text(Elab *e, const char *format, va_list list)
{
    va_list copy;
    va_copy(copy, list);
    int size = vsnprintf(NULL, 0, format, copy);
    va_end(copy);
    char *text = arena_alloc(e->arena, (size_t)size + 1);
    vsnprintf(text, (size_t)size + 1, format, list);
    return text;
}

// Starts a message; notes and helps may follow, then elab_stop.
void elab_error(Elab *e, Span span, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    report(e, span, format_text(e, format, list));
    va_end(list);
}

void elab_note(Elab *e, Span span, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (!e->quiet)
        diag_note(span, "%s", format_text(e, format, list));
    va_end(list);
}

void elab_help(Elab *e, Span span, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (!e->quiet)
        diag_help(span, "%s", format_text(e, format, list));
    va_end(list);
}

// The calls that led to a place, innermost first; at most three are told, and one in the main file.
static void note_calls(Elab *e)
{
    uint32_t main_file = e->file_count ? e->files[e->file_count - 1]->file : 0;
    uint32_t told = 0;
    for (const CallSite *site = e->calls; site; site = site->outer) {
        bool in_main = site->span.file == main_file;
        if (told < 3 || in_main) {
            const char *owner = site->self && site->self->class ? site->self->class->name : NULL;
            bool forward = owner && strcmp(site->name, "forward") == 0;
            diag_note(site->span, "%s%s%s is called here", owner ? owner : "",
                      owner && !forward ? "." : "", forward ? "" : site->name);
            told++;
        }
        if (in_main)
            break;
    }
}

_Noreturn void elab_stop(Elab *e)
{
    if (!e->quiet && e->reported_count) {
        Span last = e->reported[e->reported_count - 1];
        uint32_t main_file = e->file_count ? e->files[e->file_count - 1]->file : 0;
        if (last.file && last.file != main_file)
            note_calls(e);
    }
    e->quiet = true;
    if (!e->escape)
        bug("a message outside of elab_try");
    longjmp(*e->escape, 1);
}

_Noreturn void elab_fail(Elab *e, Span span, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    report(e, span, format_text(e, format, list));
    va_end(list);
    elab_stop(e);
}

_Noreturn void elab_fail_graph(Elab *e, Span span)
{
    elab_fail(e, span, "%s", graph_error(e->graph));
}

bool elab_try(Elab *e, void (*fn)(Elab *e, void *context), void *context)
{
    jmp_buf here;
    jmp_buf *outer = e->escape;
    CallSite *calls = e->calls;
    uint32_t depth = e->depth;
    uint8_t mode = e->mode;
    const char *path = e->path;
    bool constructing = e->constructing;
    Run *run = e->run;
    Host *host = e->host;
    int64_t root = e->root;
    bool done = false;
    e->escape = &here;
    if (setjmp(here) == 0) {
        fn(e, context);
        done = true;
    } else {
        e->calls = calls;
        e->depth = depth;
        e->mode = mode;
        e->path = path;
        e->constructing = constructing;
        e->run = run;
        e->host = host;
        e->root = root;
    }
    e->escape = outer;
    return done;
}

void elab_step(Elab *e, Span span, uint64_t count)
{
    e->steps += count;
    if (e->steps > ELAB_MAX_STEPS) {
        e->steps = 0;
        elab_error(e, span, "this does not come to an end: more than %d million steps",
                   ELAB_MAX_STEPS / 1000000);
        elab_stop(e);
    }
}
