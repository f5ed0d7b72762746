// A GPU's streams and memory. See device.h.
//
// Memory that is given back is kept in a list and given out again to requests of (nearly) the same
// size, the last first, so a loop that makes and drops tensors sees the same few addresses, and
// graphs that were captured with them are found again.
//
// Small copies to the device go through a ring of pinned pages, so that the host need not wait for
// work that is queued before the copy, and may change the source at once.
#include "runtime/device.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256, STAGES = 4, STAGE_BYTES = 4 << 20 };

typedef struct PvDeviceBlock {
    struct PvDeviceBlock *next;
    CUdeviceptr at;
    int64_t bytes;
} PvDeviceBlock;

// A page of the ring; `done` is when its copies are, once the next one is in use.
typedef struct PvStaging {
    char *page[STAGES];
    CUevent done[STAGES];
    bool waits[STAGES];
    int now;
    int64_t used;
} PvStaging;

static int64_t block_bytes(int64_t bytes)
{
    return bytes < 1 ? ALIGNMENT : (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

// ---- opening ----

static bool find_device(PvDevice *device, PvError *error)
{
    const PvDriver *driver = device->driver;
    int count = 0, major = 0, minor = 0, multiprocessors = 0, index = device->index;
    int result = driver->device_count(&count);
    if (result == PV_CUDA_OK && index >= count)
        return pv_error(error, PV_MACHINE, "there is no GPU %d; this machine has %d, from 0 on",
                        index, count);
    if (result == PV_CUDA_OK)
        result = driver->device_get(&device->number, index);
    if (result == PV_CUDA_OK)
        result = driver->device_name(device->name, sizeof device->name, device->number);
    if (result == PV_CUDA_OK)
        result = driver->device_attribute(&major, PV_CUDA_CAPABILITY_MAJOR, device->number);
    if (result == PV_CUDA_OK)
        result = driver->device_attribute(&minor, PV_CUDA_CAPABILITY_MINOR, device->number);
    if (result == PV_CUDA_OK)
        result =
            driver->device_attribute(&multiprocessors, PV_CUDA_MULTIPROCESSORS, device->number);
    if (result == PV_CUDA_OK)
        result = driver->context_retain(&device->context, device->number);
    if (result == PV_CUDA_OK)
        result = driver->context_set(device->context);
    device->arch = (uint32_t)(10 * major + minor);
    device->multiprocessors = (uint32_t)multiprocessors;
    return result == PV_CUDA_OK || pv_driver_error(driver, error, result, "GPU %d", index);
}

static bool make_staging(PvDevice *device, PvError *error)
{
    PvStaging *staging = device->staging = pv_alloc(sizeof *staging);
    for (int i = 0; i < STAGES; i++) {
        void *page = NULL;
        int result = device->driver->host_alloc(&page, STAGE_BYTES, 0);
        if (result != PV_CUDA_OK)
            return pv_driver_error(device->driver, error, result, "no pinned memory");
        staging->page[i] = page;
        if (!pv_device_event(device, &staging->done[i], error))
            return false;
    }
    return true;
}

PvDevice *pv_device_open(int index, PvError *error)
{
    const PvDriver *driver = pv_driver_open(error);
    if (!driver)
        return NULL;
    PvDevice *device = pv_alloc(sizeof *device);
    const char *wait = getenv("PVDM_CUDA_SYNC");
    device->driver = driver;
    device->index = index;
    device->synchronous = wait && strcmp(wait, "1") == 0;
    CUstream *const streams[] = {&device->work, &device->copies, &device->side};
    bool good = find_device(device, error);
    for (size_t i = 0; good && i < sizeof streams / sizeof *streams; i++) {
        int result = driver->stream_create(streams[i], PV_CUDA_STREAM_NON_BLOCKING);
        good = result == PV_CUDA_OK || pv_driver_error(driver, error, result, "GPU %d", index);
    }
    if (good && make_staging(device, error))
        return device;
    pv_device_close(device);
    return NULL;
}

void pv_device_close(PvDevice *device)
{
    if (!device)
        return;
    const PvDriver *driver = device->driver;
    if (device->work)
        pv_device_trim(device);
    for (int i = 0; device->staging && i < STAGES; i++) {
        if (device->staging->page[i])
            driver->host_release(device->staging->page[i]);
        if (device->staging->done[i])
            driver->event_destroy(device->staging->done[i]);
    }
    CUstream streams[] = {device->work, device->copies, device->side};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
        if (streams[i])
            driver->stream_destroy(streams[i]);
    if (device->context)
        driver->context_release(device->number);
    free(device->staging);
    free(device->doing);
    free(device);
}

void pv_device_doing(PvDevice *device, const char *what)
{
    if (device->doing && strcmp(device->doing, what) == 0)
        return;
    free(device->doing);
    device->doing = pv_strdup(what);
}

bool pv_device_tells_late(const PvDevice *device, int result)
{
    return !device->synchronous && result >= PV_CUDA_ILLEGAL_ADDRESS &&
           result <= PV_CUDA_LAUNCH_FAILED && result != PV_CUDA_OUT_OF_RESOURCES;
}

bool pv_device_fault(PvDevice *device, int result, PvError *error)
{
    bool late = pv_device_tells_late(device, result);
    pv_driver_error(device->driver, error, result, "%s%s%s failed on GPU %d (%s)",
                    device->doing ? "a kernel of " : "a call",
                    device->doing ? device->doing : " of the driver",
                    late && device->doing ? ", or of what was queued before," : "", device->index,
                    device->name);
    return late && pv_device_hint(error);
}

bool pv_device_hint(PvError *error)
{
    return pv_error_hint(error,
                         "steps are repeatable: run again with PVDM_CUDA_SYNC=1, which waits after "
                         "every kernel and names the one that fails");
}

bool pv_device_event(PvDevice *device, CUevent *event, PvError *error)
{
    int result = device->driver->event_create(event, PV_CUDA_EVENT_NO_TIMING);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

bool pv_device_wait(PvDevice *device, CUstream stream, PvError *error)
{
    int result = device->driver->stream_wait(stream);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

// ---- memory ----

PvMemoryFree pv_device_memory(const PvDevice *device)
{
    size_t free_bytes = 0, all_bytes = 0;
    device->driver->memory_info(&free_bytes, &all_bytes);
    PvMemoryFree space = {(int64_t)free_bytes, "free on the GPU"};
    for (const PvDeviceBlock *block = device->idle; block; block = block->next)
        space.bytes += block->bytes;
    return space;
}

void pv_device_trim(PvDevice *device)
{
    if (device->idle) {
        device->driver->stream_wait(device->copies);
        device->driver->stream_wait(device->work);
    }
    while (device->idle) {
        PvDeviceBlock *block = device->idle;
        device->idle = block->next;
        device->driver->release(block->at);
        free(block);
    }
}

bool pv_device_alloc(PvDevice *device, int64_t bytes, const char *what, CUdeviceptr *at,
                     PvError *error)
{
    int64_t size = block_bytes(bytes);
    for (PvDeviceBlock **link = &device->idle; *link; link = &(*link)->next) {
        PvDeviceBlock *block = *link;
        if (block->bytes != size)
            continue;
        *at = block->at;
        *link = block->next;
        free(block);
        return true;
    }
    *at = 0;
    int result = device->driver->alloc(at, (size_t)size);
    if (result == PV_CUDA_OUT_OF_MEMORY && device->idle) {
        pv_device_trim(device);
        result = device->driver->alloc(at, (size_t)size);
    }
    if (result == PV_CUDA_OK)
        return true;
    char text[32], left[32];
    if (result != PV_CUDA_OUT_OF_MEMORY)
        return pv_device_fault(device, result, error);
    return pv_error(error, PV_MACHINE, "not enough memory on GPU %d (%s): %s for %s, %s are free",
                    device->index, device->name, pv_size_text(text, (double)size), what,
                    pv_size_text(left, (double)pv_device_memory(device).bytes));
}

void pv_device_free(PvDevice *device, CUdeviceptr at, int64_t bytes)
{
    if (!at)
        return;
    PvDeviceBlock *block = pv_alloc(sizeof *block);
    *block = (PvDeviceBlock){device->idle, at, block_bytes(bytes)};
    device->idle = block;
}

// ---- copies ----

// Room for `bytes` in the ring.
static char *stage(PvDevice *device, int64_t bytes, PvError *error)
{
    PvStaging *staging = device->staging;
    int64_t size = (bytes + 63) / 64 * 64;
    if (staging->used + size > STAGE_BYTES) {
        const PvDriver *driver = device->driver;
        int result = driver->stream_wait(device->side);
        if (result == PV_CUDA_OK)
            result = driver->event_record(staging->done[staging->now], device->work);
        staging->waits[staging->now] = true;
        staging->now = (staging->now + 1) % STAGES;
        staging->used = 0;
        if (result == PV_CUDA_OK && staging->waits[staging->now])
            result = driver->event_wait(staging->done[staging->now]);
        if (result != PV_CUDA_OK) {
            pv_device_fault(device, result, error);
            return NULL;
        }
    }
    char *at = staging->page[staging->now] + staging->used;
    staging->used += size;
    return at;
}

bool pv_device_upload(PvDevice *device, CUstream stream, CUdeviceptr to, const void *from,
                      int64_t bytes, PvError *error)
{
    if (bytes <= 0)
        return true;
    const void *source = from;
    if (bytes <= STAGE_BYTES) {
        char *staged = stage(device, bytes, error);
        if (!staged)
            return false;
        memcpy(staged, from, (size_t)bytes);
        source = staged;
    }
    int result = device->driver->to_device(to, source, (size_t)bytes, stream);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

bool pv_device_download(PvDevice *device, CUstream stream, void *to, CUdeviceptr from,
                        int64_t bytes, PvError *error)
{
    int result = bytes > 0 ? device->driver->to_host(to, from, (size_t)bytes, stream) : PV_CUDA_OK;
    if (result == PV_CUDA_OK)
        result = device->driver->stream_wait(stream);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

// ---- mirrors ----

void pv_mirror_cover(PvMirror *mirror, int64_t lo, int64_t hi)
{
    if (lo >= hi)
        return;
    bool first = mirror->want_lo == mirror->want_hi;
    mirror->want_lo = first || lo < mirror->want_lo ? lo : mirror->want_lo;
    mirror->want_hi = first || hi > mirror->want_hi ? hi : mirror->want_hi;
}

// Memory for what is wanted. What the device had newer goes to the host first.
static bool enlarge_mirror(PvDevice *device, PvMirror *mirror, PvError *error)
{
    int64_t bytes = mirror->want_hi - mirror->want_lo;
    bool had = mirror->at != 0;
    if (had && !pv_mirror_to_host(device, mirror, error))
        return false;
    pv_device_free(device, mirror->at, mirror->hi - mirror->lo);
    mirror->at = 0;
    if (had)
        pv_device_trim(device); // the old one is of no use to anybody else
    if (!pv_device_alloc(device, bytes, mirror->what, &mirror->at, error))
        return false;
    mirror->lo = mirror->want_lo;
    mirror->hi = mirror->want_hi;
    mirror->base = mirror->at - (CUdeviceptr)mirror->lo;
    mirror->host_new |= had;
    if (mirror->host_new)
        return true;
    int result = device->driver->fill(mirror->at, 0, (size_t)bytes, device->work);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

// Matrices [rows, columns] of `from` as [columns, rows] to `to`.
static void turn(int32_t *to, const int32_t *from, int64_t matrices, int64_t rows, int64_t columns)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < matrices; i++)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = 0; column < columns; column++)
                to[(i * columns + column) * rows + row] = from[(i * rows + row) * columns + column];
}

static int64_t turn_bytes(const PvMatrices *turn)
{
    return turn->matrices * turn->rows * turn->columns * (int64_t)sizeof(int32_t);
}

// Room for the largest of the mirror's matrices; NULL: there are none, or no memory (*good: false).
static int32_t *turn_room(const PvMirror *mirror, bool *good, PvError *error)
{
    int64_t most = 0;
    for (uint32_t i = 0; i < mirror->turn_count; i++)
        most = turn_bytes(&mirror->turns[i]) > most ? turn_bytes(&mirror->turns[i]) : most;
    int32_t *room = most > 0 ? pv_try_alloc((size_t)most, mirror->what, error) : NULL;
    *good = most == 0 || room;
    return room;
}

// The host's [lo, hi), turned where the device wants that.
static bool send_turned(PvDevice *device, const PvMirror *mirror, PvError *error)
{
    bool good;
    int32_t *room = turn_room(mirror, &good, error);
    int64_t at = mirror->lo;
    for (uint32_t i = 0; good && i < mirror->turn_count; i++) {
        const PvMatrices *one = &mirror->turns[i];
        if (one->offset < mirror->lo || one->offset >= mirror->hi)
            continue;
        turn(room, (const int32_t *)(const void *)(mirror->host + one->offset), one->matrices,
             one->rows, one->columns);
        good = pv_device_upload(device, device->work, mirror->base + (CUdeviceptr)at,
                                mirror->host + at, one->offset - at, error) &&
               pv_device_upload(device, device->work, mirror->base + (CUdeviceptr)one->offset, room,
                                turn_bytes(one), error);
        at = one->offset + turn_bytes(one);
    }
    good = good && pv_device_upload(device, device->work, mirror->base + (CUdeviceptr)at,
                                    mirror->host + at, mirror->hi - at, error);
    free(room);
    return good;
}

// What came from the device into the host's [lo, hi), turned back.
static bool turn_back(const PvMirror *mirror, PvError *error)
{
    bool good;
    int32_t *room = turn_room(mirror, &good, error);
    for (uint32_t i = 0; good && i < mirror->turn_count; i++) {
        const PvMatrices *one = &mirror->turns[i];
        if (one->offset < mirror->lo || one->offset >= mirror->hi)
            continue;
        int32_t *host = (int32_t *)(void *)(mirror->host + one->offset);
        memcpy(room, host, (size_t)turn_bytes(one));
        turn(host, room, one->matrices, one->columns, one->rows);
    }
    free(room);
    return good;
}

bool pv_mirror_to_device(PvDevice *device, PvMirror *mirror, bool *moved, PvError *error)
{
    if (mirror->want_lo == mirror->want_hi)
        return true;
    if (!mirror->at || mirror->want_lo < mirror->lo || mirror->want_hi > mirror->hi) {
        if (!enlarge_mirror(device, mirror, error))
            return false;
        if (moved)
            *moved = true;
    }
    if (!mirror->host_new)
        return true;
    mirror->host_new = false;
    return send_turned(device, mirror, error);
}

bool pv_mirror_to_host(PvDevice *device, PvMirror *mirror, PvError *error)
{
    if (!mirror->device_new)
        return true;
    if (!pv_device_download(device, device->work, mirror->host + mirror->lo, mirror->at,
                            mirror->hi - mirror->lo, error) ||
        !turn_back(mirror, error))
        return false;
    mirror->device_new = false;
    return true;
}

void pv_mirror_free(PvDevice *device, PvMirror *mirror)
{
    pv_device_free(device, mirror->at, mirror->hi - mirror->lo);
    mirror->at = 0;
}
