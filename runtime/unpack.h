// The launches and arguments of a plan out of the block of bytes that the executable holds.
//
// The block is deflated (zlib). In it are numbers only, each a difference modulo 2^64, in 7-bit
// groups after zigzag, the lowest group first. For every launch: kernel (against the launch
// before), number of arguments and of segments (against the last launch of the same kernel,
// `like`), origin (against the launch before), the bits of flops_fixed, flops_batch, bytes_fixed
// and bytes_batch (against `like`); then for every argument space, a, c (against the same argument of `like`, if it has as many). What there
// is nothing to compare with counts as 0.
#ifndef PV_UNPACK_H
#define PV_UNPACK_H

#include "runtime/error.h"
#include "runtime/pvdm.h"

// Both lists are malloc'ed, of plan->launch_count and plan->arg_count. False: no memory, or the
// block is not what the plan's record says (nothing is given then).
bool pv_plan_unpack(const PvPlan *plan, uint32_t kernel_count, PvLaunch **launches, PvArg **args,
                    PvError *error);

#endif
