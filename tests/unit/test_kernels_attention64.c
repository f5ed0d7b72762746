// link: pvdm_kernels64
// Attention in f64: the same tests.
#include "tests/unit/test_kernels_attention.c"
