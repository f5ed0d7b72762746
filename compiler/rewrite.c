// A plan's own version of the graph, written node by node.
//
// The graph is the same for all plans, and nodes never change. So a pass that says something else
// in one plan walks the nodes that the plan needs, upwards, notes for each value what it has become
// (`map`), and in the end gives the plan outputs of its own; other plans keep theirs. New nodes
// have large numbers: `turn` keeps the places of what they stand for in the order of the model,
// from which the schedule starts.
#include <stdlib.h>

#include "compiler/plan.h"

void rewrite_begin(Rewrite *own, Work *work, Arena *arena)
{
    *own = (Rewrite){.work = work, .graph = work->module->graph};
    own->total = graph_count(own->graph);
    own->needed = arena_alloc(arena, own->total);
    const Variant *variant = work->variant;
    for (uint32_t i = 0; i < variant->output_count; i++)
        own->needed[val_node(variant->outputs[i].val)] = true;
    for (NodeId id = own->total; id-- > 1;) {
        const Node *node = graph_node(own->graph, id);
        for (uint32_t i = 0; own->needed[id] && i < node->nin; i++)
            own->needed[val_node(node->in[i])] = true;
    }
}

void rewrite_start(Rewrite *own, Arena *arena)
{
    own->map = arena_alloc(arena, (size_t)own->total * MAX_OUT * sizeof *own->map);
}

void rewrite_turn(Rewrite *own, Val made, NodeId from)
{
    const Work *work = own->work;
    NodeId id = val_node(made);
    while (own->turn_count <= id || own->turn_count < work->turn_count) {
        own->turn = grow_array(own->turn, &own->turn_capacity, own->turn_count, sizeof *own->turn);
        own->turn[own->turn_count] =
            own->turn_count < work->turn_count ? work->turn[own->turn_count] : 0;
        own->turn_count++;
    }
    if ((id >= own->total || !own->needed[id]) && !own->turn[id])
        own->turn[id] = from < work->turn_count && work->turn[from] ? work->turn[from] : from;
}

Val rewrite_operands(Rewrite *own, NodeId id)
{
    const Node *node = graph_node(own->graph, id);
    bool changed = false;
    own->in = grow_array(own->in, &own->in_capacity, node->nin, sizeof *own->in);
    for (uint32_t i = 0; i < node->nin; i++) {
        own->in[i] = own->map[node->in[i]];
        changed |= own->in[i] != node->in[i];
    }
    if (!changed)
        return val_of(id, 0);
    Type types[MAX_OUT];
    for (uint32_t i = 0; i < node->nout; i++)
        types[i] = *node->type[i];
    return graph_make(own->graph, node->op, own->in, node->nin, node->attr, types);
}

void rewrite_end(Rewrite *own)
{
    Work *work = own->work;
    Variant *variant = arena_copy(work->arena, work->variant, sizeof *variant);
    variant->outputs =
        arena_copy(work->arena, variant->outputs, variant->output_count * sizeof *variant->outputs);
    for (uint32_t i = 0; i < variant->output_count; i++)
        variant->outputs[i].val = own->map[variant->outputs[i].val];
    work->variant = variant;
    if (own->turn_count > 0) {
        work->turn = arena_copy(work->arena, own->turn, own->turn_count * sizeof *own->turn);
        work->turn_count = own->turn_count;
    }
}

void rewrite_free(Rewrite *own)
{
    free(own->turn);
    free(own->in);
}
