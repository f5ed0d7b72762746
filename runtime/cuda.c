// Opening the CUDA driver and telling its errors. See cuda.h.
#include "runtime/cuda.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static PvDriver driver;
static bool is_there, is_open;

static const char *driver_path(void)
{
    const char *path = getenv("PVDM_CUDA_DRIVER");
    return path && *path ? path : "libcuda.so.1";
}

// "12.4" of 12040
static char *version_text(char text[16], int version)
{
    snprintf(text, 16, "%d.%d", version / 1000, version % 1000 / 10);
    return text;
}

static bool too_old(int version, const char *lacks, PvError *error)
{
    char have[16], want[16];
    pv_error(error, PV_MACHINE, "the driver is of CUDA %s; this executable needs CUDA %s or later",
             version_text(have, version), version_text(want, PV_CUDA_OLDEST));
    if (lacks)
        pv_error_append(error, " (it has no %s)", lacks);
    return pv_error_hint(error, "a newer driver of NVIDIA's (525 or later), or --device cpu");
}

// The functions of the list; the version first, so that it can be told.
static bool find_functions(void *library, PvError *error)
{
    int (*version)(int *) = (int (*)(int *))dlsym(library, "cuDriverGetVersion");
    if (!version || version(&driver.is) != PV_CUDA_OK)
        return pv_error(error, PV_MACHINE, "%s is no driver of CUDA", driver_path());
    if (driver.is < PV_CUDA_OLDEST)
        return too_old(driver.is, NULL, error);
    const char *missing = NULL;
#define FIND(symbol, member, params)                                                               \
    if (!(driver.member = (int(*) params)dlsym(library, #symbol)) && !missing)                     \
        missing = #symbol;
    PV_DRIVER_FUNCTIONS(FIND)
#undef FIND
    return !missing || too_old(driver.is, missing, error);
}

const PvDriver *pv_driver_open(PvError *error)
{
    if (is_open)
        return &driver;
    void *library = dlopen(driver_path(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        pv_error(error, PV_MACHINE, "no driver of CUDA: %s", dlerror());
        pv_error_hint(error, "GPUs need NVIDIA's driver; --device cpu does without");
        return NULL;
    }
    is_there = true;
    if (!find_functions(library, error)) {
        dlclose(library);
        return NULL;
    }
    int result = driver.init(0), count = 0;
    if (result == PV_CUDA_OK)
        result = driver.device_count(&count);
    if (result == PV_CUDA_NO_DEVICE || (result == PV_CUDA_OK && count == 0)) {
        pv_error(error, PV_MACHINE, "there is a driver of CUDA, but no GPU that it can use");
        dlclose(library);
        return NULL;
    }
    if (result != PV_CUDA_OK) {
        pv_driver_error(&driver, error, result, "the driver of CUDA does not start");
        dlclose(library);
        return NULL;
    }
    is_open = true;
    return &driver;
}

bool pv_driver_is_there(void)
{
    return is_there;
}

bool pv_driver_error(const PvDriver *of, PvError *error, int result, const char *format, ...)
{
    const char *name = NULL, *text = NULL;
    if (of->error_name(result, &name) != PV_CUDA_OK || !name)
        name = "an unknown error";
    if (of->error_string(result, &text) != PV_CUDA_OK || !text)
        text = "no text";
    char what[512];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    return pv_error(error, PV_MACHINE, "%s: %s (%s, %d)", what, text, name, result);
}
