// How much memory there is. Three bounds are read, and the least of them counts: MemAvailable of
// /proc/meminfo; for every control group from this process's own up to the root, its limit less its
// use (its inactive file cache does not count as used, since the kernel gives that back); and
// RLIMIT_AS less the address space in use. What is not readable is no bound.
#include "runtime/memory.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/file.h"

// The number after `key` in a file of "key number" lines, or the first number when key is NULL;
// -1 when there is none ("max" is none).
static int64_t read_number(const char *path, const char *key)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    char line[256];
    int64_t number = -1;
    size_t length = key ? strlen(key) : 0;
    while (number < 0 && fgets(line, sizeof line, file)) {
        if (key && strncmp(line, key, length) != 0)
            continue;
        char *end;
        long long value = strtoll(line + length, &end, 10);
        if (end != line + length)
            number = value;
        if (!key)
            break;
    }
    fclose(file);
    return number;
}

static void lower(PvMemoryFree *best, int64_t bytes, const char *limit)
{
    if (bytes < 0)
        bytes = 0;
    if (bytes < best->bytes)
        *best = (PvMemoryFree){bytes, limit};
}

// A number from a file of a folder: read_number.
static int64_t read_in(const char *folder, const char *name, const char *key)
{
    char *path = pv_join(folder, name);
    int64_t number = read_number(path, key);
    free(path);
    return number;
}

// One control group's folder: its limit less its use.
static void group_free(const char *folder, bool v2, PvMemoryFree *best)
{
    int64_t limit = read_in(folder, v2 ? "memory.max" : "memory.limit_in_bytes", NULL);
    int64_t used = read_in(folder, v2 ? "memory.current" : "memory.usage_in_bytes", NULL);
    if (limit < 0 || limit >= INT64_MAX / 2 || used < 0)
        return;
    int64_t cache = read_in(folder, "memory.stat", v2 ? "inactive_file " : "total_inactive_file ");
    lower(best, limit - used + (cache > 0 ? cache : 0), "left in this container");
}

// Walks from the group named in /proc/self/cgroup up to the root of its hierarchy.
static void groups_free(PvMemoryFree *best)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file)
        return;
    char line[PATH_MAX];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        bool v2 = controllers[1] == 0;
        if (!v2 && !strstr(controllers + 1, "memory"))
            continue;
        for (;;) {
            char *folder = pv_printf("/sys/fs/cgroup%s%s", v2 ? "" : "/memory", group);
            group_free(folder, v2, best);
            free(folder);
            char *slash = strrchr(group, '/');
            if (!slash || !*group)
                break;
            *slash = 0;
        }
    }
    fclose(file);
}

PvMemoryFree pv_memory_free(void)
{
    PvMemoryFree best = {INT64_MAX, "free on this machine"};
    int64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    if (kib >= 0)
        best.bytes = kib * 1024;
    groups_free(&best);
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        int64_t pages = read_number("/proc/self/statm", NULL);
        int64_t used = pages > 0 ? pages * sysconf(_SC_PAGESIZE) : 0;
        lower(&best, (int64_t)limit.rlim_cur - used,
              "left under the address space limit (ulimit -v)");
    }
    return best;
}

int64_t pv_memory_sum(const PvMemoryItem *items, uint32_t count, int64_t batch)
{
    int64_t sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += items[i].fixed + items[i].per_batch * batch;
    return sum;
}

bool pv_memory_check(const char *command, const PvMemoryItem *items, uint32_t count, int64_t batch,
                     PvError *error)
{
    return pv_memory_check_in(pv_memory_free(), command, items, count, batch, error);
}

bool pv_memory_check_in(PvMemoryFree space, const char *command, const PvMemoryItem *items,
                        uint32_t count, int64_t batch, PvError *error)
{
    int64_t need = pv_memory_sum(items, count, batch);
    if (need <= space.bytes)
        return true;
    int64_t fixed = pv_memory_sum(items, count, 0);
    int64_t per_batch = pv_memory_sum(items, count, 1) - fixed;
    char text[32], text_free[32];
    pv_error(error, PV_MACHINE, "%s needs %s at batch %lld; %s are %s", command,
             pv_size_text(text, (double)need), (long long)batch,
             pv_size_text(text_free, (double)space.bytes), space.limit);
    if (per_batch > 0 && fixed + per_batch <= space.bytes)
        pv_error_append(error, "; batch %lld fits", (long long)((space.bytes - fixed) / per_batch));
    else
        pv_error_append(error, "; no batch fits (%s at batch 1)",
                        pv_size_text(text, (double)(fixed + per_batch)));
    for (uint32_t i = 0; i < count; i++) {
        int64_t bytes = items[i].fixed + items[i].per_batch * batch;
        if (bytes > 0)
            pv_error_append(error, "\n  %-12s %s", items[i].what,
                            pv_size_text(text, (double)bytes));
    }
    return false;
}
