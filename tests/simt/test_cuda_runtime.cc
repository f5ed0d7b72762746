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

// The numbers of an update, in device memory; `written`: the kernel may write them.
static int64_t place(KernelCase &test, const OptimizerNumbers &numbers, bool written = false)
{
    const size_t words = sizeof numbers / sizeof(int64_t);
    int64_t at = written ? test.output(words, 0, ST_I64) : test.integers(words, 0, 1);
    for (size_t i = 0; i < words; i++)
        test.set_integer(at, (int64_t)i, ((const int64_t *)&numbers)[i]);
    return at;
}
static const OptimizerNumbers &numbers_at(int64_t address)
{
    return *(const OptimizerNumbers *)address;
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
static int64_t result_of(KernelCase &test, int64_t bad_step, int64_t skip = 0)
{
    int64_t at = test.integers(sizeof(OptimizerResult) / 8, 0, 1);
    test.set_integer(at, 2, bad_step);
    test.set_integer(at, 3, skip);
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
    OptimizerNumbers &numbers = *(OptimizerNumbers *)a->numbers;
    LossScale *scaling = (LossScale *)a->loss_scale;
    double sum[8] = {0}, all = 0, loss = 0, clip = numbers.clip;
    double scale = numbers.scale / (scaling ? scaling->scale : 1);
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
    result->loss = loss * numbers.scale;
    bool fine = isfinite(result->norm), known = isfinite(result->loss);
    result->skip = scaling && known && !fine && scaling->scale > 1;
    if (!(fine && known) && !result->skip && result->bad_step == 0)
        result->bad_step = numbers.step;
    if (!scaling || !(known && (fine || result->skip)))
        return;
    scaling->skipped += result->skip;
    scaling->good = fine ? scaling->good + 1 : 0;
    scaling->scale *= fine ? scaling->good == 2000 ? 2 : 1 : 0.5;
    scaling->good %= 2000;
    scaling->real[0] = (float)scaling->scale;
    int made = (int)(numbers.updates - scaling->skipped);
    if (made > 0) {
        numbers.rate = numbers.lr / (1 - pow(numbers.beta1, made));
        numbers.root2 = sqrt(1 - pow(numbers.beta2, made));
    }
    result->scale = *scaling;
}

static void follow(int64_t average, int64_t i, float p, int64_t numbers)
{
    if (average)
        ((float *)average)[i] -= (float)numbers_at(numbers).rest * (((float *)average)[i] - p);
}
static bool changes_nothing(int64_t result)
{
    const OptimizerResult *of = (const OptimizerResult *)result;
    return of->bad_step || of->skip;
}

// bf16 and f16 are f32 here.
static void cast(int64_t shadow, int64_t i, float p)
{
    if (shadow)
        ((float *)shadow)[i] = p;
}

static void adamw(const PvRun *, const int64_t *raw)
{
    const AdamwArgs *a = (const AdamwArgs *)raw;
    const OptimizerNumbers &of = numbers_at(a->numbers);
    float *p = (float *)a->params, *m = (float *)a->m, *v = (float *)a->v;
    if (changes_nothing(a->result))
        return;
    walk(a->chunks, a->chunk_count, [&](int64_t i, int instance) {
        float s = ((const float *)a->gradients)[i] * (float)((const double *)a->factor)[instance];
        m[i] = m[i] * (float)of.beta1 + s * (float)of.rest1;
        v[i] = v[i] * (float)of.beta2 + s * s * (float)of.rest2;
        p[i] = p[i] * (float)of.decay -
               (float)of.rate * (m[i] / (sqrtf(v[i]) / (float)of.root2 + (float)of.eps));
        cast(a->shadow, i, p[i]);
        follow(a->average, i, p[i], a->numbers);
    });
}

static void sgd(const PvRun *, const int64_t *raw)
{
    const SgdArgs *a = (const SgdArgs *)raw;
    const OptimizerNumbers &of = numbers_at(a->numbers);
    float *p = (float *)a->params, *m = (float *)a->m;
    if (changes_nothing(a->result))
        return;
    walk(a->chunks, a->chunk_count, [&](int64_t i, int instance) {
        float s = ((const float *)a->gradients)[i] * (float)((const double *)a->factor)[instance] +
                  (float)of.weight_decay * p[i];
        if (m)
            s = m[i] = (float)of.momentum * m[i] + s;
        p[i] -= (float)of.lr * s;
        cast(a->shadow, i, p[i]);
        follow(a->average, i, p[i], a->numbers);
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
    if (changes_nothing(a->result))
        return;
    walk(a->chunks, a->chunk_count,
         [&](int64_t i, int) { follow(a->average, i, ((const float *)a->params)[i], a->numbers); });
}

static void shadow(const PvRun *, const int64_t *raw)
{
    const ShadowArgs *a = (const ShadowArgs *)raw;
    for (int64_t i = 0; i < a->count; i++)
        cast(a->shadow, i, ((const float *)a->params)[i]);
}

/* ---- cases ---- */

// Room for the shadow of all pieces; bounds are of its rounding.
static int64_t shadow_room(KernelCase &test, size_t count, int64_t type)
{
    return type == PV_STORE_BF16 ? test.updated(count, 4e-3, ST_BF16)
                                 : test.updated(count, 5e-4, ST_F16);
}

// Gradients and losses are small multiples of 1/8, so that sums are exact in any order.
static LossScale scaling_of(double scale, int64_t good, int64_t skipped)
{
    LossScale scaling = {};
    scaling.scale = scale, scaling.good = good, scaling.skipped = skipped;
    return scaling;
}

// `bad`: one of the losses. scaling: of the loss; no scale: none. gradient: one of them.
static void check_sums(const char *what, double clip, float bad, int64_t bad_step,
                       const char *fault = nullptr, LossScale scaling = {}, float gradient = 0)
{
    KernelCase test("square_sums", square_sums, what);
    Pieces pieces(test);
    SquareSumsArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.gradients = pieces.input(test);
    for (int64_t i = 0; i < pieces.elements; i++)
        test.set(args.gradients, (size_t)i, (float)(i % 17 - 8) / 8);
    test.set(args.gradients, 5, gradient);
    args.losses = test.input(300);
    args.loss_count = 300;
    for (size_t i = 0; i < 300; i++)
        test.set(args.losses, i, (float)(i % 5) / 8);
    test.set(args.losses, 299, bad);
    args.factor = test.output(2, 0, ST_I64);
    args.instances = 2;
    args.result = test.output(sizeof(OptimizerResult) / 8, 0, ST_I64);
    test.set_integer(args.result, 2, bad_step);
    test.set_integer(args.result, 3, 0); // skip
    OptimizerNumbers numbers = {};
    numbers.step = 12, numbers.updates = scaling.skipped + 2; // powers of few bits
    numbers.scale = 0.25, numbers.clip = clip;
    numbers.lr = 0.125, numbers.beta1 = 0.5, numbers.beta2 = 0.75;
    args.numbers = place(test, numbers, true);
    if (scaling.scale != 0) {
        args.loss_scale = test.output(4, 0, ST_I64);
        test.set_integer(args.loss_scale, 3, 0);
        test.set_integer(args.loss_scale, 0, bits(scaling.scale));
        test.set_integer(args.loss_scale, 1, scaling.good);
        test.set_integer(args.loss_scale, 2, scaling.skipped);
    }
    test.segment(args);
    finish(test, fault);
}

static void check_adamw(const char *what, bool with_average, int64_t bad_step,
                        const char *fault = nullptr, int64_t skip = 0)
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
    args.shadow_type = with_average ? PV_STORE_F16 : PV_STORE_BF16;
    args.shadow = shadow_room(test, (size_t)pieces.elements, args.shadow_type);
    args.factor = factors(test);
    args.result = result_of(test, bad_step, skip);
    OptimizerNumbers numbers = {};
    numbers.decay = 1 - 1e-4, numbers.beta1 = 0.9, numbers.rest1 = 1 - 0.9;
    numbers.beta2 = 0.999, numbers.rest2 = 1 - 0.999, numbers.rate = 0.01 / 0.19;
    numbers.root2 = sqrt(0.002), numbers.eps = 1e-8, numbers.rest = 0.01;
    args.numbers = place(test, numbers);
    test.segment(args);
    finish(test, fault);
}

static void check_sgd(const char *what, double momentum, bool moments, bool with_average)
{
    KernelCase test("sgd", sgd, what);
    Pieces pieces(test);
    SgdArgs args = {};
    args.chunks = pieces.chunks, args.chunk_count = pieces.chunk_count;
    args.gradients = pieces.input(test);
    args.params = pieces.updated(test);
    args.m = moments ? pieces.updated(test) : 0;
    args.average = with_average ? pieces.updated(test) : 0;
    args.shadow_type = PV_STORE_BF16;
    args.shadow = with_average ? shadow_room(test, (size_t)pieces.elements, PV_STORE_BF16) : 0;
    args.factor = factors(test);
    args.result = result_of(test, 0);
    OptimizerNumbers numbers = {};
    numbers.lr = 0.1, numbers.momentum = momentum, numbers.weight_decay = 0.01;
    numbers.rest = 0.05;
    args.numbers = place(test, numbers);
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
    OptimizerNumbers numbers = {};
    numbers.rest = 0.001;
    args.numbers = place(test, numbers);
    test.segment(args);
    test.run();
}

static void check_shadow(int64_t count, int64_t type)
{
    KernelCase test("shadow", shadow, "the shadow of parameters");
    ShadowArgs args = {};
    args.count = count, args.chunk_count = (count + 16383) / 16384;
    args.params = test.input((size_t)count);
    args.shadow_type = type;
    args.shadow = shadow_room(test, (size_t)count, type);
    test.segment(args);
    test.run();
}

int main(void)
{
    check_sums("without clipping", 0, 0.125f, 0);
    check_sums("clipped", 1.5, 0.125f, 0);
    check_sums("a loss that is no number", 1.5, INFINITY, 0);
    check_sums("after a bad step", 1.5, INFINITY, 3);
    check_sums("scaled", 1.5, 0.125f, 0, nullptr, scaling_of(1024, 7, 3));
    check_sums("scaled, grown", 0, 0.125f, 0, nullptr, scaling_of(1024, 1999, 3));
    check_sums("scaled, left out", 1.5, 0.125f, 0, nullptr, scaling_of(1024, 7, 3), INFINITY);
    check_sums("scaled, no number", 0, 0.125f, 0, nullptr, scaling_of(65536, 0, 0), NAN);
    check_sums("scaled by 1", 0, 0.125f, 0, nullptr, scaling_of(1, 7, 3), INFINITY);
    check_sums("scaled, a bad loss", 0, NAN, 0, nullptr, scaling_of(1024, 7, 3));
    check_adamw("with an average", true, 0);
    check_adamw("left out", true, 0, nullptr, 1);
    check_adamw("without an average", false, 0);
    check_adamw("after a bad step", true, 3);
    check_sgd("plain", 0, false, true);
    check_sgd("first step", 0, true, false);
    check_sgd("momentum", 0.9, true, true);
    check_accumulate("first", true);
    check_accumulate("more", false);
    check_average();
    check_shadow(16384 + 4 * 300 + 3, PV_STORE_BF16);
    check_shadow(64, PV_STORE_F16);
    check_sums("clipped", 1.5, 0.125f, 0, "FAULT_SUM");
    check_sums("scaled", 1.5, 0.125f, 0, "FAULT_SCALE", scaling_of(1024, 7, 3));
    check_adamw("with an average", true, 0, "FAULT_REST");
    return finish_cases();
}
