// A call of an entry with tensors: inputs are checked against the entry's types and converted, the
// batch is found, the variant chosen, outputs made.
#ifndef PV_CALL_H
#define PV_CALL_H

#include "runtime/exec.h"
#include "runtime/random.h"

typedef struct {
    const PvEntry *entry;
    PvTensor **inputs;  // [input_count], NULL: absent
    PvScalar *numbers;  // [input_count]: of rank 0
    PvTensor **outputs; // [output_count], after pv_call_run
    void **io;          // [input_count + output_count]
    PvStep step;
    PvDevice *device;   // of `numbers_at`, or NULL
    CUdeviceptr numbers_at; // the outputs of rank 0, PV_NUMBER_SPACING bytes apart
} PvCall;

// On a GPU the numbers that a call gives lie together, output i at i * PV_NUMBER_SPACING, so that
// one copy brings them.
enum { PV_NUMBER_SPACING = 64 };

// `options` and `random` stay the caller's.
PvCall *pv_call_new(const PvEntry *entry, const PvScalar *options, PvRandom *random);
void pv_call_free(PvCall *call); // NULL is fine

// Input `index` is this tensor (not taken; a converted copy is made where the dtype differs).
// `from` says where it comes from, in the error. NULL: absent.
bool pv_call_set(PvCall *call, uint32_t index, PvTensor *tensor, const char *from, PvError *error);
// Input `index`, of rank 0, is this number.
bool pv_call_set_number(PvCall *call, uint32_t index, double value, PvError *error);
int pv_call_find(const PvEntry *entry, const char *input); // index, or -1
// The same of an input that has to be there: -1 with an error that tells what there is.
int pv_call_find_input(const PvEntry *entry, const char *input, PvError *error);

// All inputs are set: the batch is that of the inputs (`fallback` if none has one), the same for
// all; inputs that are not optional must be there. Sets step.batch and step.given.
bool pv_call_settle(PvCall *call, int64_t fallback, PvError *error);

// Runs variant `variant` (plain: its unfused plan). Outputs are new tensors, unless the call has
// outputs of the right size that nobody else holds. Streams move on.
typedef struct {
    uint32_t variant;
    bool plain;
    const uint32_t *taps;
    uint32_t tap_count;
    PvTensor *const *tap_tensors;
} PvCallPlan;
bool pv_call_run(PvExec *exec, PvCall *call, const PvCallPlan *plan, PvError *error);
// Brings all outputs to the host.
bool pv_call_fetch(PvCall *call, PvError *error);

#endif
