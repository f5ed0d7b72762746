// The register tile: what products of matrices, convolutions and attention are made of.
//
// tile[rows][lanes] = (or +=) sum over k of a[k][row] b[k][lane]. a is a packed panel, PV_ROWS
// numbers for each k, of which each is broadcast; b is a panel of vectors, `b_step` elements from
// k to k + 1 (PV_LANES when packed). The tile stays in registers over the whole run of k. With
// AVX-512 it is 12 rows of 2 vectors: 24 accumulators, 2 vectors of b and a broadcast in 32
// registers, and 14 loads for 24 multiply-adds. Smaller variants serve the edges, in thirds of the
// rows and one or two vectors. Each number is one chain of fused multiply-adds in the order of k,
// so it does not depend on the variant nor on the cut into blocks of rows and columns.
// See Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008).
#ifndef PV_TILE_H
#define PV_TILE_H

#include <omp.h>
#include <string.h>

#include "codegen/cpu/blocks.h"
#include "codegen/cpu/kernels.h"

// Without this the accumulation below would be a multiplication and an addition.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#if defined __AVX512F__
enum { PV_VECTOR_BYTES = 64, PV_ROWS = 12 };
#elif defined __AVX__
enum { PV_VECTOR_BYTES = 32, PV_ROWS = 6 };
#else
enum { PV_VECTOR_BYTES = 16, PV_ROWS = 6 };
#endif
enum { PV_WIDTH = PV_VECTOR_BYTES / sizeof(PvReal), PV_LANES = 2 * PV_WIDTH };

#ifdef PV_REAL64
typedef int64_t PvIndex;
#else
typedef int32_t PvIndex;
#endif
typedef PvReal PvVec __attribute__((vector_size(PV_VECTOR_BYTES)));
// the same at any address
typedef PvReal PvVecU
    __attribute__((vector_size(PV_VECTOR_BYTES), aligned(sizeof(PvReal)), may_alias));
typedef PvIndex PvMask __attribute__((vector_size(PV_VECTOR_BYTES)));

#define PV_INLINE static inline __attribute__((always_inline, unused))

PV_INLINE PvVec vec_load(const PvReal *at)
{
    return *(const PvVecU *)at;
}

PV_INLINE void vec_store(PvReal *at, PvVec value)
{
    *(PvVecU *)at = value;
}

PV_INLINE PvVec vec_all(PvReal value)
{
    return value - (PvVec){0};
}

// The present thread's part of run->scratch.
PV_INLINE char *pv_thread_scratch(const PvRun *run)
{
    return run->scratch + omp_get_thread_num() * run->scratch_size;
}

// Memory that will be packed next, asked for while a tile is computed, a line for each k: line
// after line of `rows` rows `step` apart. Hardware does not foresee panels of rows far apart.
typedef struct {
    const PvReal *at;
    int64_t step, rows;
} Ahead;

// One variant; rows and vectors are constants where it is inlined. Row i of a is a_row
// elements after row i - 1, and k + 1 is a_step after k. `start`: what the sums of each lane
// begin with, or NULL.
PV_INLINE void tile_body(int rows, int vectors, int64_t k, const PvReal *a, int64_t a_row,
                         int64_t a_step, const PvReal *b, int64_t b_step, const PvReal *start,
                         PvReal *c, int64_t c_step, bool add, const Ahead *next)
{
    Ahead ahead = next ? *next : (Ahead){0};
    int64_t row = 0;
    PvVec sum[PV_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++)
            sum[i][j] = start ? vec_load(start + j * PV_WIDTH) : (PvVec){0};
    }
    for (int64_t p = 0; p < k; p++) {
        PvVec right[2];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++)
            right[j] = vec_load(b + j * PV_WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            PvVec left = vec_all(a[i * a_row]);
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++)
                sum[i][j] += left * right[j];
        }
        a += a_step;
        b += b_step;
        if (!next)
            continue;
        __builtin_prefetch(ahead.at, 0, 2);
        ahead.at += ahead.step;
        if (++row == ahead.rows) {
            ahead.at += 64 / (int64_t)sizeof(PvReal) - row * ahead.step;
            row = 0;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            PvReal *at = c + i * c_step + j * PV_WIDTH;
            vec_store(at, add ? vec_load(at) + sum[i][j] : sum[i][j]);
        }
    }
}

// The variant for so many rows and lanes; to be inlined where strides and `start` are constants.
PV_INLINE void tile_choose(int64_t rows, int64_t lanes, int64_t k, const PvReal *a, int64_t a_row,
                           int64_t a_step, const PvReal *b, int64_t b_step, const PvReal *start,
                           PvReal *c, int64_t c_step, bool add)
{
    enum { THIRD = PV_ROWS / 3 };
    if (lanes > PV_WIDTH) {
        if (rows > 2 * THIRD)
            tile_body(PV_ROWS, 2, k, a, a_row, a_step, b, b_step, start, c, c_step, add, NULL);
        else if (rows > THIRD)
            tile_body(2 * THIRD, 2, k, a, a_row, a_step, b, b_step, start, c, c_step, add, NULL);
        else
            tile_body(THIRD, 2, k, a, a_row, a_step, b, b_step, start, c, c_step, add, NULL);
    } else {
        if (rows > 2 * THIRD)
            tile_body(PV_ROWS, 1, k, a, a_row, a_step, b, b_step, start, c, c_step, add, NULL);
        else if (rows > THIRD)
            tile_body(2 * THIRD, 1, k, a, a_row, a_step, b, b_step, start, c, c_step, add, NULL);
        else
            tile_body(THIRD, 1, k, a, a_row, a_step, b, b_step, start, c, c_step, add, NULL);
    }
}

// c[rows][lanes] (+)= sum over k of a[k][rows] b[k][lanes]. Writes whole vectors and `rows`
// rounded up to a third of PV_ROWS.
static __attribute__((noinline, unused)) void tile_multiply(int64_t rows, int64_t lanes, int64_t k,
                                                            const PvReal *a, const PvReal *b,
                                                            int64_t b_step, PvReal *c,
                                                            int64_t c_step, bool add)
{
    tile_choose(rows, lanes, k, a, 1, PV_ROWS, b, b_step, NULL, c, c_step, add);
}

// The same for all PV_ROWS rows, which lie `a_row` apart and dense in k, and packed columns.
static __attribute__((noinline, unused)) void tile_multiply_rows(int64_t lanes, int64_t k,
                                                                 const PvReal *a, int64_t a_row,
                                                                 const PvReal *b, PvReal *c,
                                                                 bool add, const Ahead *next)
{
    if (lanes > PV_WIDTH)
        tile_body(PV_ROWS, 2, k, a, a_row, 1, b, PV_LANES, NULL, c, PV_LANES, add, next);
    else
        tile_body(PV_ROWS, 1, k, a, a_row, 1, b, PV_LANES, NULL, c, PV_LANES, add, next);
}

// tile_multiply for all PV_ROWS rows and packed panels, while asking for what comes next.
static __attribute__((noinline, unused)) void tile_multiply_ahead(int64_t lanes, int64_t k,
                                                                  const PvReal *a, const PvReal *b,
                                                                  PvReal *c, bool add,
                                                                  const Ahead *next)
{
    if (lanes > PV_WIDTH)
        tile_body(PV_ROWS, 2, k, a, 1, PV_ROWS, b, PV_LANES, NULL, c, PV_LANES, add, next);
    else
        tile_body(PV_ROWS, 1, k, a, 1, PV_ROWS, b, PV_LANES, NULL, c, PV_LANES, add, next);
}

// ---- packing ----

// x[half], y[half], x[half + 1], y[half + 1], ...: half of the perfect shuffle of two vectors
PV_INLINE PvVec vec_interleave(PvVec x, PvVec y, int half)
{
#ifdef __clang__
    PvVec z = x;
#pragma clang loop unroll(full)
    for (int i = 0; i < PV_WIDTH; i++)
        z[i] = i & 1 ? y[half + i / 2] : x[half + i / 2];
    return z;
#else
    PvMask mask = {0};
    for (int i = 0; i < PV_WIDTH; i++)
        mask[i] = half + i / 2 + (i & 1) * PV_WIDTH;
    return __builtin_shuffle(x, y, mask);
#endif
}

// The square x[PV_WIDTH] transposed: log2 PV_WIDTH perfect shuffles of its rows.
PV_INLINE void vec_transpose(PvVec *x)
{
    PvVec y[PV_WIDTH];
#pragma GCC unroll 4
    for (int step = 1; step < PV_WIDTH; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < PV_WIDTH / 2; i++) {
            y[2 * i] = vec_interleave(x[i], x[i + PV_WIDTH / 2], 0);
            y[2 * i + 1] = vec_interleave(x[i], x[i + PV_WIDTH / 2], PV_WIDTH / 2);
        }
#pragma GCC unroll 16
        for (int i = 0; i < PV_WIDTH; i++)
            x[i] = y[i];
    }
}

// to[k * to_step + i] = from[i * step + k], i < rows; zero from there to PV_WIDTH
PV_INLINE void pack_square(PvReal *to, int64_t to_step, const PvReal *from, int64_t step,
                           int64_t rows, int64_t k)
{
    for (int64_t first = 0; first < k; first += PV_WIDTH) {
        PvVec x[PV_WIDTH];
        int64_t count = k - first < PV_WIDTH ? k - first : PV_WIDTH;
        if (count == PV_WIDTH) {
#pragma GCC unroll 16
            for (int i = 0; i < PV_WIDTH; i++)
                x[i] = i < rows ? vec_load(from + i * step + first) : (PvVec){0};
        } else {
            memset(x, 0, sizeof x);
            for (int64_t i = 0; i < pv_least(rows, PV_WIDTH); i++)
                memcpy(&x[i], from + i * step + first, (size_t)count * sizeof(PvReal));
        }
        vec_transpose(x);
        for (int64_t i = 0; i < count; i++)
            vec_store(to + (first + i) * to_step, x[i]);
    }
}

// to[k][width] = from[i * step + k], i < rows; zero from there to `width`, PV_ROWS or PV_LANES.
// Writes whole vectors: PV_ROWS is not a multiple of their width, what comes too far is overwritten
// by the next k, and less than a vector goes behind the panel.
PV_INLINE void pack_transposed(PvReal *to, int width, const PvReal *from, int64_t step,
                               int64_t rows, int64_t k)
{
    enum { BLOCKS = (PV_ROWS + PV_WIDTH - 1) / PV_WIDTH };
    if (width == PV_LANES) {
        for (int64_t i = 0; i < PV_LANES; i += PV_WIDTH)
            pack_square(to + i, PV_LANES, from + i * step, step, rows - i, k);
        return;
    }
    for (int64_t first = 0; first < k; first += PV_WIDTH) {
        PvReal square[BLOCKS][PV_WIDTH * PV_WIDTH] __attribute__((aligned(64)));
        int64_t count = k - first < PV_WIDTH ? k - first : PV_WIDTH;
        for (int block = 0; block < BLOCKS; block++)
            pack_square(square[block], PV_WIDTH, from + block * PV_WIDTH * step + first, step,
                        pv_least(rows, PV_ROWS) - block * PV_WIDTH, count);
        for (int64_t i = 0; i < count; i++) {
            for (int block = 0; block < BLOCKS; block++)
                vec_store(to + (first + i) * PV_ROWS + block * PV_WIDTH,
                          vec_load(square[block] + i * PV_WIDTH));
        }
    }
}

// to[k][width] = from[k * step + i], i < rows; zero from there to `width`.
PV_INLINE void pack_straight(PvReal *to, int width, const PvReal *from, int64_t step, int64_t rows,
                             int64_t k)
{
    if (rows >= width) {
        for (int64_t p = 0; p < k; p++) {
            // the panel that is likely to be next
            __builtin_prefetch(from + p * step + width, 0, 2);
            memcpy(to + p * width, from + p * step, (size_t)width * sizeof(PvReal));
        }
        return;
    }
    for (int64_t p = 0; p < k; p++) {
        for (int64_t i = 0; i < width; i++)
            to[p * width + i] = i < rows ? from[p * step + i] : 0;
    }
}

// A panel of any layout; fast where one of the strides of k and of rows is 1.
PV_INLINE void pack_panel(PvReal *to, int width, const PvReal *from, int64_t row_step,
                          int64_t k_step, int64_t rows, int64_t k)
{
    if (row_step == 1) {
        pack_straight(to, width, from, k_step, rows, k);
    } else if (k_step == 1) {
        pack_transposed(to, width, from, row_step, rows, k);
    } else {
        for (int64_t p = 0; p < k; p++) {
            for (int64_t i = 0; i < width; i++)
                to[p * width + i] = i < rows ? from[i * row_step + p * k_step] : 0;
        }
    }
}

// to[k * to_step + i] = from[i * step + k], i < rows, k < count: writes only these.
PV_INLINE void store_transposed(PvReal *to, int64_t to_step, const PvReal *from, int64_t step,
                                int64_t rows, int64_t count)
{
    PvReal square[PV_WIDTH * PV_WIDTH] __attribute__((aligned(64)));
    for (int64_t i = 0; i < rows; i += PV_WIDTH) {
        for (int64_t k = 0; k < count; k += PV_WIDTH) {
            int64_t high = pv_least(rows - i, PV_WIDTH), wide = pv_least(count - k, PV_WIDTH);
            PvReal *at = to + k * to_step + i;
            if (high == PV_WIDTH) {
                pack_square(at, to_step, from + i * step + k, step, high, wide);
                continue;
            }
            pack_square(square, PV_WIDTH, from + i * step + k, step, high, wide);
            for (int64_t j = 0; j < wide; j++)
                memcpy(at + j * to_step, square + j * PV_WIDTH, (size_t)high * sizeof(PvReal));
        }
    }
}

// mask ? x : y, element by element; elements of the mask are 0 or -1
PV_INLINE PvVec vec_choose(PvMask mask, PvVec x, PvVec y)
{
    return (PvVec)((mask & (PvMask)x) | (~mask & (PvMask)y));
}

PV_INLINE PvVec vec_max(PvVec x, PvVec y)
{
    return vec_choose(y > x, y, x);
}

// e^x for x up to about 1; 0 below the smallest normal number. As pv_exp (pv_math.h).
PV_INLINE PvVec vec_exp_negative(PvVec x)
{
#ifdef PV_REAL64
    for (int i = 0; i < PV_WIDTH; i++)
        x[i] = __builtin_exp(x[i]);
    return x;
#else
    PvMask keep = ~(x <= -87.0f);
    PvVec shifted = x * 1.44269504f + 12582912.0f;
    PvVec n = shifted - 12582912.0f;
    PvVec r = n * -0.693145752f + x;
    r = n * -1.42860677e-6f + r;
    PvVec p = r * 0.001381165373f + 0.008370134457f;
    p = p * r + 0.04166852845f;
    p = p * r + 0.1666650872f;
    p = p * r + 0.4999999263f;
    p = p * (r * r) + r;
    PvMask scale = ((PvMask)shifted - 0x4b400000 + 127) << 23;
    p = (p + 1.0f) * (PvVec)scale;
    return (PvVec)(keep & (PvMask)p);
#endif
}

#endif
