// The command line of pvdmc: what it may say, and what is wrong with it.
#include "compiler/options.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: pvdmc FILE.model [options]\n"
    "       pvdmc bench FILE.model [options]\n"
    "\n"
    "Compiles a model file into one executable that trains and samples.\n"
    "\n"
    "  -o OUT              the executable (default: the model's name), or the file of --emit\n"
    "  --lib               a shared library for C (include/runtime/library.h) in place of the\n"
    "                      executable (default: libNAME.so)\n"
    "  -D NAME=VALUE       replaces a constant of the model\n"
    "  -I DIR              where imported files are looked for too\n"
    "  -O0 | -O1 | -O2     one kernel per operation | local fusion | everything (default)\n"
    "  --rungs NAMES       the optimizations named, and no others: elementwise norms epilogues\n"
    "                      attention placement batching tables memory winograd split all none,\n"
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
    "The C compiler is $CC, or cc. Exit status: 0 done, 1 the model is wrong, 2 usage, 3 the\n"
    "machine lacks something.\n";

void command_fail(int status, const char *format, ...)
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
        command_fail(2, "unknown target '%s': cpu, cuda, simt, or several of them: cpu,cuda", list);
}

static void choose_archs(const char *list, Targets *targets)
{
    if (!parse_archs(list, targets))
        command_fail(2, "unknown architecture '%s': such as sm_80, sm_90a, ptx, from sm_80 on",
                     list);
}

// bf16, f16: arithmetic in f32, most values stored so.
static void choose_dtype(const char *name, Options *options)
{
    options->storage = strcmp(name, "bf16") == 0  ? DT_BF16
                       : strcmp(name, "f16") == 0 ? DT_F16
                                                  : DT_NONE;
    options->real = strcmp(name, "f64") == 0 ? DT_F64 : DT_F32;
    if (options->storage == DT_NONE && strcmp(name, "f32") != 0 && strcmp(name, "f64") != 0)
        command_fail(2, "unknown dtype '%s'", name);
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
        command_fail(2, "'%s' is no memory size; such as 3GB, 512MiB or 3GB@4 (at batch 4)", text);
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
        command_fail(3, "--emit %s is not in this build", name);
    command_fail(2, "unknown form '%s' for --emit", name);
}

// The value of an option: what follows '=' or the letter, or the next argument.
static const char *option_value(int argc, char **argv, int *i, const char *attached)
{
    if (attached && *attached)
        return attached;
    if (*i + 1 >= argc)
        command_fail(2, "'%s' wants a value", argv[*i]);
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
        command_fail(2, "--machine wants GB/S,GFLOP/S, such as 20,150; not '%s'", text);
    figures->bytes_per_second = bytes * 1e9;
    figures->flops_per_second = flops * 1e9;
    figures->stated = true;
}

static double choose_batch(const char *text)
{
    char *end;
    long batch = strtol(text, &end, 10);
    if (*end || batch < 1)
        command_fail(2, "--batch wants a number of at least 1, not '%s'", text);
    return (double)batch;
}

// "FILE:LINE" of --explain; the file is the model's unless another one is named.
static void settle_explain(Options *options)
{
    const char *colon = strrchr(options->explain, ':');
    if (!colon || strspn(colon + 1, "0123456789") != strlen(colon + 1) || colon[1] < '1')
        command_fail(2, "--explain wants FILE.model:LINE, not '%s'", options->explain);
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
            command_fail(2, "unknown rung in '%s'", names);
        options->choose_rungs = true;
    } else if (is_option(argument, "--emit", &attached))
        options->emit = choose_emit(option_value(argc, argv, i, attached));
    else if (is_option(argument, "--kernels", &attached))
        options->kernels = option_value(argc, argv, i, attached);
    else if (is_option(argument, "--dump", &attached))
        options->dump = option_value(argc, argv, i, attached);
    else if (is_option(argument, "--stop-after", &attached))
        options->stop_after = option_value(argc, argv, i, attached);
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
    else if (strcmp(argument, "--lib") == 0)
        options->library = true;
    else if (strcmp(argument, "--unfused-too") == 0)
        options->unfused_too = true;
    else if (strcmp(argument, "--no-cache") == 0)
        options->no_cache = true;
    else
        return false;
    return true;
}

// What no single option can be told.
static void check_options(const Options *options, bool (*is_pass)(const char *name))
{
    if (options->dump && strcmp(options->dump, "all") != 0 && !is_pass(options->dump))
        command_fail(2, "unknown pass '%s'", options->dump);
    if (options->stop_after && !is_pass(options->stop_after))
        command_fail(2, "unknown pass '%s'", options->stop_after);
    if (options->library && options->unfused_too)
        command_fail(2, "--unfused-too is for executables: a library runs one level");
    uint32_t rungs = options->choose_rungs ? options->rungs : level_rungs(options->level);
    if (options->memory > 0 && !(rungs & RUNG_MEMORY))
        command_fail(2, "--memory needs -O2: nothing is computed twice below");
    if (options->kernels && options->emit != EMIT_CUDA && options->emit != EMIT_FIGURES)
        command_fail(2, "--kernels is for --emit cuda and --emit figures");
    if (options->emit == EMIT_FIGURES && !options->targets.cuda)
        command_fail(2, "--emit figures needs --target cuda");
    if (options->real == DT_F64 && (options->targets.cuda || options->targets.simt))
        command_fail(2, "--dtype f64 is for --target cpu: there are no kernels of it for GPUs");
    if (options->storage != DT_NONE && options->targets.cpu)
        command_fail(2, "--dtype %s is for GPUs: --target cuda", dtype_name(options->storage));
}

Options read_options(int argc, char **argv, bool (*is_pass)(const char *name))
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
                command_fail(2, "unknown option '%s'", argument);
        } else if (options.path)
            command_fail(2, "more than one model file: '%s' and '%s'", options.path, argument);
        else
            options.path = argument;
    }
    if (options.explain)
        settle_explain(&options);
    if (!options.path)
        command_fail(2, "no model file");
    check_options(&options, is_pass);
    return options;
}
