// The command line of a model's executable: one table of commands.
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "runtime/command.h"
#include "runtime/file.h"

static const PvCommand commands[] = {
    {"info", "programs, parameters, operations, memory plan", cmd_info},
    {"run", "one program on tensors from files", cmd_run},
    {"grad", "a program and its gradient", cmd_grad},
    {"train", "a stage of training", cmd_train},
    {"sample", "make videos", cmd_sample},
    {"reconstruct", "a video through the autoencoder and back", cmd_reconstruct},
    {"eval", "quality of reconstructions: eval psnr", cmd_eval},
    {"bench", "measure every level on this machine", cmd_bench},
    {"weights", "list, import, export tensors", cmd_weights},
    {"data", "pack a data set into one file", cmd_data},
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static void print_commands(FILE *to)
{
    fprintf(to, "usage: %s COMMAND ...\n\ncommands:\n", pv_program());
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(to, "  %-14s%s\n", commands[i].name, commands[i].summary);
    fprintf(to, "\n%s COMMAND --help tells more. Model: %s, compiled for %s.\n", pv_program(),
            pv_model.name, pv_model.march);
}

static const PvCommand *find_command(const char *name, PvError *error)
{
    const char *names[COMMAND_COUNT];
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
        names[i] = commands[i].name;
    }
    pv_unknown("command", name, names, COMMAND_COUNT, PV_USAGE, error);
    return NULL;
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); // a limit on file sizes is an error of the write, as a full disk is
    pv_set_program(argc > 0 ? pv_base_name(argv[0]) : pv_model.name);
    if (argc < 2) {
        print_commands(stderr);
        return PV_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_commands(stdout);
        return fflush(stdout) == 0 ? PV_DONE : PV_MACHINE;
    }
    PvError error = {0};
    const PvCommand *command = find_command(argv[1], &error);
    PvStatus status = command ? command->run(argc - 1, argv + 1, &error) : PV_USAGE;
    if (error.text)
        pv_error_print(&error);
    pv_error_free(&error);
    if (status == PV_DONE && (fflush(stdout) != 0 || ferror(stdout))) {
        fprintf(stderr, "%s: error: the output could not be written\n", pv_program());
        status = PV_MACHINE;
    }
    return (int)status;
}
