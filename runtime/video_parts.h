// What video.c (in), video_out.c and data.c share.
#ifndef PVDM_VIDEO_PARTS_RUNTIME_H
#define PVDM_VIDEO_PARTS_RUNTIME_H

#include "runtime/video.h"
#include "runtime/video/plugin.h"

// The plug-in's table, or NULL with an error (PV_MACHINE).
const PvVideoPlugin *pv_video_table(PvError *error);
// strcmp, but numbers in names count as numbers: frame2 before frame10.
int pv_natural_order(const char *a, const char *b);

#endif
