/* What CUDA kernels are written in, besides plain CUDA C: types, bf16, and sm_80's instructions.
 *
 * Inline PTX stands in cx*.h only, and every cx_ wrapper has two bodies: PTX for NVRTC, and a call
 * of the emulator (tests/simt) for a C++ compiler, so that one kernel text runs on both. No header
 * of NVIDIA's is needed. Collectives are macros in the emulator's body, so that their site is the
 * line of the kernel. Shared memory is dynamic only. bf16 values are raw bits.
 */
#pragma once
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define CX_GPU 1
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define CX_FN           static __device__ __forceinline__
#define CX_MEMBER       __device__ __forceinline__
#define CX_SHARED(name) extern __shared__ __align__(1024) u8 name[]
#define CX_UNROLL       _Pragma("unroll")
#define CX_NO_UNROLL    _Pragma("unroll 1")
#define CX_PRAGMA(text) _Pragma(#text)
#define CX_UNROLL_BY(n) CX_PRAGMA(unroll n)
#define CX_ENTRY(kernel)
#define CX_CONSTANT(name, value)
#define INFINITY __int_as_float(0x7f800000)
#else
#define CX_GPU 0
#include "cuda_words.h"
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
#define CX_FN           static inline
#define CX_MEMBER       inline
#define CX_SHARED(name) u8 *const name = simt_block.shared
#define CX_UNROLL
#define CX_NO_UNROLL
#define CX_UNROLL_BY(n)
// After a kernel: KERNEL__simt takes its arguments as cuLaunchKernel does.
#define CX_ENTRY(kernel)                                                                           \
    extern "C" const SimtParameters kernel##__simt_parameters = simt_parameters(kernel);           \
    extern "C" void kernel##__simt(void **args)                                                    \
    {                                                                                              \
        simt_call(kernel, args);                                                                   \
    }
// A number of the kernel that its launcher must know, such as bytes of shared memory.
#define CX_CONSTANT(name, value) extern "C" const int name = value;
#endif

typedef u16 bf16;
struct __align__(64) cx_tmap
{ // CUtensorMap, passed by value as a __grid_constant__
    u64 opaque[16];
};
#define CX_ALL_LANES 0xffffffffu
#define CX_LOG2E     1.4426950408889634f

/* ---- bf16 and fast functions ---- */

CX_FN float cx_from_bf16(bf16 value)
{
    return __uint_as_float((u32)value << 16);
}
CX_FN float cx_low(u32 pair) // the first of two bf16 in a word
{
    return __uint_as_float(pair << 16);
}
CX_FN float cx_high(u32 pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

#if CX_GPU
CX_FN u32 cx_pack(float low, float high) // rounds to nearest even
{
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
CX_FN bf16 cx_to_bf16(float value)
{
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
CX_FN float cx_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
CX_FN float cx_reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
CX_FN bf16 cx_to_bf16(float value)
{
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fff;
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
CX_FN u32 cx_pack(float low, float high)
{
    return (u32)cx_to_bf16(low) | (u32)cx_to_bf16(high) << 16;
}
CX_FN float cx_exp2(float x)
{
    return exp2f(x);
}
CX_FN float cx_reciprocal(float x)
{
    return 1.0f / x;
}
#endif

/* ---- sm_80: named barriers, cp.async, ldmatrix, mma.sync ---- */

#if CX_GPU
CX_FN void cx_keep(u32 &x) // x as it is, for all that the compiler can know a new number
{
    asm volatile("" : "+r"(x));
}
#define cx_barrier(id, threads) asm volatile("bar.sync %0, %1;" ::"n"(id), "n"(threads) : "memory")
CX_FN u32 cx_shared_address(const void *pointer)
{
    return (u32)__cvta_generic_to_shared(pointer);
}
// 16 bytes; those beyond source_bytes become zero
CX_FN void cx_copy16(u32 dst, const void *src, int source_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(source_bytes)
                 : "memory");
}
CX_FN void cx_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
#define cx_copy_wait(groups) asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory")
// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
CX_FN void cx_ldmatrix4(u32 *r, u32 address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
CX_FN void cx_ldmatrix4_transposed(u32 *r, u32 address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
// d[16, 8] f32 += a[16, 16] b[8, 16]', bf16
CX_FN void cx_mma(float *d, const u32 *a, const u32 *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// the same, f16
CX_FN void cx_mma_f16(float *d, const u32 *a, const u32 *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
#define cx_keep(x)                          ((void)(x))
#define cx_barrier(id, threads)             simt_barrier((id), (threads), SIMT_SITE)
#define cx_shared_address(pointer)          simt_shared_address(pointer)
#define cx_copy16(dst, src, bytes)          simt_cp_async((dst), (src), 16, (bytes), SIMT_SITE)
#define cx_copy_commit()                    simt_cp_commit()
#define cx_copy_wait(groups)                simt_cp_wait(groups)
#define cx_ldmatrix4(r, address)            simt_ldmatrix((r), 4, 0, (address), SIMT_SITE)
#define cx_ldmatrix4_transposed(r, address) simt_ldmatrix((r), 4, 1, (address), SIMT_SITE)
#define cx_mma(d, a, b)                     simt_mma_bf16((d), (a), (b), SIMT_SITE)
#define cx_mma_f16(d, a, b)                 simt_mma_f16((d), (a), (b), SIMT_SITE)
#endif
