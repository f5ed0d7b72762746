// What the parts of the reference evaluator share.
#ifndef PVDMC_INTERP_H
#define PVDMC_INTERP_H

#include "compiler/program.h"

// One element: reals as doubles, i64 and bool as integers. An f32 value is a double that a float
// holds exactly.
typedef union {
    double f;
    int64_t i;
} Cell;

// A dense value, row-major.
typedef struct {
    DType dtype;
    uint32_t rank;
    int64_t dim[MAX_RANK];
    int64_t count;
    Cell *at;
} Tensor;

// One node to be evaluated: outputs are allocated and zero.
typedef struct {
    const Node *node;
    DType real;              // InterpOptions.real
    const Tensor **in;
    Tensor *out[MAX_OUT];
} Task;

void *interp_alloc(int64_t count, size_t size);          // zeroed; freed by the caller
void interp_strides(const Tensor *tensor, int64_t stride[MAX_RANK]);    // in elements

// One real element, in float or double arithmetic (interp_f32.c, interp_f64.c).
double interp_scalar_f32(Op op, double x, double y);
double interp_scalar_f64(Op op, double x, double y);

/* interp_math.c */
void interp_elementwise(Task *task);
void interp_reduce(Task *task);
/* interp_move.c */
void interp_reshape(Task *task);
void interp_view(Task *task);           // transpose, expand, slice, flip, window
void interp_place(Task *task);          // pad, concat, window_grad
void interp_swap_pairs(Task *task);
void interp_pick(Task *task);           // and pick_grad
void interp_gather(Task *task);         // and gather_grad
/* interp_nn.c */
void interp_contract(Task *task);
void interp_conv(Task *task);           // and its gradients
void interp_softmax(Task *task);
void interp_layer_norm(Task *task);
void interp_layer_norm_grad(Task *task);
void interp_group_norm(Task *task);
void interp_group_norm_table(Task *task);
void interp_channel_moments(Task *task);
void interp_group_norm_grad(Task *task);
void interp_attention(Task *task);
void interp_attention_grad(Task *task);

#endif
