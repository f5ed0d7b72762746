// Elementwise operations on one real, in PvReal: the text of interp_f32.c and interp_f64.c, which
// name the function by INTERP_SCALAR. The functions are those of generated code.
#include "codegen/cpu/pv_math.h"
#include "compiler/interp.h"

static PvReal unary_or_binary(Op op, PvReal x, PvReal y)
{
    switch ((unsigned)op) {
    case OP_NEG: return -x;
    case OP_ABS: return pv_abs(x);
    case OP_SIGN: return pv_sign(x);
    case OP_SQRT: return pv_sqrt(x);
    case OP_RSQRT: return pv_rsqrt(x);
    case OP_EXP: return pv_exp(x);
    case OP_LOG: return pv_log(x);
    case OP_SIN: return pv_sin(x);
    case OP_COS: return pv_cos(x);
    case OP_TANH: return pv_tanh(x);
    case OP_ERF: return pv_erf(x);
    case OP_SIGMOID: return pv_sigmoid(x);
    case OP_SOFTPLUS: return pv_softplus(x);
    case OP_RELU: return pv_relu(x);
    case OP_SILU: return pv_silu(x);
    case OP_GELU: return pv_gelu(x);
    case OP_GELU_TANH: return pv_gelu_tanh(x);
    case OP_FLOOR: return pv_floor(x);
    case OP_STOP_GRADIENT: return x;
    case OP_ADD: return x + y;
    case OP_SUB: return x - y;
    case OP_MUL: return x * y;
    case OP_DIV: return x / y;
    case OP_MOD: return pv_mod(x, y);
    case OP_POW: return pv_pow(x, y);
    case OP_MIN: return pv_min(x, y);
    case OP_MAX: return pv_max(x, y);
    default: bug("%s of reals", op_info[op].name);
    }
}

double INTERP_SCALAR(Op op, double x, double y)
{
    return (double)unary_or_binary(op, (PvReal)x, (PvReal)y);
}
