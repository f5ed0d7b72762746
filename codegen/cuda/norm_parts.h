/* What the templates of norms share: sums over warps and blocks, quads of elements, activations.
 *
 * A template includes this inside its namespace, after setting what it bakes in; there is no
 * include guard, since each specialisation has a copy. A quad is four consecutive elements: one
 * access of 16 bytes where addresses and strides allow it, which a block finds out once (`wide`),
 * else up to four.
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
    __syncthreads();
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

struct Quad {
    float at[4];
};

CX_FN bool is_aligned(const void *address)
{
    return ((u64)address & 15) == 0;
}
CX_FN Quad load_wide(const float *from)
{
    float4 q = *(const float4 *)from;
    return {{q.x, q.y, q.z, q.w}};
}
CX_FN void store_wide(float *to, const Quad &q)
{
    *(float4 *)to = make_float4(q.at[0], q.at[1], q.at[2], q.at[3]);
}

// Elements from[0 .. 3]; those from `left` on are 0.
CX_FN Quad load_quad(const float *from, int left, bool wide)
{
    Quad q = {{0.f, 0.f, 0.f, 0.f}};
    if (wide)
        return left > 0 ? load_wide(from) : q;
    CX_UNROLL
    for (int j = 0; j < 4; j++)
        if (j < left)
            q.at[j] = from[j];
    return q;
}
CX_FN void store_quad(float *to, const Quad &q, int left, bool wide)
{
    if (wide && left > 0)
        store_wide(to, q);
    CX_UNROLL
    for (int j = 0; j < 4; j++)
        if (!wide && j < left)
            to[j] = q.at[j];
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
