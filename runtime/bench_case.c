// What `bench` measures: a program, the gradient of one, a training step of a stage, or a step of a
// sampler, with inputs that are given or drawn, and weights that are mounted or drawn.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/bench.h"

void pv_bench_list(const PvModel *model, PvWords *names)
{
    for (uint32_t i = 0; i < model->entry_count; i++)
        if (model->entries[i].rung_count > 0 && model->entries[i].kind == PV_PROGRAM)
            pv_words_take(names, pv_strdup(model->entries[i].name));
    for (uint32_t i = 0; i < model->entry_count; i++)
        if (model->entries[i].rung_count > 0 && model->entries[i].kind == PV_GRAD_OF)
            pv_words_take(names, pv_printf("grad.%s", model->entries[i].name));
    for (uint32_t i = 0; i < model->stage_count; i++)
        pv_words_take(names, pv_printf("train.%s", model->stages[i].name));
}

static const PvEntry *find_entry(const PvModel *model, const char *name, PvEntryKind kind)
{
    for (uint32_t i = 0; i < model->entry_count; i++)
        if (model->entries[i].kind == kind && strcmp(model->entries[i].name, name) == 0)
            return &model->entries[i];
    return NULL;
}

static const PvStage *find_stage(const PvModel *model, const char *name)
{
    for (uint32_t i = 0; i < model->stage_count; i++)
        if (strcmp(model->stages[i].name, name) == 0)
            return &model->stages[i];
    return NULL;
}

// Sets kind and entry or stage.
static bool find_case(PvBenchCase *at, const PvModel *model, const char *name, PvError *error)
{
    if (strncmp(name, "grad.", 5) == 0) {
        at->entry = find_entry(model, name + 5, PV_GRAD_OF);
        at->kind = PV_GRAD_OF;
    } else if (strncmp(name, "train.", 6) == 0) {
        at->stage = find_stage(model, name + 6);
        at->kind = PV_MINIMIZE;
    } else {
        at->entry = find_entry(model, name, PV_PROGRAM);
        at->kind = PV_PROGRAM;
        if (!at->entry && (at->entry = find_entry(model, name, PV_CALL)))
            at->kind = PV_CALL;
        if (!at->entry && (at->stage = find_stage(model, name)))
            at->kind = PV_MINIMIZE;
    }
    if (at->entry || at->stage)
        return true;
    PvWords names = {0};
    pv_bench_list(model, &names);
    pv_unknown("program", name, names.items, names.count, PV_WRONG, error);
    pv_words_free(&names);
    return false;
}

bool pv_bench_known(const PvModel *model, const char *name, PvError *error)
{
    PvBenchCase at = {0};
    return find_case(&at, model, name, error);
}

// ---- inputs ----

// A number of an index: a generator of few lines, since any well-spread numbers do.
static double spread(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(*state >> 11) * 0x1p-53;
}

// Reals: normal, as noise is. Integers: 1 and 0, which every table has rows for.
static void fill_random(PvTensor *tensor, uint64_t seed)
{
    uint64_t state = seed * 977 + 1;
    int64_t size = pv_dtype_size(tensor->dtype);
    for (int64_t i = 0; i < tensor->count; i++) {
        double value;
        if (pv_dtype_is_real(tensor->dtype))
            value = sqrt(-2 * log(1 - spread(&state))) * cos(6.283185307179586 * spread(&state));
        else
            value = (double)((i + (int64_t)seed + 1) % 2);
        pv_convert((char *)tensor->data + i * size, tensor->dtype, &value, PV_F64, 1);
    }
}

static bool set_inputs(PvBenchCase *at, PvCall *call, int64_t batch, const PvTensorSet *given,
                       PvError *error)
{
    const PvEntry *entry = call->entry;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const PvInput *input = &entry->inputs[i];
        PvTensor *tensor = pv_tensor_hold(pv_set_find(given, input->name));
        if (!tensor) {
            tensor = pv_tensor_of(&input->type, batch, error);
            if (tensor)
                fill_random(tensor, i);
        }
        bool good = tensor && pv_call_set(call, i, tensor, input->name, error);
        if (good)
            pv_set_add(&at->inputs, input->name, pv_tensor_hold(tensor));
        pv_tensor_drop(tensor);
        if (!good)
            return false;
    }
    return pv_call_settle(call, batch, error);
}

// feed_context: nothing; the calls have had their inputs from the beginning.
static bool feed_nothing(void *context, PvTrain *train, uint32_t turn, PvError *error)
{
    (void)context, (void)train, (void)turn, (void)error;
    return true;
}

// ---- weights ----

static bool starts_empty(const PvParam *param)
{
    return !param->buffer && pv_dtype_is_real(param->type.dtype) &&
           (param->init == PV_ZEROS || (param->init == PV_FULL && param->init_a == 0));
}

bool pv_bench_weights(PvSession *session, PvError *error)
{
    const PvModel *model = session->model;
    char *params = pv_exec_params(session->exec, error);
    if (!params)
        return false;
    for (uint32_t i = 0; i < model->instance_count; i++)
        if (!session->loaded[i])
            pv_instance_init(model, i, 1, params);
    for (uint32_t p = 0; p < model->param_count; p++) {
        const PvParam *param = &model->params[p];
        if (session->loaded[param->instance] || !starts_empty(param))
            continue;
        uint64_t state = p + 1;
        PvReal *values = (PvReal *)(void *)(params + param->offset);
        for (int64_t k = 0; k < param->count; k++)
            values[k] = (PvReal)(0.04 * (spread(&state) - 0.5));
    }
    pv_exec_params_written(session->exec);
    return true;
}

// ---- cases ----

static bool make_calls(PvBenchCase *at, int64_t batch, const PvTensorSet *given, PvError *error)
{
    PvSession *session = at->session;
    if (at->stage) {
        at->train = pv_train_new(session, at->stage, 1, -1, false, error);
        if (!at->train)
            return false;
        at->call_count = at->stage->minimize_count;
        at->train->batch = batch;
        at->train->feed = feed_nothing;
        for (uint32_t i = 0; i < at->call_count; i++)
            at->calls[i] = at->train->turns[i].call;
        pv_option_put(session->model, at->stage->name, "step", 0, session->options);
    } else {
        at->call_count = 1;
        at->calls[0] = pv_call_new(at->entry, session->options, session->random);
    }
    for (uint32_t i = 0; i < at->call_count; i++) {
        if (!set_inputs(at, at->calls[i], batch, given, error))
            return false;
        at->variant[i] = pv_exec_variant(at->calls[i]->entry, &at->calls[i]->step);
    }
    return true;
}

PvBenchCase *pv_bench_case_new(PvSession *session, const char *name, int64_t batch,
                               const PvTensorSet *given, PvError *error)
{
    PvBenchCase *at = pv_alloc(sizeof *at);
    at->session = session;
    size_t size = session->random->stream_count * sizeof *at->draws;
    at->draws = pv_alloc(size + 1);
    memcpy(at->draws, session->random->draws, size);
    if (find_case(at, session->model, name, error) && make_calls(at, batch, given, error)) {
        bool bare = at->stage && strncmp(name, "train.", 6) != 0;
        at->name = bare ? pv_printf("train.%s", name) : pv_strdup(name);
        if (at->train)
            pv_train_start(at->train, 1);
        if (pv_bench_weights(session, error))
            return at;
    }
    pv_bench_case_free(at);
    return NULL;
}

void pv_bench_case_free(PvBenchCase *at)
{
    if (!at)
        return;
    if (!at->train)
        pv_call_free(at->calls[0]);
    pv_train_free(at->train);
    pv_set_free(&at->inputs);
    free(at->draws);
    free(at->name);
    free(at);
}

static void restart_draws(PvBenchCase *at)
{
    PvRandom *random = at->session->random;
    memcpy(random->draws, at->draws, random->stream_count * sizeof *at->draws);
}

bool pv_bench_forward(PvBenchCase *at, PvError *error)
{
    restart_draws(at);
    for (uint32_t i = 0; i < at->call_count; i++) {
        PvCallPlan plan = {.variant = at->variant[i]};
        if (!pv_call_run(at->session->exec, at->calls[i], &plan, error))
            return false;
    }
    return pv_exec_wait(at->session->exec, error);
}

bool pv_bench_step(PvBenchCase *at, PvError *error)
{
    if (!at->train)
        return pv_bench_forward(at, error);
    restart_draws(at);
    at->train->step = 0;
    return pv_train_step(at->train, error) && pv_exec_wait(at->session->exec, error);
}

uint32_t pv_bench_rungs(const PvBenchCase *at)
{
    return at->calls[0]->entry->rung_count;
}

const PvPlan *pv_bench_plan(const PvBenchCase *at, uint32_t call, uint32_t rung)
{
    return &at->calls[call]->entry->rungs[rung].plans[at->variant[call]];
}
