// cases
// GroupNorm, LayerNorm, their gradients and softmax beside the CPU library's.
#include <string.h>
#include "kernel_case.h"

static int64_t bits_of(double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// ---- GroupNorm ----

struct Images {
    const char *what;
    int64_t images, c, positions, groups;
    bool channels_last;
    int64_t gap; // elements behind each channel, or each position
    bool modulated, bare;
    int64_t act;
    Storage storage = ST_F32; // of images, scale and shift
};

static const double HALF_ROUNDING = 2e-3; // of bf16, in the 2-norm; f16 is finer

static double bound_of(Storage storage, double bound)
{
    return storage == ST_F32 ? bound : HALF_ROUNDING;
}

// The nibbles of `mask` as types.
static int64_t types_of(Storage storage, int64_t mask)
{
    return storage == ST_BF16 ? mask : storage == ST_F16 ? 2 * mask : 0;
}

// Strides of images [images, c, positions] in an order; returns the elements of all.
static size_t set_strides(const Images &s, int64_t *image, int64_t *channel, int64_t *position)
{
    *channel = s.channels_last ? 1 : s.positions + s.gap;
    *position = s.channels_last ? s.c + s.gap : 1;
    *image = s.channels_last ? s.positions * *position : s.c * *channel;
    return (size_t)(s.images * *image);
}

// From one order to another: to and from are addresses.
static void move_images(const Images &s, int64_t to, int64_t to_image, int64_t to_channel,
                        int64_t to_position, int64_t from, int64_t image, int64_t channel,
                        int64_t position)
{
    for (int64_t i = 0; i < s.images; i++)
        for (int64_t j = 0; j < s.c; j++)
            for (int64_t k = 0; k < s.positions; k++)
                ((float *)to)[i * to_image + j * to_channel + k * to_position] =
                    ((const float *)from)[i * image + j * channel + k * position];
}

// The CPU kernel on copies with dense positions.
static void group_norm_any(const Images &s, const PvRun *run, const int64_t *raw)
{
    GroupNormArgs args = *(const GroupNormArgs *)raw, dense = args;
    std::vector<float> x((size_t)(s.images * s.c * s.positions)), y(x.size());
    dense.x = (int64_t)x.data(), dense.y = (int64_t)y.data();
    dense.x_position = dense.y_position = 1;
    dense.x_channel = dense.y_channel = s.positions;
    dense.x_image = dense.y_image = s.c * s.positions;
    move_images(s, dense.x, dense.x_image, s.positions, 1, args.x, args.x_image, args.x_channel,
                args.x_position);
    pv_group_norm(run, (const int64_t *)&dense);
    move_images(s, args.y, args.y_image, args.y_channel, args.y_position, dense.y, dense.y_image,
                s.positions, 1);
}

static GroupNormArgs add_images(KernelCase &test, const Images &s)
{
    GroupNormArgs args = {};
    args.images = s.images, args.c = s.c, args.positions = s.positions, args.groups = s.groups;
    size_t count = set_strides(s, &args.x_image, &args.x_channel, &args.x_position);
    args.y_image = args.x_image, args.y_channel = args.x_channel;
    args.y_position = args.x_position;
    args.x = test.input(count, 1, 0.5f, s.storage);
    args.y = test.output(count, bound_of(s.storage, 2e-6), s.storage);
    args.types = types_of(s.storage, 0x11001001);
    if (!s.bare) {
        args.gamma = test.input((size_t)s.c), args.beta = test.input((size_t)s.c);
        args.mean = test.output((size_t)(s.images * s.groups), 2e-6);
        args.rstd = test.output((size_t)(s.images * s.groups), 2e-6);
    }
    if (s.modulated) {
        args.mod_image = 2 * s.c + 1;
        args.scale = test.input((size_t)(s.images * args.mod_image), 0.5f, 0, s.storage);
        args.shift = args.scale + s.c * (s.storage == ST_F32 ? 4 : 2);
    }
    args.eps = bits_of(1e-5);
    args.act = s.act;
    return args;
}

static void check_group_norm(const Images &s, const char *fault = nullptr)
{
    KernelCase test(
        "pv_group_norm", [s](const PvRun *run, const int64_t *raw) { group_norm_any(s, run, raw); },
        s.what);
    test.segment(add_images(test, s));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void group_norms(void)
{
    check_group_norm({"silu, scale and shift", 2, 8, 64, 2, false, 0, true, false, PV_ACT_SILU});
    check_group_norm({"odd positions", 2, 6, 35, 3, false, 0, false, false, PV_ACT_GELU});
    check_group_norm({"a gap", 1, 8, 12, 2, false, 4, true, true, PV_ACT_NONE});
    check_group_norm({"channels last", 2, 16, 9, 2, true, 0, true, false, PV_ACT_SILU});
    check_group_norm({"channels last, odd", 2, 6, 15, 2, true, 1, false, false, PV_ACT_RELU});
    check_group_norm({"one position", 3, 8, 1, 2, false, 0, false, false, PV_ACT_NONE});
    check_group_norm({"bf16", 2, 8, 64, 2, false, 0, true, false, PV_ACT_SILU, ST_BF16});
    check_group_norm({"f16, odd", 2, 6, 35, 3, false, 0, true, false, PV_ACT_NONE, ST_F16});
    check_group_norm(
        {"bf16, channels last", 3, 48, 9, 12, true, 0, true, false, PV_ACT_SILU, ST_BF16});
    check_group_norm({"bf16, channels last, chunks", 1, 16, 300, 1, true, 8, false, false,
                      PV_ACT_NONE, ST_BF16});
    check_group_norm({"f16, channels last, part of a bundle", 1, 72, 70, 3, true, 8, true, false,
                      PV_ACT_GELU, ST_F16});
    check_group_norm(
        {"channels last, few of a group", 2, 8, 6, 4, true, 0, true, true, PV_ACT_NONE});
    check_group_norm(
        {"bf16, channels last", 1, 48, 9, 12, true, 0, true, false, PV_ACT_SILU, ST_BF16},
        "FAULT_SUMS");
    check_group_norm({"chunks", 1, 4, 1100, 1, false, 0, true, false, PV_ACT_SILU});
    check_group_norm({"odd chunks", 1, 3, 1777, 1, false, 0, false, false, PV_ACT_NONE});
    check_group_norm({"silu, scale and shift", 1, 8, 64, 2, false, 0, true, false, PV_ACT_SILU},
                     "FAULT_REDUCTION");
    const Images planes[3] = {{"planes", 2, 8, 20, 2, false, 0, false, false, PV_ACT_SILU},
                              {"planes", 1, 8, 5000, 2, false, 0, false, false, PV_ACT_SILU},
                              {"planes", 1, 4, 7, 4, false, 0, false, false, PV_ACT_SILU}};
    KernelCase test("pv_group_norm", pv_group_norm, "segments, one in chunks");
    for (const Images &plane : planes)
        test.segment(add_images(test, plane));
    test.run();
}

// A whole group in 64 KiB, and many groups: no second phase. As many bundles, of one chunk.
static void large_group(void)
{
    const Images s = {"large groups", 1, 512, 1050, 128, false, 0, false, false, PV_ACT_NONE};
    KernelCase test("pv_group_norm", pv_group_norm, s.what);
    test.segment(add_images(test, s));
    test.run_fast();
    const Images last = {"many bundles", 33,    256,         40,     64, true, 0,
                         false,          false, PV_ACT_NONE, ST_BF16};
    KernelCase bundles(
        "pv_group_norm",
        [last](const PvRun *run, const int64_t *raw) { group_norm_any(last, run, raw); },
        last.what);
    bundles.segment(add_images(bundles, last));
    bundles.run_fast();
}

// ---- its gradient ----

static void group_norm_grad_any(const Images &s, const PvRun *run, const int64_t *raw)
{
    GroupNormGradArgs args = *(const GroupNormGradArgs *)raw, dense = args;
    std::vector<float> x((size_t)(s.images * s.c * s.positions)), dy(x.size()), dx(x.size());
    dense.x = (int64_t)x.data(), dense.dy = (int64_t)dy.data(), dense.dx = (int64_t)dx.data();
    dense.x_position = dense.dy_position = dense.dx_position = 1;
    dense.x_channel = dense.dy_channel = dense.dx_channel = s.positions;
    dense.x_image = dense.dy_image = dense.dx_image = s.c * s.positions;
    move_images(s, dense.x, dense.x_image, s.positions, 1, args.x, args.x_image, args.x_channel,
                args.x_position);
    move_images(s, dense.dy, dense.x_image, s.positions, 1, args.dy, args.dy_image, args.dy_channel,
                args.dy_position);
    pv_group_norm_grad(run, (const int64_t *)&dense);
    move_images(s, args.dx, args.dx_image, args.dx_channel, args.dx_position, dense.dx,
                dense.dx_image, s.positions, 1);
}

static GroupNormGradArgs add_grad(KernelCase &test, const Images &s, bool in_place)
{
    GroupNormGradArgs args = {};
    args.images = s.images, args.c = s.c, args.positions = s.positions, args.groups = s.groups;
    size_t count = set_strides(s, &args.x_image, &args.x_channel, &args.x_position);
    args.dy_image = args.dx_image = args.x_image;
    args.dy_channel = args.dx_channel = args.x_channel;
    args.dy_position = args.dx_position = args.x_position;
    double bound = bound_of(s.storage, 5e-6);
    args.x = test.input(count, 1, 0.5f, s.storage);
    args.dx =
        in_place ? test.updated(count, bound, s.storage) : test.output(count, bound, s.storage);
    args.dy = in_place ? args.dx : test.input(count, 1, 0, s.storage);
    args.types = types_of(s.storage, 0x11001);
    args.mean = test.input((size_t)(s.images * s.groups), 0.1f, 0.5f);
    args.rstd = test.input((size_t)(s.images * s.groups), 0.2f, 1.5f);
    args.dgamma = test.output((size_t)s.c, 5e-6);
    args.dbeta = test.output((size_t)s.c, 5e-6);
    if (s.bare)
        return args;
    args.gamma = test.input((size_t)s.c);
    args.dgamma_added = test.input((size_t)s.c), args.dbeta_added = test.input((size_t)s.c);
    return args;
}

static void check_group_norm_grad(const Images &s, bool in_place = false,
                                  const char *fault = nullptr)
{
    KernelCase test(
        "pv_group_norm_grad",
        [s](const PvRun *run, const int64_t *raw) { group_norm_grad_any(s, run, raw); }, s.what);
    test.segment(add_grad(test, s, in_place));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void group_norm_grads(void)
{
    check_group_norm_grad({"added", 3, 8, 64, 2, false, 0, false, false, 0});
    check_group_norm_grad({"in place of dy", 2, 8, 20, 4, false, 0, false, true, 0}, true);
    check_group_norm_grad({"odd positions", 2, 6, 301, 2, false, 0, false, false, 0});
    check_group_norm_grad({"a gap", 1, 8, 12, 2, false, 4, false, true, 0});
    check_group_norm_grad({"parts", 1, 4, 1100, 1, false, 0, false, false, 0});
    check_group_norm_grad({"channels last", 2, 40, 9, 5, true, 0, false, false, 0});
    check_group_norm_grad({"channels last, odd", 2, 6, 270, 2, true, 1, false, false, 0});
    check_group_norm_grad({"bf16", 2, 8, 264, 2, false, 0, false, false, 0, ST_BF16});
    check_group_norm_grad({"f16, odd", 1, 6, 35, 3, false, 0, false, false, 0, ST_F16}, true);
    check_group_norm_grad({"bf16, channels last", 2, 48, 9, 12, true, 0, false, false, 0, ST_BF16});
    check_group_norm_grad(
        {"bf16, channels last, chunks", 1, 16, 300, 1, true, 8, false, false, 0, ST_BF16});
    check_group_norm_grad({"channels last, few of a group", 2, 8, 6, 4, true, 0, false, true, 0},
                          true);
    check_group_norm_grad({"bf16, channels last", 1, 48, 9, 12, true, 0, false, false, 0, ST_BF16},
                          false, "FAULT_SUMS");
    check_group_norm_grad({"one position", 3, 8, 1, 2, false, 0, false, false, 0});
    check_group_norm_grad({"added", 3, 8, 64, 2, false, 0, false, false, 0}, false,
                          "FAULT_REDUCTION");
    const Images planes[2] = {{"planes", 2, 8, 20, 2, false, 0, false, false, 0},
                              {"planes", 1, 4, 7, 4, false, 0, false, true, 0}};
    KernelCase test("pv_group_norm_grad", pv_group_norm_grad, "segments");
    for (const Images &plane : planes)
        test.segment(add_grad(test, plane, false));
    test.run();
}

// ---- rows ----

static LayerNormArgs add_rows(KernelCase &test, int64_t rows, int64_t c, bool affine, int64_t act,
                              Storage storage)
{
    LayerNormArgs args = {};
    args.x = test.input((size_t)(rows * c), 1, 0.5f, storage);
    args.y = test.output((size_t)(rows * c), bound_of(storage, 2e-6), storage);
    args.types = types_of(storage, 0x1001);
    if (affine) {
        args.mean = test.output((size_t)rows, 2e-6), args.rstd = test.output((size_t)rows, 2e-6);
        args.gamma = test.input((size_t)c), args.beta = test.input((size_t)c);
    }
    args.rows = rows, args.c = c, args.eps = bits_of(1e-5), args.act = act;
    return args;
}

static void check_layer_norm(const char *what, int64_t rows, int64_t c, bool affine, int64_t act,
                             Storage storage = ST_F32, const char *fault = nullptr)
{
    KernelCase test("pv_layer_norm", pv_layer_norm, what);
    test.segment(add_rows(test, rows, c, affine, act, storage));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static LayerNormGradArgs add_row_grads(KernelCase &test, int64_t rows, int64_t c, bool affine,
                                       bool in_place, Storage storage = ST_F32)
{
    LayerNormGradArgs args = {};
    size_t count = (size_t)(rows * c);
    double bound = bound_of(storage, 5e-6);
    args.x = test.input(count, 1, 0.5f, storage);
    args.dx = in_place ? test.updated(count, bound, storage) : test.output(count, bound, storage);
    args.dy = in_place ? args.dx : test.input(count, 1, 0, storage);
    args.types = types_of(storage, 0x11001);
    args.mean = test.input((size_t)rows, 0.1f, 0.5f);
    args.rstd = test.input((size_t)rows, 0.2f, 1.5f);
    args.rows = rows, args.c = c;
    if (affine) {
        args.gamma = test.input((size_t)c);
        args.dgamma = test.output((size_t)c, 5e-6), args.dbeta = test.output((size_t)c, 5e-6);
        args.dgamma_added = test.input((size_t)c);
        args.dbeta_added = in_place ? 0 : test.input((size_t)c);
    }
    return args;
}

static void check_layer_norm_grad(const char *what, int64_t rows, int64_t c, bool affine,
                                  bool in_place, Storage storage = ST_F32,
                                  const char *fault = nullptr)
{
    KernelCase test("pv_layer_norm_grad", pv_layer_norm_grad, what);
    test.segment(add_row_grads(test, rows, c, affine, in_place, storage));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void check_softmax(const char *what, int64_t rows, int64_t c, bool in_place,
                          Storage storage = ST_F32, const char *fault = nullptr)
{
    KernelCase test("pv_softmax", pv_softmax, what);
    size_t count = (size_t)(rows * c);
    double bound = bound_of(storage, 2e-6);
    int64_t y = in_place ? test.updated(count, bound, storage) : test.output(count, bound, storage);
    int64_t x = in_place ? y : test.input(count, 5, 0, storage);
    test.segment(SoftmaxArgs{y, x, rows, c, types_of(storage, 0x11)});
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void rows_of_numbers(void)
{
    check_layer_norm("a warp a row", 9, 64, true, PV_ACT_NONE);
    check_layer_norm("odd", 3, 131, true, PV_ACT_GELU);
    check_layer_norm("bare", 2, 260, false, PV_ACT_SILU);
    check_layer_norm("a block a row", 2, 1030, true, PV_ACT_NONE);
    check_layer_norm("a block a row, aligned", 1, 1032, false, PV_ACT_RELU);
    check_layer_norm_grad("a warp a row", 9, 64, true, false);
    check_layer_norm_grad("two parts of a row more, odd", 19, 131, true, true);
    check_layer_norm_grad("bare", 2, 260, false, false);
    check_layer_norm_grad("a block a row", 3, 1030, true, true);
    check_layer_norm_grad("a block a row, bare", 2, 1032, false, false);
    check_layer_norm_grad("a warp a row", 9, 64, true, false, ST_F32, "FAULT_WARP_ORDER");
    check_softmax("a warp a row", 9, 64, false);
    check_softmax("odd, in place", 3, 131, true);
    check_softmax("one column", 2, 1, false);
    check_softmax("a block a row", 2, 1030, true);
    check_layer_norm("a block a row", 1, 1030, true, PV_ACT_NONE, ST_F32, "FAULT_REDUCTION");
    check_softmax("a block a row", 1, 1030, true, ST_F32, "FAULT_REDUCTION");
    check_layer_norm("bf16", 9, 264, true, PV_ACT_SILU, ST_BF16);
    check_layer_norm("f16, odd", 2, 1029, true, PV_ACT_NONE, ST_F16);
    check_layer_norm_grad("bf16", 9, 264, true, true, ST_BF16);
    check_layer_norm_grad("f16, odd", 3, 37, true, false, ST_F16);
    check_softmax("bf16", 9, 264, true, ST_BF16);
    KernelCase test("pv_layer_norm_grad", pv_layer_norm_grad, "segments");
    test.segment(add_row_grads(test, 9, 20, true, false));
    test.segment(add_row_grads(test, 2, 36, true, true));
    test.run();
}

int main(void)
{
    group_norms();
    large_group();
    group_norm_grads();
    rows_of_numbers();
    return finish_cases();
}
