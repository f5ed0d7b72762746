/* What pvdmc does for one launch, for kernel_case.cc: the choice, its text, and NVRTC's verdict. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "runtime/pvdm.h"

typedef struct {
    char *symbol, *file, *shape;
    char *text; // of the program
    uint32_t phases, threads[PV_MAX_PHASES], shared[PV_MAX_PHASES];
    int32_t baked[PV_CUDA_BAKED];
    uint32_t segments; // 0: by the arguments
    uint32_t maps, resident[PV_MAX_PHASES];
    bool on_90a; // it is for sm_90a alone
} KernelChoice;

// args: of all segments, arg_count each. on_90a: what only sm_90a can run. false: there is no
// kernel for them.
bool kernel_choose(const char *symbol, const PvArg *args, uint32_t arg_count, uint32_t segments,
                   bool on_90a, KernelChoice *choice);
struct NvrtcJob;
// What NVRTC is given to compile the text for an architecture.
void kernel_job(const KernelChoice *choice, const char *root, const char *arch,
                struct NvrtcJob *job);
// NULL: the text compiles for sm_80 and sm_90a, or for sm_90a alone (or `folder`/key.ok says that
// it did, or there is no NVRTC); else what is wrong. With PVDM_FIGURES in the environment registers
// and the like are printed.
const char *kernel_compiles(const KernelChoice *choice, const char *root, const char *stamp);
