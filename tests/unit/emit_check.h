// A graph through the back end: check_graph makes a plan of it for each set of rungs, compiles them
// with the C compiler, runs them and compares their outputs with the reference's. What plans ask of
// the runtime (random numbers, sources) is made here, the same for both sides.
#ifndef EMIT_CHECK_H
#define EMIT_CHECK_H

#include "tests/unit/every_op.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "codegen/codegen.h"
#include "compiler/compose.h"
#include "runtime/unpack.h"

enum { BATCH = 3, MAX_INPUTS = 64 };

// Keeps the library's kernels in this program, where the emitted code finds them.
PvKernelFn *const library[] = {
    pv_gemm, pv_conv, pv_conv_dgrad, pv_conv_wgrad, pv_attention, pv_attention_grad, pv_group_norm,
    pv_group_norm_grad, pv_layer_norm, pv_layer_norm_grad, pv_softmax, pv_reduce, pv_copy,
    pv_copy_to, pv_fill, pv_pick, pv_pick_grad, pv_gather, pv_gather_grad};

static PvScalar options[16], numbers[MAX_INPUTS];
static char *params;
static void *io[MAX_INPUTS];

// ---- data that both sides see ----

static double random_real(uint64_t key, int64_t element)
{
    uint64_t x = key * 0x9e3779b97f4a7c15u + (uint64_t)element * 0xbf58476d1ce4e5b9u + 1;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

static void draw(void *to, int64_t count, int kind, int64_t lo, int64_t hi)
{
    for (int64_t i = 0; i < count; i++) {
        double value = random_real(99, i);
        if (kind == 2)
            ((int64_t *)to)[i] = lo + (int64_t)(value * (double)(hi - lo));
        else
            ((float *)to)[i] = (float)value;
    }
}

void pv_random(const PvRun *run, const int64_t *args)
{
    (void)run;
    draw((void *)(intptr_t)args[0], args[1], (int)args[3], args[4], args[5]);
}

double pv_draw_normal(const PvStep *step, uint32_t stream)
{
    (void)step;
    (void)stream;
    return random_real(99, 0);
}

double pv_draw_uniform(const PvStep *step, uint32_t stream)
{
    return pv_draw_normal(step, stream);
}

int64_t pv_draw_int(const PvStep *step, uint32_t stream, int64_t lo, int64_t hi)
{
    return lo + (int64_t)(pv_draw_normal(step, stream) * (double)(hi - lo));
}

static int64_t count_of_type(const Type *type)
{
    int64_t count = 1;
    for (uint32_t i = 0; i < type->rank; i++)
        count *= type->dim[i].n * (type->dim[i].batch ? BATCH : 1);
    return count;
}

static void fill_values(void *to, const Type *type, uint64_t key)
{
    for (int64_t i = 0; i < count_of_type(type); i++) {
        double value = random_real(key, i);
        if (dtype_is_float(type->dtype))
            ((float *)to)[i] = (float)(value + 0.1);
        else if (type->dtype == DT_BOOL)
            ((uint8_t *)to)[i] = value > 0.5;
        else
            ((int64_t *)to)[i] = (int64_t)(3 * value);
    }
}

static void put_scalar(void *to, const Type *type, PvScalar value)
{
    if (dtype_is_float(type->dtype))
        *(float *)to = (float)value.f;
    else if (type->dtype == DT_BOOL)
        *(uint8_t *)to = value.i != 0;
    else
        *(int64_t *)to = value.i;
}

static void *give_source(void *context, const Node *node, const Type *type)
{
    const Codegen *cg = context;
    size_t bytes = (size_t)count_of_type(type) * dtype_size(type->dtype);
    void *out = calloc(bytes + 8, 1);
    if (node->op == OP_INPUT && type->rank > 0)
        memcpy(out, io[node->attr->n[1]], bytes);
    else if (node->op == OP_INPUT)
        put_scalar(out, type, numbers[node->attr->n[1]]);
    else if (node->op == OP_PARAM)
        memcpy(out, params + cg->param_offset[node->attr->n[0]], bytes);
    else if (node->op == OP_OPTION)
        put_scalar(out, type,
                   options[cg->option_slot[node->attr->n[0]] + (uint32_t)node->attr->n[1]]);
    else if (node->op == OP_GIVEN)
        *(uint8_t *)out = 1;
    else
        draw(out, count_of_type(type), (int)node->attr->n[0], node->attr->n[1], node->attr->n[2]);
    return out;
}

// ---- a module around the graph ----

// By node: whether a variable of a sampler is behind it.
static bool *find_vars(Arena *arena, const Graph *graph)
{
    bool *needs = arena_alloc(arena, graph_count(graph));
    for (NodeId id = 1; id < graph_count(graph); id++) {
        const Node *node = graph_node(graph, id);
        needs[id] = node->op == OP_VAR;
        for (uint32_t i = 0; i < node->nin; i++)
            needs[id] |= needs[val_node(node->in[i])];
    }
    return needs;
}

static void describe_sources(Module *module, Entry *entry)
{
    Graph *graph = module->graph;
    module->params = arena_alloc(module->arena, 16 * sizeof(Param));
    module->options = arena_alloc(module->arena, 16 * sizeof(Option));
    module->streams = arena_alloc(module->arena, 16 * sizeof(char *));
    module->instances = arena_alloc(module->arena, sizeof(Instance));
    module->instances[0] = (Instance){.name = "i"};
    module->instance_count = 1;
    entry->inputs = arena_alloc(module->arena, MAX_INPUTS * sizeof(Input));
    for (uint32_t i = 0; i < MAX_INPUTS; i++)
        entry->inputs[i] = (Input){.name = "x", .type = type_scalar(DT_I64)};
    for (NodeId id = 1; id < graph_count(graph); id++) {
        const Node *node = graph_node(graph, id);
        uint32_t index = (uint32_t)node->attr->n[0];
        if (node->op == OP_PARAM) {
            module->params[index] = (Param){.name = "i.p", .type = *node->type[0]};
            module->param_count = index + 1 > module->param_count ? index + 1 : module->param_count;
        } else if (node->op == OP_OPTION) {
            module->options[index] =
                (Option){.name = "o", .dtype = node->type[0]->dtype, .count = 8};
            module->option_count =
                index + 1 > module->option_count ? index + 1 : module->option_count;
        } else if (node->op == OP_INPUT) {
            index = (uint32_t)node->attr->n[1];
            entry->inputs[index].type = *node->type[0];
            entry->input_count = index + 1 > entry->input_count ? index + 1 : entry->input_count;
        } else if (node->op == OP_RANDOM) {
            module->streams[module->stream_count++] = node->attr->text;
        }
    }
}

static void list_values(Module *module, Variant *variant, const Vals *vals)
{
    const bool *needs = find_vars(module->arena, module->graph);
    variant->outputs = arena_alloc(module->arena, (vals->count * MAX_OUT + 1) * sizeof(Output));
    for (uint32_t i = 0; i < vals->count; i++)
        for (uint32_t out = 0; out < val_get(module->graph, vals->at[i])->nout; out++) {
            Val val = val_of(val_node(vals->at[i]), out);
            if (needs[val_node(val)])
                continue;
            char *name = arena_printf(module->arena, "%u.%u", val_node(val), out);
            variant->outputs[variant->output_count++] = (Output){OUT_NAMED, name, 0, val};
        }
}

// ---- running a plan ----

static void *compile(Codegen *cg)
{
    char folder[] = "/tmp/test_emit_XXXXXX";
    assert_non_null(mkdtemp(folder));
    CFiles files = {.count = 0};
    assert_true(emit_files(cg, folder, &files));
    char command[1024];
    snprintf(command, sizeof command,
             "cd %s && ${CC:-cc} -std=gnu11 -O1 -w -fPIC -shared -fopenmp -ffp-contract=off "
             "-fno-math-errno -I'%s' *.c *.s -o model.so",
             folder, getenv("PWD") ? getenv("PWD") : ".");
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "%s/model.so", folder);
    void *handle = dlopen(command, RTLD_NOW);
    if (!handle)
        fail_msg("%s", dlerror());
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
    return handle;
}

static bool agree(const void *have, const void *want, const Type *type)
{
    for (int64_t i = 0; i < count_of_type(type); i++) {
        if (type->dtype == DT_BOOL || type->dtype == DT_I64) {
            if (memcmp((const char *)have + i * (int64_t)dtype_size(type->dtype),
                       (const char *)want + i * (int64_t)dtype_size(type->dtype),
                       dtype_size(type->dtype)) != 0)
                return false;
            continue;
        }
        float x = ((const float *)have)[i], y = ((const float *)want)[i];
        if (x != y && !(isnan(x) && isnan(y)) && !(fabsf(x - y) <= 1e-4f * (1 + fabsf(y))))
            return false;
    }
    return true;
}

static void run_plan(const PvModel *model, const PvPlan *plan, const Codegen *cg,
                     const Entry *entry, void **results)
{
    const struct EntryOutputs *outputs = &cg->outputs[0];
    int64_t arena_bytes = plan->arena_fixed + BATCH * plan->arena_batch;
    char *arena = aligned_alloc(256, (size_t)(arena_bytes + 511) / 256 * 256);
    memset(arena, 0xff, (size_t)arena_bytes);          // NaN where nothing was written
    size_t each = ((size_t)plan->scratch_size + 63) / 64 * 64;
    char *scratch = aligned_alloc(64, each * 2 + 64);
    PvScalar *scalars = calloc(plan->scalar_count + 1, sizeof *scalars);
    *(PvReal *)scalars++ = 1; // the scale of the loss
    PvStep step = {BATCH, options, numbers, ~(uint64_t)0, NULL};
    PvRun run = {BATCH, 2, scratch, (int64_t)each, &step, 1, plan->split};
    plan->scalars(&step, scalars);
    int64_t *args = calloc(plan->arg_count + 1, sizeof *args);
    PvLaunch *launches;
    PvArg *list;
    PvError error = {0};
    assert_true(pv_plan_unpack(plan, model->kernel_count, &launches, &list, &error));
    for (uint32_t i = 0; i < plan->arg_count; i++) {
        const PvArg *arg = &list[i];
        const void *base[] = {NULL, arena, params, NULL, model->consts, scalars};
        uint32_t at = arg->space >= PV_IO ? (uint32_t)arg->space - PV_IO : 0;
        const void *from = arg->space < PV_IO                ? base[arg->space]
                           : at < entry->input_count ? io[at]
                                                     : results[at - entry->input_count];
        args[i] = (int64_t)(intptr_t)from + arg->a + arg->c * BATCH;
    }
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        run.segments = launches[i].segments;
        model->kernels[launches[i].kernel].fn(&run, args + launches[i].arg);
    }
    assert_true(outputs->count > 0);
    free(launches);
    free(list);
    free(arena);
    free(scratch);
    free(scalars - 1);
    free(args);
}

static void check_plan(const PvModel *model, const PvPlan *plan, const Codegen *cg,
                       const Entry *entry, void **want)
{
    const struct EntryOutputs *outputs = &cg->outputs[0];
    const Graph *graph = cg->module->graph;
    void **results = calloc(outputs->count + 1, sizeof *results);
    for (uint32_t i = 0; i < outputs->count; i++)
        results[i] = calloc((size_t)count_of_type(val_type(graph, outputs->at[i].val)) + 1, 8);
    run_plan(model, plan, cg, entry, results);
    for (uint32_t i = 0; i < outputs->count; i++) {
        Val val = outputs->at[i].val;
        if (!agree(results[i], want[i], val_type(graph, val)))
            fail_msg("%s, output %u, differs from the reference",
                     op_info[val_get(graph, val)->op].name, val_out(val));
        free(results[i]);
    }
    free(results);
}

static void add_plan(Codegen *cg, uint32_t rungs)
{
    Work *work = arena_alloc(cg->arena, sizeof *work);
    *work = (Work){.module = cg->module, .entry = cg->module->entries,
                   .variant = cg->module->entries->variants, .level = rungs ? 2 : 0,
                   .rungs = rungs, .arena = cg->arena};
    cg->plans = grow_array(cg->plans, &cg->plan_capacity, cg->plan_count, sizeof *cg->plans);
    cg->plans[cg->plan_count++] = work;
    find_layout(work);
    fuse_groups(work);
    schedule_groups(work);
    batch_groups(work);
    lower_groups(cg, work);
    plan_memory(work);
}

// Launches of that kernel, and all segments of them.
static uint32_t count_launches(const Codegen *cg, const Work *work, const char *symbol,
                               uint32_t *segments)
{
    uint32_t count = 0;
    *segments = 0;
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const char *name = cg->kernels[work->launches[i].kernel].symbol;
        bool same = name && strcmp(name, symbol) == 0;
        count += same;
        *segments += same ? work->launches[i].segments : 0;
    }
    return count;
}

// Makes a graph, plans of it with these rungs, and compares what they compute. Gives the plans.
static Codegen *check_graph(void (*fill)(Graph *, Vals *), const uint32_t *rungs, uint32_t count)
{
    Arena *arena = arena_new();
    Vals vals = {.count = 0};
    Variant *variant = arena_alloc(arena, sizeof *variant);
    Entry *entry = arena_alloc(arena, sizeof *entry);
    Module *module = arena_alloc(arena, sizeof *module);
    *entry = (Entry){.kind = ENTRY_PROGRAM, .name = "all", .variants = variant,
                     .variant_count = count - 1};
    *module = (Module){.path = "", .name = "all", .arena = arena, .graph = graph_new(arena),
                       .real = DT_F32, .entries = entry, .entry_count = 1};
    fill(module->graph, &vals);
    describe_sources(module, entry);
    list_values(module, variant, &vals);
    Variant *same = arena_alloc(arena, count * sizeof *same);
    for (uint32_t i = 0; i < count; i++)
        same[i] = *variant;
    entry->variants = same;
    Codegen *cg = codegen_new(module, NULL, "native");
    uint32_t *first = arena_alloc(arena, 2 * sizeof *first);
    first[1] = count - 1;
    cg->fused_first = first;
    cg->plain_first = first + 1;
    for (uint32_t i = 0; i < count; i++)
        add_plan(cg, rungs[i]);

    params = calloc((size_t)cg->param_bytes + 8, 1);
    for (uint32_t i = 0; i < module->param_count; i++)
        fill_values(params + cg->param_offset[i], &module->params[i].type, i + 1);
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const Type *type = &entry->inputs[i].type;
        io[i] = calloc((size_t)count_of_type(type) + 1, 8);
        fill_values(io[i], type, 100 + i);
        numbers[i] = dtype_is_float(type->dtype) ? (PvScalar){.f = 0.5} : (PvScalar){.i = 1};
    }
    Val *wanted = arena_alloc(arena, (variant->output_count + 1) * sizeof *wanted);
    void **want = arena_alloc(arena, (variant->output_count + 1) * sizeof *want);
    for (uint32_t i = 0; i < variant->output_count; i++)
        wanted[i] = variant->outputs[i].val;
    InterpOptions interp = {BATCH, DT_F32, give_source, cg};
    if (interp_run(module->graph, &interp, wanted, variant->output_count, want) != 0)
        fail_msg("%s", graph_error(module->graph));
    void *handle = compile(cg);
    const PvModel *model = dlsym(handle, "pv_model");
    assert_non_null(model);
    for (uint32_t i = 0; i < count; i++)
        check_plan(model, i + 1 < count ? &model->entries[0].plans[i] : &model->entries[0].plain[0],
                   cg, entry, want);
    return cg;
}

#endif
