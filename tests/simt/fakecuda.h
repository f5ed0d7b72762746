/* A CUDA driver for tests: libcuda's functions, backed by the emulator.
 *
 * The library out/PRESET/lib/libpvdm_fakecuda.so is opened in place of libcuda.so.1
 * (PVDM_CUDA_DRIVER). It has one device, "SIMT emulator", of capability 1000.0, whose programs are
 * shared objects with the functions KERNEL__simt (CX_ENTRY). It is stricter than a driver: sizes,
 * bounds, alignment and states are checked wherever the interface lets a caller err.
 *
 * Operations of a stream are queued. PVDM_FAKE_STREAMS says when they are carried out: `eager` at
 * once, `late` only when somebody waits for them, `random` in between, so that a wait that is
 * missing shows. A captured operation is only recorded; a graph's launch queues copies of what was
 * recorded.
 *
 * Environment: PVDM_FAKE_MEMORY (bytes of device memory), _VERSION, _DEVICES, _ARCH (80: capability
 * 8.0), _FAULT=n (the n-th launch fails with an illegal address), _STREAMS, _ORDER and _ASYNC (the
 * emulator's modes, by their first letters), _SEED, _THREADS (of the host), _RACE=0 (no checks of
 * instrumented programs), _PROTECT=1 (device memory faults when the host touches it), _TRACE=1 (a
 * line a launch), _DRY=1 (programs are those of GPUs, and their kernels compute nothing).
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#include "simt.h"

// name, number, text
#define FAKE_ERRORS(E)                                                                             \
    E(CUDA_SUCCESS, 0, "no error")                                                                 \
    E(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                             \
    E(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                \
    E(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                                       \
    E(CUDA_ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                             \
    E(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                    \
    E(CUDA_ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                             \
    E(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                                   \
    E(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution")             \
    E(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222,                                                     \
      "the provided PTX was compiled with an unsupported toolchain")                               \
    E(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                   \
    E(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                                         \
    E(CUDA_ERROR_NOT_READY, 600, "device not ready")                                               \
    E(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                 \
    E(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 701, "too many resources requested for launch")          \
    E(CUDA_ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                 \
    E(CUDA_ERROR_NOT_SUPPORTED, 801, "operation not supported")                                    \
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900,                                                  \
      "operation not permitted when stream is capturing")                                          \
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901,                                                  \
      "operation failed due to a previous error during capture")                                   \
    E(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903, "the capture was not initiated in this stream")    \
    E(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, 904, "capturing stream has unjoined work")               \
    E(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905,                                                    \
      "dependency created on uncaptured work in another stream")                                   \
    E(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906,                                                     \
      "operation would make the legacy stream depend on a capturing blocking stream")              \
    E(CUDA_ERROR_CAPTURED_EVENT, 907,                                                              \
      "operation not permitted on an event last recorded in a capturing stream")
enum CUresult {
#define FAKE_ERROR_NUMBER(name, number, text) name = number,
    FAKE_ERRORS(FAKE_ERROR_NUMBER)
#undef FAKE_ERROR_NUMBER
};

typedef unsigned long long CUdeviceptr;
typedef int CUdevice;
typedef std::function<void()> Operation;

struct Capture;
struct CUctx_st {
    int users;
};
struct CUstream_st {
    bool blocking;               // operations of the legacy stream wait for it
    std::deque<Operation> queue; // not carried out yet
    Capture *capture;            // that it records into
    bool unjoined;               // has work there that the first stream does not wait for
};
struct Capture {
    CUstream_st *origin;
    int mode; // 0 global, 1 thread-local, 2 relaxed
    std::thread::id thread;
    std::vector<Operation> nodes;
    bool broken;
};
// What an event's last record was; waits that are queued keep it alive.
struct Mark {
    CUstream_st *stream;
    bool done;
    double seconds;
    Capture *capture; // recorded while capturing: it stands for work of a graph
};
struct CUevent_st {
    bool timing;
    std::shared_ptr<Mark> mark; // null: never recorded
};
struct CUgraph_st {
    std::vector<Operation> nodes;
};
struct CUgraphExec_st {
    std::vector<Operation> nodes;
};
struct CUmod_st;
typedef CUctx_st *CUcontext;
typedef CUstream_st *CUstream;
typedef CUevent_st *CUevent;
typedef CUgraph_st *CUgraph;
typedef CUgraphExec_st *CUgraphExec;
typedef CUmod_st *CUmodule;

enum Timing { STREAMS_EAGER, STREAMS_LATE, STREAMS_RANDOM };
struct Driver {
    std::recursive_mutex lock;
    bool started;
    CUresult fault; // sticks: every later call gives it
    size_t memory;
    int devices, version, arch, timing, races, trace;
    bool protect, dry;
    long fault_at, launches;
    uint64_t random;
    CUctx_st context;
};
extern Driver driver;
extern thread_local CUctx_st *current_context;

// Stands at the top of a function: holds the lock, and finds whether the call may go on at all.
class Call
{
    std::lock_guard<std::recursive_mutex> held;

  public:
    CUresult error;
    enum Needs { LIBRARY, CONTEXT };
    explicit Call(Needs needs);
};
CUresult refuse(CUresult error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* fakecuda_memory.cc */
class OpenMemory // device memory may be touched while one lives
{
  public:
    OpenMemory();
    ~OpenMemory();
};
CUresult check_device_range(CUdeviceptr at, size_t bytes, const char *what);
bool is_pinned(const void *at, size_t bytes);
bool check_guards(void); // false: something wrote beside an allocation

/* fakecuda_stream.cc */
double now(void); // seconds
uint32_t random_number(void);
CUresult enqueue(CUstream stream, Operation operation); // or records it
void drain(CUstream stream);
void drain_all(void);
CUresult unsafe_while_capturing(void); // for calls that a capture forbids
