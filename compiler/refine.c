// Axes that were joined stay apart in a plan where joining them would move every element.
//
// Models turn [b, f n, c] to [b n, f, c], so that each position attends over time, and back. With
// b, f and n as they lie, b n is no axis that a stride walks, and each turn is a copy of
// everything. But hardly an operation needs the joined axis: a norm, a product with weights, an
// elementwise operation, attention take any number of axes in front. So a plan's nodes are made
// anew over the finer axes (b, n, f, c), of which transposes are views, and
//
//   f(reshape(x))  becomes  reshape(f(x))
//
// until the reshape meets one that splits the axis again, and is gone, or an operation that wants
// the axis whole. What order the finer axes lie in is the business of order.c.
//
// A value of the old graph is here a value of the new one together with, for each of its axes, the
// run of finer axes that it is made of. Only axes that are joined from what lies apart start such
// runs; the last axis, the one that lies densely, never does. Part of find_layout, of
// RUNG_ATTENTION.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { MAX_LABELS = MAX_ATTR };

// Axis i of the value is made of the axes first[i] .. first[i + 1] - 1 of `val`.
typedef struct {
    Val val;
    uint8_t first[MAX_RANK + 1];
} Fine;

typedef struct {
    uint32_t count;            // 0: not decided
    Dim dim[MAX_RANK];
} Parts;                       // what one axis is made of, outermost first

typedef struct {
    Rewrite own;
    Fine *map;                 // by Val
    View **view;               // by NodeId: how its values lie, about
    View **new_view;           // the same, from node `total` on
    size_t new_capacity;
    uint32_t new_count;
    Arena *arena;
} Refiner;

static Fine plain(const Graph *graph, Val val)
{
    Fine fine = {.val = val};
    for (uint32_t i = 0; i <= val_type(graph, val)->rank; i++)
        fine.first[i] = (uint8_t)i;
    return fine;
}

static bool is_plain(const Refiner *r, const Fine *fine, uint32_t rank)
{
    return val_type(r->own.graph, fine->val)->rank == rank;
}

// ---- nodes and how they lie ----

static View **slot_of_view(Refiner *r, NodeId id)
{
    if (id < r->own.total)
        return &r->view[id];
    while (r->new_count <= id - r->own.total) {
        r->new_view =
            grow_array(r->new_view, &r->new_capacity, r->new_count, sizeof *r->new_view);
        r->new_view[r->new_count++] = NULL;
    }
    return &r->new_view[id - r->own.total];
}

static View lies(void *context, Val val)
{
    Refiner *r = context;
    const Node *node = val_get(r->own.graph, val);
    const Type *type = node->type[val_out(val)];
    const View *known = *slot_of_view(r, val_node(val));
    if (known && val_out(val) == 0)
        return *known;
    View view = {.base = val}, operand;
    uint32_t order[MAX_RANK];
    if (val_out(val) == 0 && node->nin > 0 && op_info[node->op].class != CLASS_REDUCE)
        operand = lies(r, node->in[0]);
    else
        operand = (View){.base = 0};
    if (operand.base && view_through(r->own.graph, node, &operand, &view))
        ;
    else if (order_of_rows(r->own.graph, node, val_out(val), lies, r, order))
        ordered_strides(type, order, view.stride);
    else
        dense_strides(type, view.stride);
    if (val_out(val) == 0)
        *slot_of_view(r, val_node(val)) = arena_copy(r->arena, &view, sizeof view);
    return view;
}

// What was made in the place of `from`.
static Val placed(Refiner *r, NodeId from, Val made)
{
    if (!made)
        bug("axes kept apart: %s", graph_error(r->own.graph));
    rewrite_turn(&r->own, made, from);
    lies(r, made);
    return made;
}

static Val make(Refiner *r, NodeId from, Op op, const Val *in, uint32_t nin, const Attr *attr,
                const Type *types)
{
    return placed(r, from, graph_make(r->own.graph, op, in, nin, attr, types));
}

static Val reshape(Refiner *r, NodeId from, Val x, const Type *type)
{
    if (shape_equal(val_type(r->own.graph, x), type))
        return x;
    return make(r, from, OP_RESHAPE, &x, 1, NULL, type);
}

// The value as the old graph has it.
static Val whole(Refiner *r, Val old)
{
    const Fine *fine = &r->map[old];
    const Type *type = val_type(r->own.graph, old);
    return is_plain(r, fine, type->rank) ? fine->val : reshape(r, val_node(old), fine->val, type);
}

static Parts parts_of(const Refiner *r, const Fine *fine, uint32_t axis)
{
    const Type *type = val_type(r->own.graph, fine->val);
    Parts parts = {.count = (uint32_t)fine->first[axis + 1] - fine->first[axis]};
    memcpy(parts.dim, &type->dim[fine->first[axis]], parts.count * sizeof(Dim));
    return parts;
}

// `from` with those of its axes split that `to` splits: what group_axes takes. false: there is an
// axis that neither divides.
static bool split_type(const Type *from, const Type *to, Type *out)
{
    uint32_t axis = 0;
    *out = (Type){.dtype = to->dtype};
    Dim left = dim_fixed(1);       // of axis `axis - 1` of `to`
    for (uint32_t i = 0; i < from->rank; i++) {
        Dim rest = from->dim[i];
        while (!dim_is_one(rest)) {
            while (dim_is_one(left) && axis < to->rank)
                left = to->dim[axis++];
            // the common part: the smaller one, if it divides the larger one
            Dim small = left.batch < rest.batch || (left.batch == rest.batch && left.n < rest.n)
                            ? left
                            : rest;
            if (small.n == 0 || left.n % small.n || rest.n % small.n || out->rank == MAX_RANK ||
                left.batch < small.batch || rest.batch < small.batch || dim_is_one(small))
                return false;
            out->dim[out->rank++] = small;
            left = (Dim){left.n / small.n, left.batch - small.batch};
            rest = (Dim){rest.n / small.n, rest.batch - small.batch};
        }
    }
    return true;
}

// What both are made of: each axis of either is some of its axes.
static Parts common_parts(const Parts *x, const Parts *y)
{
    Type from = type_make(DT_F32, x->count, x->dim), to = type_make(DT_F32, y->count, y->dim), out;
    if (x->count == 1 || !split_type(&from, &to, &out))
        return *y;
    Parts parts = {.count = out.rank};
    memcpy(parts.dim, out.dim, out.rank * sizeof(Dim));
    return parts;
}

// `type` with axis i made of parts[i]; one element where it has one. false: too many axes.
static bool fine_type(const Type *type, const Parts *parts, Type *out, uint8_t *first)
{
    *out = (Type){.dtype = type->dtype};
    for (uint32_t i = 0; i < type->rank; i++) {
        first[i] = (uint8_t)out->rank;
        if (out->rank + parts[i].count > MAX_RANK)
            return false;
        bool one = dim_is_one(type->dim[i]);
        for (uint32_t k = 0; k < parts[i].count; k++)
            out->dim[out->rank++] = one                     ? dim_fixed(1)
                                    : parts[i].count == 1 ? type->dim[i]
                                                            : parts[i].dim[k];
    }
    first[type->rank] = (uint8_t)out->rank;
    return true;
}

// Old value `val` with its axes made of `parts`. There are not too many of them.
static Val split(Refiner *r, Val val, const Parts *parts)
{
    Type type;
    uint8_t first[MAX_RANK + 1];
    const Fine *fine = &r->map[val];
    fine_type(val_type(r->own.graph, val), parts, &type, first);
    return reshape(r, val_node(val), fine->val, &type);
}

// ---- operations over finer axes ----

// What an operation says of its axes: those of its first `aligned` operands, and of its results,
// are the same, axis by axis.
typedef struct {
    uint32_t aligned;
    uint32_t locked;           // mask of axes that have to stay whole
    bool attr_axis;            // attribute 0 is an axis
    bool attr_mask;            // attribute 0 is a mask of axes
} Rule;

static bool rule_of(const Node *node, uint32_t rank, Rule *rule)
{
    *rule = (Rule){.aligned = node->nin};
    uint32_t last = 1u << (rank - 1);
    if (rank == 0)
        return false;
    switch ((int)node->op) {
    case OP_EXPAND:
        return true;
    case OP_SWAP_PAIRS: case OP_SOFTMAX:
        rule->locked = last;
        return true;
    case OP_LAYER_NORM: case OP_LAYER_NORM_GRAD:
        rule->aligned = node->op == OP_LAYER_NORM ? 1 : 4;
        rule->locked = last;
        return true;
    case OP_ATTENTION: case OP_ATTENTION_GRAD:
        rule->locked = last | last >> 1;
        return rank >= 2;
    case OP_SLICE: case OP_FLIP: case OP_PAD: case OP_CONCAT:
        rule->locked = 1u << node->attr->n[0];
        rule->attr_axis = true;
        return node->op != OP_CONCAT || node->attr->n[1] == 0;
    case OP_REDUCE_SUM: case OP_REDUCE_MAX: case OP_REDUCE_MIN:
        rule->attr_mask = true;
        return true;
    default:
        return op_info[node->op].class == CLASS_ELEMENTWISE;
    }
}

// The parts of each axis that the operands agree on. false: none of them has an axis of several.
static bool agree(const Refiner *r, const Node *node, const Rule *rule, uint32_t rank,
                  Parts *parts)
{
    bool any = false;
    for (uint32_t axis = 0; axis < rank; axis++) {
        parts[axis] = (Parts){.count = 1, .dim = {dim_fixed(1)}};
        for (uint32_t i = 0; i < rule->aligned; i++) {
            const Type *type = val_type(r->own.graph, node->in[i]);
            if (type->rank != rank || dim_is_one(type->dim[axis]) || rule->locked >> axis & 1)
                continue;
            Parts own = parts_of(r, &r->map[node->in[i]], axis);
            if (own.count > 1)
                parts[axis] = common_parts(&parts[axis], &own);
        }
        any |= parts[axis].count > 1;
    }
    return any;
}

static bool has_segments(const Refiner *r, const Node *node)
{
    bool any = false;
    for (uint32_t i = 0; i < node->nin; i++)
        any |= val_type(r->own.graph, node->in[i])->seg != 0;
    for (uint32_t i = 0; i < node->nout; i++)
        any |= node->type[i]->seg != 0;
    return any;
}

// The node over finer axes; false: it wants them whole.
static bool refine_aligned(Refiner *r, NodeId id)
{
    const Node *node = graph_node(r->own.graph, id);
    uint32_t rank = node->type[0]->rank;
    Rule rule;
    Parts parts[MAX_RANK];
    Type types[MAX_OUT], type;
    uint8_t first[MAX_OUT][MAX_RANK + 1], unused[MAX_RANK + 1];
    if (!rule_of(node, rank, &rule) || has_segments(r, node) ||
        !agree(r, node, &rule, rank, parts))
        return false;
    for (uint32_t i = 0; i < node->nout; i++) {
        if (node->type[i]->rank != rank)
            types[i] = *node->type[i];
        else if (!fine_type(node->type[i], parts, &types[i], first[i]))
            return false;
    }
    for (uint32_t i = 0; i < rule.aligned; i++) {
        const Type *have = val_type(r->own.graph, node->in[i]);
        if (have->rank == rank ? !fine_type(have, parts, &type, unused) : have->rank != 0)
            return false;
    }
    Val *in = arena_alloc(r->arena, (node->nin + 1) * sizeof *in);
    for (uint32_t i = 0; i < node->nin; i++) {
        bool split_up = i < rule.aligned && val_type(r->own.graph, node->in[i])->rank == rank;
        in[i] = split_up ? split(r, node->in[i], parts) : whole(r, node->in[i]);
    }
    Attr attr = *node->attr;
    if (rule.attr_axis)
        attr.n[0] = first[0][attr.n[0]];
    for (uint32_t axis = 0; rule.attr_mask && axis < rank; axis++) {
        attr.n[0] = axis == 0 ? 0 : attr.n[0];
        for (uint32_t k = first[0][axis]; node->attr->n[0] >> axis & 1 && k < first[0][axis + 1];
             k++)
            attr.n[0] |= INT64_C(1) << k;
    }
    Val made = make(r, id, node->op, in, node->nin, &attr, types);
    for (uint32_t i = 0; i < node->nout; i++) {
        Fine *fine = &r->map[val_of(id, i)];
        *fine = plain(r->own.graph, made + i);
        if (node->type[i]->rank == rank)
            memcpy(fine->first, first[i], sizeof fine->first);
    }
    return true;
}

static bool refine_transpose(Refiner *r, NodeId id)
{
    const Node *node = graph_node(r->own.graph, id);
    const Fine *x = &r->map[node->in[0]];
    uint32_t rank = node->type[0]->rank;
    if (is_plain(r, x, rank))
        return false;
    Attr attr = {.count = 0};
    Fine out = {.val = 0};
    for (uint32_t axis = 0; axis < rank; axis++) {
        int64_t from = node->attr->n[axis];
        out.first[axis] = (uint8_t)attr.count;
        for (uint32_t k = x->first[from]; k < x->first[from + 1]; k++)
            attr.n[attr.count++] = k;
    }
    out.first[rank] = (uint8_t)attr.count;
    out.val = make(r, id, OP_TRANSPOSE, &x->val, 1, &attr, NULL);
    r->map[val_of(id, 0)] = out;
    return true;
}

// ---- products ----

typedef struct {
    int64_t label;
    Parts parts;
    int64_t first;             // of the labels that stand for it
} Label;

static Label *label_of(Label *labels, uint32_t *count, int64_t label)
{
    for (uint32_t i = 0; i < *count; i++)
        if (labels[i].label == label)
            return &labels[i];
    labels[*count] = (Label){.label = label, .parts = {.count = 1, .dim = {dim_fixed(1)}}};
    return &labels[(*count)++];
}

static bool refine_contract(Refiner *r, NodeId id)
{
    const Node *node = graph_node(r->own.graph, id);
    const int64_t *rank = node->attr->n, *at = rank + 3;
    Label labels[MAX_LABELS];
    uint32_t count = 0;
    bool any = false;
    if (has_segments(r, node))
        return false;
    const int64_t *named = at;
    for (int which = 0; which < 2; named += rank[which++])
        for (uint32_t axis = 0; axis < (uint32_t)rank[which]; axis++) {
            Label *label = label_of(labels, &count, named[axis]);
            Parts parts = parts_of(r, &r->map[node->in[which]], axis);
            if (parts.count > 1)
                label->parts = common_parts(&label->parts, &parts);
            else if (label->parts.count == 1)
                label->parts = parts;
            any |= parts.count > 1;
        }
    int64_t next = 0;
    for (uint32_t i = 0; i < count; i++) {
        labels[i].first = next;
        next += labels[i].parts.count;
    }
    if (!any)
        return false;
    Attr attr = {.count = 3};
    Parts parts[3][MAX_RANK];
    for (int which = 0; which < 3; at += rank[which++])
        for (int64_t axis = 0; axis < rank[which]; axis++) {
            const Label *label = label_of(labels, &count, at[axis]);
            parts[which][axis] = label->parts;
            attr.n[which] += label->parts.count;
            for (uint32_t k = 0; k < label->parts.count; k++) {
                if (attr.count == MAX_ATTR)
                    return false;
                attr.n[attr.count++] = label->first + k;
            }
        }
    if (attr.n[0] > MAX_RANK || attr.n[1] > MAX_RANK || attr.n[2] > MAX_RANK)
        return false;
    Type type;
    Fine out = {.val = 0};
    fine_type(node->type[0], parts[2], &type, out.first);
    Val in[2] = {split(r, node->in[0], parts[0]), split(r, node->in[1], parts[1])};
    out.val = make(r, id, OP_CONTRACT, in, 2, &attr, NULL);
    r->map[val_of(id, 0)] = out;
    return true;
}

// ---- reshapes ----

// Walks the axes of `from`, finer ones, and of `to`: out axis i is to be made of parts[i], the
// axes of `from` that it joins. false: an axis of `from` is in two axes of `to`, one of which has
// more of them.
static bool group_axes(const Type *from, const Type *to, Parts *parts)
{
    uint32_t i = 0;
    for (uint32_t axis = 0; axis < to->rank; axis++) {
        parts[axis] = (Parts){.count = 0};
        Dim have = dim_fixed(1);
        while (!dim_equal(have, to->dim[axis])) {
            while (i < from->rank && dim_is_one(from->dim[i]))
                i++;
            if (i == from->rank)
                return false;
            Dim next = dim_product(have, from->dim[i]);
            bool beyond = next.batch > to->dim[axis].batch || next.n > to->dim[axis].n ||
                          to->dim[axis].n % next.n != 0;
            if (beyond)
                return false;
            have = next;
            parts[axis].dim[parts[axis].count++] = from->dim[i++];
        }
        if (parts[axis].count == 0)
            parts[axis] = (Parts){.count = 1, .dim = {to->dim[axis]}};
    }
    return true;
}

// Joins neighbours of a run that lie at one stride, if an axis of the operand begins between them:
// those of one run stay as they are.
static void join_parts(const View *view, uint32_t first, const bool *new_at, Parts *parts)
{
    Parts joined = {.count = 1, .dim = {parts->dim[0]}};
    for (uint32_t k = 1; k < parts->count; k++) {
        uint32_t axis = first + k;
        if (new_at[axis] &&
            axes_merge(view->stride[axis - 1], view->stride[axis], parts->dim[k]))
            joined.dim[joined.count - 1] =
                dim_product(joined.dim[joined.count - 1], parts->dim[k]);
        else
            joined.dim[joined.count++] = parts->dim[k];
    }
    *parts = joined;
}

static bool refine_reshape(Refiner *r, NodeId id)
{
    const Node *node = graph_node(r->own.graph, id);
    const Type *to = node->type[0];
    const Fine *x = &r->map[node->in[0]];
    const Type *from = val_type(r->own.graph, node->in[0]);
    Type apart;
    Parts parts[MAX_RANK], before[MAX_RANK];
    bool new_at[MAX_RANK] = {false};       // an axis of the operand begins there
    if (has_segments(r, node) || to->rank == 0 ||
        !split_type(val_type(r->own.graph, x->val), to, &apart) || !group_axes(&apart, to, parts) ||
        !group_axes(&apart, from, before))
        return false;
    for (uint32_t i = 0, at = 0; i < from->rank && at < apart.rank; i++)
        if (!dim_is_one(from->dim[i])) {
            new_at[at] = true;
            at += before[i].count;
        }
    Val split_up = reshape(r, id, x->val, &apart);
    View view = lies(r, split_up);
    uint32_t axis = 0;
    bool several = false;
    for (uint32_t i = 0; i < to->rank; i++) {
        uint32_t count = dim_is_one(to->dim[i]) ? 0 : parts[i].count;
        if (count > 1)
            join_parts(&view, axis, new_at, &parts[i]);
        several |= parts[i].count > 1;
        axis += count;
    }
    uint32_t last = to->rank - 1;
    while (last > 0 && dim_is_one(to->dim[last]))
        last--;
    Type type;
    Fine out = {.val = 0};
    if ((several && parts[last].count > 1) || !fine_type(to, parts, &type, out.first))
        return false;
    out.val = reshape(r, id, split_up, &type);
    r->map[val_of(id, 0)] = out;
    return true;
}

// ---- the plan ----

static void remake(Refiner *r, NodeId id)
{
    const Node *node = graph_node(r->own.graph, id);
    bool changed = false;
    Val *in = arena_alloc(r->arena, (node->nin + 1) * sizeof *in), made = val_of(id, 0);
    for (uint32_t i = 0; i < node->nin; i++) {
        in[i] = whole(r, node->in[i]);
        changed |= in[i] != node->in[i];
    }
    if (changed && node->op == OP_RESHAPE)
        made = reshape(r, id, in[0], node->type[0]);
    else if (changed)
        made = placed(r, id, graph_remake(r->own.graph, node, in));
    for (uint32_t i = 0; i < node->nout; i++)
        r->map[val_of(id, i)] = plain(r->own.graph, made + i);
}

static bool refine_node(Refiner *r, NodeId id)
{
    const Node *node = graph_node(r->own.graph, id);
    if (graph_is_step(r->own.graph, val_of(id, 0)) || op_info[node->op].class == CLASS_SOURCE)
        return false;
    if (node->op == OP_RESHAPE)
        return refine_reshape(r, id);
    if (node->op == OP_TRANSPOSE)
        return refine_transpose(r, id);
    if (node->op == OP_CONTRACT)
        return refine_contract(r, id);
    return refine_aligned(r, id);
}

// Whether there is a reshape that may start it: of a transpose, to fewer axes.
static bool may_refine(const Refiner *r)
{
    for (uint32_t n = 0; n < r->own.count; n++) {
        const Node *node = graph_node(r->own.graph, r->own.nodes[n]);
        if (node->op == OP_RESHAPE &&
            val_get(r->own.graph, node->in[0])->op == OP_TRANSPOSE &&
            node->type[0]->rank < val_type(r->own.graph, node->in[0])->rank)
            return true;
    }
    return false;
}

void refine_axes(Work *work)
{
    Refiner r = {.arena = arena_new_sparse()};
    rewrite_begin(&r.own, work, r.arena);
    if (may_refine(&r)) {
        rewrite_start(&r.own, r.arena);
        r.map = arena_alloc(r.arena, (size_t)r.own.total * MAX_OUT * sizeof *r.map);
        r.view = arena_alloc(r.arena, r.own.total * sizeof *r.view);
        for (uint32_t n = 0; n < r.own.count; n++) {
            NodeId id = r.own.nodes[n];
            graph_at(r.own.graph, *graph_origin(r.own.graph, id));
            if (!refine_node(&r, id))
                remake(&r, id);
            if (graph_node(r.own.graph, id)->nout > 0)
                lies(&r, r.map[val_of(id, 0)].val);    // in order, so that it never goes deep
        }
        for (uint32_t i = 0; i < work->variant->output_count; i++) {
            Val val = work->variant->outputs[i].val;
            r.own.map[val] = whole(&r, val);
        }
        rewrite_end(&r.own);
    }
    rewrite_free(&r.own);
    free(r.new_view);
    arena_free(r.arena);
}
