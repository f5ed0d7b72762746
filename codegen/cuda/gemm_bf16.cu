/* T2: matrix products in bf16 or f16 with f32 sums (GemmArgs): the tile product of mma_product.h.
 *
 * As gemm_f32.cu, with operands of any storage; those that are not TILE_HALF, or do not lie in
 * chunks of eight, are converted on their way into shared memory.
 *
 * Definitions: those of mma_product.h, and
 *   GEMM_A_K GEMM_B_K     1: the operand is dense along k; 0: along m, or n
 *   GEMM_A_8 GEMM_B_8     1: it is copied in chunks
 *   GEMM_A GEMM_B GEMM_C GEMM_RESIDUAL GEMM_BIAS   PvStorage of each
 *   GEMM_C_4              1: c and the residual are accessed four elements at a time
 *   GEMM_ACT GEMM_SUM GEMM_GATE                    as in gemm_f32.cu
 *   GEMM_IMAGE_ROWS       1: rows are positions of images (image_rows); then
 *   TILE_NORM             a is normalized (norm_load.h) in segments with a table,
 *   before it is rounded
 *   TILE_STATS            1: norm tables of c, as it is stored, are made (norm_stats.h)
 */
#include "mma_product.h"
typedef CxStored<GEMM_A>::Element AElement;
typedef CxStored<GEMM_B>::Element BElement;
typedef CxStored<GEMM_C>::Element COut;
typedef CxStored<GEMM_RESIDUAL>::Element Residual;
typedef CxStored<GEMM_BIAS>::Element Bias;
#include "gemm_out.h"
#include "tile_phases.h"
#if TILE_NORM
#include "norm_load.h"
#endif

#if TILE_NORM
enum { RESIDENT = THREADS == 64 ? 4 : 1 }; // blocks
#else
enum { RESIDENT = THREADS == 64 ? 6 : 2 };
#endif

// Rows of one matrix, or with GEMM_SUM of all; k runs over batch elements of a whole
// number of steps.
template <class Element> struct Matrix {
    const Element *base;
    long long row_step, k_step, batch0_step, batch1_step;
    int rows, size, batch1;
    struct Row {
        const Element *from;
        bool there;
    };
    struct Step {
        long long offset;
        bool there;
    };

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
    }
    // `apart`: what it is moved by.
    __device__ Row row(int number, long long apart = 0)
    {
        bool there = number < rows;
        return {base + (there ? number * row_step + apart : 0), there};
    }
    __device__ Step step(int first, int within)
    {
        long long offset = 0;
        if (GEMM_SUM) { // a step is of one batch element
            u32 steps = ((u32)size + TILE_K - 1) / TILE_K, batch = (u32)first / TILE_K / steps;
            first -= (int)(batch * steps * TILE_K);
            u32 outer = batch / (u32)batch1;
            offset = outer * batch0_step + (batch - outer * (u32)batch1) * batch1_step;
        }
        int k = first + within;
        return {offset + k * k_step, k < size};
    }
    __device__ const Element *at(const Row &row, const Step &step, bool *inside)
    {
        *inside = row.there && step.there;
        return row.from + (*inside ? step.offset : 0);
    }
};

#if GEMM_GATE
// B, whose rows in the right half of a tile are the gates of those in the left.
struct Gated : Matrix<BElement> {
    int first;       // row of the tile
    long long apart; // elements from a value to its gate

    __device__ void set_gates(const GemmArgs &args, int first_)
    {
        first = first_;
        apart = args.gate * row_step;
    }
    __device__ Row row(int number)
    {
        bool is_gate = number - first >= (int)COLUMNS;
        number -= is_gate ? (int)COLUMNS : 0;
#ifdef FAULT_GEMM_GATE // values are their own gates
        is_gate = false;
#endif
        return Matrix<BElement>::row(number, is_gate ? apart : 0);
    }
};
typedef Gated SourceB;
#else
typedef Matrix<BElement> SourceB;
#endif

#if TILE_NORM
// Rows of A that are normalized: a step's chunks are fetched before the product of another one, and
// put where they belong behind it. A segment without a table is copied as it lies.
template <class Source, int ROWS, bool CHUNKS>
struct NormedOperand : Operand<Source, ROWS, true, CHUNKS> {
    typedef Operand<Source, ROWS, true, CHUNKS> Plain;
    enum { COUNT = Plain::COUNT, DEFERS = 1 };
    NormSource norm[COUNT]; // of each chunk's image
    uint4 held[COUNT];

    // image: that of the first row of the product; of `rows` rows each.
    __device__ void set_norm(const GemmArgs &args, int image, int rows)
    {
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            int row = this->first + this->row_of(i);
            row = row < (int)args.m ? row : 0;
            norm[i] = NormSource::of(args.norm, image + row / rows, 0);
        }
    }
    __device__ void load(u8 *stage, int step)
    {
        if (!norm[0].is_there()) {
            Plain::load(stage, step);
            return;
        }
        auto k = this->source.step(step * TILE_K, this->k_of(0));
        CX_UNROLL
        for (int i = 0; CHUNKS && i < COUNT; i++) {
            bool inside;
            auto from = this->source.at(this->fixed[i], k, &inside);
            held[i] = make_uint4(0, 0, 0, 0);
            if (inside)
                held[i] = *(const uint4 *)from;
        }
    }
    __device__ void finish(u8 *stage, int step)
    {
        if (!norm[0].is_there())
            return;
        int k = step * TILE_K + this->k_of(0);
        if (CHUNKS)
            put_chunks(stage, k);
        else
            put_elements(stage, k);
    }
    // Eight channels from k; none where a row ends.
    __device__ void put_chunks(u8 *stage, int k)
    {
        float a[8], d[8];
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            bool there = k < this->source.size && norm[i].shift != 0;
            const float *scale = norm[i].scale + k, *shift = scale + norm[i].shift;
            if (i == 0 || norm[i].scale != norm[i - 1].scale) {
                CX_UNROLL
                for (int e = 0; e < 8; e += 4) {
                    load_four<true>(a + e, scale + e, there ? 4 : 0);
                    load_four<true>(d + e, shift + e, there ? 4 : 0);
                }
            }
            u32 *word = (u32 *)&held[i];
            CX_UNROLL
            for (int e = 0; e < 4; e++) {
                float low = normalize(cx_low_half<TILE_HALF>(word[e]), a[2 * e], d[2 * e]);
                float high =
                    normalize(cx_high_half<TILE_HALF>(word[e]), a[2 * e + 1], d[2 * e + 1]);
                word[e] = cx_pack_half<TILE_HALF>(low, high);
            }
            *(uint4 *)(stage + this->place_of(i)) = held[i];
        }
    }
    // Rows that do not exist are multiplied, but not stored; what lies behind the last
    // k has to be 0.
    __device__ void put_elements(u8 *stage, int k)
    {
        CX_UNROLL
        for (int i = 0; i < COUNT; i++) {
            auto row = this->source.row(this->first + this->row_of(i));
            u32 words[4] = {0, 0, 0, 0};
            CX_NO_UNROLL
            for (int e = 0; e < 8; e += 2) {
                float pair[2];
                CX_UNROLL
                for (int half = 0; half < 2; half++) {
                    bool inside;
                    float a, d;
                    auto from = this->source.at(row, this->source.step(k, e + half), &inside);
                    norm[i].get(&a, &d, k + e + half, inside);
                    pair[half] = normalize(inside ? cx_read(*from) : 0.f, a, d);
                }
                words[0] = words[1], words[1] = words[2], words[2] = words[3];
                words[3] = cx_pack_half<TILE_HALF>(pair[0], pair[1]);
            }
            *(uint4 *)(stage + this->place_of(i)) =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    CX_NAME(const __grid_constant__ CxLaunch<GemmArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const GemmArgs &args = p.args[segment];
    Task &task = *(Task *)(shared + STAGES * STAGE);
    begin_task(task, p.head, segment, args, block);
    int steps = ((int)args.k + TILE_K - 1) / TILE_K;
    if (GEMM_SUM)
        steps *= (int)(args.batch0 * args.batch1);
    const Place &place = task.place;
#if TILE_NORM
    NormedOperand<Matrix<AElement>, TILE_M, GEMM_A_8> a;
#else
    Operand<Matrix<AElement>, TILE_M, GEMM_A_K, GEMM_A_8> a;
#endif
    Operand<SourceB, TILE_N, GEMM_B_K, GEMM_B_8> b;
    a.source.set(args, (const AElement *)args.a + place.i0 * args.a0 + place.i1 * args.a1, args.m,
                 args.a_m, args.a_k, args.a0, args.a1);
    b.source.set(args, (const BElement *)args.b + place.i0 * args.b0 + place.i1 * args.b1, args.n,
                 args.b_n, args.b_k, args.b0, args.b1);
#if GEMM_GATE
    b.source.set_gates(args, place.n0);
#endif
    a.set(place.m0);
    b.set(place.n0);
#if TILE_NORM
    a.set_norm(args, place.i0, args.norm.table ? (int)args.image_rows : 1);
#endif
    Steps own = Steps::of(steps, task.part, task.parts);
    TileSums sums;
    tile_product<GEMM_A_K, GEMM_B_K>(sums, a, b, shared, own.first, own.end);
    bool is_part = task.parts > 1 || args.sum != 0;
    finish_tile(sums, p, segment, task, place, is_part, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    CX_NAME_1(const __grid_constant__ CxLaunch<GemmArgs> p)
{
    CX_SHARED(shared);
    u32 block, segment = cx_segment(p.head, &block);
    const GemmArgs &args = p.args[segment];
    Place place = place_of(args, (int)block / TILE_BLOCKS);
    finish_parts(p, segment, args.sum, block, place, shared);
}
