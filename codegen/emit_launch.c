// From groups to launches: which kernel computes a group, and with what arguments.
//
// Groups are lowered in the order of the schedule. A result gets its storage when its group comes:
// an arena buffer, unless it is an output that can be written where it is wanted (space PV_IO or
// PV_GRAD). Operands are views; a kernel that does not take a view's layout asks for a dense copy,
// which is made by a launch before it, once for all later readers. The memory planner needs nothing
// but the list: a buffer lives from the first launch that names it to the last.
//
// The struct of a library kernel (cpu/kernels.h) is laid over the arguments, so arguments are set
// by field: ARG(GemmArgs, m). Emitted kernels name theirs by number.
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"

// ---- launches ----

void launch_begin_kernel(Lower *lower, uint32_t kernel, uint32_t arg_count)
{
    Work *work = lower->work;
    work->launches = grow_array(work->launches, &lower->launch_capacity, work->launch_count,
                                sizeof *work->launches);
    PlanLaunch *launch = &work->launches[work->launch_count++];
    *launch = (PlanLaunch){
        .kernel = kernel, .arg = work->arg_count, .arg_count = arg_count, .segments = 1};
    launch->origin = lower->group ? lower->group->anchor : 0;
    for (uint32_t i = 0; i < arg_count; i++) {
        work->args = grow_array(work->args, &lower->arg_capacity, work->arg_count,
                                sizeof *work->args);
        work->args[work->arg_count++] = arg_none();
    }
}

void launch_begin(Lower *lower, const char *symbol, uint32_t arg_count)
{
    launch_begin_kernel(lower, kernel_library(lower->cg, symbol), arg_count);
}

void set_arg(Lower *lower, size_t index, PlanArg value)
{
    const PlanLaunch *launch = &lower->work->launches[lower->work->launch_count - 1];
    if (index >= launch->arg_count)
        bug("argument %zu of a kernel with %u", index, launch->arg_count);
    lower->work->args[launch->arg + index] = value;
}

void set_dim(Lower *lower, size_t index, Dim value)
{
    PlanArg arg = {.space = PV_VALUE};
    *(value.batch ? &arg.c : &arg.a) = value.n;
    set_arg(lower, index, arg);
}

void set_int(Lower *lower, size_t index, int64_t value)
{
    set_dim(lower, index, dim_fixed(value));
}

void set_real(Lower *lower, size_t index, double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    set_int(lower, index, bits);
}

const void *launch_numbers(Lower *lower)
{
    const PlanLaunch *launch = &lower->work->launches[lower->work->launch_count - 1];
    int64_t *numbers = arena_alloc(lower->work->arena, launch->arg_count * sizeof *numbers);
    for (uint32_t i = 0; i < launch->arg_count; i++) {
        const PlanArg *arg = &lower->work->args[launch->arg + i];
        if (arg->space != PV_VALUE)
            numbers[i] = 1;        // an address: there
        else if (arg->c == 0)
            numbers[i] = arg->a;
    }
    return numbers;
}

void need_scratch(Lower *lower, int64_t bytes)
{
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > lower->work->scratch)
        lower->work->scratch = bytes;
}

// ---- places ----

PlanArg arg_none(void)
{
    return (PlanArg){.space = PV_VALUE};
}

PlanArg arg_offset(PlanArg arg, Affine elements, size_t element_size)
{
    arg.a += elements.fixed * (int64_t)element_size;
    arg.c += elements.batch * (int64_t)element_size;
    return arg;
}

Dim count_of(const Type *type)
{
    Dim count;
    if (!type_count(type, &count))
        bug("the size of %s is not linear in the batch", type_text(type));
    return count;
}

size_t place_size(const Lower *lower, PlanArg place, DType dtype)
{
    return place.store != PV_STORE_REAL ? 2 : element_size(lower->cg->module, dtype);
}

static uint8_t storage_code(DType stored)
{
    return stored == DT_BF16 ? PV_STORE_BF16 : stored == DT_F16 ? PV_STORE_F16 : PV_STORE_REAL;
}

int64_t real_size(const Lower *lower)
{
    return (int64_t)element_size(lower->cg->module, DT_F32);
}

size_t size_of(const Lower *lower, Val val)
{
    return stored_size(lower->work, val);
}

void set_types(Lower *lower, size_t types, size_t first, uint32_t count, const size_t *more,
               uint32_t more_count)
{
    const PlanLaunch *launch = &lower->work->launches[lower->work->launch_count - 1];
    const PlanArg *args = &lower->work->args[launch->arg];
    int64_t all = 0;
    for (uint32_t i = 0; i < count; i++)
        all |= (int64_t)args[first + i].store << (4 * i);
    for (uint32_t i = 0; i < more_count; i++)
        all |= (int64_t)args[more[i]].store << (4 * (count + i));
    set_int(lower, types, all);
}

const Node *anchor_of(const Lower *lower, const Group *group)
{
    return graph_node(lower->graph, group->anchor);
}

int64_t activation(Op op)
{
    return op == OP_SILU ? PV_ACT_SILU : op == OP_GELU ? PV_ACT_GELU
           : op == OP_RELU ? PV_ACT_RELU : PV_ACT_NONE;
}

PlanArg new_buffer(Lower *lower, Dim count, DType stored)
{
    Work *work = lower->work;
    PlanArg place = {.space = PV_ARENA, .store = storage_code(stored)};
    size_t size = place_size(lower, place, stored);
    work->buffers = grow_array(work->buffers, &lower->buffer_capacity, work->buffer_count,
                               sizeof *work->buffers);
    Buffer *buffer = &work->buffers[work->buffer_count++];
    *buffer = (Buffer){.size = count.n * (int64_t)size, .first = -1};
    buffer->bytes = (buffer->size + 255) / 256 * 256;
    buffer->batch = count.batch;
    place.buffer = work->buffer_count;
    return place;
}

uint32_t place_index(const Lower *lower, Val val)
{
    return local_of(lower->work, val) * MAX_OUT + val_out(val);
}

PlanArg result_place(Lower *lower, Val val)
{
    uint32_t index = place_index(lower, val);
    const View *within = within_of(lower->work, val);
    if (!lower->work->placed[index] && within) {
        lower->work->placed[index] = true;
        if (val_get(lower->graph, within->base)->op == OP_CONCAT)
            result_place(lower, within->base);         // with the first of its parts
        lower->work->place[index] = view_place(lower, within, val_type(lower->graph, val)->dtype);
    } else if (!lower->work->placed[index]) {
        lower->work->placed[index] = true;
        lower->work->place[index] =
            new_buffer(lower, count_of(val_type(lower->graph, val)),
                       stored_dtype(lower->work, val));
    }
    PlanArg place = lower->work->place[index];
    place.result = true;
    return place;
}

PlanArg wanted_place(Lower *lower, const Group *group, uint32_t out)
{
    if (group->results[out])
        return result_place(lower, group->results[out]);
    const Type *type = anchor_of(lower, group)->type[out];
    return new_buffer(lower, count_of(type), type->dtype);
}

static PlanArg scalar_place(Lower *lower, Val val)
{
    Work *work = lower->work;
    uint32_t slot = 0;
    while (slot < work->scalar_count && work->scalars[slot] != val)
        slot++;
    if (slot == work->scalar_count) {
        work->scalars = grow_array(work->scalars, &lower->scalar_capacity, slot,
                                   sizeof *work->scalars);
        work->scalars[work->scalar_count++] = val;
    }
    return (PlanArg){.space = PV_SCALAR, .a = (int64_t)slot * 8};
}

// Bytes of one element of `dtype` with that value.
static size_t element_bits(const Lower *lower, DType dtype, double value, int64_t *bits)
{
    size_t size = element_size(lower->cg->module, dtype);
    *bits = 0;
    if (dtype_is_float(dtype) && size == 8) {
        memcpy(bits, &value, 8);
    } else if (dtype_is_float(dtype)) {
        float single = (float)value;
        memcpy(bits, &single, 4);
    } else {
        *bits = (int64_t)value;
    }
    return size;
}

// A parameter, or its shadow, whose elements are half as wide.
static PlanArg param_place(const Lower *lower, Val val, const Node *node)
{
    int64_t offset = lower->cg->param_offset[node->attr->n[0]];
    uint8_t store = storage_code(stored_dtype(lower->work, val));
    if (store == PV_STORE_REAL)
        return (PlanArg){.space = PV_PARAM, .a = offset};
    return (PlanArg){.space = PV_SHADOW, .a = offset / 2, .store = store};
}

// Where the storage of a base begins.
static PlanArg base_place(Lower *lower, Val base)
{
    Codegen *cg = lower->cg;
    const Node *node = val_get(lower->graph, base);
    uint32_t index = place_index(lower, base);
    if (lower->work->placed[index])
        return lower->work->place[index];
    if (node->op == OP_CONST) {
        int64_t bits;
        size_t size = element_bits(lower, node->type[0]->dtype, node->attr->real, &bits);
        return (PlanArg){.space = PV_CONST, .a = (int64_t)data_add(cg, &bits, size)};
    }
    if (val_is_step(lower->work, base))
        return scalar_place(lower, base);
    if (node->op == OP_TABLE)
        return (PlanArg){.space = PV_CONST, .a = (int64_t)data_table(cg, node)};
    if (node->op == OP_PARAM)
        return param_place(lower, base, node);
    if (node->op == OP_LOSS_SCALE)
        return (PlanArg){.space = PV_SCALAR, .a = PV_LOSS_SCALE_AT};
    if (node->op == OP_INPUT)
        return (PlanArg){.space = (uint16_t)(PV_IO + node->attr->n[1])};
    bug("%%%u (%s) is read before it is computed", val_node(base), op_info[node->op].name);
}

PlanArg view_place(Lower *lower, const View *view, DType dtype)
{
    PlanArg base = base_place(lower, view->base);
    return arg_offset(base, view->offset, place_size(lower, base, dtype));
}

static void count_bytes(Lower *lower, Dim elements, size_t size)
{
    PlanLaunch *launch = &lower->work->launches[lower->work->launch_count - 1];
    *(elements.batch ? &launch->bytes_batch : &launch->bytes_fixed) +=
        (double)elements.n * (double)size;
}

static void count_copy(Lower *lower, const CopyShape *axes, size_t x_size, size_t y_size)
{
    Dim read = dim_fixed(1), written = dim_fixed(1);
    for (uint32_t i = 0; i < axes->rank; i++) {
        written = dim_product(written, axes->size[i]);
        if (axes->x[i].n != 0)
            read = dim_product(read, axes->size[i]);
    }
    count_bytes(lower, read, x_size);
    count_bytes(lower, written, y_size);
}

void launch_copy(Lower *lower, PlanArg y, PlanArg x, const CopyShape *shape, DType dtype)
{
    CopyShape axes = {.rank = 0};
    for (uint32_t i = 0; i < shape->rank; i++) {
        uint32_t last = axes.rank - 1;
        if (dim_is_one(shape->size[i]))
            continue;
        if (axes.rank > 0 && axes_merge(axes.x[last], shape->x[i], shape->size[i]) &&
            axes_merge(axes.y[last], shape->y[i], shape->size[i])) {
            axes.size[last] = dim_product(axes.size[last], shape->size[i]);
        } else {
            last = axes.rank++;
            axes.size[last] = shape->size[i];
        }
        axes.x[last] = shape->x[i];
        axes.y[last] = shape->y[i];
    }
    if (axes.rank == 0) {
        axes.rank = 1;
        axes.size[0] = dim_fixed(1);
    }
    launch_begin(lower, "pv_copy", sizeof(CopyArgs) / 8);
    size_t size = place_size(lower, y, dtype);
    count_copy(lower, &axes, place_size(lower, x, dtype), size);
    lower->work->launches[lower->work->launch_count - 1].label = "copy";
    y.result = true;
    set_arg(lower, ARG(CopyArgs, y), y);
    set_arg(lower, ARG(CopyArgs, x), x);
    set_int(lower, ARG(CopyArgs, bytes), (int64_t)size);
    if (x.store != y.store)
        set_types(lower, ARG(CopyArgs, types), ARG(CopyArgs, y), 2, NULL, 0);
    set_int(lower, ARG(CopyArgs, axes), axes.rank);
    for (uint32_t i = 0; i < axes.rank; i++) {
        set_dim(lower, ARG(CopyArgs, size) + i, axes.size[i]);
        set_dim(lower, ARG(CopyArgs, x_stride) + i, axes.x[i]);
        set_dim(lower, ARG(CopyArgs, y_stride) + i, axes.y[i]);
    }
}

// Copies what `val` shows to `y`, whose axes lie at `stride`.
void copy_val(Lower *lower, Val val, PlanArg y, const Dim *stride)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    CopyShape shape = {.rank = type->rank};
    memcpy(shape.size, type->dim, sizeof shape.size);
    memcpy(shape.x, view.stride, sizeof shape.x);
    memcpy(shape.y, stride, type->rank * sizeof *stride);
    launch_copy(lower, y, view_place(lower, &view, type->dtype), &shape, type->dtype);
}

PlanArg dense_place(Lower *lower, Val val)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    if (view_is_dense(&view, type))
        return view_place(lower, &view, type->dtype);
    uint32_t index = place_index(lower, val);
    if (!lower->work->has_dense[index]) {
        Dim stride[MAX_RANK];
        dense_strides(type, stride);
        PlanArg y = new_buffer(lower, count_of(type), stored_dtype(lower->work, val));
        copy_val(lower, val, y, stride);
        lower->work->has_dense[index] = true;
        lower->work->dense[index] = y;
        lower->work->dense_at[index] = (int32_t)lower->work->launch_count - 1;
    }
    return lower->work->dense[index];
}

PlanArg image_place(Lower *lower, Val val, Dim *stride)
{
    const Type *type = val_type(lower->graph, val);
    View view = view_of(lower->work, val);
    Dim dense[MAX_RANK];
    dense_strides(type, dense);
    image_strides(type, dense, stride);
    if (is_mixed_plan(lower->work)) {
        Dim image[3];
        if (image_strides(type, view.stride, image)) {
            memcpy(stride, image, sizeof image);
            return view_place(lower, &view, type->dtype);
        }
        return dense_place(lower, val);
    }
    uint32_t free_axes = lower->work->rungs & RUNG_PLACEMENT ? 2 : 1;
    bool fits = view.stride[0].n >= 0 && view.stride[1].n >= 0;
    for (uint32_t axis = free_axes; axis < type->rank; axis++)
        fits &= dim_equal(dense[axis], view.stride[axis]);
    if (!fits)
        return dense_place(lower, val);
    image_strides(type, view.stride, stride);
    return view_place(lower, &view, type->dtype);
}

bool strides_as(const Lower *lower, Val val, const Type *type, Dim *stride)
{
    View view = view_of(lower->work, val), out;
    bool fits = reshape_view(&view, val_type(lower->graph, val), type, &out);
    memcpy(stride, out.stride, sizeof out.stride);
    return fits;
}

PlanArg place_like(Lower *lower, Val val, const Type *type, Dim *stride)
{
    Dim there[MAX_RANK], next = dim_fixed(1);
    const Type *own = val_type(lower->graph, val);
    bool done[MAX_RANK] = {false};
    for (uint32_t i = 0; i < type->rank; i++) {
        uint32_t least = MAX_RANK;     // the axis that comes next, from the inner one outwards
        for (uint32_t axis = type->rank; axis-- > 0;)
            if (!done[axis] && (least == MAX_RANK || stride[axis].batch < stride[least].batch ||
                                (stride[axis].batch == stride[least].batch &&
                                 stride[axis].n < stride[least].n)))
                least = axis;
        done[least] = true;
        there[least] = dim_is_one(type->dim[least]) ? dim_fixed(0) : next;
        next = dim_product(next, type->dim[least]);
    }
    memcpy(stride, there, sizeof there);
    CopyShape shape = {.rank = type->rank};
    memcpy(shape.size, type->dim, sizeof shape.size);
    memcpy(shape.y, there, sizeof shape.y);
    View view = view_of(lower->work, val);
    PlanArg x = view_place(lower, &view, own->dtype);
    if (!strides_as(lower, val, type, shape.x)) {
        x = dense_place(lower, val);
        dense_strides(type, shape.x);
    }
    PlanArg y = new_buffer(lower, count_of(type), stored_dtype(lower->work, val));
    launch_copy(lower, y, x, &shape, type->dtype);
    return y;
}

void residual_inplace(Lower *lower, const Group *group, PlanArg result, PlanArg residual)
{
    Work *work = lower->work;
    PlanLaunch *launch = &work->launches[work->launch_count - 1];
    View view = view_of(work, group->residual), there = view_of(work, group->results[0]);
    const Type *type = val_type(lower->graph, group->residual);
    Dim stride[MAX_RANK];
    if (!strides_as(lower, group->results[0], type, stride))
        return;
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_equal(stride[axis], view.stride[axis]))
            return;
    if (!covers(&view, type) || !covers(&there, val_type(lower->graph, group->results[0])))
        return;
    if (residual.space != PV_ARENA || residual.a || residual.c ||
        (result.space != PV_ARENA && result.space != PV_GRAD))
        return;
    uint32_t mentions = 0;
    for (uint32_t i = 0; i < launch->arg_count; i++) {
        const PlanArg *arg = &work->args[launch->arg + i];
        mentions += arg->space == PV_ARENA && arg->buffer == residual.buffer;
    }
    int64_t size = count_of(type).n * (int64_t)size_of(lower, group->residual);
    if (mentions != 1 || residual.store != result.store ||
        work->buffers[residual.buffer - 1].size != size)
        return;
    launch->inplace_out = result;
    launch->inplace_in = residual.buffer;
}

// ---- groups of the library ----

void launch_fill(Lower *lower, PlanArg y, const Type *type, double value)
{
    int64_t bits;
    size_t size = element_bits(lower, type->dtype, value, &bits);
    launch_begin(lower, "pv_fill", sizeof(FillArgs) / 8);
    count_bytes(lower, count_of(type), size);
    lower->work->launches[lower->work->launch_count - 1].label = "fill";
    y.result = true;
    set_arg(lower, ARG(FillArgs, y), y);
    set_dim(lower, ARG(FillArgs, count), count_of(type));
    set_int(lower, ARG(FillArgs, bytes), (int64_t)size);
    set_int(lower, ARG(FillArgs, value), bits);
}

static void lower_library(Lower *lower, const Group *group)
{
    switch (anchor_of(lower, group)->op) {
    case OP_CONCAT:
        lower_concat(lower, group);
        return;
    case OP_PAD:
        lower_pad(lower, group);
        return;
    case OP_WINDOW: case OP_WINDOW_GRAD:
        lower_window(lower, group);
        return;
    case OP_PICK: case OP_PICK_GRAD:
        lower_pick(lower, group);
        return;
    case OP_GATHER: case OP_GATHER_GRAD:
        lower_gather(lower, group);
        return;
    case OP_RANDOM:
        lower_random(lower, group);
        return;
    case OP_REDUCE_SUM: case OP_REDUCE_MAX: case OP_REDUCE_MIN:
        lower_reduce(lower, group);
        return;
    case OP_RESHAPE:
        lower_move(lower, group);
        return;
    case OP_CONTRACT:
        lower_contract(lower, group);
        return;
    case OP_CONV: case OP_CONV_DGRAD: case OP_CONV_WGRAD:
        lower_conv(lower, group);
        return;
    case OP_ATTENTION:
        lower_attention(lower, group);
        return;
    case OP_ATTENTION_GRAD:
        lower_attention_grad(lower, group);
        return;
    case OP_SOFTMAX: case OP_LAYER_NORM: case OP_LAYER_NORM_GRAD: case OP_GROUP_NORM:
    case OP_GROUP_NORM_TABLE: case OP_CHANNEL_MOMENTS: case OP_GROUP_NORM_GRAD:
        lower_norm(lower, group);
        return;
    case OP_CONST: case OP_TABLE: case OP_INPUT: case OP_PARAM: case OP_OPTION: case OP_BATCH:
    case OP_GIVEN: case OP_VAR: case OP_LOSS_SCALE: case OP_NEG: case OP_ABS: case OP_SIGN:
    case OP_SQRT: case OP_RSQRT: case OP_EXP: case OP_LOG: case OP_SIN: case OP_COS: case OP_TANH:
    case OP_ERF: case OP_SIGMOID: case OP_SOFTPLUS: case OP_RELU: case OP_SILU: case OP_GELU:
    case OP_GELU_TANH: case OP_FLOOR: case OP_NOT: case OP_CAST: case OP_STOP_GRADIENT:
    case OP_ADD: case OP_SUB: case OP_MUL: case OP_DIV: case OP_MOD: case OP_POW: case OP_MIN:
    case OP_MAX: case OP_EQ: case OP_NE: case OP_LT: case OP_LE: case OP_AND: case OP_OR:
    case OP_WHERE: case OP_TRANSPOSE: case OP_EXPAND: case OP_SLICE: case OP_FLIP:
    case OP_SWAP_PAIRS: case OP_COUNT:
        break;
    }
    bug("%s has no kernel of the library", op_info[anchor_of(lower, group)->op].name);
}

// ---- what a plan draws, writes, reads ----

static void add_number(Work *work, uint32_t **list, uint32_t *count, uint32_t limit,
                       uint32_t number)
{
    if (!*list)
        *list = arena_alloc(work->arena, (limit + 1) * sizeof **list);
    for (uint32_t i = 0; i < *count; i++)
        if ((*list)[i] == number)
            return;
    (*list)[(*count)++] = number;
}

static void list_step_streams(Lower *lower, Val val)
{
    const Node *node = val_get(lower->graph, val);
    if (node->op == OP_RANDOM)
        add_number(lower->work, &lower->work->streams, &lower->work->stream_count,
                   lower->cg->module->stream_count, stream_index(lower->cg, node->attr->text));
    for (uint32_t i = 0; i < node->nin; i++)
        list_step_streams(lower, node->in[i]);
}

static void list_uses(Lower *lower)
{
    Work *work = lower->work;
    const Module *module = lower->cg->module;
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = graph_node(lower->graph, work->nodes[local]);
        if (work->step[local])
            list_step_streams(lower, val_of(work->nodes[local], 0));
        else if (node->op == OP_RANDOM)
            add_number(work, &work->streams, &work->stream_count, module->stream_count,
                       stream_index(lower->cg, node->attr->text));
        else if (node->op == OP_PARAM)
            add_number(work, &work->instances, &work->instance_count, module->instance_count,
                       module->params[node->attr->n[0]].instance);
    }
    for (uint32_t i = 0; work->table && i < work->table->count; i++) {
        const Node *node = graph_node(lower->graph, work->table->nodes[i]);
        if (node->op == OP_PARAM)
            add_number(work, &work->instances, &work->instance_count, module->instance_count,
                       module->params[node->attr->n[0]].instance);
    }
    for (uint32_t i = 0; i < work->variant->path_count; i++)
        list_step_streams(lower, work->variant->path[i].cond);
    for (uint32_t i = 0; i < work->variant->output_count; i++) {
        const Output *output = &work->variant->outputs[i];
        if (output->kind == OUT_GRAD)
            add_number(work, &work->grads, &work->grad_count, module->param_count, output->param);
        if (output->kind == OUT_STATE || output->kind == OUT_GRAD)
            add_number(work, &work->instances, &work->instance_count, module->instance_count,
                       module->params[output->param].instance);
    }
}

// The group comes again: its results get new storage, and copies of them are out of date.
static void forget_results(Lower *lower, const Group *group)
{
    Work *work = lower->work;
    for (uint32_t i = 0; i < group->result_count; i++) {
        Val val = group->results[i];
        if (!val || !work->placed[place_index(lower, val)])
            continue;
        work->placed[place_index(lower, val)] = false;
        work->has_dense[place_index(lower, val)] = false;
        for (uint32_t local = 0; local < work->count; local++)
            if (work->view[local] && work->view[local]->base == val)
                work->has_dense[local * MAX_OUT] = false;
    }
}

// What a group computes and moves, to the last of its launches (from `first` on) that is not a copy
// or a fill: those have counted their own bytes.
static void count_work(Lower *lower, const Group *group, uint32_t first)
{
    Work *work = lower->work;
    PlanLaunch *main = &work->launches[work->launch_count - 1];
    const char *label = group_label(work, group);
    for (uint32_t i = first; i < work->launch_count; i++) {
        PlanLaunch *launch = &work->launches[i];
        if (launch->bytes_fixed + launch->bytes_batch <= 0)
            main = launch;
        if (!launch->label)
            launch->label = label;
    }
    if (main->bytes_fixed + main->bytes_batch <= 0)
        group_bytes(work, group, &main->bytes_fixed, &main->bytes_batch);
    for (uint32_t i = 0; i < group->member_count; i++) {
        double fixed, per_batch;
        node_flops(lower->graph, group->members[i], &fixed, &per_batch);
        main->flops_fixed += fixed;
        main->flops_batch += per_batch;
    }
}

// The terms of a sum one by one: each adds what those before it left. first[i]: the launch that
// term i begins with.
static void lower_terms(Lower *lower, const Group *group, uint32_t *first)
{
    for (uint32_t i = 0; i < group->term_count; i++) {
        Group term = *group;
        term.anchor = group->terms[i];
        term.norm = group->term_norms[i];
        term.residual = group->results[0];
        first[i + 1] = lower->work->launch_count;
        lower_library(lower, &term);
    }
}

// first[]: the launch that the group begins with, and those of its terms; returns how many.
static uint32_t lower_group(Lower *lower, uint32_t number, uint32_t *first)
{
    Work *work = lower->work;
    const Group *group = &work->groups[number];
    lower->group = group;
    if (group->lowered)
        forget_results(lower, group);
    work->groups[number].lowered = true;
    first[0] = work->launch_count;
    if (group->kind == GROUP_ELEMENTWISE)
        lower_elementwise(lower, group, number);
    else
        lower_library(lower, group);
    lower_terms(lower, group, first);
    uint32_t end = work->launch_count;
    if (end == first[0] && !work->pieces[local_of(work, val_of(group->anchor, 0))])
        bug("a group without a launch");
    for (uint32_t i = 0; i < group->result_count; i++)
        if (group->results[i])
            work->made_at[place_index(lower, group->results[i])] = (int32_t)end - 1;
    if (end > first[0])
        count_work(lower, group, first[0]);
    copy_taps(lower, group);
    return 1 + group->term_count;
}

// The group at a place of the schedule and those joined with it; returns how many.
static uint32_t lower_set(Lower *lower, uint32_t position)
{
    Work *work = lower->work;
    uint32_t first[PV_MAX_SEGMENTS + 1], count = 0, members = 0;
    do {
        members += lower_group(lower, work->schedule[position + count++], first + members);
    } while (work->joined && position + count < work->group_count &&
             work->joined[position + count]);
    first[members] = work->launch_count;
    if (work->launch_count > first[0] + 1 && (work->joined || members > 1))
        join_segments(lower, work->schedule + position, count, first, members);
    return count;
}

void lower_groups(Codegen *cg, Work *work)
{
    Lower lower = {.cg = cg, .work = work, .graph = cg->module->graph};
    size_t slots = ((size_t)work->count + 1) * MAX_OUT;
    work->place = arena_alloc(work->arena, slots * sizeof *work->place);
    work->placed = arena_alloc(work->arena, slots * sizeof *work->placed);
    work->dense = arena_alloc(work->arena, slots * sizeof *work->dense);
    work->has_dense = arena_alloc(work->arena, slots * sizeof *work->has_dense);
    work->made_at = arena_alloc(work->arena, slots * sizeof *work->made_at);
    work->dense_at = arena_alloc(work->arena, slots * sizeof *work->dense_at);
    memset(work->made_at, 0xff, slots * sizeof *work->made_at);      // -1: before the first launch
    list_taps(&lower);
    bool *direct = arena_alloc(work->arena, work->variant->output_count + 1);
    place_outputs(&lower, direct);
    for (uint32_t i = 0; i < work->group_count;)
        i += lower_set(&lower, i);
    lower.group = NULL;
    place_taps(&lower);
    store_outputs(&lower, direct);
    list_uses(&lower);
}
