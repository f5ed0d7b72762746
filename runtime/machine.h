// Is this the machine that the kernels were compiled for?
#ifndef PV_MACHINE_H
#define PV_MACHINE_H

#include "runtime/error.h"
#include "runtime/pvdm.h"

// False (PV_MACHINE) when the processor lacks a feature of model->features. The runtime itself is
// compiled for any processor of the architecture, so that this can be said instead of SIGILL.
bool pv_machine_check(const PvModel *model, PvError *error);

#endif
