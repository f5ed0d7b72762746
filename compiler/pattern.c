// Patterns, second part: building the graph.
//
// Every function is the same three steps on elementary axes: split the tensor into them (reshape),
// bring them into the order of the right side (transpose, reduce, expand or contract in between),
// join them (reshape). Steps that change nothing are left out.
#include <string.h>

#include "compiler/compose.h"
#include "compiler/pattern_parts.h"
#include "compiler/rules.h"

// Elementary axes with a symbol, in order.
typedef struct {
    int symbol[MAX_AXES];
    uint32_t count;
} Axes;

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
        return pattern_fail(pattern, 0, (uint32_t)strlen(pattern->text), NULL,
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
            if (side->axis[i].kind == AXIS_NAMED &&
                !pattern_product(dim[g], pattern->symbol[side->axis[i].symbol].size, &dim[g]))
                return pattern_fail(pattern, group->begin, group->end, NULL,
                                    "'%.*s' has the batch twice", (int)(group->end - group->begin),
                                    pattern->text + group->begin);
    }
    if (side->group_count > MAX_RANK)
        return pattern_fail(pattern, side->begin, side->end, NULL, "more than %d axes", MAX_RANK);
    return shape_as(pattern, x, side->group_count, dim);
}

// The last step of every function: reports what the tensors told.
static Val finish(Pattern *pattern, Val result)
{
    const char *whole = pattern->text;
    if (!result)
        return pattern_fail(pattern, 0, (uint32_t)strlen(whole), NULL, "%s",
                            graph_error(pattern->graph));
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
            return pattern_fail(pattern, axis->begin, axis->end, NULL,
                                "axis '%.*s' stands only on the right%s",
                                (int)(axis->end - axis->begin), pattern->text + axis->begin, help);
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
            return pattern_fail(
                pattern, axis->begin, axis->end, NULL,
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
    return pattern_fail(pattern, comma, comma + 1, NULL, "',' stands only in patterns of einsum");
}

Val pattern_rearrange(Graph *graph, const PatternScope *scope, Val x, const char *text,
                      PatternError *error)
{
    Pattern pattern;
    if (!x || !pattern_parse(&pattern, graph, scope, text, error) ||
        !expect_one_operand(&pattern) || !pattern_match(&pattern, &x) ||
        !check_right(&pattern, "; repeat makes new axes") || !check_left(&pattern))
        return 0;
    Axes left = side_axes(&pattern.left[0]), right = side_axes(&pattern.right);
    Val split = split_axes(&pattern, x, &left);
    return finish(&pattern, join_groups(&pattern, permute(graph, split, &left, &right)));
}

Val pattern_repeat(Graph *graph, const PatternScope *scope, Val x, const char *text,
                   PatternError *error)
{
    Pattern pattern;
    if (!x || !pattern_parse(&pattern, graph, scope, text, error) ||
        !expect_one_operand(&pattern) || !pattern_match(&pattern, &x) || !check_left(&pattern))
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
                    return pattern_fail(&pattern, pattern.right.axis[k].begin,
                                        pattern.right.axis[k].end, symbol->name,
                                        "the size of the new axis '%s' is not known; give it, for "
                                        "example '%s: 4'",
                                        symbol->name, symbol->name);
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
        if (val_type(graph, x)->dtype == DT_BOOL) // a sum of truths counts
            x = g_cast(graph, x, DT_I64);
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
    if (!x || !pattern_parse(&pattern, graph, scope, text, error) ||
        !expect_one_operand(&pattern) || !pattern_match(&pattern, &x) || !check_right(&pattern, ""))
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
        return pattern_fail(pattern, 0, (uint32_t)strlen(pattern->text), NULL,
                            "the pattern needs %u axes at once; %d is the most", out->count,
                            MAX_RANK);
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
    if (!pattern_parse(&pattern, graph, scope, text, error))
        return 0;
    if (pattern.left_count != count)
        return pattern_fail(&pattern, 0, (uint32_t)strlen(text), NULL,
                            "the pattern has %u operands, and the call %u", pattern.left_count,
                            count);
    if (!pattern_match(&pattern, xs) || !check_right(&pattern, ""))
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
static bool parse_star(Pattern *pattern, Graph *graph, const PatternScope *scope, const char *text,
                       PatternError *error, uint32_t *star)
{
    if (!pattern_parse(pattern, graph, scope, text, error))
        return false;
    uint32_t end = (uint32_t)strlen(text);
    if (pattern->has_right || pattern->left_count != 1)
        return pattern_fail(pattern, 0, end, NULL, "pack and unpack take one side: \"b c *\"");
    if (!pattern_expand_rest(pattern, &pattern->left[0]))
        return false;
    const Side *side = &pattern->left[0];
    *star = UINT32_MAX;
    for (uint32_t g = 0; g < side->group_count; g++) {
        const Group *group = &side->group[g];
        if (text[group->begin] == '(')
            return pattern_fail(pattern, group->begin, group->end, NULL,
                                "parentheses in a pattern of pack or unpack");
        if (side->axis[group->first].kind == AXIS_STAR)
            *star = g;
    }
    if (*star == UINT32_MAX)
        return pattern_fail(pattern, 0, end, NULL, "the pattern has no '*'");
    return true;
}

// Splits a type at the `*`: sizes of the other axes go to dims (one a group), the run to *run.
static bool match_star(Pattern *pattern, const Type *type, uint32_t star, Dim *dims,
                       PatternShape *run)
{
    const Side *side = &pattern->left[0];
    if (type->rank + 1 < side->group_count)
        return pattern_fail(pattern, side->begin, side->end, NULL,
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
        if (!pattern_product(*count, shape->dim[i], count))
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
        return pattern_fail(&pattern, 0, (uint32_t)strlen(text), NULL, "pack takes 1 to %d tensors",
                            MAX_PACK);
    Val flat[MAX_PACK];
    Segments segments = {.count = 0};
    bool segmented = true;
    for (uint32_t i = 0; i < count; i++) {
        Dim dims[1][MAX_AXES];
        PatternShape run;
        if (!xs[i] || !match_star(&pattern, val_type(graph, xs[i]), star, dims[0], &run) ||
            !pattern_solve(&pattern, dims))
            return 0;
        if (!shape_count(&run, &dims[0][star]))
            return pattern_fail(&pattern, 0, (uint32_t)strlen(text), NULL,
                                "'*' has the batch twice");
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
    if (!pattern_match_type(&pattern, &pattern.left[0], type, dims[0]) ||
        !pattern_solve(&pattern, dims))
        return false;
    const Axis *axis = &pattern.left[0].axis[pattern.left[0].group[star].first];
    Dim whole = type->dim[star], sum = {0, whole.batch};
    for (uint32_t i = 0; i < count; i++) {
        Dim part;
        if (!shape_count(&like[i], &part) || part.batch != whole.batch ||
            type->rank - 1 + like[i].rank > MAX_RANK)
            return pattern_fail(&pattern, axis->begin, axis->end, NULL,
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
        return pattern_fail(&pattern, axis->begin, axis->end, NULL,
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
    return parse_star(&pattern, graph, &empty, text, error, &place) &&
           match_star(&pattern, type, place, dims, star);
}
