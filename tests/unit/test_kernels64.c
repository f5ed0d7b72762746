// link: pvdm_kernels64
// Products and convolutions in f64: the same tests.
#include "tests/unit/test_kernels.c"
