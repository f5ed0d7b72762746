// Processor features: those that the kernels were compiled with against those that are there. And
// how threads wait: libgomp's spin for milliseconds between kernels, which on a machine that other
// programs use as well costs a factor of ten or more; here they spin for microseconds, then sleep.
#include "runtime/machine.h"

#include <stdlib.h>

// Before libgomp's own constructor reads the environment; what the user set stays.
__attribute__((constructor(101))) static void set_thread_wait(void)
{
    if (!getenv("OMP_WAIT_POLICY"))
        setenv("GOMP_SPINCOUNT", "2000", 0);
}

#if defined __x86_64__
static const char *missing_feature(uint64_t features)
{
    const struct {
        const char *name;
        bool there;
    } known[] = {
        // the order of PV_FEATURES
        {"avx", __builtin_cpu_supports("avx")},
        {"avx2", __builtin_cpu_supports("avx2")},
        {"fma", __builtin_cpu_supports("fma")},
        {"bmi2", __builtin_cpu_supports("bmi2")},
        {"avx512f", __builtin_cpu_supports("avx512f")},
        {"avx512bw", __builtin_cpu_supports("avx512bw")},
        {"avx512vl", __builtin_cpu_supports("avx512vl")},
        {"avx512dq", __builtin_cpu_supports("avx512dq")},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((features >> i & 1) && !known[i].there)
            return known[i].name;
    return NULL;
}
#else
static const char *missing_feature(uint64_t features)
{
    (void)features;
    return NULL;
}
#endif

bool pv_machine_check(const PvModel *model, PvError *error)
{
    const char *missing = missing_feature(model->features);
    if (!missing)
        return true;
    pv_error(error, PV_MACHINE, "the kernels were compiled for '%s', and this processor has no %s",
             model->march, missing);
    return pv_error_hint(error, "pvdmc --march x86-64-v3 (or x86-64) compiles for older ones");
}
