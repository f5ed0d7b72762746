// cases
/* The optimizer's kernels against the formulas of kernel_args.h, in loops. */
#include <math.h>
#include <string.h>
#include "cx_launch.h"
#include "kernel_case.h"

static int64_t bits(double value)
{
    int64_t result;
    memcpy(&result, &value, sizeof result);
    return result;
}
static float real(int64_t value)
{
    return cx_real(value);
}

// Pieces of flat buffers: two parameters of one instance, two of another.
struct Pieces {
    int64_t chunks, chunk_count, elements;
    Pieces(KernelCase &test)
    {
        static const int64_t count[] = {1500, 7, 64, 1029};
        chunks = test.integers(8, 0, 1);
        chunk_count = 4;
        elements = 0;
        for (size_t i = 0; i < 4; i++) {
            test.set_integer(chunks, 2 * i, elements);
            test.set_integer(chunks, 2 * i + 1, count[i] | (int64_t)(i / 2) << 32);
            elements += (count[i] + 15) / 16 * 16;
        }
    }
    int64_t input(KernelCase &test, float scale = 1, float offset = 0) const
    {
        return test.input((size_t)elements, scale, offset);
    }
    int64_t updated(KernelCase &test) const
    {
        return test.updated((size_t)elements, 1e-6);
    }
};

// body(element, instance) for all elements of the pieces at `chunks`.
template <class Body> static void walk(int64_t chunks, int64_t count, Body body)
{
    const OptimizerChunk *chunk = (const OptimizerChunk *)chunks;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < chunk[i].count; j++)
            body(chunk[i].first + j, chunk[i].instance);
}

static int64_t factors(KernelCase &test)
{
    int64_t at = test.integers(2, 0, 1);
    test.set_integer(at, 0, bits(0.5));
    test.set_integer(at, 1, bits(0.125));
    return at;
}
static int64_t result_of(KernelCase &test, int64_t bad_step)
{
    int64_t at = test.integers(3, 0, 1);
    test.set_integer(at, 2, bad_step);
    return at;
}
static void finish(KernelCase &test, const char *fault)
{
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

/* ---- references ---- */

static void square_sums(const PvRun *, const int64_t *raw)
{
    const SquareSumsArgs *a = (const SquareSumsArgs *)raw;
    double sum[8] = {0}, all = 0, loss = 0, scale, clip;
    memcpy(&scale, &a->scale, 8);
    memcpy(&clip, &a->clip, 8);
    const float *g = (const float *)a->gradients;
    walk(a->chunks, a->chunk_count,
         [&](int64_t i, int instance) { sum[instance] += (double)g[i] * (double)g[i]; });
    for (int64_t i = 0; i < a->instances; i++) {
        double share = clip > 0 ? clip / (sqrt(sum[i]) * scale + 1e-6) : 1;
        ((double *)a->factor)[i] = scale * (share < 1 ? share : 1);
        all += sum[i];
    }
    for (int64_t i = 0; i < a->loss_count; i++)
        loss += (double)((const float *)a->losses)[i];
    OptimizerResult *result = (OptimizerResult *)a->result;
    result->norm = sqrt(all) * scale;
    result->loss = loss * scale;
    if (!isfinite(result->norm + result->loss) && result->bad_step == 0)
        result->bad_step = a->step;
}

static void follow(int64_t average, int64_t i, float p, int64_t rest)
{
    if (average)
        ((float *)average)[i] -= real(rest) * (((float *)average)[i] - p);
}

static void adamw(const PvRun *, const int64_t *raw)
{
    const AdamwArgs *a = (const AdamwArgs *)raw;
    float *p = (float *)a->params, *m = (float *)a->m, *v = (float *)a->v;
    if (((const OptimizerResult *)a->result)->bad_step)
        return;
    walk(a->chunks, a->chunk_count, [&](int64_t i, int instance) {
        float s = ((const float *)a->gradients)[i] * (float)((const double *)a->factor)[instance];
        m[i] = m[i] * real(a->beta1) + s * real(a->rest1);
        v[i] = v[i] * real(a->beta2) + s * s * real(a->rest2);
        p[i] = p[i] * real(a->decay) -
               real(a->rate) * (m[i] / (sqrtf(v[i]) / real(a->root2) + real(a->eps)));
        follow(a->average, i, p[i], a->rest);
    });
}

static void sgd(const PvRun *, const int64_t *raw)
{
    const SgdArgs *a = (const SgdArgs *)raw;
    float *p = (float *)a->params, *m = (float *)a->m, momentum = real(a->momentum);
    if (((const OptimizerResult *)a->result)->bad_step)
        return;
    walk(a->chunks, a->chunk_count, [&](int64_t i, int instance) {
        float s = ((const float *)a->gradients)[i] * (float)((const double *)a->factor)[instance] +
                  real(a->decay) * p[i];
        if (momentum != 0.f)
            s = m[i] = a->first ? s : momentum * m[i] + s;
        p[i] -= real(a->lr) * s;
        follow(a->average, i, p[i], a->rest);
    });
}

static void accumulate(const PvRun *, const int64_t *raw)
{
    const AccumulateArgs *a = (const AccumulateArgs *)raw;
    float *sum = (float *)a->sum;
    walk(a->chunks, a->chunk_count, [&](int64_t i, int) {
        sum[i] = (a->first ? 0.f : sum[i]) + ((const float *)a->gradients)[i];
    });
}

static void average(const PvRun *, const int64_t *raw)
{
    const AverageArgs *a = (const AverageArgs *)raw;
    if (((const OptimizerResult *)a->result)->bad_step)
        return;
    walk(a->chunks, a->chunk_count,
         [&](int64_t i, int) { follow(a->average, i, ((const float *)a->params)[i], a->rest); });
}

/* ---- cases ---- */

// Gradients and losses are small multiples of 1/8, so that sums are exact in any order.
static void check_sums(const char *what, double clip, float bad, int64_t bad_step,
                       const char *fault = nullptr)
{
    KernelCase test("square_sums", square_sums, what);
    Pieces pieces(test);
    SquareSumsArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.gradients = pieces.input(test);
    for (int64_t i = 0; i < pieces.elements; i++)
        test.set(args.gradients, (size_t)i, (float)(i % 17 - 8) / 8);
    args.losses = test.input(300);
    args.loss_count = 300;
    for (size_t i = 0; i < 300; i++)
        test.set(args.losses, i, (float)(i % 5) / 8);
    test.set(args.losses, 299, bad);
    args.factor = test.output(2, 0, ST_I64);
    args.instances = 2;
    args.result = test.output(3, 0, ST_I64);
    test.set_integer(args.result, 2, bad_step);
    args.step = 12;
    args.scale = bits(0.25);
    args.clip = bits(clip);
    test.segment(args);
    finish(test, fault);
}

static void check_adamw(const char *what, bool with_average, int64_t bad_step,
                        const char *fault = nullptr)
{
    KernelCase test("adamw", adamw, what);
    Pieces pieces(test);
    AdamwArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.gradients = pieces.input(test);
    args.params = pieces.updated(test), args.m = pieces.updated(test);
    args.v = pieces.updated(test);
    for (int64_t i = 0; i < pieces.elements; i++)
        test.set(args.v, (size_t)i, 0.01f + (float)(i % 31) / 31);
    args.average = with_average ? pieces.updated(test) : 0;
    args.factor = factors(test);
    args.result = result_of(test, bad_step);
    args.decay = bits(1 - 1e-4), args.beta1 = bits(0.9), args.rest1 = bits(1 - 0.9);
    args.beta2 = bits(0.999), args.rest2 = bits(1 - 0.999), args.rate = bits(0.01 / 0.19);
    args.root2 = bits(sqrt(0.002)), args.eps = bits(1e-8), args.rest = bits(0.01);
    test.segment(args);
    finish(test, fault);
}

static void check_sgd(const char *what, double momentum, bool first, bool with_average)
{
    KernelCase test("sgd", sgd, what);
    Pieces pieces(test);
    SgdArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.gradients = pieces.input(test);
    args.params = pieces.updated(test);
    args.m = momentum != 0 ? pieces.updated(test) : 0;
    args.average = with_average ? pieces.updated(test) : 0;
    args.factor = factors(test);
    args.result = result_of(test, 0);
    args.first = first;
    args.lr = bits(0.1), args.momentum = bits(momentum), args.decay = bits(0.01);
    args.rest = bits(0.05);
    test.segment(args);
    test.run();
}

static void check_accumulate(const char *what, bool first)
{
    KernelCase test("accumulate", accumulate, what);
    Pieces pieces(test);
    AccumulateArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.sum = pieces.updated(test);
    args.gradients = pieces.input(test);
    args.first = first;
    test.segment(args);
    test.run();
}

static void check_average(void)
{
    KernelCase test("average", average, "an average");
    Pieces pieces(test);
    AverageArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.average = pieces.updated(test);
    args.params = pieces.input(test);
    args.result = result_of(test, 0);
    args.rest = bits(0.001);
    test.segment(args);
    test.run();
}

int main(void)
{
    check_sums("without clipping", 0, 0.125f, 0);
    check_sums("clipped", 1.5, 0.125f, 0);
    check_sums("a loss that is no number", 1.5, INFINITY, 0);
    check_sums("after a bad step", 1.5, INFINITY, 3);
    check_adamw("with an average", true, 0);
    check_adamw("without an average", false, 0);
    check_adamw("after a bad step", true, 3);
    check_sgd("plain", 0, false, true);
    check_sgd("first step", 0.9, true, false);
    check_sgd("momentum", 0.9, false, true);
    check_accumulate("first", true);
    check_accumulate("more", false);
    check_average();
    check_sums("clipped", 1.5, 0.125f, 0, "FAULT_SUM");
    check_adamw("with an average", true, 0, "FAULT_REST");
    return finish_cases();
}
