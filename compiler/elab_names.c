// Names in functions and modules that nothing calls: looked up without evaluating them.
//
// A frame stands for each function and module body; it holds every name that the text binds
// anywhere in it (parameters, targets, loops, axes of shapes), whatever the order and the
// branches. So a name that is refused here is bound nowhere; what is bound on some path only is
// left to the evaluation.
#include <string.h>

#include "compiler/elab.h"

typedef struct {
    Frame *frame;
    const Ast *ast;
} NameContext;

static void check(Elab *e, Frame *frame, const Ast *ast);

// ---- collecting ----

static void add(Elab *e, Frame *frame, const char *name, Span span)
{
    if (name && !frame_find(frame, name))
        frame_bind(e, frame, name, value_none(), span, BIND_LOCAL);
}

// Axes that a shape may bind, also those of a named type.
static void add_axes(Elab *e, Frame *frame, const Ast *type, int depth)
{
    if (!type)
        return;
    FileScope *space;
    Decl *decl = type->text ? file_lookup(e, frame->file, type->text, &space) : NULL;
    if (decl && decl->ast->kind == AST_TYPEDEF && depth < 32)
        add_axes(e, frame, decl->ast->b, depth + 1);
    for (uint32_t i = 0; i < type->list.count; i++)
        if (type->list.at[i]->kind == AST_NAME)
            add(e, frame, type->list.at[i]->text, type->list.at[i]->span);
}

static void collect(Elab *e, Frame *frame, const Ast *ast)
{
    if (!ast)
        return;
    switch ((int)ast->kind) {
    case AST_DEF:
    case AST_DATA:
    case AST_OPTION:
        add(e, frame, ast->text, ast->span2);
        add_axes(e, frame, ast->kind == AST_DEF ? NULL : ast->b, 0);
        return;
    case AST_TARGET:
    case AST_PARAM:
    case AST_RESULT:
        add(e, frame, ast->kind == AST_RESULT ? NULL : ast->text, ast->span2);
        add_axes(e, frame, ast->b, 0);
        if (ast->kind == AST_RESULT && !ast->b && ast->text) {
            const Ast named = {.kind = AST_TYPE, .text = ast->text};
            add_axes(e, frame, &named, 0);
        }
        return;
    case AST_FOR:
    case AST_LOOP:
        for (uint32_t i = 0; i < ast->name_count; i++)
            add(e, frame, ast->names[i], ast->name_spans[i]);
        break;
    default:
        break;
    }
    collect(e, frame, ast->a);
    collect(e, frame, ast->b);
    collect(e, frame, ast->c);
    for (uint32_t i = 0; i < ast->list.count; i++)
        collect(e, frame, ast->list.at[i]);
    for (uint32_t i = 0; i < ast->list2.count; i++)
        collect(e, frame, ast->list2.at[i]);
}

// ---- checking ----

static void unknown(Elab *e, void *context)
{
    NameContext *at = context;
    elab_unknown_name(e, at->frame, at->ast->text, at->ast->span);
}

static bool is_known(Elab *e, const Frame *frame, const char *name)
{
    FileScope *space;
    return frame_lookup(frame, name) || file_lookup(e, frame->file, name, &space) || space ||
           map_get(&e->builtins, name) || map_get(&e->layers, name) || strcmp(name, "_") == 0;
}

static void check_name(Elab *e, Frame *frame, const Ast *ast)
{
    NameContext context = {frame, ast};
    if (!is_known(e, frame, ast->text))
        elab_try(e, unknown, &context);
}

// A function or a module: what its text binds, then what it uses.
static void check_body(Elab *e, Frame *outer, FileScope *file, const Ast *ast)
{
    Frame *frame = frame_new(e, outer, file, FRAME_FUNCTION);
    if (ast->kind == AST_PROGRAM || ast->kind == AST_TRAIN || ast->kind == AST_SAMPLE)
        add(e, frame, intern("b"), ast->span2);
    static const char *const implied[] = {"batch", "steps", "log_every", "save_every", "step"};
    for (size_t i = 0; ast->kind == AST_TRAIN && i < sizeof implied / sizeof *implied; i++)
        add(e, frame, intern(implied[i]), ast->span2);
    for (uint32_t i = 0; i < ast->list.count; i++)
        collect(e, frame, ast->list.at[i]);
    for (uint32_t i = 0; i < ast->list2.count; i++)
        collect(e, frame, ast->list2.at[i]);
    collect(e, frame, ast->a);
    collect(e, frame, ast->b);
    for (uint32_t i = 0; i < ast->list.count; i++)
        check(e, frame, ast->list.at[i]);
    check(e, frame, ast->a);
    check(e, frame, ast->b);
}

// Optimizers and data sources are words of their statements, not functions: their arguments.
static void check_arguments(Elab *e, Frame *frame, const Ast *call)
{
    for (uint32_t i = 0; call && i < call->list.count; i++)
        check(e, frame, call->list.at[i]);
}

static void check(Elab *e, Frame *frame, const Ast *ast)
{
    if (!ast || diag_full())
        return;
    bool minimize = ast->kind == AST_MINIMIZE;
    switch ((int)ast->kind) {
    case AST_NAME:
        check_name(e, frame, ast);
        return;
    case AST_DEF:
        check_body(e, frame, frame->file, ast);
        return;
    case AST_DATA:
        check_arguments(e, frame, ast->a);
        return;
    default:
        break;
    }
    check(e, frame, ast->a);
    check(e, frame, ast->b);
    check(e, frame, ast->c);
    for (uint32_t i = 0; i < ast->list.count; i++)
        check(e, frame, ast->list.at[i]);
    if (minimize && ast->list2.count)
        check_arguments(e, frame, ast->list2.at[0]);
    for (uint32_t i = minimize; i < ast->list2.count; i++)
        check(e, frame, ast->list2.at[i]);
}

// Functions, modules and blocks of every file, imported ones first.
void elab_names(Elab *e)
{
    for (size_t i = 0; i < e->file_count; i++)
        for (uint32_t j = 0; j < e->files[i]->decl_count; j++) {
            const Decl *decl = e->files[i]->decls[j];
            AstKind kind = decl->ast->kind;
            if (kind == AST_DEF || kind == AST_MODULE || kind == AST_PROGRAM || kind == AST_TRAIN ||
                kind == AST_SAMPLE)
                check_body(e, NULL, e->files[i], decl->ast);
        }
}
