// `train STAGE --replay F --steps N --state O`: training on given batches and draws, for checks
// against other implementations. Micro-step k of a minimize takes its data and inputs from F under
// "NAME.k" or "NAME"; draw i of a stream is "STREAM.i" or "STREAM". What moved is written under
// <instance>.<parameter>, ema.<...>, adam_m.<...>, adam_v.<...>, and the losses as loss [N] (of
// further minimizes: loss.1, loss.2). Without --state the losses are printed. The median time of a
// step is printed in either case.
#include "runtime/replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/safetensors.h"
#include "runtime/timing.h"

// feed_context: the set of given tensors.
static bool feed(void *context, PvTrain *train, uint32_t index, PvError *error)
{
    PvTensorSet *given = context;
    PvTurn *turn = &train->turns[index];
    const PvEntry *entry = turn->call->entry;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const PvInput *input = &entry->inputs[i];
        char *name = pv_printf("%s.%lld", input->name, (long long)turn->micro);
        PvTensor *tensor = pv_set_find(given, name);
        if (!tensor)
            tensor = pv_set_find(given, input->name);
        char *from = pv_printf("%s: '%s'", given->path ? given->path : "replay", name);
        bool good = tensor || input->optional
                        ? pv_call_set(turn->call, i, tensor, from, error)
                        : pv_error(error, PV_WRONG, "%s: there is neither '%s' nor '%s'",
                                   given->path ? given->path : "replay", name, input->name);
        free(from);
        free(name);
        if (!good)
            return false;
    }
    return true;
}

// The batch of the first micro-step, for the comparison with the memory there is.
bool pv_replay_batch(PvTrain *train, PvTensorSet *given, int64_t steps, int64_t *batch,
                     PvError *error)
{
    train->feed = feed;
    train->feed_context = given;
    train->session->random->given = given;
    train->session->random->given_always = true;
    *batch = 1;
    for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
        PvCall *call = train->turns[i].call;
        if (!feed(given, train, i, error) || !pv_call_settle(call, 1, error))
            return false;
        if (call->step.batch > *batch)
            *batch = call->step.batch;
    }
    train->batch = *batch;
    pv_train_reach(train, steps);
    return true;
}

static void add_param(PvWriter *writer, const char *prefix, const PvParam *param, const char *space)
{
    char *name = pv_printf("%s%s", prefix, param->name);
    pv_writer_add(writer, name, param->type.dtype, param->type.rank, param->type.dim,
                  space + param->offset, param->type.dtype);
    free(name);
}

static bool has_ema(const PvTrain *train, uint32_t instance)
{
    for (uint32_t i = 0; i < train->stage->minimize_count; i++)
        for (uint32_t k = 0; k < train->stage->minimize[i].instance_count; k++)
            if (train->stage->minimize[i].instances[k] == instance && train->turns[i].ema_every > 0)
                return true;
    return false;
}

// losses: [minimizes, steps]
static bool write_state(PvTrain *train, const char *path, const double *losses, int64_t steps,
                        PvError *error)
{
    const PvModel *model = train->session->model;
    const PvOptimizer *optimizer = train->optimizer;
    if (!pv_train_fetch(train, error))
        return false;
    PvWriter *writer = pv_writer_new();
    for (uint32_t p = 0; p < model->param_count; p++) {
        const PvParam *param = &model->params[p];
        if (!train->moves[param->instance])
            continue;
        add_param(writer, "", param, train->session->exec->params);
        if (param->buffer)
            continue;
        if (has_ema(train, param->instance))
            add_param(writer, "ema.", param, optimizer->ema);
        add_param(writer, "adam_m.", param, optimizer->m);
        add_param(writer, "adam_v.", param, optimizer->v);
    }
    for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
        char *name = i == 0 ? pv_strdup("loss") : pv_printf("loss.%u", i);
        pv_writer_add(writer, name, PV_REAL_DTYPE, 1, &steps, losses + (int64_t)i * steps, PV_F64);
        free(name);
    }
    pv_writer_metadata(writer, "stage", train->stage->name);
    return pv_writer_finish(writer, path, error);
}

static void print_losses(const PvTrain *train, const double *losses, int64_t steps)
{
    for (int64_t k = 0; k < steps; k++) {
        printf("step %lld: loss", (long long)k + 1);
        for (uint32_t i = 0; i < train->stage->minimize_count; i++)
            printf(" %.9g", losses[(int64_t)i * steps + k]);
        putchar('\n');
    }
}

bool pv_replay(PvTrain *train, int64_t steps, const char *state, PvError *error)
{
    uint32_t turns = train->stage->minimize_count;
    double *losses = pv_alloc(((size_t)turns * (size_t)steps + 1) * sizeof *losses);
    double *seconds = pv_alloc(((size_t)steps + 1) * sizeof *seconds);
    bool good = true;
    for (int64_t k = 0; good && k < steps; k++) {
        double start = pv_seconds();
        good = pv_train_step(train, error) && pv_train_numbers(train, error);
        seconds[k] = pv_seconds() - start;
        for (uint32_t i = 0; i < turns; i++)
            losses[(int64_t)i * steps + k] = train->turns[i].loss;
    }
    if (good && state)
        good = write_state(train, state, losses, steps, error);
    else if (good)
        print_losses(train, losses, steps);
    if (good && steps > 0)
        pv_print_median(seconds, steps);
    free(seconds);
    free(losses);
    return good;
}
