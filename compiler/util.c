// Arena memory, interned strings and growing arrays.
//
// An arena is a chain of chunks, each about twice as large as the one before; an allocation moves
// a pointer, and memory that the system cannot give ends the program with status 3, so that no
// pass has to check. Interned strings live in one open-addressing table that is kept at most half
// full; their text lies in an arena of its own, which lives until the process ends.
#include "compiler/util.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    ALIGNMENT = 16,
    FIRST_CHUNK = 64 * 1024,
    LARGEST_CHUNK = 16 * 1024 * 1024,
    LARGE_PAGE = 2 * 1024 * 1024
};

typedef struct Chunk Chunk;
struct Chunk {
    Chunk *before;
    size_t size; // bytes behind the header
    size_t used;
};

// What a chunk's header takes, so that the bytes behind it are aligned.
enum { HEADER = (sizeof(Chunk) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT };

struct Arena {
    Chunk *chunk;
    size_t next_size;
    bool sparse;
};

static _Noreturn void out_of_memory(size_t size)
{
    fprintf(stderr, "pvdmc: error: out of memory (%zu bytes more are needed)\n", size);
    exit(3);
}

static void *checked(void *memory, size_t size)
{
    if (!memory)
        out_of_memory(size);
    return memory;
}

Arena *arena_new(void)
{
    Arena *arena = checked(calloc(1, sizeof *arena), sizeof *arena);
    arena->next_size = FIRST_CHUNK;
    return arena;
}

Arena *arena_new_sparse(void)
{
    Arena *arena = arena_new();
    arena->sparse = true;
    return arena;
}

// A chunk of its own, which has no page before it is touched.
static Chunk *map_chunk(size_t room)
{
    void *memory = mmap(NULL, HEADER + room, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        out_of_memory(room);
    madvise(memory, HEADER + room, MADV_NOHUGEPAGE);
    return memory;
}

void arena_free(Arena *arena)
{
    if (!arena)
        return;
    for (Chunk *chunk = arena->chunk; chunk;) {
        Chunk *before = chunk->before;
        if (arena->sparse)
            munmap(chunk, HEADER + chunk->size);
        else
            free(chunk);
        chunk = before;
    }
    free(arena);
}

// Puts a chunk of at least `size` bytes, zeroed, in front of the chain.
static void add_chunk(Arena *arena, size_t size)
{
    size_t room = arena->next_size > size ? arena->next_size : size;
    if (room > SIZE_MAX - HEADER)
        out_of_memory(size);
    Chunk *chunk = arena->sparse ? map_chunk(room) : checked(calloc(1, HEADER + room), room);
    if (room >= LARGE_PAGE && !arena->sparse) {
        // Fresh from the system: large pages, where there are any, save thousands of page faults.
        uintptr_t from = ((uintptr_t)chunk + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
        uintptr_t to = ((uintptr_t)chunk + HEADER + room) / LARGE_PAGE * LARGE_PAGE;
        if (to > from)
            madvise((void *)from, to - from, MADV_HUGEPAGE);
    }
    chunk->size = room;
    chunk->before = arena->chunk;
    arena->chunk = chunk;
    if (arena->next_size < LARGEST_CHUNK)
        arena->next_size *= 2;
}

void *arena_alloc(Arena *arena, size_t size)
{
    if (size > SIZE_MAX - 2 * ALIGNMENT)
        out_of_memory(size);
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (size == 0)
        size = ALIGNMENT;
    if (!arena->chunk || arena->chunk->size - arena->chunk->used < size)
        add_chunk(arena, size);
    Chunk *chunk = arena->chunk;
    void *memory = (char *)chunk + HEADER + chunk->used;
    chunk->used += size;
    return memory;
}

char *arena_printf(Arena *arena, const char *format, ...)
{
    if (!format)
        bug("there is no format");
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0)
        bug("format '%s' cannot be printed", format);
    char *text = arena_alloc(arena, (size_t)length + 1);
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

void *arena_copy(Arena *arena, const void *data, size_t size)
{
    void *copy = arena_alloc(arena, size);
    if (size > 0)
        memcpy(copy, data, size);
    return copy;
}

// ---- interned strings ----

typedef struct {
    const char *text; // NULL: an empty slot
    size_t length;
    uint64_t hash;
} Interned;

static struct {
    Arena *arena;
    Interned *slots;
    size_t slot_count; // a power of two
    size_t used;
} strings;

// The slot that holds this text, or the empty one where it belongs.
static Interned *find_slot(const char *text, size_t length, uint64_t hash)
{
    size_t mask = strings.slot_count - 1;
    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        Interned *slot = &strings.slots[i];
        if (!slot->text)
            return slot;
        if (slot->hash == hash && slot->length == length && memcmp(slot->text, text, length) == 0)
            return slot;
    }
}

static void enlarge_strings(void)
{
    size_t old_count = strings.slot_count;
    Interned *old = strings.slots;
    strings.slot_count = old_count ? 2 * old_count : 1024;
    strings.slots = checked(calloc(strings.slot_count, sizeof *old), strings.slot_count);
    for (size_t i = 0; i < old_count; i++) {
        if (old[i].text)
            *find_slot(old[i].text, old[i].length, old[i].hash) = old[i];
    }
    free(old);
}

const char *intern_n(const char *text, size_t length)
{
    if (!strings.arena)
        strings.arena = arena_new();
    if (2 * (strings.used + 1) > strings.slot_count)
        enlarge_strings();
    uint64_t hash = hash_bytes(text, length);
    Interned *slot = find_slot(text, length, hash);
    if (!slot->text) {
        char *copy = arena_alloc(strings.arena, length + 1);
        if (length > 0)
            memcpy(copy, text, length);
        *slot = (Interned){.text = copy, .length = length, .hash = hash};
        strings.used++;
    }
    return slot->text;
}

const char *intern(const char *text)
{
    return intern_n(text, strlen(text));
}

// FNV-1a, with a final mix so that the low bits of short keys are good enough for a table.
uint64_t hash_bytes(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    uint64_t hash = 0xcbf29ce484222325u ^ size;
    for (; size >= 8; bytes += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;    // high bits reach the low ones of the next word
    }
    for (; size > 0; bytes++, size--)
        hash = (hash ^ *bytes) * 0x100000001b3u;
    hash ^= hash >> 32;
    hash *= 0x9e3779b97f4a7c15u;
    return hash ^ (hash >> 29);
}

// ---- arrays ----

void *grow_array(void *items, size_t *capacity, size_t count, size_t element_size)
{
    if (count < *capacity)
        return items;
    size_t wanted = *capacity ? *capacity : 8;
    while (wanted <= count) {
        if (wanted > SIZE_MAX / 2)
            out_of_memory(SIZE_MAX);
        wanted *= 2;
    }
    if (wanted > SIZE_MAX / element_size)
        out_of_memory(SIZE_MAX);
    *capacity = wanted;
    return checked(realloc(items, wanted * element_size), wanted * element_size);
}

void bug_at(const char *file, int line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: internal error: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}
