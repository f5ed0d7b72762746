/* The fake driver: start, devices, contexts, errors. */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include "fakecuda.h"

Driver driver;
thread_local CUctx_st *current_context;

static long setting(const char *name, long otherwise)
{
    std::string whole = std::string("PVDM_FAKE_") + name;
    const char *text = getenv(whole.c_str());
    return text && *text ? strtol(text, nullptr, 0) : otherwise;
}

// The place of the setting's first letter in `letters`.
static int choice(const char *name, const char *letters)
{
    std::string whole = std::string("PVDM_FAKE_") + name;
    const char *text = getenv(whole.c_str()),
               *at = text && *text ? strchr(letters, *text) : nullptr;
    return at ? (int)(at - letters) : 0;
}

CUresult refuse(CUresult error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("fakecuda: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return error;
}

Call::Call(Needs needs) : held(driver.lock), error(CUDA_SUCCESS)
{
    if (!driver.started)
        error = CUDA_ERROR_NOT_INITIALIZED;
    else if (needs == CONTEXT && !current_context)
        error = refuse(CUDA_ERROR_INVALID_CONTEXT, "this thread has no context");
    else if (needs == CONTEXT)
        error = driver.fault;
}

static void read_settings(void)
{
    driver.devices = (int)setting("DEVICES", 1);
    driver.memory = (size_t)setting("MEMORY", 16l << 30);
    driver.version = (int)setting("VERSION", 13000);
    driver.arch = (int)setting("ARCH", 10000);
    driver.fault_at = setting("FAULT", 0);
    driver.races = (int)setting("RACE", 1);
    driver.trace = (int)setting("TRACE", 0);
    driver.protect = setting("PROTECT", 0) != 0;
    driver.dry = setting("DRY", 0) != 0;
    driver.timing = choice("STREAMS", "elr");
    simt_config.order = choice("ORDER", "i?r");
    const char *order = getenv("PVDM_FAKE_ORDER");
    if (order && strncmp(order, "rev", 3) == 0)
        simt_config.order = SIMT_REVERSE;
    simt_config.async = choice("ASYNC", "elr");
    simt_config.seed = (unsigned)setting("SEED", 1);
    driver.random = simt_config.seed * 0x9E3779B97F4A7C15ull + 1;
    unsigned cores = std::thread::hardware_concurrency();
    simt_config.threads = (int)setting("THREADS", std::clamp<long>(cores, 1, 8));
}

// Programs call the emulator: its symbols are made visible to what is opened later.
static void show_own_symbols(void)
{
    Dl_info own;
    if (dladdr((void *)show_own_symbols, &own) && own.dli_fname)
        dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
}

static CUresult device_only(CUdevice device)
{
    return device >= 0 && device < driver.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

extern "C" {
CUresult cuDriverGetVersion(int *version)
{
    *version = (int)setting("VERSION", 13000);
    return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags)
{
    std::lock_guard<std::recursive_mutex> held(driver.lock);
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (driver.started)
        return CUDA_SUCCESS;
    read_settings();
    if (driver.devices == 0)
        return CUDA_ERROR_NO_DEVICE;
    show_own_symbols();
    driver.started = true;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    switch (error) {
#define FAKE_ERROR_NAME(name, number, what)                                                        \
    case name:                                                                                     \
        *text = #name;                                                                             \
        return CUDA_SUCCESS;
        FAKE_ERRORS(FAKE_ERROR_NAME)
    }
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    switch (error) {
#define FAKE_ERROR_TEXT(name, number, what)                                                        \
    case name:                                                                                     \
        *text = what;                                                                              \
        return CUDA_SUCCESS;
        FAKE_ERRORS(FAKE_ERROR_TEXT)
    }
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *count)
{
    Call call(Call::LIBRARY);
    *count = driver.devices;
    return call.error;
}

CUresult cuDeviceGet(CUdevice *device, int index)
{
    Call call(Call::LIBRARY);
    *device = index;
    return call.error ? call.error : device_only(index);
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{
    Call call(Call::LIBRARY);
    snprintf(name, (size_t)size, "SIMT emulator");
    return call.error ? call.error : device_only(device);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    Call call(Call::LIBRARY);
    *bytes = driver.memory;
    return call.error ? call.error : device_only(device);
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    static const struct {
        int attribute, value;
    } table[] = {
        {1, 1024},     {2, 1024},  {3, 1024},     {4, 64},     {5, 0x7fffffff},
        {6, 65535},    {7, 65535}, {8, 49152},    {10, 32},    {12, 65536},
        {13, 1000000}, {16, 4},    {36, 1000000}, {37, 1024},  {38, 1 << 22},
        {39, 2048},    {41, 1},    {81, 233472},  {82, 65536}, {97, 232448},
    };
    Call call(Call::LIBRARY);
    if (call.error || device_only(device))
        return call.error ? call.error : device_only(device);
    if (attribute == 75 || attribute == 76) {
        *value = attribute == 75 ? driver.arch / 10 : driver.arch % 10;
        return CUDA_SUCCESS;
    }
    for (const auto &row : table)
        if (row.attribute == attribute) {
            *value = row.value;
            return CUDA_SUCCESS;
        }
    return refuse(CUDA_ERROR_INVALID_VALUE, "attribute %d of a device is not modelled", attribute);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    Call call(Call::LIBRARY);
    if (call.error || device_only(device))
        return call.error ? call.error : device_only(device);
    driver.context.users++;
    *context = &driver.context;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    Call call(Call::LIBRARY);
    if (call.error || device_only(device))
        return call.error ? call.error : device_only(device);
    if (driver.context.users == 0)
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "the context is released once too often");
    if (--driver.context.users == 0)
        drain_all();
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    Call call(Call::LIBRARY);
    if (call.error || (context && context != &driver.context) ||
        (context && driver.context.users == 0))
        return call.error ? call.error : CUDA_ERROR_INVALID_CONTEXT;
    current_context = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    Call call(Call::LIBRARY);
    *context = current_context;
    return call.error;
}

CUresult cuCtxSynchronize(void)
{
    Call call(Call::CONTEXT);
    if (CUresult error = call.error ? call.error : unsafe_while_capturing())
        return error;
    drain_all();
    return driver.fault;
}
}
