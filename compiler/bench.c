// `pvdmc bench FILE.model ...`: compiles the model with its whole ladder, and once more unfused in
// f64 as what errors are measured against, and runs the first one's `bench`. All three are
// processes of their own: pvdmc twice, then the executable. The executables are temporary, unless
// -o keeps one.
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compiler/bench.h"
#include "compiler/util.h"

typedef struct {
    const char **at;
    size_t count, capacity;
} WordList;

static void add(WordList *list, const char *word)
{
    list->at = grow_array(list->at, &list->capacity, list->count + 1, sizeof *list->at);
    list->at[list->count++] = word;
    list->at[list->count] = NULL;
}

// Options of pvdmc that have a value; the others of them stand in `plain`.
static const char *const valued[] = {"-D", "-I", "--target", "--march", "--memory", "--arch", NULL};
static const char *const plain[] = {"--verbose", "--no-cache", NULL};
// Those that f64, which is for the CPU alone, does without.
static const char *const of_target[] = {"--target", "--memory", "--arch", NULL};

static bool listed(const char *const *list, const char *word)
{
    for (; *list; list++)
        if (strcmp(*list, word) == 0)
            return true;
    return false;
}

// Whether the word is "NAME=VALUE" of a name in the list, or "-Dx=1".
static bool has_value(const char *const *list, const char *word)
{
    size_t length = strcspn(word, "=");
    for (; *list; list++)
        if ((word[length] == '=' && strlen(*list) == length && strncmp(*list, word, length) == 0) ||
            ((*list)[1] != '-' && strncmp(word, *list, 2) == 0 && word[2]))
            return true;
    return false;
}

typedef struct {
    WordList compile; // options of pvdmc for both, for the ladder alone, of `bench`
    WordList ladder, bench;
    const char *model, *output;
    bool reference;
} BenchWords;

// Sorts the words of the command line by whom they are for. NULL, or what is wrong.
static const char *sort_words(BenchWords *words, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "-o") == 0 || listed(valued, word)) {
            if (i + 1 == argc)
                return "the last option wants a value";
            if (strcmp(word, "-o") == 0) {
                words->output = argv[++i];
            } else {
                WordList *list = listed(of_target, word) ? &words->ladder : &words->compile;
                add(list, word);
                add(list, argv[++i]);
            }
        } else if (strcmp(word, "--no-reference") == 0) {
            words->reference = false;
        } else if (listed(plain, word) || has_value(valued, word)) {
            add(has_value(of_target, word) ? &words->ladder : &words->compile, word);
        } else if (!words->model && word[0] != '-') {
            words->model = word;
        } else {
            add(&words->bench, word);
        }
    }
    return words->model ? NULL : "no model file";
}

// Exit status of a command; 3 if it could not be run.
static int run(const WordList *list)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        execv(list->at[0], (char *const *)list->at);
        _exit(3);
    }
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    return child > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 3;
}

static void add_all(WordList *to, const WordList *from)
{
    for (size_t i = 0; i < from->count; i++)
        add(to, from->at[i]);
}

// pvdmc itself on the model: with the ladder, or in f64.
static int compile(const BenchWords *words, const char *self, const char *output, bool ladder)
{
    WordList list = {.count = 0};
    add(&list, self);
    add(&list, words->model);
    add(&list, "-o");
    add(&list, output);
    add_all(&list, &words->compile);
    if (ladder) {
        add(&list, "--unfused-too");
        add_all(&list, &words->ladder);
    } else {
        add(&list, "-O0");
        add(&list, "--dtype");
        add(&list, "f64");
    }
    int status = run(&list);
    free(list.at);
    return status;
}

static int compile_and_run(BenchWords *words, const char *self, const char *ladder,
                           const char *reference)
{
    int status = compile(words, self, ladder, true);
    if (status == 0 && words->reference)
        status = compile(words, self, reference, false);
    if (status != 0)
        return status;
    WordList list = {.count = 0};
    add(&list, ladder);
    add(&list, "bench");
    if (words->reference) {
        add(&list, "--reference");
        add(&list, reference);
    }
    add_all(&list, &words->bench);
    status = run(&list);
    free(list.at);
    return status;
}

static const char usage[] =
    "usage: pvdmc bench FILE.model [options of pvdmc] [options of bench] [PROGRAM...]\n"
    "\n"
    "Compiles every level into one executable and measures them on this machine. PROGRAM is a\n"
    "program, grad.PROGRAM, or train.STAGE; without any, all are measured.\n"
    "\n"
    "  -D, -I, --target, --march, --memory, --no-cache, --verbose   as for pvdmc\n"
    "  -o OUT               keeps the executable; OUT bench --help lists the options of bench\n"
    "  --no-reference       errors are against the unfused level, not against f64\n";

int bench_command(int argc, char **argv)
{
    BenchWords words = {.reference = true};
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    const char *wrong = sort_words(&words, argc, argv);
    if (wrong) {
        fprintf(stderr, "pvdmc: error: bench: %s\n  = help: pvdmc bench --help\n", wrong);
        return 2;
    }
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    const char *base = getenv("TMPDIR");
    Arena *arena = arena_new();
    char *folder = arena_printf(arena, "%s/pvdmc-bench-XXXXXX", base && *base ? base : "/tmp");
    if (length <= 0 || !mkdtemp(folder)) {
        fprintf(stderr, "pvdmc: error: cannot make a folder in %s: %s\n",
                base && *base ? base : "/tmp", strerror(errno));
        return 3;
    }
    self[length] = '\0';
    const char *ladder = arena_printf(arena, "%s/ladder", folder);
    const char *reference = arena_printf(arena, "%s/reference", folder);
    int status = compile_and_run(&words, self, words.output ? words.output : ladder, reference);
    unlink(ladder);
    unlink(reference);
    rmdir(folder);
    free(words.compile.at);
    free(words.ladder.at);
    free(words.bench.at);
    return status;
}
