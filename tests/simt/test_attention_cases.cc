// cases
// Attention and its gradient, in exact f32 and in bf16 on mma.sync, beside the CPU library's.
#include <math.h>
#include <string.h>
#include "kernel_case.h"

enum Order { ROWS, TURNED, HEADS }; // [.., n, d]; [.., d, n]; [batch0, n, batch1, d]

struct Shape {
    const char *what;
    int64_t batch0, batch1, n, m, d, e;
    Order order;
    bool mask, causal, no_lse;
    Storage storage = ST_F32; // of all but lse, mask and tables
    double tolerance = 2e-6;
    int64_t q_width = 0, k_width = 0; // columns that are turned
    int64_t partner = PV_ROTARY_PAIRS;
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

// An even second axis of problems as two axes, the inner one of 2: strides of both.
static void split(const Shape &s, int64_t stride, int64_t *outer, int64_t *inner)
{
    *outer = s.batch1 % 2 ? stride : 2 * stride;
    *inner = s.batch1 % 2 ? 0 : stride;
}

static RotaryLoad make_rotary(KernelCase &test, int64_t length, int64_t width, int64_t partner)
{
    if (width == 0)
        return {};
    size_t count = (size_t)(length * width);
    return {test.input(count), test.input(count), width, partner};
}

// Inputs of one segment; o and lse are made by the caller.
static AttentionArgs make_args(KernelCase &test, const Shape &s)
{
    AttentionArgs a = {};
    a.batch2 = s.batch1 % 2 ? 1 : 2;
    a.batch0 = s.batch0, a.batch1 = s.batch1 / a.batch2, a.n = s.n, a.m = s.m, a.d = s.d, a.e = s.e;
    Strides q = strides_of(s, s.n, s.d), k = strides_of(s, s.m, s.d), v = strides_of(s, s.m, s.e);
    Strides o = strides_of(s, s.n, s.e);
    split(s, q.batch1, &a.q1, &a.q2);
    a.q0 = q.batch0, a.q_n = q.n, a.q_d = q.d;
    split(s, k.batch1, &a.k1, &a.k2);
    a.k0 = k.batch0, a.k_n = k.n, a.k_d = k.d;
    split(s, v.batch1, &a.v1, &a.v2);
    a.v0 = v.batch0, a.v_n = v.n, a.v_d = v.d;
    split(s, o.batch1, &a.o1, &a.o2);
    a.o0 = o.batch0, a.o_n = o.n, a.o_d = o.d;
    a.q = test.input(q.count, 1.5f, 0, s.storage), a.k = test.input(k.count, 1, 0, s.storage);
    a.v = test.input(v.count, 1, 0.2f, s.storage);
    a.types = s.storage == ST_BF16 ? 0x11101 : s.storage == ST_F16 ? 0x22202 : 0;
    if (s.mask) { // the same for all of batch0
        a.mask = test.input((size_t)(s.batch1 * s.n * s.m), 2);
        split(s, s.n * s.m, &a.mask1, &a.mask2);
        a.mask_n = s.m, a.mask_m = 1;
        for (int64_t i = 0; i < s.batch1 * s.n; i++)
            test.set(a.mask, (size_t)(i * s.m + i % s.m), s.m > 1 ? -INFINITY : 0.f);
    }
    a.scale = bits_of(1 / sqrt((double)s.d));
    a.causal = s.causal;
    a.q_rotary = make_rotary(test, s.n, s.q_width, s.partner);
    a.k_rotary = make_rotary(test, s.m, s.k_width, s.partner);
    return a;
}

static AttentionArgs forward(KernelCase &test, const Shape &s)
{
    AttentionArgs a = make_args(test, s);
    a.o = test.output((size_t)(s.batch0 * s.batch1 * s.n * s.e), s.tolerance, s.storage);
    // mma: what is turned is rounded again
    double of_sums = s.storage != ST_F32 && s.q_width + s.k_width > 0 ? 1e-4 : 2e-6;
    if (!s.no_lse)
        a.lse = test.output((size_t)(s.batch0 * s.batch1 * s.n), of_sums);
    return a;
}

// o and lse as the forward kernel leaves them.
static AttentionGradArgs backward(KernelCase &test, const Shape &s)
{
    AttentionGradArgs g = {};
    g.f = make_args(test, s);
    size_t o_count = (size_t)(s.batch0 * s.batch1 * s.n * s.e);
    size_t rows = (size_t)(s.batch0 * s.batch1 * s.n);
    g.f.o = test.input(o_count, 1, 0, s.storage), g.f.lse = test.input(rows);
    std::vector<float> o(o_count), lse(rows);
    std::vector<char> scratch(16 << 20);
    AttentionArgs host = g.f;
    host.q = (int64_t)test.values(g.f.q), host.k = (int64_t)test.values(g.f.k);
    host.v = (int64_t)test.values(g.f.v), host.o = (int64_t)o.data();
    host.mask = g.f.mask ? (int64_t)test.values(g.f.mask) : 0, host.lse = (int64_t)lse.data();
    for (RotaryLoad *rotary : {&host.q_rotary, &host.k_rotary})
        if (rotary->cos)
            rotary->cos = (int64_t)test.values(rotary->cos),
            rotary->sin = (int64_t)test.values(rotary->sin);
    PvRun run = {};
    run.batch = 1, run.threads = 1, run.segments = 1;
    run.scratch = scratch.data() + (64 - (uintptr_t)scratch.data() % 64) % 64;
    run.scratch_size = (int64_t)scratch.size() - 64;
    pv_attention(&run, (const int64_t *)&host);
    for (size_t i = 0; i < o_count; i++)
        test.set(g.f.o, i, o[i]);
    for (size_t i = 0; i < rows; i++)
        test.set(g.f.lse, i, lse[i]);
    g.d_o = test.input(o_count, 1, 0, s.storage);
    g.types = s.storage == ST_BF16 ? 0x1111 : s.storage == ST_F16 ? 0x2222 : 0;
    Strides q = strides_of(s, s.n, s.d), k = strides_of(s, s.m, s.d), v = strides_of(s, s.m, s.e);
    double tolerance = 5 * s.tolerance;
    // of one key, they are 0: what either side leaves is rounding
    double of_scores = s.m > 1 ? tolerance : INFINITY;
    g.dq = test.output(q.count, of_scores, s.storage);
    g.dk = test.output(k.count, of_scores, s.storage);
    g.dv = test.output(v.count, tolerance, s.storage);
    split(s, q.batch1, &g.dq1, &g.dq2);
    g.dq0 = q.batch0, g.dq_n = q.n, g.dq_d = q.d;
    split(s, k.batch1, &g.dk1, &g.dk2);
    g.dk0 = k.batch0, g.dk_n = k.n, g.dk_d = k.d;
    split(s, v.batch1, &g.dv1, &g.dv2);
    g.dv0 = v.batch0, g.dv_n = v.n, g.dv_d = v.d;
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

// Inputs are what their storage holds for both sides. f32 arithmetic: only the results are rounded.
// mma: weights are rounded to bf16 too, and so is dS; bounds are twice what rounding alone gives.
static void halves(void)
{
    const double bf16 = 3e-3, f16 = 4e-4, mma = 6e-3;
    check({"bf16", 2, 1, 9, 11, 16, 8, ROWS, true, false, false, ST_BF16, bf16});
    check({"f16", 1, 2, 17, 20, 12, 16, TURNED, false, true, false, ST_F16, f16});
    check({"f16, long", 1, 1, 35, 37, 8, 16, ROWS, false, false, false, ST_F16, f16});
    check({"mma, two blocks", 1, 1, 130, 70, 16, 16, ROWS, false, false, false, ST_BF16, mma});
    check({"mma, turned", 1, 2, 35, 37, 20, 24, TURNED, false, false, true, ST_BF16, mma});
    check({"mma, heads inside", 1, 2, 34, 65, 32, 48, HEADS, true, false, false, ST_BF16, mma});
    check({"mma, causal", 1, 1, 140, 133, 64, 64, HEADS, false, true, false, ST_BF16, mma});
    check({"mma, head dims 128", 1, 1, 33, 67, 128, 128, ROWS, false, false, false, ST_BF16, mma});
    check({"mma, large, mask", 1, 1, 66, 70, 72, 80, HEADS, true, false, false, ST_BF16, mma});
    check(
        {"mma, large, causal", 1, 1, 70, 66, 80, 96, TURNED, false, true, false, ST_F16, mma / 8});
    check({"mma, f16", 1, 1, 130, 70, 16, 16, ROWS, false, false, false, ST_F16, mma / 8});
    check({"mma, f16, turned", 1, 2, 35, 37, 20, 24, TURNED, false, false, true, ST_F16, mma / 8});
    check({"mma, f16, heads inside", 1, 2, 34, 65, 32, 48, HEADS, true, false, false, ST_F16,
           mma / 8});
    const Shape planes[2] = {
        {"mma, segments", 1, 2, 70, 40, 16, 16, ROWS, false, false, false, ST_BF16, mma},
        {"mma, segments", 2, 1, 33, 5, 16, 16, TURNED, false, false, false, ST_BF16, mma}};
    KernelCase test("pv_attention", pv_attention, planes[0].what);
    KernelCase grad("pv_attention_grad", pv_attention_grad, planes[0].what);
    for (const Shape &plane : planes) {
        test.segment(forward(test, plane));
        grad.segment(backward(grad, plane));
    }
    test.run();
    grad.run();
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

static Shape turned(Shape s, int64_t q_width, int64_t k_width, int64_t partner)
{
    s.q_width = q_width, s.k_width = k_width, s.partner = partner;
    return s;
}

static void rotary(void)
{
    const double mma = 8e-3;
    const int64_t pairs = PV_ROTARY_PAIRS, halves = PV_ROTARY_HALVES, negated = PV_ROTARY_NEGATED;
    check(turned({"rotary", 1, 2, 66, 70, 16, 16, HEADS, false, false, false}, 16, 16, pairs));
    check(turned({"rotary, a part, turned", 1, 1, 35, 37, 20, 8, TURNED, false, false, false}, 12,
                 4, pairs));
    check(turned({"rotary halves, causal", 1, 1, 70, 66, 24, 16, ROWS, false, true, false}, 24, 16,
                 negated));
    check(
        turned({"rotary, short", 3, 1, 16, 16, 64, 64, HEADS, false, false, false}, 64, 64, pairs));
    check(
        turned({"rotary halves, short, keys alone", 1, 3, 8, 7, 16, 5, TURNED, false, false, false},
               0, 8, negated));
    check(turned({"rotary, mma", 1, 2, 130, 70, 16, 16, HEADS, false, false, false, ST_BF16, mma},
                 16, 16, pairs));
    check(turned({"rotary, mma, a part, turned", 1, 1, 35, 37, 20, 24, TURNED, false, false, false,
                  ST_BF16, mma}, 4, 20, pairs));
    check(turned(
        {"rotary, mma, halves", 1, 1, 70, 133, 32, 32, HEADS, false, true, false, ST_BF16, mma}, 32,
        16, negated));
    check(turned({"rotary, mma, large", 1, 1, 66, 70, 80, 80, ROWS, false, false, false, ST_F16,
                  mma / 8}, 80, 72, halves));
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
    const Shape half = {"mma faults", 1, 1, 40, 140, 16, 16, ROWS, false, false, false, ST_BF16};
    KernelCase tile("pv_attention", pv_attention, half.what);
    tile.segment(forward(tile, half));
    tile.find_fault("FAULT_TILE");
    KernelCase spread("pv_attention_grad", pv_attention_grad, half.what);
    spread.segment(backward(spread, half));
    spread.find_fault("FAULT_SPREAD");
    for (const Shape &shape : {far, half}) {
        Shape turning = turned(shape, 16, 16, PV_ROTARY_PAIRS);
        KernelCase turn("pv_attention", pv_attention, "rotary faults");
        turn.segment(forward(turn, turning));
        turn.find_fault("FAULT_TURN");
        KernelCase back("pv_attention_grad", pv_attention_grad, "rotary faults");
        back.segment(backward(back, turning));
        back.find_fault("FAULT_TURN_BACK");
    }
}

int main(void)
{
    rotary();
    long_sequences();
    short_sequences();
    segments();
    halves();
    faults();
    return finish_cases();
}
