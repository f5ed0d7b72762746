/* T1: matrix products in bf16 or f16 with f32 sums (GemmArgs), on the tile product of
 * wgmma_product.h.
 *
 * A is a tensor {k, m, batch1, batch0}, or {m, k, ...} where its rows are dense, and so is B; TMA
 * reads zeros behind their ends, so sizes need not be whole tiles. The batch is one of the result,
 * or with GEMM_SUM part of the reduction.
 *
 * Definitions: those of wgmma_product.h, and
 *   GEMM_C GEMM_RESIDUAL GEMM_BIAS   PvStorage of each
 *   GEMM_C_4      1
 *   GEMM_ACT GEMM_SUM GEMM_GATE      as in gemm_f32.cu; with gates TILE_N is 128 or 256
 *   TILE_STATS    2: norm tables of c, as it is stored, are made, of segments that want one; rows
 *                 are positions of images (image_rows)
 */
typedef CxStored<GEMM_C>::Element COut;
typedef CxStored<GEMM_RESIDUAL>::Element Residual;
typedef CxStored<GEMM_BIAS>::Element Bias;
typedef CxMapLaunch<GemmArgs, WG_SEGMENTS> Launch;
#include "wgmma_product.h"
#include "gemm_out.h"

CX_FN int steps_of(const Launch &p, u32 segment, int)
{
    return (int)plan_of(p, segment).steps;
}

// Columns are fastest: blocks that run together share rows of A.
CX_FN Place place_in(const GemmArgs &args, const WgmmaPlan &plan, int tile)
{
    Place place;
    place.n0 = tile % (int)plan.n_tiles * COLUMNS;
    tile /= (int)plan.n_tiles;
    place.m0 = tile % (int)plan.m_tiles * TILE_M;
    int batch = tile / (int)plan.m_tiles, batch1 = (int)args.batch1;
    place.i0 = batch / batch1;
    place.i1 = batch % batch1;
    return place;
}

struct Loads {
    const cx_tmap *a, *b;
    const GemmArgs *args;
    const WgmmaPlan *plan;
    Place place;

    __device__ void tile(const Launch &p, const Turn &turn)
    {
        a = &p.maps[turn.segment].map[0];
        b = &p.maps[turn.segment].map[1];
        args = &p.args[turn.segment];
        plan = &plan_of(p, turn.segment);
        place = place_in(*args, *plan, turn.tile);
    }
    // 64 of the reduction, `rows` rows. An operand that is the same for all elements of a batch
    // axis has one there.
    template <int MN, int ROWS>
    __device__ void operand(u32 to, const cx_tmap *map, u32 full, int row, int k, int i1, int i0)
    {
        if (MN) {
            CX_UNROLL
            for (int i = 0; i < ROWS / 64; i++)
                cx_tma_load4(to + (u32)(i * PANEL), map, full, row + i * 64, k, i1, i0);
        } else {
            cx_tma_load4(to, map, full, k, row, i1, i0);
        }
    }
#if GEMM_GATE
    // 64 values, their gates, the next 64... The map has all rows, whichever come first.
    __device__ void gated(u32 to, const cx_tmap *map, u32 full, int n0, int k, int i1, int i0)
    {
        int gate = (int)args->gate;
        n0 -= gate < 0 ? gate : 0;
#ifdef FAULT_GEMM_GATE // values are their own gates
        gate = 0;
#endif
        CX_UNROLL
        for (int i = 0; i < TILE_N / 64; i++)
            operand<WG_B_MN, 64>(to + (u32)(i * PANEL), map, full,
                                 n0 + i / 2 * 64 + i % 2 * gate, k, i1, i0);
    }
#endif
    __device__ void step(u32 stage, u32 full, int step)
    {
        int i0 = place.i0, i1 = place.i1;
        if (GEMM_SUM) {
            int batch = step / (int)plan->chunks, batch1 = (int)args->batch1;
            step -= batch * (int)plan->chunks;
            i0 = batch / batch1;
            i1 = batch % batch1;
        }
        int k = step * WGMMA_TILE_K;
        operand<WG_A_MN, TILE_M>(stage, a, full, place.m0, k, args->a1 ? i1 : 0, args->a0 ? i0 : 0);
#if GEMM_GATE
        gated(stage + STAGE_A, b, full, place.n0, k, args->b1 ? i1 : 0, args->b0 ? i0 : 0);
#else
        operand<WG_B_MN, TILE_N>(stage + STAGE_A, b, full, place.n0, k, args->b1 ? i1 : 0,
                                 args->b0 ? i0 : 0);
#endif
    }
};

// The results of a tile, its first row and column.
struct Tile {
    Out out;
    int m0, n0;

    CX_FN Tile of(const Launch &p, u32 segment, int number)
    {
        const GemmArgs &args = p.args[segment];
        Place place = place_in(args, plan_of(p, segment), number);
        Tile tile = {Out::of(args, place), place.m0, place.n0};
#if TILE_STATS
        tile.out.plan = &plan_of(p, segment);
#endif
        return tile;
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, WG_GROUPS == 1 ? 2 : 1)
    CX_NAME(const __grid_constant__ Launch p)
{
    CX_SHARED(shared);
    run_turns<Loads, Tile>(p, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    CX_NAME_1(const __grid_constant__ Launch p)
{
    CX_SHARED(shared);
    add_parts<Tile>(p, shared);
}
