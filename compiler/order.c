// The order in which the axes of a stored value lie.
//
// Attention writes any strides, so its result is stored in the order its reader wants: [b, n, h, d]
// for a [b, h, n, d] that is transposed next, which makes transpose and reshape free. What else
// follows rows says rows.c.
//
// In mixed precision, kernels read 16 bytes of neighbouring channels at a time. So filters of
// convolutions lie as [c_out, positions..., c_in], the parameter and whatever lies as parameters
// do: gradients, moments, averages. Every plan of a module reads them so, the unfused ones too;
// files and the host's copies are row-major.
#include <string.h>

#include "compiler/plan.h"

void ordered_strides(const Type *type, const uint32_t *order, Dim *stride)
{
    Dim next = dim_fixed(1);
    for (uint32_t i = type->rank; i-- > 0;) {
        uint32_t axis = order[i];
        stride[axis] = dim_is_one(type->dim[axis]) ? dim_fixed(0) : next;
        next = dim_product(next, type->dim[axis]);
    }
}

bool is_mixed_plan(const Work *work)
{
    return work->module->storage != DT_NONE && !work->taps;
}

bool image_strides(const Type *type, const Dim *full, Dim *image)
{
    Dim position = dim_fixed(0), next = dim_fixed(0), channel = full[1];
    bool good = full[0].n >= 0 && channel.n >= 0;
    for (uint32_t axis = type->rank; axis-- > 2;) {
        if (dim_is_one(type->dim[axis]))
            continue;
        if (position.n == 0)
            position = next = full[axis];
        good = good && full[axis].n > 0 && dim_equal(full[axis], next);
        next = dim_product(next, type->dim[axis]);
    }
    if (position.n == 0)       // a single one
        position = next = dim_fixed(1);
    image[0] = full[0];
    image[1] = dim_is_one(type->dim[1]) ? next : channel;
    image[2] = position;
    return good && (dim_equal(channel, dim_fixed(1)) || dim_equal(position, dim_fixed(1)));
}

// ---- filters ----

void filter_strides(const Type *type, Dim *stride)
{
    uint32_t order[MAX_RANK] = {0};
    for (uint32_t i = 1; i < type->rank; i++)
        order[i] = i + 1 < type->rank ? i + 1 : 1;
    ordered_strides(type, order, stride);
}

static uint32_t *filter_order(const Work *work, uint32_t rank)
{
    uint32_t *order = arena_alloc(work->arena, rank * sizeof *order);
    for (uint32_t i = 1; i < rank; i++)
        order[i] = i + 1 < rank ? i + 1 : 1;
    return order;
}

void param_strides(const Module *module, uint32_t param, Dim *stride)
{
    const Type *type = &module->params[param].type;
    if (module->params[param].last)
        filter_strides(type, stride);
    else
        dense_strides(type, stride);
}

// More than one channel and more than one position: the order matters.
static bool is_filter(const Type *type)
{
    int64_t positions = 1;
    for (uint32_t i = 2; i < type->rank; i++)
        positions *= type->dim[i].n;
    return type->rank > 2 && positions > 1 && type->dim[1].n > 1;
}

void order_params(Module *module)
{
    const Graph *graph = module->graph;
    if (module->storage == DT_NONE)
        return;
    for (NodeId id = 1; id < graph_count(graph); id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_CONV && node->op != OP_CONV_DGRAD)
            continue;
        const Node *filter = val_get(graph, node->in[1]);
        if (filter->op == OP_PARAM && is_filter(filter->type[0]))
            module->params[filter->attr->n[0]].last = true;
    }
}

// Storage order of an attention's result: that of the transpose which alone reads it.
static uint32_t *attention_order(const Work *work, Val val)
{
    uint32_t local = local_of(work, val), rank = val_type(work->module->graph, val)->rank;
    if (val_out(val) != 0 || !(work->rungs & RUNG_ATTENTION) || work->kept[local] || rank > 4)
        return NULL;
    const int64_t *perm = NULL;
    for (uint32_t i = work->user_first[local]; i < work->user_first[local + 1]; i++) {
        const Node *user = graph_node(work->module->graph, work->users[i]);
        if (user->op == OP_ATTENTION_GRAD)
            continue;
        if (user->op != OP_TRANSPOSE || (perm && memcmp(perm, user->attr->n, rank * sizeof *perm)))
            return NULL;
        perm = user->attr->n;
    }
    if (!perm || (uint32_t)perm[rank - 1] + 2 < rank)
        return NULL;           // n or d has to lie densely
    uint32_t *order = arena_alloc(work->arena, rank * sizeof *order);
    for (uint32_t i = 0; i < rank; i++)
        order[i] = (uint32_t)perm[i];
    return order;
}

uint32_t *result_order(const Work *work, Val val)
{
    const Module *module = work->module;
    const Node *node = val_get(module->graph, val);
    const Type *type = node->type[val_out(val)];
    bool mixed = is_mixed_plan(work);
    uint32_t *rows = rows_order(work, val);
    if (rows)
        return rows;
    switch ((int)node->op) {
    case OP_ATTENTION:
        return attention_order(work, val);
    case OP_PARAM:
        return module->params[node->attr->n[0]].last ? filter_order(work, type->rank) : NULL;
    case OP_CONV_WGRAD:
        return mixed && is_filter(type) ? filter_order(work, type->rank) : NULL;
    default:
        break;
    }
    // sums of gradients lie as these do
    for (uint32_t i = 0; mixed && op_info[node->op].class == CLASS_ELEMENTWISE && i < node->nin;
         i++) {
        uint32_t slot = local_of(work, node->in[i]) * MAX_OUT + val_out(node->in[i]);
        if (val_get(module->graph, node->in[i])->op == OP_CONV_WGRAD && work->order[slot] &&
            val_type(module->graph, node->in[i])->rank == type->rank)
            return work->order[slot];
    }
    return NULL;
}
