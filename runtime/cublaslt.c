// cuBLASLt. See cublaslt.h. Names, numbers and layouts are those of cublasLt.h and cublas_api.h of
// CUDA 12 and 13 (https://docs.nvidia.com/cuda/cublas/), which agree in what is used.
//
// Matrices of cuBLASLt lie by columns. C [m, n], dense along n, is its D [n, m]; so its A is our B,
// [n, k], and its B our A, [k, m], each as it lies or transposed. A bias of n numbers is one of the
// rows of D; a residual is its C, with beta = 1. f32 is multiplied in f32 (no TF32).
#include "runtime/cublaslt.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/file.h"
#include "runtime/pvdm.h"

typedef struct {
    uint64_t data[8];
} Algo; // cublasLtMatmulAlgo_t: may be kept and used again by the same version
typedef struct {
    Algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic; // cublasLtMatmulHeuristicResult_t

enum {
    R_32F = 0, // cudaDataType_t
    R_16F = 2,
    R_16BF = 14,
    COMPUTE_32F = 68, // cublasComputeType_t
    DESC_TRANSA = 3,  // cublasLtMatmulDescAttributes_t
    DESC_TRANSB = 4,
    DESC_EPILOGUE = 7,
    DESC_BIAS_POINTER = 8,
    EPILOGUE_BIAS = 4,    // cublasLtEpilogue_t
    LAYOUT_BATCH = 5,     // cublasLtMatrixLayoutAttribute_t
    LAYOUT_OFFSET = 6,    //
    PREF_WORKSPACE = 1,   // cublasLtMatmulPreferenceAttributes_t
    PREF_ALIGNMENT_A = 5, // of B, C, D: the next
};
enum { PROPOSALS = 6, ROUNDS = 3, MOST_ALIGNMENT = 256, KEY = 320 };

typedef void *Handle;
#define LT_FUNCTIONS(F)                                                                            \
    F(cublasLtGetVersion, size_t, version, (void))                                                 \
    F(cublasLtCreate, int, create, (Handle * lt))                                                  \
    F(cublasLtDestroy, int, destroy, (Handle lt))                                                  \
    F(cublasLtMatmulDescCreate, int, desc_new, (Handle * desc, int compute, int scale))            \
    F(cublasLtMatmulDescDestroy, int, desc_free, (Handle desc))                                    \
    F(cublasLtMatmulDescSetAttribute, int, desc_set,                                               \
      (Handle desc, int name, const void *value, size_t bytes))                                    \
    F(cublasLtMatrixLayoutCreate, int, layout_new,                                                 \
      (Handle * layout, int type, uint64_t rows, uint64_t columns, int64_t stride))                \
    F(cublasLtMatrixLayoutDestroy, int, layout_free, (Handle layout))                              \
    F(cublasLtMatrixLayoutSetAttribute, int, layout_set,                                           \
      (Handle layout, int name, const void *value, size_t bytes))                                  \
    F(cublasLtMatmulPreferenceCreate, int, pref_new, (Handle * pref))                              \
    F(cublasLtMatmulPreferenceDestroy, int, pref_free, (Handle pref))                              \
    F(cublasLtMatmulPreferenceSetAttribute, int, pref_set,                                         \
      (Handle pref, int name, const void *value, size_t bytes))                                    \
    F(cublasLtMatmulAlgoGetHeuristic, int, propose,                                                \
      (Handle lt, Handle desc, Handle a, Handle b, Handle c, Handle d, Handle pref, int wanted,    \
       Heuristic * results, int *found))                                                           \
    F(cublasLtMatmulAlgoCheck, int, check,                                                         \
      (Handle lt, Handle desc, Handle a, Handle b, Handle c, Handle d, const Algo *algo,           \
       Heuristic *result))                                                                         \
    F(cublasLtMatmul, int, multiply,                                                               \
      (Handle lt, Handle desc, const void *alpha, const void *a, Handle a_layout, const void *b,   \
       Handle b_layout, const void *beta, const void *c, Handle c_layout, void *d,                 \
       Handle d_layout, const Algo *algo, void *work, size_t bytes, CUstream stream))

struct PvLtProduct {
    PvLtProduct *next;
    PvLt *lt;
    char key[KEY];
    Handle desc, a, b, c, d; // d: of the result
    bool bias, residual;
    Algo algo;
    size_t workspace;
    bool own; // our kernel is the faster one
};

struct PvLt {
#define LT_MEMBER(symbol, type, member, params) type(*member) params;
    LT_FUNCTIONS(LT_MEMBER)
#undef LT_MEMBER
    PvDevice *device;
    void *library;
    Handle handle;
    char *file, *kept; // its path, or NULL; its text
    PvLtProduct *products;
};

// ---- the library ----

static void *open_library(const PvDevice *device)
{
    const char *given = getenv("PVDM_CUBLASLT");
    if (given && *given)
        return dlopen(given, RTLD_NOW | RTLD_LOCAL);
    if (device->arch >= PV_ARCH_SIMT)
        return NULL;
    static const char *const places[] = {
        "libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "libcublasLt.so.12",
        "/usr/local/cuda/lib64/libcublasLt.so.12"};
    void *found = NULL;
    for (size_t i = 0; !found && i < sizeof places / sizeof *places; i++)
        found = dlopen(places[i], RTLD_NOW | RTLD_LOCAL);
    return found;
}

// The file of what was chosen: beside the compiler's cache.
static char *kept_path(void)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (base && *base == '/')
        return pv_printf("%s/pvdmc/cublaslt", base);
    return home && *home == '/' ? pv_printf("%s/.cache/pvdmc/cublaslt", home) : NULL;
}

static void read_kept(PvLt *lt)
{
    lt->file = kept_path();
    PvError ignored = {0}; // no file yet
    size_t size = 0;
    lt->kept = lt->file ? pv_read_file(lt->file, 64 << 20, &size, &ignored) : NULL;
    if (!lt->kept)
        lt->kept = pv_strdup("");
    pv_error_free(&ignored);
}

PvLt *pv_lt_open(PvDevice *device, PvError *error)
{
    void *library = open_library(device);
    if (!library) {
        const char *why = dlerror();
        pv_error(error, PV_MACHINE, "cuBLASLt cannot be used: %s", why ? why : "no library");
        return NULL;
    }
    PvLt *lt = pv_alloc(sizeof *lt);
    lt->device = device;
    lt->library = library;
    const char *missing = NULL;
#define LT_FIND(symbol, type, member, params)                                                      \
    if (!(lt->member = (type(*) params)dlsym(library, #symbol)))                                   \
        missing = #symbol;
    LT_FUNCTIONS(LT_FIND)
#undef LT_FIND
    if (missing || lt->create(&lt->handle) != 0) {
        lt->handle = NULL;
        pv_error(error, PV_MACHINE, "cuBLASLt cannot be used: %s%s",
                 missing ? "it has no " : "it does not start", missing ? missing : "");
        pv_lt_close(lt);
        return NULL;
    }
    read_kept(lt);
    return lt;
}

static void free_product(PvLtProduct *product)
{
    const PvLt *lt = product->lt;
    const Handle layouts[] = {product->a, product->b, product->c, product->d};
    for (int i = 0; i < 4; i++)
        if (layouts[i])
            lt->layout_free(layouts[i]);
    if (product->desc)
        lt->desc_free(product->desc);
    free(product);
}

void pv_lt_close(PvLt *lt)
{
    if (!lt)
        return;
    while (lt->products) {
        PvLtProduct *first = lt->products;
        lt->products = first->next;
        free_product(first);
    }
    if (lt->handle)
        lt->destroy(lt->handle);
    dlclose(lt->library);
    free(lt->file);
    free(lt->kept);
    free(lt);
}

// ---- descriptors ----

static int storage_of(const GemmArgs *args, int index)
{
    return (int)(args->types >> 4 * index & 15);
}

static int type_of(int storage)
{
    return storage == PV_STORE_BF16 ? R_16BF : storage == PV_STORE_F16 ? R_16F : R_32F;
}

// The stride of the batch, if it is one; -1: it is not.
static int64_t batch_stride(const GemmArgs *args, int64_t outer, int64_t inner)
{
    if (args->batch1 == 1)
        return outer;
    return args->batch0 == 1 || outer == args->batch1 * inner ? inner : -1;
}

// Can cuBLASLt compute it?
static bool takes(const GemmArgs *args)
{
    enum { C, A, B, BIAS, RESIDUAL };
    bool half = storage_of(args, A) != PV_STORE_REAL;
    if (args->act != PV_ACT_NONE || args->sum_batch || args->sum != 0 || args->gate ||
        args->norm.table || args->stats.table ||
        (args->a_m != 1 && args->a_k != 1) || (args->b_n != 1 && args->b_k != 1) ||
        storage_of(args, A) != storage_of(args, B) ||
        (storage_of(args, C) != PV_STORE_REAL && storage_of(args, C) != storage_of(args, A)))
        return false;
    if (args->bias && (half || args->bias_axis != 0 || storage_of(args, BIAS) != PV_STORE_REAL))
        return false;
    if (args->residual && (storage_of(args, RESIDUAL) != storage_of(args, C) ||
                           batch_stride(args, args->r0, args->r1) < 0))
        return false;
    return batch_stride(args, args->a0, args->a1) >= 0 &&
           batch_stride(args, args->b0, args->b1) >= 0 &&
           batch_stride(args, args->c0, args->c1) >= 0 && args->c_m >= args->n;
}

// Bytes that an address is a multiple of.
static uint32_t alignment_of(int64_t address)
{
    uint32_t bytes = MOST_ALIGNMENT;
    while (bytes > 1 && address % bytes)
        bytes /= 2;
    return bytes;
}

static void write_key(const PvLt *lt, const GemmArgs *args, char key[KEY])
{
    snprintf(key, KEY,
             "%s|%zu|%" PRId64 "x%" PRId64 "x%" PRId64 "|%" PRId64 "x%" PRId64 "|%" PRId64
             ",%" PRId64 ",%" PRId64 ",%" PRId64 "|%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64
             "|%" PRId64 ",%" PRId64 ",%" PRId64 "|%d|%d,%" PRId64 ",%" PRId64 ",%" PRId64
             "|%" PRIx64 "|%u,%u,%u,%u",
             lt->device->name, lt->version(), args->m, args->n, args->k, args->batch0,
             args->batch1, args->a0, args->a1, args->a_m, args->a_k, args->b0, args->b1, args->b_k,
             args->b_n, args->c0, args->c1, args->c_m, args->bias != 0, args->residual != 0,
             args->residual ? args->r0 : 0, args->residual ? args->r1 : 0,
             args->residual ? args->r_m : 0, (uint64_t)args->types, alignment_of(args->a),
             alignment_of(args->b), alignment_of(args->c),
             args->residual ? alignment_of(args->residual) : 0);
}

// Rows x columns, by columns `stride` apart.
static bool make_layout(const PvLt *lt, Handle *layout, int type, int64_t rows, int64_t columns,
                        int64_t stride, int32_t batches, int64_t offset)
{
    return lt->layout_new(layout, type, (uint64_t)rows, (uint64_t)columns,
                          stride < rows ? rows : stride) == 0 &&
           lt->layout_set(*layout, LAYOUT_BATCH, &batches, sizeof batches) == 0 &&
           lt->layout_set(*layout, LAYOUT_OFFSET, &offset, sizeof offset) == 0;
}

static bool describe(PvLtProduct *product, const GemmArgs *args)
{
    const PvLt *lt = product->lt;
    int type_a = type_of(storage_of(args, 1)), type_c = type_of(storage_of(args, 0));
    int32_t batches = (int32_t)(args->batch0 * args->batch1);
    int32_t turn_a = args->b_n != 1, turn_b = args->a_k != 1, epilogue = EPILOGUE_BIAS;
    bool residual = args->residual != 0;
    const void *bias = (const void *)(intptr_t)args->bias; // the first one; heuristics look at it
    int64_t of_a = batch_stride(args, args->b0, args->b1);
    int64_t of_b = batch_stride(args, args->a0, args->a1);
    int64_t of_d = batch_stride(args, args->c0, args->c1);
    product->bias = args->bias != 0;
    product->residual = residual;
    return lt->desc_new(&product->desc, COMPUTE_32F, R_32F) == 0 &&
           lt->desc_set(product->desc, DESC_TRANSA, &turn_a, sizeof turn_a) == 0 &&
           lt->desc_set(product->desc, DESC_TRANSB, &turn_b, sizeof turn_b) == 0 &&
           (!product->bias ||
            (lt->desc_set(product->desc, DESC_EPILOGUE, &epilogue, sizeof epilogue) == 0 &&
             lt->desc_set(product->desc, DESC_BIAS_POINTER, &bias, sizeof bias) == 0)) &&
           make_layout(lt, &product->a, type_a, turn_a ? args->k : args->n,
                       turn_a ? args->n : args->k, turn_a ? args->b_n : args->b_k, batches, of_a) &&
           make_layout(lt, &product->b, type_a, turn_b ? args->m : args->k,
                       turn_b ? args->k : args->m, turn_b ? args->a_k : args->a_m, batches, of_b) &&
           make_layout(lt, &product->c, type_c, args->n, args->m,
                       residual ? args->r_m : args->c_m, batches,
                       residual ? batch_stride(args, args->r0, args->r1) : of_d) &&
           make_layout(lt, &product->d, type_c, args->n, args->m, args->c_m, batches, of_d);
}

int pv_lt_run(const PvLtProduct *product, const GemmArgs *args, CUdeviceptr work, CUstream stream)
{
    const PvLt *lt = product->lt;
    const float alpha = 1, beta = product->residual ? 1 : 0;
    const void *a = (const void *)(intptr_t)args->b, *b = (const void *)(intptr_t)args->a;
    void *d = (void *)(intptr_t)args->c;
    const void *c = product->residual ? (const void *)(intptr_t)args->residual : d;
    const void *bias = (const void *)(intptr_t)args->bias;
    int result =
        product->bias ? lt->desc_set(product->desc, DESC_BIAS_POINTER, &bias, sizeof bias) : 0;
    if (result != 0)
        return result;
    return lt->multiply(lt->handle, product->desc, &alpha, a, product->a, b, product->b, &beta, c,
                        product->c, d, product->d, &product->algo, (void *)(uintptr_t)work,
                        product->workspace, stream);
}

int64_t pv_lt_workspace(const PvLtProduct *product)
{
    return (int64_t)product->workspace;
}

// ---- what is kept ----

// "KEY own" or "KEY WORDS": a line each.
static bool find_kept(PvLtProduct *product)
{
    const PvLt *lt = product->lt;
    size_t length = strlen(product->key);
    for (const char *line = lt->kept; *line;) {
        const char *end = strchr(line, '\n');
        if (!end)
            return false;
        if (strncmp(line, product->key, length) == 0 && line[length] == ' ') {
            const char *at = line + length + 1;
            if (strncmp(at, "own", 3) == 0)
                return product->own = true;
            char *next = NULL;
            for (int i = 0; i < 8; i++, at = next)
                product->algo.data[i] = strtoull(at, &next, 16);
            Heuristic result = {.state = -1};
            int status = lt->check(lt->handle, product->desc, product->a, product->b, product->c,
                                   product->d, &product->algo, &result);
            product->workspace = result.workspace;
            return status == 0 && result.workspace <= PV_LT_WORKSPACE;
        }
        line = end + 1;
    }
    return false;
}

static void keep(PvLtProduct *product)
{
    PvLt *lt = product->lt;
    char words[8 * 17 + 8] = "own";
    for (int i = 0; !product->own && i < 8; i++)
        snprintf(words + i * 17, 18, "%016" PRIx64 " ", product->algo.data[i]);
    char *all = pv_printf("%s%s %s\n", lt->kept, product->key, words);
    free(lt->kept);
    lt->kept = all;
    PvError ignored = {0}; // the next run measures again
    char *folder = lt->file ? pv_strdup(lt->file) : NULL;
    if (folder) {
        *strrchr(folder, '/') = 0;
        if (pv_make_folder(folder, &ignored))
            pv_file_replace(lt->file, all, strlen(all), &ignored);
    }
    free(folder);
    pv_error_free(&ignored);
}

// ---- measuring ----

enum {
    TRIAL_C, // in the order of GemmArgs.types
    TRIAL_A,
    TRIAL_B,
    TRIAL_BIAS,
    TRIAL_RESIDUAL,
    TRIAL_OTHER,
    TRIAL_WORK,
    TRIAL_COUNT
};

// The product on numbers of our own; TRIAL_OTHER is C of our kernel.
typedef struct {
    PvLtProduct *product;
    GemmArgs args; // with addresses of its own
    CUdeviceptr at[TRIAL_COUNT];
    int64_t bytes[TRIAL_COUNT], count[TRIAL_COUNT];
    int dtype[TRIAL_COUNT]; // PvDType
    CUevent marks[2];
    PvLtOwn *own;
    void *context;
} Trial;

static int64_t extent(const GemmArgs *args, int64_t outer, int64_t inner, int64_t last)
{
    return (args->batch0 - 1) * outer + (args->batch1 - 1) * inner + last + 1;
}

// Multiples of 1/8 up to 1: exact in every storage.
static bool fill(Trial *trial, int index, PvError *error)
{
    PvDevice *device = trial->product->lt->device;
    int64_t count = trial->count[index];
    float *values = pv_try_alloc((size_t)count * sizeof *values + 1, "a trial", error);
    char *stored = pv_try_alloc((size_t)trial->bytes[index] + 1, "a trial", error);
    bool good = values && stored;
    uint32_t state = 1u + (uint32_t)index;
    for (int64_t i = 0; good && i < count; i++) {
        state = state * 1664525u + 1013904223u;
        bool zero = index == TRIAL_C || index == TRIAL_OTHER;
        values[i] = zero ? 0 : (float)((int)(state >> 28) - 8) / 8;
    }
    if (good) {
        pv_convert(stored, trial->dtype[index], values, PV_F32, count);
        good = pv_device_upload(device, device->work, trial->at[index], stored,
                                trial->bytes[index], error) &&
               pv_device_wait(device, device->work, error);
    }
    free(values);
    free(stored);
    return good;
}

static bool make_trial(Trial *trial, const GemmArgs *args, PvError *error)
{
    static const int stored_as[] = {PV_F32, PV_BF16, PV_F16};
    PvDevice *device = trial->product->lt->device;
    trial->args = *args;
    int64_t last = (args->m - 1) * args->c_m + args->n - 1;
    trial->count[TRIAL_C] = trial->count[TRIAL_OTHER] = extent(args, args->c0, args->c1, last);
    trial->count[TRIAL_A] = extent(args, args->a0, args->a1,
                                   (args->m - 1) * args->a_m + (args->k - 1) * args->a_k);
    trial->count[TRIAL_B] = extent(args, args->b0, args->b1,
                                   (args->n - 1) * args->b_n + (args->k - 1) * args->b_k);
    trial->count[TRIAL_BIAS] = args->bias ? args->n : 0;
    if (args->residual)
        trial->count[TRIAL_RESIDUAL] =
            extent(args, args->r0, args->r1, (args->m - 1) * args->r_m + args->n - 1);
    trial->bytes[TRIAL_WORK] = PV_LT_WORKSPACE;
    for (int i = 0; i < TRIAL_COUNT; i++) {
        int of = i == TRIAL_OTHER ? TRIAL_C : i;
        trial->dtype[i] = i == TRIAL_WORK ? PV_F32 : stored_as[storage_of(args, of)];
        if (i != TRIAL_WORK)
            trial->bytes[i] = trial->count[i] * pv_dtype_size(trial->dtype[i]);
        if (!pv_device_alloc(device, trial->bytes[i], "a trial", &trial->at[i], error) ||
            (i != TRIAL_WORK && !fill(trial, i, error)))
            return false;
    }
    trial->args.a = (int64_t)trial->at[TRIAL_A];
    trial->args.b = (int64_t)trial->at[TRIAL_B];
    trial->args.bias = args->bias ? (int64_t)trial->at[TRIAL_BIAS] : 0;
    trial->args.residual = args->residual ? (int64_t)trial->at[TRIAL_RESIDUAL] : 0;
    for (int i = 0; i < 2; i++)
        if (device->driver->event_create(&trial->marks[i], PV_CUDA_EVENT_DEFAULT) != PV_CUDA_OK)
            return false;
    return true;
}

static void free_trial(Trial *trial)
{
    PvDevice *device = trial->product->lt->device;
    for (int i = 0; i < TRIAL_COUNT; i++)
        pv_device_free(device, trial->at[i], trial->bytes[i]);
    for (int i = 0; i < 2; i++)
        if (trial->marks[i])
            device->driver->event_destroy(trial->marks[i]);
    pv_device_trim(device);
}

static bool queue(Trial *trial, bool own)
{
    const PvDevice *device = trial->product->lt->device;
    trial->args.c = (int64_t)trial->at[own ? TRIAL_OTHER : TRIAL_C];
    return own ? trial->own(trial->context, &trial->args)
               : pv_lt_run(trial->product, &trial->args, trial->at[TRIAL_WORK], device->work) == 0;
}

// The least of some runs, in milliseconds; negative: it failed.
static float time_of(Trial *trial, bool own)
{
    const PvDevice *device = trial->product->lt->device;
    const PvDriver *driver = device->driver;
    float least = -1, time;
    if (!queue(trial, own)) // the first one loads code
        return -1;
    for (int i = 0; i < ROUNDS; i++) {
        if (driver->event_record(trial->marks[0], device->work) != PV_CUDA_OK ||
            !queue(trial, own) ||
            driver->event_record(trial->marks[1], device->work) != PV_CUDA_OK ||
            driver->event_wait(trial->marks[1]) != PV_CUDA_OK ||
            driver->event_elapsed(&time, trial->marks[0], trial->marks[1]) != PV_CUDA_OK)
            return -1;
        least = least < 0 || time < least ? time : least;
    }
    return least;
}

// Are C and that of our kernel the same but for rounding?
static bool agrees(Trial *trial, PvError *error)
{
    PvDevice *device = trial->product->lt->device;
    int64_t count = trial->count[TRIAL_C];
    double off = 0, all = 0;
    char *stored = pv_try_alloc(2 * (size_t)trial->bytes[TRIAL_C] + 1, "a trial", error);
    float *values = pv_try_alloc(2 * (size_t)count * sizeof *values + 1, "a trial", error);
    bool good = stored && values;
    for (int i = 0; good && i < 2; i++) {
        char *to = stored + i * trial->bytes[TRIAL_C];
        good = pv_device_download(device, device->work, to, trial->at[i ? TRIAL_OTHER : TRIAL_C],
                                  trial->bytes[TRIAL_C], error);
        if (good)
            pv_convert(values + i * count, PV_F32, to, trial->dtype[TRIAL_C], count);
    }
    for (int64_t i = 0; good && i < count; i++) {
        double x = (double)values[i], y = (double)values[count + i];
        off += (x - y) * (x - y);
        all += y * y;
    }
    free(stored);
    free(values);
    double bound = trial->dtype[TRIAL_C] == PV_F32 ? 1e-5 : 1e-2;
    return good && sqrt(off) <= bound * sqrt(all);
}

static int propose(const PvLtProduct *product, const GemmArgs *args, Heuristic *found)
{
    const PvLt *lt = product->lt;
    size_t work = PV_LT_WORKSPACE;
    int64_t c = args->residual ? args->residual : args->c;
    uint32_t alignment[4] = {alignment_of(args->b), alignment_of(args->a), alignment_of(c),
                             alignment_of(args->c)};
    Handle pref = NULL;
    int count = 0;
    bool good = lt->pref_new(&pref) == 0 &&
                lt->pref_set(pref, PREF_WORKSPACE, &work, sizeof work) == 0;
    for (int i = 0; good && i < 4; i++)
        good = lt->pref_set(pref, PREF_ALIGNMENT_A + i, &alignment[i], sizeof *alignment) == 0;
    if (!good || lt->propose(lt->handle, product->desc, product->a, product->b, product->c,
                             product->d, pref, PROPOSALS, found, &count) != 0)
        count = 0;
    if (pref)
        lt->pref_free(pref);
    return count;
}

// Leaves the fastest in the product. False: nothing was measured.
static bool measure(PvLtProduct *product, const GemmArgs *args, PvLtOwn *own, void *context)
{
    Heuristic found[PROPOSALS];
    int count = propose(product, args, found);
    Trial trial = {.product = product, .own = own, .context = context};
    PvError error = {0};
    float best = -1;
    bool good = make_trial(&trial, args, &error) && (best = time_of(&trial, true)) >= 0;
    product->own = true;
    Heuristic fastest = {.state = -1};
    for (int i = 0; good && i < count; i++) {
        product->algo = found[i].algo;
        product->workspace = found[i].workspace;
        if (found[i].state != 0 || found[i].workspace > PV_LT_WORKSPACE)
            continue;
        float time = time_of(&trial, false);
        if (time < 0 || time >= best || !agrees(&trial, &error))
            continue;
        best = time;
        fastest = found[i];
        product->own = false;
    }
    product->algo = fastest.algo;
    product->workspace = fastest.workspace;
    free_trial(&trial);
    pv_error_free(&error);
    return good;
}

PvLtProduct *pv_lt_choose(PvLt *lt, const GemmArgs *args, PvLtOwn *own, void *context)
{
    char key[KEY];
    if (!takes(args))
        return NULL;
    write_key(lt, args, key);
    for (PvLtProduct *at = lt->products; at; at = at->next)
        if (strcmp(at->key, key) == 0)
            return at->own ? NULL : at;
    PvLtProduct *product = pv_alloc(sizeof *product);
    product->lt = lt;
    product->next = lt->products;
    lt->products = product;
    memcpy(product->key, key, sizeof key);
    if (!describe(product, args))
        product->own = true;
    else if (!find_kept(product) && measure(product, args, own, context))
        keep(product);
    return product->own ? NULL : product;
}
