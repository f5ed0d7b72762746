// Gradients of 3 x 3 kernels by minimal filtering (winograd.h), of one segment or of several
// that are one sum.
//
// For a batch of tiles, all threads transform x to V[point][channel][tile] and dy to
// Y[point][panel of PV_LANES rows][tile][row], both in the first thread's scratch. Then a task owns
// PV_LANES rows (channels of dy) and some channels of x: for PV_ROWS channels at a time it makes
// the sums over tiles of V Y[channel][row], one register tile for each point, and from these 9
// taps. The taps of a later batch are added to those of the ones before, in their order. Where
// products are split (split.h), a task owns several panels of rows and of channels, so that each
// panel of V and Y, which it splits, serves several products.
#include "codegen/cpu/split.h"
#include "codegen/cpu/winograd.h"

enum {
    CHANNELS_AT_ONCE = 8,   // of x, for a thread that transforms
    LINE = 64 / sizeof(PvReal),
    TILE_POINT = PV_ROWS * PV_LANES + LINE,
};

typedef struct {
    const ConvArgs *args;           // of the first segment
    TileWalk walk;
    int64_t rows, channels;         // of dy, of x
    int64_t row_room;               // rows, whole tiles of PV_LANES
    PvReal *v, *y;
    int64_t v_point, y_point;       // steps from point to point
    int64_t y_panel;                // from panel of PV_LANES rows to panel
} WinoGrad;

// PV_ROWS channels of 36 sums, as register tiles, and the taps that come of them.
typedef struct {
    PvReal *sums;                   // [point][channel][PV_LANES]
    PvReal *taps;                   // [channel, tap][PV_LANES]
} WinoGradScratch;

static __attribute__((noinline)) void multiply_sums(int64_t rows, int64_t lanes, int64_t k,
                                                    const PvReal *a, int64_t a_row,
                                                    const PvReal *b, int64_t b_step, PvReal *c)
{
    tile_choose(rows, lanes, k, a, a_row, 1, b, b_step, NULL, c, PV_LANES, false);
}

// ---- dy ----

// Up to 4 x 4 results of one tile: to[i * 4 + j], zeros outside.
PV_INLINE void load_tile(PvReal *to, const PvReal *from, int64_t step, int64_t rows,
                         int64_t columns)
{
    if (rows >= WINO_OUT && columns >= WINO_OUT) {
#pragma GCC unroll 4
        for (int i = 0; i < WINO_OUT; i++)
            memcpy(to + i * WINO_OUT, from + i * step, WINO_OUT * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < WINO_OUT; i++)
        for (int64_t j = 0; j < WINO_OUT; j++)
            to[i * WINO_OUT + j] = i < rows && j < columns ? from[i * step + j] : 0;
}

// A dy A^T of one tile of PV_WIDTH rows, `row_step` apart: to[point * point_step + row]
PV_INLINE void transform_result(PvReal *to, int64_t point_step, const PvReal *from,
                                int64_t row_step, int64_t there, int64_t step, int64_t rows,
                                int64_t columns)
{
    PvReal value[PV_WIDTH][WINO_OUT * WINO_OUT];
    PvVec y[WINO_OUT * WINO_OUT], column[WINO_IN][WINO_OUT];
    for (int64_t row = 0; row < PV_WIDTH; row++) {
        if (row < there)
            load_tile(value[row], from + row * row_step, step, rows, columns);
        else
            memset(value[row], 0, sizeof value[row]);
    }
    for (int part = 0; part < WINO_OUT * WINO_OUT / PV_WIDTH; part++) {
        PvVec *x = y + part * PV_WIDTH;
#pragma GCC unroll 16
        for (int row = 0; row < PV_WIDTH; row++)
            x[row] = vec_load(value[row] + part * PV_WIDTH);
        vec_transpose(x);
    }
#pragma GCC unroll 4
    for (int j = 0; j < WINO_OUT; j++)
        wino_output_adjoint(&column[0][j], WINO_OUT,
                            (PvVec[]){y[j], y[4 + j], y[8 + j], y[12 + j]});
#pragma GCC unroll 6
    for (int i = 0; i < WINO_IN; i++) {
        PvVec u[WINO_IN];
        wino_output_adjoint(u, 1, column[i]);
#pragma GCC unroll 6
        for (int j = 0; j < WINO_IN; j++, to += point_step)
            vec_store(to, u[j]);
    }
}

// Rows m0 ... of dy, one vector of them, for all tiles of a batch.
static void transform_results(const WinoGrad *grad, const TileBatch *batch, int64_t m0)
{
    int64_t there = pv_least(PV_WIDTH, grad->rows - m0);
    for (int i = 0; i < batch->count; i++) {
        const TilePart *part = &batch->part[i];
        const ConvArgs *args = grad->args + part->which;
        Box box = unfold_box(&grad->walk.unfold[part->which], part->box);
        PvReal *to = grad->y + m0 / PV_LANES * grad->y_panel + part->first * PV_LANES +
                     m0 % PV_LANES;
        int64_t lines = box.count * box.size[0] * box.size[1];
        for (int64_t line = 0; line < lines; line++) {
            int64_t image = box.image + line / (box.size[0] * box.size[1]);
            int64_t d = box.first[0] + line / box.size[1] % box.size[0];
            int64_t h = (box.first[1] + line % box.size[1]) * WINO_OUT;
            const PvReal *from = (const PvReal *)args->y + image * args->y_image +
                                 m0 * args->y_channel + (d * args->out[1] + h) * args->out[2];
            for (int64_t tile = 0; tile < box.size[2]; tile++, to += PV_LANES) {
                int64_t w = (box.first[2] + tile) * WINO_OUT;
                transform_result(to, grad->y_point, from + w, args->y_channel, there, args->out[2],
                                 args->out[1] - h, args->out[2] - w);
            }
        }
    }
}

// ---- taps ----

// Taps of one channel from its sums, one vector of rows.
PV_INLINE void sum_taps(PvReal *to, const PvReal *sums, int64_t point_step)
{
    PvVec column[3][WINO_IN];
#pragma GCC unroll 6
    for (int j = 0; j < WINO_IN; j++) {
        PvVec u[WINO_IN];
#pragma GCC unroll 6
        for (int i = 0; i < WINO_IN; i++)
            u[i] = vec_load(sums + (i * WINO_IN + j) * point_step);
        wino_filter_adjoint(&column[0][j], WINO_IN, u);
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) {
        PvVec tap[3];
        wino_filter_adjoint(tap, 1, column[i]);
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++)
            vec_store(to + (i * 3 + j) * PV_LANES, tap[j]);
    }
}

// taps[count][PV_LANES] of rows m0 ... to their places, plus what is added to them,
// which may lie there
static void store_taps(const WinoGrad *grad, const PvReal *taps, const PvReal *added, int64_t m0,
                       int64_t rows, int64_t first, int64_t count)
{
    int64_t step = grad->channels * 9;
    PvReal *out = (PvReal *)grad->args->w;
    PvReal square[PV_WIDTH * PV_WIDTH] __attribute__((aligned(64)));
    for (int64_t m = 0; m < rows; m += PV_WIDTH) {
        int64_t high = pv_least(PV_WIDTH, rows - m);
        for (int64_t k = 0; k < count; k += PV_WIDTH) {
            int64_t wide = pv_least(PV_WIDTH, count - k), at = (m0 + m) * step + first + k;
            pack_square(square, PV_WIDTH, taps + k * PV_LANES + m, PV_LANES, wide, PV_WIDTH);
            for (int64_t i = 0; i < high; i++, at += step) {
                const PvReal *from = square + i * PV_WIDTH;
                if (wide == PV_WIDTH) {
                    PvVec value = vec_load(from);
                    vec_store(out + at, added ? value + vec_load(added + at) : value);
                    continue;
                }
                for (int64_t j = 0; j < wide; j++)
                    out[at + j] = added ? from[j] + added[at + j] : from[j];
            }
        }
    }
}

// ---- by split.h ----

#if PV_SPLIT

enum {
    SPLIT_SUMS = SPLIT_ROWS * PV_LANES, // a register tile
    SPLIT_POINT = PV_SPLIT_SUMS * PV_SPLIT_SUMS * SPLIT_SUMS + LINE,
};

// Up to PV_SPLIT_SUMS panels of rows and of channels, from m0 and c0 on.
typedef struct {
    int64_t m0, rows, c0, channels;
} SplitTask;

// 36 sums of the task, [point][panel of channels][panel of rows]: each element of V and Y is split
// once.
static void split_sums(const WinoGrad *grad, const TileBatch *batch, const SplitTask *task,
                       PvReal *scratch, PvReal *sums)
{
    int64_t room = batch->room, size = split_words(room), v_step = tile_pitch(room);
    PvReal *a = scratch, *b = scratch + size;
    split_begin();
    for (int point = 0; point < WINO_POINTS; point++) {
        const PvReal *v = grad->v + point * grad->v_point + task->c0 * v_step;
        const PvReal *y = grad->y + point * grad->y_point + task->m0 / PV_LANES * grad->y_panel;
        PvReal *to = sums + point * SPLIT_POINT;
        for (int64_t m = 0; m < task->rows; m += PV_LANES)
            split_columns(b + m / PV_LANES * size, y + m / PV_LANES * grad->y_panel, PV_LANES,
                          batch->tiles);
        for (int64_t c = 0; c < task->channels; c += SPLIT_ROWS) {
            int64_t high = pv_least(SPLIT_ROWS, task->channels - c);
            split_rows(a, v + c * v_step, v_step, high, room);
            for (int64_t m = 0; m < task->rows; m += PV_LANES, to += SPLIT_SUMS)
                split_multiply(high, pv_least(PV_LANES, task->rows - m), batch->tiles, a,
                               b + m / PV_LANES * size, to, PV_LANES, false, NULL);
        }
    }
    split_end();
}

// grad_task by split.h.
static void split_task(const WinoGrad *grad, const TileBatch *batch, const SplitTask *task,
                       PvReal *scratch, const PvReal *added)
{
    PvReal *taps = scratch + WINO_POINTS * SPLIT_POINT, *sums = scratch;
    split_sums(grad, batch, task, taps + SPLIT_SUMS * 9, sums);
    for (int64_t c = 0; c < task->channels; c += SPLIT_ROWS) {
        for (int64_t m = 0; m < task->rows; m += PV_LANES, sums += SPLIT_SUMS) {
            int64_t high = pv_least(SPLIT_ROWS, task->channels - c);
            int64_t wide = pv_least(PV_LANES, task->rows - m);
            for (int64_t i = 0; i < high; i++)
                for (int64_t lane = 0; lane < wide; lane += PV_WIDTH)
                    sum_taps(taps + i * 9 * PV_LANES + lane, sums + i * PV_LANES + lane,
                             SPLIT_POINT);
            store_taps(grad, taps, added, task->m0 + m, wide, (task->c0 + c) * 9, high * 9);
        }
    }
}

#endif

// Rows and channels of a task by split.h: fewer if there were too few tasks.
static void split_cut(const WinoGrad *grad, int threads, int64_t *rows, int64_t *channels)
{
    *rows = *channels = PV_SPLIT_SUMS * PV_MAX_SPLIT_ROWS;
    while (threads > 1 && *rows > PV_MAX_SPLIT_ROWS &&
           pv_ceil_div(grad->rows, *rows) * pv_ceil_div(grad->channels, *channels) < 2 * threads)
        *(*rows >= *channels ? rows : channels) /= 2;
}

// ---- launches ----

// Rows m0 ..., up to PV_LANES, of dy with channels c0 .. c1 - 1 of x.
static void grad_task(const WinoGrad *grad, const WinoGradScratch *scratch, const TileBatch *batch,
                      const PvReal *added, int64_t m0, int64_t c0, int64_t c1)
{
    int64_t rows = pv_least(PV_LANES, grad->rows - m0), v_step = tile_pitch(batch->room);
    for (int64_t c = c0; c < c1; c += PV_ROWS) {
        int64_t count = pv_least(PV_ROWS, c1 - c);
        for (int point = 0; point < WINO_POINTS; point++)
            multiply_sums(count, rows, batch->tiles,
                          grad->v + point * grad->v_point + c * v_step, v_step,
                          grad->y + point * grad->y_point + m0 / PV_LANES * grad->y_panel, PV_LANES,
                          scratch->sums + point * TILE_POINT);
        for (int64_t i = 0; i < count; i++)
            for (int64_t lane = 0; lane < rows; lane += PV_WIDTH)
                sum_taps(scratch->taps + i * 9 * PV_LANES + lane,
                         scratch->sums + i * PV_LANES + lane, TILE_POINT);
        store_taps(grad, scratch->taps, added, m0, rows, c * 9, count * 9);
    }
}

// How tiles, V and Y are laid out.
static WinoGrad grad_of(const PvRun *run, const ConvArgs *args, const Unfold *unfolds, int count)
{
    WinoGrad grad = {.args = args, .rows = args->c_out, .channels = args->c_in};
    TileWalk *walk = &grad.walk;
    int64_t tiles = 0, image_tiles = 0;
    grad.row_room = pv_ceil_div(grad.rows, PV_LANES) * PV_LANES;
    for (int i = 0; i < count; i++)
        image_tiles += tiles_of(args[i].out);
    walk->count = count;
    walk->split = splits_winograd(run, grad.rows, grad.channels, image_tiles);
    walk->most = walk->split ? pv_split_tiles(grad.channels + grad.row_room)
                             : pv_winograd_tiles(grad.channels + grad.row_room, sizeof(PvReal));
    for (int i = 0; i < count; i++) {
        walk->unfold[i] = tile_unfold(&unfolds[i], (const PvReal *)args[i].x, walk->most);
        tiles += unfolds[i].images * volume(walk->unfold[i].out);
    }
    int64_t most = pv_least(walk->most, tiles);
    grad.v_point = grad.channels * tile_pitch(tile_room(walk, most + WINO_HALF)) + LINE;
    grad.y_panel = most * PV_LANES;
    grad.y_point = most * grad.row_room + LINE;
    grad.v = (PvReal *)run->scratch;
    grad.y = grad.v + WINO_POINTS * grad.v_point;
    return grad;
}

void pv_winograd_wgrad(const PvRun *run, const ConvArgs *args, const Unfold *unfolds, int count)
{
    const WinoGrad grad = grad_of(run, args, unfolds, count);
    int64_t shared = WINO_POINTS * (grad.v_point + grad.y_point) * (int64_t)sizeof(PvReal);
    int64_t high = PV_LANES, wide = 4 * PV_ROWS; // rows and channels of a task
    if (grad.walk.split)
        split_cut(&grad, run->threads, &high, &wide);
    int64_t row_tasks = pv_ceil_div(grad.rows, high);
    int64_t tasks = row_tasks * pv_ceil_div(grad.channels, wide);
#pragma omp parallel num_threads(run->threads)
    {
        TileWalk walk = grad.walk;
        TileBatch batch;
        char *own = pv_thread_scratch(run) + pv_align(shared);
        TileScratch tile = tile_scratch(&walk, own);
        WinoGradScratch task = {(PvReal *)own, (PvReal *)own + WINO_POINTS * TILE_POINT};
        const PvReal *added = (const PvReal *)args->residual;
        while (tile_batch(&walk, &batch)) {
            const TilePlace place = {grad.v, grad.v_point, tile_pitch(batch.room), PV_LANES};
#pragma omp for schedule(static) nowait
            for (int64_t c = 0; c < grad.channels; c += CHANNELS_AT_ONCE)
                wino_channels(&grad.walk, &batch, c,
                              pv_least(c + CHANNELS_AT_ONCE, grad.channels), &tile, &place);
#pragma omp for schedule(static)
            for (int64_t m = 0; m < grad.row_room; m += PV_WIDTH)
                transform_results(&grad, &batch, m);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < tasks; i++) {
                int64_t m0 = i % row_tasks * high, c0 = i / row_tasks * wide;
                int64_t c1 = pv_least(c0 + wide, grad.channels);
#if PV_SPLIT
                if (walk.split) {
                    SplitTask part = {m0, pv_least(high, grad.rows - m0), c0, c1 - c0};
                    split_task(&grad, &batch, &part, (PvReal *)own, added);
                    continue;
                }
#endif
                grad_task(&grad, &task, &batch, added, m0, c0, c1);
            }
            added = (const PvReal *)args->w;
        }
    }
}
