// Variables, losses of them and central differences, in f64 through the reference evaluator: what
// tests of gradients check a graph's gradient with. To be included behind cmocka.
#ifndef PVDM_TESTS_GRADIENT_BENCH_H
#define PVDM_TESTS_GRADIENT_BENCH_H

#include "compiler/compose.h"
#include "compiler/program.h"

enum { MAX_VARS = 6, BATCH = 2 };

// A graph under test: variables (inputs with values) and what is made of them.
typedef struct {
    Graph *graph;
    Val var[MAX_VARS];
    double *data[MAX_VARS];
    size_t size[MAX_VARS];
    uint32_t count;
    uint64_t seed;
} Bench;

static double next_uniform(Bench *bench)
{
    bench->seed = bench->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(bench->seed >> 11) / (double)(UINT64_C(1) << 53);
}

// An input with values between lo and hi; a negative size -n is n * b.
static Val variable(Bench *bench, double lo, double hi, uint32_t rank, const int64_t *dims)
{
    Dim dim[MAX_RANK];
    size_t size = 1;
    for (uint32_t i = 0; i < rank; i++) {
        dim[i] = dims[i] < 0 ? dim_batch(-dims[i]) : dim_fixed(dims[i]);
        size *= (size_t)(dims[i] < 0 ? -dims[i] * BATCH : dims[i]);
    }
    uint32_t index = bench->count++;
    assert_true(index < MAX_VARS);
    Type type = type_make(DT_F64, rank, dim);
    Attr attr = {.n = {0, index}, .count = 2, .text = "x"};
    bench->var[index] = graph_make(bench->graph, OP_INPUT, NULL, 0, &attr, &type);
    bench->size[index] = size;
    bench->data[index] = malloc(size * sizeof(double));
    for (size_t i = 0; i < size; i++)
        bench->data[index][i] = lo + (hi - lo) * next_uniform(bench);
    return bench->var[index];
}
#define DIMS(...)                                                                                  \
    sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[])                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static void *give_source(void *context, const Node *node, const Type *type)
{
    Bench *bench = context;
    (void)type;
    if (node->op != OP_INPUT)
        return NULL;
    size_t size = bench->size[node->attr->n[1]] * sizeof(double);
    void *copy = malloc(size);
    memcpy(copy, bench->data[node->attr->n[1]], size);
    return copy;
}

static void run(Bench *bench, const Val *vals, uint32_t count, void **results)
{
    InterpOptions options = {
        .batch = BATCH, .real = DT_F64, .source = give_source, .context = bench};
    if (interp_run(bench->graph, &options, vals, count, results) != 0)
        fail_msg("%s", graph_error(bench->graph));
}

static double loss_at(Bench *bench, Val loss)
{
    void *result;
    run(bench, &loss, 1, &result);
    double value = *(double *)result;
    free(result);
    return value;
}

// sum(y * w), w constant and irregular.
static Val weigh(Bench *bench, Val y)
{
    const Type *type = val_type(bench->graph, y);
    uint32_t rank = type->rank;
    Dim dim[MAX_RANK];
    double weights[4096];
    size_t size = 1;
    for (uint32_t i = 0; i < rank; i++) {
        dim[i] = type->dim[i].batch ? dim_fixed(1) : type->dim[i];
        size *= (size_t)dim[i].n;
    }
    assert_true(size <= 4096);
    for (size_t i = 0; i < size; i++)
        weights[i] = 0.5 + next_uniform(bench);
    Type table = type_make(DT_F64, rank, dim);
    return compose_sum(bench->graph,
                       g_binary(bench->graph, OP_MUL, y, g_table(bench->graph, &table, weights)));
}

static void check_gradients(Bench *bench, const char *name, Val loss)
{
    Val grads[MAX_VARS];
    void *results[MAX_VARS];
    grad_build(bench->graph, loss, 0, bench->var, bench->count, grads);
    for (uint32_t v = 0; v < bench->count; v++) {
        if (!grads[v])
            fail_msg("%s: no gradient of variable %u", name, v);
        assert_true(
            type_equal(val_type(bench->graph, grads[v]), val_type(bench->graph, bench->var[v])));
    }
    run(bench, grads, bench->count, results);
    for (uint32_t v = 0; v < bench->count; v++) {
        for (size_t i = 0; i < bench->size[v]; i++) {
            double *x = &bench->data[v][i], at = *x;
            const double h = 1e-5;
            *x = at + h;
            double above = loss_at(bench, loss);
            *x = at - h;
            double below = loss_at(bench, loss);
            *x = at;
            double want = (above - below) / (2 * h), have = ((double *)results[v])[i];
            if (!(fabs(have - want) <= 1e-6 * fmax(1, fabs(want))))
                fail_msg("%s: variable %u, element %zu: %.9g, by differences %.9g", name, v, i,
                         have, want);
        }
        free(results[v]);
    }
}

#endif
