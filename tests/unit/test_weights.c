// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// Weights mounted from files, and checkpoints.
#include "tests/unit/io_check.h"

#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "runtime/weights.h"

// net.a.w [2, 3], net.a.b [3], net.seen i64 [] (buffer) and head.w [2]
static const char *const net_ignored[] = {"coords", "rot.table"};
static const PvParam params[] = {
    {"net.a.w", 0, {PV_REAL_DTYPE, 2, 0, {2, 3}}, 0, 6, false, PV_ZEROS, 0, 0, 0, 0},
    {"net.a.b", 0, {PV_REAL_DTYPE, 1, 0, {3}}, 64, 3, false, PV_ZEROS, 0, 0, 0, 0},
    {"net.seen", 0, {PV_I64, 0, 0, {0}}, 128, 1, true, PV_ZEROS, 0, 0, 0, 0},
    {"head.w", 1, {PV_REAL_DTYPE, 1, 0, {2}}, 192, 2, false, PV_ZEROS, 0, 0, 0, 0},
};
static const PvInstance instances[] = {{"net", 0, 3, 0, 192, net_ignored, 2},
                                       {"head", 3, 1, 192, 64, NULL, 0}};
static const char *const streams[] = {"noise", "t"};
static const char *const constants[] = {"width=3", "kind=sum"};
static const PvModel model = {
    .name = "toy",
    .real = PV_REAL_DTYPE,
    .params = params,
    .param_count = 4,
    .param_bytes = 256,
    .instances = instances,
    .instance_count = 2,
    .streams = streams,
    .stream_count = 2,
    .constants = constants,
    .constant_count = 2,
};
static const uint32_t both[] = {0, 1};

// Writes a file with f32 tensors counting from `first`; shapes as text "2x3".
static void write_tensors(const char *file, float first, int count, const char *const *names,
                          const char *const *tensor_shapes)
{
    PvError error = {0};
    PvTensorSet set = {0};
    for (int i = 0; i < count; i++) {
        int64_t dim[4];
        int rank = 0;
        for (const char *at = tensor_shapes[i]; *at; at += *at == 'x')
            dim[rank++] = strtol(at, (char **)&at, 10);
        PvTensor *tensor = pv_tensor_new(PV_F32, rank, dim, &error);
        for (int64_t k = 0; k < tensor->count; k++)
            ((float *)tensor->data)[k] = first + (float)(10 * i + k);
        pv_set_add(&set, names[i], tensor);
    }
    expect_fine(pv_safetensors_write(in(file), &set, &error), &error);
    pv_set_free(&set);
}

static PvReal number_at(const char *flat, int64_t offset, int index)
{
    return ((const PvReal *)(const void *)(flat + offset))[index];
}

static bool mount(const char *spec, uint32_t wanted, bool ema, char *flat, PvError *error)
{
    char buffer[600], *specs[2] = {buffer, buffer};
    size_t count = 0;
    snprintf(buffer, sizeof buffer, "%s", spec);
    char *rest = buffer, *part;
    while ((part = strsep(&rest, " ")))
        specs[count++] = part;
    return pv_weights_mount(&model, (const char *const *)specs, count, both, wanted, ema, flat,
                            NULL, error);
}

static void weights_mount(void **state)
{
    (void)state;
    PvError error = {0};
    char flat[256] = {0}, spec[1200];
    const char *plain[] = {"a.w", "a.b", "seen", "rot.table"};
    const char *shape[] = {"2x3", "3", "1", "7"};
    write_tensors("plain.safetensors", 1, 4, plain, shape);
    // the only wanted instance, its names plain
    expect_fine(mount(in("plain.safetensors"), 1, false, flat, &error), &error);
    assert_true(number_at(flat, 0, 5) == 6 && number_at(flat, 64, 0) == 11);
    assert_int_equal(*(int64_t *)(void *)(flat + 128), 21);
    // both, from a file with the instances' names in front, wrapped
    const char *full[] = {"module.net.a.w", "module.net.a.b", "module.net.seen",
                          "module.head.w",  "adam_m.net.a.w", "module.net.x.coords"};
    const char *full_shape[] = {"2x3", "3", "", "2", "2x3", "4"};
    write_tensors("full.safetensors", 100, 6, full, full_shape);
    expect_fine(mount(in("full.safetensors"), 2, false, flat, &error), &error);
    assert_true(number_at(flat, 0, 0) == 100 && number_at(flat, 192, 1) == 131);
    // by INSTANCE= and PREFIX, the rest from elsewhere
    const char *odd[] = {"weights.a.w", "weights.a.b", "weights.seen", "x", "y"};
    const char *odd_shape[] = {"2x3", "3", "1", "5", "5"};
    write_tensors("odd.safetensors", 200, 5, odd, odd_shape);
    snprintf(spec, sizeof spec, "net=%s#weights. %s", in("odd.safetensors"),
             in("full.safetensors"));
    expect_fine(mount(spec, 2, false, flat, &error), &error);
    assert_true(number_at(flat, 0, 0) == 200 && number_at(flat, 192, 1) == 131);
    // a part of an instance from a file of its own, the rest from another
    const char *part[] = {"features.w", "features.b", "classifier.w"};
    const char *part_shape[] = {"2x3", "3", "9"};
    const char *seen[] = {"seen"}, *seen_shape[] = {"1"};
    write_tensors("part.safetensors", 300, 3, part, part_shape);
    write_tensors("seen.safetensors", 400, 1, seen, seen_shape);
    snprintf(spec, sizeof spec, "net.a=%s#features. net=%s", in("part.safetensors"),
             in("seen.safetensors"));
    expect_fine(mount(spec, 1, false, flat, &error), &error);
    assert_true(number_at(flat, 0, 0) == 300 && number_at(flat, 64, 0) == 310);
    assert_int_equal(*(int64_t *)(void *)(flat + 128), 400);
    // what is beside the prefix is not looked at, what is without one is surplus
    snprintf(spec, sizeof spec, "net=%s", in("odd.safetensors"));
    assert_false(mount(spec, 1, false, flat, &error));
    assert_non_null(strstr(error.text, "surplus:"));
    expect(&error, PV_WRONG, "'weights.a.w'");
}

static void weights_ema(void **state)
{
    (void)state;
    PvError error = {0};
    char flat[256] = {0};
    const char *names[] = {"net.a.w", "net.a.b", "net.seen", "head.w", "ema.net.a.w"};
    const char *shape[] = {"2x3", "3", "1", "2", "2x3"};
    write_tensors("ema.safetensors", 1, 5, names, shape);
    expect_fine(mount(in("ema.safetensors"), 2, false, flat, &error), &error);
    assert_true(number_at(flat, 0, 0) == 1);
    expect_fine(mount(in("ema.safetensors"), 2, true, flat, &error), &error);
    assert_true(number_at(flat, 0, 0) == 41 && number_at(flat, 64, 0) == 11);
}

static void weights_misfits(void **state)
{
    (void)state;
    PvError error = {0};
    char flat[256], before[256];
    memset(flat, 7, sizeof flat);
    memcpy(before, flat, sizeof flat);
    const char *names[] = {"net.a.w", "net.a.extra", "net.seen", "module.net.seen"};
    const char *shape[] = {"3x2", "3", "1", "1"};
    write_tensors("bad.safetensors", 1, 4, names, shape);
    assert_false(mount(in("bad.safetensors"), 2, false, flat, &error));
    assert_memory_equal(flat, before, sizeof flat);
    assert_non_null(strstr(error.text, "net.a.b [3]"));
    assert_non_null(strstr(error.text, "all 1 of 'head'"));
    assert_non_null(strstr(error.text, "'net.a.w' is [3, 2], and net.a.w is [2, 3]"));
    assert_non_null(strstr(error.text, "'net.a.extra'"));
    expect(&error, PV_WRONG, "are both net.seen");
    assert_false(mount("nut=/no/file", 1, false, flat, &error) && error.text);
    expect(&error, PV_WRONG, "no instance 'nut'");
    char spec[600];
    snprintf(spec, sizeof spec, "net=%s#none.", in("bad.safetensors"));
    assert_false(mount(spec, 1, false, flat, &error));
    expect(&error, PV_WRONG, "no name begins with 'none.'");
    assert_false(pv_weights_mount(&model, NULL, 0, both, 1, false, flat, NULL, &error));
    expect(&error, PV_WRONG, "all 3 of 'net'");
}

// ---- checkpoints ----

static void checkpoints(void **state)
{
    (void)state;
    PvError error = {0};
    char flat[4][256], read[4][256];
    uint64_t draws[2] = {5, UINT64_MAX}, draws_read[2] = {0};
    bool moving[] = {true, false};
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 256 / (int)sizeof(PvReal); k++)
            ((PvReal *)(void *)flat[i])[k] = (PvReal)(i * 1000 + k);
    }
    PvCheckpoint saved = {.params = flat[0],
                          .ema = flat[1],
                          .adam_m = flat[2],
                          .adam_v = flat[3],
                          .has_ema = moving,
                          .has_moments = moving,
                          .stage = "fit",
                          .step = 17,
                          .seed = UINT64_MAX - 1,
                          .data_position = 136,
                          .draws = draws,
                          .updates = {5, 6},
                          .ema_updates = {1}};
    char *path = pv_checkpoint_path(folder, 17);
    expect_fine(pv_checkpoint_write(&model, path, &saved, &error), &error);
    memset(read, 0, sizeof read);
    PvCheckpoint back = {.params = read[0],
                         .ema = read[1],
                         .adam_m = read[2],
                         .adam_v = read[3],
                         .has_ema = moving,
                         .has_moments = moving,
                         .stage = "fit",
                         .draws = draws_read};
    expect_fine(pv_checkpoint_read(&model, path, &back, &error), &error);
    for (int i = 0; i < 4; i++) {
        assert_memory_equal(flat[i], read[i], 6 * sizeof(PvReal));
        assert_memory_equal(flat[i] + 64, read[i] + 64, 3 * sizeof(PvReal));
    }
    assert_memory_equal(flat[0] + 128, read[0] + 128, 8); // buffers: only as parameters
    assert_memory_not_equal(flat[1] + 128, read[1] + 128, 8);
    assert_memory_not_equal(flat[2] + 192, read[2] + 192, 8); // head does not move
    assert_true(back.step == 17 && back.seed == UINT64_MAX - 1 && back.data_position == 136);
    assert_true(draws_read[0] == 5 && draws_read[1] == UINT64_MAX);
    assert_true(back.updates[1] == 6 && back.ema_updates[0] == 1);
    back.stage = "other";
    assert_false(pv_checkpoint_read(&model, path, &back, &error));
    expect(&error, PV_WRONG, "of stage 'fit'");
    const char *const others[] = {"width=4", "kind=sum"};
    PvModel other = model;
    other.constants = others;
    back.stage = NULL;
    assert_false(pv_checkpoint_read(&other, path, &back, &error));
    expect(&error, PV_WRONG, "width=3, here 4");
    bool all[] = {true, true};
    back.has_moments = all;
    assert_false(pv_checkpoint_read(&model, path, &back, &error));
    expect(&error, PV_WRONG, "'adam_m.head.w' is missing");
    // the same file gives its weights to a sampler
    expect_fine(mount(path, 2, true, read[0], &error), &error);
    assert_true(number_at(read[0], 0, 0) == 1000 &&
                number_at(read[0], 192, 0) == number_at(flat[0], 192, 0));
    free(path);
}

static void checkpoint_files(void **state)
{
    (void)state;
    PvError error = {0};
    const char *runs = in("runs");
    char copy[512];
    snprintf(copy, sizeof copy, "%s", runs);
    assert_null(pv_checkpoint_latest(copy, &error));
    assert_null(error.text);
    expect_fine(pv_make_folder(copy, &error), &error);
    for (int64_t step = 8; step < 13; step++) {
        char *path = pv_checkpoint_path(copy, step * 10);
        expect_fine(pv_file_replace(path, "x", 1, &error), &error);
        free(path);
    }
    char *other = pv_join(copy, "step-99999999.txt");
    expect_fine(pv_file_replace(other, "x", 1, &error), &error);
    char *killed = pv_join(copy, ".step-00000130.safetensors.77.tmp"); // while it was written
    expect_fine(pv_file_replace(killed, "x", 1, &error), &error);
    free(killed);
    pv_checkpoint_keep(copy, 2);
    char *latest = pv_checkpoint_latest(copy, &error);
    assert_string_equal(pv_base_name(latest), "step-00000120.safetensors");
    char **names;
    size_t count;
    assert_true(pv_list_folder(copy, &names, &count, &error));
    assert_int_equal(count, 3);
    assert_string_equal(names[0], "step-00000110.safetensors");
    pv_names_free(names, count);
    free(latest);
    free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_mount),
        cmocka_unit_test(weights_ema),
        cmocka_unit_test(weights_misfits),
        cmocka_unit_test(checkpoints),
        cmocka_unit_test(checkpoint_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
