// Convolutions of 3 x 3 and stride 1, and their gradients by x, by minimal filtering (winograd.h).
//
// For a batch of tiles, x is transformed once, by all threads, to V[point][channel][tile] in the
// first thread's scratch. Then a task owns PV_LANES rows of w (channels of the result) and a part
// of the tiles: it transforms those rows to U[point][channel][row] by blocks of channels, adds V^T
// U up in M[point][tile][row], a register tile at a time, and turns that into results, which get
// bias, activation and residual as those of any product. Where products are split (split.h), a task
// owns SPLIT_TASK rows and V has panels of tiles; U is split where it is made, each panel of V when
// a task comes to it: split by those who make it, half as large again, it would not be in a cache.
#include "codegen/cpu/split.h"
#include "codegen/cpu/winograd.h"

enum {
    CHANNELS_AT_ONCE = 8,  // of x, for a thread
    FILTERS_AT_ONCE = 16,  // channels of w between transposing and transforming
    LINE = 64 / sizeof(PvReal),
    // from point to point of U, against lines that displace one another in a cache
    U_POINT = PV_WINOGRAD_CHANNELS * PV_LANES + LINE,
    // by split.h: rows of w of a task, words of a panel of them, from point to point of U
    SPLIT_TASK = 2 * SPLIT_ROWS,
    SPLIT_PANEL = PV_SPLIT_CHANNELS / SPLIT_DEPTH * SPLIT_STEP,
    SPLIT_U_POINT = SPLIT_TASK / SPLIT_ROWS * SPLIT_PANEL + LINE,
};

typedef struct {
    const ConvLaunch *launches;
    TileWalk walk;
    int64_t channels, rows;         // of x, of w
    int64_t most;                   // tiles of a batch
    PvReal *v;
    int64_t v_panel;                // step from panel to panel of tiles, if products are split
    int64_t v_point, m_point;       // steps from point to point
    int64_t high, wide;             // rows of a task, tiles of a register tile
} WinoProduct;

// A task: rows m0 .. m0 + rows - 1 of w, tiles t0 .. t1 - 1 of a batch.
typedef struct {
    int64_t m0, rows, t0, t1;
} TaskPart;

// Scratch of a task.
typedef struct {
    PvReal *u, *m;                  // [point][channel][PV_LANES], [point][tile][PV_LANES]
    PvReal *w;                      // [channel, tap][PV_WIDTH]
    PvReal *y;                      // [row][results of a row of tiles]
} WinoScratch;

// c[rows][lanes] (+)= sum over k of a[k][rows] b[k][lanes] for a that is no panel.
static __attribute__((noinline)) void multiply_tiles(int64_t rows, int64_t lanes, int64_t k,
                                                     const PvReal *a, int64_t a_step,
                                                     const PvReal *b, PvReal *c, bool add)
{
    tile_choose(rows, lanes, k, a, 1, a_step, b, PV_LANES, NULL, c, PV_LANES, add);
}

// ---- the kernel ----

// to[channel][tap][PV_WIDTH] of rows m0 ..., zeros behind the last; channels c0 .. c0 + count - 1
static void pack_filters(const ConvLaunch *launch, PvReal *to, int64_t m0, int64_t rows, int64_t c0,
                         int64_t count)
{
    const ConvProduct *product = &launch->product;
    if (product->kind == CONV_FORWARD) {
        const PvReal *from = launch->w + m0 * product->w_row + c0 * 9;
        if (rows >= PV_WIDTH)
            pack_square(to, PV_WIDTH, from, product->w_row, PV_WIDTH, count * 9);
        else
            pack_square(to, PV_WIDTH, from, product->w_row, rows, count * 9);
        return;
    }
    for (int64_t c = c0; c < c0 + count; c++, to += 9 * PV_WIDTH) {
        const PvReal *from = launch->w + c * product->w_channel + m0 * product->w_row;
        // whole vectors may be read where another channel follows
        bool whole = PV_WIDTH > 9 && rows >= PV_WIDTH && (c + 1) * 9 < product->k_total;
        PvVec x[PV_WIDTH];
        if (!whole) {
            pack_square(to, PV_WIDTH, from, 9, rows, 9);
            continue;
        }
#pragma GCC unroll 16
        for (int i = 0; i < PV_WIDTH; i++)
            x[i] = vec_load(from + i * 9);
        vec_transpose(x);
#pragma GCC unroll 9
        for (int i = 0; i < pv_least(9, PV_WIDTH); i++)
            vec_store(to + i * PV_WIDTH, x[i]);
    }
}

// to[point][channel][PV_LANES] of `count` channels' taps from[channel][9][PV_WIDTH], in
// reverse if flipped
PV_INLINE void transform_taps(PvReal *to, const PvReal *from, int64_t count, bool flipped)
{
    const int first = flipped ? 8 : 0, step = flipped ? -1 : 1;
    for (int64_t c = 0; c < count; c++, to += PV_LANES, from += 9 * PV_WIDTH) {
        PvVec column[WINO_IN][3], tap[9];
#pragma GCC unroll 9
        for (int i = 0; i < 9; i++)
            tap[i] = vec_load(from + (first + step * i) * PV_WIDTH);
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++)
            wino_filter(&column[0][i], 3, tap[i], tap[3 + i], tap[6 + i]);
#pragma GCC unroll 6
        for (int i = 0; i < WINO_IN; i++) {
            PvVec u[WINO_IN];
            wino_filter(u, 1, column[i][0], column[i][1], column[i][2]);
#pragma GCC unroll 6
            for (int j = 0; j < WINO_IN; j++)
                vec_store(to + (i * WINO_IN + j) * U_POINT, u[j]);
        }
    }
}

static __attribute__((noinline)) void transform_forward(PvReal *to, const PvReal *from,
                                                        int64_t count)
{
    transform_taps(to, from, count, false);
}

static __attribute__((noinline)) void transform_flipped(PvReal *to, const PvReal *from,
                                                        int64_t count)
{
    transform_taps(to, from, count, true);
}

// U of rows m0 ... and channels c0 .. c1 - 1
static __attribute__((noinline)) void transform_filters(const WinoProduct *product,
                                                        const WinoScratch *scratch, int64_t m0,
                                                        int64_t rows, int64_t c0, int64_t c1)
{
    bool flipped = product->launches->product.kind == CONV_PHASE;
    for (int64_t first = 0; first < rows; first += PV_WIDTH) {
        for (int64_t c = c0; c < c1; c += FILTERS_AT_ONCE) {
            int64_t count = pv_least(FILTERS_AT_ONCE, c1 - c);
            pack_filters(product->launches, scratch->w, m0 + first, rows - first, c, count);
            PvReal *to = scratch->u + (c - c0) * PV_LANES + first;
            (flipped ? transform_flipped : transform_forward)(to, scratch->w, count);
        }
    }
}

// ---- results ----

// The 4 x 4 results of one tile for PV_WIDTH rows: to[row * row_step + i * step + j]
PV_INLINE void tile_results(const WinoProduct *product, const PvReal *m, PvReal *to,
                            int64_t row_step, int64_t step)
{
    PvVec column[WINO_OUT][WINO_IN], y[WINO_OUT * WINO_OUT];
#pragma GCC unroll 6
    for (int j = 0; j < WINO_IN; j++) {
        PvVec sum[WINO_IN];
#pragma GCC unroll 6
        for (int i = 0; i < WINO_IN; i++)
            sum[i] = vec_load(m + (i * WINO_IN + j) * product->m_point);
        wino_output(&column[0][j], WINO_IN, sum);
    }
#pragma GCC unroll 4
    for (int i = 0; i < WINO_OUT; i++)
        wino_output(y + i * WINO_OUT, 1, column[i]);
    enum { RUN = (int)PV_WIDTH < (int)WINO_OUT ? (int)PV_WIDTH : (int)WINO_OUT };
    for (int part = 0; part < WINO_OUT * WINO_OUT / PV_WIDTH; part++) {
        PvVec *x = y + part * PV_WIDTH;
        vec_transpose(x);
        for (int row = 0; row < PV_WIDTH; row++) {
            PvReal value[PV_WIDTH];
            vec_store(value, x[row]);
#pragma GCC unroll 4
            for (int i = 0; i < PV_WIDTH; i += RUN) {
                int at = part * PV_WIDTH + i;
                memcpy(to + row * row_step + at / WINO_OUT * step + at % WINO_OUT, value + i,
                       RUN * sizeof *value);
            }
        }
    }
}

// Stores `count` neighbouring results of a row of w.
PV_INLINE void finish_run(PvReal *out, const PvReal *sum, int64_t count, PvReal bias,
                          const PvReal *residual, PvAct act)
{
    for (int64_t i = 0; i < count; i += PV_LANES)
        pv_product_finish(out + i, sum + i, pv_least(PV_LANES, count - i), bias, NULL,
                          residual ? residual + i : NULL, act);
}

// Where a row of tiles lies in the result.
typedef struct {
    int64_t image, d, h, w;         // first position
    int64_t rows, columns;          // inside the result
    int64_t step;                   // from row to row of what was computed
} TileRow;

// Results of rows m0 ... of w in a row of tiles, from y[row][4][at->step].
static void store_row(const ConvLaunch *launch, const TileRow *at, int64_t m0, int64_t rows,
                      const PvReal *y)
{
    const int64_t *extent = launch->extent, *shift = launch->residual_shift;
    const ConvProduct *product = &launch->product;
    int64_t out = at->image * launch->out_image + (at->d * extent[1] + at->h) * extent[2] + at->w;
    bool shifted = (shift[0] | shift[1] | shift[2]) != 0;
    int64_t wide = extent[2] >> shift[2], high = extent[1] >> shift[1];
    for (int64_t m = m0; m < m0 + rows; m++, y += WINO_OUT * at->step) {
        PvReal bias = launch->bias ? launch->bias[m] : 0, added[PV_LANES];
        PvReal *to = launch->out + m * product->out_row + out;
        const PvReal *residual = launch->residual ? launch->residual + m * product->residual_row +
                                                        at->image * launch->residual_image
                                                  : NULL;
        if (residual && !shifted)
            residual += out - at->image * launch->out_image;
        if (at->columns == at->step && at->columns == extent[2] && !(residual && shifted)) {
            finish_run(to, y, at->rows * at->columns, bias, residual, product->act);
            continue;
        }
        for (int64_t i = 0; i < at->rows; i++) {
            if (!residual || !shifted) {
                finish_run(to + i * extent[2], y + i * at->step, at->columns, bias,
                           residual ? residual + i * extent[2] : NULL, product->act);
                continue;
            }
            const PvReal *from =
                residual + ((at->d >> shift[0]) * high + ((at->h + i) >> shift[1])) * wide;
            for (int64_t j = 0; j < at->columns; j += PV_LANES) {
                int64_t count = pv_least(PV_LANES, at->columns - j);
                for (int64_t k = 0; k < count; k++)
                    added[k] = from[(at->w + j + k) >> shift[2]];
                pv_product_finish(to + i * extent[2] + j, y + i * at->step + j, count, bias, NULL,
                                  added, product->act);
            }
        }
    }
}

// Tiles begin .. end - 1 of a row of tiles, number `line` of a box.
static TileRow tile_row(const ConvLaunch *launch, const Box *box, int64_t line, int64_t begin,
                        int64_t end)
{
    TileRow at = {.image = box->image + line / (box->size[0] * box->size[1]),
                  .d = box->first[0] + line / box->size[1] % box->size[0],
                  .h = (box->first[1] + line % box->size[1]) * WINO_OUT,
                  .w = (box->first[2] + begin) * WINO_OUT,
                  .step = (end - begin) * WINO_OUT};
    at.rows = pv_least(WINO_OUT, launch->extent[1] - at.h);
    at.columns = pv_least(at.step, launch->extent[2] - at.w);
    return at;
}

// Results of tiles t0 .. t1 - 1 of a batch, from M.
static void store_tiles(const WinoProduct *product, const WinoScratch *scratch,
                        const TileBatch *batch, int64_t m0, int64_t rows, int64_t t0, int64_t t1)
{
    for (int i = 0; i < batch->count; i++) {
        const TilePart *part = &batch->part[i];
        const ConvLaunch *launch = &product->launches[part->which];
        Box box = unfold_box(&product->walk.unfold[part->which], part->box);
        int64_t tiles = box.size[2], lines = box.count * box.size[0] * box.size[1];
        for (int64_t line = 0; line < lines; line++) {
            int64_t first = part->first + line * tiles;
            int64_t begin = pv_most(first, t0), end = pv_least(first + tiles, t1);
            if (begin >= end)
                continue;
            TileRow at = tile_row(launch, &box, line, begin - first, end - first);
            for (int64_t lane = 0; lane < rows; lane += PV_WIDTH)
                for (int64_t tile = begin; tile < end; tile++)
                    tile_results(product, scratch->m + (tile - t0) * PV_LANES + lane,
                                 scratch->y + (lane * at.step + tile - begin) * WINO_OUT,
                                 WINO_OUT * at.step, at.step);
            store_row(launch, &at, m0, rows, scratch->y);
        }
    }
}

// ---- by split.h ----
//
// Rows of w are the rows of these products, tiles their columns: M[point][panel of tiles][row]
// [tile]. So the results of a row of w are computed with tiles along the lanes.

#if PV_SPLIT

// A row of tiles of a task, and where its results are among those of a row of w.
typedef struct {
    const ConvLaunch *launch;
    TileRow at;
    int64_t y;
} TileLine;

// Scratch of a task by split.h.
typedef struct {
    PvReal *u, *m;          // [point][panel], [point][panel of tiles][SPLIT_TASK][PV_LANES]
    PvReal *v;              // a panel
    PvReal *y;              // results of a row of w
    TileLine *lines;
    int32_t *y_at, *y_step; // of a tile in y: its first result, and from row to row
} SplitScratch;

// Nine taps of a row of w, channels c ... along the lanes, of which `there` are there.
PV_INLINE void load_taps(const ConvProduct *product, const PvReal *w, int64_t m, int64_t c,
                         int64_t there, PvVec tap[PV_WIDTH])
{
    int64_t step = product->kind == CONV_FORWARD ? 9 : product->w_channel;
    const PvReal *from = w + m * product->w_row + c * step;
#pragma GCC unroll 16
    for (int i = 0; i < PV_WIDTH; i++)
        tap[i] = (PvVec)_mm512_maskz_loadu_ps(i < there ? 0x1ff : 0, from + i * step);
    vec_transpose(tap);
}

// G w G^T of nine vectors of taps, in reverse if flipped.
PV_INLINE void transform_lanes(PvVec u[WINO_POINTS], const PvVec tap[9], bool flipped)
{
    PvVec column[WINO_IN][3];
    const int first = flipped ? 8 : 0, step = flipped ? -1 : 1;
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++)
        wino_filter(&column[0][i], 3, tap[first + step * i], tap[first + step * (3 + i)],
                    tap[first + step * (6 + i)]);
#pragma GCC unroll 6
    for (int i = 0; i < WINO_IN; i++)
        wino_filter(u + i * WINO_IN, 1, column[i][0], column[i][1], column[i][2]);
}

// U of up to SPLIT_TASK rows from m0 on and channels c0 .. c1 - 1, split
static __attribute__((noinline)) void split_filters(const WinoProduct *product, PvReal *u,
                                                    int64_t m0, int64_t rows, int64_t c0,
                                                    int64_t c1)
{
    const ConvLaunch *launch = product->launches;
    bool flipped = launch->product.kind == CONV_PHASE;
    for (int64_t c = c0; c < c1; c += SPLIT_DEPTH, u += SPLIT_STEP) {
        for (int64_t row = 0; row < rows; row++) {
            PvReal *to = u + row / SPLIT_ROWS * SPLIT_PANEL +
                         row % SPLIT_ROWS / 16 * SPLIT_TILE + row % 16 * SPLIT_LINE;
            PvVec tap[PV_WIDTH], low[WINO_POINTS], high[WINO_POINTS], part[3];
            load_taps(&launch->product, launch->w, m0 + row, c, c1 - c, tap);
            transform_lanes(low, tap, flipped);
            load_taps(&launch->product, launch->w, m0 + row, c + PV_WIDTH, c1 - c - PV_WIDTH, tap);
            transform_lanes(high, tap, flipped);
            for (int i = 0; i < WINO_POINTS; i++, to += SPLIT_U_POINT) {
                split_pair(low[i], high[i], true, part);
#pragma GCC unroll 3
                for (int k = 0; k < 3; k++)
                    vec_store(to + k * SPLIT_PART, part[k]);
            }
        }
    }
}

// The results of 16 tiles of a row of w, from M.
PV_INLINE void split_results(const PvReal *m, int64_t point_step, const int32_t *y_at,
                             const int32_t *y_step, PvReal *to)
{
    PvVec column[WINO_OUT][WINO_IN], y[WINO_OUT];
#pragma GCC unroll 6
    for (int j = 0; j < WINO_IN; j++) {
        PvVec sum[WINO_IN];
#pragma GCC unroll 6
        for (int i = 0; i < WINO_IN; i++)
            sum[i] = vec_load(m + (i * WINO_IN + j) * point_step);
        wino_output(&column[0][j], WINO_IN, sum);
    }
    for (int row = 0; row < WINO_OUT; row++) {
        wino_output(y, 1, column[row]);
        PvVec even[2], odd[2];
        for (int half = 0; half < 2; half++) {
            even[half] = vec_interleave(y[0], y[2], half * PV_WIDTH / 2);
            odd[half] = vec_interleave(y[1], y[3], half * PV_WIDTH / 2);
        }
        for (int i = 0; i < WINO_OUT; i++) { // tiles 4 i .. 4 i + 3
            PvVec four = vec_interleave(even[i / 2], odd[i / 2], i % 2 * PV_WIDTH / 2);
            const int32_t *at = y_at + 4 * i, *step = y_step + 4 * i;
            if (at[3] == at[0] + 3 * WINO_OUT && step[3] == step[0]) {
                vec_store(to + at[0] + row * step[0], four);
                continue;
            }
            PvReal value[PV_WIDTH];
            vec_store(value, four);
            for (int k = 0; k < 4; k++)
                memcpy(to + at[k] + row * step[k], value + 4 * k, WINO_OUT * sizeof *to);
        }
    }
}

// The rows of tiles of a task; their number. Tiles behind the last one of a vector are written
// behind all results.
static int64_t split_lines(const WinoProduct *product, const SplitScratch *scratch,
                           const TileBatch *batch, int64_t t0, int64_t t1)
{
    int64_t count = 0, y = 0;
    for (int i = 0; i < batch->count; i++) {
        const TilePart *part = &batch->part[i];
        const ConvLaunch *launch = &product->launches[part->which];
        Box box = unfold_box(&product->walk.unfold[part->which], part->box);
        int64_t tiles = box.size[2], lines = box.count * box.size[0] * box.size[1];
        for (int64_t line = 0; line < lines; line++) {
            int64_t first = part->first + line * tiles;
            int64_t begin = pv_most(first, t0), end = pv_least(first + tiles, t1);
            if (begin >= end)
                continue;
            TileRow at = tile_row(launch, &box, line, begin - first, end - first);
            for (int64_t tile = begin; tile < end; tile++) {
                scratch->y_at[tile - t0] = (int32_t)(y + (tile - begin) * WINO_OUT);
                scratch->y_step[tile - t0] = (int32_t)at.step;
            }
            scratch->lines[count++] = (TileLine){launch, at, y};
            y += WINO_OUT * at.step;
        }
    }
    for (int64_t tile = t1 - t0; tile % PV_WIDTH != 0; tile++) {
        scratch->y_at[tile] = (int32_t)y;
        scratch->y_step[tile] = 0;
    }
    return count;
}

// Results of a task, from M.
static void split_store_tiles(const WinoProduct *product, const SplitScratch *scratch,
                              const TileBatch *batch, const TaskPart *part)
{
    int64_t count = split_lines(product, scratch, batch, part->t0, part->t1);
    for (int64_t row = 0; row < part->rows; row++) {
        for (int64_t tile = 0; tile < part->t1 - part->t0; tile += PV_WIDTH)
            split_results(scratch->m + tile / PV_LANES * (SPLIT_TASK * PV_LANES) +
                              row * PV_LANES + tile % PV_LANES,
                          product->m_point, scratch->y_at + tile, scratch->y_step + tile,
                          scratch->y);
        for (int64_t i = 0; i < count; i++) {
            const TileLine *line = &scratch->lines[i];
            store_row(line->launch, &line->at, part->m0 + row, 1, scratch->y + line->y);
        }
    }
}

static SplitScratch split_scratch(const WinoProduct *product, char *scratch)
{
    SplitScratch at = {.u = (PvReal *)scratch};
    int64_t tiles = pv_ceil_div(product->most, PV_LANES) * PV_LANES;
    at.m = at.u + WINO_POINTS * SPLIT_U_POINT;
    at.v = at.m + WINO_POINTS * product->m_point;
    at.y = at.v + SPLIT_PANEL;
    at.lines = (TileLine *)(at.y + tiles * WINO_OUT * WINO_OUT + PV_SLACK);
    at.y_at = (int32_t *)(at.lines + tiles);
    at.y_step = at.y_at + tiles;
    return at;
}

// wino_task by split.h: each element of V is split once.
static void split_task(const WinoProduct *product, char *own, const TileBatch *batch,
                       const TaskPart *part)
{
    SplitScratch scratch = split_scratch(product, own);
    split_begin();
    for (int64_t c0 = 0; c0 < product->channels; c0 += PV_SPLIT_CHANNELS) {
        int64_t count = pv_least(PV_SPLIT_CHANNELS, product->channels - c0);
        split_filters(product, scratch.u, part->m0, part->rows, c0, c0 + count);
        for (int point = 0; point < WINO_POINTS; point++) {
            const PvReal *v = product->v + point * product->v_point + c0 * PV_LANES;
            const PvReal *u = scratch.u + point * SPLIT_U_POINT;
            PvReal *m = scratch.m + point * product->m_point;
            for (int64_t t = part->t0; t < part->t1; t += PV_LANES, m += SPLIT_TASK * PV_LANES) {
                int64_t tiles = pv_least(PV_LANES, part->t1 - t);
                split_columns(scratch.v, v + t / PV_LANES * product->v_panel, PV_LANES, count);
                for (int64_t row = 0; row < part->rows; row += SPLIT_ROWS)
                    split_multiply(pv_least(SPLIT_ROWS, part->rows - row), tiles, count,
                                   u + row / SPLIT_ROWS * SPLIT_PANEL, scratch.v,
                                   m + row * PV_LANES, PV_LANES, c0 > 0, NULL);
            }
        }
    }
    split_end();
    split_store_tiles(product, &scratch, batch, part);
}

#endif

// ---- launches ----

static WinoScratch wino_scratch(const WinoProduct *product, char *scratch)
{
    WinoScratch at = {.u = (PvReal *)scratch};
    at.m = at.u + WINO_POINTS * U_POINT;
    at.w = at.m + WINO_POINTS * product->m_point;
    at.y = at.w + FILTERS_AT_ONCE * 9 * PV_WIDTH;
    return at;
}

static void wino_task(const WinoProduct *product, char *own, const TileBatch *batch,
                      const TaskPart *part)
{
    WinoScratch scratch = wino_scratch(product, own);
    int64_t rows = part->rows, t0 = part->t0, t1 = part->t1;
    for (int64_t c0 = 0; c0 < product->channels; c0 += PV_WINOGRAD_CHANNELS) {
        int64_t c1 = pv_least(c0 + PV_WINOGRAD_CHANNELS, product->channels);
        transform_filters(product, &scratch, part->m0, rows, c0, c1);
        for (int point = 0; point < WINO_POINTS; point++) {
            const PvReal *v = product->v + point * product->v_point + c0 * batch->room;
            for (int64_t t = t0; t < t1; t += PV_ROWS)
                multiply_tiles(pv_least(PV_ROWS, t1 - t), rows, c1 - c0, v + t, batch->room,
                               scratch.u + point * U_POINT,
                               scratch.m + point * product->m_point + (t - t0) * PV_LANES,
                               c0 > 0);
        }
    }
    store_tiles(product, &scratch, batch, part->m0, rows, t0, t1);
}

// How V, M and tasks are laid out.
static void lay_out(WinoProduct *product)
{
    int64_t room = tile_room(&product->walk, product->most + WINO_HALF);
    bool split = product->walk.split;
    product->v_panel = product->channels * PV_LANES + LINE;
    product->v_point = split ? room / PV_LANES * product->v_panel : product->channels * room + LINE;
    product->high = split ? SPLIT_TASK : PV_LANES;
    product->wide = split ? PV_LANES : PV_ROWS;
    product->m_point =
        pv_ceil_div(product->most, product->wide) * product->wide * product->high + LINE;
}

void pv_winograd_launches(const PvRun *run, const ConvLaunch *launches, int count)
{
    int64_t channels = launches->product.k_total / 9, tiles = 0;
    bool split = launches->split;
    WinoProduct product = {.launches = launches,
                           .channels = channels,
                           .rows = launches->rows,
                           .v = (PvReal *)run->scratch};
    product.walk = (TileWalk){.count = count, .split = split};
    product.walk.most =
        split ? pv_split_tiles(channels) : pv_winograd_tiles(channels, sizeof(PvReal));
    for (int i = 0; i < count; i++) {
        const Unfold *unfold = &launches[i].product.unfold;
        product.walk.unfold[i] = tile_unfold(unfold, launches[i].source, product.walk.most);
        tiles += unfold->images * volume(product.walk.unfold[i].out);
    }
    product.most = pv_least(product.walk.most, tiles);
    lay_out(&product);
    int64_t v_bytes = pv_align(WINO_POINTS * product.v_point * (int64_t)sizeof(PvReal));
    int64_t row_blocks = pv_ceil_div(product.rows, product.high), wide = product.wide;
#pragma omp parallel num_threads(run->threads)
    {
        TileWalk walk = product.walk;
        TileBatch batch;
        char *own = pv_thread_scratch(run) + v_bytes;
        TileScratch tile = tile_scratch(&walk, own);
        while (tile_batch(&walk, &batch)) {
            TilePlace place = {product.v, product.v_point, split ? PV_LANES : batch.room,
                               split ? product.v_panel : PV_LANES};
#pragma omp for schedule(static)
            for (int64_t c = 0; c < channels; c += CHANNELS_AT_ONCE)
                wino_channels(&product.walk, &batch, c, pv_least(c + CHANNELS_AT_ONCE, channels),
                              &tile, &place);
            // parts of the tiles, if rows alone are too few tasks
            int64_t parts = pv_most(1, pv_least(pv_ceil_div(2 * run->threads, row_blocks),
                                                batch.tiles / (2 * wide)));
            parts = run->threads == 1 ? 1 : parts;
            int64_t each = pv_ceil_div(pv_ceil_div(batch.tiles, parts), wide) * wide;
            parts = pv_ceil_div(batch.tiles, each);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < row_blocks * parts; i++) {
                TaskPart part = {i / parts * product.high, 0, i % parts * each, 0};
                part.rows = pv_least(product.high, product.rows - part.m0);
                part.t1 = pv_least(part.t0 + each, batch.tiles);
#if PV_SPLIT
                if (split) {
                    split_task(&product, own, &batch, &part);
                    continue;
                }
#endif
                wino_task(&product, own, &batch, &part);
            }
        }
    }
}
