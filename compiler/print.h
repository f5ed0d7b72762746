// Words that print.c writes and read.c reads; each list ends with NULL, in the order of its enum.
#ifndef PVDMC_PRINT_H
#define PVDMC_PRINT_H

#include "compiler/program.h"

extern const char *const init_names[];     // InitKind
extern const char *const entry_names[];    // EntryKind
extern const char *const output_names[];   // OutKind
extern const char *const host_names[];     // HostKind

#endif
