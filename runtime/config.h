// Configuration: YAML files and KEY=VALUE from the command line as one flat list of settings.
// Nested mappings are joined by dots ("train.lr"); values are scalars or lists of scalars. Later
// settings of a key replace earlier ones. Every setting knows where it came from, and whether it
// was asked for, so that a misspelt key is an error and not silence.
#ifndef PVDM_CONFIG_H
#define PVDM_CONFIG_H

#include <stdint.h>

#include "runtime/error.h"

typedef struct {
    char *key;
    char **values; // as written, quotes taken off
    size_t count;  // 1 for a scalar
    bool is_list;
    char *place; // "run.yaml:12", "--set lr=1e-4"
    bool used;
} PvSetting;

typedef struct {
    PvSetting *items;
    size_t count, capacity;
} PvConfig; // starts as {0}

bool pv_config_read(PvConfig *config, const char *path, PvError *error);
bool pv_config_parse(PvConfig *config, const char *name, const char *text, size_t size,
                     PvError *error);
// "KEY=VALUE"; the value is a YAML scalar or flow list: "steps=[100, 20]", also "steps=100,20".
bool pv_config_set(PvConfig *config, const char *assignment, PvError *error);
void pv_config_free(PvConfig *config);

PvSetting *pv_config_find(PvConfig *config, const char *key); // marks it used; NULL: none

// Each leaves *out alone and returns true when the key is absent; false when the value is not of
// that type ("run.yaml:3: lr: expected a number, found 'fast'").
bool pv_config_int(PvConfig *config, const char *key, int64_t *out, PvError *error);
bool pv_config_real(PvConfig *config, const char *key, double *out, PvError *error);
bool pv_config_bool(PvConfig *config, const char *key, bool *out, PvError *error);
bool pv_config_text(PvConfig *config, const char *key, const char **out, PvError *error);

// Value i of a setting as a number.
bool pv_setting_int(const PvSetting *setting, size_t i, int64_t *out, PvError *error);
bool pv_setting_real(const PvSetting *setting, size_t i, double *out, PvError *error);
bool pv_setting_bool(const PvSetting *setting, size_t i, bool *out, PvError *error);

// An error that names the settings nobody asked for, with the nearest of `known` as help.
bool pv_config_check_used(const PvConfig *config, const char *const *known, size_t known_count,
                          PvError *error);
// The nearest of `known` to a misspelt word, or NULL: none is near.
const char *pv_nearest(const char *word, const char *const *known, size_t known_count);

#endif
