/* Convolutions in plain loops, for what the CPU kernels do not take: any strides, w
 * channels last. */
#pragma once
#include "kernel_case.h"

// Calls visit(group's output channel, input channel, element of x, of y, of w) for every product.
template <class Visit> void for_products(const ConvArgs &a, Visit visit)
{
    int64_t in = a.c_in / a.groups, out = a.c_out / a.groups;
    int64_t taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
    for (int64_t image = 0; image < a.images; image++)
        for (int64_t position = 0; position < a.out[0] * a.out[1] * a.out[2]; position++)
            for (int64_t tap = 0; tap < taps; tap++) {
                int64_t p = position, t = tap, at = 0, scale = 1;
                bool inside = true;
                for (int axis = 2; axis >= 0; axis--) {
                    int64_t place = p % a.out[axis] * a.stride[axis] + t % a.kernel[axis] -
                                    a.pad[axis];
                    inside = inside && place >= 0 && place < a.in[axis];
                    at += (place >> a.x_shift[axis]) * scale;
                    scale *= a.in[axis] >> a.x_shift[axis];
                    p /= a.out[axis], t /= a.kernel[axis];
                }
                for (int64_t o = 0; inside && o < a.c_out; o++)
                    for (int64_t c = o / out * in; c < (o / out + 1) * in; c++)
                        visit(image * a.x_image + c * a.x_channel + at * a.x_position,
                              image * a.y_image + o * a.y_channel + position * a.y_position,
                              a.w_last ? (o * taps + tap) * in + c % in
                                       : (o * in + c % in) * taps + tap);
            }
}

// The position of a residual that is up-sampled.
static inline int64_t shrunk(const ConvArgs &a, int64_t position)
{
    int64_t at = 0, scale = 1;
    for (int axis = 2; axis >= 0; axis--) {
        at += (position % a.out[axis] >> a.residual_shift[axis]) * scale;
        scale *= a.out[axis] >> a.residual_shift[axis];
        position /= a.out[axis];
    }
    return at;
}

// Plain loops for any strides: no activation; bias of the written image's channels and a residual
// of an image. A part of a sum is added to what is there.
static inline void plain_conv(const char *symbol, const int64_t *raw)
{
    const ConvArgs &a = *(const ConvArgs *)raw;
    float *x = (float *)a.x, *y = (float *)a.y, *w = (float *)a.w;
    const float *bias = (const float *)a.bias;
    bool grad = std::string(symbol) == "pv_conv_dgrad";
    if (std::string(symbol) == "pv_conv_wgrad") {
        for (int64_t i = 0; i < a.c_out * (a.c_in / a.groups) * a.kernel[0] * a.kernel[1] *
                                    a.kernel[2]; i++)
            w[i] = a.sum < 0 ? w[i] : 0;
        for_products(a, [&](int64_t at_x, int64_t at_y, int64_t at_w) {
            w[at_w] += y[at_y] * x[at_x];
        });
        return;
    }
    const int64_t *size = grad ? a.in : a.out;
    for (int64_t image = 0; image < a.images; image++)
        for (int64_t c = 0; c < (grad ? a.c_in : a.c_out); c++)
            for (int64_t p = 0; p < size[0] * size[1] * size[2]; p++)
                (grad ? x[image * a.x_image + c * a.x_channel + p * a.x_position]
                      : y[image * a.y_image + c * a.y_channel + p * a.y_position]) =
                    (bias ? bias[c] : 0) +
                    (a.residual ? ((const float *)a.residual)[image * a.residual_image +
                                                              c * a.residual_channel +
                                                              (grad ? p : shrunk(a, p)) *
                                                                  a.residual_position]
                                : 0);
    for_products(a, [&](int64_t at_x, int64_t at_y, int64_t at_w) {
        (grad ? x[at_x] : y[at_y]) += (grad ? y[at_y] : x[at_x]) * w[at_w];
    });
}
