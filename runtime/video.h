// Videos: whole clips in memory as RGB. Files are read and written by a plug-in that stands on
// FFmpeg (runtime/video/plugin.h) and is opened when first needed; folders of pictures need none.
#ifndef PVDM_VIDEO_H
#define PVDM_VIDEO_H

#include "runtime/image.h"
#include "runtime/tensor.h"

typedef struct {
    int64_t frames;
    int width, height;
    double rate;  // frames a second; 0: not known
    uint8_t *rgb; // [frames, height, width, 3], malloc'ed
} PvVideo;

bool pv_video_new(PvVideo *video, int64_t frames, int width, int height, double rate,
                  PvError *error); // black
void pv_video_free(PvVideo *video);

// Is `path` something that pv_video_read would try: a video file by its ending, or a folder that
// holds pictures?
bool pv_is_video_file(const char *path);
bool pv_is_image_file(const char *path);

// A file or a folder of pictures (in natural order of their names: 2 before 10).
// crop_width x crop_height > 0: every frame is cropped to the middle square and resized while it
// is read. At most `limit` frames (0: all). A damaged end is cut off; no frame at all is an error.
// Without the plug-in: PV_MACHINE with a hint.
bool pv_video_read(const char *path, int crop_width, int crop_height, int64_t limit, PvVideo *video,
                   PvError *error);
// By ending: .mp4, .gif (plug-in; .gif loops), .png (one grid row); else a folder of
// frame-00000.png. rate <= 0: 8.
bool pv_video_write(const char *path, const PvVideo *video, PvError *error);
// Frames are handed over one by one as they come (long videos need no memory).
typedef struct PvVideoWriter PvVideoWriter;
PvVideoWriter *pv_video_create(const char *path, int width, int height, double rate,
                               PvError *error);
bool pv_video_add(PvVideoWriter *writer, const uint8_t *rgb, PvError *error); // [h, w, 3]
bool pv_video_finish(PvVideoWriter *writer, PvError *error); // frees it, whatever the result
void pv_video_abandon(PvVideoWriter *writer);                // nothing is left; NULL fine

// Can `path` be written on this machine? Asked before hours of work.
bool pv_video_check_output(const char *path, PvError *error);
// Where the plug-in was found, for `info`: path, or NULL with the reason.
const char *pv_video_plugin(PvError *error);

// Pixels between bytes and reals: p / 127.5 - 1, and back with rounding and clamping.
// tensor [3, frames, height, width] (one sample of a batch).
void pv_video_to_reals(const PvVideo *video, int64_t first, int64_t count, PvReal *out);
bool pv_video_from_reals(PvVideo *video, const PvReal *pixels, int64_t frames, int height,
                         int width, double rate, PvError *error);

#endif
