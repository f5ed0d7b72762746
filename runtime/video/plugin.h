// The video plug-in: libpvdm_video.so, which stands on FFmpeg's libraries, seen from an executable
// that does not. One exported symbol, pv_video_plugin_table. Functions return NULL or false with a
// message in `message` (size bytes, always ended by 0).
#ifndef PVDM_VIDEO_PLUGIN_H
#define PVDM_VIDEO_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PV_VIDEO_PLUGIN_VERSION = 1 };
#define PV_VIDEO_PLUGIN_SYMBOL "pv_video_plugin_table"

typedef struct PvDecoder PvDecoder;
typedef struct PvEncoder PvEncoder;

typedef struct {
    int version;           // PV_VIDEO_PLUGIN_VERSION
    const char *libraries; // "libavformat 59.27.100, ..."

    PvDecoder *(*open)(const char *path, char *message, size_t size);
    // Frames a second (0: not known), and the number the file claims (0: not known).
    void (*info)(const PvDecoder *decoder, double *rate, int64_t *frames);
    // The next frame as RGB24 rows without gaps, valid until the next call. 1: a frame, 0: end,
    // -1: damaged.
    int (*next)(PvDecoder *decoder, const uint8_t **rgb, int *width, int *height, char *message,
                size_t size);
    void (*close)(PvDecoder *decoder);

    // format: "mp4" (H.264 if there is an encoder, else MPEG-4) or "gif".
    PvEncoder *(*create)(const char *path, const char *format, int width, int height, double rate,
                         char *message, size_t size);
    bool (*add)(PvEncoder *encoder, const uint8_t *rgb, char *message, size_t size);
    bool (*finish)(PvEncoder *encoder, char *message, size_t size); // frees it, in any case
} PvVideoPlugin;

#endif
