// A machine that reads the pickles torch.save writes and executes nothing. See torch_file.h.
//
// A pickle is a program for a stack machine; Python's own runs any function the file names. Here a
// global is one of the few in `globals`, a call (REDUCE, NEWOBJ) of one builds a container or a
// tensor by code of ours, and every other global is an error that names it. Memory is bounded by
// the pickle's size, which is limited: each opcode makes at most one value, values are shared by
// pointer. Walks over the result, where sharing could blow up ("billion laughs") or cycles lead
// nowhere, are bounded in depth and in steps; dense copies of views in bytes.
// Opcodes: Lib/pickletools.py of CPython; tensors: torch/_utils.py, torch/serialization.py.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/torch_file.h"

enum {
    MAX_PICKLE = 16 << 20,
    MAX_STACK = 1 << 20,
    MAX_DEPTH = 64,      // of nested containers
    MAX_STEPS = 4 << 20, // of the walk that flattens
    MAX_ITEMS = 1 << 20, // tensors in a file
    MAX_NAME = 1000,
};

typedef enum {
    V_NONE,
    V_BOOL,
    V_INT,
    V_REAL,
    V_TEXT,
    V_TUPLE,
    V_LIST,
    V_DICT,
    V_GLOBAL,
    V_STORAGE,
    V_TENSOR,
    V_OPAQUE, // allowed, but of no interest
} Kind;

typedef enum {
    G_DICT,
    G_SIZE,
    G_TENSOR,
    G_PARAMETER,
    G_STORAGE,
    G_OPAQUE,
} Action;

typedef struct Value Value;
struct Value {
    uint8_t kind;
    uint8_t dtype;  // G_STORAGE, V_STORAGE
    uint8_t action; // V_GLOBAL
    union {
        int64_t integer;
        double real;
        struct {
            const char *text; // not ended by 0
            size_t length;
        };
        struct {
            Value **items; // of dictionaries: key, value, key, value...
            size_t count, capacity;
        };
        PvTensor *tensor; // V_STORAGE, V_TENSOR
    };
};

static const struct {
    const char *module, *name;
    Action action;
    int dtype;
} globals[] = {
    {"collections", "OrderedDict", G_DICT, 0},
    {"builtins", "dict", G_DICT, 0},
    {"__builtin__", "dict", G_DICT, 0},
    {"torch", "Size", G_SIZE, 0},
    {"torch._utils", "_rebuild_tensor_v2", G_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", G_PARAMETER, 0},
    {"torch", "FloatStorage", G_STORAGE, PV_F32},
    {"torch", "DoubleStorage", G_STORAGE, PV_F64},
    {"torch", "HalfStorage", G_STORAGE, PV_F16},
    {"torch", "BFloat16Storage", G_STORAGE, PV_BF16},
    {"torch", "LongStorage", G_STORAGE, PV_I64},
    {"torch", "IntStorage", G_STORAGE, PV_I32},
    {"torch", "ShortStorage", G_STORAGE, PV_I16},
    {"torch", "CharStorage", G_STORAGE, PV_I8},
    {"torch", "ByteStorage", G_STORAGE, PV_U8},
    {"torch", "BoolStorage", G_STORAGE, PV_BOOL},
    {"torch", "device", G_OPAQUE, 0},
    {"torch", "float32", G_OPAQUE, 0},
    {"torch", "float64", G_OPAQUE, 0},
    {"torch", "float16", G_OPAQUE, 0},
    {"torch", "bfloat16", G_OPAQUE, 0},
    {"torch", "int64", G_OPAQUE, 0},
    {"numpy.core.multiarray", "scalar", G_OPAQUE, 0},
    {"numpy._core.multiarray", "scalar", G_OPAQUE, 0},
    {"numpy", "dtype", G_OPAQUE, 0},
    {"_codecs", "encode", G_OPAQUE, 0},
};

// Values come from blocks; containers, tensors and blocks are freed at the end.
enum { BLOCK_VALUES = 1024 };
typedef struct Block Block;
struct Block {
    Block *next;
    size_t used;
    Value values[BLOCK_VALUES];
};

typedef struct {
    const char *name; // of the file
    const uint8_t *data;
    size_t size, at;
    Block *blocks;
    Value **stack;
    size_t depth, stack_capacity;
    size_t *marks; // depths of the stack where marks are
    size_t mark_count, mark_capacity;
    Value **memo;
    size_t memo_count, memo_capacity;
    PvStorageFn *storage;
    void *context;
    int64_t copy_limit;  // bytes that dense copies of views may still need
    size_t copied_items; // of dictionaries made from other containers
    PvError *error;
} Machine;

// ---- values ----

static Value *new_value(Machine *machine, Kind kind)
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

static void add_item(Value *container, Value *item)
{
    container->items =
        pv_grow(container->items, &container->capacity, container->count, sizeof *container->items);
    container->items[container->count++] = item;
}

static bool fail(Machine *machine, const char *what)
{
    pv_error(machine->error, PV_WRONG, "%s: %s (at byte %zu of the pickle)", machine->name, what,
             machine->at);
    return false;
}

static bool push(Machine *machine, Value *value)
{
    if (machine->depth >= MAX_STACK)
        return fail(machine, "the pickle's stack is too deep");
    machine->stack =
        pv_grow(machine->stack, &machine->stack_capacity, machine->depth, sizeof *machine->stack);
    machine->stack[machine->depth++] = value;
    return true;
}

// The top value, taken off; NULL with an error when there is none above the last mark.
static Value *pop(Machine *machine)
{
    size_t floor = machine->mark_count ? machine->marks[machine->mark_count - 1] : 0;
    if (machine->depth <= floor) {
        fail(machine, "the pickle is damaged: its stack is empty");
        return NULL;
    }
    return machine->stack[--machine->depth];
}

// Takes off the last mark; *items are the *count values above it, valid until the next push.
static bool pop_mark(Machine *machine, Value ***items, size_t *count)
{
    if (machine->mark_count == 0)
        return fail(machine, "the pickle is damaged: it lacks a mark");
    size_t floor = machine->marks[--machine->mark_count];
    *items = machine->stack + floor;
    *count = machine->depth - floor;
    machine->depth = floor;
    return true;
}

// ---- bytes ----

static bool take(Machine *machine, size_t count, const uint8_t **bytes)
{
    if (count > machine->size - machine->at)
        return fail(machine, "the pickle is cut off");
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
        return fail(machine, "the pickle is cut off");
    Value *value = new_value(machine, V_TEXT);
    value->text = (const char *)text;
    value->length = (size_t)length;
    return push(machine, value);
}

static bool push_int(Machine *machine, int64_t number)
{
    Value *value = new_value(machine, V_INT);
    value->integer = number;
    return push(machine, value);
}

// A little-endian two's complement number of `length` bytes; beyond 8 it is of no interest.
static bool push_long(Machine *machine, uint64_t length)
{
    const uint8_t *bytes;
    if (length > machine->size || !take(machine, (size_t)length, &bytes))
        return fail(machine, "the pickle is cut off");
    if (length > 8)
        return push(machine, new_value(machine, V_OPAQUE));
    uint64_t number = length > 0 && bytes[length - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = (size_t)length; i-- > 0;)
        number = number << 8 | bytes[i];
    return push_int(machine, (int64_t)number);
}

// ---- globals and calls ----

static bool push_global(Machine *machine, const char *module, size_t module_length,
                        const char *name, size_t name_length)
{
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (strlen(globals[i].module) != module_length || strlen(globals[i].name) != name_length ||
            memcmp(globals[i].module, module, module_length) ||
            memcmp(globals[i].name, name, name_length))
            continue;
        Value *value = new_value(machine, V_GLOBAL);
        value->action = (uint8_t)globals[i].action;
        value->dtype = (uint8_t)globals[i].dtype;
        return push(machine, value);
    }
    char shown[160];
    snprintf(shown, sizeof shown, "%.*s.%.*s", (int)(module_length < 80 ? module_length : 80),
             module, (int)(name_length < 70 ? name_length : 70), name);
    for (char *at = shown; *at; at++) {
        if (*at < ' ' || *at > '~')
            *at = '?';
    }
    pv_error(machine->error, PV_WRONG,
             "%s refers to '%s', which is neither a tensor nor a plain "
             "value; nothing in a file is executed",
             machine->name, shown);
    return pv_error_hint(machine->error, "save only the weights in PyTorch: "
                                         "torch.save(model.state_dict(), \"weights.pt\")");
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
            return fail(machine, "the pickle is cut off");
        text[i] = (const char *)start;
        length[i] = (size_t)(end - start);
        machine->at += length[i] + 1;
    }
    return push_global(machine, text[0], length[0], text[1], length[1]);
}

static bool is_sequence(const Value *value, size_t least)
{
    return (value->kind == V_TUPLE || value->kind == V_LIST) && value->count >= least;
}

// Sizes or strides.
static bool read_ints(const Value *value, size_t rank, int64_t *out)
{
    if (!is_sequence(value, rank) || value->count != rank)
        return false;
    for (size_t i = 0; i < rank; i++) {
        if (value->items[i]->kind != V_INT || value->items[i]->integer < 0)
            return false;
        out[i] = value->items[i]->integer;
    }
    return true;
}

static void drop_tensor(void *owner)
{
    pv_tensor_drop(owner);
}

// A dense copy of a view. All its elements lie in the storage.
static PvTensor *copy_view(Machine *machine, const PvTensor *storage, int64_t offset, int rank,
                           const int64_t *dim, const int64_t *stride, int64_t count)
{
    int64_t size = pv_dtype_size(storage->dtype);
    if (count > machine->copy_limit / size) {
        fail(machine, "copies of views would need too much memory");
        return NULL;
    }
    machine->copy_limit -= count * size;
    PvTensor *tensor = pv_tensor_new(storage->dtype, rank, dim, machine->error);
    if (!tensor)
        return NULL;
    int64_t index[PV_MAX_RANK] = {0}, from = offset;
    for (int64_t i = 0; i < count; i++) {
        memcpy((char *)tensor->data + i * size, (const char *)storage->data + from * size,
               (size_t)size);
        for (int axis = rank - 1; axis >= 0; axis--) { // the next index, last axis fastest
            from += stride[axis];
            if (++index[axis] < dim[axis])
                break;
            from -= stride[axis] * dim[axis];
            index[axis] = 0;
        }
    }
    return tensor;
}

// storage[offset + sum of index * stride], checked.
static PvTensor *make_view(Machine *machine, PvTensor *storage, int64_t offset, int rank,
                           const int64_t *dim, const int64_t *stride)
{
    int64_t count = pv_shape_count(rank, dim), last = offset, dense = 1;
    bool is_dense = true, inside = count >= 0 && offset >= 0;
    for (int axis = rank - 1; axis >= 0 && inside && count > 0; axis--) {
        int64_t span;
        inside = !__builtin_mul_overflow(dim[axis] - 1, stride[axis], &span) &&
                 !__builtin_add_overflow(last, span, &last);
        if (dim[axis] != 1 && stride[axis] != dense)
            is_dense = false;
        dense *= dim[axis];
    }
    if (!inside || (count > 0 && last >= storage->count)) {
        fail(machine, "a tensor reaches beyond its storage");
        return NULL;
    }
    if (!is_dense && count > 0)
        return copy_view(machine, storage, offset, rank, dim, stride, count);
    char *data = (char *)storage->data + (count > 0 ? offset * pv_dtype_size(storage->dtype) : 0);
    PvTensor *tensor =
        pv_tensor_borrow(storage->dtype, rank, dim, data, drop_tensor, storage, machine->error);
    if (tensor)
        pv_tensor_hold(storage);
    return tensor;
}

// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)
static Value *rebuild_tensor(Machine *machine, const Value *args)
{
    int64_t dim[PV_MAX_RANK], stride[PV_MAX_RANK];
    Value *const *arg = args->items;
    if (!is_sequence(args, 4) || arg[0]->kind != V_STORAGE || arg[1]->kind != V_INT ||
        !is_sequence(arg[2], 0) || arg[2]->count > PV_MAX_RANK ||
        !read_ints(arg[2], arg[2]->count, dim) || !read_ints(arg[3], arg[2]->count, stride)) {
        fail(machine, "a tensor is not described as expected");
        return NULL;
    }
    PvTensor *tensor =
        make_view(machine, arg[0]->tensor, arg[1]->integer, (int)arg[2]->count, dim, stride);
    if (!tensor)
        return NULL;
    Value *value = new_value(machine, V_TENSOR);
    value->tensor = tensor;
    return value;
}

// OrderedDict(), or OrderedDict([(key, value), ...]).
static Value *make_dict(Machine *machine, const Value *args)
{
    Value *dict = new_value(machine, V_DICT);
    if (args->count == 0)
        return dict;
    const Value *pairs = args->items[0];
    if (!is_sequence(pairs, 0) && pairs->kind != V_DICT)
        return dict;
    machine->copied_items += pairs->count; // the same container may be copied many times
    if (machine->copied_items > MAX_STEPS) {
        fail(machine, "too many values");
        return NULL;
    }
    if (pairs->kind == V_DICT) {
        for (size_t i = 0; i < pairs->count; i++)
            add_item(dict, pairs->items[i]);
    }
    for (size_t i = 0; pairs->kind != V_DICT && i < pairs->count; i++) {
        const Value *pair = pairs->items[i];
        if (!is_sequence(pair, 2))
            continue;
        add_item(dict, pair->items[0]);
        add_item(dict, pair->items[1]);
    }
    return dict;
}

static bool call(Machine *machine)
{
    Value *args = pop(machine), *function = args ? pop(machine) : NULL;
    if (!function)
        return false;
    if (function->kind != V_GLOBAL || !is_sequence(args, 0))
        return fail(machine, "the pickle is damaged: a call of something that is no function");
    Value *result = NULL;
    switch ((Action)function->action) {
    case G_DICT:
        result = make_dict(machine, args);
        break;
    case G_SIZE:
        result = args->count == 1 && is_sequence(args->items[0], 0) ? args->items[0]
                                                                    : new_value(machine, V_TUPLE);
        break;
    case G_TENSOR:
        result = rebuild_tensor(machine, args);
        break;
    case G_PARAMETER:
        if (args->count < 1 || args->items[0]->kind != V_TENSOR)
            return fail(machine, "a parameter is not described as expected");
        result = args->items[0];
        break;
    case G_STORAGE:
        return fail(machine, "a storage without a file of its own");
    case G_OPAQUE:
        result = new_value(machine, V_OPAQUE);
        break;
    }
    return result && push(machine, result);
}

// A persistent id: ("storage", type, key, location, count).
static bool load_storage(Machine *machine)
{
    const Value *id = pop(machine);
    if (!id)
        return false;
    if (!is_sequence(id, 5) || id->items[1]->kind != V_GLOBAL ||
        id->items[1]->action != G_STORAGE || id->items[2]->kind != V_TEXT ||
        id->items[2]->length > 60 || id->items[4]->kind != V_INT || id->items[4]->integer < 0)
        return fail(machine, "a storage is not described as expected");
    char key[64];
    memcpy(key, id->items[2]->text, id->items[2]->length);
    key[id->items[2]->length] = 0;
    PvTensor *tensor = machine->storage(machine->context, key, id->items[1]->dtype,
                                        id->items[4]->integer, machine->error);
    if (!tensor)
        return false;
    Value *value = new_value(machine, V_STORAGE);
    value->tensor = tensor;
    return push(machine, value);
}

// ---- containers and memo ----

static bool push_items(Machine *machine, Kind kind, Value *const *items, size_t count)
{
    Value *value = new_value(machine, kind);
    for (size_t i = 0; i < count; i++)
        add_item(value, items[i]);
    return push(machine, value);
}

// TUPLE1 .. TUPLE3
static bool push_tuple(Machine *machine, size_t count)
{
    Value *items[3];
    for (size_t i = count; i-- > 0;) {
        if (!(items[i] = pop(machine)))
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
        return fail(machine, "the pickle is damaged: a key without a value");
    // the items lie above the stack's top, where the push will write: only after they were copied
    return push_items(machine, kind, items, count);
}

// Adds to the container below: APPEND(S), SETITEM(S), ADDITEMS.
static bool extend(Machine *machine, Value *const *items, size_t count, bool pairs)
{
    if (machine->depth == 0)
        return fail(machine, "the pickle is damaged: its stack is empty");
    Value *container = machine->stack[machine->depth - 1];
    if (pairs ? container->kind != V_DICT || count % 2 != 0 : container->kind != V_LIST) {
        // attributes of an opaque object
        if (container->kind == V_OPAQUE)
            return true;
        return fail(machine, "the pickle is damaged: items for something that is no container");
    }
    for (size_t i = 0; i < count; i++)
        add_item(container, items[i]);
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
        if (!(items[i] = pop(machine)))
            return false;
    }
    return extend(machine, items, count, count == 2);
}

static bool put_memo(Machine *machine, uint64_t index)
{
    if (machine->depth == 0)
        return fail(machine, "the pickle is damaged: its stack is empty");
    if (index > machine->size)
        return fail(machine, "the pickle is damaged: a memo out of range");
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
        return fail(machine, "the pickle is damaged: a memo that was never set");
    return push(machine, machine->memo[index]);
}

static bool push_mark(Machine *machine)
{
    if (machine->mark_count >= MAX_STACK)
        return fail(machine, "the pickle's stack is too deep");
    machine->marks = pv_grow(machine->marks, &machine->mark_capacity, machine->mark_count,
                             sizeof *machine->marks);
    machine->marks[machine->mark_count++] = machine->depth;
    return true;
}

static bool push_bool(Machine *machine, bool truth)
{
    Value *value = new_value(machine, V_BOOL);
    value->integer = truth;
    return push(machine, value);
}

static bool push_double(Machine *machine)
{
    const uint8_t *bytes;
    if (!take(machine, 8, &bytes))
        return false;
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | bytes[i]; // big-endian
    Value *value = new_value(machine, V_REAL);
    memcpy(&value->real, &bits, sizeof bits);
    return push(machine, value);
}

static bool stack_global(Machine *machine)
{
    const Value *name = pop(machine), *module = name ? pop(machine) : NULL;
    if (!module)
        return false;
    if (name->kind != V_TEXT || module->kind != V_TEXT)
        return fail(machine, "the pickle is damaged: a global without a name");
    return push_global(machine, module->text, module->length, name->text, name->length);
}

static bool pop_many(Machine *machine)
{
    Value **items;
    size_t count;
    return pop_mark(machine, &items, &count);
}

static bool duplicate(Machine *machine)
{
    Value *value = pop(machine);
    return value && push(machine, value) && push(machine, value);
}

// POP takes off a mark where that is on top.
static bool pop_one(Machine *machine)
{
    if (machine->mark_count && machine->marks[machine->mark_count - 1] == machine->depth) {
        machine->mark_count--;
        return true;
    }
    return pop(machine) != NULL;
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
        return push(machine, new_value(machine, V_NONE));
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
        return push(machine, new_value(machine, V_TUPLE));
    case ']':
        return push(machine, new_value(machine, V_LIST));
    case '}':
        return push(machine, new_value(machine, V_DICT));
    case 0x8f:
        return push(machine, new_value(machine, V_LIST)); // EMPTY_SET
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
        return call(machine); // REDUCE, NEWOBJ
    case 'b':
        return pop(machine) != NULL; // BUILD: attributes
    case 'Q':
        return load_storage(machine); // BINPERSID
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
    return fail(machine, what);
}

// Runs to STOP; the result, or NULL with an error.
static Value *run(Machine *machine)
{
    const uint8_t *opcode;
    while (take(machine, 1, &opcode)) {
        if (*opcode == '.')
            return pop(machine);
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
        return fail(walk->machine, "containers are nested too deeply");
    if (++walk->steps > MAX_STEPS)
        return fail(walk->machine, "too many values");
    if (value->kind == V_TENSOR) {
        if (walk->set->count >= MAX_ITEMS)
            return fail(walk->machine, "too many tensors");
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
