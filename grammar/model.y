/* Grammar of the model language: LALR(1), without a conflict and without a precedence declaration.
 * No statement begins with an operator or an open bracket, so statements need no terminator and
 * line ends mean nothing; ';' may stand between two statements on one line. What a block may hold
 * (`yield` only in `sample`, ...) is for the elaborator. README.md is the reference.
 *
 * Actions only build nodes. Rules named wrong_... read a common slip as what was meant, and tell
 * it; `error` stands where parser_resync (parse.c) can find the way on. */
%define api.pure full
%define api.prefix {parser_}
%define api.token.prefix {T_}
%define api.value.type {SymbolValue}
%define api.location.type {Span}
%define parse.error custom
%define parse.lac full
%locations
%param {Parser *parser}
%expect 0

%code requires {
#include "grammar/parser.h"
}

%code {
int parser_lex(SymbolValue *value, Span *where, Parser *parser);
static void parser_error(Span *where, Parser *parser, const char *message);

/* From the first symbol to the last; behind the symbol before, if there are none. */
#define YYLLOC_DEFAULT(Current, Rhs, N)                                                   \
    do {                                                                                  \
        if (N) {                                                                          \
            (Current) = YYRHSLOC(Rhs, 1);                                                 \
            (Current).end = YYRHSLOC(Rhs, N).end;                                         \
        } else {                                                                          \
            (Current) = YYRHSLOC(Rhs, 0);                                                 \
            (Current).begin = (Current).end;                                              \
        }                                                                                 \
    } while (0)
}

%token END 0 "the end of the file"
%token
    AND "and"  AS "as"  ASSERT "assert"  CONST "const"  DATA "data"  DEF "def"  ELSE "else"
    FALSE "false"  FOR "for"  IF "if"  IGNORE "ignore"  IMPORT "import"  IN "in"  LET "let"
    MINIMIZE "minimize"  MODEL "model"  MODULE "module"  NONE "none"  NOT "not"  OPTION "option"
    OR "or"  OVERRIDE "override"  PROGRAM "program"  REPORT "report"  RETURN "return"
    SAMPLE "sample"  THEN "then"  TRAIN "train"  TRUE "true"  TYPE "type"  WITH "with"
    YIELD "yield"
    ELLIPSIS "..."  RANGE ".."  PIPE "|>"  ARROW "->"  EQ "=="  NE "!="  LE "<="  GE ">="
    ADD_TO "+="  SUB_TO "-="  MUL_TO "*="  DIV_TO "/="
%token <text> NAME "a name"  STRING "a string"
%token <integer> INT "an integer"
%token <real> REAL "a number"

%type <node> declaration new function signature parameter result option assertion
%type <node> annotated type dim block item statement target if_statement
%type <node> expr pipe piped wrong_pipe disjunction conjunction negation comparison compared
%type <node> wrong_chain range sum product signed power postfix primary argument index element loop
%type <list> declarations parameters parameter_list results result_list dims dim_list
%type <list> items targets path_list expr_list argument_list index_list element_list loops
%type <names> names
%type <op> update loose comparator

%%

file: declarations  { parser->tree = ast_list(parser, @$, AST_FILE, $1); } ;

declarations
    : %empty                        { $$ = NULL; }
    | declarations declaration      { $$ = ast_append(parser, $1, $2); }
    | declarations ';'
    | declarations error            { if (!parser_resync(parser)) YYABORT; yyclearin; yyerrok; }
    ;

/* ---- declarations: their order in a file does not matter ---- */

declaration
    : new
    | "override" new                { $$ = ast_override($2, @$); }
    | "import" STRING               { $$ = ast_import(parser, @$, $2, @2, NULL); }
    | "import" STRING "as" NAME     { $$ = ast_import(parser, @$, $2, @2, $4); }
    | assertion
    ;

new : "const" NAME annotated '=' expr
                                    { $$ = ast_named(parser, @$, AST_CONST, $2, @2, $5, $3); }
    | "let" NAME '=' expr           { $$ = ast_named(parser, @$, AST_LET, $2, @2, $4, NULL); }
    | "type" NAME '=' type          { $$ = ast_named(parser, @$, AST_TYPEDEF, $2, @2, NULL, $4); }
    | "model" NAME '=' expr         { $$ = ast_named(parser, @$, AST_MODEL, $2, @2, $4, NULL); }
    | "module" NAME block           { $$ = ast_module(parser, @$, $2, @2, NULL, false, $3); }
    | "module" NAME '(' parameters ')' block
                                    { $$ = ast_module(parser, @$, $2, @2, $4, true, $6); }
    | "program" signature           { $$ = ast_become($2, AST_PROGRAM, @$); }
    | "train" NAME block            { $$ = ast_named(parser, @$, AST_TRAIN, $2, @2, NULL, $3); }
    | "sample" NAME block           { $$ = ast_named(parser, @$, AST_SAMPLE, $2, @2, NULL, $3); }
    | function
    | option
    ;

function: "def" signature           { $$ = ast_become($2, AST_DEF, @$); } ;

signature
    : NAME '(' parameters ')' results block
                                    { $$ = ast_signature(parser, @$, $1, @1, $3, $5, NULL, $6); }
    | NAME '(' parameters ')' results '=' expr
                                    { $$ = ast_signature(parser, @$, $1, @1, $3, $5, $7, NULL); }
    ;

parameters: %empty                  { $$ = NULL; }
    | parameter_list comma
    ;
parameter_list
    : parameter                     { $$ = ast_append(parser, NULL, $1); }
    | parameter_list ',' parameter  { $$ = ast_append(parser, $1, $3); }
    ;
parameter
    : NAME annotated                { $$ = ast_named(parser, @$, AST_PARAM, $1, @1, NULL, $2); }
    | NAME annotated '=' expr       { $$ = ast_named(parser, @$, AST_PARAM, $1, @1, $4, $2); }
    ;

results: %empty                     { $$ = NULL; }
    | "->" result_list              { $$ = $2; }
    ;
result_list
    : result                        { $$ = ast_append(parser, NULL, $1); }
    | result_list ',' result        { $$ = ast_append(parser, $1, $3); }
    ;
result
    : NAME annotated                { $$ = ast_named(parser, @$, AST_RESULT, $1, @1, NULL, $2); }
    | NAME dims                     { $$ = ast_named(parser, @$, AST_RESULT, NULL, @1, NULL,
                                                     ast_type(parser, @$, $1, $2)); }
    | dims                          { $$ = ast_named(parser, @$, AST_RESULT, NULL, @1, NULL,
                                                     ast_type(parser, @$, NULL, $1)); }
    ;

option: "option" NAME annotated '=' expr
                                    { $$ = ast_named(parser, @$, AST_OPTION, $2, @2, $5, $3); }
    ;
assertion
    : "assert" expr                 { $$ = ast_assert(parser, @$, $2, NULL); }
    | "assert" expr ',' STRING      { $$ = ast_assert(parser, @$, $2, $4); }
    ;

/* ---- types: `real`, `latent`, `[b, c, ...]`, `int[b]` ---- */

annotated: %empty                   { $$ = NULL; }
    | ':' type                      { $$ = $2; }
    ;
type: NAME                          { $$ = ast_type(parser, @$, $1, NULL); }
    | NAME dims                     { $$ = ast_type(parser, @$, $1, $2); }
    | dims                          { $$ = ast_type(parser, @$, NULL, $1); }
    ;
dims: '[' dim_list ']'              { $$ = $2; } ;
dim_list
    : dim                           { $$ = ast_append(parser, NULL, $1); }
    | dim_list ',' dim              { $$ = ast_append(parser, $1, $3); }
    ;
dim : expr
    | "..."                         { $$ = ast_leaf(parser, @$, AST_ELLIPSIS); }
    ;

/* ---- statements ---- */

block
    : '{' '}'                       { $$ = ast_list(parser, @$, AST_BLOCK, NULL); }
    | '{' items '}'                 { $$ = ast_list(parser, @$, AST_BLOCK, $2); }
    ;
items
    : item                          { $$ = $1 ? ast_append(parser, NULL, $1) : NULL; }
    | items item                    { $$ = $2 ? ast_append(parser, $1, $2) : $1; }
    ;
item: statement
    | ';'                           { $$ = NULL; }
    | error                         { if (!parser_resync(parser)) YYABORT; yyclearin; yyerrok;
                                      $$ = ast_leaf(parser, @$, AST_ERROR); }
    ;

statement
    : targets '=' expr              { $$ = ast_assign(parser, @$, $1, $3); }
    | NAME update expr              { $$ = ast_update(parser, @$, $1, @1, $2, $3); }
    | "return" expr_list            { $$ = ast_list(parser, @$, AST_RETURN, $2); }
    | "for" names "in" expr block   { $$ = ast_loop(parser, @$, AST_FOR, $2, $4, $5); }
    | if_statement
    | "minimize" path_list "with" argument_list block
                                    { $$ = ast_minimize(parser, @$, $2, $4, $5); }
    | "data" NAME ':' type '=' expr { $$ = ast_named(parser, @$, AST_DATA, $2, @2, $6, $4); }
    | "ignore" expr_list            { $$ = ast_list(parser, @$, AST_IGNORE, $2); }
    | "report" expr_list            { $$ = ast_list(parser, @$, AST_REPORT, $2); }
    | "yield" expr                  { $$ = ast_three(parser, @$, AST_YIELD, $2, NULL, NULL); }
    | function
    | option
    | assertion
    ;

targets
    : target                        { $$ = ast_append(parser, NULL, $1); }
    | targets ',' target            { $$ = ast_append(parser, $1, $3); }
    ;
target: NAME annotated              { $$ = ast_named(parser, @$, AST_TARGET, $1, @1, NULL, $2); } ;
update: "+=" { $$ = OPR_ADD; } | "-=" { $$ = OPR_SUB; } | "*=" { $$ = OPR_MUL; }
    | "/=" { $$ = OPR_DIV; } ;

if_statement
    : "if" expr block               { $$ = ast_three(parser, @$, AST_IF, $2, $3, NULL); }
    | "if" expr block "else" block  { $$ = ast_three(parser, @$, AST_IF, $2, $3, $5); }
    | "if" expr block "else" if_statement
                                    { $$ = ast_three(parser, @$, AST_IF, $2, $3, $5); }
    ;

path_list
    : postfix                       { $$ = ast_append(parser, NULL, $1); }
    | path_list ',' postfix         { $$ = ast_append(parser, $1, $3); }
    ;
names
    : NAME                          { $$ = ast_append_name(parser, NULL, $1, @1); }
    | names ',' NAME                { $$ = ast_append_name(parser, $1, $3, @3); }
    ;

/* ---- expressions, loosest first ---- */

expr_list
    : expr                          { $$ = ast_append(parser, NULL, $1); }
    | expr_list ',' expr            { $$ = ast_append(parser, $1, $3); }
    ;

expr: "if" expr "then" expr "else" expr
                                    { $$ = ast_three(parser, @$, AST_IFELSE, $2, $4, $6); }
    | pipe
    ;
pipe: disjunction | piped ;
piped
    : pipe "|>" postfix             { $$ = ast_binary(parser, @$, OPR_PIPE, $1, $3); }
    | wrong_pipe
    ;
wrong_pipe: piped loose postfix     { parser_wrong_pipe(parser, @1, @2, @3);
                                      $$ = ast_binary(parser, @$, $2, $1, $3); }
    ;
loose: '+' { $$ = OPR_ADD; } | '-' { $$ = OPR_SUB; } | '*' { $$ = OPR_MUL; }
    | '/' { $$ = OPR_DIV; } | '%' { $$ = OPR_MOD; } | '^' { $$ = OPR_POW; } ;

disjunction: conjunction
    | disjunction "or" conjunction  { $$ = ast_binary(parser, @$, OPR_OR, $1, $3); } ;
conjunction: negation
    | conjunction "and" negation    { $$ = ast_binary(parser, @$, OPR_AND, $1, $3); } ;
negation: comparison
    | "not" negation                { $$ = ast_unary(parser, @$, OPR_NOT, $2); } ;
comparison: range | compared ;
compared
    : range comparator range        { $$ = ast_binary(parser, @$, $2, $1, $3); }
    | wrong_chain
    ;
wrong_chain: compared comparator range
                                    { parser_wrong_chain(parser, @2);
                                      $$ = ast_binary(parser, @$, $2, $1, $3); }
    ;
comparator: "==" { $$ = OPR_EQ; } | "!=" { $$ = OPR_NE; } | "<=" { $$ = OPR_LE; }
    | ">=" { $$ = OPR_GE; } | '<' { $$ = OPR_LT; } | '>' { $$ = OPR_GT; } | "in" { $$ = OPR_IN; } ;
range: sum
    | sum ".." sum                  { $$ = ast_three(parser, @$, AST_RANGE, $1, $3, NULL); } ;
sum: product
    | sum '+' product               { $$ = ast_binary(parser, @$, OPR_ADD, $1, $3); }
    | sum '-' product               { $$ = ast_binary(parser, @$, OPR_SUB, $1, $3); } ;
product: signed
    | product '*' signed            { $$ = ast_binary(parser, @$, OPR_MUL, $1, $3); }
    | product '/' signed            { $$ = ast_binary(parser, @$, OPR_DIV, $1, $3); }
    | product '%' signed            { $$ = ast_binary(parser, @$, OPR_MOD, $1, $3); } ;
signed: power
    | '-' signed                    { $$ = ast_unary(parser, @$, OPR_NEG, $2); } ;
power: postfix
    | postfix '^' signed            { $$ = ast_binary(parser, @$, OPR_POW, $1, $3); } ;

postfix
    : primary
    | postfix '(' ')'               { $$ = ast_apply(parser, @$, AST_CALL, $1, NULL); }
    | postfix '(' argument_list comma ')'
                                    { $$ = ast_apply(parser, @$, AST_CALL, $1, $3); }
    | postfix '[' index_list ']'    { $$ = ast_apply(parser, @$, AST_INDEX, $1, $3); }
    | postfix '.' NAME              { $$ = ast_named(parser, @$, AST_FIELD, $3, @3, $1, NULL); }
    ;

primary
    : NAME                          { $$ = ast_text(parser, @$, AST_NAME, $1); }
    | INT                           { $$ = ast_int(parser, @$, $1); }
    | REAL                          { $$ = ast_real(parser, @$, $1); }
    | STRING                        { $$ = ast_text(parser, @$, AST_STRING, $1); }
    | "true"                        { $$ = ast_bool(parser, @$, true); }
    | "false"                       { $$ = ast_bool(parser, @$, false); }
    | "none"                        { $$ = ast_leaf(parser, @$, AST_NONE); }
    | '(' expr ')'                  { $$ = $2; }
    | '[' ']'                       { $$ = ast_list(parser, @$, AST_LIST, NULL); }
    | '[' element_list comma ']'    { $$ = ast_list(parser, @$, AST_LIST, $2); }
    | '[' element loops ']'         { $$ = ast_apply(parser, @$, AST_COMPREHENSION, $2, $3); }
    ;

argument_list
    : argument                      { $$ = ast_append(parser, NULL, $1); }
    | argument_list ',' argument    { $$ = ast_append(parser, $1, $3); }
    ;
argument
    : expr
    | NAME ':' expr                 { $$ = ast_named(parser, @$, AST_KEYED, $1, @1, $3, NULL); }
    ;

index_list
    : index                         { $$ = ast_append(parser, NULL, $1); }
    | index_list ',' index          { $$ = ast_append(parser, $1, $3); }
    ;
index
    : expr
    | ".."                          { $$ = ast_three(parser, @$, AST_RANGE, NULL, NULL, NULL); }
    | ".." sum                      { $$ = ast_three(parser, @$, AST_RANGE, NULL, $2, NULL); }
    | sum ".."                      { $$ = ast_three(parser, @$, AST_RANGE, $1, NULL, NULL); }
    | "..."                         { $$ = ast_leaf(parser, @$, AST_ELLIPSIS); }
    ;

element_list
    : element                       { $$ = ast_append(parser, NULL, $1); }
    | element_list ',' element      { $$ = ast_append(parser, $1, $3); }
    ;
element
    : expr
    | NAME ':' expr                 { $$ = ast_named(parser, @$, AST_KEYED, $1, @1, $3, NULL); }
    | STRING ':' expr               { $$ = ast_named(parser, @$, AST_KEYED, NULL, @1, $3,
                                                     ast_text(parser, @1, AST_STRING, $1)); }
    | "if" expr "then" expr         { $$ = ast_three(parser, @$, AST_WHEN, $2, $4, NULL); }
    ;

loops
    : loop                          { $$ = ast_append(parser, NULL, $1); }
    | loops loop                    { $$ = ast_append(parser, $1, $2); }
    ;
loop: "for" names "in" pipe         { $$ = ast_loop(parser, @$, AST_LOOP, $2, $4, NULL); }
    | "for" names "in" pipe "if" pipe
                                    { $$ = ast_loop(parser, @$, AST_LOOP, $2, $4, $6); }
    ;

comma: %empty | ',' ;

%%

/* Called when the parser's own stack is full: nesting without end. */
static void parser_error(Span *where, Parser *parser, const char *message)
{
    (void)message;
    parser_too_deep(parser, *where);
}

static int yyreport_syntax_error(const yypcontext_t *context, Parser *parser)
{
    yysymbol_kind_t kinds[YYNTOKENS];
    const char *names[YYNTOKENS];
    int count = yypcontext_expected_tokens(context, kinds, YYNTOKENS);
    for (int i = 0; i < count; i++)
        names[i] = yysymbol_name(kinds[i]);
    parser_syntax_error(parser, names, count > 0 ? count : 0);
    return 0;
}
