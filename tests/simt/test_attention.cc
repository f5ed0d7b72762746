// kernel: attention.cu  HEAD_DIM=32
// kernel: attention.cu  HEAD_DIM=64
// kernel: attention.cu  HEAD_DIM=128
// fault: FAULT_TILE_SYNC
#include "check.h"

extern "C" void attention_forward__simt(void **args);
extern "C" const int attention_forward__shared;
enum { HEADS = 8, D = HEAD_DIM };

// One query row of one head; returns log2 of the sum of the exponentials.
static double attend(const Floats &q, const Floats &k, const Floats &v, int length, int head, int i,
                     float *out)
{
    std::vector<double> weight((size_t)length), sums(D);
    double highest = -1e30, total = 0;
    auto row = [&](int j) { return ((size_t)j * HEADS + (size_t)head) * D; };
    for (int j = 0; j < length; j++) {
        double score = 0;
        for (int d = 0; d < D; d++)
            score += (double)q[row(i) + d] * k[row(j) + d];
        weight[j] = score / sqrt((double)D);
        highest = fmax(highest, weight[j]);
    }
    for (int j = 0; j < length; j++) {
        weight[j] = exp(weight[j] - highest);
        total += weight[j];
        for (int d = 0; d < D; d++)
            sums[d] += weight[j] * v[row(j) + d];
    }
    for (int d = 0; d < D; d++)
        out[d] = (float)(sums[d] / total);
    return (highest + log(total)) / log(2);
}

static void check(int length)
{
    size_t count = (size_t)length * HEADS * D;
    Tensor q = make_tensor(count, 2, 0), k = make_tensor(count, 2, 0), v = make_tensor(count, 1, 0);
    Tensor o = make_tensor(count, 0, 0);
    float *log_sum = make_vector((size_t)HEADS * length, 0, 0);
    float scale = 1.4426950408889634f / sqrtf((float)D);
    Floats expected(count);
    std::vector<double> expected_log;
    for (int head = 0; head < HEADS; head++)
        for (int i = 0; i < length; i++)
            expected_log.push_back(attend(q.value, k.value, v.value, length, head, i,
                                          &expected[((size_t)i * HEADS + head) * D]));
    void *args[] = {&q.device, &k.device, &v.device, &o.device, &log_sum, &length, &scale};
    run_modes("attention_forward", 6e-3, [&] {
        poison(o.device, count);
        memset(log_sum, 0xff, expected_log.size() * 4);
        simt_launch("attention_forward", attention_forward__simt,
                    SimtDim((unsigned)(length + 63) / 64, HEADS), SimtDim(128),
                    (size_t)attention_forward__shared, args);
        double error = relative_error(o.device, expected);
        for (size_t i = 0; i < expected_log.size(); i++)
            if (!(fabs(log_sum[i] - expected_log[i]) < 1e-3))
                error = NAN;
        return error;
    });
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    check(130);
    if (!fault_expected)
        check(17);
    return finish();
}
