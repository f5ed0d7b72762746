// Epilogues: what the kernel of a contraction, convolution or norm computes behind it.
//
// From the anchor the only reader is followed as long as the kernel can compute it:
// act(y (1 + scale) + shift), act(y + bias) + residual, or value act(gate) with the halves of a
// product's columns. Movements before a residual are undone: they only change where
// the result lies.
#include <string.h>

#include "compiler/plan.h"

typedef struct {
    Work *work;
    const Graph *graph;
} Matcher;

// A node that an elementwise kernel computes; swap_pairs is a way to load (element i ^ 1).
static bool is_pointwise(const Work *work, uint32_t local)
{
    const Node *node = graph_node(work->module->graph, work->nodes[local]);
    return !work->step[local] && !work->view[local] &&
           (op_info[node->op].class == CLASS_ELEMENTWISE || node->op == OP_SWAP_PAIRS);
}

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

// Whether they change the order of axes.
static bool turns(const Graph *graph, const Moves *moves)
{
    for (uint32_t i = 0; i < moves->count; i++)
        if (graph_node(graph, moves->ids[i])->op == OP_TRANSPOSE)
            return true;
    return false;
}

static bool strides_through(const Matcher *m, const Group *group, const Moves *moves,
                            const View *view, View *out)
{
    View at = *view;
    for (uint32_t i = moves->count; i-- > 0;) {
        View before;
        if (!undo_view(m->graph, graph_node(m->graph, moves->ids[i]), &at, &before))
            return false;
        at = before;
    }
    return strides_from(m->work, group, group->results[0], &at, out);
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
static bool result_fits(const Matcher *m, const Group *group, NodeId id, const Moves *moves)
{
    const Work *work = m->work;
    const Node *anchor = graph_node(m->graph, group->anchor);
    View there = view_of(work, val_of(id, 0)), view;
    bool turned = turns(m->graph, moves);
    if (is_mixed_plan(work))
        return (turned ? strides_through(m, group, moves, &there, &view)
                       : reshape_view(&there, graph_node(m->graph, id)->type[0], anchor->type[0],
                                      &view)) &&
               kernel_writes(work, anchor, &view);
    uint32_t slot = local_of(work, val_of(id, 0)) * MAX_OUT;
    if (!within_of(work, val_of(id, 0)) && !work->order[slot] && !turned &&
        !work->order[local_of(work, val_of(group->anchor, 0)) * MAX_OUT])
        return true;
    if (!strides_through(m, group, moves, &there, &view))
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
static Val match_modulation(const Matcher *m, Group *group, Val val)
{
    Work *work = m->work;
    const Type *type = val_type(m->graph, val);
    NodeId product_id, sum_id;
    const Node *product = only_reader(work, val, &product_id);
    if (!product || product->op != OP_MUL)
        return val;
    Val factor = other_operand(product, val);
    const Node *plus = factor ? val_get(m->graph, factor) : NULL;
    const Node *sum = only_reader(work, val_of(product_id, 0), &sum_id);
    if (!plus || plus->op != OP_ADD || val_is_step(work, factor) || !sum || sum->op != OP_ADD)
        return val;
    Val scale = is_one(m->graph, plus->in[0])   ? plus->in[1]
                : is_one(m->graph, plus->in[1]) ? plus->in[0]
                                                   : 0;
    Val shift = other_operand(sum, val_of(product_id, 0));
    Dim scale_stride, shift_stride;
    if (!scale || !shift || !result_fits(m, group, sum_id, &(Moves){.count = 0}) ||
        !is_modulation(work, scale, type, &scale_stride) ||
        !is_modulation(work, shift, type, &shift_stride) || !dim_equal(scale_stride, shift_stride))
        return val;
    group->scale = scale;
    group->shift = shift;
    absorb(work, group, product_id);
    return absorb(work, group, sum_id);
}

static Val match_bias(const Matcher *m, Group *group, const Node *anchor, Val val)
{
    NodeId id;
    uint32_t axis = 0;
    const Node *sum = only_reader(m->work, val, &id);
    if (!sum || sum->op != OP_ADD)
        return val;
    Val bias = other_operand(sum, val);
    if (!bias || !is_vector(m->work, bias, anchor->type[0], &axis) ||
        !takes_bias(anchor, axis) || !result_fits(m, group, id, &(Moves){.count = 0}))
        return val;
    group->bias = bias;
    group->bias_axis = axis;
    return absorb(m->work, group, id);
}

static Val match_activation(const Matcher *m, Group *group, Val val)
{
    NodeId id;
    const Node *node = only_reader(m->work, val, &id);
    if (!node || !is_activation(node->op) ||
        !result_fits(m, group, id, &(Moves){.count = 0}))
        return val;
    group->act = node->op;
    return absorb(m->work, group, id);
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
static bool takes_residual(const Matcher *m, const Group *group, Val residual, const Type *type,
                           const Moves *moves)
{
    View view = view_of(m->work, residual), as_anchor;
    const Node *anchor = graph_node(m->graph, group->anchor);
    Dim image[3];
    bool turned = turns(m->graph, moves);
    if (view_is_dense(&view, type) && !(turned && is_mixed_plan(m->work)))
        return true;
    if (is_mixed_plan(m->work) && turned)
        return strides_through(m, group, moves, &view, &as_anchor) &&
               kernel_writes(m->work, anchor, &as_anchor);
    if (is_mixed_plan(m->work))
        return anchor->op == OP_CONTRACT || anchor->op == OP_CONV_WGRAD ||
               (reshape_view(&view, type, anchor->type[0], &as_anchor) &&
                (anchor->op == OP_CONV || anchor->op == OP_CONV_DGRAD) &&
                image_strides(anchor->type[0], as_anchor.stride, image));

    if (!(m->work->rungs & (RUNG_PLACEMENT | RUNG_ATTENTION)) ||
        !strides_through(m, group, moves, &view, &as_anchor))
        return false;
    if (anchor->op == OP_CONTRACT && product_writes(&as_anchor, anchor->type[0]))
        return is_image(&as_anchor, anchor->type[0]) || covers(&as_anchor, anchor->type[0]);
    return (anchor->op == OP_CONV || anchor->op == OP_CONV_DGRAD || anchor->op == OP_CONTRACT) &&
           is_image(&as_anchor, anchor->type[0]);
}

// A sum with a tensor of the result's shape; movements between change where the result lies.
static Val match_residual(const Matcher *m, Group *group, Val val)
{
    Work *work = m->work;
    NodeId id;
    Moves moves = {.count = 0};
    Val end = val;
    const Node *node = only_reader(work, end, &id);
    bool contract = graph_node(m->graph, group->anchor)->op == OP_CONTRACT;
    while (node && (node->op == OP_RESHAPE || (contract && node->op == OP_TRANSPOSE)) &&
           moves.count < 4) {
        moves.ids[moves.count++] = id;
        end = val_of(id, 0);
        node = only_reader(work, end, &id);
    }
    if (!node || node->op != OP_ADD)
        return val;
    Val residual = other_operand(node, end);
    const Type *type = val_type(m->graph, end);
    if (!residual || val_is_step(work, residual) ||
        !shape_equal(val_type(m->graph, residual), type) ||
        val_get(m->graph, residual)->op == OP_CONST || !result_fits(m, group, id, &moves) ||
        !takes_residual(m, group, residual, type, &moves))
        return val;
    group->residual = residual;
    group->turned = turns(m->graph, &moves);
    for (uint32_t i = 0; i < moves.count; i++)
        absorb(work, group, moves.ids[i]);
    return absorb(work, group, id);
}

// The same where the elementwise kernel that adds would do more than that.
static void match_plain_residual(const Matcher *m, Group *group, Val val)
{
    NodeId id;
    const Node *node = only_reader(m->work, val, &id);
    Val other = node && node->op == OP_ADD ? other_operand(node, val) : 0;
    if (!other || !is_computed_inline(m->work, other))
        match_residual(m, group, val);
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
static void match_added(const Matcher *m, Group *group)
{
    Work *work = m->work;
    const Node *anchor = graph_node(m->graph, group->anchor);
    for (uint32_t out = 1; out < anchor->nout; out++) {
        NodeId id;
        Val val = val_of(group->anchor, out);
        const Node *sum = group->results[out] ? only_reader(work, val, &id) : NULL;
        Val other = sum && sum->op == OP_ADD ? other_operand(sum, val) : 0;
        if (!other || val_is_step(work, other) || val_node(other) == group->anchor ||
            !shape_equal(val_type(m->graph, other), anchor->type[out]) ||
            !is_older(work, other, group->anchor))
            continue;
        View view = view_of(work, other);
        const Node *base = val_get(m->graph, view.base);
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
static NodeId find_gate(const Matcher *m, Val val, uint32_t axis, NodeId *halves, NodeId *act)
{
    const Work *work = m->work;
    const Graph *graph = m->graph;
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

// Values times activated gates, the halves of a product's columns: the kernel computes a tile of
// both.
static Val match_gate(const Matcher *m, Group *group, const Node *anchor, Val val)
{
    Work *work = m->work;
    const Type *type = anchor->type[0];
    uint32_t axis = type->rank - 1;
    NodeId halves[2], act;
    if (group->norm.x || type->dim[axis].batch ||
        type->dim[axis].n % 2 != 0 || (group->bias && group->bias_axis != axis) ||
        !is_column_axis(anchor, axis))
        return val;
    NodeId product = find_gate(m, val, axis, halves, &act);
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
    group->gate_first = graph_node(m->graph, halves[1])->attr->n[1] == 0;
    for (uint32_t i = 0; i < 2; i++)
        absorb(work, group, halves[i]);
    if (act) {
        group->act = graph_node(m->graph, act)->op;
        absorb(work, group, act);
    }
    return absorb(work, group, product);
}

void match_epilogue(Work *work, Group *group)
{
    const Matcher matcher = {work, work->module->graph}, *m = &matcher;
    const Node *anchor = graph_node(m->graph, group->anchor);
    Val val = val_of(group->anchor, 0);
    switch ((int)anchor->op) {
    case OP_GROUP_NORM:
        val = match_modulation(m, group, val);
        match_activation(m, group, val);
        break;
    case OP_LAYER_NORM:
        match_activation(m, group, val);
        break;
    case OP_CONTRACT:
        if (!contract_order_is_simple(anchor))
            break;
        // fall through
    case OP_CONV:
        val = match_bias(m, group, anchor, val);
        if (anchor->op == OP_CONTRACT)
            val = match_gate(m, group, anchor, val);
        if (group->gate)
            break;
        val = match_activation(m, group, val);
        match_residual(m, group, val);
        break;
    case OP_CONV_DGRAD:
        val = match_bias(m, group, anchor, val);
        match_plain_residual(m, group, val);
        break;
    case OP_CONV_WGRAD: case OP_REDUCE_SUM:
        if (dtype_is_float(anchor->type[0]->dtype))
            match_plain_residual(m, group, val);
        break;
    case OP_GROUP_NORM_GRAD: case OP_LAYER_NORM_GRAD:
        // a chain of sums would keep siblings from being one launch, and all that follows them
        if (!(m->work->rungs & RUNG_BATCHING))
            match_added(m, group);
        break;
    default:
        break;
    }
}
