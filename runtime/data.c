// Samples of a data set: which video and which frames sample i is, decoded videos kept for a while,
// batches made ready in the background. See data.h.
//
// Choice: the videos of an epoch are gone through in an order that is a keyed permutation, a
// Feistel network over Philox on the next even power of two, walked until it lands inside (Black
// and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). So nothing is shuffled in
// memory, and sample i needs no history. A video that cannot be used is replaced by the next one in
// that order; which ones those are is a property of the files, so batches stay reproducible.
#include "runtime/data.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/data_parts.h"
#include "runtime/file.h"
#include "runtime/random.h"

static const int64_t max_video = (int64_t)1 << 32; // bytes of a decoded video

typedef enum { CLIPS, IMAGES, LABELS } Kind;

// A decoded video, shared by the cache and by those who read it.
typedef struct {
    PvVideo video;
    int64_t source, bytes;
    uint64_t used; // when it was last asked for
    int refs;
} Clip;

struct PvData {
    PvDataOptions options; // path, list, split: not kept
    Kind kind;
    SourceList list;
    PvTensor *packed; // uint8 [n, h, w, 3], or NULL
    int64_t skipped;

    pthread_mutex_t lock; // of all below, of `bad` and `skipped`
    Clip **cache;
    size_t cached, cache_capacity;
    int64_t cache_bytes;
    uint64_t clock;

    // the background: one batch ahead
    pthread_t thread;
    pthread_cond_t changed;
    bool running, stop, ready; // ready: `next` holds the batch at `position`
    int64_t position, batch;
    void *next;
    PvError trouble; // of the batch that is ready
};

// ---- opening ----

void pv_data_stage_options(const PvStage *stage, PvDataOptions *options)
{
    const PvType *type = &stage->data_type;
    int rank = type->rank;
    options->source = stage->source;
    options->pad = stage->pad;
    options->frames = rank == 5 ? (int)type->dim[2] : 1;
    options->height = rank >= 4 ? (int)type->dim[rank - 2] : (int)stage->height;
    options->width = rank >= 4 ? (int)type->dim[rank - 1] : (int)stage->width;
}

static bool find_kind(const char *source, Kind *kind, PvError *error)
{
    if (!source || !strcmp(source, "clips"))
        *kind = CLIPS;
    else if (!strcmp(source, "images"))
        *kind = IMAGES;
    else if (!strcmp(source, "labels"))
        *kind = LABELS;
    else
        return pv_error(error, PV_WRONG, "there is no data source '%s'", source);
    return true;
}

PvData *pv_data_open(const PvDataOptions *options, PvError *error)
{
    Kind kind = CLIPS;
    if (!find_kind(options->source, &kind, error))
        return NULL;
    if (kind != LABELS && (options->frames < 1 || options->height < 1 || options->width < 1 ||
                           options->height > PV_MAX_IMAGE || options->width > PV_MAX_IMAGE)) {
        pv_error(error, PV_WRONG, "samples of %d frames of %d x %d pixels", options->frames,
                 options->width, options->height);
        return NULL;
    }
    PvData *data = pv_alloc(sizeof *data);
    data->options = *options;
    data->options.path = data->options.list = data->options.split = data->options.source = NULL;
    if (data->options.cache_bytes <= 0)
        data->options.cache_bytes = (int64_t)1 << 30;
    data->kind = kind;
    pthread_mutex_init(&data->lock, NULL);
    pthread_cond_init(&data->changed, NULL);
    bool fine = pv_is_packed(options->path)
                    ? pv_packed_open(options->path, &data->list, &data->packed, error)
                    : pv_sources_find(options, &data->list, error);
    if (fine)
        return data;
    pv_data_close(data);
    return NULL;
}

static void drop_clip(Clip *clip)
{
    if (__atomic_sub_fetch(&clip->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    pv_video_free(&clip->video);
    free(clip);
}

static void stop_thread(PvData *data)
{
    if (!data->running)
        return;
    pthread_mutex_lock(&data->lock);
    data->stop = true;
    pthread_cond_broadcast(&data->changed);
    pthread_mutex_unlock(&data->lock);
    pthread_join(data->thread, NULL);
    data->running = data->stop = data->ready = false;
    free(data->next);
    data->next = NULL;
    pv_error_free(&data->trouble);
}

void pv_data_close(PvData *data)
{
    if (!data)
        return;
    stop_thread(data);
    for (size_t i = 0; i < data->cached; i++)
        drop_clip(data->cache[i]);
    free(data->cache);
    pv_sources_free(&data->list);
    pv_tensor_drop(data->packed);
    pthread_mutex_destroy(&data->lock);
    pthread_cond_destroy(&data->changed);
    free(data);
}

int64_t pv_data_videos(const PvData *data)
{
    return (int64_t)data->list.count;
}

int64_t pv_data_skipped(const PvData *data)
{
    return __atomic_load_n(&data->skipped, __ATOMIC_RELAXED);
}

const char *pv_data_video_name(const PvData *data, int64_t video)
{
    return video >= 0 && video < (int64_t)data->list.count ? data->list.items[video].name : NULL;
}

int64_t pv_data_classes(const PvData *data)
{
    return data->list.classes;
}

// ---- decoded videos ----

// The cached video, moved to the front, with a reference; NULL: not there. Under the lock.
static Clip *look_up(PvData *data, int64_t source)
{
    for (size_t i = 0; i < data->cached; i++) {
        if (data->cache[i]->source != source)
            continue;
        data->cache[i]->used = ++data->clock;
        __atomic_add_fetch(&data->cache[i]->refs, 1, __ATOMIC_RELAXED);
        return data->cache[i];
    }
    return NULL;
}

// Makes room for `bytes` by dropping what was unused for longest, and keeps the clip if it fits.
static void keep_clip(PvData *data, Clip *clip)
{
    if (clip->bytes > data->options.cache_bytes)
        return;
    while (data->cache_bytes + clip->bytes > data->options.cache_bytes) {
        size_t oldest = 0;
        for (size_t i = 1; i < data->cached; i++) {
            if (data->cache[i]->used < data->cache[oldest]->used)
                oldest = i;
        }
        data->cache_bytes -= data->cache[oldest]->bytes;
        drop_clip(data->cache[oldest]);
        data->cache[oldest] = data->cache[--data->cached];
    }
    data->cache = pv_grow(data->cache, &data->cache_capacity, data->cached, sizeof(Clip *));
    data->cache[data->cached++] = clip;
    data->cache_bytes += clip->bytes;
    clip->used = ++data->clock;
    __atomic_add_fetch(&clip->refs, 1, __ATOMIC_RELAXED);
}

// Tells once that a video cannot be used.
static void mark_bad(PvData *data, Source *source, const char *reason)
{
    pthread_mutex_lock(&data->lock);
    bool first = !source->bad;
    source->bad = true;
    if (first)
        __atomic_add_fetch(&data->skipped, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&data->lock);
    if (first)
        pv_warn("%s; it is skipped", reason);
}

// The decoded video with a reference. NULL: it is bad (no error), or the machine fails (error).
static Clip *load_clip(PvData *data, int64_t index, PvError *error)
{
    Source *source = &data->list.items[index];
    pthread_mutex_lock(&data->lock);
    Clip *clip = source->bad ? NULL : look_up(data, index);
    bool bad = source->bad;
    pthread_mutex_unlock(&data->lock);
    if (clip || bad)
        return clip;

    int64_t frame = (int64_t)data->options.width * data->options.height * 3;
    int64_t limit = max_video / frame; // of a very long video only the start is used
    if (limit < data->options.frames)
        limit = data->options.frames;
    clip = pv_alloc(sizeof *clip);
    clip->refs = 1;
    clip->source = index;
    if (!pv_video_read(source->path, data->options.width, data->options.height, limit, &clip->video,
                       error)) {
        free(clip);
        if (error->status == PV_MACHINE)
            return NULL;
        mark_bad(data, source, error->text);
        pv_error_free(error);
        return NULL;
    }
    clip->bytes = clip->video.frames * frame;
    pthread_mutex_lock(&data->lock);
    Clip *same = look_up(data, index); // another thread decoded it in the meantime
    if (!same)
        keep_clip(data, clip);
    pthread_mutex_unlock(&data->lock);
    if (same)
        drop_clip(clip);
    return same ? same : clip;
}

// ---- which video, which frames ----

// Place k of the order of epoch `epoch`: a permutation of 0 .. n - 1.
static int64_t permute(uint64_t seed, uint64_t epoch, int64_t k, int64_t n)
{
    uint32_t stream = pv_random_hash("data order") + (uint32_t)(epoch >> 32) * 0x9E3779B9u;
    int half = 1;
    while (half < 31 && (int64_t)1 << (2 * half) < n)
        half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, value = (uint64_t)k;
    do {
        uint64_t left = value >> half, right = value & mask;
        for (uint64_t round = 0; round < 6; round++) {
            PvBits bits = pv_random_block(seed, stream, (uint32_t)epoch, right << 8 | round);
            uint64_t mixed = left ^ (bits.word[0] & mask);
            left = right;
            right = mixed;
        }
        value = left << half | right;
    } while (value >= (uint64_t)n);
    return (int64_t)value;
}

// Frames of a sample: the first `black` ones are -1, then `count` of the video from `start` on.
typedef struct {
    int64_t black, start, count;
} Window;

// false: the video is too short.
static bool choose_window(const PvData *data, int64_t sample, int64_t frames, Window *window)
{
    int64_t wanted = data->options.frames, half = wanted / 2;
    *window = (Window){.count = wanted};
    if (frames < wanted) {
        if (!data->options.pad || wanted % 2 != 0 || frames < half)
            return false;
        window->black = wanted - half;
        window->count = half;
    }
    if (data->options.in_order)
        return true;
    PvBits bits = pv_random_block(data->options.seed, pv_random_hash("data"), 0, (uint64_t)sample);
    window->start = pv_bits_int(bits.word[0], 0, frames - window->count + 1);
    return true;
}

// ---- one sample ----

// Frames `from` [frames, h, w, 3] of the right size to reals [3, t, h, w].
static void write_sample(const PvData *data, const PvVideo *video, const Window *window,
                         PvReal *out)
{
    int64_t plane = (int64_t)data->options.height * data->options.width;
    int64_t frames = window->black + window->count;
    for (int64_t c = 0; c < 3; c++) {
        PvReal *to = out + c * frames * plane;
        for (int64_t i = 0; i < window->black * plane; i++)
            *to++ = -1;
        for (int64_t frame = window->start; frame < window->start + window->count; frame++) {
            const uint8_t *from = video->rgb + frame * plane * 3 + c;
            for (int64_t i = 0; i < plane; i++)
                *to++ = (PvReal)from[3 * i] / (PvReal)127.5 - 1;
        }
    }
}

// A window of a packed video, resized if the file has another size.
static bool read_packed(const PvData *data, const Source *source, Window *window, PvVideo *video,
                        PvError *error)
{
    int height = (int)data->packed->dim[1], width = (int)data->packed->dim[2];
    int64_t size = (int64_t)height * width * 3;
    const uint8_t *from =
        (const uint8_t *)data->packed->data + (source->first + window->start) * size;
    if (!pv_video_new(video, window->count, data->options.width, data->options.height, 0, error))
        return false;
    int64_t out_size = (int64_t)video->height * video->width * 3;
    if (height == video->height && width == video->width) {
        memcpy(video->rgb, from, (size_t)(window->count * size));
    } else {
        for (int64_t i = 0; i < window->count; i++)
            pv_crop_resize(from + i * size, width, height, video->rgb + i * out_size, video->width,
                           video->height);
    }
    window->start = 0;
    return true;
}

// Sample `sample` from one video. 1: done, 0: the video cannot be used, -1: error.
static int try_video(PvData *data, int64_t sample, int64_t index, void *out, PvError *error)
{
    Source *source = &data->list.items[index];
    Window window;
    if (data->kind == LABELS) {
        *(int64_t *)out = source->label;
        return 1;
    }
    PvVideo own = {0};
    Clip *clip = NULL;
    int64_t frames = source->frames;
    if (!data->packed) {
        clip = load_clip(data, index, error);
        if (!clip)
            return error->text ? -1 : 0;
        frames = clip->video.frames;
    }
    int result = choose_window(data, sample, frames, &window);
    if (result == 0) {
        char reason[600];
        snprintf(reason, sizeof reason, "%.500s has only %lld of %d frames", source->name,
                 (long long)frames, data->options.frames);
        mark_bad(data, source, reason);
    } else if (data->packed && !read_packed(data, source, &window, &own, error)) {
        result = -1;
    } else {
        write_sample(data, clip ? &clip->video : &own, &window, out);
    }
    pv_video_free(&own);
    if (clip)
        drop_clip(clip);
    return result;
}

static bool fill_sample(PvData *data, int64_t sample, void *out, PvError *error)
{
    int64_t n = (int64_t)data->list.count, epoch = sample / n, k = sample % n;
    for (int64_t attempt = 0; attempt < n; attempt++) {
        int64_t place = (k + attempt) % n;
        int64_t index =
            data->options.in_order ? place : permute(data->options.seed, (uint64_t)epoch, place, n);
        int result = try_video(data, sample, index, out, error);
        if (result != 0)
            return result > 0;
    }
    return pv_error(error, PV_WRONG, "none of the %lld videos can be used", (long long)n);
}

// Bytes of one sample.
static int64_t sample_size(const PvData *data)
{
    if (data->kind == LABELS)
        return sizeof(int64_t);
    return (int64_t)sizeof(PvReal) * 3 * data->options.frames * data->options.height *
           data->options.width;
}

static int decode_threads(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 4 ? 1 : cores > 16 ? 8 : (int)(cores / 2);
}

bool pv_data_fill(PvData *data, int64_t first, int64_t count, void *out, PvError *error)
{
    int64_t size = sample_size(data);
    bool fine = true;
#pragma omp parallel for schedule(dynamic) num_threads(decode_threads())
    for (int64_t i = 0; i < count; i++) {
        PvError own = {0};
        if (!__atomic_load_n(&fine, __ATOMIC_RELAXED))
            continue;
        if (fill_sample(data, first + i, (char *)out + i * size, &own))
            continue;
#pragma omp critical(pv_data_error)
        {
            if (fine)
                *error = own;
            else
                pv_error_free(&own);
            __atomic_store_n(&fine, false, __ATOMIC_RELAXED);
        }
    }
    return fine;
}

// ---- the background ----

static void *work(void *context)
{
    PvData *data = context;
    pthread_mutex_lock(&data->lock);
    while (!data->stop) {
        if (data->ready) {
            pthread_cond_wait(&data->changed, &data->lock);
            continue;
        }
        int64_t position = data->position;
        pthread_mutex_unlock(&data->lock);
        PvError trouble = {0};
        pv_data_fill(data, position, data->batch, data->next, &trouble);
        pthread_mutex_lock(&data->lock);
        data->trouble = trouble;
        data->ready = true;
        pthread_cond_broadcast(&data->changed);
    }
    pthread_mutex_unlock(&data->lock);
    return NULL;
}

bool pv_data_start(PvData *data, int64_t position, int64_t batch, PvError *error)
{
    stop_thread(data);
    data->position = position;
    data->batch = batch;
    data->next = pv_try_alloc((size_t)(batch * sample_size(data)), "a batch of data", error);
    if (!data->next)
        return false;
    int code = pthread_create(&data->thread, NULL, work, data);
    data->running = code == 0;
    return code == 0 || pv_error(error, PV_MACHINE, "no thread for the data: %s", strerror(code));
}

bool pv_data_next(PvData *data, void *out, PvError *error)
{
    pthread_mutex_lock(&data->lock);
    while (!data->ready)
        pthread_cond_wait(&data->changed, &data->lock);
    bool fine = data->trouble.text == NULL;
    if (fine) {
        memcpy(out, data->next, (size_t)(data->batch * sample_size(data)));
        data->position += data->batch;
    } else {
        *error = data->trouble;
        data->trouble = (PvError){0};
    }
    data->ready = false;
    pthread_cond_broadcast(&data->changed);
    pthread_mutex_unlock(&data->lock);
    return fine;
}

int64_t pv_data_position(const PvData *data)
{
    return data->position;
}
