// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// Pictures, charts, and what training logs.
#include <math.h>

#include "tests/unit/io_check.h"

#include "runtime/file.h"
#include "runtime/image.h"
#include "runtime/log.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures),
        cmocka_unit_test(crop_and_resize),
        cmocka_unit_test(charts_and_grids),
        cmocka_unit_test(logs),
        cmocka_unit_test(event_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
