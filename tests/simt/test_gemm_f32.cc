// cases
#include <stddef.h>
#include "gemm_case.h"

// A product with operands dense along k or not, inside larger matrices if `gap` is not 0.
struct Product {
    const char *what;
    int64_t m, n, k, batch0, batch1;
    bool a_k, b_k;
    int64_t gap;
    bool bias, bias_of_row, residual, in_place, sum;
    int64_t act;
    int gate = 0;  // 1: gates stand behind values; -1: before
    bool turned = false; // the result, and its residual (gemm_case.h); no gap
};

static GemmArgs add_product(KernelCase &test, const Product &p)
{
    GemmArgs args = {};
    int64_t batches = p.batch0 * p.batch1, columns = p.gate ? 2 * p.n : p.n;
    args.m = p.m, args.n = p.n, args.k = p.k, args.batch0 = p.batch0, args.batch1 = p.batch1;
    args.a_m = p.a_k ? p.k + p.gap : 1, args.a_k = p.a_k ? 1 : p.m + p.gap;
    args.b_n = p.b_k ? p.k + p.gap : 1, args.b_k = p.b_k ? 1 : columns + p.gap;
    args.a1 = p.a_k ? args.a_m * p.m : args.a_k * p.k, args.a0 = args.a1 * p.batch1;
    args.b1 = p.b_k ? args.b_n * columns : args.b_k * p.k, args.b0 = args.b1 * p.batch1;
    args.c_m = p.n + p.gap;
    args.c1 = p.sum ? 0 : args.c_m * p.m, args.c0 = args.c1 * p.batch1;
    args.a = test.input((size_t)(args.a1 * batches));
    args.b = test.input((size_t)(args.b1 * batches));
    size_t c_count = (size_t)(args.c_m * p.m * (p.sum ? 1 : batches));
    args.c = p.in_place ? test.updated(c_count) : test.output(c_count);
    args.bias = p.bias ? test.input((size_t)(p.bias_of_row ? p.m : columns)) : 0;
    args.bias_axis = p.bias_of_row;
    args.r0 = args.c0, args.r1 = args.c1, args.r_m = args.c_m;
    size_t added = p.turned ? turn_result(&args) : c_count;
    args.residual = p.in_place ? args.c : p.residual ? test.input(added) : 0;
    args.act = p.act;
    args.sum_batch = p.sum;
    args.gate = p.gate * p.n;
    if (p.gate < 0) {
        args.b += p.n * args.b_n * 4;
        args.bias += p.bias ? p.n * 4 : 0;
    }
    return args;
}

static void check(const Product &p, const char *fault = nullptr)
{
    KernelCase test("pv_gemm", pv_gemm, p.what);
    test.segment(add_product(test, p));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// Segments that are one sum, the first of them with a residual; and one of its own behind them.
static void check_sum(const char *fault = nullptr)
{
    KernelCase test("pv_gemm", pv_gemm, "a sum of segments");
    test.together = true;
    Product p = {"", 36, 40, 300, 1, 1, true, false, 0, true, false, false, true, true, 0};
    GemmArgs first = add_product(test, p);
    first.sum = 2;
    test.segment(first);
    p.in_place = false;
    for (int64_t k : {20, 1031}) {
        p.k = k;
        GemmArgs more = add_product(test, p);
        more.c = first.c;
        more.sum = -1;
        test.segment(more);
    }
    test.segment(add_product(test, p));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

int main(void)
{
    check_sum();
    check_sum("FAULT_TILE_SUM");
    Product plain = {"64 x 64", 70, 68, 36, 1, 1, true, true, 0, true, false, false, false, false,
                     0};
    Product odd = {"odd sizes", 67, 35, 19, 2, 3, true, false, 0, true, true, true, false, false,
                   PV_ACT_SILU};
    Product parts = {"parts", 20, 40, 1031, 1, 1, false, true, 1, true, false, false, true, false,
                     PV_ACT_GELU};
    check(plain);
    check(odd);
    check(parts);
    check({"transposed, in fours", 68, 72, 40, 1, 2, false, false, 4, false, false, true, false,
           false, PV_ACT_RELU});
    check({"few rows", 5, 132, 520, 1, 1, true, true, 0, true, false, false, false, false, 0});
    Product narrow = {"few columns", 130, 8, 24, 1, 1, true, false, 0, true,
                      true, false, true, false, 0};
    check(narrow);
    check(narrow, "FAULT_BANKS");
    check({"summed", 24, 20, 70, 3, 4, false, false, 2, false, false, false, true, true, 0});
    {
        KernelCase test("pv_gemm", pv_gemm, "128 x 128");
        test.segment(add_product(test, {"", 180, 200, 20, 9, 1, true, false, 0, true, false, false,
                                        false, false, 0}));
        test.depends_on_batch(offsetof(GemmArgs, batch0) / 8);
        test.run();
    }
    Product turned = {"turned, in fours", 36, 68, 20, 2, 3, true, true, 0, true, false, true, false,
                      false, PV_ACT_SILU, 0, true};
    check(turned);
    check(turned, "FAULT_GEMM_RESIDUAL");
    turned.what = "turned, odd";
    turned.n = 35;
    check(turned);
    check(plain, "FAULT_TILE_SYNC");
    check(odd, "FAULT_GEMM_EDGE");
    check(parts, "FAULT_TILE_PARTS");
    {
        KernelCase test("pv_gemm", pv_gemm, "three segments");
        for (int64_t m : {70, 3, 140}) {
            Product p = {"", m, 40, 300, 1, 1, true, true, 0, true, false, false, false, false, 0};
            test.segment(add_product(test, p));
        }
        test.run();
    }
    Product gated = {"gates", 70, 72, 36, 1, 1, true, true, 0, true, false, false, false, false,
                     PV_ACT_GELU, 1};
    check(gated);
    check({"gates first, rows dense", 33, 40, 20, 2, 1, true, false, 0, false, false, false, false,
           false, PV_ACT_SILU, -1});
    check({"gates, odd, parts", 9, 35, 1031, 1, 1, true, true, 1, true, false, false, false, false,
           PV_ACT_NONE, 1});
    check({"gates, few columns", 140, 5, 24, 1, 1, true, true, 0, true, false, false, false, false,
           PV_ACT_RELU, -1});
    check(gated, "FAULT_GEMM_GATE");
    return finish_cases();
}
