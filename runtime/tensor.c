// Host tensors, conversion between element types, and sets of tensors by name. See tensor.h.
//
// Half and brain floats are converted by their bits. A conversion between two types goes through
// double (from integers and reals) or int64 (between integers), in which every value of the other
// types but i64 is exact; the one rounding is then the last step, so f64 -> f16 does not round
// twice. Widening to f32 is a loop of its own, because checkpoints are long.
#include "runtime/tensor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device_tensor.h"

static const struct {
    const char *name;
    int64_t size;
} dtypes[PV_DTYPE_COUNT] = {
    [PV_NONE] = {"none", 0}, [PV_BOOL] = {"bool", 1}, [PV_I64] = {"i64", 8}, [PV_F16] = {"f16", 2},
    [PV_BF16] = {"bf16", 2}, [PV_F32] = {"f32", 4},   [PV_F64] = {"f64", 8}, [PV_U8] = {"u8", 1},
    [PV_I8] = {"i8", 1},     [PV_I16] = {"i16", 2},   [PV_I32] = {"i32", 4},
};

int64_t pv_dtype_size(int dtype)
{
    return dtype > PV_NONE && dtype < PV_DTYPE_COUNT ? dtypes[dtype].size : 0;
}

const char *pv_dtype_name(int dtype)
{
    return dtype >= PV_NONE && dtype < PV_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

bool pv_dtype_is_real(int dtype)
{
    return dtype >= PV_F16 && dtype <= PV_F64;
}

// ---- shapes ----

int64_t pv_shape_count(int rank, const int64_t *dim)
{
    int64_t count = 1;
    bool empty = false;
    for (int i = 0; i < rank; i++) {
        if (dim[i] < 0)
            return -1;
        if (dim[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(count, dim[i], &count))
            return -1;
    }
    if (count > INT64_MAX / 8)
        return -1;
    return empty ? 0 : count;
}

char *pv_shape_text(char text[PV_SHAPE_TEXT], int rank, const int64_t *dim)
{
    int at = snprintf(text, PV_SHAPE_TEXT, "[");
    for (int i = 0; i < rank && at < PV_SHAPE_TEXT - 28; i++) {
        at += snprintf(text + at, (size_t)(PV_SHAPE_TEXT - at), i ? ", %lld" : "%lld",
                       (long long)dim[i]);
    }
    snprintf(text + at, (size_t)(PV_SHAPE_TEXT - at), "]");
    return text;
}

char *pv_type_text(char text[PV_SHAPE_TEXT], const PvType *type)
{
    int at = snprintf(text, PV_SHAPE_TEXT, "[");
    for (int i = 0; i < type->rank && at < PV_SHAPE_TEXT - 32; i++) {
        long long size = (long long)type->dim[i];
        const char *comma = i ? ", " : "";
        size_t room = (size_t)(PV_SHAPE_TEXT - at);
        if (!(type->batch_axes >> i & 1))
            at += snprintf(text + at, room, "%s%lld", comma, size);
        else if (size == 1)
            at += snprintf(text + at, room, "%sb", comma);
        else
            at += snprintf(text + at, room, "%s%lld*b", comma, size);
    }
    snprintf(text + at, (size_t)(PV_SHAPE_TEXT - at), "]");
    return text;
}

// ---- tensors ----

PvTensor *pv_tensor_bare(int dtype, int rank, const int64_t *dim, PvError *error)
{
    if (rank < 0 || rank > PV_MAX_RANK) {
        pv_error(error, PV_WRONG, "a tensor of rank %d (at most %d)", rank, PV_MAX_RANK);
        return NULL;
    }
    if (pv_dtype_size(dtype) == 0) {
        pv_error(error, PV_WRONG, "a tensor of an unknown element type");
        return NULL;
    }
    int64_t count = pv_shape_count(rank, dim);
    if (count < 0) {
        char text[PV_SHAPE_TEXT];
        pv_error(error, PV_WRONG, "a tensor of impossible size %s", pv_shape_text(text, rank, dim));
        return NULL;
    }
    PvTensor *tensor = pv_try_alloc(sizeof *tensor, "a tensor", error);
    if (!tensor)
        return NULL;
    tensor->refs = 1;
    tensor->dtype = (uint8_t)dtype;
    tensor->rank = (uint8_t)rank;
    for (int i = 0; i < rank; i++)
        tensor->dim[i] = dim[i];
    tensor->count = count;
    tensor->bytes = count * pv_dtype_size(dtype);
    return tensor;
}

bool pv_tensor_make_room(PvTensor *tensor, PvError *error)
{
    size_t size = ((size_t)tensor->bytes + 63) / 64 * 64;
    if (tensor->bytes > INT64_MAX / 2 || !(tensor->data = aligned_alloc(64, size ? size : 64))) {
        char text[PV_SHAPE_TEXT], bytes[32];
        return pv_error(error, PV_MACHINE, "not enough memory: %s for a tensor %s",
                        pv_size_text(bytes, (double)tensor->bytes),
                        pv_shape_text(text, tensor->rank, tensor->dim));
    }
    memset(tensor->data, 0, size ? size : 64);
    return true;
}

PvTensor *pv_tensor_new(int dtype, int rank, const int64_t *dim, PvError *error)
{
    PvTensor *tensor = pv_tensor_bare(dtype, rank, dim, error);
    if (tensor && !pv_tensor_make_room(tensor, error)) {
        free(tensor);
        return NULL;
    }
    return tensor;
}

void pv_type_dims(const PvType *type, int64_t batch, int64_t dim[PV_MAX_RANK])
{
    for (int i = 0; i < type->rank; i++) {
        dim[i] = type->dim[i];
        if ((type->batch_axes >> i & 1) && __builtin_mul_overflow(dim[i], batch, &dim[i]))
            dim[i] = INT64_MAX;
    }
}

PvTensor *pv_tensor_of(const PvType *type, int64_t batch, PvError *error)
{
    int64_t dim[PV_MAX_RANK];
    pv_type_dims(type, batch, dim);
    return pv_tensor_new(type->dtype, type->rank, dim, error);
}

PvTensor *pv_tensor_borrow(int dtype, int rank, const int64_t *dim, void *data,
                           void (*release)(void *owner), void *owner, PvError *error)
{
    PvTensor *tensor = pv_tensor_bare(dtype, rank, dim, error);
    if (!tensor)
        return NULL;
    tensor->data = data;
    tensor->release = release;
    tensor->owner = owner;
    return tensor;
}

PvTensor *pv_tensor_hold(PvTensor *tensor)
{
    if (tensor)
        __atomic_add_fetch(&tensor->refs, 1, __ATOMIC_RELAXED);
    return tensor;
}

void pv_tensor_drop(PvTensor *tensor)
{
    if (!tensor || __atomic_sub_fetch(&tensor->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    pv_device_copy_free(tensor);
    if (tensor->release)
        tensor->release(tensor->owner);
    else
        free(tensor->data);
    free(tensor);
}

bool pv_tensor_fetch(PvTensor *tensor, PvError *error)
{
    return !tensor->stale || pv_device_copy_fetch(tensor, error);
}

bool pv_tensor_overwrite(PvTensor *tensor, PvError *error)
{
    return !tensor->copy || pv_device_copy_forget(tensor, error);
}

int64_t pv_tensor_batch(const PvTensor *tensor, const PvType *type)
{
    if (tensor->rank != type->rank)
        return -1;
    int64_t batch = -1;
    for (int i = 0; i < type->rank; i++) {
        if (!(type->batch_axes >> i & 1)) {
            if (tensor->dim[i] != type->dim[i])
                return -1;
            continue;
        }
        if (type->dim[i] == 0 || tensor->dim[i] % type->dim[i] != 0)
            return -1;
        int64_t here = tensor->dim[i] / type->dim[i];
        if (here < 1 || (batch >= 0 && here != batch))
            return -1;
        batch = here;
    }
    return batch < 0 ? 1 : batch;
}

bool pv_tensor_fits(const PvTensor *tensor, const PvType *type, int64_t batch)
{
    int64_t found = pv_tensor_batch(tensor, type);
    if (found < 0)
        return false;
    return batch < 0 || type->batch_axes == 0 || found == batch;
}

PvTensor *pv_tensor_copy(const PvTensor *tensor, PvError *error)
{
    PvTensor *copy = pv_tensor_new(tensor->dtype, tensor->rank, tensor->dim, error);
    if (copy)
        memcpy(copy->data, tensor->data, (size_t)tensor->bytes);
    return copy;
}

PvTensor *pv_tensor_convert(PvTensor *tensor, int dtype, PvError *error)
{
    if (tensor->dtype == dtype)
        return pv_tensor_hold(tensor);
    PvTensor *to = pv_tensor_fetch(tensor, error)
                       ? pv_tensor_new(dtype, tensor->rank, tensor->dim, error)
                       : NULL;
    if (to)
        pv_convert(to->data, dtype, tensor->data, tensor->dtype, tensor->count);
    return to;
}

// ---- elements ----

static float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u;
    uint32_t mantissa = half & 0x3FFu, bits;
    if (exponent == 0) {
        float tiny = (float)mantissa * 0x1p-24f;
        return sign ? -tiny : tiny;
    }
    if (exponent == 31)
        bits = sign | 0x7F800000u | mantissa << 13;
    else
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds a double once to a format of `mantissa_bits` and exponents from `least` (of the smallest
// normal number) to `most`, and gives its bits; NaN becomes a quiet NaN.
static uint16_t round_to(double value, int mantissa_bits, int least, int most)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    uint16_t infinity = (uint16_t)((most - least + 2) << mantissa_bits);
    if (isnan(value))
        return (uint16_t)(sign | infinity | 1u << (mantissa_bits - 1));
    value = fabs(value);
    if (value == 0)
        return sign;
    if (isinf(value))
        return (uint16_t)(sign | infinity);
    int exponent = ilogb(value);
    if (exponent < least)
        exponent = least; // subnormal: fixed step
    if (exponent > most)
        return (uint16_t)(sign | infinity);
    // in units of the last place: an integer below 2^(mantissa_bits + 1), exact in a double
    double steps = nearbyint(scalbn(value, mantissa_bits - exponent));
    uint32_t bits = (uint32_t)steps;
    // The leading 1 of a normal number adds one to the exponent field, a carry likewise.
    bits += (uint32_t)(exponent - least) << mantissa_bits;
    if (bits >= infinity)
        bits = infinity;
    return (uint16_t)(sign | bits);
}

static uint16_t float_to_half(double value)
{
    return round_to(value, 10, -14, 15);
}

static float brain_to_float(uint16_t brain)
{
    uint32_t bits = (uint32_t)brain << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t float_to_brain(double value)
{
    return round_to(value, 7, -126, 127);
}

// Element i of an integer array.
static int64_t load_integer(const char *from, int dtype, int64_t i)
{
    switch (dtype) {
    case PV_BOOL:
        return from[i] != 0;
    case PV_U8:
        return (uint8_t)from[i];
    case PV_I8:
        return (int8_t)from[i];
    case PV_I16: {
        int16_t value;
        memcpy(&value, from + 2 * i, sizeof value);
        return value;
    }
    case PV_I32: {
        int32_t value;
        memcpy(&value, from + 4 * i, sizeof value);
        return value;
    }
    default: {
        int64_t value;
        memcpy(&value, from + 8 * i, sizeof value);
        return value;
    }
    }
}

static double load_real(const char *from, int dtype, int64_t i)
{
    uint16_t bits;
    float single;
    double value;
    switch (dtype) {
    case PV_F16:
        memcpy(&bits, from + 2 * i, sizeof bits);
        return half_to_float(bits);
    case PV_BF16:
        memcpy(&bits, from + 2 * i, sizeof bits);
        return brain_to_float(bits);
    case PV_F32:
        memcpy(&single, from + 4 * i, sizeof single);
        return single;
    case PV_F64:
        memcpy(&value, from + 8 * i, sizeof value);
        return value;
    default:
        return (double)load_integer(from, dtype, i);
    }
}

static void store_integer(char *to, int dtype, int64_t i, int64_t value)
{
    int64_t least = INT64_MIN, most = INT64_MAX;
    int64_t bytes = pv_dtype_size(dtype);
    if (dtype == PV_BOOL)
        value = value != 0;
    else if (dtype == PV_U8)
        least = 0, most = UINT8_MAX;
    else if (bytes < 8) {
        most = ((int64_t)1 << (8 * bytes - 1)) - 1;
        least = -most - 1;
    }
    value = value < least ? least : value > most ? most : value;
    memcpy(to + bytes * i, &value, (size_t)bytes); // little-endian
}

// Truncation, saturated; NaN is 0.
static int64_t real_to_integer(double value)
{
    if (isnan(value))
        return 0;
    if (value >= 0x1p63)
        return INT64_MAX;
    if (value < -0x1p63)
        return INT64_MIN;
    return (int64_t)value;
}

static void store_real(char *to, int dtype, int64_t i, double value)
{
    uint16_t bits;
    float single;
    switch (dtype) {
    case PV_F16:
        bits = float_to_half(value);
        memcpy(to + 2 * i, &bits, sizeof bits);
        break;
    case PV_BF16:
        bits = float_to_brain(value);
        memcpy(to + 2 * i, &bits, sizeof bits);
        break;
    case PV_F32:
        single = (float)value;
        memcpy(to + 4 * i, &single, sizeof single);
        break;
    case PV_F64:
        memcpy(to + 8 * i, &value, sizeof value);
        break;
    case PV_BOOL:
        to[i] = value != 0;
        break;
    default:
        store_integer(to, dtype, i, real_to_integer(value));
        break;
    }
}

// f16 or bf16 to f32
static void widen(char *to, const char *from, bool half, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, from + 2 * i, sizeof bits);
        float value = half ? half_to_float(bits) : brain_to_float(bits);
        memcpy(to + 4 * i, &value, sizeof value);
    }
}

void pv_convert(void *to_data, int to_dtype, const void *from_data, int from_dtype, int64_t count)
{
    char *to = to_data;
    const char *from = from_data;
    if (to_dtype == from_dtype && to_dtype != PV_BOOL) {
        if (count > 0 && to != from)
            memcpy(to, from, (size_t)(count * pv_dtype_size(to_dtype)));
        return;
    }
    if (to_dtype == PV_F32 && (from_dtype == PV_F16 || from_dtype == PV_BF16)) {
        widen(to, from, from_dtype == PV_F16, count);
        return;
    }
    bool between_integers = !pv_dtype_is_real(to_dtype) && !pv_dtype_is_real(from_dtype);
    if (between_integers) {
        for (int64_t i = 0; i < count; i++)
            store_integer(to, to_dtype, i, load_integer(from, from_dtype, i));
        return;
    }
    // i64 -> f32 by way of double would round twice.
    if (from_dtype == PV_I64 && to_dtype == PV_F32) {
        for (int64_t i = 0; i < count; i++) {
            float value = (float)load_integer(from, from_dtype, i);
            memcpy(to + 4 * i, &value, sizeof value);
        }
        return;
    }
    for (int64_t i = 0; i < count; i++)
        store_real(to, to_dtype, i, load_real(from, from_dtype, i));
}

double pv_tensor_number(const PvTensor *tensor, int64_t i)
{
    return load_real(tensor->data, tensor->dtype, i);
}

// ---- sets ----

// Index of the first item whose name is not before `name`.
static size_t lower_bound(const PvTensorSet *set, const char *name)
{
    size_t low = 0, high = set->count;
    // files come sorted more often than not: look at the end first
    if (high > 0 && strcmp(set->items[high - 1].name, name) < 0)
        return high;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(set->items[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

PvTensor *pv_set_find(const PvTensorSet *set, const char *name)
{
    size_t i = lower_bound(set, name);
    return i < set->count && !strcmp(set->items[i].name, name) ? set->items[i].tensor : NULL;
}

void pv_set_add(PvTensorSet *set, const char *name, PvTensor *tensor)
{
    size_t i = lower_bound(set, name);
    if (i < set->count && !strcmp(set->items[i].name, name)) {
        pv_tensor_drop(set->items[i].tensor);
        set->items[i].tensor = tensor;
        return;
    }
    set->items = pv_grow(set->items, &set->capacity, set->count, sizeof *set->items);
    memmove(set->items + i + 1, set->items + i, (set->count - i) * sizeof *set->items);
    set->items[i] = (PvNamed){.name = pv_strdup(name), .tensor = tensor};
    set->count++;
}

void pv_set_append(PvTensorSet *set, const char *name, PvTensor *tensor)
{
    set->items = pv_grow(set->items, &set->capacity, set->count, sizeof *set->items);
    set->items[set->count++] = (PvNamed){.name = pv_strdup(name), .tensor = tensor};
}

static int compare_items(const void *a, const void *b)
{
    return strcmp(((const PvNamed *)a)->name, ((const PvNamed *)b)->name);
}

const char *pv_set_sort(PvTensorSet *set)
{
    if (set->count > 1)
        qsort(set->items, set->count, sizeof *set->items, compare_items);
    for (size_t i = 1; i < set->count; i++) {
        if (!strcmp(set->items[i].name, set->items[i - 1].name))
            return set->items[i].name;
    }
    return NULL;
}

const char *pv_set_metadata(const PvTensorSet *set, const char *key)
{
    for (size_t i = 0; i < set->metadata_count; i++) {
        if (!strcmp(set->metadata[i].key, key))
            return set->metadata[i].value;
    }
    return NULL;
}

void pv_set_add_metadata(PvTensorSet *set, const char *key, const char *value)
{
    for (size_t i = 0; i < set->metadata_count; i++) {
        if (strcmp(set->metadata[i].key, key))
            continue;
        free(set->metadata[i].value);
        set->metadata[i].value = pv_strdup(value);
        return;
    }
    set->metadata =
        pv_grow(set->metadata, &set->metadata_capacity, set->metadata_count, sizeof *set->metadata);
    set->metadata[set->metadata_count++] =
        (PvPair){.key = pv_strdup(key), .value = pv_strdup(value)};
}

void pv_set_free(PvTensorSet *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free(set->items[i].name);
        pv_tensor_drop(set->items[i].tensor);
    }
    for (size_t i = 0; i < set->metadata_count; i++) {
        free(set->metadata[i].key);
        free(set->metadata[i].value);
    }
    free(set->items);
    free(set->metadata);
    free(set->path);
    *set = (PvTensorSet){0};
}
