/* The text of one program of CUDA kernels: templates of codegen/cuda, and emitted kernels. */
#ifndef PVDMC_CUDA_MODULE_H
#define PVDMC_CUDA_MODULE_H

#include "codegen/cuda/select.h"

typedef struct {
    const char *symbol;          // phase p > 0 is SYMBOL_p
    const char *file;            // the template that is included; NULL: emitted
    const char *definitions;     // "CONV_ACT=1 CONV_TILE=64"; set for this kernel only
    const char *text;            // emitted: what stands in its place, with CX_NAME as its name
    uint32_t phases;
    bool maps;                   // it is written in the words of cx_hopper.h
} CudaModuleKernel;

// Name of the kernel that a choice asks for: equal choices have equal names, others other ones.
const char *cuda_choice_symbol(Arena *arena, const CudaChoice *choice);
CudaModuleKernel cuda_module_kernel(Arena *arena, const CudaChoice *choice);

// The text of a program, malloc'ed. It includes "cx_launch.h" (and what else its kernels need)
// and the templates, by name; for the emulator it has a function SYMBOL__simt beside each
// kernel (CX_ENTRY).
char *cuda_module_text(const CudaModuleKernel *kernels, uint32_t count);

#endif
