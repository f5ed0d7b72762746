// The C text of an executable: tables that describe the model, functions for step values, samplers,
// and the emitted kernels.
//
// Tables that hold names are C initialisers. Launches and arguments, which are many and hold only
// numbers, go packed into the data section, with the constant tables; the C compiler then takes no
// longer for a large model than for a small one. Kernels are spread over several files, compiled at
// once; no file names a folder or a number that another kernel may shift, so that its object can be
// that of an earlier run (cache.c). The bytes stand in a file of their own, for the assembler.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codegen/codegen.h"

enum { MOST_KERNELS = 48, ENDS = 24 };     // of a file; one kernel in so many ends one
#define BYTES_FILE "bytes.s"

static void write_string(FILE *out, const char *text)
{
    if (!text) {
        fputs("0", out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 32 || c >= 127 || c == '?')
            fprintf(out, "\\%03o", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static int machine_dtype(const Module *module, DType dtype)
{
    return (int)(dtype_is_float(dtype) ? module->real : dtype);
}

void write_type(FILE *out, const Module *module, const Type *type)
{
    unsigned batch = 0;
    for (uint32_t i = 0; i < type->rank; i++)
        batch |= (unsigned)type->dim[i].batch << i;
    fprintf(out, "{%d, %u, %u, {", machine_dtype(module, type->dtype), type->rank, batch);
    for (uint32_t i = 0; i < type->rank; i++)
        fprintf(out, "%s%lld", i ? ", " : "", (long long)type->dim[i].n);
    fprintf(out, "%s}}", type->rank ? "" : "0");
}

static void write_scalar(FILE *out, DType dtype, double value)
{
    if (dtype_is_float(dtype))
        fprintf(out, "{.f = %.17g}", value);
    else
        fprintf(out, "{.i = %lld}", (long long)value);
}

static void write_names(FILE *out, const char *name, const char *const *names, uint32_t count)
{
    fprintf(out, "static const char *const %s[] = {", name);
    for (uint32_t i = 0; i < count; i++) {
        fputs(i % 4 == 0 ? "\n    " : " ", out);
        write_string(out, names[i]);
        fputc(',', out);
    }
    fprintf(out, "%s\n};\n", count ? "" : "0");
}

static void write_numbers(FILE *out, const char *name, const uint32_t *numbers, uint32_t count)
{
    fprintf(out, "static const uint32_t %s[] = {", name);
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "%s%u,", i % 16 ? " " : "\n    ", numbers[i]);
    fprintf(out, "%s};\n", count ? "\n" : "0");
}

// ---- parameters, options, instances ----

static int64_t count_elements(const Type *type)
{
    Dim count = {0, 0};
    type_count(type, &count);
    return count.n;
}

static void write_params(const Codegen *cg, FILE *out)
{
    const Module *module = cg->module;
    fprintf(out, "static const PvParam params[] = {\n");
    for (uint32_t i = 0; i < module->param_count; i++) {
        const Param *param = &module->params[i];
        fprintf(out, "    {");
        write_string(out, param->name);
        fprintf(out, ", %u, ", param->instance);
        write_type(out, module, &param->type);
        int64_t rows = param->last ? param->type.dim[1].n : 0, columns = 0;
        if (param->last)       // [c_out, c_in, positions] to [c_out, positions, c_in]
            columns = count_elements(&param->type) / param->type.dim[0].n / rows;
        fprintf(out, ", %lld, %lld, %d, %d, %.17g, %.17g, %lld, %lld},\n",
                (long long)cg->param_offset[i], (long long)count_elements(&param->type),
                param->buffer, (int)param->init, param->init_a, param->init_b, (long long)rows,
                (long long)columns);
    }
    fprintf(out, "%s};\n", module->param_count ? "" : "    {0}\n");
    for (uint32_t i = 0; i < module->instance_count; i++) {
        char name[32];
        snprintf(name, sizeof name, "ignored_%u", i);
        write_names(out, name, module->instances[i].ignored, module->instances[i].ignored_count);
    }
    fprintf(out, "static const PvInstance instances[] = {\n");
    for (uint32_t i = 0; i < module->instance_count; i++) {
        const Instance *instance = &module->instances[i];
        uint32_t end = instance->first + instance->count;
        int64_t from = instance->count ? cg->param_offset[instance->first] : 0;
        int64_t to = end < module->param_count ? cg->param_offset[end] : cg->param_bytes;
        fprintf(out, "    {");
        write_string(out, instance->name);
        fprintf(out, ", %u, %u, %lld, %lld, ignored_%u, %u},\n", instance->first, instance->count,
                (long long)from, (long long)(instance->count ? to - from : 0), i,
                instance->ignored_count);
    }
    fprintf(out, "%s};\n", module->instance_count ? "" : "    {0}\n");
}

static void write_options(const Codegen *cg, FILE *out)
{
    const Module *module = cg->module;
    fprintf(out, "static const PvOption options[] = {\n");
    for (uint32_t i = 0; i < module->option_count; i++) {
        const Option *option = &module->options[i];
        uint32_t count = option->count ? option->count : 1;
        fprintf(out, "    {");
        write_string(out, option->name);
        fprintf(out, ", ");
        write_string(out, option->stage);
        fprintf(out, ", %d, %d, %u, %u, {", machine_dtype(module, option->dtype), option->is_list,
                count, cg->option_slot[i]);
        for (uint32_t k = 0; k < count; k++) {
            fputs(k ? ", " : "", out);
            write_scalar(out, option->dtype, option->value[k]);
        }
        fprintf(out, "}, ");
        write_type(out, module, &option->type);
        fprintf(out, "},\n");
    }
    fprintf(out, "%s};\n", module->option_count ? "" : "    {0}\n");
}

// ---- plans ----

typedef struct {
    Codegen *cg;
    FILE *out;
    const char **texts;        // origins, each once with each label
    const char **labels;       // what the launches of that origin compute
    uint32_t count;
    size_t capacity, label_capacity;
    uint32_t *by_node;         // origin + 1 of a node, with its last label
    uint32_t *table;           // by hash of the interned pointer's text
    uint32_t table_size;
    Memo lines;                // by place in the sources
    Taps *taps;
    const char **scalar_texts; // bodies of `scalars` functions, each once
    uint32_t scalar_count;
    size_t scalar_capacity;
} Writer;

static uint32_t line_of(Writer *writer, Span span)
{
    const uint32_t place[] = {span.file, span.begin};
    Codegen *cg = writer->cg;
    bool found;
    cg->key.count = 0;
    bytes_add(cg->arena, &cg->key, place, sizeof place);
    uint32_t *line = memo_find(cg->arena, &writer->lines, &cg->key, sizeof *line, &found), column;
    if (!found)
        sources_place(cg->sources, span.file, span.begin, line, &column);
    return *line;
}

// "unet.model:20 unet.out.2": the base name of the file, the line, the path.
static const char *origin_text(Writer *writer, NodeId node)
{
    const Codegen *cg = writer->cg;
    const Origin *origin = node ? graph_origin(cg->module->graph, node) : NULL;
    if (!origin || (!origin->span.file && !origin->path))
        return "";
    if (!origin->span.file || !cg->sources)
        return origin->path ? origin->path : "";
    const SourceFile *file = sources_get(cg->sources, origin->span.file);
    const char *slash = strrchr(file->path, '/');
    return intern(arena_printf(cg->arena, "%s:%u%s%s", slash ? slash + 1 : file->path,
                               line_of(writer, origin->span), origin->path ? " " : "",
                               origin->path ? origin->path : ""));
}

// Makes the table of origins twice as large.
static void grow_origins(Writer *writer)
{
    writer->table_size *= 2;
    writer->table = arena_alloc(writer->cg->arena, writer->table_size * sizeof(uint32_t));
    for (uint32_t i = 0; i < writer->count; i++) {
        uint32_t at = (uint32_t)hash_bytes(writer->texts[i], strlen(writer->texts[i]));
        while (writer->table[at & (writer->table_size - 1)])
            at++;
        writer->table[at & (writer->table_size - 1)] = i + 1;
    }
}

static uint32_t find_origin(Writer *writer, NodeId node, const char *label)
{
    label = label ? label : "";
    uint32_t last = writer->by_node[node];
    if (last && writer->labels[last - 1] == label)
        return last - 1;
    const char *text = last ? writer->texts[last - 1] : origin_text(writer, node);
    uint32_t mask = writer->table_size - 1;
    uint32_t at = (uint32_t)hash_bytes(text, strlen(text)) & mask;
    for (; writer->table[at]; at = (at + 1) & mask) {
        uint32_t other = writer->table[at] - 1;
        if (strcmp(writer->texts[other], text) == 0 && strcmp(writer->labels[other], label) == 0)
            break;
    }
    if (!writer->table[at]) {
        writer->texts =
            grow_array(writer->texts, &writer->capacity, writer->count, sizeof *writer->texts);
        writer->labels = grow_array(writer->labels, &writer->label_capacity, writer->count,
                                    sizeof *writer->labels);
        writer->labels[writer->count] = label;
        writer->texts[writer->count++] = text;
        writer->table[at] = writer->count;
        if (2 * writer->count > writer->table_size) {
            grow_origins(writer);
            writer->by_node[node] = writer->count;
            return writer->count - 1;
        }
    }
    writer->by_node[node] = writer->table[at];
    return writer->table[at] - 1;
}

static PvLaunch *make_launches(Writer *writer, const Work *work)
{
    PvLaunch *launches = calloc((size_t)work->launch_count + 1, sizeof *launches);
    if (!launches)
        bug("out of memory");
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *from = &work->launches[i];
        launches[i].kernel = from->kernel;
        launches[i].arg = from->arg;
        launches[i].arg_count = (uint16_t)from->arg_count;
        launches[i].origin = find_origin(writer, from->origin, from->label);
        launches[i].flops_fixed = from->flops_fixed;
        launches[i].flops_batch = from->flops_batch;
        launches[i].segments = (uint16_t)from->segments;
        launches[i].bytes_fixed = from->bytes_fixed;
        launches[i].bytes_batch = from->bytes_batch;
    }
    return launches;
}

static PvArg *make_args(const Work *work)
{
    PvArg *args = malloc(((size_t)work->arg_count + 1) * sizeof *args);
    if (!args)
        bug("out of memory");
    for (uint32_t i = 0; i < work->arg_count; i++)
        args[i] = resolve_arg(work, &work->args[i]);
    return args;
}

// The body of the function that computes a plan's step values.
static char *scalars_text(Codegen *cg, const Work *work)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    StepScope scope = {.cg = cg, .out = out, .indent = 4};
    for (uint32_t i = 0; i < work->scalar_count; i++) {
        write_step(&scope, work->scalars[i]);
        bool real = dtype_is_float(val_type(cg->module->graph, work->scalars[i])->dtype);
        fprintf(out, "    pv_set_%s(&out[%u], v%u);\n", real ? "real" : "int", i,
                val_node(work->scalars[i]));
    }
    fclose(out);
    free(scope.known);
    return text;
}

static uint32_t find_scalars(Writer *writer, const Work *work)
{
    char *text = scalars_text(writer->cg, work);
    uint32_t i = 0;
    while (i < writer->scalar_count && strcmp(writer->scalar_texts[i], text) != 0)
        i++;
    if (i == writer->scalar_count) {
        writer->scalar_texts = grow_array(writer->scalar_texts, &writer->scalar_capacity, i,
                                          sizeof *writer->scalar_texts);
        writer->scalar_texts[writer->scalar_count++] = arena_printf(writer->cg->arena, "%s", text);
        fprintf(writer->out,
                "static void scalars_%u(const PvStep *step, PvScalar *out)\n{\n"
                "    (void)step;\n    (void)out;\n%s}\n", i, text);
    }
    free(text);
    return i;
}

typedef struct {
    PvLaunch *launches;                // until they are packed
    void *bytes;                       // packed, until they are in the data section
    size_t packed, packed_bytes;       // there
    size_t edges, taps;                // there too
    uint32_t edge_count;
    double flops_fixed, flops_batch, bytes_fixed, bytes_batch;
    uint32_t scalars;
} PlanText;

// Launches and edges into the data section; what the launches sum up to.
static void store_launches(Writer *writer, const Work *work, PlanText *text)
{
    text->packed = data_add(writer->cg, text->bytes, text->packed_bytes);
    for (uint32_t i = 0; i < work->launch_count; i++) {
        text->flops_fixed += work->launches[i].flops_fixed;
        text->flops_batch += work->launches[i].flops_batch;
        text->bytes_fixed += work->launches[i].bytes_fixed;
        text->bytes_batch += work->launches[i].bytes_batch;
    }
    if (writer->cg->unfused_too) {
        uint32_t *edges = launch_edges(work, &text->edge_count);
        if (text->edge_count)
            text->edges = data_add(writer->cg, edges, text->edge_count * 2 * sizeof *edges);
        free(edges);
    }
    free(text->bytes);
    text->bytes = NULL;
}

// What a plan needs before the tables of plans.
static void write_plan_parts(Writer *writer, const Work *work, uint32_t number, PlanText *text)
{
    text->scalars = find_scalars(writer, work);
    store_launches(writer, work, text);
    char name[32];
    if (work->tap_count)
        text->taps = taps_add(writer->taps, work);
    snprintf(name, sizeof name, "streams_%u", number);
    write_numbers(writer->out, name, work->streams, work->stream_count);
    snprintf(name, sizeof name, "grads_%u", number);
    write_numbers(writer->out, name, work->grads, work->grad_count);
    snprintf(name, sizeof name, "reads_%u", number);
    write_numbers(writer->out, name, work->instances, work->instance_count);
}

static uint32_t plan_number(const Codegen *cg, const Work *work)
{
    uint32_t number = 0;
    while (cg->plans[number] != work)
        number++;
    return number;
}

static void write_plan(Writer *writer, const Work *work, uint32_t number, const PlanText *text)
{
    fprintf(writer->out,
            "    {0, %u, 0, %u, pv_data + %zu, %zu, %.17g, %.17g, %.17g, %.17g,\n"
            "     %lld, %lld, %lld, %lld, %lld, %u, scalars_%u,\n",
            work->launch_count, work->arg_count, text->packed, text->packed_bytes,
            text->flops_fixed, text->flops_batch, text->bytes_fixed, text->bytes_batch,
            (long long)work->arena_fixed, (long long)work->arena_batch,
            (long long)work->live_fixed, (long long)work->live_batch, (long long)work->scratch,
            work->scalar_count, text->scalars);
    if (work->tap_count)
        fprintf(writer->out, "     (const PvTap *)(pv_data + %zu), %u, ", text->taps,
                work->tap_count);
    else
        fprintf(writer->out, "     0, 0, ");
    fprintf(writer->out, "streams_%u, %u, grads_%u, %u, reads_%u, %u, ", number,
            work->stream_count, number, work->grad_count, number, work->instance_count);
    if (text->edge_count)
        fprintf(writer->out, "(const uint32_t *)(pv_data + %zu), %u, ", text->edges,
                text->edge_count);
    else
        fprintf(writer->out, "0, 0, ");
    if (work->table)
        fprintf(writer->out, "plans + %u, %lld, ", plan_number(writer->cg, work->table),
                (long long)work->row_bytes);
    else
        fprintf(writer->out, "0, 0, ");
    fprintf(writer->out, "%d},\n", (work->rungs & RUNG_SPLIT) != 0);
}

typedef struct {
    const Codegen *cg;
    PlanText *texts;
} Packing;

static void pack_launches(void *context, uint32_t number)
{
    const Packing *packing = context;
    const Work *work = packing->cg->plans[number];
    PlanText *text = &packing->texts[number];
    PvArg *args = make_args(work);
    text->bytes = pack_plan(text->launches, work->launch_count, args, packing->cg->kernel_count,
                            &text->packed_bytes);
    free(args);
    free(text->launches);
    text->launches = NULL;
}

static void write_plans(Writer *writer)
{
    Codegen *cg = writer->cg;
    PlanText *texts = calloc(cg->plan_count + 1, sizeof *texts);
    if (!texts)
        bug("out of memory");
    for (uint32_t i = 0; i < cg->plan_count; i++)
        texts[i].launches = make_launches(writer, cg->plans[i]);
    in_parallel(cg->plan_count, pack_launches, &(Packing){cg, texts});
    for (uint32_t i = 0; i < cg->plan_count; i++)
        write_plan_parts(writer, cg->plans[i], i, &texts[i]);
    fprintf(writer->out, "static const PvPlan plans[] = {\n");
    for (uint32_t i = 0; i < cg->plan_count; i++)
        write_plan(writer, cg->plans[i], i, &texts[i]);
    fprintf(writer->out, "%s};\n", cg->plan_count ? "" : "    {0}\n");
    free(texts);
}

// ---- entries ----

static void write_entry_parts(Writer *writer, uint32_t number)
{
    const Codegen *cg = writer->cg;
    const Entry *entry = &cg->module->entries[number];
    FILE *out = writer->out;
    fprintf(out, "static const PvInput inputs_%u[] = {\n", number);
    for (uint32_t i = 0; i < entry->input_count; i++) {
        fprintf(out, "    {");
        write_string(out, entry->inputs[i].name);
        fprintf(out, ", ");
        write_type(out, cg->module, &entry->inputs[i].type);
        fprintf(out, ", %d},\n", entry->inputs[i].optional);
    }
    fprintf(out, "%s};\nstatic const PvOutput outputs_%u[] = {\n",
            entry->input_count ? "" : "    {0}\n", number);
    const struct EntryOutputs *all = &cg->outputs[number];
    for (uint32_t i = 0; i < all->count; i++) {
        static const char *const kinds[] = {
            [OUT_NAMED] = "PV_OUT_NAMED", [OUT_GRAD_INPUT] = "PV_OUT_GRAD_INPUT",
            [OUT_REPORT] = "PV_OUT_REPORT", [OUT_SETTING] = "PV_OUT_SETTING"};
        fprintf(out, "    {%s, ", kinds[all->at[i].kind]);
        write_string(out, all->at[i].name);
        fprintf(out, ", ");
        write_type(out, cg->module, val_type(cg->module->graph, all->at[i].val));
        fprintf(out, "},\n");
    }
    fprintf(out, "%s};\n", all->count ? "" : "    {0}\n");
    if (cg->unfused_too && cg->ladder_first[number] != UINT32_MAX) {
        fprintf(out, "static const PvRung rungs_%u[] = {\n", number);
        for (uint32_t i = 0; i < LADDER_STEPS; i++)
            fprintf(out, "    {\"%s\", %d, plans + %u},\n", ladder[i].name, ladder[i].level,
                    i + 1 < LADDER_STEPS ? cg->ladder_first[number] + i * entry->variant_count
                                         : cg->fused_first[number]);
        fprintf(out, "};\n");
    }
    emit_select(writer->cg, out, number);
}

static void write_entries(Writer *writer)
{
    const Codegen *cg = writer->cg;
    const Module *module = cg->module;
    FILE *out = writer->out;
    for (uint32_t i = 0; i < module->entry_count; i++)
        write_entry_parts(writer, i);
    fprintf(out, "static const PvEntry entries[] = {\n");
    for (uint32_t i = 0; i < module->entry_count; i++) {
        const Entry *entry = &module->entries[i];
        static const char *const kinds[] = {
            [ENTRY_PROGRAM] = "PV_PROGRAM", [ENTRY_GRAD] = "PV_GRAD_OF",
            [ENTRY_MINIMIZE] = "PV_MINIMIZE", [ENTRY_CALL] = "PV_CALL",
            [ENTRY_PROBE] = "PV_PROBE"};
        fprintf(out, "    {%s, ", kinds[entry->kind]);
        write_string(out, entry->kind == ENTRY_GRAD ? module->entries[entry->program].name
                                                    : entry->name);
        fprintf(out, ", inputs_%u, %u, outputs_%u, %u, plans + %u, ", i, entry->input_count, i,
                cg->outputs[i].count, cg->fused_first[i]);
        if (cg->plain_first[i] == UINT32_MAX)
            fprintf(out, "0");
        else
            fprintf(out, "plans + %u", cg->plain_first[i]);
        fprintf(out, ", %u, select_%u, ", entry->variant_count, i);
        if (cg->unfused_too && cg->ladder_first[i] != UINT32_MAX)
            fprintf(out, "rungs_%u, %d},\n", i, LADDER_STEPS);
        else
            fprintf(out, "0, 0},\n");
    }
    fprintf(out, "%s};\n", module->entry_count ? "" : "    {0}\n");
}

static void write_stages(const Codegen *cg, FILE *out)
{
    const Module *module = cg->module;
    for (uint32_t i = 0; i < module->stage_count; i++) {
        const Stage *stage = &module->stages[i];
        for (uint32_t k = 0; k < stage->minimize_count; k++) {
            char name[48];
            snprintf(name, sizeof name, "moved_%u_%u", i, k);
            write_numbers(out, name, stage->minimize[k].instances,
                          stage->minimize[k].instance_count);
        }
        fprintf(out, "static const PvMinimize minimize_%u[] = {\n", i);
        for (uint32_t k = 0; k < stage->minimize_count; k++) {
            const Minimize *minimize = &stage->minimize[k];
            fprintf(out, "    {%u, %uu, ", minimize->entry, minimize->replay);
            write_string(out, minimize->optimizer);
            fprintf(out, ", moved_%u_%u, %u, %lld, %lld, %d},\n", i, k, minimize->instance_count,
                    (long long)minimize->accumulate, (long long)minimize->ema_every,
                    minimize->clip);
        }
        fprintf(out, "%s};\n", stage->minimize_count ? "" : "    {0}\n");
    }
    fprintf(out, "static const PvStage stages[] = {\n");
    for (uint32_t i = 0; i < module->stage_count; i++) {
        const Stage *stage = &module->stages[i];
        fprintf(out, "    {");
        write_string(out, stage->name);
        fprintf(out, ", ");
        write_string(out, stage->has_data ? stage->source : NULL);
        fprintf(out, ", %d, %u, %u, %u, ", stage->pad, stage->frames, stage->height, stage->width);
        write_string(out, stage->data_name);
        fprintf(out, ", ");
        write_type(out, module, &stage->data_type);
        fprintf(out, ", minimize_%u, %u},\n", i, stage->minimize_count);
    }
    fprintf(out, "%s};\n", module->stage_count ? "" : "    {0}\n");
}

// ---- the model ----

static void write_prologue(FILE *out)
{
    fputs(
        "#include \"codegen/cpu/kernels.h\"\n#include \"codegen/cpu/pv_math.h\"\n"
        "#include <string.h>\n\nextern const char pv_data[];\n\n"
        "static inline void pv_set_real(PvScalar *at, PvReal value)\n{\n"
        "    memcpy(at, &value, sizeof value);\n}\n\n"
        "static inline void pv_set_int(PvScalar *at, int64_t value)\n{\n    at->i = value;\n}\n\n",
        out);
}

// The runtime knows draws by the CPU function, which is its own.
static bool has_function(const Codegen *cg, const Kernel *kernel)
{
    return cg->targets.cpu || strcmp(kernel->symbol, "pv_random") == 0;
}

// A pointer into the table of CUDA kernels: index + 1, or 0.
static void write_cuda_kernel(FILE *out, uint32_t kernel)
{
    if (kernel)
        fprintf(out, "cuda_kernels + %u", kernel - 1);
    else
        fprintf(out, "0");
}

static void write_kernel_table(const Codegen *cg, FILE *out)
{
    for (uint32_t i = 0; i < cg->kernel_count; i++)
        if (cg->kernels[i].text && cg->targets.cpu)        // one symbol more than once does no harm
            fprintf(out, "void %s(const PvRun *run, const int64_t *args);\n",
                    cg->kernels[i].symbol);
    fprintf(out, "static const PvKernel kernels[] = {\n");
    for (uint32_t i = 0; i < cg->kernel_count; i++) {
        const Kernel *kernel = &cg->kernels[i];
        fprintf(out, "    {\"%s\", %s, ", kernel->name,
                has_function(cg, kernel) ? kernel->symbol : "0");
        write_cuda_kernel(out, kernel->cuda);
        fprintf(out, ", ");
        write_cuda_kernel(out, kernel->cuda_90a);
        fprintf(out, "},\n");
    }
    fprintf(out, "%s};\n", cg->kernel_count ? "" : "    {0}\n");
}

static void write_model(Writer *writer)
{
    const Codegen *cg = writer->cg;
    const Module *module = cg->module;
    FILE *out = writer->out;
    size_t tap_names = taps_write(writer->taps, out);
    if (wants_cuda(cg))
        emit_cuda_tables(cg, out);
    write_kernel_table(cg, out);
    write_names(out, "origins", writer->texts, writer->count);
    write_names(out, "labels", writer->labels, writer->count);
    write_names(out, "constants", module->constants, module->constant_count);
    write_names(out, "streams", module->streams, module->stream_count);
    fprintf(out, "const PvModel pv_model = {\n    ");
    write_string(out, module->name);
    fprintf(out, ", %d, constants, %u, params, %u, %lld, %d,\n", (int)module->real,
            module->constant_count, module->param_count, (long long)cg->param_bytes,
            (int)module->storage);
    fprintf(out, "    instances, %u, options, %u, %u, streams, %u,\n", module->instance_count,
            module->option_count, cg->option_slots, module->stream_count);
    fprintf(out, "    entries, %u, stages, %u, samplers, %u,\n", module->entry_count,
            module->stage_count, module->sampler_count);
    fprintf(out, "    kernels, %u, origins, %u, pv_data, %zu, %s, ", cg->kernel_count,
            writer->count, cg->data_size, wants_cuda(cg) ? "&cuda" : "0");
    write_string(out, cg->march);
    fprintf(out, ", PV_FEATURES, labels, pv_data + %zu, tap_types\n};\n", tap_names);
}

static void write_tables(Codegen *cg, FILE *out)
{
    uint32_t nodes = graph_count(cg->module->graph) + 1;
    Writer writer = {.cg = cg, .out = out, .taps = taps_new(cg)};
    writer.by_node = arena_alloc(cg->arena, nodes * sizeof(uint32_t));
    writer.table_size = 64;
    while (writer.table_size < 2 * nodes)
        writer.table_size *= 2;
    writer.table = arena_alloc(cg->arena, writer.table_size * sizeof(uint32_t));
    write_prologue(out);
    write_params(cg, out);
    write_options(cg, out);
    write_plans(&writer);
    write_entries(&writer);
    write_stages(cg, out);
    emit_samplers(cg, out);
    write_model(&writer);
    free(writer.texts);
    free(writer.labels);
    free(writer.scalar_texts);
}

// A file ends behind a kernel whose hash says so, or when it is full, so that a new kernel leaves
// most files as they are.
static bool ends_file(const Kernel *kernel, uint32_t count)
{
    return count == MOST_KERNELS || hash_bytes(kernel->symbol, strlen(kernel->symbol)) % ENDS == 0;
}

static int compare_symbols(const void *x, const void *y)
{
    return strcmp((*(const Kernel *const *)x)->symbol, (*(const Kernel *const *)y)->symbol);
}

// Emitted kernels by symbol, each symbol once.
static const Kernel **sort_kernels(const Codegen *cg, uint32_t *count)
{
    const Kernel **order = arena_alloc(cg->arena, (cg->kernel_count + 1) * sizeof *order);
    uint32_t all = 0;
    for (uint32_t i = 0; i < cg->kernel_count; i++)
        if (cg->kernels[i].text)
            order[all++] = &cg->kernels[i];
    qsort(order, all, sizeof *order, compare_symbols);
    *count = 0;
    for (uint32_t i = 0; i < all; i++)
        if (i == 0 || strcmp(order[i - 1]->symbol, order[i]->symbol) != 0)
            order[(*count)++] = order[i];
    return order;
}

static void write_kernels(FILE *out, const Kernel *const *kernels, uint32_t count)
{
    fputs("#include \"codegen/cpu/kernels.h\"\n#include \"codegen/cpu/pv_math.h\"\n", out);
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "\nvoid %s(const PvRun *run, const int64_t *args);\n// %s\nvoid %s%s",
                kernels[i]->symbol, kernels[i]->name, kernels[i]->symbol, kernels[i]->text);
}

void emit_text(Codegen *cg, FILE *out)
{
    write_tables(cg, out);
    uint32_t count;
    const Kernel **kernels = sort_kernels(cg, &count);
    if (cg->targets.cpu)
        write_kernels(out, kernels, count);
}

static FILE *open_file(Codegen *cg, const char *folder, const char *name, CFiles *files)
{
    const char *path = arena_printf(cg->arena, "%s/%s", folder, name);
    if (files)
        files->paths[files->count++] = path;
    return fopen(path, "w");
}

static bool close_file(FILE *file)
{
    bool good = !ferror(file);
    return fclose(file) == 0 && good;
}

// Text that puts the bytes of a file of `folder` into the executable, under a name.
static void write_bytes_of(FILE *out, const char *folder, const char *file, const char *name)
{
    fprintf(out, "    .section .rodata\n    .balign 64\n    .globl %s\n%s:\n"
                 "    .incbin \"%s/%s\"\n    .byte 0\n", name, name, folder, file);
}

static bool emit_bytes(Codegen *cg, const char *folder, const char *name, const char *bytes,
                       size_t size)
{
    FILE *out = open_file(cg, folder, name, NULL);
    if (!out)
        return false;
    fwrite(bytes, 1, size, out);
    return close_file(out);
}

static bool emit_kernels(Codegen *cg, const char *folder, CFiles *files)
{
    uint32_t count;
    const Kernel **kernels = sort_kernels(cg, &count);
    files->paths = arena_alloc(cg->arena, (count + 3) * sizeof *files->paths);
    for (uint32_t i = 0; i < count && cg->targets.cpu;) {
        uint32_t size = 1;
        while (i + size < count && !ends_file(kernels[i + size - 1], size))
            size++;
        FILE *out =
            open_file(cg, folder, arena_printf(cg->arena, "%s.c", kernels[i]->symbol), files);
        if (!out)
            return false;
        write_kernels(out, kernels + i, size);
        if (!close_file(out))
            return false;
        i += size;
    }
    return true;
}

// The assembler's text that takes in the bytes.
static bool emit_sections(Codegen *cg, const char *folder)
{
    FILE *out = open_file(cg, folder, BYTES_FILE, NULL);
    if (!out)
        return false;
    write_bytes_of(out, folder, "data.bin", "pv_data");
    if (wants_cuda(cg))
        write_bytes_of(out, folder, "images.bin", "pv_images");
    fprintf(out, "    .section .note.GNU-stack,\"\",%%progbits\n");
    return close_file(out) && emit_bytes(cg, folder, "data.bin", cg->data, cg->data_size) &&
           (!wants_cuda(cg) || emit_bytes(cg, folder, "images.bin", cg->images, cg->image_bytes));
}

bool emit_files(Codegen *cg, const char *folder, CFiles *files)
{
    if (!emit_kernels(cg, folder, files))
        return false;
    FILE *out = open_file(cg, folder, "tables.c", files);
    if (!out)
        return false;
    write_tables(cg, out);
    files->bytes = arena_printf(cg->arena, "%s/%s", folder, BYTES_FILE);
    return close_file(out) && emit_sections(cg, folder);       // data is complete with the tables
}
