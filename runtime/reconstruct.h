// Videos through the program `reconstruct`, and measures of what comes out (reconstruct.c).
#ifndef PV_RECONSTRUCT_H
#define PV_RECONSTRUCT_H

#include "runtime/file.h"
#include "runtime/session.h"
#include "runtime/video.h"

typedef struct {
    PvSession session;
    int64_t batch; // windows at a time
    bool ema;
    const PvEntry *entry;
    PvCall *call;
    int frames, height, width; // of a window
} PvReconstructor;             // batch set, the rest {0}

// Sums of squared differences of bytes.
typedef struct {
    double error, still_error; // of the model; of each window's mean frame
    int64_t count;             // bytes
} PvQuality;

// Finds the program: one whose input is a video and whose output has the same type.
bool pv_reconstructor_open(PvReconstructor *model, PvError *error);
bool pv_reconstructor_mount(PvReconstructor *model, const char *command, PvError *error);
void pv_reconstructor_close(PvReconstructor *model);

// x: the video, cropped and resized; y: what the model makes of it. Adds to `quality`.
bool pv_reconstruct(PvReconstructor *model, const char *path, PvVideo *x, PvVideo *y,
                    PvQuality *quality, PvError *error);
double pv_quality_psnr(const PvQuality *quality); // dB; infinite when equal
double pv_quality_still_psnr(const PvQuality *quality);

#endif
