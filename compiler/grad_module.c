// Gradients of a module: which parameters and inputs each loss is differentiated by, and the
// outputs that its entries get.
//
// ENTRY_GRAD: every parameter (buffers excepted) and every real input that the loss reaches.
// ENTRY_MINIMIZE: the parameters of the instances that move. Outputs are appended in the order of
// the parameters, then of the inputs, under the names "grad.<parameter>" and "grad.<input>".
//
// Where values are stored as f16, whose least number is 6e-8, all these gradients are of the loss
// times a scale that the runtime chooses.
#include <stdlib.h>
#include <string.h>

#include "compiler/program.h"

// Params and inputs that one loss is differentiated by.
typedef struct {
    Val *val;
    OutKind *kind;
    uint32_t *index; // of the parameter or input
    uint32_t count;
} Wanted;

static const Minimize *find_minimize(const Module *module, uint32_t entry)
{
    for (uint32_t i = 0; i < module->stage_count; i++)
        for (uint32_t j = 0; j < module->stages[i].minimize_count; j++)
            if (module->stages[i].minimize[j].entry == entry)
                return &module->stages[i].minimize[j];
    bug("entry %s is no minimize of any stage", module->entries[entry].name);
}

// Whether the entry moves this parameter: any of a program, those of the moving instances.
static bool moves(const Module *module, const Minimize *minimize, uint32_t param)
{
    const Param *at = &module->params[param];
    if (at->buffer || !dtype_is_float(at->type.dtype))
        return false;
    for (uint32_t i = 0; minimize && i < minimize->instance_count; i++)
        if (minimize->instances[i] == at->instance)
            return true;
    return !minimize;
}

// The nodes of the loss that are differentiated by; parameters in their order, then inputs.
static Wanted collect_wanted(const Module *module, const Minimize *minimize, const Entry *entry,
                             Val loss)
{
    Graph *graph = module->graph;
    uint32_t most = module->param_count + entry->input_count;
    Wanted wanted = {
        arena_alloc(module->arena, most * sizeof(Val)),
        arena_alloc(module->arena, most * sizeof(OutKind)),
        arena_alloc(module->arena, most * sizeof(uint32_t)),
        0,
    };
    Val *slot = calloc((size_t)most + 1, sizeof *slot);
    bool *reached = calloc((size_t)val_node(loss) + 1, sizeof *reached);
    if (!slot || !reached)
        bug("no memory for %u nodes", val_node(loss));
    reached[val_node(loss)] = true;
    for (NodeId id = val_node(loss); id > 0; id--) {
        if (!reached[id])
            continue;
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; i < node->nin; i++)
            reached[val_node(node->in[i])] = true;
        if (node->op == OP_PARAM && moves(module, minimize, (uint32_t)node->attr->n[0]))
            slot[node->attr->n[0]] = val_of(id, 0);
        if (node->op == OP_INPUT && !minimize && dtype_is_float(node->type[0]->dtype))
            slot[module->param_count + node->attr->n[1]] = val_of(id, 0);
    }
    for (uint32_t i = 0; i < most; i++) {
        if (!slot[i])
            continue;
        bool param = i < module->param_count;
        wanted.val[wanted.count] = slot[i];
        wanted.kind[wanted.count] = param ? OUT_GRAD : OUT_GRAD_INPUT;
        wanted.index[wanted.count++] = param ? i : i - module->param_count;
    }
    free(slot);
    free(reached);
    return wanted;
}

static void grad_variant(Module *module, const Minimize *minimize, const Entry *entry,
                         Variant *variant)
{
    Val loss = 0;
    for (uint32_t i = 0; i < variant->output_count && !loss; i++)
        if (variant->outputs[i].kind == OUT_NAMED)
            loss = variant->outputs[i].val;
    if (!loss)
        bug("entry %s has no loss", entry->name);
    Wanted wanted = collect_wanted(module, minimize, entry, loss);
    Val *out = arena_alloc(module->arena, (wanted.count + 1) * sizeof *out);
    Val seed = 0;
    if (module->storage == DT_F16) { // the host divides
        Type scalar = type_scalar(val_type(module->graph, loss)->dtype);
        seed = graph_make(module->graph, OP_LOSS_SCALE, NULL, 0, NULL, &scalar);
    }
    grad_build(module->graph, loss, seed, wanted.val, wanted.count, out);
    Output *outputs =
        arena_alloc(module->arena, (variant->output_count + wanted.count) * sizeof *outputs);
    memcpy(outputs, variant->outputs, variant->output_count * sizeof *outputs);
    uint32_t count = variant->output_count;
    for (uint32_t i = 0; i < wanted.count; i++) {
        if (!out[i])
            continue;
        const char *of = wanted.kind[i] == OUT_GRAD ? module->params[wanted.index[i]].name
                                                    : entry->inputs[wanted.index[i]].name;
        const char *name = intern(arena_printf(module->arena, "grad.%s", of));
        outputs[count++] = (Output){wanted.kind[i], name, wanted.index[i], out[i]};
    }
    variant->outputs = outputs;
    variant->output_count = count;
}

void grad_module(Module *module)
{
    for (uint32_t i = 0; i < module->entry_count; i++) {
        Entry *entry = &module->entries[i];
        if (entry->kind != ENTRY_GRAD && entry->kind != ENTRY_MINIMIZE)
            continue;
        const Minimize *minimize = entry->kind == ENTRY_MINIMIZE ? find_minimize(module, i) : NULL;
        for (uint32_t j = 0; j < entry->variant_count; j++)
            grad_variant(module, minimize, entry, &entry->variants[j]);
    }
}
