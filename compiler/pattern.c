// einops patterns: parsing, solving for sizes, and building the graph.
//
// A side of a pattern ("b (h w) c") is a list of groups, one for each axis of the tensor, and each
// group a list of elementary axes. Elementary axes with the same name are one Symbol with one
// size. Solving goes over the groups until nothing is new: a group whose symbols are all known is
// checked, one with a single unknown gives it. Then every function is the same three steps on
// elementary axes: split the tensor into them (reshape), bring them into the order of the right
// side (transpose, reduce, expand or contract in between), join them (reshape).
//
// `1` has no symbol: splitting drops it and joining makes it. A number n is a symbol "n#k", the
// k-th n of its side; a run of axes `...` is expanded to symbols "...0", "...1" before solving.
#include "compiler/pattern.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/compose.h"
#include "compiler/rules.h"

enum { MAX_AXES = 24, MAX_SYMBOLS = 64, MAX_OPERANDS = 8, NO_SYMBOL = -1 };

typedef enum { AXIS_NAMED, AXIS_ONE, AXIS_REST, AXIS_STAR } AxisKind;

typedef struct {
    AxisKind kind;
    int symbol;                    // of AXIS_NAMED
    uint32_t begin, end;           // bytes of the text
} Axis;

typedef struct {
    uint32_t first, count;         // elementary axes in Side.axis
    uint32_t begin, end;           // with the parentheses
} Group;

typedef struct {
    Axis axis[MAX_AXES];
    Group group[MAX_AXES];
    uint32_t axis_count, group_count;
    uint32_t begin, end;
} Side;

typedef enum { SIZE_UNKNOWN, SIZE_NUMBER, SIZE_GIVEN, SIZE_SCOPE, SIZE_TENSOR } SizeSource;

typedef struct {
    const char *name;              // interned
    SizeSource source;
    Dim size;
} Symbol;

typedef struct {
    Graph *graph;
    const PatternScope *scope;
    const char *text;
    PatternError *error;
    bool failed;
    Symbol symbol[MAX_SYMBOLS];
    uint32_t symbol_count;
    Side left[MAX_OPERANDS];
    uint32_t left_count;
    Side right;
    bool has_right;
    bool rest_known;
    uint32_t rest_rank;
} Pattern;

// Elementary axes with a symbol, in order.
typedef struct {
    int symbol[MAX_AXES];
    uint32_t count;
} Axes;

// ---- errors and sizes ----

// Keeps the first error; returns 0, so that `return fail(...)` serves Val and bool.
__attribute__((format(printf, 5, 6)))
static Val fail(Pattern *pattern, uint32_t begin, uint32_t end, const char *axis,
                const char *format, ...)
{
    if (pattern->failed)
        return 0;
    pattern->failed = true;
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    graph_set_error(pattern->graph, "%s", message);
    if (pattern->error)
        *pattern->error = (PatternError){begin, end, axis, false};
    return 0;
}

static bool dim_multiply(Dim x, Dim y, Dim *product)
{
    product->batch = x.batch + y.batch;
    return product->batch <= 1 && !__builtin_mul_overflow(x.n, y.n, &product->n);
}

static bool dim_divide(Dim x, Dim y, Dim *quotient)
{
    if (y.batch > x.batch || y.n == 0 || x.n % y.n != 0)
        return false;
    *quotient = (Dim){x.n / y.n, x.batch - y.batch};
    return true;
}

// ---- parsing ----

static const char *const rest_names[MAX_RANK] = {
    "...0", "...1", "...2", "...3", "...4", "...5", "...6", "...7",
};

// The number of a name, made at its first mention with the size that is known before any tensor.
static int find_symbol(Pattern *pattern, const char *name)
{
    for (uint32_t i = 0; i < pattern->symbol_count; i++)
        if (pattern->symbol[i].name == name)
            return (int)i;
    if (pattern->symbol_count == MAX_SYMBOLS) {
        fail(pattern, 0, (uint32_t)strlen(pattern->text), NULL, "too many axes in the pattern");
        return NO_SYMBOL;
    }
    const PatternScope *scope = pattern->scope;
    Symbol *symbol = &pattern->symbol[pattern->symbol_count];
    *symbol = (Symbol){.name = name};
    for (uint32_t i = 0; i < scope->given_count; i++)
        if (strcmp(scope->given[i].name, name) == 0) {
            symbol->size = scope->given[i].size;
            symbol->source = SIZE_GIVEN;
        }
    if (symbol->source == SIZE_UNKNOWN && scope->lookup
        && scope->lookup(scope->context, name, &symbol->size))
        symbol->source = SIZE_SCOPE;
    return (int)pattern->symbol_count++;
}

static int number_symbol(Pattern *pattern, const Side *side, int64_t number)
{
    char name[48];
    for (int k = 0;; k++) {
        snprintf(name, sizeof name, "%lld#%d", (long long)number, k);
        const char *interned = intern(name);
        bool used = false;
        for (uint32_t i = 0; i < side->axis_count; i++)
            used |= side->axis[i].kind == AXIS_NAMED
                    && pattern->symbol[side->axis[i].symbol].name == interned;
        if (used)
            continue;
        for (uint32_t i = 0; i < pattern->symbol_count; i++)
            if (pattern->symbol[i].name == interned)
                return (int)i;
        if (pattern->symbol_count == MAX_SYMBOLS)
            return NO_SYMBOL;
        pattern->symbol[pattern->symbol_count] =
            (Symbol){interned, SIZE_NUMBER, dim_fixed(number)};
        return (int)pattern->symbol_count++;
    }
}

// Reads one elementary axis at `at`; returns the byte after it, or 0 after an error.
static uint32_t parse_axis(Pattern *pattern, Side *side, uint32_t at)
{
    const char *text = pattern->text;
    uint32_t end = at;
    Axis axis = {.kind = AXIS_NAMED, .symbol = NO_SYMBOL, .begin = at};
    if (isalpha((unsigned char)text[at]) || text[at] == '_') {
        while (isalnum((unsigned char)text[end]) || text[end] == '_')
            end++;
        axis.symbol = find_symbol(pattern, intern_n(text + at, end - at));
    } else if (isdigit((unsigned char)text[at])) {
        int64_t number = 0;
        bool valid = true;
        for (; isalnum((unsigned char)text[end]) || text[end] == '_'; end++) {
            valid &= isdigit((unsigned char)text[end]) && number < INT64_C(1) << 40;
            number = valid ? number * 10 + (text[end] - '0') : number;
        }
        if (!valid || number == 0)
            return fail(pattern, at, end, NULL, "'%.*s' is not an axis", (int)(end - at),
                        text + at);
        if (number == 1)
            axis.kind = AXIS_ONE;
        else
            axis.symbol = number_symbol(pattern, side, number);
    } else if (strncmp(text + at, "...", 3) == 0) {
        axis.kind = AXIS_REST;
        end += 3;
    } else if (text[at] == '*') {
        axis.kind = AXIS_STAR;
        end++;
    } else {
        return fail(pattern, at, at + 1, NULL, "'%c' means nothing in a pattern", text[at]);
    }
    axis.end = end;
    if (axis.kind == AXIS_NAMED && axis.symbol == NO_SYMBOL)
        return 0;
    for (uint32_t i = 0; i < side->axis_count; i++) {
        const Axis *other = &side->axis[i];
        if (other->kind == axis.kind && axis.kind != AXIS_ONE && other->symbol == axis.symbol)
            return fail(pattern, at, end, NULL, "'%.*s' stands twice on one side",
                        (int)(end - at), text + at);
    }
    if (side->axis_count == MAX_AXES)
        return fail(pattern, at, end, NULL, "too many axes in the pattern");
    side->axis[side->axis_count++] = axis;
    return end;
}

static uint32_t skip_spaces(const char *text, uint32_t at)
{
    while (text[at] == ' ' || text[at] == '\t' || text[at] == '\n')
        at++;
    return at;
}

// One side, up to "->", "," or the end; returns the byte there. After an error the pattern failed.
static uint32_t parse_side(Pattern *pattern, Side *side, uint32_t at)
{
    const char *text = pattern->text;
    at = skip_spaces(text, at);
    side->begin = side->end = at;
    while (text[at] && text[at] != ',' && text[at] != '-' && !pattern->failed) {
        if (side->group_count == MAX_AXES) {
            fail(pattern, at, at + 1, NULL, "too many axes in the pattern");
            break;
        }
        Group *group = &side->group[side->group_count++];
        *group = (Group){.first = side->axis_count, .begin = at};
        if (text[at] == '(') {
            uint32_t next = skip_spaces(text, at + 1);
            while (next && text[next] != ')') {
                if (!text[next])
                    fail(pattern, group->begin, group->begin + 1, NULL, "'(' is not closed");
                else if (text[next] == '(')
                    fail(pattern, next, next + 1, NULL, "parentheses in parentheses");
                else
                    next = parse_axis(pattern, side, next);
                if (pattern->failed)
                    return at;
                next = skip_spaces(text, next);
            }
            at = next + 1;
        } else {
            at = parse_axis(pattern, side, at);
            if (pattern->failed)
                return at;
        }
        group->count = side->axis_count - group->first;
        group->end = side->end = at;
        at = skip_spaces(text, at);
    }
    return at;
}

// The whole text: operands separated by ",", and the right side after "->" if there is one.
static bool parse_pattern(Pattern *pattern, Graph *graph, const PatternScope *scope,
                          const char *text, PatternError *error)
{
    *pattern = (Pattern){.graph = graph, .scope = scope, .text = text, .error = error};
    if (scope->has_rest) {
        pattern->rest_known = true;
        pattern->rest_rank = scope->rest_rank;
    }
    uint32_t at = 0;
    do {
        at += pattern->left_count > 0;   // the comma
        if (pattern->left_count == MAX_OPERANDS)
            return fail(pattern, at, at + 1, NULL, "more than %d operands", MAX_OPERANDS);
        at = parse_side(pattern, &pattern->left[pattern->left_count++], at);
    } while (!pattern->failed && text[at] == ',');
    if (!pattern->failed && text[at] == '-') {
        if (text[at + 1] != '>')
            return fail(pattern, at, at + 1, NULL, "'-' means nothing in a pattern");
        pattern->has_right = true;
        at = parse_side(pattern, &pattern->right, at + 2);
        if (!pattern->failed && text[at])
            fail(pattern, at, at + 1, NULL, "'%c' on the right side of the pattern", text[at]);
    }
    for (uint32_t i = 0; i < scope->given_count && !pattern->failed; i++) {
        bool used = false;
        for (uint32_t j = 0; j < pattern->symbol_count; j++)
            used |= strcmp(pattern->symbol[j].name, scope->given[i].name) == 0;
        if (!used)
            fail(pattern, 0, (uint32_t)strlen(text), scope->given[i].name,
                 "the pattern has no axis '%s'", scope->given[i].name);
    }
    return !pattern->failed;
}

// rearrange, repeat, reduce: one operand and a right side, no `*`.
static bool expect_arrow(Pattern *pattern)
{
    uint32_t end = (uint32_t)strlen(pattern->text);
    if (!pattern->has_right)
        return fail(pattern, 0, end, NULL, "the pattern has no '->'");
    for (uint32_t s = 0; s <= pattern->left_count; s++) {
        const Side *side = s < pattern->left_count ? &pattern->left[s] : &pattern->right;
        for (uint32_t i = 0; i < side->axis_count; i++)
            if (side->axis[i].kind == AXIS_STAR)
                return fail(pattern, side->axis[i].begin, side->axis[i].end, NULL,
                            "'*' stands only in patterns of pack and unpack");
    }
    return true;
}

// ---- runs of axes ----

// The rank that `...` has by this operand, if it stands there alone.
static bool find_rest_rank(Pattern *pattern, const Side *side, uint32_t rank)
{
    for (uint32_t i = 0; i < side->group_count; i++) {
        const Group *group = &side->group[i];
        if (group->count != 1 || side->axis[group->first].kind != AXIS_REST
            || pattern->text[group->begin] == '(')
            continue;
        if (rank + 1 < side->group_count)
            return fail(pattern, side->begin, side->end, NULL,
                        "the pattern has %u axes, and the tensor %u", side->group_count - 1, rank);
        uint32_t run = rank + 1 - side->group_count;
        if (pattern->rest_known && pattern->rest_rank != run)
            return fail(pattern, group->begin, group->end, NULL,
                        "'...' is %u axes of the tensor, and %u in this function", run,
                        pattern->rest_rank);
        pattern->rest_known = true;
        pattern->rest_rank = run;
    }
    return true;
}

static void add_axis(Side *side, Axis axis)
{
    side->axis[side->axis_count++] = axis;
}

static void add_group(Side *side, const Group *like, uint32_t count)
{
    side->group[side->group_count++] =
        (Group){side->axis_count - count, count, like->begin, like->end};
}

static int rest_symbol(Pattern *pattern, uint32_t i)
{
    int symbol = find_symbol(pattern, intern(rest_names[i]));
    if (symbol != NO_SYMBOL && pattern->scope->has_rest
        && pattern->symbol[symbol].source == SIZE_UNKNOWN) {
        pattern->symbol[symbol].source = SIZE_SCOPE;
        pattern->symbol[symbol].size = pattern->scope->rest[i];
    }
    return symbol;
}

// Replaces `...` by as many named axes as it stands for.
static bool expand_rest(Pattern *pattern, Side *side)
{
    Side out = {.begin = side->begin, .end = side->end};
    for (uint32_t g = 0; g < side->group_count; g++) {
        const Group *group = &side->group[g];
        bool alone = pattern->text[group->begin] != '(';
        uint32_t first = out.axis_count;
        for (uint32_t i = group->first; i < group->first + group->count; i++) {
            Axis axis = side->axis[i];
            if (axis.kind != AXIS_REST) {
                add_axis(&out, axis);
                continue;
            }
            if (!pattern->rest_known)
                return fail(pattern, axis.begin, axis.end, NULL,
                            "'...' is not known here: the function does not declare it");
            if (side->axis_count + pattern->rest_rank > MAX_AXES
                || side->group_count + pattern->rest_rank > MAX_AXES)
                return fail(pattern, axis.begin, axis.end, NULL, "too many axes in the pattern");
            for (uint32_t k = 0; k < pattern->rest_rank; k++) {
                axis.kind = AXIS_NAMED;
                axis.symbol = rest_symbol(pattern, k);
                if (axis.symbol == NO_SYMBOL)
                    return false;
                add_axis(&out, axis);
                if (alone)
                    add_group(&out, group, 1);
            }
            if (alone)
                first = UINT32_MAX;      // its groups are made
        }
        if (first != UINT32_MAX)
            add_group(&out, group, out.axis_count - first);
    }
    *side = out;
    return true;
}

// ---- solving ----

// "'h'", "'...'", "3": how a symbol is called in messages.
static const char *symbol_text(char buffer[64], const Symbol *symbol)
{
    if (symbol->source == SIZE_NUMBER)
        snprintf(buffer, 64, "%lld", (long long)symbol->size.n);
    else if (strncmp(symbol->name, "...", 3) == 0)
        snprintf(buffer, 64, "%d of '...'", atoi(symbol->name + 3));
    else
        snprintf(buffer, 64, "'%.50s'", symbol->name);
    return buffer;
}

static Val fail_size(Pattern *pattern, const Axis *axis, Dim have)
{
    const Symbol *symbol = &pattern->symbol[axis->symbol];
    char name[64];
    symbol_text(name, symbol);
    const char *in_tensor = dim_text(have), *expected = dim_text(symbol->size);
    if (symbol->source == SIZE_NUMBER)
        return fail(pattern, axis->begin, axis->end, NULL,
                    "the axis is %s in the tensor, and %s in the pattern", in_tensor, expected);
    const char *where = symbol->source == SIZE_SCOPE ? "in this scope"
                        : symbol->source == SIZE_GIVEN ? "in the call" : "before";
    fail(pattern, axis->begin, axis->end, symbol->name, "axis %s is %s in the tensor, and %s %s",
         name, in_tensor, expected, where);
    if (pattern->error)
        pattern->error->in_scope = symbol->source == SIZE_SCOPE;
    return 0;
}

// A group whose known sizes do not go with the tensor's: tells the factors.
static Val fail_group(Pattern *pattern, const Side *side, const Group *group, Dim have)
{
    char list[256] = "", name[64];
    for (uint32_t i = group->first; i < group->first + group->count; i++) {
        if (side->axis[i].kind != AXIS_NAMED)
            continue;
        const Symbol *symbol = &pattern->symbol[side->axis[i].symbol];
        size_t used = strlen(list);
        if (symbol->source == SIZE_NUMBER)
            snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "",
                     dim_text(symbol->size));
        else if (symbol->source != SIZE_UNKNOWN)
            snprintf(list + used, sizeof list - used, "%s%s = %s", used ? ", " : "",
                     symbol_text(name, symbol), dim_text(symbol->size));
        else
            snprintf(list + used, sizeof list - used, "%s%s unknown", used ? ", " : "",
                     symbol_text(name, symbol));
    }
    return fail(pattern, group->begin, group->end, NULL,
                "'%.*s' is %s in the tensor, which does not go with %s",
                (int)(group->end - group->begin), pattern->text + group->begin,
                dim_text(have), *list ? list : "1");
}

// Checks or solves one group against the size of its axis; *solved counts new sizes.
static bool solve_group(Pattern *pattern, const Side *side, const Group *group, Dim have,
                        uint32_t *solved)
{
    Dim known = dim_fixed(1);
    const Axis *unknown = NULL, *single = NULL;
    uint32_t unknown_count = 0, named = 0;
    for (uint32_t i = group->first; i < group->first + group->count; i++) {
        const Axis *axis = &side->axis[i];
        if (axis->kind != AXIS_NAMED)
            continue;
        named++;
        single = axis;
        Symbol *symbol = &pattern->symbol[axis->symbol];
        if (symbol->source == SIZE_UNKNOWN) {
            unknown = axis;
            unknown_count++;
        } else if (!dim_multiply(known, symbol->size, &known)) {
            return fail_group(pattern, side, group, have);
        }
    }
    if (unknown_count > 1)
        return true;
    if (unknown_count == 0) {
        if (dim_equal(known, have))
            return true;
        if (named == 1)
            return fail_size(pattern, single, have);
        return fail_group(pattern, side, group, have);
    }
    Symbol *symbol = &pattern->symbol[unknown->symbol];
    if (!dim_divide(have, known, &symbol->size))
        return fail_group(pattern, side, group, have);
    symbol->source = SIZE_TENSOR;
    ++*solved;
    return true;
}

// Gives every symbol of the left sides a size. dims[s][g]: size of group g of operand s; groups
// of `*` are left out.
static bool solve(Pattern *pattern, Dim (*dims)[MAX_AXES])
{
    uint32_t solved;
    do {
        solved = 0;
        for (uint32_t s = 0; s < pattern->left_count; s++) {
            const Side *side = &pattern->left[s];
            for (uint32_t g = 0; g < side->group_count; g++) {
                const Group *group = &side->group[g];
                if (group->count && side->axis[group->first].kind == AXIS_STAR)
                    continue;
                if (!solve_group(pattern, side, group, dims[s][g], &solved))
                    return false;
            }
        }
    } while (solved);
    for (uint32_t s = 0; s < pattern->left_count; s++) {
        const Side *side = &pattern->left[s];
        for (uint32_t i = 0; i < side->axis_count; i++) {
            const Axis *axis = &side->axis[i];
            if (axis->kind != AXIS_NAMED
                || pattern->symbol[axis->symbol].source != SIZE_UNKNOWN)
                continue;
            const char *name = pattern->symbol[axis->symbol].name;
            return fail(pattern, axis->begin, axis->end, name,
                        "the size of axis '%s' does not follow; give it, for example '%s: 4'",
                        name, name);
        }
    }
    return true;
}

// The sizes of an operand's axes, once its rank is right.
static bool match_type(Pattern *pattern, const Side *side, const Type *type, Dim *dims)
{
    if (type->rank != side->group_count)
        return fail(pattern, side->begin, side->end, NULL,
                    "the pattern has %u axes, and the tensor %u: %s", side->group_count,
                    type->rank, type_text(type));
    memcpy(dims, type->dim, type->rank * sizeof *dims);
    return true;
}

// All of the above for operands xs and the right side.
static bool match_operands(Pattern *pattern, const Val *xs)
{
    Dim dims[MAX_OPERANDS][MAX_AXES];
    if (!expect_arrow(pattern))
        return false;
    for (uint32_t s = 0; s < pattern->left_count; s++)
        if (!find_rest_rank(pattern, &pattern->left[s], val_type(pattern->graph, xs[s])->rank))
            return false;
    for (uint32_t s = 0; s < pattern->left_count; s++)
        if (!expand_rest(pattern, &pattern->left[s])
            || !match_type(pattern, &pattern->left[s], val_type(pattern->graph, xs[s]), dims[s]))
            return false;
    return expand_rest(pattern, &pattern->right) && solve(pattern, dims);
}

// ---- building ----

static Axes side_axes(const Side *side)
{
    Axes axes = {.count = 0};
    for (uint32_t i = 0; i < side->axis_count; i++)
        if (side->axis[i].kind == AXIS_NAMED)
            axes.symbol[axes.count++] = side->axis[i].symbol;
    return axes;
}

static int axes_find(const Axes *axes, int symbol)
{
    for (uint32_t i = 0; i < axes->count; i++)
        if (axes->symbol[i] == symbol)
            return (int)i;
    return -1;
}

// Reshapes x to these axes; a reshape to its own shape is left out.
static Val shape_as(Pattern *pattern, Val x, uint32_t rank, const Dim *dim)
{
    if (!x)
        return 0;
    if (rank > MAX_RANK)
        return fail(pattern, 0, (uint32_t)strlen(pattern->text), NULL,
                    "the pattern needs %u axes at once; %d is the most", rank, MAX_RANK);
    const Type *type = val_type(pattern->graph, x);
    bool same = type->rank == rank;
    for (uint32_t i = 0; same && i < rank; i++)
        same = dim_equal(type->dim[i], dim[i]);
    return same ? x : g_reshape(pattern->graph, x, rank, dim);
}

static Val split_axes(Pattern *pattern, Val x, const Axes *axes)
{
    Dim dim[MAX_AXES];
    for (uint32_t i = 0; i < axes->count; i++)
        dim[i] = pattern->symbol[axes->symbol[i]].size;
    return shape_as(pattern, x, axes->count, dim);
}

static Val permute(Graph *graph, Val x, const Axes *from, const Axes *to)
{
    uint32_t perm[MAX_RANK];
    bool identity = true;
    for (uint32_t i = 0; i < to->count; i++) {
        perm[i] = (uint32_t)axes_find(from, to->symbol[i]);
        identity &= perm[i] == i;
    }
    return identity || !x ? x : g_transpose(graph, x, perm);
}

// x has the elementary axes of the right side: joins them into its groups.
static Val join_groups(Pattern *pattern, Val x)
{
    const Side *side = &pattern->right;
    Dim dim[MAX_AXES];
    for (uint32_t g = 0; g < side->group_count; g++) {
        const Group *group = &side->group[g];
        dim[g] = dim_fixed(1);
        for (uint32_t i = group->first; i < group->first + group->count; i++)
            if (side->axis[i].kind == AXIS_NAMED
                && !dim_multiply(dim[g], pattern->symbol[side->axis[i].symbol].size, &dim[g]))
                return fail(pattern, group->begin, group->end, NULL,
                            "'%.*s' has the batch twice", (int)(group->end - group->begin),
                            pattern->text + group->begin);
    }
    if (side->group_count > MAX_RANK)
        return fail(pattern, side->begin, side->end, NULL, "more than %d axes", MAX_RANK);
    return shape_as(pattern, x, side->group_count, dim);
}

// The last step of every function: reports what the tensors told.
static Val finish(Pattern *pattern, Val result)
{
    const char *whole = pattern->text;
    if (!result)
        return fail(pattern, 0, (uint32_t)strlen(whole), NULL, "%s", graph_error(pattern->graph));
    const PatternScope *scope = pattern->scope;
    for (uint32_t i = 0; i < pattern->symbol_count && scope->bind; i++)
        if (pattern->symbol[i].source == SIZE_TENSOR && pattern->symbol[i].name[0] != '.')
            scope->bind(scope->context, pattern->symbol[i].name, pattern->symbol[i].size);
    return result;
}

// Every axis of the right side stands on a left one.
static bool check_right(Pattern *pattern, const char *help)
{
    for (uint32_t i = 0; i < pattern->right.axis_count; i++) {
        const Axis *axis = &pattern->right.axis[i];
        bool found = axis->kind != AXIS_NAMED;
        for (uint32_t s = 0; s < pattern->left_count; s++) {
            Axes left = side_axes(&pattern->left[s]);
            found |= axes_find(&left, axis->symbol) >= 0;
        }
        if (!found)
            return fail(pattern, axis->begin, axis->end, NULL,
                        "axis '%.*s' stands only on the right%s", (int)(axis->end - axis->begin),
                        pattern->text + axis->begin, help);
    }
    return true;
}

// Every axis of the left side stands on the right one.
static bool check_left(Pattern *pattern)
{
    Axes right = side_axes(&pattern->right);
    const Side *side = &pattern->left[0];
    for (uint32_t i = 0; i < side->axis_count; i++) {
        const Axis *axis = &side->axis[i];
        if (axis->kind == AXIS_NAMED && axes_find(&right, axis->symbol) < 0)
            return fail(pattern, axis->begin, axis->end, NULL,
                        "axis '%.*s' stands only on the left; sum, mean and max remove axes",
                        (int)(axis->end - axis->begin), pattern->text + axis->begin);
    }
    return true;
}

static bool expect_one_operand(Pattern *pattern)
{
    if (pattern->left_count == 1)
        return true;
    uint32_t comma = (uint32_t)strcspn(pattern->text, ",");
    return fail(pattern, comma, comma + 1, NULL, "',' stands only in patterns of einsum");
}

Val pattern_rearrange(Graph *graph, const PatternScope *scope, Val x, const char *text,
                      PatternError *error)
{
    Pattern pattern;
    if (!x || !parse_pattern(&pattern, graph, scope, text, error) || !expect_one_operand(&pattern)
        || !match_operands(&pattern, &x) || !check_right(&pattern, "; repeat makes new axes")
        || !check_left(&pattern))
        return 0;
    Axes left = side_axes(&pattern.left[0]), right = side_axes(&pattern.right);
    Val split = split_axes(&pattern, x, &left);
    return finish(&pattern, join_groups(&pattern, permute(graph, split, &left, &right)));
}

Val pattern_repeat(Graph *graph, const PatternScope *scope, Val x, const char *text,
                   PatternError *error)
{
    Pattern pattern;
    if (!x || !parse_pattern(&pattern, graph, scope, text, error) || !expect_one_operand(&pattern)
        || !match_operands(&pattern, &x) || !check_left(&pattern))
        return 0;
    Axes left = side_axes(&pattern.left[0]), right = side_axes(&pattern.right);
    Axes kept = {.count = 0};
    Dim narrow[MAX_AXES], wide[MAX_AXES];
    bool grows = false;
    for (uint32_t i = 0; i < right.count; i++) {
        const Symbol *symbol = &pattern.symbol[right.symbol[i]];
        if (symbol->source == SIZE_UNKNOWN)
            for (uint32_t k = 0; k < pattern.right.axis_count; k++)
                if (pattern.right.axis[k].symbol == right.symbol[i])
                    return fail(&pattern, pattern.right.axis[k].begin, pattern.right.axis[k].end,
                                symbol->name,
                                "the size of the new axis '%s' is not known; give it, for "
                                "example '%s: 4'", symbol->name, symbol->name);
        wide[i] = narrow[i] = symbol->size;
        if (axes_find(&left, right.symbol[i]) >= 0) {
            kept.symbol[kept.count++] = right.symbol[i];
        } else {
            narrow[i] = dim_fixed(1);
            grows |= !dim_is_one(wide[i]);
        }
    }
    Val y = permute(graph, split_axes(&pattern, x, &left), &left, &kept);
    y = shape_as(&pattern, y, right.count, narrow);
    if (grows && y)
        y = g_expand(graph, y, wide);
    return finish(&pattern, join_groups(&pattern, y));
}

static Val reduce_axes(Graph *graph, PatternReduce op, Val x, uint32_t mask, DType real)
{
    switch (op) {
    case PATTERN_SUM:
        return mask ? g_reduce(graph, OP_REDUCE_SUM, x, mask) : x;
    case PATTERN_MAX:
        return mask ? g_reduce(graph, OP_REDUCE_MAX, x, mask) : x;
    case PATTERN_MIN:
        return mask ? g_reduce(graph, OP_REDUCE_MIN, x, mask) : x;
    case PATTERN_MEAN:
        return compose_mean_axes(graph, x, mask);
    case PATTERN_VAR:
        return compose_var_axes(graph, x, mask);
    case PATTERN_ANY:
        return compose_any_axes(graph, x, mask, false, real);
    case PATTERN_ALL:
        return compose_any_axes(graph, x, mask, true, real);
    }
    bug("reduction %d", (int)op);
}

Val pattern_reduce(Graph *graph, const PatternScope *scope, PatternReduce op, Val x,
                   const char *text, PatternError *error)
{
    Pattern pattern;
    if (!x || !parse_pattern(&pattern, graph, scope, text, error) || !expect_one_operand(&pattern)
        || !match_operands(&pattern, &x) || !check_right(&pattern, ""))
        return 0;
    Axes left = side_axes(&pattern.left[0]), right = side_axes(&pattern.right);
    Axes kept = {.count = 0};
    uint32_t mask = 0;
    for (uint32_t i = 0; i < left.count; i++) {
        if (axes_find(&right, left.symbol[i]) >= 0)
            kept.symbol[kept.count++] = left.symbol[i];
        else
            mask |= UINT32_C(1) << i;
    }
    Val y = split_axes(&pattern, x, &left);
    y = y ? reduce_axes(graph, op, y, mask, scope->real) : 0;
    y = permute(graph, split_axes(&pattern, y, &kept), &kept, &right);
    return finish(&pattern, join_groups(&pattern, y));
}

// ---- einsum ----

// Sums the axes of x that stand nowhere else: not in `wanted`. Takes them out of `axes`.
static Val sum_unwanted(Pattern *pattern, Val x, Axes *axes, const Axes *wanted)
{
    uint32_t mask = 0;
    Axes kept = {.count = 0};
    for (uint32_t i = 0; i < axes->count; i++) {
        if (axes_find(wanted, axes->symbol[i]) < 0)
            mask |= UINT32_C(1) << i;
        else
            kept.symbol[kept.count++] = axes->symbol[i];
    }
    if (!mask || !x)
        return x;
    *axes = kept;
    return split_axes(pattern, g_reduce(pattern->graph, OP_REDUCE_SUM, x, mask), axes);
}

// x with axes `to`, those that it lacks of size 1, for elementwise operations.
static Val align(Pattern *pattern, Val x, const Axes *axes, const Axes *to)
{
    Axes common = {.count = 0};
    Dim dim[MAX_AXES];
    for (uint32_t i = 0; i < to->count; i++) {
        bool has = axes_find(axes, to->symbol[i]) >= 0;
        dim[i] = has ? pattern->symbol[to->symbol[i]].size : dim_fixed(1);
        if (has)
            common.symbol[common.count++] = to->symbol[i];
    }
    return shape_as(pattern, permute(pattern->graph, x, axes, &common), to->count, dim);
}

static void axes_labels(const Axes *axes, char *labels)
{
    for (uint32_t i = 0; i < axes->count; i++)
        labels[i] = (char)('0' + axes->symbol[i]);
    labels[axes->count] = '\0';
}

// Product of x and y with axes `out`, summed over all others. Without a sum it is elementwise.
static Val multiply(Pattern *pattern, Val x, const Axes *axes_x, Val y, const Axes *axes_y,
                    const Axes *out)
{
    bool sums = false;
    for (uint32_t i = 0; i < axes_x->count; i++)
        sums |= axes_find(out, axes_x->symbol[i]) < 0;
    if (!x || !y)
        return 0;
    if (out->count > MAX_RANK)
        return fail(pattern, 0, (uint32_t)strlen(pattern->text), NULL,
                    "the pattern needs %u axes at once; %d is the most", out->count, MAX_RANK);
    if (!sums)
        return g_binary(pattern->graph, OP_MUL, align(pattern, x, axes_x, out),
                        align(pattern, y, axes_y, out));
    char labels_x[MAX_AXES + 1], labels_y[MAX_AXES + 1], labels_out[MAX_AXES + 1];
    axes_labels(axes_x, labels_x);
    axes_labels(axes_y, labels_y);
    axes_labels(out, labels_out);
    return g_contract(pattern->graph, x, y, labels_x, labels_y, labels_out);
}

static void axes_add(Axes *axes, const Axes *more)
{
    for (uint32_t i = 0; i < more->count && axes->count < MAX_AXES; i++)
        if (axes_find(axes, more->symbol[i]) < 0)
            axes->symbol[axes->count++] = more->symbol[i];
}

// The axes of x and y that the right side or an operand after `last` needs.
static Axes needed_axes(const Pattern *pattern, const Axes *x, const Axes *y, uint32_t last)
{
    Axes right = side_axes(&pattern->right), both = *x, out = {.count = 0};
    axes_add(&both, y);
    if (last + 1 == pattern->left_count)
        return right;
    for (uint32_t s = last + 1; s < pattern->left_count; s++) {
        Axes later = side_axes(&pattern->left[s]);
        axes_add(&right, &later);
    }
    for (uint32_t i = 0; i < both.count; i++)
        if (axes_find(&right, both.symbol[i]) >= 0)
            out.symbol[out.count++] = both.symbol[i];
    return out;
}

Val pattern_einsum(Graph *graph, const PatternScope *scope, const Val *xs, uint32_t count,
                   const char *text, PatternError *error)
{
    Pattern pattern;
    for (uint32_t i = 0; i < count; i++)
        if (!xs[i])
            return 0;
    if (!parse_pattern(&pattern, graph, scope, text, error))
        return 0;
    if (pattern.left_count != count)
        return fail(&pattern, 0, (uint32_t)strlen(text), NULL,
                    "the pattern has %u operands, and the call %u", pattern.left_count, count);
    if (!match_operands(&pattern, xs) || !check_right(&pattern, ""))
        return 0;
    Val product = 0;
    Axes axes = {.count = 0}, right = side_axes(&pattern.right);
    for (uint32_t s = 0; s < count; s++) {
        Axes own = side_axes(&pattern.left[s]), wanted = right;
        for (uint32_t k = 0; k < count; k++) {
            Axes other = side_axes(&pattern.left[k]);
            if (k != s)
                axes_add(&wanted, &other);
        }
        Val x = sum_unwanted(&pattern, split_axes(&pattern, xs[s], &own), &own, &wanted);
        if (s == 0) {
            product = x;
            axes = own;
            continue;
        }
        if (!x || !product || !compose_mix(graph, &product, &x))
            return finish(&pattern, 0);
        Axes out = needed_axes(&pattern, &axes, &own, s);
        product = multiply(&pattern, product, &axes, x, &own, &out);
        axes = out;
    }
    product = permute(graph, product, &axes, &right);
    return finish(&pattern, join_groups(&pattern, product));
}

// ---- pack and unpack ----

// One side with one `*` alone and no group; *star is its place among the groups.
static bool parse_star(Pattern *pattern, Graph *graph, const PatternScope *scope,
                       const char *text, PatternError *error, uint32_t *star)
{
    if (!parse_pattern(pattern, graph, scope, text, error))
        return false;
    uint32_t end = (uint32_t)strlen(text);
    if (pattern->has_right || pattern->left_count != 1)
        return fail(pattern, 0, end, NULL, "pack and unpack take one side: \"b c *\"");
    if (!expand_rest(pattern, &pattern->left[0]))
        return false;
    const Side *side = &pattern->left[0];
    *star = UINT32_MAX;
    for (uint32_t g = 0; g < side->group_count; g++) {
        const Group *group = &side->group[g];
        if (text[group->begin] == '(')
            return fail(pattern, group->begin, group->end, NULL,
                        "parentheses in a pattern of pack or unpack");
        if (side->axis[group->first].kind == AXIS_STAR)
            *star = g;
    }
    if (*star == UINT32_MAX)
        return fail(pattern, 0, end, NULL, "the pattern has no '*'");
    return true;
}

// Splits a type at the `*`: sizes of the other axes go to dims (one a group), the run to *run.
static bool match_star(Pattern *pattern, const Type *type, uint32_t star, Dim *dims,
                       PatternShape *run)
{
    const Side *side = &pattern->left[0];
    if (type->rank + 1 < side->group_count)
        return fail(pattern, side->begin, side->end, NULL,
                    "the pattern has %u axes beside '*', and the tensor %u: %s",
                    side->group_count - 1, type->rank, type_text(type));
    run->rank = type->rank + 1 - side->group_count;
    memcpy(run->dim, type->dim + star, run->rank * sizeof *run->dim);
    for (uint32_t g = 0; g < side->group_count; g++)
        if (g != star)
            dims[g] = type->dim[g < star ? g : g + run->rank - 1];
    return true;
}

static bool shape_count(const PatternShape *shape, Dim *count)
{
    *count = dim_fixed(1);
    for (uint32_t i = 0; i < shape->rank; i++)
        if (!dim_multiply(*count, shape->dim[i], count))
            return false;
    return true;
}

// Describes a run as a segment; false if it cannot be one.
static bool add_segment(Segments *segments, const PatternShape *run)
{
    uint32_t i = segments->count;
    if (i == 16 || run->rank > 4)
        return false;
    segments->rank[i] = run->rank ? run->rank : 1;
    segments->extent[i][0] = 1;
    for (uint32_t k = 0; k < run->rank; k++) {
        if (run->dim[k].batch)
            return false;
        segments->extent[i][k] = run->dim[k].n;
    }
    segments->count++;
    return true;
}

Val pattern_pack(Graph *graph, const PatternScope *scope, const Val *xs, uint32_t count,
                 const char *text, PatternError *error)
{
    enum { MAX_PACK = 64 };
    Pattern pattern;
    uint32_t star;
    if (!parse_star(&pattern, graph, scope, text, error, &star))
        return 0;
    if (count == 0 || count > MAX_PACK)
        return fail(&pattern, 0, (uint32_t)strlen(text), NULL, "pack takes 1 to %d tensors",
                    MAX_PACK);
    Val flat[MAX_PACK];
    Segments segments = {.count = 0};
    bool segmented = true;
    for (uint32_t i = 0; i < count; i++) {
        Dim dims[1][MAX_AXES];
        PatternShape run;
        if (!xs[i] || !match_star(&pattern, val_type(graph, xs[i]), star, dims[0], &run)
            || !solve(&pattern, dims))
            return 0;
        if (!shape_count(&run, &dims[0][star]))
            return fail(&pattern, 0, (uint32_t)strlen(text), NULL, "'*' has the batch twice");
        segmented &= add_segment(&segments, &run);
        flat[i] = shape_as(&pattern, xs[i], pattern.left[0].group_count, dims[0]);
        if (!flat[i])
            return finish(&pattern, 0);
    }
    if (count == 1)
        return finish(&pattern, flat[0]);
    Attr attr = {.n = {star, segmented ? graph_add_segments(graph, &segments) : 0}, .count = 2};
    return finish(&pattern, graph_make(graph, OP_CONCAT, flat, count, &attr, NULL));
}

bool pattern_unpack(Graph *graph, const PatternScope *scope, Val x, const char *text,
                    const PatternShape *like, uint32_t count, Val *out, PatternError *error)
{
    Pattern pattern;
    Dim dims[1][MAX_AXES];
    uint32_t star;
    if (!x || !parse_star(&pattern, graph, scope, text, error, &star))
        return false;
    const Type *type = val_type(graph, x);
    if (!match_type(&pattern, &pattern.left[0], type, dims[0]) || !solve(&pattern, dims))
        return false;
    const Axis *axis = &pattern.left[0].axis[pattern.left[0].group[star].first];
    Dim whole = type->dim[star], sum = {0, whole.batch};
    for (uint32_t i = 0; i < count; i++) {
        Dim part;
        if (!shape_count(&like[i], &part) || part.batch != whole.batch
            || type->rank - 1 + like[i].rank > MAX_RANK)
            return fail(&pattern, axis->begin, axis->end, NULL,
                        "shape %u of 'like' does not fit the axis of '*'", i);
        Val piece = dim_equal(part, whole) ? x : g_slice(graph, x, star, sum.n, part.n);
        sum.n += part.n;
        if (sum.n > whole.n)
            break;
        Dim shape[MAX_RANK];
        uint32_t rank = 0;
        for (uint32_t k = 0; k < type->rank; k++) {
            if (k != star)
                shape[rank++] = type->dim[k];
            for (uint32_t j = 0; k == star && j < like[i].rank; j++)
                shape[rank++] = like[i].dim[j];
        }
        out[i] = shape_as(&pattern, piece, rank, shape);
        if (!out[i])
            return finish(&pattern, 0);
    }
    if (!dim_equal(sum, whole))
        return fail(&pattern, axis->begin, axis->end, NULL,
                    "'*' is %s in the tensor, and the shapes of 'like' add up to %s%s",
                    dim_text(whole), dim_text(sum), sum.n > whole.n ? " or more" : "");
    return finish(&pattern, x) != 0;
}

bool pattern_star(Graph *graph, const char *text, const Type *type, PatternShape *star,
                  PatternError *error)
{
    static const PatternScope empty;
    Pattern pattern;
    Dim dims[MAX_AXES];
    uint32_t place;
    return parse_star(&pattern, graph, &empty, text, error, &place)
           && match_star(&pattern, type, place, dims, star);
}
