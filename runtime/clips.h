// Videos that a command makes: frames in memory, written by the ending of the path.
#ifndef PV_CLIPS_H
#define PV_CLIPS_H

#include "runtime/video.h"

typedef struct {
    int64_t count;            // videos
    int64_t frames, capacity; // of each, so far; room for
    int height, width;
    uint8_t **rgb; // [count], each [frames, height, width, 3]
} PvClips;         // starts as {0}

// Appends `frames` frames to every video. pixels: [count, 3, frames, height, width] in [-1, 1].
bool pv_clips_add(PvClips *clips, int64_t count, int64_t frames, int height, int width,
                  const PvReal *pixels, PvError *error);
void pv_clips_free(PvClips *clips);

// .png: a row of frames a video. .mp4, .gif: the videos as tiles of one. Else a folder of frames,
// or of one folder a video. rate: frames a second.
bool pv_clips_write(const PvClips *clips, const char *path, double rate, PvError *error);

#endif
