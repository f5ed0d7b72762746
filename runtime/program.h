// A call of one program, or of its gradient, outside of training: what `run`, `grad` and a model's
// library (library.h) share.
//
// Order of work: the inputs are set; that settles the batch and, with the options, the variant;
// only the instances that this variant reads need weights; the memory is compared; then weights are
// mounted and the plan runs.
#ifndef PV_PROGRAM_H
#define PV_PROGRAM_H

#include "runtime/session.h"

typedef struct {
    PvSession *session;
    const PvEntry *entry; // of kind PV_PROGRAM or PV_GRAD_OF
    PvCall *call;
    uint32_t variant;
    bool keep;      // weights that are mounted (PvSession.loaded) are not mounted again
    bool *needed;   // [instance_count]: whose weights the plan reads
    char **buffers; // by parameter: what was mounted, of the buffers that the plan reads; else NULL
} PvProgram;        // starts as {0}

// Finds the program and makes its call. The session stays the caller's.
bool pv_program_open(PvProgram *program, PvSession *session, const char *name, PvEntryKind kind,
                     PvError *error);
void pv_program_close(PvProgram *program);

// All inputs are set: finds the batch and the variant.
bool pv_program_settle(PvProgram *program, PvError *error);

// Before a run: the plan's needs are compared with the memory there is, and weights mounted.
// `plan` is that of the variant, or its unfused one.
bool pv_program_prepare(PvProgram *program, const PvPlan *plan, bool ema, PvError *error);

// Runs it `count` times with the same draws, each time from the buffers (batch-norm statistics)
// that were mounted, and brings the outputs to the host. `seconds` [count], or NULL: how long each
// took. Gradients of a model with values in f16 are of the loss times a scale, the first of 2^16,
// 2^12 ... 1 with which they are all finite, and divided by it in the end.
bool pv_program_run(PvProgram *program, const PvCallPlan *how, int64_t count, double *seconds,
                    PvError *error);

// Puts the mounted buffers back, for other calls of the session.
bool pv_program_restore(PvProgram *program, PvError *error);

// Bytes of a parameter's values.
size_t pv_param_size(const PvParam *param);

#endif
