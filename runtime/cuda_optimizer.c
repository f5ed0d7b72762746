// Updates on a GPU. See cuda_optimizer.h; optimizer.c says what is computed.
//
// The norm of the gradients, the factor of each instance and whether all is finite stay on the
// device: the kernels that change parameters look there, and do nothing once an update was not
// finite. So the host can queue the next step at once, and reads the numbers when it likes. What
// changes from update to update (learning rate, powers of beta ...) is sent to a fixed address
// before, so that the launches of an update are one graph, replayed.
#include "runtime/cuda_optimizer.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/kernel_args.h"

enum { SCALES_BYTES = PV_MAX_MINIMIZE * sizeof(LossScale) };

// Where an update stores the shadow of parameters as well; 0: there is none.
static int64_t shadow(const PvGpu *gpu)
{
    return gpu->exec->model->shadow != PV_NONE ? (int64_t)gpu->shadow_base : 0;
}

PvGpuOptimizer *pv_gpu_optimizer_new(PvGpu *gpu, PvOptimizer *optimizer, PvError *error)
{
    const PvModel *model = optimizer->model;
    PvGpuOptimizer *own = pv_alloc(sizeof *own);
    own->gpu = gpu;
    own->optimizer = optimizer;
    own->m = pv_gpu_mirror(gpu, "moments", optimizer->m);
    own->v = pv_gpu_mirror(gpu, "moments", optimizer->v);
    own->ema = pv_gpu_mirror(gpu, "averages", optimizer->ema);
    own->sum = pv_gpu_mirror(gpu, "sums of gradients", optimizer->sum);
    own->marks = pv_alloc(model->param_count + 1u);
    PvMirror *const mirrors[] = {&own->m, &own->v, &own->ema, &own->sum};
    for (uint32_t p = 0; p < model->param_count; p++) {
        const PvInstance *at = &model->instances[model->params[p].instance];
        for (size_t i = 0; optimizer->moves[p] && i < sizeof mirrors / sizeof *mirrors; i++)
            pv_mirror_cover(mirrors[i], at->offset, at->offset + at->size);
    }
    int64_t factors = (int64_t)(model->instance_count * sizeof(double));
    const OptimizerResult none = {0};
    bool scaled = model->shadow == PV_F16;
    for (uint32_t i = 0; scaled && i < optimizer->stage->minimize_count; i++)
        optimizer->scale[i] = (PvLossScale){.scale = LOSS_SCALE_FIRST};
    own->scales_new = scaled;
    if ((!scaled || pv_device_alloc(gpu->device, SCALES_BYTES, "scales", &own->scales, error)) &&
        pv_device_alloc(gpu->device, factors, "factors", &own->factor, error) &&
        pv_device_alloc(gpu->device, sizeof none, "results", &own->result, error) &&
        pv_device_alloc(gpu->device, sizeof(OptimizerNumbers), "numbers", &own->numbers, error) &&
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
    pv_device_free(device, own->numbers, sizeof(OptimizerNumbers));
    pv_device_free(device, own->scales, SCALES_BYTES);
    own->gpu->loss_scale = 0;
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

// Adds the gradients of what own->marks marks to their sums, as one of `calls`.
static bool add_gradients(PvGpuOptimizer *own, bool first, AccumulateArgs *args, PvGpuCall *calls,
                          uint32_t *count, PvError *error)
{
    const PvChunkList *list = marked_chunks(own, error);
    if (!list || list->count == 0)
        return list != NULL;
    *args = (AccumulateArgs){.chunks = (int64_t)list->at,
                             .chunk_count = list->count,
                             .sum = (int64_t)own->sum.base,
                             .gradients = (int64_t)own->gpu->grads.base,
                             .first = first};
    calls[(*count)++] = (PvGpuCall){"accumulate", args, sizeof *args};
    return true;
}

bool pv_gpu_accumulate(PvGpuOptimizer *own, uint32_t turn, const bool *present, bool *seen,
                       PvError *error)
{
    uint32_t count = own->optimizer->model->param_count, call_count = 0;
    AccumulateArgs args[2];
    PvGpuCall calls[2];
    if (!pv_mirror_to_device(own->gpu->device, &own->sum, NULL, error))
        return false;
    mark(own, turn, present);
    for (uint32_t p = 0; p < count; p++)
        own->marks[p] &= !seen[p];
    if (!add_gradients(own, true, &args[0], calls, &call_count, error))
        return false;
    mark(own, turn, present);
    for (uint32_t p = 0; p < count; p++) {
        bool taken = own->marks[p];
        own->marks[p] &= seen[p];
        seen[p] |= taken;
    }
    return add_gradients(own, false, &args[1], calls, &call_count, error) &&
           pv_gpu_calls(own->gpu, calls, call_count, error);
}

static CUdeviceptr scale_of(const PvGpuOptimizer *own, uint32_t turn)
{
    return own->scales ? own->scales + turn * sizeof(LossScale) : 0;
}

bool pv_gpu_loss_scale(PvGpuOptimizer *own, uint32_t turn, PvError *error)
{
    PvDevice *device = own->gpu->device;
    if (!own->scales)
        return true;
    own->gpu->loss_scale = scale_of(own, turn) + offsetof(LossScale, real);
    if (!own->scales_new)
        return true;
    own->scales_new = false;
    LossScale scales[PV_MAX_MINIMIZE] = {{0}};
    for (int i = 0; i < PV_MAX_MINIMIZE; i++) {
        const PvLossScale *from = &own->optimizer->scale[i];
        scales[i] = (LossScale){from->scale, from->good, from->skipped, {(float)from->scale, 0}};
    }
    return pv_device_upload(device, device->work, own->scales, scales, sizeof scales, error);
}

static bool fetch_scales(PvGpuOptimizer *own, PvError *error)
{
    PvDevice *device = own->gpu->device;
    LossScale scales[PV_MAX_MINIMIZE];
    if (!own->scales || own->scales_new)
        return true;
    if (!pv_device_download(device, device->work, scales, own->scales, sizeof scales, error))
        return false;
    for (int i = 0; i < PV_MAX_MINIMIZE; i++)
        own->optimizer->scale[i] =
            (PvLossScale){scales[i].scale, scales[i].good, scales[i].skipped};
    return true;
}

static int64_t gradients(const PvGpuOptimizer *own, const PvGpuUpdate *update)
{
    return (int64_t)(update->sums ? own->sum.base : own->gpu->grads.base);
}

// The launches of an update.
typedef struct {
    SquareSumsArgs sums;
    AdamwArgs adamw;
    SgdArgs sgd;
    AverageArgs average;
    PvGpuCall calls[3];
    uint32_t count;
} Launches;

static void add_launch(Launches *launches, const char *name, const void *args, size_t bytes)
{
    launches->calls[launches->count++] = (PvGpuCall){name, args, bytes};
}

static void measure(PvGpuOptimizer *own, const PvGpuUpdate *update, const PvChunkList *list,
                    Launches *launches)
{
    launches->sums = (SquareSumsArgs){.chunks = (int64_t)list->at,
                                      .chunk_count = list->count,
                                      .gradients = gradients(own, update),
                                      .losses = (int64_t)update->losses,
                                      .loss_count = update->loss_count,
                                      .factor = (int64_t)own->factor,
                                      .instances = own->optimizer->model->instance_count,
                                      .result = (int64_t)own->result,
                                      .numbers = (int64_t)own->numbers,
                                      .loss_scale = (int64_t)scale_of(own, update->turn)};
    add_launch(launches, "square_sums", &launches->sums, sizeof launches->sums);
}

// average: address of the averages, or 0.
static bool step_adamw(PvGpuOptimizer *own, const PvGpuUpdate *update, const PvChunkList *list,
                       int64_t average, Launches *launches, PvError *error)
{
    if (!pv_mirror_to_device(own->gpu->device, &own->v, NULL, error))
        return false;
    launches->adamw = (AdamwArgs){.chunks = (int64_t)list->at,
                                  .chunk_count = list->count,
                                  .params = (int64_t)own->gpu->params.base,
                                  .gradients = gradients(own, update),
                                  .m = (int64_t)own->m.base,
                                  .v = (int64_t)own->v.base,
                                  .average = average,
                                  .factor = (int64_t)own->factor,
                                  .result = (int64_t)own->result,
                                  .numbers = (int64_t)own->numbers,
                                  .shadow = shadow(own->gpu),
                                  .shadow_type = pv_gpu_shadow_type(own->gpu)};
    own->v.device_new = true;
    add_launch(launches, "adamw", &launches->adamw, sizeof launches->adamw);
    return true;
}

static void step_sgd(PvGpuOptimizer *own, const PvGpuUpdate *update, const PvChunkList *list,
                     int64_t average, Launches *launches)
{
    launches->sgd = (SgdArgs){.chunks = (int64_t)list->at,
                              .chunk_count = list->count,
                              .params = (int64_t)own->gpu->params.base,
                              .gradients = gradients(own, update),
                              .m = update->settings->momentum != 0 ? (int64_t)own->m.base : 0,
                              .average = average,
                              .factor = (int64_t)own->factor,
                              .result = (int64_t)own->result,
                              .numbers = (int64_t)own->numbers,
                              .shadow = shadow(own->gpu),
                              .shadow_type = pv_gpu_shadow_type(own->gpu)};
    add_launch(launches, "sgd", &launches->sgd, sizeof launches->sgd);
}

// The averages by themselves, of all that the minimize moves.
static bool step_average(PvGpuOptimizer *own, const PvGpuUpdate *update, Launches *launches,
                         PvError *error)
{
    mark(own, update->turn, NULL);
    const PvChunkList *list = marked_chunks(own, error);
    if (!list || list->count == 0)
        return list != NULL;
    launches->average = (AverageArgs){.chunks = (int64_t)list->at,
                                      .chunk_count = list->count,
                                      .average = (int64_t)own->ema.base,
                                      .params = (int64_t)own->gpu->params.base,
                                      .result = (int64_t)own->result,
                                      .numbers = (int64_t)own->numbers};
    add_launch(launches, "average", &launches->average, sizeof launches->average);
    return true;
}

// n: this is the n-th update; rest: of the averages.
static bool send_numbers(PvGpuOptimizer *own, const PvGpuUpdate *update, int64_t n, double rest,
                         PvError *error)
{
    const PvOptimizerSettings *settings = update->settings;
    const OptimizerNumbers numbers = {
        .step = update->step,
        .updates = n,
        .scale = update->scale,
        .clip = settings->clip,
        .lr = settings->lr,
        .weight_decay = settings->weight_decay,
        .momentum = n > 1 ? settings->momentum : 0,
        .decay = 1 - settings->lr * settings->weight_decay,
        .beta1 = settings->beta1,
        .rest1 = 1 - settings->beta1,
        .beta2 = settings->beta2,
        .rest2 = 1 - settings->beta2,
        .rate = settings->lr / (1 - pow(settings->beta1, (double)n)),
        .root2 = sqrt(1 - pow(settings->beta2, (double)n)),
        .eps = settings->eps,
        .rest = rest,
    };
    PvDevice *device = own->gpu->device;
    return pv_device_upload(device, device->work, own->numbers, &numbers, sizeof numbers, error);
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
    int64_t n = ++optimizer->updates[update->turn];
    if (!list || !pv_gpu_place(own->gpu, error) ||
        !pv_mirror_to_device(device, &own->m, NULL, error) ||
        !send_numbers(own, update, n, rest, error))
        return false;
    bool together = update->average && list->count > 0 && reaches_all(own, update);
    int64_t average = together ? (int64_t)own->ema.base : 0;
    Launches launches = {.count = 0};
    measure(own, update, list, &launches);
    if (list->count > 0 && adam) {
        if (!step_adamw(own, update, list, average, &launches, error))
            return false;
    } else if (list->count > 0) {
        step_sgd(own, update, list, average, &launches);
    }
    if (update->average && !together && !step_average(own, update, &launches, error))
        return false;
    own->gpu->params.device_new = own->m.device_new = true;
    own->ema.device_new |= update->average;
    return pv_gpu_calls(own->gpu, launches.calls, launches.count, error);
}

// ---- the host's copies ----

void pv_gpu_optimizer_written(PvGpuOptimizer *own)
{
    own->m.host_new = own->v.host_new = own->ema.host_new = true;
    own->scales_new = own->scales != 0;
}

bool pv_gpu_optimizer_fetch(PvGpuOptimizer *own, PvError *error)
{
    PvDevice *device = own->gpu->device;
    return pv_mirror_to_host(device, &own->m, error) && pv_mirror_to_host(device, &own->v, error) &&
           pv_mirror_to_host(device, &own->ema, error) && fetch_scales(own, error);
}
