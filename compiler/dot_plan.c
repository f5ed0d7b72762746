// Graphviz text of plans: a cluster a plan, a box a launch (or a group, before there are launches),
// an edge from what stores to what reads. Library kernels and emitted ones have different colours.
#include <stdlib.h>

#include "compiler/plan.h"

static void put_box(FILE *out, uint32_t plan, uint32_t number, bool library, const char *label,
                    const Origin *origin)
{
    fprintf(out, "    p%u_%u [fillcolor=\"%s\", label=\"%s", plan, number,
            library ? "#cfe2f7" : "#dff0d8", label);
    if (origin && origin->path)
        fprintf(out, "\\n%s", origin->path);
    fputs("\"];\n", out);
}

static bool is_library(const Work *work, NodeId anchor)
{
    const Node *node = graph_node(work->module->graph, anchor);
    return op_info[node->op].class != CLASS_ELEMENTWISE;
}

static void put_launches(FILE *out, const Work *work, uint32_t plan)
{
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        put_box(out, plan, i, launch->origin && is_library(work, launch->origin),
                launch->label ? launch->label : "",
                launch->origin ? graph_origin(work->module->graph, launch->origin) : NULL);
    }
    uint32_t count, *edges = launch_edges(work, &count);
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "    p%u_%u -> p%u_%u;\n", plan, edges[2 * i], plan, edges[2 * i + 1]);
    free(edges);
}

static void put_groups(FILE *out, const Work *work, uint32_t plan)
{
    bool *seen = calloc(work->count + 2, sizeof *seen);
    uint32_t *reader = calloc(work->count + 2, sizeof *reader); // of a group: the last one drawn
    if (!seen || !reader)
        bug("out of memory");
    for (uint32_t i = 0; i < work->group_count; i++) {
        uint32_t number = work->schedule ? work->schedule[i] : i;
        const Group *group = &work->groups[number];
        if (seen[number])
            continue;
        seen[number] = true;
        put_box(out, plan, number, group->kind == GROUP_LIBRARY, group_label(work, group),
                graph_origin(work->module->graph, group->anchor));
        for (uint32_t k = 0; k < group->read_count; k++) {
            Val base = base_of(work, group->reads[k]);
            uint32_t from = work->owner[local_of(work, base)];
            if (from && !val_is_step(work, base) && reader[from] != number + 1) {
                reader[from] = number + 1;
                fprintf(out, "    p%u_%u -> p%u_%u;\n", plan, from - 1, plan, number);
            }
        }
    }
    free(reader);
    free(seen);
}

void print_plans_dot(FILE *out, Work *const *plans, uint32_t count)
{
    fputs("digraph plans {\n  node [shape=box, style=filled, fontname=\"sans-serif\"];\n", out);
    for (uint32_t i = 0; i < count; i++) {
        const Work *work = plans[i];
        if (work->taps)
            continue;
        fprintf(out, "  subgraph cluster_%u {\n    label=\"%s (variant %u)\";\n", i,
                work->entry->name, work->variant_index);
        if (work->launch_count)
            put_launches(out, work, i);
        else
            put_groups(out, work, i);
        fputs("  }\n", out);
    }
    fputs("}\n", out);
}
