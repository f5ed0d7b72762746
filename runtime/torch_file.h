// .pth and .pt files as torch.save writes them (a zip of a pickle and raw storages), read without
// executing anything: the pickle runs on a small machine that knows plain containers, numbers and
// tensors, and refuses every other global by name. Nested dictionaries, lists and state_dicts
// become one flat set: {"state_dict": {"unet.out.2.bias": ...}} gives "state_dict.unet.out.2.bias".
// Views are copied dense. Numbers and short strings become metadata under the same kind of name.
#ifndef PVDM_TORCH_FILE_H
#define PVDM_TORCH_FILE_H

#include "runtime/tensor.h"

// Fills an empty set. On false the set is empty. The format from before PyTorch 1.6 is an error
// that says how to convert it.
bool pv_torch_read(const char *path, PvTensorSet *set, PvError *error);

// Runs a pickle; `storage` gives the tensor of a persistent storage id: a new reference to a
// rank-1 tensor of at least `count` elements of `dtype`, or NULL with an error. Dense copies of
// views take at most copy_limit bytes.
typedef PvTensor *PvStorageFn(void *context, const char *key, int dtype, int64_t count,
                              PvError *error);
bool pv_pickle_read(const char *name, const uint8_t *data, size_t size, PvStorageFn *storage,
                    void *context, int64_t copy_limit, PvTensorSet *set, PvError *error);

#endif
