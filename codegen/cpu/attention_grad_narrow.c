// The gradient of attention on a processor's unit for matrices of bf16 (split.h), for heads of up
// to 16 numbers.
//
// 16 keys and 32 queries are an item, of three stages as in attention_grad_wide.c. Products of P
// (over 32 queries) are six products of parts; all others are over 16 numbers, which fill half of a
// tile's words with one part and half with another:
//   (h m) (h h) + (h m) (m m) + (h l) (l h) = h h + m h + h m + m m + h l + l h,
// three products of tiles. One operand needs two tiles, h m and h l (K, V, dS), the other three
// (Q, dO, and K for dQ). A tile h m of dS is both rows of dK's products and columns of dQ's.
//
// The third stage of the item before and the first of the one behind run between the rows of an
// item's second; these two have the same lines in turn. What the three have in hand, and panels of
// a few keys, is to stay in the first cache: with twice as many keys in an item, the gradient takes
// longer although it loads less. The lines of an item hold scores first, then parts. dQ of the
// present panel of queries stays in tiles 0 and 1.
#include "codegen/cpu/attention_grad.h"
#include "codegen/cpu/attention_split.h"

#if PV_SPLIT

enum {
    KEYS = 16, // of an item
    QUERIES = PV_LANES,
    KEY_LINE = 2 * SPLIT_PART,    // words of a row of k or v: h m, h l
    TURNED_LINE = 3 * SPLIT_PART, // of k by columns: h h, m m, l h
    PANEL_LINE = SPLIT_LINE,      // of a panel of queries: [half][h h, m m, l h], of do for dV
                                  // [half][h, m, l]
    HALF = PANEL_LINE / 2,
    V_AT = KEYS * KEY_LINE, // in the panels of an item's keys; k is at 0
    TURNED_AT = 2 * KEYS * KEY_LINE,
    STRIP = TURNED_AT + 16 * TURNED_LINE,
    DO_AT = SPLIT_STEP, // in the panels of queries; q is at 0
    Q_TURNED_AT = 2 * SPLIT_STEP,
    DO_TURNED_AT = 3 * SPLIT_STEP,
    PANEL = 4 * SPLIT_STEP,
    ITEM_LINE = 7 * SPLIT_PART, // parts of P, then of dS: [half][h m, h l]; S, then dP before
    DS_AT = 3 * SPLIT_PART,
    // from line to line
    KEY_BYTES = 4 * KEY_LINE,
    TURNED_BYTES = 4 * TURNED_LINE,
    PANEL_BYTES = 4 * PANEL_LINE,
    ITEM_BYTES = 4 * ITEM_LINE,
    SUM_BYTES = 4 * PV_LANES,
};

typedef struct {
    int64_t strips; // items of a block of keys
    PvReal *keys;   // [strip][STRIP]
    // in turn: of two panels of queries; what is added to their S and dP [PV_LANES]; two items
    PvReal *panel[2], *high[2], *delta[2], *item[2];
    PvReal *lanes; // [32][PV_LANES]
} NarrowGrad;

typedef struct {
    const PvReal *keys, *panel, *high, *delta;
    PvReal *lines;        // [KEYS][ITEM_LINE]
    PvReal *dk, *dv, *dq; // sums
    int64_t count;        // keys that there are
    bool first, last;     // of a panel of queries
} Item;

// Scores of a key to parts of P and dS.
PV_INLINE void item_row(const Item *at, int64_t row)
{
    PvReal *line = at->lines + row * ITEM_LINE, *to = line + DS_AT;
    PvVec p[2], ds[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        power_of(line + i * PV_WIDTH, to + i * PV_WIDTH, at->high + i * PV_WIDTH,
                 at->delta + i * PV_WIDTH, &p[i], &ds[i]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        PvVec middle = lower_part(ds[i]);
        vec_store(to + i * 2 * SPLIT_PART, pack_halves(ds[i], middle));
        vec_store(to + (i * 2 + 1) * SPLIT_PART, pack_halves(ds[i], lower_part(middle)));
    }
#pragma GCC unroll 3
    for (int part = 0; part < 3; part++) {
        vec_store(line + part * SPLIT_PART, pack_halves(p[0], p[1]));
        p[0] = lower_part(p[0]);
        p[1] = lower_part(p[1]);
    }
}

// The same of an item that is beside what is done, if there is one.
PV_INLINE void beside_row(const Item *at, int64_t row)
{
    if (at)
        item_row(at, row);
}

enum { ROWS_OF_SUMS = 10 }; // rows that are made beside sums

// Rows first .. end - 1 with nothing beside them.
static __attribute__((noinline)) void item_rows(const Item *at, int64_t first, int64_t end)
{
    for (int64_t row = first; row < end; row++)
        item_row(at, row);
}

// The third stage of an item, beside the first rows of `now`.
static __attribute__((noinline)) void narrow_sums(const Item *item, const Item *now)
{
    const PvReal *turned = item->keys + TURNED_AT, *q = item->panel + Q_TURNED_AT;
    const PvReal *d_o = item->panel + DO_TURNED_AT, *p = item->lines, *ds = p + DS_AT;
    if (item->first) {
        SPLIT_LOAD(0, item->dq, SUM_BYTES);
        SPLIT_LOAD(1, item->dq + PV_WIDTH, SUM_BYTES);
    }
    SPLIT_LOAD(2, item->dv, SUM_BYTES);
    SPLIT_LOAD(4, d_o, PANEL_BYTES);
    SPLIT_LOAD(5, p + 2 * SPLIT_PART, ITEM_BYTES);
    _tile_dpbf16ps(2, 5, 4); // l h
    SPLIT_LOAD(7, p + SPLIT_PART, ITEM_BYTES);
    _tile_dpbf16ps(2, 7, 4); // m h
    beside_row(now, 0);
    SPLIT_LOAD(3, d_o + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(2, 7, 3); // m m
    SPLIT_LOAD(5, p, ITEM_BYTES);
    _tile_dpbf16ps(2, 5, 3); // h m
    beside_row(now, 1);
    _tile_dpbf16ps(2, 5, 4); // h h
    SPLIT_LOAD(6, d_o + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(2, 5, 6); // h l
    beside_row(now, 2);
    // dK (tile 3) and dQ: tile after tile of dS in 7, parts of Q in 2, of K in 4 to 6
    SPLIT_LOAD(3, item->dk, SUM_BYTES);
    SPLIT_LOAD(7, ds + SPLIT_PART, ITEM_BYTES);
    SPLIT_LOAD(6, turned + 2 * SPLIT_PART, TURNED_BYTES);
    _tile_dpbf16ps(0, 6, 7);
    _tile_stored(2, item->dv, SUM_BYTES);
    SPLIT_LOAD(2, q + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 2);
    beside_row(now, 3);
    SPLIT_LOAD(7, ds, ITEM_BYTES);
    SPLIT_LOAD(5, turned + SPLIT_PART, TURNED_BYTES);
    _tile_dpbf16ps(0, 5, 7);
    SPLIT_LOAD(2, q + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 2);
    beside_row(now, 4);
    SPLIT_LOAD(4, turned, TURNED_BYTES);
    _tile_dpbf16ps(0, 4, 7);
    SPLIT_LOAD(2, q, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 2);
    beside_row(now, 5);
    SPLIT_LOAD(7, ds + 3 * SPLIT_PART, ITEM_BYTES);
    _tile_dpbf16ps(1, 6, 7);
    SPLIT_LOAD(2, q + HALF + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 2);
    beside_row(now, 6);
    SPLIT_LOAD(7, ds + 2 * SPLIT_PART, ITEM_BYTES);
    _tile_dpbf16ps(1, 5, 7);
    SPLIT_LOAD(2, q + HALF + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 2);
    beside_row(now, 7);
    _tile_dpbf16ps(1, 4, 7);
    SPLIT_LOAD(2, q + HALF, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 2);
    beside_row(now, 8);
    beside_row(now, 9);
    _tile_stored(3, item->dk, SUM_BYTES);
    if (item->last) {
        _tile_stored(0, item->dq, SUM_BYTES);
        _tile_stored(1, item->dq + PV_WIDTH, SUM_BYTES);
    }
}

// The first stage of an item, beside the other rows of `now`.
static __attribute__((noinline)) void narrow_scores(const Item *item, const Item *now)
{
    const PvReal *k = item->keys, *v = k + V_AT, *q = item->panel, *d_o = q + DO_AT;
    PvReal *s = item->lines, *dp = s + DS_AT;
    SPLIT_LOAD(3, k + SPLIT_PART, KEY_BYTES);
    SPLIT_LOAD(4, q + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_zero(6);
    _tile_dpbf16ps(6, 3, 4);
    SPLIT_LOAD(5, q + HALF + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_zero(7);
    _tile_dpbf16ps(7, 3, 5);
    beside_row(now, 10);
    SPLIT_LOAD(2, k, KEY_BYTES);
    SPLIT_LOAD(4, q + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(6, 2, 4);
    SPLIT_LOAD(5, q + HALF + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(7, 2, 5);
    beside_row(now, 11);
    SPLIT_LOAD(4, q, PANEL_BYTES);
    _tile_dpbf16ps(6, 2, 4);
    SPLIT_LOAD(5, q + HALF, PANEL_BYTES);
    _tile_dpbf16ps(7, 2, 5);
    beside_row(now, 12);
    // dP; S is stored when products follow that do not wait for it
    SPLIT_LOAD(2, v + SPLIT_PART, KEY_BYTES);
    SPLIT_LOAD(4, d_o + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_zero(3);
    _tile_dpbf16ps(3, 2, 4);
    _tile_stored(6, s, ITEM_BYTES);
    SPLIT_LOAD(5, d_o + HALF + 2 * SPLIT_PART, PANEL_BYTES);
    _tile_zero(6);
    _tile_dpbf16ps(6, 2, 5);
    beside_row(now, 13);
    _tile_stored(7, s + PV_WIDTH, ITEM_BYTES);
    SPLIT_LOAD(7, v, KEY_BYTES);
    SPLIT_LOAD(4, d_o + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 4);
    SPLIT_LOAD(5, d_o + HALF + SPLIT_PART, PANEL_BYTES);
    _tile_dpbf16ps(6, 7, 5);
    beside_row(now, 14);
    SPLIT_LOAD(4, d_o, PANEL_BYTES);
    _tile_dpbf16ps(3, 7, 4);
    SPLIT_LOAD(5, d_o + HALF, PANEL_BYTES);
    _tile_dpbf16ps(6, 7, 5);
    beside_row(now, 15);
    _tile_stored(3, dp, ITEM_BYTES);
    _tile_stored(6, dp + PV_WIDTH, ITEM_BYTES);
    // keys behind the last: the power of their scores is 0
    for (int64_t i = item->count; i < KEYS; i++) {
        for (int64_t j = 0; j < QUERIES; j++)
            s[i * ITEM_LINE + j] = -(PvReal)INFINITY;
    }
}

static Item item_of(const NarrowGrad *at, const GradProblem *problem, int64_t number, int64_t keys)
{
    int64_t strip = number % at->strips, panel = number / at->strips;
    return (Item){
        .keys = at->keys + strip * STRIP,
        .panel = at->panel[panel % 2],
        .high = at->high[panel % 2],
        .delta = at->delta[panel % 2],
        .lines = at->item[number % 2],
        .dk = problem->dk_sums + strip * KEYS * PV_LANES,
        .dv = problem->dv_sums + strip * KEYS * PV_LANES,
        .dq = problem->dq_sums + panel * PV_LANES * problem->dq_rows,
        .count = pv_least(KEYS, keys - strip * KEYS),
        .first = strip == 0,
        .last = strip == at->strips - 1,
    };
}

// ---- panels ----

// x = h + m + l, h and m rounded to nearest.
PV_INLINE void split_three(PvVec x, PvVec part[3])
{
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(-0x10000);
    for (int i = 0; i < 2; i++) {
        __m512i rounded = _mm512_add_epi32((__m512i)x, half);
        part[i] = (PvVec)_mm512_and_epi32(rounded, upper);
        x -= part[i];
    }
    part[2] = x;
}

// Words h m, h l of x.
PV_INLINE void store_two(PvReal *to, PvVec x)
{
    PvVec part[3];
    split_three(x, part);
    vec_store(to, pack_halves(part[0], part[1]));
    vec_store(to + SPLIT_PART, pack_halves(part[0], part[2]));
}

// Words h h, m m, l h of x.
PV_INLINE void store_three(PvReal *to, PvVec x)
{
    PvVec part[3];
    split_three(x, part);
    vec_store(to, pack_halves(part[0], part[0]));
    vec_store(to + SPLIT_PART, pack_halves(part[1], part[1]));
    vec_store(to + 2 * SPLIT_PART, pack_halves(part[2], part[0]));
}

// Half of the columns of lanes [d][PV_LANES], times scale; rows behind d are 0.
PV_INLINE void load_half(PvVec x[16], const PvReal *lanes, int half, int64_t d, PvReal scale)
{
    for (int64_t i = 0; i < 16; i++)
        x[i] = i < d ? vec_load(lanes + i * PV_LANES + half * PV_WIDTH) * scale : (PvVec){0};
}

// The panels of queries n0 ..
static void query_panel(const NarrowGrad *at, const GradProblem *problem, int64_t n0)
{
    const AttentionArgs *args = problem->f.args;
    int64_t set = n0 / QUERIES % 2, queries = pv_least(QUERIES, args->n - n0);
    PvReal *panel = at->panel[set];
    PvVec x[16];
    Rows q, d_o;
    grad_queries(problem, n0, queries, &q, &d_o, at->high[set], at->delta[set]);
    pack_panel(at->lanes, PV_LANES, q.at, q.n, q.d, queries, args->d);
    for (int half = 0; half < 2; half++) {
        load_half(x, at->lanes, half, args->d, problem->f.unit);
        for (int i = 0; i < 16; i++)
            store_three(panel + i * PANEL_LINE + half * HALF, x[i]);
        load_half(x, at->lanes, half, args->d, problem->f.scale);
        vec_transpose(x);
        for (int i = 0; i < 16; i++)
            store_three(panel + Q_TURNED_AT + i * PANEL_LINE + half * HALF, x[i]);
    }
    pack_panel(at->lanes, PV_LANES, d_o.at, d_o.n, d_o.d, queries, args->e);
    for (int half = 0; half < 2; half++) {
        load_half(x, at->lanes, half, args->e, 1);
        for (int i = 0; i < 16; i++)
            store_three(panel + DO_AT + i * PANEL_LINE + half * HALF, x[i]);
    }
    pack_panel(at->lanes, PV_LANES, d_o.at, d_o.d, d_o.n, args->e, queries);
    split_columns(panel + DO_TURNED_AT, at->lanes, PV_LANES, queries);
}

// The panels of keys m0 .. m0 + keys - 1.
static void key_panels(const NarrowGrad *at, const GradProblem *problem, int64_t m0, int64_t keys)
{
    const AttentionArgs *args = problem->f.args;
    Rows v = {problem->f.v + m0 * args->v_n, args->v_n, args->v_d};
    Rows k = load_rows(&args->k_rotary, problem->room, problem->f.k, args->k_n, args->k_d, args->d,
                       m0, keys);
    for (int64_t first = 0; first < keys; first += KEYS) {
        PvReal *to = at->keys + first / KEYS * STRIP;
        int64_t count = pv_least(KEYS, keys - first);
        PvVec x[16];
        pack_panel(at->lanes, PV_LANES, k.at + first * k.n, k.n, k.d, count, args->d);
        load_half(x, at->lanes, 0, args->d, 1);
        for (int i = 0; i < 16; i++)
            store_three(to + TURNED_AT + i * TURNED_LINE, x[i]);
        vec_transpose(x);
        for (int i = 0; i < KEYS; i++)
            store_two(to + i * KEY_LINE, x[i]);
        pack_panel(at->lanes, PV_LANES, v.at + first * v.n, v.n, v.d, count, args->e);
        load_half(x, at->lanes, 0, args->e, 1);
        vec_transpose(x);
        for (int i = 0; i < KEYS; i++)
            store_two(to + V_AT + i * KEY_LINE, x[i]);
    }
}

// ---- a problem ----

// Lays out the scratch of a task.
static NarrowGrad narrow_scratch(GradProblem *problem, PvReal *next)
{
    const AttentionArgs *args = problem->f.args;
    NarrowGrad at;
    next = grad_sums(problem, next);
    for (int i = 0; i < 2; i++)
        at.item[i] = next, next += KEYS * ITEM_LINE;
    for (int i = 0; i < 2; i++) {
        at.panel[i] = next, next += PANEL;
        at.high[i] = next, next += PV_LANES;
        at.delta[i] = next, next += PV_LANES;
    }
    at.keys = next, next += problem->block / KEYS * STRIP;
    at.lanes = next, next += QUERIES * PV_LANES;
    problem->room = next, next += problem->block * args->d;
    problem->q_room = next;
    return at;
}

// All queries against the keys m0 .. m0 + keys - 1: item after item, three of them in hand.
static void narrow_block(NarrowGrad *at, const GradProblem *problem, int64_t m0, int64_t keys)
{
    at->strips = pv_ceil_div(keys, KEYS);
    key_panels(at, problem, m0, keys);
    grad_clear(problem, m0);
    int64_t items = at->strips * pv_ceil_div(problem->f.args->n, QUERIES);
    Item before = {0}, now = {0}, next = {0};
    for (int64_t i = 0; i < items + 2; i++) {
        const Item *beside = i > 0 && i <= items ? &now : NULL;
        if (i > 1)
            narrow_sums(&before, beside);
        else if (beside)
            item_rows(beside, 0, ROWS_OF_SUMS);
        if (i < items) {
            if (i % at->strips == 0)
                query_panel(at, problem, i / at->strips * QUERIES);
            next = item_of(at, problem, i, keys);
            narrow_scores(&next, beside);
        } else if (beside) {
            item_rows(beside, ROWS_OF_SUMS, KEYS);
        }
        before = now;
        now = next;
    }
    grad_store_block(problem, m0, keys);
}

void pv_grad_narrow(GradProblem *problem, PvReal *scratch)
{
    NarrowGrad at = narrow_scratch(problem, scratch);
    grad_delta(problem);
    split_begin();
    for (int64_t m0 = 0; m0 < problem->f.args->m; m0 += problem->block)
        narrow_block(&at, problem, m0, pv_least(problem->block, problem->f.args->m - m0));
    split_end();
    grad_store_queries(problem);
}

#endif
