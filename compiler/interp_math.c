// The reference for elementwise operations and reductions.
//
// Elementwise: operands are walked with strides, 0 where an axis is stretched; one function a
// element. Common activations are computed in one go in double and rounded by the driver.
#include "compiler/interp.h"

#include <math.h>

// ---- one real element ----

static double f_neg(double x) { return -x; }
static double f_sign(double x) { return (x > 0) - (x < 0); }
static double f_rsqrt(double x) { return 1 / sqrt(x); }
static double f_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double f_softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
static double f_relu(double x) { return x > 0 ? x : x == x ? 0 : x; }
static double f_silu(double x) { return x / (1 + exp(-x)); }
static double f_gelu(double x) { return x * (1 + erf(x * M_SQRT1_2)) / 2; }
static double f_same(double x) { return x; }

static double f_gelu_tanh(double x)
{
    return x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
}

static double f_add(double x, double y) { return x + y; }
static double f_sub(double x, double y) { return x - y; }
static double f_mul(double x, double y) { return x * y; }
static double f_div(double x, double y) { return x / y; }
static double f_min(double x, double y) { return x < y ? x : y; }
static double f_max(double x, double y) { return x > y ? x : y; }

static double f_mod(double x, double y)
{
    double rest = fmod(x, y);
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}

typedef double Unary(double x);
typedef double Binary(double x, double y);

static Unary *const unary_functions[OP_COUNT] = {
    [OP_NEG] = f_neg, [OP_ABS] = fabs, [OP_SIGN] = f_sign, [OP_SQRT] = sqrt, [OP_RSQRT] = f_rsqrt,
    [OP_EXP] = exp, [OP_LOG] = log, [OP_SIN] = sin, [OP_COS] = cos, [OP_TANH] = tanh,
    [OP_ERF] = erf, [OP_SIGMOID] = f_sigmoid, [OP_SOFTPLUS] = f_softplus, [OP_RELU] = f_relu,
    [OP_SILU] = f_silu, [OP_GELU] = f_gelu, [OP_GELU_TANH] = f_gelu_tanh, [OP_FLOOR] = floor,
    [OP_STOP_GRADIENT] = f_same,
};
static Binary *const binary_functions[OP_COUNT] = {
    [OP_ADD] = f_add, [OP_SUB] = f_sub, [OP_MUL] = f_mul, [OP_DIV] = f_div, [OP_MOD] = f_mod,
    [OP_POW] = pow, [OP_MIN] = f_min, [OP_MAX] = f_max,
};

// ---- one integer element ----

static int64_t floor_div(int64_t x, int64_t y)
{
    if (y == 0)
        return 0;
    if (y == -1)
        return (int64_t)(0 - (uint64_t)x);
    return x / y - (x % y != 0 && (x % y < 0) != (y < 0));
}

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
    case OP_DIV: return floor_div(x, y);
    case OP_MOD: return y ? (int64_t)((uint64_t)x - (uint64_t)floor_div(x, y) * (uint64_t)y) : 0;
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

static Cell element(Op op, DType dtype, DType to, const Cell *x)
{
    if (op == OP_CAST)
        return cast_element(dtype, to, x[0]);
    if (op == OP_WHERE)
        return x[0].i ? x[1] : x[2];
    if (!dtype_is_float(dtype))
        return (Cell){.i = integer_element(op, x[0].i, x[1].i)};
    if (unary_functions[op])
        return (Cell){.f = unary_functions[op](x[0].f)};
    if (binary_functions[op])
        return (Cell){.f = binary_functions[op](x[0].f, x[1].f)};
    return (Cell){.i = compare_element(op, x[0].f, x[1].f)};
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
    int64_t index[MAX_RANK] = {0}, at[3] = {0};
    for (int64_t i = 0; i < out->count; i++) {
        Cell x[3] = {{0}};
        for (uint32_t j = 0; j < node->nin; j++)
            x[j] = task->in[j]->at[at[j]];
        out->at[i] = element(node->op, dtype, out->dtype, x);
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
        return real ? (Cell){.f = x.f + y.f} : (Cell){.i = (int64_t)((uint64_t)x.i + (uint64_t)y.i)};
    if (op == OP_REDUCE_MAX)
        return real ? (Cell){.f = f_max(x.f, y.f)} : (Cell){.i = x.i > y.i ? x.i : y.i};
    return real ? (Cell){.f = f_min(x.f, y.f)} : (Cell){.i = x.i < y.i ? x.i : y.i};
}

static Cell reduce_start(Op op, bool real)
{
    if (op == OP_REDUCE_SUM)
        return (Cell){0};
    bool max = op == OP_REDUCE_MAX;
    return real ? (Cell){.f = max ? -INFINITY : INFINITY} : (Cell){.i = max ? INT64_MIN : INT64_MAX};
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
