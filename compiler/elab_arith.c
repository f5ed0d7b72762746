// Operators. Numbers known to the compiler are computed in 64-bit integers and doubles, multiples
// of the batch as such as long as they stay multiples; everything else becomes a graph node.
//
// Two integers that the compiler knows divide without a rest or not at all. Integers known only
// when the step starts divide to a real, so a rest cannot be lost without a word there either.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

// ---- what can be a tensor ----

bool value_is_tensor(Value value)
{
    return value.kind == V_TENSOR || value.kind == V_PARAM || value.kind == V_MAYBE;
}

bool value_is_step(Elab *e, Value value)
{
    if (value.kind == V_TENSOR)
        return val_type(e->graph, value.val)->rank == 0 && graph_is_step(e->graph, value.val);
    return value_is_number(value) || value.kind == V_BOOL;
}

// A number as a rank-0 node: real beside a real tensor, an integer beside an integer one.
Val number_val(Elab *e, Value value, DType like)
{
    if (value.kind == V_BOOL)
        return g_const(e->graph, DT_BOOL, (double)value.integer);
    if (value.kind == V_REAL)
        return g_const(e->graph, dtype_is_float(like) ? like : e->real, value.real);
    DType dtype = dtype_is_float(like) ? like : DT_I64;
    if (value.batch)
        return g_dim(e->graph, dim_batch(value.integer), dtype);
    return g_const(e->graph, dtype, (double)value.integer);
}

// The node of a tensor or number; anything else is an error.
Val value_val(Elab *e, Value value, Span span)
{
    switch ((int)value.kind) {
    case V_TENSOR:
        return value.val;
    case V_BOOL:
    case V_INT:
        return number_val(e, value, DT_I64);
    case V_REAL:
        return number_val(e, value, e->real);
    case V_PARAM:
        return param_val(e, value.param, span);
    case V_MAYBE:
        return elab_pin(e, value, span).val;
    case V_HOST:
        elab_error(e, span, "a sample block computes with numbers only; this is a tensor");
        elab_help(e, (Span){0}, "a program computes with tensors, and is called from here");
        elab_stop(e);
    case V_LIST:
    case V_RANGE:
        elab_error(e, span, "a tensor is needed here; this is %s", value_describe(e, value));
        elab_help(e, (Span){0}, "f32(list) makes a tensor of a list of numbers");
        elab_stop(e);
    default:
        elab_fail(e, span, "a tensor is needed here; this is %s", value_describe(e, value));
    }
}

// ---- lists of numbers as tensors ----

typedef struct {
    double *at;
    size_t count, capacity;
    Type type;
} TableBuilder;

static void add_level(Elab *e, TableBuilder *table, Value value, uint32_t level, Span span)
{
    if (value.kind == V_RANGE || value.kind == V_LIST) {
        uint32_t count = sequence_count(e, value, span);
        elab_step(e, span, count);
        if (level == MAX_RANK)
            elab_fail(e, span, "a tensor has at most %d axes", MAX_RANK);
        if (table->type.rank <= level && table->count == 0)
            table->type.dim[table->type.rank++] = dim_fixed(count);
        if (level >= table->type.rank || table->type.dim[level].n != count)
            elab_fail(e, span, "the lists in this list have different lengths");
        for (uint32_t i = 0; i < count; i++)
            add_level(e, table, sequence_at(e, value, i, span), level + 1, span);
        return;
    }
    if (!value_is_number(value) || value.batch)
        elab_fail(e, span, "a tensor is made of a list of numbers; this holds %s",
                  value_describe(e, value));
    if (level != table->type.rank)
        elab_fail(e, span, "this list holds numbers beside lists");
    table->at = grow_array(table->at, &table->capacity, table->count, sizeof *table->at);
    table->at[table->count++] = value.kind == V_REAL ? value.real : (double)value.integer;
}

// A list (or range) of numbers, of any depth, as constant data of the working precision.
Val list_table(Elab *e, Value list, Span span)
{
    if (list.kind == V_LIST && list.list->table)
        return list.list->table;
    TableBuilder table = {.type = type_scalar(e->real)};
    add_level(e, &table, list, 0, span);
    Val val;
    if (e->real == DT_F64) {
        val = g_table(e->graph, &table.type, table.count ? table.at : (void *)"");
    } else {
        float *data = arena_alloc(e->arena, (table.count + 1) * sizeof *data);
        for (size_t i = 0; i < table.count; i++)
            data[i] = (float)table.at[i];
        val = g_table(e->graph, &table.type, data);
    }
    free(table.at);
    if (!val)
        elab_fail_graph(e, span);
    if (list.kind == V_LIST)
        list.list->table = val;
    return val;
}

// ---- numbers known to the compiler ----

static _Noreturn void not_whole(Elab *e, Frame *frame, int64_t a, int64_t b, Span span,
                                const Ast *left, const Ast *right)
{
    elab_error(e, span, "%" PRId64 " / %" PRId64 " is not whole (%g)", a, b, (double)a / (double)b);
    if (left && right && frame && frame->file) {
        note_defines(e, frame->file, left);
        note_defines(e, frame->file, right);
    }
    int64_t below = a - ((a % b) + b) % b;
    if (b > 0)
        elab_help(e, (Span){0},
                  "%" PRId64 " and %" PRId64 " are multiples of %" PRId64 "; div(a, b) rounds down",
                  below, below + b, b);
    elab_stop(e);
}

static _Noreturn void overflow(Elab *e, Span span)
{
    elab_fail(e, span, "the result has more than 64 bits");
}

static int64_t whole_power(Elab *e, int64_t base, int64_t exponent, Span span)
{
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            overflow(e, span);
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base))
            overflow(e, span);
    }
    return result;
}

static Value compare_result(Operator op, int order)
{
    bool result = op == OPR_EQ   ? order == 0
                  : op == OPR_NE ? order != 0
                  : op == OPR_LT ? order < 0
                  : op == OPR_LE ? order <= 0
                  : op == OPR_GT ? order > 0
                                 : order >= 0;
    return value_bool(result);
}

static Value whole_operator(Elab *e, Frame *frame, Operator op, int64_t a, int64_t b, Span span,
                            const Ast *left, const Ast *right)
{
    int64_t result = 0;
    switch ((int)op) {
    case OPR_ADD:
        if (__builtin_add_overflow(a, b, &result))
            overflow(e, span);
        return value_int(result);
    case OPR_SUB:
        if (__builtin_sub_overflow(a, b, &result))
            overflow(e, span);
        return value_int(result);
    case OPR_MUL:
        if (__builtin_mul_overflow(a, b, &result))
            overflow(e, span);
        return value_int(result);
    case OPR_DIV:
    case OPR_MOD:
        if (b == 0)
            elab_fail(e, span, "division by zero");
        if (b == -1)
            return op == OPR_MOD ? value_int(0)
                                 : whole_operator(e, frame, OPR_SUB, 0, a, span, left, right);
        if (op == OPR_MOD)
            return value_int((a % b + b) % b);
        if (a % b != 0)
            not_whole(e, frame, a, b, span, left, right);
        return value_int(a / b);
    case OPR_POW:
        if (b < 0)
            return value_real(pow((double)a, (double)b));
        return value_int(whole_power(e, a, b, span));
    default:
        return compare_result(op, (a > b) - (a < b));
    }
}

static Value real_operator(Elab *e, Operator op, double a, double b, Span span)
{
    switch ((int)op) {
    case OPR_ADD:
        return value_real(a + b);
    case OPR_SUB:
        return value_real(a - b);
    case OPR_MUL:
        return value_real(a * b);
    case OPR_DIV:
        if (b == 0)
            elab_fail(e, span, "division by zero");
        return value_real(a / b);
    case OPR_MOD:
        if (b == 0)
            elab_fail(e, span, "division by zero");
        return value_real(a - b * floor(a / b));
    case OPR_POW:
        return value_real(pow(a, b));
    default:
        return compare_result(op, (a > b) - (a < b));
    }
}

// Operations on multiples of the batch that have a size, or a known answer, for every batch.
static bool batch_operator(Operator op, Value x, Value y, Value *out)
{
    bool both = x.batch && y.batch;
    int64_t a = x.integer, b = y.integer, n = 0;
    if ((op == OPR_ADD || op == OPR_SUB) && both) {
        if (op == OPR_ADD ? __builtin_add_overflow(a, b, &n) : __builtin_sub_overflow(a, b, &n))
            return false;
        *out = value_dim(dim_batch(n));
        if (n == 0)
            *out = value_int(0);
        return true;
    }
    if ((op == OPR_ADD || op == OPR_SUB) && !y.batch && b == 0) {
        *out = x;
        return true;
    }
    if (op == OPR_MUL && !both && !__builtin_mul_overflow(a, b, &n)) {
        *out = n ? value_dim(dim_batch(n)) : value_int(0);
        return true;
    }
    if ((op == OPR_DIV || op == OPR_MOD) && x.batch && b != 0 && a % b == 0) {
        *out = op == OPR_MOD ? value_int(0)
               : y.batch     ? value_int(a / b)
                             : value_dim(dim_batch(a / b));
        return true;
    }
    if ((op == OPR_EQ || op == OPR_NE) && both) {
        *out = value_bool((a == b) == (op == OPR_EQ));
        return true;
    }
    return false;
}

// ---- tensors ----

static Op graph_op(Operator op)
{
    switch ((int)op) {
    case OPR_ADD:
        return OP_ADD;
    case OPR_SUB:
        return OP_SUB;
    case OPR_MUL:
        return OP_MUL;
    case OPR_DIV:
        return OP_DIV;
    case OPR_MOD:
        return OP_MOD;
    case OPR_EQ:
        return OP_EQ;
    case OPR_NE:
        return OP_NE;
    case OPR_LT:
    case OPR_GT:
        return OP_LT;
    default:
        return OP_LE;
    }
}

// The name of the tensor that an operand is, or is made from with numbers: `scale` of 1 + scale.
static const Ast *operand_name(Elab *e, const Frame *frame, const Ast *ast, const Type *type)
{
    if (!ast || ast->kind == AST_NAME) {
        Binding *binding = ast ? frame_lookup(frame, ast->text) : NULL;
        bool fits = binding && binding->value.kind == V_TENSOR &&
                    shape_equal(val_type(e->graph, binding->value.val), type);
        return fits ? ast : NULL;
    }
    if (ast->kind != AST_BINARY && ast->kind != AST_UNARY)
        return NULL;
    const Ast *found = operand_name(e, frame, ast->a, type);
    return found ? found : operand_name(e, frame, ast->b, type);
}

static void note_operand(Elab *e, Frame *frame, const Ast *ast, const Type *type)
{
    const Ast *name = operand_name(e, frame, ast, type);
    if (name && type->rank)
        elab_note(e, frame_lookup(frame, name->text)->span, "%s since here",
                  shape_text(e, NULL, type));
}

// rearrange(scale, "b d -> b d 1 1"), if the smaller shape is a start of the larger one.
static void help_ranks(Elab *e, const Frame *frame, const Ast *ast, const Type *small,
                       const Type *large)
{
    const char *left = "", *ones = "";
    for (uint32_t i = 0; i < small->rank; i++) {
        if (!dim_equal(small->dim[i], large->dim[i]) && !dim_is_one(small->dim[i]))
            return;
        const char *axis = dim_is_one(small->dim[i]) ? "1"
                           : small->dim[i].batch && small->dim[i].n == 1
                               ? "b"
                               : (const char *[]){"c", "d", "e", "f", "g", "h", "i", "j"}[i];
        left = arena_printf(e->arena, "%s%s%s", left, i ? " " : "", axis);
    }
    for (uint32_t i = small->rank; i < large->rank; i++)
        ones = arena_printf(e->arena, "%s 1", ones);
    const Ast *name = operand_name(e, frame, ast, small);
    elab_help(e, (Span){0}, "rearrange(%s, \"%s -> %s%s\")", name ? name->text : "x", left, left,
              ones);
}

static void check_shapes(Elab *e, Frame *frame, Operator op, Val x, Val y, Span span,
                         const Ast *left, const Ast *right)
{
    const Type *a = val_type(e->graph, x), *b = val_type(e->graph, y);
    if (a->rank == 0 || b->rank == 0)
        return;
    bool fits = a->rank == b->rank;
    for (uint32_t i = 0; fits && i < a->rank; i++)
        fits = dim_equal(a->dim[i], b->dim[i]) || dim_is_one(a->dim[i]) || dim_is_one(b->dim[i]);
    if (fits)
        return;
    elab_error(e, span, "%s differ: %s %s %s", a->rank == b->rank ? "sizes" : "ranks",
               shape_text(e, frame, a), operator_text(op), shape_text(e, frame, b));
    note_operand(e, frame, left, a);
    note_operand(e, frame, right, b);
    if (a->rank < b->rank)
        help_ranks(e, frame, left, a, b);
    if (b->rank < a->rank)
        help_ranks(e, frame, right, b, a);
    elab_stop(e);
}

static DType value_dtype(Elab *e, Value value)
{
    return value.kind == V_TENSOR ? val_type(e->graph, value.val)->dtype : DT_NONE;
}

static Value tensor_operator(Elab *e, Frame *frame, Operator op, Value left_value,
                             Value right_value, Span span, const Ast *left, const Ast *right)
{
    Value x = left_value, y = right_value;
    Span at_x = left ? left->span : span, at_y = right ? right->span : span;
    if (x.kind == V_PARAM || x.kind == V_MAYBE)
        x = value_tensor(value_val(e, x, at_x));
    if (y.kind == V_PARAM || y.kind == V_MAYBE)
        y = value_tensor(value_val(e, y, at_y));
    elab_at(e, span);
    Val a = value_is_number(x) ? number_val(e, x, value_dtype(e, y)) : value_val(e, x, at_x);
    Val b = value_is_number(y) ? number_val(e, y, value_dtype(e, x)) : value_val(e, y, at_y);
    check_shapes(e, frame, op, a, b, span, left, right);
    bool reals = op == OPR_DIV || op == OPR_POW;
    if (reals && val_type(e->graph, a)->dtype == DT_I64)
        a = g_cast(e->graph, a, e->real);
    if (reals && val_type(e->graph, b)->dtype == DT_I64)
        b = g_cast(e->graph, b, e->real);
    Val result = op == OPR_POW                  ? compose_pow(e->graph, a, b)
                 : op == OPR_GT || op == OPR_GE ? compose_binary(e->graph, graph_op(op), b, a)
                                                : compose_binary(e->graph, graph_op(op), a, b);
    if (!result)
        elab_fail_graph(e, span);
    return value_tensor(result);
}

// ---- the rest ----

// Whether a number is known only later: a tensor, a value of the step, a multiple of the batch.
static bool is_open(Value value)
{
    return value_is_tensor(value) || (value.kind == V_INT && value.batch);
}

static Value join_truths(Elab *e, Op op, Value x, Value y, Span span)
{
    Val val = g_binary(e->graph, op, value_val(e, x, span), value_val(e, y, span));
    if (!val)
        elab_fail_graph(e, span);
    return value_tensor(val);
}

// x in a..b is a <= x and x < b; of a range whose ends are numbers of the step, too.
static Value in_range(Elab *e, Frame *frame, Value x, const Range *range, Span span)
{
    bool open = range->first_val || range->limit_val;
    if (!open && !is_open(x))
        return value_bool(x.kind == V_INT && x.integer >= range->first && x.integer < range->limit);
    Value first = open ? value_tensor(range->first_val) : value_int(range->first);
    Value limit = open ? value_tensor(range->limit_val) : value_int(range->limit);
    Value above = eval_operator(e, frame, OPR_GE, x, first, span, NULL, NULL);
    Value below = eval_operator(e, frame, OPR_LT, x, limit, span, NULL, NULL);
    return join_truths(e, OP_AND, above, below, span);
}

// x in [a, b]: x == a or x == b, element by element where x is a tensor.
static Value eval_in(Elab *e, Frame *frame, Value x, Value y, Span span)
{
    if (y.kind == V_RANGE)
        return in_range(e, frame, x, y.range, span);
    if (y.kind != V_LIST)
        elab_fail(e, span, "'in' looks into a list or a range; this is %s", value_describe(e, y));
    Value found = value_bool(false);
    for (uint32_t i = 0; i < y.list->count; i++) {
        Value element = y.list->at[i], equal = value_bool(value_equal(e, x, element));
        if (is_open(x) || is_open(element))
            equal = eval_operator(e, frame, OPR_EQ, x, element, span, NULL, NULL);
        if (equal.kind == V_BOOL && equal.integer)
            return equal;
        if (equal.kind == V_BOOL)
            continue;
        found = found.kind == V_BOOL ? equal : join_truths(e, OP_OR, found, equal, span);
    }
    return found;
}

static Value join_lists(Elab *e, List *x, List *y)
{
    if (!y->count)
        return (Value){.kind = V_LIST, .list = x};
    if (!x->count)
        return (Value){.kind = V_LIST, .list = y};
    List *list = list_new(e, x->count + y->count);
    memcpy(list->at, x->at, x->count * sizeof *x->at);
    memcpy(list->at + x->count, y->at, y->count * sizeof *y->at);
    if (x->names || y->names) {
        list->names = arena_alloc(e->arena, list->count * sizeof *list->names);
        for (uint32_t i = 0; i < list->count; i++) {
            const List *from = i < x->count ? x : y;
            list->names[i] = from->names ? from->names[i < x->count ? i : i - x->count] : NULL;
        }
    }
    return (Value){.kind = V_LIST, .list = list};
}

// x == none, x != none
static Value equal_none(Elab *e, Operator op, Value x, Span span)
{
    bool none = x.kind == V_NONE;
    if (x.kind == V_MAYBE)
        none = !input_given(e, x, span);
    if (x.kind == V_HOST) {
        Value value = host_is_none(e, x);
        return op == OPR_EQ ? value : eval_not(e, value, span);
    }
    return value_bool(none == (op == OPR_EQ));
}

// x op y; left and right (may be NULL) are the operands' places, for messages.
Value eval_operator(Elab *e, Frame *frame, Operator op, Value x, Value y, Span span,
                    const Ast *left, const Ast *right)
{
    bool equality = op == OPR_EQ || op == OPR_NE;
    if (x.kind == V_INT && y.kind == V_INT && !x.batch && !y.batch && op != OPR_IN)
        return whole_operator(e, frame, op, x.integer, y.integer, span, left, right);
    if (value_is_number(x) && value_is_number(y) && !x.batch && !y.batch && op != OPR_IN)
        return real_operator(e, op, x.kind == V_REAL ? x.real : (double)x.integer,
                             y.kind == V_REAL ? y.real : (double)y.integer, span);
    if (op == OPR_IN)
        return eval_in(e, frame, x, y, span);
    if (equality && (x.kind == V_NONE || y.kind == V_NONE))
        return equal_none(e, op, x.kind == V_NONE ? y : x, span);
    Value result;
    if (x.kind == V_INT && y.kind == V_INT && batch_operator(op, x, y, &result))
        return result;
    if (op == OPR_ADD && x.kind == V_LIST && y.kind == V_LIST) {
        elab_step(e, span, x.list->count + y.list->count);
        return join_lists(e, x.list, y.list);
    }
    if (op == OPR_ADD && x.kind == V_STRING && y.kind == V_STRING)
        return value_string(intern(arena_printf(e->arena, "%s%s", x.text, y.text)));
    bool tensors = value_is_tensor(x) || value_is_tensor(y);
    bool numbers = (value_is_number(x) || value_is_tensor(x) || x.kind == V_HOST) &&
                   (value_is_number(y) || value_is_tensor(y) || y.kind == V_HOST);
    if (equality && !tensors && !numbers)
        return value_bool(value_equal(e, x, y) == (op == OPR_EQ));
    if (numbers || (tensors && (x.kind == V_BOOL || y.kind == V_BOOL)))
        return tensor_operator(e, frame, op, x, y, span, left, right);
    elab_error(e, span, "'%s' does not join %s and %s", operator_text(op), value_describe(e, x),
               value_describe(e, y));
    if ((value_is_tensor(x) && y.kind == V_LIST) || (value_is_tensor(y) && x.kind == V_LIST))
        elab_help(e, (Span){0}, "f32(list) makes a tensor of a list of numbers");
    elab_stop(e);
}

Value eval_negative(Elab *e, Value x, Span span)
{
    if (x.kind == V_REAL)
        return value_real(-x.real);
    if (x.kind == V_INT && !x.batch)
        return whole_operator(e, NULL, OPR_SUB, 0, x.integer, span, NULL, NULL);
    elab_at(e, span);
    Val val = value_val(e, x, span);
    Val result = g_unary(e->graph, OP_NEG, val);
    if (!result)
        elab_fail_graph(e, span);
    return value_tensor(result);
}

Value eval_not(Elab *e, Value x, Span span)
{
    if (x.kind == V_BOOL)
        return value_bool(!x.integer);
    if (!value_is_tensor(x))
        elab_fail(e, span, "'not' turns a condition; this is %s", value_describe(e, x));
    elab_at(e, span);
    Val result = g_unary(e->graph, OP_NOT, value_val(e, x, span));
    if (!result)
        elab_fail_graph(e, span);
    return value_tensor(result);
}

// An optional input where a tensor is needed: it is there, or this is an error.
Value elab_pin(Elab *e, Value value, Span span)
{
    if (value.kind != V_MAYBE)
        return value;
    if (!input_given(e, value, span)) {
        elab_error(e, span, "this input may be absent, and is needed here");
        elab_help(e, (Span){0}, "ask for it first: if x == none { ... }");
        elab_stop(e);
    }
    return value_tensor(input_val(e, value.input));
}
