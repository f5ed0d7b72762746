// Where results are wanted: outputs, gradients and state of a step, rows of a sampler's table,
// taps.
//
// A result that is wanted as its kernel can write it gets its place there before any group is
// lowered; all others are copied when every group has been. A tap shows a value where it lies: the
// storage, or a copy that is made as soon as the storage is written.
#include <math.h>

#include "codegen/codegen.h"

// ---- outputs ----

static PlanArg output_place(const Lower *lower, const Output *output)
{
    const Codegen *cg = lower->cg;
    const Work *work = lower->work;
    if (work->row_offset)
        return (PlanArg){.space = (uint16_t)(PV_IO + work->row_input),
                         .a = work->row_offset[output - work->variant->outputs]};
    if (output->kind == OUT_GRAD)
        return (PlanArg){.space = PV_GRAD, .a = cg->param_offset[output->param]};
    if (output->kind == OUT_STATE)
        return (PlanArg){.space = PV_PARAM, .a = cg->param_offset[output->param]};
    uint32_t index = output_index(cg, lower->work->entry_index, output);
    return (PlanArg){.space = (uint16_t)(PV_IO + lower->work->entry->input_count + index)};
}

// How an output is wanted.
static void output_strides(const Lower *lower, const Output *output, Dim *stride)
{
    if (!lower->work->row_offset && (output->kind == OUT_GRAD || output->kind == OUT_STATE))
        param_strides(lower->cg->module, output->param, stride);
    else
        dense_strides(val_type(lower->graph, output->val), stride);
}

// The storage that holds an output and nothing else, as it is wanted, if a kernel can write it
// anywhere; else 0.
static Val own_storage(const Lower *lower, const Output *output)
{
    const Work *work = lower->work;
    Val val = output->val;
    View view = view_of(work, val);
    Dim stride[MAX_RANK];
    output_strides(lower, output, stride);
    uint32_t local = local_of(work, view.base);
    const Node *node = val_get(lower->graph, view.base);
    bool source = op_info[node->op].class == CLASS_SOURCE && node->op != OP_RANDOM;
    const Type *type = val_type(lower->graph, val), *base = val_type(lower->graph, view.base);
    for (uint32_t axis = 0; axis < type->rank; axis++)
        if (!dim_equal(stride[axis], view.stride[axis]))
            return 0;
    if (work->step[local] || source || (node->op == OP_ATTENTION && work->order[local * MAX_OUT]) ||
        view.offset.fixed || view.offset.batch || !dim_equal(count_of(type), count_of(base)))
        return 0;
    return view.base;
}

// Results that are outputs get their storage where they are wanted. State is stored at the end,
// since the step reads the old one.
void place_outputs(Lower *lower, bool *direct)
{
    Work *work = lower->work;
    for (uint32_t i = 0; i < work->variant->output_count; i++) {
        const Output *output = &work->variant->outputs[i];
        Val base = output->kind == OUT_STATE ? 0 : own_storage(lower, output);
        if (!base || work->placed[place_index(lower, base)])
            continue;
        direct[i] = true;
        work->placed[place_index(lower, base)] = true;
        work->place[place_index(lower, base)] = output_place(lower, output);
    }
}

void store_outputs(Lower *lower, const bool *direct)
{
    Work *work = lower->work;
    for (int state = 0; state < 2; state++)
        for (uint32_t i = 0; i < work->variant->output_count; i++) {
            const Output *output = &work->variant->outputs[i];
            if (direct[i] || (output->kind == OUT_STATE) != (state != 0))
                continue;
            Dim stride[MAX_RANK];
            output_strides(lower, output, stride);
            copy_val(lower, output->val, output_place(lower, output), stride);
        }
    const struct EntryOutputs *all = &lower->cg->outputs[work->entry_index];
    for (uint32_t k = 0; !work->row_offset && k < all->count; k++) {
        bool there = false;
        for (uint32_t i = 0; i < work->variant->output_count; i++)
            there |= output_index(lower->cg, work->entry_index, &work->variant->outputs[i]) == k;
        PlanArg at = {.space = (uint16_t)(PV_IO + work->entry->input_count + k)};
        // a gradient of what the variant does not read is 0; a report it does not make, NaN
        if (!there)
            launch_fill(lower, at, val_type(lower->graph, all->at[k].val),
                        all->at[k].kind == OUT_REPORT ? NAN : 0);
    }
}

// ---- taps ----

// Copies the tapped values that are strided views of what a group has just stored, so that the
// storage need not outlive its readers.
void copy_taps(Lower *lower, const Group *group)
{
    for (uint32_t k = 0; k < group->result_count; k++) {
        if (!lower->tap_head || !group->results[k])
            continue;
        for (uint32_t i = lower->tap_head[local_of(lower->work, group->results[k])]; i;
             i = lower->tap_next[i - 1]) {
            Val val = lower->work->variant->taps[i - 1].val;
            if (base_of(lower->work, val) == group->results[k])
                dense_place(lower, val);
        }
    }
}

// Lists taps by the node whose storage they show.
void list_taps(Lower *lower)
{
    const Work *work = lower->work;
    if (!work->taps)
        return;
    lower->tap_head = arena_alloc(work->arena, (work->count + 1) * sizeof(uint32_t));
    lower->tap_next = arena_alloc(work->arena, (work->variant->tap_count + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < work->variant->tap_count; i++) {
        uint32_t local = local_of(work, base_of(work, work->variant->taps[i].val));
        lower->tap_next[i] = lower->tap_head[local];
        lower->tap_head[local] = i + 1;
    }
}

void place_taps(Lower *lower)
{
    Work *work = lower->work;
    const Variant *variant = work->variant;
    if (!work->taps || variant->tap_count == 0)
        return;
    work->tap_list = arena_alloc(work->arena, variant->tap_count * sizeof(PlanTap));
    for (uint32_t i = 0; i < variant->tap_count; i++) {
        const Tap *tap = &variant->taps[i];
        PlanTap *out = &work->tap_list[work->tap_count++];
        *out = (PlanTap){.name = tap->name, .type = val_type(lower->graph, tap->val)};
        View view = view_of(work, tap->val);
        bool dense = view_is_dense(&view, out->type);
        out->at = dense_place(lower, tap->val);
        out->launch = dense ? work->made_at[place_index(lower, view.base)]
                            : work->dense_at[place_index(lower, tap->val)];
    }
}
