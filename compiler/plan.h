// The back end's data: from the graph of one variant to a plan, the list of launches with
// addresses.
//
//   layout    which values are views, that is (storage of another value, offset, strides)
//   fuse      groups: what one kernel computes
//   schedule  the order of groups, some of them twice (recompute.c)
//   lower     groups to launches (codegen/emit_launch.c: it knows the kernels of a target)
//   plan      lifetimes and offsets of buffers
//
// One Work holds one plan while it is made. Nodes are numbered anew, densely, in it (`local`),
// since one graph holds the nodes of all programs. A value that is not a view has storage of its
// own: an arena buffer, or a place in parameters, gradients, inputs, outputs, constants or step
// values.
#ifndef PVDMC_PLAN_H
#define PVDMC_PLAN_H

#include "compiler/program.h"
#include "runtime/pvdm.h"

typedef struct {
    int64_t fixed, batch;      // the number fixed + batch * b
} Affine;

// Element (i0, i1, ...) of a value lies at offset + sum i * stride in the storage of `base`, all in
// elements. The stride of an axis of size 1 is 0; an axis outside the batch axis has a multiple of
// b.
typedef struct {
    Val base;
    Affine offset;
    Dim stride[MAX_RANK];
} View;

// Optimizations that can be switched on one by one; what a value is never depends on them, but for
// the order of sums.
typedef enum {
    RUNG_ELEMENTWISE = 1,      // chains of elementwise operations in one kernel
    RUNG_NORMS = 2,            // norms with scale and shift, activations, or taken apart into what
                               // products load; their gradients add up
    RUNG_EPILOGUES = 4,        // biases, activations and sums in the kernel of a product
    RUNG_ATTENTION = 8,        // attention is one kernel, which keeps its scores to itself, and
                               // splits and merges heads
    RUNG_PLACEMENT = 16,       // operands of a concat are made where it lies; slices are views
    RUNG_BATCHING = 32,        // independent groups of one kernel in one launch
    RUNG_TABLES = 64,          // what depends on step values and weights alone, computed once
    RUNG_MEMORY = 128,         // results within operands, values computed twice
    RUNG_WINOGRAD = 256,       // convolutions of 3 x 3 by minimal filtering where that is less work
                               // (CPU): fewer products, in another order
    RUNG_SPLIT = 512,          // products of f32 by parts in bf16, where a processor has a unit for
                               // them (CPU): as exact, but results depend on the machine
    RUNG_ALL = 1023
} Rung;

typedef enum { GROUP_ELEMENTWISE, GROUP_LIBRARY } GroupKind;

// An operand act(x a + d) that a kernel normalizes as it loads it; a and d [b, c, 1...] are views
// of one norm's table.
typedef struct {
    Val x, a, d;               // x 0: there is none
    Op act;                    // OP_STOP_GRADIENT: none
    Val product, sum;          // x a, x a + d: what is not stored
} NormLoadOf;

// An operand x cos + partner(x) sin of attention, which its kernel computes as it loads x; tables
// [1..., n, width], columns behind `width` are those of x (RotaryLoad of codegen/kernel_args.h).
typedef struct {
    Val x, cos, sin;           // x 0: there is none
    int64_t width;
    int partner;               // PV_ROTARY_...
} RotaryOf;

// What one kernel computes. Elementwise: the expression trees of `results`, over one iteration
// space, down to values that other groups store. Library: `anchor`, and what its epilogue takes in.
typedef struct {
    GroupKind kind;
    NodeId anchor;             // library: the node of the kernel; elementwise: the last result's
    const Type *space;         // elementwise: the iteration space
    Val results[MAX_OUT];      // values it stores; library: by output of the anchor, 0 = not wanted
    uint32_t result_count;
    Val *reads;                // values from outside, views not resolved
    uint32_t read_count;
    NodeId *members;           // nodes computed here, ascending, the anchor included
    uint32_t member_count;
    // epilogue: act((y (1 + scale) + shift) + bias) + residual, each 0 if absent
    Val bias, residual, scale, shift;
    bool turned;               // the residual has the result's axes in another order
    Val added[MAX_OUT];        // norm gradients: what is added to dgamma and dbeta, 0 if absent
    uint32_t bias_axis;        // axis of the anchor's result along which the bias runs
    // a product's result is values times act(gates), the halves of its last axis: the node that
    // multiplies them, 0 if none does; whether gates come first
    NodeId gate;
    bool gate_first;
    Op act;                    // OP_STOP_GRADIENT: none
    NormLoadOf norm;           // what it reads in place of operand `norm_operand`
    uint32_t norm_operand;
    RotaryOf rotary[2];        // attention and its gradient: what is read in place of q and k; then
                               // results[0] and [1] of the gradient are those of x
    NodeId table;              // group_norm_table of results[0], made here as well: results[1 .. 3]
    NodeId moments;            // channel_moments of results[0], made here as well: results[3]; the
                               // table has no rstd then
    // Nodes like the anchor whose results are added to its own: results[0] is the sum of all
    NodeId terms[PV_MAX_SEGMENTS - 1];
    NormLoadOf term_norms[PV_MAX_SEGMENTS - 1];    // as `norm`, of the same operand
    uint32_t term_count;
    bool lowered;              // there are launches for it
} Group;

typedef struct {
    int64_t a, c;              // as in PvArg; in PV_ARENA relative to the buffer
    uint16_t space;            // PvSpace
    bool result;               // the launch stores there
    uint8_t store;             // PvStorage (codegen/kernel_args.h) of what lies there
    uint32_t buffer;           // PV_ARENA: buffer number + 1
} PlanArg;

typedef struct {
    uint32_t kernel;
    uint32_t arg, arg_count;   // in Work.args
    NodeId origin;
    const char *label;         // what it computes: "conv3x3 + silu"
    uint32_t segments;         // independent problems, arg_count / segments arguments each
    double flops_fixed, flops_batch;
    double bytes_fixed, bytes_batch;   // read and written at least, each operand once
    // A result, in the arena or among the gradients, that may overwrite an operand (buffer + 1);
    // PV_VALUE, 0: none.
    PlanArg inplace_out;
    uint32_t inplace_in;
    uint32_t more_inplace;     // Work.inplace + 1: those of further segments; 0: none
} PlanLaunch;

typedef struct {
    PlanArg out;
    uint32_t in;
    uint32_t next;             // Work.inplace + 1
} Inplace;

typedef struct {
    int64_t size;              // bytes; a batch element's if `batch`
    int64_t bytes;             // rounded up to 256
    bool batch;
    int32_t first, last;       // launches that touch it
    uint32_t alias;            // it lies where this buffer (+ 1) lies; 0: by itself
    PlanArg outside;           // it lies there, not in the arena; PV_VALUE: in the arena
    int64_t offset;
} Buffer;

typedef struct {
    const char *name;
    const Type *type;
    PlanArg at;
    int32_t launch;
} PlanTap;

typedef struct Work {
    Module *module;
    Entry *entry;
    Variant *variant;
    uint32_t entry_index, variant_index;
    int level;                 // 0, 1, 2
    uint32_t rungs;            // Rung bits; a plan of a level has level_rungs(level)
    bool taps;
    Arena *arena;
    // A table's row (partial.c): of a step, the plan that makes it and its bytes; of such a plan,
    // the place of each output in it.
    struct Work *table;
    int64_t row_bytes;
    uint32_t row_input;        // of such a plan: index behind PV_IO
    int64_t *row_offset;

    // the nodes that outputs (and taps) need; step values stand here, what they need does not
    uint32_t count;
    NodeId *nodes;             // by local number, ascending
    uint32_t *local;           // by NodeId: local number + 1, 0 = not needed; sparse
    bool *step;                // by local number: a step value
    NodeId **turn;             // by block of NodeIds, by NodeId: the node of the model in whose
                               // place this one stands; 0, or no block: it is one itself
    uint32_t turn_blocks;
    bool *kept;                // an output or tap reads it
    uint32_t *user_first;      // users of local number i: users[user_first[i] .. user_first[i + 1]]
    NodeId *users;
    View **view;               // by local number: NULL = it has storage of its own
    View **within;             // by local number * MAX_OUT + output: it lies where that view of
                               // another value lies (an operand, or a concat)
    bool *resampled;           // by local number: no kernel makes it, its readers up-sample what
                               // it is made of; NULL before there are groups
    bool **pieces;             // of a concat, by local number: which operands lie within it; then
                               // whether any does. NULL: none does
    bool *mixed;               // by local number * MAX_OUT + output: this storage is of
                               // Module.storage; NULL: none is
    uint32_t **order;          // by local number * MAX_OUT + output: axes of the storage,
                               // outermost first; NULL: 0, 1, ...

    Group *groups;
    uint32_t group_count;      // of `groups`; once there is a schedule, its length
    uint32_t *owner;           // by local number: group + 1, 0 = none (view, source, inlined)
    uint32_t *schedule;        // group numbers in order; one may come again (recompute.c)
    bool *joined;              // by place in the schedule: with the one before, one launch if
                               // it can be; NULL: none is
    int64_t budget;            // bytes that the arena may have at batch `budget_batch`; 0: none
    int64_t budget_batch;
    uint32_t repeats;          // groups that come again, and their operations
    double again_fixed, again_batch;

    PlanArg *place;            // by local number * MAX_OUT + output: where storage lies
    bool *placed;
    PlanArg *dense;            // a row-major copy of a view, made by an earlier launch
    bool *has_dense;
    int32_t *made_at;          // launch after which storage, or a dense copy, holds the value
    int32_t *dense_at;
    Val *scalars;              // slot -> step value
    uint32_t scalar_count;
    PlanLaunch *launches;
    uint32_t launch_count;
    Inplace *inplace;
    uint32_t inplace_count;
    PlanArg *args;
    uint32_t arg_count;
    Buffer *buffers;
    uint32_t buffer_count;
    PlanTap *tap_list;
    uint32_t tap_count;
    uint32_t *streams, stream_count;
    uint32_t *grads, grad_count;
    uint32_t *instances, instance_count;
    int64_t scratch;           // bytes a thread
    int64_t arena_fixed, arena_batch;
    int64_t live_fixed, live_batch;
} Work;

size_t element_size(const Module *module, DType dtype);   // reals are all PvReal

/* storage.c */
// Which values are stored as Module.storage. Part of find_layout.
void choose_storage(Work *work);
DType stored_dtype(const Work *work, Val val);
size_t stored_size(const Work *work, Val val);        // bytes of an element

/* order.c */
// In mixed precision: which filters of convolutions lie with their channels last (Param.last), in
// all plans, with all that lies as parameters do. Before find_layout.
void order_params(Module *module);
void filter_strides(const Type *type, Dim *stride);   // of a filter that lies so
// Strides of a value of `type` whose axes are stored in this order, the outermost first.
void ordered_strides(const Type *type, const uint32_t *order, Dim *stride);
// Where the gradient or the new value of a parameter is wanted, as its parameter lies.
void param_strides(const Module *module, uint32_t param, Dim *stride);
// Storage order of results, by the kernels that make them. Part of find_layout.
uint32_t *result_order(const Work *work, Val val);
bool is_mixed_plan(const Work *work);
// Of images [image, channel, positions...] that lie at `full`, the strides of image, channel and
// position; false: positions are not one row, or neither they nor channels are dense.
bool image_strides(const Type *type, const Dim *full, Dim *image);

/* choose_order.c */
// In mixed precision: which axis of each stored value is the dense one. Part of find_layout.
void choose_orders(Work *work);

/* rows.c */
// The order of axes in which a node stores result `out`, so that its rows lie as those of the
// operand that it follows do; `lies` tells how operands lie. false: row-major.
typedef View (*Lies)(void *context, Val val);
bool order_of_rows(const Graph *graph, const Node *node, uint32_t out, Lies lies, void *context,
                   uint32_t *order);

// Of a plan's result; NULL: row-major. Part of result_order.
uint32_t *rows_order(const Work *work, Val val);

/* rewrite.c */
// A plan's own version of the graph in the making.
typedef struct {
    Work *work;
    Graph *graph;
    uint32_t total;            // nodes before
    uint64_t *needed;          // a bit a NodeId: an output depends on it
    NodeId *nodes;             // those, ascending
    uint32_t count;
    Val *map;                  // by Val: what it has become
    Val *in;                   // operands, while a node is remade
    size_t in_capacity;
} Rewrite;
// What is needed. The graph holds the nodes of all plans, a plan has few of them: tables by NodeId
// belong in a sparse arena, and loops go over `nodes`.
void rewrite_begin(Rewrite *own, Work *work, Arena *arena);
void rewrite_start(Rewrite *own, Arena *arena);       // room for `map`: something is to be done
void rewrite_turn(Rewrite *own, Val made, NodeId from);    // a new node stands where `from` stood
Val rewrite_operands(Rewrite *own, NodeId id);             // the node of what its operands became
void rewrite_end(Rewrite *own);                            // outputs and turns become the plan's
void rewrite_free(Rewrite *own);
NodeId turn_of_node(const Work *work, NodeId id);          // Work.turn, or the node itself
static inline bool rewrite_needs(const Rewrite *own, NodeId id)
{
    return own->needed[id / 64] >> id % 64 & 1;
}
// Sets of nodes, a bit each: what the marked ones need is marked as well, but not what step values
// need unless `beyond_steps`. All of them, ascending.
static inline void mark_node(uint64_t *marks, NodeId id)
{
    marks[id / 64] |= UINT64_C(1) << id % 64;
}
NodeId *needed_nodes(const Graph *graph, Arena *arena, uint64_t *marks, bool beyond_steps,
                     uint32_t *count);
bool node_is_step(const Graph *graph, NodeId id);

/* scores.c */
// Attention as products and a softmax, with its scores in memory: in plans without RUNG_ATTENTION,
// which get outputs of their own. Part of find_layout.
void take_attention_apart(Work *work);

/* refine.c */
// Axes that are joined from what lies apart stay apart: the plan gets outputs of its own.
// RUNG_ATTENTION; part of find_layout.
void refine_axes(Work *work);

/* rungs.c */
uint32_t level_rungs(int level);
// "elementwise,norms", "all", "none" to bits; false: one of the names is none.
// The ladder of --unfused-too: rung by rung from none to all.
typedef struct {
    const char *name;
    int level;                 // 0, 1, 2: these are the rungs of that level; -1: of none
    uint32_t rungs;
} LadderStep;
enum { LADDER_STEPS = 11 };
extern const LadderStep ladder[LADDER_STEPS];
bool parse_rungs(const char *text, uint32_t *bits);

/* partial.c */
// By entry: samplers call it in a loop. RUNG_TABLES is for their plans.
bool *entries_in_loops(Arena *arena, const Module *module);
// Takes what depends on weights and step values alone out of the plan's variant; the step reads it
// from an input of its own, a row, in space PV_IO + row_input. The plan that computes the row, for
// the same entry, whose outputs lie in it; NULL: there is nothing to take out. Before find_layout.
Work *split_table(Work *work, uint32_t row_input);

/* layout.c */
// Collects the needed nodes, their users, and finds the views. Needs the variant, level and taps.
void find_layout(Work *work);
_Noreturn void not_in_plan(Val val);
static inline uint32_t local_of(const Work *work, Val val)
{
    uint32_t local = work->local[val_node(val)];
    if (local == 0)
        not_in_plan(val);
    return local - 1;
}
View view_of(const Work *work, Val val);              // of a needed value
static inline Val base_of(const Work *work, Val val)  // view_of(work, val).base
{
    const View *view = work->view[local_of(work, val)];
    return view ? view->base : val;
}
const View *within_of(const Work *work, Val val);     // NULL: it has storage of its own
Val storage_of(const Work *work, Val val);            // the value with the storage it lies in
// Strides of `to` over the elements that `x` shows as `from`, both row-major; false if there are
// none.
bool reshape_view(const View *x, const Type *from, const Type *to, View *out);
void move_offset(Affine *offset, Dim stride, Dim steps);
// The view that a movement of `x` is; false: it is none, or its elements have to be moved.
bool view_through(const Graph *graph, const Node *node, const View *x, View *out);
bool view_is_dense(const View *view, const Type *type);
// The elements lie without gaps, in whatever order of axes.
bool covers(const View *view, const Type *type);
static inline bool val_is_step(const Work *work, Val val)
{
    return work->step[local_of(work, val)];
}
bool same_elements(const Work *work, Val x, Val y);   // in the same places, in the same shape
Dim dim_product(Dim x, Dim y);
// stride == inner stride * inner size: two axes are one.
bool axes_merge(Dim stride, Dim inner_stride, Dim inner_size);
void dense_strides(const Type *type, Dim *stride);
// Nodes that read `val` among the needed ones: how many, and one of them.
uint32_t count_users(const Work *work, Val val, NodeId *user);

/* unite.c */
// Concats of equal parts as parts of one concat (RUNG_PLACEMENT), sums of few elements as additions
// (RUNG_ELEMENTWISE): the plan gets outputs of its own. Part of find_layout.
void rewrite_graph(Work *work);

/* norm_tables.c */
// Norms that products read, taken apart into a table and x a + d (RUNG_NORMS):
// the plan gets outputs of its own. Part of find_layout.
void take_norms_apart(Work *work);
// Which operand of a contraction out[b, o, n...] = sum over c of w[o, c] x[b, c, n...] is x; -1: it
// is no such contraction.
int pointwise_operand(const Graph *graph, const Node *node);
// The same where the sum may go over several axes, if there is one axis n: its result can have a
// table.
int image_operand(const Graph *graph, const Node *node);

/* place.c */
// Of a library kernel: whether it can write its first output with these strides.
bool kernel_writes(const Work *work, const Node *node, const View *view);

// From the strides of what a reshape or a transpose shows to those of its operand; false: it cannot
// be undone.
bool undo_view(const Graph *graph, const Node *node, const View *view, View *operand);
// Operands of concats that lie within them. RUNG_PLACEMENT; part of find_layout.
void place_parts(Work *work);

/* fuse.c */
// Groups. -O0: one for each node that is no view. -O2: results that lie within an operand.
void fuse_groups(Work *work);
bool group_inlines(const Work *work, uint32_t group, Val val);
void print_groups(FILE *out, const Work *work);

/* fuse_epilogue.c: part of fuse_groups */
// Takes what the kernel of the group computes behind its anchor into the group.
void match_epilogue(Work *work, Group *group);
bool contract_order_is_simple(const Node *node);
// From the strides of something of the shape of a group's result to those of the anchor's result:
// the movements between are undone. false: there are none.
bool anchor_strides(const Work *work, const Group *group, const View *view, View *out);

/* fuse_norms.c: part of fuse_groups */
// By local number: values that all their readers normalize as they load them, and what lies before
// them: no kernel computes these.
bool *find_norm_loads(const Work *work);
// The load of a group whose operand is such a value.
void load_norm(const Work *work, const bool *loaded, Group *group);
// By local number: what depends on a value that a norm's table is made of.
bool *find_behind_norms(const Work *work);
// Lets the group that makes x make the table `local` of it as well; false: it cannot.
bool fuse_table(Work *work, const bool *behind, uint32_t local);
bool fuse_moments(Work *work, uint32_t local);         // the same of channel_moments

/* fuse_rotary.c: part of fuse_groups */
// Rotary operands of attention that its kernels compute as they load them.
typedef struct {
    RotaryOf *of;              // by local number of the operand's node
    bool *inside;              // by local number: no kernel computes it
    Val *turned;               // by local number * 2 + output of attention_grad: its gradient of x
} Rotaries;
Rotaries find_rotaries(const Work *work);
void load_rotaries(Work *work, const Rotaries *found, Group *group);

/* resample.c: part of fuse_groups */
// A value that is x [b, c, s1, 1, s2, 1...], up-sampled by powers of two.
typedef struct {
    Val x;
    View view;                 // of x
    Dim stride[3];             // of image, channel and position of x
    int64_t shift[3];          // by axis of a convolution, the missing ones first
} Resample;
bool find_resample(const Work *work, Val val, Resample *out);
// By local number: values that no group makes if all their readers can up-sample for themselves.
bool *find_resamples(const Work *work);
// Whether they can. Needs the groups of the readers.
bool is_resampled_by_all(const Work *work, const bool *loaded, uint32_t local);

/* sums.c */
// Chains of groups that add their results up, as one group with terms. RUNG_BATCHING; part of
// fuse_groups.
void sum_groups(Work *work);

/* schedule.c */
// Orders the groups: topological, live sets small. -O2: merges neighbours of one iteration space.
void schedule_groups(Work *work);

/* recompute.c */
// Groups that come twice in the schedule, so that their results need not wait: less memory. Part of
// schedule_groups at -O2, for plans with gradients.
void recompute_groups(Work *work);

/* traffic.c */
// Bytes that a group reads and writes at least: a part for any batch, and one a batch element.
void group_bytes(const Work *work, const Group *group, double *fixed, double *per_batch);
// Of those, what groups[index] reads and an earlier one of `groups` reads as well.
void shared_bytes(const Work *work, const uint32_t *groups, uint32_t index, double *fixed,
                  double *per_batch);

/* pack.c */
typedef struct {
    int64_t size, offset;
    int32_t first, last;       // alive in first .. last
} Interval;
// Packs intervals without overlap of live ones; returns the bytes needed.
int64_t pack_intervals(Arena *arena, Interval *items, uint32_t count);
int64_t live_bound(Arena *arena, const Interval *items, uint32_t count);   // largest live set

/* dot_plan.c */
// Graphviz text of plans: their launches if they are lowered, else their groups.
void print_plans_dot(FILE *out, Work *const *plans, uint32_t count);

/* label.c, edges.c: for reports */
const char *group_label(const Work *work, const Group *group);     // interned
// Pairs of launches of which the second reads what the first stored; malloc'ed.
uint32_t *launch_edges(const Work *work, uint32_t *count);

/* batch.c */
// Sets of independent groups of the same work, next to one another: `joined`. RUNG_BATCHING. After
// all else that changes the schedule.
void batch_groups(Work *work);
// Whether two nodes of one operation have the same kernel, as far as nodes can tell: channels and
// taps of a convolution, head widths of an attention.
bool nodes_alike(const Graph *graph, const Node *x, const Node *y);

/* plan.c */
// Lifetimes, in-place results, offsets. Needs launches; fills offsets, arena_* and live_*.
void plan_memory(Work *work);
PvArg resolve_arg(const Work *work, const PlanArg *arg);
void print_plan(FILE *out, const Work *work, const char *(*kernel_name)(uint32_t kernel));

/* memory.c */
// Bytes of a step: whatever the batch, and linear in it.
typedef struct {
    int64_t parameters, gradients, sums, moments, averages;
    int64_t shadow;            // in mixed precision, of the parameters
    Affine values;             // inputs and outputs
    Affine data;               // batches that are read ahead
    Affine activations, live;  // the arena; its lower bound
    int64_t workspace;         // a thread
} Footprint;
// Of one of all plans: a stage counts what all its turns need.
Footprint plan_footprint(Work *const *plans, uint32_t count, uint32_t index);
int64_t footprint_outside(const Footprint *of, int64_t batch); // all but the arena and workspaces
// Work.budget of all plans of RUNG_MEMORY: the bytes of the arena at a batch.
void set_budgets(Work *const *plans, uint32_t count, int64_t bytes, int64_t batch);
// Says on stderr which plans do not meet it, and what they take at least.
bool check_budgets(Work *const *plans, uint32_t count);
void print_certificate(FILE *out, Work *const *plans, uint32_t count);
const char *bytes_text(Arena *arena, double bytes);              // "1.50 GB", decimal

#endif
