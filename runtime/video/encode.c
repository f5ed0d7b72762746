// Encoding with FFmpeg: MP4 (H.264 by libx264 where it is, else MPEG-4) and GIF. See plugin.h.
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/video/parts.h"

struct PvEncoder {
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream;
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *scale; // NULL for GIF
    int width, height;        // of the frames given
    bool started;             // the file's header was written
};

static void free_encoder(PvEncoder *encoder)
{
    if (!encoder)
        return;
    sws_freeContext(encoder->scale);
    av_frame_free(&encoder->frame);
    av_packet_free(&encoder->packet);
    avcodec_free_context(&encoder->codec);
    if (encoder->format)
        avio_closep(&encoder->format->pb);
    avformat_free_context(encoder->format);
    free(encoder);
}

static const AVCodec *choose_codec(const char *format)
{
    if (!strcmp(format, "gif"))
        return avcodec_find_encoder(AV_CODEC_ID_GIF);
    const AVCodec *codec = avcodec_find_encoder_by_name("libx264");
    return codec ? codec : avcodec_find_encoder(AV_CODEC_ID_MPEG4);
}

static int open_codec(PvEncoder *encoder, const AVCodec *codec, bool gif, double rate)
{
    AVCodecContext *context = encoder->codec = avcodec_alloc_context3(codec);
    if (!context)
        return AVERROR(ENOMEM);
    // 4:2:0 wants even sizes: an odd one is stretched by one pixel
    context->width = gif ? encoder->width : (encoder->width + 1) / 2 * 2;
    context->height = gif ? encoder->height : (encoder->height + 1) / 2 * 2;
    context->pix_fmt = gif ? AV_PIX_FMT_PAL8 : AV_PIX_FMT_YUV420P;
    context->framerate = av_d2q(rate, 60000);
    context->time_base = av_inv_q(context->framerate);
    if (!strcmp(codec->name, "libx264")) {
        av_opt_set(context->priv_data, "crf", "16", 0);
        av_opt_set(context->priv_data, "preset", "medium", 0);
    } else if (!gif) {
        context->flags |= AV_CODEC_FLAG_QSCALE;
        context->global_quality = 2 * FF_QP2LAMBDA;
    }
    if (encoder->format->oformat->flags & AVFMT_GLOBALHEADER)
        context->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    return avcodec_open2(context, codec, NULL);
}

static int open_frame(PvEncoder *encoder, bool gif)
{
    encoder->frame = av_frame_alloc();
    encoder->packet = av_packet_alloc();
    if (!encoder->frame || !encoder->packet)
        return AVERROR(ENOMEM);
    encoder->frame->format = encoder->codec->pix_fmt;
    encoder->frame->width = encoder->codec->width;
    encoder->frame->height = encoder->codec->height;
    encoder->frame->pts = 0;
    if (!gif) {
        encoder->scale =
            sws_getContext(encoder->width, encoder->height, AV_PIX_FMT_RGB24, encoder->codec->width,
                           encoder->codec->height, AV_PIX_FMT_YUV420P,
                           SWS_BILINEAR | SWS_ACCURATE_RND, NULL, NULL, NULL);
        if (!encoder->scale)
            return AVERROR(ENOMEM);
    }
    return av_frame_get_buffer(encoder->frame, 0);
}

static int open_all(PvEncoder *encoder, const char *path, const char *format, double rate,
                    const char **what)
{
    bool gif = !strcmp(format, "gif");
    const AVCodec *codec = choose_codec(format);
    *what = "FFmpeg has no encoder for it";
    if (!codec)
        return AVERROR_ENCODER_NOT_FOUND;
    int code = avformat_alloc_output_context2(&encoder->format, NULL, format, path);
    if (code < 0)
        return code;
    *what = "its encoder cannot be opened";
    if ((code = open_codec(encoder, codec, gif, rate)) < 0)
        return code;
    if ((code = open_frame(encoder, gif)) < 0)
        return code;
    encoder->stream = avformat_new_stream(encoder->format, NULL);
    if (!encoder->stream)
        return AVERROR(ENOMEM);
    encoder->stream->time_base = encoder->codec->time_base;
    encoder->stream->avg_frame_rate = encoder->codec->framerate;
    code = avcodec_parameters_from_context(encoder->stream->codecpar, encoder->codec);
    if (code < 0)
        return code;
    *what = "cannot write it";
    size_t length = strlen(path) + sizeof "file:";
    char *url = malloc(length);
    if (!url)
        return AVERROR(ENOMEM);
    snprintf(url, length, "file:%s", path);
    code = avio_open(&encoder->format->pb, url, AVIO_FLAG_WRITE);
    free(url);
    if (code < 0)
        return code;
    code = avformat_write_header(encoder->format, NULL);
    encoder->started = code >= 0;
    return code;
}

PvEncoder *pv_encode_open(const char *path, const char *format, int width, int height, double rate,
                          char *message, size_t size)
{
    const char *what = "";
    int code = AVERROR(ENOMEM);
    PvEncoder *encoder = calloc(1, sizeof *encoder);
    if (encoder) {
        encoder->width = width;
        encoder->height = height;
        code = av_image_check_size((unsigned)width, (unsigned)height, 0, NULL);
        if (code >= 0)
            code = open_all(encoder, path, format, rate, &what);
    }
    if (code >= 0)
        return encoder;
    pv_video_say(message, size, what, code);
    free_encoder(encoder);
    return NULL;
}

// Sends a frame (NULL: the end) and writes what comes out.
static int push(PvEncoder *encoder, const AVFrame *frame)
{
    int code = avcodec_send_frame(encoder->codec, frame);
    while (code >= 0) {
        code = avcodec_receive_packet(encoder->codec, encoder->packet);
        if (code == AVERROR(EAGAIN) || code == AVERROR_EOF)
            return 0;
        if (code < 0)
            break;
        if (encoder->packet->duration == 0)
            encoder->packet->duration = 1;
        av_packet_rescale_ts(encoder->packet, encoder->codec->time_base,
                             encoder->stream->time_base);
        encoder->packet->stream_index = encoder->stream->index;
        code = av_interleaved_write_frame(encoder->format, encoder->packet);
    }
    return code;
}

bool pv_encode_add(PvEncoder *encoder, const uint8_t *rgb, char *message, size_t size)
{
    AVFrame *frame = encoder->frame;
    int code = av_frame_make_writable(frame);
    if (code >= 0 && encoder->scale) {
        const uint8_t *planes[4] = {rgb};
        int strides[4] = {encoder->width * 3};
        code = sws_scale(encoder->scale, planes, strides, 0, encoder->height, frame->data,
                         frame->linesize);
    } else if (code >= 0) {
        pv_make_palette(rgb, (int64_t)encoder->width * encoder->height,
                        (uint32_t *)(void *)frame->data[1]);
        pv_apply_palette(rgb, encoder->width, encoder->height, (uint32_t *)(void *)frame->data[1],
                         frame->data[0], frame->linesize[0]);
    }
    if (code >= 0)
        code = push(encoder, frame);
    frame->pts++;
    if (code < 0)
        pv_video_say(message, size, "cannot encode a frame", code);
    return code >= 0;
}

bool pv_encode_finish(PvEncoder *encoder, char *message, size_t size)
{
    int code = push(encoder, NULL);
    if (encoder->started) {
        int end = av_write_trailer(encoder->format);
        if (code >= 0)
            code = end;
    }
    if (code >= 0 && encoder->format->pb)
        code = encoder->format->pb->error;
    if (encoder->format->pb) {
        int end = avio_closep(&encoder->format->pb);
        if (code >= 0)
            code = end;
    }
    if (code < 0)
        pv_video_say(message, size, "cannot write it", code);
    free_encoder(encoder);
    return code >= 0;
}
