// Files: mapped or read whole, and replaced atomically. A new file is written beside its final
// path, flushed to the disk, and renamed; until then, and after any failure, the old file is there
// unchanged.
#ifndef PVDM_FILE_H
#define PVDM_FILE_H

#include <stdint.h>

#include "runtime/error.h"

typedef struct PvFile PvFile;

PvFile *pv_file_create(const char *path, PvError *error); // NULL: error
// Errors are kept and told by pv_file_commit; false after the first, so that loops can stop.
bool pv_file_write(PvFile *file, const void *data, size_t size);
bool pv_file_rewrite(PvFile *file, uint64_t offset, const void *data, size_t size); // of written
// Flush, fsync, rename, fsync of the folder. Frees the object, whatever the result.
bool pv_file_commit(PvFile *file, PvError *error);
void pv_file_abandon(PvFile *file); // removes the temporary; NULL fine
bool pv_file_replace(const char *path, const void *data, size_t size, PvError *error);

// A read-only mapping with references.
typedef struct {
    int refs;
    const uint8_t *data; // size bytes; not NULL for an empty file
    size_t size;
} PvMapping;
PvMapping *pv_mapping_open(const char *path, PvError *error);
PvMapping *pv_mapping_hold(PvMapping *mapping);
void pv_mapping_drop(void *mapping); // fits PvTensor.release

// The whole file, with a 0 byte after it; at most limit bytes (more is an error). malloc'ed.
char *pv_read_file(const char *path, size_t limit, size_t *size, PvError *error);
bool pv_make_folder(const char *path, PvError *error); // with its parents
bool pv_is_folder(const char *path);
bool pv_path_exists(const char *path);
char *pv_join(const char *folder, const char *name);      // "folder/name", malloc'ed
const char *pv_base_name(const char *path);               // after the last '/'
bool pv_has_ending(const char *path, const char *ending); // ".mp4", any case
// Names in a folder but "." and "..", sorted by bytes; freed by pv_names_free.
bool pv_list_folder(const char *path, char ***names, size_t *count, PvError *error);
void pv_names_free(char **names, size_t count);

#endif
