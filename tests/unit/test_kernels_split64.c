// link: pvdm_kernels64
// The same in double precision.
#include "tests/unit/test_kernels_split.c"
