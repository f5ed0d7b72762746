// The reference for movement: views read through strides, placements write through strides.
#include "compiler/interp.h"

#include <string.h>

void interp_reshape(Task *task)
{
    memcpy(task->out[0]->at, task->in[0]->at, (size_t)task->out[0]->count * sizeof(Cell));
}

// to[sum i * to_stride] = from[sum i * from_stride] over a box of `size`.
static void copy_box(uint32_t rank, const int64_t *size, Cell *to, const int64_t *to_stride,
                     const Cell *from, const int64_t *from_stride)
{
    if (rank == 0) {
        *to = *from;
        return;
    }
    for (int64_t i = 0; i < size[0]; i++)
        copy_box(rank - 1, size + 1, to + i * to_stride[0], to_stride + 1,
                 from + i * from_stride[0], from_stride + 1);
}

// Where a window starts: within what the axis has room for.
static int64_t window_start(const Task *task, int64_t room)
{
    int64_t start = task->in[1]->at[0].i;
    return start < 0 ? 0 : start > room ? room : start;
}

void interp_view(Task *task)
{
    const Tensor *x = task->in[0];
    Tensor *out = task->out[0];
    const int64_t *n = task->node->attr->n;
    int64_t own[MAX_RANK], stride[MAX_RANK], to[MAX_RANK], offset = 0;
    interp_strides(x, own);
    interp_strides(out, to);
    memcpy(stride, own, sizeof stride);
    Op op = task->node->op;
    if (op == OP_TRANSPOSE) {
        for (uint32_t i = 0; i < x->rank; i++)
            stride[i] = own[n[i]];
    } else if (op == OP_EXPAND) {
        for (uint32_t i = 0; i < x->rank; i++)
            if (x->dim[i] == 1)
                stride[i] = 0;
    } else if (op == OP_SLICE) {
        offset = n[1] * own[n[0]] * (out->dim[n[0]] / n[2]); // times b on a batch axis
    } else if (op == OP_FLIP) {
        offset = (x->dim[n[0]] - 1) * own[n[0]];
        stride[n[0]] = -own[n[0]];
    } else {
        offset = window_start(task, x->dim[n[0]] - n[1]) * own[n[0]];
    }
    copy_box(out->rank, out->dim, out->at, to, x->at + offset, stride);
}

void interp_place(Task *task)
{
    const Node *node = task->node;
    Tensor *out = task->out[0];
    const int64_t *n = node->attr->n;
    int64_t to[MAX_RANK], from[MAX_RANK];
    interp_strides(out, to);
    for (int64_t i = 0; node->op == OP_PAD && i < out->count; i++)
        out->at[i] = dtype_is_float(out->dtype) ? (Cell){.f = node->attr->real}
                                                : (Cell){.i = (int64_t)node->attr->real};
    int64_t position = node->op == OP_PAD ? n[1] : 0;
    if (node->op == OP_WINDOW_GRAD)
        position = window_start(task, n[1] - task->in[0]->dim[n[0]]);
    uint32_t parts = node->op == OP_CONCAT ? node->nin : 1;
    for (uint32_t i = 0; i < parts; i++) {
        const Tensor *x = task->in[i];
        interp_strides(x, from);
        copy_box(x->rank, x->dim, out->at + position * to[n[0]], to, x->at, from);
        position += x->dim[n[0]];
    }
}

void interp_swap_pairs(Task *task)
{
    for (int64_t i = 0; i < task->out[0]->count; i++)
        task->out[0]->at[i] = task->in[0]->at[i ^ 1];
}

static int64_t clamp_index(int64_t k, int64_t count)
{
    return k < 0 ? 0 : k >= count ? count - 1 : k;
}

// wide [b, ..., axis, inner], narrow [b, ..., inner]: pick reads wide, pick_grad writes it.
void interp_pick(Task *task)
{
    bool grad = task->node->op == OP_PICK_GRAD;
    const Tensor *k = task->in[1];
    const Tensor *wide = grad ? task->out[0] : task->in[0];
    int64_t axis = task->node->attr->n[0], inner = 1, outer = 1;
    for (int64_t i = 0; i < wide->rank; i++)
        *(i < axis ? &outer : &inner) *= i == axis ? 1 : wide->dim[i];
    int64_t per = outer / k->count;
    for (int64_t i = 0; i < outer; i++) {
        int64_t chosen = clamp_index(k->at[i / per].i, wide->dim[axis]);
        int64_t at = (i * wide->dim[axis] + chosen) * inner;
        for (int64_t j = 0; j < inner; j++)
            if (grad)
                task->out[0]->at[at + j] = task->in[0]->at[i * inner + j];
            else
                task->out[0]->at[i * inner + j] = task->in[0]->at[at + j];
    }
}

// table [rows, inner], rows chosen [index, inner]: gather reads, gather_grad adds.
void interp_gather(Task *task)
{
    bool grad = task->node->op == OP_GATHER_GRAD;
    const Tensor *index = task->in[1];
    const Tensor *table = grad ? task->out[0] : task->in[0];
    int64_t inner = table->count / table->dim[0];
    for (int64_t i = 0; i < index->count; i++) {
        int64_t row = clamp_index(index->at[i].i, table->dim[0]);
        for (int64_t j = 0; j < inner; j++)
            if (grad)
                task->out[0]->at[row * inner + j].f += task->in[0]->at[i * inner + j].f;
            else
                task->out[0]->at[i * inner + j] = task->in[0]->at[row * inner + j];
    }
}
