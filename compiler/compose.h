// The functions of the language that are more than one operation, as graphs of operations.
//
// All take and give Vals; 0 in, 0 out. Operands that do not fit give 0, and graph_error holds one
// line in the terms of the language. Optional operands are told apart in the comments ("0: none").
// `real` is the dtype of the operand it belongs to unless told otherwise.
#ifndef PVDMC_COMPOSE_H
#define PVDMC_COMPOSE_H

#include "compiler/graph.h"

// ---- numbers that meet tensors ----

// Brings two operands to one dtype: i64 becomes real beside a real; of two reals, the number
// (rank 0) takes the tensor's dtype, else the narrower becomes the wider. bool meets only bool.
bool compose_mix(Graph *graph, Val *x, Val *y);
// g_binary after compose_mix; DIV, POW of two integers are the integers' (see ops.def).
Val compose_binary(Graph *graph, Op op, Val x, Val y);
// where(cond, x, y) after compose_mix of x and y; the result has the full shape of all three.
Val compose_where(Graph *graph, Val cond, Val x, Val y);
// x ^ y; constant exponents -1, -0.5, 0, 0.5, 1, 2, 3 need no pow.
Val compose_pow(Graph *graph, Val x, Val y);
Val compose_log2(Graph *graph, Val x);
Val compose_round(Graph *graph, Val x); // to the nearest whole number, halves to the even one
Val compose_leaky_relu(Graph *graph, Val x, double slope);
// Gradient 1 for lo <= x <= hi. Bounds: rank 0 or x's rank.
Val compose_clamp(Graph *graph, Val x, Val lo, Val hi);
// x / (1 - p) where uniform(stream) >= p, else 0. p = 0 gives x.
Val compose_dropout(Graph *graph, Val x, double p, const char *stream);

// ---- layers; w, b, gamma, beta as in the language reference ----

Val compose_linear(Graph *graph, Val x, Val w, Val b);        // x [..., in], w [out, in]; b 0: none
// x [batch, c, s...], w [o, c / groups, k...] with 1-3 axes; stride, pad: one of each an axis
// (NULL: 1, 0); b 0: none. Kernel 1, stride 1, pad 0, groups 1 becomes a contraction.
Val compose_conv(Graph *graph, Val x, Val w, Val b, const int64_t *stride, const int64_t *pad,
                 int64_t groups);
// x [batch, c, s...], w [c, o, k...] -> [batch, o, (s - 1) stride - 2 pad + k ...]; b 0: none
Val compose_conv_transpose(Graph *graph, Val x, Val w, Val b, const int64_t *stride,
                           const int64_t *pad);
Val compose_layer_norm(Graph *graph, Val x, Val gamma, Val beta, double eps);  // 0, 0: not affine
Val compose_rms_norm(Graph *graph, Val x, Val gamma, double eps);    // last axis; gamma 0: none
Val compose_group_norm(Graph *graph, Val x, Val gamma, Val beta, int64_t groups, double eps);

typedef struct {
    Val y;                   // shape of x
    Val mean, var;           // new running statistics [c] (training), else 0
} BatchNorm;
// x [b, c, ...]; gamma, beta, mean, var [c]. Training: normalises by the batch's mean and biased
// variance; running = (1 - momentum) running + momentum batch, there with the unbiased variance.
BatchNorm compose_batch_norm(Graph *graph, Val x, Val gamma, Val beta, Val mean, Val var,
                             double eps, double momentum, bool training);

// q [..., n, d], k [..., m, d], v [..., m, e] -> [..., n, e]. mask 0: none; bool (true: attends)
// or real (added); its missing leading axes count as 1, axes of size 1 stretch.
Val compose_attention(Graph *graph, Val q, Val k, Val v, Val mask, double scale, bool causal);
Val compose_rotary(Graph *graph, Val x, Val angles);          // x [..., n, d], angles [n, d]
Val compose_embedding(Graph *graph, Val w, Val indices);      // w [count, c], i64 [...] -> [..., c]
Val compose_softmax(Graph *graph, Val x, int64_t axis);       // axis: negative from the end

// ---- to one number ----
Val compose_sum(Graph *graph, Val x);                         // rank 0; of bool: of i64
Val compose_mean(Graph *graph, Val x);
Val compose_var(Graph *graph, Val x);                         // mean of squared deviations
Val compose_max(Graph *graph, Val x);
Val compose_min(Graph *graph, Val x);
Val compose_any(Graph *graph, Val x, DType real);             // bool
Val compose_all(Graph *graph, Val x, DType real);
// Over the axes of the mask, which stay as size 1; the count may depend on the batch.
Val compose_mean_axes(Graph *graph, Val x, uint32_t mask);
Val compose_var_axes(Graph *graph, Val x, uint32_t mask);
Val compose_any_axes(Graph *graph, Val x, uint32_t mask, bool all, DType real);

// ---- movement ----
// Negative axes count from the end in all of these.
Val compose_concat(Graph *graph, const Val *xs, uint32_t count, int64_t axis);
// Equal parts (the size must divide), or parts of the sizes given, which must add up.
bool compose_split(Graph *graph, Val x, uint32_t parts, int64_t axis, Val *out);
bool compose_split_sizes(Graph *graph, Val x, const int64_t *sizes, uint32_t count, int64_t axis,
                         Val *out);
Val compose_flip(Graph *graph, Val x, int64_t axis);
// before, after: one of each an axis.
Val compose_pad(Graph *graph, Val x, const int64_t *before, const int64_t *after, uint32_t count,
                double value);
// x[.., index]: element `index` (negative from the end) of an axis, which goes.
Val compose_index(Graph *graph, Val x, int64_t axis, int64_t index);
// x[.., from..to]; negative ones count from the end, `to` past the end is an error.
Val compose_range(Graph *graph, Val x, int64_t axis, int64_t from, int64_t to);
// x real, k i64 [b]; axis >= 1 goes
Val compose_pick(Graph *graph, Val x, Val k, int64_t axis);
Val compose_window(Graph *graph, Val x, Val start, int64_t size, int64_t axis); // start rank 0, i64
Val compose_avg_pool(Graph *graph, Val x, int64_t k);         // all axes after the second
Val compose_max_pool(Graph *graph, Val x, int64_t k);
Val compose_resize_nearest(Graph *graph, Val x, int64_t factor);
// size: one for every axis after the second, `count` of them; corners not aligned.
Val compose_resize_linear(Graph *graph, Val x, const int64_t *size, uint32_t count);

#endif
