/* Bank conflicts of shared memory: what each instruction of a warp costs beyond the least it could.
 *
 * Shared memory has 32 banks of 4 bytes. A warp's accesses of up to 4 bytes are served together, of
 * 8 bytes by half warps, of 16 bytes by quarters; lanes that want one word are one, and a bank that
 * is asked for several words takes a wavefront for each. What a group of lanes needs beyond one
 * wavefront is a conflict.
 *
 * The hooks of race mode show accesses lane by lane, so the lanes of an instruction have to be
 * found again: they are those that come by the same path of calls to the same place the same number
 * of times since their warp was last together (a barrier or a collective of all its live lanes).
 * This is what hardware does where lanes go the same way through loops, or leave them early. Where
 * a lane goes past an access in one round and not in another, its later ones are counted with
 * those of other rounds. cp.async and ldmatrix come by the same way; what TMA and wgmma do to banks
 * is not modelled: their swizzle is made for them.
 *
 * Kernels are to be compiled with -fno-tree-sra, or vectors arrive in pieces. Structures that are
 * no vectors are taken word by word.
 */
#include <string.h>
#include <algorithm>
#include "internal.h"

enum { BANKS = 32, DEEPEST = 64 };

struct Access { // of the lanes of a warp, at the same time
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
};
struct LanePath { // the calls that a lane is in
    int depth;
    u64 hash[DEEPEST];
};
struct BankWarp {
    std::unordered_map<u64, AccessSite> sites;
    std::vector<AccessSite *> touched;
};
static BankWarp bank_warps[MAX_WARPS];
static LanePath paths[MAX_THREADS];
static std::vector<SimtBankSite> totals; // since simt_reset

void start_counting_banks(void)
{
    for (unsigned i = 0; i < block->warp_count; i++) {
        bank_warps[i].sites.clear();
        bank_warps[i].touched.clear();
    }
    for (unsigned i = 0; i < block->thread_count; i++)
        paths[i].depth = 0;
}

void enter_call(const void *pc)
{
    LanePath &path = paths[block->current->linear];
    u64 before = path.depth ? path.hash[std::min<int>(path.depth, DEEPEST) - 1] : 0;
    if (path.depth < DEEPEST)
        path.hash[path.depth] = (before ^ (u64)(uintptr_t)pc) * 0x9E3779B97F4A7C15ull;
    path.depth++;
}

void leave_call(void)
{
    LanePath &path = paths[block->current->linear];
    path.depth -= path.depth > 0;
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
    memset(site.count, 0, sizeof site.count);
}

void count_banks_of(unsigned warp)
{
    for (AccessSite *site : bank_warps[warp].touched)
        count_site(*site);
    bank_warps[warp].touched.clear();
}

// `piece`: of an access that is made in several.
static void note_piece(Thread *thread, u32 offset, u32 bytes, bool write, const void *pc, u32 piece)
{
    const LanePath &path = paths[thread->linear];
    u64 way = path.depth ? path.hash[std::min<int>(path.depth, DEEPEST) - 1] : 0;
    u64 key = (way ^ (u64)(uintptr_t)pc) * 0xD6E8FEB86659FD93ull + piece * 64 + bytes * 2 + write;
    BankWarp &warp = bank_warps[thread->warp];
    AccessSite &site = warp.sites[key];
    if (site.used == 0) {
        site.pc = pc;
        site.bytes = bytes;
        site.write = write;
        warp.touched.push_back(&site);
    }
    u32 number = site.count[thread->lane]++;
    if (number == site.used) {
        if (site.accesses.size() == number)
            site.accesses.push_back(Access());
        site.accesses[site.used++].lanes = 0;
    }
    Access &access = site.accesses[number];
    access.lanes |= 1u << thread->lane;
    access.offset[thread->lane] = offset;
}

void note_shared_access(Thread *thread, u32 offset, u32 bytes, u32 width, bool write,
                        const void *pc)
{
    u32 piece = 0;
    for (u32 at = 0; at < bytes; at += width, piece++) {
        while (width > bytes - at)
            width /= 2;
        note_piece(thread, offset + at, width, write, pc, piece);
    }
}

void note_matrix_access(const void *pc, bool write, u32 wavefronts)
{
    SimtBankSite &total = total_of(pc, 16, write);
    total.instructions++;
    total.wavefronts += wavefronts;
    total.conflicts += wavefronts - 1;
    simt_stats.wavefronts += wavefronts;
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
