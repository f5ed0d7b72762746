// Videos written: MP4 and GIF by the plug-in, a row of frames as PNG, folders of PNGs. See video.h.
// Files are written under a temporary name and renamed when they are whole.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/file.h"
#include "runtime/video_parts.h"

typedef enum { OUT_MP4, OUT_GIF, OUT_ROW, OUT_FOLDER, OUT_UNKNOWN } Form;

struct PvVideoWriter {
    Form form;
    char *path, *temporary;
    int width, height;
    int64_t frames;
    const PvVideoPlugin *table;
    PvEncoder *encoder;
    uint8_t *row; // OUT_ROW: frames so far
};

static Form form_of(const char *path)
{
    const char *base = pv_base_name(path);
    if (pv_has_ending(path, ".mp4"))
        return OUT_MP4;
    if (pv_has_ending(path, ".gif"))
        return OUT_GIF;
    if (pv_has_ending(path, ".png"))
        return OUT_ROW;
    if (pv_is_folder(path) || !*base || !strchr(base + 1, '.'))
        return OUT_FOLDER;
    return OUT_UNKNOWN;
}

// The folder a path lies in must be there, or be made.
static bool make_parent(const char *path, PvError *error)
{
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return true;
    char *folder = pv_printf("%.*s", (int)(slash - path), path);
    bool fine = pv_make_folder(folder, error);
    free(folder);
    return fine;
}

bool pv_video_check_output(const char *path, PvError *error)
{
    Form form = form_of(path);
    if (form == OUT_UNKNOWN) {
        pv_error(error, PV_USAGE, "%s: a video is written as .mp4, .gif, .png or a folder", path);
        return false;
    }
    if (form == OUT_FOLDER)
        return pv_make_folder(path, error);
    if ((form == OUT_MP4 || form == OUT_GIF) && !pv_video_table(error))
        return false;
    if (!make_parent(path, error))
        return false;
    PvFile *file = pv_file_create(path, error); // can a file be made there?
    pv_file_abandon(file);
    return file != NULL;
}

PvVideoWriter *pv_video_create(const char *path, int width, int height, double rate, PvError *error)
{
    if (!pv_video_check_output(path, error))
        return NULL;
    PvVideoWriter *writer = pv_alloc(sizeof *writer);
    *writer = (PvVideoWriter){
        .form = form_of(path), .path = pv_strdup(path), .width = width, .height = height};
    if (writer->form != OUT_MP4 && writer->form != OUT_GIF)
        return writer;
    char message[256];
    const char *base = pv_base_name(path);
    writer->temporary =
        pv_printf("%.*s.%s.%ld.tmp", (int)(base - path), path, base, (long)getpid());
    writer->table = pv_video_table(error);
    writer->encoder =
        writer->table->create(writer->temporary, writer->form == OUT_MP4 ? "mp4" : "gif", width,
                              height, rate > 0 ? rate : 8, message, sizeof message);
    if (writer->encoder)
        return writer;
    pv_error(error, PV_MACHINE, "%s: %s", path, message);
    pv_video_abandon(writer);
    return NULL;
}

bool pv_video_add(PvVideoWriter *writer, const uint8_t *rgb, PvError *error)
{
    char message[256];
    size_t size = (size_t)writer->width * (size_t)writer->height * 3;
    int64_t frame = writer->frames++;
    if (writer->form == OUT_FOLDER) {
        char name[64];
        snprintf(name, sizeof name, "frame-%05lld.png", (long long)frame);
        char *path = pv_join(writer->path, name);
        PvImage image = {
            .width = writer->width, .height = writer->height, .rgb = (uint8_t *)(uintptr_t)rgb};
        bool fine = pv_image_write(path, &image, error);
        free(path);
        return fine;
    }
    if (writer->form == OUT_ROW) {
        uint8_t *row = reallocarray(writer->row, (size_t)writer->frames, size);
        if (!row)
            return pv_error(error, PV_MACHINE, "not enough memory for a row of frames");
        writer->row = row;
        memcpy(row + (size_t)frame * size, rgb, size);
        return true;
    }
    if (writer->table->add(writer->encoder, rgb, message, sizeof message))
        return true;
    return pv_error(error, PV_MACHINE, "%s: %s", writer->path, message);
}

static bool write_row(const PvVideoWriter *writer, PvError *error)
{
    enum { MOST = 16 }; // frames in a row
    PvImage image;
    int columns = writer->frames < MOST ? (int)writer->frames : MOST;
    const uint8_t *clips[1] = {writer->row};
    if (!pv_image_grid(&image, clips, NULL, 1, (int)writer->frames, writer->height, writer->width,
                       columns, error))
        return false;
    bool fine = pv_image_write(writer->path, &image, error);
    pv_image_free(&image);
    return fine;
}

bool pv_video_finish(PvVideoWriter *writer, PvError *error)
{
    bool fine = true;
    char message[256];
    if (writer->form == OUT_ROW)
        fine = write_row(writer, error);
    if (writer->encoder) {
        fine = writer->table->finish(writer->encoder, message, sizeof message);
        writer->encoder = NULL;
        if (!fine)
            pv_error(error, PV_MACHINE, "%s: %s", writer->path, message);
        if (fine && rename(writer->temporary, writer->path) != 0)
            fine = pv_error_errno(error, "cannot write %s", writer->path);
        if (fine) {
            free(writer->temporary);
            writer->temporary = NULL;
        }
    }
    pv_video_abandon(writer);
    return fine;
}

void pv_video_abandon(PvVideoWriter *writer)
{
    char message[256];
    if (!writer)
        return;
    if (writer->encoder)
        writer->table->finish(writer->encoder, message, sizeof message);
    if (writer->temporary)
        unlink(writer->temporary);
    free(writer->temporary);
    free(writer->path);
    free(writer->row);
    free(writer);
}

bool pv_video_write(const char *path, const PvVideo *video, PvError *error)
{
    PvVideoWriter *writer = pv_video_create(path, video->width, video->height, video->rate, error);
    if (!writer)
        return false;
    for (int64_t i = 0; i < video->frames; i++) {
        const uint8_t *frame = video->rgb + i * video->width * video->height * 3;
        if (pv_video_add(writer, frame, error))
            continue;
        pv_video_abandon(writer);
        return false;
    }
    return pv_video_finish(writer, error);
}
