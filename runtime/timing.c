// Wall time. The median, because a machine that does other things too makes single runs slow and
// never fast.
#include "runtime/timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

double pv_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int smaller_first(const void *x, const void *y)
{
    double first = *(const double *)x, second = *(const double *)y;
    return first < second ? -1 : first > second;
}

void pv_print_median(double *seconds, int64_t count)
{
    if (count > 1) {
        seconds++;
        count--;
    }
    qsort(seconds, (size_t)count, sizeof *seconds, smaller_first);
    double median = (seconds[count / 2] + seconds[(count - 1) / 2]) / 2;
    printf("median %.3f ms\n", 1e3 * median);
}
