// link: pvdm_kernels32
// The elementary functions in f32 against libm in f64, over ranges: errors in units of the last
// place of the exact result, and the values at the ends.
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "codegen/cpu/pv_math.h"

static double exact_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double exact_softplus(double x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double exact_silu(double x)
{
    return x * exact_sigmoid(x);
}

static double exact_gelu(double x)
{
    return 0.5 * x * erfc(-x / sqrt(2));
}

static double exact_gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static double exact_rsqrt(double x)
{
    return 1 / sqrt(x);
}

typedef struct {
    const char *name;
    float (*function)(float);
    double (*exact)(double);
    double from, to;
    double ulp;      // of the exact result, or
    double absolute; // error, if not 0
} Range;

static void test_accuracy(void **state)
{
    (void)state;
    const Range ranges[] = {
        {"exp", pv_exp, exp, -103, 88.7, 1.5, 0},
        {"exp", pv_exp, exp, -1, 1, 1.5, 0},
        {"log", pv_log, log, 1e-44, 1e-37, 2.5, 0},
        {"log", pv_log, log, 1e-30, 4, 2.5, 0},
        {"log", pv_log, log, 1, 1e38, 2.5, 0},
        {"erf", pv_erf, erf, -5, 5, 3, 0},
        {"erf", pv_erf, erf, 0, 1e-3, 3, 0},
        {"tanh", pv_tanh, tanh, -12, 12, 2, 0},
        {"tanh", pv_tanh, tanh, 0, 1e-3, 2, 0},
        {"sigmoid", pv_sigmoid, exact_sigmoid, -87, 100, 3, 0},
        {"softplus", pv_softplus, exact_softplus, -80, 80, 3, 0},
        {"silu", pv_silu, exact_silu, -80, 80, 3.5, 0},
        {"gelu", pv_gelu, exact_gelu, -1, 20, 6, 0},
        {"gelu", pv_gelu, exact_gelu, -20, 20, 0, 5e-7},
        {"gelu_tanh", pv_gelu_tanh, exact_gelu_tanh, -10, 10, 0, 1e-6},
        {"sin", pv_sin, sin, -1e4, 1e4, 0, 6e-8},
        {"sin", pv_sin, sin, 0, 1, 1, 0},
        {"cos", pv_cos, cos, -1e6, 1e6, 0, 6e-8},
        {"sqrt", pv_sqrt, sqrt, 0, 100, 0.51, 0},
        {"rsqrt", pv_rsqrt, exact_rsqrt, 1e-10, 100, 2, 0},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const Range *range = &ranges[i];
        for (int step = 0; step < 40001; step++) {
            float x = (float)(range->from + (range->to - range->from) * step / 40000);
            double want = range->exact((double)x), got = (double)range->function(x);
            int exponent;
            frexp(want, &exponent);
            double unit = ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
            double limit = range->absolute != 0 ? range->absolute : range->ulp * unit;
            if (!(fabs(got - want) <= limit))
                fail_msg("%s(%.9g) is %.9g, not %.9g", range->name, (double)x, got, want);
        }
    }
}

static void test_ends(void **state)
{
    (void)state;
    const float infinity = INFINITY;
    assert_true(pv_exp(-infinity) == 0 && pv_exp(infinity) == infinity && pv_exp(0) == 1);
    assert_true(pv_log(0) == -infinity && pv_log(infinity) == infinity && pv_log(1) == 0);
    assert_true(isnan(pv_log(-1)) && isnan(pv_log(NAN)) && isnan(pv_exp(NAN)));
    assert_true(pv_tanh(infinity) == 1 && pv_tanh(-infinity) == -1 && isnan(pv_tanh(NAN)));
    assert_true(pv_erf(infinity) == 1 && pv_erf(-infinity) == -1 && isnan(pv_erf(NAN)));
    assert_true(pv_sigmoid(infinity) == 1 && pv_sigmoid(-infinity) == 0 && isnan(pv_silu(NAN)));
    assert_true(pv_softplus(infinity) == infinity && pv_softplus(-infinity) == 0);
    assert_true(isnan(pv_gelu(NAN)) && isnan(pv_sin(NAN)) && isnan(pv_relu(NAN)));
    assert_true(pv_sign(-2) == -1 && pv_sign(0) == 0 && pv_sign(3) == 1);
    assert_true(pv_mod(-1, 3) == 2 && pv_mod(1, -3) == -2 && pv_mod(6, 3) == 0);
    assert_true(pv_pow(-2, 3) == -8 && pv_pow(2, 0.5F) == sqrtf(2));
    assert_true(pv_div_int(-7, 2) == -4 && pv_div_int(7, -2) == -4 && pv_div_int(6, 3) == 2);
    assert_true(pv_mod_int(-7, 2) == 1 && pv_mod_int(7, -2) == -1 && pv_mod_int(-6, 3) == 0);
    assert_true(pv_div_int(5, 0) == 0 && pv_mod_int(5, 0) == 0);
    assert_true(pv_div_int(INT64_MIN, -1) == INT64_MIN && pv_mod_int(INT64_MIN, -1) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),
        cmocka_unit_test(test_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
