// Recipes: launches with their parameter blocks.
//
// The parameter of every kernel is a CxLaunch (codegen/cuda/cx_launch.h): a head, then the argument
// structs of as many segments as the kernel is compiled for. The blocks of the segments follow one
// another in the grid; a launch of several phases has a block of parameters for each, since their
// numbers of blocks differ. The workspace of a launch lies in one buffer that all launches share,
// because they run one after the other. Kernels with tensor maps have them behind the arguments of
// all segments: addresses and sizes are known here, so a map is encoded once.
#include <stdlib.h>
#include <string.h>

#include "runtime/cublaslt.h"
#include "runtime/cuda_exec.h"

PvCudaShape pv_shape_gemm; // codegen/cuda/shape_gemm.c: what products are told by

static int64_t round_up(int64_t bytes, int64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

static bool no_kernel(const PvGpu *gpu, uint32_t kernel, const char *what, PvError *error)
{
    const char *name;
    pv_gpu_kernel(gpu, kernel, &name);
    return pv_error(error, PV_MACHINE, "the kernel '%s' %s", name, what);
}

// Room for `bytes` behind the parameters there are.
static char *add_params(PvRecipe *recipe, size_t bytes)
{
    while (recipe->param_bytes + bytes > recipe->param_capacity) {
        size_t capacity = recipe->param_capacity ? 2 * recipe->param_capacity : 4096;
        char *params = pv_alloc(capacity);
        if (recipe->param_bytes > 0)
            memcpy(params, recipe->params, recipe->param_bytes);
        free(recipe->params);
        recipe->params = params;
        recipe->param_capacity = capacity;
    }
    char *at = recipe->params + recipe->param_bytes;
    recipe->param_bytes += bytes;
    return at;
}

// Bytes of parameters that a launch may have: more since CUDA 12.1.
static size_t most_params(const PvGpu *gpu)
{
    return gpu->device->driver->is >= 12010 && gpu->device->arch >= 70 ? 32764 : 4096;
}

// The head of a phase: its blocks by segment. 0 blocks: the phase is left out.
static PvLaunchHead make_head(const PvCudaGrid *grids, uint32_t segments, uint32_t phase,
                              const PvGpuStep *step, uint64_t *blocks)
{
    PvLaunchHead head = {.segments = segments, .step = step->at};
    uint64_t sum = 0;
    int64_t work = 0;
    for (uint32_t s = 0; s < segments; s++) {
        head.first[s] = (uint32_t)sum;
        head.work[s] = (uint64_t)work; // the buffer's address is added at the end
        work += round_up(grids[s].workspace, 256);
        sum += grids[s].blocks[phase];
    }
    for (uint32_t s = segments; s <= PV_MAX_SEGMENTS; s++)
        head.first[s] = (uint32_t)sum;
    *blocks = sum;
    return head;
}

// Maps and numbers of all segments, as they follow the arguments.
static bool encode_maps(PvGpu *gpu, const PvCudaKernel *cuda, uint32_t segments,
                        const PvCudaGrid *grids, PvLaunchMaps *maps, PvError *error)
{
    const PvDriver *driver = gpu->device->driver;
    memset(maps, 0, PV_MAX_SEGMENTS * sizeof *maps);
    for (uint32_t s = 0; s < segments; s++) {
        memcpy(maps[s].number, grids[s].numbers, sizeof maps[s].number);
        for (uint32_t i = 0; i < cuda->maps; i++) {
            int result = pv_encode_map(driver, maps[s].map[i], &grids[s].maps[i]);
            if (result != PV_CUDA_OK)
                return pv_driver_error(driver, error, result,
                                       "tensor map %u of the kernel %s is refused", i,
                                       cuda->symbol);
        }
    }
    return true;
}

// Bytes of a parameter in front of its maps, and of the whole.
static size_t maps_at(const PvCudaKernel *cuda, uint32_t args_each)
{
    size_t end = sizeof(PvLaunchHead) + (size_t)cuda->segments * args_each * sizeof(int64_t);
    return cuda->maps ? (size_t)round_up((int64_t)end, _Alignof(PvLaunchMaps)) : end;
}
static size_t param_bytes(const PvCudaKernel *cuda, uint32_t args_each)
{
    return maps_at(cuda, args_each) + (cuda->maps ? cuda->segments * sizeof(PvLaunchMaps) : 0);
}

// room: of everything behind the head.
static void add_item(PvRecipe *recipe, const PvGpuItem *item, const PvLaunchHead *head,
                     const int64_t *args, size_t arg_bytes, size_t room)
{
    recipe->items =
        pv_grow(recipe->items, &recipe->item_capacity, recipe->item_count, sizeof *recipe->items);
    PvGpuItem *added = &recipe->items[recipe->item_count++];
    *added = *item;
    added->params = recipe->param_bytes;
    char *params = add_params(recipe, sizeof *head + room);
    memcpy(params, head, sizeof *head);
    memcpy(params + sizeof *head, args, arg_bytes);
    memset(params + sizeof *head + arg_bytes, 0, room - arg_bytes);
}

int64_t pv_launch_workspace(const PvCudaKernel *cuda, uint32_t segments, const int64_t *args,
                            uint32_t arg_count, PvCudaGrid grids[PV_MAX_SEGMENTS])
{
    int64_t work = 0;
    for (uint32_t s = 0; s < segments; s++) {
        grids[s] = (PvCudaGrid){.workspace = 0};
        cuda->shape(cuda, args + (size_t)s * (arg_count / segments), &grids[s]);
        work += round_up(grids[s].workspace, 256);
    }
    return work;
}

// Our own kernel for a product that cuBLASLt may compute.
typedef struct {
    PvGpu *gpu;
    uint32_t kernel;
} OwnKernel;

static bool run_own(void *context, const GemmArgs *args)
{
    const OwnKernel *own = context;
    PvLt *lt = own->gpu->lt;
    PvError error = {0}; // then it is not measured, and told when it runs
    own->gpu->lt = NULL;
    bool good = pv_gpu_launch(own->gpu, own->kernel, (const int64_t *)args,
                              sizeof *args / sizeof(int64_t), &error);
    own->gpu->lt = lt;
    pv_error_free(&error);
    return good;
}

// Adds a product that cuBLASLt computes. False: our own kernel does.
static bool add_product(PvGpu *gpu, PvRecipe *recipe, const PvGpuStep *step, uint32_t kernel,
                        uint32_t launch, const int64_t *args, uint32_t arg_count)
{
    const PvModel *model = gpu->exec->model;
    if (!gpu->lt || kernel >= model->kernel_count || !model->kernels[kernel].cuda ||
        model->kernels[kernel].cuda->shape != pv_shape_gemm ||
        arg_count != sizeof(GemmArgs) / sizeof(int64_t))
        return false;
    GemmArgs product_args;
    memcpy(&product_args, args, sizeof product_args);
    OwnKernel own = {gpu, kernel};
    const PvLtProduct *product = pv_lt_choose(gpu->lt, &product_args, run_own, &own);
    if (!product)
        return false;
    PvLaunchHead head = {.segments = 1, .step = step->at};
    PvGpuItem item = {.kernel = kernel, .launch = launch, .product = product};
    add_item(recipe, &item, &head, args, sizeof product_args, sizeof product_args);
    if (recipe->workspace < pv_lt_workspace(product))
        recipe->workspace = pv_lt_workspace(product);
    gpu->products++;
    return true;
}

bool pv_recipe_add(PvGpu *gpu, PvRecipe *recipe, const PvGpuStep *step, uint32_t kernel,
                   uint32_t launch, uint32_t segments, const int64_t *args, uint32_t arg_count,
                   PvError *error)
{
    const PvCudaKernel *cuda = pv_gpu_kernel(gpu, kernel, NULL);
    if (!cuda)
        return no_kernel(gpu, kernel, "is not in this executable for GPUs", error);
    if (segments == 1 && add_product(gpu, recipe, step, kernel, launch, args, arg_count))
        return true;
    const PvGpuFunctions *functions = pv_gpu_functions(gpu, kernel, error);
    if (!functions)
        return false;
    if (segments < 1 || segments > cuda->segments || segments > PV_MAX_SEGMENTS ||
        arg_count % segments != 0)
        return no_kernel(gpu, kernel, "has more segments than it was compiled for", error);
    uint32_t each = arg_count / segments;
    size_t room = param_bytes(cuda, each) - sizeof(PvLaunchHead);
    if (sizeof(PvLaunchHead) + room > most_params(gpu))
        return no_kernel(gpu, kernel, "has more parameters than a launch may have", error);
    PvCudaGrid grids[PV_MAX_SEGMENTS];
    int64_t work = pv_launch_workspace(cuda, segments, args, arg_count, grids);
    if (work > recipe->workspace)
        recipe->workspace = work;
    PvLaunchMaps maps[PV_MAX_SEGMENTS];
    if (cuda->maps && !encode_maps(gpu, cuda, segments, grids, maps, error))
        return false;
    for (uint32_t phase = 0; phase < cuda->phases; phase++) {
        uint64_t blocks;
        PvLaunchHead head = make_head(grids, segments, phase, step, &blocks);
        uint64_t most = (uint64_t)cuda->resident[phase] * gpu->device->multiprocessors;
        if (most > 0 && blocks > most)
            blocks = most;
        if (blocks > INT32_MAX)
            return no_kernel(gpu, kernel, "needs more blocks than a launch may have", error);
        PvGpuItem item = {
            functions->phase[phase], kernel, launch, (uint32_t)blocks, cuda->threads[phase],
            cuda->shared[phase],     0,      NULL};
        if (blocks == 0)
            continue;
        add_item(recipe, &item, &head, args, arg_count * sizeof *args, room);
        if (cuda->maps)
            memcpy(recipe->params + recipe->items[recipe->item_count - 1].params +
                       maps_at(cuda, each),
                   maps, cuda->segments * sizeof *maps);
    }
    return true;
}

bool pv_recipe_finish(PvGpu *gpu, PvRecipe *recipe, PvError *error)
{
    if (recipe->workspace > gpu->workspace_bytes) {
        pv_gpu_drop_recipes(gpu);
        pv_device_free(gpu->device, gpu->workspace, gpu->workspace_bytes);
        gpu->workspace = 0;
        gpu->workspace_bytes = 0;
        pv_device_trim(gpu->device);
        if (!pv_device_alloc(gpu->device, recipe->workspace, "workspace", &gpu->workspace, error))
            return false;
        gpu->workspace_bytes = recipe->workspace;
    }
    for (size_t i = 0; i < recipe->item_count; i++) {
        PvLaunchHead head;
        char *at = recipe->params + recipe->items[i].params;
        memcpy(&head, at, sizeof head);
        for (uint32_t s = 0; s < head.segments; s++)
            head.work[s] += gpu->workspace;
        head.counters = gpu->counters;
        memcpy(at, &head, sizeof head);
    }
    return true;
}

void pv_recipe_free(PvGpu *gpu, PvRecipe *recipe)
{
    if (recipe->graph)
        gpu->device->driver->graph_exec_destroy(recipe->graph);
    free(recipe->io);
    free(recipe->items);
    free(recipe->params);
    free(recipe);
}

void pv_gpu_drop_recipes(PvGpu *gpu)
{
    if (gpu->recipes)
        gpu->device->driver->stream_wait(gpu->device->work);
    while (gpu->recipes) {
        PvRecipe *first = gpu->recipes;
        gpu->recipes = first->next;
        pv_recipe_free(gpu, first);
    }
    gpu->recipe_count = 0;
}

const int64_t *pv_item_args(const PvRecipe *recipe, const PvGpuItem *item)
{
    return (const int64_t *)(const void *)(recipe->params + item->params + sizeof(PvLaunchHead));
}
