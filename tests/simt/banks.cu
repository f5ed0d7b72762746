/* Accesses of one warp to shared memory whose conflicts are known: test_banks.cc counts them. */
#include "cx.h"

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
