/* Copies that go on while threads do: cp.async, and TMA with the mbarriers that tell its end.
 *
 * The destination of a late copy is poisoned at once, so that whoever reads before the wait sees
 * NaN. An mbarrier is a word of shared memory as kernels see it: bit 0 the phase, bits 1-15 the
 * arrivals a phase takes, bits 16-30 those still to come, the high half the bytes still to come.
 * TMA is a party of its own in the happens-before order: a load knows what its issuer knew, and
 * releases the mbarrier.
 */
#include <string.h>
#include <algorithm>
#include "cuda_words.h"
#include "internal.h"

/* ---- cp.async ---- */

static void execute_copy(const CpAsync &copy)
{
    u8 *dst = (u8 *)shared_pointer(copy.dst, (u32)copy.bytes, 0);
    memcpy(dst, copy.src, (size_t)copy.source_bytes);
    memset(dst + copy.source_bytes, 0, (size_t)(copy.bytes - copy.source_bytes));
}

void simt_cp_async(u32 dst, const void *src, int bytes, int source_bytes, int site)
{
    u64 errors = simt_stats.errors;
    u8 *target = (u8 *)shared_pointer(dst, (u32)bytes, site);
    simt_stats.cp_async++;
    if (simt_stats.errors != errors)
        return;
    if ((dst & (u32)(bytes - 1)) || (source_bytes && ((uintptr_t)src & (uintptr_t)(bytes - 1))))
        report("cp.async misaligned, line %d", site);
    if (simt_config.race) {
        place = {nullptr, site};
        check_shared_by(block->current, dst - SHARED_BASE, (u32)bytes, true);
        if (source_bytes)
            check_global((const u8 *)src, (size_t)source_bytes, false);
    }
    if (simt_config.banks)
        note_shared_access(block->current, dst - SHARED_BASE, (u32)bytes, (u32)bytes, true,
                           __builtin_return_address(0));
    CpAsync copy = {dst, src, bytes, source_bytes};
    bool late = simt_config.async == SIMT_LATE ||
                (simt_config.async == SIMT_RANDOM_ASYNC && (random_bits() & 1));
    if (!late) {
        execute_copy(copy);
        return;
    }
    memset(target, 0xff, (size_t)bytes);
    block->used_copies = true;
    block->cp[block->current->linear].open.push_back(copy);
}

void simt_cp_commit(void)
{
    CpQueue &queue = block->cp[block->current->linear];
    block->used_copies = true;
    queue.groups.push_back(std::move(queue.open));
    queue.open.clear();
}

void simt_cp_wait(int groups)
{
    CpQueue &queue = block->cp[block->current->linear];
    while ((int)queue.groups.size() > groups) {
        for (const CpAsync &copy : queue.groups[0])
            execute_copy(copy);
        queue.groups.erase(queue.groups.begin());
    }
}

/* ---- mbarrier ---- */

static u64 *mbar_word(u32 address, int site)
{
    if (address & 7)
        report("mbarrier misaligned, line %d", site);
    return (u64 *)shared_pointer(address, 8, site);
}

static void end_phase_if_complete(u32 address, u64 *word)
{
    u64 expected = *word >> 1 & 0x7fff, pending = *word >> 16 & 0x7fff, bytes = *word >> 32;
    if (pending || bytes)
        return;
    *word = ((*word & 1) ^ 1) | expected << 1 | expected << 16;
    block->progress++;
    wake_spinning();
    if (simt_config.race) {
        MbarClock &clock = block->mbar_clocks[address];
        clock.acquired = clock.released;
    }
}

void simt_mbar_init(u32 address, int count)
{
    u64 *word = mbar_word(address, 0);
    *word = (u64)count << 1 | (u64)count << 16;
    if (!simt_config.race)
        return;
    block->mbar_clocks[address] = MbarClock();
    place = {nullptr, -1};
    check_shared_by(block->current, address - SHARED_BASE, 8, true);
}

void simt_mbar_arrive(u32 address, int expected_bytes, int site)
{
    u64 *word = mbar_word(address, site);
    u64 pending = *word >> 16 & 0x7fff;
    u32 bytes = (u32)(*word >> 32) + (u32)expected_bytes;
    if (pending == 0)
        report("mbarrier over-arrived, line %d", site);
    else
        pending--;
    *word = (*word & 0xffff) | pending << 16 | (u64)bytes << 32;
    if (simt_config.race)
        clock_release(block->mbar_clocks[address].released, block->current);
    end_phase_if_complete(address, word);
}

static void complete_bytes(u32 address, u32 bytes)
{
    u64 *word = (u64 *)shared_pointer(address, 8, 0);
    *word = (*word & 0xffffffffu) | (u64)((u32)(*word >> 32) - bytes) << 32;
    end_phase_if_complete(address, word);
}

void simt_mbar_wait(u32 address, int parity, int site)
{
    volatile u64 *word = mbar_word(address, site);
    while ((int)(*word & 1) == (parity & 1))
        spin_self();
    if (simt_config.race)
        clock_acquire(block->mbar_clocks[address].acquired, block->current);
}

void simt_fence_proxy(void)
{
    if (!simt_config.race)
        return;
    Thread *self = block->current;
    self->fence_clock = clock_of(self);
    self->fence_epoch = block->epoch;
    self->clock++;
}

/* ---- tensor maps ---- */

const u32 MAP_MAGIC = 0x544d4150;
struct TensorMap { // ours, not the driver's: kernels treat it as opaque
    u32 magic;
    u8 element_bytes, rank, swizzle, unused;
    u8 *base;
    u32 size[5];
    u64 stride[5];
    u16 box[5];
    u8 step[5];
};
static_assert(sizeof(TensorMap) <= 128, "a tensor map has 128 bytes");

int simt_tensor_map_tiled(void *map, int element_bytes, int rank, void *base, const uint64_t *sizes,
                          const uint64_t *strides, const uint32_t *box, const uint32_t *steps,
                          int swizzle)
{
    TensorMap m;
    memset(&m, 0, sizeof m);
    if (((uintptr_t)base & 15) || rank < 1 || rank > 5)
        return 1;
    m.magic = MAP_MAGIC;
    m.element_bytes = (u8)element_bytes;
    m.rank = (u8)rank;
    m.swizzle = (u8)swizzle;
    m.base = (u8 *)base;
    for (int i = 0; i < rank; i++) {
        u32 step = steps ? steps[i] : 1;
        if (box[i] == 0 || box[i] > 256)
            return 2;
        if (i && (strides[i - 1] & 15))
            return 3;
        if (step < 1 || step > 8)
            return 4;
        m.size[i] = (u32)sizes[i];
        m.box[i] = (u16)box[i];
        m.step[i] = (u8)step;
        m.stride[i] = i ? strides[i - 1] : (u64)element_bytes;
    }
    u32 inner = box[0] * (u32)element_bytes;
    if (inner & 15)
        return 5;
    if (swizzle && inner > 16u << swizzle)
        return 6;
    memcpy(map, &m, sizeof m);
    return 0;
}

u32 swizzled(u32 address, int swizzle)
{
    static const u32 bits[4] = {0, 0x10, 0x30, 0x70};
    return address ^ (address >> 3 & bits[swizzle]);
}

/* ---- TMA ---- */

// Moves one 16-byte chunk; `row` is null where the row lies outside. Elements outside read as zero
// and are not written.
static void move_chunk(const TmaOp *op, const TensorMap &map, u8 *row, u32 byte, u8 *shared)
{
    long first = ((long)op->start[0]) * map.element_bytes + (long)byte;
    long end = std::min(first + 16, (long)map.size[0] * map.element_bytes);
    if (row && simt_config.race && std::max(first, 0l) < end)
        check_global(row + std::max(first, 0l), (size_t)(end - std::max(first, 0l)), op->store);
    for (u32 i = 0; i < 16; i += map.element_bytes) {
        long x = (long)op->start[0] + (long)((byte + i) / map.element_bytes);
        bool inside = row && x >= 0 && x < (long)map.size[0];
        u8 *global = inside ? row + x * map.element_bytes : nullptr;
        if (!op->store && inside)
            memcpy(shared + i, global, map.element_bytes);
        else if (!op->store)
            memset(shared + i, 0, map.element_bytes);
        else if (inside)
            memcpy(global, shared + i, map.element_bytes);
    }
}

static void check_chunk(const TmaOp *op, u32 address)
{
    Thread *issuer = &block->threads[op->issuer];
    if (op->store)
        check_shared(address - SHARED_BASE, 16, op->issuer, clock_of(issuer), op->clock, false,
                     true);
    else
        check_shared(address - SHARED_BASE, 16, block->thread_count, block->engine_clock, op->clock,
                     true, false);
}

static u8 *row_at(const TmaOp *op, const TensorMap &map, const u32 *index)
{
    u8 *row = map.base;
    for (int i = 1; i < map.rank; i++) {
        long at = (long)op->start[i] + (long)index[i] * map.step[i];
        if (at < 0 || at >= (long)map.size[i])
            return nullptr;
        row += at * (long)map.stride[i];
    }
    return row;
}

// Counts wavefronts: the box crosses to or from shared memory in pieces of 128 bytes, in its order.
struct Lines {
    u32 chunks[8], used = 0, count = 0, wavefronts = 0;

    void add(u32 address)
    {
        chunks[used++] = address;
        if (used == 8)
            end();
    }
    void end()
    {
        if (used == 0)
            return;
        wavefronts += chunk_wavefronts(chunks, used);
        count++;
        used = 0;
    }
};

// Walks the box in shared-memory order. Returns the bytes it has there, 0 if it could not.
static u32 walk_box(TmaOp *op, const TensorMap &map)
{
    static const u32 alignment[4] = {128, 256, 512, 1024};
    u32 count[5] = {1, 1, 1, 1, 1}, index[5] = {0};
    for (int i = 0; i < map.rank; i++)
        count[i] = i == 0 ? map.box[i] : (u32)(map.box[i] + map.step[i] - 1) / map.step[i];
    u32 row_bytes = count[0] * map.element_bytes;
    u32 rows = count[1] * count[2] * count[3] * count[4];
    if (map.swizzle && row_bytes != 16u << map.swizzle) {
        report("TMA: a box narrower than its swizzle is not emulated, line %d", op->site);
        return 0;
    }
    if (op->shared % alignment[map.swizzle])
        report("TMA: shared address %u not aligned to %u for this swizzle, line %d", op->shared,
               alignment[map.swizzle], op->site);
    u64 errors = simt_stats.errors;
    shared_pointer(op->shared, row_bytes * rows, op->site);
    if (simt_stats.errors != errors)
        return 0;
    if (simt_config.race && op->clock.epoch != block->epoch)
        clock_join(op->clock, Clock());
    place = {nullptr, op->site};
    Lines lines;
    for (u32 r = 0; r < rows; r++) {
        u8 *row = row_at(op, map, index);
        for (u32 byte = 0; byte < row_bytes; byte += 16) {
            u32 address = swizzled(op->shared + r * row_bytes + byte, map.swizzle);
            lines.add(address);
            move_chunk(op, map, row, byte, (u8 *)shared_pointer(address, 16, op->site));
            if (simt_config.race)
                check_chunk(op, address);
        }
        for (int i = 1; i < 5 && ++index[i] == count[i]; i++)
            index[i] = 0;
    }
    lines.end();
    note_chunks(op->pc, !op->store, lines.count, lines.wavefronts);
    simt_stats.tma_bytes += row_bytes * rows;
    return row_bytes * rows;
}

void execute_tma(TmaOp *op)
{
    TensorMap map;
    Thread *running = block->current;
    block->current = &block->threads[op->issuer]; // whose memory accesses these are
    memcpy(&map, op->map, sizeof map);
    if (simt_config.race)
        block->engine_clock++;
    if (map.magic != MAP_MAGIC || map.rank != op->rank) {
        report("TMA: not a tensor map of rank %d, line %d", op->rank, op->site);
    } else if (u32 bytes = walk_box(op, map)) {
        if (!op->store && simt_config.race) {
            Clock &released = block->mbar_clocks[op->mbar].released;
            clock_join(released, op->clock);
            u32 &engine = released.at[block->thread_count];
            engine = std::max(engine, block->engine_clock);
        }
        if (!op->store)
            complete_bytes(op->mbar, bytes);
    }
    block->current = running;
    delete op;
}

static TmaOp *issue(bool store, u32 shared, const void *map, const int *start, int rank, int site,
                    const void *pc)
{
    TmaOp *op = new TmaOp();
    Thread *self = block->current;
    op->store = store;
    op->shared = shared;
    memcpy(op->map, map, sizeof op->map);
    memcpy(op->start, start, sizeof(int) * (size_t)rank);
    op->rank = rank;
    op->site = site;
    op->pc = pc;
    op->issuer = self->linear;
    if (simt_config.race) {
        op->clock = seen_by(self);
        op->clock.at[self->linear] = self->clock;
    }
    return op;
}

void simt_tma_load(u32 dst, const void *map, u32 mbar, const int *start, int rank, int site)
{
    TmaOp *op = issue(false, dst, map, start, rank, site, __builtin_return_address(0));
    op->mbar = mbar;
    if (simt_config.async == SIMT_EAGER) {
        execute_tma(op);
    } else {
        block->used_copies = true;
        block->loads.push_back(op);
        block->progress++;
    }
}

void simt_tma_store(const void *map, u32 src, const int *start, int rank, int site)
{
    block->used_copies = true;
    block->stores.push_back(
        issue(true, src, map, start, rank, site, __builtin_return_address(0)));
}

void simt_bulk_commit(void)
{
}

// Stores are always as late as the rules permit: carried out by their issuer's wait.
void simt_bulk_wait(void)
{
    for (size_t i = 0; i < block->stores.size();) {
        TmaOp *op = block->stores[i];
        if (op->issuer != block->current->linear) {
            i++;
            continue;
        }
        block->stores.erase(block->stores.begin() + (long)i);
        execute_tma(op);
    }
}
