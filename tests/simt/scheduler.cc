/* Fibers: a stack a waiting CUDA thread, and the choice of who runs next.
 *
 * A thread runs until it must wait (block_self) or looks again at memory that another has to change
 * (spin_self). Then another lane of the same warp, else another warp goes on, in order, in reverse
 * or at random. A thread that ends hands its stack to the next one if that has not begun, so
 * threads that never wait follow one another as in a loop, without a switch. Asynchronous loads
 * that nothing has forced yet are carried out when every thread waits (late) or now and then
 * (random). When nothing can go on there is a deadlock, told with what every warp waits for. Stacks
 * start at differing offsets: equal ones would share a cache set.
 */
#include <stdio.h>
#include <stdlib.h>
#include "cuda_words.h"
#include "internal.h"
#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#else
#define SIMT_ASAN 0
#endif

extern "C" void simt_switch(void **save, void *to);
asm(".text\n.globl simt_switch\n.type simt_switch,@function\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size simt_switch,.-simt_switch\n");

size_t stack_bytes(void)
{
    return SIMT_ASAN ? 256 * 1024 : 64 * 1024;
}

static SIMT_LOCAL void (*fiber_body)(void); // runs this thread, and others after it

// Gives a thread that has not begun a stack, ready to be switched to.
static void give_stack(Thread *thread)
{
    if (block->free_stacks.empty()) {
        thread->stack = block->stacks + stack_bytes() * block->stacks_used++;
    } else {
        thread->stack = block->free_stacks.back();
        block->free_stacks.pop_back();
    }
    size_t number = (size_t)(thread->stack - block->stacks) / stack_bytes();
    thread->fake_stack = nullptr;
    u64 *top = (u64 *)(thread->stack + stack_bytes() - number * 17 % 128 * 64);
    *--top = 0;
    *--top = (u64)(void *)fiber_body;
    for (int saved = 0; saved < 6; saved++) // the registers that simt_switch pops
        *--top = 0;
    thread->stack_pointer = top;
}

#if SIMT_ASAN
static SIMT_LOCAL u8 *main_stack;
static SIMT_LOCAL size_t main_stack_bytes;

static void find_main_stack(void)
{
    if (main_stack_bytes)
        return;
    pthread_attr_t attributes;
    void *base;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &base, &main_stack_bytes);
    main_stack = (u8 *)base;
    pthread_attr_destroy(&attributes);
}
#endif

static void set_current(Thread *thread)
{
    block->current = thread;
    block->warp = thread->warp;
    simt_thread_index = &thread->index;
}

void run_block(Thread *first, void (*run_threads)(void))
{
    fiber_body = run_threads;
    block->stacks_used = 0;
    block->free_stacks.clear();
    give_stack(first);
    set_current(first);
#if SIMT_ASAN
    find_main_stack();
    __sanitizer_start_switch_fiber(&block->main_fake_stack, first->stack, stack_bytes());
#endif
    simt_switch(&block->main_stack_pointer, first->stack_pointer);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(block->main_fake_stack, nullptr, nullptr);
#endif
    block->current = nullptr;
}

void enter_fiber(void)
{
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void leave_for_main(void)
{
    Thread *self = block->current;
#if SIMT_ASAN
    __sanitizer_start_switch_fiber(nullptr, main_stack, main_stack_bytes);
#endif
    simt_switch(&self->stack_pointer, block->main_stack_pointer);
}

static void switch_to(Thread *thread)
{
    Thread *self = block->current;
    if (thread == self)
        return;
    simt_stats.switches++;
    if (!thread->stack)
        give_stack(thread);
    set_current(thread);
#if SIMT_ASAN
    __sanitizer_start_switch_fiber(&self->fake_stack, thread->stack, stack_bytes());
#endif
    simt_switch(&self->stack_pointer, thread->stack_pointer);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
#endif
}

void wake_spinning(void)
{
    for (unsigned i = 0; i < block->warp_count; i++) {
        block->warps[i].ready |= block->warps[i].spinning;
        block->warps[i].spinning = 0;
    }
}

static Thread *lane_of(unsigned warp)
{
    u32 ready = block->warps[warp].ready;
    int lane;
    if (simt_config.order == SIMT_IN_ORDER) {
        lane = __builtin_ctz(ready);
    } else if (simt_config.order == SIMT_REVERSE) {
        lane = 31 - __builtin_clz(ready);
    } else {
        for (u32 skip = random_bits() % (u32)__builtin_popcount(ready); skip > 0; skip--)
            ready &= ready - 1;
        lane = __builtin_ctz(ready);
    }
    return &block->threads[warp * WARP + (unsigned)lane];
}

// A ready thread: of the running warp if `stay` and there is one, else of another; null: none.
static Thread *ready_thread(bool stay)
{
    unsigned count = block->warp_count;
    if (stay && block->warps[block->warp].ready)
        return lane_of(block->warp);
    unsigned start =
        simt_config.order == SIMT_RANDOM_ORDER ? random_bits() % count : block->warp + 1;
    for (unsigned i = 0; i < count; i++) {
        unsigned warp = simt_config.order == SIMT_REVERSE
                            ? (block->warp + 2 * count - 1 - i) % count
                            : (start + i) % count;
        if (block->warps[warp].ready)
            return lane_of(warp);
    }
    return nullptr;
}

static void execute_a_load(size_t i)
{
    TmaOp *op = block->loads[i];
    block->loads.erase(block->loads.begin() + (long)i);
    execute_tma(op);
}

static bool any_spinning(void)
{
    for (unsigned i = 0; i < block->warp_count; i++)
        if (block->warps[i].spinning)
            return true;
    return false;
}

// The thread that goes on; null: there is none and there will be none.
static Thread *pick(void)
{
    bool random_async = simt_config.async == SIMT_RANDOM_ASYNC;
    for (;;) {
        if (!block->loads.empty() && random_async && (random_bits() & 15) == 0)
            execute_a_load(random_bits() % block->loads.size());
        bool hop = simt_config.order == SIMT_RANDOM_ORDER && (random_bits() & 7) == 0;
        if (Thread *thread = ready_thread(!hop))
            return thread;
        if (!block->loads.empty()) {
            execute_a_load(random_async ? random_bits() % block->loads.size() : 0);
        } else if (any_spinning() && block->progress != block->spin_seen) {
            block->spin_seen = block->progress;
            wake_spinning();
        } else {
            return nullptr;
        }
    }
}

static void tell_deadlock(void)
{
    report("DEADLOCK: no runnable thread");
    for (unsigned i = 0; i < block->warp_count && simt_config.max_reports > 0; i++) {
        const Warp &warp = block->warps[i];
        fprintf(stderr, "  warp %u: live %08x spinning %08x", i, warp.live, warp.spinning);
        for (const WarpOp &op : warp.ops)
            if (op.mask)
                fprintf(stderr, "; warp operation at line %d, mask %08x arrived %08x", op.site,
                        op.mask, op.arrived);
        for (int b = 0; b < BARRIERS; b++)
            if (block->barriers[b].waiting[i])
                fprintf(stderr, "; barrier %d at line %d, waiting %08x", b, block->barriers[b].site,
                        block->barriers[b].waiting[i]);
        fputc('\n', stderr);
    }
}

void block_self(void)
{
    Thread *self = block->current;
    block->warps[self->warp].ready &= ~(1u << self->lane);
    if (Thread *thread = pick()) {
        switch_to(thread);
        return;
    }
    if (!block->failed) {
        block->failed = true;
        tell_deadlock();
    }
    leave_for_main();
}

void spin_self(void)
{
    block->warps[block->current->warp].spinning |= 1u << block->current->lane;
    block_self();
}

void hand_on(void)
{
    Thread *self = block->current, *thread = pick();
    if (!thread) {
        block_self();
    } else if (thread->stack) {
        block->free_stacks.push_back(self->stack);
        switch_to(thread);
    } else {
        thread->stack = self->stack;
        set_current(thread);
    }
}

void simt_yield(void)
{
    block->progress++;
    spin_self();
}
