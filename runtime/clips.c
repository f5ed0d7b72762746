// Frames of several videos in memory, and their ways out: tiles of one video, rows of one picture,
// folders of frames.
#include "runtime/clips.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/file.h"

static size_t frame_size(const PvClips *clips)
{
    return (size_t)clips->height * (size_t)clips->width * 3;
}

static bool make_room(PvClips *clips, int64_t frames, PvError *error)
{
    if (clips->frames + frames <= clips->capacity)
        return true;
    int64_t capacity =
        2 * clips->capacity > clips->frames + frames ? 2 * clips->capacity : clips->frames + frames;
    for (int64_t i = 0; i < clips->count; i++) {
        uint8_t *larger = realloc(clips->rgb[i], (size_t)capacity * frame_size(clips) + 1);
        if (!larger)
            return pv_error(error, PV_MACHINE, "no memory for %lld frames", (long long)capacity);
        clips->rgb[i] = larger;
    }
    clips->capacity = capacity;
    return true;
}

bool pv_clips_add(PvClips *clips, int64_t count, int64_t frames, int height, int width,
                  const PvReal *pixels, PvError *error)
{
    if (!clips->rgb) {
        clips->count = count;
        clips->height = height;
        clips->width = width;
        clips->rgb = pv_alloc((size_t)(count + 1) * sizeof *clips->rgb);
    }
    if (count != clips->count || height != clips->height || width != clips->width)
        return pv_error(
            error, PV_WRONG, "clips of different sizes: %lld of %d x %d, %lld of %d x %d",
            (long long)clips->count, clips->width, clips->height, (long long)count, width, height);
    if (!make_room(clips, frames, error))
        return false;
    size_t size = frame_size(clips);
    for (int64_t i = 0; i < count; i++) {
        PvVideo video = {0};
        if (!pv_video_from_reals(&video, pixels + (size_t)i * (size_t)frames * size, frames, height,
                                 width, 0, error))
            return false;
        memcpy(clips->rgb[i] + (size_t)clips->frames * size, video.rgb, (size_t)frames * size);
        pv_video_free(&video);
    }
    clips->frames += frames;
    return true;
}

void pv_clips_free(PvClips *clips)
{
    for (int64_t i = 0; clips->rgb && i < clips->count; i++)
        free(clips->rgb[i]);
    free(clips->rgb);
    *clips = (PvClips){0};
}

static bool write_grid(const PvClips *clips, const char *path, PvError *error)
{
    PvImage image = {0};
    int columns = clips->frames < 16 ? (int)clips->frames : 16;
    bool good = pv_image_grid(&image, (const uint8_t *const *)clips->rgb, NULL, (int)clips->count,
                              (int)clips->frames, clips->height, clips->width, columns, error) &&
                pv_image_write(path, &image, error);
    pv_image_free(&image);
    return good;
}

static bool write_tiles(const PvClips *clips, const char *path, double rate, PvError *error)
{
    int columns = 1;
    while ((int64_t)columns * columns < clips->count)
        columns++;
    int rows = (int)((clips->count + columns - 1) / columns);
    PvVideo video = {0};
    if (!pv_video_new(&video, clips->frames, columns * clips->width, rows * clips->height, rate,
                      error))
        return false;
    size_t row = (size_t)clips->width * 3, wide = (size_t)columns * row;
    for (int64_t i = 0; i < clips->count; i++) {
        size_t left = (size_t)(i % columns) * row,
               top = (size_t)(i / columns) * (size_t)clips->height;
        for (int64_t t = 0; t < clips->frames; t++)
            for (int y = 0; y < clips->height; y++)
                memcpy(video.rgb + ((size_t)t * (size_t)video.height + top + (size_t)y) * wide +
                           left,
                       clips->rgb[i] + (size_t)t * frame_size(clips) + (size_t)y * row, row);
    }
    bool good = pv_video_write(path, &video, error);
    pv_video_free(&video);
    return good;
}

static bool write_folders(const PvClips *clips, const char *path, double rate, PvError *error)
{
    bool good = pv_make_folder(path, error);
    for (int64_t i = 0; good && i < clips->count; i++) {
        char *name = pv_printf("video-%05lld", (long long)i);
        char *folder = pv_join(path, name);
        PvVideo video = {clips->frames, clips->width, clips->height, rate, clips->rgb[i]};
        good = pv_video_write(folder, &video, error);
        free(name);
        free(folder);
    }
    return good;
}

bool pv_clips_write(const PvClips *clips, const char *path, double rate, PvError *error)
{
    if (pv_has_ending(path, ".png"))
        return write_grid(clips, path, error);
    if (pv_is_video_file(path) || pv_has_ending(path, ".gif") || clips->count == 1)
        return write_tiles(clips, path, rate, error);
    return write_folders(clips, path, rate, error);
}
