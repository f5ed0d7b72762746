// `run PROGRAM` and `grad PROGRAM`: one program on tensors from files, its outputs (and values
// inside, and gradients) into a file.
//
// Order of work: inputs are found and checked, which settles the batch and, with the options, the
// variant; only the instances that this variant reads need weights; the memory is compared; then
// weights are mounted and the plan runs.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/safetensors.h"
#include "runtime/session.h"
#include "runtime/timing.h"

typedef struct {
    PvSession session;
    PvWords inputs; // of --in
    const char *out;
    PvWords tap;          // comma-separated lists of paths
    int64_t seed, repeat; // repeat -1: once, and no word of the time
    bool ema;
    const PvEntry *entry;
    PvTensorSet files; // inputs by name, under the entry's names
    PvCall *call;
    uint32_t variant;
    uint32_t *taps; // indices into the plain plan's taps
    uint32_t tap_count;
    PvTensor **tap_tensors;
    char **buffers; // by parameter: value before the run of buffers that are read, else NULL
} Run;

static void run_close(Run *run)
{
    for (uint32_t i = 0; run->tap_tensors && i < run->tap_count; i++)
        pv_tensor_drop(run->tap_tensors[i]);
    free(run->tap_tensors);
    free(run->taps);
    for (uint32_t i = 0; run->buffers && i < pv_model.param_count; i++)
        free(run->buffers[i]);
    free(run->buffers);
    pv_call_free(run->call);
    pv_set_free(&run->files);
    pv_words_free(&run->inputs);
    pv_words_free(&run->tap);
    pv_session_close(&run->session);
}

// ---- inputs ----

// "NAME=FILE:TENSOR" (TENSOR: by default NAME) when `word` has a '=' after a plain name.
static bool is_assignment(const char *word)
{
    size_t length = strcspn(word, "=/.:");
    return length > 0 && word[length] == '=';
}

static bool bind(Run *run, const char *input, PvTensor *tensor, const char *path,
                 const char *tensor_name, PvError *error)
{
    int index = pv_call_find(run->entry, input);
    char *from = pv_printf("%s: '%s'", path, tensor_name);
    bool good = pv_call_set(run->call, (uint32_t)index, tensor, from, error);
    free(from);
    return good;
}

// --in NAME=FILE:TENSOR
static bool bind_one(Run *run, const char *word, PvError *error)
{
    const PvEntry *entry = run->entry;
    size_t length = strcspn(word, "=");
    char *input = pv_printf("%.*s", (int)length, word);
    char *path = pv_strdup(word + length + 1);
    char *colon = strrchr(path, ':');
    const char *name = colon ? colon + 1 : input;
    if (colon)
        *colon = 0;
    PvTensorSet set = {0};
    bool good = false;
    PvTensor *tensor = NULL;
    if (pv_call_find(entry, input) < 0) {
        PvWords names = {0};
        for (uint32_t i = 0; i < entry->input_count; i++)
            pv_words_add(&names, entry->inputs[i].name);
        pv_unknown("input", input, names.items, names.count, PV_WRONG, error);
        pv_words_free(&names);
    } else if (pv_tensors_read(path, &set, error)) {
        tensor = pv_set_find(&set, name);
        if (tensor)
            good = bind(run, input, tensor, path, name, error);
        else
            pv_error(error, PV_WRONG, "%s: there is no tensor '%s'", path, name);
    }
    pv_set_free(&set);
    free(input);
    free(path);
    return good;
}

// --in FILE: every input that has its name there, and none yet.
static bool bind_file(Run *run, const char *path, PvError *error)
{
    PvTensorSet set = {0};
    if (!pv_tensors_read(path, &set, error))
        return false;
    bool good = true;
    for (uint32_t i = 0; good && i < run->entry->input_count; i++) {
        const char *name = run->entry->inputs[i].name;
        PvTensor *tensor = pv_set_find(&set, name);
        if (tensor && !run->call->inputs[i])
            good = bind(run, name, tensor, path, name, error);
    }
    pv_set_free(&set);
    return good;
}

// Numbers by --set, then what is assigned by name, then what files have.
static bool bind_inputs(Run *run, PvError *error)
{
    const PvEntry *entry = run->entry;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const PvSetting *setting = entry->inputs[i].type.rank == 0
                                       ? pv_config_find(&run->session.config, entry->inputs[i].name)
                                       : NULL;
        double number;
        if (setting && (!pv_setting_real(setting, 0, &number, error) ||
                        !pv_call_set_number(run->call, i, number, error)))
            return false;
    }
    for (size_t i = 0; i < run->inputs.count; i++)
        if (is_assignment(run->inputs.items[i]) && !bind_one(run, run->inputs.items[i], error))
            return false;
    for (size_t i = 0; i < run->inputs.count; i++)
        if (!is_assignment(run->inputs.items[i]) && !bind_file(run, run->inputs.items[i], error))
            return false;
    return true;
}

// ---- taps ----

static bool add_tap(Run *run, const PvPlan *plan, const char *path, PvError *error)
{
    PvWords names = {0};
    bool found = false;
    for (uint32_t i = 0; i < plan->tap_count; i++) {
        const char *name = run->session.model->tap_names + plan->taps[i].name;
        pv_words_add(&names, name);
        if (strcmp(path, "all") != 0 && strcmp(path, name) != 0)
            continue;
        run->taps[run->tap_count++] = i;
        found = true;
        if (strcmp(path, "all") != 0)
            break;
    }
    if (!found)
        pv_unknown("value", path, names.items, names.count, PV_WRONG, error);
    pv_words_free(&names);
    return found;
}

// --tap PATH,PATH...: indices and tensors to copy to.
static bool find_taps(Run *run, PvError *error)
{
    if (run->tap.count == 0)
        return true;
    if (!run->entry->plain)
        return pv_error(error, PV_WRONG, "%s has no values to tap", run->entry->name);
    const PvPlan *plan = &run->entry->plain[run->variant];
    size_t most = plan->tap_count + 1u;
    for (size_t i = 0; i < run->tap.count; i++)
        most += strlen(run->tap.items[i]) + plan->tap_count;
    run->taps = pv_alloc(most * sizeof *run->taps);
    for (size_t i = 0; i < run->tap.count; i++) {
        char *list = pv_strdup(run->tap.items[i]), *rest = list;
        for (char *path; (path = strsep(&rest, ",")) != NULL;) {
            if (*path && !add_tap(run, plan, path, error)) {
                free(list);
                return false;
            }
        }
        free(list);
    }
    run->tap_tensors = pv_alloc((run->tap_count + 1u) * sizeof(void *));
    const PvType *types = run->session.model->tap_types;
    for (uint32_t i = 0; i < run->tap_count; i++) {
        run->tap_tensors[i] =
            pv_tensor_of(&types[plan->taps[run->taps[i]].type], run->call->step.batch, error);
        if (!run->tap_tensors[i])
            return false;
    }
    return true;
}

// ---- the run, and what is written ----

static bool check_memory(Run *run, const PvPlan *plan, const bool *needed, PvError *error)
{
    const PvModel *model = run->session.model;
    PvMemoryItem items[3] = {{"parameters", pv_exec_param_bytes(model, needed), 0}};
    items[1] = pv_exec_need(run->session.exec, run->entry, plan);
    items[2].what = "gradients";
    for (uint32_t i = 0; i < plan->grad_count; i++)
        items[2].fixed += model->params[plan->grads[i]].count * (int64_t)sizeof(PvReal);
    char *command =
        pv_printf("%s %s", run->entry->kind == PV_GRAD_OF ? "grad" : "run", run->entry->name);
    bool good = pv_session_memory(&run->session, command, items, 3, run->call->step.batch, error);
    free(command);
    return good;
}

static size_t buffer_size(const PvParam *param)
{
    return (size_t)(param->count * pv_dtype_size(param->type.dtype));
}

// The buffers (batch-norm statistics) of the instances that the call reads, before it.
static void save_buffers(Run *run, const bool *needed)
{
    const char *params = run->session.exec->params; // as they were mounted
    run->buffers = pv_alloc((pv_model.param_count + 1u) * sizeof *run->buffers);
    for (uint32_t i = 0; i < pv_model.param_count; i++) {
        const PvParam *param = &pv_model.params[i];
        if (!param->buffer || !needed[param->instance])
            continue;
        size_t size = buffer_size(param);
        run->buffers[i] = pv_alloc(size);
        memcpy(run->buffers[i], params + param->offset, size);
    }
}

// Each run starts from the statistics that were mounted.
static bool restore_buffers(Run *run, PvError *error)
{
    char *params = NULL;
    for (uint32_t i = 0; i < pv_model.param_count; i++) {
        const PvParam *param = &pv_model.params[i];
        if (!run->buffers[i])
            continue;
        if (!params && !(params = pv_exec_params(run->session.exec, error)))
            return false;
        memcpy(params + param->offset, run->buffers[i], buffer_size(param));
    }
    if (params)
        pv_exec_params_written(run->session.exec);
    return true;
}

// Buffers that the program moved are results too, under their own names.
static void add_moved_buffers(Run *run, const char *params, PvWriter *writer)
{
    for (uint32_t i = 0; i < pv_model.param_count; i++) {
        const PvParam *param = &pv_model.params[i];
        const char *now = params + param->offset;
        size_t size = buffer_size(param);
        if (run->buffers[i] && memcmp(run->buffers[i], now, size) != 0)
            pv_writer_add(writer, param->name, param->type.dtype, param->type.rank, param->type.dim,
                          now, param->type.dtype);
    }
}

static bool write_results(Run *run, const PvPlan *plan, PvError *error)
{
    const PvEntry *entry = run->entry;
    const PvModel *model = run->session.model;
    const char *params = pv_exec_params(run->session.exec, error);
    const char *grads = pv_exec_grads(run->session.exec, error);
    if (!params || !grads)
        return false;
    PvWriter *writer = pv_writer_new();
    PvTensorSet written = {0}; // names, so that a path taken twice is one
    for (uint32_t i = 0; i < run->tap_count; i++)
        pv_set_add(&written, model->tap_names + plan->taps[run->taps[i]].name,
                   pv_tensor_hold(run->tap_tensors[i]));
    for (uint32_t i = 0; i < entry->output_count; i++)
        if (entry->outputs[i].kind == PV_OUT_NAMED || entry->outputs[i].kind == PV_OUT_GRAD_INPUT)
            pv_set_add(&written, entry->outputs[i].name, pv_tensor_hold(run->call->outputs[i]));
    for (size_t i = 0; i < written.count; i++)
        pv_writer_add_tensor(writer, written.items[i].name, written.items[i].tensor);
    for (uint32_t i = 0; entry->kind == PV_GRAD_OF && i < plan->grad_count; i++) {
        const PvParam *param = &model->params[plan->grads[i]];
        char *name = pv_printf("grad.%s", param->name);
        pv_writer_add(writer, name, param->type.dtype, param->type.rank, param->type.dim,
                      grads + param->offset, param->type.dtype);
        free(name);
    }
    add_moved_buffers(run, params, writer);
    pv_writer_metadata(writer, "program", entry->name);
    bool good = pv_writer_finish(writer, run->out, error);
    pv_set_free(&written);
    return good;
}

static bool settle_inputs(Run *run, PvError *error)
{
    if (!bind_inputs(run, error))
        return false;
    PvWords known = {0};
    for (uint32_t i = 0; i < run->entry->input_count; i++)
        if (run->entry->inputs[i].type.rank == 0)
            pv_words_add(&known, run->entry->inputs[i].name);
    bool good = pv_session_check_settings(&run->session, NULL, &known, error);
    pv_words_free(&known);
    if (!good || !pv_call_settle(run->call, 1, error))
        return false;
    run->variant = pv_exec_variant(run->entry, &run->call->step);
    return true;
}

// Runs the call, --repeat times over with the same draws, and prints the median of the times.
static bool execute(Run *run, const PvCallPlan *how, PvError *error)
{
    PvSession *session = &run->session;
    int64_t count = run->repeat < 1 ? 1 : run->repeat;
    size_t size = session->random->stream_count * sizeof *session->random->draws;
    uint64_t *draws = pv_alloc(size + 1);
    memcpy(draws, session->random->draws, size);
    double *seconds = pv_try_alloc((size_t)count * sizeof *seconds, "--repeat", error);
    bool good = seconds != NULL;
    for (int64_t i = 0; good && i < count; i++) {
        memcpy(session->random->draws, draws, size);
        if (!restore_buffers(run, error)) {
            good = false;
            break;
        }
        double start = pv_seconds();
        good = pv_call_run(session->exec, run->call, how, error) &&
               pv_exec_wait(session->exec, error);
        seconds[i] = pv_seconds() - start;
    }
    good = good && pv_call_fetch(run->call, error);
    if (good && run->repeat > 0)
        pv_print_median(seconds, count);
    free(seconds);
    free(draws);
    return good;
}

static bool all_finite(const void *data, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(((const PvReal *)data)[i]))
            return false;
    return true;
}

// Multiplies all gradients, of parameters and of inputs, which lie on the host. Were they finite?
static bool scale_gradients(Run *run, const PvPlan *plan, char *grads, PvReal factor)
{
    bool finite = true;
    for (uint32_t i = 0; i < plan->grad_count; i++) {
        const PvParam *param = &run->session.model->params[plan->grads[i]];
        PvReal *at = (PvReal *)(void *)(grads + param->offset);
        finite &= all_finite(at, param->count);
        for (int64_t k = 0; k < param->count; k++)
            at[k] *= factor;
    }
    for (uint32_t i = 0; i < run->entry->output_count; i++) {
        PvTensor *tensor = run->call->outputs[i];
        if (run->entry->outputs[i].kind != PV_OUT_GRAD_INPUT)
            continue;
        finite &= all_finite(tensor->data, tensor->count);
        for (int64_t k = 0; k < tensor->count; k++)
            ((PvReal *)tensor->data)[k] *= factor;
    }
    return finite;
}

// As execute. Where values are stored as f16, gradients are of the loss times a scale: the first
// one of these with which they are all finite, as far as 1. They are divided by it in the end.
static bool execute_scaled(Run *run, const PvPlan *plan, const PvCallPlan *how, PvError *error)
{
    PvExec *exec = run->session.exec;
    bool scaled = run->entry->kind == PV_GRAD_OF && run->session.model->shadow == PV_F16;
    if (!scaled)
        return execute(run, how, error);
    for (exec->loss_scale = 65536;; exec->loss_scale /= 16) {
        char *grads = NULL;
        if (!execute(run, how, error) || !(grads = pv_exec_grads(exec, error)))
            return false;
        bool finite = scale_gradients(run, plan, grads, 1 / exec->loss_scale);
        if (finite || exec->loss_scale <= 1)
            return true;
    }
}

static bool run_program(Run *run, const char *name, PvEntryKind kind, PvError *error)
{
    PvSession *session = &run->session;
    if (run->repeat == 0 || run->repeat < -1)
        return pv_error(error, PV_USAGE, "--repeat must be at least 1");
    if (!pv_session_open(session, &pv_model, NULL, (uint64_t)run->seed, error))
        return false;
    int index = pv_find_program(&pv_model, name, kind, error);
    if (index < 0)
        return false;
    run->entry = &pv_model.entries[index];
    run->call = pv_call_new(run->entry, session->options, session->random);
    if (!settle_inputs(run, error) || !find_taps(run, error))
        return false;
    bool plain = run->tap_count > 0;
    const PvPlan *plan = plain ? &run->entry->plain[run->variant]
                               : pv_exec_plan(session->exec, run->entry, run->variant);
    bool *needed = pv_alloc((pv_model.instance_count + 1u) * sizeof *needed);
    pv_plan_instances(plan, needed);
    PvCallPlan how = {run->variant, plain, run->taps, run->tap_count, run->tap_tensors};
    bool good = check_memory(run, plan, needed, error) &&
                pv_session_mount(session, name, needed, NULL, run->ema, error);
    if (good)
        save_buffers(run, needed);
    good = good && execute_scaled(run, plan, &how, error) &&
           (!run->out || write_results(run, plan, error));
    free(needed);
    return good;
}

// Numbers among the outputs are worth a line.
static void print_numbers(const Run *run)
{
    for (uint32_t i = 0; i < run->entry->output_count; i++)
        if (run->entry->outputs[i].type.rank == 0 && run->entry->outputs[i].kind == PV_OUT_NAMED)
            printf("%s = %.9g\n", run->entry->outputs[i].name,
                   pv_tensor_number(run->call->outputs[i], 0));
}

static PvStatus run_command(int argc, char **argv, PvEntryKind kind, PvError *error)
{
    Run run = {.repeat = -1};
    PvFlag flags[] = {
        {"--weights", "[INSTANCE=]FILE[#PREFIX]", PV_FLAG_WORDS, &run.session.weights,
         "parameters; INSTANCE is an instance of the model, PREFIX is cut off names"},
        {"--in", "FILE | NAME=FILE[:TENSOR]", PV_FLAG_WORDS, &run.inputs,
         "inputs: by their names from a file, or one input from one tensor"},
        {"--out", "FILE", PV_FLAG_TEXT, &run.out, "outputs go to this safetensors file"},
        {"-o", "FILE", PV_FLAG_TEXT, &run.out, "the same"},
        {"--tap", "PATH,...", PV_FLAG_WORDS, &run.tap,
         "values inside, by field path, into the same file; 'all': every one"},
        {"--seed", "N", PV_FLAG_INT, &run.seed, "of random streams (default 0)"},
        {"--repeat", "N", PV_FLAG_INT, &run.repeat,
         "run N times and print the median time (without the first, if N > 1)"},
        {"--ema", NULL, PV_FLAG_BOOL, &run.ema, "take moving averages where a file has them"},
        PV_SESSION_FLAGS(&run.session),
    };
    bool grad = kind == PV_GRAD_OF;
    PvUsage usage = {
        .line = grad ? "grad PROGRAM" : "run PROGRAM",
        .about =
            grad ? "Runs a program with one number as its result, and its gradient: the outputs\n"
                   "and grad.<instance>.<parameter>, grad.<input> go to --out."
                 : "Runs one program on tensors from files. Inputs of one number may also be\n"
                   "given by --set NAME=VALUE. `info` lists programs and their inputs.",
        .flags = flags,
        .flag_count = sizeof flags / sizeof *flags,
        .least = 1,
        .most = 1,
    };
    PvWords words = {0};
    bool good = pv_usage_parse(&usage, argc, argv, &words, error) &&
                run_program(&run, words.items[0], kind, error);
    if (good)
        print_numbers(&run);
    run_close(&run);
    pv_words_free(&words);
    return good ? PV_DONE : error->status;
}

PvStatus cmd_run(int argc, char **argv, PvError *error)
{
    return run_command(argc, argv, PV_PROGRAM, error);
}

PvStatus cmd_grad(int argc, char **argv, PvError *error)
{
    return run_command(argc, argv, PV_GRAD_OF, error);
}
