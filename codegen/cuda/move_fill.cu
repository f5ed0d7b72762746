/* Movement, fill: every element of a dense y becomes one value.
 *
 * Where y is aligned, 16 bytes a store, and the elements left over one by one; else all one by one.
 */
enum { FILL_THREADS = 256, FILL_UNITS = 4 }; // 16-byte units of a thread

CX_FN void fill_element(u8 *y, u64 value, int64_t bytes)
{
    if (bytes == 1)
        *y = (u8)value;
    else if (bytes == 4)
        *(u32 *)y = (u32)value;
    else
        *(u64 *)y = value;
}

extern "C" __global__ void __launch_bounds__(FILL_THREADS)
    CX_NAME(const __grid_constant__ CxLaunch<FillArgs> p)
{
    u32 block;
    const FillArgs &a = p.args[cx_segment(p.head, &block)];
    u64 value = (u64)a.value;
    if (a.bytes == 1)
        value = (value & 0xff) * 0x0101010101010101ull;
    else if (a.bytes == 4)
        value = (value & 0xffffffff) * 0x0000000100000001ull;
    u32 low = (u32)value, high = (u32)(value >> 32);
    uint4 unit = make_uint4(low, high, low, high);
    int64_t all = a.count * a.bytes, end = a.y % 16 == 0 ? all / 16 * 16 : 0;
    int64_t part = (int64_t)FILL_THREADS * FILL_UNITS * 16, first = (int64_t)block * part;
    u8 *y = (u8 *)a.y;
    CX_UNROLL
    for (int i = 0; i < FILL_UNITS; i++) {
        int64_t at = first + ((int64_t)i * FILL_THREADS + threadIdx.x) * 16;
#ifdef FAULT_FILL_END // the rest is a unit too
        if (at < all)
#else
        if (at < end)
#endif
            *(uint4 *)(y + at) = unit;
    }
    int64_t from = first > end ? first : end, to = first + part < all ? first + part : all;
    for (from += (int64_t)threadIdx.x * a.bytes; from < to; from += FILL_THREADS * a.bytes)
        fill_element(y + from, value, a.bytes);
}
