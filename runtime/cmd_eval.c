// `eval psnr`: reconstructions of the videos of a data set, measured.
//
// The videos are found as for training (data.h), by default all of them; `--split train` and
// `--split test` are the two columns that papers print. PSNR is of the mean squared error over all
// frames in 8 bits; the total weighs videos by their frames. Beside it stands what a model that
// only knew each window's mean frame would reach.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data_parts.h"
#include "runtime/reconstruct.h"

typedef struct {
    PvReconstructor model;
    const char *data, *list, *split;
    int64_t limit; // videos; 0: all
    PvQuality total;
    int64_t videos, skipped;
} Eval;

static bool measure_video(Eval *eval, const char *path, PvError *error)
{
    PvVideo x = {0}, y = {0};
    PvQuality quality = {0};
    bool good = pv_reconstruct(&eval->model, path, &x, &y, &quality, error);
    if (good) {
        printf("%8.3f dB  %8.3f dB  %s\n", pv_quality_psnr(&quality),
               pv_quality_still_psnr(&quality), path);
        eval->total.error += quality.error;
        eval->total.still_error += quality.still_error;
        eval->total.count += quality.count;
        eval->videos++;
    }
    pv_video_free(&x);
    pv_video_free(&y);
    return good;
}

// Every video of the data set. Damaged ones are told and passed over.
static bool measure_all(Eval *eval, PvError *error)
{
    const PvDataOptions options = {
        .path = eval->data, .list = eval->list, .split = eval->split ? eval->split : "all"};
    SourceList list = {0};
    bool good = pv_sources_find(&options, &list, error);
    for (size_t i = 0; good && i < list.count; i++) {
        if (eval->limit > 0 && eval->videos >= eval->limit)
            break;
        if (measure_video(eval, list.items[i].path, error))
            continue;
        good = error->status == PV_WRONG; // a damaged file; not: no memory, no plug-in
        if (good) {
            pv_warn("skipped: %s", error->text);
            pv_error_free(error);
            eval->skipped++;
        }
    }
    pv_sources_free(&list);
    return good;
}

static bool eval_psnr(Eval *eval, const char *what, PvError *error)
{
    const char *const known[] = {"psnr"};
    if (strcmp(what, "psnr") != 0)
        return pv_unknown("measure", what, known, 1, PV_USAGE, error);
    if (!eval->data)
        return pv_error(error, PV_USAGE, "eval psnr needs --data PATH");
    if (!pv_reconstructor_open(&eval->model, error) ||
        !pv_reconstructor_mount(&eval->model, "eval psnr", error))
        return false;
    printf("%11s  %11s\n", "PSNR", "mean frame");
    if (!measure_all(eval, error))
        return false;
    if (eval->videos == 0)
        return pv_error(error, PV_WRONG, "%s: no video could be read", eval->data);
    printf("%8.3f dB  %8.3f dB  all %lld videos; %lld skipped\n", pv_quality_psnr(&eval->total),
           pv_quality_still_psnr(&eval->total), (long long)eval->videos, (long long)eval->skipped);
    return true;
}

PvStatus cmd_eval(int argc, char **argv, PvError *error)
{
    Eval eval = {.model = {.batch = 1}};
    PvFlag flags[] = {
        {"--weights", "[INSTANCE=]FILE[#PREFIX]", PV_FLAG_WORDS, &eval.model.session.weights,
         "checkpoints or exported weights"},
        {"--data", "PATH", PV_FLAG_TEXT, &eval.data, "folder of videos, or one video"},
        {"--split", "NAME", PV_FLAG_TEXT, &eval.split, "train, test, all (default)"},
        {"--list", "FILE", PV_FLAG_TEXT, &eval.list, "only these, one relative path a line"},
        {"--limit", "N", PV_FLAG_INT, &eval.limit, "at most so many videos"},
        {"--batch", "N", PV_FLAG_INT, &eval.model.batch, "windows at a time (default 1)"},
        {"--ema", NULL, PV_FLAG_BOOL, &eval.model.ema, "moving averages where a file has them"},
        PV_SESSION_FLAGS(&eval.model.session),
    };
    PvUsage usage = {.line = "eval psnr",
                     .about =
                         "Reconstructs every video of a folder and prints the PSNR of each and "
                         "of all, beside\nthat of each window's mean frame.",
                     .flags = flags,
                     .flag_count = sizeof flags / sizeof *flags,
                     .least = 1,
                     .most = 1};
    PvWords words = {0};
    bool good = pv_usage_parse(&usage, argc, argv, &words, error) &&
                eval_psnr(&eval, words.items[0], error);
    pv_reconstructor_close(&eval.model);
    pv_words_free(&words);
    return good ? PV_DONE : error->status;
}
