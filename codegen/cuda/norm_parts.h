/* What the templates of norms share: sums over warps and blocks, runs of elements, activations.
 *
 * A template includes this inside its namespace, after storage.h and with what it bakes in set;
 * there is no include guard, since each specialisation has a copy. A run is 4 consecutive elements
 * of f32, or 8 where the struct has halves: one access of 16 bytes where addresses and strides
 * allow it, which a block finds out once (`wide`), else one an element.
 *
 * NORM_TYPES: the struct's `types`. Statistics, dgamma and dbeta sums are f32.
 */

CX_FN float warp_sum(float value)
{
    CX_UNROLL
    for (int by = 16; by > 0; by >>= 1)
        value += __shfl_xor_sync(CX_ALL_LANES, value, by);
    return value;
}

CX_FN float warp_max(float value)
{
    CX_UNROLL
    for (int by = 16; by > 0; by >>= 1)
        value = fmaxf(value, __shfl_xor_sync(CX_ALL_LANES, value, by));
    return value;
}

// The sum over a block of `threads`, the same in every thread. partial: [threads / 32], shared.
template <int threads> CX_FN float block_sum(float value, float *partial)
{
    value = warp_sum(value);
    if ((threadIdx.x & 31) == 0)
        partial[threadIdx.x >> 5] = value;
    __syncthreads();
    float sum = 0.f;
    CX_UNROLL
    for (int i = 0; i < threads / 32; i++)
        sum += partial[i];
#ifndef FAULT_REDUCTION // without it a fast warp overwrites partial[]
    __syncthreads();
#endif
    return sum;
}

template <int threads> CX_FN float block_max(float value, float *partial)
{
    value = warp_max(value);
    if ((threadIdx.x & 31) == 0)
        partial[threadIdx.x >> 5] = value;
    __syncthreads();
    float most = partial[0];
    CX_UNROLL
    for (int i = 1; i < threads / 32; i++)
        most = fmaxf(most, partial[i]);
#ifndef FAULT_REDUCTION
    __syncthreads();
#endif
    return most;
}

// Quotients of numbers below 2^31 by a number that is the same for a whole block.
struct Divider {
    u32 by, magic, shift;
};
CX_FN Divider divider(u32 by)
{
    Divider d = {by, 0, 0};
    while ((1ull << d.shift) < by)
        d.shift++;
    d.magic = (u32)(((1ull << 32) * ((1ull << d.shift) - by)) / by + 1);
    return d;
}
CX_FN u32 divide(u32 n, const Divider &d)
{
    return ((u32)((u64)n * d.magic >> 32) + n) >> d.shift;
}

// How an address of the argument struct is stored, by its place in `types`.
#define NORM_STORED(index)                                                                         \
    CxStored<(int)((unsigned long long)(NORM_TYPES) >> 4 * (index)&15)>::Element

// Elements that a thread takes at once: 16 bytes of them where they are halves or all is f32.
enum { RUN = (NORM_TYPES) ? 8 : 4 };
struct __align__(16) Run
{
    float at[RUN];
};

CX_FN bool is_aligned(const void *address)
{
    return ((u64)address & 15) == 0;
}
CX_FN void read_wide(float (&x)[4], const float *from)
{
    float4 q = *(const float4 *)from;
    x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
}
template <typename Element> CX_FN void read_wide(float (&x)[8], const Element *from)
{
    cx_read8(x, from);
}
CX_FN void write_wide(float *to, const float (&x)[4])
{
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
}
template <typename Element> CX_FN void write_wide(Element *to, const float (&x)[8])
{
    cx_write8(to, x);
}

// Elements from[0 .. RUN - 1]; those from `left` on are 0.
template <typename Element> CX_FN Run load_run(const Element *from, int left, bool wide)
{
    Run run = {};
    if (wide && left > 0)
        read_wide(run.at, from);
    CX_UNROLL
    for (int j = 0; j < RUN; j++)
        if (!wide && j < left)
            run.at[j] = cx_read(from[j]);
    return run;
}
template <typename Element> CX_FN void store_run(Element *to, const Run &run, int left, bool wide)
{
    if (wide && left > 0)
        write_wide(to, run.at);
    CX_UNROLL
    for (int j = 0; j < RUN; j++)
        if (!wide && j < left)
            cx_write(to + j, run.at[j]);
}
// A run as a thread keeps it: f32, or the words of halves.
struct __align__(16) Words
{
    u32 at[RUN / 2];
};
template <typename Element> struct KeptAs {
    typedef Words Type;
};
template <> struct KeptAs<float> {
    typedef Run Type;
};
CX_FN void keep_run(Run &kept, const float *from, int left, bool wide)
{
    kept = load_run(from, left, wide);
}
template <typename Half> CX_FN void keep_run(Words &kept, const Half *from, int left, bool wide)
{
    uint4 q = make_uint4(0, 0, 0, 0);
    if (wide && left > 0)
        q = *(const uint4 *)from;
    kept.at[0] = q.x, kept.at[1] = q.y, kept.at[2] = q.z, kept.at[3] = q.w;
    CX_UNROLL
    for (int j = 0; j < RUN; j++)
        if (!wide && j < left)
            kept.at[j / 2] |= (u32)from[j].bits << j % 2 * 16;
}
template <typename Element> CX_FN Run expand(const Run &kept)
{
    return kept;
}
template <typename Half> CX_FN Run expand(const Words &kept)
{
    Run run;
    CX_UNROLL
    for (int j = 0; j < RUN; j++) {
        Half half;
        half.bits = (u16)(kept.at[j / 2] >> j % 2 * 16);
        run.at[j] = cx_read(half);
    }
    return run;
}

CX_FN float run_sum(const Run &run)
{
    float sum = 0.f;
    CX_UNROLL
    for (int j = 0; j < RUN; j += 2)
        sum += run.at[j] + run.at[j + 1];
    return sum;
}

#ifdef NORM_ACT // a PvAct
CX_FN float activate(float y)
{
    if (NORM_ACT == PV_ACT_SILU)
        return y / (1.f + expf(-y));
    if (NORM_ACT == PV_ACT_GELU)
        return 0.5f * y * erfcf(-0.707106781f * y);
    if (NORM_ACT == PV_ACT_RELU)
        return y > 0.f ? y : 0.f;
    return y;
}
#endif
