// The optimizer on a GPU: moments, averages and sums of gradients live there; an update is a few
// kernels (arguments at the end of codegen/kernel_args.h) and brings nothing to the host.
#ifndef PV_CUDA_OPTIMIZER_H
#define PV_CUDA_OPTIMIZER_H

#include "runtime/cuda_exec.h"
#include "runtime/optimizer.h"

// The parts of the parameters that one launch works on, as marked.
typedef struct PvChunkList {
    struct PvChunkList *next;
    bool *marks;    // [param_count]
    CUdeviceptr at; // OptimizerChunk [count]
    int64_t count;
} PvChunkList;

typedef struct PvGpuOptimizer {
    PvGpu *gpu;
    PvOptimizer *optimizer;
    PvMirror m, v, ema, sum;
    CUdeviceptr factor;  // double [instances]
    CUdeviceptr result;  // OptimizerResult
    CUdeviceptr numbers; // OptimizerNumbers
    CUdeviceptr scales;  // LossScale [PV_MAX_MINIMIZE], of models stored as f16; else 0
    bool scales_new;     // the host wrote them
    PvChunkList *lists;
    bool *marks; // [param_count], scratch
} PvGpuOptimizer;

// One update, as pv_optimizer_update and, if average > 0, pv_optimizer_average do it.
typedef struct {
    uint32_t turn;
    const PvOptimizerSettings *settings;
    const bool *present; // [param_count]
    bool sums;           // the gradients are the sums of micro-steps
    double scale;
    CUdeviceptr losses; // PvReal [loss_count]
    int64_t loss_count;
    int64_t step; // from 1: what OptimizerResult.bad_step becomes
    bool average;
} PvGpuUpdate;

PvGpuOptimizer *pv_gpu_optimizer_new(PvGpu *gpu, PvOptimizer *optimizer, PvError *error);
void pv_gpu_optimizer_free(PvGpuOptimizer *own); // NULL is fine
bool pv_gpu_accumulate(PvGpuOptimizer *own, uint32_t turn, const bool *present, bool *seen,
                       PvError *error);
// The gradients that are queued next are of the loss times the scale of this minimize.
bool pv_gpu_loss_scale(PvGpuOptimizer *own, uint32_t turn, PvError *error);
bool pv_gpu_update(PvGpuOptimizer *own, const PvGpuUpdate *update, PvError *error);
// The host wrote moments and averages; the host's copies are right.
void pv_gpu_optimizer_written(PvGpuOptimizer *own);
bool pv_gpu_optimizer_fetch(PvGpuOptimizer *own, PvError *error);

#endif
