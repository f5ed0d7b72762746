// Data sets: which clip sample i of a run is, and its pixels.
//
// Sample i is a function of (seed, i): epoch e = i / n goes through all n videos in an order of
// its own, and the start of the window is drawn by (seed, i). So a run goes on from its data
// position alone, and batches do not depend on threads. Sources:
//   clips   [b, 3, t, h, w]   t consecutive frames at a random start
//   images  [b, 3, h, w]      one random frame of a video, or an image of a folder of images
//   labels  int [b]           number of the class: the video's first folder, in sorted order
// A data set is a folder (searched through) or a packed file. In a folder a video is a video file,
// or a folder of pictures; a folder with `trainlist01.txt` / `testlist01.txt` (or
// ucfTrainTestlist/...) is UCF-101's, and the list is used; folders `train` / `test` likewise.
// Of a video that is more than 4 GiB when decoded at this size, the start is used.
// Pixels: middle square, bilinear to h x w, p / 127.5 - 1.
// pad: a video shorter than t but not shorter than t / 2 gives t / 2 frames of -1, then a window of
// t / 2 frames. Shorter videos and damaged ones are named once on stderr, counted, and the next
// video of the epoch is taken instead.
#ifndef PVDM_DATA_H
#define PVDM_DATA_H

#include "runtime/tensor.h"

typedef struct {
    const char *path;          // folder or packed file
    const char *list;          // file with one relative path a line, or NULL
    const char *split;         // "train" (NULL), "test", "all"
    const char *source;        // "clips", "images", "labels"
    int frames, height, width; // of a sample
    bool pad;
    uint64_t seed;
    bool in_order;       // evaluation: sample i is video i % n, from its start
    int64_t cache_bytes; // of decoded videos; 0: 1 GiB
} PvDataOptions;

typedef struct PvData PvData;

// What a stage asks for: source, pad and sizes are set, the rest is left.
void pv_data_stage_options(const PvStage *stage, PvDataOptions *options);
PvData *pv_data_open(const PvDataOptions *options, PvError *error);
void pv_data_close(PvData *data); // NULL is fine

int64_t pv_data_videos(const PvData *data);  // videos in the set
int64_t pv_data_skipped(const PvData *data); // found damaged or too short so far
const char *pv_data_video_name(const PvData *data, int64_t video);
int64_t pv_data_classes(const PvData *data); // folders of the first level, at least 1

// Samples first .. first + count - 1 into out: PvReal [count, 3, t, h, w] (labels: int64 [count]).
bool pv_data_fill(PvData *data, int64_t first, int64_t count, void *out, PvError *error);

// The same in the background, batch after batch: start says where, next gives the batch at the
// present position and moves on by `batch`. The position is what a checkpoint keeps.
bool pv_data_start(PvData *data, int64_t position, int64_t batch, PvError *error);
bool pv_data_next(PvData *data, void *out, PvError *error);
int64_t pv_data_position(const PvData *data);

// Reads every video of a data set once, cropped and resized, into one packed file (a safetensors
// file: frames uint8 [n, h, w, 3], starts int64 [videos + 1], names). progress (or NULL) is called
// after each video.
typedef void PvPackProgress(void *context, int64_t done, int64_t total);
bool pv_data_pack(const PvDataOptions *options, const char *path, PvPackProgress *progress,
                  void *context, PvError *error);

#endif
