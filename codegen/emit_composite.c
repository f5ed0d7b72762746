// Convolutions and attention: their arguments, layouts and epilogues.
//
// Convolutions want images whose positions are dense; attention takes any strides with one of its
// two inner axes dense, over three axes of problems (images, heads), so leading axes are joined
// first.
#include <string.h>

#include "codegen/codegen.h"

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
    memcpy(stride, resample->stride, sizeof resample->stride);
    return view_place(lower, &resample->view, val_type(lower->graph, val)->dtype);
}

static void set_resample(Lower *lower, size_t first, const Resample *resample)
{
    for (size_t axis = 0; axis < 3; axis++)
        set_int(lower, first + axis, resample->shift[axis]);
}

// What a convolution reads and writes: x, y and w by number, and the rest of its launch.
enum { CONV_X, CONV_Y, CONV_W };
typedef struct {
    const Node *node;
    int written, first, second;        // of x, y, w: the result, and the operands in their order
    const Type *type[3];
    PlanArg place[3], bias, residual;
    Dim stride[3][MAX_RANK];           // of image, channel, position; w: of its axes
    Dim added[MAX_RANK];               // of the residual
    Resample up, added_up;             // of the image that is read, of the residual
    NormTablePlaces table;
    bool mixed, last;                  // last: w's channels are dense
    bool moved;                        // w is computed row-major, then moved
} ConvParts;

// Which of x, y, w is what, and where the operands lie.
static void find_operands(Lower *lower, const Group *group, ConvParts *conv)
{
    const Node *node = conv->node;
    conv->written = node->op == OP_CONV ? CONV_Y : node->op == OP_CONV_DGRAD ? CONV_X : CONV_W;
    conv->first = node->op == OP_CONV_DGRAD ? CONV_Y : CONV_X;
    conv->second = node->op == OP_CONV_WGRAD ? CONV_Y : CONV_W;
    conv->type[conv->first] = val_type(lower->graph, node->in[0]);
    conv->type[conv->second] = val_type(lower->graph, node->in[1]);
    conv->type[conv->written] = node->type[0];
    conv->mixed = is_mixed(lower, group, node);
    conv->place[conv->first] =
        resampled_place(lower, group->norm.x ? group->norm.x : node->in[0],
                        conv->stride[conv->first], &conv->up);
    if (conv->second == CONV_W)
        conv->place[CONV_W] = filter_place(lower, node->in[1], conv->mixed, &conv->last);
    else
        conv->place[conv->second] = image_place(lower, node->in[1], conv->stride[conv->second]);
}

// Where the result lies, and what is added to it.
static void find_result(Lower *lower, const Group *group, ConvParts *conv)
{
    int written = conv->written;
    const Type *type = conv->type[written];
    Dim *stride = conv->stride[written];
    if (!strides_as(lower, group->results[0], type, stride))
        bug("a convolution that cannot write its result");
    if (written == CONV_W) {
        conv->last = is_last(type, stride);
        conv->moved = conv->last && !conv->mixed;
    }
    if (conv->moved) {
        dense_strides(type, stride);
        conv->last = false;
    }
    conv->bias = group->bias ? dense_place(lower, group->bias) : arg_none();
    conv->residual = arg_none();
    if (group->residual && written == CONV_W)
        conv->residual = added_filter(lower, group->residual, type, stride);
    else if (group->residual && lower->work->resampled[local_of(lower->work, group->residual)])
        conv->residual = resampled_place(lower, group->residual, conv->added, &conv->added_up);
    else if (group->residual)
        conv->residual = residual_place(lower, group->residual, type, stride, conv->added);
    if (written != CONV_W && !image_strides(type, stride, stride))
        bug("a convolution that cannot write its result");
    conv->place[written] = conv->moved
                               ? new_buffer(lower, count_of(type), lower->cg->module->real)
                               : result_place(lower, group->results[0]);
    conv->table = group_table_places(lower, group);
}

static void launch_conv(Lower *lower, const Group *group, const ConvParts *conv)
{
    Op op = conv->node->op;
    launch_begin(lower, op == OP_CONV         ? "pv_conv"
                        : op == OP_CONV_DGRAD ? "pv_conv_dgrad"
                                              : "pv_conv_wgrad",
                 sizeof(ConvArgs) / 8);
    set_arg(lower, ARG(ConvArgs, x), conv->place[CONV_X]);
    set_arg(lower, ARG(ConvArgs, y), conv->place[CONV_Y]);
    set_arg(lower, ARG(ConvArgs, w), conv->place[CONV_W]);
    set_arg(lower, ARG(ConvArgs, bias), conv->bias);
    set_arg(lower, ARG(ConvArgs, residual), conv->residual);
    set_dim(lower, ARG(ConvArgs, x_image), conv->stride[CONV_X][0]);
    set_dim(lower, ARG(ConvArgs, y_image), conv->stride[CONV_Y][0]);
    set_dim(lower, ARG(ConvArgs, x_channel), conv->stride[CONV_X][1]);
    set_dim(lower, ARG(ConvArgs, y_channel), conv->stride[CONV_Y][1]);
    set_dim(lower, ARG(ConvArgs, x_position), conv->stride[CONV_X][2]);
    set_dim(lower, ARG(ConvArgs, y_position), conv->stride[CONV_Y][2]);
    set_int(lower, ARG(ConvArgs, w_last), conv->last);
    set_int(lower, ARG(ConvArgs, act), activation(group->act));
    if (group->residual && conv->written != CONV_W) {
        set_dim(lower, ARG(ConvArgs, residual_image), conv->added[0]);
        set_dim(lower, ARG(ConvArgs, residual_channel), conv->added[1]);
        set_dim(lower, ARG(ConvArgs, residual_position), conv->added[2]);
    }
    set_norm_load(lower, ARG(ConvArgs, norm), &group->norm);
    set_norm_stats(lower, ARG(ConvArgs, stats), &conv->table);
    set_resample(lower, ARG(ConvArgs, x_shift), &conv->up);
    set_resample(lower, ARG(ConvArgs, residual_shift), &conv->added_up);
    conv_sizes(lower, conv->node, conv->type[CONV_X], conv->type[CONV_Y], conv->type[CONV_W]);
    bool filtering = (lower->work->rungs & RUNG_WINOGRAD) != 0;
    set_int(lower, ARG(ConvArgs, winograd), filtering && !conv->mixed);
    set_types(lower, ARG(ConvArgs, types), ARG(ConvArgs, y), 5, NULL, 0);
    const void *numbers = launch_numbers(lower);
    int64_t size = real_size(lower);
    need_scratch(lower, op == OP_CONV         ? pv_conv_scratch(numbers, size)
                        : op == OP_CONV_DGRAD ? pv_conv_dgrad_scratch(numbers, size)
                                              : pv_conv_wgrad_scratch(numbers, size));
}

void lower_conv(Lower *lower, const Group *group)
{
    ConvParts conv = {.node = anchor_of(lower, group)};
    find_operands(lower, group, &conv);
    find_result(lower, group, &conv);
    launch_conv(lower, group, &conv);
    if (conv.moved)
        move_filter(lower, group, conv.type[CONV_W], conv.place[CONV_W]);
    else if (group->residual && !conv.added_up.x)
        residual_inplace(lower, group, conv.place[conv.written], conv.residual);
}

// ---- attention ----

enum { Q, K, V, O, MASK, DO, DQ, DK, DV, TENSORS };
enum { LEADING = 3 };          // axes of problems that the kernels take
enum { ROTARY_ALIGN = 16 };    // bytes

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

// The tables by which q and k are turned, dense; copied if need be, before the launch begins.
typedef struct {
    PlanArg cos[2], sin[2];
} RotaryPlaces;

static PlanArg table_place(Lower *lower, Val val)
{
    PlanArg place = dense_place(lower, val);
    if (place.a % ROTARY_ALIGN == 0 && place.c % ROTARY_ALIGN == 0)
        return place;
    const Type *type = val_type(lower->graph, val);
    Dim stride[MAX_RANK];
    dense_strides(type, stride);
    PlanArg y = new_buffer(lower, count_of(type), stored_dtype(lower->work, val));
    copy_val(lower, val, y, stride);
    return y;
}

static RotaryPlaces rotary_places(Lower *lower, const Group *group)
{
    RotaryPlaces places = {.cos = {arg_none(), arg_none()}, .sin = {arg_none(), arg_none()}};
    for (uint32_t i = 0; i < 2; i++) {
        if (!group->rotary[i].x)
            continue;
        places.cos[i] = table_place(lower, group->rotary[i].cos);
        places.sin[i] = table_place(lower, group->rotary[i].sin);
    }
    return places;
}

static void set_rotary(Lower *lower, const Group *group, const RotaryPlaces *places)
{
    const size_t first[2] = {ARG(AttentionArgs, q_rotary), ARG(AttentionArgs, k_rotary)};
    for (uint32_t i = 0; i < 2; i++) {
        if (!group->rotary[i].x)
            continue;
        set_arg(lower, first[i] + ARG(RotaryLoad, cos), places->cos[i]);
        set_arg(lower, first[i] + ARG(RotaryLoad, sin), places->sin[i]);
        set_int(lower, first[i] + ARG(RotaryLoad, width), group->rotary[i].width);
        set_int(lower, first[i] + ARG(RotaryLoad, partner), group->rotary[i].partner);
    }
}

void lower_attention(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *q = val_type(lower->graph, node->in[0]), *v = val_type(lower->graph, node->in[2]);
    Attention at = {.lead = 0};
    Val vals[TENSORS] = {node->in[0], node->in[1], node->in[2]};
    for (uint32_t i = 0; i < 2; i++)
        if (group->rotary[i].x)
            vals[Q + i] = group->rotary[i].x;
    vals[MASK] = node->nin > 3 ? node->in[3] : 0;
    take_operands(lower, &at, vals, q);
    RotaryPlaces rotary = rotary_places(lower, group);
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
    set_rotary(lower, group, &rotary);
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
    for (uint32_t i = 0; i < 2; i++)
        if (group->rotary[i].x)
            vals[Q + i] = group->rotary[i].x;
    vals[MASK] = node->nin > 6 ? node->in[6] : 0;
    take_operands(lower, &at, vals, q);
    // o may be a part of something larger: then its copy could not have the same strides
    View o = view_of(lower->work, node->in[4]);
    if (val_get(lower->graph, o.base)->op != OP_ATTENTION)
        take_tensor(lower, &at, O, node->in[4], true);
    take_tensor(lower, &at, DO, node->in[0], false);
    match_layout(lower, &at, node->in[0]);
    PlanArg lse = dense_place(lower, node->in[5]);
    RotaryPlaces rotary = rotary_places(lower, group);
    for (uint32_t i = 0; i < 3; i++) {
        at.there[DQ + i] = true;
        at.place[DQ + i] = wanted_place(lower, group, i);
        Val result = group->results[i] ? group->results[i] : val_of(group->anchor, i);
        View view = view_of(lower->work, result);
        memcpy(at.stride[DQ + i], view.stride, sizeof view.stride);
    }
    join_leading(&at, q);
    if (at.lead > LEADING)
        bug("attention over more than three axes of problems: %s", type_text(q));
    launch_begin(lower, "pv_attention_grad", sizeof(AttentionGradArgs) / 8);
    set_attention(lower, node, &at, lse, q, v);
    set_rotary(lower, group, &rotary);
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
