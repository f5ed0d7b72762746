// The verifier: every invariant of graphs and modules, checked after each pass of debug and test
// builds. What it finds is a bug of the compiler, so it aborts and names the node.
//
// Nodes: operands come before, exist, and the type rule gives the very types the node has.
// Modules: decisions are step values and form a tree, outputs fit what they are stored in, inputs
// and parameters have the declared types, host programs name variables and entries that exist.
#include <string.h>

#include "compiler/program.h"

static void verify_node(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    const char *name = op_info[node->op].name;
    for (uint32_t i = 0; i < node->nin; i++) {
        NodeId from = val_node(node->in[i]);
        if (from == 0 || from >= id)
            bug("node %u (%s): operand %u is node %u", id, name, i, from);
        if (val_out(node->in[i]) >= graph_node(graph, from)->nout)
            bug("node %u (%s): operand %u is no output of node %u", id, name, i, from);
    }
    // The rule writes nothing but the error text of a graph.
    Type out[MAX_OUT];
    uint32_t nout =
        type_infer((Graph *)graph, node->op, node->in, node->nin, node->attr, node->type[0], out);
    if (nout == 0)
        bug("node %u (%s): %s", id, name, graph_error(graph));
    if (nout != node->nout)
        bug("node %u (%s): %u outputs, not %u", id, name, node->nout, nout);
    for (uint32_t i = 0; i < nout; i++)
        if (!type_equal(&out[i], node->type[i]))
            bug("node %u (%s): output %u is %s, not %s", id, name, i, type_text(node->type[i]),
                type_text(&out[i]));
}

void graph_verify(const Graph *graph)
{
    for (NodeId id = 1; id < graph_count(graph); id++)
        verify_node(graph, id);
}

// ---- modules ----

static void verify_val(const Module *module, Val val, const char *what, const char *name)
{
    if (val_node(val) == 0 || val_node(val) >= graph_count(module->graph) ||
        val_out(val) >= val_get(module->graph, val)->nout)
        bug("%s '%s': there is no value %u", what, name ? name : "", val);
}

static void verify_step(const Module *module, Val val, const char *what, const char *name)
{
    verify_val(module, val, what, name);
    if (!graph_is_step(module->graph, val))
        bug("%s '%s': value %u is not known when a step starts", what, name ? name : "", val);
}

static void same_shape(const Module *module, const Output *output, const Type *want)
{
    const Type *type = val_type(module->graph, output->val);
    if (type->dtype != want->dtype || !shape_equal(type, want))
        bug("output '%s' is %s, and what it is for is %s", output->name ? output->name : "",
            type_text(type), type_text(want));
}

static void verify_output(const Module *module, const Entry *entry, const Output *output)
{
    verify_val(module, output->val, "output", output->name);
    switch (output->kind) {
    case OUT_NAMED:
        break;
    case OUT_GRAD:
    case OUT_STATE:
        if (output->param >= module->param_count)
            bug("output for parameter %u of %u", output->param, module->param_count);
        if (module->params[output->param].buffer != (output->kind == OUT_STATE))
            bug("an output of the wrong kind for '%s'", module->params[output->param].name);
        same_shape(module, output, &module->params[output->param].type);
        break;
    case OUT_GRAD_INPUT:
        if (output->param >= entry->input_count)
            bug("entry '%s' has no input %u", entry->name, output->param);
        same_shape(module, output, &entry->inputs[output->param].type);
        break;
    case OUT_REPORT:
        if (val_type(module->graph, output->val)->rank)
            bug("report '%s' is not one number", output->name);
        break;
    case OUT_SETTING:
        verify_step(module, output->val, "setting", output->name);
        break;
    }
}

static void verify_variant(const Module *module, const Entry *entry, const Variant *variant)
{
    for (uint32_t i = 0; i < variant->path_count; i++) {
        verify_step(module, variant->path[i].cond, "decision of", entry->name);
        const Type *type = val_type(module->graph, variant->path[i].cond);
        if (type->dtype != DT_BOOL || type->rank)
            bug("a decision of '%s' on a %s", entry->name, type_text(type));
    }
    for (uint32_t i = 0; i < variant->output_count; i++)
        verify_output(module, entry, &variant->outputs[i]);
    for (uint32_t i = 0; i < variant->tap_count; i++)
        verify_val(module, variant->taps[i].val, "tap", variant->taps[i].name);
}

// Two variants of an entry differ first in the outcome of one question.
static void verify_tree(const Entry *entry, const Variant *x, const Variant *y)
{
    for (uint32_t i = 0; i < x->path_count && i < y->path_count; i++) {
        if (x->path[i].cond != y->path[i].cond)
            bug("variants of '%s' ask different questions", entry->name);
        if (x->path[i].outcome != y->path[i].outcome)
            return;
    }
    bug("two variants of '%s' answer the same questions alike", entry->name);
}

// All variants give the same named outputs with the same shapes.
static void verify_results(const Module *module, const Entry *entry, const Variant *x,
                           const Variant *y)
{
    uint32_t j = 0;
    for (uint32_t i = 0; i < x->output_count; i++) {
        if (x->outputs[i].kind != OUT_NAMED)
            continue;
        while (j < y->output_count && y->outputs[j].kind != OUT_NAMED)
            j++;
        if (j == y->output_count || strcmp(x->outputs[i].name, y->outputs[j].name) != 0)
            bug("variants of '%s' have different results", entry->name);
        same_shape(module, &x->outputs[i], val_type(module->graph, y->outputs[j++].val));
    }
}

static void verify_entry(const Module *module, const Entry *entry)
{
    if (entry->variant_count == 0)
        bug("entry '%s' has no variant", entry->name);
    if (entry->kind == ENTRY_GRAD && (entry->program >= module->entry_count ||
                                      module->entries[entry->program].kind != ENTRY_PROGRAM))
        bug("entry '%s' is the gradient of no program", entry->name);
    for (uint32_t i = 0; i < entry->variant_count; i++) {
        verify_variant(module, entry, &entry->variants[i]);
        for (uint32_t j = 0; j < i; j++)
            verify_tree(entry, &entry->variants[j], &entry->variants[i]);
        if (i)
            verify_results(module, entry, &entry->variants[0], &entry->variants[i]);
    }
}

// Sources name what the module declares.
static void verify_source(const Module *module, NodeId id)
{
    const Node *node = graph_node(module->graph, id);
    const int64_t *n = node->attr->n;
    if (node->op == OP_PARAM) {
        if (n[0] < 0 || n[0] >= module->param_count)
            bug("node %u: there is no parameter %lld", id, (long long)n[0]);
        const Type *type = &module->params[n[0]].type;
        if (type->dtype != node->type[0]->dtype || !shape_equal(type, node->type[0]))
            bug("node %u: parameter '%s' is %s, not %s", id, module->params[n[0]].name,
                type_text(type), type_text(node->type[0]));
    }
    if (node->op == OP_OPTION && (n[0] < 0 || n[0] >= module->option_count || n[1] < 0 ||
                                  n[1] >= module->options[n[0]].count))
        bug("node %u: there is no option %lld, element %lld", id, (long long)n[0], (long long)n[1]);
    if (node->op == OP_INPUT || node->op == OP_GIVEN) {
        if (n[0] < 0 || n[0] >= module->entry_count || n[1] < 0 ||
            n[1] >= module->entries[n[0]].input_count)
            bug("node %u: there is no input %lld of entry %lld", id, (long long)n[1],
                (long long)n[0]);
        const Input *input = &module->entries[n[0]].inputs[n[1]];
        if (node->op == OP_INPUT && (input->type.dtype != node->type[0]->dtype ||
                                     !shape_equal(&input->type, node->type[0])))
            bug("node %u: input '%s' is %s, not %s", id, input->name, type_text(&input->type),
                type_text(node->type[0]));
    }
}

// ---- host programs ----

static void verify_block(const Module *module, const Sampler *sampler, const HostBlock *block);

static void verify_var(const Sampler *sampler, uint32_t var)
{
    if (var >= sampler->var_count)
        bug("sample %s: there is no variable %u", sampler->name, var);
}

static void verify_call(const Module *module, const Sampler *sampler, const HostStmt *stmt)
{
    if (stmt->entry >= module->entry_count)
        bug("sample %s: there is no entry %u", sampler->name, stmt->entry);
    const Entry *entry = &module->entries[stmt->entry];
    if (stmt->arg_count != entry->input_count)
        bug("sample %s: %u arguments for '%s'", sampler->name, stmt->arg_count, entry->name);
    for (uint32_t i = 0; i < stmt->arg_count; i++)
        if (stmt->args[i].is_var)
            verify_var(sampler, stmt->args[i].index);
        else
            verify_step(module, stmt->args[i].value, "argument of", entry->name);
    for (uint32_t i = 0; i < stmt->result_count; i++)
        verify_var(sampler, stmt->results[i]);
}

static void verify_stmt(const Module *module, const Sampler *sampler, const HostStmt *stmt)
{
    switch (stmt->kind) {
    case HOST_SET:
        verify_var(sampler, stmt->var);
        verify_step(module, stmt->value, "variable", sampler->vars[stmt->var].name);
        break;
    case HOST_SET_NONE:
    case HOST_COPY:
    case HOST_RANDOM:
        verify_var(sampler, stmt->var);
        if (stmt->kind == HOST_COPY)
            verify_var(sampler, stmt->source);
        if (stmt->kind == HOST_RANDOM)
            verify_val(module, stmt->value, "draw of", sampler->name);
        break;
    case HOST_OPTION:
        verify_var(sampler, stmt->var);
        if (stmt->source >= module->option_count)
            bug("sample %s: there is no option %u", sampler->name, stmt->source);
        break;
    case HOST_CALL:
        verify_call(module, sampler, stmt);
        break;
    case HOST_FOR:
        verify_var(sampler, stmt->var);
        verify_step(module, stmt->value, "loop of", sampler->name);
        verify_step(module, stmt->limit, "loop of", sampler->name);
        verify_block(module, sampler, &stmt->body);
        break;
    case HOST_IF:
        if (stmt->value)
            verify_step(module, stmt->value, "question of", sampler->name);
        else
            verify_var(sampler, stmt->source);
        verify_block(module, sampler, &stmt->body);
        verify_block(module, sampler, &stmt->other);
        break;
    case HOST_YIELD:
    case HOST_REPORT:
        verify_var(sampler, stmt->source);
        break;
    }
}

static void verify_block(const Module *module, const Sampler *sampler, const HostBlock *block)
{
    for (uint32_t i = 0; i < block->count; i++)
        verify_stmt(module, sampler, &block->at[i]);
}

// ---- the whole ----

static void verify_stage(const Module *module, const Stage *stage)
{
    for (uint32_t i = 0; i < stage->minimize_count; i++) {
        const Minimize *minimize = &stage->minimize[i];
        if (minimize->entry >= module->entry_count ||
            module->entries[minimize->entry].kind != ENTRY_MINIMIZE)
            bug("stage %s: minimize %u has no entry", stage->name, i);
        if (minimize->replay != UINT32_MAX &&
            (minimize->replay >= module->entry_count ||
             module->entries[minimize->replay].kind != ENTRY_GRAD))
            bug("stage %s: minimize %u is replayed by no gradient", stage->name, i);
        for (uint32_t j = 0; j < minimize->instance_count; j++)
            if (minimize->instances[j] >= module->instance_count)
                bug("stage %s: there is no instance %u", stage->name, minimize->instances[j]);
    }
}

void verify_module(const Module *module)
{
    graph_verify(module->graph);
    for (NodeId id = 1; id < graph_count(module->graph); id++)
        verify_source(module, id);
    for (uint32_t i = 0; i < module->instance_count; i++) {
        const Instance *instance = &module->instances[i];
        if (instance->first + instance->count > module->param_count)
            bug("instance '%s' has parameters that do not exist", instance->name);
        for (uint32_t j = 0; j < instance->count; j++)
            if (module->params[instance->first + j].instance != i)
                bug("parameter '%s' is not of instance '%s'",
                    module->params[instance->first + j].name, instance->name);
    }
    for (uint32_t i = 0; i < module->entry_count; i++)
        verify_entry(module, &module->entries[i]);
    for (uint32_t i = 0; i < module->stage_count; i++)
        verify_stage(module, &module->stages[i]);
    for (uint32_t i = 0; i < module->sampler_count; i++)
        verify_block(module, &module->samplers[i], &module->samplers[i].body);
}
