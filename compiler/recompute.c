// Recomputation: values that wait long for the backward pass are made a second time instead.
//
// The backward pass reads activations that the forward pass made, and at the turning point all of
// them are there at once. Many are cheap to make again from others that wait anyway: what an
// activation function or a norm gave, a concatenation. Such a group comes a second time in the
// schedule, right before the first reader behind the turning point; the lowering gives its results
// new storage then, and later readers find that.
//
// The pass looks at the position where most bytes are live. Of the groups whose results wait there,
// unread, it repeats the one that gains most: the bytes of its results, less those of operands that
// have to wait in their place. If the largest live set has not grown by it, the next position
// is looked at, until there is nothing to gain. What one kernel computes does not change, so every
// value keeps its bits. Products, convolutions, attention and reductions are never repeated.
#include <string.h>

#include "compiler/plan.h"

enum { TYPICAL_BATCH = 4, LEAST_GAIN = 2000, MAX_REPEATS = 1024 };

typedef struct {
    uint32_t *reads, read_count;       // slots of bases that groups make, each once
    uint32_t *results, result_count;   // slots in the arena
    bool cheap;                        // may be computed again
    bool refused;
} Item;

typedef struct {
    Work *work;
    Item *items;               // by group
    int64_t *bytes;            // by slot (local number, output)
    uint32_t *maker;           // by slot: group + 1, 0 = not in the arena
    uint32_t slots;
    // of the present schedule
    int32_t *first, *last;     // by slot: of the instance at hand
    int64_t *live;             // by position
    int32_t *next;             // by slot: first reader behind the peak
    int32_t *again;            // by slot: first time behind the peak that it is made; -1: none
    bool *at_peak;             // by slot: read or made there
    bool *waits;               // by slot: live across the peak
} Recompute;

static int64_t slot_bytes(const Work *work, Val val)
{
    const Type *type = val_type(work->module->graph, val);
    Dim count;
    if (!type_count(type, &count))
        bug("a value's size is not linear in the batch");
    return count.n * (int64_t)element_size(work->module, type->dtype) *
           (count.batch ? TYPICAL_BATCH : 1);
}

static uint32_t slot_of(const Work *work, Val val)
{
    return local_of(work, val) * MAX_OUT + val_out(val);
}

static bool is_cheap(const Work *work, const Group *group)
{
    for (uint32_t i = 0; i < group->result_count; i++)
        if (group->results[i] && (work->kept[local_of(work, group->results[i])] ||
                                  work->within[local_of(work, group->results[i])]))
            return false;
    if (group->kind == GROUP_ELEMENTWISE)
        return true;
    switch ((int)graph_node(work->module->graph, group->anchor)->op) {
    case OP_GROUP_NORM: case OP_LAYER_NORM: case OP_CONCAT: case OP_RESHAPE:
        return true;
    default:
        return false;
    }
}

static void collect_item(Recompute *r, uint32_t number)
{
    Work *work = r->work;
    const Group *group = &work->groups[number];
    Item *item = &r->items[number];
    item->cheap = is_cheap(work, group);
    item->results = arena_alloc(work->arena, MAX_OUT * sizeof(uint32_t));
    for (uint32_t i = 0; i < group->result_count; i++) {
        uint32_t slot = group->results[i] ? slot_of(work, group->results[i]) : 0;
        if (!group->results[i] || work->kept[slot / MAX_OUT])
            continue;
        item->results[item->result_count++] = slot;
        r->maker[slot] = number + 1;
        r->bytes[slot] = slot_bytes(work, group->results[i]);
    }
}

static void collect_reads(Recompute *r, uint32_t number)
{
    Work *work = r->work;
    const Group *group = &work->groups[number];
    Item *item = &r->items[number];
    item->reads = arena_alloc(work->arena, (group->read_count + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < group->read_count; i++) {
        uint32_t slot = slot_of(work, view_of(work, group->reads[i]).base);
        bool seen = !r->maker[slot] || r->maker[slot] == number + 1;
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

// What repeating `group` gains at the peak, and the position in front of which it has to come.
static int64_t gain_of(const Recompute *r, uint32_t group, int32_t *position)
{
    const Item *item = &r->items[group];
    int64_t gain = 0;
    *position = INT32_MAX;
    for (uint32_t i = 0; i < item->result_count; i++) {
        uint32_t slot = item->results[i];
        if (!r->waits[slot])
            continue;
        if (!r->at_peak[slot])
            gain += r->bytes[slot];
        if (r->next[slot] < *position)
            *position = r->next[slot];
    }
    for (uint32_t i = 0; i < item->read_count; i++) {
        uint32_t slot = item->reads[i];
        bool made = r->again[slot] >= 0 && r->again[slot] < *position;
        if (!r->waits[slot] && !made)
            gain -= r->bytes[slot];
    }
    return gain;
}

static void insert_group(Work *work, int32_t position, uint32_t group)
{
    memmove(work->schedule + position + 1, work->schedule + position,
            (work->group_count - (uint32_t)position) * sizeof *work->schedule);
    work->schedule[position] = group;
    work->group_count++;
}

static void remove_group(Work *work, int32_t position)
{
    work->group_count--;
    memmove(work->schedule + position, work->schedule + position + 1,
            (work->group_count - (uint32_t)position) * sizeof *work->schedule);
}

static bool repeat_best(Recompute *r, int32_t *peak, uint32_t groups)
{
    Work *work = r->work;
    int64_t most = r->live[*peak], best = most / LEAST_GAIN;
    uint32_t chosen = UINT32_MAX;
    int32_t position = 0;
    look_behind(r, *peak);
    for (uint32_t g = 0; g < groups; g++) {
        int32_t at;
        if (!r->items[g].cheap || r->items[g].refused)
            continue;
        int64_t gain = gain_of(r, g, &at);
        if (gain > best && at < INT32_MAX) {
            best = gain;
            chosen = g;
            position = at;
        }
    }
    if (chosen == UINT32_MAX)
        return false;
    insert_group(work, position, chosen);
    *peak = find_peak(r);
    if (r->live[*peak] > most) {
        r->items[chosen].refused = true;
        remove_group(work, position);
        *peak = find_peak(r);
    }
    return true;
}

void recompute_groups(Work *work)
{
    uint32_t groups = 0, count = work->group_count;
    for (uint32_t i = 0; i < count; i++)
        groups = work->schedule[i] >= groups ? work->schedule[i] + 1 : groups;
    Arena *arena = work->arena;
    Recompute r = {.work = work, .slots = work->count * MAX_OUT};
    size_t positions = (size_t)count + MAX_REPEATS + 4;
    r.items = arena_alloc(arena, (groups + 1) * sizeof *r.items);
    r.bytes = arena_alloc(arena, r.slots * sizeof *r.bytes);
    r.maker = arena_alloc(arena, r.slots * sizeof *r.maker);
    r.first = arena_alloc(arena, r.slots * sizeof *r.first);
    r.last = arena_alloc(arena, r.slots * sizeof *r.last);
    r.next = arena_alloc(arena, r.slots * sizeof *r.next);
    r.again = arena_alloc(arena, r.slots * sizeof *r.again);
    r.waits = arena_alloc(arena, r.slots * sizeof *r.waits);
    r.at_peak = arena_alloc(arena, r.slots * sizeof *r.at_peak);
    r.live = arena_alloc(arena, positions * sizeof *r.live);
    uint32_t *schedule = arena_alloc(arena, positions * sizeof *schedule);
    memcpy(schedule, work->schedule, count * sizeof *schedule);
    work->schedule = schedule;
    for (uint32_t i = 0; i < count; i++)
        collect_item(&r, schedule[i]);
    for (uint32_t i = 0; i < count; i++)
        collect_reads(&r, schedule[i]);
    int32_t peak = find_peak(&r);
    for (uint32_t i = 0; i < MAX_REPEATS && repeat_best(&r, &peak, groups); i++)
        ;
}
