// cases
// Every branch of conv_f32.cu at small shapes. What the CPU kernels do not take, channels last, is
// compared with plain loops.
#include <stddef.h>
#include "conv_case.h"

struct Shape {
    const char *what;
    int64_t images, c_in, c_out, groups;
    int64_t in[3], kernel[3], stride[3], pad[3];
    bool bias, residual, in_place;
    int64_t act;
    bool last;     // channels last
    int64_t gap;   // elements behind each channel's positions (each position's channels)
    bool turned = false; // the residual has its channels last where the result has not, or first
};

static ConvArgs conv_args(const Shape &shape)
{
    ConvArgs args = conv_sizes(shape, shape.groups);
    set_strides(args, shape.last, shape.gap);
    args.act = shape.act;
    return args;
}

// `sum`: as in kernel_args.h; a part of a sum has the result of its first segment, `into`.
static int64_t add_conv(KernelCase &test, const Shape &shape, int mode, int64_t sum = 0,
                        int64_t into = 0)
{
    ConvArgs args = conv_args(shape);
    size_t x = (size_t)(args.x_image * args.images), y = (size_t)(args.y_image * args.images);
    size_t w = (size_t)(args.c_out * args.c_in / args.groups * args.kernel[0] * args.kernel[1] *
                        args.kernel[2]);
    size_t written = mode == 0 ? y : mode == 1 ? x : w;
    int64_t out = into ? into : shape.in_place ? test.updated(written) : test.output(written);
    args.sum = sum;
    args.x = mode == 1 ? out : test.input(x);
    args.y = mode == 0 ? out : test.input(y);
    args.w = mode == 2 ? out : test.input(w);
    args.bias = shape.bias ? test.input((size_t)(mode == 1 ? args.c_in : args.c_out)) : 0;
    args.residual = into ? 0 : shape.in_place ? out : shape.residual ? test.input(written) : 0;
    args.residual_image = mode == 1 ? args.x_image : args.y_image;
    args.residual_channel = mode == 1 ? args.x_channel : args.y_channel;
    args.residual_position = mode == 1 ? args.x_position : args.y_position;
    if (shape.turned && mode < 2) {
        int64_t channels = mode == 1 ? args.c_in : args.c_out;
        args.residual_channel = shape.last ? args.residual_image / channels : 1;
        args.residual_position = shape.last ? 1 : channels;
    }
    test.segment(args);
    return out;
}

static void check(int mode, const Shape &shape, const char *fault = nullptr)
{
    static const char *const symbol[] = {"pv_conv", "pv_conv_dgrad", "pv_conv_wgrad"};
    static PvKernelFn *const reference[] = {pv_conv, pv_conv_dgrad, pv_conv_wgrad};
    std::function<PvKernelFn> expected = reference[mode];
    if (shape.last || shape.gap || shape.turned)
        expected = [mode](const PvRun *, const int64_t *args) { plain_conv(symbol[mode], args); };
    KernelCase test(symbol[mode], expected, shape.what);
    add_conv(test, shape, mode);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// The gradient of a kernel that three planes share.
static void check_sum(const Shape &plane, const char *fault = nullptr)
{
    KernelCase test("pv_conv_wgrad", pv_conv_wgrad, "a sum of segments");
    test.together = true;
    Shape shape = plane;
    shape.bias = false, shape.act = 0, shape.in_place = true;
    int64_t into = add_conv(test, shape, 2, 2);
    shape.in[1] = 16, shape.in[2] = 24;
    add_conv(test, shape, 2, -1, into);
    shape.in[1] = 2, shape.in[2] = 4;
    add_conv(test, shape, 2, -1, into);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

int main(void)
{
    Shape square = {"3 x 3", 2, 5, 20, 1, {1, 6, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                    true, true, false, PV_ACT_SILU, false, 0};
    Shape strided = {"4 x 4, stride 2", 2, 6, 17, 1, {1, 8, 8}, {1, 4, 4}, {1, 2, 2}, {0, 1, 1},
                     false, false, true, 0, false, 0};
    Shape uneven = {"3 x 3, stride 2, groups", 1, 6, 4, 2, {1, 7, 9}, {1, 3, 3}, {1, 2, 2},
                    {0, 1, 1}, true, false, false, PV_ACT_RELU, false, 0};
    Shape apart = {"2 x 2, stride 2", 2, 6, 17, 1, {1, 8, 8}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0},
                   true, false, false, 0, false, 0};
    Shape solid = {"3 axes", 1, 3, 18, 1, {4, 5, 6}, {3, 3, 3}, {2, 1, 1}, {1, 1, 1},
                   true, false, false, 0, false, 0};
    Shape line = {"1 axis, few positions", 1, 70, 20, 1, {1, 1, 9}, {1, 1, 5}, {1, 1, 1}, {0, 0, 2},
                  true, false, false, 0, false, 0};
    Shape point = {"1 x 1", 2, 36, 20, 1, {1, 4, 6}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0},
                   true, true, false, 0, false, 0};
    Shape point_strided = {"1 x 1, stride 2", 2, 6, 20, 1, {1, 5, 5}, {1, 1, 1}, {1, 2, 2},
                           {0, 0, 0}, true, false, false, 0, false, 0};
    Shape deep = {"parts", 1, 65, 68, 1, {1, 4, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                  true, false, true, PV_ACT_GELU, false, 0};
    Shape last = {"channels last", 2, 20, 24, 1, {1, 6, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                  true, false, false, 0, true, 4};
    Shape last_odd = {"channels last, odd", 1, 5, 7, 1, {1, 8, 9}, {1, 4, 4}, {1, 2, 2}, {0, 1, 1},
                      true, false, false, 0, true, 1};
    Shape last_point = {"channels last, 1 x 1", 2, 20, 24, 1, {1, 6, 7}, {1, 1, 1}, {1, 1, 1},
                        {0, 0, 0}, true, false, false, 0, true, 0};
    Shape within = {"within larger images", 2, 5, 20, 1, {1, 6, 6}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                    true, false, false, 0, false, 3};
    Shape turned = {"a residual with channels last", 2, 8, 20, 1, {1, 6, 8}, {1, 3, 3}, {1, 1, 1},
                    {0, 1, 1}, true, true, false, 0, false, 0, true};
    Shape last_turned = last;
    last_turned.what = "channels last, of the residual first";
    last_turned.residual = last_turned.turned = true;
    for (int mode = 0; mode < 2; mode++) {
        check(mode, turned);
        check(mode, last_turned);
    }
    check(0, turned, "FAULT_CONV_RESIDUAL");
    for (int mode = 0; mode < 3; mode++) {
        for (Shape shape : {square, strided, uneven, apart, solid, line, point, point_strided, deep,
                            last, last_odd, last_point, within}) {
            if (mode == 2) {
                shape.bias = false;
                shape.act = 0;
            }
            check(mode, shape);
        }
    }
    check_sum(square);
    check_sum(point);
    check_sum(square, "FAULT_TILE_SUM");
    check(0, square, "FAULT_CONV_BORDER");
    {
        KernelCase test("pv_conv", pv_conv, "three segments");
        for (int64_t side : {4, 8, 2}) {
            Shape plane = square;
            plane.in[1] = side;
            plane.c_in = 40;
            add_conv(test, plane, 0);
        }
        test.run();
    }
    return finish_cases();
}
