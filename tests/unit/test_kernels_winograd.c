// link: pvdm_kernels32
// Minimal filtering of operands that are normalized or up-sampled on the way, of residuals that are
// up-sampled, and of kernels' gradients over several segments: against the plain sums of operands
// that loops have made ready, and with the same bits for any number of threads. That minimal
// filtering took place is seen from results that differ from the plain ones' in some bits.
#include "tests/unit/kernel_check.h"

enum { PLANES = 3, C_IN = 40, C_OUT = 50, IMAGES = 2 };

typedef struct {
    int64_t h, w;                       // of x as the convolution sees it, and of y
    PvAct act;                          // of the norm
    bool normed;
    int64_t x_shift, residual_shift;    // along h and w
} Plane;

// x [IMAGES, c, h >> shift, w >> shift], images image_step apart, as [IMAGES, c, h, w].
static PvReal *sampled_up(const PvReal *x, int64_t image_step, int64_t c, int64_t h, int64_t w,
                          int64_t shift)
{
    PvReal *y = hold((size_t)(IMAGES * c * h * w) * sizeof *y), *to = y;
    for (int64_t image = 0; image < IMAGES; image++)
        for (int64_t k = 0; k < c; k++)
            for (int64_t i = 0; i < h; i++)
                for (int64_t j = 0; j < w; j++) {
                    int64_t row = k * (h >> shift) + (i >> shift);
                    *to++ = x[image * image_step + row * (w >> shift) + (j >> shift)];
                }
    return y;
}

// x [IMAGES, C_IN, positions] as a new table, written to *load, makes it.
static PvReal *normalized(const PvReal *x, int64_t positions, PvAct act, NormLoad *load)
{
    PvReal *y = hold((size_t)(IMAGES * C_IN * positions) * sizeof *y);
    *load = (NormLoad){.image = 2 * C_IN + 3, .shift = C_IN + 1, .act = act};
    const PvReal *table = random_array(IMAGES * load->image);
    load->table = (int64_t)table;
    for (int64_t i = 0; i < IMAGES * C_IN * positions; i++) {
        const PvReal *a = table + i / (C_IN * positions) * load->image + i / positions % C_IN;
        double value = (double)x[i] * (double)*a + (double)a[load->shift];
        y[i] = (PvReal)(act == PV_ACT_SILU ? value / (1 + exp(-value)) : value);
    }
    return y;
}

// The arguments of a plane without y and w, and in *plain those of the same with all made ready.
static ConvArgs plane_args(const Plane *plane, ConvArgs *plain)
{
    int64_t shift = plane->x_shift, positions = plane->h * plane->w;
    int64_t lying = (plane->h >> shift) * (plane->w >> shift);
    ConvArgs args = {.images = IMAGES, .c_in = C_IN, .c_out = C_OUT, .groups = 1,
                     .x_image = C_IN * positions, .y_image = C_OUT * positions,
                     .x_channel = positions, .y_channel = positions,
                     .x_position = 1, .y_position = 1,
                     .in = {1, plane->h, plane->w}, .out = {1, plane->h, plane->w},
                     .kernel = {1, 3, 3}, .stride = {1, 1, 1}, .pad = {0, 1, 1}};
    PvReal *x = random_array(IMAGES * C_IN * lying);
    *plain = args;
    PvReal *ready = plane->normed ? normalized(x, lying, plane->act, &args.norm) : x;
    plain->x = (int64_t)sampled_up(ready, C_IN * lying, C_IN, plane->h, plane->w, shift);
    args.x = (int64_t)x;
    args.x_image = C_IN * lying;
    args.x_channel = lying;
    args.x_shift[1] = args.x_shift[2] = shift;
    args.winograd = 1;
    return args;
}

static void add_residual(const Plane *plane, ConvArgs *args, ConvArgs *plain)
{
    int64_t shift = plane->residual_shift, lying = (plane->h >> shift) * (plane->w >> shift);
    PvReal *residual = random_array(IMAGES * C_OUT * lying);
    args->residual = (int64_t)residual;
    args->residual_channel = lying;
    args->residual_image = C_OUT * lying;
    args->residual_position = 1;
    args->residual_shift[1] = args->residual_shift[2] = shift;
    plain->residual =
        (int64_t)sampled_up(residual, C_OUT * lying, C_OUT, plane->h, plane->w, shift);
    plain->residual_channel = plane->h * plane->w;
    plain->residual_image = C_OUT * plain->residual_channel;
    plain->residual_position = 1;
}

static int64_t largest(int64_t x, int64_t y)
{
    return x > y ? x : y;
}

// `got` are sums of `terms` terms in another order than those expected, and not the same numbers.
// Their error in the norm would be larger than that if numbers were split into two parts only.
static void check_close(const char *name, const PvReal *got, const Output *want, int64_t terms)
{
    double epsilon = sizeof(PvReal) == 4 ? 1.1920929e-7 : 2.220446e-16;
    double all = 0, norm = 0;
    int64_t differ = 0;
    for (int64_t i = 0; i < want->count; i++) {
        double expected = (double)want->data[i], error = fabs((double)got[i] - expected);
        if (!(error <= 60 * sqrt((double)terms) * epsilon * (1 + fabs(expected))))
            fail_msg("%s: [%lld] is %.9g, not %.9g", name, (long long)i, (double)got[i], expected);
        differ += error > 0;
        all += error * error;
        norm += expected * expected;
    }
    if (sqrt(all / norm) > 16 * epsilon)
        fail_msg("%s: error %.2g", name, sqrt(all / norm));
    if (differ == 0)
        fail_msg("%s: no minimal filtering took place", name);
}

static void check_forward(const char *name, const Plane *planes)
{
    ConvArgs args[PLANES], plain[PLANES];
    Output want[PLANES], got[PLANES];
    PvReal *kept[PLANES];
    PvReal *w = random_array(C_OUT * C_IN * 9), *bias = random_array(C_OUT);
    int64_t scratch = 0;
    for (int i = 0; i < PLANES; i++) {
        args[i] = plane_args(&planes[i], &plain[i]);
        add_residual(&planes[i], &args[i], &plain[i]);
        want[i] = output(IMAGES * args[i].y_image);
        got[i] = output(IMAGES * args[i].y_image);
        args[i].w = plain[i].w = (int64_t)w;
        args[i].bias = plain[i].bias = (int64_t)bias;
        args[i].act = plain[i].act = PV_ACT_SILU;
        plain[i].y = (int64_t)want[i].data;
        args[i].y = (int64_t)got[i].data;
        launch(pv_conv, &plain[i], pv_conv_scratch(&plain[i], sizeof(PvReal)), 1);
        launch(pv_conv, &args[i], pv_conv_scratch(&args[i], sizeof(PvReal)), 1);
        check_close(name, got[i].data, &want[i], 9 * C_IN);
        kept[i] = hold((size_t)got[i].count * sizeof(PvReal));
        memcpy(kept[i], got[i].data, (size_t)got[i].count * sizeof(PvReal));
        scratch = largest(scratch, pv_conv_scratch(&args[i], sizeof(PvReal)));
    }
    for (int threads = 1; threads <= 3; threads++) {
        for (int i = 0; i < PLANES; i++)
            memset(got[i].data, 0, (size_t)got[i].count * sizeof(PvReal));
        launch_segments(pv_conv, args, PLANES, scratch, threads);
        for (int i = 0; i < PLANES; i++)
            assert_memory_equal(got[i].data, kept[i], (size_t)got[i].count * sizeof(PvReal));
    }
    release();
}

// The gradient of the kernel, summed over the planes, to which a residual is added once.
static void check_wgrad(const char *name, const Plane *planes)
{
    enum { COUNT = C_OUT * C_IN * 9 };
    ConvArgs args[PLANES], plain[PLANES];
    Output want = output(COUNT), got = output(COUNT), first = output(COUNT);
    PvReal *residual = random_array(COUNT);
    int64_t scratch = 0, positions = 0;
    for (int i = 0; i < PLANES; i++) {
        args[i] = plane_args(&planes[i], &plain[i]);
        args[i].y = plain[i].y = (int64_t)random_array(IMAGES * args[i].y_image);
        args[i].w = (int64_t)got.data;
        plain[i].w = (int64_t)want.data;
        args[i].residual = plain[i].residual = i == 0 ? (int64_t)residual : 0;
        args[i].sum = plain[i].sum = i == 0 ? PLANES - 1 : -1;
        scratch = largest(scratch, pv_conv_wgrad_scratch(&args[i], sizeof(PvReal)));
        scratch = largest(scratch, pv_conv_wgrad_scratch(&plain[i], sizeof(PvReal)));
        positions += IMAGES * planes[i].h * planes[i].w;
    }
    launch_segments(pv_conv_wgrad, plain, PLANES, scratch, 1);
    for (int threads = 1; threads <= 3; threads++) {
        Output *out = threads == 1 ? &first : &got;
        args[0].w = args[1].w = args[2].w = (int64_t)out->data;
        launch_segments(pv_conv_wgrad, args, PLANES, scratch, threads);
        check_close(name, out->data, &want, positions);
        assert_memory_equal(out->data, first.data, COUNT * sizeof(PvReal));
    }
    release();
}

static void test_norms(void **state)
{
    (void)state;
    // each plane with a table of its own, or none; no multiples of a tile; rows that are wide
    check_forward("norm", (Plane[]){{16, 16, PV_ACT_SILU, true, 0, 0},
                                    {8, 16, PV_ACT_NONE, true, 0, 0},
                                    {9, 70, PV_ACT_NONE, false, 0, 0}});
}

static void test_up_sampling(void **state)
{
    (void)state;
    check_forward("up-sampled", (Plane[]){{16, 16, PV_ACT_NONE, false, 1, 0},
                                          {10, 14, PV_ACT_NONE, false, 1, 1},
                                          {16, 8, PV_ACT_NONE, false, 0, 1}});
    check_forward("norm, up-sampled", (Plane[]){{16, 20, PV_ACT_SILU, true, 1, 0},
                                                {12, 68, PV_ACT_NONE, true, 2, 2},
                                                {6, 18, PV_ACT_SILU, true, 1, 1}});
}

static void test_kernel_gradients(void **state)
{
    (void)state;
    check_wgrad("segments", (Plane[]){{16, 16, PV_ACT_NONE, false, 0, 0},
                                      {8, 16, PV_ACT_NONE, false, 0, 0},
                                      {9, 22, PV_ACT_NONE, false, 0, 0}});
    check_wgrad("normalized segments", (Plane[]){{16, 16, PV_ACT_SILU, true, 0, 0},
                                                 {8, 16, PV_ACT_NONE, false, 0, 0},
                                                 {10, 66, PV_ACT_NONE, true, 0, 0}});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_up_sampling),
        cmocka_unit_test(test_kernel_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
