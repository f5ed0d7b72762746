// What a group computes, in words for reports: "conv3x3 + bias + silu", "mul + add x2". The anchor
// comes first, then its epilogue, then other operations in the order of the text, equal neighbours
// counted.
#include <stdio.h>
#include <string.h>

#include "compiler/plan.h"

enum { LABEL_SIZE = 160, MOST_PARTS = 8 };

// "conv3x3", "conv_wgrad3x3x3", "matmul"; others by the name of the operation.
static const char *anchor_name(const Graph *graph, const Node *node)
{
    if (node->op == OP_CONTRACT)
        return "matmul";
    if (op_info[node->op].class != CLASS_CONTRACT)
        return op_info[node->op].name;
    // the kernel: weights of the first two, the result of the weight gradient
    const Type *kernel = node->op == OP_CONV_WGRAD ? node->type[0] : val_type(graph, node->in[1]);
    char text[LABEL_SIZE];
    int at = snprintf(text, sizeof text, "%s", op_info[node->op].name);
    for (uint32_t i = 2; i < kernel->rank && at < (int)sizeof text; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, "%s%lld", i > 2 ? "x" : "",
                       (long long)kernel->dim[i].n);
    return intern(text);
}

typedef struct {
    const char *name[MOST_PARTS + 1];
    uint32_t times[MOST_PARTS + 1];
    uint32_t count;
    bool more; // there are parts that are not listed
} Parts;

static void add_part(Parts *parts, const char *name)
{
    if (parts->count > 0 && parts->name[parts->count - 1] == name) {
        parts->times[parts->count - 1]++;
    } else if (parts->count > MOST_PARTS) {
        parts->more = true;
    } else {
        parts->name[parts->count] = name;
        parts->times[parts->count++] = 1;
    }
}

// What a library kernel's epilogue takes in, in its order.
static void add_epilogue(Parts *parts, const Group *group)
{
    if (group->norm.x)
        add_part(parts, "norm_load");
    if (group->rotary[0].x || group->rotary[1].x)
        add_part(parts, "rotary");
    if (group->scale || group->shift)
        add_part(parts, "scale_shift");
    if (group->bias)
        add_part(parts, "bias");
    if (group->gate)
        add_part(parts, "gate");
    if (group->act != OP_STOP_GRADIENT)
        add_part(parts, op_info[group->act].name);
    if (group->residual || group->added[1] || group->added[2])
        add_part(parts, "add");
    if (group->moments)
        add_part(parts, "moments");
    if (group->table)
        add_part(parts, "norm_table");
}

const char *group_label(const Work *work, const Group *group)
{
    const Graph *graph = work->module->graph;
    const Node *anchor = graph_node(graph, group->anchor);
    Parts parts = {.count = 0};
    bool library = group->kind == GROUP_LIBRARY;
    if (library) {
        add_part(&parts, anchor_name(graph, anchor));
        add_epilogue(&parts, group);
    }
    for (uint32_t i = 0; i < group->member_count; i++)
        if (!library || group->members[i] != group->anchor)
            add_part(&parts, op_info[graph_node(graph, group->members[i])->op].name);
    char text[LABEL_SIZE * 2];
    int at = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < parts.count && at < LABEL_SIZE; i++) {
        at += snprintf(text + at, sizeof text - (size_t)at, "%s%s", i ? " + " : "", parts.name[i]);
        if (parts.times[i] > 1)
            at += snprintf(text + at, sizeof text - (size_t)at, " x%u", parts.times[i]);
    }
    if (parts.more)
        snprintf(text + at, sizeof text - (size_t)at, " + ...");
    return intern(text);
}
