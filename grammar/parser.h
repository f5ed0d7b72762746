// What the scanner, the parser and the builders of the tree share; nobody else needs it.
//
// The parser reads tokens through parser_lex (parse.c), which knows the open brackets and where
// lines begin. After a syntax error it also finds the place where parsing can go on, so the
// grammar needs one `error` production a level and no luck.
#ifndef PVDMC_PARSER_H
#define PVDMC_PARSER_H

#include "grammar/ast.h"

// A list that is being read. It lives in the arena and grows by doubling.
typedef struct {
    Ast **at;
    uint32_t count, capacity;
} NodeList;

typedef struct {
    const char **at;
    Span *spans;
    uint32_t count, capacity;
} NameList;

// What a symbol of the grammar stands for.
typedef union {
    const char *text; // names and strings: interned, escapes resolved
    int64_t integer;
    double real;
    Ast *node;
    NodeList *list;
    NameList *names;
    Operator op;
} SymbolValue;

typedef struct {
    int kind; // as the parser numbers tokens
    SymbolValue value;
    Span span;
    bool first; // on its line
} Token;

typedef struct {
    char open; // ( [ {
    Span span;
} Bracket;

typedef struct Parser {
    Sources *sources;
    Arena *arena;
    uint32_t file;
    const char *text; // of the file; `size` bytes and a NUL
    uint32_t size;
    void *scanner;
    uint32_t offset;   // where the scanner is
    Token scanned;     // what it found last
    Token last;        // handed to the parser most recently: its lookahead
    Span before;       // the token in front of it; end 0: none
    Bracket *brackets; // open in front of `last`
    size_t bracket_count, bracket_capacity;
    Token again;    // after an error: handed out anew, when `again_closers` blocks are
    bool has_again; //   closed
    size_t again_closers;
    uint32_t resumed_at; // offset where parsing went on after the last error
    uint32_t told_at;    // offset of the last message, if any
    bool told, too_deep, stop;
    Ast *tree;
} Parser;

/* parse.c */
// Tells a syntax error: `expected` are the names of the `count` tokens that would have done.
void parser_syntax_error(Parser *parser, const char *const *expected, int count);
// Skips to where parsing can go on; false: there is nothing left to parse.
bool parser_resync(Parser *parser);
void parser_too_deep(Parser *parser, Span span);
void parser_wrong_pipe(Parser *parser, Span piped, Span op, Span operand);
void parser_wrong_chain(Parser *parser, Span op);
// The scanner's part of the work: values of tokens, and what is no token. They look at
// parser->scanned, whose text is `text`; `help` may be NULL.
void parser_lexical_error(Parser *parser, const char *help, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int parser_foreign(Parser *parser, int kind, const char *wanted, const char *help);
void parser_string(Parser *parser, const char *text, size_t length);
void parser_integer(Parser *parser, const char *text);
void parser_real(Parser *parser, const char *text);
void parser_bad_number(Parser *parser, const char *text);
void parser_unclosed_string(Parser *parser);
void parser_bad_character(Parser *parser, const char *text);

/* ast.c: every builder returns a new node; a list may be NULL (empty) */
NodeList *ast_append(Parser *parser, NodeList *list, Ast *node); // list NULL: a new one
NameList *ast_append_name(Parser *parser, NameList *names, const char *text, Span span);
Ast *ast_leaf(Parser *parser, Span span, AstKind kind);                   // NONE, ELLIPSIS, ERROR
Ast *ast_text(Parser *parser, Span span, AstKind kind, const char *text); // NAME, STRING
Ast *ast_int(Parser *parser, Span span, int64_t value);
Ast *ast_real(Parser *parser, Span span, double value);
Ast *ast_bool(Parser *parser, Span span, bool value);
Ast *ast_list(Parser *parser, Span span, AstKind kind, NodeList *list);
Ast *ast_unary(Parser *parser, Span span, Operator op, Ast *a);
Ast *ast_binary(Parser *parser, Span span, Operator op, Ast *a, Ast *b);
Ast *ast_three(Parser *parser, Span span, AstKind kind, Ast *a, Ast *b, Ast *c);
Ast *ast_apply(Parser *parser, Span span, AstKind kind, Ast *a, NodeList *list);
Ast *ast_named(Parser *parser, Span span, AstKind kind, const char *text, Span name, Ast *a,
               Ast *b);
Ast *ast_loop(Parser *parser, Span span, AstKind kind, NameList *names, Ast *a, Ast *b);
Ast *ast_type(Parser *parser, Span span, const char *name, NodeList *dims);
Ast *ast_update(Parser *parser, Span span, const char *name, Span where, Operator op, Ast *a);
Ast *ast_assign(Parser *parser, Span span, NodeList *targets, Ast *value);
Ast *ast_minimize(Parser *parser, Span span, NodeList *paths, NodeList *arguments, Ast *block);
Ast *ast_assert(Parser *parser, Span span, Ast *condition, const char *why);
Ast *ast_import(Parser *parser, Span span, const char *path, Span where, const char *name);
Ast *ast_module(Parser *parser, Span span, const char *name, Span where, NodeList *parameters,
                bool parentheses, Ast *block);
Ast *ast_signature(Parser *parser, Span span, const char *name, Span where, NodeList *parameters,
                   NodeList *results, Ast *value, Ast *block);
Ast *ast_become(Ast *node, AstKind kind, Span span); // def and program share their signature
Ast *ast_override(Ast *declaration, Span span);

#endif
