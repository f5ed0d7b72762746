// What a plan rewrites in its graph: concats of equal parts become parts of one concat, and sums of
// few elements additions.
//
// Concats. Several values are cut alike, and the parts are put together cut by cut: planes that lie
// packed in two values, joined plane by plane; or gradients that flow back into what was cut so.
// Then
//
//   concat(cut_j(x_1), ..., cut_j(x_n))  is  cut_j(concat(x_1, ..., x_n)),  for every cut j
//
// where a cut is a slice along another axis than that of the concat, and perhaps a reshape, which
// leaves the one or the other axis alone. Some of the operands may be values y_j of their own: they
// are the cuts of concat(y_1, y_2, ...) along the axis of the slices. The right side is one concat,
// whose operands are whole values: they can be made where it lies (place.c), while each of the
// parts on the left is only a view of something that lies elsewhere. It is done where the cuts are
// all of x, or at least half, so that little is put together that nobody reads.
//
// Sums. A sum over axes of up to SMALL_SUM elements (pooling, gradients of what was repeated) is
// made of slices that are added: views of the operand, so that an elementwise kernel reads them
// where they lie, and can go on with the sum. A cast that is only read through a reshape comes
// behind that, where it meets its reader.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { SMALL_SUM = 8 };

typedef struct {
    NodeId concat;
    const Node *slice;         // of the first operand that is one
    uint32_t axis, slice_axis;
    bool inside;               // the slice's axis passes through the reshapes; else the concat's
    int64_t start, size;
    uint32_t family;           // number of its first member + 1, if that covers all of x; else 0
} Cut;

typedef struct {
    Rewrite own;
    uint32_t *uses;            // by NodeId: times it is read, or an output
    Cut *cuts;
    uint32_t cut_count;
    size_t cut_capacity;
    uint32_t *cut_of;          // by NodeId: cut + 1
} Uniter;

// The slice behind an operand of a concat, and the reshape before it, if there is one.
static const Node *slice_of(const Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    if (node->op == OP_RESHAPE)
        node = val_get(graph, node->in[0]);
    return node->op == OP_SLICE ? node : NULL;
}

// The slice behind operand `i` of the concat, if it is that of the cut; NULL: a value of its own.
static const Node *cut_slice(const Uniter *u, const Cut *cut, uint32_t i)
{
    const Node *slice = slice_of(u->own.graph, graph_node(u->own.graph, cut->concat)->in[i]);
    return slice && slice->attr == cut->slice->attr ? slice : NULL;
}

// Leading axes that the two have in common.
static uint32_t common_axes(const Type *x, const Type *y)
{
    uint32_t axis = 0;
    while (axis < x->rank && axis < y->rank && dim_equal(x->dim[axis], y->dim[axis]))
        axis++;
    return axis;
}

// The shapes agree but for one axis.
static bool agree_but(const Type *x, const Type *y, uint32_t axis)
{
    bool agree = x->rank == y->rank && x->dtype == y->dtype;
    for (uint32_t i = 0; agree && i < x->rank; i++)
        agree = i == axis || dim_equal(x->dim[i], y->dim[i]);
    return agree;
}

static bool read_cut(const Uniter *u, NodeId id, Cut *cut)
{
    const Node *concat = graph_node(u->own.graph, id), *first = NULL;
    bool loose = false;
    for (uint32_t i = 0; i < concat->nin; i++) {
        const Node *slice = slice_of(u->own.graph, concat->in[i]);
        first = first ? first : slice;
        loose |= !slice || slice->attr != first->attr;
    }
    if (!first)
        return false;
    *cut = (Cut){.concat = id, .slice = first, .axis = (uint32_t)concat->attr->n[0],
                 .slice_axis = (uint32_t)first->attr->n[0],
                 .start = first->attr->n[1], .size = first->attr->n[2]};
    uint32_t common = MAX_RANK;
    for (uint32_t i = 0; i < concat->nin; i++) {
        const Node *slice = cut_slice(u, cut, i);
        if (!slice)
            continue;
        uint32_t axes = common_axes(slice->type[0], val_type(u->own.graph, concat->in[i]));
        common = axes < common ? axes : common;
    }
    cut->inside = cut->slice_axis < common;
    if (cut->slice_axis == cut->axis || (!cut->inside && cut->axis >= common) ||
        (cut->inside && loose))
        return false;
    const Type *whole = val_type(u->own.graph, first->in[0]);
    for (uint32_t i = 0; i < concat->nin; i++) {
        const Node *slice = cut_slice(u, cut, i);
        const Type *other = slice ? val_type(u->own.graph, slice->in[0]) : whole;
        if (cut->inside ? !dim_equal(other->dim[cut->slice_axis], whole->dim[cut->slice_axis])
                        : !agree_but(whole, other, cut->axis))
            return false;
    }
    return true;
}

static bool same_family(const Uniter *u, const Cut *x, const Cut *y)
{
    const Graph *graph = u->own.graph;
    const Node *left = graph_node(graph, x->concat), *right = graph_node(graph, y->concat);
    if (x->axis != y->axis || x->slice_axis != y->slice_axis || x->inside != y->inside ||
        left->nin != right->nin)
        return false;
    for (uint32_t i = 0; i < left->nin; i++) {
        const Node *one = cut_slice(u, x, i), *other = cut_slice(u, y, i);
        if (one && other ? one->in[0] != other->in[0] : one || other)
            return false;
        // all values of their own have to be there before the first concat is made
        if (!one && val_node(right->in[i]) > x->concat)
            return false;
    }
    // what is put together before a reshape of the other axes has to be the same
    return !x->inside || agree_but(left->type[0], right->type[0], x->slice_axis);
}

// Whether an operand of the concat is a value of its own.
static bool has_loose(const Uniter *u, const Cut *cut)
{
    bool loose = false;
    for (uint32_t i = 0; i < graph_node(u->own.graph, cut->concat)->nin; i++)
        loose |= !cut_slice(u, cut, i);
    return loose;
}

static bool slices_apart(const Uniter *u, uint32_t i, uint32_t k)
{
    const Cut *x = &u->cuts[i], *y = &u->cuts[k];
    return x->start + x->size <= y->start || y->start + y->size <= x->start;
}

// Families whose slices are all of x, or half of it at least, without overlap.
static void find_families(Uniter *u)
{
    bool *seen = calloc(u->cut_count + 1, 1);
    if (!seen)
        bug("out of memory");
    for (uint32_t i = 0; i < u->cut_count; i++) {
        int64_t covered = 0;
        bool apart = true;
        for (uint32_t k = i; !seen[i] && k < u->cut_count; k++) {
            if (!same_family(u, &u->cuts[i], &u->cuts[k]))
                continue;
            covered += u->cuts[k].size;
            for (uint32_t m = i; m < k; m++)
                apart &= !same_family(u, &u->cuts[i], &u->cuts[m]) || slices_apart(u, k, m);
        }
        int64_t all = val_type(u->own.graph, u->cuts[i].slice->in[0])->dim[u->cuts[i].slice_axis].n;
        bool whole = covered == all || (!has_loose(u, &u->cuts[i]) && 2 * covered >= all);
        for (uint32_t k = i; !seen[i] && k < u->cut_count; k++) {
            if (k != i && !same_family(u, &u->cuts[i], &u->cuts[k]))
                continue;
            u->cuts[k].family = whole && apart ? i + 1 : 0;
            seen[k] = k != i;
        }
    }
    free(seen);
}

static void find_cuts(Uniter *u)
{
    const Variant *variant = u->own.work->variant;
    for (uint32_t i = 0; i < variant->output_count; i++)
        u->uses[val_node(variant->outputs[i].val)]++;
    for (uint32_t n = 0; n < u->own.count; n++) {
        const Node *node = graph_node(u->own.graph, u->own.nodes[n]);
        for (uint32_t i = 0; i < node->nin; i++)
            u->uses[val_node(node->in[i])]++;
    }
    for (uint32_t n = 0; u->own.work->rungs & RUNG_PLACEMENT && n < u->own.count; n++) {
        Cut cut;
        NodeId id = u->own.nodes[n];
        if (graph_node(u->own.graph, id)->op != OP_CONCAT || !read_cut(u, id, &cut))
            continue;
        u->cuts = grow_array(u->cuts, &u->cut_capacity, u->cut_count, sizeof *u->cuts);
        u->cuts[u->cut_count++] = cut;
        u->cut_of[id] = u->cut_count;
    }
}

// What operand `i` of a family's concats, values of their own, are the cuts of.
static Val join_loose(Uniter *u, const Cut *cut, uint32_t i)
{
    Graph *graph = u->own.graph;
    Val *parts = malloc((u->cut_count + 1) * sizeof *parts), joined;
    if (!parts)
        bug("no memory for %u pieces", u->cut_count);
    uint32_t count = 0;
    int64_t at = 0, whole = val_type(graph, cut->slice->in[0])->dim[cut->slice_axis].n;
    while (at < whole) {
        for (uint32_t k = 0; k < u->cut_count; k++) {
            const Cut *member = &u->cuts[k];
            if (member->family != cut->family || member->start != at)
                continue;
            const Type *type = member->slice->type[0];
            Dim dim[MAX_RANK];
            memcpy(dim, type->dim, sizeof dim);
            Val own = graph_node(graph, member->concat)->in[i];
            dim[cut->axis] = val_type(graph, own)->dim[cut->axis];
            parts[count] = g_reshape(graph, u->own.map[own], type->rank, dim);
            rewrite_turn(&u->own, parts[count++], val_node(own));
            at += member->size;
            break;
        }
    }
    joined = g_concat(graph, parts, count, cut->slice_axis);
    rewrite_turn(&u->own, joined, cut->concat);
    free(parts);
    return joined;
}

// The cut of the concat of whole values.
static Val unite(Uniter *u, const Cut *cut)
{
    Graph *graph = u->own.graph;
    const Node *concat = graph_node(graph, cut->concat);
    const Type *type = concat->type[0];
    Val *whole = malloc(concat->nin * sizeof *whole);
    if (!whole)
        bug("no memory for %u pieces", concat->nin);
    for (uint32_t i = 0; i < concat->nin; i++) {
        const Node *slice = cut_slice(u, cut, i);
        Val x = slice ? slice->in[0] : 0;
        whole[i] = x ? u->own.map[x] : join_loose(u, cut, i);
        if (!cut->inside)
            continue;
        Type piece = *val_type(graph, concat->in[i]);
        piece.dim[cut->slice_axis] = val_type(graph, x)->dim[cut->slice_axis];
        whole[i] = g_reshape(graph, whole[i], piece.rank, piece.dim);
        rewrite_turn(&u->own, whole[i], cut->concat);
    }
    Val all = g_concat(graph, whole, concat->nin, cut->axis);
    free(whole);
    rewrite_turn(&u->own, all, cut->concat);
    Val part = g_slice(graph, all, cut->slice_axis, cut->start, cut->size);
    rewrite_turn(&u->own, part, cut->concat);
    return g_reshape(graph, part, type->rank, type->dim);
}

// ---- sums and what is moved ----

// Elements that are summed up into one.
static bool is_small_sum(const Graph *graph, const Node *node)
{
    int64_t count = 1;
    if (node->op != OP_REDUCE_SUM || !dtype_is_float(node->type[0]->dtype))
        return false;
    const Type *type = val_type(graph, node->in[0]);
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (node->attr->n[0] >> axis & 1) {
            if (type->dim[axis].batch || type->dim[axis].n > SMALL_SUM)
                return false;
            count *= type->dim[axis].n;
        }
    return count > 1 && count <= SMALL_SUM && type->rank == node->type[0]->rank;
}

static Val add_slices(Uniter *u, NodeId id, Val x, uint32_t axis, Val sum)
{
    const Node *node = graph_node(u->own.graph, id);
    const Type *type = val_type(u->own.graph, x);
    while (axis < type->rank && !(node->attr->n[0] >> axis & 1))
        axis++;
    rewrite_turn(&u->own, x, id);
    if (axis == type->rank)
        return sum ? g_binary(u->own.graph, OP_ADD, sum, x) : x;
    for (int64_t i = 0; i < type->dim[axis].n; i++) {
        sum = add_slices(u, id, g_slice(u->own.graph, x, axis, i, 1), axis + 1, sum);
        rewrite_turn(&u->own, sum, id);
    }
    return sum;
}

// The reshape of a cast: a cast of what is reshaped.
static bool is_moved_cast(const Uniter *u, const Node *node)
{
    const Node *x = node->op == OP_RESHAPE ? val_get(u->own.graph, node->in[0]) : NULL;
    return x && x->op == OP_CAST && u->uses[val_node(node->in[0])] == 1;
}

static Val move_cast(Uniter *u, const Node *node)
{
    NodeId id = val_node(node->in[0]);
    const Node *x = graph_node(u->own.graph, id);
    const Type *type = node->type[0];
    Val moved = g_reshape(u->own.graph, u->own.map[x->in[0]], type->rank, type->dim);
    rewrite_turn(&u->own, moved, id);
    return graph_make(u->own.graph, x->op, &moved, 1, x->attr, node->type[0]);
}

static bool rewrites_node(const Uniter *u, NodeId id)
{
    const Node *node = graph_node(u->own.graph, id);
    return u->own.work->rungs & RUNG_ELEMENTWISE &&
           !graph_is_step(u->own.graph, val_of(id, 0)) &&
           (is_small_sum(u->own.graph, node) || is_moved_cast(u, node));
}

static Val rewrite_node(Uniter *u, NodeId id)
{
    const Node *node = graph_node(u->own.graph, id);
    return node->op == OP_RESHAPE ? move_cast(u, node)
                                  : add_slices(u, id, u->own.map[node->in[0]], 0, 0);
}

static void rebuild(Uniter *u)
{
    for (uint32_t n = 0; n < u->own.count; n++) {
        NodeId id = u->own.nodes[n];
        uint32_t nout = graph_node(u->own.graph, id)->nout;
        graph_at(u->own.graph, *graph_origin(u->own.graph, id));
        const Cut *cut = u->cut_of[id] ? &u->cuts[u->cut_of[id] - 1] : NULL;
        Val made = cut && cut->family      ? unite(u, cut)
                   : rewrites_node(u, id) ? rewrite_node(u, id)
                                          : rewrite_operands(&u->own, id);
        if (!made)
            bug("concats of parts: %s", graph_error(u->own.graph));
        for (uint32_t k = 0; k < nout; k++)
            u->own.map[val_of(id, k)] = made + k;
        rewrite_turn(&u->own, made, id);
    }
}

void rewrite_graph(Work *work)
{
    Uniter u = {.cuts = NULL};
    Arena *scratch = arena_new_sparse();
    rewrite_begin(&u.own, work, scratch);
    u.uses = arena_alloc(scratch, u.own.total * sizeof *u.uses);
    u.cut_of = arena_alloc(scratch, u.own.total * sizeof *u.cut_of);
    find_cuts(&u);
    find_families(&u);
    bool any = false;
    for (uint32_t i = 0; i < u.cut_count; i++)
        any |= u.cuts[i].family != 0;
    for (uint32_t n = 0; !any && n < u.own.count; n++)
        any = rewrites_node(&u, u.own.nodes[n]);
    if (any) {
        rewrite_start(&u.own, scratch);
        rebuild(&u);
        rewrite_end(&u.own);
    }
    free(u.cuts);
    rewrite_free(&u.own);
    arena_free(scratch);
}
