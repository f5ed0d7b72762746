// link: pvdm32 jansson yaml png jpeg minizip z dl
// Any bytes are read as a safetensors file: as they are, and as the header and data of a file whose
// length field is right. What comes out must be readable to its last element, and must survive
// being written and read again.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const PvTensorSet *set)
{
    volatile double sum = 0;
    char text[PV_SHAPE_TEXT];
    for (size_t i = 0; i < set->count; i++) {
        const PvTensor *tensor = set->items[i].tensor;
        for (int64_t k = 0; k < tensor->count; k++)
            sum += pv_tensor_number(tensor, k);
        pv_shape_text(text, tensor->rank, tensor->dim);
        if (pv_set_find(set, set->items[i].name) != tensor)
            abort();
    }
}

static void parse(const uint8_t *data, size_t size)
{
    static char path[64];
    PvError error = {0};
    PvTensorSet set = {0}, back = {0};
    if (!pv_safetensors_parse("fuzz", data, size, &set, &error)) {
        if (!error.text || set.count > 0)
            abort();
        pv_error_free(&error);
        return;
    }
    use(&set);
    snprintf(path, sizeof path, "/tmp/pvdm-fuzz-%ld", (long)getpid());
    if (!pv_safetensors_write(path, &set, &error) || !pv_safetensors_read(path, &back, &error) ||
        back.count != set.count || back.metadata_count != set.metadata_count) {
        fprintf(stderr, "%s\n", error.text ? error.text : "not the same");
        abort();
    }
    use(&back);
    pv_set_free(&back);
    pv_set_free(&set);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse(data, size);
    const uint8_t *end = memchr(data, 0, size);
    uint64_t length = end ? (uint64_t)(end - data) : size;
    uint8_t *file = malloc(size + 8);
    memcpy(file, &length, 8);
    memcpy(file + 8, data, size);
    parse(file, size + 8);
    free(file);
    return 0;
}
