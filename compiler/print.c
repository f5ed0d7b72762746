// The textual form of modules; read.c reads it back. print -> read -> print is the identity.
//
// One thing a line, in this order; indentation means nothing; text is quoted, `-` is no text:
//   pvdmc-graph 1
//   module "pvdm" "models/pvdm.model" f32          name, path, working precision
//   constant "resolution=256"
//   stream "noise"
//   instance "ae" 0 62 ignored "inv_freqs"         first parameter, parameters
//   param "ae.weight" 0 f32[4, 8] uniform -1 1 buffer    instance, type, init, its two numbers
//   option "eta" "ddim" f32 1 = 0                  stage, dtype, elements (list: is_list), values
//   option "cond" "ddim" none 1 = 0 : f32[b, 4]    an optional tensor
//   segments 1 = 32*32 | 16*32 | 16*32
//   blob 1 = 0000803f00000040                      bytes of a table
//   %7 = slice(%3) axis 1 start 0 size 4 : f32[b, 4, 8] in "unet.out"     a node; %5:1 = output 1
//   entry program "denoise" 4294967295             kind, name, its program
//     input "x" f32[b, 4] optional
//     variant 3                                    optional inputs that are there, bit by bit
//       decide %4 yes
//       output named "eps" 0 %55
//       tap "unet.out" %33
//   stage "diffusion" "clips" 16 256 256 data "x" f32[b, 3] pad
//     minimize 4 "adamw" 1 25 clip replay 7 moves 0 1       entry, accumulate, ema_every
//   sampler "ddim"
//     var "x" none : f32[b, 4]
//     for var 1 value %3 limit %4 reverse {        host statements; blocks in braces
//     }
// A type is dtype[sizes], a size n, b or nb; `/2:1` behind it: axis 2 has segments 1. A place
// in a model file, file:begin:end in bytes, stands at the end of a line behind @.
// Nodes, segments and blobs are numbered anew, and only those that something needs are printed.
#include <stdlib.h>
#include <string.h>

#include "compiler/print.h"

const char *const init_names[] = {"zeros", "ones", "full", "normal", "uniform", NULL};
const char *const entry_names[] = {"program", "grad", "minimize", "call", NULL};
const char *const output_names[] = {"named",  "grad",    "grad_input", "state",
                                    "report", "setting", NULL};
const char *const host_names[] = {"set", "none", "copy",  "option", "random", "call",
                                  "for", "if",   "yield", "report", NULL};

typedef struct {
    FILE *out;
    const Module *module;
    uint32_t *number;   // of each node; 0: not printed
    uint32_t *segments; // segments[i] is printed as i + 1
    uint32_t *blobs;
    size_t segment_count, segment_room, blob_count, blob_room;
} Printer;

// ---- what is printed ----

static void mark(Printer *printer, Val val)
{
    if (val)
        printer->number[val_node(val)] = 1;
}

static void mark_variant(Printer *printer, const Variant *variant)
{
    for (uint32_t i = 0; i < variant->path_count; i++)
        mark(printer, variant->path[i].cond);
    for (uint32_t i = 0; i < variant->output_count; i++)
        mark(printer, variant->outputs[i].val);
    for (uint32_t i = 0; i < variant->tap_count; i++)
        mark(printer, variant->taps[i].val);
}

static void mark_block(Printer *printer, const HostBlock *block)
{
    for (uint32_t i = 0; i < block->count; i++) {
        const HostStmt *stmt = &block->at[i];
        mark(printer, stmt->value);
        mark(printer, stmt->limit);
        for (uint32_t j = 0; j < stmt->arg_count; j++)
            mark(printer, stmt->args[j].value);
        mark_block(printer, &stmt->body);
        mark_block(printer, &stmt->other);
    }
}

// The number of `item` in a list, from 1; it is added when it is new.
static uint32_t number_of(uint32_t **list, size_t *count, size_t *room, uint32_t item)
{
    for (size_t i = 0; i < *count; i++)
        if ((*list)[i] == item)
            return (uint32_t)i + 1;
    *list = grow_array(*list, room, *count, sizeof **list);
    (*list)[(*count)++] = item;
    return (uint32_t)*count;
}

static uint32_t segment_number(Printer *printer, SegId seg)
{
    return seg ? number_of(&printer->segments, &printer->segment_count, &printer->segment_room, seg)
               : 0;
}

static uint32_t blob_number(Printer *printer, uint32_t blob)
{
    return number_of(&printer->blobs, &printer->blob_count, &printer->blob_room, blob);
}

// From the marked nodes to all that they need, numbered in order.
static void number_nodes(Printer *printer)
{
    const Graph *graph = printer->module->graph;
    for (NodeId id = graph_count(graph); id-- > 1;) {
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; printer->number[id] && i < node->nin; i++)
            mark(printer, node->in[i]);
    }
    uint32_t next = 1;
    for (NodeId id = 1; id < graph_count(graph); id++) {
        if (!printer->number[id])
            continue;
        printer->number[id] = next++;
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; i < node->nout; i++)
            segment_number(printer, node->type[i]->seg);
        if (node->op == OP_CONCAT)
            segment_number(printer, (SegId)node->attr->n[1]);
        if (node->op == OP_TABLE)
            blob_number(printer, (uint32_t)node->attr->n[0]);
    }
}

static Printer printer_begin(FILE *out, const Module *module)
{
    Printer printer = {.out = out, .module = module};
    printer.number = calloc(graph_count(module->graph), sizeof *printer.number);
    if (!printer.number)
        bug("out of memory");
    return printer;
}

static void printer_end(Printer *printer)
{
    free(printer->number);
    free(printer->segments);
    free(printer->blobs);
}

// ---- words of a line ----

static void put_text(Printer *printer, const char *text)
{
    if (!text) {
        fputs(" -", printer->out);
        return;
    }
    fputs(" \"", printer->out);
    for (const unsigned char *at = (const unsigned char *)text; *at; at++)
        if (*at == '"' || *at == '\\')
            fprintf(printer->out, "\\%c", *at);
        else if (*at < ' ')
            fprintf(printer->out, "\\%02x", *at);
        else
            fputc(*at, printer->out);
    fputc('"', printer->out);
}

// A short text that reads back as the same number of that dtype.
static void put_real(Printer *printer, DType dtype, double value)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (dtype_round(dtype, strtod(text, NULL)) == value)
            break;
    }
    fprintf(printer->out, " %s", text);
}

static void put_type(Printer *printer, const Type *type)
{
    fprintf(printer->out, " %s", type_text(type));
    if (type->seg)
        fprintf(printer->out, "/%u:%u", type->seg_axis, segment_number(printer, type->seg));
}

static void put_val(Printer *printer, Val val)
{
    fprintf(printer->out, "%%%u", printer->number[val_node(val)]);
    if (val_out(val))
        fprintf(printer->out, ":%u", val_out(val));
}

static void end_line(Printer *printer, Span span)
{
    if (span.file || span.begin || span.end)
        fprintf(printer->out, " @%u:%u:%u", span.file, span.begin, span.end);
    fputc('\n', printer->out);
}

// ---- nodes ----

static void print_attrs(Printer *printer, const Node *node)
{
    const Attr *attr = node->attr;
    uint32_t next = 0;
    for (const char *at = op_info[node->op].attrs; *at;) {
        int length = (int)strcspn(at, " ");
        bool list = at[length - 1] == '*';
        int dollar = *at == '$';
        fprintf(printer->out, " %.*s", length - dollar - list, at + dollar);
        if (!strncmp(at, "$real", 5)) {
            put_real(printer,
                     node->op == OP_CONST || node->op == OP_PAD ? node->type[0]->dtype : DT_F64,
                     attr->real);
        } else if (!strncmp(at, "$text", 5)) {
            put_text(printer, attr->text);
        } else if (list) {
            for (uint32_t i = next; i < attr->count; i++)
                fprintf(printer->out, "%c%lld", i > next ? ',' : ' ', (long long)attr->n[i]);
        } else {
            int64_t value = attr->n[next];
            if (node->op == OP_CONCAT && next == 1)
                value = segment_number(printer, (SegId)value);
            if (node->op == OP_TABLE)
                value = blob_number(printer, (uint32_t)value);
            fprintf(printer->out, " %lld", (long long)value);
            next++;
        }
        at += length;
        at += *at == ' ';
    }
}

static void print_node(Printer *printer, NodeId id)
{
    const Node *node = graph_node(printer->module->graph, id);
    fprintf(printer->out, "%%%u = %s(", printer->number[id], op_info[node->op].name);
    for (uint32_t i = 0; i < node->nin; i++) {
        fputs(i ? ", " : "", printer->out);
        put_val(printer, node->in[i]);
    }
    fputs(")", printer->out);
    print_attrs(printer, node);
    fputs(" :", printer->out);
    for (uint32_t i = 0; i < node->nout; i++) {
        fputs(i ? "," : "", printer->out);
        put_type(printer, node->type[i]);
    }
    const Origin *origin = graph_origin(printer->module->graph, id);
    if (origin->path) {
        fputs(" in", printer->out);
        put_text(printer, origin->path);
    }
    fputs(origin->recompute ? " again" : "", printer->out);
    end_line(printer, origin->span);
}

static void print_nodes(Printer *printer)
{
    const Graph *graph = printer->module->graph;
    for (uint32_t i = 0; i < printer->segment_count; i++) {
        const Segments *segments = graph_segments(graph, printer->segments[i]);
        fprintf(printer->out, "segments %u =", i + 1);
        for (uint32_t j = 0; j < segments->count; j++) {
            fputs(j ? " |" : "", printer->out);
            for (uint32_t k = 0; k < segments->rank[j]; k++)
                fprintf(printer->out, "%s%lld", k ? "*" : " ", (long long)segments->extent[j][k]);
        }
        fputc('\n', printer->out);
    }
    for (uint32_t i = 0; i < printer->blob_count; i++) {
        size_t size;
        const uint8_t *data = graph_blob(graph, printer->blobs[i], &size);
        fprintf(printer->out, "blob %u = ", i + 1);
        for (size_t j = 0; j < size; j++)
            fprintf(printer->out, "%02x", data[j]);
        fputc('\n', printer->out);
    }
    for (NodeId id = 1; id < graph_count(graph); id++)
        if (printer->number[id])
            print_node(printer, id);
}

// ---- declarations ----

static void print_params(Printer *printer)
{
    const Module *module = printer->module;
    for (uint32_t i = 0; i < module->instance_count; i++) {
        const Instance *instance = &module->instances[i];
        fputs("instance", printer->out);
        put_text(printer, instance->name);
        fprintf(printer->out, " %u %u", instance->first, instance->count);
        if (instance->ignored_count)
            fputs(" ignored", printer->out);
        for (uint32_t j = 0; j < instance->ignored_count; j++)
            put_text(printer, instance->ignored[j]);
        end_line(printer, instance->span);
    }
    for (uint32_t i = 0; i < module->param_count; i++) {
        const Param *param = &module->params[i];
        fputs("param", printer->out);
        put_text(printer, param->name);
        fprintf(printer->out, " %u", param->instance);
        put_type(printer, &param->type);
        fprintf(printer->out, " %s", init_names[param->init]);
        put_real(printer, DT_F64, param->init_a);
        put_real(printer, DT_F64, param->init_b);
        fputs(param->buffer ? " buffer" : "", printer->out);
        end_line(printer, param->span);
    }
}

static void print_options(Printer *printer)
{
    for (uint32_t i = 0; i < printer->module->option_count; i++) {
        const Option *option = &printer->module->options[i];
        fputs("option", printer->out);
        put_text(printer, option->name);
        put_text(printer, option->stage);
        fprintf(printer->out, " %s %u%s =", dtype_name(option->dtype), option->count,
                option->is_list ? " list" : "");
        for (uint32_t j = 0; j < option->count; j++)
            put_real(printer, DT_F64, option->value[j]);
        if (option->type.dtype != DT_NONE) {
            fputs(" :", printer->out);
            put_type(printer, &option->type);
        }
        end_line(printer, option->span);
    }
}

static void print_one_variant(Printer *printer, const Variant *variant)
{
    fprintf(printer->out, "  variant %llu\n", (unsigned long long)variant->given);
    for (uint32_t i = 0; i < variant->path_count; i++) {
        fputs("    decide ", printer->out);
        put_val(printer, variant->path[i].cond);
        fprintf(printer->out, " %s\n", variant->path[i].outcome ? "yes" : "no");
    }
    for (uint32_t i = 0; i < variant->output_count; i++) {
        const Output *output = &variant->outputs[i];
        fprintf(printer->out, "    output %s", output_names[output->kind]);
        put_text(printer, output->name);
        fprintf(printer->out, " %u ", output->param);
        put_val(printer, output->val);
        fputc('\n', printer->out);
    }
    for (uint32_t i = 0; i < variant->tap_count; i++) {
        fputs("    tap", printer->out);
        put_text(printer, variant->taps[i].name);
        fputc(' ', printer->out);
        put_val(printer, variant->taps[i].val);
        fputc('\n', printer->out);
    }
}

static void print_entry(Printer *printer, const Entry *entry)
{
    fprintf(printer->out, "entry %s", entry_names[entry->kind]);
    put_text(printer, entry->name);
    fprintf(printer->out, " %u", entry->program);
    end_line(printer, entry->span);
    for (uint32_t i = 0; i < entry->input_count; i++) {
        fputs("  input", printer->out);
        put_text(printer, entry->inputs[i].name);
        put_type(printer, &entry->inputs[i].type);
        fputs(entry->inputs[i].optional ? " optional\n" : "\n", printer->out);
    }
}

static void print_stage(Printer *printer, const Stage *stage)
{
    fputs("stage", printer->out);
    put_text(printer, stage->name);
    put_text(printer, stage->source);
    fprintf(printer->out, " %u %u %u", stage->frames, stage->height, stage->width);
    if (stage->has_data) {
        fputs(" data", printer->out);
        put_text(printer, stage->data_name);
        put_type(printer, &stage->data_type);
    }
    fputs(stage->pad ? " pad" : "", printer->out);
    end_line(printer, stage->span);
    for (uint32_t i = 0; i < stage->minimize_count; i++) {
        const Minimize *minimize = &stage->minimize[i];
        fprintf(printer->out, "  minimize %u", minimize->entry);
        put_text(printer, minimize->optimizer);
        fprintf(printer->out, " %lld %lld%s", (long long)minimize->accumulate,
                (long long)minimize->ema_every, minimize->clip ? " clip" : "");
        if (minimize->replay != UINT32_MAX)
            fprintf(printer->out, " replay %u", minimize->replay);
        fputs(" moves", printer->out);
        for (uint32_t j = 0; j < minimize->instance_count; j++)
            fprintf(printer->out, " %u", minimize->instances[j]);
        fputc('\n', printer->out);
    }
}

// ---- host programs ----

static void print_block(Printer *printer, const HostBlock *block, int depth);

static void print_stmt(Printer *printer, const HostStmt *stmt, int depth)
{
    fprintf(printer->out, "%*s%s", 2 * depth, "", host_names[stmt->kind]);
    if (stmt->var)
        fprintf(printer->out, " var %u", stmt->var);
    if (stmt->source)
        fprintf(printer->out, " source %u", stmt->source);
    if (stmt->value) {
        fputs(" value ", printer->out);
        put_val(printer, stmt->value);
    }
    if (stmt->limit) {
        fputs(" limit ", printer->out);
        put_val(printer, stmt->limit);
    }
    fputs(stmt->reverse ? " reverse" : "", printer->out);
    fputs(stmt->negate ? " negate" : "", printer->out);
    if (stmt->name) {
        fputs(" name", printer->out);
        put_text(printer, stmt->name);
    }
    if (stmt->kind == HOST_CALL) {
        fprintf(printer->out, " entry %u (", stmt->entry);
        for (uint32_t i = 0; i < stmt->arg_count; i++) {
            fputs(i ? " " : "", printer->out);
            if (stmt->args[i].is_var)
                fprintf(printer->out, "%u", stmt->args[i].index);
            else
                put_val(printer, stmt->args[i].value);
        }
        fputs(") ->", printer->out);
        for (uint32_t i = 0; i < stmt->result_count; i++)
            fprintf(printer->out, " %u", stmt->results[i]);
    }
    if (stmt->body.count || stmt->other.count) {
        fputs(" {\n", printer->out);
        print_block(printer, &stmt->body, depth + 1);
        if (stmt->other.count) {
            fprintf(printer->out, "%*s} else {\n", 2 * depth, "");
            print_block(printer, &stmt->other, depth + 1);
        }
        fprintf(printer->out, "%*s}", 2 * depth, "");
    }
    fputc('\n', printer->out);
}

static void print_block(Printer *printer, const HostBlock *block, int depth)
{
    for (uint32_t i = 0; i < block->count; i++)
        print_stmt(printer, &block->at[i], depth);
}

static void print_sampler(Printer *printer, const Sampler *sampler)
{
    fputs("sampler", printer->out);
    put_text(printer, sampler->name);
    end_line(printer, sampler->span);
    for (uint32_t i = 0; i < sampler->var_count; i++) {
        fputs("  var", printer->out);
        put_text(printer, sampler->vars[i].name);
        fprintf(printer->out, " %s :", dtype_name(sampler->vars[i].dtype));
        put_type(printer, &sampler->vars[i].type);
        fputc('\n', printer->out);
    }
    print_block(printer, &sampler->body, 1);
}

// ---- the whole ----

void print_module(FILE *out, const Module *module)
{
    Printer printer = printer_begin(out, module);
    for (uint32_t i = 0; i < module->entry_count; i++)
        for (uint32_t j = 0; j < module->entries[i].variant_count; j++)
            mark_variant(&printer, &module->entries[i].variants[j]);
    for (uint32_t i = 0; i < module->sampler_count; i++)
        mark_block(&printer, &module->samplers[i].body);
    number_nodes(&printer);

    fputs("pvdmc-graph 1\nmodule", out);
    put_text(&printer, module->name);
    put_text(&printer, module->path);
    fprintf(out, " %s\n", dtype_name(module->real));
    for (uint32_t i = 0; i < module->constant_count; i++) {
        fputs("constant", out);
        put_text(&printer, module->constants[i]);
        fputc('\n', out);
    }
    for (uint32_t i = 0; i < module->stream_count; i++) {
        fputs("stream", out);
        put_text(&printer, module->streams[i]);
        fputc('\n', out);
    }
    print_params(&printer);
    print_options(&printer);
    print_nodes(&printer);
    for (uint32_t i = 0; i < module->entry_count; i++) {
        print_entry(&printer, &module->entries[i]);
        for (uint32_t j = 0; j < module->entries[i].variant_count; j++)
            print_one_variant(&printer, &module->entries[i].variants[j]);
    }
    for (uint32_t i = 0; i < module->stage_count; i++)
        print_stage(&printer, &module->stages[i]);
    for (uint32_t i = 0; i < module->sampler_count; i++)
        print_sampler(&printer, &module->samplers[i]);
    printer_end(&printer);
}

void print_variant(FILE *out, const Module *module, const Entry *entry, const Variant *variant)
{
    Printer printer = printer_begin(out, module);
    mark_variant(&printer, variant);
    number_nodes(&printer);
    print_entry(&printer, entry);
    print_nodes(&printer);
    print_one_variant(&printer, variant);
    printer_end(&printer);
}
