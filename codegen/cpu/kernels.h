// The CPU kernel library: kernels that are not emitted from the graph. Each takes its arguments as
// a struct of int64 laid over the resolved arguments of the launch: addresses, sizes, strides (in
// elements), and numbers (reals as the bits of a double: pv_real). PvReal is float or double.
// gemm.c conv.c conv_grad.c attention.c norm.c move.c are compiled together with the emitted C, by
// `cc -O3 -march=... -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math`: the last two
// change no value, but without them loops with pv_log, pv_sqrt and pv_floor (pv_math.h) stay
// scalar. They need no BLAS.
//
// A launch may have several segments (run->segments): pv_gemm, the convolutions, attention, norms,
// softmax, pv_reduce, pv_copy and pv_fill take them; the others are given one.
//
// Rules for every kernel: parallel inside by OpenMP over run->threads; the same result for any
// number of threads (fixed order of sums); no allocation: run->scratch holds scratch_size bytes a
// thread, as much as the kernel's *_scratch function asked for at compile time (scratch.c, linked
// into pvdmc, the same formula on the sizes).
#ifndef PV_KERNELS_H
#define PV_KERNELS_H

#include <string.h>

#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

static inline PvReal pv_real(int64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return (PvReal)value;
}

// ---- kernels; their arguments stand in codegen/kernel_args.h ----

void pv_gemm(const PvRun *run, const int64_t *args);
void pv_conv(const PvRun *run, const int64_t *args);
void pv_conv_dgrad(const PvRun *run, const int64_t *args);    // bias: added to x (transposed conv)
void pv_conv_wgrad(const PvRun *run, const int64_t *args);
void pv_attention(const PvRun *run, const int64_t *args);
void pv_attention_grad(const PvRun *run, const int64_t *args);
void pv_group_norm(const PvRun *run, const int64_t *args);
void pv_group_norm_grad(const PvRun *run, const int64_t *args);
void pv_layer_norm(const PvRun *run, const int64_t *args);
void pv_layer_norm_grad(const PvRun *run, const int64_t *args);
void pv_softmax(const PvRun *run, const int64_t *args);
void pv_reduce(const PvRun *run, const int64_t *args);
void pv_reduce_int(const PvRun *run, const int64_t *args);     // x and out are int64; no scratch
void pv_copy(const PvRun *run, const int64_t *args);
void pv_copy_to(const PvRun *run, const int64_t *args);
void pv_fill(const PvRun *run, const int64_t *args);
void pv_pick(const PvRun *run, const int64_t *args);
void pv_pick_grad(const PvRun *run, const int64_t *args);      // y = dy in, x = dx out (with zeros)
void pv_gather(const PvRun *run, const int64_t *args);
void pv_gather_grad(const PvRun *run, const int64_t *args);
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
