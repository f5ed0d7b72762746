/* Arguments of the kernels that are not emitted from the graph, the same for every target:
 * structs of int64 that are laid over the resolved arguments of a launch. They hold addresses,
 * sizes, strides (in elements), and numbers (reals as the bits of a double). PvReal is the
 * working precision.
 *
 * A launch may have several segments: independent problems of one kernel, one struct after the
 * other (PvLaunch.segments). NVRTC compiles this header too, so it includes nothing there.
 */
#ifndef PV_KERNEL_ARGS_H
#define PV_KERNEL_ARGS_H

#ifdef __CUDACC_RTC__
typedef long long int64_t;
typedef int int32_t;
#else
#include <stdint.h>
#endif

typedef enum { PV_ACT_NONE, PV_ACT_SILU, PV_ACT_GELU, PV_ACT_RELU } PvAct;

// How an operand is stored; the numbers of `types` fields, the struct's addresses in their order
// from the lowest four bits. Strides are in its elements. Sums are made in f32 in any case.
typedef enum { PV_STORE_REAL, PV_STORE_BF16, PV_STORE_F16 } PvStorage;

// GroupNorm taken apart. A norm table is PvReal [images, 2, c], scales a and then shifts d:
//   y[image, channel, p] = act(x[image, channel, p] a[image, channel] + d[image, channel])
//   a = rstd gamma (1 + scale),   d = (beta - mean rstd gamma) (1 + scale) + shift
// An operand that is normalized as it is loaded; what a convolution sees outside the image stays 0.
// Of the segments of a launch some may have a norm or a table, and others not.
typedef struct {
    int64_t table;                       // address of the first image's a; 0: the operand as it is
    int64_t image, shift;                // strides: from image to image, from a to d
    int64_t act;                         // PvAct
} NormLoad;

// A table of the result of a launch (after bias, activation and residual), made in the same launch.
typedef struct {
    int64_t table;                       // address, out; 0: none, and the other fields are 0
    int64_t mean, rstd;                  // [images, groups] dense, out; addresses or 0: not wanted
    int64_t gamma, beta;                 // [c]
    int64_t scale, shift, mod_image;     // [images, c], addresses or 0; images mod_image apart
    int64_t groups, eps;                 // of c / groups channels; bits of a double
    // moments of each channel of each image over all its positions, address, out; 0: none. There
    // may be a table, moments, or both.
    int64_t moments, moments_image, moments_shift;       // see below; strides as in NormLoad
} NormStats;

// Moments are PvReal [images, 2, c]: the mean over n positions, and behind those of all channels
// the sum of squares about it. Parts of a value that lie elsewhere, or are made by other launches,
// leave theirs, and tables of the whole are put together from them (GroupNormArgs.parts):
//   n = n1 + n2,   mean = (n1 mean1 + n2 mean2) / n,
//   squares = squares1 + squares2 + n1 (mean1 - mean)^2 + n2 (mean2 - mean)^2
enum { PV_MAX_PARTS = 8 };

// Weight gradients (pv_gemm, pv_conv_wgrad) and sums (pv_reduce) have a field `sum`. 0: a segment
// has its own result. n > 0: its result is the sum of this segment's and of the n behind it, whose
// `sum` is -1: they name the same result, with the same sizes, and none of them but the first has a
// residual. The order is that of the segments.

// C[i0, i1, m, n] = act(A[i0, i1, m, k] B[i0, i1, k, n] + bias) + residual.
// C's last axis is dense (or c_n = 1 stride), and C may be the residual. One of a_m, a_k and one
// of b_k, b_n is 1. sum_batch: the batch axes i0, i1 are summed into one C [m, n] (weight
// gradients; c0 = c1 = 0).
typedef struct {
    int64_t c, a, b;                     // addresses
    int64_t m, n, k, batch0, batch1;
    int64_t a0, a1, a_m, a_k;            // strides
    int64_t b0, b1, b_k, b_n;
    int64_t c0, c1, c_m;
    int64_t bias;                        // address or 0
    int64_t bias_axis;                   // 0: bias[n], 1: bias[m]
    int64_t residual;                    // address or 0
    int64_t act;                         // PvAct
    int64_t sum_batch;
    int64_t r0, r1, r_m;                 // strides of the residual, whose last axis is dense
    int64_t types;                       // PvStorage of c, a, b, bias, residual: 4 bits each
    NormLoad norm;                       // of B: images are i0, channels k; i1 is one
    NormStats stats;                     // of C: images are i0, channels m; i1 is one
    // Where channels are dense (mixed precision): > 0, rows of A and C are positions, this many an
    // image, and images follow one another in i0 or in m. `norm` is of A then, and the channels of
    // `stats` are n.
    int64_t image_rows;
    int64_t sum;                         // see above
    // Columns from a value to its gate in B and bias[n]; 0: none. C has the n values, each times
    // act(gate): C[m, j] = (A B + bias)[m, j] act((A B + bias)[m, j + gate]). Without a residual,
    // norm, stats or sum; sum_batch 0, bias_axis 0.
    int64_t gate;
} GemmArgs;

// Convolutions of 1 to 3 axes (missing axes: size 1, kernel 1, stride 1, pad 0) of images
// [image, channel, d, h, w]: the strides of image, channel and position are given, and positions
// (d, h, w) are row-major multiples of the last. The CPU kernels take x_position = y_position = 1.
// y = act(conv(x, w) + bias[c_out]) + residual, which may be y (dgrad: x) and has strides of its
// own (on the CPU residual_position = 1); wgrad: lies as w and may be w. w [c_out, c_in / groups,
// kd, kh, kw], row-major.
typedef struct {
    int64_t y, x, w, bias, residual;     // fprop: y out.  dgrad: x out, y in.  wgrad: w out.
    int64_t images, c_in, c_out, groups;
    int64_t x_image, y_image, x_channel, y_channel, x_position, y_position;    // strides
    int64_t in[3], out[3], kernel[3], stride[3], pad[3];
    int64_t act;
    int64_t residual_image, residual_channel, residual_position;     // strides
    int64_t types;                       // PvStorage of y, x, w, bias, residual: 4 bits each
    int64_t w_last;                      // 1: w lies as [c_out, kd, kh, kw, c_in / groups]
    NormLoad norm;                       // of x (fprop, wgrad)
    NormStats stats;                     // of y (fprop)
    int64_t sum;                         // wgrad: see above
    // Nearest up-sampling on the way (fprop): position (d, h, w) of x, of extents in[], is read at
    // (d >> x_shift[0], ...) of an image of extents in[] >> x_shift[]; the residual's likewise, of
    // extents out[] >> residual_shift[]. All 0: as they are.
    int64_t x_shift[3], residual_shift[3];
    int64_t winograd;                    // 1: kernels of 3 x 3 may be computed by minimal filtering
} ConvArgs;

// Rotary position embedding of a matrix x [length, d], as it is loaded. With tables of PvReal
// [length, width], dense, their addresses multiples of 16 bytes, and columns j < width:
//   y[i, j] = cos[i, j] x[i, j] + sin[i, j] x[i, partner of j];   y[i, j] = x[i, j] behind them
// partner: j ^ 1; or half the width further, modulo width, sin being negated for j < width / 2 if
// so. Nothing is asked of the tables: y need not be a rotation. A gradient of x is the transpose:
//   dx[i, j] = cos[i, j] dy[i, j] + sin[i, partner] dy[i, partner]
enum { PV_ROTARY_PAIRS, PV_ROTARY_HALVES, PV_ROTARY_NEGATED };
typedef struct {
    int64_t cos, sin;                    // addresses; 0: the matrix as it is, the rest is 0
    int64_t width;                       // at most d; a multiple of 4, in halves of 8
    int64_t partner;                     // PV_ROTARY_...
} RotaryLoad;

// Attention over batch0 x batch1 x batch2 problems (images, heads). q [n, d], k [m, d], v [m, e],
// o [n, e] with any strides, one of the two being 1; lse [batch0, batch1, batch2, n] dense.
// mask: address or 0; strides may be 0.
typedef struct {
    int64_t o, lse, q, k, v, mask;
    int64_t batch0, batch1, batch2, n, m, d, e;
    int64_t q0, q1, q2, q_n, q_d, k0, k1, k2, k_n, k_d, v0, v1, v2, v_n, v_d, o0, o1, o2, o_n, o_d;
    int64_t mask0, mask1, mask2, mask_n, mask_m;
    int64_t scale;                       // bits of a double
    int64_t causal;
    int64_t types;                       // PvStorage of o, lse, q, k, v, mask: 4 bits each
    RotaryLoad q_rotary, k_rotary;       // the same for all problems
} AttentionArgs;
typedef struct {
    AttentionArgs f;                     // o, lse, q, k, v, mask are inputs
    int64_t d_o, dq, dk, dv;             // d_o: strides of o; dq, dk, dv: strides below; dq and
                                         // dk are gradients of q and k before f's rotary
    int64_t dq0, dq1, dq2, dq_n, dq_d, dk0, dk1, dk2, dk_n, dk_d, dv0, dv1, dv2, dv_n, dv_d;
    int64_t types;                       // PvStorage of d_o, dq, dk, dv (f.types: the rest)
} AttentionGradArgs;

// x [images, c, positions] with the strides x_image, x_channel, x_position (the CPU kernels take
// x_position = y_position = 1), y likewise; groups of c / groups channels.
// y = act(((x - mean) rstd gamma + beta) (1 + scale) + shift): scale, shift addresses or 0,
// [images, c], images mod_image apart.  mean, rstd: [images, groups] dense, out (0: not wanted)
typedef struct {
    int64_t y, mean, rstd, x, gamma, beta, scale, shift;
    int64_t images, c, positions, groups, x_image, y_image, mod_image;
    int64_t x_channel, y_channel, x_position, y_position;
    int64_t eps;                         // bits of a double
    int64_t act;
    int64_t types;                       // PvStorage of y, mean, rstd, x, gamma, beta, scale, shift
    int64_t table;                       // address of a norm table, out, or 0; y is then 0
    // > 0 (with a table): x are the moments of so many parts [parts, images, 2, c] of count[i]
    // positions each, x_part apart; x_image and x_channel (1) are theirs, x_position is from
    // mean to squares
    int64_t parts, x_part, count[PV_MAX_PARTS];
    // moments of x and nothing else: as in NormStats; table and y are 0, every channel is a group
    int64_t moments, moments_image, moments_shift;
} GroupNormArgs;
typedef struct {
    int64_t dx, dgamma, dbeta, dy, x, mean, rstd, gamma;   // dgamma, dbeta [c]
    int64_t images, c, positions, groups, x_image, dy_image, dx_image;
    int64_t x_channel, dy_channel, dx_channel, x_position, dy_position, dx_position;
    int64_t dgamma_added, dbeta_added;   // [c], added to dgamma and dbeta; addresses or 0
    int64_t types;                       // PvStorage of dx .. gamma, then of what is added
} GroupNormGradArgs;

// x [rows, c] dense. gamma, beta: address or 0. mean, rstd [rows] out (0: not wanted).
typedef struct {
    int64_t y, mean, rstd, x, gamma, beta, rows, c, eps, act;
    int64_t types;                       // PvStorage of y, mean, rstd, x, gamma, beta
} LayerNormArgs;
typedef struct {
    int64_t dx, dgamma, dbeta, dy, x, mean, rstd, gamma, rows, c;  // gamma, dgamma, dbeta may be 0
    int64_t dgamma_added, dbeta_added;   // [c], added to dgamma and dbeta; addresses or 0
    int64_t types;                       // PvStorage of dx .. gamma, then of what is added
} LayerNormGradArgs;

typedef struct { int64_t y, x, rows, c, types; } SoftmaxArgs;       // last axis, dense; types: y, x

// out[o...] = op over r... of x[o..., r...]: up to 8 axes, kept ones first, then reduced ones; x
// has any strides (in elements), out is dense over the kept axes. op: 0 sum, 1 max, 2 min.
// residual (sums of reals): added to out, which it may be; address or 0.
typedef struct {
    int64_t out, x, op, kept, reduced;   // numbers of axes
    int64_t size[8], stride[8];
    int64_t residual;
    int64_t types;                       // PvStorage of out, x, residual: 4 bits each
    int64_t sum;                         // see above
} ReduceArgs;

// y[i...] = x[i...]: up to 8 axes, any strides (0 and negative too); the elements are `bytes` wide
// (1, 2, 4, 8; the CPU's kernel: not 2; if x is stored otherwise: those of y). Fast for
// permutations (blocked) and for runs. `offset`: address of an int64 or 0; x starts
// *offset * offset_stride elements further, *offset clamped to 0 .. offset_max (window).
typedef struct {
    int64_t y, x, bytes, axes, offset, offset_stride, offset_max;
    int64_t size[8], y_stride[8], x_stride[8];
    int64_t types;                       // PvStorage of y, x; 0 where they are alike
} CopyArgs;
// the same, y displaced by *offset instead of x (window_grad into a filled tensor)

typedef struct { int64_t y, count, bytes, value; } FillArgs;   // dense; value: bits of the element

// y [outer, inner] = x [outer, axis, inner] at axis index k[outer / per]; k int64. Out of
// range: clamped.
typedef struct { int64_t y, x, k, outer, per, axis, inner; } PickArgs;

// y [count, inner] = x [rows, inner] at k[count] (clamped);  grad: x [rows, inner] = sums of y
typedef struct { int64_t y, x, k, count, rows, inner; } GatherArgs;

// y [count] dense from a stream. kind 0 normal, 1 uniform (PvReal), 2 integers lo .. hi - 1.
typedef struct { int64_t y, count, stream, kind, lo, hi; } RandomArgs;

// ---- the optimizer's kernels, of the CUDA target alone (PvCuda.kernel_names; one segment) ----
//
// Parameters, gradients, moments, averages and sums lie alike in flat buffers of PvReal, 256-byte
// aligned. Work is cut into pieces of at most 16,384 elements that never cross a parameter; a piece
// begins at a multiple of 16 elements; pieces of an instance follow each other. One block a piece.
typedef struct {
    int64_t first;                       // element of the flat buffers
    int32_t count, instance;
} OptimizerChunk;

// The numbers of an update, in device memory, so that its launches are the same from step to step.
// The host computes them in double; kernels round them to PvReal.
typedef struct {
    int64_t step;                        // > 0
    int64_t updates;                     // this one counted in
    double scale, clip;                  // scale: 1 / micro-steps; clip: 0, or the largest norm
    double lr, weight_decay, momentum;   // momentum: of SGD; 0 in its first update
    double decay, beta1, rest1, beta2, rest2, rate, root2, eps;  // of AdamW
    double rest;                         // of the averages
} OptimizerNumbers;

// Loss scaling of one minimize, in device memory: gradients are those of loss * scale. An update
// whose norm is not finite though the loss is, is left out, and the scale halved; after 2000
// updates without one it is doubled.
typedef struct {
    double scale;
    int64_t good;                        // updates since the scale last changed
    int64_t skipped;                     // updates left out so far
    float real[2];                       // the scale, as launches read it; 0
} LossScale;
enum { LOSS_SCALE_FIRST = 65536, LOSS_SCALE_GROWTH = 2000 };

// In device memory. Kernels that change parameters or averages do nothing when bad_step or skip is
// not 0.
typedef struct {
    double norm, loss;                   // of the last update
    int64_t bad_step;                    // first update whose loss or norm was not finite; 0: none
    int64_t skip;                        // 1: the last update was left out
    LossScale scale;                     // after it
} OptimizerResult;

// "square_sums", two phases: sums of g^2 of each piece in double (workspace, 8 bytes a piece);
// then, in one block and a fixed order, the sum of each instance S_i and of all S; with
// s = numbers.scale, divided by loss_scale.scale if there is one:
//     factor[i] = s * min(1, clip > 0 ? clip / (sqrt(S_i) s + 1e-6) : 1)
//     result: norm = sqrt(S) s, loss = sum of losses * numbers.scale; where one of them is not
//     finite and bad_step is 0: bad_step = step.
// With loss scaling a norm that is not finite sets `skip` instead, unless the scale is 1 or less;
// and rate and root2 are computed here, since only the device knows how many updates were made:
//     n = updates - skipped,  rate = lr / (1 - beta1^n),  root2 = sqrt(1 - beta2^n)
typedef struct {
    int64_t chunks, chunk_count;         // OptimizerChunk [chunk_count]
    int64_t gradients;
    int64_t losses, loss_count;          // PvReal [loss_count]
    int64_t factor, instances;           // out: double [instances]
    int64_t result;                      // OptimizerResult, in and out
    int64_t numbers;                     // OptimizerNumbers
    int64_t loss_scale;                  // LossScale, in and out; or 0
} SquareSumsArgs;

// "adamw": s = g factor[instance];  m = m beta1 + s rest1;  v = v beta2 + s s rest2;
// p = p decay - rate (m / (sqrt(v) / root2 + eps));  then, where `average` is not 0,
// average -= rest (average - p).
typedef struct {
    int64_t chunks, chunk_count, params, gradients, m, v;
    int64_t average;                     // address or 0
    int64_t factor, result, numbers;     // as square_sums left them
    int64_t shadow, shadow_type;         // address or 0: what p becomes, as a PvStorage
} AdamwArgs;

// "sgd": s = g factor[instance] + weight_decay p;  where m is not 0: s = momentum m + s, m = s;
// p -= lr s;  then the average as above. m begins as zeros.
typedef struct {
    int64_t chunks, chunk_count, params, gradients;
    int64_t m;                           // address or 0
    int64_t average;                     // address or 0
    int64_t factor, result, numbers;
    int64_t shadow, shadow_type;         // as above
} SgdArgs;

// "shadow": `count` elements at `params` to `shadow`, as a PvStorage; 16,384 a block, both
// addresses multiples of 16 bytes.
typedef struct {
    int64_t count, chunk_count, params, shadow, shadow_type;
} ShadowArgs;

// "accumulate": sum = first ? g : sum + g
typedef struct {
    int64_t chunks, chunk_count, sum, gradients, first;
} AccumulateArgs;

// "average": average -= rest (average - p)
typedef struct {
    int64_t chunks, chunk_count, average, params, result, numbers;
} AverageArgs;

#endif
