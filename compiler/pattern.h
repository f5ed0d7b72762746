// einops patterns over graph values: rearrange, repeat, reductions, einsum, pack, unpack.
//
// A pattern is parsed into axes (names, numbers, `1`, `(...)` groups, `...`, `*`), every name is
// given a size, and the whole becomes reshape, transpose, reduce, expand, contract and concat,
// steps that change nothing left out.
//
// Where the size of a name comes from, first that knows: PatternScope.given; the scope (`lookup`);
// the tensor, where it is the only unknown of its group. What the tensor told is reported by
// `bind`. A number n > 1 is an axis of that size; the k-th `3` on one side is the k-th `3` on the
// other. `1` is an axis that is dropped on the left and made on the right. `...` is a run of axes:
// the function's own (PatternScope.rest), or else what the tensor leaves.
//
// Errors: 0 or false is returned, graph_error holds one line in the terms of the language, and
// PatternError the bytes of the pattern that it is about.
#ifndef PVDMC_PATTERN_H
#define PVDMC_PATTERN_H

#include "compiler/graph.h"

typedef struct {
    const char *name;
    Dim size;
} PatternAxis;

typedef struct {
    void *context;
    // The scope's size of a name (interned); false: it is not an integer there. May be NULL.
    bool (*lookup)(void *context, const char *name, Dim *size);
    // A size that the tensor told of a name that neither the scope nor `given` knew. May be NULL.
    // Called in the order of the pattern, once a name, only when the whole pattern fits.
    void (*bind)(void *context, const char *name, Dim size);
    const PatternAxis *given;      // overrides: rearrange(x, "...", t: 4)
    uint32_t given_count;
    bool has_rest;                 // the function declares `...`
    uint32_t rest_rank;
    const Dim *rest;               // [rest_rank]
    DType real;                    // working precision
} PatternScope;

typedef struct {
    uint32_t begin, end;           // bytes of the pattern text
    const char *axis;              // the name it is about, or NULL
    bool in_scope;                 // it disagrees with the scope's value of `axis`
} PatternError;

typedef enum {
    PATTERN_SUM,
    PATTERN_MEAN,                  // real
    PATTERN_MAX,
    PATTERN_MIN,
    PATTERN_VAR,                   // real; mean of squared deviations (divides by the count)
    PATTERN_ANY,                   // bool
    PATTERN_ALL,                   // bool
} PatternReduce;

// The axes that `*` stands for.
typedef struct {
    uint32_t rank;
    Dim dim[MAX_RANK];
} PatternShape;

// "b (f n) d -> (b n) f d": the same axes on both sides.
Val pattern_rearrange(Graph *graph, const PatternScope *scope, Val x, const char *pattern,
                      PatternError *error);
// "b c h w -> b c t h w": axes that are new on the right repeat x; their sizes must be known.
Val pattern_repeat(Graph *graph, const PatternScope *scope, Val x, const char *pattern,
                   PatternError *error);
// "b c n -> b 1 n": axes that are missing on the right are reduced.
Val pattern_reduce(Graph *graph, const PatternScope *scope, PatternReduce op, Val x,
                   const char *pattern, PatternError *error);
// "b i d, b j d -> b i j": sums over the axes missing on the right; operands left to right.
Val pattern_einsum(Graph *graph, const PatternScope *scope, const Val *xs, uint32_t count,
                   const char *pattern, PatternError *error);
// "b c *": the axes under `*` become one, and the tensors one after the other along it. The axis
// is segmented (SegId) where sizes allow.
Val pattern_pack(Graph *graph, const PatternScope *scope, const Val *xs, uint32_t count,
                 const char *pattern, PatternError *error);
// The reverse: out[i] has like[i] in place of `*`; the products must add up to the axis.
bool pattern_unpack(Graph *graph, const PatternScope *scope, Val x, const char *pattern,
                    const PatternShape *like, uint32_t count, Val *out, PatternError *error);
// What `*` stands for in a tensor of that shape (`like: planes`, a list of tensors).
bool pattern_star(Graph *graph, const char *pattern, const Type *type, PatternShape *star,
                  PatternError *error);

#endif
