// Channels that are zeros by construction take no part in sums of products.
//
// A value may be a concatenation with constant zeros (a condition that is not there), seen through
// views. A convolution over those channels, or a contraction over that axis, then needs only the
// rest, with the weights that belong to it. What is left out are products with zero: the result is
// the same for all finite weights, up to the order of the sum.
#include <string.h>

#include "compiler/program.h"

enum { MAX_PARTS = 16 };

typedef struct {
    int64_t start[MAX_PARTS], size[MAX_PARTS]; // what is kept of the axis
    uint32_t count;
    int64_t total;
} Kept;

static bool is_zero(const Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    return node->op == OP_CONST && node->attr->real == 0;
}

// The pieces of a concatenation along `axis` that are not zeros; 0: there are none to leave out.
static Val keep_pieces(Graph *graph, const Node *node, Kept *kept)
{
    uint32_t axis = (uint32_t)node->attr->n[0];
    Val pieces[MAX_PARTS];
    int64_t start = 0;
    *kept = (Kept){.count = 0};
    for (uint32_t i = 0; i < node->nin; i++) {
        int64_t size = val_type(graph, node->in[i])->dim[axis].n;
        if (!is_zero(graph, node->in[i])) {
            if (kept->count == MAX_PARTS)
                return 0;
            pieces[kept->count] = node->in[i];
            kept->start[kept->count] = start;
            kept->size[kept->count++] = size;
            kept->total += size;
        }
        start += size;
    }
    bool some = kept->count > 0 && kept->count < node->nin;
    return some ? g_concat(graph, pieces, kept->count, axis) : 0;
}

// The axis of a reshape's operand that is `axis` of its result; -1: it is split or joined.
static int axis_before(const Type *from, const Type *to, uint32_t axis)
{
    Dim before = dim_fixed(1);
    for (uint32_t i = 0; i < axis; i++)
        before = (Dim){before.n * to->dim[i].n, before.batch + to->dim[i].batch};
    Dim have = dim_fixed(1);
    for (uint32_t i = 0; i < from->rank; i++) {
        if (dim_equal(have, before) && dim_equal(from->dim[i], to->dim[axis]))
            return (int)i;
        have = (Dim){have.n * from->dim[i].n, have.batch + from->dim[i].batch};
    }
    return -1;
}

// The value without what is zero along an axis outside the batch; 0: nothing is known to be.
static Val without_zeros(Graph *graph, Val val, uint32_t axis, Kept *kept)
{
    const Node *node = val_get(graph, val);
    const Type *type = val_type(graph, val);
    Val inner;
    if (type->dim[axis].batch)
        return 0;
    switch ((unsigned)node->op) {
    case OP_CONCAT:
        return node->attr->n[0] == axis ? keep_pieces(graph, node, kept) : 0;
    case OP_SLICE:
        inner = node->attr->n[0] != axis ? without_zeros(graph, node->in[0], axis, kept) : 0;
        return inner ? graph_make(graph, OP_SLICE, &inner, 1, node->attr, NULL) : 0;
    case OP_TRANSPOSE:
        inner = without_zeros(graph, node->in[0], (uint32_t)node->attr->n[axis], kept);
        return inner ? graph_make(graph, OP_TRANSPOSE, &inner, 1, node->attr, NULL) : 0;
    case OP_RESHAPE: {
        int before = axis_before(val_type(graph, node->in[0]), type, axis);
        inner = before >= 0 ? without_zeros(graph, node->in[0], (uint32_t)before, kept) : 0;
        Dim dim[MAX_RANK];
        memcpy(dim, type->dim, sizeof dim);
        dim[axis] = dim_fixed(kept->total);
        return inner ? g_reshape(graph, inner, type->rank, dim) : 0;
    }
    default:
        return 0;
    }
}

static Val keep_of(Graph *graph, Val val, uint32_t axis, const Kept *kept)
{
    Val parts[MAX_PARTS];
    for (uint32_t i = 0; i < kept->count; i++)
        parts[i] = g_slice(graph, val, axis, kept->start[i], kept->size[i]);
    return g_concat(graph, parts, kept->count, axis);
}

static Val narrow_conv(Graph *graph, const Node *node)
{
    Kept kept;
    Val x = node->attr->n[1] == 1 ? without_zeros(graph, node->in[0], 1, &kept) : 0;
    if (!x)
        return 0;
    Val in[2] = {x, keep_of(graph, node->in[1], 1, &kept)};
    return graph_make(graph, OP_CONV, in, 2, node->attr, NULL);
}

// The axis of operand `operand` that has that label; -1: none.
static int axis_of_label(const Node *node, uint32_t operand, int64_t label)
{
    const int64_t *n = node->attr->n;
    for (int64_t i = 0; i < n[operand]; i++)
        if (n[3 + (operand ? n[0] : 0) + i] == label)
            return (int)i;
    return -1;
}

static bool in_result(const Node *node, int64_t label)
{
    const int64_t *n = node->attr->n;
    for (int64_t i = 0; i < n[2]; i++)
        if (n[3 + n[0] + n[1] + i] == label)
            return true;
    return false;
}

static Val narrow_sum(Graph *graph, const Node *node)
{
    const int64_t *n = node->attr->n;
    for (uint32_t operand = 0; operand < 2; operand++)
        for (int64_t axis = 0; axis < n[operand]; axis++) {
            int64_t label = n[3 + (operand ? n[0] : 0) + axis];
            int other = axis_of_label(node, 1 - operand, label);
            Kept kept;
            if (other < 0 || in_result(node, label))
                continue;
            Val x = without_zeros(graph, node->in[operand], (uint32_t)axis, &kept);
            if (!x)
                continue;
            Val in[2];
            in[operand] = x;
            in[1 - operand] = keep_of(graph, node->in[1 - operand], (uint32_t)other, &kept);
            return graph_make(graph, OP_CONTRACT, in, 2, node->attr, NULL);
        }
    return 0;
}

Val leave_out_zeros(Graph *graph, const Node *node)
{
    if (node->op == OP_CONV)
        return narrow_conv(graph, node);
    return node->op == OP_CONTRACT ? narrow_sum(graph, node) : 0;
}
