/* T1, the tile product of bf16 or f16 on sm_90a: TMA brings operands, wgmma multiplies, f32 sums.
 * Included in a kernel's namespace, so it has no guard.
 *
 * A block makes TILE_M x TILE_N sums, 64 of the reduction a step, and is warp-specialised: one
 * thread of the last warpgroup issues TMA into a ring of stages, the other warpgroups multiply a
 * share of the rows each. Full barriers are released by bytes, empty ones by one arrival a warp. A
 * stage has TILE_M rows of A and TILE_N of B, 128 bytes each; an operand that is dense along its
 * rows lies there as panels of 64 x 64 that wgmma reads MN-major, so nothing is transposed.
 * Registers go out through a few rows of shared memory of each warp's own (tile_out.h has what
 * becomes of them).
 *
 * Blocks stay, and take turns: turn t of a launch is a part of a tile of a segment, and a
 * block takes every gridDim.x-th. While a tile's results are stored the stages of the next
 * are on their way.
 *
 * Definitions: TILE_HALF, the PvStorage of both operands, TILE_M (64, 128, 256), TILE_N (64, 128,
 * 256), WG_GROUPS, warpgroups that multiply (1 or 2), WG_STAGES, WG_SEGMENTS, WG_A_MN and WG_B_MN,
 * 1: A, or B, is dense along its rows. What includes this defines
 *     Launch                   a CxMapLaunch of its arguments, before
 *     int steps_of(launch, segment, tile)
 *     struct Loads             void tile(launch, turn); void step(u32 stage, u32 full, int step)
 *     struct Tile              an `out` of tile_out.h, its first row m0 and column n0;
 *                              static Tile of(launch, segment, tile)
 * With TILE_STATS 2 results have norm tables made of them (wgmma_stats.h), and `out` has
 *     PieceStats stats; void set_stats(launch, segment, in_parts); void begin(int m)
 *     int tiles_of(int from, int end)
 *
 * What should bind on an H200 (a prediction; nothing was measured): with 256 x 128 or 128 x 256
 * sums a step moves 48 KB for 1024 cycles of wgmma, 48 bytes a cycle of L2, so the tensor cores
 * bind; with 128 x 128 it is 64 bytes a cycle, about all that L2 gives; with 64 columns L2 binds.
 * The ring is 4 steps deep, some 2 us. A short reduction (a 1 x 1 convolution of 64 channels is one
 * step) is bound by the store of the tile, which no other warpgroup's product hides.
 */
#include "wgmma_plan.h"
enum {
    GROUP_BLOCKS = TILE_M / 64 / WG_GROUPS, // of 64 rows, of a warpgroup
    PANEL = 64 * 128,                       // bytes: 64 rows of a stage
    STAGE_A = TILE_M * 128,
    STAGE = (TILE_M + TILE_N) * 128,
    CHUNK_N = TILE_N < 128 ? TILE_N : 128, // columns that a warp stores at a time
#ifdef FAULT_BANKS // rows begin in the same bank
    OUT_ROW = CHUNK_N,
#else
    OUT_ROW = CHUNK_N + 8, // floats
#endif
    OUT_WARP = 8 * OUT_ROW,
    OUT_AT = WG_STAGES * STAGE,
    BARRIERS_AT = OUT_AT + WG_GROUPS * 4 * OUT_WARP * 4,
    BLOCK_THREADS = 128 * (WG_GROUPS + 1),
    THREADS = 256, // of the second phase
    GATE_COLUMNS = CHUNK_N / 2,
};
static_assert(WG_GROUPS * GROUP_BLOCKS * 64 == TILE_M, "warpgroups have whole blocks of 64 rows");
static_assert(BARRIERS_AT + 16 * WG_STAGES <= 227 * 1024, "more shared memory than a block has");
#include "tile_out.h"
#if TILE_STATS
#include "norm_factors.h"
#include "wgmma_stats.h"
enum { PIECE = WGMMA_PIECE, PIECE_1 = COLLECT_ROWS }; // rows of a piece, in either phase
#endif

#if TILE_STATS
// Bytes of the workspace before the moments, where phase 1 adds `parts` parts of `tiles` tiles.
CX_FN long long before_moments(const WgmmaPlan &plan, bool in_parts)
{
    return in_parts ? 256 + (long long)plan.tiles * plan.parts * (TILE_M * TILE_N * 4) : 0;
}
// The statistics of a piece in shared memory, of four columns by each of some threads.
template <class Out>
CX_FN void add_piece(Out &out, const float *results, int stride, int m, int n0)
{
    int column = (int)threadIdx.x * 4;
    if (column >= TILE_N)
        return;
    out.column(n0 + column);
    out.begin(m);
    CX_NO_UNROLL
    for (int row = 0; row < COLLECT_ROWS; row++) {
        if (out.is_row(m + row)) {
            float value[4];
            cx_read4(value, results + row * stride + column);
            out.stats.add(value);
        }
    }
    out.stats.leave();
}
#endif

struct Turn {
    u32 segment;
    int tile, part, parts;
    int first, end; // steps
};

CX_FN const WgmmaPlan &plan_of(const Launch &p, u32 segment)
{
    return *(const WgmmaPlan *)p.maps[segment].number;
}

// Steps of a tile, which the including file knows: those of the plan or fewer, none too.
CX_FN int steps_of(const Launch &p, u32 segment, int tile);

// Turn `number`, which is less than the head's first[segments].
CX_FN Turn turn_of(const Launch &p, u32 number)
{
    Turn turn;
    turn.segment = 0;
    while (turn.segment + 1 < p.head.segments && number >= p.head.first[turn.segment + 1])
        turn.segment++;
    const WgmmaPlan &plan = plan_of(p, turn.segment);
    number -= p.head.first[turn.segment];
    turn.tile = (int)(number % plan.tiles);
    turn.part = (int)(number / plan.tiles);
    turn.parts = (int)plan.parts;
    int steps = steps_of(p, turn.segment, turn.tile);
    turn.first = steps * turn.part / turn.parts;
    turn.end = steps * (turn.part + 1) / turn.parts;
    return turn;
}

// A stage of the ring, and the parity of its barriers' phase.
struct Slot {
    int stage, parity;

    __device__ void next()
    {
        stage++;
        if (stage == WG_STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};
CX_FN u32 full_barrier(u32 shared, int stage)
{
    return shared + BARRIERS_AT + (u32)stage * 8;
}
CX_FN u32 empty_barrier(u32 shared, int stage)
{
    return shared + BARRIERS_AT + (u32)(WG_STAGES + stage) * 8;
}

/* ---- what loads ---- */

// Of the one thread that loads. Barriers of an empty ring let the first round through: the phase
// before the first counts as over.
template <class Loads> CX_FN void produce(const Launch &p, u32 shared)
{
    Slot slot = {0, 1};
    u32 turns = p.head.first[p.head.segments];
    CX_NO_UNROLL
    for (u32 number = blockIdx.x; number < turns; number += gridDim.x) {
        Turn turn = turn_of(p, number);
        Loads loads;
        loads.tile(p, turn);
        CX_NO_UNROLL
        for (int step = turn.first; step < turn.end; step++) {
            u32 full = full_barrier(shared, slot.stage);
#ifndef FAULT_WGMMA_EMPTY // without it stages are overwritten while they are multiplied
            cx_mbar_wait(empty_barrier(shared, slot.stage), slot.parity);
#endif
            cx_mbar_expect(full, STAGE);
            loads.step(shared + (u32)slot.stage * STAGE, full, step);
            slot.next();
        }
    }
}

/* ---- what multiplies ---- */

// d += the product of a stage: 64 rows at a, all of B at b.
CX_FN void multiply(float *d, u32 a, u32 b)
{
    CX_UNROLL
    for (int k = 0; k < WGMMA_TILE_K / 16; k++) {
        // 16 of the reduction: rows of a panel, or 32 bytes
#ifdef FAULT_WGMMA_MAJOR // A is read as if it were dense along the reduction
        u64 of_a = cx_operand128(a + (u32)(k * 32), 16, 1024);
#else
        u64 of_a = cx_operand128(a + (u32)(k * (WG_A_MN ? 2048 : 32)), WG_A_MN ? PANEL : 16, 1024);
#endif
        u64 of_b = cx_operand128(b + (u32)(k * (WG_B_MN ? 2048 : 32)), WG_B_MN ? PANEL : 16, 1024);
#if TILE_N == 64
        cx_wgmma64(TILE_HALF, d, of_a, of_b, 1, WG_A_MN, WG_B_MN);
#elif TILE_N == 128
        cx_wgmma128(TILE_HALF, d, of_a, of_b, 1, WG_A_MN, WG_B_MN);
#else
        cx_wgmma256(TILE_HALF, d, of_a, of_b, 1, WG_A_MN, WG_B_MN);
#endif
    }
}

struct GroupSums {
    float at[GROUP_BLOCKS][TILE_N / 2];
};

// Eight rows of a warp, CHUNK_N columns: a piece of its sums. They are put through shared memory
// one by one, by code that is there once: registers have no number at run time, so each piece's are
// named in a branch of their own.
enum { CHUNKS = TILE_N / CHUNK_N, PIECES = GROUP_BLOCKS * CHUNKS * 2 };

CX_FN void spread_piece(const GroupSums &sums, int piece, float *to)
{
    CX_UNROLL
    for (int i = 0; i < PIECES; i++)
        if (piece == i) {
            const float *d = &sums.at[i / (2 * CHUNKS)][i / 2 % CHUNKS * CHUNK_N / 2 + i % 2 * 2];
            CX_UNROLL
            for (int j = 0; j < CHUNK_N / 8; j++)
                *(float2 *)(to + j * 8) = make_float2(d[4 * j], d[4 * j + 1]);
        }
}

// The sums of a warpgroup, whose first row is m and first column n of the result.
template <class Out>
CX_FN void store_sums(const GroupSums &sums, Out &out, int m, int n, u8 *shared)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float *mine = (float *)(shared + OUT_AT) + warp * OUT_WARP;
    float *to = mine + (lane >> 2) * OUT_ROW + (lane & 3) * 2;
    const int FOURS = (Out::GATED > 0 ? CHUNK_N / 2 : CHUNK_N) / 4; // of results
    int column = lane % FOURS * 4;
    m += (warp & 3) * 16;
    CX_NO_UNROLL
    for (int piece = 0; piece < PIECES; piece++) {
        int first = m + piece / (2 * CHUNKS) * 64 + piece % 2 * 8;
        __syncwarp();
        spread_piece(sums, piece, to);
        __syncwarp();
        out.column(n + piece / 2 % CHUNKS * (FOURS * 4) + column);
#if TILE_STATS
        if constexpr (Out::BY_COLUMN)
            if (piece % 2 == 0)
                out.begin(first);
#endif
        CX_NO_UNROLL
        for (int row = lane / FOURS; row < 8; row += 32 / FOURS) {
            float value[4];
            cx_read4(value, mine + row * OUT_ROW + column);
            if constexpr (Out::GATED > 0) {
                float gate[4];
                cx_read4(gate, mine + row * OUT_ROW + column + Out::GATED);
                out.put(first + row, value, gate);
            } else {
                out.put(first + row, value);
            }
        }
#if TILE_STATS
        if constexpr (Out::BY_COLUMN)
            if (piece % 2 == 1) {
                if (CHUNK_N == 64)
                    out.stats.join_lanes(16);
                if (lane < CHUNK_N / 4)
                    out.stats.leave();
            }
#endif
    }
}

// All steps of a turn.
CX_FN void sum_turn(GroupSums &sums, const Turn &turn, u32 shared, Slot &slot)
{
    int group = threadIdx.x >> 7, before = 0;
    CX_UNROLL
    for (int block = 0; block < GROUP_BLOCKS; block++) {
        CX_UNROLL
        for (int i = 0; i < TILE_N / 2; i++)
            sums.at[block][i] = 0.f;
        cx_wgmma_own<TILE_N / 2>(sums.at[block]);
    }
    CX_NO_UNROLL
    for (int step = turn.first; step < turn.end; step++) {
        u32 a = shared + (u32)slot.stage * STAGE, b = a + STAGE_A;
        cx_mbar_wait(full_barrier(shared, slot.stage), slot.parity);
#ifndef FAULT_WGMMA_FENCE // without it wgmma may read sums before their zeros are there
        cx_wgmma_fence();
#endif
        CX_UNROLL
        for (int block = 0; block < GROUP_BLOCKS; block++)
            multiply(sums.at[block], a + (u32)(group * GROUP_BLOCKS + block) * PANEL, b);
        cx_wgmma_commit();
#ifdef FAULT_WGMMA_EARLY // frees the stage while wgmma still reads it
        if (step + 1 < turn.end && (threadIdx.x & 31) == 0)
            cx_mbar_arrive(empty_barrier(shared, slot.stage));
        cx_wgmma_wait(1);
#else
        cx_wgmma_wait(1); // the step before is done: its stage is free
        if (step > turn.first && (threadIdx.x & 31) == 0)
            cx_mbar_arrive(empty_barrier(shared, before));
#endif
        before = slot.stage;
        slot.next();
    }
    cx_wgmma_wait(0);
    CX_UNROLL
    for (int block = 0; block < GROUP_BLOCKS; block++)
        cx_wgmma_own<TILE_N / 2>(sums.at[block]);
    if (turn.first < turn.end && (threadIdx.x & 31) == 0)
        cx_mbar_arrive(empty_barrier(shared, before));
}

/* ---- a block ---- */

// Starts barriers; all threads.
CX_FN void start_ring(const Launch &p, u32 shared)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < WG_STAGES; i++) {
            cx_mbar_init(full_barrier(shared, i), 1);
            cx_mbar_init(empty_barrier(shared, i), 4 * WG_GROUPS);
        }
        cx_fence_mbar_init();
        for (u32 i = 0; i < p.head.segments; i++) {
            cx_tma_prefetch(&p.maps[i].map[0]);
            cx_tma_prefetch(&p.maps[i].map[1]);
        }
    }
    __syncthreads();
}

template <class Loads, class Tile> CX_FN void run_turns(const Launch &p, u8 *shared)
{
    u32 ring = cx_shared_address(shared);
    int group = threadIdx.x >> 7;
    start_ring(p, ring);
    if (group == WG_GROUPS) {
#if WG_GROUPS == 2
        cx_registers_fewer(40);
#endif
        if ((threadIdx.x & 127) == 0)
            produce<Loads>(p, ring);
        return;
    }
#if WG_GROUPS == 2
    cx_registers_more(232);
#endif
    Slot slot = {0, 0};
    u32 turns = p.head.first[p.head.segments];
    CX_NO_UNROLL
    for (u32 number = blockIdx.x; number < turns; number += gridDim.x) {
        Turn turn = turn_of(p, number);
        GroupSums sums;
        sum_turn(sums, turn, ring, slot);
        int row = group * GROUP_BLOCKS * 64;
        if (turn.parts > 1 || p.args[turn.segment].sum != 0) {
            Keep keep = Keep::of(p.head.work[turn.segment], turn.parts, turn.tile, turn.part);
            store_sums(sums, keep, row, 0, shared);
        } else {
            Tile tile = Tile::of(p, turn.segment, turn.tile);
#if TILE_STATS
            tile.out.set_stats(p, turn.segment, false);
#endif
            store_sums(sums, tile.out, tile.m0 + row, tile.n0, shared);
#if TILE_STATS
            // flags lie where each warp had its rows
            u32 *flags = (u32 *)(shared + OUT_AT) + group * 4 * OUT_WARP;
            tile.out.stats.template finish<true>(tile.out, WG_GROUPS, flags, OUT_WARP);
#endif
        }
    }
}

// The second phase: a block adds the parts of a piece of a tile, in their order.
template <class Tile> CX_FN void add_parts(const Launch &p, u8 *shared)
{
    u32 block, segment = cx_segment(p.head, &block);
    int number = (int)block / TILE_BLOCKS;
    Tile tile = Tile::of(p, segment, number);
    int64_t more = 0;
#if TILE_STATS
    tile.out.set_stats(p, segment, true);
#else
    more = p.args[segment].sum;
#endif
    tile_collect(p.head, segment, more, number, (int)block % TILE_BLOCKS, tile.out, tile.m0,
                 tile.n0, (float *)shared);
#if TILE_STATS
    tile.out.stats.template finish<false>(tile.out, TILE_BLOCKS, (u32 *)shared, 32);
#endif
}
