// Checkpoints: parameters, averages, moments and counters of a training run. See weights.h.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "runtime/weights.h"

// The buffers of a state, by the front of their names in files.
enum { BUFFER_COUNT = 4 };
static const char *const fronts[BUFFER_COUNT] = {"", "ema.", "adam_m.", "adam_v."};

static void buffers_of(const PvCheckpoint *state, char *buffers[BUFFER_COUNT])
{
    buffers[0] = state->params;
    buffers[1] = state->ema;
    buffers[2] = state->adam_m;
    buffers[3] = state->adam_v;
}

// Does buffer `kind` of a state hold this parameter?
static bool holds(const PvCheckpoint *state, int kind, const PvParam *param)
{
    if (kind == 0)
        return !state->has_params || state->has_params[param->instance];
    const bool *marks = kind == 1 ? state->has_ema : state->has_moments;
    return !param->buffer && marks && marks[param->instance];
}

static int param_dtype(const PvParam *param)
{
    return param->type.dtype == PV_I64 ? PV_I64 : PV_REAL_DTYPE;
}

// ---- writing ----

static void add_number(PvWriter *writer, const char *key, int64_t index, int64_t value)
{
    char name[64], text[32];
    if (index >= 0)
        snprintf(name, sizeof name, "%s.%" PRId64, key, index);
    else
        snprintf(name, sizeof name, "%s", key);
    snprintf(text, sizeof text, "%" PRId64, value);
    pv_writer_metadata(writer, name, text);
}

static void add_scale(PvWriter *writer, int index, const PvLossScale *scale)
{
    char name[64], text[32];
    snprintf(name, sizeof name, "loss_scale.%d", index);
    snprintf(text, sizeof text, "%.17g", scale->scale);
    pv_writer_metadata(writer, name, text);
    add_number(writer, "good_updates", index, scale->good);
    add_number(writer, "skipped_updates", index, scale->skipped);
}

static void add_metadata(const PvModel *model, const PvCheckpoint *state, PvWriter *writer)
{
    char *name, text[32];
    pv_writer_metadata(writer, "model", model->name);
    pv_writer_metadata(writer, "real", pv_dtype_name(model->real));
    for (uint32_t i = 0; i < model->constant_count; i++) {
        const char *equals = strchr(model->constants[i], '=');
        if (!equals)
            continue;
        name = pv_printf("constant.%.*s", (int)(equals - model->constants[i]), model->constants[i]);
        pv_writer_metadata(writer, name, equals + 1);
        free(name);
    }
    if (state->stage)
        pv_writer_metadata(writer, "stage", state->stage);
    add_number(writer, "step", -1, state->step);
    snprintf(text, sizeof text, "%" PRIu64, state->seed);
    pv_writer_metadata(writer, "seed", text);
    add_number(writer, "data_position", -1, state->data_position);
    for (uint32_t i = 0; state->draws && i < model->stream_count; i++) {
        name = pv_printf("draws.%s", model->streams[i]);
        snprintf(text, sizeof text, "%" PRIu64, state->draws[i]);
        pv_writer_metadata(writer, name, text);
        free(name);
    }
    for (int i = 0; i < PV_MAX_MINIMIZE; i++) {
        if (state->updates[i])
            add_number(writer, "updates", i, state->updates[i]);
        if (state->ema_updates[i])
            add_number(writer, "ema_updates", i, state->ema_updates[i]);
        if (state->scale[i].scale > 0)
            add_scale(writer, i, &state->scale[i]);
    }
    for (size_t i = 0; i < state->extra_count; i++)
        pv_writer_metadata(writer, state->extra[i].key, state->extra[i].value);
}

bool pv_checkpoint_write(const PvModel *model, const char *path, const PvCheckpoint *state,
                         PvError *error)
{
    char *buffers[BUFFER_COUNT];
    buffers_of(state, buffers);
    PvWriter *writer = pv_writer_new();
    add_metadata(model, state, writer);
    for (int kind = 0; kind < BUFFER_COUNT; kind++) {
        for (uint32_t i = 0; buffers[kind] && i < model->param_count; i++) {
            const PvParam *param = &model->params[i];
            if (!holds(state, kind, param))
                continue;
            char *name = pv_printf("%s%s", fronts[kind], param->name);
            int dtype = param_dtype(param);
            pv_writer_add(writer, name, dtype, param->type.rank, param->type.dim,
                          buffers[kind] + param->offset, dtype);
            free(name);
        }
    }
    return pv_writer_finish(writer, path, error);
}

// ---- reading ----

static int64_t read_number(const PvTensorSet *set, const char *key, int64_t otherwise)
{
    const char *text = pv_set_metadata(set, key);
    if (!text)
        return otherwise;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    return errno || *end || end == text ? otherwise : value;
}

static uint64_t read_unsigned(const PvTensorSet *set, const char *key)
{
    const char *text = pv_set_metadata(set, key);
    return text ? strtoull(text, NULL, 10) : 0;
}

// Is it a checkpoint of this model and stage?
static bool check_origin(const PvModel *model, const char *path, const PvTensorSet *set,
                         const char *stage, PvError *error)
{
    bool fine = true;
    if (read_number(set, "step", -1) < 0)
        return pv_error(error, PV_WRONG, "%s is not a checkpoint: it says no step", path);
    const char *its_stage = pv_set_metadata(set, "stage");
    if (stage && its_stage && strcmp(stage, its_stage) != 0) {
        return pv_error(error, PV_WRONG, "%s is a checkpoint of stage '%s', not of '%s'", path,
                        its_stage, stage);
    }
    for (uint32_t i = 0; i < model->constant_count; i++) {
        const char *equals = strchr(model->constants[i], '=');
        if (!equals)
            continue;
        char *key =
            pv_printf("constant.%.*s", (int)(equals - model->constants[i]), model->constants[i]);
        const char *value = pv_set_metadata(set, key);
        if (value && strcmp(value, equals + 1) != 0) {
            if (fine)
                pv_error(error, PV_WRONG, "%s belongs to a model with other constants:", path);
            fine = pv_error_append(error, "\n  %s=%s, here %s", key + strlen("constant."), value,
                                   equals + 1);
        }
        free(key);
    }
    return fine;
}

// Checks (to NULL) or copies the tensors of one buffer. false: some are missing or do not fit.
static bool read_buffer(const PvModel *model, const PvTensorSet *set, const PvCheckpoint *state,
                        int kind, char *to, PvError *error)
{
    bool fine = true;
    for (uint32_t i = 0; i < model->param_count; i++) {
        const PvParam *param = &model->params[i];
        if (!holds(state, kind, param))
            continue;
        char *name = pv_printf("%s%s", fronts[kind], param->name);
        const PvTensor *tensor = pv_set_find(set, name);
        if (to) {
            pv_convert(to + param->offset, param_dtype(param), tensor->data, tensor->dtype,
                       param->count);
        } else if (!tensor || !pv_tensor_fits(tensor, &param->type, 1)) {
            char shape[PV_SHAPE_TEXT];
            if (!error->text)
                pv_error(error, PV_WRONG, "%s does not fit the model:", set->path);
            fine = pv_error_append(error, "\n  '%s' %s", name, tensor ? "is " : "is missing");
            if (tensor)
                pv_error_append(error, "%s", pv_shape_text(shape, tensor->rank, tensor->dim));
        }
        free(name);
    }
    return fine;
}

static void read_scale(const PvTensorSet *set, int index, PvLossScale *scale)
{
    char key[64];
    snprintf(key, sizeof key, "loss_scale.%d", index);
    const char *text = pv_set_metadata(set, key);
    *scale = (PvLossScale){.scale = text ? strtod(text, NULL) : 0};
    snprintf(key, sizeof key, "good_updates.%d", index);
    scale->good = read_number(set, key, 0);
    snprintf(key, sizeof key, "skipped_updates.%d", index);
    scale->skipped = read_number(set, key, 0);
}

static void read_counters(const PvModel *model, const PvTensorSet *set, PvCheckpoint *state)
{
    char key[64];
    state->step = read_number(set, "step", 0);
    state->seed = read_unsigned(set, "seed");
    state->data_position = read_number(set, "data_position", 0);
    for (uint32_t i = 0; state->draws && i < model->stream_count; i++) {
        char *name = pv_printf("draws.%s", model->streams[i]);
        state->draws[i] = read_unsigned(set, name);
        free(name);
    }
    for (int i = 0; i < PV_MAX_MINIMIZE; i++) {
        snprintf(key, sizeof key, "updates.%d", i);
        state->updates[i] = read_number(set, key, 0);
        snprintf(key, sizeof key, "ema_updates.%d", i);
        state->ema_updates[i] = read_number(set, key, 0);
        read_scale(set, i, &state->scale[i]);
    }
}

bool pv_checkpoint_read(const PvModel *model, const char *path, PvCheckpoint *state, PvError *error)
{
    char *buffers[BUFFER_COUNT];
    PvTensorSet set = {0};
    buffers_of(state, buffers);
    if (!pv_safetensors_read(path, &set, error))
        return false;
    bool fine = check_origin(model, path, &set, state->stage, error);
    for (int kind = 0; kind < BUFFER_COUNT && fine; kind++) {
        if (buffers[kind])
            fine = read_buffer(model, &set, state, kind, NULL, error);
    }
    for (int kind = 0; kind < BUFFER_COUNT && fine; kind++) {
        if (buffers[kind])
            read_buffer(model, &set, state, kind, buffers[kind], error);
    }
    if (fine)
        read_counters(model, &set, state);
    pv_set_free(&set);
    return fine;
}

// ---- files of a run ----

// The step in "step-00001000.safetensors", or -1.
static int64_t step_of(const char *name)
{
    int64_t step;
    int end = 0;
    if (sscanf(name, "step-%" SCNd64 ".safetensors%n", &step, &end) != 1)
        return -1;
    return end > 0 && name[end] == 0 && step >= 0 ? step : -1;
}

char *pv_checkpoint_path(const char *folder, int64_t step)
{
    char name[64];
    snprintf(name, sizeof name, "step-%08" PRId64 ".safetensors", step);
    return pv_join(folder, name);
}

char *pv_checkpoint_latest(const char *folder, PvError *error)
{
    char **names, *path = NULL;
    size_t count;
    int64_t latest = -1;
    if (!pv_is_folder(folder) || !pv_list_folder(folder, &names, &count, error))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        if (step_of(names[i]) <= latest)
            continue;
        latest = step_of(names[i]);
        free(path);
        path = pv_join(folder, names[i]);
    }
    pv_names_free(names, count);
    return path;
}

// What a run that was killed while it wrote has left: ".step-00001000.safetensors.1234.tmp".
static bool is_left_over(const char *name)
{
    return strncmp(name, ".step-", 6) == 0 && pv_has_ending(name, ".tmp") &&
           strstr(name, ".safetensors.");
}

void pv_checkpoint_keep(const char *folder, int keep)
{
    PvError error = {0};
    char **names;
    size_t count;
    if (!pv_list_folder(folder, &names, &count, &error)) {
        pv_error_free(&error);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        int newer = 0;
        for (size_t k = 0; k < count; k++)
            newer += step_of(names[k]) > step_of(names[i]);
        if (!is_left_over(names[i]) && (step_of(names[i]) < 0 || newer < keep))
            continue;
        char *path = pv_join(folder, names[i]);
        unlink(path);
        free(path);
    }
    pv_names_free(names, count);
}
