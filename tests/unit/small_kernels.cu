/* The kernels of small_model.h for the emulator of GPUs, and the optimizer's as kernel_args.h says,
 * each by one thread: what the runtime does with kernels is tested here, not kernels. */
#define CX_SEGMENTS 1
#include "cx_launch.h"
#include "cx_hopper.h"

#include "runtime/random_bits.h"

template <int count> struct Numbers {
    int64_t at[count];
};
#define F(address) ((float *)(address))
#define SMALL(name, count)                                                                         \
    extern "C" __global__ void name(const __grid_constant__ CxLaunch<Numbers<count>> p);           \
    CX_ENTRY(name)                                                                                 \
    extern "C" __global__ void name(const __grid_constant__ CxLaunch<Numbers<count>> p)

// y [n], x [n], w [3], gain (address or 0), n
SMALL(scale, 5)
{
    const int64_t *args = p.args[0].at;
    for (int64_t i = 0; i < args[4]; i++)
        F(args[0])[i] = F(args[1])[i] * F(args[2])[i % 3] * (args[3] ? *F(args[3]) : 1);
}

// The same where there is TMA: x comes 32 at a time by map 0, and number 5 is how many weights
// there are.
typedef CxMapLaunch<Numbers<5>, 1> Mapped;
extern "C" __global__ void scale_90a(const __grid_constant__ Mapped p)
{
    CX_SHARED(shared);
    const int64_t *args = p.args[0].at;
    u32 at = cx_shared_address(shared), bar = at + 128;
    cx_mbar_init(bar, 1);
    cx_fence_mbar_init();
    for (int64_t i = 0; i < args[4]; i++) {
        if (i % 32 == 0) {
            cx_mbar_expect(bar, 128);
            cx_tma_load2(at, &p.maps[0].map[0], bar, (int)i * 2, 0);
            cx_mbar_wait(bar, (int)(i / 32 % 2));
        }
        F(args[0])[i] = ((const float *)shared)[i % 32] *
                        F(args[2])[i % (int)p.maps[0].number[5]] *
                        (args[3] ? *F(args[3]) : 1);
    }
}
CX_ENTRY(scale_90a)

SMALL(sum, 3)
{
    const int64_t *args = p.args[0].at;
    float sum = 0;
    for (int64_t i = 0; i < args[2]; i++)
        sum += F(args[1])[i];
    *F(args[0]) = sum;
}

SMALL(total_grad, 5)
{
    const int64_t *args = p.args[0].at;
    for (int k = 0; k < 3; k++)
        F(args[0])[k] = 0;
    for (int64_t i = 0; i < args[4]; i++) {
        F(args[0])[i % 3] += F(args[2])[i];
        F(args[1])[i] = F(args[3])[i % 3];
    }
}

static float normal_at(uint64_t seed, const CxStream *stream, int64_t i)
{
    PvBits bits = pv_random_block(seed, stream->hash, stream->draw, (uint64_t)i / 4);
    float values[4];
    pv_bits_normal(bits.word[0], bits.word[1], &values[0], &values[1]);
    pv_bits_normal(bits.word[2], bits.word[3], &values[2], &values[3]);
    return values[i % 4];
}

// x [n] of stream 0
SMALL(noise, 2)
{
    const int64_t *args = p.args[0].at;
    const CxStep *step = p.head.step;
    uint64_t seed = step->seed[0] | (uint64_t)step->seed[1] << 32;
    for (int64_t i = 0; i < args[1]; i++)
        F(args[0])[i] = normal_at(seed, &step->stream[0], i);
}

// loss [], report [], dw [3], w [3], noise [n], n, seen (i64 [1]), bad (address: option)
SMALL(fit, 8)
{
    const int64_t *args = p.args[0].at;
    const float target[3] = {0.25f, -1, 2};
    float mean = 0, loss = 0;
    for (int64_t i = 0; i < args[5]; i++)
        mean += F(args[4])[i] / (float)args[5];
    for (int k = 0; k < 3; k++) {
        float off = F(args[3])[k] - target[k] - 0.01f * mean;
        loss += off * off / 3;
        F(args[2])[k] = 2 * off / 3;
    }
    *F(args[0]) = *(int64_t *)args[7] ? NAN : loss;
    *F(args[1]) = mean;
    ++*(int64_t *)args[6];
}

SMALL(store, 2)
{
    const int64_t *args = p.args[0].at;
    *F(args[0]) = *F(args[1]);
}

SMALL(paint, 3)
{
    const int64_t *args = p.args[0].at;
    for (int64_t i = 0; i < args[2]; i++)
        F(args[0])[i] = F(args[1])[0];
}

SMALL(halve, 4)
{
    const int64_t *args = p.args[0].at;
    for (int64_t i = 0; i < args[3]; i++)
        F(args[0])[i] = F(args[1])[i] / 2 + F(args[2])[i];
}

// the draw of a sampler
extern "C" __global__ void normal(const __grid_constant__ CxLaunch<RandomArgs> p)
{
    const RandomArgs &args = p.args[0];
    const CxStep *step = p.head.step;
    const CxStream *stream = &step->stream[args.stream];
    uint64_t seed = step->seed[0] | (uint64_t)step->seed[1] << 32;
    for (int64_t i = 0; i < args.count; i++)
        F(args.y)[i] = normal_at(seed, stream, i);
}
CX_ENTRY(normal)

// ---- the optimizer ----

#define NUMBERS(args) (*(const OptimizerNumbers *)(args).numbers)
#define OPTIMIZER(name, Args)                                                                      \
    extern "C" __global__ void name(const __grid_constant__ CxLaunch<Args> p);                     \
    CX_ENTRY(name)                                                                                 \
    extern "C" __global__ void name(const __grid_constant__ CxLaunch<Args> p)
#define CHUNK(args) (((const OptimizerChunk *)(args).chunks)[blockIdx.x])

OPTIMIZER(square_sums, SquareSumsArgs)
{
    const SquareSumsArgs &args = p.args[0];
    double sum = 0;
    for (int i = 0; i < CHUNK(args).count; i++) {
        double g = F(args.gradients)[CHUNK(args).first + i];
        sum += g * g;
    }
    ((double *)p.head.work[0])[blockIdx.x] = sum;
}

OPTIMIZER(square_sums_1, SquareSumsArgs)
{
    const SquareSumsArgs &args = p.args[0];
    OptimizerResult *result = (OptimizerResult *)args.result;
    const OptimizerChunk *chunks = (const OptimizerChunk *)args.chunks;
    const double *sums = (const double *)p.head.work[0];
    double all = 0, loss = 0, scale = NUMBERS(args).scale, clip = NUMBERS(args).clip;
    for (int64_t k = 0; k < args.instances; k++) {
        double of = 0;
        for (int64_t c = 0; c < args.chunk_count; c++)
            of += chunks[c].instance == k ? sums[c] : 0;
        double shrink = clip > 0 ? clip / (sqrt(of) * scale + 1e-6) : 1;
        ((double *)args.factor)[k] = shrink < 1 ? scale * shrink : scale;
        all += of;
    }
    for (int64_t i = 0; i < args.loss_count; i++)
        loss += F(args.losses)[i];
    result->norm = sqrt(all) * scale;
    result->loss = loss * scale;
    if (result->bad_step == 0 && !(isfinite(result->norm) && isfinite(result->loss)))
        result->bad_step = NUMBERS(args).step;
}

static void average(int64_t to, int64_t params, int64_t i, double rest)
{
    if (to)
        F(to)[i] -= (float)rest * (F(to)[i] - F(params)[i]);
}

OPTIMIZER(adamw, AdamwArgs)
{
    const AdamwArgs &args = p.args[0];
    if (((const OptimizerResult *)args.result)->bad_step)
        return;
    float factor = (float)((const double *)args.factor)[CHUNK(args).instance];
    for (int64_t i = CHUNK(args).first; i < CHUNK(args).first + CHUNK(args).count; i++) {
        float slope = F(args.gradients)[i] * factor;
        float mean = F(args.m)[i] * (float)NUMBERS(args).beta1 + slope * (float)NUMBERS(args).rest1;
        float square =
            F(args.v)[i] * (float)NUMBERS(args).beta2 + slope * slope * (float)NUMBERS(args).rest2;
        float root = sqrtf(square) / (float)NUMBERS(args).root2;
        F(args.m)[i] = mean;
        F(args.v)[i] = square;
        F(args.params)[i] = F(args.params)[i] * (float)NUMBERS(args).decay -
                            (float)NUMBERS(args).rate * (mean / (root + (float)NUMBERS(args).eps));
        average(args.average, args.params, i, NUMBERS(args).rest);
    }
}

OPTIMIZER(accumulate, AccumulateArgs)
{
    const AccumulateArgs &args = p.args[0];
    for (int64_t i = CHUNK(args).first; i < CHUNK(args).first + CHUNK(args).count; i++)
        F(args.sum)[i] = F(args.gradients)[i] + (args.first ? 0 : F(args.sum)[i]);
}

OPTIMIZER(average_all, AverageArgs)
{
    const AverageArgs &args = p.args[0];
    if (((const OptimizerResult *)args.result)->bad_step)
        return;
    for (int64_t i = CHUNK(args).first; i < CHUNK(args).first + CHUNK(args).count; i++)
        average(args.average, args.params, i, NUMBERS(args).rest);
}
