// safetensors, read and written. See safetensors.h.
//
// The reader trusts nothing: the header's size is held against the file's, the JSON (read by
// jansson: UTF-8 checked, duplicate keys refused, depth limited) against the format, every size
// product against overflow, and the byte ranges, sorted, must cover the data exactly once. Only
// then do tensors point into the mapping. The writer lays wide types first, so that every tensor
// is aligned for its type, and converts piece by piece while it writes.
// Format: https://github.com/huggingface/safetensors
#include "runtime/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/file.h"

enum { MAX_HEADER = 100 << 20 }; // what the reference reader accepts

static const struct {
    const char *name;
    int dtype;
} type_names[] = {
    {"BOOL", PV_BOOL}, {"U8", PV_U8},   {"I8", PV_I8},     {"I16", PV_I16}, {"I32", PV_I32},
    {"I64", PV_I64},   {"F16", PV_F16}, {"BF16", PV_BF16}, {"F32", PV_F32}, {"F64", PV_F64},
};
enum { TYPE_COUNT = sizeof type_names / sizeof type_names[0] };

// ---- reading ----

// One tensor of the header, before it is one in memory.
typedef struct {
    const char *name; // in the JSON object
    int dtype, rank;
    int64_t dim[PV_MAX_RANK];
    uint64_t begin, end; // bytes from the start of the data
} Range;

static int compare_ranges(const void *a, const void *b)
{
    const Range *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

// A JSON array of exactly (or at most, when `count` is set) `limit` integers >= 0.
static bool read_sizes(json_t *array, size_t limit, size_t *count, int64_t *out)
{
    if (!json_is_array(array))
        return false;
    size_t length = json_array_size(array);
    if (count ? length > limit : length != limit)
        return false;
    for (size_t i = 0; i < length; i++) {
        json_t *item = json_array_get(array, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0)
            return false;
        out[i] = json_integer_value(item);
    }
    if (count)
        *count = length;
    return true;
}

static bool read_range(const char *file, const char *name, json_t *entry, uint64_t data_size,
                       Range *range, PvError *error)
{
    *range = (Range){.name = name};
    if (!json_is_object(entry))
        return pv_error(error, PV_WRONG, "%s: tensor '%.200s' has no description", file, name);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    for (size_t i = 0; dtype && i < TYPE_COUNT; i++) {
        if (!strcmp(dtype, type_names[i].name))
            range->dtype = type_names[i].dtype;
    }
    if (range->dtype == PV_NONE) {
        return pv_error(error, PV_WRONG,
                        "%s: tensor '%.200s' has the element type %.40s, which is "
                        "not supported",
                        file, name, dtype ? dtype : "(none)");
    }
    size_t rank = 0;
    int64_t offsets[2];
    if (!read_sizes(json_object_get(entry, "shape"), PV_MAX_RANK, &rank, range->dim)) {
        return pv_error(error, PV_WRONG,
                        "%s: tensor '%.200s' has no valid shape of at most %d axes", file, name,
                        PV_MAX_RANK);
    }
    range->rank = (int)rank;
    if (!read_sizes(json_object_get(entry, "data_offsets"), 2, NULL, offsets))
        return pv_error(error, PV_WRONG, "%s: tensor '%.200s' has no data_offsets", file, name);
    range->begin = (uint64_t)offsets[0];
    range->end = (uint64_t)offsets[1];
    int64_t count = pv_shape_count(range->rank, range->dim);
    if (range->begin > range->end || range->end > data_size) {
        return pv_error(error, PV_WRONG,
                        "%s: tensor '%.200s' lies at bytes %llu to %llu, and the "
                        "file has %llu bytes of data%s",
                        file, name, (unsigned long long)range->begin,
                        (unsigned long long)range->end, (unsigned long long)data_size,
                        range->begin <= range->end ? ": it is cut off" : "");
    }
    if (count < 0 || (uint64_t)(count * pv_dtype_size(range->dtype)) != range->end - range->begin) {
        char text[PV_SHAPE_TEXT];
        return pv_error(error, PV_WRONG, "%s: tensor '%.200s' is %s %s, but has %llu bytes", file,
                        name, pv_dtype_name(range->dtype),
                        pv_shape_text(text, range->rank, range->dim),
                        (unsigned long long)(range->end - range->begin));
    }
    return true;
}

static bool read_metadata(const char *file, json_t *object, PvTensorSet *set, PvError *error)
{
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return pv_error(error, PV_WRONG, "%s: __metadata__ is not an object", file);
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value)) {
            return pv_error(error, PV_WRONG, "%s: __metadata__ '%.200s' is not a string", file,
                            key);
        }
        set->metadata = pv_grow(set->metadata, &set->metadata_capacity, set->metadata_count,
                                sizeof *set->metadata);
        set->metadata[set->metadata_count++] = (PvPair){
            .key = pv_strdup(key),
            .value = pv_strdup(json_string_value(value)),
        };
    }
    return true;
}

// The ranges, in the order of the file, must follow each other without gaps.
static bool check_cover(const char *file, Range *ranges, size_t count, uint64_t data_size,
                        PvError *error)
{
    uint64_t at = 0;
    if (count > 1)
        qsort(ranges, count, sizeof *ranges, compare_ranges);
    for (size_t i = 0; i < count; i++) {
        if (ranges[i].begin != at) {
            return pv_error(error, PV_WRONG, "%s: tensor '%.200s' %s", file, ranges[i].name,
                            ranges[i].begin < at ? "overlaps another one"
                                                 : "does not follow the one before it");
        }
        at = ranges[i].end;
    }
    if (at != data_size) {
        return pv_error(error, PV_WRONG, "%s: %llu bytes after the last tensor", file,
                        (unsigned long long)(data_size - at));
    }
    return true;
}

// Tensors over data: borrowed from `mapping` (NULL: from memory that stays), copied where data is
// not aligned for its type.
static bool make_tensors(const Range *ranges, size_t count, const uint8_t *data, PvMapping *mapping,
                         PvTensorSet *set, PvError *error)
{
    static uint64_t nothing; // what tensors without elements point at
    for (size_t i = 0; i < count; i++) {
        const Range *range = &ranges[i];
        uintptr_t address = (uintptr_t)(data + range->begin);
        PvTensor *tensor;
        if (range->begin == range->end)
            address = (uintptr_t)&nothing;
        if (address % (uintptr_t)pv_dtype_size(range->dtype) == 0) {
            tensor = pv_tensor_borrow(range->dtype, range->rank, range->dim, (void *)address,
                                      pv_mapping_drop, mapping, error);
            if (tensor && mapping)
                pv_mapping_hold(mapping);
        } else {
            tensor = pv_tensor_new(range->dtype, range->rank, range->dim, error);
            if (tensor)
                memcpy(tensor->data, (const void *)address, (size_t)tensor->bytes);
        }
        if (!tensor)
            return false;
        pv_set_append(set, range->name, tensor);
    }
    pv_set_sort(set); // names are different: keys of one object
    return true;
}

// From the parsed header to tensors.
static bool read_header(const char *file, json_t *header, const uint8_t *data, uint64_t data_size,
                        PvMapping *mapping, PvTensorSet *set, PvError *error)
{
    if (!json_is_object(header))
        return pv_error(error, PV_WRONG, "%s: the header is not an object", file);
    Range *ranges = pv_try_alloc(json_object_size(header) * sizeof *ranges, file, error);
    if (!ranges)
        return false;
    size_t count = 0;
    bool fine = true;
    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry)
    {
        if (!strcmp(name, "__metadata__"))
            fine = read_metadata(file, entry, set, error);
        else
            fine = read_range(file, name, entry, data_size, &ranges[count++], error);
        if (!fine)
            break;
    }
    fine = fine && check_cover(file, ranges, count, data_size, error) &&
           make_tensors(ranges, count, data, mapping, set, error);
    free(ranges);
    return fine;
}

static bool parse(const char *file, const uint8_t *data, size_t size, PvMapping *mapping,
                  PvTensorSet *set, PvError *error)
{
    uint64_t length = 0;
    for (int i = 7; i >= 0 && size >= 8; i--)
        length = length << 8 | data[i];
    if (size < 8 || (size > 8 && data[8] != '{') || length < 2) {
        return pv_error(error, PV_WRONG, "%s is not a safetensors file", file);
    }
    if (length > size - 8) {
        return pv_error(error, PV_WRONG,
                        "%s: the header has %llu bytes, and the file only %zu: it "
                        "is cut off, or not a safetensors file",
                        file, (unsigned long long)length, size);
    }
    if (length > MAX_HEADER) {
        return pv_error(error, PV_WRONG, "%s: the header has %llu bytes (at most %d)", file,
                        (unsigned long long)length, (int)MAX_HEADER);
    }
    json_error_t json;
    json_t *header = json_loadb((const char *)data + 8, length, JSON_REJECT_DUPLICATES, &json);
    if (!header) {
        return pv_error(error, PV_WRONG, "%s: the header is not valid JSON: %s (at byte %d)", file,
                        json.text, json.position + 8);
    }
    bool fine =
        read_header(file, header, data + 8 + length, size - 8 - length, mapping, set, error);
    json_decref(header);
    if (!fine)
        pv_set_free(set);
    else
        set->path = pv_strdup(file);
    return fine;
}

bool pv_safetensors_parse(const char *name, const uint8_t *data, size_t size, PvTensorSet *set,
                          PvError *error)
{
    return parse(name, data, size, NULL, set, error);
}

bool pv_safetensors_read(const char *path, PvTensorSet *set, PvError *error)
{
    PvMapping *mapping = pv_mapping_open(path, error);
    if (!mapping)
        return false;
    bool fine = parse(path, mapping->data, mapping->size, mapping, set, error);
    pv_mapping_drop(mapping);
    return fine;
}

// ---- writing ----

typedef struct {
    char *name;
    int dtype, from_dtype, rank;
    int64_t dim[PV_MAX_RANK];
    const char *data;
} Item;

struct PvWriter {
    Item *items;
    size_t count, capacity;
    PvPair *metadata;
    size_t metadata_count, metadata_capacity;
};

PvWriter *pv_writer_new(void)
{
    return pv_alloc(sizeof(PvWriter));
}

void pv_writer_metadata(PvWriter *writer, const char *key, const char *value)
{
    writer->metadata = pv_grow(writer->metadata, &writer->metadata_capacity, writer->metadata_count,
                               sizeof *writer->metadata);
    writer->metadata[writer->metadata_count++] =
        (PvPair){.key = pv_strdup(key), .value = pv_strdup(value)};
}

void pv_writer_add(PvWriter *writer, const char *name, int dtype, int rank, const int64_t *dim,
                   const void *data, int from_dtype)
{
    writer->items = pv_grow(writer->items, &writer->capacity, writer->count, sizeof *writer->items);
    Item *item = &writer->items[writer->count++];
    *item = (Item){.name = pv_strdup(name),
                   .dtype = dtype,
                   .from_dtype = from_dtype,
                   .rank = rank,
                   .data = data};
    for (int i = 0; i < rank; i++)
        item->dim[i] = dim[i];
}

void pv_writer_add_tensor(PvWriter *writer, const char *name, const PvTensor *tensor)
{
    pv_writer_add(writer, name, tensor->dtype, tensor->rank, tensor->dim, tensor->data,
                  tensor->dtype);
}

void pv_writer_free(PvWriter *writer)
{
    if (!writer)
        return;
    for (size_t i = 0; i < writer->count; i++)
        free(writer->items[i].name);
    for (size_t i = 0; i < writer->metadata_count; i++) {
        free(writer->metadata[i].key);
        free(writer->metadata[i].value);
    }
    free(writer->items);
    free(writer->metadata);
    free(writer);
}

// Wide types first, so that all are aligned; then by name.
static int compare_items(const void *a, const void *b)
{
    const Item *x = a, *y = b;
    int64_t wide = pv_dtype_size(y->dtype) - pv_dtype_size(x->dtype);
    if (wide != 0)
        return wide < 0 ? -1 : 1;
    return strcmp(x->name, y->name);
}

static const char *type_name(int dtype)
{
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        if (type_names[i].dtype == dtype)
            return type_names[i].name;
    }
    return NULL;
}

// The header's object; NULL with an error: a name twice, a name that is not UTF-8.
static json_t *build_header(const PvWriter *writer, const char *path, PvError *error)
{
    json_t *header = json_object();
    bool fine = header != NULL;
    if (writer->metadata_count > 0) {
        json_t *metadata = json_object();
        fine = fine && !json_object_set_new(header, "__metadata__", metadata);
        for (size_t i = 0; i < writer->metadata_count && fine; i++) {
            const PvPair *pair = &writer->metadata[i];
            fine = !json_object_set_new(metadata, pair->key, json_string(pair->value));
        }
    }
    json_int_t at = 0;
    for (size_t i = 0; i < writer->count && fine; i++) {
        const Item *item = &writer->items[i];
        if (json_object_get(header, item->name)) {
            pv_error(error, PV_WRONG, "cannot write %s: tensor '%s' is there twice", path,
                     item->name);
            json_decref(header);
            return NULL;
        }
        json_int_t bytes = pv_shape_count(item->rank, item->dim) * pv_dtype_size(item->dtype);
        json_t *shape = json_array();
        for (int j = 0; j < item->rank; j++)
            fine = fine && !json_array_append_new(shape, json_integer(item->dim[j]));
        json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", type_name(item->dtype), "shape",
                                  shape, "data_offsets", at, at + bytes);
        fine = fine && entry && !json_object_set_new(header, item->name, entry);
        at += bytes;
    }
    if (fine)
        return header;
    json_decref(header);
    pv_error(error, PV_WRONG, "cannot write %s: a name is not UTF-8 text, or no memory", path);
    return NULL;
}

static bool write_item(PvFile *file, const Item *item)
{
    enum { PIECE = 1 << 14 }; // elements converted at a time
    static _Thread_local double buffer[PIECE];
    int64_t count = pv_shape_count(item->rank, item->dim);
    int64_t size = pv_dtype_size(item->dtype), from_size = pv_dtype_size(item->from_dtype);
    if (item->dtype == item->from_dtype)
        return pv_file_write(file, item->data, (size_t)(count * size));
    for (int64_t i = 0; i < count; i += PIECE) {
        int64_t piece = count - i < PIECE ? count - i : PIECE;
        pv_convert(buffer, item->dtype, item->data + i * from_size, item->from_dtype, piece);
        if (!pv_file_write(file, buffer, (size_t)(piece * size)))
            return false;
    }
    return true;
}

bool pv_writer_finish(PvWriter *writer, const char *path, PvError *error)
{
    if (writer->count > 1)
        qsort(writer->items, writer->count, sizeof *writer->items, compare_items);
    json_t *header = build_header(writer, path, error);
    char *text = header ? json_dumps(header, JSON_COMPACT) : NULL;
    if (header && !text)
        pv_error(error, PV_MACHINE, "not enough memory to write %s", path);
    json_decref(header);
    PvFile *file = text ? pv_file_create(path, error) : NULL;
    bool fine = file != NULL;
    if (file) {
        size_t length = strlen(text), padded = (length + 7) / 8 * 8;
        uint8_t size[8];
        for (int i = 0; i < 8; i++)
            size[i] = (uint8_t)((uint64_t)padded >> (8 * i));
        pv_file_write(file, size, sizeof size);
        pv_file_write(file, text, length);
        pv_file_write(file, "        ", padded - length);
        for (size_t i = 0; i < writer->count; i++) {
            if (!write_item(file, &writer->items[i]))
                break;
        }
        fine = pv_file_commit(file, error);
    }
    free(text);
    pv_writer_free(writer);
    return fine;
}

bool pv_safetensors_write(const char *path, const PvTensorSet *set, PvError *error)
{
    PvWriter *writer = pv_writer_new();
    for (size_t i = 0; i < set->metadata_count; i++)
        pv_writer_metadata(writer, set->metadata[i].key, set->metadata[i].value);
    for (size_t i = 0; i < set->count; i++)
        pv_writer_add_tensor(writer, set->items[i].name, set->items[i].tensor);
    return pv_writer_finish(writer, path, error);
}
