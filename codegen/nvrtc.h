/* NVRTC by dlopen: CUDA C text to cubins, without a GPU and without NVIDIA's headers. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

typedef struct NvrtcHeader {
    const char *name, *text; // what `#include "name"` gives
} NvrtcHeader;

typedef struct NvrtcJob {
    const char *name, *text;    // of the kernel file
    const char *arch;           // "sm_90a"; "compute_80": PTX only
    bool wants_ptx;             // beside the cubin, from the same compilation
    const char *const *options; // NULL after the last, or NULL
    const NvrtcHeader *headers;
    int header_count;
    size_t weight; // the most is compiled first
    // PTX of the same text for an older architecture, or the job that makes it, or neither: it is
    // assembled, if it can be, in place of the text
    const char *older_ptx;
    const struct NvrtcJob *older;
    bool assembled; // it was; set by nvrtc_compile as everything below
    bool done;   // compiled
    char *log;   // the compiler's messages: empty but for ptxas' report when all is well
    void *cubin; // to be freed by nvrtc_free_job
    size_t cubin_bytes;
    char *ptx;        // with a 0 at its end
    size_t ptx_bytes; // that 0 included
    double seconds; // of processor time
} NvrtcJob;

// Opens the library once. NULL on success, else what was looked for and what to install.
const char *nvrtc_open(void);
void nvrtc_version(int *major, int *minor); // after nvrtc_open
// Compiles all jobs on up to `threads` threads, each behind its older one. True if every one of
// them was compiled.
bool nvrtc_compile(NvrtcJob *jobs, int count, int threads);
// True if the log has a warning (of the compiler or ptxas), a spill or a stack frame.
bool nvrtc_log_warns(const char *log);
void nvrtc_free_job(NvrtcJob *job);

/* ptx.c */
// A program whose kernels are those of a PTX text, malloc'ed. NULL: it is more than kernels of one
// parameter and external shared memory.
char *ptx_program(const char *ptx);
