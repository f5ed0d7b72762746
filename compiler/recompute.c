// Recomputation: values that wait long for the backward pass are made a second time instead.
//
// The backward pass reads activations that the forward pass made, and at the turning point all of
// them are there at once. A group that comes a second time in the schedule, right before the first
// reader behind the turning point, spares its results the wait; the lowering gives them new storage
// then, and later readers find that. What one kernel computes does not change, so every value keeps
// its bits.
//
// The pass looks at the position where most bytes are live, the peak, and chooses what to repeat
// among the groups whose results wait there, unread. If the largest live set has grown by it, that
// group is refused; then the next position is looked at. Three rounds, each until there is nothing
// to gain:
//   1. what the model file wishes (`recompute(m)`), the most bytes first, whatever it costs;
//   2. what is cheap, an activation function, a norm, a concatenation, the most bytes first. With a
//      budget (`--memory`), until the peak fits; without one, only where all of it together makes
//      the step smaller by WORTH, its parameters counted: repeats are launches, and they keep
//      siblings apart that could have been one (batch.c);
//   3. if the peak is still above the budget: anything, the fewest operations per byte first, until
//      it fits.
// In the rounds 1 and 3 a group brings along what it reads and what would not be there any more (a
// qkv projection brings its norm), back to values that wait anyway; a repeat that comes later in
// any case moves forward instead of coming twice. (Chen et al. 2016, Training deep nets with
// sublinear memory cost; the choice per byte follows Kirisame et al. 2021.)
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { TYPICAL_BATCH = 4, LEAST_GAIN = 2000, MAX_REPEATS = 4096, MAX_TOGETHER = 24 };

#define WORTH 0.2 // of the bytes of a step

typedef enum { ROUND_WISHES, ROUND_CHEAP, ROUND_BUDGET } Round;

typedef struct {
    uint32_t *reads, read_count;     // slots of bases that groups make, each once
    uint32_t *results, result_count; // slots in the arena
    double flops;
    uint32_t rank; // place in the schedule without repeats
    bool repeatable, cheap, wished;
    bool refused;
} Item;

typedef struct {
    Work *work;
    Item *items; // by group
    uint32_t groups;
    int64_t batch;     // that the bytes are counted for
    uint32_t *slot_of; // by local number * MAX_OUT + output: the slot of storage that a group makes
                       // in the arena; slots count from 1, 0 = it is none
    int64_t *bytes;    // by slot
    uint32_t *maker;   // by slot: group + 1
    uint32_t slots;    // with the unused number 0
    uint32_t capacity; // of the schedule
    uint32_t *saved;   // a schedule
    uint32_t *plain;   // the schedule before anything cheap came again
    // of the present schedule
    int32_t *first, *last; // by slot: of the instance at hand
    int64_t *live;         // by position
    int32_t *next;         // by slot: first reader behind the peak
    int32_t *again;        // by slot: first time behind the peak that it is made; -1: none
    bool *at_peak;         // by slot: read or made there
    bool *waits;           // by slot: live across the peak
} Recompute;

// Groups to repeat together in front of a position.
typedef struct {
    uint32_t groups[MAX_TOGETHER], count;
    int32_t position;
    int64_t gain; // bytes at the peak
    double flops;
} Choice;

static int64_t slot_bytes(const Recompute *r, Val val)
{
    const Type *type = val_type(r->work->module->graph, val);
    Dim count;
    if (!type_count(type, &count))
        bug("a value's size is not linear in the batch");
    return count.n * (int64_t)stored_size(r->work, val) * (count.batch ? r->batch : 1);
}

static uint32_t *slot_of(const Recompute *r, Val storage)
{
    return &r->slot_of[local_of(r->work, storage) * MAX_OUT + val_out(storage)];
}

// Do all its results lie in storage of their own, which nothing outside reads?
static bool is_repeatable(const Work *work, const Group *group)
{
    for (uint32_t i = 0; i < group->result_count; i++)
        if (group->results[i] &&
            (work->kept[local_of(work, group->results[i])] || within_of(work, group->results[i])))
            return false;
    const bool *pieces = work->pieces[local_of(work, val_of(group->anchor, 0))];
    return !pieces || !pieces[graph_node(work->module->graph, group->anchor)->nin];
}

static bool is_cheap(const Work *work, const Group *group)
{
    if (group->kind == GROUP_ELEMENTWISE)
        return true;
    switch ((int)graph_node(work->module->graph, group->anchor)->op) {
    case OP_GROUP_NORM:
    case OP_GROUP_NORM_TABLE:
    case OP_CHANNEL_MOMENTS:
    case OP_LAYER_NORM:
    case OP_CONCAT:
    case OP_RESHAPE:
        return true;
    default:
        return false;
    }
}

static void collect_item(Recompute *r, uint32_t number, uint32_t rank)
{
    Work *work = r->work;
    const Group *group = &work->groups[number];
    Item *item = &r->items[number];
    item->rank = rank;
    item->repeatable = is_repeatable(work, group);
    item->cheap = item->repeatable && is_cheap(work, group);
    item->wished = item->repeatable;
    for (uint32_t i = 0; i < group->member_count; i++) {
        double fixed, per_batch;
        node_flops(work->module->graph, group->members[i], &fixed, &per_batch);
        item->flops += fixed + per_batch * (double)r->batch;
        item->wished &= graph_origin(work->module->graph, group->members[i])->recompute;
    }
    item->results = arena_alloc(work->arena, MAX_OUT * sizeof(uint32_t));
    for (uint32_t i = 0; i < group->result_count; i++) {
        if (!group->results[i])
            continue;
        // what lies in a concat begins to live with the first of its parts
        Val storage = storage_of(work, group->results[i]);
        uint32_t *slot = slot_of(r, storage);
        if (work->kept[local_of(work, storage)] || (*slot && r->maker[*slot] != number + 1))
            continue;
        *slot = *slot ? *slot : r->slots++;
        item->results[item->result_count++] = *slot;
        r->maker[*slot] = number + 1;
        r->bytes[*slot] = slot_bytes(r, storage);
    }
}

static void collect_reads(Recompute *r, uint32_t number)
{
    Work *work = r->work;
    const Group *group = &work->groups[number];
    Item *item = &r->items[number];
    uint32_t most = group->read_count + group->result_count;
    item->reads = arena_alloc(work->arena, (most + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < most; i++) {
        Val val = i < group->read_count ? group->reads[i] : group->results[i - group->read_count];
        if (!val)
            continue;
        uint32_t slot = *slot_of(r, storage_of(work, val));
        bool seen = !slot || r->maker[slot] == number + 1;
        for (uint32_t k = 0; k < item->read_count; k++)
            seen |= item->reads[k] == slot;
        if (!seen)
            item->reads[item->read_count++] = slot;
    }
}

// Walks the schedule: live bytes by position. Returns the position of the peak.
static int32_t find_peak(Recompute *r)
{
    const Work *work = r->work;
    uint32_t count = work->group_count;
    memset(r->live, 0, (count + 2) * sizeof *r->live);
    memset(r->first, 0xff, r->slots * sizeof *r->first);
    for (uint32_t p = 0; p <= count; p++) {
        const Item *item = p < count ? &r->items[work->schedule[p]] : NULL;
        for (uint32_t i = 0; item && i < item->read_count; i++)
            r->last[item->reads[i]] = (int32_t)p;
        for (uint32_t i = 0; item && i < item->result_count; i++) {
            uint32_t slot = item->results[i];
            if (r->first[slot] >= 0) { // the instance before ends with its last reader
                r->live[r->first[slot]] += r->bytes[slot];
                r->live[r->last[slot] + 1] -= r->bytes[slot];
            }
            r->first[slot] = r->last[slot] = (int32_t)p;
        }
    }
    for (uint32_t slot = 0; slot < r->slots; slot++)
        if (r->first[slot] >= 0) {
            r->live[r->first[slot]] += r->bytes[slot];
            r->live[r->last[slot] + 1] -= r->bytes[slot];
        }
    int32_t peak = 0;
    for (uint32_t p = 1; p < count; p++) {
        r->live[p] += r->live[p - 1];
        if (r->live[p] > r->live[peak])
            peak = (int32_t)p;
    }
    return peak;
}

// Which slots wait across the peak, and who reads them next.
static void look_behind(Recompute *r, int32_t peak)
{
    const Work *work = r->work;
    memset(r->waits, 0, r->slots * sizeof *r->waits);
    memset(r->at_peak, 0, r->slots * sizeof *r->at_peak);
    memset(r->next, 0xff, r->slots * sizeof *r->next);
    memset(r->again, 0xff, r->slots * sizeof *r->again);
    for (uint32_t p = work->group_count; p-- > 0;) {
        const Item *item = &r->items[work->schedule[p]];
        for (uint32_t i = 0; i < item->result_count; i++) {
            uint32_t slot = item->results[i];
            if ((int32_t)p > peak) {
                r->next[slot] = -1; // who reads it later does not wait for this instance
                r->again[slot] = (int32_t)p;
            } else if ((int32_t)p == peak)
                r->at_peak[slot] = true;
            else if (!r->waits[slot])
                r->waits[slot] = r->next[slot] > 0;
        }
        for (uint32_t i = 0; i < item->read_count; i++) {
            if ((int32_t)p > peak)
                r->next[item->reads[i]] = (int32_t)p;
            else if ((int32_t)p == peak)
                r->at_peak[item->reads[i]] = true;
        }
    }
}

// Adds a group to those that are made again in front of the choice's position, and what it reads
// and is not there by then, if that may be repeated; what may not has to wait. false: too many.
static bool bring(const Recompute *r, Choice *choice, uint32_t group, bool together)
{
    const Item *item = &r->items[group];
    for (uint32_t i = 0; i < choice->count; i++)
        if (choice->groups[i] == group)
            return true;
    if (choice->count == MAX_TOGETHER)
        return false;
    choice->groups[choice->count++] = group;
    bool later = false; // it is made again anyway
    for (uint32_t i = 0; i < item->result_count; i++) {
        uint32_t slot = item->results[i];
        later |= r->again[slot] >= 0;
        if (r->waits[slot] && !r->at_peak[slot] && r->next[slot] >= choice->position)
            choice->gain += r->bytes[slot];
    }
    choice->flops += later ? 0 : item->flops;
    for (uint32_t i = 0; i < item->read_count; i++) {
        uint32_t slot = item->reads[i];
        if (r->waits[slot] || (r->again[slot] >= 0 && r->again[slot] < choice->position))
            continue;
        const Item *maker = &r->items[r->maker[slot] - 1];
        if (!together || !maker->repeatable)
            choice->gain -= r->bytes[slot];
        else if (!bring(r, choice, r->maker[slot] - 1, true))
            return false;
    }
    return true;
}

// What repeating `group` means at the peak. false: nothing of it waits there.
static bool consider(const Recompute *r, uint32_t group, Round round, Choice *choice)
{
    const Item *item = &r->items[group];
    bool may = round == ROUND_WISHES  ? item->wished
               : round == ROUND_CHEAP ? item->cheap
                                      : item->repeatable;
    *choice = (Choice){.position = INT32_MAX};
    if (!may || item->refused)
        return false;
    for (uint32_t i = 0; i < item->result_count; i++) {
        uint32_t slot = item->results[i];
        if (r->waits[slot] && r->next[slot] < choice->position)
            choice->position = r->next[slot];
    }
    return choice->position < INT32_MAX && bring(r, choice, group, round != ROUND_CHEAP);
}

static bool is_better(const Choice *x, const Choice *y, Round round)
{
    if (round != ROUND_BUDGET)
        return x->gain > y->gain;
    double left = x->flops * (double)y->gain, right = y->flops * (double)x->gain;
    return left < right || (left == right && x->gain > y->gain);
}

// Makes room in front of `position`, and puts the groups there in the order of the first pass;
// those that came later anyway do so no more.
static void apply(Recompute *r, const Choice *choice)
{
    Work *work = r->work;
    uint32_t ordered[MAX_TOGETHER], count = 0;
    for (uint32_t i = 0; i < choice->count; i++) {
        uint32_t at = count++;
        while (at > 0 && r->items[ordered[at - 1]].rank > r->items[choice->groups[i]].rank) {
            ordered[at] = ordered[at - 1];
            at--;
        }
        ordered[at] = choice->groups[i];
    }
    uint32_t from = (uint32_t)choice->position, to = from;
    for (uint32_t p = from; p < work->group_count; p++) {
        bool moves = false;
        for (uint32_t i = 0; i < count; i++)
            moves |= work->schedule[p] == ordered[i];
        if (!moves)
            work->schedule[to++] = work->schedule[p];
    }
    memmove(work->schedule + from + count, work->schedule + from,
            (to - from) * sizeof *work->schedule);
    memcpy(work->schedule + from, ordered, count * sizeof *ordered);
    work->group_count = to + count;
}

// One more repeat; false: there is nothing to gain at the peak.
static bool repeat_best(Recompute *r, int32_t *peak, Round round)
{
    Work *work = r->work;
    int64_t most = r->live[*peak], least = most / LEAST_GAIN;
    Choice best = {0}, choice;
    bool found = false;
    uint32_t root = 0;
    look_behind(r, *peak);
    for (uint32_t g = 0; g < r->groups; g++) {
        if (!consider(r, g, round, &choice) || choice.gain <= least)
            continue;
        if (!found || is_better(&choice, &best, round)) {
            best = choice;
            root = g;
        }
        found = true;
    }
    if (!found || work->group_count + best.count > r->capacity)
        return false;
    uint32_t count = work->group_count;
    memcpy(r->saved, work->schedule, count * sizeof *r->saved);
    apply(r, &best);
    *peak = find_peak(r);
    if (r->live[*peak] > most) {
        r->items[root].refused = true;
        memcpy(work->schedule, r->saved, count * sizeof *r->saved);
        work->group_count = count;
        *peak = find_peak(r);
    }
    return true;
}

static void make_room(Recompute *r)
{
    Work *work = r->work;
    Arena *arena = work->arena;
    uint32_t count = work->group_count;
    for (uint32_t i = 0; i < count; i++)
        r->groups = work->schedule[i] >= r->groups ? work->schedule[i] + 1 : r->groups;
    uint32_t slots = 1;
    for (uint32_t i = 0; i < count; i++)
        slots += work->groups[work->schedule[i]].result_count;
    r->slots = 1;
    r->capacity = count + MAX_REPEATS;
    size_t positions = (size_t)r->capacity + 4;
    r->items = arena_alloc(arena, (r->groups + 1) * sizeof *r->items);
    r->slot_of = arena_alloc(arena, (size_t)work->count * MAX_OUT * sizeof *r->slot_of);
    r->bytes = arena_alloc(arena, slots * sizeof *r->bytes);
    r->maker = arena_alloc(arena, slots * sizeof *r->maker);
    r->first = arena_alloc(arena, slots * sizeof *r->first);
    r->last = arena_alloc(arena, slots * sizeof *r->last);
    r->next = arena_alloc(arena, slots * sizeof *r->next);
    r->again = arena_alloc(arena, slots * sizeof *r->again);
    r->waits = arena_alloc(arena, slots * sizeof *r->waits);
    r->at_peak = arena_alloc(arena, slots * sizeof *r->at_peak);
    r->live = arena_alloc(arena, positions * sizeof *r->live);
    r->saved = arena_alloc(arena, positions * sizeof *r->saved);
    r->plain = arena_alloc(arena, positions * sizeof *r->plain);
    uint32_t *schedule = arena_alloc(arena, positions * sizeof *schedule);
    memcpy(schedule, work->schedule, count * sizeof *schedule);
    work->schedule = schedule;
}

// What the repeats cost.
static void count_repeats(Recompute *r)
{
    Work *work = r->work;
    bool *seen = arena_alloc(work->arena, r->groups + 1);
    work->repeats = 0;
    work->again_fixed = work->again_batch = 0;
    for (uint32_t p = 0; p < work->group_count; p++) {
        const Group *group = &work->groups[work->schedule[p]];
        work->repeats += seen[work->schedule[p]];
        for (uint32_t i = 0; seen[work->schedule[p]] && i < group->member_count; i++) {
            double fixed, per_batch;
            node_flops(work->module->graph, group->members[i], &fixed, &per_batch);
            work->again_fixed += fixed;
            work->again_batch += per_batch;
        }
        seen[work->schedule[p]] = true;
    }
}

// Bytes that live values may take under the budget: packing, and copies made by
// lowering, take some.
static int64_t room_of(const Work *work)
{
    return work->budget - work->budget / 64;
}

// Round 2. Returns the peak.
static int32_t repeat_cheap(Recompute *r, int32_t peak)
{
    Work *work = r->work;
    if (work->budget > 0) {
        while (r->live[peak] > room_of(work) && repeat_best(r, &peak, ROUND_CHEAP))
            ;
        return peak;
    }
    uint32_t count = work->group_count;
    memcpy(r->plain, work->schedule, count * sizeof *r->plain);
    int64_t most = r->live[peak];
    while (repeat_best(r, &peak, ROUND_CHEAP))
        ;
    Footprint print = plan_footprint(&work, 1, 0);
    if ((double)(most - r->live[peak]) >=
        WORTH * (double)(most + footprint_outside(&print, r->batch)))
        return peak;
    memcpy(work->schedule, r->plain, count * sizeof *r->plain);
    work->group_count = count;
    return find_peak(r);
}

void recompute_groups(Work *work)
{
    Recompute r = {.work = work,
                   .batch = work->budget_batch > 0 ? work->budget_batch : TYPICAL_BATCH};
    make_room(&r);
    uint32_t count = work->group_count;
    for (uint32_t i = 0; i < count; i++)
        collect_item(&r, work->schedule[i], i);
    for (uint32_t i = 0; i < count; i++)
        collect_reads(&r, work->schedule[i]);
    int32_t peak = find_peak(&r);
    while (repeat_best(&r, &peak, ROUND_WISHES))
        ;
    peak = repeat_cheap(&r, peak);
    for (uint32_t g = 0; g < r.groups; g++)
        r.items[g].refused = false;
    while (work->budget > 0 && r.live[peak] > room_of(work) && repeat_best(&r, &peak, ROUND_BUDGET))
        ;
    count_repeats(&r);
}
