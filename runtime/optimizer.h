// The optimizer: AdamW, SGD, gradient-norm clipping and EMA over the flat parameter buffers.
//
// Every buffer lies as PV_PARAM does: parameter p at model->params[p].offset. Buffers are reserved
// address space, whose pages cost nothing until they are written.
#ifndef PV_OPTIMIZER_H
#define PV_OPTIMIZER_H

#include "runtime/weights.h"

typedef struct {
    uint32_t param;
    int64_t first, count; // elements of the parameter
} PvOptimizerChunk;

typedef struct {
    const PvModel *model;
    const PvStage *stage;
    int threads;
    char *m, *v; // AdamW's moments; SGD's momentum lies in m
    char *ema;
    char *sum;                            // of micro-steps' gradients
    int64_t updates[PV_MAX_MINIMIZE];     // by minimize: how often it updated
    int64_t ema_updates[PV_MAX_MINIMIZE]; // how often its averages were
    PvLossScale scale[PV_MAX_MINIMIZE];   // of models stored as f16
    bool *moves;              // [param_count] trained by this stage (no buffers of batch norms)
    double *factor;           // [instance_count] of the gradients, in the present update
    PvOptimizerChunk *chunks; // of the parameters that move, in their order
    uint32_t chunk_count;
    double *partial; // [chunk_count] sums of squares
    struct PvGpuOptimizer *gpu; // NULL: all is on the CPU; else m, v, ema are the host's copies
} PvOptimizer;

// Arguments of one `minimize`, as the model file and the options of this step give them.
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, momentum;
    double clip; // largest gradient norm of one instance; 0: none
    double ema;  // 0: none
} PvOptimizerSettings;

// For one stage: parameters of the instances that any of its minimizes names. NULL: no memory.
PvOptimizer *pv_optimizer_new(const PvModel *model, const PvStage *stage, int threads);
void pv_optimizer_free(PvOptimizer *optimizer);

// In what follows `turn` is the index of a minimize of the stage.

// Does that minimize update this parameter?
bool pv_optimizer_takes(const PvOptimizer *optimizer, uint32_t turn, uint32_t param);

// Averages start as the parameters are.
void pv_optimizer_start_ema(PvOptimizer *optimizer, uint32_t turn, const char *params);

// sum = grad (first) or sum + grad, for the parameters of that minimize that are in `present`
// ([param_count]); `seen` gathers them, and what is first seen later is added to zeros.
void pv_optimizer_accumulate(PvOptimizer *optimizer, uint32_t turn, const char *grad,
                             const bool *present, bool *seen);

// Scales the gradients by `scale`, clips, and updates the parameters of that minimize that are in
// `present`; returns the norm of the scaled gradients before clipping. When that norm is not
// finite, nothing is updated.
double pv_optimizer_update(PvOptimizer *optimizer, uint32_t turn,
                           const PvOptimizerSettings *settings, char *params, const char *grad,
                           const bool *present, double scale);

// average += (1 - d) (parameter - average), d = min(ema, (1 + n) / (10 + n)) at update n = 1, 2,
// ...
void pv_optimizer_average(PvOptimizer *optimizer, uint32_t turn, double ema, const char *params);

// The decimal number that an f32 was written as (0.999, not 0.99900001287): settings travel through
// the model's f32 arithmetic, and 1 - beta2 would lose five digits.
double pv_optimizer_decimal(float value);

#endif
