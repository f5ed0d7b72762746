// kernel: banks.cu
// The counter of bank conflicts: accesses whose conflicts are known must cost just these.
#include "check.h"

extern "C" void access__simt(void **args);
extern "C" void box__simt(void **args);
enum {
    STORE_4,
    LOAD_4,
    STORE_8,
    LOAD_8,
    STORE_16,
    LOAD_16,
    STORE_2,
    COPY,
    MATRIX,
    ROUNDS,
    SKIPS,
    BRANCHES,
    HALVES,
    PAIRS,
    UNALIGNED
};

enum { BOX_WGMMA, BOX_WGMMA_MN, BOX_LDMATRIX, BOX_LDMATRIX_SWIZZLED, BOX_BACK };
enum { SIDE = 64 };

static float *out;
static uint32_t *in;

static void check(const char *what, int kind, int apart, uint64_t conflicts)
{
    for (int order = SIMT_IN_ORDER; order <= SIMT_RANDOM_ORDER; order++) {
        simt_config = {order, SIMT_EAGER, SIMT_RACE, 1, 4};
        void *args[] = {&out, &in, &kind, &apart};
        simt_config.banks = SIMT_LEARN_LOOPS;
        simt_launch("access", access__simt, SimtDim(1), SimtDim(32), 32768, args);
        simt_config.banks = SIMT_COUNT_BANKS;
        simt_reset();
        simt_launch("access", access__simt, SimtDim(1), SimtDim(32), 32768, args);
        uint64_t told = 0;
        size_t count;
        const SimtBankSite *sites = simt_bank_sites(&count);
        for (size_t i = 0; i < count; i++)
            told += sites[i].conflicts;
        bool good = simt_stats.bank_conflicts == conflicts && told == conflicts &&
                    simt_stats.wavefronts > conflicts && simt_stats.errors == 0;
        ++(good ? passed : failed);
        if (!good)
            printf("FAIL %s, %d apart, order %d: %llu conflicts (%llu at places), not %llu\n", what,
                   apart, order, (unsigned long long)simt_stats.bank_conflicts,
                   (unsigned long long)told, (unsigned long long)conflicts);
    }
}

static uint16_t bf16_of(int value) // a small integer
{
    float real = (float)value;
    uint32_t bits;
    memcpy(&bits, &real, 4);
    return (uint16_t)(bits >> 16);
}

static int element(int row, int column) // of the box
{
    return (row * 5 + column * 3 + row * column) % 7 - 3;
}

static bool is_product(const float *product, bool mn_major)
{
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            int sum = 0;
            for (int k = 0; k < SIDE; k++)
                sum += mn_major ? element(k, i) * element(k, j) : element(i, k) * element(j, k);
            if (product[i * SIDE + j] != (float)sum)
                return false;
        }
    return true;
}

// A box of 64 x 128 bytes, which takes 64 wavefronts to come, and so many more to be read.
static void check_box(const char *what, int kind, int swizzle, uint64_t wavefronts,
                      uint64_t conflicts)
{
    uint16_t *content = (uint16_t *)simt_malloc(SIDE * SIDE * 2);
    float *product = make_vector(SIDE * SIDE, 0, 0);
    for (int i = 0; i < SIDE * SIDE; i++)
        content[i] = bf16_of(element(i / SIDE, i % SIDE));
    alignas(64) char map[128];
    uint64_t sizes[] = {SIDE, SIDE}, strides[] = {SIDE * 2};
    uint32_t shape[] = {8u << swizzle, SIDE};
    simt_tensor_map_tiled(map, 2, 2, content, sizes, strides, shape, nullptr, swizzle);
    if (kind >= BOX_LDMATRIX && swizzle == 0) { // rows of 128 bytes all the same
        shape[0] = SIDE;
        simt_tensor_map_tiled(map, 2, 2, content, sizes, strides, shape, nullptr, 0);
        swizzle = 3; // what the kernel makes one panel of
    }
    bool wgmma = kind <= BOX_WGMMA_MN;
    void *args[] = {&product, map, &kind, &swizzle};
    for (int async = SIMT_EAGER; async <= SIMT_RANDOM_ASYNC; async++) {
        simt_config = {SIMT_RANDOM_ORDER, async, SIMT_RACE, 1, 4};
        simt_config.banks = SIMT_COUNT_BANKS;
        simt_reset();
        simt_launch("box", box__simt, SimtDim(1), SimtDim(wgmma ? 128 : 32), SIDE * 128 + 8, args);
        bool good = simt_stats.bank_conflicts == conflicts && simt_stats.errors == 0 &&
                    simt_stats.wavefronts == 64 + wavefronts + conflicts;
        good = good && (!wgmma || is_product(product, kind == BOX_WGMMA_MN));
        ++(good ? passed : failed);
        if (!good)
            printf("FAIL %s, swizzle %d, async %d: %llu conflicts of %llu wavefronts %s\n", what,
                   swizzle, async, (unsigned long long)simt_stats.bank_conflicts,
                   (unsigned long long)simt_stats.wavefronts, simt_first_report());
    }
    simt_free(content);
    simt_free(product);
}

int main()
{
    for (int swizzle = 0; swizzle < 4; swizzle++) {
        check_box("wgmma", BOX_WGMMA, swizzle, 4 * 2 * 16, 0);
        check_box("wgmma, MN-major", BOX_WGMMA_MN, swizzle, 4 * 2 * 16, 0);
    }
    check_box("ldmatrix of rows of 128 bytes", BOX_LDMATRIX, 0, 4, 4 * 7);
    check_box("ldmatrix of swizzled rows", BOX_LDMATRIX_SWIZZLED, 3, 4, 0);
    check_box("there and back", BOX_BACK, 3, 64, 0);
    out = make_vector(32, 0, 0);
    in = (uint32_t *)make_vector(256, 1, 0);
    if (!SIMT_RACE)
        return finish(); // accesses are not seen
    static const struct {
        int apart;
        uint64_t of_4, of_8, of_16;
    } strides[] = {{1, 0, 0, 0},   {2, 1, 2, 4},     {3, 0, 0, 0},     {4, 3, 6, 12},
                   {8, 7, 14, 28}, {16, 15, 30, 28}, {32, 31, 30, 28}, {33, 0, 0, 0}};
    for (auto &stride : strides) {
        check("stores of 4 bytes", STORE_4, stride.apart, stride.of_4);
        check("loads of 4 bytes", LOAD_4, stride.apart, stride.of_4);
        check("stores of 8 bytes", STORE_8, stride.apart, stride.of_8);
        check("loads of 8 bytes", LOAD_8, stride.apart, stride.of_8);
        check("stores of 16 bytes", STORE_16, stride.apart, stride.of_16);
        check("loads of 16 bytes", LOAD_16, stride.apart, stride.of_16);
        check("asynchronous copies", COPY, stride.apart, stride.of_16);
        check("matrices", MATRIX, stride.apart, stride.of_16);
    }
    check("one word for all", LOAD_4, 0, 0);
    check("two words for all", LOAD_8, 0, 0);
    check("four words for all", LOAD_16, 0, 0);
    check("two elements a word", STORE_2, 1, 0);
    check("two lanes a bank", STORE_2, 4, 1);
    check("rounds that end", ROUNDS, 1, 0);
    check("rounds that end, in one bank", ROUNDS, 0, 31 * 32 / 2);
    check("rounds with lanes left out", SKIPS, 1, 0);
    check("two ways to a function", BRANCHES, 0, 0);
    check("two stores of half a warp", HALVES, 1, 0);
    check("two stores of half a warp", HALVES, 2, 0);
    check("two stores of half a warp", HALVES, 4, 2);
    check("structures of 8 bytes", PAIRS, 1, 0);
    check("structures of words", UNALIGNED, 1, 4 * 3);
    return finish();
}
