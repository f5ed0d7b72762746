// What the type rules of types.c and types_nn.c share.
#ifndef PVDMC_RULES_H
#define PVDMC_RULES_H

#include "compiler/graph.h"

// One question to the rules: the operation, its operands and attributes, the given type.
typedef struct {
    Graph *graph;
    Op op;
    const Val *in;
    uint32_t nin;
    const Attr *attr;
    const Type *given;   // or NULL
    Type *out;
} Rule;

const Type *rule_in(const Rule *rule, uint32_t i);           // type of operand i
// Sets the graph's error; false, so that a rule can return it.
bool rule_fail(const Rule *rule, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool rule_axis(const Rule *rule, const Type *type, int64_t axis);
const char *dim_text(Dim dim);                               // "64", "b", "2b"; interned
// Operand i is real, all real operands have one dtype.
bool rule_reals(const Rule *rule, uint32_t first, uint32_t last);
Type type_like(const Type *shape, DType dtype);              // without segments

// types_nn.c: the number of outputs, or 0
uint32_t reduce_rule(Rule *rule);
uint32_t contract_rule(Rule *rule);
uint32_t conv_rule(Rule *rule);
uint32_t softmax_rule(Rule *rule);
uint32_t layer_norm_rule(Rule *rule);
uint32_t layer_norm_grad_rule(Rule *rule);
uint32_t group_norm_rule(Rule *rule);
uint32_t group_norm_table_rule(Rule *rule);
uint32_t channel_moments_rule(Rule *rule);
uint32_t group_norm_grad_rule(Rule *rule);
uint32_t attention_rule(Rule *rule);
uint32_t attention_grad_rule(Rule *rule);

#endif
