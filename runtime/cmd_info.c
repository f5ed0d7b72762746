// `info`: what this executable can do and what it takes. Everything is gathered into one JSON
// object, which --json prints; the text is a reading of the same object.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda_exec.h"
#include "runtime/train.h"
#include "runtime/video.h"

// ---- gathering ----

// ["b", 4, 2048]
static json_t *shape_json(const PvType *type)
{
    json_t *shape = json_array();
    for (uint32_t i = 0; i < type->rank; i++) {
        if (!(type->batch_axes >> i & 1))
            json_array_append_new(shape, json_integer(type->dim[i]));
        else if (type->dim[i] == 1)
            json_array_append_new(shape, json_string("b"));
        else
            json_array_append_new(shape, json_sprintf("%lld*b", (long long)type->dim[i]));
    }
    return shape;
}

static json_t *value_json(const char *name, const PvType *type)
{
    char text[PV_SHAPE_TEXT];
    return json_pack("{s:s, s:s, s:o, s:s}", "name", name, "dtype", pv_dtype_name(type->dtype),
                     "shape", shape_json(type), "text", pv_type_text(text, type));
}

static json_t *names_json(const bool *marks)
{
    json_t *names = json_array();
    for (uint32_t i = 0; i < pv_model.instance_count; i++)
        if (marks[i])
            json_array_append_new(names, json_string(pv_model.instances[i].name));
    return names;
}

// How much of the arena is in use at its fullest moment.
static double packing(int64_t live, int64_t arena)
{
    return arena > 0 ? (double)live / (double)arena : 1;
}

// One variant: operations and bytes, as fixed + batch * per sample.
static json_t *plan_json(const PvExec *exec, const PvEntry *entry, const PvPlan *plan)
{
    bool *needed = pv_alloc(pv_model.instance_count + 1u);
    pv_plan_instances(plan, needed);
    PvMemoryItem need = pv_exec_need(exec, entry, plan);
    json_t *json =
        json_pack("{s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:i, s:o}", "flops_fixed", plan->flops_fixed,
                  "flops_sample", plan->flops_batch, "parameter_bytes",
                  (json_int_t)pv_exec_param_bytes(&pv_model, needed), "activation_bytes_fixed",
                  (json_int_t)need.fixed, "activation_bytes_sample", (json_int_t)need.per_batch,
                  "live_bytes_fixed", (json_int_t)plan->live_fixed, "live_bytes_sample",
                  (json_int_t)plan->live_batch, "launches", (int)plan->launch_count, "reads",
                  names_json(needed));
    json_object_update_new(json,
                           json_pack("{s:I, s:I, s:I, s:f, s:f}", "arena_bytes_fixed",
                                     (json_int_t)plan->arena_fixed, "arena_bytes_sample",
                                     (json_int_t)plan->arena_batch, "workspace_bytes_thread",
                                     (json_int_t)plan->scratch_size, "packing_fixed",
                                     packing(plan->live_fixed, plan->arena_fixed), "packing_sample",
                                     packing(plan->live_batch, plan->arena_batch)));
    if (plan->table)
        json_object_set_new(json, "table",
                            json_pack("{s:I, s:i}", "bytes_row", (json_int_t)plan->row_bytes,
                                      "launches_row", (int)plan->table->launch_count));
    free(needed);
    return json;
}

static json_t *entry_json(const PvExec *exec, const PvEntry *entry)
{
    json_t *inputs = json_array(), *outputs = json_array(), *variants = json_array();
    for (uint32_t i = 0; i < entry->input_count; i++) {
        json_t *input = value_json(entry->inputs[i].name, &entry->inputs[i].type);
        json_object_set_new(input, "optional", json_boolean(entry->inputs[i].optional));
        json_array_append_new(inputs, input);
    }
    for (uint32_t i = 0; i < entry->output_count; i++)
        if (entry->outputs[i].kind == PV_OUT_NAMED)
            json_array_append_new(outputs,
                                  value_json(entry->outputs[i].name, &entry->outputs[i].type));
    for (uint32_t i = 0; i < entry->variant_count; i++)
        json_array_append_new(variants, plan_json(exec, entry, &entry->plans[i]));
    return json_pack("{s:s, s:o, s:o, s:o}", "name", entry->name, "inputs", inputs, "outputs",
                     outputs, "variants", variants);
}

static json_t *entries_json(const PvExec *exec, PvEntryKind kind)
{
    json_t *json = json_array();
    for (uint32_t i = 0; i < pv_model.entry_count; i++)
        if (pv_model.entries[i].kind == kind)
            json_array_append_new(json, entry_json(exec, &pv_model.entries[i]));
    return json;
}

static json_t *instances_json(void)
{
    json_t *json = json_array();
    for (uint32_t i = 0; i < pv_model.instance_count; i++) {
        const PvInstance *instance = &pv_model.instances[i];
        int64_t count[2] = {0};
        for (uint32_t k = instance->first; k < instance->first + instance->count; k++)
            count[pv_model.params[k].buffer] += pv_model.params[k].count;
        json_array_append_new(json, json_pack("{s:s, s:i, s:I, s:I, s:I}", "name", instance->name,
                                              "tensors", (int)instance->count, "parameters",
                                              (json_int_t)count[0], "buffers", (json_int_t)count[1],
                                              "bytes", (json_int_t)instance->size));
    }
    return json;
}

// The largest batch whose need is below `bytes`.
static int64_t largest_batch(const PvTrain *train, int64_t bytes)
{
    PvMemoryItem items[PV_TRAIN_ITEMS];
    uint32_t count = pv_train_need(train, 1, items);
    int64_t fixed = pv_memory_sum(items, count, 0);
    int64_t sample = pv_memory_sum(items, count, 1) - fixed;
    return bytes < fixed + sample ? 0 : sample > 0 ? (bytes - fixed) / sample : INT64_MAX;
}

static json_t *minimize_json(const PvExec *exec, const PvMinimize *minimize)
{
    bool *moves = pv_alloc(pv_model.instance_count + 1u);
    for (uint32_t i = 0; i < minimize->instance_count; i++)
        moves[minimize->instances[i]] = true;
    json_t *json = entry_json(exec, &pv_model.entries[minimize->entry]);
    json_object_set_new(json, "moves", names_json(moves));
    json_object_set_new(json, "optimizer", json_string(minimize->optimizer));
    json_object_set_new(json, "accumulate", json_integer(minimize->accumulate));
    json_object_set_new(json, "ema_every", json_integer(minimize->ema_every));
    free(moves);
    return json;
}

// What a step of training holds, part by part.
static json_t *items_json(const PvMemoryItem *items, uint32_t count)
{
    json_t *json = json_array();
    for (uint32_t i = 0; i < count; i++)
        if (items[i].fixed || items[i].per_batch)
            json_array_append_new(json, json_pack("{s:s, s:I, s:I}", "what", items[i].what,
                                                  "bytes_fixed", (json_int_t)items[i].fixed,
                                                  "bytes_sample", (json_int_t)items[i].per_batch));
    return json;
}

static json_t *stages_json(PvSession *session, int64_t free_bytes, PvError *error)
{
    json_t *json = json_array();
    for (uint32_t i = 0; i < pv_model.stage_count; i++) {
        const PvStage *stage = &pv_model.stages[i];
        PvTrain *train = pv_train_new(session, stage, 0, -1, false, error);
        if (!train)
            break;
        PvMemoryItem items[PV_TRAIN_ITEMS];
        uint32_t count = pv_train_need(train, 1, items);
        int64_t fixed = pv_memory_sum(items, count, 0);
        json_t *minimize = json_array();
        for (uint32_t k = 0; k < stage->minimize_count; k++)
            json_array_append_new(minimize, minimize_json(session->exec, &stage->minimize[k]));
        json_t *one =
            json_pack("{s:s, s:o, s:o, s:I, s:I, s:I}", "name", stage->name, "minimize", minimize,
                      "reads", names_json(train->needed), "bytes_fixed", (json_int_t)fixed,
                      "bytes_sample", (json_int_t)(pv_memory_sum(items, count, 1) - fixed),
                      "largest_batch", (json_int_t)largest_batch(train, free_bytes));
        json_object_set_new(one, "memory", items_json(items, count));
        if (stage->source) {
            json_t *data = value_json(stage->data_name, &stage->data_type);
            json_object_set_new(data, "source", json_string(stage->source));
            json_object_set_new(one, "data", data);
        }
        json_array_append_new(json, one);
        pv_train_free(train);
    }
    return json;
}

static json_t *number_json(const PvOption *option, uint32_t index)
{
    if (option->dtype == PV_BOOL)
        return json_boolean(option->value[index].i);
    if (option->dtype == PV_I64)
        return json_integer(option->value[index].i);
    return json_real(option->value[index].f);
}

static json_t *options_json(void)
{
    json_t *json = json_array();
    for (uint32_t i = 0; i < pv_model.option_count; i++) {
        const PvOption *option = &pv_model.options[i];
        bool tensor = option->dtype == PV_NONE;
        json_t *value = option->is_list ? json_array()
                        : tensor        ? json_null()
                                        : number_json(option, 0);
        for (uint32_t k = 0; option->is_list && k < option->count; k++)
            json_array_append_new(value, number_json(option, k));
        json_t *one =
            json_pack("{s:s, s:s?, s:s, s:o}", "name", option->name, "block", option->stage,
                      "dtype", tensor ? "tensor" : pv_dtype_name(option->dtype), "default", value);
        if (tensor)
            json_object_set_new(one, "shape", shape_json(&option->type));
        json_array_append_new(json, one);
    }
    return json;
}

static json_t *constants_json(void)
{
    json_t *json = json_object();
    for (uint32_t i = 0; i < pv_model.constant_count; i++) {
        const char *equals = strchr(pv_model.constants[i], '=');
        if (!equals)
            continue;
        char *name =
            pv_printf("%.*s", (int)(equals - pv_model.constants[i]), pv_model.constants[i]);
        json_object_set_new(json, name, json_string(equals + 1));
        free(name);
    }
    return json;
}

// "cpu", "cpu,cuda"
static char *target_text(void)
{
    bool gpu = false, emulator = false;
    for (uint32_t i = 0; pv_model.cuda && i < pv_model.cuda->image_count; i++) {
        emulator |= pv_model.cuda->images[i].arch == PV_ARCH_SIMT;
        gpu |= pv_model.cuda->images[i].arch != PV_ARCH_SIMT;
    }
    bool cpu = pv_model_has_cpu(&pv_model);
    return pv_printf("%s%s%s%s%s", cpu ? "cpu" : "", cpu && gpu ? "," : "", gpu ? "cuda" : "",
                     (cpu || gpu) && emulator ? "," : "", emulator ? "simt" : "");
}

// What there is for GPUs: for which, how many programs and bytes.
static json_t *cuda_json(void)
{
    const PvCuda *cuda = pv_model.cuda;
    if (!cuda)
        return json_null();
    int64_t bytes = 0;
    for (uint32_t i = 0; i < cuda->image_count; i++)
        bytes += cuda->images[i].bytes;
    char *targets = pv_cuda_targets(cuda);
    json_t *json = json_pack("{s:s, s:i, s:i, s:I, s:i}", "architectures", targets, "programs",
                             (int)cuda->modules, "images", (int)cuda->image_count, "bytes",
                             (json_int_t)bytes, "compiled_by", (int)cuda->version);
    free(targets);
    return json;
}

// Every kernel: what it computes, and the symbol of its CUDA form.
static json_t *kernels_json(void)
{
    json_t *json = json_array();
    for (uint32_t i = 0; i < pv_model.kernel_count; i++) {
        const PvKernel *kernel = &pv_model.kernels[i];
        json_array_append_new(json, json_pack("{s:s, s:b, s:s?}", "name", kernel->name, "cpu",
                                              kernel->fn != NULL, "cuda",
                                              kernel->cuda ? kernel->cuda->symbol : NULL));
    }
    for (uint32_t i = 0; pv_model.cuda && i < pv_model.cuda->kernel_count; i++)
        json_array_append_new(json,
                              json_pack("{s:s, s:b, s:s}", "name", pv_model.cuda->kernel_names[i],
                                        "cpu", 0, "cuda", pv_model.cuda->kernels[i].symbol));
    return json;
}

static json_t *gather(PvSession *session, PvError *error)
{
    PvMemoryFree space = pv_memory_free();
    int64_t parameters = 0;
    for (uint32_t i = 0; i < pv_model.param_count; i++)
        parameters += pv_model.params[i].buffer ? 0 : pv_model.params[i].count;
    json_t *samplers = json_array();
    for (uint32_t i = 0; i < pv_model.sampler_count; i++)
        json_array_append_new(samplers, json_string(pv_model.samplers[i].name));
    PvError none = {0};
    char *target = target_text();
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:{s:I, s:s}, s:s?, s:o, s:o, s:o, s:o, s:o, s:o, "
        "s:o, s:o, s:o}",
        "model", pv_model.name, "target", target, "real", pv_dtype_name(pv_model.real), "march",
        pv_model.march, "threads", session->exec->threads, "kernels", (int)pv_model.kernel_count,
        "parameters", (json_int_t)parameters, "memory", "free", (json_int_t)space.bytes, "limit",
        space.limit, "video_plugin", pv_video_plugin(&none), "constants", constants_json(),
        "instances", instances_json(), "programs", entries_json(session->exec, PV_PROGRAM),
        "gradients", entries_json(session->exec, PV_GRAD_OF), "stages",
        stages_json(session, space.bytes, error), "samplers", samplers, "options", options_json(),
        "cuda", cuda_json(), "kernel_list", kernels_json());
    pv_error_free(&none);
    free(target);
    return json;
}

// ---- text ----

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text ? text : "-";
}

static double number_of(const json_t *json, const char *key)
{
    return json_number_value(json_object_get(json, key));
}

static const char *size_of(const json_t *json, const char *key, char *text)
{
    return pv_size_text(text, number_of(json, key));
}

static void print_names(const char *before, const json_t *names)
{
    size_t i;
    const json_t *name;
    printf("%s", before);
    json_array_foreach(names, i, name) printf("%s%s", i ? ", " : "", json_string_value(name));
}

static void print_values(const json_t *values)
{
    size_t i;
    const json_t *value;
    json_array_foreach(values, i, value)
        printf("%s%s: %s %s%s", i ? ", " : "", text_of(value, "name"), text_of(value, "dtype"),
               text_of(value, "text"),
               json_is_true(json_object_get(value, "optional")) ? " (optional)" : "");
}

static void print_variants(const json_t *entry)
{
    const json_t *variants = json_object_get(entry, "variants"), *variant;
    size_t i;
    char text[4][32];
    json_array_foreach(variants, i, variant)
    {
        printf("    %.3f GFLOP a sample, %d launches; parameters %s, activations %s + %s a sample "
               "(at least %s)",
               1e-9 * (number_of(variant, "flops_sample") + number_of(variant, "flops_fixed")),
               (int)number_of(variant, "launches"), size_of(variant, "parameter_bytes", text[0]),
               size_of(variant, "activation_bytes_fixed", text[1]),
               size_of(variant, "activation_bytes_sample", text[2]),
               size_of(variant, "live_bytes_sample", text[3]));
        printf(", packed %.1f%% + %.1f%%", 100 * number_of(variant, "packing_fixed"),
               100 * number_of(variant, "packing_sample"));
        const json_t *table = json_object_get(variant, "table");
        if (table)
            printf("; a row of its table: %s, %d launches", size_of(table, "bytes_row", text[0]),
                   (int)number_of(table, "launches_row"));
        print_names("; reads ", json_object_get(variant, "reads"));
        printf("\n");
    }
}

static void print_programs(const json_t *programs)
{
    size_t i;
    const json_t *program;
    json_array_foreach(programs, i, program)
    {
        printf("  %s(", text_of(program, "name"));
        print_values(json_object_get(program, "inputs"));
        printf(") -> ");
        print_values(json_object_get(program, "outputs"));
        printf("\n");
        print_variants(program);
    }
}

static void print_items(const json_t *items)
{
    size_t i;
    const json_t *item;
    char text[2][32];
    json_array_foreach(items, i, item)
    {
        bool fixed = number_of(item, "bytes_fixed") > 0,
             sample = number_of(item, "bytes_sample") > 0;
        printf("%s%s %s", i ? ", " : "      ", text_of(item, "what"),
               fixed ? size_of(item, "bytes_fixed", text[0]) : "");
        printf("%s%s%s", fixed && sample ? " + " : "",
               sample ? size_of(item, "bytes_sample", text[1]) : "", sample ? " a sample" : "");
    }
    printf("\n");
}

static void print_stages(const json_t *stages)
{
    size_t i, k;
    const json_t *stage, *minimize;
    char text[2][32];
    json_array_foreach(stages, i, stage)
    {
        const json_t *data = json_object_get(stage, "data");
        printf("  %s", text_of(stage, "name"));
        if (data)
            printf(" on %s, %s: %s", text_of(data, "source"), text_of(data, "name"),
                   text_of(data, "text"));
        printf("\n    memory %s + %s a sample; batch %lld fits here",
               size_of(stage, "bytes_fixed", text[0]), size_of(stage, "bytes_sample", text[1]),
               (long long)number_of(stage, "largest_batch"));
        print_names("; reads ", json_object_get(stage, "reads"));
        printf("\n");
        print_items(json_object_get(stage, "memory"));
        json_array_foreach(json_object_get(stage, "minimize"), k, minimize)
        {
            print_names("    moves ", json_object_get(minimize, "moves"));
            printf(" with %s, %d micro-steps", text_of(minimize, "optimizer"),
                   (int)number_of(minimize, "accumulate"));
            if (number_of(minimize, "ema_every") > 0)
                printf(", average every %d updates", (int)number_of(minimize, "ema_every"));
            printf("\n");
            print_variants(minimize);
        }
    }
}

static void print_options(const json_t *options)
{
    size_t i;
    const json_t *option;
    json_array_foreach(options, i, option)
    {
        const char *block = json_string_value(json_object_get(option, "block"));
        char *value = json_dumps(json_object_get(option, "default"),
                                 JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        printf("  %s%s%s = %s\n", block ? block : "", block ? "." : "", text_of(option, "name"),
               value ? value : "");
        free(value);
    }
}

static void print_kernels(const json_t *json)
{
    char text[32];
    const json_t *cuda = json_object_get(json, "cuda");
    printf("%d kernels", (int)number_of(json, "kernels"));
    if (json_is_object(cuda))
        printf("; for GPUs %d programs, %s: %s", (int)number_of(cuda, "programs"),
               size_of(cuda, "bytes", text), text_of(cuda, "architectures"));
    printf(" (--json lists them)\n");
}

static void print_text(const json_t *json)
{
    char text[32];
    const json_t *memory = json_object_get(json, "memory"), *one;
    printf("model %s, %s on %s, compiled for %s; %d threads, %s %s\n", text_of(json, "model"),
           text_of(json, "real"), text_of(json, "target"), text_of(json, "march"),
           (int)number_of(json, "threads"), size_of(memory, "free", text),
           text_of(memory, "limit"));
    print_kernels(json);
    printf("\nparameters: %.2f M\n", 1e-6 * number_of(json, "parameters"));
    size_t i;
    json_array_foreach(json_object_get(json, "instances"), i, one)
        printf("  %-20s %10.2f M in %d tensors, %s\n", text_of(one, "name"),
               1e-6 * number_of(one, "parameters"), (int)number_of(one, "tensors"),
               size_of(one, "bytes", text));
    printf("\nprograms (run PROGRAM):\n");
    print_programs(json_object_get(json, "programs"));
    printf("\ngradients (grad PROGRAM):\n");
    print_programs(json_object_get(json, "gradients"));
    printf("\nstages (train STAGE):\n");
    print_stages(json_object_get(json, "stages"));
    print_names("\nsamplers: ", json_object_get(json, "samplers"));
    printf("\n\noptions (--set NAME=VALUE):\n");
    print_options(json_object_get(json, "options"));
    printf("\nconstants of the model:\n");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json_object_get(json, "constants"), key, value)
        printf("  %s = %s\n", key, json_string_value(value));
    const char *plugin = json_string_value(json_object_get(json, "video_plugin"));
    printf("\nvideo files: %s\n", plugin ? plugin : "no plug-in found; folders of pictures only");
}

static bool info(bool as_json, int64_t threads, PvError *error)
{
    PvSession session = {.threads = threads, .idle = true};
    bool good = pv_session_open(&session, &pv_model, NULL, 0, error);
    if (good) {
        json_t *json = gather(&session, error);
        good = error->text == NULL && json != NULL;
        if (good && as_json) {
            json_dumpf(json, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
            printf("\n");
        } else if (good) {
            print_text(json);
        }
        json_decref(json);
    }
    pv_session_close(&session);
    return good;
}

PvStatus cmd_info(int argc, char **argv, PvError *error)
{
    bool as_json = false;
    int64_t threads = 0;
    PvFlag flags[] = {
        {"--json", NULL, PV_FLAG_BOOL, &as_json, "as one JSON object"},
        {"--threads", "N", PV_FLAG_INT, &threads, "threads to count with"},
    };
    PvUsage usage = {.line = "info",
                     .about =
                         "Programs, parameters, operations, memory as a function of the batch, "
                         "stages, options.",
                     .flags = flags,
                     .flag_count = sizeof flags / sizeof *flags};
    PvWords words = {0};
    bool good = pv_usage_parse(&usage, argc, argv, &words, error) && info(as_json, threads, error);
    pv_words_free(&words);
    return good ? PV_DONE : error->status;
}
