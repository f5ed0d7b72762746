/* Random numbers of a stream: Philox and the rest of runtime/random_bits.h, the same bits as on a
 * CPU.
 *
 * A thread makes the four elements of a counter block: 16 bytes (integers: twice that). Seed, draw
 * and the stream's hash lie in device memory, so a graph is replayed unchanged.
 *
 * Definitions: RANDOM_KIND 0 normal, 1 uniform, 2 integers.
 */
#undef PV_RANDOM_BITS_H
#define PV_BITS_FN CX_FN
#include "random_bits.h"
#undef PV_BITS_FN

enum { RANDOM_THREADS = 256 };

extern "C" __global__ void __launch_bounds__(RANDOM_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<RandomArgs> p)
{
    u32 block;
    const RandomArgs &a = p.args[cx_segment(p.head, &block)];
    const CxStream &stream = p.head.step->stream[a.stream];
    int64_t number = (int64_t)block * RANDOM_THREADS + threadIdx.x, first = number * 4;
    if (first >= a.count)
        return;
    u32 counter[4] = {(u32)number, (u32)((u64)number >> 32), stream.draw, stream.hash};
    u32 key[2] = {p.head.step->seed[0], p.head.step->seed[1]};
#ifdef FAULT_COUNTER // all draws are equal
    counter[2] = 0;
#endif
    PvBits bits = pv_philox(counter, key);
    if (RANDOM_KIND == 2) {
        for (int i = 0; i < 4; i++)
            if (first + i < a.count)
                ((int64_t *)a.y)[first + i] = pv_bits_int(bits.word[i], a.lo, a.hi);
        return;
    }
    float value[4];
    if (RANDOM_KIND == 0) {
        pv_bits_normal(bits.word[0], bits.word[1], &value[0], &value[1]);
        pv_bits_normal(bits.word[2], bits.word[3], &value[2], &value[3]);
    } else {
        CX_UNROLL
        for (int i = 0; i < 4; i++)
            value[i] = pv_bits_uniform(bits.word[i]);
    }
    float *y = (float *)a.y + first;
    if (a.y % 16 == 0 && first + 4 <= a.count) {
        *(float4 *)y = make_float4(value[0], value[1], value[2], value[3]);
        return;
    }
    CX_UNROLL
    for (int i = 0; i < 4; i++)
        if (first + i < a.count)
            y[i] = value[i];
}
