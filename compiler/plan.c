// Memory: when buffers live, and where they lie.
//
// A buffer is alive from the first launch that names it to the last. Buffers that grow with the
// batch and those that do not are packed apart: all offsets of the first kind are multiples of b,
// so one plan serves every batch, at address arena_fixed + offset * b.
//
// A result may lie where an operand of its kernel dies, if the kernel reads each element before it
// writes it: the two become one buffer. If that result is a gradient's final place, the buffer lies
// there, outside the arena: a sum of several contributions is collected where it is wanted.
// pack.c finds offsets such that no two buffers that live at once overlap. The largest live set is
// a lower bound of the arena, and is told.
#include <string.h>

#include "compiler/plan.h"

// ---- lifetimes ----

static void touch(Buffer *buffer, int32_t launch)
{
    if (buffer->first < 0)
        buffer->first = launch;
    buffer->last = launch;
}

static uint32_t root_of(const Work *work, uint32_t buffer)
{
    while (work->buffers[buffer].alias)
        buffer = work->buffers[buffer].alias - 1;
    return buffer;
}

static void find_lifetimes(Work *work)
{
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        for (uint32_t k = 0; k < launch->arg_count; k++) {
            const PlanArg *arg = &work->args[launch->arg + k];
            if (arg->space == PV_ARENA)
                touch(&work->buffers[arg->buffer - 1], (int32_t)i);
        }
    }
}

// The result at `out` takes over the buffer of an operand that dies in launch number `launch`.
static void take_over(Work *work, int32_t launch, const PlanArg *out, uint32_t operand)
{
    uint32_t root = root_of(work, operand);
    Buffer *in = &work->buffers[root];
    if (in->last != launch || in->outside.space != PV_VALUE ||
        work->buffers[operand].last != launch)
        return;
    if (out->space != PV_ARENA) {
        if (in->size == work->buffers[operand].size && !in->batch)
            in->outside = *out;
        return;
    }
    Buffer *buffer = &work->buffers[out->buffer - 1];
    if (buffer->first != launch || buffer->batch != in->batch || buffer->bytes > in->bytes ||
        out->a || out->c)
        return;
    buffer->alias = root + 1;
    in->last = buffer->last;
}

static void join_inplace(Work *work)
{
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        if (launch->inplace_in)
            take_over(work, (int32_t)i, &launch->inplace_out, launch->inplace_in - 1);
        for (uint32_t k = launch->more_inplace; k; k = work->inplace[k - 1].next)
            take_over(work, (int32_t)i, &work->inplace[k - 1].out, work->inplace[k - 1].in - 1);
    }
}

static void pack_kind(Work *work, bool batch, int64_t *size, int64_t *bound)
{
    Interval *items = arena_alloc(work->arena, (work->buffer_count + 1) * sizeof *items);
    uint32_t *which = arena_alloc(work->arena, (work->buffer_count + 1) * sizeof *which);
    uint32_t count = 0;
    for (uint32_t i = 0; i < work->buffer_count; i++) {
        const Buffer *buffer = &work->buffers[i];
        if (buffer->alias || buffer->outside.space != PV_VALUE || buffer->batch != batch ||
            buffer->first < 0)
            continue;
        which[count] = i;
        items[count++] =
            (Interval){.size = buffer->bytes, .first = buffer->first, .last = buffer->last};
    }
    *size = pack_intervals(work->arena, items, count);
    *bound = live_bound(work->arena, items, count);
    for (uint32_t i = 0; i < count; i++)
        work->buffers[which[i]].offset = items[i].offset;
}

void plan_memory(Work *work)
{
    find_lifetimes(work);
    join_inplace(work);
    pack_kind(work, false, &work->arena_fixed, &work->live_fixed);
    pack_kind(work, true, &work->arena_batch, &work->live_batch);
}

PvArg resolve_arg(const Work *work, const PlanArg *arg)
{
    PvArg out;
    memset(&out, 0, sizeof out);       // padding too: the bytes go into the executable
    out.a = arg->a;
    out.c = arg->c;
    out.space = arg->space;
    if (arg->space != PV_ARENA)
        return out;
    const Buffer *buffer = &work->buffers[root_of(work, arg->buffer - 1)];
    if (buffer->outside.space != PV_VALUE) {
        out.space = buffer->outside.space;
        out.a += buffer->outside.a;
        return out;
    }
    out.a += buffer->batch ? work->arena_fixed : buffer->offset;
    out.c += buffer->batch ? buffer->offset : 0;
    return out;
}

// ---- printed form ----

static void print_arg(FILE *out, const Work *work, const PlanArg *arg)
{
    static const char *const names[] = {"", "arena", "param", "grad", "const", "scalar",
                                        "shadow"};
    PvArg at = resolve_arg(work, arg);
    if (at.space >= PV_IO)
        fprintf(out, " io%d", at.space - PV_IO);
    else
        fprintf(out, " %s", names[at.space]);
    if (at.space != PV_VALUE)
        fputc('+', out);
    fprintf(out, "%lld", (long long)at.a);
    if (at.c)
        fprintf(out, "+%lldb", (long long)at.c);
}

void print_plan(FILE *out, const Work *work, const char *(*kernel_name)(uint32_t kernel))
{
    fprintf(out,
            "plan %s -O%d: %u launches, %u buffers, arena %lld + %lld b bytes (at least %lld + "
            "%lld b), scratch %lld a thread\n",
            work->entry->name, work->level, work->launch_count, work->buffer_count,
            (long long)work->arena_fixed, (long long)work->arena_batch, (long long)work->live_fixed,
            (long long)work->live_batch, (long long)work->scratch);
    for (uint32_t i = 0; i < work->buffer_count; i++) {
        const Buffer *buffer = &work->buffers[i];
        if (buffer->first >= 0 && !buffer->alias && buffer->outside.space == PV_VALUE)
            fprintf(out, "  buffer %u: %lld%s bytes at %lld, launches %d to %d\n", i,
                    (long long)buffer->bytes, buffer->batch ? " b" : "", (long long)buffer->offset,
                    buffer->first, buffer->last);
    }
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        fprintf(out, "  %u %s", i, kernel_name(launch->kernel));
        for (uint32_t k = 0; k < launch->arg_count; k++)
            print_arg(out, work, &work->args[launch->arg + k]);
        fputc('\n', out);
    }
}
