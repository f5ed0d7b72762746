/* wgmma: D[64, n] += A[64, 16] B[n, 16]', a matrix product of a warpgroup, done when it is waited
 * for.
 *
 * Operands lie in shared memory behind descriptors, K-major or MN-major, in any of the swizzle
 * modes, or A in registers. They are read by core matrices: eight chunks of 16 bytes, which are
 * rows of 8 elements of k, or in an MN-major operand eight k of 8 rows. The four warps issue the
 * same operation one by one; when all have, it may run. With late or random completion the
 * accumulator registers are poisoned until the wait and their value is kept aside, so that a kernel
 * that reads them early sees NaN, and operands are read at the wait, so that a stage that was freed
 * too early is seen. Operands are read through the asynchronous proxy. A warp must have fenced its
 * registers since it last waited for all.
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

struct Layout { // of an operand: what its descriptor tells, and the majorness
    u32 start, leading, stride; // bytes
    int swizzle;                // as of swizzled()
    u32 span;                   // bytes of a row of a swizzle atom, of which there are eight
    bool mn_major;
};

static Layout layout_of(u64 descriptor, int mn_major)
{
    static const int mode[4] = {0, 3, 2, 1}; // of bits 62 and 63
    Layout layout;
    layout.start = (u32)(descriptor & 0x3fff) << 4;
    layout.leading = (u32)(descriptor >> 16 & 0x3fff) << 4;
    layout.stride = (u32)(descriptor >> 32 & 0x3fff) << 4;
    layout.swizzle = mode[descriptor >> 62];
    layout.span = 16u << layout.swizzle;
    layout.mn_major = mn_major != 0;
    return layout;
}

// Where chunk `i` of the core matrix of rows 8 octet .. and k 8 half .. lies (PTX ISA, "strides").
// Leading and stride offsets change sides in MN-major operands without swizzle.
static u32 chunk_address(const Layout &layout, u32 octet, u32 half, u32 i)
{
    u32 at = layout.start + i * layout.span;
    if (!layout.mn_major)
        at += octet * layout.stride + half * (layout.swizzle ? 16 : layout.leading);
    else if (layout.swizzle)
        at += octet * 16 / layout.span * layout.leading + octet * 16 % layout.span +
              half * layout.stride;
    else
        at += octet * layout.stride + half * layout.leading;
    return swizzled(at, layout.swizzle);
}

// Reads [rows][16] through a descriptor, and counts a wavefront or more for each core matrix.
static void read_operand(const WgmmaOp *op, u64 descriptor, int mn_major, int rows,
                         float (*out)[TILE_K], Thread *reader)
{
    Layout layout = layout_of(descriptor, mn_major);
    if (descriptor >> 49 & 7)
        report("wgmma: a base offset is not emulated, line %d", op->site);
    HalfToFloat *value = half_to_float(op->half);
    place = {nullptr, op->site};
    u32 wavefronts = 0, chunks[8];
    for (int octet = 0; octet < rows / 8; octet++)
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 8; i++) {
                float chunk[8];
                chunks[i] = chunk_address(layout, (u32)octet, (u32)half, (u32)i);
                read_chunk(chunks[i], value, op->site, reader, chunk);
                for (int j = 0; j < 8; j++)
                    (mn_major ? out[octet * 8 + j][half * 8 + i]
                              : out[octet * 8 + i][half * 8 + j]) = chunk[j];
            }
            wavefronts += chunk_wavefronts(chunks, 8);
        }
    note_chunks(op->pc, false, (u32)rows / 4, wavefronts);
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
        read_operand(op, op->a, op->a_mn_major, TILE_M, a, reader);
    read_operand(op, op->b, op->b_mn_major, op->n, b, reader);
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
    const void *pc;
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
    op->pc = args->pc;
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
    WgmmaArgs args = {half, d, n, a, b, a_registers, accumulate, a_mn_major, b_mn_major,
                      __builtin_return_address(0)};
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
