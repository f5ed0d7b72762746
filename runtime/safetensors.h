// safetensors files: an 8-byte little-endian header size, a JSON header, raw little-endian data.
// Reading maps the file and checks everything before a tensor is made; writing streams from the
// caller's memory and replaces the file atomically.
#ifndef PVDM_SAFETENSORS_H
#define PVDM_SAFETENSORS_H

#include "runtime/tensor.h"

// Fills an empty set with tensors borrowed from the mapping. On false the set is empty.
bool pv_safetensors_read(const char *path, PvTensorSet *set, PvError *error);
// The same from memory (which must outlive the tensors).
bool pv_safetensors_parse(const char *name, const uint8_t *data, size_t size, PvTensorSet *set,
                          PvError *error);

typedef struct PvWriter PvWriter;
PvWriter *pv_writer_new(void);
void pv_writer_metadata(PvWriter *writer, const char *key, const char *value); // UTF-8
// `data` (count elements of from_dtype) must stay until pv_writer_finish, which converts to
// `dtype` while it writes. Names may come in any order, none twice.
void pv_writer_add(PvWriter *writer, const char *name, int dtype, int rank, const int64_t *dim,
                   const void *data, int from_dtype);
void pv_writer_add_tensor(PvWriter *writer, const char *name, const PvTensor *tensor);
// Writes the file and frees the writer, whatever the result.
bool pv_writer_finish(PvWriter *writer, const char *path, PvError *error);
void pv_writer_free(PvWriter *writer);

// All tensors and metadata of a set.
bool pv_safetensors_write(const char *path, const PvTensorSet *set, PvError *error);

#endif
