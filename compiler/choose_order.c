// Which axis of a stored value is the dense one, in mixed precision.
//
// Kernels read and write 16 bytes of neighbours at a time, if the axis that they walk is dense:
// convolutions and norms that of the channels, products one that they sum over or that makes up
// rows or columns, attention the width of heads. So each of them votes for an axis of what it reads
// and makes, with as many votes as elements are moved; who needs rows as the type has them (a copy,
// else) votes for the last. Votes are cast on axes of stored values: those on what a view shows are
// votes on the axis behind it.
//
// What an elementwise operation or a concat reads and makes should lie alike, so axes that it pairs
// are one candidate, with the votes of all. Each value takes the axis with the most votes, and
// keeps the order of the others; values that no kernel writes in another order take no part. Where
// the last axis wins, the axes in front of it may change places (rows.c).
#include "compiler/plan.h"

typedef struct {
    const Work *work;
    const Graph *graph;
    uint32_t *leader;          // by axis: (local number * MAX_OUT + output) * MAX_RANK + axis
    double *votes;             // of leaders
} Election;

static uint32_t axis_number(const Work *work, Val val, uint32_t axis)
{
    return (local_of(work, val) * MAX_OUT + val_out(val)) * MAX_RANK + axis;
}

static uint32_t leader_of(Election *election, uint32_t number)
{
    while (election->leader[number] != number) {
        election->leader[number] = election->leader[election->leader[number]];
        number = election->leader[number];
    }
    return number;
}

static void pair(Election *election, uint32_t x, uint32_t y)
{
    x = leader_of(election, x);
    y = leader_of(election, y);
    if (x == y)
        return;
    election->leader[y] = x;
    election->votes[x] += election->votes[y];
}

// A kernel writes it with any of its axes dense.
static bool takes_part(const Election *election, Val val)
{
    const Node *node = val_get(election->graph, val);
    const Type *type = node->type[val_out(val)];
    bool batch = false;
    for (uint32_t axis = 0; axis < type->rank; axis++)
        batch |= type->dim[axis].batch != 0;
    if (!batch || type->rank < 3 || !dtype_is_float(type->dtype) || val_out(val) != 0 ||
        val_is_step(election->work, val))
        return false;
    switch ((int)node->op) {
    case OP_CONV: case OP_CONV_DGRAD: case OP_GROUP_NORM: case OP_GROUP_NORM_GRAD:
    case OP_CONTRACT: case OP_CONCAT:
        return true;
    case OP_RESHAPE:           // stretched elements have to be moved
        return val_get(election->graph, node->in[0])->op == OP_EXPAND;
    case OP_CAST: case OP_STOP_GRADIENT:
        return false;
    default:
        return op_info[node->op].class == CLASS_ELEMENTWISE;
    }
}

static Dim size_behind(const Type *type, uint32_t axis)
{
    Dim size = dim_fixed(1);
    while (++axis < type->rank)
        size = dim_product(size, type->dim[axis]);
    return size;
}

// The axis of `from` that is dense when `axis` of `to`, the same elements, is; MAX_RANK: none.
static uint32_t reshaped_axis(const Type *from, const Type *to, uint32_t axis)
{
    Dim behind = size_behind(to, axis);
    for (uint32_t i = 0; i < from->rank; i++)
        if (!dim_is_one(from->dim[i]) && dim_equal(size_behind(from, i), behind))
            return i;
    return MAX_RANK;
}

// From an axis of `val` to that of the value it is a view of; false: there is none, or it does not
// take part.
static bool find_axis(const Election *election, Val *val, uint32_t *axis)
{
    for (;;) {
        const Node *node = val_get(election->graph, *val);
        const Type *to = node->type[val_out(*val)];
        if (*axis >= to->rank || dim_is_one(to->dim[*axis]) || to->dim[*axis].batch)
            return false;
        switch ((int)node->op) {
        case OP_RESHAPE:
            if (takes_part(election, *val))
                return true;
            *axis = reshaped_axis(val_type(election->graph, node->in[0]), to, *axis);
            break;
        case OP_TRANSPOSE:
            *axis = (uint32_t)node->attr->n[*axis];
            break;
        case OP_EXPAND: case OP_SLICE: case OP_FLIP: case OP_STOP_GRADIENT: case OP_CAST:
            break;
        default:
            return takes_part(election, *val);
        }
        if (val_is_step(election->work, node->in[0]))
            return false;
        *val = node->in[0];
    }
}

// Elements at a usual batch.
static double elements(const Election *election, Val val)
{
    const Type *type = val_type(election->graph, val);
    double count = 1;
    for (uint32_t i = 0; i < type->rank; i++)
        count *= (double)type->dim[i].n * (type->dim[i].batch ? 4 : 1);
    return count;
}

static void vote(Election *election, Val val, uint32_t axis, double times)
{
    double count = times * elements(election, val);
    if (find_axis(election, &val, &axis))
        election->votes[leader_of(election, axis_number(election->work, val, axis))] += count;
}

// Votes for an axis whose size fills chunks of 16 bytes.
static void vote_chunks(Election *election, Val val, uint32_t axis, double times)
{
    if (val_type(election->graph, val)->dim[axis].n % 8 == 0)
        vote(election, val, axis, times);
}

static void vote_last(Election *election, Val val, double times)
{
    const Type *type = val_type(election->graph, val);
    if (type->rank > 0 && !val_is_step(election->work, val))
        vote(election, val, type->rank - 1, times);
}

// Axes of both operands and the result are loops around the matrices; of the others the kernel
// reads any, a bit rather the one that it sums over.
static void vote_contract(Election *election, const Node *node, Val result)
{
    const int64_t *rank = node->attr->n, *labels[3] = {rank + 3, rank + 3 + rank[0],
                                                       rank + 3 + rank[0] + rank[1]};
    const Val vals[3] = {node->in[0], node->in[1], result};
    for (int which = 0; which < 3; which++)
        for (int64_t i = 0; i < rank[which]; i++) {
            bool in[3] = {false};
            for (int other = 0; other < 3; other++)
                for (int64_t k = 0; k < rank[other]; k++)
                    in[other] |= labels[other][k] == labels[which][i];
            bool loop = in[0] && in[1] && in[2];
            if (loop)
                vote(election, vals[which], (uint32_t)i, -2);
            else
                vote_chunks(election, vals[which], (uint32_t)i, in[2] ? 1 : 1.25);
        }
}

// Axes that a reshape joins have to lie one in the other, as the type has them.
static void vote_reshape(Election *election, const Node *node)
{
    const Type *from = val_type(election->graph, node->in[0]), *to = node->type[0];
    for (uint32_t axis = 0; axis < from->rank; axis++) {
        Dim behind = size_behind(from, axis), with = dim_product(behind, from->dim[axis]);
        bool begins = false, ends = false;
        for (uint32_t i = 0; i < to->rank; i++) {
            ends |= dim_equal(size_behind(to, i), behind);
            begins |= dim_equal(dim_product(size_behind(to, i), to->dim[i]), with);
        }
        // it stands in a group with others, and is not the last of all
        if (!(begins && ends) && !(behind.n == 1 && !behind.batch))
            vote(election, node->in[0], axis, -2);
    }
}

static void vote_node(Election *election, const Node *node, Val result)
{
    switch ((int)node->op) {
    case OP_CONV_WGRAD: case OP_GROUP_NORM_GRAD:
        vote_chunks(election, node->in[1], 1, node->op == OP_CONV_WGRAD ? 2 : 1);
        // fall through
    case OP_CONV: case OP_CONV_DGRAD: case OP_GROUP_NORM: case OP_GROUP_NORM_TABLE:
        vote_chunks(election, node->in[0], 1, node->op == OP_GROUP_NORM ? 1 : 2);
        if (node->op != OP_CONV_WGRAD && node->op != OP_GROUP_NORM_TABLE)
            vote_chunks(election, result, 1, 1);
        return;
    case OP_CONTRACT:
        vote_contract(election, node, result);
        return;
    case OP_ATTENTION: case OP_ATTENTION_GRAD:
        for (uint32_t i = 0; i < (node->op == OP_ATTENTION ? 3 : 5); i++)
            vote_last(election, node->in[i], 2);
        return;
    case OP_RESHAPE:
        if (!takes_part(election, result))
            vote_reshape(election, node);
        return;
    case OP_CONCAT: case OP_REDUCE_SUM: case OP_REDUCE_MAX: case OP_REDUCE_MIN:
    case OP_TRANSPOSE: case OP_EXPAND: case OP_SLICE: case OP_FLIP: case OP_STOP_GRADIENT:
    case OP_CAST:
        return;
    default:
        break;
    }
    for (uint32_t i = 0; op_info[node->op].class != CLASS_ELEMENTWISE && i < node->nin; i++)
        vote_last(election, node->in[i], 2);
}

// Copies of stretched elements lie as these do.
static void pair_moved(Election *election, const Node *node, Val result)
{
    for (uint32_t axis = 0; axis < node->type[0]->rank; axis++) {
        Val val = node->in[0];
        uint32_t there =
            reshaped_axis(val_type(election->graph, val), node->type[0], axis);
        if (find_axis(election, &val, &there))
            pair(election, axis_number(election->work, result, axis),
                 axis_number(election->work, val, there));
    }
}

// What lies alike if it can: the result of an elementwise operation or a concat, and its operands.
static void pair_operands(Election *election, const Node *node, Val result)
{
    if (node->op == OP_RESHAPE && takes_part(election, result)) {
        pair_moved(election, node, result);
        return;
    }
    if (!takes_part(election, result) ||
        (node->op != OP_CONCAT && op_info[node->op].class != CLASS_ELEMENTWISE))
        return;
    for (uint32_t i = 0; i < node->nin; i++) {
        const Type *type = val_type(election->graph, node->in[i]);
        for (uint32_t axis = 0; type->rank == node->type[0]->rank && axis < type->rank; axis++) {
            Val val = node->in[i];
            uint32_t there = axis;
            if (!val_is_step(election->work, val) && find_axis(election, &val, &there))
                pair(election, axis_number(election->work, result, axis),
                     axis_number(election->work, val, there));
        }
    }
}

// Elements are moved in the shape of what is reshaped: its axes have to be found in the result.
static bool can_move(const Election *election, Val val, const uint32_t *order)
{
    const Node *node = val_get(election->graph, val);
    View view = {.base = val}, out;
    ordered_strides(node->type[0], order, view.stride);
    return node->op != OP_RESHAPE ||
           reshape_view(&view, node->type[0], val_type(election->graph, node->in[0]), &out);
}

// Positions are one row of what these make: channels may be dense, or the last positions.
static bool makes_images(const Node *node)
{
    return node->op == OP_CONV || node->op == OP_CONV_DGRAD || node->op == OP_GROUP_NORM ||
           node->op == OP_GROUP_NORM_GRAD;
}

static uint32_t *order_of(Election *election, Val val)
{
    const Type *type = val_type(election->graph, val);
    uint32_t last = type->rank - 1, best = last;
    double most = 0;
    while (last > 0 && dim_is_one(type->dim[last]))
        best = --last;
    if (!type->dim[last].batch)
        most = election->votes[leader_of(election, axis_number(election->work, val, last))];
    for (uint32_t axis = 0; axis < type->rank; axis++) {
        if (dim_is_one(type->dim[axis]) || type->dim[axis].batch ||
            (axis != 1 && makes_images(val_get(election->graph, val))))
            continue;
        double votes = election->votes[leader_of(election, axis_number(election->work, val, axis))];
        if (votes > most) {
            most = votes;
            best = axis;
        }
    }
    if (best == last)
        return NULL;
    uint32_t *order = arena_alloc(election->work->arena, type->rank * sizeof *order), count = 0;
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (axis != best)
            order[count++] = axis;
    order[count] = best;
    return can_move(election, val, order) ? order : NULL;
}

void choose_orders(Work *work)
{
    size_t axes = ((size_t)work->count + 1) * MAX_OUT * MAX_RANK;
    Election election = {.work = work, .graph = work->module->graph};
    election.leader = arena_alloc(work->arena, axes * sizeof *election.leader);
    election.votes = arena_alloc(work->arena, axes * sizeof *election.votes);
    for (uint32_t i = 0; i < axes; i++)
        election.leader[i] = i;
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = graph_node(election.graph, work->nodes[local]);
        Val result = val_of(work->nodes[local], 0);
        if (work->step[local])
            continue;
        pair_operands(&election, node, result);
        vote_node(&election, node, result);
    }
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        vote_last(&election, work->variant->outputs[i].val, 1);
    for (uint32_t local = 0; local < work->count; local++)
        if (takes_part(&election, val_of(work->nodes[local], 0)))
            work->order[local * MAX_OUT] = order_of(&election, val_of(work->nodes[local], 0));
}
