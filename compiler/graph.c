// The node table: hash-consing, interned types and attributes, constant data, origins.
//
// Nodes lie in blocks of a fixed size, so a pointer from graph_node stays good while the graph
// grows. Everything that is looked up by content (nodes, types, attributes, blobs, segments) goes
// through one kind of open-addressed table, which keeps a hash and a number per entry; equality
// is decided by the caller on the thing the number names. Types and attributes are interned, so a
// node is equal to another when op, operands, attribute pointer and type pointers are equal.
//
// Whether a value is a step value (known on the host when a step starts) follows from the operands
// when a node is made, and is kept with the node.
#include <stdarg.h>
#include <string.h>

#include "compiler/graph.h"

const OpInfo op_info[OP_COUNT] = {
#define OP(name, text, nin, nout, class, attrs) {text, nin, nout, class, attrs},
#include "compiler/ops.def"
};

// ---- tables of numbers by hash ----

// The low half of a hash chooses the slot, the high half is kept: an entry is 8 bytes, and a search
// that finds its entry at once touches one cache line.
typedef struct {
    uint32_t high;
    uint32_t item;       // 0: free
} Slot;

typedef struct {
    Slot *slots;
    uint32_t *low;       // the low halves, which only growing needs
    uint32_t capacity;   // a power of two
    uint32_t used;
} Table;

static void table_place(Table *table, uint64_t hash, uint32_t item)
{
    uint32_t slot = (uint32_t)hash & (table->capacity - 1);
    while (table->slots[slot].item)
        slot = (slot + 1) & (table->capacity - 1);
    table->slots[slot] = (Slot){(uint32_t)(hash >> 32), item};
    table->low[slot] = (uint32_t)hash;
    table->used++;
}

static void table_insert(Arena *arena, Table *table, uint64_t hash, uint32_t item)
{
    if (2 * (table->used + 1) > table->capacity) {
        Table old = *table;
        table->capacity = old.capacity ? 2 * old.capacity : 256;
        table->used = 0;
        table->slots = arena_alloc(arena, table->capacity * sizeof *table->slots);
        table->low = arena_alloc(arena, table->capacity * sizeof *table->low);
        for (uint32_t i = 0; i < old.capacity; i++)
            if (old.slots[i].item)
                table_place(table, (uint64_t)old.slots[i].high << 32 | old.low[i],
                            old.slots[i].item);
    }
    table_place(table, hash, item);
}

// The next entry with that hash, or 0. *probe counts up from 0 over the calls of one search.
static uint32_t table_next(const Table *table, uint64_t hash, uint32_t *probe)
{
    if (!table->capacity)
        return 0;
    for (;;) {
        uint32_t slot = ((uint32_t)hash + (*probe)++) & (table->capacity - 1);
        if (!table->slots[slot].item)
            return 0;
        if (table->slots[slot].high == (uint32_t)(hash >> 32))
            return table->slots[slot].item;
    }
}

// Arrays of pointers that only grow.
typedef struct {
    const void **at;
    uint32_t count, capacity;
} Pointers;

static uint32_t pointers_add(Arena *arena, Pointers *list, const void *item)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? 2 * list->capacity : 64;
        const void **at = arena_alloc(arena, capacity * sizeof *at);
        if (list->count)
            memcpy(at, list->at, list->count * sizeof *at);
        list->at = at;
        list->capacity = capacity;
    }
    list->at[list->count] = item;
    return list->count++;
}

// ---- the graph ----

// What is asked of a node less often; in blocks as nodes are.
typedef struct {
    Origin origin;
    bool step;
} Side;

typedef struct {
    const void *data;
    size_t size;
} Blob;

struct Graph {
    NodeTable table;         // the first: graph_node looks there
    uint32_t block_count, block_room;
    Side **sides;            // by block
    Arena *arena;
    Table nodes, type_table, attr_table, blob_table, segment_table;
    Pointers types;          // Type; entry 0 of each list is unused
    Pointers attrs;          // Attr
    Pointers blobs;          // Blob
    Pointers segments;       // Segments
    Origin here;
    char error[512];
};

static void add_block(Graph *graph)
{
    NodeTable *table = &graph->table;
    if (graph->block_count == graph->block_room) {
        graph->block_room = graph->block_room ? 2 * graph->block_room : 16;
        Node **blocks = arena_alloc(graph->arena, graph->block_room * sizeof *blocks);
        Side **sides = arena_alloc(graph->arena, graph->block_room * sizeof *sides);
        if (graph->block_count) {
            memcpy(blocks, table->blocks, graph->block_count * sizeof *blocks);
            memcpy(sides, graph->sides, graph->block_count * sizeof *sides);
        }
        table->blocks = blocks;
        graph->sides = sides;
    }
    table->blocks[graph->block_count] = arena_alloc(graph->arena, NODE_BLOCK * sizeof(Node));
    graph->sides[graph->block_count++] = arena_alloc(graph->arena, NODE_BLOCK * sizeof(Side));
}

Graph *graph_new(Arena *arena)
{
    Graph *graph = arena_alloc(arena, sizeof *graph);
    graph->arena = arena;
    graph->table.count = 1;
    pointers_add(arena, &graph->types, NULL);
    pointers_add(arena, &graph->attrs, NULL);
    pointers_add(arena, &graph->blobs, NULL);
    pointers_add(arena, &graph->segments, NULL);
    add_block(graph);
    return graph;
}

void graph_no_node(NodeId node)
{
    bug("there is no node %u", node);
}

void graph_no_output(const Graph *graph, Val val)
{
    bug("node %u (%s) has no output %u", val_node(val),
        op_info[val_get(graph, val)->op].name, val_out(val));
}

static Side *side_of(const Graph *graph, NodeId node)
{
    if (node == 0 || node >= graph->table.count)
        graph_no_node(node);
    return &graph->sides[node >> NODE_BLOCK_BITS][node & (NODE_BLOCK - 1)];
}

const char *graph_error(const Graph *graph)
{
    return graph->error;
}

void graph_set_error(Graph *graph, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(graph->error, sizeof graph->error, format, args);
    va_end(args);
}

void graph_at(Graph *graph, Origin origin)
{
    graph->here = origin;
}

const Origin *graph_origin(const Graph *graph, NodeId node)
{
    return &side_of(graph, node)->origin;
}

bool graph_is_step(const Graph *graph, Val val)
{
    return side_of(graph, val_node(val))->step;
}

// ---- interning ----

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static const Type *intern_type(Graph *graph, const Type *type)
{
    uint64_t hash = mix((uint64_t)type->dtype, type->rank);
    for (uint32_t i = 0; i < type->rank; i++)
        hash = mix(mix(hash, (uint64_t)type->dim[i].n), (uint64_t)type->dim[i].batch);
    hash = mix(hash, type->seg ? (uint64_t)type->seg << 4 | type->seg_axis : 0);

    uint32_t probe = 0;
    for (uint32_t item; (item = table_next(&graph->type_table, hash, &probe));)
        if (type_equal(graph->types.at[item], type))
            return graph->types.at[item];
    Type *copy = arena_alloc(graph->arena, sizeof *copy);
    *copy = type_make(type->dtype, type->rank, type->dim);
    if (type->seg) {
        copy->seg = type->seg;
        copy->seg_axis = type->seg_axis;
    }
    table_insert(graph->arena, &graph->type_table, hash,
                 pointers_add(graph->arena, &graph->types, copy));
    return copy;
}

static bool attr_equal(const Attr *x, const Attr *y)
{
    return x->count == y->count && !memcmp(&x->real, &y->real, sizeof x->real) &&
           x->text == y->text && !memcmp(x->n, y->n, x->count * sizeof x->n[0]);
}

static const Attr *intern_attr(Graph *graph, const Attr *attr)
{
    static const Attr none;
    if (attr_equal(attr, &none))
        return &none;
    uint64_t bits;
    memcpy(&bits, &attr->real, sizeof bits);
    uint64_t hash = mix(mix(attr->count, bits), (uintptr_t)attr->text);
    for (uint32_t i = 0; i < attr->count; i++)
        hash = mix(hash, (uint64_t)attr->n[i]);

    uint32_t probe = 0;
    for (uint32_t item; (item = table_next(&graph->attr_table, hash, &probe));)
        if (attr_equal(graph->attrs.at[item], attr))
            return graph->attrs.at[item];
    Attr *copy = arena_alloc(graph->arena, sizeof *copy);
    memcpy(copy->n, attr->n, attr->count * sizeof attr->n[0]);
    copy->count = attr->count;
    copy->real = attr->real;
    copy->text = attr->text;
    table_insert(graph->arena, &graph->attr_table, hash,
                 pointers_add(graph->arena, &graph->attrs, copy));
    return copy;
}

uint32_t graph_add_blob(Graph *graph, const void *data, size_t size)
{
    uint64_t hash = mix(hash_bytes(data, size), size);
    uint32_t probe = 0;
    for (uint32_t item; (item = table_next(&graph->blob_table, hash, &probe));) {
        const Blob *blob = graph->blobs.at[item];
        if (blob->size == size && !memcmp(blob->data, data, size))
            return item;
    }
    Blob *blob = arena_alloc(graph->arena, sizeof *blob);
    blob->data = arena_copy(graph->arena, data, size);
    blob->size = size;
    uint32_t item = pointers_add(graph->arena, &graph->blobs, blob);
    table_insert(graph->arena, &graph->blob_table, hash, item);
    return item;
}

const void *graph_blob(const Graph *graph, uint32_t blob, size_t *size)
{
    if (blob == 0 || blob >= graph->blobs.count)
        bug("there is no blob %u", blob);
    const Blob *found = graph->blobs.at[blob];
    if (size)
        *size = found->size;
    return found->data;
}

SegId graph_add_segments(Graph *graph, const Segments *segments)
{
    Segments clean = {.count = segments->count};
    if (clean.count == 0 || clean.count > 16)
        bug("an axis of %u segments", clean.count);
    for (uint32_t i = 0; i < clean.count; i++) {
        clean.rank[i] = segments->rank[i];
        if (clean.rank[i] > 4)
            bug("a segment of rank %u", clean.rank[i]);
        for (uint32_t j = 0; j < clean.rank[i]; j++)
            clean.extent[i][j] = segments->extent[i][j];
    }
    uint64_t hash = hash_bytes(&clean, sizeof clean);
    uint32_t probe = 0;
    for (uint32_t item; (item = table_next(&graph->segment_table, hash, &probe));)
        if (!memcmp(graph->segments.at[item], &clean, sizeof clean))
            return item;
    uint32_t item = pointers_add(graph->arena, &graph->segments,
                                 arena_copy(graph->arena, &clean, sizeof clean));
    table_insert(graph->arena, &graph->segment_table, hash, item);
    return item;
}

const Segments *graph_segments(const Graph *graph, SegId seg)
{
    if (seg == 0 || seg >= graph->segments.count)
        bug("there are no segments %u", seg);
    return graph->segments.at[seg];
}

// ---- nodes ----

// Rank 0, and made of nothing but what the host knows when a step starts.
static bool is_step(const Graph *graph, Op op, const Val *in, uint32_t nin, const Type *type)
{
    if (type->rank != 0)
        return false;
    if (op_info[op].class == CLASS_SOURCE)
        return op != OP_PARAM && op != OP_LOSS_SCALE;
    if (op == OP_GATHER) {
        Op table = val_get(graph, in[0])->op;
        return (table == OP_TABLE || table == OP_CONST) && graph_is_step(graph, in[1]);
    }
    if (op_info[op].class != CLASS_ELEMENTWISE)
        return false;
    for (uint32_t i = 0; i < nin; i++)
        if (!graph_is_step(graph, in[i]))
            return false;
    return true;
}

static bool node_equal(const Node *x, const Node *y)
{
    return x->op == y->op && x->nin == y->nin && x->nout == y->nout && x->attr == y->attr &&
           !memcmp(x->type, y->type, sizeof x->type) &&
           (!x->nin || !memcmp(x->in, y->in, x->nin * sizeof x->in[0]));
}

static uint64_t node_hash(const Node *node)
{
    uint64_t hash = mix(mix((uint64_t)node->op, node->nin), (uintptr_t)node->attr);
    for (uint32_t i = 0; i < node->nin; i++)
        hash = mix(hash, node->in[i]);
    for (uint32_t i = 0; i < node->nout; i++)
        hash = mix(hash, (uintptr_t)node->type[i]);
    return hash;
}

static NodeId add_node(Graph *graph, Node node, uint64_t hash)
{
    if (graph->table.count == UINT32_MAX >> 2)
        bug("too many nodes");
    NodeId id = graph->table.count++;
    uint32_t block = id >> NODE_BLOCK_BITS, at = id & (NODE_BLOCK - 1);
    if (block == graph->block_count)
        add_block(graph);
    if (node.nin)
        node.in = arena_copy(graph->arena, node.in, node.nin * sizeof node.in[0]);
    graph->table.blocks[block][at] = node;
    graph->sides[block][at] = (Side){graph->here, is_step(graph, node.op, node.in, node.nin,
                                                          node.type[0])};
    table_insert(graph->arena, &graph->nodes, hash, id);
    return id;
}

// Output 0 of the node, which is made if there is none like it.
static Val find_node(Graph *graph, const Node *node)
{
    uint64_t hash = node_hash(node);
    uint32_t probe = 0;
    for (uint32_t item; (item = table_next(&graph->nodes, hash, &probe));)
        if (node_equal(graph_node(graph, item), node))
            return val_of(item, 0);
    return val_of(add_node(graph, *node, hash), 0);
}

Val graph_make(Graph *graph, Op op, const Val *in, uint32_t nin, const Attr *attr,
               const Type *types)
{
    Attr clean = attr ? *attr : (Attr){0};
    for (uint32_t i = 0; i < nin; i++)
        if (!in[i])
            return 0;
    Type out[MAX_OUT];
    uint32_t nout = type_infer(graph, op, in, nin, &clean, types, out);
    if (!nout)
        return 0;
    if (op == OP_CONST || op == OP_PAD)
        clean.real = dtype_round(out[0].dtype, clean.real);
    if (clean.text)
        clean.text = intern(clean.text);

    Node node = {.op = op, .nin = nin, .nout = nout, .in = in, .attr = intern_attr(graph, &clean)};
    for (uint32_t i = 0; i < nout; i++)
        node.type[i] = intern_type(graph, &out[i]);
    return find_node(graph, &node);
}

Val graph_remake(Graph *graph, const Node *like, const Val *in)
{
    bool same = true;
    for (uint32_t i = 0; i < like->nin && same; i++)
        same = in[i] && val_type(graph, in[i]) == val_type(graph, like->in[i]);
    if (same) {
        Node node = *like;
        node.in = in;
        return find_node(graph, &node);
    }
    Type types[MAX_OUT];
    for (uint32_t i = 0; i < like->nout; i++)
        types[i] = *like->type[i];
    return graph_make(graph, like->op, in, like->nin, like->attr, types);
}
