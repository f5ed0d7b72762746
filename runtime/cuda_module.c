// Which image of each program this GPU takes, and the functions in it. Programs are loaded when a
// kernel of theirs is first needed.
//
// An image for one capability alone (sm_90a) is taken where it fits exactly; else the newest binary
// of the same major capability that is not newer than the GPU; else PTX, which the driver compiles.
// Some kernels of the model have another one for sm_90a, which stands in programs of its own.
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda_exec.h"

// 0: this GPU cannot take it; else the larger the better.
static uint32_t fitness(const PvCudaImage *image, uint32_t arch)
{
    enum { PTX = 1 << 20, BINARY = 2 << 20, SPECIFIC = 3 << 20 };
    if (image->specific)
        return image->arch == arch ? (image->ptx ? PTX + arch : SPECIFIC + arch) : 0;
    if (image->arch > arch)
        return 0;
    if (image->ptx)
        return PTX + image->arch;
    return image->arch / 10 == arch / 10 ? BINARY + image->arch : 0;
}

static const PvCudaImage *choose_image(const PvCuda *cuda, uint32_t module, uint32_t arch)
{
    const PvCudaImage *best = NULL;
    for (uint32_t i = 0; i < cuda->image_count; i++) {
        const PvCudaImage *image = &cuda->images[i];
        if (image->module == module && fitness(image, arch) > 0 &&
            (!best || fitness(image, arch) > fitness(best, arch)))
            best = image;
    }
    return best;
}

static char *image_text(const PvCudaImage *image)
{
    if (image->arch == PV_ARCH_SIMT)
        return pv_strdup("the emulator");
    return pv_printf("%s%u%s", image->ptx ? "PTX of compute_" : "sm_", image->arch,
                     image->specific ? "a" : "");
}

char *pv_cuda_targets(const PvCuda *cuda)
{
    char *text = pv_strdup("");
    for (uint32_t i = 0; i < cuda->image_count; i++) {
        const PvCudaImage *image = &cuda->images[i];
        bool told = false; // of another program
        for (uint32_t k = 0; k < i && !told; k++)
            told = cuda->images[k].arch == image->arch && cuda->images[k].ptx == image->ptx &&
                   cuda->images[k].specific == image->specific;
        if (told)
            continue;
        char *one = image_text(image);
        char *more = pv_printf("%s%s%s", text, *text ? ", " : "", one);
        free(text);
        free(one);
        text = more;
    }
    return text;
}

// Which of its two kernels an architecture runs; NULL: neither.
static const PvCudaKernel *choose_kernel(const PvCuda *cuda, const PvKernel *kernel, uint32_t arch,
                                         bool general)
{
    const PvCudaKernel *both[] = {general ? NULL : kernel->cuda_90a, kernel->cuda};
    for (size_t i = 0; i < 2; i++)
        if (both[i] && choose_image(cuda, both[i]->module, arch))
            return both[i];
    return NULL;
}

bool pv_cuda_check(const PvModel *model, const PvDevice *device, PvError *error)
{
    const PvCuda *cuda = model->cuda;
    bool good = true;
    for (uint32_t i = 0; good && i < model->kernel_count; i++)
        good = !model->kernels[i].cuda ||
               choose_kernel(cuda, &model->kernels[i], device->arch, false);
    for (uint32_t i = 0; good && i < cuda->kernel_count; i++)
        good = choose_image(cuda, cuda->kernels[i].module, device->arch) != NULL;
    if (good)
        return true;
    char *targets = pv_cuda_targets(cuda);
    pv_error(error, PV_MACHINE,
             "no kernels for GPU %d (%s, compute capability %u.%u); this executable has %s",
             device->index, device->name, device->arch / 10, device->arch % 10, targets);
    pv_error_hint(error, "compile the model for sm_%u, or with PTX", device->arch);
    free(targets);
    return false;
}

const PvCudaKernel *pv_gpu_kernel(const PvGpu *gpu, uint32_t index, const char **name)
{
    const PvModel *model = gpu->exec->model;
    bool own = index >= model->kernel_count; // of the optimizer
    uint32_t at = own ? index - model->kernel_count : index;
    if (name)
        *name = own ? model->cuda->kernel_names[at] : model->kernels[at].name;
    if (own)
        return &model->cuda->kernels[at];
    return choose_kernel(model->cuda, &model->kernels[at], gpu->device->arch, gpu->general);
}

// A driver that is older than the compiler of the images.
static bool load_error(const PvGpu *gpu, int result, PvError *error)
{
    const PvDriver *driver = gpu->device->driver;
    uint32_t version = gpu->exec->model->cuda->version;
    pv_driver_error(driver, error, result, "the kernels cannot be loaded on GPU %d (%s)",
                    gpu->device->index, gpu->device->name);
    bool old = result == PV_CUDA_INVALID_IMAGE || result == PV_CUDA_NO_BINARY ||
               result == PV_CUDA_INVALID_PTX || result == PV_CUDA_UNSUPPORTED_PTX;
    if (!old || version == 0 || (int)version <= driver->is)
        return false;
    pv_error_append(error, "\nthey were compiled by CUDA %u.%u; the driver is of CUDA %d.%d",
                    version / 1000, version % 1000 / 10, driver->is / 1000, driver->is % 1000 / 10);
    return pv_error_hint(error, "a newer driver, or --device cpu");
}

static CUmodule load_module(PvGpu *gpu, uint32_t number, PvError *error)
{
    if (gpu->modules[number])
        return gpu->modules[number];
    const PvCuda *cuda = gpu->exec->model->cuda;
    const PvCudaImage *image = choose_image(cuda, number, gpu->device->arch);
    const void *data = image->image;
    char *text = NULL;
    if (image->ptx) { // the driver wants a 0 at the end
        text = pv_alloc((size_t)image->bytes + 1);
        memcpy(text, image->image, (size_t)image->bytes);
        data = text;
    }
    int result = gpu->device->driver->module_load(&gpu->modules[number], data);
    free(text);
    if (result == PV_CUDA_OK)
        return gpu->modules[number];
    gpu->modules[number] = NULL;
    load_error(gpu, result, error);
    return NULL;
}

static bool find_phase(PvGpu *gpu, CUmodule module, const PvCudaKernel *kernel, uint32_t phase,
                       CUfunction *fn, PvError *error)
{
    const PvDriver *driver = gpu->device->driver;
    char *symbol = phase ? pv_printf("%s_%u", kernel->symbol, phase) : pv_strdup(kernel->symbol);
    int result = driver->module_function(fn, module, symbol);
    if (result == PV_CUDA_OK && kernel->shared[phase] > 48 * 1024)
        result =
            driver->function_attribute(*fn, PV_CUDA_DYNAMIC_SHARED, (int)kernel->shared[phase]);
    if (result != PV_CUDA_OK)
        pv_driver_error(driver, error, result, "the kernel %s cannot be used on GPU %d (%s)",
                        symbol, gpu->device->index, gpu->device->name);
    free(symbol);
    return result == PV_CUDA_OK;
}

const PvGpuFunctions *pv_gpu_functions(PvGpu *gpu, uint32_t index, PvError *error)
{
    PvGpuFunctions *functions = &gpu->functions[index];
    if (functions->found)
        return functions;
    const PvCudaKernel *kernel = pv_gpu_kernel(gpu, index, NULL);
    CUmodule module = load_module(gpu, kernel->module, error);
    for (uint32_t phase = 0; module && phase < kernel->phases; phase++)
        if (!find_phase(gpu, module, kernel, phase, &functions->phase[phase], error))
            return NULL;
    functions->found = module != NULL;
    return functions->found ? functions : NULL;
}
