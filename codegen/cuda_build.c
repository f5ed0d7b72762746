// Programs of CUDA kernels and their images: NVRTC for GPUs, the C++ compiler for the emulator.
//
// Each program becomes one image for each architecture. NVRTC compiles in parallel threads, and
// gives PTX of the oldest architecture asked for along with its cubin, from which it assembles the
// images of the others (ptx.c: under NVRTC 13.0 the same images); the C++ compiler runs in
// parallel processes and makes a shared object that the emulator opens. Images come from the cache
// where the same text was compiled before: the key is the program with all that it includes, the
// options and the compiler's version.
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "codegen/command.h"
#include "codegen/cuda_build.h"

typedef struct {
    Codegen *cg;
    const LinkOptions *options;
    const char *home, *folder;
    CudaProgram *programs;
    uint32_t count;
    Cache *cache;              // or NULL
} Build;

// A program for one architecture.
typedef struct {
    const CudaProgram *program;
    CudaImage image;           // offset and size are set last
    const char *key;
    size_t key_size;
    NvrtcJob *job;             // NVRTC: that makes it; NULL: it is there
    void *bytes;               // malloc'ed
    size_t size;
} Item;

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int processors(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 1 ? (int)count : 2;
}

static void set_key(const Build *build, Item *item, const char *with)
{
    Arena *arena = build->cg->arena;
    size_t size;
    const char *text = cuda_program_key(arena, item->program, &size);
    size_t first = strlen(with) + 1;
    char *key = arena_alloc(arena, first + size);
    memcpy(key, with, first);
    memcpy(key + first, text, size);
    item->key = key;
    item->key_size = first + size;
}

static bool fetch(const Build *build, Item *item, const char *kind)
{
    if (build->cache)
        item->bytes = cache_read(build->cache, kind, item->key, item->key_size, &item->size);
    build->cg->cuda_cached += item->bytes != NULL;
    return item->bytes != NULL;
}

static void append_image(Codegen *cg, const Item *item)
{
    size_t offset = (cg->image_bytes + 63) / 64 * 64;
    cg->images = realloc(cg->images, offset + item->size + 64);
    if (!cg->images)
        bug("out of memory");
    memset(cg->images + cg->image_bytes, 0, offset - cg->image_bytes);
    memcpy(cg->images + offset, item->bytes, item->size);
    cg->image_bytes = offset + item->size;
    cg->cuda_images = grow_array(cg->cuda_images, &cg->cuda_image_capacity, cg->cuda_image_count,
                                 sizeof *cg->cuda_images);
    CudaImage *image = &cg->cuda_images[cg->cuda_image_count++];
    *image = item->image;
    image->offset = offset;
    image->size = item->size;
}

// ---- GPUs ----

static const char *arch_name(Arena *arena, const CudaArch *arch)
{
    return arena_printf(arena, "sm_%u%s", arch->number, arch->specific ? "a" : "");
}

static bool is_90a(const CudaArch *arch)
{
    return arch->number == 90 && arch->specific;
}

// The architecture whose compilation gives PTX: the oldest that is not specific; -1: a compilation
// of its own.
static int ptx_source(const Targets *targets)
{
    int best = -1;
    for (uint32_t i = 0; i < targets->arch_count; i++)
        if (!targets->archs[i].specific &&
            (best < 0 || targets->archs[i].number < targets->archs[best].number))
            best = (int)i;
    return best;
}

// An item of a program and what it is made with, for its key.
static Item *add_item(const Build *build, Item *item, const CudaProgram *program, CudaImage image,
                      const char *with)
{
    *item = (Item){.program = program, .image = image};
    set_key(build, item, with);
    fetch(build, item, image.ptx ? "ptx" : "cubin");
    return item;
}

// The job that makes a cubin or PTX of an architecture or both, unless they are there. ptx, if
// another job makes it: what this one may assemble.
static void add_job(Item *cubin, Item *text, const char *arch, const Item *ptx, NvrtcJob *jobs,
                    int *job_count)
{
    if ((!cubin || cubin->bytes) && (!text || text->bytes))
        return;
    const CudaProgram *program = (cubin ? cubin : text)->program;
    NvrtcJob *job = &jobs[(*job_count)++];
    *job = (NvrtcJob){.name = program->name,
                      .text = program->text,
                      .arch = arch,
                      .wants_ptx = text != NULL,
                      .headers = program->headers,
                      .header_count = (int)program->header_count,
                      .weight = program->weight,
                      .older = ptx ? ptx->job : NULL,
                      .older_ptx = ptx ? ptx->bytes : NULL};
    Item *made[] = {cubin, text};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        if (made[i]) {
            free(made[i]->bytes);
            made[i]->bytes = NULL;
            made[i]->job = job;
        }
}

static bool has_place(const CudaProgram *program, const CudaArch *arch)
{
    return program->places != (is_90a(arch) ? CUDA_BESIDE_90A : CUDA_ON_90A);
}

// Items of one program: PTX, with the image of its architecture, then the images for all others,
// which are assembled from it where they are newer. Those that are not in the cache get jobs.
// Returns how many items.
static uint32_t add_items(const Build *build, const CudaProgram *program, Item *items,
                          NvrtcJob *jobs, int *job_count)
{
    const Targets *targets = &build->cg->targets;
    Arena *arena = build->cg->arena;
    uint32_t count = 0, module = (uint32_t)(program - build->programs);
    int source = targets->ptx ? ptx_source(targets) : -1, major, minor;
    CudaArch base = source < 0 ? (CudaArch){80, false} : targets->archs[source];
    const char *name = source < 0 ? "compute_80" : arch_name(arena, &base);
    Item *text = NULL, *cubin = NULL;
    nvrtc_version(&major, &minor);
    if (targets->ptx && has_place(program, &base)) {
        const char *with = arena_printf(arena, "nvrtc %d.%d %s", major, minor, name);
        if (source >= 0)
            cubin = add_item(build, &items[count++], program,
                             (CudaImage){module, base.number, false, false, 0, 0}, with);
        text = add_item(build, &items[count++], program,
                        (CudaImage){module, base.number, false, true, 0, 0}, with);
        add_job(cubin, text, name, NULL, jobs, job_count);
    }
    for (uint32_t i = 0; i < targets->arch_count; i++) {
        const CudaArch *arch = &targets->archs[i];
        const Item *from = text && arch->number >= base.number ? text : NULL;
        if ((int)i == source || !has_place(program, arch))
            continue;
        const char *with = arena_printf(arena, "nvrtc %d.%d %s%s%s", major, minor,
                                        arch_name(arena, arch), from ? " of " : "",
                                        from ? name : "");
        cubin = add_item(build, &items[count++], program,
                         (CudaImage){module, arch->number, arch->specific, false, 0, 0}, with);
        add_job(cubin, NULL, arch_name(arena, arch), from, jobs, job_count);
    }
    return count;
}

// Takes what a job made, and keeps it. A program that warns is not kept, so it warns again.
static void take(const Build *build, Item *item)
{
    const NvrtcJob *job = item->job;
    item->size = item->image.ptx ? job->ptx_bytes : job->cubin_bytes;
    item->bytes = malloc(item->size);
    if (!item->bytes)
        bug("out of memory");
    memcpy(item->bytes, item->image.ptx ? job->ptx : job->cubin, item->size);
    if (build->cache && !nvrtc_log_warns(job->log))
        cache_write(build->cache, item->image.ptx ? "ptx" : "cubin", item->key, item->key_size,
                    item->bytes, item->size);
}

static int report_jobs(const Build *build, const NvrtcJob *jobs, int count)
{
    int failed = 0;
    for (int i = 0; i < count; i++) {
        if (build->options->verbose)
            fprintf(stderr, "nvrtc %s%s %.2f s %s\n", jobs[i].arch,
                    jobs[i].assembled ? " assembled" : "", jobs[i].seconds, jobs[i].name);
        bool warns = jobs[i].log && nvrtc_log_warns(jobs[i].log);
        if (!jobs[i].done || (warns && build->options->verbose))
            fprintf(stderr, "%s\n", jobs[i].log ? jobs[i].log : "");
        failed += !jobs[i].done;
        build->cg->cuda_warnings += warns;
    }
    if (failed)
        fprintf(stderr, "pvdmc: error: NVRTC failed (its messages are above)\n");
    return failed ? 1 : 0;
}

static int build_gpu(const Build *build)
{
    Codegen *cg = build->cg;
    const char *missing = nvrtc_open();
    if (missing) {
        fprintf(stderr, "pvdmc: error: %s\n", missing);
        return 3;
    }
    int major, minor;
    nvrtc_version(&major, &minor);
    cg->cuda_version = (uint32_t)(major * 1000 + minor * 10);
    size_t most = (size_t)build->count * (MAX_ARCHS + 2) + 1;
    Item *items = arena_alloc(cg->arena, most * sizeof *items);
    NvrtcJob *jobs = arena_alloc(cg->arena, most * sizeof *jobs);
    uint32_t count = 0;
    int job_count = 0;
    for (uint32_t i = 0; i < build->count; i++)
        count += add_items(build, &build->programs[i], items + count, jobs, &job_count);
    double begin = seconds_now();
    if (job_count > 0)
        nvrtc_compile(jobs, job_count, processors());
    cg->cuda_seconds = seconds_now() - begin;
    for (int i = 0; i < job_count; i++)
        cg->cuda_job_seconds += jobs[i].seconds;
    cg->cuda_jobs = (uint32_t)job_count;
    int result = report_jobs(build, jobs, job_count);
    for (uint32_t i = 0; i < count && result == 0; i++) {
        if (items[i].job)
            take(build, &items[i]);
        append_image(cg, &items[i]);
    }
    for (uint32_t i = 0; i < count; i++)
        free(items[i].bytes);
    for (int i = 0; i < job_count; i++)
        nvrtc_free_job(&jobs[i]);
    return result;
}

// ---- the emulator ----

// The C++ compiler and its flags. With PVDM_SIMT_RACE set, loads and stores are instrumented for
// the emulator's checks.
static Command simt_flags(Arena *arena)
{
    Command words = {.count = 0};
    const char *compiler = getenv("CXX"), *race = getenv("PVDM_SIMT_RACE");
    command_add_words(arena, &words, compiler && *compiler ? compiler : "c++", " ");
    command_add_words(arena, &words, "-std=c++17 -O2 -fPIC -shared -w -nodefaultlibs "
                                     "-ffp-contract=off -fno-math-errno -x c++", " ");
    if (race && *race && strcmp(race, "0") != 0)
        command_add_words(arena, &words, "-O1 -g -fsanitize=thread", " ");
    return words;
}

// What images depend on beside the program: flags, compiler, the emulator's headers.
static const char *simt_key(const Build *build, const Command *flags)
{
    static const char *const headers[] = {"cuda_words.h", "simt.h"};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        bug("out of memory");
    for (uint32_t i = 0; i < flags->count; i++)
        fprintf(out, "%s ", flags->words[i]);
    write_compiler_version(out, flags->words, flags->count);
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        char *header = read_whole(arena_printf(build->cg->arena, "%s/include/tests/simt/%s",
                                               build->home, headers[i]), &size);
        fprintf(out, "%s", header ? header : "");
        free(header);
    }
    if (fclose(out) != 0)
        bug("out of memory");
    const char *key = arena_printf(build->cg->arena, "%s", text);
    free(text);
    return key;
}

static bool write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    bool good = fputs(text, file) >= 0;
    return fclose(file) == 0 && good;
}

static pid_t start_compiler(const Build *build, const Item *item, Command words)
{
    Arena *arena = build->cg->arena;
    const char *base = arena_printf(arena, "%s/simt_%u", build->folder, item->image.module);
    const char *source = arena_printf(arena, "%s.cc", base);
    if (!write_text(source, item->program->text))
        return -1;
    const char *include = arena_printf(arena, "%s/include", build->home);
    const char *more = arena_printf(
        arena, "-I%s/codegen/cuda -I%s/codegen -I%s/tests/simt %s -o %s.so", include, include,
        include, source, base);
    command_add_words(arena, &words, more, " ");
    return command_start(&words, build->options->verbose);
}

// Compiles the items that have no bytes.
static int run_compilers(const Build *build, Item *items, const Command *flags)
{
    int running = 0, worst = 0;
    for (uint32_t next = 0; running > 0 || (next < build->count && worst == 0);) {
        if (next < build->count && worst == 0 && items[next].bytes) {
            next++;
        } else if (next < build->count && worst == 0 && running < processors()) {
            if (start_compiler(build, &items[next++], *flags) < 0)
                worst = 3;
            else
                running++;
        } else {
            int result = command_wait();
            running--;
            worst = result > worst ? result : worst;
        }
    }
    return worst;
}

static int build_simt(const Build *build)
{
    Codegen *cg = build->cg;
    Command flags = simt_flags(cg->arena);
    const char *with = simt_key(build, &flags);
    Item *items = arena_alloc(cg->arena, (build->count + 1) * sizeof *items);
    for (uint32_t i = 0; i < build->count; i++) {
        items[i] = (Item){.program = &build->programs[i],
                          .image = {i, PV_ARCH_SIMT, false, false, 0, 0}};
        set_key(build, &items[i], with);
        fetch(build, &items[i], "simt");
    }
    int result = run_compilers(build, items, &flags);
    if (result == 1)
        fprintf(stderr, "pvdmc: error: the C++ compiler failed (its messages are above)\n");
    for (uint32_t i = 0; i < build->count && result == 0; i++) {
        bool made = !items[i].bytes;
        if (made)
            items[i].bytes = read_whole(
                arena_printf(cg->arena, "%s/simt_%u.so", build->folder, i), &items[i].size);
        if (!items[i].bytes)
            return 3;
        if (made && build->cache)
            cache_write(build->cache, "simt", items[i].key, items[i].key_size, items[i].bytes,
                        items[i].size);
        append_image(cg, &items[i]);
    }
    for (uint32_t i = 0; i < build->count; i++)
        free(items[i].bytes);
    return result;
}

// ---- both ----

static void check_kernels(const Codegen *cg)
{
    for (uint32_t i = 0; i < cg->kernel_count; i++)
        if (!cg->kernels[i].cuda)
            bug("no CUDA kernel for %s", cg->kernels[i].symbol);
}

static CudaProgram *make_programs(Codegen *cg, const char *home, uint32_t *count)
{
    CudaSources *sources = arena_alloc(cg->arena, sizeof *sources);
    if (!cuda_read_sources(cg->arena, home, sources)) {
        fprintf(stderr, "pvdmc: error: no CUDA kernels in %s/include/codegen/cuda\n", home);
        return NULL;
    }
    return cuda_make_programs(cg, sources, count);
}

void print_cuda(Codegen *cg, FILE *out)
{
    uint32_t count;
    const char *home = find_home(cg->arena);
    const CudaProgram *programs = home ? make_programs(cg, home, &count) : NULL;
    for (uint32_t i = 0; programs && i < count; i++)
        fprintf(out, "// ---- %s\n%s", programs[i].name, programs[i].text);
}

int build_cuda(Codegen *cg, const char *home, const char *folder, const LinkOptions *options)
{
    Build build = {.cg = cg, .options = options, .home = home, .folder = folder};
    check_kernels(cg);
    build.programs = make_programs(cg, home, &build.count);
    if (!build.programs)
        return 3;
    if (options->cache)
        build.cache = cache_open_keyed(cg->arena);
    int result = cg->targets.cuda ? build_gpu(&build) : 0;
    if (result == 0 && cg->targets.simt)
        result = build_simt(&build);
    return result;
}

static bool alike(const CudaImage *a, const CudaImage *b)
{
    return a->arch == b->arch && a->specific == b->specific && a->ptx == b->ptx;
}

static bool is_first(const Codegen *cg, uint32_t image)
{
    uint32_t first = 0;
    while (!alike(&cg->cuda_images[first], &cg->cuda_images[image]))
        first++;
    return first == image;
}

// Of all modules' images like this one.
static void print_bytes(const Codegen *cg, const CudaImage *like)
{
    double bytes = 0;
    for (uint32_t i = 0; i < cg->cuda_image_count; i++)
        if (alike(&cg->cuda_images[i], like))
            bytes += (double)cg->cuda_images[i].size;
    if (like->arch == PV_ARCH_SIMT)
        printf("  simt %.2f MB", bytes * 1e-6);
    else
        printf("  %s_%u%s %.2f MB", like->ptx ? "compute" : "sm", like->arch,
               like->specific ? "a" : "", bytes * 1e-6);
}

void print_cuda_stats(const Codegen *cg)
{
    uint32_t emitted = 0;
    for (uint32_t i = 0; i < cg->cuda_kernel_count; i++)
        emitted += cg->cuda_kernels[i].text != NULL;
    printf("CUDA: %u kernels (%u emitted, %u of templates)", cg->cuda_kernel_count, emitted,
           cg->cuda_kernel_count - emitted);
    if (cg->cuda_image_count == 0) {
        printf("\n");
        return;
    }
    printf(" in %u modules, %u images, %.1f MB\n", cg->cuda_modules, cg->cuda_image_count,
           (double)cg->image_bytes * 1e-6);
    printf("CUDA: %u images from the cache, %u compilations in %.2f s (%.2f s of threads)\n",
           cg->cuda_cached, cg->cuda_jobs, cg->cuda_seconds, cg->cuda_job_seconds);
    printf("CUDA: bytes");
    for (uint32_t i = 0; i < cg->cuda_image_count; i++)
        if (is_first(cg, i))
            print_bytes(cg, &cg->cuda_images[i]);
    printf("\n");
}
