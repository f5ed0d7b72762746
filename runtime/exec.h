// The executor: runs the plans of a model's entries on this machine's CPU, or on a GPU
// (cuda_exec.h) where the executable has kernels for it.
//
// One PvExec holds what outlives a step: parameters and gradients (flat, reserved address space
// whose pages are zero and cost nothing until they are touched), the arena and the scratch of the
// largest plan so far, room for resolved arguments, and the plans used so far, unpacked. Nothing is
// allocated inside a step that follows one of the same plan and batch.
#ifndef PV_EXEC_H
#define PV_EXEC_H

#include "runtime/device.h"

// Zeroed address space, page-aligned; NULL: none left. bytes may be 0.
char *pv_space_new(int64_t bytes);
void pv_space_free(char *space, int64_t bytes); // NULL is fine

typedef struct {
    double seconds;
    double flops; // predicted
    int64_t calls;
} PvKernelTime;

typedef struct PvUnpacked PvUnpacked; // a plan that was used, unpacked

typedef struct {
    const PvModel *model;
    int threads;
    char *params, *grads; // PV_PARAM, PV_GRAD: model->param_bytes each
    char *arena;
    int64_t arena_bytes;
    char *scratch; // threads * scratch_each bytes
    int64_t scratch_each;
    int64_t *args; // resolved
    uint32_t arg_capacity;
    PvScalar *scalars; // the scale of the loss, then step values
    uint32_t scalar_capacity;
    PvUnpacked *unpacked; // the last used first
    PvKernelTime *times; // [kernel_count], or NULL: not measured
    uint32_t rung; // what pv_exec_plan chooses: index + 1 in PvEntry.rungs; 0: the entry's plans
    bool profiling; // pv_exec_profile
    PvReal loss_scale; // outside of training, of models stored as f16
    struct PvRows *rows; // of tables
    struct PvGpu *gpu; // NULL: the CPU; else params and grads are the host's copies
} PvExec;

// threads < 1: what OpenMP would use (OMP_NUM_THREADS, or the number of cores).
PvExec *pv_exec_new(const PvModel *model, int threads, PvError *error);
void pv_exec_free(PvExec *exec);                    // NULL is fine
// Runs on this GPU from now on; takes the device in any case.
bool pv_exec_use(PvExec *exec, PvDevice *device, PvError *error);
bool pv_exec_measure(PvExec *exec, PvError *error); // times kernels from now on
void pv_exec_print_times(const PvExec *exec);       // a table on stderr, the slowest first

// The host's copies of PV_PARAM and PV_GRAD, brought from the GPU where that has newer ones; NULL
// with an error. Who writes parameters says so behind it.
char *pv_exec_params(PvExec *exec, PvError *error);
char *pv_exec_grads(PvExec *exec, PvError *error);
void pv_exec_params_written(PvExec *exec);
// These instances ([instance_count]) will be used: a GPU makes room for them at once.
void pv_exec_expect(PvExec *exec, const bool *instances, bool gradients);

// One step of an entry. `io`: addresses of the inputs, then of the outputs, of the entry, on the
// device that runs it; absent inputs are NULL, those of rank 0 may be (their numbers are in
// step->inputs).
typedef struct {
    const PvEntry *entry;
    const PvPlan *plan; // of entry->plans or entry->plain
    PvStep *step;
    void *const *io;
    const uint32_t *taps; // indices into plan->taps
    uint32_t tap_count;
    PvTensor *const *tap_tensors; // [tap_count], of the taps' types
    void *row; // of a table (rows.h), which pv_exec_run finds where the plan has one
} PvExecStep;

uint32_t pv_exec_variant(const PvEntry *entry, const PvStep *step);
// The plan of a variant that runs: that of exec->rung, if the entry has rungs.
const PvPlan *pv_exec_plan(const PvExec *exec, const PvEntry *entry, uint32_t variant);
// False: no memory for the arena (nothing ran). Does not move the streams on.
bool pv_exec_run(PvExec *exec, const PvExecStep *step, PvError *error);
// Only the launches that store settings (PV_OUT_SETTING): no data, no parameters are read. `io` has
// the host's addresses in any case.
bool pv_exec_settings(PvExec *exec, const PvExecStep *step, PvError *error);

// Waits until what was run is done; on the CPU it is.
bool pv_exec_wait(PvExec *exec, PvError *error);

// ---- times of single launches ----

// From now on every launch is timed by itself (or no longer is); earlier times are dropped.
void pv_exec_profile(PvExec *exec, bool on);
typedef struct {
    const PvLaunch *launches; // [launch_count] of the plan
    const double *seconds;    // [launch_count]: sums over the runs; NULL: none was timed
    int64_t runs;
} PvPlanTimes;
bool pv_exec_plan_times(PvExec *exec, const PvPlan *plan, PvPlanTimes *times, PvError *error);

// ---- for executors ----

typedef struct {
    const PvLaunch *launches;
    const PvArg *args;
} PvPlanLists;
// The lists of a plan, unpacked; they live as long as the executor.
bool pv_exec_lists(PvExec *exec, const PvPlan *plan, PvPlanLists *lists, PvError *error);
// Does a launch touch settings, and nothing that a step has to make first?
bool pv_stores_setting(const PvEntry *entry, const PvPlanLists *lists, const PvLaunch *at);
// Where a run of a plan adds the seconds of its launches, while pv_exec_profile is on. NULL with an
// error.
double *pv_exec_launch_times(PvExec *exec, const PvPlan *plan, PvError *error);
// A tap of space PV_VALUE.
void pv_tap_number(PvTensor *to, int64_t number);

// ---- bytes ----

int64_t pv_type_bytes(const PvType *type, int64_t batch);
// Bytes of a plan's arena and scratch, and of its entry's inputs and outputs.
PvMemoryItem pv_exec_need(const PvExec *exec, const PvEntry *entry, const PvPlan *plan);
// Bytes of the parameters of marked instances ([instance_count]).
int64_t pv_exec_param_bytes(const PvModel *model, const bool *instances);
// Marks the instances that a plan reads; `needed` is [instance_count].
void pv_plan_instances(const PvPlan *plan, bool *needed);

#endif
