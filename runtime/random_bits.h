// The numbers behind every draw: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011) and, on top of it, uniforms, integers and normals by Box and Muller.
// Logarithm, sine and cosine are polynomials here, in float with every multiply-add an explicit
// fmaf, so that the bits are the same on every machine, compiler and target. Nothing here is
// followed by an addition that a compiler could contract, unless the caller adds one: store first.
//
// Counter: (block low, block high, draw, stream), key: (seed low, seed high); block = element / 4,
// word = element % 4. Element = row-major index in the logical shape.
//
// The CUDA kernel includes this too, inside its namespace: there PV_BITS_FN is defined before.
#ifndef PV_RANDOM_BITS_H
#define PV_RANDOM_BITS_H

#ifdef __CUDACC_RTC__
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif
#ifndef PV_BITS_FN
#define PV_BITS_FN static inline
#endif

typedef struct {
    uint32_t word[4];
} PvBits;

PV_BITS_FN PvBits pv_philox(const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    PvBits bits = {{c0, c1, c2, c3}};
    return bits;
}

// The four words of elements 4 block .. 4 block + 3.
PV_BITS_FN PvBits pv_random_block(uint64_t seed, uint32_t stream, uint32_t draw, uint64_t block)
{
    uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), draw, stream};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    return pv_philox(counter, key);
}

// [0, 1), multiples of 2^-24
PV_BITS_FN float pv_bits_uniform(uint32_t word)
{
    return (float)(word >> 8) * 0x1p-24f;
}

// lo .. hi - 1 (lo where that is empty), by multiply and shift
PV_BITS_FN int64_t pv_bits_int(uint32_t word, int64_t lo, int64_t hi)
{
    if (hi <= lo)
        return lo;
    uint64_t range = (uint64_t)hi - (uint64_t)lo; // word * range >> 32, in two halves
    uint64_t high = word * (range >> 32), low = word * (range & 0xFFFFFFFFu) >> 32;
    return (int64_t)((uint64_t)lo + high + low);
}

// Natural logarithm of a positive normal float, within 2 units in the last place.
PV_BITS_FN float pv_bits_log(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    // x = m 2^e, m in [sqrt 1/2, sqrt 2): then log x = e log 2 + log(1 + f), f = m - 1
    uint32_t shifted = bits - 0x3F3504F3u;
    int32_t exponent = (int32_t)shifted >> 23;
    uint32_t mantissa = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
    float m, e = (float)exponent;
    memcpy(&m, &mantissa, sizeof m);
    float f = m - 1.0f;
    float p = 7.0376836292e-2f; // Cephes logf: log(1 + f) - f + f^2 / 2 over f^3
    p = fmaf(p, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    float square = f * f;
    float cube = square * f;
    float tail = fmaf(e, -2.12194440e-4f, 0.0f); // log 2 = 0.693359375 - 2.12194440e-4
    tail = fmaf(p, cube, tail);
    tail = fmaf(square, -0.5f, tail);
    return fmaf(e, 0.693359375f, f + tail);
}

// sin and cos of 2 pi times turn / 2^32; turn is taken to 24 bits
PV_BITS_FN void pv_bits_sincos(uint32_t turn, float *sine, float *cosine)
{
    // quadrant: nearest multiple of a quarter turn; rest in [-1/8, 1/8) turn, exact
    uint32_t quadrant = (turn + 0x20000000u) >> 30;
    int32_t rest = (int32_t)(turn - (quadrant << 30)) >> 8;
    float x = (float)rest * 3.74507028e-7f; // 2 pi / 2^24
    float z = x * x;
    float s = -1.9515295891e-4f; // Cephes sinf, cosf on [-pi/4, pi/4]
    s = fmaf(s, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f);
    s = fmaf(s * z, x, x);
    float c = 2.443315711809948e-5f;
    c = fmaf(c, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f);
    c = fmaf(c * z, z, fmaf(z, -0.5f, 1.0f));
    float a = quadrant & 1 ? c : s, b = quadrant & 1 ? s : c;
    *sine = quadrant & 2 ? -a : a;
    *cosine = (quadrant + 1) & 2 ? -b : b;
}

// Two independent standard normals from two words; |normal| < 6.8.
PV_BITS_FN void pv_bits_normal(uint32_t word0, uint32_t word1, float *first, float *second)
{
    float u = fmaf((float)word0, 0x1p-32f, 0x1p-33f);
    float r = sqrtf(-2.0f * pv_bits_log(u));
    float s, c;
    pv_bits_sincos(word1, &s, &c);
    *first = r * c;
    *second = r * s;
}

#endif
