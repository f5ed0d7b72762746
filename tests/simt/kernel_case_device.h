/* Cases through a CUDA driver, when PVDM_CASES names one (libcuda.so.1): the same kernels, arrays
 * and tolerances as under the emulator, on a GPU.
 *
 * Programs are images made ahead (kernel_case_image.h), or compiled by NVRTC for the device that is
 * there; for the driver of this folder they are the emulator's shared objects.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string>
#include <vector>
extern "C" {
#include "kernel_choice.h"
}

bool device_wanted(void); // PVDM_CASES is set; the first call opens the driver, or ends the program
bool device_emulates(void); // it takes the emulator's programs
bool device_runs_90a(void);
void *device_alloc(size_t bytes);
void device_free(void *memory);
void device_write(void *to, const void *from, size_t bytes);
void device_read(void *to, const void *from, size_t bytes);

// The functions of a program's phases. image: a shared object's bytes, or empty: NVRTC compiles.
// What is wrong, or "".
std::string device_load(const KernelChoice &choice, const char *root, const std::string &image,
                        void **phase);
// Fills a CUtensorMap; 0, or the driver's error.
int device_encode_map(void *to, const PvTensorMap *map);
// One phase, to its end. What is wrong, or "".
std::string device_launch(void *phase, uint32_t blocks, uint32_t threads, uint32_t shared,
                          void *param);
