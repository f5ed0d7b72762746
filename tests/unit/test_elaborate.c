// link: pvdm_compiler
// Elaboration: names and shapes of parameters against the table of the language reference and
// against the headers of published-format files, variants, taps, training state, samplers; values
// by the reference interpreter; and the words of common errors.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compiler/program.h"

typedef struct {
    Arena *arena;
    Module *module; // NULL after errors
    char *messages;
} Made;

static Made make_file(const char *path, const char **defines, uint32_t count)
{
    Made made = {.arena = arena_new()};
    size_t size = 0;
    FILE *out = open_memstream(&made.messages, &size);
    Sources *sources = sources_new(made.arena);
    diag_init(sources, out);
    ElabOptions options = {.path = path, .defines = defines, .define_count = count, .real = DT_F32};
    made.module = elaborate(made.arena, sources, &options);
    diag_flush();
    fclose(out);
    diag_init(NULL, stderr);
    if (made.module)
        verify_module(made.module);
    return made;
}

static Made make_text(const char *text)
{
    char path[] = "/tmp/test_elaborate_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    Made made = make_file(path, NULL, 0);
    unlink(path);
    return made;
}

static void release(Made *made)
{
    arena_free(made->arena);
    free(made->messages);
}

static Made accept(const char *text)
{
    Made made = make_text(text);
    if (!made.module)
        fail_msg("refused:\n%s", made.messages);
    return made;
}

static const Param *find_param(const Module *module, const char *name)
{
    for (uint32_t i = 0; i < module->param_count; i++)
        if (strcmp(module->params[i].name, name) == 0)
            return &module->params[i];
    return NULL;
}

static const Entry *find_entry(const Module *module, const char *name)
{
    for (uint32_t i = 0; i < module->entry_count; i++)
        if (strcmp(module->entries[i].name, name) == 0)
            return &module->entries[i];
    fail_msg("no entry %s", name);
    return NULL;
}

// Output or setting `name` of a variant.
static const Output *find_output(const Variant *variant, const char *name)
{
    for (uint32_t i = 0; i < variant->output_count; i++)
        if (strcmp(variant->outputs[i].name, name) == 0)
            return &variant->outputs[i];
    return NULL;
}

static void check_param(const Module *module, const char *name, uint32_t rank, const int64_t *dim)
{
    const Param *param = find_param(module, name);
    if (!param)
        fail_msg("no parameter %s", name);
    assert_int_equal(param->type.rank, rank);
    for (uint32_t i = 0; i < rank; i++)
        assert_true(dim_equal(param->type.dim[i], dim_fixed(dim[i])));
}
#define SHAPE(module, name, ...)                                                                   \
    check_param(module, name, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t),                  \
                (int64_t[]){__VA_ARGS__})

// ---- names ----

static void names_of_the_reference(void **state)
{
    (void)state;
    Made made = make_file("models/pvdm.model", NULL, 0);
    assert_non_null(made.module);
    const Module *m = made.module;
    SHAPE(m, "ae.encoder.to_patch_embedding.weight", 384, 192);
    SHAPE(m, "ae.encoder.layers.3.1.fn.to_qkv.weight", 1536, 384);
    SHAPE(m, "ae.encoder.layers.0.2.fn.net.3.bias", 384);
    SHAPE(m, "ae.decoder.layers.7.0.norm.weight", 384);
    SHAPE(m, "ae.xy_quant_attn.layers.2.1.fn.net.0.weight", 512, 384);
    SHAPE(m, "ae.yt_quant_attn.layers.0.0.fn.to_out.0.weight", 384, 192);
    SHAPE(m, "ae.xy_pos_embedding", 1, 17, 384);
    SHAPE(m, "ae.xt_token", 1, 1, 384);
    SHAPE(m, "ae.pre_xt.weight", 4, 384, 1, 1);
    SHAPE(m, "ae.post_yt.bias", 384);
    SHAPE(m, "ae.to_pixel.1.weight", 384, 3, 8, 8);
    SHAPE(m, "unet.time_embed.2.bias", 1024);
    SHAPE(m, "unet.input_blocks.0.0.weight", 256, 8, 3, 3);
    SHAPE(m, "unet.input_blocks.1.1.qkv.weight", 768, 256, 1);
    SHAPE(m, "unet.input_blocks.1.0.emb_layers.1.weight", 512, 1024);
    SHAPE(m, "unet.input_blocks.3.0.in_layers.2.weight", 256, 256, 3, 3);
    SHAPE(m, "unet.input_blocks.4.0.skip_connection.weight", 512, 256, 1, 1);
    SHAPE(m, "unet.input_attns.3.proj_out.weight", 256, 256, 1);
    SHAPE(m, "unet.middle_block.1.norm.weight", 1024);
    SHAPE(m, "unet.mid_attn.qkv.bias", 3072);
    SHAPE(m, "unet.output_blocks.2.1.out_layers.3.weight", 1024, 1024, 3, 3);
    SHAPE(m, "unet.output_blocks.5.0.skip_connection.weight", 1024, 1536, 1, 1);
    SHAPE(m, "unet.output_blocks.5.1.qkv.weight", 3072, 1024, 1);
    SHAPE(m, "unet.output_blocks.5.2.out_layers.3.weight", 1024, 1024, 3, 3);
    SHAPE(m, "unet.output_attns.11.norm.bias", 256);
    SHAPE(m, "unet.out.2.weight", 4, 256, 3, 3);
    SHAPE(m, "discriminator_2d.model0.0.weight", 64, 3, 4, 4);
    SHAPE(m, "discriminator_3d.model0.0.weight", 64, 3, 4, 4, 4);
    SHAPE(m, "discriminator_2d.model1.1.running_var", 128);
    SHAPE(m, "discriminator_2d.model4.0.bias", 1);
    SHAPE(m, "lpips.net.features.28.weight", 512, 512, 3, 3);
    SHAPE(m, "lpips.lin4.model.1.weight", 1, 512, 1, 1);
    assert_null(find_param(m, "unet.input_attns.0.weight"));
    release(&made);

    const char *plain[] = {"resblock_updown=false"};
    made = make_file("models/pvdm.model", plain, 1);
    assert_non_null(made.module);
    SHAPE(made.module, "unet.input_blocks.3.0.op.weight", 256, 256, 3, 3);
    SHAPE(made.module, "unet.output_blocks.2.1.conv.weight", 1024, 1024, 3, 3);
    SHAPE(made.module, "unet.output_blocks.5.2.conv.weight", 1024, 1024, 3, 3);
    release(&made);
}

static bool ignores(const Instance *instance, const char *name)
{
    for (uint32_t i = 0; i < instance->ignored_count; i++)
        if (strcmp(instance->ignored[i], name) == 0)
            return true;
    return false;
}

// Every `prefix`NAME of the file is parameter instance.NAME with that shape, or ignored; and
// every parameter of the instance is in the file.
static void check_header(const Module *module, const char *path, const char *prefix,
                         const char *instance_name)
{
    FILE *file = fopen(path, "rb");
    uint64_t size = 0;
    if (!file || fread(&size, 8, 1, file) != 1)
        fail_msg("cannot read %s", path);
    char *text = calloc(1, size + 1);
    assert_int_equal(fread(text, 1, size, file), size);
    fclose(file);
    const Instance *instance = NULL;
    for (uint32_t i = 0; i < module->instance_count; i++)
        if (strcmp(module->instances[i].name, instance_name) == 0)
            instance = &module->instances[i];
    assert_non_null(instance);
    uint32_t found = 0;
    char quoted[80];
    snprintf(quoted, sizeof quoted, "\"%s", prefix);
    for (const char *at = strstr(text, quoted); at; at = strstr(at + 1, quoted)) {
        const char *name = at + strlen(quoted), *end = strchr(name, '"');
        if (strncmp(end, "\":{", 3) != 0 && strncmp(end, "\": {", 4) != 0)
            continue;
        char *own = strndup(name, (size_t)(end - name));
        char full[256];
        snprintf(full, sizeof full, "%s.%s", instance_name, own);
        const Param *param = find_param(module, full);
        if (!param && !ignores(instance, own))
            fail_msg("%s is neither a parameter nor ignored", full);
        free(own);
        if (!param)
            continue;
        found++;
        const char *shape = strchr(strstr(end, "\"shape\""), '[') + 1;
        for (uint32_t i = 0; i < param->type.rank; i++) {
            char *next;
            if (!dim_equal(param->type.dim[i], dim_fixed(strtol(shape, &next, 10))))
                fail_msg("%s: axis %u", full, i);
            shape = next + strspn(next, ", ");
        }
        assert_int_equal(*shape, ']');
    }
    assert_int_equal(found, instance->count);
    free(text);
}

static void names_of_published_files(void **state)
{
    (void)state;
    const char *small[] = {"resolution=64",       "channels=64",      "model_channels=32",
                           "channel_mult=[1, 2]", "num_res_blocks=1", "ndf=16"};
    Made made = make_file("models/pvdm.model", small, 6);
    assert_non_null(made.module);
    check_header(made.module, "tests/golden/ae_r64_c64.safetensors", "weights.", "ae");
    check_header(made.module, "tests/golden/lpips_disc.safetensors", "weights.disc2d.",
                 "discriminator_2d");
    check_header(made.module, "tests/golden/lpips_disc.safetensors", "weights.disc3d.",
                 "discriminator_3d");
    check_header(made.module, "tests/golden/unet_c32.safetensors", "weights.", "unet");
    release(&made);
}

static void one_parameter_one_name(void **state)
{
    (void)state;
    Made made =
        accept("module Tied(c) {\n"
               "    shared = Linear(c, c)\n"
               "    stack = [norm: LayerNorm(c), fn: [shared, silu, Linear(c, c, bias: false)]]\n"
               "    again = shared\n"
               "    scale = Param([c], init: full(_, 2.0))\n"
               "    count = 3\n"
               "    ignore \"table\"\n"
               "    def forward(x: [b, c]) = stack(x) + again(x) * rearrange(scale, \"c -> 1 c\")\n"
               "}\n"
               "module Outer { part = Tied(4)\n"
               "    def forward(x) = part(x) }\n"
               "model net = Outer\n"
               "model list = [Linear(4, 4, init: zeros), \"named\": Linear(4, 4)]\n"
               "program run(x: [b, 4]) -> y = list(net(x))\n");
    static const char *const names[] = {"net.part.shared.weight",
                                        "net.part.shared.bias",
                                        "net.part.stack.norm.weight",
                                        "net.part.stack.norm.bias",
                                        "net.part.stack.fn.2.weight",
                                        "net.part.scale",
                                        "list.0.weight",
                                        "list.0.bias",
                                        "list.named.weight",
                                        "list.named.bias"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_string_equal(made.module->params[i].name, names[i]);
    assert_int_equal(made.module->instances[0].count, 6);
    assert_string_equal(made.module->instances[0].ignored[0], "part.table");
    assert_int_equal(made.module->params[5].init, INIT_FULL);
    assert_true(made.module->params[5].init_a == 2);
    assert_int_equal(made.module->params[6].init, INIT_ZEROS);
    assert_int_equal(made.module->params[7].init, INIT_ZEROS); // the weight's zeros are its too
    assert_true(fabs(made.module->params[0].init_b - 0.5) < 1e-12);
    release(&made);
}

// ---- variants, taps, state ----

static void variants_of_pvdm(void **state)
{
    (void)state;
    Made made = make_file("models/pvdm-tiny.model", NULL, 0);
    assert_non_null(made.module);
    static const struct {
        const char *name;
        uint32_t count;
    } entries[] = {
        {"denoise", 1},     {"diffusion_loss", 2},      {"ddim_step", 6},
        {"ddpm_step", 6},   {"grad.diffusion_loss", 2}, {"grad.reconstruction_loss", 1},
        {"diffusion.0", 2},
    };
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        assert_int_equal(find_entry(made.module, entries[i].name)->variant_count, entries[i].count);
    const Entry *step = find_entry(made.module, "ddim_step");
    uint32_t given = 0;
    for (uint32_t i = 0; i < step->variant_count; i++)
        given += (step->variants[i].given >> 1) & 1;
    assert_int_equal(given, 4); // guidance 0 or not, last step or not
    release(&made);
}

static bool has_tap(const Variant *variant, const char *name)
{
    for (uint32_t i = 0; i < variant->tap_count; i++)
        if (strcmp(variant->taps[i].name, name) == 0)
            return true;
    return false;
}

static void earlier_answers_are_used(void **state)
{
    (void)state;
    Made made =
        accept("option o = 1\noption r = 0.5\n"
               "program points(x: [b, 4]) -> y {\n"
               "    if o == 0 { return x }\n    if o == 1 { return if o == 0 then x else 2 * x }\n"
               "    if o != 0 { return 3 * x }\n    return 4 * x\n}\n"
               "program ranges(x: [b, 4], t: int) -> y {\n"
               "    if t in 0..3 { return if t >= 3 then x else if t > -1 then 2 * x else 9 * x }\n"
               "    if t < 5 { return if t <= 4 then 3 * x else 4 * x }\n"
               "    return if 5 <= t then 5 * x else 6 * x\n}\n"
               "program reals(x: [b, 4]) -> y {\n" // not r < 0 leaves r >= 0, or no number
               "    if r < 0 { return if r >= 0.5 then x else 2 * x }\n"
               "    return if r >= 0 then 3 * x else 4 * x\n}\n"
               "program joined(x: [b, 4], t: int) -> y {\n"
               "    if t == 1 and r == 0 { return if t != 1 then x else 5 * x }\n"
               "    return if t == 1 then x else 4 * x\n}\n");
    static const struct {
        const char *name;
        uint32_t count;
    } entries[] = {{"points", 3}, {"ranges", 3}, {"reals", 3}, {"joined", 3}};
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        assert_int_equal(find_entry(made.module, entries[i].name)->variant_count, entries[i].count);
    release(&made);
}

static void taps_have_paths(void **state)
{
    (void)state;
    Made made = make_file("models/pvdm-tiny.model", NULL, 0);
    assert_non_null(made.module);
    const Variant *denoise = find_entry(made.module, "denoise")->variants;
    static const char *const names[] = {"unet",
                                        "unet.input_blocks.1",
                                        "unet.input_blocks.1#2",
                                        "unet.input_blocks.1#3",
                                        "unet.mid_attn",
                                        "unet.time_embed",
                                        "unet.time_embed.1",
                                        "unet.input_blocks.1.0.y",
                                        "unet.out.2#3",
                                        "unet.input_blocks.1.0.out_layers.1",
                                        "timestep_embedding",
                                        "timestep_embedding.angle",
                                        "unet.ys.0",
                                        "jointly.0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!has_tap(denoise, names[i]))
            fail_msg("no tap %s", names[i]);
    assert_false(has_tap(denoise, "unet.input_blocks.1#4"));
    assert_true(has_tap(find_entry(made.module, "extract")->variants, "ae.extract"));
    release(&made);
}

static void training_blocks(void **state)
{
    (void)state;
    Made made = accept(
        "model net = [Linear(4, 4), BatchNorm(4)]\n"
        "model still = [BatchNorm(4), dropout(_, 0.5)]\n"
        "program score(x: [b, 4]) -> loss = mean(net(x) ^ 2)\n"
        "train fit {\n"
        "    option batch = 3\n"
        "    option warm = [10, 20]\n"
        "    data x: [b, 3, 4, 4] = images()\n"
        "    flat = mean(x, \"b c h w -> b h\")\n"
        "    minimize net with adamw(1e-3 * min(1, step / 10), weight_decay: warm[1]), clip: 2 {\n"
        "        y = net(net(flat))\n"
        "        size = mean(y)\n"
        "        report size\n"
        "        return mean(abs(y - still(flat)))\n"
        "    }\n"
        "    minimize net with sgd(0.1), accumulate: 2, ema: 0.99 { return score(flat) }\n"
        "}\n");
    const Module *m = made.module;
    assert_int_equal(m->stage_count, 1);
    const Stage *stage = &m->stages[0];
    assert_string_equal(stage->source, "images");
    assert_int_equal(stage->height, 4);
    assert_int_equal(stage->minimize_count, 2);
    assert_int_equal(m->option_count, 6); // batch is declared; four more are implied, and warm
    assert_true(m->options[0].value[0] == 3);
    const Variant *first = m->entries[stage->minimize[0].entry].variants;
    static const char *const names[] = {"loss",
                                        "size",
                                        "lr",
                                        "beta1",
                                        "beta2",
                                        "eps",
                                        "weight_decay",
                                        "clip",
                                        "net.1.running_mean",
                                        "net.1.running_var",
                                        "net.1.num_batches_tracked"};
    assert_int_equal(first->output_count, sizeof names / sizeof *names);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_string_equal(first->outputs[i].name, names[i]);
    // Two calls move the count twice: (count + 1) + 1. The other model stands still.
    const Node *count = val_get(m->graph, find_output(first, "net.1.num_batches_tracked")->val);
    assert_int_equal(count->op, OP_ADD);
    assert_int_equal(val_get(m->graph, count->in[0])->op, OP_ADD);
    assert_null(find_output(first, "still.0.running_mean"));
    assert_int_equal(m->stream_count, 0); // no dropout in evaluation mode
    assert_int_equal(stage->minimize[0].replay, UINT32_MAX);
    assert_string_equal(m->entries[stage->minimize[1].replay].name, "grad.score");
    assert_int_equal(stage->minimize[1].accumulate, 2);
    assert_int_equal(stage->minimize[1].ema_every, 1);
    assert_true(stage->minimize[0].clip && !stage->minimize[1].clip);
    release(&made);
}

// ---- values ----

static void *no_source(void *context, const Node *node, const Type *type)
{
    (void)context, (void)node, (void)type;
    return NULL;
}

// The result of the program `run` of a model without inputs.
static void expect_values(const char *text, uint32_t count, const double *want)
{
    Made made = accept(text);
    const Variant *variant = find_entry(made.module, "run")->variants;
    Val val = variant->outputs[0].val;
    InterpOptions options = {.batch = 2, .real = DT_F32, .source = no_source};
    void *result = NULL;
    if (interp_run(made.module->graph, &options, &val, 1, &result) != 0)
        fail_msg("%s", graph_error(made.module->graph));
    DType dtype = val_type(made.module->graph, val)->dtype;
    for (uint32_t i = 0; i < count; i++) {
        double got = dtype == DT_F32 ? ((float *)result)[i] : (double)((int64_t *)result)[i];
        if (!(fabs(got - want[i]) <= 1e-6 * (1 + fabs(want[i]))))
            fail_msg("element %u is %g, not %g, in:\n%s", i, got, want[i], text);
    }
    free(result);
    release(&made);
}
#define VALUES(text, ...)                                                                          \
    expect_values(text, sizeof((double[]){__VA_ARGS__}) / sizeof(double), (double[]){__VA_ARGS__})

static void expressions_have_values(void **state)
{
    (void)state;
    VALUES("program run() -> y = f32([2 ^ 3 ^ 2 % 7, div(-7, 2), -7 % 3, 7 / 7, -2 ^ 2])", 1, -4, 2,
           1, -4);
    VALUES("program run() -> y = f32([x * k for x in 1..4 for k in [10, 1] if x != 2])", 10, 1, 30,
           3);
    VALUES("let xs = [1, 2, 3, 4, 5]\n"
           "program run() -> y = f32(xs[1..-1] + xs[..1] + [xs[-1]] + reverse(xs)[3..])",
           2, 3, 4, 1, 5, 2, 1);
    VALUES("def f(a, c = 10, d = 100) = a + c + d\n"
           "program run() -> y = f32([f(1), f(1, d: 2), f(_, 5, _)(1, 2), 1 |> f(2), len(0..7)])",
           111, 13, 8, 103, 7);
    VALUES("def fact(n) = if n < 2 then 1 else n * fact(n - 1)\n"
           "program run() -> y = f32([fact(10), sum([1, 2, 3]), mean([1, 2]), max([3, 9, 2])])",
           3628800, 6, 1.5, 9);
    VALUES("program run() -> y { s = 0\n for i, x in enumerate([5, 6, 7]) { s += i * x }\n"
           " def twice(v) = 2 * v\n for _ in 0..2 { s = twice(s) }\n return f32([s]) }",
           80);
    VALUES("def pair(x) { a, c = x\n return c, a }\n"
           "program run() -> y { c, a = pair(f32([[1, 2], [3, 4]]))\n return concat([c, a], axis: "
           "0) }",
           3, 4, 1, 2);
    VALUES("program run() -> y { x = f32([[1, 2, 3], [4, 5, 6]])\n"
           " return concat([x[.., 1], x[0, ..], x[1, 0..2], x[..., -1]], axis: 0) }",
           2, 5, 1, 2, 3, 4, 5, 3, 6);
    VALUES("program run() -> y { t = f32([7, 8, 9])\n k = int(f32([2, 0]))\n"
           " return concat([[1.5, 2.5, 3.5][k], t[k]], axis: 0) }",
           3.5, 1.5, 9, 7);
    VALUES("def shape(x: [n, m]) { return f32([n, m, n * m]) }\n"
           "program run() -> y = shape(zeros([3, 5]))",
           3, 5, 15);
    VALUES("def rest(x: [n, ...]) = rearrange(rearrange(x, \"n ... -> n (...)\"), \"n (...) -> n "
           "...\")\n"
           "program run() -> y = rest(f32([[1, 2], [3, 4]]))",
           1, 2, 3, 4);
    VALUES("program run() -> y = where(f32([1, 5]) > 2, 1, clamp(f32([-3, 3]), -1, 1))", -1, 1);
    VALUES("program run() -> y = full([3], 4)", 4, 4, 4);
    VALUES("program run() -> y = f32([cumprod([1, 2, 3])[2], linspace(0, 1, 5)[1], floor(2.7), "
           "round(2.5)])",
           6, 0.25, 2, 2);
}

// ---- samplers ----

static void loops_of_a_sampler(void **state)
{
    (void)state;
    Made made =
        accept("type clip = [b, 3, 2, 4, 4]\n"
               "program step(x: clip, past: clip = none, k: int, a: real) -> y =\n"
               "    if past == none then x * a else x + past * k\n"
               "sample draw {\n"
               "    option rounds = 2\n"
               "    option start: clip = none\n"
               "    past = start\n"
               "    a = 0\n"
               "    for i in 0..rounds {\n"
               "        x = normal(clip, stream: \"z\")\n"
               "        for k in reverse(1..rounds + 3) { x = step(x, past, k, a); a += 0.5 }\n"
               "        if past != none { x = step(past, x, i, 1) }\n"
               "        past = x\n"
               "        yield tanh(x)\n"
               "    }\n"
               "}\n");
    const Module *module = made.module;
    assert_int_equal(module->sampler_count, 1);
    const Sampler *sampler = &module->samplers[0];
    bool seen_real = false;
    for (uint32_t i = 0; i < sampler->var_count; i++)
        if (strcmp(sampler->vars[i].name, "a") == 0)
            seen_real = sampler->vars[i].dtype == DT_F32;
    assert_true(seen_real); // 0 first, then + 0.5: one real variable
    assert_int_equal(sampler->body.count, 4);
    const HostStmt *loop = &sampler->body.at[3];
    assert_int_equal(loop->kind, HOST_FOR);
    static const HostKind kinds[] = {HOST_RANDOM, HOST_FOR,  HOST_IF,
                                     HOST_COPY,   HOST_CALL, HOST_YIELD};
    assert_int_equal(loop->body.count, 6);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(loop->body.at[i].kind, kinds[i]);
    assert_true(loop->body.at[1].reverse);
    const HostStmt *call = &loop->body.at[1].body.at[0];
    assert_int_equal(call->kind, HOST_CALL);
    assert_string_equal(module->entries[call->entry].name, "step");
    assert_string_equal(module->entries[loop->body.at[4].entry].name, "draw.call0");
    release(&made);
}

// ---- errors ----

static void expect_message(const char *text, const char *message)
{
    Made made = make_text(text);
    assert_null(made.module);
    if (!strstr(made.messages, message))
        fail_msg("'%s' is not among:\n%s\nof:\n%s", message, made.messages, text);
    release(&made);
}

static void errors_say_why(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"let a = widht\nlet width = 3", "unknown name 'widht'"},
        {"let a = c\nlet c = a", "'a' is defined by itself"},
        {"let a = 7 / 2", "7 / 2 is not whole (3.5)"},
        {"def f(x) = f(x)\nlet a = f(1)", "nested too deeply"},
        {"let a = [0 for i in 0..100000 for j in 0..100000]", "does not come to an end"},
        {"let a = [1, 2][5]", "index 5 is outside of a list of 2"},
        {"program p(x: [b, 4], y: [b]) -> z = x * y", "ranks differ: [b, 4] * [b]"},
        {"program p(x: [b, 4], y: [b, 5]) -> z = x + y", "sizes differ"},
        {"program p(x: [b, 4]) -> z { if x > 0 { return x } return -x }", "'if' needs a value"},
        {"program p(x: [b, 4]) -> z = normal([b], stream: \"s\") + normal([b], stream: \"s\")",
         "stream \"s\" is drawn twice"},
        {"program p(x: [b, 4] = none) -> z = x + 1", "this input may be absent"},
        {"module M(c) { layer = Linear(c, c)\n def forward(x) { layer = 3\n return x } }\n"
         "model m = M(4)\nprogram p(x: [b, 4]) -> z = m(x)",
         "'layer' is a field of this module"},
        {"model m = Linear(4, 4)\nprogram p(x: [b, 5]) -> z = m(x)", "4"},
        {"let a = linspace(1, 2)", "'linspace' needs 'n'"},
        {"let a = sqrt(x: 1, slope: 2)", "has no parameter 'slope'"},
        {"model m = Linear(4, 4)\ntrain t { minimize m with adam(1.0) { return 1.0 } }",
         "an optimizer is adamw"},
        {"sample s { x = normal([b, 3], stream: \"z\")\n yield x + 1 }", "computes with numbers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_message(cases[i].text, cases[i].message);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_the_reference),   cmocka_unit_test(names_of_published_files),
        cmocka_unit_test(one_parameter_one_name),   cmocka_unit_test(variants_of_pvdm),
        cmocka_unit_test(earlier_answers_are_used), cmocka_unit_test(taps_have_paths),
        cmocka_unit_test(training_blocks),          cmocka_unit_test(expressions_have_values),
        cmocka_unit_test(loops_of_a_sampler),       cmocka_unit_test(errors_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
