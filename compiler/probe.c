// Two entries that measure the machine: elements copied through a negation, and a matrix product.
// They are ordinary programs, so that every target runs and times them as it does a model's; the
// batch is their size.
#include "compiler/program.h"

enum { COPY_WIDTH = 1 << 18, PRODUCT_ROWS = 256, PRODUCT_SIZE = 2048 };

static Val probe_input(Module *module, uint32_t index, const Type *type)
{
    Attr attr = {.n = {module->entry_count, index}, .count = 2};
    attr.text = module->entries[module->entry_count].inputs[index].name;
    return graph_make(module->graph, OP_INPUT, NULL, 0, &attr, type);
}

// A new entry with these inputs; the caller sets its result.
static Entry *add_entry(Module *module, const char *name, const Type *types, uint32_t count)
{
    Entry *entries = arena_alloc(module->arena, (module->entry_count + 1) * sizeof *entries);
    for (uint32_t i = 0; i < module->entry_count; i++)
        entries[i] = module->entries[i];
    module->entries = entries;
    Entry *entry = &entries[module->entry_count];
    entry->kind = ENTRY_PROBE;
    entry->name = intern(name);
    entry->inputs = arena_alloc(module->arena, count * sizeof *entry->inputs);
    entry->input_count = count;
    for (uint32_t i = 0; i < count; i++) {
        entry->inputs[i].name = intern(i ? "y" : "x");
        entry->inputs[i].type = types[i];
    }
    entry->variants = arena_alloc(module->arena, sizeof *entry->variants);
    entry->variant_count = 1;
    return entry;
}

static void finish_entry(Module *module, Entry *entry, Val result)
{
    Variant *variant = entry->variants;
    variant->outputs = arena_alloc(module->arena, sizeof *variant->outputs);
    variant->outputs[0] = (Output){.kind = OUT_NAMED, .name = intern("z"), .val = result};
    variant->output_count = 1;
    module->entry_count++;
}

void add_probes(Module *module)
{
    Graph *graph = module->graph;
    graph_at(graph, (Origin){.path = NULL});
    Type wide = type_make(module->real, 2, (Dim[]){{1, true}, {COPY_WIDTH, false}});
    Entry *copy = add_entry(module, "probe.copy", &wide, 1);
    finish_entry(module, copy, g_unary(graph, OP_NEG, probe_input(module, 0, &wide)));
    Type sides[2] = {
        type_make(module->real, 2, (Dim[]){{PRODUCT_ROWS, true}, {PRODUCT_SIZE, false}}),
        type_make(module->real, 2, (Dim[]){{PRODUCT_SIZE, false}, {PRODUCT_SIZE, false}})};
    Entry *product = add_entry(module, "probe.product", sides, 2);
    Val x = probe_input(module, 0, &sides[0]), y = probe_input(module, 1, &sides[1]);
    finish_entry(module, product, g_contract(graph, x, y, "ik", "kj", "ij"));
}
