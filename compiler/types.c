// Types and the type rules of sources, elementwise operations and movement.
//
// A rule looks at the types of the operands and the attributes of one operation, and either fills
// in the output types or says in one line, in the terms of the language, what does not fit. What
// only the compiler itself (or a broken dump) can get wrong is told as briefly; a wrong number of
// operands or attributes is a bug().
//
// Sizes are n or n * b. The batch may enter a type once, so a count of elements is n * b^batch and
// two counts are equal when both parts are.
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "compiler/rules.h"

// ---- types ----

size_t dtype_size(DType dtype)
{
    switch (dtype) {
    case DT_NONE:
        return 0;
    case DT_BOOL:
        return 1;
    case DT_I64:
        return 8;
    case DT_F16:
        return 2;
    case DT_BF16:
        return 2;
    case DT_F32:
        return 4;
    case DT_F64:
        return 8;
    }
    bug("there is no dtype %d", (int)dtype);
}

const char *dtype_name(DType dtype)
{
    switch (dtype) {
    case DT_NONE:
        return "none";
    case DT_BOOL:
        return "bool";
    case DT_I64:
        return "int";
    case DT_F16:
        return "f16";
    case DT_BF16:
        return "bf16";
    case DT_F32:
        return "f32";
    case DT_F64:
        return "f64";
    }
    bug("there is no dtype %d", (int)dtype);
}

double dtype_round(DType dtype, double value)
{
    switch (dtype) {
    case DT_NONE:
        return value;
    case DT_BOOL:
        return value != 0 ? 1 : 0;
    case DT_I64:
        return trunc(value) + 0.0;
    case DT_F16:
    case DT_BF16:
    case DT_F32:
        return (double)(float)value;
    case DT_F64:
        return value;
    }
    bug("there is no dtype %d", (int)dtype);
}

Type type_make(DType dtype, uint32_t rank, const Dim *dim)
{
    if (rank > MAX_RANK)
        bug("a type of rank %u", rank);
    Type type = {.dtype = dtype, .rank = rank};
    for (uint32_t i = 0; i < rank; i++)
        type.dim[i] = dim[i];
    return type;
}

Type type_scalar(DType dtype)
{
    return type_make(dtype, 0, NULL);
}

Type type_like(const Type *shape, DType dtype)
{
    return type_make(dtype, shape->rank, shape->dim);
}

bool shape_equal(const Type *x, const Type *y)
{
    if (x->rank != y->rank)
        return false;
    for (uint32_t i = 0; i < x->rank; i++)
        if (!dim_equal(x->dim[i], y->dim[i]))
            return false;
    return true;
}

bool type_equal(const Type *x, const Type *y)
{
    return x->dtype == y->dtype && shape_equal(x, y) && x->seg == y->seg &&
           (!x->seg || x->seg_axis == y->seg_axis);
}

bool type_count(const Type *type, Dim *count)
{
    Dim product = {1, 0};
    for (uint32_t i = 0; i < type->rank; i++) {
        if (type->dim[i].batch && product.batch)
            return false;
        if (__builtin_mul_overflow(product.n, type->dim[i].n, &product.n))
            return false;
        product.batch |= type->dim[i].batch;
    }
    if (count)
        *count = product;
    return true;
}

static int dim_write(char *text, size_t size, Dim dim)
{
    if (!dim.batch)
        return snprintf(text, size, "%lld", (long long)dim.n);
    if (dim.n == 1)
        return snprintf(text, size, "b");
    return snprintf(text, size, "%lldb", (long long)dim.n);
}

const char *dim_text(Dim dim)
{
    char text[32];
    dim_write(text, sizeof text, dim);
    return intern(text);
}

const char *type_text(const Type *type)
{
    char text[64 + 32 * MAX_RANK];
    size_t at = (size_t)snprintf(text, sizeof text, "%s", dtype_name(type->dtype));
    if (type->rank)
        text[at++] = '[';
    for (uint32_t i = 0; i < type->rank; i++) {
        at += (size_t)dim_write(text + at, sizeof text - at, type->dim[i]);
        at += (size_t)snprintf(text + at, sizeof text - at, "%s", i + 1 < type->rank ? ", " : "]");
    }
    text[at] = 0;
    return intern(text);
}

// ---- what rules share ----

const Type *rule_in(const Rule *rule, uint32_t i)
{
    return val_type(rule->graph, rule->in[i]);
}

bool rule_fail(const Rule *rule, const char *format, ...)
{
    char text[480];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    graph_set_error(rule->graph, "%s", text);
    return false;
}

bool rule_axis(const Rule *rule, const Type *type, int64_t axis)
{
    if (axis < 0 || axis >= type->rank)
        return rule_fail(rule, "%s: there is no axis %lld in %s", op_info[rule->op].name,
                         (long long)axis, type_text(type));
    return true;
}

bool rule_reals(const Rule *rule, uint32_t first, uint32_t last)
{
    for (uint32_t i = first; i <= last && i < rule->nin; i++) {
        const Type *type = rule_in(rule, i);
        if (!dtype_is_float(type->dtype))
            return rule_fail(rule, "%s wants real numbers, not %s", op_info[rule->op].name,
                             type_text(type));
        if (type->dtype != rule_in(rule, first)->dtype)
            return rule_fail(rule, "%s: precisions differ: %s and %s", op_info[rule->op].name,
                             type_text(rule_in(rule, first)), type_text(type));
    }
    return true;
}

static const Type *given_type(const Rule *rule)
{
    if (!rule->given)
        bug("%s needs its type", op_info[rule->op].name);
    return rule->given;
}

// "f32[b, 4] + f32[4]": the operation as it is written on these operands.
static const char *expression_text(const Rule *rule)
{
    static const struct {
        Op op;
        const char *sign;
    } signs[] = {
        {OP_ADD, "+"}, {OP_SUB, "-"}, {OP_MUL, "*"}, {OP_DIV, "/"}, {OP_MOD, "%"},   {OP_POW, "^"},
        {OP_EQ, "=="}, {OP_NE, "!="}, {OP_LT, "<"},  {OP_LE, "<="}, {OP_AND, "and"}, {OP_OR, "or"},
    };
    char text[320];
    const char *x = type_text(rule_in(rule, 0));
    if (rule->nin == 1) {
        snprintf(text, sizeof text, "%s(%s)", op_info[rule->op].name, x);
        return intern(text);
    }
    const char *y = type_text(rule_in(rule, 1));
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
        if (signs[i].op == rule->op) {
            snprintf(text, sizeof text, "%s %s %s", x, signs[i].sign, y);
            return intern(text);
        }
    if (rule->nin == 2)
        snprintf(text, sizeof text, "%s(%s, %s)", op_info[rule->op].name, x, y);
    else
        snprintf(text, sizeof text, "%s(%s, %s, %s)", op_info[rule->op].name, x, y,
                 type_text(rule_in(rule, 2)));
    return intern(text);
}

// ---- sources ----

// Whether an element of that dtype can be this number, but for rounding of reals.
static bool is_number(DType dtype, double value)
{
    if (dtype == DT_BOOL)
        return value == 0 || value == 1;
    return dtype != DT_I64 || (value == trunc(value) && fabs(value) < 0x1p63);
}

static bool source_rule(Rule *rule)
{
    const Attr *attr = rule->attr;
    if (rule->op == OP_BATCH || rule->op == OP_GIVEN) {
        rule->out[0] = type_scalar(rule->op == OP_BATCH ? DT_I64 : DT_BOOL);
        return true;
    }
    const Type *type = rule->out;
    rule->out[0] = *given_type(rule);
    if (rule->op == OP_CONST && !is_number(type->dtype, attr->real))
        return rule_fail(rule, "%g is not a %s", attr->real,
                         type->dtype == DT_BOOL ? "truth value" : "whole number");
    if (rule->op == OP_TABLE) {
        Dim count;
        size_t size;
        graph_blob(rule->graph, (uint32_t)attr->n[0], &size);
        if (!type_count(type, &count) || count.batch)
            return rule_fail(rule, "a table cannot be a %s", type_text(type));
        if ((size_t)count.n * dtype_size(type->dtype) != size)
            return rule_fail(rule, "%zu bytes are not a %s", size, type_text(type));
    }
    if (rule->op == OP_LOSS_SCALE && (type->rank || !dtype_is_float(type->dtype)))
        return rule_fail(rule, "a loss is not scaled by a %s", type_text(type));
    if ((rule->op == OP_OPTION || rule->op == OP_VAR) && type->rank)
        return rule_fail(rule, "an option is one number, not a %s", type_text(type));
    if (rule->op == OP_RANDOM) {
        if (attr->n[0] < 0 || attr->n[0] > 2 || (attr->n[0] == 2) != (type->dtype == DT_I64) ||
            (attr->n[0] != 2 && !dtype_is_float(type->dtype)))
            return rule_fail(rule, "a %s cannot be drawn", type_text(type));
        if (attr->n[0] == 2 && attr->n[1] >= attr->n[2])
            return rule_fail(rule, "there is no integer in %lld..%lld", (long long)attr->n[1],
                             (long long)attr->n[2]);
    }
    return true;
}

// ---- elementwise ----

// Shape of the result of an elementwise operation: equal ranks, axes of size 1 stretch, numbers
// go with everything. Segments stay on an axis that has its full size.
static bool broadcast_rule(Rule *rule)
{
    const Type *widest = rule_in(rule, 0);
    for (uint32_t i = 1; i < rule->nin; i++)
        if (rule_in(rule, i)->rank > widest->rank)
            widest = rule_in(rule, i);
    Type *out = rule->out;
    *out = type_like(widest, widest->dtype);
    for (uint32_t i = 0; i < rule->nin; i++) {
        const Type *x = rule_in(rule, i);
        if (x->rank == 0)
            continue;
        if (x->rank != out->rank)
            return rule_fail(rule, "ranks differ: %s", expression_text(rule));
        for (uint32_t j = 0; j < x->rank; j++) {
            if (dim_equal(x->dim[j], out->dim[j]) || dim_is_one(x->dim[j]))
                continue;
            if (!dim_is_one(out->dim[j]))
                return rule_fail(rule, "axis %u is %s and %s: %s", j, dim_text(out->dim[j]),
                                 dim_text(x->dim[j]), expression_text(rule));
            out->dim[j] = x->dim[j];
        }
    }
    for (uint32_t i = 0; i < rule->nin && !out->seg; i++) {
        const Type *x = rule_in(rule, i);
        if (x->seg && dim_equal(x->dim[x->seg_axis], out->dim[x->seg_axis])) {
            out->seg = x->seg;
            out->seg_axis = x->seg_axis;
        }
    }
    return true;
}

typedef enum { WANT_ANY, WANT_NUMBER, WANT_REAL, WANT_BOOL } Want;

// `want`: what the operands must hold.
static bool elementwise_rule(Rule *rule, Want want)
{
    uint32_t first = rule->op == OP_WHERE; // the operands whose dtypes are compared
    DType dtype = rule_in(rule, first)->dtype;
    if (rule->op == OP_WHERE && rule_in(rule, 0)->dtype != DT_BOOL)
        return rule_fail(rule, "where wants a truth value first, not %s",
                         type_text(rule_in(rule, 0)));
    static const char *const want_text[] = {"", "numbers", "real numbers", "truth values"};
    for (uint32_t i = first; i < rule->nin; i++) {
        DType here = rule_in(rule, i)->dtype;
        if ((want == WANT_BOOL && here != DT_BOOL) || (want == WANT_NUMBER && here == DT_BOOL) ||
            (want == WANT_REAL && !dtype_is_float(here)))
            return rule_fail(rule, "%s wants %s: %s", op_info[rule->op].name, want_text[want],
                             expression_text(rule));
        if (here != dtype)
            return rule_fail(rule, "kinds of numbers differ: %s", expression_text(rule));
    }
    if (!broadcast_rule(rule))
        return false;
    if (rule->op == OP_EQ || rule->op == OP_NE || rule->op == OP_LT || rule->op == OP_LE)
        dtype = DT_BOOL;
    if (rule->op == OP_CAST) {
        dtype = given_type(rule)->dtype;
        if (!shape_equal(rule->given, rule->out))
            return rule_fail(rule, "a cast from %s to %s", type_text(rule->out),
                             type_text(rule->given));
    }
    rule->out->dtype = dtype;
    return true;
}

// ---- movement ----

static bool reshape_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    rule->out[0] = *given_type(rule);
    if (rule->out->dtype != x->dtype)
        return rule_fail(rule, "a reshape from %s to %s", type_text(x), type_text(rule->out));
    Dim from, to;
    if (!type_count(x, &from) || !type_count(rule->out, &to) || !dim_equal(from, to))
        return rule_fail(rule, "%s has %s elements, and %s another number", type_text(x),
                         type_count(x, &from) ? dim_text(from) : "too many", type_text(rule->out));
    return true;
}

static bool expand_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    const Type *to = given_type(rule);
    rule->out[0] = *to;
    bool fits = x->rank == to->rank && x->dtype == to->dtype;
    for (uint32_t i = 0; fits && i < x->rank; i++)
        fits = dim_equal(x->dim[i], to->dim[i]) || dim_is_one(x->dim[i]);
    return fits || rule_fail(rule, "%s does not stretch to %s", type_text(x), type_text(to));
}

static bool transpose_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    if (rule->attr->count != x->rank)
        return rule_fail(rule, "a transpose of %u axes of %s", rule->attr->count, type_text(x));
    uint32_t seen = 0;
    *rule->out = type_like(x, x->dtype);
    for (uint32_t i = 0; i < x->rank; i++) {
        if (!rule_axis(rule, x, rule->attr->n[i]))
            return false;
        uint32_t axis = (uint32_t)rule->attr->n[i];
        seen |= 1u << axis;
        rule->out->dim[i] = x->dim[axis];
        if (x->seg && x->seg_axis == axis) {
            rule->out->seg = x->seg;
            rule->out->seg_axis = i;
        }
    }
    return seen == (1u << x->rank) - 1 || rule_fail(rule, "a transpose names an axis twice");
}

static void drop_segments(Type *type, uint32_t axis)
{
    if (type->seg && type->seg_axis == axis)
        type->seg = type->seg_axis = 0;
}

// slice, pad, flip, window and window_grad: one axis of x changes its size.
static bool one_axis_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    const Attr *attr = rule->attr;
    Type *out = rule->out;
    *out = *x;
    if (!rule_axis(rule, x, attr->n[0]))
        return false;
    uint32_t axis = (uint32_t)attr->n[0];
    Dim *dim = &out->dim[axis];
    drop_segments(out, axis);
    if (rule->op == OP_SLICE) {
        if (attr->n[1] < 0 || attr->n[2] < 1 || attr->n[1] > dim->n - attr->n[2])
            return rule_fail(rule, "%lld..%lld is not within axis %u of %s", (long long)attr->n[1],
                             (long long)((uint64_t)attr->n[1] + (uint64_t)attr->n[2]), axis,
                             type_text(x));
        dim->n = attr->n[2];
        return true;
    }
    if (dim->batch)
        return rule_fail(rule, "%s does not go with the batch axis of %s", op_info[rule->op].name,
                         type_text(x));
    if (rule->op == OP_PAD) {
        if (attr->n[1] < 0 || attr->n[2] < 0)
            return rule_fail(rule, "pad wants sizes from 0 up");
        if (__builtin_add_overflow(dim->n, attr->n[1], &dim->n) ||
            __builtin_add_overflow(dim->n, attr->n[2], &dim->n))
            return rule_fail(rule, "pad makes axis %u of %s too large", axis, type_text(x));
        if (!is_number(x->dtype, attr->real))
            return rule_fail(rule, "%g is no value of %s", attr->real, type_text(x));
        return true;
    }
    if (rule->op == OP_FLIP)
        return true;
    const Type *start = rule_in(rule, 1);
    if (start->rank || start->dtype != DT_I64)
        return rule_fail(rule, "a window starts at one integer, not at %s", type_text(start));
    if (attr->n[1] < 1 || (rule->op == OP_WINDOW ? attr->n[1] > dim->n : attr->n[1] < dim->n))
        return rule_fail(rule, "a window of %lld is not within axis %u of %s",
                         (long long)attr->n[1], axis, type_text(x));
    dim->n = attr->n[1];
    return true;
}

static bool concat_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    if (!rule_axis(rule, x, rule->attr->n[0]))
        return false;
    uint32_t axis = (uint32_t)rule->attr->n[0];
    Type *out = rule->out;
    *out = *x;
    drop_segments(out, axis);
    for (uint32_t i = 1; i < rule->nin; i++) {
        const Type *y = rule_in(rule, i);
        if (y->dtype != x->dtype)
            return rule_fail(rule, "concat: kinds of numbers differ: %s and %s", type_text(x),
                             type_text(y));
        if (y->rank != x->rank)
            return rule_fail(rule, "concat: ranks differ: %s and %s", type_text(x), type_text(y));
        for (uint32_t j = 0; j < x->rank; j++)
            if (j == axis ? x->dim[j].batch != y->dim[j].batch : !dim_equal(x->dim[j], y->dim[j]))
                return rule_fail(rule, "concat on axis %u: axis %u is %s and %s: %s and %s", axis,
                                 j, dim_text(x->dim[j]), dim_text(y->dim[j]), type_text(x),
                                 type_text(y));
        if (__builtin_add_overflow(out->dim[axis].n, y->dim[axis].n, &out->dim[axis].n))
            return rule_fail(rule, "concat: axis %u becomes too large", axis);
    }
    if (rule->attr->n[1]) {
        out->seg = (SegId)rule->attr->n[1];
        out->seg_axis = axis;
    }
    return true;
}

static bool swap_pairs_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    *rule->out = *x;
    if (!x->rank || x->dim[x->rank - 1].batch || x->dim[x->rank - 1].n % 2)
        return rule_fail(rule, "pairs want a last axis of even size: %s", type_text(x));
    return true;
}

// pick and pick_grad: x [b, ...], k int[b]; the axis goes, or comes.
static bool pick_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    const Type *k = rule_in(rule, 1);
    int64_t axis = rule->attr->n[0];
    int64_t axes = (int64_t)x->rank + (rule->op == OP_PICK_GRAD);
    if (axis < 1 || axis >= axes || axes > MAX_RANK)
        return rule_fail(rule, "%s: there is no axis %lld from 1 up in %s", op_info[rule->op].name,
                         (long long)axis, type_text(x));
    if (k->dtype != DT_I64 || k->rank != 1 || !dim_equal(k->dim[0], x->dim[0]))
        return rule_fail(rule, "pick from %s wants int[%s], not %s", type_text(x),
                         dim_text(x->dim[0]), type_text(k));
    Type *out = rule->out;
    *out = type_make(x->dtype, 0, NULL);
    for (uint32_t i = 0; i < x->rank; i++) {
        if (i == axis && rule->op == OP_PICK) {
            if (x->dim[i].batch)
                return rule_fail(rule, "pick does not go with the batch axis of %s", type_text(x));
            continue;
        }
        if (i == axis)
            out->dim[out->rank++] = dim_fixed(rule->attr->n[1]);
        out->dim[out->rank++] = x->dim[i];
    }
    if (axis == x->rank)
        out->dim[out->rank++] = dim_fixed(rule->attr->n[1]);
    return true;
}

// gather: x [n, s...], index int[i...] -> [i..., s...]; gather_grad: dy, index -> [size, s...].
static bool gather_rule(Rule *rule)
{
    const Type *x = rule_in(rule, 0);
    const Type *index = rule_in(rule, 1);
    if (index->dtype != DT_I64)
        return rule_fail(rule, "an index is an int, not %s", type_text(index));
    Type *out = rule->out;
    *out = type_make(x->dtype, 0, NULL);
    if (rule->op == OP_GATHER) {
        if (!x->rank || x->dim[0].batch)
            return rule_fail(rule, "there are no rows to choose in %s", type_text(x));
        if (index->rank + x->rank - 1 > MAX_RANK)
            return rule_fail(rule, "%s by %s has more than %d axes", type_text(x), type_text(index),
                             MAX_RANK);
        for (uint32_t i = 0; i < index->rank; i++)
            out->dim[out->rank++] = index->dim[i];
        for (uint32_t i = 1; i < x->rank; i++)
            out->dim[out->rank++] = x->dim[i];
        return true;
    }
    bool fits =
        index->rank <= x->rank && x->rank - index->rank < MAX_RANK && dtype_is_float(x->dtype);
    for (uint32_t i = 0; fits && i < index->rank; i++)
        fits = dim_equal(x->dim[i], index->dim[i]);
    if (!fits)
        return rule_fail(rule, "gather_grad: %s by %s", type_text(x), type_text(index));
    out->dim[out->rank++] = dim_fixed(rule->attr->n[0]);
    for (uint32_t i = index->rank; i < x->rank; i++)
        out->dim[out->rank++] = x->dim[i];
    return true;
}

// ---- the whole ----

// Attributes that an operation names: how many, and whether a list follows them.
static uint32_t attr_names(const char *names, bool *list)
{
    uint32_t count = 0;
    *list = false;
    for (const char *at = names; *at;) {
        size_t length = strcspn(at, " ");
        if (at[length - 1] == '*')
            *list = true;
        else if (*at != '$')
            count++;
        at += length;
        at += strspn(at, " ");
    }
    return count;
}

static void check_use(const Rule *rule)
{
    const OpInfo *info = &op_info[rule->op];
    if (info->nin >= 0 ? rule->nin != (uint32_t)info->nin : rule->nin == 0)
        bug("%s with %u operands", info->name, rule->nin);
    bool list;
    uint32_t count = attr_names(info->attrs, &list);
    if (list ? rule->attr->count < count : rule->attr->count != count)
        bug("%s with %u attributes (%s)", info->name, rule->attr->count, info->attrs);
}

// The positions of the segments are those of their axis.
static bool check_segments(const Rule *rule, const Type *type)
{
    const Segments *segments = graph_segments(rule->graph, type->seg);
    int64_t sum = 0;
    bool fits = type->seg_axis < type->rank && !type->dim[type->seg_axis].batch;
    for (uint32_t i = 0; i < segments->count; i++) {
        int64_t size = 1;
        for (uint32_t j = 0; j < segments->rank[i]; j++)
            fits = fits && segments->extent[i][j] > 0 &&
                   !__builtin_mul_overflow(size, segments->extent[i][j], &size);
        fits = fits && !__builtin_add_overflow(sum, size, &sum);
    }
    if (fits && type->dim[type->seg_axis].n == sum)
        return true;
    return rule_fail(rule, "segments of %lld positions on axis %u of %s", (long long)sum,
                     type->seg_axis, type_text(type));
}

// What holds for every type: sizes from 1 up, the batch in one axis, a count that fits int64.
static bool check_type(const Rule *rule, const Type *type)
{
    if (type->dtype == DT_NONE)
        return rule_fail(rule, "%s without a dtype", op_info[rule->op].name);
    uint32_t batch = 0;
    for (uint32_t i = 0; i < type->rank; i++) {
        batch += type->dim[i].batch != 0;
        if (type->dim[i].n < 1)
            return rule_fail(rule, "axis %u has the size %lld: %s", i, (long long)type->dim[i].n,
                             type_text(type));
    }
    if (batch > 1)
        return rule_fail(rule, "the batch is in two axes: %s", type_text(type));
    Dim count;
    if (!type_count(type, &count) || count.n > INT64_MAX >> 8)
        return rule_fail(rule, "too many elements: %s", type_text(type));
    return !type->seg || check_segments(rule, type);
}

// The rule of the operation; the number of outputs, or 0.
static uint32_t apply_rule(Rule *rule)
{
    switch (rule->op) {
    case OP_CONST:
    case OP_TABLE:
    case OP_INPUT:
    case OP_PARAM:
    case OP_OPTION:
    case OP_BATCH:
    case OP_GIVEN:
    case OP_VAR:
    case OP_LOSS_SCALE:
    case OP_RANDOM:
        return source_rule(rule);
    case OP_CAST:
    case OP_STOP_GRADIENT:
    case OP_EQ:
    case OP_NE:
    case OP_WHERE:
        return elementwise_rule(rule, WANT_ANY);
    case OP_NOT:
    case OP_AND:
    case OP_OR:
        return elementwise_rule(rule, WANT_BOOL);
    case OP_NEG:
    case OP_ABS:
    case OP_SIGN:
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
    case OP_MOD:
    case OP_MIN:
    case OP_MAX:
    case OP_LT:
    case OP_LE:
        return elementwise_rule(rule, WANT_NUMBER);
    case OP_SQRT:
    case OP_RSQRT:
    case OP_EXP:
    case OP_LOG:
    case OP_SIN:
    case OP_COS:
    case OP_TANH:
    case OP_ERF:
    case OP_SIGMOID:
    case OP_SOFTPLUS:
    case OP_RELU:
    case OP_SILU:
    case OP_GELU:
    case OP_GELU_TANH:
    case OP_FLOOR:
    case OP_POW:
        return elementwise_rule(rule, WANT_REAL);
    case OP_RESHAPE:
        return reshape_rule(rule);
    case OP_TRANSPOSE:
        return transpose_rule(rule);
    case OP_EXPAND:
        return expand_rule(rule);
    case OP_SLICE:
    case OP_PAD:
    case OP_FLIP:
    case OP_WINDOW:
    case OP_WINDOW_GRAD:
        return one_axis_rule(rule);
    case OP_CONCAT:
        return concat_rule(rule);
    case OP_SWAP_PAIRS:
        return swap_pairs_rule(rule);
    case OP_PICK:
    case OP_PICK_GRAD:
        return pick_rule(rule);
    case OP_GATHER:
    case OP_GATHER_GRAD:
        return gather_rule(rule);
    case OP_REDUCE_SUM:
    case OP_REDUCE_MAX:
    case OP_REDUCE_MIN:
        return reduce_rule(rule);
    case OP_CONTRACT:
        return contract_rule(rule);
    case OP_CONV:
    case OP_CONV_DGRAD:
    case OP_CONV_WGRAD:
        return conv_rule(rule);
    case OP_SOFTMAX:
        return softmax_rule(rule);
    case OP_LAYER_NORM:
        return layer_norm_rule(rule);
    case OP_LAYER_NORM_GRAD:
        return layer_norm_grad_rule(rule);
    case OP_GROUP_NORM:
        return group_norm_rule(rule);
    case OP_GROUP_NORM_TABLE:
        return group_norm_table_rule(rule);
    case OP_CHANNEL_MOMENTS:
        return channel_moments_rule(rule);
    case OP_GROUP_NORM_GRAD:
        return group_norm_grad_rule(rule);
    case OP_ATTENTION:
        return attention_rule(rule);
    case OP_ATTENTION_GRAD:
        return attention_grad_rule(rule);
    case OP_COUNT:
        break;
    }
    bug("there is no operation %d", (int)rule->op);
}

uint32_t type_infer(Graph *graph, Op op, const Val *in, uint32_t nin, const Attr *attr,
                    const Type *given, Type out[MAX_OUT])
{
    Rule rule = {graph, op, in, nin, attr, given, out};
    check_use(&rule);
    if (given && !check_type(&rule, given))
        return 0;
    uint32_t count = apply_rule(&rule);
    for (uint32_t i = 0; i < count; i++)
        if (!check_type(&rule, &out[i]))
            return 0;
    return count;
}
