// Operations as C expressions, and step values as C statements.
//
// One switch gives each elementwise operation its text, with $0, $1, $2 for the operands; functions
// are those of cpu/pv_math.h. The same texts serve the kernels (on vectors of elements) and the
// step values that the host computes: options, draws, loop counters and arithmetic on them.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"

const char *c_type(DType dtype)
{
    return dtype_is_float(dtype) ? "PvReal" : dtype == DT_BOOL ? "bool" : "int64_t";
}

void write_real(FILE *out, double value)
{
    if (isnan(value))
        fprintf(out, "(PvReal)__builtin_nan(\"\")");
    else if (isinf(value))
        fprintf(out, "(PvReal)%s__builtin_inf()", value < 0 ? "-" : "");
    else
        fprintf(out, "(PvReal)%.17g", value);
}

static const char *real_text(Op op)
{
    switch (op) {
    case OP_NEG: return "-$0";
    case OP_ABS: return "pv_abs($0)";
    case OP_SIGN: return "pv_sign($0)";
    case OP_SQRT: return "pv_sqrt($0)";
    case OP_RSQRT: return "pv_rsqrt($0)";
    case OP_EXP: return "pv_exp($0)";
    case OP_LOG: return "pv_log($0)";
    case OP_SIN: return "pv_sin($0)";
    case OP_COS: return "pv_cos($0)";
    case OP_TANH: return "pv_tanh($0)";
    case OP_ERF: return "pv_erf($0)";
    case OP_SIGMOID: return "pv_sigmoid($0)";
    case OP_SOFTPLUS: return "pv_softplus($0)";
    case OP_RELU: return "pv_relu($0)";
    case OP_SILU: return "pv_silu($0)";
    case OP_GELU: return "pv_gelu($0)";
    case OP_GELU_TANH: return "pv_gelu_tanh($0)";
    case OP_FLOOR: return "pv_floor($0)";
    case OP_NOT: return "!$0";
    case OP_STOP_GRADIENT: case OP_CAST: return "$0";
    case OP_ADD: return "$0 + $1";
    case OP_SUB: return "$0 - $1";
    case OP_MUL: return "$0 * $1";
    case OP_DIV: return "$0 / $1";
    case OP_MOD: return "pv_mod($0, $1)";
    case OP_POW: return "pv_pow($0, $1)";
    case OP_MIN: return "pv_min($0, $1)";
    case OP_MAX: return "pv_max($0, $1)";
    case OP_EQ: return "$0 == $1";
    case OP_NE: return "$0 != $1";
    case OP_LT: return "$0 < $1";
    case OP_LE: return "$0 <= $1";
    case OP_AND: return "$0 && $1";
    case OP_OR: return "$0 || $1";
    case OP_WHERE: return "$0 ? $1 : $2";
    case OP_CONST: case OP_TABLE: case OP_INPUT: case OP_PARAM: case OP_OPTION: case OP_BATCH:
    case OP_GIVEN: case OP_VAR: case OP_LOSS_SCALE: case OP_RANDOM: case OP_RESHAPE:
    case OP_TRANSPOSE: case OP_EXPAND: case OP_SLICE: case OP_PAD: case OP_CONCAT: case OP_FLIP:
    case OP_SWAP_PAIRS: case OP_WINDOW: case OP_WINDOW_GRAD: case OP_PICK: case OP_PICK_GRAD:
    case OP_GATHER: case OP_GATHER_GRAD: case OP_REDUCE_SUM: case OP_REDUCE_MAX:
    case OP_REDUCE_MIN: case OP_CONTRACT: case OP_CONV: case OP_CONV_DGRAD: case OP_CONV_WGRAD:
    case OP_SOFTMAX: case OP_LAYER_NORM: case OP_LAYER_NORM_GRAD: case OP_GROUP_NORM:
    case OP_GROUP_NORM_TABLE: case OP_CHANNEL_MOMENTS: case OP_GROUP_NORM_GRAD:
    case OP_ATTENTION: case OP_ATTENTION_GRAD: case OP_COUNT:
        break;
    }
    bug("%s is not elementwise", op_info[op].name);
}

// Integers and bools where their text differs from that of reals.
static const char *integer_text(Op op)
{
    switch ((int)op) {
    case OP_ABS: return "$0 < 0 ? -$0 : $0";
    case OP_SIGN: return "($0 > 0) - ($0 < 0)";
    case OP_RELU: return "$0 < 0 ? 0 : $0";
    case OP_DIV: return "pv_div_int($0, $1)";
    case OP_MOD: return "pv_mod_int($0, $1)";
    case OP_MIN: return "$0 < $1 ? $0 : $1";
    case OP_MAX: return "$0 > $1 ? $0 : $1";
    default: return real_text(op);
    }
}

void write_op(FILE *out, const Graph *graph, const Node *node, const char *const *args)
{
    DType from = val_type(graph, node->in[0])->dtype, to = node->type[0]->dtype;
    if (node->op == OP_CAST && to == DT_BOOL) {
        fprintf(out, "%s != 0", args[0]);
        return;
    }
    if (node->op == OP_CAST) {
        fprintf(out, "(%s)%s", c_type(to), args[0]);
        return;
    }
    const char *text = dtype_is_float(from) ? real_text(node->op) : integer_text(node->op);
    for (; *text; text++) {
        if (*text == '$')
            fputs(args[*++text - '0'], out);
        else
            fputc(*text, out);
    }
}

// ---- step values ----

static void write_source(StepScope *scope, const Node *node)
{
    FILE *out = scope->out;
    const Codegen *cg = scope->cg;
    const int64_t *n = node->attr->n;
    const char *field = dtype_is_float(node->type[0]->dtype) ? "f" : "i";
    const char *type = c_type(node->type[0]->dtype);
    switch ((int)node->op) {
    case OP_CONST:
        if (dtype_is_float(node->type[0]->dtype))
            write_real(out, node->attr->real);
        else
            fprintf(out, "INT64_C(%lld)", (long long)node->attr->real);
        return;
    case OP_INPUT:
        fprintf(out, "(%s)step->inputs[%lld].%s", type, (long long)n[1], field);
        return;
    case OP_OPTION:
        fprintf(out, "(%s)step->options[%lld].%s", type,
                (long long)(cg->option_slot[n[0]] + n[1]), field);
        return;
    case OP_BATCH:
        fprintf(out, "step->batch");
        return;
    case OP_GIVEN:
        fprintf(out, "(step->given >> %lld & 1) != 0", (long long)n[1]);
        return;
    case OP_VAR:
        fprintf(out, "(%s)vars[%lld].number.%s", type, (long long)n[0], field);
        return;
    case OP_RANDOM: {
        uint32_t stream = stream_index(cg, node->attr->text);
        if (n[0] == 2)
            fprintf(out, "pv_draw_int(step, %u, INT64_C(%lld), INT64_C(%lld))", stream,
                    (long long)n[1], (long long)n[2]);
        else
            fprintf(out, "(PvReal)pv_draw_%s(step, %u)", n[0] == 0 ? "normal" : "uniform", stream);
        return;
    }
    default:
        bug("%s is not a step value", op_info[node->op].name);
    }
}

static bool is_known(const StepScope *scope, Val val)
{
    for (uint32_t i = 0; i < scope->count; i++)
        if (scope->known[i] == val)
            return true;
    return false;
}

static void write_gather(StepScope *scope, const Node *node)
{
    const Graph *graph = scope->cg->module->graph;
    const Node *table = val_get(graph, node->in[0]);
    if (table->op == OP_CONST) {
        write_source(scope, table);
        return;
    }
    // an index out of range is clamped, as in the kernels
    long long last = (long long)table->type[0]->dim[0].n - 1;
    const char *type = table->type[0]->dtype == DT_BOOL ? "uint8_t" : c_type(table->type[0]->dtype);
    unsigned index = val_node(node->in[1]);
    fprintf(scope->out, "((const %s *)(pv_data + %zu))[v%u < 0 ? 0 : v%u > %lld ? %lld : v%u]",
            type, data_table(scope->cg, table), index, index, last, last, index);
}

void write_step(StepScope *scope, Val val)
{
    if (is_known(scope, val))
        return;
    const Graph *graph = scope->cg->module->graph;
    const Node *node = val_get(graph, val);
    if (node->op == OP_GATHER) {
        if (val_get(graph, node->in[0])->op == OP_TABLE)
            write_step(scope, node->in[1]);
    } else {
        for (uint32_t i = 0; i < node->nin; i++)
            write_step(scope, node->in[i]);
    }
    fprintf(scope->out, "%*sconst %s v%u = ", scope->indent, "", c_type(node->type[0]->dtype),
            val_node(val));
    if (node->op == OP_GATHER) {
        write_gather(scope, node);
    } else if (node->nin == 0) {
        write_source(scope, node);
    } else {
        char names[3][16];
        const char *args[3];
        for (uint32_t i = 0; i < node->nin && i < 3; i++) {
            snprintf(names[i], sizeof names[i], "v%u", val_node(node->in[i]));
            args[i] = names[i];
        }
        write_op(scope->out, graph, node, args);
    }
    fprintf(scope->out, ";\n");
    scope->known = grow_array(scope->known, &scope->capacity, scope->count, sizeof *scope->known);
    scope->known[scope->count++] = val;
}
