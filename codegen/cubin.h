/* What a cubin says of its kernels, read without any NVIDIA tool. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum { CUBIN_CLASSES = 24, CUBIN_NAME = 128 };

typedef struct CubinKernel {
    char name[CUBIN_NAME];
    int registers;     // a thread
    int stack;         // bytes of local memory a thread, spills included
    int static_shared; // bytes
    int max_threads;   // from __launch_bounds__, 0: not given
    size_t code_bytes;
    int count[CUBIN_CLASSES]; // instructions of each class of cubin_classes
} CubinKernel;

extern const char *const cubin_classes[CUBIN_CLASSES]; // names, NULL after the last

// Reads up to `most` kernels of a cubin of `bytes` bytes; *arch becomes 80, 90, ... Returns how
// many there are, -1 if the bytes are no cubin.
int cubin_read(const void *cubin, size_t bytes, int *arch, CubinKernel *kernels, int most);
int cubin_count(const CubinKernel *kernel, const char *class_name); // 0 for an unknown class
// mma.sync is kept busy: at least 2.5 of it a ldmatrix, so that fragments serve several products.
bool cubin_feeds_mma(const CubinKernel *kernel);
// Blocks that fit a multiprocessor at once; *limit becomes what limits them. None, if a cubin of
// sm_80 does not fit sm_86 and sm_89, which run it too and have 100 KB of shared memory.
int cubin_occupancy(const CubinKernel *kernel, int arch, int threads, int dynamic_shared,
                    const char **limit);
