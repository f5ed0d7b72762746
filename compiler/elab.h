// The elaborator: a tree-walking interpreter that evaluates everything of a model file but its
// tensors, and leaves a graph. Shared by elaborate.c and the elab_*.c; nobody else includes it.
//
// Values. What the language computes while compiling is a Value (16 bytes); lists, functions and
// module instances are behind pointers into the arena and never change once made. A tensor is a
// Val of the graph; a step value is a tensor of rank 0 for which graph_is_step holds.
//
// Scopes. Names are interned, so looking one up compares pointers: the frames of the function and
// of those around it, the module's frame, the file, its imports, the built-ins.
//
// Errors. The first error of a declaration or of an entry ends its evaluation (elab_stop jumps to
// the innermost elab_try); others go on, so that one run reports several. What a failed
// declaration would have given is poison: who uses it stops too, without a message.
//
// Runs. An entry is evaluated once for every variant. A question about a step value takes its
// outcome from the run's decision path (elab_decide); behind the path's end the outcome is `true`,
// and the driver in elab_entry.c comes back for the other one.
#ifndef PVDMC_ELAB_H
#define PVDMC_ELAB_H

#include <setjmp.h>

#include "compiler/compose.h"
#include "compiler/pattern.h"
#include "compiler/program.h"
#include "grammar/ast.h"

typedef struct Elab Elab;
typedef struct Frame Frame;
typedef struct List List;
typedef struct Decl Decl;
typedef struct FileScope FileScope;
typedef struct Instance_ ModuleInstance;
typedef struct ParamObject ParamObject;
typedef struct Builtin Builtin;
typedef struct Layer Layer;
typedef struct Host Host;

// ---- values ----

typedef enum {
    V_ABSENT, // an optional argument of a built-in that was not given
    V_NONE,
    V_BOOL,      // integer
    V_INT,       // integer; batch: times b
    V_REAL,      // real
    V_STRING,    // text, interned
    V_RANGE,     // range
    V_LIST,      // list
    V_TENSOR,    // val
    V_MAYBE,     // optional input `input` of the entry at hand, not yet asked for
    V_HOST,      // variable `input` of the sample block at hand: a tensor, or nothing
    V_TYPE,      // type
    V_PARAM,     // param: a parameter; becomes a tensor where one is needed
    V_INSTANCE,  // instance of a module
    V_CLASS,     // class: a module of the model files
    V_LAYER,     // layer: a built-in module
    V_FUNCTION,  // function: def, program, method
    V_BUILTIN,   // builtin: a built-in function
    V_PARTIAL,   // partial: a call with holes
    V_NAMESPACE, // file: after import ... as
} ValueKind;

// How a module is called: a mode that is forced, and beside it the wish of recompute(m).
typedef enum {
    MODE_INHERIT, MODE_TRAINING, MODE_EVALUATING,
    MODE_FORCED = 3,               // the bits of the mode
    MODE_RECOMPUTE = 4
} Mode;

// The mode of a part: its own, else that of the whole; the wish holds for all of a whole.
static inline uint8_t mode_within(unsigned part, unsigned whole)
{
    unsigned forced = part & MODE_FORCED ? part & MODE_FORCED : whole & MODE_FORCED;
    return (uint8_t)(forced | ((part | whole) & MODE_RECOMPUTE));
}

typedef struct {
    int64_t first, limit;
    Val first_val, limit_val; // of sample blocks: step values in place of numbers, or 0
    bool reversed;
} Range;

typedef struct {
    const Ast *ast;  // AST_TYPE
    FileScope *file; // whose names come first (a named type), or NULL
    const char *name;
} TypeValue;

typedef struct {
    const Ast *ast; // AST_DEF, AST_PROGRAM
    Frame *env;     // frame around it, or NULL
    FileScope *file;
    const char *name;
    Decl *decl; // of a declaration of a file, or NULL
} Function;

typedef struct Partial Partial;

typedef struct {
    uint8_t kind; // ValueKind
    uint8_t mode; // Mode: of modules, lists and methods
    bool batch;
    union {
        int64_t integer;
        double real;
        const char *text;
        const Range *range;
        List *list;
        Val val;
        uint32_t input;
        const TypeValue *type;
        ParamObject *param;
        ModuleInstance *instance;
        Decl *class;
        const Layer *layer;
        const Function *function;
        const Builtin *builtin;
        const Partial *partial;
        FileScope *file;
    };
} Value;

struct List {
    Value *at;
    const char **names; // of elements, or NULL; an element without one: NULL
    uint32_t count;
    uint32_t offset;  // in `whole`: this list is a run of its elements
    List *whole;      // never NULL
    const char *path; // field path, once the model that holds it is named; of `whole`
    uint32_t root;    // its model, if path
    Val table;        // the list as a tensor, once asked for
};

typedef struct {
    Value value;
    Span span;
    const char *name; // of a named argument, else NULL
    Span name_span;
    bool hole;
} Arg;

typedef struct {
    Arg *at;
    uint32_t count;
    Span span; // the whole call
    Span callee_span;
} Args;

struct Partial {
    Value callee;
    Args args;
    uint32_t holes;
};

// ---- frames ----

typedef enum { BIND_LOCAL, BIND_AXIS, BIND_PARAM, BIND_FIELD } BindKind;

typedef struct {
    const char *name;
    Value value;
    Span span;
    uint8_t kind; // BindKind
} Binding;

typedef enum { FRAME_FUNCTION, FRAME_MODULE, FRAME_LOOP, FRAME_TYPE } FrameKind;

struct Frame {
    Frame *parent; // the frame around the text, or NULL: the file
    FileScope *file;
    ModuleInstance *instance; // whose body or method it is, or NULL
    const char *label;        // prefix of taps: function name or field path; NULL: none
    Binding *at;
    uint32_t count, capacity;
    FrameKind kind;
    bool has_rest;
    bool entry; // of a program run alone: b is the batch
    uint32_t rest_rank;
    Dim *rest; // what `...` stands for in this function
    Value result;
};

// ---- modules ----

struct ParamObject {
    const char *label; // field, for messages
    Type type;
    bool buffer, named;
    InitKind init;
    double init_a, init_b;
    uint32_t index; // in Module.params, once named
    Span span;
};

struct Instance_ {
    Decl *class; // or
    const Layer *layer;
    Frame *frame;     // fields and parameters
    const char *path; // first field path, once named
    uint32_t root;    // index of its model in Module.instances
    bool named;
    int64_t config[12]; // of layers: numbers
    double real[2];
    const char **ignored;
    uint32_t ignored_count;
};

struct Layer {
    const char *name;
    const char *params; // "in out bias= init=": those with = may be absent
    void (*construct)(Elab *e, ModuleInstance *self, Value *arg, const Args *call);
    Value (*forward)(Elab *e, ModuleInstance *self, Value x, const Args *call);
};

struct Builtin {
    const char *name;
    const char *params; // as above; "*xs" takes the rest; "**" any named argument
    Value (*call)(Elab *e, Frame *frame, const Builtin *self, Value *arg, const Args *call);
    Op op;                    // of elementwise functions
    double (*number)(double); // the same on a number
};

// ---- declarations and files ----

typedef enum { DECL_NEW, DECL_BUSY, DECL_DONE, DECL_FAILED } DeclState;

struct Decl {
    const char *name;
    const Ast *ast;
    FileScope *file;
    Decl *replaced; // by an `override`, or NULL
    DeclState state;
    Value value;
    const char *define; // text of -D, or NULL
    uint32_t index;     // in Module.options / entries / instances
};

typedef struct {
    const void *key;
    uint64_t value;
} MapSlot;
typedef struct {
    MapSlot *at;
    size_t capacity, count;
} Map;

typedef struct {
    FileScope *file;
    const char *as; // or NULL
} Import;

struct FileScope {
    uint32_t file; // in Sources
    const char *path;
    const Ast *ast;
    Decl **decls; // in the order of the file
    uint32_t decl_count;
    Import *imports;
    uint32_t import_count;
    Map names; // name -> own Decl
    Map seen;  // name -> what a look-up gave (Decl, or the file of an `as`)
    uint32_t visit;
};

// ---- runs ----

typedef struct {
    const char *name;
    Span span;
} Drawn;

// One evaluation of an entry: one variant.
typedef struct {
    uint32_t entry; // index in Module.entries
    EntryKind kind;
    Span span;
    Decision *path; // questions asked so far
    uint32_t path_count;
    const Decision *script; // outcomes of the first questions
    uint32_t script_count;
    const Type *inputs; // by input
    uint64_t asked;     // optional inputs whose presence was asked
    Drawn *draws;
    size_t draw_count, draw_capacity;
    Output *outputs;
    size_t output_count, output_capacity;
    Tap *taps;
    size_t tap_count, tap_capacity;
    Map tap_names;
    Val *state;           // by parameter: its present value, or 0: that of the start
    const bool *training; // by instance, or NULL
    uint32_t dropouts;
} Run;

typedef struct CallSite {
    struct CallSite *outer;
    Span span;
    const char *name;
    const ModuleInstance *self; // of a method
} CallSite;

struct Elab {
    Arena *arena;
    Graph *graph;
    Sources *sources;
    const ElabOptions *options;
    Module *module;
    DType real;
    FileScope **files; // imported ones first; the main file is the last
    size_t file_count, file_capacity;
    size_t param_capacity, instance_capacity, option_capacity, entry_capacity, stream_capacity;
    size_t stage_capacity, sampler_capacity, constant_capacity;
    Map layers, builtins; // name -> Layer, Builtin
    Map loaded;           // real path -> FileScope
    Map kept;             // function -> tables it made
    Map parameters;       // names that some function of some file takes
    Map param_names;      // name of a parameter -> 1
    uint64_t steps;       // of evaluation so far
    uint32_t depth;       // of nested expressions and calls
    uint32_t visit;
    CallSite *calls;
    jmp_buf *escape;
    bool quiet; // the message at hand repeats an earlier one
    Span *reported;
    size_t reported_count, reported_capacity;
    bool constructing; // a module body runs: parameters have no numbers yet
    uint8_t mode;                  // Mode of the call at hand
    int64_t root;     // model whose module is being called, or -1
    Run *run;         // or NULL: outside of entries
    Host *host;       // or NULL: outside of sample blocks
    const char *path; // field path of the module call at hand
};

enum { ELAB_MAX_STEPS = 10 * 1000 * 1000, ELAB_MAX_DEPTH = 1500, ELAB_MAX_VARIANTS = 64 };

/* elab_value.c: values, their texts, maps, errors */
static inline Value value_none(void)
{
    return (Value){.kind = V_NONE};
}
static inline Value value_absent(void)
{
    return (Value){.kind = V_ABSENT};
}
static inline Value value_bool(bool x)
{
    return (Value){.kind = V_BOOL, .integer = x};
}
static inline Value value_int(int64_t x)
{
    return (Value){.kind = V_INT, .integer = x};
}
static inline Value value_real(double x)
{
    return (Value){.kind = V_REAL, .real = x};
}
static inline Value value_string(const char *x)
{
    return (Value){.kind = V_STRING, .text = x};
}
static inline Value value_tensor(Val x)
{
    return (Value){.kind = V_TENSOR, .val = x};
}
static inline Value value_dim(Dim x)
{
    return (Value){.kind = V_INT, .integer = x.n, .batch = x.batch != 0};
}
List *list_new(Elab *e, uint32_t count);
Value value_list(Elab *e, const Value *at, uint32_t count);
Value value_slice(Elab *e, List *list, int64_t first, int64_t limit);
bool value_is_module(Value value); // something that holds parameters, or a list of it
bool value_is_number(Value value); // int, real or batch multiple, known while compiling
bool value_equal(Elab *e, Value x, Value y);
const char *value_text(Elab *e, Value value);                          // as written in the language
const char *value_describe(Elab *e, Value value);                      // "a tensor, [b, 4]"
const char *size_text(Elab *e, Dim dim);                               // "32", "b", "2 b"
const char *shape_text(Elab *e, const Frame *frame, const Type *type); // "[b, c=512]"

const char *path_join(Elab *e, const char *prefix, const char *name, uint64_t number, char mark);
uint64_t map_get(const Map *map, const void *key); // 0: not there
void map_set(Map *map, const void *key, uint64_t value);

void elab_error(Elab *e, Span span, const char *format, ...) __attribute__((format(printf, 3, 4)));
void elab_note(Elab *e, Span span, const char *format, ...) __attribute__((format(printf, 3, 4)));
void elab_help(Elab *e, Span span, const char *format, ...) __attribute__((format(printf, 3, 4)));
_Noreturn void elab_stop(Elab *e); // ends the declaration or entry, after its message
_Noreturn void elab_fail(Elab *e, Span span, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void elab_fail_graph(Elab *e, Span span); // with the graph's own words
// Runs fn; false when it stopped. What was being evaluated around it is restored.
bool elab_try(Elab *e, void (*fn)(Elab *e, void *context), void *context);
void elab_step(Elab *e, Span span, uint64_t count); // counts towards the limit of steps

/* elab_scope.c: frames; files, imports, overrides, -D; look-up */
Frame *frame_new(Elab *e, Frame *parent, FileScope *file, FrameKind kind);
Binding *frame_find(const Frame *frame, const char *name); // in this frame only
Binding *frame_bind(Elab *e, Frame *frame, const char *name, Value value, Span span, BindKind kind);
Binding *frame_lookup(const Frame *frame, const char *name); // and those around it
void elab_load(Elab *e, const char *path);                   // main file and imports
void elab_defines(Elab *e);                                  // takes the values of -D
Decl *file_lookup(Elab *e, FileScope *file, const char *name, FileScope **space);
Decl *decl_final(Decl *decl);
void note_defines(Elab *e, FileScope *file, const Ast *ast); // constants in it that -D replaced
// A name's value; false: unknown. The place where it is bound comes back in *span, if not NULL.
bool elab_lookup(Elab *e, const Frame *frame, const char *name, Value *value, Span *span);
Value decl_value(Elab *e, Decl *decl);
_Noreturn void elab_unknown_name(Elab *e, const Frame *frame, const char *name, Span span);
const char *file_of(const char *path);

/* elab_expr.c: expressions */
Value eval(Elab *e, Frame *frame, const Ast *ast);
bool elab_truth(Elab *e, Value value, Span span); // of an `if`: compile time, or decided
int64_t value_whole(Elab *e, Value value, Span span, const char *what); // an int, or an error
double value_number(Elab *e, Value value, Span span, const char *what);

/* elab_arith.c: operators on numbers and tensors */
Value eval_operator(Elab *e, Frame *frame, Operator op, Value x, Value y, Span span,
                    const Ast *left, const Ast *right);
Value eval_negative(Elab *e, Value x, Span span);
Value eval_not(Elab *e, Value x, Span span);
Val value_val(Elab *e, Value value, Span span);   // a tensor or a number, as a Val
Val number_val(Elab *e, Value value, DType like); // rank 0
Val list_table(Elab *e, Value list, Span span);   // list of numbers, of any depth
bool value_is_tensor(Value value);                // tensor, parameter, optional input
bool value_is_step(Elab *e, Value value);         // a number, or a step value
Value elab_pin(Elab *e, Value value, Span span);  // an optional input must be there

/* elab_index.c: x[...], ranges */
Value eval_index(Elab *e, Frame *frame, const Ast *ast);
Value list_at(Elab *e, List *list, int64_t index, Span span);
Value tensor_first(Elab *e, Val x, int64_t index, Span span); // x[index], the axis goes

/* elab_type.c: types, axes */
void type_check(Elab *e, Frame *frame, const Ast *type, Value *value, Span span, const char *what);
bool type_resolve(Elab *e, Frame *frame, const Ast *ast, Type *type); // tensor or step number
bool type_of_value(Elab *e, Frame *frame, Value shape, Span span, Type *type); // of a shape
bool dim_of_value(Value value, Dim *dim);
const char *axis_name(const Frame *frame, Dim dim, const char *const *used, uint32_t used_count);

/* elab_stmt.c: statements */
typedef enum { FLOW_NEXT, FLOW_RETURN } Flow;
Flow exec_block(Elab *e, Frame *frame, const Ast *block);
Flow exec_statement(Elab *e, Frame *frame, const Ast *ast);
void refuse_hiding(Elab *e, const Frame *frame, const char *name, Span span);
void bind_local(Elab *e, Frame *frame, const char *name, Value value, Span span);
void destructure(Elab *e, Value value, uint32_t count, Value *out, Span span);
uint32_t sequence_count(Elab *e, Value value, Span span); // elements to iterate over
Value sequence_at(Elab *e, Value value, uint32_t index, Span span);

/* elab_call.c: calls */
// Nodes made from now on come from that place.
void elab_at(Elab *e, Span span);
Value eval_call(Elab *e, Frame *frame, const Ast *ast, const Ast *piped);
Value elab_call(Elab *e, Frame *frame, Value callee, Args *args);
Args *args_new(Elab *e, uint32_t count, Span span);
Value call_function(Elab *e, Value function, Args *args, bool entry, Frame **used);
void bind_builtin(Elab *e, const char *what, const char *params, Args *args, Value *out,
                  Span *spans);
bool callee_declares(Elab *e, Value callee, const char *name);
enum { MAX_BUILTIN_PARAMS = 12 };

/* elab_module.c: classes, instances, names of parameters */
Value construct(Elab *e, Value class, Args *args);
Value implied_instance(Elab *e, Value value, Span span); // a class without arguments to give
bool needs_no_arguments(Value class);
Value instance_field(Elab *e, Value object, const char *name, Span span, Span name_span);
void elab_models(Elab *e); // every `model`, in order

/* elab_layer.c: built-in modules */
extern const Layer elab_layers[];
extern const uint32_t elab_layer_count;
ParamObject *param_new(Elab *e, const char *label, uint32_t rank, const int64_t *dim, Span span);
void param_init(Elab *e, ParamObject *param, Value init, Span span);
Val param_val(Elab *e, ParamObject *param, Span span);
bool elab_training(Elab *e, const ModuleInstance *instance);

/* elab_builtin.c, elab_list.c, elab_random.c: built-in functions */
// The place of an argument; the call's, where it was left out.
Span arg_span(const Args *call, uint32_t index);
Val tensor_arg(Elab *e, Value *arg, uint32_t index, const Args *call);
int64_t whole_arg(Elab *e, Value value, const Args *call, const char *what);
extern const Builtin elab_builtins[], elab_list_builtins[], elab_random_builtins[];
extern const uint32_t elab_builtin_count, elab_list_builtin_count, elab_random_builtin_count;
PatternScope pattern_scope(Elab *e, Frame *frame, const Args *call, PatternAxis *given);
bool arg_given(Value value);                       // neither absent nor none
Value tensor_or_fail(Elab *e, Val val, Span span); // 0: with the graph's message
Value draw_dropout(Elab *e, Val x, double p, Span span);

/* elab_entry.c: variants, programs, calls */
bool elab_decide(Elab *e, Val condition, Span span);
bool input_given(Elab *e, Value maybe, Span span); // decides whether it is there
Val input_val(Elab *e, uint32_t input);            // the node of an input
uint32_t entry_new(Elab *e, EntryKind kind, const char *name, Span span);
typedef void EntryBody(Elab *e, Run *run, void *context);
// All variants of an entry. training: by instance, or NULL. False after an error.
bool entry_elaborate(Elab *e, uint32_t entry, const bool *training, EntryBody *body, void *context);
void run_output(Elab *e, Run *run, OutKind kind, const char *name, Val val);
void elab_tap(Elab *e, const char *prefix, const char *name, Value value);
void elab_programs(Elab *e);

/* elab_train.c */
void elab_train(Elab *e, Decl *decl);

/* elab_option.c */
uint32_t option_new(Elab *e, const char *name, const char *stage, const Ast *ast, Frame *frame);
Value option_value(Elab *e, uint32_t option);

/* elab_names.c */
void elab_names(Elab *e); // names in what nothing calls

/* elab_sample.c: sample blocks; elab_host.c: their variables and calls */

// What a host variable may hold at the present place of the block.
typedef enum { HELD_UNSET, HELD_NUMBER, HELD_NONE, HELD_TENSOR, HELD_MAYBE } Held;

typedef struct {
    const char *name; // of the block, or NULL: a temporary
    const void *key;  // name, or the place of a temporary
    DType dtype;      // of a number
    Type type;        // of a tensor; rank 0 and DT_NONE: not known yet
    Held held;
    bool free; // a temporary that nothing uses any more
    Span span;
} HostVariable;

typedef struct {
    HostStmt *at;
    size_t count, capacity;
} HostBuilder;

struct Host {
    Decl *decl;
    Frame *frame;
    HostVariable *vars;
    size_t var_count, var_capacity;
    HostBuilder *block; // statements go here
    Map assigned;       // name -> how often it is assigned
    Map reals;          // key -> 1: this number must be real
    bool again;         // a number became real: evaluate the block anew
    uint32_t calls;     // entries made
};

void elab_sample(Elab *e, Decl *decl);
bool host_wants(Elab *e, Value callee, const Args *args); // the call is the host's
Value host_call(Elab *e, Value callee, Args *args);
Value host_if(Elab *e, Frame *frame, const Ast *ast, Value condition);
Value host_is_none(Elab *e, Value variable);
Value host_random(Elab *e, Val random);
HostStmt *host_emit(Host *host, HostKind kind);
uint32_t host_variable(Elab *e, const char *name, const void *key, Span span);
Value host_read(Elab *e, uint32_t variable);           // what its name means here
void host_hold(Elab *e, uint32_t variable, Held held); // ... and from here on
void host_store(Elab *e, uint32_t variable, Value value, Span span);
void host_store_new(Elab *e, uint32_t variable, Value value, const Ast *ast);
void host_assign(Elab *e, Frame *frame, uint32_t variable, const Ast *ast);
void host_choose(Elab *e, Frame *frame, const Ast *ast, Value condition, uint32_t variable);
void host_free_since(Elab *e, size_t count);
HostBlock host_finish(Elab *e, HostBuilder *block);
Held *host_snapshot(Elab *e);
void host_restore(Elab *e, const Held *held, size_t count);
void host_join(Elab *e, const Held *other, size_t count); // the present state, or that one
const Arg **match_arguments(Elab *e, const Ast *ast, const Args *args); // elab_call.c

#endif
