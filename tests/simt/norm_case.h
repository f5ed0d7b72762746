/* GroupNorm taken apart, in plain loops: operands normalized, norm tables of results. */
#pragma once
#include <math.h>
#include <vector>
#include "conv_case.h"

static inline double activated(double x, int64_t act)
{
    return act == PV_ACT_SILU   ? x / (1 + exp(-x))
           : act == PV_ACT_GELU ? 0.5 * x * (1 + erf(x * sqrt(0.5)))
           : act == PV_ACT_RELU ? fmax(x, 0)
                                : x;
}

// A table as NormLoad has it, for `images` of `c` channels.
static inline NormLoad add_norm(KernelCase &test, int64_t images, int64_t c, int64_t act)
{
    return {test.input((size_t)(images * 2 * c)), 2 * c, c, act};
}

// As NormStats asks for, with everything or as little as there may be.
static inline NormStats add_stats(KernelCase &test, int64_t images, int64_t c, int64_t groups,
                                  bool all, double tolerance = 1e-5)
{
    const double eps = 1e-5;
    NormStats stats = {};
    stats.table = test.output((size_t)(images * 2 * c), tolerance);
    stats.gamma = test.input((size_t)c, 1, 1), stats.beta = test.input((size_t)c);
    stats.groups = groups;
    memcpy(&stats.eps, &eps, sizeof eps);
    if (all) {
        stats.mean = test.output((size_t)(images * groups), tolerance);
        stats.rstd = test.output((size_t)(images * groups), tolerance);
        stats.mod_image = 2 * c;
        stats.shift = test.input((size_t)(images * 2 * c));
        stats.scale = stats.shift + 4 * c;
    }
    return stats;
}

// Asks for moments too.
static inline void add_moments(KernelCase &test, NormStats *stats, int64_t images, int64_t c,
                               double tolerance = 1e-5)
{
    stats->moments = test.output((size_t)(images * 2 * c), tolerance);
    stats->moments_image = 2 * c, stats->moments_shift = c;
}

template <class Element>
void plain_moments(const NormStats &stats, int64_t images, int64_t c, int64_t positions,
                   const float *y, Element element)
{
    for (int64_t i = 0; stats.moments && i < images * c; i++) {
        double sum = 0, squares = 0;
        for (int64_t p = 0; p < positions; p++)
            sum += y[element(i / c, i % c, p)];
        for (int64_t p = 0; p < positions; p++)
            squares += pow(y[element(i / c, i % c, p)] - sum / (double)positions, 2);
        float *at = (float *)stats.moments + i / c * stats.moments_image + i % c;
        at[0] = (float)(sum / (double)positions);
        at[stats.moments_shift] = (float)squares;
    }
}

// Writes what `stats` asks for; element(image, channel, position) is the place of a result.
template <class Element>
void plain_table(const NormStats &stats, int64_t images, int64_t c, int64_t positions,
                 const float *y, Element element)
{
    plain_moments(stats, images, c, positions, y, element);
    int64_t in_group = stats.groups ? c / stats.groups : 0;
    double eps;
    memcpy(&eps, &stats.eps, sizeof eps);
    for (int64_t at = 0; stats.table && at < images * stats.groups; at++) {
        int64_t image = at / stats.groups, first = at % stats.groups * in_group;
        double sum = 0, squares = 0, count = (double)(in_group * positions);
        for (int64_t i = 0; i < in_group * positions; i++)
            sum += y[element(image, first + i / positions, i % positions)];
        for (int64_t i = 0; i < in_group * positions; i++)
            squares +=
                pow(y[element(image, first + i / positions, i % positions)] - sum / count, 2);
        double mean = sum / count, rstd = 1 / sqrt(squares / count + eps);
        if (stats.mean)
            ((float *)stats.mean)[at] = (float)mean;
        if (stats.rstd)
            ((float *)stats.rstd)[at] = (float)rstd;
        for (int64_t k = first; k < first + in_group; k++) {
            const float *scale = (const float *)stats.scale, *shift = (const float *)stats.shift;
            double more = scale ? 1.0 + scale[image * stats.mod_image + k] : 1;
            double a = rstd * ((const float *)stats.gamma)[k];
            double d = ((const float *)stats.beta)[k] - mean * a;
            float *table = (float *)stats.table + image * 2 * c + k;
            table[0] = (float)(a * more);
            table[c] = (float)(d * more + (shift ? shift[image * stats.mod_image + k] : 0));
        }
    }
}

// The operand of `norm` at an element of an image and channel.
static inline double plain_norm(const NormLoad &norm, float x, int64_t image, int64_t channel)
{
    if (!norm.table)
        return x;
    const float *factors = (const float *)norm.table + image * norm.image + channel;
    return activated((double)x * factors[0] + factors[norm.shift], norm.act);
}

// pv_conv and pv_conv_wgrad, with everything that their struct may ask for.
static inline void plain_norm_conv(bool wgrad, const int64_t *raw)
{
    const ConvArgs &a = *(const ConvArgs *)raw;
    const float *x = (const float *)a.x, *residual = (const float *)a.residual;
    float *out = (float *)(wgrad ? a.w : a.y);
    size_t count = (size_t)(wgrad ? a.c_out * a.c_in / a.groups * a.kernel[0] * a.kernel[1] *
                                        a.kernel[2]
                                  : a.images * a.y_image);
    std::vector<double> sums(count);
    for_products(a, [&](int64_t at_x, int64_t at_y, int64_t at_w) {
        int64_t image = at_x / a.x_image, rest = at_x % a.x_image;
        int64_t channel = a.x_channel == 1 ? rest % a.x_position : rest / a.x_channel;
        double value = plain_norm(a.norm, x[at_x], image, channel);
        if (wgrad)
            sums[(size_t)at_w] += value * ((const float *)a.y)[at_y];
        else
            sums[(size_t)at_y] += value * ((const float *)a.w)[at_w];
    });
    int64_t positions = a.out[0] * a.out[1] * a.out[2];
    auto element = [&](int64_t image, int64_t channel, int64_t position) {
        return image * a.y_image + channel * a.y_channel + position * a.y_position;
    };
    for (size_t i = 0; wgrad && i < count; i++)
        out[i] = (float)(sums[i] + (residual ? residual[i] : 0));
    for (int64_t i = 0; !wgrad && i < a.images * a.c_out * positions; i++) {
        int64_t channel = i / positions % a.c_out;
        int64_t at = element(i / positions / a.c_out, channel, i % positions);
        double sum = sums[(size_t)at] + (a.bias ? ((const float *)a.bias)[channel] : 0);
        int64_t from = at;
        if (a.residual_shift[0] | a.residual_shift[1] | a.residual_shift[2])
            from = i / positions / a.c_out * a.residual_image + channel * a.residual_channel +
                   shrunk(a, i % positions) * a.y_position;
        out[at] = (float)(activated(sum, a.act) + (residual ? residual[from] : 0));
    }
    if (!wgrad)
        plain_table(a.stats, a.images, a.c_out, positions, out, element);
}

// pv_gemm with images along i0 and bias of the rows.
static inline void plain_norm_gemm(const int64_t *raw)
{
    const GemmArgs &g = *(const GemmArgs *)raw;
    const float *a = (const float *)g.a, *b = (const float *)g.b;
    const float *residual = (const float *)g.residual;
    float *c = (float *)g.c;
    for (int64_t i = 0; i < g.batch0 * g.m * g.n; i++) {
        int64_t image = i / g.m / g.n, m = i / g.n % g.m, n = i % g.n;
        double sum = g.bias ? ((const float *)g.bias)[m] : 0;
        for (int64_t k = 0; k < g.k; k++)
            sum += a[image * g.a0 + m * g.a_m + k * g.a_k] *
                   plain_norm(g.norm, b[image * g.b0 + k * g.b_k + n * g.b_n], image, k);
        int64_t at = image * g.c0 + m * g.c_m + n;
        c[at] = (float)(activated(sum, g.act) + (residual ? residual[at] : 0));
    }
    plain_table(g.stats, g.batch0, g.m, g.n, c, [&](int64_t image, int64_t m, int64_t n) {
        return image * g.c0 + m * g.c_m + n;
    });
}
