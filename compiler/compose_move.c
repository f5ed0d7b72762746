// Composites that move elements: concat, split, pad, flip, indices, windows, pooling, resampling.
//
// What only moves is slices, pads and reshapes, which the layout pass turns into views where it
// can. Pooling cuts axes into blocks and reduces their inside, [b, c, n / k, k, ...] over the k;
// linear resampling is a contraction with a constant table of weights for every axis, as in PyTorch
// with corners not aligned, so that both have their gradients from the operations they are made of.
#include "compiler/compose_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

Val compose_concat(Graph *graph, const Val *xs, uint32_t count, int64_t axis)
{
    if (count == 0)
        graph_set_error(graph, "concat of no tensors");
    if (count == 0 || !xs[0])
        return 0;
    int64_t place = compose_find_axis(graph, val_type(graph, xs[0]), axis);
    return place < 0 ? 0 : g_concat(graph, xs, count, (uint32_t)place);
}

bool compose_split_sizes(Graph *graph, Val x, const int64_t *sizes, uint32_t count, int64_t axis,
                         Val *out)
{
    if (!x)
        return false;
    const Type *type = val_type(graph, x);
    int64_t place = compose_find_axis(graph, type, axis), at = 0;
    if (place < 0)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        out[i] = g_slice(graph, x, (uint32_t)place, at, sizes[i]);
        if (!out[i])
            return false;
        at += sizes[i];
    }
    if (at == type->dim[place].n)
        return true;
    graph_set_error(graph, "split: the parts add up to %lld, and axis %lld of %s does not",
                    (long long)at, (long long)place, type_text(type));
    return false;
}

bool compose_split(Graph *graph, Val x, uint32_t parts, int64_t axis, Val *out)
{
    if (!x)
        return false;
    const Type *type = val_type(graph, x);
    int64_t place = compose_find_axis(graph, type, axis);
    if (place < 0)
        return false;
    if (parts == 0 || type->dim[place].n % parts != 0) {
        graph_set_error(graph, "axis %lld of %s does not split into %u equal parts",
                        (long long)place, type_text(type), parts);
        return false;
    }
    int64_t size = type->dim[place].n / parts;
    for (uint32_t i = 0; i < parts; i++)
        if (!(out[i] = g_slice(graph, x, (uint32_t)place, i * size, size)))
            return false;
    return true;
}

Val compose_flip(Graph *graph, Val x, int64_t axis)
{
    int64_t place = x ? compose_find_axis(graph, val_type(graph, x), axis) : -1;
    Attr attr = {.n = {place}, .count = 1};
    return place < 0 ? 0 : graph_make(graph, OP_FLIP, &x, 1, &attr, NULL);
}

Val compose_pad(Graph *graph, Val x, const int64_t *before, const int64_t *after, uint32_t count,
                double value)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (count != type->rank) {
        graph_set_error(graph, "pad: %u pairs for the axes of %s", count, type_text(type));
        return 0;
    }
    for (uint32_t i = 0; i < count && x; i++)
        if (before[i] || after[i])
            x = g_pad(graph, x, i, before[i], after[i], value);
    return x;
}

Val compose_index(Graph *graph, Val x, int64_t axis, int64_t index)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    int64_t place = compose_find_axis(graph, type, axis);
    if (place < 0)
        return 0;
    Dim size = type->dim[place], dim[MAX_RANK];
    int64_t at = index < 0 ? index + size.n : index;
    if (size.batch || at < 0 || at >= size.n) {
        graph_set_error(graph, "there is no element %lld on axis %lld of %s", (long long)index,
                        (long long)place, type_text(type));
        return 0;
    }
    uint32_t rank = 0;
    for (uint32_t i = 0; i < type->rank; i++)
        if (i != place)
            dim[rank++] = type->dim[i];
    Val element = size.n == 1 ? x : g_slice(graph, x, (uint32_t)place, at, 1);
    return element ? g_reshape(graph, element, rank, dim) : 0;
}

Val compose_range(Graph *graph, Val x, int64_t axis, int64_t from, int64_t to)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    int64_t place = compose_find_axis(graph, type, axis);
    if (place < 0)
        return 0;
    int64_t n = type->dim[place].n, first = from < 0 ? from + n : from;
    int64_t end = to < 0 ? to + n : to;
    if (first < 0 || end > n || first >= end || type->dim[place].batch) {
        graph_set_error(graph, "%lld..%lld is not within axis %lld of %s", (long long)from,
                        (long long)to, (long long)place, type_text(type));
        return 0;
    }
    return end - first == n ? x : g_slice(graph, x, (uint32_t)place, first, end - first);
}

Val compose_pick(Graph *graph, Val x, Val k, int64_t axis)
{
    int64_t place = x && k ? compose_find_axis(graph, val_type(graph, x), axis) : -1;
    if (place >= 0 && !dtype_is_float(val_type(graph, x)->dtype)) {
        graph_set_error(graph, "pick wants real numbers, not %s", type_text(val_type(graph, x)));
        return 0;
    }
    Val in[2] = {x, k};
    Attr attr = {.n = {place}, .count = 1};
    return place < 0 ? 0 : graph_make(graph, OP_PICK, in, 2, &attr, NULL);
}

Val compose_window(Graph *graph, Val x, Val start, int64_t size, int64_t axis)
{
    int64_t place = x && start ? compose_find_axis(graph, val_type(graph, x), axis) : -1;
    Val in[2] = {x, start};
    Attr attr = {.n = {place, size}, .count = 2};
    return place < 0 ? 0 : graph_make(graph, OP_WINDOW, in, 2, &attr, NULL);
}

// Cuts every axis after the second into div(n, k) blocks of k (the rest is dropped):
// [b, c, n / k, k, ...]. *mask names the axes of the blocks' inside, `out` the pooled shape.
static Val cut_blocks(Graph *graph, Val x, int64_t k, uint32_t *mask, Dim *out)
{
    const Type *type = val_type(graph, x);
    bool fits = type->rank >= 3 && type->rank <= 5 && k >= 1;
    for (uint32_t i = 2; fits && i < type->rank; i++)
        fits = !type->dim[i].batch && type->dim[i].n >= k;
    if (!fits) {
        graph_set_error(graph, "pooling by %lld does not fit %s", (long long)k, type_text(type));
        return 0;
    }
    Dim dim[MAX_RANK];
    uint32_t rank = 2;
    *mask = 0;
    memcpy(dim, type->dim, 2 * sizeof *dim);
    memcpy(out, type->dim, 2 * sizeof *dim);
    for (uint32_t i = 2; i < type->rank && x; i++) {
        int64_t blocks = type->dim[i].n / k;
        if (blocks * k != type->dim[i].n)
            x = g_slice(graph, x, i, 0, blocks * k);
        out[i] = dim[rank++] = dim_fixed(blocks);
        *mask |= UINT32_C(1) << rank;
        dim[rank++] = dim_fixed(k);
    }
    return x ? g_reshape(graph, x, rank, dim) : 0;
}

Val compose_avg_pool(Graph *graph, Val x, int64_t k)
{
    uint32_t mask;
    Dim dim[MAX_RANK];
    Val blocks = x ? cut_blocks(graph, x, k, &mask, dim) : 0;
    Val mean = blocks ? compose_mean_axes(graph, blocks, mask) : 0;
    return mean ? g_reshape(graph, mean, val_type(graph, x)->rank, dim) : 0;
}

Val compose_max_pool(Graph *graph, Val x, int64_t k)
{
    uint32_t mask;
    Dim dim[MAX_RANK];
    Val blocks = x ? cut_blocks(graph, x, k, &mask, dim) : 0;
    Val most = blocks ? g_reduce(graph, OP_REDUCE_MAX, blocks, mask) : 0;
    return most ? g_reshape(graph, most, val_type(graph, x)->rank, dim) : 0;
}

Val compose_resize_nearest(Graph *graph, Val x, int64_t factor)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (type->rank < 3 || type->rank > 5 || factor < 1 || factor > INT32_MAX) {
        graph_set_error(graph, "resize_nearest by %lld does not fit %s", (long long)factor,
                        type_text(type));
        return 0;
    }
    Dim narrow[MAX_RANK], wide[MAX_RANK], out[MAX_RANK];
    uint32_t rank = 2;
    for (uint32_t i = 0; i < 2; i++)
        narrow[i] = wide[i] = out[i] = type->dim[i];
    for (uint32_t i = 2; i < type->rank; i++) {
        narrow[rank] = wide[rank] = type->dim[i];
        rank++;
        narrow[rank] = dim_fixed(1);
        wide[rank++] = dim_fixed(factor);
        out[i] = (Dim){type->dim[i].n * factor, type->dim[i].batch};
    }
    if (factor == 1)
        return x;
    Val blocks = g_expand(graph, g_reshape(graph, x, rank, narrow), wide);
    return g_reshape(graph, blocks, type->rank, out);
}

enum { MAX_WEIGHTS = 1 << 26 }; // of one axis: from * to

// Weights [to, from] of linear interpolation along one axis: sample i lies at
// (i + 0.5) from / to - 0.5, held inside the axis.
static Val linear_weights(Graph *graph, int64_t from, int64_t to, DType dtype)
{
    double *weights = calloc((size_t)(from * to), sizeof *weights);
    if (!weights)
        bug("no memory for a resize from %lld to %lld", (long long)from, (long long)to);
    for (int64_t i = 0; i < to; i++) {
        double place = ((double)i + 0.5) * (double)from / (double)to - 0.5;
        place = fmin(fmax(place, 0), (double)(from - 1));
        int64_t left = (int64_t)place;
        int64_t right = left + 1 < from ? left + 1 : left;
        weights[i * from + left] += 1 - (place - (double)left);
        weights[i * from + right] += place - (double)left;
    }
    Val table = compose_real_table(graph, dtype, to, from, weights);
    free(weights);
    return table;
}

Val compose_resize_linear(Graph *graph, Val x, const int64_t *size, uint32_t count)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (type->rank < 3 || count != type->rank - 2) {
        graph_set_error(graph, "resize_linear to %u sizes does not fit %s", count, type_text(type));
        return 0;
    }
    for (uint32_t i = 0; i < count && x; i++) {
        Dim from = type->dim[2 + i];
        if (size[i] < 1 || from.batch || size[i] > MAX_WEIGHTS / from.n) {
            graph_set_error(graph, "axis %u of %s cannot be resized to %lld", 2 + i,
                            type_text(type), (long long)size[i]);
            return 0;
        }
        if (from.n == size[i])
            continue;
        char labels_x[MAX_RANK + 1], labels_y[MAX_RANK + 1], labels_w[3] = "z";
        compose_axis_labels(labels_x, type->rank);
        compose_axis_labels(labels_y, type->rank);
        labels_w[1] = labels_x[2 + i];
        labels_y[2 + i] = 'z';
        x = g_contract(graph, x, linear_weights(graph, from.n, size[i], type->dtype), labels_x,
                       labels_w, labels_y);
    }
    return x;
}
