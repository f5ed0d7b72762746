// Convolutions, attention and norms: their arguments, layouts and epilogues.
//
// Convolutions and group norms want images whose positions are dense; attention takes
// any strides with one of its two inner axes dense, over three axes of problems (images, heads),
// so leading axes are joined first; layer norm and softmax want rows.
#include <string.h>

#include "codegen/codegen.h"

static int64_t real_size(const Lower *lower)
{
    return (int64_t)element_size(lower->cg->module, DT_F32);
}

static Dim dims_between(const Type *type, uint32_t begin, uint32_t end)
{
    Dim product = dim_fixed(1);
    for (uint32_t i = begin; i < end; i++)
        product = dim_product(product, type->dim[i]);
    return product;
}

// ---- norms taken apart, with products ----

// Where scale and shift lie: channels densely, images as far apart in both.
static Dim modulation_places(Lower *lower, Val scale, Val shift, PlanArg *scale_at,
                             PlanArg *shift_at)
{
    View from = view_of(lower->work, scale), also = view_of(lower->work, shift);
    const Type *type = val_type(lower->graph, scale);
    if (dim_equal(from.stride[1], dim_fixed(1)) && dim_equal(also.stride[1], dim_fixed(1)) &&
        dim_equal(from.stride[0], also.stride[0])) {
        *scale_at = view_place(lower, &from, type->dtype);
        *shift_at = view_place(lower, &also, type->dtype);
        return from.stride[0];
    }
    Dim stride[MAX_RANK];
    dense_strides(type, stride);
    *scale_at = dense_place(lower, scale);
    *shift_at = dense_place(lower, shift);
    return stride[0];
}

NormTablePlaces norm_table_places(Lower *lower, const Node *node, const Val *results)
{
    NormTablePlaces at = {.node = node, .table = result_place(lower, results[0]),
                          .moments = arg_none()};
    at.mean = results[1] ? result_place(lower, results[1]) : arg_none();
    at.rstd = results[2] ? result_place(lower, results[2]) : arg_none();
    at.gamma = dense_place(lower, node->in[1]);
    at.beta = dense_place(lower, node->in[2]);
    at.scale = at.shift = arg_none();
    at.mod_image = dim_fixed(0);
    if (node->nin == 5)
        at.mod_image = modulation_places(lower, node->in[3], node->in[4], &at.scale, &at.shift);
    return at;
}

// Where moments [b, 1, 2, c] go.
static void moments_places(Lower *lower, Val val, NormTablePlaces *at)
{
    View view = view_of(lower->work, val);
    at->moments = result_place(lower, val);
    at->moments_image = view.stride[0];
    at->moments_shift = view.stride[2].n;
}

NormTablePlaces group_table_places(Lower *lower, const Group *group)
{
    NormTablePlaces at = {.node = NULL, .moments = arg_none()};
    Val results[] = {group->results[1], group->results[2],
                     group->moments ? 0 : group->results[3]};
    if (group->table)
        at = norm_table_places(lower, graph_node(lower->graph, group->table), results);
    if (group->moments)
        moments_places(lower, group->results[3], &at);
    return at;
}

void set_norm_stats(Lower *lower, size_t first, const NormTablePlaces *at)
{
    if (at->moments.space != PV_VALUE) {
        set_arg(lower, first + ARG(NormStats, moments), at->moments);
        set_dim(lower, first + ARG(NormStats, moments_image), at->moments_image);
        set_int(lower, first + ARG(NormStats, moments_shift), at->moments_shift);
    }
    if (!at->node)
        return;
    set_arg(lower, first + ARG(NormStats, table), at->table);
    set_arg(lower, first + ARG(NormStats, mean), at->mean);
    set_arg(lower, first + ARG(NormStats, rstd), at->rstd);
    set_arg(lower, first + ARG(NormStats, gamma), at->gamma);
    set_arg(lower, first + ARG(NormStats, beta), at->beta);
    set_arg(lower, first + ARG(NormStats, scale), at->scale);
    set_arg(lower, first + ARG(NormStats, shift), at->shift);
    set_dim(lower, first + ARG(NormStats, mod_image), at->mod_image);
    set_int(lower, first + ARG(NormStats, groups), at->node->attr->n[0]);
    set_real(lower, first + ARG(NormStats, eps), at->node->attr->real);
}

void set_norm_load(Lower *lower, size_t first, const NormLoadOf *load)
{
    if (!load->x)
        return;
    View a = view_of(lower->work, load->a), d = view_of(lower->work, load->d);
    set_arg(lower, first + ARG(NormLoad, table),
            view_place(lower, &a, val_type(lower->graph, load->a)->dtype));
    set_dim(lower, first + ARG(NormLoad, image), a.stride[0]);
    set_int(lower, first + ARG(NormLoad, shift), d.offset.fixed - a.offset.fixed);
    set_int(lower, first + ARG(NormLoad, act), activation(load->act));
}

// ---- convolutions ----

// x [b, c_in, s...], y [b, c_out, s...], w: the tensors of the forward convolution.
static void conv_sizes(Lower *lower, const Node *node, const Type *x, const Type *y, const Type *w)
{
    const int64_t *n = node->attr->n;
    uint32_t axes = (uint32_t)n[0], skip = 3 - axes;
    set_dim(lower, ARG(ConvArgs, images), x->dim[0]);
    set_dim(lower, ARG(ConvArgs, c_in), x->dim[1]);
    set_dim(lower, ARG(ConvArgs, c_out), y->dim[1]);
    set_int(lower, ARG(ConvArgs, groups), n[1]);
    for (uint32_t i = 0; i < 3; i++) {
        bool there = i >= skip;
        uint32_t axis = there ? i - skip : 0;
        set_int(lower, ARG(ConvArgs, in) + i, there ? x->dim[2 + axis].n : 1);
        set_int(lower, ARG(ConvArgs, out) + i, there ? y->dim[2 + axis].n : 1);
        set_int(lower, ARG(ConvArgs, kernel) + i, there ? w->dim[2 + axis].n : 1);
        set_int(lower, ARG(ConvArgs, stride) + i, there ? n[2 + axis] : 1);
        set_int(lower, ARG(ConvArgs, pad) + i, there ? n[5 + axis] : 0);
    }
}

// The residual as an image of the shape `type`: its strides of image, channel and position. It is
// copied if not the same axis is dense as in the result, which lies at `result`.
static PlanArg residual_place(Lower *lower, Val val, const Type *type, const Dim *result,
                              Dim *stride)
{
    Dim image[3], there[3];
    View view = view_of(lower->work, val);
    if (!image_strides(type, result, image))
        bug("a residual of a result that is no image");
    if (strides_as(lower, val, type, stride) && image_strides(type, stride, there) &&
        (dim_equal(there[2], image[2]) ||
         (is_mixed_plan(lower->work) && dim_equal(there[1], image[1])))) {
        memcpy(stride, there, sizeof there);
        return view_place(lower, &view, type->dtype);
    }
    memcpy(stride, result, type->rank * sizeof *stride);
    if (!is_mixed_plan(lower->work))
        dense_strides(type, stride);
    PlanArg place = is_mixed_plan(lower->work) ? place_like(lower, val, type, stride)
                                               : dense_place(lower, val);
    image_strides(type, stride, there);
    memcpy(stride, there, sizeof there);
    return place;
}

static bool same_strides(const Type *type, const Dim *x, const Dim *y)
{
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_equal(x[axis], y[axis]))
            return false;
    return true;
}

// Channels lie last, behind the positions.
static bool is_last(const Type *type, const Dim *stride)
{
    Dim last[MAX_RANK], dense[MAX_RANK];
    filter_strides(type, last);
    dense_strides(type, dense);
    return same_strides(type, stride, last) && !same_strides(type, stride, dense);
}

// A filter row-major, or if the kernel takes that with its channels last; copied if need be.
static PlanArg filter_place(Lower *lower, Val val, bool takes_last, bool *last)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    *last = takes_last && is_last(type, view.stride);
    return *last ? view_place(lower, &view, type->dtype) : dense_place(lower, val);
}

// What is added to the gradient of a filter, as the gradient lies; copied if it lies otherwise.
static PlanArg added_filter(Lower *lower, Val val, const Type *type, const Dim *stride)
{
    Dim there[MAX_RANK];
    View view = view_of(lower->work, val);
    if (strides_as(lower, val, type, there) && same_strides(type, there, stride))
        return view_place(lower, &view, type->dtype);
    const Type *own = val_type(lower->graph, val);
    if (own->rank != type->rank)
        return dense_place(lower, val);
    PlanArg y = new_buffer(lower, count_of(own), stored_dtype(lower->work, val));
    copy_val(lower, val, y, stride);
    return y;
}

// The gradient of a filter, row-major at `from`, to where it is wanted.
static void move_filter(Lower *lower, const Group *group, const Type *type, PlanArg from)
{
    CopyShape shape = {.rank = type->rank};
    memcpy(shape.size, type->dim, sizeof shape.size);
    dense_strides(type, shape.x);
    strides_as(lower, group->results[0], type, shape.y);
    launch_copy(lower, result_place(lower, group->results[0]), from, &shape, type->dtype);
}

// Something that the convolution reads or writes is not stored in working precision.
static bool is_mixed(const Lower *lower, const Group *group, const Node *node)
{
    const Val vals[] = {node->in[0], node->in[1], group->results[0], group->bias, group->residual};
    for (size_t i = 0; i < sizeof vals / sizeof *vals; i++)
        if (vals[i] && stored_dtype(lower->work, vals[i]) != lower->cg->module->real)
            return true;
    return false;
}

// An operand of a convolution, or what it is up-sampled from as it is read; strides of that.
static PlanArg resampled_place(Lower *lower, Val val, Dim *stride, Resample *resample)
{
    *resample = (Resample){.x = 0};
    if (!lower->work->resampled[local_of(lower->work, val)])
        return image_place(lower, val, stride);
    if (!find_resample(lower->work, val, resample))
        bug("an operand that is not up-sampled");
    stride[0] = resample->view.stride[0];
    stride[1] = resample->view.stride[1];
    stride[2] = dim_fixed(1);
    return view_place(lower, &resample->view, val_type(lower->graph, val)->dtype);
}

static void set_resample(Lower *lower, size_t first, const Resample *resample)
{
    for (size_t axis = 0; axis < 3; axis++)
        set_int(lower, first + axis, resample->shift[axis]);
}

void lower_conv(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    Dim stride[3][MAX_RANK];           // x, y, w: of image, channel, position
    PlanArg place[3];
    const Type *type[3];
    // which of x, y, w is written, and which the operands are
    int written = node->op == OP_CONV ? 1 : node->op == OP_CONV_DGRAD ? 0 : 2;
    int first = node->op == OP_CONV_DGRAD ? 1 : 0, second = node->op == OP_CONV_WGRAD ? 1 : 2;
    type[first] = val_type(lower->graph, node->in[0]);
    type[second] = val_type(lower->graph, node->in[1]);
    type[written] = node->type[0];
    Resample up, added_up = {.x = 0};
    place[first] = resampled_place(lower, group->norm.x ? group->norm.x : node->in[0],
                                   stride[first], &up);
    bool last = false, mixed = is_mixed(lower, group, node);
    if (second == 2)
        place[2] = filter_place(lower, node->in[1], mixed, &last);
    else
        place[second] = image_place(lower, node->in[1], stride[second]);
    if (!strides_as(lower, group->results[0], type[written], stride[written]))
        bug("a convolution that cannot write its result");
    if (written == 2)
        last = is_last(type[2], stride[2]);
    bool moved = written == 2 && last && !mixed;       // computed row-major, then moved
    if (moved) {
        dense_strides(type[2], stride[2]);
        last = false;
    }
    PlanArg bias = group->bias ? dense_place(lower, group->bias) : arg_none();
    Dim added[MAX_RANK] = {{0, 0}};
    PlanArg residual = arg_none();
    if (group->residual && written == 2)
        residual = added_filter(lower, group->residual, type[2], stride[2]);
    else if (group->residual && lower->work->resampled[local_of(lower->work, group->residual)])
        residual = resampled_place(lower, group->residual, added, &added_up);
    else if (group->residual)
        residual =
            residual_place(lower, group->residual, type[written], stride[written], added);
    if (written != 2 && !image_strides(type[written], stride[written], stride[written]))
        bug("a convolution that cannot write its result");
    place[written] = moved ? new_buffer(lower, count_of(type[2]), lower->cg->module->real)
                           : result_place(lower, group->results[0]);
    NormTablePlaces table = group_table_places(lower, group);

    launch_begin(lower, node->op == OP_CONV ? "pv_conv"
                        : node->op == OP_CONV_DGRAD ? "pv_conv_dgrad" : "pv_conv_wgrad",
                 sizeof(ConvArgs) / 8);
    set_arg(lower, ARG(ConvArgs, x), place[0]);
    set_arg(lower, ARG(ConvArgs, y), place[1]);
    set_arg(lower, ARG(ConvArgs, w), place[2]);
    set_arg(lower, ARG(ConvArgs, bias), bias);
    set_arg(lower, ARG(ConvArgs, residual), residual);
    set_dim(lower, ARG(ConvArgs, x_image), stride[0][0]);
    set_dim(lower, ARG(ConvArgs, y_image), stride[1][0]);
    set_dim(lower, ARG(ConvArgs, x_channel), stride[0][1]);
    set_dim(lower, ARG(ConvArgs, y_channel), stride[1][1]);
    set_dim(lower, ARG(ConvArgs, x_position), stride[0][2]);
    set_dim(lower, ARG(ConvArgs, y_position), stride[1][2]);
    set_int(lower, ARG(ConvArgs, w_last), last);
    set_int(lower, ARG(ConvArgs, act), activation(group->act));
    if (group->residual && written != 2) {
        set_dim(lower, ARG(ConvArgs, residual_image), added[0]);
        set_dim(lower, ARG(ConvArgs, residual_channel), added[1]);
        set_dim(lower, ARG(ConvArgs, residual_position), added[2]);
    }
    set_norm_load(lower, ARG(ConvArgs, norm), &group->norm);
    set_norm_stats(lower, ARG(ConvArgs, stats), &table);
    set_resample(lower, ARG(ConvArgs, x_shift), &up);
    set_resample(lower, ARG(ConvArgs, residual_shift), &added_up);
    conv_sizes(lower, node, type[0], type[1], type[2]);
    set_types(lower, ARG(ConvArgs, types), ARG(ConvArgs, y), 5, NULL, 0);
    const void *numbers = launch_numbers(lower);
    need_scratch(lower, node->op == OP_CONV ? pv_conv_scratch(numbers, real_size(lower))
                        : node->op == OP_CONV_DGRAD
                            ? pv_conv_dgrad_scratch(numbers, real_size(lower))
                            : pv_conv_wgrad_scratch(numbers, real_size(lower)));
    if (moved)
        move_filter(lower, group, type[2], place[2]);
    else if (group->residual && !added_up.x)
        residual_inplace(lower, group, place[written], residual);
}

// ---- attention ----

enum { Q, K, V, O, MASK, DO, DQ, DK, DV, TENSORS };
enum { LEADING = 3 };          // axes of problems that the kernels take

typedef struct {
    PlanArg place[TENSORS];
    bool there[TENSORS];
    uint32_t rank;
    Dim stride[TENSORS][MAX_RANK];
    Dim size[MAX_RANK];        // of the leading axes
    uint32_t lead;             // leading axes that are left
} Attention;

static void take_tensor(Lower *lower, Attention *at, int which, Val val, bool copied)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    at->there[which] = true;
    at->rank = type->rank;
    if (copied) {
        at->place[which] = dense_place(lower, val);
        dense_strides(type, at->stride[which]);
    } else {
        at->place[which] = view_place(lower, &view, type->dtype);
        memcpy(at->stride[which], view.stride, sizeof view.stride);
    }
}

// One of the inner strides has to be 1 (axes of size 1 have none).
static bool inner_is_dense(const Attention *at, int which, const Type *type)
{
    uint32_t n = type->rank - 2, d = type->rank - 1;
    const Dim *stride = at->stride[which];
    return stride[d].n >= 0 && stride[n].n >= 0 &&
           (dim_equal(stride[d], dim_fixed(1)) || dim_equal(stride[n], dim_fixed(1)));
}

// Joins leading axes that lie at common strides in every tensor; lse and the like are row-major.
static void join_leading(Attention *at, const Type *type)
{
    at->lead = 0;
    for (uint32_t axis = 0; axis + 2 < type->rank; axis++) {
        if (dim_is_one(type->dim[axis]))
            continue;
        bool join = at->lead > 0;
        for (int i = 0; join && i < TENSORS; i++)
            join = !at->there[i] ||
                   axes_merge(at->stride[i][at->lead - 1], at->stride[i][axis], type->dim[axis]);
        uint32_t to = join ? at->lead - 1 : at->lead++;
        at->size[to] = join ? dim_product(at->size[to], type->dim[axis]) : type->dim[axis];
        // in place: `to` is never behind `axis`
        for (int i = 0; i < TENSORS; i++)
            at->stride[i][to] = at->stride[i][axis];
    }
}

static void set_strides(Lower *lower, const Attention *at, int which, size_t first)
{
    if (!at->there[which])
        return;
    const Dim *stride = at->stride[which];
    set_dim(lower, first, at->lead > 0 ? stride[0] : dim_fixed(0));
    set_dim(lower, first + 1, at->lead > 1 ? stride[1] : dim_fixed(0));
    set_dim(lower, first + 2, at->lead > 2 ? stride[2] : dim_fixed(0));
    set_dim(lower, first + 3, stride[at->rank - 2]);
    set_dim(lower, first + 4, stride[at->rank - 1]);
}

// The fields that forward and backward share; the launch has begun.
static void set_attention(Lower *lower, const Node *node, const Attention *at, PlanArg lse,
                          const Type *q, const Type *v)
{
    uint32_t n = q->rank - 2;
    set_arg(lower, ARG(AttentionArgs, o), at->place[O]);
    set_arg(lower, ARG(AttentionArgs, lse), lse);
    set_arg(lower, ARG(AttentionArgs, q), at->place[Q]);
    set_arg(lower, ARG(AttentionArgs, k), at->place[K]);
    set_arg(lower, ARG(AttentionArgs, v), at->place[V]);
    if (at->there[MASK])
        set_arg(lower, ARG(AttentionArgs, mask), at->place[MASK]);
    set_dim(lower, ARG(AttentionArgs, batch0), at->lead > 0 ? at->size[0] : dim_fixed(1));
    set_dim(lower, ARG(AttentionArgs, batch1), at->lead > 1 ? at->size[1] : dim_fixed(1));
    set_dim(lower, ARG(AttentionArgs, batch2), at->lead > 2 ? at->size[2] : dim_fixed(1));
    set_dim(lower, ARG(AttentionArgs, n), q->dim[n]);
    set_dim(lower, ARG(AttentionArgs, m), v->dim[n]);
    set_dim(lower, ARG(AttentionArgs, d), q->dim[n + 1]);
    set_dim(lower, ARG(AttentionArgs, e), v->dim[n + 1]);
    set_strides(lower, at, Q, ARG(AttentionArgs, q0));
    set_strides(lower, at, K, ARG(AttentionArgs, k0));
    set_strides(lower, at, V, ARG(AttentionArgs, v0));
    set_strides(lower, at, O, ARG(AttentionArgs, o0));
    set_strides(lower, at, MASK, ARG(AttentionArgs, mask0));
    set_real(lower, ARG(AttentionArgs, scale), node->attr->real);
    set_int(lower, ARG(AttentionArgs, causal), node->attr->n[0]);
    set_types(lower, ARG(AttentionArgs, types), ARG(AttentionArgs, o), 6, NULL, 0);
}

// Operands in the numbers of `Attention`; those that do not fit are copied, then all of them.
static void take_operands(Lower *lower, Attention *at, const Val *vals, const Type *q)
{
    for (int i = 0; i < TENSORS; i++) {
        if (!vals[i])
            continue;
        const Type *type = val_type(lower->graph, vals[i]);
        take_tensor(lower, at, i, vals[i], false);
        if (i != MASK && !inner_is_dense(at, i, type))
            take_tensor(lower, at, i, vals[i], true);
    }
    Attention joined = *at;
    join_leading(&joined, q);
    if (joined.lead <= LEADING)
        return;
    for (int i = 0; i < TENSORS; i++)
        if (vals[i])
            take_tensor(lower, at, i, vals[i], true);
}

void lower_attention(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *q = val_type(lower->graph, node->in[0]), *v = val_type(lower->graph, node->in[2]);
    Attention at = {.lead = 0};
    Val vals[TENSORS] = {node->in[0], node->in[1], node->in[2]};
    vals[MASK] = node->nin > 3 ? node->in[3] : 0;
    take_operands(lower, &at, vals, q);
    at.there[O] = true;
    at.place[O] = result_place(lower, group->results[0]);
    View o = view_of(lower->work, val_of(group->anchor, 0));
    memcpy(at.stride[O], o.stride, sizeof o.stride);
    PlanArg lse = wanted_place(lower, group, 1);
    join_leading(&at, q);
    if (at.lead > LEADING)
        bug("attention over more than three axes of problems: %s", type_text(q));
    launch_begin(lower, "pv_attention", sizeof(AttentionArgs) / 8);
    set_attention(lower, node, &at, lse, q, v);
    need_scratch(lower, pv_attention_scratch(launch_numbers(lower), real_size(lower)));
}

// The gradient of o in the very layout of o: copied if it lies otherwise.
static void match_layout(Lower *lower, Attention *at, Val grad)
{
    const Type *type = val_type(lower->graph, grad);
    bool same = true;
    for (uint32_t i = 0; i < type->rank; i++)
        same &= dim_equal(at->stride[DO][i], at->stride[O][i]);
    if (same)
        return;
    CopyShape shape = {.rank = type->rank};
    memcpy(shape.size, type->dim, sizeof shape.size);
    memcpy(shape.x, at->stride[DO], sizeof shape.x);
    memcpy(shape.y, at->stride[O], sizeof shape.y);
    PlanArg y = new_buffer(lower, count_of(type), stored_dtype(lower->work, grad));
    launch_copy(lower, y, at->place[DO], &shape, type->dtype);
    at->place[DO] = y;
    memcpy(at->stride[DO], at->stride[O], sizeof at->stride[O]);
}

// Operands: do, q, k, v, o, lse (and mask).
void lower_attention_grad(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *q = val_type(lower->graph, node->in[1]), *v = val_type(lower->graph, node->in[3]);
    Attention at = {.lead = 0};
    Val vals[TENSORS] = {
        [Q] = node->in[1], [K] = node->in[2], [V] = node->in[3], [O] = node->in[4]};
    vals[MASK] = node->nin > 6 ? node->in[6] : 0;
    take_operands(lower, &at, vals, q);
    // o may be a part of something larger: then its copy could not have the same strides
    View o = view_of(lower->work, node->in[4]);
    if (val_get(lower->graph, o.base)->op != OP_ATTENTION)
        take_tensor(lower, &at, O, node->in[4], true);
    take_tensor(lower, &at, DO, node->in[0], false);
    match_layout(lower, &at, node->in[0]);
    PlanArg lse = dense_place(lower, node->in[5]);
    for (uint32_t i = 0; i < 3; i++) {
        at.there[DQ + i] = true;
        at.place[DQ + i] = wanted_place(lower, group, i);
        View view = view_of(lower->work, val_of(group->anchor, i));
        memcpy(at.stride[DQ + i], view.stride, sizeof view.stride);
    }
    join_leading(&at, q);
    if (at.lead > LEADING)
        bug("attention over more than three axes of problems: %s", type_text(q));
    launch_begin(lower, "pv_attention_grad", sizeof(AttentionGradArgs) / 8);
    set_attention(lower, node, &at, lse, q, v);
    set_arg(lower, ARG(AttentionGradArgs, d_o), at.place[DO]);
    set_arg(lower, ARG(AttentionGradArgs, dq), at.place[DQ]);
    set_arg(lower, ARG(AttentionGradArgs, dk), at.place[DK]);
    set_arg(lower, ARG(AttentionGradArgs, dv), at.place[DV]);
    set_strides(lower, &at, DQ, ARG(AttentionGradArgs, dq0));
    set_strides(lower, &at, DK, ARG(AttentionGradArgs, dk0));
    set_strides(lower, &at, DV, ARG(AttentionGradArgs, dv0));
    set_types(lower, ARG(AttentionGradArgs, types), ARG(AttentionGradArgs, d_o), 4, NULL, 0);
    need_scratch(lower, pv_attention_grad_scratch(launch_numbers(lower), real_size(lower)));
}

// ---- norms ----

static PlanArg optional_result(Lower *lower, const Group *group, uint32_t out)
{
    return group->results[out] ? result_place(lower, group->results[out]) : arg_none();
}

// What a group norm, or the launch that makes only its table, is given of x.
static void set_normed(Lower *lower, const Node *node, PlanArg x, const Dim *x_stride)
{
    const Type *type = val_type(lower->graph, node->in[0]);
    set_arg(lower, ARG(GroupNormArgs, x), x);
    set_dim(lower, ARG(GroupNormArgs, images), type->dim[0]);
    set_dim(lower, ARG(GroupNormArgs, c), type->dim[1]);
    set_dim(lower, ARG(GroupNormArgs, positions), dims_between(type, 2, type->rank));
    set_int(lower, ARG(GroupNormArgs, groups), node->attr->n[0]);
    set_dim(lower, ARG(GroupNormArgs, x_image), x_stride[0]);
    set_dim(lower, ARG(GroupNormArgs, x_channel), x_stride[1]);
    set_dim(lower, ARG(GroupNormArgs, x_position), x_stride[2]);
    set_dim(lower, ARG(GroupNormArgs, y_position), x_stride[2]);
    set_real(lower, ARG(GroupNormArgs, eps), node->attr->real);
}

// Moments by themselves.
static void lower_moments(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    Dim x_stride[3];
    NormTablePlaces at;
    PlanArg x = image_place(lower, node->in[0], x_stride);
    moments_places(lower, group->results[0], &at);
    launch_begin(lower, "pv_group_norm", sizeof(GroupNormArgs) / 8);
    const Type *type = val_type(lower->graph, node->in[0]);
    set_arg(lower, ARG(GroupNormArgs, x), x);
    set_dim(lower, ARG(GroupNormArgs, images), type->dim[0]);
    set_dim(lower, ARG(GroupNormArgs, c), type->dim[1]);
    set_dim(lower, ARG(GroupNormArgs, positions), dims_between(type, 2, type->rank));
    set_dim(lower, ARG(GroupNormArgs, x_image), x_stride[0]);
    set_dim(lower, ARG(GroupNormArgs, x_channel), x_stride[1]);
    set_dim(lower, ARG(GroupNormArgs, x_position), x_stride[2]);
    set_arg(lower, ARG(GroupNormArgs, moments), at.moments);
    set_dim(lower, ARG(GroupNormArgs, moments_image), at.moments_image);
    set_int(lower, ARG(GroupNormArgs, moments_shift), at.moments_shift);
    need_scratch(lower, pv_norm_scratch(type->dim[1].n, real_size(lower)));
}

// The operand of a table of moments [b, parts, 2, c]: what the launch is told of it, but for x.
static void set_parts(Lower *lower, const Node *node, const Dim *stride)
{
    const Type *type = val_type(lower->graph, node->in[0]);
    set_dim(lower, ARG(GroupNormArgs, images), type->dim[0]);
    set_dim(lower, ARG(GroupNormArgs, c), type->dim[3]);
    set_int(lower, ARG(GroupNormArgs, groups), node->attr->n[0]);
    set_real(lower, ARG(GroupNormArgs, eps), node->attr->real);
    set_dim(lower, ARG(GroupNormArgs, x_image), stride[0]);
    set_dim(lower, ARG(GroupNormArgs, x_part), stride[1]);
    set_dim(lower, ARG(GroupNormArgs, x_position), stride[2]);
    set_int(lower, ARG(GroupNormArgs, x_channel), 1);
    set_int(lower, ARG(GroupNormArgs, parts), node->attr->count - 1);
    for (uint32_t i = 1; i < (uint32_t)node->attr->count; i++)
        set_int(lower, ARG(GroupNormArgs, count) + i - 1, node->attr->n[i]);
}

// Moments as they lie, if channels lie densely; else copied.
static PlanArg parts_place(Lower *lower, Val val, Dim *stride)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    memcpy(stride, view.stride, sizeof view.stride);
    if (dim_equal(stride[3], dim_fixed(1)) || dim_is_one(type->dim[3]))
        return view_place(lower, &view, type->dtype);
    dense_strides(type, stride);
    return dense_place(lower, val);
}

static void lower_norm_table(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    Dim x_stride[MAX_RANK];
    bool parts = node->attr->count > 1;
    PlanArg x = parts ? parts_place(lower, node->in[0], x_stride)
                      : image_place(lower, node->in[0], x_stride);
    NormTablePlaces at = norm_table_places(lower, node, group->results);
    launch_begin(lower, "pv_group_norm", sizeof(GroupNormArgs) / 8);
    if (parts) {
        set_arg(lower, ARG(GroupNormArgs, x), x);
        set_parts(lower, node, x_stride);
    } else {
        set_normed(lower, node, x, x_stride);
    }
    set_arg(lower, ARG(GroupNormArgs, mean), at.mean);
    set_arg(lower, ARG(GroupNormArgs, rstd), at.rstd);
    set_arg(lower, ARG(GroupNormArgs, gamma), at.gamma);
    set_arg(lower, ARG(GroupNormArgs, beta), at.beta);
    set_arg(lower, ARG(GroupNormArgs, scale), at.scale);
    set_arg(lower, ARG(GroupNormArgs, shift), at.shift);
    set_arg(lower, ARG(GroupNormArgs, table), at.table);
    set_dim(lower, ARG(GroupNormArgs, mod_image), at.mod_image);
    set_types(lower, ARG(GroupNormArgs, types), ARG(GroupNormArgs, y), 8, NULL, 0);
    need_scratch(lower, pv_norm_scratch(node->type[0]->dim[2].n, real_size(lower)));
}

static void lower_group_norm(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    Dim x_stride[3], y_stride[MAX_RANK], mod_stride = dim_fixed(0);
    PlanArg x = image_place(lower, node->in[0], x_stride);
    PlanArg gamma = dense_place(lower, node->in[1]), beta = dense_place(lower, node->in[2]);
    PlanArg scale = arg_none(), shift = arg_none();
    if (group->scale) {
        View scale_view = view_of(lower->work, group->scale);
        View shift_view = view_of(lower->work, group->shift);
        scale = view_place(lower, &scale_view, type->dtype);
        shift = view_place(lower, &shift_view, type->dtype);
        mod_stride = scale_view.stride[0];
    }
    if (!strides_as(lower, group->results[0], type, y_stride) ||
        !image_strides(type, y_stride, y_stride))
        bug("a norm that cannot write its result");
    PlanArg y = result_place(lower, group->results[0]);
    PlanArg mean = optional_result(lower, group, 1), rstd = optional_result(lower, group, 2);
    launch_begin(lower, "pv_group_norm", sizeof(GroupNormArgs) / 8);
    set_normed(lower, node, x, x_stride);
    set_arg(lower, ARG(GroupNormArgs, y), y);
    set_arg(lower, ARG(GroupNormArgs, mean), mean);
    set_arg(lower, ARG(GroupNormArgs, rstd), rstd);
    set_arg(lower, ARG(GroupNormArgs, gamma), gamma);
    set_arg(lower, ARG(GroupNormArgs, beta), beta);
    set_arg(lower, ARG(GroupNormArgs, scale), scale);
    set_arg(lower, ARG(GroupNormArgs, shift), shift);
    set_dim(lower, ARG(GroupNormArgs, y_image), y_stride[0]);
    set_dim(lower, ARG(GroupNormArgs, mod_image), mod_stride);
    set_dim(lower, ARG(GroupNormArgs, y_channel), y_stride[1]);
    set_dim(lower, ARG(GroupNormArgs, y_position), y_stride[2]);
    set_int(lower, ARG(GroupNormArgs, act), activation(group->act));
    set_types(lower, ARG(GroupNormArgs, types), ARG(GroupNormArgs, y), 8, NULL, 0);
    need_scratch(lower, pv_norm_scratch(type->dim[1].n, real_size(lower)));
}

static PlanArg added_place(Lower *lower, const Group *group, uint32_t out)
{
    return group->added[out] ? dense_place(lower, group->added[out]) : arg_none();
}

// Operands: dy, x, mean, rstd, gamma.
static void lower_group_norm_grad(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    Dim x_stride[3], dy_stride[3], dx_stride[3];
    View dx_view = view_of(lower->work, group->results[0]);
    if (!image_strides(type, dx_view.stride, dx_stride))
        bug("a norm's gradient that cannot write its result");
    PlanArg dy = image_place(lower, node->in[0], dy_stride);
    PlanArg x = image_place(lower, node->in[1], x_stride);
    PlanArg mean = dense_place(lower, node->in[2]), rstd = dense_place(lower, node->in[3]);
    PlanArg gamma = dense_place(lower, node->in[4]);
    PlanArg dx = result_place(lower, group->results[0]);
    PlanArg dgamma = wanted_place(lower, group, 1), dbeta = wanted_place(lower, group, 2);
    PlanArg dgamma_added = added_place(lower, group, 1), dbeta_added = added_place(lower, group, 2);
    launch_begin(lower, "pv_group_norm_grad", sizeof(GroupNormGradArgs) / 8);
    set_arg(lower, ARG(GroupNormGradArgs, dx), dx);
    set_arg(lower, ARG(GroupNormGradArgs, dgamma), dgamma);
    set_arg(lower, ARG(GroupNormGradArgs, dbeta), dbeta);
    set_arg(lower, ARG(GroupNormGradArgs, dgamma_added), dgamma_added);
    set_arg(lower, ARG(GroupNormGradArgs, dbeta_added), dbeta_added);
    set_arg(lower, ARG(GroupNormGradArgs, dy), dy);
    set_arg(lower, ARG(GroupNormGradArgs, x), x);
    set_arg(lower, ARG(GroupNormGradArgs, mean), mean);
    set_arg(lower, ARG(GroupNormGradArgs, rstd), rstd);
    set_arg(lower, ARG(GroupNormGradArgs, gamma), gamma);
    set_types(lower, ARG(GroupNormGradArgs, types), ARG(GroupNormGradArgs, dx), 8,
              (size_t[]){ARG(GroupNormGradArgs, dgamma_added), ARG(GroupNormGradArgs, dbeta_added)},
              2);
    set_dim(lower, ARG(GroupNormGradArgs, images), type->dim[0]);
    set_dim(lower, ARG(GroupNormGradArgs, c), type->dim[1]);
    set_dim(lower, ARG(GroupNormGradArgs, positions), dims_between(type, 2, type->rank));
    set_int(lower, ARG(GroupNormGradArgs, groups), node->attr->n[0]);
    set_dim(lower, ARG(GroupNormGradArgs, x_image), x_stride[0]);
    set_dim(lower, ARG(GroupNormGradArgs, dy_image), dy_stride[0]);
    set_dim(lower, ARG(GroupNormGradArgs, dx_image), dx_stride[0]);
    set_dim(lower, ARG(GroupNormGradArgs, x_channel), x_stride[1]);
    set_dim(lower, ARG(GroupNormGradArgs, dy_channel), dy_stride[1]);
    set_dim(lower, ARG(GroupNormGradArgs, dx_channel), dx_stride[1]);
    set_dim(lower, ARG(GroupNormGradArgs, x_position), x_stride[2]);
    set_dim(lower, ARG(GroupNormGradArgs, dy_position), dy_stride[2]);
    set_dim(lower, ARG(GroupNormGradArgs, dx_position), dx_stride[2]);
    need_scratch(lower, pv_norm_scratch(type->dim[1].n, real_size(lower)));
}

// Rows in an order of axes, that of `like`: their strides, in values of `per` elements a row where
// those of `like` have c.
static PlanArg rows_place(Lower *lower, Val val, const View *like, int64_t c, int64_t per)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    Dim stride[MAX_RANK] = {{0, 0}}, dense[MAX_RANK];
    bool same = true, row_major = true;
    dense_strides(type, dense);
    for (uint32_t axis = 0; axis < type->rank; axis++) {
        stride[axis] = like->stride[axis];
        if (axis + 1 < type->rank)
            stride[axis].n = stride[axis].n / c * per;
        else if (dim_is_one(type->dim[axis]))
            stride[axis] = dim_fixed(0);
        same &= dim_equal(view.stride[axis], stride[axis]);
        row_major &= dim_equal(dense[axis], stride[axis]);
    }
    if (same)
        return view_place(lower, &view, type->dtype);
    if (row_major)
        return dense_place(lower, val);
    PlanArg y = new_buffer(lower, count_of(type), stored_dtype(lower->work, val));
    copy_val(lower, val, y, stride);
    return y;
}

static void lower_layer_norm(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    View rows = view_of(lower->work, group->results[0]);
    int64_t c = type->dim[type->rank - 1].n;
    PlanArg x = rows_place(lower, node->in[0], &rows, c, c), gamma = arg_none(), beta = arg_none();
    if (node->nin > 1) {
        gamma = dense_place(lower, node->in[1]);
        beta = dense_place(lower, node->in[2]);
    }
    PlanArg y = result_place(lower, group->results[0]);
    PlanArg mean = optional_result(lower, group, 1), rstd = optional_result(lower, group, 2);
    launch_begin(lower, "pv_layer_norm", sizeof(LayerNormArgs) / 8);
    set_arg(lower, ARG(LayerNormArgs, y), y);
    set_arg(lower, ARG(LayerNormArgs, mean), mean);
    set_arg(lower, ARG(LayerNormArgs, rstd), rstd);
    set_arg(lower, ARG(LayerNormArgs, x), x);
    set_arg(lower, ARG(LayerNormArgs, gamma), gamma);
    set_arg(lower, ARG(LayerNormArgs, beta), beta);
    set_dim(lower, ARG(LayerNormArgs, rows), dims_between(type, 0, type->rank - 1));
    set_dim(lower, ARG(LayerNormArgs, c), type->dim[type->rank - 1]);
    set_real(lower, ARG(LayerNormArgs, eps), node->attr->real);
    set_int(lower, ARG(LayerNormArgs, act), activation(group->act));
    set_types(lower, ARG(LayerNormArgs, types), ARG(LayerNormArgs, y), 6, NULL, 0);
    need_scratch(lower, pv_norm_scratch(type->dim[type->rank - 1].n, real_size(lower)));
}

// Operands: dy, x, mean, rstd (and gamma).
static void lower_layer_norm_grad(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    bool affine = node->nin > 4;
    PlanArg in[5] = {arg_none(), arg_none(), arg_none(), arg_none(), arg_none()};
    View rows = view_of(lower->work, group->results[0]);
    int64_t c = type->dim[type->rank - 1].n;
    for (uint32_t i = 0; i < 4; i++)
        in[i] = rows_place(lower, node->in[i], &rows, c, i < 2 ? c : 1);
    if (affine)
        in[4] = dense_place(lower, node->in[4]);
    PlanArg dx = result_place(lower, group->results[0]);
    PlanArg dgamma = affine ? wanted_place(lower, group, 1) : arg_none();
    PlanArg dbeta = affine ? wanted_place(lower, group, 2) : arg_none();
    PlanArg dgamma_added = added_place(lower, group, 1), dbeta_added = added_place(lower, group, 2);
    launch_begin(lower, "pv_layer_norm_grad", sizeof(LayerNormGradArgs) / 8);
    set_arg(lower, ARG(LayerNormGradArgs, dx), dx);
    set_arg(lower, ARG(LayerNormGradArgs, dgamma), dgamma);
    set_arg(lower, ARG(LayerNormGradArgs, dbeta), dbeta);
    set_arg(lower, ARG(LayerNormGradArgs, dgamma_added), dgamma_added);
    set_arg(lower, ARG(LayerNormGradArgs, dbeta_added), dbeta_added);
    set_arg(lower, ARG(LayerNormGradArgs, dy), in[0]);
    set_arg(lower, ARG(LayerNormGradArgs, x), in[1]);
    set_arg(lower, ARG(LayerNormGradArgs, mean), in[2]);
    set_arg(lower, ARG(LayerNormGradArgs, rstd), in[3]);
    set_arg(lower, ARG(LayerNormGradArgs, gamma), in[4]);
    set_types(lower, ARG(LayerNormGradArgs, types), ARG(LayerNormGradArgs, dx), 8,
              (size_t[]){ARG(LayerNormGradArgs, dgamma_added), ARG(LayerNormGradArgs, dbeta_added)},
              2);
    set_dim(lower, ARG(LayerNormGradArgs, rows), dims_between(type, 0, type->rank - 1));
    set_dim(lower, ARG(LayerNormGradArgs, c), type->dim[type->rank - 1]);
    need_scratch(lower, pv_norm_scratch(type->dim[type->rank - 1].n, real_size(lower)));
}

static void lower_softmax(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    PlanArg x = dense_place(lower, node->in[0]);
    PlanArg y = result_place(lower, group->results[0]);
    launch_begin(lower, "pv_softmax", sizeof(SoftmaxArgs) / 8);
    set_arg(lower, ARG(SoftmaxArgs, y), y);
    set_arg(lower, ARG(SoftmaxArgs, x), x);
    set_types(lower, ARG(SoftmaxArgs, types), ARG(SoftmaxArgs, y), 2, NULL, 0);
    set_dim(lower, ARG(SoftmaxArgs, rows), dims_between(type, 0, type->rank - 1));
    set_dim(lower, ARG(SoftmaxArgs, c), type->dim[type->rank - 1]);
}

void lower_norm(Lower *lower, const Group *group)
{
    switch ((int)anchor_of(lower, group)->op) {
    case OP_GROUP_NORM:
        lower_group_norm(lower, group);
        return;
    case OP_GROUP_NORM_TABLE:
        lower_norm_table(lower, group);
        return;
    case OP_CHANNEL_MOMENTS:
        lower_moments(lower, group);
        return;
    case OP_GROUP_NORM_GRAD:
        lower_group_norm_grad(lower, group);
        return;
    case OP_LAYER_NORM:
        lower_layer_norm(lower, group);
        return;
    case OP_LAYER_NORM_GRAD:
        lower_layer_norm_grad(lower, group);
        return;
    default:
        lower_softmax(lower, group);
        return;
    }
}
