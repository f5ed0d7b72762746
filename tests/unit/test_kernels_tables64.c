// link: pvdm_kernels64
// Norms and softmax in f64: the same tests.
#include "tests/unit/test_kernels_tables.c"
