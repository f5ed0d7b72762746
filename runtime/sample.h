// Samplers: the host side of a `sample` block.
#ifndef PV_SAMPLE_H
#define PV_SAMPLE_H

#include "runtime/clips.h"
#include "runtime/session.h"

// A call that a sampler makes, and which earlier calls its tensors come from.
typedef struct {
    const PvEntry *entry;
    const PvPlan *plan;
    size_t first_from, from_count; // in PvSamplePlan.from
    bool wanted;                   // something that is written depends on it
} PvSampleCall;

// What a sampler will do, found by running it with nothing computed.
typedef struct {
    PvSampleCall *calls; // in order
    size_t call_count, call_capacity;
    size_t *from;
    size_t from_count, from_capacity;
    int64_t wanted;           // calls that are
    int64_t frames;           // that it yields, of one video
    int64_t clip_frames;      // of its first clip
    bool *needed;             // [instance_count]
    PvMemoryItem activations; // of the largest plan
    int64_t frame_bytes;      // of all yields of one video
} PvSamplePlan;

typedef struct {
    PvSession *session;
    const PvSampler *sampler;
    int64_t batch;
    const PvTensorSet *given; // tensor options by name (streams: session->random->given)
    PvTensorSet *trace;       // reports go here; or NULL: they are not wanted
    PvClips *clips;           // clips go here; or NULL: they are not wanted
    bool quiet;               // no progress is shown
} PvSampleRun;

bool pv_sample_plan(const PvSampleRun *run, PvSamplePlan *plan, PvError *error);
// The same for at least `frames` frames (0: as the options say): sets the option "clips".
bool pv_sample_plan_frames(const PvSampleRun *run, int64_t frames, PvSamplePlan *plan,
                           PvError *error);
void pv_sample_plan_free(PvSamplePlan *plan);
// A signal that is caught (stop.h) ends it early, without an error; what was yielded is in clips.
bool pv_sample_run(const PvSampleRun *run, PvSamplePlan *plan, PvError *error);

const PvSampler *pv_find_sampler(const PvModel *model, const char *name, PvError *error);

#endif
