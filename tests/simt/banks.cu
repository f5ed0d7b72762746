/* Accesses to shared memory whose conflicts are known: test_banks.cc counts them. Those of one
 * warp, and boxes of TMA that wgmma or ldmatrix reads. */
#include "cx_hopper.h"

enum {
    STORE_4, LOAD_4, STORE_8, LOAD_8, STORE_16, LOAD_16, STORE_2, COPY, MATRIX, // `apart` elements
    ROUNDS,   // one lane fewer each round: a row of 32 floats, or the same element of 32 rows
    SKIPS,    // each lane leaves out a round of its own
    BRANCHES, // each half of the warp its own way to one function
    HALVES,   // one of two stores, a half of the warp each
    PAIRS,    // structures of two floats
    UNALIGNED // structures of four floats that are aligned as one float is
};
struct Pair {
    float first, second;
};
struct __align__(8) AlignedPair {
    float first, second;
};
struct Four {
    float at[4];
};

static __noinline__ __device__ void put(float *to, float value)
{
    *to = value;
}

template <class Element> CX_FN void store_apart(u8 *shared, int apart, Element value)
{
    ((Element *)shared)[(int)threadIdx.x * apart] = value;
}
template <class Element> CX_FN Element load_apart(u8 *shared, int apart)
{
    for (int i = (int)threadIdx.x; i < 256 * 32; i += 32)
        ((float *)shared)[i] = (float)i;
    __syncwarp();
    return ((const Element *)shared)[(int)threadIdx.x * apart];
}

CX_FN void store(u8 *shared, int kind, int apart, const uint4 *in)
{
    int lane = (int)threadIdx.x;
    if (kind == STORE_2)
        store_apart<u16>(shared, apart, 1);
    if (kind == STORE_4)
        store_apart<float>(shared, apart, 1.f);
    if (kind == STORE_8)
        store_apart<float2>(shared, apart, make_float2(1.f, 2.f));
    if (kind == STORE_16)
        store_apart<float4>(shared, apart, make_float4(1.f, 2.f, 3.f, 4.f));
    if (kind == PAIRS)
        store_apart<AlignedPair>(shared, apart, {1.f, 2.f});
    if (kind == UNALIGNED)
        store_apart<Four>(shared, apart, *(const Four *)in);
    if (kind == COPY) {
        cx_copy16(cx_shared_address(shared) + (u32)(lane * apart * 16), in + lane, 16);
        cx_copy_commit();
        cx_copy_wait(0);
    }
    if (kind == ROUNDS)
        for (int i = 0; i < 32 - lane; i++)
            ((float *)shared)[apart ? i * 32 + lane : lane * 32 + i] = 1.f;
    if (kind == SKIPS)
        for (int i = 0; i < 32; i++)
            if ((i + lane) % 32 != 5)
                ((float *)shared)[i * 33 + lane * apart] = 1.f;
    if (kind == BRANCHES) {
        if (lane < 16)
            put((float *)shared + lane, 1.f);
        else
            put((float *)shared + lane + 16, 2.f);
    }
    if (kind == HALVES) {
        if (lane < 16)
            ((volatile float *)shared)[lane * apart] = 1.f;
        else
            ((volatile float *)shared)[lane * apart] = 2.f;
    }
}

extern "C" __global__ void access(float *out, const uint4 *in, int kind, int apart)
{
    CX_SHARED(shared);
    store(shared, kind, apart, in);
    float value = 0.f;
    if (kind == LOAD_4)
        value = load_apart<float>(shared, apart);
    if (kind == LOAD_8) {
        float2 pair = load_apart<float2>(shared, apart);
        value = pair.x + pair.y;
    }
    if (kind == LOAD_16) {
        float4 four = load_apart<float4>(shared, apart);
        value = four.x + four.y + four.z + four.w;
    }
    if (kind == MATRIX) {
        u32 r[4];
        load_apart<float>(shared, 1);
        cx_ldmatrix4(r, cx_shared_address(shared) + threadIdx.x * (u32)apart * 16);
        value = (float)r[0];
    }
    out[threadIdx.x] = value;
}
CX_ENTRY(access)

enum { BOX_WGMMA, BOX_WGMMA_MN, BOX_LDMATRIX, BOX_LDMATRIX_SWIZZLED, BOX_BACK }; // what reads a box
enum { SIDE = 64, BAR_AT = SIDE * 128 };

// Brings [64, 64] of two bytes as panels of 16 << swizzle bytes a row.
CX_FN void load_panels(u32 at, const cx_tmap *map, int swizzle)
{
    int span = 16 << swizzle;
    if (threadIdx.x == 0) {
        cx_mbar_init(at + BAR_AT, 1);
        cx_fence_mbar_init();
        cx_mbar_expect(at + BAR_AT, SIDE * 128);
        for (int i = 0; i < 128 / span; i++)
            cx_tma_load2(at + (u32)(i * SIDE * span), map, at + BAR_AT, i * span / 2, 0);
    }
    __syncthreads();
    cx_mbar_wait(at + BAR_AT, 0);
}

// The descriptor of [64, 16] of the panels: columns `at_k` on, or of an MN-major operand rows.
CX_FN u64 operand_of(u32 at, int swizzle, bool mn_major, int at_k)
{
    u32 span = 16u << swizzle, panel = SIDE * span, eight = 8 * span;
    u32 byte = (u32)at_k * 2, leading = mn_major == (swizzle == 0) ? eight : panel;
    u32 stride = mn_major && swizzle == 0 ? panel : eight;
    u32 start = mn_major ? at + (u32)at_k * span : at + byte / span * panel + byte % span;
    u64 mode = swizzle ? (u64)(4 - swizzle) : 0;
    return (cx_operand128(start, leading, stride) & ~((u64)3 << 62)) | mode << 62;
}

// A warpgroup; out [64, 64]: the box times itself. Or a warp; out [32] what its lanes got.
extern "C" __global__ void box(float *out, const __grid_constant__ cx_tmap map, int kind,
                               int swizzle)
{
    CX_SHARED(shared);
    u32 at = cx_shared_address(shared), t = threadIdx.x, lane = t & 31;
    load_panels(at, &map, swizzle);
    if (kind <= BOX_WGMMA_MN) {
        bool mn_major = kind == BOX_WGMMA_MN;
        float d[SIDE / 2];
        for (int i = 0; i < SIDE / 2; i++)
            d[i] = 0.f;
        cx_wgmma_fence();
        for (int k = 0; k < SIDE; k += 16) {
            u64 operand = operand_of(at, swizzle, mn_major, k);
            cx_wgmma64(1, d, operand, operand, 1, mn_major, mn_major);
        }
        cx_wgmma_commit();
        cx_wgmma_wait(0);
        for (u32 i = 0; i < SIDE / 2; i++)
            out[((t >> 5) * 16 + lane / 4 + i / 2 % 2 * 8) * SIDE + i / 4 * 8 + lane % 4 * 2 +
                i % 2] = d[i];
    } else if (kind == BOX_BACK) {
        if (t == 0) {
            cx_tma_store2(&map, at, 0, 0);
            cx_tma_store_commit();
            cx_tma_store_wait();
        }
    } else {
        u32 r[4], chunk = kind == BOX_LDMATRIX_SWIZZLED ? lane % 8 ^ 3 : 3;
        cx_ldmatrix4(r, at + lane * 128 + chunk * 16);
        out[lane] = (float)(r[0] & 0xffff);
    }
}
CX_ENTRY(box)
