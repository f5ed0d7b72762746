// link: pvdm_kernels32
// Norms, their gradients and softmax of the CPU kernel library against plain loops in double.
#include "tests/unit/kernel_check.h"

static double activate(double x, PvAct act)
{
    return act == PV_ACT_SILU ? x / (1 + exp(-x)) : x;
}

// Mean and 1 / sqrt(variance + eps) of `count` numbers.
static void statistics(const PvReal *x, int64_t count, double eps, double *mean, double *rstd)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i];
    *mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++)
        squares += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *rstd = 1 / sqrt(squares / (double)count + eps);
}

// What gradients are computed from and to, for the operands of `args`; with terms that they are
// added to if `has_added`. Mean and rstd are filled in with what is expected of the forward pass.
static GroupNormGradArgs group_norm_gradient(const GroupNormArgs *args, int64_t apart,
                                             bool has_added, Output *grads)
{
    int64_t c = args->c, images = args->images;
    GroupNormGradArgs grad = {.images = images,
                              .c = c,
                              .positions = args->positions,
                              .groups = args->groups,
                              .x_image = args->x_image,
                              .dy_image = args->y_image,
                              .dx_image = c * args->positions + 3 * c * apart + 1,
                              .x_channel = args->x_channel,
                              .dy_channel = args->y_channel,
                              .dx_channel = args->positions + 3 * apart,
                              .x_position = 1,
                              .dy_position = 1,
                              .dx_position = 1,
                              .x = args->x,
                              .gamma = args->gamma};
    grads[0] = output(images * grad.dx_image);
    grads[1] = output(c);
    grads[2] = output(c);
    grad.dy = (int64_t)random_array(images * grad.dy_image);
    grad.mean = (int64_t)random_array(images * args->groups);
    grad.rstd = (int64_t)random_array(images * args->groups);
    grad.dx = (int64_t)grads[0].data;
    grad.dgamma = (int64_t)grads[1].data;
    grad.dbeta = (int64_t)grads[2].data;
    PvReal *added = has_added ? random_array(2 * c) : NULL;
    grad.dgamma_added = (int64_t)added;
    grad.dbeta_added = added ? (int64_t)(added + c) : 0;
    for (int64_t i = 0; i < c; i++) {
        grads[1].expected[i] = added ? (double)added[i] : 0;
        grads[2].expected[i] = added ? (double)added[c + i] : 0;
    }
    return grad;
}

// Outputs and gradients of group `g` of an image.
static void expect_group(const GroupNormArgs *args, const GroupNormGradArgs *grad, int64_t image,
                         int64_t g, Output *outs, Output *grads)
{
    int64_t positions = args->positions, channels = args->c / args->groups;
    int64_t count = channels * positions, number = image * args->groups + g;
    const PvReal *gamma = (const PvReal *)args->gamma, *beta = (const PvReal *)args->beta;
    const PvReal *scale = (const PvReal *)args->scale + image * args->mod_image;
    const PvReal *shift = (const PvReal *)args->shift + image * args->mod_image;
    double mean, rstd, plain = 0, product = 0;
    PvReal from[count], up[count];
    for (int64_t i = 0; i < count; i++) {
        int64_t at = g * channels + i / positions, position = i % positions;
        from[i] = ((PvReal *)args->x)[image * args->x_image + at * args->x_channel + position];
        up[i] = ((PvReal *)grad->dy)[image * grad->dy_image + at * grad->dy_channel + position];
    }
    statistics(from, count, 1e-5, &mean, &rstd);
    outs[1].expected[number] = mean;
    outs[2].expected[number] = rstd;
    ((PvReal *)grad->mean)[number] = (PvReal)mean;
    ((PvReal *)grad->rstd)[number] = (PvReal)rstd;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = g * channels + i / positions;
        double hat = ((double)from[i] - mean) * rstd, factor = (double)gamma[at];
        double y = hat * factor + (double)beta[at];
        if (args->scale)
            y = y * (1 + (double)scale[at]) + (double)shift[at];
        outs[0].expected[image * args->y_image + at * args->y_channel + i % positions] =
            activate(y, (PvAct)args->act);
        grads[1].expected[at] += (double)up[i] * hat;
        grads[2].expected[at] += (double)up[i];
        plain += (double)up[i] * factor;
        product += (double)up[i] * factor * hat;
    }
    for (int64_t i = 0; i < count; i++) {
        double hat = ((double)from[i] - mean) * rstd;
        int64_t at = g * channels + i / positions;
        grads[0].expected[image * grad->dx_image + at * grad->dx_channel + i % positions] =
            rstd * ((double)up[i] * (double)gamma[at] - (plain + hat * product) / (double)count);
    }
}

static void check_group_norm(int64_t images, int64_t c, int64_t positions, int64_t groups,
                             bool modulated, PvAct act, int64_t apart)
{
    int64_t plane = c * positions;
    GroupNormArgs args = {.images = images,
                          .c = c,
                          .positions = positions,
                          .groups = groups,
                          .x_image = plane + c * apart + 3,
                          .y_image = plane + 2 * c * apart + 5,
                          .x_channel = positions + apart,
                          .y_channel = positions + 2 * apart,
                          .x_position = 1,
                          .y_position = 1,
                          .mod_image = 2 * c,
                          .eps = real_bits(1e-5),
                          .act = act};
    PvReal *mod = random_array(images * 2 * c);
    Output outs[3] = {output(images * args.y_image), output(images * groups),
                      output(images * groups)};
    args.x = (int64_t)random_array(images * args.x_image);
    args.gamma = (int64_t)random_array(c);
    args.beta = (int64_t)random_array(c);
    args.scale = modulated ? (int64_t)mod : 0;
    args.shift = modulated ? (int64_t)(mod + c) : 0;
    args.y = (int64_t)outs[0].data;
    args.mean = (int64_t)outs[1].data;
    args.rstd = (int64_t)outs[2].data;

    Output grads[3];
    GroupNormGradArgs grad = group_norm_gradient(&args, apart, modulated, grads);
    for (int64_t i = 0; i < images * groups; i++)
        expect_group(&args, &grad, i / groups, i % groups, outs, grads);
    char name[100];
    snprintf(name, sizeof name, "group norm %lld x %lld x %lld, %lld groups", (long long)images,
             (long long)c, (long long)positions, (long long)groups);
    int64_t scratch = pv_norm_scratch(c, sizeof(PvReal));
    check(name, pv_group_norm, &args, scratch, outs, 3, 100);
    check(name, pv_group_norm_grad, &grad, scratch, grads, 3, 2000);
    release();
}

static void test_group_norm(void **state)
{
    (void)state;
    check_group_norm(1, 8, 16, 4, false, PV_ACT_NONE, 0);
    check_group_norm(3, 64, 50, 32, true, PV_ACT_SILU, 0);
    check_group_norm(2, 32, 257, 32, false, PV_ACT_SILU, 0);
    check_group_norm(2, 6, 5000, 2, true, PV_ACT_NONE, 0);
    check_group_norm(5, 7, 13, 1, false, PV_ACT_NONE, 0);
    check_group_norm(1, 128, 1024, 32, true, PV_ACT_SILU, 0);
    check_group_norm(3, 64, 50, 32, true, PV_ACT_SILU, 17);
    check_group_norm(2, 6, 5000, 2, false, PV_ACT_NONE, 1);
}

static void check_layer_norm(int64_t rows, int64_t c, bool affine, PvAct act)
{
    LayerNormArgs args = {.rows = rows, .c = c, .eps = real_bits(1e-5), .act = act};
    LayerNormGradArgs grad = {.rows = rows, .c = c};
    PvReal *x = random_array(rows * c), *gamma = random_array(c), *beta = random_array(c);
    PvReal *dy = random_array(rows * c), *mean_in = random_array(rows),
           *rstd_in = random_array(rows);
    Output outs[3] = {output(rows * c), output(rows), output(rows)};
    Output grads[3] = {output(rows * c), output(c), output(c)};
    args.x = grad.x = (int64_t)x;
    args.gamma = grad.gamma = affine ? (int64_t)gamma : 0;
    args.beta = affine ? (int64_t)beta : 0;
    args.y = (int64_t)outs[0].data;
    args.mean = (int64_t)outs[1].data;
    args.rstd = (int64_t)outs[2].data;
    grad.dy = (int64_t)dy;
    grad.mean = (int64_t)mean_in;
    grad.rstd = (int64_t)rstd_in;
    grad.dx = (int64_t)grads[0].data;
    grad.dgamma = affine ? (int64_t)grads[1].data : 0;
    grad.dbeta = affine ? (int64_t)grads[2].data : 0;
    for (int64_t i = 0; affine && i < c; i++)
        grads[1].expected[i] = grads[2].expected[i] = 0;
    for (int64_t row = 0; row < rows; row++) {
        double mean, rstd, plain = 0, product = 0;
        statistics(x + row * c, c, 1e-5, &mean, &rstd);
        outs[1].expected[row] = mean;
        outs[2].expected[row] = rstd;
        mean_in[row] = (PvReal)mean;
        rstd_in[row] = (PvReal)rstd;
        for (int64_t i = 0; i < c; i++) {
            double hat = ((double)x[row * c + i] - mean) * rstd, up = (double)dy[row * c + i];
            double y = affine ? hat * (double)gamma[i] + (double)beta[i] : hat;
            outs[0].expected[row * c + i] = activate(y, act);
            if (affine) {
                grads[1].expected[i] += up * hat;
                grads[2].expected[i] += up;
                up *= (double)gamma[i];
            }
            plain += up;
            product += up * hat;
        }
        for (int64_t i = 0; i < c; i++) {
            double hat = ((double)x[row * c + i] - mean) * rstd, up = (double)dy[row * c + i];
            up *= affine ? (double)gamma[i] : 1;
            grads[0].expected[row * c + i] = rstd * (up - (plain + hat * product) / (double)c);
        }
    }
    char name[100];
    snprintf(name, sizeof name, "layer norm %lld x %lld", (long long)rows, (long long)c);
    int64_t scratch = pv_norm_scratch(c, sizeof(PvReal));
    check(name, pv_layer_norm, &args, scratch, outs, 3, 100);
    check(name, pv_layer_norm_grad, &grad, scratch, grads, 3, 2000);
    release();
}

static void test_layer_norm(void **state)
{
    (void)state;
    check_layer_norm(1, 5, true, PV_ACT_NONE);
    check_layer_norm(40, 384, true, PV_ACT_NONE);
    check_layer_norm(33, 65, false, PV_ACT_SILU);
    check_layer_norm(500, 31, true, PV_ACT_SILU);
    check_layer_norm(3, 5000, false, PV_ACT_NONE);
}

static void test_softmax(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{1, 1}, {7, 3}, {40, 16}, {5, 33}, {100, 100}, {3, 5000}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int in_place = 0; in_place < 2; in_place++) {
            int64_t rows = sizes[s][0], c = sizes[s][1];
            Output out = output(rows * c);
            PvReal *x = random_array(rows * c);
            for (int64_t row = 0; row < rows; row++) {
                double sum = 0;
                for (int64_t i = 0; i < c; i++) {
                    x[row * c + i] *= 20;
                    sum += exp((double)x[row * c + i]);
                }
                for (int64_t i = 0; i < c; i++)
                    out.expected[row * c + i] = exp((double)x[row * c + i]) / sum;
            }
            if (in_place)
                memcpy(out.data, x, (size_t)(rows * c) * sizeof *x);
            SoftmaxArgs args = {.y = (int64_t)out.data,
                                .x = (int64_t)(in_place ? out.data : x),
                                .rows = rows,
                                .c = c};
            check("softmax", pv_softmax, &args, 0, &out, 1, 100);
            release();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_norm),
        cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_softmax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
