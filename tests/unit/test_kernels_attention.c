// link: pvdm_kernels32
// Attention of the CPU kernel library, forward and backward, against plain loops in double.
#include "tests/unit/kernel_check.h"

typedef struct {
    int64_t batch0, batch1, n, m, d, e;
    bool turned; // [d, n] instead of [n, d]
    int mask;    // 0 none, 1 [n, m], 2 the same for all n, 3 none, and scores far below 0
    bool causal;
} AttentionCase;

typedef struct {
    int64_t q_width, k_width; // columns that are turned; 0: none
    int partner;
} RotaryCase;

// Strides of an operand [batch0, batch1, n, d] with gaps; turned: n is the dense axis.
static void strides(int64_t n, int64_t d, bool turned, int64_t batch1, int64_t *s0, int64_t *s1,
                    int64_t *s_n, int64_t *s_d, int64_t *count, int64_t batch0)
{
    *s_n = turned ? 1 : d + 3;
    *s_d = turned ? n + 2 : 1;
    *s1 = turned ? (n + 2) * d : (d + 3) * n;
    *s0 = *s1 * batch1 + 5;
    *count = *s0 * batch0;
}

static double dot(const PvReal *x, int64_t x_step, const PvReal *y, int64_t y_step, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i * x_step] * (double)y[i * y_step];
    return sum;
}

typedef struct {
    const PvReal *q, *k, *v, *mask, *o, *d_o;
    double *p; // [n, m]
    double *o_out, *lse_out, *dq, *dk, *dv;
} Expect;

// p = softmax of the scores of one problem, o and lse
static void expect_forward(const AttentionArgs *args, const Expect *at)
{
    for (int64_t i = 0; i < args->n; i++) {
        double *p = at->p + i * args->m, most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < args->m; j++) {
            double scale;
            memcpy(&scale, &args->scale, sizeof scale);
            p[j] = scale *
                   dot(at->q + i * args->q_n, args->q_d, at->k + j * args->k_n, args->k_d, args->d);
            if (at->mask)
                p[j] += (double)at->mask[i * args->mask_n + j * args->mask_m];
            if (args->causal && j > i)
                p[j] = -INFINITY;
            most = fmax(most, p[j]);
        }
        for (int64_t j = 0; j < args->m; j++)
            sum += p[j] = exp(p[j] - most);
        for (int64_t j = 0; j < args->m; j++)
            p[j] /= sum;
        *(at->lse_out + i) = most + log(sum);
        for (int64_t l = 0; l < args->e; l++) {
            double value = 0;
            for (int64_t j = 0; j < args->m; j++)
                value += p[j] * (double)at->v[j * args->v_n + l * args->v_d];
            at->o_out[i * args->o_n + l * args->o_d] = value;
        }
    }
}

static void expect_backward(const AttentionGradArgs *grad, const Expect *at)
{
    const AttentionArgs *args = &grad->f;
    double scale;
    memcpy(&scale, &args->scale, sizeof scale);
    for (int64_t i = 0; i < args->n; i++) {
        for (int64_t l = 0; l < args->d; l++)
            at->dq[i * grad->dq_n + l * grad->dq_d] = 0;
    }
    for (int64_t j = 0; j < args->m; j++) {
        for (int64_t l = 0; l < args->d; l++)
            at->dk[j * grad->dk_n + l * grad->dk_d] = 0;
        for (int64_t l = 0; l < args->e; l++)
            at->dv[j * grad->dv_n + l * grad->dv_d] = 0;
    }
    for (int64_t i = 0; i < args->n; i++) {
        const PvReal *d_o = at->d_o + i * args->o_n;
        double delta = dot(d_o, args->o_d, at->o + i * args->o_n, args->o_d, args->e);
        for (int64_t j = 0; j < args->m; j++) {
            double p = at->p[i * args->m + j];
            double dp = dot(d_o, args->o_d, at->v + j * args->v_n, args->v_d, args->e);
            double ds = p * (dp - delta) * scale;
            for (int64_t l = 0; l < args->e; l++)
                at->dv[j * grad->dv_n + l * grad->dv_d] += p * (double)d_o[l * args->o_d];
            for (int64_t l = 0; l < args->d; l++) {
                at->dq[i * grad->dq_n + l * grad->dq_d] +=
                    ds * (double)at->k[j * args->k_n + l * args->k_d];
                at->dk[j * grad->dk_n + l * grad->dk_d] +=
                    ds * (double)at->q[i * args->q_n + l * args->q_d];
            }
        }
    }
}

static RotaryLoad rotary_of(int64_t length, int64_t width, int partner)
{
    if (width == 0)
        return (RotaryLoad){.cos = 0};
    return (RotaryLoad){(int64_t)random_array(length * width),
                        (int64_t)random_array(length * width), width, partner};
}

// Element (i, j) of the map: what column j takes of its partner, and which that is.
static double sine_of(const RotaryLoad *rotary, int64_t i, int64_t j, int64_t *partner)
{
    int64_t half = rotary->width / 2;
    *partner = rotary->partner == PV_ROTARY_PAIRS ? j ^ 1 : (j + half) % rotary->width;
    double sine = (double)((const PvReal *)rotary->sin)[i * rotary->width + j];
    return rotary->partner == PV_ROTARY_NEGATED && j < half ? -sine : sine;
}

// The matrix [length, d] at `from` of those at `x`, turned.
static const PvReal *turned(const RotaryLoad *rotary, const PvReal *x, int64_t from, int64_t count,
                            int64_t step_n, int64_t step_d, int64_t length)
{
    if (!rotary->cos)
        return x + from;
    PvReal *y = random_array(count);
    memcpy(y, x, (size_t)count * sizeof *y);
    for (int64_t i = 0; i < length; i++)
        for (int64_t j = 0; j < rotary->width; j++) {
            int64_t partner, at = from + i * step_n;
            double sine = sine_of(rotary, i, j, &partner);
            double cosine = (double)((const PvReal *)rotary->cos)[i * rotary->width + j];
            y[at + j * step_d] = (PvReal)(cosine * (double)x[at + j * step_d] +
                                          sine * (double)x[at + partner * step_d]);
        }
    return y + from;
}

// The gradient of what is turned to that of what it is made of.
static void turn_back(const RotaryLoad *rotary, double *dy, int64_t step_n, int64_t step_d,
                      int64_t length)
{
    double dx[256];
    for (int64_t i = 0; rotary->cos && i < length; i++) {
        memset(dx, 0, sizeof dx);
        for (int64_t j = 0; j < rotary->width; j++) {
            int64_t partner;
            double sine = sine_of(rotary, i, j, &partner), value = dy[i * step_n + j * step_d];
            dx[j] += (double)((const PvReal *)rotary->cos)[i * rotary->width + j] * value;
            dx[partner] += sine * value;
        }
        for (int64_t j = 0; j < rotary->width; j++)
            dy[i * step_n + j * step_d] = dx[j];
    }
}

// The second axis of problems, of an even size, as two.
static void split_problems(AttentionGradArgs *grad)
{
    AttentionArgs *args = &grad->f;
    args->batch1 /= 2;
    args->batch2 = 2;
    int64_t *first[] = {&args->q1,    &args->k1,  &args->v1,  &args->o1,
                        &args->mask1, &grad->dq1, &grad->dk1, &grad->dv1};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        first[i][1] = *first[i];       // the field behind it: the inner axis
        *first[i] *= 2;
    }
}

// Operands of a case; counts: elements of q, k, v and o.
static void fill_operands(const AttentionCase *test, AttentionArgs *args, int64_t *counts)
{
    int64_t n = test->n, m = test->m, d = test->d, e = test->e;
    strides(n, d, test->turned, test->batch1, &args->q0, &args->q1, &args->q_n, &args->q_d,
            &counts[0], test->batch0);
    strides(m, d, test->turned, test->batch1, &args->k0, &args->k1, &args->k_n, &args->k_d,
            &counts[1], test->batch0);
    strides(m, e, test->turned, test->batch1, &args->v0, &args->v1, &args->v_n, &args->v_d,
            &counts[2], test->batch0);
    strides(n, e, test->turned, test->batch1, &args->o0, &args->o1, &args->o_n, &args->o_d,
            &counts[3], test->batch0);
    args->q = (int64_t)random_array(counts[0]);
    args->k = (int64_t)random_array(counts[1]);
    args->v = (int64_t)random_array(counts[2]);
    for (int64_t i = 0; test->mask == 3 && i < counts[0]; i++)
        ((PvReal *)args->q)[i] += (PvReal)40 / (PvReal)d;
    for (int64_t i = 0; test->mask == 3 && i < counts[1]; i++)
        ((PvReal *)args->k)[i] = ((PvReal *)args->k)[i] / 16 - 2;
    if (test->mask == 1 || test->mask == 2) {
        args->mask_m = 1;
        args->mask_n = test->mask == 1 ? m : 0;
        args->mask1 = test->mask == 1 ? n * m : 0;
        args->mask0 = test->mask == 1 ? args->mask1 * test->batch1 : m;
        args->mask = (int64_t)random_array(test->batch0 * test->batch1 * n * m);
    }
}

// The error in the norm, where it is not of sums that cancel: numbers of two parts (split.h)
// instead of three would err by more.
static void check_norm(const char *name, const Output *out)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < out->count; i++) {
        double away = (double)out->data[i] - out->expected[i];
        error += away * away;
        norm += out->expected[i] == MARK ? 0 : out->expected[i] * out->expected[i];
    }
    if (sqrt(error) > (sizeof(PvReal) == 4 ? 4e-6 : 1e-13) * sqrt(norm))
        fail_msg("%s: error %.2g", name, sqrt(error / norm));
}

static void check_rotary(AttentionCase test, RotaryCase rotary)
{
    int64_t counts[4];
    AttentionGradArgs grad = {.f = {.batch0 = test.batch0,
                                    .batch1 = test.batch1,
                                    .batch2 = 1,
                                    .n = test.n,
                                    .m = test.m,
                                    .d = test.d,
                                    .e = test.e,
                                    .causal = test.causal,
                                    .scale = real_bits(1.3)}};
    grad.f.q_rotary = rotary_of(test.n, rotary.q_width, rotary.partner);
    grad.f.k_rotary = rotary_of(test.m, rotary.k_width, rotary.partner);
    AttentionArgs *args = &grad.f;
    fill_operands(&test, args, counts);
    int64_t problems = test.batch0 * test.batch1;
    Output outs[2] = {output(counts[3]), output(problems * test.n)};
    args->o = (int64_t)outs[0].data;
    args->lse = (int64_t)outs[1].data;

    memcpy(&grad.dq0,
           (int64_t[]){args->q0, args->q1, 0, args->q_n, args->q_d, args->k0, args->k1, 0,
                       args->k_n, args->k_d, args->v0, args->v1, 0, args->v_n, args->v_d},
           15 * sizeof(int64_t));
    Output grads[3] = {output(counts[0]), output(counts[1]), output(counts[2])};
    PvReal *d_o = random_array(counts[3]);
    grad.d_o = (int64_t)d_o;
    grad.dq = (int64_t)grads[0].data;
    grad.dk = (int64_t)grads[1].data;
    grad.dv = (int64_t)grads[2].data;

    char name[120];
    snprintf(name, sizeof name, "attention %lld x %lld, n %lld m %lld d %lld e %lld, turned %d",
             (long long)test.batch0, (long long)test.batch1, (long long)test.n, (long long)test.m,
             (long long)test.d, (long long)test.e, test.turned);
    double *p = hold((size_t)(problems * test.n * test.m) * sizeof(double));
    Expect all[64];
    assert_true(problems <= 64);
    for (int64_t i = 0; i < problems; i++) {
        int64_t i0 = i / test.batch1, i1 = i % test.batch1;
        int64_t q = i0 * args->q0 + i1 * args->q1, k = i0 * args->k0 + i1 * args->k1;
        int64_t v = i0 * args->v0 + i1 * args->v1, o = i0 * args->o0 + i1 * args->o1;
        all[i] = (Expect){
            .q = turned(&args->q_rotary, (const PvReal *)args->q, q, counts[0], args->q_n,
                        args->q_d, test.n),
            .k = turned(&args->k_rotary, (const PvReal *)args->k, k, counts[1], args->k_n,
                        args->k_d, test.m),
            .v = (const PvReal *)args->v + v,
            .mask = args->mask
                        ? (const PvReal *)args->mask + i0 * args->mask0 + i1 * args->mask1
                        : NULL,
            .o = outs[0].data + o,
            .d_o = d_o + o,
            .p = p + i * test.n * test.m,
            .o_out = outs[0].expected + o,
            .lse_out = outs[1].expected + i * test.n,
            .dq = grads[0].expected + q,
            .dk = grads[1].expected + k,
            .dv = grads[2].expected + v,
        };
        expect_forward(args, &all[i]);
    }
    if (test.batch1 % 2 == 0)
        split_problems(&grad);
    check(name, pv_attention, args, pv_attention_scratch(args, sizeof(PvReal)), outs, 2, 100);
    for (int64_t i = 0; i < problems; i++) {
        expect_backward(&grad, &all[i]);
        turn_back(&args->q_rotary, all[i].dq, grad.dq_n, grad.dq_d, test.n);
        turn_back(&args->k_rotary, all[i].dk, grad.dk_n, grad.dk_d, test.m);
    }
    check(name, pv_attention_grad, &grad, pv_attention_grad_scratch(&grad, sizeof(PvReal)), grads,
          3, 400);
    for (int i = 0; i < 3 && test.m >= 64 && test.mask != 3; i++)
        check_norm(name, &grads[i]);
    release();
}

static void check_attention(AttentionCase test)
{
    check_rotary(test, (RotaryCase){0, 0, PV_ROTARY_PAIRS});
}

static void test_attention_sizes(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 2, 12, 16, 17, 31, 33, 64, 100};
    const int count = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < count; j++) {
            for (int turned = 0; turned < 2; turned++)
                check_attention(
                    (AttentionCase){1, 2, sizes[i], sizes[j], 16 + i, 16 + j, turned, 0, false});
        }
    }
}

static void test_attention_blocks(void **state)
{
    (void)state;
    for (int turned = 0; turned < 2; turned++) {
        check_attention((AttentionCase){1, 1, 600, 300, 48, 48, turned, 0, false});
        check_attention((AttentionCase){1, 3, 128, 550, 64, 20, turned, 1, false});
        check_attention((AttentionCase){2, 2, 300, 300, 20, 40, turned, 2, false});
        // scores that short vectors bound, and scores that they do not
        check_attention((AttentionCase){1, 2, 300, 530, 16, 16, turned, 0, false});
        check_attention((AttentionCase){1, 1, 260, 280, 64, 16, turned, 0, false});
        check_attention((AttentionCase){1, 2, 290, 530, 32, 80, turned, 0, false});
    }
}

// Lengths from which a gradient is made by split.h, where there is its unit: sizes of heads,
// lengths that are no multiples of tiles, several blocks of keys.
static void test_attention_long(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{8, 8},   {9, 16},  {16, 16}, {16, 12}, {7, 16},
                                {16, 32}, {32, 32}, {20, 17}, {48, 64}, {64, 64}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int turned = 0; turned < 2; turned++)
            check_attention((AttentionCase){1, 2, 150 - turned, 128 + 3 * (int64_t)i, sizes[i][0],
                                            sizes[i][1], turned, 0, false});
    }
    check_attention((AttentionCase){1, 1, 129, 1100, 16, 16, true, 0, false});
    check_attention((AttentionCase){1, 1, 128, 1100, 32, 32, false, 0, false});
    check_attention((AttentionCase){1, 1, 130, 301, 96, 128, true, 0, false});
    check_attention((AttentionCase){1, 1, 1030, 128, 16, 16, false, 0, false});
    // what is behind the last key must not overflow
    check_attention((AttentionCase){1, 2, 130, 137, 16, 16, true, 3, false});
    check_attention((AttentionCase){1, 2, 130, 137, 32, 32, true, 3, false});
    // shorter ones, and those with a mask, are not
    check_attention((AttentionCase){1, 2, 127, 300, 16, 16, true, 0, false});
    check_attention((AttentionCase){2, 1, 140, 130, 16, 16, true, 1, false});
    check_attention((AttentionCase){1, 2, 140, 130, 64, 64, true, 2, false});
}

static void test_attention_causal(void **state)
{
    (void)state;
    for (int turned = 0; turned < 2; turned++) {
        check_attention((AttentionCase){1, 2, 17, 17, 16, 16, turned, 0, true});
        check_attention((AttentionCase){2, 1, 300, 300, 16, 16, turned, 0, true});
        check_attention((AttentionCase){2, 1, 40, 300, 16, 16, turned, 1, true});
        check_attention((AttentionCase){2, 1, 300, 40, 16, 16, turned, 0, true});
        check_attention((AttentionCase){1, 2, 200, 300, 32, 40, turned, 1, true});
    }
}

static void test_attention_rotary(void **state)
{
    (void)state;
    for (int turned = 0; turned < 2; turned++) {
        check_rotary((AttentionCase){2, 3, 16, 16, 64, 64, turned, 0, false},
                     (RotaryCase){64, 64, PV_ROTARY_PAIRS});
        check_rotary((AttentionCase){1, 2, 33, 50, 20, 12, turned, 1, false},
                     (RotaryCase){12, 20, PV_ROTARY_PAIRS});
        check_rotary((AttentionCase){1, 2, 300, 270, 24, 24, turned, 0, true},
                     (RotaryCase){24, 8, PV_ROTARY_NEGATED});
        check_rotary((AttentionCase){1, 1, 600, 550, 16, 16, turned, 0, false},
                     (RotaryCase){16, 0, PV_ROTARY_HALVES});
        check_rotary((AttentionCase){1, 1, 20, 130, 40, 16, turned, 0, false},
                     (RotaryCase){0, 32, PV_ROTARY_NEGATED});
        check_rotary((AttentionCase){1, 2, 140, 150, 16, 16, turned, 0, false},
                     (RotaryCase){16, 16, PV_ROTARY_PAIRS});
        check_rotary((AttentionCase){1, 2, 135, 145, 40, 40, turned, 0, false},
                     (RotaryCase){32, 40, PV_ROTARY_NEGATED});
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_sizes),  cmocka_unit_test(test_attention_blocks),
        cmocka_unit_test(test_attention_long),   cmocka_unit_test(test_attention_causal),
        cmocka_unit_test(test_attention_rotary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
