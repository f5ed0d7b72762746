// Compaction: a graph anew with only the nodes that the module needs, numbered as wanted.
//
// Rewriting leaves nodes that nobody needs, and new nodes get numbers behind all others, wherever
// they belong. The numbers of nodes are the order from which the schedule starts, so after a
// rewriting pass the graph is made again: nodes are taken in a given order (that of the model's
// text), each after its operands. Equal modules give equal numbers.
#include <stdlib.h>

#include "compiler/program.h"

// ---- every value that a module names ----

typedef struct {
    Val **at;
    size_t count, capacity;
} Roots;

static void add_root(Roots *roots, Val *val)
{
    if (!*val)
        return;
    roots->at = grow_array(roots->at, &roots->capacity, roots->count, sizeof *roots->at);
    roots->at[roots->count++] = val;
}

static void add_block(Roots *roots, HostBlock *block)
{
    for (uint32_t i = 0; i < block->count; i++) {
        HostStmt *stmt = &block->at[i];
        add_root(roots, &stmt->value);
        add_root(roots, &stmt->limit);
        for (uint32_t j = 0; j < stmt->arg_count; j++)
            if (!stmt->args[j].is_var)
                add_root(roots, &stmt->args[j].value);
        add_block(roots, &stmt->body);
        add_block(roots, &stmt->other);
    }
}

Val **module_roots(Module *module, size_t *count)
{
    Roots roots = {0};
    for (uint32_t i = 0; i < module->entry_count; i++)
        for (uint32_t j = 0; j < module->entries[i].variant_count; j++) {
            Variant *variant = &module->entries[i].variants[j];
            for (uint32_t k = 0; k < variant->path_count; k++)
                add_root(&roots, &variant->path[k].cond);
            for (uint32_t k = 0; k < variant->output_count; k++)
                add_root(&roots, &variant->outputs[k].val);
            for (uint32_t k = 0; k < variant->tap_count; k++)
                add_root(&roots, &variant->taps[k].val);
        }
    for (uint32_t i = 0; i < module->sampler_count; i++)
        add_block(&roots, &module->samplers[i].body);
    *count = roots.count;
    return roots.at;
}

// ---- the new graph ----

typedef struct {
    const Graph *from;
    Graph *to;
    bool *needed; // [node of from]
    NodeId *made; // [node of from]: its number in `to`, 0 = not yet
    NodeId *stack;
    size_t stack_count, stack_capacity;
} Compact;

static SegId copy_segments(Compact *compact, SegId seg)
{
    return seg ? graph_add_segments(compact->to, graph_segments(compact->from, seg)) : 0;
}

// Makes one node whose operands are there.
static NodeId copy_node(Compact *compact, NodeId id)
{
    const Node *node = graph_node(compact->from, id);
    Attr attr = *node->attr;
    if (node->op == OP_TABLE) {
        size_t size;
        const void *data = graph_blob(compact->from, (uint32_t)attr.n[0], &size);
        attr.n[0] = graph_add_blob(compact->to, data, size);
    }
    if (node->op == OP_CONCAT)
        attr.n[1] = copy_segments(compact, (SegId)attr.n[1]);
    Type types[MAX_OUT];
    for (uint32_t i = 0; i < node->nout; i++) {
        types[i] = *node->type[i];
        types[i].seg = copy_segments(compact, types[i].seg);
    }
    Val *in = malloc((node->nin + 1) * sizeof *in);
    if (!in)
        bug("no memory for %u operands", node->nin);
    for (uint32_t i = 0; i < node->nin; i++)
        in[i] = val_of(compact->made[val_node(node->in[i])], val_out(node->in[i]));
    graph_at(compact->to, *graph_origin(compact->from, id));
    Val made = graph_make(compact->to, node->op, in, node->nin, &attr, types);
    free(in);
    if (!made)
        bug("compaction of %s: %s", op_info[node->op].name, graph_error(compact->to));
    return val_node(made);
}

static void push(Compact *compact, NodeId id)
{
    compact->stack = grow_array(compact->stack, &compact->stack_capacity, compact->stack_count,
                                sizeof *compact->stack);
    compact->stack[compact->stack_count++] = id;
}

// Makes a node after everything that it depends on.
static void emit(Compact *compact, NodeId id)
{
    push(compact, id);
    while (compact->stack_count) {
        NodeId top = compact->stack[compact->stack_count - 1];
        const Node *node = graph_node(compact->from, top);
        bool ready = true;
        for (uint32_t i = node->nin; i-- > 0 && !compact->made[top];)
            if (!compact->made[val_node(node->in[i])]) {
                push(compact, val_node(node->in[i]));
                ready = false;
            }
        if (!ready)
            continue;
        compact->stack_count--;
        if (!compact->made[top])
            compact->made[top] = copy_node(compact, top);
    }
}

void compact_module(Module *module, const Val *order, size_t count)
{
    size_t nodes = graph_count(module->graph), root_count;
    Val **roots = module_roots(module, &root_count);
    Compact compact = {
        .from = module->graph,
        .to = graph_new(module->arena),
        .needed = calloc(nodes, sizeof(bool)),
        .made = calloc(nodes, sizeof(NodeId)),
    };
    if (!compact.needed || !compact.made)
        bug("no memory for %zu nodes", nodes);
    for (size_t i = 0; i < root_count; i++)
        compact.needed[val_node(*roots[i])] = true;
    for (NodeId id = (NodeId)nodes - 1; id > 0; id--)
        for (uint32_t i = 0; compact.needed[id] && i < graph_node(compact.from, id)->nin; i++)
            compact.needed[val_node(graph_node(compact.from, id)->in[i])] = true;
    for (size_t i = 0; i < count; i++)
        if (order[i] && compact.needed[val_node(order[i])])
            emit(&compact, val_node(order[i]));
    for (size_t i = 0; i < root_count; i++) {
        emit(&compact, val_node(*roots[i]));
        *roots[i] = val_of(compact.made[val_node(*roots[i])], val_out(*roots[i]));
    }
    module->graph = compact.to;
    free(compact.needed);
    free(compact.made);
    free(compact.stack);
    free(roots);
}
