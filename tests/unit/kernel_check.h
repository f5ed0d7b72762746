// What the tests of the CPU kernels share: numbers, outputs with their expected values, and the
// check of a launch. Every launch runs with one and with two threads, which must agree in every
// bit, in scratch of just the size asked for at compile time; places of the outputs that a kernel
// has no business with must keep their mark.
#ifndef KERNEL_CHECK_H
#define KERNEL_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codegen/cpu/kernels.h"

enum { MARK = 777, MAX_OUTPUTS = 4, CANARY = 64 };

// Memory of one test, freed at its end by release().
static void *held[256];
static int held_count;

static void *hold(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    assert_non_null(memory);
    assert_true(held_count < 256);
    held[held_count++] = memory;
    return memory;
}

static void release(void)
{
    while (held_count > 0)
        free(held[--held_count]);
}

static uint64_t random_state = 1;

// uniform in [-1, 1)
static double random_real(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(random_state >> 11) / 4503599627370496.0 - 1;
}

static PvReal *random_array(int64_t count)
{
    PvReal *array = hold((size_t)count * sizeof *array);
    for (int64_t i = 0; i < count; i++)
        array[i] = (PvReal)random_real();
    return array;
}

typedef struct {
    PvReal *data;
    double *expected;
    int64_t count;
} Output;

// An output full of marks, expected to stay so until `expected` says otherwise.
static Output output(int64_t count)
{
    Output out = {hold((size_t)count * sizeof(PvReal)), hold((size_t)count * sizeof(double)),
                  count};
    for (int64_t i = 0; i < count; i++) {
        out.data[i] = MARK;
        out.expected[i] = MARK;
    }
    return out;
}

static inline int64_t real_bits(double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static bool launch_plainly; // without split.h

static void launch_segments(PvKernelFn *kernel, const void *args, uint32_t segments,
                            int64_t scratch, int threads)
{
    int64_t size = (scratch + 63) & ~(int64_t)63;
    char *memory = aligned_alloc(64, (size_t)(threads * size + CANARY));
    assert_non_null(memory);
    memset(memory, 0x7f, (size_t)(threads * size + CANARY));
    PvRun run = {.batch = 1,
                 .threads = threads,
                 .scratch = memory,
                 .scratch_size = size,
                 .segments = segments,
                 .split = !launch_plainly};
    kernel(&run, args);
    for (int i = 0; i < CANARY; i++) {
        if (memory[threads * size + i] != 0x7f)
            fail_msg("scratch of %lld bytes a thread is too small", (long long)size);
    }
    free(memory);
}

static void launch(PvKernelFn *kernel, const void *args, int64_t scratch, int threads)
{
    launch_segments(kernel, args, 1, scratch, threads);
}

// Launches and compares; `tolerance` is relative to 1 + |expected|, in units of PvReal's epsilon.
static inline void check(const char *name, PvKernelFn *kernel, const void *args, int64_t scratch,
                  const Output *outs, int count, double tolerance)
{
    double epsilon = sizeof(PvReal) == 4 ? 6e-8 : 1e-15;
    PvReal *first[MAX_OUTPUTS], *initial[MAX_OUTPUTS];
    for (int o = 0; o < count; o++) {
        size_t bytes = (size_t)outs[o].count * sizeof(PvReal);
        first[o] = malloc(bytes);
        initial[o] = malloc(bytes);
        assert_true(first[o] && initial[o]);
        memcpy(initial[o], outs[o].data, bytes);
    }
    launch(kernel, args, scratch, 1);
    for (int o = 0; o < count; o++) {
        memcpy(first[o], outs[o].data, (size_t)outs[o].count * sizeof(PvReal));
        memcpy(outs[o].data, initial[o], (size_t)outs[o].count * sizeof(PvReal));
    }
    launch(kernel, args, scratch, 2);
    for (int o = 0; o < count; o++) {
        if (memcmp(first[o], outs[o].data, (size_t)outs[o].count * sizeof(PvReal)) != 0)
            fail_msg("%s: output %d depends on the number of threads", name, o);
        for (int64_t i = 0; i < outs[o].count; i++) {
            double want = outs[o].expected[i], got = (double)first[o][i];
            bool same = got == want || fabs(got - want) <= tolerance * epsilon * (1 + fabs(want));
            if (!same)
                fail_msg("%s: output %d[%lld] is %.9g, not %.9g", name, o, (long long)i, got, want);
        }
        free(first[o]);
        free(initial[o]);
    }
}

#endif
