// Reductions of int64 tensors: counts, and sums or extremes of indices. They are small and rare, so
// each result is one loop over the reduced axes, and threads share the results. Sums wrap.
#include "codegen/cpu/kernels.h"

// Where element `index` (row-major over `axes` axes) lies, in elements.
static int64_t locate(int64_t index, int64_t axes, const int64_t *size, const int64_t *stride)
{
    int64_t at = 0;
    for (int64_t i = axes - 1; i >= 0; i--) {
        at += index % size[i] * stride[i];
        index /= size[i];
    }
    return at;
}

static int64_t combine(int64_t op, int64_t x, int64_t y)
{
    if (op == 0)
        return (int64_t)((uint64_t)x + (uint64_t)y);
    return (op == 1) == (x > y) ? x : y;
}

void pv_reduce_int(const PvRun *run, const int64_t *raw)
{
    const ReduceArgs *args = (const ReduceArgs *)raw;
    const int64_t *size = args->size + args->kept, *stride = args->stride + args->kept;
    int64_t results = 1, count = 1;
    for (int64_t i = 0; i < args->kept; i++)
        results *= args->size[i];
    for (int64_t i = 0; i < args->reduced; i++)
        count *= size[i];
    int64_t *out = (int64_t *)args->out;
#pragma omp parallel for num_threads(run->threads) if (results * count > 65536)
    for (int64_t i = 0; i < results; i++) {
        const int64_t *x =
            (const int64_t *)args->x + locate(i, args->kept, args->size, args->stride);
        int64_t value = x[0];
        for (int64_t k = 1; k < count; k++)
            value = combine(args->op, value, x[locate(k, args->reduced, size, stride)]);
        out[i] = value;
    }
}
