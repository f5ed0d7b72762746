// Patterns, first part: parsing, and solving for sizes.
//
// A side of a pattern ("b (h w) c") is a list of groups, one for each axis of the tensor, and each
// group a list of elementary axes. Elementary axes with the same name are one Symbol with one
// size. Solving goes over the groups until nothing is new: a group whose symbols are all known is
// checked, one with a single unknown gives it.
//
// `1` has no symbol: splitting drops it and joining makes it. A number n is a symbol "n#k", the
// k-th n of its side; a run of axes `...` is expanded to symbols "...0", "...1" before solving.
#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/pattern_parts.h"
#include "compiler/rules.h"

// ---- errors and sizes ----

// Keeps the first error; returns 0, so that `return pattern_fail(...)` serves Val and bool.
__attribute__((format(printf, 5, 6))) Val pattern_fail(Pattern *pattern, uint32_t begin,
                                                       uint32_t end, const char *axis,
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

bool pattern_product(Dim x, Dim y, Dim *product)
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
        pattern_fail(pattern, 0, (uint32_t)strlen(pattern->text), NULL,
                     "too many axes in the pattern");
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
    if (symbol->source == SIZE_UNKNOWN && scope->lookup &&
        scope->lookup(scope->context, name, &symbol->size))
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
            used |= side->axis[i].kind == AXIS_NAMED &&
                    pattern->symbol[side->axis[i].symbol].name == interned;
        if (used)
            continue;
        for (uint32_t i = 0; i < pattern->symbol_count; i++)
            if (pattern->symbol[i].name == interned)
                return (int)i;
        if (pattern->symbol_count == MAX_SYMBOLS)
            return NO_SYMBOL;
        pattern->symbol[pattern->symbol_count] = (Symbol){interned, SIZE_NUMBER, dim_fixed(number)};
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
            return pattern_fail(pattern, at, end, NULL, "'%.*s' is not an axis", (int)(end - at),
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
        return pattern_fail(pattern, at, at + 1, NULL, "'%c' means nothing in a pattern", text[at]);
    }
    axis.end = end;
    if (axis.kind == AXIS_NAMED && axis.symbol == NO_SYMBOL)
        return 0;
    for (uint32_t i = 0; i < side->axis_count; i++) {
        const Axis *other = &side->axis[i];
        if (other->kind == axis.kind && axis.kind != AXIS_ONE && other->symbol == axis.symbol)
            return pattern_fail(pattern, at, end, NULL, "'%.*s' stands twice on one side",
                                (int)(end - at), text + at);
    }
    if (side->axis_count == MAX_AXES)
        return pattern_fail(pattern, at, end, NULL, "too many axes in the pattern");
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
    side->axis_count = side->group_count = 0;
    side->begin = side->end = at;
    while (text[at] && text[at] != ',' && text[at] != '-' && !pattern->failed) {
        if (side->group_count == MAX_AXES) {
            pattern_fail(pattern, at, at + 1, NULL, "too many axes in the pattern");
            break;
        }
        Group *group = &side->group[side->group_count++];
        *group = (Group){.first = side->axis_count, .begin = at};
        if (text[at] == '(') {
            uint32_t next = skip_spaces(text, at + 1);
            while (next && text[next] != ')') {
                if (!text[next])
                    pattern_fail(pattern, group->begin, group->begin + 1, NULL,
                                 "'(' is not closed");
                else if (text[next] == '(')
                    pattern_fail(pattern, next, next + 1, NULL, "parentheses in parentheses");
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
bool pattern_parse(Pattern *pattern, Graph *graph, const PatternScope *scope, const char *text,
                   PatternError *error)
{
    pattern->graph = graph; // field by field: the arrays are 9 KB, and need no zeros
    pattern->scope = scope;
    pattern->text = text;
    pattern->error = error;
    pattern->failed = pattern->has_right = false;
    pattern->symbol_count = pattern->left_count = 0;
    pattern->right.axis_count = pattern->right.group_count = 0;
    pattern->right.begin = pattern->right.end = 0;
    pattern->rest_known = scope->has_rest;
    pattern->rest_rank = scope->has_rest ? scope->rest_rank : 0;
    uint32_t at = 0;
    do {
        at += pattern->left_count > 0; // the comma
        if (pattern->left_count == MAX_OPERANDS)
            return pattern_fail(pattern, at, at + 1, NULL, "more than %d operands", MAX_OPERANDS);
        at = parse_side(pattern, &pattern->left[pattern->left_count++], at);
    } while (!pattern->failed && text[at] == ',');
    if (!pattern->failed && text[at] == '-') {
        if (text[at + 1] != '>')
            return pattern_fail(pattern, at, at + 1, NULL, "'-' means nothing in a pattern");
        pattern->has_right = true;
        at = parse_side(pattern, &pattern->right, at + 2);
        if (!pattern->failed && text[at])
            pattern_fail(pattern, at, at + 1, NULL, "'%c' on the right side of the pattern",
                         text[at]);
    }
    for (uint32_t i = 0; i < scope->given_count && !pattern->failed; i++) {
        bool used = false;
        for (uint32_t j = 0; j < pattern->symbol_count; j++)
            used |= strcmp(pattern->symbol[j].name, scope->given[i].name) == 0;
        if (!used)
            pattern_fail(pattern, 0, (uint32_t)strlen(text), scope->given[i].name,
                         "the pattern has no axis '%s'", scope->given[i].name);
    }
    return !pattern->failed;
}

// rearrange, repeat, reduce: one operand and a right side, no `*`.
static bool expect_arrow(Pattern *pattern)
{
    uint32_t end = (uint32_t)strlen(pattern->text);
    if (!pattern->has_right)
        return pattern_fail(pattern, 0, end, NULL, "the pattern has no '->'");
    for (uint32_t s = 0; s <= pattern->left_count; s++) {
        const Side *side = s < pattern->left_count ? &pattern->left[s] : &pattern->right;
        for (uint32_t i = 0; i < side->axis_count; i++)
            if (side->axis[i].kind == AXIS_STAR)
                return pattern_fail(pattern, side->axis[i].begin, side->axis[i].end, NULL,
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
        if (group->count != 1 || side->axis[group->first].kind != AXIS_REST ||
            pattern->text[group->begin] == '(')
            continue;
        if (rank + 1 < side->group_count)
            return pattern_fail(pattern, side->begin, side->end, NULL,
                                "the pattern has %u axes, and the tensor %u", side->group_count - 1,
                                rank);
        uint32_t run = rank + 1 - side->group_count;
        if (pattern->rest_known && pattern->rest_rank != run)
            return pattern_fail(pattern, group->begin, group->end, NULL,
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
    if (symbol != NO_SYMBOL && pattern->scope->has_rest &&
        pattern->symbol[symbol].source == SIZE_UNKNOWN) {
        pattern->symbol[symbol].source = SIZE_SCOPE;
        pattern->symbol[symbol].size = pattern->scope->rest[i];
    }
    return symbol;
}

// Replaces `...` by as many named axes as it stands for.
bool pattern_expand_rest(Pattern *pattern, Side *side)
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
                return pattern_fail(pattern, axis.begin, axis.end, NULL,
                                    "'...' is not known here: the function does not declare it");
            if (side->axis_count + pattern->rest_rank > MAX_AXES ||
                side->group_count + pattern->rest_rank > MAX_AXES)
                return pattern_fail(pattern, axis.begin, axis.end, NULL,
                                    "too many axes in the pattern");
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
                first = UINT32_MAX; // its groups are made
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
        return pattern_fail(pattern, axis->begin, axis->end, NULL,
                            "the axis is %s in the tensor, and %s in the pattern", in_tensor,
                            expected);
    const char *where = symbol->source == SIZE_SCOPE   ? "in this scope"
                        : symbol->source == SIZE_GIVEN ? "in the call"
                                                       : "before";
    pattern_fail(pattern, axis->begin, axis->end, symbol->name,
                 "axis %s is %s in the tensor, and %s %s", name, in_tensor, expected, where);
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
    return pattern_fail(pattern, group->begin, group->end, NULL,
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
        } else if (!pattern_product(known, symbol->size, &known)) {
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
bool pattern_solve(Pattern *pattern, Dim (*dims)[MAX_AXES])
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
            if (axis->kind != AXIS_NAMED || pattern->symbol[axis->symbol].source != SIZE_UNKNOWN)
                continue;
            const char *name = pattern->symbol[axis->symbol].name;
            return pattern_fail(
                pattern, axis->begin, axis->end, name,
                "the size of axis '%s' does not follow; give it, for example '%s: 4'", name, name);
        }
    }
    return true;
}

// The sizes of an operand's axes, once its rank is right.
bool pattern_match_type(Pattern *pattern, const Side *side, const Type *type, Dim *dims)
{
    if (type->rank != side->group_count)
        return pattern_fail(pattern, side->begin, side->end, NULL,
                            "the pattern has %u axes, and the tensor %u: %s", side->group_count,
                            type->rank, type_text(type));
    memcpy(dims, type->dim, type->rank * sizeof *dims);
    return true;
}

// All of the above for operands xs and the right side.
bool pattern_match(Pattern *pattern, const Val *xs)
{
    Dim dims[MAX_OPERANDS][MAX_AXES];
    if (!expect_arrow(pattern))
        return false;
    for (uint32_t s = 0; s < pattern->left_count; s++)
        if (!find_rest_rank(pattern, &pattern->left[s], val_type(pattern->graph, xs[s])->rank))
            return false;
    for (uint32_t s = 0; s < pattern->left_count; s++)
        if (!pattern_expand_rest(pattern, &pattern->left[s]) ||
            !pattern_match_type(pattern, &pattern->left[s], val_type(pattern->graph, xs[s]),
                                dims[s]))
            return false;
    return pattern_expand_rest(pattern, &pattern->right) && pattern_solve(pattern, dims);
}
