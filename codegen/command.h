// Commands that pvdmc runs: compilers, the linker (command.c).
#ifndef PVDMC_COMMAND_H
#define PVDMC_COMMAND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "compiler/util.h"

enum { MAX_WORDS = 128 };

typedef struct {
    const char *words[MAX_WORDS];      // NULL behind the last
    uint32_t count;
} Command;

void command_add(Command *command, const char *word);
// The words of `text` between characters of `separators`.
void command_add_words(Arena *arena, Command *command, const char *text, const char *separators);

// Starts it, and shows it on stderr if `verbose`. -1: there is no other process to be had.
pid_t command_start(const Command *command, bool verbose);
// Waits for one that was started: 0, 1 (it failed), 3 (it could not be started).
int command_wait(void);

#endif
