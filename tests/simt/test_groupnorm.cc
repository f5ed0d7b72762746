// kernel: groupnorm.cu  GN_HW=64 GN_C=64 GN_G=4 GN_T=64
// kernel: groupnorm.cu  GN_HW=37 GN_C=256 GN_G=32 GN_T=128
// fault: FAULT_REDUCTION
#include "check.h"

extern "C" void groupnorm_silu__simt(void **args);
extern "C" const int groupnorm_silu__shared;
enum { N = 2, HW = GN_HW, C = GN_C, G = GN_G, CG = C / G };

static Floats reference(const Floats &x, const float *gamma, const float *beta, const Floats &mod,
                        float eps)
{
    Floats y(x.size());
    for (int n = 0; n < N; n++)
        for (int g = 0; g < G; g++) {
            const float *from = &x[(size_t)n * HW * C + g * CG];
            double sum = 0, squares = 0;
            for (int i = 0; i < HW * CG; i++)
                sum += from[i / CG * C + i % CG];
            double mean = sum / (HW * CG);
            for (int i = 0; i < HW * CG; i++)
                squares += pow(from[i / CG * C + i % CG] - mean, 2);
            double scale = 1 / sqrt(squares / (HW * CG) + eps);
            for (int i = 0; i < HW * CG; i++) {
                int c = g * CG + i % CG;
                double v = (from[i / CG * C + i % CG] - mean) * scale * gamma[c] + beta[c];
                v = v * (1 + mod[n * 2 * C + c]) + mod[n * 2 * C + C + c];
                y[((size_t)n * HW + i / CG) * C + c] = (float)(v / (1 + exp(-v)));
            }
        }
    return y;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    size_t count = (size_t)N * HW * C;
    Tensor x = make_tensor(count, 2, 0.3f), mod = make_tensor(N * 2 * C, 0.2f, 0);
    Tensor y = make_tensor(count, 0, 0);
    float *gamma = make_vector(C, 0.1f, 1), *beta = make_vector(C, 0.1f, 0), eps = 1e-5f;
    Floats expected = reference(x.value, gamma, beta, mod.value, eps);
    void *args[] = {&x.device, &gamma, &beta, &mod.device, &y.device, &eps};
    run_modes("groupnorm_silu", 4e-3, [&] {
        poison(y.device, count);
        simt_launch("groupnorm_silu", groupnorm_silu__simt, SimtDim(G, N), SimtDim(GN_T),
                    (size_t)groupnorm_silu__shared, args);
        return relative_error(y.device, expected);
    });
    return finish();
}
