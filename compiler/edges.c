// Which launch reads what another one stored: the graph of a plan, for reports.
//
// A launch stores where an argument is marked as a result (PlanArg.result), and where it is the
// first to name a buffer; any other argument in a buffer reads what was stored there before. Found
// from the final list, so that whatever merged or moved launches need not know of it.
#include <stdlib.h>

#include "compiler/plan.h"

typedef struct {
    uint32_t *launch; // that store in one buffer, ascending
    uint32_t count;
    size_t capacity;
} Writers;

static void add_writer(Writers *writers, uint32_t launch)
{
    if (writers->count > 0 && writers->launch[writers->count - 1] == launch)
        return;
    writers->launch =
        grow_array(writers->launch, &writers->capacity, writers->count, sizeof *writers->launch);
    writers->launch[writers->count++] = launch;
}

typedef struct {
    uint32_t *pairs;
    uint32_t count, first; // pairs of the present launch begin at `first`
    size_t capacity;
} Edges;

static void add_edge(Edges *edges, uint32_t from, uint32_t to)
{
    for (uint32_t i = edges->first; i < edges->count; i++)
        if (edges->pairs[2 * i] == from)
            return;
    edges->pairs =
        grow_array(edges->pairs, &edges->capacity, edges->count, 2 * sizeof *edges->pairs);
    edges->pairs[2 * edges->count] = from;
    edges->pairs[2 * edges->count++ + 1] = to;
}

uint32_t *launch_edges(const Work *work, uint32_t *count)
{
    Edges edges = {.count = 0};
    Writers *writers = calloc(work->buffer_count + 1, sizeof *writers);
    if (!writers)
        bug("out of memory");
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        edges.first = edges.count;
        for (int store = 0; store < 2; store++) // reads first: it may read where it stores
            for (uint32_t k = 0; k < launch->arg_count; k++) {
                const PlanArg *arg = &work->args[launch->arg + k];
                if (arg->space != PV_ARENA)
                    continue;
                Writers *of = &writers[arg->buffer - 1];
                if (store && (arg->result || of->count == 0))
                    add_writer(of, i);
                for (uint32_t w = 0; !store && !arg->result && w < of->count; w++)
                    add_edge(&edges, of->launch[w], i);
            }
    }
    for (uint32_t i = 0; i < work->buffer_count; i++)
        free(writers[i].launch);
    free(writers);
    *count = edges.count;
    return edges.pairs;
}
