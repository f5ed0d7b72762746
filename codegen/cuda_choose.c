// Which CUDA kernel computes each launch.
//
// Emitted kernels get theirs when they are lowered. For launches of the kernel library a template
// is chosen from the arguments, once launches are known. Kernels are distinct by both sides, so a
// launch names one number for all targets; those that no launch names any more are dropped. Where
// sm_90a has a kernel of its own for a launch, both are named: programs for sm_90a hold the one,
// those for other GPUs the other, and the emulator's both.
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"
#include "codegen/cuda_module.h"

uint32_t cuda_kernel_add(Codegen *cg, const CudaChoice *choice, const char *text, uint32_t args)
{
    CudaKernel kernel = {.choice = *choice, .segments = most_segments(args)};
    if (choice->segments)
        kernel.segments = choice->segments;
    if (text) {
        kernel.symbol = arena_printf(cg->arena, "%s_%012llx", choice->name,
                                     (unsigned long long)hash_bytes(text, strlen(text)) >> 16);
    } else {
        kernel.symbol = cuda_choice_symbol(cg->arena, choice);
    }
    for (uint32_t i = 0; i < cg->cuda_kernel_count; i++)
        if (strcmp(cg->cuda_kernels[i].symbol, kernel.symbol) == 0)
            return i + 1;
    if (text)
        kernel.text = arena_printf(cg->arena, "%s", text);
    cg->cuda_kernels = grow_array(cg->cuda_kernels, &cg->cuda_kernel_capacity,
                                  cg->cuda_kernel_count, sizeof *cg->cuda_kernels);
    cg->cuda_kernels[cg->cuda_kernel_count++] = kernel;
    return cg->cuda_kernel_count;
}

void add_runtime_kernels(Codegen *cg)
{
    uint32_t count;
    const CudaRuntimeKernel *kernels = cuda_runtime_kernels(&count);
    cg->cuda_runtime_names = arena_alloc(cg->arena, (count + 1) * sizeof *cg->cuda_runtime_names);
    for (uint32_t i = 0; i < count; i++) {
        cg->cuda_runtime_names[i] = kernels[i].name;
        cuda_kernel_add(cg, &kernels[i].choice, NULL, 1);
    }
    cg->cuda_runtime_count = count;
    if (cg->cuda_kernel_count != count)
        bug("two kernels of the runtime are one");
}

// What a selecting function is told of a launch, `count` arguments a segment.
static CudaLaunch describe(Codegen *cg, uint32_t kernel, const PlanArg *args, uint32_t segments,
                           uint32_t count)
{
    CudaLaunch launch = {.arena = cg->arena, .symbol = cg->kernels[kernel].symbol, .args = args,
                         .arg_count = count, .all = args, .segments = segments};
    if (segments > 1) {
        PlanArg *common = arena_alloc(cg->arena, (count + 1) * sizeof *common);
        cuda_common_args(args, segments, count, common);
        launch.args = common;
    }
    return launch;
}

// What a choice may depend on: of an address, only that it is one, how its elements are stored,
// and its alignment.
static PlanArg plain_arg(const PlanArg *arg)
{
    PlanArg plain;
    memset(&plain, 0, sizeof plain);   // padding too: it is part of a key
    plain.a = arg->space == PV_VALUE ? arg->a : arg->a & (CUDA_KNOWN_ALIGNMENT - 1);
    plain.c = arg->space == PV_VALUE ? arg->c : arg->c & (CUDA_KNOWN_ALIGNMENT - 1);
    plain.space = arg->space == PV_VALUE ? PV_VALUE : PV_ARENA;
    plain.store = arg->store;
    return plain;
}

static void add_args(Codegen *cg, const PlanArg *args, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        PlanArg plain = plain_arg(&args[i]);
        bytes_add(cg->arena, &cg->key, &plain, sizeof plain);
    }
}

static bool for_90a(const Targets *targets)
{
    bool there = targets->simt;
    for (uint32_t i = 0; i < targets->arch_count; i++)
        there |= targets->archs[i].number == 90 && targets->archs[i].specific;
    return there;
}

typedef struct {
    bool there;                // there is a kernel for this
    bool there_90a;            // and one for sm_90a, which is asked for
    const char *refused;       // why there is none
    uint32_t number, number_90a;       // in Codegen.cuda_kernels, + 1; 0: not there yet
    CudaChoice choice, choice_90a;
} Chosen;

// The choice for a launch of `segments` segments, `count` arguments each, the last of which may
// stand apart (`more`; else NULL).
static Chosen *find_choice(Codegen *cg, uint32_t kernel, const PlanArg *args, uint32_t segments,
                           uint32_t count, const PlanArg *more)
{
    const char *symbol = cg->kernels[kernel].symbol;
    Arena *arena = cg->arena;
    cg->key.count = 0;
    add_args(cg, args, (segments - (more != NULL)) * count);
    if (more)
        add_args(cg, more, count);
    bytes_add(arena, &cg->key, &segments, sizeof segments);
    bytes_add(arena, &cg->key, symbol, strlen(symbol));
    bool found;
    Chosen *chosen = memo_find(arena, &cg->choices, &cg->key, sizeof *chosen, &found);
    if (!found) {
        const PlanArg *plain = arena_copy(arena, cg->key.at, segments * count * sizeof *plain);
        CudaLaunch launch = describe(cg, kernel, plain, segments, count);
        chosen->there = cuda_select(&launch, &chosen->choice);
        if (chosen->there && for_90a(&cg->targets))
            chosen->refused = cuda_select_90a(&launch, &chosen->choice_90a);
        chosen->there_90a = chosen->there && for_90a(&cg->targets) && !chosen->refused;
    }
    return chosen;
}

bool cuda_takes_segment(Codegen *cg, uint32_t kernel, const PlanArg *args, uint32_t segments,
                        uint32_t count, const PlanArg *more)
{
    if (!wants_cuda(cg) || cg->kernels[kernel].cuda)
        return true;
    return find_choice(cg, kernel, args, segments + 1, count, more)->there;
}

// The kernel of the library with what computes this launch on GPUs. No kernel at all is told by the
// last step of a compilation.
static uint32_t choose_kernel(Codegen *cg, const Work *work, const PlanLaunch *launch)
{
    uint32_t count = launch->arg_count / launch->segments;
    Chosen *chosen = find_choice(cg, launch->kernel, &work->args[launch->arg], launch->segments,
                                 count, NULL);
    if (chosen->there && !chosen->number)
        chosen->number = cuda_kernel_add(cg, &chosen->choice, NULL, count);
    if (chosen->there_90a && !chosen->number_90a)
        chosen->number_90a = cuda_kernel_add(cg, &chosen->choice_90a, NULL, count);
    return kernel_with_cuda(cg, launch->kernel, chosen->number, chosen->number_90a);
}

const char *cuda_refused(Codegen *cg, const Work *work, const PlanLaunch *launch)
{
    const Kernel *kernel = &cg->kernels[launch->kernel];
    if (!is_mixed_plan(work) || kernel->cuda_90a || launch->segments == 0 ||
        strncmp(kernel->symbol, "pv_", 3) != 0)
        return NULL;
    const Chosen *chosen =
        find_choice(cg, launch->kernel, &work->args[launch->arg], launch->segments,
                    launch->arg_count / launch->segments, NULL);
    return chosen->refused && *chosen->refused ? chosen->refused : NULL;
}

// Renumbers kernels without those that no launch names.
static void drop_unused(Codegen *cg)
{
    uint32_t *number = arena_alloc(cg->arena, (cg->kernel_count + 1) * sizeof *number);
    for (uint32_t i = 0; i < cg->plan_count; i++)
        for (uint32_t k = 0; k < cg->plans[i]->launch_count; k++)
            number[cg->plans[i]->launches[k].kernel] = 1;
    uint32_t count = 0;
    for (uint32_t i = 0; i < cg->kernel_count; i++)
        if (number[i]) {
            number[i] = count;
            cg->kernels[count++] = cg->kernels[i];
        }
    cg->kernel_count = count;
    for (uint32_t i = 0; i < cg->plan_count; i++)
        for (uint32_t k = 0; k < cg->plans[i]->launch_count; k++)
            cg->plans[i]->launches[k].kernel = number[cg->plans[i]->launches[k].kernel];
}

// Which architectures need which kernel. The runtime's own are needed everywhere.
static void set_places(Codegen *cg)
{
    for (uint32_t i = 0; i < cg->kernel_count; i++)
        if (cg->kernels[i].cuda_90a) {
            cg->cuda_kernels[cg->kernels[i].cuda_90a - 1].places = CUDA_ON_90A;
            cg->cuda_kernels[cg->kernels[i].cuda - 1].places = CUDA_BESIDE_90A;
        }
    for (uint32_t i = 0; i < cg->kernel_count; i++)
        if (cg->kernels[i].cuda && !cg->kernels[i].cuda_90a)
            cg->cuda_kernels[cg->kernels[i].cuda - 1].places = CUDA_ON_ALL;
}

void choose_cuda_kernels(Codegen *cg)
{
    for (uint32_t i = 0; i < cg->plan_count; i++) {
        Work *work = cg->plans[i];
        for (uint32_t k = 0; k < work->launch_count; k++) {
            PlanLaunch *launch = &work->launches[k];
            if (!cg->kernels[launch->kernel].cuda)
                launch->kernel = choose_kernel(cg, work, launch);
        }
    }
    drop_unused(cg);
    set_places(cg);
}

CudaModuleKernel cuda_kernel_text(Codegen *cg, const CudaKernel *kernel)
{
    if (!kernel->text)
        return cuda_module_kernel(cg->arena, &kernel->choice);
    return (CudaModuleKernel){.symbol = kernel->symbol, .definitions = "",
                              .text = kernel->text, .phases = kernel->choice.phases};
}
