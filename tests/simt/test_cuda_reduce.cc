// cases
/* Reductions against the CPU library: both ways of sharing the work, whole and in parts. */
#include <math.h>
#include "kernel_case.h"

struct Axis {
    int64_t size, stride;
};
struct Shape {
    const char *what;
    std::vector<Axis> kept, reduced;
    int op; // 0 sum, 1 max, 2 min
    bool residual;
};

static ReduceArgs reduce_args(KernelCase &test, const Shape &shape, bool integer)
{
    ReduceArgs args = {};
    int64_t span = 1, results = 1, axis = 0;
    args.op = shape.op;
    args.kept = (int64_t)shape.kept.size();
    args.reduced = (int64_t)shape.reduced.size();
    for (const std::vector<Axis> &axes : {shape.kept, shape.reduced})
        for (Axis a : axes) {
            args.size[axis] = a.size, args.stride[axis++] = a.stride;
            span += (a.size - 1) * a.stride;
        }
    for (Axis a : shape.kept)
        results *= a.size;
    args.x = integer ? test.integers((size_t)span, -1000, 1000) : test.input((size_t)span);
    if (shape.residual)
        args.out = args.residual = test.updated((size_t)results, 2e-6);
    else
        args.out = test.output((size_t)results, shape.op == 0 && !integer ? 2e-6 : 0,
                               integer ? ST_I64 : ST_F32);
    return args;
}

static void reduce(const Shape &shape, bool integer = false, const char *fault = nullptr,
                   int segments = 1)
{
    KernelCase test(integer ? "pv_reduce_int" : "pv_reduce", integer ? pv_reduce_int : pv_reduce,
                    shape.what);
    for (int s = 0; s < segments; s++)
        test.segment(reduce_args(test, shape, integer));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// Operands, results and residuals that are stored in half: the reference has them in f32.
static void reduce_stored(const Shape &shape, Storage x, Storage out, const char *fault = nullptr)
{
    KernelCase test("pv_reduce", pv_reduce, (std::string(shape.what) + ", stored").c_str());
    ReduceArgs args = reduce_args(test, shape, false);
    size_t results = 1, span = 1;
    for (const std::vector<Axis> &axes : {shape.kept, shape.reduced})
        for (Axis a : axes)
            span += (size_t)((a.size - 1) * a.stride);
    for (Axis a : shape.kept)
        results *= (size_t)a.size;
    double bound = out == ST_BF16 ? 4e-3 : out == ST_F16 ? 5e-4 : 2e-6;
    args.x = test.input(span, 1, 0, x);
    if (shape.residual)
        args.out = args.residual = test.updated(results, bound, out);
    else
        args.out = test.output(results, bound, out);
    args.types = out | x << 4 | (shape.residual ? out << 8 : 0);
    test.segment(args);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// Segments of different rank.
static void reduce_mixed(const Shape &one, const Shape &other)
{
    KernelCase test("pv_reduce", pv_reduce, "segments of different rank");
    test.segment(reduce_args(test, one, false));
    test.segment(reduce_args(test, other, false));
    test.run();
}

// Segments that are one sum.
static void reduce_sum(const Shape &shape, const char *fault = nullptr)
{
    KernelCase test("pv_reduce", pv_reduce, "a sum of segments");
    test.together = true;
    ReduceArgs first = reduce_args(test, shape, false);
    first.sum = 2;
    test.segment(first);
    for (int64_t part : {1, 2}) {
        Shape other = shape;
        other.residual = false;
        other.reduced[0].size += 7 * part;
        ReduceArgs args = reduce_args(test, other, false);
        args.out = first.out;
        args.sum = -1;
        test.segment(args);
    }
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

// A NaN among the elements is the result.
static void not_a_number(int op)
{
    KernelCase test("pv_reduce", pv_reduce, "a NaN");
    ReduceArgs args = reduce_args(test, {"", {{3, 40}}, {{40, 1}}, op, false}, false);
    test.set(args.x, 57, NAN);
    args.out = test.output(3, 0);
    args.kept = 1;
    test.segment(args);
    test.run();
}

int main(void)
{
    Shape rows = {"rows", {{5, 64}}, {{64, 1}}, 0, false};
    Shape columns = {"columns", {{40, 1}}, {{24, 40}}, 0, false};
    Shape all = {"all of a tensor", {}, {{20000, 1}}, 0, false};
    Shape bias = {"gradient of a bias", {{6, 100}}, {{9, 600}, {100, 1}}, 0, true};
    Shape parts = {"few columns, many rows", {{12, 1}}, {{3000, 12}}, 0, true};
    for (const Shape &shape : {rows, columns, bias, parts})
        reduce_sum(shape);
    reduce_sum(bias, "FAULT_REDUCE_SUM");
    reduce_sum({"three elements", {{40, 1}}, {{3, 40}}, 0, true});
    reduce(rows);
    reduce(columns);
    reduce(all);
    reduce(bias);
    reduce(parts);
    reduce({"odd rows", {{3, 37}}, {{37, 1}}, 0, false});
    reduce({"long rows", {{2, 2001}}, {{2001, 1}}, 0, true});
    reduce({"short rows", {{90, 5}}, {{5, 1}}, 0, false});
    reduce({"rows of fours", {{50, 12}}, {{12, 1}}, 0, false});
    reduce({"odd columns", {{3, 7}, {7, 1}}, {{11, 21}}, 0, true});
    reduce({"maxima of rows", {{4, 300}}, {{300, 1}}, 1, false});
    reduce({"minima of columns", {{36, 1}}, {{33, 36}}, 2, false});
    reduce({"maximum of parts", {}, {{9001, 1}}, 1, false});
    reduce({"two runs of axes", {{2, 600}, {5, 8}}, {{15, 40}, {8, 1}}, 0, false});
    reduce({"strided", {{4, 3}}, {{10, 24}, {2, 12}}, 0, false});
    reduce({"a broadcast", {{6, 0}}, {{16, 1}}, 0, false});
    reduce({"nothing", {{6, 1}}, {{0, 6}}, 0, true});
    reduce(rows, false, nullptr, 3);
    reduce(parts, false, nullptr, 2);
    reduce_mixed(rows, {"", {{6, 100}}, {{9, 600}, {100, 1}}, 0, false});
    reduce_mixed(columns, {"", {{2, 48}, {4, 1}}, {{4, 12}, {3, 4}}, 0, false});
    reduce_mixed(all, {"", {{2, 8000}}, {{2, 4000}, {4000, 1}}, 0, false});
    for (Storage half : {ST_BF16, ST_F16}) {
        reduce_stored(rows, half, ST_F32);
        reduce_stored(columns, half, half);
        reduce_stored(bias, half, ST_F32);
        reduce_stored(bias, ST_F32, half);
        reduce_stored(parts, half, half);
        reduce_stored({"odd columns", {{3, 7}, {7, 1}}, {{11, 21}}, 0, true}, half, half);
        reduce_stored({"maxima of rows", {{4, 300}}, {{300, 1}}, 1, false}, half, half);
    }
    reduce_stored(columns, ST_BF16, ST_F32, "FAULT_COLUMNS");
    not_a_number(1);
    not_a_number(2);
    for (int op = 0; op < 3; op++) {
        reduce({"rows of integers", {{5, 40}}, {{40, 1}}, op, false}, true);
        reduce({"columns of integers", {{9, 1}}, {{700, 9}}, op, false}, true);
    }
    reduce(columns, false, "FAULT_COLUMNS");
    return finish_cases();
}
