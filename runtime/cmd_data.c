// `data pack`: a folder of videos or pictures, cropped and resized once, into one file that is
// mapped into memory while training.
#include <stdio.h>
#include <string.h>

#include "runtime/command.h"
#include "runtime/data.h"
#include "runtime/log.h"
#include "runtime/train.h"

typedef struct {
    const char *out, *list, *split, *stage;
} Pack;

static void show(void *context, int64_t done, int64_t total)
{
    PvProgress **progress = context;
    if (!*progress)
        *progress = pv_progress_new("video", 0, total);
    pv_progress_at(*progress, done, NULL);
}

// The stage whose sizes are used: the one named, or the first that reads pictures.
static const PvStage *find_stage(const char *name, PvError *error)
{
    if (name)
        return pv_find_stage(&pv_model, name, error);
    for (uint32_t i = 0; i < pv_model.stage_count; i++)
        if (pv_model.stages[i].source && pv_model.stages[i].height > 0)
            return &pv_model.stages[i];
    pv_error(error, PV_WRONG, "no stage of %s reads videos", pv_model.name);
    return NULL;
}

static bool pack(const Pack *p, const PvWords *words, PvError *error)
{
    const char *const actions[] = {"pack"};
    if (strcmp(words->items[0], "pack") != 0)
        return pv_unknown("action", words->items[0], actions, 1, PV_USAGE, error);
    if (!p->out)
        return pv_error(error, PV_USAGE, "where to? -o FILE");
    const PvStage *stage = find_stage(p->stage, error);
    if (!stage)
        return false;
    PvDataOptions options = {0};
    pv_data_stage_options(stage, &options);
    options.path = words->items[1];
    options.list = p->list;
    options.split = p->split;
    PvProgress *progress = NULL;
    bool good = pv_data_pack(&options, p->out, show, &progress, error);
    pv_progress_end(progress);
    if (good)
        printf("%s: %d x %d\n", p->out, options.width, options.height);
    return good;
}

PvStatus cmd_data(int argc, char **argv, PvError *error)
{
    Pack p = {0};
    PvFlag flags[] = {
        {"--out", "FILE.safetensors", PV_FLAG_TEXT, &p.out, "packed file to write"},
        {"-o", "FILE", PV_FLAG_TEXT, &p.out, "the same"},
        {"--list", "FILE", PV_FLAG_TEXT, &p.list, "only these, one relative path a line"},
        {"--split", "NAME", PV_FLAG_TEXT, &p.split, "train (default), test, all"},
        {"--stage", "NAME", PV_FLAG_TEXT, &p.stage, "whose sizes (default: the first with videos)"},
    };
    PvUsage usage = {
        .line = "data pack FOLDER",
        .about = "Decodes every video of a folder once, cropped and resized to the model's size.\n"
                 "--data takes the packed file in place of the folder.",
        .flags = flags,
        .flag_count = sizeof flags / sizeof *flags,
        .least = 2,
        .most = 2,
    };
    PvWords words = {0};
    bool good = pv_usage_parse(&usage, argc, argv, &words, error) && pack(&p, &words, error);
    pv_words_free(&words);
    return good ? PV_DONE : error->status;
}
