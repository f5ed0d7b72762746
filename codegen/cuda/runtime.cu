/* T8: the optimizer's kernels over flat buffers, one launch for all parameters.
 *
 * A block takes a piece (OptimizerChunk) of at most 16,384 elements; a thread moves 16 bytes of
 * every buffer at a time, and the elements that are left at a piece's end one by one. The formulas
 * stand in kernel_args.h. Nothing is changed once a step's loss or norm was not finite; with loss
 * scaling, in steps that are left out. The norm is summed in f64 in a fixed order.
 *
 * Definitions: RUNTIME_KERNEL 0 square_sums, 1 adamw, 2 sgd, 3 accumulate, 4 average, 5 shadow.
 */
enum { RUNTIME_THREADS = 256, RUNTIME_PIECE = 16384 };

CX_FN const OptimizerNumbers &numbers_at(int64_t address)
{
    return *(const OptimizerNumbers *)address;
}

struct Four {
    float at[4];
};
// Elements i .. i + width - 1 of a piece of a buffer; zeros where there is no buffer.
template <int width> CX_FN Four load(const float *from, int i)
{
    Four four = {{0.f, 0.f, 0.f, 0.f}};
    if (width == 4 && from) {
        float4 all = *(const float4 *)(from + i);
        four = {{all.x, all.y, all.z, all.w}};
    } else if (from) {
        four.at[0] = from[i];
    }
    return four;
}
template <int width> CX_FN void store(float *to, int i, const Four &four)
{
    if (width == 4 && to)
        *(float4 *)(to + i) = make_float4(four.at[0], four.at[1], four.at[2], four.at[3]);
    else if (to)
        to[i] = four.at[0];
}

// The piece of this block: its part of each buffer, and a walk over its elements.
struct Piece {
    int64_t first;
    int count, instance;

    CX_MEMBER Piece(int64_t first_, int count_) : first(first_), count(count_), instance(0)
    {
    }
    CX_MEMBER Piece(int64_t chunks)
    {
        const OptimizerChunk &chunk = ((const OptimizerChunk *)chunks)[blockIdx.x];
        first = chunk.first;
        count = chunk.count;
        instance = chunk.instance;
    }
    CX_MEMBER float *of(int64_t buffer) const
    {
        return buffer ? (float *)buffer + first : nullptr;
    }
    // Of the shadow, whose elements are half as wide.
    CX_MEMBER u16 *half(int64_t buffer) const
    {
        return buffer ? (u16 *)buffer + first : nullptr;
    }
    template <typename Body> CX_MEMBER void walk(Body &body) const
    {
        int whole = count / 4 * 4, end = count;
#ifdef FAULT_REST // the elements that are left are forgotten
        end = whole;
#endif
        for (int i = (int)threadIdx.x * 4; i < whole; i += RUNTIME_THREADS * 4)
            body.template update<4>(i);
        for (int i = whole + (int)threadIdx.x; i < end; i += RUNTIME_THREADS)
            body.template update<1>(i);
    }
};

// The same elements as bf16 or f16; nothing where there is no shadow.
struct Shadow {
    u16 *to;
    bool f16;

    template <int width> CX_MEMBER void store(int i, const Four &four) const
    {
        if (!to)
            return;
        if (f16)
            put<width>((CxF16 *)to + i, four);
        else
            put<width>((CxBf16 *)to + i, four);
    }
    template <int width, typename Half> static CX_MEMBER void put(Half *at, const Four &four)
    {
        if (width == 4)
            cx_write4(at, four.at);
        else
            cx_write(at, four.at[0]);
    }
};

CX_FN bool is_bad(int64_t result)
{
    const OptimizerResult *of = (const OptimizerResult *)result;
    return of->bad_step != 0 || of->skip != 0;
}
CX_FN float factor_of(int64_t factor, const Piece &piece)
{
    return (float)((const double *)factor)[piece.instance];
}

// average -= rest (average - p)
template <int width> CX_FN void follow(float *average, int i, const Four &p, float rest)
{
    if (!average)
        return;
    Four kept = load<width>(average, i);
    CX_UNROLL
    for (int j = 0; j < width; j++)
        kept.at[j] -= rest * (kept.at[j] - p.at[j]);
    store<width>(average, i, kept);
}

template <typename Args> CX_FN Shadow shadow_of(const Args &args, const Piece &piece)
{
    return {piece.half(args.shadow), args.shadow_type == PV_STORE_F16};
}

#if RUNTIME_KERNEL == 0
// The sum over the block, in f64 and a fixed order. shared: [threads].
CX_FN double block_sum(double value, double *shared)
{
    shared[threadIdx.x] = value;
    CX_NO_UNROLL
    for (u32 half = RUNTIME_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    __syncthreads();
    double sum = shared[0];
#ifndef FAULT_SUM // without it the next sum overwrites this one
    __syncthreads();
#endif
    return sum;
}

struct Squares {
    const float *gradients;
    double sum;

    template <int width> CX_MEMBER void update(int i)
    {
        Four g = load<width>(gradients, i);
        float part = 0.f; // of four squares
        CX_UNROLL
        for (int j = 0; j < width; j++)
            part = fmaf(g.at[j], g.at[j], part);
        sum += (double)part;
    }
};

extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<SquareSumsArgs> p)
{
    CX_SHARED(shared);
    const SquareSumsArgs &a = p.args[0];
    const Piece piece(a.chunks);
    Squares squares = {piece.of(a.gradients), 0};
    piece.walk(squares);
    double sum = block_sum(squares.sum, (double *)shared);
    if (threadIdx.x == 0)
        ((double *)p.head.work[0])[blockIdx.x] = sum;
}

// A step with a loss that is finite: is it left out? The scale for the next one, and the numbers
// that hang on how many updates were made.
CX_FN void rescale(LossScale &scaling, OptimizerNumbers &numbers, OptimizerResult &result)
{
    result.skip = !isfinite(result.norm);
#ifdef FAULT_SCALE // the scale stays
    return;
#endif
    scaling.good = result.skip ? 0 : scaling.good + 1;
    if (result.skip) {
        scaling.skipped++;
        scaling.scale *= 0.5;
    } else if (scaling.good == LOSS_SCALE_GROWTH) {
        scaling.good = 0;
        scaling.scale *= 2;
    }
    scaling.real[0] = (float)scaling.scale;
    double n = (double)(numbers.updates - scaling.skipped);
    if (n > 0) {
        numbers.rate = numbers.lr / (1 - pow(numbers.beta1, n));
        numbers.root2 = sqrt(1 - pow(numbers.beta2, n));
    }
    result.scale = scaling;
}

// One block: the sum of each instance, whose pieces follow each other, then of all.
extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME_1(const __grid_constant__ CxLaunch<SquareSumsArgs> p)
{
    CX_SHARED(shared);
    const SquareSumsArgs &a = p.args[0];
    const OptimizerChunk *chunks = (const OptimizerChunk *)a.chunks;
    const double *sums = (const double *)p.head.work[0];
    OptimizerNumbers &numbers = *(OptimizerNumbers *)a.numbers;
    LossScale *scaling = (LossScale *)a.loss_scale;
    double scale = numbers.scale, clip = numbers.clip, all = 0, loss = 0;
    if (scaling)
        scale /= scaling->scale;
    for (int64_t instance = 0; instance < a.instances; instance++) {
        double own = 0;
        for (int64_t i = threadIdx.x; i < a.chunk_count; i += RUNTIME_THREADS)
            if (chunks[i].instance == instance)
                own += sums[i];
        double sum = block_sum(own, (double *)shared);
        double share = clip > 0 ? clip / (sqrt(sum) * scale + 1e-6) : 1;
        if (threadIdx.x == 0)
            ((double *)a.factor)[instance] = scale * (share < 1 ? share : 1);
        all += sum;
    }
    double own = 0;
    for (int64_t i = threadIdx.x; i < a.loss_count; i += RUNTIME_THREADS)
        own += (double)((const float *)a.losses)[i];
    loss = block_sum(own, (double *)shared) * numbers.scale;
    if (threadIdx.x != 0)
        return;
    OptimizerResult *result = (OptimizerResult *)a.result;
    result->norm = sqrt(all) * scale;
    result->loss = loss;
    result->skip = 0;
    if (scaling && isfinite(loss) && (isfinite(result->norm) || scaling->scale > 1))
        rescale(*scaling, numbers, *result);
    else if (!isfinite(result->norm + loss) && result->bad_step == 0)
        result->bad_step = numbers.step;
}
#endif

#if RUNTIME_KERNEL == 1
struct Adamw {
    float *p, *m, *v, *average;
    const float *gradients;
    float factor, decay, beta1, rest1, beta2, rest2, rate, root2, eps, rest;
    Shadow shadow;

    template <int width> CX_MEMBER void update(int i)
    {
        Four g = load<width>(gradients, i), at = load<width>(p, i);
        Four first = load<width>(m, i), second = load<width>(v, i);
        CX_UNROLL
        for (int j = 0; j < width; j++) {
            float s = g.at[j] * factor;
            first.at[j] = first.at[j] * beta1 + s * rest1;
            second.at[j] = second.at[j] * beta2 + s * s * rest2;
            float step = first.at[j] / (sqrtf(second.at[j]) / root2 + eps);
            at.at[j] = at.at[j] * decay - rate * step;
        }
        store<width>(m, i, first);
        store<width>(v, i, second);
        store<width>(p, i, at);
        shadow.store<width>(i, at);
        follow<width>(average, i, at, rest);
    }
};

extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<AdamwArgs> p)
{
    const AdamwArgs &a = p.args[0];
    if (is_bad(a.result))
        return;
    const Piece piece(a.chunks);
    const OptimizerNumbers &numbers = numbers_at(a.numbers);
    Adamw body = {piece.of(a.params),    piece.of(a.m),         piece.of(a.v),
                  piece.of(a.average),   piece.of(a.gradients), factor_of(a.factor, piece),
                  (float)numbers.decay,  (float)numbers.beta1,  (float)numbers.rest1,
                  (float)numbers.beta2,  (float)numbers.rest2,  (float)numbers.rate,
                  (float)numbers.root2,  (float)numbers.eps,    (float)numbers.rest,
                  shadow_of(a, piece)};
    piece.walk(body);
}
#endif

#if RUNTIME_KERNEL == 2
struct Sgd {
    float *p, *m, *average;
    const float *gradients;
    float factor, lr, momentum, decay, rest;
    Shadow shadow;

    template <int width> CX_MEMBER void update(int i)
    {
        Four g = load<width>(gradients, i), at = load<width>(p, i);
        Four kept = load<width>(m, i);
        CX_UNROLL
        for (int j = 0; j < width; j++) {
            float s = g.at[j] * factor + decay * at.at[j];
            kept.at[j] = m ? momentum * kept.at[j] + s : s;
            at.at[j] -= lr * kept.at[j];
        }
        store<width>(m, i, kept);
        store<width>(p, i, at);
        shadow.store<width>(i, at);
        follow<width>(average, i, at, rest);
    }
};

extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<SgdArgs> p)
{
    const SgdArgs &a = p.args[0];
    if (is_bad(a.result))
        return;
    const Piece piece(a.chunks);
    const OptimizerNumbers &numbers = numbers_at(a.numbers);
    Sgd body = {piece.of(a.params),
                piece.of(a.m),
                piece.of(a.average),
                piece.of(a.gradients),
                factor_of(a.factor, piece),
                (float)numbers.lr,
                (float)numbers.momentum,
                (float)numbers.weight_decay,
                (float)numbers.rest,
                shadow_of(a, piece)};
    piece.walk(body);
}
#endif

#if RUNTIME_KERNEL == 3
struct Accumulate {
    float *sum;
    const float *gradients;
    bool first;

    template <int width> CX_MEMBER void update(int i)
    {
        Four g = load<width>(gradients, i), kept = load<width>(first ? nullptr : sum, i);
        CX_UNROLL
        for (int j = 0; j < width; j++)
            kept.at[j] = first ? g.at[j] : kept.at[j] + g.at[j];
        store<width>(sum, i, kept);
    }
};

extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<AccumulateArgs> p)
{
    const AccumulateArgs &a = p.args[0];
    const Piece piece(a.chunks);
    Accumulate body = {piece.of(a.sum), piece.of(a.gradients), a.first != 0};
    piece.walk(body);
}
#endif

#if RUNTIME_KERNEL == 4
struct Average {
    float *average;
    const float *p;
    float rest;

    template <int width> CX_MEMBER void update(int i)
    {
        follow<width>(average, i, load<width>(p, i), rest);
    }
};

extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<AverageArgs> p)
{
    const AverageArgs &a = p.args[0];
    if (is_bad(a.result))
        return;
    const Piece piece(a.chunks);
    Average body = {piece.of(a.average), piece.of(a.params), (float)numbers_at(a.numbers).rest};
    piece.walk(body);
}
#endif

#if RUNTIME_KERNEL == 5
struct Copy {
    const float *p;
    Shadow shadow;

    template <int width> CX_MEMBER void update(int i)
    {
        shadow.store<width>(i, load<width>(p, i));
    }
};

extern "C" __global__ void __launch_bounds__(RUNTIME_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<ShadowArgs> p)
{
    const ShadowArgs &a = p.args[0];
    int64_t first = (int64_t)blockIdx.x * RUNTIME_PIECE, left = a.count - first;
    const Piece piece(first, left < RUNTIME_PIECE ? (int)left : RUNTIME_PIECE);
    Copy body = {piece.of(a.params), shadow_of(a, piece)};
    piece.walk(body);
}
#endif
