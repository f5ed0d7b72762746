/* The fake driver: programs, kernels, launches, tensor maps.
 *
 * A program is a shared object as a compiler for x86-64 makes it, opened from memory. Its kernels
 * have two symbols, KERNEL__simt and KERNEL__simt_parameters. Parameters are copied at the launch,
 * as a driver does. A program that is instrumented for race mode runs in it, so that one executable
 * may hold both kinds.
 *
 * In a dry run programs are what a GPU of the capability that is set would take, cubins or PTX.
 * That their kernels exist and may be launched like this is checked; nothing is computed, so
 * results are whatever memory held.
 */
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include "fakecuda.h"
extern "C" {
#include "codegen/cubin.h"
}

enum { MAX_DYNAMIC_SHARED = 232448, PLAIN_SHARED = 49152, MAX_PARAMETERS = 32764 };
enum { MACHINE_CUDA = 190 };

struct CUfunc_st {
    std::string name;
    SimtKernel kernel;
    SimtParameters parameters;
    bool checked; // instrumented
    unsigned shared_limit;
    CubinKernel needs; // of a cubin: all else has none
};
struct CUmod_st {
    void *library; // null: of a GPU
    int file; // open as long as the library is: the loader knows libraries by their paths
    bool checked;
    std::vector<std::unique_ptr<CUfunc_st>> functions;
    std::vector<CubinKernel> kernels; // of a cubin
    std::string ptx;
};
typedef CUfunc_st *CUfunction;

/* ---- programs ---- */

// Bytes of an image of which only the start is known: where its last part ends.
static size_t image_bytes(const uint8_t *image)
{
    const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
    size_t end = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
    const Elf64_Phdr *part = (const Elf64_Phdr *)(image + head->e_phoff);
    for (int i = 0; i < head->e_phnum; i++)
        end = std::max<size_t>(end, part[i].p_offset + part[i].p_filesz);
    return end;
}

// What a driver gives for an image that is not for this device.
static CUresult check_image(const uint8_t *image)
{
    static const uint8_t fat_binary[4] = {0x50, 0xed, 0x55, 0xba};
    if (memcmp(image, fat_binary, 4) == 0)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (memcmp(image, ".version", 8) == 0 || memcmp(image, "//", 2) == 0)
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
    if (memcmp(image, ELFMAG, SELFMAG) != 0)
        return CUDA_ERROR_INVALID_IMAGE;
    if (head->e_machine == MACHINE_CUDA)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    return head->e_machine == EM_X86_64 && head->e_type == ET_DYN ? CUDA_SUCCESS
                                                                  : CUDA_ERROR_INVALID_IMAGE;
}

static void *open_image(const uint8_t *image, int *opened)
{
    char path[64];
    size_t bytes = image_bytes(image), done = 0;
    int file = *opened = memfd_create("program", MFD_CLOEXEC);
    while (file >= 0 && done < bytes) {
        ssize_t count = write(file, image + done, bytes - done);
        if (count <= 0)
            break;
        done += (size_t)count;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    void *library = done == bytes ? dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) : nullptr;
    if (!library) {
        refuse(CUDA_ERROR_INVALID_IMAGE, "a program cannot be opened: %s", dlerror());
        close(file);
    }
    return library;
}

/* ---- dry runs ---- */

// The program that a GPU would make of an image; an error where that GPU, or a driver before CUDA
// 13 what CUDA 13 has compiled, would not take it.
static CUresult load_dry(CUmod_st *module, const uint8_t *image)
{
    enum { CUDA_13 = 13000, ABI_OF_13 = 8 };
    if (memcmp(image, "//", 2) == 0 || memcmp(image, ".version", 8) == 0) {
        module->ptx = (const char *)image;
        bool new_ptx = module->ptx.find(".version 9.") != std::string::npos;
        return new_ptx && driver.version < CUDA_13 ? CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                                                   : CUDA_SUCCESS;
    }
    if (memcmp(image, ELFMAG, SELFMAG) != 0 ||
        (image[EI_ABIVERSION] >= ABI_OF_13 && driver.version < CUDA_13))
        return CUDA_ERROR_INVALID_IMAGE;
    int arch = 0, count = cubin_read(image, image_bytes(image), &arch, nullptr, 0);
    if (count <= 0)
        return CUDA_ERROR_INVALID_IMAGE;
    if (arch > driver.arch || arch / 10 != driver.arch / 10)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    module->kernels.resize((size_t)count);
    cubin_read(image, image_bytes(image), &arch, module->kernels.data(), count);
    return CUDA_SUCCESS;
}

static CUresult find_dry(CUmod_st *module, const char *name, CUfunction *function)
{
    CubinKernel needs = {};
    for (const CubinKernel &kernel : module->kernels)
        if (strcmp(kernel.name, name) == 0)
            needs = kernel;
    bool in_ptx = module->ptx.find(".entry " + std::string(name) + "(") != std::string::npos;
    if (!needs.name[0] && !in_ptx)
        return CUDA_ERROR_NOT_FOUND;
    module->functions.push_back(std::unique_ptr<CUfunc_st>(
        new CUfunc_st{name, nullptr, {}, false, PLAIN_SHARED, needs}));
    *function = module->functions.back().get();
    return CUDA_SUCCESS;
}

// What a multiprocessor has: 64 Ki registers, given to warps by 256. From sm_90 on a cubin counts
// the KiB that the system keeps as static shared memory of the kernel.
static CUresult check_needs(const CUfunc_st *fn, unsigned threads, unsigned shared)
{
    enum { REGISTERS = 65536, UNIT = 256, WARP = 32, RESERVED = 1024 };
    if (!fn->needs.name[0])
        return CUDA_SUCCESS;
    if (driver.arch >= 90 && fn->needs.static_shared >= RESERVED)
        shared -= std::min<unsigned>(shared, RESERVED);
    unsigned warps = (threads + WARP - 1) / WARP;
    unsigned of_warp = (unsigned)(fn->needs.registers * WARP + UNIT - 1) / UNIT * UNIT;
    if (warps * of_warp > REGISTERS ||
        (fn->needs.max_threads && threads > (unsigned)fn->needs.max_threads) ||
        shared + (unsigned)fn->needs.static_shared > MAX_DYNAMIC_SHARED)
        return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                      "%s: %u threads of %d registers, at most %d; %u bytes of shared memory",
                      fn->name.c_str(), threads, fn->needs.registers, fn->needs.max_threads,
                      shared + (unsigned)fn->needs.static_shared);
    return CUDA_SUCCESS;
}

/* ---- launches ---- */

struct Launch {
    CUfunc_st *function;
    SimtDim grid, block;
    unsigned shared;
    std::vector<std::vector<uint64_t>> values; // copies of the parameters, aligned
};

static CUresult check_launch(const CUfunc_st *fn, const Launch &launch)
{
    const SimtDim &grid = launch.grid, &block = launch.block;
    const char *name = fn->name.c_str();
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: blocks of %u x %u x %u threads", name, block.x,
                      block.y, block.z);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
        grid.z > 65535)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: a grid of %u x %u x %u blocks", name, grid.x,
                      grid.y, grid.z);
    if (launch.shared > fn->shared_limit)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "%s: %u bytes of shared memory, where %u are permitted", name, launch.shared,
                      fn->shared_limit);
    return check_needs(fn, (unsigned)threads, launch.shared);
}

static void execute(Launch &launch)
{
    CUfunc_st *fn = launch.function;
    if (driver.fault)
        return;
    if (++driver.launches == driver.fault_at) {
        driver.fault = CUDA_ERROR_ILLEGAL_ADDRESS;
        return;
    }
    if (!fn->kernel)
        return;
    void *args[8];
    for (size_t i = 0; i < launch.values.size(); i++)
        args[i] = launch.values[i].data();
    simt_config.race = fn->checked && driver.races;
    uint64_t errors = simt_stats.errors;
    double start = now();
    int stopped =
        simt_launch(fn->name.c_str(), fn->kernel, launch.grid, launch.block, launch.shared, args);
    if (stopped || simt_stats.errors != errors)
        driver.fault = CUDA_ERROR_LAUNCH_FAILED;
    if (driver.trace)
        fprintf(stderr, "launch %ld: %s, %u x %u threads, %.3f ms\n", driver.launches,
                fn->name.c_str(), launch.grid.x * launch.grid.y * launch.grid.z,
                launch.block.x * launch.block.y * launch.block.z, (now() - start) * 1e3);
}

// Copies the parameters, given one by one or as a buffer (extra: pointer 1, its size 2, end 0).
static CUresult copy_parameters(Launch *launch, void **params, void **extra)
{
    const SimtParameters &known = launch->function->parameters;
    if (params && extra)
        return CUDA_ERROR_INVALID_VALUE;
    const uint8_t *buffer = nullptr;
    size_t bytes = 0, offset = 0;
    for (; extra && *extra; extra += 2) {
        if ((uintptr_t)extra[0] == 1)
            buffer = (const uint8_t *)extra[1];
        else if ((uintptr_t)extra[0] == 2)
            bytes = *(const size_t *)extra[1];
    }
    if (known.count > 0 && !params && !buffer)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: no parameters",
                      launch->function->name.c_str());
    for (unsigned i = 0; i < known.count; i++) {
        size_t size = known.bytes[i], aligned = (offset + 7) & ~(size_t)7;
        if (buffer && aligned + size > bytes)
            return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes of parameters are too few",
                          launch->function->name.c_str(), bytes);
        launch->values.push_back(std::vector<uint64_t>((size + 7) / 8));
        memcpy(launch->values[i].data(), buffer ? buffer + aligned : params[i], size);
        offset = aligned + size;
    }
    return CUDA_SUCCESS;
}

extern "C" {
CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    Call call(Call::CONTEXT);
    CUresult error = call.error ? call.error : unsafe_while_capturing();
    if (!error)
        error = !image       ? CUDA_ERROR_INVALID_VALUE
                : driver.dry ? CUDA_SUCCESS
                             : check_image((const uint8_t *)image);
    if (error)
        return error;
    if (driver.dry) {
        auto loaded = std::make_unique<CUmod_st>();
        error = load_dry(loaded.get(), (const uint8_t *)image);
        *module = error ? nullptr : loaded.release();
        return error;
    }
    unsigned checked = simt_instrumented_images();
    int file;
    void *library = open_image((const uint8_t *)image, &file);
    if (!library)
        return CUDA_ERROR_INVALID_IMAGE;
    *module = new CUmod_st{library, file, simt_instrumented_images() != checked, {}, {}, {}};
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, int *, void **)
{
    return cuModuleLoadData(module, image);
}

CUresult cuModuleUnload(CUmodule module)
{
    Call call(Call::CONTEXT);
    drain_all();
    if (module->library) {
        dlclose(module->library);
        close(module->file);
    }
    delete module;
    return call.error;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    Call call(Call::CONTEXT);
    if (call.error)
        return call.error;
    if (!module->library)
        return find_dry(module, name, function);
    std::string symbol = std::string(name) + "__simt";
    SimtKernel kernel = (SimtKernel)dlsym(module->library, symbol.c_str());
    symbol += "_parameters";
    const SimtParameters *known = (const SimtParameters *)dlsym(module->library, symbol.c_str());
    if (!kernel || !known)
        return CUDA_ERROR_NOT_FOUND;
    size_t bytes = 0;
    for (unsigned i = 0; i < known->count; i++)
        bytes += known->bytes[i];
    if (bytes > MAX_PARAMETERS)
        return refuse(CUDA_ERROR_INVALID_IMAGE, "%s: %zu bytes of parameters", name, bytes);
    module->functions.push_back(std::unique_ptr<CUfunc_st>(
        new CUfunc_st{name, kernel, *known, module->checked, PLAIN_SHARED, {}}));
    *function = module->functions.back().get();
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction fn, int attribute, int value)
{
    Call call(Call::CONTEXT);
    if (call.error)
        return call.error;
    if (attribute == 8 && (value < 0 || value > MAX_DYNAMIC_SHARED))
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %d bytes of shared memory", fn->name.c_str(),
                      value);
    if (attribute == 8)
        fn->shared_limit = (unsigned)value;
    return attribute == 8 || attribute == 9 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchKernel(CUfunction fn, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream stream, void **params, void **extra)
{
    Call call(Call::CONTEXT);
    if (call.error)
        return call.error;
    auto launch = std::make_shared<Launch>();
    launch->function = fn;
    launch->grid = SimtDim(grid_x, grid_y, grid_z);
    launch->block = SimtDim(block_x, block_y, block_z);
    launch->shared = shared;
    CUresult error = check_launch(fn, *launch);
    if (!error)
        error = copy_parameters(launch.get(), params, extra);
    return error ? error : enqueue(stream, [launch] { execute(*launch); });
}

// data type: 0 u8, 1 u16, 2 u32, 3 s32, 4 u64, 5 s64, 6 f16, 7 f32, 8 f64, 9 bf16
CUresult cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *base,
                                const uint64_t *sizes, const uint64_t *strides, const uint32_t *box,
                                const uint32_t *steps, int interleave, int swizzle, int, int fill)
{
    static const int element_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    Call call(Call::CONTEXT);
    if (call.error)
        return call.error;
    if (type < 0 || type > 9 || rank < 1 || rank > 5 || interleave || swizzle < 0 || swizzle > 3 ||
        fill)
        return refuse(CUDA_ERROR_INVALID_VALUE, "a tensor map of a kind that is not modelled");
    if ((uintptr_t)map & 63)
        return refuse(CUDA_ERROR_INVALID_VALUE, "a tensor map that is not aligned to 64 bytes");
    if (sizes[0] == 0 || sizes[0] > 1ull << 32)
        return refuse(CUDA_ERROR_INVALID_VALUE, "a tensor map with impossible sizes");
    size_t end = (size_t)element_bytes[type] * sizes[0];
    for (unsigned i = 1; i < rank; i++) {
        if (strides[i - 1] >= 1ull << 40 || sizes[i] == 0 || sizes[i] > 1ull << 32)
            return refuse(CUDA_ERROR_INVALID_VALUE, "a tensor map with impossible sizes");
        end += (sizes[i] - 1) * strides[i - 1];
    }
    if (CUresult error = check_device_range((CUdeviceptr)(uintptr_t)base, end, "a tensor map"))
        return error;
    int wrong = simt_tensor_map_tiled(map, element_bytes[type], (int)rank, base, sizes, strides,
                                      box, steps, swizzle);
    return wrong ? refuse(CUDA_ERROR_INVALID_VALUE, "a tensor map that is refused (%d)", wrong)
                 : CUDA_SUCCESS;
}
}
