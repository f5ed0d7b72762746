/* What the tests of the emulator itself share: bf16 tensors, and the modes that a kernel must
 * survive.
 *
 * run_modes runs a body for two seeds in race mode with random schedule and random completion of
 * asynchronous operations; it passes if the result is right and nothing was reported; with
 * --stress N all orders and completions, N seeds each. The program ends with `N passed, N failed`.
 */
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
#include "simt.h"
#ifndef SIMT_RACE
#define SIMT_RACE 1 // 0: kernels are compiled without the hooks of race mode
#endif

typedef uint16_t bf16;
typedef std::vector<float> Floats;

static unsigned stress_seeds; // 0: the two seeds of every day
static int passed, failed;

static inline float from_bf16(bf16 bits)
{
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static inline bf16 to_bf16(float value)
{
    uint32_t word;
    memcpy(&word, &value, 4);
    return (bf16)((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

static inline float uniform(void) // in [-1, 1)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)((double)(state >> 11) / (double)(1ull << 53) * 2 - 1);
}

// A tensor in device memory; the values that a reference reads are exactly the kernel's.
struct Tensor {
    bf16 *device;
    Floats value;
};

static inline Tensor make_tensor(size_t count, float scale, float offset)
{
    Tensor tensor = {(bf16 *)simt_malloc(count * 2), Floats(count)};
    for (size_t i = 0; i < count; i++) {
        tensor.device[i] = to_bf16(uniform() * scale + offset);
        tensor.value[i] = from_bf16(tensor.device[i]);
    }
    return tensor;
}

static inline float *make_vector(size_t count, float scale, float offset)
{
    float *vector = (float *)simt_malloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++)
        vector[i] = uniform() * scale + offset;
    return vector;
}

// Runs the kernel once in a mode; launch() returns the error of what it left.
template <class Launch>
void run_mode(const char *name, double bound, Launch launch, int order, int async, unsigned seed)
{
    simt_config = {order, async, SIMT_RACE, seed, 4};
    simt_reset();
    double error = launch();
    bool good = error < bound && simt_stats.errors == 0 && simt_stats.bank_conflicts == 0;
    ++(good ? passed : failed);
    if (good)
        return;
    printf("FAIL %s, order %d, async %d, seed %u: error %.1e (bound %.1e), %llu reports, %llu bank "
           "conflicts%s%s\n",
           name, order, async, seed, error, bound, (unsigned long long)simt_stats.errors,
           (unsigned long long)simt_stats.bank_conflicts, *simt_first_report() ? ": " : "",
           simt_first_report());
}

template <class Launch> void run_modes(const char *name, double bound, Launch launch)
{
    if (stress_seeds == 0)
        for (unsigned seed = 1; seed <= 2; seed++)
            run_mode(name, bound, launch, SIMT_RANDOM_ORDER, SIMT_RANDOM_ASYNC, seed);
    for (unsigned i = 0; i < 9 * stress_seeds; i++)
        run_mode(name, bound, launch, (int)(i % 3), (int)(i / 3 % 3), i / 9 + 1);
}

static inline void begin(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--stress") == 0)
        stress_seeds = (unsigned)atoi(argv[2]);
}

static inline int finish(void)
{
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
