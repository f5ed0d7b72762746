/* What threads do together: barriers, and the collectives of a warp up to mma.sync.
 *
 * A lane that comes to a warp collective leaves a pointer to its operands and waits; the last one
 * of the mask carries out the operation for all. Lanes of a mask that meet in different places are
 * divergent: an error, where hardware would compute nonsense or hang. A shuffle is no memory
 * synchronisation: only barriers and __syncwarp order accesses.
 */
#include <string.h>
#include <algorithm>
#include "cuda_words.h"
#include "internal.h"

/* ---- barriers ---- */

static void complete(Barrier &barrier, int id, bool whole_block)
{
    if (barrier.mixed)
        report("bar.sync %d reached from different lines", id);
    if (simt_config.race && whole_block) {
        block->epoch++;
    } else if (simt_config.race) {
        Clock meeting;
        for (u32 thread : barrier.arrivals)
            clock_release(meeting, &block->threads[thread]);
        for (u32 thread : barrier.arrivals)
            clock_acquire(meeting, &block->threads[thread]);
    }
    for (unsigned i = 0; i < block->warp_count; i++) {
        u32 met = barrier.waiting[i];
        if (i == block->warp)
            met |= 1u << block->current->lane;
        if (simt_config.banks && (met & block->warps[i].live) == block->warps[i].live)
            count_banks_of(i);
        block->warps[i].ready |= barrier.waiting[i];
        barrier.waiting[i] = 0;
    }
    barrier.arrived = barrier.site = 0;
    barrier.mixed = false;
    barrier.arrivals.clear();
    block->open_barriers--;
    block->progress++;
    simt_stats.barriers++;
}

static void arrive(int id, int count, int site, bool wait)
{
    Barrier &barrier = block->barriers[id];
    Thread *self = block->current;
    if (barrier.arrived == 0) {
        block->open_barriers++;
        barrier.site = site;
        barrier.expected = count;
    }
    if (barrier.site != site && count == 0)
        barrier.mixed = true;
    if (barrier.expected != count)
        report("bar %d thread counts differ (%d, %d), lines %d, %d", id, barrier.expected, count,
               barrier.site, site);
    barrier.arrived++;
    if (simt_config.race)
        barrier.arrivals.push_back(self->linear);
    int live = (int)block->live;
    if (barrier.arrived == (count == 0 ? live : count)) {
        complete(barrier, id, count == 0 || count == live);
    } else if (wait) {
        barrier.waiting[self->warp] |= 1u << self->lane;
        block_self();
    }
}

void simt_barrier(int id, int count, int site)
{
    arrive(id, count, site, true);
}

void simt_barrier_arrive(int id, int count, int site)
{
    arrive(id, count, site, false);
}

void barriers_after_exit(void)
{
    for (int id = 0; id < BARRIERS && block->open_barriers > 0; id++) {
        Barrier &barrier = block->barriers[id];
        if (barrier.arrived && barrier.expected == 0 && barrier.arrived == (int)block->live)
            complete(barrier, id, true);
    }
}

/* ---- warp collectives ---- */

static void give_up(void)
{
    block->failed = true;
    leave_for_main();
}

// The open operation of these lanes, or a fresh one.
static WarpOp *find_op(Warp &warp, u32 mask, int kind, int site)
{
    for (WarpOp &op : warp.ops)
        if (op.mask == mask && op.arrived)
            return &op;
    for (WarpOp &op : warp.ops)
        if (!op.mask) {
            op.mask = mask;
            op.arrived = 0;
            op.kind = kind;
            op.site = site;
            return &op;
        }
    report("too many open warp operations, line %d", site);
    give_up();
    return nullptr;
}

void warp_op(u32 mask, int kind, int site, void *arg, WarpOpBody body)
{
    Thread *self = block->current;
    Warp &warp = block->warps[self->warp];
    u32 bit = 1u << self->lane;
    unsigned lanes = block->thread_count - self->warp * WARP;
    mask &= lanes >= WARP ? ALL_LANES : (1u << lanes) - 1;
    if (!(mask & bit))
        report("line %d: calling lane not in mask %08x", site, mask);
    WarpOp *op = find_op(warp, mask, kind, site);
    if (op->site != site || op->kind != kind) {
        report("DIVERGENT warp collective: line %d and line %d (mask %08x)", site, op->site, mask);
        give_up();
    }
    if (mask & ~warp.live) {
        report("line %d: mask %08x names exited lanes (live %08x)", site, mask, warp.live);
        give_up();
    }
    op->arrived |= bit;
    op->arg[self->lane] = arg;
    if (op->arrived != mask) {
        block_self();
        return;
    }
    body(*op, self->warp);
    if (simt_config.banks && (mask & warp.live) == warp.live)
        count_banks_of(self->warp);
    op->mask = op->arrived = 0;
    warp.ready |= mask;
    simt_stats.warp_ops++;
}

template <class Body> static void for_lanes(u32 mask, Body body)
{
    for (; mask; mask &= mask - 1)
        body(__builtin_ctz(mask));
}

static void sync_lanes(WarpOp &op, unsigned warp)
{
    if (!simt_config.race)
        return;
    Clock meeting;
    Thread *threads = &block->threads[warp * WARP];
    for_lanes(op.mask, [&](int lane) { clock_release(meeting, &threads[lane]); });
    for_lanes(op.mask, [&](int lane) { clock_acquire(meeting, &threads[lane]); });
}

void simt_warp_sync(u32 mask, int site)
{
    warp_op(mask, OP_SYNC, site, nullptr, sync_lanes);
}

struct ShuffleArgs {
    int kind;
    u32 value;
    int arg, width;
    u32 out;
};

static void shuffle_lanes(WarpOp &op, unsigned)
{
    for_lanes(op.mask, [&](int lane) {
        ShuffleArgs *args = (ShuffleArgs *)op.arg[lane];
        int width = args->width, base = lane / width * width, own = lane % width, source = own;
        if (args->kind == SIMT_SHFL_INDEX)
            source = args->arg % width;
        else if (args->kind == SIMT_SHFL_XOR)
            source = own ^ args->arg;
        else
            source = args->kind == SIMT_SHFL_DOWN ? own + args->arg : own - args->arg;
        if (source < 0 || source >= width)
            source = own;
        source += base;
        if (op.mask >> source & 1) {
            args->out = ((ShuffleArgs *)op.arg[source])->value;
        } else {
            report("line %d: shuffle from lane %d outside mask %08x", op.site, source, op.mask);
            args->out = 0xffffffffu;
        }
    });
}

u32 simt_shuffle(u32 mask, int kind, u32 value, int arg, int width, int site)
{
    ShuffleArgs args = {kind, value, arg, width, 0};
    warp_op(mask, OP_SHUFFLE, site, &args, shuffle_lanes);
    return args.out;
}

struct VoteArgs {
    int kind, predicate;
    u32 out;
};

static void vote_lanes(WarpOp &op, unsigned)
{
    u32 ballot = 0;
    for_lanes(op.mask, [&](int lane) {
        if (((VoteArgs *)op.arg[lane])->predicate)
            ballot |= 1u << lane;
    });
    for_lanes(op.mask, [&](int lane) {
        VoteArgs *args = (VoteArgs *)op.arg[lane];
        args->out = args->kind == SIMT_BALLOT ? ballot : ballot == op.mask;
    });
}

u32 simt_vote(u32 mask, int kind, int predicate, int site)
{
    VoteArgs args = {kind, predicate, 0};
    warp_op(mask, OP_VOTE, site, &args, vote_lanes);
    return args.out;
}

/* ---- shared memory by address; matrices of 8 x 8 ---- */

u32 simt_shared_address(const void *pointer)
{
    size_t offset = (size_t)((const u8 *)pointer - block->shared);
    if (offset > SHARED_BYTES) {
        report("the shared address of a pointer that is not to dynamic shared memory, %p", pointer);
        return 0;
    }
    return (u32)offset + SHARED_BASE;
}

void *shared_pointer(u32 address, u32 bytes, int site)
{
    static u8 scratch[65536];
    if (address >= SHARED_BASE && address - SHARED_BASE + bytes <= block->shared_bytes)
        return block->shared + (address - SHARED_BASE);
    simt_stats.races++;
    report("OUT OF BOUNDS shared access at %d (+%u) of %zu, line %d", (int)(address - SHARED_BASE),
           bytes, block->shared_bytes, site);
    return scratch;
}

struct MatrixArgs {
    u32 *out;
    const u32 *in;
    int count, transposed;
    u32 address;
    const void *pc;
};

// Eight rows of 16 bytes are served together; rows that share a group of banks take turns.
static void count_rows(const u32 *rows, int matrices, bool write, const void *pc)
{
    u32 wavefronts = 0;
    for (int i = 0; i < matrices; i++)
        wavefronts += chunk_wavefronts(rows + 8 * i, 8);
    note_chunks(pc, write, (u32)matrices, wavefronts);
}

static u8 *matrix_row(u32 address, bool write, Thread *thread, int site)
{
    if (address & 15)
        report("row address of a matrix not 16-byte aligned, line %d", site);
    u64 errors = simt_stats.errors;
    u8 *row = (u8 *)shared_pointer(address, 16, site);
    place = {nullptr, site};
    if (simt_stats.errors == errors)
        check_shared_by(thread, address - SHARED_BASE, 16, write);
    return row;
}

// ldmatrix and stmatrix: lane l holds elements [l / 4][l % 4 * 2 + {0, 1}] of every matrix.
static void move_matrices(WarpOp &op, unsigned warp)
{
    bool load = op.kind == OP_LDMATRIX;
    MatrixArgs *first = (MatrixArgs *)op.arg[0];
    u32 rows[WARP];
    u16 matrix[8][8];
    if (op.mask != ALL_LANES) {
        report("ldmatrix or stmatrix with a partial warp, line %d", op.site);
        return;
    }
    for (int lane = 0; lane < WARP; lane++)
        rows[lane] = ((MatrixArgs *)op.arg[lane])->address;
    count_rows(rows, first->count, !load, first->pc);
    for (int i = 0; i < first->count; i++) {
        for (int r = 0; load && r < 8; r++)
            memcpy(matrix[r],
                   matrix_row(rows[i * 8 + r], false,
                              &block->threads[warp * WARP + (unsigned)(i * 8 + r)], op.site),
                   16);
        for (int lane = 0; lane < WARP; lane++) {
            MatrixArgs *args = (MatrixArgs *)op.arg[lane];
            int row = lane / 4, column = lane % 4 * 2;
            u16 *low = first->transposed ? &matrix[column][row] : &matrix[row][column];
            u16 *high = first->transposed ? &matrix[column + 1][row] : &matrix[row][column + 1];
            if (load) {
                args->out[i] = (u32)*low | (u32)*high << 16;
            } else {
                *low = (u16)args->in[i];
                *high = (u16)(args->in[i] >> 16);
            }
        }
        for (int r = 0; !load && r < 8; r++)
            memcpy(matrix_row(rows[i * 8 + r], true,
                              &block->threads[warp * WARP + (unsigned)(i * 8 + r)], op.site),
                   matrix[r], 16);
    }
}

void simt_ldmatrix(u32 *out, int count, int transposed, u32 address, int site)
{
    MatrixArgs args = {out,        nullptr, count,
                       transposed, address, __builtin_return_address(0)};
    warp_op(ALL_LANES, OP_LDMATRIX, site, &args, move_matrices);
}

void simt_stmatrix(const u32 *in, int count, int transposed, u32 address, int site)
{
    MatrixArgs args = {nullptr,    in,      count,
                       transposed, address, __builtin_return_address(0)};
    warp_op(ALL_LANES, OP_STMATRIX, site, &args, move_matrices);
}

/* ---- mma.sync.m16n8k16, bf16 or f16 operands, f32 sums ---- */

struct MmaArgs {
    float *d;
    const u32 *a, *b;
    bool f16;
};
typedef float Row __attribute__((vector_size(32))); // 8 columns of B or D

static void gather_mma(WarpOp &op, float (*a)[16], float (*b)[8], float (*d)[8])
{
    for (int lane = 0; lane < WARP; lane++) {
        MmaArgs *args = (MmaArgs *)op.arg[lane];
        int row = lane / 4, column = lane % 4 * 2;
        float (*value)(u32) = args->f16 ? f16_to_float : bf16_to_float;
        for (int half = 0; half < 2; half++) {
            int k = column + 8 * half;
            a[row][k] = value(args->a[2 * half] & 0xffff);
            a[row][k + 1] = value(args->a[2 * half] >> 16);
            a[row + 8][k] = value(args->a[2 * half + 1] & 0xffff);
            a[row + 8][k + 1] = value(args->a[2 * half + 1] >> 16);
            b[k][row] = value(args->b[half] & 0xffff);
            b[k + 1][row] = value(args->b[half] >> 16);
        }
        memcpy(&d[row][column], args->d, 8);
        memcpy(&d[row + 8][column], args->d + 2, 8);
    }
}

static void multiply(WarpOp &op, unsigned)
{
    float a[16][16];
    alignas(32) float b[16][8], d[16][8];
    if (op.mask != ALL_LANES) {
        report("mma.sync with a partial warp, line %d", op.site);
        return;
    }
    gather_mma(op, a, b, d);
    Row columns[16];
    memcpy(columns, b, sizeof b);
    for (int i = 0; i < 16; i += 4) { // four rows at once: independent sums
        Row sum[4];
        memcpy(sum, d[i], sizeof sum);
        for (int k = 0; k < 16; k++)
            for (int r = 0; r < 4; r++)
                sum[r] += a[i + r][k] * columns[k];
        memcpy(d[i], sum, sizeof sum);
    }
    for (int lane = 0; lane < WARP; lane++) {
        MmaArgs *args = (MmaArgs *)op.arg[lane];
        memcpy(args->d, &d[lane / 4][lane % 4 * 2], 8);
        memcpy(args->d + 2, &d[lane / 4 + 8][lane % 4 * 2], 8);
    }
    simt_stats.mma++;
}

void simt_mma_bf16(float *d, const u32 *a, const u32 *b, int site)
{
    MmaArgs args = {d, a, b, false};
    warp_op(ALL_LANES, OP_MMA, site, &args, multiply);
}

void simt_mma_f16(float *d, const u32 *a, const u32 *b, int site)
{
    MmaArgs args = {d, a, b, true};
    warp_op(ALL_LANES, OP_MMA, site, &args, multiply);
}

/* ---- atomics: blocks may run on several host threads ---- */

float simt_atomic_add_f32(float *address, float value)
{
    u32 *word = (u32 *)address, seen = __atomic_load_n(word, __ATOMIC_RELAXED), wanted;
    float old;
    do {
        memcpy(&old, &seen, 4);
        float sum = old + value;
        memcpy(&wanted, &sum, 4);
    } while (!__atomic_compare_exchange_n(word, &seen, wanted, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return old;
}

u32 simt_atomic_add_u32(u32 *address, u32 value)
{
    note_atomic(address);
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

u32 simt_atomic_inc(u32 *address, u32 last)
{
    note_atomic(address);
    u32 seen = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(address, &seen, seen >= last ? 0 : seen + 1, true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    return seen;
}

void simt_fence_device(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    note_fence();
}
