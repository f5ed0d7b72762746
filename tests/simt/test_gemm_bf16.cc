// cases
#include <stddef.h>
#include "gemm_case.h"

// A product in bf16 or f16. Storage of c, a, b, of bias and residual.
struct Product {
    const char *what;
    int64_t m, n, k, batch0, batch1;
    bool a_k, b_k;
    Storage c, a, b, bias, residual;
    bool has_bias, has_residual, sum;
    int64_t act, gap;
    int gate = 0; // 1: gates stand behind values; -1: before
    bool turned = false; // the result, and its residual (gemm_case.h); no gap
};

static int64_t storage_bits(Storage storage, int number)
{
    return (int64_t)(storage == ST_BF16  ? PV_STORE_BF16
                     : storage == ST_F16 ? PV_STORE_F16
                                         : PV_STORE_REAL) << 4 * number;
}

static GemmArgs add_product(KernelCase &test, const Product &p)
{
    GemmArgs args = {};
    int64_t batches = p.batch0 * p.batch1, columns = p.gate ? 2 * p.n : p.n;
    // a result in bf16 has 8 bits; f32 operands are rounded to as many
    bool rounded = p.c == ST_BF16 || p.a == ST_F32 || p.b == ST_F32;
    double tolerance = rounded ? 4e-3 : 2e-6;
    if (p.c == ST_F16)
        tolerance = 4e-4;
    args.m = p.m, args.n = p.n, args.k = p.k, args.batch0 = p.batch0, args.batch1 = p.batch1;
    args.a_m = p.a_k ? p.k + p.gap : 1, args.a_k = p.a_k ? 1 : p.m + p.gap;
    args.b_n = p.b_k ? p.k + p.gap : 1, args.b_k = p.b_k ? 1 : columns + p.gap;
    args.a1 = p.a_k ? args.a_m * p.m : args.a_k * p.k, args.a0 = args.a1 * p.batch1;
    args.b1 = p.b_k ? args.b_n * columns : args.b_k * p.k, args.b0 = args.b1 * p.batch1;
    args.c_m = p.n + p.gap;
    args.c1 = p.sum ? 0 : args.c_m * p.m, args.c0 = args.c1 * p.batch1;
    args.a = test.input((size_t)(args.a1 * batches), 1, 0, p.a);
    args.b = test.input((size_t)(args.b1 * batches), 1, 0, p.b);
    size_t c_count = (size_t)(args.c_m * p.m * (p.sum ? 1 : batches));
    args.c = test.output(c_count, tolerance, p.c);
    args.bias = p.has_bias ? test.input((size_t)columns, 1, 0, p.bias) : 0;
    args.r0 = args.c0, args.r1 = args.c1, args.r_m = args.c_m;
    size_t added = p.turned ? turn_result(&args) : c_count;
    args.residual = p.has_residual ? test.input(added, 1, 0, p.residual) : 0;
    args.act = p.act;
    args.sum_batch = p.sum;
    args.gate = p.gate * p.n;
    if (p.gate < 0) {
        args.b += p.n * args.b_n * (p.b == ST_F32 ? 4 : 2);
        args.bias += p.has_bias ? p.n * (p.bias == ST_F32 ? 4 : 2) : 0;
    }
    args.types = storage_bits(p.c, 0) | storage_bits(p.a, 1) | storage_bits(p.b, 2) |
                 storage_bits(p.bias, 3) | storage_bits(p.residual, 4);
    return args;
}

static void check(const Product &p, const char *fault = nullptr, bool many = false)
{
    KernelCase test("pv_gemm", pv_gemm, p.what);
    test.segment(add_product(test, p));
    if (many)
        test.depends_on_batch(offsetof(GemmArgs, batch0) / 8);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// Segments that are one sum.
static void check_sum(Product p)
{
    KernelCase test("pv_gemm", pv_gemm, "a sum of segments");
    test.together = true;
    GemmArgs first = add_product(test, p);
    first.sum = 2;
    test.segment(first);
    p.has_residual = false;
    for (int64_t k : {24, 528}) {
        p.k = k;
        GemmArgs more = add_product(test, p);
        more.c = first.c;
        more.sum = -1;
        test.segment(more);
    }
    test.run();
}

int main(void)
{
    const Storage H = ST_BF16, F = ST_F32;
    Product linear = {"a linear", 72, 72, 136, 1, 1, true, true, H, H, H, F, H, true, true, false,
                      PV_ACT_SILU, 0};
    Product parts = {"parts", 40, 64, 1056, 1, 1, true, false, F, H, H, F, F, true, false, false, 0,
                     8};
    check_sum({"", 72, 136, 70, 2, 1, false, false, F, H, H, F, F, false, true, true, 0, 0});
    check(linear);
    check(parts);
    check({"its gradient for x", 70, 72, 40, 1, 2, true, false, H, H, H, F, H, false, true, false,
           0, 8});
    check({"its gradient for w", 72, 136, 70, 1, 1, false, false, F, H, H, F, F, false, true, false,
           0, 0});
    check({"a transposed", 72, 72, 40, 3, 1, false, true, H, H, H, H, H, true, true, false,
           PV_ACT_GELU, 0});
    check({"summed", 72, 64, 40, 2, 2, false, false, F, H, H, F, F, false, false, true, 0, 0});
    check({"odd sizes", 67, 35, 19, 1, 2, true, false, H, H, H, F, H, true, true, false, 0, 0});
    check({"f32 operands", 20, 24, 40, 1, 1, true, true, F, F, H, F, F, true, false, false, 0, 0});
    check({"128 x 128", 192, 256, 40, 9, 1, true, true, H, H, H, F, H, true, false, false, 0, 0},
          nullptr, true);
    check({"128 x 128, transposed", 192, 256, 40, 9, 1, false, false, H, H, H, F, H, false, false,
           false, 0, 0}, nullptr, true);
    const Storage G = ST_F16;
    check({"f16 linear", 72, 72, 136, 1, 1, true, true, G, G, G, F, G, true, true, false,
           PV_ACT_SILU, 0});
    check({"f16, its gradient for w", 72, 136, 70, 1, 1, false, false, F, G, G, F, F, false, true,
           false, 0, 0});
    check(
        {"f16, odd sizes", 67, 35, 19, 1, 2, true, false, G, G, G, F, G, true, true, false, 0, 0});
    check({"f16, f32 operands", 20, 24, 40, 1, 1, true, true, G, F, G, F, F, true, false, false, 0,
           0});
    Product gated = {"gates", 72, 72, 136, 1, 1, true, true, H, H, H, F, H, true, false, false,
                     PV_ACT_GELU, 0, 1};
    check(gated);
    check({"gates first, rows dense", 70, 40, 72, 2, 1, true, false, H, H, H, H, H, true, false,
           false, PV_ACT_SILU, 8, -1});
    check({"gates, odd, f32 operands, parts", 9, 35, 1031, 1, 1, true, true, F, F, H, F, H, true,
           false, false, 0, 1, 1});
    check({"f16 gates, 128 x 128", 140, 128, 40, 9, 1, true, true, G, G, G, F, G, true, false,
           false, PV_ACT_RELU, 0, -1},
          nullptr, true);
    Product turned = {"turned", 68, 72, 40, 2, 3, true, true, H, H, H, F, H, true, true, false,
                      PV_ACT_SILU, 0, 0, true};
    check(turned);
    check(turned, "FAULT_GEMM_RESIDUAL");
    turned.what = "turned, f16, odd, parts";
    turned.m = 9, turned.n = 35, turned.k = 1031;
    turned.a = turned.b = turned.c = turned.residual = G;
    check(turned);
    check(gated, "FAULT_GEMM_GATE");
    check(linear, "FAULT_MMA_WAIT");
    check(linear, "FAULT_MMA_SYNC");
    check(linear, "FAULT_MMA_STAGE");
    check(parts, "FAULT_TILE_PARTS");
    {
        KernelCase test("pv_gemm", pv_gemm, "bf16, three segments");
        for (int64_t m : {70, 3, 140}) {
            Product p = linear;
            p.m = m;
            test.segment(add_product(test, p));
        }
        test.run();
    }
    return finish_cases();
}
