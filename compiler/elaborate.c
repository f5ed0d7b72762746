// Elaboration: a model file, its imports and the command line's constants become a Module, the
// parameters, options and forward graphs of everything the executable can launch.
//
// In order: files are read, overrides linked, -D applied (elab_scope.c); assertions are checked
// and constants evaluated; models are constructed and their parameters named (elab_module.c);
// programs become entries (elab_entry.c); then train and sample blocks, which call them.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

static void index_builtins(Elab *e)
{
    struct {
        const Builtin *at;
        uint32_t count;
    } tables[] = {
        {elab_builtins, elab_builtin_count},
        {elab_list_builtins, elab_list_builtin_count},
        {elab_random_builtins, elab_random_builtin_count},
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        for (uint32_t j = 0; j < tables[i].count; j++)
            map_set(&e->builtins, intern(tables[i].at[j].name),
                    (uint64_t)(uintptr_t)&tables[i].at[j]);
    for (uint32_t i = 0; i < elab_layer_count; i++)
        map_set(&e->layers, intern(elab_layers[i].name), (uint64_t)(uintptr_t)&elab_layers[i]);
}

typedef struct {
    FileScope *file;
    const Ast *ast;
} AssertContext;

static void check_assertion(Elab *e, void *context)
{
    AssertContext *at = context;
    exec_statement(e, frame_new(e, NULL, at->file, FRAME_FUNCTION), at->ast);
}

static void evaluate(Elab *e, void *context)
{
    decl_value(e, context);
}

static void check_assertions(Elab *e)
{
    for (size_t i = 0; i < e->file_count; i++) {
        const AstList *list = &e->files[i]->ast->list;
        for (uint32_t j = 0; j < list->count; j++) {
            AssertContext at = {e->files[i], list->at[j]};
            if (at.ast->kind == AST_ASSERT)
                elab_try(e, check_assertion, &at);
        }
    }
}

typedef void DeclFn(Elab *e, Decl *decl);

// Every declaration of a kind that counts, in the order of the files.
static void each_decl(Elab *e, AstKind kind, DeclFn *fn)
{
    for (size_t i = 0; i < e->file_count && !diag_full(); i++)
        for (uint32_t j = 0; j < e->files[i]->decl_count; j++) {
            Decl *first = e->files[i]->decls[j];
            Decl *decl = decl_final(first);
            if (decl->ast->kind != kind || first->ast->override)
                continue;
            fn(e, decl);
        }
}

// What the executable knows by name exists once, also when two imported files declare it.
static void check_unique(Elab *e, AstKind kind)
{
    Map seen = {0};
    for (size_t i = 0; i < e->file_count; i++)
        for (uint32_t j = 0; j < e->files[i]->decl_count; j++) {
            Decl *decl = decl_final(e->files[i]->decls[j]);
            if (decl->ast->kind != kind)
                continue;
            Decl *other = (Decl *)(uintptr_t)map_get(&seen, decl->name);
            if (other && other != decl) {
                elab_error(e, decl->ast->span2, "'%s' is declared in %s already", decl->name,
                           file_of(other->file->path));
                elab_note(e, other->ast->span2, "declared here");
            }
            map_set(&seen, decl->name, (uint64_t)(uintptr_t)decl);
        }
    free(seen.at);
}

static void evaluate_decl(Elab *e, Decl *decl)
{
    elab_try(e, evaluate, decl);
}

static void add_constant(Elab *e, Decl *decl)
{
    Module *module = e->module;
    evaluate_decl(e, decl);
    if (decl->state != DECL_DONE)
        return;
    const char *text = arena_printf(e->arena, "%s=%s", decl->name, value_text(e, decl->value));
    module->constants = grow_array(module->constants, &e->constant_capacity, module->constant_count,
                                   sizeof *module->constants);
    module->constants[module->constant_count++] = intern(text);
}

static const char *model_name(const char *path)
{
    const char *name = file_of(path);
    const char *dot = strstr(name, ".model");
    return dot && dot != name ? intern_n(name, (size_t)(dot - name)) : intern(name);
}

static void build(Elab *e)
{
    static const AstKind named[] = {AST_MODEL, AST_PROGRAM, AST_OPTION, AST_TRAIN, AST_SAMPLE};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        check_unique(e, named[i]);
    check_assertions(e);
    each_decl(e, AST_CONST, add_constant);
    each_decl(e, AST_LET, evaluate_decl);
    each_decl(e, AST_OPTION, evaluate_decl);
    if (diag_errors())
        return;
    elab_models(e);
    if (diag_errors())
        return;
    elab_programs(e);
    if (diag_full())
        return;
    each_decl(e, AST_TRAIN, elab_train);
    each_decl(e, AST_SAMPLE, elab_sample);
    elab_names(e);
}

static void collect_names(Map *names, const Ast *ast)
{
    if (!ast)
        return;
    if (ast->kind == AST_NAME)
        map_set(names, ast->text, 1);
    const Ast *const parts[] = {ast->a, ast->b, ast->c};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        collect_names(names, parts[i]);
    for (uint32_t i = 0; i < ast->list.count; i++)
        collect_names(names, ast->list.at[i]);
    for (uint32_t i = 0; i < ast->list2.count; i++)
        collect_names(names, ast->list2.at[i]);
}

// An option that no expression names does nothing; most often its name is misspelt.
static void warn_options(Elab *e)
{
    Map names = {0};
    for (size_t i = 0; i < e->file_count; i++)
        collect_names(&names, e->files[i]->ast);
    static const char *const known[] = {"batch", "steps", "log_every", "save_every", "step"};
    size_t count = sizeof known / sizeof *known;
    for (uint32_t i = 0; i < e->module->option_count; i++) {
        const Option *option = &e->module->options[i];
        bool used = map_get(&names, option->name) != 0;
        for (size_t k = 0; k < count && !used; k++)
            used = option->stage && strcmp(option->name, known[k]) == 0;
        if (used)
            continue;
        diag_warning(option->span, "nothing reads option '%s'", option->name);
        for (size_t k = 0; option->stage && k < count; k++)
            if (strncmp(option->name, known[k], strlen(known[k])) == 0) {
                diag_help((Span){0}, "'%s' is the name that training knows", known[k]);
                break;
            }
    }
    free(names.at);
}

static void release(Elab *e)
{
    for (size_t i = 0; i < e->file_count; i++) {
        free(e->files[i]->names.at);
        free(e->files[i]->seen.at);
    }
    free(e->files);
    free(e->builtins.at);
    free(e->layers.at);
    free(e->loaded.at);
    free(e->parameters.at);
    free(e->param_names.at);
    free(e->kept.at);
    free(e->reported);
}

// NULL after errors, which are in the diagnostics.
Module *elaborate(Arena *arena, Sources *sources, const ElabOptions *options)
{
    Module *module = arena_alloc(arena, sizeof *module);
    Elab *e = arena_alloc(arena, sizeof *e);
    *e = (Elab){.arena = arena,
                .sources = sources,
                .options = options,
                .module = module,
                .real = options->real ? options->real : DT_F32,
                .root = -1};
    e->graph = graph_new(arena);
    *module = (Module){.path = options->path,
                       .name = model_name(options->path),
                       .arena = arena,
                       .graph = e->graph,
                       .real = e->real};
    uint32_t before = diag_errors();
    index_builtins(e);
    elab_load(e, options->path);
    if (e->file_count && diag_errors() == before) {
        elab_defines(e);
        build(e); // also after a wrong -D: other wrong values are told with it
    }
    if (diag_errors() == before)
        warn_options(e);
    release(e);
    if (diag_errors() != before)
        return NULL;
    warn_unused(module);
    return module;
}
