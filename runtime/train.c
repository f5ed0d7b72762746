// One step of training.
//
// A micro-step is a run of the minimize's entry: it writes the loss, reports and settings (learning
// rate and so on, step values) as outputs, and gradients into PV_GRAD. With accumulate > 1 the
// gradients are added up in a buffer of their own and the update divides. A parameter that no
// micro-step of an update reached is left alone.
//
// For replay, a minimize whose loss is the call of a program runs that program's gradient on given
// inputs; its settings then come from the minimize's own entry, of which only the launches that
// store settings are run.
#include "runtime/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda_optimizer.h"
#include "runtime/rows.h"

const PvStage *pv_find_stage(const PvModel *model, const char *name, PvError *error)
{
    PvWords names = {0};
    const PvStage *found = NULL;
    for (uint32_t i = 0; i < model->stage_count; i++) {
        pv_words_add(&names, model->stages[i].name);
        if (strcmp(model->stages[i].name, name) == 0)
            found = &model->stages[i];
    }
    if (!found)
        pv_unknown("stage", name, names.items, names.count, PV_WRONG, error);
    pv_words_free(&names);
    return found;
}

// The call that a turn runs, and where its settings come from.
static void make_turn(PvTrain *train, uint32_t index, bool replay)
{
    PvSession *session = train->session;
    const PvModel *model = session->model;
    const PvMinimize *minimize = &train->stage->minimize[index];
    PvTurn *turn = &train->turns[index];
    const PvEntry *own = &model->entries[minimize->entry];
    const PvEntry *run = own;
    if (replay && minimize->replay != UINT32_MAX)
        run = &model->entries[minimize->replay];
    if (run != own || session->exec->gpu) // a GPU's outputs come too late
        turn->settings_call = pv_call_new(own, session->options, session->random);
    turn->call = pv_call_new(run, session->options, session->random);
    turn->reach = UINT64_MAX;
    turn->reports = pv_alloc((run->output_count + 1u) * sizeof *turn->reports);
}

static bool reaches(const PvTurn *turn, uint32_t variant)
{
    return turn->reach >> variant & 1;
}

static void mark_instances(PvTrain *train)
{
    const PvModel *model = train->session->model;
    for (uint32_t i = 0; i < model->instance_count; i++)
        train->needed[i] = train->moves[i] = false;
    for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
        const PvMinimize *minimize = &train->stage->minimize[i];
        const PvEntry *entry = train->turns[i].call->entry;
        for (uint32_t v = 0; v < entry->variant_count; v++)
            if (reaches(&train->turns[i], v))
                pv_plan_instances(&entry->plans[v], train->needed);
        for (uint32_t k = 0; k < minimize->instance_count; k++)
            train->moves[minimize->instances[k]] = true;
    }
    for (uint32_t i = 0; i < model->instance_count; i++)
        train->needed[i] |= train->moves[i];
}

// The variants of the turns of one step.
static void foresee_step(PvTrain *train)
{
    for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
        PvTurn *turn = &train->turns[i];
        for (int64_t micro = 0; micro < turn->accumulate; micro++) {
            uint32_t variant = pv_exec_variant(turn->call->entry, &turn->call->step);
            const PvPlan *plan = &turn->call->entry->plans[variant];
            turn->reach |= UINT64_C(1) << variant;
            pv_random_advance(train->session->random, plan->streams, plan->stream_count);
        }
    }
}

void pv_train_reach(PvTrain *train, int64_t steps)
{
    PvSession *session = train->session;
    size_t size = session->random->stream_count * sizeof *session->random->draws;
    uint64_t *draws = pv_alloc(size + 1);
    memcpy(draws, session->random->draws, size);
    for (uint32_t i = 0; i < train->stage->minimize_count; i++)
        train->turns[i].reach = 0;
    for (int64_t k = 0; k == 0 || (k < steps && k < 4096); k++) {
        pv_option_put(session->model, train->stage->name, "step", train->step + k,
                      session->options);
        foresee_step(train);
    }
    memcpy(session->random->draws, draws, size);
    free(draws);
    mark_instances(train);
}

PvTrain *pv_train_new(PvSession *session, const PvStage *stage, int64_t accumulate,
                      int64_t ema_every, bool replay, PvError *error)
{
    const PvModel *model = session->model;
    if (stage->minimize_count > PV_MAX_MINIMIZE) {
        pv_error(error, PV_WRONG, "stage %s has %u minimizes; at most %d can take turns",
                 stage->name, stage->minimize_count, PV_MAX_MINIMIZE);
        return NULL;
    }
    PvTrain *train = pv_alloc(sizeof *train);
    train->session = session;
    train->stage = stage;
    train->present = pv_alloc((model->param_count + 1u) * sizeof *train->present);
    train->seen = pv_alloc((model->param_count + 1u) * sizeof *train->seen);
    train->needed = pv_alloc((model->instance_count + 1u) * sizeof *train->needed);
    train->moves = pv_alloc((model->instance_count + 1u) * sizeof *train->moves);
    for (uint32_t i = 0; i < stage->minimize_count; i++) {
        const PvMinimize *minimize = &stage->minimize[i];
        PvTurn *turn = &train->turns[i];
        make_turn(train, i, replay);
        turn->accumulate = accumulate > 0 ? accumulate : minimize->accumulate;
        if (turn->accumulate < 1)
            turn->accumulate = 1;
        bool changed = ema_every >= 0 && minimize->ema_every > 0; // 0: no averages
        turn->ema_every = changed ? ema_every : minimize->ema_every;
    }
    mark_instances(train);
    train->optimizer = pv_optimizer_new(model, stage, session->exec->threads);
    if (!train->optimizer)
        pv_error(error, PV_MACHINE, "no address space for the optimizer");
    if (train->optimizer && pv_train_device_new(train, error))
        return train;
    pv_train_free(train);
    return NULL;
}

void pv_train_free(PvTrain *train)
{
    if (!train)
        return;
    for (uint32_t i = 0; i < train->stage->minimize_count && i < PV_MAX_MINIMIZE; i++) {
        pv_call_free(train->turns[i].call);
        pv_call_free(train->turns[i].settings_call);
        pv_turn_device_free(&train->turns[i]);
        free(train->turns[i].reports);
    }
    if (train->optimizer)
        pv_gpu_optimizer_free(train->optimizer->gpu);
    pv_optimizer_free(train->optimizer);
    free(train->present);
    free(train->seen);
    free(train->needed);
    free(train->moves);
    free(train);
}

// ---- memory ----

static bool turn_moves(const PvTrain *train, uint32_t turn, uint32_t param)
{
    const PvMinimize *minimize = &train->stage->minimize[turn];
    const PvParam *at = &train->session->model->params[param];
    for (uint32_t i = 0; i < minimize->instance_count; i++)
        if (minimize->instances[i] == at->instance)
            return !at->buffer;
    return false;
}

// Bytes of gradients, of sums of micro-steps, of moments, of averages.
static void count_state(const PvTrain *train, int64_t bytes[4])
{
    const PvModel *model = train->session->model;
    for (uint32_t p = 0; p < model->param_count; p++) {
        bool moves = false, sums = false, averaged = false;
        int64_t moments = 0;
        for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
            if (!turn_moves(train, i, p))
                continue;
            bool sgd = strcmp(train->stage->minimize[i].optimizer, "sgd") == 0;
            moves = true;
            sums |= train->turns[i].accumulate > 1;
            averaged |= train->turns[i].ema_every > 0;
            moments = sgd && moments < 2 ? 1 : 2;
        }
        int64_t size = model->params[p].count * (int64_t)sizeof(PvReal);
        bytes[0] += moves ? size : 0;
        bytes[1] += sums ? size : 0;
        bytes[2] += size * moments;
        bytes[3] += averaged ? size : 0;
    }
}

uint32_t pv_train_need(const PvTrain *train, int64_t batch, PvMemoryItem items[PV_TRAIN_ITEMS])
{
    int64_t state[4] = {0};
    count_state(train, state);
    PvMemoryItem largest = {"activations", 0, 0};
    for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
        const PvEntry *entry = train->turns[i].call->entry;
        for (uint32_t v = 0; v < entry->variant_count; v++) {
            if (!reaches(&train->turns[i], v))
                continue;
            const PvExec *exec = train->session->exec;
            PvMemoryItem need = pv_exec_need(exec, entry, pv_exec_plan(exec, entry, v));
            if (pv_memory_sum(&need, 1, batch) > pv_memory_sum(&largest, 1, batch))
                largest = need;
        }
    }
    items[0] =
        (PvMemoryItem){"parameters", pv_exec_param_bytes(train->session->model, train->needed), 0};
    items[1] = (PvMemoryItem){"gradients", state[0], 0};
    items[2] = (PvMemoryItem){"their sums", state[1], 0};
    items[3] = (PvMemoryItem){"moments", state[2], 0};
    items[4] = (PvMemoryItem){"averages", state[3], 0};
    items[5] = largest;
    items[6] = (PvMemoryItem){"data", 0, 0};
    if (train->stage->source) // read ahead: a batch that is ready, and one in the making
        items[6].per_batch = 2 * pv_type_bytes(&train->stage->data_type, 1);
    return PV_TRAIN_ITEMS;
}

// ---- steps ----

void pv_train_start(PvTrain *train, uint64_t seed)
{
    PvSession *session = train->session;
    for (uint32_t i = 0; i < session->model->instance_count; i++)
        if (train->moves[i] && !session->loaded[i])
            pv_instance_init(session->model, i, seed, session->exec->params);
    for (uint32_t i = 0; i < train->stage->minimize_count; i++)
        if (train->turns[i].ema_every > 0)
            pv_optimizer_start_ema(train->optimizer, i, session->exec->params);
    pv_train_written(train);
}

static double setting_number(const PvTensor *tensor)
{
    if (tensor->dtype == PV_F32)
        return pv_optimizer_decimal(*(const float *)tensor->data);
    return pv_tensor_number(tensor, 0);
}

static PvOptimizerSettings read_settings(const PvCall *call)
{
    PvOptimizerSettings settings = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    const struct {
        const char *name;
        double *to;
    } known[] = {
        {"lr", &settings.lr},       {"beta1", &settings.beta1},
        {"beta2", &settings.beta2}, {"eps", &settings.eps},
        {"clip", &settings.clip},   {"weight_decay", &settings.weight_decay},
        {"ema", &settings.ema},     {"momentum", &settings.momentum},
    };
    for (uint32_t i = 0; i < call->entry->output_count; i++) {
        if (call->entry->outputs[i].kind != PV_OUT_SETTING)
            continue;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            if (strcmp(known[k].name, call->entry->outputs[i].name) == 0)
                *known[k].to = setting_number(call->outputs[i]);
    }
    return settings;
}

PvOptimizerSettings pv_turn_settings(const PvTurn *turn)
{
    return read_settings(turn->settings_call ? turn->settings_call : turn->call);
}

// The settings of a minimize that is not run itself, or of one whose outputs are on a GPU.
static bool run_settings(PvTrain *train, PvTurn *turn, uint32_t variant, PvError *error)
{
    PvCall *call = turn->settings_call;
    const PvEntry *entry = call->entry;
    bool own = entry == turn->call->entry;
    call->step.batch = turn->call->step.batch;
    for (uint32_t i = 0; i < entry->output_count; i++) {
        if (entry->outputs[i].kind != PV_OUT_SETTING)
            continue;
        if (!call->outputs[i])
            call->outputs[i] = pv_tensor_of(&entry->outputs[i].type, 1, error);
        if (!call->outputs[i])
            return false;
        call->io[entry->input_count + i] = call->outputs[i]->data;
    }
    PvExecStep step = {entry, &entry->plans[own ? variant : 0],
                       own ? &turn->call->step : &call->step, call->io, NULL, 0, NULL, NULL};
    return pv_exec_settings(train->session->exec, &step, error);
}

// Adds the loss and the reports of a micro-step.
static void add_numbers(PvTurn *turn)
{
    const PvEntry *entry = turn->call->entry;
    bool first = true;
    for (uint32_t i = 0; i < entry->output_count; i++) {
        double number =
            entry->outputs[i].type.rank == 0 ? pv_tensor_number(turn->call->outputs[i], 0) : 0;
        if (entry->outputs[i].kind == PV_OUT_REPORT)
            turn->reports[i] += number;
        if (entry->outputs[i].kind == PV_OUT_NAMED && first) {
            turn->loss += number;
            first = false;
        }
    }
}

// A variant that came up too rarely to be foreseen may read what was not mounted.
static bool has_instances(const PvTrain *train, const PvTurn *turn, uint32_t variant,
                          PvError *error)
{
    const PvPlan *plan = &turn->call->entry->plans[variant];
    for (uint32_t i = 0; i < plan->instance_count; i++)
        if (!train->needed[plan->instances[i]])
            return pv_error(error, PV_WRONG, "step %lld of %s needs the weights of '%s'",
                            (long long)train->step + 1, train->stage->name,
                            train->session->model->instances[plan->instances[i]].name);
    return true;
}

bool pv_turn_micro_step(PvTrain *train, uint32_t index, bool settings, PvError *error)
{
    PvTurn *turn = &train->turns[index];
    PvExec *exec = train->session->exec;
    if (!train->feed(train->feed_context, train, index, error) ||
        !pv_call_settle(turn->call, train->batch, error))
        return false;
    PvCallPlan plan = {.variant = pv_exec_variant(turn->call->entry, &turn->call->step)};
    if (!has_instances(train, turn, plan.variant, error))
        return false;
    if (settings && turn->settings_call && !run_settings(train, turn, plan.variant, error))
        return false;
    if (!pv_call_run(exec, turn->call, &plan, error))
        return false;
    turn->micro++;
    const PvPlan *of = &turn->call->entry->plans[plan.variant];
    memset(train->present, 0, train->session->model->param_count * sizeof *train->present);
    for (uint32_t i = 0; i < of->grad_count; i++)
        train->present[of->grads[i]] = true;
    return true;
}

bool pv_turn_not_finite(const PvTrain *train, const PvTurn *turn, int64_t step, PvError *error)
{
    bool loss = !isfinite(turn->loss);
    pv_error(error, PV_WRONG, "%s is %g in step %lld of %s (loss %g, learning rate %g)",
             loss ? "the loss" : "the gradient's norm", loss ? turn->loss : turn->norm,
             (long long)step, train->stage->name, turn->loss, turn->settings.lr);
    return pv_error_hint(error, "nothing was written since the last checkpoint; go on from it with "
                                "a smaller learning rate, a `clip`, or other data");
}

static bool run_turn(PvTrain *train, uint32_t index, PvError *error)
{
    PvTurn *turn = &train->turns[index];
    PvExec *exec = train->session->exec;
    PvOptimizer *optimizer = train->optimizer;
    turn->loss = 0;
    memset(turn->reports, 0, turn->call->entry->output_count * sizeof *turn->reports);
    memset(train->seen, 0, train->session->model->param_count * sizeof *train->seen);
    for (int64_t i = 0; i < turn->accumulate; i++) {
        if (!pv_turn_micro_step(train, index, true, error))
            return false;
        add_numbers(turn);
        if (turn->accumulate > 1)
            pv_optimizer_accumulate(optimizer, index, exec->grads, train->present, train->seen);
    }
    double scale = 1.0 / (double)turn->accumulate;
    turn->loss *= scale;
    for (uint32_t i = 0; i < turn->call->entry->output_count; i++)
        turn->reports[i] *= scale;
    turn->settings = pv_turn_settings(turn);
    if (!isfinite(turn->loss))
        return pv_turn_not_finite(train, turn, train->step + 1, error);
    bool sums = turn->accumulate > 1;
    turn->norm = pv_optimizer_update(optimizer, index, &turn->settings, exec->params,
                                     sums ? optimizer->sum : exec->grads,
                                     sums ? train->seen : train->present, scale);
    if (!isfinite(turn->norm))
        return pv_turn_not_finite(train, turn, train->step + 1, error);
    if (turn->ema_every > 0 && turn->settings.ema > 0 &&
        optimizer->updates[index] % turn->ema_every == 0)
        pv_optimizer_average(optimizer, index, turn->settings.ema, exec->params);
    return true;
}

bool pv_train_step(PvTrain *train, PvError *error)
{
    pv_option_put(train->session->model, train->stage->name, "step", train->step,
                  train->session->options);
    for (uint32_t i = 0; i < train->stage->minimize_count; i++)
        if (!(train->turns[i].device ? pv_turn_on_device(train, i, error)
                                     : run_turn(train, i, error)))
            return false;
    pv_rows_drop(train->session->exec);
    train->step++;
    return true;
}
