// A plan's own version of the graph, written node by node.
//
// The graph is the same for all plans, and nodes never change. So a pass that says something else
// in one plan walks the nodes that the plan needs, upwards, notes for each value what it has become
// (`map`), and in the end gives the plan outputs of its own; other plans keep theirs. New nodes
// have large numbers: `turn` keeps the places of what they stand for in the order of the model,
// from which the schedule starts.
#include <stdlib.h>

#include "compiler/plan.h"

enum { TURN_BLOCK = 1024 };

bool node_is_step(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    return node->nout == 1 && node->type[0]->rank == 0 && graph_is_step(graph, val_of(id, 0));
}

// Operands have smaller numbers, so one walk downwards reaches everything.
NodeId *needed_nodes(const Graph *graph, Arena *arena, uint64_t *marks, bool beyond_steps,
                     uint32_t *count)
{
    uint32_t words = graph_count(graph) / 64 + 1, found = 0;
    for (uint32_t word = words; word-- > 0;)
        for (uint64_t rest = marks[word]; rest;) {
            uint32_t bit = 63 - (uint32_t)__builtin_clzll(rest);
            NodeId id = word * 64 + bit;
            found++;
            if (beyond_steps || !node_is_step(graph, id)) {
                const Node *node = graph_node(graph, id);
                for (uint32_t i = 0; i < node->nin; i++)
                    mark_node(marks, val_node(node->in[i]));
            }
            rest = marks[word] & ((UINT64_C(1) << bit) - 1);
        }
    NodeId *nodes = arena_alloc(arena, (found + 1) * sizeof *nodes);
    *count = 0;
    for (uint32_t word = 0; word < words; word++)
        for (uint64_t rest = marks[word]; rest; rest &= rest - 1)
            nodes[(*count)++] = word * 64 + (uint32_t)__builtin_ctzll(rest);
    return nodes;
}

void rewrite_begin(Rewrite *own, Work *work, Arena *arena)
{
    *own = (Rewrite){.work = work, .graph = work->module->graph};
    own->total = graph_count(own->graph);
    own->needed = arena_alloc(arena, (own->total / 64 + 1) * sizeof *own->needed);
    const Variant *variant = work->variant;
    for (uint32_t i = 0; i < variant->output_count; i++)
        mark_node(own->needed, val_node(variant->outputs[i].val));
    own->nodes = needed_nodes(own->graph, arena, own->needed, true, &own->count);
}

void rewrite_start(Rewrite *own, Arena *arena)
{
    own->map = arena_alloc(arena, (size_t)own->total * MAX_OUT * sizeof *own->map);
}

// Where the turn of a node stands.
static NodeId *turn_slot(Work *work, NodeId id)
{
    uint32_t block = id / TURN_BLOCK;
    if (block >= work->turn_blocks) {
        uint32_t blocks = 2 * block + 1;
        NodeId **turn = arena_alloc(work->arena, blocks * sizeof *turn);
        for (uint32_t i = 0; i < work->turn_blocks; i++)
            turn[i] = work->turn[i];
        work->turn = turn;
        work->turn_blocks = blocks;
    }
    if (!work->turn[block])
        work->turn[block] = arena_alloc(work->arena, TURN_BLOCK * sizeof(NodeId));
    return &work->turn[block][id % TURN_BLOCK];
}

NodeId turn_of_node(const Work *work, NodeId id)
{
    uint32_t block = id / TURN_BLOCK;
    NodeId turn = block < work->turn_blocks && work->turn[block]
                      ? work->turn[block][id % TURN_BLOCK]
                      : 0;
    return turn ? turn : id;
}

void rewrite_turn(Rewrite *own, Val made, NodeId from)
{
    NodeId id = val_node(made);
    if (id < own->total && rewrite_needs(own, id))
        return;
    NodeId *turn = turn_slot(own->work, id);
    if (!*turn)
        *turn = turn_of_node(own->work, from);
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
    return changed ? graph_remake(own->graph, node, own->in) : val_of(id, 0);
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
}

void rewrite_free(Rewrite *own)
{
    free(own->in);
}
