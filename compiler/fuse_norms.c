// Fusion of norms taken apart (norm_tables.c) with the products around them.
//
// Loads. A value act(x a + d), a and d views of a norm's table, need not be stored if every kernel
// that reads it can normalize x as it loads it: convolutions, and contractions that are products of
// [channels, positions] matrices for each image. Each of them then reads x and the table. In mixed
// precision contractions alone do, whose channels are dense.
//
// Tables. The kernel of a product whose result is x takes the statistics of what it stores and
// writes the table too. So it also reads what the table is made of: gammas, scales, shifts. No
// cycle may come of it, so these must not depend on any value that a norm's table is made of: then
// no way leads from a kernel with a table to another one's scales. Moments of channels, of which
// tables of values in several parts are put together, need nothing else.
#include <string.h>

#include "compiler/plan.h"

static const Node *node_at(const Work *work, uint32_t local)
{
    return graph_node(work->module->graph, work->nodes[local]);
}

static bool is_activation(Op op)
{
    return op == OP_SILU || op == OP_GELU || op == OP_RELU;
}

// Axes behind the second lie row-major and densely, the first two anywhere, not turned round.
static bool is_image(const View *view, const Type *type)
{
    Dim stride[MAX_RANK];
    dense_strides(type, stride);
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (view->stride[axis].n < 0 ||
            (axis > 1 && !dim_equal(stride[axis], view->stride[axis])))
            return false;
    return true;
}

// In mixed precision: `val` is stored as a half, its channels densely, its positions as one row.
static bool is_last_image(const Work *work, Val val)
{
    View view = view_of(work, val);
    Dim image[3];
    const Type *type = val_type(work->module->graph, val);
    return type->rank > 2 && stored_dtype(work, val) == work->module->storage &&
           !dim_is_one(type->dim[1]) && image_strides(type, view.stride, image) &&
           dim_equal(image[1], dim_fixed(1));
}

// Whether `val` is a part of a norm's table.
static bool is_table_part(const Work *work, Val val)
{
    Val base = base_of(work, val);
    return val_get(work->module->graph, base)->op == OP_GROUP_NORM_TABLE && val_out(base) == 0;
}

// `val`, made by an operation `op` with a part of a norm's table: that, and the other operand.
static bool match_part(const Work *work, Val val, Op op, Val *other, Val *part)
{
    const Node *node = val_get(work->module->graph, val);
    if (node->op != op || work->view[local_of(work, val)] || work->step[local_of(work, val)])
        return false;
    for (uint32_t i = 0; i < 2; i++)
        if (is_table_part(work, node->in[i])) {
            *part = node->in[i];
            *other = node->in[1 - i];
            return true;
        }
    return false;
}

// Reads `val` as act(x a + d); what lies between has no other reader.
static bool match_load(const Work *work, Val val, NormLoadOf *load)
{
    const Node *node = val_get(work->module->graph, val);
    NodeId user;
    Val sum = is_activation(node->op) ? node->in[0] : val, product;
    *load = (NormLoadOf){.act = is_activation(node->op) ? node->op : OP_STOP_GRADIENT, .sum = sum};
    if (!match_part(work, sum, OP_ADD, &product, &load->d) ||
        !match_part(work, product, OP_MUL, &load->x, &load->a) ||
        base_of(work, load->a) != base_of(work, load->d))
        return false;
    load->product = product;
    return (sum == val ||
            (count_users(work, sum, &user) == 1 && !work->kept[local_of(work, sum)])) &&
           count_users(work, product, &user) == 1 && !work->kept[local_of(work, product)];
}

// Whether the kernel of node `id` can normalize operand `val` as it loads it.
static bool can_load(const Work *work, NodeId id, Val val, const NormLoadOf *load)
{
    const Graph *graph = work->module->graph;
    const Node *node = graph_node(graph, id);
    int operand = node->op == OP_CONV ? 0 : pointwise_operand(graph, node);
    if (operand < 0 || node->in[operand] != val || node->in[1 - operand] == val)
        return false;
    View x = view_of(work, load->x);
    const Type *type = node->type[0];
    if (is_mixed_plan(work))
        return node->op != OP_CONV && !dim_is_one(type->dim[type->rank - 1]) &&
               is_last_image(work, load->x) && is_last_image(work, val_of(id, 0));
    if (!is_image(&x, val_type(graph, val)))
        return false;
    // of a product: the positions, more than one, are the axis along which it writes
    return node->op == OP_CONV || !dim_is_one(type->dim[type->rank - 1]);
}

bool *find_norm_loads(const Work *work)
{
    bool *loaded = arena_alloc(work->arena, work->count + 1);
    for (uint32_t local = 0; work->rungs & RUNG_NORMS && local < work->count; local++) {
        Val val = val_of(work->nodes[local], 0);
        NormLoadOf load;
        uint32_t first = work->user_first[local], end = work->user_first[local + 1];
        bool all = first < end && !work->kept[local] && match_load(work, val, &load);
        for (uint32_t i = first; all && i < end; i++)
            all = can_load(work, work->users[i], val, &load);
        if (all)
            loaded[local] = loaded[local_of(work, load.sum)] =
                loaded[local_of(work, load.product)] = true;
    }
    return loaded;
}

void load_norm(const Work *work, const bool *loaded, Group *group)
{
    const Node *node = graph_node(work->module->graph, group->anchor);
    int operand = node->op == OP_CONV ? 0 : pointwise_operand(work->module->graph, node);
    if (operand >= 0 && loaded[local_of(work, node->in[operand])] &&
        match_load(work, node->in[operand], &group->norm))
        group->norm_operand = (uint32_t)operand;
}

// ---- tables ----

bool *find_behind_norms(const Work *work)
{
    bool *behind = arena_alloc(work->arena, work->count + 1);
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = node_at(work, local);
        if (node->op == OP_GROUP_NORM_TABLE || node->op == OP_CHANNEL_MOMENTS)
            behind[local_of(work, base_of(work, node->in[0]))] = true;
    }
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = node_at(work, local);
        for (uint32_t i = 0; !work->step[local] && i < node->nin; i++)
            behind[local] |= behind[local_of(work, node->in[i])];
    }
    return behind;
}

// What `val` shows with other axes of positions.
static Val before_reshapes(const Graph *graph, Val val)
{
    for (const Node *node; (node = val_get(graph, val))->op == OP_RESHAPE; val = node->in[0]) {
        const Type *type = val_type(graph, node->in[0]), *to = node->type[0];
        if (type->rank < 3 || to->rank < 3 || !dim_equal(type->dim[0], to->dim[0]) ||
            !dim_equal(type->dim[1], to->dim[1]))
            break;
    }
    return val;
}

// The group of a product that makes what `val` shows, if its kernel sees whole channels; NULL.
static Group *find_maker(const Work *work, Val val)
{
    const Graph *graph = work->module->graph;
    Val x = before_reshapes(graph, val);
    uint32_t owner = work->owner[local_of(work, x)];
    if (!owner || work->view[local_of(work, x)])
        return NULL;
    Group *group = &work->groups[owner - 1];
    const Node *anchor = graph_node(graph, group->anchor);
    const Type *type = val_type(graph, x), *made = anchor->type[0];
    View view = view_of(work, x);
    if (group->kind != GROUP_LIBRARY || group->results[0] != x || group->gate ||
        !dim_equal(type->dim[0], made->dim[0]) || !dim_equal(type->dim[1], made->dim[1]) ||
        !(is_mixed_plan(work) ? is_last_image(work, x) : is_image(&view, type)) ||
        (anchor->op != OP_CONV && (image_operand(graph, anchor) < 0 ||
                                   dim_is_one(made->dim[made->rank - 1]))))
        return NULL;
    return group;
}

bool fuse_table(Work *work, const bool *behind, uint32_t local)
{
    const Node *node = node_at(work, local);
    Group *group = node->attr->count > 1 ? NULL : find_maker(work, node->in[0]);
    if (!group || group->table)
        return false;
    bool wanted[MAX_OUT] = {true};
    for (uint32_t out = 1; out < node->nout; out++) {
        NodeId user;
        wanted[out] =
            work->kept[local] || count_users(work, val_of(work->nodes[local], out), &user) > 0;
    }
    for (uint32_t i = 1; i < node->nin; i++)
        if (behind[local_of(work, node->in[i])])
            return false;
    if (group->moments && wanted[2])
        return false;
    group->table = work->nodes[local];
    group->result_count = MAX_OUT;
    work->owner[local] = (uint32_t)(group - work->groups) + 1;
    for (uint32_t out = 0; out < node->nout; out++)
        if (wanted[out])
            group->results[1 + out] = val_of(group->table, out);
    return true;
}

bool fuse_moments(Work *work, uint32_t local)
{
    Group *group = find_maker(work, node_at(work, local)->in[0]);
    if (!group || group->moments || group->results[3])
        return false;
    group->moments = work->nodes[local];
    group->result_count = MAX_OUT;
    group->results[3] = val_of(group->moments, 0);
    work->owner[local] = (uint32_t)(group - work->groups) + 1;
    return true;
}
