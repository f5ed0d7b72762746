/* T3, forward: attention with one pass over keys (FlashAttention-2), mma.sync, bf16, sm_80.
 *
 * One block is 64 queries of one (batch, head), four warps of 16 rows. Keys and values come in
 * tiles of 64, the next one while the present one is used. Every row keeps its running maximum and
 * sum; probabilities go from the registers of the first product straight into the second. Any
 * length: keys beyond it get no weight. The logarithm (base 2) of the sum is kept for the backward
 * pass.
 */
#include "cx.h"
#ifndef HEAD_DIM
#define HEAD_DIM 32 // 32, 64 or 128
#endif
#define HEADS      8
#define TILE       64
#define THREADS    128
#define ROW        (HEAD_DIM * 2) // bytes
#define CHUNKS     (ROW / 16)     // of a row
#define TILE_BYTES (TILE * ROW)
#define MASKED     (-1e30f)
CX_CONSTANT(attention_forward__shared, 5 * TILE_BYTES)

// Byte offset of a 16-byte chunk of a row, exchanged so that ldmatrix meets no bank twice.
CX_FN u32 chunk_offset(int row, int chunk)
{
    int key = HEAD_DIM == 32 ? row >> 1 : row;
    int low = (chunk ^ key) & (CHUNKS < 8 ? CHUNKS - 1 : 7);
    return row * ROW + (low | (chunk & ~7)) * 16;
}

// Starts the copies of rows [first, first + 64) of one head; those from `length` on are zero.
CX_FN void load_tile(u32 tile, const bf16 *from, int first, int length)
{
    CX_UNROLL
    for (int i = 0; i < TILE * CHUNKS / THREADS; i++) {
        int copy = threadIdx.x + i * THREADS, row = copy / CHUNKS, chunk = copy % CHUNKS;
        bool inside = first + row < length;
        const bf16 *source =
            from + (long long)(inside ? first + row : 0) * HEADS * HEAD_DIM + chunk * 8;
        cx_copy16(tile + chunk_offset(row, chunk), source, inside ? 16 : 0);
    }
}

// What a thread knows of its two rows, lane / 4 and lane / 4 + 8 of its warp's 16.
struct Rows {
    float out[HEAD_DIM / 8][4];
    float maximum[2], sum[2];
};

// scores[16, 64] = queries keys', keys of index >= length masked.
CX_FN void multiply_keys(float (*scores)[4], const u32 (*query)[4], u32 keys, int first, int length)
{
    int lane = threadIdx.x & 31;
    CX_UNROLL
    for (int j = 0; j < TILE / 8; j++) {
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            scores[j][e] = 0.f;
    }
    CX_UNROLL
    for (int j = 0; j < TILE / 16; j++) {
        CX_UNROLL
        for (int d = 0; d < HEAD_DIM / 16; d++) {
            u32 b[4];
            int row = j * 16 + (lane & 7) + ((lane >> 4) << 3);
            cx_ldmatrix4(b, keys + chunk_offset(row, d * 2 + ((lane >> 3) & 1)));
            cx_mma(scores[2 * j], query[d], b);
            cx_mma(scores[2 * j + 1], query[d], b + 2);
        }
    }
    CX_UNROLL
    for (int j = 0; j < TILE / 8; j++) {
        int column = first + j * 8 + (lane & 3) * 2;
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            if (column + (e & 1) >= length)
                scores[j][e] = MASKED;
    }
}

// Raises the running maxima to those of the new scores and scales what was summed so far.
CX_FN void raise_maxima(Rows &rows, const float (*scores)[4], float scale)
{
    CX_UNROLL
    for (int half = 0; half < 2; half++) {
        float highest = rows.maximum[half];
        CX_UNROLL
        for (int j = 0; j < TILE / 8; j++)
            highest = fmaxf(highest, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(CX_ALL_LANES, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(CX_ALL_LANES, highest, 2));
        float factor = cx_exp2((rows.maximum[half] - highest) * scale);
        rows.maximum[half] = highest;
        rows.sum[half] *= factor;
        CX_UNROLL
        for (int d = 0; d < HEAD_DIM / 8; d++) {
            rows.out[d][2 * half] *= factor;
            rows.out[d][2 * half + 1] *= factor;
        }
    }
}

// out += softmax weights values
CX_FN void multiply_values(Rows &rows, const float (*scores)[4], u32 values, float scale)
{
    int lane = threadIdx.x & 31;
    CX_UNROLL
    for (int j = 0; j < TILE / 16; j++) {
        u32 weights[4];
        CX_UNROLL
        for (int i = 0; i < 4; i++) { // columns + 0, rows + 0 and + 8; then columns + 8
            const float *pair = scores[2 * j + i / 2] + i % 2 * 2;
            float low = cx_exp2((pair[0] - rows.maximum[i % 2]) * scale);
            float high = cx_exp2((pair[1] - rows.maximum[i % 2]) * scale);
            rows.sum[i % 2] += low + high;
            weights[i] = cx_pack(low, high);
        }
        CX_UNROLL
        for (int d = 0; d < HEAD_DIM / 16; d++) {
            u32 b[4];
            cx_ldmatrix4_transposed(b, values +
                                           chunk_offset(j * 16 + (lane & 15), d * 2 + (lane >> 4)));
            cx_mma(rows.out[2 * d], weights, b);
            cx_mma(rows.out[2 * d + 1], weights, b + 2);
        }
    }
}

// first: of the warp's 16 rows; out and log_sum point to this head.
CX_FN void store_rows(Rows &rows, bf16 *out, float *log_sum, int first, int length, float scale)
{
    int lane = threadIdx.x & 31;
    CX_UNROLL
    for (int half = 0; half < 2; half++) {
        float sum = rows.sum[half];
        sum += __shfl_xor_sync(CX_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(CX_ALL_LANES, sum, 2);
        int row = first + (lane >> 2) + half * 8;
        float factor = 1.f / sum;
        bf16 *to = out + (long long)row * HEADS * HEAD_DIM + (lane & 3) * 2;
        CX_UNROLL
        for (int d = 0; d < HEAD_DIM / 8; d++)
            if (row < length)
                *(u32 *)(to + d * 8) =
                    cx_pack(rows.out[d][2 * half] * factor, rows.out[d][2 * half + 1] * factor);
        if (row < length && (lane & 3) == 0)
            log_sum[row] = rows.maximum[half] * scale + log2f(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_forward(const bf16 *__restrict__ Q, // [B, length, HEADS, HEAD_DIM], as K, V and O
                      const bf16 *__restrict__ K, const bf16 *__restrict__ V, bf16 *__restrict__ O,
                      float *__restrict__ log_sum, // [B, HEADS, length]
                      int length, float scale)     // scale: log2(e) / sqrt(HEAD_DIM)
{
    CX_SHARED(shared);
    u32 queries = cx_shared_address(shared), keys = queries + TILE_BYTES;
    u32 values = queries + 3 * TILE_BYTES;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int head = blockIdx.y, first = blockIdx.x * TILE, tiles = (length + TILE - 1) / TILE;
    long long base = ((long long)(head / HEADS) * length * HEADS + head % HEADS) * HEAD_DIM;
    load_tile(queries, Q + base, first, length);
    load_tile(keys, K + base, 0, length);
    load_tile(values, V + base, 0, length);
    cx_copy_commit();
    Rows rows;
    u32 query[HEAD_DIM / 16][4];
    rows.maximum[0] = rows.maximum[1] = MASKED;
    rows.sum[0] = rows.sum[1] = 0.f;
    CX_UNROLL
    for (int d = 0; d < HEAD_DIM / 8; d++) {
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            rows.out[d][e] = 0.f;
    }
    for (int tile = 0; tile < tiles; tile++) {
        u32 present = (tile & 1) * TILE_BYTES, next = TILE_BYTES - present;
        cx_copy_wait(0);
#ifndef FAULT_TILE_SYNC
        __syncthreads(); // all copies are there, and nobody reads the buffers of the tile before
#endif
        if (tile + 1 < tiles) {
            load_tile(keys + next, K + base, (tile + 1) * TILE, length);
            load_tile(values + next, V + base, (tile + 1) * TILE, length);
        }
        cx_copy_commit();
        if (tile == 0) {
            CX_UNROLL
            for (int d = 0; d < HEAD_DIM / 16; d++)
                cx_ldmatrix4(query[d],
                             queries + chunk_offset(warp * 16 + (lane & 15), d * 2 + (lane >> 4)));
        }
        float scores[TILE / 8][4];
        multiply_keys(scores, query, keys + present, tile * TILE, length);
        raise_maxima(rows, scores, scale);
        multiply_values(rows, scores, values + present, scale);
    }
    cx_copy_wait(0);
    store_rows(rows, O + base, log_sum + (long long)head * length, first + warp * 16, length,
               scale);
}
CX_ENTRY(attention_forward)
