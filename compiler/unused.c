// Warns of parameters that nothing reaches: their fields are in checkpoints, and no program, no
// loss and no sampler reads them. Most often a field was meant to be called and is not.
//
// Operands have smaller numbers than the nodes that use them, so one walk from the last node to
// the first marks all that the outputs need. Buffers are left out: a pass in training mode moves
// them without reading.
#include <stdlib.h>

#include "compiler/program.h"

// reached[i]: some output of some variant needs parameter i. [param_count], malloc'ed.
static bool *find_reached(const Module *module)
{
    uint32_t nodes = graph_count(module->graph);
    bool *needed = calloc(nodes, sizeof *needed);
    bool *reached = calloc(module->param_count + 1u, sizeof *reached);
    if (!needed || !reached)
        bug("no memory for %u nodes", nodes);
    for (uint32_t i = 0; i < module->entry_count; i++) {
        const Entry *entry = &module->entries[i];
        for (uint32_t j = 0; j < entry->variant_count; j++)
            for (uint32_t k = 0; k < entry->variants[j].output_count; k++)
                if (entry->variants[j].outputs[k].val)
                    needed[val_node(entry->variants[j].outputs[k].val)] = true;
    }
    for (uint32_t id = nodes; id-- > 1;) {
        if (!needed[id])
            continue;
        const Node *node = graph_node(module->graph, id);
        if (node->op == OP_PARAM)
            reached[node->attr->n[0]] = true;
        for (uint32_t i = 0; i < node->nin; i++)
            needed[val_node(node->in[i])] = true;
    }
    free(needed);
    return reached;
}

static bool same_place(Span x, Span y)
{
    return x.file == y.file && x.begin == y.begin && x.end == y.end;
}

// One warning for all parameters of an instance that one place of the text makes.
static void warn_place(const Module *module, const bool *reached, uint32_t first, uint32_t limit)
{
    const Param *param = &module->params[first];
    uint32_t more = 0;
    for (uint32_t i = first + 1; i < limit; i++)
        more += !reached[i] && !module->params[i].buffer &&
                same_place(module->params[i].span, param->span);
    if (more > 0)
        diag_warning(param->span, "nothing uses '%s', nor %u more of this place", param->name,
                     more);
    else
        diag_warning(param->span, "nothing uses '%s'", param->name);
}

void warn_unused(const Module *module)
{
    bool *reached = find_reached(module);
    for (uint32_t i = 0; i < module->instance_count; i++) {
        const Instance *instance = &module->instances[i];
        uint32_t limit = instance->first + instance->count, used = 0;
        for (uint32_t j = instance->first; j < limit; j++)
            used += reached[j];
        if (used == 0 && instance->count > 0) {
            diag_warning(instance->span, "nothing uses model '%s'", instance->name);
            continue;
        }
        for (uint32_t j = instance->first; j < limit; j++) {
            bool told = reached[j] || module->params[j].buffer;
            for (uint32_t k = instance->first; k < j && !told; k++)
                told = !reached[k] && !module->params[k].buffer &&
                       same_place(module->params[k].span, module->params[j].span);
            if (!told)
                warn_place(module, reached, j, limit);
        }
    }
    free(reached);
}
