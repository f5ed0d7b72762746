// Random streams of a run: how often each was drawn, and tensors given in place of draws.
#ifndef PVDM_RANDOM_H
#define PVDM_RANDOM_H

#include "runtime/random_bits.h"
#include "runtime/tensor.h"

struct PvRandom {
    uint64_t seed;
    uint32_t stream_count;
    const char *const *names; // of the streams
    uint32_t *hashes;         // of their names: the last word of the counter
    uint64_t *draws;          // present draw of each; moved on by pv_random_advance
    const PvTensorSet *given; // or NULL: "NAME.i" is draw i of stream NAME
    bool given_always;        // plain "NAME" is every draw; else only draw 0
};

PvRandom *pv_random_new(const PvModel *model, uint64_t seed);
void pv_random_free(PvRandom *random); // NULL is fine; `given` is not its own
// After a step: the streams its plan draws from (PvPlan.streams) go on to their next draw.
void pv_random_advance(PvRandom *random, const uint32_t *streams, uint32_t count);
// FNV-1a of a name.
uint32_t pv_random_hash(const char *name);
// The tensor given for the present draw of a stream, or NULL.
PvTensor *pv_random_given(const PvRandom *random, uint32_t stream);
// The present draw of a stream as `count` elements at out, as the kernel pv_random writes them.
// kind: 0 normal, 1 uniform (both PvReal), 2 integers lo .. hi - 1 (int64). A given tensor of
// another size ends the program with status 1.
void pv_random_fill(const PvRandom *random, uint32_t stream, int kind, int64_t lo, int64_t hi,
                    int64_t count, void *out);
// First values of parameters (PvParam.init): stream = the parameter's name, draw 0.
void pv_random_init(const PvModel *model, uint64_t seed, char *params);

#endif
