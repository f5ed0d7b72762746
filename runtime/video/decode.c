// Decoding with FFmpeg: frames of the first video stream as RGB24. See plugin.h.
//
// Packets that the decoder refuses are passed over, as players do; a file of which nothing can be
// decoded is damaged. Only local files are opened, whatever a playlist inside says.
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libswscale/swscale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/video/parts.h"

struct PvDecoder {
    AVFormatContext *format;
    AVCodecContext *codec;
    int stream;
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *scale;
    uint8_t *rgb; // [height, width, 3] of the present frame
    int width, height;
    int64_t frames; // decoded so far
    bool flushing;
    int last_error;
};

void pv_video_say(char *message, size_t size, const char *what, int code)
{
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    if (code < 0)
        av_strerror(code, text, sizeof text);
    snprintf(message, size, "%s%s%s", what, code < 0 ? ": " : "", text);
}

void pv_decode_close(PvDecoder *decoder)
{
    if (!decoder)
        return;
    sws_freeContext(decoder->scale);
    av_frame_free(&decoder->frame);
    av_packet_free(&decoder->packet);
    avcodec_free_context(&decoder->codec);
    avformat_close_input(&decoder->format);
    free(decoder->rgb);
    free(decoder);
}

// Opens file and codec; 0, or FFmpeg's error and in *what the step that failed.
static int open_file(PvDecoder *decoder, const char *path, const char **what)
{
    size_t length = strlen(path) + sizeof "file:";
    char *url = malloc(length);
    AVDictionary *options = NULL;
    const AVCodec *codec = NULL;
    if (!url)
        return AVERROR(ENOMEM);
    snprintf(url, length, "file:%s", path);
    av_dict_set(&options, "protocol_whitelist", "file", 0);
    *what = "cannot open it";
    int code = avformat_open_input(&decoder->format, url, NULL, &options);
    av_dict_free(&options);
    free(url);
    if (code < 0)
        return code;
    *what = "no video in it";
    if ((code = avformat_find_stream_info(decoder->format, NULL)) < 0)
        return code;
    code = av_find_best_stream(decoder->format, AVMEDIA_TYPE_VIDEO, -1, -1, &codec, 0);
    if (code < 0)
        return code;
    decoder->stream = code;
    for (unsigned i = 0; i < decoder->format->nb_streams; i++) {
        if ((int)i != decoder->stream)
            decoder->format->streams[i]->discard = AVDISCARD_ALL;
    }
    *what = "its codec cannot be opened";
    decoder->codec = avcodec_alloc_context3(codec);
    if (!decoder->codec)
        return AVERROR(ENOMEM);
    const AVCodecParameters *parameters = decoder->format->streams[decoder->stream]->codecpar;
    if ((code = avcodec_parameters_to_context(decoder->codec, parameters)) < 0)
        return code;
    decoder->codec->thread_count = 1; // callers decode several files at a time
    return avcodec_open2(decoder->codec, codec, NULL);
}

PvDecoder *pv_decode_open(const char *path, char *message, size_t size)
{
    const char *what = "";
    PvDecoder *decoder = calloc(1, sizeof *decoder);
    int code = AVERROR(ENOMEM);
    if (decoder) {
        decoder->frame = av_frame_alloc();
        decoder->packet = av_packet_alloc();
        if (decoder->frame && decoder->packet)
            code = open_file(decoder, path, &what);
    }
    if (code >= 0)
        return decoder;
    pv_video_say(message, size, what, code);
    pv_decode_close(decoder);
    return NULL;
}

void pv_decode_info(const PvDecoder *decoder, double *rate, int64_t *frames)
{
    AVStream *stream = decoder->format->streams[decoder->stream];
    AVRational guess = av_guess_frame_rate(decoder->format, stream, NULL);
    *rate = guess.num > 0 && guess.den > 0 ? av_q2d(guess) : 0;
    *frames = stream->nb_frames > 0 ? stream->nb_frames : 0;
}

// The present frame as RGB in decoder->rgb. 0 or FFmpeg's error.
static int convert(PvDecoder *decoder)
{
    const AVFrame *frame = decoder->frame;
    int code = av_image_check_size((unsigned)frame->width, (unsigned)frame->height, 0, NULL);
    if (code < 0)
        return code;
    if (frame->width != decoder->width || frame->height != decoder->height) {
        free(decoder->rgb);
        decoder->width = decoder->height = 0;
        // swscale may write a few bytes beyond the last row
        decoder->rgb = malloc((size_t)frame->width * (size_t)frame->height * 3 + 64);
        if (!decoder->rgb)
            return AVERROR(ENOMEM);
        decoder->width = frame->width;
        decoder->height = frame->height;
    }
    decoder->scale = sws_getCachedContext(
        decoder->scale, frame->width, frame->height, frame->format, frame->width, frame->height,
        AV_PIX_FMT_RGB24, SWS_BILINEAR | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, NULL, NULL, NULL);
    if (!decoder->scale)
        return AVERROR(EINVAL);
    int matrix = frame->colorspace == AVCOL_SPC_BT709 ? SWS_CS_ITU709 : SWS_CS_DEFAULT;
    int full = frame->color_range == AVCOL_RANGE_JPEG;
    sws_setColorspaceDetails(decoder->scale, sws_getCoefficients(matrix), full,
                             sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16, 1 << 16);
    uint8_t *planes[4] = {decoder->rgb};
    int strides[4] = {decoder->width * 3};
    return sws_scale(decoder->scale, (const uint8_t *const *)frame->data, frame->linesize, 0,
                     frame->height, planes, strides);
}

// Gives the decoder its next packet, or the end. false: there is nothing left to give.
static bool feed(PvDecoder *decoder)
{
    if (decoder->flushing)
        return false;
    int code = av_read_frame(decoder->format, decoder->packet);
    if (code < 0) {
        if (code != AVERROR_EOF)
            decoder->last_error = code;
        decoder->flushing = true;
        avcodec_send_packet(decoder->codec, NULL);
        return true;
    }
    if (decoder->packet->stream_index == decoder->stream) {
        code = avcodec_send_packet(decoder->codec, decoder->packet);
        if (code < 0 && code != AVERROR(EAGAIN))
            decoder->last_error = code;
    }
    av_packet_unref(decoder->packet);
    return true;
}

int pv_decode_next(PvDecoder *decoder, const uint8_t **rgb, int *width, int *height, char *message,
                   size_t size)
{
    for (;;) {
        int code = avcodec_receive_frame(decoder->codec, decoder->frame);
        if (code >= 0)
            code = convert(decoder);
        if (code >= 0)
            break;
        if (code != AVERROR(EAGAIN) && code != AVERROR_EOF)
            decoder->last_error = code;
        if (code == AVERROR_EOF || !feed(decoder)) {
            if (decoder->frames > 0)
                return 0;
            pv_video_say(message, size, "no frame can be decoded", decoder->last_error);
            return -1;
        }
    }
    av_frame_unref(decoder->frame);
    decoder->frames++;
    *rgb = decoder->rgb;
    *width = decoder->width;
    *height = decoder->height;
    return 1;
}
