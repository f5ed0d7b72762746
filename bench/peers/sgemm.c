// The rate of the BLAS: best of several sgemms of 2048^3, in GFLOP/s.
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(void)
{
    enum { N = 2048 };
    float *a = calloc(3 * (size_t)N * N, sizeof *a);
    if (!a)
        return 3;
    float *b = a + (size_t)N * N, *c = b + (size_t)N * N;
    for (size_t i = 0; i < 2 * (size_t)N * N; i++)
        a[i] = (float)(i % 17) * 0.125f - 1;
    double best = 1e9;
    for (int round = 0; round < 8; round++) {
        double start = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, N, N, N, 1, a, N, b, N, 0, c, N);
        double spent = now() - start;
        best = spent < best ? spent : best;
    }
    printf("%.1f\n", 2.0 * N * N * N / best * 1e-9);
    free(a);
    return 0;
}
