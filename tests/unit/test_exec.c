// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// The executor and the commands of an executable, on a model written by hand (small_model.h).
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "small_model.h"

#include "runtime/command.h"
#include "runtime/file.h"
#include "runtime/machine.h"
#include "runtime/safetensors.h"
#include "runtime/weights.h"

static char folder[] = "/tmp/pvdm-exec-XXXXXX";

static char *at(const char *name)
{
    static char paths[8][128];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void put(PvTensorSet *set, const char *name, int rank, const int64_t *dim, const float *data)
{
    PvTensor *tensor = pv_tensor_new(PV_F32, rank, dim, NULL);
    memcpy(tensor->data, data, (size_t)tensor->bytes);
    pv_set_add(set, name, tensor);
}

static void save(PvTensorSet *set, const char *path)
{
    PvError error = {0};
    assert_true(pv_safetensors_write(path, set, &error));
    pv_set_free(set);
}

static PvTensorSet load(const char *path)
{
    PvTensorSet set = {0};
    PvError error = {0};
    if (!pv_safetensors_read(path, &set, &error))
        fail_msg("%s", error.text);
    return set;
}

static float number(const PvTensorSet *set, const char *name, int64_t i)
{
    const PvTensor *tensor = pv_set_find(set, name);
    if (!tensor)
        fail_msg("no tensor '%s'", name);
    assert_true(i < tensor->count);
    return (float)pv_tensor_number(tensor, i);
}

// Runs a command given as one line of words; stdout is dropped. The message goes to `text`.
static int command(PvStatus (*run)(int, char **, PvError *), char text[512], const char *format,
                   ...)
{
    char line[1024], *words[40], *rest = line;
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    int count = 0;
    for (char *word; (word = strsep(&rest, " ")) != NULL;)
        words[count++] = word;
    PvError error = {0};
    fflush(stdout);
    int keep = dup(1), keep_error = dup(2);
    FILE *null = fopen("/dev/null", "w");
    dup2(fileno(null), 1);
    dup2(fileno(null), 2);
    PvStatus status = run(count, words, &error);
    fflush(stdout);
    dup2(keep, 1);
    dup2(keep_error, 2);
    close(keep);
    close(keep_error);
    fclose(null);
    if (text)
        snprintf(text, 512, "%s %s", error.text ? error.text : "", error.hint ? error.hint : "");
    if (status == PV_DONE && error.text)
        fail_msg("done, yet: %s", error.text);
    pv_error_free(&error);
    return (int)status;
}

static void must(PvStatus (*run)(int, char **, PvError *), const char *line)
{
    char text[512];
    int status = command(run, text, "%s", line);
    if (status != 0)
        fail_msg("%s: status %d: %s", line, status, text);
}

static void refuse(PvStatus (*run)(int, char **, PvError *), int status, const char *part,
                   const char *line)
{
    char text[512];
    int found = command(run, text, "%s", line);
    if (found != status || !strstr(text, part))
        fail_msg("%s: status %d, expected %d; '%s' in: %s", line, found, status, part, text);
}

static const float six[] = {1, 2, 3, 4, 5, 6};

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    const int64_t rows[] = {2, 3}, wide[] = {2, 4}, three[] = {3}, one[] = {1};
    const float w[] = {2, 3, 4}, gain[] = {10}, eight[8] = {0};
    PvTensorSet set = {0};
    put(&set, "x", 2, rows, six);
    put(&set, "y", 2, wide, eight);
    put(&set, "gain", 1, one, gain);
    save(&set, at("in.st"));
    PvTensorSet only_x = {0};
    put(&only_x, "x", 2, rows, six);
    save(&only_x, at("x.st"));
    PvTensorSet weights = {0};
    put(&weights, "w", 1, three, w);
    put(&weights, "seen", 1, one, gain);
    save(&weights, at("w.st"));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char line[64];
    snprintf(line, sizeof line, "rm -rf %s", folder);
    return system(line);
}

static char *line_of(const char *format, ...)
{
    static char line[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    return line;
}

// ---- the executor ----

static void one_plan_serves_every_batch(void **state)
{
    (void)state;
    PvError error = {0};
    PvExec *exec = pv_exec_new(&pv_model, 2, &error);
    PvScalar none[8] = {{0}};
    PvRandom *random = pv_random_new(&pv_model, 0);
    for (int k = 0; k < 3; k++)
        ((float *)exec->params)[k] = (float)(k + 1);
    PvCall *call = pv_call_new(&pv_model.entries[0], none, random);
    for (int64_t batch = 1; batch <= 4; batch *= 2) {
        int64_t dim[] = {batch, 3};
        PvTensor *x = pv_tensor_new(PV_F32, 2, dim, &error);
        for (int64_t i = 0; i < x->count; i++)
            ((float *)x->data)[i] = 1;
        assert_true(pv_call_set(call, 0, x, "x", &error));
        assert_true(pv_call_settle(call, 1, &error));
        assert_int_equal(call->step.batch, batch);
        PvCallPlan plan = {0};
        assert_true(pv_call_run(exec, call, &plan, &error));
        const float *y = call->outputs[0]->data;
        assert_int_equal(call->outputs[0]->count, 3 * batch);
        for (int64_t i = 0; i < 3 * batch; i++)
            assert_true(y[i] == (float)(i % 3 + 1));
        pv_tensor_drop(x);
    }
    pv_call_free(call);
    pv_random_free(random);
    pv_exec_free(exec);
}

// ---- run and grad ----

static void run_writes_outputs(void **state)
{
    (void)state;
    must(cmd_run, line_of("run scale --weights net=%s --in %s --out %s", at("w.st"), at("x.st"),
                          at("out.st")));
    PvTensorSet out = load(at("out.st"));
    const float expected[] = {2, 6, 12, 8, 15, 24};
    for (int i = 0; i < 6; i++)
        assert_true(number(&out, "y", i) == expected[i]);
    assert_int_equal(out.count, 1);
    pv_set_free(&out);
}

static void optional_inputs_choose_the_variant(void **state)
{
    (void)state;
    must(cmd_run, line_of("run scale --weights net=%s --in %s --out %s", at("w.st"), at("in.st"),
                          at("out.st")));
    PvTensorSet out = load(at("out.st"));
    assert_true(number(&out, "y", 0) == 20);
    pv_set_free(&out);
    must(cmd_run, line_of("run scale --weights net=%s --in x=%s:x --set gain=0.5 --out %s",
                          at("w.st"), at("in.st"), at("out.st")));
    out = load(at("out.st"));
    assert_true(number(&out, "y", 5) == 12);
    pv_set_free(&out);
}

static void taps_are_copied_where_they_are_made(void **state)
{
    (void)state;
    must(cmd_run, line_of("run scale --weights net=%s --in %s --tap net,net#2,scale.x --out %s",
                          at("w.st"), at("x.st"), at("out.st")));
    PvTensorSet out = load(at("out.st"));
    assert_int_equal(out.count, 4);
    assert_true(number(&out, "net", 4) == 15 && number(&out, "net#2", 4) == 15);
    assert_true(number(&out, "scale.x", 4) == 5);
    pv_set_free(&out);
    must(cmd_run, line_of("run scale --weights net=%s --in %s --tap all --out %s", at("w.st"),
                          at("x.st"), at("out.st")));
    out = load(at("out.st"));
    assert_int_equal(out.count, 4);
    pv_set_free(&out);
    refuse(cmd_run, 1, "did you mean 'net'",
           line_of("run scale --weights net=%s --in %s --tap nett", at("w.st"), at("x.st")));
}

static void wrong_runs_are_told(void **state)
{
    (void)state;
    const char *w = at("w.st"), *in = at("in.st");
    refuse(cmd_run, 1, "did you mean 'scale'", line_of("run scal --in %s", in));
    refuse(cmd_run, 1, "--weights net=", line_of("run scale --in %s", in));
    refuse(cmd_run, 1, "needs the input 'x'", line_of("run scale --weights net=%s", w));
    refuse(cmd_run, 1, "[2, 4]", line_of("run scale --weights net=%s --in x=%s:y", w, in));
    refuse(cmd_run, 1, "no tensor 'q'", line_of("run scale --weights net=%s --in x=%s:q", w, in));
    refuse(cmd_run, 1, "unknown input 'z'", line_of("run scale --weights net=%s --in z=%s", w, in));
    refuse(cmd_run, 1, "gainn", line_of("run scale --weights net=%s --in %s --set gainn=2", w, in));
    refuse(cmd_run, 2, "--weights", line_of("run scale --weight net=%s", w));
    refuse(cmd_run, 2, "too few", "run");
    refuse(cmd_grad, 1, "has no gradient", line_of("grad scale --in %s", in));
}

static void grad_writes_gradients(void **state)
{
    (void)state;
    must(cmd_grad, line_of("grad total --weights net=%s --in %s --out %s", at("w.st"), at("x.st"),
                           at("out.st")));
    PvTensorSet out = load(at("out.st"));
    assert_true(number(&out, "loss", 0) == 67);
    assert_true(number(&out, "grad.net.w", 0) == 5 && number(&out, "grad.net.w", 2) == 9);
    assert_true(number(&out, "grad.x", 4) == 3);
    assert_int_equal(out.count, 3);
    pv_set_free(&out);
}

// ---- memory ----

static void too_little_memory_is_told_with_what_fits(void **state)
{
    (void)state;
    PvMemoryFree space = pv_memory_free();
    assert_true(space.bytes > 0);
    PvMemoryItem items[] = {{"parameters", 1 << 20, 0}, {"activations", 0, space.bytes / 4}};
    PvError error = {0};
    assert_true(pv_memory_check("train x", items, 2, 1, &error));
    assert_false(pv_memory_check("train x", items, 2, 8, &error));
    assert_int_equal(error.status, PV_MACHINE);
    assert_non_null(strstr(error.text, "at batch 8"));
    assert_non_null(strstr(error.text, "batch 3 fits"));
    items[0].fixed = INT64_MAX / 4;
    assert_false(pv_memory_check("train x", items, 2, 8, &error));
    assert_non_null(strstr(error.text, "no batch fits"));
    pv_error_free(&error);
}

static void another_processor_is_told(void **state)
{
    (void)state;
    PvModel other = pv_model;
    PvError error = {0};
    other.features = PV_FEATURES; // of this test: it runs
    assert_true(pv_machine_check(&other, &error));
#if defined __x86_64__
    if (!__builtin_cpu_supports("avx512f")) {
        other.features |= 16;
        assert_false(pv_machine_check(&other, &error));
        assert_int_equal(error.status, PV_MACHINE);
        assert_non_null(strstr(error.text, "avx512f"));
    }
#endif
    pv_error_free(&error);
}

// ---- training ----

static void same_parameters(const char *first, const char *second)
{
    PvTensorSet x = load(first), y = load(second);
    assert_int_equal(x.count, y.count);
    for (size_t i = 0; i < x.count; i++) {
        assert_string_equal(x.items[i].name, y.items[i].name);
        assert_memory_equal(x.items[i].tensor->data, y.items[i].tensor->data,
                            (size_t)x.items[i].tensor->bytes);
    }
    assert_int_equal(x.metadata_count, y.metadata_count);
    for (size_t i = 0; i < x.metadata_count; i++)
        assert_string_equal(x.metadata[i].value, y.metadata[i].value);
    pv_set_free(&x);
    pv_set_free(&y);
}

static void a_resumed_run_has_the_same_bits(void **state)
{
    (void)state;
    must(cmd_train,
         line_of("train fit --out %s --steps 40 --batch 2 --seed 7 --threads 1", at("whole")));
    must(cmd_train, line_of("train fit --out %s --steps 15 --batch 2 --seed 7", at("parts")));
    refuse(cmd_train, 1, "--resume",
           line_of("train fit --out %s --steps 40 --batch 2", at("parts")));
    must(cmd_train, line_of("train fit --out %s --steps 40 --batch 2 --resume --set save_every=5",
                            at("parts")));
    same_parameters(at("whole/step-00000040.safetensors"), at("parts/step-00000040.safetensors"));
    PvTensorSet end = load(at("whole/step-00000040.safetensors"));
    assert_true(fabsf(number(&end, "net.w", 0) - 0.25f) < 0.3f);
    assert_true(number(&end, "net.seen", 0) == 80); // two micro-steps each
    assert_string_equal(pv_set_metadata(&end, "updates.0"), "40");
    assert_string_equal(pv_set_metadata(&end, "ema_updates.0"), "20");
    pv_set_free(&end);
    assert_false(pv_path_exists(at("parts/step-00000015.safetensors"))); // the last 3 are kept
    assert_true(pv_path_exists(at("parts/step-00000030.safetensors")));
    assert_true(pv_path_exists(at("parts/log.jsonl")));
}

static void settings_come_from_yaml_and_flags(void **state)
{
    (void)state;
    FILE *file = fopen(at("c.yaml"), "w");
    fprintf(file, "batch: 2\nfit:\n  lr: 0.1\n  steps: 6\nagain:\n  lr: 3\n  odd: 1\n");
    fclose(file);
    must(cmd_train, line_of("train fit --config %s --out %s --set seed=3", at("c.yaml"), at("y")));
    must(cmd_train,
         line_of("train fit --out %s --set lr=0.1 --seed 3 --batch 2 --steps 6", at("z")));
    same_parameters(at("y/step-00000006.safetensors"), at("z/step-00000006.safetensors"));
    refuse(cmd_train, 1, "lr", line_of("train fit --config %s --set lrr=1", at("c.yaml")));
    refuse(cmd_train, 1, "batch is 0", line_of("train fit --set batch=0"));
    refuse(cmd_train, 1, "did you mean 'fit'", "train fitt");
    refuse(cmd_train, 1, "has seed 3",
           line_of("train fit --out %s --resume --steps 9 --seed 4", at("y")));
}

static void a_loss_that_is_not_finite_stops_the_run(void **state)
{
    (void)state;
    must(cmd_train, line_of("train fit --out %s --steps 3", at("nan")));
    refuse(cmd_train, 1, "the loss is nan",
           line_of("train fit --out %s --steps 9 --resume --set bad=true", at("nan")));
    assert_true(pv_path_exists(at("nan/step-00000003.safetensors")));
    assert_false(pv_path_exists(at("nan/step-00000004.safetensors")));
}

// Ctrl-C: a checkpoint is written, and going on from it gives the same bits.
static void a_signal_writes_a_checkpoint(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) { // a program anew: OpenMP does not survive a fork
        alarm(60);
        signal(SIGINT, SIG_DFL); // a shell's `&` may ignore it
        execl("/proc/self/exe", "test_exec", "train", "fit", "--out", at("signal"), "--steps",
              "100000000", "--seed", "5", (char *)NULL);
        _exit(99);
    }
    for (int i = 0; i < 500 && !pv_path_exists(at("signal/log.jsonl")); i++)
        usleep(10000);
    usleep(50000);
    kill(child, SIGINT);
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    PvError error = {0};
    char *path = pv_checkpoint_latest(at("signal"), &error);
    assert_non_null(path);
    PvTensorSet set = load(path);
    assert_true(atoll(pv_set_metadata(&set, "step")) > 0);
    assert_string_equal(pv_set_metadata(&set, "draws.noise"),
                        line_of("%lld", 2 * atoll(pv_set_metadata(&set, "step"))));
    pv_set_free(&set);
    free(path);
}

static void replay_takes_batches_from_a_file(void **state)
{
    (void)state;
    const int64_t rows[] = {2, 3};
    const float other[] = {-1, -2, -3, -4, -5, -6};
    PvTensorSet set = {0};
    put(&set, "x.0", 2, rows, six);
    put(&set, "x.1", 2, rows, other);
    save(&set, at("replay.st"));
    must(cmd_train, line_of("train again --weights net=%s --replay %s --steps 2 --state %s "
                            "--set lr=0.001",
                            at("w.st"), at("replay.st"), at("state.st")));
    PvTensorSet out = load(at("state.st"));
    assert_true(number(&out, "loss", 0) == 67);
    assert_true(fabsf(number(&out, "loss", 1) + 67) < 0.1f);
    assert_true(fabsf(number(&out, "adam_m.net.w", 0) - (0.9f * 0.5f - 0.5f)) < 1e-5f);
    assert_true(number(&out, "ema.net.w", 1) > 0);
    assert_non_null(pv_set_find(&out, "adam_v.net.w"));
    assert_null(pv_set_find(&out, "adam_v.net.seen"));
    pv_set_free(&out);
    refuse(cmd_train, 1, "neither 'x.2' nor 'x'",
           line_of("train again --weights net=%s --replay %s --steps 3 --state %s", at("w.st"),
                   at("replay.st"), at("state.st")));
}

// ---- sampling ----

static void a_trace_follows_given_noise(void **state)
{
    (void)state;
    const int64_t rows[] = {2, 3};
    const float zeros[6] = {0};
    PvTensorSet set = {0};
    put(&set, "cond", 2, rows, six);
    put(&set, "noise.0", 2, rows, zeros);
    put(&set, "noise.1", 2, rows, six);
    save(&set, at("noise.st"));
    // no video is asked for, so that nothing needs weights
    must(cmd_sample,
         line_of("sample --noise %s --trace %s --steps 2", at("noise.st"), at("trace.st")));
    PvTensorSet out = load(at("trace.st"));
    assert_int_equal(out.count, 2);
    assert_true(number(&out, "x_after.1", 3) == 2);
    assert_true(number(&out, "x_after.2", 3) == 1 + 4);
    pv_set_free(&out);
}

static void videos_are_written(void **state)
{
    (void)state;
    refuse(cmd_sample, 1, "--weights net=", line_of("sample -o %s", at("v.png")));
    refuse(cmd_sample, 2, "where to", line_of("sample --weights net=%s", at("w.st")));
    refuse(cmd_sample, 2, "--steps", line_of("sample --weights net=%s --stepps 3", at("w.st")));
    refuse(cmd_sample, 1, "did you mean 'paint'",
           line_of("sample --sampler pain -o %s", at("v.png")));
    must(cmd_sample,
         line_of("sample --weights net=%s --batch 2 --clips 2 -o %s", at("w.st"), at("v.png")));
    assert_true(pv_path_exists(at("v.png")));
    must(cmd_sample, line_of("sample --weights net=%s --frames 3 -o %s", at("w.st"), at("frames")));
    char **names;
    size_t count;
    PvError error = {0};
    assert_true(pv_list_folder(at("frames"), &names, &count, &error));
    assert_int_equal(count, 3); // of two clips of 2 frames
    pv_names_free(names, count);
}

static void seeds_give_samples(void **state)
{
    (void)state;
    must(cmd_sample, line_of("sample --trace %s --seed 1", at("s1.st")));
    must(cmd_sample, line_of("sample --trace %s --seed 1 --threads 1", at("s2.st")));
    must(cmd_sample, line_of("sample --trace %s --seed 2", at("s3.st")));
    same_parameters(at("s1.st"), at("s2.st"));
    PvTensorSet first = load(at("s1.st")), other = load(at("s3.st"));
    assert_true(number(&first, "x_after.1", 0) != number(&other, "x_after.1", 0));
    pv_set_free(&first);
    pv_set_free(&other);
}

// ---- info, weights ----

static void info_is_json(void **state)
{
    (void)state;
    must(cmd_info, "info --json");
    must(cmd_info, "info");
}

static void weights_go_in_and_out(void **state)
{
    (void)state;
    must(cmd_weights, line_of("weights ls %s", at("w.st")));
    must(cmd_weights, line_of("weights import %s -o %s", at("w.st"), at("i.st")));
    PvTensorSet set = load(at("i.st"));
    assert_true(number(&set, "net.w", 1) == 3);
    pv_set_free(&set);
    must(cmd_weights,
         line_of("weights export %s --instance net --prefix model. -o %s", at("i.st"), at("e.st")));
    set = load(at("e.st"));
    assert_true(number(&set, "model.w", 1) == 3);
    pv_set_free(&set);
    refuse(cmd_weights, 1, "missing", line_of("weights import %s -o %s", at("x.st"), at("i.st")));
    refuse(cmd_weights, 2, "did you mean", line_of("weights lss %s", at("x.st")));
    refuse(cmd_reconstruct, 1, "no program `reconstruct`", "reconstruct a.mp4");
}

int main(int argc, char **argv)
{
    pv_set_program("small");
    if (argc > 1) {
        PvError error = {0};
        return freopen("/dev/null", "w", stderr) ? (int)cmd_train(argc - 1, argv + 1, &error) : 99;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_plan_serves_every_batch),
        cmocka_unit_test(run_writes_outputs),
        cmocka_unit_test(optional_inputs_choose_the_variant),
        cmocka_unit_test(taps_are_copied_where_they_are_made),
        cmocka_unit_test(wrong_runs_are_told),
        cmocka_unit_test(grad_writes_gradients),
        cmocka_unit_test(too_little_memory_is_told_with_what_fits),
        cmocka_unit_test(another_processor_is_told),
        cmocka_unit_test(a_resumed_run_has_the_same_bits),
        cmocka_unit_test(settings_come_from_yaml_and_flags),
        cmocka_unit_test(a_loss_that_is_not_finite_stops_the_run),
        cmocka_unit_test(a_signal_writes_a_checkpoint),
        cmocka_unit_test(replay_takes_batches_from_a_file),
        cmocka_unit_test(a_trace_follows_given_noise),
        cmocka_unit_test(videos_are_written),
        cmocka_unit_test(seeds_give_samples),
        cmocka_unit_test(info_is_json),
        cmocka_unit_test(weights_go_in_and_out),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
