// Checkpoints of training: the state that makes a run go on with the same bits as if it had never
// stopped. That is: parameters and buffers, moments and averages of what moves, how often each
// minimize updated, the seed and how often each stream was drawn, and the position in the data.
#include <stdlib.h>
#include <string.h>

#include "runtime/train.h"

// By instance: has averages, has moments.
typedef struct {
    bool *ema, *moments;
} Marks;

static Marks mark(const PvTrain *train)
{
    uint32_t count = train->session->model->instance_count;
    Marks marks = {pv_alloc(count + 1u), pv_alloc(count + 1u)};
    for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
        const PvMinimize *minimize = &train->stage->minimize[i];
        for (uint32_t k = 0; k < minimize->instance_count; k++) {
            marks.moments[minimize->instances[k]] = true;
            if (train->turns[i].ema_every > 0)
                marks.ema[minimize->instances[k]] = true;
        }
    }
    return marks;
}

static PvCheckpoint describe(const PvTrain *train, const Marks *marks)
{
    PvCheckpoint state = {
        .params = train->session->exec->params,
        .ema = train->optimizer->ema,
        .adam_m = train->optimizer->m,
        .adam_v = train->optimizer->v,
        .has_params = train->needed,
        .has_ema = marks->ema,
        .has_moments = marks->moments,
        .stage = train->stage->name,
        .step = train->step,
        .seed = train->session->random->seed,
        .draws = train->session->random->draws,
    };
    memcpy(state.updates, train->optimizer->updates, sizeof state.updates);
    memcpy(state.ema_updates, train->optimizer->ema_updates, sizeof state.ema_updates);
    memcpy(state.scale, train->optimizer->scale, sizeof state.scale);
    return state;
}

bool pv_train_save(PvTrain *train, const char *folder, int64_t keep, int64_t data_position,
                   PvError *error)
{
    if (!pv_train_fetch(train, error))
        return false;
    Marks marks = mark(train);
    PvCheckpoint state = describe(train, &marks);
    state.data_position = data_position;
    char *path = pv_checkpoint_path(folder, train->step);
    bool good = pv_checkpoint_write(train->session->model, path, &state, error);
    if (good && keep > 0)
        pv_checkpoint_keep(folder, (int)keep);
    free(path);
    free(marks.ema);
    free(marks.moments);
    return good;
}

bool pv_train_resume(PvTrain *train, const char *path, uint64_t *seed, int64_t *data_position,
                     PvError *error)
{
    Marks marks = mark(train);
    PvCheckpoint state = describe(train, &marks);
    bool good = pv_checkpoint_read(train->session->model, path, &state, error);
    if (good) {
        train->step = state.step;
        train->session->random->seed = state.seed;
        memcpy(train->optimizer->updates, state.updates, sizeof state.updates);
        memcpy(train->optimizer->ema_updates, state.ema_updates, sizeof state.ema_updates);
        for (int i = 0; i < PV_MAX_MINIMIZE; i++) // a checkpoint of another dtype has none
            if (state.scale[i].scale > 0 && train->optimizer->scale[i].scale > 0)
                train->optimizer->scale[i] = state.scale[i];
        *seed = state.seed;
        *data_position = state.data_position;
        pv_exec_expect(train->session->exec, train->needed, false);
        pv_train_written(train);
    }
    free(marks.ema);
    free(marks.moments);
    return good;
}
