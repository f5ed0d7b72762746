// kernel: gemm_mma.cu
// fault: FAULT_WAIT
// fault: FAULT_SYNC
// fault: FAULT_BOUNDS
#include "check.h"

extern "C" void gemm_bf16__simt(void **args);
extern "C" const int gemm_bf16__shared;

static void check(int M, int N, int K)
{
    Tensor A = make_tensor((size_t)M * K, 1, 0), B = make_tensor((size_t)N * K, 1, 0);
    Tensor C = make_tensor((size_t)M * N, 0, 0);
    float *bias = make_vector((size_t)N, 1, 0);
    Floats expected((size_t)M * N);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float sum = bias[n];
            for (int k = 0; k < K; k++)
                sum += A.value[(size_t)m * K + k] * B.value[(size_t)n * K + k];
            expected[(size_t)m * N + n] = sum;
        }
    void *args[] = {&A.device, &B.device, &bias, &C.device, &M, &N, &K};
    run_modes("gemm_bf16", 4e-3, [&] {
        poison(C.device, expected.size());
        simt_launch("gemm_bf16", gemm_bf16__simt,
                    SimtDim((unsigned)(N + 127) / 128, (unsigned)(M + 127) / 128), SimtDim(256),
                    (size_t)gemm_bf16__shared, args);
        return relative_error(C.device, expected);
    });
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    check(200, 136, 192); // parts of tiles, the ring turns twice
    if (!fault_expected)
        check(64, 8, 32); // fewer steps than stages
    return finish();
}
