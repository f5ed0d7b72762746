// `pvdmc bench` (bench.c).
#ifndef PVDMC_BENCH_H
#define PVDMC_BENCH_H

// The words behind "bench"; returns the exit status.
int bench_command(int argc, char **argv);

#endif
