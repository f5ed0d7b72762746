// Memory: when buffers live, and where they lie.
//
// A buffer is alive from the first launch that names it to the last. Buffers that grow with the
// batch and those that do not are packed apart: all offsets of the first kind are multiples of b,
// so one plan serves every batch, at address arena_fixed + offset * b.
//
// A result may lie where an operand of its kernel dies, if the kernel reads each element before it
// writes it: the two become one buffer. If that result is a gradient's final place, the buffer lies
// there, outside the arena: a sum of several contributions is collected where it is wanted.
// Packing is a choice of offsets such that no two buffers that live at once overlap; finding the
// best is NP-hard (dynamic storage allocation). Several orders are tried (by size, by size and
// time, by time alone, by length of life), each buffer going into the tightest gap that fits among
// those alive with it; the smallest arena wins. The largest live set is a lower bound, and is told.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

// ---- packing ----

static int64_t max64(int64_t x, int64_t y)
{
    return x > y ? x : y;
}

int64_t live_bound(Arena *arena, const Interval *items, uint32_t count)
{
    int32_t end = 0;
    for (uint32_t i = 0; i < count; i++)
        end = items[i].last > end ? items[i].last : end;
    int64_t *change = arena_alloc(arena, ((size_t)end + 2) * sizeof *change);
    for (uint32_t i = 0; i < count; i++) {
        change[items[i].first] += items[i].size;
        change[items[i].last + 1] -= items[i].size;
    }
    int64_t live = 0, most = 0;
    for (int32_t t = 0; t <= end; t++) {
        live += change[t];
        most = max64(most, live);
    }
    return most;
}

typedef enum { BY_SIZE, BY_AREA, BY_START, BY_LIFE, BY_END, ORDERS } Order;

static const Interval *sort_items;     // what the comparison looks at
static Order sort_order;

static int compare_items(const void *left, const void *right)
{
    uint32_t i = *(const uint32_t *)left, k = *(const uint32_t *)right;
    const Interval *x = &sort_items[i], *y = &sort_items[k];
    int64_t x_life = x->last - x->first + 1, y_life = y->last - y->first + 1;
    double by = 0;
    switch (sort_order) {
    case BY_SIZE: by = (double)(y->size - x->size); break;
    case BY_AREA: by = (double)y->size * (double)y_life - (double)x->size * (double)x_life; break;
    case BY_START: by = (double)(x->first - y->first); break;
    case BY_LIFE: by = (double)(y_life - x_life); break;
    case BY_END: by = (double)(y->last - x->last); break;
    case ORDERS: break;
    }
    if (by == 0)
        by = (double)(y->size - x->size);
    if (by == 0)
        by = (double)i - (double)k;
    return by < 0 ? -1 : by > 0;
}

// Places the items in that order; `placed` is scratch: numbers of placed items by offset.
static int64_t pack_in_order(Interval *items, const uint32_t *order, uint32_t *placed,
                             uint32_t count)
{
    int64_t total = 0;
    for (uint32_t n = 0; n < count; n++) {
        Interval *item = &items[order[n]];
        int64_t end = 0, best = -1, best_gap = INT64_MAX;
        for (uint32_t i = 0; i < n; i++) {
            const Interval *other = &items[placed[i]];
            if (other->last < item->first || other->first > item->last)
                continue;
            int64_t gap = other->offset - end;
            if (gap >= item->size && gap < best_gap) {
                best = end;
                best_gap = gap;
            }
            end = max64(end, other->offset + other->size);
        }
        item->offset = best >= 0 ? best : end;
        total = max64(total, item->offset + item->size);
        uint32_t at = n;
        while (at > 0 && items[placed[at - 1]].offset > item->offset) {
            placed[at] = placed[at - 1];
            at--;
        }
        placed[at] = order[n];
    }
    return total;
}

int64_t pack_intervals(Arena *arena, Interval *items, uint32_t count)
{
    if (count == 0)
        return 0;
    uint32_t *order = arena_alloc(arena, count * sizeof *order);
    uint32_t *placed = arena_alloc(arena, count * sizeof *placed);
    int64_t *best_offset = arena_alloc(arena, count * sizeof *best_offset);
    int64_t bound = live_bound(arena, items, count), best = INT64_MAX;
    for (Order by = BY_SIZE; by < ORDERS && best > bound; by++) {
        for (uint32_t i = 0; i < count; i++)
            order[i] = i;
        sort_items = items;
        sort_order = by;
        qsort(order, count, sizeof *order, compare_items);
        int64_t total = pack_in_order(items, order, placed, count);
        if (total >= best)
            continue;
        best = total;
        for (uint32_t i = 0; i < count; i++)
            best_offset[i] = items[i].offset;
    }
    for (uint32_t i = 0; i < count; i++)
        items[i].offset = best_offset[i];
    return best;
}

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

// A result takes over the buffer of an operand that dies in its launch.
static void join_inplace(Work *work)
{
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        if (!launch->inplace_in)
            continue;
        uint32_t root = root_of(work, launch->inplace_in - 1);
        Buffer *in = &work->buffers[root];
        if (in->last != (int32_t)i || in->outside.space != PV_VALUE ||
            work->buffers[launch->inplace_in - 1].last != (int32_t)i)
            continue;
        if (launch->inplace_out.space != PV_ARENA) {
            if (in->size == work->buffers[launch->inplace_in - 1].size && !in->batch)
                in->outside = launch->inplace_out;
            continue;
        }
        Buffer *out = &work->buffers[launch->inplace_out.buffer - 1];
        if (out->first != (int32_t)i || out->batch != in->batch || out->bytes > in->bytes)
            continue;
        out->alias = root + 1;
        in->last = out->last;
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
    static const char *const names[] = {"", "arena", "param", "grad", "const", "scalar"};
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
