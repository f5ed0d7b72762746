// Elementwise operations of the reference evaluator in double.
#define PV_REAL64
#define INTERP_SCALAR interp_scalar_f64
#include "compiler/interp_scalar.h"
