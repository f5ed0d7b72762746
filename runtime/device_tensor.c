// Where a tensor's data is: on the host, on a device, or on both. See device.h and tensor.h.
//
// A tensor has one host copy and at most one device copy. `stale` says that the host's is older,
// `fresh` that the device's is right. Pinned tensors are inputs that come again and again: while a
// step reads the device's copy of one, the next is filled on the host and sent over the stream
// `copies`; the event `sent` keeps the work behind the copy, `used` the copy behind the work.
#include "runtime/device_tensor.h"

#include <stdlib.h>

#include "runtime/device.h"

struct PvDeviceCopy {
    PvDevice *device;
    CUdeviceptr at;
    bool lent; // the memory is someone else's
    bool fresh;
    bool pinned, sent_once;
    CUevent sent, used; // of pinned ones
};

static struct PvDeviceCopy *copy_new(PvTensor *tensor, PvDevice *device, PvError *error)
{
    struct PvDeviceCopy *copy = pv_try_alloc(sizeof *copy, "a tensor", error);
    if (!copy)
        return NULL;
    copy->device = device;
    tensor->copy = copy;
    return copy;
}

static bool copy_alloc(PvTensor *tensor, PvError *error)
{
    struct PvDeviceCopy *copy = tensor->copy;
    return copy->at || pv_device_alloc(copy->device, tensor->bytes, "a tensor", &copy->at, error);
}

static PvTensor *bare_of(const PvType *type, int64_t batch, PvError *error)
{
    int64_t dim[PV_MAX_RANK];
    pv_type_dims(type, batch, dim);
    return pv_tensor_bare(type->dtype, type->rank, dim, error);
}

PvTensor *pv_tensor_at(PvDevice *device, const PvType *type, int64_t batch, CUdeviceptr at,
                       PvError *error)
{
    PvTensor *tensor = bare_of(type, batch, error);
    if (!tensor || !copy_new(tensor, device, error)) {
        free(tensor);
        return NULL;
    }
    tensor->copy->at = at;
    tensor->copy->lent = at != 0;
    pv_tensor_device_wrote(tensor);
    return tensor;
}

PvTensor *pv_tensor_on(PvDevice *device, const PvType *type, int64_t batch, PvError *error)
{
    PvTensor *tensor = pv_tensor_at(device, type, batch, 0, error);
    if (!tensor || copy_alloc(tensor, error))
        return tensor;
    pv_tensor_drop(tensor);
    return NULL;
}

// The events of a pinned tensor; the first copy waits for all work queued so far, which may still
// use the memory.
static bool pin(PvTensor *tensor, PvError *error)
{
    struct PvDeviceCopy *copy = tensor->copy;
    const PvDriver *driver = copy->device->driver;
    copy->pinned = true;
    int result = driver->host_alloc(&tensor->data, (size_t)tensor->bytes + 64, 0);
    if (result != PV_CUDA_OK)
        return pv_driver_error(driver, error, result, "no pinned memory for an input");
    return pv_device_event(copy->device, &copy->sent, error) &&
           pv_device_event(copy->device, &copy->used, error) && copy_alloc(tensor, error) &&
           pv_tensor_device_read(tensor, error);
}

PvTensor *pv_tensor_pinned(PvDevice *device, const PvType *type, int64_t batch, PvError *error)
{
    PvTensor *tensor = bare_of(type, batch, error);
    if (!tensor || !copy_new(tensor, device, error)) {
        free(tensor);
        return NULL;
    }
    if (pin(tensor, error))
        return tensor;
    pv_tensor_drop(tensor);
    return NULL;
}

// Over `copies`: behind the last work that read it, before the work queued next.
static bool send_pinned(PvTensor *tensor, PvError *error)
{
    struct PvDeviceCopy *copy = tensor->copy;
    PvDevice *device = copy->device;
    const PvDriver *driver = device->driver;
    int result = driver->stream_wait_event(device->copies, copy->used, 0);
    if (result == PV_CUDA_OK)
        result = driver->to_device(copy->at, tensor->data, (size_t)tensor->bytes, device->copies);
    if (result == PV_CUDA_OK)
        result = driver->event_record(copy->sent, device->copies);
    if (result == PV_CUDA_OK)
        result = driver->stream_wait_event(device->work, copy->sent, 0);
    copy->sent_once = true;
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

bool pv_tensor_place(PvTensor *tensor, PvDevice *device, CUdeviceptr *at, PvError *error)
{
    if ((!tensor->copy && !copy_new(tensor, device, error)) || !copy_alloc(tensor, error))
        return false;
    *at = tensor->copy->at;
    return true;
}

bool pv_tensor_upload(PvTensor *tensor, PvDevice *device, CUdeviceptr *at, PvError *error)
{
    if (!pv_tensor_place(tensor, device, at, error))
        return false;
    struct PvDeviceCopy *copy = tensor->copy;
    if (copy->fresh)
        return true;
    copy->fresh = true;
    return copy->pinned ? send_pinned(tensor, error)
                        : pv_device_upload(device, device->work, copy->at, tensor->data,
                                           tensor->bytes, error);
}

void pv_tensor_device_wrote(PvTensor *tensor)
{
    tensor->copy->fresh = true;
    tensor->stale = true;
}

bool pv_tensor_device_read(PvTensor *tensor, PvError *error)
{
    struct PvDeviceCopy *copy = tensor->copy;
    if (!copy || !copy->pinned)
        return true;
    int result = copy->device->driver->event_record(copy->used, copy->device->work);
    return result == PV_CUDA_OK || pv_device_fault(copy->device, result, error);
}

bool pv_device_copy_fetch(PvTensor *tensor, PvError *error)
{
    struct PvDeviceCopy *copy = tensor->copy;
    if (!tensor->data && !pv_tensor_make_room(tensor, error))
        return false;
    if (!pv_device_download(copy->device, copy->device->work, tensor->data, copy->at, tensor->bytes,
                            error))
        return false;
    tensor->stale = false;
    return true;
}

bool pv_device_copy_forget(PvTensor *tensor, PvError *error)
{
    struct PvDeviceCopy *copy = tensor->copy;
    if (!tensor->data && !pv_tensor_make_room(tensor, error))
        return false;
    tensor->stale = false;
    copy->fresh = false;
    if (!copy->sent_once)
        return true;
    int result = copy->device->driver->event_wait(copy->sent);
    return result == PV_CUDA_OK || pv_device_fault(copy->device, result, error);
}

void pv_device_copy_free(PvTensor *tensor)
{
    struct PvDeviceCopy *copy = tensor->copy;
    if (!copy)
        return;
    const PvDriver *driver = copy->device->driver;
    if (copy->pinned) {
        if (copy->sent_once)
            driver->event_wait(copy->sent);
        if (tensor->data)
            driver->host_release(tensor->data);
        if (copy->sent)
            driver->event_destroy(copy->sent);
        if (copy->used)
            driver->event_destroy(copy->used);
        tensor->data = NULL;
    }
    if (!copy->lent)
        pv_device_free(copy->device, copy->at, tensor->bytes);
    free(copy);
    tensor->copy = NULL;
}
