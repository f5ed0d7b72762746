// The interface that emitted samplers run on (pv_host_*).
//
// A sampler is run twice. First dry: calls choose their variants, which only step values decide,
// and give tensors that nobody computes (untouched zero pages); that tells how many calls there
// will be, which instances they read, the memory, and how many frames come out. Then everything
// that can be wrong is wrong before the first real call. Streams are put back in between.
//
// The dry run also follows tensors from the calls that make them to what is written (clips, the
// trace). Calls that nothing written depends on are passed over in the real run, and need no
// weights: a trace of latents decodes no video.
#include "runtime/sample.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/cuda_exec.h"
#include "runtime/log.h"
#include "runtime/stop.h"

struct PvHost {
    const PvSampleRun *run;
    PvSamplePlan *plan; // the dry run fills it, the real run follows it
    bool dry;
    PvError *error;
    PvStep step;
    PvCall **calls; // [entry_count], made when first called
    PvProgress *progress;
    size_t at;       // calls so far
    int64_t done;    // of those that are wanted
    PvWords reports; // names of the reports so far
};

const PvSampler *pv_find_sampler(const PvModel *model, const char *name, PvError *error)
{
    PvWords names = {0};
    const PvSampler *found = NULL;
    for (uint32_t i = 0; i < model->sampler_count; i++) {
        pv_words_add(&names, model->samplers[i].name);
        if (!found && (!name || strcmp(model->samplers[i].name, name) == 0))
            found = &model->samplers[i];
    }
    if (!found && !name)
        pv_error(error, PV_WRONG, "this model has no sampler");
    else if (!found)
        pv_unknown("sampler", name, names.items, names.count, PV_WRONG, error);
    pv_words_free(&names);
    return found;
}

// ---- variables ----

void pv_host_set_tensor(PvVar *var, PvTensor *tensor)
{
    pv_tensor_drop(var->tensor);
    var->tensor = tensor;
}

void pv_host_copy(PvVar *var, const PvVar *from)
{
    PvTensor *tensor = pv_tensor_hold(from->tensor);
    var->number = from->number;
    pv_host_set_tensor(var, tensor);
}

const PvStep *pv_host_step(PvHost *host)
{
    return &host->step;
}

// ---- tensors of the dry run ----

typedef struct {
    char *space;
    int64_t bytes;
    size_t call; // number of the call it comes from + 1; 0: of none
} Blank;

static void drop_blank(void *owner)
{
    Blank *blank = owner;
    pv_space_free(blank->space, blank->bytes);
    free(blank);
}

// A tensor of zeros that takes no memory.
static PvTensor *blank_of(const PvType *type, int64_t batch, size_t call, PvError *error)
{
    int64_t dim[PV_MAX_RANK] = {0};
    for (uint32_t i = 0; i < type->rank; i++)
        dim[i] = type->dim[i] * (type->batch_axes >> i & 1 ? batch : 1);
    Blank *blank = pv_alloc(sizeof *blank);
    blank->call = call;
    blank->bytes = pv_type_bytes(type, batch);
    blank->space = pv_space_new(blank->bytes);
    if (!blank->space) {
        free(blank);
        pv_error(error, PV_MACHINE, "no address space for a tensor");
        return NULL;
    }
    PvTensor *tensor =
        pv_tensor_borrow(type->dtype, type->rank, dim, blank->space, drop_blank, blank, error);
    if (!tensor)
        drop_blank(blank);
    return tensor;
}

// Number of the call that a tensor of the dry run comes from + 1; 0: of none.
static size_t maker_of(const PvTensor *tensor)
{
    return tensor && tensor->release == drop_blank ? ((const Blank *)tensor->owner)->call : 0;
}

static void want(PvHost *host, const PvTensor *tensor)
{
    size_t maker = maker_of(tensor);
    if (host->dry && maker > 0)
        host->plan->calls[maker - 1].wanted = true;
}

// ---- what samplers call ----

int pv_host_option(PvHost *host, PvVar *var, uint32_t index)
{
    const PvOption *option = &host->run->session->model->options[index];
    PvTensor *tensor = host->run->given ? pv_set_find(host->run->given, option->name) : NULL;
    pv_host_set_tensor(var, NULL);
    if (!tensor)
        return 0;
    if (!pv_tensor_fits(tensor, &option->type, host->step.batch)) {
        char want[PV_SHAPE_TEXT], have[PV_SHAPE_TEXT];
        pv_error(host->error, PV_WRONG, "%s: '%s' is %s; the option is %s with b = %lld",
                 host->run->given->path, option->name,
                 pv_shape_text(have, tensor->rank, tensor->dim), pv_type_text(want, &option->type),
                 (long long)host->step.batch);
        return -1;
    }
    tensor = pv_tensor_convert(tensor, option->type.dtype, host->error);
    pv_host_set_tensor(var, tensor);
    return tensor ? 0 : -1;
}

static bool draw_there(PvHost *host, PvTensor *tensor, uint32_t stream, int kind)
{
    PvGpu *gpu = host->run->session->exec->gpu;
    CUdeviceptr at;
    return pv_tensor_place(tensor, gpu->device, &at, host->error) &&
           pv_gpu_draw(gpu, &host->step, stream, kind, tensor->count, at, host->error);
}

int pv_host_random(PvHost *host, PvVar *var, uint32_t stream, int kind, const PvType *type)
{
    PvRandom *random = host->step.random;
    PvGpu *gpu = host->run->session->exec->gpu;
    bool there = gpu && !host->dry && !pv_random_given(random, stream); // drawn on the GPU
    PvTensor *tensor = host->dry ? blank_of(type, host->step.batch, 0, host->error)
                       : there   ? pv_tensor_on(gpu->device, type, host->step.batch, host->error)
                                 : pv_tensor_of(type, host->step.batch, host->error);
    pv_host_set_tensor(var, tensor);
    if (!tensor || (there && !draw_there(host, tensor, stream, kind)))
        return -1;
    if (!host->dry && !there)
        pv_random_fill(random, stream, kind, 0, 0, tensor->count, tensor->data);
    pv_random_advance(random, &stream, 1);
    return 0;
}

// Inputs of a call from host variables.
static bool set_inputs(PvHost *host, PvCall *call, const PvVar *args)
{
    const PvEntry *entry = call->entry;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const PvType *type = &entry->inputs[i].type;
        bool good;
        if (type->rank == 0 && !args[i].tensor)
            good = pv_call_set_number(call, i,
                                      pv_dtype_is_real(type->dtype) ? args[i].number.f
                                                                    : (double)args[i].number.i,
                                      host->error);
        else
            good = pv_call_set(call, i, args[i].tensor, "a value of the sampler", host->error);
        if (!good)
            return false;
    }
    return pv_call_settle(call, host->step.batch, host->error);
}

// Results that nobody computes.
static bool blank_results(PvHost *host, PvCall *call, const PvPlan *plan, size_t number)
{
    for (uint32_t i = 0; i < call->entry->output_count; i++) {
        pv_tensor_drop(call->outputs[i]);
        call->outputs[i] =
            blank_of(&call->entry->outputs[i].type, call->step.batch, number, host->error);
        if (!call->outputs[i])
            return false;
    }
    pv_random_advance(host->step.random, plan->streams, plan->stream_count);
    return true;
}

// The dry run's call: notes the plan and where its tensors come from.
static void note_call(PvHost *host, const PvEntry *entry, const PvPlan *plan, const PvVar *args)
{
    PvSamplePlan *note = host->plan;
    note->calls = pv_grow(note->calls, &note->call_capacity, note->call_count, sizeof *note->calls);
    PvSampleCall *call = &note->calls[note->call_count++];
    *call = (PvSampleCall){.entry = entry, .plan = plan, .first_from = note->from_count};
    for (uint32_t i = 0; i < entry->input_count; i++) {
        size_t maker = maker_of(args[i].tensor);
        if (maker == 0)
            continue;
        note->from =
            pv_grow(note->from, &note->from_capacity, note->from_count, sizeof *note->from);
        note->from[note->from_count++] = maker - 1;
        call->from_count++;
    }
}

// Named outputs into the sampler's variables.
static bool give_results(const PvCall *call, PvVar **results, PvError *error)
{
    for (uint32_t i = 0, k = 0; i < call->entry->output_count; i++) {
        if (call->entry->outputs[i].kind != PV_OUT_NAMED)
            continue;
        PvVar *result = results[k++];
        if (!result)
            continue;
        if (call->entry->outputs[i].type.rank == 0) {
            if (!pv_tensor_fetch(call->outputs[i], error))
                return false;
            result->number.f = pv_tensor_number(call->outputs[i], 0);
        }
        pv_host_set_tensor(result, pv_tensor_hold(call->outputs[i]));
    }
    return true;
}

int pv_host_call(PvHost *host, uint32_t index, const PvVar *args, PvVar **results)
{
    PvSession *session = host->run->session;
    const PvEntry *entry = &session->model->entries[index];
    if (pv_stop_signal())
        return -1;
    if (!host->calls[index])
        host->calls[index] = pv_call_new(entry, session->options, session->random);
    PvCall *call = host->calls[index];
    if (!set_inputs(host, call, args))
        return -1;
    PvCallPlan how = {.variant = pv_exec_variant(entry, &call->step)};
    const PvPlan *plan = &entry->plans[how.variant];
    size_t number = ++host->at;
    if (host->dry)
        note_call(host, entry, plan, args);
    bool blank = host->dry || !host->plan->calls[number - 1].wanted;
    if (!(blank ? blank_results(host, call, plan, number)
                : pv_call_run(session->exec, call, &how, host->error)) ||
        !give_results(call, results, host->error))
        return -1;
    if (!blank && host->progress)
        pv_progress_at(host->progress, ++host->done, NULL);
    return 0;
}

int pv_host_yield(PvHost *host, const PvVar *var)
{
    PvTensor *clip = var->tensor; // [b, 3, t, h, w]
    if (!clip || clip->rank != 5 || clip->dim[1] != 3 || clip->dtype != PV_REAL_DTYPE) {
        char text[PV_SHAPE_TEXT];
        pv_error(host->error, PV_WRONG, "the sampler yields %s; a video is [b, 3, t, h, w]",
                 clip ? pv_shape_text(text, clip->rank, clip->dim) : "a number");
        return -1;
    }
    if (host->run->clips)
        want(host, clip);
    if (host->dry) {
        if (host->plan->frames == 0)
            host->plan->clip_frames = clip->dim[2];
        host->plan->frames += clip->dim[2];
        host->plan->frame_bytes += 3 * clip->dim[2] * clip->dim[3] * clip->dim[4];
        return 0;
    }
    if (!host->run->clips)
        return 0;
    if (!pv_tensor_fetch(clip, host->error))
        return -1;
    return pv_clips_add(host->run->clips, clip->dim[0], clip->dim[2], (int)clip->dim[3],
                        (int)clip->dim[4], clip->data, host->error)
               ? 0
               : -1;
}

int pv_host_report(PvHost *host, const char *name, const PvVar *var)
{
    if (host->run->trace)
        want(host, var->tensor);
    if (host->dry || !host->run->trace || !var->tensor)
        return 0;
    if (!pv_tensor_fetch(var->tensor, host->error))
        return -1;
    int64_t count = 1;
    for (size_t i = 0; i < host->reports.count; i++)
        count += strcmp(host->reports.items[i], name) == 0;
    pv_words_add(&host->reports, name);
    char *full = pv_printf("%s.%lld", name, (long long)count);
    pv_set_add(host->run->trace, full, pv_tensor_hold(var->tensor));
    free(full);
    return 0;
}

// ---- the two runs ----

static bool run_sampler(PvHost *host)
{
    PvSession *session = host->run->session;
    host->step = (PvStep){host->run->batch, session->options, NULL, 0, session->random};
    host->calls = pv_alloc((session->model->entry_count + 1u) * sizeof(void *));
    bool good = host->run->sampler->run(host) == 0;
    for (uint32_t i = 0; i < session->model->entry_count; i++)
        pv_call_free(host->calls[i]);
    free(host->calls);
    pv_words_free(&host->reports);
    return good;
}

// Wanted calls want what they are made from; then what all of them need.
static void finish_plan(const PvSampleRun *run, PvSamplePlan *plan)
{
    for (size_t i = plan->call_count; i-- > 0;) {
        const PvSampleCall *call = &plan->calls[i];
        if (!call->wanted)
            continue;
        for (size_t k = 0; k < call->from_count; k++)
            plan->calls[plan->from[call->first_from + k]].wanted = true;
        plan->wanted++;
        pv_plan_instances(call->plan, plan->needed);
        PvMemoryItem need = pv_exec_need(run->session->exec, call->entry, call->plan);
        if (pv_memory_sum(&need, 1, run->batch) > pv_memory_sum(&plan->activations, 1, run->batch))
            plan->activations = need;
    }
}

bool pv_sample_plan(const PvSampleRun *run, PvSamplePlan *plan, PvError *error)
{
    PvRandom *random = run->session->random;
    size_t size = random->stream_count * sizeof *random->draws;
    uint64_t *draws = pv_alloc(size + 1);
    memcpy(draws, random->draws, size);
    *plan = (PvSamplePlan){.activations = {"activations", 0, 0}};
    plan->needed = pv_alloc(run->session->model->instance_count + 1u);
    PvHost host = {.run = run, .plan = plan, .dry = true, .error = error};
    bool good = run_sampler(&host);
    finish_plan(run, plan);
    memcpy(random->draws, draws, size);
    free(draws);
    return good;
}

bool pv_sample_plan_frames(const PvSampleRun *run, int64_t frames, PvSamplePlan *plan,
                           PvError *error)
{
    const PvModel *model = run->session->model;
    const char *name = run->sampler->name;
    PvScalar *options = run->session->options;
    if (frames > 0)
        pv_option_put(model, name, "clips", 1, options);
    if (!pv_sample_plan(run, plan, error))
        return false;
    if (frames == 0 || plan->frames >= frames)
        return true;
    if (!pv_option_find(model, name, "clips") || plan->clip_frames == 0)
        return pv_error(error, PV_WRONG, "%lld frames are asked for: sampler %s gives %lld",
                        (long long)frames, name, (long long)plan->frames);
    int64_t clips = (frames + plan->clip_frames - 1) / plan->clip_frames;
    pv_option_put(model, name, "clips", clips, options);
    pv_sample_plan_free(plan);
    return pv_sample_plan(run, plan, error);
}

void pv_sample_plan_free(PvSamplePlan *plan)
{
    free(plan->calls);
    free(plan->from);
    free(plan->needed);
    *plan = (PvSamplePlan){0};
}

bool pv_sample_run(const PvSampleRun *run, PvSamplePlan *plan, PvError *error)
{
    PvHost host = {.run = run, .plan = plan, .error = error};
    host.progress = run->quiet ? NULL : pv_progress_new("call", 0, plan->wanted);
    bool good = run_sampler(&host);
    pv_progress_end(host.progress);
    return good || (pv_stop_signal() && !error->text);
}
