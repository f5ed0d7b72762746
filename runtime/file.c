// Files: atomic replacement, mappings, folders. See file.h.
#include "runtime/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// ---- names ----

char *pv_join(const char *folder, const char *name)
{
    size_t length = strlen(folder);
    bool slash = length > 0 && folder[length - 1] == '/';
    return pv_printf("%s%s%s", folder, slash || length == 0 ? "" : "/", name);
}

const char *pv_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool pv_has_ending(const char *path, const char *ending)
{
    size_t length = strlen(path), tail = strlen(ending);
    return length >= tail && !strcasecmp(path + length - tail, ending);
}

// The folder a path lies in, malloc'ed.
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return pv_strdup(".");
    if (slash == path)
        return pv_strdup("/");
    return pv_printf("%.*s", (int)(slash - path), path);
}

// ---- writing ----

enum { BUFFER_SIZE = 1 << 20 };

struct PvFile {
    char *path, *temporary;
    int fd;
    int failed;  // errno of the first failure, or 0
    size_t held; // bytes in the buffer
    uint8_t *buffer;
};

PvFile *pv_file_create(const char *path, PvError *error)
{
    PvFile *file = pv_try_alloc(sizeof *file, "a file", error);
    if (!file)
        return NULL;
    file->buffer = pv_try_alloc(BUFFER_SIZE, "a file's buffer", error);
    if (!file->buffer) {
        free(file);
        return NULL;
    }
    file->path = pv_strdup(path);
    char *folder = folder_of(path);
    char *hidden = pv_printf(".%s.%ld.tmp", pv_base_name(path), (long)getpid());
    file->temporary = pv_join(folder, hidden);
    free(folder);
    free(hidden);
    if (pv_is_folder(path)) {
        errno = EISDIR;
        file->fd = -1;
    } else {
        file->fd = open(file->temporary, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0666);
    }
    if (file->fd < 0) {
        pv_error_errno(error, "cannot write %s", path);
        free(file->temporary);
        file->temporary = NULL;
        pv_file_abandon(file);
        return NULL;
    }
    return file;
}

// Writes all of it at the present offset, whatever the system takes at a time.
static void write_all(PvFile *file, const uint8_t *data, size_t size)
{
    while (size > 0 && !file->failed) {
        ssize_t done = write(file->fd, data, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            file->failed = done < 0 ? errno : ENOSPC;
            return;
        }
        data += done;
        size -= (size_t)done;
    }
}

static void flush_buffer(PvFile *file)
{
    write_all(file, file->buffer, file->held);
    file->held = 0;
}

bool pv_file_write(PvFile *file, const void *data, size_t size)
{
    if (size >= BUFFER_SIZE - file->held)
        flush_buffer(file);
    if (size >= BUFFER_SIZE) {
        write_all(file, data, size);
    } else if (size > 0) {
        memcpy(file->buffer + file->held, data, size);
        file->held += size;
    }
    return !file->failed;
}

bool pv_file_rewrite(PvFile *file, uint64_t offset, const void *data, size_t size)
{
    flush_buffer(file);
    const uint8_t *bytes = data;
    while (size > 0 && !file->failed) {
        ssize_t done = pwrite(file->fd, bytes, size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            file->failed = done < 0 ? errno : ENOSPC;
            break;
        }
        bytes += done;
        size -= (size_t)done;
        offset += (uint64_t)done;
    }
    return !file->failed;
}

// Makes the rename itself durable. File systems that cannot sync a folder are let off.
static void sync_folder(const char *path)
{
    char *folder = folder_of(path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(folder);
}

bool pv_file_commit(PvFile *file, PvError *error)
{
    flush_buffer(file);
    if (!file->failed && fsync(file->fd) != 0 && errno != EINVAL)
        file->failed = errno;
    if (close(file->fd) != 0 && !file->failed)
        file->failed = errno;
    file->fd = -1;
    if (!file->failed && rename(file->temporary, file->path) != 0)
        file->failed = errno;
    bool done = !file->failed;
    if (done) {
        sync_folder(file->path);
        free(file->temporary);
        file->temporary = NULL;
    } else {
        errno = file->failed;
        pv_error_errno(error, "cannot write %s", file->path);
    }
    pv_file_abandon(file);
    return done;
}

void pv_file_abandon(PvFile *file)
{
    if (!file)
        return;
    if (file->fd >= 0)
        close(file->fd);
    if (file->temporary)
        unlink(file->temporary);
    free(file->temporary);
    free(file->path);
    free(file->buffer);
    free(file);
}

bool pv_file_replace(const char *path, const void *data, size_t size, PvError *error)
{
    PvFile *file = pv_file_create(path, error);
    if (!file)
        return false;
    pv_file_write(file, data, size);
    return pv_file_commit(file, error);
}

// ---- reading ----

// Opens a regular file (not a folder, a pipe, a device) and tells its size. -1: error.
static int open_regular(const char *path, size_t *size, PvError *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) {
        pv_error_errno(error, "cannot read %s", path);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    if (!S_ISREG(status.st_mode)) {
        close(fd);
        pv_error(error, PV_WRONG, "cannot read %s: %s", path,
                 S_ISDIR(status.st_mode) ? "it is a folder" : "it is not a file");
        return -1;
    }
    *size = (size_t)status.st_size;
    return fd;
}

PvMapping *pv_mapping_open(const char *path, PvError *error)
{
    static const uint8_t nothing[1];
    size_t size;
    int fd = open_regular(path, &size, error);
    if (fd < 0)
        return NULL;
    PvMapping *mapping = pv_try_alloc(sizeof *mapping, "a mapping", error);
    if (!mapping) {
        close(fd);
        return NULL;
    }
    *mapping = (PvMapping){.refs = 1, .data = nothing, .size = size};
    if (size > 0) {
        void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            pv_error_errno(error, "cannot read %s", path);
            free(mapping);
            mapping = NULL;
        } else {
            mapping->data = data;
        }
    }
    close(fd);
    return mapping;
}

PvMapping *pv_mapping_hold(PvMapping *mapping)
{
    __atomic_add_fetch(&mapping->refs, 1, __ATOMIC_RELAXED);
    return mapping;
}

void pv_mapping_drop(void *owner)
{
    PvMapping *mapping = owner;
    if (!mapping || __atomic_sub_fetch(&mapping->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    if (mapping->size > 0)
        munmap((void *)(uintptr_t)mapping->data, mapping->size);
    free(mapping);
}

char *pv_read_file(const char *path, size_t limit, size_t *size, PvError *error)
{
    size_t expected;
    int fd = open_regular(path, &expected, error);
    if (fd < 0)
        return NULL;
    if (expected > limit) {
        char text[32];
        close(fd);
        pv_error(error, PV_WRONG, "%s is too large: more than %s", path,
                 pv_size_text(text, (double)limit));
        return NULL;
    }
    char *data = pv_try_alloc(expected + 1, path, error);
    size_t done = 0;
    while (data && done < expected) {
        ssize_t got = read(fd, data + done, expected - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            pv_error_errno(error, "cannot read %s", path);
            free(data);
            data = NULL;
        }
        if (got <= 0)
            break;
        done += (size_t)got;
    }
    close(fd);
    if (data) {
        data[done] = 0;
        *size = done;
    }
    return data;
}

// ---- folders ----

bool pv_is_folder(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

bool pv_path_exists(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0;
}

bool pv_make_folder(const char *path, PvError *error)
{
    if (path[0] == 0)
        return pv_error(error, PV_WRONG, "a folder's name is empty");
    char *part = pv_strdup(path);
    bool done = true;
    for (char *at = part + 1; done; at++) {
        if (*at != '/' && *at != 0)
            continue;
        char kept = *at;
        *at = 0;
        if (mkdir(part, 0777) != 0 && !pv_is_folder(part)) {
            pv_error_errno(error, "cannot make folder %s", part);
            done = false;
        }
        *at = kept;
        if (kept == 0)
            break;
    }
    free(part);
    return done;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool pv_list_folder(const char *path, char ***names, size_t *count, PvError *error)
{
    DIR *folder = opendir(path);
    if (!folder)
        return pv_error_errno(error, "cannot read folder %s", path);
    char **list = NULL;
    size_t capacity = 0, length = 0;
    const struct dirent *item;
    while ((item = readdir(folder))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        list = pv_grow(list, &capacity, length, sizeof *list);
        list[length++] = pv_strdup(item->d_name);
    }
    closedir(folder);
    if (length > 1)
        qsort(list, length, sizeof *list, compare_names);
    *names = list;
    *count = length;
    return true;
}

void pv_names_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}
