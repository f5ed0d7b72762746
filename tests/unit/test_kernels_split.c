// link: pvdm_kernels32
// Products large enough for split.h (where the processor has its unit, else the plain ones): their
// error, and segments that share A.
#include "codegen/cpu/split.h"
#include "tests/unit/kernel_check.h"

// C = A B of numbers whose sizes differ by 2^20 from row to row and from column to column. The
// error in the norm, each row and column in its own size, must be that of sums in PvReal: numbers
// of two parts only would err by more than 2e-6.
static void check_error(int64_t m, int64_t n, int64_t k, bool a_turned, bool b_turned)
{
    PvReal *a = random_array(m * k), *b = random_array(k * n), *c = random_array(m * n);
    GemmArgs args = {.c = (int64_t)c, .a = (int64_t)a, .b = (int64_t)b, .m = m, .n = n, .k = k,
                     .batch0 = 1, .batch1 = 1, .c_m = n,
                     .a_m = a_turned ? 1 : k, .a_k = a_turned ? m : 1,
                     .b_n = b_turned ? k : 1, .b_k = b_turned ? 1 : n};
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p++)
            a[i * args.a_m + p * args.a_k] *= (PvReal)ldexp(1, (int)(i % 3 - 1) * 20);
    for (int64_t j = 0; j < n; j++)
        for (int64_t p = 0; p < k; p++)
            b[j * args.b_n + p * args.b_k] *= (PvReal)ldexp(1, (int)(j % 5 - 2) * 10);
    launch(pv_gemm, &args, pv_gemm_scratch(&args, sizeof(PvReal)), 2);
    double error = 0, norm = 0;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double size = ldexp(1, (int)(i % 3 - 1) * 20 + (int)(j % 5 - 2) * 10), sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += (double)a[i * args.a_m + p * args.a_k] *
                       (double)b[j * args.b_n + p * args.b_k];
            double away = ((double)c[i * n + j] - sum) / size;
            error += away * away;
            norm += sum / size * (sum / size);
        }
    }
    if (sqrt(error / norm) > (sizeof(PvReal) == 4 ? 1e-6 : 1e-14))
        fail_msg("%lld x %lld x %lld, turned %d %d: error %.2g", (long long)m, (long long)n,
                 (long long)k, a_turned, b_turned, sqrt(error / norm));
    release();
}

static void test_errors(void **state)
{
    (void)state;
    for (int turned = 0; turned < 4; turned++) {
        check_error(200, 150, 500, turned & 1, turned & 2);
        check_error(300, 530, 33, turned & 1, turned & 2);
    }
}

// Three segments with one A, normalized in their ways, with biases and residuals: against sums in
// double; panels hold columns of two or three of them.
static void check_segments(int64_t m, int64_t k, const int64_t *n, int64_t images)
{
    enum { PARTS = 3 };
    GemmArgs parts[PARTS];
    Output outs[PARTS];
    PvReal *a = random_array(m * k), *bias = random_array(m), *first[PARTS];
    int64_t scratch = 0;
    for (int s = 0; s < PARTS; s++) {
        int64_t b_k = n[s] + s, r_m = n[s] + 2;
        outs[s] = output(images * m * n[s]);
        PvReal *b = random_array(images * k * b_k), *table = random_array(images * 2 * k);
        PvReal *residual = random_array(images * m * r_m);
        parts[s] = (GemmArgs){
            .c = (int64_t)outs[s].data, .a = (int64_t)a, .b = (int64_t)b, .m = m, .n = n[s], .k = k,
            .batch0 = images, .batch1 = 1, .a_m = k, .a_k = 1, .b0 = k * b_k, .b_k = b_k, .b_n = 1,
            .c0 = m * n[s], .c_m = n[s], .bias = (int64_t)bias, .bias_axis = 1,
            .residual = (int64_t)residual, .r0 = m * r_m, .r_m = r_m};
        if (s != 1)
            parts[s].norm = (NormLoad){(int64_t)table, 2 * k, k, PV_ACT_RELU};
        int64_t need = pv_gemm_scratch(&parts[s], sizeof(PvReal));
        scratch = need > scratch ? need : scratch;
        for (int64_t at = 0; at < outs[s].count; at++) {
            int64_t image = at / (m * n[s]), i = at / n[s] % m, j = at % n[s];
            double sum = (double)bias[i];
            for (int64_t p = 0; p < k; p++) {
                double x = (double)b[(image * k + p) * b_k + j];
                const PvReal *t = table + image * 2 * k + p;
                if (s != 1)
                    x = fmax(0, x * (double)t[0] + (double)t[k]);
                sum += x * (double)a[i * k + p];
            }
            outs[s].expected[at] = sum + (double)residual[(image * m + i) * r_m + j];
        }
        first[s] = hold((size_t)outs[s].count * sizeof(PvReal));
    }
    // with scratch for any number of columns, and with what the largest of them asks for
    for (int turn = 0; turn < 4; turn++) {
        launch_segments(pv_gemm, parts, PARTS, turn & 2 ? scratch : 8 << 20, 1 + (turn & 1));
        for (int s = 0; s < PARTS; s++) {
            for (int64_t i = 0; i < outs[s].count; i++) {
                double want = outs[s].expected[i], got = (double)outs[s].data[i];
                if (fabs(got - want) > (sizeof(PvReal) == 4 ? 2e-5 : 1e-13) * (1 + fabs(want)))
                    fail_msg("segment %d [%lld] is %.9g, not %.9g", s, (long long)i, got, want);
                if (turn & 1 && outs[s].data[i] != first[s][i])
                    fail_msg("segment %d depends on the number of threads", s);
                first[s][i] = outs[s].data[i];
            }
        }
    }
    release();
}

static void test_segments(void **state)
{
    (void)state;
    check_segments(40, 70, (const int64_t[]){16, 8, 8}, 2);
    check_segments(200, 400, (const int64_t[]){64, 50, 32}, 1);
    check_segments(230, 60, (const int64_t[]){9, 300, 5}, 2);
}

// An infinite number tells the two ways apart: parts of it are NaN. Without PvRun.split no product
// is made of parts, on any machine.
static void test_plain(void **state)
{
    enum { SIZE = 256 };
    (void)state;
    for (int plainly = 0; plainly < 2; plainly++) {
        PvReal *a = random_array(SIZE * SIZE), *b = random_array(SIZE * SIZE);
        PvReal *c = random_array(SIZE * SIZE);
        GemmArgs args = {.c = (int64_t)c, .a = (int64_t)a, .b = (int64_t)b, .m = SIZE, .n = SIZE,
                         .k = SIZE, .batch0 = 1, .batch1 = 1, .a_m = SIZE, .a_k = 1, .b_k = SIZE,
                         .b_n = 1, .c_m = SIZE};
        AttentionArgs attention = {.o = (int64_t)c, .q = (int64_t)a, .k = (int64_t)a,
                                   .v = (int64_t)b, .batch0 = 1, .batch1 = 1, .batch2 = 1,
                                   .n = SIZE, .m = SIZE, .d = SIZE, .e = SIZE, .q_n = SIZE,
                                   .q_d = 1, .k_n = SIZE, .k_d = 1, .v_n = SIZE, .v_d = 1,
                                   .o_n = SIZE, .o_d = 1};
        bool parts = sizeof(PvReal) == 4 && !plainly && pv_split_ready();
        b[3] = (PvReal)INFINITY; // row 0, column 3
        launch_plainly = plainly;
        launch(pv_gemm, &args, pv_gemm_scratch(&args, sizeof(PvReal)), 1);
        for (int i = 0; i < SIZE; i++)
            assert_true(parts ? isnan(c[i * SIZE + 3]) : isinf(c[i * SIZE + 3]));
        launch(pv_attention, &attention, pv_attention_scratch(&attention, sizeof(PvReal)), 1);
        for (int i = 0; i < SIZE; i++)
            assert_true(parts ? isnan(c[i * SIZE + 3]) : isinf(c[i * SIZE + 3]));
        release();
    }
    launch_plainly = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
