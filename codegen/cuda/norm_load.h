/* Operands that are normalized as they are loaded: act(x a + d) with a and d of a norm table
 * (NormLoad of kernel_args.h). Included in a kernel's namespace behind gemm_tile.h, by templates
 * with the definition TILE_NORM: 0 none, else 1 + PvAct.
 *
 * A loader fetches a and d with its elements, and normalizes between two steps, when it puts them
 * into shared memory: nothing waits for memory before the product. Where there is no element a and
 * d are 0, and so is what becomes of it: every activation leaves 0 alone. A segment whose table is
 * 0 reads its operand as it lies: that is asked once a step, and fetches nothing.
 */

template <int ACT> CX_FN float load_act(float x)
{
    if (ACT == PV_ACT_SILU)
        return x * cx_reciprocal(1.f + expf(-x));
    return activate<ACT>(x);
}
CX_FN float normalize(float x, float a, float d)
{
    return load_act<TILE_NORM - 1>(fmaf(x, a, d));
}

// a of channel 0 of an image, and how far from there d is: 0 where nothing is normalized. (A
// pointer that may be null would be read by LD, not LDG.)
struct NormSource {
    const float *scale;
    long long shift;

    // `channel`: that number 0 is
    CX_FN NormSource of(const NormLoad &norm, long long image, long long channel)
    {
#ifdef FAULT_NORM_IMAGE // all images have the factors of the first
        image = 0;
#endif
        return {(const float *)norm.table + image * norm.image + channel,
                norm.table ? norm.shift : 0};
    }
    __device__ bool is_there() const
    {
#ifdef FAULT_NORM_SOME // a segment without a table is taken for one with
        return true;
#else
        return shift != 0;
#endif
    }
    __device__ void get(float *a, float *d, int channel, bool there) const
    {
        there = there && shift != 0;
        *a = there ? scale[channel] : 0.f;
        *d = there ? scale[channel + shift] : 0.f;
    }
};

// A loader of gemm_tile.h whose fours along the rows have their k as channel: a and d of each four
// behind the elements.
template <class Dense> struct NormedRows : Dense {
    enum { COUNT = Dense::COUNT + 2 * Dense::LOADS };
    NormSource norm;

    __device__ void load(float *r, int step)
    {
        Dense::load(r, step);
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++) {
            int k = step * TILE_K + this->k_of(i);
            bool there = k < this->size && (Dense::WHOLE || this->k_of(i) < TILE_K);
            norm.get(r + Dense::COUNT + 2 * i, r + Dense::COUNT + 2 * i + 1, k, there);
        }
    }
    __device__ void put(const float *r, float *to)
    {
        float y[Dense::COUNT];
        bool normed = norm.is_there();
        CX_UNROLL
        for (int i = 0; i < Dense::COUNT; i++) {
            const float *factors = r + Dense::COUNT + i / 4 * 2;
            y[i] = normed ? normalize(r[i], factors[0], factors[1]) : r[i];
        }
        Dense::put(y, to);
    }
};

// One whose fours along k are four channels; `put` is also of loaders that fetch a and d
// themselves, and set `norm` of any image.
template <class Dense> struct NormedK : Dense {
    enum { COUNT = 3 * Dense::COUNT };
    NormSource norm;

    __device__ void load(float *r, int step)
    {
        Dense::load(r, step);
        CX_UNROLL
        for (int i = 0; i < Dense::LOADS; i++) {
            int k = step * TILE_K + this->k_of(i);
            bool there = norm.shift != 0 && (Dense::WHOLE || this->k_of(i) < TILE_K);
            int count = there ? this->size - k : 0;
            load_four<Dense::FOURS>(r + Dense::COUNT + 4 * i, norm.scale + k, count);
            load_four<Dense::FOURS>(r + 2 * Dense::COUNT + 4 * i, norm.scale + norm.shift + k,
                                    count);
        }
    }
    __device__ void put(const float *r, float *to)
    {
        float y[Dense::COUNT];
        bool normed = norm.is_there();
        CX_UNROLL
        for (int i = 0; i < Dense::COUNT; i++)
            y[i] = normed ? normalize(r[i], r[Dense::COUNT + i], r[2 * Dense::COUNT + i]) : r[i];
        Dense::put(y, to);
    }
};

// The factors of COUNT columns, (channel, tap), of a matrix of images; APART columns apart. They
// are fetched once an image.
template <int COUNT, int APART> struct NormedColumns {
    const NormLoad *norm;
    int first, there, taps;   // number of the first column, and how many from there on there are
    int image;                // that a and d are of; -1: none yet
    float a[COUNT], d[COUNT];
    u32 inside;               // bits: which elements there are

    __device__ void set(const NormLoad &norm_, int first_, int there_, int taps_)
    {
        norm = &norm_;
        first = first_;
        there = there_;
        taps = taps_;
        image = -1;
    }
    // Elements of an image follow.
    __device__ void begin(int number)
    {
        inside = 0;
        if (image == number)
            return;
        image = number;
        NormSource source = NormSource::of(*norm, image, 0);
        CX_UNROLL
        for (int i = 0; i < COUNT; i++)
            source.get(&a[i], &d[i], (first + i * APART) / taps, i * APART < there);
    }
    __device__ float value(float x, int i) const
    {
        return inside >> i & 1 && norm->table ? normalize(x, a[i], d[i]) : x;
    }
};
