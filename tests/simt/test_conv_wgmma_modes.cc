// kernel: conv_wgmma_modes.cu  CONV_MODE=2 CONV_H=8 CONV_W=8 CONV_C=128 CONV_K=128
// kernel: conv_wgmma_modes.cu  CONV_MODE=0 CONV_H=8 CONV_W=8 CONV_C=64 CONV_K=128
// kernel: conv_wgmma_modes.cu  CONV_MODE=1 CONV_H=8 CONV_W=8 CONV_C=128 CONV_K=64
// kernel: conv_wgmma_modes.cu  CONV_MODE=1 CONV_H=4 CONV_W=32 CONV_C=128 CONV_K=64
// fault: FAULT_MAJOR
#include "conv_reference.h"

extern "C" void conv3x3_modes__simt(void **args);
extern "C" const int conv3x3_modes__shared;
enum { FPROP, DGRAD, WGRAD };

int main(int argc, char **argv)
{
    begin(argc, argv);
    int N = PIXELS >= 128 ? 1 : 4, pixels = N * PIXELS, m_tiles = pixels / 128, n_tiles;
    Tensor x = make_tensor((size_t)pixels * C, 1, 0), w = make_tensor((size_t)K * 9 * C, 1, 0);
    Tensor y = make_tensor((size_t)pixels * K, 1, 0), *result;
    Floats expected;
    Map a, b, to;
    if (CONV_MODE == FPROP) {
        expected = reference_fprop(N, x.value, w.value, nullptr);
        a = image_map(x.device, N, C, 128);
        b = matrix_map(w.device, K, 9 * C, 128);
        to = matrix_map(y.device, pixels, K, 64);
        n_tiles = K / 128;
        result = &y;
    } else if (CONV_MODE == DGRAD) {
        expected = reference_dgrad(N, y.value, w.value);
        a = image_map(y.device, N, K, 128);
        b = matrix_map(w.device, K, 9 * C, 64);
        to = matrix_map(x.device, pixels, C, 64);
        n_tiles = C / 128;
        result = &x;
    } else {
        expected = reference_wgrad(N, y.value, x.value);
        a = image_map(y.device, N, K, 64);
        b = image_map(x.device, N, C, 64);
        to = matrix_map(w.device, K, 9 * C, 64);
        m_tiles = K / 128;
        n_tiles = C / 128;
        result = &w;
    }
    void *args[] = {&a, &b, &to, &m_tiles, &n_tiles, &N};
    static const char *names[] = {"conv3x3 fprop", "conv3x3 dgrad", "conv3x3 wgrad"};
    run_modes(names[CONV_MODE], 4e-3, [&] {
        poison(result->device, expected.size());
        simt_launch(names[CONV_MODE], conv3x3_modes__simt, SimtDim(CONV_MODE == WGRAD ? 3 : 1),
                    SimtDim(384), (size_t)conv3x3_modes__shared, args);
        return relative_error(result->device, expected);
    });
    return finish();
}
