// What compose.c and compose_move.c share; nobody else includes it.
#ifndef PVDMC_COMPOSE_PARTS_H
#define PVDMC_COMPOSE_PARTS_H

#include "compiler/compose.h"

// The place of an axis, counted from the end if negative; -1, and an error, if there is none.
int64_t compose_find_axis(Graph *graph, const Type *type, int64_t axis);

// A constant tensor [rows, columns] of that precision.
Val compose_real_table(Graph *graph, DType dtype, int64_t rows, int64_t columns,
                       const double *values);

// Letters for the axes of a tensor, 'a', 'b', ..., and '\0'. labels: [rank + 1]
void compose_axis_labels(char *labels, uint32_t rank);

#endif
