/* Norm tables of what lies in parts (GroupNormArgs.parts): each part's kernel left the mean
 * of every channel of every image over its positions, and the squares about it. A warp puts
 * those of a group of an image together, in a fixed order (Chan, Golub and LeVeque 1979), and
 * writes its table.
 */
enum { THREADS = 128 };
#include "norm_factors.h"

extern "C" __global__ void __launch_bounds__(THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<GroupNormArgs> p)
{
    u32 block, segment = cx_segment(p.head, &block);
    const GroupNormArgs &args = p.args[segment];
    int lane = threadIdx.x & 31, groups = (int)args.groups, in_group = (int)args.c / groups;
    int task = (int)block * (THREADS / 32) + (int)threadIdx.x / 32;
    if (task >= (int)args.images * groups)
        return;
    int image = task / groups, group = task % groups;
    const float *from = (const float *)args.x + image * args.x_image + group * in_group;
    float sum = 0.f, squares = 0.f, count = 0.f;
    CX_NO_UNROLL
    for (int part = 0; part < (int)args.parts; part++) {
        float each = (float)args.count[part];
        count += each;
        CX_NO_UNROLL
        for (int i = lane; i < in_group; i += 32)
            sum += from[part * args.x_part + i] * each;
    }
    float share = cx_reciprocal(count * (float)in_group);
    float mean = lanes_sum<32>(sum) * share;
    CX_NO_UNROLL
    for (int part = 0; part < (int)args.parts; part++) {
        CX_NO_UNROLL
        for (int i = lane; i < in_group; i += 32) {
            const float *at = from + part * args.x_part + i;
            float away = at[0] - mean;
#ifdef FAULT_JOIN_BETWEEN // the means of parts are taken for one
            away = 0.f;
#endif
            squares += fmaf(away * away, (float)args.count[part], at[args.x_position]);
        }
    }
    float variance = lanes_sum<32>(squares) * share;
    put_table(args, (int)args.c, image, group, mean, rsqrtf(variance + cx_real(args.eps)));
}
