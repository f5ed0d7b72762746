// A compiled model as a C library: what `pvdmc FILE.model --lib -o libNAME.so` makes is called
// through these functions and nothing else; no other name of it is seen from outside. The header
// stands by itself, and is the same for all models.
//
//     PvdmModel *model = pvdm_open("cpu", 0);
//     const char *weights[] = {"unet=unet.safetensors"};
//     pvdm_weights(model, weights, 1, 1);
//     PvdmCall *call = pvdm_call(model, "denoise", 0);
//     pvdm_input(call, "x", &x);
//     pvdm_input(call, "t", &t);
//     PvdmTensor eps;
//     if (pvdm_run(call) != 0 || pvdm_output(call, "eps", &eps) != 0)
//         fprintf(stderr, "%s\n", pvdm_message());
//
// Errors: a function that gives an int gives 0, or what the executable would exit with: 1 the input
// is wrong, 3 the machine lacks something; one that gives a pointer gives NULL. pvdm_message tells
// why. (Where a few bytes of memory cannot be had, the process ends with status 3.) Any number of
// models may be open, each used by one thread at a time. Only warnings are printed, on stderr.
#ifndef PVDM_LIBRARY_H
#define PVDM_LIBRARY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PVDM_API __attribute__((visibility("default")))

typedef struct PvdmModel PvdmModel;
typedef struct PvdmCall PvdmCall;

enum { PVDM_MAX_RANK = 8 };
enum {
    PVDM_BOOL = 1, // a byte, 0 or 1
    PVDM_I64,
    PVDM_F16,
    PVDM_BF16,
    PVDM_F32,
    PVDM_F64,
    PVDM_U8,
    PVDM_I8,
    PVDM_I16,
    PVDM_I32,
};

typedef struct {
    int32_t type;               // PVDM_F32, ...
    int32_t rank;               // 0: one number
    int64_t dim[PVDM_MAX_RANK]; // slowest first
    const void *data;           // dense, row-major, in the host's memory
} PvdmTensor;

// Why the last function that failed in this thread did; "" if none has. Lasts until the next one
// fails.
PVDM_API const char *pvdm_message(void);

// device: "cpu", "cuda", "cuda:1", or NULL: a GPU if there is one that the model is compiled for.
// threads: of the CPU; 0: OMP_NUM_THREADS, or all cores.
PVDM_API PvdmModel *pvdm_open(const char *device, int threads);
PVDM_API void pvdm_close(PvdmModel *model); // NULL is fine; its calls are freed before

// Weights: [INSTANCE=]FILE[#PREFIX], as --weights of `run` has them, in place of earlier ones. A
// file is read by the first run that needs an instance of it. averages: moving averages are taken
// where a file has them.
PVDM_API int pvdm_weights(PvdmModel *model, const char *const *files, int count, int averages);
// An option of the model, "NAME=VALUE"; of one sampler, "SAMPLER.NAME=VALUE": "ddim.steps=100".
PVDM_API int pvdm_set(PvdmModel *model, const char *assignment);
// Seed of the random streams, which start anew. Until then it is 0.
PVDM_API void pvdm_seed(PvdmModel *model, uint64_t seed);

// The names of the programs: index 0 .. ; NULL behind the last.
PVDM_API const char *pvdm_program(const PvdmModel *model, int index);
// A call of a program; gradient: of a program of one number, and its gradient too. It may be run
// any number of times, and holds its inputs until others come.
PVDM_API PvdmCall *pvdm_call(PvdmModel *model, const char *program, int gradient);
PVDM_API void pvdm_call_free(PvdmCall *call); // NULL is fine
// What it takes and gives: index 0 .. ; NULL behind the last. Gradients of parameters are not
// listed.
PVDM_API const char *pvdm_input_name(const PvdmCall *call, int index);
PVDM_API const char *pvdm_output_name(const PvdmCall *call, int index);
// Copies a tensor, converted to the input's type. tensor NULL: the (optional) input is absent, as
// all are at first.
PVDM_API int pvdm_input(PvdmCall *call, const char *name, const PvdmTensor *tensor);
// Runs it. The batch is that of the inputs. Statistics that the program moves (batch norm) stay as
// they were mounted.
PVDM_API int pvdm_run(PvdmCall *call);
// What the last run gave: an output; of a gradient, also grad.<input> and
// grad.<instance>.<parameter>. Its data lasts until this call (gradients of parameters: any call of
// a gradient) is run again or freed.
PVDM_API int pvdm_output(const PvdmCall *call, const char *name, PvdmTensor *tensor);

// Samples `videos` videos of at least `frames` frames (0: as the options say). sampler NULL: the
// first. The draws go on from one time to the next (pvdm_seed).
PVDM_API int pvdm_sample(PvdmModel *model, const char *sampler, int64_t videos, int64_t frames);
// Video `index` of them: u8 [frames, height, width, 3], until the next pvdm_sample.
PVDM_API int pvdm_video(const PvdmModel *model, int64_t index, PvdmTensor *tensor);

#ifdef __cplusplus
}
#endif
#endif
