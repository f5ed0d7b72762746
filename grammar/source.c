// The files a compilation reads, and where in them a byte is.
//
// A file is read whole and stays in memory as long as the arena, for spans are offsets into it.
// File 0 stands for "no place". Lines are counted only when a message is printed, so nothing is
// kept but the text itself.
#include "grammar/ast.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_LIMIT = 16 * 1024 * 1024 };

struct Sources {
    Arena *arena;
    SourceFile *files;
    size_t count, capacity;
};

Sources *sources_new(Arena *arena)
{
    Sources *sources = arena_alloc(arena, sizeof *sources);
    sources->arena = arena;
    sources->capacity = 16;
    sources->files = arena_alloc(arena, sources->capacity * sizeof *sources->files);
    sources->count = 1;
    sources->files[0] = (SourceFile){.path = "", .text = ""};
    return sources;
}

// `text` is NUL-terminated and lives as long as the arena.
static uint32_t add_source(Sources *sources, const char *path, const char *text, size_t size)
{
    if (sources->count == sources->capacity) {
        SourceFile *more = arena_alloc(sources->arena, 2 * sources->capacity * sizeof *more);
        memcpy(more, sources->files, sources->count * sizeof *more);
        sources->files = more;
        sources->capacity *= 2;
    }
    sources->files[sources->count] = (SourceFile){.path = intern(path), .text = text, .size = size};
    return (uint32_t)sources->count++;
}

uint32_t sources_add_file(Sources *sources, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return 0;
    char *text = NULL;
    size_t size = 0, capacity = 0;
    int problem = 0;
    for (;;) {
        text = grow_array(text, &capacity, size + 4096, 1);
        size_t got = fread(text + size, 1, capacity - size - 1, file);
        size += got;
        if (ferror(file))
            problem = errno ? errno : EIO;
        else if (size > FILE_LIMIT)
            problem = EFBIG;
        if (problem || got == 0)
            break;
    }
    fclose(file);
    uint32_t index = 0;
    if (!problem) {
        text[size] = '\0';
        index = add_source(sources, path, arena_copy(sources->arena, text, size + 1), size);
    }
    free(text);
    if (problem)
        errno = problem;
    return index;
}

uint32_t sources_add_text(Sources *sources, const char *path, const char *text)
{
    size_t size = strlen(text);
    return add_source(sources, path, arena_copy(sources->arena, text, size + 1), size);
}

const SourceFile *sources_get(const Sources *sources, uint32_t file)
{
    if (file >= sources->count)
        bug("there is no file %u", file);
    return &sources->files[file];
}

uint32_t sources_count(const Sources *sources)
{
    return (uint32_t)sources->count;
}

Arena *sources_arena(const Sources *sources)
{
    return sources->arena;
}

void sources_place(const Sources *sources, uint32_t file, uint32_t offset, uint32_t *line,
                   uint32_t *column)
{
    const SourceFile *source = sources_get(sources, file);
    size_t end = offset < source->size ? offset : source->size;
    *line = 1;
    *column = 1;
    for (size_t i = 0; i < end; i++) {
        unsigned char byte = (unsigned char)source->text[i];
        if (byte == '\n') {
            *line += 1;
            *column = 1;
        } else if ((byte & 0xc0) != 0x80) { // not the middle of a UTF-8 character
            *column += 1;
        }
    }
}
