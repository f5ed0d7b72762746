// Fusion: which nodes one kernel computes.
//
// At -O0 each node that is no view is a kernel of its own. Above that, in two steps:
//
// 1. Epilogues. From each contraction, convolution and norm the only reader is followed as long as
//    the kernel's epilogue can compute it (fuse_epilogue.c).
//    An intermediate value that something else reads ends the chain, so nothing is computed twice.
//    Gradients of weights that are used several times become chains of such residuals: each
//    contribution is added by the kernel that computes it, to what the one before it left.
//    What a product reads may be normalized as it is loaded, and the table of a norm made with what
//    it stores: fuse_norms.c. What attention reads may be turned by angles as it is loaded:
//    fuse_rotary.c.
// 2. Elementwise groups. Nodes are taken from the last to the first. One whose readers all belong
//    to one elementwise group of the same iteration space joins it (smaller ones, which would be
//    computed again for each element, only if they are cheap). A cheap node with one tensor operand
//    whose readers are spread over groups is computed in each of them. Every other one starts a
//    group.
//
// At -O2 the result of an elementwise group may lie in a part of a larger value that dies there.
//
// A member is read only inside its group, and all members lead to the group's result; so no path
// leaves a group and comes back, and the groups have a topological order.
//
// The pass hands over Group records only: what a group holds is the joint at which deeper fusion
// (reductions with prologues, segments) is added.
#include <stdlib.h>
#include <string.h>

#include "compiler/plan.h"

enum { MAX_MEMBERS = 40 };

typedef struct {
    Work *work;
    const Graph *graph;
    size_t group_capacity;
    uint32_t *size;            // by local number of the group's first result: members so far
    bool *loaded, *behind;     // by local number: find_norm_loads, find_behind_norms
    bool *resampled;           // by local number: find_resamples
    Rotaries rotaries;
} Fuse;

static const Node *node_at(const Work *work, uint32_t local)
{
    return graph_node(work->module->graph, work->nodes[local]);
}

static bool is_source(const Node *node)
{
    return op_info[node->op].class == CLASS_SOURCE && node->op != OP_RANDOM;
}

// A node that an elementwise kernel computes; swap_pairs is a way to load (element i ^ 1).
static bool is_pointwise(const Work *work, uint32_t local)
{
    const Node *node = node_at(work, local);
    return !work->step[local] && !work->view[local] &&
           (op_info[node->op].class == CLASS_ELEMENTWISE || node->op == OP_SWAP_PAIRS);
}

static bool is_cheap(Op op)
{
    switch ((int)op) {
    case OP_NEG: case OP_ABS: case OP_RELU: case OP_NOT: case OP_CAST: case OP_ADD: case OP_SUB:
    case OP_MUL: case OP_MIN: case OP_MAX: case OP_EQ: case OP_NE: case OP_LT: case OP_LE:
    case OP_AND: case OP_OR: case OP_WHERE: case OP_SWAP_PAIRS:
        return true;
    default:
        return false;
    }
}

static Group *add_group(Fuse *fuse, GroupKind kind, NodeId anchor)
{
    Work *work = fuse->work;
    work->groups =
        grow_array(work->groups, &fuse->group_capacity, work->group_count, sizeof(Group));
    Group *group = &work->groups[work->group_count++];
    const Node *node = graph_node(fuse->graph, anchor);
    *group = (Group){.kind = kind, .anchor = anchor, .act = OP_STOP_GRADIENT};
    group->space = node->type[0];
    group->result_count = node->nout;
    work->owner[local_of(work, val_of(anchor, 0))] = work->group_count;
    return group;
}

// ---- groups of libraries' kernels ----

// Outputs of the anchor that something reads.
static void choose_results(Work *work, Group *group)
{
    const Node *anchor = graph_node(work->module->graph, group->anchor);
    NodeId user;
    for (uint32_t out = 0; out < anchor->nout; out++) {
        Val val = val_of(group->anchor, out);
        if (out == 0 || count_users(work, val, &user) > 0 ||
            (work->kept[local_of(work, val)] && anchor->nout > 1))
            group->results[out] = val;
    }
}

static bool is_norm(Op op)
{
    return op == OP_GROUP_NORM || op == OP_LAYER_NORM || op == OP_GROUP_NORM_GRAD ||
           op == OP_LAYER_NORM_GRAD;
}

static void group_libraries(Fuse *fuse)
{
    Work *work = fuse->work;
    for (uint32_t local = 0; local < work->count; local++) {
        const Node *node = node_at(work, local);
        if (work->step[local] || work->view[local] || work->owner[local] || is_source(node) ||
            is_pointwise(work, local) || fuse->resampled[local] || fuse->rotaries.inside[local])
            continue;
        if (node->op == OP_GROUP_NORM_TABLE && work->rungs & RUNG_EPILOGUES &&
            fuse_table(work, fuse->behind, local))
            continue;
        if (node->op == OP_CHANNEL_MOMENTS && work->rungs & RUNG_EPILOGUES &&
            fuse_moments(work, local))
            continue;
        Group *group = add_group(fuse, GROUP_LIBRARY, work->nodes[local]);
        choose_results(work, group);
        load_norm(work, fuse->loaded, group);
        load_rotaries(work, &fuse->rotaries, group);
        if (work->rungs & (is_norm(node->op) ? RUNG_NORMS : RUNG_EPILOGUES))
            match_epilogue(work, group);
    }
}

// Up-sampled values that something reads which cannot up-sample become groups after all.
static void group_resamples(Fuse *fuse)
{
    Work *work = fuse->work;
    for (uint32_t local = 0; local < work->count; local++) {
        if (!fuse->resampled[local] || is_resampled_by_all(work, fuse->loaded, local))
            continue;
        fuse->resampled[local] = false;
        add_group(fuse, GROUP_LIBRARY, work->nodes[local])->results[0] =
            val_of(work->nodes[local], 0);
    }
    work->resampled = fuse->resampled;
}

// ---- elementwise groups ----

// The elementwise group that all readers of node `local` belong to; 0 if there is none, and then
// *pointwise tells whether all readers are elementwise nodes.
static uint32_t common_group(const Fuse *fuse, uint32_t local, bool *pointwise)
{
    const Work *work = fuse->work;
    uint32_t group = 0;
    bool same = true;
    *pointwise = true;
    uint32_t begin = work->user_first[local], end = work->user_first[local + 1];
    for (uint32_t i = begin; i < end; i++) {
        uint32_t user = local_of(work, val_of(work->users[i], 0)), owner = work->owner[user];
        if (!is_pointwise(work, user) || node_at(work, user)->op == OP_SWAP_PAIRS ||
            fuse->rotaries.inside[user] ||
            (owner && work->groups[owner - 1].kind != GROUP_ELEMENTWISE)) {
            *pointwise = false;
            return 0;
        }
        if (i == begin)
            group = owner;
        same &= owner == group && owner != 0;
    }
    return same ? group : 0;
}

static uint32_t count_tensors(const Work *work, const Node *node)
{
    uint32_t tensors = 0;
    for (uint32_t i = 0; i < node->nin; i++)
        tensors += !val_is_step(work, node->in[i]) &&
                   val_get(work->module->graph, node->in[i])->op != OP_CONST;
    return tensors;
}

// Whether the group reads `val` to turn it, or as a table to turn something by.
static bool reads_rotary(const Group *group, Val val)
{
    bool reads = false;
    for (uint32_t i = 0; i < 2; i++) {
        const RotaryOf *rotary = &group->rotary[i];
        reads |= rotary->x && (val == rotary->x || val == rotary->cos || val == rotary->sin);
    }
    return reads;
}

// Whether only kernels with an epilogue read node `local`, and none reads its value: the 1 + scale
// that a group norm computes by itself.
static bool is_absorbed(const Work *work, uint32_t local)
{
    uint32_t begin = work->user_first[local], end = work->user_first[local + 1];
    if (work->kept[local] || begin == end)
        return false;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t owner = work->owner[local_of(work, val_of(work->users[i], 0))];
        if (!owner || work->groups[owner - 1].kind != GROUP_LIBRARY)
            return false;
        const Group *group = &work->groups[owner - 1];
        Val val = val_of(work->nodes[local], 0);
        if (group->anchor == work->users[i] || val == group->bias || val == group->residual ||
            val == group->scale || val == group->shift || val == group->added[1] ||
            val == group->added[2] || reads_rotary(group, val))
            return false;
    }
    return true;
}

static void group_pointwise(Fuse *fuse)
{
    Work *work = fuse->work;
    for (uint32_t local = work->count; local-- > 0;) {
        if (work->owner[local] || !is_pointwise(work, local) || fuse->loaded[local] ||
            fuse->rotaries.inside[local] || is_absorbed(work, local))
            continue;
        const Node *node = node_at(work, local);
        bool pointwise = false;
        uint32_t group = 0;
        bool inside = work->rungs & RUNG_ELEMENTWISE && !work->kept[local];
        if (inside)
            group = common_group(fuse, local, &pointwise);
        inside &= pointwise && work->user_first[local] < work->user_first[local + 1];
        if (inside && node->op == OP_SWAP_PAIRS)
            continue;
        if (inside && group && fuse->size[group] < MAX_MEMBERS &&
            (shape_equal(node->type[0], work->groups[group - 1].space) || is_cheap(node->op))) {
            work->owner[local] = group;
            fuse->size[group]++;
        } else if (!(inside && is_cheap(node->op) && count_tensors(work, node) <= 1)) {
            Group *made = add_group(fuse, GROUP_ELEMENTWISE, work->nodes[local]);
            made->results[0] = val_of(work->nodes[local], 0);
            fuse->size[work->group_count] = 1;
        }
    }
}

bool group_inlines(const Work *work, uint32_t group, Val val)
{
    uint32_t local = local_of(work, val);
    return is_pointwise(work, local) &&
           (work->owner[local] == 0 || work->owner[local] == group + 1);
}

// ---- members and reads ----

typedef struct {
    Val *at;
    size_t capacity;
    uint32_t count;
} ValList;

static void list_add(ValList *list, Val val)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i] == val)
            return;
    list->at = grow_array(list->at, &list->capacity, list->count, sizeof *list->at);
    list->at[list->count++] = val;
}

static void walk_pointwise(const Work *work, uint32_t group, Val val, ValList *reads,
                           ValList *members)
{
    for (uint32_t i = 0; i < members->count; i++)
        if (members->at[i] == val_node(val))
            return;
    list_add(members, val_node(val));
    const Node *node = val_get(work->module->graph, val);
    for (uint32_t i = 0; i < node->nin; i++) {
        if (node->op != OP_SWAP_PAIRS && group_inlines(work, group, node->in[i]))
            walk_pointwise(work, group, node->in[i], reads, members);
        else
            list_add(reads, node->in[i]);
    }
}

// What a kernel reads for `val`: itself, or what it is up-sampled from.
static void list_read(const Work *work, ValList *reads, Val val)
{
    bool resampled = work->resampled[local_of(work, val)];
    list_add(reads, resampled ? val_get(work->module->graph, val)->in[0] : val);
}

// What the kernel of a library reads for operand `i` of its node.
static Val operand_read(const Work *work, const Group *group, uint32_t i)
{
    const Node *node = graph_node(work->module->graph, group->anchor);
    uint32_t first = node->op == OP_ATTENTION_GRAD ? 1 : 0;        // q
    if (group->norm.x && i == group->norm_operand)
        return group->norm.x;
    return i >= first && i < first + 2 && group->rotary[i - first].x ? group->rotary[i - first].x
                                                                     : node->in[i];
}

static int compare_nodes(const void *x, const void *y)
{
    NodeId left = *(const NodeId *)x, right = *(const NodeId *)y;
    return left < right ? -1 : left > right;
}

static void finish_group(Work *work, uint32_t number)
{
    Group *group = &work->groups[number];
    ValList reads = {.count = 0}, members = {.count = 0};
    if (group->kind == GROUP_ELEMENTWISE) {
        for (uint32_t i = 0; i < group->result_count; i++)
            walk_pointwise(work, number, group->results[i], &reads, &members);
    } else {
        const Node *node = graph_node(work->module->graph, group->anchor);
        list_add(&members, group->anchor);
        const Node *table = group->table ? graph_node(work->module->graph, group->table) : NULL;
        for (uint32_t i = 0; i < node->nin; i++)
            list_read(work, &reads, operand_read(work, group, i));
        for (uint32_t i = 1; table && i < table->nin; i++)
            list_add(&reads, table->in[i]);
        Val extra[] = {group->bias,  group->residual, group->scale,  group->shift,
                       group->added[1], group->added[2], group->norm.a, group->norm.d,
                       group->rotary[0].cos, group->rotary[0].sin, group->rotary[1].cos,
                       group->rotary[1].sin};
        for (uint32_t i = 0; i < sizeof extra / sizeof *extra; i++)
            if (extra[i])
                list_read(work, &reads, extra[i]);
    }
    qsort(members.at, members.count, sizeof *members.at, compare_nodes);
    group->reads = arena_alloc(work->arena, (reads.count + 1) * sizeof(Val));
    group->members = arena_alloc(work->arena, (members.count + 1) * sizeof(NodeId));
    if (reads.count)
        memcpy(group->reads, reads.at, reads.count * sizeof(Val));
    memcpy(group->members, members.at, members.count * sizeof(NodeId));
    group->read_count = reads.count;
    group->member_count = members.count;
    free(reads.at);
    free(members.at);
}

// ---- results within an operand ----

// Whether all that read `val` are products of matrices, which take strided operands.
static bool only_products_read(const Work *work, Val val)
{
    const Graph *graph = work->module->graph;
    uint32_t local = local_of(work, val);
    bool fine = !work->kept[local] && work->user_first[local] < work->user_first[local + 1];
    for (uint32_t i = work->user_first[local]; fine && i < work->user_first[local + 1]; i++) {
        NodeId user = work->users[i];
        uint32_t at = local_of(work, val_of(user, 0)), owner = work->owner[at];
        if (work->view[at])
            fine = only_products_read(work, val_of(user, 0));
        else
            fine = graph_node(graph, user)->op == OP_CONTRACT && owner &&
                   work->groups[owner - 1].anchor == user;
    }
    return fine;
}

// Whether an element that `other` shows can be an element of `view` of another index: the two have
// the same strides, and are the same, or pieces of one axis that do not meet.
static bool walk_apart(const View *view, const View *other, const Type *type)
{
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_equal(view->stride[axis], other->stride[axis]))
            return false;
    int64_t apart = llabs(other->offset.fixed - view->offset.fixed), extent = 1;
    if (other->offset.batch != view->offset.batch)
        return false;
    for (uint32_t axis = type->rank; axis-- > 0;) {
        if (dim_is_one(type->dim[axis]))
            continue;
        if (view->stride[axis].n < extent || (view->stride[axis].n == 0))
            return false;          // elements of the view itself meet, or are turned round
        // from here on out, steps are longer than both pieces together
        if (apart > 0 && apart >= extent && view->stride[axis].n >= apart + extent)
            apart = 0;
        extent = view->stride[axis].n * (type->dim[axis].batch ? 1 : type->dim[axis].n);
        if (type->dim[axis].batch && axis > 0)
            for (uint32_t outer = 0; outer < axis; outer++)
                if (!dim_is_one(type->dim[outer]))
                    return false;
    }
    return apart == 0;
}

// A result that only products read may lie where a strided operand lay that dies in its kernel: a
// gate's product in the half of what the products gave. Saves a buffer where no operand is dense.
static void lie_within(Work *work, uint32_t number, const uint32_t *readers)
{
    const Group *group = &work->groups[number];
    const Graph *graph = work->module->graph;
    Val result = group->results[0];
    const View *found = NULL;
    if (group->kind != GROUP_ELEMENTWISE || group->result_count != 1 || within_of(work, result) ||
        !only_products_read(work, result))
        return;
    for (uint32_t i = 0; i < group->member_count; i++)
        if (graph_node(graph, group->members[i])->op == OP_SWAP_PAIRS)
            return;
    for (uint32_t i = 0; i < group->read_count; i++) {
        View view = view_of(work, group->reads[i]);
        uint32_t base = local_of(work, view.base);
        const Type *type = val_type(graph, group->reads[i]);
        if (!work->owner[base] || work->kept[base] || readers[base] != 1 ||
            !shape_equal(type, group->space) ||
            stored_dtype(work, group->reads[i]) != stored_dtype(work, result))
            continue;
        if (view_is_dense(&view, type))
            return;                // the planner will see to it
        bool fits = view.base == val_of(val_node(view.base), 0);
        for (uint32_t k = 0; k < group->read_count; k++) {
            View other = view_of(work, group->reads[k]);
            if (other.base == view.base)
                fits &= shape_equal(val_type(graph, group->reads[k]), type) &&
                        walk_apart(&view, &other, type);
        }
        if (fits && !found)
            found = work->view[local_of(work, group->reads[i])];
    }
    work->within[local_of(work, result) * MAX_OUT] = (View *)(uintptr_t)found;
}

static void find_within(Work *work)
{
    uint32_t *readers = arena_alloc(work->arena, (work->count + 1) * sizeof *readers);
    for (uint32_t g = 0; g < work->group_count; g++) {
        const Group *group = &work->groups[g];
        for (uint32_t i = 0; i < group->read_count; i++) {
            uint32_t base = local_of(work, base_of(work, group->reads[i]));
            bool again = false;
            for (uint32_t k = 0; k < i; k++)
                again |= local_of(work, base_of(work, group->reads[k])) == base;
            readers[base] += !again;
        }
    }
    for (uint32_t i = 0; i < work->variant->output_count; i++)     // those never die
        readers[local_of(work, base_of(work, work->variant->outputs[i].val))] += 2;
    for (uint32_t g = 0; g < work->group_count; g++)
        lie_within(work, g, readers);
}

void fuse_groups(Work *work)
{
    Fuse fuse = {.work = work, .graph = work->module->graph};
    work->owner = arena_alloc(work->arena, (work->count + 1) * sizeof *work->owner);
    fuse.size = arena_alloc(work->arena, (work->count + 2) * sizeof *fuse.size);
    fuse.loaded = find_norm_loads(work);
    fuse.behind = find_behind_norms(work);
    fuse.resampled = find_resamples(work);
    fuse.rotaries = find_rotaries(work);
    group_libraries(&fuse);
    group_resamples(&fuse);
    group_pointwise(&fuse);
    if (work->groups) {        // from the heap to the plan's arena
        Group *groups = arena_alloc(work->arena, work->group_count * sizeof *groups);
        memcpy(groups, work->groups, work->group_count * sizeof *groups);
        free(work->groups);
        work->groups = groups;
    }
    for (uint32_t i = 0; i < work->group_count; i++)
        finish_group(work, i);
    if (work->rungs & RUNG_BATCHING)
        sum_groups(work);
    if (work->rungs & RUNG_MEMORY && !work->taps)
        find_within(work);
}

void print_groups(FILE *out, const Work *work)
{
    const Graph *graph = work->module->graph;
    fprintf(out, "plan %s -O%d: %u nodes, %u groups\n", work->entry->name, work->level, work->count,
            work->group_count);
    for (uint32_t i = 0; i < work->group_count; i++) {
        const Group *group = &work->groups[work->schedule ? work->schedule[i] : i];
        fprintf(out, "  ");
        for (uint32_t k = 0; k < group->result_count; k++)
            if (group->results[k])
                fprintf(out, "%%%u.%u %s ", val_node(group->results[k]), val_out(group->results[k]),
                        type_text(val_type(graph, group->results[k])));
        fprintf(out, "=");
        for (uint32_t k = 0; k < group->member_count; k++)
            fprintf(out, " %s", op_info[graph_node(graph, group->members[k])->op].name);
        fprintf(out, "%s%s%s%s%s%s%s%s%s", group->norm.x ? " norm" : "",
                group->rotary[0].x || group->rotary[1].x ? " rotary" : "",
                group->table ? " table" : "", group->moments ? " moments" : "",
                group->scale ? " scale+shift" : "", group->bias ? " bias" : "",
                group->gate ? " gate" : "", group->residual ? " residual" : "",
                group->added[1] || group->added[2] ? " added" : "");
        if (group->act != OP_STOP_GRADIENT)
            fprintf(out, " %s", op_info[group->act].name);
        fprintf(out, " (");
        for (uint32_t k = 0; k < group->read_count; k++)
            fprintf(out, "%s%%%u.%u", k ? " " : "", val_node(group->reads[k]),
                    val_out(group->reads[k]));
        fprintf(out, ")\n");
    }
}
