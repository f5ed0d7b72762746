// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// Philox against its published vectors, the functions built on it against double precision, and
// what must not change a bit: threads, where a tensor is cut, other streams.
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "codegen/cpu/kernels.h"
#include "runtime/random.h"

static const char *const streams[] = {"noise", "t", "step_noise"};
static const PvModel model = {.name = "test", .streams = streams, .stream_count = 3};

// kat_vectors of Random123
static void philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        PvBits bits = pv_philox(known[i].counter, known[i].key);
        assert_memory_equal(bits.word, known[i].out, sizeof bits.word);
    }
}

static void functions_are_accurate(void **state)
{
    (void)state;
    double worst_log = 0, worst_sine = 0;
    for (uint32_t i = 1; i < 400000; i++) {
        float u = (float)i / 400000.0f * (i % 7 == 0 ? 1e-8f : 1.0f);
        double exact = log((double)u);
        double off = fabs((double)pv_bits_log(u) - exact) / fmax(fabs(exact), 1e-3);
        worst_log = fmax(worst_log, off);
        uint32_t turn = i * 10737u;
        float s, c;
        pv_bits_sincos(turn, &s, &c);
        double angle = (double)(turn >> 8 << 8) * 0x1p-32 * 6.283185307179586;
        worst_sine =
            fmax(worst_sine, fmax(fabs((double)s - sin(angle)), fabs((double)c - cos(angle))));
    }
    assert_true(worst_log < 2.5e-7);
    assert_true(worst_sine < 1.5e-7);
    assert_true(pv_bits_log(1.0f) == 0.0f);
}

// Mean, variance, kurtosis, and the correlation of neighbours, of a million normals.
static void normals_are_normal(void **state)
{
    (void)state;
    enum { COUNT = 1 << 20 };
    PvRandom *random = pv_random_new(&model, 7);
    PvReal *x = malloc(COUNT * sizeof *x);
    pv_random_fill(random, 0, 0, 0, 0, COUNT, x);
    double sum = 0, square = 0, fourth = 0, pair = 0, most = 0;
    for (int i = 0; i < COUNT; i++) {
        double v = (double)x[i];
        sum += v;
        square += v * v;
        fourth += v * v * v * v;
        if (i > 0)
            pair += v * (double)x[i - 1];
        most = fmax(most, fabs(v));
    }
    assert_true(fabs(sum / COUNT) < 4e-3);
    assert_true(fabs(square / COUNT - 1) < 6e-3);
    assert_true(fabs(fourth / COUNT - 3) < 0.05);
    assert_true(fabs(pair / COUNT) < 4e-3);
    assert_true(most > 4.3 && most < 6.8);
    free(x);
    pv_random_free(random);
}

static void uniforms_and_integers(void **state)
{
    (void)state;
    enum { COUNT = 100000 };
    PvRandom *random = pv_random_new(&model, 8);
    PvReal *u = malloc(COUNT * sizeof *u);
    int64_t *k = malloc(COUNT * sizeof *k), seen[10] = {0};
    double sum = 0;
    pv_random_fill(random, 0, 1, 0, 0, COUNT, u);
    pv_random_fill(random, 1, 2, -3, 7, COUNT, k);
    for (int i = 0; i < COUNT; i++) {
        assert_true(u[i] >= 0 && u[i] < 1);
        assert_true(k[i] >= -3 && k[i] < 7);
        sum += (double)u[i];
        seen[k[i] + 3]++;
    }
    assert_true(fabs(sum / COUNT - 0.5) < 5e-3);
    for (int i = 0; i < 10; i++)
        assert_in_range(seen[i], COUNT / 10 - 500, COUNT / 10 + 500);
    assert_int_equal(pv_bits_int(0xffffffff, 5, 5), 5);
    assert_int_equal(pv_bits_int(0xffffffff, 0, 1), 0);
    assert_int_equal(pv_bits_int(0, INT64_MIN, INT64_MAX), INT64_MIN);
    free(u);
    free(k);
    pv_random_free(random);
}

static void run_kernel(PvRandom *random, int threads, int64_t kind, int64_t count, void *out)
{
    PvStep step = {.batch = 1, .random = random};
    PvRun run = {.batch = 1, .threads = threads, .step = &step, .segments = 1};
    RandomArgs args = {
        .y = (int64_t)(intptr_t)out, .count = count, .kind = kind, .lo = 0, .hi = 1000};
    pv_random(&run, (const int64_t *)&args);
}

static void threads_change_nothing(void **state)
{
    (void)state;
    enum { COUNT = 50003 };
    PvRandom *random = pv_random_new(&model, 0x123456789abcdef);
    PvReal *a = malloc(COUNT * 8), *b = malloc(COUNT * 8);
    for (int64_t kind = 0; kind < 3; kind++) {
        size_t size = COUNT * (kind == 2 ? 8 : sizeof(PvReal));
        run_kernel(random, 1, kind, COUNT, a);
        run_kernel(random, 5, kind, COUNT, b);
        assert_memory_equal(a, b, size);
        // an element does not depend on how many follow it
        run_kernel(random, 3, kind, 17, b);
        assert_memory_equal(a, b, kind == 2 ? 17 * 8 : 17 * sizeof(PvReal));
    }
    free(a);
    free(b);
    pv_random_free(random);
}

static uint32_t hash_reals(const PvReal *x, int count)
{
    uint32_t hash = 2166136261u;
    for (int i = 0; i < count; i++) {
        float value = (float)x[i];
        uint8_t bytes[4];
        memcpy(bytes, &value, 4);
        for (int k = 0; k < 4; k++)
            hash = (hash ^ bytes[k]) * 16777619u;
    }
    return hash;
}

// The very bits, so that a change of the generator, or a compiler that contracts, does not go
// unseen: old checkpoints would no longer go on as they would have.
static void bits_are_pinned(void **state)
{
    (void)state;
    PvReal x[1000];
    PvRandom *random = pv_random_new(&model, 42);
    random->draws[0] = 3;
    pv_random_fill(random, 0, 0, 0, 0, 1000, x);
    assert_int_equal(hash_reals(x, 1000), 0x625e87c5);
    pv_random_fill(random, 0, 1, 0, 0, 1000, x);
    assert_int_equal(hash_reals(x, 1000), 0x9c8dc358);
    pv_random_free(random);
}

static void streams_and_draws_differ(void **state)
{
    (void)state;
    PvReal a[64], b[64], c[64], d[64];
    const uint32_t drawn[] = {0, 2};
    PvRandom *random = pv_random_new(&model, 1);
    pv_random_fill(random, 0, 0, 0, 0, 64, a);
    pv_random_fill(random, 1, 0, 0, 0, 64, b);
    pv_random_advance(random, drawn, 2);
    assert_int_equal(random->draws[0], 1);
    assert_int_equal(random->draws[1], 0);
    assert_int_equal(random->draws[2], 1);
    pv_random_fill(random, 0, 0, 0, 0, 64, c);
    pv_random_fill(random, 1, 0, 0, 0, 64, d);
    assert_memory_not_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
    assert_memory_equal(b, d, sizeof b); // not drawn: the same again
    random->seed = 2;
    pv_random_fill(random, 1, 0, 0, 0, 64, d);
    assert_memory_not_equal(b, d, sizeof b);
    pv_random_free(random);
}

static void given_tensors_are_used(void **state)
{
    (void)state;
    PvError error = {0};
    PvTensorSet given = {0};
    PvReal out[3];
    int64_t dim[] = {3};
    const uint32_t drawn[] = {2};
    const double numbers[] = {1, 2, 3};
    for (int i = 0; i < 2; i++) {
        PvTensor *tensor = pv_tensor_new(PV_F64, 1, dim, &error);
        for (int k = 0; k < 3; k++)
            ((double *)tensor->data)[k] = numbers[k] + 10 * i;
        pv_set_add(&given, i ? "step_noise.1" : "step_noise", tensor);
    }
    PvRandom *random = pv_random_new(&model, 1);
    random->given = &given;
    pv_random_fill(random, 2, 0, 0, 0, 3, out);
    assert_true(out[0] == 1 && out[2] == 3);
    pv_random_advance(random, drawn, 1);
    pv_random_fill(random, 2, 0, 0, 0, 3, out);
    assert_true(out[0] == 11 && out[2] == 13);
    pv_random_advance(random, drawn, 1);
    assert_null(pv_random_given(random, 2));
    random->given_always = true;
    assert_non_null(pv_random_given(random, 2));
    assert_null(pv_random_given(random, 0));
    pv_random_free(random);
    pv_set_free(&given);
}

static void first_values(void **state)
{
    (void)state;
    static const PvParam params[] = {
        {"m.a", 0, {PV_REAL_DTYPE, 1, 0, {4096}}, 0, 4096, false, PV_NORMAL, 2.0, 0.5, 0, 0},
        {"m.b", 0, {PV_REAL_DTYPE, 1, 0, {4096}}, 32768, 4096, false, PV_UNIFORM, -1.0, 3.0, 0, 0},
        {"m.c", 0, {PV_REAL_DTYPE, 1, 0, {2}}, 65536, 2, false, PV_ONES, 0, 0, 0, 0},
        {"m.d", 0, {PV_I64, 0, 0, {0}}, 65600, 1, true, PV_ZEROS, 0, 0, 0, 0},
    };
    PvModel own = {.name = "m", .params = params, .param_count = 4, .param_bytes = 65664};
    char *flat = calloc(1, 65664);
    memset(flat + 65600, 0x55, 8);
    pv_random_init(&own, 3, flat);
    const PvReal *a = (const PvReal *)flat, *b = (const PvReal *)(flat + 32768);
    double mean = 0, least = 9, most = -9;
    for (int i = 0; i < 4096; i++) {
        mean += (double)a[i] / 4096;
        least = fmin(least, (double)b[i]);
        most = fmax(most, (double)b[i]);
    }
    assert_true(fabs(mean - 2) < 0.03);
    assert_true(least >= -1 && least < -0.9 && most < 3 && most > 2.9);
    assert_true(((const PvReal *)(flat + 65536))[1] == 1);
    assert_int_equal(*(const int64_t *)(flat + 65600), 0);
    free(flat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(functions_are_accurate),
        cmocka_unit_test(normals_are_normal),
        cmocka_unit_test(uniforms_and_integers),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(bits_are_pinned),
        cmocka_unit_test(streams_and_draws_differ),
        cmocka_unit_test(given_tensors_are_used),
        cmocka_unit_test(first_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
