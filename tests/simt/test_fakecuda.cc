/* The fake driver itself: what it computes, what it refuses, and when it does things.
 *
 * Every scenario is a process of its own with its own settings, which opens the library as the
 * runtime does. The programs are fakecuda_kernels.cu, compiled with and without the
 * instrumentation.
 */
// driver: the library and the programs are built beside this test
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
extern "C" {
#define _Noreturn [[noreturn]]
#include "runtime/cuda.h"
}

static int passed, failed;
static bool wrong; // in this scenario

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("line %d: %s\n", __LINE__, #condition);                                         \
            wrong = true;                                                                          \
        }                                                                                          \
    } while (0)
#define IS(call, expected)                                                                         \
    do {                                                                                           \
        int result = (call);                                                                       \
        if (result != (expected)) {                                                                \
            printf("line %d: %s gave %d, not %d\n", __LINE__, #call, result, (expected));          \
            wrong = true;                                                                          \
        }                                                                                          \
    } while (0)
#define GOOD(call) IS(call, 0)

/* ---- the driver in a scenario ---- */

struct Library : PvDriver {
    int (*memcpy_to_device)(CUdeviceptr, const void *, size_t);
    int (*memcpy_to_host)(void *, CUdeviceptr, size_t);
    int (*synchronize)(void);
    int (*query)(CUstream);
    int (*fill32)(CUdeviceptr, unsigned, size_t, CUstream);
    int (*tensor_map)(void *, int, unsigned, void *, const uint64_t *, const uint64_t *,
                      const uint32_t *, const uint32_t *, int, int, int, int);
};
static Library cu;
static CUmodule programs;
static CUfunction add, sum, write_at;

template <class Function> static void look_up(void *library, const char *name, Function **function)
{
    *function = (Function *)dlsym(library, name);
    CHECK(*function);
}

static void open_library(void)
{
    void *library = dlopen(FAKECUDA, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
#define LOOK_UP(symbol, member, params) look_up(library, #symbol, &cu.member);
    PV_DRIVER_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    look_up(library, "cuMemcpyHtoD_v2", &cu.memcpy_to_device);
    look_up(library, "cuMemcpyDtoH_v2", &cu.memcpy_to_host);
    look_up(library, "cuCtxSynchronize", &cu.synchronize);
    look_up(library, "cuStreamQuery", &cu.query);
    look_up(library, "cuMemsetD32Async", &cu.fill32);
    look_up(library, "cuTensorMapEncodeTiled", &cu.tensor_map);
}

static std::vector<char> read_file(const char *path)
{
    std::vector<char> bytes(1 << 22);
    FILE *file = fopen(path, "rb");
    bytes.resize(file ? fread(bytes.data(), 1, bytes.size(), file) : 0);
    CHECK(!bytes.empty());
    if (file)
        fclose(file);
    return bytes;
}

static void start(const char *image = PROGRAMS)
{
    CUcontext context;
    open_library();
    GOOD(cu.init(0));
    GOOD(cu.context_retain(&context, 0));
    GOOD(cu.context_set(context));
    GOOD(cu.module_load(&programs, read_file(image).data()));
    GOOD(cu.module_function(&add, programs, "add"));
    GOOD(cu.module_function(&sum, programs, "sum"));
    GOOD(cu.module_function(&write_at, programs, "write_at"));
}

static CUdeviceptr device_vector(size_t count, float value)
{
    CUdeviceptr at = 0;
    std::vector<float> values(count, value);
    GOOD(cu.alloc(&at, count * 4));
    GOOD(cu.memcpy_to_device(at, values.data(), count * 4));
    return at;
}

static float element(CUdeviceptr at, size_t i)
{
    float value = 0;
    GOOD(cu.memcpy_to_host(&value, at + i * 4, 4));
    return value;
}

static int launch_add(CUdeviceptr y, CUdeviceptr x, float scale, int count, CUstream stream)
{
    void *params[] = {&y, &x, &scale, &count};
    return cu.launch(add, (unsigned)(count + 127) / 128, 1, 1, 128, 1, 1, 0, stream, params,
                     nullptr);
}

static int launch_write(CUdeviceptr y, int i, CUstream stream)
{
    void *params[] = {&y, &i};
    return cu.launch(write_at, 1, 1, 1, 32, 1, 1, 0, stream, params, nullptr);
}

/* ---- scenarios ---- */

static void device(void)
{
    char name[64];
    const char *text = nullptr;
    int version, count, major, minor;
    CUdevice first;
    open_library();
    IS(cu.device_count(&count), 3);
    GOOD(cu.version(&version));
    CHECK(version == 12030);
    GOOD(cu.init(0));
    GOOD(cu.device_count(&count));
    CHECK(count == 1);
    GOOD(cu.device_get(&first, 0));
    IS(cu.device_get(&first, 1), 101);
    GOOD(cu.device_name(name, sizeof name, 0));
    CHECK(strcmp(name, "SIMT emulator") == 0);
    GOOD(cu.device_attribute(&major, 75, 0));
    GOOD(cu.device_attribute(&minor, 76, 0));
    CHECK(major == 1000 && minor == 0);
    GOOD(cu.error_name(700, &text));
    CHECK(strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS") == 0);
    GOOD(cu.error_string(2, &text));
    CHECK(strcmp(text, "out of memory") == 0);
    CUdeviceptr at;
    IS(cu.alloc(&at, 16), 201);
}

static void no_device(void)
{
    open_library();
    IS(cu.init(0), PV_CUDA_NO_DEVICE);
}

static void other_capability(void)
{
    int major, minor;
    open_library();
    GOOD(cu.init(0));
    GOOD(cu.device_attribute(&major, 75, 0));
    GOOD(cu.device_attribute(&minor, 76, 0));
    CHECK(major == 8 && minor == 6);
}

static void memory(void)
{
    size_t free_bytes, all;
    CUdeviceptr one, two;
    float value[64] = {0};
    start();
    GOOD(cu.memory_info(&free_bytes, &all));
    CHECK(all == 1 << 20 && free_bytes == all);
    GOOD(cu.alloc(&one, 700000));
    IS(cu.alloc(&two, 500000), PV_CUDA_OUT_OF_MEMORY);
    GOOD(cu.memory_info(&free_bytes, &all));
    CHECK(free_bytes < all - 700000 + 1 && one % 256 == 0);
    GOOD(cu.release(one));
    IS(cu.release(one), 1);
    GOOD(cu.alloc(&one, 256));
    GOOD(cu.alloc(&two, 256));
    CHECK(element(one, 0) != element(one, 0)); // NaN
    GOOD(cu.memcpy_to_device(one, value, 256));
    IS(cu.memcpy_to_device(one + 4, value, 256), 1);
    IS(cu.memcpy_to_host(value, one - 4, 8), 1);
    IS(cu.copy(one, one + 8, 16, nullptr), 1);
    IS(cu.fill32(one + 2, 0, 4, nullptr), 1);
    GOOD(cu.fill32(one + 8, 0x3f800000, 4, nullptr));
    GOOD(cu.copy(two, one, 256, nullptr));
    CHECK(element(two, 1) == 0 && element(two, 2) == 1 && element(two, 5) == 1 &&
          element(two, 6) == 0);
    IS(cu.alloc(&one, 0), 1);
}

static void launches(void)
{
    start();
    CUdeviceptr x = device_vector(1000, 2), y = device_vector(1000, 1);
    GOOD(launch_add(y, x, 3, 999, nullptr));
    CHECK(element(y, 998) == 7 && element(y, 999) == 1);
    void *params[] = {&y, &x};
    IS(cu.launch(sum, 1, 1, 1, 2048, 1, 1, 0, nullptr, params, nullptr), 1);
    IS(cu.launch(sum, 0, 1, 1, 32, 1, 1, 0, nullptr, params, nullptr), 1);
    IS(cu.launch(sum, 1, 1, 1, 32, 1, 1, 50000, nullptr, params, nullptr), 1);
    IS(cu.function_attribute(sum, PV_CUDA_DYNAMIC_SHARED, 232449), 1);
    GOOD(cu.function_attribute(sum, PV_CUDA_DYNAMIC_SHARED, 50000));
    GOOD(cu.launch(sum, 7, 1, 1, 128, 1, 1, 50000, nullptr, params, nullptr));
    CHECK(element(y, 6) == 256);
    struct {
        CUdeviceptr y, x;
    } packed = {y, x};
    size_t bytes = sizeof packed;
    void *extra[] = {(void *)1, &packed, (void *)2, &bytes, nullptr};
    GOOD(cu.launch(sum, 1, 1, 1, 256, 1, 1, 1024, nullptr, nullptr, extra));
    CHECK(element(y, 0) == 512);
    bytes = 8;
    IS(cu.launch(sum, 1, 1, 1, 256, 1, 1, 1024, nullptr, nullptr, extra), 1);
    CUfunction none;
    IS(cu.module_function(&none, programs, "subtract"), 500);
}

static void threads_of_the_host(void)
{
    start();
    const int blocks = 600;
    CUdeviceptr x = device_vector((size_t)blocks * 256, 1), y = device_vector((size_t)blocks, 0);
    void *params[] = {&y, &x};
    for (int i = 0; i < blocks; i++) {
        float value = (float)i;
        GOOD(cu.memcpy_to_device(x + (CUdeviceptr)i * 1024, &value, 4));
    }
    for (int round = 0; round < 10; round++)
        GOOD(cu.launch(sum, (unsigned)blocks, 1, 1, 256, 1, 1, 1024, nullptr, params, nullptr));
    for (int i = 0; i < blocks; i++)
        CHECK(element(y, (size_t)i) == (float)(255 + i));
}

// With operations as late as permitted: pinned memory is read when the copy is carried out.
static void late(void)
{
    CUstream stream, other;
    CUevent event;
    float *pinned, value = -1;
    start();
    CUdeviceptr y = device_vector(4, 0), x = device_vector(4, 1);
    GOOD(cu.host_alloc((void **)&pinned, 16, 0));
    GOOD(cu.stream_create(&stream, PV_CUDA_STREAM_NON_BLOCKING));
    GOOD(cu.stream_create(&other, PV_CUDA_STREAM_NON_BLOCKING));
    GOOD(cu.event_create(&event, PV_CUDA_EVENT_NO_TIMING));
    pinned[0] = 1;
    GOOD(cu.to_device(y, pinned, 4, stream));
    pinned[0] = 5; // too early: this is what arrives
    value = 7;
    GOOD(cu.to_device(y + 4, &value, 4, stream)); // not pinned: read at once
    value = 8;
    GOOD(launch_add(y, x, 1, 4, stream));
    GOOD(cu.event_record(event, stream));
    IS(cu.query(stream), 600);
    GOOD(cu.stream_wait_event(other, event, 0));
    GOOD(cu.to_host(pinned, y, 8, other));
    CHECK(pinned[0] == 5);
    GOOD(cu.stream_wait(other));
    CHECK(pinned[0] == 6 && pinned[1] == 8);
    GOOD(cu.stream_destroy(stream));
    GOOD(cu.stream_destroy(other));
}

// Whatever the moment of execution, events order two streams.
static void order_of_streams(void)
{
    CUstream stream[2];
    CUevent event[2];
    start();
    CUdeviceptr a = device_vector(64, 1), b = device_vector(64, 1);
    for (int i = 0; i < 2; i++) {
        GOOD(cu.stream_create(&stream[i], PV_CUDA_STREAM_NON_BLOCKING));
        GOOD(cu.event_create(&event[i], PV_CUDA_EVENT_DEFAULT));
    }
    for (int i = 0; i < 20; i++) { // a += b, b += a by turns: Fibonacci's numbers
        int self = i % 2;
        if (i > 0)
            GOOD(cu.stream_wait_event(stream[self], event[1 - self], 0));
        GOOD(launch_add(self ? b : a, self ? a : b, 1, 64, stream[self]));
        GOOD(cu.event_record(event[self], stream[self]));
    }
    float milliseconds = -1;
    GOOD(cu.synchronize());
    CHECK(element(b, 63) == 17711);
    GOOD(cu.event_elapsed(&milliseconds, event[0], event[1]));
    CHECK(milliseconds >= 0);
}

static void graphs(void)
{
    CUstream stream, side;
    CUevent fork, join;
    CUgraph graph;
    CUgraphExec replay;
    start();
    CUdeviceptr y = device_vector(8, 0), x = device_vector(8, 1), z = device_vector(8, 0);
    GOOD(cu.stream_create(&stream, PV_CUDA_STREAM_NON_BLOCKING));
    GOOD(cu.stream_create(&side, PV_CUDA_STREAM_NON_BLOCKING));
    GOOD(cu.event_create(&fork, PV_CUDA_EVENT_NO_TIMING));
    GOOD(cu.event_create(&join, PV_CUDA_EVENT_NO_TIMING));
    GOOD(cu.capture_begin(stream, PV_CUDA_CAPTURE_THREAD_LOCAL));
    GOOD(launch_add(y, x, 2, 8, stream));
    GOOD(cu.event_record(fork, stream));
    GOOD(cu.stream_wait_event(side, fork, 0));
    GOOD(launch_add(z, x, 1, 8, side));
    GOOD(cu.event_record(join, side));
    GOOD(cu.stream_wait_event(stream, join, 0));
    GOOD(launch_add(y, z, 10, 8, stream));
    GOOD(cu.capture_end(stream, &graph));
    CHECK(element(y, 0) == 0 && element(z, 7) == 0); // nothing was carried out
    GOOD(cu.graph_instantiate(&replay, graph, 0));
    GOOD(cu.graph_destroy(graph));
    GOOD(cu.graph_launch(replay, stream));
    GOOD(cu.graph_launch(replay, stream));
    GOOD(cu.stream_wait(stream));
    CHECK(element(z, 0) == 2 && element(y, 7) == 34);
    GOOD(cu.graph_exec_destroy(replay));
}

static void capture_errors(void)
{
    CUstream stream, side;
    CUevent event;
    CUgraph graph;
    CUdeviceptr at;
    start();
    CUdeviceptr y = device_vector(8, 0), x = device_vector(8, 1);
    GOOD(cu.stream_create(&stream, 0));
    GOOD(cu.stream_create(&side, PV_CUDA_STREAM_NON_BLOCKING));
    GOOD(cu.event_create(&event, PV_CUDA_EVENT_NO_TIMING));
    IS(cu.capture_begin(nullptr, 0), 900);
    IS(cu.capture_end(stream, &graph), 903);
    GOOD(cu.capture_begin(stream, PV_CUDA_CAPTURE_THREAD_LOCAL));
    IS(cu.stream_wait(stream), 900);
    IS(launch_add(y, x, 1, 8, stream), 901);
    IS(cu.capture_end(stream, &graph), 901);
    GOOD(cu.capture_begin(stream, PV_CUDA_CAPTURE_THREAD_LOCAL));
    IS(cu.alloc(&at, 64), 900);
    IS(cu.capture_end(stream, &graph), 901);
    GOOD(cu.capture_begin(stream, 2));
    IS(launch_add(y, x, 1, 8, nullptr), 906);
    IS(cu.capture_end(stream, &graph), 901);
    GOOD(cu.event_record(event, side));
    GOOD(cu.capture_begin(stream, 1));
    IS(cu.stream_wait_event(stream, event, 0), 905);
    IS(cu.capture_end(stream, &graph), 901);
    GOOD(cu.capture_begin(stream, 1));
    GOOD(cu.event_record(event, stream));
    GOOD(cu.stream_wait_event(side, event, 0));
    GOOD(launch_add(y, x, 1, 8, side));
    IS(cu.capture_end(stream, &graph), 904);
    GOOD(launch_add(y, x, 1, 8, side));
    GOOD(cu.stream_wait(side));
    CHECK(element(y, 0) == 1);
}

static void fault(void)
{
    start();
    CUdeviceptr y = device_vector(8, 0), x = device_vector(8, 1), at;
    GOOD(launch_add(y, x, 1, 8, nullptr));
    GOOD(cu.synchronize());
    cu.launch(add, 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr, nullptr); // refused: not counted
    GOOD(launch_add(y, x, 1, 8, nullptr));                           // fails, which shows later
    IS(cu.synchronize(), 700);
    IS(launch_add(y, x, 1, 8, nullptr), 700);
    IS(cu.alloc(&at, 16), 700);
}

static void images(void)
{
    CUmodule module;
    std::vector<char> image = read_file(PROGRAMS);
    start();
    IS(cu.module_load(&module, ".version 8.0\n.target sm_80\n"), PV_CUDA_UNSUPPORTED_PTX);
    IS(cu.module_load(&module, "nonsense, and longer than a header"), PV_CUDA_INVALID_IMAGE);
    image[18] = (char)190; // the machine in the header: CUDA
    IS(cu.module_load(&module, image.data()), PV_CUDA_NO_BINARY);
    image[18] = 40;
    IS(cu.module_load(&module, image.data()), PV_CUDA_INVALID_IMAGE);
    GOOD(cu.module_unload(programs));
}

static void race_mode(void)
{
    start(CHECKED_PROGRAMS);
    CUdeviceptr y = device_vector(8, 0), x = device_vector(8, 1);
    GOOD(launch_add(y, x, 1, 8, nullptr));
    CHECK(element(y, 7) == 1);
    GOOD(launch_write(y, 9, nullptr));
    IS(cu.synchronize(), 719);
}

static void guards(void)
{
    start();
    CUdeviceptr y = device_vector(8, 0);
    GOOD(launch_write(y, 7, nullptr));
    GOOD(cu.synchronize());
    GOOD(launch_write(y, 8, nullptr));
    IS(cu.synchronize(), 700);
}

static void touch_device_memory(void) // ends by a signal
{
    start();
    CUdeviceptr y = device_vector(8, 3);
    CHECK(element(y, 1) == 3);
    *(volatile float *)(uintptr_t)y = 1;
    printf("device memory could be written by the host\n");
}

static void tensor_maps(void)
{
    alignas(64) char map[192];
    uint64_t sizes[] = {64, 16}, strides[] = {128};
    uint32_t box[] = {64, 8}, steps[] = {1, 1};
    start();
    CUdeviceptr at = device_vector(512, 0);
    void *base = (void *)(uintptr_t)at;
    GOOD(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0));
    IS(cu.tensor_map(map, 9, 2, (char *)base + 8, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    box[0] = 128; // wider than the swizzle
    IS(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    box[0] = 64;
    sizes[1] = 17; // beyond the allocation
    IS(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    sizes[1] = 16;
    strides[0] = 120;
    IS(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    strides[0] = 128;
    IS(cu.tensor_map(map + 16, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    box[1] = 257;
    IS(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    box[1] = 8, box[0] = 60; // not in 16 bytes
    IS(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    box[0] = 64, sizes[0] = 0;
    IS(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0), 1);
    sizes[0] = 64;
    GOOD(cu.tensor_map(map, 9, 2, base, sizes, strides, box, steps, 0, 3, 0, 0));
}

// Runs a scenario in a process with these settings (NAME=VALUE, separated by spaces).
static void scenario(const char *name, const char *settings, void (*body)(void), int signal = 0)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char text[256];
        snprintf(text, sizeof text, "%s", settings);
        for (char *part = strtok(text, " "); part; part = strtok(nullptr, " "))
            putenv(strdup(part));
        if (!freopen("/dev/null", "w", stderr))
            wrong = true;
        body();
        fflush(stdout);
        _exit(wrong);
    }
    int status = -1;
    waitpid(child, &status, 0);
    bool good = signal ? WIFSIGNALED(status) && WTERMSIG(status) == signal
                       : WIFEXITED(status) && WEXITSTATUS(status) == 0;
    ++(good ? passed : failed);
    if (!good)
        printf("FAIL %s (%s): status %x\n", name, settings, (unsigned)status);
}

int main(void)
{
    scenario("device", "PVDM_FAKE_VERSION=12030", device);
    scenario("no device", "PVDM_FAKE_DEVICES=0", no_device);
    scenario("other capability", "PVDM_FAKE_ARCH=86", other_capability);
    scenario("memory", "PVDM_FAKE_MEMORY=1048576", memory);
    scenario("launches", "", launches);
    scenario("launches", "PVDM_FAKE_ORDER=random PVDM_FAKE_THREADS=1", launches);
    scenario("launches", "PVDM_FAKE_PROTECT=1 PVDM_FAKE_STREAMS=late", launches);
    scenario("threads of the host", "PVDM_FAKE_THREADS=4", threads_of_the_host);
    scenario("late", "PVDM_FAKE_STREAMS=late", late);
    scenario("order of streams", "PVDM_FAKE_STREAMS=eager", order_of_streams);
    scenario("order of streams", "PVDM_FAKE_STREAMS=late", order_of_streams);
    scenario("order of streams", "PVDM_FAKE_STREAMS=random", order_of_streams);
    scenario("order of streams", "PVDM_FAKE_STREAMS=random PVDM_FAKE_SEED=5", order_of_streams);
    scenario("graphs", "PVDM_FAKE_STREAMS=eager", graphs);
    scenario("graphs", "PVDM_FAKE_STREAMS=random", graphs);
    scenario("capture errors", "", capture_errors);
    scenario("fault", "PVDM_FAKE_FAULT=2", fault);
    scenario("images", "", images);
    scenario("race mode", "", race_mode);
    scenario("guards", "", guards);
    scenario("device memory", "PVDM_FAKE_PROTECT=1", touch_device_memory, SIGSEGV);
    scenario("tensor maps", "", tensor_maps);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
