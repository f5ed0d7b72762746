// Running `reconstruct` over consecutive windows of a video.
#include "runtime/reconstruct.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool same_type(const PvType *x, const PvType *y)
{
    return x->dtype == y->dtype && x->rank == y->rank && x->batch_axes == y->batch_axes &&
           memcmp(x->dim, y->dim, x->rank * sizeof *x->dim) == 0;
}

bool pv_reconstructor_open(PvReconstructor *model, PvError *error)
{
    if (model->batch < 1)
        return pv_error(error, PV_USAGE, "--batch is at least 1");
    if (!pv_session_open(&model->session, &pv_model, NULL, 0, error) ||
        !pv_session_check_settings(&model->session, NULL, NULL, error))
        return false;
    for (uint32_t i = 0; i < pv_model.entry_count; i++) {
        const PvEntry *entry = &pv_model.entries[i];
        if (entry->kind == PV_PROGRAM && strcmp(entry->name, "reconstruct") == 0)
            model->entry = entry;
    }
    if (!model->entry)
        return pv_error(error, PV_WRONG, "the model %s has no program `reconstruct`",
                        pv_model.name);
    const PvEntry *entry = model->entry;
    const PvType *type = entry->input_count == 1 ? &entry->inputs[0].type : NULL;
    if (!type || entry->output_count != 1 || !same_type(type, &entry->outputs[0].type) ||
        type->rank != 5 || type->batch_axes != 1 || type->dim[0] != 1 || type->dim[1] != 3)
        return pv_error(error, PV_WRONG,
                        "`reconstruct` of %s does not take a video [b, 3, t, h, w] to a video",
                        pv_model.name);
    model->frames = (int)type->dim[2];
    model->height = (int)type->dim[3];
    model->width = (int)type->dim[4];
    model->call = pv_call_new(entry, model->session.options, model->session.random);
    return true;
}

bool pv_reconstructor_mount(PvReconstructor *model, const char *command, PvError *error)
{
    bool *needed = pv_alloc(pv_model.instance_count + 1u);
    const PvPlan *plan = &model->entry->plans[0];
    pv_plan_instances(plan, needed);
    PvMemoryItem items[] = {{"parameters", pv_exec_param_bytes(&pv_model, needed), 0},
                            pv_exec_need(model->session.exec, model->entry, plan)};
    bool good = pv_session_memory(&model->session, command, items, 2, model->batch, error) &&
                pv_session_mount(&model->session, command, needed, NULL, model->ema, error);
    free(needed);
    return good;
}

void pv_reconstructor_close(PvReconstructor *model)
{
    pv_call_free(model->call);
    pv_session_close(&model->session);
}

// `count` windows from frame `first` on into the input, frames beyond the end repeating the last.
static bool fill(PvReconstructor *model, const PvVideo *x, int64_t first, int64_t count,
                 PvError *error)
{
    PvTensor *input = pv_tensor_of(&model->entry->inputs[0].type, count, error);
    if (!input)
        return false;
    PvVideo window = *x;
    size_t size = (size_t)x->height * (size_t)x->width * 3;
    window.frames = count * model->frames;
    window.rgb = pv_try_alloc((size_t)window.frames * size, "a window of the video", error);
    bool good = window.rgb != NULL;
    for (int64_t i = 0; good && i < window.frames; i++) {
        int64_t from = first + i < x->frames ? first + i : x->frames - 1;
        memcpy(window.rgb + (size_t)i * size, x->rgb + (size_t)from * size, size);
    }
    for (int64_t i = 0; good && i < count; i++)
        pv_video_to_reals(&window, i * model->frames, model->frames,
                          (PvReal *)input->data + (size_t)(i * model->frames) * size);
    good = good && pv_call_set(model->call, 0, input, "the video", error) &&
           pv_call_settle(model->call, count, error);
    free(window.rgb);
    pv_tensor_drop(input);
    return good;
}

// Differences of frames first .. first + count - 1 of one window.
static void measure(const PvVideo *x, const PvVideo *y, int64_t first, int64_t count,
                    PvQuality *quality)
{
    size_t size = (size_t)x->height * (size_t)x->width * 3;
    const uint8_t *from = x->rgb + (size_t)first * size, *made = y->rgb + (size_t)first * size;
    for (size_t i = 0; i < size; i++) {
        double sum = 0, squares = 0;
        for (int64_t t = 0; t < count; t++) {
            double value = from[(size_t)t * size + i];
            double difference = value - made[(size_t)t * size + i];
            sum += value;
            squares += value * value;
            quality->error += difference * difference;
        }
        quality->still_error += squares - sum * sum / (double)count;
    }
    quality->count += (int64_t)size * count;
}

bool pv_reconstruct(PvReconstructor *model, const char *path, PvVideo *x, PvVideo *y,
                    PvQuality *quality, PvError *error)
{
    if (!pv_video_read(path, model->width, model->height, 0, x, error) ||
        !pv_video_new(y, x->frames, x->width, x->height, x->rate, error))
        return false;
    size_t size = (size_t)x->height * (size_t)x->width * 3;
    int64_t windows = (x->frames + model->frames - 1) / model->frames;
    PvCallPlan plan = {.variant = 0};
    for (int64_t i = 0; i < windows; i += model->batch) {
        int64_t count = windows - i < model->batch ? windows - i : model->batch;
        if (!fill(model, x, i * model->frames, count, error) ||
            !pv_call_run(model->session.exec, model->call, &plan, error) ||
            !pv_call_fetch(model->call, error))
            return false;
        for (int64_t k = 0; k < count; k++) {
            int64_t first = (i + k) * model->frames;
            int64_t frames = x->frames - first < model->frames ? x->frames - first : model->frames;
            PvVideo window = {0};
            const PvReal *pixels =
                (const PvReal *)model->call->outputs[0]->data + (size_t)(k * model->frames) * size;
            if (!pv_video_from_reals(&window, pixels, model->frames, x->height, x->width, 0, error))
                return false;
            memcpy(y->rgb + (size_t)first * size, window.rgb, (size_t)frames * size);
            pv_video_free(&window);
            measure(x, y, first, frames, quality);
        }
    }
    return true;
}

static double psnr(double error, int64_t count)
{
    return error > 0 ? 10 * log10(255.0 * 255.0 * (double)count / error) : (double)INFINITY;
}

double pv_quality_psnr(const PvQuality *quality)
{
    return psnr(quality->error, quality->count);
}

double pv_quality_still_psnr(const PvQuality *quality)
{
    return psnr(quality->still_error, quality->count);
}
