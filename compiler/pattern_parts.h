// What the two parts of patterns share: pattern_parse.c reads a pattern and gives every axis its
// size, pattern.c builds the graph.
#ifndef PVDMC_PATTERN_PARTS_H
#define PVDMC_PATTERN_PARTS_H

#include "compiler/pattern.h"

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

// Keeps the first error; returns 0, so that `return pattern_fail(...)` serves Val and bool.
// begin, end: bytes of the text; axis: the name it is about, or NULL.
Val pattern_fail(Pattern *pattern, uint32_t begin, uint32_t end, const char *axis,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));
// The whole text: operands separated by ",", and the right side after "->" if there is one.
bool pattern_parse(Pattern *pattern, Graph *graph, const PatternScope *scope, const char *text,
                   PatternError *error);
// Replaces `...` by as many named axes as it stands for.
bool pattern_expand_rest(Pattern *pattern, Side *side);
// The sizes of an operand's axes (one a group), once its rank is right.
bool pattern_match_type(Pattern *pattern, const Side *side, const Type *type, Dim *dims);
// Gives every symbol of the left sides a size. dims[s][g]: size of group g of operand s; groups
// of `*` are left out.
bool pattern_solve(Pattern *pattern, Dim (*dims)[MAX_AXES]);
// All of this for patterns with "->" and operands xs.
bool pattern_match(Pattern *pattern, const Val *xs);
// false: the batch twice, or too large.
bool pattern_product(Dim x, Dim y, Dim *product);

#endif
