// Running plans on a GPU. See cuda_exec.h.
//
// Everything is queued and nothing waited for, but for the first run of a recipe, for settings, and
// where kernels are timed.
#include "runtime/cuda_exec.h"

#include <stdlib.h>
#include <string.h>

#include "codegen/cpu/kernels.h"
#include "runtime/cublaslt.h"
#include "runtime/random.h"

enum { MOST_RECIPES = 64 };

_Static_assert(sizeof(PvLaunchHead) == 120, "CxHead of cx_launch.h");

// ---- recipes ----

static int64_t resolve(const PvGpu *gpu, const PvRecipe *recipe, const PvArg *arg)
{
    const PvGpuStep *numbers = recipe->settings ? &gpu->side : &gpu->step;
    uint64_t base = 0;
    switch (arg->space) {
    case PV_VALUE:
        break;
    case PV_ARENA:
        base = gpu->arena;
        break;
    case PV_PARAM:
        base = gpu->params.base;
        break;
    case PV_GRAD:
        base = gpu->grads.base;
        break;
    case PV_SHADOW:
        base = gpu->shadow_base;
        break;
    case PV_CONST:
        base = gpu->consts;
        break;
    case PV_SCALAR:
        base = numbers->at + (uint64_t)gpu->scalars_at;
        break;
    default:
        base = recipe->io[arg->space - PV_IO];
    }
    return (int64_t)base + arg->a + arg->c * recipe->batch;
}

static PvRecipe *find_recipe(PvGpu *gpu, const PvPlan *plan, int64_t batch, bool settings,
                             const uint64_t *io, uint32_t io_count)
{
    for (PvRecipe **link = &gpu->recipes; *link; link = &(*link)->next) {
        PvRecipe *recipe = *link;
        if (recipe->plan != plan || recipe->batch != batch || recipe->settings != settings ||
            recipe->io_count != io_count ||
            (io_count > 0 && memcmp(recipe->io, io, io_count * sizeof *io) != 0))
            continue;
        *link = recipe->next;
        recipe->next = gpu->recipes;
        gpu->recipes = recipe;
        return recipe;
    }
    return NULL;
}

// The last of the list goes when there are too many.
static void drop_oldest(PvGpu *gpu)
{
    if (gpu->recipe_count < MOST_RECIPES)
        return;
    PvRecipe **link = &gpu->recipes;
    while ((*link)->next)
        link = &(*link)->next;
    gpu->device->driver->stream_wait(gpu->device->work);
    pv_recipe_free(gpu, *link);
    *link = NULL;
    gpu->recipe_count--;
}

// An empty one of these.
static PvRecipe *new_recipe(const PvPlan *plan, int64_t batch, bool settings, const uint64_t *io,
                            uint32_t io_count)
{
    PvRecipe *recipe = pv_alloc(sizeof *recipe);
    recipe->plan = plan;
    recipe->batch = batch;
    recipe->settings = settings;
    recipe->io = pv_alloc((io_count + 1u) * sizeof *io);
    memcpy(recipe->io, io, io_count * sizeof *io);
    recipe->io_count = io_count;
    return recipe;
}

// Puts it first, if it was filled; else frees it and gives NULL.
static PvRecipe *keep_recipe(PvGpu *gpu, PvRecipe *recipe, bool filled)
{
    if (!filled) {
        pv_recipe_free(gpu, recipe);
        return NULL;
    }
    drop_oldest(gpu);
    recipe->next = gpu->recipes;
    gpu->recipes = recipe;
    gpu->recipe_count++;
    return recipe;
}

static bool fill_recipe(PvGpu *gpu, PvRecipe *recipe, const PvEntry *entry, PvError *error)
{
    PvPlanLists lists;
    if (!pv_exec_lists(gpu->exec, recipe->plan, &lists, error))
        return false;
    int64_t args[UINT16_MAX];
    for (uint32_t i = 0; i < recipe->plan->launch_count; i++) {
        const PvLaunch *at = &lists.launches[i];
        if (recipe->settings && !pv_stores_setting(entry, &lists, at))
            continue;
        for (uint32_t k = 0; k < at->arg_count; k++)
            args[k] = resolve(gpu, recipe, &lists.args[at->arg + k]);
        if (!pv_recipe_add(gpu, recipe, recipe->settings ? &gpu->side : &gpu->step, at->kernel, i,
                           at->segments, args, at->arg_count, error))
            return pv_error_append(error, " (%s)", gpu->exec->model->origins[at->origin]);
    }
    return pv_recipe_finish(gpu, recipe, error);
}

// io: the device's addresses, of inputs and outputs.
static PvRecipe *take_recipe(PvGpu *gpu, const PvExecStep *step, bool settings, const uint64_t *io,
                             PvError *error)
{
    uint32_t io_count = step->entry->input_count + step->entry->output_count + 1; // and the row
    PvRecipe *recipe = find_recipe(gpu, step->plan, step->step->batch, settings, io, io_count);
    if (recipe)
        return recipe;
    recipe = new_recipe(step->plan, step->step->batch, settings, io, io_count);
    return keep_recipe(gpu, recipe, fill_recipe(gpu, recipe, step->entry, error));
}

// ---- launches ----

// Batch, seed, counters, and the step values of a plan (NULL: none).
static bool send_numbers(PvGpu *gpu, const PvStep *step, const PvPlan *plan, const PvGpuStep *to,
                         PvError *error)
{
    const PvRandom *random = step->random;
    PvGpuNumbers *numbers = (PvGpuNumbers *)(void *)gpu->step_host;
    uint32_t count = plan && plan->scalars ? plan->scalar_count : 0;
    numbers->batch = step->batch;
    numbers->seed[0] = random ? (uint32_t)random->seed : 0;
    numbers->seed[1] = random ? (uint32_t)(random->seed >> 32) : 0;
    for (uint32_t i = 0; random && i < random->stream_count; i++) {
        numbers->stream[i].draw = (uint32_t)random->draws[i];
        numbers->stream[i].hash = random->hashes[i];
    }
    if (count > 0)
        plan->scalars(step, (PvScalar *)(void *)(gpu->step_host + gpu->scalars_at));
    PvReal scale = gpu->exec->loss_scale;
    memcpy(gpu->step_host + gpu->scalars_at + PV_LOSS_SCALE_AT, &scale, sizeof scale);
    int64_t bytes = gpu->scalars_at + (int64_t)(count * sizeof(PvScalar));
    return pv_device_upload(gpu->device, to->stream, to->at, gpu->step_host, bytes, error);
}

// The device's own scale of the loss, where there is one, in place of the host's.
static bool copy_loss_scale(PvGpu *gpu, PvError *error)
{
    if (!gpu->loss_scale)
        return true;
    CUdeviceptr to = gpu->step.at + (uint64_t)(gpu->scalars_at + PV_LOSS_SCALE_AT);
    int result = gpu->device->driver->copy(to, gpu->loss_scale, sizeof(PvReal), gpu->device->work);
    return result == PV_CUDA_OK || pv_device_fault(gpu->device, result, error);
}

static int launch(const PvGpu *gpu, const PvRecipe *recipe, const PvGpuItem *item, CUstream stream)
{
    if (item->product) {
        const void *args = pv_item_args(recipe, item);
        int result = pv_lt_run(item->product, args, gpu->workspace, stream);
        return result == 0 ? PV_CUDA_OK : PV_CUDA_LAUNCH_FAILED;
    }
    void *params[] = {recipe->params + item->params};
    return gpu->device->driver->launch(item->fn, item->blocks, 1, 1, item->threads, 1, 1,
                                       item->shared, stream, params, NULL);
}

// A kernel failed, or could not be launched.
static bool item_error(PvGpu *gpu, const PvRecipe *recipe, const PvGpuItem *item, int result,
                       PvError *error)
{
    const char *name, *origin = "the optimizer";
    pv_gpu_kernel(gpu, item->kernel, &name);
    PvPlanLists lists;
    if (recipe->plan && pv_exec_lists(gpu->exec, recipe->plan, &lists, error))
        origin = gpu->exec->model->origins[lists.launches[item->launch].origin];
    bool late = pv_device_tells_late(gpu->device, result);
    pv_driver_error(gpu->device->driver, error, result, "kernel %s of %s%s failed on GPU %d (%s)",
                    name, origin, late ? ", or one that was queued before it," : "",
                    gpu->device->index, gpu->device->name);
    return late && pv_device_hint(error);
}

// A stream given by the user: the numbers are sent instead.
static bool send_given(PvGpu *gpu, const PvExecStep *step, const RandomArgs *draw, bool *sent,
                       PvError *error)
{
    const PvRandom *random = step->step->random;
    *sent = random && pv_random_given(random, (uint32_t)draw->stream);
    if (!*sent)
        return true;
    size_t size = draw->kind == 2 ? sizeof(int64_t) : sizeof(PvReal);
    void *numbers = pv_try_alloc((size_t)draw->count * size + 1, "given numbers", error);
    if (!numbers)
        return false;
    pv_random_fill(random, (uint32_t)draw->stream, (int)draw->kind, draw->lo, draw->hi, draw->count,
                   numbers);
    bool good = pv_device_upload(gpu->device, gpu->device->work, (CUdeviceptr)draw->y, numbers,
                                 draw->count * (int64_t)size, error);
    free(numbers);
    return good;
}

static bool copy_taps(PvGpu *gpu, const PvExecStep *step, const PvRecipe *recipe, int32_t index,
                      PvError *error)
{
    for (uint32_t i = 0; i < step->tap_count; i++) {
        const PvTap *tap = &step->plan->taps[step->taps[i]];
        if (tap->launch != index)
            continue;
        PvTensor *to = step->tap_tensors[i];
        int64_t from = resolve(gpu, recipe, &tap->at);
        if (tap->at.space == PV_VALUE)
            pv_tap_number(to, from);
        else if (!pv_device_download(gpu->device, gpu->device->work, to->data, (CUdeviceptr)from,
                                     to->bytes, error))
            return false;
    }
    return true;
}

// `count` events with timing.
static bool make_marks(PvGpu *gpu, size_t count, PvError *error)
{
    if (count <= gpu->mark_count)
        return true;
    CUevent *marks = pv_alloc(count * sizeof *marks);
    if (gpu->mark_count > 0)
        memcpy(marks, gpu->marks, gpu->mark_count * sizeof *marks);
    free(gpu->marks);
    gpu->marks = marks;
    while (gpu->mark_count < count) {
        int result =
            gpu->device->driver->event_create(&marks[gpu->mark_count], PV_CUDA_EVENT_DEFAULT);
        if (result != PV_CUDA_OK)
            return pv_device_fault(gpu->device, result, error);
        gpu->mark_count++;
    }
    return true;
}

static bool mark(PvGpu *gpu, size_t index, PvError *error)
{
    int result = gpu->device->driver->event_record(gpu->marks[index], gpu->device->work);
    return result == PV_CUDA_OK || pv_device_fault(gpu->device, result, error);
}

// The times between the marks of a run, to the kernels.
static bool add_times(PvGpu *gpu, const PvRecipe *recipe, PvError *error)
{
    PvExec *exec = gpu->exec;
    PvPlanLists lists;
    double *seconds = NULL;
    if (!pv_device_wait(gpu->device, gpu->device->work, error) ||
        !pv_exec_lists(exec, recipe->plan, &lists, error) ||
        (exec->profiling && !(seconds = pv_exec_launch_times(exec, recipe->plan, error))))
        return false;
    for (size_t i = 0; i < recipe->item_count; i++) {
        const PvGpuItem *item = &recipe->items[i];
        const PvLaunch *of = &lists.launches[item->launch];
        PvKernelTime *time = exec->times ? &exec->times[of->kernel] : NULL;
        float milliseconds = 0;
        int result =
            gpu->device->driver->event_elapsed(&milliseconds, gpu->marks[i], gpu->marks[i + 1]);
        if (result != PV_CUDA_OK)
            return pv_device_fault(gpu->device, result, error);
        if (seconds)
            seconds[item->launch] += 1e-3 * (double)milliseconds;
        if (!time)
            continue;
        time->seconds += 1e-3 * (double)milliseconds;
        if (i > 0 && recipe->items[i - 1].launch == item->launch)
            continue; // a further phase
        time->flops += of->flops_fixed + of->flops_batch * (double)recipe->batch;
        time->calls++;
    }
    return true;
}

// How the launches of a run are watched.
typedef struct {
    CUstream stream;
    bool wait; // for each kernel
    bool timed;
} Watch;

static bool run_item(PvGpu *gpu, const PvExecStep *step, const PvRecipe *recipe,
                     const PvGpuItem *item, const Watch *watch, PvError *error)
{
    bool sent = false;
    if (step && gpu->exec->model->kernels[item->kernel].fn == pv_random) {
        RandomArgs draw;
        memcpy(&draw, pv_item_args(recipe, item), sizeof draw);
        if (!send_given(gpu, step, &draw, &sent, error))
            return false;
    }
    int result = sent ? PV_CUDA_OK : launch(gpu, recipe, item, watch->stream);
    if (result == PV_CUDA_OK && watch->wait)
        result = gpu->device->driver->stream_wait(watch->stream);
    return result == PV_CUDA_OK || item_error(gpu, recipe, item, result, error);
}

// All launches, one by one, with taps and given streams.
static bool run_items(PvGpu *gpu, const PvExecStep *step, const PvRecipe *recipe,
                      const Watch *watch, PvError *error)
{
    bool taps = step && step->tap_count > 0;
    if (watch->timed && (!make_marks(gpu, recipe->item_count + 1, error) || !mark(gpu, 0, error)))
        return false;
    if (taps && !copy_taps(gpu, step, recipe, -1, error))
        return false;
    size_t next = 0;
    uint32_t launches = taps ? step->plan->launch_count : 1;
    for (uint32_t i = 0; i < launches; i++) {
        while (next < recipe->item_count && (!taps || recipe->items[next].launch == i)) {
            if (!run_item(gpu, step, recipe, &recipe->items[next], watch, error))
                return false;
            next++;
            if (watch->timed && !mark(gpu, next, error))
                return false;
        }
        if (taps && !copy_taps(gpu, step, recipe, (int32_t)i, error))
            return false;
    }
    return !watch->timed || add_times(gpu, recipe, error);
}

// ---- graphs ----

static int capture(PvGpu *gpu, PvRecipe *recipe)
{
    const PvDriver *driver = gpu->device->driver;
    CUgraph graph = NULL;
    int result = driver->capture_begin(gpu->device->work, PV_CUDA_CAPTURE_THREAD_LOCAL);
    if (result != PV_CUDA_OK)
        return result;
    for (size_t i = 0; result == PV_CUDA_OK && i < recipe->item_count; i++)
        result = launch(gpu, recipe, &recipe->items[i], gpu->device->work);
    int ended = driver->capture_end(gpu->device->work, &graph);
    if (result == PV_CUDA_OK)
        result = ended;
    if (result == PV_CUDA_OK)
        result = driver->graph_instantiate(&recipe->graph, graph, 0);
    if (graph)
        driver->graph_destroy(graph);
    return result;
}

// Replays the graph of a recipe that ran before, which is captured the first time. *done: it is
// queued; else it is to be launched kernel by kernel.
static bool replay(PvGpu *gpu, PvRecipe *recipe, bool *done, PvError *error)
{
    *done = false;
    if (recipe->runs == 0 || gpu->no_graphs)
        return true;
    if (!recipe->graph) {
        int result = capture(gpu, recipe);
        if (result != PV_CUDA_OK) {
            PvError why = {0};
            recipe->graph = NULL;
            gpu->no_graphs = true;
            pv_driver_error(gpu->device->driver, &why, result, "no graph of a step");
            pv_warn("%s; going on without graphs", why.text);
            pv_error_free(&why);
            return true;
        }
        gpu->graphs++;
    }
    int result = gpu->device->driver->graph_launch(recipe->graph, gpu->device->work);
    *done = result == PV_CUDA_OK;
    gpu->replays++;
    return *done || pv_device_fault(gpu->device, result, error);
}

// ---- a step ----

// Is a stream of this plan given by the user?
static bool draws_are_given(const PvExecStep *step)
{
    for (uint32_t i = 0; i < step->plan->stream_count; i++)
        if (step->step->random && pv_random_given(step->step->random, step->plan->streams[i]))
            return true;
    return false;
}

// Work was queued that writes gradients, and buffers among the parameters.
static void note_writes(PvGpu *gpu, const PvPlan *plan)
{
    const PvModel *model = gpu->exec->model;
    gpu->grads.device_new |= plan->grad_count > 0;
    for (uint32_t i = 0; i < plan->instance_count && !gpu->params.device_new; i++) {
        const PvInstance *instance = &model->instances[plan->instances[i]];
        for (uint32_t k = instance->first; k < instance->first + instance->count; k++)
            gpu->params.device_new |= model->params[k].buffer;
    }
}

bool pv_gpu_run(PvGpu *gpu, const PvExecStep *step, PvError *error)
{
    uint64_t io[1 + 64 + 256];
    uint32_t io_count = step->entry->input_count + step->entry->output_count;
    if (io_count + 1 > sizeof io / sizeof *io)
        return pv_error(error, PV_MACHINE, "%s has too many inputs and outputs", step->entry->name);
    for (uint32_t i = 0; i < io_count; i++)
        io[i] = (uint64_t)(uintptr_t)step->io[i];
    io[io_count] = (uint64_t)(uintptr_t)step->row;
    if (!pv_gpu_room(gpu, step, error))
        return false;
    PvRecipe *recipe = take_recipe(gpu, step, false, io, error);
    if (!recipe || !send_numbers(gpu, step->step, step->plan, &gpu->step, error) ||
        !copy_loss_scale(gpu, error))
        return false;
    pv_device_doing(gpu->device, step->entry->name);
    bool timed = gpu->exec->times || gpu->exec->profiling, done = false;
    if (!timed && step->tap_count == 0 && !draws_are_given(step) &&
        !replay(gpu, recipe, &done, error))
        return false;
    Watch watch = {gpu->device->work, recipe->runs == 0 || gpu->device->synchronous, timed};
    if (!done && !run_items(gpu, step, recipe, &watch, error))
        return false;
    recipe->runs++;
    note_writes(gpu, step->plan);
    return true;
}

// Settings lie apart from the work's outputs and step values, and are computed beside it.
bool pv_gpu_settings(PvGpu *gpu, const PvExecStep *step, PvError *error)
{
    const PvEntry *entry = step->entry;
    uint64_t io[1 + 64 + 256] = {0};
    if (entry->input_count + entry->output_count + 1 > sizeof io / sizeof *io)
        return pv_error(error, PV_MACHINE, "%s has too many inputs and outputs", entry->name);
    for (uint32_t i = 0; i < entry->output_count; i++)
        io[entry->input_count + i] = gpu->side_io + PV_GPU_SPACING * (uint64_t)i;
    PvRecipe *recipe = take_recipe(gpu, step, true, io, error);
    if (!recipe || !send_numbers(gpu, step->step, step->plan, &gpu->side, error))
        return false;
    pv_device_doing(gpu->device, entry->name);
    Watch watch = {gpu->device->side, gpu->device->synchronous, false};
    char values[64 * PV_GPU_SPACING];
    int64_t bytes = PV_GPU_SPACING * (int64_t)entry->output_count;
    if (bytes > (int64_t)sizeof values)
        return pv_error(error, PV_MACHINE, "%s has too many outputs", entry->name);
    if ((recipe->workspace > 0 && !pv_device_wait(gpu->device, gpu->device->work, error)) ||
        !run_items(gpu, NULL, recipe, &watch, error) ||
        !pv_device_download(gpu->device, gpu->device->side, values, gpu->side_io, bytes, error))
        return false;
    recipe->runs++;
    for (uint32_t i = 0; i < entry->output_count; i++)
        if (entry->outputs[i].kind == PV_OUT_SETTING)
            memcpy(step->io[entry->input_count + i], values + PV_GPU_SPACING * i,
                   (size_t)pv_dtype_size(entry->outputs[i].type.dtype));
    return true;
}

bool pv_gpu_draw(PvGpu *gpu, const PvStep *step, uint32_t stream, int kind, int64_t count,
                 CUdeviceptr to, PvError *error)
{
    const RandomArgs args = {
        .y = (int64_t)to, .count = count, .stream = (int64_t)stream, .kind = kind};
    return send_numbers(gpu, step, NULL, &gpu->step, error) &&
           pv_gpu_call(gpu, kind == 0 ? "normal" : "uniform", &args, sizeof args, error);
}

// Adds a kernel of PvCuda by name.
static bool add_call(PvGpu *gpu, PvRecipe *recipe, const PvGpuCall *call, PvError *error)
{
    const PvModel *model = gpu->exec->model;
    uint32_t index = 0;
    while (index < model->cuda->kernel_count &&
           strcmp(model->cuda->kernel_names[index], call->name) != 0)
        index++;
    if (index == model->cuda->kernel_count)
        return pv_error(error, PV_MACHINE, "this executable has no kernel '%s' for GPUs",
                        call->name);
    return pv_recipe_add(gpu, recipe, &gpu->step, model->kernel_count + index, 0, 1, call->args,
                         (uint32_t)(call->bytes / sizeof(int64_t)), error);
}

bool pv_gpu_call(PvGpu *gpu, const char *name, const void *args, size_t bytes, PvError *error)
{
    PvRecipe *made = pv_alloc(sizeof *made);
    PvGpuCall call = {name, args, bytes};
    Watch watch = {gpu->device->work, gpu->device->synchronous, false};
    bool good = add_call(gpu, made, &call, error) && pv_recipe_finish(gpu, made, error) &&
                run_items(gpu, NULL, made, &watch, error);
    pv_recipe_free(gpu, made);
    return good;
}

bool pv_gpu_launch(PvGpu *gpu, uint32_t index, const int64_t *args, uint32_t count, PvError *error)
{
    PvRecipe *made = pv_alloc(sizeof *made);
    Watch watch = {gpu->device->work, gpu->device->synchronous, false};
    bool good = pv_recipe_add(gpu, made, &gpu->step, index, 0, 1, args, count, error) &&
                pv_recipe_finish(gpu, made, error) && run_items(gpu, NULL, made, &watch, error);
    pv_recipe_free(gpu, made);
    return good;
}

static bool fill_calls(PvGpu *gpu, PvRecipe *recipe, const PvGpuCall *calls, uint32_t count,
                       PvError *error)
{
    for (uint32_t i = 0; i < count; i++)
        if (!add_call(gpu, recipe, &calls[i], error))
            return false;
    return pv_recipe_finish(gpu, recipe, error);
}

bool pv_gpu_calls(PvGpu *gpu, const PvGpuCall *calls, uint32_t count, PvError *error)
{
    uint64_t key[128];
    uint32_t used = 0;
    if (count == 0)
        return true;
    for (uint32_t i = 0; i < count; i++) {
        size_t words = calls[i].bytes / sizeof *key;
        if (used + 1 + words > sizeof key / sizeof *key)
            return pv_error(error, PV_MACHINE, "too many kernels of the optimizer at once");
        key[used++] = (uint64_t)(uintptr_t)calls[i].name;
        memcpy(&key[used], calls[i].args, calls[i].bytes);
        used += (uint32_t)words;
    }
    PvRecipe *recipe = find_recipe(gpu, NULL, 0, false, key, used);
    if (!recipe) {
        recipe = new_recipe(NULL, 0, false, key, used);
        recipe = keep_recipe(gpu, recipe, fill_calls(gpu, recipe, calls, count, error));
    }
    bool done = false;
    pv_device_doing(gpu->device, "the optimizer");
    if (!recipe || !replay(gpu, recipe, &done, error))
        return false;
    Watch watch = {gpu->device->work, recipe->runs == 0 || gpu->device->synchronous, false};
    if (!done && !run_items(gpu, NULL, recipe, &watch, error))
        return false;
    recipe->runs++;
    return true;
}
