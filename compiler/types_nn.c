// Type rules of reductions, contractions, convolutions, norms and attention.
//
// As in types.c: each rule fills in the output types and returns their number, or sets the graph's
// error and returns 0. The gradients among them are made by the compiler, so what does not fit
// there is told briefly.
#include "compiler/rules.h"

uint32_t reduce_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    int64_t mask = rule->attr->n[0];
    if (mask <= 0 || mask >> x->rank)
        return rule_fail(rule, "%s: no such axes in %s", op_info[rule->op].name, type_text(x));
    if (x->dtype == DT_BOOL)
        return rule_fail(rule, "%s wants numbers, not %s", op_info[rule->op].name, type_text(x));
    *rule->out = *x;
    for (uint32_t i = 0; i < x->rank; i++)
        if (mask >> i & 1)
            rule->out->dim[i] = dim_fixed(1);
    if (x->seg && mask >> x->seg_axis & 1)
        rule->out->seg = rule->out->seg_axis = 0;
    return 1;
}

// ---- contract ----

enum { MAX_LABEL = 64 };

// Notes the sizes of one operand's labels. False: a label twice, or another size.
static bool take_labels(const Rule *rule, const Type *type, const int64_t *labels, Dim *size,
                        uint64_t *seen)
{
    uint64_t here = 0;
    for (uint32_t i = 0; i < type->rank; i++) {
        int64_t label = labels[i];
        if (label < 0 || label >= MAX_LABEL)
            return rule_fail(rule, "label %lld of a contraction", (long long)label);
        uint64_t bit = (uint64_t)1 << label;
        if (here & bit)
            return rule_fail(rule, "an axis twice in one operand of a contraction: %s",
                             type_text(type));
        if ((*seen & bit) && !dim_equal(size[label], type->dim[i]))
            return rule_fail(rule, "axis %u of %s should be %s: %s with %s", i, type_text(type),
                             dim_text(size[label]), type_text(rule_in(rule, 0)),
                             type_text(rule_in(rule, 1)));
        here |= bit;
        size[label] = type->dim[i];
    }
    *seen |= here;
    return true;
}

uint32_t contract_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0), *y = rule_in(rule, 1);
    const int64_t *n = rule->attr->n;
    if (n[0] != x->rank || n[1] != y->rank || n[2] < 0 || n[2] > MAX_RANK ||
        rule->attr->count != 3 + n[0] + n[1] + n[2])
        return rule_fail(rule, "a contraction with other labels than %s and %s have", type_text(x),
                         type_text(y));
    if (!rule_reals(rule, 0, 1))
        return 0;
    Dim size[MAX_LABEL];
    uint64_t seen = 0;
    if (!take_labels(rule, x, n + 3, size, &seen) ||
        !take_labels(rule, y, n + 3 + n[0], size, &seen))
        return 0;
    const int64_t *labels = n + 3 + n[0] + n[1];
    *rule->out = type_make(x->dtype, 0, NULL);
    for (int64_t i = 0; i < n[2]; i++) {
        if (labels[i] < 0 || labels[i] >= MAX_LABEL)
            return rule_fail(rule, "label %lld of a contraction", (long long)labels[i]);
        uint64_t bit = (uint64_t)1 << labels[i];
        if (!(seen & bit))
            return rule_fail(rule, "a result's axis is in no operand, or there twice");
        seen &= ~bit;
        rule->out->dim[rule->out->rank++] = size[labels[i]];
    }
    return 1;
}

// ---- convolutions ----

enum { MOST = 1 << 30 }; // groups, positions of padding

// Output type of conv for x [b, c, s...] and w [o, c / groups, k...].
static bool conv_type(const Rule *rule, const Type *x, const Type *w, Type *y)
{
    const int64_t *n = rule->attr->n;
    int64_t axes = n[0], groups = n[1];
    if (axes < 1 || axes > 3 || groups < 1 || groups > MOST)
        return rule_fail(rule, "a convolution of %lld axes, %lld groups", (long long)axes,
                         (long long)groups);
    if (x->rank != axes + 2 || w->rank != axes + 2)
        return rule_fail(rule, "a convolution over %lld axes wants [b, c%s], not %s, weights %s",
                         (long long)axes,
                         axes == 1   ? ", n"
                         : axes == 2 ? ", h, w"
                                     : ", t, h, w",
                         type_text(x), type_text(w));
    for (uint32_t i = 0; i < w->rank; i++)
        if (w->dim[i].batch || (i && x->dim[i].batch))
            return rule_fail(rule, "the batch may only be axis 0 of a convolution: %s",
                             type_text(x));
    if (x->dim[1].n % groups || x->dim[1].n / groups != w->dim[1].n || w->dim[0].n % groups)
        return rule_fail(rule, "weights %s want %lld channels, and %s has %lld", type_text(w),
                         (long long)((uint64_t)w->dim[1].n * (uint64_t)groups), type_text(x),
                         (long long)x->dim[1].n);
    *y = type_make(x->dtype, x->rank, x->dim);
    y->dim[1] = w->dim[0];
    for (uint32_t i = 0; i < axes; i++) {
        int64_t stride = n[2 + i], pad = n[5 + i];
        if (stride < 1 || pad < 0 || pad > MOST)
            return rule_fail(rule, "stride %lld and pad %lld of a convolution", (long long)stride,
                             (long long)pad);
        int64_t room = x->dim[2 + i].n + 2 * pad - w->dim[2 + i].n;
        if (room < 0)
            return rule_fail(rule, "axis %u of %s is smaller than the kernel's %lld", 2 + i,
                             type_text(x), (long long)w->dim[2 + i].n);
        y->dim[2 + i] = dim_fixed(room / stride + 1);
    }
    return true;
}

// conv (x, w) -> y; conv_dgrad (dy, w) -> x given; conv_wgrad (x, dy) -> w given.
uint32_t conv_rule(Rule *rule)
{
    if (!rule_reals(rule, 0, 1))
        return 0;
    const Type *first = rule_in(rule, 0), *second = rule_in(rule, 1);
    if (rule->op == OP_CONV)
        return conv_type(rule, first, second, rule->out);
    if (!rule->given)
        bug("%s needs its type", op_info[rule->op].name);
    if (rule->given->dtype != first->dtype)
        return rule_fail(rule, "%s: precisions differ: %s and %s", op_info[rule->op].name,
                         type_text(first), type_text(rule->given));
    bool dgrad = rule->op == OP_CONV_DGRAD;
    Type y;
    if (!conv_type(rule, dgrad ? rule->given : first, dgrad ? second : rule->given, &y))
        return 0;
    const Type *dy = dgrad ? first : second;
    if (!shape_equal(&y, dy))
        return rule_fail(rule, "%s: %s, not %s", op_info[rule->op].name, type_text(&y),
                         type_text(dy));
    *rule->out = *rule->given;
    return 1;
}

// ---- softmax and norms ----

uint32_t softmax_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    if (!x->rank || x->dim[x->rank - 1].batch)
        return rule_fail(rule, "softmax over no axis of %s", type_text(x));
    *rule->out = *x;
    return rule_reals(rule, 0, 0);
}

// Operand i is [c] with the channels of that axis of x.
static bool want_channels(const Rule *rule, uint32_t i, const Type *x, uint32_t axis)
{
    const Type *type = rule_in(rule, i);
    if (type->rank == 1 && dim_equal(type->dim[0], x->dim[axis]))
        return true;
    return rule_fail(rule, "%s: %s has %s channels, and the weights are %s", op_info[rule->op].name,
                     type_text(x), dim_text(x->dim[axis]), type_text(type));
}

static bool want_shape(const Rule *rule, uint32_t i, const Type *shape)
{
    return shape_equal(rule_in(rule, i), shape) ||
           rule_fail(rule, "%s: operand %u is %s and should be %s", op_info[rule->op].name, i,
                     type_text(rule_in(rule, i)), type_text(shape));
}

// Statistics [..., 1] of x [..., c].
static bool row_statistics(const Rule *rule, const Type *x, Type *statistics)
{
    if (!x->rank || x->dim[x->rank - 1].batch)
        return rule_fail(rule, "%s: no channels in %s", op_info[rule->op].name, type_text(x));
    *statistics = type_like(x, x->dtype);
    statistics->dim[x->rank - 1] = dim_fixed(1);
    return true;
}

uint32_t layer_norm_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    if (rule->nin != 1 && rule->nin != 3)
        return rule_fail(rule, "layer_norm with %u operands", rule->nin);
    if (!rule_reals(rule, 0, 2) || !row_statistics(rule, x, &rule->out[1]))
        return 0;
    for (uint32_t i = 1; i < rule->nin; i++)
        if (!want_channels(rule, i, x, x->rank - 1))
            return 0;
    rule->out[0] = *x;
    rule->out[2] = rule->out[1];
    return 3;
}

uint32_t layer_norm_grad_rule(Rule *rule)
{
    if (rule->nin != 4 && rule->nin != 5)
        return rule_fail(rule, "layer_norm_grad with %u operands", rule->nin);
    const Type *x = rule_in(rule, 1);
    Type statistics;
    if (!rule_reals(rule, 0, 4) || !row_statistics(rule, x, &statistics) ||
        !want_shape(rule, 0, x) || !want_shape(rule, 2, &statistics) ||
        !want_shape(rule, 3, &statistics))
        return 0;
    rule->out[0] = type_like(x, x->dtype);
    if (rule->nin == 4)
        return 1;
    if (!want_channels(rule, 4, x, x->rank - 1))
        return 0;
    rule->out[1] = rule->out[2] = type_like(rule_in(rule, 4), x->dtype);
    return 3;
}

// Statistics [b, groups] of x [b, c, ...].
static bool group_statistics(const Rule *rule, const Type *x, Type *statistics)
{
    int64_t groups = rule->attr->n[0];
    if (x->rank < 2 || x->dim[1].batch)
        return rule_fail(rule, "group norm wants [b, c, ...], not %s", type_text(x));
    if (groups < 1 || x->dim[1].n % groups)
        return rule_fail(rule, "%lld channels do not make %lld groups: %s", (long long)x->dim[1].n,
                         (long long)groups, type_text(x));
    for (uint32_t i = 2; i < x->rank; i++)
        if (x->dim[i].batch)
            return rule_fail(rule, "group norm wants the batch in axis 0, not %s", type_text(x));
    *statistics = type_make(x->dtype, 2, (Dim[]){x->dim[0], dim_fixed(groups)});
    return true;
}

uint32_t group_norm_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    if (!rule_reals(rule, 0, 2) || !group_statistics(rule, x, &rule->out[1]) ||
        !want_channels(rule, 1, x, 1) || !want_channels(rule, 2, x, 1))
        return 0;
    rule->out[0] = *x;
    rule->out[2] = rule->out[1];
    return 3;
}

// Scale and shift of a norm of x [b, c, ...]: one for each channel, and image or not.
static bool want_modulation(const Rule *rule, uint32_t i, const Type *x)
{
    const Type *type = rule_in(rule, i);
    bool fits = type->rank == x->rank && dim_equal(type->dim[1], x->dim[1]) &&
                (dim_is_one(type->dim[0]) || dim_equal(type->dim[0], x->dim[0]));
    for (uint32_t axis = 2; fits && axis < type->rank; axis++)
        fits = dim_is_one(type->dim[axis]);
    return fits || rule_fail(rule, "%s: operand %u is %s, of %s", op_info[rule->op].name, i,
                             type_text(type), type_text(x));
}

// What moments [b, parts, 2, c] are of, as far as a norm asks: [b, c, 1].
static bool moments_shape(const Rule *rule, const Type *moments, Type *shape)
{
    if (moments->rank != 4 || moments->dim[1].batch ||
        moments->dim[1].n != (int64_t)rule->attr->count - 1 ||
        !dim_equal(moments->dim[2], dim_fixed(2)))
        return rule_fail(rule, "%s is no moments of %d parts", type_text(moments),
                         (int)rule->attr->count - 1);
    // as many axes as scale and shift have
    uint32_t rank = rule->nin == 5 ? rule_in(rule, 3)->rank : 3;
    *shape = *moments;
    shape->rank = rank < 2 ? 2 : rank;
    shape->dim[1] = moments->dim[3];
    for (uint32_t axis = 2; axis < shape->rank; axis++)
        shape->dim[axis] = dim_fixed(1);
    return true;
}

uint32_t channel_moments_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    if (!rule_reals(rule, 0, 0))
        return 0;
    if (x->rank < 3 || x->dim[1].batch)
        return rule_fail(rule, "moments want [b, c, ...], not %s", type_text(x));
    rule->out[0] =
        type_make(x->dtype, 4, (Dim[]){x->dim[0], dim_fixed(1), dim_fixed(2), x->dim[1]});
    return 1;
}

uint32_t group_norm_table_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    Type shape;
    if (rule->attr->count > 1) {
        if (!moments_shape(rule, x, &shape))
            return 0;
        x = &shape;
    }
    if (rule->nin != 3 && rule->nin != 5)
        return rule_fail(rule, "group_norm_table with %u operands", rule->nin);
    if (!rule_reals(rule, 0, rule->nin - 1) || !group_statistics(rule, x, &rule->out[1]) ||
        !want_channels(rule, 1, x, 1) || !want_channels(rule, 2, x, 1) ||
        (rule->nin == 5 && (!want_modulation(rule, 3, x) || !want_modulation(rule, 4, x) ||
                            !want_shape(rule, 4, rule_in(rule, 3)))))
        return 0;
    rule->out[0] = type_make(x->dtype, 3, (Dim[]){x->dim[0], dim_fixed(2), x->dim[1]});
    rule->out[2] = rule->out[1];
    return 3;
}

uint32_t group_norm_grad_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 1);
    Type statistics;
    if (!rule_reals(rule, 0, 4) || !group_statistics(rule, x, &statistics) ||
        !want_shape(rule, 0, x) || !want_shape(rule, 2, &statistics) ||
        !want_shape(rule, 3, &statistics) || !want_channels(rule, 4, x, 1))
        return 0;
    rule->out[0] = type_like(x, x->dtype);
    rule->out[1] = rule->out[2] = type_like(rule_in(rule, 4), x->dtype);
    return 3;
}

// ---- attention ----

// q [..., n, d], k [..., m, d], v [..., m, e] at operands first .. first + 2, the mask
// [..., n, m] at `mask` if there; o [..., n, e] and lse [..., n, 1] out.
static bool attention_shapes(const Rule *rule, uint32_t first, uint32_t mask, Type *o, Type *lse)
{
    const Type *q = rule_in(rule, first), *k = rule_in(rule, first + 1),
               *v = rule_in(rule, first + 2);
    uint32_t rank = q->rank;
    bool fits = rank >= 2 && k->rank == rank && v->rank == rank;
    for (uint32_t i = 0; fits && i + 2 < rank; i++)
        fits = dim_equal(q->dim[i], k->dim[i]) && dim_equal(q->dim[i], v->dim[i]);
    fits = fits && dim_equal(q->dim[rank - 1], k->dim[rank - 1]) &&
           dim_equal(k->dim[rank - 2], v->dim[rank - 2]);
    for (uint32_t i = rank; fits && i-- > rank - 2;)
        fits = !q->dim[i].batch && !k->dim[i].batch && !v->dim[i].batch;
    if (!fits)
        return rule_fail(rule,
                         "attention wants [..., n, d], [..., m, d] and [..., m, e], not %s, "
                         "%s and %s",
                         type_text(q), type_text(k), type_text(v));
    if (rule->nin > mask) {
        const Type *added = rule_in(rule, mask);
        bool mask_fits = added->rank == rank;
        for (uint32_t i = 0; mask_fits && i < rank; i++)
            mask_fits = dim_is_one(added->dim[i]) ||
                        dim_equal(added->dim[i], i + 1 < rank ? q->dim[i] : k->dim[rank - 2]);
        if (!mask_fits)
            return rule_fail(rule, "a mask of attention is [..., n, m], not %s (n = %s, m = %s)",
                             type_text(added), dim_text(q->dim[rank - 2]),
                             dim_text(k->dim[rank - 2]));
    }
    *o = type_like(q, q->dtype);
    o->dim[rank - 1] = v->dim[rank - 1];
    *lse = *o;
    lse->dim[rank - 1] = dim_fixed(1);
    return true;
}

uint32_t attention_rule(Rule *rule)
{
    if (rule->nin != 3 && rule->nin != 4)
        return rule_fail(rule, "attention with %u operands", rule->nin);
    if (!rule_reals(rule, 0, 3) || !attention_shapes(rule, 0, 3, &rule->out[0], &rule->out[1]))
        return 0;
    return 2;
}

// do, q, k, v, o, lse (and mask) -> dq, dk, dv
uint32_t attention_grad_rule(Rule *rule)
{
    if (rule->nin != 6 && rule->nin != 7)
        return rule_fail(rule, "attention_grad with %u operands", rule->nin);
    Type o, lse;
    if (!rule_reals(rule, 0, 6) || !attention_shapes(rule, 1, 6, &o, &lse) ||
        !want_shape(rule, 0, &o) || !want_shape(rule, 4, &o) || !want_shape(rule, 5, &lse))
        return 0;
    for (uint32_t i = 0; i < 3; i++)
        rule->out[i] = type_like(rule_in(rule, i + 1), o.dtype);
    return 3;
}
