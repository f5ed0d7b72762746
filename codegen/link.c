// From C text to an executable, or to a shared library: runs the C compiler.
//
// The emitted files and the kernel library are compiled at the same time, as many processes as
// there are processors, with the same flags (objects may be there from an earlier run, see
// cache.c); then all is linked with the runtime and the static
// libraries that it stands on, so that the result needs libc and nothing else. A shared library
// shows the names of runtime/library.h alone, and needs those libraries as shared ones: the static
// ones are not compiled to be loaded anywhere. Headers, kernel sources and libpvdm are found beside
// pvdmc: in include/ and lib/. The result replaces an older one in one step, when it is complete.
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codegen/codegen.h"
#include "codegen/command.h"

#ifndef PVDM_STATIC_LIBS
#define PVDM_STATIC_LIBS ""
#define PVDM_SHARED_LIBS ""
#endif

enum { MAX_LIBRARY = 64 };

// From a source to an object.
typedef struct {
    Command command;
    const char *source, *object;
    bool keep;                 // the object may be that of an earlier run
    bool done;                 // it is there
} Job;

typedef struct {
    Codegen *cg;
    const LinkOptions *options;
    const char *home;          // folder that holds include/ and lib/
    const char *folder;        // of temporary files
    const char *runtime;       // libpvdm32.a or libpvdm64.a
    Command cc;                // the compiler and its fixed flags
    Job *jobs;
    uint32_t job_count, job_room;
    Cache *cache;              // or NULL
} Link;

static int run_jobs(const Link *link)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t most = processors > 1 ? (uint32_t)processors : 2, running = 0, next = 0;
    int worst = 0;
    while (running > 0 || (next < link->job_count && worst == 0)) {
        if (next < link->job_count && link->jobs[next].done) {
            next++;
            continue;
        }
        if (next < link->job_count && running < most && worst == 0) {
            if (command_start(&link->jobs[next++].command, link->options->verbose) < 0)
                worst = 3;
            else
                running++;
            continue;
        }
        int result = command_wait();
        running--;
        worst = result > worst ? result : worst;
    }
    return worst;
}

// ---- what is compiled ----

const char *find_home(Arena *arena)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0)
        return NULL;
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (!slash)
        return NULL;
    *slash = '\0';
    const char *home = arena_printf(arena, "%s", path);
    const char *up = arena_printf(arena, "%s/..", path);
    struct stat found;
    if (stat(arena_printf(arena, "%s/include/runtime/pvdm.h", home), &found) == 0)
        return home;
    return stat(arena_printf(arena, "%s/include/runtime/pvdm.h", up), &found) == 0 ? up : NULL;
}

static void set_flags(Link *link)
{
    Arena *arena = link->cg->arena;
    const char *cc = getenv("CC");
    command_add_words(arena, &link->cc, cc && *cc ? cc : "cc", " ");
    command_add_words(arena, &link->cc, "-std=gnu11 -O3 -fopenmp -ffp-contract=off "
                                        "-fno-math-errno -fno-trapping-math -w", " ");
    command_add(&link->cc, arena_printf(arena, "-march=%s", link->options->march));
    command_add(&link->cc, arena_printf(arena, "-I%s/include", link->home));
    if (link->options->real64)
        command_add(&link->cc, "-DPV_REAL64");
    if (link->options->library)
        command_add_words(arena, &link->cc, "-fPIC -fvisibility=hidden", " ");
}

static void add_job(Link *link, const char *source, bool keep)
{
    if (link->job_count == link->job_room)
        bug("more than %u files", link->job_room);
    Job *job = &link->jobs[link->job_count];
    *job = (Job){.command = link->cc, .source = source, .keep = keep && link->cache};
    job->object = arena_printf(link->cg->arena, "%s/%u.o", link->folder, link->job_count++);
    command_add(&job->command, "-c");
    command_add(&job->command, source);
    command_add(&job->command, "-o");
    command_add(&job->command, job->object);
    job->done = job->keep && cache_fetch(link->cache, source, job->object);
}

static int compare_names(const void *x, const void *y)
{
    return strcmp(*(const char *const *)x, *(const char *const *)y);
}

// The kernel library: every C file of include/codegen/cpu.
static bool add_library(Link *link)
{
    const char *folder = arena_printf(link->cg->arena, "%s/include/codegen/cpu", link->home);
    DIR *dir = opendir(folder);
    if (!dir)
        return false;
    const char *names[MAX_LIBRARY];
    uint32_t count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) && count < MAX_LIBRARY;) {
        size_t length = strlen(entry->d_name);
        if (length > 2 && strcmp(entry->d_name + length - 2, ".c") == 0)
            names[count++] = arena_printf(link->cg->arena, "%s/%s", folder, entry->d_name);
    }
    closedir(dir);
    qsort(names, count, sizeof *names, compare_names);
    for (uint32_t i = 0; i < count; i++)
        add_job(link, names[i], true);
    return true;
}

// The words of an executable behind its objects.
static void add_program_words(const Link *link, Command *command)
{
    Arena *arena = link->cg->arena;
    command_add(command, "-Wl,--start-group");
    command_add(command, link->runtime);
    command_add_words(arena, command, PVDM_STATIC_LIBS, ":");
    command_add_words(arena, command, "-l:libgomp.a -Wl,--end-group -static-libgcc -rdynamic -lm "
                                      "-ldl -lpthread -no-pie", " ");
}

// The words of a shared library. False: a file of them cannot be written.
static bool add_library_words(const Link *link, Command *command)
{
    Arena *arena = link->cg->arena;
    const char *names = arena_printf(arena, "%s/names", link->folder);
    FILE *file = fopen(names, "w");
    if (!file)
        return false;
    fputs("{ global: pvdm_*; local: *; };\n", file);
    if (fclose(file) != 0)
        return false;
    const char *output = link->options->output, *slash = strrchr(output, '/');
    command_add_words(arena, command, "-shared -Wl,-z,defs -Wl,-u,pvdm_open -Wl,--as-needed", " ");
    command_add(command, arena_printf(arena, "-Wl,--version-script=%s", names));
    command_add(command, arena_printf(arena, "-Wl,-soname,%s", slash ? slash + 1 : output));
    command_add(command, link->runtime);
    command_add_words(arena, command, PVDM_SHARED_LIBS, ":");
    command_add_words(arena, command, "-fopenmp -static-libgcc -lm -ldl -lpthread", " ");
    return true;
}

static int link_objects(Link *link, const char *output)
{
    Arena *arena = link->cg->arena;
    Command command = {.count = 0};
    const char *cc = getenv("CC");
    command_add_words(arena, &command, cc && *cc ? cc : "cc", " ");
    command_add(&command, "-o");
    command_add(&command, output);
    for (uint32_t i = 0; i < link->job_count; i++)
        command_add(&command, link->jobs[i].object);
    command_add(&command, "-Wl,-z,noexecstack");
    link->runtime = arena_printf(arena, "%s/lib/libpvdm%s.a", link->home,
                                 link->options->real64 ? "64" : "32");
    if (!link->options->library)
        add_program_words(link, &command);
    else if (!add_library_words(link, &command)) {
        fprintf(stderr, "pvdmc: error: cannot write to %s: %s\n", link->folder, strerror(errno));
        return 3;
    }
    if (command_start(&command, link->options->verbose) < 0)
        return 3;
    return command_wait();
}

static void remove_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(folder);
}

static int build(Link *link)
{
    Arena *arena = link->cg->arena;
    CFiles files = {.count = 0};
    int status =
        wants_cuda(link->cg) ? build_cuda(link->cg, link->home, link->folder, link->options) : 0;
    if (status != 0)
        return status;
    if (!emit_files(link->cg, link->folder, &files)) {
        fprintf(stderr, "pvdmc: error: cannot write to %s: %s\n", link->folder, strerror(errno));
        return 3;
    }
    set_flags(link);
    if (link->options->cache)
        link->cache = cache_open(arena, arena_printf(arena, "%s/include", link->home),
                                 link->cc.words, link->cc.count);
    link->job_room = files.count + MAX_LIBRARY + 1;
    link->jobs = arena_alloc(arena, link->job_room * sizeof *link->jobs);
    add_job(link, files.bytes, false);
    for (uint32_t i = 0; i < files.count; i++)
        add_job(link, files.paths[i], true);
    if (link->cg->targets.cpu && !add_library(link)) {
        fprintf(stderr, "pvdmc: error: the kernel library is not in %s/include/codegen/cpu\n",
                link->home);
        return 3;
    }
    const char *output = link->options->output;
    const char *temporary = arena_printf(arena, "%s.%ld.tmp", output, (long)getpid());
    FILE *probe = fopen(temporary, "w");       // before the compiler's work, not after it
    if (!probe) {
        fprintf(stderr, "pvdmc: error: cannot write %s: %s\n", output, strerror(errno));
        return 1;
    }
    fclose(probe);
    int result = run_jobs(link);
    if (result == 0)
        result = link_objects(link, temporary);
    for (uint32_t i = 0; result == 0 && i < link->job_count; i++)
        if (link->jobs[i].keep && !link->jobs[i].done)
            cache_store(link->cache, link->jobs[i].source, link->jobs[i].object);
    if (result == 0 && rename(temporary, output) != 0) {
        fprintf(stderr, "pvdmc: error: cannot write %s: %s\n", output, strerror(errno));
        result = 1;
    } else if (result == 1) {
        fprintf(stderr, "pvdmc: error: the C compiler failed (its messages are above)\n");
    }
    if (result != 0)
        unlink(temporary);
    return result;
}

int link_executable(Codegen *cg, const LinkOptions *options)
{
    Link *link = arena_alloc(cg->arena, sizeof *link);
    link->cg = cg;
    link->options = options;
    link->home = find_home(cg->arena);
    if (!link->home) {
        fprintf(stderr, "pvdmc: error: include/runtime/pvdm.h is not beside pvdmc: is the "
                        "installation complete?\n");
        return 3;
    }
    const char *temporary = getenv("TMPDIR");
    char *folder = arena_printf(cg->arena, "%s/pvdmc-XXXXXX",
                                temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) {
        fprintf(stderr, "pvdmc: error: cannot make a folder in %s: %s\n",
                temporary && *temporary ? temporary : "/tmp", strerror(errno));
        return 3;
    }
    link->folder = folder;
    int result = build(link);
    remove_folder(folder);
    return result;
}
