/* The gradient of gather: x[row] = sum of y[i] over the i with k[i] = row, in the order of i.
 *
 * A block owns 256 columns of one row, so no two blocks add to one element and the order of sums is
 * fixed. A warp looks at 32 indices at once and adds the rows that a ballot names.
 */
enum { GATHER_THREADS = 256 };

extern "C" __global__ void __launch_bounds__(GATHER_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<GatherArgs> p)
{
    u32 block;
    const GatherArgs &a = p.args[cx_segment(p.head, &block)];
    u32 parts = (u32)((a.inner + GATHER_THREADS - 1) / GATHER_THREADS);
    int64_t row = block / parts;
    int64_t column = (int64_t)(block % parts) * GATHER_THREADS + threadIdx.x;
    const int64_t *k = (const int64_t *)a.k;
    const float *y = (const float *)a.y + column;
    float sum = 0.f;
    for (int64_t first = 0; first < a.count; first += 32) {
        int64_t mine = first + threadIdx.x % 32, index = -1;
        if (mine < a.count) {
            index = k[mine] < 0 ? 0 : k[mine];
            index = index < a.rows ? index : a.rows - 1;
        }
#ifdef FAULT_CLAMP // indices out of range are lost
        index = mine < a.count ? k[mine] : -1;
#endif
        u32 here = __ballot_sync(CX_ALL_LANES, index == row);
        for (; here; here &= here - 1) {
            int64_t i = first + (__ffs((int)here) - 1);
            if (column < a.inner)
                sum += y[i * a.inner];
        }
    }
    if (column < a.inner)
        ((float *)a.x)[row * a.inner + column] = sum;
}
