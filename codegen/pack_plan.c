// The launches and arguments of a plan as a short block of bytes, as runtime/unpack.c reads it.
//
// A model has millions of arguments, most of which are those of an earlier launch of the same
// kernel, a little further on. So every number is written as the difference to that launch's, in as
// few bytes as it takes (7 bits a byte, the sign in the lowest), arguments that are the same are
// counted, and the whole is deflated. runtime/unpack.h describes the order.
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "codegen/codegen.h"
#include "runtime/unpack.h"

enum { CHUNK = 1 << 16, LEVEL = 6 };

typedef struct {
    z_stream stream;
    unsigned char in[CHUNK];
    size_t in_count;
    unsigned char *out;
    size_t out_count, out_capacity;
} Packer;

static void deflate_in(Packer *packer, int flush)
{
    z_stream *stream = &packer->stream;
    stream->next_in = packer->in;
    stream->avail_in = (uInt)packer->in_count;
    do {
        packer->out =
            grow_array(packer->out, &packer->out_capacity, packer->out_count + CHUNK, 1);
        stream->next_out = packer->out + packer->out_count;
        stream->avail_out = CHUNK;
        if (deflate(stream, flush) == Z_STREAM_ERROR)
            bug("zlib's state is damaged");
        packer->out_count += CHUNK - stream->avail_out;
    } while (stream->avail_out == 0);
    packer->in_count = 0;
}

// The number in 7-bit groups, the lowest first; the top bit of a byte says that more follow.
static void put(Packer *packer, uint64_t difference)
{
    uint64_t rest = difference << 1 ^ (difference >> 63 ? ~UINT64_C(0) : 0);
    if (packer->in_count + 10 > CHUNK)
        deflate_in(packer, Z_NO_FLUSH);
    for (; rest >= 128; rest >>= 7)
        packer->in[packer->in_count++] = (unsigned char)(rest | 128);
    packer->in[packer->in_count++] = (unsigned char)rest;
}

static uint64_t bits_of(double number)
{
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

// Only what differs: how many arguments are the same before the next one that is not, and of that
// which numbers follow.
static void put_args(Packer *packer, const PvArg *args, const PvArg *like, uint32_t count)
{
    static const PvArg none;
    uint64_t same = 0;
    for (uint32_t i = 0; i < count; i++) {
        const PvArg *other = like ? &like[i] : &none;
        unsigned differs = (args[i].space != other->space ? PV_PACKED_SPACE : 0u) |
                           (args[i].a != other->a ? PV_PACKED_A : 0u) |
                           (args[i].c != other->c ? PV_PACKED_C : 0u);
        if (!differs) {
            same++;
            continue;
        }
        put(packer, same << PV_PACKED_BITS | differs);
        if (differs & PV_PACKED_SPACE)
            put(packer, (uint64_t)args[i].space - (uint64_t)other->space);
        if (differs & PV_PACKED_A)
            put(packer, (uint64_t)args[i].a - (uint64_t)other->a);
        if (differs & PV_PACKED_C)
            put(packer, (uint64_t)args[i].c - (uint64_t)other->c);
        same = 0;
    }
    if (same > 0)
        put(packer, same << PV_PACKED_BITS);
}

void *pack_plan(const PvLaunch *launches, uint32_t launch_count, const PvArg *args,
                uint32_t kernel_count, size_t *size)
{
    Packer *packer = calloc(1, sizeof *packer);
    uint32_t *last = calloc(kernel_count + 1u, sizeof *last); // by kernel: launch + 1
    if (!packer || !last || deflateInit(&packer->stream, LEVEL) != Z_OK)
        bug("out of memory");
    static const PvLaunch none;
    uint32_t kernel = 0, origin = 0;
    for (uint32_t i = 0; i < launch_count; i++) {
        const PvLaunch *at = &launches[i];
        const PvLaunch *like = last[at->kernel] ? &launches[last[at->kernel] - 1] : &none;
        put(packer, (uint64_t)at->kernel - kernel);
        put(packer, (uint64_t)at->arg_count - like->arg_count);
        put(packer, (uint64_t)at->segments - like->segments);
        put(packer, (uint64_t)at->origin - origin);
        put(packer, bits_of(at->flops_fixed) - bits_of(like->flops_fixed));
        put(packer, bits_of(at->flops_batch) - bits_of(like->flops_batch));
        put(packer, bits_of(at->bytes_fixed) - bits_of(like->bytes_fixed));
        put(packer, bits_of(at->bytes_batch) - bits_of(like->bytes_batch));
        bool same = like != &none && like->arg_count == at->arg_count;
        put_args(packer, args + at->arg, same ? args + like->arg : NULL, at->arg_count);
        kernel = at->kernel;
        origin = at->origin;
        last[at->kernel] = i + 1;
    }
    deflate_in(packer, Z_FINISH);
    deflateEnd(&packer->stream);
    unsigned char *out = packer->out;
    *size = packer->out_count;
    free(packer);
    free(last);
    return out;
}
