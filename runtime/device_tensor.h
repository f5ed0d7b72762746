// What tensors that were never on a device call of those that were (device_tensor.c).
#ifndef PV_DEVICE_TENSOR_H
#define PV_DEVICE_TENSOR_H

#include "runtime/tensor.h"

// Brings the data to the host and waits.
bool pv_device_copy_fetch(PvTensor *tensor, PvError *error);
// The host is about to write all of the data: waits until an upload that still reads it is done.
bool pv_device_copy_forget(PvTensor *tensor, PvError *error);
// Gives up what the tensor has on a device, and its pinned data.
void pv_device_copy_free(PvTensor *tensor);

#endif
