// link: pvdm_codegen pvdm32 z
// Launches and arguments packed by the compiler and unpacked by the runtime: the same numbers come
// out, and a damaged block ends in an error.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"
#include "runtime/unpack.h"

enum { KERNELS = 20, LAUNCHES = 3000, MOST_ARGS = 12 };

static uint64_t state = 1;

static uint64_t draw(uint64_t limit)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 16) % limit;
}

static PvLaunch launches[LAUNCHES];
static PvArg args[LAUNCHES * MOST_ARGS];
static uint32_t arg_count;

// Small steps, and now and then numbers of all 64 bits.
static int64_t number(void)
{
    int64_t sign = draw(2) ? 1 : -1;
    return draw(10) == 0 ? sign * (int64_t)(draw(UINT64_C(1) << 46) << 17) : (int64_t)draw(5000);
}

static void fill(void)
{
    arg_count = 0;
    for (uint32_t i = 0; i < LAUNCHES; i++) {
        launches[i] = (PvLaunch){.kernel = (uint32_t)draw(KERNELS), .arg = arg_count};
        launches[i].arg_count = (uint16_t)draw(MOST_ARGS + 1);
        launches[i].segments = (uint16_t)(1 + draw(PV_MAX_SEGMENTS));
        launches[i].origin = draw(9) ? (uint32_t)draw(100) : UINT32_MAX;
        launches[i].flops_fixed = draw(2) ? 0 : (double)draw(1000) / 7;
        launches[i].flops_batch = draw(2) ? 3e15 : (double)draw(100000);
        launches[i].bytes_fixed = draw(2) ? 0 : (double)draw(1000) / 3;
        launches[i].bytes_batch = draw(2) ? 1e12 : (double)draw(100000);
        for (uint32_t k = 0; k < launches[i].arg_count; k++)
            args[arg_count++] = (PvArg){.a = number(), .c = number(), .space = (uint16_t)draw(9)};
    }
    args[3].a = INT64_MIN;
    args[4].a = INT64_MAX;
    args[5].space = UINT16_MAX;
}

static PvPlan packed_plan(void)
{
    size_t size;
    void *packed = pack_plan(launches, LAUNCHES, args, KERNELS, &size);
    return (PvPlan){.launch_count = LAUNCHES, .arg_count = arg_count, .packed = packed,
                    .packed_bytes = (uint32_t)size};
}

static void test_same_numbers(void **unused)
{
    (void)unused;
    fill();
    PvPlan plan = packed_plan();
    PvLaunch *got;
    PvArg *got_args;
    PvError error = {0};
    assert_true(pv_plan_unpack(&plan, KERNELS, &got, &got_args, &error));
    for (uint32_t i = 0; i < LAUNCHES; i++) {
        assert_int_equal(got[i].kernel, launches[i].kernel);
        assert_int_equal(got[i].arg, launches[i].arg);
        assert_int_equal(got[i].arg_count, launches[i].arg_count);
        assert_int_equal(got[i].segments, launches[i].segments);
        assert_int_equal(got[i].origin, launches[i].origin);
        assert_true(got[i].flops_fixed == launches[i].flops_fixed);
        assert_true(got[i].flops_batch == launches[i].flops_batch);
        assert_true(got[i].bytes_fixed == launches[i].bytes_fixed);
        assert_true(got[i].bytes_batch == launches[i].bytes_batch);
    }
    for (uint32_t i = 0; i < arg_count; i++)
        assert_true(got_args[i].a == args[i].a && got_args[i].c == args[i].c &&
                    got_args[i].space == args[i].space);
    free(got);
    free(got_args);
    free((void *)(uintptr_t)plan.packed);
}

static void test_repeats_are_short(void **unused)
{
    (void)unused;
    fill();
    for (uint32_t i = 0; i < LAUNCHES; i++) {      // one kernel over and over, a little further on
        launches[i] = (PvLaunch){
            .kernel = 3, .arg = 8 * i, .arg_count = 8, .segments = 1, .flops_batch = 1e9};
        for (uint32_t k = 0; k < 8; k++)
            args[8 * i + k] = (PvArg){.a = 4096 * i, .c = k, .space = PV_ARENA};
    }
    arg_count = 8 * LAUNCHES;
    PvPlan plan = packed_plan();
    assert_true(plan.packed_bytes < LAUNCHES);
    free((void *)(uintptr_t)plan.packed);
}

static void test_empty(void **unused)
{
    (void)unused;
    size_t size;
    void *packed = pack_plan(launches, 0, args, 0, &size);
    PvPlan plan = {.packed = packed, .packed_bytes = (uint32_t)size};
    PvLaunch *got;
    PvArg *got_args;
    PvError error = {0};
    assert_true(pv_plan_unpack(&plan, 0, &got, &got_args, &error));
    free(got);
    free(got_args);
    free(packed);
}

static void check_damaged(const PvPlan *plan, uint32_t kernels)
{
    PvLaunch *got;
    PvArg *got_args;
    PvError error = {0};
    if (pv_plan_unpack(plan, kernels, &got, &got_args, &error)) {
        free(got);                                 // only numbers that are no index have changed
        free(got_args);
        return;
    }
    assert_null(got);
    assert_null(got_args);
    assert_int_equal(error.status, PV_MACHINE);
    assert_non_null(strstr(error.text, "damaged"));
    pv_error_free(&error);
}

static void test_damage(void **unused)
{
    (void)unused;
    fill();
    PvPlan plan = packed_plan();
    unsigned char *bytes = (unsigned char *)(uintptr_t)plan.packed;
    for (int i = 0; i < 300; i++) {
        size_t at = draw(plan.packed_bytes);
        unsigned char bit = (unsigned char)(1 << draw(8));
        bytes[at] ^= bit;
        check_damaged(&plan, KERNELS);
        bytes[at] ^= bit;
    }
    PvPlan part = plan;
    for (int i = 0; i < 50; i++) {
        part.packed_bytes = (uint32_t)draw(plan.packed_bytes - 64);
        PvLaunch *got;
        PvArg *got_args;
        PvError error = {0};
        assert_false(pv_plan_unpack(&part, KERNELS, &got, &got_args, &error));
        pv_error_free(&error);
    }
    check_damaged(&plan, KERNELS / 2);             // kernels that the model lacks
    part = plan;
    part.arg_count--;
    check_damaged(&part, KERNELS);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_numbers),
        cmocka_unit_test(test_repeats_are_short),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
