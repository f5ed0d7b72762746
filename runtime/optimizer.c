// AdamW, SGD, clipping and EMA.
//
// AdamW (Loshchilov and Hutter, arXiv 1711.05101) in the order of operations of torch.optim.AdamW:
//     p *= 1 - lr weight_decay
//     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//     p -= lr / (1 - beta1^n) m / (sqrt(v) / sqrt(1 - beta2^n) + eps)
// Constants are computed in double and rounded to PvReal once. n counts the updates of this
// minimize. A parameter that the loss of an update does not reach is left alone, decay included.
//
// Work is cut into chunks of 16,384 elements that never depend on the number of threads; sums of
// squares are added within a chunk in double, and over chunks in their order. So any number of
// threads gives the same bits. The loops over a chunk exist for several widths of vectors, of which
// the machine at hand takes one (the rest of the runtime is made for any machine); all give the
// same bits, too, since nothing is contracted or reordered.
#include "runtime/optimizer.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec.h"

#if defined __x86_64__ && defined __GLIBC__ && !defined __clang__ && !defined __SANITIZE_ADDRESS__
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

enum { CHUNK = 16384 };

static PvReal *at(char *base, const PvModel *model, const PvOptimizerChunk *chunk)
{
    return (PvReal *)(base + model->params[chunk->param].offset) + chunk->first;
}

static const PvReal *at_const(const char *base, const PvModel *model, const PvOptimizerChunk *chunk)
{
    return (const PvReal *)(base + model->params[chunk->param].offset) + chunk->first;
}

static bool names(const PvMinimize *minimize, uint32_t instance)
{
    for (uint32_t i = 0; i < minimize->instance_count; i++)
        if (minimize->instances[i] == instance)
            return true;
    return false;
}

// Marks what moves and cuts it into chunks.
static bool cut_chunks(PvOptimizer *optimizer)
{
    const PvStage *stage = optimizer->stage;
    const PvModel *model = optimizer->model;
    uint32_t count = 0;
    for (uint32_t p = 0; p < model->param_count; p++) {
        const PvParam *param = &model->params[p];
        bool moves = false;
        for (uint32_t i = 0; i < stage->minimize_count; i++)
            moves |= names(&stage->minimize[i], param->instance);
        optimizer->moves[p] = moves && !param->buffer;
        if (optimizer->moves[p])
            count += (uint32_t)((param->count + CHUNK - 1) / CHUNK);
    }
    optimizer->chunks = calloc(count + 1u, sizeof *optimizer->chunks);
    optimizer->partial = calloc(count + 1u, sizeof *optimizer->partial);
    if (!optimizer->chunks || !optimizer->partial)
        return false;
    for (uint32_t p = 0; p < model->param_count; p++) {
        if (!optimizer->moves[p])
            continue;
        int64_t size = model->params[p].count;
        for (int64_t first = 0; first < size; first += CHUNK)
            optimizer->chunks[optimizer->chunk_count++] =
                (PvOptimizerChunk){p, first, size - first < CHUNK ? size - first : CHUNK};
    }
    return true;
}

PvOptimizer *pv_optimizer_new(const PvModel *model, const PvStage *stage, int threads)
{
    PvOptimizer *optimizer = calloc(1, sizeof *optimizer);
    if (!optimizer)
        return NULL;
    optimizer->model = model;
    optimizer->stage = stage;
    optimizer->threads = threads;
    optimizer->m = pv_space_new(model->param_bytes);
    optimizer->v = pv_space_new(model->param_bytes);
    optimizer->ema = pv_space_new(model->param_bytes);
    optimizer->sum = pv_space_new(model->param_bytes);
    optimizer->moves = calloc(model->param_count + 1u, sizeof *optimizer->moves);
    optimizer->factor = calloc(model->instance_count + 1u, sizeof *optimizer->factor);
    if (!optimizer->m || !optimizer->v || !optimizer->ema || !optimizer->sum || !optimizer->moves ||
        !optimizer->factor || !cut_chunks(optimizer)) {
        pv_optimizer_free(optimizer);
        return NULL;
    }
    return optimizer;
}

void pv_optimizer_free(PvOptimizer *optimizer)
{
    if (!optimizer)
        return;
    int64_t bytes = optimizer->model->param_bytes;
    pv_space_free(optimizer->m, bytes);
    pv_space_free(optimizer->v, bytes);
    pv_space_free(optimizer->ema, bytes);
    pv_space_free(optimizer->sum, bytes);
    free(optimizer->moves);
    free(optimizer->factor);
    free(optimizer->chunks);
    free(optimizer->partial);
    free(optimizer);
}

bool pv_optimizer_takes(const PvOptimizer *optimizer, uint32_t turn, uint32_t param)
{
    return optimizer->moves[param] &&
           names(&optimizer->stage->minimize[turn], optimizer->model->params[param].instance);
}

void pv_optimizer_start_ema(PvOptimizer *optimizer, uint32_t turn, const char *params)
{
    for (uint32_t p = 0; p < optimizer->model->param_count; p++) {
        if (!pv_optimizer_takes(optimizer, turn, p))
            continue;
        const PvParam *param = &optimizer->model->params[p];
        memcpy(optimizer->ema + param->offset, params + param->offset,
               (size_t)param->count * sizeof(PvReal));
    }
}

void pv_optimizer_accumulate(PvOptimizer *optimizer, uint32_t turn, const char *grad,
                             const bool *present, bool *seen)
{
    const PvModel *model = optimizer->model;
#pragma omp parallel for schedule(static) num_threads(optimizer->threads)
    for (uint32_t c = 0; c < optimizer->chunk_count; c++) {
        const PvOptimizerChunk *chunk = &optimizer->chunks[c];
        if (!present[chunk->param] || !pv_optimizer_takes(optimizer, turn, chunk->param))
            continue;
        PvReal *sum = at(optimizer->sum, model, chunk);
        const PvReal *g = at_const(grad, model, chunk);
        if (seen[chunk->param])
            for (int64_t i = 0; i < chunk->count; i++)
                sum[i] += g[i];
        else
            memcpy(sum, g, (size_t)chunk->count * sizeof *sum);
    }
    for (uint32_t p = 0; p < model->param_count; p++)
        if (present[p] && pv_optimizer_takes(optimizer, turn, p))
            seen[p] = true;
}

// Sixteen sums side by side, so that no addition waits for the one before it. Nothing but memory
// decides here: lines are asked for AHEAD numbers before their turn, 0.8 of the time.
WIDE static double square_sum(const PvReal *g, int64_t count)
{
    typedef PvReal Eight __attribute__((vector_size(8 * sizeof(PvReal)), aligned(sizeof(PvReal))));
    typedef double Wide __attribute__((vector_size(8 * sizeof(double))));
    Wide sum[2] = {{0}, {0}};
    enum { AHEAD = 2048 };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __builtin_prefetch(g + i + AHEAD);
        Wide low = __builtin_convertvector(*(const Eight *)(g + i), Wide);
        Wide high = __builtin_convertvector(*(const Eight *)(g + i + 8), Wide);
        sum[0] += low * low;
        sum[1] += high * high;
    }
    double all = 0;
    for (; i < count; i++)
        all += (double)g[i] * (double)g[i];
    for (int k = 0; k < 8; k++)
        all += sum[0][k] + sum[1][k];
    return all;
}

// Sums of squares of every chunk that is updated, into partial.
static void square_chunks(PvOptimizer *optimizer, uint32_t turn, const char *grad,
                          const bool *present)
{
#pragma omp parallel for schedule(static) num_threads(optimizer->threads)
    for (uint32_t c = 0; c < optimizer->chunk_count; c++) {
        const PvOptimizerChunk *chunk = &optimizer->chunks[c];
        bool taken = present[chunk->param] && pv_optimizer_takes(optimizer, turn, chunk->param);
        optimizer->partial[c] =
            taken ? square_sum(at_const(grad, optimizer->model, chunk), chunk->count) : 0;
    }
}

typedef struct {
    PvReal decay, beta1, rest1, beta2, rest2, step, root2, eps;
} AdamNumbers;

static AdamNumbers adam_numbers(const PvOptimizerSettings *settings, int64_t n)
{
    double bias1 = 1 - pow(settings->beta1, (double)n);
    double bias2 = 1 - pow(settings->beta2, (double)n);
    return (AdamNumbers){(PvReal)(1 - settings->lr * settings->weight_decay),
                         (PvReal)settings->beta1,
                         (PvReal)(1 - settings->beta1),
                         (PvReal)settings->beta2,
                         (PvReal)(1 - settings->beta2),
                         (PvReal)(settings->lr / bias1),
                         (PvReal)sqrt(bias2),
                         (PvReal)settings->eps};
}

// p, g, m, v: [count]; the gradient is g * scale.
WIDE static void adam_chunk(const AdamNumbers *k, PvReal scale, int64_t count, PvReal *restrict p,
                            const PvReal *restrict g, PvReal *restrict m, PvReal *restrict v)
{
    const AdamNumbers is = *k;
    for (int64_t i = 0; i < count; i++) {
        PvReal slope = g[i] * scale;
        PvReal mean = m[i] * is.beta1 + slope * is.rest1;
        PvReal square = v[i] * is.beta2 + slope * slope * is.rest2;
        m[i] = mean;
        v[i] = square;
        PvReal root = sizeof(PvReal) == 4 ? (PvReal)sqrtf((float)square) : (PvReal)sqrt(square);
        p[i] = p[i] * is.decay - is.step * (mean / (root / is.root2 + is.eps));
    }
}

// p -= lr b, b = momentum b + g (g at first): torch.optim.SGD without dampening.
WIDE static void sgd_chunk(const PvOptimizerSettings *settings, bool first, PvReal scale,
                           int64_t count, PvReal *restrict p, const PvReal *restrict g,
                           PvReal *restrict m)
{
    PvReal lr = (PvReal)settings->lr;
    PvReal momentum = (PvReal)settings->momentum;
    PvReal decay = (PvReal)settings->weight_decay;
    for (int64_t i = 0; i < count; i++) {
        PvReal slope = g[i] * scale + decay * p[i];
        if (momentum != 0) {
            slope = first ? slope : momentum * m[i] + slope;
            m[i] = slope;
        }
        p[i] -= lr * slope;
    }
}

// What each instance's gradients are multiplied by: `scale`, and less where their norm would
// exceed `clip` (torch.nn.utils.clip_grad_norm_). Returns the norm of all of them, unclipped.
static double measure_gradients(PvOptimizer *optimizer, const PvMinimize *minimize, double clip,
                                double scale)
{
    const PvModel *model = optimizer->model;
    double *factor = optimizer->factor; // sums of squares at first
    memset(factor, 0, model->instance_count * sizeof *factor);
    double sum = 0;
    for (uint32_t c = 0; c < optimizer->chunk_count; c++) {
        factor[model->params[optimizer->chunks[c].param].instance] += optimizer->partial[c];
        sum += optimizer->partial[c];
    }
    for (uint32_t i = 0; i < minimize->instance_count; i++) {
        double *of = &factor[minimize->instances[i]];
        double shrink = clip > 0 ? clip / (sqrt(*of) * scale + 1e-6) : 1;
        *of = shrink < 1 ? scale * shrink : scale;
    }
    return sqrt(sum) * scale;
}

double pv_optimizer_update(PvOptimizer *optimizer, uint32_t turn,
                           const PvOptimizerSettings *settings, char *params, const char *grad,
                           const bool *present, double scale)
{
    const PvModel *model = optimizer->model;
    const PvMinimize *minimize = &optimizer->stage->minimize[turn];
    square_chunks(optimizer, turn, grad, present);
    double norm = measure_gradients(optimizer, minimize, settings->clip, scale);
    if (!isfinite(norm))
        return norm;
    int64_t n = ++optimizer->updates[turn];
    bool adam = strcmp(minimize->optimizer, "sgd") != 0;
    AdamNumbers numbers = adam_numbers(settings, n);
#pragma omp parallel for schedule(static) num_threads(optimizer->threads)
    for (uint32_t c = 0; c < optimizer->chunk_count; c++) {
        const PvOptimizerChunk *chunk = &optimizer->chunks[c];
        if (!present[chunk->param] || !pv_optimizer_takes(optimizer, turn, chunk->param))
            continue;
        PvReal factor = (PvReal)optimizer->factor[model->params[chunk->param].instance];
        PvReal *p = at(params, model, chunk), *m = at(optimizer->m, model, chunk);
        const PvReal *g = at_const(grad, model, chunk);
        if (adam)
            adam_chunk(&numbers, factor, chunk->count, p, g, m, at(optimizer->v, model, chunk));
        else
            sgd_chunk(settings, n == 1, factor, chunk->count, p, g, m);
    }
    return norm;
}

// average -= rest (average - p)
WIDE static void average_chunk(PvReal rest, int64_t count, PvReal *restrict average,
                               const PvReal *restrict p)
{
    for (int64_t i = 0; i < count; i++)
        average[i] -= rest * (average[i] - p[i]);
}

void pv_optimizer_average(PvOptimizer *optimizer, uint32_t turn, double ema, const char *params)
{
    const PvModel *model = optimizer->model;
    double n = (double)++optimizer->ema_updates[turn];
    double warm = (1 + n) / (10 + n);
    PvReal rest = (PvReal)(1 - (ema < warm ? ema : warm));
#pragma omp parallel for schedule(static) num_threads(optimizer->threads)
    for (uint32_t c = 0; c < optimizer->chunk_count; c++) {
        const PvOptimizerChunk *chunk = &optimizer->chunks[c];
        if (!pv_optimizer_takes(optimizer, turn, chunk->param))
            continue;
        average_chunk(rest, chunk->count, at(optimizer->ema, model, chunk),
                      at_const(params, model, chunk));
    }
}

double pv_optimizer_decimal(float value)
{
    for (int digits = 6; digits <= 8; digits++) {
        char text[32];
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        double decimal = strtod(text, NULL);
        if ((float)decimal == value)
            return decimal;
    }
    return (double)value;
}
