// link: pvdm_kernels32
// Reductions of integers, of a tensor whose axes are turned around.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codegen/cpu/kernels.h"

// x [2, 3, 2] reduced over axes 0 and 2: x[i, j, k] = values[6 i + 2 j + k]
static void test_operations(void **state)
{
    (void)state;
    const int64_t values[12] = {5, -7, 2, 2, 0, 1, INT64_MIN, 4, 9, -1, INT64_MAX, 3};
    const int64_t want[3][3] = {
        {INT64_MIN + 2, 12, INT64_MIN + 3},
        {5, 9, INT64_MAX},
        {INT64_MIN, -1, 0},
    };
    for (int64_t op = 0; op < 3; op++)
        for (int threads = 1; threads < 3; threads++) {
            int64_t out[3];
            PvRun run = {.batch = 1, .threads = threads, .segments = 1};
            ReduceArgs args = {.out = (int64_t)out,
                               .x = (int64_t)values,
                               .op = op,
                               .kept = 1,
                               .reduced = 2,
                               .size = {3, 2, 2},
                               .stride = {2, 6, 1}};
            pv_reduce_int(&run, (const int64_t *)&args);
            assert_memory_equal(out, want[op], sizeof out);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_operations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
