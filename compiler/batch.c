// Sibling batching: independent groups that one kernel can compute in one launch.
//
// A model that runs one network over several inputs (planes, scales, branches) has groups that do
// the same to different values. Walking the schedule, the pass takes the first group that is left
// and draws forward, from a window behind it, groups of the same work whose operands are all there
// by then: they cannot depend on it, nor on one another. The lowering gives such a set one launch
// with a segment for each (codegen/emit_launch.c), if the kernels turn out to be the same one.
// A product that is a convolution of kernel 1 may go with convolutions, since one kernel does both.
// Chains of siblings stay in step by themselves: once their first groups are together, so are the
// second ones, and so on. This is what ordering by depth would give, but bounded in time.
// A network that runs twice on the same weights, once with an operand folded away, is out of step
// from the beginning. So a sibling that reads a parameter of the first group, and waits for a few
// groups that do not wait for that one, is drawn forward with them: they run before the set.
//
// Groups that nothing waits for, gradients of weights above all, are put off: others of their kind
// come by, and one launch computes all.
//
// What is drawn forward, or put off, keeps values alive longer. So a window is accepted only if the
// largest live set has not grown by more than a fraction of itself, or, without gradients, of the
// parameters that sets no longer read again. Of several windows the longest such is taken; with
// gradients, where a shorter window may let groups be put off for longer, the one with
// the fewest sets.
#include <string.h>

#include "compiler/plan.h"

enum { TYPICAL_BATCH = 4, KINDS = 4096, MAX_DRAWN = 16, MAX_READY = 32 };

typedef struct {
    uint32_t *at, count, capacity;
} List;

// The storage that a group reads, and that it makes: slots.
typedef struct {
    uint32_t *reads, read_count;
    uint32_t *makes, make_count;
} Touched;

typedef struct {
    Work *work;
    uint32_t count;            // positions of the schedule that came in
    Touched *touched;          // by position
    Val *weight;               // by position: the first parameter that the kernel reads; 0: none
    uint32_t *slot_of;         // by local number * MAX_OUT + output: of storage; slots count from 1
    uint32_t slots;            // with the unused number 0
    List *before;              // by position: positions that have to come first
    uint32_t *next_alike;      // by position: next one of the same hash, + 1
    uint32_t *head_alike;      // by hash
    uint32_t *next_product, head_product;      // the same of products like convolutions
    uint32_t left_product;     // of these the first not before the present position
    int64_t *bytes;            // by slot; 0: not in the arena
    int32_t *first, *last;     // by slot
    bool *is_end;              // by position: no other one has to come behind it
    bool *shared;              // by slot: other values lie in it too
    uint32_t *order;           // the schedule that is tried: positions
    bool *joined;
    uint32_t placed;           // of order
    int64_t *change;           // by time: bytes that begin or end to live
} Batcher;

static uint32_t slot_of(const Work *work, Val val)
{
    return local_of(work, val) * MAX_OUT + val_out(val);
}

static void list_add(Arena *arena, List *list, uint32_t item)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i] == item)
            return;
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 4;
        uint32_t *larger = arena_alloc(arena, list->capacity * sizeof *larger);
        if (list->count)
            memcpy(larger, list->at, list->count * sizeof *larger);
        list->at = larger;
    }
    list->at[list->count++] = item;
}

// Edges: from the latest maker of what a group reads; and, where a group comes again, from the
// readers of what it made before.
static void find_edges(Batcher *b)
{
    Work *work = b->work;
    Arena *arena = work->arena;
    uint32_t slots = work->count * MAX_OUT + 1;
    uint32_t *maker = arena_alloc(arena, slots * sizeof *maker);       // position + 1
    List *readers = arena_alloc(arena, slots * sizeof *readers);
    for (uint32_t p = 0; p < b->count; p++) {
        const Group *group = &work->groups[work->schedule[p]];
        for (uint32_t i = 0; i < group->read_count; i++) {
            uint32_t slot = slot_of(work, base_of(work, group->reads[i]));
            if (!maker[slot])
                continue;
            list_add(arena, &b->before[p], maker[slot] - 1);
            list_add(arena, &readers[slot], p);
        }
        for (uint32_t i = 0; i < group->result_count; i++) {
            if (!group->results[i])
                continue;
            uint32_t slot = slot_of(work, group->results[i]);
            if (maker[slot])
                list_add(arena, &b->before[p], maker[slot] - 1);
            for (uint32_t k = 0; k < readers[slot].count; k++)
                if (readers[slot].at[k] != p)
                    list_add(arena, &b->before[p], readers[slot].at[k]);
            readers[slot].count = 0;
            maker[slot] = p + 1;
        }
    }
    for (uint32_t p = 0; p < b->count; p++)
        b->is_end[p] = true;
    for (uint32_t p = 0; p < b->count; p++)
        for (uint32_t i = 0; i < b->before[p].count; i++)
            b->is_end[b->before[p].at[i]] = false;
}

// ---- what is the same work ----

static bool takes_segments(Op op)
{
    switch ((int)op) {
    case OP_CONTRACT: case OP_CONV: case OP_CONV_DGRAD: case OP_CONV_WGRAD: case OP_ATTENTION:
    case OP_ATTENTION_GRAD: case OP_GROUP_NORM: case OP_GROUP_NORM_TABLE:
    case OP_CHANNEL_MOMENTS: case OP_GROUP_NORM_GRAD: case OP_LAYER_NORM:
    case OP_LAYER_NORM_GRAD: case OP_SOFTMAX: case OP_REDUCE_SUM: case OP_REDUCE_MAX:
    case OP_REDUCE_MIN: case OP_CONCAT: case OP_RESHAPE:
        return true;
    default:
        return false;
    }
}

static uint32_t hash_group(const Work *work, const Group *group)
{
    const Graph *graph = work->module->graph;
    uint64_t hash = (uint64_t)group->kind * 31 + (uint64_t)group->act;
    for (uint32_t i = 0; i < group->member_count; i++)
        hash = hash * 1099511628211u + (uint64_t)graph_node(graph, group->members[i])->op + 1;
    hash = hash * 1099511628211u + group->read_count;
    return (uint32_t)(hash ^ hash >> 32) % KINDS;
}

// Rows of any number of axes times a matrix, or rows times rows summed up: which of the two, by
// operand and by the order of the matrix's labels; 0: neither.
static uint32_t rows_product(const Node *node)
{
    const int64_t *rank = node->attr->n, *labels[3] = {rank + 3, rank + 3 + rank[0], NULL};
    labels[2] = labels[1] + rank[1];
    for (uint32_t matrix = 0; matrix < 3; matrix++) {
        // the other two share all labels but their last ones, which are those of the matrix
        const int64_t *two = labels[matrix], *x = labels[matrix == 0],
                      *y = labels[2 - (matrix == 2)];
        int64_t rows = rank[matrix == 0] - 1;
        if (rank[matrix] != 2 || rows < 1 || rank[2 - (matrix == 2)] != rows + 1 ||
            memcmp(x, y, (size_t)rows * sizeof *x) != 0)
            continue;
        if (two[0] == x[rows] && two[1] == y[rows])
            return 1 + 2 * matrix;
        if (two[1] == x[rows] && two[0] == y[rows])
            return 2 + 2 * matrix;
    }
    return 0;
}

// The number of axes in front is not the kernel's: rows are rows.
static bool is_by_rows(const Node *node)
{
    const Type *type = node->type[0];
    switch ((int)node->op) {
    case OP_LAYER_NORM: case OP_LAYER_NORM_GRAD: case OP_SOFTMAX: case OP_ATTENTION:
    case OP_ATTENTION_GRAD: case OP_CONCAT:
        return true;
    case OP_REDUCE_SUM:
        return node->attr->n[0] == (INT64_C(1) << (type->rank - 1)) - 1;
    case OP_CONTRACT:
        return rows_product(node) != 0;
    default:
        return false;
    }
}

// Tables of norms of the same groups, from moments of as many parts of whatever positions.
static bool same_groups(const Node *x, const Node *y)
{
    return x->op == OP_GROUP_NORM_TABLE && x->attr->n[0] == y->attr->n[0] &&
           x->attr->count == y->attr->count && x->attr->real == y->attr->real;
}

// The kernel's own parameters: channels and taps of a convolution, head widths of an attention.
// `rows`: of rows, however many axes they have.
static bool same_operands(const Graph *graph, const Node *x, const Node *y, bool rows)
{
    if (x->op != y->op || x->nin != y->nin)
        return false;
    if (rows && x->op == OP_CONTRACT && rows_product(x) != rows_product(y))
        return false;
    if (rows && x->op == OP_CONCAT &&
        x->type[0]->rank - x->attr->n[0] != y->type[0]->rank - y->attr->n[0])
        return false;
    bool by_axis = x->op == OP_CONTRACT || x->op == OP_REDUCE_SUM || x->op == OP_CONCAT;
    if (x->attr != y->attr && !(rows && by_axis) && !same_groups(x, y))
        return false;
    for (uint32_t i = 0; i < x->nin && !rows; i++)
        if (val_type(graph, x->in[i])->rank != val_type(graph, y->in[i])->rank)
            return false;
    const Type *x_type = x->type[0], *y_type = y->type[0];
    switch ((int)x->op) {
    case OP_CONV: case OP_CONV_DGRAD:
        return shape_equal(val_type(graph, x->in[1]), val_type(graph, y->in[1]));
    case OP_CONV_WGRAD:
        return shape_equal(x_type, y_type);
    case OP_GROUP_NORM: case OP_GROUP_NORM_GRAD:
        return dim_equal(x_type->dim[1], y_type->dim[1]);
    case OP_GROUP_NORM_TABLE:
        return dim_equal(x_type->dim[2], y_type->dim[2]);
    case OP_CHANNEL_MOMENTS:
        return dim_equal(x_type->dim[3], y_type->dim[3]);
    case OP_ATTENTION: case OP_ATTENTION_GRAD:
        return dim_equal(x_type->dim[x_type->rank - 1], y_type->dim[y_type->rank - 1]);
    case OP_LAYER_NORM: case OP_LAYER_NORM_GRAD: case OP_SOFTMAX:
        return dim_equal(x_type->dim[x_type->rank - 1], y_type->dim[y_type->rank - 1]);
    default:
        return true;
    }
}

bool nodes_alike(const Graph *graph, const Node *x, const Node *y)
{
    return x->attr == y->attr && same_operands(graph, x, y, false);
}

static bool same_parts(const Group *x, const Group *y)
{
    for (uint32_t i = 0; i < MAX_OUT; i++)
        if (!x->added[i] != !y->added[i] || !x->results[i] != !y->results[i])
            return false;
    for (uint32_t i = 0; i < 2; i++)
        if (!x->rotary[i].x != !y->rotary[i].x)
            return false;
    return !x->bias == !y->bias && !x->residual == !y->residual && !x->scale == !y->scale &&
           (!x->bias || x->space->rank - x->bias_axis == y->space->rank - y->bias_axis) &&
           x->act == y->act && !x->gate == !y->gate && !x->norm.x == !y->norm.x &&
           (!x->norm.x || x->norm.act == y->norm.act) && x->term_count == y->term_count;
}

static bool same_work(const Work *work, const Group *x, const Group *y)
{
    const Graph *graph = work->module->graph;
    if (x->kind != y->kind || x->member_count != y->member_count ||
        x->read_count != y->read_count || x->result_count != y->result_count || !same_parts(x, y))
        return false;
    for (uint32_t i = 0; i < x->member_count; i++)
        if (graph_node(graph, x->members[i])->op != graph_node(graph, y->members[i])->op)
            return false;
    const Node *left = graph_node(graph, x->anchor), *right = graph_node(graph, y->anchor);
    bool rows = is_by_rows(left) && is_by_rows(right);
    return x->kind == GROUP_ELEMENTWISE ||
           (takes_segments(left->op) && same_operands(graph, left, right, rows));
}

// out[b, o, n...] = sum over c of w[o, c] x[b, c, n...]: a convolution of kernel 1.
static bool is_pointwise(const Graph *graph, const Group *group)
{
    const Node *node = graph_node(graph, group->anchor);
    return group->kind == GROUP_LIBRARY && group->bias_axis <= 1 &&
           pointwise_operand(graph, node) >= 0;
}

static void link_alike(Batcher *b)
{
    const Graph *graph = b->work->module->graph;
    for (uint32_t p = b->count; p-- > 0;) {
        if (is_pointwise(graph, &b->work->groups[b->work->schedule[p]])) {
            b->next_product[p] = b->head_product;
            b->head_product = p + 1;
        }
        uint32_t hash = hash_group(b->work, &b->work->groups[b->work->schedule[p]]);
        b->next_alike[p] = b->head_alike[hash];
        b->head_alike[hash] = p + 1;
    }
}

// ---- sets ----

// Segments that a group becomes.
static uint32_t segments_of(const Batcher *b, uint32_t position)
{
    return 1 + b->work->groups[b->work->schedule[position]].term_count;
}

static bool is_ready(const Batcher *b, uint32_t position, const bool *done)
{
    for (uint32_t i = 0; i < b->before[position].count; i++)
        if (!done[b->before[position].at[i]])
            return false;
    return true;
}

// The first parameter that the kernel of a group reads; 0: none.
static Val weight_of(const Work *work, const Group *group)
{
    for (uint32_t i = 0; group->kind == GROUP_LIBRARY && i < group->read_count; i++) {
        Val base = base_of(work, group->reads[i]);
        if (graph_node(work->module->graph, val_node(base))->op == OP_PARAM)
            return base;
    }
    return 0;
}

// Products that a kernel of convolutions can compute go with those at position p: of those that are
// ready, all that share a weight or none.
static uint32_t add_products(Batcher *b, uint32_t p, uint32_t window, const bool *done,
                             uint32_t *set, uint32_t members)
{
    const Work *work = b->work;
    const Group *group = &work->groups[work->schedule[p]];
    uint32_t ready[MAX_READY], count = 0;
    Val weight[MAX_READY];
    while (b->left_product && b->left_product - 1 < p)
        b->left_product = b->next_product[b->left_product - 1];
    for (uint32_t q = b->left_product; q && q - 1 - p <= window && count < MAX_READY;
         q = b->next_product[q - 1]) {
        const Group *other = &work->groups[work->schedule[q - 1]];
        if (done[q - 1] || other->act != group->act || !is_ready(b, q - 1, done))
            continue;
        weight[count] = b->weight[q - 1];
        ready[count++] = q - 1;
    }
    bool seen[MAX_READY] = {false};
    for (uint32_t i = 0; i < count; i++) {
        uint32_t family[MAX_READY], size = 0;
        for (uint32_t k = i; k < count; k++)
            if (!seen[k] && (k == i || (weight[i] && weight[k] == weight[i]))) {
                seen[k] = true;
                family[size++] = ready[k];
            }
        if (members + size > PV_MAX_SEGMENTS)
            continue;
        memcpy(set + members, family, size * sizeof *set);
        members += size;
    }
    return members;
}

// What has to come before position q and is not done, q itself not counted: added to `waiting`,
// which has `count`. Above MAX_DRAWN: too many, or position `without` is among them.
static uint32_t find_waiting(const Batcher *b, uint32_t q, uint32_t without, const bool *done,
                             uint32_t *waiting, uint32_t count)
{
    const List *before = &b->before[q];
    for (uint32_t i = 0; i < before->count && count <= MAX_DRAWN; i++) {
        uint32_t p = before->at[i];
        bool known = done[p];
        for (uint32_t k = 0; k < count && !known; k++)
            known = waiting[k] == p;
        if (known)
            continue;
        if (p == without || count == MAX_DRAWN)
            return MAX_DRAWN + 1;
        count = find_waiting(b, p, without, done, waiting, count);
        if (count >= MAX_DRAWN)
            return MAX_DRAWN + 1;
        waiting[count++] = p;
    }
    return count;
}

// Places position p, and with it groups of the same work that are ready.
static void draw_set(Batcher *b, uint32_t p, uint32_t window, bool *done)
{
    const Work *work = b->work;
    const Group *group = &work->groups[work->schedule[p]];
    uint32_t set[PV_MAX_SEGMENTS] = {p}, members = 1, each = segments_of(b, p);
    for (uint32_t q = b->next_alike[p];
         q && q - 1 - p <= window && (members + 1) * each <= PV_MAX_SEGMENTS;
         q = b->next_alike[q - 1])
        if (!done[q - 1] && is_ready(b, q - 1, done) &&
            same_work(work, group, &work->groups[work->schedule[q - 1]]))
            set[members++] = q - 1;
    if (graph_node(work->module->graph, group->anchor)->op == OP_CONV &&
        group->kind == GROUP_LIBRARY)
        members = add_products(b, p, window, done, set, members);
    for (uint32_t i = 0; i < members; i++) {
        done[set[i]] = true;
        b->joined[b->placed] = i > 0;
        b->order[b->placed++] = set[i];
    }
}

// Places what siblings of position p that share its weight wait for.
static void draw_waiting(Batcher *b, uint32_t p, uint32_t window, bool *done)
{
    const Work *work = b->work;
    const Group *group = &work->groups[work->schedule[p]];
    Val weight = b->weight[p];
    uint32_t waiting[MAX_DRAWN + 1];
    for (uint32_t q = b->next_alike[p]; weight && q && q - 1 - p <= window;
         q = b->next_alike[q - 1]) {
        const Group *other = &work->groups[work->schedule[q - 1]];
        if (done[q - 1] || b->weight[q - 1] != weight || !same_work(work, group, other))
            continue;
        uint32_t count = find_waiting(b, q - 1, p, done, waiting, 0);
        for (uint32_t i = 0; count <= MAX_DRAWN && i < count; i++)
            if (!done[waiting[i]])
                draw_set(b, waiting[i], window, done);
    }
}

// Fills order and joined. Groups that nothing waits for come `wait` positions later.
static void draw_forward(Batcher *b, uint32_t window, uint32_t wait, bool *done)
{
    memset(done, 0, b->count * sizeof *done);
    b->left_product = b->head_product;
    b->placed = 0;
    uint32_t late = 0;         // the first that may wait
    for (uint32_t p = 0; p <= b->count + wait; p++) {
        for (; late < b->count && late + wait < p; late++)
            if (!done[late])
                draw_set(b, late, window, done);
        if (p >= b->count || done[p] || (wait > 0 && b->is_end[p]))
            continue;
        draw_waiting(b, p, window, done);
        if (!done[p])
            draw_set(b, p, window, done);
    }
}

static int64_t val_bytes(const Work *work, Val val)
{
    const Type *type = val_type(work->module->graph, val);
    Dim count;
    if (work->kept[local_of(work, val)] || !type_count(type, &count))
        return 0;
    return count.n * (int64_t)stored_size(work, val) *
           (!count.batch ? 1 : work->budget > 0 ? work->budget_batch : TYPICAL_BATCH);
}

// Numbers the slots, and says for each position which its group touches.
static void find_touched(Batcher *b)
{
    Work *work = b->work;
    for (uint32_t p = 0; p < b->count; p++) {
        const Group *group = &work->groups[work->schedule[p]];
        Touched *touched = &b->touched[p];
        touched->makes = arena_alloc(work->arena, (group->result_count + 1) * sizeof(uint32_t));
        for (uint32_t k = 0; k < group->result_count; k++) {
            if (!group->results[k])
                continue;
            Val storage = storage_of(work, group->results[k]);
            uint32_t *slot = &b->slot_of[slot_of(work, storage)];
            *slot = *slot ? *slot : b->slots++;
            b->shared[*slot] |= storage != group->results[k];
            b->bytes[*slot] = val_bytes(work, storage);
            touched->makes[touched->make_count++] = *slot;
        }
    }
    for (uint32_t p = 0; p < b->count; p++) {
        const Group *group = &work->groups[work->schedule[p]];
        Touched *touched = &b->touched[p];
        touched->reads = arena_alloc(work->arena, (group->read_count + 1) * sizeof(uint32_t));
        for (uint32_t k = 0; k < group->read_count; k++) {
            uint32_t slot = b->slot_of[slot_of(work, storage_of(work, group->reads[k]))];
            if (slot)
                touched->reads[touched->read_count++] = slot;
        }
        b->weight[p] = weight_of(work, group);
    }
}

static void end_life(Batcher *b, uint32_t slot)
{
    if (b->first[slot] < 0)
        return;
    b->change[b->first[slot]] += b->bytes[slot];
    b->change[b->last[slot] + 1] -= b->bytes[slot];
}

// The largest live set of the schedule that is tried; a set of siblings is one point in time.
static int64_t find_peak(Batcher *b)
{
    memset(b->change, 0, (b->count + 2) * sizeof *b->change);
    memset(b->first, 0xff, b->slots * sizeof *b->first);
    memset(b->last, 0xff, b->slots * sizeof *b->last);
    int32_t time = -1;
    for (uint32_t i = 0; i < b->count; i++) {
        const Touched *touched = &b->touched[b->order[i]];
        time += !b->joined[i];
        for (uint32_t k = 0; k < touched->read_count; k++)
            b->last[touched->reads[k]] = time;
        for (uint32_t k = 0; k < touched->make_count; k++) {
            uint32_t slot = touched->makes[k];
            bool whole = !b->shared[slot];
            if (whole)
                end_life(b, slot);
            if (whole || b->first[slot] < 0)
                b->first[slot] = time;
            b->last[slot] = time;
        }
    }
    for (uint32_t slot = 0; slot < b->slots; slot++)
        end_life(b, slot);
    int64_t live = 0, peak = 0;
    for (int32_t t = 0; t <= time; t++) {
        live += b->change[t];
        peak = live > peak ? live : peak;
    }
    return peak;
}

static void make_room(Batcher *b)
{
    Arena *arena = b->work->arena;
    size_t slots = 1, positions = b->count + 2, vals = (size_t)b->work->count * MAX_OUT;
    for (uint32_t p = 0; p < b->count; p++)
        slots += b->work->groups[b->work->schedule[p]].result_count;
    b->slots = 1;
    b->touched = arena_alloc(arena, positions * sizeof *b->touched);
    b->weight = arena_alloc(arena, positions * sizeof *b->weight);
    b->slot_of = arena_alloc(arena, (vals + 1) * sizeof *b->slot_of);
    b->before = arena_alloc(arena, positions * sizeof *b->before);
    b->next_alike = arena_alloc(arena, positions * sizeof *b->next_alike);
    b->next_product = arena_alloc(arena, positions * sizeof *b->next_product);
    b->head_alike = arena_alloc(arena, KINDS * sizeof *b->head_alike);
    b->bytes = arena_alloc(arena, slots * sizeof *b->bytes);
    b->first = arena_alloc(arena, slots * sizeof *b->first);
    b->last = arena_alloc(arena, slots * sizeof *b->last);
    b->shared = arena_alloc(arena, slots * sizeof *b->shared);
    b->is_end = arena_alloc(arena, positions * sizeof *b->is_end);
    b->order = arena_alloc(arena, positions * sizeof *b->order);
    b->joined = arena_alloc(arena, positions * sizeof *b->joined);
    b->change = arena_alloc(arena, positions * sizeof *b->change);
}

// Bytes of parameters that the sets of the schedule that is tried do not read again.
static double find_saved(const Batcher *b)
{
    double saved = 0;
    uint32_t set[PV_MAX_SEGMENTS], members = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        members = b->joined[i] ? members : 0;
        set[members++] = b->work->schedule[b->order[i]];
        double fixed, per_batch;
        shared_bytes(b->work, set, members - 1, &fixed, &per_batch);
        saved += fixed;
    }
    return saved;
}

// Launches of the schedule that is tried, if all sets become one each.
static uint32_t count_sets(const Batcher *b)
{
    uint32_t sets = 0;
    for (uint32_t i = 0; i < b->count; i++)
        sets += !b->joined[i];
    return sets;
}

void batch_groups(Work *work)
{
    enum { WINDOWS = 6, WAITS = 4 };
    static const uint32_t windows[WINDOWS] = {4096, 512, 128, 48, 16, 0};
    static const uint32_t waits[WAITS] = {256, 96, 32, 0};
    if (!(work->rungs & RUNG_BATCHING) || work->taps)
        return;
    Batcher b = {.work = work, .count = work->group_count};
    make_room(&b);
    bool *done = arena_alloc(work->arena, b.count + 1), gradients = false;
    find_edges(&b);
    find_touched(&b);
    link_alike(&b);
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        gradients |= work->variant->outputs[i].kind == OUT_GRAD;
    draw_forward(&b, 0, 0, done);
    int64_t peak = find_peak(&b), limit = peak + (gradients ? peak / 24 : peak / 4 * 3);
    if (work->budget > 0 && limit > work->budget - work->budget / 64) {
        int64_t room = work->budget - work->budget / 64;       // packing takes some
        limit = room > peak ? room : peak;
    }
    double saved = gradients ? 0 : find_saved(&b);
    uint32_t best = UINT32_MAX, window = 0, wait = 0;
    for (uint32_t i = 0; i < WINDOWS; i++)
        for (uint32_t k = gradients ? 0 : WAITS - 1; k < WAITS; k++) {
            draw_forward(&b, windows[i], waits[k], done);
            int64_t tried = find_peak(&b);
            if (tried > limit &&
                (gradients || work->budget != 0 ||
                 2 * (double)(tried - peak) > find_saved(&b) - saved))
                continue;
            uint32_t sets = count_sets(&b);
            if (sets < best) {
                best = sets;
                window = windows[i];
                wait = waits[k];
            }
            if (!gradients)
                i = WINDOWS;   // the longest will do
            break;
        }
    draw_forward(&b, window, wait, done);
    uint32_t *schedule = arena_alloc(work->arena, (b.count + 1) * sizeof *schedule);
    for (uint32_t i = 0; i < b.count; i++)
        schedule[i] = work->schedule[b.order[i]];
    work->schedule = schedule;
    work->joined = b.joined;
}
