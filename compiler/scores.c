// Attention taken apart: what the model says, step by step, with the scores in memory.
//
//   s = scale q k^T + mask      p = softmax(s)      o = p v
//
// and, for its gradient,
//
//   dv = p^T do      ds = p (do v^T - sum(do o))      dq = scale ds k      dk = scale ds^T q
//
// The one kernel that never stores scores is a fusion like any other, so a plan without
// RUNG_ATTENTION does not have it: this is how a framework runs attention that is written as two
// products and a softmax, and what the rung's gain is measured against. The softmax of the
// gradient is that of the forward pass (equal nodes are one), n m numbers a head that are stored in
// between.
#include <string.h>

#include "compiler/plan.h"

// A score that counts for nothing: its exp is 0 beside any other.
#define MASKED_SCORE (-1e30)

typedef struct {
    Rewrite own;
    NodeId from;               // attention or its gradient, of which it is the turn
} Scores;

// Labels of [..., n, d], [..., m, d] and [..., n, m]: "abnd", "abmd", "abnm".
typedef struct {
    char rows[MAX_RANK + 1], columns[MAX_RANK + 1], scores[MAX_RANK + 1];
} Labels;

static Labels labels_of(uint32_t rank)
{
    Labels labels = {.rows = ""};
    for (uint32_t i = 0; i < rank; i++)
        labels.rows[i] = labels.columns[i] = labels.scores[i] = (char)('a' + i);
    labels.columns[rank - 2] = labels.scores[rank - 1] = 'z';
    return labels;
}

// A new node stands where the one it is part of stood.
static Val part(Scores *s, Val made)
{
    if (!made)
        bug("attention taken apart: %s", graph_error(s->own.graph));
    rewrite_turn(&s->own, made, s->from);
    return made;
}

static Val scaled(Scores *s, Val x, double factor)
{
    if (factor == 1)
        return x;
    Val number = part(s, g_const(s->own.graph, val_type(s->own.graph, x)->dtype, factor));
    return part(s, g_binary(s->own.graph, OP_MUL, x, number));
}

// scale q k^T + mask; causal: what lies above the diagonal counts for nothing.
static Val scores_of(Scores *s, const Node *node, Val q, Val k, Val mask)
{
    Graph *graph = s->own.graph;
    Labels labels = labels_of(val_type(graph, q)->rank);
    Val score = part(s, g_contract(graph, q, k, labels.rows, labels.columns, labels.scores));
    score = scaled(s, score, node->attr->real);
    if (mask)
        score = part(s, g_binary(graph, OP_ADD, score, mask));
    if (node->attr->n[0])
        score = part(s, g_causal(graph, score, MASKED_SCORE));
    return score;
}

// o, and lse for those that read it beside the gradient.
static void attention_apart(Scores *s, NodeId id)
{
    Graph *graph = s->own.graph;
    const Node *node = graph_node(graph, id);
    const Val *map = s->own.map;
    Val q = map[node->in[0]], k = map[node->in[1]], v = map[node->in[2]];
    uint32_t rank = val_type(graph, q)->rank;
    Labels labels = labels_of(rank);
    Val score = scores_of(s, node, q, k, node->nin == 4 ? map[node->in[3]] : 0);
    Val p = part(s, g_unary(graph, OP_SOFTMAX, score));
    // "abnz", "abze" -> "abne"
    char values[MAX_RANK + 1], out[MAX_RANK + 1];
    memcpy(values, labels.columns, sizeof values);
    memcpy(out, labels.rows, sizeof out);
    values[rank - 1] = out[rank - 1] = 'y';
    s->own.map[val_of(id, 0)] = part(s, g_contract(graph, p, v, labels.scores, values, out));

    uint32_t last = UINT32_C(1) << (rank - 1);
    Val most = part(s, g_reduce(graph, OP_REDUCE_MAX, score, last));
    Val power = part(s, g_unary(graph, OP_EXP, part(s, g_binary(graph, OP_SUB, score, most))));
    Val sum = part(s, g_reduce(graph, OP_REDUCE_SUM, power, last));
    s->own.map[val_of(id, 1)] =
        part(s, g_binary(graph, OP_ADD, part(s, g_unary(graph, OP_LOG, sum)), most));
}

static void gradient_apart(Scores *s, NodeId id)
{
    Graph *graph = s->own.graph;
    const Node *node = graph_node(graph, id);
    const Val *map = s->own.map;
    Val d_out = map[node->in[0]], q = map[node->in[1]], k = map[node->in[2]],
        v = map[node->in[3]], o = map[node->in[4]];
    uint32_t rank = val_type(graph, q)->rank;
    Labels labels = labels_of(rank);
    Val score = scores_of(s, node, q, k, node->nin == 7 ? map[node->in[6]] : 0);
    Val p = part(s, g_unary(graph, OP_SOFTMAX, score));
    Val dp = part(s, g_contract(graph, d_out, v, labels.rows, labels.columns, labels.scores));
    Val dot = part(s, g_reduce(graph, OP_REDUCE_SUM, part(s, g_binary(graph, OP_MUL, d_out, o)),
                               UINT32_C(1) << (rank - 1)));
    Val ds = part(s, g_binary(graph, OP_MUL, p, part(s, g_binary(graph, OP_SUB, dp, dot))));
    Val dq = part(s, g_contract(graph, ds, k, labels.scores, labels.columns, labels.rows));
    Val dk = part(s, g_contract(graph, ds, q, labels.scores, labels.rows, labels.columns));
    Val dv = part(s, g_contract(graph, p, d_out, labels.scores, labels.rows, labels.columns));
    s->own.map[val_of(id, 0)] = scaled(s, dq, node->attr->real);
    s->own.map[val_of(id, 1)] = scaled(s, dk, node->attr->real);
    s->own.map[val_of(id, 2)] = dv;
}

static void rebuild(Scores *s)
{
    Graph *graph = s->own.graph;
    for (uint32_t n = 0; n < s->own.count; n++) {
        NodeId id = s->from = s->own.nodes[n];
        const Node *node = graph_node(graph, id);
        graph_at(graph, *graph_origin(graph, id));
        if (node->op == OP_ATTENTION) {
            attention_apart(s, id);
        } else if (node->op == OP_ATTENTION_GRAD) {
            gradient_apart(s, id);
        } else {
            uint32_t nout = node->nout;
            Val made = part(s, rewrite_operands(&s->own, id));
            for (uint32_t k = 0; k < nout; k++)
                s->own.map[val_of(id, k)] = made + k;
        }
    }
}

void take_attention_apart(Work *work)
{
    Scores s = {.from = 0};
    Arena *scratch = arena_new_sparse();
    rewrite_begin(&s.own, work, scratch);
    bool any = false;
    for (uint32_t n = 0; !any && n < s.own.count; n++) {
        Op op = graph_node(s.own.graph, s.own.nodes[n])->op;
        any = op == OP_ATTENTION || op == OP_ATTENTION_GRAD;
    }
    if (any) {
        rewrite_start(&s.own, scratch);
        rebuild(&s);
        rewrite_end(&s.own);
    }
    rewrite_free(&s.own);
    arena_free(scratch);
}
