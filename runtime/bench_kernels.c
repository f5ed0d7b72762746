// The launches of a ladder's last rung, timed one by one: grouped by what they compute and the line
// of the model they come from, and as a graph.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/bench.h"

enum { RUNS = 3 };

const char *pv_bench_family(const char *kernel)
{
    static const struct {
        const char *part, *family;
    } known[] = {
        {"gemm", "matmul"},     {"conv", "conv"},       {"attention", "attention"},
        {"norm", "norm"},       {"softmax", "norm"},    {"reduce", "reduce"},
        {"copy", "movement"},   {"fill", "movement"},   {"pick", "movement"},
        {"gather", "movement"}, {"random", "movement"},
    };
    static const char *const library[] = {
        "gemm",           "conv",       "conv_dgrad",      "conv_wgrad", "attention",
        "attention_grad", "group_norm", "group_norm_grad", "layer_norm", "layer_norm_grad",
        "softmax",        "reduce",     "reduce_int",      "copy",       "copy_to",
        "fill",           "pick",       "pick_grad",       "gather",     "gather_grad",
        "random"};
    bool ours = false;
    for (size_t i = 0; i < sizeof library / sizeof *library; i++)
        ours |= strcmp(library[i], kernel) == 0;
    for (size_t i = 0; ours && i < sizeof known / sizeof *known; i++)
        if (strstr(kernel, known[i].part))
            return known[i].family;
    return "elementwise";
}

// "unet.model:20" of "unet.model:20 unet.out.2"; *path: the rest.
static char *origin_line(const char *origin, const char **path)
{
    size_t length = strcspn(origin, " ");
    bool line = memchr(origin, ':', length) != NULL;
    *path = line ? origin + length + (origin[length] == ' ') : origin;
    return line ? pv_printf("%.*s", (int)length, origin) : pv_strdup("");
}

typedef struct {
    uint32_t kernel;
    const char *label;
    char *line;
    const char *path; // of the first launch
    int64_t launches, segments;
    double seconds, flops, bytes, predicted;
} KernelRow;

typedef struct {
    KernelRow *rows;
    size_t count, capacity;
} Rows;

// The row of a launch, made if it is the first of its kind.
static uint32_t find_row(Rows *rows, const PvModel *model, const PvLaunch *at)
{
    const char *path, *label = model->labels[at->origin];
    char *line = origin_line(model->origins[at->origin], &path);
    for (size_t i = 0; i < rows->count; i++)
        if (rows->rows[i].kernel == at->kernel && strcmp(rows->rows[i].label, label) == 0 &&
            strcmp(rows->rows[i].line, line) == 0) {
            free(line);
            return (uint32_t)i;
        }
    rows->rows = pv_grow(rows->rows, &rows->capacity, rows->count, sizeof *rows->rows);
    rows->rows[rows->count] =
        (KernelRow){.kernel = at->kernel, .label = label, .line = line, .path = path};
    return (uint32_t)rows->count++;
}

static json_t *row_json(const KernelRow *row, const PvModel *model)
{
    const char *kernel = model->kernels[row->kernel].name;
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:f}", "kernel", kernel,
                     "family", pv_bench_family(kernel), "computes",
                     *row->label ? row->label : kernel, "line", row->line, "path", row->path,
                     "launches", (json_int_t)row->launches, "segments", (json_int_t)row->segments,
                     "seconds", row->seconds, "flops", row->flops, "bytes", row->bytes,
                     "predicted_seconds", row->predicted);
}

// One plan's launches into the rows and the graph; `base`: launches of the plans before.
static bool add_plan(PvBenchCase *at, uint32_t call, const PvRates *rates, Rows *rows,
                     json_t *nodes, json_t *edges, PvError *error)
{
    PvExec *exec = at->session->exec;
    const PvModel *model = exec->model;
    const PvPlan *plan = pv_bench_plan(at, call, pv_bench_rungs(at) - 1);
    double batch = (double)at->calls[call]->step.batch;
    json_int_t base = (json_int_t)json_array_size(nodes);
    PvPlanTimes times;
    if (!pv_exec_plan_times(exec, plan, &times, error))
        return false;
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        const PvLaunch *launch = &times.launches[i];
        uint32_t index = find_row(rows, model, launch);
        KernelRow *row = &rows->rows[index];
        double seconds = times.seconds && times.runs ? times.seconds[i] / (double)times.runs : 0;
        double flops = launch->flops_fixed + launch->flops_batch * batch;
        double bytes = launch->bytes_fixed + launch->bytes_batch * batch;
        row->launches++;
        row->segments += launch->segments;
        row->seconds += seconds;
        row->flops += flops;
        row->bytes += bytes;
        row->predicted += pv_bench_predict(rates, flops, bytes);
        const char *path;
        free(origin_line(model->origins[launch->origin], &path));
        json_array_append_new(
            nodes, json_pack("[i, f, f, f, s]", (int)index, seconds, flops, bytes, path));
    }
    for (uint32_t i = 0; i < 2 * plan->edge_count; i++)
        json_array_append_new(edges, json_integer(base + plan->edges[i]));
    return true;
}

static const KernelRow *sorted_rows; // for qsort

static int slower_first(const void *x, const void *y)
{
    uint32_t first = *(const uint32_t *)x, second = *(const uint32_t *)y;
    double difference = sorted_rows[second].seconds - sorted_rows[first].seconds;
    return difference > 0 ? 1 : difference < 0 ? -1 : (int)first - (int)second;
}

// Rows slowest first; the nodes' first numbers follow.
static json_t *sort_rows(const Rows *rows, const PvModel *model, json_t *nodes)
{
    uint32_t *order = pv_alloc((rows->count + 1) * sizeof *order);
    uint32_t *rank = pv_alloc((rows->count + 1) * sizeof *rank);
    json_t *list = json_array(), *node;
    size_t k;
    for (uint32_t i = 0; i < rows->count; i++)
        order[i] = i;
    sorted_rows = rows->rows;
    qsort(order, rows->count, sizeof *order, slower_first);
    for (uint32_t i = 0; i < rows->count; i++) {
        rank[order[i]] = i;
        json_array_append_new(list, row_json(&rows->rows[order[i]], model));
    }
    json_array_foreach(nodes, k, node)
    {
        json_t *first = json_array_get(node, 0);
        json_integer_set(first, (json_int_t)rank[json_integer_value(first)]);
    }
    free(order);
    free(rank);
    return list;
}

bool pv_bench_kernels(PvBenchCase *at, const PvRates *rates, json_t *json, PvError *error)
{
    Rows rows = {0};
    json_t *nodes = json_array(), *edges = json_array();
    pv_exec_profile(at->session->exec, true);
    bool good = true;
    for (int i = 0; good && i < RUNS; i++)
        good = pv_bench_forward(at, error);
    for (uint32_t c = 0; good && c < at->call_count; c++)
        good = add_plan(at, c, rates, &rows, nodes, edges, error);
    pv_exec_profile(at->session->exec, false);
    if (good) {
        json_object_set_new(json, "kernels", sort_rows(&rows, at->session->model, nodes));
        json_object_set_new(json, "graph",
                            json_pack("{s:O, s:O}", "launches", nodes, "edges", edges));
    }
    for (size_t i = 0; i < rows.count; i++)
        free(rows.rows[i].line);
    free(rows.rows);
    json_decref(nodes);
    json_decref(edges);
    return good;
}
