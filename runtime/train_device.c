// Turns of training on a GPU: the same course as on the CPU, but nothing is waited for.
//
// The settings of an update are computed beside the work (pv_exec_settings), since the host makes
// the update's constants of them. Losses, reports and the norm are copied, behind the work, to
// pinned memory of two slots that take turns; a slot is read before it is used again, so the host
// is at most two steps ahead, and an error is told at most two steps late. The device itself
// changes nothing once a loss or a norm was not finite.
#include <stdlib.h>
#include <string.h>

#include "codegen/kernel_args.h"
#include "runtime/cuda_optimizer.h"
#include "runtime/train.h"

enum { SLOTS = 2 };

// The numbers of one step.
typedef struct {
    char *numbers;           // pinned: [accumulate][output_count] PV_NUMBER_SPACING bytes each
    OptimizerResult *result; // pinned, behind the numbers
    CUevent done;
    bool pending; // queued, not read
    int64_t step; // from 1
    PvOptimizerSettings settings;
} Slot;

struct PvTurnDevice {
    PvDevice *device;
    CUdeviceptr losses; // PvReal [accumulate]
    int64_t loss_bytes;
    int64_t block; // bytes of the numbers of a micro-step
    uint32_t loss; // output that is the loss
    Slot slots[SLOTS];
    int next;
};

static PvDevice *device_of(const PvTrain *train)
{
    const PvGpu *gpu = train->session->exec->gpu;
    return gpu ? gpu->device : NULL;
}

// The first number among the named outputs.
static uint32_t find_loss(const PvEntry *entry)
{
    for (uint32_t i = 0; i < entry->output_count; i++)
        if (entry->outputs[i].kind == PV_OUT_NAMED)
            return i;
    return 0;
}

static bool make_slot(PvDevice *device, Slot *slot, int64_t bytes, PvError *error)
{
    void *pinned = NULL;
    int result = device->driver->host_alloc(&pinned, (size_t)bytes + sizeof *slot->result, 0);
    if (result != PV_CUDA_OK)
        return pv_driver_error(device->driver, error, result, "no pinned memory for numbers");
    slot->numbers = pinned;
    slot->result = (OptimizerResult *)(void *)(slot->numbers + bytes);
    return pv_device_event(device, &slot->done, error);
}

static bool make_turn(PvDevice *device, PvTurn *turn, PvError *error)
{
    struct PvTurnDevice *own = turn->device = pv_alloc(sizeof *own);
    own->device = device;
    own->block = (int64_t)turn->call->entry->output_count * PV_NUMBER_SPACING;
    own->loss = find_loss(turn->call->entry);
    own->loss_bytes = turn->accumulate * (int64_t)sizeof(PvReal);
    for (int i = 0; i < SLOTS; i++)
        if (!make_slot(device, &own->slots[i], own->block * turn->accumulate, error))
            return false;
    return pv_device_alloc(device, own->loss_bytes, "losses", &own->losses, error);
}

bool pv_train_device_new(PvTrain *train, PvError *error)
{
    PvDevice *device = device_of(train);
    if (!device)
        return true;
    train->optimizer->gpu =
        pv_gpu_optimizer_new(train->session->exec->gpu, train->optimizer, error);
    if (!train->optimizer->gpu)
        return false;
    pv_exec_expect(train->session->exec, train->moves, true);
    for (uint32_t i = 0; i < train->stage->minimize_count; i++)
        if (!make_turn(device, &train->turns[i], error))
            return false;
    return true;
}

void pv_turn_device_free(PvTurn *turn)
{
    struct PvTurnDevice *own = turn->device;
    if (!own)
        return;
    const PvDriver *driver = own->device->driver;
    driver->stream_wait(own->device->work); // copies into the slots
    for (int i = 0; i < SLOTS; i++) {
        if (own->slots[i].numbers)
            driver->host_release(own->slots[i].numbers);
        if (own->slots[i].done)
            driver->event_destroy(own->slots[i].done);
    }
    pv_device_free(own->device, own->losses, own->loss_bytes);
    free(own);
}

// ---- reading ----

static double number_at(const PvTurn *turn, const Slot *slot, int64_t micro, uint32_t output)
{
    const struct PvTurnDevice *own = turn->device;
    const PvType *type = &turn->call->entry->outputs[output].type;
    double number = 0;
    if (type->rank == 0)
        pv_convert(&number, PV_F64,
                   slot->numbers + micro * own->block + (int64_t)output * PV_NUMBER_SPACING,
                   type->dtype, 1);
    return number;
}

// Waits for a slot, and puts its numbers into the turn.
static bool read_slot(PvTrain *train, PvTurn *turn, Slot *slot, PvError *error)
{
    const PvEntry *entry = turn->call->entry;
    PvDevice *device = turn->device->device;
    if (!slot->pending)
        return true;
    slot->pending = false;
    int result = device->driver->event_wait(slot->done);
    if (result != PV_CUDA_OK)
        return pv_device_fault(device, result, error);
    double scale = 1.0 / (double)turn->accumulate;
    turn->loss = 0;
    memset(turn->reports, 0, entry->output_count * sizeof *turn->reports);
    for (int64_t micro = 0; micro < turn->accumulate; micro++) {
        turn->loss += number_at(turn, slot, micro, turn->device->loss);
        for (uint32_t i = 0; i < entry->output_count; i++)
            if (entry->outputs[i].kind == PV_OUT_REPORT)
                turn->reports[i] += number_at(turn, slot, micro, i);
    }
    turn->loss *= scale;
    for (uint32_t i = 0; i < entry->output_count; i++)
        turn->reports[i] *= scale;
    turn->norm = slot->result->norm;
    turn->scale = (PvLossScale){slot->result->scale.scale, slot->result->scale.good,
                                slot->result->scale.skipped};
    turn->settings = slot->settings;
    return slot->result->bad_step == 0 || pv_turn_not_finite(train, turn, slot->step, error);
}

bool pv_train_numbers(PvTrain *train, PvError *error)
{
    for (int k = 0; k < SLOTS; k++)
        for (uint32_t i = 0; i < train->stage->minimize_count; i++) {
            PvTurn *turn = &train->turns[i];
            struct PvTurnDevice *own = turn->device;
            if (own && !read_slot(train, turn, &own->slots[(own->next + k) % SLOTS], error))
                return false;
        }
    return true;
}

// ---- a turn ----

// Behind a micro-step: its numbers to the slot, its loss to those that the update looks at.
static bool copy_numbers(PvTurn *turn, Slot *slot, int64_t micro, PvError *error)
{
    struct PvTurnDevice *own = turn->device;
    PvDevice *device = own->device;
    CUdeviceptr from = turn->call->numbers_at;
    int result = device->driver->to_host(slot->numbers + micro * own->block, from,
                                         (size_t)own->block, device->work);
    if (result == PV_CUDA_OK)
        result = device->driver->copy(own->losses + (uint64_t)micro * sizeof(PvReal),
                                      from + (uint64_t)own->loss * PV_NUMBER_SPACING,
                                      sizeof(PvReal), device->work);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

static bool copy_result(PvTrain *train, PvTurn *turn, Slot *slot, PvError *error)
{
    PvDevice *device = turn->device->device;
    int result = device->driver->to_host(slot->result, train->optimizer->gpu->result,
                                         sizeof *slot->result, device->work);
    if (result == PV_CUDA_OK)
        result = device->driver->event_record(slot->done, device->work);
    slot->pending = result == PV_CUDA_OK;
    return slot->pending || pv_device_fault(device, result, error);
}

bool pv_turn_on_device(PvTrain *train, uint32_t index, PvError *error)
{
    PvTurn *turn = &train->turns[index];
    struct PvTurnDevice *own = turn->device;
    PvOptimizer *optimizer = train->optimizer;
    Slot *slot = &own->slots[own->next];
    bool sums = turn->accumulate > 1;
    if (!read_slot(train, turn, slot, error))
        return false;
    own->next = (own->next + 1) % SLOTS;
    memset(train->seen, 0, train->session->model->param_count * sizeof *train->seen);
    if (!pv_gpu_loss_scale(optimizer->gpu, index, error))
        return false;
    for (int64_t i = 0; i < turn->accumulate; i++)
        if (!pv_turn_micro_step(train, index, i + 1 == turn->accumulate, error) ||
            !copy_numbers(turn, slot, i, error) ||
            (sums && !pv_gpu_accumulate(optimizer->gpu, index, train->present, train->seen, error)))
            return false;
    slot->step = train->step + 1;
    slot->settings = pv_turn_settings(turn);
    bool due = turn->ema_every > 0 && slot->settings.ema > 0 &&
               (optimizer->updates[index] + 1) % turn->ema_every == 0;
    const PvGpuUpdate update = {.turn = index,
                                .settings = &slot->settings,
                                .present = sums ? train->seen : train->present,
                                .sums = sums,
                                .scale = 1.0 / (double)turn->accumulate,
                                .losses = own->losses,
                                .loss_count = turn->accumulate,
                                .step = slot->step,
                                .average = due};
    return pv_gpu_update(optimizer->gpu, &update, error) && copy_result(train, turn, slot, error);
}

// ---- the host's copies ----

bool pv_train_fetch(PvTrain *train, PvError *error)
{
    if (!device_of(train))
        return true;
    return pv_train_numbers(train, error) && pv_exec_params(train->session->exec, error) != NULL &&
           pv_gpu_optimizer_fetch(train->optimizer->gpu, error);
}

void pv_train_written(PvTrain *train)
{
    if (!device_of(train))
        return;
    pv_exec_params_written(train->session->exec);
    pv_gpu_optimizer_written(train->optimizer->gpu);
}
