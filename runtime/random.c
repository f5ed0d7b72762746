// Random streams: draws of kernels, of step code, and first values of parameters. See random.h and
// random_bits.h. Blocks of four elements are independent of each other, so threads change nothing.
#include "runtime/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/cpu/kernels.h"

// The choice is made before a sanitizer is ready, so not there; clang knows no such macros.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
#define BY_MACHINE
#else
#define BY_MACHINE __attribute__((target_clones("fma", "default")))
#endif

enum { KIND_NORMAL, KIND_UNIFORM, KIND_INT };

uint32_t pv_random_hash(const char *name)
{
    uint32_t hash = 2166136261u;
    for (; *name; name++)
        hash = (hash ^ (uint8_t)*name) * 16777619u;
    return hash;
}

PvRandom *pv_random_new(const PvModel *model, uint64_t seed)
{
    PvRandom *random = pv_alloc(sizeof *random);
    random->seed = seed;
    random->stream_count = model->stream_count;
    random->names = model->streams;
    random->hashes = pv_alloc(model->stream_count * sizeof *random->hashes);
    random->draws = pv_alloc(model->stream_count * sizeof *random->draws);
    for (uint32_t i = 0; i < model->stream_count; i++)
        random->hashes[i] = pv_random_hash(model->streams[i]);
    return random;
}

void pv_random_free(PvRandom *random)
{
    if (!random)
        return;
    free(random->hashes);
    free(random->draws);
    free(random);
}

void pv_random_advance(PvRandom *random, const uint32_t *streams, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        random->draws[streams[i]]++;
}

PvTensor *pv_random_given(const PvRandom *random, uint32_t stream)
{
    if (!random->given)
        return NULL;
    char name[512];
    snprintf(name, sizeof name, "%s.%llu", random->names[stream],
             (unsigned long long)random->draws[stream]);
    PvTensor *tensor = pv_set_find(random->given, name);
    if (!tensor && (random->given_always || random->draws[stream] == 0))
        tensor = pv_set_find(random->given, random->names[stream]);
    return tensor;
}

// ---- filling ----

// What a fill draws from.
typedef struct {
    uint64_t seed;
    uint32_t stream, draw;
    int kind;
    int64_t lo, hi;
} Source;

// Elements 4 block .. 4 block + count - 1 into out.
static inline __attribute__((always_inline)) void fill_block(const Source *source, uint64_t block,
                                                             int count, void *out)
{
    PvBits bits = pv_random_block(source->seed, source->stream, source->draw, block);
    float values[4] = {0};
    if (source->kind == KIND_INT) {
        for (int i = 0; i < count; i++)
            ((int64_t *)out)[i] = pv_bits_int(bits.word[i], source->lo, source->hi);
        return;
    }
    if (source->kind == KIND_NORMAL) {
        pv_bits_normal(bits.word[0], bits.word[1], &values[0], &values[1]);
        pv_bits_normal(bits.word[2], bits.word[3], &values[2], &values[3]);
    } else {
        for (int i = 0; i < 4; i++)
            values[i] = pv_bits_uniform(bits.word[i]);
    }
    for (int i = 0; i < count; i++)
        ((PvReal *)out)[i] = (PvReal)values[i];
}

// Elements first .. first + count - 1, first a multiple of 4. With the machine's FMA instructions
// where it has them; every multiply-add is explicit, so both copies give the same bits.
BY_MACHINE
static void fill_run(const Source *source, int64_t first, int64_t count, char *out)
{
    int64_t size = source->kind == KIND_INT ? 8 : (int64_t)sizeof(PvReal);
    for (int64_t i = 0; i < count; i += 4) {
        int here = count - i < 4 ? (int)(count - i) : 4;
        fill_block(source, (uint64_t)(first + i) / 4, here, out + i * size);
    }
}

static void fill(const Source *source, int64_t count, int threads, char *out)
{
    enum { RUN = 8192 }; // elements a piece of parallel work
    int64_t size = source->kind == KIND_INT ? 8 : (int64_t)sizeof(PvReal);
    int64_t runs = (count + RUN - 1) / RUN;
#pragma omp parallel for num_threads(threads) if (runs > 1)
    for (int64_t run = 0; run < runs; run++) {
        int64_t first = run * RUN, here = count - first < RUN ? count - first : RUN;
        fill_run(source, first, here, out + first * size);
    }
}

static Source source_of(const PvRandom *random, uint32_t stream, int kind, int64_t lo, int64_t hi)
{
    return (Source){.seed = random->seed,
                    .stream = random->hashes[stream],
                    .draw = (uint32_t)random->draws[stream],
                    .kind = kind,
                    .lo = lo,
                    .hi = hi};
}

static void fill_stream(const PvRandom *random, uint32_t stream, int kind, int64_t lo, int64_t hi,
                        int64_t count, int threads, void *out)
{
    const PvTensor *given = pv_random_given(random, stream);
    if (given && given->count != count) {
        char shape[PV_SHAPE_TEXT];
        pv_fail(PV_WRONG,
                "the tensor given for draw %llu of stream '%s' is %s, and %lld numbers are "
                "drawn",
                (unsigned long long)random->draws[stream], random->names[stream],
                pv_shape_text(shape, given->rank, given->dim), (long long)count);
    }
    if (given) {
        pv_convert(out, kind == KIND_INT ? PV_I64 : PV_REAL_DTYPE, given->data, given->dtype,
                   count);
        return;
    }
    Source source = source_of(random, stream, kind, lo, hi);
    fill(&source, count, threads, out);
}

void pv_random_fill(const PvRandom *random, uint32_t stream, int kind, int64_t lo, int64_t hi,
                    int64_t count, void *out)
{
    fill_stream(random, stream, kind, lo, hi, count, 1, out);
}

void pv_random(const PvRun *run, const int64_t *args)
{
    const RandomArgs *draw = (const RandomArgs *)(const void *)args;
    fill_stream(run->step->random, (uint32_t)draw->stream, (int)draw->kind, draw->lo, draw->hi,
                draw->count, run->threads, (void *)(uintptr_t)draw->y);
}

// ---- single numbers ----

double pv_draw_normal(const PvStep *step, uint32_t stream)
{
    PvReal value;
    pv_random_fill(step->random, stream, KIND_NORMAL, 0, 0, 1, &value);
    return (double)value;
}

double pv_draw_uniform(const PvStep *step, uint32_t stream)
{
    PvReal value;
    pv_random_fill(step->random, stream, KIND_UNIFORM, 0, 0, 1, &value);
    return (double)value;
}

int64_t pv_draw_int(const PvStep *step, uint32_t stream, int64_t lo, int64_t hi)
{
    int64_t value;
    pv_random_fill(step->random, stream, KIND_INT, lo, hi, 1, &value);
    return value;
}

// ---- first values ----

void pv_random_init(const PvModel *model, uint64_t seed, char *params)
{
    for (uint32_t i = 0; i < model->param_count; i++) {
        const PvParam *param = &model->params[i];
        if (param->type.dtype == PV_I64) {
            int64_t value = param->init == PV_ONES   ? 1
                            : param->init == PV_FULL ? (int64_t)param->init_a
                                                     : 0;
            int64_t *at = (int64_t *)(void *)(params + param->offset);
            for (int64_t k = 0; k < param->count; k++)
                at[k] = value;
            continue;
        }
        PvReal *at = (PvReal *)(void *)(params + param->offset);
        double a = param->init_a, b = param->init_b; // normal: mean, std; uniform: lo, hi
        if (param->init == PV_NORMAL || param->init == PV_UNIFORM) {
            bool normal = param->init == PV_NORMAL;
            Source source = {.seed = seed,
                             .stream = pv_random_hash(param->name),
                             .kind = normal ? KIND_NORMAL : KIND_UNIFORM};
            fill(&source, param->count, 1, params + param->offset);
            double scale = normal ? b : b - a;
            for (int64_t k = 0; k < param->count; k++)
                at[k] = (PvReal)fma(scale, (double)at[k], a);
            continue;
        }
        double value = param->init == PV_ONES ? 1 : param->init == PV_FULL ? a : 0;
        for (int64_t k = 0; k < param->count; k++)
            at[k] = (PvReal)value;
    }
}
