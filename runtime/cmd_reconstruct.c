// `reconstruct`: a video through the program `reconstruct` (input x, output y, videos of one
// shape) window by window, and how near it comes.
//
// The video is cut to the middle square and resized to the model's size. Windows follow each other;
// the last one is padded by its last frame. PSNR = 10 log10(255^2 / MSE) over the bytes of all
// frames; "mean frame" is the PSNR of the constant video of each window's mean frame, which a model
// that ignores motion reaches.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/reconstruct.h"

static const char about[] =
    "Runs the program `reconstruct` (x: video -> y) over a video, and prints the PSNR and the\n"
    "PSNR of each window's mean frame.";

typedef struct {
    PvReconstructor model;
    const char *out;
    bool side_by_side;
    double rate;
} Reconstruct;

// [original | reconstruction]
static bool join(const PvVideo *left, const PvVideo *right, PvVideo *both, PvError *error)
{
    if (!pv_video_new(both, left->frames, left->width + right->width, left->height, left->rate,
                      error))
        return false;
    size_t row = (size_t)left->width * 3;
    for (int64_t i = 0; i < left->frames * left->height; i++) {
        memcpy(both->rgb + (size_t)i * 2 * row, left->rgb + (size_t)i * row, row);
        memcpy(both->rgb + (size_t)i * 2 * row + row, right->rgb + (size_t)i * row, row);
    }
    return true;
}

static bool write_grid(const char *path, const PvVideo *x, const PvVideo *y, PvError *error)
{
    const uint8_t *rows[] = {x->rgb, y->rgb};
    const char *labels[] = {"video", "model"};
    PvImage image = {0};
    bool good = pv_image_grid(&image, rows, labels, 2, (int)x->frames, x->height, x->width,
                              x->frames < 16 ? (int)x->frames : 16, error) &&
                pv_image_write(path, &image, error);
    pv_image_free(&image);
    return good;
}

static bool write(const Reconstruct *r, const PvVideo *x, PvVideo *y, PvError *error)
{
    if (!r->out)
        return true;
    if (pv_has_ending(r->out, ".png"))
        return write_grid(r->out, x, y, error);
    y->rate = r->rate > 0 ? r->rate : x->rate;
    if (!r->side_by_side)
        return pv_video_write(r->out, y, error);
    PvVideo both = {0};
    bool good = join(x, y, &both, error);
    both.rate = y->rate;
    good = good && pv_video_write(r->out, &both, error);
    pv_video_free(&both);
    return good;
}

static bool reconstruct(Reconstruct *r, const char *path, PvError *error)
{
    PvVideo x = {0}, y = {0};
    PvQuality quality = {0};
    bool good = pv_reconstructor_open(&r->model, error) &&
                (!r->out || pv_video_check_output(r->out, error)) &&
                pv_reconstructor_mount(&r->model, "reconstruct", error) &&
                pv_reconstruct(&r->model, path, &x, &y, &quality, error) && write(r, &x, &y, error);
    if (good)
        printf("%s: %lld frames, PSNR %.3f dB (mean frame %.3f dB)\n", path, (long long)x.frames,
               pv_quality_psnr(&quality), pv_quality_still_psnr(&quality));
    pv_video_free(&x);
    pv_video_free(&y);
    return good;
}

PvStatus cmd_reconstruct(int argc, char **argv, PvError *error)
{
    Reconstruct r = {.model = {.batch = 1}};
    PvFlag flags[] = {
        {"--weights", "[INSTANCE=]FILE[#PREFIX]", PV_FLAG_WORDS, &r.model.session.weights,
         "checkpoints or exported weights"},
        {"--out", "PATH", PV_FLAG_TEXT, &r.out, ".mp4, .gif, .png (rows of frames), or a folder"},
        {"-o", "PATH", PV_FLAG_TEXT, &r.out, "the same"},
        {"--side-by-side", NULL, PV_FLAG_BOOL, &r.side_by_side, "the video on the left"},
        {"--batch", "N", PV_FLAG_INT, &r.model.batch, "windows at a time (default 1)"},
        {"--rate", "R", PV_FLAG_REAL, &r.rate, "frames a second (default: the video's)"},
        {"--ema", NULL, PV_FLAG_BOOL, &r.model.ema, "moving averages where a file has them"},
        PV_SESSION_FLAGS(&r.model.session),
    };
    PvUsage usage = {.line = "reconstruct VIDEO",
                     .about = about,
                     .flags = flags,
                     .flag_count = sizeof flags / sizeof *flags,
                     .least = 1,
                     .most = 1};
    PvWords words = {0};
    bool good =
        pv_usage_parse(&usage, argc, argv, &words, error) && reconstruct(&r, words.items[0], error);
    pv_reconstructor_close(&r.model);
    pv_words_free(&words);
    return good ? PV_DONE : error->status;
}
