// The CPU kernel library: kernels that are not emitted from the graph. Each takes its arguments as
// a struct of int64 laid over the resolved arguments of the launch: addresses, sizes, strides (in
// elements), and numbers (reals as the bits of a double: pv_real). PvReal is float or double.
// gemm.c conv.c attention.c norm.c move.c are compiled together with the emitted C, by `cc -O3
// -march=... -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math`: the last two change no
// value, but without them loops with pv_log, pv_sqrt and pv_floor (pv_math.h) stay scalar. They
// need no BLAS.
//
// Rules for every kernel: parallel inside by OpenMP over run->threads; the same result for any
// number of threads (fixed order of sums); no allocation: run->scratch holds scratch_size bytes a
// thread, as much as the kernel's *_scratch function asked for at compile time (scratch.c, linked
// into pvdmc, the same formula on the sizes).
#ifndef PV_KERNELS_H
#define PV_KERNELS_H

#include <string.h>

#include "runtime/pvdm.h"

static inline PvReal pv_real(int64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return (PvReal)value;
}

typedef enum { PV_ACT_NONE, PV_ACT_SILU, PV_ACT_GELU, PV_ACT_RELU } PvAct;

// C[i0, i1, m, n] = act(A[i0, i1, m, k] B[i0, i1, k, n] + bias) + residual.
// C's last axis is dense (or c_n = 1 stride), and C may be the residual. One of a_m, a_k and one of b_k, b_n is 1.
// sum_batch: the batch axes i0, i1 are summed into one C [m, n] (weight gradients; c0 = c1 = 0).
typedef struct {
    int64_t c, a, b;                     // addresses
    int64_t m, n, k, batch0, batch1;
    int64_t a0, a1, a_m, a_k;            // strides
    int64_t b0, b1, b_k, b_n;
    int64_t c0, c1, c_m;
    int64_t bias;                        // address or 0
    int64_t bias_axis;                   // 0: bias[n], 1: bias[m]
    int64_t residual;                    // address or 0; strides of C
    int64_t act;                         // PvAct
    int64_t sum_batch;
} GemmArgs;
void pv_gemm(const PvRun *run, const int64_t *args);

// Convolutions of 1 to 3 axes (missing axes: size 1, kernel 1, stride 1, pad 0), layout
// [image, channel, d, h, w], channels and positions dense, images x_image / y_image apart.
// y = act(conv(x, w) + bias[c_out]) + residual (strides of y; it may be y; dgrad: of x, wgrad: w).  w [c_out, c_in / groups, kd, kh, kw]
typedef struct {
    int64_t y, x, w, bias, residual;     // fprop: y out.  dgrad: x out, y in.  wgrad: w out.
    int64_t images, c_in, c_out, groups;
    int64_t x_image, y_image;            // strides
    int64_t in[3], out[3], kernel[3], stride[3], pad[3];
    int64_t act;
} ConvArgs;
void pv_conv(const PvRun *run, const int64_t *args);
void pv_conv_dgrad(const PvRun *run, const int64_t *args);    // bias: added to x (transposed conv)
void pv_conv_wgrad(const PvRun *run, const int64_t *args);

// Attention over batch0 x batch1 problems (images and heads). q [n, d], k [m, d], v [m, e],
// o [n, e] with any strides, one of the two being 1; lse [batch0, batch1, n] dense.
// mask: address or 0; strides may be 0.
typedef struct {
    int64_t o, lse, q, k, v, mask;
    int64_t batch0, batch1, n, m, d, e;
    int64_t q0, q1, q_n, q_d, k0, k1, k_n, k_d, v0, v1, v_n, v_d, o0, o1, o_n, o_d;
    int64_t mask0, mask1, mask_n, mask_m;
    int64_t scale;                       // bits of a double
    int64_t causal;
} AttentionArgs;
void pv_attention(const PvRun *run, const int64_t *args);
typedef struct {
    AttentionArgs f;                     // o, lse, q, k, v, mask are inputs
    int64_t d_o, dq, dk, dv;             // d_o: strides of o; dq, dk, dv: strides below
    int64_t dq0, dq1, dq_n, dq_d, dk0, dk1, dk_n, dk_d, dv0, dv1, dv_n, dv_d;
} AttentionGradArgs;
void pv_attention_grad(const PvRun *run, const int64_t *args);

// x [images, c, positions], images x_image apart, the rest dense; groups of c / groups channels.
// y = act(((x - mean) rstd gamma + beta) (1 + scale) + shift): scale, shift addresses or 0,
// [images, c], images mod_image apart.  mean, rstd: [images, groups] dense, out (0: not wanted)
typedef struct {
    int64_t y, mean, rstd, x, gamma, beta, scale, shift;
    int64_t images, c, positions, groups, x_image, y_image, mod_image;
    int64_t eps;                         // bits of a double
    int64_t act;
} GroupNormArgs;
void pv_group_norm(const PvRun *run, const int64_t *args);
typedef struct {
    int64_t dx, dgamma, dbeta, dy, x, mean, rstd, gamma;   // dgamma, dbeta [c]
    int64_t images, c, positions, groups, x_image, dy_image, dx_image;
    int64_t dgamma_added, dbeta_added;   // [c], added to dgamma and dbeta; addresses or 0
} GroupNormGradArgs;
void pv_group_norm_grad(const PvRun *run, const int64_t *args);

// x [rows, c] dense. gamma, beta: address or 0. mean, rstd [rows] out (0: not wanted).
typedef struct {
    int64_t y, mean, rstd, x, gamma, beta, rows, c, eps, act;
} LayerNormArgs;
void pv_layer_norm(const PvRun *run, const int64_t *args);
typedef struct {
    int64_t dx, dgamma, dbeta, dy, x, mean, rstd, gamma, rows, c;  // gamma, dgamma, dbeta may be 0
    int64_t dgamma_added, dbeta_added;   // [c], added to dgamma and dbeta; addresses or 0
} LayerNormGradArgs;
void pv_layer_norm_grad(const PvRun *run, const int64_t *args);

typedef struct { int64_t y, x, rows, c; } SoftmaxArgs;              // last axis, dense
void pv_softmax(const PvRun *run, const int64_t *args);

// out[o...] = op over r... of x[o..., r...]: up to 8 axes, kept ones first, then reduced ones; x
// has any strides (in elements), out is dense over the kept axes. op: 0 sum, 1 max, 2 min.
// residual (sums of reals): added to out, which it may be; address or 0.
typedef struct {
    int64_t out, x, op, kept, reduced;   // numbers of axes
    int64_t size[8], stride[8];
    int64_t residual;
} ReduceArgs;
void pv_reduce(const PvRun *run, const int64_t *args);
void pv_reduce_int(const PvRun *run, const int64_t *args);     // x and out are int64; no scratch

// y[i...] = x[i...]: up to 8 axes, any strides (0 and negative too); the elements are `bytes` wide
// (1, 4, 8). Fast for permutations (blocked) and for runs. `offset`: address of an int64 or 0; x
// starts *offset * offset_stride elements further, *offset clamped to 0 .. offset_max (window).
typedef struct {
    int64_t y, x, bytes, axes, offset, offset_stride, offset_max;
    int64_t size[8], y_stride[8], x_stride[8];
} CopyArgs;
void pv_copy(const PvRun *run, const int64_t *args);
// the same, y displaced by *offset instead of x (window_grad into a filled tensor)
void pv_copy_to(const PvRun *run, const int64_t *args);

typedef struct { int64_t y, count, bytes, value; } FillArgs;   // dense; value: bits of the element
void pv_fill(const PvRun *run, const int64_t *args);

// y [outer, inner] = x [outer, axis, inner] at axis index k[outer / per]; k int64. Out of range: clamped.
typedef struct { int64_t y, x, k, outer, per, axis, inner; } PickArgs;
void pv_pick(const PvRun *run, const int64_t *args);
void pv_pick_grad(const PvRun *run, const int64_t *args);      // y = dy in, x = dx out (with zeros)

// y [count, inner] = x [rows, inner] at k[count] (clamped);  grad: x [rows, inner] = sums of y
typedef struct { int64_t y, x, k, count, rows, inner; } GatherArgs;
void pv_gather(const PvRun *run, const int64_t *args);
void pv_gather_grad(const PvRun *run, const int64_t *args);

// y [count] dense from a stream. kind 0 normal, 1 uniform (PvReal), 2 integers lo .. hi - 1.
typedef struct { int64_t y, count, stream, kind, lo, hi; } RandomArgs;
void pv_random(const PvRun *run, const int64_t *args);         // in the runtime (random.c)

// ---- scratch bytes a thread, at compile time; sizes as in the structs, `real` = sizeof PvReal,
// batch-dependent sizes must not matter (pass them as 0) ----
int64_t pv_gemm_scratch(const GemmArgs *args, int64_t real);
int64_t pv_conv_scratch(const ConvArgs *args, int64_t real);
int64_t pv_conv_dgrad_scratch(const ConvArgs *args, int64_t real);
int64_t pv_conv_wgrad_scratch(const ConvArgs *args, int64_t real);
int64_t pv_attention_scratch(const AttentionArgs *args, int64_t real);
int64_t pv_attention_grad_scratch(const AttentionGradArgs *args, int64_t real);
int64_t pv_norm_scratch(int64_t c, int64_t real);              // all norms and their gradients
int64_t pv_reduce_scratch(const ReduceArgs *args, int64_t real);

#endif
