// `run PROGRAM` and `grad PROGRAM`: one program (program.h) on tensors from files, its outputs (and
// values inside, and gradients) into a file.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"
#include "runtime/safetensors.h"
#include "runtime/timing.h"

typedef struct {
    PvSession session;
    PvWords inputs; // of --in
    const char *out;
    PvWords tap;          // comma-separated lists of paths
    int64_t seed, repeat; // repeat -1: once, and no word of the time
    bool ema;
    PvProgram program;
    uint32_t *taps; // indices into the plain plan's taps
    uint32_t tap_count;
    PvTensor **tap_tensors;
} Run;

static void run_close(Run *run)
{
    for (uint32_t i = 0; run->tap_tensors && i < run->tap_count; i++)
        pv_tensor_drop(run->tap_tensors[i]);
    free(run->tap_tensors);
    free(run->taps);
    pv_program_close(&run->program);
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
    int index = pv_call_find(run->program.entry, input);
    char *from = pv_printf("%s: '%s'", path, tensor_name);
    bool good = pv_call_set(run->program.call, (uint32_t)index, tensor, from, error);
    free(from);
    return good;
}

// --in NAME=FILE:TENSOR
static bool bind_one(Run *run, const char *word, PvError *error)
{
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
    if (pv_call_find_input(run->program.entry, input, error) >= 0 &&
        pv_tensors_read(path, &set, error)) {
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
    for (uint32_t i = 0; good && i < run->program.entry->input_count; i++) {
        const char *name = run->program.entry->inputs[i].name;
        PvTensor *tensor = pv_set_find(&set, name);
        if (tensor && !run->program.call->inputs[i])
            good = bind(run, name, tensor, path, name, error);
    }
    pv_set_free(&set);
    return good;
}

// Numbers by --set, then what is assigned by name, then what files have.
static bool bind_inputs(Run *run, PvError *error)
{
    const PvEntry *entry = run->program.entry;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const PvSetting *setting = entry->inputs[i].type.rank == 0
                                       ? pv_config_find(&run->session.config, entry->inputs[i].name)
                                       : NULL;
        double number;
        if (setting && (!pv_setting_real(setting, 0, &number, error) ||
                        !pv_call_set_number(run->program.call, i, number, error)))
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
    if (!run->program.entry->plain)
        return pv_error(error, PV_WRONG, "%s has no values to tap", run->program.entry->name);
    const PvPlan *plan = &run->program.entry->plain[run->program.variant];
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
    int64_t batch = run->program.call->step.batch;
    for (uint32_t i = 0; i < run->tap_count; i++) {
        run->tap_tensors[i] = pv_tensor_of(&types[plan->taps[run->taps[i]].type], batch, error);
        if (!run->tap_tensors[i])
            return false;
    }
    return true;
}

// ---- the run, and what is written ----

// Buffers that the program moved are results too, under their own names.
static void add_moved_buffers(Run *run, const char *params, PvWriter *writer)
{
    for (uint32_t i = 0; i < pv_model.param_count; i++) {
        const PvParam *param = &pv_model.params[i];
        const char *now = params + param->offset;
        size_t size = pv_param_size(param);
        if (run->program.buffers[i] && memcmp(run->program.buffers[i], now, size) != 0)
            pv_writer_add(writer, param->name, param->type.dtype, param->type.rank, param->type.dim,
                          now, param->type.dtype);
    }
}

static bool write_results(Run *run, const PvPlan *plan, PvError *error)
{
    const PvEntry *entry = run->program.entry;
    PvTensor *const *outputs = run->program.call->outputs;
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
            pv_set_add(&written, entry->outputs[i].name, pv_tensor_hold(outputs[i]));
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
    for (uint32_t i = 0; i < run->program.entry->input_count; i++)
        if (run->program.entry->inputs[i].type.rank == 0)
            pv_words_add(&known, run->program.entry->inputs[i].name);
    bool good = pv_session_check_settings(&run->session, NULL, &known, error);
    pv_words_free(&known);
    return good && pv_program_settle(&run->program, error);
}

// Runs it, --repeat times over, and prints the median of the times.
static bool execute(Run *run, const PvCallPlan *how, PvError *error)
{
    int64_t count = run->repeat < 1 ? 1 : run->repeat;
    double *seconds = pv_try_alloc((size_t)count * sizeof *seconds, "--repeat", error);
    bool good = seconds && pv_program_run(&run->program, how, count, seconds, error);
    if (good && run->repeat > 0)
        pv_print_median(seconds, count);
    free(seconds);
    return good;
}

static bool run_program(Run *run, const char *name, PvEntryKind kind, PvError *error)
{
    PvSession *session = &run->session;
    PvProgram *program = &run->program;
    if (run->repeat == 0 || run->repeat < -1)
        return pv_error(error, PV_USAGE, "--repeat must be at least 1");
    if (!pv_session_open(session, &pv_model, NULL, (uint64_t)run->seed, error) ||
        !pv_program_open(program, session, name, kind, error) || !settle_inputs(run, error) ||
        !find_taps(run, error))
        return false;
    bool plain = run->tap_count > 0;
    const PvPlan *plan = plain ? &program->entry->plain[program->variant]
                               : pv_exec_plan(session->exec, program->entry, program->variant);
    PvCallPlan how = {program->variant, plain, run->taps, run->tap_count, run->tap_tensors};
    return pv_program_prepare(program, plan, run->ema, error) && execute(run, &how, error) &&
           (!run->out || write_results(run, plan, error));
}

// Numbers among the outputs are worth a line.
static void print_numbers(const Run *run)
{
    const PvEntry *entry = run->program.entry;
    for (uint32_t i = 0; i < entry->output_count; i++)
        if (entry->outputs[i].type.rank == 0 && entry->outputs[i].kind == PV_OUT_NAMED)
            printf("%s = %.9g\n", entry->outputs[i].name,
                   pv_tensor_number(run->program.call->outputs[i], 0));
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
