// `train STAGE`: settings from YAML and the command line, data, checkpoints, logs, and the loop.
//
// Order of work: everything that can be wrong is looked at before the first step: settings, memory
// (compared with the need before anything of size is allocated), weights, data, the folder. A
// signal to stop (stop.h) ends the loop after the step in progress and a checkpoint is written; a
// second one ends the program at once. Checkpoints replace each other atomically, so that kill -9
// and a full disk leave the last one whole.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/cuda_exec.h"
#include "runtime/data.h"
#include "runtime/file.h"
#include "runtime/log.h"
#include "runtime/replay.h"
#include "runtime/stop.h"

typedef struct {
    PvSession session;
    const PvStage *stage;
    PvTrain *train;
    PvData *data;
    PvLog *log;
    PvProgress *progress;
    PvTensorSet given; // of --replay
    PvTensor *ahead[2]; // inputs that take turns on a GPU: one is filled while one is read
    int next_ahead;
    // flags
    const char *config, *data_path, *list, *out, *replay, *state;
    bool resume;
    int64_t steps, batch, seed; // -1: not given
    // settings
    int64_t log_every, save_every, keep, accumulate, ema_every;
    int64_t saved;    // step of the last checkpoint
    int64_t position; // in the data, at the start
} Training;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// ---- settings ----

static const char *const own_settings[] = {
    "data", "list",      "out",        "weights", "batch",      "steps",
    "seed", "log_every", "save_every", "keep",    "accumulate", "ema_every",
};

// A whole number: the flag, if it was given (>= 0); else --set or YAML; else the model's option of
// that name; else what *out was.
static bool read_number(Training *t, const char *name, int64_t flag, int64_t least, int64_t *out,
                        PvError *error)
{
    const PvOption *option = pv_option_find(&pv_model, t->stage->name, name);
    if (option && option->dtype == PV_I64)
        *out = t->session.options[option->slot].i;
    PvSetting *setting = pv_stage_setting(&t->session.config, t->stage->name, name);
    if (setting && !pv_setting_int(setting, 0, out, error))
        return false;
    if (flag >= 0)
        *out = flag;
    if (*out < least)
        return pv_error(error, PV_WRONG, "%s is %lld; it must be at least %lld", name,
                        (long long)*out, (long long)least);
    pv_option_put(&pv_model, t->stage->name, name, *out, t->session.options);
    return true;
}

static void read_text(Training *t, const char *name, const char **out)
{
    PvSetting *setting = pv_stage_setting(&t->session.config, t->stage->name, name);
    if (setting && !*out && setting->count > 0)
        *out = setting->values[0];
}

// Keys of other stages ("autoencoder.lr") are theirs.
static void pass_other_stages(Training *t)
{
    PvConfig *config = &t->session.config;
    for (size_t i = 0; i < config->count; i++) {
        const char *dot = strchr(config->items[i].key, '.');
        size_t length = dot ? (size_t)(dot - config->items[i].key) : 0;
        for (uint32_t k = 0; dot && k < pv_model.stage_count; k++)
            if (&pv_model.stages[k] != t->stage && strlen(pv_model.stages[k].name) == length &&
                strncmp(config->items[i].key, pv_model.stages[k].name, length) == 0)
                config->items[i].used = true;
    }
}

static bool read_settings(Training *t, PvError *error)
{
    PvConfig *config = &t->session.config;
    t->log_every = 10;
    t->save_every = 1000;
    t->keep = 3;
    t->ema_every = -1; // as the model says
    int64_t batch = 8, steps = 100000, seed = 0;
    if (!read_number(t, "batch", t->batch, 1, &batch, error) ||
        !read_number(t, "steps", t->steps, 0, &steps, error) ||
        !read_number(t, "seed", t->seed, 0, &seed, error) ||
        !read_number(t, "log_every", -1, 1, &t->log_every, error) ||
        !read_number(t, "save_every", -1, 1, &t->save_every, error) ||
        !read_number(t, "keep", -1, 0, &t->keep, error) ||
        !read_number(t, "accumulate", -1, 0, &t->accumulate, error) ||
        !read_number(t, "ema_every", -1, -1, &t->ema_every, error))
        return false;
    if (steps == 0 && t->steps < 0 && !t->replay &&
        !pv_stage_setting(config, t->stage->name, "steps")) {
        pv_error(error, PV_WRONG, "train %s: how many steps?", t->stage->name);
        return pv_error_hint(error, "--steps N, or `steps: N` in the configuration");
    }
    t->batch = batch;
    t->steps = steps;
    t->session.random->seed = (uint64_t)seed;
    read_text(t, "data", &t->data_path);
    read_text(t, "list", &t->list);
    read_text(t, "out", &t->out);
    PvSetting *weights = pv_stage_setting(config, t->stage->name, "weights");
    for (size_t i = 0; weights && t->session.weights.count == 0 && i < weights->count; i++)
        pv_words_add(&t->session.weights, weights->values[i]);
    pass_other_stages(t);
    PvWords known = {0};
    for (size_t i = 0; i < sizeof own_settings / sizeof *own_settings; i++)
        pv_words_add(&known, own_settings[i]);
    bool good = pv_session_check_settings(&t->session, t->stage->name, &known, error);
    pv_words_free(&known);
    return good;
}

// ---- getting ready ----

static bool check_memory(Training *t, int64_t batch, PvError *error)
{
    PvMemoryItem items[PV_TRAIN_ITEMS];
    uint32_t count = pv_train_need(t->train, batch, items);
    char *command = pv_printf("train %s", t->stage->name);
    bool good = pv_session_memory(&t->session, command, items, count, batch, error);
    free(command);
    return good;
}

// Where what the stage reads comes from: files, or first values for what it moves.
static bool mount(Training *t, PvError *error)
{
    PvTrain *train = t->train;
    if (!pv_session_mount(&t->session, t->stage->name, train->needed, train->moves, false, error))
        return false;
    for (uint32_t i = 0; i < pv_model.instance_count; i++)
        if (train->moves[i] && !t->session.loaded[i])
            fprintf(stderr, "%s: first values of seed %llu\n", pv_model.instances[i].name,
                    (unsigned long long)t->session.random->seed);
    pv_train_start(train, t->session.random->seed);
    return true;
}

// Goes on from the newest checkpoint of the folder. *found: there was one.
static bool take_up(Training *t, bool *found, PvError *error)
{
    *found = false;
    char *path = pv_is_folder(t->out) ? pv_checkpoint_latest(t->out, error) : NULL;
    if (!path)
        return error->text == NULL;
    bool good = true;
    uint64_t seed = t->session.random->seed;
    if (!t->resume) {
        good = pv_error(error, PV_WRONG, "%s holds a run already (%s)", t->out, pv_base_name(path));
        pv_error_hint(error, "--resume goes on with it; --out FOLDER starts another");
    } else {
        good = pv_train_resume(t->train, path, &seed, &t->position, error);
        if (good && t->seed >= 0 && seed != (uint64_t)t->seed)
            good = pv_error(error, PV_WRONG, "%s: the run has seed %llu, and --seed is %lld", path,
                            (unsigned long long)seed, (long long)t->seed);
        if (good)
            fprintf(stderr, "going on from %s\n", path);
    }
    *found = good;
    free(path);
    return good;
}

// Decoded videos are kept in up to 1 GiB, but no more than a quarter of what training leaves.
static int64_t cache_size(const Training *t)
{
    PvMemoryItem items[PV_TRAIN_ITEMS];
    uint32_t count = pv_train_need(t->train, t->batch, items);
    int64_t left = pv_memory_free().bytes - pv_memory_sum(items, count, t->batch);
    int64_t most = INT64_C(1) << 30, least = INT64_C(1) << 24;
    return left / 4 > most ? most : left / 4 < least ? least : left / 4;
}

static bool open_data(Training *t, PvError *error)
{
    const PvStage *stage = t->stage;
    if (!stage->source)
        return true;
    if (!t->data_path) {
        pv_error(error, PV_WRONG, "train %s needs data", stage->name);
        return pv_error_hint(error, "--data FOLDER (videos, folders of pictures) or a packed file; "
                                    "in YAML, data: FOLDER");
    }
    PvDataOptions options = {0};
    pv_data_stage_options(stage, &options);
    options.path = t->data_path;
    options.list = t->list;
    options.seed = t->session.random->seed;
    options.cache_bytes = cache_size(t);
    t->data = pv_data_open(&options, error);
    return t->data && pv_data_start(t->data, t->position, t->batch, error);
}

// The tensor whose turn it is, ready to be filled, in place of *input.
static bool take_ahead(Training *t, PvTensor **input, PvError *error)
{
    PvTensor **tensor = &t->ahead[t->next_ahead];
    t->next_ahead = 1 - t->next_ahead;
    if (!*tensor)
        *tensor = pv_tensor_pinned(t->session.exec->gpu->device, &t->stage->data_type, t->batch,
                                   error);
    if (!*tensor || !pv_tensor_overwrite(*tensor, error))
        return false;
    pv_tensor_drop(*input);
    *input = pv_tensor_hold(*tensor);
    return true;
}

// The next batch of the data goes straight into the input.
static bool feed(void *context, PvTrain *train, uint32_t index, PvError *error)
{
    Training *t = context;
    PvCall *call = train->turns[index].call;
    int input = t->data ? pv_call_find(call->entry, t->stage->data_name) : -1;
    if (input < 0)
        return true;
    if (t->session.exec->gpu && !take_ahead(t, &call->inputs[input], error))
        return false;
    if (!call->inputs[input])
        call->inputs[input] = pv_tensor_of(&t->stage->data_type, t->batch, error);
    return call->inputs[input] && pv_data_next(t->data, call->inputs[input]->data, error);
}

static void say_start(const Training *t)
{
    const PvTrain *train = t->train;
    int64_t moving = 0;
    for (uint32_t p = 0; p < pv_model.param_count; p++)
        moving += train->optimizer->moves[p] ? pv_model.params[p].count : 0;
    PvMemoryItem items[PV_TRAIN_ITEMS];
    uint32_t count = pv_train_need(train, t->batch, items);
    char text[32], *where = pv_session_where(&t->session);
    fprintf(stderr, "%s: %.2f M parameters move, batch %lld, %s, %s\n", t->stage->name,
            (double)moving * 1e-6, (long long)t->batch,
            pv_size_text(text, (double)pv_memory_sum(items, count, t->batch)), where);
    free(where);
    if (t->data)
        fprintf(stderr, "%s: %lld videos\n", t->data_path, (long long)pv_data_videos(t->data));
}

static bool get_ready(Training *t, PvError *error)
{
    bool found = false;
    t->train->batch = t->batch;
    pv_train_reach(t->train, t->steps);
    if (!check_memory(t, t->batch, error) || !take_up(t, &found, error) ||
        (!found && !mount(t, error)) || !open_data(t, error) || !pv_make_folder(t->out, error))
        return false;
    if (t->resume && !found)
        fprintf(stderr, "%s holds no checkpoint: starting anew\n", t->out);
    t->saved = found ? t->train->step : -1;
    t->train->feed = feed;
    t->train->feed_context = t;
    t->log = pv_log_open(t->out, found ? t->train->step : -1, error);
    return t->log != NULL;
}

// ---- the loop ----

// "loss", or "ae/loss" where several minimizes take turns. malloc'ed.
static char *log_name(const PvStage *stage, uint32_t turn, const char *name)
{
    if (stage->minimize_count == 1)
        return pv_strdup(name);
    const PvMinimize *minimize = &stage->minimize[turn];
    return pv_printf("%s/%s",
                     minimize->instance_count > 0 ? pv_model.instances[minimize->instances[0]].name
                                                  : pv_model.entries[minimize->entry].name,
                     name);
}

static void log_number(Training *t, uint32_t turn, const char *name, double value)
{
    char *full = log_name(t->stage, turn, name);
    pv_log_number(t->log, full, value);
    free(full);
}

// A report that this step's variant does not make is NaN, and left out.
static void log_step(Training *t, double seconds)
{
    double samples = 0;
    for (uint32_t i = 0; i < t->stage->minimize_count; i++) {
        const PvTurn *turn = &t->train->turns[i];
        const PvEntry *entry = turn->call->entry;
        log_number(t, i, "loss", turn->loss);
        for (uint32_t k = 0; k < entry->output_count; k++)
            if (entry->outputs[k].kind == PV_OUT_REPORT && !isnan(turn->reports[k]))
                log_number(t, i, entry->outputs[k].name, turn->reports[k]);
        log_number(t, i, "lr", turn->settings.lr);
        if (isfinite(turn->norm)) // else the update was left out
            log_number(t, i, "grad_norm", turn->norm);
        if (turn->scale.scale > 0) {
            log_number(t, i, "loss_scale", turn->scale.scale);
            log_number(t, i, "skipped", (double)turn->scale.skipped);
        }
        samples += (double)(turn->accumulate * t->batch);
    }
    pv_log_number(t->log, "samples_per_second", seconds > 0 ? samples / seconds : 0);
    pv_log_row(t->log, t->train->step);
}

// The log's losses as a picture.
static void draw_losses(const Training *t)
{
    PvWords names = {0};
    for (uint32_t i = 0; i < t->stage->minimize_count; i++)
        pv_words_take(&names, log_name(t->stage, i, "loss"));
    char *title = pv_printf("%s: %s", pv_model.name, t->stage->name);
    pv_log_chart(t->out, title, names.items, names.count);
    free(title);
    pv_words_free(&names);
}

static bool save(Training *t, PvError *error)
{
    int64_t position = t->data ? pv_data_position(t->data) : 0;
    if (!pv_train_save(t->train, t->out, t->keep, position, error))
        return false;
    t->saved = t->train->step;
    draw_losses(t);
    return true;
}

static bool loop(Training *t, PvError *error)
{
    PvTrain *train = t->train;
    t->progress = pv_progress_new("step", train->step, t->steps);
    double start = now();
    int64_t begun = train->step;
    while (train->step < t->steps && !pv_stop_signal()) {
        if (!t->session.exec->gpu) { // there steps overlap: the time is a mean since the last row
            start = now();
            begun = train->step;
        }
        if (!pv_train_step(train, error))
            return false;
        if (train->step % t->log_every == 0 || train->step == 1 || train->step == t->steps) {
            if (!pv_train_numbers(train, error))
                return false;
            log_step(t, (now() - start) / (double)(train->step - begun));
            start = now();
            begun = train->step;
        }
        char note[64];
        snprintf(note, sizeof note, "loss %.4g", train->turns[0].loss);
        pv_progress_at(t->progress, train->step, note);
        if (train->step % t->save_every == 0 && !save(t, error))
            return false;
    }
    return t->saved == train->step || save(t, error);
}

static bool train_stage(Training *t, PvError *error)
{
    t->train = pv_train_new(&t->session, t->stage, t->accumulate, t->ema_every, false, error);
    if (!t->train)
        return false;
    char *folder = t->out ? NULL : pv_printf("runs/%s", t->stage->name);
    if (folder)
        t->out = folder;
    bool good = get_ready(t, error);
    if (good) {
        say_start(t);
        pv_stop_catch();
        good = loop(t, error);
        pv_progress_end(t->progress);
        if (!good && t->session.exec->gpu && error->status == PV_MACHINE && t->saved >= 0)
            pv_error_append(error,
                            "\nthe checkpoint of step %lld is whole; --resume goes on from it",
                            (long long)t->saved);
    }
    if (good && t->data && pv_data_skipped(t->data) > 0)
        fprintf(stderr, "%lld videos were skipped\n", (long long)pv_data_skipped(t->data));
    if (good && !pv_stop_signal())
        printf("%s: step %lld, checkpoint in %s\n", t->stage->name, (long long)t->train->step,
               t->out);
    t->out = NULL;
    free(folder);
    return good;
}

static bool replay_stage(Training *t, PvError *error)
{
    t->train = pv_train_new(&t->session, t->stage, t->accumulate, t->ema_every, true, error);
    int64_t batch;
    return t->train && pv_tensors_read(t->replay, &t->given, error) &&
           pv_replay_batch(t->train, &t->given, t->steps, &batch, error) &&
           check_memory(t, batch, error) && mount(t, error) &&
           pv_replay(t->train, t->steps, t->state, error);
}

static void training_close(Training *t)
{
    pv_log_close(t->log);
    pv_data_close(t->data);
    pv_train_free(t->train);
    pv_tensor_drop(t->ahead[0]);
    pv_tensor_drop(t->ahead[1]);
    pv_set_free(&t->given);
    pv_session_close(&t->session);
}

static bool start(Training *t, const char *stage, PvError *error)
{
    t->stage = pv_find_stage(&pv_model, stage, error);
    if (!t->stage || (t->config && !pv_config_read(&t->session.config, t->config, error)))
        return false;
    if (!pv_session_open(&t->session, &pv_model, t->stage->name, 0, error) ||
        !read_settings(t, error))
        return false;
    return t->replay ? replay_stage(t, error) : train_stage(t, error);
}

PvStatus cmd_train(int argc, char **argv, PvError *error)
{
    Training t = {.steps = -1, .batch = -1, .seed = -1};
    PvFlag flags[] = {
        {"--config", "FILE", PV_FLAG_TEXT, &t.config, "settings in YAML"},
        {"--data", "PATH", PV_FLAG_TEXT, &t.data_path, "folder of videos, or a packed file"},
        {"--list", "FILE", PV_FLAG_TEXT, &t.list, "take only these of the data, one path a line"},
        {"--out", "FOLDER", PV_FLAG_TEXT, &t.out,
         "checkpoints, logs, loss.png (default runs/STAGE)"},
        {"--resume", NULL, PV_FLAG_BOOL, &t.resume, "go on from the newest checkpoint of --out"},
        {"--weights", "[INSTANCE=]FILE[#PREFIX]", PV_FLAG_WORDS, &t.session.weights,
         "what the stage starts from or only reads"},
        {"--batch", "N", PV_FLAG_INT, &t.batch, "samples in a batch (default 8)"},
        {"--steps", "N", PV_FLAG_INT, &t.steps, "where to stop, counted from the first start"},
        {"--seed", "N", PV_FLAG_INT, &t.seed, "of first values, data order and draws (default 0)"},
        {"--replay", "FILE", PV_FLAG_TEXT, &t.replay,
         "take batches and draws from tensors, for checks"},
        {"--state", "FILE", PV_FLAG_TEXT, &t.state,
         "what --replay ends with (without it, only losses and the median time are printed)"},
        PV_SESSION_FLAGS(&t.session),
    };
    PvUsage usage = {
        .line = "train STAGE",
        .about =
            "Trains one stage of the model. YAML and --set know the stage's options and data,\n"
            "list, out, weights, batch, steps, seed, log_every, save_every, keep, accumulate,\n"
            "ema_every; keys under STAGE: belong to that stage. Ctrl-C writes a checkpoint.",
        .flags = flags,
        .flag_count = sizeof flags / sizeof *flags,
        .least = 1,
        .most = 1,
    };
    PvWords words = {0};
    bool good =
        pv_usage_parse(&usage, argc, argv, &words, error) && start(&t, words.items[0], error);
    int64_t step = t.train ? t.train->step : 0;
    training_close(&t);
    pv_words_free(&words);
    if (good && pv_stop_signal()) {
        fprintf(stderr, "stopped after step %lld; --resume goes on\n", (long long)step);
        pv_stop_end();
    }
    return good ? PV_DONE : error->status;
}
