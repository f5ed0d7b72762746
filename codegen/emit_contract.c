// Contractions as matrix products: labels to batch, m, n, k.
//
// A label in both operands and the result is a batch axis, in one operand and the result m or n, in
// both operands only k; one that only a single operand has is summed before. Labels of size 1 drop
// out. Labels of one class are joined wherever they lie at one common stride in all that have them;
// what cannot be joined of m and n becomes a batch axis (with stride 0 in the other operand), of k
// a summed batch axis. pv_gemm takes two batch axes and wants, in each operand, one of its two
// strides to be 1. Where the views do not fit, operands are copied: as they are, or sorted into
// (batch, m, k); of the choices that fit, the one that copies least is taken. A result whose labels
// interleave is computed sorted, and moved.
#include <string.h>

#include "codegen/codegen.h"

enum { MAX_AXES = 24 };

typedef enum { IN_X = 1, IN_Y = 2, IN_OUT = 4 } Where;

typedef struct {
    int64_t label;
    int where;
    Dim size;
    Dim x, y, out, added;      // strides; of the residual as well
} Axis;

typedef struct {
    Axis axis[MAX_AXES];
    uint32_t count;
} Axes;

typedef enum { AS_IT_IS, DENSE, SORTED } Form;

typedef struct {
    Dim batch[2], m, n, k;     // sizes
    Dim a0[2], a_m, a_k, b0[2], b_k, b_n, c0[2], c_m, r0[2], r_m;
    bool sum_batch;
    bool swapped;              // A is y
} Product;

static const int64_t *labels_of(const Node *node, int which, int64_t *rank)
{
    const int64_t *n = node->attr->n;
    *rank = n[which];
    return n + 3 + (which > 0 ? n[0] : 0) + (which > 1 ? n[1] : 0);
}

// The labels of size > 1: those of the result in its order, then the summed ones in x's order.
static void collect_axes(const Graph *graph, const Node *node, Axes *axes)
{
    const Type *types[3] = {val_type(graph, node->in[0]), val_type(graph, node->in[1]),
                            node->type[0]};
    static const int order[3] = {2, 0, 1}, bit[3] = {IN_X, IN_Y, IN_OUT};
    axes->count = 0;
    for (int turn = 0; turn < 3; turn++) {
        int which = order[turn];
        int64_t rank;
        const int64_t *labels = labels_of(node, which, &rank);
        for (int64_t i = 0; i < rank; i++) {
            if (dim_is_one(types[which]->dim[i]))
                continue;
            uint32_t at = 0;
            while (at < axes->count && axes->axis[at].label != labels[i])
                at++;
            if (at == MAX_AXES)
                bug("a contraction with more than %d labels", MAX_AXES);
            if (at == axes->count)
                axes->axis[axes->count++] =
                    (Axis){.label = labels[i], .size = types[which]->dim[i]};
            axes->axis[at].where |= bit[which];
        }
    }
}

static Dim *stride_in(Axis *axis, int where)
{
    return where == IN_X ? &axis->x : where == IN_Y ? &axis->y : &axis->out;
}

// Strides of one operand (or the result) from those of its axes.
static void spread_strides(const Node *node, int which, const Dim *stride, Axes *axes)
{
    int64_t rank;
    const int64_t *labels = labels_of(node, which, &rank);
    for (uint32_t i = 0; i < axes->count; i++)
        for (int64_t k = 0; k < rank; k++)
            if (labels[k] == axes->axis[i].label)
                *stride_in(&axes->axis[i], 1 << which) = stride[k];
}

// Order of a sorted form: batch, then m or n, then k; each as in `axes`.
static int class_rank(const Axis *axis)
{
    return axis->where == (IN_X | IN_Y | IN_OUT) ? 0 : axis->where & IN_OUT ? 1 : 2;
}

static uint32_t sorted_axes(const Axes *axes, int where, uint32_t *order)
{
    uint32_t count = 0;
    for (int class = 0; class < 3; class++)
        for (uint32_t i = 0; i < axes->count; i++)
            if ((axes->axis[i].where & where) && class_rank(&axes->axis[i]) == class)
                order[count++] = i;
    return count;
}

static void sort_strides(Axes *axes, int where)
{
    uint32_t order[MAX_AXES], count = sorted_axes(axes, where, order);
    Dim next = dim_fixed(1);
    for (uint32_t i = count; i-- > 0;) {
        *stride_in(&axes->axis[order[i]], where) = next;
        next = dim_product(next, axes->axis[order[i]].size);
    }
}

// The result sorted: batch, m's, n's.
static void sort_result(Axes *axes, int last)
{
    Dim next = dim_fixed(1);
    for (int turn = 0; turn < 3; turn++)
        for (uint32_t i = axes->count; i-- > 0;) {
            Axis *axis = &axes->axis[i];
            bool both = (axis->where & IN_X) && (axis->where & IN_Y);
            if (!(axis->where & IN_OUT) || turn != (both ? 2 : axis->where & last ? 0 : 1))
                continue;
            axis->out = axis->added = next;
            next = dim_product(next, axis->size);
        }
}

// ---- joining ----

static bool can_join(const Axis *outer, const Axis *inner)
{
    if (outer->where != inner->where)
        return false;
    return (!(outer->where & IN_X) || axes_merge(outer->x, inner->x, inner->size)) &&
           (!(outer->where & IN_Y) || axes_merge(outer->y, inner->y, inner->size)) &&
           (!(outer->where & IN_OUT) || (axes_merge(outer->out, inner->out, inner->size) &&
                                         axes_merge(outer->added, inner->added, inner->size)));
}

static void join_axes(Axes *axes)
{
    for (uint32_t i = 0; i < axes->count; i++)
        for (uint32_t k = 0; k < axes->count; k++) {
            if (i == k || !can_join(&axes->axis[i], &axes->axis[k]))
                continue;
            axes->axis[k].size = dim_product(axes->axis[i].size, axes->axis[k].size);
            memmove(&axes->axis[i], &axes->axis[i + 1], (axes->count - i - 1) * sizeof(Axis));
            axes->count--;
            i = UINT32_MAX;        // from the start again
            break;
        }
}

static bool is_unit(Dim stride)
{
    return stride.n == 1 && !stride.batch;
}

static bool one_is_unit(Dim x, Dim y)
{
    return x.n > 0 && y.n > 0 && (is_unit(x) || is_unit(y));
}

// The axes as a product of matrices; false if pv_gemm does not take them.
static bool fit_product(const Axes *from, Product *p)
{
    Axes axes = *from;
    join_axes(&axes);
    Dim one = dim_fixed(1);
    *p = (Product){.batch = {one, one}, .m = one, .n = one, .k = one, .a_m = one, .a_k = one,
                   .b_k = one, .b_n = one, .c_m = one, .r_m = one};
    const Axis *last = NULL;
    for (uint32_t i = 0; i < axes.count; i++)
        if ((axes.axis[i].where & IN_OUT) && is_unit(axes.axis[i].out))
            last = &axes.axis[i];
    p->swapped = last && last->where == (IN_X | IN_OUT);
    int a = p->swapped ? IN_Y : IN_X, b = p->swapped ? IN_X : IN_Y;
    // of several axes of a class the innermost is the matrix's, the others are loops
    Axis *m = NULL, *n = NULL, *k = NULL;
    for (uint32_t i = 0; i < axes.count; i++) {
        Axis *axis = &axes.axis[i];
        if (axis->where == (a | IN_OUT))
            m = axis;
        else if (axis->where == (b | IN_OUT) && (!n || is_unit(axis->out)))
            n = axis;
        else if (axis->where == (IN_X | IN_Y))
            k = axis;
    }
    if (n && (!is_unit(n->out) || !is_unit(n->added)))
        return false;
    uint32_t loops = 0, sums = 0;
    for (uint32_t i = 0; i < axes.count; i++) {
        Axis *axis = &axes.axis[i];
        if (axis == m || axis == n || axis == k)
            continue;
        if (loops == 2)
            return false;
        sums += !(axis->where & IN_OUT);
        p->batch[loops] = axis->size;
        p->a0[loops] = *stride_in(axis, a);
        p->b0[loops] = *stride_in(axis, b);
        p->r0[loops] = axis->added;
        p->c0[loops++] = axis->out;
    }
    if (sums != 0 && sums != loops)
        return false;
    p->sum_batch = sums > 0;
    if (m) {
        p->m = m->size;
        p->a_m = *stride_in(m, a);
        p->c_m = m->out;
        p->r_m = m->added;
    }
    if (n) {
        p->n = n->size;
        p->b_n = *stride_in(n, b);
    }
    if (k) {
        p->k = k->size;
        p->a_k = *stride_in(k, a);
        p->b_k = *stride_in(k, b);
    }
    // a stride of a size-1 axis is never used: let it be that of a dense matrix
    if (!m && k)
        p->a_m = is_unit(p->a_k) ? p->k : one;
    if (!n && k)
        p->b_n = is_unit(p->b_k) ? p->k : one;
    if (!k && m)
        p->a_k = is_unit(p->a_m) ? p->m : one;
    if (!k && n)
        p->b_k = is_unit(p->b_n) ? p->n : one;
    if (!m)
        p->c_m = p->r_m = p->n;
    return one_is_unit(p->a_m, p->a_k) && one_is_unit(p->b_k, p->b_n) && p->c_m.n > 0;
}

// ---- operands ----

typedef struct {
    Val val;
    View view;
    PlanArg place;             // meaningful if `made`: a sum that was made before
    bool made;
} Operand;

// Sums the axes that only this operand has.
static void sum_own_axes(Lower *lower, const Node *node, int which, const Axes *axes,
                         Operand *operand)
{
    const Type *type = val_type(lower->graph, operand->val);
    int64_t rank;
    const int64_t *labels = labels_of(node, which, &rank);
    bool own[MAX_RANK] = {false};
    uint32_t count = 0;
    for (uint32_t i = 0; i < axes->count; i++)
        for (int64_t k = 0; k < rank; k++)
            if (labels[k] == axes->axis[i].label && axes->axis[i].where == 1 << which) {
                own[k] = true;
                count++;
            }
    if (count == 0)
        return;
    PlanArg x = view_place(lower, &operand->view, type->dtype);
    Dim size = dim_fixed(1);
    for (uint32_t i = type->rank; i-- > 0;)
        size = own[i] ? size : dim_product(size, type->dim[i]);
    operand->place = new_buffer(lower, size, type->dtype);
    operand->made = true;
    launch_begin(lower, "pv_reduce", sizeof(ReduceArgs) / 8);
    set_arg(lower, ARG(ReduceArgs, out), operand->place);
    set_arg(lower, ARG(ReduceArgs, x), x);
    set_int(lower, ARG(ReduceArgs, kept), type->rank - count);
    set_int(lower, ARG(ReduceArgs, reduced), count);
    set_types(lower, ARG(ReduceArgs, types), ARG(ReduceArgs, out), 2, NULL, 0);
    uint32_t at = 0;
    for (int turn = 0; turn < 2; turn++)
        for (uint32_t i = 0; i < type->rank; i++)
            if (own[i] == (turn == 1)) {
                set_dim(lower, ARG(ReduceArgs, size) + at, type->dim[i]);
                set_dim(lower, ARG(ReduceArgs, stride) + at++, operand->view.stride[i]);
            }
    need_scratch(lower, pv_reduce_scratch(launch_numbers(lower),
                                          real_size(lower)));
    Dim next = dim_fixed(1);
    for (uint32_t i = type->rank; i-- > 0;) {
        bool flat = own[i] || dim_is_one(type->dim[i]);
        operand->view.stride[i] = flat ? dim_fixed(0) : next;
        next = flat ? next : dim_product(next, type->dim[i]);
    }
}

static void form_strides(const Lower *lower, const Node *node, int which, const Operand *operand,
                         Form form, Axes *axes)
{
    Dim stride[MAX_RANK];
    if (form == SORTED) {
        sort_strides(axes, 1 << which);
        return;
    }
    memcpy(stride, operand->view.stride, sizeof stride);
    if (form == DENSE)
        dense_strides(val_type(lower->graph, operand->val), stride);
    spread_strides(node, which, stride, axes);
}

static PlanArg form_place(Lower *lower, const Node *node, int which, const Operand *operand,
                          Form form, const Axes *axes)
{
    DType dtype = val_type(lower->graph, operand->val)->dtype;
    if (form == DENSE && !operand->made)
        return dense_place(lower, operand->val);
    PlanArg x = operand->made ? operand->place : view_place(lower, &operand->view, dtype);
    if (form == AS_IT_IS || form == DENSE)
        return x;
    Axes old = *axes, sorted = *axes;
    form_strides(lower, node, which, operand, AS_IT_IS, &old);
    sort_strides(&sorted, 1 << which);
    uint32_t order[MAX_AXES], count = sorted_axes(axes, 1 << which, order);
    CopyShape shape = {.rank = count};
    Dim total = dim_fixed(1);
    if (count > MAX_RANK)
        bug("a contraction operand of %u axes", count);
    for (uint32_t i = 0; i < count; i++) {
        shape.size[i] = axes->axis[order[i]].size;
        shape.x[i] = *stride_in(&old.axis[order[i]], 1 << which);
        shape.y[i] = *stride_in(&sorted.axis[order[i]], 1 << which);
        total = dim_product(total, shape.size[i]);
    }
    PlanArg y =
        new_buffer(lower, total, operand->made ? dtype : stored_dtype(lower->work, operand->val));
    launch_copy(lower, y, x, &shape, dtype);
    return y;
}

static double copy_cost(const Lower *lower, const Operand *operand, Form form)
{
    Dim count = count_of(val_type(lower->graph, operand->val));
    double elements = (double)count.n * (count.batch ? 4.0 : 1.0);
    return form == AS_IT_IS ? 0 : form == DENSE ? elements : 1.01 * elements + 1;
}

// ---- the launch ----

// In mixed precision: rows of C that are positions of an image, if A has images and their channels
// are the columns of C; 0: it is no such product.
static int64_t image_rows(const Lower *lower, const Group *group, const Product *p)
{
    const Node *node = anchor_of(lower, group);
    const Type *type = node->type[0];
    Dim positions = dim_fixed(1);
    for (uint32_t axis = 2; axis < type->rank; axis++)
        positions = dim_product(positions, type->dim[axis]);
    bool merged = dim_is_one(p->batch[0]) && dim_equal(p->m, dim_product(type->dim[0], positions));
    bool apart = dim_equal(p->batch[0], type->dim[0]) && dim_equal(p->m, positions);
    if (!is_mixed_plan(lower->work) || positions.batch || !dim_is_one(p->batch[1]) ||
        p->sum_batch || !is_unit(p->a_k) || (!merged && !apart) ||
        image_operand(lower->graph, node) != (p->swapped ? 1 : 0))
        return 0;
    return positions.n;
}

static void launch_gemm(Lower *lower, const Group *group, const Node *node, const Product *p,
                        PlanArg c, PlanArg x, PlanArg y, PlanArg residual)
{
    // the address first: it may need a copy, which is a launch
    PlanArg bias = group->bias ? dense_place(lower, group->bias) : arg_none();
    NormTablePlaces table = group_table_places(lower, group);
    PlanArg b = p->swapped ? x : y;
    if (group->gate && group->gate_first) {            // values are the second half
        DType dtype = node->type[0]->dtype;
        *(p->b_n.batch ? &b.c : &b.a) +=
            p->n.n / 2 * p->b_n.n * (int64_t)place_size(lower, b, dtype);
        bias.a += group->bias ? p->n.n / 2 * (int64_t)place_size(lower, bias, dtype) : 0;
    }
    launch_begin(lower, "pv_gemm", sizeof(GemmArgs) / 8);
    set_arg(lower, ARG(GemmArgs, c), c);
    set_arg(lower, ARG(GemmArgs, a), p->swapped ? y : x);
    set_arg(lower, ARG(GemmArgs, b), b);
    set_dim(lower, ARG(GemmArgs, m), p->m);
    set_dim(lower, ARG(GemmArgs, n), p->n);
    set_dim(lower, ARG(GemmArgs, k), p->k);
    set_dim(lower, ARG(GemmArgs, batch0), p->batch[0]);
    set_dim(lower, ARG(GemmArgs, batch1), p->batch[1]);
    set_dim(lower, ARG(GemmArgs, a0), p->a0[0]);
    set_dim(lower, ARG(GemmArgs, a1), p->a0[1]);
    set_dim(lower, ARG(GemmArgs, a_m), p->a_m);
    set_dim(lower, ARG(GemmArgs, a_k), p->a_k);
    set_dim(lower, ARG(GemmArgs, b0), p->b0[0]);
    set_dim(lower, ARG(GemmArgs, b1), p->b0[1]);
    set_dim(lower, ARG(GemmArgs, b_k), p->b_k);
    set_dim(lower, ARG(GemmArgs, b_n), p->b_n);
    set_dim(lower, ARG(GemmArgs, c0), p->c0[0]);
    set_dim(lower, ARG(GemmArgs, c1), p->c0[1]);
    set_dim(lower, ARG(GemmArgs, c_m), p->c_m);
    set_arg(lower, ARG(GemmArgs, bias), bias);
    set_arg(lower, ARG(GemmArgs, residual), residual);
    set_dim(lower, ARG(GemmArgs, r0), p->r0[0]);
    set_dim(lower, ARG(GemmArgs, r1), p->r0[1]);
    set_dim(lower, ARG(GemmArgs, r_m), p->r_m);
    set_int(lower, ARG(GemmArgs, act), activation(group->act));
    set_int(lower, ARG(GemmArgs, sum_batch), p->sum_batch);
    set_norm_load(lower, ARG(GemmArgs, norm), &group->norm);
    set_norm_stats(lower, ARG(GemmArgs, stats), &table);
    set_int(lower, ARG(GemmArgs, image_rows), image_rows(lower, group, p));
    set_types(lower, ARG(GemmArgs, types), ARG(GemmArgs, c), 3,
              (size_t[]){ARG(GemmArgs, bias), ARG(GemmArgs, residual)}, 2);
    if (group->gate) {
        set_dim(lower, ARG(GemmArgs, n), dim_fixed(p->n.n / 2));
        set_int(lower, ARG(GemmArgs, gate), group->gate_first ? -(p->n.n / 2) : p->n.n / 2);
    }
    if (group->bias) {         // whose label is it: the last one's (n), or m's
        int64_t rank, y_rank;
        const int64_t *out = labels_of(node, 2, &rank), *in_y = labels_of(node, 1, &y_rank);
        bool of_y = false;
        for (int64_t i = 0; i < y_rank; i++)
            of_y |= in_y[i] == out[group->bias_axis];
        set_int(lower, ARG(GemmArgs, bias_axis), of_y == p->swapped);
    }
    need_scratch(lower, pv_gemm_scratch(launch_numbers(lower),
                                        real_size(lower)));
    if (group->residual)
        residual_inplace(lower, group, c, residual);
}

static void move_result(Lower *lower, const Axes *real, const Axes *sorted, PlanArg y, PlanArg x,
                        DType dtype)
{
    CopyShape shape = {.rank = 0};
    for (uint32_t i = 0; i < real->count; i++) {
        if (!(real->axis[i].where & IN_OUT))
            continue;
        shape.size[shape.rank] = real->axis[i].size;
        shape.x[shape.rank] = sorted->axis[i].out;
        shape.y[shape.rank++] = real->axis[i].out;
    }
    launch_copy(lower, y, x, &shape, dtype);
}

typedef struct {
    double cost;               // elements copied; < 0: nothing fits
    Form x, y;
    Product product;
} Choice;

// The forms of the operands that fit the kernel and copy least.
static Choice choose_forms(const Lower *lower, const Node *node, const Operand *x, const Operand *y,
                           const Axes *axes)
{
    Choice best = {.cost = -1};
    Product product;
    for (Form form_x = AS_IT_IS; form_x <= SORTED; form_x++)
        for (Form form_y = AS_IT_IS; form_y <= SORTED; form_y++) {
            if ((form_x == DENSE && x->made) || (form_y == DENSE && y->made))
                continue;
            Axes tried = *axes;
            form_strides(lower, node, 0, x, form_x, &tried);
            form_strides(lower, node, 1, y, form_y, &tried);
            double cost = copy_cost(lower, x, form_x) + copy_cost(lower, y, form_y);
            if ((best.cost < 0 || cost < best.cost) && fit_product(&tried, &product))
                best = (Choice){cost, form_x, form_y, product};
        }
    return best;
}

// Strides of the result and of the residual; where there is none, those of the result. The residual
// is copied if `copied`. Returns where it lies.
static PlanArg spread_result(Lower *lower, const Group *group, const Node *node, bool copied,
                             Axes *axes)
{
    PlanArg place = arg_none();
    bool as_it_is = is_mixed_plan(lower->work) && !group->gate && !group->turned;
    View there = view_of(lower->work, group->results[0]), result = {.base = 0};
    if (as_it_is ? !strides_as(lower, group->results[0], node->type[0], result.stride)
                 : !anchor_strides(lower->work, group, &there, &result))
        bug("a product that cannot write its result");
    View added = result;
    if (group->residual) {
        View view = view_of(lower->work, group->residual);
        if (!copied && (as_it_is ? strides_as(lower, group->residual, node->type[0], added.stride)
                                 : anchor_strides(lower->work, group, &view, &added))) {
            place = view_place(lower, &view, node->type[0]->dtype);
        } else if (as_it_is) {
            place = place_like(lower, group->residual, node->type[0], added.stride);
        } else {
            dense_strides(val_type(lower->graph, group->residual), view.stride);
            if (!anchor_strides(lower->work, group, &view, &added))
                bug("a product that cannot read what it adds");
            place = dense_place(lower, group->residual);
        }
    }
    spread_strides(node, 2, added.stride, axes);
    for (uint32_t i = 0; i < axes->count; i++)
        axes->axis[i].added = axes->axis[i].out;
    spread_strides(node, 2, result.stride, axes);
    return place;
}

// Whether the product is what norm loads and tables are about: C [image, channel, position], and
// for loads B [image, channel, position] as it lies; in mixed precision C [image, position,
// channel] and A [image, position, channel].
static bool is_pointwise(const Lower *lower, const Group *group, const Choice *choice, bool direct)
{
    const Product *p = &choice->product;
    uint32_t b = p->swapped ? 0 : 1;
    if (is_mixed_plan(lower->work))
        return direct && image_rows(lower, group, p) > 0 &&
               (!group->norm.x ||
                (1 - b == group->norm_operand && (b ? choice->x : choice->y) == AS_IT_IS));
    return direct && dim_is_one(p->batch[1]) && !p->sum_batch &&
           image_operand(lower->graph, anchor_of(lower, group)) == (int)b &&
           (!group->norm.x || (b == group->norm_operand && is_unit(p->b_n) &&
                               (b ? choice->y : choice->x) == AS_IT_IS));
}

void lower_contract(Lower *lower, const Group *group)
{
    const Node *node = anchor_of(lower, group);
    Axes axes, real;
    Operand x = {.val = node->in[0]}, y = {.val = node->in[1]};
    if (group->norm.x)
        *(group->norm_operand ? &y.val : &x.val) = group->norm.x;
    collect_axes(lower->graph, node, &axes);
    x.view = view_of(lower->work, x.val);
    y.view = view_of(lower->work, y.val);
    sum_own_axes(lower, node, 0, &axes, &x);
    sum_own_axes(lower, node, 1, &axes, &y);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < axes.count; i++)
        if (axes.axis[i].where != IN_X && axes.axis[i].where != IN_Y)
            axes.axis[kept++] = axes.axis[i];
    axes.count = kept;
    PlanArg residual = spread_result(lower, group, node, false, &axes);
    real = axes;
    Choice choice = choose_forms(lower, node, &x, &y, &axes);
    if (choice.cost < 0 && group->residual) {
        residual = spread_result(lower, group, node, true, &axes);
        choice = choose_forms(lower, node, &x, &y, &axes);
    }
    bool direct = choice.cost >= 0;
    if (!direct) {
        sort_result(&axes, IN_Y);
        choice = choose_forms(lower, node, &x, &y, &axes);
    }
    if (choice.cost < 0 || (!direct && (group->bias || group->residual || group->gate)))
        bug("a contraction that is no matrix product: %s", type_text(node->type[0]));
    bool apart = group->norm.x || group->table || group->moments;
    if (apart && group->residual && !is_pointwise(lower, group, &choice, direct)) {
        residual = spread_result(lower, group, node, true, &axes); // its rows may not be images'
        choice = choose_forms(lower, node, &x, &y, &axes);
    }
    if (apart && !is_pointwise(lower, group, &choice, direct))
        bug("a product with a norm that is none of [channels, positions]: %s",
            type_text(node->type[0]));
    PlanArg x_place = form_place(lower, node, 0, &x, choice.x, &axes);
    PlanArg y_place = form_place(lower, node, 1, &y, choice.y, &axes);
    PlanArg result = result_place(lower, group->results[0]);
    DType stored = stored_dtype(lower->work, group->results[0]);
    PlanArg c = direct ? result : new_buffer(lower, count_of(node->type[0]), stored);
    launch_gemm(lower, group, node, &choice.product, c, x_place, y_place, residual);
    if (!direct)
        move_result(lower, &real, &axes, result, c, node->type[0]->dtype);
}
