// Packed data sets: every frame of every video, cropped and resized, in one mapped file. See
// data.h.
//
// The file is a safetensors file, so that other tools read it too: frames, starts, names (one a
// line). Its header is written last, into room left for it, when the number of frames is known.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data_parts.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"

enum { HEADER_ROOM = 1016 }; // with the 8 bytes before it 1024

bool pv_is_packed(const char *path)
{
    return !pv_is_folder(path) && pv_has_ending(path, ".safetensors");
}

// ---- reading ----

// Splits the names into sources with their frames.
static bool read_sources(const char *path, const PvTensor *starts, const PvTensor *names,
                         int64_t frames, SourceList *list, PvError *error)
{
    const int64_t *at = starts->data;
    const char *text = names->data, *end = text + names->count;
    for (int64_t i = 0; i + 1 < starts->count; i++) {
        const char *line_end = text < end ? memchr(text, '\n', (size_t)(end - text)) : NULL;
        if (!line_end || at[i] < 0 || at[i + 1] <= at[i] || at[i + 1] > frames)
            return pv_error(error, PV_WRONG, "%s: the packed data set is damaged", path);
        char *name = pv_printf("%.*s", (int)(line_end - text), text);
        pv_sources_add(list, name, NULL);
        free(name);
        list->items[list->count - 1].first = at[i];
        list->items[list->count - 1].frames = at[i + 1] - at[i];
        text = line_end + 1;
    }
    return list->count > 0 || pv_error(error, PV_WRONG, "%s holds no videos", path);
}

bool pv_packed_open(const char *path, SourceList *list, PvTensor **frames, PvError *error)
{
    PvTensorSet set = {0};
    if (!pv_safetensors_read(path, &set, error))
        return false;
    PvTensor *pixels = pv_set_find(&set, "frames");
    const PvTensor *starts = pv_set_find(&set, "starts"), *names = pv_set_find(&set, "names");
    bool fine = pixels && starts && names && pixels->dtype == PV_U8 && pixels->rank == 4 &&
                pixels->dim[3] == 3 && pixels->dim[1] > 0 && pixels->dim[2] > 0 &&
                pixels->dim[1] <= PV_MAX_IMAGE && pixels->dim[2] <= PV_MAX_IMAGE &&
                starts->dtype == PV_I64 && starts->rank == 1 && names->dtype == PV_U8;
    if (!fine)
        pv_error(error, PV_WRONG, "%s is not a packed data set", path);
    fine = fine && read_sources(path, starts, names, pixels->dim[0], list, error);
    if (fine) {
        pv_sources_label(list);
        *frames = pv_tensor_hold(pixels);
    } else {
        pv_sources_free(list);
    }
    pv_set_free(&set);
    return fine;
}

// ---- writing ----

typedef struct {
    PvFile *file;
    int64_t *starts; // of the videos so far, and the end
    size_t count, capacity;
    char *names;
    size_t names_size;
    FILE *names_stream;
} Pack;

static bool write_header(Pack *pack, int64_t frames, int height, int width)
{
    char text[HEADER_ROOM + 9];
    int64_t pixels = frames * height * width * 3;
    int64_t names_at = pixels + (int64_t)pack->count * 8,
            end = names_at + (int64_t)pack->names_size;
    int length = snprintf(text + 8, HEADER_ROOM,
                          "{\"__metadata__\":{\"format\":\"pvdm data\"},"
                          "\"frames\":{\"dtype\":\"U8\",\"shape\":[%" PRId64 ",%d,%d,3],"
                          "\"data_offsets\":[0,%" PRId64 "]},"
                          "\"starts\":{\"dtype\":\"I64\",\"shape\":[%zu],"
                          "\"data_offsets\":[%" PRId64 ",%" PRId64 "]},"
                          "\"names\":{\"dtype\":\"U8\",\"shape\":[%zu],"
                          "\"data_offsets\":[%" PRId64 ",%" PRId64 "]}}",
                          frames, height, width, pixels, pack->count, pixels, names_at,
                          pack->names_size, names_at, end);
    uint64_t room = HEADER_ROOM;
    memcpy(text, &room, 8);
    memset(text + 8 + length, ' ', (size_t)(HEADER_ROOM - length));
    return pv_file_rewrite(pack->file, 0, text, 8 + HEADER_ROOM);
}

// Adds one video; a damaged one is told and left out.
static bool pack_video(Pack *pack, const Source *source, const PvDataOptions *options,
                       PvError *error)
{
    PvVideo video;
    if (!pv_video_read(source->path, options->width, options->height, 0, &video, error)) {
        if (error->status == PV_MACHINE)
            return false;
        pv_warn("%s; it is left out", error->text);
        pv_error_free(error);
        return true;
    }
    int64_t last = pack->count > 0 ? pack->starts[pack->count - 1] : 0;
    pack->starts = pv_grow(pack->starts, &pack->capacity, pack->count, sizeof *pack->starts);
    pack->starts[pack->count++] = last + video.frames;
    fprintf(pack->names_stream, "%s\n", source->name);
    bool fine = pv_file_write(pack->file, video.rgb,
                              (size_t)(video.frames * video.height * video.width * 3));
    pv_video_free(&video);
    return fine;
}

static bool pack_all(Pack *pack, const SourceList *list, const PvDataOptions *options,
                     PvPackProgress *progress, void *context, PvError *error)
{
    static const uint8_t room[8 + HEADER_ROOM];
    pv_file_write(pack->file, room, sizeof room);
    pack->starts = pv_grow(pack->starts, &pack->capacity, 0, sizeof *pack->starts);
    pack->starts[pack->count++] = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (!pack_video(pack, &list->items[i], options, error))
            break;
        if (progress)
            progress(context, (int64_t)i + 1, (int64_t)list->count);
    }
    fflush(pack->names_stream);
    if (error->text)
        return false;
    if (pack->count < 2)
        return pv_error(error, PV_WRONG, "%s holds no video that can be read", options->path);
    pv_file_write(pack->file, pack->starts, pack->count * sizeof *pack->starts);
    pv_file_write(pack->file, pack->names, pack->names_size);
    write_header(pack, pack->starts[pack->count - 1], options->height, options->width);
    return true;
}

bool pv_data_pack(const PvDataOptions *options, const char *path, PvPackProgress *progress,
                  void *context, PvError *error)
{
    SourceList list = {0};
    Pack pack = {0};
    if (!pv_has_ending(path, ".safetensors"))
        return pv_error(error, PV_USAGE, "%s: a packed data set ends in .safetensors", path);
    if (!pv_sources_find(options, &list, error)) {
        pv_sources_free(&list);
        return false;
    }
    pack.names_stream = open_memstream(&pack.names, &pack.names_size);
    pack.file = pack.names_stream ? pv_file_create(path, error) : NULL;
    bool fine = pack.file && pack_all(&pack, &list, options, progress, context, error);
    if (fine)
        fine = pv_file_commit(pack.file, error);
    else
        pv_file_abandon(pack.file);
    if (pack.names_stream)
        fclose(pack.names_stream);
    free(pack.names);
    free(pack.starts);
    pv_sources_free(&list);
    return fine;
}
