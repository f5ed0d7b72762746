// The functions of library.h: sessions, programs and samplers under a C interface.
#include "runtime/library.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"
#include "runtime/sample.h"

_Static_assert((int)PVDM_BOOL == (int)PV_BOOL && (int)PVDM_F64 == (int)PV_F64 &&
                   (int)PVDM_U8 == (int)PV_U8 && (int)PVDM_I32 == (int)PV_I32 &&
                   (int)PVDM_MAX_RANK == (int)PV_MAX_RANK,
               "the types of library.h are those of PvDType");

struct PvdmModel {
    PvSession session;
    bool averages;
    PvClips clips; // of the last pvdm_sample
};

struct PvdmCall {
    PvdmModel *model;
    PvProgram program;
    const PvPlan *plan; // of the last run; NULL: there was none, or it failed
    char *grads;        // PV_GRAD after it
};

// ---- errors ----

static _Thread_local char *message;

const char *pvdm_message(void)
{
    return message ? message : "";
}

// Keeps the text of an error, which is freed. 0 where there is none.
static int told(bool good, PvError *error)
{
    int status = good ? PV_DONE : error->status == PV_MACHINE ? PV_MACHINE : PV_WRONG;
    if (!good) {
        free(message);
        message = pv_printf("%s%s%s", error->text ? error->text : "not enough memory",
                            error->hint ? "; " : "", error->hint ? error->hint : "");
    }
    pv_error_free(error);
    return status;
}

// ---- the model ----

PvdmModel *pvdm_open(const char *device, int threads)
{
    PvError error = {0};
    PvdmModel *model = pv_alloc(sizeof *model);
    model->session.device = device;
    model->session.threads = threads;
    if (told(pv_session_open(&model->session, &pv_model, NULL, 0, &error), &error) == PV_DONE)
        return model;
    pvdm_close(model);
    return NULL;
}

void pvdm_close(PvdmModel *model)
{
    if (!model)
        return;
    pv_clips_free(&model->clips);
    pv_session_close(&model->session);
    free(model);
}

int pvdm_weights(PvdmModel *model, const char *const *files, int count, int averages)
{
    PvSession *session = &model->session;
    pv_words_free(&session->weights);
    for (int i = 0; i < count; i++)
        pv_words_take(&session->weights, pv_strdup(files[i]));
    model->averages = averages != 0;
    memset(session->loaded, 0, session->model->instance_count * sizeof *session->loaded);
    return PV_DONE;
}

// Is it an option, NAME or SAMPLER.NAME, of `length` bytes?
static bool is_option(const PvOption *option, const char *name, size_t length)
{
    char *full = option->stage ? pv_printf("%s.%s", option->stage, option->name) : NULL;
    const char *text = full ? full : option->name;
    bool same = strlen(text) == length && memcmp(text, name, length) == 0;
    free(full);
    return same;
}

int pvdm_set(PvdmModel *model, const char *assignment)
{
    PvSession *session = &model->session;
    const PvModel *tables = session->model;
    size_t length = strcspn(assignment, "=");
    PvError error = {0};
    const PvOption *option = NULL;
    for (uint32_t i = 0; i < tables->option_count && !option; i++)
        if (tables->options[i].dtype != PV_NONE &&
            is_option(&tables->options[i], assignment, length))
            option = &tables->options[i];
    if (!option)
        return told(pv_error(&error, PV_WRONG, "the model has no option '%.*s'", (int)length,
                             assignment),
                    &error);
    bool good = pv_config_set(&session->config, assignment, &error) &&
                pv_options_apply(tables, option->stage, &session->config, session->options, &error);
    return told(good, &error);
}

void pvdm_seed(PvdmModel *model, uint64_t seed)
{
    PvRandom *random = model->session.random;
    random->seed = seed;
    memset(random->draws, 0, random->stream_count * sizeof *random->draws);
}

// ---- programs ----

const char *pvdm_program(const PvdmModel *model, int index)
{
    const PvModel *tables = model->session.model;
    for (uint32_t i = 0; index >= 0 && i < tables->entry_count; i++)
        if (tables->entries[i].kind == PV_PROGRAM && index-- == 0)
            return tables->entries[i].name;
    return NULL;
}

PvdmCall *pvdm_call(PvdmModel *model, const char *program, int gradient)
{
    PvError error = {0};
    PvdmCall *call = pv_alloc(sizeof *call);
    bool good = pv_program_open(&call->program, &model->session, program,
                                gradient ? PV_GRAD_OF : PV_PROGRAM, &error);
    if (told(good, &error) != PV_DONE) {
        free(call);
        return NULL;
    }
    call->model = model;
    call->program.keep = true;
    return call;
}

void pvdm_call_free(PvdmCall *call)
{
    if (!call)
        return;
    pv_program_close(&call->program);
    free(call);
}

const char *pvdm_input_name(const PvdmCall *call, int index)
{
    const PvEntry *entry = call->program.entry;
    return index >= 0 && (uint32_t)index < entry->input_count ? entry->inputs[index].name : NULL;
}

// Outputs that are listed: not what only training asks for.
static bool is_listed(const PvOutput *output)
{
    return output->kind == PV_OUT_NAMED || output->kind == PV_OUT_GRAD_INPUT;
}

const char *pvdm_output_name(const PvdmCall *call, int index)
{
    const PvEntry *entry = call->program.entry;
    for (uint32_t i = 0; index >= 0 && i < entry->output_count; i++)
        if (is_listed(&entry->outputs[i]) && index-- == 0)
            return entry->outputs[i].name;
    return NULL;
}

static PvTensor *copy_tensor(const PvdmTensor *from, PvError *error)
{
    if (from->rank < 0 || from->rank > PV_MAX_RANK || pv_dtype_size(from->type) == 0) {
        pv_error(error, PV_WRONG, "a tensor of type %d and rank %d", from->type, from->rank);
        return NULL;
    }
    PvTensor *tensor = pv_tensor_new(from->type, from->rank, from->dim, error);
    if (tensor)
        memcpy(tensor->data, from->data, (size_t)tensor->bytes);
    return tensor;
}

int pvdm_input(PvdmCall *call, const char *name, const PvdmTensor *tensor)
{
    PvError error = {0};
    int index = pv_call_find_input(call->program.entry, name, &error);
    if (index < 0)
        return told(false, &error);
    PvTensor *copy = tensor ? copy_tensor(tensor, &error) : NULL;
    bool good = (!tensor || copy) &&
                pv_call_set(call->program.call, (uint32_t)index, copy, "the tensor", &error);
    pv_tensor_drop(copy);
    return told(good, &error);
}

int pvdm_run(PvdmCall *call)
{
    PvError error = {0};
    PvProgram *program = &call->program;
    PvExec *exec = program->session->exec;
    call->plan = NULL;
    bool good = pv_program_settle(program, &error);
    const PvPlan *plan = good ? pv_exec_plan(exec, program->entry, program->variant) : NULL;
    PvCallPlan how = {.variant = program->variant};
    good = good && pv_program_prepare(program, plan, call->model->averages, &error) &&
           pv_program_run(program, &how, 1, NULL, &error) &&
           pv_program_restore(program, &error) &&
           (plan->grad_count == 0 || (call->grads = pv_exec_grads(exec, &error)));
    if (good)
        call->plan = plan;
    return told(good, &error);
}

// The gradient of a parameter, "grad.<instance>.<parameter>", if the plan writes it.
static bool find_gradient(const PvdmCall *call, const char *name, PvdmTensor *tensor)
{
    const PvModel *tables = call->program.session->model;
    for (uint32_t i = 0; i < call->plan->grad_count; i++) {
        const PvParam *param = &tables->params[call->plan->grads[i]];
        if (strncmp(name, "grad.", 5) != 0 || strcmp(name + 5, param->name) != 0)
            continue;
        *tensor = (PvdmTensor){param->type.dtype, param->type.rank, {0},
                               call->grads + param->offset};
        memcpy(tensor->dim, param->type.dim, sizeof tensor->dim);
        return true;
    }
    return false;
}

int pvdm_output(const PvdmCall *call, const char *name, PvdmTensor *tensor)
{
    PvError error = {0};
    const PvEntry *entry = call->program.entry;
    PvWords names = {0};
    if (!call->plan)
        return told(pv_error(&error, PV_WRONG, "%s was not run", entry->name), &error);
    for (uint32_t i = 0; i < entry->output_count; i++) {
        const PvTensor *from = call->program.call->outputs[i];
        if (!is_listed(&entry->outputs[i]))
            continue;
        pv_words_add(&names, entry->outputs[i].name);
        if (strcmp(name, entry->outputs[i].name) != 0)
            continue;
        *tensor = (PvdmTensor){from->dtype, from->rank, {0}, from->data};
        memcpy(tensor->dim, from->dim, sizeof tensor->dim);
        pv_words_free(&names);
        return PV_DONE;
    }
    bool good = find_gradient(call, name, tensor) ||
                pv_unknown("output", name, names.items, names.count, PV_WRONG, &error);
    pv_words_free(&names);
    return told(good, &error);
}

// ---- samplers ----

// As pvdm_sample: `plan` is made.
static bool sample(PvdmModel *model, const PvSampleRun *run, int64_t frames, PvSamplePlan *plan,
                   PvError *error)
{
    PvSession *session = &model->session;
    if (!pv_sample_plan_frames(run, frames, plan, error))
        return false;
    PvMemoryItem items[] = {
        {"parameters", pv_session_missing_bytes(session, plan->needed), 0},
        plan->activations,
        {"frames", 0, plan->frame_bytes},
    };
    return pv_session_memory(session, "sample", items, 3, run->batch, error) &&
           (pv_session_is_mounted(session, plan->needed) ||
            pv_session_mount(session, "sample", plan->needed, NULL, model->averages, error)) &&
           pv_sample_run(run, plan, error);
}

int pvdm_sample(PvdmModel *model, const char *sampler, int64_t videos, int64_t frames)
{
    PvError error = {0};
    PvSession *session = &model->session;
    PvSampleRun run = {.session = session, .batch = videos, .clips = &model->clips, .quiet = true};
    pv_clips_free(&model->clips);
    if (videos < 1 || frames < 0)
        return told(pv_error(&error, PV_WRONG, "%lld videos of %lld frames cannot be sampled",
                             (long long)videos, (long long)frames),
                    &error);
    run.sampler = pv_find_sampler(session->model, sampler, &error);
    if (!run.sampler)
        return told(false, &error);
    size_t size = session->model->option_slots * sizeof *session->options;
    PvScalar *options = pv_alloc(size + 1); // `frames` sets one for this time
    memcpy(options, session->options, size);
    PvSamplePlan plan = {0};
    bool good = sample(model, &run, frames, &plan, &error);
    memcpy(session->options, options, size);
    free(options);
    pv_sample_plan_free(&plan);
    return told(good, &error);
}

int pvdm_video(const PvdmModel *model, int64_t index, PvdmTensor *tensor)
{
    PvError error = {0};
    const PvClips *clips = &model->clips;
    if (index < 0 || index >= clips->count)
        return told(pv_error(&error, PV_WRONG, "there is no video %lld: %lld were sampled",
                             (long long)index, (long long)clips->count),
                    &error);
    *tensor = (PvdmTensor){
        PVDM_U8, 4, {clips->frames, clips->height, clips->width, 3}, clips->rgb[index]};
    return PV_DONE;
}
