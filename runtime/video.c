// Videos in memory: read from files by the plug-in and from folders of pictures. See video.h.
#include "runtime/video.h"

#include <ctype.h>
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "runtime/file.h"
#include "runtime/video_parts.h"

#ifndef PV_LIB_DIR
#define PV_LIB_DIR "" // where the build keeps libpvdm_video.so
#endif

static const int64_t max_bytes = (int64_t)1 << 36; // of a video in memory

bool pv_video_new(PvVideo *video, int64_t frames, int width, int height, double rate,
                  PvError *error)
{
    *video = (PvVideo){0};
    if (frames < 1 || width < 1 || height < 1 || width > PV_MAX_IMAGE || height > PV_MAX_IMAGE ||
        frames > max_bytes / ((int64_t)width * height * 3)) {
        return pv_error(error, PV_WRONG, "a video of %lld frames of %d x %d pixels",
                        (long long)frames, width, height);
    }
    video->rgb =
        pv_try_alloc((size_t)frames * (size_t)width * (size_t)height * 3, "a video", error);
    if (!video->rgb)
        return false;
    video->frames = frames;
    video->width = width;
    video->height = height;
    video->rate = rate;
    return true;
}

void pv_video_free(PvVideo *video)
{
    free(video->rgb);
    *video = (PvVideo){0};
}

// ---- the plug-in ----

static pthread_once_t plugin_once = PTHREAD_ONCE_INIT;
static const PvVideoPlugin *plugin;
static char plugin_path[4096], plugin_trouble[1024];

// Opens a candidate; false where there is none, or it cannot be used (and says so).
static bool try_plugin(const char *folder, const char *name)
{
    snprintf(plugin_path, sizeof plugin_path, "%s%s%s", folder, *folder ? "/" : "", name);
    if (access(plugin_path, F_OK) != 0)
        return false;
    void *library = dlopen(plugin_path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        snprintf(plugin_trouble, sizeof plugin_trouble, "%.1000s",
                 reason ? reason : "it cannot be opened");
        return false;
    }
    const PvVideoPlugin *table = dlsym(library, PV_VIDEO_PLUGIN_SYMBOL);
    if (table && table->version == PV_VIDEO_PLUGIN_VERSION) {
        plugin = table;
        return true;
    }
    snprintf(plugin_trouble, sizeof plugin_trouble, "%.900s belongs to another version",
             plugin_path);
    dlclose(library);
    return false;
}

static void find_plugin(void)
{
    static const char file[] = "libpvdm_video.so";
    char folder[4096], lib[4200];
    snprintf(plugin_trouble, sizeof plugin_trouble, "%s was not found", file);
    const char *chosen = getenv("PVDM_VIDEO_PLUGIN");
    if (chosen && *chosen) {
        if (!try_plugin("", chosen) && access(chosen, F_OK) != 0)
            snprintf(plugin_trouble, sizeof plugin_trouble, "%s does not exist", chosen);
        return;
    }
    ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (length > 0) {
        folder[length] = 0;
        char *slash = strrchr(folder, '/');
        if (slash)
            *slash = 0;
        snprintf(lib, sizeof lib, "%s/lib", folder);
        if (try_plugin(folder, file) || try_plugin(lib, file))
            return;
    }
    if (*PV_LIB_DIR)
        try_plugin(PV_LIB_DIR, file);
}

const PvVideoPlugin *pv_video_table(PvError *error)
{
    pthread_once(&plugin_once, find_plugin);
    if (plugin)
        return plugin;
    pv_error(error, PV_MACHINE,
             "video files need the plug-in libpvdm_video.so and FFmpeg's "
             "libraries: %s",
             plugin_trouble);
    pv_error_hint(
        error, "install FFmpeg 5 or newer (Debian: libavformat59 libavcodec59 libswscale6), "
               "put the plug-in beside the executable or name it in PVDM_VIDEO_PLUGIN; folders of "
               "pictures work without");
    return NULL;
}

const char *pv_video_plugin(PvError *error)
{
    return pv_video_table(error) ? plugin_path : NULL;
}

// ---- kinds of files ----

static bool has_one_ending(const char *path, const char *const *endings)
{
    for (; *endings; endings++) {
        if (pv_has_ending(path, *endings))
            return true;
    }
    return false;
}

bool pv_is_video_file(const char *path)
{
    static const char *const endings[] = {".mp4",  ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg",
                                          ".mpeg", ".gif", ".wmv", ".flv",  ".ogv", ".y4m", NULL};
    return has_one_ending(path, endings);
}

bool pv_is_image_file(const char *path)
{
    static const char *const endings[] = {".png", ".jpg", ".jpeg", NULL};
    return has_one_ending(path, endings);
}

int pv_natural_order(const char *a, const char *b)
{
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            while (*a == '0' && isdigit((unsigned char)a[1]))
                a++;
            while (*b == '0' && isdigit((unsigned char)b[1]))
                b++;
            size_t i = strspn(a, "0123456789"), k = strspn(b, "0123456789");
            if (i != k)
                return i < k ? -1 : 1;
            int way = strncmp(a, b, i);
            if (way)
                return way;
            a += i;
            b += k;
        } else {
            if (*a != *b)
                return (uint8_t)*a < (uint8_t)*b ? -1 : 1;
            a++;
            b++;
        }
    }
    return (*a != 0) - (*b != 0);
}

// ---- reading ----

// A video that grows frame by frame.
typedef struct {
    PvVideo *video;
    int64_t capacity;            // frames there is room for
    int crop_width, crop_height; // 0: as it is
} Sink;

// Adds a frame. false without an error: its size is another than the first one's.
static bool add_frame(Sink *sink, const uint8_t *rgb, int width, int height, PvError *error)
{
    PvVideo *video = sink->video;
    bool crop = sink->crop_width > 0;
    if (video->frames == 0) {
        video->width = crop ? sink->crop_width : width;
        video->height = crop ? sink->crop_height : height;
    }
    if (!crop && (width != video->width || height != video->height))
        return false;
    int64_t size = (int64_t)video->width * video->height * 3;
    if (video->frames == sink->capacity) {
        int64_t wanted = sink->capacity ? sink->capacity * 2 : 32;
        uint8_t *grown =
            wanted > max_bytes / size ? NULL : realloc(video->rgb, (size_t)(wanted * size));
        if (!grown) {
            char text[32];
            return pv_error(error, PV_MACHINE, "not enough memory: %s for a video",
                            pv_size_text(text, (double)wanted * (double)size));
        }
        video->rgb = grown;
        sink->capacity = wanted;
    }
    uint8_t *to = video->rgb + video->frames * size;
    if (crop)
        pv_crop_resize(rgb, width, height, to, video->width, video->height);
    else
        memcpy(to, rgb, (size_t)size);
    video->frames++;
    return true;
}

static bool read_file(const char *path, int64_t limit, Sink *sink, PvError *error)
{
    char message[256] = "";
    const PvVideoPlugin *table = pv_video_table(error);
    if (!table)
        return false;
    if (access(path, R_OK) != 0)
        return pv_error_errno(error, "cannot read %s", path);
    PvDecoder *decoder = table->open(path, message, sizeof message);
    if (!decoder)
        return pv_error(error, PV_WRONG, "%s is not a readable video: %s", path, message);
    int64_t claimed;
    const uint8_t *rgb;
    int width, height, got = 0;
    table->info(decoder, &sink->video->rate, &claimed);
    while (limit == 0 || sink->video->frames < limit) {
        got = table->next(decoder, &rgb, &width, &height, message, sizeof message);
        if (got <= 0 || !add_frame(sink, rgb, width, height, error))
            break;
    }
    table->close(decoder);
    if (error->text)
        return false;
    if (sink->video->frames > 0)
        return true;
    return pv_error(error, PV_WRONG, "%s is not a readable video: %s", path,
                    got < 0 ? message : "it has no frames");
}

static int compare_natural(const void *a, const void *b)
{
    return pv_natural_order(*(char *const *)a, *(char *const *)b);
}

static bool read_folder(const char *path, int64_t limit, Sink *sink, PvError *error)
{
    char **names;
    size_t count;
    if (!pv_list_folder(path, &names, &count, error))
        return false;
    if (count > 1)
        qsort(names, count, sizeof *names, compare_natural);
    for (size_t i = 0; i < count && !error->text; i++) {
        if (!pv_is_image_file(names[i]) || names[i][0] == '.')
            continue;
        if (limit > 0 && sink->video->frames == limit)
            break;
        char *file = pv_join(path, names[i]);
        PvImage image;
        if (pv_image_read(file, &image, error)) {
            if (!add_frame(sink, image.rgb, image.width, image.height, error) && !error->text) {
                pv_error(error, PV_WRONG, "%s has %d x %d pixels, the pictures before it %d x %d",
                         file, image.width, image.height, sink->video->width, sink->video->height);
            }
            pv_image_free(&image);
        }
        free(file);
    }
    pv_names_free(names, count);
    if (error->text)
        return false;
    return sink->video->frames > 0 || pv_error(error, PV_WRONG, "%s has no pictures in it", path);
}

bool pv_video_read(const char *path, int crop_width, int crop_height, int64_t limit, PvVideo *video,
                   PvError *error)
{
    *video = (PvVideo){0};
    Sink sink = {.video = video, .crop_width = crop_width, .crop_height = crop_height};
    bool fine;
    if (pv_is_folder(path)) {
        fine = read_folder(path, limit, &sink, error);
    } else if (pv_is_image_file(path)) {
        PvImage image;
        fine = pv_image_read(path, &image, error);
        if (fine) {
            fine = add_frame(&sink, image.rgb, image.width, image.height, error);
            pv_image_free(&image);
        }
    } else {
        fine = read_file(path, limit, &sink, error);
    }
    if (!fine)
        pv_video_free(video);
    return fine;
}

// ---- pixels and reals ----

void pv_video_to_reals(const PvVideo *video, int64_t first, int64_t count, PvReal *out)
{
    int64_t plane = (int64_t)video->width * video->height;
    for (int64_t frame = 0; frame < count; frame++) {
        const uint8_t *from = video->rgb + (first + frame) * plane * 3;
        for (int64_t c = 0; c < 3; c++) {
            PvReal *to = out + (c * count + frame) * plane;
            for (int64_t i = 0; i < plane; i++)
                to[i] = (PvReal)from[3 * i + c] / (PvReal)127.5 - 1;
        }
    }
}

bool pv_video_from_reals(PvVideo *video, const PvReal *pixels, int64_t frames, int height,
                         int width, double rate, PvError *error)
{
    if (!pv_video_new(video, frames, width, height, rate, error))
        return false;
    int64_t plane = (int64_t)width * height;
    for (int64_t frame = 0; frame < frames; frame++) {
        uint8_t *to = video->rgb + frame * plane * 3;
        for (int64_t c = 0; c < 3; c++) {
            const PvReal *from = pixels + (c * frames + frame) * plane;
            for (int64_t i = 0; i < plane; i++) {
                double value = ((double)from[i] + 1) * 127.5;
                to[3 * i + c] = (uint8_t)lrint(value > 255 ? 255 : value > 0 ? value : 0); // NaN: 0
            }
        }
    }
    return true;
}
