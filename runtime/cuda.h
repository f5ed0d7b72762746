// The CUDA driver, opened at run time: own declarations of the few types and functions of
// libcuda.so.1 that the runtime calls, the same in CUDA 12 and 13. No header of NVIDIA's is needed.
//
// PV_DRIVER_FUNCTIONS is the one list: F(symbol of the library, member, parameters). All return 0
// or an error number (CUresult).
#ifndef PV_CUDA_H
#define PV_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/error.h"
#include "runtime/pvdm.h"

typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

enum {
    PV_CUDA_OK = 0,
    PV_CUDA_OUT_OF_MEMORY = 2,
    PV_CUDA_NO_DEVICE = 100,
    PV_CUDA_INVALID_IMAGE = 200,
    PV_CUDA_NO_BINARY = 209,
    PV_CUDA_INVALID_PTX = 218,
    PV_CUDA_UNSUPPORTED_PTX = 222,
    PV_CUDA_JIT_COMPILER_NOT_FOUND = 221,
    PV_CUDA_ILLEGAL_ADDRESS = 700, // the first of errors that stick to a context, but for the next
    PV_CUDA_OUT_OF_RESOURCES = 701,
    PV_CUDA_LAUNCH_FAILED = 719,
    PV_CUDA_DRIVER_MISMATCH = 803,
};
// Attributes and flags, by their numbers in the driver's interface.
enum {
    PV_CUDA_CAPABILITY_MAJOR = 75, // cuDeviceGetAttribute
    PV_CUDA_CAPABILITY_MINOR = 76,
    PV_CUDA_MULTIPROCESSORS = 16,
    PV_CUDA_DYNAMIC_SHARED = 8,      // cuFuncSetAttribute
    PV_CUDA_STREAM_NON_BLOCKING = 1, // cuStreamCreate
    PV_CUDA_EVENT_DEFAULT = 0,       // cuEventCreate
    PV_CUDA_EVENT_NO_TIMING = 2,
    PV_CUDA_CAPTURE_THREAD_LOCAL = 1, // cuStreamBeginCapture
    PV_CUDA_MAP_16 = 1,               // cuTensorMapEncodeTiled: words of 16 bits, that are moved
    PV_CUDA_MAP_SWIZZLE_128 = 3,
    PV_CUDA_MAP_L2_256 = 3,           // sectors of L2 that a miss brings
};
enum { PV_CUDA_OLDEST = 12000 }; // version of the interface that the driver must have

#define PV_DRIVER_FUNCTIONS(F)                                                                     \
    F(cuInit, init, (unsigned flags))                                                              \
    F(cuDriverGetVersion, version, (int *version))                                                 \
    F(cuGetErrorName, error_name, (int error, const char **text))                                  \
    F(cuGetErrorString, error_string, (int error, const char **text))                              \
    F(cuDeviceGetCount, device_count, (int *count))                                                \
    F(cuDeviceGet, device_get, (CUdevice * device, int index))                                     \
    F(cuDeviceGetName, device_name, (char *name, int size, CUdevice device))                       \
    F(cuDeviceGetAttribute, device_attribute, (int *value, int attribute, CUdevice device))        \
    F(cuDevicePrimaryCtxRetain, context_retain, (CUcontext * context, CUdevice device))            \
    F(cuDevicePrimaryCtxRelease_v2, context_release, (CUdevice device))                            \
    F(cuCtxSetCurrent, context_set, (CUcontext context))                                           \
    F(cuMemGetInfo_v2, memory_info, (size_t * free_bytes, size_t * all_bytes))                     \
    F(cuMemAlloc_v2, alloc, (CUdeviceptr * at, size_t bytes))                                      \
    F(cuMemFree_v2, release, (CUdeviceptr at))                                                     \
    F(cuMemHostAlloc, host_alloc, (void **at, size_t bytes, unsigned flags))                       \
    F(cuMemFreeHost, host_release, (void *at))                                                     \
    F(cuMemcpyHtoDAsync_v2, to_device,                                                             \
      (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))                           \
    F(cuMemcpyDtoHAsync_v2, to_host, (void *to, CUdeviceptr from, size_t bytes, CUstream stream))  \
    F(cuMemcpyDtoDAsync_v2, copy,                                                                  \
      (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                           \
    F(cuMemsetD8Async, fill, (CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream)) \
    F(cuStreamCreate, stream_create, (CUstream * stream, unsigned flags))                          \
    F(cuStreamDestroy_v2, stream_destroy, (CUstream stream))                                       \
    F(cuStreamSynchronize, stream_wait, (CUstream stream))                                         \
    F(cuStreamWaitEvent, stream_wait_event, (CUstream stream, CUevent event, unsigned flags))      \
    F(cuEventCreate, event_create, (CUevent * event, unsigned flags))                              \
    F(cuEventDestroy_v2, event_destroy, (CUevent event))                                           \
    F(cuEventRecord, event_record, (CUevent event, CUstream stream))                               \
    F(cuEventSynchronize, event_wait, (CUevent event))                                             \
    F(cuEventElapsedTime, event_elapsed, (float *milliseconds, CUevent from, CUevent to))          \
    F(cuModuleLoadData, module_load, (CUmodule * module, const void *image))                       \
    F(cuModuleUnload, module_unload, (CUmodule module))                                            \
    F(cuModuleGetFunction, module_function, (CUfunction * fn, CUmodule module, const char *name))  \
    F(cuTensorMapEncodeTiled, encode_map,                                                          \
      (void *map, int type, unsigned rank, void *address, const uint64_t *sizes,                   \
       const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,        \
       int swizzle, int l2, int fill))                                                             \
    F(cuFuncSetAttribute, function_attribute, (CUfunction fn, int attribute, int value))           \
    F(cuLaunchKernel, launch,                                                                      \
      (CUfunction fn, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,         \
       unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **params,        \
       void **extra))                                                                              \
    F(cuStreamBeginCapture_v2, capture_begin, (CUstream stream, int mode))                         \
    F(cuStreamEndCapture, capture_end, (CUstream stream, CUgraph * graph))                         \
    F(cuGraphInstantiateWithFlags, graph_instantiate,                                              \
      (CUgraphExec * graph_exec, CUgraph graph, unsigned long long flags))                         \
    F(cuGraphLaunch, graph_launch, (CUgraphExec graph_exec, CUstream stream))                      \
    F(cuGraphExecDestroy, graph_exec_destroy, (CUgraphExec graph_exec))                            \
    F(cuGraphDestroy, graph_destroy, (CUgraph graph))

typedef struct {
#define PV_DRIVER_MEMBER(symbol, member, params) int(*member) params;
    PV_DRIVER_FUNCTIONS(PV_DRIVER_MEMBER)
#undef PV_DRIVER_MEMBER
    int is; // version of the interface: 12040 is 12.4
} PvDriver;

// Encodes a map into the 128 bytes at `to` (a multiple of 64) that kernels take. What the driver
// calls a box is what it spans in the tensor. Returns the driver's result.
static inline int pv_encode_map(const PvDriver *driver, void *to, const PvTensorMap *map)
{
    uint32_t step[5], span[5];
    for (int i = 0; i < 5; i++) {
        step[i] = map->step[i] > 1 ? map->step[i] : 1;
        span[i] = map->box[i] * step[i];
    }
    return driver->encode_map(to, PV_CUDA_MAP_16, map->rank, (void *)(uintptr_t)map->address,
                              map->size, map->stride, span, step, 0, PV_CUDA_MAP_SWIZZLE_128,
                              PV_CUDA_MAP_L2_256, 0);
}

// Opens the driver (libcuda.so.1, or PVDM_CUDA_DRIVER) and starts it; once a process. NULL with an
// error: there is none, it is too old, it finds no device.
const PvDriver *pv_driver_open(PvError *error);
bool pv_driver_is_there(void); // pv_driver_open found a library
// An error (PV_MACHINE) for what a function of the driver gave: "WHAT: TEXT (CUDA_ERROR_NAME)".
// Always false.
bool pv_driver_error(const PvDriver *driver, PvError *error, int result, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
