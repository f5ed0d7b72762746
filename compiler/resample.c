// Nearest up-sampling inside the convolutions that read it.
//
// An up-sampled value is reshape(expand(x)) with x [b, c, s1, 1, s2, 1...] and factors that are
// powers of two: its element (i1, i2...) is element (i1 >> shift1, i2 >> shift2...) of x. A
// convolution can read that as it loads its operand, normalized on the way or not, or adds its
// residual; if all readers are such, the larger value is never stored. In mixed precision only what
// wgmma's kernel can read so is read so: stride 1, and no more classes of positions than a tile has
// room for.
//
// Readers are known once there are groups. So fuse.c makes no group for such a value at first, and
// find_resampled gives one to those that something else reads.
#include "compiler/plan.h"

enum { MOST_SHIFT = 4 };       // of all axes together, in mixed precision: a tile has 2^4 classes

// Whether the kernels can read x where it lies, in place of `val`.
static bool can_read(const Work *work, Val val, const Resample *resample)
{
    const Dim *stride = resample->stride, one = dim_fixed(1);
    if (!is_mixed_plan(work))
        return dim_equal(stride[2], one);
    return dim_equal(stride[1], one) &&
           stored_dtype(work, val) == stored_dtype(work, resample->x) &&
           resample->shift[0] + resample->shift[1] + resample->shift[2] <= MOST_SHIFT;
}

bool find_resample(const Work *work, Val val, Resample *out)
{
    const Graph *graph = work->module->graph;
    uint32_t local = local_of(work, val);
    const Node *node = val_get(graph, val);
    if (node->op != OP_RESHAPE || work->view[local] || work->kept[local] || work->step[local] ||
        val_get(graph, node->in[0])->op != OP_EXPAND)
        return false;
    Val x = val_get(graph, node->in[0])->in[0];
    const Type *to = node->type[0], *wide = val_type(graph, node->in[0]),
               *type = val_type(graph, x);
    View view = view_of(work, x);
    *out = (Resample){.x = x, .view = view};
    if (to->rank < 3 || to->rank > 5 || wide->rank != 2 * to->rank - 2 ||
        !dim_equal(to->dim[0], wide->dim[0]) || !dim_equal(to->dim[1], wide->dim[1]) ||
        !dim_equal(type->dim[0], wide->dim[0]) || !dim_equal(type->dim[1], wide->dim[1]))
        return false;
    for (uint32_t axis = to->rank; axis-- > 2;) {
        uint32_t at = 2 * axis - 2;
        int64_t factor = wide->dim[at + 1].n;
        if (to->dim[axis].batch || !dim_is_one(type->dim[at + 1]) || factor < 1 ||
            (factor & (factor - 1)) != 0 || wide->dim[at].n * factor != to->dim[axis].n)
            return false;
        for (; factor > 1; factor /= 2)
            out->shift[axis - 2 + 5 - to->rank]++;
    }
    return image_strides(type, view.stride, out->stride) && can_read(work, val, out);
}

bool *find_resamples(const Work *work)
{
    bool *found = arena_alloc(work->arena, work->count + 1);
    Resample resample;
    for (uint32_t local = 0; work->rungs & RUNG_EPILOGUES && local < work->count; local++)
        found[local] = find_resample(work, val_of(work->nodes[local], 0), &resample);
    return found;
}

// Whether a convolution has stride 1, or the plan's kernels take any.
static bool takes_stride(const Work *work, const Node *node)
{
    bool fine = true;
    for (uint32_t axis = 2; axis < node->type[0]->rank; axis++)
        fine &= node->attr->n[axis] == 1;
    return fine || !is_mixed_plan(work);
}

// Whether the group of node `id`, which reads `val`, reads it while it loads or adds.
static bool group_resamples(const Work *work, NodeId id, Val val)
{
    const Graph *graph = work->module->graph;
    const Node *node = graph_node(graph, id);
    uint32_t owner = work->owner[local_of(work, val_of(id, 0))];
    const Group *group = owner ? &work->groups[owner - 1] : NULL;
    if (!group || group->kind != GROUP_LIBRARY || graph_node(graph, group->anchor)->op != OP_CONV)
        return false;
    if (group->anchor == id)
        return node->in[0] == val && node->in[1] != val && takes_stride(work, node);
    return group->residual == val && group->bias != val &&
           shape_equal(val_type(graph, val), graph_node(graph, group->anchor)->type[0]);
}

// Whether node `id` is x a, x = `val`, on the way to convolutions alone that
// normalize x as they load it.
static bool load_resamples(const Work *work, const bool *loaded, NodeId id, Val val)
{
    uint32_t local = local_of(work, val_of(id, 0));
    bool fine = loaded[local], any = false;
    for (uint32_t g = 0; fine && g < work->group_count; g++) {
        const Group *group = &work->groups[g];
        if (group->kind != GROUP_LIBRARY || group->norm.product != val_of(id, 0))
            continue;
        any = true;
        fine = group->norm.x == val &&
               graph_node(work->module->graph, group->anchor)->op == OP_CONV;
    }
    return fine && any;
}

bool is_resampled_by_all(const Work *work, const bool *loaded, uint32_t local)
{
    Val val = val_of(work->nodes[local], 0);
    bool fine = work->user_first[local] < work->user_first[local + 1];
    for (uint32_t i = work->user_first[local]; fine && i < work->user_first[local + 1]; i++)
        fine = group_resamples(work, work->users[i], val) ||
               load_resamples(work, loaded, work->users[i], val);
    return fine;
}
