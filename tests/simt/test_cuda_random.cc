// cases
/* Random numbers: the bits of runtime/random_bits.h. */
#include <math.h>
#include "cx_launch.h"
#include "kernel_case.h"
extern "C" {
#include "runtime/random_bits.h"
}

enum { STREAMS = 3 };
static struct {
    CxStep step;
    CxStream more[STREAMS - 1];
} numbers = {{1, {0x12345678, 77}, {{5, 0x9abcdef0}}}, {{6, 0x13579bdf}, {7, 0x2468ace0}}};
static const void *numbers_there; // on the device

static void draw(const PvRun *, const int64_t *raw)
{
    const RandomArgs *args = (const RandomArgs *)raw;
    const CxStream &stream = args->stream ? numbers.more[args->stream - 1] : numbers.step.stream[0];
    uint64_t seed = numbers.step.seed[0] | (uint64_t)numbers.step.seed[1] << 32;
    for (int64_t i = 0; i < args->count; i++) {
        PvBits bits = pv_random_block(seed, stream.hash, stream.draw, (uint64_t)i / 4);
        uint32_t word = bits.word[i % 4];
        float normal[4];
        pv_bits_normal(bits.word[0], bits.word[1], &normal[0], &normal[1]);
        pv_bits_normal(bits.word[2], bits.word[3], &normal[2], &normal[3]);
        if (args->kind == 2)
            ((int64_t *)args->y)[i] = pv_bits_int(word, args->lo, args->hi);
        else
            ((float *)args->y)[i] = args->kind == 0 ? normal[i % 4] : pv_bits_uniform(word);
    }
}

static void random_numbers(const char *what, int64_t kind, int64_t count, int64_t lo, int64_t hi,
                           const char *fault = nullptr)
{
    KernelCase test("pv_random", draw, what);
    RandomArgs args = {};
    args.y = test.output((size_t)count, kind == 0 ? 1e-6 : 0, kind == 2 ? ST_I64 : ST_F32);
    args.count = count, args.stream = 1, args.kind = kind, args.lo = lo, args.hi = hi;
    test.step = numbers_there;
    test.segment(args);
    if (fault)
        test.find_fault(fault);
    else
        test.run();
}

int main(void)
{
    numbers_there = KernelCase::device_memory(&numbers, sizeof numbers);
    random_numbers("normal", 0, 2053, 0, 0);
    random_numbers("uniform", 1, 1024, 0, 0);
    random_numbers("a few", 1, 3, 0, 0);
    random_numbers("integers", 2, 131, -50, 1000);
    random_numbers("large integers", 2, 64, -(1ll << 62), 1ll << 61);
    random_numbers("an empty range", 2, 5, 9, 9);
    random_numbers("uniform", 1, 1024, 0, 0, "FAULT_COUNTER");
    return finish_cases();
}
