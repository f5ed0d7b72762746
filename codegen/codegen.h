// Code generation for the CPU: groups to launches, launches and graphs to C text, C to an
// executable.
//
// One Codegen holds what all plans share: the kernels (library ones by symbol, emitted ones by
// text: equal texts are one kernel), and the data section (constant tables, arguments, launches),
// which goes into the executable as bytes, so that the C compiler sees kernels and little else.
#ifndef PVDMC_CODEGEN_H
#define PVDMC_CODEGEN_H

#include "codegen/cpu/kernels.h"
#include "codegen/cuda_module.h"
#include "compiler/plan.h"

// What launches name. The same CPU kernel with different CUDA kernels is several of these.
typedef struct {
    const char *name;        // what it computes: "add_silu", "conv"
    const char *symbol;      // "add_silu_5f0c6d0b3f21", "pv_conv"
    const char *text;        // emitted: everything behind the symbol; NULL: library
    uint32_t cuda;           // Codegen.cuda_kernels, + 1; 0: none
    uint32_t cuda_90a;       // the same, instead of it on sm_90a
} Kernel;

// Architectures that a kernel is compiled for. The emulator has all.
typedef enum {
    CUDA_ON_ALL,
    CUDA_ON_90A,             // that alone
    CUDA_BESIDE_90A,         // all but that: another kernel takes its place there
} CudaPlaces;

typedef struct {
    const char *symbol;      // phase p > 0 is SYMBOL_p
    const char *text;        // emitted, with CX_NAME as its name; NULL: choice.file
    CudaChoice choice;       // emitted: file is NULL, definitions are ""
    uint32_t segments;       // it takes
    uint32_t module;         // program that holds it
    CudaPlaces places;
} CudaKernel;

// Programs, one for each module and architecture.
typedef struct {
    uint32_t module, arch;   // 80, 90; PV_ARCH_SIMT
    bool specific, ptx;
    size_t offset, size;     // in Codegen.images
} CudaImage;

enum { MAX_ARCHS = 8 };

typedef struct {
    uint32_t number;         // 80, 90
    bool specific;           // sm_90a
} CudaArch;

// What executables run on: the processor; GPUs of these architectures, and of later ones if PTX is
// there; the emulator of GPUs.
typedef struct {
    bool cpu, cuda, simt;
    CudaArch archs[MAX_ARCHS];
    uint32_t arch_count;
    bool ptx;
} Targets;

/* memo.c: what was made from equal bytes before */
typedef struct {
    unsigned char *at;
    size_t count, capacity;
} Bytes;
typedef struct {
    struct MemoItem *items;
    uint32_t count, size;      // size: of the table, a power of two
} Memo;
void bytes_add(Arena *arena, Bytes *bytes, const void *data, size_t size);
// The value of a key, of value_size bytes; zeroed if it was not there (*found: false).
void *memo_find(Arena *arena, Memo *memo, const Bytes *key, size_t value_size, bool *found);

typedef struct {
    Module *module;
    Sources *sources;
    Arena *arena;
    const char *march;
    Targets targets;
    Kernel *kernels;
    uint32_t kernel_count;
    size_t kernel_capacity;
    uint32_t *kernel_table;  // hash table of kernel + 1
    uint32_t kernel_table_size;
    Memo elementwise;        // kernels by what their texts are made from
    Memo choices;            // CUDA kernels of the library by arguments
    Bytes key;               // of a memo, while it is made
    CudaKernel *cuda_kernels;
    uint32_t cuda_kernel_count;
    size_t cuda_kernel_capacity;
    const char **cuda_runtime_names;   // of the first cuda_kernels, which the runtime launches
    uint32_t cuda_runtime_count;
    const char *kernels_with;          // words, with commas: programs are of kernels that have
                                       // one in their names; NULL: all
    uint32_t cuda_modules;
    uint32_t cuda_version;   // of NVRTC: 13000; 0: not asked
    uint32_t cuda_warnings;  // programs with a warning of the compiler or of its assembler
    CudaImage *cuda_images;
    uint32_t cuda_image_count;
    size_t cuda_image_capacity;
    uint32_t cuda_jobs, cuda_cached;   // programs compiled; images that were in the cache
    double cuda_seconds, cuda_job_seconds;     // of NVRTC: on the clock, and of all threads
    char *images;            // what goes into the executable beside the data
    size_t image_bytes;
    char *data;              // the data section
    size_t data_size, data_capacity;
    uint32_t *data_table;    // blobs already there, by content: index in data_items + 1
    uint32_t data_table_size;
    struct DataItem {
        uint64_t hash;
        size_t offset, size;
    } *data_items;
    uint32_t data_count;
    size_t data_item_capacity;
    Work **plans;            // all plans, in the order of entries and variants: fused, then plain
    uint32_t plan_count;
    size_t plan_capacity;
    // by entry: first index in `plans` of its variants' fused and plain plans (UINT32_MAX: none)
    uint32_t *fused_first, *plain_first;
    // --unfused-too: by entry, first index of the plans of its variants at ladder step 0, behind
    // which those of the next steps lie; the last step is fused_first (UINT32_MAX: no ladder)
    uint32_t *ladder_first;
    bool unfused_too;
    uint32_t *option_slot;   // by option
    uint32_t option_slots;
    int64_t *param_offset;   // by parameter, bytes
    int64_t param_bytes;
    struct EntryOutputs {    // tensors of an entry in space PV_IO, the same for all variants
        Output *at;
        uint32_t count;
    } *outputs;
} Codegen;

/* link.c */
// The folder beside pvdmc that holds include/ and lib/; NULL: it is not there.
const char *find_home(Arena *arena);
typedef struct {
    const char *output;
    const char *march;
    bool library;            // a shared library with the functions of runtime/library.h
    bool real64;
    bool verbose;
    bool cache;              // objects of the kernel library may come from an earlier run
} LinkOptions;

/* targets.c */
// Comma lists: "cpu,cuda", "sm_80,sm_90a,ptx". false: not known.
bool parse_targets(const char *list, Targets *targets);
bool parse_archs(const char *list, Targets *targets);

// For the CPU; `targets` may be changed before anything is lowered.
Codegen *codegen_new(Module *module, Sources *sources, const char *march);
// Offset of `size` bytes in the data section, which holds equal blobs once. Aligned to 64.
size_t data_add(Codegen *cg, const void *bytes, size_t size);
size_t data_table(Codegen *cg, const Node *table);       // of op `table`, in machine types
uint32_t kernel_library(Codegen *cg, const char *symbol);
uint32_t kernel_emitted(Codegen *cg, const char *name, const char *text, uint32_t cuda);
uint32_t kernel_with_cuda(Codegen *cg, uint32_t kernel, uint32_t cuda, uint32_t cuda_90a);
uint32_t stream_index(const Codegen *cg, const char *name);
// Output index (space PV_IO, behind the inputs) of an output; UINT32_MAX: it is not in PV_IO.
uint32_t output_index(const Codegen *cg, uint32_t entry, const Output *output);

/* emit_expr.c: operations as C expressions; step values as C statements */
const char *c_type(DType dtype);                         // "PvReal", "int64_t", "bool"
void write_real(FILE *out, double value);                // a literal of type PvReal
// `node` as an expression of the operands' texts.
void write_op(FILE *out, const Graph *graph, const Node *node, const char *const *args);
// Statements that define v<node> for step values, each once in a scope.
typedef struct {
    Codegen *cg;
    FILE *out;
    int indent;
    Val *known;
    size_t capacity;
    uint32_t count;                                      // cut back to leave a block
} StepScope;
void write_step(StepScope *scope, Val val);

/* emit_elementwise.c: one kernel for a group of elementwise nodes */
typedef struct Lower Lower;
void lower_elementwise(Lower *lower, const Group *group, uint32_t number);

/* cuda_choose.c: which CUDA kernel computes a launch */
static inline bool wants_cuda(const Codegen *cg)
{
    return cg->targets.cuda || cg->targets.simt;
}
// Most segments of a launch with so many arguments each: 4 KB are what every driver takes as a
// parameter, 120 bytes of them the head (cx_most_segments of cuda/cx_launch.h says the same).
enum { CUDA_PARAMETER_ARGS = (4096 - 120) / 8 };
static inline uint32_t most_segments(uint32_t args)
{
    uint32_t most = CUDA_PARAMETER_ARGS / (args ? args : 1);
    return most < 1 ? 1 : most > PV_MAX_SEGMENTS ? PV_MAX_SEGMENTS : most;
}
// Index + 1 in Codegen.cuda_kernels. `text` NULL: of a template.
uint32_t cuda_kernel_add(Codegen *cg, const CudaChoice *choice, const char *text, uint32_t args);
// Whether a launch of `segments` segments, `count` arguments each, has a kernel with one more.
bool cuda_takes_segment(Codegen *cg, uint32_t kernel, const PlanArg *args, uint32_t segments,
                        uint32_t count, const PlanArg *more);
void add_runtime_kernels(Codegen *cg);                   // before any other
// Gives every launch of all plans a kernel for GPUs. Needs launches; buffers may lie anywhere.
void choose_cuda_kernels(Codegen *cg);
// A name, or a line of figures, has one of the words that kernels are chosen by.
bool is_kernel_wanted(const Codegen *cg, const char *name);
// Why a product of a mixed plan has no kernel for sm_90a; NULL: it has one, or is no product.
const char *cuda_refused(Codegen *cg, const Work *work, const PlanLaunch *launch);
CudaModuleKernel cuda_kernel_text(Codegen *cg, const CudaKernel *kernel);

/* cuda_build.c: programs of CUDA kernels and their images */
void print_cuda_stats(const Codegen *cg);                // after build_cuda
void print_cuda(Codegen *cg, FILE *out);                 // the text of all programs
// Compiles all kernels and fills cuda_images. `folder` is for temporary files. 0; 1: a compiler
// failed (its messages are out); 3: something of the machine is missing.
int build_cuda(Codegen *cg, const char *home, const char *folder, const LinkOptions *options);

/* cuda_figures.c */
// Compiles all kernels and prints what their cubins say. 1: one of them is not as it should be.
int print_figures(Codegen *cg, FILE *out, const LinkOptions *options);

/* emit_launch.c: groups to launches; of some operations: emit_contract.c, emit_composite.c,
 * emit_norm.c */
struct Lower {
    Codegen *cg;
    Work *work;
    const Graph *graph;
    const Group *group;      // being lowered
    uint32_t *tap_head;      // by local number: first tap + 1 that shows this storage
    uint32_t *tap_next;      // by tap: the next of the same storage
    struct Kern *kern;       // of emit_elementwise.c
    size_t launch_capacity, arg_capacity, buffer_capacity, scalar_capacity, inplace_capacity;
};
void lower_groups(Codegen *cg, Work *work);

typedef struct {
    uint32_t rank;
    Dim size[MAX_RANK], x[MAX_RANK], y[MAX_RANK];
} CopyShape;

void launch_begin(Lower *lower, const char *symbol, uint32_t arg_count);
void launch_begin_kernel(Lower *lower, uint32_t kernel, uint32_t arg_count);
void set_arg(Lower *lower, size_t index, PlanArg value);
void set_dim(Lower *lower, size_t index, Dim value);
void set_int(Lower *lower, size_t index, int64_t value);
void set_real(Lower *lower, size_t index, double value);
// The launch's arguments as numbers, for a *_scratch function; what depends on the batch is 0.
const void *launch_numbers(Lower *lower);
void need_scratch(Lower *lower, int64_t bytes);
#define ARG(type, field) (offsetof(type, field) / sizeof(int64_t))

PlanArg arg_none(void);
uint32_t place_index(const Lower *lower, Val val);       // of Work.place, .placed, .made_at
PlanArg arg_offset(PlanArg arg, Affine elements, size_t element_size);
PlanArg new_buffer(Lower *lower, Dim count, DType stored);
PlanArg result_place(Lower *lower, Val val);             // storage of a result (made if need be)
PlanArg wanted_place(Lower *lower, const Group *group, uint32_t out);   // a dummy if not wanted
PlanArg view_place(Lower *lower, const View *view, DType dtype);        // where a view begins
PlanArg dense_place(Lower *lower, Val val);              // row-major, copied if need be
// An image: the strides of image, channel and position go to stride[0 .. 2]; copied if need be.
PlanArg image_place(Lower *lower, Val val, Dim *stride);
// What `val` shows as a value of the shape `type`: strides, false if there are none.
bool strides_as(const Lower *lower, Val val, const Type *type, Dim *stride);
// A copy of what `val` shows as `type`, its axes in the order of the strides, which become its own.
PlanArg place_like(Lower *lower, Val val, const Type *type, Dim *stride);
// The launch reads each element of `residual` before it writes it in `result`: they may be one.
void residual_inplace(Lower *lower, const Group *group, PlanArg result, PlanArg residual);
// Elements of `dtype`; they may be stored otherwise on either side.
void launch_copy(Lower *lower, PlanArg y, PlanArg x, const CopyShape *shape, DType dtype);
Dim count_of(const Type *type);
int64_t real_size(const Lower *lower);                   // bytes of a working real
size_t size_of(const Lower *lower, Val val);             // bytes of an element, as it is stored
// Bytes of an element of `dtype` where it is stored like this.
size_t place_size(const Lower *lower, PlanArg place, DType dtype);
// Argument `types` of the launch: the storage of the arguments first .. first + count - 1, and of
// those in more[0 .. more_count - 1].
void set_types(Lower *lower, size_t types, size_t first, uint32_t count, const size_t *more,
               uint32_t more_count);
const Node *anchor_of(const Lower *lower, const Group *group);
int64_t activation(Op op);                               // PvAct

// Copies what `val` shows to `y`, whose axes lie at `stride`.
void copy_val(Lower *lower, Val val, PlanArg y, const Dim *stride);
void launch_fill(Lower *lower, PlanArg y, const Type *type, double value);   // all of `type`

/* emit_outputs.c */
// Before any group: results that are outputs get their place; direct[output]: it has. After all
// groups: the others are copied, state last, since the step reads the old one.
void place_outputs(Lower *lower, bool *direct);
void store_outputs(Lower *lower, const bool *direct);
// Taps, by the storage that they show; copies of those that a group has just stored;
// where they lie.
void list_taps(Lower *lower);
void copy_taps(Lower *lower, const Group *group);
void place_taps(Lower *lower);

/* emit_move.c */
void lower_concat(Lower *lower, const Group *group);
void lower_pad(Lower *lower, const Group *group);
void lower_window(Lower *lower, const Group *group);
void lower_pick(Lower *lower, const Group *group);
void lower_gather(Lower *lower, const Group *group);
void lower_random(Lower *lower, const Group *group);
void lower_reduce(Lower *lower, const Group *group);
void lower_move(Lower *lower, const Group *group);       // in row-major order

/* emit_contract.c, emit_composite.c, emit_norm.c */
void lower_contract(Lower *lower, const Group *group);
void lower_conv(Lower *lower, const Group *group);
void lower_attention(Lower *lower, const Group *group);
void lower_attention_grad(Lower *lower, const Group *group);
void lower_norm(Lower *lower, const Group *group);       // norms, their gradients, softmax

// Where what an OP_GROUP_NORM_TABLE reads and writes lies.
typedef struct {
    const Node *node;
    PlanArg table, mean, rstd, gamma, beta, scale, shift;
    Dim mod_image;
    PlanArg moments;           // of an OP_CHANNEL_MOMENTS; arg_none(): not wanted
    Dim moments_image;
    int64_t moments_shift;
} NormTablePlaces;
// results: table, mean, rstd; the latter two may be 0. It may need copies, which are launches.
NormTablePlaces norm_table_places(Lower *lower, const Node *node, const Val *results);
// What the group's kernel has to make of its result, if it is to make a table.
NormTablePlaces group_table_places(Lower *lower, const Group *group);
// A NormLoad from field `first` on.
void set_norm_load(Lower *lower, size_t first, const NormLoadOf *load);
void set_norm_stats(Lower *lower, size_t first, const NormTablePlaces *at); // from a NormStats on

/* emit_segments.c: launches of sibling groups, joined */
// Those of member i, a group or a term of one, are launches first[i] .. first[i + 1] - 1,
// the last of all.
void join_segments(Lower *lower, const uint32_t *groups, uint32_t group_count,
                   const uint32_t *first, uint32_t count);

/* plan_stats.c: for --stats */
void print_plan_stats(FILE *out, const Codegen *cg, const Work *work);   // of a lowered plan

/* emit_host.c: samplers; which variant a step is */
void emit_select(Codegen *cg, FILE *out, uint32_t entry);
void emit_samplers(Codegen *cg, FILE *out);

/* emit_c.c: the tables and the files */
typedef struct {
    const char **paths;      // C files
    uint32_t count;
    const char *bytes;       // for the assembler: data and images
} CFiles;
// Writes the C files (and the data section) into `folder`. false: errno tells.
bool emit_files(Codegen *cg, const char *folder, CFiles *files);
void write_type(FILE *out, const Module *module, const Type *type);      // as a PvType
void emit_cuda_tables(const Codegen *cg, FILE *out);     // emit_cuda.c: `cuda`, a PvCuda
void emit_text(Codegen *cg, FILE *out);                  // all C text, for --emit c
const char *kernel_name(const Codegen *cg, uint32_t kernel);

/* emit_taps.c: taps of all plans, which are lowered and planned */
typedef struct Taps Taps;
Taps *taps_new(Codegen *cg);
size_t taps_add(Taps *taps, const Work *work);           // where its PvTaps lie in the data section
// Writes `tap_types` and ends. Where the names begin in the data section.
size_t taps_write(Taps *taps, FILE *out);

/* pack_plan.c: launches and arguments as bytes (runtime/unpack.h) */
// *size bytes, malloc'ed. The arguments of launch i + 1 lie behind those of launch i.
void *pack_plan(const PvLaunch *launches, uint32_t launch_count, const PvArg *args,
                uint32_t kernel_count, size_t *size);

/* cache.c: objects from earlier runs */
typedef struct Cache Cache;
// `cc`: the compiler and its flags, whole; `include`: the folder of headers. NULL: no cache.
Cache *cache_open(Arena *arena, const char *include, const char *const *cc, uint32_t count);
// The object of a source into a file; false: it is not there. `source` is not compiled with more
// than `cc`.
bool cache_fetch(const Cache *cache, const char *source, const char *object);
void cache_store(const Cache *cache, const char *source, const char *object);
// The same folder for anything that is made from `key`. What cache_read gives is malloc'ed.
Cache *cache_open_keyed(Arena *arena);
void *cache_read(const Cache *cache, const char *kind, const void *key, size_t key_size,
                 size_t *size);
void cache_write(const Cache *cache, const char *kind, const void *key, size_t key_size,
                 const void *bytes, size_t size);
// What `cc --version` prints, for a command's words: false if it cannot be run.
bool write_compiler_version(FILE *out, const char *const *cc, uint32_t count);
// The bytes of a file, malloc'ed, with a 0 behind them; NULL: it cannot be read.
char *read_whole(const char *path, size_t *size);

/* link.c: runs the C compiler */
// 0; 1: the C compiler failed (its messages are out); 3: something of the machine is missing.
int link_executable(Codegen *cg, const LinkOptions *options);

#endif
