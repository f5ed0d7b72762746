// Packing: offsets for intervals of bytes and time.
//
// Two intervals that live at once must not overlap; the arena shall be small. The best packing is
// NP-hard (dynamic storage allocation), and the largest live set is a lower bound, which the
// buffers of a network nearly always let one reach. Several orders are tried (by size, by size and
// time, by time alone, by length of life, by end); each interval goes into the tightest gap that
// fits among those alive with it, and the smallest arena wins. Where that is still above the bound,
// what sticks out is to blame: those intervals move to the front of the best order, and it is
// packed anew, a few rounds ("squeaky wheel" optimisation: Joslin and Clements, 1999). The work is
// bounded: a program of n buffers whose first order meets the bound costs one sort and n walks over
// the buffers alive with each.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

// Rounds end when the arena is within 1 / NEAR of the bound, or after so many visits of a buffer.
enum { NEAR = 400, MOST_ROUNDS = 60, MOST_VISITS = 60000000 };

static int64_t max64(int64_t x, int64_t y)
{
    return x > y ? x : y;
}

int64_t live_bound(Arena *arena, const Interval *items, uint32_t count)
{
    int32_t end = 0;
    for (uint32_t i = 0; i < count; i++)
        end = items[i].last > end ? items[i].last : end;
    int64_t *change = arena_alloc(arena, ((size_t)end + 2) * sizeof *change);
    for (uint32_t i = 0; i < count; i++) {
        change[items[i].first] += items[i].size;
        change[items[i].last + 1] -= items[i].size;
    }
    int64_t live = 0, most = 0;
    for (int32_t t = 0; t <= end; t++) {
        live += change[t];
        most = max64(most, live);
    }
    return most;
}

typedef enum { BY_SIZE, BY_AREA, BY_START, BY_LIFE, BY_END, ORDERS } Order;

typedef struct {
    const Interval *items;
    Order by;
} Sorting;

static int compare_items(const void *left, const void *right, void *how)
{
    const Sorting *sorting = how;
    uint32_t i = *(const uint32_t *)left, k = *(const uint32_t *)right;
    const Interval *x = &sorting->items[i], *y = &sorting->items[k];
    int64_t x_life = x->last - x->first + 1, y_life = y->last - y->first + 1;
    double by = 0;
    switch (sorting->by) {
    case BY_SIZE:
        by = (double)(y->size - x->size);
        break;
    case BY_AREA:
        by = (double)y->size * (double)y_life - (double)x->size * (double)x_life;
        break;
    case BY_START:
        by = (double)(x->first - y->first);
        break;
    case BY_LIFE:
        by = (double)(y_life - x_life);
        break;
    case BY_END:
        by = (double)(y->last - x->last);
        break;
    case ORDERS:
        break;
    }
    if (by == 0)
        by = (double)(y->size - x->size);
    if (by == 0)
        by = (double)i - (double)k;
    return by < 0 ? -1 : by > 0;
}

// An item that has its place; what is asked of all of them for each further one, side by side.
typedef struct {
    int64_t offset, end;
    int32_t first, last;
} Placed;

// Places the items in that order, as long as they take less than `most`; `placed` is scratch: the
// items so far, by offset.
static int64_t pack_in_order(Interval *items, const uint32_t *order, Placed *placed,
                             uint32_t count, int64_t most)
{
    int64_t total = 0;
    for (uint32_t n = 0; n < count && total < most; n++) {
        Interval *item = &items[order[n]];
        const int64_t size = item->size;
        const int32_t first = item->first, last = item->last;
        int64_t end = 0, best = -1, best_gap = INT64_MAX;
        for (const Placed *other = placed; other < placed + n; other++) {
            if (other->last < first || other->first > last)
                continue;
            int64_t gap = other->offset - end;
            if (gap >= size && gap < best_gap) {
                best = end;
                best_gap = gap;
            }
            end = max64(end, other->end);
        }
        item->offset = best >= 0 ? best : end;
        total = max64(total, item->offset + size);
        uint32_t at = n;
        while (at > 0 && placed[at - 1].offset > item->offset)
            at--;
        memmove(&placed[at + 1], &placed[at], (n - at) * sizeof *placed);
        placed[at] = (Placed){item->offset, item->offset + size, first, last};
    }
    return total;
}

// One packing problem, and the best answer so far.
typedef struct {
    Interval *items;
    uint32_t count;
    uint32_t *order, *next_order, *best_order;
    Placed *placed;
    int64_t *best_offset;
    int64_t bound, best;
} Packing;

// Packs in the present order, as long as it takes less than `most`; keeps the result if it is the
// best.
static void try_order(Packing *p, int64_t most)
{
    int64_t total = pack_in_order(p->items, p->order, p->placed, p->count, most);
    if (total >= p->best)
        return;
    p->best = total;
    memcpy(p->best_order, p->order, p->count * sizeof *p->order);
    for (uint32_t i = 0; i < p->count; i++)
        p->best_offset[i] = p->items[i].offset;
}

// Back to the best order, and where it puts the items.
static void take_best(Packing *p)
{
    memcpy(p->order, p->best_order, p->count * sizeof *p->order);
    for (uint32_t i = 0; i < p->count; i++)
        p->items[i].offset = p->best_offset[i];
}

// What ends above the bound comes first, in the order it had.
static void promote(Packing *p)
{
    uint32_t front = 0, back = 0;
    for (uint32_t n = 0; n < p->count; n++) {
        const Interval *item = &p->items[p->order[n]];
        if (item->offset + item->size > p->bound)
            p->next_order[front++] = p->order[n];
    }
    for (uint32_t n = 0; n < p->count; n++) {
        const Interval *item = &p->items[p->order[n]];
        if (item->offset + item->size <= p->bound)
            p->next_order[front + back++] = p->order[n];
    }
    memcpy(p->order, p->next_order, p->count * sizeof *p->order);
}

static bool near_bound(const Packing *p)
{
    return p->best - p->bound <= p->bound / NEAR;
}

int64_t pack_intervals(Arena *arena, Interval *items, uint32_t count)
{
    if (count == 0)
        return 0;
    Packing p = {.items = items, .count = count, .best = INT64_MAX};
    p.order = arena_alloc(arena, count * sizeof *p.order);
    p.next_order = arena_alloc(arena, count * sizeof *p.next_order);
    p.placed = arena_alloc(arena, count * sizeof *p.placed);
    p.best_order = arena_alloc(arena, count * sizeof *p.best_order);
    p.best_offset = arena_alloc(arena, count * sizeof *p.best_offset);
    p.bound = live_bound(arena, items, count);
    for (Order by = BY_SIZE; by < ORDERS && p.best > p.bound; by++) {
        for (uint32_t i = 0; i < count; i++)
            p.order[i] = i;
        Sorting sorting = {items, by};
        qsort_r(p.order, count, sizeof *p.order, compare_items, &sorting);
        try_order(&p, p.best);
    }
    int64_t visits = (int64_t)count * count / 2 + 1;
    take_best(&p);
    for (int64_t round = 1; round < MOST_ROUNDS && round * visits < MOST_VISITS && !near_bound(&p);
         round++) {
        promote(&p);
        try_order(&p, INT64_MAX);
    }
    take_best(&p);
    return p.best;
}
