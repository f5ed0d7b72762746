// Samplers: the host side of a `sample` block.
#ifndef PV_SAMPLE_H
#define PV_SAMPLE_H

#include "runtime/clips.h"
#include "runtime/session.h"

// What a sampler will do, found by running it with nothing computed.
typedef struct {
    int64_t calls;                   // of entries
    int64_t frames;                  // that it yields, of one video
    int64_t clip_frames;             // of its first clip
    bool *needed;                    // [instance_count]
    PvMemoryItem activations;        // of the largest plan
    int64_t frame_bytes;             // of all yields of one video
} PvSamplePlan;

typedef struct {
    PvSession *session;
    const PvSampler *sampler;
    int64_t batch;
    const PvTensorSet *given;        // tensor options by name (streams: session->random->given)
    PvTensorSet *trace;              // reports go here; or NULL
    PvClips *clips;                  // clips go here; or NULL
} PvSampleRun;

bool pv_sample_plan(const PvSampleRun *run, PvSamplePlan *plan, PvError *error);
void pv_sample_plan_free(PvSamplePlan *plan);
// *stopped: a signal ended it early (Ctrl-C); what was yielded is in clips.
bool pv_sample_run(const PvSampleRun *run, const PvSamplePlan *plan, bool *stopped,
                   PvError *error);

const PvSampler *pv_find_sampler(const PvModel *model, const char *name, PvError *error);

#endif
