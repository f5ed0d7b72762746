/* wgmma: D[64, n] += A[64, 16] B[n, 16]', a matrix product of a warpgroup, done when it is waited
 * for.
 *
 * Operands lie in shared memory behind descriptors, K-major or MN-major, with the 128-byte swizzle,
 * or A in registers. The four warps issue the same operation one by one; when all have, it may run.
 * With late or random completion the accumulator registers are poisoned until the wait and their
 * value is kept aside, so that a kernel that reads them early sees NaN, and operands are read at
 * the wait, so that a stage that was freed too early is seen. Operands are read through the
 * asynchronous proxy. A warp must have fenced its registers since it last waited for all.
 */
#include <string.h>
#include <algorithm>
#include "cuda_words.h"
#include "internal.h"

enum { TILE_M = 64, TILE_K = 16, MAX_N = 256 };

void reset_warpgroup(Warpgroup &group)
{
    for (WgmmaOp *op : group.ops)
        delete op;
    group.ops.clear();
    group.base = 0;
    for (int w = 0; w < 4; w++) {
        group.issued[w] = 0;
        group.fenced[w] = false;
        group.commits[w].clear();
    }
    for (std::vector<Accumulator> &lane : group.accumulators)
        lane.clear();
}

/* ---- operands ---- */

// Eight consecutive elements, 16 bytes.
static void read_chunk(u32 address, HalfToFloat *value, int site, Thread *reader, float out[8])
{
    u64 errors = simt_stats.errors;
    const u16 *chunk = (const u16 *)shared_pointer(address, 16, site);
    for (int i = 0; i < 8; i++)
        out[i] = value(chunk[i]);
    if (simt_config.race && simt_stats.errors == errors)
        check_shared(address - SHARED_BASE, 16, reader->linear, clock_of(reader), seen_by(reader),
                     false, true);
}

// Reads [rows][16] through a descriptor: address, leading and stride byte offsets in units of 16.
static void read_operand(u64 descriptor, int half, int mn_major, int rows, float (*out)[TILE_K],
                         int site, Thread *reader)
{
    u32 start = (u32)(descriptor & 0x3fff) << 4;
    u32 leading = (u32)(descriptor >> 16 & 0x3fff) << 4;
    u32 stride = (u32)(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) {
        report("wgmma: only the 128-byte swizzle is emulated, line %d", site);
        return;
    }
    if (descriptor >> 49 & 7)
        report("wgmma: a base offset is not emulated, line %d", site);
    HalfToFloat *value = half_to_float(half);
    place = {nullptr, site};
    for (int r = 0; !mn_major && r < rows; r++)
        for (int k = 0; k < TILE_K; k += 8) {
            u32 at = start + (u32)(r / 8) * stride + (u32)(r % 8 * 128 + k * 2);
            read_chunk(swizzled(at, 3), value, site, reader, &out[r][k]);
        }
    for (int r = 0; mn_major && r < rows; r += 8)
        for (int k = 0; k < TILE_K; k++) {
            u32 at = start + (u32)(r / 64) * leading + (u32)(k / 8) * stride +
                     (u32)(k % 8 * 128 + r % 64 * 2);
            float chunk[8];
            read_chunk(swizzled(at, 3), value, site, reader, chunk);
            for (int i = 0; i < 8; i++)
                out[r + i][k] = chunk[i];
        }
}

static void read_registers(const WgmmaOp *op, float (*a)[TILE_K])
{
    HalfToFloat *value = half_to_float(op->half);
    for (int w = 0; w < 4; w++)
        for (int lane = 0; lane < WARP; lane++) {
            int row = w * 16 + lane / 4, column = lane % 4 * 2;
            for (int i = 0; i < 4; i++) { // registers: rows + 0, + 8 of columns + 0, then + 8
                u32 pair = op->a_registers[w][lane][i];
                float *to = &a[row + i % 2 * 8][column + i / 2 * 8];
                to[0] = value(pair & 0xffff);
                to[1] = value(pair >> 16);
            }
        }
}

/* ---- accumulators ---- */

static Accumulator *find_accumulator(std::vector<Accumulator> &lane, const float *registers)
{
    for (Accumulator &accumulator : lane)
        if (accumulator.registers == registers)
            return &accumulator;
    return nullptr;
}

// Sets registers aside at issue, or counts one more operation on them.
static void set_aside(std::vector<Accumulator> &lane, float *registers, int n)
{
    if (Accumulator *found = find_accumulator(lane, registers)) {
        found->pending++;
        return;
    }
    lane.push_back({registers, std::vector<float>(registers, registers + n / 2), 1});
    memset(registers, 0xff, (size_t)n / 2 * sizeof(float));
}

static void give_back(std::vector<Accumulator> &lane, float *registers)
{
    Accumulator *found = find_accumulator(lane, registers);
    if (!found || --found->pending > 0)
        return;
    std::copy(found->value.begin(), found->value.end(), registers);
    lane.erase(lane.begin() + (found - lane.data()));
}

static void exchange(Warpgroup &group, const WgmmaOp *op, float (*d)[MAX_N], bool load)
{
    for (int w = 0; w < 4; w++)
        for (int lane = 0; lane < WARP; lane++) {
            float *registers = op->d[w][lane];
            if (Accumulator *aside =
                    find_accumulator(group.accumulators[w * WARP + lane], registers))
                registers = aside->value.data();
            int row = w * 16 + lane / 4, column = lane % 4 * 2;
            for (int j = 0; j < op->n / 8; j++)
                for (int half = 0; half < 2; half++) {
                    float *tile = &d[row + half * 8][8 * j + column];
                    float *pair = registers + 4 * j + 2 * half;
                    memcpy(load ? tile : pair, load ? pair : tile, 8);
                }
        }
}

/* ---- execution ---- */

static void execute(Warpgroup &group, WgmmaOp *op)
{
    struct Room { // of this host thread's block
        float a[TILE_M][TILE_K], b[MAX_N][TILE_K], b_rows[TILE_K][MAX_N], d[TILE_M][MAX_N];
    };
    block->matrices.resize(sizeof(Room) / sizeof(float));
    Room &room = *(Room *)block->matrices.data();
    float(*a)[TILE_K] = room.a, (*b)[TILE_K] = room.b;
    float(*b_rows)[MAX_N] = room.b_rows, (*d)[MAX_N] = room.d;
    Thread *reader = &block->threads[(&group - block->warpgroups) * 128];
    if (op->a_in_registers)
        read_registers(op, a);
    else
        read_operand(op->a, op->half, op->a_mn_major, TILE_M, a, op->site, reader);
    read_operand(op->b, op->half, op->b_mn_major, op->n, b, op->site, reader);
    for (int n = 0; n < op->n; n++)
        for (int k = 0; k < TILE_K; k++)
            b_rows[k][n] = b[n][k];
    exchange(group, op, d, true);
    for (int row = 0; row < TILE_M; row++) {
        if (!op->accumulate)
            memset(d[row], 0, sizeof room.d[row]);
        for (int k = 0; k < TILE_K; k++)
            for (int n = 0; n < op->n; n++)
                d[row][n] += a[row][k] * b_rows[k][n];
    }
    exchange(group, op, d, false);
    for (int i = 0; i < 128; i++)
        give_back(group.accumulators[i], op->d[i / WARP][i % WARP]);
    op->done = true;
    simt_stats.wgmma++;
}

struct WgmmaArgs {
    int half;
    float *d;
    int n;
    u64 a, b;
    const u32 *a_registers;
    int accumulate, a_mn_major, b_mn_major;
};

// The operation number `number` of a warpgroup; the first of its warps makes it.
static WgmmaOp *operation(Warpgroup &group, size_t number, const WgmmaArgs *args, int site)
{
    if (number - group.base < group.ops.size()) {
        WgmmaOp *op = group.ops[number - group.base];
        if (op->a != args->a || op->b != args->b || op->n != args->n ||
            op->half != args->half || op->site != site)
            report("wgmma: the warps of a warpgroup differ, line %d and line %d", site, op->site);
        return op;
    }
    WgmmaOp *op = new WgmmaOp();
    op->half = args->half;
    op->n = args->n;
    op->a = args->a;
    op->b = args->b;
    op->accumulate = args->accumulate;
    op->a_mn_major = args->a_mn_major;
    op->b_mn_major = args->b_mn_major;
    op->site = site;
    op->a_in_registers = args->a_registers != nullptr;
    group.ops.push_back(op);
    return op;
}

static void issue_warp(WarpOp &warp_op, unsigned warp)
{
    Warpgroup &group = block->warpgroups[warp / 4];
    block->used_matrices = true;
    unsigned w = warp % 4;
    const WgmmaArgs *first = (WgmmaArgs *)warp_op.arg[0];
    if (warp_op.mask != ALL_LANES) {
        report("wgmma with a partial warp, line %d", warp_op.site);
        return;
    }
    if (!group.fenced[w])
        report("wgmma: registers are not fenced, line %d", warp_op.site);
    WgmmaOp *op = operation(group, group.issued[w]++, first, warp_op.site);
    for (int lane = 0; lane < WARP; lane++) {
        const WgmmaArgs *args = (WgmmaArgs *)warp_op.arg[lane];
        if (args->a != first->a || args->b != first->b || args->accumulate != first->accumulate)
            report("wgmma: descriptors differ inside a warp, line %d", warp_op.site);
        op->d[w][lane] = args->d;
        if (args->a_registers)
            memcpy(op->a_registers[w][lane], args->a_registers, 16);
        if (simt_config.async != SIMT_EAGER)
            set_aside(group.accumulators[w * WARP + (unsigned)lane], args->d, args->n);
    }
    op->warps |= 1 << w;
    block->progress++;
    if (op->warps == 15 && simt_config.async == SIMT_EAGER)
        execute(group, op);
    if (op->warps == 15)
        wake_spinning();
}

void simt_wgmma(int half, float *d, int n, uint64_t a, uint64_t b, const uint32_t *a_registers,
                int accumulate, int a_mn_major, int b_mn_major, int site)
{
    WgmmaArgs args = {half, d, n, a, b, a_registers, accumulate, a_mn_major, b_mn_major};
    warp_op(ALL_LANES, OP_WGMMA, site, &args, issue_warp);
}

// Registers that threads wrote are wgmma's from here on.
void simt_wgmma_fence(void)
{
    const Thread *self = block->current;
    block->used_matrices = true;
    block->warpgroups[self->warp / 4].fenced[self->warp % 4] = true;
}

void simt_wgmma_commit(void)
{
    const Thread *self = block->current;
    Warpgroup &group = block->warpgroups[self->warp / 4];
    block->used_matrices = true;
    if (self->lane == 0)
        group.commits[self->warp % 4].push_back(group.issued[self->warp % 4]);
}

// Runs operations up to number `end`. False: one of them still lacks a warp.
static bool execute_until(Warpgroup &group, size_t end)
{
    for (size_t i = group.base; i < end; i++) {
        WgmmaOp *op = group.ops[i - group.base];
        if (op->done)
            continue;
        if (op->warps != 15)
            return false;
        execute(group, op);
    }
    return true;
}

static void forget_done(Warpgroup &group)
{
    size_t issued_by_all = *std::min_element(group.issued, group.issued + 4);
    while (!group.ops.empty() && group.base < issued_by_all && group.ops[0]->done) {
        delete group.ops[0];
        group.ops.erase(group.ops.begin());
        group.base++;
    }
}

void simt_wgmma_wait(int groups)
{
    const Thread *self = block->current;
    Warpgroup &group = block->warpgroups[self->warp / 4];
    block->used_matrices = true;
    std::vector<size_t> &commits = group.commits[self->warp % 4];
    simt_warp_sync(ALL_LANES, -1);
    if (self->lane == 0) {
        while ((int)commits.size() > groups) {
            if (execute_until(group, commits[0]))
                commits.erase(commits.begin());
            else
                spin_self();
        }
        if (groups == 0)
            group.fenced[self->warp % 4] = false;
        forget_done(group);
    }
    simt_warp_sync(ALL_LANES, -2);
}
