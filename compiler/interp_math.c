// The reference for elementwise operations and reductions.
//
// Elementwise: operands are walked with strides, 0 where an axis is stretched. Functions of f32
// are those that generated code calls (interp_scalar.h), so a folded constant has the same bits.
#include "compiler/interp.h"

#include <math.h>

#include "codegen/cpu/pv_math.h"

// ---- one integer element ----

static int64_t integer_element(Op op, int64_t x, int64_t y)
{
    switch ((unsigned)op) {
    case OP_NEG: return (int64_t)(0 - (uint64_t)x);
    case OP_ABS: return x < 0 ? (int64_t)(0 - (uint64_t)x) : x;
    case OP_SIGN: return (x > 0) - (x < 0);
    case OP_NOT: return !x;
    case OP_STOP_GRADIENT: return x;
    case OP_ADD: return (int64_t)((uint64_t)x + (uint64_t)y);
    case OP_SUB: return (int64_t)((uint64_t)x - (uint64_t)y);
    case OP_MUL: return (int64_t)((uint64_t)x * (uint64_t)y);
    case OP_DIV: return pv_div_int(x, y);
    case OP_MOD: return pv_mod_int(x, y);
    case OP_MIN: return x < y ? x : y;
    case OP_MAX: return x > y ? x : y;
    case OP_EQ: return x == y;
    case OP_NE: return x != y;
    case OP_LT: return x < y;
    case OP_LE: return x <= y;
    case OP_AND: return x && y;
    case OP_OR: return x || y;
    default: bug("%s of integers", op_info[op].name);
    }
}

static int64_t compare_element(Op op, double x, double y)
{
    switch ((unsigned)op) {
    case OP_EQ: return x == y;
    case OP_NE: return x != y;
    case OP_LT: return x < y;
    case OP_LE: return x <= y;
    default: bug("%s of reals", op_info[op].name);
    }
}

// Toward zero; what does not fit becomes the nearest that does, no number becomes 0.
static int64_t to_integer(double x)
{
    if (!(x == x))
        return 0;
    return x >= 0x1p63 ? INT64_MAX : x <= -0x1p63 ? INT64_MIN : (int64_t)x;
}

static Cell cast_element(DType from, DType to, Cell x)
{
    if (dtype_is_float(to))
        return dtype_is_float(from) ? x : (Cell){.f = to == DT_F32 ? (double)(float)x.i
                                                                   : (double)x.i};
    if (to == DT_BOOL)
        return (Cell){.i = dtype_is_float(from) ? x.f != 0 : x.i != 0};
    return dtype_is_float(from) ? (Cell){.i = to_integer(x.f)} : x;
}

static Cell element(Op op, DType dtype, DType to, bool single, const Cell *x)
{
    if (op == OP_CAST)
        return cast_element(dtype, to, x[0]);
    if (op == OP_WHERE)
        return x[0].i ? x[1] : x[2];
    if (!dtype_is_float(dtype))
        return (Cell){.i = integer_element(op, x[0].i, x[1].i)};
    if (to == DT_BOOL)
        return (Cell){.i = compare_element(op, x[0].f, x[1].f)};
    return (Cell){.f = single ? interp_scalar_f32(op, x[0].f, x[1].f)
                              : interp_scalar_f64(op, x[0].f, x[1].f)};
}

// ---- walks ----

void interp_elementwise(Task *task)
{
    const Node *node = task->node;
    Tensor *out = task->out[0];
    int64_t stride[3][MAX_RANK] = {0};
    for (uint32_t i = 0; i < node->nin; i++) {
        interp_strides(task->in[i], stride[i]);
        for (uint32_t j = 0; j < out->rank; j++)
            if (task->in[i]->rank == 0 || task->in[i]->dim[j] == 1)
                stride[i][j] = 0;
    }
    DType dtype = task->in[0]->dtype;
    bool single = dtype != DT_F64 && task->real != DT_F64;
    int64_t index[MAX_RANK] = {0}, at[3] = {0};
    for (int64_t i = 0; i < out->count; i++) {
        Cell x[3] = {{0}};
        for (uint32_t j = 0; j < node->nin; j++)
            x[j] = task->in[j]->at[at[j]];
        out->at[i] = element(node->op, dtype, out->dtype, single, x);
        for (uint32_t axis = out->rank; axis-- > 0;) {     // one position further
            bool carry = ++index[axis] == out->dim[axis];
            for (uint32_t j = 0; j < node->nin; j++)
                at[j] += carry ? -(out->dim[axis] - 1) * stride[j][axis] : stride[j][axis];
            if (!carry)
                break;
            index[axis] = 0;
        }
    }
}

static Cell reduce_element(Op op, bool real, Cell x, Cell y)
{
    if (op == OP_REDUCE_SUM)
        return real ? (Cell){.f = x.f + y.f} : (Cell){.i = integer_element(OP_ADD, x.i, y.i)};
    if (op == OP_REDUCE_MAX)
        return real ? (Cell){.f = y.f > x.f ? y.f : x.f} : (Cell){.i = y.i > x.i ? y.i : x.i};
    return real ? (Cell){.f = y.f < x.f ? y.f : x.f} : (Cell){.i = x.i < y.i ? x.i : y.i};
}

static Cell reduce_start(Op op, bool real)
{
    if (op == OP_REDUCE_SUM)
        return (Cell){0};
    bool max = op == OP_REDUCE_MAX;
    return real ? (Cell){.f = max ? -INFINITY : INFINITY}
                : (Cell){.i = max ? INT64_MIN : INT64_MAX};
}

void interp_reduce(Task *task)
{
    const Tensor *x = task->in[0];
    Tensor *out = task->out[0];
    bool real = dtype_is_float(x->dtype);
    int64_t stride[MAX_RANK], index[MAX_RANK] = {0}, at = 0;
    interp_strides(out, stride);
    for (uint32_t i = 0; i < x->rank; i++)
        if (task->node->attr->n[0] >> i & 1)
            stride[i] = 0;
    for (int64_t i = 0; i < out->count; i++)
        out->at[i] = reduce_start(task->node->op, real);
    for (int64_t i = 0; i < x->count; i++) {
        out->at[at] = reduce_element(task->node->op, real, out->at[at], x->at[i]);
        for (uint32_t axis = x->rank; axis-- > 0;) {
            bool carry = ++index[axis] == x->dim[axis];
            at += carry ? -(x->dim[axis] - 1) * stride[axis] : stride[axis];
            if (!carry)
                break;
            index[axis] = 0;
        }
    }
}
