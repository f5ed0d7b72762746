// Composites: layers, attention, means and sums as graphs of operations.
//
// Nothing here is special to a model or a target; what has a kernel of its own (norms, softmax,
// attention, convolution) becomes that one operation, everything else ordinary ones, which the
// gradient and fusion treat like any other. Formulas are PyTorch's where PyTorch has the function:
// the same statistics, the same gradient at ties and bounds.
#include "compiler/compose_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// The place of an axis, counted from the end if negative; -1, and an error, if there is none.
int64_t compose_find_axis(Graph *graph, const Type *type, int64_t axis)
{
    int64_t place = axis < 0 ? axis + type->rank : axis;
    if (place >= 0 && place < type->rank)
        return place;
    graph_set_error(graph, "there is no axis %lld in %s", (long long)axis, type_text(type));
    return -1;
}

// x with leading axes of size 1, so that it has `rank` axes. Numbers stay numbers.
static Val pad_rank(Graph *graph, Val x, uint32_t rank)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (type->rank == 0 || type->rank >= rank)
        return x;
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++)
        dim[i] = i + type->rank < rank ? dim_fixed(1) : type->dim[i + type->rank - rank];
    return g_reshape(graph, x, rank, dim);
}

// v [c] as [1, c, 1, ...]: goes with axis 1 of a tensor of that rank.
static Val channel_vector(Graph *graph, Val v, uint32_t rank)
{
    if (!v)
        return 0;
    const Type *type = val_type(graph, v);
    if (type->rank != 1 || rank < 2) {
        graph_set_error(graph, "one number a channel is wanted, not %s", type_text(type));
        return 0;
    }
    Dim dim[MAX_RANK];
    for (uint32_t i = 0; i < rank; i++)
        dim[i] = i == 1 ? type->dim[0] : dim_fixed(1);
    return g_reshape(graph, v, rank, dim);
}

// A number of the dtype of x.
static Val const_like(Graph *graph, Val x, double value)
{
    return x ? g_const(graph, val_type(graph, x)->dtype, value) : 0;
}

// A constant tensor [rows, columns] of that precision.
Val compose_real_table(Graph *graph, DType dtype, int64_t rows, int64_t columns,
                       const double *values)
{
    Type type = type_make(dtype, 2, (Dim[]){dim_fixed(rows), dim_fixed(columns)});
    if (dtype == DT_F64)
        return g_table(graph, &type, values);
    size_t count = (size_t)(rows * columns);
    float *narrow = malloc(count * sizeof *narrow);
    if (!narrow)
        bug("no memory for %zu numbers", count);
    for (size_t i = 0; i < count; i++)
        narrow[i] = (float)values[i];
    type.dtype = DT_F32;
    Val table = g_table(graph, &type, narrow);
    free(narrow);
    return dtype == DT_F32 ? table : g_cast(graph, table, dtype);
}

// ---- numbers that meet tensors ----

bool compose_mix(Graph *graph, Val *x, Val *y)
{
    if (!*x || !*y)
        return false;
    const Type *tx = val_type(graph, *x), *ty = val_type(graph, *y);
    if (tx->dtype == ty->dtype)
        return true;
    if (tx->dtype == DT_BOOL || ty->dtype == DT_BOOL) {
        graph_set_error(graph, "a truth value does not mix with a number: %s and %s", type_text(tx),
                        type_text(ty));
        return false;
    }
    bool to_x = tx->dtype > ty->dtype;
    if (dtype_is_float(tx->dtype) && dtype_is_float(ty->dtype) && !tx->rank != !ty->rank)
        to_x = tx->rank != 0;
    if (to_x)
        *y = g_cast(graph, *y, tx->dtype);
    else
        *x = g_cast(graph, *x, ty->dtype);
    return *x && *y;
}

Val compose_binary(Graph *graph, Op op, Val x, Val y)
{
    return compose_mix(graph, &x, &y) ? g_binary(graph, op, x, y) : 0;
}

Val compose_where(Graph *graph, Val cond, Val x, Val y)
{
    return cond && compose_mix(graph, &x, &y) ? g_where(graph, cond, x, y) : 0;
}

// The value of a number known at compile time.
static bool const_value(const Graph *graph, Val x, double *value)
{
    const Node *node = val_get(graph, x);
    while (node->op == OP_CAST && dtype_is_float(node->type[0]->dtype))
        node = val_get(graph, node->in[0]);
    *value = node->attr->real;
    return node->op == OP_CONST && node->type[0]->rank == 0;
}

Val compose_pow(Graph *graph, Val x, Val y)
{
    double exponent;
    if (!x || !y)
        return 0;
    if (dtype_is_float(val_type(graph, x)->dtype) && const_value(graph, y, &exponent)) {
        if (exponent == 0)
            return g_full(graph, val_type(graph, x), 1);
        if (exponent == 1)
            return x;
        if (exponent == 2 || exponent == 3) {
            Val square = g_binary(graph, OP_MUL, x, x);
            return exponent == 2 ? square : g_binary(graph, OP_MUL, square, x);
        }
        if (exponent == 0.5 || exponent == -0.5)
            return g_unary(graph, exponent > 0 ? OP_SQRT : OP_RSQRT, x);
        if (exponent == -1)
            return g_binary(graph, OP_DIV, const_like(graph, x, 1), x);
    }
    return compose_binary(graph, OP_POW, x, y);
}

Val compose_log2(Graph *graph, Val x)
{
    return g_binary(graph, OP_MUL, g_unary(graph, OP_LOG, x), const_like(graph, x, 1 / M_LN2));
}

Val compose_round(Graph *graph, Val x)
{
    Val below = g_unary(graph, OP_FLOOR, x), half = const_like(graph, x, 0.5);
    Val rest = g_binary(graph, OP_SUB, x, below); // exact
    Val odd = g_binary(graph, OP_MOD, below, const_like(graph, x, 2));
    Val tie = g_binary(graph, OP_EQ, rest, half);
    Val step = g_where(
        graph, tie, odd,
        g_cast(graph, g_binary(graph, OP_LT, half, rest), x ? val_type(graph, x)->dtype : DT_F32));
    return g_binary(graph, OP_ADD, below, step);
}

Val compose_leaky_relu(Graph *graph, Val x, double slope)
{
    Val positive = g_binary(graph, OP_LT, const_like(graph, x, 0), x);
    return g_where(graph, positive, x, g_binary(graph, OP_MUL, x, const_like(graph, x, slope)));
}

Val compose_clamp(Graph *graph, Val x, Val lo, Val hi)
{
    if (!compose_mix(graph, &x, &lo) || !compose_mix(graph, &x, &hi) ||
        !compose_mix(graph, &x, &lo))
        return 0;
    Val capped = g_where(graph, g_binary(graph, OP_LT, hi, x), hi, x);
    return g_where(graph, g_binary(graph, OP_LT, x, lo), lo, capped);
}

Val compose_dropout(Graph *graph, Val x, double p, const char *stream)
{
    if (!x || p == 0)
        return x;
    if (!(p > 0 && p < 1)) {
        graph_set_error(graph, "dropout wants a probability below 1, not %g", p);
        return 0;
    }
    const Type *type = val_type(graph, x);
    Type shape = type_make(type->dtype, type->rank, type->dim);
    Attr attr = {.n = {1}, .count = 3, .text = stream};
    Val draw = graph_make(graph, OP_RANDOM, NULL, 0, &attr, &shape);
    Val dropped = g_binary(graph, OP_LT, draw, const_like(graph, x, p));
    return g_where(graph, dropped, const_like(graph, x, 0),
                   g_binary(graph, OP_MUL, x, const_like(graph, x, 1 / (1 - p))));
}

// ---- layers ----

// Letters for the axes of a tensor: 'a', 'b', ...
void compose_axis_labels(char *labels, uint32_t rank)
{
    for (uint32_t i = 0; i < rank; i++)
        labels[i] = (char)('a' + i);
    labels[rank] = '\0';
}

Val compose_linear(Graph *graph, Val x, Val w, Val b)
{
    if (!x || !w)
        return 0;
    const Type *tx = val_type(graph, x), *tw = val_type(graph, w);
    if (tx->rank == 0 || tw->rank != 2 || !dim_equal(tx->dim[tx->rank - 1], tw->dim[1])) {
        graph_set_error(graph, "a linear layer with weight %s does not fit %s", type_text(tw),
                        type_text(tx));
        return 0;
    }
    char labels_x[MAX_RANK + 1], labels_w[3] = "za", labels_y[MAX_RANK + 1];
    compose_axis_labels(labels_x, tx->rank);
    compose_axis_labels(labels_y, tx->rank);
    labels_w[1] = labels_x[tx->rank - 1];
    labels_y[tx->rank - 1] = 'z';
    uint32_t rank = tx->rank;
    Val y = g_contract(graph, x, w, labels_x, labels_w, labels_y);
    return b ? g_binary(graph, OP_ADD, y, pad_rank(graph, b, rank)) : y;
}

// "axes groups stride0 .. pad2" of the convolutions.
static Attr conv_attr(uint32_t axes, int64_t groups, const int64_t *stride, const int64_t *pad)
{
    Attr attr = {.n = {axes, groups}, .count = 8};
    for (uint32_t i = 0; i < 3; i++) {
        attr.n[2 + i] = stride && i < axes ? stride[i] : 1;
        attr.n[5 + i] = pad && i < axes ? pad[i] : 0;
    }
    return attr;
}

// x [batch, c, s...], w [.., .., k...] with as many axes; false with an error.
static bool check_conv(Graph *graph, const Type *tx, const Type *tw)
{
    if (tx->rank >= 3 && tx->rank <= 5 && tw->rank == tx->rank)
        return true;
    graph_set_error(graph, "a convolution with weight %s does not fit %s", type_text(tw),
                    type_text(tx));
    return false;
}

// A convolution that sees one position at a time: y[b, o, s...] = sum_c w[o, c] x[b, c, s...].
static Val conv_pointwise(Graph *graph, Val x, Val w)
{
    const Type *tx = val_type(graph, x), *tw = val_type(graph, w);
    char labels_x[MAX_RANK + 1], labels_y[MAX_RANK + 1];
    compose_axis_labels(labels_x, tx->rank);
    compose_axis_labels(labels_y, tx->rank);
    labels_y[1] = 'z';
    return g_contract(graph, x, g_reshape(graph, w, 2, tw->dim), labels_x, "zb", labels_y);
}

Val compose_conv(Graph *graph, Val x, Val w, Val b, const int64_t *stride, const int64_t *pad,
                 int64_t groups)
{
    if (!x || !w)
        return 0;
    const Type *tx = val_type(graph, x), *tw = val_type(graph, w);
    if (!check_conv(graph, tx, tw))
        return 0;
    Attr attr = conv_attr(tx->rank - 2, groups, stride, pad);
    bool pointwise = groups == 1 && dim_equal(tx->dim[1], tw->dim[1]);
    for (uint32_t i = 0; i < tx->rank - 2; i++)
        pointwise &= dim_is_one(tw->dim[2 + i]) && attr.n[2 + i] == 1 && attr.n[5 + i] == 0;
    Val in[2] = {x, w};
    Val y =
        pointwise ? conv_pointwise(graph, x, w) : graph_make(graph, OP_CONV, in, 2, &attr, NULL);
    return b ? g_binary(graph, OP_ADD, y, channel_vector(graph, b, tx->rank)) : y;
}

Val compose_conv_transpose(Graph *graph, Val x, Val w, Val b, const int64_t *stride,
                           const int64_t *pad)
{
    if (!x || !w)
        return 0;
    const Type *tx = val_type(graph, x), *tw = val_type(graph, w);
    if (!check_conv(graph, tx, tw))
        return 0;
    Attr attr = conv_attr(tx->rank - 2, 1, stride, pad);
    Type type = type_make(tx->dtype, tx->rank, tx->dim);
    type.dim[1] = tw->dim[1];
    for (uint32_t i = 2; i < tx->rank; i++) {
        int64_t n = (tx->dim[i].n - 1) * attr.n[i] - 2 * attr.n[3 + i] + tw->dim[i].n;
        if (tx->dim[i].batch || n < 1) {
            graph_set_error(graph, "a transposed convolution with weight %s does not fit %s",
                            type_text(tw), type_text(tx));
            return 0;
        }
        type.dim[i] = dim_fixed(n);
    }
    Val in[2] = {x, w};
    Val y = graph_make(graph, OP_CONV_DGRAD, in, 2, &attr, &type);
    return b ? g_binary(graph, OP_ADD, y, channel_vector(graph, b, tx->rank)) : y;
}

Val compose_layer_norm(Graph *graph, Val x, Val gamma, Val beta, double eps)
{
    Val in[3] = {x, gamma, beta};
    Attr attr = {.real = eps};
    return graph_make(graph, OP_LAYER_NORM, in, gamma ? 3 : 1, &attr, NULL);
}

Val compose_rms_norm(Graph *graph, Val x, Val gamma, double eps)
{
    if (!x)
        return 0;
    uint32_t rank = val_type(graph, x)->rank;
    if (rank == 0) {
        graph_set_error(graph, "a norm needs an axis");
        return 0;
    }
    Val power = compose_mean_axes(graph, g_binary(graph, OP_MUL, x, x), UINT32_C(1) << (rank - 1));
    Val scale = g_unary(graph, OP_RSQRT, g_binary(graph, OP_ADD, power, const_like(graph, x, eps)));
    Val y = g_binary(graph, OP_MUL, x, scale);
    return gamma ? g_binary(graph, OP_MUL, y, pad_rank(graph, gamma, rank)) : y;
}

Val compose_group_norm(Graph *graph, Val x, Val gamma, Val beta, int64_t groups, double eps)
{
    Val in[3] = {x, gamma, beta};
    Attr attr = {.n = {groups}, .count = 1, .real = eps};
    return graph_make(graph, OP_GROUP_NORM, in, 3, &attr, NULL);
}

// old + momentum (new - old), without a gradient: a running statistic.
static Val move_statistic(Graph *graph, Val old, Val new, double momentum)
{
    Val step = g_binary(graph, OP_SUB, g_unary(graph, OP_STOP_GRADIENT, new), old);
    return g_binary(graph, OP_ADD, old,
                    g_binary(graph, OP_MUL, step, const_like(graph, old, momentum)));
}

BatchNorm compose_batch_norm(Graph *graph, Val x, Val gamma, Val beta, Val mean, Val var,
                             double eps, double momentum, bool training)
{
    BatchNorm out = {0};
    if (!x || !gamma || !beta || !mean || !var)
        return out;
    const Type *type = val_type(graph, x);
    uint32_t rank = type->rank;
    Dim channels = rank < 2 ? dim_fixed(0) : type->dim[1];
    if (rank < 2 || !dim_equal(val_type(graph, gamma)->dim[0], channels)) {
        graph_set_error(graph, "a batch norm of %s does not fit %s",
                        type_text(val_type(graph, gamma)), type_text(type));
        return out;
    }
    Val center, spread;
    if (training) {
        uint32_t mask = ((UINT32_C(1) << rank) - 1) & ~UINT32_C(2);
        Dim count = dim_fixed(1);
        for (uint32_t i = 0; i < rank; i++)
            if (i != 1)
                count = (Dim){count.n * type->dim[i].n, count.batch | type->dim[i].batch};
        center = compose_mean_axes(graph, x, mask);
        spread = compose_var_axes(graph, x, mask);
        Val n = g_dim(graph, count, type->dtype);
        Val unbias =
            g_binary(graph, OP_DIV, n, g_binary(graph, OP_SUB, n, const_like(graph, x, 1)));
        Val batch_mean = center ? g_reshape(graph, center, 1, &channels) : 0;
        Val batch_var = spread ? g_reshape(graph, spread, 1, &channels) : 0;
        out.mean = move_statistic(graph, mean, batch_mean, momentum);
        out.var = move_statistic(graph, var, g_binary(graph, OP_MUL, batch_var, unbias), momentum);
    } else {
        center = channel_vector(graph, mean, rank);
        spread = channel_vector(graph, var, rank);
    }
    Val scale =
        g_unary(graph, OP_RSQRT, g_binary(graph, OP_ADD, spread, const_like(graph, x, eps)));
    Val y = g_binary(graph, OP_MUL, g_binary(graph, OP_SUB, x, center),
                     g_binary(graph, OP_MUL, scale, channel_vector(graph, gamma, rank)));
    out.y = g_binary(graph, OP_ADD, y, channel_vector(graph, beta, rank));
    return out;
}

// The leading axes joined into one, so that `rank` axes remain; fewer stay as they are.
static Val join_leading(Graph *graph, Val x, uint32_t rank)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (type->rank <= rank)
        return x;
    Dim dim[MAX_RANK] = {dim_fixed(1)};
    uint32_t joined = type->rank - rank + 1;
    for (uint32_t i = 0; i < joined; i++)
        dim[0] = (Dim){dim[0].n * type->dim[i].n, dim[0].batch | type->dim[i].batch};
    memcpy(dim + 1, type->dim + joined, (rank - 1) * sizeof *dim);
    return g_reshape(graph, x, rank, dim);
}

// The mask of an attention as numbers that are added, with the rank of q.
static Val attention_mask(Graph *graph, Val mask, const Type *tq)
{
    const Type *type = val_type(graph, mask);
    if (type->rank < 2 || type->rank > tq->rank) {
        graph_set_error(graph, "the mask %s does not fit queries %s", type_text(type),
                        type_text(tq));
        return 0;
    }
    if (type->dtype == DT_BOOL)
        mask = g_where(graph, mask, g_const(graph, tq->dtype, 0), g_const(graph, tq->dtype, -1e30));
    mask = pad_rank(graph, mask, tq->rank);
    if (!mask || tq->rank <= 4)
        return mask;
    type = val_type(graph, mask); // axes that will be joined must not stretch one by one
    Dim dim[MAX_RANK];
    bool plain = true;
    for (uint32_t i = 0; i < tq->rank; i++) {
        dim[i] = i + 3 < tq->rank ? tq->dim[i] : type->dim[i];
        plain &= i + 3 >= tq->rank || dim_is_one(type->dim[i]);
    }
    return plain ? mask : g_expand(graph, mask, dim);
}

// x without the constant numbers it was multiplied by; they go into *scale. So the operands of an
// attention that scales q and k beforehand stay views of one projection.
static Val peel_factors(Graph *graph, Val x, double *scale)
{
    for (;;) {
        const Node *node = val_get(graph, x);
        if (node->op != OP_MUL)
            return x;
        unsigned factor = 2;
        for (unsigned i = 0; i < 2; i++) {
            const Node *operand = val_get(graph, node->in[i]);
            if (operand->op == OP_CONST && operand->type[0]->rank == 0)
                factor = i;
        }
        if (factor == 2)
            return x;
        *scale *= val_get(graph, node->in[factor])->attr->real;
        x = node->in[1 - factor];
    }
}

Val compose_attention(Graph *graph, Val q, Val k, Val v, Val mask, double scale, bool causal)
{
    if (!q || !k || !v)
        return 0;
    const Type *tq = val_type(graph, q), *tv = val_type(graph, v);
    if (tq->rank < 2 || tv->rank != tq->rank || val_type(graph, k)->rank != tq->rank) {
        graph_set_error(graph, "attention of %s, %s, %s", type_text(tq),
                        type_text(val_type(graph, k)), type_text(tv));
        return 0;
    }
    if (mask && !(mask = attention_mask(graph, mask, tq)))
        return 0;
    Val in[4] = {peel_factors(graph, q, &scale), peel_factors(graph, k, &scale), v, mask};
    for (uint32_t i = 0; i < 4; i++)
        in[i] = join_leading(graph, in[i], 4);
    Attr attr = {.n = {causal}, .count = 1, .real = scale};
    Val y = graph_make(graph, OP_ATTENTION, in, mask ? 4 : 3, &attr, NULL);
    if (!y || tq->rank <= 4)
        return y;
    Dim dim[MAX_RANK];
    memcpy(dim, tq->dim, sizeof dim);
    dim[tq->rank - 1] = tv->dim[tv->rank - 1];
    return g_reshape(graph, y, tq->rank, dim);
}

Val compose_rotary(Graph *graph, Val x, Val angles)
{
    if (!compose_mix(graph, &x, &angles))
        return 0;
    const Type *tx = val_type(graph, x), *ta = val_type(graph, angles);
    uint32_t rank = tx->rank;
    if (ta->rank != 2 || rank < 2 || !dim_equal(ta->dim[1], tx->dim[rank - 1]) ||
        !dim_equal(ta->dim[0], tx->dim[rank - 2]) || ta->dim[1].batch || ta->dim[1].n % 2) {
        graph_set_error(graph, "rotary: angles %s do not fit %s", type_text(ta), type_text(tx));
        return 0;
    }
    // x[2i] turns by -x[2i + 1] sin, x[2i + 1] by +x[2i] sin
    int64_t n = ta->dim[1].n;
    double *signs = malloc((size_t)n * sizeof *signs);
    if (!signs)
        bug("no memory for %lld signs", (long long)n);
    for (int64_t i = 0; i < n; i++)
        signs[i] = i % 2 ? 1 : -1;
    Val sign = compose_real_table(graph, ta->dtype, 1, n, signs);
    free(signs);
    Val cosine = pad_rank(graph, g_unary(graph, OP_COS, angles), rank);
    Val sine = pad_rank(graph, g_binary(graph, OP_MUL, g_unary(graph, OP_SIN, angles), sign), rank);
    return g_binary(graph, OP_ADD, g_binary(graph, OP_MUL, x, cosine),
                    g_binary(graph, OP_MUL, g_unary(graph, OP_SWAP_PAIRS, x), sine));
}

Val compose_embedding(Graph *graph, Val w, Val indices)
{
    Val in[2] = {w, indices};
    return graph_make(graph, OP_GATHER, in, 2, NULL, NULL);
}

Val compose_softmax(Graph *graph, Val x, int64_t axis)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    int64_t place = compose_find_axis(graph, type, axis);
    if (place < 0)
        return 0;
    if (type->dim[place].batch) {
        graph_set_error(graph, "softmax does not go over the batch, axis %lld of %s",
                        (long long)place, type_text(type));
        return 0;
    }
    uint32_t perm[MAX_RANK], last = type->rank - 1;
    for (uint32_t i = 0; i <= last; i++)
        perm[i] = i;
    perm[place] = last;
    perm[last] = (uint32_t)place;
    if (place == last)
        return g_unary(graph, OP_SOFTMAX, x);
    return g_transpose(graph, g_unary(graph, OP_SOFTMAX, g_transpose(graph, x, perm)), perm);
}

// ---- to one number ----

static uint32_t all_axes(const Graph *graph, Val x)
{
    return (UINT32_C(1) << val_type(graph, x)->rank) - 1;
}

static Val to_number(Graph *graph, Val x)
{
    return x && val_type(graph, x)->rank ? g_reshape(graph, x, 0, NULL) : x;
}

static Val reduce_all(Graph *graph, Op op, Val x)
{
    if (!x || val_type(graph, x)->rank == 0)
        return x;
    return to_number(graph, g_reduce(graph, op, x, all_axes(graph, x)));
}

Val compose_sum(Graph *graph, Val x)
{
    if (x && val_type(graph, x)->dtype == DT_BOOL)
        x = g_cast(graph, x, DT_I64);
    return reduce_all(graph, OP_REDUCE_SUM, x);
}

Val compose_max(Graph *graph, Val x)
{
    return reduce_all(graph, OP_REDUCE_MAX, x);
}

Val compose_min(Graph *graph, Val x)
{
    return reduce_all(graph, OP_REDUCE_MIN, x);
}

Val compose_mean(Graph *graph, Val x)
{
    return x ? to_number(graph, compose_mean_axes(graph, x, all_axes(graph, x))) : 0;
}

Val compose_var(Graph *graph, Val x)
{
    return x ? to_number(graph, compose_var_axes(graph, x, all_axes(graph, x))) : 0;
}

Val compose_any(Graph *graph, Val x, DType real)
{
    return x ? to_number(graph, compose_any_axes(graph, x, all_axes(graph, x), false, real)) : 0;
}

Val compose_all(Graph *graph, Val x, DType real)
{
    return x ? to_number(graph, compose_any_axes(graph, x, all_axes(graph, x), true, real)) : 0;
}

Val compose_mean_axes(Graph *graph, Val x, uint32_t mask)
{
    if (!x)
        return 0;
    const Type *type = val_type(graph, x);
    if (!dtype_is_float(type->dtype)) {
        graph_set_error(graph, "a mean wants real numbers, not %s", type_text(type));
        return 0;
    }
    if (!mask)
        return x;
    Dim count = dim_fixed(1);
    for (uint32_t i = 0; i < type->rank; i++)
        if (mask >> i & 1)
            count = (Dim){count.n * type->dim[i].n, count.batch | type->dim[i].batch};
    return g_binary(graph, OP_DIV, g_reduce(graph, OP_REDUCE_SUM, x, mask),
                    g_dim(graph, count, type->dtype));
}

Val compose_var_axes(Graph *graph, Val x, uint32_t mask)
{
    Val off = g_binary(graph, OP_SUB, x, compose_mean_axes(graph, x, mask));
    return compose_mean_axes(graph, g_binary(graph, OP_MUL, off, off), mask);
}

Val compose_any_axes(Graph *graph, Val x, uint32_t mask, bool all, DType real)
{
    if (!x)
        return 0;
    if (val_type(graph, x)->dtype != DT_BOOL) {
        graph_set_error(graph, "any and all want truth values, not %s",
                        type_text(val_type(graph, x)));
        return 0;
    }
    if (!mask)
        return x;
    Val number = g_cast(graph, x, real);
    Val most = g_reduce(graph, all ? OP_REDUCE_MIN : OP_REDUCE_MAX, number, mask);
    return g_binary(graph, OP_NE, most, g_const(graph, real, 0));
}
