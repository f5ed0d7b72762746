// Bytes that a group must read and write: each operand once, as far as its view shows it, and each
// result once. A floor: a kernel that reads an operand twice, or keeps what it cannot hold in
// registers in memory, moves more.
#include "compiler/plan.h"

// `elements` of `size` bytes, to the part that is there for any batch or to that of one element.
static void add_bytes(Dim elements, size_t size, double *fixed, double *per_batch)
{
    *(elements.batch ? per_batch : fixed) += (double)elements.n * (double)size;
}

// Elements of `type` that are different ones under the view: what it stretches counts once.
static Dim shown(const View *view, const Type *type)
{
    Dim count = dim_fixed(1);
    for (uint32_t i = 0; i < type->rank; i++)
        if (view->stride[i].n != 0)
            count = dim_product(count, type->dim[i]);
    return count;
}

// Which elements of operand 0 the anchor picks, by indices it is given: as many as it makes.
static bool picks(const Node *node, Val val)
{
    return node->in[0] == val &&
           (node->op == OP_GATHER || node->op == OP_PICK || node->op == OP_WINDOW);
}

static void add_read(const Work *work, const Group *group, uint32_t index, double *fixed,
                     double *per_batch)
{
    const Graph *graph = work->module->graph;
    const Node *anchor = graph_node(graph, group->anchor);
    Val val = group->reads[index];
    const Type *type = val_type(graph, val);
    View view = view_of(work, val);
    if (val_is_step(work, val) || val_is_step(work, view.base))
        return;
    size_t size = stored_size(work, val);
    Dim count = shown(&view, type), whole, made;
    if (group->kind == GROUP_LIBRARY && picks(anchor, val) && type_count(anchor->type[0], &made))
        count = made;
    double before[2] = {0, 0}, all[2] = {0, 0};
    for (uint32_t i = 0; i < index; i++) {
        View other = view_of(work, group->reads[i]);
        if (same_elements(work, val, group->reads[i]))
            return;
        if (other.base == view.base)
            add_bytes(shown(&other, val_type(graph, group->reads[i])), size, &before[0],
                      &before[1]);
    }
    if (type_count(val_type(graph, view.base), &whole))
        add_bytes(whole, size, &all[0], &all[1]);
    // several views of one storage read no more than it holds
    double more[2] = {0, 0};
    add_bytes(count, size, &more[0], &more[1]);
    for (int i = 0; i < 2; i++)
        if (all[i] > 0 && before[i] + more[i] > all[i])
            more[i] = all[i] > before[i] ? all[i] - before[i] : 0;
    *fixed += more[0];
    *per_batch += more[1];
}

void group_bytes(const Work *work, const Group *group, double *fixed, double *per_batch)
{
    *fixed = *per_batch = 0;
    for (uint32_t i = 0; i < group->read_count; i++)
        add_read(work, group, i, fixed, per_batch);
    for (uint32_t i = 0; i < group->result_count; i++) {
        Dim count;
        if (!group->results[i])
            continue;
        const Type *type = val_type(work->module->graph, group->results[i]);
        if (type_count(type, &count))
            add_bytes(count, stored_size(work, group->results[i]), fixed, per_batch);
    }
}

void shared_bytes(const Work *work, const uint32_t *groups, uint32_t index, double *fixed,
                  double *per_batch)
{
    const Group *group = &work->groups[groups[index]];
    *fixed = *per_batch = 0;
    for (uint32_t i = 0; i < group->read_count; i++) {
        bool known = false;
        for (uint32_t k = 0; k < index; k++)
            for (uint32_t r = 0; r < work->groups[groups[k]].read_count; r++)
                known |= work->groups[groups[k]].reads[r] == group->reads[i];
        if (known)
            add_read(work, group, i, fixed, per_batch);
    }
}
