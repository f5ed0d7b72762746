// What a GPU's executor has on the device: parameters, gradients, the arena, a step's numbers.
//
// Memory grows with the largest plan; when an address changes, all recipes are made anew.
#include "runtime/cuda_exec.h"

#include <stdlib.h>
#include <string.h>

#include "codegen/cpu/kernels.h"
#include "runtime/cublaslt.h"

enum { SHADOW_PIECE = 16384, COUNTER_BYTES = PV_MAX_SEGMENTS * PV_COUNTERS * 4 };

// ---- what outlives steps ----

// Step values of the plans of an entry (NULL: none), at most.
static uint32_t plan_scalars(const PvPlan *plans, uint32_t count, uint32_t most)
{
    for (uint32_t i = 0; plans && i < count; i++) {
        most = plans[i].scalar_count > most ? plans[i].scalar_count : most;
        if (plans[i].table && plans[i].table->scalar_count > most)
            most = plans[i].table->scalar_count;
    }
    return most;
}

static uint32_t most_scalars(const PvModel *model)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->entry_count; i++) {
        const PvEntry *entry = &model->entries[i];
        most = plan_scalars(entry->plans, entry->variant_count, most);
        most = plan_scalars(entry->plain, entry->variant_count, most);
        for (uint32_t k = 0; k < entry->rung_count; k++)
            most = plan_scalars(entry->rungs[k].plans, entry->variant_count, most);
    }
    return most;
}

static uint32_t most_outputs(const PvModel *model)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->entry_count; i++)
        if (model->entries[i].output_count > most)
            most = model->entries[i].output_count;
    return most;
}

// What a kernel counts its blocks with; each launch leaves it as it was.
static bool make_counters(PvGpu *gpu, PvError *error)
{
    static const uint32_t zeros[COUNTER_BYTES / 4];
    return pv_device_alloc(gpu->device, COUNTER_BYTES, "counters", &gpu->counters, error) &&
           pv_device_upload(gpu->device, gpu->device->work, gpu->counters, zeros, COUNTER_BYTES,
                            error);
}

static bool make_fixed(PvGpu *gpu, PvError *error)
{
    const PvModel *model = gpu->exec->model;
    PvDevice *device = gpu->device;
    size_t head = sizeof(PvGpuNumbers) + model->stream_count * sizeof(uint32_t[2]);
    head += (size_t)-PV_LOSS_SCALE_AT;
    gpu->scalars_at = (int64_t)((head + 63) / 64 * 64);
    gpu->step_bytes = gpu->scalars_at + (int64_t)(most_scalars(model) * sizeof(PvScalar));
    gpu->step_host = pv_alloc((size_t)gpu->step_bytes);
    gpu->side_io_bytes = PV_GPU_SPACING * (int64_t)most_outputs(model);
    gpu->step.stream = device->work;
    gpu->side.stream = device->side;
    return pv_device_alloc(device, model->const_bytes, "constants", &gpu->consts, error) &&
           pv_device_alloc(device, gpu->step_bytes, "step values", &gpu->step.at, error) &&
           pv_device_alloc(device, gpu->step_bytes, "step values", &gpu->side.at, error) &&
           pv_device_alloc(device, gpu->side_io_bytes, "settings", &gpu->side_io, error) &&
           make_counters(gpu, error) &&
           pv_device_upload(device, device->work, gpu->consts, model->consts, model->const_bytes,
                            error) &&
           pv_device_wait(device, device->work, error);
}

static void list_turns(PvGpu *gpu)
{
    const PvModel *model = gpu->exec->model;
    gpu->turns = pv_alloc((model->param_count + 1u) * sizeof *gpu->turns);
    for (uint32_t i = 0; i < model->param_count; i++) {
        const PvParam *param = &model->params[i];
        if (param->rows > 0)
            gpu->turns[gpu->turn_count++] =
                (PvMatrices){param->offset, param->count / (param->rows * param->columns),
                             param->rows, param->columns};
    }
}

PvMirror pv_gpu_mirror(const PvGpu *gpu, const char *what, char *host)
{
    return (PvMirror){
        .what = what, .host = host, .turns = gpu->turns, .turn_count = gpu->turn_count};
}

int64_t pv_gpu_shadow_type(const PvGpu *gpu)
{
    return gpu->exec->model->shadow == PV_F16 ? PV_STORE_F16 : PV_STORE_BF16;
}

PvGpu *pv_gpu_new(PvExec *exec, PvDevice *device, PvError *error)
{
    const PvModel *model = exec->model;
    PvGpu *gpu = pv_alloc(sizeof *gpu);
    gpu->exec = exec;
    gpu->device = device;
    list_turns(gpu);
    gpu->params = pv_gpu_mirror(gpu, "parameters", exec->params);
    gpu->grads = pv_gpu_mirror(gpu, "gradients", exec->grads);
    const char *wgmma = getenv("PVDM_WGMMA");
    gpu->general = wgmma && strcmp(wgmma, "0") == 0;
    gpu->no_graphs = device->synchronous;
    gpu->modules = pv_alloc((model->cuda->modules + 1u) * sizeof(CUmodule));
    gpu->functions =
        pv_alloc((model->kernel_count + model->cuda->kernel_count + 1u) * sizeof *gpu->functions);
    if (make_fixed(gpu, error))
        return gpu;
    pv_gpu_free(gpu);
    return NULL;
}

void pv_gpu_free(PvGpu *gpu)
{
    if (!gpu)
        return;
    const PvDriver *driver = gpu->device->driver;
    driver->stream_wait(gpu->device->work);
    pv_gpu_drop_recipes(gpu);
    pv_mirror_free(gpu->device, &gpu->params);
    pv_mirror_free(gpu->device, &gpu->grads);
    pv_device_free(gpu->device, gpu->shadow, gpu->shadow_bytes);
    pv_device_free(gpu->device, gpu->consts, gpu->exec->model->const_bytes);
    pv_device_free(gpu->device, gpu->step.at, gpu->step_bytes);
    pv_device_free(gpu->device, gpu->side.at, gpu->step_bytes);
    pv_device_free(gpu->device, gpu->side_io, gpu->side_io_bytes);
    pv_device_free(gpu->device, gpu->counters, COUNTER_BYTES);
    pv_device_free(gpu->device, gpu->arena, gpu->arena_bytes);
    pv_device_free(gpu->device, gpu->workspace, gpu->workspace_bytes);
    pv_lt_close(gpu->lt);
    for (uint32_t i = 0; i < gpu->mark_count; i++)
        driver->event_destroy(gpu->marks[i]);
    for (uint32_t i = 0; i < gpu->exec->model->cuda->modules; i++)
        if (gpu->modules[i])
            driver->module_unload(gpu->modules[i]);
    pv_device_close(gpu->device);
    free(gpu->turns);
    free(gpu->marks);
    free(gpu->step_host);
    free(gpu->modules);
    free(gpu->functions);
    free(gpu);
}

// ---- room ----

static void cover_param(const PvModel *model, PvMirror *mirror, uint32_t instance)
{
    const PvInstance *at = &model->instances[instance];
    pv_mirror_cover(mirror, at->offset, at->offset + at->size);
}

static bool grow_arena(PvGpu *gpu, int64_t bytes, const char *name, int64_t batch, PvError *error)
{
    if (bytes <= gpu->arena_bytes)
        return true;
    pv_gpu_drop_recipes(gpu);
    pv_device_free(gpu->device, gpu->arena, gpu->arena_bytes);
    gpu->arena = 0;
    gpu->arena_bytes = 0;
    pv_device_trim(gpu->device);
    if (!pv_device_alloc(gpu->device, bytes, "activations", &gpu->arena, error))
        return pv_error_append(error, " (%s at batch %lld)", name, (long long)batch);
    gpu->arena_bytes = bytes;
    return true;
}

// The shadow of all parameters that are there, made anew.
static bool cast_shadow(PvGpu *gpu, PvError *error)
{
    const PvMirror *params = &gpu->params;
    int64_t bytes = (params->hi - params->lo) / 2;
    if (bytes != gpu->shadow_bytes) {
        pv_device_free(gpu->device, gpu->shadow, gpu->shadow_bytes);
        gpu->shadow = 0;
        gpu->shadow_bytes = 0;
        if (!pv_device_alloc(gpu->device, bytes, "the shadow of parameters", &gpu->shadow, error))
            return false;
        gpu->shadow_bytes = bytes;
    }
    gpu->shadow_base = gpu->shadow - (CUdeviceptr)(params->lo / 2);
    int64_t count = bytes / 2;
    const ShadowArgs args = {.count = count,
                             .chunk_count = (count + SHADOW_PIECE - 1) / SHADOW_PIECE,
                             .params = (int64_t)params->at,
                             .shadow = (int64_t)gpu->shadow,
                             .shadow_type = pv_gpu_shadow_type(gpu)};
    return pv_gpu_call(gpu, "shadow", &args, sizeof args, error);
}

bool pv_gpu_place(PvGpu *gpu, PvError *error)
{
    bool moved = false, written = gpu->params.host_new;
    if (!pv_mirror_to_device(gpu->device, &gpu->params, &moved, error))
        return false;
    if (gpu->exec->model->shadow != PV_NONE && gpu->params.at && (moved || written) &&
        !cast_shadow(gpu, error))
        return false;
    if (!pv_mirror_to_device(gpu->device, &gpu->grads, &moved, error))
        return false;
    if (moved)
        pv_gpu_drop_recipes(gpu);
    return true;
}

bool pv_gpu_room(PvGpu *gpu, const PvExecStep *step, PvError *error)
{
    const PvModel *model = gpu->exec->model;
    const PvPlan *plan = step->plan;
    for (uint32_t i = 0; i < plan->instance_count; i++)
        cover_param(model, &gpu->params, plan->instances[i]);
    for (uint32_t i = 0; i < plan->grad_count; i++)
        cover_param(model, &gpu->grads, model->params[plan->grads[i]].instance);
    if (!pv_gpu_place(gpu, error))
        return false;
    return grow_arena(gpu, plan->arena_fixed + step->step->batch * plan->arena_batch,
                      step->entry->name, step->step->batch, error);
}

// Workspace of a plan at a batch; addresses, which are not known yet, are any that are not 0.
static int64_t workspace_at(PvGpu *gpu, const PvPlan *plan, const PvPlanLists *lists, int64_t batch)
{
    int64_t most = 0, args[UINT16_MAX];
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        const PvLaunch *at = &lists->launches[i];
        const PvCudaKernel *cuda = pv_gpu_kernel(gpu, at->kernel, NULL);
        if (!cuda || at->segments < 1 || at->segments > PV_MAX_SEGMENTS)
            continue;
        for (uint32_t k = 0; k < at->arg_count; k++) {
            const PvArg *arg = &lists->args[at->arg + k];
            args[k] = (arg->space == PV_VALUE ? 0 : INT64_C(1) << 40) + arg->a + arg->c * batch;
        }
        PvCudaGrid grids[PV_MAX_SEGMENTS];
        int64_t work = pv_launch_workspace(cuda, at->segments, args, at->arg_count, grids);
        most = work > most ? work : most;
    }
    return most;
}

PvMemoryItem pv_gpu_workspace(PvGpu *gpu, const PvPlan *plan)
{
    enum { FAR = 65 };
    PvMemoryItem item = {"workspace", 0, 0};
    PvPlanLists lists;
    PvError ignored = {0}; // told when the plan is run
    if (pv_exec_lists(gpu->exec, plan, &lists, &ignored)) {
        int64_t one = workspace_at(gpu, plan, &lists, 1);
        item.per_batch = (workspace_at(gpu, plan, &lists, FAR) - one) / (FAR - 1);
        item.fixed = one - item.per_batch;
        if (gpu->lt && item.fixed < PV_LT_WORKSPACE)
            item.fixed = PV_LT_WORKSPACE;
    }
    pv_error_free(&ignored);
    return item;
}
