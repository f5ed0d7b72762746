/* The driver's side of kernel_case.cc. An error of a kernel sticks to the context, so the first one
 * ends a program: what comes after it would say nothing.
 */
#include "kernel_case_device.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
extern "C" {
#define _Noreturn [[noreturn]]
#include "codegen/nvrtc.h"
#include "runtime/cuda.h"
}

struct Device : PvDriver {
    int (*wait)(void);
    int (*write)(CUdeviceptr, const void *, size_t);
    int (*read)(void *, CUdeviceptr, size_t);
    int capability;
};
static Device device;
static const unsigned LAUNCH_SECONDS = 15; // if PVDM_CASE_SECONDS does not say otherwise

[[noreturn]] static void give_up(const char *what)
{
    printf("FAIL %s\n0 passed, 1 failed\n", what);
    exit(1);
}

template <class Function> static void look_up(void *library, const char *name, Function **function)
{
    *function = (Function *)dlsym(library, name);
    if (!*function)
        give_up(name);
}

static void open_device(const char *path)
{
    CUcontext context;
    CUdevice number;
    int major = 0, minor = 0;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        give_up(dlerror());
#define LOOK_UP(symbol, member, params) look_up(library, #symbol, &device.member);
    PV_DRIVER_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    look_up(library, "cuMemcpyHtoD_v2", &device.write);
    look_up(library, "cuMemcpyDtoH_v2", &device.read);
    look_up(library, "cuCtxSynchronize", &device.wait);
    if (device.init(0) || device.device_get(&number, 0) ||
        device.context_retain(&context, number) || device.context_set(context) ||
        device.device_attribute(&major, PV_CUDA_CAPABILITY_MAJOR, number) ||
        device.device_attribute(&minor, PV_CUDA_CAPABILITY_MINOR, number))
        give_up("no device that the driver can use");
    device.capability = 10 * major + minor;
}

bool device_wanted(void)
{
    static const char *path = getenv("PVDM_CASES");
    static bool opened;
    if (path && *path && !opened) {
        opened = true;
        open_device(path);
    }
    return opened;
}

bool device_emulates(void)
{
    return device.capability == PV_ARCH_SIMT;
}

bool device_runs_90a(void)
{
    return device.capability == 90 || device_emulates();
}

int device_encode_map(void *to, const PvTensorMap *map)
{
    return pv_encode_map(&device, to, map);
}

static std::string error_text(const char *what, int error)
{
    const char *name = nullptr;
    device.error_name(error, &name);
    return std::string(what) + ": " + (name ? name : "error " + std::to_string(error));
}

void *device_alloc(size_t bytes)
{
    CUdeviceptr at = 0;
    if (int error = device.alloc(&at, bytes))
        give_up(error_text("memory", error).c_str());
    return (void *)(uintptr_t)at;
}

void device_write(void *to, const void *from, size_t bytes)
{
    if (int error = bytes ? device.write((CUdeviceptr)(uintptr_t)to, from, bytes) : 0)
        give_up(error_text("a copy to the device", error).c_str());
}

void device_read(void *to, const void *from, size_t bytes)
{
    if (int error = bytes ? device.read(to, (CUdeviceptr)(uintptr_t)from, bytes) : 0)
        give_up(error_text("a copy from the device", error).c_str());
}

void device_free(void *memory)
{
    device.release((CUdeviceptr)(uintptr_t)memory);
}

static std::string load(const KernelChoice &choice, const void *image, void **phase)
{
    CUmodule module;
    if (int error = device.module_load(&module, image))
        return error_text("its program is refused", error);
    for (uint32_t i = 0; i < choice.phases; i++) {
        std::string name = choice.symbol + (i ? "_" + std::to_string(i) : "");
        CUfunction function;
        int error = device.module_function(&function, module, name.c_str());
        if (!error)
            error =
                device.function_attribute(function, PV_CUDA_DYNAMIC_SHARED, (int)choice.shared[i]);
        if (error)
            return error_text(name.c_str(), error);
        phase[i] = function;
    }
    return "";
}

std::string device_load(const KernelChoice &choice, const char *root, const std::string &image,
                        void **phase)
{
    if (!image.empty())
        return load(choice, image.data(), phase);
    if (const char *missing = nvrtc_open())
        return missing;
    char arch[16];
    snprintf(arch, sizeof arch, "sm_%d%s", device.capability, device.capability == 90 ? "a" : "");
    NvrtcJob job = {};
    kernel_job(&choice, root, arch, &job);
    std::string wrong = nvrtc_compile(&job, 1, 1) ? load(choice, job.cubin, phase)
                                                  : std::string(job.log ? job.log : "not compiled");
    nvrtc_free_job(&job);
    return wrong;
}

std::string device_launch(void *phase, uint32_t blocks, uint32_t threads, uint32_t shared,
                          void *param)
{
    void *params[] = {param};
    const char *seconds = getenv("PVDM_CASE_SECONDS");
    if (!device_emulates())
        // a kernel that hangs would take the time of all cases behind it
        alarm(seconds ? (unsigned)atoi(seconds) : LAUNCH_SECONDS);
    int error = device.launch((CUfunction)phase, blocks, 1, 1, threads, 1, 1, shared, nullptr,
                              params, nullptr);
    if (!error)
        error = device.wait();
    alarm(0);
    return error ? error_text("its launch", error) : "";
}
