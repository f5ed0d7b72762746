/* Axes of a strided tensor that are joined at compile time.
 *
 * What a launch gives are up to 8 axes with sizes and strides. select_move.c finds an order of them
 * and which neighbours are one run at any batch; both are baked in: `order` has the original axis
 * of place k in bits 4 k .. 4 k + 3, bit k of `begins` says that a joined axis begins at place k.
 * The sizes themselves stay arguments. Numbers of elements are below 2^32 (the grids see to that).
 * Included inside a template's namespace; no include guard.
 */

// Sizes and strides of the joined axes, from those of the launch.
template <int count, u32 order, u32 begins>
CX_FN void join_axes(const int64_t *size, const int64_t *stride, u32 *joined, int64_t *step)
{
    int axis = -1;
    joined[0] = 1;
    step[0] = 0;
    CX_UNROLL
    for (int k = 0; k < count; k++) {
        const int from = (int)(order >> (4 * k) & 15);
        if (begins >> k & 1)
            joined[++axis] = 1;
        joined[axis] *= (u32)size[from];
        step[axis] = stride[from];
    }
}

// Offset of element `number`, counted row-major over the axes.
template <int axes> CX_FN int64_t offset_of(u32 number, const u32 *size, const int64_t *stride)
{
    int64_t offset = 0;
    CX_UNROLL
    for (int j = axes - 1; j > 0; j--) {
        u32 outer = number / size[j];
        offset += (int64_t)(number - outer * size[j]) * stride[j];
        number = outer;
    }
    return offset + (int64_t)number * stride[0];
}
