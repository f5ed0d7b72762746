/* The tile product of bf16 or f16 on mma.sync (sm_80 and up), f32 sums: TILE_M x TILE_N sums a
 * block, 32 of the reduction a stage. Included in a kernel's namespace, so it has no guard.
 *
 * A stage has TILE_M rows of A and TILE_N rows of B. An operand that is dense along the reduction
 * lies in it row by row, 64 bytes each; one that is dense along its rows lies k by k and is read by
 * transposing ldmatrix. Chunks of 16 bytes are exchanged so that neither meets a bank twice.
 * cp.async fills a ring of STAGES stages: while one is multiplied the others are on their way.
 * Operands that cannot be copied in chunks (other storage, other strides, odd sizes) are loaded
 * element by element and converted.
 *
 * An operand is told by a source:
 *     Row row(int row)                          what depends on a row
 *     Step step(int first, int within)          and on an element of the reduction, the `within`-th
 *                                               of the step that begins with `first`
 *     const Element *at(row, step, bool *inside)
 * A chunk is eight rows or eight k from the one asked for.
 *
 * Definitions: TILE_M TILE_N WARP_M WARP_N, of a block and of a warp; TILE_HALF, PvStorage of the
 * operands in shared memory.
 */
enum {
    TILE_K = 32,
    STAGES = 3,
    WARPS_M = TILE_M / WARP_M,
    THREADS = 32 * WARPS_M * (TILE_N / WARP_N),
    STAGE_A = TILE_M * TILE_K * 2, // bytes
    STAGE = (TILE_M + TILE_N) * TILE_K * 2,
    GATE_COLUMNS = TILE_N / 2,
};
#include "tile_out.h"

struct TileSums {
    float at[WARP_M / 16][WARP_N / 8][4];
};

/* ---- stages ---- */

// Byte of chunk 0..3 of a row, of an operand dense along k.
CX_FN u32 chunk_of_row(int row, int chunk)
{
    return (u32)(row * 64 + (((chunk ^ (row >> 1)) & 3) << 4));
}
// Byte of chunk 0..ROWS / 8 - 1 of k, of an operand dense along its rows.
template <int ROWS> CX_FN u32 chunk_of_k(int k, int chunk)
{
    return (u32)(k * (ROWS * 2) + ((chunk ^ (k & 7)) << 4));
}

// Fills its operand's part of stages; ROWS of them, `first` the first of the tile.
template <class Source, int ROWS, bool ALONG_K, bool CHUNKS> struct Operand {
    enum {
        DEFERS = 0, // 1: `finish` puts behind a product what `load` fetched before it
        COUNT = ROWS * TILE_K / 8 / THREADS, // chunks of a thread
        ACROSS = ROWS / 8,
    };
    Source source;
    typename Source::Row fixed[ALONG_K ? COUNT : 1];
    int first;

    CX_FN int row_of(int i)
    {
        return ALONG_K ? (int)(threadIdx.x + i * THREADS) / 4 : (int)threadIdx.x % ACROSS * 8;
    }
    CX_FN int k_of(int i)
    {
        return ALONG_K ? (int)threadIdx.x % 4 * 8 : (int)(threadIdx.x + i * THREADS) / ACROSS;
    }
    __device__ void set(int first_)
    {
        first = first_;
        if (CHUNKS) {
            CX_UNROLL
            for (int i = 0; i < (ALONG_K ? COUNT : 1); i++)
                fixed[i] = source.row(first + row_of(i));
        }
    }
    __device__ u32 place_of(int i)
    {
        return ALONG_K ? chunk_of_row(row_of(i), k_of(i) / 8)
                       : chunk_of_k<ROWS>(k_of(i), row_of(i) / 8);
    }
    // A chunk's elements one after another, as the code is there once; they move up in the words.
    __device__ void load_elements(u8 *to, int i, int step)
    {
        uint4 chunk = make_uint4(0, 0, 0, 0);
        float even = 0.f;
        CX_NO_UNROLL
        for (int e = 0; e < 8; e++) {
            bool inside;
            auto row = source.row(first + row_of(i) + (ALONG_K ? 0 : e));
            auto k = source.step(step * TILE_K, k_of(i) + (ALONG_K ? e : 0));
            auto from = source.at(row, k, &inside);
            float value = inside ? cx_read(*from) : 0.f;
            if (e % 2 == 1)
                chunk = make_uint4(chunk.y, chunk.z, chunk.w, cx_pack_half<TILE_HALF>(even, value));
            even = value;
        }
        *(uint4 *)to = chunk;
    }
    __device__ void load(u8 *stage, int step)
    {
        if (CHUNKS && ALONG_K) {
            auto k = source.step(step * TILE_K, k_of(0));
            CX_UNROLL
            for (int i = 0; i < COUNT; i++) {
                bool inside;
                auto from = source.at(fixed[i], k, &inside);
                cx_copy16(cx_shared_address(stage + place_of(i)), from, inside ? 16 : 0);
            }
        } else if (CHUNKS) {
            CX_UNROLL
            for (int i = 0; i < COUNT; i++) {
                bool inside;
                auto k = source.step(step * TILE_K, k_of(i));
                auto from = source.at(fixed[0], k, &inside);
                cx_copy16(cx_shared_address(stage + place_of(i)), from, inside ? 16 : 0);
            }
        } else {
            CX_NO_UNROLL
            for (int i = 0; i < COUNT; i++)
                load_elements(stage + place_of(i), i, step);
        }
    }
};

// Fragments of 16 of the reduction, from a stage's part of an operand: of A 16 rows from `row`, in
// mma's order; of B 16 rows, four words that are two fragments.
template <int ROWS, bool ALONG_K>
CX_FN void fragment_a(u32 *r, u32 part, int row, int k)
{
    int lane = threadIdx.x & 31;
    if (ALONG_K)
        cx_ldmatrix4(r, part + chunk_of_row(row + (lane & 15), k * 2 + (lane >> 4)));
    else
        cx_ldmatrix4_transposed(r, part + chunk_of_k<ROWS>(k * 16 + (lane & 7) + (lane >> 4) * 8,
                                                           row / 8 + (lane >> 3 & 1)));
}
template <int ROWS, bool ALONG_K>
CX_FN void fragment_b(u32 *r, u32 part, int row, int k)
{
    int lane = threadIdx.x & 31;
    if (ALONG_K)
        cx_ldmatrix4(r, part + chunk_of_row(row + (lane & 7) + (lane >> 4) * 8,
                                            k * 2 + (lane >> 3 & 1)));
    else
        cx_ldmatrix4_transposed(r, part + chunk_of_k<ROWS>(k * 16 + (lane & 15),
                                                           row / 8 + (lane >> 4)));
}

template <bool A_ALONG_K, bool B_ALONG_K> CX_FN void tile_multiply(TileSums &sums, u32 stage)
{
    int warp = threadIdx.x >> 5;
    int m = warp % WARPS_M * WARP_M, n = warp / WARPS_M * WARP_N;
    CX_UNROLL
    for (int k = 0; k < TILE_K / 16; k++) {
        u32 a[WARP_M / 16][4], b[WARP_N / 16][4];
        CX_UNROLL
        for (int i = 0; i < WARP_M / 16; i++)
            fragment_a<TILE_M, A_ALONG_K>(a[i], stage, m + i * 16, k);
        CX_UNROLL
        for (int j = 0; j < WARP_N / 16; j++)
            fragment_b<TILE_N, B_ALONG_K>(b[j], stage + STAGE_A, n + j * 16, k);
        CX_UNROLL
        for (int i = 0; i < WARP_M / 16; i++) {
            CX_UNROLL
            for (int j = 0; j < WARP_N / 8; j++)
                cx_mma_half<TILE_HALF>(sums.at[i][j], a[i], b[j / 2] + j % 2 * 2);
        }
    }
}

// Sums of steps first .. end - 1; shared memory is free afterwards.
template <bool A_ALONG_K, bool B_ALONG_K, class A, class B>
CX_FN void tile_product(TileSums &sums, A &a, B &b, u8 *shared, int first, int end)
{
    u32 ring = cx_shared_address(shared);
    CX_UNROLL
    for (int i = 0; i < WARP_M / 16; i++) {
        CX_UNROLL
        for (int j = 0; j < WARP_N / 8; j++) {
            CX_UNROLL
            for (int e = 0; e < 4; e++)
                sums.at[i][j][e] = 0.f;
        }
    }
    CX_NO_UNROLL
    for (int step = first - (STAGES - 1); step < end; step++) {
        if (step >= first) {
#ifdef FAULT_MMA_WAIT // waits for one group too few
            cx_copy_wait(STAGES - 1);
#else
            cx_copy_wait(STAGES - 2);
#endif
#ifndef FAULT_MMA_SYNC // without it a fast warp overwrites the stage that others still read
            __syncthreads();
#endif
        }
        int next = step + STAGES - 1;
#ifdef FAULT_MMA_STAGE // overwrites the stage that is multiplied next
        u8 *stage = shared + (next - first + 1) % STAGES * STAGE;
#else
        u8 *stage = shared + (next - first) % STAGES * STAGE;
#endif
        if (next < end) {
            a.load(stage, next);
            b.load(stage + STAGE_A, next);
        }
        cx_copy_commit();
        if (step >= first)
            tile_multiply<A_ALONG_K, B_ALONG_K>(sums,
                                                ring + (u32)((step - first) % STAGES * STAGE));
        if constexpr (A::DEFERS)
            if (next < end)
                a.finish(stage, next);
    }
    cx_copy_wait(0);
    __syncthreads();
}

// A row of warps at a time. Shared memory is free, and is so again afterwards.
template <class Out>
CX_FN void tile_store(const TileSums &sums, Out &out, int m0, int n0, float *shared)
{
    const int ROW = TILE_N + 8;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float *to = shared + (lane >> 2) * ROW + warp / WARPS_M * WARP_N + (lane & 3) * 2;
    out.column(n0 + tile_column4());
    CX_NO_UNROLL
    for (int row_of_warps = 0; row_of_warps < WARPS_M; row_of_warps++) {
        if (warp % WARPS_M == row_of_warps) {
            CX_UNROLL
            for (int i = 0; i < WARP_M / 16; i++) {
                CX_UNROLL
                for (int j = 0; j < WARP_N / 8; j++) {
                    const float *d = sums.at[i][j];
                    *(float2 *)(to + i * 16 * ROW + j * 8) = make_float2(d[0], d[1]);
                    *(float2 *)(to + (i * 16 + 8) * ROW + j * 8) = make_float2(d[2], d[3]);
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
