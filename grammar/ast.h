// The abstract syntax tree of the model language, and the diagnostics that point into it.
//
// A tree belongs to the arena of its Source set and is never freed node by node. Every node
// carries the span of text it came from, as byte offsets into one file; line and column are
// computed only when a message is printed. Lists are arrays of node pointers.
#ifndef PVDMC_AST_H
#define PVDMC_AST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "compiler/util.h"

typedef struct {
    uint32_t file;   // index into Sources.files; 0 = no place (command line, built-in)
    uint32_t begin;  // byte offset of the first character
    uint32_t end;    // byte offset behind the last character
} Span;

typedef struct {
    const char *path;  // as it is told to the user
    const char *text;  // whole file, NUL-terminated
    size_t size;
} SourceFile;

typedef enum {
    // expressions
    AST_NAME,     // text
    AST_INT,      // integer
    AST_REAL,     // real
    AST_STRING,   // text, escapes resolved; {name} is left for the elaborator
    AST_BOOL,     // integer 0 or 1
    AST_NONE,
    AST_LIST,     // list: elements (an element may be AST_KEYED or AST_WHEN)
    AST_COMPREHENSION,  // a: element; list: AST_LOOP...
    AST_LOOP,     // names; a: iterated; b: condition or NULL      (of a comprehension)
    AST_WHEN,     // a: condition; b: element                     ("if c then e" in a list)
    AST_KEYED,    // text or (if b) b: key string expr; a: value   (named argument or element)
    AST_CALL,     // a: callee; list: arguments
    AST_INDEX,    // a: indexed; list: indices
    AST_FIELD,    // a: object; text: field
    AST_UNARY,    // op; a
    AST_BINARY,   // op; a, b
    AST_IFELSE,   // a: condition; b: then; c: else
    AST_RANGE,    // a..b; in an index a or b may be NULL
    AST_ELLIPSIS, // "..." in an index or a shape
    // types
    AST_TYPE,     // text: `real`, `int`, ... or NULL; list: dims; integer: 1 if dims given
    // statements
    AST_BLOCK,    // list: statements
    AST_ASSIGN,   // list: AST_TARGET...; a: value
    AST_TARGET,   // text; b: type or NULL
    AST_UPDATE,   // text: name; op: + - * /; a: value; span2: the name
    AST_RETURN,   // list: values
    AST_FOR,      // names; a: iterated; b: block
    AST_IF,       // a: condition; b: block; c: block, AST_IF or NULL
    AST_MINIMIZE, // list: paths; list2: arguments (the first is the optimizer); b: block
    AST_DATA,     // text; b: type; a: source
    AST_IGNORE,   // list
    AST_REPORT,   // list
    AST_YIELD,    // a
    AST_ASSERT,   // a; text: why or NULL
    // declarations (AST_DEF, AST_OPTION and AST_ASSERT are statements as well)
    AST_CONST,    // text; b: type or NULL; a: value
    AST_LET,      // text; a
    AST_TYPEDEF,  // text; b: type
    AST_MODEL,    // text; a
    AST_MODULE,   // text; list: AST_PARAM...; b: block; integer: 1 if it had parentheses
    AST_PROGRAM,  // text; list: AST_PARAM...; list2: AST_RESULT...; b: block, or a: expression
    AST_DEF,      // as AST_PROGRAM
    AST_PARAM,    // text; b: type or NULL; a: default or NULL
    AST_RESULT,   // text (or NULL: only a shape); b: type or NULL
    AST_TRAIN,    // text; b: block
    AST_SAMPLE,   // text; b: block
    AST_OPTION,   // text; b: type or NULL; a: default
    AST_IMPORT,   // text: path; text2: name after `as` or NULL
    AST_FILE,     // list: declarations
    AST_ERROR,    // what error recovery left
} AstKind;

typedef enum {
    OPR_NONE, OPR_ADD, OPR_SUB, OPR_MUL, OPR_DIV, OPR_MOD, OPR_POW, OPR_NEG, OPR_NOT, OPR_AND,
    OPR_OR, OPR_EQ, OPR_NE, OPR_LT, OPR_LE, OPR_GT, OPR_GE, OPR_IN, OPR_PIPE,
} Operator;

typedef struct Ast Ast;

typedef struct {
    Ast **at;
    uint32_t count;
} AstList;

struct Ast {
    AstKind kind;
    Operator op;
    bool override;      // declarations: `override` stood in front
    Span span;          // the whole construct
    Span span2;         // the name in it (declarations, AST_KEYED, AST_FIELD, AST_TARGET...)
    const char *text;   // interned
    const char *text2;  // interned
    int64_t integer;
    double real;
    const char **names; // AST_FOR, AST_LOOP: interned
    Span *name_spans;
    uint32_t name_count;
    uint32_t depth;     // 1 + the deepest node below; at most AST_DEPTH_LIMIT
    Ast *a, *b, *c;
    AstList list, list2;
};

// Text that nests deeper is a syntax error, so that a walk of a tree may recurse.
enum { AST_DEPTH_LIMIT = 256 };

// ---- sources and parsing (grammar/source.c, grammar/model.y) ----

typedef struct Sources Sources;

Sources *sources_new(Arena *arena);
// Reads a file; 0 (and errno) when it cannot be read. The index is what Span.file holds.
uint32_t sources_add_file(Sources *sources, const char *path);  // at most 16 MiB (EFBIG)
uint32_t sources_add_text(Sources *sources, const char *path, const char *text);
const SourceFile *sources_get(const Sources *sources, uint32_t file);
uint32_t sources_count(const Sources *sources);
Arena *sources_arena(const Sources *sources);
// Line and column (in characters) of a place, both from 1.
void sources_place(const Sources *sources, uint32_t file, uint32_t offset, uint32_t *line,
                   uint32_t *column);

// Parses one file; syntax errors go to the diagnostics, and a tree of what could be read comes
// back (never NULL).
Ast *parse_model(Sources *sources, uint32_t file);

// Prints a tree, one node a line, indented (--emit ast).
void ast_print(FILE *out, const Ast *ast);
const char *operator_text(Operator op);

// ---- diagnostics (grammar/diag.c) ----
//
// A message is collected, then printed: `file:line:col: error: text`, the source line, ^~~~
// under the span (several lines: the first), then its notes and helps in the order added:
//   diag_error(span, "unknown name '%s'", name);      starts a message (up to 20 a run)
//   diag_note(span, "bound here");                    a related place; the span's file may be 0:
//   diag_help(span, "did you mean '%s'?", other);     then it prints as `= note: text`
// diag_warning starts a message too, and does not count as an error.
void diag_init(Sources *sources, FILE *out);
void diag_error(Span span, const char *format, ...) __attribute__((format(printf, 2, 3)));
void diag_warning(Span span, const char *format, ...) __attribute__((format(printf, 2, 3)));
void diag_note(Span span, const char *format, ...) __attribute__((format(printf, 2, 3)));
void diag_help(Span span, const char *format, ...) __attribute__((format(printf, 2, 3)));
uint32_t diag_errors(void);     // errors so far
bool diag_full(void);           // the limit is reached: stop looking for more
void diag_flush(void);          // prints the pending message; called at the end of a run

// The candidate nearest to `name` by edit distance, or NULL when none is near.
const char *nearest_name(const char *name, const char *const *candidates, size_t count);

#endif
