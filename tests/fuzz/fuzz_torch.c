// link: pvdm32 jansson yaml png jpeg minizip z dl
// Any bytes are run as a pickle, and opened as a file of torch.save. Nothing may crash, hang or
// take much memory, and every tensor that comes out must be readable to its last element.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/torch_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// A storage of 64 elements under every key but "x".
static PvTensor *storage(void *context, const char *key, int dtype, int64_t count, PvError *error)
{
    (void)context;
    int64_t dim[] = {64};
    if (!strcmp(key, "x") || count > 64) {
        pv_error(error, PV_WRONG, "no storage '%s'", key);
        return NULL;
    }
    return pv_tensor_new(dtype, 1, dim, error);
}

static void finish(bool fine, PvTensorSet *set, PvError *error)
{
    volatile double sum = 0;
    if (fine != (error->text == NULL) || (!fine && set->count > 0))
        abort();
    for (size_t i = 0; i < set->count; i++) {
        for (int64_t k = 0; k < set->items[i].tensor->count; k++)
            sum += pv_tensor_number(set->items[i].tensor, k);
    }
    pv_set_free(set);
    pv_error_free(error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PvError error = {0};
    PvTensorSet set = {0};
    finish(pv_pickle_read("fuzz", data, size, storage, NULL, 1 << 20, &set, &error), &set, &error);
    int file = memfd_create("fuzz", 0);
    char path[64];
    if (file < 0 || write(file, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    finish(pv_torch_read(path, &set, &error), &set, &error);
    close(file);
    return 0;
}
