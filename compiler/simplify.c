// Algebra on the graph: what computes nothing, or a constant, goes.
//
// Nodes are visited from the sources up. Each is made anew from its simplified operands, and then
// rewritten by the rules of its operation until none applies; rules build their results through
// `simple`, so every node that a rule sees has simple operands. As nodes are shared, one visit
// serves all programs. Two or three rounds reach a fixed point; then the graph is made anew without
// what is no longer needed, in the order that it had (compact.c).
//
// What rules may do. Values stay the same bit by bit, with these exceptions, which are the usual
// ones: the sign of a zero (x + 0 is x), sums that are merged or taken of equal elements
// (sum(sum(x)), n x for the sum of n times x) round otherwise, and x * 0 is never made 0, since x
// may be infinite; only sums of products leave out what is zero by construction (zeros.c).
// Constants are folded operation by operation by the reference evaluator, in working precision: a
// folded product is rounded where the product of tensors would be, and exp is the CPU target's own.
// Only sums of constants are rounded once, at least as near as any kernel.
//
// Large constants stay formulas: nothing of more than FOLD_LIMIT elements is folded, and tables
// are never repeated (an expand of a table stays one).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/program.h"

enum { FOLD_LIMIT = 65536, MAX_ROUNDS = 4 };

static Val simple(Graph *graph, Val val);

// ---- helpers ----

// The value of a constant of any shape.
static bool const_value(const Graph *graph, Val val, double *value)
{
    const Node *node = val_get(graph, val);
    *value = node->attr->real;
    return node->op == OP_CONST;
}

static bool is_const(const Graph *graph, Val val, double value)
{
    double have;
    return const_value(graph, val, &have) && have == value;
}

// x stretched to the shape of `type`; 0 if x is a number and that is not.
static Val stretch(Graph *graph, Val x, const Type *type)
{
    const Type *from = val_type(graph, x);
    if (shape_equal(from, type))
        return x;
    return from->rank == type->rank ? simple(graph, g_expand(graph, x, type->dim)) : 0;
}

static Val full(Graph *graph, const Type *type, double value)
{
    Type plain = type_make(type->dtype, type->rank, type->dim);
    return g_full(graph, &plain, value);
}

// ---- constant folding ----

static bool foldable_type(const Type *type)
{
    Dim count;
    return type->dtype != DT_F16 && type->dtype != DT_BF16 && type_count(type, &count) &&
           !count.batch && count.n <= FOLD_LIMIT;
}

// Elements of one result of the evaluator as a node: a const if all are the same, else a table.
static Val table_or_const(Graph *graph, const Type *type, const void *data)
{
    Dim count;
    type_count(type, &count);
    size_t size = dtype_size(type->dtype);
    bool same = true;
    for (int64_t i = 1; i < count.n && same; i++)
        same = memcmp(data, (const char *)data + (size_t)i * size, size) == 0;
    Type plain = type_make(type->dtype, type->rank, type->dim);
    double value = 0;
    int64_t integer = 0;
    float narrow = 0;
    switch (type->dtype) {
    case DT_BOOL:
        value = *(const unsigned char *)data;
        break;
    case DT_F64:
        memcpy(&value, data, sizeof value);
        break;
    case DT_F32:
        memcpy(&narrow, data, sizeof narrow);
        value = (double)narrow;
        break;
    case DT_I64:
        memcpy(&integer, data, sizeof integer);
        value = (double)integer;
        same &= integer > -(INT64_C(1) << 53) && integer < INT64_C(1) << 53;
        break;
    case DT_NONE:
    case DT_F16:
    case DT_BF16:
        bug("a constant of %s", dtype_name(type->dtype));
    }
    return same && !isnan(value) ? g_full(graph, &plain, value) : g_table(graph, &plain, data);
}

// Evaluates a node of constants.
static Val evaluate(Graph *graph, Val val)
{
    const Type *type = val_type(graph, val);
    bool wide = type->dtype == DT_F64;
    const Node *node = val_get(graph, val);
    for (uint32_t i = 0; i < node->nin; i++)
        wide |= val_type(graph, node->in[i])->dtype == DT_F64;
    InterpOptions options = {.batch = 1, .real = wide ? DT_F64 : DT_F32};
    void *data = NULL;
    if (interp_run(graph, &options, &val, 1, &data) != 0)
        bug("folding of %s: %s", op_info[node->op].name, graph_error(graph));
    Val folded = table_or_const(graph, type, data);
    free(data);
    return folded;
}

// Elementwise on constants of any size: the operation on numbers.
static Val fold_numbers(Graph *graph, const Node *node)
{
    Val in[3];
    for (uint32_t i = 0; i < node->nin; i++) {
        double value;
        const Type *type = val_type(graph, node->in[i]);
        if (!const_value(graph, node->in[i], &value) || type->dtype == DT_F16 ||
            type->dtype == DT_BF16)
            return 0;
        in[i] = g_const(graph, type->dtype, value);
    }
    Type type = type_scalar(node->type[0]->dtype);
    if (!foldable_type(&type))
        return 0;
    double value;
    Val number = evaluate(graph, graph_make(graph, node->op, in, node->nin, node->attr, &type));
    return const_value(graph, number, &value) ? full(graph, node->type[0], value) : 0;
}

static Val fold(Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    OpClass class = op_info[node->op].class;
    if (class == CLASS_SOURCE || class == CLASS_COMPOSITE || node->nin == 0 ||
        node->op == OP_EXPAND || node->op == OP_STOP_GRADIENT)
        return 0;
    if (class == CLASS_ELEMENTWISE) {
        Val number = fold_numbers(graph, node);
        if (number)
            return number;
    }
    bool tables = false;
    for (uint32_t i = 0; i < node->nin; i++) {
        Op op = val_get(graph, node->in[i])->op;
        if ((op != OP_CONST && op != OP_TABLE) || !foldable_type(val_type(graph, node->in[i])))
            return 0;
        tables |= op == OP_TABLE;
    }
    return tables && foldable_type(node->type[0]) ? evaluate(graph, val) : 0;
}

// ---- elementwise ----

// Shape of an elementwise operation on these operands is that of `type`.
static bool shape_covered(const Graph *graph, const Val *in, uint32_t nin, const Type *type)
{
    for (uint32_t i = 0; i < type->rank; i++) {
        bool covered = dim_is_one(type->dim[i]);
        for (uint32_t k = 0; k < nin && !covered; k++) {
            const Type *operand = val_type(graph, in[k]);
            covered = operand->rank && dim_equal(operand->dim[i], type->dim[i]);
        }
        if (!covered)
            return false;
    }
    bool ranked = type->rank == 0;
    for (uint32_t k = 0; k < nin; k++)
        ranked |= val_type(graph, in[k])->rank == type->rank;
    return ranked;
}

// Operands stretch by themselves: full constants become numbers and expands go, where the other
// operands keep the shape; otherwise the expand moves behind the operation.
static Val bare_operands(Graph *graph, const Node *node)
{
    const Type *type = node->type[0];
    Val in[3];
    bool changed = false;
    memcpy(in, node->in, node->nin * sizeof *in);
    for (uint32_t i = 0; i < node->nin; i++) {
        double value;
        const Type *operand = val_type(graph, in[i]);
        if (operand->rank == 0 || !const_value(graph, in[i], &value))
            continue;
        Val before = in[i];
        in[i] = g_const(graph, operand->dtype, value);
        if (shape_covered(graph, in, node->nin, type))
            changed = true;
        else
            in[i] = before;
    }
    bool moved = false;
    for (uint32_t i = 0; i < node->nin; i++) {
        const Node *operand = val_get(graph, in[i]);
        if (operand->op == OP_EXPAND) {
            in[i] = operand->in[0];
            moved = true;
        }
    }
    if (!changed && !moved)
        return 0;
    Type bare = type_scalar(type->dtype); // for cast, whose type is given
    for (uint32_t i = 0; node->nin == 1 && i < val_type(graph, in[0])->rank; i++)
        bare.dim[bare.rank++] = val_type(graph, in[0])->dim[i];
    Val result = simple(graph, graph_make(graph, node->op, in, node->nin, node->attr, &bare));
    return stretch(graph, result, type);
}

// A cast that loses nothing.
static bool exact_cast(DType from, DType to)
{
    if (from == DT_BOOL)
        return true;
    return dtype_is_float(from) && dtype_is_float(to) && to > from &&
           !(from == DT_F16 && to == DT_BF16);
}

static Val rewrite_unary(Graph *graph, const Node *node)
{
    Val x = node->in[0];
    const Node *inner = val_get(graph, x);
    switch ((unsigned)node->op) {
    case OP_STOP_GRADIENT:
        return x;
    case OP_NEG:
    case OP_NOT:
        return inner->op == node->op ? inner->in[0] : 0;
    case OP_ABS:
        if (inner->op == OP_NEG)
            return simple(graph, g_unary(graph, OP_ABS, inner->in[0]));
        return inner->op == OP_ABS ? x : 0;
    case OP_FLOOR:
    case OP_RELU:
        return inner->op == node->op ? x : 0;
    case OP_CAST:
        if (node->type[0]->dtype == inner->type[0]->dtype)
            return x;
        if (inner->op == OP_CAST &&
            exact_cast(val_type(graph, inner->in[0])->dtype, inner->type[0]->dtype))
            return simple(graph, g_cast(graph, inner->in[0], node->type[0]->dtype));
        return 0;
    default:
        return 0;
    }
}

// 1 / value without rounding: a power of two.
static bool exact_reciprocal(double value)
{
    int exponent;
    return fabs(frexp(value, &exponent)) == 0.5 && exponent > -100 && exponent < 100;
}

static Val rewrite_sum(Graph *graph, const Node *node)
{
    Val x = node->in[0], y = node->in[1];
    const Node *nx = val_get(graph, x), *ny = val_get(graph, y);
    bool minus = node->op == OP_SUB;
    if (is_const(graph, y, 0))
        return stretch(graph, x, node->type[0]);
    if (!minus && is_const(graph, x, 0))
        return stretch(graph, y, node->type[0]);
    if (ny->op == OP_NEG)
        return simple(graph, g_binary(graph, minus ? OP_ADD : OP_SUB, x, ny->in[0]));
    if (!minus && nx->op == OP_NEG)
        return simple(graph, g_binary(graph, OP_SUB, y, nx->in[0]));
    return 0;
}

static Val rewrite_product(Graph *graph, const Node *node)
{
    bool reals = dtype_is_float(node->type[0]->dtype);
    double value;
    for (uint32_t i = 0; i < 2; i++) {
        Val x = node->in[i], y = node->in[1 - i];
        if (node->op == OP_DIV && i == 1)
            break;
        if (is_const(graph, y, 1))
            return stretch(graph, x, node->type[0]);
        if (is_const(graph, y, -1)) {
            Val wide = stretch(graph, x, node->type[0]);
            return wide ? simple(graph, g_unary(graph, OP_NEG, wide)) : 0;
        }
    }
    const Node *x = val_get(graph, node->in[0]), *y = val_get(graph, node->in[1]);
    if (reals && x->op == OP_NEG && y->op == OP_NEG)
        return simple(graph, g_binary(graph, node->op, x->in[0], y->in[0]));
    if (node->op == OP_DIV && reals && const_value(graph, node->in[1], &value) &&
        exact_reciprocal(value))
        return simple(graph, g_binary(graph, OP_MUL, node->in[0],
                                      full(graph, val_type(graph, node->in[1]), 1 / value)));
    return 0;
}

static Val rewrite_logic(Graph *graph, const Node *node)
{
    bool neutral = node->op == OP_AND;
    for (uint32_t i = 0; i < 2; i++) {
        if (is_const(graph, node->in[i], neutral))
            return stretch(graph, node->in[1 - i], node->type[0]);
        if (is_const(graph, node->in[i], !neutral))
            return full(graph, node->type[0], !neutral);
    }
    return node->in[0] == node->in[1] ? node->in[0] : 0;
}

static Val rewrite_where(Graph *graph, const Node *node)
{
    double value;
    const Node *cond = val_get(graph, node->in[0]);
    if (const_value(graph, node->in[0], &value))
        return stretch(graph, node->in[value != 0 ? 1 : 2], node->type[0]);
    if (node->in[1] == node->in[2])
        return stretch(graph, node->in[1], node->type[0]);
    if (cond->op == OP_NOT)
        return simple(graph, g_where(graph, cond->in[0], node->in[2], node->in[1]));
    return 0;
}

static Val rewrite_elementwise(Graph *graph, const Node *node)
{
    Val result = 0;
    switch ((unsigned)node->op) {
    case OP_ADD:
    case OP_SUB:
        result = rewrite_sum(graph, node);
        break;
    case OP_MUL:
    case OP_DIV:
        result = rewrite_product(graph, node);
        break;
    case OP_AND:
    case OP_OR:
        result = rewrite_logic(graph, node);
        break;
    case OP_MIN:
    case OP_MAX:
        result = node->in[0] == node->in[1] ? node->in[0] : 0;
        break;
    case OP_WHERE:
        result = rewrite_where(graph, node);
        break;
    default:
        if (node->nin == 1)
            result = rewrite_unary(graph, node);
    }
    return result ? result : bare_operands(graph, node);
}

// ---- movement ----

// transpose(concat(xs)) as concat(transposed xs): one copy that puts each x where it goes instead
// of two. Where the transpose could stay a view this is no gain, so only a reshape asks for it.
static Val transposed_pieces(Graph *graph, const Node *transpose)
{
    const Node *concat = val_get(graph, transpose->in[0]);
    uint32_t perm[MAX_RANK], axis = 0;
    for (uint32_t i = 0; i < transpose->attr->count; i++) {
        perm[i] = (uint32_t)transpose->attr->n[i];
        if (perm[i] == concat->attr->n[0])
            axis = i;
    }
    Val *pieces = malloc(concat->nin * sizeof *pieces);
    if (!pieces)
        bug("no memory for %u pieces", concat->nin);
    for (uint32_t i = 0; i < concat->nin; i++)
        pieces[i] = simple(graph, g_transpose(graph, concat->in[i], perm));
    Attr attr = {.n = {axis, concat->attr->n[1]}, .count = 2};
    Val joined = graph_make(graph, OP_CONCAT, pieces, concat->nin, &attr, NULL);
    free(pieces);
    return simple(graph, joined);
}

static Val rewrite_reshape(Graph *graph, const Node *node)
{
    const Node *x = val_get(graph, node->in[0]);
    const Type *type = node->type[0];
    if (x->op == OP_TRANSPOSE && val_get(graph, x->in[0])->op == OP_CONCAT)
        return simple(graph, g_reshape(graph, transposed_pieces(graph, x), type->rank, type->dim));
    if (shape_equal(x->type[0], type) && val_out(node->in[0]) == 0)
        return node->in[0];
    if (x->op == OP_RESHAPE)
        return simple(graph, g_reshape(graph, x->in[0], type->rank, type->dim));
    if (x->op == OP_TABLE) {
        Type plain = type_make(type->dtype, type->rank, type->dim);
        return graph_make(graph, OP_TABLE, NULL, 0, x->attr, &plain);
    }
    return 0;
}

// Whether all axes that do not have size 1 stay in order: then it is a reshape.
static bool keeps_order(const Node *node, const Type *from)
{
    int64_t last = -1;
    for (uint32_t i = 0; i < from->rank; i++) {
        int64_t axis = node->attr->n[i];
        if (dim_is_one(from->dim[axis]))
            continue;
        if (axis < last)
            return false;
        last = axis;
    }
    return true;
}

static Val rewrite_transpose(Graph *graph, const Node *node)
{
    Val x = node->in[0];
    const Node *inner = val_get(graph, x);
    const Type *type = node->type[0], *from = val_type(graph, x);
    uint32_t perm[MAX_RANK], inverse[MAX_RANK];
    for (uint32_t i = 0; i < type->rank; i++) {
        perm[i] = (uint32_t)node->attr->n[i];
        inverse[perm[i]] = i;
    }
    if (keeps_order(node, from))
        return simple(graph, g_reshape(graph, x, type->rank, type->dim));
    if (inner->op == OP_TRANSPOSE) {
        for (uint32_t i = 0; i < type->rank; i++)
            perm[i] = (uint32_t)inner->attr->n[perm[i]];
        return simple(graph, g_transpose(graph, inner->in[0], perm));
    }
    if (inner->op == OP_EXPAND)
        return simple(graph, g_expand(graph, simple(graph, g_transpose(graph, inner->in[0], perm)),
                                      type->dim));
    if (inner->op == OP_FLIP) {
        Attr attr = {.n = {inverse[inner->attr->n[0]]}, .count = 1};
        Val turned = simple(graph, g_transpose(graph, inner->in[0], perm));
        return simple(graph, graph_make(graph, OP_FLIP, &turned, 1, &attr, NULL));
    }
    return 0;
}

// A slice of a concat on its axis: of one piece, or of whole ones.
static Val slice_concat(Graph *graph, const Node *concat, uint32_t axis, int64_t start,
                        int64_t size)
{
    Val *whole = malloc(concat->nin * sizeof *whole), result = 0;
    if (!whole)
        bug("no memory for %u pieces", concat->nin);
    uint32_t count = 0;
    int64_t at = 0, covered = 0;
    for (uint32_t i = 0; i < concat->nin; i++) {
        int64_t piece = val_type(graph, concat->in[i])->dim[axis].n;
        if (start >= at && start + size <= at + piece)
            result = simple(graph, g_slice(graph, concat->in[i], axis, start - at, size));
        if (at >= start && at + piece <= start + size) {
            whole[count++] = concat->in[i];
            covered += piece;
        }
        at += piece;
    }
    if (!result && covered == size)
        result = simple(graph, g_concat(graph, whole, count, axis));
    free(whole);
    return result;
}

static Val rewrite_slice(Graph *graph, const Node *node)
{
    Val x = node->in[0];
    const Node *inner = val_get(graph, x);
    const Type *from = val_type(graph, x);
    uint32_t axis = (uint32_t)node->attr->n[0];
    int64_t start = node->attr->n[1], size = node->attr->n[2];
    if (start == 0 && size == from->dim[axis].n)
        return x;
    bool same_axis = inner->nin > 0 && inner->attr->count > 0 && inner->attr->n[0] == axis;
    if (inner->op == OP_SLICE && same_axis)
        return simple(graph, g_slice(graph, inner->in[0], axis, inner->attr->n[1] + start, size));
    if (inner->op == OP_CONCAT && same_axis)
        return slice_concat(graph, inner, axis, start, size);
    if (inner->op == OP_PAD && same_axis) {
        int64_t before = inner->attr->n[1], n = val_type(graph, inner->in[0])->dim[axis].n;
        if (start >= before && start + size <= before + n)
            return simple(graph, g_slice(graph, inner->in[0], axis, start - before, size));
        if (start + size <= before || start >= before + n)
            return full(graph, node->type[0], inner->attr->real);
    }
    if (inner->op == OP_EXPAND) {
        Val narrow = inner->in[0];
        if (!dim_is_one(val_type(graph, narrow)->dim[axis]))
            narrow = simple(graph, g_slice(graph, narrow, axis, start, size));
        return simple(graph, g_expand(graph, narrow, node->type[0]->dim));
    }
    return 0;
}

static Val rewrite_pad(Graph *graph, const Node *node)
{
    const Attr *attr = node->attr;
    if (attr->n[1] == 0 && attr->n[2] == 0)
        return node->in[0];
    if (is_const(graph, node->in[0], attr->real))
        return full(graph, node->type[0], attr->real);
    const Node *inner = val_get(graph, node->in[0]);
    if (inner->op == OP_PAD && inner->attr->n[0] == attr->n[0] && inner->attr->real == attr->real)
        return simple(graph, g_pad(graph, inner->in[0], (uint32_t)attr->n[0],
                                   attr->n[1] + inner->attr->n[1], attr->n[2] + inner->attr->n[2],
                                   attr->real));
    return 0;
}

// Two neighbours of a concat as one value: slices of one tensor that touch, equal constants.
static Val join_neighbours(Graph *graph, Val x, Val y, uint32_t axis)
{
    const Node *nx = val_get(graph, x), *ny = val_get(graph, y);
    double value;
    if (nx->op == OP_SLICE && ny->op == OP_SLICE && nx->in[0] == ny->in[0] &&
        nx->attr->n[0] == axis && ny->attr->n[0] == axis &&
        nx->attr->n[1] + nx->attr->n[2] == ny->attr->n[1])
        return simple(graph, g_slice(graph, nx->in[0], axis, nx->attr->n[1],
                                     nx->attr->n[2] + ny->attr->n[2]));
    if (!const_value(graph, x, &value) || !is_const(graph, y, value))
        return 0;
    Type type = *val_type(graph, x);
    type.dim[axis].n += val_type(graph, y)->dim[axis].n;
    return full(graph, &type, value);
}

static Val rewrite_concat(Graph *graph, const Node *node)
{
    uint32_t axis = (uint32_t)node->attr->n[0], count = 0;
    Val *pieces = malloc(node->nin * sizeof *pieces);
    if (!pieces)
        bug("no memory for %u pieces", node->nin);
    for (uint32_t i = 0; i < node->nin; i++) {
        Val joined = count ? join_neighbours(graph, pieces[count - 1], node->in[i], axis) : 0;
        if (joined)
            pieces[count - 1] = joined;
        else
            pieces[count++] = node->in[i];
    }
    Val result = 0;
    if (count == 1)
        result = pieces[0];
    else if (count < node->nin)
        result = graph_make(graph, OP_CONCAT, pieces, count, node->attr, NULL);
    free(pieces);
    return result;
}

// A window whose start is known: a slice; its gradient: zeros around.
static Val rewrite_window(Graph *graph, const Node *node)
{
    double start;
    uint32_t axis = (uint32_t)node->attr->n[0];
    int64_t size = node->attr->n[1], n = val_type(graph, node->in[0])->dim[axis].n;
    if (!const_value(graph, node->in[1], &start))
        return 0;
    bool reads = node->op == OP_WINDOW;
    int64_t most = reads ? n - size : size - n, at = (int64_t)fmin(fmax(start, 0), (double)most);
    return simple(graph, reads ? g_slice(graph, node->in[0], axis, at, size)
                               : g_pad(graph, node->in[0], axis, at, most - at, 0));
}

static Val rewrite_movement(Graph *graph, const Node *node)
{
    double value;
    Val x = node->in[0];
    const Node *inner = val_get(graph, x);
    bool adds = node->op == OP_PAD || node->op == OP_CONCAT || node->op == OP_WINDOW_GRAD ||
                node->op == OP_PICK_GRAD || node->op == OP_GATHER_GRAD;
    if (!adds && const_value(graph, x, &value))
        return full(graph, node->type[0], value);
    switch ((unsigned)node->op) {
    case OP_RESHAPE:
        return rewrite_reshape(graph, node);
    case OP_TRANSPOSE:
        return rewrite_transpose(graph, node);
    case OP_EXPAND:
        if (shape_equal(val_type(graph, x), node->type[0]))
            return x;
        return inner->op == OP_EXPAND ? g_expand(graph, inner->in[0], node->type[0]->dim) : 0;
    case OP_SLICE:
        return rewrite_slice(graph, node);
    case OP_PAD:
        return rewrite_pad(graph, node);
    case OP_CONCAT:
        return rewrite_concat(graph, node);
    case OP_FLIP:
        if (dim_is_one(node->type[0]->dim[node->attr->n[0]]))
            return x;
        return inner->op == OP_FLIP && inner->attr == node->attr ? inner->in[0] : 0;
    case OP_SWAP_PAIRS:
        return inner->op == OP_SWAP_PAIRS ? inner->in[0] : 0;
    case OP_WINDOW:
    case OP_WINDOW_GRAD:
        return rewrite_window(graph, node);
    default:
        return 0;
    }
}

// ---- reductions ----

// The reduction of a value that is repeated over some of the reduced axes.
static Val reduce_repeated(Graph *graph, const Node *node, Val narrow)
{
    uint32_t mask = (uint32_t)node->attr->n[0];
    const Type *from = val_type(graph, node->in[0]), *type = val_type(graph, narrow);
    Dim count = dim_fixed(1);
    for (uint32_t i = 0; i < from->rank; i++)
        if (mask >> i & 1 && dim_is_one(type->dim[i]))
            count = (Dim){count.n * from->dim[i].n, count.batch | from->dim[i].batch};
    Val result = simple(graph, g_reduce(graph, node->op, narrow, mask));
    if (node->op == OP_REDUCE_SUM && !dim_is_one(count))
        result = simple(graph, g_binary(graph, OP_MUL, result,
                                        simple(graph, g_dim(graph, count, type->dtype))));
    return stretch(graph, result, node->type[0]);
}

static Val rewrite_reduce(Graph *graph, const Node *node)
{
    const Node *inner = val_get(graph, node->in[0]);
    uint32_t mask = (uint32_t)node->attr->n[0];
    double value;
    if (const_value(graph, node->in[0], &value)) {
        Type one = *val_type(graph, node->in[0]);
        for (uint32_t i = 0; i < one.rank; i++)
            one.dim[i] = dim_fixed(1);
        return reduce_repeated(graph, node, full(graph, &one, value));
    }
    if (inner->op == OP_EXPAND) {
        const Type *narrow = val_type(graph, inner->in[0]);
        for (uint32_t i = 0; i < narrow->rank; i++)
            if (mask >> i & 1 && !dim_equal(narrow->dim[i], inner->type[0]->dim[i]))
                return reduce_repeated(graph, node, inner->in[0]);
    }
    if (inner->op == node->op)
        return simple(graph,
                      g_reduce(graph, node->op, inner->in[0], mask | (uint32_t)inner->attr->n[0]));
    if (shape_equal(val_type(graph, node->in[0]), node->type[0]))
        return node->in[0];
    return 0;
}

// ---- the visit ----

// One step, or 0: nothing to do. Operands are simple.
static Val rewrite(Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    Val folded = fold(graph, val);
    if (folded)
        return folded;
    switch (op_info[node->op].class) {
    case CLASS_SOURCE:
        return 0;
    case CLASS_ELEMENTWISE:
        return rewrite_elementwise(graph, node);
    case CLASS_MOVEMENT: {
        Val moved = rewrite_movement(graph, node);
        return moved ? moved : narrow_batch(graph, node);
    }
    case CLASS_REDUCE:
        return rewrite_reduce(graph, node);
    case CLASS_CONTRACT: {
        Val less = leave_out_zeros(graph, node);
        return less ? less : node->op == OP_CONTRACT ? narrow_batch(graph, node) : 0;
    }
    case CLASS_COMPOSITE:
        return 0;
    }
    bug("operation %d has no class", (int)node->op);
}

// The simplest form of a value with simple operands; shape and dtype stay.
static Val simple(Graph *graph, Val val)
{
    if (!val)
        bug("simplify made what does not fit: %s", graph_error(graph));
    for (Val next; (next = rewrite(graph, val)) && next != val; val = next) {
        const Type *type = val_type(graph, val), *now = val_type(graph, next);
        if (!shape_equal(type, now) || type->dtype != now->dtype)
            bug("simplify made %s a %s: %s", type_text(type), type_text(now),
                op_info[val_get(graph, val)->op].name);
    }
    return val;
}

// Remakes all nodes below the roots, and the roots in place; map[val] (for the graph's present
// nodes) becomes the new value, 0 for what no root needs. False: nothing changed.
static bool simplify_round(Graph *graph, Val **roots, size_t count, Val *map)
{
    uint32_t nodes = graph_count(graph);
    bool *reached = calloc(nodes, sizeof *reached), changed = false;
    if (!reached)
        bug("no memory for %u nodes", nodes);
    for (size_t i = 0; i < count; i++)
        reached[val_node(*roots[i])] = true;
    for (NodeId id = nodes - 1; id > 0; id--)
        for (uint32_t i = 0; reached[id] && i < graph_node(graph, id)->nin; i++)
            reached[val_node(graph_node(graph, id)->in[i])] = true;
    size_t capacity = 0;
    Val *in = NULL;
    for (NodeId id = 1; id < nodes; id++) {
        if (!reached[id])
            continue;
        const Node *node = graph_node(graph, id);
        graph_at(graph, *graph_origin(graph, id));
        in = grow_array(in, &capacity, node->nin, sizeof *in);
        for (uint32_t i = 0; i < node->nin; i++)
            in[i] = map[node->in[i]];
        Val made = graph_remake(graph, node, in);
        if (!made)
            bug("simplify remade %s: %s", op_info[node->op].name, graph_error(graph));
        if (node->nout == 1)
            made = simple(graph, made);
        for (uint32_t i = 0; i < node->nout; i++)
            map[val_of(id, i)] = made + i;
    }
    for (size_t i = 0; i < count; i++) {
        changed |= map[*roots[i]] != *roots[i];
        *roots[i] = map[*roots[i]];
    }
    free(in);
    free(reached);
    return changed;
}

// Rounds until nothing changes. Returns (malloc'ed) what became of the values of the nodes that
// were there before, in their order: [nodes * MAX_OUT], 0 for what is not needed.
static Val *simplify_roots(Graph *graph, Val **roots, size_t count)
{
    size_t first = (size_t)graph_count(graph) * MAX_OUT;
    Val *became = NULL;
    bool changed = true;
    for (int round = 0; round < MAX_ROUNDS && changed; round++) {
        Val *map = calloc((size_t)graph_count(graph) * MAX_OUT, sizeof *map);
        if (!map)
            bug("no memory for %u nodes", graph_count(graph));
        changed = simplify_round(graph, roots, count, map);
        if (!became) {
            became = map;
            continue;
        }
        for (size_t i = 0; i < first; i++)
            became[i] = map[became[i]];
        free(map);
    }
    return became;
}

Val simplify_val(Graph *graph, Val val)
{
    Val *root = &val;
    free(simplify_roots(graph, &root, 1));
    return val;
}

void simplify_module(Module *module)
{
    size_t count, nodes = graph_count(module->graph);
    Val **roots = module_roots(module, &count);
    Val *order = simplify_roots(module->graph, roots, count);
    compact_module(module, order, nodes * MAX_OUT);
    free(order);
    free(roots);
}
