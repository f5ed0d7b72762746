// The built-in modules: their parameters with first values, and their forward passes.
//
// First values are PyTorch's: uniform in +-1 / sqrt(fan_in) for weights and biases of linear maps
// and convolutions (kaiming_uniform with a = sqrt 5), ones and zeros for norms, N(0, 1) for an
// embedding. `init` sets the weight; where it is `zeros`, the bias is zero too.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "compiler/elab.h"

// ---- parameters ----

#define PARAM_MAX_ELEMENTS 1e11 // the offsets of all parameters are sums of these

ParamObject *param_new(Elab *e, const char *label, uint32_t rank, const int64_t *dim, Span span)
{
    ParamObject *param = arena_alloc(e->arena, sizeof *param);
    param->label = label;
    param->span = span;
    param->type = type_scalar(e->real);
    param->type.rank = rank;
    double count = 1;
    for (uint32_t i = 0; i < rank; i++) {
        param->type.dim[i] = dim_fixed(dim[i]);
        count *= (double)dim[i];
    }
    if (count > PARAM_MAX_ELEMENTS)
        elab_fail(e, span, "a parameter of %.3g elements is too large", count);
    return param;
}

// First values from `zeros`, `ones`, `full(_, 2.0)`, `normal(_, std: 0.02)`, `uniform(_, -1, 1)`.
void param_init(Elab *e, ParamObject *param, Value init, Span span)
{
    const Args *args = NULL;
    if (init.kind == V_PARTIAL) {
        args = &init.partial->args;
        init = init.partial->callee;
    }
    const char *name = init.kind == V_BUILTIN ? init.builtin->name : "";
    Value out[MAX_BUILTIN_PARAMS] = {{.kind = V_ABSENT}, {.kind = V_ABSENT}, {.kind = V_ABSENT}};
    Span spans[MAX_BUILTIN_PARAMS];
    if (args) {
        Args *copy = arena_copy(e->arena, args, sizeof *args);
        bind_builtin(e, name, init.kind == V_BUILTIN ? init.builtin->params : "x", copy, out,
                     spans);
    }
    bool normal = strcmp(name, "normal") == 0, uniform = strcmp(name, "uniform") == 0;
    double a = 0, b = 1;
    if (args && out[1].kind != V_ABSENT)
        a = value_number(e, out[1], span, "a first value");
    if (args && (normal || uniform) && out[2].kind != V_ABSENT)
        b = value_number(e, out[2], span, "a first value");
    param->init_a = a;
    param->init_b = b;
    if (normal)
        param->init = INIT_NORMAL;
    else if (uniform)
        param->init = INIT_UNIFORM;
    else if (strcmp(name, "zeros") == 0)
        param->init = INIT_ZEROS;
    else if (strcmp(name, "ones") == 0)
        param->init = INIT_ONES;
    else if (strcmp(name, "full") == 0)
        param->init = INIT_FULL;
    else {
        elab_error(e, span, "this is no initialiser");
        elab_help(e, (Span){0},
                  "zeros, ones, full(_, 2.0), normal, normal(_, std: 0.02), "
                  "uniform(_, -1, 1)");
        elab_stop(e);
    }
}

// The present value of a parameter in the run at hand.
Val param_val(Elab *e, ParamObject *param, Span span)
{
    if (!param->named && e->constructing)
        elab_fail(e, span, "parameters have values only when a module is called, not in its body");
    if (!param->named) {
        elab_error(e, span, "parameter '%s' belongs to no model", param->label);
        elab_note(e, param->span, "made here");
        elab_help(e, (Span){0}, "bind its module to a field of the model");
        elab_stop(e);
    }
    if (e->run && e->run->state && e->run->state[param->index])
        return e->run->state[param->index];
    Attr attr = {.n = {param->index}, .count = 1};
    Val val = graph_make(e->graph, OP_PARAM, NULL, 0, &attr, &param->type);
    if (!val)
        elab_fail_graph(e, span);
    return val;
}

static void add_field(Elab *e, ModuleInstance *self, ParamObject *param)
{
    Value value = {.kind = V_PARAM, .param = param};
    frame_bind(e, self->frame, intern(param->label), value, param->span, BIND_FIELD);
}

static ParamObject *add_param(Elab *e, ModuleInstance *self, const char *label, uint32_t rank,
                              const int64_t *dim, InitKind init, double a, double b, Span span)
{
    ParamObject *param = param_new(e, label, rank, dim, span);
    param->init = init;
    param->init_a = a;
    param->init_b = b;
    add_field(e, self, param);
    return param;
}

static Val field_val(Elab *e, const ModuleInstance *self, const char *label, Span span)
{
    Binding *binding = frame_find(self->frame, intern(label));
    return binding ? param_val(e, binding->value.param, span) : 0;
}

// ---- arguments ----

static int64_t size_arg(Elab *e, Value value, const Args *call, const char *what)
{
    int64_t size = value_whole(e, value, call->span, what);
    if (size < 1 || size > INT32_MAX)
        elab_fail(e, call->span, "%s is %" PRId64, what, size);
    return size;
}

static int64_t count_arg(Elab *e, Value value, const Args *call, const char *what, int64_t absent)
{
    if (value.kind == V_ABSENT)
        return absent;
    int64_t count = value_whole(e, value, call->span, what);
    if (count < 0 || count > INT32_MAX)
        elab_fail(e, call->span, "%s is %" PRId64, what, count);
    return count;
}

static double real_arg(Elab *e, Value value, const Args *call, const char *what, double absent)
{
    return value.kind == V_ABSENT ? absent : value_number(e, value, call->span, what);
}

static bool flag_arg(Elab *e, Value value, const Args *call, const char *what, bool absent)
{
    if (value.kind == V_ABSENT)
        return absent;
    if (value.kind != V_BOOL)
        elab_fail(e, call->span, "%s is true or false; this is %s", what, value_describe(e, value));
    return value.integer != 0;
}

// One number for all axes, or a list of one each.
static void axes_arg(Elab *e, Value value, const Args *call, const char *what, int64_t absent,
                     uint32_t axes, int64_t *out)
{
    if (value.kind == V_LIST && value.list->count != axes)
        elab_fail(e, call->span, "%s has %" PRIu32 " values for %" PRIu32 " axes", what,
                  value.list->count, axes);
    for (uint32_t i = 0; i < axes; i++)
        out[i] = value.kind == V_LIST ? count_arg(e, value.list->at[i], call, what, absent)
                                      : count_arg(e, value, call, what, absent);
}

// Weight and bias with PyTorch's first values, or those of `init`.
static void add_weights(Elab *e, ModuleInstance *self, uint32_t rank, const int64_t *dim,
                        int64_t fan_in, int64_t out, bool bias, Value init, Span span)
{
    double bound = 1 / sqrt((double)fan_in);
    ParamObject *weight =
        add_param(e, self, "weight", rank, dim, INIT_UNIFORM, -bound, bound, span);
    if (init.kind != V_ABSENT)
        param_init(e, weight, init, span);
    bool zero = init.kind != V_ABSENT && weight->init == INIT_ZEROS;
    if (bias)
        add_param(e, self, "bias", 1, &out, zero ? INIT_ZEROS : INIT_UNIFORM, zero ? 0 : -bound,
                  zero ? 0 : bound, span);
}

static Value finish(Elab *e, Val val, const Args *call)
{
    return tensor_or_fail(e, val, call->span);
}

// ---- Linear ----

static void linear_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    int64_t in = size_arg(e, arg[0], call, "the width in");
    int64_t out = size_arg(e, arg[1], call, "the width out");
    add_weights(e, self, 2, (int64_t[]){out, in}, in, out, flag_arg(e, arg[2], call, "bias", true),
                arg[3], call->span);
}

static Value linear_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    Val w = field_val(e, self, "weight", call->span);
    return finish(e, compose_linear(e->graph, x.val, w, field_val(e, self, "bias", call->span)),
                  call);
}

// ---- convolutions: in out kernel stride= pad= groups= bias= init= ----

enum { CONV_STRIDE, CONV_PAD = 3, CONV_GROUPS = 6, CONV_AXES };

static void conv_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call,
                           uint32_t axes)
{
    int64_t in = size_arg(e, arg[0], call, "the number of channels in");
    int64_t out = size_arg(e, arg[1], call, "the number of channels out");
    int64_t dim[5], kernel[3];
    axes_arg(e, arg[2], call, "kernel", 1, axes, kernel);
    axes_arg(e, arg[3], call, "stride", 1, axes, self->config + CONV_STRIDE);
    axes_arg(e, arg[4], call, "pad", 0, axes, self->config + CONV_PAD);
    int64_t groups = count_arg(e, arg[5], call, "groups", 1);
    self->config[CONV_GROUPS] = groups;
    self->config[CONV_AXES] = axes;
    if (groups < 1 || in % groups != 0 || out % groups != 0)
        elab_fail(e, call->span,
                  "%" PRId64 " and %" PRId64 " channels do not make %" PRId64 " groups", in, out,
                  groups);
    int64_t fan_in = in / groups;
    dim[0] = out;
    dim[1] = in / groups;
    for (uint32_t i = 0; i < axes; i++) {
        if (kernel[i] < 1 || self->config[CONV_STRIDE + i] < 1)
            elab_fail(e, call->span, "kernel and stride are at least 1");
        dim[2 + i] = kernel[i];
        fan_in *= kernel[i];
    }
    add_weights(e, self, 2 + axes, dim, fan_in, out, flag_arg(e, arg[6], call, "bias", true),
                arg[7], call->span);
}

static void conv1_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    conv_construct(e, self, arg, call, 1);
}

static void conv2_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    conv_construct(e, self, arg, call, 2);
}

static void conv3_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    conv_construct(e, self, arg, call, 3);
}

static Value conv_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    Val w = field_val(e, self, "weight", call->span);
    return finish(e,
                  compose_conv(e->graph, x.val, w, field_val(e, self, "bias", call->span),
                               self->config + CONV_STRIDE, self->config + CONV_PAD,
                               self->config[CONV_GROUPS]),
                  call);
}

// ---- transposed convolutions: in out kernel stride= pad= bias= init= ----

// PyTorch takes the fan-in of weight [in, out, k...] from its second axis: out k...
static void transpose_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call,
                                uint32_t axes)
{
    int64_t in = size_arg(e, arg[0], call, "the number of channels in");
    int64_t out = size_arg(e, arg[1], call, "the number of channels out");
    int64_t dim[5] = {in, out}, fan_in = out;
    axes_arg(e, arg[2], call, "kernel", 1, axes, dim + 2);
    axes_arg(e, arg[3], call, "stride", 1, axes, self->config + CONV_STRIDE);
    axes_arg(e, arg[4], call, "pad", 0, axes, self->config + CONV_PAD);
    for (uint32_t i = 0; i < axes; i++) {
        if (dim[2 + i] < 1 || self->config[CONV_STRIDE + i] < 1)
            elab_fail(e, call->span, "kernel and stride are at least 1");
        fan_in *= dim[2 + i];
    }
    add_weights(e, self, 2 + axes, dim, fan_in, out, flag_arg(e, arg[5], call, "bias", true),
                arg[6], call->span);
}

static void transpose1_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    transpose_construct(e, self, arg, call, 1);
}

static void transpose2_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    transpose_construct(e, self, arg, call, 2);
}

static void transpose3_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    transpose_construct(e, self, arg, call, 3);
}

static Value transpose_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    Val w = field_val(e, self, "weight", call->span);
    Val b = field_val(e, self, "bias", call->span);
    return finish(e,
                  compose_conv_transpose(e->graph, x.val, w, b, self->config + CONV_STRIDE,
                                         self->config + CONV_PAD),
                  call);
}

// ---- norms ----

static void add_affine(Elab *e, ModuleInstance *self, int64_t c, Span span)
{
    add_param(e, self, "weight", 1, &c, INIT_ONES, 0, 0, span);
    add_param(e, self, "bias", 1, &c, INIT_ZEROS, 0, 0, span);
}

// The axis a norm is made for must have its size.
static void check_channels(Elab *e, const ModuleInstance *self, Val x, bool last, const Args *call)
{
    const Type *type = val_type(e->graph, x);
    uint32_t axis = last ? type->rank - 1 : 1;
    if (axis < type->rank && dim_equal(type->dim[axis], dim_fixed(self->config[0])))
        return;
    elab_fail(e, call->span, "%s of %" PRId64 " channels does not fit %s (%s axis)",
              self->layer->name, self->config[0], shape_text(e, NULL, type),
              last ? "last" : "second");
}

static void layer_norm_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    self->config[0] = size_arg(e, arg[0], call, "the number of channels");
    self->real[0] = real_arg(e, arg[1], call, "eps", 1e-5);
    if (flag_arg(e, arg[2], call, "affine", true))
        add_affine(e, self, self->config[0], call->span);
}

static Value layer_norm_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    check_channels(e, self, x.val, true, call);
    Val gamma = field_val(e, self, "weight", call->span);
    Val beta = field_val(e, self, "bias", call->span);
    return finish(e, compose_layer_norm(e->graph, x.val, gamma, beta, self->real[0]), call);
}

static void rms_norm_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    self->config[0] = size_arg(e, arg[0], call, "the number of channels");
    self->real[0] = real_arg(e, arg[1], call, "eps", 1e-6);
    add_param(e, self, "weight", 1, self->config, INIT_ONES, 0, 0, call->span);
}

static Value rms_norm_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    check_channels(e, self, x.val, true, call);
    Val gamma = field_val(e, self, "weight", call->span);
    return finish(e, compose_rms_norm(e->graph, x.val, gamma, self->real[0]), call);
}

static void group_norm_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    self->config[1] = size_arg(e, arg[0], call, "the number of groups");
    self->config[0] = size_arg(e, arg[1], call, "the number of channels");
    self->real[0] = real_arg(e, arg[2], call, "eps", 1e-5);
    if (self->config[0] % self->config[1] != 0)
        elab_fail(e, call->span, "%" PRId64 " channels do not make %" PRId64 " groups",
                  self->config[0], self->config[1]);
    add_affine(e, self, self->config[0], call->span);
}

static Value group_norm_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    check_channels(e, self, x.val, false, call);
    Val gamma = field_val(e, self, "weight", call->span);
    Val beta = field_val(e, self, "bias", call->span);
    return finish(
        e, compose_group_norm(e->graph, x.val, gamma, beta, self->config[1], self->real[0]), call);
}

static void batch_norm_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    int64_t c = self->config[0] = size_arg(e, arg[0], call, "the number of channels");
    self->real[0] = real_arg(e, arg[1], call, "eps", 1e-5);
    self->real[1] = real_arg(e, arg[2], call, "momentum", 0.1);
    ParamObject *weight = add_param(e, self, "weight", 1, &c, INIT_ONES, 0, 0, call->span);
    if (arg[3].kind != V_ABSENT)
        param_init(e, weight, arg[3], call->span);
    add_param(e, self, "bias", 1, &c, INIT_ZEROS, 0, 0, call->span);
    add_param(e, self, "running_mean", 1, &c, INIT_ZEROS, 0, 0, call->span)->buffer = true;
    add_param(e, self, "running_var", 1, &c, INIT_ONES, 0, 0, call->span)->buffer = true;
    ParamObject *count =
        add_param(e, self, "num_batches_tracked", 0, NULL, INIT_ZEROS, 0, 0, call->span);
    count->buffer = true;
    count->type.dtype = DT_I64;
}

// Is this module in training mode here? What forces it is nearest: training(m), evaluating(m);
// else whether the block at hand moves its model.
bool elab_training(Elab *e, const ModuleInstance *self)
{
    if (e->mode & MODE_FORCED)
        return (e->mode & MODE_FORCED) == MODE_TRAINING;
    int64_t root = self && self->named ? (int64_t)self->root : e->root;
    return e->run && e->run->training && root >= 0 && e->run->training[root];
}

static void set_state(Elab *e, const ModuleInstance *self, const char *label, Val val)
{
    Binding *binding = frame_find(self->frame, intern(label));
    e->run->state[binding->value.param->index] = val;
}

static Value batch_norm_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    check_channels(e, self, x.val, false, call);
    bool training = elab_training(e, self);
    Span span = call->span;
    Val gamma = field_val(e, self, "weight", span), beta = field_val(e, self, "bias", span);
    Val mean = field_val(e, self, "running_mean", span);
    Val var = field_val(e, self, "running_var", span);
    BatchNorm norm = compose_batch_norm(e->graph, x.val, gamma, beta, mean, var, self->real[0],
                                        self->real[1], training);
    if (!norm.y)
        elab_fail_graph(e, span);
    if (training && e->run) {
        Val count = field_val(e, self, "num_batches_tracked", span);
        set_state(e, self, "running_mean", norm.mean);
        set_state(e, self, "running_var", norm.var);
        set_state(e, self, "num_batches_tracked",
                  g_binary(e->graph, OP_ADD, count, g_const(e->graph, DT_I64, 1)));
    }
    return value_tensor(norm.y);
}

// ---- Embedding ----

static void embedding_construct(Elab *e, ModuleInstance *self, Value *arg, const Args *call)
{
    int64_t dim[2] = {size_arg(e, arg[0], call, "the number of entries"),
                      size_arg(e, arg[1], call, "the width")};
    ParamObject *weight = add_param(e, self, "weight", 2, dim, INIT_NORMAL, 0, 1, call->span);
    if (arg[2].kind != V_ABSENT)
        param_init(e, weight, arg[2], call->span);
}

static Value embedding_forward(Elab *e, ModuleInstance *self, Value x, const Args *call)
{
    Val w = field_val(e, self, "weight", call->span);
    return finish(e, compose_embedding(e->graph, w, x.val), call);
}

#define CONV_PARAMS      "in out kernel stride= pad= groups= bias= init="
#define TRANSPOSE_PARAMS "in out kernel stride= pad= bias= init="

const Layer elab_layers[] = {
    {"Linear", "in out bias= init=", linear_construct, linear_forward},
    {"Conv1d", CONV_PARAMS, conv1_construct, conv_forward},
    {"Conv2d", CONV_PARAMS, conv2_construct, conv_forward},
    {"Conv3d", CONV_PARAMS, conv3_construct, conv_forward},
    {"ConvTranspose1d", TRANSPOSE_PARAMS, transpose1_construct, transpose_forward},
    {"ConvTranspose2d", TRANSPOSE_PARAMS, transpose2_construct, transpose_forward},
    {"ConvTranspose3d", TRANSPOSE_PARAMS, transpose3_construct, transpose_forward},
    {"LayerNorm", "c eps= affine=", layer_norm_construct, layer_norm_forward},
    {"RMSNorm", "c eps=", rms_norm_construct, rms_norm_forward},
    {"GroupNorm", "groups c eps=", group_norm_construct, group_norm_forward},
    {"BatchNorm", "c eps= momentum= init=", batch_norm_construct, batch_norm_forward},
    {"Embedding", "count c init=", embedding_construct, embedding_forward},
};
const uint32_t elab_layer_count = sizeof elab_layers / sizeof *elab_layers;
