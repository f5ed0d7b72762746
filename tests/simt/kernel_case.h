/* A kernel of the CUDA target beside the CPU library's: the same argument struct, the same answer.
 *
 * A case is made of arrays and argument structs whose addresses are those of the arrays:
 *
 *     KernelCase test("pv_softmax", pv_softmax, "an odd row");
 *     int64_t y = test.output(3 * 35), x = test.input(3 * 35);
 *     test.segment(SoftmaxArgs{y, x, 3, 35, 0});
 *     test.run();
 *
 * run() asks cuda_select and the shape function as pvdmc and the runtime do, makes the program's
 * text, compiles it for the emulator (cached under out/tests by content) and runs all phases in
 * three modes with every access checked; then every array is compared with what the CPU kernel
 * left in a copy, elements that it did not write included. Where NVRTC is at hand the text must
 * compile for sm_80 and sm_90a without a warning and without local memory. A program ends with
 * `return finish_cases();`. Needs the line `// cases` at the top of the test. With
 * PVDM_CASES=libcuda.so.1 cases run on a GPU (kernel_case_device.h, kernel_case_image.h).
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <functional>
#include <string>
#include <vector>
extern "C" {
#include "codegen/cpu/kernels.h"
#include "codegen/kernel_args.h"
}

enum Storage { ST_F32, ST_BF16, ST_F16, ST_I64, ST_BYTE }; // of an array in device memory

class KernelCase
{
public:
    // `reference`: the CPU kernel, or a function that computes the same from the same struct.
    KernelCase(const char *symbol, std::function<PvKernelFn> reference, const char *what);
    ~KernelCase();
    KernelCase(const KernelCase &) = delete;
    KernelCase &operator=(const KernelCase &) = delete;

    // Arrays; each returns its address for argument structs (add element sizes to point into it).
    // bf16 and f16 arrays are f32 for the reference, at the same element.
    int64_t input(size_t count, float scale = 1, float offset = 0, Storage storage = ST_F32);
    int64_t integers(size_t count, int64_t low, int64_t end);   // int64 in [low, end)
    int64_t bytes(size_t count);                                // of elements that are only moved
    // Written; `tolerance` bounds |difference| / |reference| in the 2-norm, 0 is bit for bit.
    int64_t output(size_t count, double tolerance = 1e-5, Storage storage = ST_F32);
    int64_t updated(size_t count, double tolerance = 1e-5, Storage storage = ST_F32); // has values
    float *values(int64_t address); // of the reference's copy; change them by set()
    void set(int64_t address, size_t element, float value);
    void set_integer(int64_t address, size_t element, int64_t value);

    template <class Args> void segment(const Args &args)
    {
        add_segment((const int64_t *)&args, sizeof args / sizeof(int64_t));
    }
    // Other memory that kernels may read; it lives as long as the program.
    static void *device_memory(const void *content, size_t bytes);
    // Field `index` of the struct (ARG-like: offsetof / 8) grows with the batch, which is 1 here.
    void depends_on_batch(size_t index);

    bool on_90a = false;         // the kernel for sm_90a alone, not the one for every GPU
    int threads = 2;             // of the reference
    bool together = false;       // it takes all segments at once: they are not independent
    const void *step = nullptr;  // CxStep, in device_memory
    PvStep *host_step = nullptr; // the same for the reference

    void run();                     // race mode, and NVRTC
    void run_fast();                // without checks of accesses: for larger shapes
    void find_fault(const char *f); // with this definition the checks of run() must fail

private:
    struct Array {
        Storage storage;
        bool written;
        double tolerance;
        size_t count;
        std::vector<char> start, expected; // as the reference has it
        std::vector<char> device_start;    // as the device has it
        char *device;
    };
    struct Built;
    std::string symbol, what;
    std::function<PvKernelFn> reference;
    std::vector<Array> arrays;
    std::vector<std::vector<int64_t>> segments;
    std::vector<bool> batch_fields;

    int64_t add_array(Storage storage, size_t count, bool written, double tolerance);
    void add_segment(const int64_t *args, size_t words);
    Array *array_at(int64_t address);
    int64_t host_address(int64_t value);
    void run_reference();
    bool build(bool race, const char *fault, Built *built);
    bool build_for_device(Built *built);
    bool begin();
    bool launch(Built *built);
    std::string compare();
    bool try_mode(Built *built, int order, int async, int race, unsigned seed, bool quiet,
                  int banks = 0);
};

int finish_cases(void); // prints `N passed, N failed`; the exit status
