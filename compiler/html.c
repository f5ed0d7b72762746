// The developer's page: html_page.html with all that it draws as one JSON object. Graphs are lists
// of nodes with the numbers they have in the module, so that origins, operands and groups can be
// followed from one pass into the next; texts that repeat stand in one table and are named by
// number.
#include "compiler/html.h"

#include <stdlib.h>
#include <string.h>

__asm__(".section .rodata\n.globl pvdmc_page\npvdmc_page:\n.incbin \"" PVDMC_PAGE
        "\"\n.byte 0\n.previous");
extern const char pvdmc_page[];

typedef struct {
    FILE *out;
    char *text;
    size_t size;
} Buffered;

struct Html {
    const Sources *sources;
    Buffered graphs, groups, plans;
    uint32_t graph_count;
    const char **texts; // interned
    uint32_t text_count;
    size_t text_capacity;
    uint32_t *table; // by hash of the pointer: text + 1
    uint32_t table_size;
};

// In place: the stream keeps the addresses of text and size.
static void open_part(Buffered *part)
{
    part->out = open_memstream(&part->text, &part->size);
    if (!part->out)
        bug("out of memory");
}

Html *html_new(const Sources *sources)
{
    Html *html = calloc(1, sizeof *html);
    if (!html)
        bug("out of memory");
    html->sources = sources;
    open_part(&html->graphs);
    open_part(&html->groups);
    open_part(&html->plans);
    html->table_size = 1024;
    html->table = calloc(html->table_size, sizeof *html->table);
    if (!html->table)
        bug("out of memory");
    return html;
}

// ---- texts ----

static void put_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 32 || c == '"' || c == '\\' || c == '<')
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static uint32_t *find_text(Html *html, const char *text)
{
    uint32_t mask = html->table_size - 1;
    uint32_t at = (uint32_t)hash_bytes(&text, sizeof text) & mask;
    while (html->table[at] && html->texts[html->table[at] - 1] != text)
        at = (at + 1) & mask;
    return &html->table[at];
}

// The number of a text, in the order of first use.
static uint32_t text_number(Html *html, const char *text)
{
    text = intern(text ? text : "");
    uint32_t *slot = find_text(html, text);
    if (*slot)
        return *slot - 1;
    html->texts =
        grow_array(html->texts, &html->text_capacity, html->text_count, sizeof *html->texts);
    html->texts[html->text_count++] = text;
    *slot = html->text_count;
    if (2 * html->text_count > html->table_size) {
        free(html->table);
        html->table_size *= 4;
        html->table = calloc(html->table_size, sizeof *html->table);
        if (!html->table)
            bug("out of memory");
        for (uint32_t i = 0; i < html->text_count; i++)
            *find_text(html, html->texts[i]) = i + 1;
    }
    return html->text_count - 1;
}

// "unet.model:20", or ""
static uint32_t line_number(Html *html, const Origin *origin)
{
    if (!origin || !origin->span.file)
        return text_number(html, "");
    uint32_t line, column;
    char text[300];
    const char *path = sources_get(html->sources, origin->span.file)->path;
    const char *slash = strrchr(path, '/');
    sources_place(html->sources, origin->span.file, origin->span.begin, &line, &column);
    snprintf(text, sizeof text, "%s:%u", slash ? slash + 1 : path, line);
    return text_number(html, text);
}

static uint32_t path_number(Html *html, const Origin *origin)
{
    return text_number(html, origin ? origin->path : NULL);
}

// ---- graphs ----

// What a node says beside its operation: a name, or a constant's value.
static uint32_t detail_number(Html *html, const Module *module, const Node *node)
{
    char text[200] = "";
    if (node->op == OP_CONST)
        snprintf(text, sizeof text, "%g", node->attr->real);
    else if (node->op == OP_PARAM)
        snprintf(text, sizeof text, "%s", module->params[node->attr->n[0]].name);
    else if (node->attr->text)
        snprintf(text, sizeof text, "%s", node->attr->text);
    return text_number(html, text);
}

// [op, type, line, path, detail, operands...]; the first is node 1.
static void put_nodes(Html *html, const Module *module)
{
    const Graph *graph = module->graph;
    FILE *out = html->graphs.out;
    for (NodeId id = 1; id < graph_count(graph); id++) {
        const Node *node = graph_node(graph, id);
        const Origin *origin = graph_origin(graph, id);
        fprintf(out, "%s[%d,%u,%u,%u,%u", id > 1 ? "," : "", (int)node->op,
                text_number(html, type_text(node->type[0])), line_number(html, origin),
                path_number(html, origin), detail_number(html, module, node));
        for (uint32_t i = 0; i < node->nin; i++)
            fprintf(out, ",%u", val_node(node->in[i]));
        fputs("]\n", out);
    }
}

// By entry, by variant: [kind, name, node] of each output.
static void put_outputs(Html *html, const Module *module)
{
    FILE *out = html->graphs.out;
    for (uint32_t i = 0; i < module->entry_count; i++) {
        const Entry *entry = &module->entries[i];
        fprintf(out, "%s[", i ? "," : "");
        for (uint32_t v = 0; v < entry->variant_count; v++) {
            const Variant *variant = &entry->variants[v];
            fprintf(out, "%s[", v ? "," : "");
            for (uint32_t k = 0; k < variant->output_count; k++)
                fprintf(out, "%s[%d,%u,%u]", k ? "," : "", (int)variant->outputs[k].kind,
                        text_number(html, variant->outputs[k].name),
                        val_node(variant->outputs[k].val));
            fputs("]", out);
        }
        fputs("]\n", out);
    }
}

void html_graph(Html *html, const char *pass, const Module *module)
{
    FILE *out = html->graphs.out;
    fprintf(out, "%s{\"pass\":\"%s\",\"nodes\":[", html->graph_count++ ? "," : "", pass);
    put_nodes(html, module);
    fputs("],\"outputs\":[", out);
    put_outputs(html, module);
    fputs("]}\n", out);
}

// ---- groups and plans ----

// The group that makes what `val` shows, + 1; 0: it comes from outside.
static uint32_t maker(const Work *work, Val val)
{
    return work->owner[local_of(work, base_of(work, val))];
}

// [label, library, line, path, [members], [groups that are read]]
static void put_group(Html *html, const Work *work, const Group *group)
{
    FILE *out = html->groups.out;
    const Origin *origin = graph_origin(work->module->graph, group->anchor);
    fprintf(out, "[%u,%d,%u,%u,[", text_number(html, group_label(work, group)),
            group->kind == GROUP_LIBRARY, line_number(html, origin), path_number(html, origin));
    for (uint32_t i = 0; i < group->member_count; i++)
        fprintf(out, "%s%u", i ? "," : "", group->members[i]);
    fputs("],[", out);
    bool first = true;
    for (uint32_t i = 0; i < group->read_count; i++) {
        if (val_is_step(work, group->reads[i]))
            continue;
        uint32_t from = maker(work, group->reads[i]);
        if (from) {
            fprintf(out, "%s%u", first ? "" : ",", from - 1);
            first = false;
        }
    }
    fputs("]]", out);
}

void html_groups(Html *html, Work *const *plans, uint32_t count)
{
    bool any = false;
    for (uint32_t i = 0; i < count; i++) {
        const Work *work = plans[i];
        if (work->taps)
            continue;
        fprintf(html->groups.out, "%s{\"entry\":%u,\"variant\":%u,\"groups\":[", any ? "," : "",
                work->entry_index, work->variant_index);
        any = true;
        for (uint32_t k = 0; k < work->group_count; k++) {
            fputs(k ? ",\n" : "", html->groups.out);
            put_group(html, work, &work->groups[k]);
        }
        fputs("]}\n", html->groups.out);
    }
}

// [kernel, label, line, path, segments, flops, flops b, bytes, bytes b]
static void put_launches(Html *html, const Work *work, const char *(*kernel_name)(uint32_t))
{
    FILE *out = html->plans.out;
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        const Origin *origin =
            launch->origin ? graph_origin(work->module->graph, launch->origin) : NULL;
        fprintf(out, "%s[%u,%u,%u,%u,%u,%.6g,%.6g,%.6g,%.6g]", i ? ",\n" : "",
                text_number(html, kernel_name(launch->kernel)), text_number(html, launch->label),
                line_number(html, origin), path_number(html, origin), launch->segments,
                launch->flops_fixed, launch->flops_batch, launch->bytes_fixed, launch->bytes_batch);
    }
}

// [bytes, batch, offset, first, last] of each buffer that has a place of its own in the arena
static void put_buffers(Html *html, const Work *work)
{
    FILE *out = html->plans.out;
    bool any = false;
    for (uint32_t i = 0; i < work->buffer_count; i++) {
        const Buffer *buffer = &work->buffers[i];
        if (buffer->first < 0 || buffer->alias || buffer->outside.space != PV_VALUE)
            continue;
        fprintf(out, "%s[%lld,%d,%lld,%d,%d]", any ? ",\n" : "", (long long)buffer->bytes,
                buffer->batch, (long long)buffer->offset, buffer->first, buffer->last);
        any = true;
    }
}

static void put_edges(Html *html, const Work *work)
{
    uint32_t count, *edges = launch_edges(work, &count);
    for (uint32_t i = 0; i < 2 * count; i++)
        fprintf(html->plans.out, "%s%u", i ? "," : "", edges[i]);
    free(edges);
}

void html_plans(Html *html, Work *const *plans, uint32_t count,
                const char *(*kernel_name)(uint32_t kernel))
{
    FILE *out = html->plans.out;
    bool any = false;
    for (uint32_t i = 0; i < count; i++) {
        const Work *work = plans[i];
        if (work->taps)
            continue;
        fprintf(out,
                "%s{\"entry\":%u,\"variant\":%u,\"arena\":[%lld,%lld],\"live\":[%lld,%lld],"
                "\"launches\":[",
                any ? "," : "", work->entry_index, work->variant_index,
                (long long)work->arena_fixed, (long long)work->arena_batch,
                (long long)work->live_fixed, (long long)work->live_batch);
        any = true;
        put_launches(html, work, kernel_name);
        fputs("],\"buffers\":[", out);
        put_buffers(html, work);
        fputs("],\"edges\":[", out);
        put_edges(html, work);
        fputs("]}\n", out);
    }
}

// ---- the page ----

static void put_ops(FILE *out)
{
    static const char *const classes[] = {
        [CLASS_SOURCE] = "source",     [CLASS_ELEMENTWISE] = "elementwise",
        [CLASS_MOVEMENT] = "movement", [CLASS_REDUCE] = "reduce",
        [CLASS_CONTRACT] = "contract", [CLASS_COMPOSITE] = "composite"};
    for (uint32_t op = 0; op < OP_COUNT; op++)
        fprintf(out, "%s[\"%s\",\"%s\"]", op ? "," : "", op_info[op].name,
                classes[op_info[op].class]);
}

static void put_part(FILE *out, const char *name, Buffered *part)
{
    fclose(part->out);
    fprintf(out, ",\"%s\":[%s]", name, part->text);
    free(part->text);
}

void html_write(Html *html, FILE *out, const Module *module)
{
    static const char marker[] = "@GRAPHS@";
    const char *place = strstr(pvdmc_page, marker);
    if (!place)
        bug("the page has no place for its data");
    fwrite(pvdmc_page, 1, (size_t)(place - pvdmc_page), out);
    fputs("{\"model\":", out);
    put_string(out, module->name);
    fputs(",\"ops\":[", out);
    put_ops(out);
    fputs("],\"entries\":[", out);
    for (uint32_t i = 0; i < module->entry_count; i++) {
        fputs(i ? "," : "", out);
        put_string(out, module->entries[i].name);
    }
    fputs("]", out);
    put_part(out, "graphs", &html->graphs);
    put_part(out, "groups", &html->groups);
    put_part(out, "plans", &html->plans);
    fputs(",\"texts\":[", out);
    for (uint32_t i = 0; i < html->text_count; i++) {
        fputs(i ? ",\n" : "", out);
        put_string(out, html->texts[i]);
    }
    fputs("]}", out);
    fputs(place + sizeof marker - 1, out);
    free(html->texts);
    free(html->table);
    free(html);
}
