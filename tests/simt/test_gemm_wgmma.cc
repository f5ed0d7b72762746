// cases
// gemm_wgmma.cu against plain loops: majorness of both operands, batches, sums over them, parts.
#include <stddef.h>
#include <string.h>
#include "gemm_case.h"

struct Shape {
    const char *what;
    int64_t m, n, k, batch0, batch1;
    bool a_k, b_k;       // dense along the reduction
    bool a_same, sum;    // A is the same for all of batch1; the batch is summed
    Storage c, residual; // ST_I64: no residual
    int64_t bias;        // -1: none, else its axis
    Storage half = ST_BF16; // of the operands
    int gate = 0;           // 1: gates stand behind values; -1: before
    bool turned = false;    // the result, and its residual (gemm_case.h); n in eights
};

static void plain_gemm(const PvRun *, const int64_t *raw)
{
    const GemmArgs &g = *(const GemmArgs *)raw;
    const float *a = (const float *)g.a, *b = (const float *)g.b, *bias = (const float *)g.bias;
    const float *residual = (const float *)g.residual;
    int64_t outer = g.sum_batch ? 1 : g.batch0 * g.batch1, inner = g.batch0 * g.batch1 / outer;
    for (int64_t batch = 0; batch < outer; batch++)
        for (int64_t m = 0; m < g.m; m++)
            for (int64_t n = 0; n < g.n; n++) {
                float sum = bias ? bias[g.bias_axis ? m : n] : 0;
                float gate = bias && g.gate ? bias[n + g.gate] : 0;
                for (int64_t i = batch; i < batch + inner; i++) {
                    int64_t i0 = i / g.batch1, i1 = i % g.batch1;
                    for (int64_t k = 0; k < g.k; k++) {
                        float of_a = a[i0 * g.a0 + i1 * g.a1 + m * g.a_m + k * g.a_k];
                        const float *of_b = &b[i0 * g.b0 + i1 * g.b1 + k * g.b_k + n * g.b_n];
                        sum += of_a * of_b[0];
                        gate += of_a * of_b[g.gate * g.b_n];
                    }
                }
                int64_t i0 = batch / g.batch1, i1 = batch % g.batch1;
                float active = g.gate ? gate : sum;
                if (g.act == PV_ACT_RELU)
                    active = active > 0 ? active : 0;
                sum = g.gate ? sum * active : active;
                if (residual)
                    sum += residual[i0 * g.r0 + i1 * g.r1 + m * g.r_m + n];
                ((float *)g.c)[i0 * g.c0 + i1 * g.c1 + m * g.c_m + n] = sum;
            }
}

static int64_t padded(int64_t size) // rows begin at multiples of 16 bytes
{
    return (size + 7) / 8 * 8;
}

static int64_t columns(const Shape &s)
{
    return s.gate ? 2 * s.n : s.n;
}

static GemmArgs gemm_args(const Shape &s)
{
    GemmArgs g = {};
    g.m = s.m, g.n = s.n, g.k = s.k, g.batch0 = s.batch0, g.batch1 = s.batch1;
    g.a_m = s.a_k ? padded(s.k) : 1, g.a_k = s.a_k ? 1 : padded(s.m);
    g.b_n = s.b_k ? padded(s.k) : 1, g.b_k = s.b_k ? 1 : padded(columns(s));
    int64_t a = s.a_k ? s.m * g.a_m : s.k * g.a_k, b = s.b_k ? columns(s) * g.b_n : s.k * g.b_k;
    g.a1 = s.a_same ? 0 : a, g.a0 = s.a_same ? a : a * s.batch1;
    g.b1 = b, g.b0 = b * s.batch1;
    g.c_m = g.r_m = padded(s.n);
    if (!s.sum) {
        g.c1 = g.r1 = s.m * g.c_m;
        g.c0 = g.r0 = g.c1 * s.batch1;
    }
    g.sum_batch = s.sum;
    g.gate = s.gate * s.n;
    g.bias_axis = s.bias > 0;
    g.act = s.bias >= 0 ? PV_ACT_RELU : PV_ACT_NONE;
    int64_t half = s.half == ST_F16 ? PV_STORE_F16 : PV_STORE_BF16;
    g.types = half << 4 | half << 8 | (s.c == s.half ? half : 0) |
              (s.residual == s.half ? half << 16 : 0);
    return g;
}

// `sum`: as in kernel_args.h; a part of a sum has the result of its first segment, `into`.
static int64_t add(KernelCase &test, const Shape &s, int64_t sum = 0, int64_t into = 0)
{
    GemmArgs g = gemm_args(s);
    g.sum = sum;
    size_t batches = (size_t)(s.batch0 * s.batch1), of_c = s.sum ? 1 : batches;
    size_t c = (size_t)(s.m * g.c_m) * of_c, added = s.turned ? turn_result(&g) : c;
    g.c = into ? into : test.output(c, 5e-3, s.c);
    g.a = test.input((size_t)(s.a_k ? s.m * g.a_m : s.k * g.a_k) * batches, 1, 0, s.half);
    g.b = test.input((size_t)(s.b_k ? columns(s) * g.b_n : s.k * g.b_k) * batches, 1, 0, s.half);
    if (s.bias >= 0)
        g.bias = test.input((size_t)(s.bias ? s.m : columns(s)));
    if (s.gate < 0) {
        g.b += s.n * g.b_n * 2;
        g.bias += s.bias >= 0 ? s.n * 4 : 0;
    }
    if (s.residual != ST_I64)
        g.residual = test.input(added, 1, 0, s.residual);
    test.segment(g);
    return g.c;
}

static void check(const std::vector<Shape> &shapes, const char *fault = nullptr)
{
    KernelCase test("pv_gemm", plain_gemm, shapes[0].what);
    test.on_90a = true;
    for (const Shape &shape : shapes)
        add(test, shape);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void check_sum(Shape shape)
{
    KernelCase test("pv_gemm", pv_gemm, "a sum of segments");
    test.together = test.on_90a = true;
    int64_t into = add(test, shape, 2);
    for (int64_t k : {64, 520}) {
        shape.k = k;
        add(test, shape, -1, into);
    }
    test.run();
}

int main(void)
{
    const Storage H = ST_BF16, F = ST_F32, NONE = ST_I64;
    Shape forward = {"a linear", 150, 136, 104, 1, 1, true, true, false, false, H, H, 0};
    Shape turned = {"dense rows of B", 130, 192, 72, 2, 1, true, false, false, false, F, NONE, -1};
    turned.k = 120;
    Shape both = {"dense rows of both", 200, 60, 56, 1, 2, false, false, false, false, H, F, 1};
    Shape first = {"dense rows of A", 64, 128, 64, 1, 3, false, true, true, false, H, NONE, -1};
    Shape sum = {"a sum over the batch", 56, 64, 120, 2, 3, false, false, false, true, F, F, -1};
    Shape deep = {"parts", 64, 64, 1000, 1, 1, true, true, false, false, F, NONE, 0};
    Shape half = forward, half_sum = sum;
    half.what = "f16";
    half.half = half.c = half.residual = ST_F16;
    half_sum.what = "f16, a sum over the batch";
    half_sum.half = ST_F16;
    for (const Shape &shape : {forward, turned, both, first, sum, deep, half, half_sum})
        check({shape});
    Shape second = forward, third = forward;
    second.m = 60;
    third.m = 260;
    check({forward, second, third});
    sum.residual = NONE;
    check_sum(sum);
    Shape gated = {"gates", 150, 136, 104, 1, 1, true, true, false, false, H, NONE, 0, H, 1};
    Shape before = {"gates first, dense rows of B", 300, 200, 120, 1, 2, true, false, false, false,
                    F, NONE, 0, ST_F16, -1};
    Shape deep_gates = {"gates, parts", 64, 64, 1000, 1, 1, true, true, false, false, H, NONE, 0,
                        H, -1};
    for (const Shape &shape : {gated, before, deep_gates})
        check({shape});
    {
        KernelCase test("pv_gemm", plain_gemm, "gates, 128 x 256");
        test.on_90a = true;
        add(test, {"", 128, 128, 64, 33, 1, true, true, false, false, H, NONE, 0, H, 1});
        test.depends_on_batch(offsetof(GemmArgs, batch0) / 8);
        test.run();
    }
    Shape ordered = {"turned", 60, 64, 120, 2, 3, true, true, false, false, H, H, 0, H, 0, true};
    Shape half_ordered = {"turned, parts, f16", 64, 64, 1000, 1, 2, true, true, false, false, F,
                          ST_F16, 0, ST_F16, 0, true};
    check({ordered, ordered});
    check({half_ordered});
    check({ordered}, "FAULT_GEMM_RESIDUAL");
    check({gated}, "FAULT_GEMM_GATE");
    check({gated}, "FAULT_BANKS");
    check({turned}, "FAULT_WGMMA_EMPTY");
    check({turned}, "FAULT_WGMMA_FENCE");
    check({sum}, "FAULT_WGMMA_MAJOR");
    check({deep}, "FAULT_TILE_PARTS");
    return finish_cases();
}
