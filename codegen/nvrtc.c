/* NVRTC by dlopen: finds the library, declares the few prototypes it needs, compiles in parallel.
 *
 * Places, in order: $PVDM_NVRTC (the library, or a folder with it), a toolkit ($CUDA_HOME,
 * $CUDA_PATH, /usr/local/cuda*), the wheels of PyPI (nvidia/cu13 or nvidia/cuda_nvrtc in the
 * site-packages of $VIRTUAL_ENV, of the user and of the system), and last the dynamic loader's own
 * path. The wheels' NVRTC does not find its builtins library by itself, so that one is opened
 * first, by its path, from the same folder. NVRTC is thread-safe: a job a thread, each with a
 * program of its own. A job with an older one follows it in the same thread.
 */
#include <assert.h>
#include <dlfcn.h>
#include <glob.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "codegen/nvrtc.h"

enum { MOST_PATH = 4096, PATH_BYTES = MOST_PATH + 64 }; // of a folder; of a pattern in it
typedef struct NvrtcProgram NvrtcProgram;               // _nvrtcProgram of the library
enum { NVRTC_SUCCESS = 0 };

static struct {
    void *library;
    int (*version)(int *major, int *minor);
    const char *(*error_string)(int status);
    int (*create)(NvrtcProgram **program, const char *text, const char *name, int headers,
                  const char *const *header_texts, const char *const *header_names);
    int (*compile)(NvrtcProgram *program, int count, const char *const *options);
    int (*destroy)(NvrtcProgram **program);
    int (*log_size)(NvrtcProgram *program, size_t *bytes);
    int (*log)(NvrtcProgram *program, char *text);
    int (*cubin_size)(NvrtcProgram *program, size_t *bytes);
    int (*cubin)(NvrtcProgram *program, char *bytes);
    int (*ptx_size)(NvrtcProgram *program, size_t *bytes);
    int (*ptx)(NvrtcProgram *program, char *text);
} nvrtc;

/* ---- finding it ---- */

static const char *const roots[] = {
    "$CUDA_HOME/lib64",
    "$CUDA_HOME/lib",
    "$CUDA_PATH/lib64",
    "$CUDA_PATH/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-*/lib64",
    "$VIRTUAL_ENV/lib/python3*/site-packages/nvidia/cu*/lib",
    "$VIRTUAL_ENV/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib",
    "$HOME/.local/lib/python3*/site-packages/nvidia/cu*/lib",
    "$HOME/.local/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib",
    "/usr/local/lib/python3*/*-packages/nvidia/cu*/lib",
    "/usr/local/lib/python3*/*-packages/nvidia/cuda_nvrtc/lib",
    "/usr/lib/python3/dist-packages/nvidia/cu*/lib",
};

static bool resolve(void)
{
    struct {
        const char *name;
        void *pointer;
    } symbols[] = {
        {"nvrtcVersion", &nvrtc.version},        {"nvrtcGetErrorString", &nvrtc.error_string},
        {"nvrtcCreateProgram", &nvrtc.create},   {"nvrtcCompileProgram", &nvrtc.compile},
        {"nvrtcDestroyProgram", &nvrtc.destroy}, {"nvrtcGetProgramLogSize", &nvrtc.log_size},
        {"nvrtcGetProgramLog", &nvrtc.log},      {"nvrtcGetCUBINSize", &nvrtc.cubin_size},
        {"nvrtcGetCUBIN", &nvrtc.cubin},         {"nvrtcGetPTXSize", &nvrtc.ptx_size},
        {"nvrtcGetPTX", &nvrtc.ptx}};
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(nvrtc.library, symbols[i].name);
        if (!symbol)
            return false;
        memcpy(symbols[i].pointer, &symbol, sizeof symbol);
    }
    return true;
}

static bool open_library(const char *path)
{
    nvrtc.library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!nvrtc.library)
        return false;
    if (resolve())
        return true;
    dlclose(nvrtc.library);
    nvrtc.library = NULL;
    return false;
}

// Opens every file of a pattern, newest name first, until one is a library; `what` opens one.
static bool open_glob(const char *pattern, bool (*what)(const char *path))
{
    glob_t found;
    bool opened = false;
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = found.gl_pathc; i > 0 && !opened; i--)
            opened = what(found.gl_pathv[i - 1]);
    globfree(&found);
    return opened;
}

static bool open_builtins(const char *path)
{
    return !strstr(path, ".alt.") && dlopen(path, RTLD_NOW | RTLD_GLOBAL) != NULL;
}

static bool open_beside_builtins(const char *path)
{
    char pattern[PATH_BYTES];
    const char *slash = strrchr(path, '/');
    if (strstr(path, ".alt.") || !slash)
        return false;
    snprintf(pattern, sizeof pattern, "%.*s/libnvrtc-builtins.so*", (int)(slash - path), path);
    open_glob(pattern, open_builtins);
    return open_library(path);
}

static bool open_folder(const char *folder)
{
    char pattern[PATH_BYTES];
    snprintf(pattern, sizeof pattern, "%s/libnvrtc.so*", folder);
    return open_glob(pattern, open_beside_builtins);
}

// Replaces a leading $NAME; false if the variable is not set.
static bool expand(const char *root, char *path, size_t size)
{
    char name[32];
    if (root[0] != '$')
        return snprintf(path, size, "%s", root) < (int)size;
    size_t length = strcspn(root + 1, "/");
    snprintf(name, sizeof name, "%.*s", (int)length, root + 1);
    const char *value = getenv(name);
    return value && *value && snprintf(path, size, "%s%s", value, root + 1 + length) < (int)size;
}

static bool find_library(void)
{
    static const char *const sonames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    const char *given = getenv("PVDM_NVRTC");
    char path[MOST_PATH];
    if (given && *given)
        return open_folder(given) || open_beside_builtins(given);
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++)
        if (expand(roots[i], path, sizeof path) && open_folder(path))
            return true;
    for (size_t i = 0; i < sizeof sonames / sizeof *sonames; i++)
        if (open_library(sonames[i]))
            return true;
    return false;
}

const char *nvrtc_open(void)
{
    if (nvrtc.library || find_library())
        return NULL;
    if (getenv("PVDM_NVRTC"))
        return "NVRTC is not where the environment variable PVDM_NVRTC says";
    return "NVRTC was not found: neither in a CUDA toolkit nor in Python's packages; install a "
           "toolkit, or run: pip install 'nvidia-cuda-nvrtc==13.0.*' (PVDM_NVRTC may name a "
           "folder)";
}

void nvrtc_version(int *major, int *minor)
{
    *major = *minor = 0;
    nvrtc.version(major, minor);
}

/* ---- compiling ---- */

enum { MOST_OPTIONS = 48, MOST_HEADERS = 64 };

static void *allocate(size_t bytes)
{
    void *memory = calloc(bytes, 1);
    if (!memory) {
        fprintf(stderr, "pvdmc: out of memory\n");
        exit(3);
    }
    return memory;
}

static bool take_ptx(NvrtcProgram *program, NvrtcJob *job)
{
    if (nvrtc.ptx_size(program, &job->ptx_bytes) != NVRTC_SUCCESS || job->ptx_bytes == 0)
        return false;
    job->ptx = allocate(job->ptx_bytes);
    return nvrtc.ptx(program, job->ptx) == NVRTC_SUCCESS;
}

static bool take_cubin(NvrtcProgram *program, NvrtcJob *job)
{
    if (nvrtc.cubin_size(program, &job->cubin_bytes) != NVRTC_SUCCESS || job->cubin_bytes == 0)
        return false;
    job->cubin = allocate(job->cubin_bytes);
    return nvrtc.cubin(program, job->cubin) == NVRTC_SUCCESS;
}

static void compile_program(NvrtcProgram *program, NvrtcJob *job)
{
    char arch[64];
    const char *options[MOST_OPTIONS] = {arch,
                                         "--std=c++17",
                                         "-default-device",
                                         "--ptxas-options=-v",
                                         "--ptxas-options=--warn-on-spills",
                                         "--ptxas-options=--warn-on-local-memory-usage"};
    int count = 6, major, minor;
    size_t bytes = 0;
    nvrtc_version(&major, &minor);
    if (major >= 13) // without declarations of textures, halves and the like: some ms a program
        options[count++] = "-minimal";
    snprintf(arch, sizeof arch, "--gpu-architecture=%s", job->arch);
    for (int i = 0; job->options && job->options[i]; i++) {
        assert(count < MOST_OPTIONS);
        options[count++] = job->options[i];
    }
    int status = nvrtc.compile(program, count, options);
    if (nvrtc.log_size(program, &bytes) == NVRTC_SUCCESS && bytes) {
        job->log = allocate(bytes + 1);
        nvrtc.log(program, job->log);
    }
    if (status != NVRTC_SUCCESS)
        return;
    job->done = (!job->wants_ptx || take_ptx(program, job)) &&
                (strncmp(job->arch, "compute_", 8) == 0 || take_cubin(program, job));
}

static void compile_text(NvrtcJob *job, const char *program_text)
{
    NvrtcProgram *program = NULL;
    const char *texts[MOST_HEADERS], *names[MOST_HEADERS];
    assert(job->header_count <= MOST_HEADERS);
    for (int i = 0; i < job->header_count; i++) {
        texts[i] = job->headers[i].text;
        names[i] = job->headers[i].name;
    }
    int status = nvrtc.create(&program, program_text, job->name, job->header_count, texts, names);
    if (status == NVRTC_SUCCESS) {
        compile_program(program, job);
        nvrtc.destroy(&program);
    }
    if (!job->log) {
        const char *text = status == NVRTC_SUCCESS ? "" : nvrtc.error_string(status);
        job->log = allocate(strlen(text) + 1);
        strcpy(job->log, text);
    }
}

// From the PTX of the older job. What cannot be, or warns, is left to the text.
static void assemble(NvrtcJob *job)
{
    const char *ptx = job->older && job->older->done ? job->older->ptx : job->older_ptx;
    char *text = ptx ? ptx_program(ptx) : NULL;
    if (!text)
        return;
    compile_text(job, text);
    free(text);
    job->assembled = job->done && !nvrtc_log_warns(job->log);
    if (!job->assembled)
        nvrtc_free_job(job);
}

static void compile_job(NvrtcJob *job)
{
    struct timespec start, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    assemble(job);
    if (!job->assembled)
        compile_text(job, job->text);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    job->seconds =
        (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}

typedef struct Queue {
    NvrtcJob *jobs;
    int count;
    NvrtcJob **order; // those without an older one, the heaviest first
    int order_count;
    atomic_int next;
} Queue;

static int compare_weights(const void *x, const void *y)
{
    const NvrtcJob *a = *(NvrtcJob *const *)x, *b = *(NvrtcJob *const *)y;
    return a->weight != b->weight ? (a->weight > b->weight ? -1 : 1) : (a > b) - (a < b);
}

static void put_in_order(Queue *queue)
{
    queue->order = allocate(((size_t)queue->count + 1) * sizeof *queue->order);
    for (int i = 0; i < queue->count; i++)
        if (!queue->jobs[i].older)
            queue->order[queue->order_count++] = &queue->jobs[i];
    qsort(queue->order, (size_t)queue->order_count, sizeof *queue->order, compare_weights);
}

// A job, and those that wait for it.
static void compile_chain(const Queue *queue, NvrtcJob *job)
{
    compile_job(job);
    for (int i = 0; i < queue->count; i++)
        if (queue->jobs[i].older == job)
            compile_chain(queue, &queue->jobs[i]);
}

static void *work(void *argument)
{
    Queue *queue = argument;
    for (;;) {
        int i = atomic_fetch_add(&queue->next, 1);
        if (i >= queue->order_count)
            return NULL;
        compile_chain(queue, queue->order[i]);
    }
}

// NVRTC allocates and frees tens of MB a program: what a program frees, the next one gets, and the
// system is not asked to clear it each time.
static void keep_memory(void)
{
    enum { LARGE = 32 << 20, MOST = 1 << 30 };
    mallopt(M_MMAP_THRESHOLD, LARGE);
    mallopt(M_TRIM_THRESHOLD, MOST);
    mallopt(M_TOP_PAD, LARGE);
}

bool nvrtc_compile(NvrtcJob *jobs, int count, int threads)
{
    enum { MOST_THREADS = 64 };
    pthread_t others[MOST_THREADS];
    Queue queue = {.jobs = jobs, .count = count};
    int started = 0;
    bool all = true;
    if (nvrtc_open() != NULL)
        return false;
    keep_memory();
    put_in_order(&queue);
    while (started + 1 < threads && started + 1 < count && started < MOST_THREADS &&
           pthread_create(&others[started], NULL, work, &queue) == 0)
        started++;
    work(&queue);
    for (int i = 0; i < started; i++)
        pthread_join(others[i], NULL);
    free(queue.order);
    for (int i = 0; i < count; i++)
        all = all && jobs[i].done;
    return all;
}

// The value of "N bytes WHAT" in a line of ptxas' report is not zero.
static bool reports_bytes(const char *log, const char *what)
{
    for (const char *at = log; (at = strstr(at, what)) != NULL; at++) {
        const char *digit = at;
        while (digit > log && digit[-1] >= '0' && digit[-1] <= '9')
            digit--;
        if (digit < at && atoi(digit) != 0)
            return true;
    }
    return false;
}

bool nvrtc_log_warns(const char *log)
{
    return strstr(log, "warning") || strstr(log, "Warning") || strstr(log, "C7508") ||
           strstr(log, "C7510") || reports_bytes(log, " bytes stack frame") ||
           reports_bytes(log, " bytes spill stores") || reports_bytes(log, " bytes spill loads");
}

void nvrtc_free_job(NvrtcJob *job)
{
    free(job->log);
    free(job->cubin);
    free(job->ptx);
    job->log = NULL;
    job->ptx = NULL;
    job->cubin = NULL;
    job->done = false;
}
