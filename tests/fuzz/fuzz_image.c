// link: pvdm32 jansson yaml png jpeg minizip z dl
// Any bytes are read as a picture, as frames in a folder are. Nothing may crash, hang or take much
// memory, and every pixel of a picture that comes out must be readable.
#include <stdint.h>
#include <stdlib.h>

#include "runtime/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PvError error = {0};
    PvImage image = {0};
    bool fine = pv_image_decode("fuzz", data, size, &image, &error);
    if (fine != (error.text == NULL))
        abort();
    volatile unsigned sum = 0;
    for (size_t i = 0; fine && i < 3 * (size_t)image.width * (size_t)image.height; i++)
        sum += image.rgb[i];
    pv_image_free(&image);
    pv_error_free(&error);
    return 0;
}
