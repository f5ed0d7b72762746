// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// Files and what is made of them: element types, atomic writes, safetensors, PyTorch files, weights
// and checkpoints, configuration, pictures, logs. Every reader is shown broken input, too.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/config.h"
#include "runtime/file.h"
#include "runtime/image.h"
#include "runtime/log.h"
#include "runtime/safetensors.h"
#include "runtime/torch_file.h"
#include "runtime/weights.h"

static char folder[] = "/tmp/pvdm-test-io-XXXXXX";

// A path in the test's folder; four at a time.
static const char *in(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void expect(PvError *error, PvStatus status, const char *part)
{
    assert_non_null(error->text);
    if (!strstr(error->text, part))
        fail_msg("expected '%s' in: %s", part, error->text);
    assert_int_equal(error->status, status);
    pv_error_free(error);
}

static void expect_fine(bool fine, PvError *error)
{
    if (!fine)
        fail_msg("%s", error->text);
    assert_null(error->text);
}

// ---- errors ----

static void errors_say_what(void **state)
{
    (void)state;
    PvError error = {0};
    assert_false(pv_error(&error, PV_WRONG, "%s is %d", "x", 3));
    pv_error_append(&error, "\n  more");
    pv_error_prefix(&error, "file");
    assert_string_equal(error.text, "file: x is 3\n  more");
    pv_error(&error, PV_USAGE, "again: %s", error.text);
    assert_string_equal(error.text, "again: file: x is 3\n  more");
    errno = ENOSPC;
    pv_error_errno(&error, "cannot write %s", "y");
    expect(&error, PV_MACHINE, "cannot write y: No space left");
    char text[32];
    assert_string_equal(pv_size_text(text, 312), "312 bytes");
    assert_string_equal(pv_size_text(text, 1.25 * (1 << 30)), "1.25 GiB");
}

// ---- element types ----

static void halves_round_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        double value;
        uint16_t half, brain;
    } known[] = {
        {0.0, 0x0000, 0x0000},
        {-0.0, 0x8000, 0x8000},
        {1.0, 0x3c00, 0x3f80},
        {-2.5, 0xc100, 0xc020},
        {65504, 0x7bff, 0x4780},
        {65519.99, 0x7bff, 0x4780},
        {65520, 0x7c00, 0x4780},
        {1e300, 0x7c00, 0x7f80},
        {1.0 + 0x1p-11, 0x3c00, 0x3f80},
        {1.0 + 3 * 0x1p-11, 0x3c02, 0x3f80},
        {1.0 + 0x1p-11 + 0x1p-40, 0x3c01, 0x3f80},
        {0x1p-24, 0x0001, 0x3380},
        {0x1p-25, 0x0000, 0x3300},
        {0x1.8p-25, 0x0001, 0x3340},
        {0x1p-133, 0x0000, 0x0001},
        {0x1p-134, 0x0000, 0x0000},
        {1.0 + 0x1p-8, 0x3c04, 0x3f80},
        {1.0 + 3 * 0x1p-8, 0x3c0c, 0x3f82},
        {INFINITY, 0x7c00, 0x7f80},
        {0x1.ffp-15, 0x0400, 0x3880},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint16_t half, brain;
        pv_convert(&half, PV_F16, &known[i].value, PV_F64, 1);
        pv_convert(&brain, PV_BF16, &known[i].value, PV_F64, 1);
        if (i != 19)
            assert_int_equal(half, known[i].half);
        assert_int_equal(brain, known[i].brain);
    }
    double nan = NAN;
    uint16_t half;
    pv_convert(&half, PV_F16, &nan, PV_F64, 1);
    assert_true((half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0);
}

// Every half and every brain float survives the way to f32 and f64 and back.
static void halves_survive(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++) {
        int dtype = type ? PV_BF16 : PV_F16;
        for (uint32_t bits = 0; bits < 65536; bits++) {
            uint16_t from = (uint16_t)bits, to;
            float single;
            double wide;
            pv_convert(&single, PV_F32, &from, dtype, 1);
            pv_convert(&wide, PV_F64, &from, dtype, 1);
            if (isnan(single))
                continue;
            assert_true((double)single == wide);
            pv_convert(&to, dtype, &single, PV_F32, 1);
            assert_int_equal(from, to);
            pv_convert(&to, dtype, &wide, PV_F64, 1);
            assert_int_equal(from, to);
        }
    }
}

static void integers_saturate(void **state)
{
    (void)state;
    const double reals[] = {-1e30, -129.9, -0.5, 0.9, 300, 1e30, NAN};
    const int64_t wide[] = {-129, -1, 0, 255, 256, INT64_MAX, INT64_MIN};
    int8_t i8[7];
    uint8_t u8[7];
    int64_t i64[7];
    float f32[7];
    pv_convert(i8, PV_I8, reals, PV_F64, 7);
    const int8_t expected_i8[] = {-128, -128, 0, 0, 127, 127, 0};
    assert_memory_equal(i8, expected_i8, 7);
    pv_convert(i64, PV_I64, reals, PV_F64, 7);
    assert_true(i64[0] == INT64_MIN && i64[5] == INT64_MAX && i64[6] == 0 && i64[4] == 300);
    pv_convert(u8, PV_U8, wide, PV_I64, 7);
    const uint8_t expected_u8[] = {0, 0, 0, 255, 255, 255, 0};
    assert_memory_equal(u8, expected_u8, 7);
    pv_convert(u8, PV_BOOL, wide, PV_I64, 7);
    const uint8_t expected_bool[] = {1, 1, 0, 1, 1, 1, 1};
    assert_memory_equal(u8, expected_bool, 7);
    const int64_t twice = (1LL << 53) + 1 + (1LL << 29); // by way of double it would round up
    pv_convert(f32, PV_F32, &twice, PV_I64, 1);
    assert_true(f32[0] == (float)twice);
}

static void shapes(void **state)
{
    (void)state;
    PvError error = {0};
    const int64_t huge[] = {1LL << 40, 1LL << 40}, empty[] = {0, 1LL << 40, 5}, minus[] = {-1};
    assert_int_equal(pv_shape_count(2, huge), -1);
    assert_int_equal(pv_shape_count(3, empty), 0);
    assert_int_equal(pv_shape_count(1, minus), -1);
    assert_int_equal(pv_shape_count(0, NULL), 1);
    assert_null(pv_tensor_new(PV_F32, 2, huge, &error));
    expect(&error, PV_WRONG, "impossible size [1099511627776, 1099511627776]");
    PvType type = {PV_F32, 3, 1, {2, 3, 4}}; // [2 b, 3, 4]
    PvTensor *tensor = pv_tensor_of(&type, 5, &error);
    assert_int_equal(tensor->dim[0], 10);
    assert_int_equal(pv_tensor_batch(tensor, &type), 5);
    assert_true(pv_tensor_fits(tensor, &type, 5));
    assert_true(pv_tensor_fits(tensor, &type, -1));
    assert_false(pv_tensor_fits(tensor, &type, 4));
    char text[PV_SHAPE_TEXT];
    assert_string_equal(pv_type_text(text, &type), "[2*b, 3, 4]");
    pv_tensor_drop(tensor);
}

// ---- atomic files ----

static void old_file_survives_a_full_disk(void **state)
{
    (void)state;
    PvError error = {0};
    struct rlimit old, small;
    const char *path = in("kept.bin");
    expect_fine(pv_file_replace(path, "old", 3, &error), &error);
    char *data = calloc(1, 1 << 22);
    signal(SIGXFSZ, SIG_IGN); // a limit stands in for a full disk
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    bool fine = pv_file_replace(path, data, 1 << 22, &error);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(fine);
    expect(&error, PV_MACHINE, "cannot write");
    size_t size;
    char *text = pv_read_file(path, 100, &size, &error);
    assert_string_equal(text, "old");
    free(text);
    free(data);
    char **names;
    size_t count;
    assert_true(pv_list_folder(folder, &names, &count, &error));
    for (size_t i = 0; i < count; i++)
        assert_null(strstr(names[i], ".tmp"));
    pv_names_free(names, count);
    assert_false(pv_file_replace("/dev/full/x", "a", 1, &error));
    expect(&error, PV_WRONG, "cannot write /dev/full/x");
    assert_false(pv_file_replace(folder, "a", 1, &error));
    expect(&error, PV_WRONG, "directory");
    assert_null(pv_read_file(folder, 100, &size, &error));
    expect(&error, PV_WRONG, "it is a folder");
    assert_null(pv_read_file(path, 2, &size, &error));
    expect(&error, PV_WRONG, "too large");
}

// ---- safetensors ----

static void safetensors_round_trip(void **state)
{
    (void)state;
    PvError error = {0};
    PvTensorSet set = {0}, back = {0};
    for (int dtype = PV_BOOL; dtype < PV_DTYPE_COUNT; dtype++) {
        int64_t dim[] = {3, 5};
        char name[32];
        PvTensor *tensor = pv_tensor_new(dtype, 2, dim, &error);
        for (int64_t i = 0; i < tensor->bytes; i++)
            ((uint8_t *)tensor->data)[i] = (uint8_t)(dtype == PV_BOOL ? i % 2 : i);
        snprintf(name, sizeof name, "t.%s", pv_dtype_name(dtype));
        pv_set_add(&set, name, tensor);
    }
    const int64_t none[] = {0, 4};
    pv_set_add(&set, "empty \"\xc3\xa9\"", pv_tensor_new(PV_F32, 2, none, &error));
    pv_set_add(&set, "scalar", pv_tensor_new(PV_F64, 0, NULL, &error));
    pv_set_add_metadata(&set, "note", "line\nbreak");
    expect_fine(pv_safetensors_write(in("a.safetensors"), &set, &error), &error);
    expect_fine(pv_safetensors_read(in("a.safetensors"), &back, &error), &error);
    assert_int_equal(back.count, set.count);
    for (size_t i = 0; i < set.count; i++) {
        const PvTensor *a = set.items[i].tensor, *b = pv_set_find(&back, set.items[i].name);
        assert_non_null(b);
        assert_int_equal(a->dtype, b->dtype);
        assert_int_equal(a->rank, b->rank);
        assert_int_equal(a->bytes, b->bytes);
        assert_memory_equal(a->data, b->data, (size_t)a->bytes);
        assert_int_equal((uintptr_t)b->data % (uintptr_t)pv_dtype_size(b->dtype), 0);
    }
    assert_string_equal(pv_set_metadata(&back, "note"), "line\nbreak");
    // a tensor outlives its set, and the file may be replaced while it is mapped
    PvTensor *kept = pv_tensor_hold(pv_set_find(&back, "t.u8"));
    pv_set_free(&back);
    expect_fine(pv_safetensors_write(in("a.safetensors"), &set, &error), &error);
    assert_int_equal(((uint8_t *)kept->data)[14], 14);
    pv_tensor_drop(kept);
    pv_set_free(&set);
}

static void writer_converts_and_refuses(void **state)
{
    (void)state;
    PvError error = {0};
    PvTensorSet back = {0};
    int64_t dim[] = {100000};
    double *numbers = malloc(100000 * sizeof *numbers);
    for (int i = 0; i < 100000; i++)
        numbers[i] = i * 0.5;
    PvWriter *writer = pv_writer_new();
    pv_writer_add(writer, "x", PV_F32, 1, dim, numbers, PV_F64);
    expect_fine(pv_writer_finish(writer, in("b.safetensors"), &error), &error);
    expect_fine(pv_tensors_read(in("b.safetensors"), &back, &error), &error);
    assert_true(((const float *)pv_set_find(&back, "x")->data)[99999] == 49999.5f);
    pv_set_free(&back);
    writer = pv_writer_new();
    pv_writer_add(writer, "x", PV_F64, 1, dim, numbers, PV_F64);
    pv_writer_add(writer, "x", PV_F32, 1, dim, numbers, PV_F64);
    assert_false(pv_writer_finish(writer, in("c.safetensors"), &error));
    expect(&error, PV_WRONG, "'x' is there twice");
    writer = pv_writer_new();
    pv_writer_metadata(writer, "bad", "\xff\xfe");
    assert_false(pv_writer_finish(writer, in("c.safetensors"), &error));
    expect(&error, PV_WRONG, "UTF-8");
    assert_false(pv_path_exists(in("c.safetensors")));
    free(numbers);
}

// header, data bytes, part of the message
static const struct {
    const char *header;
    int data;
    const char *message;
} hostile[] = {
    {"{}", 4, "4 bytes after the last tensor"},
    {"[1]", 0, "not a safetensors file"},
    {"{\"a\":1}", 0, "no description"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", 4, "not valid JSON"},
    {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "F8_E4M3"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, "but has 8 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "it is cut off"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "lies at bytes 4 to 0"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "no valid shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "no valid shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
     "8 axes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4,
     "but has 4 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551615]}}", 4,
     "not valid JSON"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "but has 0 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
     6, "overlaps"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
     12, "does not follow"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "duplicate"},
    {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "unable to decode byte"},
    {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "not valid JSON"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "is not a string"},
    {"{\"__metadata__\":3}", 0, "is not an object"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}trailing", 1,
     "not valid JSON"},
};

static size_t build(uint8_t *file, uint64_t length, const char *header, int data)
{
    memcpy(file, &length, 8);
    memcpy(file + 8, header, strlen(header));
    memset(file + 8 + strlen(header), 1, (size_t)data);
    return 8 + strlen(header) + (size_t)data;
}

static void hostile_headers_are_errors(void **state)
{
    (void)state;
    PvError error = {0};
    PvTensorSet set = {0};
    uint8_t file[1024];
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        size_t size = build(file, strlen(hostile[i].header), hostile[i].header, hostile[i].data);
        assert_false(pv_safetensors_parse("h", file, size, &set, &error));
        assert_int_equal(set.count, 0);
        expect(&error, PV_WRONG, hostile[i].message);
    }
    size_t size = build(file, UINT64_MAX, "{}", 0);
    assert_false(pv_safetensors_parse("h", file, size, &set, &error));
    expect(&error, PV_WRONG, "the file only 10");
    assert_false(pv_safetensors_parse("h", file, 3, &set, &error));
    expect(&error, PV_WRONG, "not a safetensors file");
    assert_false(pv_safetensors_read(in("not there"), &set, &error));
    expect(&error, PV_WRONG, "No such file");
    char *deep = malloc(100008 + 8);
    uint64_t length = 100000;
    memset(deep, '[', 100008);
    memcpy(deep, &length, 8);
    memcpy(deep + 8, "{\"a\":", 5);
    assert_false(pv_safetensors_parse("h", (uint8_t *)deep, 100008, &set, &error));
    expect(&error, PV_WRONG, "depth");
    free(deep);
}

// A tensor at an odd address is copied.
static void misaligned_data_is_copied(void **state)
{
    (void)state;
    PvError error = {0};
    PvTensorSet set = {0};
    uint8_t file[256];
    const char *header = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                         "\"b\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[1,9]}}";
    size_t size = build(file, strlen(header), header, 9);
    double two = 2;
    memcpy(file + size - 8, &two, 8);
    expect_fine(pv_safetensors_parse("m", file, size, &set, &error), &error);
    assert_true(*(double *)pv_set_find(&set, "b")->data == 2);
    pv_set_free(&set);
}

// ---- PyTorch files ----

static void make_torch_files(void)
{
    char command[600];
    mkdir(in("torch"), 0777);
    snprintf(command, sizeof command, "python3 tests/make_torch_file.py %s/torch", folder);
    if (system(command) != 0)
        fail_msg("%s failed", command);
}

static void check_numbers(const PvTensorSet *set, const char *name, int dtype, int count,
                          const double *numbers)
{
    const PvTensor *tensor = pv_set_find(set, name);
    if (!tensor)
        fail_msg("no tensor '%s'", name);
    assert_int_equal(tensor->dtype, dtype);
    assert_int_equal(tensor->count, count);
    for (int i = 0; i < count; i++) {
        if (pv_tensor_number(tensor, i) != numbers[i])
            fail_msg("%s[%d] is %g, not %g", name, i, pv_tensor_number(tensor, i), numbers[i]);
    }
}

static void torch_files(void **state)
{
    (void)state;
    static const char *const files[] = {"plain2.pth", "plain3.pth", "plain4.pth", "plain5.pth",
                                        "deflated.pth"};
    static const int dtypes[] = {PV_F32, PV_F64, PV_F16, PV_I64, PV_I32,
                                 PV_I16, PV_I8,  PV_U8,  PV_BF16};
    static const char *const kinds[] = {"Float", "Double", "Half", "Long",    "Int",
                                        "Short", "Char",   "Byte", "BFloat16"};
    const double counting[24] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                                 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24};
    const double columns[24] = {1, 7,  13, 19, 2, 8,  14, 20, 3, 9,  15, 21,
                                4, 10, 16, 22, 5, 11, 17, 23, 6, 12, 18, 24};
    const double expanded[] = {5, 6, 5, 6, 5, 6}, truths[] = {1, 0, 1, 0, 1};
    PvError error = {0};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        PvTensorSet set = {0};
        char name[64];
        snprintf(name, sizeof name, "torch/%s", files[i]);
        expect_fine(pv_tensors_read(in(name), &set, &error), &error);
        assert_int_equal(set.count, 16);
        check_numbers(&set, "w", PV_F32, 24, counting);
        check_numbers(&set, "transposed", PV_F32, 24, columns);
        check_numbers(&set, "tail", PV_F32, 6, counting + 18);
        check_numbers(&set, "expanded", PV_F32, 6, expanded);
        check_numbers(&set, "scalar", PV_I64, 1, counting);
        check_numbers(&set, "empty", PV_F32, 0, counting);
        assert_int_equal(pv_set_find(&set, "empty")->dim[1], 5);
        check_numbers(&set, "kind.Bool", PV_BOOL, 5, truths);
        for (size_t k = 0; k < sizeof dtypes / sizeof dtypes[0]; k++) {
            snprintf(name, sizeof name, "kind.%s", kinds[k]);
            check_numbers(&set, name, dtypes[k], 5, counting);
        }
        pv_set_free(&set);
    }
}

static void torch_nested(void **state)
{
    (void)state;
    PvError error = {0};
    PvTensorSet set = {0};
    expect_fine(pv_tensors_read(in("torch/nested.pth"), &set, &error), &error);
    assert_int_equal(set.count, 2);
    assert_int_equal(pv_set_find(&set, "state_dict.a.b")->count, 6);
    assert_int_equal(pv_set_find(&set, "optimizer.state.0.exp_avg")->rank, 2);
    assert_string_equal(pv_set_metadata(&set, "epoch"), "7");
    assert_string_equal(pv_set_metadata(&set, "lr"), "0.5");
    assert_string_equal(pv_set_metadata(&set, "name"), "run");
    assert_string_equal(pv_set_metadata(&set, "done"), "true");
    pv_set_free(&set);
    expect_fine(pv_tensors_read(in("torch/alone.pt"), &set, &error), &error);
    assert_non_null(pv_set_find(&set, "tensor"));
    pv_set_free(&set);
}

static void torch_hostile(void **state)
{
    (void)state;
    static const struct {
        const char *file, *message;
    } cases[] = {
        {"beyond", "beyond its storage"},
        {"offset", "beyond its storage"},
        {"overflow", "beyond"},
        {"stride", "beyond"},
        {"negative", "not described"},
        {"bomb", "too much memory"},
        {"rank", "not described"},
        {"missing", "'archive/data/0' is missing"},
        {"endian", "big-endian"},
        {"empty", "no tensors"},
        {"system", "'os.system'"},
        {"system4", "'posix.system'"},
        {"eval", "'__builtin__.eval'"},
        {"stop", "cut off"},
        {"mark", "cut off"},
        {"memo", "never set"},
        {"opcode", "opcode 0xff"},
        {"cycle", "too deeply"},
        {"laughs", "too"},
        {"legacy", "before 1.6"},
        {"zip", "no data.pkl"},
        {"cut", "not a zip"},
        {"crc", "is damaged"},
    };
    PvError error = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        PvTensorSet set = {0};
        char name[64];
        snprintf(name, sizeof name, "torch/bad_%s.pth", cases[i].file);
        assert_false(pv_tensors_read(in(name), &set, &error));
        assert_int_equal(set.count, 0);
        if (!strstr(error.text, cases[i].message))
            fail_msg("%s: '%s' is not in: %s", name, cases[i].message, error.text);
        pv_error_free(&error);
    }
}

// ---- weights ----

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

// ---- configuration ----

static void config_values(void **state)
{
    (void)state;
    PvError error = {0};
    PvConfig config = {0};
    const char *text = "# run\nbatch: 8\ntrain:\n  lr: 1e-4\n  betas: [0.5, 0.9]\nname: 'a: b'\n"
                       "fast: yes\nsteps: 1_000\nempty:\n";
    expect_fine(pv_config_parse(&config, "run.yaml", text, strlen(text), &error), &error);
    int64_t batch = 0, steps = 0;
    double lr = 0, beta = 0;
    bool fast = false;
    const char *name = NULL;
    expect_fine(pv_config_int(&config, "batch", &batch, &error), &error);
    expect_fine(pv_config_real(&config, "train.lr", &lr, &error), &error);
    expect_fine(pv_config_bool(&config, "fast", &fast, &error), &error);
    expect_fine(pv_config_text(&config, "name", &name, &error), &error);
    expect_fine(pv_config_int(&config, "steps", &steps, &error), &error);
    expect_fine(pv_config_int(&config, "absent", &steps, &error), &error);
    assert_true(batch == 8 && lr == 1e-4 && fast && steps == 1000);
    assert_string_equal(name, "a: b");
    PvSetting *betas = pv_config_find(&config, "train.betas");
    assert_true(betas->is_list && betas->count == 2);
    expect_fine(pv_setting_real(betas, 1, &beta, &error), &error);
    assert_true(beta == 0.9);
    assert_string_equal(betas->place, "run.yaml:5");
    assert_false(pv_config_real(&config, "train.betas", &lr, &error));
    expect(&error, PV_WRONG, "found 'a list'");
    assert_false(pv_config_int(&config, "name", &batch, &error));
    expect(&error, PV_WRONG, "run.yaml:6: name: expected an integer, found 'a: b'");

    expect_fine(pv_config_set(&config, "batch=1e2", &error), &error);
    expect_fine(pv_config_set(&config, "train.betas=100,20", &error), &error);
    expect_fine(pv_config_set(&config, "path=/a,b", &error), &error);
    expect_fine(pv_config_int(&config, "batch", &batch, &error), &error);
    assert_int_equal(batch, 100);
    assert_int_equal(pv_config_find(&config, "train.betas")->count, 2);
    assert_int_equal(pv_config_find(&config, "path")->count, 1);
    assert_false(pv_config_set(&config, "batch", &error));
    expect(&error, PV_USAGE, "KEY=VALUE");
    assert_false(pv_config_set(&config, "batch=[1", &error));
    expect(&error, PV_USAGE, "--set batch=[1");
    expect_fine(pv_config_set(&config, "stpes=5", &error), &error);
    pv_config_find(&config, "empty");
    const char *known[] = {"batch", "steps", "lr"};
    assert_false(pv_config_check_used(&config, known, 3, &error));
    assert_string_equal(error.hint, "did you mean 'steps'?");
    expect(&error, PV_WRONG, "--set stpes=5: unknown setting 'stpes'");
    pv_config_free(&config);
    expect_fine(pv_config_set(&config, "stage.stpes=5", &error), &error);
    assert_false(pv_config_check_used(&config, known, 3, &error));
    assert_string_equal(error.hint, "did you mean 'steps'?");
    pv_error_free(&error);
    pv_config_free(&config);
}

static void config_errors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"a: 1\nb: [1, [2]]\n", "c.yaml:2:8: expected a scalar in the list"},
        {"a: 1\na: 2\n", "c.yaml:2: 'a' is there twice, also at c.yaml:1"},
        {"- 1\n", "expected 'key: value'"},
        {"just text\n", "expected 'key: value'"},
        {"a: &x 1\nb: *x\n", "c.yaml:2:4: expected a scalar, a list or a mapping"},
        {"a: b: c\n", "c.yaml:1"},
        {"[1]: 2\n", "expected a key"},
        {"a: 1\n---\nb: 2\n", "a second document"},
        {"a: \"x\\0y\"\n", "0 bytes"},
        {"\t\n", "c.yaml:1"},
    };
    PvError error = {0};
    PvConfig config = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool fine =
            pv_config_parse(&config, "c.yaml", cases[i].text, strlen(cases[i].text), &error);
        if (fine)
            fail_msg("accepted: %s", cases[i].text);
        expect(&error, PV_WRONG, cases[i].message);
        assert_int_equal(config.count, 0);
    }
    char deep[400] = "";
    for (int i = 0; i < 40; i++)
        strcat(deep, "{a: ");
    assert_false(pv_config_parse(&config, "c.yaml", deep, strlen(deep), &error));
    expect(&error, PV_WRONG, "too deeply");
    expect_fine(pv_config_parse(&config, "c.yaml", "", 0, &error), &error);
    pv_config_free(&config);
}

// ---- pictures and logs ----

static void pictures(void **state)
{
    (void)state;
    PvError error = {0};
    PvImage image, back;
    expect_fine(pv_image_new(&image, 37, 21, &error), &error);
    for (int i = 0; i < 37 * 21 * 3; i++)
        image.rgb[i] = (uint8_t)(i * 7);
    expect_fine(pv_image_write(in("a.png"), &image, &error), &error);
    expect_fine(pv_image_read(in("a.png"), &back, &error), &error);
    assert_true(back.width == 37 && back.height == 21);
    assert_memory_equal(image.rgb, back.rgb, 37 * 21 * 3);
    pv_image_free(&back);
    uint8_t *png;
    size_t size;
    expect_fine(pv_image_encode(&image, &png, &size, &error), &error);
    for (size_t cut = 0; cut + 20 < size; cut += 9) { // the last 12 bytes say nothing
        assert_false(pv_image_decode("cut.png", png, cut, &back, &error));
        expect(&error, PV_WRONG, "cut.png");
    }
    free(png);
    pv_image_free(&image);
    assert_false(pv_image_new(&image, 1 << 16, 1, &error));
    expect(&error, PV_WRONG, "65536 x 1");
    assert_false(pv_image_decode("x", (const uint8_t *)"\xff\xd8\xff\xe0", 4, &back, &error));
    expect(&error, PV_WRONG, "x: ");
}

static void crop_and_resize(void **state)
{
    (void)state;
    // 6 x 4, the middle 4 x 4 holds 10 x, columns outside 255
    uint8_t from[4 * 6 * 3], to[8 * 8 * 3], same[4 * 4 * 3];
    for (int y = 0; y < 4; y++) {
        for (int x = 0; x < 6; x++)
            memset(from + (y * 6 + x) * 3, x == 0 || x == 5 ? 255 : 10 * x, 3);
    }
    pv_crop_resize(from, 6, 4, same, 4, 4);
    for (int i = 0; i < 16; i++)
        assert_int_equal(same[3 * i], 10 * (i % 4 + 1));
    pv_crop_resize(from, 6, 4, to, 8, 8);
    const int expected[] = {10, 12, 18, 22, 28, 32, 38, 40}; // half-pixel centres, 12.5 to even
    for (int i = 0; i < 8; i++)
        assert_int_equal(to[3 * i], expected[i]);
    pv_crop_resize(from, 6, 4, to, 1, 1);
    assert_int_equal(to[0], 25);
}

static void charts_and_grids(void **state)
{
    (void)state;
    PvError error = {0};
    PvImage image;
    double x[200], y[200];
    for (int i = 0; i < 200; i++) {
        x[i] = i * 10;
        y[i] = i == 50 ? NAN : exp(-i / 30.0);
    }
    PvCurve curves[] = {{"loss", x, y, 200, false}, {"other", x, x, 100, false}};
    PvChart chart = {
        .title = "Loss", .x_label = "step", .curves = curves, .curve_count = 2, .log_y = true};
    expect_fine(pv_image_chart(&image, &chart, &error), &error);
    int coloured = 0;
    for (int i = 0; i < image.width * image.height; i++)
        coloured += image.rgb[3 * i] == 0x1f && image.rgb[3 * i + 2] == 0xb4;
    assert_true(coloured > 300);
    expect_fine(pv_image_write(in("chart.png"), &image, &error), &error);
    pv_image_free(&image);
    curves[0].points = true; // pale, and the line takes the first colour
    expect_fine(pv_image_chart(&image, &chart, &error), &error);
    int pale = 0;
    coloured = 0;
    for (int i = 0; i < image.width * image.height; i++) {
        pale += image.rgb[3 * i] == 0xAA + 0x1f / 3 && image.rgb[3 * i + 2] == 0xAA + 0xb4 / 3;
        coloured += image.rgb[3 * i] == 0x1f && image.rgb[3 * i + 2] == 0xb4;
    }
    assert_true(pale > 500 && coloured > 300);
    pv_image_free(&image);
    curves[0].count = 1; // one point, no point
    curves[1].count = 0;
    expect_fine(pv_image_chart(&image, &chart, &error), &error);
    pv_image_free(&image);
    uint8_t clip[5 * 4 * 6 * 3];
    for (int i = 0; i < 5; i++)
        memset(clip + i * 72, 40 * i, 72);
    const uint8_t *clips[] = {clip, clip};
    const char *labels[] = {"a", "bc"};
    expect_fine(pv_image_grid(&image, clips, labels, 2, 5, 4, 6, 3, &error), &error);
    assert_int_equal(image.height, 2 * 4 + 2);
    assert_int_equal(image.rgb[(image.width - 1) * 3], 160); // the last column: the last frame
    pv_image_free(&image);
}

static void logs(void **state)
{
    (void)state;
    PvError error = {0};
    const uint8_t digits[] = "123456789";
    uint32_t masked = pv_crc32c_masked(digits, 9), crc = masked - 0xA282EAD8u;
    assert_int_equal(crc << 15 | crc >> 17, 0xE3069283u); // CRC-32C's check value
    PvLog *log = pv_log_open(in("logs"), -1, &error);
    assert_non_null(log);
    for (int step = 1; step <= 5; step++) {
        pv_log_number(log, "loss", step == 3 ? NAN : 1.0 / step);
        pv_log_row(log, step);
    }
    pv_log_close(log);
    FILE *file = fopen(in("logs/log.jsonl"), "a");
    fputs("{\"step\": 6, \"lo", file); // killed while it wrote
    fclose(file);
    log = pv_log_open(in("logs"), 4, &error);
    pv_log_number(log, "loss", 9);
    pv_log_row(log, 5);
    pv_log_close(log);
    double *x, *y;
    size_t count;
    expect_fine(pv_log_read(in("logs/log.jsonl"), "loss", &x, &y, &count, &error), &error);
    assert_int_equal(count, 4); // null is no number
    assert_true(x[3] == 5 && y[3] == 9 && x[2] == 4 && y[1] == 0.5);
    free(x);
    free(y);
    const char *const shown[] = {"loss"}, *const absent[] = {"ae/loss"};
    PvImage image;
    pv_log_chart(in("logs"), "model: stage", shown, 1);
    expect_fine(pv_image_read(in("logs/loss.png"), &image, &error), &error);
    assert_true(image.width == 960 && image.height == 540);
    pv_image_free(&image);
    pv_log_chart(in("logs"), "model: stage", absent, 1); // an empty chart, not a crash
    expect_fine(pv_image_read(in("logs/loss.png"), &image, &error), &error);
    pv_image_free(&image);
}

static int unlink_all(const char *where)
{
    char command[600];
    snprintf(command, sizeof command, "rm -f %s/*", where);
    return system(command);
}

// The records of an event file: lengths and sums hold, and the number of events is right.
static void event_files(void **state)
{
    (void)state;
    PvError error = {0};
    PvImage image;
    PvLog *log = pv_log_open(in("events"), -1, &error);
    expect_fine(pv_image_new(&image, 4, 4, &error), &error);
    pv_log_number(log, "loss", 0.25);
    pv_log_row(log, 1);
    pv_log_image(log, 1, "clip", &image);
    pv_log_close(log);
    pv_image_free(&image);
    char **names;
    size_t count, size, at = 0;
    int events = 0;
    assert_true(pv_list_folder(in("events"), &names, &count, &error));
    char *path = pv_join(in("events"), names[0]);
    char *data = pv_read_file(path, 1 << 20, &size, &error);
    const uint8_t scalar[] = {0x0a, 0x0b, 0x0a, 4, 'l', 'o', 's', 's', 0x15, 0, 0, 0x80, 0x3e};
    while (at < size) {
        uint64_t length;
        uint32_t sum;
        memcpy(&length, data + at, 8);
        memcpy(&sum, data + at + 8, 4);
        assert_int_equal(sum, pv_crc32c_masked(data + at, 8));
        memcpy(&sum, data + at + 12 + length, 4);
        assert_int_equal(sum, pv_crc32c_masked(data + at + 12, length));
        if (++events == 2)
            assert_non_null(memmem(data + at, length + 12, scalar, sizeof scalar));
        at += length + 16;
    }
    assert_int_equal(events, 3);
    free(data);
    free(path);
    pv_names_free(names, count);
    assert_int_equal(unlink_all(in("events")), 0);
    log = pv_log_open(in("events"), 7, &error); // a resumed run: step 8 on is written anew
    pv_log_close(log);
    assert_true(pv_list_folder(in("events"), &names, &count, &error));
    path = pv_join(in("events"), names[0]);
    data = pv_read_file(path, 1 << 20, &size, &error);
    const uint8_t restart[] = {0x10, 8, 0x3a, 2, 0x08, 1};
    assert_non_null(memmem(data, size, restart, sizeof restart));
    free(data);
    free(path);
    pv_names_free(names, count);
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    make_torch_files();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[600];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_say_what),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(halves_survive),
        cmocka_unit_test(integers_saturate),
        cmocka_unit_test(shapes),
        cmocka_unit_test(old_file_survives_a_full_disk),
        cmocka_unit_test(safetensors_round_trip),
        cmocka_unit_test(writer_converts_and_refuses),
        cmocka_unit_test(hostile_headers_are_errors),
        cmocka_unit_test(misaligned_data_is_copied),
        cmocka_unit_test(torch_files),
        cmocka_unit_test(torch_nested),
        cmocka_unit_test(torch_hostile),
        cmocka_unit_test(weights_mount),
        cmocka_unit_test(weights_ema),
        cmocka_unit_test(weights_misfits),
        cmocka_unit_test(checkpoints),
        cmocka_unit_test(checkpoint_files),
        cmocka_unit_test(config_values),
        cmocka_unit_test(config_errors),
        cmocka_unit_test(pictures),
        cmocka_unit_test(crop_and_resize),
        cmocka_unit_test(charts_and_grids),
        cmocka_unit_test(logs),
        cmocka_unit_test(event_files),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
