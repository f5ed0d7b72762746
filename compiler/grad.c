// Reverse-mode gradients, graph to graph.
//
// The adjoint of a value is d loss / d value, with the value's shape and dtype. Nodes are visited
// from the loss downwards; since operands have smaller numbers than the nodes that use them, all
// contributions to a value have been added when its node is visited, and each node is visited
// once. Nodes that depend on nothing that is asked for are never entered. Contributions are added
// in the order of the visits, so equal inputs give equal graphs.
//
// The rules emit ordinary operations, which simplify, fusion and the planner treat like the
// forward pass; only what has a kernel of its own backwards (norms, attention, windows, picks)
// emits a *_grad operation. Convolutions are closed: the gradient of each of conv, conv_dgrad and
// conv_wgrad is made of the two others.
//
// Gradients of slices are not padded and added one by one: the slices of one value that do not
// overlap are joined by one concat, so that the backward pass of a split is a concat.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/compose.h"
#include "compiler/program.h"

// A contribution to part of a value.
typedef struct {
    uint32_t axis;
    int64_t start, size;
    Val dy;
    uint32_t next; // in the list of the same value, newest first; 0 = end
} Piece;

typedef struct {
    Graph *graph;
    NodeId last;          // the loss's node: the greatest that matters
    bool *depends;        // [node] on something asked for
    Val *adjoint;         // [val]
    uint32_t *piece_head; // [val] into pieces, 0 = none
    Piece *pieces;        // [1 ..]
    size_t piece_count, piece_capacity;
} Grad;

// ---- adjoints ----

// Adds a contribution to the adjoint of x; dx has the shape of x, or that of x stretched.
static void add(Grad *grad, Val x, Val dx)
{
    const Type *type = val_type(grad->graph, x);
    if (dx && !shape_equal(val_type(grad->graph, dx), type))
        dx = g_unbroadcast(grad->graph, dx, type);
    if (!dx)
        bug("gradient of %s: %s", type_text(type), graph_error(grad->graph));
    Val *sum = &grad->adjoint[x];
    *sum = *sum ? g_binary(grad->graph, OP_ADD, *sum, dx) : dx;
}

static void add_piece(Grad *grad, Val x, uint32_t axis, int64_t start, int64_t size, Val dy)
{
    grad->pieces =
        grow_array(grad->pieces, &grad->piece_capacity, grad->piece_count, sizeof *grad->pieces);
    grad->pieces[grad->piece_count] = (Piece){axis, start, size, dy, grad->piece_head[x]};
    grad->piece_head[x] = (uint32_t)grad->piece_count++;
}

static bool wanted(const Grad *grad, Val x)
{
    return grad->depends[val_node(x)];
}

static int compare_pieces(const void *a, const void *b)
{
    const Piece *x = a, *y = b;
    if (x->axis != y->axis)
        return x->axis < y->axis ? -1 : 1;
    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    if (x->size != y->size)
        return x->size < y->size ? -1 : 1;
    return x->next < y->next ? -1 : x->next > y->next; // next grows with the visits
}

static Val zeros_along(Graph *graph, const Type *like, uint32_t axis, int64_t size)
{
    Type type = type_make(like->dtype, like->rank, like->dim);
    type.dim[axis].n = size;
    return g_full(graph, &type, 0);
}

// Pieces of one axis, in order and disjoint, in zeros where there is none: the shape of `type`.
static Val join_pieces(Graph *graph, const Type *type, const Piece *pieces, uint32_t count)
{
    uint32_t axis = pieces[0].axis;
    int64_t whole = type->dim[axis].n;
    if (count == 1 && !type->dim[axis].batch)
        return g_pad(graph, pieces[0].dy, axis, pieces[0].start,
                     whole - pieces[0].start - pieces[0].size, 0);
    Val *parts = malloc((2 * (size_t)count + 1) * sizeof *parts);
    if (!parts)
        bug("no memory for %u pieces", count);
    uint32_t part_count = 0;
    int64_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (pieces[i].start > at)
            parts[part_count++] = zeros_along(graph, type, axis, pieces[i].start - at);
        parts[part_count++] = pieces[i].dy;
        at = pieces[i].start + pieces[i].size;
    }
    if (at < whole)
        parts[part_count++] = zeros_along(graph, type, axis, whole - at);
    bool segmented = type->seg && type->seg_axis == axis;
    Attr attr = {.n = {axis, segmented ? type->seg : 0}, .count = 2};
    Val joined =
        part_count == 1 ? parts[0] : graph_make(graph, OP_CONCAT, parts, part_count, &attr, NULL);
    free(parts);
    return joined;
}

// Moves the pieces that came for x into its adjoint.
static void add_pieces(Grad *grad, Val x)
{
    uint32_t count = 0;
    for (uint32_t i = grad->piece_head[x]; i; i = grad->pieces[i].next)
        count++;
    if (!count)
        return;
    Piece *list = malloc(2 * (size_t)count * sizeof *list), *lane = list + count;
    if (!list)
        bug("no memory for %u pieces", count);
    uint32_t rest = 0;
    for (uint32_t i = grad->piece_head[x]; i; i = grad->pieces[i].next)
        list[rest++] = grad->pieces[i];
    grad->piece_head[x] = 0;
    qsort(list, count, sizeof *list, compare_pieces);
    uint32_t distinct = 0; // the same part used twice: one sum
    for (uint32_t i = 0; i < count; i++) {
        Piece *before = distinct ? &list[distinct - 1] : NULL;
        if (before && before->axis == list[i].axis && before->start == list[i].start &&
            before->size == list[i].size)
            before->dy = g_binary(grad->graph, OP_ADD, before->dy, list[i].dy);
        else
            list[distinct++] = list[i];
    }
    for (rest = distinct; rest;) { // a lane takes every piece that does not overlap it
        uint32_t laned = 0, left = 0;
        for (uint32_t i = 0; i < rest; i++) {
            const Piece *end = laned ? &lane[laned - 1] : NULL;
            if (!end || (list[i].axis == end->axis && list[i].start >= end->start + end->size))
                lane[laned++] = list[i];
            else
                list[left++] = list[i];
        }
        rest = left;
        add(grad, x, join_pieces(grad->graph, val_type(grad->graph, x), lane, laned));
    }
    free(list);
}

// ---- elementwise rules ----

static Val number(Grad *grad, Val like, double value)
{
    return g_const(grad->graph, val_type(grad->graph, like)->dtype, value);
}

static Val mul(Grad *grad, Val x, Val y)
{
    return g_binary(grad->graph, OP_MUL, x, y);
}

static Val scaled(Grad *grad, Val x, double factor)
{
    return mul(grad, x, number(grad, x, factor));
}

static Val one_minus(Grad *grad, Val x)
{
    return g_binary(grad->graph, OP_SUB, number(grad, x, 1), x);
}

// d gelu / dx = Phi(x) + x phi(x), the normal distribution and its density.
static Val gelu_slope(Grad *grad, Val x)
{
    Graph *graph = grad->graph;
    Val phi = scaled(grad, g_unary(graph, OP_EXP, scaled(grad, mul(grad, x, x), -0.5)),
                     1 / sqrt(2 * M_PI));
    Val erf = g_unary(graph, OP_ERF, scaled(grad, x, M_SQRT1_2));
    Val cdf = scaled(grad, g_binary(graph, OP_ADD, erf, number(grad, x, 1)), 0.5);
    return g_binary(graph, OP_ADD, cdf, mul(grad, x, phi));
}

// For y = x (1 + t) / 2, t = tanh(c (x + a x^3)): (1 + t) / 2 + x (1 - t^2) c (1 + 3 a x^2) / 2.
static Val gelu_tanh_slope(Grad *grad, Val x)
{
    Graph *graph = grad->graph;
    const double a = 0.044715, c = sqrt(2 / M_PI);
    Val square = mul(grad, x, x);
    Val inner = mul(grad, x, g_binary(graph, OP_ADD, scaled(grad, square, a), number(grad, x, 1)));
    Val t = g_unary(graph, OP_TANH, scaled(grad, inner, c));
    Val cdf = scaled(grad, g_binary(graph, OP_ADD, t, number(grad, x, 1)), 0.5);
    Val slope = g_binary(graph, OP_ADD, scaled(grad, square, 3 * a), number(grad, x, 1));
    Val rest = mul(grad, mul(grad, x, one_minus(grad, mul(grad, t, t))), slope);
    return g_binary(graph, OP_ADD, cdf, scaled(grad, rest, c / 2));
}

// d silu / dx = s (1 + x (1 - s)), s = sigmoid x.
static Val silu_slope(Grad *grad, Val x)
{
    Val s = g_unary(grad->graph, OP_SIGMOID, x);
    Val rest = mul(grad, x, one_minus(grad, s));
    return mul(grad, s, g_binary(grad->graph, OP_ADD, rest, number(grad, x, 1)));
}

// d y / dx of an elementwise operation with one operand; 0: the gradient does not pass.
static Val unary_slope(Grad *grad, Op op, Val x, Val y)
{
    Graph *graph = grad->graph;
    switch ((unsigned)op) {
    case OP_NEG:
        return number(grad, x, -1);
    case OP_ABS:
        return g_unary(graph, OP_SIGN, x);
    case OP_SQRT:
        return g_binary(graph, OP_DIV, number(grad, x, 0.5), y);
    case OP_RSQRT:
        return scaled(grad, mul(grad, mul(grad, y, y), y), -0.5);
    case OP_EXP:
        return y;
    case OP_SIN:
        return g_unary(graph, OP_COS, x);
    case OP_COS:
        return g_unary(graph, OP_NEG, g_unary(graph, OP_SIN, x));
    case OP_TANH:
        return one_minus(grad, mul(grad, y, y));
    case OP_ERF:
        return scaled(grad, g_unary(graph, OP_EXP, g_unary(graph, OP_NEG, mul(grad, x, x))),
                      2 / sqrt(M_PI));
    case OP_SIGMOID:
        return mul(grad, y, one_minus(grad, y));
    case OP_SOFTPLUS:
        return g_unary(graph, OP_SIGMOID, x);
    case OP_SILU:
        return silu_slope(grad, x);
    case OP_GELU:
        return gelu_slope(grad, x);
    case OP_GELU_TANH:
        return gelu_tanh_slope(grad, x);
    default:
        bug("no slope of %s", op_info[op].name);
    }
}

// MIN and MAX: all to the operand that won, half to each where they are equal.
static void grad_extreme(Grad *grad, const Node *node, Val dy)
{
    Graph *graph = grad->graph;
    Val zero = number(grad, dy, 0), half = scaled(grad, dy, 0.5);
    for (uint32_t i = 0; i < 2; i++) {
        Val x = node->in[i], other = node->in[1 - i];
        if (!wanted(grad, x))
            continue;
        Val smaller = g_binary(graph, OP_LT, x, other), larger = g_binary(graph, OP_LT, other, x);
        Val won = node->op == OP_MAX ? larger : smaller;
        Val lost = node->op == OP_MAX ? smaller : larger;
        add(grad, x, g_where(graph, won, dy, g_where(graph, lost, zero, half)));
    }
}

// z = x / y, x mod y = x - floor(x / y) y, x ^ y.
static void grad_quotient(Grad *grad, const Node *node, Val z, Val dz)
{
    Graph *graph = grad->graph;
    Val x = node->in[0], y = node->in[1];
    if (node->op == OP_DIV) {
        if (wanted(grad, x))
            add(grad, x, g_binary(graph, OP_DIV, dz, y));
        if (wanted(grad, y))
            add(grad, y, g_unary(graph, OP_NEG, g_binary(graph, OP_DIV, mul(grad, dz, z), y)));
        return;
    }
    if (wanted(grad, x))
        add(grad, x, dz);
    if (wanted(grad, y)) {
        Val turns = g_unary(graph, OP_FLOOR, g_binary(graph, OP_DIV, x, y));
        add(grad, y, g_unary(graph, OP_NEG, mul(grad, dz, turns)));
    }
}

// z = x ^ y: y x^(y - 1), and z log x (0 where x is 0, as in PyTorch).
static void grad_pow(Grad *grad, const Node *node, Val z, Val dz)
{
    Graph *graph = grad->graph;
    Val x = node->in[0], y = node->in[1];
    Val zero = number(grad, x, 0);
    if (wanted(grad, x)) {
        const Node *power = val_get(graph, y);
        bool constant = power->op == OP_CONST && power->type[0]->rank == 0;
        Val lower = constant ? number(grad, x, power->attr->real - 1)
                             : g_binary(graph, OP_SUB, y, number(grad, x, 1));
        Val slope = mul(grad, y, compose_pow(graph, x, lower));
        if (!constant)
            slope = g_where(graph, g_binary(graph, OP_EQ, y, zero), zero, slope);
        add(grad, x, mul(grad, dz, slope));
    }
    if (wanted(grad, y)) {
        Val slope = mul(grad, z, g_unary(graph, OP_LOG, x));
        slope = g_where(graph, g_binary(graph, OP_EQ, x, zero), zero, slope);
        add(grad, y, mul(grad, dz, slope));
    }
}

// ---- movement ----

static void grad_slice(Grad *grad, const Node *node, Val dy)
{
    add_piece(grad, node->in[0], (uint32_t)node->attr->n[0], node->attr->n[1], node->attr->n[2],
              dy);
}

static void grad_concat(Grad *grad, const Node *node, Val dy)
{
    uint32_t axis = (uint32_t)node->attr->n[0];
    int64_t at = 0;
    for (uint32_t i = 0; i < node->nin; i++) {
        int64_t size = val_type(grad->graph, node->in[i])->dim[axis].n;
        if (wanted(grad, node->in[i]))
            add(grad, node->in[i], g_slice(grad->graph, dy, axis, at, size));
        at += size;
    }
}

static Val inverse_transpose(Graph *graph, const Node *node, Val dy)
{
    uint32_t perm[MAX_RANK];
    for (uint32_t i = 0; i < node->attr->count; i++)
        perm[node->attr->n[i]] = i;
    return g_transpose(graph, dy, perm);
}

// pick, window, gather and their gradients are transposes of each other: op(dy, in[1]), with the
// size of the axis that x has there.
static Val grad_indexed(Grad *grad, const Node *node, Op op, Val dy)
{
    const Type *type = val_type(grad->graph, node->in[0]);
    Val in[2] = {dy, node->in[1]};
    Attr attr = {.count = 0};
    switch ((unsigned)op) {
    case OP_WINDOW:
    case OP_WINDOW_GRAD:
    case OP_PICK_GRAD:
        attr = (Attr){.n = {node->attr->n[0], type->dim[node->attr->n[0]].n}, .count = 2};
        break;
    case OP_PICK:
        attr = (Attr){.n = {node->attr->n[0]}, .count = 1};
        break;
    case OP_GATHER_GRAD:
        attr = (Attr){.n = {type->dim[0].n}, .count = 1};
        break;
    default:
        break;
    }
    return graph_make(grad->graph, op, in, 2, &attr, NULL);
}

// ---- reductions and contractions ----

// The elements that equal the extreme share the gradient.
static Val grad_reduce_extreme(Grad *grad, const Node *node, Val y, Val dy)
{
    Graph *graph = grad->graph;
    Val equal = g_binary(graph, OP_EQ, node->in[0], y);
    Val ties = g_cast(graph, equal, val_type(graph, dy)->dtype);
    Val count = g_reduce(graph, OP_REDUCE_SUM, ties, (uint32_t)node->attr->n[0]);
    return g_where(graph, equal, g_binary(graph, OP_DIV, dy, count), number(grad, dy, 0));
}

// Gradient of operand `which` of a contraction: the contraction of dy with the other operand.
// Axes of the operand that stand nowhere else were summed alone: there dy is repeated.
static Val grad_contract(Grad *grad, const Node *node, uint32_t which, Val dy)
{
    Graph *graph = grad->graph;
    const int64_t *n = node->attr->n;
    const int64_t *labels[3] = {n + 3, n + 3 + n[0], n + 3 + n[0] + n[1]};
    Val x = node->in[which], other = node->in[1 - which];
    const Type *type = val_type(graph, x);
    char text_dy[MAX_RANK + 1] = "", text_other[MAX_RANK + 1] = "", text_x[MAX_RANK + 1] = "";
    for (int64_t i = 0; i < n[2]; i++)
        text_dy[i] = (char)('0' + labels[2][i]);
    for (int64_t i = 0; i < n[1 - which]; i++)
        text_other[i] = (char)('0' + labels[1 - which][i]);
    Dim narrow[MAX_RANK];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < type->rank; i++) {
        char label = (char)('0' + labels[which][i]);
        bool elsewhere = strchr(text_dy, label) || strchr(text_other, label);
        narrow[i] = elsewhere ? type->dim[i] : dim_fixed(1);
        if (elsewhere)
            text_x[kept++] = label;
    }
    Val dx = g_contract(graph, dy, other, text_dy, text_other, text_x);
    return g_expand(graph, g_reshape(graph, dx, type->rank, narrow), type->dim);
}

// conv(x, w) = y: dx = dgrad(dy, w), dw = wgrad(x, dy). dgrad(y, w) = x: dy = conv(dx, w),
// dw = wgrad(dx, y). wgrad(x, y) = w: dx = dgrad(y, dw), dy = conv(x, dw).
static void grad_conv(Grad *grad, const Node *node, Val d)
{
    Graph *graph = grad->graph;
    static const Op ops[3][2] = {
        {OP_CONV_DGRAD, OP_CONV_WGRAD},
        {OP_CONV, OP_CONV_WGRAD},
        {OP_CONV_DGRAD, OP_CONV},
    };
    Val first = node->in[0], second = node->in[1];
    Val in[3][2][2] = {
        {{d, second}, {first, d}},
        {{d, second}, {d, first}},
        {{second, d}, {first, d}},
    };
    uint32_t form = node->op == OP_CONV ? 0 : node->op == OP_CONV_DGRAD ? 1 : 2;
    for (uint32_t i = 0; i < 2; i++)
        if (wanted(grad, node->in[i]))
            add(grad, node->in[i],
                graph_make(graph, ops[form][i], in[form][i], 2, node->attr,
                           val_type(graph, node->in[i])));
}

// ---- composites ----

static Val grad_softmax(Grad *grad, Val y, Val dy)
{
    Graph *graph = grad->graph;
    uint32_t last = val_type(graph, y)->rank - 1;
    Val dot = g_reduce(graph, OP_REDUCE_SUM, mul(grad, dy, y), UINT32_C(1) << last);
    return mul(grad, y, g_binary(graph, OP_SUB, dy, dot));
}

// layer_norm and group_norm: dy, x, mean, rstd (and gamma) -> dx (and dgamma, dbeta).
static void grad_norm(Grad *grad, const Node *node, NodeId id, Val dy)
{
    Graph *graph = grad->graph;
    Op op = node->op == OP_LAYER_NORM ? OP_LAYER_NORM_GRAD : OP_GROUP_NORM_GRAD;
    Val in[5] = {dy, node->in[0], val_of(id, 1), val_of(id, 2), 0};
    bool affine = node->nin == 3;
    if (affine)
        in[4] = node->in[1];
    Attr attr = {.count = 0};
    if (op == OP_GROUP_NORM_GRAD)
        attr = (Attr){.n = {node->attr->n[0]}, .count = 1};
    Val result = graph_make(graph, op, in, affine ? 5 : 4, &attr, NULL);
    for (uint32_t i = 0; i < node->nin; i++)
        if (wanted(grad, node->in[i]))
            add(grad, node->in[i], val_of(val_node(result), i));
}

// d loss / d mask = P (dP - sum(do o)), with P = exp(scale q k^T + mask - lse) and dP = do v^T:
// the scores in full, which only a mask that is learned asks for.
static Val grad_mask(Grad *grad, const Node *node, NodeId id, Val d_out)
{
    Graph *graph = grad->graph;
    Val q = node->in[0], k = node->in[1], v = node->in[2];
    uint32_t rank = val_type(graph, q)->rank;
    char rows[MAX_RANK + 1] = "", columns[MAX_RANK + 1] = "", scores[MAX_RANK + 1] = "";
    for (uint32_t i = 0; i < rank; i++)
        rows[i] = columns[i] = scores[i] = (char)('a' + i);
    columns[rank - 2] = scores[rank - 1] = 'z';
    Val score = scaled(grad, g_contract(graph, q, k, rows, columns, scores), node->attr->real);
    score = g_binary(graph, OP_ADD, score, node->in[3]);
    Val p = g_unary(graph, OP_EXP, g_binary(graph, OP_SUB, score, val_of(id, 1)));
    Val dp = g_contract(graph, d_out, v, rows, columns, scores);
    Val dot =
        g_reduce(graph, OP_REDUCE_SUM, mul(grad, d_out, val_of(id, 0)), UINT32_C(1) << (rank - 1));
    Val ds = mul(grad, p, g_binary(graph, OP_SUB, dp, dot));
    return node->attr->n[0] ? g_causal(graph, ds, 0) : ds;
}

static void grad_attention(Grad *grad, const Node *node, NodeId id, Val d_out)
{
    Graph *graph = grad->graph;
    Val in[7] = {d_out, node->in[0], node->in[1], node->in[2], val_of(id, 0), val_of(id, 1), 0};
    bool masked = node->nin == 4;
    if (masked)
        in[6] = node->in[3];
    if (wanted(grad, node->in[0]) || wanted(grad, node->in[1]) || wanted(grad, node->in[2])) {
        Val result = graph_make(graph, OP_ATTENTION_GRAD, in, masked ? 7 : 6, node->attr, NULL);
        for (uint32_t i = 0; i < 3; i++)
            if (wanted(grad, node->in[i]))
                add(grad, node->in[i], val_of(val_node(result), i));
    }
    if (masked && wanted(grad, node->in[3]))
        add(grad, node->in[3], grad_mask(grad, node, id, d_out));
}

// ---- the rules ----

// Gives the adjoint dy of the node's output 0 on to its operands. The one list of the rules.
static void visit(Grad *grad, NodeId id, Val dy)
{
    Graph *graph = grad->graph;
    const Node *node = graph_node(graph, id);
    Val y = val_of(id, 0);
    Val x = node->nin > 0 ? node->in[0] : 0, z = node->nin > 1 ? node->in[1] : 0;
    switch (node->op) {
    case OP_CONST:
    case OP_TABLE:
    case OP_INPUT:
    case OP_PARAM:
    case OP_OPTION:
    case OP_BATCH:
    case OP_GIVEN:
    case OP_VAR:
    case OP_LOSS_SCALE:
    case OP_RANDOM:
        break;
    case OP_SIGN:
    case OP_FLOOR:
    case OP_STOP_GRADIENT:
    case OP_NOT:
    case OP_EQ:
    case OP_NE:
    case OP_LT:
    case OP_LE:
    case OP_AND:
    case OP_OR:
        bug("a gradient reached %s", op_info[node->op].name);
    case OP_NEG:
        add(grad, x, g_unary(graph, OP_NEG, dy));
        break;
    case OP_LOG:
        add(grad, x, g_binary(graph, OP_DIV, dy, x));
        break;
    case OP_RELU:
        add(grad, x,
            g_where(graph, g_binary(graph, OP_LT, number(grad, y, 0), y), dy, number(grad, dy, 0)));
        break;
    case OP_ABS:
    case OP_SQRT:
    case OP_RSQRT:
    case OP_EXP:
    case OP_SIN:
    case OP_COS:
    case OP_TANH:
    case OP_ERF:
    case OP_SIGMOID:
    case OP_SOFTPLUS:
    case OP_SILU:
    case OP_GELU:
    case OP_GELU_TANH:
        add(grad, x, mul(grad, dy, unary_slope(grad, node->op, x, y)));
        break;
    case OP_CAST:
        add(grad, x, g_cast(graph, dy, val_type(graph, x)->dtype));
        break;
    case OP_ADD:
    case OP_SUB:
        if (wanted(grad, x))
            add(grad, x, dy);
        if (wanted(grad, z))
            add(grad, z, node->op == OP_ADD ? dy : g_unary(graph, OP_NEG, dy));
        break;
    case OP_MUL:
        if (wanted(grad, x))
            add(grad, x, mul(grad, dy, z));
        if (wanted(grad, z))
            add(grad, z, mul(grad, dy, x));
        break;
    case OP_DIV:
    case OP_MOD:
        grad_quotient(grad, node, y, dy);
        break;
    case OP_POW:
        grad_pow(grad, node, y, dy);
        break;
    case OP_MIN:
    case OP_MAX:
        grad_extreme(grad, node, dy);
        break;
    case OP_WHERE:
        if (wanted(grad, z))
            add(grad, z, g_where(graph, x, dy, number(grad, dy, 0)));
        if (wanted(grad, node->in[2]))
            add(grad, node->in[2], g_where(graph, x, number(grad, dy, 0), dy));
        break;
    case OP_RESHAPE:
        add(grad, x, g_reshape(graph, dy, val_type(graph, x)->rank, val_type(graph, x)->dim));
        break;
    case OP_TRANSPOSE:
        add(grad, x, inverse_transpose(graph, node, dy));
        break;
    case OP_EXPAND:
        add(grad, x, dy); // sums what was stretched
        break;
    case OP_SLICE:
        grad_slice(grad, node, dy);
        break;
    case OP_PAD:
        add(grad, x,
            g_slice(graph, dy, (uint32_t)node->attr->n[0], node->attr->n[1],
                    val_type(graph, x)->dim[node->attr->n[0]].n));
        break;
    case OP_CONCAT:
        grad_concat(grad, node, dy);
        break;
    case OP_FLIP:
        add(grad, x, graph_make(graph, OP_FLIP, &dy, 1, node->attr, NULL));
        break;
    case OP_SWAP_PAIRS:
        add(grad, x, g_unary(graph, OP_SWAP_PAIRS, dy));
        break;
    case OP_WINDOW:
        add(grad, x, grad_indexed(grad, node, OP_WINDOW_GRAD, dy));
        break;
    case OP_WINDOW_GRAD:
        add(grad, x, grad_indexed(grad, node, OP_WINDOW, dy));
        break;
    case OP_PICK:
        add(grad, x, grad_indexed(grad, node, OP_PICK_GRAD, dy));
        break;
    case OP_PICK_GRAD:
        add(grad, x, grad_indexed(grad, node, OP_PICK, dy));
        break;
    case OP_GATHER:
        add(grad, x, grad_indexed(grad, node, OP_GATHER_GRAD, dy));
        break;
    case OP_GATHER_GRAD:
        add(grad, x, grad_indexed(grad, node, OP_GATHER, dy));
        break;
    case OP_REDUCE_SUM:
        add(grad, x, g_expand(graph, dy, val_type(graph, x)->dim));
        break;
    case OP_REDUCE_MAX:
    case OP_REDUCE_MIN:
        add(grad, x, grad_reduce_extreme(grad, node, y, dy));
        break;
    case OP_CONTRACT:
        for (uint32_t i = 0; i < 2; i++)
            if (wanted(grad, node->in[i]))
                add(grad, node->in[i], grad_contract(grad, node, i, dy));
        break;
    case OP_CONV:
    case OP_CONV_DGRAD:
    case OP_CONV_WGRAD:
        grad_conv(grad, node, dy);
        break;
    case OP_SOFTMAX:
        add(grad, x, grad_softmax(grad, y, dy));
        break;
    case OP_LAYER_NORM:
    case OP_GROUP_NORM:
        grad_norm(grad, node, id, dy);
        break;
    case OP_ATTENTION:
        grad_attention(grad, node, id, dy);
        break;
    case OP_LAYER_NORM_GRAD:
    case OP_GROUP_NORM_TABLE:
    case OP_CHANNEL_MOMENTS:
    case OP_GROUP_NORM_GRAD:
    case OP_ATTENTION_GRAD:
        bug("a second derivative, of %s", op_info[node->op].name);
    case OP_COUNT:
        bug("there is no such operation");
    }
}

// Whether the adjoint of this node's output can reach its operands.
static bool passes(const Node *node)
{
    return dtype_is_float(node->type[0]->dtype) && node->op != OP_SIGN && node->op != OP_FLOOR &&
           node->op != OP_STOP_GRADIENT;
}

// Marks the nodes below the loss that depend on something asked for.
static void mark_depends(Grad *grad, Val loss, const Val *wrt, uint32_t count)
{
    NodeId last = grad->last;
    bool *reached = calloc((size_t)last + 1, sizeof *reached);
    if (!reached)
        bug("no memory for %u nodes", last);
    reached[val_node(loss)] = true;
    for (NodeId id = last; id > 0; id--) {
        const Node *node = graph_node(grad->graph, id);
        for (uint32_t i = 0; i < node->nin && reached[id]; i++)
            reached[val_node(node->in[i])] = true;
    }
    for (uint32_t i = 0; i < count; i++)
        if (val_node(wrt[i]) <= last && dtype_is_float(val_type(grad->graph, wrt[i])->dtype))
            grad->depends[val_node(wrt[i])] = reached[val_node(wrt[i])];
    for (NodeId id = 1; id <= last; id++) {
        const Node *node = graph_node(grad->graph, id);
        bool found = grad->depends[id];
        for (uint32_t i = 0; i < node->nin && !found && reached[id] && passes(node); i++)
            found = grad->depends[val_node(node->in[i])];
        grad->depends[id] = found;
    }
    free(reached);
}

void grad_build(Graph *graph, Val loss, Val seed, const Val *wrt, uint32_t count, Val *out)
{
    const Type *type = val_type(graph, loss);
    if (type->rank != 0 || !dtype_is_float(type->dtype))
        bug("the gradient of a %s", type_text(type));
    size_t nodes = (size_t)val_node(loss) + 1;
    Grad grad = {
        .graph = graph,
        .last = val_node(loss),
        .depends = calloc(nodes, sizeof(bool)),
        .adjoint = calloc(nodes * MAX_OUT, sizeof(Val)),
        .piece_head = calloc(nodes * MAX_OUT, sizeof(uint32_t)),
        .piece_count = 1,
    };
    if (!grad.depends || !grad.adjoint || !grad.piece_head)
        bug("no memory for %zu nodes", nodes);
    mark_depends(&grad, loss, wrt, count);
    if (grad.depends[val_node(loss)])
        grad.adjoint[loss] = seed ? seed : g_const(graph, type->dtype, 1);
    for (NodeId id = grad.last; id > 0; id--) {
        if (!grad.depends[id])
            continue;
        const Node *node = graph_node(graph, id);
        graph_at(graph, *graph_origin(graph, id));
        for (uint32_t i = 0; i < node->nout; i++) {
            add_pieces(&grad, val_of(id, i));
            if (i > 0 && grad.adjoint[val_of(id, i)])
                bug("a gradient of output %u of %s", i, op_info[node->op].name);
        }
        if (grad.adjoint[val_of(id, 0)] && passes(node))
            visit(&grad, id, grad.adjoint[val_of(id, 0)]);
    }
    for (uint32_t i = 0; i < count; i++)
        out[i] = wrt[i] < nodes * MAX_OUT ? grad.adjoint[wrt[i]] : 0;
    free(grad.depends);
    free(grad.adjoint);
    free(grad.piece_head);
    free(grad.pieces);
}
