// Reads what print.c writes (the form stands at the top of that file).
//
// A line is read word by word. The first mistake sets the error, with the number of its line; from
// then on every reading function gives zero at once, so callers check only where they stop.
// Nodes are made by graph_make and get the numbers that stand in the text, or it is an error.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/print.h"

typedef struct {
    Arena *arena;
    Module *module;
    const char *at;
    uint32_t line;
    bool failed;
    char *error;
    size_t error_size;
    uint32_t segment_count, blob_count;
    Entry *entry; // that input, variant ... belong to
    Variant *variant;
    Stage *stage;
    Sampler *sampler;
} Reader;

static void fail(Reader *reader, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail(Reader *reader, const char *format, ...)
{
    if (reader->failed)
        return;
    reader->failed = true;
    int length = snprintf(reader->error, reader->error_size, "line %u: ", reader->line);
    if (length < 0 || (size_t)length >= reader->error_size)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(reader->error + length, reader->error_size - (size_t)length, format, args);
    va_end(args);
}

// Room for one more element of an arena array that doubles at every power of two.
static void *append(Reader *reader, void *items, uint32_t *count, size_t size)
{
    uint32_t old = *count;
    char *at = items;
    if ((old & (old - 1)) == 0) {
        at = arena_alloc(reader->arena, (old ? 2 * (size_t)old : 1) * size);
        if (old)
            memcpy(at, items, old * size);
    }
    ++*count;
    return at;
}

// ---- words ----

static void skip_space(Reader *reader)
{
    while (*reader->at == ' ')
        reader->at++;
}

static bool at_end(Reader *reader)
{
    skip_space(reader);
    return reader->failed || *reader->at == '\n' || *reader->at == 0;
}

static bool is_word(char c)
{
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// A word or a sign if it comes next.
static bool accept(Reader *reader, const char *text)
{
    skip_space(reader);
    size_t length = strlen(text);
    if (reader->failed || strncmp(reader->at, text, length) != 0 ||
        (is_word(text[length - 1]) && is_word(reader->at[length])))
        return false;
    reader->at += length;
    return true;
}

static void expect(Reader *reader, const char *text)
{
    if (!accept(reader, text))
        fail(reader, "expected '%s'", text);
}

static int64_t read_int(Reader *reader)
{
    skip_space(reader);
    char *end;
    long long value = reader->failed ? 0 : strtoll(reader->at, &end, 10);
    if (!reader->failed && end == reader->at)
        fail(reader, "expected a whole number");
    if (reader->failed)
        return 0;
    reader->at = end;
    return value;
}

static uint32_t read_index(Reader *reader)
{
    int64_t value = read_int(reader);
    if (value < 0 || value > UINT32_MAX)
        fail(reader, "%lld is no index", (long long)value);
    return reader->failed ? 0 : (uint32_t)value;
}

static double read_real(Reader *reader)
{
    skip_space(reader);
    char *end;
    double value = reader->failed ? 0 : strtod(reader->at, &end);
    if (!reader->failed && end == reader->at)
        fail(reader, "expected a number");
    if (reader->failed)
        return 0;
    reader->at = end;
    return value;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// Quoted text, or NULL for `-`.
static const char *read_text(Reader *reader)
{
    if (accept(reader, "-") || reader->failed)
        return NULL;
    expect(reader, "\"");
    size_t room = strcspn(reader->at, "\n") + 1, length = 0;
    char *text = arena_alloc(reader->arena, room);
    while (!reader->failed && *reader->at != '"') {
        char c = *reader->at;
        if (c == '\n' || c == 0) {
            fail(reader, "a text without its end");
            return NULL;
        }
        reader->at++;
        if (c == '\\' && hex_digit(reader->at[0]) >= 0 && hex_digit(reader->at[1]) >= 0) {
            c = (char)(16 * hex_digit(reader->at[0]) + hex_digit(reader->at[1]));
            reader->at += 2;
        } else if (c == '\\' && *reader->at && *reader->at != '\n') {
            c = *reader->at++;
        }
        text[length++] = c;
    }
    if (reader->failed)
        return NULL;
    reader->at++;
    return intern_n(text, length);
}

static uint32_t read_name_of(Reader *reader, const char *const *names)
{
    for (uint32_t i = 0; names[i]; i++)
        if (accept(reader, names[i]))
            return i;
    fail(reader, "unknown word");
    return 0;
}

static DType read_dtype(Reader *reader)
{
    for (DType dtype = DT_NONE; dtype <= DT_F64; dtype++)
        if (accept(reader, dtype_name(dtype)))
            return dtype;
    fail(reader, "expected a dtype");
    return DT_NONE;
}

static Type read_type(Reader *reader)
{
    Type type = {.dtype = read_dtype(reader)};
    if (accept(reader, "[")) {
        do {
            if (type.rank == MAX_RANK) {
                fail(reader, "more than %d axes", MAX_RANK);
                break;
            }
            Dim *dim = &type.dim[type.rank++];
            skip_space(reader);
            dim->n = *reader->at == 'b' ? 1 : read_int(reader);
            dim->batch = accept(reader, "b");
        } while (accept(reader, ","));
        expect(reader, "]");
    }
    if (accept(reader, "/")) {
        type.seg_axis = read_index(reader);
        expect(reader, ":");
        type.seg = read_index(reader);
        if (type.seg == 0 || type.seg > reader->segment_count)
            fail(reader, "there are no segments %u", type.seg);
    }
    return type;
}

static Val read_val(Reader *reader)
{
    expect(reader, "%");
    uint32_t node = read_index(reader);
    uint32_t out = accept(reader, ":") ? read_index(reader) : 0;
    const Graph *graph = reader->module->graph;
    if (!reader->failed &&
        (node == 0 || node >= graph_count(graph) || out >= graph_node(graph, node)->nout))
        fail(reader, "there is no value %%%u:%u", node, out);
    return reader->failed ? 0 : val_of(node, out);
}

static Span read_span(Reader *reader)
{
    Span span = {0};
    if (accept(reader, "@")) {
        span.file = read_index(reader);
        expect(reader, ":");
        span.begin = read_index(reader);
        expect(reader, ":");
        span.end = read_index(reader);
    }
    return span;
}

// ---- nodes ----

static void read_segments(Reader *reader)
{
    Segments segments = {0};
    uint32_t number = read_index(reader);
    expect(reader, "=");
    do {
        if (segments.count == 16) {
            fail(reader, "more than 16 segments");
            return;
        }
        uint32_t *rank = &segments.rank[segments.count];
        do {
            if (*rank == 4) {
                fail(reader, "a segment with more than 4 axes");
                return;
            }
            segments.extent[segments.count][(*rank)++] = read_int(reader);
        } while (accept(reader, "*"));
        segments.count++;
    } while (accept(reader, "|"));
    if (reader->failed)
        return;
    reader->segment_count++;
    if (graph_add_segments(reader->module->graph, &segments) != number)
        fail(reader, "segments %u are there already", number);
}

static void read_blob(Reader *reader)
{
    uint32_t number = read_index(reader);
    expect(reader, "=");
    skip_space(reader);
    size_t digits = strspn(reader->at, "0123456789abcdef"), size = digits / 2;
    if (digits % 2)
        fail(reader, "half a byte");
    if (reader->failed)
        return;
    uint8_t *data = arena_alloc(reader->arena, size + 1);
    for (size_t i = 0; i < size; i++, reader->at += 2)
        data[i] = (uint8_t)(16 * hex_digit(reader->at[0]) + hex_digit(reader->at[1]));
    reader->blob_count++;
    if (graph_add_blob(reader->module->graph, data, size) != number)
        fail(reader, "blob %u is there already", number);
}

static void read_attrs(Reader *reader, Op op, Attr *attr)
{
    for (const char *at = op_info[op].attrs; *at && !reader->failed;) {
        size_t length = strcspn(at, " ");
        bool list = at[length - 1] == '*', dollar = *at == '$';
        const char *name = intern_n(at + dollar, length - list - dollar);
        expect(reader, name);
        if (!strcmp(name, "real") && dollar) {
            attr->real = read_real(reader);
        } else if (!strcmp(name, "text") && dollar) {
            attr->text = read_text(reader);
        } else if (list) {
            skip_space(reader);
            while (attr->count < MAX_ATTR && *reader->at >= '0' && *reader->at <= '9') {
                attr->n[attr->count++] = read_int(reader);
                accept(reader, ",");
                skip_space(reader);
            }
        } else {
            attr->n[attr->count++] = read_int(reader);
        }
        at += length;
        at += *at == ' ';
    }
    if (op == OP_CONCAT && (attr->n[1] < 0 || attr->n[1] > reader->segment_count))
        fail(reader, "there are no segments %lld", (long long)attr->n[1]);
    if (op == OP_TABLE && (attr->n[0] < 1 || attr->n[0] > reader->blob_count))
        fail(reader, "there is no blob %lld", (long long)attr->n[0]);
}

static Op read_op(Reader *reader)
{
    for (Op op = 0; op < OP_COUNT; op++)
        if (accept(reader, op_info[op].name))
            return op;
    fail(reader, "unknown operation");
    return OP_COUNT;
}

static void read_node(Reader *reader)
{
    Graph *graph = reader->module->graph;
    uint32_t number = read_index(reader), nin = 0, ntypes = 0;
    Val *in = NULL;
    expect(reader, "=");
    Op op = read_op(reader);
    expect(reader, "(");
    while (!reader->failed && !accept(reader, ")")) {
        in = append(reader, in, &nin, sizeof *in);
        in[nin - 1] = read_val(reader);
        accept(reader, ",");
    }
    if (reader->failed)
        return;
    Attr attr = {0};
    Type types[MAX_OUT] = {{0}};
    read_attrs(reader, op, &attr);
    expect(reader, ":");
    do
        types[ntypes++] = read_type(reader);
    while (ntypes < MAX_OUT && accept(reader, ","));
    Origin origin = {.path = accept(reader, "in") ? read_text(reader) : NULL};
    origin.recompute = accept(reader, "again");
    origin.span = read_span(reader);
    if (op_info[op].nin >= 0 ? nin != (uint32_t)op_info[op].nin : nin == 0)
        fail(reader, "%s with %u operands", op_info[op].name, nin);
    if (reader->failed)
        return;
    graph_at(graph, origin);
    Val val = graph_make(graph, op, in, nin, &attr, types);
    if (!val) {
        fail(reader, "%s", graph_error(graph));
        return;
    }
    const Node *node = val_get(graph, val);
    if (val_node(val) != number)
        fail(reader, "%%%u is %%%u", number, val_node(val));
    if (node->nout != ntypes)
        fail(reader, "%u types of %u outputs", ntypes, node->nout);
    for (uint32_t i = 0; i < ntypes && !reader->failed; i++)
        if (!type_equal(node->type[i], &types[i]))
            fail(reader, "output %u is %s", i, type_text(node->type[i]));
}

// ---- declarations ----

static void read_instance(Reader *reader)
{
    Module *module = reader->module;
    module->instances =
        append(reader, module->instances, &module->instance_count, sizeof *module->instances);
    Instance *instance = &module->instances[module->instance_count - 1];
    instance->name = read_text(reader);
    instance->first = read_index(reader);
    instance->count = read_index(reader);
    if (accept(reader, "ignored")) {
        skip_space(reader);
        while (*reader->at == '"' && !reader->failed) {
            instance->ignored = append(reader, instance->ignored, &instance->ignored_count,
                                       sizeof *instance->ignored);
            instance->ignored[instance->ignored_count - 1] = read_text(reader);
            skip_space(reader);
        }
    }
    instance->span = read_span(reader);
}

static void read_param(Reader *reader)
{
    Module *module = reader->module;
    module->params = append(reader, module->params, &module->param_count, sizeof *module->params);
    Param *param = &module->params[module->param_count - 1];
    param->name = read_text(reader);
    param->instance = read_index(reader);
    param->type = read_type(reader);
    param->init = (InitKind)read_name_of(reader, init_names);
    param->init_a = read_real(reader);
    param->init_b = read_real(reader);
    param->buffer = accept(reader, "buffer");
    param->span = read_span(reader);
}

static void read_option(Reader *reader)
{
    Module *module = reader->module;
    module->options =
        append(reader, module->options, &module->option_count, sizeof *module->options);
    Option *option = &module->options[module->option_count - 1];
    option->name = read_text(reader);
    option->stage = read_text(reader);
    option->dtype = read_dtype(reader);
    option->count = read_index(reader);
    option->is_list = accept(reader, "list");
    expect(reader, "=");
    if (option->count > sizeof option->value / sizeof option->value[0])
        fail(reader, "an option of %u numbers", option->count);
    for (uint32_t i = 0; i < option->count && !reader->failed; i++)
        option->value[i] = read_real(reader);
    if (accept(reader, ":"))
        option->type = read_type(reader);
    option->span = read_span(reader);
}

static void read_entry(Reader *reader)
{
    Module *module = reader->module;
    module->entries =
        append(reader, module->entries, &module->entry_count, sizeof *module->entries);
    Entry *entry = reader->entry = &module->entries[module->entry_count - 1];
    reader->variant = NULL;
    entry->kind = (EntryKind)read_name_of(reader, entry_names);
    entry->name = read_text(reader);
    entry->program = read_index(reader);
    entry->span = read_span(reader);
}

static void read_input(Reader *reader)
{
    Entry *entry = reader->entry;
    entry->inputs = append(reader, entry->inputs, &entry->input_count, sizeof *entry->inputs);
    Input *input = &entry->inputs[entry->input_count - 1];
    input->name = read_text(reader);
    input->type = read_type(reader);
    input->optional = accept(reader, "optional");
}

static void read_variant(Reader *reader)
{
    Entry *entry = reader->entry;
    entry->variants =
        append(reader, entry->variants, &entry->variant_count, sizeof *entry->variants);
    reader->variant = &entry->variants[entry->variant_count - 1];
    skip_space(reader);
    char *end;
    reader->variant->given = strtoull(reader->at, &end, 10);
    reader->at = end;
}

static void read_decision(Reader *reader)
{
    Variant *variant = reader->variant;
    variant->path = append(reader, variant->path, &variant->path_count, sizeof *variant->path);
    Decision *decision = &variant->path[variant->path_count - 1];
    decision->cond = read_val(reader);
    decision->outcome = accept(reader, "yes");
    if (!decision->outcome)
        expect(reader, "no");
}

static void read_output(Reader *reader)
{
    Variant *variant = reader->variant;
    variant->outputs =
        append(reader, variant->outputs, &variant->output_count, sizeof *variant->outputs);
    Output *output = &variant->outputs[variant->output_count - 1];
    output->kind = (OutKind)read_name_of(reader, output_names);
    output->name = read_text(reader);
    output->param = read_index(reader);
    output->val = read_val(reader);
}

static void read_tap(Reader *reader)
{
    Variant *variant = reader->variant;
    variant->taps = append(reader, variant->taps, &variant->tap_count, sizeof *variant->taps);
    Tap *tap = &variant->taps[variant->tap_count - 1];
    tap->name = read_text(reader);
    tap->val = read_val(reader);
}

static void read_stage(Reader *reader)
{
    Module *module = reader->module;
    module->stages = append(reader, module->stages, &module->stage_count, sizeof *module->stages);
    Stage *stage = reader->stage = &module->stages[module->stage_count - 1];
    stage->name = read_text(reader);
    stage->source = read_text(reader);
    stage->frames = read_index(reader);
    stage->height = read_index(reader);
    stage->width = read_index(reader);
    stage->has_data = accept(reader, "data");
    if (stage->has_data) {
        stage->data_name = read_text(reader);
        stage->data_type = read_type(reader);
    }
    stage->pad = accept(reader, "pad");
    stage->span = read_span(reader);
}

static void read_minimize(Reader *reader)
{
    Stage *stage = reader->stage;
    stage->minimize =
        append(reader, stage->minimize, &stage->minimize_count, sizeof *stage->minimize);
    Minimize *minimize = &stage->minimize[stage->minimize_count - 1];
    minimize->entry = read_index(reader);
    minimize->optimizer = read_text(reader);
    minimize->accumulate = read_int(reader);
    minimize->ema_every = read_int(reader);
    minimize->clip = accept(reader, "clip");
    minimize->replay = accept(reader, "replay") ? read_index(reader) : UINT32_MAX;
    expect(reader, "moves");
    while (!at_end(reader)) {
        minimize->instances = append(reader, minimize->instances, &minimize->instance_count,
                                     sizeof *minimize->instances);
        minimize->instances[minimize->instance_count - 1] = read_index(reader);
    }
}

// ---- host programs ----

static void end_line(Reader *reader)
{
    if (!at_end(reader))
        fail(reader, "unexpected '%.20s'", reader->at);
    if (*reader->at == '\n') {
        reader->at++;
        reader->line++;
    }
}

static void read_call(Reader *reader, HostStmt *stmt)
{
    expect(reader, "entry");
    stmt->entry = read_index(reader);
    expect(reader, "(");
    while (!reader->failed && !accept(reader, ")")) {
        skip_space(reader);
        stmt->args = append(reader, stmt->args, &stmt->arg_count, sizeof *stmt->args);
        HostArg *arg = &stmt->args[stmt->arg_count - 1];
        arg->is_var = *reader->at != '%';
        if (arg->is_var)
            arg->index = read_index(reader);
        else
            arg->value = read_val(reader);
    }
    expect(reader, "->");
    while (!at_end(reader)) {
        stmt->results = append(reader, stmt->results, &stmt->result_count, sizeof *stmt->results);
        stmt->results[stmt->result_count - 1] = read_index(reader);
    }
}

static void read_stmt(Reader *reader, HostBlock *block);

// The lines of a block up to its closing brace.
static void read_block(Reader *reader, HostBlock *block)
{
    end_line(reader);
    while (!reader->failed && !accept(reader, "}"))
        read_stmt(reader, block);
}

// One statement with its blocks, and the end of its last line.
static void read_stmt(Reader *reader, HostBlock *block)
{
    block->at = append(reader, block->at, &block->count, sizeof *block->at);
    uint32_t index = block->count - 1;
    HostStmt stmt = {.kind = (HostKind)read_name_of(reader, host_names)};
    if (accept(reader, "var"))
        stmt.var = read_index(reader);
    if (accept(reader, "source"))
        stmt.source = read_index(reader);
    if (accept(reader, "value"))
        stmt.value = read_val(reader);
    if (accept(reader, "limit"))
        stmt.limit = read_val(reader);
    stmt.reverse = accept(reader, "reverse");
    stmt.negate = accept(reader, "negate");
    if (accept(reader, "name"))
        stmt.name = read_text(reader);
    if (stmt.kind == HOST_CALL)
        read_call(reader, &stmt);
    if (accept(reader, "{")) {
        read_block(reader, &stmt.body);
        if (accept(reader, "else")) {
            expect(reader, "{");
            read_block(reader, &stmt.other);
        }
    }
    end_line(reader);
    block->at[index] = stmt;
}

static void read_sampler(Reader *reader)
{
    Module *module = reader->module;
    module->samplers =
        append(reader, module->samplers, &module->sampler_count, sizeof *module->samplers);
    Sampler *sampler = reader->sampler = &module->samplers[module->sampler_count - 1];
    sampler->name = read_text(reader);
    sampler->span = read_span(reader);
}

static void read_var(Reader *reader)
{
    Sampler *sampler = reader->sampler;
    sampler->vars = append(reader, sampler->vars, &sampler->var_count, sizeof *sampler->vars);
    HostVar *var = &sampler->vars[sampler->var_count - 1];
    var->name = read_text(reader);
    var->dtype = read_dtype(reader);
    expect(reader, ":");
    var->type = read_type(reader);
}

// ---- the whole ----

static void read_words(Reader *reader, const char ***list, uint32_t *count)
{
    *list = append(reader, *list, count, sizeof **list);
    (*list)[*count - 1] = read_text(reader);
}

// One line, or, in a sampler, one statement with its blocks.
static void read_line(Reader *reader)
{
    static const struct {
        const char *word;
        void (*read)(Reader *reader);
        enum { ALWAYS, IN_ENTRY, IN_VARIANT, IN_STAGE, IN_SAMPLER } where;
    } lines[] = {
        {"var", read_var, IN_SAMPLER},         {"sampler", read_sampler, ALWAYS},
        {"instance", read_instance, ALWAYS},   {"param", read_param, ALWAYS},
        {"option", read_option, ALWAYS},       {"segments", read_segments, ALWAYS},
        {"blob", read_blob, ALWAYS},           {"%", read_node, ALWAYS},
        {"entry", read_entry, ALWAYS},         {"stage", read_stage, ALWAYS},
        {"input", read_input, IN_ENTRY},       {"variant", read_variant, IN_ENTRY},
        {"decide", read_decision, IN_VARIANT}, {"output", read_output, IN_VARIANT},
        {"tap", read_tap, IN_VARIANT},         {"minimize", read_minimize, IN_STAGE},
    };
    enum { SAMPLER_LINES = 2 };
    const void *const places[] = {reader, reader->entry, reader->variant, reader->stage,
                                  reader->sampler};
    size_t count = reader->sampler ? SAMPLER_LINES : sizeof lines / sizeof lines[0];
    for (size_t i = 0; i < count; i++)
        if (places[lines[i].where] && accept(reader, lines[i].word)) {
            lines[i].read(reader);
            end_line(reader);
            return;
        }
    if (reader->sampler)
        read_stmt(reader, &reader->sampler->body);
    else
        fail(reader, "unknown line");
}

static void read_head(Reader *reader)
{
    Module *module = reader->module;
    expect(reader, "pvdmc-graph");
    if (read_int(reader) != 1)
        fail(reader, "not a graph of this version");
    end_line(reader);
    expect(reader, "module");
    module->name = read_text(reader);
    module->path = read_text(reader);
    module->real = read_dtype(reader);
    end_line(reader);
    while (accept(reader, "constant")) {
        read_words(reader, &module->constants, &module->constant_count);
        end_line(reader);
    }
    while (accept(reader, "stream")) {
        read_words(reader, &module->streams, &module->stream_count);
        end_line(reader);
    }
}

Module *read_module(Arena *arena, const char *text, char *error, size_t error_size)
{
    Module *module = arena_alloc(arena, sizeof *module);
    module->arena = arena;
    module->graph = graph_new(arena);
    Reader reader = {.arena = arena,
                     .module = module,
                     .at = text,
                     .line = 1,
                     .error = error,
                     .error_size = error_size};
    read_head(&reader);
    while (!reader.failed && *reader.at)
        read_line(&reader);
    return reader.failed ? NULL : module;
}
