// link: pvdm_kernels64
// Copies and reductions in f64: the same tests.
#include "tests/unit/test_kernels_move.c"
