// One elementwise kernel while its texts are made: for the CPU (emit_elementwise.c) and for GPUs
// (cuda_elementwise.c), with the same arguments.
#ifndef PVDMC_ELEMENTWISE_H
#define PVDMC_ELEMENTWISE_H

#include "codegen/codegen.h"

enum { MAX_POINTERS = 96, MAX_OPERANDS = 3 };

typedef enum { INNER_FIXED, INNER_DENSE, INNER_STRIDED } Inner;

typedef struct {
    Val val;
    bool swap;                 // element i ^ 1
    bool result;
    DType dtype;
    PlanArg place;             // place.store: how the elements are stored
    Dim stride[MAX_RANK];      // by axis of the (joined) space
    Inner inner;
} Pointer;

// What a member reads: a pointer's element, another member, or a constant.
typedef enum { FROM_POINTER, FROM_MEMBER, FROM_ARGUMENT, FROM_REAL, FROM_INTEGER } From;

typedef struct {
    From from;
    uint32_t index;            // of a pointer, a member, a constant that is an argument
    double value;              // of a constant that stands in the text
} Operand;

typedef struct Kern {
    Lower *lower;
    const Group *group;
    uint32_t number;
    Pointer pointers[MAX_POINTERS];    // results first
    uint32_t pointer_count;
    double reals[MAX_POINTERS];        // constants that are arguments
    uint32_t real_count;
    Operand *operands;         // MAX_OPERANDS for each member
    size_t operand_members;    // room for so many
    Dim size[MAX_RANK];
    uint32_t rank;
} Kern;

const char *storage_type(DType dtype);                   // of elements in memory, on the CPU
size_t pointer_size(const Kern *kern, const Pointer *pointer);     // bytes of an element
// The statements t0 = ..., t1 = ... of one element; its operands are x0, x1, ... (by pointer).
void write_statements(const Kern *kern, FILE *out, const char *indent);
uint32_t member_of(const Kern *kern, Val result);        // the t that a result is

/* cuda_elementwise.c */
// What the text for GPUs bakes in beside what the other one does, of each pointer: whether it goes
// by fours; of the kernel: whether the inner axis does.
bool cuda_by_fours(const Kern *kern, const Pointer *pointer);
bool cuda_inner_fours(const Kern *kern);
// malloc'ed. `args`: how many the launch has; the CPU text, which collects the constants, is made
// already. *choice: how it is launched.
char *cuda_elementwise_text(const Kern *kern, uint32_t args, CudaChoice *choice);

#endif
