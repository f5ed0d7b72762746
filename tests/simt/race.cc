/* Race mode: happens-before checks of shared memory, bounds, and conflicts between blocks.
 *
 * Kernels are compiled with -fsanitize=thread, and the entry points of that instrumentation are
 * defined here (libtsan is not linked), so every load and store of the kernel comes by. For every
 * two bytes of shared memory the last write and the reads since are kept with their vector clocks;
 * an access that is not ordered after a conflicting one by a barrier, a warp-wide synchronisation
 * or an mbarrier is a race whatever the schedule was. What the asynchronous proxy (TMA, wgmma)
 * reads must moreover have been fenced by its writer. Global memory: within a launch no block may
 * read or write what another one writes, unless it was handed on: written, then (in the order that
 * barriers make) a __threadfence, then an atomic by the thread that fenced; an atomic of the same
 * word by a thread of the other block, its __threadfence, then the access. Blocks run one after the
 * other here, so what an atomic sees of another is a matter of turn. This file must be compiled
 * without the instrumentation.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include "internal.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

SIMT_LOCAL Place place;
static std::unordered_map<u64, int> told; // one report a kind and place
static std::unordered_map<const void *, std::vector<Release>> releases; // of this launch, by word

void start_checks_of_launch(void)
{
    told.clear();
    releases.clear();
}

/* ---- clocks ---- */

static void use_in_this_epoch(Clock &clock)
{
    if (clock.epoch != block->epoch) {
        clock.at.assign(block->thread_count + 1, 0);
        clock.epoch = block->epoch;
    }
}

Clock &seen_by(Thread *thread)
{
    if (thread->seen.epoch != block->epoch) {
        use_in_this_epoch(thread->seen);
        thread->clock = 1;
    }
    return thread->seen;
}

u32 clock_of(Thread *thread)
{
    seen_by(thread);
    return thread->clock;
}

void clock_join(Clock &to, const Clock &from)
{
    use_in_this_epoch(to);
    if (from.epoch != block->epoch)
        return;
    for (unsigned i = 0; i <= block->thread_count; i++)
        to.at[i] = std::max(to.at[i], from.at[i]);
}

void clock_release(Clock &object, Thread *thread)
{
    clock_join(object, seen_by(thread));
    object.at[thread->linear] = std::max(object.at[thread->linear], thread->clock);
    thread->clock++;
}

void clock_acquire(const Clock &object, Thread *thread)
{
    clock_join(seen_by(thread), object);
}

/* ---- shared memory ---- */

static void tell_race(const char *what, size_t offset, u32 other)
{
    simt_stats.races++;
    u64 where = place.line ? (u64)place.line : (u64)(uintptr_t)place.pc;
    if (told[(u64)(uintptr_t)what * 31 + where * 1000003ull]++) {
        simt_stats.errors++;
        return;
    }
    char at[48], who[32];
    if (place.line)
        snprintf(at, sizeof at, "line %d", place.line);
    else
        snprintf(at, sizeof at, "pc %p", place.pc);
    if (other == block->thread_count)
        snprintf(who, sizeof who, "TMA");
    else
        snprintf(who, sizeof who, "thread %u", other);
    report("RACE %s: shared byte %zu, other party: %s, at %s", what, offset, who, at);
}

// Did an event of this epoch or an older one happen before what `thread` does now?
static bool ordered(u32 epoch, u32 party, u32 clock, u32 thread, const Clock &seen)
{
    return epoch < block->epoch || party == thread || seen.at[party] >= clock;
}

static void check_last_write(Granule &granule, size_t offset, u32 thread, const Clock &seen,
                             bool write, bool async_read)
{
    if (!granule.write_epoch) {
        if (write)
            return;
        tell_race("read of uninitialised shared memory", offset, thread);
        granule.write_epoch = block->epoch;
        granule.writer = (u16)thread;
        granule.write_clock = 0;
    } else if (!ordered(granule.write_epoch, granule.writer, granule.write_clock, thread, seen)) {
        tell_race(write ? "write after unsynchronised write" : "read of an unsynchronised write",
                  offset, granule.writer);
        granule.write_epoch = 1;
        granule.writer = (u16)thread;
        granule.write_clock = 0;
    } else if (async_read && granule.writer < block->thread_count) {
        Thread &writer = block->threads[granule.writer];
        bool fenced = writer.fence_epoch > granule.write_epoch ||
                      (writer.fence_epoch == granule.write_epoch &&
                       writer.fence_clock >= granule.write_clock);
        if (!fenced) {
            tell_race("async-proxy read of st.shared data without fence.proxy.async", offset,
                      granule.writer);
            writer.fence_epoch = ~0u;
        }
    }
}

static void note_read(Granule &granule, u32 thread, u32 clock, const Clock &seen)
{
    u16 warp = (u16)(thread / WARP);
    bool alone = granule.readers == 0;
    granule.warp = alone || granule.warp == warp ? warp : (u16)MIXED_WARPS;
    granule.latest = alone ? clock : std::max(granule.latest, clock);
    for (int i = 0; i < granule.readers && i < REMEMBERED_READERS; i++)
        if (granule.reader[i] == thread ||
            ordered(granule.read_epoch, granule.reader[i], granule.read_clock[i], thread, seen)) {
            granule.reader[i] = (u16)thread;
            granule.read_clock[i] = clock;
            return;
        }
    if (granule.readers < REMEMBERED_READERS) {
        granule.reader[granule.readers] = (u16)thread;
        granule.read_clock[granule.readers++] = clock;
    } else {
        granule.readers = REMEMBERED_READERS + 1;
    }
}

// Many readers, not all of them known: true if they are lanes of one warp, and `thread` has met all
// lanes of it since the last of them.
static bool many_ordered(const Granule &granule, u32 thread, const Clock &seen)
{
    if (granule.warp == MIXED_WARPS)
        return false;
    u32 end = std::min(granule.warp * WARP + WARP, (int)block->thread_count);
    for (u32 lane = granule.warp * WARP; lane < end; lane++)
        if (!ordered(granule.read_epoch, lane, granule.latest, thread, seen))
            return false;
    return true;
}

static void check_granule(Granule &granule, size_t offset, u32 thread, u32 clock, const Clock &seen,
                          bool write, bool async_read)
{
    check_last_write(granule, offset, thread, seen, write, async_read);
    if (granule.read_epoch != block->epoch) {
        granule.read_epoch = block->epoch;
        granule.readers = 0;
    }
    if (!write) {
        note_read(granule, thread, clock, seen);
        return;
    }
    for (int i = 0; i < granule.readers && i < REMEMBERED_READERS; i++)
        if (!ordered(granule.read_epoch, granule.reader[i], granule.read_clock[i], thread, seen)) {
            tell_race("write over data that may still be read", offset, granule.reader[i]);
            break;
        }
    if (granule.readers > REMEMBERED_READERS && !many_ordered(granule, thread, seen))
        tell_race("write over data with many readers and no barrier for all", offset,
                  granule.reader[0]);
    granule.write_epoch = block->epoch;
    granule.writer = (u16)thread;
    granule.write_clock = clock;
    granule.readers = 0;
}

void check_shared(u32 offset, u32 bytes, u32 thread, u32 clock, const Clock &seen, bool write,
                  bool async_read)
{
    for (u32 i = offset / 2; i < (offset + bytes + 1) / 2; i++)
        check_granule(block->granules[i], i * 2, thread, clock, seen, write, async_read);
}

void check_shared_by(Thread *thread, u32 offset, u32 bytes, bool write)
{
    if (simt_config.race)
        check_shared(offset, bytes, thread->linear, clock_of(thread), seen_by(thread), write,
                     false);
}

/* ---- global memory ---- */

void note_fence(void)
{
    if (!simt_config.race)
        return;
    Thread *thread = block->current;
    for (Acquire &acquire : thread->atomics) {
        acquire.epoch = block->epoch;
        acquire.thread = thread->linear;
        acquire.clock = clock_of(thread);
        block->acquired.push_back(acquire);
    }
    thread->atomics.clear();
    thread->device_fence.epoch = 0;
    clock_release(thread->device_fence, thread);
}

void note_atomic(const void *address)
{
    if (!simt_config.race || !block || !block->current)
        return;
    Thread *thread = block->current;
    std::vector<Release> &here = releases[address];
    thread->atomics.push_back({address, here.size(), 0, 0, 0});
    if (thread->device_fence.epoch)
        here.push_back({block->linear, thread->device_fence});
}

// When an access took place in its block: 24 bits of the epoch, 10 of the thread, 30 of its clock.
static u64 moment(Thread *thread)
{
    return (u64)block->epoch << 40 | (u64)thread->linear << 30 | clock_of(thread);
}

// What block `writer` wrote at that moment was handed on to the running thread.
static bool handed_on(u32 writer, u64 written)
{
    Thread *thread = block->current;
    u32 epoch = (u32)(written >> 40), by = written >> 30 & 1023, clock = written & 0x3fffffff;
    for (const Acquire &acquire : block->acquired) {
        if (!ordered(acquire.epoch, acquire.thread, acquire.clock, thread->linear,
                     seen_by(thread)))
            continue;
        const std::vector<Release> &seen = releases[acquire.word];
        for (size_t i = 0; i < acquire.releases; i++)
            if (seen[i].block == writer &&
                (epoch < seen[i].fence.epoch ||
                 (epoch == seen[i].fence.epoch && clock <= seen[i].fence.at[by])))
                return true;
    }
    return false;
}

// A registered allocation; `tags` has, for every two bytes, who last wrote (high) and read (low),
// `moments` when it was written.
struct Allocation {
    u8 *raw, *start;
    size_t bytes;
    std::vector<u64> tags, moments;
};
static std::vector<Allocation> allocations;
static const size_t GUARD = 4096;

void simt_register_memory(void *memory, size_t bytes)
{
    allocations.push_back({nullptr, (u8 *)memory, bytes, {}, {}});
}

void simt_forget_memory(void *memory)
{
    for (size_t i = 0; i < allocations.size(); i++)
        if (allocations[i].start == memory) {
            allocations.erase(allocations.begin() + (long)i);
            return;
        }
}

void *simt_malloc(size_t bytes)
{
    Allocation a;
#if defined(__SANITIZE_ADDRESS__)
    size_t whole = (bytes + 255) & ~(size_t)255;
    a.raw = a.start = (u8 *)aligned_alloc(256, whole);
    memset(a.start, 0xff, bytes);
    ASAN_POISON_MEMORY_REGION(a.start + bytes, whole - bytes);
#else
    size_t whole = (bytes + 2 * GUARD + 4095) & ~(size_t)4095;
    a.raw = (u8 *)aligned_alloc(4096, whole);
    a.start = a.raw + GUARD;
    memset(a.raw, 0xff, whole);
#endif
    a.bytes = bytes;
    allocations.push_back(a);
    return a.start;
}

void simt_free(void *memory)
{
    for (size_t i = 0; i < allocations.size(); i++)
        if (allocations[i].start == memory) {
            free(allocations[i].raw);
            simt_forget_memory(memory);
            return;
        }
}

// A tag is 7 bits of the launch and 24 of the block, so that tags of older launches are void.
static void check_allocation(Allocation &a, const u8 *address, size_t bytes, bool write)
{
    const char *verb = write ? "write" : "read";
    if (address < a.start || address + bytes > a.start + a.bytes) {
        simt_stats.races++;
        report("OUT OF BOUNDS global %s, byte %ld of %zu, pc %p", verb, (long)(address - a.start),
               a.bytes, place.pc);
        return;
    }
    if (a.tags.empty()) {
        a.tags.assign(a.bytes / 2 + 1, 0);
        a.moments.assign(a.bytes / 2 + 1, 0);
    }
    u64 tag = ((u64)block->launch << 24 | (block->linear + 1)) & 0x7fffffff;
    size_t first = (size_t)(address - a.start) / 2;
    size_t end = ((size_t)(address - a.start) + bytes + 1) / 2;
    for (size_t i = first; i < end; i++) {
        u32 writer = (u32)(a.tags[i] >> 32), reader = (u32)a.tags[i];
        bool written = writer && writer >> 24 == tag >> 24 && writer != tag;
        bool read = reader && reader >> 24 == tag >> 24 && reader != tag;
        if (written && !(write && read) && handed_on((writer & 0xffffff) - 1, a.moments[i]))
            written = false;
        if (written || (write && read)) {
            simt_stats.races++;
            report("INTER-BLOCK conflict: %s of global byte %zu %s by block %u, pc %p", verb, i * 2,
                   written ? "written" : "read", ((written ? writer : reader) & 0xffffff) - 1,
                   place.pc);
        }
        a.tags[i] = write ? tag << 32 | reader : (u64)writer << 32 | tag;
        if (write)
            a.moments[i] = moment(block->current);
    }
}

void check_global(const u8 *address, size_t bytes, bool write)
{
    for (Allocation &a : allocations)
        if (address >= a.start - GUARD && address < a.start + a.bytes + GUARD) {
            check_allocation(a, address, bytes, write);
            return;
        }
}

/* ---- the hooks of the instrumentation ---- */

static void check_static_shared(const u8 *address, size_t bytes, bool write)
{
    Thread *thread = block->current;
    size_t offset = (size_t)(address - __start_simt_shared);
    for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; i++)
        check_granule(block->static_granules[i], i * 2, thread->linear, clock_of(thread),
                      seen_by(thread), write, false);
}

// `width`: of the instructions that a GPU makes of it.
static void access(const void *where, size_t bytes, size_t width, bool write, const void *pc)
{
    if ((!simt_config.race && !simt_config.banks) || !block || !block->current)
        return;
    const u8 *address = (const u8 *)where;
    place = {pc, 0};
    if (simt_config.banks && address >= block->shared &&
        address + bytes <= block->shared + block->shared_bytes)
        note_shared_access(block->current, (u32)(address - block->shared), (u32)bytes, (u32)width,
                           write, pc);
    if (!simt_config.race)
        return;
    if (address >= block->shared && address < block->shared + SHARED_BYTES) {
        size_t offset = (size_t)(address - block->shared);
        if (offset + bytes > block->shared_bytes) {
            simt_stats.races++;
            report("OUT OF BOUNDS shared %s at byte %zu of %zu, pc %p", write ? "write" : "read",
                   offset, block->shared_bytes, pc);
            return;
        }
        check_shared_by(block->current, (u32)offset, (u32)bytes, write);
    } else if (address >= __start_simt_shared && address < __stop_simt_shared) {
        check_static_shared(address, bytes, write);
    } else {
        check_global(address, bytes, write);
    }
}

static unsigned instrumented_images;

unsigned simt_instrumented_images(void)
{
    return instrumented_images;
}

#define HOOK(name, bytes, width, write)                                                            \
    void __tsan_##name(void *address)                                                              \
    {                                                                                              \
        access(address, bytes, width, write, __builtin_return_address(0));                         \
    }
#define HOOKS(bytes)                                                                               \
    HOOK(read##bytes, bytes, bytes, false)                                                         \
    HOOK(write##bytes, bytes, bytes, true)                                                         \
    HOOK(unaligned_read##bytes, bytes, bytes < 4 ? bytes : 4, false)                               \
    HOOK(unaligned_write##bytes, bytes, bytes < 4 ? bytes : 4, true)                               \
    HOOK(volatile_read##bytes, bytes, bytes, false)                                                \
    HOOK(volatile_write##bytes, bytes, bytes, true)

// With the types that the compiler itself declares them with, under AddressSanitizer.
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *address, intptr_t bytes)
{
    access(address, (size_t)bytes, 4, false, __builtin_return_address(0));
}
void __tsan_write_range(void *address, intptr_t bytes)
{
    access(address, (size_t)bytes, 4, true, __builtin_return_address(0));
}
void __tsan_func_entry(void *pc)
{
    if (simt_config.banks && block && block->current)
        enter_call(pc);
}
void __tsan_func_exit(void *)
{
    if (simt_config.banks && block && block->current)
        leave_call();
}
void __sanitizer_cov_trace_pc(void)
{
    if (simt_config.banks && block && block->current)
        enter_basic_block(__builtin_return_address(0));
}
void __tsan_init(void) // called by a constructor of every instrumented image
{
    instrumented_images++;
}
void __tsan_vptr_update(void *, void *)
{
}
void __tsan_vptr_read(void **)
{
}
}
