// cases
// Convolutions and products in f32 that normalize an operand and make the norm table of their
// result: tails, tiles of several images, groups across tiles, parts, layouts; segments of which
// some normalize, or make a table, and others do not; moments; operands and residuals that are
// up-sampled; and tables of what others have made, whole or in parts.
#include <stddef.h>
#include "conv_case.h"
#include "norm_case.h"

struct Shape {
    const char *what;
    int64_t images, c_in, c_out, groups, height, width, kernel, stride;
    int64_t norm_act;    // of x; -1: it is not normalized
    int64_t norm_groups; // of y; 0: no table
    bool last, rich;     // channels last; with bias, residual and all that a table may depend on
    bool moments = false;
    int64_t up = 0, residual_up = 0; // of height and width, powers of 2
};

static void add_conv(KernelCase &test, const Shape &shape, bool wgrad)
{
    ConvArgs args = {};
    int64_t pad = (shape.kernel - 1) / 2, reach = 2 * pad - shape.kernel;
    int64_t out_h = (shape.height + reach) / shape.stride + 1;
    int64_t out_w = (shape.width + reach) / shape.stride + 1;
    args.images = shape.images, args.c_in = shape.c_in, args.c_out = shape.c_out;
    args.groups = shape.groups;
    args.in[0] = args.out[0] = args.kernel[0] = args.stride[0] = 1;
    args.in[1] = shape.height, args.in[2] = shape.width, args.out[1] = out_h, args.out[2] = out_w;
    for (int axis = 1; axis < 3; axis++)
        args.kernel[axis] = shape.kernel, args.stride[axis] = shape.stride, args.pad[axis] = pad;
    const int64_t up[3] = {0, shape.up, shape.up};
    set_shifts(args, up, shape.residual_up);
    set_strides(args, shape.last);
    size_t x = (size_t)(args.images * args.x_image), y = (size_t)(args.images * args.y_image);
    size_t w = (size_t)(args.c_out * args.c_in / args.groups * shape.kernel * shape.kernel);
    args.x = test.input(x, 1, 0.5f);
    args.w = wgrad ? test.output(w) : test.input(w);
    args.y = wgrad ? test.input(y) : test.output(y);
    if (shape.rich && !wgrad) {
        args.bias = test.input((size_t)args.c_out, 1, 3);
        int64_t of_residual = out_h * out_w >> 2 * shape.residual_up;
        args.residual_image = shape.c_out * of_residual;
        args.residual_channel = shape.last ? 1 : of_residual;
        args.residual_position = args.y_position;
        args.residual = test.input((size_t)(args.images * args.residual_image));
        args.act = PV_ACT_SILU;
    }
    if (shape.norm_act >= 0)
        args.norm = add_norm(test, args.images, args.c_in, shape.norm_act);
    if (shape.norm_groups && !wgrad)
        args.stats = add_stats(test, args.images, args.c_out, shape.norm_groups, shape.rich);
    if (shape.moments)
        add_moments(test, &args.stats, args.images, args.c_out);
    test.segment(args);
}

static void check(const Shape &shape, bool wgrad = false, const char *fault = nullptr)
{
    KernelCase test(wgrad ? "pv_conv_wgrad" : "pv_conv",
                    [=](const PvRun *, const int64_t *args) { plain_norm_conv(wgrad, args); },
                    shape.what);
    add_conv(test, shape, wgrad);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// Segments as `shape` has them, with neither norm nor table, with a table alone, with a norm alone.
static void check_some(const char *what, const Shape &shape, bool wgrad = false,
                       const char *fault = nullptr)
{
    KernelCase test(wgrad ? "pv_conv_wgrad" : "pv_conv",
                    [=](const PvRun *, const int64_t *args) { plain_norm_conv(wgrad, args); },
                    what);
    Shape plain = shape, table = shape, norm = shape;
    plain.norm_act = table.norm_act = -1, plain.norm_groups = norm.norm_groups = 0;
    plain.moments = table.moments = false;
    plain.height = 4;
    for (const Shape &segment : {plain, shape, table, norm})
        add_conv(test, segment, wgrad);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

struct Product {
    const char *what;
    int64_t m, n, k, images;
    bool b_k;
    int64_t norm_act, norm_groups;
    bool rich;
    bool moments = false;
};

static void add_product(KernelCase &test, const Product &p)
{
    GemmArgs args = {};
    args.m = p.m, args.n = p.n, args.k = p.k, args.batch0 = p.images, args.batch1 = 1;
    args.a_m = p.k, args.a_k = 1;
    args.b_n = p.b_k ? p.k : 1, args.b_k = p.b_k ? 1 : p.n, args.b0 = p.k * p.n;
    args.c_m = p.n, args.c0 = p.m * p.n;
    args.a = test.input((size_t)(p.m * p.k));
    args.b = test.input((size_t)(p.images * args.b0));
    args.c = test.output((size_t)(p.images * args.c0));
    if (p.rich) {
        args.bias = test.input((size_t)p.m, 1, 3), args.bias_axis = 1;
        args.residual = test.input((size_t)(p.images * args.c0));
        args.r0 = args.c0, args.r_m = args.c_m;
    }
    if (p.norm_act >= 0)
        args.norm = add_norm(test, p.images, p.k, p.norm_act);
    if (p.norm_groups)
        args.stats = add_stats(test, p.images, p.m, p.norm_groups, p.rich);
    if (p.moments)
        add_moments(test, &args.stats, p.images, p.m);
    test.segment(args);
}

// some: a segment with neither norm nor table stands in front.
static void check_product(const Product &p, bool some = false)
{
    KernelCase test("pv_gemm", [](const PvRun *, const int64_t *args) { plain_norm_gemm(args); },
                    p.what);
    if (some)
        add_product(test, {p.what, p.m, p.n, p.k, 1, p.b_k, -1, 0, p.rich});
    add_product(test, p);
    test.run();
}

// A table alone, of images as they lie; with 0 groups moments instead.
static void check_table(const char *what, int64_t images, int64_t c, int64_t positions,
                        int64_t groups, bool last)
{
    KernelCase test(
        "pv_group_norm",
        [](const PvRun *, const int64_t *raw) {
            const GroupNormArgs &a = *(const GroupNormArgs *)raw;
            plain_table({a.table, a.mean, a.rstd, a.gamma, a.beta, a.scale, a.shift, a.mod_image,
                         a.groups, a.eps, a.moments, a.moments_image, a.moments_shift},
                        a.images, a.c, a.positions, (const float *)a.x,
                        [&](int64_t image, int64_t channel, int64_t position) {
                            return image * a.x_image + channel * a.x_channel +
                                   position * a.x_position;
                        });
        },
        what);
    GroupNormArgs args = {};
    NormStats stats = {};
    if (groups > 0)
        stats = add_stats(test, images, c, groups, true);
    else
        add_moments(test, &stats, images, c);
    args.moments = stats.moments, args.moments_image = stats.moments_image;
    args.moments_shift = stats.moments_shift;
    args.table = stats.table, args.mean = stats.mean, args.rstd = stats.rstd;
    args.gamma = stats.gamma, args.beta = stats.beta, args.scale = stats.scale;
    args.shift = stats.shift, args.mod_image = stats.mod_image, args.eps = stats.eps;
    args.images = images, args.c = c, args.positions = positions;
    args.groups = groups > 0 ? groups : c;
    args.x_image = c * positions, args.x_channel = last ? 1 : positions;
    args.x_position = last ? c : 1;
    args.x = test.input((size_t)(images * args.x_image), 1, 2);
    test.segment(args);
    test.run();
}

// A table of what lies in parts, from the moments of each.
static void plain_join(const int64_t *raw)
{
    const GroupNormArgs &a = *(const GroupNormArgs *)raw;
    NormStats stats = {a.table, a.mean,      a.rstd,   a.gamma, a.beta, a.scale,
                       a.shift, a.mod_image, a.groups, a.eps,   0,      0,       0};
    // images of two elements a part and channel that have these moments
    std::vector<float> values((size_t)(a.images * a.c * a.positions));
    auto element = [&](int64_t image, int64_t channel, int64_t position) {
        return (image * a.c + channel) * a.positions + position;
    };
    for (int64_t i = 0; i < a.images * a.c; i++)
        for (int64_t part = 0, at = 0; part < a.parts; part++) {
            const float *from =
                (const float *)a.x + part * a.x_part + i / a.c * a.x_image + i % a.c;
            float away = sqrtf(from[a.x_position] / (float)a.count[part]);
            for (int64_t k = 0; k < a.count[part]; k++)
                values[(size_t)element(i / a.c, i % a.c, at++)] = from[0] + (k % 2 ? away : -away);
        }
    plain_table(stats, a.images, a.c, a.positions, values.data(), element);
}

static void check_join(const char *what, int64_t images, int64_t c, int64_t groups,
                       std::vector<int64_t> count, const char *fault = nullptr)
{
    KernelCase test("pv_group_norm",
                    [](const PvRun *, const int64_t *raw) { plain_join(raw); }, what);
    GroupNormArgs args = {};
    NormStats stats = add_stats(test, images, c, groups, true);
    args.table = stats.table, args.mean = stats.mean, args.rstd = stats.rstd;
    args.gamma = stats.gamma, args.beta = stats.beta, args.scale = stats.scale;
    args.shift = stats.shift, args.mod_image = stats.mod_image, args.eps = stats.eps;
    args.images = images, args.c = c, args.groups = groups, args.parts = (int64_t)count.size();
    args.x_channel = 1, args.x_position = c, args.x_image = 2 * c, args.x_part = images * 2 * c;
    args.x = test.input(count.size() * (size_t)args.x_part, 0.5f, 2);
    for (size_t i = 0; i < count.size(); i++)
        args.count[i] = count[i], args.positions += count[i];
    test.segment(args);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// Up-sampling on the way, in all that gathers. Sizes are those of what is up-sampled.
static void check_resampled(void)
{
    Shape up = {"up-sampled", 2, 12, 20, 1, 8, 12, 3, 1, PV_ACT_SILU, 4, false, true, true, 1, 0};
    Shape by_4 = {"by 4, odd", 1, 5, 6, 1, 12, 20, 3, 1, -1, 0, false, true, false, 2, 1};
    Shape point = {"1 x 1", 3, 8, 20, 1, 4, 8, 1, 1, PV_ACT_NONE, 0, false, true, false, 1, 1};
    Shape last = {"channels last", 2, 20,   24,   1,    6, 8, 3, 1,
                  PV_ACT_SILU,     3, true, true, true, 1, 1};
    for (const Shape &shape : {up, by_4, point, last})
        check(shape);
    KernelCase test("pv_conv",
                    [](const PvRun *, const int64_t *args) { plain_norm_conv(false, args); },
                    "some segments up-sampled");
    Shape residual = up, plain = up;
    residual.up = 0, residual.residual_up = 1, plain.up = 0;
    for (const Shape &shape : {plain, up, residual})
        add_conv(test, shape, false);
    test.run();
    check(up, false, "FAULT_CONV_CLASS");
}

int main(void)
{
    // images, channels in and out, groups of the convolution, height, width, kernel, stride
    Shape odd = {"odd images, several a tile", 3, 6, 20, 1, 5, 5, 3, 1, PV_ACT_SILU, 4, false,
                 true};
    Shape across = {"groups across tiles", 2, 8, 136, 1, 9, 8, 3, 1, PV_ACT_NONE, 8, false, false};
    Shape point = {"1 x 1", 2, 36, 20, 1, 4, 6, 1, 1, PV_ACT_RELU, 10, false, true};
    Shape deep = {"parts", 2, 65, 68, 1, 5, 9, 3, 1, PV_ACT_GELU, 4, false, true};
    Shape grouped = {"groups, stride", 1, 6, 8, 2, 8, 9, 3, 2, PV_ACT_SILU, 2, false, false};
    Shape few = {"few channels", 1, 8, 4, 1, 9, 15, 3, 1, PV_ACT_SILU, 2, false, true};
    Shape last = {"channels last", 3, 20, 24, 1, 6, 7, 3, 1, PV_ACT_SILU, 3, true, true};
    Shape last_odd = {"channels last, odd", 2, 5, 7, 1, 8, 9, 3, 2, PV_ACT_NONE, 7, true, false};
    Shape last_deep = {"channels last, parts", 2, 64, 68, 1, 5, 7, 3, 1, -1, 4, true, true};
    Shape many = {"more images than counters", 1030, 4, 4, 1, 1, 1, 1, 1, -1, 2, false, false};
    for (const Shape &shape :
         {odd, across, point, deep, grouped, few, last, last_odd, last_deep, many})
        check(shape);
    check(odd, true);
    check(point, true);
    check(grouped, true);
    {
        KernelCase test("pv_conv",
                        [](const PvRun *, const int64_t *args) { plain_norm_conv(false, args); },
                        "three segments");
        for (int64_t side : {4, 7, 2}) {
            Shape plane = odd;
            plane.c_in = 40, plane.height = side;
            add_conv(test, plane, false);
        }
        test.run();
    }
    check_some("some segments", odd);
    check_some("some segments, 1 x 1", point);
    deep.moments = true;
    check_some("some segments, parts and moments", deep);
    check_some("some segments, channels last", last);
    check_some("some segments, channels last, odd", last_odd);
    check_some("some segments, gathered", odd, true);
    check_some("some segments, 1 x 1", point, true);
    check_product({"positions dense", 70, 36, 40, 3, false, PV_ACT_SILU, 7, true});
    check_product({"channels dense", 20, 66, 36, 2, true, PV_ACT_NONE, 5, false});
    check_product({"odd", 24, 35, 37, 2, false, PV_ACT_SILU, 3, true});
    check_product({"odd, channels dense", 9, 130, 19, 1, true, PV_ACT_SILU, 0, false});
    check_product({"parts", 40, 30, 800, 2, false, -1, 8, true});
    check_product({"some segments", 70, 36, 40, 3, false, PV_ACT_SILU, 7, true}, true);
    check_product({"some segments, channels dense", 20, 66, 36, 2, true, PV_ACT_SILU, 5, false},
                  true);
    check_product({"moments", 40, 30, 800, 2, false, -1, 8, true, true});
    check_resampled();
    check_join("three parts", 3, 24, 4, {64, 64, 32});
    check_join("groups of one", 2, 5, 5, {2, 8});
    check_join("wide groups", 1, 160, 2, {16, 4, 4});
    check_join("three parts", 3, 24, 4, {64, 64, 32}, "FAULT_JOIN_BETWEEN");
    check_table("a table", 2, 12, 35, 4, false);
    check_table("a table, chunks", 1, 6, 3000, 2, false);
    check_table("a table, channels last", 2, 24, 33, 3, true);
    check_table("moments", 2, 12, 35, 0, false);
    check_table("moments, chunks", 1, 3, 9000, 0, false);
    check_table("moments, channels last", 2, 24, 33, 0, true);
    check(odd, false, "FAULT_NORM_IMAGE");
    check_some("some segments", odd, false, "FAULT_NORM_SOME");
    check(across, false, "FAULT_STATS_FENCE");
    check(deep, false, "FAULT_STATS_BARRIER");
    return finish_cases();
}
