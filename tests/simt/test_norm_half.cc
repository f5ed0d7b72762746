// cases
// Products and convolutions in bf16 and f16, channels dense, that normalize an operand as they load
// it and make the norm table, or the moments, of their result: tails, tiles of several images,
// parts, segments of which only some do. With `on_90a` the kernels of sm_90a.
#include <stddef.h>
#include "norm_case.h"

struct Product {
    const char *what;
    int64_t rows, images, n, k; // rows of an image
    int64_t norm_act, groups;   // -1: not normalized; 0: no table
    bool moments, rich, apart;  // apart: images do not follow one another
    Storage half;
};

static int64_t storage_bits(Storage storage, int number)
{
    return (int64_t)(storage == ST_BF16  ? PV_STORE_BF16
                     : storage == ST_F16 ? PV_STORE_F16
                                         : PV_STORE_REAL) << 4 * number;
}

// pv_gemm whose rows are positions of images.
static void plain_rows_gemm(const int64_t *raw)
{
    const GemmArgs &g = *(const GemmArgs *)raw;
    const float *a = (const float *)g.a, *b = (const float *)g.b;
    const float *residual = (const float *)g.residual;
    float *c = (float *)g.c;
    for (int64_t i = 0; i < g.batch0 * g.m * g.n; i++) {
        int64_t i0 = i / g.m / g.n, m = i / g.n % g.m, n = i % g.n;
        int64_t image = i0 + (g.image_rows ? m / g.image_rows : 0);
        double sum = g.bias ? ((const float *)g.bias)[n] : 0;
        for (int64_t k = 0; k < g.k; k++)
            sum += plain_norm(g.norm, a[i0 * g.a0 + m * g.a_m + k * g.a_k], image, k) *
                   b[i0 * g.b0 + k * g.b_k + n * g.b_n];
        int64_t at = i0 * g.c0 + m * g.c_m + n;
        c[at] = (float)(activated(sum, g.act) + (residual ? residual[at] : 0));
    }
    if (!g.stats.table && !g.stats.moments)
        return;
    int64_t images = g.batch0 * (g.m / g.image_rows), rows = g.image_rows;
    plain_table(g.stats, images, g.n, rows, c, [&](int64_t image, int64_t channel, int64_t row) {
        return g.batch0 > 1 ? image * g.c0 + row * g.c_m + channel
                            : (image * rows + row) * g.c_m + channel;
    });
}

// What is computed of values rounded to a half.
static void loosen(KernelCase &test, NormStats *stats, int64_t images, int64_t n, int64_t groups,
                   bool rich, bool moments)
{
    if (groups)
        *stats = add_stats(test, images, n, groups, rich, 4e-3);
    if (moments)
        add_moments(test, stats, images, n, 4e-3);
}

static void add_product(KernelCase &test, const Product &p)
{
    GemmArgs args = {};
    int64_t gap = p.apart ? 8 : 0, images = p.apart ? p.images : 1;
    args.m = p.apart ? p.rows : p.rows * p.images, args.n = p.n, args.k = p.k;
    args.batch0 = images, args.batch1 = 1, args.image_rows = p.rows;
    args.a_m = p.k, args.a_k = 1, args.a0 = args.m * p.k + gap;
    args.b_n = p.k, args.b_k = 1, args.c_m = p.n + gap, args.c0 = args.m * args.c_m;
    args.a = test.input((size_t)(images * args.a0), 1, 0.5f, p.half);
    args.b = test.input((size_t)(p.n * p.k), 1, 0, p.half);
    args.c = test.output((size_t)(images * args.c0), 5e-3, p.half);
    args.types = storage_bits(p.half, 0) | storage_bits(p.half, 1) | storage_bits(p.half, 2);
    if (p.rich) {
        args.bias = test.input((size_t)p.n, 1, 3);
        args.residual = test.input((size_t)(images * args.c0), 1, 0, p.half);
        args.r0 = args.c0, args.r_m = args.c_m;
        args.types |= storage_bits(p.half, 4);
    }
    if (p.norm_act >= 0)
        args.norm = add_norm(test, p.images, p.k, p.norm_act);
    loosen(test, &args.stats, p.images, p.n, p.groups, p.rich, p.moments);
    test.segment(args);
}

// some: segments with neither norm nor table, with a table alone, and with a norm alone beside it.
static void check_product(const Product &p, bool on_90a = false, bool some = false,
                          const char *fault = nullptr)
{
    KernelCase test("pv_gemm", [](const PvRun *, const int64_t *args) { plain_rows_gemm(args); },
                    p.what);
    test.on_90a = on_90a;
    Product plain = p, table = p, norm = p;
    plain.norm_act = table.norm_act = -1;
    plain.groups = norm.groups = 0, plain.moments = norm.moments = false;
    plain.images = 1, norm.images++;
    if (some) {
        add_product(test, plain);
        add_product(test, table);
    }
    if (some && !on_90a)
        add_product(test, norm);
    add_product(test, p);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

struct Shape {
    const char *what;
    int64_t images, c_in, c_out, side[3], kernel, stride;
    int64_t groups; // of y; 0: no table
    bool moments, rich;
    Storage half;
    int64_t up = 0; // of x and the residual, along the last two axes: a power of 2
};

static void add_conv(KernelCase &test, const Shape &s)
{
    ConvArgs args = {};
    int64_t inside = 1, outside = 1, taps = 1;
    args.images = s.images, args.c_in = s.c_in, args.c_out = s.c_out, args.groups = 1;
    for (int axis = 0; axis < 3; axis++) {
        bool flat = s.side[axis] == 1;
        args.in[axis] = s.side[axis], args.kernel[axis] = flat ? 1 : s.kernel;
        args.stride[axis] = flat ? 1 : s.stride, args.pad[axis] = flat ? 0 : s.kernel / 2;
        args.out[axis] = (args.in[axis] + 2 * args.pad[axis] - args.kernel[axis]) /
                             args.stride[axis] + 1;
        args.x_shift[axis] = args.residual_shift[axis] = axis > 0 ? s.up : 0;
        inside *= args.in[axis], outside *= args.out[axis], taps *= args.kernel[axis];
    }
    inside >>= 2 * s.up;
    args.x_channel = args.y_channel = 1, args.x_position = s.c_in, args.y_position = s.c_out + 8;
    args.x_image = inside * s.c_in, args.y_image = outside * args.y_position;
    args.w_last = 1;
    args.x = test.input((size_t)(s.images * args.x_image), 1, 0.5f, s.half);
    args.w = test.input((size_t)(s.c_out * s.c_in * taps), 1, 0, s.half);
    args.y = test.output((size_t)(s.images * args.y_image), 5e-3, s.half);
    args.types = storage_bits(s.half, 0) | storage_bits(s.half, 1) | storage_bits(s.half, 2);
    if (s.rich) {
        args.bias = test.input((size_t)s.c_out, 1, 3);
        args.residual_channel = 1, args.residual_position = args.y_position;
        args.residual_image = args.y_image >> 2 * s.up;
        args.residual = test.input((size_t)(s.images * args.residual_image), 1, 0, s.half);
        args.types |= storage_bits(s.half, 4);
    }
    loosen(test, &args.stats, s.images, s.c_out, s.groups, s.rich, s.moments);
    test.segment(args);
}

// some: a segment that wants neither table nor moments stands in front.
static void check_conv(const Shape &s, bool on_90a = false, bool some = false,
                       const char *fault = nullptr)
{
    KernelCase test("pv_conv",
                    [](const PvRun *, const int64_t *args) { plain_norm_conv(false, args); },
                    s.what);
    test.on_90a = on_90a;
    Shape plain = s;
    plain.groups = 0, plain.moments = false;
    if (some)
        add_conv(test, plain);
    add_conv(test, s);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

int main(void)
{
    const Storage H = ST_BF16, G = ST_F16;
    // rows of an image, images, n, k
    Product linear = {"normalized", 20, 5, 72, 136, PV_ACT_NONE, 0, false, true, false, H};
    Product both = {"normalized, a table", 20, 5, 72, 40, PV_ACT_SILU, 9, true, true, false, H};
    Product apart = {"images apart", 70, 3, 40, 40, PV_ACT_NONE, 5, true, true, true, H};
    Product odd = {"odd sizes", 9, 3, 21, 19, PV_ACT_RELU, 7, false, false, true, H};
    Product parts = {"parts", 12, 3, 40, 1056, -1, 8, true, true, false, H};
    Product half = {"f16", 20, 5, 72, 136, PV_ACT_SILU, 9, false, true, false, G};
    for (const Product &p : {linear, both, apart, odd, parts, half})
        check_product(p);
    check_product(both, false, true);
    check_product(parts, false, true);
    // images, channels, extents, kernel, stride, groups
    Shape plane = {"a table", 3, 16, 72, {1, 6, 7}, 3, 1, 9, true, true, H};
    Shape strided = {"stride 2", 2, 24, 40, {1, 9, 8}, 3, 2, 5, false, true, H};
    Shape deep = {"in parts", 2, 72, 68, {1, 5, 7}, 3, 1, 4, true, true, H};
    Shape f16 = {"f16, three axes", 2, 16, 24, {3, 4, 4}, 3, 1, 4, false, false, G};
    Shape up = {"up-sampled", 3, 16, 40, {1, 6, 8}, 3, 1, 5, true, true, H, 1};
    for (const Shape &s : {plane, strided, deep, f16, up})
        check_conv(s);
    check_conv(plane, false, true);
    // those of sm_90a: images of whole pieces of 16 rows
    Product t1 = {"a table", 48, 3, 96, 64, -1, 8, true, true, false, H};
    Product t1_apart = {"images apart", 96, 3, 136, 64, -1, 8, false, true, true, H};
    Product t1_parts = {"parts", 16, 9, 64, 1056, -1, 8, true, true, false, H};
    for (const Product &p : {t1, t1_apart, t1_parts})
        check_product(p, true);
    check_product(t1, true, true);
    Shape t1_plane = {"a table", 3, 64, 96, {1, 6, 7}, 3, 1, 8, true, true, H};
    Shape t1_large = {"boxes", 2, 64, 64, {1, 20, 18}, 3, 1, 8, true, false, H};
    Shape t1_deep = {"in parts", 5, 256, 64, {1, 4, 4}, 3, 1, 4, true, true, H};
    Shape t1_up = {"up-sampled", 3, 64, 96, {1, 8, 12}, 3, 1, 8, true, true, H, 1};
    Shape t1_up_deep = {"up-sampled, in parts", 2, 256, 64, {1, 20, 8}, 3, 1, 4, true, true, H, 1};
    for (const Shape &s : {t1_plane, t1_large, t1_deep, t1_up, t1_up_deep})
        check_conv(s, true);
    check_conv(t1_plane, true, true);
    check_conv(t1_up, true, true);
    check_conv(t1_large, true, false, "FAULT_STATS_BARRIER");
    check_conv(t1_plane, true, false, "FAULT_STATS_FENCE");
    check_product(linear, false, false, "FAULT_NORM_IMAGE");
    check_product(both, false, true, "FAULT_NORM_SOME");
    check_product(parts, false, false, "FAULT_STATS_BARRIER");
    check_conv(plane, false, false, "FAULT_STATS_FENCE");
    return finish_cases();
}
