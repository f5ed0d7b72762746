// Elements that move, and reductions: copies between any two strided views, fill, pick, gather.
//
// A copy first drops axes of size 1, orders the rest by the stride of the result and joins axes
// that are one run on both sides. What remains is one of three cases: runs, squares that turn
// around (one side is dense in one axis, the other in another), and single strided elements.
#include "codegen/cpu/pv_math.h"
#include "codegen/cpu/sums.h"

typedef uint8_t __attribute__((may_alias)) Unit1;
typedef uint32_t __attribute__((may_alias)) Unit4;
typedef uint64_t __attribute__((may_alias)) Unit8;

enum {
    COPY_CHUNK = 16384, // elements of a run in one task
    COPY_SQUARE = 64,   // side of a square that turns
    GRAIN = 4096,       // elements below which threads do not pay
};

typedef struct {
    int axes;
    int64_t size[8], y[8], x[8]; // strides in elements
} Layout;

static void layout_swap(Layout *at, int i, int j)
{
    Layout old = *at;
    at->size[i] = old.size[j], at->y[i] = old.y[j], at->x[i] = old.x[j];
    at->size[j] = old.size[i], at->y[j] = old.y[i], at->x[j] = old.x[i];
}

static int64_t magnitude(int64_t x)
{
    return x < 0 ? -x : x;
}

// Canonical form: descending strides of y, joined axes. false: there is no element.
static bool layout_make(Layout *at, int64_t axes, const int64_t *size, const int64_t *y,
                        const int64_t *x)
{
    at->axes = 0;
    for (int64_t i = 0; i < axes; i++) {
        if (size[i] == 0)
            return false;
        if (size[i] == 1)
            continue;
        int last = at->axes++;
        at->size[last] = size[i], at->y[last] = y[i], at->x[last] = x[i];
        for (; last > 0 && magnitude(at->y[last - 1]) < magnitude(at->y[last]); last--)
            layout_swap(at, last - 1, last);
    }
    int kept = 0;
    for (int i = 1; i < at->axes; i++) {
        if (at->y[kept] == at->y[i] * at->size[i] && at->x[kept] == at->x[i] * at->size[i]) {
            at->size[kept] *= at->size[i];
            at->y[kept] = at->y[i], at->x[kept] = at->x[i];
        } else {
            kept++;
            at->size[kept] = at->size[i], at->y[kept] = at->y[i], at->x[kept] = at->x[i];
        }
    }
    if (at->axes == 0)
        *at = (Layout){.axes = 1, .size = {1}, .y = {1}, .x = {1}};
    else
        at->axes = kept + 1;
    return true;
}

// One run of `count` elements.
PV_INLINE void copy_run(char *y, int64_t y_step, const char *x, int64_t x_step, int64_t count,
                        int64_t bytes)
{
    if (y_step == 1 && x_step == 1) {
        memcpy(y, x, (size_t)(count * bytes));
        return;
    }
    switch (bytes) {
    case 1:
        for (int64_t i = 0; i < count; i++)
            ((Unit1 *)y)[i * y_step] = ((const Unit1 *)x)[i * x_step];
        break;
    case 4:
        for (int64_t i = 0; i < count; i++)
            ((Unit4 *)y)[i * y_step] = ((const Unit4 *)x)[i * x_step];
        break;
    default:
        for (int64_t i = 0; i < count; i++)
            ((Unit8 *)y)[i * y_step] = ((const Unit8 *)x)[i * x_step];
    }
}

// A position in the first `axes` axes of a layout, and its offsets in elements.
typedef struct {
    int64_t index[8], y, x;
} Cursor;

static Cursor cursor_at(const Layout *at, int axes, int64_t number)
{
    Cursor cursor = {.y = 0};
    for (int i = axes - 1; i >= 0; i--) {
        cursor.index[i] = number % at->size[i];
        number /= at->size[i];
        cursor.y += cursor.index[i] * at->y[i];
        cursor.x += cursor.index[i] * at->x[i];
    }
    return cursor;
}

PV_INLINE void cursor_next(const Layout *at, int axes, Cursor *cursor)
{
    for (int i = axes - 1; i >= 0; i--) {
        cursor->y += at->y[i];
        cursor->x += at->x[i];
        if (++cursor->index[i] < at->size[i])
            return;
        cursor->index[i] = 0;
        cursor->y -= at->size[i] * at->y[i];
        cursor->x -= at->size[i] * at->x[i];
    }
}

static int64_t layout_count(const Layout *at, int axes)
{
    int64_t count = 1;
    for (int i = 0; i < axes; i++)
        count *= at->size[i];
    return count;
}

// Runs along the last axis; long ones in chunks.
static void copy_runs(const PvRun *run, const Layout *at, char *y, const char *x, int64_t bytes)
{
    int last = at->axes - 1;
    int64_t outer = layout_count(at, last), size = at->size[last];
    int64_t chunks = pv_ceil_div(size, COPY_CHUNK), chunk = pv_ceil_div(size, chunks);
    int64_t total = outer * chunks;
    int64_t parts = pv_least(total, outer * size < GRAIN ? 1 : 4 * (int64_t)run->threads);
#pragma omp parallel for schedule(static) num_threads(run->threads) if (parts > 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = total * part / parts, end = total * (part + 1) / parts;
        Cursor cursor = cursor_at(at, last, first / chunks);
        for (int64_t i = first; i < end; i++) {
            int64_t from = i % chunks * chunk, count = pv_least(chunk, size - from);
            if (count > 0)
                copy_run(y + (cursor.y + from * at->y[last]) * bytes, at->y[last],
                         x + (cursor.x + from * at->x[last]) * bytes, at->x[last], count, bytes);
            if (i % chunks == chunks - 1)
                cursor_next(at, last, &cursor);
        }
    }
}

// y[k * y_step + i] = x[i * x_step + k]
static void copy_square(char *y, int64_t y_step, const char *x, int64_t x_step, int64_t rows,
                        int64_t count, int64_t bytes)
{
    if (bytes == sizeof(PvReal)) {
        store_transposed((PvReal *)y, y_step, (const PvReal *)x, x_step, rows, count);
        return;
    }
    for (int64_t k = 0; k < count; k++)
        copy_run(y + k * y_step * bytes, 1, x + k * bytes, x_step, rows, bytes);
}

// y is dense in its last axis, x in axis `turn`: squares of these two.
static void copy_turned(const PvRun *run, const Layout *layout, int turn, char *y, const char *x,
                        int64_t bytes)
{
    Layout moved = *layout, *at = &moved;
    int last = at->axes - 1;
    for (int i = turn; i + 1 < last; i++)
        layout_swap(at, i, i + 1);
    int across = last - 1;
    int64_t outer = layout_count(at, across);
    int64_t rows = pv_ceil_div(at->size[last], COPY_SQUARE);
    int64_t columns = pv_ceil_div(at->size[across], COPY_SQUARE), squares = rows * columns;
    int64_t total = outer * at->size[last] * at->size[across];
#pragma omp parallel for schedule(static) num_threads(run->threads) if (total > GRAIN)
    for (int64_t i = 0; i < outer * squares; i++) {
        Cursor cursor = cursor_at(at, across, i / squares);
        int64_t row = i % squares % rows * COPY_SQUARE, column = i % squares / rows * COPY_SQUARE;
        copy_square(y + (cursor.y + row + column * at->y[across]) * bytes, at->y[across],
                    x + (cursor.x + row * at->x[last] + column) * bytes, at->x[last],
                    pv_least(COPY_SQUARE, at->size[last] - row),
                    pv_least(COPY_SQUARE, at->size[across] - column), bytes);
    }
}

static void copy(const PvRun *run, const CopyArgs *args, char *y, const char *x)
{
    Layout at;
    if (!layout_make(&at, args->axes, args->size, args->y_stride, args->x_stride))
        return;
    int last = at.axes - 1;
    if (at.y[last] == 1 && at.x[last] != 1 && at.size[last] >= 4) {
        for (int i = last - 1; i >= 0; i--) {
            if (at.x[i] == 1 && at.size[i] >= 4) {
                copy_turned(run, &at, i, y, x, args->bytes);
                return;
            }
        }
    }
    copy_runs(run, &at, y, x, args->bytes);
}

// How far a window displaces, in bytes.
static int64_t displacement(const CopyArgs *args)
{
    if (!args->offset)
        return 0;
    int64_t offset = *(const int64_t *)args->offset;
    offset = pv_most(0, pv_least(offset, args->offset_max));
    return offset * args->offset_stride * args->bytes;
}

void pv_copy(const PvRun *run, const int64_t *raw)
{
    const CopyArgs *args = (const CopyArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++, args++)
        copy(run, args, (char *)args->y, (const char *)args->x + displacement(args));
}

void pv_copy_to(const PvRun *run, const int64_t *raw)
{
    const CopyArgs *args = (const CopyArgs *)raw;
    copy(run, args, (char *)args->y + displacement(args), (const char *)args->x);
}

static void fill_one(const PvRun *run, const FillArgs *args)
{
    int64_t count = args->count;
#pragma omp parallel num_threads(run->threads) if (count > GRAIN)
    {
        switch (args->bytes) {
        case 1:
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i++)
                ((Unit1 *)args->y)[i] = (Unit1)args->value;
            break;
        case 4:
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i++)
                ((Unit4 *)args->y)[i] = (Unit4)args->value;
            break;
        default:
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i++)
                ((Unit8 *)args->y)[i] = (Unit8)args->value;
        }
    }
}

void pv_fill(const PvRun *run, const int64_t *raw)
{
    const FillArgs *args = (const FillArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        fill_one(run, &args[i]);
}

// ---- pick and gather ----

static int64_t clamp(int64_t index, int64_t size)
{
    return pv_most(0, pv_least(index, size - 1));
}

void pv_pick(const PvRun *run, const int64_t *raw)
{
    const PickArgs *args = (const PickArgs *)raw;
    const int64_t *k = (const int64_t *)args->k;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(run->threads) if (args->outer * args->inner > GRAIN)
    for (int64_t i = 0; i < args->outer; i++) {
        int64_t at = i * args->axis + clamp(k[i / args->per], args->axis);
        memcpy((PvReal *)args->y + i * args->inner, (const PvReal *)args->x + at * args->inner,
               (size_t)args->inner * sizeof(PvReal));
    }
}

void pv_pick_grad(const PvRun *run, const int64_t *raw)
{
    const PickArgs *args = (const PickArgs *)raw;
    const int64_t *k = (const int64_t *)args->k;
    int64_t block = args->axis * args->inner;
#pragma omp parallel for schedule(static) num_threads(run->threads) if (args->outer * block > GRAIN)
    for (int64_t i = 0; i < args->outer; i++) {
        PvReal *x = (PvReal *)args->x + i * block;
        memset(x, 0, (size_t)block * sizeof *x);
        memcpy(x + clamp(k[i / args->per], args->axis) * args->inner,
               (const PvReal *)args->y + i * args->inner, (size_t)args->inner * sizeof *x);
    }
}

void pv_gather(const PvRun *run, const int64_t *raw)
{
    const GatherArgs *args = (const GatherArgs *)raw;
    const int64_t *k = (const int64_t *)args->k;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(run->threads) if (args->count * args->inner > GRAIN)
    for (int64_t i = 0; i < args->count; i++)
        memcpy((PvReal *)args->y + i * args->inner,
               (const PvReal *)args->x + clamp(k[i], args->rows) * args->inner,
               (size_t)args->inner * sizeof(PvReal));
}

// Each part owns a range of rows and goes through all indices in order.
void pv_gather_grad(const PvRun *run, const int64_t *raw)
{
    const GatherArgs *args = (const GatherArgs *)raw;
    const int64_t *k = (const int64_t *)args->k;
    int64_t parts = pv_least(run->threads, args->rows);
#pragma omp parallel for schedule(static) num_threads(run->threads) if (parts > 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = args->rows * part / parts, end = args->rows * (part + 1) / parts;
        PvReal *x = (PvReal *)args->x;
        memset(x + first * args->inner, 0, (size_t)((end - first) * args->inner) * sizeof *x);
        for (int64_t i = 0; i < args->count; i++) {
            int64_t row = clamp(k[i], args->rows);
            if (row < first || row >= end)
                continue;
            const PvReal *y = (const PvReal *)args->y + i * args->inner;
            for (int64_t j = 0; j < args->inner; j++)
                x[row * args->inner + j] += y[j];
        }
    }
}

// ---- reductions ----
// The axis with the smallest stride is the inner loop. If it is reduced, each result is a sum of
// runs; if it is kept, REDUCE_BLOCK neighbouring results are summed side by side, and every
// FLUSH additions go to a second sum, so that errors stay small. Where results are few, the
// outermost reduced axis is cut into chunks, in a number that depends on the sizes alone; their
// results lie in the first thread's scratch and are added in order.

enum { REDUCE_BLOCK = 1024, FLUSH = 128, REDUCE_CHUNKS = 64, CHUNK_LEAST = 16384 };

typedef enum { REDUCE_SUM, REDUCE_MAX, REDUCE_MIN } Reduction;

typedef struct {
    Layout kept, reduced; // y: strides of the result; of `reduced` not used
    const PvReal *x;
    const PvReal *residual; // NULL: none
    Reduction op;
} Reduce;

PV_INLINE PvReal combine(Reduction op, PvReal x, PvReal y)
{
    // a NaN wins
    switch (op) {
    case REDUCE_SUM:
        return x + y;
    case REDUCE_MAX:
        return y > x || y != y ? y : x;
    case REDUCE_MIN:
        return y < x || y != y ? y : x;
    }
    return x;
}

static PvReal neutral(Reduction op)
{
    return op == REDUCE_SUM ? 0 : op == REDUCE_MAX ? -(PvReal)INFINITY : (PvReal)INFINITY;
}

static PvReal reduce_run(Reduction op, const PvReal *x, int64_t step, int64_t count)
{
    if (op == REDUCE_SUM && step == 1)
        return (PvReal)sum_of(x, count);
    PvReal value = neutral(op);
    if (op == REDUCE_SUM) {
        double sum = 0;
        for (int64_t i = 0; i < count; i++)
            sum += (double)x[i * step];
        value = (PvReal)sum;
    } else {
        for (int64_t i = 0; i < count; i++)
            value = combine(op, value, x[i * step]);
    }
    return value;
}

// One result: reduced axes `at`, the last of which is the inner loop.
static PvReal reduce_one(const Reduce *reduce, const Layout *at, const PvReal *x)
{
    int last = at->axes - 1;
    int64_t outer = layout_count(at, last);
    Cursor cursor = cursor_at(at, last, 0);
    if (reduce->op == REDUCE_SUM) {
        double sum = 0;
        for (int64_t i = 0; i < outer; i++, cursor_next(at, last, &cursor))
            sum += (double)reduce_run(REDUCE_SUM, x + cursor.x, at->x[last], at->size[last]);
        return (PvReal)sum;
    }
    PvReal value = neutral(reduce->op);
    for (int64_t i = 0; i < outer; i++, cursor_next(at, last, &cursor))
        value = combine(reduce->op, value,
                        reduce_run(reduce->op, x + cursor.x, at->x[last], at->size[last]));
    return value;
}

PV_INLINE void combine_row(Reduction op, PvReal *to, const PvReal *from, int64_t step,
                           int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = combine(op, to[i], from[i * step]);
}

static void combine_rows(Reduction op, PvReal *to, const PvReal *from, int64_t step, int64_t count)
{
    if (op == REDUCE_SUM && step == 1)
        combine_row(REDUCE_SUM, to, from, 1, count);
    else if (op == REDUCE_SUM)
        combine_row(REDUCE_SUM, to, from, step, count);
    else if (op == REDUCE_MAX)
        combine_row(REDUCE_MAX, to, from, step, count);
    else
        combine_row(REDUCE_MIN, to, from, step, count);
}

// `count` <= REDUCE_BLOCK results, `step` apart in x, side by side.
static void reduce_many(const Reduce *reduce, const Layout *at, const PvReal *x, int64_t step,
                        int64_t count, PvReal *result)
{
    PvReal part[REDUCE_BLOCK];
    int64_t total = layout_count(at, at->axes);
    Cursor cursor = cursor_at(at, at->axes, 0);
    for (int64_t i = 0; i < count; i++)
        result[i] = neutral(reduce->op);
    for (int64_t first = 0; first < total; first += FLUSH) {
        for (int64_t i = 0; i < count; i++)
            part[i] = neutral(reduce->op);
        for (int64_t i = first; i < pv_least(first + FLUSH, total); i++) {
            combine_rows(reduce->op, part, x + cursor.x, step, count);
            cursor_next(at, at->axes, &cursor);
        }
        combine_rows(reduce->op, result, part, 1, count);
    }
}

PV_INLINE PvReal plus_residual(const PvReal *residual, int64_t at, PvReal value)
{
    return residual ? residual[at] + value : value;
}

// Results [first, end) of the kept axes over the reduced axes `at`, to out[first ..].
static void reduce_part(const Reduce *reduce, const Layout *at, const PvReal *x, int64_t first,
                        int64_t end, bool side_by_side, const PvReal *residual, PvReal *out)
{
    const Layout *kept = &reduce->kept;
    int last = kept->axes - 1;
    if (!side_by_side) {
        Cursor cursor = cursor_at(kept, kept->axes, first);
        for (int64_t i = first; i < end; i++, cursor_next(kept, kept->axes, &cursor))
            out[cursor.y] = plus_residual(residual, cursor.y, reduce_one(reduce, at, x + cursor.x));
        return;
    }
    PvReal result[REDUCE_BLOCK];
    for (int64_t i = first; i < end;) {
        Cursor cursor = cursor_at(kept, kept->axes, i);
        int64_t count = pv_least(end - i, kept->size[last] - cursor.index[last]);
        count = pv_least(count, REDUCE_BLOCK);
        reduce_many(reduce, at, x + cursor.x, kept->x[last], count, result);
        for (int64_t j = 0; j < count; j++)
            out[cursor.y + j * kept->y[last]] =
                plus_residual(residual, cursor.y + j * kept->y[last], result[j]);
        i += count;
    }
}

// Axes in descending strides of x, joined.
static bool reduce_layout(Layout *at, int64_t axes, const int64_t *size, const int64_t *stride,
                          const int64_t *out)
{
    Layout turned;
    if (!layout_make(&turned, axes, size, stride, out))
        return false;
    *at = turned;
    for (int i = 0; i < turned.axes; i++)
        at->x[i] = turned.y[i], at->y[i] = turned.x[i];
    return true;
}

static void reduce_chunks(const PvRun *run, const Reduce *reduce, int64_t results, int64_t chunks,
                          bool side_by_side, PvReal *out)
{
    const Layout *reduced = &reduce->reduced;
    int64_t size = reduced->size[0], blocks = 1;
    PvReal *partial = chunks > 1 ? (PvReal *)run->scratch : out;
    int64_t grain = side_by_side ? PV_LANES : 1;
    // long rows are best read whole: results are cut only for want of chunks
    if (run->threads > 1 && results * layout_count(reduced, reduced->axes) > CHUNK_LEAST)
        blocks = pv_least(pv_ceil_div(results, grain), pv_ceil_div(4 * run->threads, chunks));
    int64_t per = pv_ceil_div(pv_ceil_div(results, blocks), grain) * grain;
    blocks = pv_ceil_div(results, per);
#pragma omp parallel for schedule(dynamic) num_threads(run->threads) if (blocks * chunks > 1)
    for (int64_t task = 0; task < blocks * chunks; task++) {
        int64_t chunk = task / blocks, block = task % blocks;
        Layout at = *reduced;
        int64_t first = size * chunk / chunks;
        at.size[0] = size * (chunk + 1) / chunks - first;
        reduce_part(reduce, &at, reduce->x + first * at.x[0], block * per,
                    pv_least((block + 1) * per, results), side_by_side,
                    chunks > 1 ? NULL : reduce->residual, partial + chunk * results);
    }
    for (int64_t i = 0; chunks > 1 && i < results; i++) {
        PvReal value = neutral(reduce->op);
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            value = combine(reduce->op, value, partial[chunk * results + i]);
        out[i] = plus_residual(reduce->residual, i, value);
    }
}

static void reduce_one_segment(const PvRun *run, const ReduceArgs *args)
{
    Reduce reduce = {.x = (const PvReal *)args->x,
                     .residual = (const PvReal *)args->residual,
                     .op = (Reduction)args->op};
    PvReal *out = (PvReal *)args->out;
    int64_t dense[8], results = 1;
    for (int64_t i = args->kept - 1; i >= 0; i--) {
        dense[i] = results;
        results *= args->size[i];
    }
    if (!reduce_layout(&reduce.kept, args->kept, args->size, args->stride, dense))
        return;
    if (!reduce_layout(&reduce.reduced, args->reduced, args->size + args->kept,
                       args->stride + args->kept, args->stride + args->kept)) {
        for (int64_t i = 0; i < results; i++)
            out[i] = plus_residual(reduce.residual, i, neutral(reduce.op));
        return;
    }
    const Layout *kept = &reduce.kept, *reduced = &reduce.reduced;
    int64_t count = layout_count(reduced, reduced->axes);
    int64_t kept_step = magnitude(kept->x[kept->axes - 1]);
    bool side_by_side =
        kept->size[kept->axes - 1] > 1 && kept_step < magnitude(reduced->x[reduced->axes - 1]);
    int64_t chunks = pv_least(REDUCE_CHUNKS, PV_REDUCE_PARTIALS / results);
    chunks = pv_least(chunks, results * count / CHUNK_LEAST);
    if (!side_by_side) // the runs of enough results are not cut
        chunks = pv_least(chunks, REDUCE_CHUNKS / results);
    chunks = pv_most(1, pv_least(chunks, reduced->size[0]));
    reduce_chunks(run, &reduce, results, chunks, side_by_side, out);
}

void pv_reduce(const PvRun *run, const int64_t *raw)
{
    const ReduceArgs *args = (const ReduceArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++) {
        ReduceArgs one = args[i];
        if (one.sum < 0)           // a part of a sum: to what those before it left
            one.residual = one.out;
        reduce_one_segment(run, &one);
    }
}
