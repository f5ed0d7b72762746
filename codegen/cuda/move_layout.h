/* Axes of a strided tensor that are joined at compile time.
 *
 * What a launch gives are up to 8 axes with sizes and strides. select_move.c finds an order of them
 * and which neighbours are one run at any batch; both are baked in: `order` has the original axis
 * of place k in bits 4 k .. 4 k + 3, bit k of `begins` says that a joined axis begins at place k.
 * The sizes themselves stay arguments. Numbers of elements are below 2^32 (the grids see to that).
 * Included inside a template's namespace; no include guard.
 */

template <int count, u32 order, u32 begins, int axes> struct Walk {
    u32 size[axes > 0 ? axes : 1];
    int64_t step[axes > 0 ? axes : 1];
    const int64_t *sizes, *strides; // with `given` axes: where nothing is baked in
    int given;

    CX_MEMBER Walk(const int64_t *sizes_, const int64_t *strides_, int64_t given_)
        : sizes(sizes_), strides(strides_), given((int)given_)
    {
        int axis = -1;
        size[0] = 1;
        step[0] = 0;
        CX_UNROLL
        for (int k = 0; k < count; k++) {
            const int from = (int)(order >> (4 * k) & 15);
            if (begins >> k & 1)
                size[++axis] = 1;
            size[axis] *= (u32)sizes[from];
            step[axis] = strides[from];
        }
    }

    // The last axis, which is dense, is walked in units.
    CX_MEMBER void cut(u32 unit)
    {
        const int last = axes > 0 ? axes - 1 : 0;
        size[last] /= unit;
        step[last] *= unit;
    }

    CX_MEMBER u32 elements() const
    {
        u32 all = 1;
        CX_UNROLL
        for (int j = 0; j < axes; j++)
            all *= size[j];
        CX_NO_UNROLL
        for (int j = 0; axes == 0 && j < given; j++)
            all *= (u32)sizes[j];
        return all;
    }

    // Offset of element (or unit) `number`, counted row-major.
    CX_MEMBER int64_t offset(u32 number) const
    {
        int64_t at = 0;
        CX_UNROLL
        for (int j = axes - 1; j > 0; j--) {
            u32 outer = number / size[j];
            at += (int64_t)(number - outer * size[j]) * step[j];
            number = outer;
        }
        CX_NO_UNROLL // divisions take the time, and there are as many of them
        for (int j = axes > 0 ? -1 : given - 1; j >= 0; j--) {
            u32 outer = number / (u32)sizes[j];
            at += (int64_t)(number - outer * (u32)sizes[j]) * strides[j];
            number = outer;
        }
        return axes > 0 ? at + (int64_t)number * step[0] : at;
    }
};
