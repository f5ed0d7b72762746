// The joint between a compiled model and the runtime: the tables that pvdmc emits as C, and what
// emitted code and kernels may call. An executable is: emitted tables and kernels, the CPU kernel
// library, libpvdm.a (which holds main), and a few static libraries; it needs only libc.
//
// Addresses. Everything a kernel touches is named by a PvArg, (space, a, c): the address (or, in
// space PV_VALUE, the number itself) is base[space] + a + c * batch, resolved once a step.
// Offsets are bytes. All activations are linear in the batch, so one executable serves any batch.
// Arena buffers that grow with the batch are packed apart from those that do not: the first have
// a = PvPlan.arena_fixed and c = offset per batch element, the others only a.
#ifndef PVDM_H
#define PVDM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Working precision of this executable: PV_REAL64 is defined for --dtype f64.
#ifdef PV_REAL64
typedef double PvReal;
#else
typedef float PvReal;
#endif

typedef enum { PV_NONE, PV_BOOL, PV_I64, PV_F16, PV_BF16, PV_F32, PV_F64 } PvDType; // = DType

enum { PV_MAX_RANK = 8 };

typedef struct {
    uint8_t dtype;
    uint8_t rank;
    uint8_t batch_axes;              // bit i: dim[i] is multiplied by the batch
    int64_t dim[PV_MAX_RANK];
} PvType;

// ---- step values: numbers known when a step starts ----

typedef union {
    int64_t i;                       // i64 and bool
    double f;                        // reals; arithmetic on them is in PvReal
} PvScalar;

typedef struct PvRandom PvRandom;    // seed, draws so far of each stream, given tensors (random.h)

typedef struct {
    int64_t batch;
    const PvScalar *options;         // by PvOption.slot
    const PvScalar *inputs;          // by index of the entry's input: those of rank 0
    uint64_t given;                  // bit i: input i is there
    PvRandom *random;
} PvStep;

// One number from a stream at its present draw (element 0): what emitted step code calls.
double pv_draw_normal(const PvStep *step, uint32_t stream);
double pv_draw_uniform(const PvStep *step, uint32_t stream);                 // [0, 1)
int64_t pv_draw_int(const PvStep *step, uint32_t stream, int64_t lo, int64_t hi);

// ---- plans ----

typedef enum {
    PV_VALUE,        // not an address: the number a + c * batch (reals: bits of a double)
    PV_ARENA,        // activations
    PV_PARAM,        // parameters and buffers, flat, at PvParam.offset
    PV_GRAD,         // gradients, at the same offsets
    PV_CONST,        // constant tables of the model (pv_model.consts)
    PV_SCALAR,       // step values of the plan, 8 bytes each: PvReal or int64_t in place; before
                     // them, at PV_LOSS_SCALE_AT, the scale of the loss (f16)
    PV_SHADOW,       // parameters as PvModel.shadow, at half their offsets; on GPUs alone
    PV_IO,           // PV_IO + i: input i of the entry; + input_count + k: named output k
} PvSpace;
enum { PV_LOSS_SCALE_AT = -8 };

typedef struct {
    int64_t a, c;
    uint16_t space;
} PvArg;

// What a kernel gets beside its arguments.
typedef struct {
    int64_t batch;
    int threads;
    char *scratch;                   // threads * scratch_size bytes, 64-byte aligned
    int64_t scratch_size;
    PvStep *step;
    uint32_t segments;               // of this launch: arg_count / segments numbers each
    bool split;                      // PvPlan.split
} PvRun;

// `args` are the resolved PvArgs: addresses, numbers. The struct of that kernel is laid over it.
typedef void PvKernelFn(const PvRun *run, const int64_t *args);

// ---- the CUDA side of a kernel ----

enum { PV_MAX_PHASES = 4, PV_MAX_SEGMENTS = 8, PV_CUDA_BAKED = 6, PV_CUDA_MAPS = 2,
       PV_CUDA_NUMBERS = 16 };

typedef struct PvCudaKernel PvCudaKernel;

// A tensor map of elements of 16 bits: which boxes of a tensor the copy engine brings to shared
// memory, where their rows of at most 128 bytes are swizzled. What a box has outside the tensor is
// 0. Axes: densest first.
typedef struct {
    uint64_t address;                // a multiple of 16
    uint32_t rank;                   // 1 .. 5
    uint64_t size[5];
    uint64_t stride[4];              // bytes, of axes 1 ..; multiples of 16
    uint32_t box[5];                 // elements that are brought; of axis 0 at most 64, in eights
    uint32_t step[5];                // of the tensor between those of a box, 1 .. 8 (0 is 1): the
                                     // box times it is at most 256; of axis 0 it is 1
} PvTensorMap;

// What one segment of a launch needs: blocks of each phase, and device memory that lives as long as
// the launch. Phases run one after the other; one of 0 blocks in all is left out. Kernels with
// tensor maps are given the maps and numbers of each segment (CxMaps of codegen/cuda/cx_launch.h).
typedef struct {
    uint32_t blocks[PV_MAX_PHASES];
    int64_t workspace;               // bytes
    PvTensorMap maps[PV_CUDA_MAPS];
    uint32_t numbers[PV_CUDA_NUMBERS];
} PvCudaGrid;
typedef void PvCudaShape(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid);

struct PvCudaKernel {
    const char *symbol;              // phase p > 0 is the function SYMBOL_p
    uint32_t module;                 // index in PvCuda.modules
    uint32_t phases;
    uint32_t segments;               // that it is compiled for: 1 or PV_MAX_SEGMENTS
    uint32_t threads[PV_MAX_PHASES]; // a block
    uint32_t shared[PV_MAX_PHASES];  // bytes of dynamic shared memory
    int32_t baked[PV_CUDA_BAKED];    // tile sizes and the like, as its shape function reads them
    PvCudaShape *shape;
    uint32_t maps;                   // tensor maps of a segment: 0 or PV_CUDA_MAPS
    uint32_t resident[PV_MAX_PHASES];    // not 0: its blocks take turns, and at most so many of
                                         // them for each multiprocessor are launched
};

typedef struct {
    const char *name;                // what it fuses: "add_silu", "conv3x3"
    PvKernelFn *fn;                  // NULL: not in this executable; pv_random always is, since the
                                     // runtime knows draws by it
    const PvCudaKernel *cuda;        // NULL: not in this executable
    const PvCudaKernel *cuda_90a;    // taken instead of it where its program has an image that this
                                     // GPU takes; NULL: there is none
} PvKernel;

typedef struct {
    uint32_t kernel;                 // index in PvModel.kernels
    uint32_t arg;                    // first of its arguments in PvPlan.args
    uint16_t arg_count;              // of all segments
    uint16_t segments;               // independent problems of one kernel, arguments one after the
                                     // other; at least 1
    uint32_t origin;                 // index in PvModel.origins: "unet.model:20 unet.out.2"
    double flops_fixed, flops_batch; // predicted
    double bytes_fixed, bytes_batch; // predicted: what it must read and write at least
} PvLaunch;

// Models have tens of thousands, so they hold no addresses and lie among the constants.
typedef struct {
    PvArg at;                        // where it lies right after launch number `launch`
    int32_t launch;                  // -1: before the first
    uint32_t name;                   // begins at PvModel.tap_names + name
    uint32_t type;                   // index in PvModel.tap_types
} PvTap;

// Launches and arguments are there as they are, or packed (unpack.h): then the lists are NULL, and
// the executor unpacks them when the plan is first used.
typedef struct PvPlan {
    const PvLaunch *launches;
    uint32_t launch_count;
    const PvArg *args;
    uint32_t arg_count;
    const void *packed;
    uint32_t packed_bytes;
    double flops_fixed, flops_batch;       // sums over the launches
    double bytes_fixed, bytes_batch;
    int64_t arena_fixed, arena_batch;      // bytes; need = arena_fixed + batch * arena_batch
    int64_t live_fixed, live_batch;        // lower bound: largest live sets of the two packings
    int64_t scratch_size;                  // bytes a thread
    uint32_t scalar_count;
    void (*scalars)(const PvStep *step, PvScalar *out);  // fills space PV_SCALAR
    const PvTap *taps;                     // of unfused plans
    uint32_t tap_count;
    const uint32_t *streams;               // streams this plan draws from
    uint32_t stream_count;
    const uint32_t *grads;                 // parameters whose gradients it writes
    uint32_t grad_count;
    const uint32_t *instances;             // that it reads: only these need weights
    uint32_t instance_count;
    const uint32_t *edges;                 // pairs of launches: the second reads what the first
    uint32_t edge_count;                   // stored; only with --unfused-too
    // What the step reads from a row of a table, and the plan that makes the row: the address of
    // the row, of `row_bytes`, is one more of space PV_IO, behind the entry's outputs. A row holds
    // for the scalars of that plan and the present weights. NULL: no row.
    const struct PvPlan *table;
    int64_t row_bytes;
    // Products of f32 may be made of parts in bf16, where the processor has a unit for them
    // (codegen/cpu/split.h); else of multiply-adds. GPUs ignore it.
    bool split;
} PvPlan;

// ---- entries ----

typedef struct {
    const char *name;
    PvType type;
    bool optional;
} PvInput;

// A PV_OUT_SETTING is stored by launches of its own that read only PV_VALUE, PV_SCALAR and PV_CONST
// and write only settings, so that `train --replay` can run these alone.
typedef enum { PV_OUT_NAMED, PV_OUT_GRAD_INPUT, PV_OUT_REPORT, PV_OUT_SETTING } PvOutKind;

// Outputs that are tensors in space PV_IO; all variants of an entry have the same ones. What a
// variant does not compute it fills: gradients of inputs with 0, reports with NaN.
typedef struct {
    uint8_t kind;
    const char *name;                // "eps", "loss", "grad.x", "pixels", "lr"
    PvType type;                     // settings and reports: rank 0
} PvOutput;

// PV_PROBE: measures the machine (--unfused-too): elements copied, a matrix product; never listed.
typedef enum { PV_PROGRAM, PV_GRAD_OF, PV_MINIMIZE, PV_CALL, PV_PROBE } PvEntryKind;

// A rung of the ladder of --unfused-too: an entry's plans with some of the optimizations only.
typedef struct {
    const char *name;                // "unfused", "+ elementwise", ..., "all"
    int level;                       // 0, 1, 2: what -O makes; -1: between two of them
    const PvPlan *plans;             // one for each variant
} PvRung;

typedef struct {
    uint8_t kind;
    const char *name;                // "denoise", "diffusion.0"; of PV_GRAD_OF: its program's name
    const PvInput *inputs;
    uint32_t input_count;
    const PvOutput *outputs;
    uint32_t output_count;
    const PvPlan *plans;             // one for each variant
    const PvPlan *plain;             // unfused, with taps; NULL for minimize and calls
    uint32_t variant_count;
    uint32_t (*select)(const PvStep *step);   // which variant this step is
    const PvRung *rungs;             // from none to all; only with --unfused-too
    uint32_t rung_count;
} PvEntry;

// ---- the model ----

typedef enum { PV_ZEROS, PV_ONES, PV_FULL, PV_NORMAL, PV_UNIFORM } PvInit;   // = InitKind

typedef struct {
    const char *name;                // "unet.out.2.weight"
    uint32_t instance;
    PvType type;                     // logical shape; PvReal or i64
    int64_t offset;                  // bytes into PV_PARAM; multiples of 64
    int64_t count;                   // elements
    bool buffer;                     // batch-norm statistics: not trained, but saved
    uint8_t init;
    double init_a, init_b;
    // On GPUs each of its count / (rows * columns) matrices, and of all that lies as it does, is
    // stored by columns; the host's are row-major. 0: both are alike.
    int64_t rows, columns;
} PvParam;

typedef struct {
    const char *name;
    uint32_t first, count;           // parameters
    int64_t offset, size;            // bytes of PV_PARAM, whole instance
    const char *const *ignored;      // names that checkpoints may carry; a trailing path matches
    uint32_t ignored_count;
} PvInstance;

typedef struct {
    const char *name;
    const char *stage;               // NULL: global
    uint8_t dtype;                   // PV_NONE: an optional tensor (of a sampler)
    bool is_list;
    uint32_t count;                  // elements; slots are slot .. slot + count - 1
    uint32_t slot;
    PvScalar value[8];
    PvType type;
} PvOption;

typedef struct {
    uint32_t entry;
    uint32_t replay;                 // entry of kind PV_GRAD_OF, or UINT32_MAX
    const char *optimizer;           // "adamw", "sgd"
    const uint32_t *instances;       // that move
    uint32_t instance_count;
    int64_t accumulate, ema_every;
    bool clip;
} PvMinimize;

typedef struct {
    const char *name;
    const char *source;              // "clips", "images", "labels", or NULL: no data
    bool pad;
    uint32_t frames, height, width;
    const char *data_name;           // input 0 of every minimize
    PvType data_type;
    const PvMinimize *minimize;
    uint32_t minimize_count;
} PvStage;

// ---- samplers: emitted host code over this interface (sample.c) ----

typedef struct PvTensor PvTensor;    // reference-counted (tensor.h)
typedef struct PvHost PvHost;

typedef struct {
    PvScalar number;
    PvTensor *tensor;                // or NULL: a number, or nothing
} PvVar;

// All return 0, or -1 to stop the sampler (Ctrl-C, an error already told).
void pv_host_set_tensor(PvVar *var, PvTensor *tensor);         // takes the reference; NULL: none
void pv_host_copy(PvVar *var, const PvVar *from);
int pv_host_option(PvHost *host, PvVar *var, uint32_t option);
int pv_host_random(PvHost *host, PvVar *var, uint32_t stream, int kind, const PvType *type);
// args: one for each input of the entry (numbers in .number, tensors in .tensor, absent: NULL);
// results: one for each named output.
int pv_host_call(PvHost *host, uint32_t entry, const PvVar *args, PvVar **results);
int pv_host_yield(PvHost *host, const PvVar *var);
int pv_host_report(PvHost *host, const char *name, const PvVar *var);
const PvStep *pv_host_step(PvHost *host);                      // options, batch, streams

typedef struct {
    const char *name;                // "ddim"
    int (*run)(PvHost *host);
} PvSampler;

// One compiled program of several kernels, for one architecture.
typedef struct {
    uint32_t module;                 // programs of the same kernels have the same number
    uint32_t arch;                   // 80, 90, ...: compute capability * 10; PV_ARCH_SIMT
    bool specific;                   // sm_90a: only for that very capability
    bool ptx;
    const void *image;
    int64_t bytes;
} PvCudaImage;

enum { PV_ARCH_SIMT = 10000 }; // a shared object for the emulator (a driver of that capability)

typedef struct {
    uint32_t modules;
    const PvCudaImage *images;       uint32_t image_count;
    const PvCudaKernel *kernels;     uint32_t kernel_count;     // of the optimizer and the like
    const char *const *kernel_names; // "square_sums", "adamw", "sgd", "accumulate", "average",
                                     // "shadow":
                                     // their arguments end codegen/kernel_args.h; "normal",
                                     // "uniform": RandomArgs
    uint32_t version;                // of CUDA that compiled the images: 13000; 0: not known
} PvCuda;

typedef struct {
    const char *name;                // "pvdm"
    uint8_t real;                    // PV_F32 or PV_F64
    const char *const *constants;    // "resolution=256"
    uint32_t constant_count;
    const PvParam *params;           uint32_t param_count;
    int64_t param_bytes;
    uint8_t shadow;                  // PV_BF16, PV_F16: of space PV_SHADOW, and of most values of a
                                     // step; PV_F16: losses are scaled. PV_NONE: there is none
    const PvInstance *instances;     uint32_t instance_count;
    const PvOption *options;         uint32_t option_count;
    uint32_t option_slots;
    const char *const *streams;      uint32_t stream_count;
    const PvEntry *entries;          uint32_t entry_count;
    const PvStage *stages;           uint32_t stage_count;
    const PvSampler *samplers;       uint32_t sampler_count;
    const PvKernel *kernels;         uint32_t kernel_count;
    const char *const *origins;      uint32_t origin_count;
    const void *consts;              int64_t const_bytes;
    const PvCuda *cuda;              // NULL: not for GPUs
    const char *march;               // what the kernels were compiled for
    uint64_t features;               // PV_FEATURES there: what the processor must have
    const char *const *labels;       // by origin: what the launch computes, "conv3x3 + silu + add"
    const char *tap_names;
    const PvType *tap_types;
} PvModel;

// Processor features that -march switched on where this is expanded (x86-64; elsewhere 0): bits in
// the order of machine.c's names.
#ifdef __AVX__
#define PV_HAS_AVX 1u
#else
#define PV_HAS_AVX 0u
#endif
#ifdef __AVX2__
#define PV_HAS_AVX2 2u
#else
#define PV_HAS_AVX2 0u
#endif
#ifdef __FMA__
#define PV_HAS_FMA 4u
#else
#define PV_HAS_FMA 0u
#endif
#ifdef __BMI2__
#define PV_HAS_BMI2 8u
#else
#define PV_HAS_BMI2 0u
#endif
#ifdef __AVX512F__
#define PV_HAS_AVX512F 16u
#else
#define PV_HAS_AVX512F 0u
#endif
#ifdef __AVX512BW__
#define PV_HAS_AVX512BW 32u
#else
#define PV_HAS_AVX512BW 0u
#endif
#ifdef __AVX512VL__
#define PV_HAS_AVX512VL 64u
#else
#define PV_HAS_AVX512VL 0u
#endif
#ifdef __AVX512DQ__
#define PV_HAS_AVX512DQ 128u
#else
#define PV_HAS_AVX512DQ 0u
#endif
#define PV_FEATURES                                                                               \
    (PV_HAS_AVX | PV_HAS_AVX2 | PV_HAS_FMA | PV_HAS_BMI2 | PV_HAS_AVX512F | PV_HAS_AVX512BW |      \
     PV_HAS_AVX512VL | PV_HAS_AVX512DQ)

extern const PvModel pv_model;       // emitted

#endif
