// kernel: conv_gather.cu
// fault: FAULT_STAGE
#include "check.h"

extern "C" void conv_gather__simt(void **args);
extern "C" const int conv_gather__shared;
struct Shape { // as the kernel's ConvShape
    int N, H, W, C, K, R, S, P, Q, stride, pad;
};

static float output(const Shape &d, const Floats &x, const Floats &w, int n, int p, int q, int k)
{
    float sum = 0;
    for (int r = 0; r < d.R; r++)
        for (int s = 0; s < d.S; s++) {
            int h = p * d.stride + r - d.pad, v = q * d.stride + s - d.pad;
            if (h < 0 || h >= d.H || v < 0 || v >= d.W)
                continue;
            const float *from = &x[(((size_t)n * d.H + h) * d.W + v) * d.C];
            const float *tap = &w[(((size_t)k * d.R + r) * d.S + s) * d.C];
            for (int c = 0; c < d.C; c++)
                sum += from[c] * tap[c];
        }
    return sum;
}

static void check(int N, int H, int W, int C, int K, int R, int S, int stride, int pad)
{
    int P = (H + 2 * pad - R) / stride + 1, Q = (W + 2 * pad - S) / stride + 1;
    Shape shape = {N, H, W, C, K, R, S, P, Q, stride, pad};
    Tensor x = make_tensor((size_t)N * H * W * C, 1, 0),
           w = make_tensor((size_t)K * R * S * C, 1, 0);
    Tensor y = make_tensor((size_t)N * P * Q * K, 0, 0);
    float *bias = make_vector((size_t)K, 1, 0);
    Floats expected;
    for (int i = 0; i < N * P * Q; i++)
        for (int k = 0; k < K; k++)
            expected.push_back(bias[k] +
                               output(shape, x.value, w.value, i / (P * Q), i / Q % P, i % Q, k));
    void *args[] = {&x.device, &w.device, &bias, &y.device, &shape};
    run_modes("conv_gather", 4e-3, [&] {
        poison(y.device, expected.size());
        simt_launch("conv_gather", conv_gather__simt,
                    SimtDim((unsigned)(K + 127) / 128, (unsigned)(N * P * Q + 127) / 128),
                    SimtDim(256), (size_t)conv_gather__shared, args);
        return relative_error(y.device, expected);
    });
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    check(2, 9, 7, 32, 40, 3, 3, 1, 1);
    if (!fault_expected) {
        check(1, 8, 10, 64, 136, 4, 4, 2, 1);
        check(3, 7, 7, 32, 8, 1, 1, 1, 0);
    }
    return finish();
}
