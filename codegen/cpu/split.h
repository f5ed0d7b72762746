// Products of f32 matrices on a processor's unit for matrices of bf16 (AMX).
//
// A number x of 24 significant bits is the sum of three bf16 of 8: h = round(x), m = round(x - h),
// l = x - h - m, all differences exact. Of the nine products of two such sums
//
//   a b = ah bh + (ah bm + am bh) + (am bm + ah bl + al bh) + ...
//
// six are made, which are exact in f32 and added up in f32; the three left out are below 2^-23 of
// a b (h and m of b are rounded towards 0, which is faster), and of either sign. So this is an f32
// product with f32 sums: its error is that of multiply-adds. The unit makes 16 times as many
// products a cycle as vectors do, so six of them take 0.38 of the time. What is below 2^-110 loses
// bits, and an infinite operand gives NaN.
//
// Panels are of 32 rows (a) or columns (b), for each 32 numbers of k three parts of two tiles: a
// tile of a is [row][word], of b [word][column], 16 x 16 words of two bf16, those of k = w and
// w + 16. Rows of the six tiles lie beside one another, so that panels are written line by line.
// See Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
// higher-precision computations" (2019).
#ifndef PV_SPLIT_H
#define PV_SPLIT_H

#include "codegen/cpu/tile.h"

#if defined __AMX_BF16__ && defined __AVX512BW__ && defined __linux__ && !defined PV_REAL64
#define PV_SPLIT 1
#include <immintrin.h>
#else
#define PV_SPLIT 0
#endif

enum {
    SPLIT_ROWS = PV_MAX_SPLIT_ROWS, // of a panel of a; one of b has PV_LANES columns
    // of a panel, in words: from part to part, from tile to tile, from a tile's row to the next
    SPLIT_PART = 16,
    SPLIT_TILE = 3 * SPLIT_PART,
    SPLIT_LINE = 2 * SPLIT_TILE,
    SPLIT_LINE_BYTES = 4 * SPLIT_LINE,
    SPLIT_PARTS = 3, // of other work that are done in a step of k
};

// Whether this process may use the unit. Asks the system once.
bool pv_split_ready(void);

#if PV_SPLIT

// A compiler's own intrinsic does not say that it reads memory.
#define SPLIT_LOAD(tile, at, bytes)                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                                            \
                     :                                                                             \
                     : "r"(at), "r"((int64_t)(bytes))                                              \
                     : "memory")

// The tiles' shapes, for the calling thread, and their end.
PV_INLINE void split_begin(void)
{
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

PV_INLINE void split_end(void)
{
    _tile_release();
}

// part[0], part[1], part[2]: words of h, m and l of `low`, with those of `high` in their upper
// half. h and m are rounded to nearest, or, in fewer instructions, towards 0.
PV_INLINE void split_pair(PvVec low, PvVec high, bool nearest, PvVec part[3])
{
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(-0x10000);
    const __mmask32 odd = 0xaaaaaaaa;
    __m512i x = (__m512i)low, y = (__m512i)high;
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512i p = nearest ? _mm512_add_epi32(x, half) : x;
        __m512i q = nearest ? _mm512_add_epi32(y, half) : y;
        part[i] = (PvVec)_mm512_mask_blend_epi16(odd, _mm512_srli_epi32(p, 16), q);
        x = (__m512i)((__m512)x - (__m512)_mm512_and_epi32(p, upper));
        y = (__m512i)((__m512)y - (__m512)_mm512_and_epi32(q, upper));
    }
    part[2] = (PvVec)_mm512_mask_blend_epi16(odd, _mm512_srli_epi32(x, 16), y);
}

// A panel of columns out of [k][step].
static __attribute__((noinline, unused)) void split_columns(PvReal *to, const PvReal *panel,
                                                            int64_t step, int64_t k)
{
    for (int64_t first = 0; first < k; first += SPLIT_DEPTH, to += SPLIT_STEP) {
        const PvReal *at = panel + first * step;
        for (int64_t word = 0; word < 16; word++, at += step) {
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                PvVec low = {0}, high = {0}, part[3];
                if (first + word < k)
                    low = vec_load(at + j * PV_WIDTH);
                if (first + word + 16 < k)
                    high = vec_load(at + 16 * step + j * PV_WIDTH);
                split_pair(low, high, false, part);
#pragma GCC unroll 3
                for (int i = 0; i < 3; i++)
                    vec_store(to + i * SPLIT_PART + j * SPLIT_TILE + word * SPLIT_LINE, part[i]);
            }
        }
    }
}

// `count` <= SPLIT_DEPTH neighbours in k of a panel's row, to its line of a step of k.
PV_INLINE void split_line(PvReal *to, const PvReal *from, int64_t count)
{
    PvVec part[3] = {{0}};
    if (count >= SPLIT_DEPTH) {
        split_pair(vec_load(from), vec_load(from + 16), true, part);
    } else if (count > 0) {
        PvReal rest[SPLIT_DEPTH] = {0};
        memcpy(rest, from, (size_t)count * sizeof *rest);
        split_pair(vec_load(rest), vec_load(rest + 16), true, part);
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++)
        vec_store(to + i * SPLIT_PART, part[i]);
}

// The line of a row of a panel in the first step of k.
static inline int64_t split_row_at(int64_t row)
{
    return row / 16 * SPLIT_TILE + row % 16 * SPLIT_LINE;
}

// A panel of `rows` rows, `step` apart and dense in k.
static __attribute__((noinline, unused)) void split_rows(PvReal *to, const PvReal *from,
                                                         int64_t step, int64_t rows, int64_t k)
{
    for (int64_t row = 0; row < SPLIT_ROWS; row++, from += step) {
        PvReal *at = to + split_row_at(row);
        for (int64_t first = 0; first < k; first += SPLIT_DEPTH, at += SPLIT_STEP)
            split_line(at, from + first, row < rows ? k - first : 0);
    }
}

// A panel of rows out of [k][step], in which they are columns.
static __attribute__((noinline, unused)) void split_turned(PvReal *to, const PvReal *panel,
                                                           int64_t step, int64_t k)
{
    for (int64_t first = 0; first < k; first += SPLIT_DEPTH, to += SPLIT_STEP) {
        for (int j = 0; j < 2; j++) {
            const PvReal *at = panel + first * step + j * PV_WIDTH;
            PvVec part[3][PV_WIDTH];
            for (int word = 0; word < 16; word++, at += step) {
                PvVec low = {0}, high = {0}, one[3];
                if (first + word < k)
                    low = vec_load(at);
                if (first + word + 16 < k)
                    high = vec_load(at + 16 * step);
                split_pair(low, high, true, one);
                for (int i = 0; i < 3; i++)
                    part[i][word] = one[i];
            }
            for (int i = 0; i < 3; i++) {
                vec_transpose(part[i]);
                for (int row = 0; row < 16; row++)
                    vec_store(to + i * SPLIT_PART + j * SPLIT_TILE + row * SPLIT_LINE,
                              part[i][row]);
            }
        }
    }
}

// Adds the products of one part of a and one of b that are in tiles 4 to 7.
PV_INLINE void split_add(bool tall, bool wide)
{
    _tile_dpbf16ps(0, 4, 6);
    if (wide)
        _tile_dpbf16ps(1, 4, 7);
    if (tall)
        _tile_dpbf16ps(2, 5, 6);
    if (tall && wide)
        _tile_dpbf16ps(3, 5, 7);
}

// Lines of a panel are so many bytes apart.
PV_INLINE void split_load_rows(const PvReal *a, int64_t bytes, bool tall)
{
    SPLIT_LOAD(4, a, bytes);
    if (tall)
        SPLIT_LOAD(5, a + SPLIT_TILE, bytes);
}

PV_INLINE void split_load_columns(const PvReal *b, int64_t bytes, bool wide)
{
    SPLIT_LOAD(6, b, bytes);
    if (wide)
        SPLIT_LOAD(7, b + SPLIT_TILE, bytes);
}

// Work with vectors while the unit multiplies: `part` does one of `parts` parts of it.
typedef struct SplitAside SplitAside;
struct SplitAside {
    void (*part)(SplitAside *aside, int64_t parts);
};

// Adds `steps` steps of k to tiles 0 to 3. Lines of a and b are so many bytes apart, and those of
// c, where tile 0 will go. It is stored there after each step: where the unit has made more than
// 120 products since a tile was stored, storing the next one takes 250 ns longer. With `aside`,
// SPLIT_PARTS parts of it are done in each step: not all at once, since a processor looks only so
// many instructions ahead for products.
PV_INLINE void split_add_steps(bool tall, bool wide, int64_t steps, const PvReal *a,
                               int64_t a_bytes, const PvReal *b, int64_t b_bytes, PvReal *c,
                               int64_t c_bytes, SplitAside *aside)
{
    int64_t parts = SPLIT_PARTS * steps;
    for (int64_t i = 0; i < steps; i++, a += SPLIT_STEP, b += SPLIT_STEP) {
        if (i > 0)
            _tile_stored(0, c, c_bytes);
        split_load_rows(a + 2 * SPLIT_PART, a_bytes, tall);
        split_load_columns(b, b_bytes, wide);
        split_add(tall, wide); // l h
        split_load_rows(a + SPLIT_PART, a_bytes, tall);
        split_add(tall, wide); // m h
        if (aside)
            aside->part(aside, parts);
        split_load_columns(b + SPLIT_PART, b_bytes, wide);
        split_add(tall, wide); // m m
        split_load_rows(a, a_bytes, tall);
        split_add(tall, wide); // h m
        if (aside)
            aside->part(aside, parts);
        split_load_columns(b + 2 * SPLIT_PART, b_bytes, wide);
        split_add(tall, wide); // h l
        split_load_columns(b, b_bytes, wide);
        split_add(tall, wide); // h h
        if (aside)
            aside->part(aside, parts);
    }
}

PV_INLINE void split_zero(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

PV_INLINE void split_store(bool tall, bool wide, PvReal *c, int64_t c_step)
{
    int64_t bytes = c_step * (int64_t)sizeof *c;
    PvReal *below = c + 16 * c_step;
    _tile_stored(0, c, bytes);
    if (wide)
        _tile_stored(1, c + 16, bytes);
    if (tall)
        _tile_stored(2, below, bytes);
    if (tall && wide)
        _tile_stored(3, below + 16, bytes);
}

PV_INLINE void split_load_sums(bool tall, bool wide, const PvReal *c, int64_t c_step)
{
    int64_t bytes = c_step * (int64_t)sizeof *c;
    const PvReal *below = c + 16 * c_step;
    SPLIT_LOAD(0, c, bytes);
    if (wide)
        SPLIT_LOAD(1, c + 16, bytes);
    if (tall)
        SPLIT_LOAD(2, below, bytes);
    if (tall && wide)
        SPLIT_LOAD(3, below + 16, bytes);
}

PV_INLINE void split_body(bool tall, bool wide, int64_t steps, const PvReal *a, const PvReal *b,
                          PvReal *c, int64_t c_step, bool add, SplitAside *aside)
{
    if (add)
        split_load_sums(tall, wide, c, c_step);
    else
        split_zero();
    split_add_steps(tall, wide, steps, a, SPLIT_LINE_BYTES, b, SPLIT_LINE_BYTES, c,
                    c_step * (int64_t)sizeof *c, aside);
    split_store(tall, wide, c, c_step);
}

// c[rows][lanes] (+)= the product of two panels; writes whole tiles of 16 x 16. aside: done beside
// it in SPLIT_PARTS parts a step, or NULL.
static __attribute__((noinline, unused)) void split_multiply(int64_t rows, int64_t lanes, int64_t k,
                                                             const PvReal *a, const PvReal *b,
                                                             PvReal *c, int64_t c_step, bool add,
                                                             SplitAside *aside)
{
    int64_t steps = pv_ceil_div(k, SPLIT_DEPTH);
    if (rows > 16 && lanes > 16)
        split_body(true, true, steps, a, b, c, c_step, add, aside);
    else if (rows > 16)
        split_body(true, false, steps, a, b, c, c_step, add, aside);
    else if (lanes > 16)
        split_body(false, true, steps, a, b, c, c_step, add, aside);
    else
        split_body(false, false, steps, a, b, c, c_step, add, aside);
}

#endif
#endif
