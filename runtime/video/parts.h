// What the files of the plug-in share.
#ifndef PVDM_VIDEO_PARTS_H
#define PVDM_VIDEO_PARTS_H

#include "runtime/video/plugin.h"

/* decode.c */
PvDecoder *pv_decode_open(const char *path, char *message, size_t size);
void pv_decode_info(const PvDecoder *decoder, double *rate, int64_t *frames);
int pv_decode_next(PvDecoder *decoder, const uint8_t **rgb, int *width, int *height, char *message,
                   size_t size);
void pv_decode_close(PvDecoder *decoder);
// "WHAT", or "WHAT: " and FFmpeg's word for the code if it is an error.
void pv_video_say(char *message, size_t size, const char *what, int code);

/* encode.c */
PvEncoder *pv_encode_open(const char *path, const char *format, int width, int height, double rate,
                          char *message, size_t size);
bool pv_encode_add(PvEncoder *encoder, const uint8_t *rgb, char *message, size_t size);
bool pv_encode_finish(PvEncoder *encoder, char *message, size_t size);

/* palette.c: RGB to 256 colours, by median cut. palette: 0xAARRGGBB, 256 entries. */
void pv_make_palette(const uint8_t *rgb, int64_t pixels, uint32_t *palette);
void pv_apply_palette(const uint8_t *rgb, int width, int height, const uint32_t *palette,
                      uint8_t *out, int stride);

#endif
