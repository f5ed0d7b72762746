// Times the CPU kernels on shapes of PVDM-S against cblas_sgemm with as many operations in the same
// run (first table), and against a copy of as many bytes (second). Prints ratios: figures of a
// shared machine are worth no more. Both sides use one thread, or with an argument that many; a
// second one picks lines by a part of their names.
//
//   cc -O2 -I. -I/usr/include/x86_64-linux-gnu/openblas-openmp bench/kernels/bench_kernels.c
//      libpvdm_kernels32.a .../openblas-openmp/libopenblas.a -fopenmp -lm -o bench_kernels
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "codegen/cpu/kernels.h"

enum { POOL = 512 << 20, ROUNDS = 100 };

static const double PATIENCE = 0.4; // seconds for one line
static const char *only = "";       // part of the names wanted

static char *pool, *scratch;
static size_t used;
static int threads = 1;

static double now(void)
{
    struct timespec time;
    // with one thread, time on the processor: other processes do not count
    clock_gettime(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int64_t reals(int64_t count)
{
    PvReal *at = (PvReal *)(pool + used);
    used += ((size_t)count * sizeof(PvReal) + 63) & ~(size_t)63;
    if (used > POOL) {
        fprintf(stderr, "pool too small\n");
        exit(1);
    }
    for (int64_t i = 0; i < count; i++)
        at[i] = (PvReal)((double)(i * 7919 % 1000) / 1000.0 - 0.5);
    return (int64_t)at;
}

// Square-ish product with that many multiply-adds.
static void blas(double multiply_adds, const float *a, const float *b, float *c)
{
    const int m = 512, k = 512;
    int n = (int)(multiply_adds / m / k);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n < 1 ? 1 : n, k, 1, a, k, b,
                n < 1 ? 1 : n, 0, c, n < 1 ? 1 : n);
}

static void launch(PvKernelFn *kernel, const void *args, int64_t size)
{
    PvRun run = {.batch = 1,
                 .threads = threads,
                 .scratch = scratch,
                 .scratch_size = size,
                 .segments = 1,
                 .split = true};
    kernel(&run, args);
}

static void report(const char *name, PvKernelFn *kernel, const void *args, int64_t size,
                   double multiply_adds, double bytes)
{
    double own = 1e9, other = 1e9;
    if (!strstr(name, only))
        return;
    int64_t n = (int64_t)(multiply_adds / 512 / 512) + 1, half = (int64_t)bytes / 2;
    size_t mark = used;
    const float *a = (const float *)reals(512 * 512), *b = NULL;
    float *c = NULL;
    if (multiply_adds > 0) {
        b = (const float *)reals(512 * n);
        c = (float *)reals(512 * n);
    } else {
        b = (const float *)reals(half / 4);
        c = (float *)reals(half / 4);
    }
    double begin = now();
    for (int i = 0; i < ROUNDS && (i < 3 || now() - begin < PATIENCE); i++) {
        double start = now();
        launch(kernel, args, size);
        double middle = now();
        if (multiply_adds > 0)
            blas(multiply_adds, a, b, c);
        else
            memcpy(c, b, (size_t)half);
        double end = now();
        own = middle - start < own ? middle - start : own;
        other = end - middle < other ? end - middle : other;
    }
    used = mark;
    printf("%-44s %6.2f of %s, %9.3f ms\n", name, other / own,
           multiply_adds > 0 ? "sgemm" : "memcpy", own * 1e3);
    fflush(stdout);
}

static void bench_conv(int64_t images, int64_t c_in, int64_t c_out, int64_t h, int64_t w,
                       int64_t kernel, bool winograd)
{
    ConvArgs args = {.images = images,
                     .winograd = winograd,
                     .c_in = c_in,
                     .c_out = c_out,
                     .groups = 1,
                     .x_image = c_in * h * w,
                     .y_image = c_out * h * w,
                     .x_channel = h * w,
                     .y_channel = h * w,
                     .x_position = 1,
                     .y_position = 1,
                     .in = {1, h, w},
                     .out = {1, h, w},
                     .kernel = {1, kernel, kernel},
                     .stride = {1, 1, 1},
                     .pad = {0, kernel / 2, kernel / 2}};
    args.x = reals(images * args.x_image);
    args.y = reals(images * args.y_image);
    args.w = reals(c_in * c_out * kernel * kernel);
    double work = (double)(images * c_in * c_out * h * w * kernel * kernel);
    char name[80];
    const char *kinds[] = {"forward", "dgrad", "wgrad"};
    PvKernelFn *kernels[] = {pv_conv, pv_conv_dgrad, pv_conv_wgrad};
    int64_t sizes[] = {pv_conv_scratch(&args, sizeof(PvReal)),
                       pv_conv_dgrad_scratch(&args, sizeof(PvReal)),
                       pv_conv_wgrad_scratch(&args, sizeof(PvReal))};
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s%d %s %lld x %lldx%lld %lld -> %lld",
                 winograd ? "minimal" : "conv", (int)kernel, kinds[i], (long long)images,
                 (long long)h, (long long)w, (long long)c_in, (long long)c_out);
        report(name, kernels[i], &args, sizes[i], work, 0);
    }
    used = 0;
}

// y = x w^T, dx = dy w, dw = dy^T x
static void bench_linear(int64_t rows, int64_t in, int64_t out)
{
    int64_t x = reals(rows * in), w = reals(in * out), y = reals(rows * out);
    GemmArgs forward = {.c = y,
                        .a = x,
                        .b = w,
                        .m = rows,
                        .n = out,
                        .k = in,
                        .batch0 = 1,
                        .batch1 = 1,
                        .a_m = in,
                        .a_k = 1,
                        .b_n = in,
                        .b_k = 1,
                        .c_m = out};
    GemmArgs dgrad = {.c = x,
                      .a = y,
                      .b = w,
                      .m = rows,
                      .n = in,
                      .k = out,
                      .batch0 = 1,
                      .batch1 = 1,
                      .a_m = out,
                      .a_k = 1,
                      .b_n = 1,
                      .b_k = in,
                      .c_m = in};
    GemmArgs wgrad = {.c = w,
                      .a = y,
                      .b = x,
                      .m = out,
                      .n = in,
                      .k = rows,
                      .batch0 = 1,
                      .batch1 = 1,
                      .a_m = 1,
                      .a_k = out,
                      .b_n = 1,
                      .b_k = in,
                      .c_m = in};
    const GemmArgs *all[] = {&forward, &dgrad, &wgrad};
    const char *kinds[] = {"forward", "dgrad", "wgrad"};
    for (int i = 0; i < 3; i++) {
        char name[80];
        snprintf(name, sizeof name, "linear %s %lld x %lld -> %lld", kinds[i], (long long)rows,
                 (long long)in, (long long)out);
        report(name, pv_gemm, all[i], pv_gemm_scratch(all[i], sizeof(PvReal)),
               (double)(rows * in * out), 0);
    }
    used = 0;
}

static void bench_attention(int64_t batch, int64_t heads, int64_t n, int64_t d, bool turned)
{
    int64_t size = batch * heads * n * d;
    AttentionGradArgs grad = {
        .f = {.batch0 = batch, .batch1 = heads, .batch2 = 1, .n = n, .m = n, .d = d, .e = d}};
    AttentionArgs *args = &grad.f;
    double scale = 0.125;
    memcpy(&args->scale, &scale, sizeof scale);
    int64_t step_n = turned ? 1 : heads * d, step_d = turned ? n : 1;
    int64_t s1 = turned ? n * d : d, s0 = heads * n * d;
    int64_t *strides[] = {&args->q0, &args->k0, &args->v0, &args->o0,
                          &grad.dq0, &grad.dk0, &grad.dv0};
    for (int i = 0; i < 7; i++)
        memcpy(strides[i], (int64_t[]){s0, s1, step_n, step_d}, 4 * sizeof(int64_t));
    int64_t *arrays[] = {&args->q,  &args->k, &args->v, &args->o,
                         &grad.d_o, &grad.dq, &grad.dk, &grad.dv};
    for (int i = 0; i < 8; i++)
        *arrays[i] = reals(size);
    args->lse = reals(batch * heads * n);
    char name[80];
    snprintf(name, sizeof name, "attention %lld x %lld, n %lld, d %lld, %s", (long long)batch,
             (long long)heads, (long long)n, (long long)d, turned ? "[d, n]" : "[n, d]");
    double work = 2.0 * (double)(batch * heads * n * n * d);
    report(name, pv_attention, args, pv_attention_scratch(args, sizeof(PvReal)), work, 0);
    report("attention gradient", pv_attention_grad, &grad,
           pv_attention_grad_scratch(&grad, sizeof(PvReal)), 2.5 * work, 0);
    used = 0;
}

static void bench_norms(void)
{
    double eps = 1e-5;
    GroupNormArgs group = {.images = 4,
                           .c = 256,
                           .positions = 1024,
                           .groups = 32,
                           .x_image = 256 * 1024,
                           .x_channel = 1024,
                           .y_channel = 1024,
                           .x_position = 1,
                           .y_position = 1,
                           .y_image = 256 * 1024,
                           .act = PV_ACT_SILU};
    memcpy(&group.eps, &eps, sizeof eps);
    int64_t count = 4 * 256 * 1024;
    group.x = reals(count), group.y = reals(count), group.gamma = reals(256);
    group.beta = reals(256), group.mean = reals(128), group.rstd = reals(128);
    report("group norm + silu 4 x 256 x 1024", pv_group_norm, &group, 0, 0, (double)count * 8);
    GroupNormGradArgs group_grad = {.images = 4,
                                    .c = 256,
                                    .positions = 1024,
                                    .groups = 32,
                                    .x_image = 256 * 1024,
                                    .x_channel = 1024,
                                    .dy_channel = 1024,
                                    .dx_channel = 1024,
                                    .x_position = 1,
                                    .dy_position = 1,
                                    .dx_position = 1,
                                    .dy_image = 256 * 1024,
                                    .dx_image = 256 * 1024,
                                    .x = group.x,
                                    .dy = group.y,
                                    .mean = group.mean,
                                    .rstd = group.rstd,
                                    .gamma = group.gamma};
    group_grad.dx = reals(count), group_grad.dgamma = reals(256), group_grad.dbeta = reals(256);
    report("group norm gradient", pv_group_norm_grad, &group_grad, 0, 0, (double)count * 12);
    used = 0;
    int64_t rows = 16384, c = 384;
    LayerNormArgs layer = {.rows = rows, .c = c, .eps = group.eps};
    layer.x = reals(rows * c), layer.y = reals(rows * c), layer.gamma = reals(c);
    layer.beta = reals(c), layer.mean = reals(rows), layer.rstd = reals(rows);
    int64_t size = pv_norm_scratch(c, sizeof(PvReal));
    report("layer norm 16384 x 384", pv_layer_norm, &layer, size, 0, (double)(rows * c * 8));
    LayerNormGradArgs layer_grad = {.rows = rows,
                                    .c = c,
                                    .x = layer.x,
                                    .dy = layer.y,
                                    .mean = layer.mean,
                                    .rstd = layer.rstd,
                                    .gamma = layer.gamma};
    layer_grad.dx = reals(rows * c), layer_grad.dgamma = reals(c), layer_grad.dbeta = reals(c);
    report("layer norm gradient", pv_layer_norm_grad, &layer_grad, size, 0,
           (double)(rows * c * 12));
    SoftmaxArgs softmax = {.x = layer.x, .y = layer.y, .rows = rows, .c = c};
    report("softmax 16384 x 384", pv_softmax, &softmax, 0, 0, (double)(rows * c * 8));
    ReduceArgs bias = {.out = layer.gamma,
                       .x = layer.x,
                       .kept = 1,
                       .reduced = 1,
                       .size = {c, rows},
                       .stride = {1, c}};
    report("sum over rows 16384 x 384", pv_reduce, &bias, pv_reduce_scratch(&bias, 4), 0,
           (double)(rows * c * 4));
    ReduceArgs channels = {.out = layer.gamma,
                           .x = layer.x,
                           .kept = 1,
                           .reduced = 1,
                           .size = {128, 1024},
                           .stride = {1024, 1}};
    report("sum of 128 runs of 1024", pv_reduce, &channels, pv_reduce_scratch(&channels, 4), 0,
           128 * 1024 * 4);
    CopyArgs turn = {.y = layer.y,
                     .x = layer.x,
                     .bytes = 4,
                     .axes = 2,
                     .size = {c, rows},
                     .y_stride = {rows, 1},
                     .x_stride = {1, c}};
    report("transpose 16384 x 384", pv_copy, &turn, 0, 0, (double)(rows * c * 8));
    used = 0;
}

int main(int argc, char **argv)
{
    threads = argc > 1 ? atoi(argv[1]) : 1;
    only = argc > 2 ? argv[2] : "";
    openblas_set_num_threads(threads);
    pool = aligned_alloc(64, POOL);
    scratch = aligned_alloc(64, (size_t)threads << 23);
    if (!pool || !scratch)
        return 1;
    for (int winograd = 0; winograd < 2; winograd++) {
        bench_conv(1, 128, 128, 32, 32, 3, winograd);
        bench_conv(1, 256, 256, 16, 16, 3, winograd);
        bench_conv(1, 1024, 512, 8, 8, 3, winograd);
        bench_conv(1, 512, 512, 4, 4, 3, winograd);
        bench_conv(1, 512, 512, 2, 4, 3, winograd);
        bench_conv(8, 512, 512, 4, 4, 3, winograd);
    }
    bench_conv(1, 256, 768, 1, 512, 1, false);
    bench_linear(16384, 384, 1536);
    bench_linear(64, 512, 1024);
    bench_linear(1, 512, 1024);
    bench_attention(1, 8, 2048, 16, true);
    bench_attention(1, 8, 512, 32, true);
    bench_attention(1, 8, 128, 64, true);
    bench_attention(1, 8, 32, 64, true);
    bench_attention(512, 8, 16, 64, false);
    bench_attention(16, 8, 17, 48, false);
    bench_attention(16, 8, 33, 48, false);
    bench_attention(4, 8, 1024, 64, false);
    bench_norms();
    return 0;
}
