// Independent pieces of work on all processors.
//
// Plans are independent once the module's graph is what it will be: a pass that writes nothing but
// its plan runs on several at once. Which thread takes which piece is chance; results lie with the
// pieces, so they do not tell.
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "compiler/util.h"

enum { MOST_THREADS = 16 };

typedef struct {
    void (*run)(void *context, uint32_t index);
    void *context;
    uint32_t count;
    atomic_uint next;
} Pieces;

static void *take_pieces(void *arg)
{
    Pieces *pieces = arg;
    for (;;) {
        uint32_t index = atomic_fetch_add(&pieces->next, 1);
        if (index >= pieces->count)
            return NULL;
        pieces->run(pieces->context, index);
    }
}

void in_parallel(uint32_t count, void (*run)(void *context, uint32_t index), void *context)
{
    Pieces pieces = {.run = run, .context = context, .count = count};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t threads = processors > MOST_THREADS ? MOST_THREADS : (uint32_t)processors;
    pthread_t others[MOST_THREADS];
    uint32_t started = 0;
    while (started + 1 < threads && started + 1 < count &&
           pthread_create(&others[started], NULL, take_pieces, &pieces) == 0)
        started++;
    take_pieces(&pieces);              // what no thread could be had for is done here
    for (uint32_t i = 0; i < started; i++)
        pthread_join(others[i], NULL);
}
