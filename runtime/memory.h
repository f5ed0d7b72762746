// How much memory a command needs, and how much there is: compared before anything is allocated.
#ifndef PV_MEMORY_H
#define PV_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/error.h"

typedef struct {
    int64_t bytes;
    const char *limit; // what sets it: "free on this machine", "left in this container"...
} PvMemoryFree;

// The least of what the kernel calls available, what is left in the control groups that this
// process is in (both versions), and what is left under RLIMIT_AS.
PvMemoryFree pv_memory_free(void);

// A part of what is needed: fixed + per_batch * batch bytes.
typedef struct {
    const char *what; // "parameters"
    int64_t fixed, per_batch;
} PvMemoryItem;

int64_t pv_memory_sum(const PvMemoryItem *items, uint32_t count, int64_t batch);

// Do `items` fit at this batch? If not, the error (PV_MACHINE) says what is needed, what is free,
// and the batch that fits. `command` opens the message ("train diffusion").
bool pv_memory_check(const char *command, const PvMemoryItem *items, uint32_t count, int64_t batch,
                     PvError *error);
// The same in other memory, of a device.
bool pv_memory_check_in(PvMemoryFree space, const char *command, const PvMemoryItem *items,
                        uint32_t count, int64_t batch, PvError *error);

#endif
