// kernel: pitfalls.cu
// What the emulator says of kernels that are wrong: the first report must tell the reason.
#include "check.h"

static void check(const char *name, SimtKernel kernel, unsigned blocks, unsigned threads,
                  size_t shared, const char *expected)
{
    float *out = make_vector(1024, 0, 0);
    alignas(64) char map[128]; // [34, 32], two rows more than there are
    uint64_t sizes[] = {32, 34}, strides[] = {128};
    uint32_t box[] = {32, 4};
    simt_tensor_map_tiled(map, 4, 2, out, sizes, strides, box, nullptr, 0);
    void *args[] = {&out, map};
    simt_reset();
    simt_config = {SIMT_IN_ORDER, SIMT_LATE, SIMT_RACE, 1, 0};
    simt_launch(name, kernel, SimtDim(blocks), SimtDim(threads), shared, args);
    const char *text = simt_first_report();
    bool good = *expected ? strstr(text, expected) != nullptr : !*text && out[5] == 26;
    if (!good)
        printf("FAIL %s: expected '%s', got '%s'\n", name, expected, text);
    ++(good ? passed : failed);
    simt_free(out);
}

#define CHECK(name, blocks, threads, shared, expected)                                             \
    do {                                                                                           \
        extern void name##__simt(void **) __asm__(#name "__simt");                                 \
        check(#name, name##__simt, blocks, threads, shared, expected);                             \
    } while (0)

int main()
{
    CHECK(divergent_barrier, 1, 64, 0, "bar.sync 0 reached from different lines");
    CHECK(missing_arrival, 1, 64, 0, "DEADLOCK");
    CHECK(divergent_shuffle, 1, 32, 0, "DIVERGENT warp collective");
    CHECK(exited_lane, 1, 32, 0, "names exited lanes");
    CHECK(misaligned, 1, 32, 1024, "cp.async misaligned");
    CHECK(unwaited_copy, 1, 32, 1024, "cp.async still in flight");
    CHECK(reverse, 1, 32, 0, "");
    CHECK(last_block, 3, 64, 64, "");
    CHECK(box_there_and_back, 1, 128, 1024, "");
    if (SIMT_RACE) {
        CHECK(box_without_fence, 1, 128, 1024, "fence.proxy.async");
        CHECK(box_beyond_memory, 1, 128, 1024, "OUT OF BOUNDS global read");
        CHECK(warp_synchronous, 1, 32, 128, "RACE");
        CHECK(overlapping_blocks, 2, 32, 0, "INTER-BLOCK conflict");
        CHECK(last_without_fence, 3, 64, 64, "INTER-BLOCK conflict");
        CHECK(last_without_barrier, 3, 64, 64, "INTER-BLOCK conflict");
        CHECK(last_without_acquire, 3, 64, 64, "INTER-BLOCK conflict");
        CHECK(not_last, 3, 64, 64, "INTER-BLOCK conflict");
        CHECK(uninitialised, 1, 32, 128, "read of uninitialised shared memory");
        CHECK(beyond_shared, 1, 32, 128, "OUT OF BOUNDS shared write at byte 128 of 128");
        CHECK(beyond_global, 1, 32, 0, "OUT OF BOUNDS global write, byte 4096 of 4096");
    }
    return finish();
}
