// Training: the course of one step of a stage. Its minimizes take turns in the order written; a
// turn is `accumulate` micro-steps, whose gradients are averaged, and one update.
#ifndef PV_TRAIN_H
#define PV_TRAIN_H

#include "runtime/optimizer.h"
#include "runtime/session.h"

typedef struct PvTrain PvTrain;

// Sets the inputs of a micro-step of a turn (all but streams).
typedef bool PvFeed(void *context, PvTrain *train, uint32_t turn, PvError *error);

typedef struct {
    PvCall *call;
    PvCall *settings_call; // where settings come from when the call has none (replay)
    int64_t accumulate, ema_every;
    uint64_t reach;    // bit v: variant v can come up
    int64_t micro;     // micro-steps so far
    double loss, norm; // of the last step: means over the micro-steps
    PvLossScale scale; // after it
    double *reports;   // [output_count], those of kind PV_OUT_REPORT
    PvOptimizerSettings settings;
    struct PvTurnDevice *device; // train_device.c; NULL: on the CPU
} PvTurn;

struct PvTrain {
    PvSession *session;
    const PvStage *stage;
    PvOptimizer *optimizer;
    PvTurn turns[PV_MAX_MINIMIZE];
    PvFeed *feed;
    void *feed_context;
    int64_t batch;        // of the data
    int64_t step;         // steps done
    bool *present, *seen; // [param_count]: have a gradient in this micro-step, update
    bool *needed;         // [instance_count]: parameters are read or moved
    bool *moves;          // [instance_count]
};

const PvStage *pv_find_stage(const PvModel *model, const char *name, PvError *error);

// accumulate, ema_every: replace the model's where > 0. replay: run programs' gradients where a
// minimize is the call of a program. NULL with an error.
PvTrain *pv_train_new(PvSession *session, const PvStage *stage, int64_t accumulate,
                      int64_t ema_every, bool replay, PvError *error);
// Finds the variants that come up in the next `steps` steps with the present options and draws, by
// asking for the variants of as many steps (at most 4096) without running them; `needed` and
// pv_train_need then count only these. So an option such as a weight of 0 spares a network.
void pv_train_reach(PvTrain *train, int64_t steps);
void pv_train_free(PvTrain *train); // NULL is fine

// What training needs, in at most PV_TRAIN_ITEMS parts; activations are those of the largest
// variant at this batch.
enum { PV_TRAIN_ITEMS = 7 };
uint32_t pv_train_need(const PvTrain *train, int64_t batch, PvMemoryItem items[PV_TRAIN_ITEMS]);

// Weights are in place: gives first values to what moves and was not mounted, starts averages.
void pv_train_start(PvTrain *train, uint64_t seed);
// One step. False: wrong inputs, or a loss or gradient that is not finite; parameters are then
// those of the step before, but for turns that were done. On a GPU the step is only queued, and
// loss, norm and reports of the turns are those of an earlier step until pv_train_numbers; so is
// the error.
bool pv_train_step(PvTrain *train, PvError *error);
// Waits for the numbers of the last step.
bool pv_train_numbers(PvTrain *train, PvError *error);

// ---- train.c, for train_device.c ----

bool pv_turn_micro_step(PvTrain *train, uint32_t turn, bool settings, PvError *error);
bool pv_turn_not_finite(const PvTrain *train, const PvTurn *turn, int64_t step, PvError *error);
PvOptimizerSettings pv_turn_settings(const PvTurn *turn);

// ---- train_device.c: turns on a GPU ----

bool pv_train_device_new(PvTrain *train, PvError *error); // nothing on the CPU
void pv_turn_device_free(PvTurn *turn);
bool pv_turn_on_device(PvTrain *train, uint32_t turn, PvError *error);
// Parameters, moments and averages, in the host's copies.
bool pv_train_fetch(PvTrain *train, PvError *error);
// The host wrote them.
void pv_train_written(PvTrain *train);

// ---- train_state.c ----

// Writes folder/step-NNNNNNNN.safetensors and removes all but the last `keep`.
bool pv_train_save(PvTrain *train, const char *folder, int64_t keep, int64_t data_position,
                   PvError *error);
// Takes up a checkpoint: parameters, moments, averages, streams, counters. *seed, *data_position.
bool pv_train_resume(PvTrain *train, const char *path, uint64_t *seed, int64_t *data_position,
                     PvError *error);

#endif
