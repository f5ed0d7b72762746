// link: pvdm_kernels32
// Copies, fills, pick, gather and reductions of the CPU kernel library against plain loops.
#include "tests/unit/kernel_check.h"

// Offset of element `number` (row-major) of a view.
static int64_t place(int64_t number, int64_t axes, const int64_t *size, const int64_t *stride)
{
    int64_t at = 0;
    for (int64_t i = axes - 1; i >= 0; i--) {
        at += number % size[i] * stride[i];
        number /= size[i];
    }
    return at;
}

static int64_t product(int64_t axes, const int64_t *size)
{
    int64_t count = 1;
    for (int64_t i = 0; i < axes; i++)
        count *= size[i];
    return count;
}

// x in the order `perm` of axes of sizes `size` (those of y), both with a gap after the last axis.
static void check_copy(int64_t axes, const int64_t *size, const int *perm, bool flip,
                       bool broadcast)
{
    CopyArgs args = {.bytes = sizeof(PvReal), .axes = axes};
    int64_t x_size = 1, y_size = 1;
    for (int64_t i = axes - 1; i >= 0; i--) {
        args.size[i] = size[i];
        args.y_stride[i] = y_size;
        y_size *= size[i];
        args.x_stride[perm[i]] = x_size;
        x_size *= size[perm[i]];
        if (i == axes - 1) {
            y_size += 3;
            x_size += 2;
        }
    }
    PvReal *x = random_array(x_size);
    Output out = output(y_size);
    PvReal *from = x;
    if (broadcast)
        args.x_stride[0] = 0;
    if (flip) {
        from += args.x_stride[axes - 1] * (size[axes - 1] - 1);
        args.x_stride[axes - 1] = -args.x_stride[axes - 1];
    }
    args.x = (int64_t)from;
    args.y = (int64_t)out.data;
    for (int64_t i = 0; i < product(axes, size); i++)
        out.expected[place(i, axes, size, args.y_stride)] =
            (double)from[place(i, axes, size, args.x_stride)];
    check("copy", pv_copy, &args, 0, &out, 1, 0);
    release();
}

static void test_copy(void **state)
{
    (void)state;
    const int64_t sizes[][4] = {{1, 1, 1, 1},    {2, 3, 4, 5},    {1, 70, 1, 33}, {3, 64, 2, 100},
                                {17, 16, 3, 16}, {2, 130, 5, 90}, {8, 1, 128, 2}};
    const int perms[][4] = {{0, 1, 2, 3}, {0, 1, 3, 2}, {0, 3, 1, 2},
                            {3, 2, 1, 0}, {2, 0, 3, 1}, {1, 0, 2, 3}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t p = 0; p < sizeof perms / sizeof *perms; p++) {
            for (int extra = 0; extra < 4; extra++)
                check_copy(4, sizes[s], perms[p], extra & 1, extra & 2);
        }
    }
    check_copy(1, (int64_t[]){100000}, (int[]){0}, false, false);
    check_copy(1, (int64_t[]){100000}, (int[]){0}, true, false);
}

static void test_copy_bytes(void **state)
{
    (void)state;
    enum { ROWS = 70, COLUMNS = 90 };
    static uint8_t x[ROWS * COLUMNS * 8], y[ROWS * COLUMNS * 8];
    for (size_t i = 0; i < sizeof x; i++)
        x[i] = (uint8_t)(i * 31 ^ i >> 5);
    for (int64_t bytes = 1; bytes <= 8; bytes = bytes == 1 ? 4 : 2 * bytes) {
        CopyArgs args = {.y = (int64_t)y,
                         .x = (int64_t)x,
                         .bytes = bytes,
                         .axes = 2,
                         .size = {COLUMNS, ROWS},
                         .y_stride = {ROWS, 1},
                         .x_stride = {1, COLUMNS}};
        launch(pv_copy, &args, 0, 2);
        for (int64_t i = 0; i < COLUMNS; i++) {
            for (int64_t j = 0; j < ROWS; j++)
                assert_memory_equal(y + (i * ROWS + j) * bytes, x + (j * COLUMNS + i) * bytes,
                                    (size_t)bytes);
        }
        FillArgs fill = {
            .y = (int64_t)y, .count = 5000, .bytes = bytes, .value = 0x0102030405060708};
        memset(y, 0, sizeof y);
        launch(pv_fill, &fill, 0, 2);
        for (int64_t i = 0; i < 5001 * bytes; i++)
            assert_int_equal(y[i], i < 5000 * bytes ? 8 - i % bytes : 0);
    }
}

static void test_window(void **state)
{
    (void)state;
    for (int64_t offset = -1; offset < 8; offset++) {
        int64_t taken = offset < 0 ? 0 : offset > 6 ? 6 : offset;
        PvReal *x = random_array(3 * 10 * 7);
        Output out = output(3 * 4 * 7), back = output(3 * 10 * 7);
        CopyArgs args = {.y = (int64_t)out.data,
                         .x = (int64_t)x,
                         .bytes = sizeof(PvReal),
                         .axes = 3,
                         .offset = (int64_t)&offset,
                         .offset_stride = 7,
                         .offset_max = 6,
                         .size = {3, 4, 7},
                         .y_stride = {28, 7, 1},
                         .x_stride = {70, 7, 1}};
        for (int64_t i = 0; i < 84; i++)
            out.expected[i] = (double)x[i / 28 * 70 + taken * 7 + i % 28];
        check("window", pv_copy, &args, 0, &out, 1, 0);
        CopyArgs grad = args;
        grad.x = (int64_t)x;
        grad.y = (int64_t)back.data;
        memcpy(grad.x_stride, args.y_stride, sizeof grad.x_stride);
        memcpy(grad.y_stride, args.x_stride, sizeof grad.y_stride);
        for (int64_t i = 0; i < 84; i++)
            back.expected[i / 28 * 70 + taken * 7 + i % 28] = (double)x[i];
        check("window grad", pv_copy_to, &grad, 0, &back, 1, 0);
        release();
    }
}

static void test_pick_gather(void **state)
{
    (void)state;
    enum { OUTER = 12, PER = 3, AXIS = 5, INNER = 400, COUNT = 50, ROWS = 9 };
    const int64_t k[OUTER / PER] = {4, 0, 77, -3};
    PvReal *x = random_array(OUTER * AXIS * INNER), *dy = random_array(COUNT * INNER);
    Output y = output(OUTER * INNER), dx = output(OUTER * AXIS * INNER);
    PickArgs pick = {.y = (int64_t)y.data,
                     .x = (int64_t)x,
                     .k = (int64_t)k,
                     .outer = OUTER,
                     .per = PER,
                     .axis = AXIS,
                     .inner = INNER};
    memset(dx.expected, 0, sizeof *dx.expected * (size_t)dx.count);
    for (int64_t i = 0; i < OUTER * INNER; i++) {
        int64_t o = i / INNER, index = k[o / PER] < 0       ? 0
                                       : k[o / PER] >= AXIS ? AXIS - 1
                                                            : k[o / PER];
        int64_t at = (o * AXIS + index) * INNER + i % INNER;
        y.expected[i] = (double)x[at];
        dx.expected[at] = (double)dy[i];
    }
    check("pick", pv_pick, &pick, 0, &y, 1, 0);
    pick.y = (int64_t)dy;
    pick.x = (int64_t)dx.data;
    check("pick grad", pv_pick_grad, &pick, 0, &dx, 1, 0);

    int64_t index[COUNT];
    Output rows = output(COUNT * INNER), sums = output(ROWS * INNER);
    memset(sums.expected, 0, sizeof *sums.expected * (size_t)sums.count);
    for (int64_t i = 0; i < COUNT; i++) {
        index[i] = i * 7 % 11 - 1;
        int64_t row = index[i] < 0 ? 0 : index[i] >= ROWS ? ROWS - 1 : index[i];
        for (int64_t j = 0; j < INNER; j++) {
            rows.expected[i * INNER + j] = (double)x[row * INNER + j];
            sums.expected[row * INNER + j] += (double)dy[i * INNER + j];
        }
    }
    GatherArgs gather = {.y = (int64_t)rows.data,
                         .x = (int64_t)x,
                         .k = (int64_t)index,
                         .count = COUNT,
                         .rows = ROWS,
                         .inner = INNER};
    check("gather", pv_gather, &gather, 0, &rows, 1, 0);
    gather.y = (int64_t)dy;
    gather.x = (int64_t)sums.data;
    check("gather grad", pv_gather_grad, &gather, 0, &sums, 1, 50);
    release();
}

// Axes of x in memory order `perm`: kept ones first in `size`.
static void check_reduce(int64_t op, int64_t kept, int64_t reduced, const int64_t *size,
                         const int *perm)
{
    ReduceArgs args = {.op = op, .kept = kept, .reduced = reduced};
    int64_t step = 1, axes = kept + reduced;
    for (int64_t i = axes - 1; i >= 0; i--) {
        args.size[perm[i]] = size[perm[i]];
        args.stride[perm[i]] = step;
        step *= size[perm[i]];
    }
    PvReal *x = random_array(step);
    int64_t results = product(kept, size), count = product(reduced, size + kept);
    Output out = output(results);
    args.x = (int64_t)x;
    args.out = (int64_t)out.data;
    PvReal *residual = op == 0 && kept % 2 == 0 ? random_array(results) : NULL;
    args.residual = (int64_t)residual;
    for (int64_t i = 0; i < results; i++) {
        double value = op == 0 ? 0 : op == 1 ? -INFINITY : INFINITY;
        const PvReal *at = x + place(i, kept, size, args.stride);
        for (int64_t j = 0; j < count; j++) {
            double y = (double)at[place(j, reduced, size + kept, args.stride + kept)];
            value = op == 0 ? value + y : op == 1 ? fmax(value, y) : fmin(value, y);
        }
        out.expected[i] = value + (residual ? (double)residual[i] : 0);
    }
    char name[100];
    snprintf(name, sizeof name, "reduce %lld: %lld of %lld, first axis %d", (long long)op,
             (long long)count, (long long)results, perm[0]);
    check(name, pv_reduce, &args, pv_reduce_scratch(&args, sizeof(PvReal)), &out, 1,
          op == 0 ? 20 * sqrt((double)count) : 0);
    release();
}

static void test_reduce(void **state)
{
    (void)state;
    const int64_t sizes[][4] = {{3, 4, 5, 6},      {1, 1, 300, 300}, {64, 7, 50, 33},
                                {1, 2, 1, 100000}, {2, 130, 3, 9},   {100, 384, 2, 1},
                                {5, 1, 1, 1}};
    const int perms[][4] = {{0, 1, 2, 3}, {2, 3, 0, 1}, {0, 2, 1, 3}, {3, 1, 2, 0}, {2, 0, 3, 1}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t p = 0; p < sizeof perms / sizeof *perms; p++) {
            for (int64_t op = 0; op < 3; op++) {
                for (int64_t kept = 0; kept <= 4; kept++)
                    check_reduce(op, kept, 4 - kept, sizes[s], perms[p]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy),   cmocka_unit_test(test_copy_bytes),
        cmocka_unit_test(test_window), cmocka_unit_test(test_pick_gather),
        cmocka_unit_test(test_reduce),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
