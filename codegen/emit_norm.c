// Norms, their gradients, and softmax: arguments and layouts; norms taken apart.
//
// Group norms want images whose positions are dense; layer norm and softmax want rows.
#include <string.h>

#include "codegen/codegen.h"

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

// ---- norms ----

static PlanArg optional_result(Lower *lower, const Group *group, uint32_t out)
{
    return group->results[out] ? result_place(lower, group->results[out]) : arg_none();
}

// The image that a launch of GroupNormArgs reads.
static void set_image(Lower *lower, const Type *type, PlanArg x, const Dim *x_stride)
{
    set_arg(lower, ARG(GroupNormArgs, x), x);
    set_dim(lower, ARG(GroupNormArgs, images), type->dim[0]);
    set_dim(lower, ARG(GroupNormArgs, c), type->dim[1]);
    set_dim(lower, ARG(GroupNormArgs, positions), dims_between(type, 2, type->rank));
    set_dim(lower, ARG(GroupNormArgs, x_image), x_stride[0]);
    set_dim(lower, ARG(GroupNormArgs, x_channel), x_stride[1]);
    set_dim(lower, ARG(GroupNormArgs, x_position), x_stride[2]);
}

// What a group norm, or the launch that makes only its table, is given of x.
static void set_normed(Lower *lower, const Node *node, PlanArg x, const Dim *x_stride)
{
    set_image(lower, val_type(lower->graph, node->in[0]), x, x_stride);
    set_int(lower, ARG(GroupNormArgs, groups), node->attr->n[0]);
    set_dim(lower, ARG(GroupNormArgs, y_position), x_stride[2]);
    set_real(lower, ARG(GroupNormArgs, eps), node->attr->real);
}

// What it is given by channel, and its statistics.
static void set_channels(Lower *lower, const NormTablePlaces *at)
{
    set_arg(lower, ARG(GroupNormArgs, mean), at->mean);
    set_arg(lower, ARG(GroupNormArgs, rstd), at->rstd);
    set_arg(lower, ARG(GroupNormArgs, gamma), at->gamma);
    set_arg(lower, ARG(GroupNormArgs, beta), at->beta);
    set_arg(lower, ARG(GroupNormArgs, scale), at->scale);
    set_arg(lower, ARG(GroupNormArgs, shift), at->shift);
    set_dim(lower, ARG(GroupNormArgs, mod_image), at->mod_image);
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
    set_image(lower, type, x, x_stride);
    set_dim(lower, ARG(GroupNormArgs, groups), type->dim[1]);
    set_arg(lower, ARG(GroupNormArgs, moments), at.moments);
    set_dim(lower, ARG(GroupNormArgs, moments_image), at.moments_image);
    set_int(lower, ARG(GroupNormArgs, moments_shift), at.moments_shift);
    set_types(lower, ARG(GroupNormArgs, types), ARG(GroupNormArgs, y), 8, NULL, 0);
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
    set_channels(lower, &at);
    set_arg(lower, ARG(GroupNormArgs, table), at.table);
    set_types(lower, ARG(GroupNormArgs, types), ARG(GroupNormArgs, y), 8, NULL, 0);
    need_scratch(lower, pv_norm_scratch(node->type[0]->dim[2].n, real_size(lower)));
}

static void lower_group_norm(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    Dim x_stride[3], y_stride[MAX_RANK];
    PlanArg x = image_place(lower, node->in[0], x_stride);
    NormTablePlaces at = {.scale = arg_none(), .shift = arg_none(), .mod_image = dim_fixed(0)};
    at.gamma = dense_place(lower, node->in[1]);
    at.beta = dense_place(lower, node->in[2]);
    if (group->scale) {
        View scale_view = view_of(lower->work, group->scale);
        View shift_view = view_of(lower->work, group->shift);
        at.scale = view_place(lower, &scale_view, type->dtype);
        at.shift = view_place(lower, &shift_view, type->dtype);
        at.mod_image = scale_view.stride[0];
    }
    if (!strides_as(lower, group->results[0], type, y_stride) ||
        !image_strides(type, y_stride, y_stride))
        bug("a norm that cannot write its result");
    PlanArg y = result_place(lower, group->results[0]);
    at.mean = optional_result(lower, group, 1);
    at.rstd = optional_result(lower, group, 2);
    launch_begin(lower, "pv_group_norm", sizeof(GroupNormArgs) / 8);
    set_normed(lower, node, x, x_stride);
    set_channels(lower, &at);
    set_arg(lower, ARG(GroupNormArgs, y), y);
    set_dim(lower, ARG(GroupNormArgs, y_image), y_stride[0]);
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

// What the gradients of both norms read and write: the addresses that GroupNormGradArgs and
// LayerNormGradArgs begin with, and what is added.
enum { DX, DGAMMA, DBETA, DY, X, MEAN, RSTD, GAMMA, GRAD_PLACES };
typedef struct {
    PlanArg at[GRAD_PLACES];
    PlanArg dgamma_added, dbeta_added;
} GradPlaces;
_Static_assert(ARG(GroupNormGradArgs, dx) == DX && ARG(GroupNormGradArgs, gamma) == GAMMA &&
                   ARG(LayerNormGradArgs, dx) == DX && ARG(LayerNormGradArgs, gamma) == GAMMA,
               "the gradients of norms begin with the same addresses");

// The results, and what is added; affine: of gamma and beta too.
static void find_gradients(Lower *lower, const Group *group, bool affine, GradPlaces *places)
{
    places->at[DX] = result_place(lower, group->results[0]);
    places->at[DGAMMA] = affine ? wanted_place(lower, group, 1) : arg_none();
    places->at[DBETA] = affine ? wanted_place(lower, group, 2) : arg_none();
    places->dgamma_added = added_place(lower, group, 1);
    places->dbeta_added = added_place(lower, group, 2);
}

// added, types: the numbers of the arguments dgamma_added, which dbeta_added follows, and types.
static void set_gradients(Lower *lower, const GradPlaces *places, size_t added, size_t types)
{
    for (size_t i = 0; i < GRAD_PLACES; i++)
        set_arg(lower, i, places->at[i]);
    set_arg(lower, added, places->dgamma_added);
    set_arg(lower, added + 1, places->dbeta_added);
    set_types(lower, types, DX, GRAD_PLACES, (size_t[]){added, added + 1}, 2);
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
    GradPlaces places;
    places.at[DY] = image_place(lower, node->in[0], dy_stride);
    places.at[X] = image_place(lower, node->in[1], x_stride);
    for (uint32_t i = 2; i < 5; i++)
        places.at[DY + i] = dense_place(lower, node->in[i]);
    find_gradients(lower, group, true, &places);
    launch_begin(lower, "pv_group_norm_grad", sizeof(GroupNormGradArgs) / 8);
    set_gradients(lower, &places, ARG(GroupNormGradArgs, dgamma_added),
                  ARG(GroupNormGradArgs, types));
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
    GradPlaces places;
    View rows = view_of(lower->work, group->results[0]);
    int64_t c = type->dim[type->rank - 1].n;
    for (uint32_t i = 0; i < 4; i++)
        places.at[DY + i] = rows_place(lower, node->in[i], &rows, c, i < 2 ? c : 1);
    places.at[GAMMA] = affine ? dense_place(lower, node->in[4]) : arg_none();
    find_gradients(lower, group, affine, &places);
    launch_begin(lower, "pv_layer_norm_grad", sizeof(LayerNormGradArgs) / 8);
    set_gradients(lower, &places, ARG(LayerNormGradArgs, dgamma_added),
                  ARG(LayerNormGradArgs, types));
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
