/* Phase 0 of attention's gradients: D = rowsum(do o), float [problems, n]. Included in a kernel's
 * namespace, where THREADS stands before.
 */
enum { DELTA_ROWS = 32 }; // of a block

// D of the rows from `first` on; o and d_o lie alike: `at`, n and d (steps of rows and columns),
// length, width. sums: [THREADS / 32, 32] in shared memory.
template <class O, class Do>
CX_FN void make_delta(const O &o, const Do &d_o, int first, float *delta, float *sums)
{
    enum { WARPS = THREADS / 32 };
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (o.d == 1) { // a warp a row
        for (int row = first + warp; row < min(first + DELTA_ROWS, o.length); row += WARPS) {
            float sum = 0.f;
            for (int i = lane; i < o.width; i += 32)
                sum = fmaf(cx_read(o.at[row * o.n + i]), cx_read(d_o.at[row * o.n + i]), sum);
            CX_UNROLL
            for (int by = 16; by > 0; by >>= 1)
                sum += __shfl_xor_sync(CX_ALL_LANES, sum, by);
            if (lane == 0)
                delta[row] = sum;
        }
        return;
    }
    float sum = 0.f; // a lane a row, a warp every WARPS-th column
    for (int i = warp; first + lane < o.length && i < o.width; i += WARPS) {
        int64_t at = (first + lane) * o.n + i * o.d;
        sum = fmaf(cx_read(o.at[at]), cx_read(d_o.at[at]), sum);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || first + lane >= o.length)
        return;
    for (int i = 1; i < WARPS; i++)
        sum += sums[i * 32 + lane];
    delta[first + lane] = sum;
}
