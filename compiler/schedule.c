// Schedule: the order of groups.
//
// The numbers of nodes are an order already, that of the model's text, and backward passes follow
// in reverse: a good one for memory. So groups run in the order of their last node, with one
// exception: a group that frees at least as many bytes of the arena as it allocates runs as soon as
// it can. The gradients of parameters are such groups (their results lie outside the arena, and
// activations die with them), and so are most reductions.
//
// The ready groups wait in a heap; a group is looked at again whenever one of the values it reads
// has lost its last other reader, so the pass is near linear.
//
// At -O2 neighbours in the order that are elementwise, of one iteration space, and share a value
// become one kernel: merging neighbours of a topological order cannot make a cycle.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { TYPICAL_BATCH = 4, MAX_MERGED_READS = 16, MERGE_WINDOW = 8, TWIN_WINDOW = 64 };

typedef struct {
    Work *work;
    uint32_t *maker;        // by local number of a base: group + 1
    uint32_t *readers_left; // by local number of a base: groups that still read it
    uint32_t **readers;     // by local number of a base: those groups
    uint32_t *reader_count;
    uint32_t *waits;  // by group: groups it waits for
    uint32_t **bases; // by group: local numbers of the bases it reads, each once
    uint32_t *base_count;
    bool *in_grad; // by value (local number, output): stored outside the arena
    bool *done;
    NodeId *rank; // by group: place in the natural order
    uint32_t *heap;
    uint32_t heap_count;
} Scheduler;

static bool before(const Scheduler *s, uint32_t x, uint32_t y)
{
    return s->rank[x] != s->rank[y] ? s->rank[x] < s->rank[y] : x < y;
}

static void heap_push(Scheduler *s, uint32_t group)
{
    uint32_t at = s->heap_count++;
    while (at > 0 && before(s, group, s->heap[(at - 1) / 2])) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = group;
}

static uint32_t heap_pop(Scheduler *s)
{
    uint32_t top = s->heap[0], last = s->heap[--s->heap_count], at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= s->heap_count)
            break;
        if (child + 1 < s->heap_count && before(s, s->heap[child + 1], s->heap[child]))
            child++;
        if (before(s, last, s->heap[child]))
            break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = last;
    return top;
}

static uint32_t slot_of(const Work *work, Val val)
{
    return local_of(work, val) * MAX_OUT + val_out(val);
}

static int64_t val_bytes(const Work *work, Val val)
{
    const Type *type = val_type(work->module->graph, val);
    Dim count;
    if (!type_count(type, &count))
        bug("a value's size is not linear in the batch");
    int64_t bytes = count.n * (int64_t)stored_size(work, val);
    return count.batch ? bytes * TYPICAL_BATCH : bytes;
}

// What running `group` now adds to the arena, less what dies with it.
static int64_t growth(const Scheduler *s, uint32_t group)
{
    const Work *work = s->work;
    const Group *at = &work->groups[group];
    int64_t bytes = 0;
    for (uint32_t i = 0; i < at->result_count; i++)
        if (at->results[i] && !s->in_grad[slot_of(work, at->results[i])])
            bytes += val_bytes(work, at->results[i]);
    for (uint32_t i = 0; i < s->base_count[group]; i++) {
        uint32_t base = s->bases[group][i];
        if (s->readers_left[base] == 1 && s->maker[base] && !work->kept[base] &&
            !s->in_grad[base * MAX_OUT])
            bytes -= val_bytes(work, val_of(work->nodes[base], 0));
    }
    return bytes;
}

// The bases that a group reads and the groups that make them.
static void connect(Scheduler *s, uint32_t group)
{
    Work *work = s->work;
    const Group *at = &work->groups[group];
    s->bases[group] = arena_alloc(work->arena, (at->read_count + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < at->read_count; i++) {
        uint32_t base = local_of(work, base_of(work, at->reads[i]));
        bool seen = false;
        for (uint32_t k = 0; k < s->base_count[group]; k++)
            seen |= s->bases[group][k] == base;
        if (!seen && s->maker[base] && s->maker[base] != group + 1) {
            s->bases[group][s->base_count[group]++] = base;
            s->reader_count[base]++;
        }
    }
}

// A gradient, and what its kernel adds to it and nothing else reads: they share one place.
static void mark_in_grad(Scheduler *s, Val val)
{
    Work *work = s->work;
    for (;;) {
        Val base = base_of(work, val);
        uint32_t local = local_of(work, base);
        s->in_grad[slot_of(work, base)] = true;
        const Group *group = s->maker[local] ? &work->groups[s->maker[local] - 1] : NULL;
        if (!group || group->results[0] != base || !group->residual)
            return;
        val = group->residual;
        local = local_of(work, base_of(work, val));
        if (!s->maker[local] || s->reader_count[local] != 1 || work->kept[local])
            return;
    }
}

// The place of a group in the order of the model: that of its last node.
static NodeId turn_of(const Work *work, const Group *group)
{
    NodeId last = 0;
    for (uint32_t i = 0; i < group->member_count; i++) {
        NodeId id = turn_of_node(work, group->members[i]);
        last = id > last ? id : last;
    }
    return last;
}

static void prepare(Scheduler *s)
{
    Work *work = s->work;
    uint32_t groups = work->group_count + 1, nodes = work->count + 1;
    Arena *arena = work->arena;
    s->maker = arena_alloc(arena, nodes * sizeof(uint32_t));
    s->readers_left = arena_alloc(arena, nodes * sizeof(uint32_t));
    s->reader_count = arena_alloc(arena, nodes * sizeof(uint32_t));
    s->readers = arena_alloc(arena, nodes * sizeof(uint32_t *));
    s->in_grad = arena_alloc(arena, nodes * MAX_OUT * sizeof(bool));
    s->waits = arena_alloc(arena, groups * sizeof(uint32_t));
    s->bases = arena_alloc(arena, groups * sizeof(uint32_t *));
    s->base_count = arena_alloc(arena, groups * sizeof(uint32_t));
    s->done = arena_alloc(arena, groups * sizeof(bool));
    s->rank = arena_alloc(arena, groups * sizeof(NodeId));
    s->heap = arena_alloc(arena, groups * sizeof(uint32_t));
    for (uint32_t g = 0; g < work->group_count; g++) {
        const Group *group = &work->groups[g];
        for (uint32_t i = 0; i < group->result_count; i++)
            if (group->results[i])
                s->maker[local_of(work, group->results[i])] = g + 1;
        s->rank[g] = turn_of(work, group);
    }
    for (uint32_t g = 0; g < work->group_count; g++)
        connect(s, g);
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        if (work->variant->outputs[i].kind == OUT_GRAD)
            mark_in_grad(s, work->variant->outputs[i].val);
    for (uint32_t local = 0; local < work->count; local++)
        s->readers[local] = arena_alloc(arena, (s->reader_count[local] + 1) * sizeof(uint32_t));
    for (uint32_t g = 0; g < work->group_count; g++) {
        for (uint32_t i = 0; i < s->base_count[g]; i++) {
            uint32_t base = s->bases[g][i];
            s->readers[base][s->readers_left[base]++] = g;
        }
        s->waits[g] = s->base_count[g];
    }
}

// Runs `first`, then every ready group that does not grow the arena, from a stack.
static uint32_t run_from(Scheduler *s, uint32_t first, uint32_t position, uint32_t *stack)
{
    Work *work = s->work;
    uint32_t depth = 0;
    stack[depth++] = first;
    while (depth > 0) {
        uint32_t group = stack[--depth];
        if (s->done[group])
            continue;
        s->done[group] = true;
        work->schedule[position++] = group;
        const Group *at = &work->groups[group];
        for (uint32_t i = 0; i < at->result_count; i++) {
            uint32_t local = at->results[i] ? local_of(work, at->results[i]) : 0;
            if (!at->results[i] || s->maker[local] != group + 1)
                continue;
            bool again = false; // two results of one node share its readers
            for (uint32_t k = 0; k < i; k++)
                again |= at->results[k] && local_of(work, at->results[k]) == local;
            for (uint32_t k = 0; !again && k < s->reader_count[local]; k++) {
                uint32_t reader = s->readers[local][k];
                if (--s->waits[reader] > 0)
                    continue;
                if (growth(s, reader) <= 0)
                    stack[depth++] = reader;
                else
                    heap_push(s, reader);
            }
        }
        for (uint32_t i = 0; i < s->base_count[group]; i++) {
            uint32_t base = s->bases[group][i];
            if (--s->readers_left[base] != 1)
                continue;
            for (uint32_t k = 0; k < s->reader_count[base]; k++) {
                uint32_t reader = s->readers[base][k];
                if (!s->done[reader] && s->waits[reader] == 0 && growth(s, reader) <= 0)
                    stack[depth++] = reader;
            }
        }
    }
    return position;
}

// ---- neighbours of one iteration space ----

static bool share_value(const Work *work, const Group *x, const Group *y)
{
    for (uint32_t i = 0; i < y->read_count; i++) {
        for (uint32_t k = 0; k < x->read_count; k++)
            if (same_elements(work, x->reads[k], y->reads[i]))
                return true;
        for (uint32_t k = 0; k < x->result_count; k++)
            if (x->results[k] == y->reads[i])
                return true;
    }
    return false;
}

// No view of a result of `x` other than the result itself may be read by `y`.
static bool reads_other_view(const Work *work, const Group *x, const Group *y)
{
    for (uint32_t i = 0; i < y->read_count; i++) {
        Val base = base_of(work, y->reads[i]);
        for (uint32_t k = 0; k < x->result_count; k++)
            if (base == x->results[k] && y->reads[i] != base)
                return true;
    }
    return false;
}

static bool swaps_result(const Work *work, const Group *x, const Group *y)
{
    for (uint32_t i = 0; i < y->member_count; i++) {
        const Node *node = graph_node(work->module->graph, y->members[i]);
        for (uint32_t k = 0; node->op == OP_SWAP_PAIRS && k < x->result_count; k++)
            if (node->in[0] == x->results[k])
                return true;
    }
    return false;
}

// Moves the results of `x` into `y`; values that `y` read from `x` are computed inside.
static bool merge(Work *work, uint32_t x_number, uint32_t y_number)
{
    Group *x = &work->groups[x_number], *y = &work->groups[y_number];
    if (x->kind != GROUP_ELEMENTWISE || y->kind != GROUP_ELEMENTWISE ||
        !shape_equal(x->space, y->space) || !share_value(work, x, y) ||
        x->result_count + y->result_count > MAX_OUT ||
        x->read_count + y->read_count > MAX_MERGED_READS || reads_other_view(work, x, y) ||
        swaps_result(work, x, y))
        return false;
    Val *reads = arena_alloc(work->arena, (x->read_count + y->read_count) * sizeof *reads);
    NodeId *members =
        arena_alloc(work->arena, (x->member_count + y->member_count) * sizeof *members);
    uint32_t count = 0;
    for (uint32_t i = 0; i < x->read_count; i++)
        reads[count++] = x->reads[i];
    for (uint32_t i = 0; i < y->read_count; i++) {
        bool known = false;
        for (uint32_t k = 0; k < count; k++)
            known |= reads[k] == y->reads[i];
        for (uint32_t k = 0; k < x->result_count; k++)
            known |= x->results[k] == y->reads[i];
        if (!known)
            reads[count++] = y->reads[i];
    }
    uint32_t i = 0, k = 0, total = 0; // both lists ascend
    while (i < x->member_count || k < y->member_count) {
        NodeId left = i < x->member_count ? x->members[i] : UINT32_MAX;
        NodeId right = k < y->member_count ? y->members[k] : UINT32_MAX;
        members[total++] = left < right ? left : right;
        i += left <= right;
        k += right <= left;
    }
    memmove(y->results + x->result_count, y->results, y->result_count * sizeof *y->results);
    memcpy(y->results, x->results, x->result_count * sizeof *x->results);
    y->result_count += x->result_count;
    y->reads = reads;
    y->read_count = count;
    y->members = members;
    y->member_count = total;
    for (uint32_t m = 0; m < total; m++)
        if (work->owner[local_of(work, val_of(members[m], 0))] == x_number + 1)
            work->owner[local_of(work, val_of(members[m], 0))] = y_number + 1;
    return true;
}

static bool reads_result(const Work *work, const Group *x, const Group *y)
{
    for (uint32_t i = 0; i < y->read_count; i++)
        for (uint32_t k = 0; k < x->result_count; k++)
            if (base_of(work, y->reads[i]) == x->results[k])
                return true;
    return false;
}

// Makes a group one with one of the last in the schedule: with its neighbour, or with a group a few
// places before that it reads from, so that siblings that lie a little differently fare alike. The
// two come where either can be: neither may pass a group that reads or makes what it needs. False:
// with none; else the schedule has one group for the two.
static bool merge_back(Work *work, uint32_t count, uint32_t number)
{
    const Group *group = &work->groups[number];
    for (uint32_t back = 1; back <= MERGE_WINDOW && back <= count; back++) {
        uint32_t at = count - back, first = work->schedule[at];
        const Group *before = &work->groups[first];
        bool down = true, up = true;
        for (uint32_t i = at + 1; i < count; i++) {
            down &= !reads_result(work, before, &work->groups[work->schedule[i]]);
            up &= !reads_result(work, &work->groups[work->schedule[i]], group);
        }
        if ((back > 1 && !reads_result(work, before, group)) || (!down && !up) ||
            !merge(work, first, number))
            continue;
        if (down)
            memmove(work->schedule + at, work->schedule + at + 1,
                    (back - 1) * sizeof *work->schedule);
        work->schedule[down ? count - 1 : at] = number;
        return true;
    }
    return false;
}

// Whether `y` reads all large values that it reads where `x` reads them: beside it, it costs its
// results alone.
static bool reads_alike(const Work *work, const Group *x, const Group *y)
{
    Dim count, all;
    uint32_t large = 0;
    type_count(y->space, &all);
    for (uint32_t i = 0; i < y->read_count; i++) {
        bool known = false;
        for (uint32_t k = 0; k < x->read_count; k++)
            known |= same_elements(work, x->reads[k], y->reads[i]);
        bool full = type_count(val_type(work->module->graph, y->reads[i]), &count) &&
                    dim_equal(count, all) && !val_is_step(work, y->reads[i]);
        if (full && !known)
            return false;
        large += full;
    }
    return large > 1;
}

// Makes a group one with a group before it that reads several values where it reads them, such as
// two means of the same blocks; nothing from there on may make what it needs. False: there is none.
static bool merge_twin(Work *work, uint32_t count, uint32_t number)
{
    const Group *group = &work->groups[number];
    uint32_t end = count > TWIN_WINDOW ? count - TWIN_WINDOW : 0;
    for (uint32_t at = count; at-- > end && group->kind == GROUP_ELEMENTWISE;) {
        const Group *other = &work->groups[work->schedule[at]];
        if (reads_result(work, other, group))
            break;
        if (other->kind == GROUP_ELEMENTWISE && shape_equal(other->space, group->space) &&
            reads_alike(work, other, group) && merge(work, work->schedule[at], number)) {
            work->schedule[at] = number;
            return true;
        }
    }
    return false;
}

static void merge_neighbours(Work *work, uint32_t count)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!merge_back(work, kept, work->schedule[i]) &&
            !merge_twin(work, kept, work->schedule[i]))
            work->schedule[kept++] = work->schedule[i];
    work->group_count = kept;
}

void schedule_groups(Work *work)
{
    Scheduler s = {.work = work};
    prepare(&s);
    work->schedule = arena_alloc(work->arena, (work->group_count + 1) * sizeof(uint32_t));
    size_t edges = work->group_count + 1;
    for (uint32_t g = 0; g < work->group_count; g++)
        edges += 2 * (size_t)s.base_count[g];
    uint32_t *stack = arena_alloc(work->arena, 2 * edges * sizeof *stack);
    for (uint32_t g = 0; g < work->group_count; g++)
        if (s.waits[g] == 0)
            heap_push(&s, g);
    uint32_t position = 0;
    while (s.heap_count > 0) {
        uint32_t group = heap_pop(&s);
        if (!s.done[group])
            position = run_from(&s, group, position, stack);
    }
    if (position != work->group_count)
        bug("%u of %u groups wait for each other", work->group_count - position, work->group_count);
    // neighbours of one iteration space: only with the whole of -O2, since it is no rung of its own
    if (work->rungs & RUNG_ELEMENTWISE && work->rungs & RUNG_MEMORY)
        merge_neighbours(work, position);
    bool gradients = false;
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        gradients |= work->variant->outputs[i].kind == OUT_GRAD;
    if (gradients && work->rungs & RUNG_MEMORY && !work->taps)
        recompute_groups(work);
}
