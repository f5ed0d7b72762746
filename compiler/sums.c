// Sums of gradients that one launch can make.
//
// The gradient of a weight that is used several times is a sum, and fusion leaves it as a chain:
// the kernel of each contribution adds what the one before it left. That orders launches that have
// nothing else to do with one another. Where the links of a chain are one kernel, this pass makes
// one group of them: an anchor and terms. The lowering makes a launch with a segment for each, and
// the kernel adds them while it has them (`sum` in codegen/kernel_args.h).
//
// Only sums over the batch are taken, those whose results do not grow with it: there the reduction
// is what takes the time, and operands are not needed elsewhere soon. Members of a link lead to its
// result alone, so the new groups have a topological order as the old ones had.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

// Result 0 of the anchor is a sum over the batch.
static bool sums_batch(const Graph *graph, const Node *node)
{
    bool reads_batch = false;
    for (uint32_t i = 0; i < node->type[0]->rank; i++)
        if (node->type[0]->dim[i].batch)
            return false;
    for (uint32_t i = 0; i < node->nin; i++) {
        const Type *type = val_type(graph, node->in[i]);
        for (uint32_t k = 0; k < type->rank; k++)
            reads_batch |= type->dim[k].batch != 0;
    }
    return reads_batch;
}

static bool is_link(const Work *work, const Group *group)
{
    const Graph *graph = work->module->graph;
    const Node *node = graph_node(graph, group->anchor);
    bool kernel = node->op == OP_CONV_WGRAD || node->op == OP_REDUCE_SUM ||
                  (node->op == OP_CONTRACT && contract_order_is_simple(node));
    return group->kind == GROUP_LIBRARY && kernel && dtype_is_float(node->type[0]->dtype) &&
           !group->bias && !group->table && !group->gate && group->act == OP_STOP_GRADIENT &&
           sums_batch(graph, node);
}

// Whether `view` shows all of its base in the order in which that lies: row-major, or as it is.
static bool shows_all(const Work *work, const View *view, const Type *type)
{
    View own = view_of(work, view->base);
    if (view->offset.fixed || view->offset.batch)
        return false;
    bool same = shape_equal(type, val_type(work->module->graph, view->base));
    for (uint32_t axis = 0; same && axis < type->rank; axis++)
        same = dim_equal(view->stride[axis], own.stride[axis]);
    return same || view_is_dense(view, type);
}

// The group whose result `group` adds to its own, if nothing else reads that and both are links of
// one kernel; NULL: there is none.
static Group *link_before(const Work *work, const Group *group)
{
    const Graph *graph = work->module->graph;
    if (!group->residual || !is_link(work, group))
        return NULL;
    View view = view_of(work, group->residual);
    const Type *type = val_type(graph, group->residual);
    Val val = view.base;
    uint32_t owner = work->owner[local_of(work, val)];
    if (!owner || !shows_all(work, &view, type))
        return NULL;
    Group *before = &work->groups[owner - 1];
    if (before == group || before->results[0] != val || !is_link(work, before) ||
        before->term_count + group->term_count + 2 > PV_MAX_SEGMENTS ||
        !before->norm.x != !group->norm.x || before->norm_operand != group->norm_operand ||
        !nodes_alike(graph, graph_node(graph, before->anchor), graph_node(graph, group->anchor)) ||
        !shape_equal(graph_node(graph, before->anchor)->type[0],
                     graph_node(graph, group->anchor)->type[0]))
        return NULL;
    NodeId user;
    for (;;) { // the views that lead to the residual
        if (work->kept[local_of(work, val)] || count_users(work, val, &user) != 1)
            return NULL;
        if (val == group->residual)
            return before;
        val = val_of(user, 0);
        if (!work->view[local_of(work, val)])
            return NULL;
    }
}

static void add_read(const Group *group, Val *reads, uint32_t *count, Val val)
{
    for (uint32_t i = 0; i < *count; i++)
        if (reads[i] == val)
            return;
    if (val != group->residual)
        reads[(*count)++] = val;
}

static int compare_nodes(const void *x, const void *y)
{
    NodeId left = *(const NodeId *)x, right = *(const NodeId *)y;
    return left < right ? -1 : left > right;
}

// Takes `before` into `group` as further terms; it is empty then.
static void take_in(Work *work, Group *group, Group *before)
{
    uint32_t number = (uint32_t)(group - work->groups) + 1, count = 0;
    Val *reads =
        arena_alloc(work->arena, (group->read_count + before->read_count + 1) * sizeof *reads);
    for (uint32_t i = 0; i < group->read_count; i++)
        add_read(group, reads, &count, group->reads[i]);
    for (uint32_t i = 0; i < before->read_count; i++)
        add_read(group, reads, &count, before->reads[i]);
    uint32_t members = group->member_count + before->member_count;
    NodeId *nodes = arena_alloc(work->arena, (members + 1) * sizeof *nodes);
    memcpy(nodes, group->members, group->member_count * sizeof *nodes);
    memcpy(nodes + group->member_count, before->members, before->member_count * sizeof *nodes);
    qsort(nodes, members, sizeof *nodes, compare_nodes);
    for (uint32_t i = 0; i < before->member_count; i++)
        work->owner[local_of(work, val_of(before->members[i], 0))] = number;
    group->term_norms[group->term_count] = before->norm;
    group->terms[group->term_count++] = before->anchor;
    for (uint32_t i = 0; i < before->term_count; i++) {
        group->term_norms[group->term_count] = before->term_norms[i];
        group->terms[group->term_count++] = before->terms[i];
    }
    group->residual = before->residual;
    group->reads = reads;
    group->read_count = count;
    group->members = nodes;
    group->member_count = members;
    before->member_count = 0;
}

// Drops the groups that are empty.
static void close_ranks(Work *work)
{
    uint32_t *number = arena_alloc(work->arena, (work->group_count + 1) * sizeof *number);
    uint32_t count = 0;
    for (uint32_t g = 0; g < work->group_count; g++) {
        if (work->groups[g].member_count == 0)
            continue;
        number[g] = count;
        work->groups[count++] = work->groups[g];
    }
    work->group_count = count;
    for (uint32_t local = 0; local < work->count; local++)
        if (work->owner[local])
            work->owner[local] = number[work->owner[local] - 1] + 1;
}

void sum_groups(Work *work)
{
    bool taken = false;
    for (uint32_t g = 0; g < work->group_count; g++) {
        Group *group = &work->groups[g], *before;
        while (group->member_count > 0 && (before = link_before(work, group)) != NULL) {
            take_in(work, group, before);
            taken = true;
        }
    }
    if (taken)
        close_ranks(work);
}
