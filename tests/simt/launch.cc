/* Grids: one block after another, from poisoned shared memory to the last thread's exit. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "cuda_words.h"
#include "internal.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

Block block;
SimtConfig simt_config = {SIMT_IN_ORDER, SIMT_EAGER, 0, 1, 20};
SimtStats simt_stats;
SimtBlockView simt_block;
SimtUint3 *simt_thread_index;
static char first_report[400];

u32 random_bits(void)
{
    block.random ^= block.random << 13;
    block.random ^= block.random >> 7;
    block.random ^= block.random << 17;
    return (u32)(block.random >> 16);
}

void report(const char *format, ...)
{
    static const SimtUint3 nowhere = {0, 0, 0};
    const SimtUint3 &thread = block.current ? block.current->index : nowhere;
    const SimtUint3 &index = simt_block.block_index;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (simt_stats.errors++ == 0)
        memcpy(first_report, text, sizeof text);
    if (simt_stats.errors <= (u64)simt_config.max_reports)
        fprintf(stderr, "simt: %s block(%u,%u,%u) thread(%u,%u,%u): %s\n", block.name, index.x,
                index.y, index.z, thread.x, thread.y, thread.z, text);
}

const char *simt_first_report(void)
{
    return first_report;
}

void simt_reset(void)
{
    simt_stats = SimtStats();
    first_report[0] = 0;
}

static void exit_thread(void)
{
    Thread *self = block.current;
    Warp &warp = block.warps[self->warp];
    CpQueue &cp = block.cp[self->linear];
    if (!cp.groups.empty() || !cp.open.empty()) {
        report("thread exits with cp.async still in flight");
        cp.groups.clear();
        cp.open.clear();
    }
    warp.live &= ~(1u << self->lane);
    warp.ready &= ~(1u << self->lane);
    if (--block.live == 0)
        leave_for_main();
    barriers_after_exit();
    hand_on();
    __builtin_unreachable();
}

static void run_thread(void)
{
    enter_fiber();
    block.kernel(block.args);
    exit_thread();
}

static bool reserve_memory(void)
{
    if (block.shared)
        return true;
    void *shared = mmap(nullptr, SHARED_BYTES + 65536, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *stacks = mmap(nullptr, stack_bytes() * MAX_THREADS, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (shared == MAP_FAILED || stacks == MAP_FAILED)
        return false;
    block.shared = (u8 *)(((uintptr_t)shared + 1023) & ~(uintptr_t)1023);
    block.stacks = (u8 *)stacks;
    return true;
}

static void poison_shared(void)
{
    size_t static_bytes = (size_t)(__stop_simt_shared - __start_simt_shared);
    memset(block.shared, 0xff, block.shared_bytes);
    if (static_bytes)
        memset(__start_simt_shared, 0xff, static_bytes);
    if (simt_config.race) {
        block.mbar_clocks.clear();
        block.granules.assign(block.shared_bytes / 2 + 1, Granule());
        block.static_granules.assign(static_bytes / 2 + 1, Granule());
    }
}

static void reset_units(void)
{
    for (Barrier &barrier : block.barriers) {
        barrier.arrived = barrier.site = 0;
        barrier.mixed = false;
        barrier.arrivals.clear();
        memset(barrier.waiting, 0, sizeof barrier.waiting);
    }
    for (Warpgroup &group : block.warpgroups)
        reset_warpgroup(group);
    for (unsigned i = 0; i < block.thread_count; i++) {
        block.cp[i].groups.clear();
        block.cp[i].open.clear();
    }
    for (std::vector<TmaOp *> *queue : {&block.loads, &block.stores}) {
        for (TmaOp *op : *queue)
            delete op;
        queue->clear();
    }
}

static void start_threads(SimtDim size)
{
    for (unsigned i = 0; i < block.warp_count; i++) {
        unsigned lanes = block.thread_count - i * WARP;
        Warp &warp = block.warps[i];
        warp.ready = warp.live = lanes >= WARP ? ALL_LANES : (1u << lanes) - 1;
        warp.spinning = 0;
        for (WarpOp &op : warp.ops)
            op.mask = op.arrived = 0;
    }
    for (unsigned i = 0; i < block.thread_count; i++) {
        Thread *thread = &block.threads[i];
        thread->linear = i;
        thread->lane = i % WARP;
        thread->warp = i / WARP;
        thread->index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
        thread->seen.epoch = 0;
        thread->clock = 1;
        thread->fence_epoch = thread->fence_clock = 0;
        prepare_stack(thread, i, run_thread);
    }
}

static int run_one_block(SimtDim size)
{
    poison_shared();
    reset_units();
    block.epoch = 1;
    block.engine_clock = 0;
    block.progress = 1;
    block.spin_seen = 0;
    block.live = block.thread_count;
    start_threads(size);
    unsigned first = 0;
    if (simt_config.order == SIMT_REVERSE)
        first = block.thread_count - 1;
    if (simt_config.order == SIMT_RANDOM_ORDER)
        first = random_bits() % block.thread_count;
    run_block(&block.threads[first]);
    if (!block.failed && !block.stores.empty())
        report("TMA stores not waited for at block exit");
    return block.failed;
}

int simt_launch(const char *name, SimtKernel kernel, SimtDim grid, SimtDim size,
                size_t dynamic_shared, void **args)
{
    block.name = name;
    block.thread_count = size.x * size.y * size.z;
    block.warp_count = (block.thread_count + WARP - 1) / WARP;
    if (block.thread_count == 0 || block.thread_count > MAX_THREADS ||
        dynamic_shared > SHARED_LIMIT || !reserve_memory()) {
        report("cannot launch %u threads with %zu bytes of shared memory", block.thread_count,
               dynamic_shared);
        return 1;
    }
    block.kernel = kernel;
    block.args = args;
    block.shared_bytes = dynamic_shared;
    block.failed = false;
    block.random = simt_config.seed * 0x9E3779B97F4A7C15ull + 1;
    block.launch = (block.launch + 1) & 0x7f;
    start_checks_of_launch();
    simt_block.block_size = size;
    simt_block.grid_size = grid;
    simt_block.shared = block.shared;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(block.shared, SHARED_BYTES);
    ASAN_POISON_MEMORY_REGION(block.shared + dynamic_shared, SHARED_BYTES - dynamic_shared);
#endif
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                simt_block.block_index = {x, y, z};
                block.linear = (z * grid.y + y) * grid.x + x;
                if (run_one_block(size))
                    return 1;
            }
    return 0;
}
