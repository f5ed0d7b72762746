// The choice of a kernel, its text and what NVRTC makes of it, by the compiler's own functions.
#include "kernel_choice.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/cubin.h"
#include "codegen/cuda_module.h"
#include "codegen/nvrtc.h"

static bool runtime_kernel(const char *name, CudaChoice *choice)
{
    uint32_t count;
    const CudaRuntimeKernel *kernels = cuda_runtime_kernels(&count);
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(kernels[i].name, name) == 0) {
            *choice = kernels[i].choice;
            return true;
        }
    return false;
}

bool kernel_choose(const char *symbol, const PvArg *args, uint32_t arg_count, uint32_t segments,
                   bool on_90a, KernelChoice *out)
{
    Arena *arena = arena_new();
    PlanArg *all = arena_alloc(arena, arg_count * segments * sizeof *all);
    PlanArg *common = arena_alloc(arena, arg_count * sizeof *common);
    CudaChoice choice;
    for (uint32_t i = 0; i < arg_count * segments; i++)
        all[i] = (PlanArg){.a = args[i].a, .c = args[i].c, .space = args[i].space};
    cuda_common_args(all, segments, arg_count, common);
    CudaLaunch launch = {.arena = arena,
                         .symbol = symbol,
                         .args = common,
                         .arg_count = arg_count,
                         .all = all,
                         .segments = segments};
    bool found = on_90a ? cuda_select_90a(&launch, &choice) == NULL
                        : cuda_select(&launch, &choice) || runtime_kernel(symbol, &choice);
    if (found) {
        CudaModuleKernel kernel = cuda_module_kernel(arena, &choice);
        *out = (KernelChoice){.symbol = strdup(kernel.symbol),
                              .file = strdup(choice.file),
                              .shape = strdup(choice.shape),
                              .text = cuda_module_text(&kernel, 1),
                              .phases = choice.phases,
                              .segments = choice.segments,
                              .maps = choice.maps,
                              .on_90a = on_90a};
        memcpy(out->resident, choice.resident, sizeof out->resident);
        memcpy(out->threads, choice.threads, sizeof out->threads);
        memcpy(out->shared, choice.shared, sizeof out->shared);
        memcpy(out->baked, choice.baked, sizeof out->baked);
    }
    arena_free(arena);
    return found;
}

static char *read_whole(const char *path)
{
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t room = 0;
    if (!file || getdelim(&text, &room, '\0', file) < 0) {
        free(text);
        text = strdup("");
    }
    if (file)
        fclose(file);
    return text;
}

// Everything that a program may include, by name.
static const NvrtcHeader *all_headers(const char *root, int *count)
{
    static NvrtcHeader headers[256];
    static int header_count;
    char path[4096];
    if (header_count == 0) {
        snprintf(path, sizeof path, "%s/codegen/cuda", root);
        DIR *folder = opendir(path);
        for (struct dirent *entry; folder && (entry = readdir(folder)) != NULL;) {
            const char *dot = strrchr(entry->d_name, '.');
            if (!dot || header_count == 254 || (strcmp(dot, ".h") != 0 && strcmp(dot, ".cu") != 0))
                continue;
            snprintf(path, sizeof path, "%s/codegen/cuda/%s", root, entry->d_name);
            headers[header_count++] = (NvrtcHeader){strdup(entry->d_name), read_whole(path)};
        }
        if (folder)
            closedir(folder);
        snprintf(path, sizeof path, "%s/codegen/kernel_args.h", root);
        headers[header_count++] = (NvrtcHeader){"kernel_args.h", read_whole(path)};
        snprintf(path, sizeof path, "%s/runtime/random_bits.h", root);
        headers[header_count++] = (NvrtcHeader){"random_bits.h", read_whole(path)};
    }
    *count = header_count;
    return headers;
}

static const char *judge_job(const KernelChoice *choice, const NvrtcJob *job, bool figures)
{
    static char text[4096];
    CubinKernel kernels[PV_MAX_PHASES];
    const char *limit;
    int arch;
    if (!job->done || nvrtc_log_warns(job->log)) {
        snprintf(text, sizeof text, "%s %s: %s", choice->symbol, job->arch, job->log);
        return text;
    }
    int count = cubin_read(job->cubin, job->cubin_bytes, &arch, kernels, PV_MAX_PHASES);
    for (int i = 0; i < count; i++) {
        const CubinKernel *kernel = &kernels[i];
        // phase 0 is SYMBOL, phase p SYMBOL_p
        size_t length = strlen(choice->symbol);
        uint32_t phase =
            kernel->name[length] == '_' ? (uint32_t)(kernel->name[length + 1] - '0') : 0;
        int blocks = cubin_occupancy(kernel, arch, (int)choice->threads[phase % PV_MAX_PHASES],
                                     (int)choice->shared[phase % PV_MAX_PHASES], &limit);
        if (figures) {
            printf("%s %s: registers %d, blocks %d (%s), code %zu", kernel->name, job->arch,
                   kernel->registers, blocks, limit, kernel->code_bytes);
            for (int j = 0; j < CUBIN_CLASSES && cubin_classes[j]; j++)
                if (kernel->count[j])
                    printf(", %s %d", cubin_classes[j], kernel->count[j]);
            printf(", %.2f s\n", job->seconds);
        }
        if (kernel->stack != 0 || blocks == 0) {
            snprintf(text, sizeof text, "%s %s: %s", kernel->name, job->arch,
                     blocks ? "it uses local memory" : "it does not fit a multiprocessor");
            return text;
        }
        if (!cubin_feeds_mma(kernel)) {
            snprintf(text, sizeof text, "%s %s: less than 2.5 HMMA a LDSM", kernel->name,
                     job->arch);
            return text;
        }
        if (choice->on_90a && phase == 0 &&
            (!cubin_count(kernel, "HGMMA") || !cubin_count(kernel, "UTMALDG") ||
             cubin_count(kernel, "HMMA"))) {
            snprintf(text, sizeof text, "%s: it lacks HGMMA or UTMALDG, or has HMMA", kernel->name);
            return text;
        }
    }
    return count > 0 ? NULL : "its cubin could not be read";
}

void kernel_job(const KernelChoice *choice, const char *root, const char *arch, NvrtcJob *job)
{
    int header_count;
    const NvrtcHeader *headers = all_headers(root, &header_count);
    *job = (NvrtcJob){.name = choice->symbol,
                      .text = choice->text,
                      .arch = arch,
                      .headers = headers,
                      .header_count = header_count};
}

const char *kernel_compiles(const KernelChoice *choice, const char *root, const char *stamp)
{
    bool figures = getenv("PVDM_FIGURES") != NULL;
    FILE *known = figures ? NULL : fopen(stamp, "r");
    if (known) {
        fclose(known);
        return NULL;
    }
    if (nvrtc_open())
        return NULL;
    NvrtcJob jobs[2];
    int count = choice->on_90a ? 1 : 2;
    for (int i = 0; i < count; i++)
        kernel_job(choice, root, i == 0 ? "sm_90a" : "sm_80", &jobs[i]);
    nvrtc_compile(jobs, count, count);
    const char *wrong = NULL;
    for (int i = 0; i < count; i++) {
        if (!wrong)
            wrong = judge_job(choice, &jobs[i], figures);
        nvrtc_free_job(&jobs[i]);
    }
    FILE *good = wrong ? NULL : fopen(stamp, "w");
    if (good)
        fclose(good);
    return wrong;
}
