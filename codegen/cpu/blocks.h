// Block sizes of the CPU kernels, shared by the kernels and by the formulas that say at compile
// time how much scratch they need (scratch.c). The compiler does not know the vector width of the
// machine that a model is compiled for, so everything here is in bytes or an upper bound.
#ifndef PV_BLOCKS_H
#define PV_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

enum {
    PV_MAX_ROWS = 12,           // rows of a register tile, at most
    PV_MAX_SPLIT_ROWS = 32,     // the same, where numbers are split (split.h)
    SPLIT_DEPTH = 32,           // numbers of k of a tile there
    SPLIT_STEP = 3 * 2 * 256,   // words of them in a panel
    PV_MAX_TILE = 128,          // bytes of a row of a register tile, at most
    PV_PANELS = 16,             // column panels of a block of a product
    PV_ROW_PANELS = 20,         // row panels of a block, if k needs several blocks
    PV_SUM_ROWS = PV_ROW_PANELS * PV_MAX_ROWS,
    PV_SPLIT_SUM_ROWS = 960,    // rows of such a block by split.h: a multiple of 32
    PV_K_BLOCK = 384,           // longest run of k between two visits of the result
    PV_WHOLE_PATCH = 4 << 20,   // bytes of a patch of all channels of a convolution, at most
    PV_WINOGRAD_BYTES = 4 << 20,    // of transformed elements of x of a batch of tiles, about
    PV_WINOGRAD_TILES = 256,    // of a batch, at most
    PV_WINOGRAD_CHANNELS = 64, // in a block of k
    PV_SPLIT_TILES_BYTES = 8 << 20, // the same by split.h
    PV_SPLIT_TILES = 128,       // ... a multiple of 32
    PV_SPLIT_CHANNELS = 64,     // ... a multiple of 32
    PV_SPLIT_SUMS = 4,          // panels of rows and of columns of a task of gradients
    PV_SPLIT_LEAST_TILES = 32,  // of one image
    PV_POINTWISE = 256,         // positions from which a 1 x 1 kernel is a plain product
    PV_QUERIES = 512,           // queries of a task of attention
    PV_KEYS = 264,              // keys of a block of attention: a multiple of 12
    PV_SPLIT_KEYS = 64,         // the same by split.h: a multiple of 32
    PV_SPLIT_NARROW = 16,       // numbers of a head that fill half of a tile's words, at most
    PV_SPLIT_ITEM = 3 * 6 * 16 * 16, // words of the scores of 32 keys and queries, and their parts
    PV_SPLIT_GRAD_WORDS = 1 << 18, // of a block of keys of its gradient by split.h, about
    PV_SPLIT_GRAD_TILES = 32,   // 32 keys each, of such a block, at most
    PV_GRAD_QUERIES = 128,      // queries of a block of its gradient
    PV_GRAD_KEYS = 120,         // keys of a block of its gradient
    PV_NORM_PARTS = 32,         // parts of the rows in sums over rows
    PV_REDUCE_PARTIALS = 32768, // partial results of a reduction, at most
    PV_SLACK = 256,             // bytes behind a buffer that may be touched
};

static inline int64_t pv_align(int64_t bytes)
{
    return (bytes + 63) & ~(int64_t)63;
}

static inline int64_t pv_least(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

static inline int64_t pv_most(int64_t x, int64_t y)
{
    return x > y ? x : y;
}

static inline int64_t pv_ceil_div(int64_t x, int64_t y)
{
    return (x + y - 1) / y;
}

// Tiles of 6 x 6 elements of so many channels that are transformed together, at most.
static inline int64_t pv_winograd_tiles(int64_t channels, int64_t real)
{
    int64_t most = PV_WINOGRAD_BYTES / (36 * real * pv_most(1, channels));
    return pv_most(12, pv_least(most, PV_WINOGRAD_TILES));
}

// The same by split.h.
static inline int64_t pv_split_tiles(int64_t channels)
{
    int64_t most = PV_SPLIT_TILES_BYTES / (36 * 4 * pv_most(1, channels));
    return pv_most(SPLIT_DEPTH, pv_least(most / SPLIT_DEPTH * SPLIT_DEPTH, PV_SPLIT_TILES));
}

// Words of a panel of split.h of k numbers.
static inline int64_t split_words(int64_t k)
{
    return pv_ceil_div(k, SPLIT_DEPTH) * SPLIT_STEP;
}

// The gradient of attention by split.h: words of the panels and sums of 32 keys, or of the panels
// of 32 queries.
static inline int64_t split_grad_words(int64_t d, int64_t e)
{
    int64_t columns = pv_ceil_div(d, SPLIT_DEPTH) + pv_ceil_div(e, SPLIT_DEPTH);
    return 2 * columns * SPLIT_STEP + columns * SPLIT_DEPTH * SPLIT_DEPTH;
}

// Its keys of a block: even blocks of whole tiles that a cache holds.
static inline int64_t split_grad_keys(int64_t m, int64_t d, int64_t e)
{
    int64_t most = PV_SPLIT_GRAD_WORDS / split_grad_words(d, e);
    most = pv_most(1, pv_least(most, PV_SPLIT_GRAD_TILES)) * SPLIT_DEPTH;
    int64_t blocks = pv_most(1, pv_ceil_div(m, most));
    return pv_ceil_div(pv_ceil_div(m, blocks), SPLIT_DEPTH) * SPLIT_DEPTH;
}

// Rows of a block of a product of m rows (0: endless), if k needs several blocks, at most.
static inline int64_t pv_sum_rows(int64_t m)
{
    int64_t split = pv_ceil_div(m, PV_MAX_SPLIT_ROWS) * PV_MAX_SPLIT_ROWS;
    split = m == 0 ? PV_SPLIT_SUM_ROWS : pv_least(split, PV_SPLIT_SUM_ROWS);
    return pv_most(PV_SUM_ROWS, split);
}

// Scratch of pv_product_block for a block whose rows have `row` bytes, whole panels; sum_rows: of
// the block, if k may need several blocks, else 0.
static inline int64_t pv_product_bytes(int64_t row, int64_t real, int64_t sum_rows)
{
    int64_t left = pv_align(PV_K_BLOCK * PV_MAX_ROWS * real + PV_SLACK);
    int64_t sums = pv_most(sum_rows * row, 2 * PV_MAX_SPLIT_ROWS * PV_MAX_TILE);
    // split.h: columns of half as many bytes again, two panels of rows, and one before it is split
    int64_t split = PV_K_BLOCK * (row / 2 + 4 * PV_MAX_TILE);
    return left + PV_K_BLOCK * row + sums + split + PV_SLACK;
}

#endif
