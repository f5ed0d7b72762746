// Weights and checkpoints: tensor files mounted on the flat parameter space of a model, and the
// state of a training run written to and read from one file.
//
// Names in our files
//   <instance>.<parameter>           parameters and buffers, e.g. unet.out.2.weight
//   ema.<instance>.<parameter>       moving averages of the instances that have them
//   adam_m.<...>, adam_v.<...>       first and second moments (sgd: momentum is adam_m)
//   metadata                         model, real, constant.<name>, stage, step, seed,
//                                    draws.<stream>, data_position, updates.<i>, ema_updates.<i>
#ifndef PVDM_WEIGHTS_H
#define PVDM_WEIGHTS_H

#include "runtime/tensor.h"

// Any tensor file, told apart by its content: safetensors, torch.save's zip.
bool pv_tensors_read(const char *path, PvTensorSet *set, PvError *error);

// Mounts each of `specs`, "[INSTANCE[.PATH]=]FILE[#PREFIX]", on the instances it covers, and writes
// their parameters (PvReal or int64) at params + offset; nothing is written if anything is wrong,
// and all that is wrong is in one error: missing, surplus and misshapen tensors.
// - With INSTANCE=, the names of the file that start with PREFIX are that instance's. Without
//   PREFIX, the wrappings "state_dict.", "model.", "module.", "diffusion_model.", "ema_model."
//   and "<instance>." are taken off by themselves.
// - INSTANCE.PATH= puts PATH before what remains of a name: lpips.net.features=vgg16.pth#features.
// - Without INSTANCE=, the file is looked through for every wanted instance that no other spec
//   names: names "<instance>.<parameter>" after the wrappings, or (a model with one wanted
//   instance) plain names.
// - ema: "ema.<instance>.<parameter>" is taken instead where the file has it.
// - PvInstance.ignored names, and num_batches_tracked where the model has no such buffer, may be
//   surplus. Tensors of other instances and of optimizers are no surplus.
// wanted: indices of the instances that need weights, count of them.
// loaded (or NULL): set to true for every instance that was mounted, by index of pv_model; a wanted
// instance that no file covers is then no error, and the caller looks at `loaded`.
bool pv_weights_mount(const PvModel *model, const char *const *specs, size_t spec_count,
                      const uint32_t *wanted, uint32_t wanted_count, bool ema, char *params,
                      bool *loaded, PvError *error);

enum { PV_MAX_MINIMIZE = 8 };

// The loss scaling of a minimize, as LossScale of kernel_args.h. scale 0: none.
typedef struct {
    double scale;
    int64_t good, skipped;
} PvLossScale;

// State of a training run. The flat buffers have model->param_bytes bytes each and PvParam.offset.
typedef struct {
    char *params;
    char *ema, *adam_m, *adam_v;       // or NULL
    const bool *has_params;            // by instance: what the file holds; NULL: all
    const bool *has_ema, *has_moments; // the same of averages and moments
    const char *stage;
    int64_t step;
    uint64_t seed;
    int64_t data_position;            // clips taken so far
    uint64_t *draws;                  // by stream of the model
    int64_t updates[PV_MAX_MINIMIZE]; // of the optimizer (AdamW's t), by minimize
    int64_t ema_updates[PV_MAX_MINIMIZE];
    PvLossScale scale[PV_MAX_MINIMIZE]; // its updates that were left out are counted in updates
    const PvPair *extra; // further metadata to write
    size_t extra_count;
} PvCheckpoint;

// Writes atomically, streaming out of the buffers; real parameters as f32 (f64 in an f64 build).
bool pv_checkpoint_write(const PvModel *model, const char *path, const PvCheckpoint *state,
                         PvError *error);
// Fills the buffers and counters for which `state` has room, all or nothing; `stage` is compared
// (NULL: any), the model's constants too. The parameters of the instances marked in has_params must
// be there and fit (other instances are passed over), and so must moments and averages of those
// marked in has_moments, has_ema.
bool pv_checkpoint_read(const PvModel *model, const char *path, PvCheckpoint *state,
                        PvError *error);

// The newest "step-NNNNNNNN.safetensors" of a folder (malloc'ed; NULL and no error: none).
char *pv_checkpoint_latest(const char *folder, PvError *error);
char *pv_checkpoint_path(const char *folder, int64_t step);
// Removes all but the last `keep`, and what was left by runs killed while they wrote one.
void pv_checkpoint_keep(const char *folder, int keep);

#endif
