// Placement: operands of a concat are made where the concat lies, so that it costs nothing.
//
// The storage of a concat is there before its operands; each is computed straight into its part,
// with the strides of the whole, if its kernel can write such strides and all its readers can walk
// them. Concats are taken from the last to the first, since one may be a part of another.
// Between an operand and the node that computes it there may be reshapes and transposes; they are
// undone from the part's strides to those of the node's result.
//
// What has a place already keeps it: of several concats of one value the last gets it, the others
// copy. So do outputs and sources, and values whose readers want rows without gaps.
//
// It costs memory where one part waits for another (skip connections: the room of the later part
// is there as long as the earlier one), and saves it where a part is still read after the concat,
// since it would be there twice. Waiting parts lie across the peak of a forward pass, as the skips
// do anyway; the room that stays empty is at most the other parts of the concat.
#include <string.h>

#include "compiler/plan.h"

typedef struct {
    Work *work;
    const Graph *graph;
} Placer;

static bool last_is_dense(const View *view, const Type *type)
{
    for (uint32_t axis = type->rank; axis-- > 0;)
        if (!dim_is_one(type->dim[axis]))
            return dim_equal(view->stride[axis], dim_fixed(1));
    return true;
}

// Axes from `first` on lie row-major and densely.
static bool dense_behind(const View *view, const Type *type, uint32_t first)
{
    Dim stride[MAX_RANK];
    dense_strides(type, stride);
    for (uint32_t axis = first; axis < type->rank; axis++)
        if (!dim_equal(stride[axis], view->stride[axis]))
            return false;
    return true;
}

// Some axis is dense, as kernels of mixed plans want it: products and elementwise ones take any.
static bool some_is_dense(const View *view, const Type *type)
{
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_is_one(type->dim[axis]) && dim_equal(view->stride[axis], dim_fixed(1)))
            return true;
    return last_is_dense(view, type);
}

// One of the two inner axes, positions and width of an attention, is dense.
static bool inner_is_dense(const View *view, const Type *type)
{
    const Dim *n = &view->stride[type->rank - 2], *d = &view->stride[type->rank - 1], one = {1, 0};
    return n->n >= 0 && d->n >= 0 && (dim_equal(*n, one) || dim_equal(*d, one));
}

// Whether the kernel of `node` can write output `out` with these strides.
static bool can_write(const Work *work, const Node *node, uint32_t out, const View *view)
{
    const Type *type = node->type[out];
    Dim image[3];
    bool mixed = is_mixed_plan(work);
    switch ((int)node->op) {
    case OP_CONV: case OP_CONV_DGRAD:
        return mixed ? image_strides(type, view->stride, image) : dense_behind(view, type, 2);
    case OP_GROUP_NORM: case OP_GROUP_NORM_GRAD:
        return out == 0 && (mixed ? image_strides(type, view->stride, image)
                                  : dense_behind(view, type, 2));
    case OP_CHANNEL_MOMENTS:
        return dense_behind(view, type, 3);
    case OP_CONTRACT: case OP_CONCAT:
        return mixed ? some_is_dense(view, type) : last_is_dense(view, type);
    case OP_ATTENTION: case OP_ATTENTION_GRAD:
        return (out == 0 || node->op == OP_ATTENTION_GRAD) && inner_is_dense(view, type);
    default:
        return op_info[node->op].class == CLASS_ELEMENTWISE &&
               (mixed ? some_is_dense(view, type) : last_is_dense(view, type));
    }
}

// Whether the kernel of `node` reads operand number `index` as it lies.
static bool can_read(const Work *work, const Node *node, uint32_t index, const View *view,
                     const Type *type)
{
    Dim image[3];
    bool mixed = is_mixed_plan(work);
    bool images = mixed ? type->rank > 1 && image_strides(type, view->stride, image)
                        : dense_behind(view, type, 2);
    switch ((int)node->op) {
    case OP_CONV: case OP_CONV_DGRAD:
        return index == 0 && images;
    case OP_GROUP_NORM_TABLE:
        if (node->attr->count > 1)     // of moments
            return index == 0 && dense_behind(view, type, 3);
        return index == 0 && images;
    case OP_GROUP_NORM: case OP_CHANNEL_MOMENTS:
        return index == 0 && images;
    case OP_CONV_WGRAD: case OP_GROUP_NORM_GRAD:
        return index < 2 && images;
    case OP_CONTRACT:
        return mixed ? some_is_dense(view, type) : last_is_dense(view, type);
    case OP_ATTENTION:
        return index < 3;
    case OP_ATTENTION_GRAD:
        return index < 5;
    case OP_CONCAT: case OP_REDUCE_SUM: case OP_REDUCE_MAX: case OP_REDUCE_MIN: case OP_PAD:
        return true;
    case OP_SWAP_PAIRS:
        return last_is_dense(view, type);
    default:
        return op_info[node->op].class == CLASS_ELEMENTWISE;
    }
}

// Whether all readers of `val`, which lies so, can walk it, views of it included.
static bool readers_agree(const Placer *p, Val val, const View *view)
{
    const Work *work = p->work;
    uint32_t local = local_of(work, val);
    if (work->kept[local])
        return false;
    for (uint32_t i = work->user_first[local]; i < work->user_first[local + 1]; i++) {
        const Node *user = graph_node(p->graph, work->users[i]);
        for (uint32_t k = 0; k < user->nin; k++) {
            View shown;
            if (user->in[k] != val)
                continue;
            if (view_through(p->graph, user, view, &shown)) {
                if (!readers_agree(p, val_of(work->users[i], 0), &shown))
                    return false;
            } else if (user->op == OP_RESHAPE ||
                       !can_read(work, user, k, view, val_type(p->graph, val))) {
                return false;
            }
        }
    }
    return true;
}

bool undo_view(const Graph *graph, const Node *node, const View *view, View *operand)
{
    *operand = *view;
    switch ((int)node->op) {
    case OP_RESHAPE:
        return reshape_view(view, node->type[0], val_type(graph, node->in[0]), operand);
    case OP_TRANSPOSE:
        for (uint32_t axis = 0; axis < node->type[0]->rank; axis++)
            operand->stride[node->attr->n[axis]] = view->stride[axis];
        return true;
    default:
        return false;
    }
}

// Gives `val`, an operand of a concat, the place `part` there; false: it will be copied.
static bool place_part(Placer *p, Val val, View part)
{
    Work *work = p->work;
    for (;;) {
        const Node *node = val_get(p->graph, val);
        View operand;
        if (!undo_view(p->graph, node, &part, &operand))
            break;
        part = operand;
        val = node->in[0];
    }
    const Node *node = val_get(p->graph, val);
    uint32_t slot = local_of(work, val) * MAX_OUT + val_out(val);
    if (work->step[local_of(work, val)] || work->within[slot] || node->op == OP_CAST ||
        node->op == OP_STOP_GRADIENT || !can_write(work, node, val_out(val), &part) ||
        !readers_agree(p, val, &part))
        return false;
    work->within[slot] = arena_alloc(work->arena, sizeof(View));
    *work->within[slot] = part;
    return true;
}

static void place_concat(Placer *p, uint32_t local)
{
    Work *work = p->work;
    Val concat = val_of(work->nodes[local], 0);
    const Node *node = val_get(p->graph, concat);
    uint32_t axis = (uint32_t)node->attr->n[0];
    View part = view_of(work, concat);
    work->pieces[local] = arena_alloc(work->arena, node->nin + 1);
    for (uint32_t i = 0; i < node->nin; i++) {
        const Type *type = val_type(p->graph, node->in[i]);
        View here = part;
        for (uint32_t k = 0; k < type->rank; k++)
            if (dim_is_one(type->dim[k]))
                here.stride[k] = dim_fixed(0);
        bool placed = place_part(p, node->in[i], here);
        work->pieces[local][i] = placed;
        work->pieces[local][node->nin] |= placed;
        move_offset(&part.offset, part.stride[axis], type->dim[axis]);
    }
}

bool kernel_writes(const Work *work, const Node *node, const View *view)
{
    Dim stride[MAX_RANK];
    bool filter = true;
    switch ((int)node->op) {
    case OP_CONV: case OP_CONV_DGRAD: case OP_GROUP_NORM: case OP_GROUP_NORM_GRAD:
    case OP_CONTRACT:
        return can_write(work, node, 0, view);
    case OP_CONV_WGRAD:
        filter_strides(node->type[0], stride);
        for (uint32_t axis = 0; axis < node->type[0]->rank; axis++)
            filter &= dim_equal(stride[axis], view->stride[axis]);
        return filter || view_is_dense(view, node->type[0]);
    default:
        return view_is_dense(view, node->type[0]);
    }
}

void place_parts(Work *work)
{
    Placer placer = {.work = work, .graph = work->module->graph};
    for (uint32_t local = work->count; local-- > 0;)
        if (graph_node(placer.graph, work->nodes[local])->op == OP_CONCAT && !work->step[local])
            place_concat(&placer, local);
}
