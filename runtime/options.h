// Options of the model: their values for a run, from defaults, a YAML file, --set, and flags.
#ifndef PV_OPTIONS_H
#define PV_OPTIONS_H

#include "runtime/command.h"
#include "runtime/config.h"
#include "runtime/pvdm.h"

// Values of all slots, the defaults. malloc'ed.
PvScalar *pv_options_new(const PvModel *model);
// The option of that name in a block (`stage`: a train or sample block, or NULL), else the global
// one; NULL: none.
const PvOption *pv_option_find(const PvModel *model, const char *stage, const char *name);

// Puts the settings of `config` that are named as a global option or one of `stage` ("lr", or
// "STAGE.lr") into the slots. A single number fills a list.
bool pv_options_apply(const PvModel *model, const char *stage, PvConfig *config, PvScalar *slots,
                      PvError *error);
// Sets a number option that may or may not exist.
void pv_option_put(const PvModel *model, const char *stage, const char *name, int64_t value,
                   PvScalar *slots);
// Names of the options that pv_options_apply would take; numbers only (no tensors).
void pv_options_names(const PvModel *model, const char *stage, PvWords *names);

// The setting "NAME", or "STAGE.NAME", which wins. NULL: none. Marks both used.
PvSetting *pv_stage_setting(PvConfig *config, const char *stage, const char *name);

#endif
