// pv_gemm and the loops of product.h.
//
// Small matrices cost no more than their panels: every batch element is a task of its own. With
// sum_batch the batch axes are a part of k, (i0, i1, k) in this order, so blocks of k run across
// batch elements. Segments with one sum are one product, whose blocks of k go from one to the next.
// Goto's algorithm with the roles that suit a tile of few rows and wide columns.
//
// Segments with one A, such as a layer of sibling planes, are one product if their columns fit into
// one block: A is packed once, and a panel of columns may belong to several. Large products are
// made by split.h; that is decided by the sizes of such a product, not by threads.
#include "codegen/cpu/norm_load.h"
#include "codegen/cpu/product.h"
#include "codegen/cpu/split.h"
#if PV_SPLIT
#include <sys/syscall.h>
#include <unistd.h>
#endif

// ---- split.h ----

bool pv_split_ready(void)
{
#if PV_SPLIT
    enum { ASK = 0x1023, TILES = 18 }; // ARCH_REQ_XCOMP_PERM, XTILEDATA
    static int answer;                 // 0: not asked
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (known == 0) {
        known = syscall(SYS_arch_prctl, ASK, TILES) == 0 ? 1 : -1;
        __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    }
    return known > 0;
#else
    return false;
#endif
}

// ---- the loops ----

// Whether so many tasks keep the threads busy. Few large ones split fewer numbers twice.
static bool fills_threads(int64_t tasks, int64_t threads, bool split)
{
    int64_t rounds = pv_ceil_div(tasks, threads);
    return tasks >= 4 * threads || (split && 8 * tasks >= 7 * rounds * threads);
}

static ProductCut product_cut(int64_t m, int64_t n, int64_t k_blocks, int64_t batches, int threads,
                              bool split)
{
    int64_t unit = split ? SPLIT_ROWS : PV_ROWS, most = PV_ROW_PANELS * PV_ROWS / unit * unit;
    int64_t rows = k_blocks == 1 ? 4 * most : most;
    if (split)
        rows = k_blocks == 1 ? 8 * most : PV_SPLIT_SUM_ROWS;
    int64_t columns = PV_PANELS * PV_LANES;
    ProductCut cut;
    for (;;) {
        // even blocks
        int64_t row_blocks = pv_ceil_div(m, rows), column_blocks = pv_ceil_div(n, columns);
        cut.rows = pv_ceil_div(pv_ceil_div(m, row_blocks), unit) * unit;
        cut.columns = pv_ceil_div(pv_ceil_div(n, column_blocks), PV_LANES) * PV_LANES;
        cut.row_blocks = pv_ceil_div(m, cut.rows);
        cut.column_blocks = pv_ceil_div(n, cut.columns);
        if (threads == 1 ||
            fills_threads(batches * cut.row_blocks * cut.column_blocks, threads, split))
            return cut;
        if (cut.rows >= cut.columns && cut.rows > 2 * unit)
            rows = cut.rows / 2;
        else if (cut.columns > 2 * PV_LANES)
            columns = cut.columns / 2;
        else if (cut.rows > 2 * unit)
            rows = cut.rows / 2;
        else
            return cut;
    }
}

ProductCut pv_product_cut(int64_t m, int64_t n, int64_t k_blocks, int64_t batches, int threads)
{
    return product_cut(m, n, k_blocks, batches, threads, false);
}

// PV_ROWS rows of the present block of k by the only panel of columns. The rows are read where they
// lie: packing them would take half as long as the product. false: they do not lie so.
static bool multiply_in_place(Product *product, int64_t m, int64_t columns, int64_t k,
                              const PvReal *panel, PvReal *tile, bool add)
{
    int64_t step;
    const PvReal *rows = product->rows_at ? product->rows_at(product, m, &step) : NULL;
    if (!rows)
        return false;
    Ahead ahead = {rows + PV_ROWS * step, step, PV_ROWS};
    tile_multiply_rows(columns, k, rows, step, panel, tile, add, &ahead);
    return true;
}

void pv_product_block(Product *product, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                      char *scratch)
{
    PvReal *left = (PvReal *)scratch; // [k][PV_ROWS]
    scratch += pv_align((PV_K_BLOCK * PV_ROWS) * (int64_t)sizeof(PvReal) + PV_SLACK);
    int64_t panels = pv_ceil_div(n1 - n0, PV_LANES);
    PvReal *right = (PvReal *)scratch; // [panel][k][PV_LANES]
    scratch += panels * PV_K_BLOCK * PV_LANES * (int64_t)sizeof(PvReal);
    PvReal *sums = (PvReal *)scratch; // [row panel][panel][PV_ROWS][PV_LANES]
    bool whole = product->k_blocks == 1;
    for (int64_t block = 0; block < product->k_blocks; block++) {
        int64_t k = product->begin(product, block, n0, n1);
        bool last = block + 1 == product->k_blocks;
        for (int64_t j = 0; j < panels; j++) {
            int64_t n = n0 + j * PV_LANES;
            product->pack_columns(product, n, pv_least(n1 - n, PV_LANES),
                                  right + j * PV_K_BLOCK * PV_LANES);
        }
        for (int64_t m = m0; m < m1; m += PV_ROWS) {
            int64_t rows = pv_least(m1 - m, PV_ROWS);
            bool in_place = panels == 1 && rows == PV_ROWS &&
                            multiply_in_place(product, m, n1 - n0, k, right,
                                              sums + (whole ? 0 : (m - m0) * PV_LANES), block > 0);
            Ahead ahead = {0};
            if (!in_place)
                ahead = product->pack_rows(product, m, rows, left);
            for (int64_t j = 0; j < panels; j++) {
                int64_t n = n0 + j * PV_LANES, columns = pv_least(n1 - n, PV_LANES);
                int64_t number = whole ? 0 : (m - m0) / PV_ROWS * panels + j;
                PvReal *tile = sums + number * PV_ROWS * PV_LANES;
                const PvReal *panel = right + j * PV_K_BLOCK * PV_LANES;
                if (j == 0 && ahead.rows > 0 && rows == PV_ROWS)
                    tile_multiply_ahead(columns, k, left, panel, tile, block > 0, &ahead);
                else if (!in_place)
                    tile_multiply(rows, columns, k, left, panel, PV_LANES, tile, PV_LANES,
                                  block > 0);
                if (last)
                    product->store(product, m, rows, n, columns, tile);
            }
        }
    }
}

PV_INLINE void activate(PvReal *value, int lanes, PvAct act)
{
    switch (act) {
    case PV_ACT_NONE:
        break;
    case PV_ACT_SILU:
        for (int i = 0; i < lanes; i++)
            value[i] = pv_silu(value[i]);
        break;
    case PV_ACT_GELU:
        for (int i = 0; i < lanes; i++)
            value[i] = pv_gelu(value[i]);
        break;
    case PV_ACT_RELU:
        for (int i = 0; i < lanes; i++)
            value[i] = pv_relu(value[i]);
        break;
    }
}

PV_INLINE void finish(PvReal *out, const PvReal *sum, int64_t count, PvReal bias,
                      const PvReal *bias_n, const PvReal *residual, PvAct act)
{
    PvReal value[PV_LANES];
    for (int i = 0; i < PV_LANES; i++)
        value[i] = sum[i] + bias;
    if (bias_n) {
        for (int64_t i = 0; i < count; i++)
            value[i] += bias_n[i];
    }
    activate(value, PV_LANES, act);
    if (residual) {
        for (int64_t i = 0; i < count; i++)
            value[i] += residual[i];
    }
    memcpy(out, value, (size_t)count * sizeof *out);
}

void pv_product_finish(PvReal *out, const PvReal *sum, int64_t count, PvReal bias,
                       const PvReal *bias_n, const PvReal *residual, PvAct act)
{
    if (count == PV_LANES)
        finish(out, sum, PV_LANES, bias, bias_n, residual, act);
    else
        finish(out, sum, count, bias, bias_n, residual, act);
}

typedef struct {
    Product base;
    const GemmArgs *first; // the segment whose result it is
    int64_t i0, i1;        // batch element, 0 with sum_batch
    PvReal *c;
    const PvReal *residual;
    // the present block of k: its segment, from where on, how long
    const GemmArgs *args;
    const PvReal *a, *b;
    const PvReal *norm; // of the image's table; NULL: none
    int64_t k0, k;
} GemmProduct;

static int64_t gemm_k(const GemmArgs *args)
{
    return args->sum_batch ? args->k * args->batch0 * args->batch1 : args->k;
}

static int64_t gemm_k_blocks(const GemmArgs *args)
{
    return pv_most(1, pv_ceil_div(gemm_k(args), PV_K_BLOCK));
}

static int64_t gemm_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    GemmProduct *product = (GemmProduct *)base;
    const GemmArgs *args = product->first;
    (void)n0, (void)n1;
    for (int64_t blocks; block >= (blocks = gemm_k_blocks(args)); args++)
        block -= blocks;
    int64_t total = gemm_k(args), step = pv_ceil_div(total, gemm_k_blocks(args));
    product->args = args;
    product->a = (const PvReal *)args->a + product->i0 * args->a0 + product->i1 * args->a1;
    product->b = (const PvReal *)args->b + product->i0 * args->b0 + product->i1 * args->b1;
    product->norm = args->norm.table
                        ? (const PvReal *)args->norm.table + product->i0 * args->norm.image
                        : NULL;
    product->k0 = block * step;
    product->k = pv_least(step, total - product->k0);
    return product->k;
}

// One panel out of the batch elements that the present block of k runs across.
PV_INLINE void gemm_pack(const GemmProduct *product, int width, const PvReal *from,
                         int64_t row_step, int64_t k_step, int64_t batch0, int64_t batch1,
                         int64_t rows, PvReal *panel)
{
    const GemmArgs *args = product->args;
    if (!args->sum_batch) {
        pack_panel(panel, width, from + product->k0 * k_step, row_step, k_step, rows, product->k);
        return;
    }
    for (int64_t done = 0; done < product->k;) {
        int64_t batch = (product->k0 + done) / args->k, k = (product->k0 + done) % args->k;
        int64_t count = pv_least(args->k - k, product->k - done);
        const PvReal *at = from + batch / args->batch1 * batch0 + batch % args->batch1 * batch1;
        pack_panel(panel + done * width, width, at + k * k_step, row_step, k_step, rows, count);
        done += count;
    }
}

static Ahead gemm_pack_rows(Product *base, int64_t m0, int64_t rows, PvReal *panel)
{
    GemmProduct *product = (GemmProduct *)base;
    const GemmArgs *args = product->args;
    gemm_pack(product, PV_ROWS, product->a + m0 * args->a_m, args->a_m, args->a_k, args->a0,
              args->a1, rows, panel);
    const PvReal *next = product->a + (m0 + PV_ROWS) * args->a_m;
    if (args->sum_batch)
        return (Ahead){0};
    next += product->k0 * args->a_k;
    return args->a_k == 1 ? (Ahead){next, args->a_m, PV_ROWS}
                          : (Ahead){next, args->a_k, product->k};
}

static const PvReal *gemm_rows_at(Product *base, int64_t m0, int64_t *step)
{
    const GemmProduct *product = (const GemmProduct *)base;
    const GemmArgs *args = product->args;
    *step = args->a_m;
    return args->sum_batch || args->a_k != 1 ? NULL
                                             : product->a + m0 * args->a_m + product->k0;
}

static void gemm_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    GemmProduct *product = (GemmProduct *)base;
    const GemmArgs *args = product->args;
    gemm_pack(product, PV_LANES, product->b + n0 * args->b_n, args->b_n, args->b_k, args->b0,
              args->b1, columns, panel);
    if (product->norm)
        normalize_panel(panel, product->k, product->norm + product->k0,
                        product->norm + args->norm.shift + product->k0, (PvAct)args->norm.act);
}

static void gemm_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                       const PvReal *tile)
{
    GemmProduct *product = (GemmProduct *)base;
    const GemmArgs *args = product->first;
    const PvReal *bias = (const PvReal *)args->bias;
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = (m0 + i) * args->c_m + n0, added = (m0 + i) * args->r_m + n0;
        PvReal bias_m = bias && args->bias_axis ? bias[m0 + i] : 0;
        pv_product_finish(product->c + at, tile + i * PV_LANES, columns, bias_m,
                          bias && !args->bias_axis ? bias + n0 : NULL,
                          product->residual ? product->residual + added : NULL, (PvAct)args->act);
    }
}

// ---- gates ----
//
// Half of the vectors of each panel are values, the other half their gates: panel j of PV_LANES
// columns has values j PV_WIDTH and on. So both halves of a product are in one tile.

static void gate_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    GemmProduct *product = (GemmProduct *)base;
    const GemmArgs *args = product->args;
    int64_t first = n0 / 2, count = pv_least(PV_WIDTH, args->n - first);
    (void)columns;
    for (int half = 0; half < 2; half++) {
        const PvReal *from = product->b + (first + half * args->gate) * args->b_n +
                             product->k0 * args->b_k;
        PvReal *to = panel + half * PV_WIDTH;
        if (args->b_k == 1) {
            pack_square(to, PV_LANES, from, args->b_n, count, product->k);
            continue;
        }
        for (int64_t p = 0; p < product->k; p++)
            for (int64_t i = 0; i < PV_WIDTH; i++)
                to[p * PV_LANES + i] = i < count ? from[p * args->b_k + i * args->b_n] : 0;
    }
}

static void gate_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                       const PvReal *tile)
{
    GemmProduct *product = (GemmProduct *)base;
    const GemmArgs *args = product->first;
    int64_t first = n0 / 2, count = pv_least(PV_WIDTH, args->n - first);
    PvReal bias[PV_LANES] = {0};           // as a row of the tile
    (void)columns;
    if (args->bias) {
        const PvReal *at = (const PvReal *)args->bias + first;
        memcpy(bias, at, (size_t)count * sizeof *bias);
        memcpy(bias + PV_WIDTH, at + args->gate, (size_t)count * sizeof *bias);
    }
    for (int64_t i = 0; i < rows; i++, tile += PV_LANES) {
        PvReal value[PV_WIDTH], gate[PV_WIDTH];
        for (int j = 0; j < PV_WIDTH; j++) {
            value[j] = tile[j] + bias[j];
            gate[j] = tile[PV_WIDTH + j] + bias[PV_WIDTH + j];
        }
        activate(gate, PV_WIDTH, (PvAct)args->act);
        for (int j = 0; j < PV_WIDTH; j++)
            value[j] *= gate[j];
        PvReal *to = product->c + (m0 + i) * args->c_m + first;
        if (count == PV_WIDTH)
            memcpy(to, value, sizeof value);
        else
            memcpy(to, value, (size_t)count * sizeof *value);
    }
}

// ---- several segments with one A ----

typedef struct {
    Product base;
    GemmProduct part[PV_MAX_SEGMENTS];
    int64_t start[PV_MAX_SEGMENTS + 1]; // first column of each, and the end
    int count;
} JointProduct;

static int64_t joint_begin(Product *base, int64_t block, int64_t n0, int64_t n1)
{
    JointProduct *product = (JointProduct *)base;
    int64_t k = 0;
    for (int i = 0; i < product->count; i++)
        k = gemm_begin(&product->part[i].base, block, n0, n1);
    return k;
}

static Ahead joint_pack_rows(Product *base, int64_t m0, int64_t rows, PvReal *panel)
{
    return gemm_pack_rows(&((JointProduct *)base)->part[0].base, m0, rows, panel);
}

static const PvReal *joint_rows_at(Product *base, int64_t m0, int64_t *step)
{
    return gemm_rows_at(&((JointProduct *)base)->part[0].base, m0, step);
}

// What starts at column *n and belongs to one part, before column `end`: which columns of the part,
// how many; *n goes behind them.
static GemmProduct *joint_piece(JointProduct *product, int64_t *n, int64_t end, int64_t *first,
                                int64_t *count)
{
    int part = 0;
    while (*n >= product->start[part + 1])
        part++;
    *first = *n - product->start[part];
    *count = pv_least(end, product->start[part + 1]) - *n;
    *n += *count;
    return &product->part[part];
}

static void joint_pack_columns(Product *base, int64_t n0, int64_t columns, PvReal *panel)
{
    int64_t first, count;
    for (int64_t n = n0; n < n0 + columns;) {
        PvReal *to = panel + n - n0;
        GemmProduct *part = joint_piece((JointProduct *)base, &n, n0 + columns, &first, &count);
        if (count == columns) {
            gemm_pack_columns(&part->base, first, count, panel);
            return;
        }
        const GemmArgs *args = part->args;
        const PvReal *from = part->b + part->k0 * args->b_k + first, *a = part->norm;
        for (int64_t k = 0; k < part->k; k++, to += PV_LANES, from += args->b_k) {
            if (!a)
                memcpy(to, from, (size_t)count * sizeof *to);
            else
                normalize_run(to, from, count, a[part->k0 + k],
                              a[args->norm.shift + part->k0 + k], (PvAct)args->norm.act);
        }
    }
    for (int64_t k = 0; columns < PV_LANES && k < ((JointProduct *)base)->part->k; k++)
        memset(panel + k * PV_LANES + columns, 0, (size_t)(PV_LANES - columns) * sizeof *panel);
}

static void joint_store(Product *base, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                        const PvReal *tile)
{
    int64_t first, count;
    for (int64_t n = n0; n < n0 + columns;) {
        const PvReal *from = tile + n - n0;
        GemmProduct *part = joint_piece((JointProduct *)base, &n, n0 + columns, &first, &count);
        gemm_store(&part->base, m0, rows, first, count, from);
    }
}

// How many segments from the first on have one A, neighbouring columns of B, and scratch for a
// block of columns of them all.
static int joint_count(const PvRun *run, const GemmArgs *args, int64_t segments)
{
    int count = 1;
    int64_t real = sizeof(PvReal), columns = args->n, row = PV_PANELS * PV_LANES * real;
    int64_t sum_rows = gemm_k_blocks(args) > 1 ? pv_sum_rows(args->m) : 0;
    if (pv_product_bytes(row, real, sum_rows) > run->scratch_size)
        return count;
    for (; count < pv_least(segments, PV_MAX_SEGMENTS); count++) {
        const GemmArgs *next = &args[count];
        columns += next->n;
        if (columns > PV_PANELS * PV_LANES || args->sum != 0 || next->sum != 0 ||
            args->sum_batch || next->sum_batch || args->gate || next->gate ||
            next->a != args->a || next->m != args->m ||
            next->k != args->k || next->a_m != args->a_m || next->a_k != args->a_k ||
            next->a0 != args->a0 || next->a1 != args->a1 || next->batch0 != args->batch0 ||
            next->batch1 != args->batch1 || args->b_n != 1 || next->b_n != 1)
            break;
    }
    return count;
}

// ---- by split.h ----

#if PV_SPLIT

// Rows m ... of the present block of k, by way of `room` [k][PV_LANES] unless they are dense in k.
static void split_pack_rows(GemmProduct *product, int64_t m, int64_t rows, PvReal *room,
                            PvReal *panel)
{
    int64_t step;
    const GemmArgs *args = product->args;
    const PvReal *at = gemm_rows_at(&product->base, m, &step);
    if (at) {
        split_rows(panel, at, step, rows, product->k);
        return;
    }
    gemm_pack(product, PV_LANES, product->a + m * args->a_m, args->a_m, args->a_k, args->a0,
              args->a1, rows, room);
    split_turned(panel, room, PV_LANES, product->k);
}

// What is done while a tile is multiplied: storing the tile before it, and splitting a part of the
// next panel of A.
typedef struct {
    SplitAside base;
    Product *product;
    // the tile to be stored, from row `stored` on; `store_owed`: of `parts`, below a row
    const PvReal *tile;
    int64_t m, rows, n, columns, stored, store_owed;
    // rows that become `panel`, from line `line` of `row` on
    PvReal *panel;
    const PvReal *from;
    int64_t step, panel_rows, k, row, line, lines, split_owed;
} SplitBeside;

static void beside_store(SplitBeside *beside, int64_t count)
{
    if (count == 0)
        return;
    beside->product->store(beside->product, beside->m + beside->stored, count, beside->n,
                           beside->columns, beside->tile + beside->stored * PV_LANES);
    beside->stored += count;
}

static void beside_part(SplitAside *base, int64_t parts)
{
    SplitBeside *beside = (SplitBeside *)base;
    int64_t count = 0;
    for (beside->store_owed += beside->rows; beside->store_owed >= parts; count++)
        beside->store_owed -= parts;
    beside_store(beside, count);
    for (beside->split_owed += beside->lines; beside->split_owed >= parts;) {
        beside->split_owed -= parts;
        int64_t first = beside->line * SPLIT_DEPTH;
        const PvReal *at = beside->from + beside->row * beside->step + first;
        // of the panel behind it, into the second cache
        __builtin_prefetch(at + SPLIT_ROWS * beside->step, 0, 2);
        __builtin_prefetch(at + SPLIT_ROWS * beside->step + 16, 0, 2);
        split_line(beside->panel + split_row_at(beside->row) + beside->line * SPLIT_STEP, at,
                   beside->row < beside->panel_rows ? beside->k - first : 0);
        if (first + SPLIT_DEPTH >= beside->k) {
            beside->row++;
            beside->line = 0;
        } else {
            beside->line++;
        }
    }
}

// As pv_product_block; `left`: whose A it is.
static void split_block(Product *product, GemmProduct *left, int64_t m0, int64_t m1, int64_t n0,
                        int64_t n1, char *scratch)
{
    int64_t panels = pv_ceil_div(n1 - n0, PV_LANES), size = split_words(PV_K_BLOCK);
    PvReal *room = (PvReal *)scratch; // [k][PV_LANES]
    PvReal *a = room + PV_K_BLOCK * PV_LANES, *next = a + size;
    PvReal *b = next + size;          // [panel][panel of split.h]
    PvReal *sums = b + panels * size; // [row panel][panel][SPLIT_ROWS][PV_LANES]; whole: two
    bool whole = product->k_blocks == 1;
    SplitBeside beside = {.base = {beside_part}, .product = product};
    split_begin();
    for (int64_t block = 0; block < product->k_blocks; block++) {
        int64_t k = product->begin(product, block, n0, n1), number = 0;
        bool last = block + 1 == product->k_blocks;
        for (int64_t j = 0; j < panels; j++) {
            int64_t n = n0 + j * PV_LANES;
            product->pack_columns(product, n, pv_least(n1 - n, PV_LANES), room);
            split_columns(b + j * size, room, PV_LANES, k);
        }
        bool ready = false;
        for (int64_t m = m0; m < m1; m += SPLIT_ROWS) {
            int64_t rows = pv_least(m1 - m, SPLIT_ROWS), behind = m + SPLIT_ROWS;
            if (!ready)
                split_pack_rows(left, m, rows, room, a);
            beside.from = behind < m1 ? gemm_rows_at(&left->base, behind, &beside.step) : NULL;
            ready = beside.from != NULL;
            beside.panel = next;
            beside.panel_rows = pv_least(m1 - behind, SPLIT_ROWS);
            beside.k = k;
            beside.row = beside.line = 0;
            int64_t lines = ready ? SPLIT_ROWS * pv_ceil_div(k, SPLIT_DEPTH) : 0;
            for (int64_t j = 0; j < panels; j++, number++) {
                int64_t n = n0 + j * PV_LANES, columns = pv_least(n1 - n, PV_LANES);
                PvReal *tile = sums + (whole ? number % 2 : number) * SPLIT_ROWS * PV_LANES;
                beside.lines = lines * (j + 1) / panels - lines * j / panels;
                split_multiply(rows, columns, k, a, b + j * size, tile, PV_LANES, block > 0,
                               &beside.base);
                if (last) {
                    beside_store(&beside, beside.rows - beside.stored);
                    beside.tile = tile;
                    beside.m = m;
                    beside.rows = rows;
                    beside.n = n;
                    beside.columns = columns;
                    beside.stored = 0;
                }
            }
            if (ready) {
                PvReal *former = a;
                a = next;
                next = former;
            }
        }
    }
    beside_store(&beside, beside.rows - beside.stored);
    split_end();
}

#endif

// From which sizes a product is made by split.h: smaller ones take longer to split than to
// multiply.
enum { SPLIT_LEAST_ROWS = 96, SPLIT_LEAST_COLUMNS = 128 };

static bool gemm_splits(const PvRun *run, const GemmArgs *args, int64_t columns)
{
    return run->split && args->m >= SPLIT_LEAST_ROWS && columns >= SPLIT_LEAST_COLUMNS &&
           gemm_k(args) >= SPLIT_DEPTH && pv_split_ready();
}

// ---- launches ----

static GemmProduct gemm_product(const GemmArgs *args, int64_t k_blocks, int64_t i0, int64_t i1)
{
    int64_t c = i0 * args->c0 + i1 * args->c1, residual = i0 * args->r0 + i1 * args->r1;
    return (GemmProduct){
        .base = {k_blocks, gemm_begin, gemm_pack_rows,
                 args->gate ? gate_pack_columns : gemm_pack_columns,
                 args->gate ? gate_store : gemm_store, gemm_rows_at},
        .first = args,
        .i0 = i0,
        .i1 = i1,
        .c = (PvReal *)args->c + c,
        .residual = args->residual ? (const PvReal *)args->residual + residual : NULL,
    };
}

// Segments with one A: their columns, one segment's behind the other's, are those of one product.
static void gemm_joint(const PvRun *run, const GemmArgs *args, int count)
{
    int64_t batches = args->sum_batch ? 1 : args->batch0 * args->batch1, k_blocks = 0;
    JointProduct joint = {.count = count};
    for (int i = 0; i < count; i++) {
        int64_t n = args[i].n;
        joint.start[i + 1] =
            joint.start[i] + (args[i].gate ? pv_ceil_div(n, PV_WIDTH) * PV_LANES : n);
    }
    int64_t columns = joint.start[count];
    if (args->m == 0 || columns == 0 || batches == 0)
        return;
    for (int64_t i = 0; i <= pv_most(0, args->sum); i++)
        k_blocks += gemm_k_blocks(&args[i]);
    joint.base = (Product){k_blocks,           joint_begin, joint_pack_rows,
                           joint_pack_columns, joint_store, joint_rows_at};
    bool split = gemm_splits(run, args, columns);
    ProductCut cut = product_cut(args->m, columns, k_blocks, batches, run->threads, split);
    int64_t blocks = cut.row_blocks * cut.column_blocks;
    int64_t together = pv_most(1, batches * blocks / (32 * (int64_t)run->threads));
#pragma omp parallel for schedule(dynamic, together)                                               \
    num_threads(run->threads) if (batches * blocks > 1)
    for (int64_t task = 0; task < batches * blocks; task++) {
        int64_t batch = task / blocks, block = task % blocks;
        int64_t i0 = args->sum_batch ? 0 : batch / args->batch1;
        int64_t i1 = args->sum_batch ? 0 : batch % args->batch1;
        int64_t m0 = block % cut.row_blocks * cut.rows;
        int64_t n0 = block / cut.row_blocks * cut.columns;
        JointProduct product = joint;
        for (int i = 0; i < count; i++)
            product.part[i] = gemm_product(&args[i], k_blocks, i0, i1);
        Product *base = count > 1 ? &product.base : &product.part[0].base;
        int64_t m1 = pv_least(m0 + cut.rows, args->m), n1 = pv_least(n0 + cut.columns, columns);
#if PV_SPLIT
        if (split) {
            split_block(base, product.part, m0, m1, n0, n1, pv_thread_scratch(run));
            continue;
        }
#endif
        pv_product_block(base, m0, m1, n0, n1, pv_thread_scratch(run));
    }
    for (int i = 0; i < count; i++) {
        NormSource c = {(const PvReal *)args[i].c, args[i].batch0, args[i].m, args[i].n,
                        args[i].c0, args[i].c_m};
        pv_norm_stats(run, &args[i].stats, &c);
    }
}

void pv_gemm_one(const PvRun *run, const GemmArgs *args)
{
    gemm_joint(run, args, 1);
}

void pv_gemm(const PvRun *run, const int64_t *raw)
{
    const GemmArgs *args = (const GemmArgs *)raw;
    for (int64_t i = 0, count; i < (int64_t)run->segments; i += count) {
        count = joint_count(run, args + i, (int64_t)run->segments - i);
        if (args[i].sum >= 0)
            gemm_joint(run, &args[i], (int)count);
    }
}
