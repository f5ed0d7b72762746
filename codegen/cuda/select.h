/* Which CUDA kernel computes a launch: at compile time, from the launch's arguments.
 *
 * For each kernel of the library ("pv_conv") there is one function here. It sees the arguments as
 * the plan has them (numbers that depend on the batch have c != 0) and says which template of this
 * folder to instantiate, with which definitions. Equal choices are one kernel. The shape function
 * that it names is linked into executables (shape_*.c here; runtime/pvdm.h has the types).
 */
#ifndef PVDMC_CUDA_SELECT_H
#define PVDMC_CUDA_SELECT_H

#include "codegen/kernel_args.h"
#include "compiler/plan.h"

typedef struct {
    const char *file;            // "conv_f32.cu"; it defines CX_NAME, CX_NAME_1, ...
    const char *definitions;     // "CONV_ACT=1 CONV_TILE=64", in the plan's arena; may be ""
    const char *name;            // what it computes: "conv3x3_silu"
    const char *shape;           // "pv_shape_conv"
    uint32_t phases;
    uint32_t threads[PV_MAX_PHASES], shared[PV_MAX_PHASES];
    int32_t baked[PV_CUDA_BAKED];
    uint32_t loads_16, stores_16;    // instructions of 16 bytes that it must have at least
    uint32_t segments;               // that it takes; 0: 1 or PV_MAX_SEGMENTS, by its arguments
    uint32_t maps;                   // as in PvCudaKernel
    uint32_t resident[PV_MAX_PHASES];
    bool counts;                     // blocks count themselves with an atomic (CxHead.counters)
} CudaChoice;

// Addresses are given modulo this, without their buffers: launches that differ in nothing else ask
// once (codegen/cuda_choose.c).
enum { CUDA_KNOWN_ALIGNMENT = 256 };

typedef struct {
    Arena *arena;
    const char *symbol;          // "pv_conv"
    const PlanArg *args;         // of a segment that stands for all: cuda_common_args
    uint32_t arg_count;          // of one segment
    const PlanArg *all;          // of all segments, one after the other; NULL: there is only one
    uint32_t segments;
} CudaLaunch;

// Arguments that stand for those of all segments, `count` each: numbers are the first's; an address
// is there if any segment has it, with the alignment that all have.
static inline void cuda_common_args(const PlanArg *args, uint32_t segments, uint32_t count,
                                    PlanArg *common)
{
    for (uint32_t i = 0; i < count; i++) {
        common[i] = args[i];
        for (uint32_t segment = 1; segment < segments; segment++) {
            const PlanArg *arg = &args[segment * count + i];
            if (arg->space == PV_VALUE)
                continue;
            if (common[i].space == PV_VALUE)
                common[i] = *arg;
            common[i].a |= arg->a;
            common[i].c |= arg->c;
        }
    }
}

static inline bool cuda_is_number(const CudaLaunch *launch, size_t index)   // the same at any batch
{
    return launch->args[index].space == PV_VALUE && launch->args[index].c == 0;
}
static inline int64_t cuda_number(const CudaLaunch *launch, size_t index)   // at batch 1
{
    return launch->args[index].a + launch->args[index].c;
}
static inline bool cuda_is_there(const CudaLaunch *launch, size_t index)    // an address, not 0
{
    return launch->args[index].space != PV_VALUE;
}
// The address is a multiple of `bytes` (a power of two up to 16) at any batch.
static inline bool cuda_is_aligned(const CudaLaunch *launch, size_t index, int64_t bytes)
{
    return launch->args[index].a % bytes == 0 && launch->args[index].c % bytes == 0;
}

// false: there is none for these arguments (a bug of the compiler: templates are general).
bool cuda_select(const CudaLaunch *launch, CudaChoice *choice);             // select.c: by symbol

// A kernel for sm_90a that computes it faster than cuda_select's: NULL; else why there is none, ""
// for what is no product.
const char *cuda_select_90a(const CudaLaunch *launch, CudaChoice *choice);  // select_wgmma.c

bool cuda_select_gemm(const CudaLaunch *launch, CudaChoice *choice);        // select_gemm.c
bool cuda_select_conv(const CudaLaunch *launch, CudaChoice *choice);        // select_conv.c
bool cuda_select_attention(const CudaLaunch *launch, CudaChoice *choice);   // select_attention.c
// select_norm.c: norms, their gradients, softmax
bool cuda_select_norm(const CudaLaunch *launch, CudaChoice *choice);
// select_move.c: reduce, copy, fill, pick, gather, random
bool cuda_select_move(const CudaLaunch *launch, CudaChoice *choice);

// Kernels that the runtime launches by name: the optimizer and the like (the end of kernel_args.h).
typedef struct {
    const char *name;            // "adamw"
    CudaChoice choice;
} CudaRuntimeKernel;
const CudaRuntimeKernel *cuda_runtime_kernels(uint32_t *count);             // select_runtime.c

#endif
