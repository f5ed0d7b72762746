// kernel: conv_wgmma.cu  CONV_H=8 CONV_W=8 CONV_C=64 CONV_K=128
// kernel: conv_wgmma.cu  CONV_H=8 CONV_W=32 CONV_C=128 CONV_K=256
// fault: FAULT_EMPTY
// fault: FAULT_EARLY
// fault: FAULT_FENCE
#include "conv_reference.h"

extern "C" void conv3x3_wgmma__simt(void **args);
extern "C" const int conv3x3_wgmma__shared, conv3x3_wgmma__rows, conv3x3_wgmma__images;

int main(int argc, char **argv)
{
    begin(argc, argv);
    int N = PIXELS >= 128 ? 1 : 4, m_tiles = N * PIXELS / 128, n_tiles = K / 128;
    Tensor x = make_tensor((size_t)N * PIXELS * C, 1, 0), w = make_tensor((size_t)K * 9 * C, 1, 0);
    Tensor y = make_tensor((size_t)N * PIXELS * K, 0, 0);
    float *bias = make_vector(K, 1, 0);
    Floats expected = reference_fprop(N, x.value, w.value, bias);
    Map x_map = image_map(x.device, N, C, 128), w_map = matrix_map(w.device, K, 9 * C, 128);
    Map y_map = matrix_map(y.device, N * PIXELS, K, 64);
    void *args[] = {&x_map, &w_map, &y_map, &bias, &m_tiles, &n_tiles};
    run_modes("conv3x3_wgmma", 4e-3, [&] {
        poison(y.device, expected.size());
        simt_launch("conv3x3_wgmma", conv3x3_wgmma__simt, SimtDim(1), SimtDim(384),
                    (size_t)conv3x3_wgmma__shared, args);
        return relative_error(y.device, expected);
    });
    return finish();
}
