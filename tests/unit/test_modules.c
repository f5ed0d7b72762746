// link: pvdm_compiler
// The models of models/ through the passes on modules: elaborated, differentiated, simplified;
// after each pass every invariant holds and the printed module is read back as it was.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/program.h"

static char *module_text(const Module *module)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    print_module(out, module);
    fclose(out);
    return text;
}

static void check(const Module *module)
{
    verify_module(module);
    char error[256] = "", *text = module_text(module);
    Arena *arena = arena_new();
    Module *copy = read_module(arena, text, error, sizeof error);
    if (!copy)
        fail_msg("%s", error);
    verify_module(copy);
    char *again = module_text(copy);
    assert_true(strcmp(text, again) == 0);
    free(text);
    free(again);
    arena_free(arena);
}

static Module *load(Arena *arena, const char *path)
{
    Sources *sources = sources_new(arena);
    diag_init(sources, stderr);
    ElabOptions options = {.path = path, .real = DT_F32};
    Module *module = elaborate(arena, sources, &options);
    diag_flush();
    assert_non_null(module);
    return module;
}

// Elaboration keeps lists beside its arena until the process ends.
static Arena *kept[4];

static void every_pass_keeps_the_invariants(void **state)
{
    (void)state;
    static const char *const paths[] = {"models/pvdm-tiny.model", "models/pvdm-concat.model",
                                        "models/planes-dit.model"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        kept[i] = arena_new();
        Module *module = load(kept[i], paths[i]);
        assert_true(module->entry_count > 0);
        check(module);
        grad_module(module);
        check(module);
        simplify_module(module);
        check(module);
    }
}

// ---- values before and after simplification ----

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 40;
}

// Any values, the same for the same node: reals within +-1/4, integers from 0 up.
static void *any_value(void *context, const Node *node, const Type *type)
{
    (void)context;
    Dim count;
    type_count(type, &count);
    uint64_t random = (uint64_t)node->op * 977 + (uint64_t)node->attr->n[0] * 31 +
                      (uint64_t)node->attr->n[1];
    char *data = calloc((size_t)count.n, dtype_size(type->dtype));
    for (int64_t i = 0; i < count.n; i++) {
        double value = (double)next_random(&random) / 0x1p25 - 0.25;
        if (type->dtype == DT_F32)
            ((float *)data)[i] = (float)value;
        else if (type->dtype == DT_I64)
            ((int64_t *)data)[i] = (int64_t)next_random(&random) % 900 + 50;
        else
            data[i] = node->op != OP_GIVEN || node->attr->n[1] % 2;
    }
    return data;
}

static const Entry *find_entry(const Module *module, const char *name)
{
    for (uint32_t i = 0; i < module->entry_count; i++)
        if (!strcmp(module->entries[i].name, name))
            return &module->entries[i];
    fail_msg("no entry '%s'", name);
    return NULL;
}

// The first result of the entry's first variant.
static float *values_of(Module *module, const char *name, size_t *count)
{
    InterpOptions options = {.batch = 1, .real = DT_F32, .source = any_value};
    Val val = find_entry(module, name)->variants[0].outputs[0].val;
    void *result;
    if (interp_run(module->graph, &options, &val, 1, &result))
        fail_msg("%s: %s", name, graph_error(module->graph));
    Dim dim;
    type_count(val_type(module->graph, val), &dim);
    *count = (size_t)dim.n;
    return result;
}

static void simplification_keeps_values(void **state)
{
    (void)state;
    kept[3] = arena_new();
    Module *module = load(kept[3], "models/pvdm-tiny.model");
    static const char *const names[] = {"denoise", "ddim_step", "extract", "decode"};
    enum { COUNT = sizeof names / sizeof names[0] };
    float *before[COUNT];
    size_t count;
    for (int i = 0; i < COUNT; i++)
        before[i] = values_of(module, names[i], &count);
    simplify_module(module);
    for (int i = 0; i < COUNT; i++) {
        float *after = values_of(module, names[i], &count);
        double worst = 0, size = 0;
        for (size_t j = 0; j < count; j++) {
            worst = fmax(worst, fabs((double)(after[j] - before[i][j])));
            size = fmax(size, fabs((double)after[j]));
        }
        if (!(worst <= 1e-5 * size && size > 0))
            fail_msg("%s: %g off, of %g", names[i], worst, size);
        free(before[i]);
        free(after);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pass_keeps_the_invariants),
        cmocka_unit_test(simplification_keeps_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
