// Rows keep their order: results are stored as the operand lies whose rows they continue.
//
// A transpose is a view, and what is computed from it row by row (a norm, a product with weights,
// an elementwise operation, attention) would be stored row-major in the new order, so that turning
// back were a view of strides that nothing joins. Instead each such result is stored in the order
// of axes in which its operand lies: then operand and result are walked alike, all axes in front of
// the last are one, and the turn back gives what was there before. Only the axes in front of the
// last one change places, and only where that one lies densely.
#include <string.h>

#include "compiler/plan.h"

static double rough(Dim dim)
{
    return (double)dim.n * (dim.batch ? 1000003.0 : 1.0);
}

// Sorts the first `count` axes by strides, the longest first. An axis of one element, whose stride
// says nothing, stays in front of the one behind it. false: that is the order they have.
static bool sort_axes(const Type *type, const Dim *stride, uint32_t count, uint32_t *order)
{
    double key[MAX_RANK], behind = 0;
    bool moved = false;
    for (uint32_t axis = count; axis-- > 0;)
        behind = key[axis] = dim_is_one(type->dim[axis]) ? behind : rough(stride[axis]);
    for (uint32_t axis = 0; axis < count; axis++) {
        uint32_t at = axis;
        for (; at > 0 && key[order[at - 1]] < key[axis]; at--)
            order[at] = order[at - 1];
        order[at] = axis;
        moved |= at != axis;
    }
    return moved;
}

// The order of an operand whose last axis lies densely; `type` is its own.
static bool operand_order(const Type *type, const View *view, uint32_t *order)
{
    uint32_t last = type->rank;
    while (last > 0 && dim_is_one(type->dim[last - 1]))
        last--;
    if (last == 0 || !dim_equal(view->stride[last - 1], dim_fixed(1)))
        return false;
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_is_one(type->dim[axis]) && view->stride[axis].n <= 0)
            return false;
    return sort_axes(type, view->stride, type->rank, order);
}

// The operand of an elementwise node that its result follows: one of its shape, if possible one
// that lies row-major.
static bool elementwise_order(const Graph *graph, const Node *node, Lies lies, void *context,
                              uint32_t *order)
{
    const Type *type = node->type[0];
    uint32_t found = UINT32_MAX;
    for (uint32_t i = 0; i < node->nin; i++) {
        uint32_t tried[MAX_RANK];
        if (!shape_equal(val_type(graph, node->in[i]), type))
            continue;
        View view = lies(context, node->in[i]);
        if (!operand_order(type, &view, tried))
            return false;
        if (found == UINT32_MAX)
            for (uint32_t axis = 0; axis < type->rank; axis++)
                order[axis] = tried[axis];
        found = i;
    }
    return found != UINT32_MAX;
}

// Of a product of rows with a matrix: the axes of the rows in their operand's order, then those of
// the matrix.
static bool product_order(const Graph *graph, const Node *node, Lies lies, void *context,
                          uint32_t *order)
{
    const int64_t *rank = node->attr->n, *labels[2] = {rank + 3, rank + 3 + rank[0]};
    const int64_t *out = labels[1] + rank[1];
    const Type *type = node->type[0];
    Dim stride[MAX_RANK] = {{0, 0}};
    int which = -1;                // the operand with the rows
    uint32_t rows = 0;
    View view[2] = {lies(context, node->in[0]), lies(context, node->in[1])};
    for (uint32_t axis = 0; axis < type->rank; axis++) {
        bool in[2] = {false, false};
        for (int k = 0; k < 2; k++)
            for (int64_t i = 0; i < rank[k]; i++)
                in[k] |= labels[k][i] == out[axis];
        if (axis == 0)
            which = in[0] ? 0 : 1;
        if (in[which] && rows != axis)
            return false;
        rows += in[which];
    }
    bool dense = false;            // its rows are
    const Type *from = val_type(graph, node->in[which < 0 ? 0 : which]);
    for (int64_t i = 0; which >= 0 && i < rank[which]; i++) {
        bool kept = false;
        for (uint32_t axis = 0; axis < rows; axis++) {
            if (out[axis] != labels[which][i])
                continue;
            kept = true;
            stride[axis] = view[which].stride[i];
            if (!dim_is_one(type->dim[axis]) && stride[axis].n <= 0)
                return false;
        }
        dense |= !kept && !dim_is_one(from->dim[i]) &&
                 dim_equal(view[which].stride[i], dim_fixed(1));
    }
    if (!dense || rows == type->rank)
        return false;
    for (uint32_t axis = rows; axis < type->rank; axis++)
        order[axis] = axis;
    return sort_axes(type, stride, rows, order);
}

bool order_of_rows(const Graph *graph, const Node *node, uint32_t out, Lies lies, void *context,
                   uint32_t *order)
{
    uint32_t followed = 0;
    switch ((int)node->op) {
    case OP_CONTRACT:
        return product_order(graph, node, lies, context, order);
    case OP_SWAP_PAIRS: case OP_CONCAT: case OP_LAYER_NORM:
        break;
    case OP_LAYER_NORM_GRAD:
        followed = 1;
        if (out > 0)
            return false;
        break;
    case OP_ATTENTION:
        if (out > 0)
            return false;
        break;
    case OP_ATTENTION_GRAD:
        followed = out + 1;
        break;
    default:
        return op_info[node->op].class == CLASS_ELEMENTWISE && node->type[0]->rank > 0 &&
               elementwise_order(graph, node, lies, context, order);
    }
    const Type *type = val_type(graph, node->in[followed]);
    View view = lies(context, node->in[followed]);
    return type->rank > 0 && operand_order(type, &view, order);
}

// ---- of a plan ----

static View lies(void *context, Val val)
{
    return view_of(context, val);
}

// An output or a tap, which is wanted row-major.
static bool is_kept(const Work *work, Val val)
{
    bool kept = false;
    for (uint32_t i = 0; work->kept[local_of(work, val)] && i < work->variant->output_count; i++)
        kept |= work->variant->outputs[i].val == val;
    return kept;
}

// Whether an operand of a concat is copied into it in any case: then it need not lie as that does.
static bool is_copied(const Work *work, Val val)
{
    const Graph *graph = work->module->graph;
    const Node *node = val_get(graph, val);
    while (node->nin > 0 && work->view[local_of(work, val)]) {
        val = node->in[0];
        node = val_get(graph, val);
    }
    NodeId user;
    return op_info[node->op].class == CLASS_SOURCE || count_users(work, val, &user) > 1;
}

// Whether a norm reads rows of `val`, behind movements.
static bool read_by_rows(const Work *work, Val val, uint32_t depth)
{
    uint32_t local = local_of(work, val);
    for (uint32_t i = work->user_first[local]; depth > 0 && i < work->user_first[local + 1]; i++) {
        const Node *user = graph_node(work->module->graph, work->users[i]);
        if ((user->op == OP_LAYER_NORM && user->in[0] == val) ||
            ((user->op == OP_RESHAPE || user->op == OP_TRANSPOSE) &&
             read_by_rows(work, val_of(work->users[i], 0), depth - 1)))
            return true;
    }
    return false;
}

// Axes of size 1 that a reshape puts in or takes out are not told apart by orders: that of the
// other axes of `to`, for those of `from`. false: it does more than that.
static bool order_before(const Type *from, const Type *to, const uint32_t *order, uint32_t *before)
{
    uint32_t axis_of[MAX_RANK], axis = 0, count = 0;
    for (uint32_t i = 0; i < to->rank; i++) {
        axis_of[i] = UINT32_MAX;
        if (dim_is_one(to->dim[i]))
            continue;
        while (axis < from->rank && dim_is_one(from->dim[axis]))
            axis++;
        if (axis == from->rank || !dim_equal(from->dim[axis], to->dim[i]))
            return false;
        axis_of[i] = axis++;
    }
    for (uint32_t i = 0; i < from->rank; i++)
        if (dim_is_one(from->dim[i]))
            before[count++] = i;
    for (uint32_t i = 0; i < to->rank; i++)
        if (axis_of[order[i]] != UINT32_MAX)
            before[count++] = axis_of[order[i]];
    return count == from->rank;
}

// The order in which rows are wanted that the readers of `val` turn it to, if a norm reads them and
// all readers agree: what would else be a copy in front of it.
static bool wanted_order(const Work *work, Val val, uint32_t depth, uint32_t *order)
{
    const Graph *graph = work->module->graph;
    const Type *type = val_type(graph, val);
    uint32_t local = local_of(work, val), begin = work->user_first[local], got[MAX_RANK];
    if (depth == 0 || work->kept[local] || begin == work->user_first[local + 1])
        return false;
    for (uint32_t i = begin; i < work->user_first[local + 1]; i++) {
        const Node *user = graph_node(graph, work->users[i]);
        Val next = val_of(work->users[i], 0);
        const Type *to = user->type[0];
        bool good = false;
        if (user->op == OP_TRANSPOSE) {
            good = user->attr->n[type->rank - 1] + 1 != type->rank && read_by_rows(work, next, 4);
            for (uint32_t k = 0; k < type->rank; k++)
                got[k] = (uint32_t)user->attr->n[k];
        } else if (user->op == OP_RESHAPE || user->op == OP_EXPAND ||
                   (op_info[user->op].class == CLASS_ELEMENTWISE && shape_equal(type, to))) {
            uint32_t behind[MAX_RANK];
            good = wanted_order(work, next, depth - 1, behind);
            if (good && user->op == OP_RESHAPE)
                good = order_before(type, to, behind, got);
            else if (good)
                memcpy(got, behind, sizeof got);
        }
        if (!good || (i > begin && memcmp(got, order, type->rank * sizeof *order) != 0))
            return false;
        memcpy(order, got, type->rank * sizeof *order);
    }
    return true;
}

uint32_t *rows_order(const Work *work, Val val)
{
    const Node *node = val_get(work->module->graph, val);
    uint32_t order[MAX_RANK], rank = node->type[val_out(val)]->rank;
    if (!(work->rungs & RUNG_ATTENTION) || work->taps || is_kept(work, val))
        return NULL;
    for (uint32_t i = 0; node->op == OP_CONCAT && i < node->nin; i++)
        if (is_copied(work, node->in[i]))
            return NULL;
    bool writes_any = node->op == OP_CONTRACT || op_info[node->op].class == CLASS_ELEMENTWISE;
    if (order_of_rows(work->module->graph, node, val_out(val), lies, (void *)(uintptr_t)work,
                      order) ||
        (writes_any && wanted_order(work, val, 6, order)))
        return arena_copy(work->arena, order, rank * sizeof *order);
    return NULL;
}
