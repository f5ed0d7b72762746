// A machine that reads the pickles torch.save writes and executes nothing. See torch_file.h.
//
// A pickle is a program for a stack machine; Python's own runs any function the file names. Here a
// global is one of the few in pickle_tensor.c, a call (REDUCE, NEWOBJ) of one builds a container or
// a tensor by code of ours, and every other global is an error that names it. Memory is bounded by
// the pickle's size, which is limited: each opcode makes at most one value, values are shared by
// pointer. Walks over the result, where sharing could blow up ("billion laughs") or cycles lead
// nowhere, are bounded in depth and in steps; dense copies of views in bytes.
// Opcodes: Lib/pickletools.py of CPython; tensors: torch/_utils.py, torch/serialization.py.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/pickle_parts.h"

// ---- values ----

Value *pickle_new(Machine *machine, Kind kind)
{
    if (!machine->blocks || machine->blocks->used == BLOCK_VALUES) {
        Block *block = pv_alloc(sizeof *block);
        block->next = machine->blocks;
        machine->blocks = block;
    }
    Value *value = &machine->blocks->values[machine->blocks->used++];
    value->kind = (uint8_t)kind;
    return value;
}

static void free_machine(Machine *machine)
{
    while (machine->blocks) {
        Block *block = machine->blocks;
        for (size_t i = 0; i < block->used; i++) {
            Value *value = &block->values[i];
            if (value->kind == V_TUPLE || value->kind == V_LIST || value->kind == V_DICT)
                free(value->items);
            if (value->kind == V_STORAGE || value->kind == V_TENSOR)
                pv_tensor_drop(value->tensor);
        }
        machine->blocks = block->next;
        free(block);
    }
    free(machine->stack);
    free(machine->marks);
    free(machine->memo);
}

void pickle_add(Value *container, Value *item)
{
    container->items =
        pv_grow(container->items, &container->capacity, container->count, sizeof *container->items);
    container->items[container->count++] = item;
}

bool pickle_fail(Machine *machine, const char *what)
{
    pv_error(machine->error, PV_WRONG, "%s: %s (at byte %zu of the pickle)", machine->name, what,
             machine->at);
    return false;
}

bool pickle_push(Machine *machine, Value *value)
{
    if (machine->depth >= MAX_STACK)
        return pickle_fail(machine, "the pickle's stack is too deep");
    machine->stack =
        pv_grow(machine->stack, &machine->stack_capacity, machine->depth, sizeof *machine->stack);
    machine->stack[machine->depth++] = value;
    return true;
}

Value *pickle_pop(Machine *machine)
{
    size_t floor = machine->mark_count ? machine->marks[machine->mark_count - 1] : 0;
    if (machine->depth <= floor) {
        pickle_fail(machine, "the pickle is damaged: its stack is empty");
        return NULL;
    }
    return machine->stack[--machine->depth];
}

// Takes off the last mark; *items are the *count values above it, valid until the next push.
static bool pop_mark(Machine *machine, Value ***items, size_t *count)
{
    if (machine->mark_count == 0)
        return pickle_fail(machine, "the pickle is damaged: it lacks a mark");
    size_t floor = machine->marks[--machine->mark_count];
    *items = machine->stack ? machine->stack + floor : NULL; // nothing was pushed yet
    *count = machine->depth - floor;
    machine->depth = floor;
    return true;
}

// ---- bytes ----

static bool take(Machine *machine, size_t count, const uint8_t **bytes)
{
    if (count > machine->size - machine->at)
        return pickle_fail(machine, "the pickle is cut off");
    *bytes = machine->data + machine->at;
    machine->at += count;
    return true;
}

static bool take_number(Machine *machine, size_t bytes, uint64_t *out)
{
    const uint8_t *at;
    if (!take(machine, bytes, &at))
        return false;
    *out = 0;
    for (size_t i = bytes; i-- > 0;)
        *out = *out << 8 | at[i];
    return true;
}

// Bytes after a length of `bytes` bytes, pushed as text.
static bool push_text(Machine *machine, size_t bytes)
{
    uint64_t length;
    const uint8_t *text;
    if (!take_number(machine, bytes, &length))
        return false;
    if (length > machine->size || !take(machine, (size_t)length, &text))
        return pickle_fail(machine, "the pickle is cut off");
    Value *value = pickle_new(machine, V_TEXT);
    value->text = (const char *)text;
    value->length = (size_t)length;
    return pickle_push(machine, value);
}

static bool push_int(Machine *machine, int64_t number)
{
    Value *value = pickle_new(machine, V_INT);
    value->integer = number;
    return pickle_push(machine, value);
}

// A little-endian two's complement number of `length` bytes; beyond 8 it is of no interest.
static bool push_long(Machine *machine, uint64_t length)
{
    const uint8_t *bytes;
    if (length > machine->size || !take(machine, (size_t)length, &bytes))
        return pickle_fail(machine, "the pickle is cut off");
    if (length > 8)
        return pickle_push(machine, pickle_new(machine, V_OPAQUE));
    uint64_t number = length > 0 && bytes[length - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = (size_t)length; i-- > 0;)
        number = number << 8 | bytes[i];
    return push_int(machine, (int64_t)number);
}

// GLOBAL's operands: two lines of text.
static bool read_global(Machine *machine)
{
    const char *text[2];
    size_t length[2];
    for (int i = 0; i < 2; i++) {
        const uint8_t *start = machine->data + machine->at;
        const uint8_t *end = memchr(start, '\n', machine->size - machine->at);
        if (!end)
            return pickle_fail(machine, "the pickle is cut off");
        text[i] = (const char *)start;
        length[i] = (size_t)(end - start);
        machine->at += length[i] + 1;
    }
    return pickle_global(machine, text[0], length[0], text[1], length[1]);
}

// ---- containers and memo ----

static bool push_items(Machine *machine, Kind kind, Value *const *items, size_t count)
{
    Value *value = pickle_new(machine, kind);
    for (size_t i = 0; i < count; i++)
        pickle_add(value, items[i]);
    return pickle_push(machine, value);
}

// TUPLE1 .. TUPLE3
static bool push_tuple(Machine *machine, size_t count)
{
    Value *items[3];
    for (size_t i = count; i-- > 0;) {
        if (!(items[i] = pickle_pop(machine)))
            return false;
    }
    return push_items(machine, V_TUPLE, items, count);
}

// TUPLE, LIST, DICT
static bool push_marked(Machine *machine, Kind kind)
{
    Value **items;
    size_t count;
    if (!pop_mark(machine, &items, &count))
        return false;
    if (kind == V_DICT && count % 2 != 0)
        return pickle_fail(machine, "the pickle is damaged: a key without a value");
    // the items lie above the stack's top, where the push will write: only after they were copied
    return push_items(machine, kind, items, count);
}

// Adds to the container below: APPEND(S), SETITEM(S), ADDITEMS.
static bool extend(Machine *machine, Value *const *items, size_t count, bool pairs)
{
    if (machine->depth == 0)
        return pickle_fail(machine, "the pickle is damaged: its stack is empty");
    Value *container = machine->stack[machine->depth - 1];
    if (pairs ? container->kind != V_DICT || count % 2 != 0 : container->kind != V_LIST) {
        // attributes of an opaque object
        if (container->kind == V_OPAQUE)
            return true;
        return pickle_fail(machine,
                           "the pickle is damaged: items for something that is no container");
    }
    for (size_t i = 0; i < count; i++)
        pickle_add(container, items[i]);
    return true;
}

static bool extend_marked(Machine *machine, bool pairs)
{
    Value **items;
    size_t count;
    return pop_mark(machine, &items, &count) && extend(machine, items, count, pairs);
}

static bool extend_one(Machine *machine, size_t count)
{
    Value *items[2];
    for (size_t i = count; i-- > 0;) {
        if (!(items[i] = pickle_pop(machine)))
            return false;
    }
    return extend(machine, items, count, count == 2);
}

static bool put_memo(Machine *machine, uint64_t index)
{
    if (machine->depth == 0)
        return pickle_fail(machine, "the pickle is damaged: its stack is empty");
    if (index > machine->size)
        return pickle_fail(machine, "the pickle is damaged: a memo out of range");
    while (machine->memo_count <= index) {
        machine->memo = pv_grow(machine->memo, &machine->memo_capacity, machine->memo_count,
                                sizeof *machine->memo);
        machine->memo[machine->memo_count++] = NULL;
    }
    machine->memo[index] = machine->stack[machine->depth - 1];
    return true;
}

static bool get_memo(Machine *machine, uint64_t index)
{
    if (index >= machine->memo_count || !machine->memo[index])
        return pickle_fail(machine, "the pickle is damaged: a memo that was never set");
    return pickle_push(machine, machine->memo[index]);
}

static bool push_mark(Machine *machine)
{
    if (machine->mark_count >= MAX_STACK)
        return pickle_fail(machine, "the pickle's stack is too deep");
    machine->marks = pv_grow(machine->marks, &machine->mark_capacity, machine->mark_count,
                             sizeof *machine->marks);
    machine->marks[machine->mark_count++] = machine->depth;
    return true;
}

static bool push_bool(Machine *machine, bool truth)
{
    Value *value = pickle_new(machine, V_BOOL);
    value->integer = truth;
    return pickle_push(machine, value);
}

static bool push_double(Machine *machine)
{
    const uint8_t *bytes;
    if (!take(machine, 8, &bytes))
        return false;
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | bytes[i]; // big-endian
    Value *value = pickle_new(machine, V_REAL);
    memcpy(&value->real, &bits, sizeof bits);
    return pickle_push(machine, value);
}

static bool stack_global(Machine *machine)
{
    const Value *name = pickle_pop(machine), *module = name ? pickle_pop(machine) : NULL;
    if (!module)
        return false;
    if (name->kind != V_TEXT || module->kind != V_TEXT)
        return pickle_fail(machine, "the pickle is damaged: a global without a name");
    return pickle_global(machine, module->text, module->length, name->text, name->length);
}

static bool pop_many(Machine *machine)
{
    Value **items;
    size_t count;
    return pop_mark(machine, &items, &count);
}

static bool duplicate(Machine *machine)
{
    Value *value = pickle_pop(machine);
    return value && pickle_push(machine, value) && pickle_push(machine, value);
}

// POP takes off a mark where that is on top.
static bool pop_one(Machine *machine)
{
    if (machine->mark_count && machine->marks[machine->mark_count - 1] == machine->depth) {
        machine->mark_count--;
        return true;
    }
    return pickle_pop(machine) != NULL;
}

// ---- the machine ----

static bool step_indexed(Machine *machine, uint8_t opcode)
{
    uint64_t number;
    bool wide = opcode == 'j' || opcode == 'r';
    if (!take_number(machine, wide ? 4 : 1, &number))
        return false;
    return opcode == 'h' || opcode == 'j' ? get_memo(machine, number) : put_memo(machine, number);
}

static bool step_number(Machine *machine, uint8_t opcode)
{
    uint64_t number;
    size_t bytes = opcode == 'J' || opcode == 0x8b ? 4 : opcode == 'M' ? 2 : 1;
    if (!take_number(machine, bytes, &number))
        return false;
    if (opcode == 'J')
        return push_int(machine, (int32_t)(uint32_t)number);
    if (opcode == 0x8a || opcode == 0x8b)
        return push_long(machine, number);
    return push_int(machine, (int64_t)number);
}

static bool step(Machine *machine, uint8_t opcode)
{
    uint64_t ignored;
    switch (opcode) {
    case 0x80:
        return take_number(machine, 1, &ignored); // PROTO
    case 0x95:
        return take_number(machine, 8, &ignored); // FRAME
    case '(':
        return push_mark(machine);
    case '0':
        return pop_one(machine);
    case '1':
        return pop_many(machine); // POP_MARK
    case '2':
        return duplicate(machine); // DUP
    case 'N':
        return pickle_push(machine, pickle_new(machine, V_NONE));
    case 0x88:
        return push_bool(machine, true);
    case 0x89:
        return push_bool(machine, false);
    case 'J':
    case 'K':
    case 'M':
    case 0x8a:
    case 0x8b:
        return step_number(machine, opcode);
    case 'G':
        return push_double(machine); // BINFLOAT
    case 'U':
    case 0x8c:
    case 'C':
        return push_text(machine, 1); // SHORT_BIN...
    case 'T':
    case 'X':
    case 'B':
        return push_text(machine, 4); // BINSTRING, BINUNICODE
    case 0x8d:
    case 0x8e:
        return push_text(machine, 8); // BINUNICODE8, BINBYTES8
    case ')':
        return pickle_push(machine, pickle_new(machine, V_TUPLE));
    case ']':
        return pickle_push(machine, pickle_new(machine, V_LIST));
    case '}':
        return pickle_push(machine, pickle_new(machine, V_DICT));
    case 0x8f:
        return pickle_push(machine, pickle_new(machine, V_LIST)); // EMPTY_SET
    case 't':
        return push_marked(machine, V_TUPLE);
    case 'l':
    case 0x91:
        return push_marked(machine, V_LIST); // LIST, FROZENSET
    case 'd':
        return push_marked(machine, V_DICT);
    case 0x85:
    case 0x86:
    case 0x87:
        return push_tuple(machine, (size_t)opcode - 0x84);
    case 'a':
        return extend_one(machine, 1);
    case 's':
        return extend_one(machine, 2);
    case 'e':
    case 0x90:
        return extend_marked(machine, false); // APPENDS, ADDITEMS
    case 'u':
        return extend_marked(machine, true); // SETITEMS
    case 'c':
        return read_global(machine);
    case 0x93:
        return stack_global(machine);
    case 'R':
    case 0x81:
        return pickle_call(machine); // REDUCE, NEWOBJ
    case 'b':
        return pickle_pop(machine) != NULL; // BUILD: attributes
    case 'Q':
        return pickle_storage(machine); // BINPERSID
    case 'h':
    case 'j':
    case 'q':
    case 'r':
        return step_indexed(machine, opcode);
    case 0x94:
        return put_memo(machine, machine->memo_count); // MEMOIZE
    default:
        break;
    }
    char what[64];
    snprintf(what, sizeof what, "the pickle uses opcode 0x%02x, which is not supported", opcode);
    return pickle_fail(machine, what);
}

// Runs to STOP; the result, or NULL with an error.
static Value *run(Machine *machine)
{
    const uint8_t *opcode;
    while (take(machine, 1, &opcode)) {
        if (*opcode == '.')
            return pickle_pop(machine);
        if (!step(machine, *opcode))
            return NULL;
    }
    return NULL;
}

// ---- from values to names ----

typedef struct {
    Machine *machine;
    PvTensorSet *set;
    int64_t steps;
} Walk;

// The name of a part: "path.key", in a buffer of MAX_NAME bytes. false: too long, or no name.
static bool join_key(char *out, const char *path, const Value *key)
{
    const char *dot = *path ? "." : "";
    int length;
    if (key->kind == V_INT) {
        length = snprintf(out, MAX_NAME, "%s%s%lld", path, dot, (long long)key->integer);
    } else if (key->kind == V_TEXT && !memchr(key->text, 0, key->length) &&
               key->length < MAX_NAME) {
        length = snprintf(out, MAX_NAME, "%s%s%.*s", path, dot, (int)key->length, key->text);
    } else {
        return false;
    }
    return length < MAX_NAME;
}

// Numbers and short text that stand in dictionaries become metadata.
static void keep_scalar(Walk *walk, const char *path, const Value *value)
{
    char text[256];
    if (value->kind == V_INT)
        snprintf(text, sizeof text, "%lld", (long long)value->integer);
    else if (value->kind == V_BOOL)
        snprintf(text, sizeof text, "%s", value->integer ? "true" : "false");
    else if (value->kind == V_REAL)
        snprintf(text, sizeof text, "%.17g", value->real);
    else if (value->kind == V_TEXT && value->length < sizeof text &&
             !memchr(value->text, 0, value->length))
        snprintf(text, sizeof text, "%.*s", (int)value->length, value->text);
    else
        return;
    PvTensorSet *set = walk->set;
    set->metadata =
        pv_grow(set->metadata, &set->metadata_capacity, set->metadata_count, sizeof *set->metadata);
    set->metadata[set->metadata_count++] =
        (PvPair){.key = pv_strdup(path), .value = pv_strdup(text)};
}

static bool flatten(Walk *walk, const char *path, const Value *value, int depth, bool scalars)
{
    if (depth > MAX_DEPTH)
        return pickle_fail(walk->machine, "containers are nested too deeply");
    if (++walk->steps > MAX_STEPS)
        return pickle_fail(walk->machine, "too many values");
    if (value->kind == V_TENSOR) {
        if (walk->set->count >= MAX_ITEMS)
            return pickle_fail(walk->machine, "too many tensors");
        pv_set_append(walk->set, *path ? path : "tensor", pv_tensor_hold(value->tensor));
        return true;
    }
    char name[MAX_NAME];
    if (value->kind == V_DICT) {
        for (size_t i = 0; i + 1 < value->count; i += 2) {
            if (!join_key(name, path, value->items[i]))
                continue;
            if (!flatten(walk, name, value->items[i + 1], depth + 1, true))
                return false;
        }
    } else if (value->kind == V_LIST || value->kind == V_TUPLE) {
        for (size_t i = 0; i < value->count; i++) {
            Value key = {.kind = V_INT, .integer = (int64_t)i};
            if (!join_key(name, path, &key))
                continue;
            if (!flatten(walk, name, value->items[i], depth + 1, false))
                return false;
        }
    } else if (scalars && walk->set->metadata_count < 4096) {
        keep_scalar(walk, path, value);
    }
    return true;
}

bool pv_pickle_read(const char *name, const uint8_t *data, size_t size, PvStorageFn *storage,
                    void *context, int64_t copy_limit, PvTensorSet *set, PvError *error)
{
    if (size > MAX_PICKLE)
        return pv_error(error, PV_WRONG, "%s: the pickle is too large", name);
    Machine machine = {.name = name,
                       .data = data,
                       .size = size,
                       .storage = storage,
                       .context = context,
                       .copy_limit = copy_limit,
                       .error = error};
    Walk walk = {.machine = &machine, .set = set};
    const Value *result = run(&machine);
    bool fine = result && flatten(&walk, "", result, 0, false);
    const char *twice = pv_set_sort(set);
    if (fine && twice)
        fine = pv_error(error, PV_WRONG, "%s: two tensors are named '%s'", name, twice);
    if (fine && set->count == 0)
        fine = pv_error(error, PV_WRONG, "%s holds no tensors", name);
    free_machine(&machine);
    if (!fine)
        pv_set_free(set);
    else
        set->path = pv_strdup(name);
    return fine;
}
