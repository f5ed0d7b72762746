// The reference evaluator: what every operation means, in plain loops.
//
// interp_run collects the nodes that the wanted values depend on, evaluates them in the order of
// their numbers (a topological order), and frees each value after its last use. Reals are held as
// doubles, and every result of a node is rounded to its dtype; with InterpOptions.real f64, an f32
// value is rounded only where it leaves the evaluator. Elementwise functions are the very ones of
// generated code, so folded constants agree with it bit by bit; sums and contractions add up in
// double, which makes this the more exact side of a comparison.
//
// This file: the order of evaluation, sources, conversion at the edges. Others: interp_math.c
// elementwise and reductions, interp_move.c movement, interp_nn.c contractions and composites.
#include "compiler/interp.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    NodeId id;
    uint32_t uses;               // of any output, by nodes and by results
    Tensor out[MAX_OUT];
} Slot;

typedef struct {
    Graph *graph;
    const InterpOptions *options;
    Slot *slots;                 // sorted by id
    uint32_t count;
} Run;

void *interp_alloc(int64_t count, size_t size)
{
    void *memory = calloc(count ? (size_t)count : 1, size);
    if (!memory)
        bug("out of memory in the reference evaluator");
    return memory;
}

void interp_strides(const Tensor *tensor, int64_t stride[MAX_RANK])
{
    int64_t step = 1;
    for (uint32_t i = tensor->rank; i-- > 0;) {
        stride[i] = step;
        step *= tensor->dim[i];
    }
}

// ---- order ----

static int compare_slots(const void *x, const void *y)
{
    NodeId a = ((const Slot *)x)->id, b = ((const Slot *)y)->id;
    return (a > b) - (a < b);
}

static Slot *find_slot(const Run *run, Val val)
{
    Slot key = {.id = val_node(val)};
    return bsearch(&key, run->slots, run->count, sizeof *run->slots, compare_slots);
}

// Fills run->slots with every node that `vals` depend on, and counts uses.
static void collect(Run *run, const Val *vals, uint32_t count)
{
    uint8_t *seen = interp_alloc(graph_count(run->graph) / 8 + 1, 1);
    NodeId *stack = NULL;
    size_t stack_count = 0, stack_capacity = 0, capacity = 0;
    for (uint32_t i = 0; i < count; i++) {
        stack = grow_array(stack, &stack_capacity, stack_count, sizeof *stack);
        stack[stack_count++] = val_node(vals[i]);
    }
    while (stack_count) {
        NodeId id = stack[--stack_count];
        if (seen[id / 8] >> id % 8 & 1)
            continue;
        seen[id / 8] = (uint8_t)(seen[id / 8] | 1u << id % 8);
        run->slots = grow_array(run->slots, &capacity, run->count, sizeof *run->slots);
        run->slots[run->count++] = (Slot){.id = id};
        const Node *node = graph_node(run->graph, id);
        for (uint32_t i = 0; i < node->nin; i++) {
            stack = grow_array(stack, &stack_capacity, stack_count, sizeof *stack);
            stack[stack_count++] = val_node(node->in[i]);
        }
    }
    free(stack);
    free(seen);
    qsort(run->slots, run->count, sizeof *run->slots, compare_slots);
    for (uint32_t i = 0; i < run->count; i++) {
        const Node *node = graph_node(run->graph, run->slots[i].id);
        for (uint32_t j = 0; j < node->nin; j++)
            find_slot(run, node->in[j])->uses++;
    }
    for (uint32_t i = 0; i < count; i++)
        find_slot(run, vals[i])->uses++;
}

static void release(Slot *slot)
{
    if (--slot->uses)
        return;
    for (int i = 0; i < MAX_OUT; i++) {
        free(slot->out[i].at);
        slot->out[i].at = NULL;
    }
}

// ---- elements as they are stored outside ----

static void load(Tensor *tensor, const void *data)
{
    for (int64_t i = 0; i < tensor->count; i++)
        switch (tensor->dtype) {
        case DT_BOOL: tensor->at[i].i = ((const uint8_t *)data)[i] != 0; break;
        case DT_I64: tensor->at[i].i = ((const int64_t *)data)[i]; break;
        case DT_F32: tensor->at[i].f = (double)((const float *)data)[i]; break;
        case DT_F64: tensor->at[i].f = ((const double *)data)[i]; break;
        case DT_NONE: case DT_F16: case DT_BF16:
            bug("no reference for %s", dtype_name(tensor->dtype));
        }
}

static void *store(const Tensor *tensor)
{
    void *data = interp_alloc(tensor->count, dtype_size(tensor->dtype));
    for (int64_t i = 0; i < tensor->count; i++)
        switch (tensor->dtype) {
        case DT_BOOL: ((uint8_t *)data)[i] = tensor->at[i].i != 0; break;
        case DT_I64: ((int64_t *)data)[i] = tensor->at[i].i; break;
        case DT_F32: ((float *)data)[i] = (float)tensor->at[i].f; break;
        case DT_F64: ((double *)data)[i] = tensor->at[i].f; break;
        case DT_NONE: case DT_F16: case DT_BF16:
            bug("no reference for %s", dtype_name(tensor->dtype));
        }
    return data;
}

// ---- one node ----

static Tensor make_tensor(const Type *type, int64_t batch)
{
    Tensor tensor = {.dtype = type->dtype, .rank = type->rank, .count = 1};
    for (uint32_t i = 0; i < type->rank; i++) {
        tensor.dim[i] = type->dim[i].batch ? type->dim[i].n * batch : type->dim[i].n;
        tensor.count *= tensor.dim[i];
    }
    tensor.at = interp_alloc(tensor.count, sizeof *tensor.at);
    return tensor;
}

static int ask_source(Run *run, const Node *node, Tensor *out)
{
    const InterpOptions *options = run->options;
    void *data = options->source ? options->source(options->context, node, node->type[0]) : NULL;
    if (!data) {
        graph_set_error(run->graph, "%s%s%s has no value", op_info[node->op].name,
                        node->attr->text ? " " : "", node->attr->text ? node->attr->text : "");
        return -1;
    }
    load(out, data);
    free(data);
    return 0;
}

static int evaluate_source(Run *run, const Node *node, Tensor *out)
{
    if (node->op == OP_TABLE) {
        load(out, graph_blob(run->graph, (uint32_t)node->attr->n[0], NULL));
        return 0;
    }
    if (node->op != OP_CONST && node->op != OP_BATCH && node->op != OP_LOSS_SCALE)
        return ask_source(run, node, out);
    Cell value = {.f = node->attr->real};
    if (node->op == OP_LOSS_SCALE)
        value.f = 1;
    else if (node->op == OP_BATCH)
        value.i = run->options->batch;
    else if (!dtype_is_float(out->dtype))
        value.i = (int64_t)node->attr->real;
    for (int64_t i = 0; i < out->count; i++)
        out->at[i] = value;
    return 0;
}

static int evaluate(Run *run, Task *task)
{
    switch (task->node->op) {
    case OP_CONST: case OP_TABLE: case OP_INPUT: case OP_PARAM: case OP_OPTION: case OP_BATCH:
    case OP_GIVEN: case OP_VAR: case OP_LOSS_SCALE: case OP_RANDOM:
        return evaluate_source(run, task->node, task->out[0]);
    case OP_NEG: case OP_ABS: case OP_SIGN: case OP_SQRT: case OP_RSQRT: case OP_EXP: case OP_LOG:
    case OP_SIN: case OP_COS: case OP_TANH: case OP_ERF: case OP_SIGMOID: case OP_SOFTPLUS:
    case OP_RELU: case OP_SILU: case OP_GELU: case OP_GELU_TANH: case OP_FLOOR: case OP_NOT:
    case OP_CAST: case OP_STOP_GRADIENT: case OP_ADD: case OP_SUB: case OP_MUL: case OP_DIV:
    case OP_MOD: case OP_POW: case OP_MIN: case OP_MAX: case OP_EQ: case OP_NE: case OP_LT:
    case OP_LE: case OP_AND: case OP_OR: case OP_WHERE:
        return interp_elementwise(task), 0;
    case OP_RESHAPE: return interp_reshape(task), 0;
    case OP_TRANSPOSE: case OP_EXPAND: case OP_SLICE: case OP_FLIP: case OP_WINDOW:
        return interp_view(task), 0;
    case OP_PAD: case OP_CONCAT: case OP_WINDOW_GRAD: return interp_place(task), 0;
    case OP_SWAP_PAIRS: return interp_swap_pairs(task), 0;
    case OP_PICK: case OP_PICK_GRAD: return interp_pick(task), 0;
    case OP_GATHER: case OP_GATHER_GRAD: return interp_gather(task), 0;
    case OP_REDUCE_SUM: case OP_REDUCE_MAX: case OP_REDUCE_MIN: return interp_reduce(task), 0;
    case OP_CONTRACT: return interp_contract(task), 0;
    case OP_CONV: case OP_CONV_DGRAD: case OP_CONV_WGRAD: return interp_conv(task), 0;
    case OP_SOFTMAX: return interp_softmax(task), 0;
    case OP_LAYER_NORM: return interp_layer_norm(task), 0;
    case OP_LAYER_NORM_GRAD: return interp_layer_norm_grad(task), 0;
    case OP_GROUP_NORM: return interp_group_norm(task), 0;
    case OP_GROUP_NORM_TABLE: return interp_group_norm_table(task), 0;
    case OP_CHANNEL_MOMENTS: return interp_channel_moments(task), 0;
    case OP_GROUP_NORM_GRAD: return interp_group_norm_grad(task), 0;
    case OP_ATTENTION: return interp_attention(task), 0;
    case OP_ATTENTION_GRAD: return interp_attention_grad(task), 0;
    case OP_COUNT: break;
    }
    bug("there is no operation %d", (int)task->node->op);
}

static void round_output(Tensor *out, DType real)
{
    if (out->dtype == DT_F32 && real != DT_F64)
        for (int64_t i = 0; i < out->count; i++)
            out->at[i].f = (double)(float)out->at[i].f;
}

static int evaluate_slot(Run *run, Slot *slot)
{
    const Node *node = graph_node(run->graph, slot->id);
    Task task = {.node = node, .real = run->options->real};
    task.in = interp_alloc(node->nin, sizeof *task.in);
    for (uint32_t i = 0; i < node->nin; i++)
        task.in[i] = &find_slot(run, node->in[i])->out[val_out(node->in[i])];
    for (uint32_t i = 0; i < node->nout; i++) {
        slot->out[i] = make_tensor(node->type[i], run->options->batch);
        task.out[i] = &slot->out[i];
    }
    int status = evaluate(run, &task);
    for (uint32_t i = 0; i < node->nout; i++)
        round_output(&slot->out[i], run->options->real);
    free(task.in);
    for (uint32_t i = 0; i < node->nin; i++)
        release(find_slot(run, node->in[i]));
    return status;
}

int interp_run(Graph *graph, const InterpOptions *options, const Val *vals, uint32_t count,
               void **results)
{
    Run run = {.graph = graph, .options = options};
    collect(&run, vals, count);
    int status = 0;
    for (uint32_t i = 0; i < run.count && !status; i++)
        status = evaluate_slot(&run, &run.slots[i]);
    for (uint32_t i = 0; i < count && !status; i++)
        results[i] = store(&find_slot(&run, vals[i])->out[val_out(vals[i])]);
    for (uint32_t i = 0; i < run.count; i++)
        for (int j = 0; j < MAX_OUT; j++)
            free(run.slots[i].out[j].at);
    free(run.slots);
    return status;
}
