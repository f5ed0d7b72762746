// `--explain FILE:LINE`: what became of a line of a model file. Its operations as elaboration made
// them, and for each plan the launches that they went into, forward and backward, with what these
// move and compute and how long the roofline says that takes.
//
// An operation belongs to the line that its node came from (graph_origin); of equal nodes the first
// line counts. It is forward if a result of the program needs it, else it is there for gradients.
#include <stdlib.h>
#include <string.h>

#include "compiler/explain.h"

enum { MOST_PATHS = 3 };

struct Explain {
    const char *path; // as the user wrote it
    uint32_t line;
    const Sources *sources;
    uint32_t file;              // 0: not found
    char *text;                 // of the line
    uint32_t *made, made_total; // by operation, after elaboration
};

// ---- the line ----

static uint32_t line_of(const Sources *sources, Span span)
{
    uint32_t line = 0, column;
    if (span.file)
        sources_place(sources, span.file, span.begin, &line, &column);
    return line;
}

static bool on_line(const Explain *e, const Graph *graph, NodeId node)
{
    const Origin *origin = graph_origin(graph, node);
    return origin && origin->span.file == e->file && line_of(e->sources, origin->span) == e->line;
}

// Whether `path` is `name` or ends in "/name".
static bool names_file(const char *path, const char *name)
{
    size_t length = strlen(path), tail = strlen(name);
    return length >= tail && strcmp(path + length - tail, name) == 0 &&
           (length == tail || path[length - tail - 1] == '/');
}

// The text of the line without blanks at its ends; NULL: the file has no such line.
static char *line_text(const SourceFile *file, uint32_t wanted)
{
    const char *at = file->text, *end = file->text + file->size;
    for (uint32_t line = 1; line < wanted; line++) {
        at = memchr(at, '\n', (size_t)(end - at));
        if (!at)
            return NULL;
        at++;
    }
    if (at == end)
        return NULL;
    const char *stop = memchr(at, '\n', (size_t)(end - at));
    stop = stop ? stop : end;
    while (at < stop && (*at == ' ' || *at == '\t'))
        at++;
    return strndup(at, (size_t)(stop - at));
}

Explain *explain_begin(const char *place, const Module *module, const Sources *sources)
{
    Explain *e = calloc(1, sizeof *e);
    if (!e)
        bug("out of memory");
    const char *colon = strrchr(place, ':');
    e->path = strndup(place, colon ? (size_t)(colon - place) : strlen(place));
    e->line = colon ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
    e->sources = sources;
    for (uint32_t i = 1; i < sources_count(sources) && !e->file; i++)
        if (names_file(sources_get(sources, i)->path, e->path))
            e->file = i;
    if (e->file)
        e->text = line_text(sources_get(sources, e->file), e->line);
    e->made = calloc(OP_COUNT, sizeof *e->made);
    if (!e->made)
        bug("out of memory");
    for (NodeId id = 1; id < graph_count(module->graph); id++)
        if (on_line(e, module->graph, id)) {
            e->made[graph_node(module->graph, id)->op]++;
            e->made_total++;
        }
    return e;
}

// ---- one plan ----

typedef struct {
    const char *label;
    bool backward;
    uint32_t launches, segments;
    double flops, bytes, seconds;
    const char *paths[MOST_PATHS];
    uint32_t path_count; // all of them
} Row;

typedef struct {
    const Explain *e;
    const Work *work;
    const ExplainFigures *figures;
    bool *forward; // by local number
    bool *chosen;  // by launch
    Row *rows;
    uint32_t row_count;
    size_t row_capacity;
} PlanView;

// Marks what results of the program need; for a plan without gradients that is everything.
static void mark_forward(PlanView *view)
{
    const Work *work = view->work;
    const Graph *graph = work->module->graph;
    for (uint32_t i = 0; i < work->variant->output_count; i++) {
        const Output *output = &work->variant->outputs[i];
        uint32_t local = work->local[val_node(output->val)];
        if (output->kind != OUT_GRAD && output->kind != OUT_GRAD_INPUT && local)
            view->forward[local - 1] = true;
    }
    for (uint32_t i = work->count; i-- > 0;) {
        const Node *node = graph_node(graph, work->nodes[i]);
        for (uint32_t k = 0; view->forward[i] && k < node->nin; k++) {
            uint32_t local = work->local[val_node(node->in[k])];
            if (local)
                view->forward[local - 1] = true;
        }
    }
}

static double predict(const ExplainFigures *figures, double flops, double bytes)
{
    double compute = flops / figures->flops_per_second, move = bytes / figures->bytes_per_second;
    return compute > move ? compute : move;
}

static Row *find_row(PlanView *view, const char *label, bool backward)
{
    for (uint32_t i = 0; i < view->row_count; i++)
        if (view->rows[i].label == label && view->rows[i].backward == backward)
            return &view->rows[i];
    view->rows = grow_array(view->rows, &view->row_capacity, view->row_count, sizeof *view->rows);
    view->rows[view->row_count] = (Row){.label = label, .backward = backward};
    return &view->rows[view->row_count++];
}

static void add_path(Row *row, const char *path)
{
    for (uint32_t i = 0; i < row->path_count && i < MOST_PATHS; i++)
        if (row->paths[i] == path)
            return;
    if (row->path_count < MOST_PATHS)
        row->paths[row->path_count] = path;
    row->path_count++;
}

static void choose_launch(PlanView *view, uint32_t index, bool backward)
{
    const PlanLaunch *launch = &view->work->launches[index];
    if (view->chosen[index])
        return;
    view->chosen[index] = true;
    double batch = view->figures->batch;
    double flops = launch->flops_fixed + launch->flops_batch * batch;
    double bytes = launch->bytes_fixed + launch->bytes_batch * batch;
    Row *row = find_row(view, launch->label ? launch->label : intern(""), backward);
    row->launches++;
    row->segments += launch->segments;
    row->flops += flops;
    row->bytes += bytes;
    row->seconds += predict(view->figures, flops, bytes);
    const Origin *origin = graph_origin(view->work->module->graph, launch->origin);
    if (origin && origin->path)
        add_path(row, origin->path);
}

// The group at each place of the schedule that computes something of the line, and its launches:
// those of its own anchor, or of the first of the set it was joined with.
static void choose_launches(PlanView *view)
{
    const Work *work = view->work;
    const Graph *graph = work->module->graph;
    uint32_t *first = calloc(graph_count(graph) + 1, sizeof *first); // launch + 1 by anchor
    uint32_t *next = calloc(work->launch_count + 1, sizeof *next);
    bool *mine = calloc(work->count + 2, sizeof *mine); // by group
    bool *back = calloc(work->count + 2, sizeof *back);
    if (!first || !next || !mine || !back)
        bug("out of memory");
    for (uint32_t i = work->launch_count; i-- > 0;) {
        next[i] = first[work->launches[i].origin];
        first[work->launches[i].origin] = i + 1;
    }
    for (uint32_t i = 0; i < work->count; i++) {
        uint32_t owner = work->owner[i];
        if (owner && on_line(view->e, graph, work->nodes[i])) {
            mine[owner - 1] = true;
            back[owner - 1] |= !view->forward[i];
        }
    }
    NodeId leader = 0;
    for (uint32_t p = 0; p < work->group_count; p++) {
        uint32_t number = work->schedule[p];
        const Group *group = &work->groups[number];
        if (!work->joined || !work->joined[p])
            leader = group->anchor;
        bool member = mine[number];
        for (uint32_t k = 0; k < group->member_count && !member; k++)
            if (on_line(view->e, graph, group->members[k])) {
                member = true;
                back[number] |= !view->forward[work->local[group->members[k]] - 1];
            }
        if (!member)
            continue;
        uint32_t at = first[group->anchor] ? first[group->anchor] : first[leader];
        for (; at; at = next[at - 1])
            choose_launch(view, at - 1, back[number]);
    }
    free(first);
    free(next);
    free(mine);
    free(back);
}

// Bytes of the arena that the chosen launches store in.
static double stored_bytes(const PlanView *view)
{
    const Work *work = view->work;
    bool *seen = calloc(work->buffer_count + 1, sizeof *seen);
    double sum = 0;
    if (!seen)
        bug("out of memory");
    for (uint32_t i = 0; i < work->launch_count; i++)
        for (uint32_t k = 0; view->chosen[i] && k < work->launches[i].arg_count; k++) {
            const PlanArg *arg = &work->args[work->launches[i].arg + k];
            if (arg->space != PV_ARENA || !arg->result || seen[arg->buffer - 1])
                continue;
            seen[arg->buffer - 1] = true;
            const Buffer *buffer = &work->buffers[arg->buffer - 1];
            if (buffer->outside.space == PV_VALUE)
                sum += (double)buffer->size * (buffer->batch ? view->figures->batch : 1);
        }
    free(seen);
    return sum;
}

// "12.3 MB": three digits and a unit, 1000 of one being the next.
static const char *scaled(char text[24], double value, const char *const *units)
{
    while (value >= 999.5 && units[1]) {
        value /= 1000;
        units++;
    }
    snprintf(text, 24,
             value >= 99.95   ? "%.0f %s"
             : value >= 9.995 ? "%.1f %s"
                              : "%.2f %s",
             value, *units);
    return text;
}

static const char *const byte_units[] = {"B", "kB", "MB", "GB", "TB", NULL};
static const char *const flop_units[] = {"FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", NULL};
static const char *const time_units[] = {"us", "ms", "s", NULL};

static void print_row(FILE *out, const Row *row)
{
    char bytes[24], flops[24], time[24];
    char label[64];
    if (row->segments > row->launches)
        snprintf(label, sizeof label, "%.40s (%u segments)", row->label, row->segments);
    else
        snprintf(label, sizeof label, "%.63s", row->label);
    fprintf(out, "    %5u x %-46s %9s %12s %9s  ", row->launches, label,
            scaled(bytes, row->bytes, byte_units), scaled(flops, row->flops, flop_units),
            scaled(time, row->seconds * 1e6, time_units));
    uint32_t shown = row->path_count < MOST_PATHS ? row->path_count : MOST_PATHS;
    for (uint32_t i = 0; i < shown; i++)
        fprintf(out, "%s%s", i ? ", " : "", row->paths[i]);
    fprintf(out, "%s\n", row->path_count > shown ? ", ..." : "");
}

// What the line's nodes are in this plan, apart from what launches compute.
static void print_rest(FILE *out, const PlanView *view)
{
    const Work *work = view->work;
    uint32_t views = 0, numbers = 0, others = 0;
    for (uint32_t i = 0; i < work->count; i++) {
        const Node *node = graph_node(work->module->graph, work->nodes[i]);
        if (!on_line(view->e, work->module->graph, work->nodes[i]) ||
            op_info[node->op].class == CLASS_SOURCE)
            continue;
        views += work->view[i] != NULL;
        numbers += !work->view[i] && work->step[i];
        others += !work->view[i] && !work->step[i] && !work->owner[i];
    }
    if (views)
        fprintf(out, "    %5u: views of other values, no bytes, no launch\n", views);
    if (numbers)
        fprintf(out, "    %5u: numbers that are known when the step starts\n", numbers);
    if (others)
        fprintf(out, "    %5u: computed inside the kernels that read them\n", others);
}

static void print_rows(FILE *out, const PlanView *view)
{
    for (int backward = 0; backward < 2; backward++) {
        bool head = false;
        for (uint32_t i = 0; i < view->row_count; i++) {
            if (view->rows[i].backward != (backward != 0))
                continue;
            if (!head)
                fprintf(out, "  %s\n", backward ? "backward" : "forward");
            head = true;
            print_row(out, &view->rows[i]);
        }
    }
}

// What stands behind the plan's name.
static void explain_plan(FILE *out, const Explain *e, const Work *work,
                         const ExplainFigures *figures)
{
    PlanView view = {.e = e, .work = work, .figures = figures};
    view.forward = calloc(work->count + 1, sizeof *view.forward);
    view.chosen = calloc(work->launch_count + 1, sizeof *view.chosen);
    if (!view.forward || !view.chosen)
        bug("out of memory");
    mark_forward(&view);
    choose_launches(&view);
    Row sum = {0};
    for (uint32_t i = 0; i < view.row_count; i++) {
        sum.launches += view.rows[i].launches;
        sum.seconds += view.rows[i].seconds;
        sum.bytes += view.rows[i].bytes;
        sum.flops += view.rows[i].flops;
    }
    char bytes[24], flops[24], time[24], arena[24];
    fprintf(out, "%u of %u launches; %s moved, %s, predicted %s; stores %s of the arena\n",
            sum.launches, work->launch_count, scaled(bytes, sum.bytes, byte_units),
            scaled(flops, sum.flops, flop_units), scaled(time, sum.seconds * 1e6, time_units),
            scaled(arena, stored_bytes(&view), byte_units));
    print_rows(out, &view);
    print_rest(out, &view);
    free(view.forward);
    free(view.chosen);
    free(view.rows);
}

// One after the other; a variant in which all is as in the one before is only named.
static uint32_t explain_plans(FILE *out, const Explain *e, const Work *const *plans, uint32_t count,
                              const ExplainFigures *figures)
{
    char *before = NULL;
    uint32_t shown = 0;
    for (uint32_t i = 0; i < count; i++) {
        const Work *work = plans[i];
        bool any = false;
        for (uint32_t k = 0; k < work->count && !any && !work->taps; k++)
            any = on_line(e, work->module->graph, work->nodes[k]);
        if (!any)
            continue;
        char *text = NULL;
        size_t size = 0;
        FILE *body = open_memstream(&text, &size);
        if (!body)
            bug("out of memory");
        explain_plan(body, e, work, figures);
        fclose(body);
        bool again =
            before && strcmp(before, text) == 0 && i > 0 && plans[i - 1]->entry == work->entry;
        fprintf(out, "%s%s", again ? "" : "\n", work->entry->name);
        if (work->entry->variant_count > 1)
            fprintf(out, ", variant %u", work->variant_index);
        fprintf(out, ": %s", again ? "the same\n" : text);
        free(before);
        before = text;
        shown++;
    }
    free(before);
    return shown;
}

// ---- the whole ----

static void print_made(FILE *out, const Explain *e)
{
    fprintf(out, "  elaborated: ");
    bool first = true;
    for (uint32_t op = 0; op < OP_COUNT; op++)
        if (e->made[op]) {
            fprintf(out, "%s%s", first ? "" : ", ", op_info[op].name);
            if (e->made[op] > 1)
                fprintf(out, " x %u", e->made[op]);
            first = false;
        }
    fputc('\n', out);
}

int explain_end(FILE *out, Explain *e, const Work *const *plans, uint32_t count,
                const ExplainFigures *figures)
{
    if (!e->file || !e->text) {
        fprintf(stderr,
                e->file ? "pvdmc: error: '%s' has no line %u\n"
                        : "pvdmc: error: '%s' is no file of this model (line %u)\n",
                e->path, e->line);
        return 1;
    }
    fprintf(out, "%s:%u: %s\n", e->path, e->line, e->text);
    if (e->made_total == 0) {
        fprintf(out, "  no operation comes from this line: it declares something, or what it says "
                     "was decided\n  when the model was read\n");
        return 0;
    }
    print_made(out, e);
    fprintf(out, "  batch %g; predicted by the roofline of %g GB/s and %g GFLOP/s%s\n",
            figures->batch, figures->bytes_per_second * 1e-9, figures->flops_per_second * 1e-9,
            figures->stated ? "" : " (a guess; --machine GB/S,GFLOP/S states them)");
    if (explain_plans(out, e, plans, count, figures) == 0)
        fprintf(out, "\nnothing of it is left: it was folded, or no result needs it\n");
    return 0;
}
