// The executor on a GPU: plans of the model as kernel launches of the CUDA driver.
//
// A step of an entry is prepared once for a batch and the addresses of its inputs and outputs: a
// recipe, the list of launches with their parameter blocks. The first time a recipe runs, each
// kernel is waited for, so that one that fails is named with its line of the model; the second time
// it is captured as a graph, which is replayed from then on. What changes from step to step (step
// values, counters of random streams) is copied to fixed addresses before.
#ifndef PV_CUDA_EXEC_H
#define PV_CUDA_EXEC_H

#include "runtime/device.h"
#include "runtime/exec.h"

// The functions of a kernel on this GPU.
typedef struct {
    CUfunction phase[PV_MAX_PHASES];
    bool found;
} PvGpuFunctions;

typedef struct PvRecipe PvRecipe;

// Where a stream of launches finds the numbers of its step: CxStep of codegen/cuda/cx_launch.h,
// then the step values.
typedef struct {
    CUstream stream;
    CUdeviceptr at;
} PvGpuStep;

typedef struct PvGpu {
    PvExec *exec;
    PvDevice *device;
    PvMirror params, grads;
    PvMatrices *turns; // of parameters and all that lies as they do
    uint32_t turn_count;
    // Of params [lo, hi), at half the offsets: element i of the one is element i of the other.
    CUdeviceptr shadow, shadow_base;
    int64_t shadow_bytes;
    CUdeviceptr consts, arena, workspace, counters;
    int64_t arena_bytes, workspace_bytes;
    PvGpuStep step, side;           // of the work; of settings
    int64_t scalars_at, step_bytes; // in such a block
    CUdeviceptr loss_scale;         // PvReal, copied into the block before a run; 0: the host's
    char *step_host;                // [step_bytes]
    CUdeviceptr side_io;            // outputs of settings
    int64_t side_io_bytes;
    CUmodule *modules;         // [PvCuda.modules], NULL: not loaded yet
    bool general;              // PVDM_WGMMA=0: kernels for sm_90a alone are left aside
    PvGpuFunctions *functions; // [kernel_count + PvCuda.kernel_count]
    PvRecipe *recipes;         // the last used first
    uint32_t recipe_count;
    CUevent *marks; // with timing, around launches
    uint32_t mark_count;
    struct PvLt *lt;         // cuBLASLt, or NULL: it is not used
    int64_t products;        // launches that it has
    int64_t graphs, replays; // captured; launched
    bool no_graphs;          // the driver could not capture one
} PvGpu;

// For the executor of a model that has kernels for this GPU; takes the device in any case.
PvGpu *pv_gpu_new(PvExec *exec, PvDevice *device, PvError *error);
void pv_gpu_free(PvGpu *gpu); // NULL is fine

// A mirror of a host's buffer that lies as parameters do.
PvMirror pv_gpu_mirror(const PvGpu *gpu, const char *what, char *host);
// PvStorage of the shadow of parameters.
int64_t pv_gpu_shadow_type(const PvGpu *gpu);
// Parameters, their shadow, and gradients that are expected are there.
bool pv_gpu_place(PvGpu *gpu, PvError *error);
// As pv_exec_run; the addresses of `io` are the device's. Returns when all is queued.
bool pv_gpu_run(PvGpu *gpu, const PvExecStep *step, PvError *error);
// As pv_exec_settings: the addresses of `io` are the host's. Waits for the settings alone.
bool pv_gpu_settings(PvGpu *gpu, const PvExecStep *step, PvError *error);
// The workspace that a plan needs, about: on a line through two batches.
PvMemoryItem pv_gpu_workspace(PvGpu *gpu, const PvPlan *plan);
// Queues the present draw of a stream, as pv_random_fill makes it: kind 0 normal, 1 uniform.
bool pv_gpu_draw(PvGpu *gpu, const PvStep *step, uint32_t stream, int kind, int64_t count,
                 CUdeviceptr to, PvError *error);
// Queues kernel `index` (pv_gpu_kernel) with these arguments.
bool pv_gpu_launch(PvGpu *gpu, uint32_t index, const int64_t *args, uint32_t count, PvError *error);
// Queues a kernel of PvCuda by name.
bool pv_gpu_call(PvGpu *gpu, const char *name, const void *args, size_t bytes, PvError *error);
// Queues several, one after the other: a recipe of their own, replayed when the same come again.
typedef struct {
    const char *name;
    const void *args;
    size_t bytes;
} PvGpuCall;
bool pv_gpu_calls(PvGpu *gpu, const PvGpuCall *calls, uint32_t count, PvError *error);

// The begin of a step's block: CxStep of cx_launch.h.
typedef struct {
    int64_t batch;
    uint32_t seed[2];
    struct {
        uint32_t draw, hash;
    } stream[];
} PvGpuNumbers;

// ---- cuda_room.c ----

enum { PV_GPU_SPACING = 64 }; // bytes from one output of settings to the next
// Parameters, gradients and the arena are there for a step.
bool pv_gpu_room(PvGpu *gpu, const PvExecStep *step, PvError *error);

// ---- cuda_module.c ----

// "sm_80, sm_90a, PTX of 80": what the images of a model are for. malloc'ed.
char *pv_cuda_targets(const PvCuda *cuda);
// Every kernel has an image that this GPU takes.
bool pv_cuda_check(const PvModel *model, const PvDevice *device, PvError *error);
// What computes kernel `index` on this GPU: of the model, and behind those of PvCuda.
const PvCudaKernel *pv_gpu_kernel(const PvGpu *gpu, uint32_t index, const char **name);
const PvGpuFunctions *pv_gpu_functions(PvGpu *gpu, uint32_t index, PvError *error);

// ---- cuda_recipe.c ----

// One function of a launch.
typedef struct {
    CUfunction fn;
    uint32_t kernel, launch; // index of pv_gpu_kernel; of the plan's launches
    uint32_t blocks, threads, shared;
    size_t params; // offset of its parameter in PvRecipe.params
    const struct PvLtProduct *product; // cuBLASLt computes it; NULL: fn does
} PvGpuItem;

struct PvRecipe {
    PvRecipe *next;
    const PvPlan *plan; // with batch, settings and io: what it was made for. NULL: calls of
                        // pv_gpu_calls; io is then what they are called with
    int64_t batch;
    bool settings;
    uint64_t *io;
    uint32_t io_count;
    PvGpuItem *items;
    size_t item_count, item_capacity;
    char *params;
    size_t param_bytes, param_capacity;
    int64_t workspace; // bytes
    int64_t runs;
    CUgraphExec graph;
};

// What a launch's parameter begins with, as CxHead of cx_launch.h.
typedef struct {
    uint32_t first[PV_MAX_SEGMENTS + 1], segments;
    uint64_t work[PV_MAX_SEGMENTS];
    uint64_t step, counters;
} PvLaunchHead;
enum { PV_COUNTERS = 1024 }; // 32-bit words of a segment, which launches find and leave 0

// What follows the arguments of kernels with tensor maps, one a segment: CxMaps.
typedef struct {
    _Alignas(64) uint64_t map[PV_CUDA_MAPS][16];
    uint32_t number[PV_CUDA_NUMBERS];
} PvLaunchMaps;

// Adds the phases of a launch. args: resolved, of all segments.
// Workspace of a launch, as in pv_recipe_add.
int64_t pv_launch_workspace(const PvCudaKernel *cuda, uint32_t segments, const int64_t *args,
                            uint32_t arg_count, PvCudaGrid grids[PV_MAX_SEGMENTS]);
bool pv_recipe_add(PvGpu *gpu, PvRecipe *recipe, const PvGpuStep *step, uint32_t kernel,
                   uint32_t launch, uint32_t segments, const int64_t *args, uint32_t arg_count,
                   PvError *error);
// All are added: makes the workspace large enough and puts its address into the parameters. May
// drop the other recipes.
bool pv_recipe_finish(PvGpu *gpu, PvRecipe *recipe, PvError *error);
void pv_recipe_free(PvGpu *gpu, PvRecipe *recipe);
void pv_gpu_drop_recipes(PvGpu *gpu); // waits for the work
// The arguments of an item.
const int64_t *pv_item_args(const PvRecipe *recipe, const PvGpuItem *item);

#endif
