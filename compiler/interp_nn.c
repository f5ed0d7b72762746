// The reference for contractions, convolutions, norms and attention.
//
// Sums are in double. Contractions are packed to [batch, m, k] x [batch, n, k] by lists of offsets,
// so that one dot product over dense rows does the work; convolutions run along rows of the last
// axis. Everything else follows its formula.
#include "compiler/interp.h"

#include <math.h>
#include <stdlib.h>

// ---- contract ----

// Labels of one role: their sizes, and their strides in x, y and out.
typedef struct {
    uint32_t count;
    int64_t size[3 * MAX_RANK], x[3 * MAX_RANK], y[3 * MAX_RANK], out[3 * MAX_RANK];
    int64_t total;
} Labels;

enum { IN_X = 1, IN_Y = 2, IN_OUT = 4, ROLES = 8 };

// Offsets of all positions of the labels, first label slowest.
static int64_t *offsets(const Labels *labels, const int64_t *stride)
{
    int64_t *list = interp_alloc(labels->total, sizeof *list);
    int64_t done = 1;
    for (uint32_t i = labels->count; i-- > 0;) {
        for (int64_t j = labels->size[i] - 1; j >= 0; j--)
            for (int64_t k = 0; k < done; k++)
                list[j * done + k] = list[k] + j * stride[i];
        done *= labels->size[i];
    }
    return list;
}

// role[set]: the labels that occur in that set of x, y, out.
static void sort_labels(const Task *task, Labels role[ROLES])
{
    const int64_t *n = task->node->attr->n;
    const Tensor *tensors[] = {task->in[0], task->in[1], task->out[0]};
    int64_t stride[64][3] = {{0}}, size[64] = {0};
    uint32_t set[64] = {0};
    const int64_t *label = n + 3;
    for (int i = 0; i < 3; i++) {
        int64_t own[MAX_RANK];
        interp_strides(tensors[i], own);
        for (int64_t j = 0; j < n[i]; j++, label++) {
            set[*label] |= 1u << i;
            stride[*label][i] = own[j];
            size[*label] = tensors[i]->dim[j];
        }
    }
    for (int i = 0; i < ROLES; i++)
        role[i] = (Labels){.total = 1};
    for (int i = 0; i < 64; i++)
        if (set[i]) {
            Labels *labels = &role[set[i]];
            uint32_t at = labels->count++;
            labels->size[at] = size[i];
            labels->x[at] = stride[i][0];
            labels->y[at] = stride[i][1];
            labels->out[at] = stride[i][2];
            labels->total *= size[i];
        }
}

// rows [batch, m, k] of one operand, summed over the labels that it alone has.
static double *pack(const Cell *from, const int64_t *batch, int64_t batches, const int64_t *row,
                    int64_t rows, const int64_t *sum, int64_t sums, const int64_t *alone,
                    int64_t alones)
{
    double *packed = interp_alloc(batches * rows * sums, sizeof *packed), *to = packed;
    for (int64_t i = 0; i < batches; i++)
        for (int64_t j = 0; j < rows; j++)
            for (int64_t k = 0; k < sums; k++, to++)
                for (int64_t l = 0; l < alones; l++)
                    *to += from[batch[i] + row[j] + sum[k] + alone[l]].f;
    return packed;
}

static double dot(const double *x, const double *y, int64_t count)
{
    double sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] += x[i + j] * y[i + j];
    for (; i < count; i++)
        sum[0] += x[i] * y[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void interp_contract(Task *task)
{
    Labels role[ROLES];
    sort_labels(task, role);
    const Labels *b = &role[IN_X | IN_Y | IN_OUT], *m = &role[IN_X | IN_OUT],
                 *n = &role[IN_Y | IN_OUT], *k = &role[IN_X | IN_Y], *only_x = &role[IN_X],
                 *only_y = &role[IN_Y];
    int64_t *list[] = {
        offsets(b, b->x),   offsets(m, m->x),   offsets(k, k->x),   offsets(only_x, only_x->x),
        offsets(b, b->y),   offsets(n, n->y),   offsets(k, k->y),   offsets(only_y, only_y->y),
        offsets(b, b->out), offsets(m, m->out), offsets(n, n->out),
    };
    double *x = pack(task->in[0]->at, list[0], b->total, list[1], m->total, list[2], k->total,
                     list[3], only_x->total);
    double *y = pack(task->in[1]->at, list[4], b->total, list[5], n->total, list[6], k->total,
                     list[7], only_y->total);
    for (int64_t h = 0; h < b->total; h++)
        for (int64_t i = 0; i < m->total; i++)
            for (int64_t j = 0; j < n->total; j++)
                task->out[0]->at[list[8][h] + list[9][i] + list[10][j]].f = dot(
                    x + (h * m->total + i) * k->total, y + (h * n->total + j) * k->total, k->total);
    free(x);
    free(y);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        free(list[i]);
}

// ---- convolutions ----

// x [b, c, in], w [o, c / groups, kernel], y [b, o, out]; axes that are not there have size 1.
typedef struct {
    Op op;
    int64_t images, c, o, groups;
    int64_t in[3], out[3], kernel[3], stride[3], pad[3];
    Cell *x, *w, *y;
} Conv;

static int64_t volume(const int64_t size[3])
{
    return size[0] * size[1] * size[2];
}

// All positions of y's rows that the kernel position (w_at; kd, kh, kw) joins to row of x.
static void conv_row(const Conv *conv, Cell *x, Cell *w, Cell *y, int64_t kw)
{
    int64_t stride = conv->stride[2], shift = kw - conv->pad[2];
    int64_t first = shift < 0 ? (-shift + stride - 1) / stride : 0;
    for (int64_t i = first; i < conv->out[2] && i * stride + shift < conv->in[2]; i++)
        switch ((unsigned)conv->op) {
        case OP_CONV:
            y[i].f += w->f * x[i * stride + shift].f;
            break;
        case OP_CONV_DGRAD:
            x[i * stride + shift].f += w->f * y[i].f;
            break;
        default:
            w->f += x[i * stride + shift].f * y[i].f;
            break;
        }
}

// One channel of x with one of y: x [in], w [kernel], y [out].
static void conv_channel(const Conv *conv, Cell *x, Cell *w, Cell *y)
{
    const int64_t *kernel = conv->kernel;
    for (int64_t k = 0; k < volume(kernel); k++) {
        int64_t kd = k / (kernel[1] * kernel[2]), kh = k / kernel[2] % kernel[1];
        for (int64_t od = 0; od < conv->out[0]; od++)
            for (int64_t oh = 0; oh < conv->out[1]; oh++) {
                int64_t d = od * conv->stride[0] + kd - conv->pad[0];
                int64_t h = oh * conv->stride[1] + kh - conv->pad[1];
                if (d < 0 || d >= conv->in[0] || h < 0 || h >= conv->in[1])
                    continue;
                conv_row(conv, x + (d * conv->in[1] + h) * conv->in[2], w + k,
                         y + (od * conv->out[1] + oh) * conv->out[2], k % kernel[2]);
            }
    }
}

void interp_conv(Task *task)
{
    const int64_t *n = task->node->attr->n;
    Op op = task->node->op;
    const Tensor *x = op == OP_CONV_DGRAD ? task->out[0] : task->in[0];
    const Tensor *w = op == OP_CONV_WGRAD ? task->out[0] : task->in[1];
    const Tensor *y = op == OP_CONV ? task->out[0] : task->in[op == OP_CONV_WGRAD];
    Conv conv = {.op = op,
                 .images = x->dim[0],
                 .c = x->dim[1],
                 .o = w->dim[0],
                 .groups = n[1],
                 .x = x->at,
                 .w = w->at,
                 .y = y->at};
    for (int64_t i = 0; i < 3; i++) {
        int64_t axis = i - (3 - n[0]);
        conv.in[i] = axis < 0 ? 1 : x->dim[2 + axis];
        conv.out[i] = axis < 0 ? 1 : y->dim[2 + axis];
        conv.kernel[i] = axis < 0 ? 1 : w->dim[2 + axis];
        conv.stride[i] = axis < 0 ? 1 : n[2 + axis];
        conv.pad[i] = axis < 0 ? 0 : n[5 + axis];
    }
    int64_t group_c = conv.c / conv.groups, group_o = conv.o / conv.groups;
    for (int64_t b = 0; b < conv.images; b++)
        for (int64_t o = 0; o < conv.o; o++)
            for (int64_t i = 0; i < group_c; i++) {
                int64_t c = o / group_o * group_c + i;
                conv_channel(&conv, conv.x + (b * conv.c + c) * volume(conv.in),
                             conv.w + (o * group_c + i) * volume(conv.kernel),
                             conv.y + (b * conv.o + o) * volume(conv.out));
            }
}

// ---- softmax and norms ----

void interp_softmax(Task *task)
{
    const Tensor *x = task->in[0];
    int64_t c = x->dim[x->rank - 1];
    for (int64_t row = 0; row < x->count; row += c) {
        const Cell *from = x->at + row;
        Cell *to = task->out[0]->at + row;
        double max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < c; i++)
            max = fmax(max, from[i].f);
        for (int64_t i = 0; i < c; i++)
            sum += to[i].f = exp(from[i].f - max);
        for (int64_t i = 0; i < c; i++)
            to[i].f /= sum;
    }
}

// Mean and 1 / sqrt(variance + eps) of x[0 .. count - 1].
static void statistics(const Cell *x, int64_t count, double eps, Cell *mean, Cell *rstd)
{
    double sum = 0, square = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i].f;
    mean->f = sum / (double)count;
    for (int64_t i = 0; i < count; i++)
        square += (x[i].f - mean->f) * (x[i].f - mean->f);
    rstd->f = 1 / sqrt(square / (double)count + eps);
}

void interp_layer_norm(Task *task)
{
    const Tensor *x = task->in[0];
    int64_t c = x->dim[x->rank - 1];
    bool affine = task->node->nin == 3;
    for (int64_t row = 0; row < x->count / c; row++) {
        const Cell *from = x->at + row * c;
        Cell *mean = task->out[1]->at + row, *rstd = task->out[2]->at + row;
        statistics(from, c, task->node->attr->real, mean, rstd);
        for (int64_t i = 0; i < c; i++) {
            double y = (from[i].f - mean->f) * rstd->f;
            task->out[0]->at[row * c + i].f =
                affine ? y * task->in[1]->at[i].f + task->in[2]->at[i].f : y;
        }
    }
}

void interp_group_norm(Task *task)
{
    const Tensor *x = task->in[0];
    int64_t groups = task->node->attr->n[0], c = x->dim[1];
    int64_t positions = x->count / (x->dim[0] * c), size = c / groups * positions;
    for (int64_t group = 0; group < x->dim[0] * groups; group++) {
        const Cell *from = x->at + group * size;
        Cell *mean = task->out[1]->at + group, *rstd = task->out[2]->at + group;
        statistics(from, size, task->node->attr->real, mean, rstd);
        for (int64_t i = 0; i < size; i++) {
            int64_t channel = group % groups * (c / groups) + i / positions;
            task->out[0]->at[group * size + i].f =
                (from[i].f - mean->f) * rstd->f * task->in[1]->at[channel].f +
                task->in[2]->at[channel].f;
        }
    }
}

void interp_channel_moments(Task *task)
{
    const Tensor *x = task->in[0];
    int64_t c = x->dim[1], positions = x->count / (x->dim[0] * c);
    for (int64_t i = 0; i < x->dim[0] * c; i++) {
        Cell *mean = task->out[0]->at + i / c * 2 * c + i % c, rstd;
        statistics(x->at + i * positions, positions, 0, mean, &rstd);
        mean[c].f = 0;
        for (int64_t k = 0; k < positions; k++) {
            double away = x->at[i * positions + k].f - mean->f;
            mean[c].f += away * away;
        }
    }
}

// The same of `per` channels from their moments in parts, [parts][2][c] from `x` on.
static void statistics_of_parts(const Node *node, const Cell *x, int64_t c, int64_t per,
                                Cell *mean, Cell *rstd)
{
    double sum = 0, square = 0, count = 0;
    for (int64_t i = 0; i < (node->attr->count - 1) * per; i++) {
        double positions = (double)node->attr->n[1 + i / per];
        sum += positions * x[i / per * 2 * c + i % per].f;
        count += positions;
    }
    mean->f = sum / count;
    for (int64_t i = 0; i < (node->attr->count - 1) * per; i++) {
        const Cell *at = &x[i / per * 2 * c + i % per];
        square += at[c].f + (double)node->attr->n[1 + i / per] * (at->f - mean->f) *
                                (at->f - mean->f);
    }
    rstd->f = 1 / sqrt(square / count + node->attr->real);
}

void interp_group_norm_table(Task *task)
{
    const Tensor *x = task->in[0];
    bool modulated = task->node->nin == 5, parts = task->node->attr->count > 1;
    int64_t groups = task->node->attr->n[0], c = x->dim[parts ? 3 : 1], per = c / groups;
    int64_t positions = x->count / (x->dim[0] * c);
    for (int64_t i = 0; i < x->dim[0] * c; i++) {
        int64_t image = i / c, channel = i % c, group = image * groups + channel / per;
        Cell *mean = task->out[1]->at + group, *rstd = task->out[2]->at + group;
        if (channel % per == 0 && parts)
            statistics_of_parts(task->node, x->at + image * positions * c + channel, c, per, mean,
                                rstd);
        else if (channel % per == 0)
            statistics(x->at + i * positions, per * positions, task->node->attr->real, mean, rstd);
        double a = rstd->f * task->in[1]->at[channel].f;
        double d = task->in[2]->at[channel].f - mean->f * a;
        if (modulated) {
            int64_t at = (task->in[3]->dim[0] == 1 ? 0 : image * c) + channel;
            a *= 1 + task->in[3]->at[at].f;
            d = d * (1 + task->in[3]->at[at].f) + task->in[4]->at[at].f;
        }
        task->out[0]->at[2 * image * c + channel].f = a;
        task->out[0]->at[(2 * image + 1) * c + channel].f = d;
    }
}

// The gradient of both norms on one normalised run of `size` elements, whose channel is
// first + i / positions:  dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma.
static void norm_grad(const Task *task, int64_t run, int64_t size, int64_t first, int64_t positions)
{
    const Cell *dy = task->in[0]->at + run * size, *x = task->in[1]->at + run * size;
    double mean = task->in[2]->at[run].f, rstd = task->in[3]->at[run].f;
    const Cell *gamma = task->node->nin == 5 ? task->in[4]->at : NULL;
    double sum = 0, dot_product = 0;
    for (int64_t i = 0; i < size; i++) {
        int64_t channel = first + i / positions;
        double xhat = (x[i].f - mean) * rstd, g = dy[i].f * (gamma ? gamma[channel].f : 1);
        sum += g;
        dot_product += g * xhat;
        if (gamma) {
            task->out[1]->at[channel].f += dy[i].f * xhat;
            task->out[2]->at[channel].f += dy[i].f;
        }
    }
    for (int64_t i = 0; i < size; i++) {
        double xhat = (x[i].f - mean) * rstd;
        double g = dy[i].f * (gamma ? gamma[first + i / positions].f : 1);
        task->out[0]->at[run * size + i].f =
            rstd * (g - sum / (double)size - xhat * dot_product / (double)size);
    }
}

void interp_layer_norm_grad(Task *task)
{
    const Tensor *x = task->in[1];
    int64_t c = x->dim[x->rank - 1];
    for (int64_t row = 0; row < x->count / c; row++)
        norm_grad(task, row, c, 0, 1);
}

void interp_group_norm_grad(Task *task)
{
    const Tensor *x = task->in[1];
    int64_t groups = task->node->attr->n[0], per = x->dim[1] / groups;
    int64_t positions = x->count / (x->dim[0] * x->dim[1]);
    for (int64_t group = 0; group < x->dim[0] * groups; group++)
        norm_grad(task, group, per * positions, group % groups * per, positions);
}

// ---- attention ----

// One problem: q [n, d], k [m, d], v [m, e], dense; the mask with strides, or NULL.
typedef struct {
    int64_t n, m, d, e;
    const Cell *q, *k, *v, *mask;
    int64_t mask_n, mask_m;
    double scale;
    bool causal;
} Heads;

static int64_t problems(const Tensor *q)
{
    return q->count / (q->dim[q->rank - 1] * q->dim[q->rank - 2]);
}

// Problem `at` with q, k, v at operands first .. first + 2, the mask behind `last`.
static Heads heads_at(const Task *task, uint32_t first, uint32_t last, int64_t at)
{
    const Tensor *q = task->in[first], *k = task->in[first + 1], *v = task->in[first + 2];
    uint32_t rank = q->rank;
    Heads heads = {.n = q->dim[rank - 2],
                   .d = q->dim[rank - 1],
                   .m = k->dim[rank - 2],
                   .e = v->dim[rank - 1],
                   .scale = task->node->attr->real,
                   .causal = task->node->attr->n[0] != 0};
    heads.q = q->at + at * heads.n * heads.d;
    heads.k = k->at + at * heads.m * heads.d;
    heads.v = v->at + at * heads.m * heads.e;
    if (task->node->nin <= last)
        return heads;
    const Tensor *mask = task->in[last];
    int64_t stride[MAX_RANK];
    interp_strides(mask, stride);
    heads.mask = mask->at;
    for (uint32_t i = rank - 2; i-- > 0; at /= q->dim[i])
        if (mask->dim[i] > 1)
            heads.mask += at % q->dim[i] * stride[i];
    heads.mask_n = mask->dim[rank - 2] > 1 ? stride[rank - 2] : 0;
    heads.mask_m = mask->dim[rank - 1] > 1 ? stride[rank - 1] : 0;
    return heads;
}

static double score(const Heads *heads, int64_t i, int64_t j)
{
    if (heads->causal && j > i)
        return -INFINITY;
    double sum = 0;
    for (int64_t l = 0; l < heads->d; l++)
        sum += heads->q[i * heads->d + l].f * heads->k[j * heads->d + l].f;
    sum *= heads->scale;
    return heads->mask ? sum + heads->mask[i * heads->mask_n + j * heads->mask_m].f : sum;
}

void interp_attention(Task *task)
{
    for (int64_t at = 0; at < problems(task->in[0]); at++) {
        Heads heads = heads_at(task, 0, 3, at);
        double *weight = interp_alloc(heads.m, sizeof *weight);
        for (int64_t i = 0; i < heads.n; i++) {
            Cell *o = task->out[0]->at + (at * heads.n + i) * heads.e;
            double max = -INFINITY, sum = 0;
            for (int64_t j = 0; j < heads.m; j++)
                max = fmax(max, weight[j] = score(&heads, i, j));
            for (int64_t j = 0; j < heads.m; j++)
                sum += weight[j] = exp(weight[j] - max);
            for (int64_t j = 0; j < heads.m; j++)
                for (int64_t l = 0; l < heads.e; l++)
                    o[l].f += weight[j] / sum * heads.v[j * heads.e + l].f;
            task->out[1]->at[at * heads.n + i].f = max + log(sum);
        }
        free(weight);
    }
}

// P = exp(s - lse), dP = do v^T, dS = P (dP - sum(do o)); dq = scale dS k, dk = scale dS^T q,
// dv = P^T do.
void interp_attention_grad(Task *task)
{
    for (int64_t at = 0; at < problems(task->in[1]); at++) {
        Heads heads = heads_at(task, 1, 6, at);
        Cell *dq = task->out[0]->at + at * heads.n * heads.d;
        Cell *dk = task->out[1]->at + at * heads.m * heads.d;
        Cell *dv = task->out[2]->at + at * heads.m * heads.e;
        for (int64_t i = 0; i < heads.n; i++) {
            const Cell *d_o = task->in[0]->at + (at * heads.n + i) * heads.e;
            const Cell *o = task->in[4]->at + (at * heads.n + i) * heads.e;
            double lse = task->in[5]->at[at * heads.n + i].f, delta = 0;
            for (int64_t l = 0; l < heads.e; l++)
                delta += d_o[l].f * o[l].f;
            for (int64_t j = 0; j < heads.m; j++) {
                double p = exp(score(&heads, i, j) - lse), dp = 0;
                for (int64_t l = 0; l < heads.e; l++) {
                    dp += d_o[l].f * heads.v[j * heads.e + l].f;
                    dv[j * heads.e + l].f += p * d_o[l].f;
                }
                double ds = heads.scale * p * (dp - delta);
                for (int64_t l = 0; l < heads.d; l++) {
                    dq[i * heads.d + l].f += ds * heads.k[j * heads.d + l].f;
                    dk[j * heads.d + l].f += ds * heads.q[i * heads.d + l].f;
                }
            }
        }
    }
}
