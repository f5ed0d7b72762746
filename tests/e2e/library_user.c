// A program that stands on a model's library alone (test_library.py): it calls the programs of the
// test's model, and prints what they give, a line a tensor, as numbers that lose no bit.
//
// usage: library_user WEIGHTS [DEVICE]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/library.h"

enum { WIDTH = 12 };

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, pvdm_message());
    exit(1);
}

static double number(const PvdmTensor *tensor, int64_t i)
{
    if (tensor->type == PVDM_F32)
        return ((const float *)tensor->data)[i];
    if (tensor->type == PVDM_U8)
        return ((const unsigned char *)tensor->data)[i];
    fprintf(stderr, "a tensor of type %d\n", tensor->type);
    exit(1);
}

static void print(const char *name, const PvdmTensor *tensor)
{
    int64_t count = 1;
    printf("%s [", name);
    for (int i = 0; i < tensor->rank; i++) {
        printf("%s%lld", i ? "," : "", (long long)tensor->dim[i]);
        count *= tensor->dim[i];
    }
    printf("]");
    for (int64_t i = 0; i < count; i++)
        printf(" %a", number(tensor, i));
    printf("\n");
}

static void print_output(const PvdmCall *call, const char *name)
{
    PvdmTensor tensor;
    if (pvdm_output(call, name, &tensor) != 0)
        fail(name);
    print(name, &tensor);
}

// [batch, WIDTH]: element i is (i % modulus - 3) / 4.
static PvdmTensor rows(float *data, int64_t batch, int modulus)
{
    for (int i = 0; i < batch * WIDTH; i++)
        data[i] = (float)(i % modulus - 3) / 4;
    return (PvdmTensor){PVDM_F32, 2, {batch, WIDTH}, data};
}

static void give(PvdmCall *call, const char *name, const PvdmTensor *tensor)
{
    if (pvdm_input(call, name, tensor) != 0)
        fail(name);
}

// The same call with an input there, absent, and of another batch.
static void run_program(PvdmModel *model)
{
    float x[5 * WIDTH], cond[5 * WIDTH];
    int32_t time = 3;                      // converted to what the program takes
    PvdmTensor t = {PVDM_I32, 0, {0}, &time}, rows_x = rows(x, 2, 7), rows_cond = rows(cond, 2, 5);
    PvdmCall *call = pvdm_call(model, "next", 0);
    if (!call)
        fail("next");
    for (int i = 0; pvdm_input_name(call, i); i++)
        printf("input %s\n", pvdm_input_name(call, i));
    for (int i = 0; pvdm_output_name(call, i); i++)
        printf("output %s\n", pvdm_output_name(call, i));
    give(call, "x", &rows_x);
    if (pvdm_run(call) == 0)
        fail("a run without an input");
    printf("error %s\n", pvdm_message());
    give(call, "t", &t);
    give(call, "cond", &rows_cond);
    for (int i = 0; i < 2; i++) {
        if (pvdm_run(call) != 0)
            fail("next");
        print_output(call, "y");
    }
    rows_x = rows(x, 5, 7);
    give(call, "x", &rows_x);
    if (pvdm_run(call) == 0)
        fail("a run of two batches");
    printf("error %s\n", pvdm_message());
    give(call, "cond", NULL);
    if (pvdm_run(call) != 0)
        fail("next without cond");
    print_output(call, "y");
    pvdm_call_free(call);
}

static void run_gradient(PvdmModel *model)
{
    float x[2 * WIDTH], target[2 * WIDTH];
    PvdmTensor rows_x = rows(x, 2, 7), rows_target = rows(target, 2, 5), tensor;
    PvdmCall *call = pvdm_call(model, "distance", 1);
    if (!call)
        fail("distance");
    give(call, "x", &rows_x);
    give(call, "target", &rows_target);
    if (pvdm_output(call, "loss", &tensor) == 0)
        fail("an output before a run");
    if (pvdm_run(call) != 0)
        fail("distance");
    print_output(call, "loss");
    print_output(call, "grad.x");
    print_output(call, "grad.net.first.weight");
    if (pvdm_output(call, "grad.net.furst.weight", &tensor) == 0)
        fail("a misspelt output");
    pvdm_call_free(call);
}

static void run_sampler(PvdmModel *model)
{
    PvdmTensor video;
    if (pvdm_set(model, "few.stepps=3") == 0 || pvdm_set(model, "few.steps=fast") == 0)
        fail("wrong options");
    if (pvdm_set(model, "few.steps=3") != 0)
        fail("few.steps");
    pvdm_seed(model, 5);
    if (pvdm_sample(model, "few", 2, 3) != 0 || pvdm_video(model, 1, &video) != 0)
        fail("few");
    print("video", &video);
    pvdm_seed(model, 5);
    if (pvdm_sample(model, NULL, 2, 0) != 0 || pvdm_video(model, 1, &video) != 0)
        fail("few");
    print("clip", &video);
    if (pvdm_video(model, 2, &video) == 0)
        fail("a third video of two");
    printf("error %s\n", pvdm_message());
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    const char *files[] = {argv[1]};
    PvdmModel *model = pvdm_open(argc > 2 ? argv[2] : NULL, 2);
    if (!model)
        fail("open");
    for (int i = 0; pvdm_program(model, i); i++)
        printf("program %s\n", pvdm_program(model, i));
    if (pvdm_call(model, "nexd", 0))
        fail("a misspelt program");
    printf("error %s\n", pvdm_message());
    if (pvdm_weights(model, files, 1, 0) != 0)
        fail(argv[1]);
    run_program(model);
    run_gradient(model);
    run_sampler(model);
    pvdm_close(model);
    return 0;
}
