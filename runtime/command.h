// Command lines of a model's executable: the commands, and a parser that works from a table of
// flags, from which --help is printed too.
#ifndef PV_COMMAND_H
#define PV_COMMAND_H

#include "runtime/error.h"
#include "runtime/pvdm.h"

typedef struct {
    const char **items;
    size_t count, capacity;
    char **owned; // those of pv_words_take
    size_t owned_count, owned_capacity;
} PvWords; // starts as {0}

void pv_words_add(PvWords *words, const char *word); // kept by pointer
void pv_words_take(PvWords *words, char *word);      // malloc'ed; freed with the words
void pv_words_free(PvWords *words);

typedef enum {
    PV_FLAG_BOOL,  // to: bool *
    PV_FLAG_TEXT,  // to: const char **
    PV_FLAG_INT,   // to: int64_t *
    PV_FLAG_REAL,  // to: double *
    PV_FLAG_WORDS, // to: PvWords *; may be repeated, or followed by several words
} PvFlagKind;

typedef struct {
    const char *name;  // "--weights", "-o"
    const char *value; // "FILE"; NULL for PV_FLAG_BOOL
    PvFlagKind kind;
    void *to;
    const char *help;
} PvFlag;

typedef struct {
    const char *line;  // "run PROGRAM"
    const char *about; // a paragraph
    const PvFlag *flags;
    size_t flag_count;
    size_t least, most;               // words that are no flags
    PvWords *settings;                // "--NAME VALUE" with another name goes here as "NAME=VALUE",
    const char *const *setting_names; //   if the name is one of these
    size_t setting_count;
} PvUsage;

// Fills what the flags point to and `words`. --help prints and ends the program with status 0.
// False: the command line is wrong (PV_USAGE).
bool pv_usage_parse(const PvUsage *usage, int argc, char **argv, PvWords *words, PvError *error);

// "unknown WHAT 'NAME'; did you mean 'X'?" with all names as help. Always false.
bool pv_unknown(const char *what, const char *name, const char *const *names, size_t count,
                PvStatus status, PvError *error);

typedef struct {
    const char *name, *summary;
    PvStatus (*run)(int argc, char **argv, PvError *error); // argv[0]: the command's name
} PvCommand;

PvStatus cmd_info(int argc, char **argv, PvError *error);
PvStatus cmd_run(int argc, char **argv, PvError *error);
PvStatus cmd_grad(int argc, char **argv, PvError *error);
PvStatus cmd_train(int argc, char **argv, PvError *error);
PvStatus cmd_sample(int argc, char **argv, PvError *error);
PvStatus cmd_reconstruct(int argc, char **argv, PvError *error);
PvStatus cmd_eval(int argc, char **argv, PvError *error);
PvStatus cmd_weights(int argc, char **argv, PvError *error);
PvStatus cmd_bench(int argc, char **argv, PvError *error);
PvStatus cmd_data(int argc, char **argv, PvError *error);

#endif
