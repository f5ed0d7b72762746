/* What a kernel of the CUDA target is given: one parameter, a CxLaunch of its argument struct.
 *
 * Grids have one dimension. A launch has one or more segments, independent problems of one kernel,
 * whose blocks follow one another; cx_segment tells a block its segment and its number there. A
 * kernel that never has more than one is compiled with CX_SEGMENTS 1. Some kernels work in phases,
 * functions NAME, NAME_1, NAME_2 launched one after the other with the same arguments, which may
 * hand on data in `work`. The layout is runtime/cuda_exec.c's as well.
 */
#pragma once
#include "cx.h"

#include "kernel_args.h"
#include "storage.h"

#ifndef CX_SEGMENTS
#define CX_SEGMENTS 8
#endif

// Numbers of the step, in device memory; what random numbers are drawn from.
struct CxStream {
    u32 draw, hash; // counter words: the present draw, the hash of the stream's name
};
struct CxStep {
    int64_t batch;
    u32 seed[2]; // key: low, high
    CxStream stream[1]; // by number of the stream
};

struct CxHead {
    u32 first[8 + 1];     // block at which each segment begins; [segments]: all
    u32 segments;
    u8 *work[8];          // of each segment: device memory of this launch, 256-byte aligned
    const CxStep *step;
    u32 *counters;        // CX_COUNTERS of each segment: 0, and to be left so (atomicInc)
};
enum { CX_COUNTERS = 1024 };
// Most segments whose arguments fit into a parameter of 4 KB.
CX_FN constexpr int cx_most_segments(int bytes)
{
    return (4096 - (int)sizeof(CxHead)) / bytes >= CX_SEGMENTS ? CX_SEGMENTS
           : (4096 - (int)sizeof(CxHead)) / bytes > 1 ? (4096 - (int)sizeof(CxHead)) / bytes
                                                      : 1;
}
template <typename Args, int segments = cx_most_segments(sizeof(Args))> struct CxLaunch {
    CxHead head;
    Args args[segments];
};

// Kernels that read by tensor maps: those of each segment, and what its shape function computed.
struct CxMaps {
    cx_tmap map[2];
    u32 number[16];
};
template <typename Args, int segments> struct CxMapLaunch {
    CxHead head;
    Args args[segments];
    CxMaps maps[segments];
};

CX_FN u32 cx_segment(const CxHead &head, u32 *block)
{
    u32 segment = 0;
    if (CX_SEGMENTS > 1)
        while (segment + 1 < head.segments && blockIdx.x >= head.first[segment + 1])
            segment++;
    *block = blockIdx.x - head.first[segment];
    return segment;
}

CX_FN float cx_real(int64_t bits) // a number of an argument struct: the bits of a double
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return (float)value;
}
