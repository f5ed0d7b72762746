// What was made from equal bytes before: a hash table from keys to values.
//
// A model repeats itself, so most launches ask again what an earlier one asked. The key holds
// everything that the answer depends on; keys are compared whole, not by their hash.
#include <string.h>

#include "codegen/codegen.h"

typedef struct MemoItem {
    uint64_t hash;
    const void *key;
    size_t size;
    void *value;
} MemoItem;

void bytes_add(Arena *arena, Bytes *bytes, const void *data, size_t size)
{
    if (size == 0)
        return;
    if (bytes->count + size > bytes->capacity) {
        bytes->capacity = 2 * (bytes->count + size) + 1024;
        unsigned char *at = arena_alloc(arena, bytes->capacity);
        memcpy(at, bytes->at ? bytes->at : at, bytes->count);
        bytes->at = at;
    }
    memcpy(bytes->at + bytes->count, data, size);
    bytes->count += size;
}

static MemoItem *find_item(const Memo *memo, uint64_t hash, const Bytes *key)
{
    uint32_t mask = memo->size - 1, at = (uint32_t)hash & mask;
    for (; memo->items[at].value; at = (at + 1) & mask) {
        const MemoItem *item = &memo->items[at];
        if (item->hash == hash && item->size == key->count &&
            (key->count == 0 || memcmp(item->key, key->at, key->count) == 0))
            break;
    }
    return &memo->items[at];
}

static void grow(Arena *arena, Memo *memo)
{
    Memo larger = {.count = memo->count, .size = memo->size ? 2 * memo->size : 256};
    larger.items = arena_alloc(arena, larger.size * sizeof *larger.items);
    for (uint32_t i = 0; i < memo->size; i++) {
        const MemoItem *item = &memo->items[i];
        uint32_t at = (uint32_t)item->hash & (larger.size - 1);
        while (item->value && larger.items[at].value)
            at = (at + 1) & (larger.size - 1);
        if (item->value)
            larger.items[at] = *item;
    }
    *memo = larger;
}

void *memo_find(Arena *arena, Memo *memo, const Bytes *key, size_t value_size, bool *found)
{
    if (2 * (memo->count + 1) > memo->size)
        grow(arena, memo);
    uint64_t hash = hash_bytes(key->at, key->count);
    MemoItem *item = find_item(memo, hash, key);
    *found = item->value != NULL;
    if (!*found) {
        *item = (MemoItem){hash, arena_copy(arena, key->at, key->count), key->count,
                           arena_alloc(arena, value_size)};
        memo->count++;
    }
    return item->value;
}
