// `bench [PROGRAM...]`: the ladder of an executable that holds it, measured on this machine. Works
// on every device the executor runs on: the probes are programs, the times are the executor's.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/bench.h"
#include "runtime/command.h"
#include "runtime/file.h"

typedef struct {
    PvSession session;
    PvBenchOptions options;
    int64_t batch;
    const char *json, *html;
    PvWords inputs; // --in
    PvTensorSet given;
    bool quiet;
} Bench;

static bool has_ladder(const PvModel *model, PvError *error)
{
    for (uint32_t i = 0; i < model->entry_count; i++)
        if (model->entries[i].rung_count > 0)
            return true;
    pv_error(error, PV_WRONG, "this executable was compiled at one level only");
    return pv_error_hint(error, "pvdmc --unfused-too compiles the whole ladder; `pvdmc bench "
                                "FILE.model` does so and runs it");
}

// All tensors of the files of --in, by name.
static bool read_inputs(Bench *bench, PvError *error)
{
    for (size_t i = 0; i < bench->inputs.count; i++) {
        PvTensorSet set = {0};
        if (!pv_tensors_read(bench->inputs.items[i], &set, error))
            return false;
        for (size_t k = 0; k < set.count; k++)
            pv_set_add(&bench->given, set.items[k].name, pv_tensor_hold(set.items[k].tensor));
        pv_set_free(&set);
    }
    return true;
}

static bool mount(Bench *bench, PvError *error)
{
    uint32_t count = pv_model.instance_count;
    bool *all = pv_alloc(count + 1u);
    memset(all, true, count);
    bool good = pv_session_mount(&bench->session, "bench", all, all, false, error);
    free(all);
    return good;
}

static void say(const Bench *bench, const char *format, const char *name)
{
    if (!bench->quiet) {
        fprintf(stderr, format, name);
        fputc('\n', stderr);
    }
}

static bool measure_programs(Bench *bench, const PvWords *names, const PvRates *rates,
                             json_t *programs, PvError *error)
{
    for (size_t i = 0; i < names->count; i++) {
        say(bench, "measuring %s", names->items[i]);
        PvBenchCase *at =
            pv_bench_case_new(&bench->session, names->items[i], bench->batch, &bench->given, error);
        json_t *json = at ? pv_bench_measure(at, rates, &bench->options, error) : NULL;
        pv_bench_case_free(at);
        if (!json)
            return false;
        json_array_append_new(programs, json);
    }
    return true;
}

static json_t *report_json(const Bench *bench, const PvRates *rates)
{
    const PvModel *model = bench->session.model;
    json_t *constants = json_array();
    for (uint32_t i = 0; i < model->constant_count; i++)
        json_array_append_new(constants, json_string(model->constants[i]));
    int dtype = model->shadow ? model->shadow : PV_REAL_DTYPE;
    return json_pack("{s:i, s:s, s:o, s:s, s:s, s:s, s:i, s:I, s:{s:f, s:f, s:f}, s:[]}", "schema",
                     1, "model", model->name, "constants", constants, "device",
                     pv_bench_device(&bench->session), "march", model->march, "dtype",
                     pv_dtype_name(dtype), "threads", bench->session.exec->threads,
                     "rounds", (json_int_t)bench->options.rounds, "machine",
                     "copy_bytes_per_second", rates->copy, "cached_copy_bytes_per_second",
                     rates->cached, "product_flops_per_second", rates->product, "programs");
}

static bool write_json(const char *path, const json_t *report, PvError *error)
{
    char *text = json_dumps(report, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    if (!text)
        return pv_error(error, PV_MACHINE, "not enough memory for the report");
    bool good = pv_file_replace(path, text, strlen(text), error);
    free(text);
    return good;
}

static bool run_bench(Bench *bench, PvWords *names, PvError *error)
{
    if (bench->options.rounds < 1 || bench->batch < 1)
        return pv_error(error, PV_USAGE, "--rounds and --batch must be at least 1");
    if (!has_ladder(&pv_model, error) ||
        !pv_session_open(&bench->session, &pv_model, NULL, 0, error) ||
        !pv_session_check_settings(&bench->session, NULL, NULL, error) ||
        !read_inputs(bench, error) || !mount(bench, error))
        return false;
    for (size_t i = 0; i < names->count; i++)
        if (!pv_bench_known(&pv_model, names->items[i], error))
            return false;
    if (names->count == 0)
        pv_bench_list(&pv_model, names);
    PvRates rates;
    say(bench, "measuring %s", "the machine");
    if (!pv_bench_machine(&bench->session, &rates, error))
        return false;
    json_t *report = report_json(bench, &rates);
    bool good = measure_programs(bench, names, &rates, json_object_get(report, "programs"), error);
    if (good)
        pv_bench_print(stdout, report);
    good = good && (!bench->json || write_json(bench->json, report, error)) &&
           (!bench->html || pv_bench_page(bench->html, report, error));
    json_decref(report);
    return good;
}

PvStatus cmd_bench(int argc, char **argv, PvError *error)
{
    Bench bench = {.batch = 1, .options = {.rounds = 5}};
    PvFlag flags[] = {
        {"--batch", "N", PV_FLAG_INT, &bench.batch, "batch of the inputs that are drawn (1)"},
        {"--rounds", "N", PV_FLAG_INT, &bench.options.rounds, "rounds; medians are told (5)"},
        {"--ends", NULL, PV_FLAG_BOOL, &bench.options.ends, "only the first rung and the last"},
        {"--last", NULL, PV_FLAG_BOOL, &bench.options.last, "only the last rung"},
        {"--json", "FILE", PV_FLAG_TEXT, &bench.json, "the report as JSON (bench/README.md)"},
        {"--html", "FILE", PV_FLAG_TEXT, &bench.html, "the report as one page"},
        {"--weights", "[INSTANCE=]FILE[#PREFIX]", PV_FLAG_WORDS, &bench.session.weights,
         "parameters; those of no file are drawn"},
        {"--in", "FILE", PV_FLAG_WORDS, &bench.inputs, "inputs by name; others are drawn"},
        {"--reference", "EXECUTABLE", PV_FLAG_TEXT, &bench.options.reference,
         "the same model compiled with --dtype f64 -O0: errors are against it"},
        {"--quiet", NULL, PV_FLAG_BOOL, &bench.quiet, "no word of what is being measured"},
        PV_SESSION_FLAGS(&bench.session),
    };
    PvUsage usage = {
        .line = "bench [PROGRAM...]",
        .about = "Measures every rung of the ladder from unfused to all optimizations: programs,\n"
                 "gradients (grad.PROGRAM), training steps (train.STAGE); all of them by default.\n"
                 "The executable has to be compiled with --unfused-too.",
        .flags = flags,
        .flag_count = sizeof flags / sizeof *flags,
        .most = 64,
    };
    PvWords names = {0};
    bool good =
        pv_usage_parse(&usage, argc, argv, &names, error) && run_bench(&bench, &names, error);
    pv_words_free(&names);
    pv_words_free(&bench.inputs);
    pv_set_free(&bench.given);
    pv_session_close(&bench.session);
    return good ? PV_DONE : error->status;
}
