// Builders of the tree, which the grammar's actions call, and its printed form.
//
// A builder fills one node in the arena and knows how deep the tree below it is. A node that
// would be deeper than AST_DEPTH_LIMIT becomes a leaf of kind AST_ERROR after one message, so
// every later walk of a tree may recurse without a look at the C stack.
#include "grammar/parser.h"

#include <string.h>

// ---- lists ----

// A copy of `count` elements with room for `wanted`.
static void *enlarge(Parser *parser, const void *items, uint32_t count, uint32_t wanted,
                     size_t size)
{
    void *more = arena_alloc(parser->arena, wanted * size);
    if (count > 0)
        memcpy(more, items, count * size);
    return more;
}

NodeList *ast_append(Parser *parser, NodeList *list, Ast *node)
{
    if (!list)
        list = arena_alloc(parser->arena, sizeof *list);
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 4;
        list->at = enlarge(parser, list->at, list->count, list->capacity, sizeof(void *));
    }
    list->at[list->count++] = node;
    return list;
}

NameList *ast_append_name(Parser *parser, NameList *names, const char *text, Span span)
{
    if (!names)
        names = arena_alloc(parser->arena, sizeof *names);
    if (names->count == names->capacity) {
        uint32_t wanted = names->capacity ? 2 * names->capacity : 4;
        names->at = enlarge(parser, names->at, names->count, wanted, sizeof(const char *));
        names->spans = enlarge(parser, names->spans, names->count, wanted, sizeof(Span));
        names->capacity = wanted;
    }
    names->at[names->count] = text;
    names->spans[names->count++] = span;
    return names;
}

static AstList take(const NodeList *list)
{
    return list ? (AstList){list->at, list->count} : (AstList){NULL, 0};
}

// ---- nodes ----

static Ast *new_node(Parser *parser, Span span, AstKind kind)
{
    Ast *node = arena_alloc(parser->arena, sizeof *node);
    node->kind = kind;
    node->span = span;
    node->depth = 1;
    return node;
}

static uint32_t deepest(uint32_t depth, const Ast *below)
{
    return below && below->depth > depth ? below->depth : depth;
}

// Every builder of a node with something below ends here.
static Ast *finish(Parser *parser, Ast *node)
{
    uint32_t depth = deepest(deepest(deepest(0, node->a), node->b), node->c);
    for (uint32_t i = 0; i < node->list.count; i++)
        depth = deepest(depth, node->list.at[i]);
    for (uint32_t i = 0; i < node->list2.count; i++)
        depth = deepest(depth, node->list2.at[i]);
    node->depth = depth + 1;
    if (node->depth <= AST_DEPTH_LIMIT)
        return node;
    parser_too_deep(parser, node->span);
    return ast_leaf(parser, node->span, AST_ERROR);
}

Ast *ast_leaf(Parser *parser, Span span, AstKind kind)
{
    return new_node(parser, span, kind);
}

Ast *ast_text(Parser *parser, Span span, AstKind kind, const char *text)
{
    Ast *node = new_node(parser, span, kind);
    node->text = text;
    return node;
}

Ast *ast_int(Parser *parser, Span span, int64_t value)
{
    Ast *node = new_node(parser, span, AST_INT);
    node->integer = value;
    return node;
}

Ast *ast_real(Parser *parser, Span span, double value)
{
    Ast *node = new_node(parser, span, AST_REAL);
    node->real = value;
    return node;
}

Ast *ast_bool(Parser *parser, Span span, bool value)
{
    Ast *node = new_node(parser, span, AST_BOOL);
    node->integer = value;
    return node;
}

Ast *ast_list(Parser *parser, Span span, AstKind kind, NodeList *list)
{
    return ast_apply(parser, span, kind, NULL, list);
}

Ast *ast_unary(Parser *parser, Span span, Operator op, Ast *a)
{
    Ast *node = new_node(parser, span, AST_UNARY);
    node->op = op;
    node->a = a;
    return finish(parser, node);
}

Ast *ast_binary(Parser *parser, Span span, Operator op, Ast *a, Ast *b)
{
    Ast *node = new_node(parser, span, AST_BINARY);
    node->op = op;
    node->a = a;
    node->b = b;
    return finish(parser, node);
}

Ast *ast_three(Parser *parser, Span span, AstKind kind, Ast *a, Ast *b, Ast *c)
{
    Ast *node = new_node(parser, span, kind);
    node->a = a;
    node->b = b;
    node->c = c;
    return finish(parser, node);
}

Ast *ast_apply(Parser *parser, Span span, AstKind kind, Ast *a, NodeList *list)
{
    Ast *node = new_node(parser, span, kind);
    node->a = a;
    node->list = take(list);
    return finish(parser, node);
}

Ast *ast_named(Parser *parser, Span span, AstKind kind, const char *text, Span name, Ast *a, Ast *b)
{
    Ast *node = new_node(parser, span, kind);
    node->text = text;
    node->span2 = name;
    node->a = a;
    node->b = b;
    return finish(parser, node);
}

Ast *ast_loop(Parser *parser, Span span, AstKind kind, NameList *names, Ast *a, Ast *b)
{
    Ast *node = new_node(parser, span, kind);
    node->names = names->at;
    node->name_spans = names->spans;
    node->name_count = names->count;
    node->a = a;
    node->b = b;
    return finish(parser, node);
}

Ast *ast_type(Parser *parser, Span span, const char *name, NodeList *dims)
{
    Ast *node = new_node(parser, span, AST_TYPE);
    node->text = name;
    node->list = take(dims);
    node->integer = dims != NULL;
    return finish(parser, node);
}

Ast *ast_update(Parser *parser, Span span, const char *name, Span where, Operator op, Ast *a)
{
    Ast *node = new_node(parser, span, AST_UPDATE);
    node->text = name;
    node->span2 = where;
    node->op = op;
    node->a = a;
    return finish(parser, node);
}

Ast *ast_assign(Parser *parser, Span span, NodeList *targets, Ast *value)
{
    return ast_apply(parser, span, AST_ASSIGN, value, targets);
}

Ast *ast_minimize(Parser *parser, Span span, NodeList *paths, NodeList *arguments, Ast *block)
{
    Ast *node = new_node(parser, span, AST_MINIMIZE);
    node->list = take(paths);
    node->list2 = take(arguments);
    node->b = block;
    return finish(parser, node);
}

Ast *ast_assert(Parser *parser, Span span, Ast *condition, const char *why)
{
    Ast *node = new_node(parser, span, AST_ASSERT);
    node->a = condition;
    node->text = why;
    return finish(parser, node);
}

Ast *ast_import(Parser *parser, Span span, const char *path, Span where, const char *name)
{
    Ast *node = new_node(parser, span, AST_IMPORT);
    node->text = path;
    node->span2 = where;
    node->text2 = name;
    return node;
}

Ast *ast_module(Parser *parser, Span span, const char *name, Span where, NodeList *parameters,
                bool parentheses, Ast *block)
{
    Ast *node = new_node(parser, span, AST_MODULE);
    node->text = name;
    node->span2 = where;
    node->list = take(parameters);
    node->integer = parentheses;
    node->b = block;
    return finish(parser, node);
}

Ast *ast_signature(Parser *parser, Span span, const char *name, Span where, NodeList *parameters,
                   NodeList *results, Ast *value, Ast *block)
{
    Ast *node = new_node(parser, span, AST_DEF);
    node->text = name;
    node->span2 = where;
    node->list = take(parameters);
    node->list2 = take(results);
    node->a = value;
    node->b = block;
    return finish(parser, node);
}

Ast *ast_become(Ast *node, AstKind kind, Span span)
{
    if (node->kind != AST_ERROR)
        node->kind = kind;
    node->span = span;
    return node;
}

Ast *ast_override(Ast *declaration, Span span)
{
    declaration->override = true;
    declaration->span = span;
    return declaration;
}

// ---- the printed form ----

// How a kind is printed: its name, and what its parts are called ("" where it is plain).
typedef struct {
    const char *name;
    const char *a, *b, *c, *list, *list2;
} KindText;

static const KindText kinds[] = {
    [AST_NAME] = {.name = "name"},
    [AST_INT] = {.name = "int"},
    [AST_REAL] = {.name = "real"},
    [AST_STRING] = {.name = "string"},
    [AST_BOOL] = {.name = "bool"},
    [AST_NONE] = {.name = "none"},
    [AST_LIST] = {.name = "list"},
    [AST_COMPREHENSION] = {.name = "comprehension"},
    [AST_LOOP] = {.name = "loop", .a = "in", .b = "if"},
    [AST_WHEN] = {.name = "when", .a = "condition", .b = "then"},
    [AST_KEYED] = {.name = "keyed", .b = "key"},
    [AST_CALL] = {.name = "call", .a = "callee"},
    [AST_INDEX] = {.name = "index", .a = "of"},
    [AST_FIELD] = {.name = "field"},
    [AST_UNARY] = {.name = "unary"},
    [AST_BINARY] = {.name = "binary"},
    [AST_IFELSE] = {.name = "ifelse", .a = "condition", .b = "then", .c = "else"},
    [AST_RANGE] = {.name = "range", .a = "from", .b = "to"},
    [AST_ELLIPSIS] = {.name = "ellipsis"},
    [AST_TYPE] = {.name = "type"},
    [AST_BLOCK] = {.name = "block"},
    [AST_ASSIGN] = {.name = "assign", .a = "value"},
    [AST_TARGET] = {.name = "target"},
    [AST_UPDATE] = {.name = "update"},
    [AST_RETURN] = {.name = "return"},
    [AST_FOR] = {.name = "for", .a = "in"},
    [AST_IF] = {.name = "if", .a = "condition", .b = "then", .c = "else"},
    [AST_MINIMIZE] = {.name = "minimize", .list2 = "with"},
    [AST_DATA] = {.name = "data", .a = "source"},
    [AST_IGNORE] = {.name = "ignore"},
    [AST_REPORT] = {.name = "report"},
    [AST_YIELD] = {.name = "yield"},
    [AST_ASSERT] = {.name = "assert"},
    [AST_CONST] = {.name = "const", .a = "value"},
    [AST_LET] = {.name = "let"},
    [AST_TYPEDEF] = {.name = "typedef"},
    [AST_MODEL] = {.name = "model"},
    [AST_MODULE] = {.name = "module"},
    [AST_PROGRAM] = {.name = "program"},
    [AST_DEF] = {.name = "def"},
    [AST_PARAM] = {.name = "param", .a = "default"},
    [AST_RESULT] = {.name = "result"},
    [AST_TRAIN] = {.name = "train"},
    [AST_SAMPLE] = {.name = "sample"},
    [AST_OPTION] = {.name = "option", .a = "default"},
    [AST_IMPORT] = {.name = "import"},
    [AST_FILE] = {.name = "file"},
    [AST_ERROR] = {.name = "error"},
};

const char *operator_text(Operator op)
{
    static const char *const texts[] = {
        [OPR_NONE] = "", [OPR_ADD] = "+", [OPR_SUB] = "-", [OPR_MUL] = "*",   [OPR_DIV] = "/",
        [OPR_MOD] = "%", [OPR_POW] = "^", [OPR_NEG] = "-", [OPR_NOT] = "not", [OPR_AND] = "and",
        [OPR_OR] = "or", [OPR_EQ] = "==", [OPR_NE] = "!=", [OPR_LT] = "<",    [OPR_LE] = "<=",
        [OPR_GT] = ">",  [OPR_GE] = ">=", [OPR_IN] = "in", [OPR_PIPE] = "|>",
    };
    return texts[op];
}

static void print_quoted(FILE *out, const char *text)
{
    fputs(" \"", out);
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", out);
        else if (*text == '\t')
            fputs("\\t", out);
        else if (*text == '"' || *text == '\\')
            fprintf(out, "\\%c", *text);
        else
            fputc(*text, out);
    }
    fputc('"', out);
}

// What stands in the node itself, on its line.
static void print_head(FILE *out, const Ast *ast)
{
    fprintf(out, "%s%s", ast->override ? "override " : "", kinds[ast->kind].name);
    if (ast->op != OPR_NONE)
        fprintf(out, " %s", operator_text(ast->op));
    if (ast->text &&
        (ast->kind == AST_STRING || ast->kind == AST_IMPORT || ast->kind == AST_ASSERT))
        print_quoted(out, ast->text);
    else if (ast->text)
        fprintf(out, " %s", ast->text);
    if (ast->text2)
        fprintf(out, " as %s", ast->text2);
    for (uint32_t i = 0; i < ast->name_count; i++)
        fprintf(out, "%s%s", i ? ", " : " ", ast->names[i]);
    if (ast->kind == AST_INT)
        fprintf(out, " %lld", (long long)ast->integer);
    else if (ast->kind == AST_REAL)
        fprintf(out, " %.17g", ast->real);
    else if (ast->kind == AST_BOOL)
        fputs(ast->integer ? " true" : " false", out);
    else if (ast->kind == AST_TYPE && ast->integer)
        fputs(" []", out);
    fputc('\n', out);
}

static void print_node(FILE *out, const Ast *ast, const char *role, int indent)
{
    if (!ast)
        return;
    fprintf(out, "%*s", indent, "");
    if (role)
        fprintf(out, "%s: ", role);
    print_head(out, ast);
    const KindText *kind = &kinds[ast->kind];
    bool value_last = ast->kind == AST_ASSIGN;
    if (!value_last)
        print_node(out, ast->a, kind->a, indent + 2);
    for (uint32_t i = 0; i < ast->list.count; i++)
        print_node(out, ast->list.at[i], kind->list, indent + 2);
    for (uint32_t i = 0; i < ast->list2.count; i++)
        print_node(out, ast->list2.at[i], kind->list2, indent + 2);
    if (value_last)
        print_node(out, ast->a, kind->a, indent + 2);
    print_node(out, ast->b, kind->b, indent + 2);
    print_node(out, ast->c, kind->c, indent + 2);
}

void ast_print(FILE *out, const Ast *ast)
{
    print_node(out, ast, NULL, 0);
}
