// A GPU: its streams, its memory, and what moves between it and the host.
//
// Three streams. `work` carries every kernel and every copy that kernels wait for, in order, so
// memory that is given back may be used again by later work at once. `copies` carries the inputs of
// steps to come; events keep it behind the work that still reads the old ones. `side` carries the
// few kernels whose results the host needs before the next work can be queued (settings of a step).
//
// All functions are called by one thread. Those that fail give an error of status PV_MACHINE.
#ifndef PV_DEVICE_H
#define PV_DEVICE_H

#include "runtime/cuda.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

typedef struct PvDevice {
    const PvDriver *driver;
    CUdevice number;
    CUcontext context;
    int index;
    char name[128];
    uint32_t arch; // compute capability * 10
    uint32_t multiprocessors;
    CUstream work, copies, side;
    char *doing;                // "denoise": what was queued last, for errors
    bool synchronous;           // PVDM_CUDA_SYNC=1: wait after each kernel, capture no graphs
    struct PvDeviceBlock *idle; // memory given back, the last first
    struct PvStaging *staging;
} PvDevice;

// The GPU of that index. Calls no kernel.
PvDevice *pv_device_open(int index, PvError *error);
void pv_device_close(PvDevice *device); // NULL is fine; what is queued is waited for
void pv_device_doing(PvDevice *device, const char *what);
PvMemoryFree pv_device_memory(const PvDevice *device); // idle blocks count as free

// Device memory, 256-byte aligned, not cleared; bytes may be 0. `what` names it in the error.
bool pv_device_alloc(PvDevice *device, int64_t bytes, const char *what, CUdeviceptr *at,
                     PvError *error);
void pv_device_free(PvDevice *device, CUdeviceptr at, int64_t bytes); // 0 is fine
// Gives idle blocks back to the driver; waits for the work.
void pv_device_trim(PvDevice *device);
// Queues a copy to the device; `from` may be changed when it returns.
bool pv_device_upload(PvDevice *device, CUstream stream, CUdeviceptr to, const void *from,
                      int64_t bytes, PvError *error);
// Copies to the host and waits.
bool pv_device_download(PvDevice *device, CUstream stream, void *to, CUdeviceptr from,
                        int64_t bytes, PvError *error);
bool pv_device_wait(PvDevice *device, CUstream stream, PvError *error);
// The error of a call of the driver that failed while something ran or was queued. Always false.
bool pv_device_fault(PvDevice *device, int result, PvError *error);
// Whether a result may be of something that was queued before what gave it: a fault of a kernel is
// told by whatever call comes next. The device's context is lost then, so nothing can be tried
// again in this process; the hint says what to do. It is always false.
bool pv_device_tells_late(const PvDevice *device, int result);
bool pv_device_hint(PvError *error);
bool pv_device_event(PvDevice *device, CUevent *event, PvError *error); // without timing

// ---- flat buffers that host and device both have: parameters, gradients, moments ----

// Elements of 4 bytes from byte `offset` on: `matrices` matrices, row-major on the host, each
// [rows, columns]; the device's lie by columns.
typedef struct {
    int64_t offset, matrices, rows, columns;
} PvMatrices;

// The bytes [lo, hi) of the host's buffer lie on the device at base + lo. Of the two copies the one
// that was written last is right; a copy is brought over when the other side is used.
typedef struct {
    const char *what;
    char *host;
    CUdeviceptr base, at; // at: what was allocated
    int64_t lo, hi;       // there is memory for
    int64_t want_lo, want_hi;
    bool host_new; // the host wrote since the device had it
    bool device_new;
    const PvMatrices *turns; // by offset; none crosses lo or hi
    uint32_t turn_count;
} PvMirror;

void pv_mirror_cover(PvMirror *mirror, int64_t lo, int64_t hi); // [lo, hi) will be used
// The device's copy is there and right. *moved (or NULL) is set when its address changed.
bool pv_mirror_to_device(PvDevice *device, PvMirror *mirror, bool *moved, PvError *error);
bool pv_mirror_to_host(PvDevice *device, PvMirror *mirror, PvError *error);
void pv_mirror_free(PvDevice *device, PvMirror *mirror);

// ---- tensors (tensor.h) ----

// A tensor whose data lies on the device alone, of unknown values.
PvTensor *pv_tensor_on(PvDevice *device, const PvType *type, int64_t batch, PvError *error);
// The same in memory that is someone else's and outlives it.
PvTensor *pv_tensor_at(PvDevice *device, const PvType *type, int64_t batch, CUdeviceptr at,
                       PvError *error);
// A tensor whose host data is pinned: its uploads go over `copies`, beside the work.
PvTensor *pv_tensor_pinned(PvDevice *device, const PvType *type, int64_t batch, PvError *error);
// The device has the tensor's data, or will when the work reaches what is queued next.
bool pv_tensor_upload(PvTensor *tensor, PvDevice *device, CUdeviceptr *at, PvError *error);
// Where the device will write the tensor, which it need not have had.
bool pv_tensor_place(PvTensor *tensor, PvDevice *device, CUdeviceptr *at, PvError *error);
// Work that writes the tensor, or that reads it, was queued.
void pv_tensor_device_wrote(PvTensor *tensor);
bool pv_tensor_device_read(PvTensor *tensor, PvError *error);

#endif
