// The launches and arguments of a plan out of the block of bytes that the executable holds.
//
// The block is deflated (zlib). In it are numbers only, each a difference modulo 2^64, in 7-bit
// groups after zigzag, the lowest group first. For every launch: kernel (against the launch
// before), number of arguments and of segments (against the last launch of the same kernel,
// `like`), origin (against the launch before), the bits of flops_fixed, flops_batch, bytes_fixed
// and bytes_batch (against `like`); then the arguments that differ from those of `like` (if it has
// as many; else from 0): a number that is how many are the same before the next one, times 8, plus
// bits that say which of space, a, c differ and follow; without a bit: the rest is the same.
#ifndef PV_UNPACK_H
#define PV_UNPACK_H

#include "runtime/error.h"
#include "runtime/pvdm.h"

enum { PV_PACKED_SPACE = 1, PV_PACKED_A = 2, PV_PACKED_C = 4, PV_PACKED_BITS = 3 };

// Both lists are malloc'ed, of plan->launch_count and plan->arg_count. False: no memory, or the
// block is not what the plan's record says (nothing is given then).
bool pv_plan_unpack(const PvPlan *plan, uint32_t kernel_count, PvLaunch **launches, PvArg **args,
                    PvError *error);

#endif
