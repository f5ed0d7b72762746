/* The order in which neighbouring lanes walk a tile in shared memory, so that they meet different
 * banks. Included in a kernel's namespace, so it has no guard.
 *
 * Eight lanes of 16 bytes are served together, and meet no bank twice where their chunks lie in
 * eight different groups of four banks. Rows of a tile lie an odd number of chunks apart, so eight
 * rows at one column are such; a walk along the rows is one where the first chunk of each row lies
 * a group behind the last of the row before.
 */

// The row that is number q of a walk over rows of CHUNKS chunks, PITCH chunks apart; there are a
// multiple of 8.
template <int CHUNKS, int PITCH> CX_FN int row_in_turn(int q)
{
    static_assert(PITCH % 2 == 1, "rows are an odd number of chunks apart");
    enum {
        STEP = CHUNKS * PITCH % 8, // as 1 / PITCH is PITCH modulo 8
        ROUND = STEP % 2 ? 8 : STEP == 4 ? 2 : 4
    };
#ifdef FAULT_BANKS // row by row
    return q;
#endif
    int in_eight = q & 7;
    return STEP == 0 ? q : (q & ~7) | ((in_eight * STEP & 7) + in_eight / ROUND);
}

// Element i of a walk down the columns of a tile of `rows` (a multiple of 8) by any
// multiple of 4: eight rows by four columns a warp.
template <int rows> CX_FN void turned_element(int i, int *row, int *column)
{
    *row = i / 32 % (rows / 8) * 8 + (i & 7);
    *column = i / 32 / (rows / 8) * 4 + (i >> 3 & 3);
}
