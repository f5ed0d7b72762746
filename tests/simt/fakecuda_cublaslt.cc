/* cuBLASLt for tests, in the fake driver's library: products by plain loops over its memory.
 *
 * Sizes, strides, alignments, types, the workspace and every address are checked as the real one's
 * documentation says, or more strictly; a refusal is told and is status 7. It proposes two
 * algorithms, of which the second wants a workspace. PVDM_FAKE_CUBLASLT=wrong: their results are
 * wrong; =slow: they take long; PVDM_FAKE_TRACE=1: a line a product.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "fakecuda.h"

enum { OK = 0, INVALID = 7, VERSION = 130000, ALGO = 0x70766c74, WORK = 1 << 20 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };

struct Desc {
    int turn_a, turn_b, epilogue;
    const float *bias;
};
struct Layout {
    int type, batches;
    uint64_t rows, columns;
    int64_t stride, offset;
};
struct Preference {
    size_t work;
    uint32_t alignment[4];
};
struct Algo {
    uint64_t data[8];
};
struct Heuristic {
    Algo algo;
    size_t work;
    int state;
    float waves;
    int reserved[4];
};

static int wrong(const char *what)
{
    fprintf(stderr, "fake cuBLASLt: %s\n", what);
    return INVALID;
}

static bool mode_is(const char *mode)
{
    const char *text = getenv("PVDM_FAKE_CUBLASLT");
    return text && strcmp(text, mode) == 0;
}

static size_t size_of(int type)
{
    return type == R_32F ? 4 : 2;
}

static float number_at(const void *at, int type, int64_t i)
{
    if (type == R_32F)
        return ((const float *)at)[i];
    if (type == R_16F)
        return (float)((const _Float16 *)at)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void put(void *at, int type, int64_t i, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (type == R_32F)
        ((float *)at)[i] = value;
    else if (type == R_16F)
        ((_Float16 *)at)[i] = (_Float16)value;
    else
        ((uint16_t *)at)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static CUresult check_matrix(const Layout &of, const void *at, const char *what)
{
    uint64_t elements = (uint64_t)(of.batches - 1) * (uint64_t)of.offset +
                        (of.columns - 1) * (uint64_t)of.stride + of.rows;
    return check_device_range((CUdeviceptr)(uintptr_t)at, elements * size_of(of.type), what);
}

static int check_shapes(const Desc *desc, const Layout *a, const Layout *b, const Layout *c,
                        const Layout *d)
{
    uint64_t m = desc->turn_a ? a->columns : a->rows, k = desc->turn_a ? a->rows : a->columns;
    uint64_t n = desc->turn_b ? b->rows : b->columns;
    if ((desc->turn_b ? b->columns : b->rows) != k || d->rows != m || d->columns != n ||
        c->rows != m || c->columns != n)
        return wrong("the sizes do not fit each other");
    if (a->batches != b->batches || a->batches != c->batches || a->batches != d->batches)
        return wrong("the numbers of matrices differ");
    if (a->type != b->type || c->type != d->type || (d->type != R_32F && d->type != a->type))
        return wrong("there is no kernel for these types");
    return OK;
}

struct Product {
    Desc desc;
    Layout a, b, c, d;
    const void *at_a, *at_b, *at_c;
    void *at_d;
    float alpha, beta;
};

static void multiply(const Product &p)
{
    OpenMemory open;
    uint64_t depth = p.desc.turn_a ? p.a.rows : p.a.columns;
    for (int batch = 0; batch < p.d.batches; batch++)
        for (uint64_t j = 0; j < p.d.columns; j++)
            for (uint64_t i = 0; i < p.d.rows; i++) {
                float sum = 0;
                for (uint64_t k = 0; k < depth; k++) {
                    uint64_t ia = p.desc.turn_a ? k + i * (uint64_t)p.a.stride
                                                : i + k * (uint64_t)p.a.stride;
                    uint64_t ib = p.desc.turn_b ? j + k * (uint64_t)p.b.stride
                                                : k + j * (uint64_t)p.b.stride;
                    sum += number_at(p.at_a, p.a.type, batch * p.a.offset + (int64_t)ia) *
                           number_at(p.at_b, p.b.type, batch * p.b.offset + (int64_t)ib);
                }
                sum *= p.alpha;
                int64_t at_c = batch * p.c.offset + (int64_t)(i + j * (uint64_t)p.c.stride);
                if (p.beta != 0)
                    sum += p.beta * number_at(p.at_c, p.c.type, at_c);
                if (p.desc.epilogue == 4)
                    sum += p.desc.bias[i];
                if (mode_is("wrong"))
                    sum += 1;
                put(p.at_d, p.d.type, batch * p.d.offset + (int64_t)(i + j * (uint64_t)p.d.stride),
                      sum);
            }
    if (mode_is("slow"))
        usleep(300000);
}

extern "C" {
size_t cublasLtGetVersion(void)
{
    return VERSION;
}
int cublasLtCreate(void **handle)
{
    *handle = new int(1);
    return OK;
}
int cublasLtDestroy(void *handle)
{
    delete (int *)handle;
    return OK;
}
int cublasLtMatmulDescCreate(Desc **desc, int compute, int scale)
{
    if (compute != 68 || scale != R_32F)
        return wrong("not CUBLAS_COMPUTE_32F");
    *desc = new Desc{0, 0, 1, nullptr};
    return OK;
}
int cublasLtMatmulDescDestroy(Desc *desc)
{
    delete desc;
    return OK;
}
int cublasLtMatmulDescSetAttribute(Desc *desc, int name, const void *value, size_t bytes)
{
    if (bytes != (name == 8 ? sizeof(void *) : 4))
        return wrong("an attribute of another size");
    void *to = name == 3   ? (void *)&desc->turn_a
               : name == 4 ? (void *)&desc->turn_b
               : name == 7 ? (void *)&desc->epilogue
               : name == 8 ? (void *)&desc->bias
                           : nullptr;
    if (!to)
        return wrong("an attribute that is not known");
    memcpy(to, value, bytes);
    return OK;
}
int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns,
                               int64_t stride)
{
    if (rows == 0 || columns == 0 || stride < (int64_t)rows)
        return wrong("columns are nearer to each other than they are long");
    *layout = new Layout{type, 1, rows, columns, stride, 0};
    return OK;
}
int cublasLtMatrixLayoutDestroy(Layout *layout)
{
    delete layout;
    return OK;
}
int cublasLtMatrixLayoutSetAttribute(Layout *layout, int name, const void *value, size_t bytes)
{
    if ((name != 5 || bytes != 4) && (name != 6 || bytes != 8))
        return wrong("an attribute of a layout");
    memcpy(name == 5 ? (void *)&layout->batches : (void *)&layout->offset, value, bytes);
    return layout->batches < 1 ? wrong("no matrix") : OK;
}
int cublasLtMatmulPreferenceCreate(Preference **pref)
{
    *pref = new Preference{0, {256, 256, 256, 256}};
    return OK;
}
int cublasLtMatmulPreferenceDestroy(Preference *pref)
{
    delete pref;
    return OK;
}
int cublasLtMatmulPreferenceSetAttribute(Preference *pref, int name, const void *value,
                                         size_t bytes)
{
    if (name == 1 && bytes == sizeof pref->work)
        memcpy(&pref->work, value, bytes);
    else if (name >= 5 && name <= 8 && bytes == 4)
        memcpy(&pref->alignment[name - 5], value, bytes);
    else
        return wrong("an attribute of a preference");
    return OK;
}
// Word 0 says which it is, word 1 whose, word 2 of which alignment D may be.
int cublasLtMatmulAlgoGetHeuristic(void *, Desc *desc, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Preference *pref, int wanted, Heuristic *results, int *found)
{
    *found = 0;
    if (check_shapes(desc, a, b, c, d) != OK)
        return INVALID;
    for (int i = 0; i < 2 && i < wanted; i++) {
        results[i] = Heuristic{{{(uint64_t)i, ALGO, pref->alignment[3]}}, i ? (size_t)WORK : 0, OK,
                               1, {0}};
        *found += results[i].work <= pref->work;
    }
    return OK;
}
int cublasLtMatmulAlgoCheck(void *, Desc *desc, Layout *a, Layout *b, Layout *c, Layout *d,
                            const Algo *algo, Heuristic *result)
{
    if (algo->data[1] != ALGO || algo->data[0] > 1)
        return INVALID;
    result->work = algo->data[0] ? WORK : 0;
    result->state = check_shapes(desc, a, b, c, d);
    return result->state;
}
int cublasLtMatmul(void *, Desc *desc, const float *alpha, const void *at_a, Layout *a,
                   const void *at_b, Layout *b, const float *beta, const void *at_c, Layout *c,
                   void *at_d, Layout *d, const Algo *algo, void *work, size_t work_bytes,
                   CUstream stream)
{
    if (check_shapes(desc, a, b, c, d) != OK)
        return INVALID;
    if (!algo || algo->data[1] != ALGO)
        return wrong("no algorithm of this library's");
    if ((uintptr_t)at_d % algo->data[2])
        return wrong("D is not aligned as was promised");
    if (algo->data[0] == 1 &&
        (work_bytes < WORK || (uintptr_t)work % 256 ||
         check_device_range((CUdeviceptr)(uintptr_t)work, work_bytes, "workspace")))
        return wrong("the workspace is too small");
    if (at_c == at_d && (c->stride != d->stride || c->offset != d->offset))
        return wrong("C is D, and lies otherwise");
    if (check_matrix(*a, at_a, "A") || check_matrix(*b, at_b, "B") || check_matrix(*d, at_d, "D") ||
        (*beta != 0 && check_matrix(*c, at_c, "C")) ||
        (desc->epilogue == 4 && check_device_range((CUdeviceptr)(uintptr_t)desc->bias,
                                                   d->rows * sizeof(float), "bias")))
        return INVALID;
    if (driver.trace)
        fprintf(stderr, "fake cuBLASLt: %lu x %lu, algorithm %lu\n", (unsigned long)d->rows,
                (unsigned long)d->columns, (unsigned long)algo->data[0]);
    Product p = {*desc, *a, *b, *c, *d, at_a, at_b, at_c, at_d, *alpha, *beta};
    return enqueue(stream, [=] { multiply(p); }) == CUDA_SUCCESS ? OK : INVALID;
}
}
