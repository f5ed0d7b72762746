/* T2: matrix products in bf16 or f16 with f32 sums (GemmArgs): the tile product of mma_product.h.
 *
 * As gemm_f32.cu, with operands of any storage; those that are not TILE_HALF, or do not lie in chunks of
 * eight, are converted on their way into shared memory.
 *
 * Definitions: those of mma_product.h, and
 *   GEMM_A_K GEMM_B_K     1: the operand is dense along k; 0: along m, or n
 *   GEMM_A_8 GEMM_B_8     1: it is copied in chunks
 *   GEMM_A GEMM_B GEMM_C GEMM_RESIDUAL GEMM_BIAS   PvStorage of each
 *   GEMM_C_4              1: c and the residual are accessed four elements at a time
 *   GEMM_ACT GEMM_SUM                              as in gemm_f32.cu
 */
#include "mma_product.h"
typedef CxStored<GEMM_A>::Element AElement;
typedef CxStored<GEMM_B>::Element BElement;
typedef CxStored<GEMM_C>::Element COut;
typedef CxStored<GEMM_RESIDUAL>::Element Residual;
typedef CxStored<GEMM_BIAS>::Element Bias;
#include "gemm_out.h"

// Rows of one matrix, or with GEMM_SUM of all; k runs over batch elements of a whole number of steps.
template <class Element> struct Matrix {
    const Element *base;
    long long row_step, k_step, batch0_step, batch1_step;
    int rows, size, batch1, padded;
    struct Row {
        long long offset;
        bool there;
    };
    typedef Row Step;

    __device__ void set(const GemmArgs &args, const Element *base_, long long rows_,
                        long long row_step_, long long k_step_, long long stride0,
                        long long stride1)
    {
        base = base_;
        rows = (int)rows_;
        row_step = row_step_;
        k_step = k_step_;
        batch0_step = stride0;
        batch1_step = stride1;
        batch1 = (int)args.batch1;
        size = (int)args.k;
        padded = (size + TILE_K - 1) / TILE_K * TILE_K;
    }
    __device__ Row row(int number)
    {
        return {number * row_step, number < rows};
    }
    __device__ Step step(int k)
    {
        long long offset = 0;
        if (GEMM_SUM) {
            int batch = k / padded;
            k -= batch * padded;
            offset = batch / batch1 * batch0_step + batch % batch1 * batch1_step;
        }
        return {offset + k * k_step, k < size};
    }
    __device__ const Element *at(const Row &row, const Step &step, bool *inside)
    {
        *inside = row.there && step.there;
        return base + (*inside ? row.offset + step.offset : 0);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 64 ? 6 : 2)
    CX_NAME(const __grid_constant__ CxLaunch<GemmArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const GemmArgs &args = p.args[segment];
    Task &task = *(Task *)(shared + STAGES * STAGE);
    if (threadIdx.x == 0) {
        int blocks = (int)(p.head.first[segment + 1] - p.head.first[segment]);
        task = task_of(args, (int)block, blocks);
    }
    __syncthreads();
    int steps = ((int)args.k + TILE_K - 1) / TILE_K;
    if (GEMM_SUM)
        steps *= (int)(args.batch0 * args.batch1);
    const Place &place = task.place;
    Operand<Matrix<AElement>, TILE_M, GEMM_A_K, GEMM_A_8> a;
    Operand<Matrix<BElement>, TILE_N, GEMM_B_K, GEMM_B_8> b;
    a.source.set(args, (const AElement *)args.a + place.i0 * args.a0 + place.i1 * args.a1, args.m,
                 args.a_m, args.a_k, args.a0, args.a1);
    b.source.set(args, (const BElement *)args.b + place.i0 * args.b0 + place.i1 * args.b1, args.n,
                 args.b_n, args.b_k, args.b0, args.b1);
    a.set(place.m0);
    b.set(place.n0);
    int first = steps * task.part / task.parts;
    int end = steps * (task.part + 1) / task.parts;
    TileSums sums;
    tile_product<GEMM_A_K, GEMM_B_K>(sums, a, b, shared, first, end);
    if (task.parts > 1 || args.sum != 0) {
        Keep keep = Keep::of(p.head.work[segment], task.parts, task.tile, task.part);
        tile_store(sums, keep, 0, 0, (float *)shared);
        return;
    }
    Out out = Out::of(args, place);
    tile_store(sums, out, place.m0, place.n0, (float *)shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, THREADS == 64 ? 6 : 2)
    CX_NAME_1(const __grid_constant__ CxLaunch<GemmArgs> p)
{
    u32 block, segment = cx_segment(p.head, &block);
    const GemmArgs &args = p.args[segment];
    int tile = (int)block / TILE_BLOCKS;
    Place place = place_of(args, tile);
    Out out = Out::of(args, place);
    tile_collect(p.head, segment, args.sum, tile, (int)block % TILE_BLOCKS, out, place.m0,
                 place.n0);
}
