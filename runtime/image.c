// Pictures: decoding, encoding, crop and resize. See image.h.
//
// PNG goes through libpng's simplified interface, JPEG through libjpeg-turbo with its error exit
// replaced by a jump back here. Sizes are checked before pixels are allocated.
#include "runtime/image.h"

#include <math.h>
#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h> // after stdio.h, which it needs

#include "runtime/file.h"

static const int64_t max_pixels = (int64_t)1 << 28;

bool pv_image_new(PvImage *image, int width, int height, PvError *error)
{
    *image = (PvImage){0};
    if (width < 1 || height < 1 || width > PV_MAX_IMAGE || height > PV_MAX_IMAGE ||
        (int64_t)width * height > max_pixels)
        return pv_error(error, PV_WRONG, "a picture of %d x %d pixels", width, height);
    image->rgb = pv_try_alloc((size_t)width * (size_t)height * 3, "a picture", error);
    if (!image->rgb)
        return false;
    image->width = width;
    image->height = height;
    return true;
}

void pv_image_free(PvImage *image)
{
    free(image->rgb);
    *image = (PvImage){0};
}

// ---- PNG ----

static bool decode_png(const char *name, const uint8_t *data, size_t size, PvImage *image,
                       PvError *error)
{
    png_image png = {.version = PNG_IMAGE_VERSION};
    if (!png_image_begin_read_from_memory(&png, data, size))
        return pv_error(error, PV_WRONG, "%s: %s", name, png.message);
    if (png.width > PV_MAX_IMAGE || png.height > PV_MAX_IMAGE ||
        !pv_image_new(image, (int)png.width, (int)png.height, error)) {
        png_image_free(&png);
        if (!error->text)
            pv_error(error, PV_WRONG, "a picture of %u x %u pixels", png.width, png.height);
        return pv_error_prefix(error, "%s", name);
    }
    png.format = PNG_FORMAT_RGBA; // with alpha, so that nothing is blended
    size_t pixels = (size_t)png.width * png.height;
    uint8_t *rgba = pv_try_alloc(pixels * 4, name, error);
    bool fine = rgba != NULL;
    if (fine && !png_image_finish_read(&png, NULL, rgba, 0, NULL))
        fine = pv_error(error, PV_WRONG, "%s: %s", name, png.message);
    for (size_t i = 0; fine && i < pixels; i++)
        memcpy(image->rgb + 3 * i, rgba + 4 * i, 3);
    free(rgba);
    png_image_free(&png);
    if (!fine)
        pv_image_free(image);
    return fine;
}

bool pv_image_encode(const PvImage *image, uint8_t **png, size_t *size, PvError *error)
{
    png_image head = {.version = PNG_IMAGE_VERSION,
                      .width = (png_uint_32)image->width,
                      .height = (png_uint_32)image->height,
                      .format = PNG_FORMAT_RGB};
    png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(head);
    *png = pv_try_alloc(bytes, "a PNG file", error);
    if (!*png)
        return false;
    if (!png_image_write_to_memory(&head, *png, &bytes, 0, image->rgb, 0, NULL)) {
        free(*png);
        *png = NULL;
        return pv_error(error, PV_MACHINE, "a picture could not be encoded: %s", head.message);
    }
    *size = bytes;
    return true;
}

bool pv_image_write(const char *path, const PvImage *image, PvError *error)
{
    uint8_t *png = NULL;
    size_t size = 0;
    if (!pv_image_encode(image, &png, &size, error))
        return false;
    bool fine = pv_file_replace(path, png, size, error);
    free(png);
    return fine;
}

// ---- JPEG ----

typedef struct {
    struct jpeg_error_mgr manager; // first: libjpeg knows only this part
    jmp_buf back;
    char message[JMSG_LENGTH_MAX];
} JpegTrouble;

static void jpeg_stop(j_common_ptr info)
{
    JpegTrouble *trouble = (JpegTrouble *)info->err;
    info->err->format_message(info, trouble->message);
    longjmp(trouble->back, 1);
}

// Warnings (a truncated file among them) are errors too: half a picture is no picture.
static void jpeg_complain(j_common_ptr info, int level)
{
    if (level < 0)
        jpeg_stop(info);
}

static bool decode_jpeg(const char *name, const uint8_t *data, size_t size, PvImage *image,
                        PvError *error)
{
    struct jpeg_decompress_struct info;
    JpegTrouble trouble;
    info.err = jpeg_std_error(&trouble.manager);
    trouble.manager.error_exit = jpeg_stop;
    trouble.manager.emit_message = jpeg_complain;
    if (setjmp(trouble.back)) {
        jpeg_destroy_decompress(&info);
        pv_image_free(image);
        return pv_error(error, PV_WRONG, "%s: %s", name, trouble.message);
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, size);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    if (info.image_width > PV_MAX_IMAGE || info.image_height > PV_MAX_IMAGE ||
        !pv_image_new(image, (int)info.image_width, (int)info.image_height, error)) {
        jpeg_destroy_decompress(&info);
        if (!error->text)
            pv_error(error, PV_WRONG, "the picture is too large");
        return pv_error_prefix(error, "%s", name);
    }
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = image->rgb + (size_t)info.output_scanline * (size_t)image->width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return true;
}

// ---- by content ----

bool pv_image_decode(const char *name, const uint8_t *data, size_t size, PvImage *image,
                     PvError *error)
{
    *image = (PvImage){0};
    if (size >= 8 && !memcmp(data, "\x89PNG\r\n\x1a\n", 8))
        return decode_png(name, data, size, image, error);
    if (size >= 3 && !memcmp(data, "\xff\xd8\xff", 3))
        return decode_jpeg(name, data, size, image, error);
    return pv_error(error, PV_WRONG, "%s is neither a PNG nor a JPEG picture", name);
}

bool pv_image_read(const char *path, PvImage *image, PvError *error)
{
    size_t size;
    char *data = pv_read_file(path, (size_t)1 << 30, &size, error);
    if (!data)
        return false;
    bool fine = pv_image_decode(path, (const uint8_t *)data, size, image, error);
    free(data);
    return fine;
}

// ---- crop and resize ----

// Where output position i of n reads among `side` input positions: between `low` and low + 1 (or
// the border), `part` of the second.
static void place(int i, int n, int side, int *low, int *high, float *part)
{
    float at = ((float)i + 0.5f) * (float)side / (float)n - 0.5f;
    if (at < 0)
        at = 0;
    *low = (int)at;
    if (*low > side - 1)
        *low = side - 1;
    *high = *low + 1 < side ? *low + 1 : *low;
    *part = at - (float)*low;
}

void pv_crop_resize(const uint8_t *from, int from_width, int from_height, uint8_t *to, int width,
                    int height)
{
    int side = from_width < from_height ? from_width : from_height;
    const uint8_t *corner = from + ((size_t)((from_height - side) / 2) * (size_t)from_width +
                                    (size_t)((from_width - side) / 2)) *
                                       3;
    for (int y = 0; y < height; y++) {
        int top, bottom;
        float down;
        place(y, height, side, &top, &bottom, &down);
        const uint8_t *upper = corner + (size_t)top * (size_t)from_width * 3;
        const uint8_t *lower = corner + (size_t)bottom * (size_t)from_width * 3;
        for (int x = 0; x < width; x++) {
            int left, right;
            float over;
            place(x, width, side, &left, &right, &over);
            for (int c = 0; c < 3; c++) {
                float a = (float)upper[3 * left + c], b = (float)upper[3 * right + c];
                float d = (float)lower[3 * left + c], e = (float)lower[3 * right + c];
                float row = a + over * (b - a), next = d + over * (e - d);
                *to++ = (uint8_t)lrintf(row + down * (next - row));
            }
        }
    }
}
