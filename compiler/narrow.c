// Rows of a batch that are all equal are computed once.
//
// A number of the step that is given to all rows of a batch, such as the time of a denoising step,
// is an expand along the batch axis. Elementwise operations move such an expand behind themselves
// (simplify.c); the rules here do so for what moves elements and for contractions, so that all that
// follows from the number is computed for one row, and the result is stretched where it meets a
// value that differs from row to row. The sums are the same ones; a kernel may add one row's up in
// another order than many rows'.
#include <string.h>

#include "compiler/program.h"

// The axis along which the batch runs, -1 if there is none.
static int batch_axis(const Type *type)
{
    for (uint32_t i = 0; i < type->rank; i++)
        if (type->dim[i].batch)
            return (int)i;
    return -1;
}

// The value with one row in place of the batch, if all rows are equal; else 0.
static Val one_row(Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    Type type = *val_type(graph, val);
    int axis = batch_axis(&type);
    if (axis < 0)
        return val;
    type.dim[axis] = dim_fixed(1);
    if (node->op == OP_CONST) {
        Type plain = type_make(type.dtype, type.rank, type.dim);
        return g_full(graph, &plain, node->attr->real);
    }
    if (node->op != OP_EXPAND || !dim_is_one(val_type(graph, node->in[0])->dim[axis]))
        return 0;
    return g_expand(graph, node->in[0], type.dim);
}

// A reshape leaves the batch axis alone if as many elements stand before it as did.
static bool same_axis(const Type *from, int axis, const Type *to, int to_axis)
{
    int64_t before = 1, to_before = 1;
    for (int i = 0; i < axis; i++)
        before *= from->dim[i].n;
    for (int i = 0; i < to_axis; i++)
        to_before *= to->dim[i].n;
    return before == to_before && dim_equal(from->dim[axis], to->dim[to_axis]);
}

static Val narrow_movement(Graph *graph, const Node *node, int axis)
{
    const Type *type = node->type[0], *from = val_type(graph, node->in[0]);
    int from_axis = batch_axis(from);
    Val row = from_axis >= 0 ? one_row(graph, node->in[0]) : 0;
    if (!row || row == node->in[0])
        return 0;
    if (node->op == OP_RESHAPE) {
        Dim dim[MAX_RANK];
        memcpy(dim, type->dim, sizeof dim);
        dim[axis] = dim_fixed(1);
        return same_axis(from, from_axis, type, axis) ? g_reshape(graph, row, type->rank, dim) : 0;
    }
    if (node->op == OP_SLICE && node->attr->n[0] == axis)
        return 0;
    return graph_make(graph, node->op, &row, 1, node->attr, NULL);
}

static Val narrow_concat(Graph *graph, const Node *node, int axis)
{
    Val rows[64];
    if (node->attr->n[0] == axis || node->nin > sizeof rows / sizeof *rows)
        return 0;
    for (uint32_t i = 0; i < node->nin; i++)
        if (!(rows[i] = one_row(graph, node->in[i])))
            return 0;
    return graph_make(graph, OP_CONCAT, rows, node->nin, node->attr, NULL);
}

// The batch must be a label of the result, and every operand that has it must have equal rows.
static Val narrow_contract(Graph *graph, const Node *node)
{
    Val rows[2];
    for (uint32_t i = 0; i < 2; i++)
        if (!(rows[i] = one_row(graph, node->in[i])))
            return 0;
    return graph_make(graph, OP_CONTRACT, rows, 2, node->attr, NULL);
}

Val narrow_batch(Graph *graph, const Node *node)
{
    const Type *type = node->type[0];
    int axis = batch_axis(type);
    Val row = 0;
    if (axis < 0)
        return 0;
    switch ((unsigned)node->op) {
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_SLICE:
        row = narrow_movement(graph, node, axis);
        break;
    case OP_CONCAT:
        row = narrow_concat(graph, node, axis);
        break;
    case OP_CONTRACT:
        row = narrow_contract(graph, node);
        break;
    default:
        break;
    }
    return row ? g_expand(graph, row, type->dim) : 0;
}
