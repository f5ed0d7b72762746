// Partial evaluation of the steps of samplers.
//
// A sampler calls an entry in a loop, again and again with the same weights and, clip after clip,
// with the same numbers of the step. What follows from weights, constants and such numbers alone
// (the embedding of the time of a denoising step, and its projection in every block; a slice or a
// sum of weights) is taken out of the entry's plan and becomes a plan of its own, whose results are
// one row of a table. The runtime runs that plan once for the numbers that it has not seen, keeps
// the row, and gives it to the step as one more input, behind the inputs and outputs of the entry.
//
// Which values: those that depend on no tensor that is given or drawn, and do not grow with the
// batch (narrow.c has seen to that); and of these, the ones that the rest reads. Views of such a
// value, and 1 + it, stay in the step: the first cost nothing, the second is what norms with a
// scale take in themselves. A value that nothing computes (a parameter, a table) stays as it is,
// but for a slice of weights that lie apart: as a row it is dense.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { ROW_ALIGN = 16 }; // elements

typedef struct {
    Work *work;
    Graph *graph;
    uint32_t total; // nodes of the graph as it was
    bool *needed;   // by node
    bool *fixed;    // by node: depends on weights, constants and step values alone
    bool *computes; // by node: fixed, and something is computed
    Val *map;       // by val: what it becomes in the step
    Output *rows;   // values of the table
    uint32_t row_count;
    size_t row_capacity;
    int64_t *offset; // of each, in elements
    size_t offset_capacity;
    int64_t length; // of the row, in elements
} Split;

// ---- where samplers call ----

static void mark_calls(const HostBlock *block, bool loop, bool *called)
{
    for (uint32_t i = 0; i < block->count; i++) {
        const HostStmt *stmt = &block->at[i];
        if (stmt->kind == HOST_CALL && loop)
            called[stmt->entry] = true;
        mark_calls(&stmt->body, loop || stmt->kind == HOST_FOR, called);
        mark_calls(&stmt->other, loop, called);
    }
}

bool *entries_in_loops(Arena *arena, const Module *module)
{
    bool *called = arena_alloc(arena, module->entry_count + 1);
    for (uint32_t i = 0; i < module->sampler_count; i++)
        mark_calls(&module->samplers[i].body, false, called);
    return called;
}

// ---- what is fixed ----

static bool is_step_node(const Split *split, NodeId id)
{
    const Node *node = graph_node(split->graph, id);
    return node->nout == 1 && node->type[0]->rank == 0 &&
           graph_is_step(split->graph, val_of(id, 0));
}

static void mark_needed(Split *split)
{
    const Variant *variant = split->work->variant;
    for (uint32_t i = 0; i < variant->output_count; i++)
        split->needed[val_node(variant->outputs[i].val)] = true;
    for (NodeId id = split->total - 1; id > 0; id--) {
        const Node *node = graph_node(split->graph, id);
        for (uint32_t i = 0; split->needed[id] && !is_step_node(split, id) && i < node->nin; i++)
            split->needed[val_node(node->in[i])] = true;
    }
}

static bool grows(const Node *node)
{
    for (uint32_t k = 0; k < node->nout; k++)
        for (uint32_t i = 0; i < node->type[k]->rank; i++)
            if (node->type[k]->dim[i].batch)
                return true;
    return false;
}

// A movement that a reader sees through.
static bool is_view(Op op)
{
    return op == OP_RESHAPE || op == OP_TRANSPOSE || op == OP_EXPAND || op == OP_SLICE;
}

// A slice whose elements lie in several places: readers would have it copied, step by step.
static bool scatters(const Split *split, const Node *node)
{
    const Type *from = val_type(split->graph, node->in[0]);
    int64_t before = 1;
    for (int64_t i = 0; node->op == OP_SLICE && i < node->attr->n[0]; i++)
        before *= from->dim[i].n;
    return before > 1;
}

static void mark_fixed(Split *split)
{
    for (NodeId id = 1; id < split->total; id++) {
        if (!split->needed[id])
            continue;
        const Node *node = graph_node(split->graph, id);
        bool step = is_step_node(split, id);
        bool given = node->op == OP_INPUT || node->op == OP_RANDOM ||
                     node->op == OP_LOSS_SCALE;
        bool fixed = step || (!given && (node->op == OP_CONST || !grows(node))), computes = false;
        for (uint32_t i = 0; !step && i < node->nin; i++) {
            fixed &= split->fixed[val_node(node->in[i])];
            computes |= split->computes[val_node(node->in[i])];
        }
        split->fixed[id] = fixed;
        bool source = op_info[node->op].class == CLASS_SOURCE;
        split->computes[id] =
            fixed && !step && !source && (computes || !is_view(node->op) || scatters(split, node));
    }
}

// ---- the row ----

static Val remake(Split *split, NodeId id, const Val *in)
{
    const Node *node = graph_node(split->graph, id);
    graph_at(split->graph, *graph_origin(split->graph, id));
    Val made = graph_remake(split->graph, node, in);
    if (!made)
        bug("a step without its table: %s", graph_error(split->graph));
    return made;
}

// Each plan has an input of its own, so that what reads it is made anew: the order of nodes, from
// which the schedule starts, then is that of the plan as it was.
static Val row_input(Split *split, uint32_t index)
{
    Attr attr = {.n = {split->work->entry_index, index}, .count = 2};
    attr.text = intern(arena_printf(split->work->arena, "row %u", split->total));
    Dim dim = dim_fixed(split->length);
    Type type = type_make(split->work->module->real, 1, &dim);
    return graph_make(split->graph, OP_INPUT, NULL, 0, &attr, &type);
}

// Room in the row for a value.
static void add_row(Split *split, Val val)
{
    Dim count;
    for (uint32_t i = 0; i < split->row_count; i++)
        if (split->rows[i].val == val)
            return;
    if (!type_count(val_type(split->graph, val), &count) || count.batch)
        bug("a row of a table grows with the batch");
    split->rows =
        grow_array(split->rows, &split->row_capacity, split->row_count, sizeof *split->rows);
    split->offset =
        grow_array(split->offset, &split->offset_capacity, split->row_count, sizeof *split->offset);
    split->rows[split->row_count] = (Output){OUT_NAMED, intern("row"), 0, val};
    split->offset[split->row_count++] = split->length;
    split->length += (count.n + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
}

// The operand of `1 + x`, and of views: what the row holds instead; 0: the value itself.
static Val beneath(const Split *split, Val val)
{
    const Node *node = val_get(split->graph, val);
    if (is_view(node->op))
        return node->in[0];
    for (uint32_t i = 0; node->op == OP_ADD && i < 2; i++) {
        const Node *other = val_get(split->graph, node->in[1 - i]);
        if (other->op == OP_CONST && other->type[0]->rank == 0)
            return node->in[i];
    }
    return 0;
}

// Finds the values of the row: down from each fixed value that the rest reads. *good: all are
// reals and results of nodes with one result.
static void collect_rows(Split *split, Val val, bool *good)
{
    if (!split->computes[val_node(val)])
        return;
    Val under = beneath(split, val);
    if (under && split->computes[val_node(under)]) {
        collect_rows(split, under, good);
        return;
    }
    const Node *node = val_get(split->graph, val);
    *good &= node->nout == 1 && node->type[0]->dtype == split->work->module->real;
    add_row(split, val);
}

static bool find_rows(Split *split)
{
    bool good = true;
    for (NodeId id = 1; id < split->total; id++) {
        const Node *node = graph_node(split->graph, id);
        if (!split->needed[id] || split->fixed[id])
            continue;
        for (uint32_t i = 0; i < node->nin; i++)
            collect_rows(split, node->in[i], &good);
    }
    return good && split->row_count > 0;
}

// A fixed value as the step sees it.
static Val in_step(Split *split, Val val, Val row)
{
    if (!split->computes[val_node(val)])
        return val;
    if (split->map[val])
        return split->map[val];
    const Node *node = val_get(split->graph, val);
    Val made = 0, under = beneath(split, val);
    for (uint32_t i = 0; i < split->row_count; i++)
        if (split->rows[i].val == val) {
            Dim count;
            type_count(node->type[0], &count);
            graph_at(split->graph, *graph_origin(split->graph, val_node(val)));
            made = g_slice(split->graph, row, 0, split->offset[i], count.n);
            made = g_reshape(split->graph, made, node->type[0]->rank, node->type[0]->dim);
        }
    if (!made && under) {
        Val in[2] = {node->in[0], node->nin > 1 ? node->in[1] : 0};
        in[in[0] != under] = in_step(split, under, row);
        made = remake(split, val_node(val), in);
    }
    if (!made)
        bug("a fixed value is in no row");
    return split->map[val] = made;
}

// The variant with the row in place of what makes it.
static Variant *rest_of(Split *split, Val row)
{
    size_t capacity = 0;
    Val *in = NULL;
    for (NodeId id = 1; id < split->total; id++) {
        const Node *node = graph_node(split->graph, id);
        if (!split->needed[id] || split->fixed[id])
            continue;
        in = grow_array(in, &capacity, node->nin, sizeof *in);
        for (uint32_t i = 0; i < node->nin; i++) {
            NodeId from = val_node(node->in[i]);
            in[i] = split->fixed[from] ? in_step(split, node->in[i], row) : split->map[node->in[i]];
        }
        Val made = remake(split, id, in);
        for (uint32_t k = 0; k < node->nout; k++)
            split->map[val_of(id, k)] = made + k;
    }
    free(in);
    Arena *arena = split->work->arena;
    Variant *rest = arena_copy(arena, split->work->variant, sizeof *rest);
    rest->outputs = arena_copy(arena, rest->outputs, rest->output_count * sizeof *rest->outputs);
    for (uint32_t i = 0; i < rest->output_count; i++) {
        Val *val = &rest->outputs[i].val;
        *val = split->fixed[val_node(*val)] ? *val : split->map[*val];
    }
    return rest;
}

static void make_table(Split *split, Work *table, uint32_t row_index)
{
    Work *work = split->work;
    Arena *arena = work->arena;
    *table = (Work){.module = work->module,
                    .entry = work->entry,
                    .level = work->level,
                    .entry_index = work->entry_index,
                    .rungs = work->rungs,
                    .row_input = row_index,
                    .arena = arena_new()};
    table->variant = arena_alloc(arena, sizeof *table->variant);
    table->variant->outputs =
        arena_copy(arena, split->rows, split->row_count * sizeof *split->rows);
    table->variant->output_count = split->row_count;
    table->row_offset = arena_alloc(arena, split->row_count * sizeof *table->row_offset);
    for (uint32_t i = 0; i < split->row_count; i++)
        table->row_offset[i] =
            split->offset[i] * (int64_t)element_size(work->module, work->module->real);
}

Work *split_table(Work *work, uint32_t row_index)
{
    Graph *graph = work->module->graph;
    uint32_t total = graph_count(graph);
    Arena *scratch = arena_new();
    Split split = {.work = work, .graph = graph, .total = total};
    split.needed = arena_alloc(scratch, total);
    split.fixed = arena_alloc(scratch, total);
    split.computes = arena_alloc(scratch, total);
    split.map = arena_alloc(scratch, (size_t)total * MAX_OUT * sizeof *split.map);
    bool named = true;
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        named &= work->variant->outputs[i].kind == OUT_NAMED;
    Work *table = NULL;
    mark_needed(&split);
    mark_fixed(&split);
    if (named && find_rows(&split)) {
        table = arena_alloc(work->arena, sizeof *table);
        make_table(&split, table, row_index);
        work->variant = rest_of(&split, row_input(&split, row_index));
        work->row_bytes = split.length * (int64_t)element_size(work->module, work->module->real);
        work->table = table;
    }
    free(split.rows);
    free(split.offset);
    arena_free(scratch);
    return table;
}
