// link: pvdm_codegen
// The memory planner and the order of groups: no two live buffers overlap, on thousands of random
// sets of intervals; packings are near the largest live set; groups come after what they read.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "codegen/codegen.h"

static uint64_t state = 88172645463325252u;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static int64_t random_below(int64_t limit)
{
    return (int64_t)(next_random() % (uint64_t)limit);
}

static void check_packing(const Interval *items, uint32_t count, int64_t total)
{
    for (uint32_t i = 0; i < count; i++) {
        assert_true(items[i].offset >= 0 && items[i].offset + items[i].size <= total);
        assert_int_equal(items[i].offset % 256, 0);
        for (uint32_t k = 0; k < i; k++) {
            bool together = items[i].first <= items[k].last && items[k].first <= items[i].last;
            bool apart = items[i].offset + items[i].size <= items[k].offset ||
                         items[k].offset + items[k].size <= items[i].offset;
            assert_true(!together || apart);
        }
    }
}

// Lives as those of a network: mostly short ones, some as long as a skip connection.
static uint32_t random_lives(Interval *items, uint32_t most)
{
    uint32_t count = 1 + (uint32_t)random_below(most);
    int32_t first = 0;
    for (uint32_t i = 0; i < count; i++) {
        first += (int32_t)random_below(3);
        int64_t life = random_below(8) ? 1 + random_below(4) : 1 + random_below((int64_t)count * 2);
        int64_t size = random_below(4) ? 1 + random_below(16) : 1 + random_below(200);
        items[i] = (Interval){.size = 256 * size, .first = first, .last = first + (int32_t)life};
    }
    return count;
}

static void test_no_overlap(void **unused)
{
    (void)unused;
    Interval items[120];
    double worst = 1, sum = 0;
    int rounds = 3000;
    for (int round = 0; round < rounds; round++) {
        Arena *arena = arena_new();
        uint32_t count = random_lives(items, 120);
        int64_t total = pack_intervals(arena, items, count);
        int64_t bound = live_bound(arena, items, count);
        check_packing(items, count, total);
        assert_true(total >= bound);
        double share = (double)bound / (double)total;
        worst = share < worst ? share : worst;
        sum += share;
        arena_free(arena);
    }
    print_message("packing: mean %.4f, worst %.4f of the largest live set\n", sum / rounds, worst);
    assert_true(sum / rounds >= 0.98);
    assert_true(worst >= 0.85);
}

static void test_known_packings(void **unused)
{
    (void)unused;
    Arena *arena = arena_new();
    Interval chain[] = {{256, 0, 0, 1}, {256, 0, 1, 2}, {256, 0, 2, 3}, {256, 0, 3, 4}};
    assert_int_equal(pack_intervals(arena, chain, 4), 512);
    check_packing(chain, 4, 512);
    Interval alone = {1024, 0, 5, 9};
    assert_int_equal(pack_intervals(arena, &alone, 1), 1024);
    assert_int_equal(pack_intervals(arena, NULL, 0), 0);
    arena_free(arena);
}

// ---- random graphs through all passes ----

typedef struct {
    Module module;
    Entry entry;
    Variant variant;
    Output outputs[4];
    Input input;
} Sample;

static Val random_node(Graph *graph, const Val *vals, uint32_t count)
{
    static const uint32_t perm[] = {0, 2, 1};
    static const Op unary[] = {OP_NEG, OP_EXP, OP_TANH, OP_RELU, OP_SILU};
    static const Op binary[] = {OP_ADD, OP_MUL, OP_SUB, OP_MAX};
    Val x = vals[random_below(count)], y = vals[random_below(count)];
    switch (random_below(7)) {
    case 0: return g_unary(graph, unary[random_below(5)], x);
    case 1: case 2: return g_binary(graph, binary[random_below(4)], x, y);
    case 3: return g_transpose(graph, g_unary(graph, OP_NEG, x), perm);
    case 4: return g_contract(graph, x, y, "bik", "bkj", "bij");
    case 5: return g_binary(graph, OP_ADD, x, g_reduce(graph, OP_REDUCE_SUM, y, 4));
    default: {
        Val halves[2] = {g_slice(graph, x, 2, 4, 4), g_slice(graph, y, 2, 0, 4)};
        return g_concat(graph, halves, 2, 2);
    }
    }
}

static void make_sample(Sample *sample, Arena *arena, uint32_t nodes)
{
    memset(sample, 0, sizeof *sample);
    Graph *graph = graph_new(arena);
    Dim dim[] = {dim_batch(1), dim_fixed(8), dim_fixed(8)};
    Type type = type_make(DT_F32, 3, dim);
    Attr attr = {.n = {0, 0}, .count = 2, .text = intern("x")};
    Val *vals = arena_alloc(arena, (nodes + 1) * sizeof *vals);
    vals[0] = graph_make(graph, OP_INPUT, NULL, 0, &attr, &type);
    for (uint32_t i = 1; i <= nodes; i++)
        vals[i] = random_node(graph, vals, i);
    for (uint32_t i = 0; i < 4; i++)
        sample->outputs[i] = (Output){OUT_NAMED, arena_printf(arena, "y%u", i), 0, vals[nodes - i]};
    sample->variant = (Variant){.outputs = sample->outputs, .output_count = 4};
    sample->input = (Input){"x", type, false};
    sample->entry = (Entry){.kind = ENTRY_PROGRAM, .name = "sample", .inputs = &sample->input,
                            .input_count = 1, .variants = &sample->variant, .variant_count = 1};
    sample->module = (Module){.path = "", .name = "sample", .arena = arena, .graph = graph,
                              .real = DT_F32, .entries = &sample->entry, .entry_count = 1};
}

// Every group comes after the groups that store what it reads.
static void check_order(const Work *work)
{
    bool *stored = calloc((size_t)work->count * MAX_OUT + 1, sizeof *stored);
    for (uint32_t i = 0; i < work->group_count; i++) {
        const Group *group = &work->groups[work->schedule[i]];
        for (uint32_t k = 0; k < group->read_count; k++) {
            Val base = view_of(work, group->reads[k]).base;
            Op op = val_get(work->module->graph, base)->op;
            if (op != OP_INPUT && op != OP_CONST)
                assert_true(stored[local_of(work, base) * MAX_OUT + val_out(base)]);
        }
        for (uint32_t k = 0; k < group->result_count; k++)
            if (group->results[k])
                stored[local_of(work, group->results[k]) * MAX_OUT + val_out(group->results[k])] =
                    true;
    }
    free(stored);
}

// Arena ranges of buffers that live at once do not overlap.
static void check_buffers(const Work *work)
{
    for (uint32_t i = 0; i < work->buffer_count; i++)
        for (uint32_t k = 0; k < i; k++) {
            const Buffer *x = &work->buffers[i], *y = &work->buffers[k];
            if (x->alias || y->alias || x->batch != y->batch || x->first < 0 || y->first < 0)
                continue;
            bool together = x->first <= y->last && y->first <= x->last;
            bool apart = x->offset + x->bytes <= y->offset || y->offset + y->bytes <= x->offset;
            assert_true(!together || apart);
        }
}

static void release(const Work *work, const Codegen *cg)
{
    free(work->launches);
    free(work->args);
    free(work->buffers);
    free(work->scalars);
    free(cg->kernels);
    free(cg->data);
    free(cg->data_items);
}

static void test_random_graphs(void **unused)
{
    (void)unused;
    for (int round = 0; round < 400; round++) {
        Arena *arena = arena_new();
        Sample sample;
        make_sample(&sample, arena, 5 + (uint32_t)random_below(60));
        sample.module.storage = round / 3 % 2 ? DT_BF16 : DT_NONE;
        Codegen *cg = codegen_new(&sample.module, NULL, "native");
        Work work = {.module = &sample.module, .entry = &sample.entry, .variant = &sample.variant,
                     .level = round % 3, .rungs = level_rungs(round % 3), .arena = arena};
        find_layout(&work);
        fuse_groups(&work);
        schedule_groups(&work);
        if (work.level == 2) {
            work.budget = round % 2;       // as small as can be
            work.budget_batch = 2;
            recompute_groups(&work);
        }
        batch_groups(&work);
        lower_groups(cg, &work);
        plan_memory(&work);
        check_order(&work);
        check_buffers(&work);
        assert_true(work.arena_batch >= work.live_batch);
        release(&work, cg);
        arena_free(arena);
    }
}

// A chain of elementwise nodes is one kernel; at -O0 one for each.
static void test_chain_fuses(void **unused)
{
    (void)unused;
    Arena *arena = arena_new();
    Sample sample;
    make_sample(&sample, arena, 4);
    Graph *graph = sample.module.graph;
    Val x = val_of(1, 0), chain = x;
    for (int i = 0; i < 5; i++)
        chain = g_binary(graph, OP_ADD, g_unary(graph, OP_TANH, chain), x);
    sample.outputs[0].val = chain;
    sample.variant.output_count = 1;
    for (int level = 0; level < 3; level++) {
        Work work = {.module = &sample.module, .entry = &sample.entry, .variant = &sample.variant,
                     .level = level, .rungs = level_rungs(level), .arena = arena};
        find_layout(&work);
        fuse_groups(&work);
        schedule_groups(&work);
        assert_int_equal(work.group_count, level == 0 ? 10 : 1);
    }
    arena_free(arena);
}

// sum over i of x' tanh^i(x), products that sum over the batch.
static Val sum_of_products(Graph *graph, int count)
{
    Val x = val_of(1, 0), factor = x, sum = 0;
    for (int i = 0; i < count; i++) {
        Val product = g_contract(graph, x, factor, "bik", "bkj", "ij");
        sum = i ? g_binary(graph, OP_ADD, sum, product) : product;
        factor = g_unary(graph, OP_TANH, factor);
    }
    return sum;
}

// A sum of products is no kernel of its own: each adds to the one before it, in its place.
static void test_sums_of_products(void **unused)
{
    (void)unused;
    Arena *arena = arena_new();
    Sample sample;
    make_sample(&sample, arena, 4);
    sample.outputs[0].val = sum_of_products(sample.module.graph, 3);
    sample.variant.output_count = 1;
    Codegen *cg = codegen_new(&sample.module, NULL, "native");
    Work work = {.module = &sample.module, .entry = &sample.entry, .variant = &sample.variant,
                 .level = 1, .rungs = RUNG_ALL & ~RUNG_BATCHING, .arena = arena};
    find_layout(&work);
    fuse_groups(&work);
    schedule_groups(&work);
    uint32_t residuals = 0, products = 0;
    for (uint32_t i = 0; i < work.group_count; i++) {
        const Group *group = &work.groups[work.schedule[i]];
        residuals += group->residual != 0;
        products += group->kind == GROUP_LIBRARY;
    }
    assert_int_equal(products, 3);
    assert_int_equal(residuals, 2);
    lower_groups(cg, &work);
    plan_memory(&work);
    check_buffers(&work);
    assert_int_equal(work.arena_fixed, 8 * 8 * 4);
    release(&work, cg);
    arena_free(arena);
}

// With sibling batching it is one launch: a segment for each, eight at most, which the kernel adds.
static void test_sums_are_launches(void **unused)
{
    (void)unused;
    static const int64_t sums[10] = {7, -1, -1, -1, -1, -1, -1, -1, 1, -1};
    Arena *arena = arena_new();
    Sample sample;
    make_sample(&sample, arena, 4);
    sample.outputs[0].val = sum_of_products(sample.module.graph, 10);
    sample.variant.output_count = 1;
    Codegen *cg = codegen_new(&sample.module, NULL, "native");
    Work work = {.module = &sample.module, .entry = &sample.entry, .variant = &sample.variant,
                 .level = 2, .rungs = RUNG_ALL, .arena = arena};
    find_layout(&work);
    fuse_groups(&work);
    schedule_groups(&work);
    check_order(&work);
    batch_groups(&work);
    lower_groups(cg, &work);
    plan_memory(&work);
    check_buffers(&work);
    uint32_t launches = 0, seen[2] = {0, 0};
    for (uint32_t i = 0; i < work.launch_count; i++) {
        const PlanLaunch *launch = &work.launches[i];
        if (strcmp(cg->kernels[launch->kernel].symbol, "pv_gemm") != 0)
            continue;
        uint32_t of = launch->segments == 8 ? 0 : 1;
        for (uint32_t k = 0; k < launch->segments; k++) {
            const PlanArg *args = &work.args[launch->arg + k * sizeof(GemmArgs) / 8];
            assert_int_equal(args[ARG(GemmArgs, sum)].a, sums[8 * of + k]);
            assert_true((args[ARG(GemmArgs, residual)].space != PV_VALUE) ==
                        (k == 0 && launches > 0));
            seen[of]++;
        }
        launches++;
    }
    assert_int_equal(launches, 2);
    assert_int_equal(seen[0], 8);
    assert_int_equal(seen[1], 2);
    release(&work, cg);
    arena_free(arena);
}

// What waits for a backward pass, and is cheap, is made a second time; nothing else is.
static void test_recompute(void **unused)
{
    (void)unused;
    Arena *arena = arena_new();
    Sample sample;
    make_sample(&sample, arena, 4);
    Graph *graph = sample.module.graph;
    Val product[6], active[6], back = val_of(1, 0);
    for (int i = 0; i < 6; i++) {
        product[i] = g_contract(graph, i ? active[i - 1] : back, val_of(1, 0), "bik", "bkj", "bij");
        active[i] = g_unary(graph, OP_SILU, product[i]);
    }
    for (int i = 6; i-- > 0;)      // both are read again, in reverse
        back = g_contract(graph, g_contract(graph, back, active[i], "bik", "bkj", "bij"),
                          product[i], "bik", "bkj", "bij");
    sample.outputs[0].val = back;
    sample.variant.output_count = 1;
    Work work = {.module = &sample.module, .entry = &sample.entry, .variant = &sample.variant,
                 .level = 2, .rungs = RUNG_ALL, .arena = arena};
    find_layout(&work);
    fuse_groups(&work);
    schedule_groups(&work);
    uint32_t before = work.group_count, times[2] = {0, 0};
    recompute_groups(&work);
    check_order(&work);
    assert_true(work.group_count > before);
    for (uint32_t i = 0; i < work.group_count; i++)
        times[work.groups[work.schedule[i]].kind == GROUP_LIBRARY]++;
    assert_int_equal(times[1], 6 + 12);
    assert_int_equal(times[0], work.group_count - 18);
    arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_overlap),
        cmocka_unit_test(test_known_packings),
        cmocka_unit_test(test_random_graphs),
        cmocka_unit_test(test_chain_fuses),
        cmocka_unit_test(test_sums_of_products),
        cmocka_unit_test(test_sums_are_launches),
        cmocka_unit_test(test_recompute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
