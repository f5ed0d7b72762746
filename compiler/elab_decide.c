// Decisions: the outcome of a question about the step, in the variant that is being evaluated.
//
// A question is answered by the run's script, or, behind its end, by `true` (elab_entry.c comes
// back for the other outcome). It is not asked at all if it was asked before, or if its answer
// follows from earlier ones: after `mode == 1`, `mode == 2` is false, and `mode < 3` true. For that
// every earlier outcome that compares the same number with a constant narrows an interval; `not`,
// `and`, `or` are looked through. A real number may be no number at all (NaN), for which every
// comparison is false: from outcomes `false` nothing follows about reals.
#include <math.h>

#include "compiler/elab.h"

// What is known of a number: lo <= x <= hi, with < where an end is open.
typedef struct {
    Val x;
    double lo, hi;
    bool lo_open, hi_open;
} Known;

// x op c, with op one of EQ, LT, LE, and LT, LE the other way round if `mirrored`.
typedef struct {
    Op op;
    Val x;
    double c;
    bool mirrored;
} Comparison;

static bool read_comparison(const Graph *graph, const Node *node, Comparison *out)
{
    if (node->op != OP_EQ && node->op != OP_LT && node->op != OP_LE)
        return false;
    const Node *left = val_get(graph, node->in[0]), *right = val_get(graph, node->in[1]);
    if ((left->op == OP_CONST) == (right->op == OP_CONST))
        return false;
    bool mirrored = left->op == OP_CONST;
    *out = (Comparison){.op = node->op,
                        .x = node->in[mirrored ? 1 : 0],
                        .c = mirrored ? left->attr->real : right->attr->real,
                        .mirrored = mirrored};
    return true;
}

static void raise_lo(Known *known, double c, bool open)
{
    if (c > known->lo || (c == known->lo && open)) {
        known->lo = c;
        known->lo_open = open;
    }
}

static void lower_hi(Known *known, double c, bool open)
{
    if (c < known->hi || (c == known->hi && open)) {
        known->hi = c;
        known->hi_open = open;
    }
}

static void learn_comparison(const Graph *graph, Known *known, const Comparison *comparison,
                             bool outcome)
{
    if (comparison->x != known->x)
        return;
    if (!outcome && val_type(graph, known->x)->dtype != DT_I64)
        return;
    if (comparison->op == OP_EQ && outcome) {
        raise_lo(known, comparison->c, false);
        lower_hi(known, comparison->c, false);
    }
    if (comparison->op == OP_EQ)
        return;
    bool open = (comparison->op == OP_LT) == outcome, up = comparison->mirrored == outcome;
    double c = comparison->c;
    if (open && val_type(graph, known->x)->dtype == DT_I64) {
        c += up ? 1 : -1; // 3 < t is 4 <= t
        open = false;
    }
    if (up) // c < x, or not x < c
        raise_lo(known, c, open);
    else
        lower_hi(known, c, open);
}

// Narrows `known` by the outcome of a condition.
static void learn(const Graph *graph, Known *known, Val condition, bool outcome)
{
    const Node *node = val_get(graph, condition);
    Comparison comparison;
    if (node->op == OP_NOT) {
        learn(graph, known, node->in[0], !outcome);
    } else if ((node->op == OP_AND && outcome) || (node->op == OP_OR && !outcome)) {
        learn(graph, known, node->in[0], outcome);
        learn(graph, known, node->in[1], outcome);
    } else if (read_comparison(graph, node, &comparison)) {
        learn_comparison(graph, known, &comparison, outcome);
    }
}

typedef enum { ANSWER_NO, ANSWER_YES, ANSWER_OPEN } Answer;

static Answer opposite(Answer answer)
{
    return answer == ANSWER_OPEN ? answer : answer == ANSWER_YES ? ANSWER_NO : ANSWER_YES;
}

static Answer below(double hi, bool hi_open, double c, bool strict) // x <= hi: is x < c, x <= c?
{
    return hi < c || (hi == c && (hi_open || !strict)) ? ANSWER_YES : ANSWER_OPEN;
}

static Answer compare_known(const Known *known, const Comparison *comparison)
{
    double c = comparison->c;
    if (comparison->op == OP_EQ) {
        if (c < known->lo || c > known->hi || (c == known->lo && known->lo_open) ||
            (c == known->hi && known->hi_open))
            return ANSWER_NO;
        return known->lo == known->hi ? ANSWER_YES : ANSWER_OPEN;
    }
    bool strict = comparison->op == OP_LT;
    double lo = comparison->mirrored ? -known->hi : known->lo;
    double hi = comparison->mirrored ? -known->lo : known->hi;
    bool lo_open = comparison->mirrored ? known->hi_open : known->lo_open;
    bool hi_open = comparison->mirrored ? known->lo_open : known->hi_open;
    c = comparison->mirrored ? -c : c;
    if (below(hi, hi_open, c, strict) == ANSWER_YES)
        return ANSWER_YES;
    return below(-lo, lo_open, -c, !strict) == ANSWER_YES ? ANSWER_NO : ANSWER_OPEN;
}

// What earlier outcomes say about a condition.
static Answer follows(const Graph *graph, const Run *run, Val condition)
{
    for (uint32_t i = 0; i < run->path_count; i++)
        if (run->path[i].cond == condition)
            return run->path[i].outcome ? ANSWER_YES : ANSWER_NO;
    const Node *node = val_get(graph, condition);
    Comparison comparison;
    if (node->op == OP_CONST)
        return node->attr->real != 0 ? ANSWER_YES : ANSWER_NO;
    if (node->op == OP_NOT)
        return opposite(follows(graph, run, node->in[0]));
    if (node->op == OP_AND || node->op == OP_OR) {
        Answer settles = node->op == OP_OR ? ANSWER_YES : ANSWER_NO;
        Answer x = follows(graph, run, node->in[0]), y = follows(graph, run, node->in[1]);
        if (x == settles || y == settles)
            return settles;
        return x == y ? x : ANSWER_OPEN;
    }
    if (!read_comparison(graph, node, &comparison))
        return ANSWER_OPEN;
    Known known = {.x = comparison.x, .lo = -INFINITY, .hi = INFINITY};
    for (uint32_t i = 0; i < run->path_count; i++)
        learn(graph, &known, run->path[i].cond, run->path[i].outcome);
    return compare_known(&known, &comparison);
}

// Takes `not` and `!=` off a condition; whether the outcome is then the other one.
static bool strip_not(Elab *e, Val *condition)
{
    bool flip = false;
    for (;;) {
        const Node *node = val_get(e->graph, *condition);
        if (node->op == OP_NOT)
            *condition = node->in[0];
        else if (node->op == OP_NE)
            *condition = g_binary(e->graph, OP_EQ, node->in[0], node->in[1]);
        else
            return flip;
        flip = !flip;
    }
}

// The outcome of a rank-0 step condition in the variant at hand.
bool elab_decide(Elab *e, Val condition, Span span)
{
    Run *run = e->run;
    bool flip = strip_not(e, &condition);
    const Node *node = val_get(e->graph, condition);
    if (node->op == OP_CONST)
        return (node->attr->real != 0) != flip;
    if (!run) {
        elab_error(e, span, "this is known only when a step starts");
        elab_help(e, (Span){0},
                  e->host ? "in a sample block, choose by an 'if' statement, or by "
                            "if ... then ... else around a whole value"
                          : "declarations and modules are evaluated by the compiler");
        elab_stop(e);
    }
    Answer answer = follows(e->graph, run, condition);
    if (answer != ANSWER_OPEN)
        return (answer == ANSWER_YES) != flip;
    if (run->path_count == ELAB_MAX_VARIANTS)
        elab_fail(e, span, "more than %d questions in one step", ELAB_MAX_VARIANTS);
    bool outcome = run->path_count >= run->script_count || run->script[run->path_count].outcome;
    run->path[run->path_count++] = (Decision){condition, outcome};
    return outcome != flip;
}
