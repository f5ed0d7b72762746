// Elementwise operations of the reference evaluator in float.
#define INTERP_SCALAR interp_scalar_f32
#include "compiler/interp_scalar.h"
