// Running a plan. Its lists are unpacked when it is first used; addresses are resolved once a step
// (base of the space + a + c * batch), the numbers of the step are computed by the emitted function
// `scalars`, and then the launches run in their order, each parallel inside. Taps are copied right
// after the launch that makes them, because the planner may give their bytes to a later value.
#include "runtime/exec.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/cuda_exec.h"
#include "runtime/rows.h"
#include "runtime/timing.h"
#include "runtime/unpack.h"

// The lists of a plan: those of its record, or own ones, unpacked.
struct PvUnpacked {
    PvUnpacked *next;
    const PvPlan *plan;
    PvPlanLists lists;
    PvLaunch *own_launches;
    PvArg *own_args;
    double *seconds; // [launch_count], while profiling
    int64_t runs;    // that were timed
};

char *pv_space_new(int64_t bytes)
{
    size_t size = bytes > 0 ? (size_t)bytes : 1;
    void *space = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED)
        return NULL;
    madvise(space, size, MADV_HUGEPAGE); // a wish: failing costs only speed
    return space;
}

void pv_space_free(char *space, int64_t bytes)
{
    if (space)
        munmap(space, bytes > 0 ? (size_t)bytes : 1);
}

PvExec *pv_exec_new(const PvModel *model, int threads, PvError *error)
{
    PvExec *exec = pv_alloc(sizeof *exec);
    exec->model = model;
    exec->threads = threads > 0 ? threads : omp_get_max_threads();
    exec->loss_scale = 1;
    exec->params = pv_space_new(model->param_bytes);
    exec->grads = pv_space_new(model->param_bytes);
    if (exec->params && exec->grads)
        return exec;
    char text[32];
    pv_error(error, PV_MACHINE, "no address space for the parameters: twice %s",
             pv_size_text(text, (double)model->param_bytes));
    pv_exec_free(exec);
    return NULL;
}

void pv_exec_free(PvExec *exec)
{
    if (!exec)
        return;
    pv_rows_drop(exec);
    pv_gpu_free(exec->gpu);
    pv_space_free(exec->params, exec->model->param_bytes);
    pv_space_free(exec->grads, exec->model->param_bytes);
    pv_space_free(exec->arena, exec->arena_bytes);
    pv_space_free(exec->scratch, exec->scratch_each * exec->threads);
    while (exec->unpacked) {
        PvUnpacked *first = exec->unpacked;
        exec->unpacked = first->next;
        free(first->own_launches);
        free(first->own_args);
        free(first->seconds);
        free(first);
    }
    free(exec->args);
    free(exec->scalars);
    free(exec->times);
    free(exec);
}

bool pv_exec_use(PvExec *exec, PvDevice *device, PvError *error)
{
    exec->gpu = pv_gpu_new(exec, device, error);
    return exec->gpu != NULL;
}

char *pv_exec_params(PvExec *exec, PvError *error)
{
    PvGpu *gpu = exec->gpu;
    return !gpu || pv_mirror_to_host(gpu->device, &gpu->params, error) ? exec->params : NULL;
}

char *pv_exec_grads(PvExec *exec, PvError *error)
{
    PvGpu *gpu = exec->gpu;
    return !gpu || pv_mirror_to_host(gpu->device, &gpu->grads, error) ? exec->grads : NULL;
}

void pv_exec_params_written(PvExec *exec)
{
    pv_rows_drop(exec);
    if (exec->gpu)
        exec->gpu->params.host_new = true;
}

void pv_exec_expect(PvExec *exec, const bool *instances, bool gradients)
{
    for (uint32_t i = 0; exec->gpu && i < exec->model->instance_count; i++) {
        const PvInstance *at = &exec->model->instances[i];
        PvMirror *mirror = gradients ? &exec->gpu->grads : &exec->gpu->params;
        if (instances[i])
            pv_mirror_cover(mirror, at->offset, at->offset + at->size);
    }
}

bool pv_exec_measure(PvExec *exec, PvError *error)
{
    if (!exec->times)
        exec->times = pv_try_alloc((exec->model->kernel_count + 1u) * sizeof *exec->times,
                                   "the times of kernels", error);
    return exec->times != NULL;
}

static const PvExec *sorted_exec; // for qsort

static int slower_first(const void *x, const void *y)
{
    uint32_t first = *(const uint32_t *)x, second = *(const uint32_t *)y;
    double difference = sorted_exec->times[second].seconds - sorted_exec->times[first].seconds;
    return difference > 0 ? 1 : difference < 0 ? -1 : (int)first - (int)second;
}

void pv_exec_print_times(const PvExec *exec)
{
    uint32_t count = exec->model->kernel_count;
    uint32_t *order = pv_alloc((count + 1u) * sizeof *order);
    double total = 0;
    for (uint32_t i = 0; i < count; i++) {
        order[i] = i;
        total += exec->times[i].seconds;
    }
    sorted_exec = exec;
    qsort(order, count, sizeof *order, slower_first);
    fprintf(stderr, "%10s %6s %8s %10s  kernel\n", "seconds", "share", "calls", "GFLOP/s");
    for (uint32_t i = 0; i < count; i++) {
        const PvKernelTime *time = &exec->times[order[i]];
        if (time->calls == 0)
            continue;
        fprintf(stderr, "%10.4f %5.1f%% %8lld %10.1f  %s\n", time->seconds,
                total > 0 ? 100 * time->seconds / total : 0, (long long)time->calls,
                time->seconds > 0 ? time->flops / time->seconds * 1e-9 : 0,
                exec->model->kernels[order[i]].name);
    }
    if (exec->gpu)
        fprintf(stderr, "%10.4f seconds in kernels on GPU %d (%s)\n", total,
                exec->gpu->device->index, exec->gpu->device->name);
    else
        fprintf(stderr, "%10.4f seconds in kernels, %d threads\n", total, exec->threads);
    free(order);
}

uint32_t pv_exec_variant(const PvEntry *entry, const PvStep *step)
{
    return entry->variant_count > 1 && entry->select ? entry->select(step) : 0;
}

const PvPlan *pv_exec_plan(const PvExec *exec, const PvEntry *entry, uint32_t variant)
{
    bool chosen = exec->rung > 0 && exec->rung <= entry->rung_count;
    return chosen ? &entry->rungs[exec->rung - 1].plans[variant] : &entry->plans[variant];
}

// ---- bytes ----

static int64_t round_up(int64_t bytes, int64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

int64_t pv_type_bytes(const PvType *type, int64_t batch)
{
    int64_t bytes = pv_dtype_size(type->dtype);
    for (uint32_t i = 0; i < type->rank; i++)
        bytes *= type->dim[i] * (type->batch_axes >> i & 1 ? batch : 1);
    return bytes;
}

PvMemoryItem pv_exec_need(const PvExec *exec, const PvEntry *entry, const PvPlan *plan)
{
    int64_t scratch = exec->gpu ? 0 : plan->scratch_size * exec->threads;
    PvMemoryItem need = {"activations", plan->arena_fixed + scratch, plan->arena_batch};
    for (uint32_t i = 0; i < entry->input_count + entry->output_count; i++) {
        const PvType *type = i < entry->input_count ? &entry->inputs[i].type
                                                    : &entry->outputs[i - entry->input_count].type;
        int64_t one = pv_type_bytes(type, 1);
        *(type->batch_axes ? &need.per_batch : &need.fixed) += one;
    }
    if (exec->gpu) {
        PvMemoryItem workspace = pv_gpu_workspace(exec->gpu, plan);
        need.fixed += workspace.fixed;
        need.per_batch += workspace.per_batch;
    }
    return need;
}

int64_t pv_exec_param_bytes(const PvModel *model, const bool *instances)
{
    int64_t bytes = 0;
    for (uint32_t i = 0; i < model->instance_count; i++)
        bytes += instances[i] ? model->instances[i].size : 0;
    return bytes + (model->shadow != PV_NONE ? bytes / 2 : 0);
}

void pv_plan_instances(const PvPlan *plan, bool *needed)
{
    for (uint32_t i = 0; i < plan->instance_count; i++)
        needed[plan->instances[i]] = true;
}

// ---- a step ----

// Arena, scratch and argument room for a plan at a batch.
static bool make_room(PvExec *exec, const PvPlan *plan, int64_t batch, PvError *error)
{
    int64_t arena = plan->arena_fixed + batch * plan->arena_batch;
    if (arena > exec->arena_bytes) {
        pv_space_free(exec->arena, exec->arena_bytes);
        exec->arena_bytes = 0;
        exec->arena = pv_space_new(arena);
        if (!exec->arena) {
            char text[32];
            return pv_error(error, PV_MACHINE, "no memory for activations: %s at batch %lld",
                            pv_size_text(text, (double)arena), (long long)batch);
        }
        exec->arena_bytes = arena;
    }
    int64_t each = round_up(plan->scratch_size, 64);
    if (each > exec->scratch_each) {
        pv_space_free(exec->scratch, exec->scratch_each * exec->threads);
        exec->scratch_each = 0;
        exec->scratch = pv_space_new(each * exec->threads);
        if (!exec->scratch)
            return pv_error(error, PV_MACHINE, "no memory for the scratch of %d threads",
                            exec->threads);
        exec->scratch_each = each;
    }
    if (plan->arg_count > exec->arg_capacity) {
        free(exec->args);
        exec->args = pv_alloc(plan->arg_count * sizeof *exec->args);
        exec->arg_capacity = plan->arg_count;
    }
    if (!exec->scalars || plan->scalar_count > exec->scalar_capacity) {
        free(exec->scalars);
        exec->scalars = pv_alloc((1u + plan->scalar_count) * sizeof *exec->scalars);
        exec->scalar_capacity = plan->scalar_count;
    }
    memcpy(exec->scalars, &exec->loss_scale, sizeof exec->loss_scale);
    return true;
}

static int64_t resolve(const PvExec *exec, const PvExecStep *step, const PvArg *arg)
{
    int64_t base = 0;
    switch (arg->space) {
    case PV_VALUE:
        break;
    case PV_ARENA:
        base = (int64_t)(intptr_t)exec->arena;
        break;
    case PV_PARAM:
        base = (int64_t)(intptr_t)exec->params;
        break;
    case PV_GRAD:
        base = (int64_t)(intptr_t)exec->grads;
        break;
    case PV_CONST:
        base = (int64_t)(intptr_t)exec->model->consts;
        break;
    case PV_SCALAR:
        base = (int64_t)(intptr_t)(exec->scalars + 1);
        break;
    default: {
        uint32_t index = arg->space - (uint32_t)PV_IO;
        bool row = index == step->entry->input_count + step->entry->output_count;
        base = (int64_t)(intptr_t)(row ? step->row : step->io[index]);
    }
    }
    return base + arg->a + arg->c * step->step->batch;
}

// The lists of a plan, which come to the front; NULL with an error.
static PvUnpacked *unpack(PvExec *exec, const PvPlan *plan, PvError *error)
{
    PvUnpacked **link = &exec->unpacked;
    while (*link && (*link)->plan != plan)
        link = &(*link)->next;
    PvUnpacked *found = *link;
    if (found) {
        *link = found->next;
    } else {
        found = pv_try_alloc(sizeof *found, "a plan's lists", error);
        if (!found)
            return NULL;
        found->plan = plan;
        found->lists = (PvPlanLists){plan->launches, plan->args};
        if (plan->packed) {
            if (!pv_plan_unpack(plan, exec->model->kernel_count, &found->own_launches,
                                &found->own_args, error)) {
                free(found);
                return NULL;
            }
            found->lists = (PvPlanLists){found->own_launches, found->own_args};
        }
    }
    found->next = exec->unpacked;
    exec->unpacked = found;
    return found;
}

bool pv_exec_lists(PvExec *exec, const PvPlan *plan, PvPlanLists *lists, PvError *error)
{
    const PvUnpacked *found = unpack(exec, plan, error);
    if (found)
        *lists = found->lists;
    return found != NULL;
}

// `seconds`: where the time of this launch is added up, or NULL.
static void launch(PvExec *exec, const PvRun *run, const PvLaunch *at, double *seconds)
{
    PvKernelFn *fn = exec->model->kernels[at->kernel].fn;
    PvRun now = *run;
    now.segments = at->segments;
    if (!exec->times && !seconds) {
        fn(&now, exec->args + at->arg);
        return;
    }
    double start = pv_seconds();
    fn(&now, exec->args + at->arg);
    double taken = pv_seconds() - start;
    if (seconds)
        *seconds += taken;
    if (!exec->times)
        return;
    PvKernelTime *time = &exec->times[at->kernel];
    time->seconds += taken;
    time->flops += at->flops_fixed + at->flops_batch * (double)run->batch;
    time->calls++;
}

void pv_tap_number(PvTensor *to, int64_t number)
{
    double value;
    memcpy(&value, &number, sizeof value);
    if (pv_dtype_is_real(to->dtype))
        pv_convert(to->data, to->dtype, &value, PV_F64, 1);
    else
        pv_convert(to->data, to->dtype, &number, PV_I64, 1);
}

// Copies the wanted taps that lie still right after launch `index`.
static void copy_taps(const PvExec *exec, const PvExecStep *step, int32_t index)
{
    for (uint32_t i = 0; i < step->tap_count; i++) {
        const PvTap *tap = &step->plan->taps[step->taps[i]];
        if (tap->launch != index)
            continue;
        PvTensor *to = step->tap_tensors[i];
        int64_t from = resolve(exec, step, &tap->at);
        if (tap->at.space != PV_VALUE)
            memcpy(to->data, (const void *)(intptr_t)from, (size_t)to->bytes);
        else
            pv_tap_number(to, from);
    }
}

// Everything before the first launch. NULL with an error.
static PvUnpacked *prepare(PvExec *exec, const PvExecStep *step, PvError *error)
{
    const PvPlan *plan = step->plan;
    PvUnpacked *lists = unpack(exec, plan, error);
    if (!lists || !make_room(exec, plan, step->step->batch, error))
        return NULL;
    if (plan->scalars && plan->scalar_count > 0)
        plan->scalars(step->step, exec->scalars + 1);
    for (uint32_t i = 0; i < plan->arg_count; i++)
        exec->args[i] = resolve(exec, step, &lists->lists.args[i]);
    return lists;
}

static PvRun run_of(const PvExec *exec, const PvExecStep *step)
{
    return (PvRun){step->step->batch, exec->threads, exec->scratch, exec->scratch_each, step->step,
                   1, step->plan->split};
}

// Room for the times of a plan's launches, if they are taken.
static bool begin_times(const PvExec *exec, PvUnpacked *lists, uint32_t count, PvError *error)
{
    if (exec->profiling && !lists->seconds)
        lists->seconds =
            pv_try_alloc((count + 1u) * sizeof *lists->seconds, "the times of launches", error);
    lists->runs += exec->profiling;
    return !exec->profiling || lists->seconds;
}

void pv_exec_profile(PvExec *exec, bool on)
{
    exec->profiling = on;
    for (PvUnpacked *lists = exec->unpacked; on && lists; lists = lists->next) {
        free(lists->seconds);
        lists->seconds = NULL;
        lists->runs = 0;
    }
}

bool pv_exec_plan_times(PvExec *exec, const PvPlan *plan, PvPlanTimes *times, PvError *error)
{
    const PvUnpacked *lists = unpack(exec, plan, error);
    if (lists)
        *times = (PvPlanTimes){lists->lists.launches, lists->seconds, lists->runs};
    return lists != NULL;
}

double *pv_exec_launch_times(PvExec *exec, const PvPlan *plan, PvError *error)
{
    PvUnpacked *lists = unpack(exec, plan, error);
    return lists && begin_times(exec, lists, plan->launch_count, error) ? lists->seconds : NULL;
}

bool pv_exec_wait(PvExec *exec, PvError *error)
{
    return !exec->gpu || pv_device_wait(exec->gpu->device, exec->gpu->device->work, error);
}

bool pv_exec_run(PvExec *exec, const PvExecStep *step, PvError *error)
{
    if (step->plan->table && !step->row) {
        PvExecStep with = *step;
        with.row = pv_rows_take(exec, step, error);
        return with.row && pv_exec_run(exec, &with, error);
    }
    if (exec->gpu)
        return pv_gpu_run(exec->gpu, step, error);
    PvUnpacked *lists = prepare(exec, step, error);
    if (!lists || !begin_times(exec, lists, step->plan->launch_count, error))
        return false;
    PvRun run = run_of(exec, step);
    if (step->tap_count > 0)
        copy_taps(exec, step, -1);
    for (uint32_t i = 0; i < step->plan->launch_count; i++) {
        launch(exec, &run, &lists->lists.launches[i], exec->profiling ? &lists->seconds[i] : NULL);
        if (step->tap_count > 0)
            copy_taps(exec, step, (int32_t)i);
    }
    return true;
}

bool pv_stores_setting(const PvEntry *entry, const PvPlanLists *lists, const PvLaunch *at)
{
    bool setting = false;
    for (uint32_t i = 0; i < at->arg_count; i++) {
        const PvArg *arg = &lists->args[at->arg + i];
        if (arg->space < PV_IO) {
            if (arg->space == PV_ARENA || arg->space == PV_PARAM || arg->space == PV_GRAD ||
                arg->space == PV_SHADOW)
                return false;
            continue;
        }
        uint32_t index = (uint32_t)arg->space - PV_IO;
        if (index < entry->input_count ||
            entry->outputs[index - entry->input_count].kind != PV_OUT_SETTING)
            return false;
        setting = true;
    }
    return setting;
}

bool pv_exec_settings(PvExec *exec, const PvExecStep *step, PvError *error)
{
    if (exec->gpu)
        return pv_gpu_settings(exec->gpu, step, error);
    const PvUnpacked *lists = prepare(exec, step, error);
    if (!lists)
        return false;
    PvRun run = run_of(exec, step);
    for (uint32_t i = 0; i < step->plan->launch_count; i++)
        if (pv_stores_setting(step->entry, &lists->lists, &lists->lists.launches[i]))
            launch(exec, &run, &lists->lists.launches[i], NULL);
    return true;
}
