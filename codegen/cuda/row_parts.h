/* What the templates over rows [rows, c] share: how a team of threads walks a row.
 *
 * ROW_VECTORS > 0: a warp a row, each lane holds that many quads, so c <= 128 ROW_VECTORS; a row is
 * read once. ROW_VECTORS 0: a block a row, any c; each pass reads it again (it lies in L1 or L2).
 * Included inside a template's namespace after norm_parts.h; no include guard.
 */
enum {
    THREADS = 256,
    TEAM = ROW_VECTORS ? 32 : THREADS, // threads of a row
    ROWS = THREADS / TEAM,             // of a block at once
    KEPT = ROW_VECTORS ? ROW_VECTORS : 1
};

CX_FN int row_quads(int c) // of a thread
{
    return ROW_VECTORS ? ROW_VECTORS : (c + 4 * TEAM - 1) / (4 * TEAM);
}
CX_FN int row_begin(int j) // element at which quad j of this thread begins
{
    return (j * TEAM + (int)threadIdx.x % TEAM) * 4;
}
CX_FN float row_sum(float value, float *partial) // partial: [THREADS / 32] in shared memory
{
    return ROW_VECTORS ? warp_sum(value) : block_sum<THREADS>(value, partial);
}
CX_FN float row_max(float value, float *partial)
{
    return ROW_VECTORS ? warp_max(value) : block_max<THREADS>(value, partial);
}

struct Row {
    const float *from;
    int c;
    bool wide;
    Quad kept[KEPT];
};

CX_FN Quad row_load(const Row &row, int j)
{
    return load_quad(row.from + row_begin(j), row.c - row_begin(j), row.wide);
}
CX_FN void row_open(Row &row, const float *from, int c, bool wide)
{
    row.from = from;
    row.c = c;
    row.wide = wide;
    CX_UNROLL
    for (int j = 0; j < ROW_VECTORS; j++)
        row.kept[j] = row_load(row, j);
}
CX_FN Quad row_quad(const Row &row, int j) // quad j of this thread
{
    return ROW_VECTORS ? row.kept[ROW_VECTORS ? j : 0] : row_load(row, j);
}
