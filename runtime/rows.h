// Rows of tables: what the steps of a sampler need that follows from the weights and the numbers of
// the step alone. The plan PvPlan.table makes a row; the rows of all numbers that came up are kept,
// so that a schedule computes each once, however many clips follow.
#ifndef PV_ROWS_H
#define PV_ROWS_H

#include "runtime/exec.h"

typedef struct PvRows PvRows;

// The address of the row for this step, whose plan has a table, on the device that runs it. Makes
// the row if it is not there. NULL with an error.
void *pv_rows_take(PvExec *exec, const PvExecStep *step, PvError *error);
// The weights changed, or nothing is needed any more.
void pv_rows_drop(PvExec *exec);

#endif
