// pvdmc: from a model file to an executable.
//
// The passes are the lines of one table, run from top to bottom. The first work on the module (one
// graph for all programs), the others on plans: one for every variant of every entry, and for
// programs and their gradients a second one, unfused, in which every value can be looked at.
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "codegen/codegen.h"
#include "compiler/bench.h"
#include "compiler/explain.h"
#include "compiler/html.h"

typedef enum {
    EMIT_EXECUTABLE,
    EMIT_AST,
    EMIT_GRAPH,
    EMIT_FUSED,
    EMIT_PLAN,
    EMIT_C,
    EMIT_CUDA,
    EMIT_FIGURES,
    EMIT_DOT,
    EMIT_HTML
} Emit;

typedef struct {
    const char *path, *output, *dump, *stop_after, *march, *kernels;
    const char **defines, **folders;
    uint32_t define_count, folder_count;
    int level;
    bool choose_rungs;         // `rungs` instead of those of the level
    uint32_t rungs;
    DType real;
    DType storage;             // bf16 or f16 in mixed precision; else DT_NONE
    Emit emit;
    Targets targets;
    bool time, stats, certificate, check, verbose, no_cache;
    int64_t memory, memory_batch;      // --memory SIZE@BATCH; 0: no budget
    const char *explain;       // FILE:LINE
    ExplainFigures figures;
    bool unfused_too;          // the whole ladder of rungs in one executable, and probes
} Options;

typedef struct {
    Options options;
    Arena *arena;
    Sources *sources;
    Ast *tree;
    Module *module;
    Codegen *cg;
    Explain *explain;
    Html *html;                // --emit html
    int status;                // exit status of a pass that failed
} Build;

// ---- passes ----

// Reads the model file alone, for --emit ast; elaboration reads it with all that it imports.
static bool pass_parse(Build *build)
{
    if (build->options.emit != EMIT_AST)
        return true;
    uint32_t file = sources_add_file(build->sources, build->options.path);
    build->tree = parse_model(build->sources, file);
    return diag_errors() == 0;
}

static bool pass_elaborate(Build *build)
{
    const Options *options = &build->options;
    ElabOptions elab = {options->path, options->defines, options->define_count,
                        options->folders, options->folder_count, options->real,
                        options->check};
    build->module = elaborate(build->arena, build->sources, &elab);
    if (build->module && options->explain)
        build->explain = explain_begin(options->explain, build->module, build->sources);
    if (build->module) {
        build->module->storage = options->storage;
        build->module->lacks = targets_lack(&options->targets, options->storage);
    }
    return build->module && diag_errors() == 0;
}

static bool pass_grad(Build *build)
{
    grad_module(build->module);
    return true;
}

static bool pass_simplify(Build *build)
{
    simplify_module(build->module);
    return true;
}

static void add_plan(Build *build, uint32_t entry, uint32_t variant, int level, bool taps)
{
    Codegen *cg = build->cg;
    Work *work = arena_alloc(build->arena, sizeof *work);
    work->module = build->module;
    work->entry_index = entry;
    work->entry = &build->module->entries[entry];
    work->variant = &work->entry->variants[variant];
    work->variant_index = variant;
    work->level = level;
    work->rungs = !taps && build->options.choose_rungs ? build->options.rungs : level_rungs(level);
    work->taps = taps;
    work->arena = arena_new();
    cg->plans = grow_array(cg->plans, &cg->plan_capacity, cg->plan_count, sizeof *cg->plans);
    cg->plans[cg->plan_count++] = work;
}

// Plans of tables, behind all others.
static void add_tables(Build *build)
{
    Codegen *cg = build->cg;
    const bool *called = entries_in_loops(build->arena, build->module);
    uint32_t count = cg->plan_count;
    for (uint32_t i = 0; i < count; i++) {
        Work *work = cg->plans[i];
        if (!called[work->entry_index] || work->taps || !(work->rungs & RUNG_TABLES))
            continue;
        Work *table = split_table(work, work->entry->input_count +
                                            cg->outputs[work->entry_index].count);
        cg->plans = grow_array(cg->plans, &cg->plan_capacity, cg->plan_count, sizeof *cg->plans);
        if (table)
            cg->plans[cg->plan_count++] = table;
    }
}

// Lists the plans, and finds what is a view in each.
static bool pass_layout(Build *build)
{
    Module *module = build->module;
    if (build->options.unfused_too)
        add_probes(module);
    Codegen *cg = build->cg = codegen_new(module, build->sources, build->options.march);
    cg->targets = build->options.targets;
    cg->kernels_with = build->options.kernels;
    if (wants_cuda(cg))
        add_runtime_kernels(cg);
    cg->unfused_too = build->options.unfused_too;
    cg->ladder_first = arena_alloc(build->arena, (module->entry_count + 1) * sizeof(uint32_t));
    cg->fused_first = arena_alloc(build->arena, (module->entry_count + 1) * sizeof(uint32_t));
    cg->plain_first = arena_alloc(build->arena, (module->entry_count + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < module->entry_count; i++) {
        const Entry *entry = &module->entries[i];
        bool plain = entry->kind == ENTRY_PROGRAM || entry->kind == ENTRY_GRAD;
        cg->fused_first[i] = cg->plan_count;
        for (uint32_t v = 0; v < entry->variant_count; v++)
            add_plan(build, i, v, build->options.level, false);
        cg->plain_first[i] = plain ? cg->plan_count : UINT32_MAX;
        for (uint32_t v = 0; plain && v < entry->variant_count; v++)
            add_plan(build, i, v, 0, true);
        bool climbs = cg->unfused_too && entry->kind != ENTRY_PROBE;
        cg->ladder_first[i] = climbs ? cg->plan_count : UINT32_MAX;
        for (uint32_t step = 0; climbs && step + 1 < LADDER_STEPS; step++)
            for (uint32_t v = 0; v < entry->variant_count; v++) {
                add_plan(build, i, v, 2, false);
                cg->plans[cg->plan_count - 1]->rungs = ladder[step].rungs;
            }
    }
    add_tables(build);
    order_params(module);
    for (uint32_t i = 0; i < cg->plan_count; i++)
        find_layout(cg->plans[i]);
    if (build->options.memory > 0)
        set_budgets(cg->plans, cg->plan_count, build->options.memory, build->options.memory_batch);
    return true;
}

typedef struct {
    Work **plans;
    void (*pass)(Work *work);
} PlanPass;

static void run_plan_pass(void *context, uint32_t index)
{
    const PlanPass *plan_pass = context;
    plan_pass->pass(plan_pass->plans[index]);
}

// For passes that write nothing but their plan.
static bool each_plan(const Build *build, void (*pass)(Work *work))
{
    PlanPass plan_pass = {build->cg->plans, pass};
    in_parallel(build->cg->plan_count, run_plan_pass, &plan_pass);
    return true;
}

static bool pass_fuse(Build *build)
{
    return each_plan(build, fuse_groups);
}

static bool pass_schedule(Build *build)
{
    return each_plan(build, schedule_groups);
}

static bool pass_batch(Build *build)
{
    return each_plan(build, batch_groups);
}

static bool pass_lower(Build *build)
{
    for (uint32_t i = 0; i < build->cg->plan_count; i++)
        lower_groups(build->cg, build->cg->plans[i]);
    if (wants_cuda(build->cg))
        choose_cuda_kernels(build->cg);
    return true;
}

static bool pass_plan(Build *build)
{
    each_plan(build, plan_memory);
    return build->options.memory == 0 ||
           check_budgets(build->cg->plans, build->cg->plan_count);
}

static LinkOptions link_options(const Options *options)
{
    return (LinkOptions){options->output, options->march, options->real == DT_F64,
                         options->verbose, !options->no_cache};
}

static bool pass_link(Build *build)
{
    LinkOptions options = link_options(&build->options);
    build->status = link_executable(build->cg, &options);
    return build->status == 0;
}

typedef struct {
    const char *name;
    bool (*run)(Build *build);
    Emit emit;                 // what can be printed after it
} Pass;

static const Pass passes[] = {
    // text to tree
    {"parse", pass_parse, EMIT_AST},
    // tree to graphs of forward passes; breaks nothing, needs nothing
    {"elaborate", pass_elaborate, EMIT_GRAPH},
    // adds gradients as ordinary nodes; before simplify, which may fold what gradients share
    {"grad", pass_grad, EMIT_GRAPH},
    {"simplify", pass_simplify, EMIT_GRAPH},
    // from here on by plan: what is a view has to be known before groups are made
    {"layout", pass_layout, EMIT_FUSED},
    {"fuse", pass_fuse, EMIT_FUSED},
    // after fusion: whole groups are ordered; merges neighbours, which only an order shows
    {"schedule", pass_schedule, EMIT_FUSED},
    // siblings of one kernel side by side; last, since it needs places in the schedule
    {"batch", pass_batch, EMIT_FUSED},
    // launches in the order of the schedule; makes copies, so lifetimes are known only after it
    {"lower", pass_lower, EMIT_PLAN},
    {"plan", pass_plan, EMIT_PLAN},
    {"link", pass_link, EMIT_C},
};
enum { PASS_COUNT = sizeof passes / sizeof *passes };

// ---- what is printed ----

static const Codegen *names_of;        // for print_plan

static const char *name_kernel(uint32_t kernel)
{
    return kernel_name(names_of, kernel);
}

static void print_result(const Build *build, FILE *out, Emit emit, bool lowered)
{
    switch (emit) {
    case EMIT_AST:
        if (build->tree)
            ast_print(out, build->tree);
        break;
    case EMIT_GRAPH:
        print_module(out, build->module);
        break;
    case EMIT_HTML:
        html_write(build->html, out, build->module);
        break;
    case EMIT_DOT:
        print_dot(out, build->module, NULL);
        break;
    case EMIT_FUSED:
        for (uint32_t i = 0; i < build->cg->plan_count; i++)
            print_groups(out, build->cg->plans[i]);
        break;
    case EMIT_PLAN:
        names_of = build->cg;
        for (uint32_t i = 0; lowered && i < build->cg->plan_count; i++)
            print_plan(out, build->cg->plans[i], name_kernel);
        break;
    case EMIT_C:
        emit_text(build->cg, out);
        break;
    case EMIT_CUDA:
        print_cuda(build->cg, out);
        break;
    case EMIT_FIGURES: case EMIT_EXECUTABLE:
        break;
    }
}

// Per cent; of nothing: all.
static double share(int64_t part, int64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 100.0;
}

// "packed": the largest live set as a share of the arena, for each of the two packings.
static void print_stats(const Build *build)
{
    const Module *module = build->module;
    printf("%u nodes, %u parameters, %u entries\n", graph_count(module->graph), module->param_count,
           module->entry_count);
    if (!build->cg)
        return;
    uint32_t launches = 0, args = 0, emitted = 0;
    for (uint32_t i = 0; i < build->cg->plan_count; i++) {
        const Work *work = build->cg->plans[i];
        launches += work->launch_count;
        args += work->arg_count;
        printf("%-28s -O%d %6u nodes %6u launches  arena %12lld + %12lld b  packed %5.1f%% + "
               "%5.1f%%\n", work->entry->name, work->level, work->count, work->launch_count,
               (long long)work->arena_fixed, (long long)work->arena_batch,
               share(work->live_fixed, work->arena_fixed),
               share(work->live_batch, work->arena_batch));
        print_plan_stats(stdout, build->cg, work);
    }
    for (uint32_t i = 0; i < build->cg->kernel_count; i++)
        emitted += build->cg->kernels[i].text != NULL;
    printf("%u plans, %u launches, %u arguments, %u emitted kernels, %u of the library, %zu bytes "
           "of data\n", build->cg->plan_count, launches, args, emitted,
           build->cg->kernel_count - emitted, build->cg->data_size);
    if (wants_cuda(build->cg))
        print_cuda_stats(build->cg);
}

// ---- command line ----

static const char usage[] =
    "usage: pvdmc FILE.model [options]\n"
    "       pvdmc bench FILE.model [options]\n"
    "\n"
    "Compiles a model file into one executable that trains and samples.\n"
    "\n"
    "  -o OUT              the executable (default: the model's name), or the file of --emit\n"
    "  -D NAME=VALUE       replaces a constant of the model\n"
    "  -I DIR              where imported files are looked for too\n"
    "  -O0 | -O1 | -O2     one kernel per operation | local fusion | everything (default)\n"
    "  --rungs NAMES       the optimizations named, and no others: elementwise norms epilogues\n"
    "                      attention placement batching tables memory winograd all none,\n"
    "                      with commas\n"
    "  --explain FILE:LINE what became of a line of the model: operations, launches, bytes; with\n"
    "                      --batch N and --machine GB/S,GFLOP/S for the times predicted\n"
    "  --unfused-too       every level in one executable: run --level 0, and `bench`\n"
    "  --target cpu|cuda|simt\n"
    "                      what the executable runs on, or several: cpu,cuda (simt: the emulator\n"
    "                      of GPUs, for tests)\n"
    "  --arch LIST         GPUs that kernels are compiled for (default sm_80,sm_90a,ptx)\n"
    "  --dtype f32|f64|bf16|f16   working precision (default f32); bf16, f16: mixed, for GPUs\n"
    "  --march NAME        processor (default native), as the C compiler names it\n"
    "  --emit ast|graph|fused|plan|c|cuda|figures|dot|html\n"
    "                      prints that instead of making an executable; html: a page with the\n"
    "                      graph after each pass and who owns which bytes of the arena when\n"
    "  --kernels WORDS     with --emit cuda or figures: of kernels with one of these words, with\n"
    "                      commas between them, in their names\n"
    "  --dump PASS|all     prints what a pass left (with --emit dot: as Graphviz text)\n"
    "  --stop-after PASS   passes: parse elaborate grad simplify layout fuse schedule batch lower\n"
    "                      plan link\n"
    "  --memory SIZE[@B]   the most that the activations of a step may take at batch B (1),\n"
    "                      such as 3GB@4: some are computed twice then, the cheapest first\n"
    "  --check             looks for errors only\n"
    "  --time, --stats     time of each pass; sizes of plans\n"
    "  --certificate       the bytes that each step will take, as a function of the batch\n"
    "  --verbose           shows the commands that are run\n"
    "  --no-cache          compiles everything anew; objects are else kept in\n"
    "                      $XDG_CACHE_HOME/pvdmc (~/.cache/pvdmc)\n"
    "  --help              this text\n"
    "\n"
    "The C compiler is $CC, or cc. Exit status: 0 done, 1 the model is wrong, 2 usage, 3 the "
    "machine\n"
    "lacks something. --lib is not in this build.\n";

static _Noreturn void __attribute__((format(printf, 2, 3)))
fail(int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "pvdmc: error: ");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    if (status == 2)
        fprintf(stderr, "  = help: pvdmc --help lists the options\n");
    va_end(args);
    exit(status);
}

static void choose_targets(const char *list, Targets *targets)
{
    if (!parse_targets(list, targets))
        fail(2, "unknown target '%s': cpu, cuda, simt, or several of them: cpu,cuda", list);
}

static void choose_archs(const char *list, Targets *targets)
{
    if (!parse_archs(list, targets))
        fail(2, "unknown architecture '%s': such as sm_80, sm_90a, ptx, from sm_80 on", list);
}

// bf16, f16: arithmetic in f32, most values stored so.
static void choose_dtype(const char *name, Options *options)
{
    options->storage = strcmp(name, "bf16") == 0  ? DT_BF16
                       : strcmp(name, "f16") == 0 ? DT_F16
                                                  : DT_NONE;
    options->real = strcmp(name, "f64") == 0 ? DT_F64 : DT_F32;
    if (options->storage == DT_NONE && strcmp(name, "f32") != 0 && strcmp(name, "f64") != 0)
        fail(2, "unknown dtype '%s'", name);
}

// "3GB", "3GB@4", "500 MiB": bytes, and the batch they are for.
static void choose_memory(const char *text, Options *options)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1}, {"B", 1}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 1024.}, {"MiB", 1048576.}, {"GiB", 1073741824.}};
    char *end;
    double number = strtod(text, &end);
    size_t length = strcspn(end, "@");
    options->memory = 0;
    options->memory_batch = 1;
    for (size_t i = 0; end != text && i < sizeof units / sizeof *units; i++)
        if (strlen(units[i].name) == length && strncmp(end, units[i].name, length) == 0 &&
            number * units[i].bytes >= 1 && number * units[i].bytes < 1e18)
            options->memory = (int64_t)(number * units[i].bytes);
    if (end[length] == '@') {
        const char *batch = end + length + 1;
        options->memory_batch = strtoll(batch, &end, 10);
        if (end == batch || *end || options->memory_batch < 1 || options->memory_batch > 1000000)
            options->memory = 0;
    }
    if (options->memory == 0)
        fail(2, "'%s' is no memory size; such as 3GB, 512MiB or 3GB@4 (at batch 4)", text);
}

static Emit choose_emit(const char *name)
{
    static const char *const names[] = {
        [EMIT_AST] = "ast", [EMIT_GRAPH] = "graph", [EMIT_FUSED] = "fused",
        [EMIT_PLAN] = "plan", [EMIT_C] = "c", [EMIT_CUDA] = "cuda",
        [EMIT_FIGURES] = "figures", [EMIT_DOT] = "dot", [EMIT_HTML] = "html"};
    for (size_t i = EMIT_AST; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0)
            return (Emit)i;
    if (strcmp(name, "ptx") == 0)
        fail(3, "--emit %s is not in this build", name);
    fail(2, "unknown form '%s' for --emit", name);
}

static const char *choose_pass(const char *name, bool all)
{
    for (size_t i = 0; i < PASS_COUNT; i++)
        if (strcmp(passes[i].name, name) == 0)
            return name;
    if (all && strcmp(name, "all") == 0)
        return name;
    fail(2, "unknown pass '%s'", name);
}

// The value of an option: what follows '=' or the letter, or the next argument.
static const char *option_value(int argc, char **argv, int *i, const char *attached)
{
    if (attached && *attached)
        return attached;
    if (*i + 1 >= argc)
        fail(2, "'%s' wants a value", argv[*i]);
    return argv[++*i];
}

// Whether the argument is `name` or `name=...`; *attached is what follows the sign.
static bool is_option(const char *argument, const char *name, const char **attached)
{
    size_t length = strlen(name);
    *attached = NULL;
    if (strncmp(argument, name, length) != 0)
        return false;
    if (argument[length] == '=')
        *attached = argument + length + 1;
    return argument[length] == '\0' || argument[length] == '=';
}

// "GB/S,GFLOP/S"
static void choose_figures(const char *text, ExplainFigures *figures)
{
    double bytes, flops;
    int length = 0;
    if (sscanf(text, "%lf,%lf%n", &bytes, &flops, &length) != 2 || text[length] || bytes <= 0 ||
        flops <= 0)
        fail(2, "--machine wants GB/S,GFLOP/S, such as 20,150; not '%s'", text);
    figures->bytes_per_second = bytes * 1e9;
    figures->flops_per_second = flops * 1e9;
    figures->stated = true;
}

static double choose_batch(const char *text)
{
    char *end;
    long batch = strtol(text, &end, 10);
    if (*end || batch < 1)
        fail(2, "--batch wants a number of at least 1, not '%s'", text);
    return (double)batch;
}

// "FILE:LINE" of --explain; the file is the model's unless another one is named.
static void settle_explain(Options *options)
{
    const char *colon = strrchr(options->explain, ':');
    if (!colon || strspn(colon + 1, "0123456789") != strlen(colon + 1) || colon[1] < '1')
        fail(2, "--explain wants FILE.model:LINE, not '%s'", options->explain);
    if (!options->path)
        options->path = strndup(options->explain, (size_t)(colon - options->explain));
    if (options->figures.stated)
        return;
    bool gpu = options->targets.cuda;  // an H200 in f32; a few cores
    options->figures.bytes_per_second = gpu ? 4.3e12 : 20e9;
    options->figures.flops_per_second = gpu ? 60e12 : 100e9;
}

static bool long_option(Options *options, int argc, char **argv, int *i)
{
    const char *argument = argv[*i], *attached;
    if (is_option(argument, "--target", &attached))
        choose_targets(option_value(argc, argv, i, attached), &options->targets);
    else if (is_option(argument, "--arch", &attached))
        choose_archs(option_value(argc, argv, i, attached), &options->targets);
    else if (is_option(argument, "--dtype", &attached))
        choose_dtype(option_value(argc, argv, i, attached), options);
    else if (is_option(argument, "--march", &attached))
        options->march = option_value(argc, argv, i, attached);
    else if (is_option(argument, "--rungs", &attached)) {
        const char *names = option_value(argc, argv, i, attached);
        if (!parse_rungs(names, &options->rungs))
            fail(2, "unknown rung in '%s'", names);
        options->choose_rungs = true;
    } else if (is_option(argument, "--emit", &attached))
        options->emit = choose_emit(option_value(argc, argv, i, attached));
    else if (is_option(argument, "--kernels", &attached))
        options->kernels = option_value(argc, argv, i, attached);
    else if (is_option(argument, "--dump", &attached))
        options->dump = choose_pass(option_value(argc, argv, i, attached), true);
    else if (is_option(argument, "--stop-after", &attached))
        options->stop_after = choose_pass(option_value(argc, argv, i, attached), false);
    else if (strcmp(argument, "--time") == 0)
        options->time = true;
    else if (strcmp(argument, "--stats") == 0)
        options->stats = true;
    else if (strcmp(argument, "--certificate") == 0)
        options->certificate = true;
    else if (is_option(argument, "--memory", &attached))
        choose_memory(option_value(argc, argv, i, attached), options);
    else if (strcmp(argument, "--check") == 0)
        options->check = true;
    else if (strcmp(argument, "--verbose") == 0)
        options->verbose = true;
    else if (is_option(argument, "--explain", &attached))
        options->explain = option_value(argc, argv, i, attached);
    else if (is_option(argument, "--machine", &attached))
        choose_figures(option_value(argc, argv, i, attached), &options->figures);
    else if (is_option(argument, "--batch", &attached))
        options->figures.batch = choose_batch(option_value(argc, argv, i, attached));
    else if (strcmp(argument, "--unfused-too") == 0)
        options->unfused_too = true;
    else if (strcmp(argument, "--no-cache") == 0)
        options->no_cache = true;
    else
        return false;
    return true;
}

static Options read_options(int argc, char **argv)
{
    Options options = {.level = 2, .real = DT_F32, .march = "native", .figures = {.batch = 1}};
    options.targets = (Targets){.cpu = true, .archs = {{80, false}, {90, true}}, .arch_count = 2,
                                .ptx = true};
    options.defines = calloc((size_t)argc + 1, sizeof *options.defines);
    options.folders = calloc((size_t)argc + 1, sizeof *options.folders);
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            fputs(usage, stdout);
            exit(0);
        }
        if (strncmp(argument, "-o", 2) == 0)
            options.output = option_value(argc, argv, &i, argument + 2);
        else if (strncmp(argument, "-D", 2) == 0)
            options.defines[options.define_count++] = option_value(argc, argv, &i, argument + 2);
        else if (strncmp(argument, "-I", 2) == 0)
            options.folders[options.folder_count++] = option_value(argc, argv, &i, argument + 2);
        else if (argument[0] == '-' && argument[1] == 'O' && argument[2] >= '0' &&
                 argument[2] <= '2' && !argument[3])
            options.level = argument[2] - '0';
        else if (argument[0] == '-') {
            if (!long_option(&options, argc, argv, &i))
                fail(2, "unknown option '%s'", argument);
        } else if (options.path)
            fail(2, "more than one model file: '%s' and '%s'", options.path, argument);
        else
            options.path = argument;
    }
    if (options.explain)
        settle_explain(&options);
    if (!options.path)
        fail(2, "no model file");
    uint32_t rungs = options.choose_rungs ? options.rungs : level_rungs(options.level);
    if (options.memory > 0 && !(rungs & RUNG_MEMORY))
        fail(2, "--memory needs -O2: nothing is computed twice below");
    if (options.kernels && options.emit != EMIT_CUDA && options.emit != EMIT_FIGURES)
        fail(2, "--kernels is for --emit cuda and --emit figures");
    if (options.emit == EMIT_FIGURES && !options.targets.cuda)
        fail(2, "--emit figures needs --target cuda");
    if (options.real == DT_F64 && (options.targets.cuda || options.targets.simt))
        fail(2, "--dtype f64 is for --target cpu: there are no kernels of it for GPUs");
    if (options.storage != DT_NONE && options.targets.cpu)
        fail(2, "--dtype %s is for GPUs: --target cuda", dtype_name(options.storage));
    return options;
}

// "dir/pvdm.model" -> "pvdm"
static const char *default_output(Arena *arena, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t length = strlen(name);
    const char *ending = strstr(name, ".model");
    if (ending && ending != name && ending[6] == '\0')
        length = (size_t)(ending - name);
    else
        return arena_printf(arena, "%s.out", name);
    return arena_printf(arena, "%.*s", (int)length, name);
}

// ---- the run ----

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// The last pass that --dump prints with --emit dot: one of modules, or of plans.
static const char *last_dumped(const char *pass)
{
    return strcmp(pass, "all") == 0 || strcmp(pass, "link") == 0 ? "plan" : pass;
}

// The last pass that is needed for what was asked.
static const char *last_pass(const Options *options)
{
    if (options->stop_after)
        return options->stop_after;
    if (options->check)
        return "elaborate";            // later passes find no mistakes of the model
    if (options->explain)
        return "plan";
    switch (options->emit) {
    case EMIT_AST: return "parse";
    case EMIT_DOT:
        return options->dump ? last_dumped(options->dump) : "simplify";
    case EMIT_GRAPH: return "simplify";
    case EMIT_FUSED: return "batch";
    case EMIT_PLAN: case EMIT_C: case EMIT_CUDA: case EMIT_FIGURES: case EMIT_HTML:
        return "plan";
    case EMIT_EXECUTABLE: break;
    }
    return "link";
}

static void verify(const Build *build)
{
#ifdef PVDM_VERIFY
    if (build->module && !build->cg)
        verify_module(build->module);
#else
    (void)build;
#endif
}

// What the developer's page shows of a pass.
static void collect_html(Build *build, const char *pass)
{
    if (!build->html)
        build->html = html_new(build->sources);
    if (build->module && !build->cg)
        html_graph(build->html, pass, build->module);
    if (strcmp(pass, "layout") == 0)
        html_graph(build->html, pass, build->module);      // tables and narrow rows add nodes
    if (strcmp(pass, "fuse") == 0)
        html_groups(build->html, build->cg->plans, build->cg->plan_count);
    names_of = build->cg;
    if (strcmp(pass, "plan") == 0)
        html_plans(build->html, build->cg->plans, build->cg->plan_count, name_kernel);
}

// What a pass left, for --dump: as Graphviz text with --emit dot.
static void dump_pass(const Build *build, const Pass *pass)
{
    bool dot = build->options.emit == EMIT_DOT && build->module;
    printf(dot ? "// after %s\n" : "== after %s\n", pass->name);
    if (dot && build->cg)
        print_plans_dot(stdout, build->cg->plans, build->cg->plan_count);
    else if (dot)
        print_result(build, stdout, EMIT_DOT, true);
    else if (strcmp(pass->name, "layout") != 0)
        print_result(build, stdout, pass->emit, true);
}

// Runs passes up to the last one needed; false after a failure (status is set).
static bool run_passes(Build *build)
{
    const Options *options = &build->options;
    const char *last = last_pass(options);
    for (size_t i = 0; i < PASS_COUNT; i++) {
        double begin = seconds();
        bool good = passes[i].run(build);
        if (options->time)
            fprintf(stderr, "%-10s %8.3f s\n", passes[i].name, seconds() - begin);
        if (!good) {
            build->status = build->status ? build->status : 1;
            return false;
        }
        verify(build);
        if (options->dump && passes[i].emit != EMIT_C &&
            (strcmp(options->dump, "all") == 0 || strcmp(options->dump, passes[i].name) == 0))
            dump_pass(build, &passes[i]);
        if (options->emit == EMIT_HTML)
            collect_html(build, passes[i].name);
        if (strcmp(passes[i].name, last) == 0)
            break;
    }
    return true;
}

static bool write_emitted(Build *build)
{
    const Options *options = &build->options;
    if (options->emit == EMIT_EXECUTABLE || options->stop_after || options->check ||
        options->explain || (options->emit == EMIT_DOT && options->dump))
        return true;
    FILE *out = options->output ? fopen(options->output, "w") : stdout;
    if (!out)
        fail(1, "cannot write '%s': %s", options->output, strerror(errno));
    LinkOptions link = link_options(options);
    if (options->emit == EMIT_FIGURES)
        build->status = print_figures(build->cg, out, &link);
    else
        print_result(build, out, options->emit, true);
    bool good = !ferror(out);
    return (out == stdout ? fflush(out) : fclose(out)) == 0 && good;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "bench") == 0)
        return bench_command(argc - 2, argv + 2);
    Build build = {.options = read_options(argc, argv), .arena = arena_new()};
    Options *options = &build.options;
    if (access(options->path, R_OK) != 0)
        fail(1, "cannot read '%s': %s", options->path, strerror(errno));
    if (options->emit == EMIT_EXECUTABLE && !options->output)
        options->output = default_output(build.arena, options->path);
    build.sources = sources_new(build.arena);
    diag_init(build.sources, stderr);
    bool good = run_passes(&build);
    diag_flush();
    if (good && !write_emitted(&build))
        fail(1, "cannot write the output: %s", strerror(errno));
    if (good && build.explain && build.cg)
        build.status = explain_end(stdout, build.explain, (const Work *const *)build.cg->plans,
                                   build.cg->plan_count, &options->figures);
    if (good && options->stats && build.module)
        print_stats(&build);
    if (good && options->certificate && build.cg)
        print_certificate(stdout, build.cg->plans, build.cg->plan_count);
    return build.status;
}
