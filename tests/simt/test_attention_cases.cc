// cases
// Attention and its gradient in exact f32 beside the CPU library's.
#include <math.h>
#include <string.h>
#include "kernel_case.h"

enum Order { ROWS, TURNED, HEADS }; // [.., n, d]; [.., d, n]; [batch0, n, batch1, d]

struct Shape {
    const char *what;
    int64_t batch0, batch1, n, m, d, e;
    Order order;
    bool mask, causal, no_lse;
};

struct Strides {
    int64_t batch0, batch1, n, d;
    size_t count;
};

// Of a tensor of an order: batch0 x batch1 matrices [length, width].
static Strides strides_of(const Shape &s, int64_t length, int64_t width)
{
    size_t count = (size_t)(s.batch0 * s.batch1 * length * width);
    if (s.order == HEADS)
        return {length * s.batch1 * width, width, s.batch1 * width, 1, count};
    int64_t matrix = length * width;
    if (s.order == TURNED)
        return {s.batch1 * matrix, matrix, 1, length, count};
    return {s.batch1 * matrix, matrix, width, 1, count};
}

static int64_t bits_of(double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Inputs of one segment; o and lse are made by the caller.
static AttentionArgs make_args(KernelCase &test, const Shape &s)
{
    AttentionArgs a = {};
    a.batch0 = s.batch0, a.batch1 = s.batch1, a.n = s.n, a.m = s.m, a.d = s.d, a.e = s.e;
    Strides q = strides_of(s, s.n, s.d), k = strides_of(s, s.m, s.d), v = strides_of(s, s.m, s.e);
    Strides o = strides_of(s, s.n, s.e);
    a.q0 = q.batch0, a.q1 = q.batch1, a.q_n = q.n, a.q_d = q.d;
    a.k0 = k.batch0, a.k1 = k.batch1, a.k_n = k.n, a.k_d = k.d;
    a.v0 = v.batch0, a.v1 = v.batch1, a.v_n = v.n, a.v_d = v.d;
    a.o0 = o.batch0, a.o1 = o.batch1, a.o_n = o.n, a.o_d = o.d;
    a.q = test.input(q.count, 1.5f), a.k = test.input(k.count), a.v = test.input(v.count, 1, 0.2f);
    if (s.mask) { // the same for all of batch0
        a.mask = test.input((size_t)(s.batch1 * s.n * s.m), 2);
        a.mask1 = s.n * s.m, a.mask_n = s.m, a.mask_m = 1;
        for (int64_t i = 0; i < s.batch1 * s.n; i++)
            test.set(a.mask, (size_t)(i * s.m + i % s.m), s.m > 1 ? -INFINITY : 0.f);
    }
    a.scale = bits_of(1 / sqrt((double)s.d));
    a.causal = s.causal;
    return a;
}

static AttentionArgs forward(KernelCase &test, const Shape &s)
{
    AttentionArgs a = make_args(test, s);
    a.o = test.output((size_t)(s.batch0 * s.batch1 * s.n * s.e), 2e-6);
    if (!s.no_lse)
        a.lse = test.output((size_t)(s.batch0 * s.batch1 * s.n), 2e-6);
    return a;
}

// o and lse as the forward kernel leaves them.
static AttentionGradArgs backward(KernelCase &test, const Shape &s)
{
    AttentionGradArgs g = {};
    g.f = make_args(test, s);
    size_t o_count = (size_t)(s.batch0 * s.batch1 * s.n * s.e);
    size_t rows = (size_t)(s.batch0 * s.batch1 * s.n);
    g.f.o = test.input(o_count), g.f.lse = test.input(rows);
    std::vector<float> o(o_count), lse(rows);
    std::vector<char> scratch(16 << 20);
    AttentionArgs host = g.f;
    host.q = (int64_t)test.values(g.f.q), host.k = (int64_t)test.values(g.f.k);
    host.v = (int64_t)test.values(g.f.v), host.o = (int64_t)o.data();
    host.mask = g.f.mask ? (int64_t)test.values(g.f.mask) : 0, host.lse = (int64_t)lse.data();
    PvRun run = {};
    run.batch = 1, run.threads = 1, run.segments = 1;
    run.scratch = scratch.data() + (64 - (uintptr_t)scratch.data() % 64) % 64;
    run.scratch_size = (int64_t)scratch.size() - 64;
    pv_attention(&run, (const int64_t *)&host);
    for (size_t i = 0; i < o_count; i++)
        test.set(g.f.o, i, o[i]);
    for (size_t i = 0; i < rows; i++)
        test.set(g.f.lse, i, lse[i]);
    g.d_o = test.input(o_count);
    Strides q = strides_of(s, s.n, s.d), k = strides_of(s, s.m, s.d), v = strides_of(s, s.m, s.e);
    g.dq = test.output(q.count, 1e-5), g.dk = test.output(k.count, 1e-5);
    g.dv = test.output(v.count, 1e-5);
    g.dq0 = q.batch0, g.dq1 = q.batch1, g.dq_n = q.n, g.dq_d = q.d;
    g.dk0 = k.batch0, g.dk1 = k.batch1, g.dk_n = k.n, g.dk_d = k.d;
    g.dv0 = v.batch0, g.dv1 = v.batch1, g.dv_n = v.n, g.dv_d = v.d;
    return g;
}

static void check(const Shape &s)
{
    KernelCase test("pv_attention", pv_attention, s.what);
    test.segment(forward(test, s));
    test.run();
    KernelCase grad("pv_attention_grad", pv_attention_grad, s.what);
    grad.segment(backward(grad, s));
    grad.run();
}

static void long_sequences(void)
{
    check({"two tiles", 1, 1, 66, 70, 16, 16, ROWS, false, false, false});
    check({"turned, odd dims", 1, 2, 35, 37, 5, 7, TURNED, false, false, true});
    check({"heads inside", 1, 2, 34, 33, 32, 48, HEADS, true, false, false});
    check({"causal", 1, 1, 70, 66, 12, 12, ROWS, false, true, false});
    check({"causal, few queries", 1, 1, 3, 70, 16, 16, ROWS, false, true, false});
    check({"head dims 128", 1, 1, 33, 34, 128, 128, ROWS, false, false, false});
    check({"head dims 80 and 16", 1, 1, 5, 40, 80, 16, TURNED, true, false, false});
    check({"head dim 64", 1, 1, 9, 65, 64, 64, HEADS, false, false, false});
}

static void short_sequences(void)
{
    check({"a warp a head", 3, 2, 17, 32, 16, 16, ROWS, false, false, false});
    check({"turned", 1, 3, 18, 20, 6, 5, TURNED, true, false, true});
    check({"two in a warp, causal", 3, 1, 16, 16, 8, 12, HEADS, false, true, false});
    check({"four in a warp", 2, 3, 5, 8, 32, 16, HEADS, true, false, false});
    check({"one key", 1, 2, 3, 1, 4, 4, ROWS, true, false, false});
    check({"head dim 128", 1, 2, 20, 30, 128, 128, ROWS, false, false, false});
}

static void segments(void)
{
    const Shape planes[2] = {{"segments", 1, 2, 70, 40, 16, 16, ROWS, false, false, false},
                             {"segments", 2, 1, 33, 5, 16, 16, TURNED, false, false, false}};
    const Shape lines[2] = {{"short segments", 1, 9, 7, 8, 8, 8, ROWS, false, false, false},
                            {"short segments", 2, 1, 3, 5, 8, 8, TURNED, false, false, false}};
    for (const Shape *shapes : {planes, lines}) {
        KernelCase test("pv_attention", pv_attention, shapes[0].what);
        KernelCase grad("pv_attention_grad", pv_attention_grad, shapes[0].what);
        for (int i = 0; i < 2; i++) {
            test.segment(forward(test, shapes[i]));
            grad.segment(backward(grad, shapes[i]));
        }
        test.run();
        grad.run();
    }
}

static void faults(void)
{
    const Shape far = {"two tiles", 1, 1, 40, 70, 16, 16, ROWS, false, false, false};
    const Shape near = {"a warp a head", 3, 2, 17, 32, 16, 16, ROWS, false, false, false};
    KernelCase values("pv_attention", pv_attention, "faults");
    values.segment(forward(values, far));
    values.find_fault("FAULT_VALUES");
    KernelCase weights("pv_attention_grad", pv_attention_grad, "faults");
    weights.segment(backward(weights, far));
    weights.find_fault("FAULT_WEIGHTS");
    KernelCase arrival("pv_attention", pv_attention, "short faults");
    arrival.segment(forward(arrival, near));
    arrival.find_fault("FAULT_ARRIVAL");
    KernelCase reuse("pv_attention_grad", pv_attention_grad, "short faults");
    reuse.segment(backward(reuse, near));
    reuse.find_fault("FAULT_REUSE");
}

int main(void)
{
    long_sequences();
    short_sequences();
    segments();
    faults();
    return finish_cases();
}
