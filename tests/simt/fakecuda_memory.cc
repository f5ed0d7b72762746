/* The fake driver: device memory, pinned memory, copies.
 *
 * Device memory is one reserved range of addresses. Allocations stand apart by guards, which are
 * looked at whenever somebody waits; fresh memory is NaN. Copies between device memory and memory
 * that is not pinned behave as a driver's: one to the device has read its source when the call
 * returns, one to the host is done.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <map>
#include "fakecuda.h"

enum { GUARD = 4096, CHECKED_GUARD = 64, GRAIN = 512 };
static const size_t POISONED = 256u << 20; // bytes of an allocation that are made NaN

struct Allocation {
    size_t bytes, whole;
};
static uint8_t *heap;
static size_t heap_bytes, used, highest; // reserved; allocated; ever allocated, from `heap` on
static std::map<uint8_t *, Allocation> allocations; // by address
static std::map<uint8_t *, size_t> pinned;
static int opened; // OpenMemory objects alive

static bool reserve_heap(void)
{
    if (heap)
        return true;
    heap_bytes = 2 * driver.memory + (64u << 20);
    void *at = mmap(nullptr, heap_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return false;
    heap = (uint8_t *)at;
    return true;
}

static void protect_heap(int rights)
{
    if (driver.protect && highest > 0)
        mprotect(heap, highest, rights);
}

OpenMemory::OpenMemory()
{
    if (opened++ == 0)
        protect_heap(PROT_READ | PROT_WRITE);
}

OpenMemory::~OpenMemory()
{
    if (--opened == 0)
        protect_heap(PROT_NONE);
}

// The allocation that an address lies in; null: none.
static uint8_t *find(const void *at)
{
    auto next = allocations.upper_bound((uint8_t *)at);
    if (next == allocations.begin())
        return nullptr;
    --next;
    return (uint8_t *)at < next->first + next->second.bytes ? next->first : nullptr;
}

CUresult check_device_range(CUdeviceptr at, size_t bytes, const char *what)
{
    uint8_t *address = (uint8_t *)(uintptr_t)at, *start = find(address);
    if (bytes == 0)
        return CUDA_SUCCESS;
    if (!start)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %p is not device memory", what,
                      (void *)address);
    if (address + bytes > start + allocations[start].bytes)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes at byte %td of %zu", what, bytes,
                      address - start, allocations[start].bytes);
    return CUDA_SUCCESS;
}

bool is_pinned(const void *at, size_t bytes)
{
    auto next = pinned.upper_bound((uint8_t *)at);
    if (next == pinned.begin())
        return false;
    --next;
    return (uint8_t *)at + bytes <= next->first + next->second;
}

bool check_guards(void)
{
    OpenMemory open;
    for (const auto &[start, allocation] : allocations)
        for (int i = 0; i < CHECKED_GUARD; i++)
            if (start[-1 - i] != 0xff || start[allocation.bytes + (size_t)i] != 0xff) {
                refuse(CUDA_ERROR_ILLEGAL_ADDRESS,
                       "a kernel has written beside an allocation of %zu bytes", allocation.bytes);
                return false;
            }
    return true;
}

// First gap that is large enough.
static uint8_t *find_gap(size_t whole)
{
    uint8_t *at = heap;
    for (const auto &[start, allocation] : allocations) {
        if ((size_t)(start - GUARD - at) >= whole)
            return at;
        at = start - GUARD + allocation.whole;
    }
    return (size_t)(heap + heap_bytes - at) >= whole ? at : nullptr;
}

static CUresult allocate(CUdeviceptr *result, size_t bytes)
{
    size_t rounded = (bytes + GRAIN - 1) / GRAIN * GRAIN;
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (used + rounded > driver.memory || !reserve_heap())
        return CUDA_ERROR_OUT_OF_MEMORY;
    size_t whole = (rounded + 2 * GUARD + GUARD - 1) / GUARD * GUARD;
    uint8_t *at = find_gap(whole);
    if (!at)
        return CUDA_ERROR_OUT_OF_MEMORY;
    OpenMemory open;
    size_t end = (size_t)(at - heap) + whole;
    if (end > highest) {
        highest = end;
        protect_heap(PROT_READ | PROT_WRITE);
    }
    memset(at, 0xff, GUARD + (bytes < POISONED ? bytes : POISONED));
    memset(at + GUARD + bytes, 0xff, CHECKED_GUARD);
    allocations[at + GUARD] = {bytes, whole};
    used += rounded;
    simt_register_memory(at + GUARD, bytes);
    *result = (CUdeviceptr)(uintptr_t)(at + GUARD);
    return CUDA_SUCCESS;
}

static CUresult release(CUdeviceptr at)
{
    auto found = allocations.find((uint8_t *)(uintptr_t)at);
    if (found == allocations.end())
        return refuse(CUDA_ERROR_INVALID_VALUE, "%p is freed, but was not allocated",
                      (void *)(uintptr_t)at);
    bool intact = check_guards();
    OpenMemory open;
    simt_forget_memory(found->first);
    madvise(found->first - GUARD, found->second.whole, MADV_DONTNEED);
    used -= (found->second.bytes + GRAIN - 1) / GRAIN * GRAIN;
    allocations.erase(found);
    return intact ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

/* ---- copies ---- */

static void move(void *to, const void *from, size_t bytes)
{
    if (driver.fault == CUDA_SUCCESS)
        memcpy(to, from, bytes);
}

static CUresult to_device(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    CUresult error = check_device_range(to, bytes, "copy to the device");
    if (error || bytes == 0)
        return error;
    void *target = (void *)(uintptr_t)to;
    if (is_pinned(from, bytes))
        return enqueue(stream, [=] { move(target, from, bytes); });
    auto staged =
        std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
    return enqueue(stream, [=] { move(target, staged->data(), bytes); });
}

static CUresult to_host(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    CUresult error = check_device_range(from, bytes, "copy to the host");
    if (error || bytes == 0)
        return error;
    const void *source = (const void *)(uintptr_t)from;
    error = enqueue(stream, [=] { move(to, source, bytes); });
    if (error == CUDA_SUCCESS && !is_pinned(to, bytes) && !(stream && stream->capture))
        drain(stream);
    return error;
}

static CUresult on_device(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    CUresult error = check_device_range(to, bytes, "copy on the device");
    if (!error)
        error = check_device_range(from, bytes, "copy on the device");
    if (!error && to < from + bytes && from < to + bytes && bytes > 0)
        error = refuse(CUDA_ERROR_INVALID_VALUE, "copy on the device: the ranges overlap");
    if (error || bytes == 0)
        return error;
    void *target = (void *)(uintptr_t)to;
    const void *source = (const void *)(uintptr_t)from;
    return enqueue(stream, [=] { move(target, source, bytes); });
}

static CUresult fill(CUdeviceptr at, uint32_t value, size_t width, size_t count, CUstream stream)
{
    CUresult error = check_device_range(at, width * count, "fill");
    if (!error && at % width)
        error =
            refuse(CUDA_ERROR_INVALID_VALUE, "fill: the address is not a multiple of %zu", width);
    if (error || count == 0)
        return error;
    char *target = (char *)(uintptr_t)at;
    return enqueue(stream, [=] {
        for (size_t i = 0; driver.fault == CUDA_SUCCESS && i < count; i++)
            memcpy(target + i * width, &value, width);
    });
}

// A call that returns when all is done: on the legacy stream.
template <class Body> static CUresult at_once(Body body)
{
    Call call(Call::CONTEXT);
    CUresult error = call.error ? call.error : unsafe_while_capturing();
    if (!error)
        error = body();
    return error ? error : driver.fault;
}

template <class Body> static CUresult in_order(Body body)
{
    Call call(Call::CONTEXT);
    return call.error ? call.error : body();
}

extern "C" {
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *all_bytes)
{
    Call call(Call::CONTEXT);
    *free_bytes = driver.memory - used;
    *all_bytes = driver.memory;
    return call.error;
}

CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes)
{
    return at_once([=] { return allocate(at, bytes); });
}

CUresult cuMemFree_v2(CUdeviceptr at)
{
    return at_once([=] {
        drain_all();
        return at ? release(at) : CUDA_SUCCESS;
    });
}

CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned flags)
{
    return at_once([=] {
        if (bytes == 0 || flags > 7)
            return CUDA_ERROR_INVALID_VALUE;
        *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (!*at)
            return CUDA_ERROR_OUT_OF_MEMORY;
        pinned[(uint8_t *)*at] = bytes;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemFreeHost(void *at)
{
    return at_once([=] {
        drain_all();
        if (pinned.erase((uint8_t *)at) == 0)
            return refuse(CUDA_ERROR_INVALID_VALUE, "%p is not pinned memory", at);
        free(at);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
    return at_once([=] { return to_device(to, from, bytes, nullptr); });
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    return at_once([=] { return to_host(to, from, bytes, nullptr); });
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    return at_once([=] { return on_device(to, from, bytes, nullptr); });
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    return in_order([=] { return to_device(to, from, bytes, stream); });
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    return in_order([=] { return to_host(to, from, bytes, stream); });
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    return in_order([=] { return on_device(to, from, bytes, stream); });
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t count, CUstream stream)
{
    return in_order([=] { return fill(at, value, 1, count, stream); });
}

CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, CUstream stream)
{
    return in_order([=] { return fill(at, value, 4, count, stream); });
}

CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t count)
{
    return at_once([=] { return fill(at, value, 1, count, nullptr); });
}

CUresult cuMemsetD32_v2(CUdeviceptr at, unsigned value, size_t count)
{
    return at_once([=] { return fill(at, value, 4, count, nullptr); });
}
}
