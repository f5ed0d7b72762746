// cases
// conv_wgmma.cu against plain loops: odd sizes, boxes larger than images, segments, parts.
#include <stddef.h>
#include "conv_case.h"

struct Shape {
    const char *what;
    int64_t images, c_in, c_out;
    int64_t in[3], kernel[3], pad[3];
    Storage result, residual; // ST_I64: no residual
    bool bias;
    bool many; // the choice is made for four times as many images
    Storage half = ST_BF16;   // of the operands
    int64_t stride[3] = {1, 1, 1};
    int64_t up[3] = {0, 0, 0}, residual_up = 0; // powers of 2; the residual's, of the last two axes
};

static const char *const symbol[] = {"pv_conv", "pv_conv_dgrad", "pv_conv_wgrad"};

static ConvArgs conv_args(const Shape &shape, int mode)
{
    ConvArgs args = conv_sizes(shape, 1);
    set_shifts(args, shape.up, shape.residual_up);
    set_strides(args, true);
    args.residual_channel = 1;
    args.residual_position = (mode == 1 ? args.x_position : args.y_position) + 8;
    int64_t positions = mode == 1 ? args.x_image / args.c_in : args.y_image / args.c_out;
    args.residual_image = (args.residual_position * positions >> 2 * shape.residual_up) + 16;
    args.w_last = 1;
    int at = mode == 0 ? 0 : mode == 1 ? 1 : 2;
    int64_t half = shape.half == ST_F16 ? PV_STORE_F16 : PV_STORE_BF16;
    for (int i = 0; i < 3; i++)
        args.types |= (i != at || shape.result == shape.half ? half : 0) << 4 * i;
    if (shape.residual == shape.half)
        args.types |= half << 16;
    return args;
}

// `sum`: as in kernel_args.h; a part of a sum has the result of its first segment, `into`.
static int64_t add_conv(KernelCase &test, const Shape &shape, int mode, int64_t sum = 0,
                        int64_t into = 0)
{
    ConvArgs args = conv_args(shape, mode);
    args.sum = sum;
    size_t x = (size_t)(args.x_image * args.images), y = (size_t)(args.y_image * args.images);
    size_t w = (size_t)(args.c_out * args.c_in * args.kernel[0] * args.kernel[1] * args.kernel[2]);
    size_t written = mode == 0 ? y : mode == 1 ? x : w;
    int64_t out = into ? into : test.output(written, 5e-3, shape.result);
    args.x = mode == 1 ? out : test.input(x, 1, 0, shape.half);
    args.y = mode == 0 ? out : test.input(y, 1, 0, shape.half);
    args.w = mode == 2 ? out : test.input(w, 1, 0, shape.half);
    if (shape.bias && mode < 2)
        args.bias = test.input((size_t)(mode == 1 ? args.c_in : args.c_out));
    size_t added = mode == 2 ? written : (size_t)(args.residual_image * args.images);
    if (shape.residual != ST_I64)
        args.residual = test.input(added, 1, 0, shape.residual);
    test.segment(args);
    return out;
}

// Plain loops, then the residual of a gradient of w.
static void expect(int mode, const int64_t *raw)
{
    plain_conv(symbol[mode], raw);
    const ConvArgs &args = *(const ConvArgs *)raw;
    int64_t count = args.c_in * args.c_out * args.kernel[0] * args.kernel[1] * args.kernel[2];
    for (int64_t i = 0; mode == 2 && args.residual && i < count; i++)
        ((float *)args.w)[i] += ((const float *)args.residual)[i];
}

static void check(int mode, const std::vector<Shape> &shapes, const char *fault = nullptr)
{
    KernelCase test(
        symbol[mode], [mode](const PvRun *, const int64_t *args) { expect(mode, args); },
        shapes[0].what);
    test.on_90a = true;
    for (const Shape &shape : shapes)
        add_conv(test, shape, mode);
    if (shapes[0].many)
        test.depends_on_batch(offsetof(ConvArgs, images) / sizeof(int64_t));
    if (fault)
        test.find_fault(fault);
    else if (shapes[0].many)
        test.run_fast();
    else
        test.run();
}

// The gradient of a kernel that planes share.
static void check_sum(const std::vector<Shape> &planes, const char *fault = nullptr)
{
    auto expected = [](const PvRun *run, const int64_t *args) {
        for (uint32_t i = 0; i < run->segments; i++)
            expect(2, args + i * sizeof(ConvArgs) / sizeof(int64_t));
    };
    KernelCase test(symbol[2], expected, "a sum of segments");
    test.together = test.on_90a = true;
    int64_t into = 0;
    for (const Shape &plane : planes)
        into = add_conv(test, plane, 2, into ? -1 : (int64_t)planes.size() - 1, into);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

int main(void)
{
    const Storage H = ST_BF16, F = ST_F32, NONE = ST_I64;
    Shape odd = {"odd sizes", 2, 56, 104, {1, 9, 7}, {1, 3, 3}, {0, 1, 1}, H, H, true, false};
    Shape small = {"images smaller than a tile", 5, 64, 64, {1, 4, 4}, {1, 3, 3}, {0, 1, 1}, H,
                   NONE, false, false};
    Shape wide = {"part of a row", 1, 64, 88, {1, 2, 140}, {1, 3, 3}, {0, 1, 1}, H, F, true, false};
    Shape point = {"1 x 1", 1, 64, 128, {1, 16, 17}, {1, 1, 1}, {0, 0, 0}, F, NONE, true, false};
    Shape solid = {"3 axes", 1, 64, 48, {3, 5, 6}, {3, 3, 3}, {1, 1, 1}, H, NONE, true, false};
    Shape larger = {"4 x 4, padding 2", 1, 48, 64, {1, 6, 8}, {1, 4, 4}, {0, 2, 2}, H, NONE,
                    false, false};
    // strides: phases with several taps each, with one and two, with one or none; boxes of the
    // widest
    Shape halved = {"4 x 4, stride 2", 2, 48, 64, {1, 12, 10}, {1, 4, 4}, {0, 1, 1}, H, NONE, true,
                    false, H, {1, 2, 2}};
    Shape uneven = {"3 x 3, strides 2 and 3", 2, 64, 56, {1, 9, 11}, {1, 3, 3}, {0, 1, 1}, H, H,
                    true, false, H, {1, 2, 3}};
    Shape sparse = {"1 x 1, stride 2", 1, 64, 48, {1, 5, 280}, {1, 1, 1}, {0, 0, 0}, F, NONE, false,
                    false, H, {1, 2, 2}};
    Shape thick = {"3 axes, strides 2, 1 and 2", 1, 48, 64, {4, 5, 8}, {4, 3, 4}, {1, 1, 1}, H,
                   NONE, true, false, ST_BF16, {2, 1, 2}};
    Shape up = {"up-sampled", 3, 64, 56, {1, 8, 12}, {1, 3, 3}, {0, 1, 1}, H, H, true, false, H,
                {1, 1, 1}, {0, 1, 1}, 1};
    Shape up_odd = {"up-sampled, odd results", 1, 48, 64, {1, 10, 34}, {1, 4, 2}, {0, 2, 0},
                    F, NONE, false, false, ST_F16, {1, 1, 1}, {0, 1, 1}};
    Shape up_solid = {"3 axes up-sampled", 1, 64, 64, {4, 6, 8}, {3, 3, 3}, {1, 1, 1}, H,
                      NONE, true, false, H, {1, 1, 1}, {1, 1, 2}};
    Shape residual_up = odd;
    residual_up.what = "the residual up-sampled";
    residual_up.in[1] = 8, residual_up.in[2] = 6, residual_up.residual_up = 1;
    for (const Shape &shape : {up, up_odd, up_solid, residual_up})
        check(0, {shape});
    Shape striding = halved;
    striding.residual = H;
    check(0, {striding, up, odd});
    check(0, {up}, "FAULT_CONV_CLASS");
    for (int mode = 0; mode < 3; mode++) {
        for (const Shape &shape :
             {odd, small, wide, point, solid, larger, halved, uneven, sparse, thick})
            check(mode, {shape});
        Shape whole = halved, thirds = halved;
        whole.stride[1] = whole.stride[2] = 1;
        thirds.stride[2] = 3, thirds.kernel[2] = 5;
        check(mode, {halved, whole, thirds});
        Shape half = odd;
        half.what = "f16";
        half.half = half.result = half.residual = ST_F16;
        check(mode, {half});
        std::vector<Shape> planes(3, odd);
        planes[0].what = "three planes";
        planes[1].in[1] = 4;
        planes[2].in[2] = 16;
        check(mode, planes);
        if (mode == 0) {               // more segments than four, not all of one kernel
            std::vector<Shape> mixed = planes;
            mixed[0].what = "planes beside their 1 x 1";
            for (Shape &plane : planes) {
                mixed.push_back(plane);
                mixed.back().kernel[1] = mixed.back().kernel[2] = 1;
                mixed.back().pad[1] = mixed.back().pad[2] = 0;
            }
            check(mode, mixed);
        }
        for (Shape &plane : planes)
            plane.result = F, plane.residual = NONE;
        if (mode == 2) {
            check_sum(planes);
            check_sum(planes, "FAULT_TILE_SUM");
        }
    }
    // the larger tiles: 256 x 128, 128 x 128, and of wgrad 128 x 256 and 64 x 128
    Shape plane = {"256 x 128", 1, 64, 128, {1, 33, 256}, {1, 1, 1}, {0, 0, 0}, H, H, true, true};
    check(0, {plane});
    plane.what = "128 x 128";
    plane.in[2] = 272;
    check(0, {plane});
    Shape deep = {"128 x 256", 1, 256, 128, {1, 28, 32}, {1, 3, 3}, {0, 1, 1}, F, F, false, true};
    check(2, {deep});
    deep.what = "64 x 128";
    deep.c_in = 128, deep.c_out = 64;
    check(2, {deep});
    check(0, {odd}, "FAULT_CONV_OUTSIDE");
    check(0, {small}, "FAULT_BANKS");
    check(0, {odd}, "FAULT_CONV_RESIDUAL");
    check(1, {odd}, "FAULT_WGMMA_EARLY");
    check(0, {wide}, "FAULT_WGMMA_EMPTY");
    return finish_cases();
}
