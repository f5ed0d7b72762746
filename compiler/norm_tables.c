// GroupNorm taken apart, where products read what it gives.
//
//   act(norm(x) (1 + scale) + shift)   is   act(x a + d),
//
// with a and d one number for each image and channel, the norm's table (group_norm_table).
// Where all that read the left side are convolutions, or contractions over the channels, they
// can normalize x as they load it (fuse_norms.c): the normalized value is never stored, and
// where the kernel that makes x can take the statistics of what it stores, there is no kernel
// for the norm at all.
//
// This pass writes the right side, once for each shape that a reader wants: reshapes and
// repetitions (nearest up-sampling) between are applied to x. So are slices that elementwise
// operations read, such as the parts of a block that pooling adds up: no element is in two of them,
// and the kernel that reads them normalizes each where it needs it. Mean and rstd, which gradients
// read, become those of the table. It is not done
//   - where normalizing costs more than storing: a GPU's kernel loads, and normalizes, an element
//     once for each tap and each block of rows of its product. That must take no more time than the
//     bytes that are saved, or be little against the product itself;
//   - where something else reads the normalized value, or what lies between: it has to be stored
//     anyway, and a norm is the better kernel for that;
//   - where the values of a plan are stored as bf16 and a convolution reads them, or a product for
//     which wgmma is worth more than a launch: wgmma's operands are not normalized on their way.
//
// Products of parts. Where parts of what a product makes, cut along its positions, are
// normalized each for itself, the product itself is cut: w x + bias + residual for the positions
// of each part. They are one launch with the same weights (batch.c), and each kernel can make
// the table of its part.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum {
    MAX_PARTS = 8,             // PV_MAX_PARTS of kernel_args.h
    LOAD_ROWS = 128,           // rows of a product that share a load
    OPS_A_BYTE = 16,           // operations in the time that a byte is moved
    ACT_OPS = 4, NORM_OPS = 2, // operations of an activation, of x a + d
    LITTLE = 16,               // of a product's operations this part is little
    // in mixed precision, of GPUs whose newest kernels read operands as they lie (TMA, wgmma)
    TENSOR_OPS_A_BYTE = 200,   // operations of theirs in the time that a byte is moved
    LAUNCH_BYTES = 12000000,   // bytes that are moved in the time of a launch
    USUAL_BATCH = 4
};

// A norm with what follows it, up to the value that products read.
typedef struct {
    NodeId norm;
    Val last, scale, shift;    // shift, scale: 0 without
    Op act;                    // OP_STOP_GRADIENT: none
    Val table;                 // once it is made
} Chain;

typedef struct {
    Rewrite own;
    bool *kept;                // by NodeId: an output
    uint32_t *user_first;      // users of node id: users[user_first[id] .. user_end[id]]
    uint32_t *user_end;
    NodeId *users;
    uint32_t *chain_of;        // by NodeId: chain + 1 of the last node
    bool *cut;                 // by NodeId: only parts of it are made
    bool *parts_of;            // by NodeId: which are put together
    uint32_t *moved_of;        // by NodeId: chain + 1 of which it is the last node's value, moved
    bool *replaced;            // by NodeId: in a chain, or between it and its readers
    Chain *chains;
    uint32_t chain_count;
    size_t chain_capacity;
} Apart;

// ---- who reads what ----

static void list_users(Apart *a, Arena *arena)
{
    a->user_first = arena_alloc(arena, a->own.total * sizeof *a->user_first);
    a->user_end = arena_alloc(arena, a->own.total * sizeof *a->user_end);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t n = 0; n < a->own.count; n++) {
            const Node *node = graph_node(a->own.graph, a->own.nodes[n]);
            for (uint32_t i = 0; i < node->nin; i++) {
                uint32_t *end = &a->user_end[val_node(node->in[i])];
                if (pass == 1)
                    a->users[*end] = a->own.nodes[n];
                ++*end;
            }
        }
        if (pass == 1)
            break;
        uint32_t total = 0;
        for (uint32_t n = 0; n < a->own.count; n++) {
            NodeId id = a->own.nodes[n];
            a->user_first[id] = total;
            total += a->user_end[id];
            a->user_end[id] = a->user_first[id];
        }
        a->users = arena_alloc(arena, (total + 1) * sizeof *a->users);
    }
}

// The one node that reads `val`, once; 0: there are none or several, or it is an output.
static NodeId only_user(const Apart *a, Val val)
{
    NodeId id = val_node(val), found = 0;
    for (uint32_t i = a->user_first[id]; i < a->user_end[id]; i++) {
        const Node *user = graph_node(a->own.graph, a->users[i]);
        bool reads = false;
        for (uint32_t k = 0; k < user->nin; k++)
            reads |= user->in[k] == val;
        if (reads && found)
            return 0;
        found = reads ? a->users[i] : found;
    }
    return a->kept[id] ? 0 : found;
}

// ---- chains ----

static Val other_operand(const Node *node, Val val)
{
    return node->in[0] == node->in[1] ? 0 : node->in[0] == val ? node->in[1] : node->in[0];
}

static bool is_one(const Graph *graph, Val val)
{
    const Node *node = val_get(graph, val);
    return node->op == OP_CONST && node->attr->real == 1.0;
}

// [b or 1, c, 1...], of a value of `type`
static bool is_modulation(const Graph *graph, Val val, const Type *type)
{
    const Type *shape = val_type(graph, val);
    bool fits = shape->rank == type->rank && dim_equal(shape->dim[1], type->dim[1]) &&
                (dim_is_one(shape->dim[0]) || dim_equal(shape->dim[0], type->dim[0]));
    for (uint32_t axis = 2; fits && axis < shape->rank; axis++)
        fits = dim_is_one(shape->dim[axis]);
    return fits && !graph_is_step(graph, val);
}

// y (1 + scale) + shift behind chain->last.
static void follow_modulation(Apart *a, Chain *chain)
{
    const Graph *graph = a->own.graph;
    const Type *type = val_type(graph, chain->last);
    NodeId product_id = only_user(a, chain->last);
    const Node *product = product_id ? graph_node(graph, product_id) : NULL;
    Val factor = product && product->op == OP_MUL ? other_operand(product, chain->last) : 0;
    const Node *plus = factor ? val_get(graph, factor) : NULL;
    NodeId sum_id = factor ? only_user(a, val_of(product_id, 0)) : 0;
    const Node *sum = sum_id ? graph_node(graph, sum_id) : NULL;
    if (!sum || sum->op != OP_ADD || plus->op != OP_ADD)
        return;
    Val scale = is_one(graph, plus->in[0])   ? plus->in[1]
                : is_one(graph, plus->in[1]) ? plus->in[0]
                                             : 0;
    Val shift = other_operand(sum, val_of(product_id, 0));
    if (!scale || !shift || !is_modulation(graph, scale, type) ||
        !is_modulation(graph, shift, type) ||
        !shape_equal(val_type(graph, scale), val_type(graph, shift)))
        return;
    chain->scale = scale;
    chain->shift = shift;
    chain->last = val_of(sum_id, 0);
}

// The operand of a contraction out[b, o, n...] = sum over c of w[o, c] x[b, c, n...] that is x;
// -1: it is none.
int pointwise_operand(const Graph *graph, const Node *node)
{
    if (node->op != OP_CONTRACT)
        return -1;
    const int64_t *n = node->attr->n;
    for (int turned = 0; turned < 2; turned++) {
        int64_t x_rank = n[turned], w_rank = n[1 - turned], rank = n[2];
        const int64_t *first = n + 3, *out = first + n[0] + n[1];
        const int64_t *x = turned ? first + n[0] : first, *w = turned ? first : first + n[0];
        const Type *type = val_type(graph, node->in[1 - turned]);
        if (w_rank != 2 || x_rank != rank || rank < 3 || out[0] != x[0] || out[1] != w[0] ||
            x[1] != w[1] || x[0] == w[0] || x[0] == w[1] || type->dim[0].batch ||
            type->dim[1].batch)
            continue;
        bool same = true;
        for (int64_t i = 2; i < rank; i++)
            same &= out[i] == x[i];
        if (same)
            return turned;
    }
    return -1;
}

// The axis of operand `which` of a contraction that has `label`; -1: none.
static int label_axis(const Node *node, int which, int64_t label)
{
    const int64_t *n = node->attr->n, *labels = n + 3 + (which ? n[0] : 0);
    for (int64_t i = 0; i < n[which]; i++)
        if (labels[i] == label)
            return (int)i;
    return -1;
}

int image_operand(const Graph *graph, const Node *node)
{
    int operand = pointwise_operand(graph, node);
    if (operand >= 0 || node->op != OP_CONTRACT || node->type[0]->rank != 3 ||
        node->type[0]->dim[1].batch || node->type[0]->dim[2].batch)
        return operand;
    const int64_t *n = node->attr->n, *out = n + 3 + n[0] + n[1];
    for (int x = 0; x < 2; x++) {
        bool fits = true;
        for (int axis = 0; axis < 3; axis++)
            fits &= label_axis(node, axis == 1 ? 1 - x : x, out[axis]) >= 0 &&
                    label_axis(node, axis == 1 ? x : 1 - x, out[axis]) < 0;
        if (fits)
            return x;
    }
    return -1;
}

// Whether node `id`, which reads `val`, could normalize it as it loads it.
static bool could_load(const Apart *a, NodeId id, Val val)
{
    const Node *node = graph_node(a->own.graph, id);
    if (node->op == OP_CONV)
        return !is_mixed_plan(a->own.work) && node->in[0] == val && node->in[1] != val;
    int operand = pointwise_operand(a->own.graph, node);
    return operand >= 0 && node->in[operand] == val && node->in[1 - operand] != val;
}

// What lies between a norm and `val`, a reader's operand: channels stay channels.
typedef enum { AS_IS, RESHAPED, REPEATED, RESAMPLED, SLICED, NO_MOVE } Moved;

static Moved move_on(const Graph *graph, Moved moved, const Node *user)
{
    const Type *type = val_type(graph, user->in[0]), *to = user->type[0];
    bool kept = to->rank > 2 && dim_equal(type->dim[0], to->dim[0]) &&
                dim_equal(type->dim[1], to->dim[1]);
    if (!kept)
        return NO_MOVE;
    if (user->op == OP_RESHAPE)
        return moved == AS_IS ? RESHAPED : moved == REPEATED ? RESAMPLED : NO_MOVE;
    if (user->op == OP_EXPAND)
        return moved == RESHAPED ? REPEATED : NO_MOVE;
    if (user->op == OP_SLICE)
        return moved == AS_IS || moved == RESHAPED || moved == SLICED ? SLICED : NO_MOVE;
    return NO_MOVE;
}

// Whether all that read `val`, moved so, could, some of them through more movements. `sliced`
// counts the elements of an image that elementwise operations read instead. mark > 0: they can, and
// the values that they read are of chain mark - 1.
static bool all_could_load(Apart *a, Val val, Moved moved, int64_t *sliced, uint32_t mark)
{
    NodeId id = val_node(val);
    bool leaf = false;
    if (a->kept[id] || a->user_first[id] == a->user_end[id])
        return false;
    for (uint32_t i = a->user_first[id]; i < a->user_end[id]; i++) {
        const Node *user = graph_node(a->own.graph, a->users[i]);
        bool loads = moved != REPEATED && moved != SLICED && could_load(a, a->users[i], val);
        bool adds = moved == SLICED && op_info[user->op].class == CLASS_ELEMENTWISE;
        leaf |= adds;
        if (mark && moved != AS_IS && (loads || adds))
            a->moved_of[id] = mark;
        if (loads || adds)
            continue;
        Moved next = move_on(a->own.graph, moved, user);
        if (next == NO_MOVE || !all_could_load(a, val_of(a->users[i], 0), next, sliced, mark))
            return false;
        if (mark)
            a->replaced[a->users[i]] = true;
    }
    Dim count;
    if (leaf && type_count(val_type(a->own.graph, val), &count))
        *sliced += count.n;
    return true;
}

// What the readers of `val` compute of each of its elements: the product's operations, and how
// often they load it.
static void add_loads(const Apart *a, Val val, double *own, double *loads)
{
    NodeId id = val_node(val);
    for (uint32_t i = a->user_first[id]; i < a->user_end[id]; i++) {
        const Node *user = graph_node(a->own.graph, a->users[i]);
        Val moved = val_of(a->users[i], 0);
        if (user->op == OP_EXPAND) {
            Dim before, after;
            double once = *own, once_loaded = *loads;
            type_count(val_type(a->own.graph, val), &before);
            type_count(user->type[0], &after);
            add_loads(a, moved, own, loads);
            *own = once + (*own - once) * (double)after.n / (double)before.n;
            *loads = once_loaded + (*loads - once_loaded) * (double)after.n / (double)before.n;
            continue;
        }
        if (user->op == OP_RESHAPE || user->op == OP_SLICE) {
            add_loads(a, moved, own, loads);
            continue;
        }
        if (op_info[user->op].class == CLASS_ELEMENTWISE)
            continue;
        const int64_t *n = user->attr->n;
        double rows = (double)user->type[0]->dim[1].n, taps = 1;
        if (user->op == OP_CONV) {
            const Type *w = val_type(a->own.graph, user->in[1]);
            rows /= (double)n[1];
            for (uint32_t axis = 2; axis < w->rank; axis++)
                taps *= (double)w->dim[axis].n / (double)n[axis];
        }
        *own += 2 * taps * rows;
        *loads += taps * (rows > LOAD_ROWS ? rows / LOAD_ROWS : 1);
    }
}

// In mixed precision. A kernel that normalizes multiplies by mma.sync on every GPU, at some two
// thirds of wgmma's rate, and saves a launch that reads and writes the operand.
static bool pays_mixed(const Apart *a, const Chain *chain, double own)
{
    const Type *type = val_type(a->own.graph, chain->last);
    double elements = 1, bytes = own / TENSOR_OPS_A_BYTE / 2 - 4;
    for (uint32_t axis = 0; axis < type->rank; axis++)
        elements *= (double)type->dim[axis].n * (type->dim[axis].batch ? USUAL_BATCH : 1);
    return elements * bytes <= LAUNCH_BYTES;
}

static bool pays(const Apart *a, const Chain *chain)
{
    double own = 0, loads = 0;
    add_loads(a, chain->last, &own, &loads);
    if (is_mixed_plan(a->own.work))
        return pays_mixed(a, chain, own);
    double cost = loads * (NORM_OPS + (chain->act != OP_STOP_GRADIENT ? ACT_OPS : 0));
    double bytes = (double)element_size(a->own.work->module, DT_F32);
    return cost <= OPS_A_BYTE * bytes || cost * LITTLE <= own;
}

// Who reads the statistics comes behind the chain, so that the table can be made at its end.
static bool statistics_wait(const Apart *a, const Chain *chain)
{
    for (uint32_t i = a->user_first[chain->norm]; i < a->user_end[chain->norm]; i++) {
        const Node *user = graph_node(a->own.graph, a->users[i]);
        for (uint32_t k = 0; k < user->nin; k++)
            if (val_node(user->in[k]) == chain->norm && val_out(user->in[k]) > 0 &&
                a->users[i] < val_node(chain->last))
                return false;
    }
    return true;
}

static void find_chain(Apart *a, NodeId id)
{
    const Graph *graph = a->own.graph;
    const Node *norm = graph_node(graph, id);
    Chain chain = {.norm = id, .last = val_of(id, 0), .act = OP_STOP_GRADIENT};
    if (norm->type[0]->rank < 3 || a->kept[id])
        return;
    follow_modulation(a, &chain);
    NodeId user = only_user(a, chain.last);
    Op op = user ? graph_node(graph, user)->op : OP_STOP_GRADIENT;
    if (op == OP_SILU || op == OP_GELU || op == OP_RELU) {
        chain.act = op;
        chain.last = val_of(user, 0);
    }
    Dim count;
    int64_t sliced = 0;
    if (!all_could_load(a, chain.last, AS_IS, &sliced, 0) || !statistics_wait(a, &chain) ||
        !pays(a, &chain) || !type_count(val_type(graph, chain.last), &count) || sliced > count.n)
        return;
    a->chains = grow_array(a->chains, &a->chain_capacity, a->chain_count, sizeof *a->chains);
    a->chains[a->chain_count++] = chain;
    a->chain_of[val_node(chain.last)] = a->chain_count;
    all_could_load(a, chain.last, AS_IS, &sliced, a->chain_count);
    // what lies between is made no more
    for (Val val = val_of(id, 0); val != chain.last; val = val_of(only_user(a, val), 0))
        a->replaced[val_node(val)] = true;
    a->replaced[val_node(chain.last)] = true;
}

// ---- products of parts ----

// Whether `val` is w x [b, o, n], with sums behind it that nothing else reads.
static bool is_product_chain(const Apart *a, Val val)
{
    const Node *node = val_get(a->own.graph, val);
    if (node->op == OP_CONTRACT)
        return node->type[0]->rank == 3 && image_operand(a->own.graph, node) >= 0;
    for (uint32_t i = 0; node->op == OP_ADD && i < 2; i++)
        if (only_user(a, node->in[i]) == val_node(val) &&
            shape_equal(val_type(a->own.graph, node->in[i]), node->type[0]) &&
            is_product_chain(a, node->in[i]))
            return true;
    return false;
}

// Whether a norm reads `val`, perhaps through movements and joined with others by channels.
static bool norm_reads(const Apart *a, Val val, int depth)
{
    NodeId id = val_node(val);
    for (uint32_t i = a->user_first[id]; i < a->user_end[id]; i++) {
        const Node *user = graph_node(a->own.graph, a->users[i]);
        if ((user->op == OP_GROUP_NORM && user->in[0] == val) ||
            (depth > 0 && (user->op == OP_RESHAPE || user->op == OP_CONCAT) &&
             norm_reads(a, val_of(a->users[i], 0), depth - 1)))
            return true;
    }
    return false;
}

// The slice of positions of `val`, or of it joined with other channels, that begins at `start`, if
// a norm reads it; NULL: there is none.
static const Node *slice_from(const Apart *a, Val val, int64_t start)
{
    NodeId id = val_node(val);
    const Node *found = NULL;
    for (uint32_t i = a->user_first[id]; i < a->user_end[id]; i++) {
        const Node *user = graph_node(a->own.graph, a->users[i]);
        const int64_t *n = user->attr->n;
        const Node *inner = user->op == OP_CONCAT && n[0] == 1
                                ? slice_from(a, val_of(a->users[i], 0), start)
                                : NULL;
        if (inner && (!found || inner->attr->n[2] < found->attr->n[2]))
            found = inner;
        if (user->op == OP_SLICE && n[0] == 2 && n[1] == start && n[2] > 1 &&
            (!found || n[2] < found->attr->n[2]) && norm_reads(a, val_of(a->users[i], 0), 2))
            found = user;
    }
    return found;
}

// Whether slices of its positions that norms read are all of a product; what else reads it finds
// the parts put together (place.c: they are made where that lies).
static bool is_cut_up(const Apart *a, NodeId id)
{
    const Type *type = graph_node(a->own.graph, id)->type[0];
    if (a->kept[id] || type->rank != 3 || type->dim[2].batch)
        return false;
    int64_t start = 0;
    uint32_t count = 0;
    for (const Node *slice; (slice = slice_from(a, val_of(id, 0), start)); count++)
        start += slice->attr->n[2];
    return start == type->dim[2].n && count > 1 && count <= PV_MAX_SEGMENTS &&
           is_product_chain(a, val_of(id, 0));
}

static void cut_chain(Apart *a, Val val)
{
    const Node *node = val_get(a->own.graph, val);
    a->cut[val_node(val)] = true;
    for (uint32_t i = 0; node->op == OP_ADD && i < 2; i++)
        if (only_user(a, node->in[i]) == val_node(val) &&
            shape_equal(val_type(a->own.graph, node->in[i]), node->type[0]) &&
            is_product_chain(a, node->in[i])) {
            cut_chain(a, node->in[i]);
            return;
        }
}

static bool find_cuts(Apart *a)
{
    bool any = false;
    const uint32_t rungs = RUNG_BATCHING | RUNG_EPILOGUES | RUNG_PLACEMENT;
    for (uint32_t n = 0; (a->own.work->rungs & rungs) == rungs && n < a->own.count; n++) {
        NodeId id = a->own.nodes[n];
        Op op = graph_node(a->own.graph, id)->op;
        if ((op != OP_ADD && op != OP_CONTRACT) || !is_cut_up(a, id))
            continue;
        cut_chain(a, val_of(id, 0));
        a->parts_of[id] = any = true;
    }
    return any;
}

// Positions from `start` on of a value that is made: a part that it is put together
// from, if it is one.
static Val slice_made(Apart *a, Val val, uint32_t axis, int64_t start, int64_t size)
{
    const Node *node = val_get(a->own.graph, val);
    int64_t at = 0;
    for (uint32_t i = 0; node->op == OP_CONCAT && node->attr->n[0] == axis && i < node->nin; i++) {
        int64_t extent = val_type(a->own.graph, node->in[i])->dim[axis].n;
        if (at == start && extent == size)
            return node->in[i];
        at += extent;
    }
    return g_slice(a->own.graph, val, axis, start, size);
}

// Those of a value that is cut.
static Val make_part(Apart *a, Val val, int64_t start, int64_t size)
{
    const Node *node = val_get(a->own.graph, val);
    Val in[2], made;
    if (dim_is_one(node->type[val_out(val)]->dim[2]))
        return a->own.map[val];
    if (!a->cut[val_node(val)]) {
        made = slice_made(a, a->own.map[val], 2, start, size);
    } else if (node->op == OP_ADD) {
        for (uint32_t i = 0; i < 2; i++)
            in[i] = make_part(a, node->in[i], start, size);
        made = g_binary(a->own.graph, OP_ADD, in[0], in[1]);
    } else {
        int operand = image_operand(a->own.graph, node);
        const int64_t *n = node->attr->n, *out = n + 3 + n[0] + n[1];
        in[operand] = slice_made(a, a->own.map[node->in[operand]],
                                 (uint32_t)label_axis(node, operand, out[2]), start, size);
        rewrite_turn(&a->own, in[operand], val_node(val));
        in[1 - operand] = a->own.map[node->in[1 - operand]];
        made = graph_make(a->own.graph, OP_CONTRACT, in, 2, node->attr, NULL);
    }
    rewrite_turn(&a->own, made, val_node(val));
    return made;
}

// All of them, put together.
static Val make_parts(Apart *a, NodeId id)
{
    Val part[PV_MAX_SEGMENTS];
    uint32_t count = 0;
    int64_t start = 0;
    for (const Node *slice; (slice = slice_from(a, val_of(id, 0), start)); count++) {
        part[count] = make_part(a, val_of(id, 0), start, slice->attr->n[2]);
        start += slice->attr->n[2];
    }
    return g_concat(a->own.graph, part, count, 2);
}

// ---- the right side ----

// What a value is put together from: parts of all its channels at other positions, or of all its
// positions with other channels.
typedef struct {
    Val at[MAX_PARTS];
    int64_t positions[MAX_PARTS];
    uint32_t count;
    bool channels;
} Pieces;

// Whether a product makes `val`, as far as its nodes can tell.
static bool is_product(const Apart *a, Val val)
{
    const Node *node = val_get(a->own.graph, val);
    if (node->op == OP_ADD)
        return is_product(a, node->in[0]) || is_product(a, node->in[1]);
    if (node->op == OP_RESHAPE && node->type[0]->rank > 2) {
        const Type *type = val_type(a->own.graph, node->in[0]);
        return dim_equal(type->dim[0], node->type[0]->dim[0]) &&
               dim_equal(type->dim[1], node->type[0]->dim[1]) && is_product(a, node->in[0]);
    }
    return node->op == OP_CONV || image_operand(a->own.graph, node) >= 0;
}

static bool find_pieces(const Apart *a, Val val, int64_t start, int64_t size, Pieces *pieces);

static bool add_piece(const Apart *a, Val val, Pieces *pieces)
{
    const Type *type = val_type(a->own.graph, val);
    int64_t positions = 1;
    for (uint32_t axis = 2; axis < type->rank; axis++)
        positions *= type->dim[axis].n;
    if (pieces->count == MAX_PARTS || !is_product(a, val))
        return false;
    pieces->at[pieces->count] = val;
    pieces->positions[pieces->count++] = positions;
    return true;
}

// The operands of a concat of channels, each one piece for these positions.
static bool find_channels(const Apart *a, const Node *concat, int64_t start, int64_t size,
                          Pieces *pieces)
{
    for (uint32_t i = 0; i < concat->nin; i++) {
        Pieces inner = {.count = 0};
        if (!find_pieces(a, concat->in[i], start, size, &inner) || inner.count > 1 ||
            !add_piece(a, inner.at[0], pieces))
            return false;
    }
    pieces->channels = true;
    return true;
}

// Positions start .. start + size - 1 of `val`.
static bool find_pieces(const Apart *a, Val val, int64_t start, int64_t size, Pieces *pieces)
{
    const Node *node = val_get(a->own.graph, val);
    const Type *type = node->type[val_out(val)];
    int64_t positions = 1, at = 0;
    for (uint32_t axis = 2; axis < type->rank; axis++)
        positions *= type->dim[axis].n;
    if (node->op == OP_RESHAPE && type->rank > 2 &&
        dim_equal(val_type(a->own.graph, node->in[0])->dim[1], type->dim[1]) &&
        dim_equal(val_type(a->own.graph, node->in[0])->dim[0], type->dim[0]))
        return find_pieces(a, node->in[0], start, size, pieces);
    if (node->op == OP_SLICE && type->rank == 3 && node->attr->n[0] == 2)
        return find_pieces(a, node->in[0], start + node->attr->n[1], size, pieces);
    if (node->op == OP_CONCAT && node->attr->n[0] == 1)
        return find_channels(a, node, start, size, pieces);
    if (node->op != OP_CONCAT || type->rank != 3 || node->attr->n[0] != 2)
        return start == 0 && size == positions && add_piece(a, val, pieces);
    for (uint32_t i = 0; i < node->nin; i++) {
        int64_t extent = val_type(a->own.graph, node->in[i])->dim[2].n, end = start + size;
        bool all = at >= start && at + extent <= end;
        if (at <= start && end <= at + extent && !all)
            return find_pieces(a, node->in[i], start - at, size, pieces);
        if (!all && at < end && start < at + extent)
            return false;          // it is cut
        if (all && (node->in[i] == val || !add_piece(a, node->in[i], pieces)))
            return false;
        at += extent;
    }
    return pieces->count > 0;
}

// Moments of what a norm's x is put together from, where products make its parts: they leave them
// (fuse_norms.c), and x need not be read again. 0: it is made in one piece, or by others. Plans
// with gradients read mean and rstd, and compute products again, so they take tables of x.
static Val moments_of(Apart *a, Val x, Attr *attr)
{
    const uint32_t rungs = RUNG_EPILOGUES | RUNG_PLACEMENT;
    const Type *type = val_type(a->own.graph, x);
    Pieces pieces = {.count = 0};
    int64_t positions = 1;
    bool gradients = false;
    for (uint32_t i = 0; i < a->own.work->variant->output_count; i++)
        gradients |= a->own.work->variant->outputs[i].kind == OUT_GRAD;
    for (uint32_t axis = 2; axis < type->rank; axis++)
        positions *= type->dim[axis].n;
    const Work *work = a->own.work;
    if (gradients || (work->rungs & rungs) != rungs ||
        !find_pieces(a, x, 0, positions, &pieces) || pieces.count < 2)
        return 0;
    Val parts[MAX_PARTS];
    for (uint32_t i = 0; i < pieces.count; i++)
        parts[i] = graph_make(a->own.graph, OP_CHANNEL_MOMENTS, &pieces.at[i], 1, &(Attr){0}, NULL);
    attr->count = pieces.channels ? 2 : 1 + pieces.count;
    for (uint32_t i = 0; i + 1 < (uint32_t)attr->count; i++)
        attr->n[1 + i] = pieces.positions[i];
    return g_concat(a->own.graph, parts, pieces.count, pieces.channels ? 3 : 1);
}

static void make_table(Apart *a, Chain *chain)
{
    const Node *norm = graph_node(a->own.graph, chain->norm);
    Val in[5] = {a->own.map[norm->in[0]], a->own.map[norm->in[1]], a->own.map[norm->in[2]]};
    Attr attr = *norm->attr;
    Val moments = moments_of(a, in[0], &attr);
    if (moments) {
        in[0] = moments;
        rewrite_turn(&a->own, moments, chain->norm);
    }
    if (chain->scale) {
        in[3] = a->own.map[chain->scale];
        in[4] = a->own.map[chain->shift];
    }
    chain->table =
        graph_make(a->own.graph, OP_GROUP_NORM_TABLE, in, chain->scale ? 5 : 3, &attr, NULL);
    if (!chain->table)
        bug("a norm's table: %s", graph_error(a->own.graph));
    rewrite_turn(&a->own, chain->table, chain->norm);
    for (uint32_t out = 1; out < 3; out++)
        a->own.map[val_of(chain->norm, out)] = chain->table + out;
}

// a (part 0) or d (part 1) as [b, c, 1...] of a rank.
static Val table_part(Apart *a, const Chain *chain, int64_t part, uint32_t rank)
{
    const Type *table = val_type(a->own.graph, chain->table);
    Dim dim[MAX_RANK] = {table->dim[0], table->dim[2]};
    for (uint32_t axis = 2; axis < rank; axis++)
        dim[axis] = dim_fixed(1);
    Val row = g_slice(a->own.graph, chain->table, 1, part, 1);
    rewrite_turn(&a->own, row, chain->norm);
    return g_reshape(a->own.graph, row, rank, dim);
}

// x, moved as `val` is from the chain's last value.
static Val move_input(Apart *a, const Chain *chain, Val val)
{
    Graph *graph = a->own.graph;
    if (val == chain->last)
        return a->own.map[graph_node(graph, chain->norm)->in[0]];
    const Node *node = val_get(graph, val);
    const Type *type = node->type[0];
    const int64_t *n = node->attr->n;
    Val x = move_input(a, chain, node->in[0]);
    x = node->op == OP_RESHAPE  ? g_reshape(graph, x, type->rank, type->dim)
        : node->op == OP_EXPAND ? g_expand(graph, x, type->dim)
                                : g_slice(graph, x, (uint32_t)n[0], n[1], n[2]);
    rewrite_turn(&a->own, x, val_node(chain->last));
    return x;
}

// act(x a + d), moved as `val` is.
static Val normalized(Apart *a, const Chain *chain, Val val)
{
    Graph *graph = a->own.graph;
    NodeId last = val_node(chain->last);
    const Type *type = val_type(graph, val);
    Val x = move_input(a, chain, val);
    Val parts[2] = {table_part(a, chain, 0, type->rank), table_part(a, chain, 1, type->rank)};
    Val y = g_binary(graph, OP_MUL, x, parts[0]);
    for (int i = 0; i < 2; i++)
        rewrite_turn(&a->own, parts[i], chain->norm);
    rewrite_turn(&a->own, y, last);
    y = g_binary(graph, OP_ADD, y, parts[1]);
    rewrite_turn(&a->own, y, last);
    return chain->act == OP_STOP_GRADIENT ? y : g_unary(graph, chain->act, y);
}

static void rebuild(Apart *a)
{
    for (uint32_t n = 0; n < a->own.count; n++) {
        NodeId id = a->own.nodes[n];
        const Node *node = graph_node(a->own.graph, id);
        uint32_t moved = a->moved_of[id];
        bool part = node->op == OP_SLICE && a->cut[val_node(node->in[0])];
        if ((a->cut[id] && !a->parts_of[id]) ||
            (a->replaced[id] && !a->chain_of[id] && !moved))
            continue;
        graph_at(a->own.graph, *graph_origin(a->own.graph, id));
        Val made;
        if (a->chain_of[id]) {
            Chain *chain = &a->chains[a->chain_of[id] - 1];
            make_table(a, chain);
            made = normalized(a, chain, val_of(id, 0));
            a->own.map[val_of(id, 0)] = made;
        } else {
            made = moved             ? normalized(a, &a->chains[moved - 1], val_of(id, 0))
                   : a->parts_of[id] ? make_parts(a, id)
                   : part ? slice_made(a, a->own.map[node->in[0]], (uint32_t)node->attr->n[0],
                                       node->attr->n[1], node->attr->n[2])
                          : rewrite_operands(&a->own, id);
            for (uint32_t k = 0; k < node->nout; k++)
                a->own.map[val_of(id, k)] = made + k;
        }
        if (!made)
            bug("norms taken apart: %s", graph_error(a->own.graph));
        rewrite_turn(&a->own, made, id);
    }
}

void take_norms_apart(Work *work)
{
    if (!(work->rungs & RUNG_NORMS) || (work->module->storage != DT_NONE && work->taps))
        return;
    Apart a = {.chains = NULL};
    Arena *scratch = arena_new_sparse();
    rewrite_begin(&a.own, work, scratch);
    uint32_t total = a.own.total;
    a.kept = arena_alloc(scratch, total);
    a.replaced = arena_alloc(scratch, total);
    a.chain_of = arena_alloc(scratch, total * sizeof *a.chain_of);
    a.cut = arena_alloc(scratch, total);
    a.parts_of = arena_alloc(scratch, total);
    a.moved_of = arena_alloc(scratch, total * sizeof *a.moved_of);
    for (uint32_t i = 0; i < work->variant->output_count; i++)
        a.kept[val_node(work->variant->outputs[i].val)] = true;
    list_users(&a, scratch);
    for (uint32_t n = 0; n < a.own.count; n++)
        if (graph_node(a.own.graph, a.own.nodes[n])->op == OP_GROUP_NORM)
            find_chain(&a, a.own.nodes[n]);
    if (find_cuts(&a) | (a.chain_count > 0)) {
        rewrite_start(&a.own, scratch);
        rebuild(&a);
        rewrite_end(&a.own);
    }
    free(a.chains);
    rewrite_free(&a.own);
    arena_free(scratch);
}
