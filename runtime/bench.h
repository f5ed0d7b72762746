// `bench`: the ladder of an executable that was compiled with --unfused-too, measured.
//
//   bench_machine   what the machine can do: bytes copied, products
//   bench_case      what is measured: a program, its gradient, a training step; random inputs
//   bench_measure   every rung in interleaved rounds, then every launch by itself; errors
//   bench_text, bench_page   the report, a JSON object, as text and as a page of HTML
#ifndef PV_BENCH_H
#define PV_BENCH_H

#include <jansson.h>

#include "runtime/train.h"

/* bench_machine.c */
typedef struct {
    double copy;    // bytes/s read and written by a copy that no cache holds
    double cached;  // the same of one that a cache may hold
    double product; // FLOP/s of a large matrix product
} PvRates;
const char *pv_bench_device(const PvSession *session); // its name
bool pv_bench_machine(PvSession *session, PvRates *rates, PvError *error);
// Seconds that a kernel takes if it is limited by one of them alone.
double pv_bench_predict(const PvRates *rates, double flops, double bytes);

/* bench_case.c */
typedef struct {
    char *name;           // "denoise", "grad.loss", "train.diffusion", "ddim.call0"
    PvEntryKind kind;     // PV_PROGRAM, PV_GRAD_OF, PV_CALL; PV_MINIMIZE: a stage
    const PvEntry *entry; // of a program
    const PvStage *stage;
    PvSession *session;
    PvCall *calls[PV_MAX_MINIMIZE]; // with inputs; of a stage those of its turns
    uint32_t variant[PV_MAX_MINIMIZE];
    uint32_t call_count;
    PvTrain *train;     // of a stage
    uint64_t *draws;    // of all streams when a step starts
    PvTensorSet inputs; // those that were drawn, by name
} PvBenchCase;

// Names of programs, gradients and training steps, into `names`. Steps of samplers ("ddim.call0")
// can be measured too; most of them are programs as well.
void pv_bench_list(const PvModel *model, PvWords *names);
bool pv_bench_known(const PvModel *model, const char *name, PvError *error);
// The case of a name: a program's, "grad.NAME", "train.STAGE" or a stage's own, a sampler's call.
// Inputs are those of `given` by name, else drawn; weights are mounted or drawn. NULL: an error.
PvBenchCase *pv_bench_case_new(PvSession *session, const char *name, int64_t batch,
                               const PvTensorSet *given, PvError *error);
void pv_bench_case_free(PvBenchCase *at); // NULL is fine
// One step with the session's rung. A stage's parameters move.
bool pv_bench_step(PvBenchCase *at, PvError *error);
// The same without the update of a stage: outputs and gradients stay to be looked at.
bool pv_bench_forward(PvBenchCase *at, PvError *error);
uint32_t pv_bench_rungs(const PvBenchCase *at);
const PvPlan *pv_bench_plan(const PvBenchCase *at, uint32_t call, uint32_t rung);
// First values for what no file gave. What would start as 0 is drawn too, so that all work counts.
bool pv_bench_weights(PvSession *session, PvError *error);

/* bench_measure.c */
typedef struct {
    int64_t rounds;
    bool ends;             // only the first rung and the last
    bool last;             // only the last one
    const char *reference; // executable with --dtype f64, or NULL
} PvBenchOptions;
// A new object for the list "programs" of the report; NULL with an error.
json_t *pv_bench_measure(PvBenchCase *at, const PvRates *rates, const PvBenchOptions *options,
                         PvError *error);
/* bench_reference.c */
// What the f64 executable makes of the same weights and inputs, by names of outputs and gradients.
// False with an error; an empty set: it cannot be had for this case.
bool pv_bench_reference(PvBenchCase *at, const char *executable, PvTensorSet *set, PvError *error);

/* bench_kernels.c */
// The launches of the last rung, grouped: "kernels", and "graph", into `json`.
bool pv_bench_kernels(PvBenchCase *at, const PvRates *rates, json_t *json, PvError *error);
const char *pv_bench_family(const char *kernel); // "conv", "matmul", ..., "elementwise"

/* bench_text.c, bench_page.c */
void pv_bench_print(FILE *out, const json_t *report);
bool pv_bench_page(const char *path, const json_t *report, PvError *error);

#endif
