/* Products whose result and residual lie in orders of their own. */
#pragma once
#include "kernel_case.h"

// The result of a product without gaps becomes [batch0, m, batch1, n], and its residual [m, batch1,
// batch0, n] with 8 more elements behind each row. Returns how many elements the residual has.
static inline size_t turn_result(GemmArgs *args)
{
    args->c1 = args->n;
    args->c_m = args->batch1 * args->c1;
    args->c0 = args->m * args->c_m;
    args->r0 = args->n + 8;
    args->r1 = args->batch0 * args->r0;
    args->r_m = args->batch1 * args->r1;
    return (size_t)(args->m * args->r_m);
}
