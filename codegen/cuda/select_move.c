// Which kernels move and reduce: copies by how the axes of both sides lie (runs, 16 bytes, turned
// around), reductions by which side is dense and how many elements a result has.
//
// Axes are put in order and joined where they are one run at any batch and in every segment.
// Strides and sizes are a + c * batch and conditions products of two of them, so what holds at
// three batches holds at all.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/cuda/select.h"

#define COPY(field)   (offsetof(CopyArgs, field) / sizeof(int64_t))
#define REDUCE(field) (offsetof(ReduceArgs, field) / sizeof(int64_t))

enum { BATCHES = 3, USUAL_BATCH = 8, TURN_LEAST = 8 };

// ---- axes ----

// Joined axes of a launch: place k holds the original axis order[k]; bit k of begins: a joined one
// begins there.
// joined 0: nothing can be baked in.
typedef struct {
    uint32_t count, joined, begins;
    uint8_t order[8];
} Axes;

static uint32_t segments_of(const CudaLaunch *launch)
{
    return launch->all ? launch->segments : 1;
}

static const PlanArg *arg_of(const CudaLaunch *launch, uint32_t segment, size_t index)
{
    return launch->all ? &launch->all[segment * launch->arg_count + index] : &launch->args[index];
}

static int64_t value_at(const CudaLaunch *launch, uint32_t segment, size_t index, int64_t batch)
{
    const PlanArg *arg = arg_of(launch, segment, index);
    return arg->a + arg->c * batch;
}

static int64_t magnitude(const CudaLaunch *launch, size_t index)
{
    return llabs(value_at(launch, 0, index, USUAL_BATCH));
}

static bool is_always(const CudaLaunch *launch, size_t index, int64_t value)
{
    for (uint32_t s = 0; s < segments_of(launch); s++)
        if (arg_of(launch, s, index)->a != value || arg_of(launch, s, index)->c != 0)
            return false;
    return true;
}

static bool is_multiple(const CudaLaunch *launch, size_t index, int64_t of)
{
    for (uint32_t s = 0; s < segments_of(launch); s++)
        if (arg_of(launch, s, index)->a % of != 0 || arg_of(launch, s, index)->c % of != 0)
            return false;
    return true;
}

// What is baked in is the same in every segment.
static bool agrees(const CudaLaunch *launch, size_t index)
{
    return is_always(launch, index, cuda_number(launch, index));
}

// Axes `outer` and `inner` of the strides at `stride` are one run.
static bool joins(const CudaLaunch *launch, size_t size, size_t stride, uint32_t outer,
                  uint32_t inner)
{
    for (uint32_t s = 0; s < segments_of(launch); s++)
        for (int64_t batch = 1; batch <= BATCHES; batch++)
            if (value_at(launch, s, stride + outer, batch) !=
                value_at(launch, s, stride + inner, batch) *
                    value_at(launch, s, size + inner, batch))
                return false;
    return true;
}

// Axes first .. first + count - 1 without those of size 1; if `sorted`, by descending strides at
// `stride`. Joined where they are runs there and at `other`.
static Axes join_axes(const CudaLaunch *launch, size_t size, size_t stride, size_t other,
                      uint32_t first, uint32_t count, bool sorted)
{
    Axes axes = {.count = 0};
    for (uint32_t i = first; i < first + count; i++) {
        if (is_always(launch, size + i, 1))
            continue;
        uint32_t at = axes.count++;
        for (; sorted && at > 0 &&
               magnitude(launch, stride + axes.order[at - 1]) < magnitude(launch, stride + i);
             at--)
            axes.order[at] = axes.order[at - 1];
        axes.order[at] = (uint8_t)i;
    }
    for (uint32_t k = 0; k < axes.count; k++)
        if (k == 0 || !joins(launch, size, stride, axes.order[k - 1], axes.order[k]) ||
            !joins(launch, size, other, axes.order[k - 1], axes.order[k])) {
            axes.begins |= 1u << k;
            axes.joined++;
        }
    return axes;
}

// Place at which joined axis `number` ends.
static uint32_t last_place(const Axes *axes, uint32_t number)
{
    uint32_t place = 0;
    for (uint32_t k = 0, joined = 0; k < axes->count; k++) {
        joined += axes->begins >> k & 1;
        if (joined == number + 1)
            place = k;
    }
    return place;
}

// Original axes of joined axis `number`, a bit each.
static uint32_t members(const Axes *axes, uint32_t number)
{
    uint32_t mask = 0;
    for (uint32_t k = 0, joined = 0; k < axes->count; k++) {
        joined += axes->begins >> k & 1;
        if (joined == number + 1)
            mask |= 1u << axes->order[k];
    }
    return mask;
}

// Elements of the axes in `mask` at a batch, of the first segment.
static int64_t elements(const CudaLaunch *launch, size_t size, uint32_t mask, int64_t batch)
{
    int64_t all = 1;
    for (uint32_t i = 0; i < 8; i++)
        if (mask >> i & 1)
            all *= value_at(launch, 0, size + i, batch);
    return all;
}

// The last joined axis is dense at `stride` and can be cut into units of `unit`; all others begin
// at multiples of it.
static bool takes_units(const CudaLaunch *launch, const Axes *axes, size_t size, size_t stride,
                        int64_t unit)
{
    bool divides = false;
    if (axes->count == 0)
        return false;
    for (uint32_t number = 0; number + 1 < axes->joined; number++)
        if (!is_multiple(launch, stride + axes->order[last_place(axes, number)], unit))
            return false;
    uint32_t last = members(axes, axes->joined - 1);
    for (uint32_t i = 0; i < 8; i++)
        divides |= (last >> i & 1) && is_multiple(launch, size + i, unit);
    return divides && is_always(launch, stride + axes->order[axes->count - 1], 1);
}

static const char *axes_text(const CudaLaunch *launch, const char *name, const Axes *axes,
                             uint32_t first)
{
    uint32_t order = 0;
    for (uint32_t k = 0; k < axes->count; k++)
        order |= (uint32_t)(axes->order[k] - first) << (4 * k);
    return arena_printf(launch->arena, "%s_COUNT=%u %s_ORDER=%uu %s_BEGINS=%uu %s_AXES=%u", name,
                        axes->count, name, order, name, axes->begins, name, axes->joined);
}

// ---- copies ----

// The joined axis along which x is dense while y is dense along the last; UINT32_MAX: none.
static uint32_t turned_axis(const CudaLaunch *launch, const Axes *axes)
{
    if (axes->joined < 2)
        return UINT32_MAX;
    uint32_t last = axes->order[axes->count - 1];
    if (!is_always(launch, COPY(y_stride) + last, 1) ||
        magnitude(launch, COPY(x_stride) + last) < 2 ||
        elements(launch, COPY(size), members(axes, axes->joined - 1), 1) < TURN_LEAST)
        return UINT32_MAX;
    for (uint32_t j = 0; j + 1 < axes->joined; j++)
        if (is_always(launch, COPY(x_stride) + axes->order[last_place(axes, j)], 1) &&
            elements(launch, COPY(size), members(axes, j), 1) >= TURN_LEAST)
            return j;
    return UINT32_MAX;
}

static bool select_copy(const CudaLaunch *launch, bool to, CudaChoice *choice)
{
    uint32_t count = (uint32_t)cuda_number(launch, COPY(axes));
    int64_t bytes = cuda_number(launch, COPY(bytes)), unit = 16 / bytes;
    if (!agrees(launch, COPY(bytes)))
        return false;
    int offset = !cuda_is_there(launch, COPY(offset)) ? 0 : to ? 2 : 1;
    Axes axes = {.count = 0};
    if (agrees(launch, COPY(axes)))
        axes = join_axes(launch, COPY(size), COPY(y_stride), COPY(x_stride), 0, count, true);
    const char *text = axes_text(launch, "COPY", &axes, 0);
    uint32_t turn = offset ? UINT32_MAX : turned_axis(launch, &axes);
    choice->shape = "pv_shape_copy";
    choice->threads[0] = 256;
    int64_t types = cuda_number(launch, COPY(types));
    if (!agrees(launch, COPY(types)))
        return false;
    if (types != 0) {
        choice->file = "move_convert.cu";
        choice->name = "convert";
        choice->definitions = arena_printf(launch->arena, "COPY_Y=%d COPY_X=%d %s",
                                           (int)(types & 15), (int)(types >> 4 & 15), text);
        choice->baked[0] = 256;
        return true;
    }
    if (turn != UINT32_MAX) {
        choice->file = "move_turn.cu";
        choice->name = "transpose";
        choice->definitions =
            arena_printf(launch->arena, "COPY_BYTES=%d TURN_AXIS=%u %s", (int)bytes, turn, text);
        choice->shared[0] = (uint32_t)(32 * 33 * (bytes < 4 ? 4 : bytes));
        choice->baked[1] = (int32_t)members(&axes, turn);
        choice->baked[2] = (int32_t)members(&axes, axes.joined - 1);
        return true;
    }
    bool wide = takes_units(launch, &axes, COPY(size), COPY(y_stride), unit) &&
                takes_units(launch, &axes, COPY(size), COPY(x_stride), unit) &&
                cuda_is_aligned(launch, COPY(y), 16) && cuda_is_aligned(launch, COPY(x), 16) &&
                (!offset || is_multiple(launch, COPY(offset_stride), unit));
    choice->file = "move_copy.cu";
    choice->name = wide ? "copy_runs" : "copy";
    choice->definitions =
        arena_printf(launch->arena, "COPY_BYTES=%d COPY_WIDE=%d COPY_OFFSET=%d %s", (int)bytes,
                     wide, offset, text);
    choice->baked[0] = (int32_t)(1024 * (wide ? unit : 1));
    return true;
}

// ---- reductions ----

typedef struct {
    int x, y, w, along;
} Team;

static Team choose_team(const CudaLaunch *launch, const Axes *kept, const Axes *reduced,
                        uint32_t kept_count, bool integer)
{
    Team team = {.x = 256, .y = 1, .w = 1};
    size_t size = REDUCE(size), stride = REDUCE(stride);
    uint32_t all = 0;
    for (uint32_t k = 0; k < reduced->count; k++)
        all |= 1u << reduced->order[k];
    int64_t count = elements(launch, size, all, USUAL_BATCH);
    int64_t inner =
        reduced->count ? magnitude(launch, stride + reduced->order[reduced->count - 1]) : 0;
    int64_t across =
        kept->count ? magnitude(launch, stride + kept->order[kept->count - 1]) : INT64_MAX;
    team.along = inner <= across;
    bool aligned = !integer && cuda_is_aligned(launch, REDUCE(x), 16);
    if (team.along && aligned && takes_units(launch, reduced, size, stride, 4)) {
        for (uint32_t k = 0; aligned && k < kept_count; k++)
            aligned = is_always(launch, size + k, 1) || is_multiple(launch, stride + k, 4);
        team.w = aligned ? 4 : 1;
    } else if (!team.along && aligned && takes_units(launch, kept, size, stride, 4)) {
        for (uint32_t k = 0; aligned && k < reduced->count; k++)
            aligned = is_multiple(launch, stride + reduced->order[k], 4);
        bool out = cuda_is_aligned(launch, REDUCE(out), 16) &&
                   (!cuda_is_there(launch, REDUCE(residual)) ||
                    cuda_is_aligned(launch, REDUCE(residual), 16));
        team.w = aligned && out ? 4 : 1;
    }
    int64_t steps = team.along ? count / team.w : count;
    if (steps >= 8) {
        team.y = !team.along ? 8 : steps >= 256 ? 256 : 32;
        team.x = 256 / team.y;
    }
    return team;
}

static bool select_reduce(const CudaLaunch *launch, bool integer, CudaChoice *choice)
{
    static const char *const names[] = {"sum", "max", "min"};
    uint32_t kept_count = (uint32_t)cuda_number(launch, REDUCE(kept));
    uint32_t reduced_count = (uint32_t)cuda_number(launch, REDUCE(reduced));
    int op = (int)cuda_number(launch, REDUCE(op));
    size_t size = REDUCE(size), stride = REDUCE(stride);
    int types = (int)cuda_number(launch, REDUCE(types));
    if (!agrees(launch, REDUCE(op)) || !agrees(launch, REDUCE(types)))
        return false;
    Axes kept = join_axes(launch, size, stride, stride, 0, kept_count, false);
    Axes reduced = join_axes(launch, size, stride, stride, kept_count, reduced_count, true);
    Team team = choose_team(launch, &kept, &reduced, kept_count, integer);
    if (!agrees(launch, REDUCE(kept)) || !agrees(launch, REDUCE(reduced))) {
        team.w = 1;
        kept = reduced = (Axes){.count = 0};
    }
    choice->file = "reduce.cu";
    choice->shape = "pv_shape_reduce";
    choice->name = arena_printf(launch->arena, "%s_%s%s", names[op],
                                team.along ? "rows" : "columns", integer ? "_int" : "");
    choice->definitions = arena_printf(
        launch->arena,
        "REDUCE_OP=%d REDUCE_INT=%d REDUCE_STORE=%d REDUCE_OUT=%d REDUCE_ADDED=%d REDUCE_X=%d "
        "REDUCE_Y=%d REDUCE_W=%d REDUCE_ALONG=%d %s %s", op, integer, types >> 4 & 15, types & 15,
        types >> 8 & 15, team.x, team.y, team.w, team.along, axes_text(launch, "KEPT", &kept, 0),
        axes_text(launch, "REDUCED", &reduced, kept_count));
    choice->phases = team.y > 1 || !is_always(launch, REDUCE(sum), 0) ? 2 : 1;
    uint32_t columns = team.along ? 1 : (uint32_t)team.w, bytes = integer ? 8 : 4;
    for (uint32_t phase = 0; phase < choice->phases; phase++) {
        choice->threads[phase] = 256;
        choice->shared[phase] = 256 * columns * bytes;
    }
    if (team.along)
        choice->shared[0] = team.y == 256 ? 8 * bytes : 0;
    choice->baked[0] = team.x;
    choice->baked[1] = team.y;
    choice->baked[2] = (int32_t)columns;
    choice->baked[3] = team.along ? team.w : 1;
    return true;
}

// ---- the rest, and the choice ----

static bool select_plain(const CudaLaunch *launch, CudaChoice *choice, const char *file,
                         const char *name, const char *shape, const char *definition, int value)
{
    choice->file = file;
    choice->name = name;
    choice->shape = shape;
    if (definition)
        choice->definitions = arena_printf(launch->arena, "%s=%d", definition, value);
    choice->threads[0] = 256;
    choice->baked[0] = value;
    return true;
}

bool cuda_select_move(const CudaLaunch *launch, CudaChoice *choice)
{
    static const char *const draws[] = {"normal", "uniform", "integers"};
    const char *symbol = launch->symbol;
    if (strcmp(symbol, "pv_copy") == 0 || strcmp(symbol, "pv_copy_to") == 0)
        return select_copy(launch, strcmp(symbol, "pv_copy_to") == 0, choice);
    if (strcmp(symbol, "pv_reduce") == 0 || strcmp(symbol, "pv_reduce_int") == 0)
        return select_reduce(launch, strcmp(symbol, "pv_reduce_int") == 0, choice);
    if (strcmp(symbol, "pv_fill") == 0)
        return select_plain(launch, choice, "move_fill.cu", "fill", "pv_shape_fill", NULL, 0);
    if (strcmp(symbol, "pv_pick") == 0)
        return select_plain(launch, choice, "move_pick.cu", "pick", "pv_shape_pick", "PICK_OP", 0);
    if (strcmp(symbol, "pv_pick_grad") == 0)
        return select_plain(launch, choice, "move_pick.cu", "pick_grad", "pv_shape_pick", "PICK_OP",
                            1);
    if (strcmp(symbol, "pv_gather") == 0)
        return select_plain(launch, choice, "move_pick.cu", "gather", "pv_shape_pick", "PICK_OP",
                            2);
    if (strcmp(symbol, "pv_gather_grad") == 0)
        return select_plain(launch, choice, "move_gather_grad.cu", "gather_grad",
                            "pv_shape_gather_grad", NULL, 0);
    if (strcmp(symbol, "pv_random") != 0)
        return false;
    size_t at = offsetof(RandomArgs, kind) / sizeof(int64_t);
    int kind = (int)cuda_number(launch, at);
    if (!agrees(launch, at))
        return false;
    return select_plain(launch, choice, "random.cu", draws[kind], "pv_shape_random", "RANDOM_KIND",
                        kind);
}
