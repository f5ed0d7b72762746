/* Tiles of a matrix product (GemmArgs) and its epilogue, whatever makes the sums. Included in a
 * kernel's namespace behind the header of a tile product, whose GATE_COLUMNS values stand before as
 * many gates in a tile that has any. Definitions: GEMM_C_4, GEMM_ACT, GEMM_SUM, GEMM_GATE,
 * TILE_STATS as in gemm_f32.cu; GEMM_IMAGE_ROWS 1: statistics are of images whose positions
 * are rows (image_rows); COut, Residual and Bias are types of elements (storage.h).
 */
#if TILE_STATS == 1
#if GEMM_IMAGE_ROWS
enum { ROWS_ARE_POSITIONS = 1 };
#else
enum { ROWS_ARE_POSITIONS = 0 };
#endif
#include "norm_stats.h"
#endif

#if GEMM_GATE
enum { COLUMNS = TILE_N / 2 }; // of the result in a tile
#else
enum { COLUMNS = TILE_N };
#endif

// Where tile, part and batch element of a block lie.
struct Place {
    int m0, n0, i0, i1;
};

CX_FN Place place_of(const GemmArgs &args, int tile)
{
    int across = ((int)args.m + TILE_M - 1) / TILE_M, down = ((int)args.n + COLUMNS - 1) / COLUMNS;
    int batch = tile / across / down, batch1 = (int)args.batch1;
    Place place;
    place.m0 = tile % across * TILE_M;
    place.n0 = tile / across % down * COLUMNS;
    place.i0 = batch / batch1;
    place.i1 = batch % batch1;
    return place;
}

// The tile and the part of the reduction that a block makes; it keeps this in shared memory.
struct Task {
    int tile, part, parts;
    Place place;
};
enum { TASK_BYTES = 64 };
static_assert(sizeof(Task) <= TASK_BYTES, "a task has more fields");

CX_FN Task task_of(const GemmArgs &args, int block, int blocks)
{
    int tiles = ((int)args.m + TILE_M - 1) / TILE_M * (((int)args.n + COLUMNS - 1) / COLUMNS);
    if (!GEMM_SUM)
        tiles *= (int)(args.batch0 * args.batch1);
    return {block % tiles, block / tiles, blocks / tiles, place_of(args, block % tiles)};
}

// The task of a block, which its first thread finds.
CX_FN void begin_task(Task &task, const CxHead &head, u32 segment, const GemmArgs &args, u32 block)
{
    if (threadIdx.x == 0) {
        int blocks = (int)(head.first[segment + 1] - head.first[segment]);
        task = task_of(args, (int)block, blocks);
    }
    __syncthreads();
}

// c of one batch element.
struct Out {
#if TILE_STATS == 2
    enum { BY_COLUMN = 1, GATED = 0 };
#elif TILE_STATS
    enum { BY_COLUMN = ROWS_ARE_POSITIONS, GATED = 0 };
#else
    enum { BY_COLUMN = 0, GATED = COLUMNS < TILE_N ? (int)GATE_COLUMNS : 0 };
#endif
    COut *c;
    const Residual *residual;
    const Bias *bias;
    long long row, residual_row;
    int rows, row_length, n;
    bool bias_of_row;
    float added[4]; // bias of the columns at hand
#if GEMM_GATE
    int gate;            // from a value's column to its gate's
    float gate_added[4]; // bias of the gates
#endif
#if TILE_STATS == 2
    PieceStats stats;
    const GemmArgs *args;
    const WgmmaPlan *plan;
    Place place;
    bool in_parts;

    // Images are i0, each with tiles of its own, or follow one another in the rows of one product;
    // in either case they have whole pieces.
    __device__ void set_stats(const Launch &p, u32 segment, bool in_parts_)
    {
        bool one = args->batch0 == 1;
        int positions = (int)args->image_rows, end = min(place.m0 + (int)TILE_M, rows) - 1;
        in_parts = in_parts_;
        stats.set(args->stats, p.head, segment, one ? rows / positions : (int)args->batch0,
                  row_length, positions / (in_parts ? (int)PIECE_1 : (int)PIECE), positions);
        stats.set_work(p.head, segment, before_moments(*plan, in_parts));
        stats.first = one ? place.m0 / positions : place.i0;
        stats.last = one ? end / positions : place.i0;
    }
    __device__ int tiles_of(int from, int end) const
    {
        int positions = (int)args->image_rows, tiles = (end - from) * (int)plan->m_tiles;
        if (args->batch0 == 1)
            tiles = (end * positions - 1) / TILE_M - from * positions / TILE_M + 1;
        return tiles * (int)plan->n_tiles;
    }
    // A piece begins at row m.
    __device__ void begin(int m)
    {
        int positions = (int)args->image_rows, image = args->batch0 == 1 ? m / positions : 0;
        stats.begin(place.i0 + image,
                    (m - image * positions) / (in_parts ? (int)PIECE_1 : (int)PIECE), n);
    }
    __device__ bool is_row(int m) const
    {
        return m < rows;
    }
    __device__ void columns(const float *results, int stride, int m, int n0)
    {
        add_piece(*this, results, stride, m, n0);
    }
#elif TILE_STATS
    Statistics stats;

#if GEMM_IMAGE_ROWS
    int row0; // number of the product's first row among those of all images

    // Images are i0, each with tiles of its own, or follow one another in the rows of one product.
    // in_parts: phase 1 makes the results.
    CX_FN Statistics statistics_of(const GemmArgs &args, const CxHead &head, u32 segment,
                                   const Place &place, bool in_parts)
    {
        int tiles = ((int)args.m + TILE_M - 1) / TILE_M, positions = (int)args.image_rows;
        bool one = args.batch0 == 1;
        int images = one ? (int)args.m / positions : (int)args.batch0;
        int apart = one ? positions : tiles * TILE_M;
        Statistics stats = {&args.stats, moments_of(head, segment, in_parts),
                            head.counters + segment * CX_COUNTERS, images, (int)args.n, positions,
                            apart, in_parts ? (int)COLLECT_ROWS : (int)WARP_M,
                            ((int)args.n + TILE_N - 1) / TILE_N * (in_parts ? (int)TILE_BLOCKS : 1),
                            place.i0 * apart + place.m0, 0};
        stats.first_image = stats.start / apart;
        return stats;
    }
    __device__ void columns(const float *results, int stride, int m, int n0)
    {
        stats.add_columns(results, stride, row0 + m, n0, row_length - n0);
    }
#else
    // Images are i0, each with tiles of its own. in_parts: phase 1 makes the results.
    CX_FN Statistics statistics_of(const GemmArgs &args, const CxHead &head, u32 segment,
                                   const Place &place, bool in_parts)
    {
        int tiles = ((int)args.n + TILE_N - 1) / TILE_N;
        int row_tiles = ((int)args.m + TILE_M - 1) / TILE_M;
        Statistics stats = {&args.stats, moments_of(head, segment, in_parts),
                            head.counters + segment * CX_COUNTERS, (int)args.batch0, (int)args.m,
                            (int)args.n, tiles * TILE_N, TILE_N,
                            row_tiles * (in_parts ? (int)TILE_BLOCKS : 1),
                            place.i0 * tiles * TILE_N + place.n0, place.i0};
        return stats;
    }
#endif
#endif

    CX_FN Out of(const GemmArgs &args, const Place &place)
    {
        Out out;
        out.c = (COut *)args.c + place.i0 * args.c0 + place.i1 * args.c1;
        out.residual = (const Residual *)args.residual;
        out.residual_row = args.r_m;
#ifdef FAULT_GEMM_RESIDUAL // it is read in the order of the result
        out.residual_row = args.c_m;
#endif
        if (out.residual)
            out.residual += place.i0 * args.r0 + place.i1 * args.r1;
        out.bias = (const Bias *)args.bias;
        out.row = args.c_m;
        out.rows = (int)args.m;
        out.row_length = (int)args.n;
        out.bias_of_row = args.bias_axis != 0;
#if GEMM_GATE
        out.gate = (int)args.gate;
#endif
#if TILE_STATS == 2
        out.args = &args;
        out.place = place;
#elif TILE_STATS && GEMM_IMAGE_ROWS
        out.row0 = place.i0 * (((int)args.m + TILE_M - 1) / TILE_M * TILE_M);
#endif
        return out;
    }
    __device__ void column(int n_)
    {
        n = n_;
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            added[e] = bias && !bias_of_row && n + e < row_length ? cx_read(bias[n + e]) : 0.f;
#if GEMM_GATE
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            gate_added[e] = bias && n + e < row_length ? cx_read(bias[n + e + gate]) : 0.f;
#endif
    }
#if GEMM_GATE
    __device__ void put(int m, float *value, const float *gates)
    {
        if (m >= rows || n >= row_length)
            return;
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            value[e] = (value[e] + added[e]) * activate<GEMM_ACT>(gates[e] + gate_added[e]);
        store_four<GEMM_C_4>(c + m * row + n, value, row_length - n);
    }
#endif
    __device__ void put(int m, float *value)
    {
        if (m < rows && n < row_length)
            finish(m, value);
#if TILE_STATS == 2
        if (!in_parts && m < rows && n < row_length)
            stats.add(value);
#elif TILE_STATS && !GEMM_IMAGE_ROWS
        stats.add_row(m, m < rows, value);
#endif
    }
    __device__ void finish(int m, float *value)
    {
        float more[4], of_row = bias && bias_of_row ? cx_read(bias[m]) : 0.f;
        int there = row_length - n;
#ifdef FAULT_GEMM_EDGE // columns beyond the last are written
        there = 4;
#endif
        load_four<GEMM_C_4>(more, residual + m * residual_row + n, residual ? there : 0);
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            value[e] = activate<GEMM_ACT>(value[e] + added[e] + of_row) + more[e];
#if TILE_STATS
        CX_UNROLL
        for (int e = 0; e < 4; e++)
            value[e] = as_stored<COut>(value[e]);
#endif
        store_four<GEMM_C_4>(c + m * row + n, value, there);
    }
};

