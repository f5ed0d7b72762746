// What elaboration makes of a model file: parameters, options, streams, and entries, each with its
// variants. An Entry is a thing the executable can launch: a program, one `minimize` of a `train`
// block, or a call that a `sample` block makes. A Variant is one outcome of every question that is
// decided when a step starts (is an optional input there; an `if` on options, integers or draws):
// its own straight graph. Entries with one variant ask nothing.
#ifndef PVDMC_PROGRAM_H
#define PVDMC_PROGRAM_H

#include "compiler/graph.h"

typedef enum { INIT_ZEROS, INIT_ONES, INIT_FULL, INIT_NORMAL, INIT_UNIFORM } InitKind;

typedef struct {
    const char *name;      // full: "unet.out.2.weight"; the first segment is the instance
    uint32_t instance;
    Type type;             // logical shape, the checkpoint's; f32 (f64 with --dtype f64), i64
    bool buffer;           // batch-norm statistics: kept in files, moved by the forward pass
    InitKind init;
    double init_a, init_b; // full: value; normal: mean, std; uniform: lo, hi
    bool last;             // a filter that plans keep as [c_out, positions..., c_in] (order.c)
    Span span;
} Param;

typedef struct {
    const char *name;      // "ae"
    uint32_t first, count; // its parameters are contiguous in Module.params
    const char **ignored;  // names (within the instance) that a checkpoint may carry; the last
    uint32_t ignored_count;//   segments match: "encoder.frame_rot_emb.inv_freqs"
    Span span;
} Instance;

typedef struct {
    const char *name;      // "eta"; those of a train or sample block: "lr"
    const char *stage;     // block it belongs to ("diffusion", "ddim"), or NULL: global
    DType dtype;           // i64, bool, f32/f64; DT_NONE: an optional tensor of a sample block
    uint32_t count;        // 1, or the length of a list
    bool is_list;
    double value[8];       // defaults
    Type type;             // of an optional tensor
    Span span;
} Option;

typedef struct {
    const char *name;
    Type type;             // rank 0 i64/bool/real: a step value
    bool optional;         // has the default `none`
} Input;

typedef enum {
    OUT_NAMED,             // a result of a program, by name; the loss of a minimize is "loss"
    OUT_GRAD,              // gradient of parameter `param`
    OUT_GRAD_INPUT,        // gradient of input `param`
    OUT_STATE,             // new value of buffer `param`, stored when the step ends
    OUT_REPORT,            // a number that is logged
    OUT_SETTING,           // step value: argument of the optimizer ("lr", "beta1", "clip"...)
} OutKind;

typedef struct {
    OutKind kind;
    const char *name;
    uint32_t param;
    Val val;
} Output;

typedef struct {
    const char *name;      // "unet.input_blocks.1", "unet.input_blocks.1#2" (third call),
    Val val;               //   "denoise.x" (local x of a program or function)
} Tap;

typedef struct {
    Val cond;              // rank 0, bool, a step value
    bool outcome;
} Decision;

typedef struct {
    Decision *path;        // questions in the order asked; variants of an entry form a tree
    uint32_t path_count;
    Output *outputs;
    uint32_t output_count;
    Tap *taps;             // in the order of evaluation; for programs
    uint32_t tap_count;
    uint64_t given;        // bit i: optional input i is used as present
} Variant;

typedef enum { ENTRY_PROGRAM, ENTRY_GRAD, ENTRY_MINIMIZE, ENTRY_CALL, ENTRY_PROBE } EntryKind;

typedef struct {
    EntryKind kind;
    const char *name;      // "denoise"; "grad.diffusion_loss"; "diffusion.0"; "ddim.call0"
    Input *inputs;
    uint32_t input_count;
    Variant *variants;
    uint32_t variant_count;
    uint32_t program;      // ENTRY_GRAD: entry index of its program
    Span span;
} Entry;

// One `minimize`. Settings are OUT_SETTING outputs of its entry: lr, beta1, beta2, eps,
// weight_decay, momentum, clip, ema (absent = none).
typedef struct {
    uint32_t entry;
    const char *optimizer;     // "adamw", "sgd"
    uint32_t *instances;       // that move
    uint32_t instance_count;
    int64_t accumulate;
    int64_t ema_every;         // 0: no EMA
    bool clip;
    // When the result is the call of a program: that program's ENTRY_GRAD, for `train --replay`;
    // else UINT32_MAX.
    uint32_t replay;
} Minimize;

typedef struct {
    const char *name;          // "diffusion"
    const char *source;        // "clips", "images", "labels"
    bool pad;                  // clips(pad: true): short clips are padded
    uint32_t frames, height, width;
    const char *data_name;     // the variable; input 0 of every minimize's entry
    Type data_type;
    Minimize *minimize;
    uint32_t minimize_count;
    bool has_data;
    Span span;
} Stage;

// ---- sample blocks: host programs ----
// Host variables hold a number (dtype i64, bool, real), or a tensor, or nothing (`none`).

typedef enum {
    HOST_SET,        // var = value: a step value, by an expression over OP_VAR and OP_OPTION
    HOST_SET_NONE,   // var = none
    HOST_COPY,       // var = vars[source]
    HOST_OPTION,     // var = tensor option `source` (or nothing)
    HOST_RANDOM,     // var = a tensor drawn from a stream: value is an OP_RANDOM node (real shape)
    HOST_CALL,       // vars[results] = entry(args)
    HOST_FOR,        // for var in value .. limit (reverse: from the end) body
    HOST_IF,         // value (or: vars[source] is not none, if value == 0) body else other
    HOST_YIELD,      // vars[source] goes to the output
    HOST_REPORT,     // vars[source] goes to the trace, under `name`
} HostKind;

typedef struct HostStmt HostStmt;
typedef struct {
    HostStmt *at;
    uint32_t count;
} HostBlock;

typedef struct {
    bool is_var;       // vars[index], else a step value (a rank-0 argument)
    uint32_t index;
    Val value;
} HostArg;

struct HostStmt {
    HostKind kind;
    uint32_t var, source;
    Val value, limit;
    bool reverse;
    bool negate;        // HOST_IF: the opposite
    const char *name;
    uint32_t entry;
    HostArg *args;      // one for every input of the entry
    uint32_t arg_count;
    uint32_t *results;  // variables, one for every OUT_NAMED output
    uint32_t result_count;
    HostBlock body, other;
};

typedef struct {
    const char *name;
    DType dtype;        // DT_NONE: a tensor or nothing
    Type type;          // of the tensor
} HostVar;

typedef struct {
    const char *name;   // "ddim"
    HostVar *vars;
    uint32_t var_count;
    HostBlock body;
    Span span;
} Sampler;

typedef struct {
    const char *path;           // main file
    const char *name;           // its base name without .model
    Arena *arena;
    Graph *graph;
    DType real;                 // working precision: f32, f64
    DType storage;              // bf16, f16: how most values of a step are stored; DT_NONE: as is
    Param *params;              uint32_t param_count;
    Instance *instances;        uint32_t instance_count;
    Option *options;            uint32_t option_count;
    const char **streams;       uint32_t stream_count;   // names of random streams
    Entry *entries;             uint32_t entry_count;
    Stage *stages;              uint32_t stage_count;
    Sampler *samplers;          uint32_t sampler_count;
    // constants and their values as text, for `info` and checkpoints: "resolution=256"
    const char **constants;     uint32_t constant_count;
} Module;

// ---- the pipeline (each in its own file, in this order) ----

typedef struct {
    const char *path;                 // model file
    const char **defines;             // "name=value"
    uint32_t define_count;
    const char **include_dirs;
    uint32_t include_count;
    DType real;
    bool check;                       // only look for mistakes: programs' gradients are left out
} ElabOptions;

/* elaborate.c: AST to graphs of forward passes; gradients are added by grad.c.
   NULL after errors (in diag). Entries of kind ENTRY_GRAD for every scalar program and
   ENTRY_MINIMIZE get their forward graph here, their OUT_GRADs in grad.c. */
Module *elaborate(Arena *arena, Sources *sources, const ElabOptions *options);

/* unused.c: warns of parameters that no entry reads; elaborate calls it. */
void warn_unused(const Module *module);

/* grad_module.c: gradients of ENTRY_GRAD (all parameters and real inputs that the loss reaches) and
   ENTRY_MINIMIZE (parameters of the instances that move) as graph outputs. A parameter of a
   moving instance that the loss does not reach gets no OUT_GRAD. */
void grad_module(Module *module);
/* grad.c */
// d loss / d wrt[i] into out[i] (0: the loss does not depend on it). loss: rank 0, real.
void grad_build(Graph *graph, Val loss, Val seed, const Val *wrt, uint32_t count, Val *out);

/* simplify.c: common algebra, constant folding (by the interpreter, so that no bit changes),
   movement of movement, dead outputs. Rewrites the outputs and taps of every variant. */
void simplify_module(Module *module);
Val simplify_val(Graph *graph, Val val);

/* narrow.c: */
// A movement or contraction of values whose rows are equal all over the batch, for one row, and
// stretched; 0: it is not. Part of simplify.
Val narrow_batch(Graph *graph, const Node *node);

/* zeros.c: */
// A convolution or contraction without the part of its sum that is zero by construction; 0: there
// is none. Part of simplify.
Val leave_out_zeros(Graph *graph, const Node *node);

/* compact.c: the module's graph made anew: only what is needed, numbered in the order of `order`
   (0 in it is passed over), operands first. Vals of the old graph that the module does not name
   mean nothing afterwards. */
void compact_module(Module *module, const Val *order, size_t count);
// Every Val that a module names, as places to rewrite: decisions, outputs, taps, host programs.
// malloc'ed.
Val **module_roots(Module *module, size_t *count);

/* probe.c: entries that measure the machine, for --unfused-too; after simplify. */
void add_probes(Module *module);

/* interp.c: the reference. Evaluates nodes one by one in double or float arithmetic. */
typedef struct {
    int64_t batch;
    DType real;                       // arithmetic: DT_F32 or DT_F64
    // Values of sources: returns malloc'ed elements (type's dtype), or NULL: not given.
    void *(*source)(void *context, const Node *node, const Type *type);
    void *context;
} InterpOptions;
// Evaluates `vals` together; results[i] is malloc'ed, elements as val's type says. 0, or -1 with
// graph_error set (a source is missing).
int interp_run(Graph *graph, const InterpOptions *options, const Val *vals, uint32_t count,
               void **results);

/* print.c: the textual form, and back. print -> read -> print is the identity. */
void print_module(FILE *out, const Module *module);
void print_variant(FILE *out, const Module *module, const Entry *entry, const Variant *variant);
Module *read_module(Arena *arena, const char *text, char *error, size_t error_size);
void print_dot(FILE *out, const Module *module, const char *entry);

/* verify.c: types, operands, attributes, variants; aborts on a broken invariant. */
void verify_module(const Module *module);

/* cost.c: floating-point operations of a node, n * b^batch in two parts: fixed + per batch. */
void node_flops(const Graph *graph, NodeId node, double *fixed, double *per_batch);

#endif
