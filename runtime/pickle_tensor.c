// Globals that a pickle may name, and what calls of them make: containers, views of storages. See
// torch_file.h. Tensors: torch/_utils.py, torch/serialization.py.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/pickle_parts.h"

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

bool pickle_global(Machine *machine, const char *module, size_t module_length, const char *name,
                   size_t name_length)
{
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (strlen(globals[i].module) != module_length || strlen(globals[i].name) != name_length ||
            memcmp(globals[i].module, module, module_length) ||
            memcmp(globals[i].name, name, name_length))
            continue;
        Value *value = pickle_new(machine, V_GLOBAL);
        value->action = (uint8_t)globals[i].action;
        value->dtype = (uint8_t)globals[i].dtype;
        return pickle_push(machine, value);
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
        pickle_fail(machine, "copies of views would need too much memory");
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
        pickle_fail(machine, "a tensor reaches beyond its storage");
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
        pickle_fail(machine, "a tensor is not described as expected");
        return NULL;
    }
    PvTensor *tensor =
        make_view(machine, arg[0]->tensor, arg[1]->integer, (int)arg[2]->count, dim, stride);
    if (!tensor)
        return NULL;
    Value *value = pickle_new(machine, V_TENSOR);
    value->tensor = tensor;
    return value;
}

// OrderedDict(), or OrderedDict([(key, value), ...]).
static Value *make_dict(Machine *machine, const Value *args)
{
    Value *dict = pickle_new(machine, V_DICT);
    if (args->count == 0)
        return dict;
    const Value *pairs = args->items[0];
    if (!is_sequence(pairs, 0) && pairs->kind != V_DICT)
        return dict;
    machine->copied_items += pairs->count; // the same container may be copied many times
    if (machine->copied_items > MAX_STEPS) {
        pickle_fail(machine, "too many values");
        return NULL;
    }
    if (pairs->kind == V_DICT) {
        for (size_t i = 0; i < pairs->count; i++)
            pickle_add(dict, pairs->items[i]);
    }
    for (size_t i = 0; pairs->kind != V_DICT && i < pairs->count; i++) {
        const Value *pair = pairs->items[i];
        if (!is_sequence(pair, 2))
            continue;
        pickle_add(dict, pair->items[0]);
        pickle_add(dict, pair->items[1]);
    }
    return dict;
}

bool pickle_call(Machine *machine)
{
    Value *args = pickle_pop(machine), *function = args ? pickle_pop(machine) : NULL;
    if (!function)
        return false;
    if (function->kind != V_GLOBAL || !is_sequence(args, 0))
        return pickle_fail(machine,
                           "the pickle is damaged: a call of something that is no function");
    Value *result = NULL;
    switch ((Action)function->action) {
    case G_DICT:
        result = make_dict(machine, args);
        break;
    case G_SIZE:
        result = args->count == 1 && is_sequence(args->items[0], 0) ? args->items[0]
                                                                    : pickle_new(machine, V_TUPLE);
        break;
    case G_TENSOR:
        result = rebuild_tensor(machine, args);
        break;
    case G_PARAMETER:
        if (args->count < 1 || args->items[0]->kind != V_TENSOR)
            return pickle_fail(machine, "a parameter is not described as expected");
        result = args->items[0];
        break;
    case G_STORAGE:
        return pickle_fail(machine, "a storage without a file of its own");
    case G_OPAQUE:
        result = pickle_new(machine, V_OPAQUE);
        break;
    }
    return result && pickle_push(machine, result);
}

// A persistent id: ("storage", type, key, location, count).
bool pickle_storage(Machine *machine)
{
    const Value *id = pickle_pop(machine);
    if (!id)
        return false;
    if (!is_sequence(id, 5) || id->items[1]->kind != V_GLOBAL ||
        id->items[1]->action != G_STORAGE || id->items[2]->kind != V_TEXT ||
        id->items[2]->length > 60 || id->items[4]->kind != V_INT || id->items[4]->integer < 0)
        return pickle_fail(machine, "a storage is not described as expected");
    char key[64];
    memcpy(key, id->items[2]->text, id->items[2]->length);
    key[id->items[2]->length] = 0;
    PvTensor *tensor = machine->storage(machine->context, key, id->items[1]->dtype,
                                        id->items[4]->integer, machine->error);
    if (!tensor)
        return false;
    Value *value = pickle_new(machine, V_STORAGE);
    value->tensor = tensor;
    return pickle_push(machine, value);
}
