/* A SIMT emulator: CUDA kernels, compiled as C++, executed on a CPU. What tests call.
 *
 * The kernel text that NVRTC compiles is compiled by the C++ compiler as well (cuda_words.h gives
 * the CUDA spellings, codegen/cuda/cx.h the wrappers of PTX), and simt_launch runs it: one block
 * after another, on one or a few host threads. A thread that never waits is a mere call; one that
 * does is a fiber. Warp collectives are carried out by the last lane to arrive.
 * Results of cp.async, TMA and wgmma appear at once, as late as the rules permit, or at random.
 * Fresh memory is NaN in every float format. In race mode the kernel is compiled with
 * -fsanitize=thread, whose hooks are our own (race.cc): every load and store is checked for order,
 * bounds and initialisation.
 *
 * Not modelled: clusters and multicast, several resident blocks, im2col maps, boxes narrower than
 * their swizzle, base offsets of wgmma operands. Sums of mma have another order than hardware's.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct SimtUint3 {
    unsigned x, y, z;
};
struct SimtDim {
    unsigned x, y, z;
    constexpr SimtDim(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

typedef void (*SimtKernel)(void **args); // arguments as cuLaunchKernel takes them

// A variable of each host thread, small enough for a library that is opened at run time.
#define SIMT_LOCAL __thread __attribute__((tls_model("initial-exec")))

struct SimtParameters {
    unsigned count;
    size_t bytes[8];
};

enum SimtOrder { SIMT_IN_ORDER, SIMT_REVERSE, SIMT_RANDOM_ORDER };
enum SimtAsync { SIMT_EAGER, SIMT_LATE, SIMT_RANDOM_ASYNC };

// Of all accesses to shared memory. What is in a loop is known when it has been run: learn first.
enum SimtBanks { SIMT_NO_BANKS, SIMT_LEARN_LOOPS, SIMT_COUNT_BANKS };

struct SimtConfig {
    int order;       // SimtOrder: which runnable thread goes on
    int async;       // SimtAsync: when an asynchronous operation takes effect
    int race;        // 1: check every access (kernels must be compiled with -fsanitize=thread)
    unsigned seed;   // of both random choices
    int max_reports; // lines written to stderr; 0: none. All are counted
    int threads = 1; // of the host, that share the blocks of a grid; not used in race mode
    int banks = 0;   // SimtBanks (kernels compiled as for race mode)
};
extern SimtConfig simt_config;

struct SimtStats {
    uint64_t switches, warp_ops, barriers, mma, wgmma;
    // Of shared memory, and those of them that are too many. ldmatrix, TMA and wgmma count in every
    // mode, loads, stores and cp.async where banks are counted.
    uint64_t wavefronts, bank_conflicts;
    uint64_t cp_async, tma_bytes;
    uint64_t races, errors; // races are errors too
};
extern SIMT_LOCAL SimtStats simt_stats; // of launches by this host thread

// A place of a kernel that accesses shared memory, and what it cost.
struct SimtBankSite {
    const void *pc; // behind the access
    uint32_t bytes; // of a lane
    bool write;
    uint64_t instructions, wavefronts, conflicts; // of warps; conflicts: wavefronts too many
};

extern "C" {
// Runs all blocks of a grid. 0: ran to the end (errors may have been counted); 1: it could not.
int simt_launch(const char *name, SimtKernel kernel, SimtDim grid, SimtDim block,
                size_t dynamic_shared, void **args);
// The text of the first report since the last simt_reset, "" if there was none.
const char *simt_first_report(void);
void simt_reset(void); // zeroes the statistics
// Those since simt_reset, where simt_config.banks was set; they live until the next launch.
const SimtBankSite *simt_bank_sites(size_t *count);

// Device memory: poisoned, 256-byte aligned, guarded and known to the checks of race mode.
void *simt_malloc(size_t bytes);
void simt_free(void *memory);
// Memory of a caller's own as device memory that race mode knows; within 4 KiB around it nothing
// may be touched.
void simt_register_memory(void *memory, size_t bytes);
void simt_forget_memory(void *memory);
// How many kernel images with the instrumentation of race mode were loaded so far.
unsigned simt_instrumented_images(void);

// Fills a 128-byte tensor map as cuTensorMapEncodeTiled does. sizes, box and steps have `rank`
// entries, strides (bytes, multiples of 16) rank - 1; steps may be null. swizzle: 0, or 1/2/3 for
// 32/64/128 bytes. Nonzero: not a map that the driver would accept.
int simt_tensor_map_tiled(void *map, int element_bytes, int rank, void *base, const uint64_t *sizes,
                          const uint64_t *strides, const uint32_t *box, const uint32_t *steps,
                          int swizzle);
}
