/* The words of CUDA C for a C++ compiler: what kernels see in place of the compiler's built-ins.
 *
 * Collectives get the line of their call as a site number: lanes of a warp that meet in collectives
 * of different sites are divergent, which hardware leaves undefined and the emulator reports. So
 * write one collective a line. Only what kernels use is here; extend it with them.
 */
#pragma once
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS // C's math.h: that of C++ takes half of a kernel's time
#include <math.h>
#include <string.h>
#include <utility>
#include "simt.h"

struct SimtBlockView {
    SimtUint3 block_index;
    SimtDim block_size, grid_size;
    unsigned char *shared; // dynamic shared memory
};
extern SIMT_LOCAL SimtBlockView simt_block;
extern SIMT_LOCAL SimtUint3 *simt_thread_index;

#define threadIdx (*simt_thread_index)
#define blockIdx  (simt_block.block_index)
#define blockDim  (simt_block.block_size)
#define gridDim   (simt_block.grid_size)
#define warpSize  32

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __restrict__ __restrict
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__   static __attribute__((section("simt_shared")))

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

extern "C" {
void simt_barrier(int id, int count, int site);        // bar.sync id[, count]; count 0: all threads
void simt_barrier_arrive(int id, int count, int site); // bar.arrive
void simt_warp_sync(uint32_t mask, int site);
enum { SIMT_SHFL_INDEX, SIMT_SHFL_XOR, SIMT_SHFL_DOWN, SIMT_SHFL_UP };
uint32_t simt_shuffle(uint32_t mask, int kind, uint32_t value, int arg, int width, int site);
enum { SIMT_BALLOT, SIMT_ALL };
uint32_t simt_vote(uint32_t mask, int kind, int predicate, int site);
void simt_ldmatrix(uint32_t *out, int count, int transposed, uint32_t address, int site);
void simt_stmatrix(const uint32_t *in, int count, int transposed, uint32_t address, int site);
void simt_mma_bf16(float *d, const uint32_t *a, const uint32_t *b, int site); // m16n8k16
void simt_mma_f16(float *d, const uint32_t *a, const uint32_t *b, int site);
uint32_t simt_shared_address(const void *pointer); // __cvta_generic_to_shared
void simt_cp_async(uint32_t dst, const void *src, int bytes, int source_bytes, int site);
void simt_cp_commit(void);
void simt_cp_wait(int groups);
void simt_mbar_init(uint32_t address, int count);
void simt_mbar_arrive(uint32_t address, int expected_bytes, int site);
void simt_mbar_wait(uint32_t address, int parity, int site);
void simt_fence_proxy(void);
void simt_tma_load(uint32_t dst, const void *map, uint32_t mbar, const int *start, int rank,
                   int site);
void simt_tma_store(const void *map, uint32_t src, const int *start, int rank, int site);
void simt_bulk_commit(void);
void simt_bulk_wait(void);
// D[64, n] f32 of a warpgroup += A[64, 16] B[n, 16]'; a_registers null: A is in shared memory too.
// half: of both operands, 1 bf16, 2 f16
void simt_wgmma(int half, float *d, int n, uint64_t a, uint64_t b, const uint32_t *a_registers,
                int accumulate, int a_mn_major, int b_mn_major, int site);
void simt_wgmma_fence(void);
void simt_wgmma_commit(void);
void simt_wgmma_wait(int groups);
void simt_yield(void);
float simt_atomic_add_f32(float *address, float value);
uint32_t simt_atomic_add_u32(uint32_t *address, uint32_t value);
uint32_t simt_atomic_inc(uint32_t *address, uint32_t last);
void simt_fence_device(void);
}
#define SIMT_SITE __LINE__

#define __syncthreads() simt_barrier(0, 0, SIMT_SITE)
#define __syncwarp(...) simt_warp_sync(0xffffffffu, SIMT_SITE)
#define __threadfence() simt_fence_device()

template <class T> T simt_shuffle_any(uint32_t mask, int kind, T value, int arg, int site)
{
    static_assert(sizeof(T) == 4, "shuffles move 32 bits");
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = simt_shuffle(mask, kind, bits, arg, 32, site);
    memcpy(&value, &bits, 4);
    return value;
}
#define __shfl_sync(mask, value, lane)                                                             \
    simt_shuffle_any((mask), SIMT_SHFL_INDEX, (value), (lane), SIMT_SITE)
#define __shfl_xor_sync(mask, value, lane)                                                         \
    simt_shuffle_any((mask), SIMT_SHFL_XOR, (value), (lane), SIMT_SITE)
#define __shfl_down_sync(mask, value, by)                                                          \
    simt_shuffle_any((mask), SIMT_SHFL_DOWN, (value), (by), SIMT_SITE)
#define __shfl_up_sync(mask, value, by)                                                            \
    simt_shuffle_any((mask), SIMT_SHFL_UP, (value), (by), SIMT_SITE)
#define __ballot_sync(mask, p) simt_vote((mask), SIMT_BALLOT, (p), SIMT_SITE)
#define __any_sync(mask, p)    (simt_vote((mask), SIMT_BALLOT, (p), SIMT_SITE) != 0)
#define __all_sync(mask, p)    simt_vote((mask), SIMT_ALL, (p), SIMT_SITE)

static inline float atomicAdd(float *address, float value)
{
    return simt_atomic_add_f32(address, value);
}
static inline uint32_t atomicAdd(uint32_t *address, uint32_t value)
{
    return simt_atomic_add_u32(address, value);
}
// The old value; then one more, or 0 behind `last`.
static inline uint32_t atomicInc(uint32_t *address, uint32_t last)
{
    return simt_atomic_inc(address, last);
}
static inline uint32_t __float_as_uint(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline float __uint_as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
#define __expf expf
static inline int __ffs(int x) // place of the lowest bit from 1 on; 0: none
{
    return __builtin_ffs(x);
}
template <class T> T __ldg(const T *address)
{
    return *address;
}
static inline int min(int a, int b)
{
    return a < b ? a : b;
}
static inline int max(int a, int b)
{
    return a > b ? a : b;
}

// Sizes of a kernel's parameters, as the driver finds them in a compiled kernel.
template <class... A> constexpr SimtParameters simt_parameters(void (*)(A...))
{
    return {sizeof...(A), {sizeof(A)...}};
}

// An argument that may lie anywhere, as a value that is as aligned as its type wants.
template <class A> A simt_argument(const void *from)
{
    A value;
    memcpy((void *)&value, from, sizeof value);
    return value;
}
// Calls a kernel with arguments in cuLaunchKernel's convention.
template <class... A, size_t... I>
void simt_call_indexed(void (*kernel)(A...), void **args, std::index_sequence<I...>)
{
    kernel(simt_argument<A>(args[I])...);
}
template <class... A> void simt_call(void (*kernel)(A...), void **args)
{
    simt_call_indexed(kernel, args, std::index_sequence_for<A...>{});
}
