// Commands: words, a process that runs them, and how it ended.
#include "codegen/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

void command_add(Command *command, const char *word)
{
    if (command->count + 1 >= MAX_WORDS)
        bug("a command of more than %d words", MAX_WORDS);
    command->words[command->count++] = word;
    command->words[command->count] = NULL;
}

void command_add_words(Arena *arena, Command *command, const char *text, const char *separators)
{
    char *copy = arena_printf(arena, "%s", text), *rest = NULL;
    for (char *word = strtok_r(copy, separators, &rest); word;
         word = strtok_r(NULL, separators, &rest))
        command_add(command, word);
}

pid_t command_start(const Command *command, bool verbose)
{
    if (verbose) {
        for (uint32_t i = 0; i < command->count; i++)
            fprintf(stderr, "%s%s", i ? " " : "", command->words[i]);
        fputc('\n', stderr);
    }
    fflush(NULL);
    pid_t child = fork();
    if (child != 0)
        return child;
    execvp(command->words[0], (char *const *)command->words);
    fprintf(stderr, "pvdmc: error: cannot run '%s': %s\n", command->words[0], strerror(errno));
    _exit(127);
}

int command_wait(void)
{
    int status;
    while (wait(&status) < 0)
        if (errno != EINTR)
            return 3;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return 3;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1;
}
