// One case of `bench`: what each rung of its ladder takes.
//
// The rungs run in rounds, all of them one after the other in each, in turn from either end, since
// a shared machine drifts by more than most differences. A rung's time is the median of its
// rounds; its speed-up the median of the rounds' ratios to the first rung. Short steps are repeated
// within a round. Rows of tables are made before, once, as for a schedule. Then every rung runs
// once more with each launch timed by itself.
//
// The error of a rung is the largest difference of any element of an output or a gradient to the
// reference, over the largest element of that output, or of all gradients of parameters: some of
// these are 0 but for rounding (a bias in front of a norm), and have no scale of their own.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/bench.h"
#include "runtime/timing.h"

enum { MAX_RUNGS = 16, REPEAT_LIMIT = 64, BLOCK = 256 };
static const double least_seconds = 0.02; // of a rung in a round

typedef struct {
    PvBenchCase *at;
    const PvRates *rates;
    const PvBenchOptions *options;
    uint32_t rungs[MAX_RUNGS], count; // those that are measured
    double *seconds[MAX_RUNGS];       // [rounds]
    int64_t repeat[MAX_RUNGS];
    double error[MAX_RUNGS];
    PvTensorSet reference;
    bool is_f64;
} Measure;

static void choose_rung(const Measure *m, uint32_t index)
{
    m->at->session->exec->rung = m->rungs[index] + 1;
}

// ---- errors ----

// Calls back for every output and gradient of the case, as it is in memory.
typedef void Visit(void *context, const char *name, bool gradient, int dtype, const void *data,
                   int64_t count);

static bool visit_results(const PvBenchCase *at, Visit *visit, void *context, PvError *error)
{
    PvExec *exec = at->session->exec;
    for (uint32_t i = 0; i < at->call_count; i++) {
        const PvCall *call = at->calls[i];
        for (uint32_t k = 0; k < call->entry->output_count; k++) {
            const PvOutput *output = &call->entry->outputs[k];
            if (!pv_tensor_fetch(call->outputs[k], error))
                return false;
            char *name =
                at->call_count > 1 ? pv_printf("%u.%s", i, output->name) : pv_strdup(output->name);
            if (output->kind == PV_OUT_NAMED || output->kind == PV_OUT_GRAD_INPUT)
                visit(context, name, false, call->outputs[k]->dtype, call->outputs[k]->data,
                      call->outputs[k]->count);
            free(name);
        }
    }
    // of several turns only the last one's gradients are still there
    const PvPlan *plan = pv_bench_plan(at, at->call_count - 1, 0);
    const char *grads = plan->grad_count ? pv_exec_grads(exec, error) : NULL;
    for (uint32_t i = 0; grads && i < plan->grad_count; i++) {
        const PvParam *param = &exec->model->params[plan->grads[i]];
        char *name = pv_printf("grad.%s", param->name);
        visit(context, name, true, param->type.dtype, grads + param->offset, param->count);
        free(name);
    }
    return plan->grad_count == 0 || grads;
}

// Visit: keeps a copy in the reference.
static void keep(void *context, const char *name, bool gradient, int dtype, const void *data,
                 int64_t count)
{
    (void)gradient;
    Measure *m = context;
    PvError error = {0};
    PvTensor *copy = pv_tensor_new(dtype, 1, &count, &error);
    if (copy) {
        memcpy(copy->data, data, (size_t)copy->bytes);
        pv_set_add(&m->reference, name, copy);
    }
    pv_error_free(&error);
}

typedef struct {
    const PvTensorSet *reference;
    double worst;            // of outputs, each over its own size
    double difference, size; // of all gradients
} Compare;

// The larger one; not a number stays.
static double larger(double x, double y)
{
    return y > x || isnan(y) ? y : x;
}

// Visit: the largest difference so far.
static void compare(void *context, const char *name, bool gradient, int dtype, const void *data,
                    int64_t count)
{
    Compare *to = context;
    const PvTensor *want = pv_set_find(to->reference, name);
    if (!want || want->count != count)
        return;
    double difference = 0, size = 0, have[BLOCK], target[BLOCK];
    for (int64_t i = 0; i < count; i += BLOCK) {
        int64_t part = count - i < BLOCK ? count - i : BLOCK;
        pv_convert(have, PV_F64, (const char *)data + i * pv_dtype_size(dtype), dtype, part);
        pv_convert(target, PV_F64, (const char *)want->data + i * pv_dtype_size(want->dtype),
                   want->dtype, part);
        for (int64_t k = 0; k < part; k++) {
            difference = larger(difference, fabs(have[k] - target[k]));
            size = larger(size, fabs(target[k]));
        }
    }
    if (gradient) {
        to->difference = larger(to->difference, difference);
        to->size = larger(to->size, size);
    } else {
        to->worst = larger(to->worst, size > 0 ? difference / size : difference);
    }
}

// Runs every rung once (which touches its memory), and compares.
static bool compare_rungs(Measure *m, PvError *error)
{
    if (m->options->reference &&
        !pv_bench_reference(m->at, m->options->reference, &m->reference, error))
        return false;
    m->is_f64 = m->reference.count > 0;
    for (uint32_t i = 0; i < m->count; i++) {
        choose_rung(m, i);
        if (!pv_bench_forward(m->at, error))
            return false;
        Compare to = {.reference = &m->reference};
        if ((i == 0 && !m->is_f64 && !visit_results(m->at, keep, m, error)) ||
            !visit_results(m->at, compare, &to, error))
            return false;
        m->error[i] = larger(to.worst, to.size > 0 ? to.difference / to.size : to.difference);
    }
    pv_set_free(&m->reference);
    return true;
}

// ---- times ----

// How often each rung runs in a round. Two steps before that: on a GPU the second one of a plan
// makes the graph that the others replay.
static bool warm_up(Measure *m, PvError *error)
{
    for (uint32_t i = 0; i < m->count; i++) {
        choose_rung(m, i);
        double taken = 0;
        for (int k = 0; k < 3; k++) {
            double start = pv_seconds();
            if (!pv_bench_step(m->at, error))
                return false;
            taken = pv_seconds() - start;
            if (taken > 1)
                break; // long steps need no more of it
        }
        double times = taken > 0 ? least_seconds / taken : 1;
        m->repeat[i] = times > REPEAT_LIMIT ? REPEAT_LIMIT : (int64_t)times + 1;
    }
    return true;
}

static bool run_rounds(Measure *m, PvError *error)
{
    int64_t rounds = m->options->rounds;
    for (int64_t round = 0; round < rounds; round++)
        for (uint32_t k = 0; k < m->count; k++) {
            uint32_t i = round % 2 ? m->count - 1 - k : k;
            choose_rung(m, i);
            double start = pv_seconds();
            for (int64_t r = 0; r < m->repeat[i]; r++)
                if (!pv_bench_step(m->at, error))
                    return false;
            m->seconds[i][round] = (pv_seconds() - start) / (double)m->repeat[i];
        }
    return true;
}

static int smaller_first(const void *x, const void *y)
{
    double first = *(const double *)x, second = *(const double *)y;
    return first < second ? -1 : first > second;
}

static double median(const double *values, int64_t count)
{
    double *sorted = pv_alloc((size_t)count * sizeof *sorted);
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, smaller_first);
    double middle = (sorted[count / 2] + sorted[(count - 1) / 2]) / 2;
    free(sorted);
    return middle;
}

static double median_ratio(const double *over, const double *under, int64_t count)
{
    double *ratios = pv_alloc((size_t)count * sizeof *ratios);
    for (int64_t i = 0; i < count; i++)
        ratios[i] = over[i] / under[i];
    double middle = median(ratios, count);
    free(ratios);
    return middle;
}

// ---- one rung ----

// Sums over the plans of a rung at this batch, and the largest arena.
typedef struct {
    double launches, flops, bytes, predicted, memory;
} Totals;

static bool sum_plans(Measure *m, uint32_t index, json_t *families, Totals *sum, PvError *error)
{
    PvExec *exec = m->at->session->exec;
    for (uint32_t c = 0; c < m->at->call_count; c++) {
        const PvPlan *plan = pv_bench_plan(m->at, c, m->rungs[index]);
        double batch = (double)m->at->calls[c]->step.batch;
        PvPlanTimes times;
        if (!pv_exec_plan_times(exec, plan, &times, error))
            return false;
        double memory = (double)plan->arena_fixed + batch * (double)plan->arena_batch;
        if (!exec->gpu)
            memory += (double)plan->scratch_size * exec->threads;
        sum->memory = memory > sum->memory ? memory : sum->memory;
        sum->launches += plan->launch_count;
        for (uint32_t i = 0; i < plan->launch_count; i++) {
            const PvLaunch *at = &times.launches[i];
            double flops = at->flops_fixed + at->flops_batch * batch;
            double bytes = at->bytes_fixed + at->bytes_batch * batch;
            sum->flops += flops;
            sum->bytes += bytes;
            sum->predicted += pv_bench_predict(m->rates, flops, bytes);
            const char *family = pv_bench_family(exec->model->kernels[at->kernel].name);
            double before = json_number_value(json_object_get(families, family));
            if (times.seconds && times.runs > 0)
                json_object_set_new(families, family,
                                    json_real(before + times.seconds[i] / (double)times.runs));
        }
    }
    return true;
}

// The object of a rung; its launches are timed one by one for it.
static json_t *rung_json(Measure *m, uint32_t index, PvError *error)
{
    const PvRung *rung = &m->at->calls[0]->entry->rungs[m->rungs[index]];
    json_t *families = json_object();
    Totals sum = {0};
    choose_rung(m, index);
    pv_exec_profile(m->at->session->exec, true);
    bool good = pv_bench_forward(m->at, error) && pv_bench_forward(m->at, error) &&
                sum_plans(m, index, families, &sum, error);
    pv_exec_profile(m->at->session->exec, false);
    if (!good) {
        json_decref(families);
        return NULL;
    }
    const double *seconds = m->seconds[index];
    int64_t rounds = m->options->rounds;
    json_t *all = json_array();
    for (int64_t i = 0; i < rounds; i++)
        json_array_append_new(all, json_real(seconds[i]));
    return json_pack(
        "{s:s, s:i, s:I, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:o, s:o}", "name", rung->name, "level",
        rung->level, "launches", (json_int_t)sum.launches, "bytes", sum.bytes, "flops", sum.flops,
        "seconds", median(seconds, rounds), "speedup", median_ratio(m->seconds[0], seconds, rounds),
        "rounds", all, "predicted_seconds", sum.predicted, "memory_bytes", sum.memory,
        "largest_error", isfinite(m->error[index]) ? json_real(m->error[index]) : json_null(),
        "families", families);
}

static json_t *case_json(Measure *m, PvError *error)
{
    static const char *const kinds[] = {[PV_PROGRAM] = "program",
                                        [PV_GRAD_OF] = "gradient",
                                        [PV_MINIMIZE] = "training step",
                                        [PV_CALL] = "step of a sampler"};
    json_t *rungs = json_array();
    for (uint32_t i = 0; i < m->count; i++) {
        json_t *rung = rung_json(m, i, error);
        if (!rung) {
            json_decref(rungs);
            return NULL;
        }
        json_array_append_new(rungs, rung);
    }
    json_t *json =
        json_pack("{s:s, s:s, s:I, s:s, s:o}", "name", m->at->name, "kind", kinds[m->at->kind],
                  "batch", (json_int_t)m->at->calls[0]->step.batch, "error_against",
                  m->is_f64      ? "f64, unfused"
                  : m->count > 1 ? "the unfused rung"
                                 : "itself",
                  "rungs", rungs);
    choose_rung(m, m->count - 1);
    if (pv_bench_kernels(m->at, m->rates, json, error))
        return json;
    json_decref(json);
    return NULL;
}

static bool check_memory(Measure *m, PvError *error)
{
    const PvBenchCase *at = m->at;
    PvSession *session = at->session;
    session->exec->rung = m->rungs[0] + 1;
    if (at->train) {
        PvMemoryItem items[PV_TRAIN_ITEMS];
        uint32_t count = pv_train_need(at->train, at->train->batch, items);
        return pv_session_memory(session, "bench", items, count, at->train->batch, error);
    }
    const PvPlan *plan = pv_bench_plan(at, 0, m->rungs[0]);
    bool *needed = pv_alloc(session->model->instance_count + 1u);
    pv_plan_instances(plan, needed);
    PvMemoryItem items[2] = {{"parameters", pv_exec_param_bytes(session->model, needed), 0},
                             pv_exec_need(session->exec, at->entry, plan)};
    if (at->kind == PV_GRAD_OF)
        items[0].fixed *= 3; // gradients, and a copy of them to compare with
    free(needed);
    return pv_session_memory(session, "bench", items, 2, at->calls[0]->step.batch, error);
}

json_t *pv_bench_measure(PvBenchCase *at, const PvRates *rates, const PvBenchOptions *options,
                         PvError *error)
{
    Measure m = {.at = at, .rates = rates, .options = options};
    uint32_t rungs = pv_bench_rungs(at);
    for (uint32_t i = 0; i < rungs && m.count < MAX_RUNGS; i++)
        if (i + 1 == rungs || (!options->last && (i == 0 || !options->ends)))
            m.rungs[m.count++] = i;
    for (uint32_t i = 0; i < m.count; i++)
        m.seconds[i] = pv_alloc(((size_t)options->rounds + 1) * sizeof **m.seconds);
    json_t *json = NULL;
    if (check_memory(&m, error) && compare_rungs(&m, error) && warm_up(&m, error) &&
        run_rounds(&m, error))
        json = case_json(&m, error);
    for (uint32_t i = 0; i < m.count; i++)
        free(m.seconds[i]);
    pv_set_free(&m.reference);
    at->session->exec->rung = 0;
    return json;
}
