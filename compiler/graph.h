// The graph: immutable, hash-consed tensor operations, one graph for all programs of a model.
//
// A node is an operation of ops.def with operands, attributes and up to four outputs; a Val names
// one output of one node (node * 4 + output, 0 = none). Equal nodes are the same node, so equality
// of Vals is equality of values; a node's operands always have smaller numbers, so numeric order
// is a topological order. Where a node came from is a side table (Origin), since equal nodes of
// different lines are one.
//
// Sizes are integers or multiples of the batch `b`, the one size a program leaves open (Dim).
//
// Shapes and operands of elementwise operations: each operand has rank 0 (a number) or the rank of
// the result, and an axis of size 1 stretches. All other operations take the ranks they name.
// Step values (numbers known when a step starts) are nodes of rank 0 that depend only on consts,
// options, rank-0 inputs, `given`, `batch`, host variables, rank-0 randoms and tables indexed by
// such: graph_is_step tells. A target computes them on the host before the first kernel.
#ifndef PVDMC_GRAPH_H
#define PVDMC_GRAPH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "compiler/util.h"
#include "grammar/ast.h"

typedef uint32_t Val;   // node * 4 + output
typedef uint32_t NodeId;

static inline NodeId val_node(Val val) { return val >> 2; }
static inline unsigned val_out(Val val) { return val & 3; }
static inline Val val_of(NodeId node, unsigned out) { return node << 2 | out; }

enum { MAX_RANK = 8, MAX_OUT = 4, MAX_ATTR = 32 };

typedef enum { DT_NONE, DT_BOOL, DT_I64, DT_F16, DT_BF16, DT_F32, DT_F64 } DType;

size_t dtype_size(DType dtype);          // bytes; bool is one byte
const char *dtype_name(DType dtype);     // "f32"
static inline bool dtype_is_float(DType dtype) { return dtype >= DT_F16; }

typedef struct {
    int64_t n;       // the size, or
    int64_t batch;   // 1: the size is n * b; 0: it is n
} Dim;

static inline Dim dim_fixed(int64_t n) { return (Dim){n, 0}; }
static inline Dim dim_batch(int64_t n) { return (Dim){n, 1}; }
static inline bool dim_equal(Dim x, Dim y) { return x.n == y.n && x.batch == y.batch; }
static inline bool dim_is_one(Dim x) { return x.n == 1 && !x.batch; }

// A segmented axis, the positions of several planes one after the other, e.g. PVDM's
// (32 32 | 16 32 | 16 32) = 2048: extents of each segment, whose products add up to the axis.
// Interned in the graph; 0 = the axis is not segmented.
typedef uint32_t SegId;
typedef struct {
    uint32_t count;                 // segments, at most 16
    uint32_t rank[16];
    int64_t extent[16][4];
} Segments;

typedef struct {
    DType dtype;
    uint32_t rank;
    Dim dim[MAX_RANK];              // unused ones are zero
    uint32_t seg_axis;              // meaningful if seg != 0
    SegId seg;
} Type;

Type type_make(DType dtype, uint32_t rank, const Dim *dim);
Type type_scalar(DType dtype);                       // rank 0
bool type_equal(const Type *x, const Type *y);
bool shape_equal(const Type *x, const Type *y);      // without dtype and segments
// Elements as n * b^batch; false when the batch would enter twice.
bool type_count(const Type *type, Dim *count);
const char *type_text(const Type *type);             // "f32[b, 4, 2048]", interned

typedef enum {
#define OP(name, text, nin, nout, class, attrs) OP_##name,
#include "compiler/ops.def"
    OP_COUNT
} Op;

typedef enum {
    CLASS_SOURCE,       // no operands
    CLASS_ELEMENTWISE,
    CLASS_MOVEMENT,     // elements move, none is computed (gathers included)
    CLASS_REDUCE,
    CLASS_CONTRACT,     // contract, conv*
    CLASS_COMPOSITE,    // norms, softmax, attention, and their gradients
} OpClass;

typedef struct {
    const char *name;    // as printed and read
    int nin;             // operands; -1: the type rule checks
    int nout;
    OpClass class;
    const char *attrs;   // names of the attributes, in order: "axis start size", "perm*"
} OpInfo;

extern const OpInfo op_info[OP_COUNT];

// Attributes of a node; what they mean stands in ops.def. Unused fields are zero.
typedef struct {
    int64_t n[MAX_ATTR];
    uint32_t count;
    uint32_t reserved;
    double real;
    const char *text;    // interned or NULL
} Attr;

typedef struct {
    Op op;
    uint32_t nin;
    uint32_t nout;
    const Val *in;
    const Attr *attr;          // never NULL
    const Type *type[MAX_OUT]; // interned
} Node;

typedef struct Graph Graph;

Graph *graph_new(Arena *arena);
// What a Graph begins with, so that a node is found without a call.
enum { NODE_BLOCK_BITS = 12, NODE_BLOCK = 1 << NODE_BLOCK_BITS };
typedef struct {
    Node **blocks;           // of NODE_BLOCK nodes
    uint32_t count;          // nodes, with the unused number 0
} NodeTable;

_Noreturn void graph_no_node(NodeId node);
// Nodes; numbers 1 .. count - 1 are used.
static inline uint32_t graph_count(const Graph *graph)
{
    return ((const NodeTable *)graph)->count;
}
static inline const Node *graph_node(const Graph *graph, NodeId node)
{
    const NodeTable *table = (const NodeTable *)graph;
    if (node == 0 || node >= table->count)
        graph_no_node(node);
    return &table->blocks[node >> NODE_BLOCK_BITS][node & (NODE_BLOCK - 1)];
}
static inline const Node *val_get(const Graph *graph, Val val)
{
    return graph_node(graph, val_node(val));
}
_Noreturn void graph_no_output(const Graph *graph, Val val);
static inline const Type *val_type(const Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    if (val_out(val) >= node->nout)
        graph_no_output(graph, val);
    return node->type[val_out(val)];
}

// Makes (or finds) a node. `types` gives the output types where the operands do not determine
// them (sources, reshape, expand, cast, *_grad: see ops.def), else NULL. Returns output 0, or 0
// when operands and attributes do not fit: graph_error then holds one line that says why, in the
// terms of the language.
Val graph_make(Graph *graph, Op op, const Val *in, uint32_t nin, const Attr *attr,
               const Type *types);
// A node of the graph with other operands; attributes and given types stay. Type rules ask operands
// for nothing but their types, so where these stay as well the rest is known.
Val graph_remake(Graph *graph, const Node *like, const Val *in);
const char *graph_error(const Graph *graph);
void graph_set_error(Graph *graph, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Constant data (op `table`), interned by content; elements as stored (f32, f64, i64, bool).
uint32_t graph_add_blob(Graph *graph, const void *data, size_t size);
const void *graph_blob(const Graph *graph, uint32_t blob, size_t *size);
SegId graph_add_segments(Graph *graph, const Segments *segments);
const Segments *graph_segments(const Graph *graph, SegId seg);

// Where a node came from. The first origin is kept. graph_at sets what nodes made from now on get.
typedef struct {
    Span span;           // innermost place in a model file
    const char *path;    // field path of the module call it stands in, e.g. "unet.out.2"; or NULL
    bool recompute;      // it stands in a call of recompute(module)
} Origin;
void graph_at(Graph *graph, Origin origin);
const Origin *graph_origin(const Graph *graph, NodeId node);

bool graph_is_step(const Graph *graph, Val val);

// ---- type rules (types.c, types_nn.c): what graph_make asks ----
// Types of the outputs of an operation into out[]; returns their number, or 0 when operands and
// attributes do not fit (graph_error says why). `given` as in graph_make.
uint32_t type_infer(Graph *graph, Op op, const Val *in, uint32_t nin, const Attr *attr,
                    const Type *given, Type out[MAX_OUT]);
// The number as an element of that type holds it: f32 rounds, i64 and bool are whole.
double dtype_round(DType dtype, double value);

// ---- short forms (graph_build.c); 0 in, 0 out, so that a chain needs one check ----
Val g_const(Graph *graph, DType dtype, double value);                   // rank 0
Val g_full(Graph *graph, const Type *type, double value);
Val g_table(Graph *graph, const Type *type, const void *data);          // data: type's elements
Val g_unary(Graph *graph, Op op, Val x);
Val g_binary(Graph *graph, Op op, Val x, Val y);
Val g_where(Graph *graph, Val cond, Val x, Val y);
Val g_cast(Graph *graph, Val x, DType dtype);
Val g_reshape(Graph *graph, Val x, uint32_t rank, const Dim *dim);
Val g_transpose(Graph *graph, Val x, const uint32_t *perm);             // out axis i = in perm[i]
Val g_expand(Graph *graph, Val x, const Dim *dim);                      // size-1 axes grow
Val g_slice(Graph *graph, Val x, uint32_t axis, int64_t start, int64_t size);
Val g_pad(Graph *graph, Val x, uint32_t axis, int64_t before, int64_t after, double value);
Val g_concat(Graph *graph, const Val *xs, uint32_t count, uint32_t axis);
Val g_reduce(Graph *graph, Op op, Val x, uint32_t mask);                // keeps axes as size 1
Val g_contract(Graph *graph, Val x, Val y, const char *labels_x, const char *labels_y,
               const char *labels_out);                                  // "bik" "bkj" "bij"
// x [..., n, m] where column <= row, else the number `above`; n and m are the same in all batches.
Val g_causal(Graph *graph, Val x, double above);
// n * b^batch of a Dim as a rank-0 step value of that dtype.
Val g_dim(Graph *graph, Dim dim, DType dtype);
// Sums the axes that were stretched, so that the result has the shape of `like` (or rank 0).
Val g_unbroadcast(Graph *graph, Val x, const Type *like);

// ---- whole graphs ----
// Every invariant above, node by node, reachable from the functions of `module` (verify.c).
// Aborts with a message that names the node (a broken invariant is a bug of the compiler).
void graph_verify(const Graph *graph);

#endif
