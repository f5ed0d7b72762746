// Blocked products of matrices, given by functions that pack panels and store results: what
// pv_gemm and the convolutions have in common (the loops are in gemm.c).
//
// A task owns a block of rows and columns of the result and runs over k in blocks of at most
// PV_K_BLOCK: columns are packed once for each block of k and stay in the second-level cache, a
// panel of rows at a time stays in the first. Sums are kept apart for each block of k, so the cut
// of k is fixed by the operation alone, and results do not depend on the cut into tasks.
#ifndef PV_PRODUCT_H
#define PV_PRODUCT_H

#include "codegen/cpu/tile.h"

typedef struct Product Product;
struct Product {
    int64_t k_blocks;
    // Prepares block of k number `block` for columns n0 .. n1 - 1; returns its length.
    int64_t (*begin)(Product *product, int64_t block, int64_t n0, int64_t n1);
    // Rows m0 .. m0 + rows - 1 of the present block of k, [k][PV_ROWS]; says where the next
    // PV_ROWS rows come from (0 rows: no need to say).
    Ahead (*pack_rows)(Product *product, int64_t m0, int64_t rows, PvReal *panel);
    // Columns n0 .. n0 + columns - 1, [k][PV_LANES].
    void (*pack_columns)(Product *product, int64_t n0, int64_t columns, PvReal *panel);
    // The finished tile[rows][PV_LANES].
    void (*store)(Product *product, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                  const PvReal *tile);
    // Where row m0 of the present block of k lies, if its numbers are neighbours, and the next row
    // `step` behind it; NULL: they are not, or no function. Rows that meet one panel
    // are read there.
    const PvReal *(*rows_at)(Product *product, int64_t m0, int64_t *step);
};

// Rows and columns of a task's block, multiples of PV_ROWS and PV_LANES.
typedef struct {
    int64_t rows, columns;
    int64_t row_blocks, column_blocks;
} ProductCut;

ProductCut pv_product_cut(int64_t m, int64_t n, int64_t k_blocks, int64_t batches, int threads);
// Rows m0 .. m1 - 1 by columns n0 .. n1 - 1; scratch of pv_product_scratch bytes.
void pv_product_block(Product *product, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                      char *scratch);

// What becomes of `count` <= PV_LANES neighbouring sums: out = act(sum + bias) + residual.
// bias: one number for all, or with bias_n an array; residual: array or NULL.
void pv_product_finish(PvReal *out, const PvReal *sum, int64_t count, PvReal bias,
                       const PvReal *bias_n, const PvReal *residual, PvAct act);

// One segment of pv_gemm, and those behind it that belong to its sum.
void pv_gemm_one(const PvRun *run, const GemmArgs *args);

#endif
