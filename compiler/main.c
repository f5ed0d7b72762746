// pvdmc: from a model file to an executable.
//
// The passes are the lines of one table, run from top to bottom. The first work on the module (one
// graph for all programs), the others on plans: one for every variant of every entry, and for
// programs and their gradients a second one, unfused, in which every value can be looked at.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "codegen/codegen.h"
#include "compiler/bench.h"
#include "compiler/explain.h"
#include "compiler/html.h"
#include "compiler/options.h"

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
    if (build->module)
        build->module->storage = options->storage;
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
    return (LinkOptions){options->output, options->march, options->library,
                         options->real == DT_F64, options->verbose, !options->no_cache};
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

static bool is_pass(const char *name)
{
    for (size_t i = 0; i < PASS_COUNT; i++)
        if (strcmp(passes[i].name, name) == 0)
            return true;
    return false;
}

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

// ---- the run ----

// "dir/pvdm.model" -> "pvdm", "libpvdm.so"
static const char *default_output(Arena *arena, const char *path, bool library)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *ending = strstr(name, ".model");
    bool usual = ending && ending != name && ending[6] == '\0';
    int length = (int)(usual ? (size_t)(ending - name) : strlen(name));
    if (library)
        return arena_printf(arena, "lib%.*s.so", length, name);
    return arena_printf(arena, "%.*s%s", length, name, usual ? "" : ".out");
}

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
        command_fail(1, "cannot write '%s': %s", options->output, strerror(errno));
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
    Build build = {.options = read_options(argc, argv, is_pass), .arena = arena_new()};
    Options *options = &build.options;
    if (access(options->path, R_OK) != 0)
        command_fail(1, "cannot read '%s': %s", options->path, strerror(errno));
    if (options->emit == EMIT_EXECUTABLE && !options->output)
        options->output = default_output(build.arena, options->path, options->library);
    build.sources = sources_new(build.arena);
    diag_init(build.sources, stderr);
    bool good = run_passes(&build);
    diag_flush();
    if (good && !write_emitted(&build))
        command_fail(1, "cannot write the output: %s", strerror(errno));
    if (good && build.explain && build.cg)
        build.status = explain_end(stdout, build.explain, (const Work *const *)build.cg->plans,
                                   build.cg->plan_count, &options->figures);
    if (good && options->stats && build.module)
        print_stats(&build);
    if (good && options->certificate && build.cg)
        print_certificate(stdout, build.cg->plans, build.cg->plan_count);
    return build.status;
}
