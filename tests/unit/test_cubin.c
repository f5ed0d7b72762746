// link: pvdm_codegen
// Occupancy: what NVIDIA's occupancy calculator gives for the same numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codegen/cubin.h"

static void check(int arch, int registers, int threads, int shared, int blocks,
                  const char *limited_by)
{
    CubinKernel kernel = {.registers = registers};
    const char *limit = NULL;
    assert_int_equal(cubin_occupancy(&kernel, arch, threads, shared, &limit), blocks);
    assert_string_equal(limit, limited_by);
}

static void test_limits(void **state)
{
    (void)state;
    check(80, 128, 256, 0, 2, "registers");
    check(90, 32, 256, 0, 8, "registers");
    check(80, 16, 1024, 0, 2, "warps");
    check(86, 16, 1024, 0, 1, "warps");
    check(80, 16, 32, 0, 32, "blocks");
    check(80, 32, 128, 80 * 1024, 2, "shared memory");
    check(90, 32, 128, 80 * 1024, 2, "shared memory");
    check(90, 168, 384, 200 * 1024, 1, "registers");
}

// A cubin for sm_80 runs on sm_86 and sm_89 too, where a block has 99 KB at most.
static void test_smaller_relatives(void **state)
{
    (void)state;
    check(80, 64, 256, 99 * 1024, 1, "shared memory");
    check(80, 64, 256, 99 * 1024 + 128, 0, "shared memory of sm_86");
    check(90, 64, 256, 99 * 1024 + 128, 2, "shared memory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_smaller_relatives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
