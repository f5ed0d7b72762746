// Train blocks: options, data, and every `minimize` as an entry with the loss, what is reported,
// and the optimizer's settings as step values.
//
// Statements in front of a minimize run again in each of its variants. Models that some minimize
// of the block names are in training mode in all of the block.
#include <inttypes.h>
#include <string.h>

#include "compiler/elab.h"

typedef struct {
    Decl *decl;
    Frame *frame; // options, and what is known without running
    Stage stage;
    bool *training; // by instance
    const Ast *data;
    const Ast *minimize; // the one at hand
    uint32_t entry;
} Train;

// ---- options and data ----

static const struct {
    const char *name;
    int64_t value;
} implicit_options[] = {
    {"batch", 8}, {"steps", 0}, {"log_every", 100}, {"save_every", 10000}, {"step", 0},
};

static void bind_option(Elab *e, Train *train, const char *name, const Ast *ast)
{
    uint32_t option = option_new(e, name, train->decl->name, ast, train->frame);
    if (frame_find(train->frame, name))
        elab_fail(e, ast->span2, "'%s' is declared twice", name);
    frame_bind(e, train->frame, name, option_value(e, option), ast->span2, BIND_LOCAL);
}

static void bind_options(Elab *e, Train *train)
{
    const AstList *list = &train->decl->ast->b->list;
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i]->kind == AST_OPTION)
            bind_option(e, train, list->at[i]->text, list->at[i]);
    for (size_t i = 0; i < sizeof implicit_options / sizeof *implicit_options; i++) {
        const char *name = intern(implicit_options[i].name);
        if (frame_find(train->frame, name))
            continue;
        Ast value = {
            .kind = AST_INT, .integer = implicit_options[i].value, .span = train->decl->ast->span2};
        Ast *option = arena_alloc(e->arena, sizeof *option);
        *option = (Ast){.kind = AST_OPTION,
                        .text = name,
                        .span2 = train->decl->ast->span2,
                        .a = arena_copy(e->arena, &value, sizeof value)};
        bind_option(e, train, name, option);
    }
}

static int64_t extent(const Type *type, uint32_t axis)
{
    return axis < type->rank && !type->dim[axis].batch ? type->dim[axis].n : 0;
}

// clips(pad: false), images(), labels(): where batches come from, and the shape they have.
static void read_source(Elab *e, Train *train, const Ast *data)
{
    Stage *stage = &train->stage;
    const Ast *call = data->a;
    if (call->kind != AST_CALL || call->a->kind != AST_NAME)
        elab_fail(e, call->span, "data come from clips(), images() or labels()");
    const char *source = call->a->text;
    bool clips = strcmp(source, "clips") == 0, images = strcmp(source, "images") == 0;
    if (!clips && !images && strcmp(source, "labels") != 0)
        elab_fail(e, call->a->span, "data come from clips(), images() or labels(), not '%s'",
                  source);
    for (uint32_t i = 0; i < call->list.count; i++) {
        const Ast *arg = call->list.at[i];
        if (!clips || arg->kind != AST_KEYED || strcmp(arg->text, "pad") != 0)
            elab_fail(e, arg->span, "'%s' has no such argument", source);
        stage->pad = elab_truth(e, eval(e, train->frame, arg->a), arg->a->span);
    }
    const Type *type = &stage->data_type;
    uint32_t rank = clips ? 5 : images ? 4 : 1;
    DType dtype = clips || images ? e->real : DT_I64;
    bool fits = type->rank == rank && type->dtype == dtype && type->dim[0].batch &&
                type->dim[0].n == 1 && (rank == 1 || dim_equal(type->dim[1], dim_fixed(3)));
    if (!fits)
        elab_fail(e, data->b->span, "%s are %s; this type is %s", source,
                  clips    ? "[b, 3, frames, height, width]"
                  : images ? "[b, 3, height, width]"
                           : "int[b]",
                  shape_text(e, NULL, type));
    stage->source = source;
    stage->frames = clips ? (uint32_t)extent(type, 2) : images ? 1 : 0;
    stage->height = clips || images ? (uint32_t)extent(type, rank - 2) : 0;
    stage->width = clips || images ? (uint32_t)extent(type, rank - 1) : 0;
}

static void read_data(Elab *e, Train *train)
{
    const AstList *list = &train->decl->ast->b->list;
    for (uint32_t i = 0; i < list->count; i++) {
        const Ast *data = list->at[i];
        if (data->kind != AST_DATA)
            continue;
        if (train->data) {
            elab_error(e, data->span2, "a train block has one 'data'");
            elab_note(e, train->data->span2, "the first one");
            elab_stop(e);
        }
        train->data = data;
        if (!type_resolve(e, train->frame, data->b, &train->stage.data_type))
            elab_fail(e, data->b->span, "data are tensors");
        train->stage.has_data = true;
        train->stage.data_name = data->text;
        read_source(e, train, data);
    }
}

// ---- who moves ----

static uint32_t moving_instance(Elab *e, Train *train, const Ast *path)
{
    FileScope *space;
    Decl *decl =
        path->kind == AST_NAME ? file_lookup(e, train->frame->file, path->text, &space) : NULL;
    if (!decl && path->kind == AST_NAME)
        elab_unknown_name(e, train->frame, path->text, path->span);
    if (!decl || decl->ast->kind != AST_MODEL)
        elab_fail(e, path->span, "minimize names models of the file");
    decl_value(e, decl);
    return decl->index;
}

static void find_training(Elab *e, Train *train)
{
    const AstList *list = &train->decl->ast->b->list;
    train->training = arena_alloc(e->arena, e->module->instance_count + 1);
    for (uint32_t i = 0; i < list->count; i++)
        for (uint32_t j = 0; list->at[i]->kind == AST_MINIMIZE && j < list->at[i]->list.count; j++)
            train->training[moving_instance(e, train, list->at[i]->list.at[j])] = true;
}

// ---- one minimize ----

// A number known when the step starts, as an output in the working precision.
static void setting(Elab *e, Run *run, const char *name, Value value, double absent, Span span)
{
    if (value.kind == V_ABSENT)
        value = value_real(absent);
    if (!value_is_step(e, value) || value.kind == V_BOOL)
        elab_fail(e, span, "'%s' is a number known when the step starts; this is %s", name,
                  value_describe(e, value));
    Val val = value.kind == V_TENSOR ? value.val : number_val(e, value, e->real);
    if (val_type(e->graph, val)->dtype != e->real)
        val = g_cast(e->graph, val, e->real);
    run_output(e, run, OUT_SETTING, intern(name), val);
}

// adamw(lr, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01), sgd(lr, momentum: 0.0)
static void optimizer_settings(Elab *e, Run *run, Frame *frame, const Ast *call)
{
    bool adamw = strcmp(call->a->text, "adamw") == 0;
    Args *args = args_new(e, call->list.count, call->span);
    for (uint32_t i = 0; i < call->list.count; i++) {
        const Ast *ast = call->list.at[i];
        Arg *arg = &args->at[i];
        arg->span = ast->span;
        if (ast->kind == AST_KEYED) {
            arg->name = ast->text;
            arg->name_span = ast->span2;
            ast = ast->a;
        }
        arg->value = eval(e, frame, ast);
    }
    Value out[MAX_BUILTIN_PARAMS];
    Span spans[MAX_BUILTIN_PARAMS];
    bind_builtin(e, call->a->text, adamw ? "lr betas= eps= weight_decay=" : "lr momentum=", args,
                 out, spans);
    setting(e, run, "lr", out[0], 0, spans[0]);
    if (!adamw) {
        setting(e, run, "momentum", out[1], 0, spans[1]);
        return;
    }
    Value betas[2] = {value_real(0.9), value_real(0.999)};
    if (out[1].kind != V_ABSENT)
        destructure(e, out[1], 2, betas, spans[1]);
    setting(e, run, "beta1", betas[0], 0, spans[1]);
    setting(e, run, "beta2", betas[1], 0, spans[1]);
    setting(e, run, "eps", out[2], 1e-8, spans[2]);
    setting(e, run, "weight_decay", out[3], 0.01, spans[3]);
}

static void other_settings(Elab *e, Run *run, Frame *frame, const Ast *minimize)
{
    for (uint32_t i = 1; i < minimize->list2.count; i++) {
        const Ast *ast = minimize->list2.at[i];
        if (strcmp(ast->text, "clip") == 0 || strcmp(ast->text, "ema") == 0)
            setting(e, run, ast->text, eval(e, frame, ast->a), 0, ast->a->span);
    }
}

static Frame *run_prefix(Elab *e, Train *train)
{
    Frame *frame = frame_new(e, train->frame, train->frame->file, FRAME_FUNCTION);
    frame->label = train->decl->name;
    if (train->data)
        frame_bind(e, frame, train->data->text, value_tensor(input_val(e, 0)), train->data->span2,
                   BIND_LOCAL);
    const AstList *list = &train->decl->ast->b->list;
    for (uint32_t i = 0; i < list->count; i++) {
        AstKind kind = list->at[i]->kind;
        if (list->at[i] == train->minimize)
            break;
        if (kind != AST_OPTION && kind != AST_DATA && kind != AST_MINIMIZE)
            exec_statement(e, frame, list->at[i]);
    }
    return frame;
}

static void minimize_body(Elab *e, Run *run, void *context)
{
    Train *train = context;
    const Ast *ast = train->minimize;
    Frame *outer = run_prefix(e, train);
    Frame *frame = frame_new(e, outer, outer->file, FRAME_FUNCTION);
    if (exec_block(e, frame, ast->b) != FLOW_RETURN)
        elab_fail(e, ast->span, "a minimize returns its loss");
    Span span = ast->b->list.count ? ast->b->list.at[ast->b->list.count - 1]->span : ast->span;
    Val loss = value_val(e, frame->result, span);
    const Type *type = val_type(e->graph, loss);
    if (type->rank || !dtype_is_float(type->dtype)) {
        elab_error(e, span, "a loss is one real number; this is %s",
                   value_describe(e, value_tensor(loss)));
        if (type->rank)
            elab_help(e, (Span){0}, "mean(x) is the mean over all elements");
        elab_stop(e);
    }
    run_output(e, run, OUT_NAMED, intern("loss"), loss);
    optimizer_settings(e, run, outer, ast->list2.at[0]);
    other_settings(e, run, outer, ast);
}

// The gradient entry of the program whose call is the loss, or UINT32_MAX.
static uint32_t find_replay(Elab *e, const Train *train, const Ast *block)
{
    const Ast *last = block->list.count ? block->list.at[block->list.count - 1] : NULL;
    if (!last || last->kind != AST_RETURN || last->list.count != 1)
        return UINT32_MAX;
    const Ast *call = last->list.at[0];
    if (call->kind != AST_CALL || call->a->kind != AST_NAME)
        return UINT32_MAX;
    FileScope *space;
    Decl *decl = file_lookup(e, train->frame->file, call->a->text, &space);
    for (uint32_t i = 0; decl && i < e->module->entry_count; i++) {
        const Entry *entry = &e->module->entries[i];
        if (entry->kind == ENTRY_GRAD && entry->program == decl->index &&
            decl->ast->kind == AST_PROGRAM)
            return i;
    }
    return UINT32_MAX;
}

static void read_arguments(Elab *e, Train *train, const Ast *ast, Minimize *minimize)
{
    const Ast *optimizer = ast->list2.count ? ast->list2.at[0] : NULL;
    const char *name = optimizer && optimizer->kind == AST_CALL && optimizer->a->kind == AST_NAME
                           ? optimizer->a->text
                           : "";
    if (strcmp(name, "adamw") != 0 && strcmp(name, "sgd") != 0)
        elab_fail(e, optimizer ? optimizer->span : ast->span,
                  "an optimizer is adamw(lr, ...) or sgd(lr, ...)");
    minimize->optimizer = name;
    bool ema = false;
    for (uint32_t i = 1; i < ast->list2.count; i++) {
        const Ast *arg = ast->list2.at[i];
        static const char *const known[] = {"accumulate", "clip", "ema", "ema_every"};
        const char *key = arg->kind == AST_KEYED ? arg->text : "";
        if (strcmp(key, "accumulate") == 0 || strcmp(key, "ema_every") == 0) {
            int64_t count = value_whole(e, eval(e, train->frame, arg->a), arg->a->span, key);
            if (count < 1)
                elab_fail(e, arg->a->span, "'%s' is at least 1", key);
            *(key[0] == 'a' ? &minimize->accumulate : &minimize->ema_every) = count;
        } else if (strcmp(key, "clip") == 0) {
            minimize->clip = true;
        } else if (strcmp(key, "ema") == 0) {
            ema = true;
        } else {
            const char *near = nearest_name(key, known, 4);
            elab_error(e, arg->span, "minimize has no argument '%s'", key);
            if (near)
                elab_help(e, (Span){0}, "did you mean '%s'?", near);
            elab_stop(e);
        }
    }
    minimize->ema_every = ema ? (minimize->ema_every ? minimize->ema_every : 1) : 0;
}

static void add_minimize(Elab *e, Train *train, const Ast *ast)
{
    Stage *stage = &train->stage;
    Minimize minimize = {.accumulate = 1, .instance_count = ast->list.count};
    read_arguments(e, train, ast, &minimize);
    minimize.instances = arena_alloc(e->arena, (ast->list.count + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < ast->list.count; i++)
        minimize.instances[i] = moving_instance(e, train, ast->list.at[i]);
    const char *name =
        intern(arena_printf(e->arena, "%s.%" PRIu32, stage->name, stage->minimize_count));
    minimize.entry = entry_new(e, ENTRY_MINIMIZE, name, ast->span);
    if (train->data) {
        Entry *entry = &e->module->entries[minimize.entry];
        entry->inputs = arena_alloc(e->arena, sizeof *entry->inputs);
        entry->inputs[0] = (Input){stage->data_name, stage->data_type, false};
        entry->input_count = 1;
    }
    train->minimize = ast;
    entry_elaborate(e, minimize.entry, train->training, minimize_body, train);
    minimize.replay = find_replay(e, train, ast->b);
    stage->minimize[stage->minimize_count++] = minimize;
}

static void train_block(Elab *e, void *context)
{
    Train *train = context;
    Decl *decl = train->decl;
    const AstList *list = &decl->ast->b->list;
    train->frame = frame_new(e, NULL, decl->file, FRAME_FUNCTION);
    frame_bind(e, train->frame, intern("b"), value_dim(dim_batch(1)), (Span){0}, BIND_AXIS);
    train->stage = (Stage){.name = decl->name, .span = decl->ast->span2};
    bind_options(e, train);
    read_data(e, train);
    find_training(e, train);
    train->stage.minimize = arena_alloc(e->arena, (list->count + 1) * sizeof(Minimize));
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i]->kind == AST_MINIMIZE)
            add_minimize(e, train, list->at[i]);
    if (!train->stage.minimize_count)
        elab_fail(e, decl->ast->span2, "train block '%s' minimizes nothing", decl->name);
    Module *module = e->module;
    module->stages =
        grow_array(module->stages, &e->stage_capacity, module->stage_count, sizeof *module->stages);
    module->stages[module->stage_count++] = train->stage;
}

// A train block as a stage, with one entry for each of its minimizes.
void elab_train(Elab *e, Decl *decl)
{
    Train train = {.decl = decl};
    elab_try(e, train_block, &train);
}
