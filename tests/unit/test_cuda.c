// link: pvdm32 jansson yaml png jpeg minizip z -fopenmp dl
// The executor on GPUs: the commands of small_model.h through the driver for tests (tests/simt),
// against the same commands on the CPU; graphs; what is told when something is missing or fails.
// Every command is a process of its own, since a driver is opened once.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/pvdm.h"

static const PvCuda cuda;
static const PvCudaKernel small_kernels[], scale_90a;
#define SMALL_CUDA       &cuda
#define SMALL_CUDA_OF(i) &small_kernels[i]
#define SMALL_SCALE_90A  &scale_90a
#include "small_model.h"

#include "codegen/kernel_args.h"
#include "runtime/command.h"
#include "runtime/cuda_exec.h"
#include "runtime/file.h"
#include "runtime/random.h"
#include "runtime/safetensors.h"

static void one_block(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    (void)kernel;
    (void)args;
    *grid = (PvCudaGrid){.blocks = {1}};
}

static void block_a_chunk(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    (void)kernel;
    *grid = (PvCudaGrid){.blocks = {(uint32_t)args[1], 1}, .workspace = 8 * args[1]};
}

// x [n] f32 as bf16, in boxes of 128 bytes. SMALL_MAP=bad: where no map may begin.
static void one_block_of_boxes(const PvCudaKernel *kernel, const int64_t *args, PvCudaGrid *grid)
{
    (void)kernel;
    const char *wanted = getenv("SMALL_MAP");
    uint64_t at = (uint64_t)args[1] + (wanted && strcmp(wanted, "bad") == 0 ? 8 : 0);
    PvTensorMap map = {.address = at, .rank = 2, .size = {2 * (uint64_t)args[4], 1},
                       .stride = {16}, .box = {64, 1}};
    *grid = (PvCudaGrid){.blocks = {1}, .maps = {map, map}, .numbers[5] = 3};
}

static const PvCudaKernel scale_90a = {.symbol = "scale_90a", .phases = 1, .segments = 1,
                                       .threads = {1}, .shared = {1024}, .maps = PV_CUDA_MAPS,
                                       .shape = one_block_of_boxes};

#define KERNEL(name, phases, shape)                                                                \
    {                                                                                              \
        name, 0, phases, 1, {1, 1}, {0}, {0}, shape, 0, {0}                                        \
    }
static const PvCudaKernel small_kernels[] = {
    KERNEL("scale", 1, one_block),      KERNEL("sum", 1, one_block),
    KERNEL("total_grad", 1, one_block), KERNEL("noise", 1, one_block),
    KERNEL("fit", 1, one_block),        KERNEL("store", 1, one_block),
    KERNEL("paint", 1, one_block),      KERNEL("halve", 1, one_block),
};
static const PvCudaKernel optimizer_kernels[] = {
    KERNEL("square_sums", 2, block_a_chunk), KERNEL("adamw", 1, block_a_chunk),
    KERNEL("accumulate", 1, block_a_chunk),  KERNEL("average_all", 1, block_a_chunk),
    KERNEL("normal", 1, one_block),
};
static const char *const optimizer_names[] = {"square_sums", "adamw", "accumulate", "average",
                                              "normal"};
static PvCudaImage images[] = {{.module = 0, .arch = PV_ARCH_SIMT}};
static const PvCuda cuda = {
    1, images, COUNT(images), optimizer_kernels, COUNT(optimizer_kernels), optimizer_names, 13000};

static char folder[] = "/tmp/pvdm-cuda-XXXXXX", driver[512];
static PvMapping *program;

// ---- commands ----

// Runs a command, a line of words of which "@" stands for the folder, in a process with these
// settings ("NAME=VALUE NAME=VALUE"); gives its status and what it said.
static int command(const char *settings, const char *line, char text[2048])
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        static char variables[1024]; // putenv keeps them
        char all[2048] = "", *words[64], *rest = all, *more = variables;
        snprintf(variables, sizeof variables, "%s", settings);
        for (const char *from = line; *from; from++)
            snprintf(all + strlen(all), sizeof all - strlen(all), "%.*s",
                     *from == '@' ? (int)strlen(folder) : 1, *from == '@' ? folder : from);
        int count = 0;
        for (char *word; (word = strsep(&rest, " ")) != NULL;)
            words[count++] = word;
        for (char *word; (word = strsep(&more, " ")) != NULL;)
            putenv(word);
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        PvError error = {0};
        PvStatus status = !strcmp(words[0], "run")     ? cmd_run(count, words, &error)
                          : !strcmp(words[0], "grad")  ? cmd_grad(count, words, &error)
                          : !strcmp(words[0], "train") ? cmd_train(count, words, &error)
                          : !strcmp(words[0], "info")  ? cmd_info(count, words, &error)
                                                       : cmd_sample(count, words, &error);
        if (error.text)
            pv_error_print(&error);
        pv_error_free(&error);
        fflush(NULL);
        if (status == PV_MACHINE)
            _exit(PV_MACHINE); // a device that failed frees nothing
        exit((int)status);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t got; (got = read(ends[0], text + used, 2047 - used)) > 0;)
        used += (size_t)got;
    text[used] = 0;
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static char *settings_of(const char *more)
{
    static char text[1024];
    snprintf(text, sizeof text, "PVDM_CUDA_DRIVER=%s PVDM_FAKE_PROTECT=1 %s", driver, more);
    return text;
}

static void must(const char *settings, const char *line)
{
    char text[2048];
    int status = command(settings_of(settings), line, text);
    if (status != 0)
        fail_msg("%s: status %d: %s", line, status, text);
}

// The command ends with status 3 (or `status`) and says `part`.
static void refuses(const char *settings, const char *line, int status, const char *part)
{
    char text[2048];
    int found = command(settings_of(settings), line, text);
    if (found != status || !strstr(text, part))
        fail_msg("%s %s: status %d, not %d; '%s' in: %s", settings, line, found, status, part,
                 text);
}

static PvTensorSet load(const char *name)
{
    char *path = pv_printf("%s/%s", folder, name);
    PvTensorSet set = {0};
    PvError error = {0};
    if (!pv_safetensors_read(path, &set, &error))
        fail_msg("%s", error.text);
    free(path);
    return set;
}

// The two files hold the same tensors, within a part in a million.
static void same(const char *first, const char *second)
{
    PvTensorSet x = load(first), y = load(second);
    assert_true(x.count > 0);
    assert_int_equal(x.count, y.count);
    for (size_t i = 0; i < x.count; i++) {
        assert_string_equal(x.items[i].name, y.items[i].name);
        const PvTensor *a = x.items[i].tensor, *b = y.items[i].tensor;
        assert_int_equal(a->count, b->count);
        for (int64_t k = 0; k < a->count; k++) {
            double off = fabs(pv_tensor_number(a, k) - pv_tensor_number(b, k));
            if (!(off <= 1e-6 * (1 + fabs(pv_tensor_number(a, k)))))
                fail_msg("%s, %s: %s[%d] is %.9g and %.9g", first, second, x.items[i].name, (int)k,
                         pv_tensor_number(a, k), pv_tensor_number(b, k));
        }
    }
    pv_set_free(&x);
    pv_set_free(&y);
}

// Both devices, the GPU with queued work carried out as late as permitted; outputs are compared.
static void compare(const char *line)
{
    char *cpu = pv_printf("%s --device cpu --out @/cpu.st", line);
    char *gpu = pv_printf("%s --device cuda --out @/gpu.st", line);
    must("", cpu);
    must("PVDM_FAKE_STREAMS=late", gpu);
    same("cpu.st", "gpu.st");
    must("PVDM_CUDA_SYNC=1", gpu);
    same("cpu.st", "gpu.st");
    free(cpu);
    free(gpu);
}

static void put(PvTensorSet *set, const char *name, int rank, const int64_t *dim, const float *data)
{
    PvTensor *values = pv_tensor_new(PV_F32, rank, dim, NULL);
    memcpy(values->data, data, (size_t)values->bytes);
    pv_set_add(set, name, values);
}

static void write_set(const char *name, PvTensorSet *set)
{
    PvError error = {0};
    char *path = pv_printf("%s/%s", folder, name);
    assert_true(pv_safetensors_write(path, set, &error));
    pv_set_free(set);
    free(path);
}

static int setup(void **state)
{
    (void)state;
    char path[256] = "";
    if (!mkdtemp(folder) || readlink("/proc/self/exe", path, sizeof path - 1) < 0)
        return -1;
    *strrchr(path, '/') = 0;
    snprintf(driver, sizeof driver, "%s/../lib/libpvdm_fakecuda.so", path);
    char *file = pv_printf("%s/../lib/libsmall_kernels.so", path);
    PvError error = {0};
    program = access(driver, R_OK) == 0 ? pv_mapping_open(file, &error) : NULL;
    free(file);
    if (!program) {
        printf("[  SKIPPED ] no driver for tests\n");
        exit(0);
    }
    images[0].image = program->data;
    images[0].bytes = (int64_t)program->size;
    const int64_t rows[] = {2, 3}, three[] = {3}, one[] = {1};
    PvTensorSet x = {0}, w = {0};
    put(&x, "x", 2, rows, (const float[]){1, 2, 3, 4, 5, 6});
    write_set("x.st", &x);
    put(&w, "w", 1, three, (const float[]){2, 3, 4});
    put(&w, "seen", 1, one, (const float[]){10});
    write_set("w.st", &w);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char line[64];
    snprintf(line, sizeof line, "rm -rf %s", folder);
    pv_mapping_drop(program);
    return system(line);
}

// ---- tests ----

static void programs_agree(void **state)
{
    (void)state;
    compare("run scale --weights net=@/w.st --in @/x.st");
    compare("run scale --weights net=@/w.st --in @/x.st --set gain=3 --repeat 5");
    compare("run scale --weights net=@/w.st --in @/x.st --tap all");
    compare("grad total --weights net=@/w.st --in @/x.st --repeat 4");
}

static void samplers_agree(void **state)
{
    (void)state;
    const char *line = "sample --weights net=@/w.st --steps 6 --clips 3 --seed 5 --batch 2";
    char *cpu = pv_printf("%s --device cpu --trace @/cpu.st -o @/cpu", line);
    char *gpu = pv_printf("%s --device cuda --trace @/gpu.st -o @/gpu", line);
    must("", cpu);
    must("PVDM_FAKE_STREAMS=random", gpu);
    same("cpu.st", "gpu.st");
    free(cpu);
    free(gpu);
}

static void training_agrees(void **state)
{
    (void)state;
    const char *settings = "PVDM_FAKE_STREAMS=late";
    must("", "train fit --weights net=@/w.st --steps 9 --seed 3 --device cpu --out @/c");
    must(settings, "train fit --weights net=@/w.st --steps 9 --seed 3 --device cuda --out @/g");
    same("c/step-00000009.safetensors", "g/step-00000009.safetensors");
    must(settings, "train fit --weights net=@/w.st --steps 4 --seed 3 --device cuda --out @/h");
    must(settings, "train fit --steps 9 --resume --device cuda --out @/h");
    must("", "train fit --steps 12 --resume --device cpu --out @/g"); // either device goes on
    must("", "train fit --steps 12 --resume --device cuda --out @/h");
    same("g/step-00000012.safetensors", "h/step-00000012.safetensors");
    compare("train again --replay @/x.st --steps 5 --weights net=@/w.st --state @/state.st");
}

static void what_is_not_finite_is_told(void **state)
{
    (void)state;
    refuses("PVDM_FAKE_STREAMS=late",
            "train fit --weights net=@/w.st --steps 9 --set bad=true --device cuda --out @/bad", 1,
            "the loss is nan in step 1 of fit");
    char *path = pv_printf("%s/bad/step-00000009.safetensors", folder);
    assert_int_not_equal(access(path, F_OK), 0);
    free(path);
}

static void what_is_missing_is_told(void **state)
{
    (void)state;
    const char *gpu = "run scale --weights net=@/w.st --in @/x.st --device cuda";
    refuses("PVDM_CUDA_DRIVER=/nowhere/libcuda.so", gpu, 3, "no driver of CUDA");
    refuses("PVDM_CUDA_DRIVER=libm.so.6", gpu, 3, "no driver of CUDA");
    refuses("PVDM_FAKE_VERSION=11040", gpu, 3, "of CUDA 11.4; this executable needs CUDA 12.0");
    refuses("PVDM_FAKE_DEVICES=0", gpu, 3, "no GPU");
    refuses("PVDM_FAKE_ARCH=90", gpu, 3,
            "compute capability 9.0); this executable has the emulator");
    refuses("PVDM_FAKE_MEMORY=600", gpu, 3, "not enough memory on GPU 0");
    refuses("PVDM_FAKE_MEMORY=34868", gpu, 3, "are free on the GPU; no batch fits");
    refuses("", "run scale --device cuda:7", 3, "there is no GPU 7; this machine has 1");
    refuses("", "run scale --device gpu", 2, "--device is cpu, cuda or cuda:N, not 'gpu'");
    must("PVDM_CUDA_DRIVER=/nowhere/libcuda.so", "run scale --weights net=@/w.st --in @/x.st");
    refuses("PVDM_FAKE_DEVICES=0", "run scale --weights net=@/w.st --in @/x.st", 0,
            "running on the CPU");
    must("PVDM_CUDA_DRIVER=/nowhere/libcuda.so", "info");
}

static void tensor_maps_are_encoded(void **state)
{
    (void)state;
    const char *line = "run scale --weights net=@/w.st --in @/x.st --set gain=3 --device cuda";
    compare("run scale --weights net=@/w.st --in @/x.st --set gain=3");
    refuses("SMALL_MAP=bad", line, 3, "tensor map 0 of the kernel scale_90a is refused");
    must("SMALL_MAP=bad PVDM_WGMMA=0", line); // the kernel for every GPU has none
}

static void faults_are_named(void **state)
{
    (void)state;
    refuses("PVDM_FAKE_FAULT=1", "run scale --weights net=@/w.st --in @/x.st --device cuda", 3,
            "kernel scale of small.model:1 net, or one that was queued before it, failed on GPU 0");
    refuses("PVDM_FAKE_FAULT=1", "run scale --weights net=@/w.st --in @/x.st --device cuda", 3,
            "run again with PVDM_CUDA_SYNC=1");
    refuses("PVDM_FAKE_FAULT=1 PVDM_CUDA_SYNC=1",
            "run scale --weights net=@/w.st --in @/x.st --device cuda", 3,
            "kernel scale of small.model:1 net failed on GPU 0");
    refuses("PVDM_FAKE_FAULT=3",
            "run scale --weights net=@/w.st --in @/x.st --device cuda --repeat 5", 3,
            "a kernel of scale, or of what was queued before, failed on GPU 0");
    const char *train = "train fit --weights net=@/w.st --steps 99 --set save_every=10 "
                        "--device cuda --out @/fault";
    refuses("PVDM_FAKE_FAULT=300 PVDM_FAKE_STREAMS=late", train, 3, "--resume goes on from it");
    refuses("PVDM_FAKE_FAULT=200 PVDM_CUDA_SYNC=1", train, 1, "holds a run already");
    refuses("PVDM_FAKE_FAULT=101 PVDM_CUDA_SYNC=1",
            "train fit --weights net=@/w.st --steps 99 --device cuda --out @/named", 3, "kernel ");
}

// A sampler's loop: two addresses take turns, so two recipes, each captured when it comes again.
static void graphs_are_replayed(void **state)
{
    (void)state;
    PvError error = {0};
    setenv("PVDM_CUDA_DRIVER", driver, 1);
    PvDevice *device = pv_device_open(0, &error);
    PvExec *exec = pv_exec_new(&pv_model, 1, &error);
    if (!device || !pv_exec_use(exec, device, &error))
        fail_msg("%s", error.text);
    PvScalar options[8] = {{0}};
    PvRandom *random = pv_random_new(&pv_model, 0);
    PvCall *call = pv_call_new(&pv_model.entries[4], options, random);
    const int64_t dim[] = {1, 3};
    PvTensor *x = pv_tensor_new(PV_F32, 2, dim, &error), *noise = pv_tensor_copy(x, &error);
    ((float *)x->data)[0] = 1024;
    for (int i = 0; i < 9; i++) {
        PvCallPlan plan = {0};
        assert_true(pv_call_set(call, 0, x, "x", &error) &&
                    pv_call_set(call, 1, noise, "noise", &error) &&
                    pv_call_settle(call, 1, &error) && pv_call_run(exec, call, &plan, &error));
        pv_tensor_drop(x);
        x = pv_tensor_hold(call->outputs[0]);
    }
    assert_int_equal(exec->gpu->graphs, 2);
    assert_true(exec->gpu->replays >= 5);
    assert_true(pv_tensor_fetch(x, &error));
    assert_true(((float *)x->data)[0] == 2 && ((float *)x->data)[1] == 0);
    pv_tensor_drop(x);
    pv_tensor_drop(noise);
    pv_call_free(call);
    pv_random_free(random);
    pv_exec_free(exec);
}

// The optimizer's launches: those that come again with the same arguments are one graph.
static void calls_are_replayed(void **state)
{
    (void)state;
    PvError error = {0};
    setenv("PVDM_CUDA_DRIVER", driver, 1);
    PvDevice *device = pv_device_open(0, &error);
    PvExec *exec = pv_exec_new(&pv_model, 1, &error);
    if (!device || !pv_exec_use(exec, device, &error))
        fail_msg("%s", error.text);
    struct {
        OptimizerChunk chunk;
        float gradients[3], sum[3];
    } host = {{0, 3, 0}, {1, 2, 4}, {10, 20, 30}};
    CUdeviceptr at = 0;
    assert_true(pv_device_alloc(device, sizeof host, "a test", &at, &error));
    assert_true(pv_device_upload(device, device->work, at, &host, sizeof host, &error));
    AccumulateArgs args[2] = {{.chunks = (int64_t)at,
                               .chunk_count = 1,
                               .sum = (int64_t)(at + sizeof host.chunk + sizeof host.gradients),
                               .gradients = (int64_t)(at + sizeof host.chunk)}};
    args[1] = args[0];
    const PvGpuCall calls[] = {{"accumulate", &args[0], sizeof args[0]},
                               {"accumulate", &args[1], sizeof args[1]}};
    for (int i = 0; i < 4; i++)
        assert_true(pv_gpu_calls(exec->gpu, calls, 2, &error));
    assert_int_equal(exec->gpu->graphs, 1);
    assert_int_equal(exec->gpu->replays, 3);
    assert_true(pv_gpu_calls(exec->gpu, calls, 1, &error)); // others
    assert_int_equal(exec->gpu->replays, 3);
    assert_true(pv_device_download(device, device->work, &host, at, sizeof host, &error));
    assert_true(host.sum[0] == 10 + 9 * 1 && host.sum[2] == 30 + 9 * 4);
    pv_device_free(device, at, sizeof host);
    pv_exec_free(exec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(programs_agree),          cmocka_unit_test(samplers_agree),
        cmocka_unit_test(training_agrees),         cmocka_unit_test(what_is_not_finite_is_told),
        cmocka_unit_test(what_is_missing_is_told), cmocka_unit_test(tensor_maps_are_encoded),
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(graphs_are_replayed),     cmocka_unit_test(calls_are_replayed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
