// Fusion: which nodes one kernel computes.
//
// At -O0 each node that is no view is a kernel of its own. Above that, in two steps:
//
// 1. Epilogues. From each contraction, convolution and norm the only reader is followed as long as
//    the kernel's epilogue can compute it: act(y (1 + scale) + shift), or act(y + bias) + residual.
//    An intermediate value that something else reads ends the chain, so nothing is computed twice.
//    Gradients of weights that are used several times become chains of such residuals: each
//    contribution is added by the kernel that computes it, to what the one before it left.
//    What a product reads may be normalized as it is loaded, and the table of a norm made with what
//    it stores: fuse_norms.c.
// 2. Elementwise groups. Nodes are taken from the last to the first. One whose readers all belong
//    to one elementwise group of the same iteration space joins it (smaller ones, which would be
//    computed again for each element, only if they are cheap). A cheap node with one tensor operand
//    whose readers are spread over groups is computed in each of them. Every other one starts a
//    group.
//
// At -O2 the result of an elementwise group may lie in a part of a larger value that dies there.
//
// A member is read only inside its group, and all members lead to the group's result; so no path
// leaves a group and comes back, and the groups have a topological order.
//
// The pass hands over Group records only: what a group holds is the joint at which deeper fusion
// (reductions with prologues, segments) is added.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { MAX_MEMBERS = 40 };

typedef struct {
    Work *work;
    const Graph *graph;
    size_t group_capacity;
    uint32_t *size;            // by local number of the group's first result: members so far
    bool *loaded, *behind;     // by local number: find_norm_loads, find_behind_norms
} Fuse;

static const Node *node_at(const Work *work, uint32_t local)
{
    return graph_node(work->module->graph, work->nodes[local]);
}

static bool is_source(const Node *node)
{
    return op_info[node->op].class == CLASS_SOURCE && node->op != OP_RANDOM;
}

// A node that an elementwise kernel computes; swap_pairs is a way to load (element i ^ 1).
static bool is_pointwise(const Work *work, uint32_t local)
{
    const Node *node = node_at(work, local);
    return !work->step[local] && !work->view[local] &&
           (op_info[node->op].class == CLASS_ELEMENTWISE || node->op == OP_SWAP_PAIRS);
}

static bool is_cheap(Op op)
{
    switch ((int)op) {
    case OP_NEG: case OP_ABS: case OP_RELU: case OP_NOT: case OP_CAST: case OP_ADD: case OP_SUB:
    case OP_MUL: case OP_MIN: case OP_MAX: case OP_EQ: case OP_NE: case OP_LT: case OP_LE:
    case OP_AND: case OP_OR: case OP_WHERE: case OP_SWAP_PAIRS:
        return true;
    default:
        return false;
    }
}

static Group *add_group(Fuse *fuse, GroupKind kind, NodeId anchor)
{
    Work *work = fuse->work;
    work->groups =
        grow_array(work->groups, &fuse->group_capacity, work->group_count, sizeof(Group));
    Group *group = &work->groups[work->group_count++];
    const Node *node = graph_node(fuse->graph, anchor);
    *group = (Group){.kind = kind, .anchor = anchor, .act = OP_STOP_GRADIENT};
    group->space = node->type[0];
    group->result_count = node->nout;
    work->owner[local_of(work, val_of(anchor, 0))] = work->group_count;
    return group;
}

// ---- epilogues ----

// The one node that reads `val`; NULL if it is kept, or read by several or by none.
static const Node *only_reader(const Work *work, Val val, NodeId *id)
{
    uint32_t local = local_of(work, val);
    if (work->kept[local] || count_users(work, val, id) != 1)
        return NULL;
    uint32_t reader = local_of(work, val_of(*id, 0));
    if (work->owner[reader] || work->step[reader])
        return NULL;
    return graph_node(work->module->graph, *id);
}

// The other operand of a commutative node with two; 0 if both are `val`.
static Val other_operand(const Node *node, Val val)
{
    if (node->in[0] == node->in[1])
        return 0;
    return node->in[0] == val ? node->in[1] : node->in[0];
}

static bool is_activation(Op op)
{
    return op == OP_SILU || op == OP_GELU || op == OP_RELU;
}

// Out labels of a contraction by class: 'x', 'y' (in that operand only), '2' (in both).
static uint32_t out_classes(const Node *node, char *classes, uint32_t *axes)
{
    const int64_t *rank = node->attr->n, *x = rank + 3, *y = x + rank[0], *out = y + rank[1];
    uint32_t count = 0;
    for (uint32_t i = 0; i < (uint32_t)rank[2]; i++) {
        if (dim_is_one(node->type[0]->dim[i]))
            continue;
        bool in_x = false, in_y = false;
        for (int64_t k = 0; k < rank[0]; k++)
            in_x |= x[k] == out[i];
        for (int64_t k = 0; k < rank[1]; k++)
            in_y |= y[k] == out[i];
        classes[count] = in_x && in_y ? '2' : in_x ? 'x' : 'y';
        axes[count++] = i;
    }
    return count;
}

// Where the runs of labels begin that make up the matrix's rows and columns: the last labels of one
// operand are n, those of the other before them m, whatever stands in front are loops.
static void find_runs(const char *classes, uint32_t count, uint32_t *m_first, uint32_t *n_first)
{
    *n_first = count;
    while (*n_first > 0 && classes[*n_first - 1] != '2' &&
           classes[*n_first - 1] == classes[count - 1])
        --*n_first;
    *m_first = *n_first;
    while (*m_first > 0 && *n_first < count && classes[*m_first - 1] != '2' &&
           classes[*m_first - 1] == classes[*n_first - 1])
        --*m_first;
}

// Whether the kernel surely can write the result where it belongs: it has two axes of loops.
bool contract_order_is_simple(const Node *node)
{
    char classes[MAX_RANK];
    uint32_t axes[MAX_RANK], m_first, n_first, count = out_classes(node, classes, axes);
    find_runs(classes, count, &m_first, &n_first);
    return m_first <= 2;
}

// Whether the epilogue of `node` can add a vector along `axis` of its result.
static bool takes_bias(const Node *node, uint32_t axis)
{
    if (node->op == OP_CONV || node->op == OP_CONV_DGRAD)
        return axis == 1;
    if (node->op != OP_CONTRACT || !contract_order_is_simple(node))
        return false;
    char classes[MAX_RANK];
    uint32_t axes[MAX_RANK], m_first, n_first, count = out_classes(node, classes, axes);
    find_runs(classes, count, &m_first, &n_first);
    bool columns = count - n_first == 1 && axes[n_first] == axis;
    bool rows = n_first - m_first == 1 && axes[m_first] == axis;
    return columns || rows;
}

// `val` varies along one axis of `type`, densely: a bias. Gives the axis.
static bool is_vector(const Work *work, Val val, const Type *type, uint32_t *axis)
{
    const Type *shape = val_type(work->module->graph, val);
    if (shape->rank != type->rank || val_is_step(work, val))
        return false;
    uint32_t found = 0;
    for (uint32_t i = 0; i < shape->rank; i++)
        if (!dim_is_one(shape->dim[i])) {
            *axis = i;
            found++;
        }
    if (found != 1 || !dim_equal(shape->dim[*axis], type->dim[*axis]) || type->dim[*axis].batch)
        return false;
    View view = view_of(work, val);
    return dim_equal(view.stride[*axis], dim_fixed(1));
}

// scale and shift of a group norm: [b or 1, c, 1...], channels dense, and both b apart alike.
static bool is_modulation(const Work *work, Val val, const Type *type, Dim *stride)
{
    const Type *shape = val_type(work->module->graph, val);
    if (shape->rank != type->rank || shape->rank < 2 || val_is_step(work, val))
        return false;
    for (uint32_t i = 0; i < shape->rank; i++)
        if (!(i < 2 && dim_equal(shape->dim[i], type->dim[i])) &&
            !(i != 1 && dim_is_one(shape->dim[i])))
            return false;
    View view = view_of(work, val);
    *stride = view.stride[0];
    return dim_equal(view.stride[1], dim_fixed(1));
}

// Axes behind the second lie row-major and densely, the first two anywhere, not turned round.
static bool is_image(const View *view, const Type *type)
{
    Dim stride[MAX_RANK];
    dense_strides(type, stride);
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (view->stride[axis].n < 0 ||
            ((axis > 1 || axis + 1 == type->rank) && !dim_equal(stride[axis], view->stride[axis])))
            return false;
    return true;
}

static bool is_one(const Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    return node->op == OP_CONST && node->attr->real == 1.0;
}

// The operand of an epilogue's node that the group computes; 0: it is a sum of several groups.
static Val chain_operand(const Work *work, const Group *group, const Node *node)
{
    uint32_t number = (uint32_t)(group - work->groups) + 1;
    for (uint32_t i = 0; i < node->nin; i++)
        if (work->owner[local_of(work, node->in[i])] == number)
            return node->in[i];
    return 0;
}

// The same for a value on the way from the anchor to its result.
static bool strides_from(const Work *work, const Group *group, Val val, const View *view, View *out)
{
    const Graph *graph = work->module->graph;
    *out = *view;
    while (val_node(val) != group->anchor) {
        const Node *node = val_get(graph, val);
        View before;
        if (node->op == OP_RESHAPE || node->op == OP_TRANSPOSE) {
            if (!undo_view(graph, node, out, &before))
                return false;
            *out = before;
        }
        Val operand = chain_operand(work, group, node);
        if (!operand) {
            before = *out;
            return reshape_view(&before, val_type(graph, val),
                                graph_node(graph, group->anchor)->type[0], out);
        }
        val = operand;
    }
    return true;
}

bool anchor_strides(const Work *work, const Group *group, const View *view, View *out)
{
    return strides_from(work, group, group->results[0], view, out);
}

// A movement behind the group's result so far.
typedef struct {
    NodeId ids[4];
    uint32_t count;
} Moves;

static bool strides_through(const Fuse *fuse, const Group *group, const Moves *moves,
                            const View *view, View *out)
{
    View at = *view;
    for (uint32_t i = moves->count; i-- > 0;) {
        View before;
        if (!undo_view(fuse->graph, graph_node(fuse->graph, moves->ids[i]), &at, &before))
            return false;
        at = before;
    }
    return strides_from(fuse->work, group, group->results[0], &at, out);
}

// A product writes rows of one of its axes, at any strides of up to three others.
static bool product_writes(const View *view, const Type *type)
{
    uint32_t axes = 0;
    bool dense = false;
    for (uint32_t axis = 0; axis < type->rank; axis++) {
        axes += !dim_is_one(type->dim[axis]);
        dense |= dim_equal(view->stride[axis], dim_fixed(1));
    }
    return view_is_dense(view, type) || (axes <= 4 && dense);
}

// Whether the kernel of the group can write node `id`, its result then, where that lies.
static bool result_fits(const Fuse *fuse, const Group *group, NodeId id, const Moves *moves)
{
    const Work *work = fuse->work;
    const Node *anchor = graph_node(fuse->graph, group->anchor);
    View there = view_of(work, val_of(id, 0)), view;
    if (is_mixed_plan(work))
        return reshape_view(&there, graph_node(fuse->graph, id)->type[0], anchor->type[0], &view) &&
               kernel_writes(work, anchor, &view);
    uint32_t slot = local_of(work, val_of(id, 0)) * MAX_OUT;
    bool turned = false;
    for (uint32_t i = 0; i < moves->count; i++)
        turned |= graph_node(fuse->graph, moves->ids[i])->op == OP_TRANSPOSE;
    if (!within_of(work, val_of(id, 0)) && !work->order[slot] && !turned &&
        !work->order[local_of(work, val_of(group->anchor, 0)) * MAX_OUT])
        return true;
    if (!strides_through(fuse, group, moves, &there, &view))
        return false;
    switch ((int)anchor->op) {
    case OP_CONTRACT:
        return product_writes(&view, anchor->type[0]);
    case OP_CONV: case OP_CONV_DGRAD: case OP_GROUP_NORM:
        return is_image(&view, anchor->type[0]);
    case OP_LAYER_NORM: {          // its statistics lie as its result would
        View own = view_of(work, val_of(group->anchor, 0));
        return memcmp(own.stride, view.stride, sizeof own.stride) == 0;
    }
    default:
        return false;
    }
}

// Takes `id` into the group as the new end of its chain.
static Val absorb(Work *work, Group *group, NodeId id)
{
    uint32_t number = (uint32_t)(group - work->groups) + 1;
    work->owner[local_of(work, val_of(id, 0))] = number;
    return group->results[0] = val_of(id, 0);
}

// y (1 + scale) + shift after a group norm: all three nodes or none.
static Val match_modulation(Fuse *fuse, Group *group, Val val)
{
    Work *work = fuse->work;
    const Type *type = val_type(fuse->graph, val);
    NodeId product_id, sum_id;
    const Node *product = only_reader(work, val, &product_id);
    if (!product || product->op != OP_MUL)
        return val;
    Val factor = other_operand(product, val);
    const Node *plus = factor ? val_get(fuse->graph, factor) : NULL;
    const Node *sum = only_reader(work, val_of(product_id, 0), &sum_id);
    if (!plus || plus->op != OP_ADD || val_is_step(work, factor) || !sum || sum->op != OP_ADD)
        return val;
    Val scale = is_one(fuse->graph, plus->in[0])   ? plus->in[1]
                : is_one(fuse->graph, plus->in[1]) ? plus->in[0]
                                                   : 0;
    Val shift = other_operand(sum, val_of(product_id, 0));
    Dim scale_stride, shift_stride;
    if (!scale || !shift || !result_fits(fuse, group, sum_id, &(Moves){.count = 0}) ||
        !is_modulation(work, scale, type, &scale_stride) ||
        !is_modulation(work, shift, type, &shift_stride) || !dim_equal(scale_stride, shift_stride))
        return val;
    group->scale = scale;
    group->shift = shift;
    absorb(work, group, product_id);
    return absorb(work, group, sum_id);
}

static Val match_bias(Fuse *fuse, Group *group, const Node *anchor, Val val)
{
    NodeId id;
    uint32_t axis = 0;
    const Node *sum = only_reader(fuse->work, val, &id);
    if (!sum || sum->op != OP_ADD)
        return val;
    Val bias = other_operand(sum, val);
    if (!bias || !is_vector(fuse->work, bias, anchor->type[0], &axis) ||
        !takes_bias(anchor, axis) || !result_fits(fuse, group, id, &(Moves){.count = 0}))
        return val;
    group->bias = bias;
    group->bias_axis = axis;
    return absorb(fuse->work, group, id);
}

static Val match_activation(Fuse *fuse, Group *group, Val val)
{
    NodeId id;
    const Node *node = only_reader(fuse->work, val, &id);
    if (!node || !is_activation(node->op) ||
        !result_fits(fuse, group, id, &(Moves){.count = 0}))
        return val;
    group->act = node->op;
    return absorb(fuse->work, group, id);
}

// Whether an elementwise kernel would compute `val` on the way, if its only reader is elsewhere.
static bool is_computed_inline(const Work *work, Val val)
{
    NodeId user;
    uint32_t local = local_of(work, val);
    return is_pointwise(work, local) && !work->owner[local] && !work->kept[local] &&
           count_users(work, val, &user) == 1;
}

// Whether the epilogue can read `residual`, which has the shape of `type`, where it lies.
static bool takes_residual(const Fuse *fuse, const Group *group, Val residual, const Type *type,
                           const Moves *moves)
{
    View view = view_of(fuse->work, residual), as_anchor;
    const Node *anchor = graph_node(fuse->graph, group->anchor);
    Dim image[3];
    if (view_is_dense(&view, type))
        return true;
    if (is_mixed_plan(fuse->work))
        return anchor->op == OP_CONTRACT || anchor->op == OP_CONV_WGRAD ||
               (reshape_view(&view, type, anchor->type[0], &as_anchor) &&
                (anchor->op == OP_CONV || anchor->op == OP_CONV_DGRAD) &&
                image_strides(anchor->type[0], as_anchor.stride, image));

    if (!(fuse->work->rungs & (RUNG_PLACEMENT | RUNG_ATTENTION)) ||
        !strides_through(fuse, group, moves, &view, &as_anchor))
        return false;
    if (anchor->op == OP_CONTRACT && product_writes(&as_anchor, anchor->type[0]))
        return is_image(&as_anchor, anchor->type[0]) || covers(&as_anchor, anchor->type[0]);
    return (anchor->op == OP_CONV || anchor->op == OP_CONV_DGRAD || anchor->op == OP_CONTRACT) &&
           is_image(&as_anchor, anchor->type[0]);
}

// A sum with a tensor of the result's shape; movements between change where the result lies.
static Val match_residual(Fuse *fuse, Group *group, Val val)
{
    Work *work = fuse->work;
    NodeId id;
    Moves moves = {.count = 0};
    Val end = val;
    const Node *node = only_reader(work, end, &id);
    bool turns = graph_node(fuse->graph, group->anchor)->op == OP_CONTRACT && !is_mixed_plan(work);
    while (node && (node->op == OP_RESHAPE || (turns && node->op == OP_TRANSPOSE)) &&
           moves.count < 4) {
        moves.ids[moves.count++] = id;
        end = val_of(id, 0);
        node = only_reader(work, end, &id);
    }
    if (!node || node->op != OP_ADD)
        return val;
    Val residual = other_operand(node, end);
    const Type *type = val_type(fuse->graph, end);
    if (!residual || val_is_step(work, residual) ||
        !shape_equal(val_type(fuse->graph, residual), type) ||
        val_get(fuse->graph, residual)->op == OP_CONST || !result_fits(fuse, group, id, &moves) ||
        !takes_residual(fuse, group, residual, type, &moves))
        return val;
    group->residual = residual;
    for (uint32_t i = 0; i < moves.count; i++)
        absorb(work, group, moves.ids[i]);
    return absorb(work, group, id);
}

// The same where the elementwise kernel that adds would do more than that.
static void match_plain_residual(Fuse *fuse, Group *group, Val val)
{
    NodeId id;
    const Node *node = only_reader(fuse->work, val, &id);
    Val other = node && node->op == OP_ADD ? other_operand(node, val) : 0;
    if (!other || !is_computed_inline(fuse->work, other))
        match_residual(fuse, group, val);
}

// Whether `val` is there before node `anchor` is computed, whatever groups its way leads through:
// either it is older, or a norm gradient older than `anchor` adds it up. The groups of norm
// gradients have several results, so two chains of sums in opposite orders would be a cycle.
static bool is_older(const Work *work, Val val, NodeId anchor)
{
    uint32_t owner = work->owner[local_of(work, val)];
    if (val_node(val) < anchor)
        return true;
    return owner && work->groups[owner - 1].anchor < anchor &&
           work->groups[owner - 1].added[1] + work->groups[owner - 1].added[2] != 0;
}

// dgamma and dbeta of a norm, added to what other uses of the norm gave.
static void match_added(Fuse *fuse, Group *group)
{
    Work *work = fuse->work;
    const Node *anchor = graph_node(fuse->graph, group->anchor);
    for (uint32_t out = 1; out < anchor->nout; out++) {
        NodeId id;
        Val val = val_of(group->anchor, out);
        const Node *sum = group->results[out] ? only_reader(work, val, &id) : NULL;
        Val other = sum && sum->op == OP_ADD ? other_operand(sum, val) : 0;
        if (!other || val_is_step(work, other) || val_node(other) == group->anchor ||
            !shape_equal(val_type(fuse->graph, other), anchor->type[out]) ||
            !is_older(work, other, group->anchor))
            continue;
        View view = view_of(work, other);
        const Node *base = val_get(fuse->graph, view.base);
        if (base->op == OP_CONST || !view_is_dense(&view, anchor->type[out]))
            continue;
        group->added[out] = other;
        group->results[out] = val_of(id, 0);
        work->owner[local_of(work, val_of(id, 0))] = (uint32_t)(group - work->groups) + 1;
    }
}

// Whether `axis` is the only one of the product's columns.
static bool is_column_axis(const Node *node, uint32_t axis)
{
    char classes[MAX_RANK];
    uint32_t axes[MAX_RANK], m_first, n_first, count = out_classes(node, classes, axes);
    find_runs(classes, count, &m_first, &n_first);
    bool only = count > 1 && count - n_first == 1 && axes[n_first] == axis;
    for (uint32_t i = 0; i < n_first; i++)
        only &= classes[i] != classes[n_first];
    return only;
}

// The node that multiplies the halves of `val` along `axis`, one of them behind an activation; 0:
// nothing does, or more is done with them. `halves`: the slices, the value's first.
static NodeId find_gate(const Fuse *fuse, Val val, uint32_t axis, NodeId *halves, NodeId *act)
{
    const Work *work = fuse->work;
    const Graph *graph = fuse->graph;
    uint32_t local = local_of(work, val), first = work->user_first[local];
    int64_t half = val_type(graph, val)->dim[axis].n / 2;
    NodeId found[2] = {0, 0}, acts[2] = {0, 0}, product[2] = {0, 0};
    if (work->kept[local] || work->user_first[local + 1] - first != 2)
        return 0;
    for (uint32_t i = 0; i < 2; i++) {
        NodeId user = work->users[first + i];
        const Node *slice = graph_node(graph, user);
        if (slice->op != OP_SLICE || slice->attr->n[0] != (int64_t)axis ||
            slice->attr->n[2] != half || slice->attr->n[1] % half != 0)
            return 0;
        const Node *next = only_reader(work, val_of(user, 0), &product[i]);
        if (next && is_activation(next->op)) {
            acts[i] = product[i];
            next = only_reader(work, val_of(acts[i], 0), &product[i]);
        }
        found[i] = user;
        if (!next || next->op != OP_MUL || val_out(val) != 0)
            return 0;
    }
    uint32_t gate = acts[0] ? 0 : 1;
    if (product[0] != product[1] || (acts[0] && acts[1]) ||
        graph_node(graph, found[0])->attr->n[1] == graph_node(graph, found[1])->attr->n[1])
        return 0;
    halves[0] = found[1 - gate];
    halves[1] = found[gate];
    *act = acts[gate];
    return product[0];
}

// Values times activated gates, the halves of a product's columns: the kernel computes a tile of both.
static Val match_gate(Fuse *fuse, Group *group, const Node *anchor, Val val)
{
    Work *work = fuse->work;
    const Type *type = anchor->type[0];
    uint32_t axis = type->rank - 1;
    NodeId halves[2], act;
    if (!work->takes_gates || is_mixed_plan(work) || group->norm.x || type->dim[axis].batch ||
        type->dim[axis].n % 2 != 0 || (group->bias && group->bias_axis != axis) ||
        !is_column_axis(anchor, axis))
        return val;
    NodeId product = find_gate(fuse, val, axis, halves, &act);
    if (!product)
        return val;
    Val made = val_of(product, 0);
    const uint32_t *order = work->order[local_of(work, made) * MAX_OUT];
    const uint32_t *own = work->order[local_of(work, val_of(group->anchor, 0)) * MAX_OUT];
    if (within_of(work, made) || !order != !own ||
        (order && memcmp(order, own, type->rank * sizeof *order) != 0) ||
        !dim_equal(view_of(work, made).stride[axis], dim_fixed(1)))
        return val;
    group->gate = product;
    group->gate_first = graph_node(fuse->graph, halves[1])->attr->n[1] == 0;
    for (uint32_t i = 0; i < 2; i++)
        absorb(work, group, halves[i]);
    if (act) {
        group->act = graph_node(fuse->graph, act)->op;
        absorb(work, group, act);
    }
    return absorb(work, group, product);
}

static void match_epilogue(Fuse *fuse, Group *group)
{
    const Node *anchor = graph_node(fuse->graph, group->anchor);
    Val val = val_of(group->anchor, 0);
    switch ((int)anchor->op) {
    case OP_GROUP_NORM:
        val = match_modulation(fuse, group, val);
        match_activation(fuse, group, val);
        break;
    case OP_LAYER_NORM:
        match_activation(fuse, group, val);
        break;
    case OP_CONTRACT:
        if (!contract_order_is_simple(anchor))
            break;
        // fall through
    case OP_CONV:
        val = match_bias(fuse, group, anchor, val);
        if (anchor->op == OP_CONTRACT)
            val = match_gate(fuse, group, anchor, val);
        if (group->gate)
            break;
        val = match_activation(fuse, group, val);
        match_residual(fuse, group, val);
        break;
    case OP_CONV_DGRAD:
        val = match_bias(fuse, group, anchor, val);
        match_plain_residual(fuse, group, val);
        break;
    case OP_CONV_WGRAD: case OP_REDUCE_SUM:
        if (dtype_is_float(anchor->type[0]->dtype))
            match_plain_residual(fuse, group, val);
        break;
    case OP_GROUP_NORM_GRAD: case OP_LAYER_NORM_GRAD:
        // a chain of sums would keep siblings from being one launch, and all that follows them
        if (!(fuse->work->rungs & RUNG_BATCHING))
            match_added(fuse, group);
        break;
    default:
        break;
    }
}

// Outputs of the anchor that something reads.
static void choose_results(Work *work, Group *group)
{
    const Node *anchor = graph_node(work->module->graph, group->anchor);
    NodeId user;
    for (uint32_t out = 0; out < anchor->nout; out++) {
        Val val = val_of(group->anchor, out);
        if (out == 0 || count_users(work, val, &user) > 0 ||
            (work->kept[local_of(work, val)] && anchor->nout > 1))
            group->results[out] = val;
    }
}

static bool is_norm(Op op)
{
    return op == OP_GROUP_NORM || op == OP_LAYER_NORM || op == OP_GROUP_NORM_GRAD ||
           op == OP_LAYER_NORM_GRAD;
}

static void group_libraries(Fuse *fuse)
{
    Work *work = fuse->work;
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = node_at(work, local);
        if (work->step[local] || work->view[local] || work->owner[local] || is_source(node) ||
            is_pointwise(work, local))
            continue;
        if (node->op == OP_GROUP_NORM_TABLE && work->rungs & RUNG_EPILOGUES &&
            fuse_table(work, fuse->behind, local))
            continue;
        Group *group = add_group(fuse, GROUP_LIBRARY, work->nodes[local]);
        choose_results(work, group);
        load_norm(work, fuse->loaded, group);
        if (work->rungs & (is_norm(node->op) ? RUNG_NORMS : RUNG_EPILOGUES))
            match_epilogue(fuse, group);
    }
}

// ---- elementwise groups ----

// The elementwise group that all readers of node `local` belong to; 0 if there is none, and then
// *pointwise tells whether all readers are elementwise nodes.
static uint32_t common_group(const Work *work, uint32_t local, bool *pointwise)
{
    uint32_t group = 0;
    bool same = true;
    *pointwise = true;
    uint32_t begin = work->user_first[local], end = work->user_first[local + 1];
    for (uint32_t i = begin; i < end; i++) {
        uint32_t user = local_of(work, val_of(work->users[i], 0)), owner = work->owner[user];
        if (!is_pointwise(work, user) || node_at(work, user)->op == OP_SWAP_PAIRS ||
            (owner && work->groups[owner - 1].kind != GROUP_ELEMENTWISE)) {
            *pointwise = false;
            return 0;
        }
        if (i == begin)
            group = owner;
        same &= owner == group && owner != 0;
    }
    return same ? group : 0;
}

static uint32_t count_tensors(const Work *work, const Node *node)
{
    uint32_t tensors = 0;
    for (uint32_t i = 0; i < node->nin; i++)
        tensors += !val_is_step(work, node->in[i]) &&
                   val_get(work->module->graph, node->in[i])->op != OP_CONST;
    return tensors;
}

// Whether only kernels with an epilogue read node `local`, and none reads its value: the 1 + scale
// that a group norm computes by itself.
static bool is_absorbed(const Work *work, uint32_t local)
{
    uint32_t begin = work->user_first[local], end = work->user_first[local + 1];
    if (work->kept[local] || begin == end)
        return false;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t owner = work->owner[local_of(work, val_of(work->users[i], 0))];
        if (!owner || work->groups[owner - 1].kind != GROUP_LIBRARY)
            return false;
        const Group *group = &work->groups[owner - 1];
        Val val = val_of(work->nodes[local], 0);
        if (group->anchor == work->users[i] || val == group->bias || val == group->residual ||
            val == group->scale || val == group->shift || val == group->added[1] ||
            val == group->added[2])
            return false;
    }
    return true;
}

static void group_pointwise(Fuse *fuse)
{
    Work *work = fuse->work;
    for (uint32_t local = work->count; local-- > 0;) {
        if (work->owner[local] || !is_pointwise(work, local) || fuse->loaded[local] ||
            is_absorbed(work, local))
            continue;
        const Node *node = node_at(work, local);
        bool pointwise = false;
        uint32_t group = 0;
        bool inside = work->rungs & RUNG_ELEMENTWISE && !work->kept[local];
        if (inside)
            group = common_group(work, local, &pointwise);
        inside &= pointwise && work->user_first[local] < work->user_first[local + 1];
        if (inside && node->op == OP_SWAP_PAIRS)
            continue;
        if (inside && group && fuse->size[group] < MAX_MEMBERS &&
            (shape_equal(node->type[0], work->groups[group - 1].space) || is_cheap(node->op))) {
            work->owner[local] = group;
            fuse->size[group]++;
        } else if (!(inside && is_cheap(node->op) && count_tensors(work, node) <= 1)) {
            Group *made = add_group(fuse, GROUP_ELEMENTWISE, work->nodes[local]);
            made->results[0] = val_of(work->nodes[local], 0);
            fuse->size[work->group_count] = 1;
        }
    }
}

bool group_inlines(const Work *work, uint32_t group, Val val)
{
    uint32_t local = local_of(work, val);
    return is_pointwise(work, local) &&
           (work->owner[local] == 0 || work->owner[local] == group + 1);
}

// ---- members and reads ----

typedef struct {
    Val *at;
    size_t capacity;
    uint32_t count;
} ValList;

static void list_add(ValList *list, Val val)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i] == val)
            return;
    list->at = grow_array(list->at, &list->capacity, list->count, sizeof *list->at);
    list->at[list->count++] = val;
}

static void walk_pointwise(const Work *work, uint32_t group, Val val, ValList *reads,
                           ValList *members)
{
    for (uint32_t i = 0; i < members->count; i++)
        if (members->at[i] == val_node(val))
            return;
    list_add(members, val_node(val));
    const Node *node = val_get(work->module->graph, val);
    for (uint32_t i = 0; i < node->nin; i++) {
        if (node->op != OP_SWAP_PAIRS && group_inlines(work, group, node->in[i]))
            walk_pointwise(work, group, node->in[i], reads, members);
        else
            list_add(reads, node->in[i]);
    }
}

static int compare_nodes(const void *x, const void *y)
{
    NodeId left = *(const NodeId *)x, right = *(const NodeId *)y;
    return left < right ? -1 : left > right;
}

static void finish_group(Work *work, uint32_t number)
{
    Group *group = &work->groups[number];
    ValList reads = {.count = 0}, members = {.count = 0};
    if (group->kind == GROUP_ELEMENTWISE) {
        for (uint32_t i = 0; i < group->result_count; i++)
            walk_pointwise(work, number, group->results[i], &reads, &members);
    } else {
        const Node *node = graph_node(work->module->graph, group->anchor);
        list_add(&members, group->anchor);
        const Node *table = group->table ? graph_node(work->module->graph, group->table) : NULL;
        for (uint32_t i = 0; i < node->nin; i++)
            list_add(&reads, group->norm.x && i == group->norm_operand ? group->norm.x
                                                                       : node->in[i]);
        for (uint32_t i = 1; table && i < table->nin; i++)
            list_add(&reads, table->in[i]);
        Val extra[] = {group->bias,  group->residual, group->scale,  group->shift,
                       group->added[1], group->added[2], group->norm.a, group->norm.d};
        for (uint32_t i = 0; i < sizeof extra / sizeof *extra; i++)
            if (extra[i])
                list_add(&reads, extra[i]);
    }
    qsort(members.at, members.count, sizeof *members.at, compare_nodes);
    group->reads = arena_alloc(work->arena, (reads.count + 1) * sizeof(Val));
    group->members = arena_alloc(work->arena, (members.count + 1) * sizeof(NodeId));
    if (reads.count)
        memcpy(group->reads, reads.at, reads.count * sizeof(Val));
    memcpy(group->members, members.at, members.count * sizeof(NodeId));
    group->read_count = reads.count;
    group->member_count = members.count;
    free(reads.at);
    free(members.at);
}

// ---- results within an operand ----

// Whether all that read `val` are products of matrices, which take strided operands.
static bool only_products_read(const Work *work, Val val)
{
    const Graph *graph = work->module->graph;
    uint32_t local = local_of(work, val);
    bool fine = !work->kept[local] && work->user_first[local] < work->user_first[local + 1];
    for (uint32_t i = work->user_first[local]; fine && i < work->user_first[local + 1]; i++) {
        NodeId user = work->users[i];
        uint32_t at = local_of(work, val_of(user, 0)), owner = work->owner[at];
        if (work->view[at])
            fine = only_products_read(work, val_of(user, 0));
        else
            fine = graph_node(graph, user)->op == OP_CONTRACT && owner &&
                   work->groups[owner - 1].anchor == user;
    }
    return fine;
}

// Whether an element that `other` shows can be an element of `view` of another index: the two have
// the same strides, and are the same, or pieces of one axis that do not meet.
static bool walk_apart(const View *view, const View *other, const Type *type)
{
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_equal(view->stride[axis], other->stride[axis]))
            return false;
    int64_t apart = llabs(other->offset.fixed - view->offset.fixed), extent = 1;
    if (other->offset.batch != view->offset.batch)
        return false;
    for (uint32_t axis = type->rank; axis-- > 0;) {
        if (dim_is_one(type->dim[axis]))
            continue;
        if (view->stride[axis].n < extent || (view->stride[axis].n == 0))
            return false;          // elements of the view itself meet, or are turned round
        // from here on out, steps are longer than both pieces together
        if (apart > 0 && apart >= extent && view->stride[axis].n >= apart + extent)
            apart = 0;
        extent = view->stride[axis].n * (type->dim[axis].batch ? 1 : type->dim[axis].n);
        if (type->dim[axis].batch && axis > 0)
            for (uint32_t outer = 0; outer < axis; outer++)
                if (!dim_is_one(type->dim[outer]))
                    return false;
    }
    return apart == 0;
}

// A result that only products read may lie where a strided operand lay that dies in its kernel: a
// gate's product in the half of what the products gave. Saves a buffer where no operand is dense.
static void lie_within(Work *work, uint32_t number, const uint32_t *readers)
{
    const Group *group = &work->groups[number];
    const Graph *graph = work->module->graph;
    Val result = group->results[0];
    const View *found = NULL;
    if (group->kind != GROUP_ELEMENTWISE || group->result_count != 1 || within_of(work, result) ||
        !only_products_read(work, result))
        return;
    for (uint32_t i = 0; i < group->member_count; i++)
        if (graph_node(graph, group->members[i])->op == OP_SWAP_PAIRS)
            return;
    for (uint32_t i = 0; i < group->read_count; i++) {
        View view = view_of(work, group->reads[i]);
        uint32_t base = local_of(work, view.base);
        const Type *type = val_type(graph, group->reads[i]);
        if (!work->owner[base] || work->kept[base] || readers[base] != 1 ||
            !shape_equal(type, group->space) ||
            stored_dtype(work, group->reads[i]) != stored_dtype(work, result))
            continue;
        if (view_is_dense(&view, type))
            return;                // the planner will see to it
        bool fits = view.base == val_of(val_node(view.base), 0);
        for (uint32_t k = 0; k < group->read_count; k++) {
            View other = view_of(work, group->reads[k]);
            if (other.base == view.base)
                fits &= shape_equal(val_type(graph, group->reads[k]), type) &&
                        walk_apart(&view, &other, type);
        }
        if (fits && !found)
            found = work->view[local_of(work, group->reads[i])];
    }
    work->within[local_of(work, result) * MAX_OUT] = (View *)(uintptr_t)found;
}

static void find_within(Work *work)
{
    uint32_t *readers = arena_alloc(work->arena, (work->count + 1) * sizeof *readers);
    for (uint32_t g = 0; g < work->group_count; g++) {
        const Group *group = &work->groups[g];
        for (uint32_t i = 0; i < group->read_count; i++) {
            uint32_t base = local_of(work, view_of(work, group->reads[i]).base);
            bool again = false;
            for (uint32_t k = 0; k < i; k++)
                again |= local_of(work, view_of(work, group->reads[k]).base) == base;
            readers[base] += !again;
        }
    }
    for (uint32_t i = 0; i < work->variant->output_count; i++)     // those never die
        readers[local_of(work, view_of(work, work->variant->outputs[i].val).base)] += 2;
    for (uint32_t g = 0; g < work->group_count; g++)
        lie_within(work, g, readers);
}

void fuse_groups(Work *work)
{
    Fuse fuse = {.work = work, .graph = work->module->graph};
    work->owner = arena_alloc(work->arena, (work->count + 1) * sizeof *work->owner);
    fuse.size = arena_alloc(work->arena, (work->count + 2) * sizeof *fuse.size);
    fuse.loaded = find_norm_loads(work);
    fuse.behind = find_behind_norms(work);
    group_libraries(&fuse);
    group_pointwise(&fuse);
    if (work->groups) {        // from the heap to the plan's arena
        Group *groups = arena_alloc(work->arena, work->group_count * sizeof *groups);
        memcpy(groups, work->groups, work->group_count * sizeof *groups);
        free(work->groups);
        work->groups = groups;
    }
    for (uint32_t i = 0; i < work->group_count; i++)
        finish_group(work, i);
    if (work->rungs & RUNG_BATCHING)
        sum_groups(work);
    if (work->rungs & RUNG_MEMORY && !work->taps)
        find_within(work);
}

void print_groups(FILE *out, const Work *work)
{
    const Graph *graph = work->module->graph;
    fprintf(out, "plan %s -O%d: %u nodes, %u groups\n", work->entry->name, work->level, work->count,
            work->group_count);
    for (uint32_t i = 0; i < work->group_count; i++) {
        const Group *group = &work->groups[work->schedule ? work->schedule[i] : i];
        fprintf(out, "  ");
        for (uint32_t k = 0; k < group->result_count; k++)
            if (group->results[k])
                fprintf(out, "%%%u.%u %s ", val_node(group->results[k]), val_out(group->results[k]),
                        type_text(val_type(graph, group->results[k])));
        fprintf(out, "=");
        for (uint32_t k = 0; k < group->member_count; k++)
            fprintf(out, " %s", op_info[graph_node(graph, group->members[k])->op].name);
        fprintf(out, "%s%s%s%s%s%s%s", group->norm.x ? " norm" : "", group->table ? " table" : "",
                group->scale ? " scale+shift" : "", group->bias ? " bias" : "",
                group->gate ? " gate" : "", group->residual ? " residual" : "",
                group->added[1] || group->added[2] ? " added" : "");
        if (group->act != OP_STOP_GRADIENT)
            fprintf(out, " %s", op_info[group->act].name);
        fprintf(out, " (");
        for (uint32_t k = 0; k < group->read_count; k++)
            fprintf(out, "%s%%%u.%u", k ? " " : "", val_node(group->reads[k]),
                    val_out(group->reads[k]));
        fprintf(out, ")\n");
    }
}
