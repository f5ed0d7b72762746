// The zip around a torch.save pickle. See torch_file.h.
//
// minizip reads the directory; members that are stored, as torch.save stores all of them, are used
// where they lie in the mapped file, deflated ones are inflated within limits. Layout: one folder
// of any name with data.pkl, data/<key> for every storage, and byteorder (absent: little).
#include "runtime/torch_file.h"

#include <limits.h>
#include <minizip/unzip.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "runtime/file.h"

enum { MAX_PREFIX = 256, MAX_RATIO = 1100 }; // deflate's limit is 1032 : 1

typedef struct {
    char *name;
    unz64_file_pos at;
} Member;

typedef struct {
    const char *path;
    PvMapping *mapping;
    unzFile zip;
    char prefix[MAX_PREFIX]; // "archive/"
    Member *members;         // by name
    size_t member_count, member_capacity;
    PvTensorSet storages;  // loaded so far, u8, by key
    int64_t inflate_limit; // bytes that may still be inflated
} Archive;

// ---- members ----

static uint32_t crc_of(const uint8_t *data, size_t size)
{
    uLong crc = crc32(0, NULL, 0);
    while (size > 0) {
        uInt piece = size > INT_MAX ? INT_MAX : (uInt)size;
        crc = crc32(crc, data, piece);
        data += piece;
        size -= piece;
    }
    return (uint32_t)crc;
}

static bool damaged(const Archive *archive, const char *member, PvError *error)
{
    return pv_error(error, PV_WRONG, "%s: member '%s' is damaged", archive->path, member);
}

// The present member inflated into a u8 tensor.
static PvTensor *inflate_member(Archive *archive, const char *member, const unz_file_info64 *info,
                                PvError *error)
{
    if (info->uncompressed_size / MAX_RATIO > info->compressed_size ||
        info->uncompressed_size > (uint64_t)archive->inflate_limit) {
        pv_error(error, PV_WRONG, "%s: member '%s' inflates to too many bytes", archive->path,
                 member);
        return NULL;
    }
    int64_t size = (int64_t)info->uncompressed_size, done = 0;
    archive->inflate_limit -= size;
    PvTensor *tensor = pv_tensor_new(PV_U8, 1, &size, error);
    while (tensor && done < size) {
        int64_t left = size - done;
        int got = unzReadCurrentFile(archive->zip, (uint8_t *)tensor->data + done,
                                     left > INT_MAX / 2 ? INT_MAX / 2 : (unsigned)left);
        if (got <= 0)
            break;
        done += got;
    }
    if (!tensor || done == size)
        return tensor;
    damaged(archive, member, error);
    pv_tensor_drop(tensor);
    return NULL;
}

// The present member as a u8 tensor: borrowed if it is stored, checked against its CRC.
static PvTensor *read_present(Archive *archive, const char *member, PvError *error)
{
    unz_file_info64 info;
    if (unzGetCurrentFileInfo64(archive->zip, &info, NULL, 0, NULL, 0, NULL, 0) != UNZ_OK ||
        unzOpenCurrentFile(archive->zip) != UNZ_OK) {
        damaged(archive, member, error);
        return NULL;
    }
    PvTensor *tensor = NULL;
    if (info.compression_method != 0) {
        tensor = inflate_member(archive, member, &info, error);
        if (unzCloseCurrentFile(archive->zip) == UNZ_OK || !tensor)
            return tensor;
    } else {
        uint64_t at = unzGetCurrentFileZStreamPos64(archive->zip), size = info.uncompressed_size;
        unzCloseCurrentFile(archive->zip);
        bool inside = size == info.compressed_size && at <= archive->mapping->size &&
                      size <= archive->mapping->size - at;
        if (inside && crc_of(archive->mapping->data + at, (size_t)size) == (uint32_t)info.crc) {
            int64_t count = (int64_t)size;
            tensor =
                pv_tensor_borrow(PV_U8, 1, &count, (void *)(uintptr_t)(archive->mapping->data + at),
                                 pv_mapping_drop, archive->mapping, error);
            if (tensor)
                pv_mapping_hold(archive->mapping);
            return tensor;
        }
    }
    pv_tensor_drop(tensor); // its CRC is wrong
    damaged(archive, member, error);
    return NULL;
}

static int compare_members(const void *a, const void *b)
{
    return strcmp(((const Member *)a)->name, ((const Member *)b)->name);
}

// Lists the directory once: minizip's own search is linear.
static bool list_members(Archive *archive, PvError *error)
{
    char name[MAX_PREFIX + 80];
    unz_file_info64 info;
    int status = unzGoToFirstFile(archive->zip);
    for (; status == UNZ_OK; status = unzGoToNextFile(archive->zip)) {
        Member member;
        if (unzGetCurrentFileInfo64(archive->zip, &info, name, sizeof name - 1, NULL, 0, NULL, 0) ||
            unzGetFilePos64(archive->zip, &member.at))
            break;
        name[sizeof name - 1] = 0;
        member.name = pv_strdup(name);
        archive->members = pv_grow(archive->members, &archive->member_capacity,
                                   archive->member_count, sizeof member);
        archive->members[archive->member_count++] = member;
    }
    if (archive->member_count > 1)
        qsort(archive->members, archive->member_count, sizeof(Member), compare_members);
    if (status == UNZ_END_OF_LIST_OF_FILE)
        return true;
    return pv_error(error, PV_WRONG, "%s: the zip's directory is damaged", archive->path);
}

static const Member *find_member(const Archive *archive, const char *name)
{
    char full[MAX_PREFIX + 80];
    snprintf(full, sizeof full, "%s%s", archive->prefix, name);
    Member key = {.name = full};
    if (archive->member_count == 0)
        return NULL;
    return bsearch(&key, archive->members, archive->member_count, sizeof key, compare_members);
}

// NULL with an error: it is not there, or damaged.
static PvTensor *read_member(Archive *archive, const char *name, PvError *error)
{
    const Member *member = find_member(archive, name);
    if (!member) {
        pv_error(error, PV_WRONG, "%s: member '%s%s' is missing", archive->path, archive->prefix,
                 name);
        return NULL;
    }
    unz64_file_pos at = member->at;
    if (unzGoToFilePos64(archive->zip, &at) != UNZ_OK) {
        damaged(archive, member->name, error);
        return NULL;
    }
    return read_present(archive, member->name, error);
}

// ---- storages ----

static void drop_tensor(void *owner)
{
    pv_tensor_drop(owner);
}

// PvStorageFn: the member data/<key> as elements of `dtype`.
static PvTensor *load_storage(void *context, const char *key, int dtype, int64_t count,
                              PvError *error)
{
    Archive *archive = context;
    PvTensor *bytes = pv_set_find(&archive->storages, key);
    if (!bytes) {
        char name[80];
        snprintf(name, sizeof name, "data/%s", key);
        bytes = read_member(archive, name, error);
        if (!bytes)
            return NULL;
        if ((uintptr_t)bytes->data % 8 != 0 && bytes->count > 0) {
            PvTensor *copy = pv_tensor_copy(bytes, error);
            pv_tensor_drop(bytes);
            if (!copy)
                return NULL;
            bytes = copy;
        }
        pv_set_add(&archive->storages, key, bytes);
    }
    int64_t held = bytes->count / pv_dtype_size(dtype);
    if (held < count) {
        pv_error(error, PV_WRONG, "%s: storage '%s' has %lld elements, %lld are expected",
                 archive->path, key, (long long)held, (long long)count);
        return NULL;
    }
    PvTensor *tensor = pv_tensor_borrow(dtype, 1, &held, bytes->data, drop_tensor, bytes, error);
    if (tensor)
        pv_tensor_hold(bytes);
    return tensor;
}

// ---- the file ----

// Finds data.pkl, and with it the folder all members are in.
static bool find_pickle(Archive *archive, PvError *error)
{
    for (size_t i = 0; i < archive->member_count; i++) {
        const char *name = archive->members[i].name;
        size_t length = strlen(name);
        if (length < 8 || length - 8 >= MAX_PREFIX || strcmp(name + length - 8, "data.pkl"))
            continue;
        if (length > 8 && name[length - 9] != '/')
            continue;
        memcpy(archive->prefix, name, length - 8);
        archive->prefix[length - 8] = 0;
        return true;
    }
    return pv_error(error, PV_WRONG,
                    "%s is a zip file, but not one of PyTorch's: no data.pkl in it", archive->path);
}

static bool check_byte_order(Archive *archive, PvError *error)
{
    if (!find_member(archive, "byteorder"))
        return true;
    PvTensor *order = read_member(archive, "byteorder", error);
    if (!order)
        return false;
    bool little = order->count == 6 && !memcmp(order->data, "little", 6);
    pv_tensor_drop(order);
    if (little)
        return true;
    return pv_error(error, PV_WRONG, "%s was written on a big-endian machine", archive->path);
}

static bool read_archive(Archive *archive, PvTensorSet *set, PvError *error)
{
    if (!list_members(archive, error) || !find_pickle(archive, error) ||
        !check_byte_order(archive, error))
        return false;
    PvTensor *pickle = read_member(archive, "data.pkl", error);
    if (!pickle)
        return false;
    int64_t limit = ((int64_t)256 << 20) + 2 * (int64_t)archive->mapping->size;
    bool fine = pv_pickle_read(archive->path, pickle->data, (size_t)pickle->count, load_storage,
                               archive, limit, set, error);
    pv_tensor_drop(pickle);
    return fine;
}

bool pv_torch_read(const char *path, PvTensorSet *set, PvError *error)
{
    static const uint8_t legacy[] = {0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20};
    Archive archive = {.path = path, .mapping = pv_mapping_open(path, error)};
    if (!archive.mapping)
        return false;
    bool fine = false;
    archive.inflate_limit = ((int64_t)1 << 30) + 100 * (int64_t)archive.mapping->size;
    if (archive.mapping->size >= sizeof legacy &&
        !memcmp(archive.mapping->data, legacy, sizeof legacy)) {
        pv_error(error, PV_WRONG, "%s has the format of PyTorch before 1.6", path);
        pv_error_hint(error,
                      "in PyTorch: torch.save(torch.load(\"%s\", map_location=\"cpu\"), "
                      "\"new.pth\")",
                      pv_base_name(path));
    } else if (!(archive.zip = unzOpen64(path))) {
        pv_error(error, PV_WRONG, "%s is not a file of torch.save: not a zip, or cut off", path);
    } else {
        fine = read_archive(&archive, set, error);
        unzClose(archive.zip);
    }
    for (size_t i = 0; i < archive.member_count; i++)
        free(archive.members[i].name);
    free(archive.members);
    pv_set_free(&archive.storages);
    pv_mapping_drop(archive.mapping);
    return fine;
}
