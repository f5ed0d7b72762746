// Indexing: lists by integers and ranges, tensors axis by axis, lists of numbers as tables by
// integers that only a step or a tensor knows.
#include <inttypes.h>

#include "compiler/elab.h"

// Element `index`, negative from the end.
Value list_at(Elab *e, List *list, int64_t index, Span span)
{
    int64_t at = index < 0 ? index + list->count : index;
    if (at < 0 || at >= list->count)
        elab_fail(e, span, "index %" PRId64 " is outside of a list of %" PRIu32, index,
                  list->count);
    return list->at[at];
}

Value tensor_first(Elab *e, Val x, int64_t index, Span span)
{
    elab_at(e, span);
    Val val = compose_index(e->graph, x, 0, index);
    if (!val)
        elab_fail_graph(e, span);
    return value_tensor(val);
}

static int64_t slice_end(Elab *e, Frame *frame, const Ast *ast, int64_t absent, int64_t count)
{
    if (!ast)
        return absent;
    int64_t end = value_whole(e, eval(e, frame, ast), ast->span, "the end of a range");
    int64_t at = end < 0 ? end + count : end;
    if (at < 0 || at > count)
        elab_fail(e, ast->span, "%" PRId64 " is outside of 0..%" PRId64, end, count);
    return at;
}

// The part of `count` elements that a range in an index stands for.
static void slice_ends(Elab *e, Frame *frame, const Ast *ast, int64_t count, int64_t *first,
                       int64_t *limit)
{
    *first = slice_end(e, frame, ast->a, 0, count);
    *limit = slice_end(e, frame, ast->b, count, count);
    if (*limit < *first)
        elab_fail(e, ast->span, "the range %" PRId64 "..%" PRId64 " runs backwards", *first,
                  *limit);
}

static void check_range(Elab *e, const Range *range, int64_t count, Span span)
{
    if (range->first_val || range->reversed || range->first < 0 || range->limit > count)
        elab_fail(e, span, "the range %" PRId64 "..%" PRId64 " is outside of 0..%" PRId64,
                  range->first, range->limit, count);
}

static Value gather(Elab *e, Val table, Val index, Span span)
{
    elab_at(e, span);
    Val val = graph_make(e->graph, OP_GATHER, (Val[]){table, index}, 2, NULL, NULL);
    if (!val)
        elab_fail_graph(e, span);
    return value_tensor(val);
}

static Value index_list(Elab *e, Frame *frame, List *list, const Ast *ast)
{
    const Ast *at = ast->list.at[0];
    if (ast->list.count != 1)
        elab_fail(e, ast->span, "a list has one index; for lists in lists write xs[i][j]");
    if (at->kind == AST_RANGE) {
        int64_t first, limit;
        slice_ends(e, frame, at, list->count, &first, &limit);
        return value_slice(e, list, first, limit);
    }
    Value index = eval(e, frame, at);
    if (index.kind == V_RANGE) {
        check_range(e, index.range, list->count, at->span);
        return value_slice(e, list, index.range->first, index.range->limit);
    }
    if (value_is_tensor(index)) {
        Val val = value_val(e, index, at->span);
        if (val_type(e->graph, val)->dtype != DT_I64)
            elab_fail(e, at->span, "an index is an integer; this is %s", value_describe(e, index));
        Value all = {.kind = V_LIST, .list = list};
        return gather(e, list_table(e, all, ast->a->span), val, ast->span);
    }
    return list_at(e, list, value_whole(e, index, at->span, "an index"), at->span);
}

// x[k] with k known when the step starts: a window of one, without its axis.
static Val index_step(Elab *e, Val x, int64_t axis, Val index)
{
    Val part = compose_window(e->graph, x, index, 1, axis);
    return part ? compose_index(e->graph, part, axis, 0) : 0;
}

// One index on axis *axis of x; *axis becomes the axis behind what it left. `index` is the value
// of `at`, unless that is a range.
static Val index_axis(Elab *e, Frame *frame, Val x, int64_t *axis, const Ast *at, Value index)
{
    const Type *type = val_type(e->graph, x);
    Dim dim = type->dim[*axis];
    if (at->kind == AST_RANGE && !at->a && !at->b) {
        ++*axis;
        return x;
    }
    elab_at(e, at->span);
    if (value_is_step(e, index) && value_is_tensor(index))
        return index_step(e, x, *axis, index.val);
    if (at->kind != AST_RANGE && index.kind != V_RANGE)
        return compose_index(e->graph, x, *axis, value_whole(e, index, at->span, "an index"));
    if (dim.batch)
        elab_fail(e, at->span, "the batch axis has no parts known to the compiler");
    int64_t first, limit;
    if (index.kind == V_RANGE) {
        check_range(e, index.range, dim.n, at->span);
        first = index.range->first;
        limit = index.range->limit;
    } else {
        slice_ends(e, frame, at, dim.n, &first, &limit);
    }
    return compose_range(e->graph, x, (*axis)++, first, limit);
}

static Value index_tensor(Elab *e, Frame *frame, Val x, const Ast *ast)
{
    const Type *type = val_type(e->graph, x);
    const AstList *list = &ast->list;
    uint32_t rest = 0;
    for (uint32_t i = 0; i < list->count; i++)
        rest += list->at[i]->kind == AST_ELLIPSIS;
    uint32_t used = list->count - rest;
    if (rest > 1 || used > type->rank)
        elab_fail(e, ast->span, "%" PRIu32 " indices for %s", used,
                  value_describe(e, value_tensor(x)));
    Value *index = arena_alloc(e->arena, (list->count + 1) * sizeof *index);
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i]->kind != AST_RANGE && list->at[i]->kind != AST_ELLIPSIS)
            index[i] = eval(e, frame, list->at[i]);
    if (list->count == 1 && value_is_tensor(index[0]))
        return gather(e, x, value_val(e, index[0], list->at[0]->span), ast->span);
    int64_t axis = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->at[i]->kind == AST_ELLIPSIS) {
            axis = (int64_t)val_type(e->graph, x)->rank - (int64_t)(list->count - i - 1);
            continue;
        }
        x = index_axis(e, frame, x, &axis, list->at[i], index[i]);
        if (!x)
            elab_fail_graph(e, list->at[i]->span);
    }
    return value_tensor(x);
}

Value eval_index(Elab *e, Frame *frame, const Ast *ast)
{
    Value object = eval(e, frame, ast->a);
    if (object.kind == V_LIST) {
        Value part = index_list(e, frame, object.list, ast);
        if (part.kind == V_LIST || part.kind == V_INSTANCE)
            part.mode = mode_within(part.mode, object.mode);
        return part;
    }
    if (object.kind == V_RANGE) {
        uint32_t count = sequence_count(e, object, ast->a->span);
        List *list = list_new(e, count);
        elab_step(e, ast->span, count);
        for (uint32_t i = 0; i < count; i++)
            list->at[i] = sequence_at(e, object, i, ast->a->span);
        return index_list(e, frame, list, ast);
    }
    if (value_is_tensor(object))
        return index_tensor(e, frame, value_val(e, object, ast->a->span), ast);
    elab_fail(e, ast->a->span, "only lists and tensors have elements; this is %s",
              value_describe(e, object));
}
