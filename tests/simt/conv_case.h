/* Convolutions as tests give them, and in plain loops, for what the CPU kernels do not take: any
 * strides, w channels last. */
#pragma once
#include "kernel_case.h"

// Sizes, from a shape that has images, c_in, c_out, and in, kernel, stride, pad by axis.
template <class Shape> ConvArgs conv_sizes(const Shape &shape, int64_t groups)
{
    ConvArgs args = {};
    args.images = shape.images, args.c_in = shape.c_in, args.c_out = shape.c_out;
    args.groups = groups;
    for (int axis = 0; axis < 3; axis++) {
        args.in[axis] = shape.in[axis], args.kernel[axis] = shape.kernel[axis];
        args.stride[axis] = shape.stride[axis], args.pad[axis] = shape.pad[axis];
        args.out[axis] =
            (shape.in[axis] + 2 * shape.pad[axis] - shape.kernel[axis]) / shape.stride[axis] + 1;
    }
    return args;
}

// x is up-sampled by 2^up along each axis, the residual by 2^residual_up along the last two.
static inline void set_shifts(ConvArgs &args, const int64_t *up, int64_t residual_up)
{
    for (int axis = 0; axis < 3; axis++) {
        args.x_shift[axis] = up[axis];
        args.residual_shift[axis] = axis > 0 ? residual_up : 0;
    }
}

// Strides of x and y: channels last or not, `gap` elements behind each position's channels (each
// channel's positions).
static inline void set_strides(ConvArgs &args, bool last, int64_t gap = 0)
{
    int64_t inside = 1, outside = 1;
    for (int axis = 0; axis < 3; axis++)
        inside *= args.in[axis] >> args.x_shift[axis], outside *= args.out[axis];
    args.x_channel = last ? 1 : inside + gap;
    args.x_position = last ? args.c_in + gap : 1;
    args.x_image = last ? inside * args.x_position : args.c_in * args.x_channel;
    args.y_channel = last ? 1 : outside + gap;
    args.y_position = last ? args.c_out + gap : 1;
    args.y_image = last ? outside * args.y_position : args.c_out * args.y_channel;
}

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
