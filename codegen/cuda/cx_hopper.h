/* sm_90a's instructions: mbarrier, TMA, wgmma. See cx.h.
 *
 * Addresses of shared memory are 32-bit (cx_shared_address). The order that the asynchronous proxy
 * asks for: what threads stored must be fenced (cx_fence_async) and then synchronised before TMA or
 * wgmma reads it. A warpgroup issues wgmma together: fence, operations, commit, wait.
 */
#pragma once
#include "cx.h"
#if CX_GPU && __CUDA_ARCH__ >= 900

CX_FN void cx_mbar_init(u32 bar, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
// Arrives, and makes the phase wait for bytes of TMA as well.
CX_FN void cx_mbar_expect(u32 bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
CX_FN void cx_mbar_arrive(u32 bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
CX_FN void cx_mbar_wait(u32 bar, int parity)
{
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n}\n" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}
CX_FN void cx_fence_mbar_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
CX_FN void cx_fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
CX_FN void cx_tma_prefetch(const cx_tmap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
CX_FN void cx_tma_load2(u32 dst, const cx_tmap *map, u32 bar, int c0, int c1)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1)
                 : "memory");
}
CX_FN void cx_tma_load3(u32 dst, const cx_tmap *map, u32 bar, int c0, int c1, int c2)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}
CX_FN void cx_tma_load5(u32 dst, const cx_tmap *map, u32 bar, int c0, int c1, int c2, int c3,
                        int c4)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}
CX_FN void cx_tma_load4(u32 dst, const cx_tmap *map, u32 bar, int c0, int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
CX_FN void cx_tma_store2(const cx_tmap *map, u32 src, int c0, int c1)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group "
                 "[%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(src), "r"(c0), "r"(c1)
                 : "memory");
}
CX_FN void cx_tma_store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
CX_FN void cx_tma_store_wait()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
CX_FN void cx_wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
CX_FN void cx_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
#define cx_wgmma_wait(groups)                                                                      \
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory")
// Sums are registers that wgmma writes when it likes: code that makes or reads them stays on its
// side of this line (the compiler sees no other tie between a wait and the registers).
template <int count> CX_FN void cx_wgmma_own(float *d)
{
    CX_UNROLL
    for (int i = 0; i < count; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}
#define cx_registers_more(n)  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n))
#define cx_registers_fewer(n) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n))
#include "cx_wgmma.h"

#elif !CX_GPU
#define cx_mbar_init(bar, arrivals) simt_mbar_init((bar), (arrivals))
#define cx_mbar_expect(bar, bytes)  simt_mbar_arrive((bar), (bytes), SIMT_SITE)
#define cx_mbar_arrive(bar)         simt_mbar_arrive((bar), 0, SIMT_SITE)
#define cx_mbar_wait(bar, parity)   simt_mbar_wait((bar), (parity), SIMT_SITE)
#define cx_fence_mbar_init()        ((void)0)
#define cx_fence_async()            simt_fence_proxy()
#define cx_tma_prefetch(map)        ((void)(map))
#define cx_tma_load2(dst, map, bar, c0, c1)                                                        \
    do {                                                                                           \
        int start_[2] = {c0, c1};                                                                  \
        simt_tma_load((dst), (map), (bar), start_, 2, SIMT_SITE);                                  \
    } while (0)
#define cx_tma_load3(dst, map, bar, c0, c1, c2)                                                    \
    do {                                                                                           \
        int start_[3] = {c0, c1, c2};                                                              \
        simt_tma_load((dst), (map), (bar), start_, 3, SIMT_SITE);                                  \
    } while (0)
#define cx_tma_load5(dst, map, bar, c0, c1, c2, c3, c4)                                            \
    do {                                                                                           \
        int start_[5] = {c0, c1, c2, c3, c4};                                                      \
        simt_tma_load((dst), (map), (bar), start_, 5, SIMT_SITE);                                  \
    } while (0)
#define cx_tma_load4(dst, map, bar, c0, c1, c2, c3)                                                \
    do {                                                                                           \
        int start_[4] = {c0, c1, c2, c3};                                                          \
        simt_tma_load((dst), (map), (bar), start_, 4, SIMT_SITE);                                  \
    } while (0)
#define cx_tma_store2(map, src, c0, c1)                                                            \
    do {                                                                                           \
        int start_[2] = {c0, c1};                                                                  \
        simt_tma_store((map), (src), start_, 2, SIMT_SITE);                                        \
    } while (0)
#define cx_tma_store_commit() simt_bulk_commit()
#define cx_tma_store_wait()   simt_bulk_wait()
#define cx_wgmma_fence()      simt_wgmma_fence()
template <int count> static inline void cx_wgmma_own(float *)
{
}
#define cx_wgmma_commit()     simt_wgmma_commit()
#define cx_wgmma_wait(groups) simt_wgmma_wait(groups)
#define cx_registers_more(n)  ((void)0)
#define cx_registers_fewer(n) ((void)0)
#define cx_wgmma64(half, d, a, b, keep, a_mn, b_mn)                                                \
    simt_wgmma((half), (d), 64, (a), (b), 0, (keep), (a_mn), (b_mn), SIMT_SITE)
#define cx_wgmma128(half, d, a, b, keep, a_mn, b_mn)                                               \
    simt_wgmma((half), (d), 128, (a), (b), 0, (keep), (a_mn), (b_mn), SIMT_SITE)
#define cx_wgmma256(half, d, a, b, keep, a_mn, b_mn)                                               \
    simt_wgmma((half), (d), 256, (a), (b), 0, (keep), (a_mn), (b_mn), SIMT_SITE)
#endif

// Descriptor of an operand with the 128-byte swizzle (PTX ISA, "matrix descriptor"); offsets in
// bytes.
CX_FN u64 cx_operand128(u32 address, u32 leading, u32 stride)
{
    return (u64)((address & 0x3ffff) >> 4) | (u64)((leading & 0x3ffff) >> 4) << 16 |
           (u64)((stride & 0x3ffff) >> 4) << 32 | (u64)1 << 62;
}
