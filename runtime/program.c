// One program on given inputs: find, settle, prepare, run. See program.h.
#include "runtime/program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/timing.h"

bool pv_program_open(PvProgram *program, PvSession *session, const char *name, PvEntryKind kind,
                     PvError *error)
{
    const PvModel *model = session->model;
    int index = pv_find_program(model, name, kind, error);
    if (index < 0)
        return false;
    *program = (PvProgram){.session = session, .entry = &model->entries[index]};
    program->call = pv_call_new(program->entry, session->options, session->random);
    program->needed = pv_alloc((model->instance_count + 1u) * sizeof *program->needed);
    program->buffers = pv_alloc((model->param_count + 1u) * sizeof *program->buffers);
    return true;
}

static void drop_buffers(PvProgram *program)
{
    for (uint32_t i = 0; program->buffers && i < program->session->model->param_count; i++) {
        free(program->buffers[i]);
        program->buffers[i] = NULL;
    }
}

void pv_program_close(PvProgram *program)
{
    drop_buffers(program);
    free(program->buffers);
    free(program->needed);
    pv_call_free(program->call);
    *program = (PvProgram){0};
}

bool pv_program_settle(PvProgram *program, PvError *error)
{
    if (!pv_call_settle(program->call, 1, error))
        return false;
    program->variant = pv_exec_variant(program->entry, &program->call->step);
    return true;
}

// ---- what it needs ----

static bool check_memory(const PvProgram *program, const PvPlan *plan, PvError *error)
{
    const PvSession *session = program->session;
    const PvEntry *entry = program->entry;
    PvMemoryItem items[] = {
        {"parameters", pv_session_missing_bytes(session, program->needed), 0},
        pv_exec_need(session->exec, entry, plan),
        {"gradients", 0, 0},
    };
    for (uint32_t i = 0; i < plan->grad_count; i++)
        items[2].fixed += session->model->params[plan->grads[i]].count * (int64_t)sizeof(PvReal);
    char *command = pv_printf("%s %s", entry->kind == PV_GRAD_OF ? "grad" : "run", entry->name);
    bool good =
        pv_session_memory(session, command, items, 3, program->call->step.batch, error);
    free(command);
    return good;
}

size_t pv_param_size(const PvParam *param)
{
    return (size_t)(param->count * pv_dtype_size(param->type.dtype));
}

static void save_buffers(PvProgram *program)
{
    const PvModel *model = program->session->model;
    const char *params = program->session->exec->params; // the host's: as they were mounted
    drop_buffers(program);
    for (uint32_t i = 0; i < model->param_count; i++) {
        const PvParam *param = &model->params[i];
        if (!param->buffer || !program->needed[param->instance])
            continue;
        size_t size = pv_param_size(param);
        program->buffers[i] = pv_alloc(size);
        memcpy(program->buffers[i], params + param->offset, size);
    }
}

bool pv_program_restore(PvProgram *program, PvError *error)
{
    const PvModel *model = program->session->model;
    char *params = NULL;
    for (uint32_t i = 0; i < model->param_count; i++) {
        const PvParam *param = &model->params[i];
        if (!program->buffers[i])
            continue;
        if (!params && !(params = pv_exec_params(program->session->exec, error)))
            return false;
        memcpy(params + param->offset, program->buffers[i], pv_param_size(param));
    }
    if (params)
        pv_exec_params_written(program->session->exec);
    return true;
}

bool pv_program_prepare(PvProgram *program, const PvPlan *plan, bool ema, PvError *error)
{
    PvSession *session = program->session;
    memset(program->needed, 0, session->model->instance_count * sizeof *program->needed);
    pv_plan_instances(plan, program->needed);
    bool mounted = program->keep && pv_session_is_mounted(session, program->needed);
    if (!check_memory(program, plan, error) ||
        (!mounted &&
         !pv_session_mount(session, program->entry->name, program->needed, NULL, ema, error)))
        return false;
    save_buffers(program);
    return true;
}

// ---- the run ----

// As pv_program_run, at one scale of the loss, with these numbers of draws.
static bool run_scaled(PvProgram *program, const PvCallPlan *how, const uint64_t *draws,
                       int64_t count, double *seconds, PvError *error)
{
    PvRandom *random = program->session->random;
    PvExec *exec = program->session->exec;
    for (int64_t i = 0; i < count; i++) {
        memcpy(random->draws, draws, random->stream_count * sizeof *draws);
        if (!pv_program_restore(program, error))
            return false;
        double start = pv_seconds();
        if (!pv_call_run(exec, program->call, how, error) || !pv_exec_wait(exec, error))
            return false;
        if (seconds)
            seconds[i] = pv_seconds() - start;
    }
    return pv_call_fetch(program->call, error);
}

static bool all_finite(const void *data, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(((const PvReal *)data)[i]))
            return false;
    return true;
}

// Multiplies all gradients, of parameters and of inputs, which lie on the host. Were they finite?
static bool scale_gradients(const PvProgram *program, const PvPlan *plan, char *grads,
                            PvReal factor)
{
    bool finite = true;
    for (uint32_t i = 0; i < plan->grad_count; i++) {
        const PvParam *param = &program->session->model->params[plan->grads[i]];
        PvReal *at = (PvReal *)(void *)(grads + param->offset);
        finite &= all_finite(at, param->count);
        for (int64_t k = 0; k < param->count; k++)
            at[k] *= factor;
    }
    for (uint32_t i = 0; i < program->entry->output_count; i++) {
        PvTensor *tensor = program->call->outputs[i];
        if (program->entry->outputs[i].kind != PV_OUT_GRAD_INPUT)
            continue;
        finite &= all_finite(tensor->data, tensor->count);
        for (int64_t k = 0; k < tensor->count; k++)
            ((PvReal *)tensor->data)[k] *= factor;
    }
    return finite;
}

// Gradients of a model with values in f16, at the first scale that will do.
static bool run_f16(PvProgram *program, const PvCallPlan *how, const uint64_t *draws,
                    int64_t count, double *seconds, PvError *error)
{
    PvExec *exec = program->session->exec;
    const PvPlan *plan = how->plain ? &program->entry->plain[how->variant]
                                    : pv_exec_plan(exec, program->entry, how->variant);
    for (exec->loss_scale = 65536;; exec->loss_scale /= 16) {
        char *grads = NULL;
        if (!run_scaled(program, how, draws, count, seconds, error) ||
            !(grads = pv_exec_grads(exec, error)))
            return false;
        bool finite = scale_gradients(program, plan, grads, 1 / exec->loss_scale);
        if (finite || exec->loss_scale <= 1)
            return true;
    }
}

bool pv_program_run(PvProgram *program, const PvCallPlan *how, int64_t count, double *seconds,
                    PvError *error)
{
    const PvRandom *random = program->session->random;
    bool f16 = program->entry->kind == PV_GRAD_OF && program->session->model->shadow == PV_F16;
    size_t size = random->stream_count * sizeof *random->draws;
    uint64_t *draws = pv_alloc(size + 1);
    memcpy(draws, random->draws, size);
    bool good = f16 ? run_f16(program, how, draws, count, seconds, error)
                    : run_scaled(program, how, draws, count, seconds, error);
    free(draws);
    return good;
}
