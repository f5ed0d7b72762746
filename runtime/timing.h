// Wall time of what is done several times over: `run --repeat`, `train --replay`.
#ifndef PV_TIMING_H
#define PV_TIMING_H

#include <stdint.h>

double pv_seconds(void); // of a clock that only goes forward

// Prints "median X ms" of `count` > 0 durations, which are sorted. The first is left out if there
// are more: it pays for memory that is touched for the first time.
void pv_print_median(double *seconds, int64_t count);

#endif
