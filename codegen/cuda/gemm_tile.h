/* The tile product of exact f32 on CUDA cores: TILE_M x TILE_N sums a block, TILE_K of the
 * reduction a step. Included in a kernel's namespace, so it has no guard.
 *
 * A step's parts of A and B lie in shared memory k by k, [TILE_K][TILE_M + 4] and [TILE_K][TILE_N +
 * 4]: a thread multiplies TILE_TM rows by TILE_TN columns that it reads 16 bytes at a time. Lanes
 * form a TILE_LM x 32 / TILE_LM grid; rows and columns of a thread come in fours, a grid's width
 * apart, so that neighbouring lanes read neighbouring banks and write whole sectors. There are two
 * buffers: while one is multiplied the next step is on its way through registers, with one barrier
 * a step.
 *
 * A loader has
 *     void load(float *r, int step)              global memory to registers
 *     void put(const float *r, float *to)        registers to its part of a buffer
 * and what becomes of the sums is told in tile_out.h.
 *
 * Definitions: TILE_M TILE_N TILE_K TILE_TM TILE_TN TILE_LM. Each of TILE_M, TILE_N at most the
 * number of threads.
 */
enum {
    TILE_LN = 32 / TILE_LM,
    WARP_M = TILE_LM * TILE_TM,
    WARP_N = TILE_LN * TILE_TN,
    WARPS_M = TILE_M / WARP_M,
    THREADS = 32 * WARPS_M * (TILE_N / WARP_N),
    ROW_A = TILE_M + 4, // floats from k to k + 1
    ROW_B = TILE_N + 4,
    BUFFER = TILE_K * (ROW_A + ROW_B),
    GATE_COLUMNS = TILE_N / 2,
};
#include "tile_out.h"

// Row of a tile, or k of a step, that is number q where lanes walk rows of WIDTH floats that lie
// WIDTH + 4 apart.
template <int WIDTH> CX_FN int in_turn(int q)
{
    return row_in_turn<WIDTH / 4, WIDTH / 4 + 1>(q);
}

struct TileSums {
    float at[TILE_TM][TILE_TN];
};

// Where row i and column 4 j of this thread lie in the tile.
CX_FN int tile_row(int i)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    return warp % WARPS_M * WARP_M + i / 4 * (TILE_LM * 4) + lane / TILE_LN * 4 + i % 4;
}
CX_FN int tile_column(int j)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    return warp / WARPS_M * WARP_N + j * (TILE_LN * 4) + lane % TILE_LN * 4;
}

CX_FN void tile_multiply(TileSums &sums, const float *buffer)
{
    const float *a_at = buffer + tile_row(0), *b_at = buffer + TILE_K * ROW_A + tile_column(0);
    CX_UNROLL_BY(4) // unrolled whole it takes the compiler half as long again
    for (int k = 0; k < TILE_K; k++) {
        float a[TILE_TM], b[TILE_TN];
        CX_UNROLL
        for (int i = 0; i < TILE_TM / 4; i++) {
            float4 four = *(const float4 *)(a_at + k * ROW_A + i * (TILE_LM * 4));
            a[4 * i] = four.x, a[4 * i + 1] = four.y, a[4 * i + 2] = four.z, a[4 * i + 3] = four.w;
        }
        CX_UNROLL
        for (int j = 0; j < TILE_TN / 4; j++) {
            float4 four = *(const float4 *)(b_at + k * ROW_B + j * (TILE_LN * 4));
            b[4 * j] = four.x, b[4 * j + 1] = four.y, b[4 * j + 2] = four.z, b[4 * j + 3] = four.w;
        }
        CX_UNROLL
        for (int i = 0; i < TILE_TM; i++) {
            CX_UNROLL
            for (int j = 0; j < TILE_TN; j++)
                sums.at[i][j] += a[i] * b[j];
        }
    }
}

// Sums of steps first .. end - 1.
template <class A, class B>
CX_FN void tile_product(TileSums &sums, A &a, B &b, float *shared, int first, int end)
{
    float a_next[A::COUNT], b_next[B::COUNT];
    CX_UNROLL
    for (int i = 0; i < TILE_TM; i++) {
        CX_UNROLL
        for (int j = 0; j < TILE_TN; j++)
            sums.at[i][j] = 0.f;
    }
    if (first >= end)
        return;
    // round first - 1 only fetches: the loaders' text is here once, half of the compiler's work
    CX_NO_UNROLL
    for (int step = first - 1; step < end; step++) {
        float *now = shared + (step - first + 2) % 2 * BUFFER;
        float *then = shared + (step - first + 1) % 2 * BUFFER;
        bool more = step + 1 < end;
        if (more) {
            a.load(a_next, step + 1);
            b.load(b_next, step + 1);
        }
        if (step >= first)
            tile_multiply(sums, now);
        if (more) {
            a.put(a_next, then);
            b.put(b_next, then + TILE_K * ROW_A);
        }
#ifndef FAULT_TILE_SYNC
        __syncthreads();
#endif
    }
}

// A row of warps at a time. Shared memory is free, and is so again afterwards.
template <class Out>
CX_FN void tile_store(const TileSums &sums, Out &out, int m0, int n0, float *shared)
{
    const int ROW = TILE_N + 4;
    out.column(n0 + tile_column4());
    CX_NO_UNROLL
    for (int row_of_warps = 0; row_of_warps < WARPS_M; row_of_warps++) {
        if ((int)(threadIdx.x >> 5) % WARPS_M == row_of_warps) {
            CX_UNROLL
            for (int i = 0; i < TILE_TM; i++) {
                CX_UNROLL
                for (int j = 0; j < TILE_TN / 4; j++) {
                    const float *four = &sums.at[i][4 * j];
                    *(float4 *)(shared + tile_row(i) % WARP_M * ROW + tile_column(j)) =
                        make_float4(four[0], four[1], four[2], four[3]);
                }
            }
        }
        __syncthreads();
        tile_rows(shared, WARP_M, ROW, out, m0 + row_of_warps * WARP_M);
        __syncthreads();
        if constexpr (Out::BY_COLUMN) {
            out.columns(shared, ROW, m0 + row_of_warps * WARP_M, n0);
            __syncthreads();
        }
    }
}

/* ---- loaders of matrices; ROWS rows of A or B, STRIDE floats from k to k + 1 in shared memory */

// Element (row, k) at base + row * stride + k: fours along k, which two neighbouring lanes share
// a row of. The sums over several matrices take `per` steps each.
template <int ROWS, int STRIDE, bool VECTOR> struct DenseK {
    enum {
        CHUNKS = ROWS * TILE_K / 4,
        LOADS = (CHUNKS + THREADS - 1) / THREADS,
        COUNT = LOADS * 4,
        WHOLE = CHUNKS % THREADS == 0,
        FOURS = VECTOR,
    };
    const float *base; // of row 0 of the tile, k 0
    long long stride;
    int rows, size; // rows that there are, of k

    CX_FN int row_of(int i)
    {
        return (int)((threadIdx.x + i * THREADS) / 2 % ROWS);
    }
    CX_FN int k_of(int i)
    {
        int chunk = (int)(threadIdx.x + i * THREADS);
        return (chunk % 2 + chunk / (2 * ROWS) * 2) * 4;
    }
    __device__ void load_at(float *r, const float *from, int k0)
    {
        CX_UNROLL
        for (int i = 0; i < LOADS; i++) {
            int row = row_of(i), k = k0 + k_of(i);
            bool there = row < rows && (WHOLE || k_of(i) < TILE_K);
            load_four<VECTOR>(r + 4 * i, from + row * stride + k, there ? size - k : 0);
        }
    }
    __device__ void load(float *r, int step)
    {
        load_at(r, base, step * TILE_K);
    }
    __device__ void put(const float *r, float *to)
    {
        CX_UNROLL
        for (int i = 0; i < LOADS; i++) {
            if (!WHOLE && k_of(i) >= TILE_K)
                break;
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                to[(k_of(i) + e) * STRIDE + row_of(i)] = r[4 * i + e];
        }
    }
};

// Element (row, k) at base + row + k * stride: fours along the rows.
template <int ROWS, int STRIDE, bool VECTOR> struct DenseRows {
    enum {
        CHUNKS = ROWS * TILE_K / 4,
        LOADS = (CHUNKS + THREADS - 1) / THREADS,
        COUNT = LOADS * 4,
        WHOLE = CHUNKS % THREADS == 0,
        FOURS = VECTOR,
    };
    const float *base;
    long long stride;
    int rows, size;

    CX_FN int row_of(int i)
    {
        return (int)((threadIdx.x + i * THREADS) % (ROWS / 4)) * 4;
    }
    CX_FN int k_of(int i)
    {
        return in_turn<ROWS>((int)(threadIdx.x + i * THREADS) / (ROWS / 4));
    }
    __device__ void load_at(float *r, const float *from, int k0)
    {
        CX_UNROLL
        for (int i = 0; i < LOADS; i++) {
            int row = row_of(i), k = k0 + k_of(i);
            bool there = k < size && (WHOLE || k_of(i) < TILE_K);
            load_four<VECTOR>(r + 4 * i, from + k * stride + row, there ? rows - row : 0);
        }
    }
    __device__ void load(float *r, int step)
    {
        load_at(r, base, step * TILE_K);
    }
    __device__ void put(const float *r, float *to)
    {
        CX_UNROLL
        for (int i = 0; i < LOADS; i++) {
            if (!WHOLE && k_of(i) >= TILE_K)
                break;
            *(float4 *)(to + k_of(i) * STRIDE + row_of(i)) =
                make_float4(r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
        }
    }
};
