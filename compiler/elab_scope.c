// Scopes: frames of functions and modules; files with their imports; overrides and -D.
//
// Files are loaded depth first, each once, imports before the file that asks for them. When a file
// is loaded, each of its overrides is linked behind the declaration it replaces (Decl.replaced),
// and everybody who finds a declaration goes to the end of its chain: so the outermost override
// wins, also inside the files that know nothing of it. Declarations are evaluated when first used.
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

// ---- frames ----

Frame *frame_new(Elab *e, Frame *parent, FileScope *file, FrameKind kind)
{
    Frame *frame = arena_alloc(e->arena, sizeof *frame);
    frame->parent = parent;
    frame->file = file;
    frame->kind = kind;
    if (parent) {
        frame->instance = parent->instance;
        frame->label = parent->label;
    }
    return frame;
}

Binding *frame_find(const Frame *frame, const char *name)
{
    for (uint32_t i = 0; i < frame->count; i++)
        if (frame->at[i].name == name)
            return &frame->at[i];
    return NULL;
}

// Adds a binding; the caller knows that the name is not there yet.
Binding *frame_bind(Elab *e, Frame *frame, const char *name, Value value, Span span, BindKind kind)
{
    if (frame->count == frame->capacity) {
        uint32_t capacity = frame->capacity ? frame->capacity * 2 : 8;
        Binding *at = arena_alloc(e->arena, capacity * sizeof *at);
        if (frame->count)
            memcpy(at, frame->at, frame->count * sizeof *at);
        frame->at = at;
        frame->capacity = capacity;
    }
    frame->at[frame->count] = (Binding){name, value, span, (uint8_t)kind};
    return &frame->at[frame->count++];
}

Binding *frame_lookup(const Frame *frame, const char *name)
{
    for (; frame; frame = frame->parent) {
        Binding *binding = frame_find(frame, name);
        if (binding)
            return binding;
    }
    return NULL;
}

// ---- files ----

const char *file_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static const char *declaration_word(AstKind kind)
{
    return kind == AST_CONST     ? "const"
           : kind == AST_LET     ? "let"
           : kind == AST_TYPEDEF ? "type"
           : kind == AST_MODEL   ? "model"
           : kind == AST_MODULE  ? "module"
           : kind == AST_PROGRAM ? "program"
           : kind == AST_DEF     ? "def"
           : kind == AST_TRAIN   ? "train"
           : kind == AST_SAMPLE  ? "sample"
                                 : "option";
}

Decl *decl_final(Decl *decl)
{
    while (decl->replaced)
        decl = decl->replaced;
    return decl;
}

// Own names first, then imports in order, depth first. Not found: NULL, *space NULL.
static Decl *search(Elab *e, FileScope *file, const char *name, FileScope **space)
{
    if (file->visit == e->visit)
        return NULL;
    file->visit = e->visit;
    Decl *own = (Decl *)(uintptr_t)map_get(&file->names, name);
    if (own)
        return own;
    for (uint32_t i = 0; i < file->import_count; i++) {
        if (!file->imports[i].as)
            continue;
        if (file->imports[i].as == name) {
            *space = file->imports[i].file;
            return NULL;
        }
    }
    for (uint32_t i = 0; i < file->import_count; i++) {
        if (file->imports[i].as)
            continue;
        Decl *found = search(e, file->imports[i].file, name, space);
        if (found || *space)
            return found;
    }
    return NULL;
}

// What a name means in a file, built-ins aside; look-ups are remembered.
Decl *file_lookup(Elab *e, FileScope *file, const char *name, FileScope **space)
{
    enum { NOT_FOUND = 2, IS_SPACE = 1 };
    *space = NULL;
    uint64_t seen = map_get(&file->seen, name);
    if (!seen) {
        e->visit++;
        Decl *found = search(e, file, name, space);
        seen = found    ? (uint64_t)(uintptr_t)found
               : *space ? (uint64_t)(uintptr_t)*space | IS_SPACE
                        : NOT_FOUND;
        map_set(&file->seen, name, seen);
    }
    if (seen == NOT_FOUND)
        return NULL;
    if (seen & IS_SPACE) {
        *space = (FileScope *)(uintptr_t)(seen & ~(uint64_t)IS_SPACE);
        return NULL;
    }
    return decl_final((Decl *)(uintptr_t)seen);
}

static Decl *search_imports(Elab *e, FileScope *file, const char *name)
{
    FileScope *space = NULL;
    e->visit++;
    file->visit = e->visit;
    for (uint32_t i = 0; i < file->import_count; i++) {
        Decl *found = search(e, file->imports[i].file, name, &space);
        if (found)
            return found;
    }
    return NULL;
}

// Links an override behind what it replaces, or tells why it cannot.
static void apply_override(Elab *e, FileScope *file, Decl *decl)
{
    Decl *target = search_imports(e, file, decl->name);
    if (!target) {
        elab_error(e, decl->ast->span2, "nothing is overridden: no imported file declares '%s'",
                   decl->name);
        return;
    }
    target = decl_final(target);
    if (target == decl)
        return;
    if (target->ast->kind != decl->ast->kind) {
        elab_error(e, decl->ast->span2, "'%s' is a %s; a %s cannot replace it", decl->name,
                   declaration_word(target->ast->kind), declaration_word(decl->ast->kind));
        elab_note(e, target->ast->span2, "declared here");
        return;
    }
    target->replaced = decl;
}

// A name that is imported and declared again would silently be two things.
static void check_again(Elab *e, FileScope *file, const Decl *decl)
{
    AstKind kind = decl->ast->kind;
    if (kind == AST_DEF || kind == AST_LET || kind == AST_TYPEDEF || kind == AST_MODULE)
        return; // these hide what is imported
    Decl *other = search_imports(e, file, decl->name);
    if (!other || other->ast->kind != kind || other->file == file)
        return;
    elab_error(e, decl->ast->span2, "'%s' is declared in %s already", decl->name,
               file_of(other->file->path));
    elab_note(e, other->ast->span2, "declared here");
    elab_help(e, (Span){0}, "'override %s %s' replaces it everywhere", declaration_word(kind),
              decl->name);
}

// A capital first letter marks a module, and only that.
static void check_capital(Elab *e, const Ast *ast)
{
    char first = ast->text[0];
    bool capital = first >= 'A' && first <= 'Z', module = ast->kind == AST_MODULE;
    if (capital == module)
        return;
    elab_error(e, ast->span2, "the name of a %s begins with a %s letter",
               declaration_word(ast->kind), module ? "capital" : "small");
    if (module && first >= 'a' && first <= 'z')
        elab_help(e, (Span){0}, "module %c%s", first - 'a' + 'A', ast->text + 1);
}

static void declare(Elab *e, FileScope *file, const Ast *ast)
{
    check_capital(e, ast);
    Decl *decl = arena_alloc(e->arena, sizeof *decl);
    *decl = (Decl){.name = ast->text, .ast = ast, .file = file, .index = UINT32_MAX};
    Decl *other = (Decl *)(uintptr_t)map_get(&file->names, ast->text);
    if (other) {
        elab_error(e, ast->span2, "'%s' is declared twice", ast->text);
        elab_note(e, other->ast->span2, "first declared here");
        return;
    }
    map_set(&file->names, ast->text, (uint64_t)(uintptr_t)decl);
    file->decls[file->decl_count++] = decl;
    if (ast->override)
        apply_override(e, file, decl);
    else
        check_again(e, file, decl);
}

static FileScope *load(Elab *e, const char *path, Span asked);

// Beside the importing file, then in the -I directories, in order.
static FileScope *load_import(Elab *e, const FileScope *from, const Ast *ast)
{
    size_t directory = (size_t)(file_of(from->path) - from->path);
    const char *path = ast->text[0] == '/' ? ast->text
                                           : arena_printf(e->arena, "%.*s%s", (int)directory,
                                                          from->path, ast->text);
    char real[PATH_MAX];
    for (uint32_t i = 0; !realpath(path, real) && i < e->options->include_count; i++)
        path = arena_printf(e->arena, "%s/%s", e->options->include_dirs[i], ast->text);
    return load(e, path, ast->span);
}

static void load_declarations(Elab *e, FileScope *file)
{
    const AstList *list = &file->ast->list;
    file->decls = arena_alloc(e->arena, (list->count + 1) * sizeof *file->decls);
    file->imports = arena_alloc(e->arena, (list->count + 1) * sizeof *file->imports);
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->at[i]->kind != AST_IMPORT)
            continue;
        FileScope *import = load_import(e, file, list->at[i]);
        if (import)
            file->imports[file->import_count++] = (Import){import, list->at[i]->text2};
    }
    for (uint32_t i = 0; i < list->count; i++) {
        AstKind kind = list->at[i]->kind;
        if (kind != AST_IMPORT && kind != AST_ASSERT && kind != AST_ERROR && list->at[i]->text)
            declare(e, file, list->at[i]);
    }
}

// The scope of a file, or NULL after a message. A file that is being loaded already is itself.
static FileScope *load(Elab *e, const char *path, Span asked)
{
    char real[PATH_MAX];
    if (!realpath(path, real)) {
        elab_error(e, asked, "cannot read %s: %s", path, strerror(errno));
        return NULL;
    }
    const char *key = intern(real);
    FileScope *known = (FileScope *)(uintptr_t)map_get(&e->loaded, key);
    if (known)
        return known;
    FileScope *file = arena_alloc(e->arena, sizeof *file);
    file->path = path;
    map_set(&e->loaded, key, (uint64_t)(uintptr_t)file);
    file->file = sources_add_file(e->sources, path);
    if (!file->file) {
        elab_error(e, asked, "cannot read %s: %s", path, strerror(errno));
        return NULL;
    }
    file->ast = parse_model(e->sources, file->file);
    load_declarations(e, file);
    e->files = grow_array(e->files, &e->file_capacity, e->file_count, sizeof *e->files);
    e->files[e->file_count++] = file;
    return file;
}

// ---- -D ----

static Decl *find_constant(Elab *e, const char *name)
{
    for (size_t i = e->file_count; i-- > 0;) {
        Decl *decl = (Decl *)(uintptr_t)map_get(&e->files[i]->names, name);
        if (decl && decl->ast->kind == AST_CONST)
            return decl_final(decl);
    }
    return NULL;
}

// The declaration of that name that -D cannot replace, or NULL.
static const Decl *find_other(const Elab *e, const char *name)
{
    for (size_t i = e->file_count; i-- > 0;) {
        Decl *decl = (Decl *)(uintptr_t)map_get(&e->files[i]->names, name);
        if (decl && (decl->ast->kind == AST_LET || decl->ast->kind == AST_OPTION))
            return decl;
    }
    return NULL;
}

static int compare_names(const void *x, const void *y)
{
    return strcmp(*(const char *const *)x, *(const char *const *)y);
}

static void unknown_constant(Elab *e, const char *define, const char *name)
{
    size_t count = 0, room = 0;
    for (size_t i = 0; i < e->file_count; i++)
        room += e->files[i]->decl_count;
    const char **names = arena_alloc(e->arena, (room + 1) * sizeof *names);
    for (size_t i = 0; i < e->file_count; i++)
        for (uint32_t j = 0; j < e->files[i]->decl_count; j++)
            if (e->files[i]->decls[j]->ast->kind == AST_CONST && !e->files[i]->decls[j]->replaced)
                names[count++] = e->files[i]->decls[j]->name;
    qsort(names, count, sizeof *names, compare_names);
    const char *list = "";
    for (size_t i = 0; i < count; i++)
        list = arena_printf(e->arena, "%s %s", list, names[i]);
    const char *near = nearest_name(name, names, count);
    const Decl *other = find_other(e, name);
    if (other) {
        bool option = other->ast->kind == AST_OPTION;
        elab_error(e, (Span){0}, "-D %s: '%s' is %s, not a constant", define, name,
                   option ? "an option" : "computed by 'let'");
        elab_note(e, other->ast->span2, "declared here");
        if (option)
            elab_help(e, (Span){0}, "the executable takes it: --set %s", define);
        return;
    }
    if (near)
        elab_error(e, (Span){0}, "-D %s: there is no constant '%s'; did you mean '%s' (%s)?",
                   define, name, near, value_text(e, decl_value(e, find_constant(e, near))));
    else
        elab_error(e, (Span){0}, "-D %s: there is no constant '%s'", define, name);
    elab_note(e, (Span){0}, "constants:%s", list);
}

typedef struct {
    const char *define;
} DefineContext;

static void define(Elab *e, void *context)
{
    const char *text = ((DefineContext *)context)->define;
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || !equals[1 + strspn(equals + 1, " ")])
        elab_fail(e, (Span){0}, "-D %s: a definition is NAME=VALUE", text);
    const char *name = intern_n(text, (size_t)(equals - text));
    Decl *decl = find_constant(e, name);
    if (!decl) {
        unknown_constant(e, text, name);
        elab_stop(e);
    }
    decl->define = equals + 1;
}

static const char *kind_word(Value value)
{
    return value.kind == V_INT      ? "an integer"
           : value.kind == V_REAL   ? "a real"
           : value.kind == V_BOOL   ? "true or false"
           : value.kind == V_STRING ? "a string"
           : value.kind == V_LIST   ? "a list"
                                    : "another kind of value";
}

static _Noreturn void wrong_define(Elab *e, const Decl *decl, Value own, const char *found)
{
    elab_error(e, (Span){0}, "-D %s=%s: '%s' is %s, not %s", decl->name, decl->define, decl->name,
               kind_word(own), found);
    elab_note(e, decl->ast->span, "declared here");
    elab_stop(e);
}

// The value of an expression that stands on the command line, for a constant like `own`.
static Value parse_define(Elab *e, const Decl *decl, Value own)
{
    const char *label = arena_printf(e->arena, "-D %s", decl->name);
    const char *text = arena_printf(e->arena, "let value = %s\n", decl->define);
    uint32_t file = sources_add_text(e->sources, label, text);
    uint32_t before = diag_errors();
    const Ast *ast = parse_model(e->sources, file);
    if (diag_errors() > before || ast->list.count != 1 || ast->list.at[0]->kind != AST_LET) {
        e->quiet = diag_errors() > before;
        if (!e->quiet)
            elab_fail(e, (Span){0}, "-D %s=%s: this is no value", decl->name, decl->define);
        elab_stop(e);
    }
    const Ast *value = ast->list.at[0]->a;
    if (value->kind == AST_NAME)
        wrong_define(e, decl, own, arena_printf(e->arena, "'%s'", value->text));
    return eval(e, frame_new(e, NULL, decl->file, FRAME_FUNCTION), value);
}

// `given` in the type of the file's own value: an int serves as real, also in lists.
static bool adopt_type(Elab *e, Value own, Value *given)
{
    if (own.kind == V_REAL && given->kind == V_INT) {
        *given = value_real((double)given->integer);
        return true;
    }
    if (own.kind == V_LIST && given->kind == V_LIST && own.list->count) {
        Value list = value_list(e, given->list->at, given->list->count);
        for (uint32_t i = 0; i < list.list->count; i++)
            if (!adopt_type(e, own.list->at[0], &list.list->at[i]))
                return false;
        *given = list;
        return true;
    }
    return own.kind == given->kind || own.kind == V_NONE;
}

static Value defined_value(Elab *e, const Decl *decl, Value own)
{
    Value given;
    if (own.kind == V_STRING && decl->define[0] != '"')
        given = value_string(intern(decl->define));
    else
        given = parse_define(e, decl, own);
    if (!adopt_type(e, own, &given))
        wrong_define(e, decl, own, kind_word(given));
    return given;
}

// Tells which of the constants that an expression reads, itself or through `let`, were replaced
// by -D.
void note_defines(Elab *e, FileScope *file, const Ast *ast)
{
    Ast *const parts[] = {ast->a, ast->b, ast->c};
    FileScope *space;
    Decl *decl = ast->kind == AST_NAME ? file_lookup(e, file, ast->text, &space) : NULL;
    if (decl && decl->define)
        elab_note(e, (Span){0}, "%s = %s by -D on the command line", decl->name,
                  value_text(e, decl->value));
    if (decl && decl->ast->kind == AST_LET && decl->state == DECL_DONE)
        note_defines(e, decl->file, decl->ast->a);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i])
            note_defines(e, file, parts[i]);
    for (uint32_t i = 0; i < ast->list.count; i++)
        note_defines(e, file, ast->list.at[i]);
}

// ---- loading, look-up ----

void elab_load(Elab *e, const char *path)
{
    load(e, path, (Span){0});
}

void elab_defines(Elab *e)
{
    for (uint32_t i = 0; i < e->options->define_count; i++) {
        DefineContext context = {e->options->defines[i]};
        elab_try(e, define, &context);
    }
}

static Value compute_decl(Elab *e, Decl *decl)
{
    const Ast *ast = decl->ast;
    Frame *frame = frame_new(e, NULL, decl->file, FRAME_FUNCTION);
    if (ast->kind == AST_TYPEDEF) {
        TypeValue *type = arena_alloc(e->arena, sizeof *type);
        *type = (TypeValue){ast->b, decl->file, decl->name};
        return (Value){.kind = V_TYPE, .type = type};
    }
    if (ast->kind == AST_MODULE)
        return (Value){.kind = V_CLASS, .class = decl};
    if (ast->kind == AST_DEF || ast->kind == AST_PROGRAM) {
        Function *function = arena_alloc(e->arena, sizeof *function);
        *function = (Function){ast, NULL, decl->file, decl->name, decl};
        return (Value){.kind = V_FUNCTION, .function = function};
    }
    if (ast->kind == AST_OPTION) {
        decl->index = option_new(e, decl->name, NULL, ast, frame);
        return option_value(e, decl->index);
    }
    if (ast->kind == AST_TRAIN || ast->kind == AST_SAMPLE)
        elab_fail(e, ast->span2, "'%s' is a %s block, not a value", decl->name,
                  declaration_word(ast->kind));
    Value value = eval(e, frame, ast->a);
    if (ast->kind == AST_CONST && ast->b)
        type_check(e, frame, ast->b, &value, ast->a->span, decl->name);
    if (decl->define)
        value = defined_value(e, decl, value);
    if (ast->kind == AST_MODEL) {
        value = implied_instance(e, value, ast->a->span);
        if (!value_is_module(value))
            elab_fail(e, ast->a->span, "a model is a module or a list of modules; this is %s",
                      value_describe(e, value));
    }
    return value;
}

static void compute_decl_try(Elab *e, void *context)
{
    Decl *decl = context;
    decl->value = compute_decl(e, decl);
}

// The value of a declaration, computed on first use, outside of whatever is being evaluated.
Value decl_value(Elab *e, Decl *decl)
{
    if (decl->state == DECL_DONE)
        return decl->value;
    if (decl->state == DECL_BUSY)
        elab_fail(e, decl->ast->span2, "'%s' is defined by itself", decl->name);
    if (decl->state == DECL_FAILED) {
        e->quiet = true;
        elab_stop(e);
    }
    Run *run = e->run;
    Host *host = e->host;
    const char *path = e->path;
    e->run = NULL;
    e->host = NULL;
    e->path = NULL;
    decl->state = DECL_BUSY;
    bool done = elab_try(e, compute_decl_try, decl);
    decl->state = done ? DECL_DONE : DECL_FAILED;
    e->run = run;
    e->host = host;
    e->path = path;
    if (!done) {
        e->quiet = true;
        elab_stop(e);
    }
    return decl->value;
}

bool elab_lookup(Elab *e, const Frame *frame, const char *name, Value *value, Span *span)
{
    FileScope *file = NULL, *space;
    for (; frame; frame = frame->parent) {
        if (frame->kind == FRAME_TYPE) { // a named type: the names of its file come first
            Decl *decl = file_lookup(e, frame->file, name, &space);
            if (decl) {
                *value = decl_value(e, decl);
                return true;
            }
            continue;
        }
        Binding *binding = frame_find(frame, name);
        if (binding) {
            *value = binding->value;
            if (span)
                *span = binding->span;
            return true;
        }
        file = frame->file;
    }
    Decl *decl = file ? file_lookup(e, file, name, &space) : NULL;
    if (decl) {
        *value = decl_value(e, decl);
        if (span)
            *span = decl->ast->span2;
        return true;
    }
    if (file && space) {
        *value = (Value){.kind = V_NAMESPACE, .file = space};
        return true;
    }
    const Builtin *builtin = (const Builtin *)(uintptr_t)map_get(&e->builtins, name);
    if (builtin && !builtin->call) {
        *value = value_real(M_PI);
        return true;
    }
    if (builtin) {
        *value = (Value){.kind = V_BUILTIN, .builtin = builtin};
        return true;
    }
    const Layer *layer = (const Layer *)(uintptr_t)map_get(&e->layers, name);
    if (layer)
        *value = (Value){.kind = V_LAYER, .layer = layer};
    return layer != NULL;
}

// ---- unknown names ----

typedef struct {
    const char **at;
    size_t count, capacity;
} Names;

static void add_name(Names *names, const char *name)
{
    names->at = grow_array(names->at, &names->capacity, names->count, sizeof *names->at);
    names->at[names->count++] = name;
}

static void add_file_names(Elab *e, Names *names, FileScope *file)
{
    if (file->visit == e->visit)
        return;
    file->visit = e->visit;
    for (uint32_t i = 0; i < file->decl_count; i++)
        add_name(names, file->decls[i]->name);
    for (uint32_t i = 0; i < file->import_count; i++) {
        if (file->imports[i].as)
            add_name(names, file->imports[i].as);
        else
            add_file_names(e, names, file->imports[i].file);
    }
}

// Says which known name is near, and where it is bound.
_Noreturn void elab_unknown_name(Elab *e, const Frame *frame, const char *name, Span span)
{
    Names names = {0};
    FileScope *file = NULL;
    for (const Frame *at = frame; at; at = at->parent) {
        for (uint32_t i = 0; i < at->count; i++)
            if (at->at[i].name)
                add_name(&names, at->at[i].name);
        file = at->file;
    }
    e->visit++;
    if (file)
        add_file_names(e, &names, file);
    for (size_t i = 0; i < e->builtins.capacity; i++)
        if (e->builtins.at[i].key)
            add_name(&names, e->builtins.at[i].key);
    for (uint32_t i = 0; i < elab_layer_count; i++)
        add_name(&names, elab_layers[i].name);
    const char *near = nearest_name(name, names.at, names.count);
    free(names.at);
    elab_error(e, span, "unknown name '%s'", name);
    if (near) {
        near = intern(near);
        Binding *binding = frame_lookup(frame, near);
        FileScope *space;
        Decl *decl = file ? file_lookup(e, file, near, &space) : NULL;
        if (binding && value_is_module(binding->value))
            elab_help(e, binding->span, "did you mean this field?");
        else if (binding || decl)
            elab_help(e, binding ? binding->span : decl->ast->span2, "did you mean '%s'?", near);
        else
            elab_help(e, (Span){0}, "did you mean '%s'?", near);
    }
    elab_stop(e);
}
