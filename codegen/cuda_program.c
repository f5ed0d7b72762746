// Which kernels stand together in a program, and the text of programs.
//
// A program costs the compiler its headers once, so it holds several kernels; the cache has an
// object a program, so a new kernel should leave most programs as they are. Kernels are sorted by
// template and name, and a program ends behind a kernel whose hash says so, or when it is full:
// what stands in a program depends on its neighbourhood alone. Kernels of a program are for the
// same architectures.
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/cuda_build.h"
#include "codegen/cuda_module.h"

// Of a program; one kernel in so many ends one. Templates take long, so that the longest program
// decides where there are many processors.
enum { MOST_KERNELS = 12, ENDS = 8, MOST_TEMPLATES = 6, TEMPLATE_ENDS = 4 };

// ---- sources ----

static bool is_source(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && (strcmp(dot, ".h") == 0 || strcmp(dot, ".cu") == 0);
}

static bool read_source(CudaSources *sources, const char *folder, const char *name)
{
    if (sources->count == MAX_SOURCES)
        bug("more than %d CUDA sources", MAX_SOURCES);
    size_t size;
    char *text = read_whole(arena_printf(sources->arena, "%s/%s", folder, name), &size);
    if (!text)
        return false;
    sources->files[sources->count++] =
        (NvrtcHeader){arena_printf(sources->arena, "%s", name), text};
    return true;
}

bool cuda_read_sources(Arena *arena, const char *home, CudaSources *sources)
{
    sources->arena = arena;
    sources->count = 0;
    const char *folder = arena_printf(arena, "%s/include/codegen/cuda", home);
    DIR *dir = opendir(folder);
    if (!dir)
        return false;
    bool good = read_source(sources, arena_printf(arena, "%s/include/codegen", home),
                            "kernel_args.h");
    for (struct dirent *entry; good && (entry = readdir(dir));)
        if (is_source(entry->d_name))
            good = read_source(sources, folder, entry->d_name);
    closedir(dir);
    return good;
}

static void add_includes(const CudaSources *sources, CudaProgram *program, const char *text);

static void add_include(const CudaSources *sources, CudaProgram *program, const char *name,
                        size_t length)
{
    for (uint32_t i = 0; i < program->header_count; i++)
        if (strlen(program->headers[i].name) == length &&
            memcmp(program->headers[i].name, name, length) == 0)
            return;
    for (uint32_t i = 0; i < sources->count; i++)
        if (strlen(sources->files[i].name) == length &&
            memcmp(sources->files[i].name, name, length) == 0) {
            program->headers[program->header_count++] = sources->files[i];
            add_includes(sources, program, sources->files[i].text);
            return;
        }
}

// Files that a text includes, and those that they include, in the order in which they come.
static void add_includes(const CudaSources *sources, CudaProgram *program, const char *text)
{
    static const char word[] = "#include \"";
    for (const char *at = text; (at = strstr(at, word)) != NULL;) {
        at += strlen(word);
        size_t length = strcspn(at, "\"\n");
        add_include(sources, program, at, length);
        at += length;
    }
}

// What a kernel is written in: its text, or its template with all that this includes.
static size_t weigh(const CudaSources *sources, const CudaModuleKernel *kernel)
{
    NvrtcHeader files[MAX_SOURCES];
    CudaProgram alone = {.headers = files};
    if (!kernel->file)
        return strlen(kernel->text);
    add_include(sources, &alone, kernel->file, strlen(kernel->file));
    size_t bytes = 0;
    for (uint32_t i = 0; i < alone.header_count; i++)
        bytes += strlen(files[i].text);
    return bytes;
}

// ---- programs ----

static int compare_kernels(const void *x, const void *y)
{
    const CudaKernel *a = *(const CudaKernel *const *)x, *b = *(const CudaKernel *const *)y;
    if (a->places != b->places)
        return a->places < b->places ? -1 : 1;
    int by_file =
        strcmp(a->choice.file ? a->choice.file : "", b->choice.file ? b->choice.file : "");
    return by_file ? by_file : strcmp(a->symbol, b->symbol);
}

// How many kernels from `first` on make a program.
static uint32_t cut(CudaKernel *const *order, uint32_t first, uint32_t count)
{
    for (uint32_t i = first; i < count; i++) {
        const char *symbol = order[i]->symbol;
        uint32_t so_far = i - first + 1;
        bool template = order[i]->choice.file != NULL;
        if (so_far >= (template ? MOST_TEMPLATES : MOST_KERNELS) ||
            hash_bytes(symbol, strlen(symbol)) % (template ? TEMPLATE_ENDS : ENDS) == 0 ||
            (i + 1 < count && order[i + 1]->places != order[i]->places))
            return so_far;
    }
    return count - first;
}

bool is_kernel_wanted(const Codegen *cg, const char *name)
{
    const char *word = cg->kernels_with;
    while (word) {
        const char *end = strchr(word, ',');
        size_t length = end ? (size_t)(end - word) : strlen(word);
        if (memmem(name, strlen(name), word, length))
            return true;
        word = end ? end + 1 : NULL;
    }
    return !cg->kernels_with;
}

CudaProgram *cuda_make_programs(Codegen *cg, const CudaSources *sources, uint32_t *count)
{
    uint32_t kernels = 0;
    CudaKernel **order = arena_alloc(cg->arena, (cg->cuda_kernel_count + 1) * sizeof *order);
    CudaProgram *programs = arena_alloc(cg->arena, (cg->cuda_kernel_count + 1) * sizeof *programs);
    CudaModuleKernel parts[MOST_KERNELS];
    for (uint32_t i = 0; i < cg->cuda_kernel_count; i++)
        if (is_kernel_wanted(cg, cg->cuda_kernels[i].choice.name))
            order[kernels++] = &cg->cuda_kernels[i];
    qsort(order, kernels, sizeof *order, compare_kernels);
    *count = 0;
    for (uint32_t i = 0; i < kernels;) {
        CudaProgram *program = &programs[*count];
        *program = (CudaProgram){.weight = 0};
        uint32_t size = cut(order, i, kernels);
        for (uint32_t k = 0; k < size; k++) {
            order[i + k]->module = *count;
            parts[k] = cuda_kernel_text(cg, order[i + k]);
            program->weight += weigh(sources, &parts[k]);
        }
        char *text = cuda_module_text(parts, size);
        program->name = arena_printf(cg->arena, "%s.cu", order[i]->symbol);
        program->places = order[i]->places;
        program->text = arena_copy(cg->arena, text, strlen(text) + 1);
        free(text);
        program->headers =
            arena_alloc(cg->arena, (sources->count + 1) * sizeof *program->headers);
        add_includes(sources, program, program->text);
        i += size;
        ++*count;
    }
    cg->cuda_modules = *count;
    return programs;
}

const char *cuda_program_key(Arena *arena, const CudaProgram *program, size_t *size)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    if (!out)
        bug("out of memory");
    fprintf(out, "%s\n", program->text);
    for (uint32_t i = 0; i < program->header_count; i++)
        fprintf(out, "== %s\n%s\n", program->headers[i].name, program->headers[i].text);
    if (fclose(out) != 0)
        bug("out of memory");
    const char *key = arena_copy(arena, text, *size);
    free(text);
    return key;
}
