// Calls of entries with tensors, in between the command lines and the executor.
#include "runtime/call.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/command.h"
#include "runtime/cuda_exec.h"

PvCall *pv_call_new(const PvEntry *entry, const PvScalar *options, PvRandom *random)
{
    PvCall *call = pv_alloc(sizeof *call);
    call->entry = entry;
    call->inputs = pv_alloc((entry->input_count + 1u) * sizeof(void *));
    call->numbers = pv_alloc((entry->input_count + 1u) * sizeof *call->numbers);
    call->outputs = pv_alloc((entry->output_count + 1u) * sizeof(void *));
    call->io = pv_alloc((entry->input_count + entry->output_count + 1u) * sizeof *call->io);
    call->step = (PvStep){1, options, call->numbers, 0, random};
    return call;
}

void pv_call_free(PvCall *call)
{
    if (!call)
        return;
    for (uint32_t i = 0; i < call->entry->input_count; i++)
        pv_tensor_drop(call->inputs[i]);
    for (uint32_t i = 0; i < call->entry->output_count; i++) {
        PvTensor *output = call->outputs[i];
        PvError ignored = {0}; // a device that failed; who holds the number finds 0
        if (call->device && output && output->rank == 0 && output->refs > 1)
            pv_tensor_fetch(output, &ignored);
        pv_error_free(&ignored);
        pv_tensor_drop(output);
    }
    if (call->device)
        pv_device_free(call->device, call->numbers_at,
                       (int64_t)call->entry->output_count * PV_NUMBER_SPACING);
    free(call->inputs);
    free(call->numbers);
    free(call->outputs);
    free(call->io);
    free(call);
}

int pv_call_find(const PvEntry *entry, const char *input)
{
    for (uint32_t i = 0; i < entry->input_count; i++)
        if (strcmp(entry->inputs[i].name, input) == 0)
            return (int)i;
    return -1;
}

int pv_call_find_input(const PvEntry *entry, const char *input, PvError *error)
{
    int index = pv_call_find(entry, input);
    PvWords names = {0};
    for (uint32_t i = 0; index < 0 && i < entry->input_count; i++)
        pv_words_add(&names, entry->inputs[i].name);
    if (index < 0)
        pv_unknown("input", input, names.items, names.count, PV_WRONG, error);
    pv_words_free(&names);
    return index;
}

bool pv_call_set(PvCall *call, uint32_t index, PvTensor *tensor, const char *from, PvError *error)
{
    const PvInput *input = &call->entry->inputs[index];
    pv_tensor_drop(call->inputs[index]);
    call->inputs[index] = NULL;
    if (!tensor)
        return true;
    bool fits = input->type.rank == 0 ? tensor->count == 1 // a number may be stored as [1]
                                      : pv_tensor_fits(tensor, &input->type, -1);
    if (!fits) {
        char want[PV_SHAPE_TEXT], have[PV_SHAPE_TEXT];
        return pv_error(error, PV_WRONG, "%s is %s; the input '%s' of %s is %s", from,
                        pv_shape_text(have, tensor->rank, tensor->dim), input->name,
                        call->entry->name, pv_type_text(want, &input->type));
    }
    call->inputs[index] = pv_tensor_convert(tensor, input->type.dtype, error);
    if (!call->inputs[index])
        return false;
    if (input->type.rank == 0) {
        if (pv_dtype_is_real(input->type.dtype))
            call->numbers[index].f = pv_tensor_number(call->inputs[index], 0);
        else
            pv_convert(&call->numbers[index].i, PV_I64, call->inputs[index]->data,
                       input->type.dtype, 1);
    }
    return true;
}

bool pv_call_set_number(PvCall *call, uint32_t index, double value, PvError *error)
{
    PvTensor *tensor = pv_tensor_new(PV_F64, 0, NULL, error);
    if (!tensor)
        return false;
    memcpy(tensor->data, &value, sizeof value);
    bool good = pv_call_set(call, index, tensor, "a number", error);
    pv_tensor_drop(tensor);
    return good;
}

bool pv_call_settle(PvCall *call, int64_t fallback, PvError *error)
{
    const PvEntry *entry = call->entry;
    const char *witness = NULL;
    call->step.batch = fallback;
    call->step.given = 0;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        const PvInput *input = &entry->inputs[i];
        const PvTensor *tensor = call->inputs[i];
        if (!tensor && !input->optional) {
            char text[PV_SHAPE_TEXT];
            return pv_error(error, PV_WRONG, "%s needs the input '%s', %s %s", entry->name,
                            input->name, pv_dtype_name(input->type.dtype),
                            pv_type_text(text, &input->type));
        }
        if (!tensor)
            continue;
        call->step.given |= UINT64_C(1) << i;
        if (!input->type.batch_axes)
            continue;
        int64_t batch = pv_tensor_batch(tensor, &input->type);
        if (witness && batch != call->step.batch)
            return pv_error(error, PV_WRONG, "%s: the batch of '%s' is %lld, that of '%s' is %lld",
                            entry->name, witness, (long long)call->step.batch, input->name,
                            (long long)batch);
        witness = input->name;
        call->step.batch = batch;
    }
    return true;
}

// A new output: on the CPU, or where the GPU will write it.
static PvTensor *make_output(PvExec *exec, PvCall *call, uint32_t index, PvError *error)
{
    const PvEntry *entry = call->entry;
    const PvType *type = &entry->outputs[index].type;
    if (!exec->gpu)
        return pv_tensor_of(type, call->step.batch, error);
    PvDevice *device = exec->gpu->device;
    if (type->rank > 0)
        return pv_tensor_on(device, type, call->step.batch, error);
    if (!call->numbers_at &&
        !pv_device_alloc(device, (int64_t)entry->output_count * PV_NUMBER_SPACING, "numbers",
                         &call->numbers_at, error))
        return NULL;
    call->device = device;
    return pv_tensor_at(device, type, 1, call->numbers_at + PV_NUMBER_SPACING * (uint64_t)index,
                        error);
}

// Outputs of the right size for this batch. Numbers on a GPU have one place each, so they are
// brought to the host before somebody who holds them finds others there.
static bool make_outputs(PvExec *exec, PvCall *call, PvError *error)
{
    const PvEntry *entry = call->entry;
    for (uint32_t i = 0; i < entry->output_count; i++) {
        PvTensor **at = &call->outputs[i];
        const PvType *type = &entry->outputs[i].type;
        if (*at && ((*at)->refs != 1 || !pv_tensor_fits(*at, type, call->step.batch))) {
            if (exec->gpu && type->rank == 0 && !pv_tensor_fetch(*at, error))
                return false;
            pv_tensor_drop(*at);
            *at = NULL;
        }
        if (!*at)
            *at = make_output(exec, call, i, error);
        if (!*at)
            return false;
    }
    return true;
}

// Addresses of inputs and outputs on the CPU.
static void host_addresses(PvCall *call)
{
    const PvEntry *entry = call->entry;
    for (uint32_t i = 0; i < entry->input_count; i++)
        call->io[i] = call->inputs[i] ? call->inputs[i]->data : NULL;
    for (uint32_t i = 0; i < entry->output_count; i++)
        call->io[entry->input_count + i] = call->outputs[i]->data;
}

// The same on a GPU, where inputs are sent to that are not there; numbers are step values.
static bool device_addresses(PvExec *exec, PvCall *call, PvError *error)
{
    const PvEntry *entry = call->entry;
    CUdeviceptr at;
    for (uint32_t i = 0; i < entry->input_count; i++) {
        call->io[i] = NULL;
        if (!call->inputs[i] || entry->inputs[i].type.rank == 0)
            continue;
        if (!pv_tensor_upload(call->inputs[i], exec->gpu->device, &at, error))
            return false;
        call->io[i] = (void *)(uintptr_t)at;
    }
    for (uint32_t i = 0; i < entry->output_count; i++) {
        if (!pv_tensor_place(call->outputs[i], exec->gpu->device, &at, error))
            return false;
        call->io[entry->input_count + i] = (void *)(uintptr_t)at;
    }
    return true;
}

// The work that reads and writes them is queued.
static bool note_uses(PvCall *call, PvError *error)
{
    const PvEntry *entry = call->entry;
    for (uint32_t i = 0; i < entry->input_count; i++)
        if (call->inputs[i] && entry->inputs[i].type.rank > 0 &&
            !pv_tensor_device_read(call->inputs[i], error))
            return false;
    for (uint32_t i = 0; i < entry->output_count; i++)
        pv_tensor_device_wrote(call->outputs[i]);
    return true;
}

bool pv_call_run(PvExec *exec, PvCall *call, const PvCallPlan *plan, PvError *error)
{
    const PvEntry *entry = call->entry;
    if (!make_outputs(exec, call, error))
        return false;
    if (!exec->gpu)
        host_addresses(call);
    else if (!device_addresses(exec, call, error))
        return false;
    const PvPlan *of =
        plan->plain ? &entry->plain[plan->variant] : pv_exec_plan(exec, entry, plan->variant);
    PvExecStep step = {
        entry, of, &call->step, call->io, plan->taps, plan->tap_count, plan->tap_tensors, NULL};
    if (!pv_exec_run(exec, &step, error) || (exec->gpu && !note_uses(call, error)))
        return false;
    pv_random_advance(call->step.random, of->streams, of->stream_count);
    return true;
}

bool pv_call_fetch(PvCall *call, PvError *error)
{
    for (uint32_t i = 0; i < call->entry->output_count; i++)
        if (call->outputs[i] && !pv_tensor_fetch(call->outputs[i], error))
            return false;
    return true;
}
