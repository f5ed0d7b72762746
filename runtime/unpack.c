// Reads what codegen/pack_plan.c wrote; unpack.h describes the bytes. Every number is checked
// before it is used as an index, so a damaged block ends in an error, not in a wild address.
#include "runtime/unpack.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { CHUNK = 1 << 15 };

typedef struct {
    z_stream stream;
    unsigned char bytes[CHUNK];
    size_t at, count;
    bool bad;
} Unpacker;

static unsigned next_byte(Unpacker *unpacker)
{
    if (unpacker->at < unpacker->count)
        return unpacker->bytes[unpacker->at++];
    unpacker->stream.next_out = unpacker->bytes;
    unpacker->stream.avail_out = CHUNK;
    int result = unpacker->bad ? Z_DATA_ERROR : inflate(&unpacker->stream, Z_NO_FLUSH);
    unpacker->count = CHUNK - unpacker->stream.avail_out;
    unpacker->at = 0;
    if ((result != Z_OK && result != Z_STREAM_END) || unpacker->count == 0) {
        unpacker->bad = true;
        unpacker->count = 0;
        return 0;
    }
    return unpacker->bytes[unpacker->at++];
}

// The number that is written as a difference to `from`.
static uint64_t next(Unpacker *unpacker, uint64_t from)
{
    uint64_t rest = 0;
    unsigned byte = 128;
    for (unsigned shift = 0; byte & 128; shift += 7) {
        if (shift > 63) {
            unpacker->bad = true;
            return 0;
        }
        byte = next_byte(unpacker);
        rest |= (uint64_t)(byte & 127) << shift;
    }
    return from + (rest >> 1 ^ (rest & 1 ? ~UINT64_C(0) : 0));
}

static double next_double(Unpacker *unpacker, double from)
{
    uint64_t bits;
    double number;
    memcpy(&bits, &from, sizeof bits);
    bits = next(unpacker, bits);
    memcpy(&number, &bits, sizeof number);
    return number;
}

// A number below `limit`.
static uint32_t next_below(Unpacker *unpacker, uint64_t from, uint64_t limit)
{
    uint64_t number = next(unpacker, from);
    if (number < limit)
        return (uint32_t)number;
    unpacker->bad = true;
    return 0;
}

static void read_args(Unpacker *unpacker, PvArg *args, const PvArg *like, uint32_t count)
{
    memset(args, 0, count * sizeof *args);
    if (like && count > 0)
        memcpy(args, like, count * sizeof *args);
    for (uint32_t i = 0; i < count && !unpacker->bad; i++) {
        uint64_t word = next(unpacker, 0), same = word >> PV_PACKED_BITS;
        unsigned differs = word & ((1u << PV_PACKED_BITS) - 1);
        unpacker->bad |= same > count - i || (same == count - i) != (differs == 0);
        if (differs == 0 || unpacker->bad)
            return;
        PvArg *at = &args[i += (uint32_t)same];
        if (differs & PV_PACKED_SPACE)
            at->space = (uint16_t)next_below(unpacker, at->space, UINT16_MAX + 1u);
        if (differs & PV_PACKED_A)
            at->a = (int64_t)next(unpacker, (uint64_t)at->a);
        if (differs & PV_PACKED_C)
            at->c = (int64_t)next(unpacker, (uint64_t)at->c);
    }
}

// `last`: by kernel, launch + 1.
static void read_launches(Unpacker *unpacker, const PvPlan *plan, uint32_t kernel_count,
                          uint32_t *last, PvLaunch *launches, PvArg *args)
{
    static const PvLaunch none;
    uint32_t kernel = 0, origin = 0, arg = 0;
    for (uint32_t i = 0; i < plan->launch_count && !unpacker->bad; i++) {
        PvLaunch *at = &launches[i];
        kernel = at->kernel = next_below(unpacker, kernel, kernel_count);
        if (unpacker->bad)
            return;
        const PvLaunch *like = last[kernel] ? &launches[last[kernel] - 1] : &none;
        uint32_t most = plan->arg_count - arg;
        at->arg_count = (uint16_t)next_below(unpacker, like->arg_count,
                                             most < UINT16_MAX ? most + 1 : UINT16_MAX + 1u);
        at->segments = (uint16_t)next_below(unpacker, like->segments, PV_MAX_SEGMENTS + 1);
        unpacker->bad |= at->segments == 0;
        origin = at->origin = next_below(unpacker, origin, UINT64_C(1) << 32);
        at->flops_fixed = next_double(unpacker, like->flops_fixed);
        at->flops_batch = next_double(unpacker, like->flops_batch);
        at->bytes_fixed = next_double(unpacker, like->bytes_fixed);
        at->bytes_batch = next_double(unpacker, like->bytes_batch);
        at->arg = arg;
        bool same = like != &none && like->arg_count == at->arg_count;
        read_args(unpacker, args + arg, same ? args + like->arg : NULL, at->arg_count);
        arg += at->arg_count;
        last[kernel] = i + 1;
    }
    unpacker->bad |= arg != plan->arg_count;
}

bool pv_plan_unpack(const PvPlan *plan, uint32_t kernel_count, PvLaunch **launches, PvArg **args,
                    PvError *error)
{
    const char *what = "a plan's launches";
    Unpacker *unpacker = pv_try_alloc(sizeof *unpacker, what, error);
    uint32_t *last = pv_try_alloc((kernel_count + 1u) * sizeof *last, what, error);
    PvLaunch *launch = pv_try_alloc((plan->launch_count + 1u) * sizeof *launch, what, error);
    PvArg *arg = pv_try_alloc((plan->arg_count + 1u) * sizeof *arg, what, error);
    bool good = unpacker && last && launch && arg;
    if (good) {
        unpacker->stream.next_in = (unsigned char *)(uintptr_t)plan->packed;
        unpacker->stream.avail_in = plan->packed_bytes;
        good = inflateInit(&unpacker->stream) == Z_OK;
        if (good)
            read_launches(unpacker, plan, kernel_count, last, launch, arg);
        else
            pv_error(error, PV_MACHINE, "no memory for %s", what);
        inflateEnd(&unpacker->stream);
        if (good && unpacker->bad)
            good = pv_error(error, PV_MACHINE, "this executable is damaged: compile it again");
    }
    free(unpacker);
    free(last);
    *launches = good ? launch : NULL;
    *args = good ? arg : NULL;
    if (!good) {
        free(launch);
        free(arg);
    }
    return good;
}
