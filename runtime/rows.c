// Rows of tables. See rows.h.
//
// A row holds for the step values that the table's plan reads: their bytes are its key. On a GPU
// the step reads every row at one address, so that its launches need not be prepared anew: the row
// is copied there, device to device, before the step. When there are too many rows, all go.
#include "runtime/rows.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/cuda_exec.h"

enum { MOST_ROWS = 4096 };

typedef struct {
    PvScalar *key;  // [scalar_count] of the table's plan
    char *data;     // row_bytes, or
    CUdeviceptr at; // on the GPU
} Row;

struct PvRows {
    PvRows *next;
    const PvPlan *plan;  // the step's
    CUdeviceptr current; // on a GPU: what the step reads
    Row *rows;
    size_t count, capacity, last;
};

static void free_rows(PvExec *exec, PvRows *rows)
{
    PvDevice *device = exec->gpu ? exec->gpu->device : NULL;
    for (size_t i = 0; i < rows->count; i++) {
        if (device)
            pv_device_free(device, rows->rows[i].at, rows->plan->row_bytes);
        free(rows->rows[i].key);
        free(rows->rows[i].data);
    }
    rows->count = rows->last = 0;
}

void pv_rows_drop(PvExec *exec)
{
    while (exec->rows) {
        PvRows *first = exec->rows;
        exec->rows = first->next;
        free_rows(exec, first);
        if (exec->gpu)
            pv_device_free(exec->gpu->device, first->current, first->plan->row_bytes);
        free(first->rows);
        free(first);
    }
}

static PvRows *rows_of(PvExec *exec, const PvPlan *plan)
{
    for (PvRows *rows = exec->rows; rows; rows = rows->next)
        if (rows->plan == plan)
            return rows;
    PvRows *rows = pv_alloc(sizeof *rows);
    rows->plan = plan;
    rows->next = exec->rows;
    return exec->rows = rows;
}

// Runs the plan of the table, whose results lie at `at`.
static bool make_row(PvExec *exec, const PvExecStep *step, void *at, PvError *error)
{
    PvExecStep make = *step;
    make.plan = step->plan->table;
    make.tap_count = 0;
    make.row = at;
    return pv_exec_run(exec, &make, error);
}

static bool copy_row(PvExec *exec, CUdeviceptr to, CUdeviceptr from, int64_t bytes, PvError *error)
{
    PvDevice *device = exec->gpu->device;
    int result = device->driver->copy(to, from, (size_t)bytes, device->work);
    return result == PV_CUDA_OK || pv_device_fault(device, result, error);
}

// A new row, made where it will be read.
static Row *add_row(PvExec *exec, PvRows *rows, const PvExecStep *step, PvScalar *key,
                    PvError *error)
{
    int64_t bytes = rows->plan->row_bytes;
    Row row = {.key = key};
    if (rows->count == MOST_ROWS)
        free_rows(exec, rows);
    if (exec->gpu) {
        PvDevice *device = exec->gpu->device;
        if ((!rows->current &&
             !pv_device_alloc(device, bytes, "a row of a table", &rows->current, error)) ||
            !pv_device_alloc(device, bytes, "a row of a table", &row.at, error) ||
            !make_row(exec, step, (void *)(uintptr_t)rows->current, error) ||
            !copy_row(exec, row.at, rows->current, bytes, error)) {
            pv_device_free(device, row.at, bytes);
            return NULL;
        }
    } else {
        row.data = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64);
        if (!row.data) {
            pv_error(error, PV_MACHINE, "no memory for a row of a table");
            return NULL;
        }
        if (!make_row(exec, step, row.data, error)) {
            free(row.data);
            return NULL;
        }
    }
    rows->rows = pv_grow(rows->rows, &rows->capacity, rows->count, sizeof *rows->rows);
    rows->rows[rows->count] = row;
    rows->last = rows->count++;
    return &rows->rows[rows->last];
}

void *pv_rows_take(PvExec *exec, const PvExecStep *step, PvError *error)
{
    const PvPlan *plan = step->plan, *table = plan->table;
    PvRows *rows = rows_of(exec, plan);
    size_t size = table->scalar_count * sizeof(PvScalar);
    PvScalar *key = pv_alloc(size + 1);
    if (table->scalars && table->scalar_count > 0)
        table->scalars(step->step, key);
    for (size_t n = 0; n < rows->count; n++) {
        size_t index = (rows->last + n) % rows->count;
        const Row *row = &rows->rows[index];
        if (memcmp(row->key, key, size) != 0)
            continue;
        free(key);
        bool moved = index != rows->last;
        rows->last = index;
        if (!exec->gpu)
            return row->data;
        if (moved && !copy_row(exec, rows->current, row->at, plan->row_bytes, error))
            return NULL;
        return (void *)(uintptr_t)rows->current;
    }
    const Row *row = add_row(exec, rows, step, key, error);
    if (!row) {
        free(key);
        return NULL;
    }
    return exec->gpu ? (void *)(uintptr_t)rows->current : row->data;
}
