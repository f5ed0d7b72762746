// Formula weights, for networks whose published weights are too large to carry: COUNT floats on
// standard output, float(offset + scale * u(key, i)) with u uniform in [-1, 1) by splitmix64, as
// the golden file `lpips_disc` says. usage: hash_weights KEY COUNT SCALE OFFSET
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static double uniform(uint64_t key, uint64_t i)
{
    uint64_t z = key * 0x9E3779B97F4A7C15u + i + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(z >> 40) / 8388608.0 - 1;
}

int main(int count, char **args)
{
    if (count != 5)
        return 2;
    uint64_t key = strtoull(args[1], NULL, 10), n = strtoull(args[2], NULL, 10);
    double scale = atof(args[3]), offset = atof(args[4]);
    for (uint64_t i = 0; i < n; i++) {
        float value = (float)(offset + scale * uniform(key, i));
        if (fwrite(&value, sizeof value, 1, stdout) != 1)
            return 1;
    }
    return fflush(stdout) != 0;
}
