// `sample`: runs a sampler of the model and writes what it yields.
//
// The sampler is planned first (a dry run): what it reads, how much memory, how many frames; so
// --frames becomes a number of clips, and missing weights are told before any work.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/safetensors.h"
#include "runtime/sample.h"
#include "runtime/stop.h"

typedef struct {
    PvSession session;
    const char *out, *noise, *trace, *sampler_name;
    int64_t seed, batch, frames; // batch, frames: 0: not given
    double rate;
    bool no_ema;
    const PvSampler *sampler;
    PvTensorSet given, traced;
    PvClips clips;
    PvSamplePlan plan;
} Sampling;

// Options that flags may set: those of every sampler, and the global ones.
static void option_names(PvWords *names)
{
    for (uint32_t i = 0; i < pv_model.option_count; i++) {
        const PvOption *option = &pv_model.options[i];
        bool ours = !option->stage;
        for (uint32_t k = 0; option->stage && k < pv_model.sampler_count; k++)
            ours |= strcmp(option->stage, pv_model.samplers[k].name) == 0;
        for (size_t k = 0; k < names->count; k++)
            ours &= strcmp(names->items[k], option->name) != 0;
        if (ours && option->dtype != PV_NONE)
            pv_words_add(names, option->name);
    }
}

// The number of videos that given tensors are for; 0: they do not tell.
static int64_t given_batch(const Sampling *s)
{
    for (uint32_t i = 0; i < pv_model.stream_count; i++) {
        char *first = pv_printf("%s.0", pv_model.streams[i]);
        const PvTensor *tensor = pv_set_find(&s->given, first);
        free(first);
        if (!tensor)
            tensor = pv_set_find(&s->given, pv_model.streams[i]);
        if (tensor && tensor->rank > 0)
            return tensor->dim[0];
    }
    for (uint32_t i = 0; i < pv_model.option_count; i++) {
        const PvOption *option = &pv_model.options[i];
        const PvTensor *tensor =
            option->dtype == PV_NONE ? pv_set_find(&s->given, option->name) : NULL;
        if (tensor && pv_tensor_batch(tensor, &option->type) > 0)
            return pv_tensor_batch(tensor, &option->type);
    }
    return 0;
}

static bool read_given(Sampling *s, PvError *error)
{
    if (s->noise) {
        if (!pv_tensors_read(s->noise, &s->given, error))
            return false;
        s->session.random->given = &s->given;
        if (s->batch == 0)
            s->batch = given_batch(s);
    }
    if (s->batch == 0)
        s->batch = 1;
    return true;
}

static bool check_memory(const Sampling *s, PvError *error)
{
    PvMemoryItem items[] = {
        {"parameters", pv_exec_param_bytes(&pv_model, s->plan.needed), 0},
        s->plan.activations,
        {"frames", 0, s->out ? s->plan.frame_bytes : 0},
    };
    return pv_session_memory(&s->session, "sample", items, 3, s->batch, error);
}

static bool write_trace(const Sampling *s, PvError *error)
{
    if (!s->trace)
        return true;
    return pv_safetensors_write(s->trace, &s->traced, error);
}

static bool write_clips(Sampling *s, PvError *error)
{
    if (!s->out || s->clips.frames == 0)
        return true;
    if (s->frames > 0 && s->clips.frames > s->frames)
        s->clips.frames = s->frames;
    if (!pv_clips_write(&s->clips, s->out, s->rate, error))
        return false;
    printf("%s: %lld video%s of %lld frames, %d x %d\n", s->out, (long long)s->clips.count,
           s->clips.count == 1 ? "" : "s", (long long)s->clips.frames, s->clips.width,
           s->clips.height);
    return true;
}

static bool sample(Sampling *s, PvError *error)
{
    s->sampler = pv_find_sampler(&pv_model, s->sampler_name, error);
    if (!s->sampler ||
        !pv_session_open(&s->session, &pv_model, s->sampler->name, (uint64_t)s->seed, error) ||
        !pv_session_check_settings(&s->session, s->sampler->name, NULL, error))
        return false;
    if (!s->out && !s->trace)
        return pv_error(error, PV_USAGE, "where to? -o FILE.mp4, .gif, .png or a folder");
    if (s->out && !pv_video_check_output(s->out, error))
        return false;
    if (s->batch < 0 || s->frames < 0)
        return pv_error(error, PV_USAGE, "--batch and --frames are at least 1");
    PvSampleRun run = {.session = &s->session, .sampler = s->sampler};
    if (!read_given(s, error))
        return false;
    run.batch = s->batch;
    run.given = s->noise ? &s->given : NULL;
    run.trace = s->trace ? &s->traced : NULL;
    run.clips = s->out ? &s->clips : NULL;
    pv_stop_catch();
    return pv_sample_plan_frames(&run, s->frames, &s->plan, error) && check_memory(s, error) &&
           pv_session_mount(&s->session, "sample", s->plan.needed, NULL, !s->no_ema, error) &&
           pv_sample_run(&run, &s->plan, error) && write_trace(s, error) &&
           write_clips(s, error);
}

PvStatus cmd_sample(int argc, char **argv, PvError *error)
{
    Sampling s = {.rate = 8};
    PvWords words = {0}, options = {0};
    option_names(&options);
    PvFlag flags[] = {
        {"--weights", "[INSTANCE=]FILE[#PREFIX]", PV_FLAG_WORDS, &s.session.weights,
         "checkpoints or exported weights"},
        {"--out", "PATH", PV_FLAG_TEXT, &s.out, ".mp4, .gif, .png (rows of frames), or a folder"},
        {"-o", "PATH", PV_FLAG_TEXT, &s.out, "the same"},
        {"--batch", "N", PV_FLAG_INT, &s.batch, "videos (default 1)"},
        {"--frames", "N", PV_FLAG_INT, &s.frames, "frames of each: as many clips as it takes"},
        {"--seed", "N", PV_FLAG_INT, &s.seed, "of the noise (default 0)"},
        {"--rate", "R", PV_FLAG_REAL, &s.rate, "frames a second of the video (default 8)"},
        {"--sampler", "NAME", PV_FLAG_TEXT, &s.sampler_name, "which one (default: the first)"},
        {"--no-ema", NULL, PV_FLAG_BOOL, &s.no_ema, "the parameters, not their moving averages"},
        {"--noise", "FILE", PV_FLAG_TEXT, &s.noise,
         "draws by STREAM.i and tensor options by name, from tensors"},
        {"--trace", "FILE", PV_FLAG_TEXT, &s.trace, "what the sampler reports, as NAME.i from 1"},
        PV_SESSION_FLAGS(&s.session),
    };
    PvUsage usage = {
        .line = "sample",
        .about = "Makes videos. The model's own options are flags too (--steps 100,20 --clips 8).",
        .flags = flags,
        .flag_count = sizeof flags / sizeof *flags,
        .settings = &s.session.sets,
        .setting_names = options.items,
        .setting_count = options.count,
    };
    bool good = pv_usage_parse(&usage, argc, argv, &words, error) && sample(&s, error);
    pv_sample_plan_free(&s.plan);
    pv_clips_free(&s.clips);
    pv_set_free(&s.given);
    pv_set_free(&s.traced);
    pv_session_close(&s.session);
    pv_words_free(&words);
    pv_words_free(&options);
    if (good)
        pv_stop_end();
    return good ? PV_DONE : error->status;
}
