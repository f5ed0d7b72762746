// Compiled objects, kept from one run of pvdmc to the next.
//
// The kernel library is the same C for every model, and much of the emitted text is that of an
// earlier run. Objects are stored under a hash of all that they depend on: the source and every
// header it may include, the compiler's words and its --version, and, since -march=native is among
// the words, the processor. They lie in
// $XDG_CACHE_HOME/pvdmc, or ~/.cache/pvdmc. An object is put there by renaming a finished file, so
// several compilations may run at once, and ends with a hash of its bytes, so a damaged file counts
// as none. Nothing here fails: without a usable folder everything is compiled. Objects that nothing
// used for a month are removed.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "codegen/codegen.h"

enum { MAX_HEADERS = 64, MONTH = 30 * 24 * 3600 };

struct Cache {
    Arena *arena;
    const char *folder;
    uint64_t common;           // hash of what all objects depend on
};

// ---- files ----

char *read_whole(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *bytes = NULL;
    size_t capacity = 0, count = 0, got;
    do {
        bytes = grow_array(bytes, &capacity, count + 65536, 1);
        got = fread(bytes + count, 1, 65536, file);
        count += got;
    } while (got > 0);
    bool good = !ferror(file);
    fclose(file);
    if (!good) {
        free(bytes);
        return NULL;
    }
    bytes[count] = '\0';
    *size = count;
    return bytes;
}

// Makes a folder and those above it.
static bool make_folder(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return false;
    for (char *at = copy + 1; *at; at++)
        if (*at == '/') {
            *at = '\0';
            mkdir(copy, 0700);
            *at = '/';
        }
    mkdir(copy, 0700);
    free(copy);
    return access(path, R_OK | W_OK | X_OK) == 0;
}

static const char *choose_folder(Arena *arena)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (base && *base == '/')
        return arena_printf(arena, "%s/pvdmc", base);
    return home && *home == '/' ? arena_printf(arena, "%s/.cache/pvdmc", home) : NULL;
}

// ---- what objects depend on ----

static bool ends_with(const char *name, const char *ending)
{
    size_t length = strlen(name), tail = strlen(ending);
    return length > tail && strcmp(name + length - tail, ending) == 0;
}

static int compare_names(const void *x, const void *y)
{
    return strcmp(*(const char *const *)x, *(const char *const *)y);
}

static bool write_file(FILE *out, const char *path)
{
    size_t size;
    char *bytes = read_whole(path, &size);
    if (!bytes)
        return false;
    const char *slash = strrchr(path, '/');
    fprintf(out, "%s %zu\n", slash ? slash + 1 : path, size);
    fwrite(bytes, 1, size, out);
    free(bytes);
    return true;
}

// All headers of a folder, in the order of their names.
static bool write_headers(Arena *arena, FILE *out, const char *folder)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return false;
    const char *names[MAX_HEADERS];
    uint32_t count = 0;
    bool good = true;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (ends_with(entry->d_name, ".h")) {
            good &= count < MAX_HEADERS;
            if (good)
                names[count++] = arena_printf(arena, "%s/%s", folder, entry->d_name);
        }
    closedir(dir);
    qsort(names, count, sizeof *names, compare_names);
    for (uint32_t i = 0; good && i < count; i++)
        good = write_file(out, names[i]);
    return good;
}

bool write_compiler_version(FILE *out, const char *const *cc, uint32_t count)
{
    const char *words[8];
    uint32_t used = 0;
    while (used < count && used < 6 && cc[used][0] != '-') {   // the compiler, without its flags
        words[used] = cc[used];
        used++;
    }
    words[used] = "--version";
    words[used + 1] = NULL;
    int ends[2];
    if (pipe(ends) != 0)
        return false;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execvp(words[0], (char *const *)words);
        _exit(127);
    }
    close(ends[1]);
    char text[512];
    ssize_t got = 0, total = 0;
    while (child > 0 && ((got = read(ends[0], text, sizeof text)) > 0 ||
                         (got < 0 && errno == EINTR)))
        if (got > 0) {
            fwrite(text, 1, (size_t)got, out);
            total += got;
        }
    close(ends[0]);
    int status = 1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    return child > 0 && status == 0 && total > 0;
}

// Name and features of the first processor, which -march=native looks at.
static bool write_processor(FILE *out)
{
    size_t size;
    char *text = read_whole("/proc/cpuinfo", &size);
    if (!text)
        return false;
    char *end = strstr(text, "\n\n"), *rest = NULL;
    if (end)
        *end = '\0';
    uint32_t lines = 0;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        static const char *const wanted[] = {"vendor_id", "cpu family", "model", "stepping",
                                             "flags", "CPU ", "Features", "cache size"};
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (strncmp(line, wanted[i], strlen(wanted[i])) == 0) {
                fprintf(out, "%s\n", line);
                lines++;
                break;
            }
    }
    free(text);
    return lines > 0;
}

// The words but for the folder of headers, whose content counts instead.
static bool write_common(Arena *arena, FILE *out, const char *include, const char *const *cc,
                         uint32_t count)
{
    bool native = false;
    for (uint32_t i = 0; i < count; i++) {
        native |= strstr(cc[i], "native") != NULL;
        if (strncmp(cc[i], "-I", 2) != 0)
            fprintf(out, "%s\n", cc[i]);
    }
    return write_compiler_version(out, cc, count) && (!native || write_processor(out)) &&
           write_headers(arena, out, arena_printf(arena, "%s/codegen", include)) &&
           write_headers(arena, out, arena_printf(arena, "%s/codegen/cpu", include)) &&
           write_headers(arena, out, arena_printf(arena, "%s/runtime", include));
}

Cache *cache_open(Arena *arena, const char *include, const char *const *cc, uint32_t count)
{
    const char *folder = choose_folder(arena);
    if (!folder || !make_folder(folder))
        return NULL;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    bool good = write_common(arena, out, include, cc, count);
    good &= fclose(out) == 0;
    Cache *cache = NULL;
    if (good) {
        cache = arena_alloc(arena, sizeof *cache);
        *cache = (Cache){arena, folder, hash_bytes(text, size)};
    }
    free(text);
    return cache;
}

// ---- objects ----

// Where the object of a source lies; NULL: the source cannot be read.
static const char *object_path(const Cache *cache, const char *source)
{
    size_t size;
    char *text = read_whole(source, &size);
    if (!text)
        return NULL;
    const char *slash = strrchr(source, '/'), *name = slash ? slash + 1 : source;
    uint64_t own = hash_bytes(text, size);
    free(text);
    return arena_printf(cache->arena, "%s/%.*s-%016llx%016llx.o", cache->folder,
                        (int)strcspn(name, "."), name, (unsigned long long)cache->common,
                        (unsigned long long)own);
}

static bool write_bytes(const char *path, const void *bytes, size_t size, const uint64_t *hash)
{
    FILE *file = fopen(path, "wb");
    if (!file)
        return false;
    bool good = fwrite(bytes, 1, size, file) == size;
    if (hash)
        good &= fwrite(hash, sizeof *hash, 1, file) == 1;
    return fclose(file) == 0 && good;
}

// The bytes of an object, malloc'ed; NULL: it is not there, or damaged.
static char *read_object(const char *path, size_t *size)
{
    char *bytes = read_whole(path, size);
    uint64_t hash;
    bool good = bytes && *size >= sizeof hash;
    if (good) {
        *size -= sizeof hash;
        memcpy(&hash, bytes + *size, sizeof hash);
        good = hash == hash_bytes(bytes, *size);
    }
    if (!good) {
        free(bytes);
        return NULL;
    }
    utimensat(AT_FDCWD, path, NULL, 0);        // used today
    return bytes;
}

bool cache_fetch(const Cache *cache, const char *source, const char *object)
{
    const char *path = object_path(cache, source);
    size_t size;
    char *bytes = path ? read_object(path, &size) : NULL;
    bool good = bytes && size > 0 && write_bytes(object, bytes, size, NULL);
    free(bytes);
    return good;
}

// Removes what nothing used for a month.
static void remove_old(const Cache *cache)
{
    DIR *dir = opendir(cache->folder);
    time_t now = time(NULL);
    struct stat found;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if ((ends_with(entry->d_name, ".o") || ends_with(entry->d_name, ".tmp")) &&
            fstatat(dirfd(dir), entry->d_name, &found, 0) == 0 && now - found.st_mtime > MONTH)
            unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
}

static void write_object(const Cache *cache, const char *path, const void *bytes, size_t size)
{
    uint64_t hash = hash_bytes(bytes, size);
    const char *temporary = arena_printf(cache->arena, "%s.%ld.tmp", path, (long)getpid());
    if (!write_bytes(temporary, bytes, size, &hash) || rename(temporary, path) != 0)
        unlink(temporary);
}

void cache_store(const Cache *cache, const char *source, const char *object)
{
    const char *path = object_path(cache, source);
    size_t size;
    char *bytes = path ? read_whole(object, &size) : NULL;
    if (!bytes)
        return;
    write_object(cache, path, bytes, size);
    free(bytes);
    remove_old(cache);
}

// ---- bytes by key ----

Cache *cache_open_keyed(Arena *arena)
{
    const char *folder = choose_folder(arena);
    if (!folder || !make_folder(folder))
        return NULL;
    Cache *cache = arena_alloc(arena, sizeof *cache);
    *cache = (Cache){arena, folder, 0};
    return cache;
}

// FNV-1a: beside hash_bytes a second hash of 64 bits, independent of it.
static uint64_t second_hash(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static const char *keyed_path(const Cache *cache, const char *kind, const void *key, size_t size)
{
    return arena_printf(cache->arena, "%s/%s-%016llx%016llx.o", cache->folder, kind,
                        (unsigned long long)hash_bytes(key, size),
                        (unsigned long long)second_hash(key, size));
}

void *cache_read(const Cache *cache, const char *kind, const void *key, size_t key_size,
                 size_t *size)
{
    return read_object(keyed_path(cache, kind, key, key_size), size);
}

void cache_write(const Cache *cache, const char *kind, const void *key, size_t key_size,
                 const void *bytes, size_t size)
{
    write_object(cache, keyed_path(cache, kind, key, key_size), bytes, size);
}
