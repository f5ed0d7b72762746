// What a step takes, and the certificate that tells it.
//
// Everything a step touches is known when the plans are: parameters, gradients, moments and
// averages by the parameters that the stage reads and moves; inputs and outputs by their types; the
// arena by the planner, as a fixed part and a part a batch element. So a compilation can promise
// the bytes of any batch, and `--memory` can be held against them before anything runs. The runtime
// counts the same way (pv_train_need, pv_exec_need).
//
// A budget is for the arena, what a step keeps between its kernels: all else follows from the model
// and the batch. recompute.c tries to meet it; what it cannot meet is an error.
#include <string.h>

#include "compiler/plan.h"

static int64_t param_bytes(const Module *module, uint32_t param)
{
    Dim count;
    if (!type_count(&module->params[param].type, &count))
        bug("a parameter grows with the batch");
    return count.n * (int64_t)element_size(module, module->params[param].type.dtype);
}

// ---- parameters and what belongs to them ----

static const Minimize *find_minimize(const Module *module, uint32_t entry, const Stage **stage)
{
    for (uint32_t i = 0; i < module->stage_count; i++)
        for (uint32_t k = 0; k < module->stages[i].minimize_count; k++)
            if (module->stages[i].minimize[k].entry == entry) {
                *stage = &module->stages[i];
                return &module->stages[i].minimize[k];
            }
    return NULL;
}

static void mark_instances(const Work *work, bool *reads)
{
    const Module *module = work->module;
    for (uint32_t i = 0; i < work->count; i++) {
        const Node *node = graph_node(module->graph, work->nodes[i]);
        if (node->op == OP_PARAM)
            reads[module->params[node->attr->n[0]].instance] = true;
    }
    for (uint32_t i = 0; i < work->variant->output_count; i++) {
        const Output *output = &work->variant->outputs[i];
        if (output->kind == OUT_STATE || output->kind == OUT_GRAD)
            reads[module->params[output->param].instance] = true;
    }
}

// The parameters of one stage: whether they move, and what is kept for them.
static void count_stage(const Module *module, const Stage *stage, bool *reads, Footprint *out)
{
    for (uint32_t p = 0; p < module->param_count; p++) {
        int64_t size = param_bytes(module, p), moments = 0;
        bool moves = false, sums = false, averaged = false;
        for (uint32_t k = 0; k < stage->minimize_count; k++) {
            const Minimize *minimize = &stage->minimize[k];
            bool named = false;
            for (uint32_t i = 0; i < minimize->instance_count; i++)
                named |= minimize->instances[i] == module->params[p].instance;
            if (!named || module->params[p].buffer)
                continue;
            moves = true;
            sums |= minimize->accumulate > 1;
            averaged |= minimize->ema_every > 0;
            moments = strcmp(minimize->optimizer, "sgd") == 0 && moments < 2 ? 1 : 2;
        }
        reads[module->params[p].instance] |= moves;
        out->gradients += moves ? size : 0;
        out->sums += sums ? size : 0;
        out->moments += size * moments;
        out->averages += averaged ? size : 0;
    }
}

static void add_value(const Module *module, const Type *type, int64_t times, Affine *to)
{
    Dim count;
    if (!type_count(type, &count))
        bug("a value's size is not linear in the batch");
    int64_t bytes = times * count.n * (int64_t)element_size(module, type->dtype);
    *(count.batch ? &to->batch : &to->fixed) += bytes;
}

static void count_values(const Work *work, Footprint *out)
{
    const Module *module = work->module;
    for (uint32_t i = 0; i < work->entry->input_count; i++)
        add_value(module, &work->entry->inputs[i].type, 1, &out->values);
    for (uint32_t i = 0; i < work->variant->output_count; i++) {
        const Output *output = &work->variant->outputs[i];
        if (work->row_offset)
            continue;
        if (output->kind == OUT_GRAD)
            out->gradients +=
                work->entry->kind == ENTRY_GRAD ? param_bytes(module, output->param) : 0;
        else if (output->kind != OUT_STATE)
            add_value(module, val_type(module->graph, output->val), 1, &out->values);
    }
}

Footprint plan_footprint(Work *const *plans, uint32_t count, uint32_t index)
{
    const Work *work = plans[index];
    const Module *module = work->module;
    Footprint out = {.workspace = work->scratch,
                     .activations = {work->arena_fixed, work->arena_batch},
                     .live = {work->live_fixed, work->live_batch}};
    bool *reads = arena_alloc(work->arena, module->instance_count + 1);
    const Stage *stage = NULL, *other = NULL;
    mark_instances(work, reads);
    if (work->table)
        mark_instances(work->table, reads);
    if (find_minimize(module, work->entry_index, &stage)) {
        for (uint32_t i = 0; i < count; i++)
            if (!plans[i]->taps && find_minimize(module, plans[i]->entry_index, &other) &&
                other == stage)
                mark_instances(plans[i], reads);
        count_stage(module, stage, reads, &out);
        if (stage->source) // read ahead: a batch that is ready, and one in the making
            add_value(module, &stage->data_type, 2, &out.data);
    }
    count_values(work, &out);
    for (uint32_t p = 0; p < module->param_count; p++)
        out.parameters += reads[module->params[p].instance] ? param_bytes(module, p) : 0;
    out.shadow = module->storage != DT_NONE ? out.parameters / 2 : 0;
    return out;
}

// ---- budgets ----

void set_budgets(Work *const *plans, uint32_t count, int64_t bytes, int64_t batch)
{
    for (uint32_t i = 0; i < count; i++) {
        plans[i]->budget = plans[i]->rungs & RUNG_MEMORY ? bytes : 0;
        plans[i]->budget_batch = batch;
    }
}

const char *bytes_text(Arena *arena, double bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    int unit = 0;
    while (bytes >= 999.5 && unit < 4) {
        bytes /= 1000;
        unit++;
    }
    return arena_printf(arena,
                        unit == 0 || bytes >= 99.95 ? "%.0f %s"
                        : bytes >= 9.995            ? "%.1f %s"
                                                    : "%.2f %s",
                        bytes, units[unit]);
}

bool check_budgets(Work *const *plans, uint32_t count)
{
    bool good = true;
    for (uint32_t i = 0; i < count; i++) {
        const Work *work = plans[i];
        int64_t arena = work->arena_fixed + work->budget_batch * work->arena_batch;
        if (work->budget == 0 || arena <= work->budget)
            continue;
        good = false;
        fprintf(stderr,
                "pvdmc: error: the activations of %s take at least %s at batch %lld; the budget is "
                "%s\n",
                work->entry->name, bytes_text(work->arena, (double)arena),
                (long long)work->budget_batch, bytes_text(work->arena, (double)work->budget));
    }
    return good;
}

// ---- the certificate ----

int64_t footprint_outside(const Footprint *of, int64_t batch)
{
    return of->parameters + of->shadow + of->gradients + of->sums + of->moments + of->averages +
           of->values.fixed + of->data.fixed + batch * (of->values.batch + of->data.batch);
}

static const char *affine_text(Arena *arena, Affine bytes)
{
    if (!bytes.batch)
        return bytes_text(arena, (double)bytes.fixed);
    if (!bytes.fixed)
        return arena_printf(arena, "%s b", bytes_text(arena, (double)bytes.batch));
    return arena_printf(arena, "%s + %s b", bytes_text(arena, (double)bytes.fixed),
                        bytes_text(arena, (double)bytes.batch));
}

static double share(int64_t part, int64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 100.0;
}

static void print_part(FILE *out, Arena *arena, const char *name, int64_t bytes)
{
    if (bytes > 0)
        fprintf(out, "  %-12s %s\n", name, bytes_text(arena, (double)bytes));
}

static void print_footprint(FILE *out, const Work *work, const Footprint *print)
{
    Arena *arena = work->arena;
    print_part(out, arena, "parameters", print->parameters);
    print_part(out, arena, "their shadow", print->shadow);
    print_part(out, arena, "gradients", print->gradients);
    print_part(out, arena, "their sums", print->sums);
    print_part(out, arena, "optimizer", print->moments);
    print_part(out, arena, "averages", print->averages);
    fprintf(out, "  %-12s %s\n", "values", affine_text(arena, print->values));
    if (print->data.batch)
        fprintf(out, "  %-12s %s\n", "data ahead", affine_text(arena, print->data));
    fprintf(out, "  %-12s %s\n", "activations", affine_text(arena, print->activations));
    fprintf(out, "  %-12s %s (packed %.1f%% + %.1f%%)\n", "  live", affine_text(arena, print->live),
            share(print->live.fixed, print->activations.fixed),
            share(print->live.batch, print->activations.batch));
    if (work->row_bytes)
        fprintf(out, "  %-12s %s for each of its numbers\n", "table",
                bytes_text(arena, (double)work->row_bytes));
    if (print->workspace)
        fprintf(out, "  %-12s %s a thread\n", "workspace",
                bytes_text(arena, (double)print->workspace));
    double flops = 0, again = work->again_fixed + work->again_batch;
    for (uint32_t i = 0; i < work->launch_count; i++)
        flops += work->launches[i].flops_fixed + work->launches[i].flops_batch;
    if (work->repeats > 0)
        fprintf(out, "  %-12s %u kernels, %.3g GFLOP at batch 1 (%.1f%% more)\n", "computed anew",
                work->repeats, 1e-9 * again, 100 * again / (flops - again));
    Affine all = {footprint_outside(print, 0) + print->activations.fixed, 0};
    all.batch =
        footprint_outside(print, 1) - footprint_outside(print, 0) + print->activations.batch;
    fprintf(out, "  %-12s %s\n", "all", affine_text(arena, all));
}

void print_certificate(FILE *out, Work *const *plans, uint32_t count)
{
    fprintf(out, "memory of a step; b is the batch, 1 GB = 10^9 bytes\n");
    for (uint32_t i = 0; i < count; i++) {
        const Work *work = plans[i];
        if (work->rungs != plans[0]->rungs || work->taps)
            continue; // a step of the ladder
        Footprint print = plan_footprint(plans, count, i);
        fprintf(out, "%s", work->entry->name);
        if (work->entry->variant_count > 1)
            fprintf(out, ", variant %u of %u", work->variant_index + 1, work->entry->variant_count);
        fprintf(out, " (%s), %u launches\n",
                work->row_offset                      ? "row of its table"
                : work->entry->kind == ENTRY_MINIMIZE ? "training"
                : work->entry->kind == ENTRY_GRAD     ? "gradient"
                : work->entry->kind == ENTRY_PROGRAM  ? "program"
                                                      : "sampling",
                work->launch_count);
        print_footprint(out, work, &print);
    }
}
