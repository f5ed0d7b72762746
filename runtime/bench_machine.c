// What this machine can do, measured with the two probes that --unfused-too compiles in: a copy
// (probe.copy) and a matrix product (probe.product), whose size is the batch. The best of several
// runs counts, since whatever else the machine does only makes a run slower.
#include <stdio.h>
#include <string.h>

#include "runtime/bench.h"
#include "runtime/cuda_exec.h"
#include "runtime/timing.h"

enum { RUNS = 5, RAMP = 1024 };
#define LONG_RUN 0.5 // seconds

// What Linux calls the processor.
static const char *processor_name(void)
{
    static char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    const char *name = NULL;
    while (file && !name && fgets(line, sizeof line, file)) {
        char *colon = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        line[strcspn(line, "\n")] = 0;
        name = colon ? colon + 2 : NULL;
    }
    if (file)
        fclose(file);
    return name ? name : "this processor";
}

const char *pv_bench_device(const PvSession *session)
{
    return session->exec->gpu ? session->exec->gpu->device->name : processor_name();
}

static const PvEntry *find_probe(const PvModel *model, const char *name)
{
    for (uint32_t i = 0; i < model->entry_count; i++)
        if (model->entries[i].kind == PV_PROBE && strcmp(model->entries[i].name, name) == 0)
            return &model->entries[i];
    return NULL;
}

// Numbers that neither overflow nor are 0.
static void fill_ramp(PvTensor *tensor)
{
    double values[RAMP];
    int64_t size = pv_dtype_size(tensor->dtype);
    for (int i = 0; i < RAMP; i++)
        values[i] = (double)(i % 7) * 0.25 - 0.75;
    for (int64_t i = 0; i < tensor->count; i += RAMP)
        pv_convert((char *)tensor->data + i * size, tensor->dtype, values, PV_F64,
                   tensor->count - i < RAMP ? tensor->count - i : RAMP);
}

// Seconds of the best run of a probe at that batch.
static bool time_probe(PvSession *session, const PvEntry *entry, int64_t batch, double *best,
                       PvError *error)
{
    PvCall *call = pv_call_new(entry, session->options, session->random);
    bool good = true;
    for (uint32_t i = 0; good && i < entry->input_count; i++) {
        PvTensor *tensor = pv_tensor_of(&entry->inputs[i].type, batch, error);
        if (tensor)
            fill_ramp(tensor);
        good = tensor && pv_call_set(call, i, tensor, entry->inputs[i].name, error);
        pv_tensor_drop(tensor);
    }
    good = good && pv_call_settle(call, batch, error);
    PvCallPlan plan = {.variant = 0};
    *best = 0;
    // the first touches memory; of long ones one is enough
    for (int i = 0; good && i <= RUNS && *best < LONG_RUN; i++) {
        double start = pv_seconds();
        good = pv_call_run(session->exec, call, &plan, error) && pv_exec_wait(session->exec, error);
        double taken = pv_seconds() - start;
        if (i > 0 && (*best <= 0 || taken < *best))
            *best = taken;
    }
    pv_call_free(call);
    return good;
}

bool pv_bench_machine(PvSession *session, PvRates *rates, PvError *error)
{
    const PvEntry *copy = find_probe(session->model, "probe.copy");
    const PvEntry *product = find_probe(session->model, "probe.product");
    if (!copy || !product)
        return pv_error(error, PV_WRONG, "this executable has no probes of the machine");
    const PvPlan *plan = &copy->plans[0];
    // as many bytes as no cache holds, and at most an eighth of the memory
    PvGpu *gpu = session->exec->gpu;
    int64_t room = (gpu ? pv_device_memory(gpu->device) : pv_memory_free()).bytes / 8, large = 1;
    while (large < 256 && plan->bytes_batch * (double)large * 2 < (double)room)
        large *= 2;
    double seconds;
    if (!time_probe(session, copy, large, &seconds, error))
        return false;
    rates->copy = plan->bytes_batch * (double)large / seconds;
    if (!time_probe(session, copy, 1, &seconds, error))
        return false;
    rates->cached = plan->bytes_batch / seconds;
    plan = &product->plans[0];
    int64_t rows = 1;
    do {
        rows *= 2;
        if (!time_probe(session, product, rows, &seconds, error))
            return false;
    } while (seconds < 0.002 && rows < 64);
    rates->product = plan->flops_batch * (double)rows / seconds;
    return true;
}

double pv_bench_predict(const PvRates *rates, double flops, double bytes)
{
    double compute = flops / rates->product, move = bytes / rates->copy;
    return compute > move ? compute : move;
}
