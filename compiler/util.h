// Arena memory, interned strings, growing arrays: what every pass of the compiler stands on.
//
// One arena lives as long as a compilation; nothing in it is freed before. Strings that were
// interned are equal exactly when their pointers are.
#ifndef PVDMC_UTIL_H
#define PVDMC_UTIL_H

#include <stddef.h>
#include <stdint.h>

typedef struct Arena Arena;

Arena *arena_new(void);
// For tables that stay empty for the most part: what is never touched costs nothing.
Arena *arena_new_sparse(void);
void arena_free(Arena *arena);
void *arena_alloc(Arena *arena, size_t size);  // zeroed, 16-byte aligned; never NULL
char *arena_printf(Arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));
void *arena_copy(Arena *arena, const void *data, size_t size);

const char *intern(const char *text);                    // lives until the process ends
const char *intern_n(const char *text, size_t length);

uint64_t hash_bytes(const void *data, size_t size);

// Makes room for one more element of a malloc'ed array: grow(&items, &capacity, count, size).
void *grow_array(void *items, size_t *capacity, size_t count, size_t element_size);

// run(context, i) for each i < count, several at once; returns when all are done (parallel.c).
void in_parallel(uint32_t count, void (*run)(void *context, uint32_t index), void *context);

// A broken invariant of the compiler: says where, and aborts.
_Noreturn void bug_at(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#define bug(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)

#endif
