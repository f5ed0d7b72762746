// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// The optimizer against the formulas of torch.optim in double, and what must not change a bit:
// the number of threads.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "runtime/exec.h"
#include "runtime/optimizer.h"

// ---- a model of two instances; the second has a buffer ----

enum { BIG = 40000, SMALL = 7 }; // BIG: several chunks

static const PvParam params[] = {
    {"a.w", 0, {PV_F32, 1, 0, {BIG}}, 0, BIG, false, PV_ZEROS, 0, 0, 0, 0},
    {"a.b", 0, {PV_F32, 1, 0, {SMALL}}, 160000, SMALL, false, PV_ZEROS, 0, 0, 0, 0},
    {"c.w", 1, {PV_F32, 1, 0, {SMALL}}, 160064, SMALL, false, PV_ZEROS, 0, 0, 0, 0},
    {"c.mean", 1, {PV_F32, 1, 0, {SMALL}}, 160128, SMALL, true, PV_ZEROS, 0, 0, 0, 0},
};
enum { PARAM_COUNT = 4, PARAM_BYTES = 160192 };

static const PvInstance instances[] = {
    {"a", 0, 2, 0, 160064, NULL, 0},
    {"c", 2, 2, 160064, 128, NULL, 0},
};

static const PvModel model = {
    .name = "test",
    .real = PV_F32,
    .params = params,
    .param_count = PARAM_COUNT,
    .param_bytes = PARAM_BYTES,
    .instances = instances,
    .instance_count = 2,
};

static const uint32_t both[] = {0, 1};

typedef struct {
    PvMinimize minimize;
    PvStage stage;
    PvOptimizer *optimizer;
    float *p, *g; // flat
    bool present[PARAM_COUNT], seen[PARAM_COUNT];
} Fixture;

static float *at(float *base, int param)
{
    return base + params[param].offset / 4;
}

static void fill(float *flat, uint32_t seed, float scale)
{
    for (int k = 0; k < PARAM_COUNT; k++)
        for (int64_t i = 0; i < params[k].count; i++) {
            seed = seed * 1664525u + 1013904223u;
            at(flat, k)[i] = scale * ((float)(seed >> 8) / 8388608.0f - 1);
        }
}

static Fixture *make(const char *name, int threads)
{
    Fixture *f = calloc(1, sizeof *f);
    f->minimize = (PvMinimize){
        .optimizer = name, .instances = both, .instance_count = 2, .accumulate = 1, .ema_every = 1};
    f->stage = (PvStage){.name = "s", .minimize = &f->minimize, .minimize_count = 1};
    f->optimizer = pv_optimizer_new(&model, &f->stage, threads);
    f->p = calloc(1, PARAM_BYTES);
    f->g = calloc(1, PARAM_BYTES);
    memset(f->present, true, sizeof f->present);
    fill(f->p, 1, 0.5f);
    return f;
}

static void drop(Fixture *f)
{
    pv_optimizer_free(f->optimizer);
    free(f->p);
    free(f->g);
    free(f);
}

static double update(Fixture *f, const PvOptimizerSettings *settings, double scale)
{
    return pv_optimizer_update(f->optimizer, 0, settings, (char *)f->p, (const char *)f->g,
                               f->present, scale);
}

// ---- AdamW ----

static void adamw_is_torchs(void **state)
{
    (void)state;
    Fixture *f = make("adamw", 2);
    PvOptimizerSettings settings = {
        .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01};
    double p[SMALL], m[SMALL] = {0}, v[SMALL] = {0};
    for (int i = 0; i < SMALL; i++)
        p[i] = at(f->p, 1)[i];
    for (int n = 1; n <= 5; n++) {
        fill(f->g, (uint32_t)n + 10, 0.1f);
        update(f, &settings, 1);
        for (int i = 0; i < SMALL; i++) {
            double g = at(f->g, 1)[i];
            p[i] *= 1 - 1e-2 * 0.01;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            p[i] -= 1e-2 / (1 - pow(0.9, n)) * m[i] / (sqrt(v[i]) / sqrt(1 - pow(0.999, n)) + 1e-8);
        }
    }
    assert_int_equal(f->optimizer->updates[0], 5);
    for (int i = 0; i < SMALL; i++) {
        assert_true(fabs(at(f->p, 1)[i] - p[i]) < 1e-6);
        assert_true(fabs(at((float *)f->optimizer->m, 1)[i] - m[i]) < 1e-7);
        assert_true(fabs(at((float *)f->optimizer->v, 1)[i] - v[i]) < 1e-8);
    }
    drop(f);
}

static void threads_change_nothing(void **state)
{
    (void)state;
    Fixture *one = make("adamw", 1), *four = make("adamw", 4);
    PvOptimizerSettings settings = {
        .lr = 1e-3, .beta1 = 0.5, .beta2 = 0.9, .eps = 1e-8, .weight_decay = 0.1, .clip = 0.5};
    for (uint32_t n = 1; n <= 3; n++) {
        fill(one->g, n, 0.1f);
        fill(four->g, n, 0.1f);
        double norm = update(one, &settings, 0.5);
        assert_true(norm == update(four, &settings, 0.5));
        pv_optimizer_average(one->optimizer, 0, 0.99, (char *)one->p);
        pv_optimizer_average(four->optimizer, 0, 0.99, (char *)four->p);
    }
    assert_memory_equal(one->p, four->p, PARAM_BYTES);
    assert_memory_equal(one->optimizer->ema, four->optimizer->ema, PARAM_BYTES);
    drop(one);
    drop(four);
}

static void buffers_and_absent_parameters_stay(void **state)
{
    (void)state;
    Fixture *f = make("adamw", 2);
    float *before = malloc(PARAM_BYTES);
    memcpy(before, f->p, PARAM_BYTES);
    fill(f->g, 3, 1);
    f->present[1] = false;
    PvOptimizerSettings settings = {
        .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1};
    update(f, &settings, 1);
    assert_memory_equal(at(before, 1), at(f->p, 1), SMALL * 4);
    assert_memory_equal(at(before, 3), at(f->p, 3), SMALL * 4);
    assert_memory_not_equal(at(before, 2), at(f->p, 2), SMALL * 4);
    free(before);
    drop(f);
}

static void not_finite_gradients_move_nothing(void **state)
{
    (void)state;
    Fixture *f = make("adamw", 2);
    float *before = malloc(PARAM_BYTES);
    memcpy(before, f->p, PARAM_BYTES);
    at(f->g, 0)[BIG - 1] = NAN;
    PvOptimizerSettings settings = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    assert_false(isfinite(update(f, &settings, 1)));
    assert_memory_equal(before, f->p, PARAM_BYTES);
    assert_int_equal(f->optimizer->updates[0], 0);
    free(before);
    drop(f);
}

// ---- SGD, clipping, accumulation, averages ----

static void sgd_with_momentum(void **state)
{
    (void)state;
    Fixture *f = make("sgd", 2);
    PvOptimizerSettings settings = {.lr = 0.1, .momentum = 0.9};
    double p = at(f->p, 2)[0], b = 0;
    for (int n = 1; n <= 4; n++) {
        fill(f->g, (uint32_t)n, 1);
        b = 0.9 * b + at(f->g, 2)[0];
        p -= 0.1 * b;
        update(f, &settings, 1);
    }
    assert_true(fabs(at(f->p, 2)[0] - p) < 1e-6);
    drop(f);
}

// Each instance is clipped by its own norm.
static void clip_is_by_instance(void **state)
{
    (void)state;
    Fixture *f = make("sgd", 2);
    memset(f->p, 0, PARAM_BYTES);
    at(f->g, 1)[0] = 3;
    at(f->g, 1)[1] = 4;    // norm 5 in instance a
    at(f->g, 2)[0] = 0.5f; // norm 0.5 in instance c
    PvOptimizerSettings settings = {.lr = 1, .clip = 1};
    double norm = update(f, &settings, 1);
    assert_true(fabs(norm - sqrt(25.25)) < 1e-6);
    assert_true(fabs(at(f->p, 1)[0] + 0.6) < 1e-5);
    assert_true(fabs(at(f->p, 1)[1] + 0.8) < 1e-5);
    assert_true(fabs(at(f->p, 2)[0] + 0.5) < 1e-7);
    drop(f);
}

static void micro_steps_add_up(void **state)
{
    (void)state;
    Fixture *f = make("sgd", 2);
    memset(f->p, 0, PARAM_BYTES);
    for (int i = 0; i < 3; i++) {
        f->present[2] = i == 1; // reached in one of three
        at(f->g, 1)[0] = (float)(i + 1);
        at(f->g, 2)[0] = 6;
        pv_optimizer_accumulate(f->optimizer, 0, (char *)f->g, f->present, f->seen);
    }
    assert_true(f->seen[1] && f->seen[2]);
    PvOptimizerSettings settings = {.lr = 1};
    pv_optimizer_update(f->optimizer, 0, &settings, (char *)f->p, f->optimizer->sum, f->seen,
                        1.0 / 3);
    assert_true(fabs(at(f->p, 1)[0] + 2) < 1e-6);
    assert_true(fabs(at(f->p, 2)[0] + 2) < 1e-6);
    drop(f);
}

static void averages_warm_up(void **state)
{
    (void)state;
    Fixture *f = make("adamw", 2);
    pv_optimizer_start_ema(f->optimizer, 0, (char *)f->p);
    double average = at(f->p, 1)[3];
    for (int n = 1; n <= 4; n++) {
        at(f->p, 1)[3] += 1;
        double warm = (1.0 + n) / (10.0 + n), d = warm < 0.35 ? warm : 0.35;
        average = d * average + (1 - d) * at(f->p, 1)[3];
        pv_optimizer_average(f->optimizer, 0, 0.35, (char *)f->p);
    }
    assert_true(fabs(at((float *)f->optimizer->ema, 1)[3] - average) < 1e-5);
    drop(f);
}

static void decimals_come_back(void **state)
{
    (void)state;
    const double written[] = {0.999, 0.9999, 1e-4, 0.01, 1e-8, 0.5, 0, 1, 3.14159};
    for (size_t i = 0; i < sizeof written / sizeof *written; i++)
        assert_true(pv_optimizer_decimal((float)written[i]) == written[i]);
    float third = 1.0f / 3;
    assert_true((float)pv_optimizer_decimal(third) == third);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_is_torchs),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(buffers_and_absent_parameters_stay),
        cmocka_unit_test(not_finite_gradients_move_nothing),
        cmocka_unit_test(sgd_with_momentum),
        cmocka_unit_test(clip_is_by_instance),
        cmocka_unit_test(micro_steps_add_up),
        cmocka_unit_test(averages_warm_up),
        cmocka_unit_test(decimals_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
