// The table of the plug-in: what an executable finds in libpvdm_video.so. See plugin.h.
#include "runtime/video/plugin.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avutil.h>
#include <libavutil/log.h>
#include <libswscale/swscale.h>

#include "runtime/video/parts.h"

__attribute__((visibility("default"))) extern const PvVideoPlugin pv_video_plugin_table;

const PvVideoPlugin pv_video_plugin_table = {
    .version = PV_VIDEO_PLUGIN_VERSION,
    .libraries = "libavformat " AV_STRINGIFY(LIBAVFORMAT_VERSION) ", libavcodec " AV_STRINGIFY(
        LIBAVCODEC_VERSION),
    .open = pv_decode_open,
    .info = pv_decode_info,
    .next = pv_decode_next,
    .close = pv_decode_close,
    .create = pv_encode_open,
    .add = pv_encode_add,
    .finish = pv_encode_finish,
};

// FFmpeg's own chatter stays off the terminal; errors come back as values.
__attribute__((constructor)) static void be_quiet(void)
{
    av_log_set_level(AV_LOG_QUIET);
}
