// The kernels that the runtime launches by name: the optimizer's (runtime.cu), and the draws of
// samplers (random.cu).
#include "codegen/cuda/select.h"

#define RUNTIME(number)                                                                            \
    .file = "runtime.cu", .definitions = "RUNTIME_KERNEL=" #number, .shape = "pv_shape_optimizer"
#define DRAW(kind)                                                                                 \
    .file = "random.cu", .definitions = "RANDOM_KIND=" #kind, .shape = "pv_shape_random"

static const CudaRuntimeKernel kernels[] = {
    {"square_sums",
     {RUNTIME(0), .name = "square_sums", .phases = 2, .threads = {256, 256},
      .shared = {2048, 2048}}},
    {"adamw", {RUNTIME(1), .name = "adamw", .phases = 1, .threads = {256}}},
    {"sgd", {RUNTIME(2), .name = "sgd", .phases = 1, .threads = {256}}},
    {"accumulate", {RUNTIME(3), .name = "accumulate", .phases = 1, .threads = {256}}},
    {"average", {RUNTIME(4), .name = "average", .phases = 1, .threads = {256}}},
    {"shadow", {RUNTIME(5), .name = "shadow", .phases = 1, .threads = {256}}},
    {"normal", {DRAW(0), .name = "normal", .phases = 1, .threads = {256}}},
    {"uniform", {DRAW(1), .name = "uniform", .phases = 1, .threads = {256}}},
};

const CudaRuntimeKernel *cuda_runtime_kernels(uint32_t *count)
{
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
