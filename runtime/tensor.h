// Tensors: what files hold, what programs are given and give. Always dense, row-major, logical
// order. Data is aligned for its element type; it is owned, or borrowed from a mapped file that
// lives as long as its last tensor. A PvTensorSet is what a tensor file is in memory.
//
// Results of a GPU stay there until the host asks for them: pv_tensor_fetch comes before `data` of
// a tensor that a call gave.
#ifndef PVDM_TENSOR_H
#define PVDM_TENSOR_H

#include "runtime/error.h"
#include "runtime/pvdm.h"

// Element types that only files have, after those of PvDType. A dtype field is either.
enum { PV_U8 = PV_F64 + 1, PV_I8, PV_I16, PV_I32, PV_DTYPE_COUNT };

struct PvTensor {
    int refs;      // atomic
    uint8_t dtype; // PvDType or one of the above
    uint8_t rank;
    int64_t dim[PV_MAX_RANK];
    int64_t count; // elements
    int64_t bytes;
    void *data;                   // read-only if borrowed; NULL: only the device has it yet
    void (*release)(void *owner); // of borrowed data, or NULL: data is freed
    void *owner;
    struct PvDeviceCopy *copy;    // or NULL: it never was on a device (device.h)
    bool stale;                   // what the device has is newer than `data`
};

int64_t pv_dtype_size(int dtype);     // bytes; 0: not a type
const char *pv_dtype_name(int dtype); // "f32"
bool pv_dtype_is_real(int dtype);
enum { PV_REAL_DTYPE = sizeof(PvReal) == 8 ? PV_F64 : PV_F32 };

// New, zeroed, 64-byte aligned, one reference. NULL with an error: too large, no memory.
PvTensor *pv_tensor_new(int dtype, int rank, const int64_t *dim, PvError *error);
// The tensor of a type for a batch.
PvTensor *pv_tensor_of(const PvType *type, int64_t batch, PvError *error);
// Sizes of the axes of a type at a batch.
void pv_type_dims(const PvType *type, int64_t batch, int64_t dim[PV_MAX_RANK]);
// A tensor without data yet, and its data, zeroed; for those that make tensors.
PvTensor *pv_tensor_bare(int dtype, int rank, const int64_t *dim, PvError *error);
bool pv_tensor_make_room(PvTensor *tensor, PvError *error);
// Wraps data that release(owner) gives up with the last reference. Not copied.
PvTensor *pv_tensor_borrow(int dtype, int rank, const int64_t *dim, void *data,
                           void (*release)(void *owner), void *owner, PvError *error);
PvTensor *pv_tensor_hold(PvTensor *tensor); // one more reference; NULL stays NULL
void pv_tensor_drop(PvTensor *tensor);      // one less; NULL is fine
// `data` is there and right: brought from the device, and waited for, where that has it.
bool pv_tensor_fetch(PvTensor *tensor, PvError *error);
// The same to write all of it: nothing is brought, and the device's copy is forgotten.
bool pv_tensor_overwrite(PvTensor *tensor, PvError *error);

// Number of elements, or -1 when it (or its bytes with elements of 8) overflows, or a size is < 0.
int64_t pv_shape_count(int rank, const int64_t *dim);
// Is the shape that of the type at this batch? With batch < 0: any batch >= 1 that fits, which
// pv_tensor_batch tells (-1: the shape does not fit; a type without batch axes: 1).
bool pv_tensor_fits(const PvTensor *tensor, const PvType *type, int64_t batch);
int64_t pv_tensor_batch(const PvTensor *tensor, const PvType *type);

// Elementwise conversion, round to nearest even; to integers: truncation, saturated, NaN to 0; to
// bool: != 0. The arrays do not overlap (or are the same with equal types); they may be unaligned.
void pv_convert(void *to, int to_dtype, const void *from, int from_dtype, int64_t count);
// A tensor of that type: the same one with one more reference, or a converted copy.
PvTensor *pv_tensor_convert(PvTensor *tensor, int dtype, PvError *error);
PvTensor *pv_tensor_copy(const PvTensor *tensor, PvError *error); // owned
double pv_tensor_number(const PvTensor *tensor, int64_t i);       // element i as a double

// "f32 [2, 3, 64]" without the dtype: "[2, 3, 64]", into text; returns text.
enum { PV_SHAPE_TEXT = 192 };
char *pv_shape_text(char text[PV_SHAPE_TEXT], int rank, const int64_t *dim);
// The same of a type; sizes that grow with the batch read "3*b", "b".
char *pv_type_text(char text[PV_SHAPE_TEXT], const PvType *type);

// ---- sets of named tensors ----

typedef struct {
    char *name;
    PvTensor *tensor;
} PvNamed;

typedef struct {
    char *key, *value;
} PvPair;

typedef struct {
    char *path;     // of the file, or NULL
    PvNamed *items; // sorted by name (bytes), no two alike
    size_t count, capacity;
    PvPair *metadata; // in the order of the file
    size_t metadata_count, metadata_capacity;
} PvTensorSet; // starts as {0}

PvTensor *pv_set_find(const PvTensorSet *set, const char *name); // not held; NULL: none
// Takes the reference. A name that is there already gets the new tensor.
void pv_set_add(PvTensorSet *set, const char *name, PvTensor *tensor);
// For readers of long files: append in any order, then sort, which gives a name that is there
// twice, or NULL. Nothing may be looked up in between.
void pv_set_append(PvTensorSet *set, const char *name, PvTensor *tensor);
const char *pv_set_sort(PvTensorSet *set);
const char *pv_set_metadata(const PvTensorSet *set, const char *key);           // or NULL
void pv_set_add_metadata(PvTensorSet *set, const char *key, const char *value); // or replaces
void pv_set_free(PvTensorSet *set); // and makes it empty

#endif
