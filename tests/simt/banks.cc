/* Bank conflicts of shared memory: what each instruction of a warp costs beyond the least it could.
 *
 * Shared memory has 32 banks of 4 bytes. A warp's accesses of up to 4 bytes are served together, of
 * 8 bytes by half warps, of 16 bytes by quarters; lanes that want one word are one, and a bank that
 * is asked for several words takes a wavefront for each. What a group of lanes needs beyond one
 * wavefront is a conflict.
 *
 * The hooks of race mode show accesses lane by lane, so the lanes of an instruction have to be
 * found again: they are those that, since their warp was last together (a barrier or a collective
 * of all its live lanes), come to the same place by the same path of calls in the same rounds of
 * the loops around it. Hardware does the same where lanes that part in a loop meet again before its
 * next round. A run that only learns shows the loops: a basic block that is come to again is a
 * loop's head, and the blocks since its last visit are in the loop. cp.async comes by the same way.
 *
 * What moves chunks of 16 bytes by itself is counted from their addresses, eight chunks a
 * wavefront: the rows of a matrix of ldmatrix or stmatrix; of wgmma's operands the core matrices,
 * 8 x 16 bytes where the descriptor says and the swizzle puts them, A and B read once for the
 * warpgroup; of TMA 128 bytes of the box after 128. README.md tells what of this is an assumption.
 *
 * Kernels are to be compiled with -fsanitize-coverage=trace-pc, or loops are not seen (then
 * accesses count in the order in which a lane makes them), with -fno-tree-sra, or vectors arrive in
 * pieces, and with -fno-reorder-blocks, which keeps one instruction from lying in several places.
 * Structures that are no vectors are taken word by word.
 */
#include <string.h>
#include <algorithm>
#include "internal.h"

enum { BANKS = 32, DEEPEST = 64, SLOTS = 128, LEARNED = 1024, FULL = 255 };

struct Access { // of the lanes of a warp, at the same time
    u64 round;
    u32 lanes;
    u32 offset[WARP];
};
struct AccessSite { // a place and the way there
    const void *pc;
    u32 bytes;
    bool write;
    u32 used; // of `accesses`, since the warp was together
    u32 count[WARP];
    std::vector<Access> accesses;
    std::unordered_map<u64, u32> of_round; // where in them the round's latest is
};
struct Visit { // of a basic block, and how often it was come back to since
    const void *block;
    u32 round;
};
struct Call {
    u64 way; // a hash of the calls up to it, and of their rounds
    bool hashed;
    u64 round;                 // a hash of the rounds of the loops around the last block
    std::vector<Visit> visits; // from the first block to the last, without rounds that are over
    unsigned char held[SLOTS]; // how many of `visits`, by their blocks' slots; FULL: many
};
struct LanePath { // the calls that a lane is in
    int depth;
    Call calls[DEEPEST];
};
struct BankWarp {
    std::unordered_map<u64, AccessSite> sites;
    std::vector<AccessSite *> touched;
};
static BankWarp bank_warps[MAX_WARPS];
static LanePath paths[MAX_THREADS];
static std::unordered_map<const void *, std::vector<const void *>> loops; // heads, by block
static std::vector<SimtBankSite> totals;                                  // since simt_reset

static u64 mix(u64 hash, u64 more)
{
    return (hash ^ more ^ hash >> 29) * 0x9E3779B97F4A7C15ull;
}

static unsigned char &held_of(Call &call, const void *pc)
{
    return call.held[mix(0, (u64)(uintptr_t)pc) >> 32 & (SLOTS - 1)];
}

static void drop_visits(Call &call, size_t from)
{
    for (; call.visits.size() > from; call.visits.pop_back()) {
        unsigned char &held = held_of(call, call.visits.back().block);
        if (held != FULL)
            held--;
    }
}

static void start_call(Call &call, u64 way)
{
    call.way = way;
    call.hashed = false;
    drop_visits(call, 0);
}

void start_counting_banks(void)
{
    for (unsigned i = 0; i < block->warp_count; i++) {
        bank_warps[i].sites.clear();
        bank_warps[i].touched.clear();
    }
    for (unsigned i = 0; i < block->thread_count; i++) {
        paths[i].depth = 1;
        start_call(paths[i].calls[0], 0);
    }
}

static Call &last_call(Thread *thread)
{
    LanePath &path = paths[thread->linear];
    return path.calls[std::min<int>(path.depth, DEEPEST) - 1];
}

static bool is_in(const std::vector<const void *> &heads, const void *head)
{
    return std::find(heads.begin(), heads.end(), head) != heads.end();
}

static u64 round_of(Call &call)
{
    if (call.hashed)
        return call.round;
    call.hashed = true;
    call.round = 0;
    if (call.visits.empty())
        return 0;
    auto around = loops.find(call.visits.back().block);
    for (const Visit &visit : call.visits)
        if (visit.round > 0 && around != loops.end() && is_in(around->second, visit.block))
            call.round = mix(mix(call.round, (u64)(uintptr_t)visit.block), visit.round);
    return call.round;
}

void enter_call(const void *pc)
{
    Call &from = last_call(block->current);
    u64 way = mix(mix(from.way, (u64)(uintptr_t)pc), round_of(from));
    paths[block->current->linear].depth++;
    start_call(last_call(block->current), way);
}

static void learn(const void *in_loop, const void *head)
{
    static struct {
        const void *block, *head;
    } known[LEARNED];
    auto &slot = known[mix((u64)(uintptr_t)in_loop, (u64)(uintptr_t)head) >> 32 & (LEARNED - 1)];
    if (slot.block == in_loop && slot.head == head)
        return;
    slot = {in_loop, head};
    std::vector<const void *> &heads = loops[in_loop];
    if (!is_in(heads, head))
        heads.push_back(head);
}

void enter_basic_block(const void *pc)
{
    Call &call = last_call(block->current);
    std::vector<Visit> &visits = call.visits;
    unsigned char &held = held_of(call, pc);
    call.hashed = false;
    size_t at = held ? visits.size() : 0;
    while (at > 0 && visits[at - 1].block != pc)
        at--;
    if (at == 0) {
        visits.push_back({pc, 0});
        if (held != FULL)
            held++;
        return;
    }
    if (simt_config.banks == SIMT_LEARN_LOOPS)
        for (size_t i = at - 1; i < visits.size(); i++)
            learn(visits[i].block, pc);
    drop_visits(call, at);
    visits.back().round++;
}

void leave_call(void)
{
    LanePath &path = paths[block->current->linear];
    path.depth -= path.depth > 1;
}

// Wavefronts beyond the first of some lanes that are served together.
static u32 extra_wavefronts(const Access &access, u32 lanes, u32 bytes)
{
    u32 words[BANKS][WARP], count[BANKS] = {0}, most = 1;
    for (; lanes; lanes &= lanes - 1) {
        u32 offset = access.offset[__builtin_ctz(lanes)];
        for (u32 word = offset / 4; word <= (offset + bytes - 1) / 4; word++) {
            u32 bank = word % BANKS, *end = words[bank] + count[bank];
            if (std::find(words[bank], end, word) != end)
                continue;
            *end = word;
            most = std::max(most, ++count[bank]);
        }
    }
    return most - 1;
}

static SimtBankSite &total_of(const void *pc, u32 bytes, bool write)
{
    for (SimtBankSite &total : totals)
        if (total.pc == pc && total.bytes == bytes && total.write == write)
            return total;
    totals.push_back({pc, bytes, write, 0, 0, 0});
    return totals.back();
}

static void count_site(AccessSite &site)
{
    SimtBankSite &total = total_of(site.pc, site.bytes, site.write);
    u32 lanes = site.bytes <= 4 ? 32 : site.bytes == 8 ? 16 : 8;
    u32 group = lanes == 32 ? ALL_LANES : (1u << lanes) - 1;
    for (u32 i = 0; i < site.used; i++) {
        Access &access = site.accesses[i];
        total.instructions++;
        for (u32 first = 0; first < WARP; first += lanes) {
            u32 together = access.lanes & group << first;
            if (!together)
                continue;
            u32 extra = extra_wavefronts(access, together, site.bytes);
            total.wavefronts += extra + 1;
            total.conflicts += extra;
            simt_stats.wavefronts += extra + 1;
            simt_stats.bank_conflicts += extra;
        }
    }
    site.used = 0;
    site.of_round.clear();
    memset(site.count, 0, sizeof site.count);
}

void count_banks_of(unsigned warp)
{
    for (AccessSite *site : bank_warps[warp].touched)
        count_site(*site);
    bank_warps[warp].touched.clear();
}

// The access of a lane in a round: that of the other lanes, or a new one.
static Access &access_of(AccessSite &site, unsigned lane, u64 round)
{
    u32 number = site.count[lane]++; // the right one where all lanes make all rounds
    if (number >= site.used || site.accesses[number].round != round) {
        auto known = site.of_round.find(round);
        number = known == site.of_round.end() ? site.used : known->second;
    }
    if (number < site.used && !(site.accesses[number].lanes >> lane & 1))
        return site.accesses[number];
    if (site.accesses.size() == site.used)
        site.accesses.push_back(Access());
    Access &access = site.accesses[site.used];
    access.round = round;
    access.lanes = 0;
    site.of_round[round] = site.used++;
    return access;
}

// `piece`: of an access that is made in several.
static void note_piece(Thread *thread, u32 offset, u32 bytes, bool write, const void *pc, u32 piece)
{
    Call &call = last_call(thread);
    u64 key = mix(mix(call.way, (u64)(uintptr_t)pc), piece * 64 + bytes * 2 + write);
    BankWarp &warp = bank_warps[thread->warp];
    AccessSite &site = warp.sites[key];
    if (site.used == 0) {
        site.pc = pc;
        site.bytes = bytes;
        site.write = write;
        warp.touched.push_back(&site);
    }
    Access &access = access_of(site, thread->lane, round_of(call));
    access.lanes |= 1u << thread->lane;
    access.offset[thread->lane] = offset;
}

void note_shared_access(Thread *thread, u32 offset, u32 bytes, u32 width, bool write,
                        const void *pc)
{
    u32 piece = 0;
    for (u32 at = 0; simt_config.banks == SIMT_COUNT_BANKS && at < bytes; at += width, piece++) {
        while (width > bytes - at)
            width /= 2;
        note_piece(thread, offset + at, width, write, pc, piece);
    }
}

u32 chunk_wavefronts(const u32 *chunks, u32 count)
{
    u32 in_group[BANKS / 4] = {0}, met = 0, most = 0;
    for (u32 i = 0; i < count; i++)
        met |= 1u << chunks[i] / 16 % (BANKS / 4);
    if ((u32)__builtin_popcount(met) == count)
        return 1;
    for (u32 i = 0; i < count; i++)
        if (std::find(chunks, chunks + i, chunks[i]) == chunks + i)
            most = std::max(most, ++in_group[chunks[i] / 16 % (BANKS / 4)]);
    return most;
}

void note_chunks(const void *pc, bool write, u32 groups, u32 wavefronts)
{
    simt_stats.wavefronts += wavefronts;
    simt_stats.bank_conflicts += wavefronts - groups;
    if (!simt_config.banks)
        return;
    SimtBankSite &total = total_of(pc, 16, write);
    total.instructions++;
    total.wavefronts += wavefronts;
    total.conflicts += wavefronts - groups;
}

void forget_banks(void)
{
    totals.clear();
}

const SimtBankSite *simt_bank_sites(size_t *count)
{
    *count = totals.size();
    return totals.data();
}
