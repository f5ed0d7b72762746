// Programs of CUDA kernels: their texts (cuda_program.c) and images (cuda_build.c).
#ifndef PVDMC_CUDA_BUILD_H
#define PVDMC_CUDA_BUILD_H

#include "codegen/codegen.h"
#include "codegen/nvrtc.h"

enum { MAX_SOURCES = 128 };

// The templates and headers that programs include, by name.
typedef struct {
    Arena *arena;
    NvrtcHeader files[MAX_SOURCES];
    uint32_t count;
} CudaSources;

typedef struct {
    const char *name;            // of its first kernel: "add_5f0c6d0b3f21.cu"
    const char *text;
    NvrtcHeader *headers;        // what it includes, directly or not
    uint32_t header_count;
    size_t weight;               // bytes that its kernels are written in: as its time, roughly
    CudaPlaces places;
} CudaProgram;

/* cuda_program.c */
// Reads the sources beside pvdmc. false: they are not there.
bool cuda_read_sources(Arena *arena, const char *home, CudaSources *sources);
// Spreads all kernels over programs and sets CudaKernel.module; the programs, *count of them.
CudaProgram *cuda_make_programs(Codegen *cg, const CudaSources *sources, uint32_t *count);
// What a program's images depend on beside the compiler: texts and names.
const char *cuda_program_key(Arena *arena, const CudaProgram *program, size_t *size);

#endif
