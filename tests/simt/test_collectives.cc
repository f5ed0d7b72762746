// kernel: collectives.cu
// Collectives against their definition. With --cost: what one costs the emulator, a thread.
#include <time.h>
#include "check.h"

extern "C" {
void collectives__simt(void **args);
void wgmma_product__simt(void **args);
void matrices__simt(void **args);
void loop__simt(void **args);
}

static double check_collectives(uint32_t *out)
{
    void *args[] = {&out};
    simt_launch("collectives", collectives__simt, SimtDim(1), SimtDim(32), 256, args);
    int wrong = 0;
    for (uint32_t t = 0; t < 32; t++) {
        uint32_t expected[8] = {
            7,      t ^ 5,      t + 3 < 32 ? t + 3 : t, t >= 3 ? t - 3 : t, 0x49249249u, 2,
            31 - t, 31 * 32 / 2};
        for (uint32_t row = 0; row < 8; row++)
            wrong += out[row * 32 + t] != expected[row];
    }
    return wrong;
}

static double check_matrices(uint32_t *in, uint32_t *out)
{
    void *args[] = {&in, &out};
    for (uint32_t i = 0; i < 128; i++)
        in[i] = i * 0x10001u + 7;
    simt_launch("matrices", matrices__simt, SimtDim(1), SimtDim(32), 512, args);
    return memcmp(in, out, 512);
}

static double check_wgmma(int n)
{
    size_t rows = (size_t)(64 + n);
    Tensor operands = make_tensor(rows * 64, 1, 0), swizzled = make_tensor(rows * 64, 0, 0);
    float *out = make_vector((size_t)(64 * n), 0, 0);
    for (size_t i = 0; i < rows * 64; i++) // 16-byte chunks of a row are exchanged by its number
        swizzled.device[i ^ (i / 64 % 8 * 8)] = operands.device[i];
    void *args[] = {&swizzled.device, &out, &n};
    simt_launch("wgmma_product", wgmma_product__simt, SimtDim(1), SimtDim(128), rows * 128, args);
    double worst = 0;
    for (int i = 0; i < 64 * n; i++) {
        double sum = 0;
        for (int k = 0; k < 64; k++)
            sum += (double)operands.value[(size_t)(i / n * 64 + k)] *
                   operands.value[(size_t)((64 + i % n) * 64 + k)];
        double error = fabs(out[i] - sum);
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static int print_costs(void)
{
    static const char *const names[] = {"__syncthreads", "__shfl_xor_sync", "mma.sync"};
    float *out = make_vector(1024, 0, 0);
    for (int threads = 32; threads <= 1024; threads *= 4)
        for (int kind = 0; kind < 3; kind++) {
            int count = 1000000 / threads;
            void *args[] = {&out, &count, &kind};
            clock_t start = clock();
            simt_launch("loop", loop__simt, SimtDim(1), SimtDim((unsigned)threads), 0, args);
            double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
            printf("%-16s %4d threads: %.1f ns a thread\n", names[kind], threads,
                   seconds / count / threads * 1e9);
        }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--cost") == 0)
        return print_costs();
    begin(argc, argv);
    uint32_t *in = (uint32_t *)simt_malloc(512), *out = (uint32_t *)simt_malloc(1024);
    run_modes("collectives", 0.5, [&] { return check_collectives(out); });
    run_modes("matrices", 0.5, [&] { return check_matrices(in, out) != 0 ? 1.0 : 0.0; });
    run_modes("wgmma 64", 1e-4, [&] { return check_wgmma(64); });
    run_modes("wgmma 256", 1e-4, [&] { return check_wgmma(256); });
    return finish();
}
