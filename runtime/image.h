// Pictures: PNG and JPEG in, PNG out, grids of video frames, line charts.
#ifndef PVDM_IMAGE_H
#define PVDM_IMAGE_H

#include <stdint.h>

#include "runtime/error.h"

typedef struct {
    int width, height;
    uint8_t *rgb; // [height, width, 3], malloc'ed
} PvImage;

enum { PV_MAX_IMAGE = 1 << 15 }; // largest width and height

bool pv_image_new(PvImage *image, int width, int height, PvError *error); // black
void pv_image_free(PvImage *image);
// PNG or JPEG, told by content; grey and palettes become RGB, alpha is dropped.
bool pv_image_read(const char *path, PvImage *image, PvError *error);
bool pv_image_decode(const char *name, const uint8_t *data, size_t size, PvImage *image,
                     PvError *error);
bool pv_image_write(const char *path, const PvImage *image, PvError *error); // PNG, atomic
bool pv_image_encode(const PvImage *image, uint8_t **png, size_t *size, PvError *error);

void pv_image_fill(PvImage *image, uint32_t rgb); // 0xRRGGBB
void pv_image_rectangle(PvImage *image, int x, int y, int width, int height, uint32_t rgb);
void pv_image_line(PvImage *image, int x0, int y0, int x1, int y1, uint32_t rgb);
void pv_image_text(PvImage *image, int x, int y, const char *text, int scale, uint32_t rgb);
int pv_image_text_width(const char *text, int scale); // letters are 8 * scale high
// Copies `from` (rows of width * 3 bytes) into the image at (x, y); parts outside are cut off.
void pv_image_paste(PvImage *image, int x, int y, const uint8_t *rgb, int width, int height);

// Source rows [h, w, 3] to a square in the middle, then bilinear (half-pixel centres, no
// antialiasing) to [height, width, 3].
void pv_crop_resize(const uint8_t *from, int from_width, int from_height, uint8_t *to, int width,
                    int height);

// Rows of frames: clips[i] is uint8 [frames, height, width, 3]; `columns` frames of each, evenly
// spread, side by side; one row a clip, with labels[i] (or labels NULL) on the left.
bool pv_image_grid(PvImage *image, const uint8_t *const *clips, const char *const *labels,
                   int clip_count, int frames, int height, int width, int columns, PvError *error);

typedef struct {
    const char *name;
    const double *x, *y; // count points; those that are not finite are left out
    size_t count;
    bool points; // pale points; else a line through them
} PvCurve;

typedef struct {
    const char *title, *x_label, *y_label;
    const PvCurve *curves;
    size_t curve_count;
    bool log_y;        // points <= 0 are left out
    int width, height; // 0: 960 x 540
} PvChart;
bool pv_image_chart(PvImage *image, const PvChart *chart, PvError *error);

#endif
