// cases
/* Copies, fills, picks and gathers against the CPU library, at small shapes of every path. */
#include <stdlib.h>
#include <string.h>
#include "kernel_case.h"

struct Axis {
    int64_t size, y, x; // strides in elements
};

static int64_t array(KernelCase &test, int64_t bytes, int64_t count, bool written)
{
    if (written)
        return test.output((size_t)count, 0, bytes == 4 ? ST_F32 : bytes == 8 ? ST_I64 : ST_BYTE);
    return bytes == 4   ? test.input((size_t)count)
           : bytes == 8 ? test.integers((size_t)count, -9, 1 << 20)
                        : test.bytes((size_t)count);
}

static CopyArgs copy_args(KernelCase &test, int64_t bytes, const std::vector<Axis> &axes)
{
    CopyArgs args = {};
    int64_t y_span = 1, x_span = 1, x_first = 0;
    args.bytes = bytes;
    args.axes = (int64_t)axes.size();
    for (size_t i = 0; i < axes.size(); i++) {
        args.size[i] = axes[i].size, args.y_stride[i] = axes[i].y, args.x_stride[i] = axes[i].x;
        y_span += (axes[i].size - 1) * axes[i].y;
        x_span += (axes[i].size - 1) * llabs(axes[i].x);
        if (axes[i].x < 0)
            x_first -= (axes[i].size - 1) * axes[i].x;
    }
    args.y = array(test, bytes, y_span, true);
    args.x = array(test, bytes, x_span, false) + x_first * bytes;
    return args;
}

static void copy(const char *what, int64_t bytes, const std::vector<Axis> &axes,
                 const char *fault = nullptr, int segments = 1)
{
    KernelCase test("pv_copy", pv_copy, what);
    for (int s = 0; s < segments; s++)
        test.segment(copy_args(test, bytes, axes));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void copies(void)
{
    copy("a run", 4, {{1200, 1, 1}});
    copy("rows of a wider matrix", 4, {{5, 12, 20}, {12, 1, 1}});
    copy("rows that are no multiple of 16 bytes", 4, {{7, 9, 11}, {9, 1, 1}});
    copy("bytes", 1, {{3, 160, 80}, {80, 1, 1}});
    copy("odd bytes", 1, {{3, 7, 9}, {7, 1, 1}});
    copy("int64", 8, {{3, 10, 6}, {6, 1, 1}});
    copy("repeated", 4, {{6, 8, 0}, {8, 1, 1}});
    copy("backwards", 4, {{5, 6, 6}, {6, 1, -1}});
    copy("axes in another order", 4, {{4, 1, 30}, {3, 20, 10}, {5, 4, 2}});
    copy("one element", 4, {});
    copy("a result with gaps", 4, {{3, 40, 8}, {8, 2, 1}});
    copy("transposed", 4, {{40, 35, 1}, {35, 1, 40}});
    copy("transposed bytes", 1, {{33, 64, 1}, {64, 1, 33}});
    copy("transposed int64", 8, {{9, 8, 1}, {8, 1, 9}});
    copy("heads", 4, {{2, 480, 480}, {3, 160, 16}, {10, 16, 48}, {16, 1, 1}});
    copy("images to channels last", 4, {{2, 720, 720}, {5, 144, 144}, {16, 9, 1}, {9, 1, 16}});
    copy("segments", 4, {{7, 9, 11}, {9, 1, 1}}, nullptr, 3);
    copy("segments, transposed", 4, {{40, 35, 1}, {35, 1, 40}}, nullptr, 2);
    copy("rows that are no multiple of 16 bytes", 4, {{7, 9, 11}, {9, 1, 1}}, "FAULT_END");
    copy("transposed", 4, {{40, 35, 1}, {35, 1, 40}}, "FAULT_TILE");
}

// Segments of different rank.
static void copy_mixed(void)
{
    KernelCase test("pv_copy", pv_copy, "segments of different rank");
    test.segment(copy_args(test, 4, {{5, 12, 20}, {12, 1, 1}}));
    test.segment(copy_args(test, 4, {{2, 60, 100}, {5, 12, 20}, {3, 4, 1}, {4, 1, 5}}));
    test.segment(copy_args(test, 4, {{1100, 1, 1}}));
    test.run();
}

// A window of x (or of y) that begins at an index in memory, within bounds or not.
static void window(const char *what, bool to, int64_t index, int64_t row)
{
    KernelCase test(to ? "pv_copy_to" : "pv_copy", to ? pv_copy_to : pv_copy, what);
    CopyArgs args = copy_args(test, 4, {{4, to ? 3 * row : row, to ? row : 3 * row}, {row, 1, 1}});
    (to ? args.y : args.x) =
        to ? test.output((size_t)(13 * row), 0) : test.input((size_t)(13 * row));
    args.offset = test.integers(1, 0, 1);
    args.offset_stride = row;
    args.offset_max = 2;
    test.set_integer(args.offset, 0, index);
    test.segment(args);
    test.run();
}

static float rounded(float value, int64_t storage)
{
    uint32_t bits;
    if (storage == PV_STORE_F16)
        return (float)(_Float16)value;
    if (storage == PV_STORE_BF16) {
        memcpy(&bits, &value, 4);
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
        memcpy(&value, &bits, 4);
    }
    return value;
}

// A copy that rounds: the host has all elements in f32.
static void convert_copy(const PvRun *, const int64_t *args)
{
    const CopyArgs &a = *(const CopyArgs *)args;
    int64_t elements = 1;
    for (int64_t i = 0; i < a.axes; i++)
        elements *= a.size[i];
    for (int64_t item = 0; item < elements; item++) {
        int64_t rest = item, to = 0, from = 0;
        for (int64_t i = a.axes; i-- > 0; rest /= a.size[i]) {
            to += rest % a.size[i] * a.y_stride[i];
            from += rest % a.size[i] * a.x_stride[i];
        }
        ((float *)a.y)[to] = rounded(((const float *)a.x)[from], a.types & 15);
    }
}

static CopyArgs convert_args(KernelCase &test, Storage y, Storage x, const std::vector<Axis> &axes)
{
    CopyArgs args = {};
    size_t y_span = 1, x_span = 1;
    args.bytes = 4;
    args.axes = (int64_t)axes.size();
    args.types = y | x << 4;
    for (size_t i = 0; i < axes.size(); i++) {
        args.size[i] = axes[i].size, args.y_stride[i] = axes[i].y, args.x_stride[i] = axes[i].x;
        y_span += (size_t)((axes[i].size - 1) * axes[i].y);
        x_span += (size_t)((axes[i].size - 1) * axes[i].x);
    }
    args.y = test.output(y_span, 1e-12, y);
    args.x = test.input(x_span, 3, 0, x);
    return args;
}

static void convert(const char *what, Storage y, Storage x, const std::vector<Axis> &axes,
                    int segments = 1, const char *fault = nullptr)
{
    KernelCase test("pv_copy", convert_copy, what);
    for (int s = 0; s < segments; s++)
        test.segment(convert_args(test, y, x, axes));
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void converts(void)
{
    const std::vector<Axis> run = {{1200, 1, 1}}, rows = {{7, 9, 11}, {9, 1, 1}};
    const std::vector<Axis> turned = {{2, 720, 720}, {5, 144, 144}, {16, 9, 1}, {9, 1, 16}};
    convert("f32 to bf16", ST_BF16, ST_F32, run);
    convert("bf16 to f32", ST_F32, ST_BF16, rows);
    convert("f32 to f16", ST_F16, ST_F32, rows);
    convert("f16 to f32, turned", ST_F32, ST_F16, turned);
    convert("f32 to bf16, turned, two segments", ST_BF16, ST_F32, turned, 2);
    convert("bf16, gaps in both", ST_F32, ST_BF16, {{3, 40, 50}, {8, 2, 3}});
    convert("f32 to bf16", ST_BF16, ST_F32, run, 1, "FAULT_CONVERT_END");
}

static void fill(const char *what, int64_t bytes, int64_t count, int64_t skip,
                 const char *fault = nullptr)
{
    KernelCase test("pv_fill", pv_fill, what);
    FillArgs args = {};
    args.y = array(test, bytes, count + skip, true) + skip * bytes;
    args.count = count;
    args.bytes = bytes;
    args.value = 0x3f9e0419ll + (bytes == 8 ? 1ll << 40 : 0);
    test.segment(args);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void pick(const char *what, bool grad, int64_t inner, const char *fault = nullptr)
{
    KernelCase test(grad ? "pv_pick_grad" : "pv_pick", grad ? pv_pick_grad : pv_pick, what);
    PickArgs args = {};
    args.outer = 6, args.per = 2, args.axis = 5, args.inner = inner;
    size_t rows = 6 * (size_t)inner;
    args.y = grad ? test.input(rows) : test.output(rows, 0);
    args.x = grad ? test.output(rows * 5, 0) : test.input(rows * 5);
    args.k = test.integers(3, -2, 8); // some are out of range
    test.set_integer(args.k, 0, 1);
    test.set_integer(args.k, 1, -3);
    test.set_integer(args.k, 2, 7);
    test.segment(args);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

static void gather(const char *what, bool grad, int64_t count, int64_t rows, int64_t inner,
                   const char *fault = nullptr)
{
    KernelCase test(grad ? "pv_gather_grad" : "pv_gather", grad ? pv_gather_grad : pv_gather, what);
    GatherArgs args = {};
    args.count = count, args.rows = rows, args.inner = inner;
    args.y = grad ? test.input((size_t)(count * inner)) : test.output((size_t)(count * inner), 0);
    args.x = grad ? test.output((size_t)(rows * inner), 1e-6) : test.input((size_t)(rows * inner));
    args.k = test.integers((size_t)count, -1, rows + 1);
    test.set_integer(args.k, 0, rows);
    test.segment(args);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

int main(void)
{
    copies();
    copy_mixed();
    converts();
    window("a window", false, 1, 8);
    window("a window, clamped", false, 9, 7);
    window("a window before the begin", false, -4, 8);
    window("into a window", true, 2, 8);
    window("into a window, odd", true, 5, 3);
    fill("f32", 4, 5003, 0);
    fill("f32, not aligned", 4, 77, 1);
    fill("bytes", 1, 1000, 0);
    fill("int64", 8, 9, 1);
    fill("f32", 4, 5003, 0, "FAULT_FILL_END");
    pick("rows of 8", false, 8);
    pick("rows of 3", false, 3);
    pick("rows of 8", true, 8);
    pick("single elements", true, 1);
    gather("rows of 12", false, 9, 4, 12);
    gather("rows of 5", false, 9, 4, 5);
    gather("more indices than a warp", true, 75, 3, 9);
    gather("more columns than a block", true, 6, 4, 300);
    pick("rows of 8", false, 8, "FAULT_INDEX");
    gather("more indices than a warp", true, 75, 3, 9, "FAULT_CLAMP");
    return finish_cases();
}
