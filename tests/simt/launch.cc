/* Grids: blocks one after another, from poisoned shared memory to the last thread's exit.
 *
 * The host threads of a launch take the next block from a counter. What a block computes depends on
 * its number and the seed alone, not on who runs it.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include "cuda_words.h"
#include "internal.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

enum { HELP_PAYS = 2048 }; // threads of a grid from which on several host threads pay

SIMT_LOCAL Block *block;
SimtConfig simt_config = {SIMT_IN_ORDER, SIMT_EAGER, 0, 1, 20};
SIMT_LOCAL SimtStats simt_stats;
SIMT_LOCAL SimtBlockView simt_block = {{0, 0, 0}, {1, 1, 1}, {1, 1, 1}, nullptr};
SIMT_LOCAL SimtUint3 *simt_thread_index;

u32 random_bits(void)
{
    block->random ^= block->random << 13;
    block->random ^= block->random >> 7;
    block->random ^= block->random << 17;
    return (u32)(block->random >> 16);
}

static std::mutex reports_lock;
static u64 reports; // since simt_reset
static char first_report[400];

void report(const char *format, ...)
{
    static const SimtUint3 nowhere = {0, 0, 0};
    const SimtUint3 &thread = block->current ? block->current->index : nowhere;
    const SimtUint3 &index = simt_block.block_index;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    simt_stats.errors++;
    std::lock_guard<std::mutex> lock(reports_lock);
    if (reports++ == 0)
        memcpy(first_report, text, sizeof text);
    if (reports <= (u64)simt_config.max_reports)
        fprintf(stderr, "simt: %s block(%u,%u,%u) thread(%u,%u,%u): %s\n", block->name, index.x,
                index.y, index.z, thread.x, thread.y, thread.z, text);
}

const char *simt_first_report(void)
{
    return first_report;
}

void simt_reset(void)
{
    simt_stats = SimtStats();
    forget_banks();
    reports = 0;
    first_report[0] = 0;
}

static void end_thread(void)
{
    Thread *self = block->current;
    Warp &warp = block->warps[self->warp];
    CpQueue &cp = block->cp[self->linear];
    if (!cp.groups.empty() || !cp.open.empty()) {
        report("thread exits with cp.async still in flight");
        cp.groups.clear();
        cp.open.clear();
    }
    warp.live &= ~(1u << self->lane);
    warp.ready &= ~(1u << self->lane);
    if (--block->live == 0)
        leave_for_main();
    barriers_after_exit();
}

static void run_threads(void)
{
    enter_fiber();
    for (;;) {
        block->kernel(block->args);
        end_thread();
        hand_on();
    }
}

static bool reserve_memory(void)
{
    if (block->shared)
        return true;
    void *shared = mmap(nullptr, SHARED_BYTES + 65536, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *stacks = mmap(nullptr, stack_bytes() * MAX_THREADS, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (shared == MAP_FAILED || stacks == MAP_FAILED)
        return false;
    block->shared = (u8 *)(((uintptr_t)shared + 1023) & ~(uintptr_t)1023);
    block->stacks = (u8 *)stacks;
    return true;
}

static void poison_shared(void)
{
    size_t static_bytes = (size_t)(__stop_simt_shared - __start_simt_shared);
    memset(block->shared, 0xff, block->shared_bytes);
    if (static_bytes)
        memset(__start_simt_shared, 0xff, static_bytes);
    if (simt_config.race) {
        block->mbar_clocks.clear();
        block->granules.assign(block->shared_bytes / 2 + 1, Granule());
        block->static_granules.assign(static_bytes / 2 + 1, Granule());
    }
}

static void reset_units(void)
{
    for (Barrier &barrier : block->barriers) {
        barrier.arrived = barrier.site = 0;
        barrier.mixed = false;
        barrier.arrivals.clear();
        memset(barrier.waiting, 0, sizeof barrier.waiting);
    }
    block->open_barriers = 0;
    for (Warpgroup &group : block->warpgroups)
        if (block->used_matrices)
            reset_warpgroup(group);
    block->used_matrices = false;
    if (!block->used_copies)
        return;
    block->used_copies = false;
    for (CpQueue &queue : block->cp) {
        queue.groups.clear();
        queue.open.clear();
    }
    for (std::vector<TmaOp *> *queue : {&block->loads, &block->stores}) {
        for (TmaOp *op : *queue)
            delete op;
        queue->clear();
    }
}

static void number_threads(SimtDim size)
{
    for (unsigned i = 0; i < block->thread_count; i++) {
        Thread *thread = &block->threads[i];
        thread->linear = i;
        thread->lane = i % WARP;
        thread->warp = i / WARP;
        thread->index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    }
    block->index_size = size;
}

static void start_threads(SimtDim size)
{
    for (unsigned i = 0; i < block->warp_count; i++) {
        unsigned lanes = block->thread_count - i * WARP;
        Warp &warp = block->warps[i];
        warp.ready = warp.live = lanes >= WARP ? ALL_LANES : (1u << lanes) - 1;
        warp.spinning = 0;
        for (WarpOp &op : warp.ops)
            op.mask = op.arrived = 0;
    }
    SimtDim &known = block->index_size;
    if (size.x != known.x || size.y != known.y || size.z != known.z)
        number_threads(size);
    for (unsigned i = 0; i < block->thread_count; i++) {
        Thread *thread = &block->threads[i];
        thread->stack = nullptr;
        thread->seen.epoch = 0;
        thread->clock = 1;
        thread->fence_epoch = thread->fence_clock = 0;
        thread->device_fence.epoch = 0;
        thread->atomics.clear();
    }
}

static int run_one_block(SimtDim size)
{
    poison_shared();
    reset_units();
    block->random = (simt_config.seed + ((u64)block->linear << 32)) * 0x9E3779B97F4A7C15ull + 1;
    block->epoch = 1;
    block->acquired.clear();
    block->engine_clock = 0;
    block->progress = 1;
    block->spin_seen = 0;
    block->live = block->thread_count;
    start_threads(size);
    if (simt_config.banks)
        start_counting_banks();
    unsigned first = 0;
    if (simt_config.order == SIMT_REVERSE)
        first = block->thread_count - 1;
    if (simt_config.order == SIMT_RANDOM_ORDER)
        first = random_bits() % block->thread_count;
    run_block(&block->threads[first], run_threads);
    for (unsigned i = 0; simt_config.banks && i < block->warp_count; i++)
        count_banks_of(i);
    if (!block->failed && !block->stores.empty())
        report("TMA stores not waited for at block exit");
    return block->failed;
}

// What the host threads of a launch share.
struct Grid {
    const char *name;
    SimtKernel kernel;
    SimtDim size, block_size;
    size_t shared_bytes;
    void **args;
    unsigned blocks, launch;
    std::atomic<unsigned> next;
    std::atomic<bool> failed;
};

static bool start_grid(const Grid *grid)
{
    if (!block)
        block = new Block();
    if (!reserve_memory())
        return false;
    block->name = grid->name;
    block->thread_count = grid->block_size.x * grid->block_size.y * grid->block_size.z;
    block->warp_count = (block->thread_count + WARP - 1) / WARP;
    block->kernel = grid->kernel;
    block->args = grid->args;
    block->shared_bytes = grid->shared_bytes;
    block->failed = false;
    block->launch = grid->launch;
    simt_block.block_size = grid->block_size;
    simt_block.grid_size = grid->size;
    simt_block.shared = block->shared;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(block->shared, SHARED_BYTES);
    ASAN_POISON_MEMORY_REGION(block->shared + grid->shared_bytes,
                              SHARED_BYTES - grid->shared_bytes);
#endif
    return true;
}

// The block that is the n-th to run: in order, in reverse, or in steps of a number that has no
// factor in common with how many there are.
static unsigned block_in_turn(unsigned n, unsigned blocks)
{
    if (simt_config.order == SIMT_REVERSE)
        return blocks - 1 - n;
    if (simt_config.order != SIMT_RANDOM_ORDER)
        return n;
    u64 mixed = (simt_config.seed + 1ull) * 0x9E3779B97F4A7C15ull >> 20;
    u64 step = mixed % blocks;
    while (std::__gcd<u64>(step, blocks) != 1)
        step++;
    return (unsigned)((n * step + mixed / blocks) % blocks);
}

// Runs blocks until none is left.
static void run_blocks(Grid *grid)
{
    if (!start_grid(grid)) {
        grid->failed = true;
        return;
    }
    unsigned number;
    while (!grid->failed && (number = grid->next++) < grid->blocks) {
        number = block_in_turn(number, grid->blocks);
        unsigned row = number / grid->size.x;
        simt_block.block_index = {number % grid->size.x, row % grid->size.y, row / grid->size.y};
        block->linear = number;
        if (run_one_block(grid->block_size))
            grid->failed = true;
    }
}

/* ---- host threads that help ---- */

struct Helper {
    std::mutex lock;
    std::condition_variable changed;
    Grid *grid; // null: nothing to do
    SimtStats stats;
};
static std::vector<Helper *> helpers; // they end with the process

static void help(Helper *self)
{
    std::unique_lock<std::mutex> lock(self->lock);
    for (;;) {
        self->changed.wait(lock, [&] { return self->grid != nullptr; });
        simt_stats = SimtStats();
        run_blocks(self->grid);
        self->stats = simt_stats;
        self->grid = nullptr;
        self->changed.notify_all();
    }
}

static void add_stats(const SimtStats &stats)
{
    const u64 *from = (const u64 *)&stats;
    for (size_t i = 0; i < sizeof stats / sizeof *from; i++)
        ((u64 *)&simt_stats)[i] += from[i];
}

static void run_with_helpers(Grid *grid, size_t count)
{
    while (helpers.size() < count) {
        helpers.push_back(new Helper());
        std::thread(help, helpers.back()).detach();
    }
    for (size_t i = 0; i < count; i++) {
        std::lock_guard<std::mutex> lock(helpers[i]->lock);
        helpers[i]->grid = grid;
        helpers[i]->changed.notify_all();
    }
    run_blocks(grid);
    for (size_t i = 0; i < count; i++) {
        std::unique_lock<std::mutex> lock(helpers[i]->lock);
        helpers[i]->changed.wait(lock, [&] { return helpers[i]->grid == nullptr; });
        add_stats(helpers[i]->stats);
    }
}

int simt_launch(const char *name, SimtKernel kernel, SimtDim grid_size, SimtDim size,
                size_t dynamic_shared, void **args)
{
    static unsigned launches; // 7 bits, as tags of race mode have them
    launches = (launches + 1) & 0x7f;
    u64 blocks = (u64)grid_size.x * grid_size.y * grid_size.z;
    u64 threads = (u64)size.x * size.y * size.z;
    Grid grid = {name, kernel,           grid_size, size, dynamic_shared,
                 args, (unsigned)blocks, launches,  {0},  {false}};
    if (threads == 0 || threads > MAX_THREADS || dynamic_shared > SHARED_LIMIT ||
        blocks > 0x7fffffff || !start_grid(&grid)) {
        if (!block)
            block = new Block();
        block->name = name;
        report("cannot launch %llu blocks of %llu threads with %zu bytes of shared memory",
               (unsigned long long)blocks, (unsigned long long)threads, dynamic_shared);
        return 1;
    }
    start_checks_of_launch();
    bool alone = simt_config.race || simt_config.banks || simt_config.threads <= 1 ||
                 blocks * threads < HELP_PAYS;
    if (alone || blocks == 1)
        run_blocks(&grid);
    else
        run_with_helpers(&grid, (size_t)std::min<u64>((u64)simt_config.threads, blocks) - 1);
    return grid.failed;
}
