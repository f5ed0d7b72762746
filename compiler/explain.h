// --explain FILE:LINE: what became of a line of a model file (explain.c).
#ifndef PVDMC_EXPLAIN_H
#define PVDMC_EXPLAIN_H

#include "compiler/plan.h"

typedef struct {
    double batch;
    double bytes_per_second, flops_per_second;
    bool stated; // the user gave them
} ExplainFigures;

typedef struct Explain Explain;
// After elaboration: finds the line "FILE:LINE" among the model's files, counts its operations.
Explain *explain_begin(const char *place, const Module *module, const Sources *sources);
// Once plans are lowered and packed: prints. Returns the exit status.
int explain_end(FILE *out, Explain *e, const Work *const *plans, uint32_t count,
                const ExplainFigures *figures);

#endif
