// Templates of norms, their gradients and softmax. What differs between the segments of a launch,
// sizes and alignment, is looked at when the kernel runs; a choice depends on the activation and on
// classes of sizes.
#include <string.h>

#include "codegen/cuda/select.h"
#include "compiler/util.h"

#define FIELD(type, field) (offsetof(type, field) / sizeof(int64_t))

static const char *act_suffix(int64_t act)
{
    static const char *const names[] = {"", "_silu", "_gelu", "_relu"};
    return names[act];
}

// ---- where channels are dense ----

// Channels of a bundle: whole groups and whole runs of 16 bytes, about 64. 0: there is none.
static int64_t bundle_channels(int64_t c, int64_t members, int64_t run)
{
    int64_t unit = members;
    while (unit % run != 0)
        unit += members;
    if (unit > 256 || c % run != 0)
        return 0;
    return unit * (unit < 64 ? 64 / unit : 1);
}

// Every segment's number `index` is a multiple of `by`, at any batch.
static bool is_multiple(const CudaLaunch *launch, size_t index, int64_t by)
{
    for (uint32_t i = 0; i < (launch->all ? launch->segments : 1); i++) {
        const PlanArg *arg =
            &(launch->all ? launch->all + i * launch->arg_count : launch->args)[index];
        if (arg->a % by != 0 || arg->c % by != 0)
            return false;
    }
    return true;
}

static bool is_one(const CudaLaunch *launch, size_t index)
{
    for (uint32_t i = 0; i < (launch->all ? launch->segments : 1); i++) {
        const PlanArg *arg =
            &(launch->all ? launch->all + i * launch->arg_count : launch->args)[index];
        if (arg->a != 1 || arg->c != 0)
            return false;
    }
    return true;
}

// An image tensor whose channels are dense and which is aligned for runs.
typedef struct {
    size_t address, image, channel, position;
} ImageFields;
static bool is_last(const CudaLaunch *launch, const ImageFields *fields, int64_t run)
{
    return is_one(launch, fields->channel) && is_multiple(launch, fields->position, run) &&
           is_multiple(launch, fields->image, run) && cuda_is_aligned(launch, fields->address, 16);
}

static bool select_group_norm_last(const CudaLaunch *launch, CudaChoice *choice)
{
    static const ImageFields x = {FIELD(GroupNormArgs, x), FIELD(GroupNormArgs, x_image),
                                  FIELD(GroupNormArgs, x_channel),
                                  FIELD(GroupNormArgs, x_position)};
    static const ImageFields y = {FIELD(GroupNormArgs, y), FIELD(GroupNormArgs, y_image),
                                  FIELD(GroupNormArgs, y_channel),
                                  FIELD(GroupNormArgs, y_position)};
    int64_t c = cuda_number(launch, FIELD(GroupNormArgs, c));
    int64_t types = cuda_number(launch, FIELD(GroupNormArgs, types)), run = types ? 8 : 4;
    int64_t act = cuda_number(launch, FIELD(GroupNormArgs, act));
    int64_t channels =
        bundle_channels(c, c / cuda_number(launch, FIELD(GroupNormArgs, groups)), run);
    if (channels == 0 || !is_last(launch, &x, run) || !is_last(launch, &y, run) ||
        !cuda_is_there(launch, FIELD(GroupNormArgs, y)))
        return false;
    int64_t lanes = 256 / (channels / run);
    int64_t element = types >> 4 * FIELD(GroupNormArgs, x) & 15 ? 2 : 4;
    choice->file = "group_norm_last.cu";
    choice->name = arena_printf(launch->arena, "group_norm_last%s", act_suffix(act));
    choice->definitions =
        arena_printf(launch->arena, "NORM_ACT=%d NORM_TYPES=0x%llx LAST_CHANNELS=%d", (int)act,
                     (unsigned long long)types, (int)channels);
    choice->shape = "pv_shape_group_norm_last";
    choice->phases = 2;
    for (int i = 0; i < 2; i++) {
        choice->threads[i] = 256;
        choice->shared[i] =
            (uint32_t)((lanes + 3) * channels * 4 + 16384 / channels * channels * element);
    }
    choice->baked[0] = (int32_t)channels;
    return true;
}

static bool select_group_norm_last_grad(const CudaLaunch *launch, CudaChoice *choice)
{
    static const ImageFields images[3] = {
        {FIELD(GroupNormGradArgs, x), FIELD(GroupNormGradArgs, x_image),
         FIELD(GroupNormGradArgs, x_channel), FIELD(GroupNormGradArgs, x_position)},
        {FIELD(GroupNormGradArgs, dy), FIELD(GroupNormGradArgs, dy_image),
         FIELD(GroupNormGradArgs, dy_channel), FIELD(GroupNormGradArgs, dy_position)},
        {FIELD(GroupNormGradArgs, dx), FIELD(GroupNormGradArgs, dx_image),
         FIELD(GroupNormGradArgs, dx_channel), FIELD(GroupNormGradArgs, dx_position)}};
    int64_t c = cuda_number(launch, FIELD(GroupNormGradArgs, c));
    int64_t types = cuda_number(launch, FIELD(GroupNormGradArgs, types)), run = types ? 8 : 4;
    int64_t channels =
        bundle_channels(c, c / cuda_number(launch, FIELD(GroupNormGradArgs, groups)), run);
    for (int i = 0; i < 3; i++)
        if (channels == 0 || !is_last(launch, &images[i], run))
            return false;
    choice->file = "group_norm_last_grad.cu";
    choice->name = "group_norm_last_grad";
    choice->definitions = arena_printf(launch->arena, "NORM_TYPES=0x%llx LAST_CHANNELS=%d",
                                       (unsigned long long)types, (int)channels);
    choice->shape = "pv_shape_group_norm_last_grad";
    choice->phases = 2;
    for (int i = 0; i < 2; i++) {
        choice->threads[i] = 256;
        choice->shared[i] = (uint32_t)((256 / (channels / run) + 2) * channels * 4);
    }
    choice->baked[0] = (int32_t)channels;
    return true;
}

// ---- any strides ----

static bool select_group_norm(const CudaLaunch *launch, CudaChoice *choice)
{
    int64_t act = cuda_number(launch, FIELD(GroupNormArgs, act));
    int64_t types = cuda_number(launch, FIELD(GroupNormArgs, types));
    int64_t groups = cuda_number(launch, FIELD(GroupNormArgs, groups));
    int64_t channels = cuda_number(launch, FIELD(GroupNormArgs, c)) / groups;
    bool large = channels * cuda_number(launch, FIELD(GroupNormArgs, positions)) > 4096;
    int32_t resident = large ? 16384 : 4096;
    choice->file = "group_norm.cu";
    choice->name = arena_printf(launch->arena, "group_norm%s", act_suffix(act));
    choice->definitions =
        arena_printf(launch->arena, "NORM_ACT=%d NORM_RESIDENT=%d NORM_TYPES=0x%llx", (int)act,
                     resident, (unsigned long long)types);
    choice->shape = "pv_shape_group_norm";
    choice->phases = 2;
    choice->threads[0] = choice->threads[1] = large ? 512 : 256;
    choice->shared[0] = 4096 * 4 + 64;
    choice->shared[1] = (uint32_t)resident * 4 + 64;
    choice->baked[0] = resident;
    return true;
}

// A table of what lies in parts, from their moments: in all segments or in none.
static bool select_norm_join(const CudaLaunch *launch, CudaChoice *choice)
{
    for (uint32_t i = 0; i < (launch->all ? launch->segments : 1); i++) {
        const PlanArg *args = launch->all ? launch->all + i * launch->arg_count : launch->args;
        if (args[FIELD(GroupNormArgs, parts)].a == 0 || args[FIELD(GroupNormArgs, types)].a != 0)
            return false;
    }
    choice->file = "norm_join.cu";
    choice->name = "norm_join";
    choice->shape = "pv_shape_norm_join";
    choice->threads[0] = 128;
    return true;
}

static bool has_parts(const CudaLaunch *launch)
{
    bool parts = false;
    for (uint32_t i = 0; i < (launch->all ? launch->segments : 1); i++)
        parts |= (launch->all ? launch->all + i * launch->arg_count
                              : launch->args)[FIELD(GroupNormArgs, parts)].a != 0;
    return parts;
}

static bool select_group_norm_grad(const CudaLaunch *launch, CudaChoice *choice)
{
    int64_t types = cuda_number(launch, FIELD(GroupNormGradArgs, types));
    choice->file = "group_norm_grad.cu";
    choice->name = "group_norm_grad";
    choice->definitions =
        arena_printf(launch->arena, "NORM_TYPES=0x%llx", (unsigned long long)types);
    choice->shape = "pv_shape_group_norm_grad";
    choice->phases = 2;
    choice->threads[0] = choice->threads[1] = 256;
    choice->shared[1] = 256 / 32 * 4;
    return true;
}

// Runs of a lane where a warp takes a row of c elements; 0: a block does.
static int32_t row_vectors(const CudaLaunch *launch, size_t c, int64_t types)
{
    int32_t run = types ? 8 : 4;
    if (!cuda_is_number(launch, c))
        return 0;
    for (int32_t vectors = 1; vectors * run <= 32; vectors *= 2)
        if (cuda_number(launch, c) <= 32 * run * vectors)
            return vectors;
    return 0;
}

// The grid of a kernel over rows: a warp a row that its lanes hold, else a block. `rows`: the
// argument that says how many there are.
static bool choose_rows(CudaChoice *choice, int32_t vectors, uint32_t rows)
{
    choice->shape = "pv_shape_rows";
    choice->threads[0] = 256;
    choice->shared[0] = 256 / 32 * 4;
    choice->baked[0] = vectors ? 8 : 1;
    choice->baked[1] = (int32_t)rows;
    return true;
}

static bool select_layer_norm(const CudaLaunch *launch, CudaChoice *choice)
{
    int64_t act = cuda_number(launch, FIELD(LayerNormArgs, act));
    int64_t types = cuda_number(launch, FIELD(LayerNormArgs, types));
    int32_t vectors = row_vectors(launch, FIELD(LayerNormArgs, c), types);
    choice->file = "layer_norm.cu";
    choice->name = arena_printf(launch->arena, "layer_norm%s", act_suffix(act));
    choice->definitions =
        arena_printf(launch->arena, "NORM_ACT=%d ROW_VECTORS=%d NORM_TYPES=0x%llx", (int)act,
                     vectors, (unsigned long long)types);
    return choose_rows(choice, vectors, FIELD(LayerNormArgs, rows));
}

static bool select_softmax(const CudaLaunch *launch, CudaChoice *choice)
{
    int64_t types = cuda_number(launch, FIELD(SoftmaxArgs, types));
    int32_t vectors = row_vectors(launch, FIELD(SoftmaxArgs, c), types);
    choice->file = "softmax.cu";
    choice->name = "softmax";
    choice->definitions = arena_printf(launch->arena, "ROW_VECTORS=%d NORM_TYPES=0x%llx", vectors,
                                       (unsigned long long)types);
    return choose_rows(choice, vectors, FIELD(SoftmaxArgs, rows));
}

static bool select_layer_norm_grad(const CudaLaunch *launch, CudaChoice *choice)
{
    int64_t types = cuda_number(launch, FIELD(LayerNormGradArgs, types));
    int32_t vectors = row_vectors(launch, FIELD(LayerNormGradArgs, c), types);
    uint32_t last = vectors ? 1 : 2;
    choice->file = "layer_norm_grad.cu";
    choice->name = "layer_norm_grad";
    choice->definitions = arena_printf(launch->arena, "ROW_VECTORS=%d NORM_TYPES=0x%llx", vectors,
                                       (unsigned long long)types);
    choice->shape = "pv_shape_layer_norm_grad";
    choice->phases = last + 1;
    for (uint32_t i = 0; i <= last; i++)
        choice->threads[i] = 256;
    choice->shared[0] = vectors ? (uint32_t)vectors * 2 * 32 * (types ? 8 : 4) * 4 : 0;
    choice->shared[1] = vectors ? 0 : 256 / 32 * 4;
    choice->shared[last] = 2 * 256 * 4;
    choice->baked[0] = vectors ? 8 : 1;
    return true;
}

bool cuda_select_norm(const CudaLaunch *launch, CudaChoice *choice)
{
    if (strcmp(launch->symbol, "pv_group_norm") == 0 && has_parts(launch))
        return select_norm_join(launch, choice);
    if (strcmp(launch->symbol, "pv_group_norm") == 0)
        return select_group_norm_last(launch, choice) || select_group_norm(launch, choice);
    if (strcmp(launch->symbol, "pv_group_norm_grad") == 0)
        return select_group_norm_last_grad(launch, choice) ||
               select_group_norm_grad(launch, choice);
    if (strcmp(launch->symbol, "pv_layer_norm") == 0)
        return select_layer_norm(launch, choice);
    if (strcmp(launch->symbol, "pv_layer_norm_grad") == 0)
        return select_layer_norm_grad(launch, choice);
    return select_softmax(launch, choice);
}
