// cases
// conv_bf16.cu against plain loops: channels last and in eights, and everything else.
#include <stddef.h>
#include "conv_case.h"

struct Shape {
    const char *what;
    int64_t images, c_in, c_out, groups;
    int64_t in[3], kernel[3], stride[3], pad[3];
    Storage x, y, w;
    bool bias, last, w_last;
    int64_t up[3] = {0, 0, 0}, residual_up = 0; // powers of 2; the residual's, of the last two axes
};

static int64_t storage_bits(Storage storage, int number)
{
    return (int64_t)(storage == ST_BF16  ? PV_STORE_BF16
                     : storage == ST_F16 ? PV_STORE_F16
                                         : PV_STORE_REAL) << 4 * number;
}

static ConvArgs conv_args(const Shape &shape)
{
    ConvArgs args = conv_sizes(shape, shape.groups);
    set_shifts(args, shape.up, shape.residual_up);
    set_strides(args, shape.last);
    args.w_last = shape.w_last;
    args.types =
        storage_bits(shape.y, 0) | storage_bits(shape.x, 1) | storage_bits(shape.w, 2);
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
    Storage result = mode == 0 ? shape.y : mode == 1 ? shape.x : shape.w;
    size_t written = mode == 0 ? y : mode == 1 ? x : w;
    int64_t out = into ? into : test.output(written, 5e-3, result);
    args.sum = sum;
    args.x = mode == 1 ? out : test.input(x, 1, 0, shape.x);
    args.y = mode == 0 ? out : test.input(y, 1, 0, shape.y);
    args.w = mode == 2 ? out : test.input(w, 1, 0, shape.w);
    args.bias =
        shape.bias && mode < 2 ? test.input((size_t)(mode == 1 ? args.c_in : args.c_out)) : 0;
    if (shape.bias && mode < 2) {      // a residual that lies in something wider
        int64_t channels = (mode == 1 ? args.c_in : args.c_out) + 8;
        const int64_t *size = mode == 1 ? args.in : args.out;
        args.residual_channel = 1, args.residual_position = channels;
        args.residual_image = (size[0] * size[1] * size[2] * channels) >> 2 * shape.residual_up;
        args.residual = test.input((size_t)(args.images * args.residual_image), 1, 0, result);
        args.types |= storage_bits(result, 4);
    }
    test.segment(args);
    return out;
}

static const char *const symbol[] = {"pv_conv", "pv_conv_dgrad", "pv_conv_wgrad"};

static void check(int mode, const Shape &shape, const char *fault = nullptr)
{
    auto expected = [mode](const PvRun *, const int64_t *args) { plain_conv(symbol[mode], args); };
    KernelCase test(symbol[mode], expected, shape.what);
    add_conv(test, shape, mode);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// The gradient of a kernel that three planes share.
static void check_sum(Shape shape)
{
    auto expected = [](const PvRun *run, const int64_t *args) {
        for (uint32_t i = 0; i < run->segments; i++)
            plain_conv(symbol[2], args + i * sizeof(ConvArgs) / 8);
    };
    KernelCase test(symbol[2], expected, "a sum of segments");
    test.together = true;
    int64_t into = add_conv(test, shape, 2, 2);
    shape.in[1] = 8, shape.in[2] = 12;
    add_conv(test, shape, 2, -1, into);
    shape.in[1] = 2, shape.in[2] = 4;
    add_conv(test, shape, 2, -1, into);
    test.run();
}

int main(void)
{
    const Storage H = ST_BF16, F = ST_F32;
    Shape square = {"bf16 3 x 3", 2, 24, 40, 1, {1, 6, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                    H, H, H, true, true, true};
    Shape strided = {"bf16 4 x 4, stride 2", 2, 8, 16, 1, {1, 8, 8}, {1, 4, 4}, {1, 2, 2},
                     {0, 1, 1}, H, H, H, true, true, true};
    Shape uneven = {"bf16 3 x 3, stride 2, groups", 1, 16, 32, 2, {1, 7, 9}, {1, 3, 3}, {1, 2, 2},
                    {0, 1, 1}, H, H, H, true, true, true};
    Shape solid = {"bf16 3 axes", 1, 8, 16, 1, {3, 4, 5}, {3, 3, 3}, {2, 1, 1}, {1, 1, 1},
                   H, H, H, false, true, true};
    Shape point = {"bf16 1 x 1", 1, 40, 72, 1, {1, 8, 9}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0},
                   H, H, H, true, true, true};
    Shape deep = {"bf16 parts", 1, 72, 64, 1, {1, 4, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                  H, F, H, true, true, true};
    Shape first = {"f32 image of 4 channels", 1, 4, 32, 1, {1, 6, 6}, {1, 3, 3}, {1, 1, 1},
                   {0, 1, 1}, F, H, H, true, true, true};
    Shape other = {"bf16, w not channels last", 1, 8, 16, 1, {1, 6, 6}, {1, 3, 3}, {1, 1, 1},
                   {0, 1, 1}, H, H, F, true, true, false};
    Shape planar = {"bf16, positions dense", 1, 5, 16, 1, {1, 6, 6}, {1, 3, 3}, {1, 1, 1},
                    {0, 1, 1}, H, H, H, true, false, false};
    Shape half = {"f16 3 x 3", 2, 24, 40, 1, {1, 6, 7}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                  ST_F16, ST_F16, ST_F16, true, true, true};
    Shape half_mixed = {"f16, w in f32", 1, 8, 16, 1, {1, 6, 6}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1},
                        ST_F16, ST_F16, F, true, true, false};
    Shape up = square, up_4 = square, up_solid = solid, up_odd = planar, up_deep = deep;
    up.what = "bf16, up-sampled";
    up.in[1] = 8, up.in[2] = 6, up.up[1] = up.up[2] = up.residual_up = 1;
    up_4.what = "bf16, up-sampled by 4 along rows";
    up_4.in[2] = 12, up_4.up[2] = 2;
    up_solid.what = "bf16, 3 axes up-sampled, stride 2";
    up_solid.in[0] = 4, up_solid.in[2] = 6, up_solid.up[0] = up_solid.up[1] = up_solid.up[2] = 1;
    up_odd.what = "bf16, positions dense, up-sampled";
    up_odd.up[1] = up_odd.up[2] = 1;
    up_deep.what = "bf16 parts, the residual up-sampled";
    up_deep.residual_up = 1;
    for (const Shape &shape : {up, up_4, up_solid, up_odd, up_deep})
        check(0, shape);
    check(0, up, "FAULT_CONV_CLASS");
    check_sum(square);
    for (int mode = 0; mode < 3; mode++)
        for (const Shape &shape :
             {square, strided, uneven, solid, point, deep, first, other, planar, half, half_mixed})
            check(mode, shape);
    check(0, square, "FAULT_CONV_BORDER");
    check(1, square, "FAULT_CONV_RESIDUAL");
    check(2, deep, "FAULT_MMA_WAIT");
    {
        auto expected = [](const PvRun *, const int64_t *args) { plain_conv(symbol[0], args); };
        KernelCase test(symbol[0], expected, "bf16, three segments, one of 1 x 1, one up-sampled");
        for (int64_t side : {4, 8, 2}) {
            Shape plane = square;
            plane.in[1] = side;
            add_conv(test, plane, 0);
        }
        add_conv(test, up, 0);
        add_conv(test, point, 0);
        test.run();
    }
    return finish_cases();
}
