// What the cubins of all kernels say, as text: for review, and for tests that need no GPU.
//
// A line a kernel and architecture: registers, blocks that fit a multiprocessor and what limits
// them, shared memory, bytes of code, instructions of each class. A kernel that uses local memory
// or atomics, does not fit, loads too many fragments for its mma.sync, or lacks the 16-byte
// accesses that were asked for is WRONG. Then a line a kernel with what all launches of the plans
// at their level do, predicted, for a batch of one; and how many of the bytes that launches bound
// by memory move are moved by kernels that take 16 at a time.
// Names go without their hashes, so that a kernel whose figures stay leaves no trace in a diff.
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"
#include "codegen/cubin.h"

enum { MOST_KERNELS = 64, LINE = 640 };        // of a program; of text
enum { BOUND = 8 };        // FLOP a byte: a launch of fewer is bound by memory

typedef struct {
    char **lines;
    size_t count, capacity;
} Lines;

static void add_line(Lines *lines, const char *text)
{
    lines->lines = grow_array(lines->lines, &lines->capacity, lines->count, sizeof *lines->lines);
    char *copy = strdup(text);
    if (!copy)
        bug("out of memory");
    lines->lines[lines->count++] = copy;
}

static int compare_lines(const void *x, const void *y)
{
    return strcmp(*(char *const *)x, *(char *const *)y);
}

// Each line once, in order.
static void print_lines(Lines *lines, FILE *out)
{
    if (lines->count > 0)
        qsort(lines->lines, lines->count, sizeof *lines->lines, compare_lines);
    for (size_t i = 0; i < lines->count; i++)
        if (i == 0 || strcmp(lines->lines[i], lines->lines[i - 1]) != 0)
            fprintf(out, "%s\n", lines->lines[i]);
    for (size_t i = 0; i < lines->count; i++)
        free(lines->lines[i]);
    free(lines->lines);
}

// The kernel that a function of a cubin belongs to, and its phase.
static const CudaKernel *find_kernel(const Codegen *cg, const char *name, uint32_t *phase)
{
    for (uint32_t i = 0; i < cg->cuda_kernel_count; i++) {
        const CudaKernel *kernel = &cg->cuda_kernels[i];
        size_t length = strlen(kernel->symbol);
        if (strncmp(name, kernel->symbol, length) != 0 || (name[length] && name[length] != '_'))
            continue;
        *phase = name[length] ? (uint32_t)atoi(name + length + 1) : 0;
        return kernel;
    }
    bug("no kernel has a function %s", name);
}

// What is wrong with a function; NULL: nothing.
static const char *judge(const CudaKernel *kernel, uint32_t phase, const CubinKernel *figures,
                         int blocks)
{
    if (figures->stack != 0 || cubin_count(figures, "LDL") || cubin_count(figures, "STL"))
        return "local memory";
    if (cubin_count(figures, "ATOM") > (kernel->choice.counts ? 1 : 0))
        return "atomics";
    if (blocks == 0)
        return "does not fit";
    if (kernel->places == CUDA_ON_90A && phase == 0 &&
        (!cubin_count(figures, "HGMMA") || !cubin_count(figures, "UTMALDG") ||
         cubin_count(figures, "HMMA")))
        return "is not wgmma on what TMA loads";
    if (!cubin_feeds_mma(figures))
        return "less than 2.5 HMMA a LDSM";
    if (cubin_count(figures, "LDG.128") < (int)kernel->choice.loads_16)
        return "lacks loads of 16 bytes";
    if (cubin_count(figures, "STG.128") < (int)kernel->choice.stores_16)
        return "lacks stores of 16 bytes";
    return NULL;
}

// *wide: of each kernel, whether a phase of it has accesses of 16 bytes.
static bool describe(const Codegen *cg, const CubinKernel *figures, const char *arch_name, int arch,
                     Lines *lines, bool *wide)
{
    uint32_t phase;
    const CudaKernel *kernel = find_kernel(cg, figures->name, &phase);
    const CudaChoice *choice = &kernel->choice;
    const char *limit;
    int threads = (int)choice->threads[phase], shared = (int)choice->shared[phase];
    int blocks = cubin_occupancy(figures, arch, threads, shared, &limit);
    const char *wrong = judge(kernel, phase, figures, blocks);
    wide[kernel - cg->cuda_kernels] |=
        cubin_count(figures, "LDG.128") > 0 || cubin_count(figures, "STG.128") > 0;
    char text[LINE];
    int at = snprintf(text, sizeof text, "%s", choice->name);
    if (phase > 0)
        at += snprintf(text + at, sizeof text - (size_t)at, " phase %u", phase);
    if (*choice->definitions)
        at += snprintf(text + at, sizeof text - (size_t)at, " [%s]", choice->definitions);
    at += snprintf(text + at, sizeof text - (size_t)at,
                   " %s: threads %d, shared %d, registers %d, blocks %d (%s), code %zu", arch_name,
                   threads, shared, figures->registers, blocks, limit, figures->code_bytes);
    for (int i = 0; i < CUBIN_CLASSES && cubin_classes[i] && at < LINE; i++)
        if (figures->count[i])
            at += snprintf(text + at, sizeof text - (size_t)at, ", %s %d", cubin_classes[i],
                           figures->count[i]);
    if (wrong && at < LINE)
        snprintf(text + at, sizeof text - (size_t)at, " WRONG: %s", wrong);
    add_line(lines, text);
    return wrong == NULL;
}

static bool describe_image(const Codegen *cg, const CudaImage *image, Lines *lines, bool *wide)
{
    static CubinKernel kernels[MOST_KERNELS];
    int arch, count = cubin_read(cg->images + image->offset, image->size, &arch, kernels,
                                 MOST_KERNELS);
    if (count < 0 || count > MOST_KERNELS)
        bug("a cubin cannot be read");
    char name[16];
    snprintf(name, sizeof name, "sm_%u%s", image->arch, image->specific ? "a" : "");
    bool good = true;
    for (int i = 0; i < count; i++)
        good &= describe(cg, &kernels[i], name, arch, lines, wide);
    return good;
}

typedef struct {
    const char *name;
    uint32_t launches;
    double flops, bytes;
} Use;

static int compare_uses(const void *x, const void *y)
{
    const Use *a = x, *b = y;
    return strcmp(a->name, b->name);
}

// A launch's kernel, and the one for sm_90a or why there is none.
static const char *use_name(Codegen *cg, const Work *work, const PlanLaunch *launch)
{
    const Kernel *kernel = &cg->kernels[launch->kernel];
    const char *name = cg->cuda_kernels[kernel->cuda - 1].choice.name;
    const char *refused = cuda_refused(cg, work, launch);
    if (refused)
        return arena_printf(cg->arena, "%s (no wgmma: %s)", name, refused);
    if (kernel->cuda_90a)
        return arena_printf(cg->arena, "%s (sm_90a: %s)", name,
                            cg->cuda_kernels[kernel->cuda_90a - 1].choice.name);
    return name;
}

// What the fused plans launch, by name; with --kernels those whose line has a word. Then, of mixed
// plans for sm_90a, how much of the products' work is on wgmma.
static void print_uses(Codegen *cg, FILE *out)
{
    size_t count = 0, most = 0;
    double products = 0, on_wgmma = 0;
    for (uint32_t i = 0; i < cg->plan_count; i++)
        most += cg->plans[i]->launch_count;
    Use *uses = arena_alloc(cg->arena, (most + 1) * sizeof *uses);
    for (uint32_t i = 0; i < cg->plan_count; i++)
        for (uint32_t k = 0; !cg->plans[i]->taps && k < cg->plans[i]->launch_count; k++) {
            const PlanLaunch *launch = &cg->plans[i]->launches[k];
            double flops = launch->flops_fixed + launch->flops_batch;
            uses[count++] = (Use){use_name(cg, cg->plans[i], launch), 1, flops,
                                  launch->bytes_fixed + launch->bytes_batch};
            bool has_wgmma = cg->kernels[launch->kernel].cuda_90a != 0;
            on_wgmma += has_wgmma ? flops : 0;
            products += has_wgmma || cuda_refused(cg, cg->plans[i], launch) ? flops : 0;
        }
    qsort(uses, count, sizeof *uses, compare_uses);
    for (size_t i = 0; i < count;) {
        Use sum = uses[i];
        while (++i < count && strcmp(uses[i].name, sum.name) == 0) {
            sum.launches += uses[i].launches;
            sum.flops += uses[i].flops;
            sum.bytes += uses[i].bytes;
        }
        if (is_kernel_wanted(cg, sum.name))
            fprintf(out, "use %s: %u launches, %.4g FLOP, %.4g bytes\n", sum.name, sum.launches,
                    sum.flops, sum.bytes);
    }
    if (products > 0)
        fprintf(out, "use products on sm_90a: %.4g FLOP, %.2f %% of it on wgmma\n", products,
                100 * on_wgmma / products);
}

// What launches that are bound by memory move, and how much of it kernels with
// accesses of 16 bytes.
static void print_wide(const Codegen *cg, const bool *wide, FILE *out)
{
    double all = 0, by_16 = 0;
    for (uint32_t i = 0; i < cg->plan_count; i++)
        for (uint32_t k = 0; !cg->plans[i]->taps && k < cg->plans[i]->launch_count; k++) {
            const PlanLaunch *launch = &cg->plans[i]->launches[k];
            double bytes = launch->bytes_fixed + launch->bytes_batch;
            if (launch->flops_fixed + launch->flops_batch >= BOUND * bytes)
                continue;
            all += bytes;
            by_16 += wide[cg->kernels[launch->kernel].cuda - 1] ? bytes : 0;
        }
    fprintf(out, "use bound by memory: %.4g bytes, %.2f %% by kernels with accesses of 16 bytes\n",
            all, all > 0 ? 100 * by_16 / all : 100);
}

int print_figures(Codegen *cg, FILE *out, const LinkOptions *options)
{
    const char *home = find_home(cg->arena);
    if (!home)
        return 3;
    int result = build_cuda(cg, home, "", options);
    if (result != 0)
        return result;
    Lines lines = {0};
    bool *wide = arena_alloc(cg->arena, cg->cuda_kernel_count + 1);
    bool good = cg->cuda_warnings == 0;
    for (uint32_t i = 0; i < cg->cuda_image_count; i++)
        if (!cg->cuda_images[i].ptx && cg->cuda_images[i].arch != PV_ARCH_SIMT)
            good &= describe_image(cg, &cg->cuda_images[i], &lines, wide);
    fprintf(out, "NVRTC %u.%u, %u warnings\n", cg->cuda_version / 1000,
            cg->cuda_version % 1000 / 10, cg->cuda_warnings);
    print_lines(&lines, out);
    print_uses(cg, out);
    if (!cg->kernels_with)
        print_wide(cg, wide, out);
    if (!good)
        fprintf(stderr, "pvdmc: error: kernels with faults: see WRONG in the figures, and the "
                        "messages of NVRTC with --verbose\n");
    return good ? 0 : 1;
}
