// Training on given tensors (replay.c).
#ifndef PV_REPLAY_H
#define PV_REPLAY_H

#include "runtime/train.h"

// Makes `train` take inputs and draws from `given`, which must outlive it; tells the largest batch
// of the first micro-steps.
bool pv_replay_batch(PvTrain *train, PvTensorSet *given, int64_t steps, int64_t *batch,
                     PvError *error);
// Runs `steps` steps and writes the state (NULL: prints the losses); prints the median time.
bool pv_replay(PvTrain *train, int64_t steps, const char *state, PvError *error);

#endif
