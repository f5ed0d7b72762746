/* What the command line of pvdmc asks for. */
#ifndef PVDMC_OPTIONS_H
#define PVDMC_OPTIONS_H

#include "codegen/codegen.h"
#include "compiler/explain.h"

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
    bool library;              // a shared library instead of an executable
    bool unfused_too;          // the whole ladder of rungs in one executable, and probes
} Options;

// The options of the command line; `is_pass` knows the passes by name. Ends the program where one
// is wrong, with a message and status 2, and for --help.
Options read_options(int argc, char **argv, bool (*is_pass)(const char *name));

// Ends the program with a message and `status`; for status 2 it tells where the options are listed.
_Noreturn void command_fail(int status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
