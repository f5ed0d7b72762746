// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// Videos and data sets: frames come back as they went in, samples follow from (seed, index) alone,
// what is damaged is passed over, and packed files give the same batches as folders.
#include <math.h>
#include <sys/wait.h>

#include "tests/unit/io_check.h"

#include "runtime/data.h"
#include "runtime/file.h"
#include "runtime/video.h"

// ---- material: frame k of video v is all of one colour, red 100 + v, green 4 k, blue 9 ----

enum { HEIGHT = 8, WIDTH = 12 };

static void paint(uint8_t *rgb, int video, int frame)
{
    for (int i = 0; i < HEIGHT * WIDTH; i++) {
        rgb[3 * i] = (uint8_t)(100 + video);
        rgb[3 * i + 1] = (uint8_t)(4 * frame);
        rgb[3 * i + 2] = 9;
    }
}

static void make_frames(const char *path, int video, int frames)
{
    PvError error = {0};
    expect_fine(pv_make_folder(path, &error), &error);
    for (int k = 0; k < frames; k++) {
        PvImage image;
        char name[32];
        expect_fine(pv_image_new(&image, WIDTH, HEIGHT, &error), &error);
        paint(image.rgb, video, k);
        snprintf(name, sizeof name, "f%d.png", k); // 10 comes after 9
        char *file = pv_join(path, name);
        expect_fine(pv_image_write(file, &image, &error), &error);
        free(file);
        pv_image_free(&image);
    }
}

static void write_text(const char *path, const char *text)
{
    PvError error = {0};
    expect_fine(pv_file_replace(path, text, strlen(text), &error), &error);
}

// Which video and frame pixel (plane c = 0, 1) of frame t of a sample show; -1 for black.
static void see(const PvReal *sample, int frames, int t, int size, int *video, int *frame)
{
    PvReal red = sample[(size_t)t * (size_t)(size * size)];
    PvReal green = sample[(size_t)(frames + t) * (size_t)(size * size)];
    *video = red == -1 ? -1 : (int)lrint(((double)red + 1) * 127.5) - 100;
    *frame = red == -1 ? -1 : (int)lrint(((double)green + 1) * 127.5) / 4;
}

static PvDataOptions clips_of(const char *path, int frames)
{
    return (PvDataOptions){
        .path = path, .source = "clips", .frames = frames, .height = 4, .width = 4, .seed = 11};
}

// ---- videos ----

static void without_the_plug_in(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) { // the search is made once a process
        PvError error = {0};
        PvVideo video;
        setenv("PVDM_VIDEO_PLUGIN", "/no/such/plugin.so", 1);
        bool refused = !pv_video_read(in("a.mp4"), 0, 0, 0, &video, &error) &&
                       error.status == PV_MACHINE && strstr(error.text, "/no/such/plugin.so") &&
                       error.hint && strstr(error.hint, "PVDM_VIDEO_PLUGIN");
        pv_error_free(&error);
        bool refused_out =
            !pv_video_check_output(in("a.gif"), &error) && error.status == PV_MACHINE;
        pv_error_free(&error);
        bool frames = pv_video_read(in("set/a"), 0, 0, 0, &video, &error) && video.frames == 12;
        pv_video_free(&video);
        _exit(refused && refused_out && frames ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
}

static void folders_of_frames(void **state)
{
    (void)state;
    PvError error = {0};
    PvVideo video;
    expect_fine(pv_video_read(in("set/a"), 0, 0, 0, &video, &error), &error);
    assert_true(video.frames == 12 && video.width == WIDTH && video.height == HEIGHT);
    for (int k = 0; k < 12; k++)
        assert_int_equal(video.rgb[k * HEIGHT * WIDTH * 3 + 1], 4 * k);
    expect_fine(pv_video_write(in("out/copy"), &video, &error), &error);
    pv_video_free(&video);
    expect_fine(pv_video_read(in("out/copy"), 4, 4, 5, &video, &error), &error);
    assert_true(video.frames == 5 && video.width == 4);
    assert_int_equal(video.rgb[4 * 48 + 1], 16);
    expect_fine(pv_video_write(in("out/row.png"), &video, &error), &error);
    pv_video_free(&video);
    expect_fine(pv_make_folder(in("nothing"), &error), &error);
    assert_false(pv_video_read(in("nothing"), 0, 0, 0, &video, &error));
    expect(&error, PV_WRONG, "has no pictures");
    assert_false(pv_video_check_output(in("x.xyz"), &error));
    expect(&error, PV_USAGE, ".mp4, .gif, .png or a folder");
}

static void reals_and_bytes(void **state)
{
    (void)state;
    PvError error = {0};
    PvVideo video, back;
    expect_fine(pv_video_new(&video, 2, 16, 8, 0, &error), &error);
    for (int i = 0; i < 768; i++)
        video.rgb[i] = (uint8_t)i;
    PvReal reals[768];
    pv_video_to_reals(&video, 0, 2, reals);
    assert_true(reals[0] == -1 && fabs((double)reals[127] - (127 * 3 % 256 / 127.5 - 1)) < 1e-6);
    expect_fine(pv_video_from_reals(&back, reals, 2, 8, 16, 8, &error), &error);
    assert_memory_equal(video.rgb, back.rgb, 768);
    pv_video_free(&back);
    reals[0] = 7;
    reals[1] = (PvReal)NAN;
    expect_fine(pv_video_from_reals(&back, reals, 2, 8, 16, 8, &error), &error);
    assert_true(back.rgb[0] == 255 && back.rgb[3] == 0);
    pv_video_free(&back);
    pv_video_free(&video);
}

// Through FFmpeg: sizes and number of frames are exact, colours about right.
static void video_files(void **state)
{
    (void)state;
    PvError error = {0};
    PvVideo video, back;
    if (!pv_video_plugin(&error)) {
        pv_error_free(&error);
        skip();
    }
    expect_fine(pv_video_new(&video, 10, 48, 32, 12, &error), &error);
    for (int k = 0; k < 10; k++) {
        for (int i = 0; i < 48 * 32; i++) {
            uint8_t *pixel = video.rgb + (k * 48 * 32 + i) * 3;
            pixel[0] = (uint8_t)(20 * k);
            pixel[1] = (uint8_t)(i % 48 * 5);
            pixel[2] = 60;
        }
    }
    static const char *const names[] = {"out/a.mp4", "out/a.gif"};
    for (int form = 0; form < 2; form++) {
        expect_fine(pv_video_write(in(names[form]), &video, &error), &error);
        expect_fine(pv_video_read(in(names[form]), 0, 0, 0, &back, &error), &error);
        assert_true(back.frames == 10 && back.width == 48 && back.height == 32);
        assert_true(fabs(back.rate - 12) < 0.6);
        double off = 0;
        for (int i = 0; i < 10 * 48 * 32 * 3; i++)
            off += abs(video.rgb[i] - back.rgb[i]) / (10.0 * 48 * 32 * 3);
        assert_true(off < 6);
        pv_video_free(&back);
    }
    pv_video_free(&video);
    // an odd size is stretched by a pixel, not refused
    expect_fine(pv_video_new(&video, 3, 15, 9, 0, &error), &error);
    expect_fine(pv_video_write(in("out/odd.mp4"), &video, &error), &error);
    pv_video_free(&video);
    // damaged: cut off, garbage, a text
    size_t size;
    char *data = pv_read_file(in("out/a.gif"), 1 << 24, &size, &error);
    expect_fine(pv_file_replace(in("out/cut.gif"), data, size / 2, &error), &error);
    expect_fine(pv_file_replace(in("out/cut.mp4"), data, 0, &error), &error);
    free(data);
    expect_fine(pv_video_read(in("out/cut.gif"), 0, 0, 0, &back, &error), &error);
    assert_true(back.frames >= 1 && back.frames < 10);
    pv_video_free(&back);
    write_text(in("out/text.avi"), "this is no video at all, whatever its name says");
    assert_false(pv_video_read(in("out/text.avi"), 0, 0, 0, &back, &error));
    expect(&error, PV_WRONG, "text.avi is not a readable video");
    assert_false(pv_video_read(in("out/cut.mp4"), 0, 0, 0, &back, &error));
    expect(&error, PV_WRONG, "is not a readable video");
    assert_false(pv_video_read(in("out/none.mp4"), 0, 0, 0, &back, &error));
    expect(&error, PV_WRONG, "No such file");
}

// ---- samples ----

// Every epoch visits every video once, in another order; another seed has another order.
static void epochs(void **state)
{
    (void)state;
    PvError error = {0};
    for (int n = 1; n <= 40; n += 13) {
        char name[32], orders[3][64] = {{0}};
        for (int i = 0; i < n; i++) { // labels open no video
            snprintf(name, sizeof name, "n%d/c%02d/v.mp4", n, i);
            char *path = pv_strdup(in(name)), *slash = strrchr(path, '/');
            *slash = 0;
            expect_fine(pv_make_folder(path, &error), &error);
            *slash = '/';
            write_text(path, "x");
            free(path);
        }
        snprintf(name, sizeof name, "n%d", n);
        PvDataOptions options = {.path = in(name), .source = "labels", .seed = 5};
        for (int order = 0; order < 3; order++) {
            int64_t labels[64], seen[64] = {0};
            options.seed = order == 2 ? 6 : 5;
            PvData *data = pv_data_open(&options, &error);
            assert_int_equal(pv_data_videos(data), n);
            assert_int_equal(pv_data_classes(data), n);
            expect_fine(pv_data_fill(data, order == 1 ? n : 0, n, labels, &error), &error);
            for (int i = 0; i < n; i++) {
                assert_in_range(labels[i], 0, n - 1);
                assert_int_equal(seen[labels[i]]++, 0);
                orders[order][i] = (char)labels[i];
            }
            pv_data_close(data);
        }
        if (n > 10) {
            assert_memory_not_equal(orders[0], orders[1], (size_t)n);
            assert_memory_not_equal(orders[0], orders[2], (size_t)n);
        }
    }
}

enum { SAMPLE = 3 * 4 * 4 * 4 }; // 4 frames of 4 x 4

static void windows_are_consecutive(void **state)
{
    (void)state;
    PvError error = {0};
    PvDataOptions options = clips_of(in("set"), 4);
    PvData *data = pv_data_open(&options, &error);
    assert_int_equal(pv_data_videos(data), 3);
    PvReal *batch = malloc(60 * SAMPLE * sizeof *batch);
    expect_fine(pv_data_fill(data, 0, 60, batch, &error), &error);
    int starts[16] = {0}, kinds = 0;
    for (int i = 0; i < 60; i++) {
        int first_video, first_frame;
        see(batch + i * SAMPLE, 4, 0, 4, &first_video, &first_frame);
        assert_in_range(first_video, 0, 2);
        if (first_video == 0) {
            assert_in_range(first_frame, 0, 8);
            kinds += starts[first_frame]++ == 0;
        }
        for (int t = 1; t < 4; t++) {
            int video, frame;
            see(batch + i * SAMPLE, 4, t, 4, &video, &frame);
            assert_int_equal(video, first_video);
            assert_int_equal(frame, first_frame + t);
        }
    }
    assert_true(kinds >= 5); // starts differ
    free(batch);
    pv_data_close(data);
}

// Batches in the background, from any position, are the samples asked for directly; the size of
// the cache changes nothing.
static void resumes_anywhere(void **state)
{
    (void)state;
    PvError error = {0};
    PvDataOptions options = clips_of(in("set"), 4);
    PvReal *all = malloc(20 * SAMPLE * sizeof *all), *part = malloc(5 * SAMPLE * sizeof *part);
    PvData *data = pv_data_open(&options, &error);
    expect_fine(pv_data_fill(data, 0, 20, all, &error), &error);
    expect_fine(pv_data_start(data, 0, 5, &error), &error);
    for (int k = 0; k < 4; k++) {
        assert_int_equal(pv_data_position(data), 5 * k);
        expect_fine(pv_data_next(data, part, &error), &error);
        assert_memory_equal(part, all + k * 5 * SAMPLE, 5 * SAMPLE * sizeof *part);
    }
    pv_data_close(data);
    options.cache_bytes = 1;
    data = pv_data_open(&options, &error);
    expect_fine(pv_data_start(data, 7, 5, &error), &error);
    expect_fine(pv_data_next(data, part, &error), &error);
    assert_memory_equal(part, all + 7 * SAMPLE, 5 * SAMPLE * sizeof *part);
    expect_fine(pv_data_start(data, 2, 3, &error), &error); // and anew
    expect_fine(pv_data_next(data, part, &error), &error);
    assert_memory_equal(part, all + 2 * SAMPLE, 3 * SAMPLE * sizeof *part);
    pv_data_close(data);
    free(all);
    free(part);
}

static void short_clips_are_padded(void **state)
{
    (void)state;
    PvError error = {0};
    PvDataOptions options = clips_of(in("short"), 8); // videos of 12, 5 and 3 frames
    enum { LONG = 2 * SAMPLE };
    PvReal *batch = malloc(12 * LONG * sizeof *batch);
    for (int pad = 0; pad < 2; pad++) {
        int padded = 0;
        options.pad = pad;
        PvData *data = pv_data_open(&options, &error);
        expect_fine(pv_data_fill(data, 0, 12, batch, &error), &error);
        for (int i = 0; i < 12; i++) {
            int video, frame, last;
            see(batch + i * LONG, 8, 0, 4, &video, &frame);
            padded += video < 0;
            for (int t = 0; t < 4; t++) {
                see(batch + i * LONG, 8, t, 4, &video, &last);
                assert_int_equal(last, frame < 0 ? -1 : frame + t);
            }
            see(batch + i * LONG, 8, 4, 4, &video, &last);
            assert_true(last >= 0 && (frame >= 0 || last <= 1));
        }
        assert_true(pad ? padded >= 4 : padded == 0);
        assert_int_equal(pv_data_skipped(data), pad ? 1 : 2);
        pv_data_close(data);
    }
    free(batch);
}

static void damaged_videos_are_skipped(void **state)
{
    (void)state;
    PvError error = {0};
    PvReal *batch = malloc(12 * SAMPLE * sizeof *batch);
    make_frames(in("hurt/a"), 0, 6);
    make_frames(in("hurt/b"), 1, 6);
    write_text(in("hurt/b/f3.png"), "not a picture");
    PvDataOptions options = clips_of(in("hurt"), 4);
    PvData *data = pv_data_open(&options, &error);
    expect_fine(pv_data_fill(data, 0, 12, batch, &error), &error);
    for (int i = 0; i < 12; i++) {
        int video, frame;
        see(batch + i * SAMPLE, 4, 0, 4, &video, &frame);
        assert_int_equal(video, 0);
    }
    assert_int_equal(pv_data_skipped(data), 1);
    pv_data_close(data);
    options.frames = 7; // too long for all
    data = pv_data_open(&options, &error);
    assert_false(pv_data_fill(data, 0, 1, batch, &error));
    expect(&error, PV_WRONG, "none of the 2 videos can be used");
    expect_fine(pv_data_start(data, 0, 1, &error), &error);
    assert_false(pv_data_next(data, batch, &error));
    expect(&error, PV_WRONG, "none of the 2 videos can be used");
    pv_data_close(data);
    free(batch);
}

static void layouts(void **state)
{
    (void)state;
    PvError error = {0};
    // UCF-101: lists beside class folders
    make_frames(in("ucf/UCF-101/Run/v1"), 0, 4);
    make_frames(in("ucf/UCF-101/Run/v2"), 1, 4);
    make_frames(in("ucf/UCF-101/Swim/v1"), 2, 4);
    expect_fine(pv_make_folder(in("ucf/ucfTrainTestlist"), &error), &error);
    write_text(in("ucf/ucfTrainTestlist/trainlist01.txt"),
               "Run/v1 1\r\nSwim/v1 2\r\nRun/gone.avi 1\r\n");
    write_text(in("ucf/ucfTrainTestlist/testlist01.txt"), "Run/v2\n");
    PvDataOptions options = clips_of(in("ucf"), 4);
    PvData *data = pv_data_open(&options, &error);
    assert_int_equal(pv_data_videos(data), 2);
    assert_int_equal(pv_data_classes(data), 2);
    assert_string_equal(pv_data_video_name(data, 1), "Swim/v1");
    pv_data_close(data);
    options.split = "test";
    data = pv_data_open(&options, &error);
    assert_int_equal(pv_data_videos(data), 1);
    pv_data_close(data);
    options.split = "all";
    data = pv_data_open(&options, &error);
    assert_int_equal(pv_data_videos(data), 3);
    pv_data_close(data);
    // a list of one's own
    write_text(in("mine.txt"), "# chosen\nUCF-101/Swim/v1\n\n");
    options.list = in("mine.txt");
    data = pv_data_open(&options, &error);
    assert_int_equal(pv_data_videos(data), 1);
    pv_data_close(data);
    // SkyTimelapse: train/<video>/<clip>/frames
    make_frames(in("sky/train/v/c1"), 0, 4);
    make_frames(in("sky/train/v/c2"), 1, 4);
    make_frames(in("sky/test/w/c1"), 2, 4);
    options = clips_of(in("sky"), 4);
    data = pv_data_open(&options, &error);
    assert_int_equal(pv_data_videos(data), 2);
    assert_string_equal(pv_data_video_name(data, 0), "v/c1");
    pv_data_close(data);
    options.path = in("nothing");
    assert_null(pv_data_open(&options, &error));
    expect(&error, PV_WRONG, "holds no videos");
    options.path = in("not there");
    assert_null(pv_data_open(&options, &error));
    expect(&error, PV_WRONG, "does not exist");
    options.source = "sounds";
    assert_null(pv_data_open(&options, &error));
    expect(&error, PV_WRONG, "no data source 'sounds'");
}

static void images_and_order(void **state)
{
    (void)state;
    PvError error = {0};
    PvReal image[3 * 16], batch[4 * SAMPLE];
    PvDataOptions options = clips_of(in("set"), 1);
    options.source = "images";
    PvData *data = pv_data_open(&options, &error);
    int seen = 0;
    for (int i = 0; i < 30; i++) {
        int video, frame;
        expect_fine(pv_data_fill(data, i, 1, image, &error), &error);
        see(image, 1, 0, 4, &video, &frame);
        seen |= 1 << frame;
    }
    assert_true(__builtin_popcount((unsigned)seen) > 6);
    pv_data_close(data);
    options = clips_of(in("set"), 4);
    options.in_order = true;
    data = pv_data_open(&options, &error);
    expect_fine(pv_data_fill(data, 0, 4, batch, &error), &error);
    for (int i = 0; i < 4; i++) {
        int video, frame;
        see(batch + i * SAMPLE, 4, 0, 4, &video, &frame);
        assert_int_equal(video, i % 3);
        assert_int_equal(frame, 0);
    }
    pv_data_close(data);
}

static void count_progress(void *context, int64_t done, int64_t total)
{
    assert_true(done <= total);
    ++*(int *)context;
}

static void packed_is_the_same(void **state)
{
    (void)state;
    PvError error = {0};
    int calls = 0;
    PvReal *a = malloc(12 * SAMPLE * sizeof *a), *b = malloc(12 * SAMPLE * sizeof *b);
    PvDataOptions options = clips_of(in("set"), 4);
    expect_fine(pv_data_pack(&options, in("set.safetensors"), count_progress, &calls, &error),
                &error);
    assert_int_equal(calls, 3);
    PvData *data = pv_data_open(&options, &error);
    expect_fine(pv_data_fill(data, 0, 12, a, &error), &error);
    pv_data_close(data);
    options.path = in("set.safetensors");
    data = pv_data_open(&options, &error);
    expect_fine(pv_data_fill(data, 0, 12, b, &error), &error);
    assert_memory_equal(a, b, 12 * SAMPLE * sizeof *a);
    assert_int_equal(pv_data_videos(data), 3);
    pv_data_close(data);
    options.height = options.width = 2; // resized on the way
    data = pv_data_open(&options, &error);
    expect_fine(pv_data_fill(data, 0, 12, b, &error), &error);
    assert_true(b[0] == a[0]);
    pv_data_close(data);
    size_t size;
    char *text = pv_read_file(options.path, 1 << 24, &size, &error);
    expect_fine(pv_file_replace(in("cut.safetensors"), text, size - 30, &error), &error);
    free(text);
    options.path = in("cut.safetensors");
    assert_null(pv_data_open(&options, &error));
    expect(&error, PV_WRONG, "cut off");
    options.path = in("nothing");
    assert_false(pv_data_pack(&options, in("x.safetensors"), NULL, NULL, &error));
    expect(&error, PV_WRONG, "holds no videos");
    free(a);
    free(b);
}

static int set_up(void **state)
{
    if (make_folder(state))
        return -1;
    make_frames(in("set/a"), 0, 12);
    make_frames(in("set/b"), 1, 4);
    make_frames(in("set/c"), 2, 7);
    make_frames(in("short/a"), 0, 12);
    make_frames(in("short/b"), 1, 5);
    make_frames(in("short/c"), 2, 3);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_the_plug_in),
        cmocka_unit_test(folders_of_frames),
        cmocka_unit_test(reals_and_bytes),
        cmocka_unit_test(video_files),
        cmocka_unit_test(epochs),
        cmocka_unit_test(windows_are_consecutive),
        cmocka_unit_test(resumes_anywhere),
        cmocka_unit_test(short_clips_are_padded),
        cmocka_unit_test(damaged_videos_are_skipped),
        cmocka_unit_test(layouts),
        cmocka_unit_test(images_and_order),
        cmocka_unit_test(packed_is_the_same),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
