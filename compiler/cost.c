// Floating-point operations of a node, as a part that is there for any batch and a part per batch
// element. A multiply-add counts two; one elementary operation a element counts one, functions
// like exp count as one too (they are counted, not timed); movement counts nothing.
#include "compiler/program.h"

// The cost is `factor` for each of the elements of `type`.
static void per_element(const Type *type, double factor, double *fixed, double *per_batch)
{
    Dim count;
    if (!type_count(type, &count))
        bug("no count of %s", type_text(type));
    *(count.batch ? per_batch : fixed) += factor * (double)count.n;
}

// Multiply-adds of a contraction: the product of the sizes of all its labels.
static void contract_flops(const Graph *graph, const Node *node, double *fixed, double *per_batch)
{
    const int64_t *n = node->attr->n, *label = n + 3;
    uint64_t seen = 0;
    double product = 2;
    bool batch = false;
    for (int i = 0; i < 2; i++) {
        const Type *type = val_type(graph, node->in[i]);
        for (uint32_t j = 0; j < type->rank; j++, label++) {
            if (seen >> *label & 1)
                continue;
            seen |= (uint64_t)1 << *label;
            product *= (double)type->dim[j].n;
            batch = batch || type->dim[j].batch;
        }
    }
    *(batch ? per_batch : fixed) += product;
}

static double channels(const Type *weights)     // what one output element of a convolution sums
{
    double product = 1;
    for (uint32_t i = 1; i < weights->rank; i++)
        product *= (double)weights->dim[i].n;
    return product;
}

// q at operand `first`, v two behind it: (d + e) multiply-adds for each pair of positions.
static double pair_work(const Graph *graph, const Node *node, uint32_t first)
{
    const Type *k = val_type(graph, node->in[first + 1]), *v = val_type(graph, node->in[first + 2]);
    double width = (double)(k->dim[k->rank - 1].n + v->dim[v->rank - 1].n);
    double pairs = (double)k->dim[k->rank - 2].n * width;
    return (node->attr->n[0] ? pairs : 2 * pairs) / (double)v->dim[v->rank - 1].n;
}

void node_flops(const Graph *graph, NodeId id, double *fixed, double *per_batch)
{
    const Node *node = graph_node(graph, id);
    const Type *out = node->type[0];
    *fixed = *per_batch = 0;
    switch (node->op) {
    case OP_CONST: case OP_TABLE: case OP_INPUT: case OP_PARAM: case OP_OPTION: case OP_BATCH:
    case OP_GIVEN: case OP_VAR: case OP_LOSS_SCALE: case OP_RANDOM: case OP_CAST:
    case OP_STOP_GRADIENT:
    case OP_RESHAPE:
    case OP_TRANSPOSE: case OP_EXPAND: case OP_SLICE: case OP_PAD: case OP_CONCAT: case OP_FLIP:
    case OP_SWAP_PAIRS: case OP_WINDOW: case OP_WINDOW_GRAD: case OP_PICK: case OP_PICK_GRAD:
    case OP_GATHER:
        return;
    case OP_NEG: case OP_ABS: case OP_SIGN: case OP_SQRT: case OP_RSQRT: case OP_EXP: case OP_LOG:
    case OP_SIN: case OP_COS: case OP_TANH: case OP_ERF: case OP_RELU: case OP_FLOOR: case OP_NOT:
    case OP_ADD: case OP_SUB: case OP_MUL: case OP_DIV: case OP_MOD: case OP_POW: case OP_MIN:
    case OP_MAX: case OP_EQ: case OP_NE: case OP_LT: case OP_LE: case OP_AND: case OP_OR:
    case OP_WHERE:
        per_element(out, 1, fixed, per_batch);
        return;
    case OP_SIGMOID: case OP_SOFTPLUS: case OP_SILU: case OP_GELU: case OP_SOFTMAX:
        per_element(out, 4, fixed, per_batch);
        return;
    case OP_GELU_TANH: case OP_LAYER_NORM: case OP_GROUP_NORM:
        per_element(out, 8, fixed, per_batch);
        return;
    case OP_GROUP_NORM_TABLE: case OP_CHANNEL_MOMENTS:
        per_element(val_type(graph, node->in[0]), 4, fixed, per_batch);
        return;
    case OP_LAYER_NORM_GRAD: case OP_GROUP_NORM_GRAD:
        per_element(out, 12, fixed, per_batch);
        return;
    case OP_GATHER_GRAD: case OP_REDUCE_SUM: case OP_REDUCE_MAX: case OP_REDUCE_MIN:
        per_element(val_type(graph, node->in[0]), 1, fixed, per_batch);
        return;
    case OP_CONTRACT:
        contract_flops(graph, node, fixed, per_batch);
        return;
    case OP_CONV:
        per_element(out, 2 * channels(val_type(graph, node->in[1])), fixed, per_batch);
        return;
    case OP_CONV_DGRAD:
        per_element(val_type(graph, node->in[0]), 2 * channels(val_type(graph, node->in[1])),
                    fixed, per_batch);
        return;
    case OP_CONV_WGRAD:
        per_element(val_type(graph, node->in[1]), 2 * channels(out), fixed, per_batch);
        return;
    case OP_ATTENTION:
        per_element(out, pair_work(graph, node, 0), fixed, per_batch);
        return;
    case OP_ATTENTION_GRAD:      // scores again, dP, dv, dq, dk: five products instead of two
        per_element(val_type(graph, node->in[0]), 2.5 * pair_work(graph, node, 1), fixed,
                    per_batch);
        return;
    case OP_COUNT:
        break;
    }
    bug("there is no operation %d", (int)node->op);
}
