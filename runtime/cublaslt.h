// Matrix products by NVIDIA's cuBLASLt, opened at run time, in place of our own kernels where it is
// faster: own declarations of what is called, no header is needed.
//
// A product is told by its shape: sizes, strides, storage, alignment, whether it has a bias and a
// residual. The first time a shape is met, our kernel and the first algorithms that cuBLASLt
// proposes are run on numbers of our own and timed by events; one whose results differ from our
// kernel's is not taken. What was faster is kept in a file, by device and version of the library,
// so that later runs choose the same, and have the same bits.
#ifndef PV_CUBLASLT_H
#define PV_CUBLASLT_H

#include "codegen/kernel_args.h"
#include "runtime/device.h"

typedef struct PvLt PvLt;
typedef struct PvLtProduct PvLtProduct; // of one shape

// Our own kernel for a product: is queued on `work`. False: it could not be.
typedef bool PvLtOwn(void *context, const GemmArgs *args);

// PVDM_CUBLASLT, else libcublasLt.so.13 or .12, of the linker or the toolkit. NULL: there is none
// that can be used, or the device is the emulator and PVDM_CUBLASLT is not set; the error says why.
PvLt *pv_lt_open(PvDevice *device, PvError *error);
void pv_lt_close(PvLt *lt); // NULL is fine

// What computes such a product; NULL: our own kernel does.
PvLtProduct *pv_lt_choose(PvLt *lt, const GemmArgs *args, PvLtOwn *own, void *context);
enum { PV_LT_WORKSPACE = 32 << 20 };
int64_t pv_lt_workspace(const PvLtProduct *product); // bytes, at most PV_LT_WORKSPACE
// Queues it. 0, or an error of cuBLASLt's.
int pv_lt_run(const PvLtProduct *product, const GemmArgs *args, CUdeviceptr work, CUstream stream);

#endif
