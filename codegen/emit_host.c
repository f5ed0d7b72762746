// Host code: which variant a step is, and the samplers.
//
// The variants of an entry are the leaves of a tree of questions, listed depth first; `select` asks
// them from the root, and computes a question's value only where it is asked. A sampler is a
// function over the runtime's host interface: variables are PvVars, loops and branches are C's, and
// each call of an entry is one pv_host_call. Whatever happens, its tensors are given back at the
// end.
#include <stdlib.h>

#include "codegen/codegen.h"

// ---- select ----

// Variants first .. end share the answers to the questions before `depth`.
static void write_choice(StepScope *scope, const Entry *entry, uint32_t first, uint32_t end,
                         uint32_t depth)
{
    const Variant *variant = &entry->variants[first];
    int indent = scope->indent;
    if (depth >= variant->path_count || end - first == 1) {
        fprintf(scope->out, "%*sreturn %u;\n", indent, "", first);
        return;
    }
    uint32_t split = first;
    bool outcome = variant->path[depth].outcome;
    while (split < end && entry->variants[split].path[depth].outcome == outcome)
        split++;
    if (split == end) {
        write_choice(scope, entry, first, end, depth + 1);
        return;
    }
    write_step(scope, variant->path[depth].cond);
    uint32_t known = scope->count;
    fprintf(scope->out, "%*sif (%sv%u) {\n", indent, "", outcome ? "" : "!",
            val_node(variant->path[depth].cond));
    scope->indent = indent + 4;
    write_choice(scope, entry, first, split, depth + 1);
    scope->count = known;
    scope->indent = indent;
    fprintf(scope->out, "%*s}\n", indent, "");
    write_choice(scope, entry, split, end, depth + 1);
}

void emit_select(Codegen *cg, FILE *out, uint32_t number)
{
    const Entry *entry = &cg->module->entries[number];
    StepScope scope = {.cg = cg, .out = out, .indent = 4};
    fprintf(out, "static uint32_t select_%u(const PvStep *step)\n{\n    (void)step;\n", number);
    if (entry->variant_count > 0)
        write_choice(&scope, entry, 0, entry->variant_count, 0);
    else
        fprintf(out, "    return 0;\n");
    fprintf(out, "}\n");
    free(scope.known);
}

// ---- samplers ----

typedef struct {
    Codegen *cg;
    const Sampler *sampler;
    FILE *out;
    int indent;
    uint32_t labels;
    bool fails;                // something may jump to the end
} Host;

static void write_block(Host *host, const HostBlock *block);

// Opens a scope that holds the definitions of `value`.
static void open_value(Host *host, Val value)
{
    StepScope scope = {.cg = host->cg, .out = host->out, .indent = host->indent};
    write_step(&scope, value);
    free(scope.known);
}

static const char *number_field(const Host *host, Val value)
{
    DType dtype = val_type(host->cg->module->graph, value)->dtype;
    return dtype_is_float(dtype) ? "f" : "i";
}

static void write_checked(Host *host, const char *call)
{
    host->fails = true;
    fprintf(host->out, "%*sif (%s != 0)\n%*sgoto end;\n", host->indent, "", call, host->indent + 4,
            "");
}

static void write_set(Host *host, const HostStmt *stmt)
{
    fprintf(host->out, "%*s{\n", host->indent, "");
    host->indent += 4;
    open_value(host, stmt->value);
    fprintf(host->out, "%*svars[%u].number.%s = v%u;\n", host->indent, "", stmt->var,
            number_field(host, stmt->value), val_node(stmt->value));
    host->indent -= 4;
    fprintf(host->out, "%*s}\n", host->indent, "");
}

static void write_random(Host *host, const HostStmt *stmt)
{
    const Module *module = host->cg->module;
    const Node *node = val_get(module->graph, stmt->value);
    const Type *type = node->type[0];
    unsigned batch = 0;
    for (uint32_t i = 0; i < type->rank; i++)
        batch |= (unsigned)type->dim[i].batch << i;
    fprintf(host->out, "%*s{\n%*sstatic const PvType type = {%d, %u, %u, {", host->indent, "",
            host->indent + 4, "", (int)(dtype_is_float(type->dtype) ? module->real : type->dtype),
            type->rank, batch);
    for (uint32_t i = 0; i < type->rank; i++)
        fprintf(host->out, "%s%lld", i ? ", " : "", (long long)type->dim[i].n);
    fprintf(host->out, "%s}};\n", type->rank ? "" : "0");
    host->indent += 4;
    write_checked(host, arena_printf(host->cg->arena,
                                     "pv_host_random(host, &vars[%u], %u, %lld, &type)", stmt->var,
                                     stream_index(host->cg, node->attr->text),
                                     (long long)node->attr->n[0]));
    host->indent -= 4;
    fprintf(host->out, "%*s}\n", host->indent, "");
}

static void write_call(Host *host, const HostStmt *stmt)
{
    FILE *out = host->out;
    fprintf(out, "%*s{\n", host->indent, "");
    host->indent += 4;
    StepScope scope = {.cg = host->cg, .out = out, .indent = host->indent};
    for (uint32_t i = 0; i < stmt->arg_count; i++)
        if (!stmt->args[i].is_var)
            write_step(&scope, stmt->args[i].value);
    free(scope.known);
    fprintf(out, "%*sconst PvVar with[] = {", host->indent, "");
    for (uint32_t i = 0; i < stmt->arg_count; i++) {
        fputs(i ? ", " : "", out);
        if (stmt->args[i].is_var)
            fprintf(out, "vars[%u]", stmt->args[i].index);
        else
            fprintf(out, "{{.%s = v%u}, 0}", number_field(host, stmt->args[i].value),
                    val_node(stmt->args[i].value));
    }
    fprintf(out, "%s};\n%*sPvVar *to[] = {", stmt->arg_count ? "" : "{{0}, 0}", host->indent, "");
    for (uint32_t i = 0; i < stmt->result_count; i++)
        fprintf(out, "%s&vars[%u]", i ? ", " : "", stmt->results[i]);
    fprintf(out, "%s};\n", stmt->result_count ? "" : "0");
    write_checked(host, arena_printf(host->cg->arena, "pv_host_call(host, %u, with, to)",
                                     stmt->entry));
    host->indent -= 4;
    fprintf(out, "%*s}\n", host->indent, "");
}

static void write_for(Host *host, const HostStmt *stmt)
{
    FILE *out = host->out;
    uint32_t label = host->labels++;
    fprintf(out, "%*s{\n", host->indent, "");
    host->indent += 4;
    StepScope scope = {.cg = host->cg, .out = out, .indent = host->indent};
    write_step(&scope, stmt->value);
    write_step(&scope, stmt->limit);
    free(scope.known);
    unsigned from = val_node(stmt->value), to = val_node(stmt->limit);
    if (stmt->reverse)
        fprintf(out, "%*sfor (int64_t i%u = v%u - 1; i%u >= v%u; i%u--) {\n", host->indent, "",
                label, to, label, from, label);
    else
        fprintf(out, "%*sfor (int64_t i%u = v%u; i%u < v%u; i%u++) {\n", host->indent, "", label,
                from, label, to, label);
    fprintf(out, "%*svars[%u].number.i = i%u;\n", host->indent + 4, "", stmt->var, label);
    host->indent += 4;
    write_block(host, &stmt->body);
    host->indent -= 4;
    fprintf(out, "%*s}\n", host->indent, "");
    host->indent -= 4;
    fprintf(out, "%*s}\n", host->indent, "");
}

static void write_if(Host *host, const HostStmt *stmt)
{
    FILE *out = host->out;
    fprintf(out, "%*s{\n", host->indent, "");
    host->indent += 4;
    const char *not = stmt->negate ? "!" : "";
    if (stmt->value) {
        open_value(host, stmt->value);
        fprintf(out, "%*sif (%sv%u) {\n", host->indent, "", not, val_node(stmt->value));
    } else {
        fprintf(out, "%*sif (%s(vars[%u].tensor != 0)) {\n", host->indent, "", not, stmt->source);
    }
    host->indent += 4;
    write_block(host, &stmt->body);
    host->indent -= 4;
    if (stmt->other.count) {
        fprintf(out, "%*s} else {\n", host->indent, "");
        host->indent += 4;
        write_block(host, &stmt->other);
        host->indent -= 4;
    }
    fprintf(out, "%*s}\n", host->indent, "");
    host->indent -= 4;
    fprintf(out, "%*s}\n", host->indent, "");
}

static void write_stmt(Host *host, const HostStmt *stmt)
{
    Arena *arena = host->cg->arena;
    switch (stmt->kind) {
    case HOST_SET:
        write_set(host, stmt);
        break;
    case HOST_SET_NONE:
        fprintf(host->out, "%*spv_host_set_tensor(&vars[%u], 0);\n", host->indent, "", stmt->var);
        break;
    case HOST_COPY:
        fprintf(host->out, "%*spv_host_copy(&vars[%u], &vars[%u]);\n", host->indent, "", stmt->var,
                stmt->source);
        break;
    case HOST_OPTION:
        write_checked(host, arena_printf(arena, "pv_host_option(host, &vars[%u], %u)", stmt->var,
                                         stmt->source));
        break;
    case HOST_RANDOM:
        write_random(host, stmt);
        break;
    case HOST_CALL:
        write_call(host, stmt);
        break;
    case HOST_FOR:
        write_for(host, stmt);
        break;
    case HOST_IF:
        write_if(host, stmt);
        break;
    case HOST_YIELD:
        write_checked(host, arena_printf(arena, "pv_host_yield(host, &vars[%u])", stmt->source));
        break;
    case HOST_REPORT:
        write_checked(host, arena_printf(arena, "pv_host_report(host, \"%s\", &vars[%u])",
                                         stmt->name, stmt->source));
        break;
    }
}

static void write_block(Host *host, const HostBlock *block)
{
    for (uint32_t i = 0; i < block->count; i++)
        write_stmt(host, &block->at[i]);
}

void emit_samplers(Codegen *cg, FILE *out)
{
    const Module *module = cg->module;
    for (uint32_t i = 0; i < module->sampler_count; i++) {
        const Sampler *sampler = &module->samplers[i];
        Host host = {.cg = cg, .sampler = sampler, .out = out, .indent = 4};
        uint32_t vars = sampler->var_count ? sampler->var_count : 1;
        fprintf(out, "static int sample_%u(PvHost *host)\n{\n    PvVar vars[%u] = {0};\n", i, vars);
        fprintf(out, "    const PvStep *step = pv_host_step(host);\n    int failed = 1;\n");
        fprintf(out, "    (void)step;\n");
        write_block(&host, &sampler->body);
        fprintf(out, "    failed = 0;\n%s", host.fails ? "end:\n" : "");
        fprintf(out, "    for (int i = 0; i < %u; i++)\n        pv_host_set_tensor(&vars[i], 0);\n"
                     "    return failed ? -1 : 0;\n}\n", vars);
    }
    fprintf(out, "static const PvSampler samplers[] = {\n");
    for (uint32_t i = 0; i < module->sampler_count; i++)
        fprintf(out, "    {\"%s\", sample_%u},\n", module->samplers[i].name, i);
    fprintf(out, "%s};\n", module->sampler_count ? "" : "    {0}\n");
}
