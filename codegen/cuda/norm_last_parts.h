/* What GroupNorm and its gradient share where channels are dense: bundles of groups.
 *
 * A bundle is LAST_CHANNELS channels, whole groups and whole runs of 16 bytes, so that a position
 * of it is one or more sectors of memory, whatever the size of a group is. A thread keeps its
 * channels, a run, and takes every LANES-th position; sums of channels and groups are made in
 * shared memory in a fixed order. Included inside a template's namespace after norm_parts.h; no
 * include guard.
 */
enum {
    THREADS = 256,
    RUNS = LAST_CHANNELS / RUN, // of a bundle
    LANES = THREADS / RUNS      // positions at once
};

// One bundle of one image.
struct Bundle {
    u32 image, channel, channels, group, groups; // first ones, and how many
};
// members: channels of a group.
CX_FN Bundle bundle_of(u32 number, u32 c, u32 members)
{
    u32 bundles = (c + LAST_CHANNELS - 1) / LAST_CHANNELS;
    Bundle b;
    b.image = number / bundles;
    b.channel = number % bundles * LAST_CHANNELS;
    b.channels = (u32)min((int)(c - b.channel), (int)LAST_CHANNELS);
    b.group = b.channel / members;
    b.groups = b.channels / members;
    return b;
}

// Number of this thread's run in the bundle, and of its first position.
struct Place {
    u32 run, position;
    bool busy;
};
CX_FN Place place_of(const Bundle &b)
{
    Place place = {threadIdx.x % RUNS, threadIdx.x / RUNS, false};
    place.busy = place.position < LANES && place.run * RUN < b.channels;
    return place;
}

// sums[channel of the bundle] of all threads' values; scratch: [LANES, LAST_CHANNELS], shared.
CX_FN void sum_channels(float *sums, const Run &run, const Bundle &b, float *scratch)
{
    Place place = place_of(b);
    if (place.busy) {
        float *to = scratch + place.position * LAST_CHANNELS + place.run * RUN;
        bool late = RUN == 8 && (threadIdx.x & 4) != 0; // eight lanes, eight groups of four banks
        float first[4], second[4];
        CX_UNROLL
        for (int j = 0; j < 4; j++) {
            first[j] = late ? run.at[j + RUN - 4] : run.at[j];
            second[j] = late ? run.at[j] : run.at[j + RUN - 4];
        }
        cx_write4(to + (late ? 4 : 0), first);
        if (RUN == 8)
            cx_write4(to + (late ? 0 : 4), second);
    }
    __syncthreads();
    if (threadIdx.x < b.channels) {
        float sum = 0.f;
        for (u32 i = 0; i < LANES; i++)
            sum += scratch[i * LAST_CHANNELS + threadIdx.x];
        sums[threadIdx.x] = sum;
    }
#ifndef FAULT_SUMS
    __syncthreads();
#endif
}
