/* Cases of kernel_case.h: arrays, the launch as the runtime makes it, the comparison. */
#include "kernel_case.h"
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cx_launch.h"
#include "kernel_case_banks.h"
#include "kernel_case_device.h"
#include "kernel_case_image.h"
extern "C" {
#include "kernel_choice.h"
}

static int passed, failed, cases; // cases: run() and run_fast() so far, on a device

// Device memory: the emulator's or a driver's.
static void *allocate(size_t bytes)
{
    return device_wanted() ? device_alloc(bytes) : simt_malloc(bytes);
}
static void release(void *memory)
{
    if (device_wanted())
        device_free(memory);
    else
        simt_free(memory);
}
void *KernelCase::device_memory(const void *content, size_t bytes)
{
    void *memory = allocate(bytes);
    if (device_wanted())
        device_write(memory, content, bytes);
    else
        memcpy(memory, content, bytes);
    return memory;
}

static const uint32_t UNWRITTEN = 0x7fc0dead; // what an output holds before: a NaN
static const size_t SCRATCH = 64 << 20;       // bytes a thread of the reference

/* ---- arrays ---- */

static float uniform(void) // in [-1, 1)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)((double)(state >> 11) / (double)(1ull << 53) * 2 - 1);
}

static size_t device_size(Storage storage) // bytes of an element
{
    static const size_t size[] = {4, 2, 2, 8, 1};
    return size[storage];
}

static size_t host_size(Storage storage)
{
    static const size_t size[] = {4, 4, 4, 8, 1};
    return size[storage];
}

static float bits_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static float load_element(Storage storage, const char *at)
{
    uint16_t half;
    memcpy(&half, at, 2);
    if (storage == ST_BF16)
        return bits_float((uint32_t)half << 16);
    if (storage == ST_F16) {
        _Float16 value;
        memcpy(&value, at, 2);
        return (float)value;
    }
    float value;
    memcpy(&value, at, 4);
    return value;
}

static void store_element(Storage storage, char *at, float value)
{
    if (storage == ST_BF16) {
        uint32_t bits = float_bits(value);
        uint16_t half = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        memcpy(at, &half, 2);
    } else if (storage == ST_F16) {
        _Float16 half = (_Float16)value;
        memcpy(at, &half, 2);
    } else {
        memcpy(at, &value, 4);
    }
}

KernelCase::KernelCase(const char *symbol_, std::function<PvKernelFn> reference_, const char *what_)
    : symbol(symbol_), what(std::string(symbol_) + " " + what_), reference(std::move(reference_))
{
}

KernelCase::~KernelCase()
{
    for (Array &array : arrays)
        release(array.device);
}

int64_t KernelCase::add_array(Storage storage, size_t count, bool written, double tolerance)
{
    Array array = {storage, written, tolerance, count, {}, {}, {}, nullptr};
    array.start.assign(count * host_size(storage), 0);
    array.device_start.assign(count * device_size(storage), 0);
    array.device = (char *)allocate(count * device_size(storage) + (count == 0));
    arrays.push_back(array);
    return (int64_t)array.device;
}

int64_t KernelCase::input(size_t count, float scale, float offset, Storage storage)
{
    int64_t address = add_array(storage, count, false, 0);
    for (size_t i = 0; i < count; i++)
        set(address, i, uniform() * scale + offset);
    return address;
}

int64_t KernelCase::integers(size_t count, int64_t low, int64_t end)
{
    int64_t address = add_array(ST_I64, count, false, 0);
    for (size_t i = 0; i < count; i++)
        set_integer(address, i, low + (int64_t)((uniform() * 0.5f + 0.5f) * (float)(end - low)));
    return address;
}

int64_t KernelCase::bytes(size_t count)
{
    int64_t address = add_array(ST_BYTE, count, false, 0);
    Array &array = arrays.back();
    for (size_t i = 0; i < count; i++)
        array.start[i] = array.device_start[i] = (char)(uniform() * 120);
    return address;
}

int64_t KernelCase::output(size_t count, double tolerance, Storage storage)
{
    int64_t address = add_array(storage, count, true, tolerance);
    Array &array = arrays.back();
    for (size_t i = 0; i < array.start.size(); i++)
        array.start[i] = (char)(UNWRITTEN >> i % 4 * 8);
    // 2-byte elements: the pattern's upper half, so that both sides hold a NaN
    size_t size = device_size(storage);
    for (size_t i = 0; i < array.device_start.size(); i++)
        array.device_start[i] = (char)(UNWRITTEN >> (size == 2 ? i % 2 + 2 : i % 4) * 8);
    return address;
}

int64_t KernelCase::updated(size_t count, double tolerance, Storage storage)
{
    int64_t address = input(count, 1, 0, storage);
    arrays.back().written = true;
    arrays.back().tolerance = tolerance;
    return address;
}

KernelCase::Array *KernelCase::array_at(int64_t value)
{
    for (Array &array : arrays) {
        int64_t offset = value - (int64_t)array.device;
        if (offset >= 0 && offset <= (int64_t)(array.count * device_size(array.storage)))
            return &array;
    }
    return nullptr;
}

float *KernelCase::values(int64_t address)
{
    Array *array = array_at(address);
    return (float *)(array->start.data());
}

void KernelCase::set(int64_t address, size_t element, float value)
{
    Array *array = array_at(address);
    char *at = array->device_start.data() + element * device_size(array->storage);
    store_element(array->storage, at, value);
    float rounded = load_element(array->storage, at);
    memcpy(array->start.data() + element * 4, &rounded, 4);
}

void KernelCase::set_integer(int64_t address, size_t element, int64_t value)
{
    Array *array = array_at(address);
    memcpy(array->device_start.data() + element * 8, &value, 8);
    memcpy(array->start.data() + element * 8, &value, 8);
}

void KernelCase::add_segment(const int64_t *args, size_t words)
{
    segments.push_back(std::vector<int64_t>(args, args + words));
    batch_fields.resize(words);
}

void KernelCase::depends_on_batch(size_t index)
{
    batch_fields.resize(std::max(batch_fields.size(), index + 1));
    batch_fields[index] = true;
}

/* ---- the reference ---- */

int64_t KernelCase::host_address(int64_t value)
{
    Array *array = array_at(value);
    if (!array)
        return value;
    int64_t element = (value - (int64_t)array->device) / (int64_t)device_size(array->storage);
    return (int64_t)array->expected.data() + element * (int64_t)host_size(array->storage);
}

void KernelCase::run_reference()
{
    if (!arrays.empty() && !arrays[0].expected.empty())
        return;
    for (Array &array : arrays)
        array.expected = array.start;
    std::vector<char> scratch((size_t)threads * SCRATCH + 64);
    PvRun run = {};
    run.batch = 1;
    run.threads = threads;
    run.scratch = (char *)(((uintptr_t)scratch.data() + 63) & ~(uintptr_t)63);
    run.scratch_size = (int64_t)SCRATCH;
    run.step = host_step;
    run.segments = together ? (uint32_t)segments.size() : 1;
    std::vector<int64_t> args;
    for (const std::vector<int64_t> &segment : segments) {
        for (int64_t value : segment)
            args.push_back(host_address(value));
        if (together)
            continue;
        reference(&run, args.data());
        args.clear();
    }
    if (together)
        reference(&run, args.data());
}

// What differs from the reference, "" if nothing does.
std::string KernelCase::compare()
{
    char text[256];
    for (size_t number = 0; number < arrays.size(); number++) {
        const Array &array = arrays[number];
        size_t size = device_size(array.storage), wide = host_size(array.storage);
        bool real = array.written && array.storage <= ST_F16 && array.tolerance > 0;
        double difference = 0, norm = 0, worst = 0;
        size_t where = 0;
        std::vector<char> copy(device_wanted() ? array.count * size : 0);
        const char *content = device_wanted() ? copy.data() : array.device;
        if (device_wanted())
            device_read(copy.data(), array.device, copy.size());
        for (size_t i = 0; i < array.count; i++) {
            const char *got = content + i * size, *before = &array.device_start[i * size];
            const char *want = &array.expected[i * wide], *old = &array.start[i * wide];
            bool kept = memcmp(want, old, wide) == 0;
            bool equal = memcmp(got, kept || !array.written ? before : want, size) == 0;
            if ((!real || (kept && !equal && float_bits(load_element(ST_F32, old)) == UNWRITTEN)) &&
                !equal) {
                snprintf(text, sizeof text, "array %zu, element %zu: %s", number, i,
                         kept ? "written, and should not be" : "another value");
                return text;
            }
            if (!real || (kept && equal))
                continue;
            double value = load_element(array.storage, got), right = load_element(ST_F32, want);
            double apart = fabs(value - right);
            difference += apart * apart;
            norm += right * right;
            if (apart > worst || (apart != apart && worst == worst)) {
                worst = apart;
                where = i;
            }
        }
        double error = difference == 0 ? 0 : sqrt(difference / norm);
        if (!(error <= array.tolerance)) {
            snprintf(text, sizeof text,
                     "array %zu: error %.1e (bound %.1e), worst at %zu: %g for %g", number, error,
                     array.tolerance, where,
                     (double)load_element(array.storage, content + where * size),
                     (double)load_element(ST_F32, &array.expected[where * wide]));
            return text;
        }
    }
    return "";
}

/* ---- the program ---- */

struct KernelCase::Built {
    KernelChoice choice;
    void *library;
    SimtKernel phase[PV_MAX_PHASES];
    void *function[PV_MAX_PHASES]; // of a driver
    PvCudaShape *shape;
};

static void fail(const std::string &what, const std::string &why)
{
    failed++;
    printf("FAIL %s: %s\n", what.c_str(), why.c_str());
    fflush(stdout);
}

bool KernelCase::build_for_device(Built *built)
{
    std::string image = find_image(built->choice);
    if (image.empty() && device_emulates())
        image = read_file(
            shared_object(built->choice.text, built->choice.symbol, false, getenv("PVDM_CASES")));
    std::string wrong = device_load(built->choice, root_folder(), image, built->function);
    if (!wrong.empty())
        fail(what, wrong);
    return wrong.empty();
}

bool KernelCase::build(bool race, const char *fault, Built *built)
{
    std::vector<PvArg> args;
    size_t words = segments[0].size();
    for (size_t i = 0; i < words * segments.size(); i++) {
        int64_t value = segments[i / words][i % words];
        Array *array = array_at(value);
        PvArg arg = {value, 0, PV_VALUE};
        if (array)
            arg = {value - (int64_t)array->device, 0, PV_ARENA};
        else if (batch_fields[i % words])
            arg = {0, value, PV_VALUE};
        args.push_back(arg);
    }
    *built = Built();
    if (!kernel_choose(symbol.c_str(), args.data(), (uint32_t)words, (uint32_t)segments.size(),
                       on_90a, &built->choice)) {
        fail(what, "no kernel was chosen");
        return false;
    }
    std::string head = segments.size() == 1 ? "#define CX_SEGMENTS 1\n" : "";
    if (fault)
        head += std::string("#define ") + fault + "\n";
    std::string text = head + built->choice.text;
    built->shape = (PvCudaShape *)dlsym(RTLD_DEFAULT, built->choice.shape);
    if (!built->shape) {
        fail(what, "no shape function " + std::string(built->choice.shape));
        return false;
    }
    free(built->choice.text);
    built->choice.text = strdup(text.c_str());
    if (device_wanted() || making_images()) {
        if (!sample_wants(built->choice))
            return false;
        if (device_wanted()) {
            printf("case %d: %s\n", cases, what.c_str());
            fflush(stdout);
            return build_for_device(built);
        }
        add_image(built->choice);
        return false;
    }
    if (race && !fault) {
        char stamp[4096];
        snprintf(stamp, sizeof stamp, "%s/out/tests/%s-%016llx.ok", root_folder(),
                 built->choice.symbol, (unsigned long long)hash_program(7, text));
        mkdir((std::string(root_folder()) + "/out").c_str(), 0777);
        mkdir((std::string(root_folder()) + "/out/tests").c_str(), 0777);
        const char *wrong = kernel_compiles(&built->choice, root_folder(), stamp);
        if (wrong)
            fail(what, wrong);
    }
    std::string path = shared_object(text, built->choice.symbol, race, "");
    built->library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!built->library) {
        fail(what, path.empty() ? "its text does not compile" : dlerror());
        return false;
    }
    for (uint32_t phase = 0; phase < built->choice.phases; phase++) {
        std::string name = built->choice.symbol;
        name += (phase ? "_" + std::to_string(phase) : "") + "__simt";
        built->phase[phase] = (SimtKernel)dlsym(built->library, name.c_str());
    }
    if (!built->phase[built->choice.phases - 1]) {
        fail(what, "a phase is missing");
        return false;
    }
    return true;
}

// Maps and numbers of all segments, as CxMaps. "" or what is wrong.
static std::string encode_maps(const std::vector<PvCudaGrid> &grids, std::vector<CxMaps> *maps)
{
    for (size_t s = 0; s < grids.size(); s++) {
        memcpy((*maps)[s].number, grids[s].numbers, sizeof grids[s].numbers);
        for (int i = 0; i < PV_CUDA_MAPS; i++) {
            const PvTensorMap &map = grids[s].maps[i];
            void *to = &(*maps)[s].map[i], *address = (void *)(uintptr_t)map.address;
            uint32_t step[5], span[5]; // as the driver is told
            for (int axis = 0; axis < 5; axis++) {
                step[axis] = map.step[axis] > 1 ? map.step[axis] : 1;
                span[axis] = map.box[axis] * step[axis];
            }
            int wrong = device_wanted()
                            ? device_encode_map(to, &map)
                            : simt_tensor_map_tiled(to, 2, (int)map.rank, address, map.size,
                                                    map.stride, span, step, 3);
            if (wrong)
                return "tensor map " + std::to_string(i) + " is refused: " + std::to_string(wrong);
        }
    }
    return "";
}

// All phases, as the runtime launches them. false: a launch did not end.
bool KernelCase::launch(Built *built)
{
    const KernelChoice &choice = built->choice;
    uint32_t count = (uint32_t)segments.size();
    PvCudaKernel kernel = {};
    kernel.symbol = choice.symbol;
    kernel.phases = choice.phases;
    kernel.segments = choice.segments ? choice.segments : count == 1 ? 1 : PV_MAX_SEGMENTS;
    memcpy(kernel.threads, choice.threads, sizeof kernel.threads);
    memcpy(kernel.shared, choice.shared, sizeof kernel.shared);
    memcpy(kernel.baked, choice.baked, sizeof kernel.baked);
    kernel.shape = built->shape;
    CxHead head = {};
    std::vector<PvCudaGrid> grids(count);
    size_t words = segments[0].size();
    size_t maps_at = (sizeof head + words * kernel.segments * 8 + 63) / 64 * 64;
    std::vector<CxMaps> maps(kernel.segments);
    std::vector<int64_t> block((maps_at + maps.size() * sizeof(CxMaps)) / 8);
    for (uint32_t i = 0; i < count; i++) {
        built->shape(&kernel, segments[i].data(), &grids[i]);
        head.work[i] = grids[i].workspace ? (u8 *)allocate((size_t)grids[i].workspace) : nullptr;
        memcpy((char *)block.data() + sizeof head + i * words * 8, segments[i].data(), words * 8);
    }
    std::string refused = choice.maps ? encode_maps(grids, &maps) : "";
    if (!refused.empty()) {
        fail(what, refused);
        return false;
    }
    if (choice.maps)
        memcpy((char *)block.data() + maps_at, maps.data(), maps.size() * sizeof(CxMaps));
    std::vector<uint32_t> zeros(PV_MAX_SEGMENTS * CX_COUNTERS), counts = zeros;
    head.counters = (u32 *)device_memory(zeros.data(), zeros.size() * 4);
    head.segments = count;
    head.step = (const CxStep *)step;
    bool ended = true;
    for (uint32_t phase = 0; phase < choice.phases && ended; phase++) {
        for (uint32_t i = 0; i < count; i++)
            head.first[i + 1] = head.first[i] + grids[i].blocks[phase];
        memcpy(block.data(), &head, sizeof head);
        void *params[] = {block.data()};
        uint32_t blocks = head.first[count];
        if (choice.resident[phase]) // few, so that they take turns
            blocks = std::min(blocks, 3u);
        if (blocks > 0 && device_wanted()) {
            std::string wrong = device_launch(built->function[phase], blocks,
                                              choice.threads[phase], choice.shared[phase],
                                              block.data());
            if (!wrong.empty()) { // it sticks to the context: what comes next would say nothing
                fail(what, wrong);
                _exit(1);
            }
        } else if (blocks > 0)
            ended = simt_launch(choice.symbol, built->phase[phase], SimtDim(blocks),
                                SimtDim(choice.threads[phase]), choice.shared[phase], params) == 0;
    }
    for (uint32_t i = 0; i < count; i++)
        if (head.work[i])
            release(head.work[i]);
    if (device_wanted())
        device_read(counts.data(), head.counters, counts.size() * 4);
    else
        memcpy(counts.data(), head.counters, counts.size() * 4);
    release(head.counters);
    if (ended && counts != zeros) {
        fail(what, "counters are not 0 again");
        ended = false;
    }
    return ended;
}

// banks: a SimtBanks; counted for the figures of the template where it is not quiet.
bool KernelCase::try_mode(Built *built, int order, int async, int race, unsigned seed, bool quiet,
                          int banks)
{
    simt_config = {order, async, SIMT_ASAN ? 0 : race, seed, quiet ? 0 : 4};
    simt_config.banks = SIMT_ASAN ? (int)SIMT_NO_BANKS : banks;
    simt_reset();
    for (Array &array : arrays)
        if (device_wanted())
            device_write(array.device, array.device_start.data(), array.device_start.size());
        else if (array.count > 0)
            memcpy(array.device, array.device_start.data(), array.device_start.size());
    std::string wrong = launch(built) ? compare() : "the launch did not end";
    bool figures = banks == SIMT_COUNT_BANKS && !quiet;
    if (wrong.empty() && figures)
        wrong = add_banks(built->choice.file);
    bool conflicts = simt_stats.bank_conflicts != 0 && !figures;
    bool right = wrong.empty() && simt_stats.errors == 0 && !conflicts;
    if (right || quiet)
        return right;
    char text[512];
    snprintf(text, sizeof text,
             "order %d, async %d, seed %u: %s%s%llu reports, %llu bank conflicts %s", order, async,
             seed, wrong.c_str(), wrong.empty() ? "" : "; ", (unsigned long long)simt_stats.errors,
             (unsigned long long)simt_stats.bank_conflicts, simt_first_report());
    fail(what, text);
    return false;
}

// Counts the cases of a device: who started the program goes on behind one that ended it. false: it
// is not asked for, or the device cannot run it.
bool KernelCase::begin()
{
    const char *from = getenv("PVDM_CASES_FROM");
    return !device_wanted() ||
           (++cases >= (from ? atoi(from) : 1) && (!on_90a || device_runs_90a()));
}

void KernelCase::run()
{
    Built built;
    if (!begin() || !build(true, nullptr, &built))
        return;
    run_reference();
    passed += try_mode(&built, SIMT_IN_ORDER, SIMT_EAGER, 1, 1, false,
                       device_wanted() ? SIMT_NO_BANKS : SIMT_LEARN_LOOPS);
    if (device_wanted())
        return;
    passed += try_mode(&built, SIMT_REVERSE, SIMT_LATE, 1, 1, false, SIMT_COUNT_BANKS);
    passed += try_mode(&built, SIMT_RANDOM_ORDER, SIMT_RANDOM_ASYNC, 1, 1, false);
    const char *stress = getenv("PVDM_STRESS");
    for (unsigned i = 0; i < 9 * (stress ? (unsigned)atoi(stress) : 0); i++)
        passed += try_mode(&built, (int)(i % 3), (int)(i / 3 % 3), 1, i / 9 + 1, false);
}

void KernelCase::run_fast()
{
    Built built;
    if (!begin() || !build(false, nullptr, &built))
        return;
    run_reference();
    passed += try_mode(&built, SIMT_IN_ORDER, SIMT_EAGER, 0, 1, false);
}

void KernelCase::find_fault(const char *fault)
{
    Built built;
    if (device_wanted() || making_images() || SIMT_ASAN) // neither tells of a race
        return;
    if (!build(true, fault, &built))
        return;
    run_reference();
    bool of_banks = strncmp(fault, "FAULT_BANKS", 11) == 0;
    for (unsigned seed = 1; seed <= 2; seed++)
        if (try_mode(&built, SIMT_RANDOM_ORDER, SIMT_RANDOM_ASYNC, 1, seed, true,
                     of_banks ? SIMT_COUNT_BANKS : SIMT_NO_BANKS))
            fail(what, std::string(fault) + " was not found");
        else
            passed++;
}

int finish_cases(void)
{
    if (making_images()) {
        std::string wrong = make_images();
        if (!wrong.empty())
            fail("images", wrong);
    }
    if (!device_wanted() && !making_images()) {
        std::string wrong = check_banks();
        if (wrong.empty())
            passed++;
        else
            fail("bank conflicts", wrong);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
