// Short forms for making nodes. 0 in gives 0 out, so that a chain of them needs one check.
//
// Simplified here is only what is the identity by construction: a reshape to the same shape, a
// transpose that keeps the order, a slice of everything. All other algebra is simplify.c's.
#include <stdlib.h>
#include <string.h>

#include "compiler/graph.h"

Val g_const(Graph *graph, DType dtype, double value)
{
    Type type = type_scalar(dtype);
    return g_full(graph, &type, value);
}

Val g_full(Graph *graph, const Type *type, double value)
{
    return graph_make(graph, OP_CONST, NULL, 0, &(Attr){.real = value}, type);
}

Val g_table(Graph *graph, const Type *type, const void *data)
{
    Dim count;
    if (!type_count(type, &count) || count.batch)
        bug("a table of type %s", type_text(type));
    uint32_t blob = graph_add_blob(graph, data, (size_t)count.n * dtype_size(type->dtype));
    return graph_make(graph, OP_TABLE, NULL, 0, &(Attr){.n = {blob}, .count = 1}, type);
}

Val g_unary(Graph *graph, Op op, Val x)
{
    return graph_make(graph, op, &x, 1, NULL, NULL);
}

Val g_binary(Graph *graph, Op op, Val x, Val y)
{
    return graph_make(graph, op, (Val[]){x, y}, 2, NULL, NULL);
}

Val g_where(Graph *graph, Val cond, Val x, Val y)
{
    return graph_make(graph, OP_WHERE, (Val[]){cond, x, y}, 3, NULL, NULL);
}

Val g_cast(Graph *graph, Val x, DType dtype)
{
    if (!x)
        return 0;
    Type type = *val_type(graph, x);
    if (type.dtype == dtype)
        return x;
    type.dtype = dtype;
    return graph_make(graph, OP_CAST, &x, 1, NULL, &type);
}

Val g_reshape(Graph *graph, Val x, uint32_t rank, const Dim *dim)
{
    if (!x)
        return 0;
    if (rank > MAX_RANK) {
        graph_set_error(graph, "%u axes are more than %d", rank, MAX_RANK);
        return 0;
    }
    const Type *from = val_type(graph, x);
    Type to = type_make(from->dtype, rank, dim);
    if (shape_equal(from, &to))
        return x;
    return graph_make(graph, OP_RESHAPE, &x, 1, NULL, &to);
}

Val g_transpose(Graph *graph, Val x, const uint32_t *perm)
{
    if (!x)
        return 0;
    uint32_t rank = val_type(graph, x)->rank;
    Attr attr = {.count = rank};
    bool same = true;
    for (uint32_t i = 0; i < rank; i++) {
        attr.n[i] = perm[i];
        same = same && perm[i] == i;
    }
    return same ? x : graph_make(graph, OP_TRANSPOSE, &x, 1, &attr, NULL);
}

Val g_expand(Graph *graph, Val x, const Dim *dim)
{
    if (!x)
        return 0;
    const Type *from = val_type(graph, x);
    Type to = type_make(from->dtype, from->rank, dim);
    if (shape_equal(from, &to))
        return x;
    if (from->seg && dim_equal(from->dim[from->seg_axis], to.dim[from->seg_axis])) {
        to.seg = from->seg;
        to.seg_axis = from->seg_axis;
    }
    return graph_make(graph, OP_EXPAND, &x, 1, NULL, &to);
}

Val g_slice(Graph *graph, Val x, uint32_t axis, int64_t start, int64_t size)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (axis < type->rank && start == 0 && size == type->dim[axis].n)
        return x;
    return graph_make(graph, OP_SLICE, &x, 1, &(Attr){.n = {axis, start, size}, .count = 3}, NULL);
}

Val g_pad(Graph *graph, Val x, uint32_t axis, int64_t before, int64_t after, double value)
{
    if (before == 0 && after == 0)
        return x;
    Attr attr = {.n = {axis, before, after}, .count = 3, .real = value};
    return graph_make(graph, OP_PAD, &x, 1, &attr, NULL);
}

Val g_concat(Graph *graph, const Val *xs, uint32_t count, uint32_t axis)
{
    if (count == 1)
        return xs[0];
    return graph_make(graph, OP_CONCAT, xs, count, &(Attr){.n = {axis}, .count = 2}, NULL);
}

Val g_reduce(Graph *graph, Op op, Val x, uint32_t mask)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    for (uint32_t i = 0; i < type->rank; i++)
        if (dim_is_one(type->dim[i]))
            mask &= ~(1u << i);
    if (!mask)
        return x;
    return graph_make(graph, op, &x, 1, &(Attr){.n = {mask}, .count = 1}, NULL);
}

Val g_contract(Graph *graph, Val x, Val y, const char *labels_x, const char *labels_y,
               const char *labels_out)
{
    const char *letters[] = {labels_x, labels_y, labels_out};
    int64_t number[128]; // of a letter; in order of their first appearance
    int64_t next = 0;
    memset(number, -1, sizeof number);
    Attr attr = {.count = 3};
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(letters[i]);
        if (length > MAX_RANK)
            bug("%zu labels", length);
        attr.n[i] = (int64_t)length;
        for (size_t j = 0; j < length; j++) {
            int64_t *label = &number[letters[i][j] & 127];
            if (*label < 0)
                *label = next++;
            attr.n[attr.count++] = *label;
        }
    }
    return graph_make(graph, OP_CONTRACT, (Val[]){x, y}, 2, &attr, NULL);
}

Val g_causal(Graph *graph, Val x, double above)
{
    const Type *type = x ? val_type(graph, x) : NULL;
    if (!type)
        return 0;
    uint32_t rank = type->rank;
    int64_t n = type->dim[rank - 2].n, m = type->dim[rank - 1].n;
    unsigned char *seen = malloc((size_t)(n * m));
    if (!seen)
        bug("no memory for a mask of %lld by %lld", (long long)n, (long long)m);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++)
            seen[i * m + j] = j <= i;
    Type table = type_make(DT_BOOL, rank, type->dim);
    for (uint32_t i = 0; i + 2 < rank; i++)
        table.dim[i] = dim_fixed(1);
    Val visible = g_table(graph, &table, seen);
    free(seen);
    return g_where(graph, visible, x, g_const(graph, type->dtype, above));
}

Val g_dim(Graph *graph, Dim dim, DType dtype)
{
    if (!dim.batch)
        return g_const(graph, dtype, (double)dim.n);
    Val size = graph_make(graph, OP_BATCH, NULL, 0, NULL, NULL);
    if (dim.n != 1)
        size = g_binary(graph, OP_MUL, size, g_const(graph, DT_I64, (double)dim.n));
    return g_cast(graph, size, dtype);
}

Val g_unbroadcast(Graph *graph, Val x, const Type *like)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    uint32_t mask = 0;
    for (uint32_t i = 0; i < type->rank; i++)
        if (like->rank == 0 || (dim_is_one(like->dim[i]) && !dim_is_one(type->dim[i])))
            mask |= 1u << i;
    if (like->rank != 0 && like->rank != type->rank)
        bug("%s was not stretched to %s", type_text(like), type_text(type));
    return g_reshape(graph, g_reduce(graph, OP_REDUCE_SUM, x, mask), like->rank, like->dim);
}
