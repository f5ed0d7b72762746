/* Factors of norm tables (kernel_args.h) out of the mean and rstd of a group, by a warp. Included
 * in a kernel's namespace. `Args` is NormStats or GroupNormArgs: what a table depends on has the
 * same names in both.
 */

// The sum over `count` neighbouring lanes, a power of 2, in each of them.
template <int count> CX_FN float lanes_sum(float value)
{
    CX_UNROLL
    for (int by = count / 2; by > 0; by >>= 1)
        value += __shfl_xor_sync(CX_ALL_LANES, value, by);
    return value;
}

template <class Args>
CX_FN void put_factors(const Args &to, int channels, int image, int channel, float mean, float rstd)
{
    float *table = (float *)to.table + (long long)image * 2 * channels;
    float a = rstd, d = 0.f;
    if (to.gamma)
        a *= ((const float *)to.gamma)[channel];
    if (to.beta)
        d = ((const float *)to.beta)[channel];
    d -= mean * a;
    if (to.scale) {
        float more = 1.f + ((const float *)to.scale)[image * to.mod_image + channel];
        a *= more;
        d *= more;
    }
    if (to.shift)
        d += ((const float *)to.shift)[image * to.mod_image + channel];
    table[channel] = a;
    table[channels + channel] = d;
}

// The part of a table that belongs to a group of an image, with its mean and rstd where these are
// wanted.
template <class Args>
CX_FN void put_table(const Args &to, int channels, int image, int group, float mean, float rstd)
{
    int lane = threadIdx.x & 31, in_group = channels / (int)to.groups;
    int at = image * (int)to.groups + group;
    if (lane == 0 && to.mean)
        ((float *)to.mean)[at] = mean;
    if (lane == 0 && to.rstd)
        ((float *)to.rstd)[at] = rstd;
    CX_NO_UNROLL
    for (int i = lane; i < in_group; i += 32)
        put_factors(to, channels, image, group * in_group + i, mean, rstd);
}
