// Entries and their variants: programs and the gradients of those that give one number.
//
// An entry is evaluated again and again, each time along another path of outcomes, until all are
// known: behind the script a question is answered `true`; afterwards the last `true` that was not
// forced turns `false`, and what lies behind it is forgotten. So the variants come depth first,
// and a question that an earlier answer makes needless is never asked.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elab.h"

// ---- inputs ----

// The node of input `input` of the entry at hand.
Val input_val(Elab *e, uint32_t input)
{
    const Entry *entry = &e->module->entries[e->run->entry];
    Attr attr = {.n = {e->run->entry, input}, .count = 2, .text = entry->inputs[input].name};
    Val val = graph_make(e->graph, OP_INPUT, NULL, 0, &attr, &entry->inputs[input].type);
    if (!val)
        bug("input %s: %s", entry->inputs[input].name, graph_error(e->graph));
    return val;
}

bool input_given(Elab *e, Value maybe, Span span)
{
    Attr attr = {.n = {e->run->entry, maybe.input}, .count = 2};
    Val given = graph_make(e->graph, OP_GIVEN, NULL, 0, &attr, NULL);
    if (!given)
        bug("given: %s", graph_error(e->graph));
    return elab_decide(e, given, span);
}

// ---- outputs and taps ----

void run_output(Elab *e, Run *run, OutKind kind, const char *name, Val val)
{
    (void)e;
    run->outputs =
        grow_array(run->outputs, &run->output_capacity, run->output_count, sizeof *run->outputs);
    run->outputs[run->output_count++] = (Output){kind, name, 0, val};
}

static void add_tap(Elab *e, Run *run, const char *name, Val val)
{
    if (!val_type(e->graph, val)->rank && graph_is_step(e->graph, val))
        return;
    uint64_t times = map_get(&run->tap_names, name) + 1;
    map_set(&run->tap_names, name, times);
    if (times > 1)
        name = path_join(e, name, NULL, times, '#');
    run->taps = grow_array(run->taps, &run->tap_capacity, run->tap_count, sizeof *run->taps);
    run->taps[run->tap_count++] = (Tap){name, val};
}

// Records a tensor, or a list of tensors element by element, as "prefix.name" (name may be NULL).
void elab_tap(Elab *e, const char *prefix, const char *name, Value value)
{
    Run *run = e->run;
    if (!run || run->kind != ENTRY_PROGRAM || !prefix)
        return;
    if (value.kind != V_TENSOR && (value.kind != V_LIST || !value.list->count))
        return;
    if (value.kind == V_LIST && value.list->at[0].kind != V_TENSOR)
        return;
    const char *path = name ? path_join(e, prefix, name, 0, '.') : prefix;
    if (value.kind == V_TENSOR) {
        add_tap(e, run, path, value.val);
        return;
    }
    for (uint32_t i = 0; i < value.list->count; i++)
        if (value.list->at[i].kind == V_TENSOR)
            add_tap(e, run, path_join(e, path, NULL, i, '.'), value.list->at[i].val);
}

// Buffers that moved are stored when the step ends.
static void add_states(Elab *e, Run *run)
{
    for (uint32_t i = 0; i < e->module->param_count; i++)
        if (run->state[i]) {
            run_output(e, run, OUT_STATE, e->module->params[i].name, run->state[i]);
            run->outputs[run->output_count - 1].param = i;
        }
}

// ---- variants ----

uint32_t entry_new(Elab *e, EntryKind kind, const char *name, Span span)
{
    Module *module = e->module;
    module->entries = grow_array(module->entries, &e->entry_capacity, module->entry_count,
                                 sizeof *module->entries);
    module->entries[module->entry_count] = (Entry){.kind = kind, .name = name, .span = span};
    return module->entry_count++;
}

typedef struct {
    EntryBody *body;
    Run *run;
    void *context;
} BodyContext;

static void run_body(Elab *e, void *context)
{
    BodyContext *at = context;
    at->body(e, at->run, at->context);
    add_states(e, at->run);
}

static Variant finish_variant(Elab *e, const Run *run)
{
    Variant variant = {
        .path = arena_copy(e->arena, run->path, (run->path_count + 1) * sizeof *run->path),
        .path_count = run->path_count,
        .outputs = arena_copy(e->arena, run->outputs, run->output_count * sizeof(Output)),
        .output_count = (uint32_t)run->output_count,
        .taps = arena_copy(e->arena, run->taps, run->tap_count * sizeof(Tap)),
        .tap_count = (uint32_t)run->tap_count};
    for (uint32_t i = 0; i < run->path_count; i++) {
        const Node *node = val_get(e->graph, run->path[i].cond);
        if (node->op == OP_GIVEN && run->path[i].outcome)
            variant.given |= (uint64_t)1 << node->attr->n[1];
    }
    return variant;
}

// The lists of a run, which finish_variant has copied.
static void release_run(Run *run)
{
    free(run->outputs);
    free(run->taps);
    free(run->tap_names.at);
    free(run->draws);
}

// The value of report `name` in a variant, or 0.
static Val find_report(const Variant *variant, const char *name)
{
    for (uint32_t i = 0; i < variant->output_count; i++)
        if (variant->outputs[i].kind == OUT_REPORT && variant->outputs[i].name == name)
            return variant->outputs[i].val;
    return 0;
}

// All variants have the same outputs in the same order: results, then every name that some
// variant reports (what one does not compute is not a number there), then settings and buffers.
static void level_outputs(Elab *e, Variant *variants, uint32_t count)
{
    Map seen = {0};
    Output *reports = NULL;
    size_t report_count = 0, capacity = 0;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < variants[i].output_count; k++) {
            Output output = variants[i].outputs[k];
            if (output.kind != OUT_REPORT || map_get(&seen, output.name))
                continue;
            map_set(&seen, output.name, 1);
            reports = grow_array(reports, &capacity, report_count, sizeof *reports);
            reports[report_count++] = output;
        }
    for (uint32_t i = 0; i < count; i++) {
        Variant *variant = &variants[i];
        Output *outputs =
            arena_alloc(e->arena, (variant->output_count + report_count + 1) * sizeof *outputs);
        uint32_t next = 0;
        for (uint32_t k = 0; k < variant->output_count; k++)
            if (variant->outputs[k].kind == OUT_NAMED)
                outputs[next++] = variant->outputs[k];
        for (size_t k = 0; k < report_count; k++) {
            outputs[next] = reports[k];
            Val val = find_report(variant, reports[k].name);
            outputs[next++].val = val ? val : g_const(e->graph, e->real, NAN);
        }
        for (uint32_t k = 0; k < variant->output_count; k++)
            if (variant->outputs[k].kind != OUT_NAMED && variant->outputs[k].kind != OUT_REPORT)
                outputs[next++] = variant->outputs[k];
        variant->outputs = outputs;
        variant->output_count = next;
    }
    free(seen.at);
    free(reports);
}

static bool run_variant(Elab *e, Run *run, EntryBody *body, void *context)
{
    Run *outer = e->run;
    Host *host = e->host;
    e->run = run;
    e->host = NULL;
    BodyContext at = {body, run, context};
    bool done = elab_try(e, run_body, &at);
    e->run = outer;
    e->host = host;
    return done;
}

bool entry_elaborate(Elab *e, uint32_t index, const bool *training, EntryBody *body, void *context)
{
    Decision script[ELAB_MAX_VARIANTS], path[ELAB_MAX_VARIANTS + 1];
    uint32_t script_count = 0, count = 0;
    Variant variants[ELAB_MAX_VARIANTS];
    for (;;) {
        const Entry *entry = &e->module->entries[index];
        Type *inputs = arena_alloc(e->arena, (entry->input_count + 1) * sizeof *inputs);
        for (uint32_t i = 0; i < entry->input_count; i++)
            inputs[i] = entry->inputs[i].type;
        Run run = {.entry = index,
                   .kind = entry->kind,
                   .span = entry->span,
                   .path = path,
                   .script = script,
                   .script_count = script_count,
                   .inputs = inputs,
                   .training = training,
                   .state = arena_alloc(e->arena, (e->module->param_count + 1) * sizeof(Val))};
        if (count == ELAB_MAX_VARIANTS) {
            elab_error(e, entry->span, "'%s' has more than %d variants", entry->name,
                       ELAB_MAX_VARIANTS);
            elab_help(e, (Span){0},
                      "every optional input and every 'if' on a number of the step "
                      "doubles them; where(c, x, y) does not");
            return false;
        }
        bool done = run_variant(e, &run, body, context);
        if (done)
            variants[count++] = finish_variant(e, &run);
        release_run(&run);
        if (!done)
            return false;
        script_count = run.path_count;
        memcpy(script, path, script_count * sizeof *path);
        while (script_count && !script[script_count - 1].outcome)
            script_count--;
        if (!script_count)
            break;
        script[script_count - 1].outcome = false;
    }
    Entry *entry = &e->module->entries[index];
    entry->variants = arena_copy(e->arena, variants, count * sizeof *variants);
    entry->variant_count = count;
    level_outputs(e, entry->variants, count);
    return true;
}

// ---- programs ----

typedef struct {
    Decl *decl;
    uint32_t entry;
} ProgramContext;

static Frame *batch_frame(Elab *e, FileScope *file)
{
    Frame *frame = frame_new(e, NULL, file, FRAME_FUNCTION);
    frame_bind(e, frame, intern("b"), value_dim(dim_batch(1)), (Span){0}, BIND_AXIS);
    return frame;
}

// Results are told apart by name, in files too.
static void check_results(Elab *e, const Ast *ast)
{
    for (uint32_t i = 0; i < ast->list2.count; i++)
        for (uint32_t k = 0; k < i; k++)
            if (ast->list2.at[i]->text && ast->list2.at[i]->text == ast->list2.at[k]->text)
                elab_fail(e, ast->list2.at[i]->span, "two results are called '%s'",
                          ast->list2.at[i]->text);
}

static void make_inputs(Elab *e, void *context)
{
    ProgramContext *at = context;
    const Ast *ast = at->decl->ast;
    Frame *frame = batch_frame(e, at->decl->file);
    Input *inputs = arena_alloc(e->arena, (ast->list.count + 1) * sizeof *inputs);
    if (ast->list.count > 64)
        elab_fail(e, ast->span2, "a program has at most 64 inputs");
    check_results(e, ast);
    for (uint32_t i = 0; i < ast->list.count; i++) {
        const Ast *param = ast->list.at[i];
        if (!param->b)
            elab_fail(e, param->span, "input '%s' of a program needs a type", param->text);
        if (!type_resolve(e, frame, param->b, &inputs[i].type))
            elab_fail(e, param->b->span, "an input is a tensor or a number");
        inputs[i].name = param->text;
        inputs[i].optional = param->a && param->a->kind == AST_NONE;
    }
    e->module->entries[at->entry].inputs = inputs;
    e->module->entries[at->entry].input_count = ast->list.count;
}

static const char *result_name(Elab *e, const Ast *ast, uint32_t i)
{
    if (i < ast->list2.count && ast->list2.at[i]->text)
        return ast->list2.at[i]->text;
    return ast->list2.count > 1 ? intern(arena_printf(e->arena, "result%" PRIu32, i))
                                : intern("result");
}

static void program_body(Elab *e, Run *run, void *context)
{
    Decl *decl = ((ProgramContext *)context)->decl;
    const Ast *ast = decl->ast;
    const Entry *entry = &e->module->entries[run->entry];
    Args *args = args_new(e, entry->input_count, ast->span2);
    for (uint32_t i = 0; i < entry->input_count; i++) {
        args->at[i].span = ast->list.at[i]->span;
        args->at[i].value = entry->inputs[i].optional ? (Value){.kind = V_MAYBE, .input = i}
                                                      : value_tensor(input_val(e, i));
    }
    Value result = call_function(e, decl_value(e, decl), args, true, NULL);
    Span span = ast->a ? ast->a->span : ast->span2;
    uint32_t count = ast->list2.count > 1 ? ast->list2.count : 1;
    for (uint32_t i = 0; i < count; i++) {
        Value part = count > 1 ? sequence_at(e, result, i, span) : result;
        if (part.kind == V_LIST)
            elab_fail(e, span, "a program with one result gives a tensor; this is %s",
                      value_describe(e, part));
        run_output(e, run, OUT_NAMED, result_name(e, ast, i), value_val(e, part, span));
    }
}

// One number, real, in every variant: such a program has gradients.
static bool is_scalar_program(Elab *e, const Entry *entry)
{
    for (uint32_t i = 0; i < entry->variant_count; i++) {
        uint32_t named = 0;
        for (uint32_t k = 0; k < entry->variants[i].output_count; k++) {
            const Output *output = &entry->variants[i].outputs[k];
            if (output->kind != OUT_NAMED)
                continue;
            const Type *type = val_type(e->graph, output->val);
            if (++named > 1 || type->rank || !dtype_is_float(type->dtype) ||
                graph_is_step(e->graph, output->val))
                return false;
        }
    }
    return entry->variant_count > 0;
}

static void elaborate_gradient(Elab *e, Decl *decl)
{
    Entry program = e->module->entries[decl->index];
    if (!is_scalar_program(e, &program))
        return;
    const char *name = intern(arena_printf(e->arena, "grad.%s", program.name));
    ProgramContext at = {decl, entry_new(e, ENTRY_GRAD, name, program.span)};
    Entry *entry = &e->module->entries[at.entry];
    entry->inputs = program.inputs;
    entry->input_count = program.input_count;
    entry->program = decl->index;
    entry_elaborate(e, at.entry, NULL, program_body, &at);
}

// Every program of all files; a replaced one stands where the first of its chain stood.
void elab_programs(Elab *e)
{
    Decl **programs = NULL;
    size_t count = 0, capacity = 0;
    for (size_t i = 0; i < e->file_count; i++)
        for (uint32_t j = 0; j < e->files[i]->decl_count; j++) {
            Decl *decl = decl_final(e->files[i]->decls[j]);
            if (decl->ast->kind != AST_PROGRAM || decl->index != UINT32_MAX)
                continue;
            decl->index = entry_new(e, ENTRY_PROGRAM, decl->name, decl->ast->span2);
            programs = grow_array(programs, &capacity, count, sizeof *programs);
            programs[count++] = decl;
        }
    for (size_t i = 0; i < count && !diag_full(); i++) {
        ProgramContext at = {programs[i], programs[i]->index};
        if (elab_try(e, make_inputs, &at))
            entry_elaborate(e, at.entry, NULL, program_body, &at);
    }
    if (!e->options->check) // a gradient's forward graph is its program's once more
        for (size_t i = 0; i < count && !diag_full(); i++)
            elaborate_gradient(e, programs[i]);
    free(programs);
}
