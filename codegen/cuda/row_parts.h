/* What the templates over rows [rows, c] share: how a team of threads walks a row.
 *
 * ROW_VECTORS > 0: a warp a row, each lane holds that many runs, so c <= 32 RUN ROW_VECTORS; a row
 * is read once. ROW_VECTORS 0: a block a row, any c; each pass reads it again (it lies in L1 or
 * L2). Included inside a template's namespace after norm_parts.h; no include guard.
 */
enum {
    THREADS = 256,
    TEAM = ROW_VECTORS ? 32 : THREADS, // threads of a row
    ROWS = THREADS / TEAM,             // of a block at once
    KEPT = ROW_VECTORS ? ROW_VECTORS : 1
};

CX_FN int row_runs(int c) // of a thread
{
    return ROW_VECTORS ? ROW_VECTORS : (c + RUN * TEAM - 1) / (RUN * TEAM);
}
CX_FN int row_begin(int j) // element at which run j of this thread begins
{
    return (j * TEAM + (int)threadIdx.x % TEAM) * RUN;
}
CX_FN float row_sum(float value, float *partial) // partial: [THREADS / 32] in shared memory
{
    return ROW_VECTORS ? warp_sum(value) : block_sum<THREADS>(value, partial);
}
CX_FN float row_max(float value, float *partial)
{
    return ROW_VECTORS ? warp_max(value) : block_max<THREADS>(value, partial);
}

template <typename Element> struct Row {
    const Element *from;
    int c;
    bool wide;
    typename KeptAs<Element>::Type kept[KEPT];
};

template <typename Element>
CX_FN void row_open(Row<Element> &row, const Element *from, int c, bool wide)
{
    row.from = from;
    row.c = c;
    row.wide = wide;
    CX_UNROLL
    for (int j = 0; j < ROW_VECTORS; j++)
        keep_run(row.kept[j], from + row_begin(j), c - row_begin(j), wide);
}
template <typename Element> CX_FN Run row_run(const Row<Element> &row, int j) // of this thread
{
    if (ROW_VECTORS)
        return expand<Element>(row.kept[ROW_VECTORS ? j : 0]);
    return load_run(row.from + row_begin(j), row.c - row_begin(j), row.wide);
}
