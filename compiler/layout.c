// Layout: which values are views of other values' storage.
//
// A movement that only renames addresses (reshape, transpose, expand, slice, flip) costs nothing if
// its readers can walk with strides: the value becomes (base, offset, strides). A reshape of a
// strided view is a view again if each group of axes that it joins lies at one common stride;
// otherwise it is a copy, and later values are views of that copy. What layouts a reader takes is
// the reader's business (codegen/emit_launch.c): it asks for a dense copy where it needs one.
//
// Strides are sizes in the sense of Dim, n or n * b, because an axis to the left of the batch axis
// lies a multiple of b apart. Since b enters a shape once, products stay linear in b.
// In what order the axes of a result are stored says order.c.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

size_t element_size(const Module *module, DType dtype)
{
    if (dtype_is_float(dtype))
        return module->real == DT_F64 ? 8 : 4;
    return dtype == DT_BOOL ? 1 : 8;
}

void not_in_plan(Val val)
{
    bug("value %%%u.%u is not part of the plan", val_node(val), val_out(val));
}

Dim dim_product(Dim x, Dim y)
{
    Dim product = {x.n * y.n, x.batch + y.batch};
    if (product.n == 0)
        product.batch = 0;
    return product;
}

bool axes_merge(Dim stride, Dim inner_stride, Dim inner_size)
{
    return dim_equal(stride, dim_product(inner_stride, inner_size));
}

void dense_strides(const Type *type, Dim *stride)
{
    Dim next = dim_fixed(1);
    for (uint32_t axis = type->rank; axis-- > 0;) {
        stride[axis] = dim_is_one(type->dim[axis]) ? dim_fixed(0) : next;
        next = dim_product(next, type->dim[axis]);
    }
}

bool view_is_dense(const View *view, const Type *type)
{
    Dim stride[MAX_RANK];
    dense_strides(type, stride);
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_equal(stride[axis], view->stride[axis]))
            return false;
    return true;
}

bool covers(const View *view, const Type *type)
{
    bool done[MAX_RANK] = {false};
    Dim next = dim_fixed(1);
    for (uint32_t i = 0; i < type->rank; i++) {
        uint32_t axis = 0;
        while (axis < type->rank && (done[axis] || dim_is_one(type->dim[axis]) ||
                                     !dim_equal(view->stride[axis], next)))
            axis++;
        if (axis == type->rank)
            continue;
        done[axis] = true;
        next = dim_product(next, type->dim[axis]);
    }
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!done[axis] && !dim_is_one(type->dim[axis]))
            return false;
    return true;
}

uint32_t count_users(const Work *work, Val val, NodeId *user)
{
    uint32_t local = local_of(work, val), count = 0;
    for (uint32_t i = work->user_first[local]; i < work->user_first[local + 1]; i++) {
        const Node *node = graph_node(work->module->graph, work->users[i]);
        bool reads = false;
        for (uint32_t k = 0; k < node->nin; k++)
            reads |= node->in[k] == val;
        if (reads) {
            count++;
            *user = work->users[i];
        }
    }
    return count;
}

const View *within_of(const Work *work, Val val)
{
    return work->within[local_of(work, val) * MAX_OUT + val_out(val)];
}

Val storage_of(const Work *work, Val val)
{
    Val base = base_of(work, val);
    for (const View *within; (within = within_of(work, base));)
        base = within->base;
    return base;
}

View view_of(const Work *work, Val val)
{
    uint32_t local = local_of(work, val);
    if (work->view[local])
        return *work->view[local];
    const Node *node = val_get(work->module->graph, val);
    const Type *type = node->type[val_out(val)];
    View view = {.base = val};
    if (node->op == OP_CONST)
        return view;           // one element, every stride 0
    const View *within = within_of(work, val);
    if (within) {
        memcpy(view.stride, within->stride, sizeof view.stride);
        return view;
    }
    const uint32_t *order = work->order[local * MAX_OUT + val_out(val)];
    if (order)
        ordered_strides(type, order, view.stride);
    else
        dense_strides(type, view.stride);
    return view;
}

bool same_elements(const Work *work, Val x, Val y)
{
    if (x == y || base_of(work, x) != base_of(work, y))
        return x == y;
    View left = view_of(work, x), right = view_of(work, y);
    return (left.offset.fixed == right.offset.fixed && left.offset.batch == right.offset.batch &&
                      memcmp(left.stride, right.stride, sizeof left.stride) == 0 &&
                      shape_equal(val_type(work->module->graph, x),
                                  val_type(work->module->graph, y)));
}

// ---- views of views ----

static double rough(Dim dim)
{
    return (double)dim.n * (dim.batch ? 1000003.0 : 1.0);
}

typedef struct {
    Dim size[MAX_RANK];
    uint32_t axis[MAX_RANK];
    uint32_t count;
} Sizes;

static Sizes true_axes(const Type *type)
{
    Sizes sizes = {.count = 0};
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_is_one(type->dim[axis])) {
            sizes.axis[sizes.count] = axis;
            sizes.size[sizes.count++] = type->dim[axis];
        }
    return sizes;
}

// Walks both shapes, and closes a group of axes wherever the products of sizes agree.
bool reshape_view(const View *x, const Type *from, const Type *to, View *out)
{
    Sizes old = true_axes(from), new = true_axes(to);
    *out = (View){.base = x->base, .offset = x->offset};
    uint32_t i = 0, j = 0;
    while (i < old.count && j < new.count) {
        uint32_t old_first = i, new_first = j;
        Dim have = old.size[i++], want = new.size[j++];
        while (!dim_equal(have, want)) {
            if (rough(have) < rough(want)) {
                if (i == old.count)
                    return false;
                have = dim_product(have, old.size[i++]);
            } else {
                if (j == new.count)
                    return false;
                want = dim_product(want, new.size[j++]);
            }
        }
        for (uint32_t k = old_first; k + 1 < i; k++)
            if (!axes_merge(x->stride[old.axis[k]], x->stride[old.axis[k + 1]], old.size[k + 1]))
                return false;
        Dim stride = x->stride[old.axis[i - 1]];
        for (uint32_t k = j; k-- > new_first;) {
            out->stride[new.axis[k]] = stride;
            stride = dim_product(stride, new.size[k]);
        }
    }
    return i == old.count && j == new.count;
}

void move_offset(Affine *offset, Dim stride, Dim steps)
{
    Dim move = dim_product(stride, steps);
    if (move.batch > 1)
        bug("an offset grows with the square of the batch");
    if (move.batch)
        offset->batch += move.n;
    else
        offset->fixed += move.n;
}

static bool same_machine_type(DType x, DType y)
{
    return x == y || (dtype_is_float(x) && dtype_is_float(y));
}

bool view_through(const Graph *graph, const Node *node, const View *x, View *out)
{
    const Type *to = node->type[0];
    if (node->nin == 0)
        return false;
    *out = *x;
    switch ((int)node->op) {
    case OP_RESHAPE:
        return reshape_view(x, val_type(graph, node->in[0]), to, out);
    case OP_TRANSPOSE:
        for (uint32_t axis = 0; axis < to->rank; axis++)
            out->stride[axis] = x->stride[node->attr->n[axis]];
        return true;
    case OP_EXPAND:
        return true;           // a size-1 axis has stride 0 already
    case OP_SLICE: {
        uint32_t axis = (uint32_t)node->attr->n[0];
        Dim start = {node->attr->n[1], val_type(graph, node->in[0])->dim[axis].batch};
        move_offset(&out->offset, out->stride[axis], start);
        if (dim_is_one(to->dim[axis]))
            out->stride[axis] = dim_fixed(0);
        return true;
    }
    case OP_FLIP: {
        Dim *stride = &out->stride[node->attr->n[0]];
        move_offset(&out->offset, *stride, to->dim[node->attr->n[0]]);
        stride->n = -stride->n;
        move_offset(&out->offset, *stride, dim_fixed(1));
        return true;
    }
    case OP_STOP_GRADIENT:
        return true;
    case OP_CAST:
        return same_machine_type(val_type(graph, node->in[0])->dtype, to->dtype);
    default:
        return false;
    }
}

// ---- the needed nodes ----

static void collect_nodes(Work *work)
{
    const Graph *graph = work->module->graph;
    const Variant *variant = work->variant;
    uint32_t total = graph_count(graph);
    Arena *scratch = arena_new();
    uint64_t *marks = arena_alloc(scratch, (total / 64 + 1) * sizeof *marks);
    for (uint32_t i = 0; i < variant->output_count; i++)
        mark_node(marks, val_node(variant->outputs[i].val));
    for (uint32_t i = 0; work->taps && i < variant->tap_count; i++)
        mark_node(marks, val_node(variant->taps[i].val));
    work->nodes = needed_nodes(graph, work->arena, marks, false, &work->count);
    arena_free(scratch);
    work->local = arena_alloc(arena_new_sparse(), total * sizeof *work->local);
    work->step = arena_alloc(work->arena, (work->count + 1) * sizeof *work->step);
    work->kept = arena_alloc(work->arena, (work->count + 1) * sizeof *work->kept);
    for (uint32_t local = 0; local < work->count; local++) {
        work->local[work->nodes[local]] = local + 1;
        work->step[local] = node_is_step(graph, work->nodes[local]);
    }
    for (uint32_t i = 0; i < variant->output_count; i++)
        work->kept[local_of(work, variant->outputs[i].val)] = true;
    for (uint32_t i = 0; work->taps && i < variant->tap_count; i++)
        work->kept[local_of(work, variant->taps[i].val)] = true;
}

static bool is_first_mention(const Node *node, uint32_t operand)
{
    for (uint32_t i = 0; i < operand; i++)
        if (val_node(node->in[i]) == val_node(node->in[operand]))
            return false;
    return true;
}

static void collect_users(Work *work)
{
    const Graph *graph = work->module->graph;
    uint32_t *first = arena_alloc(work->arena, (work->count + 2) * sizeof *first);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t local = 0; local < work->count; local++) {
            const Node *node = graph_node(graph, work->nodes[local]);
            for (uint32_t i = 0; !work->step[local] && i < node->nin; i++) {
                if (!is_first_mention(node, i))
                    continue;
                uint32_t operand = local_of(work, node->in[i]);
                if (pass == 0)
                    first[operand + 2]++;
                else
                    work->users[first[operand + 1]++] = work->nodes[local];
            }
        }
        if (pass == 0) {
            for (uint32_t local = 0; local < work->count; local++)
                first[local + 2] += first[local + 1];
            uint32_t total = first[work->count + 1];
            work->users = arena_alloc(work->arena, (total + 1) * sizeof *work->users);
        }
    }
    work->user_first = first;
}

// Views and, in the first turn, the orders of what is stored.
static void find_views(Work *work, bool orders)
{
    const Graph *graph = work->module->graph;
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = graph_node(graph, work->nodes[local]);
        View operand = {.base = 0}, view;
        work->view[local] = NULL;
        if (!work->step[local] && node->nin > 0)
            operand = view_of(work, node->in[0]);
        if (operand.base && view_through(graph, node, &operand, &view))
            work->view[local] = arena_copy(work->arena, &view, sizeof view);
        for (uint32_t out = 0;
             orders && !work->view[local] && !work->step[local] && out < node->nout; out++)
            if (!work->order[local * MAX_OUT + out])
                work->order[local * MAX_OUT + out] =
                    result_order(work, val_of(work->nodes[local], out));
    }
}

void find_layout(Work *work)
{
    bool places = work->rungs & RUNG_PLACEMENT && !work->taps;
    if (!(work->rungs & RUNG_ATTENTION) && !work->taps)
        take_attention_apart(work);
    if (work->rungs && !work->taps)
        rewrite_graph(work);
    if (work->rungs & RUNG_ATTENTION && !work->taps)
        refine_axes(work);
    if (work->rungs && !work->taps)
        take_norms_apart(work);
    collect_nodes(work);
    collect_users(work);
    work->view = arena_alloc(work->arena, (work->count + 1) * sizeof *work->view);
    size_t slots = ((size_t)work->count + 1) * MAX_OUT;
    work->order = arena_alloc(work->arena, slots * sizeof *work->order);
    work->within = arena_alloc(work->arena, slots * sizeof *work->within);
    work->pieces = arena_alloc(work->arena, (work->count + 1) * sizeof *work->pieces);
    if (is_mixed_plan(work) && places)
        choose_orders(work);       // kernels' wishes first; rows.c orders what these leave
    find_views(work, true);
    if (places) {
        place_parts(work);         // where a concat lies, its parts come to lie
        find_views(work, false);
    }
    choose_storage(work);
}
