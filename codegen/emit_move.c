// Launches of operations that move elements, draw or reduce them: copies into the parts of concats,
// windows, picks and gathers; random numbers; sums and extremes over axes.
#include <string.h>

#include "codegen/codegen.h"

static void move_by(Affine *offset, Dim stride, Dim steps)
{
    Dim move = dim_product(stride, steps);
    *(move.batch ? &offset->batch : &offset->fixed) += move.n;
}

// Operands that do not lie in their parts are copied there.
void lower_concat(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    uint32_t axis = (uint32_t)node->attr->n[0];
    const bool *pieces = lower->work->pieces[local_of(lower->work, group->results[0])];
    PlanArg y = result_place(lower, group->results[0]);
    View view = view_of(lower->work, group->results[0]);
    Affine offset = {0, 0};
    for (uint32_t i = 0; i < node->nin; i++) {
        if (!pieces || !pieces[i])
            copy_val(lower, node->in[i],
                     arg_offset(y, offset, size_of(lower, group->results[0])), view.stride);
        move_by(&offset, view.stride[axis], val_type(lower->graph, node->in[i])->dim[axis]);
    }
}

void lower_pad(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    uint32_t axis = (uint32_t)node->attr->n[0];
    PlanArg y = result_place(lower, group->results[0]);
    launch_fill(lower, y, node->type[0], node->attr->real);
    Dim stride[MAX_RANK];
    dense_strides(node->type[0], stride);
    Affine offset = {0, 0};
    move_by(&offset, stride[axis], (Dim){node->attr->n[1], node->type[0]->dim[axis].batch});
    copy_val(lower, node->in[0], arg_offset(y, offset, size_of(lower, node->in[0])), stride);
}

// y[..., i, ...] = x[..., start + i, ...], or back into zeros (window_grad).
void lower_window(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    bool back = node->op == OP_WINDOW_GRAD;
    uint32_t axis = (uint32_t)node->attr->n[0];
    const Type *large = back ? node->type[0] : val_type(lower->graph, node->in[0]);
    const Type *small = back ? val_type(lower->graph, node->in[0]) : node->type[0];
    PlanArg y = result_place(lower, group->results[0]);
    if (back)
        launch_fill(lower, y, node->type[0], 0);
    PlanArg start = dense_place(lower, node->in[1]);
    View x = view_of(lower->work, node->in[0]);
    Dim y_stride[MAX_RANK];
    dense_strides(node->type[0], y_stride);
    PlanArg x_place = view_place(lower, &x, small->dtype);
    launch_begin(lower, back ? "pv_copy_to" : "pv_copy", sizeof(CopyArgs) / 8);
    set_arg(lower, ARG(CopyArgs, y), y);
    set_arg(lower, ARG(CopyArgs, x), x_place);
    set_int(lower, ARG(CopyArgs, bytes), (int64_t)size_of(lower, node->in[0]));
    set_int(lower, ARG(CopyArgs, axes), small->rank);
    set_arg(lower, ARG(CopyArgs, offset), start);
    set_dim(lower, ARG(CopyArgs, offset_stride), back ? y_stride[axis] : x.stride[axis]);
    set_int(lower, ARG(CopyArgs, offset_max), large->dim[axis].n - small->dim[axis].n);
    for (uint32_t i = 0; i < small->rank; i++) {
        set_dim(lower, ARG(CopyArgs, size) + i, small->dim[i]);
        set_dim(lower, ARG(CopyArgs, y_stride) + i, y_stride[i]);
        set_dim(lower, ARG(CopyArgs, x_stride) + i, x.stride[i]);
    }
}

static Dim product_of(const Type *type, uint32_t begin, uint32_t end)
{
    Dim product = dim_fixed(1);
    for (uint32_t i = begin; i < end; i++)
        product = dim_product(product, type->dim[i]);
    return product;
}

// pick: y small, x large; pick_grad: y = dy, x = dx, written.
void lower_pick(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    bool back = node->op == OP_PICK_GRAD;
    uint32_t axis = (uint32_t)node->attr->n[0];
    const Type *large = back ? node->type[0] : val_type(lower->graph, node->in[0]);
    PlanArg operand = dense_place(lower, node->in[0]), k = dense_place(lower, node->in[1]);
    PlanArg result = result_place(lower, group->results[0]);
    launch_begin(lower, back ? "pv_pick_grad" : "pv_pick", sizeof(PickArgs) / 8);
    set_arg(lower, ARG(PickArgs, y), back ? operand : result);
    set_arg(lower, ARG(PickArgs, x), back ? result : operand);
    set_arg(lower, ARG(PickArgs, k), k);
    set_dim(lower, ARG(PickArgs, outer), product_of(large, 0, axis));
    set_dim(lower, ARG(PickArgs, per), product_of(large, 1, axis));
    set_dim(lower, ARG(PickArgs, axis), large->dim[axis]);
    set_dim(lower, ARG(PickArgs, inner), product_of(large, axis + 1, large->rank));
}

void lower_gather(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    bool back = node->op == OP_GATHER_GRAD;
    const Type *table = back ? node->type[0] : val_type(lower->graph, node->in[0]);
    PlanArg operand = dense_place(lower, node->in[0]), k = dense_place(lower, node->in[1]);
    PlanArg result = result_place(lower, group->results[0]);
    launch_begin(lower, back ? "pv_gather_grad" : "pv_gather", sizeof(GatherArgs) / 8);
    set_arg(lower, ARG(GatherArgs, y), back ? operand : result);
    set_arg(lower, ARG(GatherArgs, x), back ? result : operand);
    set_arg(lower, ARG(GatherArgs, k), k);
    set_dim(lower, ARG(GatherArgs, count), count_of(val_type(lower->graph, node->in[1])));
    set_dim(lower, ARG(GatherArgs, rows), table->dim[0]);
    set_dim(lower, ARG(GatherArgs, inner), product_of(table, 1, table->rank));
}

void lower_random(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    PlanArg y = result_place(lower, group->results[0]);
    launch_begin(lower, "pv_random", sizeof(RandomArgs) / 8);
    set_arg(lower, ARG(RandomArgs, y), y);
    set_dim(lower, ARG(RandomArgs, count), count_of(node->type[0]));
    set_int(lower, ARG(RandomArgs, stream), stream_index(lower->cg, node->attr->text));
    set_int(lower, ARG(RandomArgs, kind), node->attr->n[0]);
    set_int(lower, ARG(RandomArgs, lo), node->attr->n[1]);
    set_int(lower, ARG(RandomArgs, hi), node->attr->n[2]);
}

static bool is_shorter(Dim x, Dim y)
{
    return x.batch != y.batch ? x.batch < y.batch : x.n < y.n;
}

// Axes of one kind (kept, reduced) of `x` into the arguments from `at` on; neighbours are joined.
static uint32_t reduce_axes(Lower *lower, const Node *node, const View *x, bool reduced,
                            uint32_t at)
{
    const Type *type = val_type(lower->graph, node->in[0]);
    Dim size = dim_fixed(1), stride = dim_fixed(0);
    uint32_t count = 0, order[MAX_RANK];
    for (uint32_t i = 0; i < type->rank; i++) {        // what is summed up may come in any order
        uint32_t k = i;
        for (; reduced && k > 0 && is_shorter(x->stride[order[k - 1]], x->stride[i]); k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    for (uint32_t i = 0; i < type->rank; i++) {
        uint32_t axis = order[i];
        if (((node->attr->n[0] >> axis & 1) != 0) != reduced || dim_is_one(type->dim[axis]))
            continue;
        if (count > 0 && axes_merge(stride, x->stride[axis], type->dim[axis])) {
            size = dim_product(size, type->dim[axis]);
        } else {
            size = type->dim[axis];
            count++;
        }
        stride = x->stride[axis];
        set_dim(lower, ARG(ReduceArgs, size) + at + count - 1, size);
        set_dim(lower, ARG(ReduceArgs, stride) + at + count - 1, stride);
    }
    return count;
}

void lower_reduce(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    View x = view_of(lower->work, node->in[0]);
    PlanArg place = view_place(lower, &x, node->type[0]->dtype);
    PlanArg y = result_place(lower, group->results[0]);
    PlanArg residual = group->residual ? dense_place(lower, group->residual) : arg_none();
    bool real = dtype_is_float(node->type[0]->dtype);
    launch_begin(lower, real ? "pv_reduce" : "pv_reduce_int", sizeof(ReduceArgs) / 8);
    set_arg(lower, ARG(ReduceArgs, out), y);
    set_arg(lower, ARG(ReduceArgs, x), place);
    set_arg(lower, ARG(ReduceArgs, residual), residual);
    set_int(lower, ARG(ReduceArgs, op),
            node->op == OP_REDUCE_SUM   ? 0
            : node->op == OP_REDUCE_MAX ? 1
                                        : 2);
    uint32_t kept = reduce_axes(lower, node, &x, false, 0);
    set_int(lower, ARG(ReduceArgs, kept), kept);
    set_int(lower, ARG(ReduceArgs, reduced), reduce_axes(lower, node, &x, true, kept));
    set_types(lower, ARG(ReduceArgs, types), ARG(ReduceArgs, out), 2,
              (size_t[]){ARG(ReduceArgs, residual)}, 1);
    if (real)
        need_scratch(lower, pv_reduce_scratch(launch_numbers(lower),
                                              real_size(lower)));
    if (group->residual)
        residual_inplace(lower, group, y, residual);
}

// A value that is made by moving elements in row-major order (a reshape that is no view) to where
// it lies.
void lower_move(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    Dim stride[MAX_RANK];
    if (!strides_as(lower, group->results[0], val_type(lower->graph, node->in[0]), stride))
        bug("elements that cannot be moved");
    copy_val(lower, node->in[0], result_place(lower, group->results[0]), stride);
}
