// Graphviz text of one entry (or of all): a cluster a variant, a box a node, an edge an operand.
//
// Constants and single numbers stand inside the boxes that use them, so that what remains on the
// page is the flow of tensors. Boxes are coloured by class and labelled with op, type and origin.
#include <stdlib.h>
#include <string.h>

#include "compiler/program.h"

static const char *class_color(OpClass class)
{
    switch (class) {
    case CLASS_SOURCE:
        return "#e8e8e8";
    case CLASS_ELEMENTWISE:
        return "#dff0d8";
    case CLASS_MOVEMENT:
        return "#fdf3d0";
    case CLASS_REDUCE:
        return "#fce0d0";
    case CLASS_CONTRACT:
        return "#cfe2f7";
    case CLASS_COMPOSITE:
        return "#e3d6f2";
    }
    bug("there is no class %d", (int)class);
}

static void put_quoted(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', out);
        fputc(*text, out);
    }
}

static void put_node(FILE *out, const Module *module, uint32_t cluster, NodeId id)
{
    const Node *node = graph_node(module->graph, id);
    fprintf(out, "    n%u_%u [fillcolor=\"%s\", label=\"%s", cluster, id,
            class_color(op_info[node->op].class), op_info[node->op].name);
    if (node->op == OP_PARAM)
        fprintf(out, " %s", module->params[node->attr->n[0]].name);
    if (node->attr->text) {
        fputc(' ', out);
        put_quoted(out, node->attr->text);
    }
    for (uint32_t i = 0; i < node->nin; i++) {
        const Node *from = val_get(module->graph, node->in[i]);
        if (from->op == OP_CONST)
            fprintf(out, " %g", from->attr->real);
    }
    fprintf(out, "\\n%s", type_text(node->type[0]));
    const Origin *origin = graph_origin(module->graph, id);
    if (origin->path) {
        fputs("\\n", out);
        put_quoted(out, origin->path);
    }
    fputs("\"];\n", out);
    for (uint32_t i = 0; i < node->nin; i++)
        if (val_get(module->graph, node->in[i])->op != OP_CONST)
            fprintf(out, "    n%u_%u -> n%u_%u;\n", cluster, val_node(node->in[i]), cluster, id);
}

static void put_variant(FILE *out, const Module *module, const Entry *entry, uint32_t index,
                        uint32_t cluster)
{
    const Graph *graph = module->graph;
    const Variant *variant = &entry->variants[index];
    bool *needed = calloc(graph_count(graph), sizeof *needed);
    if (!needed)
        bug("out of memory");
    for (uint32_t i = 0; i < variant->output_count; i++)
        needed[val_node(variant->outputs[i].val)] = true;
    fprintf(out, "  subgraph cluster_%u {\n    label=\"", cluster);
    put_quoted(out, entry->name);
    fprintf(out, " (variant %u)\";\n", index);
    for (NodeId id = graph_count(graph); id-- > 1;) {
        const Node *node = graph_node(graph, id);
        if (!needed[id] || node->op == OP_CONST)
            continue;
        for (uint32_t i = 0; i < node->nin; i++)
            needed[val_node(node->in[i])] = true;
        put_node(out, module, cluster, id);
    }
    for (uint32_t i = 0; i < variant->output_count; i++) {
        const Output *output = &variant->outputs[i];
        fprintf(out, "    o%u_%u [shape=ellipse, label=\"", cluster, i);
        put_quoted(out, output->name ? output->name : "");
        fprintf(out, "\"];\n    n%u_%u -> o%u_%u;\n", cluster, val_node(output->val), cluster, i);
    }
    fputs("  }\n", out);
    free(needed);
}

// entry: a name, or NULL for all entries.
void print_dot(FILE *out, const Module *module, const char *entry)
{
    fprintf(out, "digraph \"");
    put_quoted(out, module->name);
    fputs("\" {\n  node [shape=box, style=filled, fontname=\"sans-serif\"];\n", out);
    uint32_t cluster = 0;
    for (uint32_t i = 0; i < module->entry_count; i++)
        for (uint32_t j = 0; j < module->entries[i].variant_count; j++)
            if (!entry || !strcmp(entry, module->entries[i].name))
                put_variant(out, module, &module->entries[i], j, cluster++);
    fputs("}\n", out);
}
