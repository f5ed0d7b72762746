/* How reduce.cu cuts a reduction, on the host (shape_move.c) as in the kernel.
 *
 * A launch of `across` blocks of results is cut into as many parts of the elements as fill a large
 * GPU a few times, as long as every thread keeps a few elements. Included inside the template's
 * namespace too; no include guard.
 */
enum { REDUCE_FILLS = 512, REDUCE_KEEPS = 8 }; // blocks; elements or packs of a thread

// steps: elements (or packs of four) of a result; y: threads that share them.
static inline unsigned reduce_parts(unsigned across, unsigned steps, unsigned y)
{
    unsigned wanted = across ? REDUCE_FILLS / across : 0, most = steps / (REDUCE_KEEPS * y);
    unsigned parts = wanted < most ? wanted : most;
    return parts > 1 ? parts : 1;
}
