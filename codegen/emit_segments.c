// Launches of sibling groups, joined: one launch with a segment for each.
//
// The groups of a set (compiler/batch.c) are lowered one by one. Each gives one launch that does its
// work, the last, and sometimes copies before it. Copies come first, then the others; neighbours
// of one kernel and equal arguments, but for addresses and sizes, become segments of one launch.
#include <string.h>

#include "codegen/codegen.h"

typedef struct {
    Work *work;
    const PlanLaunch *launches;        // as they were lowered
    const PlanArg *args;               // theirs
    uint32_t base;                     // number of args[0]
    uint32_t least;                    // launches before this one are of other groups
} Old;

static const PlanArg *args_of(const Old *old, const PlanLaunch *launch)
{
    return old->args + (launch->arg - old->base);
}

static bool is_address(const PlanArg *arg)
{
    return arg->space != PV_VALUE;
}

// Whether a launch stores to a buffer that the other one reads. Neighbours that store to one buffer
// fill different parts of it.
static bool touches(const PlanArg *args, uint32_t count, const PlanArg *others,
                    uint32_t other_count)
{
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; args[i].space == PV_ARENA && args[i].result && k < other_count; k++)
            if (others[k].space == PV_ARENA && !others[k].result &&
                others[k].buffer == args[i].buffer)
                return true;
    return false;
}

// `to` is being filled with segments; `from` is a launch as it was lowered.
static bool can_join(const Old *old, const PlanLaunch *to, const PlanLaunch *from, bool apart)
{
    const Work *work = old->work;
    const PlanArg *have = &work->args[to->arg], *more = args_of(old, from);
    uint32_t count = from->arg_count;
    if (to->kernel != from->kernel || to->arg_count != to->segments * count ||
        to->segments == PV_MAX_SEGMENTS || count > CUDA_SEGMENT_ARGS)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (is_address(&have[i]) != is_address(&more[i]))
            return false;
    return apart || (!touches(have, to->arg_count, more, count) &&
                     !touches(more, count, have, to->arg_count));
}

// The launch may overwrite an operand of one segment if no other segment names its buffer.
static void keep_inplace(Lower *lower, PlanLaunch *launch)
{
    Work *work = lower->work;
    uint32_t each = launch->arg_count / launch->segments, left = launch->more_inplace;
    Inplace *pairs[PV_MAX_SEGMENTS + 1];
    uint32_t count = 0;
    for (; left; left = work->inplace[left - 1].next)
        pairs[count++] = &work->inplace[left - 1];
    launch->more_inplace = 0;
    for (uint32_t p = 0; p < count; p++) {
        uint32_t mentions = 0;
        for (uint32_t s = 0; s < launch->segments; s++) {
            bool there = false;
            for (uint32_t i = s * each; i < (s + 1) * each; i++) {
                const PlanArg *arg = &work->args[launch->arg + i];
                there |= arg->space == PV_ARENA && arg->buffer == pairs[p]->in;
            }
            mentions += there;
        }
        if (mentions != 1)
            continue;
        pairs[p]->next = launch->more_inplace;
        launch->more_inplace = (uint32_t)(pairs[p] - work->inplace) + 1;
    }
}

static void add_inplace(Lower *lower, PlanLaunch *to, const PlanLaunch *from)
{
    Work *work = lower->work;
    if (!from->inplace_in)
        return;
    work->inplace = grow_array(work->inplace, &lower->inplace_capacity, work->inplace_count,
                               sizeof *work->inplace);
    work->inplace[work->inplace_count++] =
        (Inplace){from->inplace_out, from->inplace_in, to->more_inplace};
    to->more_inplace = work->inplace_count;
}

static void put_launch(Lower *lower, const Old *old, const PlanLaunch *from, bool apart)
{
    Work *work = lower->work;
    PlanLaunch *to =
        work->launch_count > old->least ? &work->launches[work->launch_count - 1] : NULL;
    if (!to || !can_join(old, to, from, apart) ||
        !cuda_takes_segment(lower->cg, to->kernel, &work->args[to->arg], to->segments,
                            from->arg_count, args_of(old, from))) {
        to = &work->launches[work->launch_count++];
        *to = *from;
        to->arg = work->arg_count;
        to->arg_count = to->segments = 0;
        to->flops_fixed = to->flops_batch = to->bytes_fixed = to->bytes_batch = 0;
        to->inplace_in = 0;
        to->inplace_out = arg_none();
    }
    memcpy(&work->args[work->arg_count], args_of(old, from), from->arg_count * sizeof(PlanArg));
    work->arg_count += from->arg_count;
    to->arg_count += from->arg_count;
    to->segments += from->segments;
    to->flops_fixed += from->flops_fixed;
    to->flops_batch += from->flops_batch;
    to->bytes_fixed += from->bytes_fixed;
    to->bytes_batch += from->bytes_batch;
    add_inplace(lower, to, from);
}

// What several segments of a launch read is read once.
static void count_shared(Lower *lower, const uint32_t *groups, uint32_t count)
{
    Work *work = lower->work;
    PlanLaunch *launch = &work->launches[work->launch_count - 1];
    for (uint32_t i = 1; launch->segments == count && i < count; i++) {
        double fixed, per_batch;
        shared_bytes(work, groups, i, &fixed, &per_batch);
        launch->bytes_fixed -= fixed;
        launch->bytes_batch -= per_batch;
    }
}

void join_segments(Lower *lower, const uint32_t *groups, const uint32_t *first, uint32_t count)
{
    Work *work = lower->work;
    uint32_t begin = first[0], total = work->launch_count - begin, base = work->launches[begin].arg;
    PlanLaunch *launches = arena_alloc(work->arena, (total + 1) * sizeof *launches);
    memcpy(launches, work->launches + begin, total * sizeof *launches);
    uint32_t arg_count = work->arg_count - base;
    PlanArg *args = arena_alloc(work->arena, (arg_count + 1) * sizeof *args);
    memcpy(args, work->args + base, arg_count * sizeof *args);
    Old old = {work, launches, args, base, begin};
    work->launch_count = begin;
    work->arg_count = base;
    for (uint32_t round = 1; round < total; round++)   // all but the last of each group
        for (uint32_t i = 0; i < count; i++)
            if (first[i] + round < first[i + 1])
                put_launch(lower, &old, &launches[first[i] + round - 1 - begin], false);
    uint32_t copies = work->launch_count;
    for (uint32_t i = 0; i < count; i++)
        if (first[i] < first[i + 1])
            put_launch(lower, &old, &launches[first[i + 1] - 1 - begin],
                       work->launch_count > copies);
    for (uint32_t i = begin; i < work->launch_count; i++)
        keep_inplace(lower, &work->launches[i]);
    count_shared(lower, groups, count);
}
