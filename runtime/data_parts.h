// What the files of the data sets share: data.c (samples), data_files.c (what is in a folder),
// data_pack.c (packed files).
#ifndef PVDM_DATA_PARTS_H
#define PVDM_DATA_PARTS_H

#include "runtime/data.h"
#include "runtime/video.h"

typedef struct {
    char *name;            // relative to the data set
    char *path;            // file or folder of pictures; NULL in a packed file
    int64_t label;         // number of its class
    int64_t first, frames; // in a packed file
    bool bad;              // damaged or too short; set once
} Source;

typedef struct {
    Source *items;
    size_t count, capacity;
    int64_t classes;
} SourceList; // starts as {0}

/* data_files.c */
bool pv_sources_find(const PvDataOptions *options, SourceList *list, PvError *error);
void pv_sources_add(SourceList *list, const char *name, const char *path);
// Numbers the classes: first folders of the names, in sorted order.
void pv_sources_label(SourceList *list);
void pv_sources_free(SourceList *list);

/* data_pack.c */
bool pv_is_packed(const char *path);
// The list and the tensor of frames, uint8 [n, h, w, 3] (a reference).
bool pv_packed_open(const char *path, SourceList *list, PvTensor **frames, PvError *error);

#endif
