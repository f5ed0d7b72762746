// A model written by hand as pvdmc would emit it, small enough to compute by heart:
//   net.w [3] (ones), net.seen [1] i64 (buffer)
//   program scale(x: [b, 3], gain: real = none) -> y = x * w * gain
//   program total(x: [b, 3]) -> loss = sum(x * w), with its gradient
//   train fit: loss = mean((w - target - mean(noise) / 100)^2), noise [b, 3] from stream "noise",
//   two
//     micro-steps, average every 2 updates; `again` moves by the gradient of `total` when replayed
//   sample paint: x = x / 2 + noise a few times, then clips of the shade w[0]; option cond: x at
//   first
#ifndef SMALL_MODEL_H
#define SMALL_MODEL_H

#include <math.h>
#include <string.h>

#include "runtime/call.h"

#define REAL(address) ((PvReal *)(intptr_t)(address))
#define COUNT(array)  (sizeof(array) / sizeof *(array))

// y [n], x [n], w [3], gain (address or 0), n
static void k_scale(const PvRun *run, const int64_t *args)
{
    (void)run;
    for (int64_t i = 0; i < args[4]; i++)
        REAL(args[0])[i] = REAL(args[1])[i] * REAL(args[2])[i % 3] * (args[3] ? *REAL(args[3]) : 1);
}

// out [], x [n], n
static void k_sum(const PvRun *run, const int64_t *args)
{
    (void)run;
    PvReal sum = 0;
    for (int64_t i = 0; i < args[2]; i++)
        sum += REAL(args[1])[i];
    *REAL(args[0]) = sum;
}

// dw [3], dx [n], x [n], w [3], n
static void k_total_grad(const PvRun *run, const int64_t *args)
{
    (void)run;
    for (int k = 0; k < 3; k++)
        REAL(args[0])[k] = 0;
    for (int64_t i = 0; i < args[4]; i++) {
        REAL(args[0])[i % 3] += REAL(args[2])[i];
        REAL(args[1])[i] = REAL(args[3])[i % 3];
    }
}

// x [n] of stream 0
static void k_noise(const PvRun *run, const int64_t *args)
{
    pv_random_fill(run->step->random, 0, 0, 0, 0, args[1], REAL(args[0]));
}

// loss [], report [], dw [3], w [3], noise [n], n, seen (i64 [1]), bad (address: option)
static void k_fit(const PvRun *run, const int64_t *args)
{
    (void)run;
    static const PvReal target[3] = {(PvReal)0.25, (PvReal)-1, 2};
    PvReal mean = 0, loss = 0;
    for (int64_t i = 0; i < args[5]; i++)
        mean += REAL(args[4])[i] / (PvReal)args[5];
    for (int k = 0; k < 3; k++) {
        PvReal off = REAL(args[3])[k] - target[k] - (PvReal)0.01 * mean;
        loss += off * off / 3;
        REAL(args[2])[k] = 2 * off / 3;
    }
    *REAL(args[0]) = *(int64_t *)(intptr_t)args[7] ? (PvReal)NAN : loss;
    *REAL(args[1]) = mean;
    ++*(int64_t *)(intptr_t)args[6];
}

// y [1] = x [1]
static void k_store(const PvRun *run, const int64_t *args)
{
    (void)run;
    *REAL(args[0]) = *REAL(args[1]);
}

// y [n], w [3], n
static void k_paint(const PvRun *run, const int64_t *args)
{
    (void)run;
    for (int64_t i = 0; i < args[2]; i++)
        REAL(args[0])[i] = REAL(args[1])[0];
}

// y [n] = x [n] / 2 + noise [n], n
static void k_step(const PvRun *run, const int64_t *args)
{
    (void)run;
    for (int64_t i = 0; i < args[3]; i++)
        REAL(args[0])[i] = REAL(args[1])[i] / 2 + REAL(args[2])[i];
}

// A test of GPUs gives each its CUDA kernel.
#ifndef SMALL_CUDA
#define SMALL_CUDA      NULL
#define SMALL_CUDA_OF(i) NULL
#define SMALL_SCALE_90A  NULL
#endif
static const PvKernel kernels[] = {
    {"scale", k_scale, SMALL_CUDA_OF(0), SMALL_SCALE_90A},
    {"sum", k_sum, SMALL_CUDA_OF(1), NULL},
    {"total_grad", k_total_grad, SMALL_CUDA_OF(2), NULL},
    {"noise", k_noise, SMALL_CUDA_OF(3), NULL},
    {"fit", k_fit, SMALL_CUDA_OF(4), NULL},
    {"store", k_store, SMALL_CUDA_OF(5), NULL},
    {"paint", k_paint, SMALL_CUDA_OF(6), NULL},
    {"step", k_step, SMALL_CUDA_OF(7), NULL},
};

static const PvParam params[] = {
    {"net.w", 0, {PV_REAL_DTYPE, 1, 0, {3}}, 0, 3, false, PV_ONES, 0, 0, 0, 0},
    {"net.seen", 0, {PV_I64, 1, 0, {1}}, 64, 1, true, PV_ZEROS, 0, 0, 0, 0},
};
static const PvInstance instances[] = {{"net", 0, 2, 0, 128, NULL, 0}};
static const uint32_t only_net[] = {0};

#define ROWS                                                                                       \
    {                                                                                              \
        PV_REAL_DTYPE, 2, 1,                                                                       \
        {                                                                                          \
            1, 3                                                                                   \
        }                                                                                          \
    } // [b, 3]
#define NUMBER                                                                                     \
    {                                                                                              \
        PV_REAL_DTYPE, 0, 0,                                                                       \
        {                                                                                          \
            0                                                                                      \
        }                                                                                          \
    }
#define CLIP                                                                                       \
    {                                                                                              \
        PV_REAL_DTYPE, 5, 1,                                                                       \
        {                                                                                          \
            1, 3, 2, 4, 4                                                                          \
        }                                                                                          \
    }
#define AT(space, a, c)                                                                            \
    {                                                                                              \
        a, c, space                                                                                \
    }

// ---- scale ----

static const PvInput scale_inputs[] = {{"x", ROWS, false}, {"gain", NUMBER, true}};
static const PvOutput scale_outputs[] = {{PV_OUT_NAMED, "y", ROWS}};

static void scale_scalars(const PvStep *step, PvScalar *out)
{
    PvReal gain = (PvReal)step->inputs[1].f;
    memcpy(out, &gain, sizeof gain);
}

static uint32_t scale_select(const PvStep *step)
{
    return step->given >> 1 & 1;
}

static const PvArg scale_args[2][5] = {
    {AT(PV_IO + 2, 0, 0), AT(PV_IO, 0, 0), AT(PV_PARAM, 0, 0), AT(PV_VALUE, 0, 0),
     AT(PV_VALUE, 0, 3)},
    {AT(PV_IO + 2, 0, 0), AT(PV_IO, 0, 0), AT(PV_PARAM, 0, 0), AT(PV_SCALAR, 0, 0),
     AT(PV_VALUE, 0, 3)},
};
// the plain plan computes y three times over, twice into the arena
static const PvArg scale_plain_args[] = {
    AT(PV_ARENA, 0, 64), AT(PV_IO, 0, 0),    AT(PV_PARAM, 0, 0),  AT(PV_VALUE, 0, 0),
    AT(PV_VALUE, 0, 3),  AT(PV_ARENA, 0, 0), AT(PV_IO, 0, 0),     AT(PV_PARAM, 0, 0),
    AT(PV_VALUE, 0, 0),  AT(PV_VALUE, 0, 3), AT(PV_IO + 2, 0, 0), AT(PV_IO, 0, 0),
    AT(PV_PARAM, 0, 0),  AT(PV_VALUE, 0, 0), AT(PV_VALUE, 0, 3),
};
static const PvLaunch scale_launches[] = {{0, 0, 5, 1, 0, 0, 3, 0, 0}};
static const PvLaunch scale_plain_launches[] = {
    {0, 0, 5, 1, 0, 0, 3, 0, 0}, {0, 5, 5, 1, 0, 0, 3, 0, 0}, {0, 10, 5, 1, 0, 0, 3, 0, 0}};
static const char tap_names[] = "scale.x\0net\0net#2";
static const PvType tap_types[] = {ROWS};
static const PvTap scale_taps[] = {
    {AT(PV_IO, 0, 0), -1, 0, 0},
    {AT(PV_ARENA, 0, 0), 1, 8, 0},
    {AT(PV_ARENA, 0, 64), 0, 12, 0},
};
#define READS .instances = only_net, .instance_count = 1
static const PvPlan scale_plans[] = {
    {.launches = scale_launches, .launch_count = 1, .args = scale_args[0], .arg_count = 5, READS},
    {.launches = scale_launches,
     .launch_count = 1,
     .args = scale_args[1],
     .arg_count = 5,
     .scalar_count = 1,
     .scalars = scale_scalars,
     READS},
};
static const PvPlan scale_plain[] = {
    {.launches = scale_plain_launches,
     .launch_count = 3,
     .args = scale_plain_args,
     .arg_count = 15,
     .arena_batch = 128,
     .taps = scale_taps,
     .tap_count = 3,
     READS},
    {.launches = scale_launches,
     .launch_count = 1,
     .args = scale_args[1],
     .arg_count = 5,
     .scalar_count = 1,
     .scalars = scale_scalars,
     READS},
};

// ---- total and its gradient ----

static const PvInput total_inputs[] = {{"x", ROWS, false}};
static const PvOutput total_outputs[] = {{PV_OUT_NAMED, "loss", NUMBER},
                                         {PV_OUT_GRAD_INPUT, "grad.x", ROWS}};
static const PvArg total_args[] = {
    AT(PV_ARENA, 0, 64), AT(PV_IO, 0, 0),     AT(PV_PARAM, 0, 0),  AT(PV_VALUE, 0, 0),
    AT(PV_VALUE, 0, 3),  AT(PV_IO + 1, 0, 0), AT(PV_ARENA, 0, 64), AT(PV_VALUE, 0, 3),
    AT(PV_GRAD, 0, 0),   AT(PV_IO + 2, 0, 0), AT(PV_IO, 0, 0),     AT(PV_PARAM, 0, 0),
    AT(PV_VALUE, 0, 3),
};
static const PvLaunch total_launches[] = {
    {0, 0, 5, 1, 0, 0, 3, 0, 0}, {1, 5, 3, 1, 0, 0, 3, 0, 0}, {2, 8, 5, 1, 0, 0, 3, 0, 0}};
static const uint32_t only_w[] = {0};
static const PvPlan total_plans[] = {
    {.launches = total_launches,
     .launch_count = 2,
     .args = total_args,
     .arg_count = 8,
     .arena_batch = 64 + 64,
     READS},
};
static const PvPlan total_grad_plans[] = {
    {.launches = total_launches,
     .launch_count = 3,
     .args = total_args,
     .arg_count = 13,
     .arena_batch = 64 + 64,
     .grads = only_w,
     .grad_count = 1,
     READS},
};

// ---- fit: a minimize without data ----

static const PvOutput fit_outputs[] = {
    {PV_OUT_NAMED, "loss", NUMBER},
    {PV_OUT_REPORT, "mean", NUMBER},
    {PV_OUT_SETTING, "lr", NUMBER},
    {PV_OUT_SETTING, "ema", NUMBER},
};
static void fit_scalars(const PvStep *step, PvScalar *out) // bad, lr, ema
{
    PvReal lr = (PvReal)step->options[0].f, ema = (PvReal)0.99;
    out[0].i = step->options[5].i;
    memcpy(&out[1], &lr, sizeof lr);
    memcpy(&out[2], &ema, sizeof ema);
}
static const PvArg fit_args[] = {
    AT(PV_ARENA, 0, 64), AT(PV_VALUE, 0, 3),   AT(PV_IO, 0, 0),     AT(PV_IO + 1, 0, 0),
    AT(PV_GRAD, 0, 0),   AT(PV_PARAM, 0, 0),   AT(PV_ARENA, 0, 64), AT(PV_VALUE, 0, 3),
    AT(PV_PARAM, 64, 0), AT(PV_SCALAR, 0, 0),  AT(PV_IO + 2, 0, 0), AT(PV_SCALAR, 8, 0),
    AT(PV_IO + 3, 0, 0), AT(PV_SCALAR, 16, 0),
};
static const PvLaunch fit_launches[] = {
    {3, 0, 2, 1, 0, 0, 3, 0, 0}, {4, 2, 8, 1, 0, 0, 9, 0, 0},
    {5, 10, 2, 1, 0, 1, 0, 0, 0}, {5, 12, 2, 1, 0, 1, 0, 0, 0}};
static const uint32_t stream_noise[] = {0};
static const PvPlan fit_plans[] = {
    {.launches = fit_launches,
     .launch_count = 4,
     .args = fit_args,
     .arg_count = 14,
     .arena_batch = 64 + 64,
     .scalar_count = 3,
     .scalars = fit_scalars,
     .grads = only_w,
     .grad_count = 1,
     .streams = stream_noise,
     .stream_count = 1,
     READS},
};
static const PvMinimize fit_minimize[] = {
    {3, UINT32_MAX, "adamw", only_net, 1, 2, 2, false},
    {3, 2, "adamw", only_net, 1, 1, 1, false},
};
static const PvStage stages[] = {
    {.name = "fit", .minimize = fit_minimize, .minimize_count = 1},
    {.name = "again", .minimize = fit_minimize + 1, .minimize_count = 1},
};

// ---- paint: a sampler ----

static const PvInput step_inputs[] = {{"x", ROWS, false}, {"noise", ROWS, false}};
static const PvOutput step_outputs[] = {{PV_OUT_NAMED, "next", ROWS}};
static const PvArg step_args[] = {AT(PV_IO + 2, 0, 0), AT(PV_IO, 0, 0), AT(PV_IO + 1, 0, 0),
                                  AT(PV_VALUE, 0, 3)};
static const PvLaunch step_launches[] = {{7, 0, 4, 1, 0, 0, 6, 0, 0}};
static const PvPlan step_plans[] = {
    {.launches = step_launches, .launch_count = 1, .args = step_args, .arg_count = 4},
};
static const PvOutput paint_outputs[] = {{PV_OUT_NAMED, "x", CLIP}};
static const PvInput paint_inputs[] = {{"z", ROWS, false}};
static const PvArg paint_args[] = {AT(PV_IO + 1, 0, 0), AT(PV_PARAM, 0, 0), AT(PV_VALUE, 0, 96)};
static const PvLaunch paint_launches[] = {{6, 0, 3, 1, 0, 0, 96, 0, 0}};
static const PvPlan paint_plans[] = {
    {.launches = paint_launches, .launch_count = 1, .args = paint_args, .arg_count = 3, READS},
};

// x = normal; for k in steps { x = step(x, noise); report x_after }; yield paint(x)
static int paint_run(PvHost *host)
{
    const PvStep *step = pv_host_step(host);
    static const PvType rows = ROWS;
    PvVar x = {.tensor = NULL}, noise = {.tensor = NULL}, clip = {.tensor = NULL};
    int status = 0;
    for (int64_t c = 0; status == 0 && c < step->options[2].i; c++) {
        status = pv_host_option(host, &x, 4);
        if (status == 0 && !x.tensor)
            status = pv_host_random(host, &x, 1, 0, &rows);
        for (int64_t k = 0; status == 0 && k < step->options[1].i; k++) {
            PvVar *result = &x;
            status = pv_host_random(host, &noise, 0, 0, &rows);
            PvVar args[] = {x, noise};
            if (status == 0)
                status = pv_host_call(host, 4, args, &result);
            if (status == 0)
                status = pv_host_report(host, "x_after", &x);
        }
        PvVar *result = &clip;
        if (status == 0)
            status = pv_host_call(host, 5, &x, &result);
        if (status == 0)
            status = pv_host_yield(host, &clip);
    }
    pv_host_set_tensor(&x, NULL);
    pv_host_set_tensor(&noise, NULL);
    pv_host_set_tensor(&clip, NULL);
    return status;
}

// ---- the whole ----

static const PvEntry entries[] = {
    {PV_PROGRAM, "scale", scale_inputs, 2, scale_outputs, 1, scale_plans, scale_plain, 2,
     scale_select, NULL, 0},
    {PV_PROGRAM, "total", total_inputs, 1, total_outputs, 1, total_plans, NULL, 1, NULL, NULL, 0},
    {PV_GRAD_OF, "total", total_inputs, 1, total_outputs, 2, total_grad_plans, NULL, 1, NULL,
     NULL, 0},
    {PV_MINIMIZE, "fit.0", NULL, 0, fit_outputs, 4, fit_plans, NULL, 1, NULL, NULL, 0},
    {PV_CALL, "paint.call0", step_inputs, 2, step_outputs, 1, step_plans, NULL, 1, NULL, NULL, 0},
    {PV_CALL, "paint.call1", paint_inputs, 1, paint_outputs, 1, paint_plans, NULL, 1, NULL,
     NULL, 0},
};
static const PvOption options[] = {
    {"lr", NULL, PV_REAL_DTYPE, false, 1, 0, {{.f = 0.05}}, NUMBER},
    {"steps", "paint", PV_I64, false, 1, 1, {{.i = 3}}, NUMBER},
    {"clips", "paint", PV_I64, false, 1, 2, {{.i = 1}}, NUMBER},
    {"step", "fit", PV_I64, false, 1, 3, {{.i = 0}}, NUMBER},
    {"cond", "paint", PV_NONE, false, 1, 4, {{.i = 0}}, ROWS},
    {"bad", "fit", PV_BOOL, false, 1, 5, {{.i = 0}}, NUMBER},
};
static const char *const streams[] = {"noise", "start"};
static const char *const constants[] = {"width=3"};
static const PvSampler samplers[] = {{"paint", paint_run}};

static const char *const origins[] = {"small.model:1 net", "small.model:2 lr"};

const PvModel pv_model = {
    .name = "small",
    .real = PV_REAL_DTYPE,
    .constants = constants,
    .constant_count = 1,
    .params = params,
    .param_count = COUNT(params),
    .param_bytes = 128,
    .instances = instances,
    .instance_count = 1,
    .options = options,
    .option_count = COUNT(options),
    .option_slots = 6,
    .streams = streams,
    .stream_count = 2,
    .entries = entries,
    .entry_count = COUNT(entries),
    .stages = stages,
    .stage_count = 2,
    .samplers = samplers,
    .sampler_count = 1,
    .kernels = kernels,
    .kernel_count = COUNT(kernels),
    .origins = origins,
    .origin_count = COUNT(origins),
    .cuda = SMALL_CUDA,
    .march = "test",
    .tap_names = tap_names,
    .tap_types = tap_types,
};

#endif
