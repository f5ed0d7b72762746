/* Plain 3 x 3 convolutions, padding 1, stride 1, channels last, and the maps of their tensors. */
#pragma once
#include "check.h"

enum { H = CONV_H, W = CONV_W, C = CONV_C, K = CONV_K, PIXELS = H * W };

// Calls visit(at of y, at of x, at of w) for every output pixel and tap inside the image, with the
// offsets of channel 0; w is [K, 3, 3, C] and its offset that of k = 0.
template <class Visit> void for_taps(int N, Visit visit)
{
    for (int i = 0; i < N * PIXELS; i++)
        for (int tap = 0; tap < 9; tap++) {
            int h = i / W % H + tap / 3 - 1, v = i % W + tap % 3 - 1;
            if (h < 0 || h >= H || v < 0 || v >= W)
                continue;
            size_t x = (((size_t)(i / PIXELS) * H + (size_t)h) * W + (size_t)v) * C;
            visit((size_t)i * K, x, (size_t)tap * C);
        }
}

static inline Floats reference_fprop(int N, const Floats &x, const Floats &w, const float *bias)
{
    Floats y((size_t)N * PIXELS * K);
    for (size_t i = 0; i < y.size(); i++)
        y[i] = bias ? bias[i % K] : 0;
    for_taps(N, [&](size_t at_y, size_t at_x, size_t at_w) {
        for (size_t k = 0; k < K; k++)
            for (size_t c = 0; c < C; c++)
                y[at_y + k] += x[at_x + c] * w[k * 9 * C + at_w + c];
    });
    return y;
}

static inline Floats reference_dgrad(int N, const Floats &dy, const Floats &w)
{
    Floats dx((size_t)N * PIXELS * C);
    for_taps(N, [&](size_t at_y, size_t at_x, size_t at_w) {
        for (size_t k = 0; k < K; k++)
            for (size_t c = 0; c < C; c++)
                dx[at_x + c] += dy[at_y + k] * w[k * 9 * C + at_w + c];
    });
    return dx;
}

static inline Floats reference_wgrad(int N, const Floats &dy, const Floats &x)
{
    Floats dw((size_t)K * 9 * C);
    for_taps(N, [&](size_t at_y, size_t at_x, size_t at_w) {
        for (size_t k = 0; k < K; k++)
            for (size_t c = 0; c < C; c++)
                dw[k * 9 * C + at_w + c] += dy[at_y + k] * x[at_x + c];
    });
    return dw;
}

struct alignas(64) Map {
    unsigned char bytes[128];
};

// [N, H, W, channels] in boxes of 64 channels and `pixels` pixels: whole rows, or whole images.
static inline Map image_map(bf16 *base, int N, int channels, int pixels)
{
    Map map;
    uint64_t c = (uint64_t)channels;
    uint64_t sizes[] = {c, W, H, (uint64_t)N}, strides[] = {c * 2, W * c * 2, PIXELS * c * 2};
    uint32_t rows = (uint32_t)(PIXELS >= pixels ? pixels / W : H);
    uint32_t box[] = {64, W, rows, (uint32_t)(PIXELS >= pixels ? 1 : pixels / PIXELS)};
    if (simt_tensor_map_tiled(&map, 2, 4, base, sizes, strides, box, nullptr, 3))
        failed++;
    return map;
}

// [rows, columns] in boxes of 64 columns.
static inline Map matrix_map(bf16 *base, int rows, int columns, int box_rows)
{
    Map map;
    uint64_t sizes[] = {(uint64_t)columns, (uint64_t)rows}, strides[] = {(uint64_t)columns * 2};
    uint32_t box[] = {64, (uint32_t)box_rows};
    if (simt_tensor_map_tiled(&map, 2, 2, base, sizes, strides, box, nullptr, 3))
        failed++;
    return map;
}
