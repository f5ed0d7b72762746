// How values are stored: in mixed precision (--dtype bf16, f16) most of what a step computes lies
// in memory as bf16 or f16, and is computed with in f32.
//
// Parameters, gradients of parameters, inputs, outputs, tables, statistics of norms, sums and
// random numbers stay f32. So does what an operation reads or makes whose kernel knows one storage
// only. All values that lie in one storage (parts of a concat) are stored alike.
//
// A parameter that only products with such values read is read from its shadow, a copy of the same
// element in space PV_SHADOW that the runtime keeps up to date: half the bytes, and no rounding
// on the way into the tensor cores.
#include "compiler/plan.h"

// Its kernel reads operand `which` as either, and what it computes is no worse than that is.
static bool reads_mixed(const Node *node, uint32_t which)
{
    if (node->op == OP_GROUP_NORM_TABLE)       // factors are f32
        return which == 0;
    switch (op_info[node->op].class) {
    case CLASS_ELEMENTWISE:    // an error of the argument grows with the argument
        return node->op != OP_SIN && node->op != OP_COS && node->op != OP_EXP &&
               node->op != OP_POW;
    case CLASS_CONTRACT:
    case CLASS_COMPOSITE:
        return true;
    case CLASS_MOVEMENT:
        return node->op == OP_CONCAT || node->op == OP_RESHAPE || node->op == OP_SWAP_PAIRS ||
               node->op == OP_TRANSPOSE || node->op == OP_EXPAND || node->op == OP_SLICE ||
               node->op == OP_FLIP;
    case CLASS_REDUCE:
        return node->op == OP_REDUCE_SUM;
    case CLASS_SOURCE:
        break;
    }
    return false;
}

// Its kernel writes result `out` as either.
static bool makes_mixed(const Node *node, uint32_t out)
{
    if (node->op == OP_GROUP_NORM_TABLE || node->op == OP_CHANNEL_MOMENTS)
        return false;
    switch (op_info[node->op].class) {
    case CLASS_ELEMENTWISE:
    case CLASS_CONTRACT:
        return true;
    case CLASS_MOVEMENT:
        return node->op == OP_CONCAT || node->op == OP_RESHAPE || node->op == OP_SWAP_PAIRS;
    case CLASS_COMPOSITE:
        return node->op == OP_ATTENTION_GRAD || out == 0;
    case CLASS_SOURCE:
    case CLASS_REDUCE:
        break;
    }
    return false;
}

static bool has_batch(const Type *type)
{
    for (uint32_t i = 0; i < type->rank; i++)
        if (type->dim[i].batch)
            return true;
    return false;
}

static uint32_t slot_of(const Work *work, Val val)
{
    return local_of(work, val) * MAX_OUT + val_out(val);
}

DType stored_dtype(const Work *work, Val val)
{
    DType dtype = val_type(work->module->graph, val)->dtype;
    if (!dtype_is_float(dtype))
        return dtype;
    if (work->mixed && work->mixed[slot_of(work, storage_of(work, val))])
        return work->module->storage;
    return work->module->real;
}

size_t stored_size(const Work *work, Val val)
{
    DType dtype = stored_dtype(work, val);
    return dtype == DT_BF16 || dtype == DT_F16 ? 2 : element_size(work->module, dtype);
}

// A product of `val`, on tensor cores: something else that it reads or makes is mixed.
static bool is_mixed_product(const Work *work, const Node *node, NodeId id, Val val)
{
    bool mixed = work->mixed[slot_of(work, storage_of(work, val_of(id, 0)))];
    if (node->op != OP_CONTRACT && node->op != OP_CONV && node->op != OP_CONV_DGRAD)
        return false;
    for (uint32_t i = 0; i < node->nin; i++)
        mixed |= node->in[i] != val && work->mixed[slot_of(work, storage_of(work, node->in[i]))];
    return mixed;
}

// Whether all that reads the parameter which `val` shows is such a product.
static bool reads_shadow(const Work *work, Val val)
{
    uint32_t local = local_of(work, val), begin = work->user_first[local];
    if (work->kept[local] || !dtype_is_float(val_type(work->module->graph, val)->dtype))
        return false;
    for (uint32_t i = begin; i < work->user_first[local + 1]; i++) {
        NodeId user = work->users[i];
        const Node *node = graph_node(work->module->graph, user);
        bool good = work->view[local_of(work, val_of(user, 0))]
                        ? reads_shadow(work, val_of(user, 0))
                        : is_mixed_product(work, node, user, val);
        if (!good)
            return false;
    }
    return work->user_first[local + 1] > begin;
}

void choose_storage(Work *work)
{
    const Module *module = work->module;
    if (module->storage == DT_NONE || work->taps)
        return;
    size_t slots = ((size_t)work->count + 1) * MAX_OUT;
    work->mixed = arena_alloc(work->arena, slots * sizeof *work->mixed);
    bool *not = arena_alloc(work->arena, slots * sizeof *not);
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = graph_node(module->graph, work->nodes[local]);
        if (work->step[local])
            continue;
        for (uint32_t i = 0; i < node->nin; i++)
            if (!reads_mixed(node, i) && !val_is_step(work, node->in[i]))
                not[slot_of(work, storage_of(work, node->in[i]))] = true;
        if (work->view[local])
            continue;
        for (uint32_t out = 0; out < node->nout; out++) {
            Val val = val_of(work->nodes[local], out);
            uint32_t slot = slot_of(work, storage_of(work, val));
            work->mixed[slot] |= dtype_is_float(node->type[out]->dtype);
            if (!makes_mixed(node, out) || !has_batch(node->type[out]))
                not[slot] = true;
        }
    }
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        not[slot_of(work, storage_of(work, work->variant->outputs[i].val))] = true;
    for (size_t i = 0; i < slots; i++)
        work->mixed[i] &= !not[i];
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = graph_node(module->graph, work->nodes[local]);
        if (node->op == OP_PARAM && !module->params[node->attr->n[0]].buffer)
            work->mixed[local * MAX_OUT] = reads_shadow(work, val_of(work->nodes[local], 0));
    }
}
