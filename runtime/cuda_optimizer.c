// Updates on a GPU. See cuda_optimizer.h; optimizer.c says what is computed.
//
// The norm of the gradients, the factor of each instance and whether all is finite stay on the
// device: the kernels that change parameters look there, and do nothing once an update was not
// finite. So the host can queue the next step at once, and reads the numbers when it likes.
#include "runtime/cuda_optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/kernel_args.h"

static int64_t bits(double value)
{
    int64_t number;
    memcpy(&number, &value, sizeof number);
    return number;
}

static PvMirror mirror(const char *what, char *host)
{
    return (PvMirror){.what = what, .host = host};
}

PvGpuOptimizer *pv_gpu_optimizer_new(PvGpu *gpu, PvOptimizer *optimizer, PvError *error)
{
    const PvModel *model = optimizer->model;
    PvGpuOptimizer *own = pv_alloc(sizeof *own);
    own->gpu = gpu;
    own->optimizer = optimizer;
    own->m = mirror("moments", optimizer->m);
    own->v = mirror("moments", optimizer->v);
    own->ema = mirror("averages", optimizer->ema);
    own->sum = mirror("sums of gradients", optimizer->sum);
    own->marks = pv_alloc(model->param_count + 1u);
    PvMirror *const mirrors[] = {&own->m, &own->v, &own->ema, &own->sum};
    for (uint32_t p = 0; p < model->param_count; p++) {
        const PvInstance *at = &model->instances[model->params[p].instance];
        for (size_t i = 0; optimizer->moves[p] && i < sizeof mirrors / sizeof *mirrors; i++)
            pv_mirror_cover(mirrors[i], at->offset, at->offset + at->size);
    }
    int64_t factors = (int64_t)(model->instance_count * sizeof(double));
    const OptimizerResult none = {0};
    if (pv_device_alloc(gpu->device, factors, "factors", &own->factor, error) &&
        pv_device_alloc(gpu->device, sizeof none, "results", &own->result, error) &&
        pv_device_upload(gpu->device, gpu->device->work, own->result, &none, sizeof none, error))
        return own;
    pv_gpu_optimizer_free(own);
    return NULL;
}

static void free_lists(PvGpuOptimizer *own)
{
    while (own->lists) {
        PvChunkList *list = own->lists;
        own->lists = list->next;
        pv_device_free(own->gpu->device, list->at, list->count * (int64_t)sizeof(OptimizerChunk));
        free(list->marks);
        free(list);
    }
}

void pv_gpu_optimizer_free(PvGpuOptimizer *own)
{
    if (!own)
        return;
    PvDevice *device = own->gpu->device;
    free_lists(own);
    pv_mirror_free(device, &own->m);
    pv_mirror_free(device, &own->v);
    pv_mirror_free(device, &own->ema);
    pv_mirror_free(device, &own->sum);
    pv_device_free(device, own->factor,
                   (int64_t)(own->optimizer->model->instance_count * sizeof(double)));
    pv_device_free(device, own->result, sizeof(OptimizerResult));
    free(own->marks);
    free(own);
}

// ---- which parts ----

static bool send_chunks(PvGpuOptimizer *own, PvChunkList *list, PvError *error)
{
    const PvOptimizer *optimizer = own->optimizer;
    const PvModel *model = optimizer->model;
    OptimizerChunk *chunks = pv_alloc((optimizer->chunk_count + 1u) * sizeof *chunks);
    for (uint32_t i = 0; i < optimizer->chunk_count; i++) {
        const PvOptimizerChunk *from = &optimizer->chunks[i];
        const PvParam *param = &model->params[from->param];
        if (list->marks[from->param])
            chunks[list->count++] =
                (OptimizerChunk){param->offset / (int64_t)sizeof(PvReal) + from->first,
                                 (int32_t)from->count, (int32_t)param->instance};
    }
    int64_t bytes = list->count * (int64_t)sizeof *chunks;
    bool good =
        pv_device_alloc(own->gpu->device, bytes, "a list of parameters", &list->at, error) &&
        pv_device_upload(own->gpu->device, own->gpu->device->work, list->at, chunks, bytes, error);
    free(chunks);
    return good;
}

// The list of what own->marks marks, made when it is first asked for.
static const PvChunkList *marked_chunks(PvGpuOptimizer *own, PvError *error)
{
    uint32_t count = own->optimizer->model->param_count;
    for (PvChunkList *list = own->lists; list; list = list->next)
        if (memcmp(list->marks, own->marks, count) == 0)
            return list;
    PvChunkList *list = pv_alloc(sizeof *list);
    list->marks = pv_alloc(count + 1u);
    memcpy(list->marks, own->marks, count);
    list->next = own->lists;
    own->lists = list;
    return send_chunks(own, list, error) ? list : NULL;
}

// Marks the parameters of a minimize that move and are in `present` (NULL: all).
static void mark(PvGpuOptimizer *own, uint32_t turn, const bool *present)
{
    const PvOptimizer *optimizer = own->optimizer;
    for (uint32_t p = 0; p < optimizer->model->param_count; p++)
        own->marks[p] = pv_optimizer_takes(optimizer, turn, p) && (!present || present[p]);
}

// ---- what is computed ----

static bool add_gradients(PvGpuOptimizer *own, bool first, PvError *error)
{
    const PvChunkList *list = marked_chunks(own, error);
    if (!list || list->count == 0)
        return list != NULL;
    AccumulateArgs args = {.chunks = (int64_t)list->at,
                           .chunk_count = list->count,
                           .sum = (int64_t)own->sum.base,
                           .gradients = (int64_t)own->gpu->grads.base,
                           .first = first};
    return pv_gpu_call(own->gpu, "accumulate", &args, sizeof args, error);
}

bool pv_gpu_accumulate(PvGpuOptimizer *own, uint32_t turn, const bool *present, bool *seen,
                       PvError *error)
{
    uint32_t count = own->optimizer->model->param_count;
    if (!pv_mirror_to_device(own->gpu->device, &own->sum, NULL, error))
        return false;
    mark(own, turn, present);
    for (uint32_t p = 0; p < count; p++)
        own->marks[p] &= !seen[p];
    if (!add_gradients(own, true, error))
        return false;
    mark(own, turn, present);
    for (uint32_t p = 0; p < count; p++) {
        bool taken = own->marks[p];
        own->marks[p] &= seen[p];
        seen[p] |= taken;
    }
    return add_gradients(own, false, error);
}

static int64_t gradients(const PvGpuOptimizer *own, const PvGpuUpdate *update)
{
    return (int64_t)(update->sums ? own->sum.base : own->gpu->grads.base);
}

static bool measure(PvGpuOptimizer *own, const PvGpuUpdate *update, const PvChunkList *list,
                    PvError *error)
{
    SquareSumsArgs args = {.chunks = (int64_t)list->at,
                           .chunk_count = list->count,
                           .gradients = gradients(own, update),
                           .losses = (int64_t)update->losses,
                           .loss_count = update->loss_count,
                           .factor = (int64_t)own->factor,
                           .instances = own->optimizer->model->instance_count,
                           .result = (int64_t)own->result,
                           .step = update->step,
                           .scale = bits(update->scale),
                           .clip = bits(update->settings->clip)};
    return pv_gpu_call(own->gpu, "square_sums", &args, sizeof args, error);
}

// n: updates so far; average: address of the averages, or 0.
static bool step_adamw(PvGpuOptimizer *own, const PvGpuUpdate *update, const PvChunkList *list,
                       int64_t n, int64_t average, double rest, PvError *error)
{
    const PvOptimizerSettings *settings = update->settings;
    double bias1 = 1 - pow(settings->beta1, (double)n), bias2 = 1 - pow(settings->beta2, (double)n);
    if (!pv_mirror_to_device(own->gpu->device, &own->v, NULL, error))
        return false;
    AdamwArgs args = {.chunks = (int64_t)list->at,
                      .chunk_count = list->count,
                      .params = (int64_t)own->gpu->params.base,
                      .gradients = gradients(own, update),
                      .m = (int64_t)own->m.base,
                      .v = (int64_t)own->v.base,
                      .average = average,
                      .factor = (int64_t)own->factor,
                      .result = (int64_t)own->result,
                      .decay = bits(1 - settings->lr * settings->weight_decay),
                      .beta1 = bits(settings->beta1),
                      .rest1 = bits(1 - settings->beta1),
                      .beta2 = bits(settings->beta2),
                      .rest2 = bits(1 - settings->beta2),
                      .rate = bits(settings->lr / bias1),
                      .root2 = bits(sqrt(bias2)),
                      .eps = bits(settings->eps),
                      .rest = bits(rest)};
    own->v.device_new = true;
    return pv_gpu_call(own->gpu, "adamw", &args, sizeof args, error);
}

static bool step_sgd(PvGpuOptimizer *own, const PvGpuUpdate *update, const PvChunkList *list,
                     int64_t n, int64_t average, double rest, PvError *error)
{
    const PvOptimizerSettings *settings = update->settings;
    SgdArgs args = {.chunks = (int64_t)list->at,
                    .chunk_count = list->count,
                    .params = (int64_t)own->gpu->params.base,
                    .gradients = gradients(own, update),
                    .m = (int64_t)own->m.base,
                    .average = average,
                    .factor = (int64_t)own->factor,
                    .result = (int64_t)own->result,
                    .first = n == 1,
                    .lr = bits(settings->lr),
                    .momentum = bits(settings->momentum),
                    .decay = bits(settings->weight_decay),
                    .rest = bits(rest)};
    return pv_gpu_call(own->gpu, "sgd", &args, sizeof args, error);
}

// The averages by themselves, of all that the minimize moves.
static bool step_average(PvGpuOptimizer *own, const PvGpuUpdate *update, double rest,
                         PvError *error)
{
    mark(own, update->turn, NULL);
    const PvChunkList *list = marked_chunks(own, error);
    if (!list || list->count == 0)
        return list != NULL;
    AverageArgs args = {.chunks = (int64_t)list->at,
                        .chunk_count = list->count,
                        .average = (int64_t)own->ema.base,
                        .params = (int64_t)own->gpu->params.base,
                        .result = (int64_t)own->result,
                        .rest = bits(rest)};
    return pv_gpu_call(own->gpu, "average", &args, sizeof args, error);
}

// Does the update reach everything that the minimize moves?
static bool reaches_all(const PvGpuOptimizer *own, const PvGpuUpdate *update)
{
    for (uint32_t p = 0; p < own->optimizer->model->param_count; p++)
        if (pv_optimizer_takes(own->optimizer, update->turn, p) && !update->present[p])
            return false;
    return true;
}

bool pv_gpu_update(PvGpuOptimizer *own, const PvGpuUpdate *update, PvError *error)
{
    PvOptimizer *optimizer = own->optimizer;
    PvDevice *device = own->gpu->device;
    bool adam = strcmp(optimizer->stage->minimize[update->turn].optimizer, "sgd") != 0;
    double rest = 0;
    if (update->average) {
        double n = (double)++optimizer->ema_updates[update->turn], warm = (1 + n) / (10 + n);
        rest = 1 - (update->settings->ema < warm ? update->settings->ema : warm);
        if (!pv_mirror_to_device(device, &own->ema, NULL, error))
            return false;
    }
    mark(own, update->turn, update->present);
    const PvChunkList *list = marked_chunks(own, error);
    if (!list || !pv_gpu_place(own->gpu, error) ||
        !pv_mirror_to_device(device, &own->m, NULL, error) || !measure(own, update, list, error))
        return false;
    bool together = update->average && list->count > 0 && reaches_all(own, update);
    int64_t n = ++optimizer->updates[update->turn], average = together ? (int64_t)own->ema.base : 0;
    own->gpu->params.device_new = own->m.device_new = true;
    own->ema.device_new |= update->average;
    if (list->count > 0 && !(adam ? step_adamw(own, update, list, n, average, rest, error)
                                  : step_sgd(own, update, list, n, average, rest, error)))
        return false;
    return !update->average || together || step_average(own, update, rest, error);
}

// ---- the host's copies ----

void pv_gpu_optimizer_written(PvGpuOptimizer *own)
{
    own->m.host_new = own->v.host_new = own->ema.host_new = true;
}

bool pv_gpu_optimizer_fetch(PvGpuOptimizer *own, PvError *error)
{
    PvDevice *device = own->gpu->device;
    return pv_mirror_to_host(device, &own->m, error) && pv_mirror_to_host(device, &own->v, error) &&
           pv_mirror_to_host(device, &own->ema, error);
}
