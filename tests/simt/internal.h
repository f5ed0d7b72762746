/* The state of the block that runs, and what the emulator's parts ask of each other.
 *
 * scheduler.cc switches fibers, race.cc orders memory accesses, collective.cc has what a warp or a
 * block does together, async.cc cp.async, mbarrier and TMA, wgmma.cc the matrix unit, launch.cc
 * grids and the life of threads. Every host thread has a Block of its own, in which it runs one
 * block after another: only what is told needs a lock.
 */
#pragma once
#include <stdint.h>
#include <unordered_map>
#include <vector>
#include "simt.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum { MAX_THREADS = 1024, MAX_WARPS = 32, WARP = 32, BARRIERS = 16, WARPGROUPS = 8, OPEN_OPS = 4 };
const u32 ALL_LANES = 0xffffffffu;
const u32 SHARED_BASE = 1024; // first shared address: 0 is never valid
const size_t SHARED_BYTES = 228 * 1024;
const size_t SHARED_LIMIT = 227 * 1024; // what a block may ask for

// Time in race mode is (epoch, clock of a thread). A block-wide barrier orders everything before
// it, so it starts a new epoch and all clocks of the old one are forgotten; Clock holds what is
// known to have happened within `epoch`, an entry a thread and the last one for the TMA engine.
struct Clock {
    u32 epoch = 0;
    std::vector<u32> at;
};

// What hands data on from block to block (race mode): a thread's __threadfence, and then an atomic
// of the same word by either side, and then a __threadfence of the other.
struct Release { // an atomic behind a fence
    u32 block;   // which
    Clock fence; // what had happened before the fence
};
struct Acquire {       // a fence behind an atomic
    const void *word;
    size_t releases;   // that the atomic saw
    u32 epoch, thread, clock; // when
};

struct Thread {
    SimtUint3 index;
    void *stack_pointer;
    unsigned linear, lane, warp;
    u8 *stack;                    // null: it has not begun
    void *fake_stack;             // of AddressSanitizer
    u32 clock;                    // its own time
    Clock seen;                   // of the others
    u32 fence_epoch, fence_clock; // its last fence.proxy.async
    Clock device_fence;           // what was before its last __threadfence; epoch 0: none
    std::vector<Acquire> atomics; // since then
};

struct WarpOp {
    u32 mask, arrived; // mask 0: free
    int kind, site;
    void *arg[WARP];
};
struct Warp {
    u32 ready, live, spinning; // lane masks
    WarpOp ops[OPEN_OPS];
};
struct Barrier {
    int arrived, expected, site;
    bool mixed; // reached from different lines
    u32 waiting[MAX_WARPS];
    std::vector<u32> arrivals; // threads; race mode only
};

struct CpAsync {
    u32 dst;
    const void *src;
    int bytes, source_bytes;
};
struct CpQueue {
    std::vector<std::vector<CpAsync>> groups;
    std::vector<CpAsync> open;
};
struct MbarClock {
    Clock released, acquired;
};
struct TmaOp {
    bool store;
    u32 shared, mbar;
    u8 map[128]; // copied at issue: a by-value parameter lives no longer than its thread
    int start[5], rank, site;
    const void *pc; // behind the call
    unsigned issuer;
    Clock clock; // of the issuer, at issue
};

struct WgmmaOp {
    int half, n, accumulate, a_mn_major, b_mn_major, site;
    const void *pc; // behind the call
    u64 a, b;       // descriptors
    bool a_in_registers;
    u32 a_registers[4][WARP][4];
    float *d[4][WARP];
    int warps; // mask of the warps that have issued it
    bool done;
};
// The value of an accumulator while wgmma is in flight; the registers themselves are poisoned.
struct Accumulator {
    float *registers;
    std::vector<float> value;
    int pending;
};
struct Warpgroup {
    std::vector<WgmmaOp *> ops; // ops[0] is number `base`
    size_t base;
    size_t issued[4]; // a warp
    bool fenced[4];   // since it last had its registers for itself
    std::vector<size_t> commits[4];
    std::vector<Accumulator> accumulators[128];
};

enum { REMEMBERED_READERS = 8, MIXED_WARPS = 0xffff };
// What is known of two bytes of shared memory: last write, and the reads since.
struct Granule {
    u32 write_epoch, read_epoch, write_clock;
    u16 writer, readers; // readers > REMEMBERED_READERS: some were forgotten
    u16 warp;            // of all readers, MIXED_WARPS if there are several
    u32 latest;          // their latest clock
    u32 read_clock[REMEMBERED_READERS];
    u16 reader[REMEMBERED_READERS];
};

struct Block {
    Thread threads[MAX_THREADS];
    Warp warps[MAX_WARPS];
    Barrier barriers[BARRIERS];
    Warpgroup warpgroups[WARPGROUPS];
    CpQueue cp[MAX_THREADS];
    unsigned thread_count, warp_count, live, warp; // warp: the running one
    Thread *current;                               // null outside kernels
    void *main_stack_pointer, *main_fake_stack;
    SimtKernel kernel;
    void **args;
    const char *name;
    size_t shared_bytes;
    u8 *shared, *stacks;
    unsigned stacks_used;
    std::vector<u8 *> free_stacks;   // of ended threads
    SimtDim index_size = {0, 0, 0};  // of the blocks that the threads' indices were made for
    int open_barriers;               // that have arrivals
    bool used_copies, used_matrices; // cp.async and TMA, wgmma
    std::vector<float> matrices;     // what wgmma works in
    u64 random;
    u64 progress, spin_seen; // spinning threads look again when there was progress
    bool failed;
    std::vector<TmaOp *> loads, stores;
    u32 epoch, engine_clock;
    std::unordered_map<u32, MbarClock> mbar_clocks;
    std::vector<Granule> granules, static_granules; // dynamic and static shared memory
    std::vector<Acquire> acquired;
    u32 linear, launch;                             // number of the block, of the launch
};
extern SIMT_LOCAL Block *block; // of this host thread; null: it never launched anything

// Linker symbols around the static __shared__ variables of all kernels; null without any.
extern "C" u8 __start_simt_shared[] __attribute__((weak));
extern "C" u8 __stop_simt_shared[] __attribute__((weak));

/* launch.cc */
u32 random_bits(void);
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* scheduler.cc */
size_t stack_bytes(void);
void run_block(Thread *first, void (*run_threads)(void)); // until all have ended
void enter_fiber(void);                                   // first thing that a fiber does
void leave_for_main(void);                                // never returns to this fiber
void block_self(void); // until another thread makes this one ready
void spin_self(void);  // until there was progress
void hand_on(void);    // at the end of a thread: returns as one that has not begun
void wake_spinning(void);

/* race.cc */
struct Place { // of the access that is being checked: an instrumented instruction or an intrinsic
    const void *pc;
    int line;
};
extern SIMT_LOCAL Place place;
void start_checks_of_launch(void);
u32 clock_of(Thread *thread);
Clock &seen_by(Thread *thread);
void clock_release(Clock &object, Thread *thread);
void clock_acquire(const Clock &object, Thread *thread);
void clock_join(Clock &to, const Clock &from);
void check_shared(u32 offset, u32 bytes, u32 thread, u32 clock, const Clock &seen, bool write,
                  bool async_read);
void check_shared_by(Thread *thread, u32 offset, u32 bytes, bool write);
void check_global(const u8 *address, size_t bytes, bool write);
void note_fence(void);                      // __threadfence by the running thread
void note_atomic(const void *address);      // an atomic by it, right before

/* banks.cc */
void start_counting_banks(void); // of a block
void forget_banks(void);
void enter_call(const void *pc); // by the running thread
void leave_call(void);
void enter_basic_block(const void *pc); // by the running thread
void note_shared_access(Thread *thread, u32 offset, u32 bytes, u32 width, bool write,
                        const void *pc); // width: of its pieces
// Wavefronts of up to eight chunks of 16 bytes that are served together, by their addresses.
u32 chunk_wavefronts(const u32 *chunks, u32 count);
// An instruction's `groups` of them, which took so many in all. Counted in every mode.
void note_chunks(const void *pc, bool write, u32 groups, u32 wavefronts);
void count_banks_of(unsigned warp); // its live lanes are together

/* collective.cc */
enum { OP_SYNC, OP_SHUFFLE, OP_VOTE, OP_LDMATRIX, OP_STMATRIX, OP_MMA, OP_WGMMA };
typedef void (*WarpOpBody)(WarpOp &op, unsigned warp);
void warp_op(u32 mask, int kind, int site, void *arg, WarpOpBody body);
void *shared_pointer(u32 address, u32 bytes, int site); // checked; a scratch page where it is wrong
void barriers_after_exit(void);                         // fewer live threads may complete barriers

/* async.cc */
u32 swizzled(u32 address, int swizzle);
void execute_tma(TmaOp *op);

/* wgmma.cc */
void reset_warpgroup(Warpgroup &group);

static inline float bf16_to_float(u32 bits)
{
    u32 word = bits << 16;
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
}
static inline float f16_to_float(u32 bits)
{
    u16 half = (u16)bits;
    _Float16 value;
    __builtin_memcpy(&value, &half, sizeof value);
    return (float)value;
}
typedef float HalfToFloat(u32 bits);
// half: 1 bf16, 2 f16
static inline HalfToFloat *half_to_float(int half)
{
    return half == 2 ? f16_to_float : bf16_to_float;
}
