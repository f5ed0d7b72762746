// Rotary position embedding inside attention.
//
// An operand of attention that is
//   y = x cos + partner(x) sin,   or concat(y, rest) of the columns of x, the first of them turned,
// need not be stored if all that reads it is attention, as query or key, and its gradient: their
// kernels turn x as they load it. The partner of a column is its neighbour (swap_pairs), or the one
// half the width away: concat of the halves of x in the other order, the first of them negated or
// not. The tables are whatever [n, width] values there are: nothing asks them to be cosines.
//
// Where the gradient of attention reads y so, its kernel stores the gradient of x:
//   dx = dy cos + transposed partner(dy sin),   or concat of that and the rest of dy,
// with the same tables; a y whose gradient reads otherwise stays.
//
// Turning is 3 operations an element, beside a multiply-add or more for each row of the other side.
// A block of queries turns its own rows once; keys are turned again by each block of queries, of
// 128 rows in codegen/cuda/attention_mma.cu, of 64 in f32. That takes a cached read of the tables,
// 8 bytes an element, each time; a kernel of its own would take a read and a write of 2 or 4 bytes
// to memory once, and a launch. It pays for up to about MOST_BLOCKS blocks; beyond them keys are
// turned once, by a kernel of their own.
#include <string.h>

#include "codegen/kernel_args.h"
#include "compiler/plan.h"

enum { MOST_INSIDE = 16, BLOCK = 128, MOST_BLOCKS = 16 };

typedef struct {
    const Work *work;
    const Graph *graph;
    bool back;                 // of a gradient: the transposed map
    Val inside[MOST_INSIDE];   // what is matched, but for the result and the tables
    uint32_t count;
} Match;

static void add_inside(Match *match, Val val)
{
    if (match->count == MOST_INSIDE)
        bug("a rotary operand of too many parts");
    match->inside[match->count++] = val;
}

static const Type *type_of(const Match *match, Val val)
{
    return val_type(match->graph, val);
}

static int64_t last_size(const Type *type)
{
    Dim last = type->dim[type->rank - 1];
    return last.batch ? -1 : last.n;
}

// What `val` shows columns of, and the first of them; a slice of a slice is one slice.
static Val columns_of(const Match *match, Val val, int64_t *start)
{
    const Node *node = val_get(match->graph, val);
    bool slice = node->op == OP_SLICE && node->attr->n[0] == (int64_t)node->type[0]->rank - 1;
    *start = slice ? node->attr->n[1] : 0;
    return slice ? node->in[0] : val;
}

// Whether `part` is columns start .. start + size of `whole`.
static bool is_columns(Match *match, Val part, Val whole, int64_t start, int64_t size)
{
    int64_t at, from;
    Val base = columns_of(match, part, &at);
    bool direct = base == whole && at == start;
    if (!direct && (base != columns_of(match, whole, &from) || at != from + start))
        return false;
    if (part == whole || last_size(type_of(match, part)) != size)
        return false;
    if (match->back)           // it shows something that is not stored
        add_inside(match, part);
    return true;
}

// A concat of two along the last axis.
static const Node *match_concat(const Match *match, Val val)
{
    const Node *node = val_get(match->graph, val);
    return node->op == OP_CONCAT && node->nin == 2 && last_size(node->type[0]) > 0 &&
                   node->attr->n[0] == (int64_t)node->type[0]->rank - 1
               ? node
               : NULL;
}

// Whether `val` has the partners of x.
static bool has_partners(Match *match, Val val, Val x, int *partner)
{
    const Node *node = val_get(match->graph, val), *concat = match_concat(match, val);
    add_inside(match, val);
    *partner = PV_ROTARY_PAIRS;
    if (node->op == OP_SWAP_PAIRS)
        return node->in[0] == x;
    if (!concat)
        return false;
    int64_t half = last_size(node->type[0]) / 2;
    uint32_t negated = match->back ? 1 : 0;        // which operand may be
    Val part[2] = {node->in[0], node->in[1]};
    const Node *neg = val_get(match->graph, part[negated]);
    *partner = PV_ROTARY_HALVES;
    if (neg->op == OP_NEG) {
        *partner = PV_ROTARY_NEGATED;
        add_inside(match, part[negated]);
        part[negated] = neg->in[0];
    }
    return last_size(type_of(match, x)) == 2 * half && is_columns(match, part[0], x, half, half) &&
           is_columns(match, part[1], x, 0, half);
}

// A value that `val` may have the partners of, where that is no view; 0: there is none.
static Val partners_of(const Match *match, Val val)
{
    const Node *node = val_get(match->graph, val), *concat = match_concat(match, val);
    int64_t start;
    return node->op == OP_SWAP_PAIRS ? node->in[0]
           : concat                  ? columns_of(match, node->in[0], &start)
                                     : 0;
}

// Whether `val` is a table [1..., n, width] for values [..., n, width], stored as kernels take it.
static bool is_table(const Match *match, Val val, const Type *type)
{
    const Type *table = type_of(match, val);
    uint32_t rank = type->rank;
    if (rank < 2 || table->rank != rank || table->dtype != type->dtype ||
        val_is_step(match->work, val) ||
        stored_dtype(match->work, val) != match->work->module->real)
        return false;
    for (uint32_t axis = 0; axis < rank; axis++) {
        Dim dim = axis + 2 < rank ? dim_fixed(1) : type->dim[axis];
        if (dim.batch || !dim_equal(table->dim[axis], dim))
            return false;
    }
    return true;
}

// The other operand of a product with `val`; 0: it is no such product.
static Val other_factor(const Match *match, Val product, Val val)
{
    const Node *node = val_get(match->graph, product);
    if (node->op != OP_MUL || node->in[0] == node->in[1])
        return 0;
    return node->in[0] == val ? node->in[1] : node->in[1] == val ? node->in[0] : 0;
}

// x cos + partner(x) sin, `straight` + `crossed`.
static bool match_forward(Match *match, Val straight, Val crossed, RotaryOf *of)
{
    const Node *plain = val_get(match->graph, straight), *turned = val_get(match->graph, crossed);
    uint32_t begin = match->count;
    for (uint32_t i = 0; plain->op == OP_MUL && turned->op == OP_MUL && i < 4; i++) {
        match->count = begin;
        of->x = plain->in[i / 2];
        of->cos = plain->in[1 - i / 2];
        of->sin = turned->in[1 - i % 2];
        if (is_table(match, of->cos, turned->type[0]) &&
            has_partners(match, turned->in[i % 2], of->x, &of->partner))
            return true;
    }
    return false;
}

// x cos + partner(x sin), transposed.
static bool match_backward(Match *match, Val straight, Val crossed, RotaryOf *of)
{
    Val product = partners_of(match, crossed);
    const Node *node = product ? val_get(match->graph, product) : NULL;
    if (!node || node->op != OP_MUL || !has_partners(match, crossed, product, &of->partner))
        return false;
    add_inside(match, product);
    for (uint32_t i = 0; i < 2; i++) {
        of->x = node->in[i];
        of->sin = node->in[1 - i];
        of->cos = other_factor(match, straight, of->x);
        if (of->cos && is_table(match, of->sin, node->type[0]))
            return true;
    }
    return false;
}

// `val` as a sum of x and its partners, all columns of x.
static bool match_turn(Match *match, Val val, RotaryOf *of)
{
    const Node *node = val_get(match->graph, val);
    uint32_t begin = match->count;
    for (uint32_t i = 0; node->op == OP_ADD && i < 2; i++) {
        Val straight = node->in[i], crossed = node->in[1 - i];
        match->count = begin;
        if (!(match->back ? match_backward(match, straight, crossed, of)
                          : match_forward(match, straight, crossed, of)))
            continue;
        const Type *type = node->type[0];
        of->width = last_size(type);
        add_inside(match, straight);
        if (!match->back)
            add_inside(match, crossed);
        return shape_equal(type_of(match, of->x), type) && is_table(match, of->cos, type) &&
               is_table(match, of->sin, type) &&
               of->width % (of->partner == PV_ROTARY_PAIRS ? 4 : 8) == 0;
    }
    return false;
}

// Nothing that is matched is read elsewhere than inside, or by the result.
static bool nothing_leaves(const Match *match, Val result)
{
    const Work *work = match->work;
    for (uint32_t i = 0; i < match->count; i++) {
        uint32_t local = local_of(work, match->inside[i]);
        if (work->kept[local] || work->step[local])
            return false;
        for (uint32_t k = work->user_first[local]; k < work->user_first[local + 1]; k++) {
            const Node *user = graph_node(match->graph, work->users[k]);
            bool known = work->users[k] == val_node(result), reads = false;
            for (uint32_t j = 0; j < match->count; j++)
                known |= work->users[k] == val_node(match->inside[j]);
            for (uint32_t j = 0; j < user->nin; j++)       // of a node with several results
                reads |= user->in[j] == match->inside[i];
            if (reads && !known)
                return false;
        }
    }
    return true;
}

// `val`, turned or with its first columns turned.
static bool match_rotary(Match *match, Val val, RotaryOf *of)
{
    *of = (RotaryOf){.x = 0};
    const Node *concat = match_concat(match, val);
    if (match_turn(match, val, of))
        return true;
    match->count = 0;
    if (!concat || !match_turn(match, concat->in[0], of))
        return false;
    add_inside(match, concat->in[0]);
    int64_t start;
    Val x = columns_of(match, of->x, &start);
    bool fits = shape_equal(type_of(match, x), concat->type[0]) &&
                is_columns(match, of->x, x, 0, of->width) &&
                is_columns(match, concat->in[1], x, of->width,
                           last_size(concat->type[0]) - of->width);
    of->x = x;
    return fits;
}

static bool is_same(const RotaryOf *x, const RotaryOf *y)
{
    return x->cos == y->cos && x->sin == y->sin && x->width == y->width && x->partner == y->partner;
}

// Whether a kernel of attention can write or read rows that lie so: one inner stride is 1.
static bool inner_is_dense(const Work *work, Val val)
{
    View view = view_of(work, val);
    uint32_t rank = val_type(work->module->graph, val)->rank;
    Dim n = view.stride[rank - 2], d = view.stride[rank - 1];
    return n.n >= 0 && d.n >= 0 && (dim_equal(n, dim_fixed(1)) || dim_equal(d, dim_fixed(1)));
}

// Gradients of attention's q and k that are turned back: gives those of x, and by what.
static void find_turned(Match *match, Val val, Val *turned, RotaryOf *by, const bool *chosen,
                        bool *inside)
{
    const Work *work = match->work;
    RotaryOf of;
    match->back = true;
    match->count = 0;
    if (!match_rotary(match, val, &of) || val_get(match->graph, of.x)->op != OP_ATTENTION_GRAD ||
        val_out(of.x) > 1 || !inner_is_dense(work, val))
        return;
    add_inside(match, of.x);
    if (!nothing_leaves(match, val))
        return;
    uint32_t slot = local_of(work, of.x) * 2 + val_out(of.x);
    if (!chosen) {
        turned[slot] = val;
        by[slot] = of;
        return;
    }
    for (uint32_t i = 0; chosen[slot] && i + 1 < match->count; i++)
        inside[local_of(work, match->inside[i])] = true;
}

// Whether the kernel of node `user` turns operand number `index`, as it is to be turned by `of`.
static bool can_turn(const Match *match, NodeId user, uint32_t index, const RotaryOf *of,
                     const Val *turned, const RotaryOf *by)
{
    const Node *node = graph_node(match->graph, user);
    bool grad = node->op == OP_ATTENTION_GRAD;
    uint32_t which = index - (grad ? 1 : 0);
    if ((!grad && node->op != OP_ATTENTION) || index < (grad ? 1 : 0) || which > 1)
        return false;
    const Type *q = type_of(match, node->in[grad ? 1 : 0]);
    Dim queries = q->dim[q->rank - 2];
    if (which == 1 && (queries.batch || queries.n > MOST_BLOCKS * BLOCK))
        return false;
    uint32_t slot = local_of(match->work, val_of(user, 0)) * 2 + which;
    NodeId reader;
    return !grad || count_users(match->work, val_of(user, which), &reader) == 0 ||
           (turned[slot] && is_same(&by[slot], of));
}

// Whether all readers of `val` turn it.
static bool all_turn(const Match *match, Val val, const RotaryOf *of, const Val *turned,
                     const RotaryOf *by)
{
    const Work *work = match->work;
    uint32_t local = local_of(work, val), begin = work->user_first[local];
    uint32_t end = work->user_first[local + 1];
    bool all = begin < end && !work->kept[local];
    for (uint32_t i = begin; all && i < end; i++) {
        const Node *user = graph_node(match->graph, work->users[i]);
        for (uint32_t k = 0; k < user->nin; k++)
            all &= user->in[k] != val || can_turn(match, work->users[i], k, of, turned, by);
    }
    return all;
}

// Takes the operand `val`, with what lies before it.
static void take_operand(Match *match, Rotaries *found, Val val, bool *chosen)
{
    const Work *work = match->work;
    uint32_t local = local_of(work, val);
    found->inside[local] = true;
    for (uint32_t i = 0; i < match->count; i++)
        found->inside[local_of(work, match->inside[i])] = true;
    for (uint32_t i = work->user_first[local]; i < work->user_first[local + 1]; i++) {
        const Node *user = graph_node(match->graph, work->users[i]);
        uint32_t slot = local_of(work, val_of(work->users[i], 0)) * 2;
        for (uint32_t which = 0; user->op == OP_ATTENTION_GRAD && which < 2; which++)
            chosen[slot + which] |= user->in[1 + which] == val;
    }
}

static bool may_turn(const Work *work, uint32_t local)
{
    const Node *node = graph_node(work->module->graph, work->nodes[local]);
    return !work->step[local] && !work->view[local] &&
           (node->op == OP_ADD || node->op == OP_CONCAT) && node->type[0]->rank > 1;
}

Rotaries find_rotaries(const Work *work)
{
    size_t count = work->count + 1;
    Rotaries found = {.of = arena_alloc(work->arena, count * sizeof *found.of),
                      .inside = arena_alloc(work->arena, count),
                      .turned = arena_alloc(work->arena, count * 2 * sizeof *found.turned)};
    RotaryOf *by = arena_alloc(work->arena, count * 2 * sizeof *by);
    bool *chosen = arena_alloc(work->arena, count * 2);
    Match match = {.work = work, .graph = work->module->graph};
    for (uint32_t local = 0; work->rungs & RUNG_ATTENTION && local < work->count; local++)
        if (may_turn(work, local))
            find_turned(&match, val_of(work->nodes[local], 0), found.turned, by, NULL, NULL);
    for (uint32_t local = 0; work->rungs & RUNG_ATTENTION && local < work->count; local++) {
        Val val = val_of(work->nodes[local], 0);
        RotaryOf of;
        match.back = false;
        match.count = 0;
        if (!may_turn(work, local) || !match_rotary(&match, val, &of) ||
            !nothing_leaves(&match, val) || !all_turn(&match, val, &of, found.turned, by))
            continue;
        found.of[local] = of;
        take_operand(&match, &found, val, chosen);
    }
    for (uint32_t slot = 0; slot < 2 * count; slot++)
        found.turned[slot] = chosen[slot] ? found.turned[slot] : 0;
    for (uint32_t local = 0; work->rungs & RUNG_ATTENTION && local < work->count; local++)
        if (may_turn(work, local))
            find_turned(&match, val_of(work->nodes[local], 0), found.turned, by, chosen,
                        found.inside);
    return found;
}

void load_rotaries(Work *work, const Rotaries *found, Group *group)
{
    const Node *node = graph_node(work->module->graph, group->anchor);
    bool grad = node->op == OP_ATTENTION_GRAD;
    uint32_t number = (uint32_t)(group - work->groups) + 1;
    for (uint32_t i = 0; (grad || node->op == OP_ATTENTION) && i < 2; i++) {
        uint32_t local = local_of(work, node->in[grad ? 1 + i : i]);
        group->rotary[i] = found->of[local];
        if (!group->rotary[i].x)
            continue;
        Val turned = grad ? found->turned[local_of(work, val_of(group->anchor, 0)) * 2 + i] : 0;
        if (turned) {
            group->results[i] = turned;
            work->owner[local_of(work, turned)] = number;
        }
        if (!work->owner[local])
            work->owner[local] = number;       // for reports
    }
}
