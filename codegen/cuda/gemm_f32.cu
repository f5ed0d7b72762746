/* Matrix products in exact f32 (GemmArgs): the tile product of gemm_tile.h.
 *
 * A block makes one tile of one batch element, or a part of its reduction: then the sums go into
 * the workspace and phase 1 adds the parts in their order and finishes. With GEMM_SUM the batch
 * axes are a part of the reduction, batch element by batch element. Blocks of one part are
 * neighbours, rows of tiles fastest.
 *
 * Definitions: those of gemm_tile.h, and
 *   GEMM_A_K GEMM_B_K   1: the operand is dense along k; 0: along m, or n
 *   GEMM_A_4 GEMM_B_4   1: it is read 16 bytes at a time
 *   GEMM_C_4            1: c and the residual are accessed so
 *   GEMM_ACT            PvAct
 *   GEMM_SUM            1: sum_batch
 *   GEMM_GATE           1: c is values times act(gates), `gate` columns of b apart: half of
 *                       a tile's columns are values, the others their gates; not defined:
 *                       there are none
 *   TILE_NORM           b is normalized (norm_load.h) in segments with a table; where this is not
 *                       defined, none has one
 *   TILE_STATS          1: norm tables of c are made (norm_stats.h), of segments that want one
 *
 * 128 x 128 tiles (8 x 8 sums of 256 threads) have 64 FFMA for 4 LDS of 16 bytes.
 */
#include "gemm_tile.h"
typedef float COut, Residual, Bias;
#include "gemm_out.h"
#include "tile_phases.h"
#if TILE_NORM
#include "norm_load.h"
#endif

// A loader of the sum over all batch elements, each of which has `per` steps.
template <class Loader> struct Summed : Loader {
    const float *first;
    long long stride0, stride1;
    int per, batch1;

    __device__ void load(float *r, int step)
    {
        int batch = step / per;
        this->load_at(r, first + batch / batch1 * stride0 + batch % batch1 * stride1,
                      (step - batch * per) * TILE_K);
    }
};

#if GEMM_GATE
// A loader of b whose rows in the right half of a tile are the gates of those in the left.
template <class Dense> struct Gated : Dense {
    long long gate; // elements from a value to its gate

    __device__ void load(float *r, int step)
    {
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++) {
            int row = this->row_of(i), k = step * TILE_K + this->k_of(i);
            bool is_gate = row >= COLUMNS;
            row -= is_gate ? (int)COLUMNS : 0;
#ifdef FAULT_GEMM_GATE // values are their own gates
            is_gate = false;
#endif
            bool there = (GEMM_B_K ? row < this->rows : k < this->size) &&
                         (Dense::WHOLE || this->k_of(i) < TILE_K);
            const float *from = this->base + (is_gate ? gate : 0);
            from += GEMM_B_K ? row * this->stride + k : k * this->stride + row;
            int count = GEMM_B_K ? this->size - k : this->rows - row;
            load_four<Dense::FOURS>(r + 4 * i, from, there ? count : 0);
        }
    }
};
#endif

template <class Loader>
CX_FN void set_loader(Loader &loader, const float *base, long long stride, int rows, int k)
{
    loader.base = base;
    loader.stride = stride;
    loader.rows = rows;
    loader.size = k;
}
template <class Loader>
CX_FN void set_sum(Summed<Loader> &loader, const GemmArgs &args, long long stride0,
                   long long stride1)
{
    loader.first = loader.base;
    loader.stride0 = stride0;
    loader.stride1 = stride1;
    loader.per = ((int)args.k + TILE_K - 1) / TILE_K;
    loader.batch1 = (int)args.batch1;
}

#if GEMM_A_K
typedef DenseK<TILE_M, ROW_A, GEMM_A_4> LoadA;
#else
typedef DenseRows<TILE_M, ROW_A, GEMM_A_4> LoadA;
#endif
#if GEMM_B_K
typedef DenseK<TILE_N, ROW_B, GEMM_B_4> PlainB;
#else
typedef DenseRows<TILE_N, ROW_B, GEMM_B_4> PlainB;
#endif
#if GEMM_GATE
typedef Gated<PlainB> LoadB;
#elif !TILE_NORM
typedef PlainB LoadB;
#elif GEMM_B_K
typedef NormedK<PlainB> LoadB;
#else
typedef NormedRows<PlainB> LoadB;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<GemmArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const GemmArgs &args = p.args[segment];
    Task &task = *(Task *)(shared + 2 * BUFFER * 4);
    begin_task(task, p.head, segment, args, block);
    int steps = ((int)args.k + TILE_K - 1) / TILE_K;
    if (GEMM_SUM)
        steps *= (int)(args.batch0 * args.batch1);
    const Place &place = task.place;
    const float *a_base = (const float *)args.a + place.i0 * args.a0 + place.i1 * args.a1;
    const float *b_base = (const float *)args.b + place.i0 * args.b0 + place.i1 * args.b1;
    a_base += place.m0 * args.a_m;
    b_base += place.n0 * args.b_n;
    Steps own = Steps::of(steps, task.part, task.parts);
    TileSums sums;
#if GEMM_SUM
    Summed<LoadA> a;
    Summed<LoadB> b;
#else
    LoadA a;
    LoadB b;
#endif
    set_loader(a, a_base, GEMM_A_K ? args.a_m : args.a_k, (int)args.m - place.m0, (int)args.k);
    set_loader(b, b_base, GEMM_B_K ? args.b_n : args.b_k, (int)args.n - place.n0, (int)args.k);
#if GEMM_SUM
    set_sum(a, args, args.a0, args.a1);
    set_sum(b, args, args.b0, args.b1);
#endif
#if GEMM_GATE
    b.gate = args.gate * args.b_n;
#endif
#if TILE_NORM
    b.norm = NormSource::of(args.norm, place.i0, 0);
#endif
    tile_product(sums, a, b, (float *)shared, own.first, own.end);
    bool is_part = task.parts > 1 || args.sum != 0;
    finish_tile(sums, p, segment, task, place, is_part, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<GemmArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const GemmArgs &args = p.args[segment];
    Place place = place_of(args, (int)block / TILE_BLOCKS);
    finish_parts(p, segment, args.sum, block, place, shared);
}
